"""Everything that `distill` raises on purpose.

    DistillError
    ├── UsageError (ValueError)             exit 2: the input or the configuration is wrong, nothing was started
    │   ├── InputError                      a place in a file: "prompts.jsonl:17: ..."
    │   ├── MissingKey                      an API key that is not set
    │   ├── MissingDependency (ImportError) a package that is not installed, with the line that installs it
    │   └── ModelNotFound                   a model name, with every place that was tried
    ├── StoppedEarly                        exit 3: what was finished is kept
    │   └── BudgetReached                   --max-cost does not allow what would come next
    ├── Elsewhere                           another process of the job has said why
    └── TeacherError                        one attempt at one piece of work did not give an answer
        ├── RequestRejected                 this request cannot succeed as it is: fail the row
        ├── TransientError                  the same request may succeed later: try again
        │   └── Throttled                   ... and the whole run should slow down
        └── TeacherUnavailable              no request can succeed: stop the run

A message says the fact, the place and the next step. This module imports the standard library only, so that
a Python without our dependencies can still print one readable line.
"""

import os
import re
import shlex
import shutil
import sys
from enum import IntEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class ExitCode(IntEnum):
    """What a command tells the shell."""

    DONE = 0
    SOME_FAILED = 1
    USAGE = 2
    STOPPED = 3
    INTERRUPTED = 130


class DistillError(Exception):
    """Base of all errors that are shown as one line, without a traceback."""

    exit_code = ExitCode.STOPPED


class UsageError(DistillError, ValueError):
    """The input or the configuration is wrong; nothing was started or spent."""

    exit_code = ExitCode.USAGE


class InputError(UsageError):
    """Something is wrong at a place in a file (line numbers start at 1)."""

    def __init__(self, path: str | Path, line: int | None, message: str) -> None:
        place = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {message}")
        self.line = line


class MissingKey(UsageError):
    """An API key is not set."""


class MissingDependency(UsageError, ImportError):
    """A package is not installed. install: the extra that brings it, or the line that installs it."""

    def __init__(self, package: str, why: str, install: str) -> None:
        line = install_line(install) if re.fullmatch(r"[a-z]+", install) else install
        super().__init__(f"{why} needs the package {package}, which is not installed. Run: {line}")


class ModelNotFound(UsageError):
    """A local model was found nowhere."""


class StoppedEarly(DistillError):
    """The command cannot go on; what was finished is kept."""


class BudgetReached(StoppedEarly):
    """--max-cost does not allow what would come next."""


class Elsewhere(DistillError):
    """Another process of this job cannot go on and has told the user why; this one ends with the same exit code."""

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class TeacherError(DistillError):
    """One attempt gave no usable answer.

    reason: one lower-case word for counting ("context_length", "timeout").
    cost_usd: what the attempt cost where the teacher said so; None when unknown.
    billed: whether the attempt may have cost money although no answer came of it.
    """

    def __init__(self, reason: str, message: str, *, billed: bool = False, cost_usd: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.billed = billed
        self.cost_usd = cost_usd


class RequestRejected(TeacherError):
    """This request cannot succeed as it was sent. row: which of several that were sent together, from 0."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        billed: bool = False,
        cost_usd: float | None = None,
        row: int | None = None,
    ) -> None:
        super().__init__(reason, message, billed=billed, cost_usd=cost_usd)
        self.row = row


class TransientError(TeacherError):
    """The same request may succeed when it is sent again."""


class Throttled(TransientError):
    """The teacher asks for fewer requests. retry_after_s: how long it wants silence, where it said so."""

    def __init__(self, reason: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason, message)
        self.retry_after_s = retry_after_s


class TeacherUnavailable(TeacherError):
    """No request of this run can succeed: a bad key, no money, a server that is not an API.

    usage: whether the user's configuration is the cause (exit 2 when nothing had been done yet).
    """

    def __init__(self, reason: str, message: str, *, usage: bool = False) -> None:
        super().__init__(reason, message)
        self.usage = usage


def install_line(extra: str) -> str:
    """The line that installs an extra: the doctor's, by a path that works in the current folder; without the scripts,
    which is to say in the wheel, pip's."""
    if not in_bundle():
        return pip_line(f"distill-kit[{extra}]")
    launcher = os.environ.get("DISTILL_LAUNCHER", "")
    python, typed = "python3", launcher
    if not launcher and Path(sys.argv[0]).resolve().parent == ROOT / "scripts":
        python, typed = this_python(), sys.argv[0]
    doctor = Path(typed).parent / "doctor.py"
    if not typed or not doctor.is_file():  # a job's process, or the MCP server's
        doctor = ROOT / "skills" / "off-policy" / "scripts" / "doctor.py"
        doctor = doctor.relative_to(Path.cwd()) if doctor.is_relative_to(Path.cwd()) else doctor
    return f"{python} {shlex.quote(str(doctor))} --install {extra}"


def in_bundle() -> bool:
    """Whether this is a checkout or a plugin, with scripts, and not the installed wheel."""
    return (ROOT / "scripts" / "doctor.py").is_file()


def pip_line(*packages: str) -> str:
    """The line that installs packages which no extra brings, into the running Python."""
    return f"{this_python()} -m pip install {shlex.join(packages)}"


def this_python() -> str:
    """The running Python as one would type it."""
    path = Path(sys.executable).absolute()
    for name in ("python3", "python"):
        found = shutil.which(name)
        if found and Path(found).absolute().parent == path.parent and Path(found).resolve() == path.resolve():
            return name
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
