"""Scorers: teachers that say how probable each token of a given text is, and how much of the distribution they tell.

On-policy training needs this of its teacher; writing answers (a `Completer`) is not enough. Row k of everything here
predicts token k of the completion, the first one included: it is read after the prompt and tokens 0 .. k-1.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import MissingDependency, RequestRejected, TeacherUnavailable, UsageError
from . import backend_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..commands.teacher import TeacherOptions

Ability = Literal["full", "top_k", "sampled"]
"""What a scorer tells of every position: the distribution over the whole vocabulary; the k most probable tokens (so
that the mass of the others is known, too); only the token that is there. Each includes those after it."""

CHUNK_VALUES = 2**23
"""Logits that are held at a time where hidden states are projected: 32 MiB in float32."""


@dataclass(frozen=True)
class ScoreRequest:
    """Token ids of the scorer's own tokenizer. The prompt holds one token at least (BOS, where there is nothing else):
    the first token of the completion is predicted from it."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]


@dataclass(frozen=True)
class TeacherHead:
    """How a model turns a hidden state h (D,) into logits (V,):  z = scale (W h + b),  then  softcap tanh(z / softcap).

    weight: (V, D), the model's own tensor, not a copy.   bias: (V,).   scale: Cohere's logit_scale, the inverse of
    Granite's logits_scaling.   softcap: Gemma's final_logit_softcapping.
    """

    weight: "Tensor"
    bias: "Tensor | None" = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: "Tensor") -> "Tensor":
        """hidden: (N, D). Returns (N, V) in float32."""
        logits = hidden.to(self.weight.dtype) @ self.weight.T
        if self.bias is not None:
            logits = logits + self.bias
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


@dataclass(frozen=True)
class TeacherScores:
    """What a teacher says of one completion of T tokens. Log-probabilities are in nats, float32, at temperature 1.

    picked_logprobs: (T,), of the completion's own tokens.
    top_ids, top_logprobs: (T, k), most probable first; only with "top_k".
    hidden: (T, D) in the model's own number format, normed, as its output head reads it; only with "full". The
        distribution is log_softmax(head.logits(hidden)); whoever needs it projects it in pieces.
    """

    ability: Ability
    picked_logprobs: "Tensor"
    top_ids: "Tensor | None" = None
    top_logprobs: "Tensor | None" = None
    hidden: "Tensor | None" = None
    head: TeacherHead | None = None

    @property
    def tokens(self) -> int:
        """T."""
        return self.picked_logprobs.shape[0]

    def top(self, k: int) -> "tuple[Tensor, Tensor]":
        """(ids, log-probabilities) of the k most probable tokens, (T, k) each. ValueError for more than there are."""
        if self.top_ids is not None and self.top_logprobs is not None:
            if k > self.top_ids.shape[1]:
                raise ValueError(f"the {k} most probable tokens of scores that hold {self.top_ids.shape[1]}")
            return self.top_ids[:, :k], self.top_logprobs[:, :k]
        if self.hidden is None or self.head is None:
            raise ValueError(f'scores with the ability "{self.ability}" know no token but the picked one')
        import torch

        found = [logprobs.topk(k) for logprobs in logprob_chunks(self.hidden, self.head)]
        if not found:
            return torch.empty(0, k, dtype=torch.int64), torch.empty(0, k)
        return torch.cat([top.indices for top in found]), torch.cat([top.values for top in found])


@dataclass(frozen=True)
class FullScores(TeacherScores):
    """Scores with the ability "full". `picked_logprobs` is computed when it is first asked for: a loss that projects
    `hidden` itself should not pay for that twice."""

    picked_logprobs: "Tensor" = field(init=False, repr=False, compare=False)
    completion_ids: Sequence[int] = ()
    name: Callable[[int], str] = str
    """Describes a position, for errors."""

    @property
    def tokens(self) -> int:
        return len(self.completion_ids)


def logprob_chunks(hidden: "Tensor", head: TeacherHead) -> "Iterator[Tensor]":
    """The log-probabilities of consecutive rows of `hidden` (T, D), as (n, V) in float32, CHUNK_VALUES at a time."""
    rows = max(1, CHUNK_VALUES // head.weight.shape[0])
    for start in range(0, hidden.shape[0], rows):
        yield head.logits(hidden[start : start + rows]).log_softmax(-1)
