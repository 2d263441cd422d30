"""What a job is, and how its state is read: from its files, and from whether its processes live. Nothing is written."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from . import files, queue
from .processes import held, lives

T = TypeVar("T")
State = Literal["queued", "running", "cancelling", "succeeded", "stopped", "failed", "cancelled", "lost"]
"""succeeded: exit code 0, or 1 (some of it failed: the result says what).   stopped: what was finished is kept.
failed: the input was wrong, or the command crashed.   lost: it died without a word (kill -9, no memory, a reboot)."""
UNFINISHED: tuple[State, ...] = ("queued", "running", "cancelling")

SPEC, SUPERVISOR, WORKER = "spec.json", "supervisor.json", "worker.json"
LOG, PROGRESS, RESULT, EXIT = "log.txt", "progress.jsonl", "result.json", "exit.json"
CANCEL = "cancel_requested"
"""The files of a job. spec: what is to be done.   supervisor, worker: their processes.   result: the command's last
word.   exit: the supervisor's.   cancel_requested: a marker, empty."""

LOST = "its processes died without a word (kill -9, no memory, or a restart of the machine). What was finished is kept."
LAST_EVENTS = 1 << 14
"""Bytes; an event has a few hundred, and more with many metrics."""


@dataclass(frozen=True)
class Job:
    """A job as it stands at one moment.

    created, started, ended: Unix seconds.   device: whose queue it is in.   ahead: how many wait or run before it while
    it waits.   progress: the figures of its last event.   result: the command's result as JSON.   summary: the same as
    text.   error: why there is no result.
    """

    id: str
    command: str
    state: State
    created: float
    folder: Path
    started: float | None = None
    ended: float | None = None
    device: str | None = None
    ahead: int | None = None
    exit_code: int | None = None
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    summary: str | None = None
    error: str | None = None

    @property
    def finished(self) -> bool:
        return self.state not in UNFINISHED


def read_job(folder: Path) -> Job:
    """The job of a folder. Damaged or deleted files make it a lost one that says so."""
    spec = files.read(folder / SPEC)
    if spec is None:
        error = f"{SPEC} of this job was deleted or damaged, so nothing is known about it"
        return Job(folder.name, "", "lost", _changed(folder) or 0, folder, error=error)
    worker = files.read(folder / WORKER)
    told = files.read(folder / EXIT)
    alive = told is None and (held(folder / SUPERVISOR) or lives(worker))
    if not alive and told is None:
        told = files.read(folder / EXIT)  # written while we looked
    outcome = files.read(folder / RESULT) or {}
    state, error = ending(told, outcome, (folder / CANCEL).exists()) if not alive else _going(folder, worker)
    now = {} if alive else outcome
    return Job(
        id=folder.name,
        command=_of(str, spec.get("command")) or "",
        state=state,
        created=_time(spec.get("created")) or _changed(folder) or 0,
        folder=folder,
        started=_time((worker or {}).get("time")),
        ended=None if alive else _time((told or {}).get("time")) or _changed(folder / RESULT),
        device=_of(str, spec.get("device")),
        ahead=queue.ahead(spec, folder.name) if state == "queued" else None,
        exit_code=None if alive else _of(int, word_of(told, outcome).get("exit_code")),
        progress=last_figures(folder / PROGRESS),
        result=_of(dict, now.get("result")),
        summary=_of(str, now.get("summary")),
        error=error,
    )


def _going(folder: Path, worker: dict[str, Any] | None) -> tuple[State, None]:
    if (folder / CANCEL).exists():
        return "cancelling", None
    return ("running" if worker else "queued"), None


def ending(told: dict[str, Any] | None, outcome: dict[str, Any], cancelled: bool) -> tuple[State, str | None]:
    """(state, error) of a job whose processes are gone.

    told: the supervisor's last word.   outcome: the worker's.
    """
    code = word_of(told, outcome).get("exit_code")
    error = _of(str, outcome.get("error")) or _of(str, (told or {}).get("error"))
    if outcome.get("result") is not None:
        error = None
    signal = (told or {}).get("signal")
    if code in (0, 1) and (outcome or (told or {}).get("said") is not False):
        return "succeeded", None if outcome else error or f"its {RESULT} was deleted or damaged"
    if code == 1:  # Python's own, for an error that nobody could tell
        return "failed", "its command could not be run; the log says why"
    if code == 2 or outcome.get("crashed"):
        return "failed", error or "the log says why"
    if cancelled:
        return "cancelled", error
    if code in (3, 130) or signal == "SIGTERM":
        return "stopped", error
    if told is None or signal == "SIGKILL":
        return "lost", error or LOST
    return "failed", error or "the log says why"


def word_of(told: dict[str, Any] | None, outcome: dict[str, Any]) -> dict[str, Any]:
    """Whose word counts: the worker's where it has spoken. Its supervisor may have died before it; and a crash after
    the last word, while Python or a driver is left, undoes nothing."""
    return outcome if isinstance(outcome.get("exit_code"), int) else told or {}


def last_figures(path: Path) -> dict[str, Any] | None:
    """The figures of the last event: what, unit, total, already, done, failed, tokens, ..."""
    try:
        lines = files.tail(path, LAST_EVENTS).splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):  # torn: it is being written, or its writer died
            continue
        if isinstance(event, dict) and event.pop("event", None):
            return files.speakable(event)
    return None


def _of(kind: type[T], value: Any) -> T | None:
    """A value of a file that anybody may have changed; None for one of another type."""
    value = files.speakable(value)
    return value if isinstance(value, kind) else None


def _time(value: Any) -> float | None:
    """Unix seconds that a calendar has."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e11 else None


def _changed(path: Path) -> float | None:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None
