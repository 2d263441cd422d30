"""A teacher that can only chat, and tells how probable its own answers are: the student learns those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..commands.train_gold import TrainGold
from ..distillation.alignment import Groups, align
from ..distillation.chat import Part
from ..distillation.measures import Measures, add
from ..distillation.output_head import OutputHead
from ..distillation.terms import LossTerms
from ..distillation.vocabulary import VocabularyMap
from ..errors import RequestRejected, StoppedEarly, TeacherError
from ..teachers.chat_teacher import ChatTeacher, NextToken, Written, next_token
from ..teachers.scorer import TeacherScores
from .columns import Columns, Row, padded
from .comparisons import COMPARISONS, Settings, bits_per_byte, check_loss, text_words
from .exchange import Exchange, at_positions
from .samples import Sample
from .signal import Answers, Mode, answered
from .student import Student

NO_LOGPROBS = (
    "the teacher's server tells no log-probabilities of what the teacher writes, and --teacher-mode teacher-text "
    "learns from those. Its answers alone can be learnt: generate_teacher_data writes them, train_sft trains on them."
)


class Entry(NamedTuple):
    """What is told of a token. size: its bytes; the end of a turn counts as one.   column: of the student's, -1 where
    it has none.   logprob: of the token itself; None where the server keeps it to itself.   row: of it and its
    alternatives."""

    size: int
    column: int
    logprob: float | None
    row: Row


class TextSignal:
    """A `Signal` from answers that the teacher writes itself, with the log-probabilities that it tells of them.

    Each sample has one answer, drawn with a seed of its own, for the whole run: it is paid once. Tokens of both sides
    that cover the same bytes are compared as `fused_sparse` does; the teacher's are told as columns of the student's.
    Where the server does not tell how sure the teacher was of ending, the end of turn is part of the answer, but not
    compared: only --lambda-sft teaches it. The same holds for a token whose own log-probability is not told.

    Raises UsageError for options that compare what such a teacher does not tell.
    """

    mode: Mode = "teacher-text"
    answers: Answers = "teacher"
    per_prompt = 1
    lost = "the teacher gave no answer, or did not tell how probable its tokens are"
    waits = True

    def __init__(self, options: TrainGold, student: Student, chat: ChatTeacher) -> None:
        check_loss(options, self.mode)
        self.reasons: dict[str, str] = {}
        self._options, self._side, self._chat = options, student.side, chat
        width = student.head.width
        self._columns = Columns(student.side, width)
        self._comparison = COMPARISONS["two", "gold", "top_k"]
        self._settings = Settings(
            beta=options.beta,
            temperature=1.0,
            merged="span",
            unmatched_top_k=None,
            student_width=width,
            teacher_width=width,
            vocabulary=with_itself(width),
        )
        self.words = text_words(options.beta, chat.top)

    def exchange(self, sample: Sample, completion_ids: Sequence[int], ended: bool, on_policy: bool) -> Exchange:
        """See `Signal`; empty until the teacher has written it."""
        return Exchange(sample, [int(place) for place in completion_ids], ended, on_policy, [], None)

    def scored(self, exchanges: Sequence[Exchange], *, measuring: bool = False) -> list[Exchange]:
        """See `Signal`: the teacher's own answers, of at most --max-new-tokens of either side's tokens.

        Raises StoppedEarly as `signal.answered` does, and when no log-probabilities are told.
        """
        most = self._options.max_new_tokens
        samples = [exchange.sample for exchange in exchanges]
        asked = [(sample.messages, sample.tools or ()) for sample in samples]
        seeds = [(int(sample.key, 16) + self._options.seed) % 2**31 for sample in samples]  # servers take 32 bits
        answers = self._chat.write(asked, max_tokens=most, seeds=seeds)
        if answers and all(isinstance(answer, TeacherError) and answer.reason == "no_logprobs" for answer in answers):
            raise StoppedEarly(NO_LOGPROBS)
        written = answered(answers, [sample.place for sample in samples], self._chat.server, self.reasons)
        found = [
            None if answer is None else self._told(exchange, answer)
            for exchange, answer in zip(exchanges, written, strict=True)
        ]
        return [exchange for exchange in found if exchange is not None]

    def loss(self, hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> LossTerms:
        """See `Signal`. Raises ValueError when the teacher's log-probabilities hold NaN or inf."""
        rows, parts = at_positions(hidden, exchanges)
        return self._comparison.loss(rows, head, parts, self._settings)

    def measure(self, hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> Measures:
        """See `Signal`. Bits per byte are those of what is compared."""
        found: Measures = {}
        start = size = 0
        for exchange in exchanges:
            count = len(exchange.completion_ids)
            rows, (part,) = at_positions(hidden[start : start + count].detach(), [exchange])
            found = add(found, self._comparison.measure(rows, head, part, self._settings))
            sizes = np.diff(self._side.read(exchange.completion_ids, exchange.ended)[1], prepend=0)
            size += int(sizes.sum() if exchange.positions is None else sizes[list(exchange.positions)].sum())
            start += count
        return bits_per_byte(found, size)

    def _told(self, exchange: Exchange, answer: Written) -> Exchange | None:
        """The answer as the student would write it, and what the teacher says of it; None when that is nothing."""
        data = answer.text.encode()
        ids, ends = self._side.write([Part(data)] if data else [], answer.ended)
        entries = self._entries(answer)
        end_told = len(entries) > len(answer.told)
        compared = len(ids) - (answer.ended and not end_told)
        groups = align(ends[:compared], np.cumsum([entry.size for entry in entries], dtype=np.int64))
        ended, most = answer.ended, self._options.max_new_tokens
        if len(ids) > most:
            ended = False
            if compared > most:  # whole groups, as many as fit
                groups = first_groups(groups, int(groups.student[most]))
            compared = len(groups.student)
            ids = ids[:compared]
        entries = entries[: len(groups.teacher)]
        groups, places, kept = told_groups(groups, [entry.logprob is not None for entry in entries])
        if not groups.count:
            return None
        entries = [entries[place] for place in kept]
        columns = [entry.column for entry in entries]
        picked = torch.tensor([entry.logprob for entry in entries], dtype=torch.float32)
        scores = TeacherScores("top_k", columns, picked, *padded([entry.row for entry in entries]))
        return replace(
            exchange,
            completion_ids=ids,
            ended=ended,
            teacher_ids=columns,
            groups=groups,
            scores=scores,
            positions=None if len(places) == len(ids) else places,
        )

    def _entries(self, answer: Written) -> list[Entry]:
        """One for each token of the text; then one for the end of the turn, where it is told."""
        entries: list[Entry] = []
        for place, told in enumerate(answer.told):
            assert isinstance(told.token, bytes)  # see `ChatTeacher.write`
            found = next_token(told, nameless_ends=self._chat.nameless_ends)
            column = self._columns.of(told.token, first=place == 0)
            row = self._columns.row(found.top, found.ended, first=place == 0)
            entries.append(Entry(len(told.token), column, told.logprob, row))
        if answer.ended and (end := self._end(answer)) is not None and end.ended is not None:
            row = self._columns.row(end.top, end.ended, first=not entries)
            entries.append(Entry(1, self._side.end_of_turn, end.ended, row))
        return entries

    def _end(self, answer: Written) -> NextToken | None:
        """What is told where the answer ends; None where that is nothing that can be used."""
        if answer.end is None:
            return None
        try:
            return next_token(answer.end, nameless_ends=not answer.end.token or self._chat.nameless_ends)
        except RequestRejected:
            return None


def first_groups(groups: Groups, count: int) -> Groups:
    """The first `count` groups."""
    student, teacher = (of[: np.searchsorted(of, count)] for of in (groups.student, groups.teacher))
    return Groups(student, teacher, count)


def told_groups(groups: Groups, told: Sequence[bool]) -> tuple[Groups, list[int], list[int]]:
    """Only the groups of which every one of the teacher's tokens is told; then the student's and the teacher's tokens
    in them."""
    whole = np.ones(groups.count, np.bool_)
    whole[groups.teacher[~np.asarray(told, np.bool_)]] = False
    number = np.cumsum(whole) - 1
    places, kept = (np.flatnonzero(whole[of]) for of in (groups.student, groups.teacher))
    renumbered = Groups(number[groups.student[places]], number[groups.teacher[kept]], int(whole.sum()))
    return renumbered, places.tolist(), kept.tolist()


def with_itself(width: int) -> VocabularyMap:
    """A map of a vocabulary onto itself."""
    every, none = np.arange(width), np.zeros(0, np.int64)
    return VocabularyMap(every, every, none, none, width, width)
