"""How figures are written, and what they mean in words: the same in the page, in Markdown and in the terminal."""

import math
from collections.abc import Iterator
from pathlib import PurePath
from typing import Literal

from .results import Difference, Gap, ModelInfo, Report, Score, TaskInfo, TaskMetric, Unit

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
"""Stands where there is no figure."""

GLOSSARY = (
    (
        "Paired difference",
        "All models answer the same items. Each item gives one difference, the model's score minus the baseline's; "
        "what is shown is their mean. Items that are hard for everybody cancel out, so that a smaller gain can be told "
        "from chance than between two separate scores. Differences of percentages are in points.",
        "E. Miller, Adding Error Bars to Evals, arXiv:2411.00640",
    ),
    (
        "95 % interval",
        "Over many choices of items like these, 95 % of such intervals hold the true value. A difference is called "
        "found where its interval excludes zero. Compare models by the interval of the difference, never by whether "
        "the intervals of two scores overlap. Items that share a passage count as one cluster.",
        "Miller; E. B. Wilson 1927; B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993",
    ),
    (
        "p, after Holm",
        "The chance of a difference at least as large if the models were equal: McNemar's exact test for items that "
        "are right or wrong, else a paired bootstrap. With several tasks one of them is easily significant by chance; "
        "Holm's correction allows for that over the tasks' main figures.",
        "Q. McNemar 1947; S. Holm 1979",
    ),
    (
        "Detectable effect",
        "The smallest true difference that this many items would have shown with 80 % power at the 5 % level. "
        "No difference found says only that it is probably smaller than this; more items find smaller ones. "
        "None is given where the items do not tell how much differences vary.",
        "Miller",
    ),
    (
        "Gap recovered",
        "How much of the way from the baseline to the teacher a model went: (model - baseline) / (teacher - baseline). "
        "Not defined where the teacher was not found to be better than the baseline, nor for the distance from the "
        "teacher itself.",
        "",
    ),
)
"""(term, explanation, source)."""

CAPTIONS = {
    "accuracy": "Scores with 95 % intervals",
    "differences": "Paired differences from the baseline with 95 % intervals, and what could not have been found",
    "gap": "Gap recovered: the share of the way from the baseline to the teacher",
    "wins": "Items won and lost against the baseline",
    "cost": "Scores against what training cost",
    "curves": "Training curves",
}
"""The first word of a plot's file name -> what it shows."""


def amount(value: float | None, unit: Unit) -> str:
    """A figure without its unit, but for %: 35.0 %, 0.872, 113.4."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if unit == "share":
        return f"{_no_minus_zero(f'{100 * value:.1f}')} %".replace("-", MINUS)
    return _no_minus_zero(_plain(value, unit)).replace("-", MINUS)


def signed(value: float | None, unit: Unit) -> str:
    """A difference with its sign: +21.7 (points of a percentage), +0.012; 0 has none."""
    if value is None or math.isnan(value):
        return NONE
    text = f"{100 * value:.1f}" if unit == "share" else _plain(value, unit)
    if _is_zero(text):
        return text.lstrip("-")
    return text.replace("-", MINUS) if value < 0 else f"+{text}"


def _is_zero(text: str) -> bool:
    """Whether a number that was rounded is shown as 0."""
    return not text.strip("-0.")


def _no_minus_zero(text: str) -> str:
    return text.lstrip("-") if _is_zero(text) else text


def _plain(value: float, unit: Unit) -> str:
    if unit in ("nats", "bits"):
        return f"{value:.3f}"
    return f"{value:.1f}" if unit == "tokens" or abs(value) >= 100 else f"{value:.3g}"


def interval(low: float | None, high: float | None, unit: Unit, *, sign: bool = False) -> str:
    """Both ends: 26.5 to 43.5, or [+13.9, +29.4] with signs. Empty where there is none."""
    if low is None or high is None:
        return ""
    if sign:
        return f"[{signed(low, unit)}, {signed(high, unit)}]"
    return f"{amount(low, unit).removesuffix(' %')} to {amount(high, unit).removesuffix(' %')}"


def chance(p: float | None) -> str:
    """A p-value."""
    if p is None or math.isnan(p):
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def recovered(gap: Gap | None) -> tuple[str, str]:
    """(share of the gap in per cent, its interval)."""
    if gap is None:
        return NONE, ""
    if gap.value is None:
        return "not defined", ""
    ends = "" if gap.low is None or gap.high is None else f"{_per_cent(gap.low)} to {_per_cent(gap.high)}"
    return f"{_per_cent(gap.value)} %", ends


def _per_cent(share: float) -> str:
    return _no_minus_zero(f"{100 * share:.0f}").replace("-", MINUS)


Kind = Literal["good", "bad", "none"]


def verdict(metric: TaskMetric, difference: Difference) -> tuple[Kind, str]:
    """Whether a difference was found, and which way."""
    if not difference.found:
        same = difference.low == difference.high == 0
        return "none", "equal" if same else "no difference found"
    doubt = ""
    if difference.p > 0.05:
        doubt = " by the interval, not by the test"
    elif difference.p_holm is not None and difference.p_holm > 0.05:
        doubt = ", not after Holm"
    if metric.higher_is_better is None:
        return "none", f"changed{doubt}"
    better = (difference.value > 0) == metric.higher_is_better
    return ("good", f"better{doubt}") if better else ("bad", f"worse{doubt}")


def metric_name(metric: TaskMetric) -> str:
    """The metric with its unit and direction, where those are not per cent and up, and there is one."""
    about = [] if metric.unit in ("share", "points") else [metric.unit]
    if metric.higher_is_better is False:
        about.append("lower is better")
    return f"{metric.metric} ({', '.join(about)})" if about else metric.metric


def seconds(value: float | None) -> str:
    """A duration: 41 s, 12 min, 3.4 h."""
    if value is None:
        return NONE
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def count(value: int | None) -> str:
    """A number with commas: 113,275,008."""
    return NONE if value is None else f"{value:,}"


def size(parameters: int | None) -> str:
    """A number of weights: 113 M, 1.5 B."""
    if parameters is None:
        return NONE
    for one, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= one:
            return f"{parameters / one:.3g} {letter}"
    return str(parameters)


def dollars(value: float | None) -> str:
    """Money; a cent and less with four digits."""
    if value is None:
        return NONE
    return f"${value:.2f}" if value >= 0.1 or value == 0 else f"${value:.4f}"


def caption(plot: str) -> str:
    """What a plot shows, from its file name."""
    stem = PurePath(plot).stem
    kind, _, of = stem.partition("-")
    known = CAPTIONS.get(kind)
    return stem if known is None else f"{known}: {of}" if of else known


def compared(report: Report) -> list[tuple[TaskMetric, Difference]]:
    """Main figures of what was trained against the baseline, task by task; the teacher's where nothing else was."""
    teachers = {model.name for model in report.models if model.role == "teacher"}
    found = [(metric, difference) for metric in report.metrics if metric.primary for difference in metric.differences]
    return [pair for pair in found if pair[1].model not in teachers] or found


