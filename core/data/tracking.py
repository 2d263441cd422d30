"""Trackers of experiments (trackio, tensorboard, wandb), which Accelerate drives: what is the same for all commands."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from ..errors import MissingDependency, pip_line
from .environment import credential


def check_tracker(track: str | None) -> None:
    """Raises MissingDependency for a tracker that is not installed: Accelerate would leave it out in silence."""
    if track and importlib.util.find_spec(track) is None:
        raise MissingDependency(track, f"--track {track}", pip_line(track))


def project_of(track: str | None, name: str) -> str:
    """What the tracker is to call the project. wandb reads its key from the environment alone, so .env goes there."""
    if track != "wandb":
        return name
    for key in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT"):
        if value := credential(key):
            os.environ.setdefault(key, value)
    return os.environ.get("WANDB_PROJECT", name)


def plain(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """A configuration as tensorboard takes it."""
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()}
