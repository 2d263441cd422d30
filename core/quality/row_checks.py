"""What is wrong with one row, whatever the others say."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import orjson

from ..commands.check_data import CheckData
from ..data.sft_row import Problem, fields, message_problems, problems_of
from ..data.tags import reasoned
from ..data.text import one_line
from ..generation.check import matches
from ..generation.filters import REFUSAL
from .personal import personal
from .repetition import FENCED, repetition
from .rows import Entry, text_of
from .verify import countdown_right, number_right
from .words import is_json

FENCE = re.compile(r"^ {0,3}(?:```+|~~~+)([^\n`]*)$", re.MULTILINE)
JSON = re.compile(r"\s*(?:\{\s*\"|\[\s*[\[{\"])")
ENDS = tuple(".!?\u2026\u3002\uff01\uff1f\u061f\u06d4\u0964\u1362")
"""What sentences end with."""
CLOSERS = "\"'\u2019\u201d\u00bb\u300d\u300f)]*_`\uff09 \t"
"""What may close after it."""
SENTENCE = re.compile(r"[.!?\u2026][\"'\u2019\u201d)]*\s|[\u3002\uff01\uff1f]")
HANGING = re.compile(
    r"(?:[,:(\u3001\uff0c\uff1a\u2013\u2014]|\w-|\b(?:and|or|the|an|because|whose|und|oder|dass|weil"
    r"|eine[mnrs]?|et|une|des|los|las))$",
    re.IGNORECASE,
)
"""What no text ends with: a comma, half a word, a word that another one must follow."""
LONG = 40
"""Characters of a last line from which its end tells: greetings, names and titles are shorter."""
LONG_TEXT = 300
"""Characters of a text from which a missing full stop tells: people leave it away in short ones."""
ITEM = re.compile(r"\s*(?:[-*+\u2022]|\d+[.)])\s+")
NO_SENTENCE = re.compile(r" {4}|\s*(?:#|>|\||<|https?://|\$\$|\\)")
"""How code, headings, quotations, tables, tags, addresses and formulas begin."""

QUOTED = re.compile(r'".*"', re.DOTALL)


class RowChecks:
    """The checks of single rows, with the user's options.

    token_length: of an entry, in the tokens of --tokenizer; None without one.
    """

    def __init__(self, options: CheckData, token_length: Callable[[Entry], int] | None) -> None:
        self._match, self._max_length = options.match, options.max_length
        self._token_length = token_length

    def of(self, entry: Entry) -> dict[str, str | None]:
        """Measure -> why the row is at fault, None where it passes; only the measures that can be told of this row.

        A row that cannot be read has `schema` alone; one without an answer `schema`, `empty` and `personal`.
        """
        if entry.problem is not None:
            return {"schema": entry.problem}
        found = {
            "schema": next(schema_problems(entry), None),
            "empty": emptiness(entry),
            "personal": personal("\n".join(learned(entry))),
        }
        if entry.answer.strip():
            found["truncated"] = self._truncation(entry)
            found["repetitive"] = next(filter(None, map(repetition, answers(entry))), None)
            right, expected = is_right(entry, self._match), expected_answer(entry)
            if right is not None:
                text = "..." if personal(str(expected)) else one_line(str(expected), 60)
                found["wrong_answer"] = None if right else f'not "{text}"'
        if entry.answer.strip() or entry.metadata.get("refusal"):
            found["refusal"] = refusal(entry)
        if found["personal"] is not None:  # and may stand in what other reasons quote
            found |= {name: QUOTED.sub('"..."', why) for name, why in found.items() if why and name != "personal"}
        return found

    def _truncation(self, entry: Entry) -> str | None:
        if entry.metadata.get("finish_reason") == "length":
            return "the model was cut off (finish_reason is length)"
        if self._token_length is not None and self._max_length is not None:
            length = self._token_length(entry)
            if length > self._max_length:
                return f"{length:,} tokens, more than --max-length {self._max_length:,}"
        return cut_off(entry.answer)


def schema_problems(entry: Entry) -> Iterator[str]:
    """What keeps a row from being trained on; that it has no answer is `empty`'s to say.

    Rows with `messages` are checked as train_sft does; of other forms (columns, ShareGPT), what was made of them.
    """
    record: dict[str, Any] = (
        entry.record
        if isinstance(entry.record, dict) and entry.record.get("messages") is not None
        else {"messages": [*entry.messages, *entry.said]}
    )
    if has_answer(entry):
        yield from at_fault(problems_of(record))
    else:
        yield from at_fault(fields(record, "sft"))
        for number, message in enumerate(entry.messages):
            yield from (f"messages[{number}]: {text}" for text in at_fault(message_problems(message)))
    for number, (before, message) in enumerate(pairwise(entry.messages), start=1):
        if before["role"] == message["role"] == "user":
            yield f"messages[{number}]: the user speaks twice in a row: many chat templates refuse it"


def at_fault(problems: Iterable[Problem]) -> Iterator[str]:
    """The problems that are not `rnow`'s alone."""
    return (text for level, text in problems if level != "rnow")


