"""run.json: what a run was begun with, and whether the same would come of other options."""

import hashlib
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from .. import __version__
from ..commands.base import flag
from ..commands.training import TrainingCommand

Record = dict[str, Any]


def begin_record(options: TrainingCommand, origins: Mapping[str, str], identity: Mapping[str, Any]) -> Record:
    """A new run.json, as JSON holds it.

    identity: what the result depends on besides the options and the data, by name (the number of processes, ...).
    """
    record = {
        "command": options.name,
        "status": "running",
        "options": options.model_dump(mode="json"),
        "origins": dict(origins),
        "cwd": os.getcwd(),  # relative paths of the options begin here
        "data_sha256": sha256(options.data),
        "identity": dict(identity),
        "versions": versions(),
        "resumed": [],
    }
    return orjson.loads(orjson.dumps(record, default=str))


def read_record(path: Path, command: str) -> Record | None:
    """The run.json of an earlier run of a command; None where there is none, or somebody else's."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    ours = isinstance(found, dict) and found.get("command") == command
    return found if ours and all(isinstance(found.get(key), dict) for key in ("options", "identity")) else None


def differences(command: type[TrainingCommand], before: Record, now: Record) -> list[str]:
    """What differs between two records such that the result would, a line each: was and is."""
    lines: list[str] = []
    hashes = before.get("data_sha256"), now["data_sha256"]  # the same data may have moved
    for name, value in now["options"].items():
        same = before["options"].get(name) == value
        if name == "data" and None not in hashes:
            if hashes[0] != hashes[1]:
                was, now_is = (str(each)[:12] for each in hashes)
                lines.append(f"--data {value}: its content has changed (sha256 was {was}..., is {now_is}...)")
        elif not same and name not in command.without_effect and name not in command.rounding:
            why = f" ({command.why[name]})" if name in command.why else ""
            lines.append(f"{flag(name)}: was {shown(before['options'].get(name))}, is {shown(value)}{why}")
    for name in sorted(now["identity"]):  # what else the earlier run was may not be known yet
        was, now_is = before["identity"].get(name), now["identity"].get(name)
        if was != now_is:
            lines.append(f"{name}: was {shown(was)}, is {shown(now_is)}")
    return lines


def rounding(command: type[TrainingCommand], before: Record, now: Record) -> list[str]:
    """What differs such that the result may differ in its last digits, a line each."""
    versions_before = before.get("versions") or {}
    pairs = [(flag(name), before["options"].get(name), now["options"][name]) for name in command.rounding]
    pairs += [(name, versions_before.get(name), version) for name, version in now["versions"].items()]
    return [f"{name} was {shown(was)}, is {shown(now_is)}" for name, was, now_is in pairs if was != now_is]


def shown(value: Any) -> str:
    """As the command line would take it."""
    if value is None:
        return "not given"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def sha256(data: str) -> str | None:
    """Of the data's bytes; None when they are in no file of this machine."""
    try:
        with open(data, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def versions() -> dict[str, str | None]:
    """Of what computes; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "distill": __version__}
    for name in ("torch", "transformers", "accelerate", "peft", "trl", "llama-cpp-python"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
