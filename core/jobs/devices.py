"""Which device a piece of work will use: told from its options and from what the machine shows, without torch."""

import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..teachers import backend_of

LOCAL = ("hf", "gguf")
"""Back ends that run a model here."""
DEV = Path("/dev")
TRAINING = ("train_sft", "train_gold", "make_student", "demo")


def device_for(command: str, values: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """ "gpu0", "gpu1", ..., "cpu", or None for work that loads no model and so has nothing to wait for.

    values: of all options of the command.   environment: that of the job.
    """
    if not loads_a_model(command, values):
        return None
    wanted = str(values.get("device") or values.get("device_map") or "auto")
    if wanted == "cpu":
        return "cpu"
    numbered = re.search(r":(\d+)$", wanted)
    return gpu_of(environment, int(numbered[1]) if numbered else 0) or "cpu"


def loads_a_model(command: str, values: Mapping[str, Any]) -> bool:
    """Whether a model's weights will be in this machine's memory."""
    if command in TRAINING:
        return values.get("check") is not True
    if command == "evaluate":
        return not values["compare"] and not values["dry_run"]
    if values.get("dry_run") or command == "teachers":  # which reads a list
        return False
    if command == "doctor":  # whose teachers are reached as train_gold reaches them
        if values["data"]:
            return False
        elsewhere = values["teacher_base_url"] and not values["teacher_gguf"]
        named = values["teacher"] or values["teacher_gguf"] or values["teacher_backend"]
        return bool(named) and (values["teacher_backend"] or ("openai" if elsewhere else "hf")) in LOCAL
    if command == "check_data":
        return bool(values["student"]) or runs_here(values, "teacher") or runs_here(values, "judge")
    if command == "generate_synthetic" and runs_here(values, "question_model", "question_"):
        return True
    return "backend" in values and runs_here(values, "model", "")


def runs_here(values: Mapping[str, Any], model: str, before: str | None = None) -> bool:
    """Whether a model is run by this machine. model: its field.   before: how the names of its other fields begin."""
    before = f"{model}_" if before is None else before
    if not values[model]:
        return False
    try:
        return backend_of(values[model], values[f"{before}backend"], values[f"{before}base_url"]) in LOCAL
    except UsageError:  # its name says nothing: the command will say so
        return False


def gpu_of(environment: Mapping[str, str], index: int = 0, dev: Path = DEV) -> str | None:
    """The GPU that a program means by an index (0: when it is told none) among those that it may see.

    None where there is none, or none may be seen.
    """
    if sys.platform == "darwin":
        return "gpu0" if platform.machine() == "arm64" else None
    seen = environment.get("CUDA_VISIBLE_DEVICES", environment.get("HIP_VISIBLE_DEVICES"))
    there = any(dev.glob("nvidia[0-9]*")) or any((dev / name).exists() for name in ("kfd", "dxg"))  # AMD, WSL
    if not there or (seen is not None and not re.match(r"\w", seen.strip())):
        return None
    names = [name.strip() for name in seen.split(",")] if seen else []
    name = (names[index] if index < len(names) else names[0]) if names else str(index)
    return f"gpu{name}" if name.isdecimal() else f"gpu-{re.sub(r'[^A-Za-z0-9-]', '', name)[:64]}"