def notes(report: Report) -> Iterator[str]:
    """All notes: the report's, the models', the tasks', what was not measured, and gaps that are not defined."""
    yield from report.notes
    for model in report.models:
        if model.training is not None and model.training.signal:
            yield f"{model.name} learnt from: {model.training.signal}"
    for model in report.models:
        yield from (f"{model.name}: {note}" for note in model.notes)
        yield from (f"{model.name} was not measured on {task}: {why}" for task, why in model.not_measured.items())
    told: set[str] = set()
    for metric in report.metrics:
        undefined = [
            f"the gap that {gap.model} recovered is not defined: {gap.why}"
            for gap in metric.gaps
            if metric.primary and gap.value is None and gap.why
        ]
        for line in (f"{metric.task}: {note}" for note in [*metric.notes, *undefined]):
            if line not in told:
                told.add(line)
                yield line


def made_of(report: Report) -> str:
    """What took part and when, on one line."""
    items = sum(task.items for task in report.tasks)
    parts = [
        _some(len(report.models), "model"),
        _some(len(report.tasks), "task"),
        _some(items, "item"),
        report.created.replace("T", " ").removesuffix("Z") + " UTC" if report.created.endswith("Z") else report.created,
        f"distill {report.distill}",
    ]
    return ", ".join(parts)


def _some(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def score_of(metric: TaskMetric, model: str) -> Score | None:
    """A model's score, where it has one."""
    return next((score for score in metric.scores if score.model == model), None)


def gap_of(metric: TaskMetric, model: str) -> Gap | None:
    """How much of the gap a model recovered, where there is a teacher."""
    return next((gap for gap in metric.gaps if gap.model == model), None)


def prompted(task: TaskInfo) -> str:
    """How a task's items were put to the models."""
    shots = f", {task.fewshot} examples before each item" if task.fewshot else ""
    return f"{task.prompted}{shots}"


def role(model: ModelInfo) -> str:
    """A model's role, unless its name says it."""
    return "" if model.role == model.name else model.role


def items_of(task: TaskInfo) -> str:
    """How many items were asked: 100 of 285."""
    return f"{task.items:,} of {task.of:,}" if task.of > task.items else f"{task.items:,}"


def backend(model: ModelInfo) -> str:
    """What ran a model: hf, float32, batches of 16."""
    batches = f"batches of {model.batch_size}" if model.batch_size else ""
    return ", ".join(part for part in (model.backend, model.dtype, batches) if part)


def requests(model: ModelInfo) -> str:
    """What was asked of a model: 780 (120 from the cache)."""
    return f"{model.requests:,} ({model.cached:,} from the cache)" if model.cached else f"{model.requests:,}"
