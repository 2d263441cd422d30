"""Which folder is the workspace when nobody names one: the folder that the assistant works in, as far as it tells."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from core import bootstrap

BUNDLE = Path(__file__).resolve().parents[1]
PROJECT_KEY = "CLAUDE_PROJECT_DIR"


@dataclass(frozen=True)
class Place:
    """folder: the workspace.   why: how it came to be that one, for whoever wonders."""

    folder: Path
    why: str
    is_ours: bool = False
    """Whether it is our own folder, because none of the user's was found."""


def choose(named: Path | None) -> Place:
    """The workspace: what is named, or the first of these that is a folder of the user's own, as `is_usable` says.

    1. the current folder: Claude Code, Gemini CLI and OpenCode start servers where the user is
    2. CLAUDE_PROJECT_DIR
    3. the current folder of the program that started this one: Codex and Copilot start servers in the plugin's folder,
       and are themselves where the user is
    4. `workspace` in the user's data folder of distill, which is made

    Raises OSError where the last one cannot be made, bootstrap.Unable where there is no home folder for it.
    """
    if named is not None:
        return Place(named, "as named")
    for folder, why in candidates():
        if is_usable(folder):
            return Place(folder, why)
    ours = Path(bootstrap.data_folder()) / "workspace"
    ours.mkdir(parents=True, exist_ok=True)
    return Place(ours, "the server was started in no project", is_ours=True)


def candidates() -> Iterator[tuple[Path, str]]:
    try:
        yield Path.cwd(), "the current folder"
    except FileNotFoundError:  # removed meanwhile
        pass
    if project := os.environ.get(PROJECT_KEY):
        yield Path(project), PROJECT_KEY
    try:
        if parent := psutil.Process().parent():
            yield Path(parent.cwd()), f"the current folder of {parent.name()}, which started the server"
    except (psutil.Error, OSError):  # it has ended, or is somebody else's
        pass


def is_usable(folder: Path) -> bool:
    """Whether a folder can be meant though nobody named it: not this bundle, which an update replaces, nor the user's
    whole home or machine, where a program stands that was started from a menu."""
    if not folder.is_absolute() or not folder.is_dir():
        return False
    real = folder.resolve()
    return not real.is_relative_to(BUNDLE) and real not in (Path(real.anchor), Path(os.path.expanduser("~")).resolve())
