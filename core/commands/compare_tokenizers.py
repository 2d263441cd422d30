"""Options and result of `compare_tokenizers`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from .base import Command, Option, Result

INPUT, TEXT, OUTPUT = "Tokenizers", "Text", "Output"
IMAGES = (".png", ".svg", ".pdf")


class CompareTokenizers(Command):
    """Say how well a student can be distilled from a teacher with another tokenizer: what GOLD will compare exactly.

    Needs the tokenizers only, no weights. Both cut the same text into tokens; every token of the student is exact (one
    token with the same bytes on both sides), merged (in a group of several tokens) or outside the teacher's vocabulary.
    """

    work: ClassVar[str] = "..evaluation.tokenizers:compare"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/compare_tokenizers.py smollm2 models/qwen2.5-1.5b",
        "python scripts/compare_tokenizers.py smollm2 teacher.gguf --text train.jsonl",
        "python scripts/compare_tokenizers.py student/tokenizer.json Qwen/Qwen3-4B --plot overlap.png",
    )

    student: Annotated[
        str,
        Option(INPUT, positional=True, mcp="Model folder, tokenizer.json, .gguf, smollm2 or Hub name.", names="model"),
    ] = Field(min_length=1)
    """The student: a model folder, a tokenizer.json, a .gguf file, smollm2, or a name on the Hub."""
    teacher: Annotated[str, Option(INPUT, positional=True, mcp=True, names="model")] = Field(min_length=1)
    """The teacher, named likewise."""

    text: Annotated[list[Path] | None, Option(TEXT, "-t", mcp="Your own texts in place of the built-in ones.")] = None
    """Your own text in place of the built-in one; may be repeated. Of .jsonl rows the assistant's messages, or the
    key text, completion, response, answer or output; any other file as it is."""
    limit: Annotated[int, Option(TEXT, "-n")] = Field(default=2000, ge=1)
    """At most this many passages of each kind of text, spread over all of it."""

    plot: Annotated[Path | None, Option(OUTPUT, mcp="Also draw it: a .png, .svg or .pdf.")] = None
    """Also draw what is exact, merged and outside, by kind of text: a .png, .svg or .pdf file."""

    @field_validator("plot")
    @classmethod
    def _an_image(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() not in IMAGES:
            raise ValueError(f"name a file that ends in {', '.join(IMAGES)}")
        return value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Share(_Part):
    """A share of what was counted in the text, 0..1, and its 95 % interval: the wider of the bootstrap over passages
    (a text repeats itself) and Wilson's over what was counted (a few passages without a miss prove little)."""

    value: float
    low: float
    high: float


class Side(_Part):
    """One tokenizer."""

    name: str
    """As it was asked for."""
    tokens: int
    """Entries of its vocabulary."""
    spelling: Literal["byte-level", "SentencePiece"]
    end_of_turn: str | None
    """The token that ends an answer; None where none is known."""
    end_of_turn_id: int | None
    chat_template: bool
    notes: list[str] = Field(default_factory=list[str])
    """What is used in the place of what is missing."""
    special_tokens: int
    special_only_here: list[str]
    """Special tokens that the other side does not have as such, without placeholders such as <|reserved_special_0|>."""


class Vocabulary(_Part):
    """The two vocabularies beside one another; every entry counts once, however often it is used."""

    iou_strict: float
    """Shared / all pairs of (token as written, id)."""
    iou_strings: float
    """Shared / all tokens as each vocabulary writes them: misleading between byte-level and SentencePiece."""
    iou_bytes: float
    """Shared / all byte strings that tokens stand for."""
    shared: int
    """Byte strings that are a token on both sides."""
    student_share: float
    """shared / byte strings of the student."""
    teacher_share: float
    """shared / byte strings of the teacher; GOLD's default weight of the matched part is about this."""
    numerals_both: int
    """Tokens of two or more digits."""
    numerals_student_only: int
    numerals_teacher_only: int


class Counted(_Part):
    """What was counted in some text. exact + merged + outside = 1, in tokens of the student."""

    name: str
    """The kind of text; "all" for everything."""
    group: str
    """language, code, numbers, chat, text (the user's own), tokens (one kind of token in all texts), or all."""
    passages: int
    text_bytes: int
    student_tokens: int
    teacher_tokens: int
    exact: Share
    """One token on each side with the same bytes, both in the map of the vocabularies: compared column by column."""
    merged: Share
    """In a group of several tokens, though the teacher has this token too: compared approximately, or by spans."""
    outside: Share
    """Tokens without a partner in the teacher's vocabulary: compared by rank only, or by spans."""


class Overall(_Part):
    """Figures over all of the text."""

    student_coverage: Share
    """Tokens of the student, as used in the text, that the teacher's vocabulary has too: the matched loss's weight."""
    teacher_coverage: Share
    """Tokens of the teacher that the student's vocabulary has too: about the mass that it puts on matched columns."""
    boundary_precision: Share
    """Cuts of the student where the teacher cuts too, in bytes, without the ends of passages."""
    boundary_recall: Share
    """Cuts of the teacher where the student cuts too."""
    boundary_f1: float
    words: int
    """Words between white space, in passages of scripts that write them so."""
    student_tokens_per_word: float | None
    teacher_tokens_per_word: float | None
    student_bytes_per_token: float
    teacher_bytes_per_token: float
    length_ratio: float
    """Tokens of the student for one of the teacher."""
    groups: int
    """Stretches of bytes between cuts that both share."""
    single_groups: Share
    """Groups that are one token on each side."""
    mean_student_group: float
    """Tokens of the student in a group."""
    mean_teacher_group: float
    group_sizes: dict[str, int]
    """"2:1" -> how many groups of two student tokens and one of the teacher; the most frequent first."""


class TokenizersCompared(Result):
    """How two tokenizers fit one another."""

    student: Side
    teacher: Side
    relation: Literal["same", "same_text_tokens", "different", "no_overlap"]
    """same: every id means the same. same_text_tokens: all but added tokens. no_overlap: no text token is shared."""
    source: str
    """Where the text is from."""
    vocabulary: Vocabulary
    all: Counted
    overall: Overall
    groups: list[Counted]
    """Kinds of text taken together: English, other languages, code, ...; empty for the user's own text."""
    kinds: list[Counted]
    """By kind of text."""
    token_kinds: list[Counted]
    """By kind of the student's tokens: digits, punctuation, letters of each script."""
    advice: list[str]
    """What it means and what to do, in words."""
    plot: Path | None = None
    seconds: float = 0

    def summary(self) -> str:
        lines = [f"{self.student.name} from {self.teacher.name}: {self.headline}"]
        if self.plot is not None:
            lines.append(f"plot: {self.plot}")
        if self.source == "built in" and self.relation != "same":
            lines.append("Next: the same on the text that you train on, with --text train.jsonl")
        return "\n".join(lines)

    @property
    def headline(self) -> str:
        if self.relation == "same":
            return "the same tokenizer; all of the signal is exact"
        by_group = ", ".join(f"{row.name} {row.exact.value:.0%}" for row in self.groups)
        return (
            f"{self.all.exact.value:.0%} of GOLD's signal exact{f' ({by_group})' if by_group else ''}, "
            f"{self.all.merged.value:.0%} merged, {self.all.outside.value:.0%} outside, in "
            f"{self.all.student_tokens:,} tokens of text"
        )
