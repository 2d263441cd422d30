"""Scorers: teachers that say how probable each token of a given text is, and how much of the distribution they tell.

On-policy training needs this of its teacher; writing answers (a `Completer`) is not enough. Row k of everything here
predicts token k of the completion, the first one included: it is read after the prompt and tokens 0 .. k-1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import MissingDependency, RequestRejected, UsageError
from . import backend_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..commands.teacher import TeacherOptions
    from ..distillation.output_head import OutputHead

Ability = Literal["full", "top_k", "sampled"]
"""What a scorer tells of every position: the distribution over the whole vocabulary; the k most probable tokens (so
that the mass of all others together is known, too); only the token that is there."""


@dataclass(frozen=True)
class ScoreRequest:
    """Token ids of the scorer's own tokenizer. The prompt holds one token at least (BOS, where there is nothing else):
    the first token of the completion is predicted from it."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]

    @property
    def tokens(self) -> int:
        """Of the whole text."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class TeacherScores:
    """What a teacher says of one completion of T tokens. Log-probabilities are in nats, float32, at temperature 1.

    completion_ids: the T tokens.
    picked: (T,), their log-probabilities; None where `hidden` tells them (see `picked_logprobs`).
    top_ids, top_logprobs: (T, k), most probable first; with "top_k" only. Where fewer than k are known the row ends in
        -1 and LOG_ZERO (`distillation.losses`).
    hidden: (T, D), in the model's own number format, with the final norm, as the model's output head reads it; with
        "full" only. The distribution is log_softmax(head.logits(hidden)), which nobody needs to hold as a whole.
    """

    ability: Ability
    completion_ids: Sequence[int]
    picked: "Tensor | None" = None
    top_ids: "Tensor | None" = None
    top_logprobs: "Tensor | None" = None
    hidden: "Tensor | None" = None
    head: "OutputHead | None" = None

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.completion_ids)

    @cached_property
    def picked_logprobs(self) -> "Tensor":
        """(T,) log-probability of each token of the completion.

        From hidden states it is computed when it is first asked for, in chunks: a loss that projects them itself
        should not pay for that twice.
        """
        if self.picked is not None:
            return self.picked
        import torch

        hidden, head = self._full()
        ids = torch.as_tensor(self.completion_ids, dtype=torch.int64, device=head.weight.device)
        picked = hidden.new_empty(self.tokens, dtype=torch.float32, device=head.weight.device)
        start = 0
        for logprobs in head.logprobs(hidden):
            here = slice(start, start + logprobs.shape[0])
            picked[here] = logprobs.gather(1, ids[here, None])[:, 0]
            start = here.stop
        return picked

    def top(self, k: int) -> "tuple[Tensor, Tensor]":
        """(ids, log-probabilities) of the k most probable tokens, (T, k) each. ValueError when fewer are known."""
        if self.top_ids is not None and self.top_logprobs is not None:
            if k > self.top_ids.shape[1]:
                raise ValueError(f"the {k} most probable tokens are wanted, {self.top_ids.shape[1]} are known")
            return self.top_ids[:, :k], self.top_logprobs[:, :k]
        import torch

        hidden, head = self._full()
        ids = torch.empty(self.tokens, k, dtype=torch.int64, device=head.weight.device)
        values = torch.empty(self.tokens, k, device=head.weight.device)
        start = 0
        for logprobs in head.logprobs(hidden):
            here = slice(start, start + logprobs.shape[0])
            values[here], ids[here] = logprobs.topk(k)
            start = here.stop
        return ids, values

    def _full(self) -> "tuple[Tensor, OutputHead]":
        if self.hidden is None or self.head is None:
            raise ValueError(f'scores with the ability "{self.ability}" hold no hidden states')
        return self.hidden, self.head


@dataclass(frozen=True)
class Noise:
    """How much a scorer differs from itself on a known text, in nats. What training can tell apart lies above it.

    tokens: of the completion that was scored.
    again: the largest difference of a picked token's log-probability between two runs of the text alone.
    among_others: the same between a run alone and one beside other texts.
    kl: the larger of the two runs' mean KL from the first one, over the top-k and the rest; None with "sampled".
    """

    tokens: int
    again: float
    among_others: float
    kl: float | None

    def __str__(self) -> str:
        kl = "" if self.kl is None else f", mean KL {self.kl:.2g}"
        return (
            f"scoring {self.tokens} known tokens again changes a log-probability by {self.again:.2g} nats at most, "
            f"beside other texts by {self.among_others:.2g}{kl}"
        )


class Scorer(Protocol):
    """A teacher that scores given tokens: `prepare`, then `score` as often as you like, at last `close`.

    ability: what every score of it tells.
    identity: all that makes its scores different from another's (backend, model, number format, ...).
    tokenizer: a fast tokenizer of transformers with the ids that `score` takes; after `prepare`.
    width: the number of logits V, which may be larger than the tokenizer; after `prepare`.
    context_tokens: most tokens of a prompt and a completion together; None when unknown; after `prepare`.
    """

    backend: str
    model: str
    identity: dict[str, Any]
    ability: Ability

    @property
    def tokenizer(self) -> Any: ...

    @property
    def width(self) -> int: ...

    @property
    def context_tokens(self) -> int | None: ...

    def prepare(self, note: Callable[[str], None]) -> None:
        """Load the model; `note` tells the user. Raises UsageError."""
        ...

    def score(self, batch: Sequence[ScoreRequest]) -> list[TeacherScores]:
        """Scores for each request, whatever the others are, in their order. An empty completion has empty scores.

        Raises RequestRejected, which names the row (the index in `batch`), for a text longer than the context, an
        empty prompt, ids that the model does not have, and logits that are not finite (with the position).
        """
        ...

    def self_test(self) -> Noise:
        """Score a known text several times. Raises UsageError when what comes back is no log-probabilities."""
        ...

    def close(self) -> None:
        """Give the model's memory back."""
        ...


