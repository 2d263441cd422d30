"""Models against the baseline on the same items, and what that comes to in words."""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .results import (
    CLOSENESS,
    Answered,
    Difference,
    Gap,
    Metric,
    ModelInfo,
    Question,
    Report,
    Score,
    Scored,
    TaskMetric,
    Training,
    Unit,
)
from .statistics import FEWEST, Items, holm

FEW = 30
"""Items below which intervals are rough, and little can be found."""
COARSE = 0.1
"""Where only differences above 10 points would be found, the headline says so first."""
LOWER_IS_BETTER = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}
"""Of the metrics that come as a value only, without a word on their direction."""
PER_BYTE = "bits_per_byte"
"""The only figure of closeness that means the same whatever the tokenizer, and that a teacher has of its own."""


# ---- figures ---------------------------------------------------------------------------------------------------------


def compare(models: Sequence[ModelInfo], answered: Iterable[Answered], draws: int, seed: int) -> list[TaskMetric]:
    """Every metric of every task, in the order in which they come.

    A model stands in a metric where it has items for it. An item that one of them could not be measured on is left
    out for all. Figures per token are not compared between different tokenizers; where that concerns the main figure
    of closeness, bits per byte take its place. draws, seed: of the bootstrap. Holm's correction is over the tasks, for
    each model by itself.

    Raises ValueError when two models were asked different items, or an item has no single score.
    """
    tasks: dict[str, dict[str, Answered]] = {}
    for one in answered:
        tasks.setdefault(one.task, {})[one.model] = one
    metrics: list[TaskMetric] = []
    for by_model in tasks.values():
        ordered = _same_items([by_model[model.name] for model in models if model.name in by_model])
        scored = _metrics(models, ordered)
        metrics += [_compared(models, ordered, metric, draws, seed) for metric in scored]
        metrics += _values_only(ordered, primary=not any(metric.primary for metric in scored))
    _correct(metrics)
    return metrics


def baseline_of(models: Sequence[ModelInfo]) -> ModelInfo:
    """The one that the others are compared with: the first of that role, else the first."""
    return next((model for model in models if model.role == "baseline"), models[0])


@dataclass(frozen=True)
class _Ordered:
    """A model's task with its items in the order of their keys, so that no figure depends on the order of a file."""

    model: str
    task: str
    questions: list[Question]
    scored: dict[str, Scored]
    order: NDArray[np.intp]
    values_only: dict[str, float]

    def totals(self, metric: str) -> NDArray[np.float64]:
        return np.asarray(self.scored[metric].totals, dtype=np.float64)[self.order]

    def counts(self, metric: str) -> NDArray[np.float64]:
        counts = self.scored[metric].counts
        return np.ones(len(self.order)) if counts is None else np.asarray(counts, dtype=np.float64)[self.order]


def _same_items(answered: Sequence[Answered]) -> list[_Ordered]:
    found: list[_Ordered] = []
    for one in answered:
        what = f"{one.task}, {one.model}"
        keys = [question.key for question in one.questions]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{what}: two items have the key {twice}")
        for scored in one.scored:
            lengths = {len(scored.totals), len(scored.counts or scored.totals)}
            if lengths != {len(keys)}:
                raise ValueError(f"{what}: {scored.metric.name} has {sorted(lengths)} scores for {len(keys)} items")
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.intp)
        questions = [one.questions[i] for i in order]
        found.append(
            _Ordered(one.model, one.task, questions, {s.metric.name: s for s in one.scored}, order, one.values_only)
        )
        first = found[0]
        mine, its = ({question.key: question.content for question in side.questions} for side in (found[-1], first))
        if mine != its:
            odd = min(key for key in mine.keys() | its.keys() if mine.get(key) != its.get(key))
            raise ValueError(
                f"{one.task}: {one.model} and {first.model} were not asked the same items (the first that differs: "
                f"{odd}), so they cannot be compared. Evaluate both with the same tasks and the same --limit."
            )
    return found


def _metrics(models: Sequence[ModelInfo], ordered: Sequence[_Ordered]) -> list[Metric]:
    """In the order in which they come, at most one of them primary."""
    metrics: dict[str, Metric] = {}
    for one in ordered:
        for name, scored in one.scored.items():
            metrics.setdefault(name, scored.metric)
    main = next((metric.name for metric in metrics.values() if metric.primary), None)
    if main is not None and ordered[0].task == CLOSENESS and PER_BYTE in metrics:
        having = [one.model for one in ordered if main in one.scored]
        main = PER_BYTE if _foreign(models, CLOSENESS, metrics[main], having) else main
    return [replace(metric, primary=metric.name == main) for metric in metrics.values()]


