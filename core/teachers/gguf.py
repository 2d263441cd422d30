"""A GGUF model in this process, through llama-cpp-python."""

import asyncio
import importlib.util
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependency, RequestRejected, TransientError, UsageError
from .locate import locate
from .protocol import Completion, Message, Sampling, Usage, split_thinking

if TYPE_CHECKING:
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports] (an extra)


class GgufTeacher:
    """A `Completer` over one llama.cpp context: one answer at a time, with the model's own chat template."""

    backend = "gguf"
    concurrency = 1
    local = True

    def __init__(self, model: str, *, preferred_quant: str, n_gpu_layers: int, n_ctx: int, threads: int | None) -> None:
        """Raises MissingDependency or ModelNotFound; the weights are loaded by `prepare`."""
        if importlib.util.find_spec("llama_cpp") is None:
            raise MissingDependency("llama-cpp-python", "--backend gguf", "pip install -e '.[gguf]'")
        self.model = model
        self._located = locate(model, gguf=True, preferred_quant=preferred_quant)
        self._n_gpu_layers, self._n_ctx = n_gpu_layers, n_ctx
        self._threads = threads or os.cpu_count() or 1
        self.identity: dict[str, Any] = {
            "backend": "gguf",
            "model": model,
            "file": self._located.path.name,
            "n_ctx": n_ctx,
        }
        self._pool = ThreadPoolExecutor(1, "gguf")
        self._llama: Llama | None = None

    async def prepare(self, note: Callable[[str], None]) -> None:
        """Load the model. Raises UsageError when llama.cpp cannot."""
        note(f"loading {self._located.path.name} with llama.cpp")
        await asyncio.get_running_loop().run_in_executor(self._pool, self._load)

    def _load(self) -> None:
        from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

        try:
            llama = Llama(
                str(self._located.path),
                n_ctx=self._n_ctx,
                n_gpu_layers=self._n_gpu_layers,
                n_threads=self._threads,
                n_threads_batch=self._threads,
                verbose=False,
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise UsageError(
                f"llama.cpp cannot load {self._located.path}: {error}. Is it a whole GGUF file? Does --n-ctx "
                f"{self._n_ctx} fit into memory?"
            ) from None
        if "tokenizer.chat_template" not in llama.metadata:
            raise UsageError(f"{self._located.path} has no chat template: a base model cannot answer prompts.")
        self._llama = llama

    async def complete(self, messages: list[Message], sampling: Sampling) -> Completion:
        """One answer. Raises RequestRejected for a prompt longer than the context."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._complete, messages, sampling)

    def _complete(self, messages: list[Message], sampling: Sampling) -> Completion:
        assert self._llama is not None, "prepare() first"
        try:
            # llama-cpp-python's own defaults (top_k 40, min_p 0.05, ...) would draw from another distribution.
            answer: Any = self._llama.create_chat_completion(
                messages,  # pyright: ignore[reportArgumentType]
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                min_p=0.0,
                typical_p=1.0,
                repeat_penalty=1.0,
                presence_penalty=0.0,
                frequency_penalty=0.0,
                mirostat_mode=0,
                seed=secrets.randbits(31) if sampling.seed is None else sampling.seed,
            )
        except ValueError as error:
            if "exceed context window" in str(error):
                raise RequestRejected("context_length", f"{error} Raise --n-ctx.") from None
            raise RequestRejected("invalid_request", f"llama.cpp: {error}") from None
        choice, usage = answer["choices"][0], answer["usage"]
        text = choice["message"].get("content") or ""
        completion = split_thinking(
            Completion(
                text=text,
                finish_reason=choice["finish_reason"] or "stop",
                usage=Usage(usage["prompt_tokens"], usage["completion_tokens"]),
            )
        )
        return non_empty(completion, sampling.max_tokens)

    def drain(self) -> None:
        """One answer at a time: nothing is queued."""

    async def aclose(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._llama = None


def non_empty(completion: Completion, max_tokens: int) -> Completion:
    """The completion, when there is something to train on. Raises RequestRejected or TransientError otherwise."""
    if completion.text.strip():
        return completion
    if completion.finish_reason == "length":
        raise RequestRejected("no_room_for_answer", f"no answer within {max_tokens} tokens; raise --max-tokens")
    raise TransientError("empty_answer", "an empty answer")
