"""Whether a job's processes live: told by a lock that they hold, which is seen from other containers and machines too;
on file systems without locks by number and start, because numbers are used again."""

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tools import leash
from . import files

if TYPE_CHECKING:
    import psutil

LINUX = sys.platform.startswith("linux")
ASKING = (signal.SIGINT, signal.SIGTERM)
"""By which a worker is asked to end; blocked until it can answer."""
JOB = "DISTILL_JOB"
"""The variable by which the processes that a job's command starts are known, wherever they went."""


def hold(path: Path) -> int:
    """A descriptor of a new file, which is locked while anybody has it: this process, and those that inherit it.

    Raises OSError.
    """
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # no locks here: what `sign` writes has to do
        pass
    return handle


def sign(handle: int, note: dict[str, Any]) -> None:
    """Write into a file of `hold` which process holds it. Raises OSError."""
    os.pwrite(handle, json.dumps(note).encode(), 0)


def held(path: Path) -> bool:
    """Whether anybody who lives has a file that `hold` made."""
    import fcntl

    try:
        with files.opened(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return lives(files.read(path))
    return False


def noted(pid: int) -> dict[str, Any]:
    """What to write down about a living process. Raises ProcessLookupError for a dead one."""
    start = start_of(pid)
    if start is None:
        raise ProcessLookupError(errno.ESRCH, "died at once", f"process {pid}")
    return {"pid": pid, "start": start}


def lives(note: dict[str, Any] | None) -> bool:
    """Whether the process of a note is alive. A zombie is not: it waits for a parent that may never ask."""
    if note is None or not isinstance(note.get("pid"), int) or note["pid"] <= 0:
        return False
    return start_of(note["pid"]) == note.get("start")


def start_of(pid: int) -> str | None:
    """When a living process began, in a form that only serves for comparison; None for a dead one."""
    if LINUX:
        # In ticks since the boot: psutil has it in seconds since 1970, which move when the clock is set.
        start = leash.process_start(pid)
        return f"{boot()}-{start}" if start else None
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def boot() -> str:
    """Which start of the machine this is."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def be_subreaper() -> None:
    """Become the parent of descendants whose own parents die, so that none escapes (Linux; elsewhere they do)."""
    if LINUX:
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def signal_descendants(number: int) -> None:
    """Send a signal to every process below this one."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        _send(process, number)


def end_marked(job: str, grace_s: float) -> None:
    """End all other processes that bear a job's mark: SIGTERM, and SIGKILL for those that do not listen."""
    import psutil

    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 0)):
        ours = marked(job)
        for process in ours:
            _send(process, number)
        psutil.wait_procs(ours, wait_s)


def marked(job: str) -> "list[psutil.Process]":
    """The other processes that bear a job's mark; without a leash's keepers and what these have started, which remove
    containers and end then."""
    import psutil

    keeper = str(Path(leash.__file__).resolve())
    found: list[tuple[psutil.Process, int]] = []
    keepers: set[int] = set()
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.environ().get(JOB) != job:
                continue
            if keeper in process.cmdline():
                keepers.add(process.pid)
            else:
                found.append((process, process.ppid()))
        except (psutil.Error, OSError):  # somebody else's, or gone
            pass
    return [process for process, parent in found if parent not in keepers]


def _send(process: "psutil.Process", number: int) -> None:
    import psutil

    try:
        process.send_signal(number)  # which looks first whether the number was used again
    except psutil.Error:
        pass
