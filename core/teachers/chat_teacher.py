"""A chat API as a teacher of training: its next token after a prefix, its own answers with what it says of each token,
its grades. It cannot score a given text; what it can be asked is asked once and kept."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from ..data.text import one_line
from ..errors import RequestRejected, TeacherError, Throttled, TransientError
from .api_answers import parse_answer, usage_of
from .api_client import Reply
from .api_tokens import Told, told_of
from .asker import Question
from .judging import (
    RUBRIC,
    THINKING_TOKENS,
    VERDICT_TOKENS,
    Graded,
    Pair,
    compare_prompt,
    grade_prompt,
    read_choice,
    read_score,
    score_share,
    settled_choice,
)
from .openai_api import merged
from .protocol import Completion, Message, ToolSchema
from .score_cache import cache_key, decode_json, encode_json

if TYPE_CHECKING:
    from .remote import Remote

END_OF_TURN = frozenset(
    token.encode()
    for token in (
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|return|>",
        "<|eos|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|end_of_turn|>",
        "<end_of_turn>",
        "<turn|>",
        "<eos>",
        "</s>",
        "[EOS]",
        "<|user|>",
        "<|role_end|>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<|END_OF_SENTENCE|>",
    )
)
"""What chat servers call the token that ends an answer: for the student, all of them are its end of turn."""

REPLACED = "\ufffd".encode()
"""Servers write it for a part of a character whose bytes they do not tell."""
IMPOSSIBLE = -1000.0
"""In nats. Servers write -9999 for a log-probability that they do not know, or that is -inf."""
ROUNDING = 1e-3
"""By so much the probabilities of a position may sum to more than 1."""
DIGITS = 7
"""Of a log-probability, behind the point: float32 has no more, and the cache is a third smaller for it."""
ODD = (TypeError, ValueError, OverflowError, RecursionError, LookupError)
"""What reading an answer raises whose parts are of other types than the API says."""
FEW_TRIES = 3
"""At a request of the ability test: a judge that is not there is a reason, and nothing to wait minutes for."""
GO_ON_FIELDS = ("continue_final_message", "add_generation_prompt")
"""Without a prefix they would make a server go on with the user's message."""
WANTS_PREFIX = ("api.deepseek.com",)
"""Hosts where a prefill is marked as one: {"role": "assistant", ..., "prefix": true}."""


@dataclass(frozen=True)
class Prefix:
    """The beginning of an answer, whose next token is asked for.   text: "" before the first one."""

    messages: Sequence[Message]
    text: str
    tools: Sequence[ToolSchema] = ()


@dataclass(frozen=True)
class NextToken:
    """What a teacher says of one position, in nats.

    top: the bytes of each alternative that it tells, most probable first; different, and none that ends the turn.
    ended: of the end of the turn; None when it is not told.
    """

    top: list[tuple[bytes, float]]
    ended: float | None = None


@dataclass(frozen=True)
class Written:
    """The teacher's own answer.

    text: without its thoughts, and without the blanks before it.   ended: of itself, not by max_tokens.
    told: one entry for each token of the text, whose bytes they are together; the token that ends the turn is not
        among them. See `next_token` for the alternatives of an entry; one that holds several tokens has none. Its
        log-probability is None where the server keeps it to itself, as OpenAI does outside the top 20.
    end: that token, where the server tells it.
    """

    text: str
    ended: bool
    told: list[Told]
    end: Told | None = None


@dataclass(frozen=True)
class PrefillTest:
    """Whether a server goes on with the beginning of an answer. right: texts that went on as they must, out of `of`.

    blanks: whether blanks at the end of a beginning count; None when that cannot be seen.   words: for people.
    """

    passed: bool
    right: int
    of: int
    words: str
    blanks: bool | None = None


@dataclass(frozen=True)
class Asked:
    """One request. key: of its answer in the cache; None keeps nothing.   max_tokens: None is what a verdict needs.
    read: what is kept of an answer; raises TeacherError.   tokens: that the kept value tells, for the cache's report.
    """

    key: bytes | None
    body: dict[str, Any]
    max_tokens: int | None
    read: Callable[[Answer], Any]
    tokens: Callable[[Any], int] = lambda value: 0
    room: list[int] = field(default_factory=list[int])
    """The max_tokens of a verdict's attempts."""


