"""Statistics of an evaluation: against figures worked out by hand, scipy, statsmodels, and how often they are right."""

import doctest
import math
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core.evaluation import statistics
from core.evaluation.statistics import FEWEST, Items, Paired, agresti_min, holm, mcnemar, student

Make = Callable[[np.random.Generator, int], Items]


def paired(items: Items, model: int = 1, against: int = 0) -> Paired:
    found = items.paired(model, against)
    assert found is not None
    return found


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(statistics).failed == 0


# ---- McNemar --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1),
        (3, 3, 1),  # 2 (1 + 6 + 15 + 20) / 64 > 1
        (1, 0, 1),  # 2 * 1 / 2
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_by_hand(wins: int, losses: int, p: float) -> None:
    assert mcnemar(wins, losses) == pytest.approx(p, rel=1e-12)
    assert mcnemar(losses, wins) == mcnemar(wins, losses)


@pytest.mark.parametrize(("wins", "losses"), [(7, 19), (150, 200), (5_000, 5_200), (50_000, 50_900), (200, 1_100)])
def test_mcnemar_is_scipys_sign_test_at_any_size(wins: int, losses: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert mcnemar(wins, losses) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-8)


def test_mcnemar_of_very_many_items_neither_overflows_nor_waits() -> None:
    start = time.process_time()
    assert mcnemar(1_000_000, 2_000_000) == 0
    assert mcnemar(1_000_000, 1_000_000) == pytest.approx(1)
    assert time.process_time() - start < 1


def test_mcnemar_is_statsmodels_exact_one() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    found = tables.mcnemar([[40, 6], [15, 39]], exact=True).pvalue
    assert mcnemar(15, 6) == pytest.approx(found, rel=1e-12)


def test_six_items_are_the_fewest_that_can_be_told_from_chance() -> None:
    assert mcnemar(FEWEST, 0) <= 0.05 < mcnemar(FEWEST - 1, 0)


# ---- paired differences ---------------------------------------------------------------------------------------------


def test_a_binary_pair_by_hand() -> None:
    # Of 10 items both have 3, the model alone 4, the baseline alone 1, none 2: 0.7 - 0.4 = 0.3
    model, base = [1, 1, 1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 1, 0, 0]
    found = paired(Items([base, model]))
    assert found.value == pytest.approx(0.3)
    # d is 1 four times, -1 once: sum d^2 = 5, variance (5 - 10 * 0.09) / 9 = 0.45556, se = sqrt(0.045556)
    assert found.se == pytest.approx(math.sqrt((5 - 0.9) / 9 / 10))
    assert (found.wins, found.losses, found.ties, found.test) == (4, 1, 5, "McNemar")
    assert found.p == pytest.approx(2 * (1 + 5) / 32)
    # (3 -+ 1.96 sqrt(6 - 9 / 12)) / 12
    half = 1.96 * math.sqrt(5.25)
    assert (found.low, found.high) == pytest.approx(((3 - half) / 12, (3 + half) / 12))
    # covariance: 0.3 - 0.7 * 0.4 = 0.02; standard deviations sqrt(0.21), sqrt(0.24)
    assert found.correlation == pytest.approx(0.02 / math.sqrt(0.21 * 0.24))
    # 2.8 sqrt(0.5 / 10) = 0.626, more than 6 / 10
    assert found.detectable == pytest.approx(2.8 * math.sqrt(0.05))
    assert found.clusters is None


def test_lower_is_better_turns_wins_around_but_not_the_difference() -> None:
    model, base = [1, 1, 0, 1], [1, 0, 0, 0]
    more, less = paired(Items([base, model])), paired(Items([base, model], higher_is_better=False))
    assert (more.wins, more.losses) == (less.losses, less.wins) == (2, 0)
    assert (more.value, more.low, more.high, more.p) == (less.value, less.low, less.high, less.p)


