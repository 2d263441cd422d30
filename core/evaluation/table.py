"""The closing table of an evaluation, for a terminal of 80 columns."""

import sys
import unicodedata
from collections.abc import Iterator

from ..data.text import one_line
from . import report_words as words
from .comparison import baseline_of
from .results import CLOSENESS, Difference, Report, TaskMetric

WIDTH = 80
HEADS = ["", "items", "base", "model", "diff.", "95 % interval", "", "p"]
BETWEEN = ["  ", "  ", "  ", "  ", "  ", " ", "  "]
OF_ANSWERS = {"own_distinct_2": "different pairs of words", "own_truncated": "share cut off"}
"""Metrics of closeness that are no main figures and stand below them: whether answers go in circles, or have no end."""
LINES_MOST = 4
"""Of a reason why something is missing; the report has all of it."""
SIGNS = {words.MINUS: "-", words.NONE: "-", "▲": "^", "▼": "v", "…": "~", "∞": "inf"}
"""What stands for a sign where the terminal cannot show it."""


def terminal(report: Report, *, encoding: str | None = None) -> str:
    """Main figures of every model against the baseline, a block for each model; no line is longer than 80 columns.

    An arrow stands only where the interval excludes zero: up for better, also where lower is better. The form of the
    models' own answers follows the main figures, which alone the report's headline counts. Below stands what was not
    measured or not compared, and why.
    encoding: of the terminal (default: of standard output); signs that it lacks are replaced.
    """
    blocks: dict[tuple[str, str], list[list[str]]] = {}
    arrows: list[Difference] = []
    for metric in report.metrics:
        for difference in metric.differences if metric.primary else []:
            if words.verdict(metric, difference)[0] != "none":
                arrows.append(difference)
            blocks.setdefault((difference.model, difference.against), []).append(_row(metric, difference))
    form = _form(report)
    for metric, difference in form:
        if (difference.model, difference.against) in blocks:
            if words.verdict(metric, difference)[0] != "none":
                arrows.append(difference)
            blocks[difference.model, difference.against].append(_row(metric, difference))
    lines: list[str] = []
    for (model, against), rows in blocks.items():
        title = f"{_cut(model, 34)} against {_cut(against, 34)}"
        lines += ["", title, *_aligned([HEADS, *rows])]
    if not blocks:
        lines += ["", *_wrapped(_nothing(report))]
    if blocks and form:
        shown = {metric.metric for metric, _ in form}
        lines += ["", "; ".join(f"{name}: {what}" for name, what in OF_ANSWERS.items() if name in shown)]
    if arrows:
        lines += ["", "▲ better, ▼ worse: the interval of the difference excludes zero"]
    if any((each.p if each.p_holm is None else each.p_holm) > 0.05 for each in arrows):
        lines.append("where p, corrected for all tasks, is above 0.05 the test does not confirm it")
    if missing := [line for reason in _missing(report) for line in _wrapped(reason)]:
        lines += ["", *missing]
    return _shown("\n".join(lines[1:]), encoding or getattr(sys.stdout, "encoding", None) or "ascii")


def _form(report: Report) -> list[tuple[TaskMetric, Difference]]:
    """Of the answers to the held-out prompts: see `OF_ANSWERS`."""
    metrics = [each for each in report.metrics if each.task == CLOSENESS and each.metric in OF_ANSWERS]
    return [(metric, difference) for metric in metrics for difference in metric.differences]


def _nothing(report: Report) -> str:
    if len(report.models) == 1:
        return f"{report.models[0].name} is the only model, so nothing is compared"
    if not any(len(metric.scores) > 1 for metric in report.metrics if metric.primary):
        return "no two models were measured on the same task"
    return "no difference between models could be taken"


def _missing(report: Report) -> Iterator[str]:
    """What was not measured, then what was measured and not compared, with the reasons."""
    for model in report.models:
        tasks: dict[str, list[str]] = {}
        for task, why in model.not_measured.items():
            tasks.setdefault(why, []).append(task)
        for why, names in tasks.items():
            yield f"{model.name} was not measured on {', '.join(names)}: {why}"
    if len(report.models) < 2:
        return
    baseline = baseline_of(report.models).name
    for metric in report.metrics:
        alone = {score.model for score in metric.scores} - {each.model for each in metric.differences} - {baseline}
        if metric.primary and (alone or not metric.differences):
            yield from (f"{metric.task}: {note}" for note in metric.notes)


def _wrapped(text: str) -> list[str]:
    """Text in lines of at most WIDTH columns, all but the first indented; what LINES_MOST do not hold is cut off."""
    lines = [""]
    for word in one_line(text, LINES_MOST * WIDTH).split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and len(lines) < LINES_MOST and _columns(longer) > WIDTH - 2:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_cut(lines[0], WIDTH), *(f"  {_cut(line, WIDTH - 2)}" for line in lines[1:])]


def _row(metric: TaskMetric, difference: Difference) -> list[str]:
    before, after = (words.score_of(metric, name) for name in (difference.against, difference.model))
    arrow = {"good": "▲", "bad": "▼", "none": ""}[words.verdict(metric, difference)[0]]
    unit = "" if metric.unit in ("share", "points") else f", {metric.unit}"
    task = "" if metric.metric in OF_ANSWERS else f"{metric.task} "
    return [
        f"{task}{metric.metric}{unit}",
        words.count(metric.items),
        words.amount(before and before.value, metric.unit).replace(" %", "%"),
        words.amount(after and after.value, metric.unit).replace(" %", "%"),
        words.signed(difference.value, metric.unit),
        words.interval(difference.low, difference.high, metric.unit, sign=True),
        arrow,
        words.chance(difference.p if difference.p_holm is None else difference.p_holm),
    ]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Names to the left, figures to the right; names are cut to what the figures leave of the width."""
    wide = [max(_columns(row[place]) for row in rows) for place in range(len(HEADS))]
    wide[0] = max(8, min(wide[0], WIDTH - sum(wide[1:]) - sum(map(len, BETWEEN))))
    lines: list[str] = []
    for row in rows:
        name = _cut(row[0], wide[0])
        line = name + " " * (wide[0] - _columns(name))
        for between, cell, width in zip(BETWEEN, row[1:], wide[1:], strict=True):
            line += between + _right(cell, width)
        lines.append(line.rstrip())
    return lines


def _right(text: str, width: int) -> str:
    text = _cut(text, width)
    return " " * (width - _columns(text)) + text


def _cut(text: str, width: int) -> str:
    """Text on one line of at most `width` columns."""
    text = one_line(text, 200)
    if _columns(text) <= width:
        return text
    while text and _columns(text) > width - 1:
        text = text[:-1]
    return text + "…" if width else ""


def _columns(text: str) -> int:
    """How many columns a terminal gives to a line."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _shown(text: str, encoding: str) -> str:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        for sign, plain in SIGNS.items():
            text = text.replace(sign, plain)
        text = text.encode("ascii", "replace").decode("ascii")
    return text