def _foreign(models: Sequence[ModelInfo], task: str, metric: Metric, having: Iterable[str]) -> list[str]:
    """Those whose figures cannot be held against the baseline's: they are per token, and its tokens are others."""
    alike = metric.name == PER_BYTE or metric.name.startswith("own_")
    if metric.unit != "nats" and (task != CLOSENESS or alike):
        return []
    tokenizer = {model.name: model.tokenizer for model in models}
    return [name for name in having if tokenizer[name] != baseline_of(models).tokenizer]


def _compared(
    models: Sequence[ModelInfo], ordered: Sequence[_Ordered], metric: Metric, draws: int, seed: int
) -> TaskMetric:
    task, notes = ordered[0].task, list[str]()
    having = [one for one in ordered if metric.name in one.scored]
    measured = {one.model: np.isfinite(one.totals(metric.name)) for one in having}
    for one in list(having):
        if not one.counts(metric.name)[measured[one.model]].sum() > 0:
            notes.append(f"{one.model} could not be measured on any item")
            having.remove(one)
    kept = np.logical_and.reduce([measured[one.model] for one in having]) if having else np.zeros(0, dtype=bool)
    if lost := int((~kept).sum()):
        who = ", ".join(f"{one.model} {n}" for one in having if (n := int((~measured[one.model]).sum())))
        notes.append(f"{lost} of {len(kept)} items are left out for all models, because one had no figure there: {who}")
    result = TaskMetric(
        task=task,
        metric=metric.name,
        primary=metric.primary,
        higher_is_better=metric.higher_is_better,
        unit=metric.unit,
        items=int(kept.sum()),
        scores=[],
        differences=[],
        gaps=[],
        notes=notes,
    )
    counts = np.array([one.counts(metric.name)[kept] for one in having])
    if not kept.any() or not (counts.sum(axis=1) > 0).all():
        if having:
            result.notes.append("no item is left that all models were measured on")
        return result

    items = Items(
        np.array([one.totals(metric.name)[kept] for one in having]),
        counts,
        [question.cluster for question, keep in zip(having[0].questions, kept, strict=True) if keep],
        higher_is_better=metric.higher_is_better,
        draws=draws,
        seed=[seed, zlib.crc32(f"{task}/{metric.name}".encode())],
    )
    where = {one.model: i for i, one in enumerate(having)}
    for name, i in where.items():
        found = items.score(i)
        low, high = (_within(bound, metric.unit, 0.0) for bound in (found.low, found.high))
        result.scores.append(Score(model=name, value=found.value, se=found.se, low=low, high=high))
    baseline = baseline_of(models).name
    if baseline not in where:
        result.notes.append(f"{baseline} has no figure here, so nothing is compared")
        return result
    if items.units < 2 and len(where) > 1:
        result.notes.append("a single item or cluster: no difference has an interval")
    if foreign := _foreign(models, task, metric, where):
        result.notes.append(
            f"{metric.name} is per token, and {', '.join(foreign)} {'has' if len(foreign) == 1 else 'have'} another "
            f"tokenizer than {baseline}: not compared"
        )
        where = {name: i for name, i in where.items() if name not in foreign}
    for name, i in where.items():
        if name != baseline and (pair := items.paired(i, where[baseline])):
            low, high = (_within(bound, metric.unit, -1.0) for bound in (pair.low, pair.high))
            fields = asdict(pair)
            fields.update(low=low, high=high)
            result.differences.append(Difference(model=name, against=baseline, **fields))
    teacher = next((model.name for model in models if model.role == "teacher" and model.name in where), None)
    if teacher and teacher != baseline and has_gap(task, metric):
        for name, i in where.items():
            if name not in (baseline, teacher):
                gap = items.gap(i, where[baseline], where[teacher])
                result.gaps.append(Gap(model=name, value=gap.value, low=gap.low, high=gap.high, why=gap.why))
    return result


def has_gap(task: str, metric: Metric | TaskMetric) -> bool:
    """Whether the teacher has a figure of its own that one can get near to. Its distance from itself is none: nothing
    but nought or all, whatever teacher it is."""
    name = metric.name if isinstance(metric, Metric) else metric.metric
    return metric.higher_is_better is not None and (task != CLOSENESS or name == PER_BYTE)


def _within(bound: float | None, unit: Unit, least: float) -> float | None:
    """A share is no more than 1, and no less than 0; a difference of shares no less than -1."""
    return bound if bound is None or unit != "share" else max(least, min(1.0, bound))


