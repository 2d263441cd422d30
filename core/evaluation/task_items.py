"""What lm-eval says of one model on one task, as items: a score for each question and metric, and words for people."""

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .answers import broken
from .results import Answered, Metric, Question, Scored, Unit

PASSAGES = ("passage", "context", "article", "story", "paragraph")
"""Fields that several questions may share."""
Parts = Callable[[Any], tuple[float, float]]
"""A metric's value of an item -> (total, count)."""


def answered_of(model: str, task: Any, results: dict[str, Any]) -> tuple[Answered, int]:
    """The items of one task, and how many of them the model could not be measured on (NaN).

    results: of lm_eval.evaluator.evaluate with log_samples.   task: the lm-eval task of the same call.
    """
    name = task.task_name
    by_filter: dict[str, dict[int, dict[str, Any]]] = {}
    for row in results["samples"][name]:
        by_filter.setdefault(row["filter"], {})[row["doc_id"]] = row
    first = next(iter(by_filter.values()))
    order = sorted(first)
    bad = {doc_id for doc_id in order if any(broken(each) for resps in first[doc_id]["resps"] for each in resps)}

    scored: list[Scored] = []
    values_only: dict[str, float] = {}
    for filter_name, rows in by_filter.items():
        for metric in dict.fromkeys(name for row in rows.values() for name in row["metrics"]):
            label = metric if filter_name == "none" else f"{metric},{filter_name}"
            parts, unit = _reduction(task, metric)
            if parts is None:
                value = results["results"][name].get(f"{metric},{filter_name}")
                if not bad and isinstance(value, int | float):
                    values_only[label] = float(value)
                continue
            pairs = [(math.nan, 1.0) if one in bad else _pair(rows[one], metric, parts) for one in order]
            totals, counts = [total for total, _ in pairs], [count for _, count in pairs]
            if unit == "share" and any(not 0 <= each <= 1 for each in totals if not math.isnan(each)):
                unit = "points"
            better = bool(task.higher_is_better().get(metric, True))
            ratio = unit == "bits" or any(count != 1 for count in counts)
            scored.append(Scored(Metric(label, better, unit), totals, counts if ratio else None))
    scored = _with_primary(task, scored)
    primary = next((each.metric.name for each in scored if each.metric.primary), "")
    questions = _questions(task, [first[one] for one in order])
    answers = [_answer(task, first[one], primary) for one in order]
    return Answered(model, name, questions, scored, answers, values_only), len(bad)


# ---- metrics -----------------------------------------------------------------------------------------------------


def _reduction(task: Any, metric: str) -> tuple[Parts | None, Unit]:
    """How a metric's value of one item adds to the task's; None: the metric is no mean or ratio over items.

    Tasks bring their own functions, so a function is known by what it makes of two small cases, not by its name.
    """
    from lm_eval.api.metrics import bits_per_byte, mean

    aggregate = task.aggregation().get(metric, mean)
    if aggregate is bits_per_byte:  # - sum(nats) / sum(bytes) / ln 2
        return lambda value: (-float(value[0]) / math.log(2), float(value[1])), "bits"
    if _makes(aggregate, [([0.0, 1.0, 1.0, 0.5], 0.625), ([0.0, 0.0, 0.0, 1.0, 1.0], 0.4)]):
        return lambda value: (float(value), 1.0), "share"
    if _makes(aggregate, [([[True, False], [True]], 2 / 3), ([[False], [True, True, False]], 0.5)]):  # as IFEval's
        return lambda value: (float(sum(value)), float(len(value))), "share"
    return None, "points"


