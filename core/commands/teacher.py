"""The options of every command that asks a teacher: who answers, at what cost, how many at a time."""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from .base import Command, Option

Backend = Literal[
    "openrouter", "openai", "nvidia", "together", "fireworks", "vllm", "sglang", "llama-server", "ollama", "gguf", "hf"
]

TEACHER, SAMPLING, RUN, MONEY, LOCAL = "Teacher", "Sampling", "Running", "Money and permission", "Local teachers"

OWN_FIELDS = {
    "model": "is --model",
    "messages": "come from the prompts",
    "max_tokens": "is --max-tokens",
    "max_completion_tokens": "is --max-tokens",
    "temperature": "is --temperature",
    "top_p": "is --top-p",
    "seed": "is --seed",
    "n": "is --samples: each answer is a request of its own",
    "stream": "is not supported: answers are read whole",
    "tools": "come from the tool options of run_rollouts",
    "functions": "come from the tool options of run_rollouts",
}
"""Fields of a request that --extra-body may not set, and why."""


class TeacherOptions(Command):
    """Base of the commands that ask a teacher."""

    model: Annotated[
        str,
        Option(
            TEACHER,
            "-m",
            mcp="A name at the provider, a folder, a .gguf file, or smollm2 (small, offline).",
            names="model",
        ),
    ] = "anthropic/claude-sonnet-4"
    """Teacher: a name at the provider, a model folder, a .gguf file, owner/repo:QUANT (GGUF on the Hub), or smollm2."""
    backend: Annotated[Backend | None, Option(TEACHER, mcp="By default from the model's name.")] = None
    """How the teacher is reached. By default from the name: vendor/name is openrouter, gpt-* and o* are openai, paths
    are local; with --base-url: openai."""
    base_url: Annotated[
        str | None, Option(TEACHER, mcp="An OpenAI-compatible server, up to and with /v1.", hidden=True, names="url")
    ] = None
    """Any OpenAI-compatible server (vLLM, llama-server, SGLang, LM Studio, Ollama), up to and with /v1. By default the
    usual address of the --backend."""
    api_key_env: Annotated[str | None, Option(TEACHER, hidden=True, names="key")] = Field(
        default=None, pattern=r"^[A-Z_][A-Z0-9_]*$"
    )
    """Name of the variable that holds the key (by default OPENROUTER_API_KEY, OPENAI_API_KEY, NVIDIA_API_KEY, ...)."""
    extra_body: Annotated[dict[str, Any] | None, Option(TEACHER)] = None
    """JSON object merged into every request, for what a provider offers beyond these options."""

    system: Annotated[str | None, Option(TEACHER, "-s", mcp="System prompt for rows without their own.")] = None
    """System prompt for every row that has none of its own."""

    top_p: Annotated[float | None, Option(SAMPLING)] = Field(default=None, gt=0, le=1)
    """Nucleus sampling: the share of probability to sample from."""
    seed: Annotated[int | None, Option(SAMPLING)] = Field(default=None, ge=0, le=2**63 - 1)
    """Base seed: every sample gets its own seed from it. At API teachers best effort."""

    concurrency: Annotated[int, Option(RUN, "-c")] = Field(default=5, ge=1)
    """Most requests in flight; falls under rate limits and recovers by itself."""
    timeout: Annotated[float, Option(RUN)] = Field(default=120, gt=0, le=86_400)
    """Seconds for one request."""
    retries: Annotated[int, Option(RUN)] = Field(default=5, ge=0)
    """Further attempts for a row after timeouts, 5xx and broken answers (rate limits do not count)."""
    dry_run: Annotated[bool, Option(RUN, mcp="Only say what would be asked and what it costs.")] = False
    """Say what would be asked, how many tokens and what it costs, and stop. No request is paid."""

    max_cost: Annotated[float | None, Option(MONEY, mcp="Most USD to spend.")] = Field(default=None, gt=0)
    """Most USD that this run may spend, requests in flight counted at their worst case."""
    price: Annotated[str | None, Option(MONEY)] = Field(default=None, pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$")
    """USD per million prompt/completion tokens, as 3/15, where the provider lists no price."""
    require_distillable: Annotated[bool, Option(MONEY)] = False
    """OpenRouter only: use only models whose authors allow training on their text."""

    preferred_quant: Annotated[str, Option(LOCAL)] = "Q4_K_M"
    """gguf: the quantisation to take from a Hub repository."""
    n_gpu_layers: Annotated[int, Option(LOCAL)] = Field(default=-1, ge=-1)
    """gguf: layers to put on the GPU, -1 for all."""
    n_ctx: Annotated[int, Option(LOCAL)] = Field(default=4096, ge=0, le=10_000_000)
    """gguf: context length in tokens, prompt and answer together; 0 for all that the model has."""
    threads: Annotated[int | None, Option(LOCAL)] = Field(default=None, ge=1)
    """gguf and hf: CPU threads (default: all cores)."""
    batch_size: Annotated[int, Option(LOCAL)] = Field(default=8, ge=1)
    """hf: prompts per forward pass, grouped by length."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Option(LOCAL)] = "auto"
    """hf: number format of the weights (auto: float32 on a CPU, else the model's own)."""
    device_map: Annotated[str, Option(LOCAL)] = "auto"
    """hf: where the weights go (auto, cpu, cuda:0, mps, balanced, ...)."""
    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], Option(LOCAL)] = "sdpa"
    """hf: attention implementation."""
    load_in_4bit: Annotated[bool, Option(LOCAL)] = False
    """hf: 4-bit weights (needs bitsandbytes)."""

    @field_validator("base_url")
    @classmethod
    def _http_without_secrets(cls, value: str | None) -> str | None:
        return None if value is None else web_address(value)

    @field_validator("extra_body")
    @classmethod
    def _leaves_our_fields_alone(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """Keys, budget and rows rest on what these options say, so that they may not say otherwise here."""
        for key in value or {}:
            if key in OWN_FIELDS:
                raise ValueError(f'"{key}" {OWN_FIELDS[key]}')
        return value

    @model_validator(mode="after")
    def _options_that_need_another(self) -> "TeacherOptions":
        if self.base_url and self.backend in ("gguf", "hf"):
            raise ValueError(f"--base-url is for API teachers; --backend {self.backend} runs the model here")
        return self


def web_address(value: str) -> str:
    """A server's URL without a slash at its end. Raises ValueError for what is none, or holds a secret."""
    if not value.startswith(("http://", "https://")):
        raise ValueError("does not begin with http:// or https://")
    if "@" in value or "?" in value or "#" in value:
        raise ValueError("a URL with a user, a password or a query in it: put the key into .env instead")
    try:
        parts = urlsplit(value)
        if not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        raise ValueError("is not a URL such as http://127.0.0.1:8000/v1") from None
    return value.rstrip("/")
