"""The last layer of a language model: from a hidden state to one logit for every entry of the vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError

CHUNK_VALUES = 2**23
"""Most logits that `OutputHead.logprobs` holds at a time: 32 MiB in float32."""


@dataclass(frozen=True)
class OutputHead:
    """logits = cap(scale (hidden weight^T + bias)), where cap(u) = softcap tanh(u / softcap), or u without a softcap.

    weight: (V, D).   bias: (V,) or None.
    scale: the fixed factor on the logits of some families (Cohere, Granite, Falcon-H1); 1 for the others.
    softcap: the bound of final logit soft-capping (Gemma 2), or None.

    The losses train `weight` and `bias` when they require a gradient, and spend nothing on it when they do not.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def width(self) -> int:
        """V, the number of logits; a model may have more of them than its tokenizer has entries."""
        return self.weight.shape[0]

    @classmethod
    def from_model(cls, model: Any) -> "OutputHead":
        """The head of a transformers causal language model (or of one inside a PEFT wrapper), sharing its weights.

        Raises UsageError when there is none, or when it is not one plain matrix: quantised, or with an adapter of
        its own.
        """
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        name = type(model).__name__
        if layer is None or not isinstance(getattr(layer, "weight", None), Tensor):
            raise UsageError(f"{name} has no output embeddings: distillation needs a causal language model.")
        if hasattr(layer, "base_layer"):
            raise UsageError(
                f"the output layer of {name} has an adapter of its own. Leave lm_head out of the LoRA target modules, "
                "or train it in full."
            )
        weight = layer.weight
        if not weight.is_floating_point() or weight.dim() != 2:
            raise UsageError(
                f"the output layer of {name} is stored as {weight.dtype} {tuple(weight.shape)}. "
                "Keep lm_head out of the quantisation."
            )
        scale = 1.0
        for key, inverse in (("logit_scale", False), ("lm_head_multiplier", False), ("logits_scaling", True)):
            factor = getattr(config, key, None)
            if factor is not None:
                scale *= 1.0 / float(factor) if inverse else float(factor)
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(weight, getattr(layer, "bias", None), scale, None if cap is None else float(cap))

    def narrowed(self, width: int) -> "OutputHead":
        """Only the first `width` logits: for two models of one tokenizer that pad their vocabularies differently."""
        if not 0 < width <= self.width:
            raise ValueError(f"cannot narrow {self.width} logits to {width}")
        if width == self.width:
            return self
        return replace(self, weight=self.weight[:width], bias=None if self.bias is None else self.bias[:width])

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), all at once and with autograd, in at least float32: for small inputs and for tests."""
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        bias = None if self.bias is None else self.bias.to(dtype)
        hidden = hidden.to(self.weight.device, dtype)
        logits = torch.nn.functional.linear(hidden, self.weight.to(dtype), bias) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def logprobs(self, hidden: Tensor) -> Iterator[Tensor]:
        """The log-probabilities of consecutive rows of `hidden` (T, D), as (n, V) each: CHUNK_VALUES at a time.

        Without gradient.
        """
        rows = max(1, CHUNK_VALUES // self.width)
        for start in range(0, hidden.shape[0], rows):
            with torch.no_grad():
                logprobs = self.logits(hidden[start : start + rows]).log_softmax(-1)
            yield logprobs
