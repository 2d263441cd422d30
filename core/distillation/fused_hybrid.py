"""The GOLD hybrid loss across tokenizers, chunked and with the gradient formed in the forward pass.

The reference is `gold.gold_hybrid`. Of every group of tokens with the same bytes the row of the LAST token on each side
is compared over the whole vocabulary; of the tokens before it only their own log-probability is needed.

With p the student's softmax at the last token, c the probability of the group's earlier tokens, P_v = c p_v, R the sum
of p over the columns without a partner, s_r = (1 - c) + c R, and A_v = dD / d log P_v of a matched column, or of the
bucket r of everything else,

    e_v = w_matched A_v                                              for a matched column
    e_v = P_v (w_matched A_r / s_r + w_unmatched sign_v)             for one without a partner (sign_v: `fused_sorted`)
    Q   = sum of e_v
    d loss / d z_v   = e_v - p_v Q
    d loss / d log c = Q - w_matched c A_r / s_r

    A = (1 - beta) P log(P / m) for 0 < beta < 1;  -T for beta = 0;  P log(P / T) for beta = 1;
        at the ends the rest counts as at least REST_FLOOR (`gold.rest_divergence`): below it -P and 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .fused_chunks import (
    Buffer,
    Computed,
    Entries,
    HeadGradients,
    Projection,
    buffers,
    check_beta,
    check_ids,
    check_rows,
    check_teacher,
    chunks,
    compute_dtype,
    each,
    exponentials,
    run_fused,
)
from .fused_picked import add_picked_gradient, picked_logprobs
from .fused_sorted import Exact, Rest, TopK, exact_l1, top_k_l1
from .gold import REST_FLOOR, Merged, as_indices, component_weights, span_divergence
from .losses import LOG_ZERO
from .output_head import OutputHead
from .terms import LossTerms, sum_dtype

if TYPE_CHECKING:
    from .alignment import Groups
    from .vocabulary import VocabularyMap

TOP_K = 64
"""Default of unmatched_top_k."""


def fused_hybrid(
    student_hidden: Tensor,
    head: OutputHead,
    student_ids: Tensor,
    teacher_hidden: Tensor,
    teacher_head: OutputHead,
    teacher_ids: Tensor,
    groups: Groups,
    vocabulary: VocabularyMap,
    beta: float,
    weights: tuple[float, float] | None = None,
    temperature: float = 1.0,
    merged: Merged = "last_token",
    unmatched_top_k: int | None = TOP_K,
    chunk: int | None = None,
) -> LossTerms:
    """Sum over groups of w_matched D(matched columns and the rest) + w_unmatched L1(sorted unmatched columns).

    student_hidden: (S, D), student_ids: (S,), teacher_hidden: (T, D_teacher), teacher_ids: (T,): the rows of one
    completion, or of several behind one another with their groups numbered on.
    unmatched_top_k: how many of the unmatched columns of each side are sorted; the others are compared by their sum.
        None: all of them, which is exact and sorts (S + T) U numbers.
    beta, weights, temperature and merged, tokens and parts as in `gold.gold_hybrid`.

    Raises ValueError for what does not fit, and for NaN or inf in the teacher's logits.
    """
    check_rows(student_hidden, head, "student", temperature)
    check_rows(teacher_hidden, teacher_head, "teacher")
    check_ids(student_ids, len(student_hidden), head.width, "student")
    check_ids(teacher_ids, len(teacher_hidden), teacher_head.width, "teacher")
    check_beta(beta)
    if (vocabulary.student_width, vocabulary.teacher_width) != (head.width, teacher_head.width):
        raise ValueError(
            f"the vocabulary map is for {vocabulary.student_width} student and {vocabulary.teacher_width} teacher "
            f"columns, the models have {head.width} and {teacher_head.width}"
        )
    if merged not in ("last_token", "span"):
        raise ValueError(f'merged is {merged!r}; use "last_token" or "span"')
    if unmatched_top_k is not None and unmatched_top_k < 1:
        raise ValueError(f"unmatched_top_k is {unmatched_top_k}; it must be at least 1, or None for all")
    w_matched, w_unmatched = component_weights(weights, vocabulary)
    device, dtype = student_hidden.device, compute_dtype(student_hidden)
    teacher_hidden = teacher_hidden.detach().to(dtype)
    count = groups.count
    is_single = as_indices(groups.is_single, device).bool() if merged == "span" else None
    ours = _Tokens.of(groups.student, len(student_hidden), count, is_single, device, "student")
    theirs = _Tokens.of(groups.teacher, len(teacher_hidden), count, is_single, device, "teacher")

    def compute(gradients: HeadGradients) -> Computed:
        before, normaliser = ours.score(student_hidden, head, student_ids, temperature, chunk)
        teacher_before, _ = theirs.score(teacher_hidden, teacher_head, teacher_ids, temperature, chunk, check=True)
        pull = torch.zeros_like(before)  # (G,) d loss / d (log-probability of the tokens that are only scored)
        whole = torch.arange(count, device=device)
        parts: dict[str, Tensor] = {}
        spans = before.new_zeros(())
        if is_single is not None:
            whole, several = is_single.nonzero().flatten(), (~is_single).nonzero().flatten()
            spans, slope = _spans(before[several], teacher_before[several], beta)
            pull[several] = w_matched * slope
            before, teacher_before = torch.zeros_like(before), torch.zeros_like(before)
            parts["span"] = spans
        columns = _Columns(vocabulary, beta, (w_matched, w_unmatched), unmatched_top_k, student_hidden)
        totals = torch.zeros(2, dtype=sum_dtype(device), device=device)
        pieces = chunks(len(whole), columns.floats_per_row, student_hidden, chunk)
        columns.allocate(pieces, student_hidden)
        for piece in pieces:
            group = whole[piece]
            rows, teacher_rows = ours.last[group], theirs.last[group]
            student = Projection(head, student_hidden[rows], temperature, gradients.wanted)
            teacher = Projection(teacher_head, teacher_hidden[teacher_rows], temperature)
            found = columns.compare(
                student, teacher, before[group], teacher_before[group], gradients, rows, teacher_rows
            )
            totals += torch.stack([loss.sum(dtype=totals.dtype) for loss in found[:2]])
            pull[group] = found[2]
        del columns
        if gradients.wanted and len(ours.scored):
            scored = ours.scored
            by = pull[ours.group[scored]]
            add_picked_gradient(
                gradients, student_hidden, head, scored, student_ids[scored], normaliser, by, temperature, chunk
            )
        parts |= {"matched": totals[0].to(dtype), "unmatched": totals[1].to(dtype)}
        return w_matched * (totals[0] + spans) + w_unmatched * totals[1], parts

    total, parts = run_fused(student_hidden, head, compute)
    return LossTerms(total, count, parts)


class _Tokens:
    """Which of one side's rows are compared in full, and which are only scored.

    group: (T,) of each token.   last: (G,) row of each group's last token.   scored: (R,) rows of the other tokens;
    with is_single (G,), all rows of all groups that are not single.
    """

    def __init__(self, group: Tensor, last: Tensor, scored: Tensor, count: int) -> None:
        self.group, self.last, self.scored, self.count = group, last, scored, count

    @classmethod
    def of(
        cls, group_of: Any, tokens: int, count: int, is_single: Tensor | None, device: torch.device, whose: str
    ) -> _Tokens:
        group = as_indices(group_of, device)
        if group.shape != (tokens,):
            raise ValueError(f"{tokens} {whose} rows, but group indices {tuple(group.shape)}")
        ends = torch.ones_like(group, dtype=torch.bool)
        ends[:-1] = group[1:] != group[:-1]
        last = ends.nonzero().flatten()
        if len(last) != count or not torch.equal(group[last], torch.arange(count, device=device)):
            raise ValueError(f"the {whose}'s tokens do not lie in groups 0 to {count - 1}, one after the other")
        scored = (~ends if is_single is None else ~is_single[group]).nonzero().flatten()
        return cls(group, last, scored, count)

    def score(
        self, hidden: Tensor, head: OutputHead, ids: Tensor, temperature: float, chunk: int | None, check: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(G,) sum of the scored tokens' log-probabilities, and (R,) their logsumexp."""
        rows = self.scored
        picked, normaliser = picked_logprobs(hidden[rows], head, ids[rows], temperature, chunk, rows if check else None)
        total = picked.new_zeros(self.count).index_add_(0, self.group[rows], picked)
        return total.clamp_min_(LOG_ZERO), normaliser


