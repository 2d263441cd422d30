"""Teachers behind an OpenAI-compatible chat API: OpenRouter, OpenAI, NVIDIA, and any server with --base-url.

aiohttp, not httpx: at 500 requests in flight an httpx pool spends ten times the processor time of the requests
themselves (encode/httpcore #1035), and aiohttp halves what is left.
"""

import email.utils
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from ..data.environment import credential, redacted, require_credential
from ..errors import RequestRejected, TeacherError, TeacherUnavailable, Throttled, TransientError
from .protocol import Completion, Message, Sampling, Usage, split_thinking

ENDPOINTS = {
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "nvidia": ("https://integrate.api.nvidia.com/v1", "NVIDIA_API_KEY"),
}
LONGEST_WAIT_S = 600
"""A teacher that wants a longer silence than this (a daily quota) ends the run."""

REASONS = {
    "context_length_exceeded": "context_length",
    "string_too_long": "context_length",
    "payload_too_large": "context_length",
    "content_policy_violation": "refused_by_provider",
    "permission_denied": "refused_by_provider",
    "refusal": "refused_by_provider",
}
BY_STATUS = {401: "authentication", 402: "payment", 403: "refused_by_provider", 404: "not_found", 413: "context_length"}


@dataclass(frozen=True)
class Price:
    """USD per token, and where that was found."""

    prompt: float
    completion: float
    source: str

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """USD for so many tokens."""
        return self.prompt * prompt_tokens + self.completion * completion_tokens


