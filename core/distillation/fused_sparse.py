"""A teacher with another tokenizer that tells only its most probable tokens, in chunks.

The reference is `gold.gold_sparse`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .fused import fused_top_k_tail
from .fused_chunks import check_beta, check_ids, check_rows
from .fused_picked import fused_logprobs
from .gold import as_indices, check_sparse, span_divergence, student_columns
from .output_head import OutputHead
from .terms import LossTerms

if TYPE_CHECKING:
    from .alignment import Groups
    from .vocabulary import VocabularyMap


def fused_sparse(
    student_hidden: Tensor,
    head: OutputHead,
    student_ids: Tensor,
    teacher_picked: Tensor,
    teacher_top_ids: Tensor,
    teacher_top_logprobs: Tensor,
    groups: Groups,
    vocabulary: VocabularyMap,
    beta: float,
    chunk: int | None = None,
) -> LossTerms:
    """Sum over groups of the divergence: by columns where a group is one token on each side, else as a whole, in nats.

    student_hidden: (S, D), student_ids: (S,): the rows of one completion, or of several behind one another with their
    groups numbered on. The teacher's, tokens and parts as in `gold.gold_sparse`.

    Raises ValueError for what does not fit, and for NaN or inf in the teacher's log-probabilities.
    """
    check_rows(student_hidden, head, "student")
    check_ids(student_ids, len(student_hidden), head.width, "student")
    check_beta(beta)
    check_sparse(len(student_hidden), teacher_picked, teacher_top_ids, teacher_top_logprobs, groups)
    if vocabulary.student_width != head.width:
        raise ValueError(f"the vocabulary map is for {vocabulary.student_width} student columns, not {head.width}")
    device = student_hidden.device
    single = as_indices(groups.is_single, device)
    group, teacher_group = as_indices(groups.student, device), as_indices(groups.teacher, device)
    here, there = single[group], single[teacher_group]
    matched = fused_top_k_tail(
        student_hidden[here],
        head,
        student_columns(teacher_top_ids[there], vocabulary),
        teacher_top_logprobs[there],
        beta,
        chunk,
    )
    picked = fused_logprobs(student_hidden[~here], head, student_ids[~here], chunk=chunk)
    spans = picked.new_zeros(groups.count).index_add(0, group[~here], picked)
    teacher_spans = picked.new_zeros(groups.count).index_add(
        0, teacher_group[~there], teacher_picked[~there].to(picked.dtype)
    )
    span = span_divergence(spans[~single], teacher_spans[~single], beta).sum()
    parts = {"matched": matched.total.detach(), "span": span.detach()}
    return LossTerms(matched.total + span, groups.count, parts)
