"""Reference losses between two models with different tokenizers: groups of tokens with the same bytes, GOLD, ULD.

Row convention as in `losses`: logits row k predicts token k, so the first token of a completion is trained.
One completion, or several behind one another with their groups numbered on. The teacher is never trained.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .losses import LOG_ZERO, check_finite, divergence, log1mexp, log_probs, sorted_l1, token_logprobs, uld
from .terms import LossTerms

if TYPE_CHECKING:
    from .alignment import Groups
    from .vocabulary import VocabularyMap

Merged = Literal["last_token", "span"]


def span_logprobs(logits: Tensor, ids: Tensor, group_of: Any, temperature: float = 1.0) -> Tensor:
    """(G,) log-probability of each whole group: the sum over its tokens of log p(token | what came before).

    By the chain rule this is the probability that the model writes these tokens, in nats; two tokenizers of one text
    can be compared by it. It counts this one way of cutting the bytes into tokens, and no other.

    logits: (T, V), ids: (T,), group_of: (T,) group index of each token, from 0, never falling.
    """
    group = _groups(group_of, logits, ids)
    picked = token_logprobs(log_probs(logits, temperature), ids)
    return _add_up(picked, group).clamp_min(LOG_ZERO)


def merged(logits: Tensor, ids: Tensor, group_of: Any, temperature: float = 1.0) -> Tensor:
    """(G, V) log-probabilities of each group with its last token left open.

    log P(v) = sum of log p_k(token k) over all tokens of the group but the last, + log p_last(v): the chain rule
    (what TRL calls "bayesian"). At the group's own last token this is `span_logprobs`. A row sums to the probability
    of the group's earlier tokens: to 1 only for a group of one token.

    Arguments as in `span_logprobs`.
    """
    logprobs, before = _last_rows(logits, ids, group_of, temperature)
    return (logprobs + before.unsqueeze(-1)).clamp_min(LOG_ZERO)


def gold_uld(
    student_logits: Tensor,
    student_ids: Tensor,
    teacher_logits: Tensor,
    teacher_ids: Tensor,
    groups: Groups,
    temperature: float = 1.0,
) -> LossTerms:
    """Universal Logit Distillation over merged groups: `losses.uld` of `merged` on both sides, summed over groups.

    Arguments as in `gold_hybrid`.
    """
    check_sides(student_logits, teacher_logits, groups)
    student = merged(student_logits, student_ids, groups.student, temperature)
    teacher = merged(teacher_logits.detach(), teacher_ids, groups.teacher, temperature)
    return uld(student.exp(), teacher.exp())


def gold_hybrid(
    student_logits: Tensor,
    student_ids: Tensor,
    teacher_logits: Tensor,
    teacher_ids: Tensor,
    groups: Groups,
    vocabulary: VocabularyMap,
    beta: float,
    weights: tuple[float, float] | None = None,
    temperature: float = 1.0,
    merged: Merged = "last_token",
) -> LossTerms:
    """Sum over groups of  w_matched D(matched columns and the rest) + w_unmatched L1(sorted unmatched columns).

    GOLD (Patiño et al., "Unlocking On-Policy Distillation for Any Model Family", 2025), with one change: GOLD compares
    the matched columns alone. Their masses differ between the models, so that their "divergence" can be negative and
    can reward mass that leaves the matched columns. Here the rest of the mass is one more outcome, so both sides sum
    to 1: D (`divergence`, with beta) is never negative, and 0 only if all matched columns agree.

    For a group of several tokens on a side, P(v) is that of `merged`, and the rest also holds whatever starts with
    other tokens than the group: log rest = log((1 - c) + c r), c the probability of the group's earlier tokens and r
    the mass of the unmatched columns after them.

    merged: "last_token": every group is compared column by column. In a group of several tokens a column then means
        "the earlier tokens, then this one", which are not the same bytes on both sides: GOLD's own approximation.
        "span": such a group is compared by what both sides can say exactly, {its bytes, anything else} by the chain
        rule, with w_matched. So a number that one side writes as one token and the other digit by digit keeps its mass.
    A side without any unmatched column has a rest of probability 0. Mass that the other side has there then costs up
    to -LOG_ZERO nats per unit at beta = 0 (the student has no rest) or 1 (the teacher has none); it is bounded between.

    weights: (w_matched, w_unmatched); by default M / V_teacher (width of its logits) and the remainder to 1.
        L1 is 0 where either side has no unmatched column; it is in probability mass, all else in nats.

    student_logits: (S, V_student), student_ids: (S,), teacher_logits: (T, V_teacher), teacher_ids: (T,).
    Returns tokens = groups; parts "matched", "unmatched" and, with "span", "span": sums before their weights.
    Raises ValueError for shapes that do not fit and for NaN or inf in the teacher's logits.
    """
    check_sides(student_logits, teacher_logits, groups)
    check_vocabulary(vocabulary, student_logits.shape[-1], teacher_logits.shape[-1])
    w_matched, w_unmatched = component_weights(weights, vocabulary)
    if merged not in ("last_token", "span"):
        raise ValueError(f'merged is {merged!r}; use "last_token" or "span"')
    teacher_logits = teacher_logits.detach()
    student_last, student_before = _last_rows(student_logits, student_ids, groups.student, temperature)
    teacher_last, teacher_before = _last_rows(teacher_logits, teacher_ids, groups.teacher, temperature)
    parts: dict[str, Tensor] = {}
    spans = student_last.new_zeros(())
    if merged == "span":
        single = _tensor(groups.is_single, student_last.device).bool()
        spans = divergence(
            _with_complement(span_logprobs(student_logits, student_ids, groups.student, temperature)[~single]),
            _with_complement(span_logprobs(teacher_logits, teacher_ids, groups.teacher, temperature)[~single]),
            beta,
        ).sum()
        student_last, student_before = student_last[single], student_before[single]
        teacher_last, teacher_before = teacher_last[single], teacher_before[single]
        parts["span"] = spans.detach()

    device = student_last.device
    student_rest, teacher_rest = _tensor(vocabulary.student_rest, device), _tensor(vocabulary.teacher_rest, device)
    matched = divergence(
        _with_rest(student_last, student_before, _tensor(vocabulary.student_ids, device), student_rest),
        _with_rest(teacher_last, teacher_before, _tensor(vocabulary.teacher_ids, device), teacher_rest),
        beta,
    ).sum()
    unmatched = student_last.new_zeros(())
    if len(student_rest) and len(teacher_rest):
        unmatched = sorted_l1(
            (student_last[:, student_rest] + student_before.unsqueeze(-1)).exp(),
            (teacher_last[:, teacher_rest] + teacher_before.unsqueeze(-1)).exp(),
        ).sum()
    parts |= {"matched": matched.detach(), "unmatched": unmatched.detach()}
    return LossTerms(w_matched * (matched + spans) + w_unmatched * unmatched, groups.count, parts)


def component_weights(weights: tuple[float, float] | None, vocabulary: VocabularyMap) -> tuple[float, float]:
    """(matched, unmatched): as given, or the matched share M / V_teacher of the teacher's columns, and 1 - it."""
    if weights is None:
        share = len(vocabulary.teacher_ids) / vocabulary.teacher_width
        return share, 1.0 - share
    if len(weights) != 2 or not all(0.0 <= weight < math.inf for weight in weights):
        raise ValueError(f"weights are {weights}; give (matched, unmatched), both 0 or more, or None for the default")
    return weights


