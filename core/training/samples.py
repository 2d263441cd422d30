"""The data of a run as samples: a prompt in both models' tokens, the answer where the data has one, the held-out share.

Every row of every format that `core.data.prompts` reads gives one sample for each of its turns that can be answered.
What cannot be used is left out, counted by its reason, and named with its place.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from ..commands.train_gold import TrainGold
from ..data.keys import work_key
from ..data.prompts import BadRow, Message, Prompt, PromptOptions, open_prompts
from ..data.trained_on import HELD_OUT, TRAINED_ON, trained_on_text
from ..distillation.chat import ChatSide
from ..errors import UsageError
from ..teachers.template_messages import BAD_CALL, NOT_TEXT, LeftOut, content_text, template_messages, tool_schemas

BAD_ROW = "the row cannot be read"
NO_TURN = "the conversation has no turn that is answered by a text"
REFUSED = "a chat template refuses the conversation"
NO_ROOM = "the prompt leaves no room for an answer"
NO_ANSWER = "there is no answer to learn from"
SHOWN = 5
"""How many bad rows are named."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A prompt, and the answer that the data has for it.

    key: 16 hex digits of the conversation, its answer and how often both stood before it: a name that does not change
        when the rows around it do.
    place: where it stands, for the user ("train.jsonl:17", with ", turn 2" where a conversation has several).
    messages: up to where the answer begins, as chat templates take them. tools: the schemas that belong to them.
    prompt_ids, teacher_prompt_ids: the prompt in each side's own template and tokens.
    answer_ids: the answer in the student's tokens, its end of turn included if `answer_ended`; None without an answer.
    answer_ended: False where the answer was cut, in the data or here.
    answer: the text of `answer_ids`.
    said: the answer as the data has it, whole; None without an answer. said_ended: False where the data has it cut.
    """

    key: str
    place: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    prompt_ids: list[int]
    teacher_prompt_ids: list[int]
    answer_ids: list[int] | None = None
    answer_ended: bool = False
    answer: str | None = None
    said: str | None = None
    said_ended: bool = True

    @property
    def row(self) -> dict[str, Any]:
        """It as a row of data, which reads as this sample again."""
        said = [] if self.said is None else [{"role": "assistant", "content": self.said}]
        row: dict[str, Any] = {"messages": [*self.messages, *said]}
        if self.tools:
            row["tools"] = self.tools
        return row if self.said_ended else row | {"finish_reason": "length"}


@dataclass(frozen=True)
class Samples:
    """skipped: how many were left out, by reason. notes: lines for the user."""

    train: list[Sample]
    held_out: list[Sample]
    skipped: dict[str, int]
    notes: list[str]

    def files(self) -> dict[str, bytes]:
        """What a run keeps of them, by file name: see `data.trained_on`."""
        rows = [orjson.dumps(sample.row) + b"\n" for sample in self.held_out]
        held_out = {HELD_OUT: b"".join(rows)} if rows else {}
        return {TRAINED_ON: trained_on_text(sample.messages for sample in self.train), **held_out}


@dataclass(frozen=True)
class Turn:
    """A place in a conversation where the assistant is to speak.

    said: its message there in the data, None where the conversation is still open. cut: `said` was cut off.
    """

    place: str
    messages: list[Message]
    said: Message | None
    cut: bool = False


def read_samples(
    options: TrainGold,
    student: ChatSide,
    teacher: ChatSide | None,
    student_context: int | None,
    teacher_context: int | None,
    note: Callable[[str], None],
) -> Samples:
    """The data of a run. Each line of the returned `notes` also goes to `note`.

    teacher: None where there is none (SFT). student_context, teacher_context: most tokens of prompt and answer
    together, None for no limit.

    Raises UsageError (InputError for a file that cannot be read) when nothing is left, and when there is no answer
    although the options ask for answers only.
    """
    reader = Reader(options, student, teacher or student, student_context, teacher_context)
    with open_prompts(options.data, PromptOptions(options.prompt_key, options.system, options.num_samples)) as prompts:
        for row in prompts():
            reader.take(row)
    samples = reader.samples
    if not samples:
        raise UsageError(reader.why_nothing())
    answered = sum(sample.answer_ids is not None for sample in samples)
    if not answered and options.lmbda == 0:
        raise UsageError(
            f"{options.data}: no row has an answer, and with --lmbda 0 the student writes none. "
            "Give rows with answers (messages that end with the assistant's, or a response key), or raise --lmbda."
        )
    train, held_out = hold_out(samples, options.val_fraction, options.val_max_samples, options.seed)
    notes = reader.notes()
    if answered < len(samples):
        without = f"{len(samples) - answered:,} of {len(samples):,} samples have no answer in the data"
        notes.append(f"{without}: the student always answers them itself")
    if not answered and options.lambda_sft > 0:
        notes.append("--lambda-sft has no effect: there is no answer in the data")
    if options.val_fraction > 0 and not held_out:
        notes.append("nothing is held out, so there is no validation: all rows begin with the same prompt")
    for line in notes:
        note(line)
    return Samples(train, held_out, dict(reader.skipped), notes)


def hold_out(samples: Sequence[Sample], fraction: float, most: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(samples to train on, held-out samples), both in the order of the data; whole conversations stay together, and
    so do conversations that begin with the same prompt.

    round(fraction x prompts) are held out, at least 1, at most `most` and never all, those with the smallest hash of
    seed and prompt: further rows move few others to the other side. Of their samples `most` are kept.
    """
    held = held_out_places([opening(sample.messages) for sample in samples], fraction, most, seed)
    out = set(held)
    train = [sample for place, sample in enumerate(samples) if place not in out]
    return train, [samples[place] for place in sorted(held[:most])]


