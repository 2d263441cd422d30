"""Where the time goes: seconds and processor seconds of each phase."""

import time
from collections.abc import Generator
from contextlib import contextmanager

import torch

from ..commands.train_gold import Phase

PHASES: tuple[str, ...] = ("generate", "teacher", "student", "loss", "optimiser", "validate", "save")


class Stopwatch:
    """Adds up what is spent in `with stopwatch("generate"):` blocks. They are not nested.

    total: since the beginning of the run, by phase.   step: since `lap`.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.total = {name: Phase(seconds=0.0, cpu_seconds=0.0) for name in PHASES}
        self.step = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Generator[None, None, None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            if self._cuda:  # a GPU's work goes on after the call that asked for it
                torch.cuda.synchronize()
            before = self.total[phase]
            seconds = time.perf_counter() - wall
            self.step[phase] += seconds
            self.total[phase] = Phase(
                seconds=before.seconds + seconds, cpu_seconds=before.cpu_seconds + time.process_time() - cpu
            )

    def load(self, total: dict[str, dict[str, float]]) -> None:
        """Go on from the totals of an earlier part of the run."""
        self.total |= {name: Phase(**spent) for name, spent in total.items()}

    def lap(self) -> dict[str, float]:
        """The phases since the last lap that took any time, in seconds; and begin another."""
        spent = {name: seconds for name, seconds in self.step.items() if seconds}
        self.step = dict.fromkeys(PHASES, 0.0)
        return spent
