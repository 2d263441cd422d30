"""What every loss returns: a sum and a count, so that one place alone decides how to average."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def sum_dtype(device: torch.device) -> torch.dtype:
    """In what a sum over many rows is kept: float64; on Apple's MPS, which has no float64, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class LossTerms:
    """A loss over some tokens, not yet averaged.

    total: (), the SUM over tokens, with its gradient; in nats (ULD: in probability mass, see `losses.uld`).
    tokens: how many positions were compared: tokens, or across tokenizers groups of tokens with the same bytes.
    parts: sums of the components by name, before their weights, without gradient; for logs and reports.

    Sums over the parts of a batch add up to the sum over the batch. So micro-batches, accumulation and processes
    change nothing, as long as the total is divided once, by the tokens of the whole optimiser step.
    """

    total: Tensor
    tokens: int
    parts: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: LossTerms) -> LossTerms:
        """The terms of both batches together. A part that only one of them has counts 0 in the other."""
        parts = dict(self.parts)
        for name, value in other.parts.items():
            parts[name] = parts[name] + value if name in parts else value
        return LossTerms(self.total + other.total, self.tokens + other.tokens, parts)

    def weighted(self, weight: float) -> LossTerms:
        """The same terms with the total times `weight`; count and parts stay as they are."""
        return LossTerms(self.total * weight, self.tokens, self.parts)

    def mean(self) -> Tensor:
        """The total per token, (): 0, with a gradient of 0, when there is no token."""
        return self.total / max(self.tokens, 1)