def held_out_places(openings: Sequence[str], fraction: float, most: int, seed: int) -> list[int]:
    """The places of what `hold_out` holds out, group after group. openings: `opening` of each."""
    groups: dict[str, list[int]] = {}
    for place, group in enumerate(openings):
        groups.setdefault(group, []).append(place)
    count = min(max(1, round(len(groups) * fraction)), most, len(groups) - 1) if fraction > 0 else 0
    chosen = sorted(groups, key=lambda group: work_key([seed, group]))[:count]
    return [place for group in chosen for place in groups[group]]


def opening(messages: Sequence[Message]) -> str:
    """A hash of the messages up to the user's first, whatever their white space: two prompts with one are the same."""
    told: list[tuple[str, list[str]]] = []
    for message in messages:
        told.append((message["role"], message["content"].split()))
        if message["role"] == "user":
            break
    return work_key(told)


def turns_of(prompt: Prompt) -> list[Turn]:
    """The assistant's turns of a conversation that are a text, each with all before it, and the one that is still to
    come where the conversation does not end with the assistant's words."""
    whole = [*prompt.messages, *prompt.answer]
    found: list[Turn] = []
    asked = False
    for at, message in enumerate(whole):
        asked = asked or message["role"] == "user"
        if message["role"] == "assistant" and asked and whole[at - 1]["role"] != "assistant":
            cut = at == len(whole) - 1 and prompt.metadata.get("finish_reason") == "length"
            if not message.get("tool_calls"):
                found.append(Turn(prompt.place, whole[:at], message, cut))
    if whole[-1]["role"] != "assistant":
        found.append(Turn(prompt.place, whole, None))
    if len(found) == 1:
        return found
    return [replace(turn, place=f"{turn.place}, turn {number}") for number, turn in enumerate(found, 1)]


