"""Reference losses between two models that share a vocabulary, or of which one is known only in part.

Row convention, everywhere: logits row k PREDICTS token k; the caller has shifted. So the first token of a completion,
predicted by the last token of its prompt, is trained like any other. Small tensors, autograd, no tricks: what trains
is in `fused`, and is held against this.

The teacher is never trained: no gradient flows to it. Half precision is computed in float32, float64 stays.
A probability of 0 (a logit of -inf, an underflow) has the log LOG_ZERO instead of -inf, so that 0 log 0 = 0 and every
loss and gradient is finite. A column that only one model excludes therefore costs at most -LOG_ZERO nats per unit of
mass that the other model has there; it gives no gradient to its own logit.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from .terms import LossTerms

LOG_ZERO = -1.0e4
"""The log-probability of what cannot happen, in nats: exp() of it is 0 in float32 and float64."""

MAX_LOG_RATIO = 20.0
"""Where exp(difference of two log-probabilities) is cut, in nats: e^20 = 5e8."""

Estimator = Literal["k1", "k3", "policy_gradient"]


def generalized_jsd(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None, beta: float, temperature: float = 1.0
) -> LossTerms:
    """Sum of the generalised Jensen-Shannon divergence over the tokens of `mask`, in nats.

    See `divergence` for the formula and what beta means. Both distributions are softmax(logits / temperature); the
    loss is not multiplied by temperature^2.

    student_logits, teacher_logits: (..., V), the same vocabulary.   mask: (...), True where a token counts; None: all.
    Raises ValueError for shapes that do not fit, beta outside [0, 1], and NaN or inf in the teacher's logits.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {_shape(student_logits)} and teacher logits {_shape(teacher_logits)} differ in shape: "
            "the two models do not share a vocabulary or were not given the same rows"
        )
    mask = selected(mask, student_logits.shape[:-1], student_logits.device)
    check_finite(teacher_logits, "teacher logits", mask)
    student = log_probs(student_logits[mask], temperature)
    teacher = log_probs(teacher_logits[mask].detach(), temperature)
    total = divergence(student, teacher, beta).sum()
    return LossTerms(total, int(mask.sum()), {"jsd": total.detach()})


def sampled_reverse_kl(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor | None,
    estimator: Estimator = "policy_gradient",
    sampling_logprobs: Tensor | None = None,
) -> LossTerms:
    """Sum over tokens of KL(student || teacher), estimated from the tokens that the student sampled, in nats.

    With s and t the log-probabilities of the sampled token and d = t - s (Schulman, "Approximating KL divergence"):

    "k1": -d. Unbiased, of either sign. To watch, not to train on: the mean of its gradient, E[grad s], is 0.
    "k3": e^d - 1 - d. Unbiased and >= 0. Its gradient is, on average, that of KL(teacher || student).
    "policy_gradient": value -d, gradient -d grad s: the advantage t - s is a constant, and the gradient is, on
        average, that of KL(student || teacher) one token ahead. With `sampling_logprobs` o (of the policy that
        sampled, when it is not the present student) value and gradient are those of -(t - o) e^(s - o).

    Exponents are cut at MAX_LOG_RATIO. All tensors (...), mask (...), True where a token counts; None: all.
    Raises ValueError for shapes that do not fit and for NaN or +inf in the teacher's log-probabilities.
    """
    if student_logprobs.shape != teacher_logprobs.shape:
        raise ValueError(
            f"student log-probabilities {_shape(student_logprobs)} and teacher log-probabilities "
            f"{_shape(teacher_logprobs)} differ in shape"
        )
    if estimator not in ("k1", "k3", "policy_gradient"):
        raise ValueError(f'estimator is {estimator!r}; use "k1", "k3" or "policy_gradient"')
    mask = selected(mask, student_logprobs.shape, student_logprobs.device)
    student = _wide(student_logprobs[mask]).clamp_min(LOG_ZERO)
    check_logprobs(teacher_logprobs, "teacher log-probabilities", mask)
    teacher = _wide(teacher_logprobs[mask].detach()).clamp_min(LOG_ZERO)
    if estimator == "k1":
        total = (student - teacher).sum()
    elif estimator == "k3":
        ratio = (teacher - student).clamp_max(MAX_LOG_RATIO)
        total = (torch.expm1(ratio) - ratio).sum()
    else:
        if sampling_logprobs is not None and sampling_logprobs.shape != student_logprobs.shape:
            raise ValueError(
                f"sampling log-probabilities {_shape(sampling_logprobs)} and student log-probabilities "
                f"{_shape(student_logprobs)} differ in shape"
            )
        sampled = student if sampling_logprobs is None else _wide(sampling_logprobs[mask]).clamp_min(LOG_ZERO)
        sampled = sampled.detach()
        weight = (student - sampled).clamp_max(MAX_LOG_RATIO).exp()  # 1, but with the gradient of the student
        total = ((sampled - teacher) * weight).sum()
    k1 = (student.detach() - teacher).sum()
    return LossTerms(total, int(mask.sum()), {"reverse_kl": k1})


