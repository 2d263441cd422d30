"""The plots of a report: what each of them shows, computed by hand, and that all kinds of reports can be drawn."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.evaluation.plots import (
    COLOURS,
    MARKS,
    ROWS_MOST,
    accuracy,
    costs,
    differences,
    draw_plots,
    gap,
    looks,
    mean,
    runs,
    wins,
)
from core.evaluation.results import Difference, Gap, ModelInfo, Report, Role, Score, TaskMetric, Training, Unit
from core.plots.rows import Picture, Row
from core.plots.style import BAND, GREY, INK
from tests.support.evaluation import example, large

COPY = {"value": 0.0, "se": 0.0, "low": 0.0, "high": 0.0, "wins": 0, "losses": 0, "ties": 100}


def model(name: str, role: Role = "student", **training: Any) -> ModelInfo:
    about = Training(**training) if training else None
    return ModelInfo(name=name, role=role, path=name, backend="hf", identity=name, training=about)


def difference(name: str = "student", **more: Any) -> Difference:
    found: dict[str, Any] = {"value": 0.1, "se": 0.02, "low": 0.06, "high": 0.14, "p": 0.01, "test": "McNemar"}
    found |= {"wins": 30, "losses": 10, "ties": 60, "correlation": 0.5, "detectable": 0.08}
    return Difference(model=name, against="base", **(found | more))


def score(name: str, value: float, half: float | None = 0.1) -> Score:
    if half is None:
        return Score(model=name, value=value)
    return Score(model=name, value=value, se=half / 1.96, low=value - half, high=value + half)


def metric(task: str = "words", name: str = "acc", *, unit: Unit = "share", primary: bool = True, **more: Any):
    found: dict[str, Any] = {
        "higher_is_better": True,
        "items": 100,
        "scores": [score("base", 0.4), score("student", 0.5)],
        "differences": [difference()],
        "gaps": [],
    }
    return TaskMetric(task=task, metric=name, unit=unit, primary=primary, **(found | more))


def report(*metrics: TaskMetric, models: list[ModelInfo] | None = None) -> Report:
    return Report(
        name="a",
        created="2026-01-01T00:00:00Z",
        distill="0",
        headline=[],
        settings={},
        models=models or [model("base", "baseline"), model("student")],
        tasks=[],
        metrics=list(metrics),
    )


def rows(picture: Picture | None) -> list[Row]:
    assert picture is not None
    return [row for panel in picture.panels for block in panel.blocks for row in block.rows]


def names(picture: Picture | None) -> list[str]:
    assert picture is not None
    return [f"{block.name} {block.about}" for panel in picture.panels for block in panel.blocks]


# ---- accuracy ----------------------------------------------------------------------------------------------------


def test_scores_are_in_per_cent_in_the_order_of_the_models():
    base, student = rows(accuracy(report(metric(scores=[score("student", 0.5), score("base", 0.4)]))))
    assert (base.value, base.low, base.high) == pytest.approx((40, 30, 50))
    assert base.look.colour == GREY
    assert student.text == "50.0 % [40.0, 60.0]"


def test_only_primary_shares_are_scores():
    others = [metric("words", "f1", primary=False), metric("closeness", "kl", unit="nats")]
    assert names(accuracy(report(metric(), *others))) == ["words acc, n = 100"]
    assert accuracy(report(*others)) is None
    assert accuracy(report()) is None


def test_a_score_without_interval_is_a_mark_and_one_that_is_no_number_is_left_out():
    found = rows(accuracy(report(metric(scores=[score("base", math.nan), score("student", 0.5, None)]))))
    assert [(row.value, row.low, row.high, row.text) for row in found] == [(50.0, None, None, "50.0 %")]


# ---- differences -------------------------------------------------------------------------------------------------


def test_a_difference_has_its_interval_and_the_band_of_what_is_detectable():
    (row,) = rows(differences(report(metric())))
    assert (row.value, row.low, row.high, row.band) == pytest.approx((10, 6, 14, 8))
    assert row.text == "+10.0 [+6.0, +14.0]"


@pytest.mark.parametrize(
    ("low", "high", "filled"), [(0.01, 0.2, True), (-0.2, -0.01, True), (-0.01, 0.2, False), (0.0, 0.2, False)]
)
def test_a_mark_is_full_where_the_interval_excludes_zero(low: float, high: float, filled: bool):
    (row,) = rows(differences(report(metric(differences=[difference(low=low, high=high)]))))
    assert row.filled == filled


def test_two_copies_differ_by_nothing():
    (row,) = rows(differences(report(metric(differences=[difference(**COPY, detectable=0.05)]))))
    assert (row.value, row.low, row.high, row.filled, row.text) == (0.0, 0.0, 0.0, False, "0.0 [0.0, 0.0]")


def test_each_unit_has_a_panel_and_each_metric_in_points_one_of_its_own():
    found = differences(
        report(
            metric(),
            metric("closeness", "kl", unit="nats", higher_is_better=False),
            metric("closeness", "bits_per_byte", unit="bits", primary=False, higher_is_better=False),
            metric("closeness", "top1_agreement", primary=False),
            metric("closeness", "reverse_kl", unit="nats", primary=False, higher_is_better=False),
            metric("words", "f1", primary=False),
            metric("corpus", "bleu", unit="points"),
            metric("corpus2", "ter", unit="points"),
        )
    )
    # of each task the primary metric, and the first of every other unit: neither reverse_kl nor f1
    assert found is not None
    assert [panel.heading for panel in found.panels] == ["Shares", "Nats", "Bits", "bleu", "ter"]
    assert names(found) == [
        "words acc, n = 100",
        "closeness top1_agreement, n = 100",
        "closeness kl ↓, n = 100",
        "closeness bits_per_byte ↓, n = 100",
        "corpus bleu, n = 100",
        "corpus2 ter, n = 100",
    ]
    assert "less is better" in found.about
    assert found.panels[1].axis == "difference, nats"


def test_a_difference_in_nats_is_not_in_per_cent():
    (row,) = rows(differences(report(metric(unit="nats", differences=[difference(value=-0.1, low=-0.2, high=0)]))))
    assert (row.value, row.low, row.high) == (-0.1, -0.2, 0.0)
    assert row.text == "−0.100 [−0.200, 0.000]"


def test_an_interval_that_is_not_known_is_not_drawn_as_one():
    (row,) = rows(differences(report(metric(differences=[difference(low=math.nan, high=math.nan)]))))
    assert (row.text, row.filled) == ("+10.0", False)


def test_the_key_has_the_band_and_only_models_that_are_drawn():
    found = differences(report(metric()))
    assert found is not None
    assert [name for _, _, name in found.key] == ["student", "smaller than detectable"]
    assert found.key[-1][0].colour == BAND
    assert "Grey" in found.about


def test_what_is_not_known_to_be_detectable_has_no_band():
    found = differences(report(metric(differences=[difference(detectable=None)])))
    assert [row.band for row in rows(found)] == [0.0]
    assert found is not None
    assert [name for _, _, name in found.key] == ["student"]
    assert "Grey" not in found.about


def test_only_what_is_better_when_less_has_an_arrow():
    for higher, name in ((True, "words acc, n = 100"), (False, "words acc ↓, n = 100"), (None, "words acc, n = 100")):
        assert names(differences(report(metric(higher_is_better=higher)))) == [name]


def test_more_tasks_than_fit_into_a_picture_are_counted():
    found = differences(report(*(metric(f"task{number}") for number in range(ROWS_MOST + 7))))
    assert len(rows(found)) == ROWS_MOST
    assert found is not None
    assert "7 more tasks are in the tables only" in found.about


# ---- gaps, wins --------------------------------------------------------------------------------------------------


def test_a_gap_is_in_per_cent_and_says_where_it_is_not_defined():
    gaps = [Gap(model="student", value=0.5, low=0.25, high=0.75), Gap(model="other", value=None, why="no better")]
    models = [model("base", "baseline"), model("student"), model("other"), model("teacher", "teacher")]
    known, unknown = rows(gap(report(metric(gaps=gaps), models=models)))
    assert (known.value, known.low, known.high, known.text) == (50, 25, 75, "50 % [25, 75]")
    assert (unknown.value, unknown.words) == (None, "not defined: no better")


def test_without_a_teacher_there_is_no_gap():
    assert gap(report(metric())) is None


def test_wins_go_to_the_right_and_losses_to_the_left():
    # 30 of 100 items won, 10 lost
    (row,) = rows(wins(report(metric())))
    assert row.bars == ((-10.0, 0.0, GREY), (0.0, 30.0, row.look.colour))
    assert row.text == "30 better, 10 worse, 60 even"


def test_closeness_and_what_has_no_better_side_are_neither_won_nor_lost():
    assert wins(report(metric("closeness", "kl", unit="nats", higher_is_better=False))) is None
    assert wins(report(metric(higher_is_better=None))) is None
    assert names(wins(report(metric("closeness", "kl", unit="nats"), metric()))) == ["words n = 100"]


def test_a_gap_is_never_minus_nought():
    known = Gap(model="student", value=-0.001, low=-0.004, high=0.5)
    (row,) = rows(gap(report(metric(gaps=[known]))))
    assert row.text == "0 % [0, 50]"


def test_copies_win_and_lose_nothing():
    assert wins(report(metric(differences=[difference(**COPY)]))) is None
    two = report(metric(differences=[difference(**COPY)]), metric("b"))
    assert [row.bars != () for row in rows(wins(two))] == [False, True]


# ---- costs -------------------------------------------------------------------------------------------------------

TRAINED = [
    model("base", "baseline"),
    model("short", "checkpoint", folder="r", seconds=600, tokens=1000, usd=0.0),
    model("long", "student", folder="r", seconds=7200, tokens=4000, usd=0.0),
]


def test_costs_are_shown_where_two_models_tell_them():
    scores = [score("base", 0.4), score("short", 0.5), score("long", 0.6)]
    found = costs(report(metric(scores=scores), metric("b", scores=scores), models=TRAINED))
    assert found is not None
    # nothing was paid in dollars
    assert [panel.axis for panel in found.panels] == ["hours of training", "tokens of answers, trained on"]
    assert [point.cost for point in found.panels[0].points] == pytest.approx([1 / 6, 2])
    assert [point.value for point in found.panels[0].points] == pytest.approx([50, 60])
    assert [value for _, value in found.lines] == [40.0]


def test_one_model_that_was_trained_is_no_comparison():
    assert costs(report(metric(), models=TRAINED[:2])) is None
    assert costs(report(metric())) is None


def test_costs_need_a_score_that_all_trained_models_have():
    assert costs(report(metric(scores=[score("short", 0.5)]), models=TRAINED)) is None


def test_the_mean_of_two_tasks_and_its_interval():
    # SE = sqrt(3^2 + 4^2) / 2 = 2.5 points
    found = mean([Score(model="a", value=0.4, se=0.03), Score(model="a", value=0.6, se=0.04)])
    assert found == pytest.approx((50.0, 50.0 - 4.9, 50.0 + 4.9))


def test_a_mean_of_scores_without_errors_has_no_interval():
    assert mean([score("a", 0.4), score("a", 0.6, None)]) == (50.0, None, None)
    assert mean([score("a", 0.4, 0.1)]) == pytest.approx((40.0, 30.0, 50.0))


# ---- curves ------------------------------------------------------------------------------------------------------


def trained(folder: Path, *events: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return str(folder)


STEP = {"event": "train_step", "step": 1, "loss": 1.0, "tokens": 5}


def test_a_run_is_drawn_once_whatever_models_come_from_it(tmp_path: Path):
    run, other = trained(tmp_path / "run", STEP), trained(tmp_path / "other", STEP)
    models = [
        model("a/b", "checkpoint", folder=run),
        model("end", "student", folder=run),
        model("a b", "student", folder=other),
        model("teacher", "teacher", folder=run),
    ]
    assert [(name, title) for name, title, _ in runs(report(models=models))] == [
        ("curves-a-b", "Training of a/b, end"),
        ("curves-a-b-2", "Training of a b"),
    ]


def test_runs_that_tell_nothing_have_no_curves(tmp_path: Path):
    empty = trained(tmp_path / "empty")
    folder = tmp_path / "no-file"
    (folder / "metrics.jsonl").mkdir(parents=True)
    gone = str(tmp_path / "gone")
    models = [model(str(place), folder=path) for place, path in enumerate((empty, str(folder), gone))]
    assert runs(report(models=models)) == []


# ---- looks -------------------------------------------------------------------------------------------------------


def test_models_look_different_and_the_same_in_every_plot():
    models = [model("base", "baseline"), *(model(f"step-{step}", "checkpoint") for step in range(35))]
    found = looks([*models, model("teacher", "teacher")])
    assert len(set(found.values())) == 37
    assert (found["base"].colour, found["teacher"].colour) == (GREY, INK)
    assert math.gcd(len(COLOURS), len(MARKS)) == 1


# ---- files -------------------------------------------------------------------------------------------------------


def drawn(found: Report, folder: Path) -> list[str]:
    """Names of the plots, each of which is there for both papers, 1050 dots wide and small."""
    plots = draw_plots(found, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        name for plot in plots for name in (plot, plot.replace(".png", ".dark.png"))
    )
    for path in folder.iterdir():
        assert path.stat().st_size < 150_000
        with Image.open(path) as image:
            assert image.width == 1050
    return plots


def test_all_plots_of_a_report(tmp_path: Path):
    found, _ = example()
    for each in found.models:
        if each.training is not None:
            each.training.folder = trained(tmp_path / each.name, STEP)
    plots = drawn(found, tmp_path / "reports" / "plots")
    assert plots == ["accuracy.png", "differences.png", "gap.png", "wins.png", "curves-student.png"]


def test_plots_of_an_earlier_report_are_removed_and_other_files_are_kept(tmp_path: Path):
    for name in ("gap.png", "gap.dark.png", "curves-old.png", "curves-old.dark.png", "mine.png"):
        (tmp_path / name).write_bytes(b"older")
    assert draw_plots(report(metric()), tmp_path) == ["accuracy.png", "differences.png", "wins.png"]
    assert not (tmp_path / "gap.png").exists()
    assert not list(tmp_path.glob("curves-*"))
    assert (tmp_path / "mine.png").read_bytes() == b"older"


def test_a_report_without_figures_has_no_plots(tmp_path: Path):
    assert drawn(report(), tmp_path / "plots") == []


def test_figures_of_every_kind_of_nothing_are_drawn(tmp_path: Path):
    odd = "a-name-that-is-much-longer-than-its-column_" * 3 + "$x_{1$ 模\N{RIGHT-TO-LEFT OVERRIDE}"
    models = [model("base", "baseline"), model(odd), model("teacher", "teacher")]
    without = {"low": -math.inf, "high": math.inf, "detectable": math.inf}
    found = report(
        metric(odd, odd, scores=[score("base", math.nan), score(odd, 0.0, None)], differences=[difference(odd)]),
        metric("b", differences=[difference(odd, **without)], gaps=[Gap(model=odd, value=9.0, low=-90, high=99)]),
        metric("c", differences=[difference(odd, **COPY)], gaps=[Gap(model=odd, value=None, why=odd)]),
        metric("d", unit="points", differences=[difference(odd, value=1e9, low=math.nan, high=math.nan)]),
        models=models,
    )
    assert drawn(found, tmp_path / "plots") == ["accuracy.png", "differences.png", "gap.png", "wins.png"]


def test_five_models_on_ten_tasks_take_less_than_four_seconds(tmp_path: Path):
    found, _ = large()
    for each in found.models:
        if each.training is not None:
            each.training.folder = str(tmp_path / "run")
    trained(tmp_path / "run", *({**STEP, "step": step, "tokens_per_s": 9.0} for step in range(1, 200)))
    draw_plots(report(metric()), tmp_path / "first")  # matplotlib is imported, and its fonts are found
    began = time.process_time()
    plots = drawn(found, tmp_path / "plots")
    assert time.process_time() - began < 4
    assert plots[-2:] == ["cost.png", "curves-step-50.png"]
