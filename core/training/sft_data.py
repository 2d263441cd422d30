"""The rows of an SFT run in tokens: what is trained in them, what was left out or cut, and the share that is held out.

Rows are read one by one and kept as numbers only (see `sft_store`).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import orjson

from ..commands.train_sft import TrainSft
from ..data.jsonlines import read_lines
from ..data.sft_rows import parsed, problems_of
from ..data.text import one_line
from ..data.trained_on import HELD_OUT, TRAINED_ON, content_hashes
from ..errors import UsageError
from ..teachers.protocol import Message
from ..teachers.template_messages import LeftOut, tool_schemas
from .masks import Encoded, Masker
from .samples import opening
from .sft_store import RowNotes, RowStore
from .template_turns import REFUSED

LENGTH = 4096
"""Most tokens of a row, unless the user says otherwise or the model reads fewer."""
BAD_ROW = "rows that cannot be used"
CUT = "rows cut after a turn, to fit --max-length"
UNENDED = "rows whose last answer the teacher did not end (finish_reason length): where to stop is not taught there"
TOO_LONG = "rows left out, as no answer of theirs ends within --max-length"
DROPPED = "rows left out, as they are longer than --max-length"
UNKNOWN_TEACHER = "unknown"
SHOWN = 2
"""How many rows are shown with their masks."""
TELL_S = 20.0
"""Seconds after which it is said how far the reading is: a hundred thousand rows take minutes."""


@dataclass(frozen=True, eq=False)
class SftData:
    """The rows of a run.

    train, held_out: with `input_ids` and `labels`, -100 where a token is not trained; None where nothing is held out.
    rows, tokens, trained_tokens: of `train`.   longest: most tokens of a row, held-out ones included.
    counts: how many rows were left out, cut or changed, by what happened.   shown: rows with their masks, for the user.
    files: what the run's folder keeps, see `data.trained_on`.   teachers: rows of `train` by metadata.teacher.
    notes: lines for the user.   store: holds the rows' tokens.   tool_rows: those with tool calls, held-out ones too.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset | None
    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    counts: dict[str, int]
    shown: list[str]
    files: dict[str, bytes]
    teachers: Counter[str]
    notes: list[str]
    store: RowStore
    tool_rows: int = 0

    def close(self) -> None:
        """Remove the temporary file with the tokens. `train` and `held_out` stay readable, and so does what was made of
        them; but nothing that datasets keeps in files beside them (`map`) can be made any more."""
        self.store.close()


def longest_row(options: TrainSft, context: int | None) -> int:
    """Most tokens of a row. context: what the model reads, None for no limit.

    Raises UsageError for a --max-length beyond that.
    """
    if options.max_length is None:
        return min(LENGTH, context or LENGTH)
    if context is not None and options.max_length > context:
        raise UsageError(
            f"--max-length {options.max_length:,} is more than the {context:,} tokens that the model reads."
        )
    return options.max_length


def read_sft_data(
    options: TrainSft,
    masker: Masker,
    context: int | None,
    note: Callable[[str], None],
    check: Callable[[], object] = lambda: None,
) -> SftData:
    """The data of a run. Each line of the returned `notes` also goes to `note`, and how far a long reading is.

    context: most tokens that the model reads, None for no limit.   check: called at every row; it may raise.

    Raises UsageError for rows that cannot be used (unless --skip-bad-rows), for a template that drops tool calls or
    results which are in the data, and when nothing is left.
    """
    reader = Reader(options, masker, longest_row(options, context))
    try:
        data = _read(reader, options, note, check)
    except BaseException:
        reader.store.close()
        raise
    for line in data.notes:
        note(line)
    return data


def _read(reader: "Reader", options: TrainSft, note: Callable[[str], None], check: Callable[[], object]) -> SftData:
    told = time.monotonic()
    for number, line in read_lines(Path(options.data)):
        if options.num_samples is not None and reader.read >= options.num_samples:
            break
        check()
        reader.take(number, line)
        if time.monotonic() - told > TELL_S:
            note(f"{reader.read:,} rows read")
            told = time.monotonic()
    reader.check()
    return reader.data()


