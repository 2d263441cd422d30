"""A report as one HTML file: everything that comes from a model or a task escaped (see page_kit)."""

from collections.abc import Iterator

from . import report_words as words
from .comparison import baseline_of
from .flips import Flip, Way
from .page_kit import (
    Cell,
    Column,
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
from .results import Difference, ModelInfo, Report, TaskMetric, Unit

MOST_OF_ALL_ITEMS = 2_000_000
"""Characters after which no further item is added: the page stays below 5 MB with its plots."""


def html(report: Report, ways: list[Way], plots: list[Plot]) -> str:
    """The whole page. ways: the items that it shows."""
    body = [
        *_verdicts(report),
        *notes(words.notes(report)),
        *pictures(plots, words.caption),
        *_models(report),
        *_items(report, ways),
        *_figures(report),
        *_tasks(report),
        *glossary(words.GLOSSARY),
        *settings(report.settings, _identities(report)),
    ]
    return document(report.name, words.made_of(report), report.headline, body)


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
    yield from section("Differences from the baseline", "verdicts")
    if not rows:
        yield '<p class="soft">No two models were measured on the same task.</p></section>\n'
        return
    yield from table("Differences from the baseline", columns, rows)
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
    yield from section("Every figure", "figures", folded=f"{len(rows):,} rows")
    yield from table("Every figure", columns, rows)
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
    yield from section("Models and what they cost", "models")
    yield from table("Models", columns, [_model(model, trained) for model in report.models])
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
    yield from section("Tasks", "tasks")
    yield from table("Tasks", columns, rows)
    yield "</section>\n"


# ---- items ---------------------------------------------------------------------------------------------------------


def _items(report: Report, ways: list[Way]) -> Iterator[str]:
    ways = [way for way in ways if way.of]
    if not ways:
        return
    baseline = baseline_of(report.models).name
    teacher = next((model.name for model in report.models if model.role == "teacher"), None)
    models = list(dict.fromkeys(way.model for way in ways))
    tasks = list(dict.fromkeys(flip.sample.task for way in ways for flip in way.shown))
    yield from section("Items that changed", "items")
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
    yield f'{prompt_text(sample.prompt)}<div class="sides">'
    for name, score, kind in zip((baseline, way.model), scores, kinds, strict=True):
        mark = f'<span class="mark {kind}">{escaped(_mark(score, scores))}</span>'
        yield f"<div><h5>{escaped(name)} {mark}</h5>{answer_text(sample.answers.get(name))}</div>"
    yield f"<div><h5>reference</h5>{answer_text(sample.reference)}</div>"
    if teacher and teacher != way.model and teacher in sample.answers:
        yield f"<div><h5>{escaped(teacher)}</h5>{answer_text(sample.answers[teacher])}</div>"
    yield "</div></article>\n"


def _mark(score: float, both: tuple[float, float]) -> str:
    """right and wrong where both scores are 0 or 1, else the score."""
    if all(value in (0, 1) for value in both):
        return "right" if score else "wrong"
    return f"{score:.3g}".replace("-", words.MINUS)


def _identities(report: Report) -> Iterator[tuple[str, str]]:
    """What tells each model from another of the same name."""
    for model in report.models:
        tokenizer, template = model.tokenizer or "none", model.chat_template or "none"
        yield model.name, f"identity {model.identity}, tokenizer {tokenizer}, chat template {template}"
