"""What an evaluation finds, in the form that report.json has: every number, where it came from, how sure it is.

Answered (one model, one task: items)  ->  comparison  ->  Report (all of it)  ->  report.json, .md, .html, plots
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1
"""Of report.json; goes up when an older reader would misread it."""

Role = Literal["baseline", "student", "checkpoint", "teacher"]
Unit = Literal["share", "nats", "bits", "tokens", "points"]
"""share: 0 to 1, shown in per cent. points: anything else that has no unit."""

HELD_OUT, CLOSENESS = "held_out", "closeness"
"""The tasks that are not lm-eval's: answers to held-out prompts, and the distance from the teacher on these."""


# ---- items: what one model did on one task ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A figure of a task. name: as the task calls it, with lm-eval's filter behind a comma unless that is "none".

    higher_is_better: None where neither side is, such as the length of answers.
    primary: the one of its task that stands in tables and takes part in Holm's correction.
    """

    name: str
    higher_is_better: bool | None = True
    unit: Unit = "share"
    primary: bool = False


@dataclass(frozen=True)
class Question:
    """An item of a task, the same for all models.

    key: unique within the task.   content: a hash of what the item is; models are compared on equal ones only.
    prompt, reference: for people.   cluster: a name that items share which are not independent (one passage), or None.
    """

    key: str
    content: str
    prompt: str
    reference: str
    cluster: str | None = None


@dataclass(frozen=True)
class Scored:
    """A metric of every question, in the order of `Answered.questions`.

    The metric's value is sum(totals) / sum(counts): with counts of 1 the mean, else a ratio such as nats per token.
    A NaN in totals is an item that the model could not be measured on.
    """

    metric: Metric
    totals: list[float]
    counts: list[float] | None = None
    """None: 1 each."""


@dataclass(frozen=True)
class Answered:
    """One model on one task.   answers: what it said or chose, for people, one per question.

    values_only: metrics that are no mean over items (corpus BLEU, perplexity), by name: shown without interval.
    """

    model: str
    task: str
    questions: list[Question]
    scored: list[Scored]
    answers: list[str]
    values_only: dict[str, float] = field(default_factory=dict[str, float])


# ---- the report ------------------------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelInfo(_Part):
    """A model that took part."""

    name: str
    role: Role
    path: str
    """As the user gave it."""
    backend: str
    """hf, gguf, openrouter, openai, nvidia."""
    identity: str
    """Hash of all that its answers depend on: weights, tokenizer, chat template, number format, decoding library."""
    tokenizer: str | None = None
    """Hash of its vocabulary."""
    chat_template: str | None = None
    """Hash of its chat template; None where it has none."""
    parameters: int | None = None
    dtype: str | None = None
    batch_size: int | None = None
    seconds: float = 0.0
    """Of answering, this time; what came from the cache costs nothing."""
    requests: int = 0
    cached: int = 0
    """Of them, answered from the cache."""
    tokens: int = 0
    """Written by it, this time."""
    usd: float | None = None
    not_measured: dict[str, str] = Field(default_factory=dict[str, str])
    """Task -> why this model has no score there."""
    training: "Training | None" = None
    """What making it cost, where its run folder tells."""
    notes: list[str] = Field(default_factory=list[str])


class Training(_Part):
    """What a training run cost, from its folder."""

    folder: str
    steps: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    """Of answers, trained on."""
    usd: float | None = None
    """Paid for teacher data, where the data's own record tells, and for what the teacher said in training."""
    signal: str | None = None
    """What train_gold's student learnt from, in words."""


class TaskInfo(_Part):
    """A task that was run."""

    name: str
    suite: str | None = None
    version: str
    items: int
    of: int
    """Items that the task has; more than `items` with --limit."""
    prompted: Literal["chat template", "plain text"]
    fewshot: int = 0
    about: str = ""
    """One line for people: what it asks, and what it is no measure of."""


class Score(_Part):
    """A model's figure on a task, with a 95 % interval."""

    model: str
    value: float
    se: float | None = None
    low: float | None = None
    high: float | None = None
    """None: the metric is no mean over items."""


class Difference(_Part):
    """model minus against, on the same items."""

    model: str
    against: str
    value: float
    se: float
    low: float
    high: float
    p: float
    p_holm: float | None = None
    """Corrected over the tasks' primary metrics, for this pair of models; None for other metrics."""
    test: Literal["McNemar", "bootstrap"]
    wins: int
    losses: int
    ties: int
    correlation: float | None
    """Of the two models' item scores; None where one of them is constant."""
    detectable: float | None
    """Smallest true difference that would have been found with 80 % power at 5 %; None where the items do not tell."""
    clusters: int | None = None
    """Number of clusters that the interval rests on; None: items are independent."""

    @property
    def found(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


class Gap(_Part):
    """How much of the way from baseline to teacher a model went: (S - B) / (T - B)."""

    model: str
    value: float | None
    low: float | None = None
    high: float | None = None
    why: str | None = None
    """Why it is not defined."""


class TaskMetric(_Part):
    """One metric of one task, for all models."""

    task: str
    metric: str
    primary: bool
    higher_is_better: bool | None
    """None: neither side is better."""
    unit: Unit
    items: int
    """That every model was measured on."""
    scores: list[Score]
    differences: list[Difference]
    """Against the baseline, a line for every other model that was measured."""
    gaps: list[Gap]
    """Empty without a teacher."""
    notes: list[str] = Field(default_factory=list[str])


class Report(_Part):
    """report.json."""

    schema_version: int = SCHEMA
    name: str
    created: str
    """ISO 8601, UTC."""
    distill: str
    """Version."""
    headline: list[str]
    """What it comes to, in sentences; the first one says so if nothing could have been found at this n."""
    settings: dict[str, Any]
    """Options and versions that the figures depend on."""
    models: list[ModelInfo]
    """Baseline first, then students and checkpoints as given, the teacher last."""
    tasks: list[TaskInfo]
    metrics: list[TaskMetric]
    notes: list[str] = Field(default_factory=list[str])
    """What a reader must know: how models were prompted, what was left out."""
    plots: list[str] = Field(default_factory=list[str])
    """File names under plots/, in the order of the page."""
    seconds: float = 0.0


class Sample(_Part):
    """A line of samples.jsonl: an item, and what each model made of it."""

    task: str
    key: str
    prompt: str
    reference: str
    cluster: str | None = None
    answers: dict[str, str]
    """Model -> what it said or chose."""
    scores: dict[str, dict[str, float]]
    """Model -> metric -> value of this item."""
    counts: dict[str, dict[str, float]] = Field(default_factory=dict[str, dict[str, float]])
    """Model -> metric -> what its value counts for in a ratio (see `Scored`); left out where that is 1."""