@dataclass(frozen=True)
class Answer:
    """What came. completion: or why it is no answer in words, where it may still be one token.   choice: as the server
    sent it."""

    completion: Completion | TeacherError
    choice: Mapping[str, Any]

    @property
    def written(self) -> Completion:
        """Raises TeacherError."""
        if isinstance(self.completion, TeacherError):
            raise self.completion
        return self.completion

    @property
    def cut(self) -> bool:
        return self.choice.get("finish_reason") == "length"


@dataclass(frozen=True)
class Kept:
    """What was read of an answer (JSON), and its cost in USD; None when that is unknown."""

    value: Any
    cost_usd: float | None


class ChatTeacher:
    """What a chat API can be asked for training. Every answer comes from the cache where it is there.

    top: how many alternatives of a token are asked for.   rubric: what the judge goes by.
    nameless_ends: an empty text is the end of the turn, as llama-server writes control tokens; elsewhere it is a part
        of a character.
    keeps_blanks: False when the server cuts blanks off the end of a beginning (see `PrefillTest`): such beginnings are
        not asked then, since the answer would be to another question.
    """

    def __init__(self, remote: Remote, *, top: int = 20, rubric: str | None = None, keeps_blanks: bool = True) -> None:
        self.remote, self.top, self.keeps_blanks = remote, top, keeps_blanks
        self.rubric = rubric or RUBRIC
        host = urlsplit(remote.client.endpoint).hostname
        # OpenAI's reasoning models refuse max_tokens and every sampling option, and tell no log-probabilities.
        self._reasons = host == "api.openai.com" and re.match(r"(o\d|gpt-5)", remote.model) is not None
        self._marks_prefix = host in WANTS_PREFIX
        self.nameless_ends = remote.backend == "llama-server"
        self._verdict_tokens = THINKING_TOKENS if self._reasons else VERDICT_TOKENS

    @property
    def server(self) -> str:
        """For messages."""
        return self.remote.name

    # ---- what training asks --------------------------------------------------------------------------------------

    def next_tokens(self, prefixes: Sequence[Prefix]) -> list[NextToken | TeacherError]:
        """The teacher's distribution after each prefix at temperature 1, as far as it tells it, or why there is none.

        Raises StoppedEarly when no more can be asked (see `Asker.ask`), here and below.
        """
        found = self._ask([self._probe(prefix) for prefix in prefixes])
        return [each if isinstance(each, TeacherError) else _as_next_token(each) for each in found]

    def write(
        self,
        asked: Sequence[tuple[Sequence[Message], Sequence[ToolSchema]]],
        *,
        max_tokens: int,
        seeds: Sequence[int | None],
    ) -> list[Written | TeacherError]:
        """The teacher's own answer to each conversation, at temperature 1, with what it says of each token."""
        requests: list[Asked | TeacherError] = []
        for (messages, tools), seed in zip(asked, seeds, strict=True):
            if self._reasons:
                requests.append(self._no_logprobs())
                continue
            body = self._with_logprobs(messages, tools, self.top)
            if seed is not None and self.remote.backend != "openrouter":  # few providers there know it
                body["seed"] = seed
            key = self._key("text", list(messages), list(tools), self.top, max_tokens, seed)
            requests.append(Asked(key, self._whole(body, ""), max_tokens, self._read_written, lambda v: len(v["told"])))
        found = self._ask(requests)
        return [each if isinstance(each, TeacherError) else _as_written(each) for each in found]

    def grade(self, asked: Sequence[Graded], *, fresh: bool = False) -> list[float | TeacherError]:
        """How good each answer is by the rubric, 0 to 1. fresh: past the cache, for the ability test."""
        found = self._verdicts([self._verdict("grade", grade_prompt, each, read_score) for each in asked], fresh)
        return [each if isinstance(each, TeacherError) else score_share(each) for each in found]

    def compare(self, pairs: Sequence[Pair], *, fresh: bool = False) -> list[float | TeacherError]:
        """1 where the first answer of a pair is the better one, 0 where the second is; 0.5 for a tie, for equal texts,
        and where the judge contradicts itself when the two change places. fresh: see `grade`."""
        alike = [pair.first.strip() == pair.second.strip() for pair in pairs]
        asked = [pair for pair, same in zip(pairs, alike, strict=True) if not same]
        swapped = [replace(pair, first=pair.second, second=pair.first) for pair in asked]
        requests = [self._verdict("compare", compare_prompt, each, read_choice) for each in asked + swapped]
        verdicts = self._verdicts(requests, fresh)
        both = iter(zip(verdicts[: len(asked)], verdicts[len(asked) :], strict=True))
        settled: list[float | TeacherError] = []
        for same in alike:
            first, second = (0.5, 0.5) if same else next(both)
            if isinstance(first, TeacherError) or isinstance(second, TeacherError):
                settled.append(first if isinstance(first, TeacherError) else second)
            else:
                settled.append(settled_choice(first, 1 - second))
        return settled

    def _verdicts(self, requests: Sequence[Asked | TeacherError], fresh: bool) -> list[Any]:
        if not fresh:
            return self._ask(requests)
        anew = [each if isinstance(each, TeacherError) else replace(each, key=None) for each in requests]
        return self._ask(anew, tries=FEW_TRIES)

    # ---- the ability test: always asked anew ---------------------------------------------------------------------

    def continues(self) -> PrefillTest:
        """Whether a trailing message of the assistant is gone on with, by texts whose continuation is certain.

        A text counts when what must come is the most probable token, and much more probable than without the
        beginning. Raises StoppedEarly for a server that cannot be asked at all.
        """
        asked = [*CERTAIN, BLANK]
        with_it = self._fresh([Prefix(_user(each.question), each.begun) for each in asked])
        without = self._fresh([Prefix(_user(each.question), "") for each in asked])
        went_on = [each.shown_by(*both) for each, *both in zip(asked, with_it, without, strict=True)]
        *right, blank = went_on
        passed = sum(right) >= NEEDED
        words = f"{sum(right)} of {len(right)} beginnings of an answer were continued"
        blanks = blank if passed else None
        if blanks is False:
            words += "; blanks at the end of a beginning are cut off, so that such beginnings cannot be asked"
        elif not passed:
            problem = next((each for each in with_it if isinstance(each, TeacherError)), None)
            words += f": {problem}" if problem else ": the server answers anew instead"
        return PrefillTest(passed, sum(right), len(right), words, blanks)

    def tells(self) -> int:
        """How many alternatives come back for a token, 0 without log-probabilities.

        Raises TeacherError when the server refuses the request, for example because it tells fewer than `top`.
        """
        found = self._first_words([1.0])[0]
        return 0 if found is None else len(found)

    def noise(self) -> float | None:
        """The largest difference of a log-probability between two askings of one question, in nats; None when nothing
        is told. Raises TeacherError."""
        first, second = self._first_words([1.0, 1.0])
        if first is None or second is None:
            return None
        return max((abs(first[token] - second[token]) for token in first.keys() & second.keys()), default=None)

    def temperature_matters(self) -> bool | None:
        """Whether the log-probabilities are those after the temperature of the request; None when it cannot be seen.
        Raises TeacherError.

        At temperature 1/2 they would be 2 l - log sum exp(2 l). What comes is nearer to that, or to l.
        """
        warm, cool = self._first_words([1.0, 0.5])
        shared = sorted(warm.keys() & cool.keys()) if warm and cool else []
        if warm is None or cool is None or not shared:
            return None
        total = math.log(sum(math.exp(2 * logprob) for logprob in warm.values()))
        after = [2 * warm[token] - total for token in shared]
        before, came = [warm[token] for token in shared], [cool[token] for token in shared]
        if _apart(after, before) < 0.1:
            return None
        return _apart(came, after) < _apart(came, before)

    def _first_words(self, temperatures: Sequence[float]) -> list[dict[bytes, float] | None]:
        """Alternatives for the first token of an answer that may begin in many ways; None without log-probabilities."""
        found: list[dict[bytes, float] | None] = []
        for each in self._fresh([Prefix(_user(OPEN), "")] * len(temperatures), temperatures):
            if isinstance(each, TeacherError) and each.reason != "no_logprobs":
                raise each
            found.append(None if isinstance(each, TeacherError) else dict(each.top))
        return found

    def _fresh(
        self, prefixes: Sequence[Prefix], temperatures: Sequence[float] | None = None
    ) -> list[NextToken | TeacherError]:
        """As `next_tokens`, past the cache. A model that thinks first may do so here."""
        requests: list[Asked | TeacherError] = []
        for prefix, temperature in zip(prefixes, temperatures or [1.0] * len(prefixes), strict=True):
            request = self._probe(prefix)
            if isinstance(request, Asked):
                body = {**request.body, "temperature": temperature}
                request = replace(request, key=None, body=body, read=self._read_any_token)
            requests.append(request)
        found = self._ask(requests)
        return [each if isinstance(each, TeacherError) else _as_next_token(each) for each in found]

    # ---- requests ------------------------------------------------------------------------------------------------

    def _probe(self, prefix: Prefix) -> Asked | TeacherError:
        if self._reasons:
            return self._no_logprobs()
        if not self.keeps_blanks and prefix.text != prefix.text.rstrip():
            return RequestRejected("trailing_blank", "this server cuts blanks off the end of a beginning")
        body = self._with_logprobs(prefix.messages, prefix.tools, self.top)
        if prefix.text:
            begun: Message = {"role": "assistant", "content": prefix.text}
            body["messages"].append(begun | ({"prefix": True} if self._marks_prefix else {}))
            body |= self.remote.provider.prefill
        key = self._key("probe", list(prefix.messages), list(prefix.tools), prefix.text, self.top)
        read = self._read_next_token if prefix.text else self._read_first_token
        return Asked(key, self._whole(body, prefix.text), 1, read)

    def _verdict(
        self, kind: str, prompt: Callable[[Any, str], str], asked: Graded | Pair, read: Callable[[str], float]
    ) -> Asked | TeacherError:
        try:
            messages = _user(prompt(asked, self.rubric))
        except RequestRejected as error:
            return error
        body: dict[str, Any] = {"model": self.remote.model, "messages": messages}
        if not self._reasons:
            body["temperature"] = 0

        def judged(answer: Answer) -> float:
            text = answer.written.text
            try:
                return read(text)
            except RequestRejected:
                if answer.cut:
                    raise RequestRejected("no_room_for_answer", "the judge's verdict is cut off") from None
                raise

        return Asked(self._key(kind, messages), self._whole(body, ""), None, judged)

    def _with_logprobs(self, messages: Sequence[Message], tools: Sequence[ToolSchema], top: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.remote.model, "messages": list(messages)}
        body |= {"temperature": 1, "top_p": 1, "logprobs": True, "top_logprobs": top}
        if tools:
            body["tools"] = list(tools)
        if self.remote.backend == "openrouter":  # else a provider that knows no log-probabilities leaves them out
            body["provider"] = {"require_parameters": True}
        return body

    def _whole(self, body: dict[str, Any], prefix: str) -> dict[str, Any]:
        """With the fields that the user adds."""
        extra = self.remote.extra_body
        return merged(body, extra if prefix else {key: extra[key] for key in extra if key not in GO_ON_FIELDS})

    def _key(self, kind: str, *parts: Any) -> bytes:
        return cache_key(kind, self.remote.identity, *parts)

    def _no_logprobs(self) -> TeacherError:
        return RequestRejected("no_logprobs", f"{self.remote.model} at OpenAI tells no log-probabilities")

    # ---- asking --------------------------------------------------------------------------------------------------

    def _ask(self, requests: Sequence[Asked | TeacherError], *, tries: int | None = None) -> list[Any]:
        """The value or the TeacherError of each request. Equal ones are asked once; what is known is not asked.

        tries: attempts at each, where that is less than the run's --teacher-retries allow.
        """
        settled: dict[int, Any] = {}
        numbers: dict[bytes | int, int] = {}  # of the request that asks for the same
        missing: list[int] = []
        for number, request in enumerate(requests):
            if isinstance(request, TeacherError):
                settled[number] = request
                continue
            first = numbers.setdefault(number if request.key is None else request.key, number)
            if first == number:
                known = None if request.key is None or self.remote.cache is None else self.remote.cache.get(request.key)
                if known is None:
                    missing.append(number)
                else:
                    settled[number] = decode_json(known)
        asked = [request for number in missing if isinstance(request := requests[number], Asked)]
        attempt = self._attempt if tries is None else self._a_few_times(tries)
        question = Question(
            attempt, cost_usd=lambda kept: kept.cost_usd, worst_usd=self._worst_usd, answered=self._keep
        )
        answers = self.remote.asker.ask(asked, question) if asked else []
        for number, answer in zip(missing, answers, strict=True):
            settled[number] = answer if isinstance(answer, TeacherError) else answer.value
        return [
            settled[numbers[request.key] if isinstance(request, Asked) and request.key is not None else number]
            for number, request in enumerate(requests)
        ]

    def _a_few_times(self, tries: int) -> Callable[[Asked], Awaitable[Kept]]:
        """An attempt that is the last one when it fails for the so manyth time."""
        failed: Counter[int] = Counter()

        async def attempt(request: Asked) -> Kept:
            try:
                return await self._attempt(request)
            except Throttled:
                raise
            except TransientError as error:
                failed[id(request)] += 1
                if failed[id(request)] < tries:
                    raise
                raise RequestRejected(error.reason, str(error), billed=error.billed, cost_usd=error.cost_usd) from None

        return attempt

    def _keep(self, request: Asked, kept: Kept) -> None:
        if request.key is not None and self.remote.cache is not None:
            self.remote.cache.put(request.key, encode_json(kept.value), tokens=request.tokens(kept.value))

    def _worst_usd(self, request: Asked) -> float:
        # A token has at least one byte, so bytes bound the prompt's tokens; templates add a few per message.
        asked = {"messages": request.body["messages"], "tools": request.body.get("tools")}
        size = len(json.dumps(asked, ensure_ascii=False, default=str).encode("utf-8", "replace"))
        if request.max_tokens is None:  # what is reserved here is what is sent, whatever others find out meanwhile
            request.room.append(self._verdict_tokens)
        return self.remote.worst_usd(size + 16 * len(request.body["messages"]), request.max_tokens or request.room[-1])

    async def _attempt(self, request: Asked) -> Kept:
        max_tokens = request.max_tokens or request.room[-1]
        name = "max_completion_tokens" if self._reasons else "max_tokens"
        reply = await self.remote.client.post("/chat/completions", {**request.body, name: max_tokens})
        try:
            return self._kept(request, reply, max_tokens)
        except RequestRejected as error:
            if error.reason == "no_room_for_answer" and request.max_tokens is None and max_tokens < THINKING_TOKENS:
                self._verdict_tokens = THINKING_TOKENS  # this judge thinks first
                raise TransientError("no_room_for_answer", str(error), billed=True, cost_usd=error.cost_usd) from None
            raise self.remote.client.told(error) from None
        except TeacherError as error:
            raise self.remote.client.told(error) from None

    def _kept(self, request: Asked, reply: Reply, max_tokens: int) -> Kept:
        status, headers, raw = reply
        try:
            completion = parse_answer(status, headers, raw, max_tokens)
        except TeacherError as error:
            if error.reason not in ("empty_answer", "no_room_for_answer"):
                raise
            completion = error  # a blank is an answer where one token is asked for
        except ODD as odd:
            raise _broken(odd, None) from None
        body = orjson.loads(raw)
        cost_usd = self.remote.cost_usd(*usage_of(body.get("usage")))
        try:
            return Kept(request.read(Answer(completion, body["choices"][0])), cost_usd)
        except TeacherError as error:
            error.billed = True
            error.cost_usd = cost_usd if error.cost_usd is None else error.cost_usd
            raise
        except ODD as odd:
            raise _broken(odd, cost_usd) from None

    # ---- reading -------------------------------------------------------------------------------------------------

    def _told(self, answer: Answer) -> list[Told]:
        """The positions of an answer. Raises TeacherError when there are none."""
        logprobs = answer.choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        if content is None and self.remote.backend != "openrouter":  # there the next request may meet a better provider
            raise RequestRejected("no_logprobs", "the server answers without log-probabilities")
        if isinstance(content, list):  # ids mean nothing without the teacher's tokenizer; the text does
            content = [_without_ids(entry) for entry in content]
        told = told_of(content)
        if any(isinstance(token, int) for one in told for token in (one.token, *(token for token, _ in one.top))):
            raise RequestRejected(
                "tokens_as_ids", "the server tells ids instead of tokens; is return_tokens_as_token_ids set there?"
            )
        return told

    def _read_first_token(self, answer: Answer) -> Any:
        return self._read_next_token(answer, first=True)

    def _read_next_token(self, answer: Answer, *, first: bool = False) -> Any:
        found = self._read_any_token(answer, first=first)
        message = answer.choice["message"]
        thinks = message.get("reasoning") or message.get("reasoning_content")
        if thinks or (found["top"] and found["top"][0][0].strip().startswith("<think")):
            raise RequestRejected(
                "thinks_first", "the teacher thinks before it answers: its first token is a thought's"
            )
        return found

    def _read_any_token(self, answer: Answer, *, first: bool = False) -> Any:
        told = self._told(answer)
        if not told:
            if answer.cut:  # a part of a character was drawn: the next draw may be a whole one
                raise TransientError("no_logprobs", "nothing is told of the token that was drawn")
            raise RequestRejected("no_logprobs", "the turn ended, and the server tells nothing of that")
        if _hides_pieces(told[0]):
            raise TransientError("no_logprobs", "the server tells only the last token of a character")
        one = _at_the_beginning(told[0], answer.choice["message"].get("content")) if first else told[0]
        found = next_token(one, nameless_ends=self.nameless_ends)
        if not found.top and found.ended is None:
            raise RequestRejected("no_logprobs", "the server tells no alternatives")
        return {"top": _packed_top(found.top), "ended": None if found.ended is None else round(found.ended, DIGITS)}

    def _read_written(self, answer: Answer) -> Any:
        completion = answer.written
        if completion.tool_calls:
            raise RequestRejected("tool_calls", "a tool call instead of an answer in words")
        told = self._told(answer)
        if all(one.logprob is None or one.logprob < IMPOSSIBLE for one in told):
            raise RequestRejected("no_logprobs", "the server answers without log-probabilities")
        ended = not answer.cut
        end = None
        if ended and (told[-1].token in END_OF_TURN or told[-1].token == b""):
            *told, end = told
        text = completion.text
        if answer.cut:  # perhaps within a character
            told, text = _up_to_a_character(told), text.rstrip("\ufffd")
        told = spelling(_whole_characters(told), text, thought=bool(completion.reasoning))
        if any(map(_hides_pieces, told)):  # what stands before it is an answer that breaks off
            told = told[: [_hides_pieces(one) for one in told].index(True)]
            ended, end = False, None
        for one in told:
            next_token(one, nameless_ends=self.nameless_ends)  # they are log-probabilities
        return {
            "text": b"".join(_bytes(one.token) for one in told).decode(),
            "ended": ended,
            "told": [_packed(one) for one in told],
            "end": None if end is None else _packed(end),
        }


