"""The tables of a report on data, described once for the page and for Markdown; empty ones are left out."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..data.text import one_line
from ..evaluation.page_kit import Cell, Column
from ..evaluation.report_words import NONE, count, dollars
from . import report_words as words
from .results import DataReport, Example, Model

VALUES_MOST = 30
"""Of one key."""
LONGEST = 300
"""Characters of a cell that holds what a row says."""


@dataclass(frozen=True)
class Table:
    """name: of the section, in one word.   title: above it."""

    name: str
    title: str
    columns: list[Column]
    rows: list[list[Cell]]


def found(report: DataReport) -> Table:
    """Every figure with its threshold and verdict."""
    columns = [Column("measure"), Column("value", True), Column("rows", True), Column("wanted", True)]
    rows: list[list[Cell]] = []
    for one in report.measured:
        kind, word, doubt = words.verdict(one)
        rows.append(
            [
                Cell(one.name, words.about(one.name)),
                Cell(words.share(one.value), words.between(one.low, one.high), 100 * one.value),
                Cell(f"{one.of:,}", "", one.of)
                if one.count is None
                else Cell(f"{one.count:,}", f"of {one.of:,}", one.count),
                Cell(words.wanted(one), "", one.bound and 100 * one.bound[1]),
                Cell(word, doubt, kind=kind),
            ]
        )
    return Table("measures", "What was found", [*columns, Column("verdict")], rows)


def examples(report: DataReport) -> Iterator[Table]:
    """Rows at fault: a table for each measure."""
    for name, rows in report.examples.items():
        like = any(one.like is not None for one in rows)
        columns = [Column("row"), Column("why"), *([Column("like")] if like else []), Column("text")]
        yield Table(name, _of_all(report, name, len(rows)), columns, [_example(one, like) for one in rows])


def _of_all(report: DataReport, name: str, rows: int) -> str:
    """near_duplicate: 5 of 83 rows."""
    of = next((one.count for one in report.measured if one.name == name), None)
    return f"{name}: {rows:,} of {words.some(of, 'row')}" if of is not None and of > rows else name


def _example(one: Example, like: bool) -> list[Cell]:
    return [
        Cell(one_line(one.place)),
        Cell(one_line(one.why, LONGEST)),
        *([Cell(one_line(one.like or NONE))] if like else []),
        Cell(one_line(one.text, LONGEST)),
    ]


def others(report: DataReport) -> list[Table]:
    """What else there is to know, but for the rows that models saw."""
    every = (_learning, _contamination, _lengths, _made_of, _variety, _models)
    return [table for make in every if (table := make(report)).rows]


def _learning(report: DataReport) -> Table:
    rows = [
        [
            Cell(one.name, words.LEARNING.get(one.name, "")),
            Cell(words.nats(one.value), " to ".join(map(words.nats, (one.low, one.high))), one.value),
            Cell(f"{one.of:,}", "", one.of),
        ]
        for one in report.learnability
    ]
    columns = [Column("figure"), Column("nats", True), Column("rows", True)]
    return Table("learnability", "What there is to learn", columns, rows)


def _contamination(report: DataReport) -> Table:
    rows: list[list[Cell]] = []
    for source, (items, hits) in report.contamination.items():
        part, ends = words.in_data(items, hits)
        rows.append(
            [
                Cell(source),
                Cell(f"{items:,}", "", items),
                Cell(f"{hits:,}", "", hits),
                Cell(part, ends, 100 * hits / items if items else None),
            ]
        )
    columns = [Column("task or file"), Column("items", True), Column("in the data", True), Column("share", True)]
    return Table("contamination", "Items of tasks in the data", columns, rows)


def _lengths(report: DataReport) -> Table:
    rows = [
        [
            Cell(each.what, each.unit),
            *(Cell(words.quantile(each, name), "", each.quantiles.get(name)) for name in words.QUANTILES),
        ]
        for each in report.lengths
    ]
    columns = [Column("length of"), *(Column(name.replace("%", " %"), True) for name in words.QUANTILES)]
    return Table("lengths", "Lengths", columns, rows)


def _made_of(report: DataReport) -> Table:
    rows: list[list[Cell]] = []
    for key, values in words.rows_made_of(report).items():
        first, more = words.shares_of(values, report.rows, VALUES_MOST)
        if more:
            left = sum(values.values()) - sum(number for _, number, _ in first)
            first.append((f"{more:,} more", left, left / report.rows if report.rows else 0.0))
        rows += [
            [
                Cell(one_line(key)),
                Cell(one_line(name)),
                Cell(f"{number:,}", "", number),
                Cell(words.share(part), "", part),
            ]
            for name, number, part in first
        ]
    columns = [Column("key"), Column("value"), Column("rows", True), Column("share", True)]
    return Table("balance", "What the rows are made of", columns, rows)


def _variety(report: DataReport) -> Table:
    rows = [[Cell(name), Cell(f"{value:.3f}", "", value)] for name, value in report.distinct.items()]
    return Table("variety", "Variety", [Column("of"), Column("different, as a share of all", True)], rows)


def _models(report: DataReport) -> Table:
    columns = [Column("model"), Column("requests", True), Column("cost", True)]
    return Table("models", "Models and what they cost", columns, [_model(model) for model in report.models])


def _model(model: Model) -> list[Cell]:
    cached = f"{model.cached:,} from the folder" if model.cached else ""
    return [
        Cell(model.name, ", ".join(part for part in (model.role, model.backend) if part)),
        Cell(count(model.requests), cached, model.requests),
        Cell(dollars(model.usd), "", model.usd),
    ]
