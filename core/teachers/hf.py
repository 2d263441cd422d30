"""A Hugging Face model in this process: requests are collected and answered in batches of similar length."""

import asyncio
import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ..errors import MissingDependency, RequestRejected, TeacherError, TeacherUnavailable, UsageError, pip_line
from .chat_template import answer_of
from .gguf import non_empty
from .locate import LocalModel, locate
from .protocol import Completion, LocalTeacher, Message, Sampling, ToolSchema, Usage


@dataclass
class _Request:
    tokens: list[int]
    sampling: Sampling
    tools: Sequence[ToolSchema]
    turn: int
    answer: "asyncio.Future[Completion]"

    @property
    def kind(self) -> Sampling:
        """What the requests of one batch must share."""
        return replace(self.sampling, seed=None)


def located(model: str, *, attention: str, load_in_4bit: bool) -> LocalModel:
    """Where the model is. Raises MissingDependency for a package that loading it would need, or ModelNotFound."""
    needs = {"torch": True, "transformers": True, "accelerate": True}
    needs |= {"bitsandbytes": load_in_4bit, "flash_attn": attention == "flash_attention_2"}
    for package, needed in needs.items():
        if needed and importlib.util.find_spec(package) is None:
            install = "train" if package in ("torch", "transformers", "accelerate") else pip_line(package)
            raise MissingDependency(package, "--backend hf with these options", install)
    found = locate(model, gguf=False)
    if found.is_gguf and importlib.util.find_spec("gguf") is None:
        raise MissingDependency("gguf", f"converting {found.path.name}", "train")
    return found


