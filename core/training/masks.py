"""Rows as a student reads them, and which of their tokens are trained: what the assistant says, to its end of turn.

A template says where that stands in the text (see `template_turns`). The text becomes tokens once, and a token that
overlaps a place that is trained is trained.
"""

import copy
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..data.tags import reasoned
from ..data.text import printable
from ..errors import UsageError
from ..teachers.protocol import Message
from ..teachers.template_messages import LeftOut, template_messages
from ..teachers.tool_calls import with_object_arguments
from .chat_forms import chosen_template
from .template_turns import THINKING_KEYS, Schemas, TemplateTurns

NO_ANSWER = "there is no answer to learn from"
ONLY_THINKING = "an answer is nothing but thinking"
OPEN, CLOSE = "\u27e6", "\u27e7"
"""Marks around what is trained, where a row is shown."""
UNTRAINED_SHOWN, TRAINED_SHOWN = 240, 1200
"""Most characters of a stretch that are shown; of longer ones, the middle is left out."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A row in tokens.

    ids, trained: (n,) tokens, and whether each is trained.   borders: how many tokens stand up to the end of each of
    the assistant's turns, where a row may be cut; the last is n.
    """

    ids: list[int]
    trained: list[bool]
    borders: list[int]


class Masker:
    """Writes conversations in a tokenizer's template, and says which tokens are the assistant's.

    template: another one than the tokenizer's own.   thinking: "strip" leaves the assistant's thoughts out.
    template_hash: SHA-256 in hex digits of the template that rows are written in (of both, where it has another one for
    conversations with tools).

    Raises UsageError for a tokenizer that does not say which characters its tokens stand for, and for a template that
    leaves out what is said.
    """

    def __init__(self, tokenizer: Any, template: str | None, thinking: Literal["keep", "strip"]) -> None:
        if not tokenizer.is_fast:
            raise UsageError(
                f"the tokenizer of {tokenizer.name_or_path} has no tokenizer.json, so its tokens cannot be masked. "
                "Save it once with transformers' AutoTokenizer(use_fast=True)."
            )
        self._tokenizer, self._thinking = tokenizer, thinking
        if template is None and not tokenizer.chat_template:
            template = chosen_template(tokenizer, None, lambda line: None)
        self._template = TemplateTurns(tokenizer, template)
        self.template_hash = hashlib.sha256("\0".join(self._template.sources).encode()).hexdigest()
        self._special = re.compile("|".join(map(re.escape, self._template.special)) or r"(?!)")

    def encode(self, messages: Sequence[Message], tools: Schemas = None, *, cut: bool = False) -> Encoded:
        """A conversation up to the assistant's last turn. cut: that turn was cut off, so it does not end.

        Raises LeftOut for one that cannot be used.
        """
        written = self._template.read(self.prepared(messages), tools)
        end = written.ends[-1] if cut else written.turns[-1][1]
        text = written.text[:end]
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids: list[int] = list(found["input_ids"])
        places = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
        trained = np.zeros(len(ids), bool)
        for start, stop in written.trained or written.turns:
            trained[overlapping(places, start, min(stop, end))] = True
        borders = [overlapping(places, start, min(stop, end)).stop for start, stop in written.turns]
        if written.also and not cut:
            ids += written.also
            trained = np.append(trained, np.ones(len(written.also), bool))
            borders[-1] = len(ids)
        return Encoded(ids, trained.tolist(), borders)

    def prepared(self, messages: Sequence[Message]) -> list[Message]:
        """A row's messages up to the assistant's last, as the template is given them. Raises LeftOut."""
        last = max((at for at, message in enumerate(messages) if message["role"] == "assistant"), default=None)
        if last is None:
            raise LeftOut(NO_ANSWER)
        found = with_object_arguments(template_messages(messages[: last + 1]), short_ids=self._template.short_ids)
        for message in found:
            if message["role"] == "developer" and not self._template.developer:
                message["role"] = "system"
            if message["role"] == "assistant" and self._thinking == "strip":
                strip_thinking(message)
        return found

    def drops(self, messages: Sequence[Message], tools: Schemas = None) -> set[str]:
        """Which of a row's "calls", "results", "schemas" and "thinking" the template leaves out, wholly or in part.

        Everything gets a name of its own, and the names that are missing from the text are counted. Raises LeftOut as
        `prepared` does; a row that the template refuses under these names drops nothing.
        """
        marks: dict[str, str] = {}

        def mark(kind: str) -> str:
            name = f"zq{len(marks)}{kind}"
            marks[name] = kind
            return name

        found = self.prepared(messages)
        thought: Message | None = None
        for message in found:
            for call in message.get("tool_calls") or ():
                call["function"]["name"] = mark("calls")
            if message["role"] == "tool":
                message["content"] = mark("results")
            if message["role"] == "assistant" and any(message.get(key) for key in THINKING_KEYS):
                thought = message  # templates leave those of earlier turns out, as the model will not see them
        if thought is not None:
            name = mark("thinking")
            thought.update({key: name for key in THINKING_KEYS if thought.get(key)})
        named = copy.deepcopy(list(tools or ()))
        for tool in named:
            function = tool.get("function", tool)
            if isinstance(function, dict) and "name" in function:
                function["name"] = mark("schemas")
        text = self._template.rendered(found, named) if marks else ""
        return set() if text is None else {kind for name, kind in marks.items() if name not in text}

    def has_special_text(self, messages: Sequence[Message]) -> bool:
        """Whether a text of the row spells a special token, which it then becomes."""
        return any(self._special.search(message["content"]) for message in template_messages(messages))

    def shown(self, encoded: Encoded) -> str:
        """A row as the student reads it, what is trained within marks; the middle of long stretches is left out."""
        pieces: list[str] = []
        begin = 0
        for end in range(1, len(encoded.ids) + 1):
            if end < len(encoded.ids) and encoded.trained[end] == encoded.trained[begin]:
                continue
            text = printable(self._tokenizer.decode(encoded.ids[begin:end], clean_up_tokenization_spaces=False))
            is_trained = encoded.trained[begin]
            text = shortened(text, TRAINED_SHOWN if is_trained else UNTRAINED_SHOWN)
            pieces.append(f"{OPEN}{text}{CLOSE}" if is_trained else text)
            begin = end
        return "".join(pieces)


def overlapping(places: Any, start: int, stop: int) -> slice:
    """The tokens that overlap the characters from start to stop. places: (n, 2), where each begins and ends."""
    first = int(np.searchsorted(places[:, 1], start, "right"))
    return slice(first, max(first, int(np.searchsorted(places[:, 0], stop, "left"))))


def strip_thinking(message: Message) -> None:
    """Take an assistant's thoughts out of its message. Raises LeftOut where nothing else was said."""
    for key in THINKING_KEYS:
        message.pop(key, None)
    before = message["content"]
    message["content"] = reasoned(before)[1]
    if before.strip() and not message["content"].strip() and not message.get("tool_calls"):
        raise LeftOut(ONLY_THINKING)


def shortened(text: str, most: int) -> str:
    """The text, or its beginning and end with a word on how much is left out between them."""
    if len(text) <= most:
        return text
    left_out = len(text) - most
    return f"{text[: most // 2]} [... {left_out:,} characters ...] {text[-(most // 2) :]}"
