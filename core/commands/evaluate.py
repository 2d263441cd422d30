"""Options, plan and result of `evaluate`."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from .base import Command, Option, Result
from .teacher import Backend

MODELS, TASKS, DATA, PROMPTS, STATISTICS, RUN = "Models", "Tasks", "Held-out data", "Prompts", "Statistics", "Running"
SUITES = ("offline", "opd", "reasoning")


class Evaluate(Command):
    """Did the student get better, by how much, how sure is that, and what did it cost?

    Student, baseline, and if wanted the teacher and checkpoints answer the same items; the report has paired
    differences with intervals, plots, and the answers side by side. Tasks are lm-eval's, your own YAML, prompts with
    reference answers, and how near each model is to the teacher, token by token.

    What a model has answered is kept by the hash of its weights: an interrupted evaluation goes on where it was.
    """

    work: ClassVar[str] = "..evaluation.evaluate:evaluate"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/evaluate.py --student runs/gold/best --baseline student",
        "python scripts/evaluate.py --student runs/gold/best --baseline student --teacher smollm2 --data test.jsonl",
        "python scripts/evaluate.py --student runs/gold/best --baseline Qwen/Qwen2.5-0.5B-Instruct --suite opd "
        "--limit 200 --dry-run",
        "python scripts/evaluate.py --models base=student --models s50=runs/gold/step-50 --models end=runs/gold/final",
        "python scripts/evaluate.py --compare reports/monday --compare reports/tuesday",
    )
    ignored_env: ClassVar[dict[str, str]] = {}

    student: Annotated[
        str | None,
        Option(MODELS, env="KD_MODEL_PATH", mcp="A run folder, model folder, .gguf or Hub name.", names="model"),
    ] = None
    """The trained model: a folder (an adapter, too), a run folder (its best/), a .gguf file, or a name on the Hub."""
    baseline: Annotated[
        str | None,
        Option(MODELS, env="BASE_MODEL_ID", mcp="Default: what the student's run began from.", names="model"),
    ] = None
    """What it is compared with. Default: the model that the student's run began from."""
    teacher: Annotated[str | None, Option(MODELS, mcp="Also measure this teacher.", names="model")] = None
    """The teacher, for the gap that was recovered and for the distance from it; a name as for train_gold, or an API
    model, which answers in words only."""
    teacher_backend: Annotated[Backend | None, Option(MODELS)] = None
    """How the teacher is reached (default: from its name)."""
    teacher_base_url: Annotated[str | None, Option(MODELS, hidden=True, names="url")] = None
    """Any OpenAI-compatible server, up to and with /v1."""
    api_key_env: Annotated[str | None, Option(MODELS, hidden=True, names="key")] = Field(
        default=None, pattern=r"^[A-Z_][A-Z0-9_]*$"
    )
    """Name of the variable that holds its key."""
    models: Annotated[list[str] | None, Option(MODELS, names="named model")] = None
    """Further models, as name=path; repeat it. Without --baseline the first one is the baseline."""
    sft: Annotated[str | None, Option(MODELS, env="SFT_MODEL_PATH", names="model")] = None
    """The same as --models sft=..."""
    scan: Annotated[Path | None, Option(MODELS, env="KD_SCAN_ROOT")] = None
    """A run folder: all of its step-N/ and final/ take part, too."""

    suite: Annotated[list[str] | None, Option(TASKS, mcp="offline (default), opd, reasoning.")] = None
    """offline (no download: questions inside lm-eval, arithmetic, words), opd (ARC, HellaSwag, TruthfulQA), reasoning
    (GSM8K, IFEval); repeat it. Default: offline, unless --tasks or --data are given."""
    tasks: Annotated[list[str] | None, Option(TASKS, "-t", env="EVAL_TASKS", mcp="Names of lm-eval's tasks.")] = None
    """Names of lm-eval's tasks or groups, or of your own in --tasks-dir; repeat it or separate by commas."""
    tasks_dir: Annotated[Path | None, Option(TASKS, names="code")] = None
    """Folder of your own task YAML files. They may name Python functions, which are run."""
    limit: Annotated[int | None, Option(TASKS, "-n", env="EVAL_MAX_SAMPLES", mcp="Most items of each task.")] = Field(
        default=None, ge=1
    )
    """At most so many items of each task: a fixed choice, the same in every run with this --seed, and recorded."""
    num_fewshot: Annotated[int | None, Option(TASKS)] = Field(default=None, ge=0)
    """Solved examples before each item (default: as the task says)."""

    data: Annotated[str | None, Option(DATA, "-d", mcp="Held-out prompts with answers.", names="data")] = None
    """Prompts with reference answers that were not trained on: any file that generate_teacher_data reads. Default: the
    rows that the student's run held out, where there are any. DATA_PATH is not read: those rows were trained on."""
    prompt_key: Annotated[str, Option(DATA)] = "prompt"
    """Key or column that holds the prompt."""
    drop_trained: Annotated[bool, Option(DATA)] = False
    """Leave out rows that a model was trained on, instead of refusing the file."""
    max_new_tokens: Annotated[int, Option(DATA, env=("EVAL_RETAIL_MAX_NEW_TOKENS", "MAX_NEW_TOKENS"))] = Field(
        default=128, ge=1
    )
    """Longest answer to these prompts, in tokens."""

    chat_template: Annotated[Literal["auto", "on", "off"], Option(PROMPTS)] = "auto"
    """Whether items are put into each model's chat template. auto: where the model writes an answer, unless a model has
    no template; not where it chooses one. Prompts of --data are, for each model that has one."""
    system: Annotated[str | None, Option(PROMPTS, "-s")] = None
    """System prompt, where the chat template is used."""

    draws: Annotated[int, Option(STATISTICS)] = Field(default=10_000, ge=1000)
    """Of the bootstrap."""
    seed: Annotated[int, Option(STATISTICS)] = Field(default=0, ge=0, le=2**32 - 1)
    """Of the bootstrap, of --limit and of the examples of --num-fewshot."""

    name: Annotated[str | None, Option(RUN)] = None
    """Name of the report; it goes to reports/NAME (default: that of the student). Where another report is, this one
    goes to NAME-2."""
    output: Annotated[Path | None, Option(RUN, "-o", env="EVAL_OUTPUT_DIR")] = None
    """Another folder for it."""
    compare: Annotated[list[Path] | None, Option(RUN, mcp="Only put these finished reports side by side.")] = None
    """Put finished reports side by side instead, in a report of their own; repeat it."""
    batch_size: Annotated[int | None, Option(RUN)] = Field(default=None, ge=1)
    """Texts per forward pass (default: what fits)."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Option(RUN)] = "auto"
    """Number format of the weights, of all models (auto: float32 on a CPU, else bfloat16 where there is CUDA)."""
    device: Annotated[Literal["auto", "cuda", "mps", "cpu"], Option(RUN)] = "auto"
    """Where models run (auto: CUDA, then Apple's MPS, then CPU)."""
    threads: Annotated[int | None, Option(RUN)] = Field(default=None, ge=1)
    """CPU threads (default: all cores)."""
    concurrency: Annotated[int, Option(RUN, "-c")] = Field(default=5, ge=1)
    """API: most requests in flight."""
    cache: Annotated[Path | None, Option(RUN)] = None
    """Where answers are kept, by the hash of the model (default: ~/.cache/distill/answers)."""
    track: Annotated[Literal["trackio", "tensorboard", "wandb"] | None, Option(RUN)] = None
    """Also send the figures to this tracker."""
    dry_run: Annotated[bool, Option(RUN, mcp="Only say what would be answered.")] = False
    """Say which models answer how many items, what is in the cache already, and stop."""

    @field_validator("suite", "tasks", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return value
        return [part.strip() for name in names for part in name.split(",") if part.strip()] or None

    @field_validator("suite")
    @classmethod
    def _known_suites(cls, value: list[str] | None) -> list[str] | None:
        for name in value or []:
            if name not in SUITES:
                raise ValueError(f"{name} is no suite. There are: {', '.join(SUITES)}")
        return value

    @field_validator("models")
    @classmethod
    def _named(cls, value: list[str] | None) -> list[str] | None:
        names: list[str] = []
        for text in value or []:
            name, equals, path = text.partition("=")
            if not (name and equals and path):
                raise ValueError(f"{text} is not name=path, such as step50=runs/gold/step-50")
            names.append(name)
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two models are called {twice}")
        return value

    @field_validator("name")
    @classmethod
    def _no_path(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip(".") or "/" in value or "\\" in value):
            raise ValueError("is a name, not a path: give that with --output")
        return value

    @model_validator(mode="after")
    def _something_to_do(self) -> "Evaluate":
        if self.compare:
            if len(self.compare) < 2:
                raise ValueError("--compare needs two reports at least")
        elif not (self.student or self.models or self.scan):
            raise ValueError("name what to evaluate: --student (KD_MODEL_PATH), --models name=path, or --scan")
        if self.system and self.chat_template == "off":
            raise ValueError("--system needs the chat template, and --chat-template is off")
        return self

    @property
    def suites(self) -> list[str]:
        """Those that are run."""
        return self.suite or ([] if self.tasks or self.data else ["offline"])


class EvaluationPlan(Result):
    """What `--dry-run` found."""

    status: Literal["dry_run"] = "dry_run"  # pyright: ignore[reportIncompatibleVariableOverride]
    plan: list[str]
    """A line each: models, tasks with their items, requests and how many of them are answered already."""
    requests: int
    cached: int

    def summary(self) -> str:
        return "\n".join(
            [
                "dry run: no model was asked; nothing was written.",
                *(f"  {line}" for line in self.plan),
                f"  {self.requests:,} requests, {self.cached:,} of them answered already",
                "next: the same command without --dry-run",
            ]
        )


class Evaluated(Result):
    """What an evaluation found."""

    output: Path
    """Folder of the report."""
    headline: list[str]
    table: str
    """The closing table, for a terminal."""
    models: int
    tasks: int
    items: int
    requests: int
    cached: int
    seconds: float

    def summary(self) -> str:
        return "\n".join([self.table, "", *self.headline, f"next: open {self.output / 'report.html'} in a browser"])
