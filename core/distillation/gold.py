"""Reference losses between two models with different tokenizers: groups of tokens with the same bytes, GOLD, ULD.

Row convention as in `losses`: logits row k predicts token k, so the first token of a completion is trained.
One completion, or several behind one another with their groups numbered on. The teacher is never trained.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .losses import (
    LOG_ZERO,
    check_finite,
    check_logprobs,
    divergence,
    log1mexp,
    log_probs,
    sorted_l1,
    token_logprobs,
    top_k_tail,
    uld,
)
from .terms import LossTerms

if TYPE_CHECKING:
    from .alignment import Groups
    from .vocabulary import VocabularyMap

Merged = Literal["last_token", "span"]

REST_FLOOR = 1.0e-4
"""At beta 0 and 1 "everything else" counts as at least so probable: a side may have nothing else to say."""


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
    A side without any unmatched column has a rest of probability 0, whatever the other has there: see
    `rest_divergence`.

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
        single = as_indices(groups.is_single, student_last.device).bool()
        spans = span_divergence(
            span_logprobs(student_logits, student_ids, groups.student, temperature)[~single],
            span_logprobs(teacher_logits, teacher_ids, groups.teacher, temperature)[~single],
            beta,
        ).sum()
        student_last, student_before = student_last[single], student_before[single]
        teacher_last, teacher_before = teacher_last[single], teacher_before[single]
        parts["span"] = spans.detach()

    device = student_last.device
    student_rest, teacher_rest = (
        as_indices(vocabulary.student_rest, device),
        as_indices(vocabulary.teacher_rest, device),
    )
    ours, theirs = (
        (last[:, as_indices(ids, device)] + before.unsqueeze(-1)).clamp_min(LOG_ZERO)
        for last, before, ids in (
            (student_last, student_before, vocabulary.student_ids),
            (teacher_last, teacher_before, vocabulary.teacher_ids),
        )
    )
    everything_else = rest_divergence(
        _rest(student_last, student_before, student_rest), _rest(teacher_last, teacher_before, teacher_rest), beta
    )
    matched = (divergence(ours, theirs, beta) + everything_else).sum()
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


def gold_sparse(
    student_logits: Tensor,
    student_ids: Tensor,
    teacher_picked: Tensor,
    teacher_top_ids: Tensor,
    teacher_top_logprobs: Tensor,
    groups: Groups,
    vocabulary: VocabularyMap,
    beta: float,
) -> LossTerms:
    """Sum over groups of the divergence from a teacher that tells only its k most probable tokens, in nats.

    At a group of one token on each side: over those of the k that have a partner among the student's columns, and
    everything else as one outcome (`losses.top_k_tail`). At any other group: over {its bytes, anything else} by the
    chain rule, which the given tokens' log-probabilities suffice for. There is no temperature, and no sorted part.

    student_logits: (S, V_student), student_ids: (S,).   teacher_picked: (T,) log-probabilities of its own tokens.
    teacher_top_ids, teacher_top_logprobs: (T, k), ids of its own.
    Returns tokens = groups; parts "matched" and "span". Raises ValueError for shapes that do not fit, NaN and inf.
    """
    check_sparse(len(student_logits), teacher_picked, teacher_top_ids, teacher_top_logprobs, groups)
    single = as_indices(groups.is_single, student_logits.device).bool()
    group, teacher_group = (as_indices(of, student_logits.device) for of in (groups.student, groups.teacher))
    here, there = single[group], single[teacher_group]
    columns = student_columns(teacher_top_ids[there], vocabulary)
    matched = top_k_tail(student_logits[here], columns, teacher_top_logprobs[there], None, beta).total
    spans = span_logprobs(student_logits, student_ids, groups.student)
    teacher_spans = _add_up(teacher_picked.detach().to(spans.dtype), teacher_group)
    span = span_divergence(spans[~single], teacher_spans[~single], beta).sum()
    return LossTerms(matched + span, groups.count, {"matched": matched.detach(), "span": span.detach()})


def student_columns(teacher_ids: Tensor, vocabulary: VocabularyMap) -> Tensor:
    """The student's columns of the same bytes, of the same shape; -1 where it has none, and for -1."""
    partner = teacher_ids.new_full((vocabulary.teacher_width,), -1)
    partner[as_indices(vocabulary.teacher_ids, partner.device)] = as_indices(vocabulary.student_ids, partner.device).to(
        partner.dtype
    )
    return partner[teacher_ids.clamp_min(0)].masked_fill(teacher_ids < 0, -1)