def _broken(odd: Exception, cost_usd: float | None) -> TransientError:
    said = f"an answer of another form than the API has ({type(odd).__name__}: {one_line(str(odd), 100)})"
    return TransientError("broken_answer", said, billed=True, cost_usd=cost_usd)


# ---- positions --------------------------------------------------------------------------------------------------


def next_token(told: Told, *, nameless_ends: bool = False) -> NextToken:
    """The alternatives of one position, the token that was drawn among them.

    Left out is what has no bytes of its own (a part of a character, written as a text); nameless_ends: empty texts are
    the end of the turn. Raises RequestRejected when these are no log-probabilities.
    """
    drawn = [] if told.logprob is None or any(token == told.token for token, _ in told.top) else [told.logprob]
    plain: dict[bytes, float] = {}
    ended: float | None = None
    for token, logprob in [*told.top, *((told.token, logprob) for logprob in drawn)]:
        token = _bytes(token)
        if logprob < IMPOSSIBLE or REPLACED in token:
            continue
        if token in END_OF_TURN or (nameless_ends and not token):
            ended = _sum(ended, logprob)
        elif token:
            plain[token] = _sum(plain.get(token), logprob)
    total = math.log(sum(map(math.exp, [*plain.values(), *([] if ended is None else [ended])])) or 1.0)
    if total > math.log1p(ROUNDING):
        raise RequestRejected("not_logprobs", f"the probabilities of a token sum to {math.exp(total):.3f}")
    beyond = max(total, 0.0)
    top = sorted(((token, logprob - beyond) for token, logprob in plain.items()), key=lambda each: -each[1])
    return NextToken(top, None if ended is None else ended - beyond)


