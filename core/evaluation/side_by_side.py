"""Finished reports in one: their models, paired anew on the tasks whose items are equal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..data.keys import work_key
from ..errors import UsageError
from .comparison import baseline_of, compare, has_gap, headline
from .report import read_report, read_samples
from .results import (
    CLOSENESS,
    HELD_OUT,
    Answered,
    Metric,
    ModelInfo,
    Question,
    Report,
    Sample,
    Scored,
    TaskInfo,
    TaskMetric,
)

NEAR = 1e-6
"""Relative; a score and the mean of its items are the same number within this."""


@dataclass(eq=False)
class _Finished:
    """A report under a name of its own.

    tasks: task -> key -> item.   names: its models' names -> those in the whole, but for those left out.
    """

    name: str
    report: Report
    tasks: dict[str, dict[str, Sample]]
    names: dict[str, str] = field(default_factory=dict[str, str])


def side_by_side(folders: Sequence[Path], draws: int = 10_000, seed: int = 0) -> tuple[Report, list[Sample]]:
    """(the reports as one, its items). Models are called report/model; all are compared with the first baseline.

    A task takes part where the first report that has it and another asked the same items, and asked them alike: the
    same version, examples, chat template or none, system prompt; for held-out prompts and closeness the same longest
    answer, for closeness the same teacher. A baseline or a teacher
    that is the first report's own, by its hash and its scores, stands there once. Metrics that are no mean over items
    keep what their reports say, and are not compared across reports. draws, seed: of the bootstrap.

    Raises UsageError for a folder that holds no report, and where no two reports have a task in common.
    """
    finished = _named([(folder, read_report(folder)) for folder in folders])
    notes: list[str] = []
    tasks = _common_tasks(finished, notes)
    if not tasks:
        raise UsageError(
            "these reports have no task with the same items in common, asked alike, so that nothing can be compared. "
            + " ".join(notes)
            + " Evaluate with the same tasks and options."
        )
    models = _models(finished, tasks, notes)
    apart = _no_means(tasks)
    metrics = compare(models, _answered(tasks, apart), draws, seed)
    metrics = _in_order(metrics + _kept_as_they_are(finished[0], tasks, apart, notes), tasks)
    for each in finished:
        notes += [f"{each.name}: {note}" for note in each.report.notes]
    report = Report(
        name=", ".join(each.name for each in finished),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        distill=__version__,
        headline=[],
        settings={"compared": [each.name for each in finished], "draws": draws, "seed": seed}
        | {each.name: each.report.settings for each in finished},
        models=models,
        tasks=[info for info, _ in tasks.values()],
        metrics=metrics,
        notes=notes,
        seconds=sum(each.report.seconds for each in finished),
    )
    report.headline = headline(report)
    return report, _samples(tasks)


def _named(reports: Sequence[tuple[Path, Report]]) -> list[_Finished]:
    """Each report with its items, under its own name; a second one of that name gets a number."""
    finished: list[_Finished] = []
    taken: set[str] = set()
    for folder, report in reports:
        name = next(n for n in (report.name, *(f"{report.name}-{i}" for i in range(2, 10_000))) if n not in taken)
        taken.add(name)
        tasks: dict[str, dict[str, Sample]] = {}
        for sample in read_samples(folder):
            tasks.setdefault(sample.task, {})[sample.key] = sample
        names = {model.name: f"{name}/{model.name}" for model in report.models}
        finished.append(_Finished(name, report, tasks, names))
    return finished


_Tasks = dict[str, tuple[TaskInfo, list[_Finished]]]
"""Task -> what it is, and the reports that asked the same items alike."""


def _common_tasks(finished: list[_Finished], notes: list[str]) -> _Tasks:
    tasks: _Tasks = {}
    for task in dict.fromkeys(info.name for each in finished for info in each.report.tasks):
        having = [each for each in finished if each.tasks.get(task)]
        equal = [each for each in having if _content(each.tasks[task]) == _content(having[0].tasks[task])]
        if odd := [each.name for each in having if each not in equal]:
            notes.append(f"{task} was asked with other items or prompts in {', '.join(odd)} than in {equal[0].name}.")
        how = {each.name: _asked(each.report, task) for each in equal}
        same = [each for each in equal if how[each.name] == how[equal[0].name]]
        for each in equal:
            if each not in same:
                first, other = how[equal[0].name], how[each.name]
                unlike = [what for what in first if what in other and first[what] != other[what]]
                notes.append(
                    f"{task} was asked differently in {each.name} than in {equal[0].name} ({', '.join(unlike)}), "
                    "so that it is not compared."
                )
        if len(same) > 1:
            about = next(info for info in same[0].report.tasks if info.name == task)
            tasks[task] = (about, same)
        elif len(having) == 1:
            notes.append(f"{task} is in {having[0].name} only.")
    return tasks


def _asked(report: Report, task: str) -> dict[str, object]:
    """What else than its items the figures of a task depend on, whatever the model: in words, and its value."""
    info = next((info for info in report.tasks if info.name == task), None)
    how: dict[str, object] = {
        "version": info and info.version,
        "examples": info and info.fewshot,
        "chat template or plain text": info and info.prompted,
    }
    own = task in (HELD_OUT, CLOSENESS)
    if own or (info and info.prompted == "chat template"):
        how["--system"] = _options(report.settings, "system")
    if own:
        how["--max-new-tokens"] = _options(report.settings, "max_new_tokens")
    if task == CLOSENESS:
        how["teacher"] = next((model.identity for model in report.models if model.role == "teacher"), None)
    return how


def _options(settings: dict[str, Any], name: str) -> set[Any]:
    """The values of an option: one, or those of all reports that were put side by side already."""
    if "compared" in settings:
        return {value for of in settings["compared"] for value in _options(settings.get(of) or {}, name)}
    return {(settings.get("options") or {}).get(name)}


def _content(samples: dict[str, Sample]) -> dict[str, str]:
    return {key: _item(sample) for key, sample in samples.items()}


def _item(sample: Sample) -> str:
    return work_key([sample.prompt, sample.reference])


def _models(finished: list[_Finished], tasks: _Tasks, notes: list[str]) -> list[ModelInfo]:
    """All models, the first baseline first and its teacher last. Other baselines and teachers become checkpoints."""
    first = finished[0]
    own = {model.name: model for model in first.report.models}
    baseline = baseline_of(first.report.models).name
    models: list[ModelInfo] = []
    last: list[ModelInfo] = []
    for each in finished:
        for model in each.report.models:
            role = model.role
            if each is not first and role in ("baseline", "teacher"):
                twin = next((one for one in own.values() if one.role == role and one.identity == model.identity), None)
                if twin and _same_scores(first, twin.name, each, model.name, tasks):
                    notes.append(f"{each.names.pop(model.name)} is the same as {first.names[twin.name]}.")
                    continue
                role = "checkpoint"
            if each is first and model.name == baseline:
                role = "baseline"
            renamed = model.model_copy(update={"name": each.names[model.name], "role": role})
            (last if role == "teacher" else models).append(renamed)
    models.sort(key=lambda model: model.name != first.names[baseline])  # stable: only the baseline moves
    return models + last


def _same_scores(first: _Finished, twin: str, other: _Finished, model: str, tasks: _Tasks) -> bool:
    """Whether two models have equal scores on every item that both were asked, and the second no others."""
    for task, (_, having) in tasks.items():
        if other in having and any(model in sample.scores for sample in other.tasks[task].values()):
            if first not in having:
                return False
            for key, sample in other.tasks[task].items():
                mine = first.tasks[task][key].scores.get(twin, {})
                its = sample.scores.get(model, {})
                if mine.keys() != its.keys() or not all(_equal(mine[name], its[name]) for name in its):
                    return False
    return True


def _equal(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=NEAR, abs_tol=NEAR) or (math.isnan(a) and math.isnan(b))


def _answered(tasks: _Tasks, apart: set[tuple[str, str]]) -> list[Answered]:
    """What every model did on every common task. apart: (task, metric) that are left out."""
    answered: list[Answered] = []
    for task, (_, having) in tasks.items():
        for each in having:
            samples = list(each.tasks[task].values())
            questions = [Question(s.key, _item(s), s.prompt, s.reference, s.cluster) for s in samples]
            metrics = [m for m in each.report.metrics if m.task == task and (task, m.metric) not in apart]
            for model, name in each.names.items():
                scored = [
                    Scored(
                        Metric(metric.metric, metric.higher_is_better, metric.unit, metric.primary),
                        [_score(sample, model, metric) * _count(sample, model, metric) for sample in samples],
                        [_count(sample, model, metric) for sample in samples],
                    )
                    for metric in metrics
                    if any(score.model == model for score in metric.scores)
                ]
                if scored:
                    answers = [sample.answers.get(model, "") for sample in samples]
                    answered.append(Answered(name, task, questions, scored, answers))
    return answered


def _score(sample: Sample, model: str, metric: TaskMetric) -> float:
    return sample.scores.get(model, {}).get(metric.metric, math.nan)


def _count(sample: Sample, model: str, metric: TaskMetric) -> float:
    """What the score counts for: 1, but in ratios such as nats per token."""
    return sample.counts.get(model, {}).get(metric.metric, 1.0)


def _no_means(tasks: _Tasks) -> set[tuple[str, str]]:
    """(task, metric) whose scores do not follow from those of the items, in any report: corpus BLEU, perplexity."""
    return {
        (task, metric.metric)
        for task, (_, having) in tasks.items()
        for each in having
        for metric in each.report.metrics
        if metric.task == task and not _is_mean(metric, list(each.tasks[task].values()))
    }


def _is_mean(metric: TaskMetric, samples: list[Sample]) -> bool:
    models = [score.model for score in metric.scores]
    # What a model could not be measured on was left out for all.
    items = [s for s in samples if all(math.isfinite(_score(s, model, metric)) for model in models)]
    for score in metric.scores:
        counts = [_count(sample, score.model, metric) for sample in items]
        totals = [_score(sample, score.model, metric) * count for sample, count in zip(items, counts, strict=True)]
        mean = math.fsum(totals) / (math.fsum(counts) or math.nan)
        if not math.isclose(mean, score.value, rel_tol=NEAR, abs_tol=NEAR):
            return False
    return bool(items)


def _kept_as_they_are(
    first: _Finished, tasks: _Tasks, apart: set[tuple[str, str]], notes: list[str]
) -> list[TaskMetric]:
    """The metrics in `apart`: scores of all reports, differences and gaps of the first alone."""
    found: dict[tuple[str, str], TaskMetric] = {}
    for task, (_, having) in tasks.items():
        for each in having:
            for metric in each.report.metrics:
                if metric.task != task or (task, metric.metric) not in apart:
                    continue
                bare = {"scores": [], "differences": [], "gaps": [], "notes": []}
                one = found.setdefault((task, metric.metric), metric.model_copy(update=bare))
                names = each.names
                one.scores += [
                    score.model_copy(update={"model": names[score.model]})
                    for score in metric.scores
                    if score.model in names
                ]
                if each is first:
                    one.differences += [
                        change.model_copy(update={"model": names[change.model], "against": names[change.against]})
                        for change in metric.differences
                    ]
                    if has_gap(task, metric):
                        one.gaps += [gap.model_copy(update={"model": names[gap.model]}) for gap in metric.gaps]
    if found:
        listed = ", ".join(f"{metric} of {task}" for task, metric in found)
        notes.append(f"No mean over items, so compared within {first.name} only: {listed}.")
    return list(found.values())


def _in_order(metrics: list[TaskMetric], tasks: _Tasks) -> list[TaskMetric]:
    """Task by task, and within a task as its first report has them."""
    listed = [
        (task, metric.metric)
        for task, (_, having) in tasks.items()
        for each in having
        for metric in each.report.metrics
        if metric.task == task
    ]
    place = {name: i for i, name in reversed(list(enumerate(listed)))}
    return sorted(metrics, key=lambda metric: place[metric.task, metric.metric])


def _samples(tasks: _Tasks) -> list[Sample]:
    """The items of the common tasks, with the answers and scores of all reports."""
    merged: list[Sample] = []
    for task, (_, having) in tasks.items():
        for key, sample in having[0].tasks[task].items():
            answers: dict[str, str] = {}
            scores: dict[str, dict[str, float]] = {}
            counts: dict[str, dict[str, float]] = {}
            for each in having:
                item = each.tasks[task][key]
                answers |= {each.names[model]: text for model, text in item.answers.items() if model in each.names}
                scores |= {each.names[model]: of for model, of in item.scores.items() if model in each.names}
                counts |= {each.names[model]: of for model, of in item.counts.items() if model in each.names}
            merged.append(sample.model_copy(update={"answers": answers, "scores": scores, "counts": counts}))
    return merged
