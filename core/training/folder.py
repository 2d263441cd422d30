"""The folder of a run: one writer, checkpoints that are whole or not there, books that survive kill -9.

run.json                options with their origins, versions, hash of the data, how the run ended
metrics.jsonl           events, a line each          samples.jsonl       answers of the student
step-N/                 the model after step N; in the last one also training_state.pt, from which a run goes on
best/, final/           models                       best_metrics.json   why best/ is the best
gguf/                   the best model for llama.cpp and Ollama, with --export gguf
trained_on.txt          hashes of the prompts        held_out.jsonl      the rows that were held out
curves.png              drawn by `curves`            train_*/            written by the tracker tensorboard
"""

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..commands.training import TrainingCommand
from ..data.jsonlines import Journal, Row, cannot_write, lock
from ..data.run import Run, write_atomic, write_json
from ..errors import DistillError, InputError, StoppedEarly, UsageError
from . import checkpoints
from .ownership import BEST, FILES, METRICS, RUN, SAMPLES, TORN, TRACKED, check
from .record import Record, begin_record, differences, rounding

SAVED = "checkpoint_saved"
"""The last event of a step with a checkpoint."""
SaveModel = Callable[[Path], None]
"""Fills a folder with a model."""


class RunFolder:
    """OUTPUT_DIR, held alone by this process from `open` to `close`; nothing in it is changed before `begin`.

    finished: whether a run with these options has come to its end here, so that --resume has nothing to do.
    start_step: the step of the checkpoint from which `begin` goes on, or 0.   notes: lines for the user.
    """

    def __init__(
        self, options: TrainingCommand, origins: Mapping[str, str], identity: Mapping[str, Any], handle: int, made: bool
    ) -> None:
        """For `open`. handle: of the locked file. made: whether the folder was made just now."""
        self.path = options.output
        self.start_step = 0
        self.notes: list[str] = []
        self._options, self._handle, self._made = options, handle, made
        self._record = begin_record(options, origins, identity)
        self._before: Record | None = None
        self._events: Journal | None = None
        self._samples: Journal | None = None

    @classmethod
    def open(
        cls, options: TrainingCommand, origins: Mapping[str, str], identity: Mapping[str, Any] | None = None
    ) -> "RunFolder":
        """Hold the folder of a run that may begin in it.

        identity: what the result depends on besides the options and the data, by name.

        Raises UsageError: no folder, not writable, another run at work in it, another run's folder without --resume
        or --overwrite, --resume of nothing or of a run with other options, --overwrite of what no run wrote.
        """
        path = options.output
        check(options)  # reading only: what is refused at once gets no lock file
        made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(cannot_write(path, error)) from None
        try:
            try:
                lock(handle, path / ".lock")
            except UsageError:
                raise UsageError(f"another run is at work in {path}. Wait for it, or use another --output.") from None
            folder = cls(options, origins, identity or {}, handle, made)
            folder._compare(check(options))  # again: another run may have ended meanwhile
        except BaseException:
            os.close(handle)
            raise
        return folder

    def _compare(self, before: Record | None) -> None:
        """Raises UsageError when --resume would not give what the run was begun for."""
        self._before = before
        if before is None or not self._options.resume:
            return
        if lines := differences(type(self._options), before, self._record):
            raise UsageError(
                f"the run in {self.path} was begun with other options, and its result would be another:\n  "
                + "\n  ".join(lines)
                + f"\nGive --resume the options of {self.path / RUN}, or begin anew with --overwrite "
                "or another --output."
            )
        if lines := rounding(type(self._options), before, self._record):
            self.notes = [f"since the run began, {'; '.join(lines)}: the last digits of its result may differ"]

    def identify(self, **more: Any) -> None:
        """Note what else the result depends on, and is known only after `open`. Raises UsageError as `open` does."""
        self._record["identity"] |= more
        self._compare(self._before)

    def describe(self, **about: Any) -> None:
        """Note what people shall find in run.json; it decides nothing."""
        self._record |= about

    @property
    def identity_before(self) -> dict[str, Any]:
        """What `identify` noted of the run that --resume goes on with; {} where there is none."""
        return dict(self._before["identity"]) if self._options.resume and self._before is not None else {}

    @property
    def finished(self) -> bool:
        return self._options.resume and self._before is not None and self._before.get("status") == "done"

    @property
    def final_step(self) -> int:
        """The step of final/, where the run here has come to its end; else 0."""
        return int((self._before or {}).get("final_step", 0))

    @property
    def result(self) -> dict[str, Any]:
        """What `finish` was told of the run here, where it has come to its end."""
        return dict((self._before or {}).get("result", {}))

    @property
    def last_checkpoint(self) -> Path | None:
        """The folder from which --resume goes on (`checkpoints.load_state`, `student.load_weights`)."""
        return checkpoints.last_checkpoint(self.path)

    # ---- the beginning and the end -----------------------------------------------------------------------------

    def begin(self, data: Mapping[str, bytes] | None = None) -> None:
        """Start to write: a new run.json, or with --resume the old one, with the books cut back to the checkpoint.

        data: files that say what the run is trained on, by name; one that is there already stays.

        Raises UsageError when the folder cannot be written.
        """
        try:
            if self._options.resume:
                self._go_on()
            else:
                if self._before is not None:
                    self._remove()
                self._record["started"] = utc_now()
            if not self.finished:
                write_json(self.path / RUN, self._record)
            for name, contents in (data or {}).items():  # after run.json, which says whose they are
                if not (self.path / name).exists():
                    write_atomic(self.path / name, contents)
        except OSError as error:
            raise UsageError(cannot_write(self.path, error)) from None
        self._events = self._journal(METRICS)
        if (self.path / SAMPLES).exists():  # to be cut back; else there may never be a sample
            self._samples = self._journal(SAMPLES)

    def _go_on(self) -> None:
        """Mend what a killed run left, and find the step from which to go on."""
        assert self._before is not None
        self._remove_torn()
        checkpoints.mend(self.path)
        about = self.path / "best" / BEST
        if about.exists():  # the run may have been killed between the two
            write_atomic(self.path / BEST, about.read_bytes())
        found = self.last_checkpoint
        self.start_step = int(found.name.removeprefix("step-")) if found else 0
        if found is None and not self.finished:
            self.notes.append(f"{self.path} holds no checkpoint yet: the run begins again at its first step")
        again = {
            "step": self.start_step,
            "time": utc_now(),
            "changed": rounding(type(self._options), self._before, self._record),
        }
        resumed = [*self._before.get("resumed", []), again]
        self._record = self._before if self.finished else {**self._before, "status": "running", "resumed": resumed}

    def _remove(self) -> None:
        """Remove the run that was here. run.json stays until another takes its place: it tells whose folder this is."""
        self._remove_torn()
        checkpoints.mend(self.path)
        for name in [*(f"step-{step}" for step in checkpoints.steps(self.path)), "best", "final", "gguf", *TRACKED]:
            if (self.path / name).exists():
                checkpoints.discard(self.path / name)
        for name in FILES:
            if name != RUN:
                (self.path / name).unlink(missing_ok=True)

    def _remove_torn(self) -> None:
        for path in list(self.path.iterdir()):
            if TORN.fullmatch(path.name):
                path.unlink()

    def _journal(self, name: str) -> Journal:
        """A book, without what was written after the checkpoint from which the run goes on: those steps come again."""
        last = self.start_step if self.last_checkpoint else -1
        past = saved = False

        def look(_: int, row: Row) -> None:
            nonlocal past, saved
            past = past or saved or (isinstance(row.get("step"), int) and row["step"] > last)
            saved = saved or (row.get("event") == SAVED and row.get("step") == last)

        def keep(_: int, row: Row) -> bool:
            look(_, row)
            return not past

        try:
            journal = Journal(self.path / name, look)
        except InputError as error:
            raise UsageError(
                f"{self.path / name}:{error.line} is no line that a run wrote. Remove the line to go on with --resume, "
                "or begin anew with --overwrite."
            ) from None
        if past and not self.finished:
            past = saved = False
            journal.rewrite(keep)
        return journal

    def finish(self, status: str, **about: Any) -> None:
        """Note in run.json how the run ended: "done", after which --resume has nothing to do, or another word.

        Raises StoppedEarly when the disk is full.
        """
        self._write_json(RUN, {**self._record, "status": status, "ended": utc_now(), **about})

    def close(self) -> None:
        """Give the folder back. One in which nothing has begun is left as it was."""
        try:
            for journal in (self._events, self._samples):
                if journal is not None:
                    journal.close()
        finally:
            if self._events is None:
                with contextlib.suppress(OSError):  # it is only a matter of tidiness
                    (self.path / ".lock").unlink()
                    if self._made:
                        self.path.rmdir()
            os.close(self._handle)

    # ---- the books ---------------------------------------------------------------------------------------------

    def event(self, kind: str, *, step: int, **fields: Any) -> None:
        """A line in metrics.jsonl. What is not a number becomes null. Raises StoppedEarly when the disk is full."""
        self._append(self._events, {"event": kind, "step": step, "time": round(time.time(), 3), **fields})

    def sample(self, *, step: int, **fields: Any) -> None:
        """A line in samples.jsonl. Raises StoppedEarly when the disk is full."""
        if self._samples is None:
            self._samples = self._journal(SAMPLES)
        self._append(self._samples, {"step": step, **fields})

    def _append(self, journal: Journal | None, row: Row) -> None:
        assert journal is not None, "begin() comes first"
        try:
            journal.append(row)
        except StoppedEarly as error:
            raise StoppedEarly(f"{error} With --resume it goes on from the last checkpoint.") from None

    def _write_json(self, name: str, value: Any) -> None:
        try:
            write_json(self.path / name, value)
        except OSError as error:
            raise StoppedEarly(f"{cannot_write(self.path / name, error)} {self._kept()}") from None

    # ---- models ------------------------------------------------------------------------------------------------

    def checkpoint(self, step: int, save_model: SaveModel, state: dict[str, Any]) -> Path:
        """Write step-N/, with all that the run needs to go on from it; only the last one keeps that. Returns it.

        state: of tensors and plain values, as `torch.load(weights_only=True)` reads them.

        Raises StoppedEarly when it cannot be written; the one before it is whole then.
        """
        for journal in (self._events, self._samples):
            if journal is not None:
                journal.sync()  # the books reach as far as the checkpoint

        def write(folder: Path) -> None:
            save_model(folder)
            checkpoints.save_state(state, folder)

        target = self._put(f"step-{step}", write)
        try:
            checkpoints.drop_states(self.path, but=step)
        except OSError as error:
            raise StoppedEarly(f"{cannot_write(self.path, error)} {self._kept()}") from None
        return target

    def drop_checkpoints(self, but: int | None = None) -> None:
        """Remove every step-N/, or all but one. Raises StoppedEarly."""
        try:
            for step in checkpoints.steps(self.path):
                if step != but:
                    checkpoints.discard(self.path / f"step-{step}")
        except OSError as error:
            raise StoppedEarly(f"{cannot_write(self.path, error)} {self._kept()}") from None

    def tidy(self) -> None:
        """Remove what a run left that was killed when it had come to its end. Raises StoppedEarly."""
        checkpoints.mend(self.path)
        if not self._options.keeps_checkpoints:
            self.drop_checkpoints()

    def best(self, step: int, save_model: SaveModel, metrics: Mapping[str, float]) -> None:
        """Replace best/, and say in best_metrics.json by which measure. Raises StoppedEarly; best/ is whole then."""
        metric, mode = self._options.best_by
        about = {
            "metric": metric,
            "mode": mode,
            "value": metrics.get(metric),
            "step": step,
            "timestamp": utc_now(),
        }

        def write(folder: Path) -> None:
            save_model(folder)
            write_json(folder / BEST, about)  # within it, too: the two can be told apart after a kill

        self._put("best", write)
        self._write_json(BEST, about)

    def final(self, step: int, save_model: SaveModel) -> None:
        """Replace final/. Raises StoppedEarly; what was there is whole then."""
        self._put("final", save_model)
        self._record["final_step"] = step

    def _put(self, name: str, write: SaveModel) -> Path:
        target = self.path / name
        try:
            checkpoints.put_folder(target, write)
        except DistillError:
            raise
        except Exception as error:  # each library says in its own way that the disk is full
            why = checkpoints.reason(error)
            raise StoppedEarly(f"{target} cannot be saved: {why}. {self._kept()}") from error
        return target

    def _kept(self) -> str:
        """What there still is, and the next step."""
        last = self.last_checkpoint
        there = f"{last} is whole" if last else "No checkpoint was saved before it"
        return f"{there}. When that is mended, the same command with --resume goes on."


def open_folder(
    options: TrainingCommand, run: Run, processes: int, stack: ExitStack, ended_is_well: bool = False
) -> RunFolder:
    """The folder of a run, held until `stack` is closed. For process 0. Raises UsageError as `RunFolder.open` does, and
    when --resume has nothing to do, unless `ended_is_well`."""
    folder = RunFolder.open(options, run.origins, {"processes": processes})
    stack.callback(folder.close)
    if folder.finished:
        folder.tidy()
    if folder.finished and not ended_is_well:
        raise UsageError(
            f"the run in {options.output} has come to its end (step {folder.final_step}); there is nothing to resume."
        )
    return folder


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
