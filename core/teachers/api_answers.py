"""What a chat API answers: pure functions of what arrived. Each answer is a `Completion` or the error that says what to
do about it."""

import email.utils
import time
from collections.abc import Mapping
from typing import Any

import orjson

from ..data.text import one_line
from ..errors import RequestRejected, TeacherError, TeacherUnavailable, Throttled, TransientError
from .protocol import Completion, Usage, split_thinking
from .tool_calls import read_calls

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
ECHOED = ("reasoning_details", "reasoning_content")
"""Keys of an answer that its server wants back in later turns (OpenRouter; DeepSeek, Moonshot)."""
BY_STATUS = {401: "authentication", 402: "payment", 403: "refused_by_provider", 404: "not_found", 413: "context_length"}


def parse_answer(status: int, headers: Mapping[str, str], raw: bytes, max_tokens: int, *, turn: int = 0) -> Completion:
    """What arrived -> an answer. Raises the TeacherError that says what to do about it.

    turn: see `with_ids`.
    """
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
    if isinstance(content, list) and content and isinstance(content[0], dict) and content[0].get("error"):
        content = content[0]  # Gemini's errors come in a list
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
    completion = _completion(choice, usage, cost_usd, turn)
    check_usable(completion, max_tokens)
    return completion


def _completion(choice: dict[str, Any], usage: Usage, cost_usd: float | None, turn: int) -> Completion:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise TransientError("broken_answer", "a choice without a message", billed=True, cost_usd=cost_usd)
    text = message.get("content")
    if isinstance(text, list):  # parts
        text = "".join(str(part.get("text") or "") for part in text if isinstance(part, dict))
    reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
    calls, raw_calls = read_calls(message, turn)
    echo = {key: message[key] for key in ECHOED if message.get(key)}
    if raw_calls:
        echo["tool_calls"] = raw_calls
    finish_reason = str(choice.get("finish_reason") or "stop")
    if calls and finish_reason in ("stop", "function_call"):
        finish_reason = "tool_calls"
    return split_thinking(
        Completion(
            text=text if isinstance(text, str) else "",
            finish_reason=finish_reason,
            reasoning=reasoning if isinstance(reasoning, str) else orjson.dumps(reasoning).decode(),
            tool_calls=calls,
            echo=echo,
            usage=usage,
            cost_usd=cost_usd,
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
    codes. What is to be done about each is said by the class: see `core.errors`.
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
    said = one_line(f"{status}: {message}", 2000)  # a server's words must not steer a terminal
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
        if status == 503 and wait_s is None:  # down, perhaps for good: attempts are counted
            return TransientError("overloaded", said)
        return Throttled("rate_limit" if status == 429 else "overloaded", said, retry_after_s=wait_s)
    if availability.get("retryable") is True or status == 408 or status >= 500:
        late = status in (408, 504)  # whether these are billed, nobody says
        return TransientError("timeout" if late else "upstream_error", said, billed=late)
    return RequestRejected(REASONS.get(name) or REASONS.get(kind) or BY_STATUS.get(status, "invalid_request"), said)


def _not_json(status: int, headers: Mapping[str, str], raw: bytes) -> TeacherError:
    """A body that is no JSON object: a truncated answer, a gateway's error page, or no API at all."""
    text = raw[:200].decode("utf-8", "replace").strip()
    is_page = "html" in headers.get("content-type", "") or text.lower().startswith(("<!doctype", "<html"))
    if status in (401, 402, 408, 413, 422, 429) or status >= 500 or (status == 400 and not is_page):
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
