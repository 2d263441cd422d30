"""How scoring servers and chat servers write log-probabilities on the wire. See `scoring_server` for the sources."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .scoring_model import Place

UNLIKELY = -9999.0
"""What OpenAI's reference says for a token outside the most probable ones, and vLLM writes for -inf."""


@dataclass(frozen=True)
class Tokens:
    """How the tokens of an answer are written.

    spelled: (V,) the bytes of each token.
    style: "text" (parts of characters become U+FFFD), "ids" (token_id:123, vLLM's return_tokens_as_token_ids),
        "bytes" (bytes:\\xe2\\x82 for parts of characters, OpenAI's completions), "pieces" (<0xE2><0x82> for them).
    vllm: a part of a character is written "", and the token that completes it as the whole character; "bytes" fields
        hold those of what is written. So two tokens may have one name.
    ids: fields with token ids are written where the format has them.
    """

    spelled: Sequence[bytes]
    style: str = "text"
    vllm: bool = False
    ids: bool = True

    def text(self, token: int, open_bytes: bytes = b"") -> str:
        """open_bytes: of the tokens before it that have not yet completed a character."""
        spelled = self.spelled[token]
        if not self.vllm or is_text(spelled):
            return spelled.decode(errors="replace")
        whole = open_bytes + spelled
        return whole.decode() if is_text(whole) else ""

    def name(self, token: int, open_bytes: bytes = b"") -> str:
        spelled = self.spelled[token]
        if self.style == "ids":
            return f"token_id:{token}"
        if self.style == "bytes" and not is_text(spelled):
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
        if self.style == "pieces" and not is_text(spelled):
            return "".join(f"<0x{byte:02X}>" for byte in spelled)
        return self.text(token, open_bytes)

    def entry(self, token: int, logprob: float, open_bytes: bytes = b"") -> dict[str, Any]:
        """A token as chats have it."""
        name = self.name(token, open_bytes)
        return {"token": name, "logprob": logprob, "bytes": list(name.encode() if self.vllm else self.spelled[token])}

    def join(self, tokens: Sequence[int]) -> str:
        return b"".join(self.spelled[token] for token in tokens).decode(errors="replace")

    def opened(self, places: Sequence[Place]) -> list[bytes]:
        """For each place the bytes before it that have not yet completed a character."""
        before = [b""]
        for place in places:
            spelled = self.spelled[place.token]
            whole = before[-1] + spelled
            before.append(b"" if is_text(spelled) or is_text(whole) else whole)
        return before[:-1]


def is_text(spelled: bytes) -> bool:
    """Whether bytes are whole characters."""
    try:
        spelled.decode()
    except UnicodeDecodeError:
        return False
    return True


def _own_first(place: Place) -> dict[int, float]:
    """The token itself, then the most probable ones. Without the token itself where the server left it out."""
    own = {} if place.logprob is None else {place.token: place.logprob}
    return own | dict(place.top)


def vllm_prompt(places: Sequence[Place], tokens: Tokens) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`."""
    return [
        {
            str(token): {
                "logprob": logprob,
                "rank": place.rank if token == place.token else rank[token],
                "decoded_token": tokens.text(token, before),
            }
            for token, logprob in _own_first(place).items()
        }
        or None
        for place, before in zip(places, tokens.opened(places), strict=True)
        for rank in ({token: n for n, (token, _) in enumerate(place.top, 1)},)
    ]


def legacy(places: Sequence[Place], tokens: Tokens, *, own: bool, ids: bool) -> dict[str, Any]:
    """OpenAI's `logprobs` of a completion.

    own: the token itself stands in top_logprobs, too.   ids: with `token_ids`, as Together and Fireworks have it.
    """
    names: list[str] = []
    tops: list[dict[str, float]] = []
    for place, before in zip(places, tokens.opened(places), strict=True):
        names.append(tokens.name(place.token, before))
        named = _own_first(place) if own else dict(place.top)
        # Names may be equal, and then the last of them, the least probable, stays.
        tops.append({tokens.name(token, before): logprob for token, logprob in named.items()})
    written: dict[str, Any] = {
        "tokens": names,
        "token_logprobs": [place.logprob for place in places],
        "top_logprobs": [top or None for top in tops],
        "text_offset": [0, *accumulate(map(len, names))][: len(names)],
    }
    if ids and tokens.ids:
        written["token_ids"] = [place.token for place in places]
    return written


def chat_content(places: Sequence[Place], tokens: Tokens, *, top: int, vllm: bool) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat completion.

    vllm: the drawn token comes first in top_logprobs, at the expense of the last of them.
    """
    content: list[dict[str, Any]] = []
    for place, before in zip(places, tokens.opened(places), strict=True):
        named = list(_own_first(place).items())[:top] if vllm else place.top
        logprob = UNLIKELY if place.logprob is None else place.logprob
        entry = tokens.entry(place.token, logprob, before)
        if vllm and tokens.style == "ids":
            entry["bytes"] = list(tokens.text(place.token, before).encode())
        content.append({**entry, "top_logprobs": [tokens.entry(*one, before) for one in named]})
    return content


def fireworks_content(places: Sequence[Place], tokens: Tokens) -> list[dict[str, Any]]:
    """Fireworks' `logprobs.content`, also of an echoed prompt: as a chat's, with ids and offsets."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return tokens.entry(token, logprob) | ({"token_id": token} if tokens.ids else {})

    content: list[dict[str, Any]] = []
    offset = 0
    for place in places:
        # Its schema allows no null. Nothing says what stands at the first token of a text: here it is 0.
        known = place.logprob if place.logprob is not None else UNLIKELY if place.top else 0.0
        own = entry(place.token, known)
        content.append(own | {"text_offset": offset, "top_logprobs": [entry(*one) for one in place.top]})
        offset += len(own["token"])
    return content


def llama_content(places: Sequence[Place], tokens: Tokens, ends: Collection[int]) -> list[dict[str, Any]]:
    """llama-server's `logprobs.content`: with ids, the end of a turn without a text. A token that leaves a character
    open has no entry; the one that completes it carries the whole character, and its own log-probabilities."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        shown = {"token": "", "bytes": []} if token in ends else {}
        return {"id": token, **tokens.entry(token, logprob), **shown}

    content: list[dict[str, Any]] = []
    for place, before in zip(places, tokens.opened(places), strict=True):
        whole = before + tokens.spelled[place.token]
        if is_text(whole):
            own = entry(place.token, UNLIKELY if place.logprob is None else place.logprob)
            if before:
                own |= {"token": whole.decode(), "bytes": list(whole)}
            content.append(own | {"top_logprobs": [entry(*one) for one in place.top]})
    return content


Triple = tuple[float | None, int, str | None]


def sglang(
    places: Sequence[Place], tokens: Tokens, *, top: bool, text: bool
) -> tuple[list[Triple], list[list[Triple] | None]]:
    """SGLang's `input_token_logprobs` and `input_top_logprobs` (or those of the output)."""

    def triple(token: int, logprob: float | None) -> Triple:
        return logprob, token, tokens.text(token) if text else None

    own = [triple(place.token, place.logprob) for place in places]
    named = [[triple(*one) for one in place.top] or None for place in places] if top else []
    return own, named
