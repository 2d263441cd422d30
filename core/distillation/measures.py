"""How far a student is from its teacher, as sums and counts: for training, evaluation and data checks alike.

Row convention as in `losses`: row k predicts token k. Wherever logits are asked for, log-probabilities do as well.
Rows are read in chunks, so that nothing of the size of the logits is made; no gradient is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .gold import check_sides, check_vocabulary, rest_divergence
from .losses import (
    LOG_ZERO,
    MAX_LOG_RATIO,
    check_finite,
    check_logprobs,
    divergence,
    log_probs,
    selected,
    token_logprobs,
)
from .terms import sum_dtype

if TYPE_CHECKING:
    from .alignment import Groups
    from .vocabulary import VocabularyMap

CHUNK = 256
"""Rows that are read at a time."""


@dataclass(frozen=True)
class Tally:
    """A sum and what it is a sum over, so that tallies of batches add up to that of the whole."""

    total: float
    count: float

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float:
        """total / count; NaN when nothing was counted."""
        return self.total / self.count if self.count else math.nan


Measures = dict[str, Tally]


def add(first: Mapping[str, Tally], second: Mapping[str, Tally]) -> Measures:
    """The measures of both batches together, by name."""
    names = [*first, *(name for name in second if name not in first)]
    zero = Tally(0.0, 0.0)
    return {name: first.get(name, zero) + second.get(name, zero) for name in names}


@torch.no_grad()
def compare(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None, chunk: int = CHUNK) -> Measures:
    """Two models on the same vocabulary, per token.

    kl_teacher_student   KL(teacher || student), nats: what the student misses.
    kl_student_teacher   KL(student || teacher), nats: what it makes up.
    top1_agreement       share of rows whose most probable token is the same (of equals, the lowest id).
    student_entropy, teacher_entropy   nats.

    student_logits, teacher_logits: (..., V).   mask: (...), True where a token counts; None: all.
    Raises ValueError for shapes that do not fit and for NaN or inf in either's logits.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ in "
            "shape: the two models do not share a vocabulary or were not given the same rows"
        )
    mask = selected(mask, student_logits.shape[:-1], student_logits.device)
    check_finite(student_logits, "student logits", mask)
    check_finite(teacher_logits, "teacher logits", mask)
    sums = torch.zeros(5, dtype=sum_dtype(student_logits.device), device=student_logits.device)
    rows = mask.nonzero()  # by index, because a reshape of logits that were cut would copy them
    for some in rows.split(chunk):
        place = some.unbind(-1)
        sums += _compared(log_probs(student_logits[place]), log_probs(teacher_logits[place]))
    names = ("kl_teacher_student", "kl_student_teacher", "top1_agreement", "student_entropy", "teacher_entropy")
    return {name: Tally(value, len(rows)) for name, value in zip(names, sums.tolist(), strict=True)}


@torch.no_grad()
def compare_groups(
    student_logits: Tensor,
    student_ids: Tensor,
    teacher_logits: Tensor,
    teacher_ids: Tensor,
    groups: Groups,
    vocabulary: VocabularyMap,
    chunk: int = CHUNK,
) -> Measures:
    """Two models with different tokenizers on one completion.

    At groups of one token on each side, over the matched columns and the rest as one more outcome:
    kl_teacher_student, kl_student_teacher   nats; lower bounds of what a common vocabulary would show.
    top1_agreement       share of groups whose most probable columns are a matched pair.
    Over all groups:
    span_log_ratio       log p_student(bytes) - log p_teacher(bytes) by the chain rule, nats per group; on text that
                         the student wrote it estimates KL(student || teacher) without bias, as far as
                         each side has one way to cut a text into tokens.
    Over all rows of a side:
    student_entropy, teacher_entropy             nats.
    student_matched_mass, teacher_matched_mass   probability of the matched columns.
    And `matched_share`.

    Arguments as in `gold.gold_hybrid`. Raises ValueError for NaN or inf in either's logits.
    """
    check_sides(student_logits, teacher_logits, groups)
    check_vocabulary(vocabulary, student_logits.shape[-1], teacher_logits.shape[-1])
    check_finite(student_logits, "student logits")
    device = student_logits.device
    single = torch.tensor(groups.is_single, device=device)
    # At a group of one token a side's row is the token's own.
    student_rows = single[torch.tensor(groups.student, device=device)].nonzero().squeeze(-1)
    teacher_rows = single[torch.tensor(groups.teacher, device=device)].nonzero().squeeze(-1)
    student_columns = torch.tensor(vocabulary.student_ids, device=device)
    teacher_columns = torch.tensor(vocabulary.teacher_ids, device=device)
    partner = torch.full((vocabulary.teacher_width,), -1, dtype=torch.long, device=device)
    partner[teacher_columns] = student_columns

    sums = torch.zeros(3, dtype=sum_dtype(device), device=device)
    for some_student, some_teacher in zip(student_rows.split(chunk), teacher_rows.split(chunk), strict=True):
        student, teacher = log_probs(student_logits[some_student]), log_probs(teacher_logits[some_teacher])
        ours, theirs = _buckets(student, student_columns), _buckets(teacher, teacher_columns)
        divergences = [
            divergence(ours[:, :-1], theirs[:, :-1], beta) + rest_divergence(ours[:, -1], theirs[:, -1], beta)
            for beta in (0.0, 1.0)
        ]
        agree = partner[teacher.argmax(-1)] == student.argmax(-1)
        sums += torch.stack([values.sum(dtype=sums.dtype) for values in (*divergences, agree)])
    names = ("kl_teacher_student", "kl_student_teacher", "top1_agreement")
    measures = {name: Tally(value, len(student_rows)) for name, value in zip(names, sums.tolist(), strict=True)}

    likelihood: list[float] = []
    for side, logits, ids, columns in (
        ("student", student_logits, student_ids, student_columns),
        ("teacher", teacher_logits, teacher_ids, teacher_columns),
    ):
        totals = torch.zeros(3, dtype=sum_dtype(device), device=device)
        for rows in torch.arange(len(logits), device=device).split(chunk):
            logprobs = log_probs(logits[rows])
            picked = token_logprobs(logprobs, ids[rows])
            totals += torch.stack(
                [_entropy(logprobs), logprobs[:, columns].exp().sum(dtype=totals.dtype), picked.sum(dtype=totals.dtype)]
            )
        entropy, mass, loglikelihood = totals.tolist()
        measures[f"{side}_entropy"] = Tally(entropy, len(logits))
        measures[f"{side}_matched_mass"] = Tally(mass, len(logits))
        likelihood.append(loglikelihood)
    # The groups of a side add up to all its tokens, so that no sum per group is needed.
    measures["span_log_ratio"] = Tally(likelihood[0] - likelihood[1], groups.count)
    return measures | matched_share(groups, vocabulary)


