"""A chat template, and where the assistant's turns stand in what it writes.

Where the template marks the assistant's words ({% generation %}), or TRL has a copy of it that does, the marks are
taken. Otherwise a turn begins where the prompt for it ends, and it ends behind the token that closes it.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template

from ..errors import UsageError
from ..teachers.protocol import Message
from ..teachers.template_messages import LeftOut

REFUSED = "the chat template refuses the conversation"
UNCLEAR = "the chat template does not show where an answer begins"
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
ODD = "\ue000 \ue000"
"""A text that no row begins or ends with."""

Schemas = Sequence[dict[str, Any]] | None
Span = tuple[int, int]


@dataclass(frozen=True)
class Written:
    """A conversation as a template writes it.

    turns: the assistant's, in characters of the text, with what closes them.   ends: where in them that begins.
    also: tokens that belong behind the text.   trained: what is trained, where that is not the turns.
    """

    text: str
    turns: list[Span]
    ends: list[int]
    also: list[int]
    trained: list[Span]


class TemplateTurns:
    """A tokenizer's chat template, or another one in its place, in the form that is best to learn from.

    sources: its text, and that of its form for tools where this is another.
    special: its special tokens, the longest first, and the one that closes an answer.
    short_ids: calls have ids of nine letters (Mistral's).   developer: it knows that role.

    Raises UsageError for a template that leaves out what is said.
    """

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        self._tokenizer = tokenizer
        self._sources = {bool(tools): self._source(template, tools) for tools in (False, True)}
        self.sources = list(dict.fromkeys(self._sources.values()))
        texts = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.special = sorted({*texts, *tokenizer.all_special_tokens}, key=len, reverse=True)
        self.short_ids = any(re.search(r"length\s*!=\s*9", source) for source in self._sources.values())
        self.developer = any("developer" in source for source in self._sources.values())
        self._tail = ""
        self._openings: list[str] = []
        self._find_form()
        self._following: dict[bool, list[int]] = {}
        said = self.rendered([{"role": "user", "content": "?"}, {"role": "assistant", "content": ODD}], None)
        behind = "" if said is None else said.partition(ODD)[2].strip()
        if behind in tokenizer.get_added_vocab() and behind not in self.special:  # some are not marked as special
            self.special.append(behind)
        if said is not None and ODD not in said:
            raise UsageError(
                f"the chat template of {tokenizer.name_or_path} leaves out what is said, as it wants more than text. "
                "Give --chat-template chatml, plain, or a .jinja file."
            )

    def _source(self, template: str | None, tools: bool) -> str:
        """The template that rows are written in: TRL's for training, where it has one for this template."""
        source = self._tokenizer.get_chat_template(template, tools=[{}] if tools else None)
        if GENERATION.search(source):
            return source
        own = copy.copy(self._tokenizer)
        own.chat_template = source
        try:
            return get_training_chat_template(own) or source
        except Exception:  # it has none; or what it tries out met a template's own code
            return source

    def _render(self, messages: list[Message], tools: Schemas, begin: bool, marked: bool) -> tuple[str, list[Span]]:
        """The text, and with `marked` what the template marks as generated. Raises whatever the template raises."""
        texts, marks = render_jinja_template(
            conversations=[messages],
            tools=list(tools) if tools else None,  # pyright: ignore[reportArgumentType]
            chat_template=self._sources[bool(tools)],
            return_assistant_tokens_mask=marked,
            add_generation_prompt=begin,
            **self._tokenizer.special_tokens_map,
        )
        text = texts[0] if begin else texts[0].removesuffix(self._tail)
        found: Any = marks[0] if marks else []
        return text, [(start, min(stop, len(text))) for start, stop in found if start < len(text)]

    def rendered(self, messages: list[Message], tools: Schemas, begin: bool = False) -> str | None:
        """The text, None where the template refuses."""
        try:
            return self._render(messages, tools, begin, False)[0]
        except Exception:  # jinja2's, or whatever the template's own code meets
            return None

    def _find_form(self) -> None:
        """What the template writes before an answer that is to come, the longest first: all of it, or up to one of its
        added tokens (R1's <think> is missing from old turns). And what it writes after a conversation that is not to
        go on (Phi-3's <|endoftext|>, which belongs to no turn)."""
        asked = [{"role": "user", "content": "?"}]
        closed, opened = self.rendered(asked, None), self.rendered(asked, None, True)
        if closed is None or opened is None:
            return
        for tail in ("", *self.special):
            if closed.endswith(tail) and opened.startswith(closed.removesuffix(tail)):
                self._tail = tail
                opening = opened.removeprefix(closed.removesuffix(tail))
                marks = self._tokenizer.get_added_vocab()
                ends = {place + len(name) for name in marks if (place := opening.find(name)) >= 0}
                self._openings = [opening[:end] for end in sorted({len(opening), *ends}, reverse=True) if end]
                return

    def _closing(self, text: str) -> str | None:
        """The special token that a text ends with, but for white space."""
        text = text.rstrip()
        return next((name for name in self.special if text.endswith(name)), None)

    # ---- where the turns stand ---------------------------------------------------------------------------------

    def read(self, messages: list[Message], tools: Schemas) -> Written:
        """A conversation that ends with the assistant. Raises LeftOut."""
        marked = bool(GENERATION.search(self._sources[bool(tools)]))
        try:
            text, marks = self._render(messages, tools, False, marked)
        except Exception as error:  # jinja2's, or whatever the template's own code meets
            raise LeftOut(REFUSED) from error
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        return self._from_marks(text, marks, len(turns)) or self._from_prompts(text, messages, tools, turns)

    def _from_marks(self, text: str, marks: list[Span], turns: int) -> Written | None:
        """None where the marks do not show every turn's end, or where they leave its closing token out."""
        found = Written(text, [], [], [], [])
        begin = None
        for start, stop in marks:
            start = self._behind_opening(text, start)
            begin = start if begin is None else begin
            closing = self._closing(text[start:stop])
            if closing is not None:
                stop = start + len(text[start:stop].rstrip())
                found.turns.append((begin, stop))
                found.ends.append(stop - len(closing))
                begin = None
            found.trained.append((start, stop))
        return found if begin is None and len(found.turns) == turns else None

    def _behind_opening(self, text: str, start: int) -> int:
        """Some marks take in what the prompt ends with, which is no word of the assistant's."""
        for opening in self._openings:
            place = text.rfind(opening, max(0, start - len(opening)), start + len(opening))
            if 0 <= place <= start < place + len(opening):
                return place + len(opening)
        return start

    def _from_prompts(self, text: str, messages: list[Message], tools: Schemas, turns: list[int]) -> Written:
        """Raises LeftOut."""
        found = Written(text, [], [], [], [])
        done = 0
        for at in turns:
            start, end, closed, also = self._turn(text, messages, tools, at, done)
            if not done <= start <= end <= closed:
                raise LeftOut(UNCLEAR)
            found.turns.append((start, closed))
            found.ends.append(end)
            found.also[:] = also
            done = closed
        return found

    def _turn(
        self, text: str, messages: list[Message], tools: Schemas, at: int, done: int
    ) -> tuple[int, int, int, list[int]]:
        """(where it begins, where what closes it begins, where it ends, tokens to be added behind). Raises LeftOut."""
        last = at == len(messages) - 1
        asked = self.rendered(messages[:at], tools, True)
        said = text if last else self.rendered(messages[: at + 1], tools)
        start = len(asked) if asked is not None and text.startswith(asked) else None
        end = len(said.rstrip()) if said is not None and text.startswith(said.rstrip()) else None
        closing = self._closing(said or "")
        if start is None or end is None or end < start:
            around = self._around(text, messages, tools, at, done)
            start = around[0] if start is None else start
            if end is None or end < start:
                closing = self._opener(text, around[1]) or closing or self._next_special(text, around[1])
                place = text.find(closing or "", around[1])
                if place < 0:
                    raise LeftOut(UNCLEAR)
                end = place + len(closing or "")
        if closing is not None and text[start:end].endswith(closing):
            return start, end - len(closing), end, []
        if last:
            return start, end, end, self._what_follows(text, messages, tools)
        opener = self._opener(text, end)
        if opener is None or opener == self._tokenizer.bos_token:
            return start, end, end, []
        return start, end, text.index(opener, end) + len(opener), []

    def _opener(self, text: str, start: int) -> str | None:
        """The special token that a text begins with from there on, but for white space."""
        ahead = len(text) - len(text[start:].lstrip())
        return next((name for name in self.special if text.startswith(name, ahead)), None)

    def _next_special(self, text: str, start: int) -> str | None:
        """The first special token from there on."""
        found = [(place, name) for name in self.special if (place := text.find(name, start)) >= 0]
        return min(found)[1] if found else None

    def _around(self, text: str, messages: list[Message], tools: Schemas, at: int, done: int) -> Span:
        """Where a turn stands whose prompt is written otherwise than the row: what changes when it says something else.

        Such templates leave thoughts of earlier turns out, for instance. Raises LeftOut.
        """
        other = {key: value for key, value in messages[at].items() if key not in THINKING_KEYS}
        changed = self.rendered([*messages[:at], {**other, "content": ODD}, *messages[at + 1 :]], tools)
        if changed is None or changed == text:
            raise LeftOut(UNCLEAR)
        start = shared(text, changed)
        same = shared(text[start:][::-1], changed[start:][::-1])
        for opening in self._openings[:1]:
            place = text.rfind(opening, done, start)
            start = start if place < 0 else place + len(opening)
        return start, len(text) - same

    def _what_follows(self, text: str, messages: list[Message], tools: Schemas) -> list[int]:
        """The token behind an answer which the template does not close: the one that opens the next turn (GLM-4's
        <|user|>, and <|observation|> after a call), else the end of text."""
        called = bool(messages[-1].get("tool_calls"))
        if called not in self._following:
            more: Message = {"role": "user", "content": "?"}
            if called:
                call = messages[-1]["tool_calls"][0]
                more = {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": "?"}
            longer = (self.rendered([*messages, more], tools) or "").removeprefix(text.rstrip())
            name = self._opener(longer, 0)
            if name is None or name == self._tokenizer.bos_token:
                name = self._tokenizer.eos_token
            self._following[called] = [] if name is None else [self._tokenizer.convert_tokens_to_ids(name)]
        return self._following[called]


def shared(first: str, second: str) -> int:
    """How many characters both texts begin with."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low