def top_k_tail(
    student_logits: Tensor, teacher_top_ids: Tensor, teacher_top_logprobs: Tensor, mask: Tensor | None, beta: float
) -> LossTerms:
    """Sum of the divergence over k + 1 buckets: the teacher's top k tokens, and one for everything else, in nats.

    A lower bound of `generalized_jsd`, because putting tokens together can only hide differences; it rises to the
    full value as k grows to V. There is no temperature: what is left of the teacher cannot be reshaped.

    student_logits: (..., V).   teacher_top_ids, teacher_top_logprobs: (..., k), a negative id is padding.
    mask: (...), True where a token counts; None: all.
    Raises ValueError for shapes that do not fit, ids outside the vocabulary or twice in a row, NaN or inf, and
    log-probabilities whose probabilities sum to more than 1.
    """
    rows = student_logits.shape[:-1]
    if teacher_top_ids.shape != teacher_top_logprobs.shape or teacher_top_ids.shape[:-1] != rows:
        raise ValueError(
            f"teacher top ids {_shape(teacher_top_ids)} and log-probabilities {_shape(teacher_top_logprobs)} must be "
            f"(..., k) for student logits {_shape(student_logits)}"
        )
    mask = selected(mask, rows, student_logits.device)
    width = student_logits.shape[-1]
    ids = teacher_top_ids[mask].long()
    given = ids >= 0
    check_finite(
        teacher_top_logprobs.masked_fill(teacher_top_ids < 0, 0.0), "teacher top log-probabilities", mask, minus=False
    )
    teacher = _wide(teacher_top_logprobs[mask].detach()).masked_fill(~given, LOG_ZERO).clamp_min(LOG_ZERO)
    _check_top_k(ids, teacher, width)
    ids = ids.clamp_min(0)

    student_all = log_probs(student_logits[mask])
    student = student_all.gather(-1, ids).masked_fill(~given, LOG_ZERO)
    # The student's tail is added up from its own columns: 1 - sum would lose all digits of a small tail.
    chosen = torch.zeros_like(student_all, dtype=torch.bool).scatter(-1, ids, given)
    # Padding writes False at column 0; if 0 is also a real id of the row, the order of the writes would decide.
    chosen[..., 0] = ((ids == 0) & given).any(-1)
    student_tail = student_all.masked_fill(chosen, LOG_ZERO).logsumexp(-1)
    teacher_tail = tail_logprobs(teacher, chosen.all(-1))
    total = divergence(
        torch.cat([student, student_tail.unsqueeze(-1)], -1), torch.cat([teacher, teacher_tail.unsqueeze(-1)], -1), beta
    ).sum()
    return LossTerms(total, int(mask.sum()), {"top_k": total.detach()})


