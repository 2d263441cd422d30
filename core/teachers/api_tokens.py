"""Tokens as APIs name them -> their bytes, and the log-probabilities that come with them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import TransientError

Named = int | bytes
"""A token: its id in the teacher's vocabulary, where the server tells it, else its bytes."""

PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
ESCAPED = re.compile(r"\\x([0-9a-fA-F]{2})")
TOKEN_ID = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True)
class Told:
    """What a server says of one position, in nats.

    token, logprob: the token that is there; None for a logprob that the server does not tell.
    top: the most probable tokens in the order in which they came, `token` among them or not.
    """

    token: Named
    logprob: float | None
    top: Sequence[tuple[Named, float]] = ()


def named(token: Any, data: Any = None, token_id: Any = None) -> Named:
    """One token of an answer. data: its bytes as a list of numbers, where the server tells them.

    Written tokens may be "token_id:123" (vLLM's return_tokens_as_token_ids), "bytes:\\xe2\\x80" (OpenAI's for a part of
    a character), "<0xE2>" (SentencePiece's byte tokens); anything else is its own text.

    Raises TransientError for what is no token.
    """
    if isinstance(token_id, int) and token_id >= 0:
        return token_id
    if isinstance(token, str) and (found := TOKEN_ID.fullmatch(token)):
        return int(found.group(1))
    if isinstance(data, list) and data and all(isinstance(each, int) and 0 <= each < 256 for each in data):
        return bytes(data)
    if not isinstance(token, str):
        raise TransientError("broken_answer", f"a token that is no text: {str(token)[:50]!r}", billed=True)
    if found := PIECE.fullmatch(token):
        return bytes([int(found.group(1), 16)])
    if token.startswith("bytes:\\x"):
        return bytes(int(each, 16) for each in ESCAPED.findall(token))
    return token.encode("utf-8", "surrogatepass")


def told_of(content: Any) -> list[Told]:
    """The positions of `choices[0].logprobs.content`, as chat APIs give them (OpenAI's API reference, "logprobs").

    Raises TransientError when there are none, or they are not of that form.
    """
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise TransientError("no_logprobs", "an answer without log-probabilities", billed=True)
    return [
        Told(
            _token(entry),
            _number(entry.get("logprob")),
            [_alternative(each) for each in _list(entry.get("top_logprobs"))],
        )
        for entry in content
    ]


def _list(value: Any) -> list[Any]:
    """Null is an empty one."""
    if value is None or isinstance(value, list):
        return value or []
    raise TransientError("broken_answer", f"top_logprobs that are no list: {str(value)[:50]!r}", billed=True)


def _alternative(entry: Any) -> tuple[Named, float]:
    logprob = _number(entry.get("logprob")) if isinstance(entry, dict) else None
    if logprob is None:
        raise TransientError("no_logprobs", "an alternative without a log-probability", billed=True)
    return _token(entry), logprob


def _token(entry: dict[str, Any]) -> Named:
    return named(entry.get("token"), entry.get("bytes"), entry.get("token_id"))


def _number(value: Any) -> float | None:
    """A log-probability; None for null and for what is none (NaN, a positive number beyond rounding)."""
    if not isinstance(value, int | float) or not value <= 1e-3:
        return None
    try:
        return min(float(value), 0.0)
    except OverflowError:  # JSON knows integers that no float can hold
        return -math.inf