class ApiTeacher:
    """A `Completer` over HTTP. The key goes to the configured host only: redirects are refused, never followed."""

    concurrency = None
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
        """Raises MissingKey when the provider needs a key and none is set."""
        home, key_name = ENDPOINTS[backend]
        self.model, self.backend = model, backend
        self.endpoint = base_url or home
        self._extra_body = dict(extra_body or {})
        self._provider = {  # OpenRouter's routing; without require_parameters it ignores a seed without a word
            name: True
            for name, asked in (
                ("enforce_distillable_text", require_distillable),
                ("require_parameters", require_parameters),
            )
            if asked
        }
        key_name = api_key_env or key_name
        if base_url and not api_key_env:  # servers of one's own often have no key
            self._key = credential(key_name)
        else:
            self._key = require_credential(key_name, f"{urlsplit(self.endpoint).hostname} needs it")
        place = "the environment" if os.environ.get(key_name) else f".env in {Path.cwd()}"
        self._key_hint = f"It came as {key_name} from {place}" if self._key else f"None was sent: set {key_name}"
        self.identity = {
            "backend": backend,
            "model": model,
            "endpoint": self.endpoint,
            "extra_body": self._extra_body,
            "require_distillable": require_distillable,
        }
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(30, timeout_s))
        self._timeout_s = timeout_s
        self._connections = connections
        self._session_: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._session_ is None:  # a session belongs to the running loop
            headers = {"content-type": "application/json"}
            if self._key:
                headers["authorization"] = f"Bearer {self._key}"
            self._session_ = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections + 2, keepalive_timeout=60),
                timeout=self._timeout,
                headers=headers,
                proxy=environment_proxy(self.endpoint),
                auto_decompress=True,
            )
        return self._session_

    async def prepare(self, note: Callable[[str], None]) -> None:
        """Nothing to load."""

    def body(self, messages: list[Message], sampling: Sampling) -> dict[str, Any]:
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
        if self.backend == "openrouter" and self._provider:
            body["provider"] = self._provider
        return merged(body, self._extra_body)

    @property
    def _wants_new_names(self) -> bool:
        at_openai = urlsplit(self.endpoint).hostname == "api.openai.com"
        return at_openai and re.match(r"(o\d|gpt-5)", self.model) is not None

    @property
    def notes(self) -> list[str]:
        """What a user should know before the run starts."""
        if self._wants_new_names:
            return [f"{self.model} takes no temperature and no top_p: they are not sent"]
        url = urlsplit(self.endpoint)
        loopback = url.hostname in ("localhost", "127.0.0.1", "::1")
        if self._key and url.scheme == "http" and not loopback:
            return [f"warning: the API key goes to {url.hostname} unencrypted (http)"]
        return []

    async def complete(self, messages: list[Message], sampling: Sampling) -> Completion:
        """One answer. Raises RequestRejected, TransientError, Throttled or TeacherUnavailable."""
        data = orjson.dumps(self.body(messages, sampling))
        url = self.endpoint + "/chat/completions"
        try:
            async with self._session.post(url, data=data, allow_redirects=False) as response:
                raw = await response.read()
                status, headers = response.status, response.headers
        except aiohttp.ConnectionTimeoutError:
            raise TransientError("connection", f"cannot connect to {self.endpoint} in time") from None
        except TimeoutError:
            raise TransientError("timeout", f"no answer within {self._timeout_s:g} s", billed=True) from None
        except aiohttp.ClientConnectorError as error:
            raise TransientError("connection", f"cannot connect to {self.endpoint}: {error.strerror}") from None
        except aiohttp.InvalidURL:
            raise TeacherUnavailable("not_an_api", f"{self.endpoint} is not a URL", usage=True) from None
        except (aiohttp.ClientError, OSError) as error:
            message = f"the connection broke: {type(error).__name__}"
            raise TransientError("connection", message, billed=True) from None
        try:
            return parse_answer(status, headers, without_key(raw, self._key), sampling.max_tokens)
        except TeacherError as error:
            hint = f". {self._key_hint}" if error.reason == "authentication" else ""
            error.args = (redacted(str(error), self._key) + hint,)
            raise

    async def price(self) -> Price | None:
        """The model's price in the provider's list; None when there is no list, or it does not name the model."""
        found = await self._get("/models")
        rows = found.get("data") if isinstance(found, dict) else None
        for row in rows if isinstance(rows, list) else []:
            pricing = row.get("pricing") if isinstance(row, dict) else None
            if isinstance(pricing, dict) and row.get("id") == self.model:
                try:
                    price = Price(float(pricing["prompt"]), float(pricing["completion"]), f"{self.endpoint}/models")
                except (KeyError, TypeError, ValueError):
                    return None
                return price if price.prompt >= 0 and price.completion >= 0 else None  # -1: "depends" (a router)
        return None

    async def credit_left_usd(self) -> float | None:
        """What OpenRouter still lets this key spend; None elsewhere, or without a limit."""
        if self.backend != "openrouter":
            return None
        found = await self._get("/key")
        data = found.get("data") if isinstance(found, dict) else None
        left = data.get("limit_remaining") if isinstance(data, dict) else None
        return float(left) if isinstance(left, int | float) else None

    async def _get(self, path: str) -> Any:
        """The JSON at a free endpoint, or None: prices are a convenience, so that a failure is not an error."""
        try:
            timeout = aiohttp.ClientTimeout(total=min(15, self._timeout_s))
            async with self._session.get(self.endpoint + path, timeout=timeout, allow_redirects=False) as response:
                return orjson.loads(await response.read()) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError):
            return None

    def drain(self) -> None:
        """Requests begin at once; there is nothing to cancel."""

    async def aclose(self) -> None:
        if self._session_ is not None:
            await self._session_.close()


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment (HTTPS_PROXY, NO_PROXY, ...) names for a URL.

    Found once and here, since aiohttp's trust_env looks it up for every request, in two threads, which costs as much
    as the request; and it would send a password of ~/.netrc to a server that has no key.
    """
    host = urlsplit(url)
    return None if proxy_bypass(host.hostname or "") else getproxies().get(host.scheme)


def without_key(raw: bytes, key: str | None) -> bytes:
    """What arrived, with the API key blanked out wherever a server echoes it: it has no place in training data.

    A short placeholder such as "ollama" is no secret, and may be a word of an answer.
    """
    return raw.replace(key.encode(), b"***") if key and len(key) >= 16 else raw


def merged(body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body with `extra` laid over it, objects within objects merged ("provider": {...})."""
    for key, value in extra.items():
        here = body.get(key)
        body[key] = merged(dict(here), value) if isinstance(here, dict) and isinstance(value, dict) else value
    return body


# ---- answers and errors: pure functions of what arrived ----------------------------------------------------------