def _values_only(ordered: Sequence[_Ordered], primary: bool) -> list[TaskMetric]:
    """primary: whether the first of them stands for the task, since no other does."""
    metrics: list[TaskMetric] = []
    for name in dict.fromkeys(name for one in ordered for name in one.values_only):
        having = [one for one in ordered if name in one.values_only]
        metrics.append(
            TaskMetric(
                task=having[0].task,
                metric=name,
                primary=primary and not metrics,
                higher_is_better=name.partition(",")[0] not in LOWER_IS_BETTER,
                unit="points",
                items=len(having[0].questions),
                scores=[Score(model=one.model, value=one.values_only[name]) for one in having],
                differences=[],
                gaps=[],
                notes=["no mean over items, so without intervals"],
            )
        )
    return metrics


def _correct(metrics: Sequence[TaskMetric]) -> None:
    """Sets `p_holm` of the primary metrics."""
    by_model: dict[str, list[Difference]] = {}
    for metric in metrics:
        for difference in metric.differences if metric.primary else ():
            by_model.setdefault(difference.model, []).append(difference)
    for differences in by_model.values():
        for difference, p in zip(differences, holm([d.p for d in differences]), strict=True):
            difference.p_holm = p


# ---- words -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A task's primary metric, for one model; one that has a better side."""

    metric: TaskMetric
    difference: Difference

    @property
    def gain(self) -> float:
        """Positive is better."""
        return self.difference.value if self.metric.higher_is_better else -self.difference.value

    @property
    def sure(self) -> bool:
        """By the interval, and after the correction for the number of tasks."""
        difference = self.difference
        return difference.found and (difference.p if difference.p_holm is None else difference.p_holm) <= 0.05

    @property
    def units(self) -> int:
        """Independent items."""
        return self.difference.clusters or self.metric.items

    @property
    def equal(self) -> bool:
        return not (self.difference.wins or self.difference.losses)

    @property
    def name(self) -> str:
        """The task, with its metric where that is not a share: there it needs a name."""
        return self.metric.task if self.metric.unit == "share" else f"{self.metric.task} ({self.metric.metric})"

    @property
    def text(self) -> str:
        difference, unit = self.difference, self.metric.unit
        scale, digits = (100, 1) if unit == "share" else (1, 1 if unit == "tokens" else 3)
        value, low, high = (
            _rounded(scale * x, digits, "+") for x in (difference.value, difference.low, difference.high)
        )
        named = {"share": " points", "points": ""}.get(unit, f" {unit}")
        lower = "" if self.metric.higher_is_better else ", where less is better"
        return f"{value}{named} [{low}, {high}]{lower}"


def headline(report: Report) -> list[str]:
    """What the report comes to, in five sentences at most; about one model, the student where there is one.

    The first says so when next to nothing could have been found with so few items. A task counts as better or worse
    when its interval excludes zero and its p-value, corrected for the number of tasks, is at most 0.05.
    """
    model, against = _subject(report), baseline_of(report.models)
    if model is None:
        return [f"{against.name} is the only model, so nothing is compared."]
    lines = [
        _Line(metric, difference)
        for metric in report.metrics
        if metric.primary and metric.higher_is_better is not None
        for difference in metric.differences
        if difference.model == model.name
    ]
    if not lines and any(m.primary and m.items == 1 and len(m.scores) > 1 for m in report.metrics):
        return ["A single item tells nothing of a difference: give more."]
    if not lines:
        return [f"{model.name} and {against.name} have no task in common that could be compared item by item."]
    copies = model.identity == against.identity
    said = [
        None if copies else _how_blind(lines),
        f"{model.name} and {against.name} are the same model." if copies else None,
        _verdict(model.name, against.name, lines),
        _largest(lines),
        _gap(report, model.name),
        None if copies else _cost(model),
    ]
    return [sentence for sentence in said if sentence]


def _subject(report: Report) -> ModelInfo | None:
    """The model that the report is about: the first student, else the last checkpoint, else the teacher."""
    baseline = baseline_of(report.models)
    others = [model for model in report.models if model is not baseline]
    students = [model for model in others if model.role == "student"]
    checkpoints = [model for model in others if model.role != "teacher"]
    return (students[:1] or checkpoints[-1:] or others[:1] or [None])[0]


