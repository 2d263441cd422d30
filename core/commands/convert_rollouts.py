"""Options and result of `convert_rollouts`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from .base import Command, Option, Result

INPUT, WHICH, FORM = "Input and output", "Which rollouts", "Form of the rows"

REASONS = {
    # the file
    "unreadable": "cannot be read",
    "too_large": "too large for a rollout",
    "empty": "empty file",
    "not_utf8": "not UTF-8",
    "nan": "holds NaN or Infinity, which is not JSON",
    "not_json": "not whole JSON",
    "not_a_rollout": "not a rollout",
    "empty_conversation": "empty conversation",
    # the rollout
    "error": "ended in an error",
    "interrupted": "interrupted, or still running",
    "reward_timeout": "a reward timed out",
    "reward_error": "a reward ended in an error",
    "not_a_success": "not a success",
    "no_reward": "reward 0 or less",
    "truncated": "truncated",
    "shortened": "tool results were shortened (--drop-shortened)",
    "reward_unknown": "no reward to hold against --min-reward",
    "low_reward": "reward below --min-reward",
    "many_turns": "more turns than --max-turns",
    # its conversation
    "not_a_message": "a message that is no object",
    "unknown_role": "a role that no template knows",
    "not_text": "content that is not text",
    "no_user_message": "no user message",
    "call_as_text": "ends with a tool call that is mere text: the teacher's server has no tool parser",
    "no_final_answer": "no final answer",
    "went_on": "turns after the final answer (--require-final-answer)",
    # beside the others
    "duplicate": "the same conversation as another",
    "not_best": "not among the best of its prompt",
}
"""Why a file gives no row."""

REPAIRS = {
    "null_content": "null content made empty",
    "content_parts": "list of parts made text",
    "thinking_tags": "thinking taken out of the text",
    "inline_tool_call": "tool call in the text made a call",
    "inline_result": "tool result taken out of its tags",
    "image_result": "image in a tool result left out",
    "result_object": "tool result that was an object made text",
    "responses_item": "item of the Responses API made a message",
    "object_arguments": "arguments that were an object made a string",
    "empty_arguments": "missing arguments made {}",
    "double_encoded_arguments": "arguments that were encoded twice",
    "malformed_call": "malformed call removed, with its result",
    "unanswered_call": "call without a result removed",
    "orphan_result": "tool result without a call removed",
    "missing_id": "missing id of a call made",
    "duplicate_id": "id of a call that was used before changed",
    "merged_turns": "assistant turns in a row merged",
    "split_calls": "turn with several calls split, as --student needs it",
    "trailing_turns": "turns after the final answer cut off",
    "lone_surrogates": "half characters replaced",
}
"""What was mended in a rollout."""


class ConvertRollouts(Command):
    """Turn rollouts into train.jsonl: conversations with tool calls that a student can be trained on.

    Reads what run_rollouts writes and every layout that rnow has written. Keeps the successes, mends what can be mended
    honestly, and counts everything else by its reason. A prompts file of the output's name is renamed, never lost.
    """

    work: ClassVar[str] = "..generation.convert:convert"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/convert_rollouts.py -d rollouts -o train.jsonl",
        "python scripts/convert_rollouts.py --best-of 1 --dedupe --val-split 0.05",
        "python scripts/convert_rollouts.py --student smollm2 --explain",
        "python scripts/convert_rollouts.py --include-failed --thinking strip -o all.jsonl",
    )

    dir: Annotated[Path, Option(INPUT, "-d", mcp="Folder with the rollouts.")] = Path("rollouts")
    """Folder with the rollouts, read with all folders below it; or one rollout's file."""
    output: Annotated[Path, Option(INPUT, "-o", mcp=True)] = Path("train.jsonl")
    """File for the rows, replaced as a whole. Prompts that are there move to <name>.prompts.jsonl first."""
    val_split: Annotated[float, Option(INPUT, mcp="Share of the prompts to hold out.")] = Field(default=0, ge=0, lt=1)
    """Share of the prompts to hold out, in <name>.val.jsonl; no prompt is in both."""
    overwrite: Annotated[bool, Option(INPUT, mcp="Also over other data, which is kept as OUTPUT.old.")] = False
    """Also where the output holds other data, which is kept beside it as <output>.old."""
    explain: Annotated[bool, Option(INPUT)] = False
    """Name every file, and say why it was kept, mended or dropped."""

    include_failed: Annotated[bool, Option(WHICH)] = False
    """Also rollouts that failed, as long as they end with an answer."""
    min_reward: Annotated[float | None, Option(WHICH)] = Field(default=None, allow_inf_nan=False)
    """Only rollouts with at least this total reward."""
    max_turns: Annotated[int | None, Option(WHICH)] = Field(default=None, ge=1)
    """Only rollouts in which the teacher had at most this many turns."""
    drop_truncated: Annotated[bool, Option(WHICH)] = True
    """Leave out rollouts that a limit cut off."""
    keep_truncated: Annotated[bool, Option(WHICH)] = False
    """The same as --no-drop-truncated."""
    drop_shortened: Annotated[bool, Option(WHICH)] = False
    """Leave out rollouts in which tool results were shortened to fit into the teacher's context."""
    require_final_answer: Annotated[bool, Option(WHICH)] = False
    """Only rollouts that end with the teacher's answer; otherwise turns after an answer are cut off."""
    best_of: Annotated[int | None, Option(WHICH, mcp="Per prompt only so many, the best.")] = Field(default=None, ge=1)
    """Per prompt, only this many: successes first, then the highest reward, the fewest turns, the shortest text."""
    dedupe: Annotated[bool, Option(WHICH)] = False
    """Only the first of equal conversations."""

    thinking: Annotated[Literal["keep", "strip", "tags"], Option(FORM)] = "keep"
    """The teacher's reasoning: keep (as reasoning_content), strip, or tags (<think>...</think> before the text)."""
    arguments: Annotated[Literal["string", "object"] | None, Option(FORM)] = None
    """Arguments of tool calls as a JSON string, which loaders expect, or as an object, which many templates expect
    (default: what --student needs, else string)."""
    calls: Annotated[Literal["structured", "text"], Option(FORM)] = "structured"
    """text: for templates that drop tool calls, as <tool_call> text, with the tools in the system prompt."""
    tools_column: Annotated[bool, Option(FORM)] = True
    """Put the tools' schemas, where the rollout has them, into `tools`, as a JSON string."""
    system: Annotated[str | None, Option(FORM, "-s")] = None
    """System prompt for every row, in place of its own."""
    student: Annotated[str | None, Option(FORM, mcp="Model whose chat template the rows must suit.", names="model")] = (
        None
    )
    """The student whose chat template will render the rows: a model folder, a .gguf, .jinja or tokenizer_config.json
    file, or smollm2. Says what the template drops, and writes arguments, ids and calls as it needs them."""

    @field_validator("output")
    @classmethod
    def _a_file(cls, value: Path) -> Path:
        if not value.name.strip():
            raise ValueError("this names no file")
        return value

    @model_validator(mode="after")
    def _options_that_exclude_one_another(self) -> "ConvertRollouts":
        if self.keep_truncated and self.drop_truncated and "drop_truncated" in self.model_fields_set:
            raise ValueError("--drop-truncated and --keep-truncated say opposite things")
        return self

    @property
    def drops_truncated(self) -> bool:
        """What --drop-truncated and --keep-truncated say together."""
        return self.drop_truncated and not self.keep_truncated

    @property
    def val_output(self) -> Path:
        """train.jsonl -> train.val.jsonl"""
        return named(self.output, "val")

    @property
    def prompts(self) -> Path:
        """train.jsonl -> train.prompts.jsonl, which run_rollouts reads first."""
        return named(self.output, "prompts")