def test_nothing_below_six_items_of_n_is_called_detectable() -> None:
    base = np.zeros(100)
    model = np.array([1.0] * 3 + [0.0] * 97)
    # 2.8 sqrt(0.03 / 100) = 0.048, but fewer than 6 of 100 cannot be significant
    assert paired(Items([base, model])).detectable == pytest.approx(0.06)
    assert paired(Items([base[:5], base[:5]])).detectable == pytest.approx(6 / 5)  # more than there can be


def test_the_detectable_difference_is_found_in_four_cases_of_five() -> None:
    rng, n, share = np.random.default_rng(3), 200, 0.25
    true = 2.8 * math.sqrt(share / n)
    chances = [(share + true) / 2, (share - true) / 2, 1 - share]
    found = [agresti_min(wins, losses, n)[0] > 0 for wins, losses, _ in rng.multinomial(n, chances, 2000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_a_continuous_pair_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    base = rng.beta(2, 3, 400)
    model = np.clip(base + rng.normal(0.03, 0.2, 400), 0, 1)
    found, theirs = paired(Items([base, model])), stats.ttest_rel(model, base)
    assert found.test == "bootstrap"
    assert found.value / found.se == pytest.approx(theirs.statistic)
    assert found.p == pytest.approx(theirs.pvalue, rel=0.3)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()), abs=0.08 * found.se)
    drawn = stats.bootstrap((model - base,), np.mean, n_resamples=10_000, method="percentile", rng=rng)
    assert (found.low, found.high) == pytest.approx(tuple(drawn.confidence_interval), abs=0.1 * found.se)
    assert found.correlation == pytest.approx(np.corrcoef(model, base)[0, 1])
    assert found.detectable == pytest.approx(2.8 * found.se, rel=0.01)


def test_few_items_get_the_width_of_students_t() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    wider: list[float] = []
    for seed in range(40):
        base, model = rng.normal(size=(2, 8))
        found = paired(Items([base, model], draws=4000, seed=seed))
        interval = stats.ttest_rel(model, base).confidence_interval()
        wider.append((found.high - found.low) / (interval.high - interval.low))
    assert np.mean(wider) == pytest.approx(1, abs=0.05)


def test_students_quantile() -> None:
    stats = pytest.importorskip("scipy.stats")
    for df, off in ((1, 0.4), (2, 0.05), (4, 0.01), (8, 0.001), (30, 0.001), (10_000, 0.001)):
        exact = stats.t.ppf(0.975, df)
        assert exact * 0.9995 <= student(df) <= exact * (1 + off)


def test_a_ratio_pair_by_hand() -> None:
    # base: 6 nats in 4 tokens, model: 3 in 6; r = 1.5 and 0.5
    items = Items([[2, 4], [1, 2]], [[2, 2], [2, 4]], higher_is_better=False)
    found = paired(items)
    assert items.values.tolist() == [1.5, 0.5]
    assert found.value == -1
    # (total - r count) / mean count: base (2 - 3, 4 - 3) / 2 = (-.5, .5); model (1 - 1, 2 - 2) / 3 = (0, 0)
    # so e = (.5, -.5), variance .5, se = sqrt(.5 / 2) = .5
    assert found.se == pytest.approx(0.5)
    assert (found.wins, found.losses, found.test) == (1 + 1, 0, "bootstrap")
    # 2 picks of 2 items: (1, 1) -1/2 - 1 = -.5; (2, 2) .5 - 2 = -1.5; mixed -1; so widened from -1 -+ .5
    wide = 0.5 * student(1) / 1.96 * math.sqrt(2)
    assert (found.low, found.high) == pytest.approx((-1 - wide, -1 + wide))


def test_a_ratios_error_is_that_of_its_bootstrap() -> None:
    rng = np.random.default_rng(4)
    counts = rng.integers(5, 80, (2, 500)).astype(float)
    items = Items(counts * rng.gamma(2, 0.3, (2, 500)), counts)
    drawn = items.drawn[:, 1] - items.drawn[:, 0]
    assert paired(items).se == pytest.approx(drawn.std(), rel=0.03)
    assert drawn.mean() == pytest.approx(paired(items).value, abs=0.1 * drawn.std())


