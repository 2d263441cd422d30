"""Options, plan and results of `train_sft`."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..errors import ExitCode
from .base import Option, Result, flag
from .project_config import DatasetType, Finding
from .project_options import from_config
from .training import RUN, TrainingCommand, layers, listed

PROJECT, DATA, MODEL = "What config.yml says too", "Rows", "Model"
OPTIMISER, CHECKPOINTS, RESULT = "Optimiser", "Validation and checkpoints", "What is written"
GGUF_TYPES = ("q8_0", "f16", "bf16", "f32")
ADAPTER = ("load_in_4bit", "lora_dropout", "lora_targets")
VALIDATION = ("eval_every", "patience")
NOTHING = {"merge": False, "lora_dropout": 0.0, "patience": 0}
"""Values that ask for nothing; of other options it is None."""


class TrainSft(TrainingCommand):
    """Train a student on a teacher's answers or rollouts (SFT), as config.yml says, on this machine.

    config.yml and train.jsonl are those that `rnow run` takes. Only what the assistant says is trained: its text, its
    tool calls and its end of turn. With `dataset_type: distill` the same file starts train_gold.
    """

    work: ClassVar[str] = "..training.sft:train"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/train_sft.py",
        "python scripts/train_sft.py -c config.yml --check",
        "python scripts/train_sft.py -c config.yml -o runs/sft --dry-run",
        "python scripts/train_sft.py -d train.jsonl --model smollm2 --qlora-rank 16 --num-epochs 3 -o runs/sft",
        "python scripts/train_sft.py -c config.yml -o runs/sft --resume",
        "python scripts/train_sft.py -c config.yml -o runs/sft --merge --export gguf",
        "accelerate launch --multi_gpu --num_processes 2 scripts/train_sft.py -c config.yml -o runs/sft",
    )
    headings: ClassVar[tuple[str, ...]] = (PROJECT, DATA, MODEL, OPTIMISER, CHECKPOINTS, RESULT, RUN)
    name: ClassVar[str] = "train_sft"
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"config", "output", "resume", "overwrite", "dry_run", "check", "save_step", "track", "export"}
        | {"gguf_types", "project_name", "skip_bad_rows"}
    )
    rounding: ClassVar[tuple[str, ...]] = ("device", "threads", "micro_batch_size", "gradient_checkpointing")
    why: ClassVar[dict[str, str]] = {
        "num_epochs": "the learning rate follows it from the first step on: to train longer, begin a new run with "
        "best/ or final/ as --model (with a LoRA rank, written with --merge)",
    }

    config: Annotated[Path | None, Option(PROJECT, "-c")] = None
    """The project file, as `rnow` defines it (default: config.yml, where there is one). Flags win over it."""
    dataset_type: Annotated[DatasetType, Option(PROJECT)] = "sft"
    """sft, or distill, which starts train_gold. rl and midtrain can only be checked here."""
    project_name: Annotated[str, Option(PROJECT)] = ""
    """For the model card."""
    data: Annotated[str, Option(PROJECT, "-d", mcp="Rows with messages.", names="data")] = "train.jsonl"
    """Rows to train on (data.train_file, beside config.yml): JSON Lines with messages, from generate_teacher_data or
    convert_rollouts."""
    batch_size: Annotated[int, Option(PROJECT, "-b")] = Field(default=8, ge=1)
    """Rows per optimiser step, over all processes (data.batch_size)."""
    val_split: Annotated[float, Option(PROJECT, mcp="Share of the rows to hold out.")] = Field(default=0.0, ge=0, lt=1)
    """Share of the rows that is held out and never trained on (data.val_split); 0 for no validation."""
    model: Annotated[
        str, Option(PROJECT, "-m", mcp="Student: a folder, .gguf, smollm2 or Hub name.", names="model")
    ] = ""
    """The student (model.path): a name on the Hub, a folder, a .gguf file, or smollm2."""
    qlora_rank: Annotated[int | None, Option(PROJECT, mcp="Train a LoRA adapter of this rank, not all weights.")] = (
        Field(default=None, ge=1)
    )
    """Train a LoRA adapter of this rank (model.qlora_rank), over a 4-bit model where CUDA and bitsandbytes are;
    without it all weights are trained."""
    qlora_alpha: Annotated[int | None, Option(PROJECT)] = Field(default=None, ge=1)
    """The adapter's scale is alpha / rank (model.qlora_alpha; default: twice the rank)."""
    num_epochs: Annotated[int, Option(PROJECT, mcp="Times through the rows.")] = Field(default=3, ge=1)
    """Times through the rows (trainer.num_epochs)."""
    learning_rate: Annotated[float, Option(PROJECT, mcp="Highest learning rate.")] = Field(default=1e-4, gt=0, le=1)
    """Highest learning rate (trainer.learning_rate)."""
    save_step: Annotated[int, Option(PROJECT)] = Field(default=-1, ge=-1)
    """Steps between two checkpoints step-N/ that stay (trainer.save_step); -1: one at the end of each epoch and
    every half hour, only to go on from, and none stays."""

    num_samples: Annotated[int | None, Option(DATA, "-n")] = Field(default=None, ge=1)
    """Only the first so many rows."""
    max_length: Annotated[int | None, Option(DATA, env="SFT_MAX_LENGTH")] = Field(default=None, ge=8)
    """Longest row, in tokens (default: 4096, or the model's context where that is less)."""
    long_rows: Annotated[Literal["cut", "drop"], Option(DATA, env="SFT_LONG_ROWS")] = "cut"
    """What becomes of longer rows: cut after the last turn of the assistant's that fits, or left out."""
    thinking: Annotated[Literal["keep", "strip"], Option(DATA, env="SFT_THINKING")] = "keep"
    """Whether the teacher's reasoning (reasoning_content, <think> at the beginning of a text) is trained."""
    skip_bad_rows: Annotated[bool, Option(DATA)] = False
    """Leave out rows that cannot be used, and count them, instead of refusing the file."""

    chat_template: Annotated[str | None, Option(MODEL, env="SFT_CHAT_TEMPLATE", names="text or file")] = None
    """The form of conversations: a .jinja file; chatml, which also writes tools (<tool_call>, as Hermes and Qwen); or
    plain. Default: the model's own, else chatml where it has the tokens for it, else plain. It is saved with the
    student."""
    student_dtype: Annotated[Literal["auto", "float32", "bfloat16"], Option(MODEL, env="SFT_DTYPE")] = "auto"
    """Number format of the computation (auto: bfloat16 where CUDA has it, else float32). Trained weights are kept in
    float32."""
    load_in_4bit: Annotated[bool | None, Option(MODEL)] = None
    """With a LoRA rank: hold the model's own weights in 4 bits (default: where CUDA and bitsandbytes are)."""
    lora_dropout: Annotated[float, Option(MODEL)] = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter."""
    lora_targets: Annotated[list[str], Option(MODEL)] = Field(default=["all-linear"], min_length=1)
    """Layers that get an adapter, by name (q, k, v, o, gate, up and down will do), or all-linear."""
    gradient_checkpointing: Annotated[bool | None, Option(MODEL, env="SFT_GRADIENT_CHECKPOINTING")] = None
    """Compute activations a second time instead of keeping them: less memory, about a third more time (default: on a
    CPU, when a forward pass may read more than 1,024 tokens)."""

    max_steps: Annotated[int | None, Option(OPTIMISER, mcp=True)] = Field(default=None, ge=1)
    """Stop after so many optimiser steps; the learning rate falls accordingly."""
    micro_batch_size: Annotated[int | None, Option(OPTIMISER, env="SFT_MICRO_BATCH_SIZE")] = Field(default=None, ge=1)
    """Rows per forward pass (default: at most 4; on a CPU 2, or 1 where rows have more than 512 tokens)."""
    packing: Annotated[bool, Option(OPTIMISER, env="SFT_PACKING")] = False
    """Put several rows into one sequence of --max-length tokens, each blind to the others."""
    warmup_steps: Annotated[int | None, Option(OPTIMISER)] = Field(default=None, ge=0)
    """Steps over which the learning rate rises from 0 (default: a twentieth of the steps)."""
    schedule: Annotated[Literal["cosine", "linear", "constant"], Option(OPTIMISER)] = "cosine"
    """How it falls afterwards: to 0 by a cosine, to 0 in a line, not at all."""
    weight_decay: Annotated[float, Option(OPTIMISER)] = Field(default=0.0, ge=0)
    """Of AdamW."""
    grad_clip: Annotated[float, Option(OPTIMISER)] = Field(default=1.0, ge=0)
    """Longest gradient; 0 for no limit."""
    seed: Annotated[int, Option(OPTIMISER)] = Field(default=0, ge=0, le=2**31 - 1)
    """Of everything that is drawn: held-out rows, order, adapter, dropout."""

    eval_every: Annotated[int | None, Option(CHECKPOINTS, env="SFT_EVAL_EVERY")] = Field(default=None, ge=1)
    """Steps between two validations (default: once an epoch)."""
    patience: Annotated[int, Option(CHECKPOINTS, env="SFT_PATIENCE")] = Field(default=0, ge=0)
    """Stop after so many validations in a row without improvement; 0 for never."""

    output: Annotated[Path, Option(RESULT, "-o", env="SFT_OUTPUT_DIR", mcp="Folder of the run.")] = Path("runs/sft")
    """Folder of the run: best/, final/, step-N/, metrics.jsonl, curves.png, run.json."""
    merge: Annotated[bool, Option(RESULT, env="SFT_MERGE")] = False
    """Write best/ and final/ as whole models, with the adapter merged into the weights."""
    export: Annotated[
        Literal["gguf"] | None, Option(RESULT, env="SFT_EXPORT", mcp="Also write best/ for llama.cpp and Ollama.")
    ] = None
    """Also write best/ for llama.cpp and Ollama, into gguf/. With --resume, of a run that has ended, too."""
    gguf_types: Annotated[list[str], Option(RESULT)] = Field(default=["q8_0"], min_length=1)
    """Number formats of the exported weights, a file each: q8_0, f16, bf16, f32."""

    check: Annotated[bool, Option(RUN, mcp="Only check config.yml and the rows.")] = False
    """Check config.yml and every row, say what is wrong here and what `rnow run` would refuse, and stop."""

    @classmethod
    def from_project(cls, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """What the user's config.yml says."""
        return from_config(given)

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _projections(cls, value: Any) -> Any:
        return layers(value)

    @field_validator("gguf_types", mode="before")
    @classmethod
    def _known_types(cls, value: Any) -> Any:
        items = listed(value)
        if isinstance(items, list) and (unknown := [item for item in items if item not in GGUF_TYPES]):
            raise ValueError(f"{unknown[0]} is none of {', '.join(GGUF_TYPES)}")
        return items

    @model_validator(mode="after")
    def _options_that_need_another(self) -> "TrainSft":
        if not self.model:
            raise ValueError(
                "there is no student: give --model, or a config.yml with model.path (none was read here; -c names one)"
            )
        if self.qlora_rank is None and (names := self._given("qlora_alpha", "merge", *ADAPTER)):
            raise ValueError(f"{names}: for LoRA, and there is no rank. Give --qlora-rank (model.qlora_rank)")
        if not self.val_split and (names := self._given(*VALIDATION)):
            raise ValueError(
                f"{names}: for the validation, and no rows are held out. Give --val-split (data.val_split)"
            )
        if self.export is None and (names := self._given("gguf_types")):
            raise ValueError(f"{names}: for the export, and there is none. Give --export gguf")
        if self.check and self.dry_run:
            raise ValueError("--check loads no model, --dry-run does: give one of them")
        return self

    def _given(self, *names: str) -> str:
        """Those of these options that were given and ask for something, as flags with their environment keys."""
        given = [name for name in names if name in self.model_fields_set and getattr(self, name) != NOTHING.get(name)]
        if self.dataset_type == "distill":  # train_gold has defaults and environment keys of its own for these
            given = [name for name in given if name not in (*ADAPTER, *VALIDATION)]
        return ", ".join(" or ".join([flag(name), *self.option(name).env_keys]) for name in given)

    @property
    def inputs(self) -> tuple[str | None, ...]:
        return (self.model, self.data, str(self.config) if self.config else None, self.chat_template)

    @property
    def keeps_checkpoints(self) -> bool:
        return self.save_step != -1

    @property
    def best_by(self) -> tuple[str, Literal["min", "max"]]:
        return "val_loss", "min"

    # ---- as `student.load_student` reads them ------------------------------------------------------------------

    @property
    def student(self) -> str:
        return self.model

    @property
    def lora(self) -> bool:
        return self.qlora_rank is not None

    @property
    def lora_rank(self) -> int:
        return self.qlora_rank or 0

    @property
    def lora_alpha(self) -> int:
        return self.qlora_alpha or 2 * self.lora_rank