class HfTeacher(LocalTeacher):
    """A `Completer` over transformers. It wants four batches of requests in flight, to choose neighbours by length."""

    backend = "hf"

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
        tools: bool = False,
    ) -> None:
        """tools: `prepare` is to refuse a model whose template has no place for them.

        Raises MissingDependency or ModelNotFound; the weights are loaded by `prepare`.
        """
        self.model = model
        self._located = located(model, attention=attention, load_in_4bit=load_in_4bit)
        self.concurrency = 4 * batch_size
        self.identity: dict[str, Any] = {
            "backend": "hf",
            "model": model,
            "dtype": dtype,
            "load_in_4bit": load_in_4bit,
        }
        self._batch_size, self._threads, self._tools = batch_size, threads, tools
        self.context_tokens: int | None = None
        self._loading = {
            "dtype": dtype,
            "device_map": device_map,
            "attention": attention,
            "load_in_4bit": load_in_4bit,
        }
        self._pool = ThreadPoolExecutor(1, "hf")
        self._queue: list[_Request] = []
        self._worker: asyncio.Task[None] | None = None
        self._aborted = False

    async def prepare(self, note: Callable[[str], None]) -> None:
        """Load the model, after converting a GGUF file. Raises UsageError when it cannot be loaded, or when it is to
        use tools and cannot."""
        note(f"loading {self.model} with transformers")
        await asyncio.get_running_loop().run_in_executor(self._pool, self._load, note)

    def _load(self, note: Callable[[str], None]) -> None:
        import torch
        import transformers

        from . import hf_model

        transformers.utils.logging.disable_progress_bar()
        if self._threads:
            torch.set_num_threads(self._threads)
        folder = hf_model.hf_folder(self._located, note)
        self._tokenizer = hf_model.load_tokenizer(folder)
        self._template = hf_model.template_of(self._tokenizer, self.model)
        if self._tools:
            try:
                self._template.check_tools()
            except TeacherUnavailable as error:
                raise UsageError(str(error)) from None
        self._model = hf_model.load_model(folder, **self._loading)
        self.context_tokens = getattr(self._model.config, "max_position_embeddings", None)
        self._generate = hf_model.generate_batch

    def prompt_tokens(self, messages: list[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """The prompt in the model's own chat template, up to where its answer begins.

        Raises RequestRejected when the template refuses the conversation.
        """
        try:
            text = self._template.prompt(messages, tools)
        except TeacherUnavailable:
            raise
        except Exception as error:  # jinja2's, or whatever the template's own code meets
            raise RequestRejected("invalid_request", f"the chat template refuses this: {error}") from None
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    async def complete(
        self, messages: list[Message], sampling: Sampling, tools: Sequence[ToolSchema] = ()
    ) -> Completion:
        """One answer. Raises RequestRejected for a prompt that leaves no room for one."""
        tokens = self.prompt_tokens(messages, tools)
        room = self.context_tokens
        if room and len(tokens) >= room:
            raise RequestRejected("context_length", f"the prompt has {len(tokens)} tokens, the model takes {room}")
        if room:  # per request, so that a long neighbour never cuts a short prompt's answer
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room - len(tokens)))
        request = _Request(tokens, sampling, tools, len(messages), asyncio.get_running_loop().create_future())
        self._queue.append(request)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await request.answer
        finally:
            if request in self._queue:
                self._queue.remove(request)

    async def _work(self) -> None:
        """Answer batch after batch until nothing is queued."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # let the requests that begin together arrive
        while batch := self._next_batch():
            try:
                answers = await loop.run_in_executor(self._pool, self._answer, batch)
            except Exception as error:  # to those who wait for it, whatever it was
                self._fail(batch, error)
            else:
                for request, answer in zip(batch, answers, strict=True):
                    if not request.answer.done():
                        if isinstance(answer, TeacherError):
                            request.answer.set_exception(answer)
                        else:
                            request.answer.set_result(answer)

    def _next_batch(self) -> list[_Request]:
        """The oldest request and those nearest to it in length that share its sampling."""
        self._queue = [request for request in self._queue if not request.answer.done()]
        if not self._queue:
            return []
        oldest = self._queue[0]
        alike = [request for request in self._queue if request.kind == oldest.kind]
        alike.sort(key=lambda request: abs(len(request.tokens) - len(oldest.tokens)))
        batch = alike[: self._batch_size]
        self._queue = [request for request in self._queue if request not in batch]
        return batch

    def _fail(self, batch: list[_Request], error: Exception) -> None:
        if type(error).__name__ == "OutOfMemoryError":
            import torch

            error.__traceback__ = error.__context__ = None  # their frames hold the tensors that did not fit
            torch.cuda.empty_cache()
            if len(batch) > 1:
                self._batch_size = max(1, len(batch) // 2)
                self._queue[:0] = batch
                return
            message = f"out of memory with {len(batch[0].tokens)} tokens of prompt alone: {str(error).splitlines()[0]}"
            error = RequestRejected("out_of_memory", message)
        if not isinstance(error, TeacherError):
            error = UsageError(f"{self.model} failed: {type(error).__name__}: {error}")
        for request in batch:
            if not request.answer.done():
                request.answer.set_exception(error)

    def _answer(self, batch: list[_Request]) -> list[Completion | TeacherError]:
        """In the model's thread: one outcome per request."""
        seeds = [request.sampling.seed for request in batch]
        prompts = [request.tokens for request in batch]
        sampling = batch[0].sampling
        answers = self._generate(self._model, self._tokenizer, prompts, sampling, seeds, lambda: self._aborted)
        outcomes: list[Completion | TeacherError] = []
        for request, answer in zip(batch, answers, strict=True):
            if request.tools:  # markers of tool calls may be special tokens; only the end of the turn is no text
                tokens = answer.tokens[:-1] if answer.ended else answer.tokens
                text = self._tokenizer.decode(tokens, skip_special_tokens=False)
            else:
                text = self._tokenizer.decode(answer.tokens, skip_special_tokens=True)
            completion = Completion(
                text=text.strip(),
                finish_reason="stop" if answer.ended else "length",
                usage=Usage(len(request.tokens), len(answer.tokens)),
            )
            completion = answer_of(completion, request.tools, request.turn)
            try:
                outcomes.append(non_empty(completion, sampling.max_tokens))
            except TeacherError as error:
                outcomes.append(error)
        return outcomes

    def drain(self) -> None:
        """Cancel what has not begun; the batch that runs is finished."""
        for request in self._queue:
            request.answer.cancel()
        self._queue.clear()

    async def aclose(self) -> None:
        self._aborted = True
        if self._worker is not None:
            self._worker.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
