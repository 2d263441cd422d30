"""A report on data as one HTML file: everything that comes from a row or a model escaped (see page_kit)."""

from collections.abc import Iterable, Iterator

from ..evaluation.page_kit import (
    Plot,
    answer_text,
    document,
    escaped,
    glossary,
    notes,
    pictures,
    prompt_text,
    section,
    settings,
    table,
)
from . import report_tables as tables
from . import report_words as words
from .report_tables import Table
from .results import DataReport, ShownRow

SHOWN_MOST, MOST_OF_ALL_SHOWN = 20, 1_000_000
"""Rows that models saw, and characters of them after which no further one is added."""


def html(report: DataReport, plots: list[Plot]) -> str:
    """The whole page."""
    body = [
        *_tables([tables.found(report)]),
        *notes(report.notes),
        *pictures(plots, words.caption),
        *_examples(report),
        *_tables(tables.others(report)),
        *_shown(report),
        *glossary(words.glossary(report)),
        *settings(report.settings),
    ]
    return document(report.name, words.made_of(report), report.headline, body)


def _tables(found: Iterable[Table]) -> Iterator[str]:
    for each in found:
        yield from section(escaped(each.title), each.name)
        yield from table(each.title, each.columns, each.rows)
        yield "</section>\n"


def _examples(report: DataReport) -> Iterator[str]:
    found = list(tables.examples(report))
    if not found:
        return
    yield from section("Rows at fault", "examples")
    yield '<p class="soft">The first ones of each measure; findings.jsonl has every one.</p>'
    for each in found:
        yield f"<h3>{escaped(each.title)}</h3>\n"
        yield from table(each.title, each.columns, each.rows)
    yield "</section>\n"


# ---- rows that models saw ------------------------------------------------------------------------------------------


def _shown(report: DataReport) -> Iterator[str]:
    articles: list[str] = []
    size = 0
    for one in words.farthest_first(report.shown)[:SHOWN_MOST]:
        articles.append("".join(_row(one)))
        size += len(articles[-1])
        if size > MOST_OF_ALL_SHOWN:
            break
    if not articles:
        return
    number = f"{len(articles):,} of " if len(articles) < len(report.shown) else ""
    yield from section("Rows that models saw", "shown")
    yield f'<p class="soft">{number}{words.some(len(report.shown), "row")}, those first that the teacher agrees least '
    yield "with. samples.jsonl has every one.</p>"
    yield from articles
    yield "</section>\n"


def _row(one: ShownRow) -> Iterator[str]:
    yield f'<article><div class="head"><h4>{escaped(one.place)}</h4>'
    yield f'<span class="soft">{escaped(", ".join(words.figures_of(one)))}</span></div>'
    yield f'{prompt_text(one.prompt)}<div class="sides">'
    for name, text in (("stored", one.answer), ("new", one.new_answer)):
        if name == "stored" or text is not None:
            yield f"<div><h5>{'in the file' if name == 'stored' else 'the teacher now'}{_choice(one, name)}</h5>"
            yield f"{answer_text(text or '')}</div>"
    yield "</div>"
    yield from (f'<div class="cut anywhere">{escaped(note)}</div>' for note in one.notes)
    yield "</article>\n"


def _choice(one: ShownRow, name: str) -> str:
    """A mark at the answer that the judge finds better."""
    return ' <span class="mark good">better, says the judge</span>' if words.choice(one) == name else ""
