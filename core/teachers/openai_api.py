"""Teachers behind an OpenAI-compatible chat API: OpenRouter, OpenAI, NVIDIA, and any server with --base-url."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import orjson

from ..errors import TeacherError, UsageError
from .api_answers import parse_answer
from .api_client import ApiClient
from .protocol import Completion, Message, Price, Sampling, ToolSchema


class ApiTeacher:
    """A `Completer` over HTTP."""

    concurrency = None
    context_tokens: int | None = None
    local = False

    def __init__(
        self,
        model: str,
        backend: str,
        *,
        base_url: str | None = None,
        api_key_env: str | None = None,
        timeout_s: float = 120,
        connections: int = 5,
        require_distillable: bool = False,
        require_parameters: bool = False,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises MissingKey when the provider needs a key and none is set, UsageError for an address or a body that
        cannot be used."""
        self.client = ApiClient(
            backend, base_url=base_url, api_key_env=api_key_env, timeout_s=timeout_s, connections=connections
        )
        self.endpoint = self.client.endpoint
        self.model, self.backend = model, backend
        self._extra_body = dict(extra_body or {})
        try:
            orjson.dumps(self._extra_body)
        except TypeError as error:  # half a surrogate pair, an integer of more than 64 bits
            raise UsageError(f"--extra-body cannot be sent as JSON: {error}.") from None
        self._provider = {  # OpenRouter's routing; without require_parameters it ignores a seed without a word
            name: True
            for name, asked in (
                ("enforce_distillable_text", require_distillable),
                ("require_parameters", require_parameters),
            )
            if asked
        }
        self.identity = {
            "backend": backend,
            "model": model,
            "endpoint": self.endpoint,
            "extra_body": self._extra_body,
            "require_distillable": require_distillable,
        }

    async def prepare(self, note: Callable[[str], None]) -> None:
        """Nothing to load."""

    def body(self, messages: list[Message], sampling: Sampling, tools: Sequence[ToolSchema] = ()) -> dict[str, Any]:
        """The request, always in the same order of keys (providers' response caches compare bytes)."""
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self._wants_new_names:  # OpenAI's reasoning models refuse max_tokens and every sampling option
            body["max_completion_tokens"] = sampling.max_tokens
        else:
            body["max_tokens"] = sampling.max_tokens
            body["temperature"] = sampling.temperature
            if sampling.top_p != 1.0:
                body["top_p"] = sampling.top_p
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if tools:
            body["tools"] = list(tools)
        if self.backend == "openrouter" and (self._provider or tools):  # not every provider of a model takes tools
            body["provider"] = self._provider | ({"require_parameters": True} if tools else {})
        return merged(body, self._extra_body)

    def sampling_sent(self, sampling: Sampling) -> dict[str, Any]:
        """{"max_tokens", "temperature", "top_p", "seed"}, with None for what is never sent."""
        sent = asdict(sampling)
        return sent | {"temperature": None, "top_p": None} if self._wants_new_names else sent

    @property
    def _wants_new_names(self) -> bool:
        at_openai = urlsplit(self.endpoint).hostname == "api.openai.com"
        return at_openai and re.match(r"(o\d|gpt-5)", self.model) is not None

    @property
    def notes(self) -> list[str]:
        """What a user should know before the run starts."""
        if self._wants_new_names:
            return [f"{self.model} takes no temperature and no top_p: they are not sent"]
        return self.client.notes

    async def complete(
        self, messages: list[Message], sampling: Sampling, tools: Sequence[ToolSchema] = ()
    ) -> Completion:
        """One answer. Raises RequestRejected, TransientError, Throttled or TeacherUnavailable."""
        status, headers, raw = await self.client.post("/chat/completions", self.body(messages, sampling, tools))
        try:
            return parse_answer(status, headers, raw, sampling.max_tokens, turn=len(messages))
        except TeacherError as error:
            raise self.client.told(error) from None

    async def price(self) -> Price | None:
        """The model's price in the provider's list; None when there is no list, or it does not name the model."""
        return await self.client.price(self.model)

    async def credit_left_usd(self) -> float | None:
        """What OpenRouter still lets this key spend; None elsewhere, or without a limit."""
        if self.backend != "openrouter":
            return None
        found = await self.client.get("/key")
        data = found.get("data") if isinstance(found, dict) else None
        left = data.get("limit_remaining") if isinstance(data, dict) else None
        return float(left) if isinstance(left, int | float) else None

    def drain(self) -> None:
        """Requests begin at once; there is nothing to cancel."""

    async def aclose(self) -> None:
        await self.client.aclose()


def merged(body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body with `extra` laid over it, objects within objects merged ("provider": {...})."""
    for key, value in extra.items():
        here = body.get(key)
        body[key] = merged(dict(here), value) if isinstance(here, dict) and isinstance(value, dict) else value
    return body
