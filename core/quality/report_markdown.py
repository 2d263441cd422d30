"""A report on data as GitHub Markdown: everything that the page has, but for the rows that models saw."""

from collections.abc import Iterator

from ..evaluation import markdown_kit as kit
from ..evaluation.page_kit import Cell
from . import report_tables as tables
from . import report_words as words
from .results import DataReport


def markdown(report: DataReport) -> str:
    """The whole text. Plots are linked from plots/, for light and dark pages."""
    return kit.document(report.name, words.made_of(report), report.headline, _body(report))


def _body(report: DataReport) -> Iterator[str]:
    yield from _section(tables.found(report))
    yield from kit.notes(report.notes)
    yield from kit.plots(report.plots, words.caption)
    if report.examples:
        yield "\n## Rows at fault"
        for each in tables.examples(report):
            yield from _section(each, "###")
    for each in tables.others(report):
        yield from _section(each)
    if report.shown:
        yield f"\n{words.some(len(report.shown), 'row')} that models saw: report.html, samples.jsonl."
    yield from kit.glossary(words.glossary(report))
    yield from kit.settings(report.settings)


def _section(shown: tables.Table, level: str = "##") -> Iterator[str]:
    yield f"\n{level} {kit.text(shown.title)}\n"
    yield from kit.table(shown.columns, ([_on_one_line(cell) for cell in row] for row in shown.rows))


def _on_one_line(cell: Cell) -> str:
    """A figure and its interval, a name and what it is."""
    return f"{cell.text} ({cell.below})" if cell.below else cell.text