def _how_blind(lines: Sequence[_Line]) -> str | None:
    """Says so if hardly anything could have been found in any task; many items in which much was found speak for
    themselves. Shares alone are judged where there are any: only of these it is known what is much."""
    judged = [line for line in lines if line.metric.unit == "share"] or list(lines)
    largest = max(judged, key=lambda line: line.units)
    shares = [
        (line.difference.detectable, line)
        for line in judged
        if line.metric.unit == "share" and line.difference.detectable
    ]
    least, finest = min(shares, key=lambda one: one[0], default=(None, largest))
    if largest.units >= FEW and (least is None or least <= COARSE or any(line.sure for line in judged)):
        return None
    where = f" in {finest.metric.task}, the task that shows most" if len(judged) > 1 else ""
    start = f"With so few independent items ({finest.units}{where})"
    if largest.units < FEWEST or (least is not None and least >= 1):
        return f"{start} nothing could have been found."
    if least is None:
        return f"{start} only a large difference could have been found."
    points = f"{100 * least:.0f}" if least >= 0.01 else f"{100 * least:.1g}"
    return f"{start} a true difference below {points} points could hardly have been found."


def _verdict(model: str, against: str, lines: Sequence[_Line]) -> str:
    tasks = _count(len(lines), "task")
    if all(line.equal for line in lines):
        return f"{model} and {against} have the same score on every item of {tasks}."
    better = sum(line.sure and line.gain > 0 for line in lines)
    worse = sum(line.sure and line.gain < 0 for line in lines)
    if len(lines) == 1:
        verdict = "is better than" if better else "is worse than" if worse else "cannot be told apart from"
        return f"{model} {verdict} {against} on {lines[0].name} (95 % interval and test)."
    how = f"(95 % intervals and tests, corrected for {tasks})"
    if not better and not worse:
        return f"On none of {tasks} is {model} better or worse than {against} beyond chance {how}."
    rest = len(lines) - better - worse
    open_ = f"; on the other {rest} it may be chance" if rest else ""
    return f"{model} is better than {against} on {better} of {tasks} and worse on {worse} {how}{open_}."


def _largest(lines: Sequence[_Line]) -> str | None:
    """The largest change that is sure, else the largest; shares before other units, whose sizes say less."""
    unequal = [line for line in lines if not line.equal]
    if not unequal:
        return None
    line = max(unequal, key=lambda line: (line.sure, line.metric.unit == "share", abs(line.gain)))
    what = "The difference is" if len(lines) == 1 else f"The largest difference is on {line.name}:"
    if line.sure:
        doubt = ""
    elif line.difference.found and line.difference.p <= 0.05:
        doubt = ", which is not sure for so many tasks"
    else:
        doubt = ", which may be chance"
    return f"{what} {line.text}{doubt}."


def _gap(report: Report, model: str) -> str | None:
    metrics = [metric for metric in report.metrics if metric.primary and metric.task != CLOSENESS]
    gaps = [(metric.task, gap) for metric in metrics for gap in metric.gaps if gap.model == model]
    known = sorted(((gap.value, task, gap) for task, gap in gaps if gap.value is not None), key=lambda one: one[:2])
    if not gaps:
        return None
    if not known:
        return "The gap recovered is not defined: there is no task on which the teacher is clearly better."
    if len(known) == 1:
        value, task, gap = known[0]
        interval = f"[{_rounded(100 * (gap.low or 0.0))}, {_rounded(100 * (gap.high or 0.0))}]"
        return f"{model} recovered {_rounded(100 * value)} % {interval} of the teacher's lead on {task}."
    shown = (float(np.median([value for value, _, _ in known])), known[0][0], known[-1][0])
    middle, least, most = (f"{_rounded(100 * value)} %" for value in shown)
    return (
        f"{model} recovered {middle} of the teacher's lead (median of the {len(known)} tasks where that is clear; "
        f"{least} on {known[0][1]}, {most} on {known[-1][1]})."
    )


def _cost(model: ModelInfo) -> str | None:
    training = model.training or Training(folder="")
    parts: list[str] = []
    if training.seconds:
        parts.append(_time(training.seconds))
    if training.tokens:
        parts.append(f"{training.tokens:,} tokens of answers")
    if training.usd is not None:
        parts.append(f"${training.usd:,.2f} for teacher data")
    return f"Training {model.name} took {', '.join(parts)}." if parts else None


def _time(seconds: float) -> str:
    """In the unit that people would take."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} s"


def _rounded(value: float, digits: int = 0, sign: str = "") -> str:
    """No sign before what is shown as zero.

    >>> _rounded(-0.04, 1, "+"), _rounded(0.06, 1, "+"), _rounded(-0.3)
    ('0.0', '+0.1', '0')
    """
    text = f"{value:{sign}.{digits}f}"
    return text if text.strip("+-0.") else text.lstrip("+-")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
