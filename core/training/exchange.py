"""An answer as both sides read it, and several of them behind one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..distillation.alignment import Groups
from ..distillation.chat import ChatSide
from ..distillation.losses import LOG_ZERO
from ..distillation.output_head import OutputHead
from ..teachers.scorer import TeacherScores
from .samples import Sample


@dataclass(frozen=True, eq=False)
class Exchange:
    """A sample and an answer to it, as both sides read it.

    completion_ids: the answer in the student's tokens.   ended: it closes with an end of turn.
    on_policy: the student wrote it; else it is the one in the data.
    teacher_ids: the same bytes in the teacher's tokens.
    groups: which tokens (of `positions`) cover the same bytes; None where they are compared token by token.
    scores: what the teacher says of it, once it has been asked.
    positions: the student's tokens that it says something of, rising; None: all of them.
    advantage: of the answer as a whole, where the teacher graded it against others.
    """

    sample: Sample
    completion_ids: list[int]
    ended: bool
    on_policy: bool
    teacher_ids: list[int]
    groups: Groups | None
    scores: TeacherScores | None = None
    positions: Sequence[int] | None = None
    advantage: float | None = None

    @property
    def compared(self) -> int:
        """How many positions a loss compares: tokens, or across tokenizers groups. What its mean is over."""
        if self.groups is not None:
            return self.groups.count
        return len(self.completion_ids if self.positions is None else self.positions)


def text_bytes(student: ChatSide, exchange: Exchange) -> int:
    """Bytes of the answer's text; its end of turn counts as one."""
    ends = student.read(exchange.completion_ids, exchange.ended)[1]
    return int(ends[-1]) if ends.size else 0


def at_positions(hidden: Tensor, exchanges: Sequence[Exchange]) -> tuple[Tensor, list[Exchange]]:
    """Only what the teacher says something of: its rows of `hidden` (N, D), and the answers as if it were all of them.

    hidden: the rows of all tokens of the answers, one answer behind the other.
    """
    rows: list[int] = []
    parts: list[Exchange] = []
    start = 0
    for exchange in exchanges:
        ids = exchange.completion_ids
        places = range(len(ids)) if exchange.positions is None else exchange.positions
        rows += [start + place for place in places]
        parts.append(replace(exchange, completion_ids=[ids[place] for place in places], positions=None))
        start += len(ids)
    return hidden[torch.tensor(rows, dtype=torch.long, device=hidden.device)], parts


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


def teacher_best(exchanges: Sequence[Exchange], like: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's k best tokens, (T, k) ids of its own and log-probabilities; -1 and LOG_ZERO where it tells less."""
    best = [(each.top_ids, each.top_logprobs) for each in _scores(exchanges)]
    ids = [ids for ids, _ in best if ids is not None]
    logprobs = [logprobs for _, logprobs in best if logprobs is not None]
    most = max(each.shape[1] for each in ids)
    return (
        torch.cat([pad(each, (0, most - each.shape[1]), value=-1) for each in ids]).to(like.device),
        torch.cat([pad(each, (0, most - each.shape[1]), value=LOG_ZERO) for each in logprobs]).to(like.device),
    )


def teacher_top(exchanges: Sequence[Exchange], like: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's k best tokens and the answer's own, (T, k + 1) ids of the teacher's and log-probabilities.

    Where the answer's own token is among the k best, the last place is empty (-1, LOG_ZERO). One outcome more can only
    bring the divergence nearer to that of the whole distributions, and the sampled token matters most to it.
    """
    scores = _scores(exchanges)
    ids, logprobs = teacher_best(exchanges, like)
    picked, tokens = (
        teacher_picked(exchanges, like),
        torch.tensor([token for each in scores for token in each.completion_ids], dtype=ids.dtype, device=ids.device),
    )
    known = (ids == tokens[:, None]).any(-1)
    tokens, picked = tokens.masked_fill(known, -1), picked.masked_fill(known, LOG_ZERO)
    return torch.cat([ids, tokens[:, None]], 1), torch.cat([logprobs, picked[:, None].to(logprobs.dtype)], 1)


def teacher_picked(exchanges: Sequence[Exchange], like: Tensor) -> Tensor:
    """(T,) the teacher's log-probabilities of its own tokens."""
    return torch.cat([each.picked_logprobs for each in _scores(exchanges)]).to(like.device)


def student_tokens(exchanges: Sequence[Exchange], like: Tensor) -> Tensor:
    ids = [place for exchange in exchanges for place in exchange.completion_ids]
    return torch.tensor(ids, dtype=torch.long, device=like.device)


def teacher_tokens(exchanges: Sequence[Exchange], like: Tensor) -> Tensor:
    ids = [place for exchange in exchanges for place in exchange.teacher_ids]
    return torch.tensor(ids, dtype=torch.long, device=like.device)