class _Columns:
    """Comparison of whole rows: buffers, indices and weights that all chunks share."""

    def __init__(
        self, vocabulary: VocabularyMap, beta: float, weights: tuple[float, float], top_k: int | None, hidden: Tensor
    ) -> None:
        device = hidden.device
        self.beta, self.top_k = beta, top_k
        self.w_matched, self.w_unmatched = weights
        self.ids, self.rest = as_indices(vocabulary.student_ids, device), as_indices(vocabulary.student_rest, device)
        self.teacher_ids = as_indices(vocabulary.teacher_ids, device)
        self.teacher_rest = as_indices(vocabulary.teacher_rest, device)
        self.width, self.teacher_width = vocabulary.student_width, vocabulary.teacher_width
        self.is_rest = torch.zeros(self.width, dtype=torch.long, device=device)
        self.is_rest[self.rest] = 1
        self.floats_per_row = self.width + self.teacher_width + len(self.ids)
        self.sorts = len(self.rest) > 0 and len(self.teacher_rest) > 0
        # A scale that does not change the loss's value: what all A have in common.
        self.slope = 1.0 - beta if 0.0 < beta < 1.0 else 1.0

    def allocate(self, pieces: list[slice], hidden: Tensor) -> None:
        """Memory for the largest of the chunks."""
        rows = max((piece.stop - piece.start for piece in pieces), default=0)
        wide = max(self.width, self.teacher_width)
        _, self.work = buffers(0, wide, hidden, pieces)
        self.work.append(buffers(0, wide, hidden, pieces)[1][0])
        self.spaces = [Buffer(size * rows, hidden) for size in (self.width, self.teacher_width, len(self.ids))]

    def compare(
        self,
        student: Projection,
        teacher: Projection,
        before: Tensor,
        teacher_before: Tensor,
        gradients: HeadGradients,
        rows: Tensor,
        teacher_rows: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(rows,) matched and unmatched loss, not weighted, and d loss / d before. The gradients are added."""
        count = student.count
        here, there = self.spaces[0].view(self.width, count), self.spaces[1].view(self.teacher_width, count)
        slopes = self.spaces[2].view(len(self.ids), count)
        scale = before.exp()
        matched, pull = self._matched(student, teacher, before, teacher_before, here, there, slopes, teacher_rows)

        block = self.block(student)
        maxima = self.sorts and self.top_k is not None
        ours = Rest.of(here, self.rest, self.work[0], block, maxima)
        theirs = Rest.of(there, self.teacher_rest, self.work[0], block, maxima)
        rest = scale * ours.mass - torch.expm1(before)
        teacher_rest = theirs.mass - torch.expm1(teacher_before)
        rest_loss, rest_slope = _rest_divergence(_log(rest), _log(teacher_rest), self.beta)
        # dD / d p of a column without a partner, divided by ... times p: c A_r / s_r
        lever = torch.where(rest > 0, scale * rest_slope / rest.clamp_min(torch.finfo(rest.dtype).tiny), 0.0)
        matched = matched + rest_loss
        pull = self.w_matched * (pull + lever * ours.mass)
        ranks: TopK | Exact | None = None
        if self.sorts:
            ranks = exact_l1(ours, scale, theirs) if self.top_k is None else top_k_l1(ours, scale, theirs, self.top_k)
            pull = pull + self.w_unmatched * ranks.pull
        if gradients.wanted:
            self._gradient(student, gradients, rows, here, slopes, pull, self.w_matched * lever, scale, ranks)
        unmatched = torch.zeros_like(matched) if ranks is None else ranks.loss
        return matched, unmatched, pull - self.w_matched * lever

    def block(self, student: Projection) -> int:
        """Entries at a time that fit into the scratch blocks."""
        start, stop = student.blocks[0]
        return stop - start

    def _matched(
        self,
        student: Projection,
        teacher: Projection,
        before: Tensor,
        teacher_before: Tensor,
        here: Tensor,
        there: Tensor,
        slopes: Tensor,
        teacher_rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(rows,) divergence of the matched columns and sum of their A.

        Leaves p in `here`, c q in `there` and A / self.slope in `slopes`.
        """
        between = 0.0 < self.beta < 1.0
        ours = exponentials(student, here, self.work[0], keep_logits=not between)
        theirs = exponentials(teacher, there, self.work[0], keep_logits=not between)
        check_teacher(teacher, theirs, teacher_rows)
        if between:
            for number, _, _, (block,) in each(student, here):
                block.mul_(ours.factors[number])
            for number, _, _, (block,) in each(teacher, there):
                block.mul_(theirs.factors[number] * teacher_before.exp())
            loss, pull = self._mixture(here, there, slopes, before, self.block(student))
        else:
            log_scale = before - ours.logsumexp, teacher_before - theirs.logsumexp
            loss, pull = self._endpoint(here, there, slopes, log_scale, self.block(student))
            for _, _, _, (block,) in each(student, here):
                block.sub_(ours.logsumexp).exp_()
            for _, _, _, (block,) in each(teacher, there):
                block.add_(log_scale[1]).exp_()
        return loss, pull

    def _mixture(self, here: Tensor, there: Tensor, slopes: Tensor, before: Tensor, size: int) -> tuple[Tensor, Tensor]:
        count, tiny = here.shape[1], torch.finfo(here.dtype).tiny
        scale = before.exp() if bool((before != 0).any()) else None
        from_teacher, from_student = torch.zeros_like(before), torch.zeros_like(before)
        for start in range(0, len(self.ids), size):
            stop = min(start + size, len(self.ids))
            p, q, ratio = (buffer.view(stop - start, count) for buffer in self.work)
            torch.index_select(here, 0, self.ids[start:stop], out=p)
            torch.index_select(there, 0, self.teacher_ids[start:stop], out=q)
            if scale is not None:
                p.mul_(scale)
            mixture = torch.lerp(p, q, self.beta, out=slopes[start:stop]).clamp_min_(tiny)
            # The floor is met only where the probability itself is 0, or as good as.
            from_teacher += torch.div(q, mixture, out=ratio).clamp_min_(tiny).log_().mul_(q).sum(0)
            torch.div(p, mixture, out=ratio).clamp_min_(tiny).log_()
            from_student += torch.mul(ratio, p, out=mixture).sum(0)
        return self.beta * from_teacher + self.slope * from_student, self.slope * from_student

    def _endpoint(
        self, here: Tensor, there: Tensor, slopes: Tensor, log_scale: tuple[Tensor, Tensor], size: int
    ) -> tuple[Tensor, Tensor]:
        """From the logits: where one side's probability underflows, its logarithm still counts."""
        count = here.shape[1]
        loss, pull = torch.zeros_like(log_scale[0]), torch.zeros_like(log_scale[0])
        for start in range(0, len(self.ids), size):
            stop = min(start + size, len(self.ids))
            log_p, log_q, work = (buffer.view(stop - start, count) for buffer in self.work)
            torch.index_select(here, 0, self.ids[start:stop], out=log_p).add_(log_scale[0]).clamp_min_(LOG_ZERO)
            torch.index_select(there, 0, self.teacher_ids[start:stop], out=log_q).add_(log_scale[1])
            log_q.clamp_min_(LOG_ZERO)
            slope = slopes[start:stop]
            if self.beta == 0.0:
                torch.exp(log_q, out=slope).neg_()
                loss += torch.mul(log_p.sub_(log_q), slope, out=work).sum(0)
                pull += slope.sum(0)
            else:
                torch.mul(torch.exp(log_p, out=work), log_p.sub_(log_q), out=slope)
                pull += slope.sum(0)
        return (loss, pull) if self.beta == 0.0 else (pull, pull)

    def _gradient(
        self,
        student: Projection,
        gradients: HeadGradients,
        rows: Tensor,
        here: Tensor,
        slopes: Tensor,
        pull: Tensor,
        lever: Tensor,
        scale: Tensor,
        ranks: TopK | Exact | None,
    ) -> None:
        """e_v - p_v Q, block by block. pull: Q.   lever: w_matched c A_r / s_r."""
        count, weight = student.count, self.w_unmatched * scale
        in_rest = lever - pull
        entries = None
        if isinstance(ranks, TopK):
            in_rest = in_rest + weight * ranks.tail
            entries = Entries(ranks.ids, ranks.probs * ranks.more * weight, student)
        table = torch.stack([-pull, in_rest])
        starts = torch.tensor([start for start, _ in student.blocks] + [self.width], device=self.ids.device)
        matched_at = torch.searchsorted(self.ids, starts).tolist()
        rest_at = torch.searchsorted(self.rest, starts).tolist()
        gradient = gradients.chunk(student, rows)
        for number, start, stop, (p,) in each(student, here):
            pairs = slice(matched_at[number], matched_at[number + 1])
            alone = slice(rest_at[number], rest_at[number + 1])
            ranked = None
            if isinstance(ranks, Exact):
                ranked = p.index_select(0, self.rest[alone] - start).mul_(ranks.signs[alone]).mul_(weight)
            factor = self.work[0].view(stop - start, count)
            p.mul_(torch.index_select(table, 0, self.is_rest[start:stop], out=factor))
            p.index_add_(0, self.ids[pairs] - start, slopes[pairs], alpha=self.w_matched * self.slope)
            if ranked is not None:
                p.index_add_(0, self.rest[alone] - start, ranked)
            if entries is not None:
                entries.add_to(p, number)
            gradient.add(start, stop, p)
        gradient.close()


def _spans(student: Tensor, teacher: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Divergence of {these bytes, anything else}, summed over (G,) log-probabilities, and its slope (G,)."""
    with torch.enable_grad():
        student = student.detach().requires_grad_()
        total = span_divergence(student, teacher, beta).sum()
        (slope,) = torch.autograd.grad(total, student)
    return total.detach(), slope


def _rest_divergence(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """`gold.rest_divergence`, and its A."""
    p, q = log_p.exp(), log_q.exp()
    if 0.0 < beta < 1.0:
        mixture = torch.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta))
        slope = (1.0 - beta) * p * (log_p - mixture)
        return beta * q * (log_q - mixture) + slope, slope
    floor = math.log(REST_FLOOR)
    raised, teacher_raised = log_p.clamp_min(floor), log_q.clamp_min(floor)
    gap, below = raised - teacher_raised, log_p < floor
    surplus = (raised.exp() - p) - (teacher_raised.exp() - q)
    if beta == 0.0:
        return surplus - teacher_raised.exp() * gap, torch.where(below, -p, -teacher_raised.exp())
    # The derivative of x log x by log x is x log x + x. Over all outcomes the x add up to 1, so they are left out.
    return raised.exp() * gap - surplus, torch.where(below, torch.zeros_like(p), p * gap)


def _log(mass: Tensor) -> Tensor:
    return mass.log().clamp_min(LOG_ZERO)
