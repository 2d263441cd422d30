"""A report as GitHub Markdown: everything that the page has, but for the items."""

import html
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

import orjson

from ..data.text import printable, without_surrogates
from . import report_words as words
from .results import Report

SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#&@])")
AT_THE_START = re.compile(r"^(\d+)?([.)+=-])")


def markdown(report: Report) -> str:
    """The whole text. Plots are linked from plots/, for light and dark pages."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# {_paragraph(report.name)}"
    yield f"\n{_paragraph(words.made_of(report))}"
    yield ""
    yield from (f"- {_paragraph(line)}" for line in report.headline)
    yield "\n## Differences from the baseline\n"
    yield from _verdicts(report)
    if noted := list(words.notes(report)):
        yield "\n## Notes\n"
        yield from (f"- {_paragraph(note)}" for note in noted)
    plots = [name for name in report.plots if not name.endswith(".dark.png")]
    if plots:
        yield "\n## Plots"
    for name in plots:
        light, dark = (quote(each) for each in (name, name.removesuffix(".png") + ".dark.png"))
        about = words.caption(name)
        yield f"\n{_paragraph(about)}\n\n<picture>"
        yield f'<source media="(prefers-color-scheme: dark)" srcset="plots/{dark}">'
        yield f'<img alt="{html.escape(printable(about))}" src="plots/{light}">\n</picture>'
    yield "\n## Models\n"
    yield from _models(report)
    yield "\n## Tasks\n"
    yield from _table(
        ["Task", "Suite", "Version", "!Items", "Prompts", "About"],
        (
            [
                task.name,
                task.suite or words.NONE,
                task.version,
                words.items_of(task),
                words.prompted(task),
                task.about,
            ]
            for task in report.tasks
        ),
    )
    yield "\n## Every figure\n"
    yield from _figures(report)
    yield "\n## How to read it\n"
    for term, explanation, source in words.GLOSSARY:
        yield f"- **{term}.** {_text(explanation)}{f' ({_text(source)})' if source else ''}"
    yield "\n<details>\n<summary>Settings</summary>\n"
    settings = orjson.dumps(
        without_surrogates(report.settings), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str
    )
    text = printable(settings.decode())
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    yield f"{fence}json\n{text}\n{fence}\n\n</details>"


def _verdicts(report: Report) -> Iterable[str]:
    gaps = any(metric.gaps for metric in report.metrics)
    heads = ["Task", "!Items", "Model", "!Baseline", "!Score", "!Difference", "!p, after Holm", "!Detectable"]
    rows: list[list[str]] = []
    for metric, difference in words.compared(report):
        before, after = (words.score_of(metric, name) for name in (difference.against, difference.model))
        ends = words.interval(difference.low, difference.high, metric.unit, sign=True)
        rows.append(
            [
                f"{metric.task}, {words.metric_name(metric)}",
                words.count(metric.items),
                difference.model,
                words.amount(before and before.value, metric.unit),
                words.amount(after and after.value, metric.unit),
                f"{words.signed(difference.value, metric.unit)} {ends}",
                words.chance(difference.p if difference.p_holm is None else difference.p_holm),
                words.signed(difference.detectable, metric.unit).lstrip("+"),
                *([words.recovered(words.gap_of(metric, difference.model))[0]] if gaps else []),
                words.verdict(metric, difference)[1],
            ]
        )
    return _table([*heads, *(["!Gap recovered"] if gaps else []), "Verdict"], rows)


def _models(report: Report) -> Iterable[str]:
    heads = ["Model", "Path", "!Weights", "Backend", "!Answering", "!Requests", "!Tokens written", "!Cost"]
    heads += ["!Training steps", "!Training", "!Tokens trained on", "!Teacher data"]
    rows: list[list[str]] = []
    for model in report.models:
        role, training = words.role(model), model.training
        rows.append(
            [
                f"{model.name} ({role})" if role else model.name,
                model.path,
                words.size(model.parameters),
                words.backend(model),
                words.seconds(model.seconds),
                words.requests(model),
                words.count(model.tokens),
                words.dollars(model.usd),
                words.count(training and training.steps),
                words.seconds(training and training.seconds),
                words.count(training and training.tokens),
                words.dollars(training and training.usd),
            ]
        )
    return _table(heads, rows)


def _figures(report: Report) -> Iterable[str]:
    heads = ["Task", "Metric", "Model", "!Score", "!95 % interval", "!Difference", "!95 % interval", "!p"]
    rows: list[list[str]] = []
    for metric in report.metrics:
        by_model = {difference.model: difference for difference in metric.differences}
        for score in metric.scores:
            difference = by_model.get(score.model)
            rows.append(
                [
                    metric.task,
                    words.metric_name(metric),
                    score.model,
                    words.amount(score.value, metric.unit),
                    words.interval(score.low, score.high, metric.unit),
                    words.signed(difference.value, metric.unit) if difference else "",
                    words.interval(difference.low, difference.high, metric.unit, sign=True) if difference else "",
                    f"{words.chance(difference.p)} ({difference.test})" if difference else "",
                ]
            )
    return _table(heads, rows)


def _table(heads: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Lines of a table. A head that begins with ! is that of a column of figures, which hold no text of others."""
    yield f"| {' | '.join(head.lstrip('!') for head in heads)} |"
    yield f"| {' | '.join('--:' if head.startswith('!') else '---' for head in heads)} |"
    for row in rows:
        cells = (cell if head.startswith("!") else _text(cell) for head, cell in zip(heads, row, strict=True))
        yield f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """Text that is nothing but text, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))


def _paragraph(text: str) -> str:
    """The same where a line begins: 1. and - would make it a list."""
    return AT_THE_START.sub(r"\1\\\2", _text(text))
