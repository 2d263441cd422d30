"""A Hugging Face model as a scorer: hidden states of the completion's positions, and the head that reads them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..distillation.output_head import OutputHead
from ..errors import RequestRejected, UsageError
from . import hf_model
from .hf import located
from .hf_states import NOT_FINITE, completion_states, empty_caches, head_of, out_of_memory
from .scorer import Ability, Noise, ScoreRequest, TeacherScores, check_requests, measure_noise, not_finite

LONGER = "Shorten the prompts or --max-tokens, or take a teacher with a longer context."


class HfScorer:
    """A `Scorer` over transformers. The model never projects more than one position of a text onto its vocabulary."""

    backend = "hf"
    ability: Ability = "full"

    def __init__(
        self,
        model: str,
        *,
        batch_size: int,
        dtype: str,
        device_map: str,
        attention: str,
        load_in_4bit: bool,
        threads: int | None,
    ) -> None:
        """Options as those of `HfTeacher`. Raises MissingDependency or ModelNotFound."""
        self.model = model
        self._located = located(model, attention=attention, load_in_4bit=load_in_4bit)
        self._batch_size, self._threads = batch_size, threads
        self._loading = {
            "dtype": dtype,
            "device_map": device_map,
            "attention": attention,
            "load_in_4bit": load_in_4bit,
        }
        self.identity: dict[str, Any] = {
            "backend": "hf",
            "model": model,
            "dtype": dtype,
            "load_in_4bit": load_in_4bit,
        }
        self.context_tokens: int | None = None
        self._model: Any = None

    def prepare(self, note: Callable[[str], None]) -> None:
        """Load the model, after converting a GGUF file, and find its head. Raises UsageError."""
        import transformers

        note(f"loading {self.model} with transformers")
        transformers.utils.logging.disable_progress_bar()
        if self._threads:
            torch.set_num_threads(self._threads)
        folder = hf_model.hf_folder(self._located, note)
        self.tokenizer = hf_model.load_tokenizer(folder, chat=False)
        self._model = hf_model.load_model(folder, **self._loading).requires_grad_(False)
        self.context_tokens = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.head = head_of(self._model, self.model)
        self.width = self.head.weight.shape[0]
        self._largest = largest_norm(self.head, self.model)

    def score(self, batch: Sequence[ScoreRequest]) -> list[TeacherScores]:
        """Scores with hidden states, for each request. See `Scorer`.

        Requests of similar length go through the model together, at most `batch_size`, and fewer when the memory of
        the device does not hold them.
        """
        check_requests(batch, self.width, self.context_tokens, LONGER)
        waiting = sorted(
            (n for n, request in enumerate(batch) if request.completion_ids), key=lambda n: batch[n].tokens
        )
        hidden = {n: self.head.weight.new_empty(0, self.head.weight.shape[1]) for n in range(len(batch))}
        while waiting:
            rows = waiting[: self._batch_size]
            try:
                with torch.no_grad():  # not inference_mode: a loss may keep the states for its backward
                    texts = [(batch[row].prompt_ids, batch[row].completion_ids) for row in rows]
                    # A copy: a view would keep the prompts' states and the padding alive.
                    states = [each.clone() for each in completion_states(self._model, texts)]
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                error.__traceback__ = None  # its frames hold the tensors that did not fit
                empty_caches()
                if len(rows) > 1:
                    self._batch_size = len(rows) // 2
                    continue
                raise RequestRejected(
                    "out_of_memory",
                    f"row {rows[0]}: no memory for a text of {batch[rows[0]].tokens} tokens, even alone: "
                    f"{str(error).splitlines()[0]}",
                    row=rows[0],
                ) from None
            hidden |= zip(rows, states, strict=True)
            waiting = waiting[len(rows) :]
        return [self._scores(row, request, hidden[row]) for row, request in enumerate(batch)]

    def _scores(self, row: int, request: ScoreRequest, hidden: Tensor) -> TeacherScores:
        """hidden: (T, D). Raises RequestRejected when the logits of a position are not finite."""
        # |w . h| <= |w| |h|: where this is finite, so are all logits, and none need be computed to know it.
        bound = hidden.float().norm(dim=-1) * self._largest  # (T,)
        doubtful = ~(bound < torch.finfo(torch.float32).max)
        if doubtful.any() and not all(logprobs.isfinite().all() for logprobs in self.head.logprobs(hidden[doubtful])):
            raise not_finite(row, *self._first_broken(request), NOT_FINITE)
        return TeacherScores("full", tuple(request.completion_ids), hidden=hidden, head=self.head)

    def _first_broken(self, request: ScoreRequest) -> tuple[int, float]:
        """(the first position whose logits are not finite, a value of them), by bisection over the text's beginnings.

        Read as a whole, a text has its NaN in the positions before the broken one, too: attention multiplies what
        follows by zero, and 0 NaN = NaN.
        """

        @torch.no_grad()
        def strange(position: int) -> Tensor:
            beginning = request.prompt_ids, request.completion_ids[: position + 1]
            logits = self.head.logits(completion_states(self._model, [beginning])[0][-1:])
            return logits[~logits.isfinite()]

        low, high = 0, len(request.completion_ids) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if strange(middle).numel() else (middle + 1, high)
        values = strange(low)
        return low, float("nan") if values.isnan().any() else values[0].item()

    def self_test(self) -> Noise:
        """See `Scorer`. Raises UsageError."""

        def encode(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

        return measure_noise(self.score, encode, self.context_tokens)

    def close(self) -> None:
        """Give the model's memory back (what scores hold of it, the head, lives as long as they do)."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def largest_norm(head: OutputHead, name: str) -> float:
    """The largest |scale| (|w| + |b|) over the rows of the head: times |h| it bounds every logit.

    Raises UsageError for weights that are not finite.
    """
    norms = head.weight.float().norm(dim=-1)
    if head.bias is not None:
        norms = norms + head.bias.float().abs()
    if not norms.isfinite().all():
        token = int((~norms.isfinite()).nonzero()[0])
        raise UsageError(f"{name}: the output weights of token {token} are not finite. Its file is damaged.")
    return norms.max().item() * max(1.0, abs(head.scale))
