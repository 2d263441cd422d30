"""An answer as both sides read it, and several of them behind one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..distillation.alignment import Groups
from ..distillation.chat import ChatSide
from ..distillation.output_head import OutputHead
from ..teachers.scorer import TeacherScores
from .samples import Sample


@dataclass(frozen=True, eq=False)
class Exchange:
    """A sample and an answer to it, as both sides read it.

    completion_ids: the answer in the student's tokens.   ended: it closes with an end of turn.
    on_policy: the student wrote it; else it is the one in the data.
    teacher_ids: the same bytes in the teacher's tokens.
    groups: which tokens cover the same bytes; None with one tokenizer, where they are compared token by token.
    """

    sample: Sample
    completion_ids: list[int]
    ended: bool
    on_policy: bool
    teacher_ids: list[int]
    groups: Groups | None
    scores: TeacherScores | None = None

    @property
    def compared(self) -> int:
        """How many positions a loss compares: tokens, or across tokenizers groups. What its mean is over."""
        return len(self.completion_ids) if self.groups is None else self.groups.count


def text_bytes(student: ChatSide, exchange: Exchange) -> int:
    """Bytes of the answer's text; its end of turn counts as one."""
    ends = student.read(exchange.completion_ids, exchange.ended)[1]
    return int(ends[-1]) if ends.size else 0


def joined(exchanges: Sequence[Exchange]) -> Groups:
    """Their groups, numbered on; with one tokenizer a group is a token."""
    student: list[np.ndarray] = [np.zeros(0, np.int64)]
    teacher = list(student)
    count = 0
    for exchange in exchanges:
        every = np.arange(len(exchange.completion_ids))
        groups = exchange.groups or Groups(every, every, len(every))
        student.append(groups.student + count)
        teacher.append(groups.teacher + count)
        count += groups.count
    return Groups(np.concatenate(student), np.concatenate(teacher), count)


def pieces(groups: Groups, rows: int) -> Iterator[tuple[slice, slice, Groups]]:
    """(student's rows, teacher's rows, their groups from 0): whole groups, up to `rows` of either side."""
    ends, teacher_ends = np.cumsum(groups.student_sizes), np.cumsum(groups.teacher_sizes)
    start, here, there = 0, 0, 0
    while start < groups.count:
        stop = min(np.searchsorted(ends, here + rows, "right"), np.searchsorted(teacher_ends, there + rows, "right"))
        stop = max(int(stop), start + 1)
        ours, theirs = slice(here, int(ends[stop - 1])), slice(there, int(teacher_ends[stop - 1]))
        yield ours, theirs, Groups(groups.student[ours] - start, groups.teacher[theirs] - start, stop - start)
        start, here, there = stop, ours.stop, theirs.stop


def _scores(exchanges: Sequence[Exchange]) -> list[TeacherScores]:
    found = [exchange.scores for exchange in exchanges if exchange.scores is not None]
    if len(found) != len(exchanges):
        raise ValueError(f"{len(exchanges) - len(found)} of {len(exchanges)} answers have no scores of the teacher")
    return found


def teacher_states(exchanges: Sequence[Exchange], like: Tensor) -> tuple[Tensor, OutputHead]:
    """The teacher's hidden states (T, D), and its head."""
    scores = _scores(exchanges)
    hidden = [each.hidden for each in scores if each.hidden is not None]
    head = scores[0].head if scores else None
    if head is None or len(hidden) != len(scores):
        raise ValueError("the teacher's scores hold no hidden states")
    return torch.cat(hidden).to(like.device), head


def teacher_top(exchanges: Sequence[Exchange], like: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's k best tokens, (T, k) ids of its own and log-probabilities."""
    scores = _scores(exchanges)
    ids = [each.top_ids for each in scores if each.top_ids is not None]
    logprobs = [each.top_logprobs for each in scores if each.top_logprobs is not None]
    return torch.cat(ids).to(like.device), torch.cat(logprobs).to(like.device)


def teacher_picked(exchanges: Sequence[Exchange], like: Tensor) -> Tensor:
    """(T,) the teacher's log-probabilities of its own tokens."""
    return torch.cat([each.picked_logprobs for each in _scores(exchanges)]).to(like.device)


def student_tokens(exchanges: Sequence[Exchange], like: Tensor) -> Tensor:
    ids = [place for exchange in exchanges for place in exchange.completion_ids]
    return torch.tensor(ids, dtype=torch.long, device=like.device)


def teacher_tokens(exchanges: Sequence[Exchange], like: Tensor) -> Tensor:
    ids = [place for exchange in exchanges for place in exchange.teacher_ids]
    return torch.tensor(ids, dtype=torch.long, device=like.device)