def named(path: Path, word: str) -> Path:
    """train.jsonl, val -> train.val.jsonl"""
    return path.with_name(f"{path.stem}.{word}{path.suffix}")


class Converted(Result):
    """What was converted. All figures but those that name rows count files."""

    files: int
    rows: int
    val_rows: int = 0
    shortened: int = 0
    """Rows in which the teacher saw tool results shortened to fit into its context."""
    mended: int = 0
    """Files that gave a row after something was mended."""
    repairs: dict[str, int] = Field(default_factory=dict)
    """How often each repair was made in the rows, most frequent first."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """How many files gave no row, by reason, most frequent first."""
    read_bytes: int = 0
    seconds: float = 0
    output: str
    val_output: str | None = None
    prompts_moved_to: str | None = None
    kept_as: str | None = None
    """Where --overwrite put what was in the output."""
    student: list[str] = Field(default_factory=list)
    """What the student's chat template does to such rows."""

    def summary(self) -> str:
        if self.status == "interrupted":
            return f"Interrupted after {self.files:,} files; {self.output} was not touched. Repeat the command."
        lines = [
            f"{self.rows:,} rows in {self.output}"
            + f" and {self.val_rows:,} in {self.val_output}" * bool(self.val_output)
        ]
        lines[0] += f", from {self.files:,} files ({self.read_bytes / 1e6:,.1f} MB in {self.seconds:.1f} s)"
        if self.dropped:
            lines.append(f"dropped: {sum(self.dropped.values()):,}")
            lines += [f"  {count:,} x {REASONS.get(reason, reason)}" for reason, count in self.dropped.items()]
        if self.repairs:
            lines.append(f"mended: {self.mended:,}")
            lines += [f"  {count:,} x {REPAIRS.get(repair, repair)}" for repair, count in self.repairs.items()]
        if self.shortened:
            lines.append(
                f"shortened: {self.shortened:,} rows have tool results that were shortened to fit into the teacher's "
                "context (metadata.shortened_tool_results; --drop-shortened leaves them out)"
            )
        lines += [f"student: {line}" for line in self.student]
        if self.prompts_moved_to:
            lines.append(f"The prompts that were in {self.output} are in {self.prompts_moved_to} now.")
        if self.kept_as:
            lines.append(f"What was in {self.output} is in {self.kept_as} now.")
        lines.append(f"Next: python scripts/show.py {self.output}; train_sft.py trains a student on it")
        return "\n".join(lines)
