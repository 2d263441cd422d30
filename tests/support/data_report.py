"""Reports on data as check_data makes them, from invented figures."""

import itertools
import random

from core.commands.check_data import DEFAULT_REQUIREMENTS, Measured
from core.data.statistics import wilson
from core.quality.results import DataReport, Example, Lengths, Model, ShownRow


def share(name: str, count: int, of: int) -> Measured:
    """A share with Wilson's interval, against the default threshold."""
    low, high = wilson(count, of)
    side, bound = DEFAULT_REQUIREMENTS[name]
    passed = count / of <= bound
    return Measured(
        name=name,
        kind="share",
        value=count / of,
        low=low,
        high=high,
        count=count,
        of=of,
        required=f"{side} {bound:g}",
        passed=passed,
        certain=high <= bound if passed else low > bound,
    )


def mean(name: str, value: float, half: float, of: int, required: str | None = None) -> Measured:
    """A mean; with `required` ("<side> <bound>") it meets its threshold, uncertainly."""
    met = None if required is None else True
    return Measured(
        name=name,
        kind="mean",
        value=value,
        low=value - half,
        high=value + half,
        of=of,
        required=required,
        passed=met,
        certain=None if met is None else False,
    )


def shown_row(number: int, **more: object) -> ShownRow:
    """A row that teacher, student and judge saw."""
    found: dict[str, object] = {
        "place": f"train.jsonl:{number}",
        "prompt": f"What is {number} and {number}?",
        "answer": f"It is {2 * number}.",
        "new_answer": f"{number} + {number} = {2 * number}",
        "f1": 0.1 * (number % 10),
        "rouge_l": 0.08 * (number % 10),
        "tokens": 90,
        "top1": 71,
        "teacher_nats": 20.0 + number,
        "student_nats": 31.0 + number,
        "bytes": 100,
        "judge_score": 0.8,
        "judge_choice": (1.0, 0.0, 0.5)[number % 3],
    }
    return ShownRow.model_validate(found | more)


def example(rows: int = 1000, samples: int = 10) -> DataReport:
    """A file with every kind of figure: near_duplicate is missed for certain, contaminated is missed, f1 uncertain."""
    rng = random.Random(0)
    counts = {"schema": 0.0, "truncated": 0.013, "personal": 0.001, "near_duplicate": 0.1, "contaminated": 0.003}
    edges = [0.0, *(2.0**power for power in range(12))]
    lengths = [rng.lognormvariate(5, 0.8) for _ in range(1000)]
    bins = [sum(low <= value < high for value in lengths) for low, high in itertools.pairwise(edges)]
    return DataReport(
        name="train",
        data="data/train.jsonl",
        rows=rows,
        made="2026-01-05 10:20 UTC, distill 0.1.0",
        headline=["Not good enough: near_duplicate, contaminated."],
        measured=[
            *(share(name, round(rate * rows), rows) for name, rate in counts.items()),
            mean("f1", 0.62, 0.1, samples, ">= 0.6"),
            mean("judge_score", 0.8, 0.1, samples),
        ],
        learnability=[mean("teacher_nats_per_byte", 0.25, 0.05, samples), mean("learnability", 0.11, 0.02, samples)],
        examples={
            "near_duplicate": [
                Example(place=f"train.jsonl:{90 + n}", why="similarity 0.91", text="How many?", like=f"train.jsonl:{n}")
                for n in range(1, 6)
            ],
            "personal": [Example(place="train.jsonl:7", why="an e-mail address (j...@g....com)", text="(not shown)")],
        },
        lengths=[
            Lengths(
                what="answer",
                unit="characters",
                quantiles={"min": 7, "25%": 80, "median": 150.5, "75%": 260, "90%": 410, "max": 1900},
                edges=edges,
                counts=bins,
            )
        ],
        languages={"en": rows - rows // 10, "de": rows // 10},
        kinds={"difficulty": {"easy": rows // 2, "hard": rows - rows // 2}, "teacher": {"gpt-4o": rows}},
        distinct={"answers distinct-1": 0.051},
        contamination={"arc_easy": (2376, 3), "empty.jsonl": (0, 0)},
        shown=[shown_row(number) for number in range(1, samples + 1)],
        models=[
            Model(role="teacher", name="qwen-72b", backend="openrouter", requests=1010, cached=3, usd=0.0042),
            Model(role="student", name="smollm2", backend="hf"),
        ],
        notes=["3 rows were too short to tell their language."],
        settings={"data": "train.jsonl", "ngram": 13, "tasks": ["arc_easy"]},
    )