def matched_share(groups: Groups, vocabulary: VocabularyMap) -> Measures:
    """How much of a completion and of the vocabularies the two sides have in common.

    student_single_tokens, teacher_single_tokens   share of a side's tokens in groups of one token on each side.
    single_groups                                  share of such groups among all.
    student_matched_columns, teacher_matched_columns   share of a side's columns that have a partner.
    """
    singles = int(groups.is_single.sum())
    pairs = len(vocabulary.student_ids)
    return {
        "student_single_tokens": Tally(singles, len(groups.student)),
        "teacher_single_tokens": Tally(singles, len(groups.teacher)),
        "single_groups": Tally(singles, groups.count),
        "student_matched_columns": Tally(pairs, vocabulary.student_width),
        "teacher_matched_columns": Tally(pairs, vocabulary.teacher_width),
    }


@torch.no_grad()
def sampled(student_logprobs: Tensor, teacher_logprobs: Tensor, mask: Tensor | None = None) -> Measures:
    """Two models on the same tokens, when only these tokens' log-probabilities are known; on text of the student.

    reverse_kl_k1, reverse_kl_k3   two unbiased estimates of KL(student || teacher), nats per token; k3 is never
                                   negative and varies less while the models are near (`losses.sampled_reverse_kl`).

    All tensors (...), mask (...), True where a token counts; None: all.
    """
    if student_logprobs.shape != teacher_logprobs.shape:
        raise ValueError(
            f"student log-probabilities {tuple(student_logprobs.shape)} and teacher log-probabilities "
            f"{tuple(teacher_logprobs.shape)} differ in shape"
        )
    mask = selected(mask, student_logprobs.shape, student_logprobs.device)
    check_logprobs(student_logprobs, "student log-probabilities", mask)
    check_logprobs(teacher_logprobs, "teacher log-probabilities", mask)
    teacher, student = (side[mask].cpu().double().clamp_min(LOG_ZERO) for side in (teacher_logprobs, student_logprobs))
    ratio = teacher - student
    cut = ratio.clamp_max(MAX_LOG_RATIO)
    return {
        "reverse_kl_k1": Tally(float(-ratio.sum()), len(ratio)),
        "reverse_kl_k3": Tally(float((torch.expm1(cut) - cut).sum()), len(ratio)),
    }


@torch.no_grad()
def surprise(logprobs: Tensor, mask: Tensor | None, completion_bytes: int) -> Measures:
    """How well a model predicts a text.

    nats_per_token    mean of -log p(token); depends on the tokenizer.
    bits_per_byte     -sum of log2 p(token) / bytes; may be compared between tokenizers.

    logprobs: (...), of the tokens of the text.   mask: (...), True where a token counts; None: all.
    completion_bytes: UTF-8 bytes of the counted text.
    """
    if completion_bytes < 0:
        raise ValueError(f"completion_bytes is {completion_bytes}; a text has 0 bytes or more")
    mask = selected(mask, logprobs.shape, logprobs.device)
    check_logprobs(logprobs, "log-probabilities", mask)
    nats = float(-logprobs[mask].cpu().double().clamp_min(LOG_ZERO).sum())
    return {
        "nats_per_token": Tally(nats, int(mask.sum())),
        "bits_per_byte": Tally(nats / math.log(2.0), completion_bytes),
    }


def _compared(student: Tensor, teacher: Tensor) -> Tensor:
    """(5,) sums over rows of log-probabilities (N, V), in the order of `compare`."""
    gap, dtype = teacher - student, sum_dtype(student.device)
    return torch.stack(
        [
            (teacher.exp() * gap).sum(dtype=dtype),
            -(student.exp() * gap).sum(dtype=dtype),
            (student.argmax(-1) == teacher.argmax(-1)).sum(dtype=dtype),
            _entropy(student),
            _entropy(teacher),
        ]
    )


def _entropy(logprobs: Tensor) -> Tensor:
    return -(logprobs.exp() * logprobs).sum(dtype=sum_dtype(logprobs.device))


def _buckets(logprobs: Tensor, columns: Tensor) -> Tensor:
    """(N, V) -> (N, M + 1): the matched columns, and all others as one."""
    rest = logprobs.index_fill(-1, columns, LOG_ZERO).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs[:, columns], rest], -1).clamp(LOG_ZERO, 0.0)
