"""The closing table of an evaluation, for a terminal of 80 columns."""

import sys
import unicodedata

from ..data.text import one_line
from . import report_words as words
from .results import Difference, Report, TaskMetric

WIDTH = 80
HEADS = ["", "items", "base", "model", "diff.", "95 % interval", "", "p"]
BETWEEN = ["  ", "  ", "  ", "  ", "  ", " ", "  "]
SIGNS = {words.MINUS: "-", words.NONE: "-", "▲": "^", "▼": "v", "…": "~", "∞": "inf"}
"""What stands for a sign where the terminal cannot show it."""


def terminal(report: Report, *, encoding: str | None = None) -> str:
    """Main figures of every model against the baseline, a block for each model; no line is longer than 80 columns.

    An arrow stands only where the interval excludes zero: up for better, also where lower is better.
    encoding: of the terminal (default: of standard output); signs that it lacks are replaced.
    """
    blocks: dict[tuple[str, str], list[list[str]]] = {}
    found = False
    for metric in report.metrics:
        for difference in metric.differences if metric.primary else []:
            found = found or difference.found
            blocks.setdefault((difference.model, difference.against), []).append(_row(metric, difference))
    lines: list[str] = []
    for (model, against), rows in blocks.items():
        title = f"{_cut(model, 34)} against {_cut(against, 34)}"
        lines += ["", title, *_aligned([HEADS, *rows])]
    if found:
        lines += ["", "▲ better, ▼ worse: the interval of the difference excludes zero"]
    return _shown(
        "\n".join(lines[1:] or ["no two models were measured on the same task"]),
        encoding or getattr(sys.stdout, "encoding", None) or "ascii",
    )


def _row(metric: TaskMetric, difference: Difference) -> list[str]:
    before, after = (words.score_of(metric, name) for name in (difference.against, difference.model))
    arrow = {"good": "▲", "bad": "▼", "none": ""}[words.verdict(metric, difference)[0]]
    unit = "" if metric.unit in ("share", "points") else f", {metric.unit}"
    return [
        f"{metric.task} {metric.metric}{unit}",
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
