"""How servers score a given text: what is sent, and what the log-probabilities that come back say.

Pure functions of what was asked and what arrived. Whatever a server writes, a text's scores become the same arrays.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Any, ClassVar

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from ..data.text import one_line
from ..distillation.losses import LOG_ZERO
from ..errors import RequestRejected, TeacherError, TransientError
from .api_answers import error_of, parse_answer, usage_of
from .api_client import Reply
from .api_tokens import Named, named
from .protocol import Usage
from .scorer import ScoreRequest
from .teacher_tokens import NONE, TeacherTokens, padded

IMPOSSIBLE = -9999.0
"""What servers write for a probability of 0, since JSON has no infinity (vLLM, OpenAI's reference)."""
ROUNDING = 1e-3
"""How far rounding lifts a log-probability, or the sum of probabilities, above what they can be."""
ODD = (TypeError, ValueError, OverflowError, RecursionError)
"""What Python and NumPy raise at a list for a number, a number of 400 digits and the like."""


@dataclass(frozen=True)
class Scored:
    """What a server says of the T tokens of a completion, in nats.

    picked: (T,) float32, of the tokens that are there.
    ids, logprobs: (T, k) int64 and float32, of the k most probable ones, the most probable first; where fewer are told
        the row ends in -1 and LOG_ZERO.
    """

    picked: NDArray[np.float32]
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class Told:
    """An answer to one request. scores: of each text, or why there are none.   cost_usd: where the server says so."""

    scores: list[Scored | TeacherError]
    usage: Usage
    cost_usd: float | None

    def besides(self, usage: Usage) -> "Told":
        """With the tokens of another request that was needed for it."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        both = Usage(self.usage.prompt_tokens + prompt, self.usage.completion_tokens + completion)
        return replace(self, usage=both)


class Wire(ABC):
    """One protocol.

    path: of the endpoint; `root`: it begins at the server's root, not at /v1.   names: the teacher's tokenizer.
    top_k: how many of the most probable tokens are wanted; 0 for none.
    """

    path: ClassVar[str] = "/completions"
    root: ClassVar[bool] = False

    def __init__(self, names: TeacherTokens, top_k: int) -> None:
        self.names, self.top_k = names, top_k

    @abstractmethod
    def body(self, model: str, texts: Sequence[ScoreRequest], temperature: float, *, check: bool) -> dict[str, Any]:
        """The request for these texts. check: the answer shall show whose tokenizer it is, where that costs
        something."""

    def check(self, text: ScoreRequest) -> None:  # noqa: B027
        """Raises RequestRejected for a text that cannot be asked for in this protocol."""

    @abstractmethod
    def read(self, raw: bytes, texts: Sequence[ScoreRequest], *, check: bool) -> Told:
        """The body of a 200. Raises what `told` raises."""

    def collapsed(self, told: Told) -> bool:
        """Whether an answer may be bad because it was asked to show whose tokenizer it is."""
        return False

    def told(self, reply: Reply, texts: Sequence[ScoreRequest], *, check: bool = False) -> Told:
        """What the server says of each text. check: look at the server's tokenizer, too.

        Raises the TeacherError that says what to do about an answer that is none. What is wrong with a single text
        stands in its place: "other_tokens", "other_tokenizer", "no_logprobs", "no_sampled_token", "not_logprobs".
        """
        status, headers, raw = reply
        if status != 200:
            parse_answer(status, headers, raw, 0)  # raises what the error means
        try:
            return self.read(raw, texts, check=check)
        except ErrorBody as error:
            failed = error_of(200, headers, error.said)
            failed.cost_usd = error.cost_usd
            raise failed from None
        except (msgspec.DecodeError, json.JSONDecodeError):
            parse_answer(status, headers, raw, 0)  # a web page, an answer that is cut off
            raise _broken("not of this protocol's form") from None
        except ODD as error:
            raise _odd(error) from None

    def scored(
        self,
        text: ScoreRequest,
        ids: NDArray[np.int64],
        logprobs: NDArray[np.float64],
        picked: NDArray[np.float64] | None,
        advice: str,
    ) -> Scored:
        """Check and order what was told. ids, logprobs: (T, W) in any order; NONE or NaN where nothing is told.

        picked: (T,), NaN for what is not told; None: the tokens that are there stand among `ids`.
        advice: what makes the server tell the token that is there.   Raises RequestRejected.
        """
        tokens = np.asarray(text.completion_ids)
        if picked is None:
            here = ids == tokens[:, None]
            if not here.any(1).all():
                place = int(np.argmin(here.any(1)))
                raise RequestRejected(
                    "no_sampled_token",
                    f"the server tells nothing of token {tokens[place]}, number {place} of the completion: it is not "
                    f"among the most probable ones. Its own log-probability must be told, too. {advice}",
                )
            picked = logprobs[np.arange(len(tokens)), here.argmax(1)]
        assert picked is not None
        if np.isnan(picked).any():
            place = int(np.argmax(np.isnan(picked)))
            raise RequestRejected(
                "no_sampled_token", f"null or NaN as the log-probability of token {place} of the completion. {advice}"
            )
        given = (ids >= 0) & (ids < self.names.width) & ~np.isnan(logprobs)
        ids = np.where(given, ids, NONE)
        logprobs = np.where(given, logprobs, -np.inf)
        largest = max(picked.max(initial=LOG_ZERO), logprobs.max(initial=LOG_ZERO))
        if largest > ROUNDING:
            raise _no_logprobs(f"{largest:g} is above 0")
        order = np.argsort(np.where(given, -logprobs, np.inf), axis=1, kind="stable")[:, : self.top_k]
        ids, logprobs = np.take_along_axis(ids, order, 1), np.take_along_axis(logprobs, order, 1)
        outside = ~(ids == tokens[:, None]).any(1)  # it is one more outcome then
        mass = np.exp(logprobs).sum(1) + np.exp(picked) * outside  # (T,)
        if (mass > 1 + ROUNDING).any():
            raise _no_logprobs(f"the probabilities at token {int(mass.argmax())} add up to {mass.max():.4f}")
        excess = np.log(np.maximum(mass, 1.0))
        logprobs = logprobs - excess[:, None]
        missing = ((0, 0), (0, self.top_k - ids.shape[1]))
        return Scored(
            _clipped(picked - excess),
            np.pad(ids, missing, constant_values=NONE),
            np.pad(_clipped(logprobs), missing, constant_values=LOG_ZERO),
        )

    def _each(self, texts: Sequence[ScoreRequest], one: Any) -> list[Scored | TeacherError]:
        """one(n, text) of every text, or the error that it raises."""
        scores: list[Scored | TeacherError] = []
        for number, text in enumerate(texts):
            try:
                scores.append(one(number, text))
            except TeacherError as error:
                scores.append(error)
            except ODD as error:
                scores.append(_odd(error))
        return scores

    def _checked_texts(self, text: ScoreRequest, texts: Sequence[str | None]) -> None:
        """Raises RequestRejected when the server reads the completion's ids as other texts."""
        other = self.names.spelt_otherwise(text.completion_ids, texts)
        if other is not None:
            place, written = other
            ours = self.names.table.pieces[place].decode(errors="replace")
            raise RequestRejected(
                "other_tokenizer",
                f"token {place} is {written!r} for the server, and {ours!r} for {self.names.table.name}",
            )


# ---- vLLM -------------------------------------------------------------------------------------------------------


class _Entry(msgspec.Struct, gc=False):
    logprob: float | None = None


LOGPROB = attrgetter("logprob")


class _Spelt(msgspec.Struct, gc=False):
    decoded_token: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    prompt_logprobs: list[msgspec.Raw] | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Any = None
    error: Any = None


class Vllm(Wire):
    """`prompt_logprobs` of vLLM's /completions: for each token of a prompt null (the first one) or
    {id: {"logprob", "rank", "decoded_token"}} of the k most probable tokens and the one that is there."""

    _answer = msgspec.json.Decoder(_Answer)
    _places = msgspec.json.Decoder(list[dict[int, _Entry] | None])
    _spelt = msgspec.json.Decoder(list[dict[int, _Spelt] | None])

    def body(self, model: str, texts: Sequence[ScoreRequest], temperature: float, *, check: bool) -> dict[str, Any]:
        ids = [[*text.prompt_ids, *text.completion_ids] for text in texts]
        return {
            "model": model,
            "prompt": ids[0] if len(ids) == 1 else ids,
            "max_tokens": 1,
            "temperature": temperature,
            "prompt_logprobs": self.top_k,
        }

    def read(self, raw: bytes, texts: Sequence[ScoreRequest], *, check: bool) -> Told:
        answer = _decoded(self._answer, raw)
        usage, cost_usd = usage_of(answer.usage)
        if answer.error:
            raise ErrorBody(answer.error, cost_usd)
        choices = {choice.index: choice.prompt_logprobs for choice in answer.choices}

        def one(number: int, text: ScoreRequest) -> Scored:
            places = choices.get(number)
            if not places:
                raise _none_told("Is it vLLM? Its answer has no prompt_logprobs")
            if len(places) not in (text.tokens, text.tokens + 1):
                raise _other_length(len(places), text)
            # Whole texts come back, and only the completions' positions are worth reading.
            tail = b"[" + b",".join(places[-len(text.completion_ids) :]) + b"]"
            found = _decoded(self._places, tail)
            if None in found:
                raise _none_told(f"token {found.index(None)} of the completion has null")
            if check:
                spelt = self._spelt.decode(tail)
                at = zip(spelt, text.completion_ids, strict=True)
                self._checked_texts(text, [(row or {}).get(place, _Spelt()).decoded_token for row, place in at])
            return self.scored(text, *_arrays([row for row in found if row is not None]), None, ADVICE_VLLM)

        return Told(self._each(texts, one), usage, cost_usd)


ADVICE_VLLM = "vLLM tells it by itself; what stands between it and this program must not take it out."


def _arrays(rows: list[dict[int, _Entry]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """As `padded`, for the many entries of vLLM."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    entries = chain.from_iterable(row.values() for row in rows)
    flat = np.array(list(map(LOGPROB, entries)), np.float64)  # None becomes NaN
    places = np.fromiter(chain.from_iterable(rows), np.int64, len(flat))
    width = int(lengths.max(initial=0))
    if (lengths == width).all():
        return places.reshape(-1, width), flat.reshape(-1, width)
    ids, logprobs = np.full((len(rows), width), NONE, np.int64), np.full((len(rows), width), np.nan)
    given = np.arange(width) < lengths[:, None]
    ids[given], logprobs[given] = places, flat
    return ids, logprobs


# ---- SGLang -----------------------------------------------------------------------------------------------------


class Sglang(Wire):
    """SGLang's own /generate: `input_token_logprobs` [[logprob, id, text], ...] and `input_top_logprobs`, a list of
    such for each token. The first one is null, whatever the place where they begin."""

    path = "/generate"
    root = True

    def body(self, model: str, texts: Sequence[ScoreRequest], temperature: float, *, check: bool) -> dict[str, Any]:
        many = len(texts) > 1
        ids = [[*text.prompt_ids, *text.completion_ids] for text in texts]
        starts = [len(text.prompt_ids) - 1 for text in texts]
        return {
            "input_ids": ids if many else ids[0],
            "sampling_params": {"max_new_tokens": 0, "temperature": temperature},
            "return_logprob": True,
            "logprob_start_len": starts if many else starts[0],
            "top_logprobs_num": self.top_k,
            "return_text_in_logprobs": check,
        }

    def read(self, raw: bytes, texts: Sequence[ScoreRequest], *, check: bool) -> Told:
        content = loads(raw)
        rows = content if isinstance(content, list) else [content]
        if len(rows) == 1 and isinstance(rows[0], dict) and rows[0].get("error"):
            raise ErrorBody(rows[0]["error"], None)
        if len(rows) != len(texts):
            raise _broken(f"{len(rows)} answers for {len(texts)} texts")
        metas = [_dict(_dict(row).get("meta_info")) for row in rows]
        usages = [usage_of(meta)[0] for meta in metas]
        usage = Usage(sum(one.prompt_tokens for one in usages), sum(one.completion_tokens for one in usages))
        return Told(self._each(texts, lambda number, text: self._one(metas[number], text, check)), usage, None)

    def collapsed(self, told: Told) -> bool:
        """With transformers 5, SGLang 0.5 makes one entry of all when it is asked for texts."""
        errors = [scored for scored in told.scores if isinstance(scored, TeacherError)]
        return any(error.reason != "other_tokenizer" for error in errors)

    def _one(self, meta: dict[str, Any], text: ScoreRequest, check: bool) -> Scored:
        count = len(text.completion_ids)
        own, top = meta.get("input_token_logprobs"), meta.get("input_top_logprobs")
        if not isinstance(own, list) or not own or (self.top_k and not isinstance(top, list)):
            raise _none_told("Its answer has no input_token_logprobs or no input_top_logprobs")
        own, top = own[-count:], top[-count:] if isinstance(top, list) and self.top_k else [None] * count
        if len(own) != count or len(top) != count:
            raise _other_length(len(text.prompt_ids) + min(len(own), len(top)), text)
        if not all(isinstance(row, list) and len(row) >= 2 for row in own):
            raise _broken("an entry of input_token_logprobs that is no list")
        for place, (row, token) in enumerate(zip(own, text.completion_ids, strict=True)):
            if row[1] != token:
                raise _other_tokens(place, token, row[1])
        if check:
            self._checked_texts(text, [row[2] if len(row) > 2 else None for row in own])
        picked = np.array([_number(row[0]) for row in own])
        return self.scored(
            text,
            *padded([_entries(row) for row in top]),
            picked,
            "SGLang writes null for what is not finite: look at its log, and at the number format of its weights.",
        )


def _entries(row: Any) -> dict[int, float]:
    """[[logprob, id, text], ...], or null."""
    entries = [] if row is None else row
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and len(entry) >= 2 and isinstance(entry[1], int) for entry in entries
    ):
        raise _broken("an entry of input_top_logprobs that is no list")
    return {entry[1]: _number(entry[0]) for entry in entries}


# ---- echo -------------------------------------------------------------------------------------------------------


class Echo(Wire):
    """`echo` and `logprobs` of /completions, with a text as the prompt: OpenAI's old completions, as llama-cpp-python
    speaks them, and Together, which answers them in `prompt`."""

    ids: ClassVar[bool] = False
    """Whether prompts go as token ids."""

    def body(self, model: str, texts: Sequence[ScoreRequest], temperature: float, *, check: bool) -> dict[str, Any]:
        prompts = [self._prompt(text) for text in texts]
        return {
            "model": model,
            "prompt": prompts[0] if len(prompts) == 1 else prompts,
            "max_tokens": 1,  # 0 is "as many as there is room for" to llama-cpp-python
            "temperature": temperature,
            "echo": True,
            **self._wanted(),
        }

    def _wanted(self) -> dict[str, Any]:
        return {"logprobs": max(1, self.top_k)}  # 0 is "none" to some

    def check(self, text: ScoreRequest) -> None:
        """What is no text, or would be read in other tokens, is known before it is paid for."""
        self._prompt(text)

    def _prompt(self, text: ScoreRequest) -> list[int] | str:
        """Raises RequestRejected for bytes that are no text, and for a text that reads as other ids."""
        ids = [*text.prompt_ids, *text.completion_ids]
        if self.ids:
            return ids
        try:
            written = self.names.written(ids)
        except UnicodeDecodeError:
            raise RequestRejected(
                "no_text", "an answer with half a character in it cannot be sent to a server that takes only text"
            ) from None
        if written is None:
            raise _read_otherwise()
        return written

    def read(self, raw: bytes, texts: Sequence[ScoreRequest], *, check: bool) -> Told:
        content = loads(raw)
        if not isinstance(content, dict):
            raise _broken("not an object")
        usage, cost_usd = usage_of(content.get("usage"))
        if content.get("error"):
            raise ErrorBody(content["error"], cost_usd)
        rows = _rows(content)
        return Told(self._each(texts, lambda number, text: self._one(rows.get(number), text)), usage, cost_usd)

    def _one(self, logprobs: Any, text: ScoreRequest) -> Scored:
        tokens, own, top = _columns(logprobs)
        if self.top_k and any(top):
            # Where nothing is told a schema without null has 0: no token has that and no alternatives.
            own = [None if value == 0 and not row else value for value, row in zip(own, top, strict=True)]
        prompt, count = len(text.prompt_ids), len(text.completion_ids)
        start = self.names.where(tokens, text.prompt_ids, text.completion_ids)
        if start is None:
            if len(tokens) < max(2, count):  # llama-server does so, with a 200
                raise _none_told(f"It tells of {len(tokens)} tokens where {text.tokens} were sent: it ignores `echo`")
            if self.names.where(tokens[1:], text.prompt_ids, text.completion_ids) is not None:
                raise RequestRejected(
                    "other_tokens",
                    f"the server puts {tokens[0]!r} before the text, so that it scores another one. Does the tokenizer "
                    "of --teacher-tokenizer begin a text as the server's does (add_bos_token)?",
                )
            # Where half of the prompt reads differently, no answer will ever be read alike.
            if self.names.where(tokens, text.prompt_ids[: prompt // 2], ()) is None:
                raise RequestRejected("other_tokenizer", f"the prompt begins {tokens[:8]!r} for the server")
            raise _read_otherwise()
        here = slice(start, start + count)
        return self.scored(
            text,
            *padded([self.names.top(row) for row in top[here]] if self.top_k else [{}] * count),
            # For OpenAI that number says "not among the most probable ones", not how probable.
            np.array([np.nan if value is None or value <= IMPOSSIBLE else value for value in own[here]]),
            "Servers leave it out at the beginning of a text, and some where it is not among the most probable ones: "
            "vLLM and SGLang always tell it.",
        )


class Fireworks(Echo):
    """`echo` as Fireworks has it: token ids in, and with `logprobs`: true entries as those of chats, with ids."""

    ids = True

    def _wanted(self) -> dict[str, Any]:
        return {"logprobs": True, "top_logprobs": self.top_k}


Columns = tuple[list[Named], list[float | None], list[list[tuple[Named, float | None]]]]
"""Tokens, their log-probabilities and the most probable ones, for each position."""


def _rows(content: dict[str, Any]) -> dict[int, Any]:
    """The `logprobs` of each prompt, by its number."""
    echoed = content.get("prompt")
    if isinstance(echoed, list) and echoed:  # Together
        return {number: _dict(row).get("logprobs") for number, row in enumerate(echoed)}
    choices = content.get("choices")
    rows = [_dict(choice) for choice in choices] if isinstance(choices, list) else []
    return {row.get("index", 0): row.get("logprobs") for row in rows}


def _columns(logprobs: Any) -> Columns:
    """Both forms of `logprobs`. Raises RequestRejected where there are none, TransientError for other forms."""
    content = _dict(logprobs).get("content")
    if isinstance(content, list):
        entries = [_dict(entry) for entry in content]
        return (
            [_named(entry) for entry in entries],
            [_value(entry.get("logprob")) for entry in entries],
            [
                [(_named(each), _value(each.get("logprob"))) for each in _dicts(entry, "top_logprobs")]
                for entry in entries
            ],
        )
    tokens, own = _dict(logprobs).get("tokens"), _dict(logprobs).get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(own, list):
        raise _none_told("It has no logprobs of what was echoed")
    ids, top = _dict(logprobs).get("token_ids"), _dict(logprobs).get("top_logprobs")
    ids = ids if isinstance(ids, list) else [None] * len(tokens)
    top = top if isinstance(top, list) else [None] * len(tokens)
    if not len(tokens) == len(own) == len(ids) == len(top):
        raise _broken("lists of different lengths in logprobs")
    return (
        [named(token, None, place) for token, place in zip(tokens, ids, strict=True)],
        [_value(each) for each in own],
        [[(named(token), _value(each)) for token, each in _dict(row).items()] for row in top],
    )


def _named(entry: dict[str, Any]) -> Named:
    return named(entry.get("token"), entry.get("bytes"), entry.get("token_id"))


def _dicts(entry: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = entry.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


# ---- all of them ------------------------------------------------------------------------------------------------


class ErrorBody(Exception):
    """An error within a 200."""

    def __init__(self, said: Any, cost_usd: float | None) -> None:
        self.said, self.cost_usd = said, cost_usd


def loads(raw: bytes) -> Any:
    """JSON, and what Python's json module writes beside it: NaN and -Infinity."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json.loads(raw)


def _decoded(decoder: "msgspec.json.Decoder[Any]", raw: bytes) -> Any:
    """The same, for a type. Raises DecodeError, JSONDecodeError."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # Only numbers may be strange; a detour, since so much of it is skipped otherwise.
        return decoder.decode(msgspec.json.encode(_finite(json.loads(raw))))


def _finite(value: Any) -> Any:
    """Infinities as the number that other servers write for them, NaN as null."""
    if isinstance(value, float):
        return None if value != value else max(min(value, 1e300), 10 * IMPOSSIBLE)
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


def _clipped(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Between LOG_ZERO and 0."""
    return np.where(values <= IMPOSSIBLE, LOG_ZERO, np.minimum(values, 0.0)).astype(np.float32)


def _number(value: Any) -> float:
    """NaN for null."""
    return float(value) if isinstance(value, int | float) else np.nan


def _value(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value == value else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _broken(what: str) -> TransientError:
    return TransientError("broken_answer", f"an answer that cannot be read: {what}", billed=True)


def _none_told(what: str) -> RequestRejected:
    return RequestRejected("no_logprobs", f"the server tells no log-probabilities of the given text. {what}.")


def _odd(error: Exception) -> TransientError:
    return _broken(f"a value of another type or size than this protocol has ({one_line(str(error), 100)})")


def _read_otherwise() -> RequestRejected:
    return RequestRejected(
        "other_tokens",
        "the server reads the text in other tokens than it was written in: a tokenizer joins what was sampled in "
        "pieces. Only servers that take token ids (vLLM, SGLang, Fireworks) can score such an answer.",
    )


def _no_logprobs(what: str) -> RequestRejected:
    return RequestRejected(
        "not_logprobs",
        f"these are no log-probabilities: {what}. vLLM must run with --logprobs-mode raw_logprobs, its default.",
    )


def _other_length(told: int, text: ScoreRequest) -> RequestRejected:
    return RequestRejected(
        "other_tokens",
        f"{text.tokens} tokens were sent, the server tells of {told}: it adds tokens of its own or has cut the text.",
    )


def _other_tokens(place: int, ours: int, theirs: Any) -> RequestRejected:
    return RequestRejected(
        "other_tokens", f"token {place} of the completion is {ours}, and {theirs!r} in what the server tells"
    )