class SftChecked(Result):
    """What `--check` found."""

    findings: list[Finding]
    """All of config.yml, and of the rows the first 20 of each level."""
    rows: int
    errors: int
    """How many findings stop a run here."""
    warnings: int
    """How many do not."""
    rnow: int
    """How many are refused by `rnow run` only."""
    about: list[str]
    """Lines on what is in the rows: roles, tools, thinking, lengths."""

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.USAGE if self.errors else super().exit_code

    def summary(self) -> str:
        lines = [str(finding) for finding in self.findings]
        lines += self.about
        counts = (
            f"{self.rows:,} rows: {self.errors:,} errors, {self.warnings:,} warnings, {self.rnow:,} for rnow run only"
        )
        if self.errors:
            return "\n".join([*lines, counts, "next: mend what is marked as an error"])
        return "\n".join([*lines, counts, "next: the same command without --check"])


class SftPlan(Result):
    """What `--dry-run` found, from two steps that were really made."""

    status: Literal["dry_run"] = "dry_run"  # pyright: ignore[reportIncompatibleVariableOverride]
    plan: list[str]
    """What the run would do, a line each."""
    steps: int
    seconds_per_step: float
    tokens_per_second: float
    """Tokens that pass through the student, prompts included, padding not."""
    seconds_per_validation: float
    seconds_in_all: float
    peak_memory_gb: float
    """Most memory that this process held: on the GPU where there is one, else resident."""
    loss: float

    def summary(self) -> str:
        return "\n".join(
            [
                "dry run: two steps were made and thrown away; nothing was written.",
                f"  step        {self.seconds_per_step:.2f} s, {self.tokens_per_second:,.0f} tokens/s read, "
                f"loss {self.loss:.4g}",
                f"  validation  {self.seconds_per_validation:.2f} s",
                f"  memory      {self.peak_memory_gb:.2f} GB at most",
                f"  in all      {self.steps:,} steps, about {timedelta(seconds=round(self.seconds_in_all))}",
                "next: the same command without --dry-run",
            ]
        )