def open_scorer(options: "TeacherOptions", *, top_k: int = 64) -> Scorer:
    """The scorer on this machine that the options name (`ApiScorer` is one elsewhere). Raises UsageError for others.

    top_k: how many tokens a scorer tells of each position, where it does not tell the whole distribution.
    """
    backend = backend_of(options.model, options.backend, options.base_url)
    try:
        if backend == "gguf":
            from .gguf_scorer import GgufScorer

            return GgufScorer(
                options.model,
                preferred_quant=options.preferred_quant,
                n_gpu_layers=options.n_gpu_layers,
                n_ctx=options.n_ctx,
                threads=options.threads,
                top_k=top_k,
            )
        if backend == "hf":
            from .hf_scorer import HfScorer

            return HfScorer(
                options.model,
                batch_size=options.batch_size,
                dtype=options.dtype,
                device_map=options.device_map,
                attention=options.attention,
                load_in_4bit=options.load_in_4bit,
                threads=options.threads,
            )
    except ModuleNotFoundError as missing:
        raise MissingDependency(str(missing.name), f"scoring with {backend}", "train") from None
    served = f"the server at {options.base_url}" if options.base_url else backend
    raise UsageError(
        f"{options.model} through {served} is no scorer on this machine. What works here: the backends hf and gguf. "
        "train_gold also learns from servers."
    )


def check_requests(batch: Sequence[ScoreRequest], width: int, context: int | None, longer: str) -> None:
    """Raises RequestRejected for the first request that cannot be scored. longer: what to do about a short context."""
    for row, request in enumerate(batch):
        prompt, completion = len(request.prompt_ids), len(request.completion_ids)
        if prompt == 0:
            raise RequestRejected(
                "no_prompt",
                f"row {row}: an empty prompt, so nothing predicts the first token. Begin with BOS.",
                row=row,
            )
        if context is not None and prompt + completion > context:
            raise RequestRejected(
                "context_length",
                f"row {row}: the text has {prompt + completion} tokens ({prompt} of prompt, {completion} of "
                f"completion), the context {context}. {longer}",
                row=row,
            )
        for ids, what in ((request.prompt_ids, "prompt"), (request.completion_ids, "completion")):
            if len(ids) and (min(ids) < 0 or max(ids) >= width):
                strange = next(token for token in ids if not 0 <= token < width)
                raise RequestRejected(
                    "unknown_token",
                    f"row {row}: token {strange} in the {what}, and the model has 0 to {width - 1}. Use the "
                    "scorer's own tokenizer.",
                    row=row,
                )


