"""How the fused losses go through rows and vocabulary without ever holding all logits.

Rows (positions) are taken in chunks, and the logits of a chunk are laid out VOCABULARY-MAJOR, (V, rows): an entry of
the vocabulary is then one contiguous row, so that entries are gathered, put back and summed at the speed of copying.
Within a chunk everything goes block by block of the vocabulary, small enough to stay in the processor's cache: the
buffers of a chunk, at most two or three (V, rows), are the only large temporaries.

The gradient is known in the forward pass, so it is formed there: each block of the gradient with respect to the logits
is multiplied into the gradients of the hidden states and of the weights at once, the latter in place in ONE buffer.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .losses import LOG_ZERO
from .output_head import OutputHead

CHUNK_BYTES = 96 * 2**20
"""What the buffers of a chunk may take together on a CPU; ten times as much elsewhere."""

MAX_ROWS = 128
"""More rows per chunk gain nothing on a CPU: the matrix products are at full speed."""

BLOCK_ELEMENTS = 2**17
"""Logits in a block of the vocabulary on a CPU: 512 KiB in float32, so that a few blocks fit into its cache."""


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """float64 for float64, else float32: half precision is only a way to store."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def chunks(rows: int, floats_per_row: int, hidden: Tensor, chunk: int | None) -> list[slice]:
    """Equal parts of `rows` positions whose buffers of `floats_per_row` numbers each stay within CHUNK_BYTES.

    chunk: at most so many rows instead. Raises ValueError when it is below 1.
    """
    if chunk is None:
        on_cpu = hidden.device.type == "cpu"
        per_row = floats_per_row * (8 if hidden.dtype == torch.float64 else 4)
        chunk = CHUNK_BYTES * (1 if on_cpu else 10) // per_row
        chunk = min(max(16, chunk // 16 * 16), MAX_ROWS if on_cpu else 16 * MAX_ROWS)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    count = -(-rows // chunk)
    return [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]


def blocks(width: int, rows: int, device: torch.device) -> list[tuple[int, int]]:
    """Bounds of the blocks of the vocabulary for a chunk of so many rows."""
    size = max(256, BLOCK_ELEMENTS // max(rows, 1)) if device.type == "cpu" else 2**15
    return [(start, min(start + size, width)) for start in range(0, width, size)]


def scratch_size(rows: int, width: int, like: Tensor) -> int:
    """Numbers in the largest block of the vocabulary, for chunks of at most so many rows."""
    return min(width * rows, max(256 * rows, BLOCK_ELEMENTS)) if like.device.type == "cpu" else 2**15 * rows


class Buffer:
    """Memory that every chunk uses anew, in the shape it needs."""

    def __init__(self, size: int, like: Tensor) -> None:
        self._flat = torch.empty(size, dtype=compute_dtype(like), device=like.device)

    def view(self, height: int, rows: int) -> Tensor:
        """(height, rows), with whatever was in it."""
        return self._flat[: height * rows].view(height, rows)


def buffers(count: int, width: int, hidden: Tensor, parts: list[slice]) -> tuple[list[Buffer], list[Buffer]]:
    """`count` buffers for all logits of the largest chunk, and two for one block of them."""
    rows = max((part.stop - part.start for part in parts), default=0)
    block = scratch_size(rows, width, hidden)
    return [Buffer(width * rows, hidden) for _ in range(count)], [Buffer(block, hidden) for _ in range(2)]


class Projection:
    """Hidden states of a chunk on their way to logits / temperature, block by block."""

    def __init__(self, head: OutputHead, hidden: Tensor, temperature: float, keep_slope: bool = False) -> None:
        dtype = compute_dtype(hidden)
        self.head, self.width, self.count = head, head.width, len(hidden)
        self.weight = head.weight.detach()
        self.gain = head.scale / (temperature if head.softcap is None else head.softcap)
        self.cap = None if head.softcap is None else head.softcap / temperature
        wide = hidden.detach().to(dtype)
        self.rows = wide * self.gain if self.gain != 1.0 else wide
        # Tensor cores: half precision in, float32 out. Elsewhere half precision is widened block by block.
        self.half = self.rows.bfloat16() if hidden.is_cuda and self.weight.dtype == torch.bfloat16 else None
        self.bias = None if head.bias is None else head.bias.detach().to(dtype) * self.gain
        self.blocks = blocks(head.width, self.count, hidden.device)
        # Derivative of the cap at each logit, where the gradient will need it.
        self.slope = wide.new_empty(head.width, self.count) if keep_slope and self.cap is not None else None

    def logits(self, start: int, stop: int, out: Tensor) -> Tensor:
        """Write the logits / temperature of the vocabulary's entries [start, stop) to `out`, (stop - start, rows)."""
        weight = self.weight[start:stop]
        if self.half is not None:
            out.copy_(torch.mm(weight, self.half.t(), out_dtype=out.dtype))
        else:
            torch.mm(weight.to(out.dtype), self.rows.t(), out=out)
        if self.bias is not None:
            # A bias may exclude an entry with -inf; finite, it needs no care later.
            out.add_(self.bias[start:stop].unsqueeze(1)).clamp_min_(LOG_ZERO)
        if self.cap is not None:
            out.tanh_()
            if self.slope is not None:
                slope = torch.mul(out, out, out=self.slope[start:stop])
                slope.neg_().add_(1.0).mul_(self.cap)
            out.mul_(self.cap)
        return out

    def picked(self, ids: Tensor) -> Tensor:
        """(rows,) the logit of one entry per row, divided by the temperature."""
        logits = (self.weight[ids].to(self.rows.dtype) * self.rows).sum(1)
        if self.bias is not None:
            logits = (logits + self.bias[ids]).clamp_min(LOG_ZERO)
        return logits if self.cap is None else self.cap * torch.tanh(logits)


@dataclass
class Normaliser:
    """What turns a chunk's stored numbers into probabilities.

    logsumexp: (rows,) of the logits.   factors: (blocks, rows): probability = stored exponential * factor of its block.
    """

    logsumexp: Tensor
    factors: Tensor

    @classmethod
    def of(cls, shifts: list[Tensor], sums: list[Tensor]) -> "Normaliser":
        """From each block's shift (rows,), and its sum (rows,) of e^(logit - shift)."""
        shift = torch.stack(shifts)
        total = torch.logsumexp(shift + torch.stack(sums).log(), 0)
        return cls(total, (shift - total).exp())


def exponentials(projection: Projection, out: Tensor | None, work: Buffer, *, keep_logits: bool = False) -> Normaliser:
    """Project a chunk; leave in `out` (V, rows) e^(logit - largest of its block), or the logits themselves.

    One exp per logit: shifted by the maximum of the block, which is known when the block is, and put right by one
    factor per block when the maximum over all blocks is. out None: only the normaliser is wanted.
    """
    shifts, sums = [], []
    for start, stop in projection.blocks:
        scratch = work.view(stop - start, projection.count)
        block = projection.logits(start, stop, scratch if out is None else out[start:stop])
        largest = block.amax(0)
        block = torch.sub(block, largest, out=scratch if keep_logits else block).exp_()
        shifts.append(largest)
        sums.append(block.sum(0))
    return Normaliser.of(shifts, sums)


class HeadGradients:
    """Gradients of the hidden states and of the output layer, filled chunk by chunk. None where none is wanted."""

    def __init__(self, hidden: Tensor, head: OutputHead, enabled: bool) -> None:
        dtype = compute_dtype(hidden)
        make: dict[str, Any] = {"dtype": dtype, "device": hidden.device}
        bias = head.bias
        self.hidden = torch.zeros_like(hidden) if enabled and hidden.requires_grad else None
        self.weight = torch.empty(head.weight.shape, **make) if enabled and head.weight.requires_grad else None
        self.bias = torch.zeros(bias.shape, **make) if enabled and bias is not None and bias.requires_grad else None
        self.started = False

    @property
    def wanted(self) -> bool:
        return not (self.hidden is None and self.weight is None and self.bias is None)

    def chunk(self, projection: Projection, rows: Any, factor: float = 1.0) -> "ChunkGradient":
        """Begin a chunk. rows: indices (slice or tensor) of its positions. factor: on everything that is added."""
        return ChunkGradient(self, projection, rows, factor)

    def finished(self) -> "HeadGradients":
        if self.weight is not None and not self.started:
            self.weight.zero_()
        return self


class ChunkGradient:
    """One chunk of it: give every block of the vocabulary once, in order, then close."""

    def __init__(self, gradients: HeadGradients, projection: Projection, rows: Any, factor: float) -> None:
        self._all, self._projection, self._rows, self._factor = gradients, projection, rows, factor
        self._inputs = projection.rows * factor if factor != 1.0 else projection.rows
        self._half = None if projection.half is None else self._inputs.bfloat16()
        self._hidden = None
        if gradients.hidden is not None:
            self._hidden = torch.zeros_like(projection.rows)

    def add(self, start: int, stop: int, gradient: Tensor) -> None:
        """gradient: (stop - start, rows), of the loss with respect to logits / temperature. May be overwritten."""
        projection, into = self._projection, self._all
        if projection.slope is not None:
            gradient.mul_(projection.slope[start:stop])
        weight = projection.weight[start:stop]
        if projection.half is not None:
            small = gradient.bfloat16()
            if self._hidden is not None:
                self._hidden.add_(torch.mm(small.t(), weight, out_dtype=self._hidden.dtype))
            if into.weight is not None:
                product = torch.mm(small, self._half, out_dtype=into.weight.dtype)  # pyright: ignore[reportCallIssue, reportArgumentType]
                into.weight[start:stop].add_(product) if into.started else into.weight[start:stop].copy_(product)
        else:
            if self._hidden is not None:
                self._hidden.addmm_(gradient.t(), weight.to(gradient.dtype))
            if into.weight is not None:
                if into.started:
                    into.weight[start:stop].addmm_(gradient, self._inputs)
                else:
                    torch.mm(gradient, self._inputs, out=into.weight[start:stop])
        if into.bias is not None:
            into.bias[start:stop].add_(gradient.sum(1), alpha=projection.gain * self._factor)

    def close(self, ids: Tensor | None = None, amounts: Tensor | None = None) -> None:
        """End the chunk. ids, amounts: (rows,) further gradient at one entry of each row's logits / temperature."""
        projection, into = self._projection, self._all
        into.started = True
        if ids is not None and amounts is not None:
            if projection.cap is not None:
                amounts = amounts * projection.cap * (1.0 - (projection.picked(ids) / projection.cap) ** 2)
            if self._hidden is not None:
                self._hidden.addcmul_(projection.weight[ids].to(self._hidden.dtype), amounts.unsqueeze(1))
            if into.weight is not None:
                into.weight.index_add_(0, ids, self._inputs * amounts.unsqueeze(1))
            if into.bias is not None:
                into.bias.index_add_(0, ids, amounts, alpha=projection.gain * self._factor)
        if into.hidden is not None and self._hidden is not None:
            into.hidden[self._rows] = self._hidden.mul_(projection.gain * self._factor).to(into.hidden.dtype)


Computed = tuple[Tensor, dict[str, Tensor]]


def run_fused(
    hidden: Tensor, head: OutputHead, compute: Callable[[HeadGradients], Computed]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total () that `compute` returns, with the gradients that it filled in, and its parts.

    compute runs at once, without autograd and outside of autocast. backward() only scales what it left; a second
    backward() through the same total raises RuntimeError.
    """
    gradients = HeadGradients(hidden, head, torch.is_grad_enabled())
    parts: dict[str, Tensor] = {}

    def forward() -> Tensor:
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            total, found = compute(gradients)
        parts.update(found)
        gradients.finished()
        return total.to(compute_dtype(hidden))

    total: Any = _Fused.apply(hidden, head.weight, head.bias, forward, gradients)
    return total, parts


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, compute: Any, gradients: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.gradients, ctx.weight_dtype = gradients, weight.dtype
        return compute()

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients: HeadGradients | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("the gradients of a fused loss are used up by its first backward()")
        ctx.gradients = None
        found = (gradients.hidden, gradients.weight, gradients.bias)
        # In place: the buffers belong to nobody else, and (V, D) is not needed twice.
        for gradient in found:
            if gradient is not None:
                gradient.mul_(grad_total)
        hidden, weight, bias = found
        weight = None if weight is None else weight.to(ctx.weight_dtype)
        return hidden, weight, None if bias is None else bias.to(ctx.weight_dtype), None, None


def check_rows(hidden: Tensor, head: OutputHead, whose: str, temperature: float = 1.0) -> None:
    """Raise ValueError unless hidden is (N, D) for the head's (V, D) and the temperature is positive."""
    if hidden.dim() != 2 or head.weight.dim() != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"{whose} hidden states {tuple(hidden.shape)} do not fit its output weights {tuple(head.weight.shape)}: "
            "they must be (N, D) and (V, D)"
        )
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be above 0")


def check_ids(ids: Tensor, rows: int, width: int, whose: str) -> None:
    """Raise ValueError unless ids is (rows,) within [0, width)."""
    if ids.shape != (rows,):
        raise ValueError(f"{whose} ids {tuple(ids.shape)} do not fit {rows} rows of hidden states")
    wrong = (ids < 0) | (ids >= width)
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"{whose} token {row} has id {int(ids[row])}, outside the logits' {width} columns")


def check_teacher(projection: Projection, normaliser: Normaliser, rows: Any) -> None:
    """Raise ValueError, naming row and position, when a logit of the teacher is NaN or inf.

    rows: indices of the chunk's positions among all that were given.
    """
    bad = ~torch.isfinite(normaliser.logsumexp)
    if not bad.any():
        return
    column = int(bad.nonzero()[0, 0])
    row = range(10**18)[rows][column] if isinstance(rows, slice) else int(rows[column])
    every = torch.empty(projection.width, projection.count, dtype=projection.rows.dtype, device=projection.rows.device)
    logits = projection.logits(0, projection.width, every)[:, column]
    wrong = (~torch.isfinite(logits)).nonzero()
    position, value = (int(wrong[0, 0]), float(logits[wrong[0, 0]])) if len(wrong) else (0, math.nan)
    raise ValueError(
        f"teacher logits: {value} in row {row}, position {position} of {projection.width} "
        f"({int(bad.sum())} rows of this chunk are not finite). The model overflowed: try bfloat16 or float32, "
        "and check its weights"
    )


class Entries:
    """Single entries of a chunk's (V, rows) gradient, sorted by block, to be added when the block is at hand."""

    def __init__(self, ids: Tensor, amounts: Tensor, projection: Projection) -> None:
        """ids, amounts: (k, rows)."""
        self._blocks, count = projection.blocks, projection.count
        flat = (ids * count + torch.arange(count, device=ids.device)).flatten()
        self._places, order = flat.sort()
        self._amounts = amounts.flatten()[order]
        starts = [start * count for start, _ in self._blocks] + [projection.width * count]
        self._bounds = torch.searchsorted(self._places, torch.tensor(starts, device=flat.device)).tolist()
        self._count = count

    def add_to(self, block: Tensor, number: int) -> None:
        """Add those of block `number`, in place."""
        here = slice(self._bounds[number], self._bounds[number + 1])
        places = self._places[here] - self._blocks[number][0] * self._count
        block.view(-1).index_add_(0, places, self._amounts[here])


def check_beta(beta: float) -> None:
    """Raise ValueError unless beta lies in [0, 1]."""
    if not 0.0 <= beta <= 1.0:
        raise ValueError(
            f"beta is {beta}; it must lie in [0, 1] (0: KL(teacher || student), 1: KL(student || teacher))"
        )


def each(projection: Projection, *buffers: Tensor) -> Iterator[tuple[int, int, int, list[Tensor]]]:
    """(number, start, stop, the rows [start, stop) of each buffer) of every block of the vocabulary."""
    for number, (start, stop) in enumerate(projection.blocks):
        yield number, start, stop, [buffer[start:stop] for buffer in buffers]
