"""What an SFT run keeps and shows: measures, the best student, progress, checkpoints. The loop itself is TRL's."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from ..commands.train_sft import SftTrained, TrainSft
from ..data.run import Run
from ..errors import StoppedEarly
from ..plots.curves import draw_curves
from .checkpoints import load_state
from .folder import SAVED, RunFolder
from .ownership import CURVES, METRICS
from .student import Student
from .world import World

CARRIED = ("step", "best_step", "stale", "ended", "rows", "tokens", "before", "after", "best", "losses", "measured_at")
"""What a run that goes on takes over from its checkpoint."""
CARD = "README.md"
LAST = 10
"""The loss that is told at the end is the mean over the last one in so many of the steps."""


class SftBooks:
    """The books of one run. All processes keep them alike; process 0 alone has a folder, and --dry-run has none.

    step: optimiser steps made.   losses: of all steps.   rows, tokens: trained on, over all steps and processes.
    last: the figures of the last step.
    before, after, best: held-out measures at step 0, now, and at best_step.   measured_at: the step of `after`.
    stale: validations in a row without improvement.   ended: --patience has ended the run.
    interrupted: the user wants to leave.
    """

    def __init__(
        self, options: TrainSft, run: Run, world: World, folder: RunFolder | None, student: Student, steps: int
    ) -> None:
        self.options, self.run, self.world, self.folder, self.student = options, run, world, folder, student
        self.steps = steps
        self.step = self.best_step = self.stale = self.rows = self.tokens = 0
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.losses: list[float] = []
        self.last: dict[str, float] = {}
        self.ended = self.interrupted = False
        self.measured_at = -1
        self.card: Callable[[SftBooks], str] = lambda books: ""
        """Writes the model card that best/ and final/ get."""
        self._began, self._seconds_before = time.monotonic(), 0.0

    @property
    def done(self) -> bool:
        """Whether no step is left to make."""
        return self.ended or self.step >= self.steps

    @property
    def seconds(self) -> float:
        """Of the whole run, earlier parts included."""
        return self._seconds_before + time.monotonic() - self._began

    # ---- what happens ------------------------------------------------------------------------------------------

    def record(self, loss: float, figures: Mapping[str, float], seconds: float) -> None:
        """One step's figures: into metrics.jsonl, the progress bar and the tracker.

        loss: the mean over the step's tokens.   figures: among them rows and tokens, over all processes.

        Raises StoppedEarly for a loss that is no number.
        """
        self.rows, self.tokens = self.rows + int(figures["rows"]), self.tokens + int(figures["tokens"])
        self.losses.append(loss)
        found = {"loss": loss, **figures, "seconds": seconds, "tokens_per_s": figures["tokens"] / max(seconds, 1e-9)}
        self.last = found
        self._event("train_step", **found)
        self.world.log({f"train_{name}": float(value) for name, value in found.items()}, self.step)
        if not math.isfinite(loss):
            raise StoppedEarly(
                f"the loss of step {self.step} is not a number. Lower --learning-rate ({self.options.learning_rate:g}),"
                " and look at the longest rows. With --resume and the options of the run it goes on from the last "
                "checkpoint."
            )
        progress = self.run.progress
        progress.counts.done += 1
        progress.counts.metrics = {"loss": loss, "tokens/s": found["tokens_per_s"]}
        if self.after:
            progress.counts.metrics["held-out loss"] = self.after["val_loss"]
        progress.tick()

    def validated(self, found: dict[str, float]) -> None:
        """Note what was measured on the held-out rows; keep the student when it is the best so far."""
        self.after, self.measured_at = found, self.step
        self._event("val", **found)
        self.world.log(found, self.step)
        words = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        self.run.progress.note(f"step {self.step}: {words}")
        if self.step == 0:
            self.before = found
            return
        value = found["val_loss"]
        if not math.isnan(value) and (not self.best or value < self.best["val_loss"]):
            self.best, self.best_step, self.stale = found, self.step, 0
            self._on_folder(lambda folder: folder.best(self.step, self._save_student, found))
            self._event("best_checkpoint_saved", metric="val_loss", value=value)
            return
        self.stale += 1
        if self.options.patience and self.stale >= self.options.patience:
            self.ended = True
            self.run.progress.note(f"--patience: val_loss has not improved in {self.stale} validations")

    def save(self, move: Callable[[Path], None]) -> None:
        """Keep what the Trainer wrote as step-N/, from which --resume goes on. move: fills a folder with it."""
        self._event(SAVED)
        state = {**{name: getattr(self, name) for name in CARRIED}, "seconds": self.seconds}
        self._on_folder(lambda folder: folder.checkpoint(self.step, move, state))
        if not self.options.keeps_checkpoints:
            self._on_folder(lambda folder: folder.drop_checkpoints(but=self.step))

    def load(self, checkpoint: Path) -> None:
        """Go on where a checkpoint was made."""
        state = load_state(checkpoint)
        self._seconds_before = state["seconds"]
        for name in CARRIED:
            setattr(self, name, state[name])
        self.run.progress.note(f"going on after step {self.step}, from {checkpoint}")

    # ---- the end -----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write final/, and best/ where nothing was measured."""
        self._on_folder(lambda folder: folder.final(self.step, self._save_student))
        if not self.best_step:
            self.best_step = self.step
            self._on_folder(lambda folder: folder.best(self.step, self._save_student, self.after))

    def close(self, status: str, result: SftTrained | None = None) -> None:
        """Say in run.json how the run ended. Checkpoints that were kept only to go on from are removed at its end."""

        def end(folder: RunFolder) -> None:
            folder.finish(status, **({} if result is None else {"result": result.model_dump(mode="json")}))
            if status == "done":
                folder.tidy()

        self._on_folder(end)

    def stopped(self, error: StoppedEarly) -> None:
        """Say in run.json why the run stopped."""
        if self.folder is not None:
            with contextlib.suppress(StoppedEarly):  # on a full disk, which may be what stopped it
                self.folder.finish("stopped", because=str(error))

    def result(
        self, status: Literal["done", "interrupted"], left_out: Mapping[str, int], epochs: float, tool_rows: int
    ) -> SftTrained:
        """What was done, for a person and for a program."""
        last = self.losses[-max(1, len(self.losses) // LAST) :]
        return SftTrained(
            status=status,
            output=self.options.output,
            steps=self.step,
            epochs=epochs,
            best_step=self.best_step or None,
            before=self.before,
            after=self.after,
            best=self.best,
            train_loss=sum(last) / len(last) if last else None,
            rows_trained=self.rows,
            tokens_trained=self.tokens,
            left_out=dict(left_out),
            tool_rows=tool_rows,
            adapter=self.options.lora and not self.options.merge,
            seconds=self.seconds,
            curves=self._draw(),
        )

    def _draw(self) -> Path | None:
        """curves.png; without it, a run is no worse."""
        if self.folder is None:
            return None
        target = self.options.output / CURVES
        try:
            draw_curves(self.options.output / METRICS, target)
        except (OSError, ModuleNotFoundError) as error:
            self.run.progress.note(f"the curves are not drawn: {error}")
            return None
        return target

    def _save_student(self, target: Path) -> None:
        self.student.save(target, merge=self.options.merge)
        (target / CARD).write_text(self.card(self), encoding="utf-8")

    def _event(self, kind: str, **fields: Any) -> None:
        if self.folder is not None:
            self.folder.event(kind, step=self.step, **fields)

    def _on_folder(self, work: Callable[[RunFolder], object]) -> None:
        """In process 0, while the others wait; what it raises is raised in all of them."""
        folder = self.folder
        self.world.on_main(lambda: None if folder is None else work(folder))
