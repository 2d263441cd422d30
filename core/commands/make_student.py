"""Options and result of `make_student`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .base import Command, Option, Result

MODEL, TEXT, OUTPUT = "Model", "Text", "Output"
Stage = Literal["before", "fewer layers", "new tokenizer"]


class MakeStudent(Command):
    """Make a smaller student out of a model: fewer layers, another model's tokenizer, or both. Train it afterwards.

    The layers that change the state of the text least are removed (block influence, measured in float32). With another
    tokenizer, each new token begins as the mean of the old tokens that spell its bytes.
    """

    work: ClassVar[str] = "..training.make_student:make"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/make_student.py smollm2 -o student --layers 24",
        "python scripts/make_student.py student -o student-gpt2 --tokenizer openai-community/gpt2",
        "python scripts/make_student.py Qwen/Qwen2.5-1.5B-Instruct -o student --layers 20 --text train.jsonl --dry-run",
    )

    model: Annotated[
        str,
        Option(
            MODEL,
            "-m",
            positional=True,
            mcp="Model to begin with: a folder, .gguf, smollm2 or Hub name.",
            names="model",
        ),
    ] = Field(min_length=1)
    """The model to begin with: a folder, a .gguf file, smollm2, or a name on the Hub. It stays as it is."""
    layers: Annotated[int | None, Option(MODEL, "-k", mcp=True)] = Field(default=None, ge=1)
    """Keep so many layers; the first two and the last two go last."""
    tokenizer: Annotated[str | None, Option(MODEL, mcp="Model whose vocabulary it shall get.", names="model")] = Field(
        default=None, min_length=1
    )
    """Move the model to the vocabulary of this one: a folder, a tokenizer.json, a .gguf file (also one without
    weights), smollm2, or a name on the Hub."""

    text: Annotated[list[Path] | None, Option(TEXT, "-t")] = None
    """Measure on this text in place of the built-in one (many languages, code, numbers, chat); may be repeated. Of
    .jsonl rows the assistant's messages, or the key text, completion, response, answer or output; any other file as
    it is."""
    limit: Annotated[int, Option(TEXT, "-n")] = Field(default=50, ge=1)
    """At most this many passages of each kind of text (of up to 2,000 characters), spread over all of it."""

    output: Annotated[Path | None, Option(OUTPUT, "-o", mcp="Folder for the student.")] = None
    """Folder of the student, in the Hugging Face layout."""
    overwrite: Annotated[bool, Option(OUTPUT)] = False
    """Replace the model in that folder."""
    dry_run: Annotated[bool, Option(OUTPUT, mcp="Only show the influence of every layer.")] = False
    """Show the influence of every layer and which ones would go; write nothing."""

    @model_validator(mode="after")
    def _something_to_do(self) -> "MakeStudent":
        if self.layers is None and self.tokenizer is None and not self.dry_run:
            raise ValueError(
                "nothing to do: give --layers, --tokenizer or both (--dry-run shows the layers' influence)"
            )
        if self.output is None and not self.dry_run:
            raise ValueError("name the folder for the student with --output, or look first with --dry-run")
        return self


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Layer(_Part):
    """One layer of the model, counted from 0."""

    layer: int
    influence: float
    """1 - cosine of its input and its output, the mean over the tokens of the text."""
    kept: bool


class Vocabulary(_Part):
    """How the model came to its new tokens."""

    name: str
    tokens_before: int
    tokens: int
    copied: int
    """New tokens with the same bytes (or role) as one old token."""
    composed: int
    """New tokens that began as the mean of several old ones."""
    unknown: int
    """New tokens whose bytes the old tokenizer cannot spell, and padding rows: the mean of all."""


class Measured(_Part):
    """How well the model says the text."""

    model: Stage
    tokens: int
    bits_per_byte: float
    """Of all passages, each after a line break: comparable across tokenizers."""


class StudentMade(Result):
    """What was made."""

    output: Path | None
    model: str
    parameters_before: int
    parameters: int
    """Of the student; a tied output layer counts once."""
    layers: list[Layer]
    vocabulary: Vocabulary | None
    source: str
    """Where the text is from."""
    text_bytes: int
    measured: list[Measured]
    notes: list[str] = Field(default_factory=list[str])
    """What is used in the place of what is missing."""
    seconds: float = 0

    @property
    def dropped(self) -> list[int]:
        return [each.layer for each in self.layers if not each.kept]

    def summary(self) -> str:
        lines = [f"{self.output or 'dry run, nothing was written'}: made from {self.model}"]
        size = f"{self.parameters / 1e6:,.1f}M parameters"
        lines.append(f"  size        {size} (before {self.parameters_before / 1e6:,.1f}M)")
        if self.dropped:
            gone = ", ".join(map(str, self.dropped))
            lines.append(f"  layers      {len(self.layers) - len(self.dropped)} of {len(self.layers)}, without {gone}")
        if (moved := self.vocabulary) is not None:
            lines.append(
                f"  tokenizer   {moved.name}: {moved.tokens:,} tokens; {moved.copied:,} copied, {moved.composed:,} "
                f"composed of several old ones, {moved.unknown:,} unknown"
            )
        row = ", ".join(f"{each.bits_per_byte:.2f} {each.model}" for each in self.measured)
        lines.append(f"  bits/byte   {row} (text: {self.source}, {self.text_bytes:,} bytes)")
        lines += [f"  note        {note}" for note in self.notes]
        if self.status == "dry_run":
            lines.append("next: the same command without --dry-run")
        else:
            pair = f"--student {self.output} --teacher {self.model}"
            lines.append(f"next: python scripts/train_gold.py {pair} -d PROMPTS -o runs/gold")
        return "\n".join(lines)