def _with_rest(last: Tensor, before: Tensor, ids: Tensor, rest_ids: Tensor) -> Tensor:
    """(G, V), (G,) -> (G, M + 1): log-probabilities of the matched columns, and of everything else as one outcome."""
    inside = last[:, ids] + before.unsqueeze(-1)
    other_columns = last[:, rest_ids].logsumexp(-1) if len(rest_ids) else torch.full_like(before, LOG_ZERO)
    rest = torch.logaddexp(other_columns + before, log1mexp(before))
    return torch.cat([inside, rest.unsqueeze(-1)], -1).clamp_min(LOG_ZERO)


def _with_complement(logprobs: Tensor) -> Tensor:
    """(G,) -> (G, 2): log p and log(1 - p)."""
    return torch.stack([logprobs, log1mexp(logprobs)], -1)


def _last_rows(logits: Tensor, ids: Tensor, group_of: Any, temperature: float) -> tuple[Tensor, Tensor]:
    """(G, V) log-probabilities at the last token of each group, and (G,) those of the tokens before it, added up."""
    group = _groups(group_of, logits, ids)
    logprobs = log_probs(logits, temperature)
    is_last = torch.ones_like(group, dtype=torch.bool)
    is_last[:-1] = group[1:] != group[:-1]
    picked = token_logprobs(logprobs, ids)
    before = _add_up(picked.masked_fill(is_last, 0.0), group)
    return logprobs[is_last], before.clamp_min(LOG_ZERO)


def _add_up(values: Tensor, group: Tensor) -> Tensor:
    count = int(group[-1]) + 1 if len(group) else 0
    return values.new_zeros(count).index_add(0, group, values)


def _groups(group_of: Any, logits: Tensor, ids: Tensor) -> Tensor:
    group = _tensor(group_of, logits.device)
    if logits.dim() != 2 or ids.shape != logits.shape[:1] or group.shape != ids.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, ids {tuple(ids.shape)} and group indices {tuple(group.shape)} "
            "must be (T, V), (T,) and (T,)"
        )
    steps = torch.diff(group, prepend=group.new_full((1,), -1))
    wrong = (steps < 0) | (steps > 1)
    if len(group):
        wrong[0] = group[0] != 0
    if wrong.any():
        token = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"token {token} lies in group {int(group[token])}: groups start at 0, never fall and skip none"
        )
    return group


def check_sides(student_logits: Tensor, teacher_logits: Tensor, groups: Groups) -> None:
    """Raise ValueError unless the logits have one row per aligned token and the teacher's are finite."""
    for name, logits, group in (
        ("student", student_logits, groups.student),
        ("teacher", teacher_logits, groups.teacher),
    ):
        if logits.dim() != 2 or len(logits) != len(group):
            raise ValueError(f"{name} logits {tuple(logits.shape)} do not fit {len(group)} aligned tokens")
        reached = int(group[-1]) + 1 if len(group) else 0
        if reached != groups.count:
            raise ValueError(f"the {name}'s tokens lie in {reached} groups, but there are {groups.count}")
    check_finite(teacher_logits, "teacher logits")


def check_vocabulary(vocabulary: VocabularyMap, student_width: int, teacher_width: int) -> None:
    """Raise ValueError unless the map is for logits of these widths."""
    if (vocabulary.student_width, vocabulary.teacher_width) != (student_width, teacher_width):
        raise ValueError(
            f"the vocabulary map is for {vocabulary.student_width} student and {vocabulary.teacher_width} teacher "
            f"columns, the logits have {student_width} and {teacher_width}"
        )


def _tensor(indices: Any, device: torch.device) -> Tensor:
    # torch.tensor copies: an array that may not be written to would give a warning.
    return indices.to(device) if isinstance(indices, Tensor) else torch.tensor(indices, device=device)