def test_the_bootstrap_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    few_kinds = np.array([[0, 1, 0, 1, 1, 0, 0, 1] * 8, [0, 0, 1, 1, 1, 0, 1, 1] * 8], dtype=float)  # multinomial
    for totals in (few_kinds, rng.normal(size=(2, 40))):  # and picks
        n = totals.shape[1]
        means = np.array([totals[:, rng.integers(n, size=n)].mean(axis=1) for _ in range(20_000)])
        plain: np.ndarray = means[:, 0] - means[:, 1]
        values = Items(totals, draws=20_000).drawn
        drawn = values[:, 0] - values[:, 1]
        error = float(plain.std()) / math.sqrt(20_000)
        assert drawn.mean() == pytest.approx(plain.mean(), abs=5 * error)
        assert drawn.std() == pytest.approx(plain.std(), rel=0.03)
        # both models get the same picks, in either order
        assert np.corrcoef(values.T) == pytest.approx(np.corrcoef(totals), abs=0.03)
        assert (Items(totals[::-1], draws=20_000).drawn[:, ::-1] == values).all()


def test_clusters_by_hand_and_as_statsmodels() -> None:
    # d = (1, 1, 0, -1, 0, 0), mean 1/6; clusters a: 1 + 1 - 2/6 = 10/6, b: 0 - 1 - 2/6 = -8/6, two alone: -1/6 each
    base, model = [0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 1]
    clusters = ["a", "a", "b", "b", None, None]
    found = paired(Items([base, model], None, clusters))
    assert found.clusters == 4
    assert found.test == "bootstrap"  # exact McNemar takes items for independent
    assert found.se == pytest.approx(math.sqrt(4 / 3 * (100 + 64 + 1 + 1) / 36) / 6)
    api = pytest.importorskip("statsmodels.api")
    fit = api.OLS(np.subtract(model, base), np.ones(6)).fit(
        cov_type="cluster", cov_kwds={"groups": np.array([0, 0, 1, 1, 2, 3])}
    )
    assert found.se == pytest.approx(fit.bse[0])


def test_clusters_of_one_are_no_clusters() -> None:
    rows = [[0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 1]]
    assert paired(Items(rows, None, list("abcdef"))) == paired(Items(rows, None, [None] * 6)) == paired(Items(rows))


