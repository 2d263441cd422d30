"""The first pass over a file: every check that needs no model, on every row, each row read once and none kept.

What is kept of a row in memory are its keys for duplicates (`data.keys.KeyCounts`, `NearDuplicates`) and 8 bytes; the
rest is counted. What is wrong with which row goes to a temporary file, because some of it is known only at the end:
which language most rows have, and whether the file holds answers at all.
"""

import hashlib
import itertools
import os
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import orjson

from ..commands.check_data import MEASURES, CheckData
from ..data.keys import KeyCounts
from ..data.run import Run
from ..data.text import one_line, printable, without_surrogates
from ..errors import StoppedEarly
from .contamination import Items
from .figures import Figures
from .language import language_of, no_room
from .near_duplicates import NearDuplicates
from .personal import personal
from .results import Example
from .row_checks import RowChecks
from .rows import Entry, text_of
from .teaching import Choice

OF_MODELS = ("f1", "rouge_l", "top1_agreement", "judge_score", "judge_win")
SHARES = tuple(name for name in MEASURES if name not in OF_MODELS)
"""The measures that are shares of the file's rows."""
OF_ANSWERS = ("empty", "truncated", "refusal", "repetitive", "wrong_answer")
AT_THE_END = ("truncated", "repetitive", "wrong_answer")
SHOWN = 5
"""Examples of each fault."""
ENDING = 160
"""Characters of an answer's end that are shown."""
WITHHELD = "(not shown: personal data)"
QUOTED = re.compile('".*"', re.DOTALL)
"""The row's words in a reason."""
TEMPLATED = ("arithmetic", "countdown")
"""`verify` of the problems that generate_synthetic makes itself. They differ in their numbers only, as they are meant
to, so they are near duplicates of one another only when they say the same words."""
UNKNOWN = "unknown"
"""In counts of languages: too short to tell, code, or numbers."""
Finding = dict[str, Any]
"""A row at fault: {"row": from 0, "place", "reasons": {measure: why}, "like_row", "like": the place of the earlier row
that it is a duplicate of, or None}."""


class _Earlier:
    """Rows that others may be much like. offsets: where they stand in the temporary file."""

    def __init__(self, threshold: float) -> None:
        self.index = NearDuplicates(threshold)
        self.offsets = array("Q")


