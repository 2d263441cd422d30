"""What a server tells of a token, in bytes -> the student's columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..distillation.chat import ChatSide
from ..distillation.losses import LOG_ZERO
from ..distillation.vocabulary import by_bytes

Row = list[tuple[int, float]]
"""Columns of the student's and their log-probabilities, most probable first; column -1 where it has none."""
NO_COLUMN = -1


class Columns:
    """The student's tokens by their bytes.

    Only what is read in text: a special token is never meant by a text that looks like it. Ordinary tokens come before
    added ones.   width: number of logits.
    """

    def __init__(self, side: ChatSide, width: int) -> None:
        table = side.token_bytes
        self._places = by_bytes(table, width, table.special) | by_bytes(table, width, table.added)
        self._lead, self._end = side.lead, side.end_of_turn

    def of(self, data: bytes, *, first: bool) -> int:
        """The column of exactly these bytes, -1 where there is none. first: they begin the answer, where the student's
        own way of writing may put a space before them (`ChatSide.lead`)."""
        return self._places.get(self._lead + data if first else data, NO_COLUMN)

    def row(self, told: Iterable[tuple[bytes, float]], ended: float | None, *, first: bool) -> Row:
        """What is told of one position: alternatives and, where it is known, the end of the turn. Probabilities of the
        same column are added up."""
        found = {} if ended is None else {self._end: ended}
        without: list[float] = []
        for data, logprob in told:
            column = self.of(data, first=first)
            if column == NO_COLUMN:
                without.append(logprob)
            else:
                found[column] = float(np.logaddexp(found[column], logprob)) if column in found else logprob
        row = [*found.items(), *((NO_COLUMN, logprob) for logprob in without)]
        return sorted(((column, min(logprob, 0.0)) for column, logprob in row), key=lambda each: -each[1])


def padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """(T, k) columns and log-probabilities; shorter rows end in -1 and LOG_ZERO."""
    longest = max(map(len, rows), default=0)
    columns = np.full((len(rows), longest), NO_COLUMN, np.int64)
    logprobs = np.full((len(rows), longest), LOG_ZERO, np.float32)
    for place, row in enumerate(rows):
        if row:
            columns[place, : len(row)], logprobs[place, : len(row)] = zip(*row, strict=True)
    return torch.from_numpy(columns), torch.from_numpy(logprobs)