def cross_entropy(student_logits: Tensor, ids: Tensor, mask: Tensor | None) -> LossTerms:
    """Sum of -log p(token) over the tokens of a reference answer, in nats.

    student_logits: (..., V).   ids: (...); any value, such as -100, where the mask is False.   mask: (...); None: all.
    Raises ValueError for shapes that do not fit and for a counted id outside the vocabulary.
    """
    if ids.shape != student_logits.shape[:-1]:
        raise ValueError(f"ids {_shape(ids)} do not fit student logits {_shape(student_logits)}")
    mask = selected(mask, ids.shape, student_logits.device)
    total = -token_logprobs(log_probs(student_logits[mask]), ids[mask]).sum()
    return LossTerms(total, int(mask.sum()), {"cross_entropy": total.detach()})


def uld(student_probs: Tensor, teacher_probs: Tensor) -> LossTerms:
    """Sum over rows of the L1 distance of the SORTED probabilities; the narrower side is filled with zeros.

    Universal Logit Distillation (Boizard et al., arXiv:2402.12030, Eq. 3): which token has a probability does not
    matter, so no two vocabularies need a common token. In probability mass, between 0 and 2 per row, not in nats.
    0 does not mean equal: any permutation of the tokens is as good.

    student_probs: (G, V_student), teacher_probs: (G, V_teacher); they need not sum to 1 (`gold.merged`).
    """
    if student_probs.dim() != 2 or teacher_probs.dim() != 2 or len(student_probs) != len(teacher_probs):
        raise ValueError(
            f"student {_shape(student_probs)} and teacher {_shape(teacher_probs)} probabilities must be (G, V), "
            "one row per group on both sides"
        )
    total = sorted_l1(_wide(student_probs), _wide(teacher_probs.detach())).sum()
    return LossTerms(total, len(student_probs), {"uld": total.detach()})


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence of each row, in nats.

    D = beta KL(teacher || m) + (1 - beta) KL(student || m),  m = beta teacher + (1 - beta) student
    (GKD, Agarwal et al., arXiv:2306.13649, Eq. 1). The formula itself goes to 0 at both ends. By convention beta = 0
    means KL(teacher || student) and beta = 1 KL(student || teacher): the limits of D / beta and of D / (1 - beta).
    So the scale jumps there: D of beta = 0.01 is about a hundredth of D of beta = 0.

    student, teacher: (..., V), log-probabilities over the same outcomes, all of them (a row sums to 1).
    Returns (...).
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(
            f"beta is {beta}; it must lie in [0, 1] (0: KL(teacher || student), 1: KL(student || teacher))"
        )
    if beta == 0.0:
        return (teacher.exp() * (teacher - student)).sum(-1)
    if beta == 1.0:
        return (student.exp() * (student - teacher)).sum(-1)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    from_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)
    from_student = (student.exp() * (student - mixture)).sum(-1)
    return beta * from_teacher + (1.0 - beta) * from_student


def sorted_l1(student_probs: Tensor, teacher_probs: Tensor) -> Tensor:
    """(G,): L1 distance of the sorted rows of (G, V_student) and (G, V_teacher), the narrower filled with zeros."""
    width = max(student_probs.shape[-1], teacher_probs.shape[-1])
    ranked = [
        torch.nn.functional.pad(probs.sort(-1, descending=True).values, (0, width - probs.shape[-1]))
        for probs in (student_probs, teacher_probs)
    ]
    return (ranked[0] - ranked[1]).abs().sum(-1)