def test_items_that_repeat_each_other_widen_the_interval() -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(2, 50)).repeat(4, axis=1)
    alone, together = Items(rows), Items(rows, None, [str(i // 4) for i in range(200)])
    assert paired(together).se == pytest.approx(2 * paired(alone).se, rel=0.02)
    assert paired(together).high - paired(together).low > 1.8 * (paired(alone).high - paired(alone).low)


@pytest.mark.parametrize("kind", ["binary", "continuous", "ratio", "clustered"])
def test_two_copies_differ_by_nothing(kind: str) -> None:
    rng = np.random.default_rng(7)
    row = rng.random(60) if kind != "binary" else rng.integers(0, 2, 60)
    counts = np.tile(rng.integers(1, 9, 60), (3, 1)) if kind == "ratio" else None
    clusters = [str(i // 3) for i in range(60)] if kind == "clustered" else None
    found = paired(Items([row, rng.random(60) if kind != "binary" else 1 - row, row], counts, clusters), 2, 0)
    assert (found.value, found.se, found.low, found.high, found.p) == (0, 0, 0, 0, 1)
    assert (found.wins, found.losses, found.ties) == (0, 0, 60)
    assert found.correlation == pytest.approx(1)


def test_one_item_or_one_cluster_tells_nothing() -> None:
    assert Items([[1], [0]]).paired(1, 0) is None
    assert Items([[1, 0, 1], [0, 0, 1]], None, ["a"] * 3).paired(1, 0) is None
    assert Items([[0.4]]).score(0) == statistics.Estimate(0.4, None, None, None)


def test_a_constant_model_correlates_with_nothing() -> None:
    found = paired(Items([[0.1] * 7, [0.1, 0.3, 0.2, 0.1, 0.1, 0.7, 0.1]]))
    assert found.correlation is None


def test_items_without_counts_are_ties_and_do_not_stop_the_bootstrap() -> None:
    # a draw that holds only the first two items has no tokens at all
    found = paired(Items([[0, 0, 3], [0, 0, 6]], [[0, 0, 3], [0, 0, 3]]))
    assert (found.value, found.wins, found.losses, found.ties) == (1, 1, 0, 2)
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)


def test_few_items_never_have_a_small_p() -> None:
    # +0.1 three times: the bootstrap alone would be certain; three coins fall alike once in 4
    found = paired(Items([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]]))
    assert found.p == pytest.approx(0.25)


def test_fewer_items_or_clusters_than_six_never_exclude_zero() -> None:
    rng = np.random.default_rng(12)
    for n in range(2, 8):
        base = rng.random(n)
        found = paired(Items([base, base + 0.1 + 0.001 * rng.random(n)]))
        passages = [str(i // 5) for i in range(5 * n)]
        clustered = paired(Items([[0] * 5 * n, [1] * (5 * n - 1) + [0]], None, passages))
        for each in (found, clustered):
            assert (each.low <= 0 <= each.high) == (n < FEWEST) == (each.p > 0.05)
            assert each.high >= each.value
            assert (each.detectable is None) == (n < FEWEST)
        assert paired(Items([1 - base, 1 - base - 0.1])).high == 0 or n >= FEWEST


def test_items_that_do_not_tell_how_differences_vary_have_no_detectable_effect() -> None:
    row = np.random.default_rng(13).random(40)
    assert paired(Items([row, row])).detectable is None
    assert paired(Items([row, row + 0.1])).detectable is None  # its error is that of the rounding
    assert paired(Items([[1, 0] * 20, [1, 0] * 20])).detectable == FEWEST / 40


def test_wins_of_what_has_no_better_side_are_the_items_with_more() -> None:
    found = paired(Items([[1, 2, 3], [4, 1, 9]], higher_is_better=None))
    assert (found.wins, found.losses) == (2, 1)


# ---- single models --------------------------------------------------------------------------------------------------


def test_scores_of_one_model() -> None:
    binary = Items([[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]]).score(0)
    assert (binary.low, binary.high) == pytest.approx((0.49, 0.943), abs=1e-3)  # Wilson, 8 of 10
    assert binary.se == pytest.approx(math.sqrt(0.8 * 0.2 / 9))
    mean = Items([[0.2, 0.4, 0.9, 0.5] * 10]).score(0)
    # variance (.3^2 + .1^2 + .4^2 + 0) * 10 / 39
    assert mean.se == pytest.approx(math.sqrt(0.26 * 10 / 39 / 40))
    assert mean.low == pytest.approx(0.5 - student(39) * math.sqrt(0.26 * 10 / 39 / 40))
    ratio = Items([[2.0, 4.0, 9.0, 5.0] * 10], [[4.0, 4.0, 9.0, 8.0] * 10]).score(0)
    assert ratio.value == pytest.approx(20 / 25)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.se is not None
    assert ratio.high - ratio.low == pytest.approx(2 * student(39) * ratio.se, rel=0.1)


def test_wilsons_interval_is_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    found = Items([[1] * 37 + [0] * 63]).score(0)
    assert (found.low, found.high) == pytest.approx(proportion.proportion_confint(37, 100, method="wilson"), abs=1e-4)


# ---- Holm -----------------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # sorted: .01 * 4, .015 * 3 = .045, .04 * 2 = .08, .5 * 1
    assert holm([0.5, 0.01, 0.04, 0.015]) == pytest.approx([0.5, 0.04, 0.08, 0.045])
    assert holm([]) == []
    assert holm([0.7]) == [0.7]
    assert holm([0.6, 0.9]) == [1, 1]


def test_holm_is_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(8).random(12) ** 3
    assert holm(list(p)) == pytest.approx(multitest.multipletests(p, method="holm")[1])


# ---- gap recovered --------------------------------------------------------------------------------------------------


def test_the_gap_recovered_by_hand() -> None:
    # 100 items: baseline has the first 40, the student 55, the teacher 70; (55 - 40) / (70 - 40)
    rows = [[1] * right + [0] * (100 - right) for right in (40, 55, 70)]
    found = Items(rows).gap(1, 0, 2)
    assert found.value == pytest.approx(0.5)
    # Of the 30 items that the teacher won the student won 15: about 0.5 -+ 1.96 sqrt(0.25 / 30)
    assert (found.low, found.high) == pytest.approx((0.5 - 0.18, 0.5 + 0.18), abs=0.03)
    lower = Items(1 - np.array(rows), higher_is_better=False).gap(1, 0, 2)
    assert lower.value == pytest.approx(0.5)
    assert (lower.low, lower.high) == pytest.approx((found.low, found.high), abs=0.02)


def test_copies_of_baseline_and_teacher_recover_nothing_and_all() -> None:
    rng = np.random.default_rng(9)
    base, teacher, counts = rng.random(50), rng.random(50) + 0.5, rng.integers(1, 9, 50)
    items = Items([base * counts, base * counts, teacher * counts, teacher * counts], [counts] * 4)
    assert (items.gap(1, 0, 2).value, items.gap(1, 0, 2).low, items.gap(1, 0, 2).high) == (0, 0, 0)
    assert (items.gap(3, 0, 2).value, items.gap(3, 0, 2).low, items.gap(3, 0, 2).high) == (1, 1, 1)


@pytest.mark.parametrize(("teacher", "why"), [(30, "not better"), (40, "not better"), (42, "chance")])
def test_the_gap_is_not_defined_without_a_clear_lead(teacher: int, why: str) -> None:
    rows = [[1] * right + [0] * (100 - right) for right in (40, 45, teacher)]
    found = Items(rows).gap(1, 0, 2)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert why in (found.why or "")


def test_the_gap_is_not_defined_for_too_few_items() -> None:
    rows = np.array([[0.1] * 5, [0.2, 0.3, 0.2, 0.3, 0.2], [0.8, 0.9, 0.7, 0.8, 0.9]])
    assert Items(rows).gap(1, 0, 2) == statistics.Recovered(None, why="too few items")
    assert Items(rows.repeat(2, axis=1)).gap(1, 0, 2).value is not None


def test_the_better_teacher_is_the_one_with_less_where_less_is_better() -> None:
    rows = np.array([[1.0, 1.2, 0.9] * 20, [0.8, 1.0, 0.8] * 20, [0.5, 0.6, 0.4] * 20])
    assert Items(rows, higher_is_better=False).gap(1, 0, 2).value == pytest.approx((2.6 - 3.1) / (1.5 - 3.1))
    assert "not better" in (Items(rows).gap(1, 0, 2).why or "")


# ---- how often intervals hold the truth -----------------------------------------------------------------------------


def coverage(make: Make, truth: float, interval: Callable[[Items], Any] = paired) -> float:
    """Share of 2,000 samples whose interval holds the truth."""
    rng = np.random.default_rng(2026)
    found = [interval(make(rng, seed)) for seed in range(2000)]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize(("differing", "true"), [(0.1, 0.0), (0.1, 0.05), (0.2, 0.1), (0.4, 0.0), (0.4, 0.3)])
def test_binary_intervals_cover_95_in_100(n: int, differing: float, true: float) -> None:
    both = 0.6 * (1 - differing)  # so the models' scores correlate
    chances = [(differing + true) / 2, (differing - true) / 2, both, 1 - differing - both]

    def make(rng: np.random.Generator, seed: int) -> Items:
        kinds = rng.choice(4, size=n, p=chances)
        return Items([(kinds == 1) | (kinds == 2), (kinds == 0) | (kinds == 2)], seed=seed)

    assert coverage(make, true) == pytest.approx(0.95, abs=0.015)


def test_where_few_items_differ_the_binary_interval_is_careful_and_walds_would_not_be() -> None:
    rng, n, true = np.random.default_rng(10), 100, 0.03
    counts = rng.multinomial(n, [0.04, 0.01, 0.95], size=2000)
    ours = [low <= true <= high for low, high in (agresti_min(w, f, n) for w, f, _ in counts)]
    half = [1.96 * math.sqrt((w + f - (w - f) ** 2 / n) / (n - 1) / n) for w, f, _ in counts]
    walds = [abs((w - f) / n - true) <= h for (w, f, _), h in zip(counts, half, strict=True)]
    assert 0.935 <= np.mean(ours) <= 0.975
    assert np.mean(walds) < 0.92


@pytest.mark.parametrize("n", [30, 100])
def test_continuous_intervals_cover_95_in_100(n: int) -> None:
    def make(rng: np.random.Generator, seed: int) -> Items:
        base = rng.beta(0.7, 0.7, n)  # many near 0 and 1, as ROUGE-L has
        return Items([base, 0.8 * base + 0.2 * rng.beta(2, 1, n)], draws=600, seed=seed)

    assert coverage(make, -0.2 * 0.5 + 0.2 * 2 / 3) == pytest.approx(0.95, abs=0.015)


def test_ratio_intervals_cover_95_in_100() -> None:
    def make(rng: np.random.Generator, seed: int) -> Items:
        tokens, hard = rng.integers(5, 80, 100), rng.lognormal(0, 0.4, 100)  # E hard = exp(0.08)
        nats = tokens * hard * np.array([0.5, 0.4])[:, None] * rng.gamma(8, 1 / 8, (2, 100))
        return Items(nats, [tokens, tokens], draws=600, seed=seed)

    assert coverage(make, -0.1 * math.exp(0.08)) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("binary", [True, False])
def test_clustered_intervals_cover_95_in_100(binary: bool) -> None:
    def make(rng: np.random.Generator, seed: int) -> Items:
        passage = np.repeat(np.arange(30), rng.integers(1, 7, 30))
        shared = rng.normal(0, 0.7, (2, 30))[:, passage] + rng.normal(0, 0.5, 30)[passage]
        scores = shared + rng.normal(0, 1, (2, len(passage)))
        return Items(scores > 0 if binary else scores, None, [str(p) for p in passage], draws=1000, seed=seed)

    assert coverage(make, 0) == pytest.approx(0.95, abs=0.015)


def test_gap_intervals_cover_95_in_100() -> None:
    def make(rng: np.random.Generator, seed: int) -> Items:
        hard = rng.random(200)  # right where the strength is above, with some luck: 0.4, 0.52, 0.7 in the mean
        luck = rng.uniform(-0.1, 0.1, (3, 200))
        return Items(hard + luck < np.array([0.4, 0.52, 0.7])[:, None], draws=1000, seed=seed)

    assert coverage(make, 0.12 / 0.3, lambda items: items.gap(1, 0, 2)) == pytest.approx(0.95, abs=0.015)


# ---- time and memory ------------------------------------------------------------------------------------------------


def test_ten_thousand_draws_of_a_thousand_items_take_less_than_a_second_and_200_mb() -> None:
    rows = np.random.default_rng(11).random((2, 1000))
    start = time.process_time()
    paired(Items(rows))
    assert time.process_time() - start < 1
    tracemalloc.start()
    paired(Items(rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