def _makes(aggregate: Callable[[Any], Any], cases: Sequence[tuple[Any, float]]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return all(math.isclose(float(aggregate(items)), wanted) for items, wanted in cases)
    except Exception:  # it wants items of another kind
        return False


def _pair(row: dict[str, Any], metric: str, parts: Parts) -> tuple[float, float]:
    """(total, count) of an item; NaN where the task gave it no number."""
    try:
        return parts(row[metric])
    except (KeyError, TypeError, ValueError, IndexError):
        return math.nan, 1.0


def _with_primary(task: Any, scored: list[Scored]) -> list[Scored]:
    """Mark the metric that stands for the task: acc_norm, else GSM8K's flexible-extract, else the task's first."""
    names = [each.metric.name for each in scored]
    listed = [each.get("metric") for each in task.get_config("metric_list") or []]
    wanted = ["acc_norm", "exact_match,flexible-extract", *(each for each in listed if isinstance(each, str))]
    found = next((name for one in wanted for name in names if one in (name, name.partition(",")[0])), None)
    found = found or next(iter(names), None)
    return [
        Scored(Metric(m.name, m.higher_is_better, m.unit, m.name == found), each.totals, each.counts)
        for each in scored
        for m in [each.metric]
    ]


# ---- words -------------------------------------------------------------------------------------------------------


def _questions(task: Any, rows: Sequence[dict[str, Any]]) -> list[Question]:
    clusters = _clusters(task, [row["doc"] for row in rows])
    questions: list[Question] = []
    for row, cluster in zip(rows, clusters, strict=True):
        prompt, reference = _prompt(task, row), _reference(task, row)
        text = "\0".join((row["doc_hash"], prompt, reference))
        content = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        questions.append(Question(str(row["doc_id"]), content, prompt, reference, cluster))
    return questions


def _clusters(task: Any, docs: Sequence[Any]) -> list[str | None]:
    """The passage that each item shares with others, as a short hash; None for an item without one, and for all where
    no two items share one, or all do."""
    named = (task.get_config("metadata") or {}).get("cluster")
    for field in [named] if named else PASSAGES:
        texts = [doc.get(field) if isinstance(doc, dict) else None for doc in docs]
        if not all(text is None or isinstance(text, str | int) for text in texts):
            continue
        names = ["" if text is None else str(text).strip() for text in texts]
        there = [name for name in names if name]
        if len(set(there)) < len(there) and len(set(names)) > 1:
            return [
                hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:12] if name else None for name in names
            ]
    return [None] * len(docs)


def _choices(task: Any, row: dict[str, Any]) -> list[str] | None:
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    try:
        return [str(each) for each in task.doc_to_choice(row["doc"])]
    except Exception:  # a task in Python may have none
        return None


def _prompt(task: Any, row: dict[str, Any]) -> str:
    """What the item asks, without examples and chat template."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return str(row["arguments"][0][0])
    text = task.doc_to_text(row["doc"])
    if isinstance(text, str):
        return text
    return "\n".join(str(arguments[0]) for arguments in row["arguments"])  # every choice has a text of its own


def _reference(task: Any, row: dict[str, Any]) -> str:
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return ""
    choices, target = _choices(task, row), row["target"]
    if choices and getattr(task, "multiple_input", 0):
        target = task.doc_to_text(row["doc"])
    targets = target if isinstance(target, list) else [target]
    if choices:
        targets = [choices[each] if isinstance(each, int) and each < len(choices) else each for each in targets]
    return " | ".join(str(each) for each in targets)


def _answer(task: Any, row: dict[str, Any], primary: str) -> str:
    """What the model said or chose. Where a choice is made by its length, too, as acc_norm does, that is the choice."""
    responses = [resps[0] for resps in row["resps"]]
    if any(broken(each) for each in responses):
        return ""
    if task.OUTPUT_TYPE == "generate_until":
        return str(responses[0])
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return f"{responses[0]:.2f} nats"
    choices = _choices(task, row)
    if choices is None:
        total, greedy = responses[0]
        return f"{total:.2f} nats, {'the' if greedy else 'not the'} likeliest continuation"
    totals = [total for total, _ in responses[: len(choices)]]
    if primary == "acc_norm":
        totals = [total / max(1, len(choice)) for total, choice in zip(totals, choices, strict=True)]
    return choices[max(range(len(totals)), key=totals.__getitem__)]
