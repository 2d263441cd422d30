"""The rows of an SFT run in tokens: what is trained in them, what was left out or cut, and the share that is held out.

Rows are read one by one and kept as numbers only, in Arrow's memory: 8 bytes a token.
"""

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import orjson
import pyarrow as pa

from ..commands.train_sft import TrainSft
from ..data.jsonlines import read_lines
from ..data.keys import work_key
from ..data.sft_rows import parsed, problems_of
from ..data.text import one_line
from ..data.trained_on import HELD_OUT, TRAINED_ON, content_hash
from ..errors import UsageError
from ..teachers.protocol import Message
from ..teachers.template_messages import LeftOut, tool_schemas
from .masks import Encoded, Masker
from .samples import held_out_places, opening
from .template_turns import REFUSED

LENGTH = 4096
"""Most tokens of a row, unless the user says otherwise or the model reads fewer."""
BAD_ROW = "rows that cannot be used"
CUT = "rows cut after a turn, to fit --max-length"
TOO_LONG = "rows left out, as no answer of theirs ends within --max-length"
DROPPED = "rows left out, as they are longer than --max-length"
UNKNOWN_TEACHER = "unknown"
SHOWN = 2
"""How many rows are shown with their masks."""
CHUNK = 1000
"""Rows whose tokens are moved into Arrow's memory together."""
UNTRAINED = -100
TELL_S = 20.0
"""Seconds after which it is said how far the reading is: a hundred thousand rows take minutes."""


@dataclass(frozen=True, eq=False)
class SftData:
    """The rows of a run.

    train, held_out: with `input_ids` and `labels`, -100 where a token is not trained; None where nothing is held out.
    rows, tokens, trained_tokens: of `train`.   longest: most tokens of a row, held-out ones included.
    counts: how many rows were left out, cut or changed, by what happened.   shown: rows with their masks, for the user.
    files: what the run's folder keeps, see `data.trained_on`.   teachers: rows of `train` by metadata.teacher.
    notes: lines for the user.
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
    data = reader.data()
    for line in data.notes:
        note(line)
    return data


@dataclass
class _Rows:
    """Rows in tokens, waiting to be moved into Arrow's memory, and those that have been."""

    ids: "array[int]" = field(default_factory=lambda: array("i"))
    labels: "array[int]" = field(default_factory=lambda: array("i"))
    ends: list[int] = field(default_factory=lambda: [0])
    tables: list[pa.Table] = field(default_factory=list)

    def add(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        self.ids.extend(ids)
        self.labels.extend(place if said else UNTRAINED for place, said in zip(ids, trained, strict=True))
        self.ends.append(len(self.ids))
        if len(self.ends) > CHUNK:
            self.move()

    def move(self) -> None:
        """The waiting rows become a table."""
        ends = pa.array(self.ends, pa.int32())
        columns = {
            name: pa.ListArray.from_arrays(ends, pa.array(np.frombuffer(values, np.int32).copy()))
            for name, values in (("input_ids", self.ids), ("labels", self.labels))
        }
        self.tables.append(pa.table(columns))
        self.ids, self.labels, self.ends = array("i"), array("i"), [0]

    def split(self, out: set[int]) -> tuple[datasets.Dataset, datasets.Dataset | None]:
        """(all rows but those, those), a table after the other, so that little is held twice."""
        self.move()
        kept: list[pa.Table] = []
        held: list[pa.Table] = []
        begin = 0
        while self.tables:
            table = self.tables.pop(0)
            chosen = np.array([place in out for place in range(begin, begin + table.num_rows)], bool)
            begin += table.num_rows
            held.append(table.filter(pa.array(chosen)))
            kept.append(table.filter(pa.array(~chosen)) if chosen.any() else table)
        return data_set(kept), data_set(held) if out else None


def data_set(tables: list[pa.Table]) -> datasets.Dataset:
    """The tables as one. Its name is for caches on the disk, which rows in memory have not; left to itself, datasets
    would make one of a copy of all rows."""
    table = pa.concat_tables(tables)
    return datasets.Dataset(table, fingerprint=work_key([table.num_rows, table.nbytes])[:16])


class Reader:
    """Turns lines into rows of tokens, and remembers what the user is to know about them."""

    def __init__(self, options: TrainSft, masker: Masker, longest: int) -> None:
        self._options, self._masker, self._most = options, masker, longest
        self.read = 0
        self._rows = _Rows()
        self._lines: list[int] = []  # of each row that is used, with what is told of it
        self._openings: list[str] = []
        self._hashes: list[list[str]] = []
        self._teachers: list[str] = []
        self._lengths, self._trained = array("i"), array("i")
        self._shown: list[str] = []
        self._counts: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()
        self._first_drop: dict[str, int] = {}
        self._special = self._left_out = 0
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
        self._rows.add(kept.ids, kept.trained)
        self._lines.append(number)
        self._openings.append(opening(self._masker.prepared(messages)))
        self._hashes.append([content_hash(messages[:at]) for at in said])
        self._teachers.append(teacher)
        self._lengths.append(length)
        self._trained.append(sum(kept.trained))

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
        if self._lines:
            return
        if not self.read:
            raise UsageError(f"{data} holds no row.")
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in self._counts.most_common())
        first = self._bad or (self._refusal and f"The first: {self._refusal}")
        way = f"The limit is {self._most:,} tokens." if self._counts[TOO_LONG] + self._counts[DROPPED] else ""
        raise UsageError(" ".join(filter(None, [f"{data}: nothing to train on is left: {reasons}.", first, way])))

    def data(self) -> SftData:
        """Everything that was read; the reader is empty afterwards."""
        options = self._options
        out = set(held_out_places(self._openings, options.val_split, len(self._openings), options.seed))
        kept = [place for place in range(len(self._lines)) if place not in out]
        train, held_out = self._rows.split(out)
        lengths, trained = np.frombuffer(self._lengths, np.int32), np.frombuffer(self._trained, np.int32)
        prompts = sorted({each for place in kept for each in self._hashes[place]})
        files = {TRAINED_ON: "".join(f"{each}\n" for each in prompts).encode()}
        if out:
            files[HELD_OUT] = b"".join(self._rows_of({self._lines[place] for place in out}))
        return SftData(
            train=train,
            held_out=held_out,
            rows=len(kept),
            tokens=int(lengths[kept].sum()),
            trained_tokens=int(trained[kept].sum()),
            longest=int(lengths.max()),
            counts=dict(self._counts),
            shown=self._shown,
            files=files,
            teachers=Counter(self._teachers[place] for place in kept),
            notes=list(self._notes(bool(out))),
        )

    def _rows_of(self, lines: set[int]) -> Iterator[bytes]:
        """The rows at these lines, as they stand in the file but for their metadata."""
        for number, line in read_lines(Path(self._options.data)):
            if number in lines:
                row = orjson.loads(line)
                kept = {key: row[key] for key in ("messages", "tools") if row.get(key)}
                yield orjson.dumps(kept | ({"finish_reason": "length"} if is_cut(row) else {})) + b"\n"

    def _notes(self, held_out: bool) -> Iterator[str]:
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