def spelling(told: Sequence[Told], text: str, *, thought: bool) -> list[Told]:
    """The tokens that spell a text, out of all that the server tells of its answer.

    The text must be what they spell, but for blanks at its ends, and for thoughts that were told and are no part of the
    text. Blanks before the answer, which SentencePiece and the server's own tidying make and undo, are cut off its
    first token and that token's alternatives; blanks behind it are part of it.

    Raises RequestRejected ("tokens_do_not_fit").
    """
    spelled = b"".join(_bytes(one.token) for one in told)
    core = text.encode("utf-8", "surrogatepass").strip()
    begin = len(spelled.rstrip()) - len(core)
    fits = bool(core) and spelled.rstrip().endswith(core) and (thought or not spelled[:begin].strip())
    place = 0
    kept: list[Told] = []
    for one in told if fits else ():
        token = _bytes(one.token)
        cut = token[: max(begin - place, 0)]
        if place + len(token) > begin:
            fits = fits and not cut.strip()
            kept.append(_without_lead(one, cut) if cut else one)
        place += len(token)
    if not fits:
        shown = spelled[:80].decode("utf-8", "replace")
        raise RequestRejected("tokens_do_not_fit", f"the tokens spell {shown!r}, and the text is {text[:80]!r}")
    return kept


def _whole_characters(told: Sequence[Told]) -> list[Told]:
    """vLLM writes a token that ends within a character as an empty text, and the one that completes it as the whole
    character: together they are one entry, with the sum of their log-probabilities and without alternatives.

    An unfinished one at the end is left out.
    """
    whole: list[Told] = []
    pending: list[float | None] = []
    for one in told:
        in_top = next((logprob for token, logprob in one.top if token == one.token), None)
        logprob = one.logprob if in_top is None else in_top
        pending.append(None if logprob is None or logprob < IMPOSSIBLE else logprob)
        if one.token:
            known = [each for each in pending if each is not None]
            total = sum(known) if len(known) == len(pending) else None
            whole.append(Told(one.token, total, one.top if len(pending) == 1 else ()))
            pending = []
    return whole