def span_divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """(G,) divergence of {these bytes, anything else}, from the log-probabilities (G,) of these bytes."""
    student, teacher = student.clamp_min(LOG_ZERO), teacher.clamp_min(LOG_ZERO)
    bytes_ = divergence(student.unsqueeze(-1), teacher.unsqueeze(-1), beta)
    return bytes_ + rest_divergence(log1mexp(student), log1mexp(teacher), beta)


def rest_divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """What the outcome "everything else" adds to `divergence`, from its log-probabilities (G,) on both sides.

    At beta 0 and 1 a rest that only one side has would cost any number of nats, though that side may be unable to say
    anything else (no column is unmatched) or be as certain as its number format allows. So there both probabilities
    are raised to at least REST_FLOOR. With r the student's rest, t the teacher's and r', t' what they are raised to,

        beta = 0   t' log(t' / r') + (r' - r) - (t' - t)
        beta = 1   r' log(r' / t') + (t' - t) - (r' - r)

    The differences keep the sum over all outcomes >= 0, and 0 for equal sides, because x log(x/y) - x + y >= 0 holds
    for each outcome by itself. Where both are above the floor it is the plain term. A student's rest below the floor
    is not drawn up to the teacher's: its other columns take the teacher's proportions among themselves.
    """
    if 0.0 < beta < 1.0:
        return divergence(student.unsqueeze(-1), teacher.unsqueeze(-1), beta)
    floor = math.log(REST_FLOOR)
    student_raised, teacher_raised = student.clamp_min(floor), teacher.clamp_min(floor)
    surplus = (student_raised.exp() - student.exp()) - (teacher_raised.exp() - teacher.exp())
    plain = divergence(student_raised.unsqueeze(-1), teacher_raised.unsqueeze(-1), beta)
    return plain + (surplus if beta == 0.0 else -surplus)


def _rest(last: Tensor, before: Tensor, rest_ids: Tensor) -> Tensor:
    """(G, V), (G,) -> (G,): log-probability of everything but the matched columns."""
    other_columns = last[:, rest_ids].logsumexp(-1) if len(rest_ids) else torch.full_like(before, LOG_ZERO)
    return torch.logaddexp(other_columns + before, log1mexp(before)).clamp(LOG_ZERO, 0.0)


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
    group = as_indices(group_of, logits.device)
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


def check_sparse(rows: int, picked: Tensor, top_ids: Tensor, top_logprobs: Tensor, groups: Groups) -> None:
    """Raise ValueError unless the student has one row per aligned token, and the teacher its log-probabilities."""
    if rows != len(groups.student):
        raise ValueError(f"{rows} rows of the student do not fit {len(groups.student)} aligned tokens")
    tokens = len(groups.teacher)
    if picked.shape != (tokens,) or top_ids.shape != top_logprobs.shape or top_ids.shape[:-1] != (tokens,):
        raise ValueError(
            f"the teacher's log-probabilities {tuple(picked.shape)}, top ids {tuple(top_ids.shape)} and their "
            f"log-probabilities {tuple(top_logprobs.shape)} must be ({tokens},), ({tokens}, k) and ({tokens}, k)"
        )
    check_logprobs(picked, "teacher log-probabilities")


def check_vocabulary(vocabulary: VocabularyMap, student_width: int, teacher_width: int) -> None:
    """Raise ValueError unless the map is for logits of these widths."""
    if (vocabulary.student_width, vocabulary.teacher_width) != (student_width, teacher_width):
        raise ValueError(
            f"the vocabulary map is for {vocabulary.student_width} student and {vocabulary.teacher_width} teacher "
            f"columns, the logits have {student_width} and {teacher_width}"
        )


def as_indices(indices: Any, device: torch.device) -> Tensor:
    """An array or tensor of indices, on the device."""
    # torch.tensor copies: an array that may not be written to would give a warning.
    return indices.to(device) if isinstance(indices, Tensor) else torch.tensor(indices, device=device)
