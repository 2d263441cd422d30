"""The folder of rollouts: one file each, written whole or not at all; which of them are finished, by key."""

import datetime
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.jsonlines import cannot_write, lock
from ..data.keys import KeyCounts
from ..data.rollouts import NotARollout, read_rollout, rollout_paths
from ..data.run import write_json
from ..errors import StoppedEarly, UsageError
from .rollout_tally import own_fault

TORN = re.compile(r"^\.\d{8}_\d{6}_[0-9a-f]{8}\.json\..+")
"""A file that was being written when its run was killed."""

KEY = re.compile(r"[0-9a-f]{32}")


class Shelf:
    """Rollouts of earlier runs, and where new ones go. `with shelf.open()` holds the folder alone.

    max_turns: of this run; what ended at a lower limit is run again.
    """

    def __init__(self, folder: Path, max_turns: int = 0) -> None:
        self.folder, self._max_turns = folder, max_turns
        self.foreign = 0
        """Files in the folder that are no rollouts."""
        self._finished, self._succeeded, self._unchecked = KeyCounts(), KeyCounts(), KeyCounts()
        self.faults: set[str] = set()
        """Keys of what ended in an error of the model's own: no success, and run again."""
        self._again: dict[str, Path] = {}  # key -> file that ended in an error: the next run takes its place
        self.unjudged: dict[str, Path] = {}
        """key -> finished rollout at which a reward function failed."""
        self._cost_usd, self._with_cost = 0.0, 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Raises UsageError: the folder cannot be made or written, or another run is at work in it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(cannot_write(self.folder, error)) from None
        try:
            self._lock(handle)
            for path in self.folder.iterdir():
                if TORN.match(path.name):
                    path.unlink()
            self.read()
            yield
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        try:
            lock(handle, self.folder / ".lock")
        except UsageError:
            raise UsageError(
                f"another run is at work in {self.folder}. Wait for it, or use another --output "
                "(convert_rollouts reads a folder with all folders below it)."
            ) from None

    def read(self) -> None:
        """See what is there."""
        if not self.folder.is_dir():
            return
        for path in rollout_paths(self.folder):
            try:
                rollout = read_rollout(path)
            except NotARollout:
                self.foreign += 1
                continue
            if rollout.key is None or not KEY.fullmatch(rollout.key):
                continue  # somebody else's
            provenance = rollout.record.get("provenance")
            provenance = provenance if isinstance(provenance, dict) else {}
            limit = provenance.get("max_turns")
            short = provenance.get("ended") == "max_turns" and isinstance(limit, int) and limit < self._max_turns
            if rollout.completed is not True or short:
                self._again[rollout.key] = path
                if rollout.completed == "error" and own_fault(provenance, rollout.turns):
                    self.faults.add(rollout.key)
                continue
            self._finish(rollout.key, rollout.success is True, rollout.reward is None)
            if any(value in ("error", "timeout") for value in rollout.rewards.values()):
                self.unjudged[rollout.key] = path
            cost = provenance.get("cost_usd")
            if isinstance(cost, int | float):
                self._cost_usd, self._with_cost = self._cost_usd + cost, self._with_cost + 1

    def has(self, key: str) -> bool:
        """Whether there is a rollout that did not end in an error."""
        return key in self._finished

    def _finish(self, key: str, success: bool, unchecked: bool) -> None:
        """Know a rollout that ended without an error, and its verdict."""
        self._finished.add(key)
        if success:
            self._succeeded.add(key)
        if unchecked:
            self._unchecked.add(key)

    def succeeded(self, key: str) -> bool:
        """Whether there is a rollout that is a success."""
        return key in self._succeeded

    def unchecked(self, key: str) -> bool:
        """Whether it was judged without an expected answer or rewards."""
        return key in self._unchecked

    @property
    def mean_cost_usd(self) -> float | None:
        """What a finished rollout has cost; None when there is none to go by."""
        return self._cost_usd / self._with_cost if self._with_cost else None

    def place_for(self, key: str, started: datetime.datetime) -> Path:
        """The file of a rollout: a new one, or that of an earlier attempt which ended in an error."""
        if key in self._again:
            return self._again[key]
        return self.folder / f"{started:%Y%m%d_%H%M%S}_{uuid.uuid4().hex[:8]}.json"

    def write(self, path: Path, record: dict[str, Any]) -> None:
        """Write a file. Raises StoppedEarly when the disk is full."""
        try:
            write_json(path, record)
        except OSError as error:
            raise StoppedEarly(cannot_write(path, error)) from None

    def put(self, path: Path, record: dict[str, Any], key: str) -> None:
        """Write a rollout. Raises StoppedEarly when the disk is full."""
        self.write(path, record)
        self.faults.discard(key)
        if record["completed"] is True:
            self._finish(key, record.get("success") is True, "total_reward" not in record)
            self._again.pop(key, None)
            cost = record["provenance"]["cost_usd"]
            if cost is not None:
                self._cost_usd, self._with_cost = self._cost_usd + cost, self._with_cost + 1
        else:
            self._again[key] = path
            if record["completed"] == "error" and own_fault(record["provenance"], record.get("turns") or 0):
                self.faults.add(key)
