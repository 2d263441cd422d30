"""Who may use a device next: a ticket for each job, in the order of their starts, and a lock for each that may run.

The folder of a device belongs to a user and a machine, not to a workspace. A job's supervisor and worker hold both, so
that a device is free only when both are gone.
"""

import os
import platform
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .processes import held, hold

AT_ONCE = "DISTILL_JOBS_PER_DEVICE"
"""The variable that says how many jobs may use a device at once (default: 1)."""


@dataclass(frozen=True)
class Place:
    """A job's place in the queue of a device. folder: of the device.   ticket: file name; their order is the queue's.
    at_once: how many jobs may use the device."""

    folder: Path
    ticket: str
    at_once: int

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "Place | None":
        """What a spec says; None for work that waits for no device."""
        match spec.get("queue"):
            case {"folder": str(folder), "ticket": str(ticket), "at_once": int(at_once)}:
                return Place(Path(folder), ticket, at_once)
            case _:
                return None

    def noted(self) -> dict[str, Any]:
        """For the spec."""
        return {"folder": str(self.folder), "ticket": self.ticket, "at_once": self.at_once}

    def take(self) -> int:
        """Queue up. The ticket counts while anybody has the descriptor that this returns (see `hold`).

        Raises UsageError where nothing can be written.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = hold(self.folder / f".{self.ticket}")
            os.rename(self.folder / f".{self.ticket}", self.folder / self.ticket)  # nobody saw it before it was held
            return handle
        except OSError as error:
            raise UsageError(
                f"no job can wait for {self.folder.name}: {self.folder}: {error.strerror}. Make room, or set "
                "XDG_CACHE_HOME to a folder that can be written."
            ) from None

    def leave(self) -> None:
        (self.folder / self.ticket).unlink(missing_ok=True)

    def before(self) -> list[Path]:
        """Tickets of living jobs before this one."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        earlier = (self.folder / name for name in names if name.startswith("ticket-") and name < self.ticket)
        return [path for path in earlier if held(path)]

    def lock(self) -> int | None:
        """A file descriptor that stands for the right to use the device while it is open; None while others use it.

        Raises OSError on a file system without locks.
        """
        import fcntl

        if len(self.before()) >= self.at_once:
            return None
        for number in range(self.at_once):
            handle = os.open(self.folder / f"lock-{number}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle
            except BlockingIOError:
                os.close(handle)
            except BaseException:
                os.close(handle)
                raise
        return None

    def clean(self) -> None:
        """Remove the tickets of the dead."""
        for name in os.listdir(self.folder):
            path = self.folder / name
            if name.startswith("ticket-") and name != self.ticket and not held(path):
                path.unlink(missing_ok=True)


def new_place(device: str, job: str, created_ns: int, environment: Mapping[str, str]) -> Place:
    """A place at the end of a device's queue. Raises UsageError for a wrong DISTILL_JOBS_PER_DEVICE."""
    said = environment.get(AT_ONCE) or "1"
    if not said.isdecimal() or not 1 <= int(said) <= 64:
        raise UsageError(f"{AT_ONCE}={said} is no number of jobs from 1 to 64.")
    folder = queues(environment) / device
    last = max(
        map(_number, os.listdir(folder) if folder.is_dir() else ()), default=0
    )  # the clock may have been set back
    return Place(folder, f"ticket-{max(created_ns, last + 1):020d}-{job}", int(said))


def _number(name: str) -> int:
    """When the job of a ticket was started, in nanoseconds; 0 for another file."""
    found = re.match(r"ticket-(\d{20})-", name)
    return int(found[1]) if found else 0


def queues(environment: Mapping[str, str]) -> Path:
    """The folder of this user's queues on this machine. A home may be shared by machines, whose devices are not."""
    cache, home = environment.get("XDG_CACHE_HOME"), environment.get("HOME")
    if cache and os.path.isabs(cache):
        base = Path(cache) / "distill"
    elif home and os.path.isdir(home):
        base = Path(home) / ".cache" / "distill"
    else:  # a user without a home, as services have none
        base = Path(tempfile.gettempdir()) / f"distill-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        if base.is_symlink() or base.stat().st_uid != os.getuid():  # that folder is everybody's
            raise UsageError(f"{base} belongs to somebody else. Set XDG_CACHE_HOME to a folder of yours.")
    return base / "devices" / (platform.node() or "here")


def ahead(spec: Mapping[str, Any], job: str) -> int | None:
    """How many jobs wait or run before one in its queue; None where it waits for no device."""
    place = Place.of(spec)
    return len(place.before()) if place and place.ticket.endswith(job) else None
