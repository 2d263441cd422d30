"""A config.yml with `dataset_type: distill` as options of `train_gold`."""

import math
from collections.abc import Mapping
from typing import Any

from ..commands.base import flag
from ..commands.project_config import Project
from ..commands.project_options import beside
from ..commands.resolve import Origins, resolve
from ..commands.train_gold import TrainGold
from ..commands.train_sft import TrainSft
from ..errors import UsageError

SAME = (
    *("resume", "overwrite", "dry_run", "device", "threads", "track", "output", "num_samples", "student_dtype"),
    *("gradient_checkpointing", "batch_size", "micro_batch_size", "learning_rate", "warmup_steps", "schedule"),
    *("weight_decay", "grad_clip", "seed", "lora_dropout", "lora_targets", "merge", "eval_every", "patience"),
    "max_steps",
)
"""Options that both commands have under one name."""
RENAMED = {"model": "student", "val_split": "val_fraction"}
OTHERWISE = (
    *("config", "dataset_type", "project_name", "check", "skip_bad_rows"),
    *("data", "qlora_rank", "qlora_alpha", "num_epochs", "save_step"),
)
"""Options that are read before `train_gold` begins, or that give it others."""
GGUF = ("TEACHER_GGUF_PATH", "TEACHER_GGUF")


def gold_options(
    options: TrainSft,
    origins: Origins,
    project: Project | None,
    rows: int,
    environment: Mapping[str, str],
    dotenv: Mapping[str, str | None],
) -> tuple[TrainGold, Origins]:
    """The options of the run and where each came from: flag, else `train_gold`'s own environment keys, else config.yml.

    origins: those of `options`.   rows: in the data; they and the epochs give the number of steps.
    The student's own answers are trained (lmbda 1) towards the teacher by the reverse KL divergence (beta 1), as
    `rnow` does; with TEACHER_MODE=teacher-text, which has no answers of the student's, the teacher's are. Raises
    UsageError for what cannot be done here, and for a teacher that nobody names.
    """
    flags: dict[str, Any] = {}
    below: dict[str, Any] = {}
    places: Origins = {}

    def put(option: str, name: str, value: Any) -> None:
        """A value that an option of `train_sft` gives to another of `train_gold`."""
        places[name] = origins.get(option, flag(option))
        in_file = options.config is not None and places[name].startswith(f"{options.config}:")
        (below if in_file or places[name] == "default" else flags)[name] = value

    refuse(options, origins, project)
    for option in options.model_fields_set:
        name = RENAMED.get(option, option)
        if (option in SAME or option in RENAMED) and getattr(options, option) is not None:
            put(option, name, getattr(options, option))
    if "output" not in places:  # then OUTPUT_DIR may name it
        below["output"], places["output"] = options.output, "default"
    flags["data"] = options.data  # not DATA_PATH: these are the rows that were checked and counted
    places["data"] = origins.get("data", "default")
    if options.qlora_rank is not None:
        for name, value in (("lora", True), ("lora_rank", options.lora_rank), ("lora_alpha", options.lora_alpha)):
            put("qlora_rank", name, value)
    rows = min(rows, options.num_samples or rows)
    steps = math.ceil(rows * (1 - options.val_split) * options.num_epochs / options.batch_size)
    if "max_steps" not in flags:
        put("num_epochs", "max_steps", max(1, steps))
    steps = flags.get("max_steps", below.get("max_steps"))
    put("save_step", "save_every", options.save_step if options.save_step > 0 else steps)
    named = {**{key: value for key, value in dotenv.items() if value}, **environment}
    below |= {"beta": 1.0} if named.get("TEACHER_MODE") == "teacher-text" else {"lmbda": 1.0, "beta": 1.0}
    gguf = any(named.get(key) for key in GGUF) and named.get("TEACHER_BACKEND") != "hf"
    teacher = project.values.get("teacher.path") if project else None
    if teacher and project and not gguf:
        below["teacher"], places["teacher"] = (
            beside(project.path, teacher),
            f"{project.path}:{project.lines.get('teacher.path')}",
        )
    elif not gguf and not named.get("TEACHER_MODEL_ID") and named.get("TEACHER_BACKEND") != "openrouter":
        raise UsageError("dataset_type: distill needs a teacher: teacher.path in config.yml, or TEACHER_MODEL_ID")
    places = {**dict.fromkeys(below, "dataset_type: distill"), **places}
    command, found = resolve(TrainGold, flags, environment, dotenv, project=(below, places))
    assert isinstance(command, TrainGold)
    return command, {name: places.get(name, origin) if name in flags else origin for name, origin in found.items()}


def refuse(options: TrainSft, origins: Origins, project: Project | None) -> None:
    """Raises UsageError for options without a meaning for `train_gold`, and for what it cannot do."""
    known = {*SAME, *RENAMED, *OTHERWISE}
    strange = sorted(name for name in options.model_fields_set if name not in known)
    strange = [name for name in strange if origins.get(name, flag(name)) == flag(name)]
    if strange:
        names = ", ".join(flag(name) for name in strange)
        raise UsageError(f"{names}: not for dataset_type: distill, which starts train_gold. Leave it out.")
    values = project.values if project else {}
    cannot = {
        "teacher.agentic": values.get("teacher.agentic") is True,
        "rollout.mcp_url": bool(values.get("rollout.mcp_url")),
        "rollout.max_turns": values.get("rollout.max_turns", 1) > 1,
    }
    if project and any(cannot.values()):
        lines = [f"{project.path}:{project.lines.get(key)}: {key}" for key, there in cannot.items() if there]
        raise UsageError(
            "train_gold cannot distil over turns with tools yet, and the file asks for that:\n  "
            + "\n  ".join(lines)
            + "\nLeave these out, or make rollouts of the teacher and train on them with dataset_type: sft."
        )


def told(options: TrainGold, origins: Origins) -> str:
    """Lines for the user: the options that were set, and where."""
    lines = [
        f"{name} = {getattr(options, name)}  ({origin})" for name, origin in origins.items() if origin != "default"
    ]
    answers = f"  answers of the student: at most {options.max_new_tokens} tokens (MAX_NEW_TOKENS)"
    return "\n".join(["dataset_type: distill starts train_gold with", *(f"  {line}" for line in lines), answers])
