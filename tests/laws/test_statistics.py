"""Laws of the statistics: what holds for any two models on any items."""

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluation.comparison import compare
from core.evaluation.results import Answered, Metric, ModelInfo, Question, Scored
from core.evaluation.statistics import Items, Paired, agresti_min, holm, mcnemar

law = settings(max_examples=60, deadline=None)

scores = st.sampled_from([0.0, 1.0]) | st.integers(-40, 40).map(lambda tenths: tenths / 10)


@st.composite
def samples(draw: st.DrawFn) -> Items:
    """Two to four models on up to 30 items: binary or not, ratios or not, with clusters or without."""
    models, n = draw(st.integers(2, 4)), draw(st.integers(2, 30))
    values = draw(st.sampled_from([st.sampled_from([0.0, 1.0]), scores]))
    rows = draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=models, max_size=models))
    counts = draw(st.none() | st.lists(st.integers(1, 9), min_size=n, max_size=n))
    names = draw(st.none() | st.lists(st.sampled_from(["a", "b", "c", None]), min_size=n, max_size=n))
    return Items(rows, None if counts is None else [counts] * models, names, draws=300, seed=draw(st.integers(0, 9)))


def again(items: Items, rows: np.ndarray, scale: float = 1.0) -> Items:
    """The same items with the models in another order, or with all totals multiplied."""
    names = [str(number) for number in items.group]
    return Items(scale * items.totals[rows], items.counts[rows], names, draws=items.draws, seed=items.seed)


def close(one: Paired | None, other: Paired | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(
        a == b or (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9))
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@law
@given(samples())
def test_exchanged_models_give_the_negative_difference(items: Items) -> None:
    there, back = items.paired(1, 0), items.paired(0, 1)
    if there and back:
        mirrored = replace(back, value=-back.value, low=-back.high, high=-back.low, wins=back.losses, losses=back.wins)
        assert close(there, mirrored)


@law
@given(samples(), st.randoms())
def test_the_order_of_the_models_changes_nothing(items: Items, random: Random) -> None:
    order = list(range(len(items.totals)))
    random.shuffle(order)
    other = again(items, np.array(order))
    assert close(items.paired(1, 0), other.paired(order.index(1), order.index(0)))


@law
@given(samples(), st.sampled_from([0.5, 2.0, 8.0]))
def test_scores_in_another_unit_give_the_difference_in_that_unit(items: Items, scale: float) -> None:
    here, there = items.paired(1, 0), again(items, np.arange(len(items.totals)), scale).paired(1, 0)
    if here is None or there is None or here.test == "McNemar":  # doubled, binary items are binary no more
        return
    for one, other in ((here.value, there.value), (here.se, there.se), (here.low, there.low), (here.high, there.high)):
        assert other == pytest.approx(scale * one, abs=1e-9)
    assert (here.p, here.wins, here.losses) == (there.p, there.wins, there.losses)


@law
@given(samples())
def test_a_copy_differs_by_nothing(items: Items) -> None:
    copy = again(items, np.array([0, 1, 0])).paired(2, 0)
    if copy:
        assert (copy.value, copy.se, copy.low, copy.high, copy.p, copy.ties) == (0, 0, 0, 0, 1, items.n)


@law
@given(samples())
def test_figures_are_possible_ones(items: Items) -> None:
    found = items.paired(1, 0)
    if found is None:
        assert items.units == 1
        return
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9 or found.test == "bootstrap"
    assert found.low <= found.high
    assert 0 < found.p <= 1
    assert found.wins + found.losses + found.ties == items.n
    assert found.correlation is None or -1 <= found.correlation <= 1
    assert found.detectable is None or found.detectable > 0


@law
@given(samples())
def test_the_bootstraps_interval_excludes_zero_just_where_its_p_is_small(items: Items) -> None:
    found = items.paired(1, 0)
    if found and found.test == "bootstrap":
        assert (found.low > 0 or found.high < 0) == (found.p <= 0.05)


@law
@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_the_interval_of_shares_holds_the_difference_and_stays_within_one(wins: int, losses: int, ties: int) -> None:
    n = max(1, wins + losses + ties)
    low, high = agresti_min(wins, losses, n)
    assert -1 <= low <= (wins - losses) / n <= high <= 1
    assert (low, high) == pytest.approx(tuple(-bound for bound in reversed(agresti_min(losses, wins, n))))


@law
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_sum_in_whole_numbers(wins: int, losses: int) -> None:
    m = wins + losses
    tail = sum(math.comb(m, i) for i in range(min(wins, losses) + 1))
    assert mcnemar(wins, losses) == pytest.approx(min(1.0, 2 * tail / 2**m), rel=1e-10)


@law
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_a_p_and_keeps_their_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(raw <= corrected <= 1 for raw, corrected in zip(p, adjusted, strict=True))
    for i, one in enumerate(p):
        assert all(adjusted[i] <= adjusted[j] for j, other in enumerate(p) if one <= other)
    assert all(corrected <= len(p) * raw + 1e-12 for raw, corrected in zip(p, adjusted, strict=True))


@law
@given(samples(), st.randoms())
def test_the_order_of_the_items_changes_nothing_in_a_comparison(items: Items, random: Random) -> None:
    models = [
        ModelInfo(name="base", role="baseline", path="base", backend="hf", identity="0"),
        ModelInfo(name="student", role="student", path="student", backend="hf", identity="1"),
    ]
    order = list(range(items.n))

    def answered() -> list[Answered]:
        questions = [Question(f"{i:03}", str(i), "", "", f"c{items.group[i]}") for i in order]
        return [
            Answered(
                model.name,
                "task",
                questions,
                [
                    Scored(
                        Metric("m", primary=True),
                        [float(items.totals[row, i]) for i in order],
                        [float(items.counts[row, i]) for i in order],
                    )
                ],
                [""] * items.n,
            )
            for row, model in enumerate(models)
        ]

    first = compare(models, answered(), 300, 0)
    random.shuffle(order)
    assert compare(models, answered(), 300, 0) == first