def parse_answer(status: int, headers: Mapping[str, str], raw: bytes, max_tokens: int) -> Completion:
    """What arrived -> an answer. Raises the TeacherError that says what to do about it."""
    if 300 <= status < 400:
        raise TeacherUnavailable(
            "redirect",
            f"the server answers {status} and points to {headers.get('location', 'nowhere')}; the key stays here. "
            "If that address is right, use it as --base-url.",
            usage=True,
        )
    try:
        content = orjson.loads(raw)
    except orjson.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise _not_json(status, headers, raw)
    error = content.get("error")
    if status != 200 or error:
        failed = error_of(status, headers, error if error else content)
        if status == 200:
            failed.cost_usd = usage_of(content.get("usage"))[1]
        raise failed
    choices = content.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise TransientError("broken_answer", "an answer without choices", billed=True)
    choice = choices[0]
    usage, cost_usd = usage_of(content.get("usage"))
    if choice.get("error"):
        failed = error_of(200, headers, choice["error"])
        failed.billed, failed.cost_usd = True, cost_usd
        raise failed
    completion = _completion(choice, usage, cost_usd, content)
    check_usable(completion, max_tokens)
    return completion


def _completion(choice: dict[str, Any], usage: Usage, cost_usd: float | None, content: dict[str, Any]) -> Completion:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise TransientError("broken_answer", "a choice without a message", billed=True, cost_usd=cost_usd)
    text = message.get("content")
    if isinstance(text, list):  # parts
        text = "".join(str(part.get("text") or "") for part in text if isinstance(part, dict))
    reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
    return split_thinking(
        Completion(
            text=text if isinstance(text, str) else "",
            finish_reason=str(choice.get("finish_reason") or "stop"),
            reasoning=reasoning if isinstance(reasoning, str) else orjson.dumps(reasoning).decode(),
            tool_calls=tool_calls if isinstance(tool_calls := message.get("tool_calls"), list) else [],
            usage=usage,
            cost_usd=cost_usd,
            served_by=str(content.get("provider") or ""),
            refusal=str(message.get("refusal") or ""),
        )
    )


def usage_of(usage: Any) -> tuple[Usage, float | None]:
    """Tokens and cost of an answer; OpenRouter states the cost as usage.cost (credits are USD)."""
    if not isinstance(usage, dict):
        return Usage(), None
    details = _dict(usage.get("completion_tokens_details"))
    cost = usage.get("cost")
    tokens = Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _count(details.get("reasoning_tokens")),
    )
    return tokens, float(cost) if isinstance(cost, int | float) and 0 <= cost < float("inf") else None


def check_usable(completion: Completion, max_tokens: int) -> None:
    """Raises when there is nothing to train on: TransientError for what a retry may cure, else RequestRejected."""
    paid = {"billed": True, "cost_usd": completion.cost_usd}
    if completion.finish_reason == "error":
        raise TransientError("upstream_error", "the teacher broke off in mid-answer", **paid)
    if completion.finish_reason == "content_filter":
        raise RequestRejected("content_filter", "the provider's content filter cut the answer", **paid)
    if completion.text.strip() or completion.tool_calls:
        return
    if completion.refusal:
        raise RequestRejected("refusal", f"the teacher refused: {completion.refusal}", **paid)
    if completion.finish_reason == "length":
        raise RequestRejected(
            "no_room_for_answer", f"reasoning used all {max_tokens} tokens; raise --max-tokens", **paid
        )
    raise TransientError("empty_answer", "an empty answer", **paid)