def _up_to_a_character(told: Sequence[Told]) -> list[Told]:
    """Without the last tokens, which begin a character and do not end it."""
    kept = list(told)
    while kept:
        try:
            b"".join(_bytes(one.token) for one in kept).decode()
            break
        except UnicodeDecodeError:
            kept.pop()
    return kept


def _hides_pieces(one: Told) -> bool:
    """llama-server writes a character of several tokens as one, with the numbers of its last token alone."""
    return all(token != one.token for token, _ in one.top) and any(
        logprob == one.logprob and token and _bytes(one.token).endswith(_bytes(token)) for token, logprob in one.top
    )


def _at_the_beginning(one: Told, text: Any) -> Told:
    """The first token of an answer: without blanks that the server's text does not have (see `spelling`)."""
    token, written = _bytes(one.token), text.encode() if isinstance(text, str) else b""
    lead = token.removesuffix(written) if written else b""
    return _without_lead(one, lead) if token.endswith(written) and not lead.strip() else one


def _without_lead(one: Told, lead: bytes) -> Told:
    def cut(token: int | bytes) -> bytes:
        return _bytes(token).removeprefix(lead) or _bytes(token)

    return Told(cut(one.token), one.logprob, [(cut(token), logprob) for token, logprob in one.top])


def _without_ids(entry: Any) -> Any:
    """Of a position, as it came."""
    if not isinstance(entry, dict):
        return entry
    entry = {key: value for key, value in entry.items() if key != "token_id"}
    if isinstance(entry.get("top_logprobs"), list):
        entry["top_logprobs"] = [_without_ids(each) for each in entry["top_logprobs"]]
    return entry


