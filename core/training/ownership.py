"""Whether a run may begin in a folder: whose it is, and what in it is not ours."""

import re
from pathlib import Path

from ..commands.training import TrainingCommand
from ..data.jsonlines import cannot_write
from ..data.trained_on import HELD_OUT, TRAINED_ON
from ..errors import UsageError
from . import checkpoints
from .checkpoints import KEPT, LEFT
from .record import Record, begin_record, differences, read_record

RUN, METRICS, SAMPLES, BEST, CURVES = "run.json", "metrics.jsonl", "samples.jsonl", "best_metrics.json", "curves.png"
FILES = (METRICS, SAMPLES, BEST, CURVES, TRAINED_ON, HELD_OUT, RUN)
TORN = re.compile(
    r"\.(run\.json|best_metrics\.json|curves\.png|trained_on\.txt|held_out\.jsonl)\..+|(metrics|samples)\.jsonl\.new"
)
"""A file that was being written when its run was killed."""
TRACKED = ("train_gold", "train_sft")
"""Accelerate names the folder of a tracker's files after the run."""


def check(options: TrainingCommand) -> Record | None:
    """The record of the run that is in the folder; None where there is none. Reads only.

    Raises UsageError for a folder in which no run may begin with these options, whoever else is at work in it.
    """
    path = options.output
    try:
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is not a folder. Name another with --output.")
        there = sorted(path.iterdir()) if path.exists() else []
    except OSError as error:
        raise UsageError(cannot_write(path, error)) from None
    record = read_record(path / RUN, options.name)
    foreign = [each.name for each in there if not is_ours(each) and not each.name.startswith(".")]
    taken = [each.name for each in there if each.name in FILES or KEPT.fullmatch(each.name)]
    if record is None and options.resume:
        raise UsageError(f"there is no run in {path} to go on with: it holds no {RUN} of one. Leave out --resume.")
    if record is None and taken:
        raise UsageError(
            f"{path} holds {some(taken)}, but no {RUN} of a run of {options.name}: it may be somebody else's. "
            "Name another folder with --output."
        )
    if record is not None and options.overwrite and foreign:
        raise UsageError(
            f"{path} holds what no run wrote: {some(foreign)}. --overwrite removes runs only: move it elsewhere, or "
            "name another folder with --output."
        )
    if record is not None and options.overwrite:
        for name in options.inputs:
            given = Path(name).expanduser() if name else None
            if given and given.exists() and given.resolve().is_relative_to(path.resolve()):
                raise UsageError(f"--overwrite would remove {name}, which lies in {path}. Name another --output.")
    if record is not None and not options.resume and not options.overwrite:
        last = checkpoints.last_checkpoint(path)
        at = f"last checkpoint {last.name}" if last else "no checkpoint"
        raise UsageError(
            f"{path} holds a run already (begun {record.get('started')}, {record.get('status')}, {at}). --resume goes "
            "on with it, --overwrite removes it; or name another folder with --output."
        )
    return record


def is_ours(path: Path) -> bool:
    """Whether runs write such a thing."""
    if path.is_symlink():
        return False
    if path.is_dir():
        return bool(KEPT.fullmatch(path.name) or LEFT.fullmatch(path.name)) or path.name in TRACKED
    return path.name in FILES or path.name == ".lock" or bool(TORN.fullmatch(path.name))


def some(names: list[str]) -> str:
    """The first five of them."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def is_done(options: TrainingCommand) -> bool:
    """Whether a run of these options, on this data, has come to its end in their output folder."""
    before = read_record(options.output / RUN, options.name)
    if before is None or before.get("status") != "done":
        return False
    return not differences(type(options), before, begin_record(options, {}, before["identity"]))
