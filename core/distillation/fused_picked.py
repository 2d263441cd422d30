"""Log-probabilities of given tokens, from hidden states, without any buffer of logits."""

from typing import Any

import torch
from torch import Tensor

from .fused_chunks import (
    Buffer,
    HeadGradients,
    Projection,
    check_ids,
    check_rows,
    check_teacher,
    chunks,
    compute_dtype,
    exponentials,
    scratch_size,
)
from .losses import LOG_ZERO
from .output_head import OutputHead

PER_ROW = 2**16
"""Floats per row that decide the chunks here, where no buffer does."""


def fused_logprobs(
    hidden: Tensor, head: OutputHead, ids: Tensor, temperature: float = 1.0, chunk: int | None = None
) -> Tensor:
    """(N,) log-probability of each row's own token, with its gradient; no logits are kept for it.

    For what needs nothing else of the student, such as `losses.sampled_reverse_kl`. hidden: (N, D), ids: (N,).
    The gradient, coefficient (1[token] - p), is formed in backward(), which projects once more.
    """
    check_rows(hidden, head, "student", temperature)
    check_ids(ids, len(hidden), head.width, "student")
    result: Any = _Picked.apply(hidden, head.weight, head.bias, head, ids, temperature, chunk)
    return result


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Any, weight: Any, bias: Any, head: Any, ids: Any, temperature: Any, chunk: Any
    ) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.autocast(hidden.device.type, enabled=False):
            picked, normaliser = picked_logprobs(hidden, head, ids, temperature, chunk)
        ctx.save_for_backward(hidden, normaliser)
        ctx.rest = head, ids, temperature, chunk
        return picked

    @staticmethod
    def backward(ctx: Any, coefficients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, normaliser = ctx.saved_tensors
        head, ids, temperature, chunk = ctx.rest
        gradients = HeadGradients(hidden, head, True)
        everything = torch.arange(len(hidden), device=hidden.device)
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            add_picked_gradient(gradients, hidden, head, everything, ids, normaliser, coefficients, temperature, chunk)
        gradients.finished()
        weight = None if gradients.weight is None else gradients.weight.to(head.weight.dtype)
        bias = None if gradients.bias is None else gradients.bias.to(head.bias.dtype)
        return gradients.hidden, weight, bias, None, None, None, None


def picked_logprobs(
    hidden: Tensor, head: OutputHead, ids: Tensor, temperature: float, chunk: int | None, check: Any = None
) -> tuple[Tensor, Tensor]:
    """(N,) log-probability of each row's token, not below LOG_ZERO, and (N,) its logsumexp; no gradient, no buffer.

    check: positions of the rows among all that the caller was given, when they are a teacher's (`check_teacher`).
    """
    picked, normalisers = [], []
    for rows in chunks(len(hidden), PER_ROW, hidden, chunk):
        projection = Projection(head, hidden[rows], temperature)
        normaliser = exponentials(projection, None, _scratch(projection))
        if check is not None:
            check_teacher(projection, normaliser, check[rows])
        picked.append((projection.picked(ids[rows]) - normaliser.logsumexp).clamp_min(LOG_ZERO))
        normalisers.append(normaliser.logsumexp)
    none = torch.zeros(0, dtype=compute_dtype(hidden), device=hidden.device)
    return torch.cat([none, *picked]), torch.cat([none, *normalisers])


def add_picked_gradient(
    gradients: HeadGradients,
    hidden: Tensor,
    head: OutputHead,
    positions: Tensor,
    ids: Tensor,
    normaliser: Tensor,
    coefficients: Tensor,
    temperature: float,
    chunk: int | None,
) -> None:
    """Add the gradient of sum(coefficients * picked_logprobs) at `positions` (R,) of hidden (N, D).

    ids, normaliser, coefficients: (R,), as picked_logprobs took and gave them.
    """
    for part in chunks(len(positions), PER_ROW, hidden, chunk):
        rows, by = positions[part], coefficients[part].to(compute_dtype(hidden))
        projection = Projection(head, hidden[rows], temperature, keep_slope=True)
        scratch = _scratch(projection)
        gradient = gradients.chunk(projection, rows)
        for start, stop in projection.blocks:
            block = projection.logits(start, stop, scratch.view(stop - start, projection.count))
            gradient.add(start, stop, block.sub_(normaliser[part]).exp_().mul_(-by))
        gradient.close(ids[part], by)


def _scratch(projection: Projection) -> Buffer:
    return Buffer(scratch_size(projection.count, projection.width, projection.rows), projection.rows)
