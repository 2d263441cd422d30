"""What the commands have in common that train a student in a folder of their own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import Command, Option

RUN = "Running"
PROJECTIONS = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def listed(value: Any) -> Any:
    """A list whose items may themselves be several, with commas between them; what is none stays as it is."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        return items
    return [part.strip() for item in items if isinstance(item, str) for part in item.split(",") if part.strip()]


def layers(value: Any) -> Any:
    """Names of layers as `listed` has them; q, k, v, o, gate, up and down stand for the projections of that name."""
    items = listed(value)
    return [PROJECTIONS.get(item, item) for item in items] if isinstance(items, list) else items


class TrainingCommand(Command):
    """Base of `train_gold` and `train_sft`: one folder per run, whose record says what may differ when it goes on."""

    name: ClassVar[str]
    """The command, as run.json names it."""
    without_effect: ClassVar[frozenset[str]]
    """Options that do not change what a run learns."""
    rounding: ClassVar[tuple[str, ...]]
    """Options that change it by rounding alone."""
    why: ClassVar[dict[str, str]] = {}
    """Why a run cannot go on with another value of an option."""

    if TYPE_CHECKING:  # each command says for itself what they are
        data: str
        output: Path
        student_dtype: Literal["auto", "float32", "bfloat16"]

    resume: Annotated[bool, Option(RUN, mcp="Go on from the last checkpoint.")] = False
    """Go on from the last checkpoint in the output folder."""
    overwrite: Annotated[bool, Option(RUN)] = False
    """Remove the run in the output folder and start anew."""
    dry_run: Annotated[bool, Option(RUN, mcp="Only make two steps and say how long all will take.")] = False
    """Load what is to be loaded, make two steps, say how long the run will take, and stop. Nothing is written."""
    device: Annotated[Literal["auto", "cuda", "mps", "cpu"], Option(RUN)] = "auto"
    """Where to train (auto: CUDA, then Apple's MPS, then CPU)."""
    threads: Annotated[int | None, Option(RUN)] = Field(default=None, ge=1)
    """CPU threads (default: all cores)."""
    track: Annotated[Literal["trackio", "tensorboard", "wandb"] | None, Option(RUN)] = None
    """Also send the metrics to this tracker."""

    @model_validator(mode="after")
    def _goes_on_or_begins_anew(self) -> Self:
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run, --overwrite removes it: give one of them")
        return self

    @property
    def inputs(self) -> Sequence[str | None]:
        """Paths that the run reads, which --overwrite must not remove."""
        raise NotImplementedError

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether step-N/ stay when a run has come to its end."""
        return True

    @property
    def best_by(self) -> tuple[str, Literal["min", "max"]]:
        """The measure that chooses best/, and whether less or more of it is better."""
        raise NotImplementedError
