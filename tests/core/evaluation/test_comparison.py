"""Models on the same items: what is compared, what is left out, and what is said about it."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import ArrayLike

from core.evaluation.comparison import _rounded, compare, headline  # pyright: ignore[reportPrivateUsage]
from core.evaluation.results import (
    Answered,
    Metric,
    ModelInfo,
    Question,
    Report,
    Role,
    Scored,
    TaskMetric,
    Training,
)

ACC = Metric("acc", primary=True)


def model(
    name: str, role: Role = "student", identity: str = "", training: Training | None = None, tokenizer: str = "t"
) -> ModelInfo:
    identity = identity or name
    return ModelInfo(
        name=name, role=role, path=name, backend="hf", identity=identity, training=training, tokenizer=tokenizer
    )


BASE, STUDENT, TEACHER = model("base", "baseline"), model("student"), model("teacher", "teacher")
THREE = [BASE, STUDENT, TEACHER]


def questions(n: int, clusters: Sequence[str | None] | None = None) -> list[Question]:
    return [Question(str(i), f"hash {i}", "?", "!", clusters[i] if clusters else None) for i in range(n)]


def answered(
    who: str,
    totals: ArrayLike,
    task: str = "sums",
    metric: Metric = ACC,
    counts: ArrayLike | None = None,
    clusters: Sequence[str | None] | None = None,
) -> Answered:
    values = np.asarray(totals, dtype=float).tolist()
    n = len(values)
    scored = Scored(metric, values, None if counts is None else np.asarray(counts, dtype=float).tolist())
    return Answered(who, task, questions(n, clusters), [scored], ["said"] * n)


def right(first: int, n: int = 100) -> list[float]:
    """1 for the first items, 0 for the others."""
    return [1.0] * first + [0.0] * (n - first)


def compared(models: Sequence[ModelInfo], *done: Answered, draws: int = 1000) -> list[TaskMetric]:
    return compare(models, done, draws, 0)


def report(models: Sequence[ModelInfo], *done: Answered) -> Report:
    return Report(
        name="r",
        created="2026-01-01T00:00:00Z",
        distill="0",
        headline=[],
        settings={},
        models=list(models),
        tasks=[],
        metrics=compared(models, *done),
    )


def said(models: Sequence[ModelInfo], *done: Answered) -> list[str]:
    return headline(report(models, *done))


# ---- figures --------------------------------------------------------------------------------------------------------


def test_three_models_on_one_task() -> None:
    (found,) = compared(
        THREE, answered("base", right(40)), answered("student", right(55)), answered("teacher", right(70))
    )
    assert [(score.model, score.value) for score in found.scores] == [
        ("base", 0.4),
        ("student", 0.55),
        ("teacher", 0.7),
    ]
    student, teacher = found.differences
    assert (student.model, student.against, student.wins, student.losses, student.ties) == (
        "student",
        "base",
        15,
        0,
        85,
    )
    assert student.value == pytest.approx(0.15)
    assert student.p == pytest.approx(2 / 2**15)
    assert student.found
    assert student.p_holm == student.p  # a single task
    assert teacher.value == pytest.approx(0.3)
    (gap,) = found.gaps
    assert gap.model == "student"
    assert gap.value == pytest.approx(0.5)
    assert (found.items, found.primary, found.unit, found.notes) == (100, True, "share", [])
    assert TaskMetric.model_validate_json(found.model_dump_json()) == found


def test_the_order_of_items_and_of_models_in_the_input_does_not_matter() -> None:
    first = answered("base", [0, 1, 0.5, 1]), answered("student", [1, 1, 0.2, 0])
    turned = Answered(
        "student", "sums", first[1].questions[::-1], [Scored(ACC, first[1].scored[0].totals[::-1])], ["said"] * 4
    )
    assert compared(THREE, *first) == compared(THREE, turned, first[0])


def test_two_copies_differ_by_nothing_in_every_kind_of_metric() -> None:
    rng = np.random.default_rng(0)
    copies = [BASE, model("copy", identity="base")]
    for totals, counts in ((right(30), None), (rng.random(100), None), (rng.random(100), rng.integers(1, 9, 100))):
        pair = [answered(name, totals, counts=counts) for name in ("base", "copy")]
        difference = compared(copies, *pair)[0].differences[0]
        assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)
        assert not difference.found
        assert said(copies, *pair) == [
            "copy and base are the same model.",
            "copy and base have the same score on every item of 1 task.",
        ]


def test_models_that_were_asked_different_items_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"base were not asked the same items .*: 99"):
        compared(THREE, answered("base", right(40)), answered("student", right(40, 99)))
    other = answered("student", right(40))
    other.questions[7] = Question("7", "another hash", "?", "!")
    with pytest.raises(ValueError, match=r"sums: student and base .* differs: 7"):
        compared(THREE, answered("base", right(40)), other)


def test_broken_answers_are_named() -> None:
    double = answered("base", right(1, 3))
    double.questions[2] = double.questions[1]
    with pytest.raises(ValueError, match="sums, base: two items have the key 1"):
        compared(THREE, double)
    short = answered("base", right(1, 3))
    short.scored[0].totals.pop()
    with pytest.raises(ValueError, match=r"sums, base: acc has \[2\] scores for 3 items"):
        compared(THREE, short)


def test_an_item_that_one_model_could_not_be_measured_on_is_left_out_for_all() -> None:
    base, student = right(40), right(55)
    base[0] = student[1] = student[2] = math.nan
    (found,) = compared(THREE, answered("base", base), answered("student", student), answered("teacher", right(70)))
    assert found.items == 97
    assert [score.value for score in found.scores] == [37 / 97, 52 / 97, 67 / 97]
    assert "3 of 100 items are left out for all models" in found.notes[0]
    assert "base 1, student 2" in found.notes[0]


def test_a_model_without_any_figure_does_not_take_the_others_with_it() -> None:
    nothing = answered("teacher", [math.nan] * 100)
    (found,) = compared(THREE, answered("base", right(40)), answered("student", right(55)), nothing)
    assert found.items == 100
    assert [score.model for score in found.scores] == ["base", "student"]
    assert found.gaps == []
    assert found.notes == ["teacher could not be measured on any item"]


def test_no_common_item_leaves_a_metric_without_figures_and_a_word() -> None:
    (found,) = compared(THREE, answered("base", [1, math.nan]), answered("student", [math.nan, 1]))
    assert (found.items, found.scores, found.differences) == (0, [], [])
    assert found.notes[-1] == "no item is left that all models were measured on"
    (found,) = compared(THREE, answered("base", [math.nan]), answered("student", [math.inf]))
    assert len(found.notes) == 2


def test_a_metric_that_one_model_lacks_is_compared_between_the_others() -> None:
    (found,) = compared(THREE, answered("base", right(40)), answered("student", right(55)))
    assert [score.model for score in found.scores] == ["base", "student"]
    assert found.gaps == []
    (found,) = compared(THREE, answered("student", right(55)), answered("teacher", right(55)))
    assert found.differences == []
    assert found.notes == ["base has no figure here, so nothing is compared"]


def test_without_a_baseline_the_first_model_is_it() -> None:
    models = [model("one", "checkpoint"), model("two", "checkpoint")]
    (found,) = compared(models, answered("one", right(40)), answered("two", right(55)))
    assert (found.differences[0].model, found.differences[0].against) == ("two", "one")


def test_a_single_item_has_no_difference() -> None:
    (found,) = compared(THREE, answered("base", [0]), answered("student", [1]))
    assert found.differences == []
    assert found.notes == ["a single item or cluster: no difference has an interval"]
    headline = said(THREE, answered("base", [0]), answered("student", [1]))
    assert headline == ["A single item tells nothing of a difference: give more."]


def test_items_that_share_a_passage_are_counted_as_one() -> None:
    passages = [f"passage {i // 5}" for i in range(100)]
    alone = compared(THREE, answered("base", right(40)), answered("student", right(55)))[0].differences[0]
    (found,) = compared(
        THREE, answered("base", right(40), clusters=passages), answered("student", right(55), clusters=passages)
    )
    together = found.differences[0]
    assert (alone.clusters, together.clusters) == (None, 20)
    assert (together.test, together.value) == ("bootstrap", alone.value)
    assert together.high - together.low > alone.high - alone.low
    assert (together.detectable or 0) > (alone.detectable or 0) > 0


def test_shares_stay_shares_and_other_units_do_not() -> None:
    almost, passages = [0.99] * 9 + [1.0], [f"{i // 5}" for i in range(10)]  # two clusters: endless intervals
    for metric, bounded in ((ACC, True), (Metric("kl", unit="nats", primary=True), False)):
        (found,) = compared(
            THREE,
            answered("base", [0.1] * 9 + [0.9], metric=metric, clusters=passages),
            answered("student", almost, metric=metric, clusters=passages),
        )
        score, difference = found.scores[1], found.differences[0]
        assert score.high is not None
        assert (score.high <= 1) == (difference.high <= 1) == bounded


def test_values_that_are_no_means_have_no_interval() -> None:
    tasks = [
        Answered(name, "wiki", questions(3), [], [""] * 3, {"word_perplexity,none": value, "bleu": 9.0})
        for name, value in (("base", 31.0), ("student", 27.5))
    ]
    perplexity, bleu = compared(THREE, *tasks)
    assert [(score.value, score.low, score.se) for score in perplexity.scores] == [(31, None, None), (27.5, None, None)]
    assert (perplexity.primary, perplexity.higher_is_better, perplexity.items) == (True, False, 3)
    assert (bleu.primary, bleu.higher_is_better) == (False, True)
    assert said([BASE, STUDENT], *tasks) == [
        "student and base have no task in common that could be compared item by item."
    ]


def test_holm_counts_primary_metrics_of_each_model_by_itself() -> None:
    # p of 7, 9 and 20 wins: 2/128, 2/512, 2/2^20, times 1, 2, 3; the other metric and the other model count for nothing
    tasks: list[Answered] = []
    for name, gains in (("base", (0, 0, 0)), ("student", (7, 9, 20)), ("teacher", (30, 30, 30))):
        for task, gain in zip("abc", gains, strict=True):
            tasks.append(answered(name, right(40 + gain), task))
            tasks[-1].scored.append(Scored(Metric("acc_norm"), right(40 + gain)))
    found = compared(THREE, *tasks)
    students = [metric.differences[0] for metric in found if metric.primary]
    assert [d.p_holm for d in students] == pytest.approx([2 / 128, 2 * 2 / 512, 3 * 2 / 2**20])
    assert all(d.p_holm is None for metric in found if not metric.primary for d in metric.differences)


def test_the_seed_decides_the_draws() -> None:
    rng = np.random.default_rng(1)
    done = [answered(name, rng.random(50)) for name in ("base", "student")]
    first, again, other = (compare(THREE, done, 1000, seed)[0].differences[0] for seed in (0, 0, 1))
    assert first == again
    assert first.low != other.low
    assert first.low == pytest.approx(other.low, abs=0.02)


def test_five_models_on_ten_tasks_of_a_thousand_items_take_less_than_four_seconds() -> None:
    rng = np.random.default_rng(2)
    five = [BASE, STUDENT, model("a", "checkpoint"), model("b", "checkpoint"), TEACHER]
    done = [
        answered(one.name, rng.random(1000) + 0.1 * rank, f"task {task}", counts=rng.integers(1, 90, 1000))
        for task in range(10)
        for rank, one in enumerate(five)
    ]
    start = time.process_time()
    compared(five, *done, draws=10_000)
    assert time.process_time() - start < 4


# ---- closeness ------------------------------------------------------------------------------------------------------

KL = Metric("kl", higher_is_better=False, unit="nats", primary=True)
PER_BYTE = Metric("bits_per_byte", higher_is_better=False, unit="bits")
ENTROPY = Metric("entropy", higher_is_better=None, unit="nats")
TOP1, DISTINCT = Metric("top1_agreement"), Metric("own_distinct_1")


def close(who: str, level: float, n: int = 100) -> Answered:
    """A model whose distance from the teacher is about `level`; 0 is the teacher itself."""
    rng = np.random.default_rng(5)
    scored = [
        Scored(KL, list(level * rng.random(n))),
        Scored(TOP1, list(1 - level * rng.random(n))),
        Scored(PER_BYTE, list(1 + level * rng.random(n))),
        Scored(ENTROPY, list(2 + level * rng.random(n))),
        Scored(DISTINCT, list(1 - level * rng.random(n))),
    ]
    return Answered(who, "closeness", questions(n), scored, ["said"] * n)


def near(models: Sequence[ModelInfo]) -> dict[str, TaskMetric]:
    done = [close(one.name, level) for one, level in zip(models, (0.9, 0.5, 0.0), strict=True)]
    return {metric.metric: metric for metric in compared(models, *done)}


def test_a_distance_from_the_teacher_has_no_gap_since_that_of_the_teacher_is_nought() -> None:
    found = near(THREE)
    assert [name for name, metric in found.items() if metric.gaps] == ["bits_per_byte"]
    assert found["kl"].differences[0].found
    assert not [
        line
        for line in said(THREE, *(close(m.name, x) for m, x in zip(THREE, (0.9, 0.5, 0), strict=True)))
        if "gap" in line or "lead" in line
    ]


def test_figures_per_token_of_other_tokenizers_are_not_compared() -> None:
    other = model("student", tokenizer="another")
    found = near([BASE, other, TEACHER])
    for name in ("kl", "top1_agreement", "entropy"):
        assert [each.model for each in found[name].differences] == ["teacher"]
        assert found[name].notes == [f"{name} is per token, and student has another tokenizer than base: not compared"]
        assert [score.model for score in found[name].scores] == ["base", "student", "teacher"]
    for name in ("bits_per_byte", "own_distinct_1"):
        assert [each.model for each in found[name].differences] == ["student", "teacher"]
        assert found[name].notes == []
    assert [name for name, metric in found.items() if metric.primary] == ["bits_per_byte"]
    assert found["bits_per_byte"].differences[0].p_holm is not None
    assert found["kl"].differences[0].p_holm is None
    assert [name for name, metric in near(THREE).items() if metric.primary] == ["kl"]
    assert found["bits_per_byte"].gaps[0].value is not None
    models = [BASE, other, TEACHER]
    text = " ".join(said(models, *(close(one.name, x) for one, x in zip(models, (0.9, 0.5, 0.0), strict=True))))
    assert "student is better than base on closeness (bits_per_byte)" in text
    assert "lead" not in text


def test_nats_of_other_tasks_are_per_token_too() -> None:
    models = [BASE, model("student", tokenizer="another")]
    for metric, there in ((replace(KL, name="loss"), False), (ACC, True)):
        rows = [answered(name, np.random.default_rng(0).random(50), metric=metric) for name in ("base", "student")]
        (found,) = compared(models, *rows)
        assert bool(found.differences) == there


def test_one_figure_of_a_task_is_its_main_one_even_where_models_say_otherwise() -> None:
    first, second = close("base", 0.9), close("student", 0.5)
    second.scored[2] = Scored(replace(PER_BYTE, primary=True), second.scored[2].totals)
    del second.scored[0]
    assert [m.metric for m in compared([BASE, STUDENT], first, second) if m.primary] == ["kl"]


def test_what_has_no_better_side_has_neither_gap_nor_word() -> None:
    tall = Metric("length", higher_is_better=None, unit="tokens", primary=True)
    rng = np.random.default_rng(6)
    rows = [answered(one.name, rng.random(100) + i, metric=tall) for i, one in enumerate(THREE)]
    (found,) = compared(THREE, *rows)
    assert (found.higher_is_better, found.gaps) == (None, [])
    assert found.differences[0].wins > 90  # those with more
    assert said(THREE, *rows) == ["student and base have no task in common that could be compared item by item."]


# ---- words ----------------------------------------------------------------------------------------------------------


def test_the_headline_of_a_clear_case() -> None:
    trained = model("student", training=Training(folder="runs/x", seconds=754, tokens=48_000, usd=0.1234))
    rights = {"base": (40, 40, 60), "student": (70, 41, 45), "teacher": (80, 39, 60)}
    tasks = [
        answered(name, right(number), task)
        for name, numbers in rights.items()
        for task, number in zip(("sums", "words", "old"), numbers, strict=True)
    ]
    found = said([BASE, trained, TEACHER], *tasks)
    assert found[:2] == [
        "student is better than base on 1 of 3 tasks and worse on 1 (95 % intervals and tests, corrected for 3 tasks); "
        "on the other 1 it may be chance.",
        # (30 -+ 1.96 sqrt(31 - 900 / 102)) / 102
        "The largest difference is on sums: +30.0 points [+20.4, +38.5].",
    ]
    assert found[2].startswith("student recovered 75 % [")
    assert found[2].endswith("of the teacher's lead on sums.")
    assert found[3] == "Training student took 12.6 min, 48,000 tokens of answers, $0.12 for teacher data."


@pytest.mark.parametrize(
    ("n", "first"),
    [
        (5, "With so few independent items (5) nothing could have been found."),
        # 4 of 20 differ: 2.8 sqrt(0.2 / 20) = 0.28, less than 6 of 20
        (20, "With so few independent items (20) a true difference below 30 points could hardly have been found."),
        # 4 of 50: 6 / 50 is more than 2.8 sqrt(0.08 / 50) = 0.112
        (50, "With so few independent items (50) a true difference below 12 points could hardly have been found."),
    ],
)
def test_the_first_sentence_says_when_nothing_could_have_been_found(n: int, first: str) -> None:
    found = said([BASE, STUDENT], answered("base", right(0, n)), answered("student", right(4, n)))
    assert found[0] == first
    assert found[1] == "student cannot be told apart from base on sums (95 % interval and test)."
    assert found[2].endswith("which may be chance.")


def test_enough_items_in_one_task_are_enough() -> None:
    small = [answered(name, right(r, 20), "small") for name, r in (("base", 4), ("student", 6))]
    large = [answered(name, right(r, 1000), "large") for name, r in (("base", 400), ("student", 405))]
    found = said([BASE, STUDENT], *small, *large)
    assert found[0].startswith("On none of 2 tasks is student better or worse than base beyond chance")
    assert "independent items (20)" in said([BASE, STUDENT], *small)[0]


def test_closeness_does_not_hide_that_the_tasks_could_show_nothing() -> None:
    tasks = [answered("base", right(0, 5)), answered("student", right(4, 5)), close("base", 0.9), close("student", 0.5)]
    assert said([BASE, STUDENT], *tasks)[0] == "With so few independent items (5) nothing could have been found."


def test_items_and_points_of_the_first_sentence_are_of_one_task() -> None:
    # 6 of 20 are 30 points; in the other task half of 60 differ: 2.8 sqrt(30) / 60 = 26 points
    small = [answered(name, right(r, 20), "small") for name, r in (("base", 4), ("student", 4))]
    split = [[1.0, 0.0] * 30, [1.0] * 30 + [0.0] * 30]
    large = [answered(name, row, "large") for name, row in zip(("base", "student"), split, strict=True)]
    assert said([BASE, STUDENT], *small, *large)[0] == (
        "With so few independent items (60 in large, the task that shows most) a true difference below 26 points could "
        "hardly have been found."
    )


def test_copies_on_a_task_do_not_make_it_a_fine_one() -> None:
    rouge, rng = np.random.default_rng(7).random(20), np.random.default_rng(8)
    models = [BASE, STUDENT]
    same = [answered(name, rouge, "same") for name in ("base", "student")]
    assert said(models, *same)[0] == "With so few independent items (20) only a large difference could have been found."
    other = [answered(name, rng.random(25), "other") for name in ("base", "student")]
    assert said(models, *same, *other)[0].startswith("With so few independent items (25 in other, the task that")
    fine = [answered(name, rouge + 1e-4 * rng.random(20), "fine") for name in ("base", "student")]
    assert "a true difference below 0.003 points" in said(models, *fine)[0]


def test_nothing_is_shown_as_minus_nought() -> None:
    rows = [
        answered("base", right(600, 1000)),
        answered("student", right(599, 1000)),
        answered("teacher", right(900, 1000)),
    ]
    (line,) = [line for line in said(THREE, *rows) if "recovered" in line]
    assert line.startswith("student recovered 0 % [")
    assert "-0 " not in line
    assert "-0]" not in line
    assert _rounded(-0.04, 1, "+") == "0.0"


def test_what_was_found_in_many_items_needs_no_such_sentence() -> None:
    # 20 of 100 differ: 2.8 sqrt(0.2 / 100) = 12.5 points, but a difference of 20 was found
    found = said([BASE, STUDENT], answered("base", right(40)), answered("student", right(60)))
    assert found[0] == "student is better than base on sums (95 % interval and test)."
    (first, second, _) = said([BASE, STUDENT], answered("base", right(4, 25)), answered("student", right(19, 25)))
    assert first.startswith("With so few independent items (25)")
    assert second.startswith("student is better than base")


def test_few_passages_are_few_items() -> None:
    rng = np.random.default_rng(3)
    kl = Metric("kl", higher_is_better=False, unit="nats", primary=True)
    done = [answered(name, rng.random(200), "near", kl, clusters=[f"{i % 8}" for i in range(200)]) for name in "ab"]
    models = [model("a", "baseline"), model("b")]
    assert said(models, *done)[0] == "With so few independent items (8) only a large difference could have been found."


def test_less_is_better_in_words() -> None:
    rng, kl = np.random.default_rng(4), Metric("kl", higher_is_better=False, unit="nats", primary=True)
    tokens, base = rng.integers(5, 50, 100), rng.random(100)
    done = [
        answered(name, base * tokens * factor, "near", kl, tokens) for name, factor in (("base", 1), ("student", 0.5))
    ]
    found = said([BASE, STUDENT], *done)
    assert found[0] == "student is better than base on near (kl) (95 % interval and test)."
    assert found[1].startswith("The difference is -0.2")
    assert found[1].endswith("], where less is better.")


def test_a_difference_that_only_many_tasks_make_doubtful() -> None:
    # 8 wins: p = 2 / 256 = 0.0078, times 8 tasks is 0.06
    tasks = [
        answered(name, right(40 + 8 * (t == 0) * (name == "student")), f"t{t}")
        for name in ("base", "student")
        for t in range(8)
    ]
    found = said([BASE, STUDENT], *tasks)
    assert "beyond chance" in found[0]
    assert found[1].startswith("The largest difference is on t0: +8.0 points")
    assert found[1].endswith("which is not sure for so many tasks.")


def test_gaps_in_words() -> None:
    def gap(*teachers: int) -> str:
        tasks = [
            answered(name, right(number), f"t{t}")
            for t, teacher in enumerate(teachers)
            for name, number in (("base", 20), ("student", 40), ("teacher", teacher))
        ]
        return said(THREE, *tasks)[2]

    assert gap(10) == "The gap recovered is not defined: there is no task on which the teacher is clearly better."
    assert gap(60, 100, 10) == (
        "student recovered 38 % of the teacher's lead (median of the 2 tasks where that is clear; "
        "25 % on t1, 50 % on t0)."
    )


def test_one_model_alone_is_compared_with_nothing() -> None:
    assert said([BASE], answered("base", right(40))) == ["base is the only model, so nothing is compared."]


def test_the_last_checkpoint_stands_for_a_run_without_student() -> None:
    models = [BASE, model("step-50", "checkpoint"), model("step-100", "checkpoint"), TEACHER]
    tasks = [answered(one.name, right(40 + 10 * i)) for i, one in enumerate(models)]
    assert said(models, *tasks)[0].startswith("step-100 is better than base on sums")
