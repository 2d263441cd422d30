"""Folders that are whole or not there at all: written under another name, brought to the disk, renamed.

A folder cannot be renamed over another, so a new best/ takes two renames: best -> .best.old, .best.new -> best. What
a killed run left between the two is put right by `mend`.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..data.jsonlines import cannot_write
from ..errors import UsageError

STATE = "training_state.pt"
"""All that a step-N/ holds besides the model. Only the last one does: it is twice as large as the model."""
TRAINER_STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state(_\d+)?)\.(pt|pth)|trainer_state\.json")
"""What a step-N/ of `train_sft` holds besides that: the files of transformers' Trainer."""
STAGING = ".checkpoint.new"
"""Where the Trainer writes a checkpoint before it gets its name."""
KEPT = re.compile(r"best|final|gguf|step-(0|[1-9]\d*)")
LEFT = re.compile(r"\.(?P<name>best|final|gguf|checkpoint|step-\d+|train_gold|train_sft)\.(?P<part>new|old|gone)")


def put_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, and give it its name only when all of it is on the disk.

    Another folder of that name is replaced. When anything is raised, it stands as before and nothing else is left.
    """
    new, old = hidden(target, "new"), hidden(target, "old")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        write(new)
        sync_tree(new)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise
        sync(target.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def hidden(target: Path, part: str) -> Path:
    """best, new -> .best.new"""
    return target.with_name(f".{target.name}.{part}")


def mend(folder: Path) -> None:
    """Put right what a killed run left: a replaced folder returns when its successor has not taken its place, what was
    written by half or removed by half goes. Raises UsageError when it may not."""
    try:
        for path in sorted(folder.iterdir()):
            match = LEFT.fullmatch(path.name)
            if match and match["part"] == "old" and not (folder / match["name"]).exists():
                os.rename(path, folder / match["name"])
            elif match:
                shutil.rmtree(path)
    except OSError as error:
        raise UsageError(cannot_write(folder, error)) from None


def discard(target: Path) -> None:
    """Remove a folder so that half of it never bears its name. Raises OSError."""
    gone = hidden(target, "gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(target, gone)
    shutil.rmtree(gone)


def steps(folder: Path) -> list[int]:
    """The steps with a step-N/, in order."""
    names = [path.name for path in folder.iterdir() if KEPT.fullmatch(path.name)]
    return sorted(int(name.removeprefix("step-")) for name in names if name.startswith("step-"))


def last_checkpoint(folder: Path) -> Path | None:
    """The last step-N/ from which a run can go on."""
    whole = [step for step in steps(folder) if (folder / f"step-{step}" / STATE).exists()]
    return folder / f"step-{whole[-1]}" if whole else None


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Write what `load_state` reads. Raises what torch.save raises, and an error for a state that could not be read
    back: better now than when it is needed."""
    with open(folder / STATE, "wb") as file:  # given a path, torch does not tell that the disk is full
        torch.save(state, file)
    torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)


def load_state(folder: Path) -> dict[str, Any]:
    """What the checkpoint of a folder holds besides the model, on the CPU. Raises UsageError."""
    path = folder / STATE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise nearly anything
        raise UsageError(
            f"{path} cannot be read ({reason(error)}), so the run cannot go on from it. Begin anew with --overwrite; "
            f"to begin with the weights in {folder}, name a copy of it as the model of a new run."
        ) from None


def drop_states(folder: Path, but: int) -> None:
    """Remove the training states of all steps but one; their models stay. Raises OSError."""
    for step in steps(folder):
        if step != but:
            for path in (folder / f"step-{step}").iterdir():
                if path.name == STATE or TRAINER_STATE.fullmatch(path.name):
                    path.unlink()


def reason(error: BaseException) -> str:
    """Why something failed, in one line; of an error that came of the system's, the system's words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    if any(word in str(error) for word in ("unexpected pos", "iostream error", "PytorchStreamWriter")):
        return "it could not be written to its end: the disk may be full"  # torch.save does not tell
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def sync_tree(folder: Path) -> None:
    """Bring a folder with all that is in it to the disk. Raises OSError."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync(Path(place) / name)
        sync(Path(place))


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk. Raises OSError."""
    if os.name != "posix":  # no way to open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot do this for folders
            raise
    finally:
        os.close(handle)
