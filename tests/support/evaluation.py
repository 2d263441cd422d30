"""Reports as an evaluation makes them, from invented items: models of known strength answer, the figures follow.

The statistics here are the short ones of a textbook; what they are used for is how reports look, not whether they are
right.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from core.evaluation.results import (
    Difference,
    Gap,
    ModelInfo,
    Report,
    Role,
    Sample,
    Score,
    TaskInfo,
    TaskMetric,
    Training,
    Unit,
)

WORDS = [
    "river",
    "stone",
    "bridge",
    "seven",
    "lamp",
    "orchard",
    "narrow",
    "copper",
    "window",
    "early",
    "garden",
    "letter",
]


@dataclass(frozen=True)
class Figure:
    """A metric of an invented task. binary: right or wrong; otherwise any value, of the size `scale`."""

    name: str
    unit: Unit = "share"
    higher_is_better: bool = True
    binary: bool = True
    ratio: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Invented:
    """A task. hard: subtracted from the models' strengths.   shifts: added to those of some of them.
    clusters: items share so many passages (0: none).
    """

    name: str
    figures: tuple[Figure, ...]
    items: int = 100
    of: int | None = None
    hard: float = 0.0
    shifts: dict[str, float] = field(default_factory=dict[str, float])
    clusters: int = 0
    suite: str | None = "offline"
    about: str = ""
    prompted: str = "plain text"


TASKS = (
    Invented(
        "arithmetic",
        (Figure("exact_match"),),
        items=120,
        about="sums and differences of small numbers, checked exactly",
        prompted="chat template",
    ),
    Invented(
        "mmlu_dev",
        (Figure("acc"), Figure("acc_norm")),
        items=100,
        of=285,
        hard=0.2,
        shifts={"student": -0.55, "teacher": -1.5},
        clusters=25,
        about="questions inside lm-eval: plumbing and before/after, not MMLU",
    ),
    Invented(
        "held_out",
        (
            Figure("rouge_l", binary=False, scale=0.6),
            Figure("f1", binary=False, scale=0.7),
            Figure("exact_match"),
        ),
        items=80,
        hard=0.4,
        shifts={"student": -1.0},
        suite=None,
        about="prompts with reference answers that were not trained on",
        prompted="chat template",
    ),
    Invented(
        "closeness",
        (
            Figure("kl", "nats", higher_is_better=False, binary=False, ratio=True, scale=1.4),
            Figure("top1_agreement", binary=False, ratio=True, scale=0.8),
            Figure("bits_per_byte", "bits", higher_is_better=False, binary=False, ratio=True, scale=1.9),
        ),
        items=80,
        suite=None,
        about="how near a model is to the teacher on the reference answers, token by token",
        prompted="chat template",
    ),
)

FROM_TEACHER = ("kl", "top1_agreement")
"""Distances from the teacher, which has none from itself: there is no gap."""
STRENGTHS: dict[str, tuple[Role, float]] = {
    "baseline": ("baseline", -0.6),
    "student": ("student", 0.15),
    "teacher": ("teacher", 1.1),
}


def example() -> tuple[Report, list[Sample]]:
    """Three models (baseline, student, teacher) on four tasks: a share of each kind, nats and bits."""
    return made(STRENGTHS, TASKS)


def large(models: int = 5, tasks: int = 10, items: int = 1000) -> tuple[Report, list[Sample]]:
    """Many models on many tasks, with answers of some hundred characters."""
    between = {f"step-{50 * i}": ("checkpoint", -0.6 + 1.2 * i / max(1, models - 2)) for i in range(1, models - 1)}
    strengths: dict[str, tuple[Role, float]] = {
        "baseline": ("baseline", -0.6),
        **between,  # pyright: ignore[reportAssignmentType]
        "teacher": ("teacher", 1.1),
    }
    names = [f"{TASKS[i % 4].name}_{i:02}" for i in range(tasks)]
    return made(strengths, [replace(TASKS[i % 4], name=name, items=items) for i, name in enumerate(names)], words=40)


def made(
    strengths: dict[str, tuple[Role, float]], tasks: "tuple[Invented, ...] | list[Invented]", *, words: int = 12
) -> tuple[Report, list[Sample]]:
    """A report and its samples. strengths: model -> (role, strength); words: of a prompt and an answer."""
    rng = np.random.default_rng(6)
    samples: list[Sample] = []
    metrics: list[TaskMetric] = []
    models = list(strengths)
    for task in tasks:
        values = {
            figure.name: _values(
                rng, figure, [strengths[name][1] - task.hard + task.shifts.get(name, 0) for name in models], task.items
            )
            for figure in task.figures
        }
        counts = rng.integers(8, 60, task.items).astype(float)
        metrics += [
            _metric(task, figure, strengths, values[figure.name], counts if figure.ratio else None)
            for figure in task.figures
        ]
        main = values[task.figures[0].name]
        for item in range(task.items):
            right = _text(rng, max(1, words // 4))
            samples.append(
                Sample(
                    task=task.name,
                    key=str(item),
                    prompt=f"{_text(rng, words).capitalize()}?\nAnswer in a few words.",
                    reference=right,
                    cluster=f"passage {item % task.clusters}" if task.clusters else None,
                    answers={
                        name: right if main[row, item] == 1 else _text(rng, words) for row, name in enumerate(models)
                    },
                    scores={
                        name: {figure: float(table[row, item]) for figure, table in values.items()}
                        for row, name in enumerate(models)
                    },
                )
            )
    _holm(metrics, models[1:])
    report = Report(
        name="gold-24-layers",
        created="2026-01-05T10:20:30Z",
        distill="0.1.0",
        headline=[
            "arithmetic: student is better than baseline by 21.7 points, 95 % interval 13.9 to 29.4 (120 items).",
            "mmlu_dev: no difference was found; one of 11.9 points would have been.",
        ],
        settings={
            "suite": ["offline"],
            "limit": 100,
            "seed": 0,
            "draws": 10_000,
            "chat_template": "auto",
            "lm_eval": "0.4.13",
            "transformers": "5.23.0",
        },
        models=[_model(row, name, role) for row, (name, (role, _)) in enumerate(strengths.items())],
        tasks=[
            TaskInfo(
                name=task.name,
                suite=task.suite,
                version="1",
                items=task.items,
                of=task.of or task.items,
                prompted=task.prompted,  # pyright: ignore[reportArgumentType]
                about=task.about,
            )
            for task in tasks
        ],
        metrics=metrics,
        notes=[
            "All models have the same tokenizer and chat template.",
            "best/ was chosen on the rows of held_out: its figures there are a little too good. Give --data.",
        ],
        seconds=312.4,
    )
    return report, samples


def _values(rng: np.random.Generator, figure: Figure, strengths: list[float], items: int) -> np.ndarray:
    """(models, items). An item is as hard for one model as for another, so their scores correlate."""
    hard, luck = rng.normal(0, 1.2, items), rng.normal(0, 0.5, (len(strengths), items))
    chance = 1 / (1 + np.exp(hard - np.array(strengths)[:, None] - luck))
    if figure.binary:
        return (chance > 0.5).astype(float)
    return figure.scale * (chance if figure.higher_is_better else 1.15 - chance)


def _metric(
    task: Invented,
    figure: Figure,
    strengths: dict[str, tuple[Role, float]],
    values: np.ndarray,
    counts: np.ndarray | None,
) -> TaskMetric:
    models, base = list(strengths), values[0]
    weights = np.ones(task.items) if counts is None else counts
    means = values @ weights / weights.sum()
    errors = [_error(row, weights) for row in values]
    teacher = next((row for row, (role, _) in enumerate(strengths.values()) if role == "teacher"), None)
    differences: list[Difference] = []
    gaps: list[Gap] = []
    for row, name in enumerate(models[1:], 1):
        change = values[row] - base
        value, error = float(means[row] - means[0]), _error(change, weights)
        wins, losses = int((change > 0).sum()), int((change < 0).sum())
        if not figure.higher_is_better:
            wins, losses = losses, wins
        normal = math.erfc(abs(value) / error / math.sqrt(2)) if error else 1.0
        differences.append(
            Difference(
                model=name,
                against=models[0],
                value=value,
                se=error,
                low=value - 1.96 * error,
                high=value + 1.96 * error,
                p=_mcnemar(wins, losses) if figure.binary else normal,
                test="McNemar" if figure.binary else "bootstrap",
                wins=wins,
                losses=losses,
                ties=task.items - wins - losses,
                correlation=float(np.corrcoef(values[row], base)[0, 1]),
                detectable=2.8 * error,
                clusters=task.clusters or None,
            )
        )
        if teacher is not None and row != teacher and figure.name not in FROM_TEACHER:
            gaps.append(_gap(name, values, weights, row, teacher))
    return TaskMetric(
        task=task.name,
        metric=figure.name,
        primary=figure is task.figures[0],
        higher_is_better=figure.higher_is_better,
        unit=figure.unit,
        items=task.items,
        scores=[
            Score(model=name, value=float(mean), se=error, low=float(mean - 1.96 * error), high=mean + 1.96 * error)
            for name, mean, error in zip(models, means, errors, strict=True)
        ],
        differences=differences,
        gaps=gaps,
    )


def _error(values: np.ndarray, weights: np.ndarray) -> float:
    """Standard error of a weighted mean."""
    mean = values @ weights / weights.sum()
    return float(np.sqrt(np.sum((weights * (values - mean)) ** 2)) / weights.sum())


def _gap(name: str, values: np.ndarray, weights: np.ndarray, row: int, teacher: int) -> Gap:
    draws = np.random.default_rng(0).integers(0, len(weights), (300, len(weights)))
    drawn = weights[draws]
    base, model, best = ((values[i][draws] * drawn).sum(1) / drawn.sum(1) for i in (0, row, teacher))
    low, high = np.percentile(best - base, [2.5, 97.5])
    if low <= 0 <= high:
        return Gap(model=name, value=None, why="the teacher was not found to be better than the baseline")
    shares = (model - base) / (best - base)
    means = values @ weights / weights.sum()
    return Gap(
        model=name,
        value=float((means[row] - means[0]) / (means[teacher] - means[0])),
        low=float(np.percentile(shares, 2.5)),
        high=float(np.percentile(shares, 97.5)),
    )


def _mcnemar(wins: int, losses: int) -> float:
    m = wins + losses
    return min(1.0, 2 * sum(math.comb(m, i) for i in range(min(wins, losses) + 1)) / 2**m)


def _holm(metrics: list[TaskMetric], models: list[str]) -> None:
    for name in models:
        mine = [d for metric in metrics if metric.primary for d in metric.differences if d.model == name]
        worst = 0.0
        for rank, difference in enumerate(sorted(mine, key=lambda d: d.p)):
            worst = max(worst, min(1.0, difference.p * (len(mine) - rank)))
            difference.p_holm = worst


def _model(row: int, name: str, role: Role) -> ModelInfo:
    trained = role in ("student", "checkpoint")
    return ModelInfo(
        name=name,
        role=role,
        path=f"runs/gold/{name}" if trained else {"baseline": "student-24", "teacher": "smollm2"}[role],
        backend="hf",
        identity=f"{row + 1:x}" * 16,
        tokenizer="a1b2c3d4e5f60718",
        chat_template="0f1e2d3c4b5a6978",
        parameters=134_515_008 if role == "teacher" else 113_275_008,
        dtype="float32",
        batch_size=16,
        seconds=41.5 + 20 * row,
        requests=780,
        cached=780 if role == "teacher" else 0,
        tokens=0 if role == "teacher" else 4_130,
        training=Training(
            folder="runs/gold",
            steps=100 * row,
            seconds=1_845.0 * row,
            tokens=182_400 * row,
            usd=0.42 if row == 1 else None,
        )
        if trained
        else None,
    )


def _text(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))