def _bytes(token: int | bytes) -> bytes:
    assert isinstance(token, bytes)  # see ChatTeacher._told
    return token


def _sum(first: float | None, second: float) -> float:
    """log(exp(first) + exp(second)); None is log 0."""
    if first is None:
        return second
    high, low = max(first, second), min(first, second)
    return high + math.log1p(math.exp(low - high))


def _apart(first: Sequence[float], second: Sequence[float]) -> float:
    return max(abs(one - other) for one, other in zip(first, second, strict=True))


# ---- values in the cache: bytes as latin-1 ----------------------------------------------------------------------


def _packed(one: Told) -> Any:
    logprob = None if one.logprob is None else round(one.logprob, DIGITS)
    return [_bytes(one.token).decode("latin-1"), logprob, _packed_top(one.top)]


def _packed_top(top: Sequence[tuple[int | bytes, float]]) -> Any:
    return [[_bytes(token).decode("latin-1"), round(logprob, DIGITS)] for token, logprob in top]


def _unpacked(value: Any) -> Told:
    token, logprob, top = value
    return Told(token.encode("latin-1"), logprob, [(each.encode("latin-1"), logprob) for each, logprob in top])


def _as_next_token(value: Any) -> NextToken:
    return NextToken([(token.encode("latin-1"), logprob) for token, logprob in value["top"]], value["ended"])