class SftTrained(Result):
    """What a run did."""

    output: Path
    steps: int
    """Optimiser steps in the folder now."""
    epochs: float
    best_step: int | None
    before: dict[str, float]
    """val_loss (per trained token, in nats) and val_accuracy before the first step; empty without validation."""
    after: dict[str, float]
    """The same at the last validation."""
    best: dict[str, float]
    """The same at best_step."""
    train_loss: float | None
    """Mean of the last tenth of the steps."""
    rows_trained: int
    tokens_trained: int
    """Rows, and tokens of the assistant in them, over all steps."""
    left_out: dict[str, int]
    """Rows that were left out, cut or changed, by reason."""
    tool_rows: int = 0
    """Rows with tool calls, held-out ones included."""
    adapter: bool = False
    """best/ and final/ are LoRA adapters, without the model that they belong to."""
    seconds: float
    curves: Path | None = None
    gguf: list[Path] = Field(default_factory=list[Path])

    def summary(self) -> str:
        took = timedelta(seconds=round(self.seconds))
        lines = [
            f"{self.output}: {self.steps:,} steps ({self.epochs:.3g} epochs) in {took}, {self.rows_trained:,} rows, "
            f"{self.tokens_trained:,} tokens of the assistant"
        ]
        if self.before and self.after:
            lines.append(f"  {'held out':<28}{'before':>10}{'after':>10}{'best':>10}")
            for name, value in self.before.items():
                row = [self.after.get(name), self.best.get(name)]
                cells = "".join(f"{'' if each is None else f'{each:.4g}':>10}" for each in row)
                lines.append(f"  {name:<28}{value:>10.4g}{cells}")
        elif self.train_loss is not None:
            lines.append(f"  train loss  {self.train_loss:.4g} (nothing was held out: --val-split 0.1 measures more)")
        lines += [f"  rows        {count:,} {reason}" for reason, count in self.left_out.items()]
        if self.best_step is not None:
            by = f"step {self.best_step}, by val_loss" if self.before else f"step {self.best_step}, the last"
            lines.append(f"  best        {self.output / 'best'} ({by})")
        lines += [f"  gguf        {path}" for path in self.gguf]
        if self.curves is not None:
            lines.append(f"  curves      {self.curves}")
        if self.status == "interrupted":
            lines.append("interrupted: the same command with --resume goes on")
        elif self.before and self.best and self.best["val_loss"] >= self.before["val_loss"]:
            lines.append("next: the held-out loss never fell. Look at the rows with show, lower --learning-rate")
        elif self.tool_rows:
            lines += [
                "next: let it work on prompts that were held back, with the tools of the rows, and count"
                + (
                    " (best/ is an adapter: merge it into its model first, or train with --merge):" * self.adapter
                    or ":"
                ),
                "  python scripts/run_rollouts.py --input test.jsonl --tools tools.py --backend hf --model "
                f"{self.output / 'best'} --temperature 0 --max-tokens 512 --all --output rollouts-student",
                f"  python scripts/evaluate.py --student {self.output / 'best'} says what was forgotten, not whether "
                "it calls tools",
            ]
        else:
            lines.append(
                f"next: python scripts/evaluate.py --student {self.output / 'best'} says whether it got better"
            )
        return "\n".join(lines)