class Look:
    """What was found in the rows that were added, complete after `finish`.

    rows: all of them.   answers: those in which the assistant speaks last, if only to say nothing.   applied, faults:
    measure -> rows that it could be measured on, that are at fault.   examples: the first rows at fault, by measure.
    unread, first_unread: rows that are no conversation, the place of the first and why.
    languages: of the rows, with UNKNOWN.   expected: the languages that rows may have; None: any.
    """

    def __init__(
        self, options: CheckData, items: Items | None = None, token_length: Callable[[Entry], int] | None = None
    ) -> None:
        self.options, self.items = options, items
        self.rows = self.answers = self.unread = 0
        self.first_unread = ""
        self.applied: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.examples: dict[str, list[Example]] = {}
        self.languages: Counter[str] = Counter()
        self.expected: set[str] | None = None
        self.figures = Figures(options.seed)
        self._token_length = token_length
        self._checks = RowChecks(options, token_length)
        self._exact = KeyCounts()
        self._near, self._templated = _Earlier(options.near_duplicate), _Earlier(1.0)
        self._by_language: dict[str, list[tuple[int, Example]]] = {}
        try:
            self._spool = tempfile.TemporaryFile(prefix="check_data.")  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise StoppedEarly(no_room(error)) from None
        self._end = 0

    def __enter__(self) -> "Look":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what is still to be written has no room, and that was said
            self._spool.close()

    @property
    def crowded(self) -> int:
        """Rows for which not all earlier ones that are alike in part were compared."""
        return self._near.index.crowded

    # ---- row by row ----------------------------------------------------------------------------------------------

    def add(self, entry: Entry) -> dict[str, str]:
        """The next row; what is wrong with it, as far as that is known already. Raises StoppedEarly when the folder of
        temporary files has no room."""
        found = self._checks.of(entry)
        likes: dict[str, tuple[int | None, str]] = {}
        language: str | None = None
        if entry.problem is None:
            self.answers += bool(entry.said)
            language = language_of(entry.answer if entry.answer.strip() else entry.prompt)
            found.update(self._duplicates(entry, likes))
            found.update(self._contamination(entry, likes))
            self.figures.add(entry, self._token_length(entry) if self._token_length else None)
            self.languages[language or UNKNOWN] += 1
        reasons = {name: why for name, why in found.items() if why is not None}
        reasons = {
            name: _withheld(why) if name != "personal" and ("personal" in reasons or personal(why)) else why
            for name, why in reasons.items()
        }
        self.applied.update(found.keys())
        self.faults.update(reasons.keys())
        place = without_surrogates(entry.place)
        if entry.problem is not None:
            self.unread += 1
            self.first_unread = self.first_unread or f"{place}: {reasons['schema']}"
        for name, why in reasons.items():
            if len(self.examples.setdefault(name, [])) < SHOWN:
                like = likes[name][1] if name in likes else None
                self.examples[name].append(_example(name, entry, place, why, reasons, like))
        if language is not None:
            there = self._by_language.setdefault(language, [])
            if len(there) < SHOWN:
                there.append((entry.index, _example("other_language", entry, place, "", reasons, None)))
        earlier = likes.get("exact_duplicate") or likes.get("near_duplicate") or (None, None)
        self._write([entry.index, place, reasons, *earlier, language])
        self.rows += 1
        return reasons

    def _duplicates(self, entry: Entry, likes: dict[str, tuple[int | None, str]]) -> dict[str, str | None]:
        """A row is an exact duplicate, or a near one, or neither; exact ones are not put into the index."""
        text = entry.text
        earlier = self._templated if entry.metadata.get("verify") in TEMPLATED else self._near
        if self._exact.add(_conversation_key(entry)):
            name, match = "exact_duplicate", earlier.index.find(text)
        else:
            name, match = "near_duplicate", earlier.index.find_and_add(text)
            earlier.offsets.append(self._end)
        found: dict[str, str | None] = {"exact_duplicate": None, "near_duplicate": None}
        if match is not None:
            likes[name] = self._row_at(earlier.offsets[match.number])
        if name == "exact_duplicate":
            found[name] = "says word for word what an earlier row says"
        elif match is not None:
            found[name] = f"{100 * match.similarity:.0f} % the same as an earlier row"
        return found

    def _contamination(self, entry: Entry, likes: dict[str, tuple[int | None, str]]) -> dict[str, str | None]:
        if self.items is None:
            return {}
        shared = self.items.find(entry.text)
        if shared is None:
            return {"contaminated": None}
        likes["contaminated"] = None, shared.place
        return {"contaminated": f'shares "{one_line(shared.words)}" with {shared.place}'}

    def _row_at(self, offset: int) -> tuple[int, str]:
        """(index, place) of an earlier row."""
        self._flush()
        line = b""
        while not line.endswith(b"\n"):
            line += os.pread(self._spool.fileno(), 1 << 12, offset + len(line))
            line = line[: line.find(b"\n") + 1] or line
        index, place, *_ = orjson.loads(line)
        return index, place

    def _write(self, row: list[Any]) -> None:
        line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        try:
            self._spool.write(line)
        except OSError as error:
            raise StoppedEarly(no_room(error)) from None
        self._end += len(line)

    def _flush(self) -> None:
        try:
            self._spool.flush()
        except OSError as error:
            raise StoppedEarly(no_room(error)) from None

    # ---- the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Decide what only all rows together tell. Raises StoppedEarly."""
        self._flush()
        if not self.answers:  # a file of prompts
            for name in OF_ANSWERS:
                self.applied.pop(name, None)
                self.faults.pop(name, None)
                self.examples.pop(name, None)
        self.expected = self._expected()
        if self.expected is not None:
            known = {name: rows for name, rows in self.languages.items() if name != UNKNOWN}
            self.applied["other_language"] = sum(self.languages.values())
            self.faults["other_language"] = sum(rows for name, rows in known.items() if name not in self.expected)
            others = sorted(
                (index, name, example)
                for name, examples in self._by_language.items()
                if name not in self.expected
                for index, example in examples
            )
            self.examples["other_language"] = [
                example.model_copy(update={"why": self._other_language(name)}) for _, name, example in others[:SHOWN]
            ]
        self.examples = {name: self.examples[name] for name in SHARES if self.examples.get(name)}

    def _expected(self) -> set[str] | None:
        if self.options.language == "any":
            return None
        if self.options.language is not None:
            return set(self.options.language.split(","))
        known = [(rows, name) for name, rows in self.languages.items() if name != UNKNOWN]
        return {max(known)[1]} if known else None

    def _other_language(self, language: str) -> str:
        assert self.expected is not None
        return f"its language is {language}, not {' or '.join(sorted(self.expected))}"

    def findings(self) -> Iterator[Finding]:
        """The rows at fault, in their order."""
        with open(os.dup(self._spool.fileno()), "rb") as spool:
            spool.seek(0)
            for line in itertools.takewhile(bool, iter(spool.readline, b"")):
                index, place, reasons, like_row, like, language = orjson.loads(line)
                if not self.answers:
                    reasons = {name: why for name, why in reasons.items() if name not in OF_ANSWERS}
                if language is not None and self.expected is not None and language not in self.expected:
                    reasons["other_language"] = self._other_language(language)
                if reasons:
                    yield {"row": index, "place": place, "reasons": reasons, "like_row": like_row, "like": like}


def look_at(rows: Callable[[], Iterator[Entry]], look: Look, choice: Choice | None, run: Run) -> None:
    """Add every row, and offer it to the choice of those that models are shown, unless it holds personal data.

    Raises KeyboardInterrupt when the user asks to stop; StoppedEarly as `Look.add`.
    """
    progress = run.progress
    progress.begin("checking", total=None)
    try:
        for entry in rows():
            run.stop.check()
            reasons = look.add(entry)
            if choice is not None and "personal" not in reasons:
                choice.offer(entry)
            progress.counts.done += 1
            progress.tick()
    finally:
        progress.end()
    look.finish()


def _conversation_key(entry: Entry) -> str:
    """Of all that a row says and calls, whatever the white space."""
    said = [
        [message["role"], " ".join(text_of(message).split()), message.get("tool_calls")]
        for message in (*entry.messages, *entry.said)
    ]
    return hashlib.blake2b(orjson.dumps(said, default=str), digest_size=8).hexdigest()


def _withheld(why: str) -> str:
    """A reason without the row's words. That of `personal` shows nothing of them as it is."""
    why = QUOTED.sub(WITHHELD, why)
    return WITHHELD if personal(why) else why


def _example(measure: str, entry: Entry, place: str, why: str, reasons: dict[str, str], like: str | None) -> Example:
    """text: where the fault is to be seen: the beginning of the answer, or its end; of the prompt if there is none."""
    if "personal" in reasons:
        text = WITHHELD
    elif measure in AT_THE_END:
        text = _ending(entry.answer)
    else:
        text = one_line(entry.answer or entry.prompt)
    return Example(place=place, why=why, text=text, like=like)


def _ending(text: str) -> str:
    """As `one_line` shows a beginning."""
    text = printable(" ".join(text[-4 * ENDING :].split()))
    return text if len(text) <= ENDING else "\u2026" + text[1 - ENDING :]
