"""The folder of a data set: what lies in it, whose it is, and the record of its runs.

For --output-dir synthetic_datasets:
    train.jsonl, combined_N.json, combined_N.csv, reasoning.csv, ..., README.md    the data set (`export`, `card`)
    paid_answers.jsonl   every answer that was paid for, kept or not; all of the above can be made from it again
    rejected.jsonl       drafts of the last run that were not kept, with the reason
    failures.jsonl       requests of the last run that gave no answer
    run.json             what the data set is made of, and every run: its options, where they came from, its result
"""

import datetime
from pathlib import Path
from typing import Any

import orjson

from .. import __version__
from ..commands.generate_synthetic import TYPES, GenerateSynthetic
from ..data.jsonlines import cannot_write, lock
from ..data.run import Run, write_json
from ..errors import InputError, StoppedEarly, UsageError

OURS = (
    *("train.jsonl", "README.md", "combined_*.json", "combined_*.csv", *(f"{kind}.csv" for kind in TYPES)),
    *("paid_answers.jsonl", "rejected.jsonl", "failures.jsonl"),
)
"""What a run writes beside run.json."""


class Folder:
    """What a run may write. Looking at it touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers = path / "paid_answers.jsonl"
        self.rejected = path / "rejected.jsonl"
        self.failures = path / "failures.jsonl"
        self.train = path / "train.jsonl"
        self.card = path / "README.md"
        self.run = path / "run.json"
        self._said: dict[str, Any] = {"made_of": None, "runs": []}

    def check(self, made_of: dict[str, Any]) -> None:
        """Raises UsageError when the folder holds a data set of other things, or something else altogether."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file. Name a folder with --output-dir.")
        if not self.run.is_file():
            theirs = next(
                (path for pattern in OURS for path in sorted(self.path.glob(pattern)) if path.stat().st_size), None
            )
            if theirs is not None:
                raise UsageError(
                    f"{theirs} was not written by generate_synthetic, and it would be overwritten. Choose another "
                    "--output-dir."
                )
            return
        try:
            self._said = orjson.loads(self.run.read_bytes())
            before = dict(self._said["made_of"])
            list(self._said["runs"])
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                self.run, None, f"is damaged ({error}). --overwrite moves the folder aside and begins anew."
            ) from None
        if not self.answers.is_file() or not self.answers.stat().st_size:
            return  # nothing came of the runs so far
        differ = [part for name in made_of for part in _difference(name, before.get(name), made_of[name])]
        if differ:
            raise UsageError(
                f"{self.path} holds a data set that differs in this: {', '.join(differ)}. Give the same again, choose "
                "another --output-dir, or --overwrite, which keeps the old one beside it."
            )

    def move_aside(self) -> None:
        """For --overwrite: rename what is there. Raises UsageError, also when another run is at work."""
        if not self.path.exists():
            return
        if self.path.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise UsageError(f"--overwrite: {self.path} is where you are, and cannot be moved. Name a folder in it.")
        if self.answers.is_file():
            with self.answers.open("rb") as file:
                lock(file.fileno(), self.answers, "--output-dir")
        aside, number = self.path.with_name(f"{self.path.name}.old"), 2
        while aside.exists():
            aside, number = self.path.with_name(f"{self.path.name}.old{number}"), number + 1
        try:
            self.path.rename(aside)
        except OSError as error:
            raise UsageError(cannot_write(aside, error)) from None

    def make(self) -> None:
        """Make the folder where there is none. Raises UsageError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(cannot_write(self.path, error)) from None

    def begin(self, made_of: dict[str, Any], options: GenerateSynthetic, run: Run) -> None:
        """Add a run to the record. Raises UsageError."""
        try:
            said = options.model_dump(mode="json")
            about = {
                "command": "generate_synthetic",
                "version": __version__,
                "options": {k: {"value": v, "from": run.origins.get(k, "default")} for k, v in said.items()},
                "started": _now(),
                "result": None,
            }
            self._said["made_of"] = made_of
            self._said["runs"].append(about)
            write_json(self.run, self._said)
        except OSError as error:
            raise UsageError(cannot_write(self.run, error)) from None

    def end(self, result: dict[str, Any]) -> None:
        """Add its result to the run. Raises StoppedEarly."""
        self._said["runs"][-1] |= {"ended": _now(), "result": result}
        try:
            write_json(self.run, self._said)
        except OSError as error:
            raise StoppedEarly(cannot_write(self.run, error)) from None


def _difference(name: str, before: Any, now: Any) -> list[str]:
    """What is another, in words: "mix", or "temperature of the model that answers"."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [f"{part} of the {name}" for part in now if before.get(part) != now[part]]
    return [] if before == now else [name]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