class Reader:
    """Turns lines into rows of tokens, and remembers what the user is to know about them."""

    def __init__(self, options: TrainSft, masker: Masker, longest: int) -> None:
        self._options, self._masker, self._most = options, masker, longest
        self.read = 0
        self.store, self._notes = RowStore(), RowNotes()
        self._shown: list[str] = []
        self._counts: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()
        self._first_drop: dict[str, int] = {}
        self._special = self._left_out = self._tool_rows = 0
        self._bad = self._refusal = ""

    def take(self, number: int, line: bytes) -> None:
        """One line of the file. Raises UsageError for a row that cannot be used, unless such rows are skipped."""
        self.read += 1
        row, problem = sound_row(line)
        if row is None:
            problem = f"{self._options.data}:{number}: {problem}"
            if not self._options.skip_bad_rows:
                raise UsageError(f"{problem} --check shows every such row, --skip-bad-rows leaves them out.")
            self._bad = self._bad or problem
            self._leave_out(BAD_ROW)
            return
        metadata = metadata_of(row)
        tools = tool_schemas(row.get("tools")) or tool_schemas(metadata.get("tools"))
        try:
            encoded = self._encoded(number, row["messages"], tools, is_cut(row))
        except LeftOut as why:
            if why.reason == REFUSED and not self._refusal:
                self._refusal = f"{self._options.data}:{number}: {one_line(str(why.__cause__))}"
            self._leave_out(f"rows left out: {why.reason}")
            return
        if is_cut(row):
            self._counts[UNENDED] += 1
        teacher = metadata.get("teacher")
        self._keep(number, row["messages"], encoded, teacher if isinstance(teacher, str) else UNKNOWN_TEACHER)

    def _leave_out(self, reason: str) -> None:
        self._left_out += 1
        self._counts[reason] += 1

    def _encoded(self, number: int, messages: list[Message], tools: list[dict[str, Any]] | None, cut: bool) -> Encoded:
        """Raises LeftOut."""
        masker = self._masker
        prepared = masker.prepared(messages)
        if tools or any(len(message.keys() - {"role", "content"}) for message in prepared):
            for kind in masker.drops(messages, tools):
                self._drops[kind] += 1
                self._first_drop.setdefault(kind, number)
        self._special += masker.has_special_text(prepared)
        return masker.encode(messages, tools, cut=cut)

    def _keep(self, number: int, messages: list[Message], encoded: Encoded, teacher: str) -> None:
        """Add a row, cut to the length that rows may have."""
        length, turns = len(encoded.ids), len(encoded.borders)
        if length > self._most:
            if self._options.long_rows == "drop":
                return self._leave_out(DROPPED)
            turns = sum(border <= self._most for border in encoded.borders)
            if not turns:
                return self._leave_out(TOO_LONG)
            length = encoded.borders[turns - 1]
            self._counts[CUT] += 1
        kept = Encoded(encoded.ids[:length], encoded.trained[:length], encoded.borders[:turns])
        if len(self._shown) < SHOWN:
            self._shown.append(f"{self._options.data}:{number} as the student reads it:\n{self._masker.shown(kept)}")
        said = [at for at, message in enumerate(messages) if message["role"] == "assistant"][:turns]
        self.store.add(kept.ids, kept.trained)
        self._tool_rows += any(message.get("tool_calls") for message in messages)
        first = opening(self._masker.prepared(messages))
        self._notes.add(number, first, content_hashes(messages, said), teacher, length, sum(kept.trained))

    # ---- what came of it ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UsageError for a template that drops tool calls or results of the data, and when nothing is left."""
        data = self._options.data
        dropped = {"calls": "tool calls", "results": "results of tools"}
        said = [f"the {name} of {self._drops[kind]:,} rows" for kind, name in dropped.items() if self._drops[kind]]
        if said:
            first = min(self._first_drop[kind] for kind in dropped if kind in self._first_drop)
            raise UsageError(
                f"{data}: the student's chat template leaves out {' and '.join(said)} (the first: line {first:,}), so "
                "it would learn to answer without them. Give --chat-template chatml, which has a place for them, or "
                "write them into the text: convert_rollouts --calls text."
            )
        if len(self._notes):
            return
        if not self.read:
            raise UsageError(f"{data} holds no row.")
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in self._counts.most_common())
        first = self._bad or (self._refusal and f"The first: {self._refusal}")
        way = f"The limit is {self._most:,} tokens." if self._counts[TOO_LONG] + self._counts[DROPPED] else ""
        raise UsageError(" ".join(filter(None, [f"{data}: nothing to train on is left: {reasons}.", first, way])))

    def data(self) -> SftData:
        """Everything that was read; the reader is empty afterwards."""
        options, notes = self._options, self._notes
        out = notes.held_out(options.val_split, options.seed)
        train, held_out = self.store.split(out)
        files = {TRAINED_ON: notes.trained_on(~out)}
        if held_out is not None:
            files[HELD_OUT] = b"".join(self._rows_of(notes.lines(out)))
        tokens, trained = notes.tokens(~out)
        return SftData(
            train=train,
            held_out=held_out,
            rows=len(train),
            tokens=tokens,
            trained_tokens=trained,
            longest=notes.longest,
            counts=dict(self._counts),
            shown=self._shown,
            files=files,
            teachers=notes.teachers(~out),
            tool_rows=self._tool_rows,
            notes=list(self._told(held_out is not None)),
            store=self.store,
        )

    def _rows_of(self, lines: set[int]) -> Iterator[bytes]:
        """The rows at these lines, as they stand in the file but for their metadata."""
        for number, line in read_lines(Path(self._options.data)):
            if number in lines:
                row = orjson.loads(line)
                kept = {key: row[key] for key in ("messages", "tools") if row.get(key)}
                yield orjson.dumps(kept | ({"finish_reason": "length"} if is_cut(row) else {})) + b"\n"

    def _told(self, held_out: bool) -> Iterator[str]:
        for reason, count in self._counts.items():
            yield f"{count:,} {reason}"
        if self._bad:
            yield f"the first row that cannot be used: {self._bad}"
        if self._refusal:
            yield f"the first row that the chat template refuses (--chat-template chatml takes it): {self._refusal}"
        if count := self._drops["schemas"]:
            yield (
                f"the chat template has no place for the tools of {count:,} rows, so the student learns to call tools "
                "that it is not told of (--chat-template chatml has one)"
            )
        if (count := self._drops["thinking"]) and self._options.thinking == "keep":
            yield (
                f"the chat template leaves out the thinking of {count:,} rows: only what is said after it is trained "
                "(--chat-template chatml writes it)"
            )
        if self._special:
            yield f"{self._special:,} rows spell special tokens of the student's in their texts, which they become"
        if self._options.val_split > 0 and not held_out:
            yield "nothing is held out, so there is no validation: all rows begin with the same prompt"


def sound_row(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """(the row, ""), or (None, why it cannot be used)."""
    row = parsed(line)
    if isinstance(row, str):
        return None, f"{row}."
    problem = next((text for level, text in problems_of(row, "sft") if level == "error"), None)
    return (row, "") if problem is None else (None, f"{problem}.")


def metadata_of(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says about itself."""
    found = row.get("metadata")
    return found if isinstance(found, dict) else {}


def is_cut(row: dict[str, Any]) -> bool:
    """Whether the row's last answer was cut off: it must not teach to stop there."""
    reason = row.get("finish_reason") or metadata_of(row).get("finish_reason")
    return reason == "length" and row["messages"][-1]["role"] == "assistant"
