"""A report as one HTML file: no network, no foreign script, everything that comes from a model or a task escaped.

The page's own style and script are the only ones that its Content-Security-Policy lets run, by their hashes; pictures
are inside the file.
"""

import base64
import hashlib
import html as markup
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from ..data.text import printable, without_surrogates
from . import report_words as words
from .comparison import baseline_of
from .flips import Flip, Way
from .results import Difference, ModelInfo, Report, TaskMetric, Unit

MOST_OF_A_TEXT = 3_000
"""Characters of a prompt or an answer; samples.jsonl has all of it."""
MOST_UNBROKEN = 24
"""Characters of a word in a table."""
MOST_OF_ALL_ITEMS = 2_000_000
"""Characters after which no further item is added: the page stays below 5 MB with its plots."""


@dataclass(frozen=True)
class Cell:
    """text, and a second line below it, both not yet escaped.   by: what the column is sorted by, if not the text."""

    text: str
    below: str = ""
    by: float | str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Column:
    """number: to the right, and sorted as a number."""

    name: str
    number: bool = False


def html(report: Report, ways: list[Way], plots: list[tuple[str, str, str | None]]) -> str:
    """The whole page. ways: the items that it shows.   plots: (file name, data URI, data URI for dark pages)."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    name = escaped(report.name)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n',
        f"<title>{name}</title>\n<style>{style}</style>\n</head>\n<body>\n",
        f'<header class="wrap"><h1>{name}</h1><p class="soft">{escaped(words.made_of(report))}</p>',
        *_headline(report),
        '</header>\n<main class="wrap">\n',
        *_verdicts(report),
        *_notes(report),
        *_plots(plots),
        *_models(report),
        *_items(report, ways),
        *_figures(report),
        *_tasks(report),
        *_glossary(),
        *_settings(report),
        f"</main>\n<script>{script}</script>\n</body>\n</html>\n",
    ]
    return "".join(parts)


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def escaped(text: str) -> str:
    """Text that is nothing but text, in an element or in a quoted attribute."""
    return markup.escape(printable(text.replace("\r\n", "\n")), quote=True)


def _headline(report: Report) -> Iterator[str]:
    yield '<ul class="headline">'
    yield from (f"<li>{escaped(line)}</li>" for line in report.headline)
    yield "</ul>"


# ---- tables --------------------------------------------------------------------------------------------------------


def _verdicts(report: Report) -> Iterator[str]:
    pairs = words.compared(report)
    against = dict.fromkeys(difference.model for _, difference in pairs)
    one = next(iter(against)) if len(against) == 1 else None
    gaps = any(metric.gaps for metric, _ in pairs)
    columns = [Column("task"), Column("items", True), *([] if one else [Column("model")])]
    columns += [Column("baseline", True), Column(one or "score", True), Column("difference", True), Column("verdict")]
    columns += [Column("p, after Holm", True), Column("detectable", True), *([Column("gap recovered", True)] * gaps)]
    rows = [_verdict(metric, difference, one is None, gaps) for metric, difference in pairs]
    yield from _section("Differences from the baseline", "verdicts")
    if not rows:
        yield '<p class="soft">No two models were measured on the same task.</p></section>\n'
        return
    yield from _table("Differences from the baseline", columns, rows)
    yield "</section>\n"


def _verdict(metric: TaskMetric, difference: Difference, model: bool, gaps: bool) -> list[Cell]:
    unit = metric.unit
    kind, word = words.verdict(metric, difference)
    p = difference.p if difference.p_holm is None else difference.p_holm
    below = f"{difference.clusters:,} clusters" if difference.clusters else ""
    row = [Cell(metric.task, words.metric_name(metric)), Cell(words.count(metric.items), below, metric.items)]
    if model:
        row.append(Cell(difference.model))
    for name in (difference.against, difference.model):
        score = words.score_of(metric, name)
        value = score and score.value
        row.append(Cell(words.amount(value, unit), "", _shown(value, unit)))
    row += [
        Cell(
            words.signed(difference.value, unit),
            words.interval(difference.low, difference.high, unit, sign=True),
            _shown(difference.value, unit),
        ),
        Cell(word, kind=kind),
        Cell(words.chance(p), "", p),
        Cell(words.amount(difference.detectable, unit).removesuffix(" %"), "", _shown(difference.detectable, unit)),
    ]
    if gaps:
        gap = words.gap_of(metric, difference.model)
        share, ends = words.recovered(gap)
        row.append(Cell(share, ends, gap and gap.value))
    return row


def _shown(value: float | None, unit: Unit) -> float | None:
    """What a cell shows as a number, so that a column of several units is sorted as it is read."""
    return 100 * value if value is not None and unit == "share" else value


def _figures(report: Report) -> Iterator[str]:
    columns = [Column("task"), Column("metric"), Column("model"), Column("score", True), Column("difference", True)]
    columns += [Column("won, lost, tied", True), Column("correlation", True), Column("p", True)]
    rows: list[list[Cell]] = []
    for metric in report.metrics:
        differences = {difference.model: difference for difference in metric.differences}
        for score in metric.scores:
            row = [Cell(metric.task), Cell(words.metric_name(metric)), Cell(score.model)]
            ends = words.interval(score.low, score.high, metric.unit)
            row.append(Cell(words.amount(score.value, metric.unit), ends, _shown(score.value, metric.unit)))
            difference = differences.get(score.model)
            rows.append([*row, *(_change(metric, difference) if difference else [Cell("")] * 4)])
    yield from _section("Every figure", "figures", folded=f"{len(rows):,} rows")
    yield from _table("Every figure", columns, rows)
    yield "</details></section>\n"


def _change(metric: TaskMetric, difference: Difference) -> list[Cell]:
    ends = words.interval(difference.low, difference.high, metric.unit, sign=True)
    together = difference.correlation
    return [
        Cell(words.signed(difference.value, metric.unit), ends, _shown(difference.value, metric.unit)),
        Cell(words.NONE)
        if metric.higher_is_better is None
        else Cell(f"{difference.wins:,}, {difference.losses:,}, {difference.ties:,}", "", difference.wins),
        Cell(words.NONE if together is None else f"{together:.2f}".replace("-", words.MINUS), "", together),
        Cell(words.chance(difference.p), difference.test, difference.p),
    ]


def _models(report: Report) -> Iterator[str]:
    columns = [Column("model"), Column("weights", True), Column("answering", True), Column("requests", True)]
    columns += [Column("tokens written", True), Column("cost", True)]
    trained = any(model.training for model in report.models)
    if trained:
        columns += [Column("training", True), Column("tokens trained on", True), Column("teacher data", True)]
    yield from _section("Models and what they cost", "models")
    yield from _table("Models", columns, [_model(model, trained) for model in report.models])
    yield "</section>\n"


def _model(model: ModelInfo, trained: bool) -> list[Cell]:
    below = ", ".join(part for part in (words.role(model), model.path, words.backend(model)) if part)
    cached = f"{model.cached:,} from the cache" if model.cached else ""
    row = [
        Cell(model.name, below),
        Cell(words.size(model.parameters), "", model.parameters),
        Cell(words.seconds(model.seconds), "", model.seconds),
        Cell(words.count(model.requests), cached, model.requests),
        Cell(words.count(model.tokens), "", model.tokens),
        Cell(words.dollars(model.usd), "", model.usd),
    ]
    if trained:
        cost = model.training
        steps = f"{cost.steps:,} steps" if cost and cost.steps is not None else ""
        row += [
            Cell(words.seconds(cost and cost.seconds), steps, cost and cost.seconds),
            Cell(words.count(cost and cost.tokens), "", cost and cost.tokens),
            Cell(words.dollars(cost and cost.usd), "", cost and cost.usd),
        ]
    return row


def _tasks(report: Report) -> Iterator[str]:
    columns = [Column("task"), Column("suite"), Column("version"), Column("items", True), Column("prompts")]
    rows = [
        [
            Cell(task.name, task.about),
            Cell(task.suite or words.NONE, by=task.suite or ""),
            Cell(task.version),
            Cell(words.items_of(task), "", task.items),
            Cell(words.prompted(task)),
        ]
        for task in report.tasks
    ]
    yield from _section("Tasks", "tasks")
    yield from _table("Tasks", columns, rows)
    yield "</section>\n"


def _table(label: str, columns: list[Column], rows: Iterable[list[Cell]]) -> Iterator[str]:
    """A table that the script sorts: `data-by` of a cell, or else its text."""
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(label)}"><table><thead><tr>'
    for column in columns:
        number = ' class="number"' if column.number else ""
        yield f'<th scope="col"{number}><button type="button">{escaped(column.name)}</button></th>'
    yield "</tr></thead><tbody>\n"
    for row in rows:
        yield "<tr>"
        yield from (_cell(cell, column) for cell, column in zip(row, columns, strict=True))
        yield "</tr>\n"
    yield "</tbody></table></div>\n"


def _cell(cell: Cell, column: Column) -> str:
    by = cell.by if cell.by is not None or column.number else cell.text
    if isinstance(by, float) and math.isnan(by):
        by = None
    write = escaped if column.number else _breakable
    text = f'<span class="mark {cell.kind}">{escaped(cell.text)}</span>' if cell.kind else write(cell.text)
    below = f"<small>{write(cell.below)}</small>" if cell.below else ""
    number = ' class="number"' if column.number else ""
    return f'<td{number} data-by="{"" if by is None else escaped(str(by))}">{text}{below}</td>'


def _breakable(text: str) -> str:
    """Text in which a line may break behind _ and /, and anywhere only where a part is very long."""
    shown = escaped(text).replace("_", "_<wbr>").replace("/", "/<wbr>")
    longest = max(map(len, re.split(r"[\s_/]", text)))
    return shown if longest <= MOST_UNBROKEN else f'<span class="anywhere">{shown}</span>'


# ---- items ---------------------------------------------------------------------------------------------------------


def _items(report: Report, ways: list[Way]) -> Iterator[str]:
    ways = [way for way in ways if way.of]
    if not ways:
        return
    baseline = baseline_of(report.models).name
    teacher = next((model.name for model in report.models if model.role == "teacher"), None)
    models = list(dict.fromkeys(way.model for way in ways))
    tasks = list(dict.fromkeys(flip.sample.task for way in ways for flip in way.shown))
    yield from _section("Items that changed", "items")
    yield (
        "<p class=\"soft\">Where the answers differ most from the baseline's by the task's main figure, the tasks in "
        "turn; among equals by chance. samples.jsonl has every item.</p>"
    )
    yield '<div class="bar" id="tools" hidden>'
    yield _choice("model", [(name, name) for name in models]) if len(models) > 1 else ""
    yield _choice("task", [("", "all tasks"), *((name, name) for name in tasks)]) if len(tasks) > 1 else ""
    yield _choice("way", [("", "both ways"), ("better", "better"), ("worse", "worse")])
    yield '<output id="found" aria-live="polite"></output></div>\n'
    for way in ways:
        yield from _way(way, baseline, teacher, MOST_OF_ALL_ITEMS // len(ways))
    yield "</section>\n"


def _choice(name: str, options: list[tuple[str, str]]) -> str:
    listed = "".join(f'<option value="{escaped(value)}">{escaped(text)}</option>' for value, text in options)
    return f'<label>{name} <select id="by-{name}" autocomplete="off">{listed}</select></label>'


def _way(way: Way, baseline: str, teacher: str | None, room: int) -> Iterator[str]:
    word = "better" if way.better else "worse"
    articles: list[str] = []
    size = 0
    for flip in way.shown:
        articles.append("".join(_item(flip, way, baseline, teacher)))
        size += len(articles[-1])
        if size > room:
            break
    number = f"{len(articles):,} of {way.of:,}" if len(articles) < way.of else f"{way.of:,}"
    yield f'<div class="way" data-model="{escaped(way.model)}" data-way="{word}">'
    yield f"<h3>{escaped(way.model)} {word} than {escaped(baseline)} <small>{number}</small></h3>\n"
    yield from articles
    yield "</div>\n"


def _item(flip: Flip, way: Way, baseline: str, teacher: str | None) -> Iterator[str]:
    sample, better = flip.sample, way.better
    kinds = ("bad", "good") if better else ("good", "bad")
    scores = (flip.before, flip.after)
    yield f'<article data-task="{escaped(sample.task)}"><div class="head"><h4>{escaped(sample.task)} '
    yield f'<span class="soft">{escaped(sample.key)}</span></h4>'
    yield f'<span class="soft">{escaped(flip.metric)}</span></div>'
    yield f'<div class="text prompt">{_tail(sample.prompt)}</div><div class="sides">'
    for name, score, kind in zip((baseline, way.model), scores, kinds, strict=True):
        mark = f'<span class="mark {kind}">{escaped(_mark(score, scores))}</span>'
        yield f"<div><h5>{escaped(name)} {mark}</h5>{_said(sample.answers.get(name))}</div>"
    yield f"<div><h5>reference</h5>{_said(sample.reference)}</div>"
    if teacher and teacher != way.model and teacher in sample.answers:
        yield f"<div><h5>{escaped(teacher)}</h5>{_said(sample.answers[teacher])}</div>"
    yield "</div></article>\n"


def _mark(score: float, both: tuple[float, float]) -> str:
    """right and wrong where both scores are 0 or 1, else the score."""
    if all(value in (0, 1) for value in both):
        return "right" if score else "wrong"
    return f"{score:.3g}".replace("-", words.MINUS)


def _said(text: str | None) -> str:
    """A text, its end cut off where it is long."""
    if not text:
        return f'<div class="text none">{"not answered" if text is None else "empty"}</div>'
    left = len(text) - MOST_OF_A_TEXT
    note = f'<div class="cut">… {left:,} more characters, which samples.jsonl has</div>' if left > 0 else ""
    return f'<div class="text">{escaped(text[:MOST_OF_A_TEXT])}</div>{note}'


def _tail(prompt: str) -> str:
    """A prompt, its beginning cut off where it is long: the question stands at its end, after examples."""
    left = len(prompt) - MOST_OF_A_TEXT
    note = f'<div class="cut">{left:,} characters before, which samples.jsonl has …</div>' if left > 0 else ""
    return note + escaped(prompt[-MOST_OF_A_TEXT:])


# ---- the rest ------------------------------------------------------------------------------------------------------


def _section(title: str, name: str, folded: str = "") -> Iterator[str]:
    """Opens a section; with `folded` also a fold, which the caller closes."""
    yield f'<section id="{name}">'
    if folded:
        yield f'<details><summary><h2>{title}</h2><span class="soft">{escaped(folded)}</span></summary>'
    else:
        yield f"<h2>{title}</h2>"


def _notes(report: Report) -> Iterator[str]:
    lines = [f"<li>{escaped(note)}</li>" for note in words.notes(report)]
    if lines:
        yield from _section("Notes", "notes")
        yield from ("<ul>", *lines, "</ul></section>\n")


def _plots(plots: list[tuple[str, str, str | None]]) -> Iterator[str]:
    if not plots:
        return
    yield from _section("Plots", "plots")
    for name, light, dark in plots:
        about = escaped(words.caption(name))
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">' if dark else ""
        yield f"<figure><picture>{source}"
        yield f'<img src="{light}" alt="{about}"></picture></figure>\n'
    yield "</section>\n"


def _glossary() -> Iterator[str]:
    yield from _section("How to read it", "glossary")
    yield "<dl>"
    for term, explanation, source in words.GLOSSARY:
        cited = f' <span class="soft">{escaped(source)}</span>' if source else ""
        yield f"<dt>{escaped(term)}</dt><dd>{escaped(explanation)}{cited}</dd>"
    yield "</dl></section>\n"


def _settings(report: Report) -> Iterator[str]:
    yield from _section("Settings", "settings", folded=f"{len(report.settings):,} options and versions")
    yield "<dl>"
    for key, value in report.settings.items():
        text = value if isinstance(value, str) else _as_json(value)
        yield f"<dt>{escaped(str(key))}</dt><dd>{escaped(text)}</dd>"
    for model in report.models:
        yield f"<dt>{escaped(model.name)}</dt><dd>identity {escaped(model.identity)}, "
        yield f"tokenizer {escaped(model.tokenizer or 'none')}, "
        yield f"chat template {escaped(model.chat_template or 'none')}</dd>"
    yield "</dl></details></section>\n"


def _as_json(value: object) -> str:
    return orjson.dumps(without_surrogates(value), option=orjson.OPT_NON_STR_KEYS, default=str).decode()