def log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last dimension, not below LOG_ZERO; at least float32."""
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return torch.log_softmax(_wide(logits) / temperature, -1).clamp_min(LOG_ZERO)


def tail_logprobs(top_logprobs: Tensor, whole: Tensor) -> Tensor:
    """(...) log of what the top k of (..., k) leave to all other tokens: log(1 - sum exp).

    A tail below the rounding of the sum (1e-7 in float32) cannot be told from it, and counts as that: as 0 it would
    cost a student with any tail of its own up to -LOG_ZERO.   whole: (...), True where the top k are all tokens.
    """
    rounding = torch.finfo(top_logprobs.dtype).eps
    return log1mexp(top_logprobs.logsumexp(-1).clamp_max(-rounding)).masked_fill(whole, LOG_ZERO)


def token_logprobs(logprobs: Tensor, ids: Tensor) -> Tensor:
    """The log-probability of each row's own token: (T, V) and (T,) -> (T,)."""
    width = logprobs.shape[-1]
    wrong = (ids < 0) | (ids >= width)
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"token {row} has id {int(ids[row])}, outside the logits' {width} columns")
    return logprobs.gather(-1, ids.long().unsqueeze(-1)).squeeze(-1)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0, exact for x near 0 and far from it (Maechler, "Accurately computing log(1 - exp)").

    At 0 (and above it, by rounding): LOG_ZERO, without gradient.
    """
    inside = x < -torch.finfo(x.dtype).tiny
    safe = torch.where(inside, x, torch.full_like(x, -1.0))
    # Each branch sees only arguments at which its own derivative is finite: 0 times inf would be NaN.
    near = safe.clamp_min(-math.log(2.0))
    far = safe.clamp_max(-math.log(2.0))
    value = torch.where(safe > -math.log(2.0), torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))
    return torch.where(inside, value, torch.full_like(x, LOG_ZERO))


def check_finite(logits: Tensor, what: str, mask: Tensor | None = None, *, minus: bool = True) -> None:
    """Raise ValueError, naming row and position, if `logits` (..., V) hold NaN or inf in a row that counts.

    -inf is an excluded token and is let through, unless a row has nothing else, or `minus` is False.
    mask: (...), True for the rows that count.
    """
    if not logits.numel():
        return
    peak = logits.amax(-1)  # NaN wins against everything; so nothing of the size of the logits is made
    wrong = ~torch.isfinite(peak)
    if not minus:
        wrong = wrong | (logits.amin(-1) == -math.inf)
    if mask is not None:
        wrong = wrong & mask
    if not wrong.any():
        return
    row = tuple(int(index) for index in wrong.nonzero()[0])
    values = logits[row]
    bad = torch.isnan(values) | (values == math.inf)
    if not minus:
        bad = bad | (values == -math.inf)
    place = str(row[0]) if len(row) == 1 else str(row)
    if not bad.any():
        raise ValueError(f"{what}: every position of row {place} is -inf, so that no token can follow")
    position = int(bad.nonzero()[0, 0])
    raise ValueError(
        f"{what}: {float(values[position])} in row {place}, position {position} of {len(values)} "
        f"({int(wrong.sum())} of {wrong.numel()} rows are not finite). Load the model in float32 or bfloat16 "
        "rather than float16, and check its file"
    )


def check_logprobs(logprobs: Tensor, what: str, mask: Tensor | None = None) -> None:
    """`check_finite` for log-probabilities of single tokens, (...): any of them may be -inf."""
    check_finite(logprobs.detach().clamp_min(LOG_ZERO).unsqueeze(-1), what, mask)


def _check_top_k(ids: Tensor, logprobs: Tensor, width: int) -> None:
    if (ids >= width).any():
        row = int((ids >= width).nonzero()[0, 0])
        raise ValueError(f"counted row {row} has top id {int(ids[row].max())}, outside the student's {width} columns")
    ranked = ids.sort(-1).values
    twice = (ranked[..., 1:] == ranked[..., :-1]) & (ranked[..., 1:] >= 0)
    if twice.any():
        row, place = (int(index) for index in twice.nonzero()[0])
        raise ValueError(f"counted row {row} has top id {int(ranked[row, place])} twice: add the two up first")
    mass = logprobs.exp().sum(-1)
    if (mass > 1.001).any():
        row = int((mass > 1.001).nonzero()[0, 0])
        raise ValueError(f"the top probabilities of counted row {row} sum to {float(mass[row]):.4g}, more than 1")


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def selected(mask: Tensor | None, rows: torch.Size, device: torch.device) -> Tensor:
    """(...) bool: `mask`, or all rows where it is None. Raises ValueError when it does not fit."""
    # Rows are selected before anything is computed: whatever stands in a masked row, even NaN, has gradient 0.
    if mask is None:
        return torch.ones(rows, dtype=torch.bool, device=device)
    if mask.shape != rows:
        raise ValueError(f"mask {_shape(mask)} does not fit rows {tuple(rows)}")
    return mask.bool()


def _shape(values: Tensor) -> str:
    return str(tuple(values.shape))