def error_of(status: int, headers: Mapping[str, str], error: Any) -> TeacherError:
    """The error that an error object means: OpenRouter's shape, OpenAI's, or a bare text.

    Within a 200 the status is the object's `code`. Source: OpenRouter's errors-and-debugging page and OpenAI's error
    codes; see the table in docs of `TeacherError`'s subclasses for what the engine does with each.
    """
    detail = error if isinstance(error, dict) else {"message": str(error)}
    metadata = _dict(detail.get("metadata"))
    availability = _dict(detail.get("availability"))
    code = detail.get("code")
    if status == 200:
        status = _count(code) or _count(detail.get("http_status")) or 502
    kind = str(metadata.get("error_type") or detail.get("error_type") or detail.get("type") or "")
    name = code if isinstance(code, str) else kind
    message = str(detail.get("message") or detail.get("detail") or orjson.dumps(error)[:300].decode("utf-8", "replace"))
    for part in ("provider_name", "raw", "reasons"):
        if metadata.get(part):
            message += f" ({part}: {str(metadata[part])[:200]})"
    if availability.get("fallback_models"):
        message += f" (available instead: {availability['fallback_models']})"
    said = f"{status}: {message}"
    wait_s = retry_after_s(headers, availability.get("retry_after") or metadata.get("retry_after_seconds"))
    source = str(metadata.get("limit_source") or "")

    if status == 401:
        return TeacherUnavailable("authentication", f"the provider refuses the API key ({said})", usage=True)
    if status == 402:
        if source == "openrouter_in_flight_budget":
            return Throttled("in_flight_budget", said, retry_after_s=wait_s)
        if metadata.get("reason") == "weight_exceeds_budget" or "weight_exceeds_budget" in message:
            return RequestRejected("over_budget", f"{said}. Lower --max-tokens, or shorten the prompt")
        return TeacherUnavailable("payment", f"out of money ({said}). Add credit, then run the same command")
    if status == 403 and (source or "budget limit" in message.lower()):
        return TeacherUnavailable("payment", f"a spending cap is reached ({said})")
    if status == 429 or status == 503:
        if name == "insufficient_quota":
            return TeacherUnavailable("payment", f"out of quota ({said}). Add credit, then run the same command")
        if wait_s is None and status == 429:
            wait_s = _until_reset_s(headers)
        if wait_s is not None and wait_s > LONGEST_WAIT_S:
            return TeacherUnavailable(
                "quota", f"the provider wants {wait_s / 60:.0f} minutes of silence ({said}). Run the same command then"
            )
        return Throttled("rate_limit" if status == 429 else "overloaded", said, retry_after_s=wait_s)
    if availability.get("retryable") is True or status == 408 or status >= 500:
        late = status in (408, 504)  # whether these are billed, nobody says
        return TransientError("timeout" if late else "upstream_error", said, billed=late)
    return RequestRejected(REASONS.get(name) or REASONS.get(kind) or BY_STATUS.get(status, "invalid_request"), said)


def _not_json(status: int, headers: Mapping[str, str], raw: bytes) -> TeacherError:
    """A body that is no JSON object: a truncated answer, a gateway's error page, or no API at all."""
    text = raw[:200].decode("utf-8", "replace").strip()
    is_page = "html" in headers.get("content-type", "") or text.lower().startswith(("<!doctype", "<html"))
    if status in (401, 402, 408, 413, 422, 429) or status >= 500:
        return error_of(status, headers, " ".join(text.split()) or "no explanation")
    if is_page or (status != 200 and not text.startswith("{")):
        return TeacherUnavailable(
            "not_an_api",
            f"the server answers {status} with {'a web page' if is_page else 'plain text'}, not JSON: "
            f"{' '.join(text.split())[:100]!r}. Is --base-url right? It usually ends in /v1.",
            usage=True,
        )
    return TransientError("broken_answer", "the answer's JSON is cut off or broken", billed=True)


def retry_after_s(headers: Mapping[str, str], hint: Any = None) -> float | None:
    """Seconds of silence that the server asks for: Retry-After as seconds or an HTTP date (RFC 9110, 10.2.3), else the
    hint in its body."""
    value = headers.get("retry-after")
    if value:
        try:
            return max(0.0, float(value))
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            pass
    return max(0.0, float(hint)) if isinstance(hint, int | float) else None


def _until_reset_s(headers: Mapping[str, str]) -> float | None:
    """X-RateLimit-Reset (ms since 1970) where nothing is left: a daily quota's reset is hours away."""
    try:
        if int(headers.get("x-ratelimit-remaining", 1)) > 0:
            return None
        return max(0.0, int(headers["x-ratelimit-reset"]) / 1000 - time.time())
    except (KeyError, ValueError):
        return None


def _count(value: Any) -> int:
    """A number of tokens or a status; 0 for anything else that a server may have put there."""
    return int(value) if isinstance(value, int | float) and 0 <= value < 2**53 else 0


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
