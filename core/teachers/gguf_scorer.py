"""A GGUF model as a scorer, through llama.cpp's C interface: logits are reduced as they come, and none are kept."""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..errors import MissingDependency, TeacherUnavailable, UsageError
from .locate import locate
from .scorer import Ability, Noise, ScoreRequest, TeacherScores, check_requests, measure_noise, not_finite

LONGER = "Raise --n-ctx (0 is all that the model has)."
NOT_FINITE = "The file may be damaged: try another quantisation of the model."
LOGITS_BYTES = 32 * 2**20
"""Of one micro-batch. llama.cpp holds them twice: where it computes them, and where it hands them over."""
PROMPT_CHUNK = 512
"""Tokens of a prompt that go through the model together."""
FOLD = 32
"""Parts that a row of logits is folded into to find its largest."""


class GgufScorer:
    """A `Scorer` over one llama.cpp context: the top-k, the rest and the picked token of every position."""

    backend = "gguf"
    ability: Ability = "top_k"

    def __init__(
        self,
        model: str,
        *,
        preferred_quant: str,
        n_gpu_layers: int,
        n_ctx: int,
        threads: int | None,
        top_k: int = 64,
    ) -> None:
        """Options as those of `GgufTeacher`. Raises MissingDependency or ModelNotFound."""
        if importlib.util.find_spec("llama_cpp") is None:
            raise MissingDependency("llama-cpp-python", "--backend gguf", "gguf")
        self.model = model
        self._located = locate(model, gguf=True, preferred_quant=preferred_quant)
        self._n_gpu_layers, self._n_ctx = n_gpu_layers, n_ctx
        self._threads = threads or os.cpu_count() or 1
        self._top_k = top_k
        self.identity: dict[str, Any] = {
            "backend": "gguf",
            "model": model,
            "file": self._located.path.name,
            "top_k": top_k,
        }
        self._llama: Any = None  # the module llama_cpp, and below it what its C interface gave
        self._weights: Any = None
        self._context: Any = None
        self._context_size = 0
        self._kept: list[tuple[int, ...]] = []

    def prepare(self, note: Callable[[str], None]) -> None:
        """Load the model. Raises UsageError when llama.cpp cannot."""
        import llama_cpp  # pyright: ignore[reportMissingImports]

        note(f"loading {self._located.path.name} with llama.cpp")
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # what llama.cpp says goes through it
        self._llama = llama_cpp
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 2**31 - 1 if self._n_gpu_layers == -1 else self._n_gpu_layers
        self._weights = llama_cpp.llama_model_load_from_file(str(self._located.path).encode(), options)
        if not self._weights:
            raise UsageError(f"llama.cpp cannot load {self._located.path}. Is it a whole GGUF file?")
        self._vocabulary: Any = llama_cpp.llama_model_get_vocab(self._weights)
        self.width: int = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        self.context_tokens: int = self._n_ctx or llama_cpp.llama_model_n_ctx_train(self._weights)
        self._top_k = min(self._top_k, self.width)
        # A power of two, so that the pieces of one text are those of another that begins alike.
        self._micro_batch = 2 ** max(4, min(9, (LOGITS_BYTES // (4 * self.width)).bit_length() - 1))
        self._batch = Batch(llama_cpp, max(PROMPT_CHUNK, self._micro_batch))

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer for transformers; converted once, when it is first asked for."""
        from . import hf_model

        return hf_model.load_tokenizer(hf_model.tokenizer_folder(self._located), chat=False)

    def score(self, batch: Sequence[ScoreRequest]) -> list[TeacherScores]:
        """Scores with the top-k, for each request. See `Scorer`.

        One text after another, and the prompt that a text shares with the one before it is not read again. A text's
        scores do not depend on that: it is always cut into the same pieces.
        """
        check_requests(batch, self.width, self.context_tokens, LONGER)
        return [self._score(row, request) for row, request in enumerate(batch)]

    def _score(self, row: int, request: ScoreRequest) -> TeacherScores:
        """Raises RequestRejected when logits are not finite."""
        completion = np.asarray(request.completion_ids, dtype=np.int64)
        count, k = len(completion), self._top_k
        picked = np.empty(count, np.float32)
        top_ids, top_logprobs = np.empty((count, k), np.int64), np.empty((count, k), np.float32)
        text = [*request.prompt_ids, *request.completion_ids][:-1]  # nothing is predicted from the last token
        first = len(request.prompt_ids) - 1  # predicts the completion's first token
        if count:
            for start, logits in self._logits(text, first):
                for n, values in enumerate(logits, start=start):
                    place = n - first
                    try:
                        picked[place], top_ids[place], top_logprobs[place] = reduce(values, completion[place], k)
                    except FloatingPointError:
                        worst = values[~np.isfinite(values)]
                        value = float("nan") if np.isnan(worst).any() else float(worst[0])
                        raise not_finite(row, place, value, NOT_FINITE) from None
        return TeacherScores(
            "top_k",
            tuple(request.completion_ids),
            picked=torch.from_numpy(picked),
            top_ids=torch.from_numpy(top_ids),
            top_logprobs=torch.from_numpy(top_logprobs),
        )

    def _logits(self, text: list[int], first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Read a text. Yields (position, [logits (V,) of it and of those after it]) from position `first` on.

        The arrays are llama.cpp's own memory, which the next step overwrites.
        """
        llama, context = self._llama, self._context_for(len(text))
        chunks = pieces(text, first, self._micro_batch)
        memory = llama.llama_get_memory(context)
        shared = 0
        while shared < len(self._kept) and chunks[shared][1] <= first and self._kept[shared] == chunks[shared][2]:
            shared += 1
        begin = chunks[shared][0]
        if begin == 0 or not llama.llama_memory_seq_rm(memory, 0, begin, -1):  # a recurrent model cannot go back
            llama.llama_memory_clear(memory, False)
            shared = 0
        kept, self._kept = self._kept[:shared], []  # an error leaves nothing to build on
        for start, stop, tokens in chunks[shared:]:
            flagged = max(start, first)
            status = llama.llama_decode(context, self._batch.fill(tokens, start, flagged - start))
            if status:
                raise TeacherUnavailable(
                    "llama_cpp", f"llama.cpp could not read positions {start} to {stop} of a text (status {status})."
                )
            if flagged < stop:
                # The pointer to a row waits for the computation; only then may its memory be read.
                rows = (llama.llama_get_logits_ith(context, n - start) for n in range(flagged, stop))
                yield flagged, [np.ctypeslib.as_array(pointer, (self.width,)) for pointer in rows]
            kept.append(tokens)
        self._kept = kept

    def _context_for(self, tokens: int) -> Any:
        """A context that holds so many tokens: its memory grows with the texts, up to --n-ctx."""
        if self._context is not None and tokens <= self._context_size:
            return self._context
        llama = self._llama
        self._free_context()
        size = min(self.context_tokens, max(256, 2 ** (tokens - 1).bit_length()))
        options = llama.llama_context_default_params()
        options.n_ctx = size
        options.n_batch = options.n_ubatch = max(PROMPT_CHUNK, self._micro_batch)
        options.n_outputs_max = self._micro_batch  # else room for the logits of n_batch tokens would be taken
        options.n_threads = options.n_threads_batch = self._threads
        # Flash attention on a CPU computes large pieces in another way than small ones, so that a log-probability would
        # depend on how its text is cut (by 0.5 nats at worst, KL 0.003). Without it, it does not.
        options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.no_perf = True
        self._context = llama.llama_init_from_model(self._weights, options)
        if not self._context:
            self._context = None
            raise UsageError(f"llama.cpp finds no memory for a context of {size} tokens. Lower --n-ctx.")
        self._context_size = size
        return self._context

    def encode(self, text: str) -> list[int]:
        """The text's ids by llama.cpp, without special tokens."""
        data = text.encode()
        ids = (self._llama.llama_token * (len(data) + 8))()
        count = self._llama.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), False, False)
        return list(ids[:count])

    def self_test(self) -> Noise:
        """See `Scorer`. Raises UsageError."""
        return measure_noise(self.score, self.encode, self.context_tokens)

    def _free_context(self) -> None:
        if self._context is not None:
            self._llama.llama_free(self._context)
        self._context, self._context_size, self._kept = None, 0, []

    def close(self) -> None:
        """Give back the context and the model."""
        self._free_context()
        if self._weights is not None:
            self._llama.llama_model_free(self._weights)
            self._batch.free()
        self._weights = None


def pieces(text: list[int], first: int, micro_batch: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """(start, stop, tokens) of the pieces in which a text is read, so that none with logits is above `micro_batch`.

    first: the first position whose logits are wanted. On some devices log-probabilities depend a little on how a text
    is cut (a matrix is computed in other ways than a row), so the cuts depend on nothing but `first` and the length.
    """
    found: list[tuple[int, int, tuple[int, ...]]] = []
    start = 0
    while start < len(text):
        stop = start + (PROMPT_CHUNK if start + PROMPT_CHUNK <= first else micro_batch)
        stop = min(stop, len(text))
        found.append((start, stop, tuple(text[start:stop])))
        start = stop
    return found


def reduce(logits: np.ndarray, picked: int, k: int) -> tuple[np.float32, np.ndarray, np.ndarray]:
    """(log-probability of the token `picked`, the k most probable ids, their log-probabilities), most probable first.

    logits: (V,) float32. Raises FloatingPointError when one of them is not finite.

    The k largest are found in two steps, which is exact: the row is folded into FOLD parts, one above the other, and
    none of the k largest can stand outside the k columns with the largest maxima.
    """
    columns = len(logits) // FOLD
    folded = logits[: FOLD * columns].reshape(FOLD, columns)
    rest = np.arange(FOLD * columns, len(logits))
    if columns > k:
        peaks = np.argpartition(folded.max(0), columns - k)[columns - k :]
        ids = np.concatenate([(np.arange(FOLD)[:, None] * columns + peaks).ravel(), rest])
    else:
        ids = np.arange(len(logits))
    values = logits[ids]
    if k < len(ids):
        best = np.argpartition(values, len(ids) - k)[len(ids) - k :]
        ids, values = ids[best], values[best]
    order = np.argsort(-values, kind="stable")
    ids, values = ids[order], values[order]
    largest = logits.max()
    if not (np.isfinite(largest) and np.isfinite(logits.min())):
        raise FloatingPointError
    shifted = logits - largest
    log_sum_exp = largest + np.log(np.exp(shifted, out=shifted).sum())
    return logits[picked] - log_sum_exp, ids, values - log_sum_exp


class Batch:
    """A llama_batch of one sequence, filled through numpy views of its arrays."""

    def __init__(self, llama: Any, size: int) -> None:
        self._llama = llama
        self._batch = llama.llama_batch_init(size, 0, 1)
        view = np.ctypeslib.as_array
        self._token, self._pos = view(self._batch.token, (size,)), view(self._batch.pos, (size,))
        self._logits = view(self._batch.logits, (size,))
        view(self._batch.n_seq_id, (size,))[:] = 1
        for n in range(size):
            self._batch.seq_id[n][0] = 0

    def fill(self, tokens: Sequence[int], start: int, flagged: int) -> Any:
        """The llama_batch of tokens at positions `start`, ... with the logits of number `flagged` and those after."""
        count = len(tokens)
        self._batch.n_tokens = count
        self._token[:count] = tokens
        self._pos[:count] = np.arange(start, start + count)
        self._logits[:count] = np.arange(count) >= flagged
        return self._batch

    def free(self) -> None:
        self._llama.llama_batch_free(self._batch)
