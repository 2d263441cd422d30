"""Teachers: APIs, llama.cpp and Hugging Face models behind one protocol. What is heavy is imported when it is used."""

import re
from typing import TYPE_CHECKING

from ..errors import MissingDependency, UsageError
from .locate import is_local
from .protocol import Completer, Completion, Message, Price, Sampling, ToolCall, ToolSchema, Usage

if TYPE_CHECKING:
    from ..commands.teacher import Backend, TeacherOptions

__all__ = [
    "Completer",
    "Completion",
    "Message",
    "Price",
    "Sampling",
    "ToolCall",
    "ToolSchema",
    "Usage",
    "backend_of",
    "open_teacher",
]


def backend_of(model: str, backend: "Backend | None" = None, base_url: str | None = None) -> "Backend":
    """How a model is reached: as asked for, else by --base-url, else by the model's name.

    Raises UsageError for a name that says nothing.
    """
    if backend:
        return backend
    if base_url:
        return "openai"
    if model.endswith(".gguf"):
        return "gguf"
    if is_local(model):
        return "hf"
    if re.fullmatch(r"(gpt-|chatgpt-|o\d)[\w.:-]*", model):
        return "openai"
    if re.fullmatch(r"[\w.~-]+/[\w.:-]+", model):
        return "openrouter"
    raise UsageError(
        f"--model {model}: no such path, and the name does not say who serves it. Write vendor/name (OpenRouter), "
        "or add --backend openrouter|openai|nvidia|gguf|hf or --base-url."
    )


def open_teacher(options: "TeacherOptions", *, tools: bool = False) -> Completer:
    """The teacher that the options name. Raises UsageError (missing key, package or model) before anything is spent.

    tools: it will be offered tools; a local model that cannot use them is refused by `prepare`.
    """
    backend = backend_of(options.model, options.backend, options.base_url)
    if options.require_distillable and backend != "openrouter":
        raise UsageError(f"--require-distillable: only OpenRouter knows what may be distilled, and this is {backend}.")
    if backend == "gguf":
        from .gguf import GgufTeacher

        return GgufTeacher(
            options.model,
            preferred_quant=options.preferred_quant,
            n_gpu_layers=options.n_gpu_layers,
            n_ctx=options.n_ctx,
            threads=options.threads,
            tools=tools,
        )
    if backend == "hf":
        try:
            from .hf import HfTeacher
        except ModuleNotFoundError as missing:
            raise MissingDependency(str(missing.name), "--backend hf", "train") from None
        return HfTeacher(
            options.model,
            batch_size=options.batch_size,
            dtype=options.dtype,
            device_map=options.device_map,
            attention=options.attention,
            load_in_4bit=options.load_in_4bit,
            threads=options.threads,
            tools=tools,
        )
    from .openai_api import ApiTeacher

    return ApiTeacher(
        options.model,
        backend,
        base_url=options.base_url,
        api_key_env=options.api_key_env,
        timeout_s=options.timeout,
        connections=options.concurrency,
        require_distillable=options.require_distillable,
        require_parameters=options.seed is not None,
        extra_body=options.extra_body,
    )
