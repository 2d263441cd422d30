"""The losses that train, between models of one vocabulary: chunked, exact, the gradient formed in the forward pass.

They take the hidden states of the counted rows only (row k predicts token k), and an `OutputHead` for each model. The
reference for every one of them is the function of the same name in `losses`; `fused_chunks` says how they work.

With p = softmax(z), z = logits / temperature, q the teacher's, m = (1 - beta) p + beta q, the gradients are

    cross-entropy          p - 1[token]
    beta = 0, KL(q || p)   p - q
    beta = 1, KL(p || q)   p (log p/q - K),            K = KL(p || q) of the row
    0 < beta < 1           (1 - beta) p (log p/m - K), K = KL(p || m) of the row

each times d z / d logits. float64 in, float64 throughout; otherwise float32, also for half-precision inputs.
"""

import math

import torch
from torch import Tensor

from .fused_chunks import (
    Buffer,
    Computed,
    Entries,
    HeadGradients,
    Normaliser,
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
from .losses import LOG_ZERO, divergence, tail_logprobs
from .output_head import OutputHead
from .terms import LossTerms, sum_dtype


def fused_cross_entropy(hidden: Tensor, head: OutputHead, ids: Tensor, chunk: int | None = None) -> LossTerms:
    """Sum of -log p(token) over rows, in nats. hidden: (N, D), ids: (N,).

    chunk: rows at a time; by default what fits into `fused_chunks.CHUNK_BYTES`. Raises ValueError for shapes and ids
    that do not fit.
    """
    check_rows(hidden, head, "student")
    check_ids(ids, len(hidden), head.width, "student")

    def compute(gradients: HeadGradients) -> Computed:
        parts = chunks(len(hidden), head.width, hidden, chunk)
        space, work = buffers(1, head.width, hidden, parts)
        total = torch.zeros((), dtype=sum_dtype(hidden.device), device=hidden.device)
        for rows in parts:
            projection = Projection(head, hidden[rows], 1.0, gradients.wanted)
            exps = space[0].view(head.width, projection.count)
            normaliser = exponentials(projection, exps, work[0])
            total += (normaliser.logsumexp - projection.picked(ids[rows])).sum()
            if gradients.wanted:
                gradient = gradients.chunk(projection, rows)
                for number, start, stop, (block,) in each(projection, exps):
                    gradient.add(start, stop, block.mul_(normaliser.factors[number]))
                gradient.close(ids[rows], block.new_full((projection.count,), -1.0))
        return total, {}

    total, _ = run_fused(hidden, head, compute)
    return LossTerms(total, len(hidden), {"cross_entropy": total.detach()})


def fused_jsd(
    student_hidden: Tensor,
    head: OutputHead,
    teacher_hidden: Tensor,
    teacher_head: OutputHead,
    beta: float,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> LossTerms:
    """Sum over rows of the generalised Jensen-Shannon divergence of two models of one vocabulary, in nats.

    `losses.divergence` says what beta means. student_hidden: (N, D), teacher_hidden: (N, D_teacher).
    Raises ValueError for shapes that do not fit, beta outside [0, 1], NaN or inf in the teacher's logits.
    """
    check_rows(student_hidden, head, "student", temperature)
    check_rows(teacher_hidden, teacher_head, "teacher")
    if len(student_hidden) != len(teacher_hidden):
        raise ValueError(f"{len(student_hidden)} rows of the student, but {len(teacher_hidden)} of the teacher")
    if head.width != teacher_head.width:
        raise ValueError(
            f"the student has {head.width} logits and the teacher {teacher_head.width}: for one tokenizer with "
            "differently padded vocabularies take OutputHead.narrowed() of the wider one, else fused_hybrid"
        )
    check_beta(beta)
    width = head.width

    def compute(gradients: HeadGradients) -> Computed:
        parts = chunks(len(student_hidden), 2 * width, student_hidden, chunk)
        space, work = buffers(2, width, student_hidden, parts)
        total = torch.zeros((), dtype=sum_dtype(student_hidden.device), device=student_hidden.device)
        for rows in parts:
            student = Projection(head, student_hidden[rows], temperature, gradients.wanted)
            teacher = Projection(
                teacher_head, teacher_hidden[rows].to(compute_dtype(student_hidden)), temperature
            )  # rows are few: the teacher's follow the student's precision
            here, there = (buffer.view(width, student.count) for buffer in space)
            step = _endpoint if beta in (0.0, 1.0) else _mixture
            total += step(student, teacher, here, there, work, gradients, rows, beta)
        return total, {}

    total, _ = run_fused(student_hidden, head, compute)
    return LossTerms(total, len(student_hidden), {"jsd": total.detach()})


def fused_top_k_tail(
    student_hidden: Tensor,
    head: OutputHead,
    teacher_top_ids: Tensor,
    teacher_top_logprobs: Tensor,
    beta: float,
    chunk: int | None = None,
) -> LossTerms:
    """Sum of the divergence over the teacher's top k tokens and one bucket for everything else, in nats.

    student_hidden: (N, D).   teacher_top_ids, teacher_top_logprobs: (N, k); a negative id is padding.
    Raises ValueError for shapes that do not fit, ids outside the vocabulary or twice in a row, NaN or inf, and
    probabilities that sum to more than 1.
    """
    check_rows(student_hidden, head, "student")
    check_beta(beta)
    shape = teacher_top_ids.shape
    if len(shape) != 2 or shape != teacher_top_logprobs.shape or shape[0] != len(student_hidden):
        raise ValueError(
            f"teacher top ids {tuple(shape)} and log-probabilities {tuple(teacher_top_logprobs.shape)} must be "
            f"({len(student_hidden)}, k)"
        )
    given = teacher_top_ids >= 0
    top_ids = teacher_top_ids.long().clamp_min(0)
    top = teacher_top_logprobs.detach().to(compute_dtype(student_hidden))
    _check_top_k(teacher_top_ids, top, given, head.width)
    top = top.masked_fill(~given, LOG_ZERO).clamp_min(LOG_ZERO)
    teacher_tail = tail_logprobs(top, given.sum(-1) == head.width)

    def compute(gradients: HeadGradients) -> Computed:
        parts = chunks(len(student_hidden), head.width, student_hidden, chunk)
        space, work = buffers(1, head.width, student_hidden, parts)
        total = torch.zeros((), dtype=sum_dtype(student_hidden.device), device=student_hidden.device)
        for rows in parts:
            projection = Projection(head, student_hidden[rows], 1.0, gradients.wanted)
            probs = space[0].view(head.width, projection.count)
            normaliser = exponentials(projection, probs, work[0], keep_logits=True)
            ids, used = top_ids[rows].t(), given[rows].t()  # (k, rows), as the buffer
            picked = (probs.gather(0, ids) - normaliser.logsumexp).masked_fill(~used, LOG_ZERO).clamp_min(LOG_ZERO)
            # The tail is added up from its own columns: 1 - sum would lose all digits of a small tail. So the picked
            # ones are taken out: -inf wins over the unchanged value that padding writes to the same place.
            marks = torch.where(used, torch.full_like(picked, -math.inf), probs.gather(0, ids))
            probs.scatter_reduce_(0, ids, marks, "amin")
            tail = torch.zeros_like(normaliser.logsumexp)
            for _, _, _, (block,) in each(projection, probs):
                tail += block.sub_(normaliser.logsumexp).exp_().sum(0)
            with torch.enable_grad():
                outcomes = torch.cat([picked, tail.log().clamp_min(LOG_ZERO).unsqueeze(0)]).t().requires_grad_()
                loss = divergence(outcomes, torch.cat([top[rows], teacher_tail[rows].unsqueeze(1)], 1), beta).sum()
                (slope,) = torch.autograd.grad(loss, outcomes)  # (rows, k + 1): d loss / d log-probability
            total += loss.detach()
            if not gradients.wanted:
                continue
            slope = slope.masked_fill(outcomes.detach() <= LOG_ZERO, 0.0).t()
            mean = slope.sum(0)
            # For the tail's own entries d/dz = p (slope / tail - mean); for the picked ones slope - p mean.
            in_tail = torch.where(tail > 0, slope[-1] / tail.clamp_min(torch.finfo(tail.dtype).tiny), 0.0) - mean
            single = Entries(ids, (slope[:-1] - picked.exp() * mean) * used, projection)
            gradient = gradients.chunk(projection, rows)
            for number, start, stop, (block,) in each(projection, probs):
                block.mul_(in_tail)
                single.add_to(block, number)
                gradient.add(start, stop, block)
            gradient.close()
        return total, {}

    total, _ = run_fused(student_hidden, head, compute)
    return LossTerms(total, len(student_hidden), {"top_k": total.detach()})


def _mixture(
    student: Projection,
    teacher: Projection,
    here: Tensor,
    there: Tensor,
    work: list[Buffer],
    gradients: HeadGradients,
    rows: slice,
    beta: float,
) -> Tensor:
    """0 < beta < 1. Ratios to the mixture are bounded by 1 / beta and 1 / (1 - beta), so probabilities will do."""
    ours = exponentials(student, here, work[0])
    theirs = exponentials(teacher, there, work[0])
    check_teacher(teacher, theirs, rows)
    tiny = torch.finfo(here.dtype).tiny
    from_teacher, from_student = torch.zeros_like(ours.logsumexp), torch.zeros_like(ours.logsumexp)
    for number, start, stop, (p, q) in each(student, here, there):
        mixture, ratio = (buffer.view(stop - start, student.count) for buffer in work)
        p.mul_(ours.factors[number])
        q.mul_(theirs.factors[number])
        torch.lerp(p, q, beta, out=mixture).clamp_min_(tiny)
        # The floor is met only where the probability itself is 0, or as good as.
        from_teacher += torch.div(q, mixture, out=ratio).clamp_min_(tiny).log_().mul_(q).sum(0)
        torch.div(p, mixture, out=ratio).clamp_min_(tiny).log_()
        from_student += torch.mul(ratio, p, out=q).sum(0)  # q now holds p log p/m
    if gradients.wanted:
        gradient = gradients.chunk(student, rows, 1.0 - beta)
        for _, start, stop, (p, weighted) in each(student, here, there):
            gradient.add(start, stop, torch.addcmul(weighted, p, from_student, value=-1.0, out=p))
        gradient.close()
    return (beta * from_teacher + (1.0 - beta) * from_student).sum(dtype=sum_dtype(here.device))


def _endpoint(
    student: Projection,
    teacher: Projection,
    here: Tensor,
    there: Tensor,
    work: list[Buffer],
    gradients: HeadGradients,
    rows: slice,
    beta: float,
) -> Tensor:
    """beta 0 or 1, from the differences of the logits, taken while these are there: nothing can underflow.

    KL(q || p) = sum q (z_q - z_p) - lse_q + lse_p.
    """
    shifts, sums, crossed = ([], []), ([], []), []
    for start, stop in student.blocks:
        sides = student.logits(start, stop, here[start:stop]), teacher.logits(start, stop, there[start:stop])
        gap = torch.sub(*sides, out=work[0].view(stop - start, student.count))
        for side, block in enumerate(sides):
            shifts[side].append(block.amax(0))
            sums[side].append(block.sub_(shifts[side][-1]).exp_().sum(0))
        if beta == 0.0:
            crossed.append(gap.mul_(sides[1]).sum(0))
        else:
            sides[1].copy_(gap)
    ours, theirs = (Normaliser.of(shifts[side], sums[side]) for side in (0, 1))
    check_teacher(teacher, theirs, rows)
    between = ours.logsumexp - theirs.logsumexp
    if beta == 0.0:
        loss = between - (torch.stack(crossed) * theirs.factors).sum(0)
        for number, _, _, (p, q) in each(student, here, there):
            if gradients.wanted:
                p.mul_(ours.factors[number]).addcmul_(q, theirs.factors[number], value=-1.0)
    else:
        loss = torch.zeros_like(between)
        for number, _, _, (p, gap) in each(student, here, there):
            loss += gap.sub_(between).mul_(p.mul_(ours.factors[number])).sum(0)
    if gradients.wanted:
        gradient = gradients.chunk(student, rows)
        for _, start, stop, (p, weighted) in each(student, here, there):
            gradient.add(start, stop, p if beta == 0.0 else torch.addcmul(weighted, p, loss, value=-1.0, out=p))
        gradient.close()
    return loss.sum(dtype=sum_dtype(here.device))


def _check_top_k(ids: Tensor, logprobs: Tensor, given: Tensor, width: int) -> None:
    bad = given & ~torch.isfinite(logprobs)
    if bad.any():
        row, place = (int(index) for index in bad.nonzero()[0])
        raise ValueError(f"teacher top log-probabilities: {float(logprobs[row, place])} in row {row}, position {place}")
    if (ids >= width).any():
        row = int((ids >= width).nonzero()[0, 0])
        raise ValueError(f"row {row} has top id {int(ids[row].max())}, outside the student's {width} columns")
    ranked = ids.sort(-1).values
    twice = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] >= 0)
    if twice.any():
        row, place = (int(index) for index in twice.nonzero()[0])
        raise ValueError(f"row {row} has top id {int(ranked[row, place])} twice: add the two up first")
    mass = logprobs.exp().masked_fill(~given, 0.0).sum(-1)
    if (mass > 1.001).any():
        row = int((mass > 1.001).nonzero()[0, 0])
        raise ValueError(f"the top probabilities of row {row} sum to {float(mass[row]):.4g}, more than 1")
