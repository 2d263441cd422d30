"""A GGUF model in this process, through llama-cpp-python."""

import asyncio
import importlib.util
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependency, RequestRejected, TeacherUnavailable, TransientError, UsageError
from .chat_template import ChatTemplate, answer_of
from .locate import locate
from .protocol import Completion, LocalTeacher, Message, Sampling, ToolSchema, Usage

if TYPE_CHECKING:
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports] (an extra)


class GgufTeacher(LocalTeacher):
    """A `Completer` over one llama.cpp context: one answer at a time, with the model's own chat template."""

    backend = "gguf"
    concurrency = 1

    def __init__(
        self,
        model: str,
        *,
        preferred_quant: str,
        n_gpu_layers: int,
        n_ctx: int,
        threads: int | None,
        tools: bool = False,
    ) -> None:
        """tools: `prepare` is to refuse a model whose template has no place for them.

        Raises MissingDependency or ModelNotFound; the weights are loaded by `prepare`.
        """
        if importlib.util.find_spec("llama_cpp") is None:
            raise MissingDependency("llama-cpp-python", "--backend gguf", "gguf")
        self.model = model
        self._located = locate(model, gguf=True, preferred_quant=preferred_quant)
        self._n_gpu_layers, self._n_ctx = n_gpu_layers, n_ctx
        self.context_tokens: int | None = None
        self._threads = threads or os.cpu_count() or 1
        self._tools = tools
        self.identity: dict[str, Any] = {
            "backend": "gguf",
            "model": model,
            "file": self._located.path.name,
            "n_ctx": n_ctx,
        }
        self._pool = ThreadPoolExecutor(1, "gguf")
        self._llama: Llama | None = None
        self._template: ChatTemplate | None = None
        self._aborted = False

    async def prepare(self, note: Callable[[str], None]) -> None:
        """Load the model. Raises UsageError when llama.cpp cannot, or when it is to use tools and cannot."""
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
        self.context_tokens = llama.n_ctx()  # the model's own where --n-ctx is 0
        self._template = template_of(llama, self._located.path.name)
        if self._tools:
            try:
                self._template.check_tools()
            except TeacherUnavailable as error:
                raise UsageError(str(error)) from None

    async def complete(
        self, messages: list[Message], sampling: Sampling, tools: Sequence[ToolSchema] = ()
    ) -> Completion:
        """One answer. Raises RequestRejected for a prompt longer than the context."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._complete, messages, sampling, tools)

    def _complete(self, messages: list[Message], sampling: Sampling, tools: Sequence[ToolSchema]) -> Completion:
        llama, room = self._llama, self.context_tokens
        assert llama is not None, "prepare() first"
        assert room is not None
        assert self._template is not None
        try:
            text = self._template.prompt(messages, tools)
        except TeacherUnavailable:
            raise
        except Exception as error:  # jinja2's, or whatever the template's own code meets
            raise RequestRejected("invalid_request", f"the chat template refuses this: {error}") from None
        prompt = llama.tokenize(text.encode(), add_bos=False, special=True)
        if len(prompt) >= room:
            message = f"the prompt has {len(prompt)} tokens, the context {room}. Raise --n-ctx."
            raise RequestRejected("context_length", message)
        tokens, ended = self._generate(llama, prompt, sampling, min(sampling.max_tokens, room - len(prompt)))
        # Markers of tool calls may be special tokens (Mistral's are), which are left out otherwise.
        written = llama.detokenize(tokens, prev_tokens=prompt, special=bool(tools))
        completion = Completion(
            text=written.decode("utf-8", "ignore"),
            finish_reason="stop" if ended else "length",
            usage=Usage(len(prompt), len(tokens)),
        )
        return non_empty(answer_of(completion, tools, len(messages)), sampling.max_tokens)

    def _generate(self, llama: "Llama", prompt: list[int], sampling: Sampling, most: int) -> tuple[list[int], bool]:
        """(the answer's tokens, at most `most`; whether the model ended it)."""
        import llama_cpp  # pyright: ignore[reportMissingImports]

        vocabulary = llama._model.vocab
        tokens: list[int] = []
        llama.set_seed(secrets.randbits(31) if sampling.seed is None else sampling.seed)
        try:
            # llama-cpp-python's own defaults (top_k 40, min_p 0.05, ...) would draw from another distribution.
            for token in llama.generate(
                prompt,
                temp=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                min_p=0.0,
                typical_p=1.0,
                repeat_penalty=1.0,
                presence_penalty=0.0,
                frequency_penalty=0.0,
                mirostat_mode=0,
            ):
                if llama_cpp.llama_vocab_is_eog(vocabulary, token):
                    return tokens, True
                tokens.append(token)
                if self._aborted:
                    raise TransientError("stopped", "the teacher was closed before its answer was whole")
                if len(tokens) >= most:
                    break
        except (ValueError, RuntimeError) as error:
            raise RequestRejected("invalid_request", f"llama.cpp: {error}") from None
        return tokens, False

    def drain(self) -> None:
        """One answer at a time: nothing is queued."""

    async def aclose(self) -> None:
        self._aborted = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._llama = None


def template_of(llama: "Llama", name: str) -> ChatTemplate:
    """The chat template in a GGUF file: the one for tools, where it holds several."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # pyright: ignore[reportMissingImports]

    source = llama.metadata["tokenizer.chat_template"]
    with_tools = llama.metadata.get("tokenizer.chat_template.tool_use", source)
    eos, bos = (llama._model.token_get_text(t) if t != -1 else "" for t in (llama.token_eos(), llama.token_bos()))
    formatters = {
        (wanted, begin): Jinja2ChatFormatter(template, eos, bos, add_generation_prompt=begin)
        for wanted, template in ((True, with_tools), (False, source))
        for begin in (True, False)
    }

    def render(messages: list[Message], tools: list[ToolSchema] | None, begin: bool) -> str:
        formatter: Any = formatters[bool(tools), begin]
        return formatter(messages=messages, tools=tools).prompt

    return ChatTemplate(name, with_tools, render)


def non_empty(completion: Completion, max_tokens: int) -> Completion:
    """The completion, when there is something to train on. Raises RequestRejected or TransientError otherwise."""
    if completion.text.strip() or completion.tool_calls:
        return completion
    if completion.finish_reason == "length":
        raise RequestRejected("no_room_for_answer", f"no answer within {max_tokens} tokens; raise --max-tokens")
    raise TransientError("empty_answer", "an empty answer")
