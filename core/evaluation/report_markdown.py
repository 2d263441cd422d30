"""A report as GitHub Markdown: everything that the page has, but for the items."""

from collections.abc import Iterable, Iterator

from . import markdown_kit as kit
from . import report_words as words
from .page_kit import Column
from .results import Report


def markdown(report: Report) -> str:
    """The whole text. Plots are linked from plots/, for light and dark pages."""
    return kit.document(report.name, words.made_of(report), report.headline, _body(report))


def _body(report: Report) -> Iterator[str]:
    yield "\n## Differences from the baseline\n"
    yield from _verdicts(report)
    yield from kit.notes(list(words.notes(report)))
    yield from kit.plots([name for name in report.plots if not name.endswith(".dark.png")], words.caption)
    yield "\n## Models\n"
    yield from _models(report)
    yield "\n## Tasks\n"
    yield from _tasks(report)
    yield "\n## Every figure\n"
    yield from _figures(report)
    yield from kit.glossary(words.GLOSSARY)
    yield from kit.settings(report.settings)


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
    return kit.table(_columns(*heads, *(["!Gap recovered"] if gaps else []), "Verdict"), rows)


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
    return kit.table(_columns(*heads), rows)


def _tasks(report: Report) -> Iterable[str]:
    heads = ["Task", "Suite", "Version", "!Items", "Prompts", "About"]
    rows = [
        [task.name, task.suite or words.NONE, task.version, words.items_of(task), words.prompted(task), task.about]
        for task in report.tasks
    ]
    return kit.table(_columns(*heads), rows)


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
    return kit.table(_columns(*heads), rows)


def _columns(*heads: str) -> list[Column]:
    """A head that begins with ! is that of a column of figures."""
    return [Column(head.lstrip("!"), head.startswith("!")) for head in heads]