def not_finite(row: int, position: int, value: float, way_out: str) -> RequestRejected:
    """position: of the completion's token whose prediction is broken."""
    what = "NaN" if value != value else "infinite"
    return RequestRejected(
        "not_finite",
        f"row {row}: the teacher's logits for token {position} of the completion are {what}. {way_out}",
        row=row,
    )


KNOWN = (
    "The sun is a star at the centre of the solar system.",
    " It is about 150 million kilometres away, so its light needs 8 minutes and 20 seconds to reach us. Plants turn "
    "some of that light into sugar, and animals eat the plants:\n\n```python\nenergy = sum(leaf.sugar for leaf in "
    "plant)\n```\nWithout it the Earth would be a ball of ice. 太陽は星です。",
)
"""The text of the self-test: prose, digits, code and another script."""
OTHERS = (
    ("The sun is a star at", " night."),
    ("def f(x):\n    return", " x + 1\n\n\ndef g(x):\n    return f(f(x))\n" * 4),
)
"""Texts beside it: one that begins alike and is shorter, and one that is longer."""


def measure_noise(
    score: Callable[[Sequence[ScoreRequest]], list[TeacherScores]],
    encode: Callable[[str], list[int]],
    context: int | None,
) -> Noise:
    """The self-test: a known text twice alone, once between others.

    encode: a text's ids, without special tokens.   context: most tokens of a text; what is longer is cut.
    Raises UsageError for scores of another length, or that are no log-probabilities.
    """
    texts = [(encode(prompt), encode(rest)) for prompt, rest in (KNOWN, *OTHERS)]
    known, before, after = (
        ScoreRequest(prompt, rest if context is None else rest[: max(0, context - len(prompt))])
        for prompt, rest in texts
    )
    first, again, beside = score([known])[0], score([known])[0], score([before, known, after])[1]
    for scores in (first, again, beside):
        picked = scores.picked_logprobs
        if tuple(picked.shape) != (len(known.completion_ids),):
            raise UsageError(
                f"the self-test of the teacher failed: {len(known.completion_ids)} tokens went in, "
                f"log-probabilities of shape {tuple(picked.shape)} came out."
            )
        if not (picked.isfinite().all() and picked.max() <= 1e-4):
            raise UsageError(f"the self-test of the teacher failed: these are no log-probabilities: {picked.tolist()}")
    kl = None
    if first.ability != "sampled":
        k = 64 if first.top_ids is None else min(64, first.top_ids.shape[1])
        kl = max(top_k_kl(first, other, k).mean().item() for other in (again, beside))
    again_nats, beside_nats = (
        (first.picked_logprobs - other.picked_logprobs).abs().max().item() for other in (again, beside)
    )
    return Noise(len(known.completion_ids), again_nats, beside_nats, kl)


def top_k_kl(ours: TeacherScores, theirs: TeacherScores, k: int) -> "Tensor":
    """(T,) KL(ours || theirs) in nats over the tokens in the top k of both, and all others as one bucket.

    A coarser view of both distributions, so never more than their KL.
    """
    (ids, p), (other_ids, q) = ours.top(k), theirs.top(k)
    same = ids[:, :, None] == other_ids[:, None, :]  # (T, k, k)
    p, q, same = p.cpu().double(), q.cpu().double(), same.cpu()  # not every device has float64
    shared = same.any(-1)
    q = (same * q.exp()[:, None, :]).sum(-1).log().clamp_min(-1e4)  # padding has no mass
    kept, kept_q = p.exp() * shared, q.exp() * shared
    # Below that, the rest is the rounding of float32.
    rest, rest_q = ((1 - mass.sum(-1)).clamp_min(1e-6) for mass in (kept, kept_q))
    kl = (kept * (p - q).where(shared, 0.0)).sum(-1) + rest * (rest.log() - rest_q.log())
    return kl.clamp_min(0.0)  # rounding goes below