def learned(entry: Entry) -> Iterator[str]:
    """All that a row says, and what it calls tools with."""
    for message in (*entry.messages, *entry.said):
        yield text_of(message)
        if calls := message.get("tool_calls"):
            yield str(calls)


def answers(entry: Entry) -> Iterator[str]:
    """Every text of the assistant's, those before the last question too."""
    for message in (*entry.messages, *entry.said):
        if message["role"] == "assistant" and (text := text_of(message)).strip():
            yield reasoned(text)[1]


def has_answer(entry: Entry) -> bool:
    """Whether the assistant says or calls something at the row's end."""
    return bool(entry.answer.strip()) or any(message.get("tool_calls") for message in entry.said)


def emptiness(entry: Entry) -> str | None:
    """Why a row has nothing to learn, or None."""
    if has_answer(entry):
        return None
    if any(text_of(message).strip() for message in entry.said):
        return "nothing but reasoning"
    return "a blank answer" if entry.said else "no answer"


def refusal(entry: Entry) -> str | None:
    """Whether the provider or an answer's beginning says that the task is refused."""
    if entry.metadata.get("refusal"):
        return "the provider marked it as a refusal"
    return next((f'begins "{one_line(text, 60)}"' for text in answers(entry) if REFUSAL.match(text)), None)


def expected_answer(entry: Entry) -> Any:
    """What the row says its answer should be; None where it says nothing."""
    expected = entry.metadata.get("expected_answer")
    return None if expected in (None, "", []) else expected


def is_right(entry: Entry, how: str) -> bool | None:
    """Whether a row's answer is the one that it expects: by its own `verify` where it has one, else as --match says.
    None where nothing is expected, or nothing says which numbers to count with."""
    metadata, expected = entry.metadata, expected_answer(entry)
    if expected is None:
        return None
    if metadata.get("verify") == "countdown":
        numbers, target = decoded(metadata.get("numbers")), decoded(metadata.get("target"))
        known = isinstance(numbers, list) and isinstance(target, int)
        return countdown_right(numbers, target, entry.answer) if known else None
    if metadata.get("verify") in ("expression", "arithmetic"):
        try:
            return number_right(str(expected), entry.answer)
        except ValueError:
            pass  # not a number after all
    return matches(entry.answer, expected, how)


def decoded(value: Any) -> Any:
    """A value that a column of a CSV holds as JSON."""
    try:
        return orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        return value


def cut_off(text: str) -> str | None:
    """Why a text seems to end before its end, or None. Short answers, titles and signatures are whole.

    A heuristic that would rather miss a text than accuse one: an open code fence or JSON; a last line of 40 characters
    or more that ends with a comma, half a word or a word such as "and"; or one without a sentence's end where every
    other line of its kind, and every sentence before it, has one.
    """
    text = text.rstrip()
    if open_fence(text):
        return "a code block that is not closed"
    if JSON.match(text) and sum(map(text.count, "{[")) > sum(map(text.count, "}]")) and not is_json(text):
        return "JSON that is not closed"
    if "```" in text or "~~~" in text:
        text = FENCED.sub("\n```\n", text)
    lines = [line.rstrip() for line in text.splitlines() if len(line) >= LONG]
    if not lines or not text.endswith(lines[-1]) or NO_SENTENCE.match(lines[-1]):
        return None
    last = lines.pop()
    if HANGING.search(last[-20:]):
        return f'ends "...{last[-30:]}"'
    if not last[-1].isalpha() or len(text) < LONG_TEXT:
        return None
    item = bool(ITEM.match(last))
    others = [line for line in lines if bool(ITEM.match(line)) == item and not NO_SENTENCE.match(line)]
    sentences = len(SENTENCE.findall(last))
    if (sentences or item) and len(others) + sentences > 1 and all(map(has_end, others)):
        return f'ends in the middle of a sentence ("...{last[-30:]}")'
    return None


def has_end(line: str) -> bool:
    """Whether a line ends with a sentence."""
    return line.rstrip(CLOSERS).endswith(ENDS)


def open_fence(text: str) -> bool:
    """Whether a code block is not closed. Blocks may hold others, as models write them in Markdown about Markdown."""
    depth = 0
    for found in FENCE.finditer(text):
        depth += 1 if found[1].strip() or depth == 0 else -1
    return depth > 0
