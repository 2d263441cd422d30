"""Finished reports in one: the same items paired anew, everything else left out with a word."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import UsageError
from core.evaluation.report import write_report
from core.evaluation.results import Gap, Report, Sample, TaskMetric
from core.evaluation.side_by_side import side_by_side
from tests.support.evaluation import example

Change = Callable[[Report, list[Sample]], None]


@pytest.fixture
def reports(tmp_path: Path) -> Callable[..., list[Path]]:
    """Folders of reports that are alike but for their names and what each change does to them."""

    def write(*changes: Change | None) -> list[Path]:
        folders: list[Path] = []
        for number, change in enumerate(changes):
            report, samples = example()
            report.name = ("monday", "tuesday", "friday")[number]
            if change:
                change(report, samples)
            folders.append(tmp_path / str(number))
            write_report(folders[-1], report, samples)
        return folders

    return write


def better_student(report: Report, samples: list[Sample]) -> None:
    """Its student has the first 30 items of arithmetic right that it had wrong."""
    report.models[1].identity = "other weights"
    wrong = [s for s in samples if s.task == "arithmetic" and not s.scores["student"]["exact_match"]][:30]
    for sample in wrong:
        sample.scores["student"]["exact_match"] = 1.0
        sample.answers["student"] = sample.reference
    score = next(score for score in report.metrics[0].scores if score.model == "student")
    score.value += 30 / 120


def versions(version: str) -> Change:
    """All tasks are of this version."""

    def change(report: Report, samples: list[Sample]) -> None:
        for task in report.tasks:
            task.version = version

    return change


def metric(report: Report, task: str, name: str) -> TaskMetric:
    return next(metric for metric in report.metrics if (metric.task, metric.metric) == (task, name))


def test_models_of_both_reports_are_paired_with_the_first_baseline(reports: Callable[..., list[Path]]):
    report, samples = side_by_side(reports(None, better_student))
    assert [(model.name, model.role) for model in report.models] == [
        ("monday/baseline", "baseline"),
        ("monday/student", "student"),
        ("tuesday/student", "student"),
        ("monday/teacher", "teacher"),
    ]
    assert report.name == "monday, tuesday"
    assert [task.name for task in report.tasks] == ["arithmetic", "mmlu_dev", "held_out", "closeness"]
    of = {difference.model: difference for difference in metric(report, "arithmetic", "exact_match").differences}
    # 42 and 68 of 120 are right; 30 more are 25 points more.
    assert of["monday/student"].value == pytest.approx((68 - 42) / 120)
    assert of["tuesday/student"].value == pytest.approx((98 - 42) / 120)
    assert of["tuesday/student"].against == "monday/baseline"
    assert of["tuesday/student"].wins - of["tuesday/student"].losses == 56
    item = next(sample for sample in samples if sample.task == "arithmetic")
    assert set(item.answers) == {"monday/baseline", "monday/student", "tuesday/student", "monday/teacher"}
    assert set(item.scores) == set(item.answers)
    assert report.headline
    assert "tuesday/baseline is the same as monday/baseline." in report.notes


def test_a_report_beside_itself_has_equal_models(reports: Callable[..., list[Path]]):
    [folder] = reports(None)
    report, _ = side_by_side([folder, folder])
    assert [model.name for model in report.models][1:3] == ["monday/student", "monday-2/student"]
    own, copy, _ = metric(report, "mmlu_dev", "acc").differences
    assert own.model_dump(exclude={"model"}) == copy.model_dump(exclude={"model"})


def test_a_baseline_with_other_weights_or_other_answers_stays_and_is_compared(reports: Callable[..., list[Path]]):
    def other(report: Report, samples: list[Sample]) -> None:
        report.models[0].identity = "other weights"

    def answers(report: Report, samples: list[Sample]) -> None:
        samples[0].scores["baseline"]["exact_match"] = 1 - samples[0].scores["baseline"]["exact_match"]

    for change in (other, answers):
        report, _ = side_by_side(reports(None, change))
        roles = {model.name: model.role for model in report.models}
        assert roles["tuesday/baseline"] == "checkpoint"
        assert "tuesday/teacher" not in roles


def test_copies_of_the_baseline_have_no_difference_and_no_interval(reports: Callable[..., list[Path]]):
    def renamed(report: Report, samples: list[Sample]) -> None:
        report.models[0].identity = "the same weights in another format"

    report, _ = side_by_side(reports(None, renamed))
    for each in report.metrics:
        for difference in each.differences:
            if difference.model == "tuesday/baseline":
                assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_a_task_with_other_items_is_left_out_by_name(reports: Callable[..., list[Path]]):
    def fewer(report: Report, samples: list[Sample]) -> None:
        samples.remove(next(sample for sample in samples if sample.task == "arithmetic"))

    def reworded(report: Report, samples: list[Sample]) -> None:
        next(sample for sample in samples if sample.task == "arithmetic").prompt += " Please."

    for change in (fewer, reworded):
        report, samples = side_by_side(reports(None, change))
        assert [task.name for task in report.tasks] == ["mmlu_dev", "held_out", "closeness"]
        assert not [sample for sample in samples if sample.task == "arithmetic"]
        assert report.notes[0] == "arithmetic was asked with other items or prompts in tuesday than in monday."


def settings(**options: object) -> Change:
    return lambda report, samples: report.settings.update(options=options)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("version", "2", "version"),
        ("fewshot", 3, "examples"),
        ("prompted", "plain text", "chat template or plain text"),
    ],
)
def test_a_task_that_was_asked_differently_is_left_out_with_what_differs(
    reports: Callable[..., list[Path]], field: str, value: object, said: str
):
    def differently(report: Report, samples: list[Sample]) -> None:
        setattr(report.tasks[0], field, value)

    report, samples = side_by_side(reports(None, differently))
    assert [task.name for task in report.tasks] == ["mmlu_dev", "held_out", "closeness"]
    assert not [sample for sample in samples if sample.task == "arithmetic"]
    assert not [each for each in report.metrics if each.task == "arithmetic"]
    assert report.notes[0] == (
        f"arithmetic was asked differently in tuesday than in monday ({said}), so that it is not compared."
    )


def test_a_third_report_that_asked_differently_does_not_take_the_task_from_the_others(
    reports: Callable[..., list[Path]],
):
    def differently(report: Report, samples: list[Sample]) -> None:
        report.tasks[0].version = "2"

    report, _ = side_by_side(reports(None, better_student, differently))
    assert {score.model for score in metric(report, "arithmetic", "exact_match").scores} == {
        *("monday/baseline", "monday/student", "monday/teacher", "tuesday/student")
    }


def test_other_lengths_of_answers_and_other_system_prompts_are_not_compared(reports: Callable[..., list[Path]]):
    def left(first: Change, second: Change) -> list[str]:
        return [task.name for task in side_by_side(reports(first, second))[0].tasks]

    short, long = settings(max_new_tokens=64), settings(max_new_tokens=128)
    assert left(short, long) == ["arithmetic", "mmlu_dev"]
    assert len(left(long, long)) == 4
    # mmlu_dev alone is asked in plain text, where the system prompt is not used
    assert left(settings(system="Be brief."), settings(system=None)) == ["mmlu_dev"]


def test_reports_that_were_put_side_by_side_are_compared_as_what_they_are_made_of(
    reports: Callable[..., list[Path]], tmp_path: Path
):
    folders = reports(settings(max_new_tokens=64), settings(max_new_tokens=64), settings(max_new_tokens=128))
    write_report(tmp_path / "both", *side_by_side(folders[:2]))
    assert len(side_by_side([tmp_path / "both", folders[0]])[0].tasks) == 4
    assert len(side_by_side([tmp_path / "both", folders[2]])[0].tasks) == 2


def test_distances_from_different_teachers_are_not_compared(reports: Callable[..., list[Path]]):
    def other(report: Report, samples: list[Sample]) -> None:
        report.models[2].identity = "another teacher"

    report, _ = side_by_side(reports(None, other))
    assert [task.name for task in report.tasks] == ["arithmetic", "mmlu_dev", "held_out"]
    assert report.notes[0].startswith("closeness was asked differently in tuesday than in monday (teacher)")


def test_a_gap_that_says_nothing_is_not_taken_over(reports: Callable[..., list[Path]]):
    def older(report: Report, samples: list[Sample]) -> None:
        metric(report, "closeness", "kl").gaps = [Gap(model="student", value=0.4)]

    assert metric(side_by_side(reports(older, None))[0], "closeness", "kl").gaps == []


def test_a_third_report_with_other_items_does_not_take_the_task_from_the_others(reports: Callable[..., list[Path]]):
    def without(report: Report, samples: list[Sample]) -> None:
        samples[:] = [sample for sample in samples if sample.task == "mmlu_dev"]

    report, _ = side_by_side(reports(None, better_student, without))
    assert len(report.tasks) == 4
    assert [d.model for d in metric(report, "arithmetic", "exact_match").differences] == [
        "monday/student",
        "tuesday/student",
        "monday/teacher",
    ]
    assert "friday/student" in [d.model for d in metric(report, "mmlu_dev", "acc").differences]


def test_a_ratio_keeps_what_its_report_says_and_is_not_paired_across_reports(reports: Callable[..., list[Path]]):
    report, _ = side_by_side(reports(None, better_student))
    kl, (before, _) = metric(report, "closeness", "kl"), example()
    assert kl.primary
    assert (kl.unit, kl.higher_is_better) == ("nats", False)
    scores = {score.model: score for score in kl.scores}
    original = metric(before, "closeness", "kl")
    assert scores["tuesday/student"].value == original.scores[1].value
    assert scores["tuesday/student"].low == original.scores[1].low
    assert [d.model for d in kl.differences] == ["monday/student", "monday/teacher"]
    assert kl.differences[0].value == original.differences[0].value
    assert [note for note in report.notes if note.startswith("No mean over items, so compared within monday only: kl")]


def test_nothing_in_common_is_refused_with_the_reasons(reports: Callable[..., list[Path]]):
    def only(task: str) -> Change:
        def change(report: Report, samples: list[Sample]) -> None:
            samples[:] = [sample for sample in samples if sample.task == task]

        return change

    with pytest.raises(UsageError, match="no task with the same items") as refused:
        side_by_side(reports(only("arithmetic"), only("mmlu_dev")))
    assert "arithmetic is in monday only." in str(refused.value)
    with pytest.raises(UsageError, match=r"asked alike.*mmlu_dev was asked differently"):
        side_by_side(reports(versions("1"), versions("2")))


def test_a_folder_without_a_report_or_without_its_items_is_named(reports: Callable[..., list[Path]], tmp_path: Path):
    folders = reports(None, None)
    with pytest.raises(UsageError, match="nowhere"):
        side_by_side([folders[0], tmp_path / "nowhere"])
    (folders[1] / "samples.jsonl").unlink()
    with pytest.raises(UsageError, match=r"samples\.jsonl: No such file"):
        side_by_side(folders)


def test_what_is_put_side_by_side_can_be_written_as_a_report(reports: Callable[..., list[Path]], tmp_path: Path):
    report, samples = side_by_side(reports(None, better_student))
    write_report(tmp_path / "both", report, samples)
    text = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert "tuesday/student better than monday/baseline" in text
