"""One conversation in two models' own words: prompts by each one's template, the completion by its bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from .alignment import Groups, align, completion_ends
from .token_bytes import Ids, Ints, TokenBytes

Message = Mapping[str, Any]
"""As chat templates take it: "role", "content", and whatever else the template knows."""
ASKED, ANSWERED, AGAIN = "Which bird is it?", "Zebra finch", "And that one?"
PLAIN = "### {role}:\n{content}\n\n"
"""Each message of a conversation for a model without a chat template; the answer begins after "### Assistant:\\n"."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Part:
    """A stretch of a completion. whole: it is one special or added token, else text. special: it is a special one."""

    data: bytes
    whole: bool = False
    special: bool = False


@dataclass(frozen=True, eq=False)
class Pair:
    """One conversation as the student said it and as the teacher reads it.

    student_completion_ids: as sampled. teacher_completion_ids: the same bytes in the teacher's tokens.
    groups: which tokens of the two completions cover the same bytes; the last group is the end of turn if it ended.
    """

    student_prompt_ids: list[int]
    student_completion_ids: list[int]
    teacher_prompt_ids: list[int]
    teacher_completion_ids: list[int]
    groups: Groups


class ChatSide:
    """A tokenizer as one side of a conversation.

    token_bytes: the bytes of its tokens.
    end_of_turn: the token after an assistant's answer, found by rendering one with the template (Qwen 2 <|im_end|>,
    Llama 3 <|eot_id|>, Phi-3 <|end|>); where the template closes an answer with no token of its own, the one that opens
    the next turn (GLM-4 <|user|>), else the end of text.
    ends: every token that ends an answer: end_of_turn, then the tokenizer's end of text.
    lead: b" " where the template puts a space between the prompt and the answer (SentencePiece's prefix space, which is
    no part of the answer), else b"".
    note: what is used in the place of a missing chat template, else "".

    template: another chat template (Jinja) than the tokenizer's own. options: the template's own switches, such as
    {"enable_thinking": False}.

    Raises UsageError as `TokenBytes` does, and for a tokenizer in which no token ends an answer.
    """

    def __init__(
        self, tokenizer: Any, *, template: str | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self.token_bytes = TokenBytes(tokenizer)
        self._tokenizer, self._options = tokenizer, dict(options or {})
        self._wholes: dict[bytes, int] = {}
        for place in np.flatnonzero(self.token_bytes.added).tolist():
            self._wholes.setdefault(self.token_bytes.pieces[place], place)
        self._template, self.note = template, ""
        self._plain = not (template or tokenizer.chat_template)
        if self._plain and {b"<|im_start|>", b"<|im_end|>"} <= self._wholes.keys():
            self._template, self._plain = CHATML, False
            self.note = f"{self.name} has no chat template: ChatML is used, as it has <|im_start|> and <|im_end|>"
        end = self._find_end()
        text_end: int | None = tokenizer.eos_token_id
        if end is None and text_end is None:
            raise UsageError(
                f"no token of {self.name} ends an answer: its chat template closes none and it has no end of text. "
                "Set eos_token in its tokenizer_config.json."
            )
        self.end_of_turn: int = text_end if end is None else end  # pyright: ignore[reportAttributeAccessIssue]
        self.ends = tuple(dict.fromkeys([self.end_of_turn] if text_end is None else [self.end_of_turn, text_end]))
        if self._plain:
            said = self.token_bytes.pieces[self.end_of_turn].decode(errors="replace")
            self.note = (
                f'{self.name} has no chat template: plain text is used, every message as "### Role:", a line break and '
                f"its text; an answer ends with {said}"
            )
        self.lead = self._find_lead()

    @property
    def name(self) -> str:
        """What the tokenizer was loaded from."""
        return self.token_bytes.name

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """The conversation in this side's own template up to where the answer begins (its generation prompt).

        Raises UsageError when the template refuses the conversation.
        """
        return self._ids(self.prompt_text(messages, tools))

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The text that `prompt_ids` are the tokens of. Raises UsageError as it does."""
        if tools and self._plain:
            raise UsageError(f"{self.name} has no chat template, and plain text has no place for tools.")
        try:
            return self._render(messages, True, tools)
        except Exception as error:  # jinja2's, or whatever the template's own code meets
            raise UsageError(f"the chat template of {self.name} refuses the conversation: {error}") from None

    def read(self, ids: Ids, ended: bool) -> tuple[list[Part], Ints]:
        """A completion that this side sampled: its text and special or added tokens in turn, without the end of turn
        and without the lead, and (n,) where its tokens end in bytes of them (see `completion_ends`).

        Raises ValueError when `ended` and the last token contradict each other.
        """
        array, table = np.asarray(ids, np.int64), self.token_bytes
        last = int(array[-1]) if array.size else None
        if ended and last not in self.ends and not (last is not None and last < table.size and table.special[last]):
            raise ValueError(f"the completion ended, but its last token ({last}) ends no answer of {self.name}")
        if not ended and last == self.end_of_turn:
            raise ValueError(f"the completion was cut, but its last token ({last}) is the end of turn of {self.name}")
        kept = array[:-1] if ended else array
        named = np.append(table.added, False)[np.minimum(kept, table.size)]
        parts: list[Part] = []
        start = 0
        for place in [*np.flatnonzero(named).tolist(), kept.size]:
            if start < place:
                parts.append(Part(table.of(kept[start:place])))
            if place < kept.size:
                parts.append(Part(table.pieces[kept[place]], whole=True, special=bool(table.special[kept[place]])))
            start = place + 1
        lead = len(self.lead)
        leads = bool(parts) and not parts[0].whole and parts[0].data.startswith(self.lead)
        if not leads or (parts == [Part(self.lead)] and not ended):  # cut after it: it is all the text there is
            lead = 0
        if lead:
            text = parts[0].data[lead:]
            parts[:1] = [Part(text)] if text else []
        return parts, completion_ends(table, array, ended, lead)

    def write(self, parts: Sequence[Part], ended: bool) -> tuple[list[int], Ints]:
        """What the other side said, as a completion of this side: its ids, and (n,) where each ends (as from `read`).

        A special or added token of the other side stays one where this side has one of the same text, else it is read
        as text. Text is never read as a special token, whatever it says. ended: the end of turn is added.
        """
        runs: list[tuple[bytes, int | None]] = []  # text, or one special token of this side
        joins = False
        for part in parts:
            own = self._wholes.get(part.data) if part.whole else None
            if own is not None and self.token_bytes.special[own]:
                runs.append((part.data, own))
            elif joins and not part.special:  # an added token that is not special is found in text by itself
                runs[-1] = (runs[-1][0] + part.data, None)
            else:
                runs.append((part.data, None))
            joins = runs[-1][1] is None and not part.special
        ids: list[int] = []
        ends: list[Ints] = [np.empty(0, np.int64)]
        total = 0
        if runs and runs[0][1] is None:
            runs[0], total = (self.lead + runs[0][0], None), -len(self.lead)
        for data, own in runs:
            more, places = self.token_bytes.spell(data) if own is None else ([own], np.array([len(data)]))
            ids += more
            ends.append(places + total)
            total += len(data)
        if ended:
            ids.append(self.end_of_turn)
            ends.append(np.array([total + 1]))
        return ids, np.maximum(np.concatenate(ends), 0)

    def completion_ids(self, data: bytes, ended: bool) -> list[int]:
        """A text as this side's completion."""
        return self.write([Part(data)] if data else [], ended)[0]

    def _render(
        self, messages: Sequence[Message], begin: bool, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        if self._plain:
            text = "".join(PLAIN.format(role=str(m["role"]).capitalize(), content=m["content"]) for m in messages)
            return text + "### Assistant:\n" if begin else text
        return self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] if tools else None,
            chat_template=self._template,
            add_generation_prompt=begin,
            tokenize=False,
            **self._options,
        )

    def _ids(self, text: str) -> list[int]:
        """A rendered conversation. A template writes the beginning of text itself; plain text has it from here."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=self._plain)["input_ids"]
        if self._plain and ids and ids[-1] == self._tokenizer.eos_token_id:
            ids = ids[:-1]
        return ids

    def _find_end(self) -> int | None:
        """The first special or added token that the template writes after an answer."""
        if self._plain:
            return None
        asked, answered, again = (
            {"role": role, "content": text}
            for role, text in (("user", ASKED), ("assistant", ANSWERED), ("user", AGAIN))
        )
        for messages in ([asked, answered], [asked, answered, again]):
            try:
                text = self._render(messages, False)
            except Exception:  # it wants conversations of another shape; the end of text is left
                continue
            _, found, tail = text.rpartition(ANSWERED)
            for place in self._ids(tail.partition(AGAIN)[0]) if found else []:
                if self.token_bytes.added[place] and (len(messages) == 2 or place != self._tokenizer.bos_token_id):
                    return place
        return None

    def _find_lead(self) -> bytes:
        """What stands between the prompt and the answer where both are rendered together."""
        if self._plain:
            return b""
        asked, answered = {"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}
        try:
            prompt, whole = self._ids(self._render([asked], True)), self._ids(self._render([asked, answered], False))
        except Exception:  # see `_find_end`
            return b""
        between, found, _ = self.token_bytes.of(whole[len(prompt) :]).partition(ANSWERED.encode())
        # Anything longer is part of how the template writes old answers, such as an empty thought.
        return b" " if whole[: len(prompt)] == prompt and found and between == b" " else b""


def encode_pair(
    student: ChatSide,
    teacher: ChatSide,
    messages: Sequence[Message],
    student_completion_ids: Ids,
    ended: bool,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    student_prompt_ids: Ids | None = None,
) -> Pair:
    """A completion that the student sampled, for both sides: each reads the conversation in its own template.

    messages: the conversation up to the completion. ended: the completion's last token is its end of turn; a completion
    that was cut gets none on either side. student_prompt_ids: what the student was given, where that is known.

    Raises UsageError when a template refuses the conversation, ValueError when `ended` and the last token contradict
    each other.
    """
    sampled = [int(place) for place in student_completion_ids]
    parts, student_ends = student.read(sampled, ended)
    read, teacher_ends = teacher.write(parts, ended)
    asked = student.prompt_ids(messages, tools) if student_prompt_ids is None else [int(p) for p in student_prompt_ids]
    return Pair(asked, sampled, teacher.prompt_ids(messages, tools), read, align(student_ends, teacher_ends))
