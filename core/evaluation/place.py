"""Where a report goes: reports/NAME, never over another one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..commands.evaluate import Evaluate
from ..data.jsonlines import cannot_write
from ..errors import InputError, UsageError
from .report import read_report

PARTS_OF_A_RUN = ("best", "final")


def report_folder(options: Evaluate) -> Path:
    """Raises InputError for a folder that holds something else."""
    folder = options.output or Path("reports") / (options.name or default_name(options))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "report.json").exists():
        if {entry.name for entry in folder.iterdir()} - {"plots"}:
            raise InputError(folder, None, "holds something else than a report. Choose another --output or --name.")
    elif folder.exists() and not folder.is_dir():
        raise InputError(folder, None, "is no folder. Choose another --output or --name.")
    return folder


def free_folder(
    folder: Path, settings: Mapping[str, Any], identities: Sequence[str], note: Callable[[str], None]
) -> Path:
    """The folder, unless another report is there: then NAME-2, and so on. The same models and settings make the same
    report, which is written anew."""
    free = folder
    for number in range(2, 10_000):
        if not (free / "report.json").exists():
            break
        try:
            there = read_report(free)
        except UsageError:  # of another version, or damaged
            pass
        else:
            if there.settings == settings and [model.identity for model in there.models] == list(identities):
                break
        note(f"{free} holds another report")
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def default_name(options: Evaluate) -> str:
    """That of what is evaluated: runs/gold/best -> gold-best."""
    if options.compare:
        return "-".join(["compared", *(path.name for path in options.compare)])[:80]
    first = options.student or (options.models or [""])[0].partition("=")[2] or str(options.scan)
    path = Path(first)
    inside_a_run = path.name in PARTS_OF_A_RUN or path.name.startswith("step-")
    name = f"{path.parent.name}-{path.name}" if inside_a_run and path.parent.name else path.name
    return name.strip("-.") or "report"


def make_folder(folder: Path) -> None:
    """Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(cannot_write(folder, error)) from None