def _as_written(value: Any) -> Written:
    end = None if value["end"] is None else _unpacked(value["end"])
    return Written(value["text"], value["ended"], [_unpacked(each) for each in value["told"]], end)


# ---- texts of the ability test ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certain:
    """An answer whose beginning says how it must go on. must: the bytes that come next."""

    question: str
    begun: str
    must: bytes

    def shown_by(self, found: NextToken | TeacherError, without: NextToken | TeacherError) -> bool:
        """found, without: what came with and without the beginning."""
        if isinstance(found, TeacherError) or isinstance(without, TeacherError) or not found.top:
            return False
        on_top = self._begins(found.top[0][0]) and (found.ended is None or found.top[0][1] > found.ended)
        return on_top and self._mass(found) > 2 * self._mass(without)

    def _mass(self, found: NextToken) -> float:
        return sum(math.exp(logprob) for token, logprob in found.top if self._begins(token))

    def _begins(self, token: bytes) -> bool:
        return self.must.startswith(token) or token.startswith(self.must)


REPEAT = "Repeat exactly: The old captain painted seven wooden butterflies yellow before the storm reached the harbour."
CERTAIN = (
    Certain("Count from 1 to 20, with a comma after each number.", "1, 2, 3, 4, 5, 6, 7, 8", b", 9"),
    Certain("Write the alphabet in small letters with spaces between them.", "a b c d e f g h i", b" j k l"),
    Certain(REPEAT, "The old captain painted seven wooden", b" butterflies yellow"),
    Certain(REPEAT, "The old captain painted seven wooden butter", b"flies yellow"),
)
NEEDED = 3
BLANK = Certain("Count from 1 to 20, with a comma after each number.", "1, 2, 3, 4, 5, 6, 7, 8, ", b"9")
"""Its beginning ends in a blank, which some chat templates cut off."""
OPEN = "Tell me about an animal that you like."
"""Its answer may begin in many ways."""


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