class Reader:
    """Turns rows into samples, and remembers what the user is to know about them."""

    def __init__(
        self,
        options: TrainGold,
        student: ChatSide,
        teacher: ChatSide,
        student_context: int | None,
        teacher_context: int | None,
    ) -> None:
        self._options, self._student, self._teacher = options, student, teacher
        self._contexts = (("student", student_context), ("teacher", teacher_context))
        self.samples: list[Sample] = []
        self.skipped: Counter[str] = Counter()
        self._rows = self._empty = self._cut = self._thinking = self._nameless_tools = 0
        self._bad: list[str] = []
        self._refusal = self._no_room = ""
        self._longest = 0
        self._seen: Counter[str] = Counter()
        self._drops_tools: dict[str, bool] = {}  # name of a tokenizer -> whether its template leaves tools out

    def take(self, row: Prompt | BadRow) -> None:
        """Make the samples of one row."""
        self._rows += 1
        if isinstance(row, BadRow):
            self.skipped[BAD_ROW] += 1
            if len(self._bad) < SHOWN:
                self._bad.append(str(row))
            return
        turns = turns_of(row)
        if not turns:
            self.skipped[NO_TURN] += 1
        tools = tool_schemas(row.metadata.get("tools"))
        self._nameless_tools += tools is None and bool(row.metadata.get("tools"))
        for turn in turns if self._options.turns == "all" else turns[-1:]:
            try:
                self.samples.append(self._sample(turn, tools))
            except LeftOut as why:
                self.skipped[why.reason] += 1

    def _sample(self, turn: Turn, tools: list[dict[str, Any]] | None) -> Sample:
        """Raises LeftOut."""
        messages = template_messages(turn.messages)
        answer = content_text(turn.said.get("content")) if turn.said else ""
        if not answer.strip():
            if self._options.lambda_kd == 0:
                raise LeftOut(NO_ANSWER)
            answer = ""
        asked = self._prompt_ids(self._student, turn, messages, tools)
        read = asked
        if self._teacher is not self._student:
            read = self._prompt_ids(self._teacher, turn, messages, tools)
            read = asked if read == asked else read  # held once
        self._check_room(turn, asked, read)
        try:
            name = work_key([messages, tools, answer, turn.cut])
        except TypeError:  # arguments that are nested too deeply, or hold numbers of more than 64 bits
            raise LeftOut(BAD_CALL) from None
        occurrence, self._seen[name] = self._seen[name], self._seen[name] + 1
        sample = Sample(work_key([name, occurrence])[:16], turn.place, messages, tools, asked, read)
        if not answer:
            self._empty += turn.said is not None
            return sample
        self._thinking += bool(turn.said and turn.said.get("reasoning_content"))
        return self._with_answer(sample, answer, not turn.cut)

    def _with_answer(self, sample: Sample, answer: str, ended: bool) -> Sample:
        said, said_ended = answer, ended
        ids = self._student.completion_ids(answer.encode(), ended)
        most = self._options.max_new_tokens
        if len(ids) > most:
            self._cut += 1
            ids, ended = ids[:most], False
            kept = self._student.token_bytes.of(ids).removeprefix(self._student.lead)
            answer = kept.decode(errors="replace")
        return replace(sample, answer_ids=ids, answer_ended=ended, answer=answer, said=said, said_ended=said_ended)

    def _prompt_ids(
        self, side: ChatSide, turn: Turn, messages: list[Message], tools: list[dict[str, Any]] | None
    ) -> list[int]:
        try:
            ids = side.prompt_ids(messages, tools)
            if tools and side.name not in self._drops_tools:
                self._drops_tools[side.name] = ids == side.prompt_ids(messages)
        except UsageError as error:
            self._refusal = self._refusal or f"{turn.place}: {error}"
            raise LeftOut(REFUSED) from None
        return ids

    def _check_room(self, turn: Turn, *prompts: list[int]) -> None:
        room = self._options.max_new_tokens
        for ids, (who, context) in zip(prompts, self._contexts, strict=True):
            if context is not None and len(ids) + room > context:
                if len(ids) > self._longest:
                    self._longest = len(ids)
                    self._no_room = (
                        f"the prompt of {turn.place} is {len(ids):,} tokens long, and with --max-new-tokens {room:,} "
                        f"it does not fit the {who}'s context of {context:,} tokens"
                    )
                raise LeftOut(NO_ROOM)

    def why_nothing(self) -> str:
        """Why there is no sample, as an error says it."""
        data = self._options.data
        if not self._rows:
            return f"{data} holds no row. Name a file with prompts."
        reasons = "; ".join(f"{reason} ({count:,} x)" for reason, count in self.skipped.most_common())
        said = [f"{data}: nothing to train on is left of {self._rows:,} rows: {reasons}."]
        main = self.skipped.most_common(1)[0][0]
        if main == BAD_ROW:
            said.append(self._bad[0])
        elif main == REFUSED:
            said.append(self._refusal)
        elif main == NO_ROOM:
            said.append(f"The longest: {self._no_room}. Lower --max-new-tokens or leave out what is longer.")
        elif main == NO_ANSWER:
            said.append("With --lambda-kd 0 only answers in the data are learnt: messages or a response key.")
        return " ".join(said)

    def notes(self) -> list[str]:
        """What was left out and what was changed."""
        return list(self._notes())

    def _notes(self) -> Iterator[str]:
        skipped, options = self.skipped, self._options
        yield from self._bad
        if more := skipped[BAD_ROW] - len(self._bad):
            yield f"and {more:,} more rows that cannot be read"
        if skipped[NO_ROOM]:
            yield f"{skipped[NO_ROOM]:,} samples left out, the longest as follows: {self._no_room}"
        if skipped[REFUSED]:
            yield f"{skipped[REFUSED]:,} samples left out, the first as follows: {self._refusal}"
        for reason in (NO_TURN, NOT_TEXT, BAD_CALL, NO_ANSWER):
            if skipped[reason]:
                yield f"{skipped[reason]:,} samples left out: {reason}"
        if self._empty:
            yield f"{self._empty:,} answers are empty and count as none"
        if self._cut:
            yield f"{self._cut:,} answers are longer than --max-new-tokens {options.max_new_tokens:,} and are cut there"
        if self._thinking:
            yield f"{self._thinking:,} answers have their reasoning beside them: only the answers are learnt"
        if self._nameless_tools:
            yield f'{self._nameless_tools:,} rows have "tools" that are no schemas: no template is told of them'
        for name in (name for name, drops in self._drops_tools.items() if drops):
            yield (
                f"the chat template of {name} has no place for tools, so its prompts do not name them. "
                "convert_rollouts --calls text writes them into the text."
            )
