"""The processes of one job, on Hugging Face Accelerate: one on most machines, one per GPU under `accelerate launch`.

Gradients are summed by hand, once per optimiser step, and not by DistributedDataParallel: processes then need not make
the same number of backward passes (one may have run out of memory and halved its micro-batch, or have nothing to
train), and a sum over processes divided by the global count is the very sum that one process would have made.
"""

import os
import resource
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch.nn import Parameter

from ..commands.training import TrainingCommand
from ..data.tracking import check_tracker, plain, project_of
from ..distillation.terms import sum_dtype
from ..errors import DistillError, Elsewhere, UsageError
from .student import computation_dtype

T = TypeVar("T")


PATIENCE = timedelta(hours=12)
"""How long processes wait for the first one, which merges, saves and exports alone."""
SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What `accelerate launch` sets in the environment -> what it stands for."""


def refuse_sharding() -> None:
    """Raises UsageError where `accelerate launch` is to spread a model over processes."""
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise UsageError(
                f"accelerate is configured for {name}, and here each process trains the whole student. Launch with "
                "--multi_gpu (accelerate launch --multi_gpu --num_processes N ...); where memory is short, train an "
                "adapter (LoRA), with --gradient-checkpointing."
            )


class World:
    """Where this process stands among the others, and what they do together.

    device: of this process.   rank: its number from 0.   count: how many there are.
    mixed: whether the student computes in bfloat16.

    Raises UsageError for a device that is not there.
    """

    def __init__(self, options: TrainingCommand) -> None:
        self.options = options
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not there.get(options.device, True):
            raise UsageError(f"--device {options.device}: this machine has none that torch can use. Try --device auto.")
        refuse_sharding()
        check_tracker(options.track)
        if options.threads:
            torch.set_num_threads(options.threads)
        # Accelerate remembers the precision of an earlier run in this process, and refuses another.
        AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
        device = PartialState(cpu=options.device == "cpu", timeout=PATIENCE).device or torch.device("cpu")
        self.mixed = computation_dtype(options.student_dtype, device) == torch.bfloat16
        self.accelerator = Accelerator(
            cpu=options.device == "cpu",
            mixed_precision="bf16" if self.mixed else "no",
            log_with=options.track if not options.dry_run else None,
            project_dir=options.output,
        )
        self.device: torch.device = self.accelerator.device
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        """The student's number format."""
        return self.accelerator.autocast()

    def share(self, items: Sequence[T]) -> list[T]:
        """This process' part of what all have, every item in exactly one."""
        return list(items[self.rank :: self.count])

    def sum(self, values: Iterable[float]) -> list[float]:
        """Each value added up over the processes."""
        found = list(values)
        if self.count == 1:
            return found
        total = torch.tensor(found, dtype=sum_dtype(self.device), device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it holds in any process: all of them then do the same."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: T) -> list[T]:
        """Every process' value, in every process."""
        return [value] if self.count == 1 else gather_object([value])

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Replace each gradient by its sum over the processes."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.count > 1:
                dist.all_reduce(parameter.grad)

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Do something in process 0 only; None in the others. What it raises ends all of them; the others raise
        Elsewhere."""
        result: T | None = None
        problem: DistillError | None = None
        if self.main:
            try:
                result = work()
            except DistillError as error:
                problem = error
        said = self.gather((problem.exit_code, str(problem)) if problem else None)[0]
        if problem is not None:
            raise problem
        if said is not None:
            raise Elsewhere(*said)
        return result

    @property
    def peak_memory_gb(self) -> float:
        """Most that this process has held: of the GPU's memory where there is one, else resident."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

    def track(self, name: str, config: dict[str, Any]) -> None:
        """Begin a run in the tracker, where one was asked for."""
        self.accelerator.init_trackers(project_of(self.options.track, name), config=plain(config))

    def log(self, figures: dict[str, float], step: int) -> None:
        """Send figures to the tracker."""
        self.accelerator.log(figures, step=step)

    def close(self) -> None:
        """End the trackers and the group of processes."""
        self.accelerator.end_training()
