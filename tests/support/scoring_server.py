"""A loopback server that scores given tokens and chats, with a real model behind it and faults on request.

    python -m tests.support.scoring_server --model smollm2 --port 0 --dialect vllm

Which formats it speaks (`--dialect`), and where they are from:

vllm          POST /v1/completions. `prompt_logprobs`: k -> choices[i].prompt_logprobs, and the messages of its errors:
              as vLLM 0.32 answers. `max_tokens` 0 only with `echo`; `echo` + `logprobs`: OpenAI's form, with the
              token itself first in top_logprobs. Chat: top_logprobs has the drawn token first and stays as long as
              asked, so that it may lack the last. A part of a character is written "", the token that completes it
              as the whole character, and `bytes` are those of what is written. `return_tokens_as_token_ids`;
              `return_token_ids` of completions.
sglang        POST /generate: SGLang's sampling_params.md and io_struct.py. The first entry of input_token_logprobs is
              null for every logprob_start_len (its scheduler pads it). /v1/completions as OpenAI's.
openai        POST /v1/completions, `echo` + `logprobs`: OpenAI's reference of (legacy) completions.
together      The same request; `prompt`: [{text, logprobs}] beside `choices`, as docs.together.ai/docs/logprobs and
              its OpenAPI file (PromptPart, LogprobsPart) have it.
fireworks     The same request, and `echo_last`: n. `logprobs`: true with `top_logprobs` gives {content: [...]} with
              token ids (NewLogProbs of its Python client), a number OpenAI's form with `token_ids` (LogProbs there).
llama-server  /v1/completions with `logprobs`: k -> {content: [...]} with `id`, for the answer alone: as llama.cpp's
              server answers (with ggml 0.20). `echo` is ignored, `max_tokens` 0 is 1. Chat: the text of a continued
              prefill stands before the answer's in `content`; the end of a turn is written "".
chat          No /v1/completions at all, as providers of chats.

POST /v1/chat/completions, in each: OpenAI's reference of chat completions. A trailing assistant message is continued,
begun anew or continued on demand (`prefill`). GET /v1/models: OpenAI's, with OpenRouter's `pricing` when there are
prices; usage then has OpenRouter's `cost`.

POST /_config {"noise": 0.1, "faults": {"rate_limit": 3, "null_logprobs": 0.5}} changes options. A fault below 1 is a
probability, from 1 on it strikes every so-many-th request. GET /_stats counts.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import random
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from . import scoring_formats as formats
from .scoring_formats import Tokens
from .scoring_model import Job, Outcome, Place, ScoringModel

DIALECTS = ("vllm", "sglang", "openai", "together", "fireworks", "llama-server", "chat")
PREFILLS = ("continue", "ignore", "flags")
FAULTS = {
    "rate_limit": "429 with Retry-After",
    "server_error": "500",
    "overloaded": "503",
    "drop": "the connection closes before any byte",
    "not_json": "200 with a body that is no JSON",
    "null_logprobs": "no log-probabilities where they were asked for",
    "null_entries": "every third position has none",
    "fewer": "half of the most probable tokens that were asked for",
    "shifted": "each token of a prompt is scored with what is expected after it, as llama-cpp-python's echo does",
    "own_missing": "a token outside the most probable ones is left out",
    "wrong_length": "the last position is missing",
    "no_ids": "Together and Fireworks without token ids",
    "as_ids": "tokens written token_id:123",
    "as_bytes": "parts of characters written bytes:\\xe2",
    "as_pieces": "parts of characters written <0xE2>",
}
DEFAULT_ANSWER = 128
LARGEST_BODY = 1 << 28


@dataclass
class Options:
    """name: of the model, as clients call it.   max_logprobs: the server's cap, -1 is none.

    prefill: "continue" a trailing assistant message, "ignore" (it is a finished turn, and a new answer begins, as with
        api.openai.com), "flags" (continued only when asked in vLLM's way, `continue_final_message` without
        `add_generation_prompt`).
    end_in_logprobs: the token that ends a turn has an entry in a chat's logprobs, as in vLLM.
    temperature_processed: log-probabilities are those after the temperature.
    noise: standard deviation of what each request finds added to its logits, in nats: replicas that disagree.
    prompt_price, completion_price: USD per token.   faults: see FAULTS.
    """

    name: str = "scoring/model"
    dialect: str = "vllm"
    prefill: str = "continue"
    max_logprobs: int = 20
    end_in_logprobs: bool = True
    temperature_processed: bool = False
    noise: float = 0.0
    latency_s: float = 0.0
    prompt_price: float = 0.0
    completion_price: float = 0.0
    retry_after_s: float = 1.0
    fault_seed: int = 0
    faults: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for what the server does not know."""
        for value, known in ((self.dialect, DIALECTS), (self.prefill, PREFILLS)):
            if value not in known:
                raise ValueError(f"{value} is none of {', '.join(known)}")
        if unknown := set(self.faults) - set(FAULTS):
            raise ValueError(f"no faults {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")


class Refused(Exception):
    """A request that the server answers with an error. status: HTTP."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Queue:
    """Hands what waits for the model to it, several jobs at a time, in a thread of its own."""

    def __init__(self, model: ScoringModel) -> None:
        self._model = model
        self._waiting: list[tuple[Job, asyncio.Future[Outcome]]] = []
        self._more = asyncio.Event()

    async def ask(self, jobs: Sequence[Job]) -> list[Outcome]:
        futures: list[asyncio.Future[Outcome]] = [asyncio.get_running_loop().create_future() for _ in jobs]
        self._waiting += zip(jobs, futures, strict=True)
        self._more.set()
        return await asyncio.gather(*futures)

    async def work(self) -> None:
        """Until cancelled."""
        while True:
            await self._more.wait()
            self._more.clear()
            await asyncio.sleep(0.002)  # what was sent together arrives together
            while self._waiting:
                taken, self._waiting = self._waiting[:32], self._waiting[32:]
                try:
                    outcomes = await asyncio.to_thread(self._model.run, [job for job, _ in taken])
                except Exception as error:
                    outcomes = [error] * len(taken)
                for (_, future), outcome in zip(taken, outcomes, strict=True):
                    if future.cancelled():  # the client hung up
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)


class Server:
    """Requests, counters and the options, for one model."""

    def __init__(self, model: ScoringModel, options: Options) -> None:
        self._model, self._options = model, options
        self._number = self._in_flight = 0
        self._fault_calls: Counter[str] = Counter()
        self._stats: Counter[str] = Counter()
        self._struck: Counter[str] = Counter()
        self._peak = 0
        self._authorization: str | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=LARGEST_BODY)
        for path, handler in (
            ("/v1/completions", self._completions),
            ("/v1/chat/completions", self._chat),
            ("/generate", self._generate),
        ):
            app.router.add_post(path, self._guarded(handler))
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/_stats", self._get_stats)
        app.router.add_post("/_config", self._configure)
        app.cleanup_ctx.append(self._working)
        return app

    async def _working(self, _: web.Application) -> AsyncIterator[None]:
        self._queue = Queue(self._model)
        worker = asyncio.create_task(self._queue.work())
        yield
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    # ---- what every request goes through

    def _guarded(
        self, handler: Callable[[dict[str, Any], set[str]], Awaitable[Any]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            self._number += 1
            self._stats["requests"] += 1
            self._stats[request.path] += 1
            self._authorization = "present" if request.headers.get("Authorization") else "absent"
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            try:
                return await self._answer(request, handler)
            except Refused as refusal:
                kind = {400: "BadRequestError", 404: "NotFoundError"}.get(refusal.status, "InternalServerError")
                error = {"message": str(refusal), "type": kind, "param": None, "code": refusal.status}
                retry = {"Retry-After": f"{self._options.retry_after_s:g}"} if refusal.status == 429 else None
                return _json({"error": error}, refusal.status, retry)
            finally:
                self._in_flight -= 1

        return answer

    async def _answer(
        self, request: web.Request, handler: Callable[[dict[str, Any], set[str]], Awaitable[Any]]
    ) -> web.StreamResponse:
        struck = self._strike()
        raw = await request.read()
        if self._options.latency_s:
            await asyncio.sleep(self._options.latency_s)
        for fault, status, message in (
            ("rate_limit", 429, "Rate limit reached"),
            ("server_error", 500, "Internal server error"),
            ("overloaded", 503, "The server is overloaded"),
        ):
            if fault in struck:
                raise Refused(message, status)
        if "drop" in struck and request.transport is not None:
            request.transport.abort()
            return web.Response()
        if "not_json" in struck:
            return web.Response(text="<html><body>upstream is away</body></html>", content_type="text/html")
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise Refused(f"the body is no JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refused("the body is no JSON object")
        return _json(await handler(body, struck))

    def _strike(self) -> set[str]:
        struck: set[str] = set()
        for fault, rate in self._options.faults.items():
            self._fault_calls[fault] += 1
            calls = self._fault_calls[fault]
            chance = random.Random(f"{self._options.fault_seed} {fault} {calls}").random()
            if (rate >= 1 and calls % int(rate) == 0) or chance < rate < 1:
                struck.add(fault)
                self._struck[fault] += 1
        return struck

    async def _run(self, jobs: Sequence[Job]) -> list[Outcome]:
        context = self._model.context
        for job in jobs:
            if not job.ids:
                raise Refused("Either prompt or prompt_embeds must be provided and non-empty.")
            if not 0 <= min(job.ids) <= max(job.ids) < self._model.width:
                raise Refused(f"Token id {max(job.ids)} is out of vocabulary")
            if len(job.ids) + job.max_tokens > context:
                raise Refused(
                    f"This model's maximum context length is {context} tokens. However, you requested "
                    f"{job.max_tokens} output tokens and your prompt contains {len(job.ids)} input tokens, for a total "
                    f"of {len(job.ids) + job.max_tokens} tokens. Please reduce the length of the input prompt."
                )
        outcomes = await self._queue.ask(jobs)
        self._stats["prompts"] += len(jobs)
        self._stats["prompt_tokens"] += sum(len(job.ids) for job in jobs)
        self._stats["completion_tokens"] += sum(len(outcome.answer) for outcome in outcomes)
        return outcomes

    def _job(self, ids: list[int], body: dict[str, Any], *, temperature: float, **rest: Any) -> Job:
        """temperature: 0 is greedy, and its log-probabilities are not processed."""
        scale = temperature if self._options.temperature_processed and temperature > 0 else 1.0
        seed = body.get("seed")
        return Job(
            ids,
            temperature=temperature,
            top_p=float(body.get("top_p") or 1),
            scale=scale,
            noise=self._options.noise,
            noise_seed=self._number,
            seed=self._number if seed is None else int(seed),
            **rest,
        )

    def _checked(self, asked: Any, what: str, parameter: str) -> int | None:
        """A number of log-probabilities. Raises Refused above the cap."""
        if asked is None:
            return None
        if isinstance(asked, bool) or not isinstance(asked, int) or asked < -1:
            raise Refused(f"{what} must be a whole number, got {asked!r}")
        cap = self._options.max_logprobs
        number = self._model.width if asked == -1 else asked
        if cap != -1 and number > cap:
            raise Refused(
                f"Requested {what} of {number}, which is greater than max allowed: {cap} "
                f"(parameter={parameter}, value={number})"
            )
        return number

    def _tokens(self, struck: set[str], body: dict[str, Any]) -> Tokens:
        styles = {"as_ids": "ids", "as_bytes": "bytes", "as_pieces": "pieces"}
        style = next((style for fault, style in styles.items() if fault in struck), "text")
        vllm = self._options.dialect == "vllm"
        if vllm and body.get("return_tokens_as_token_ids"):
            style = "ids"
        return Tokens(self._model.bytes, style, vllm=vllm, ids="no_ids" not in struck)

    def _ids(self, text: str, body: dict[str, Any]) -> list[int]:
        return self._model.tokenizer(text, add_special_tokens=body.get("add_special_tokens", True))["input_ids"]

    def _usage(self, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> dict[str, Any]:
        prompt, answer = sum(len(job.ids) for job in jobs), sum(len(outcome.answer) for outcome in outcomes)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        }
        if self._options.prompt_price or self._options.completion_price:
            usage["cost"] = prompt * self._options.prompt_price + answer * self._options.completion_price
        return usage

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"{kind}-{self._number}", "created": int(time.time()), "model": self._options.name}

    def _said(self, outcome: Outcome) -> str:
        """An answer's text, without the token that ended it."""
        kept = outcome.answer[:-1] if outcome.ended else outcome.answer
        text = b"".join(self._model.bytes[place.token] for place in kept).decode(errors="replace")
        # vLLM withholds the beginning of a character that no token completes.
        return text.rstrip("\ufffd") if self._options.dialect == "vllm" else text

    # ---- POST /v1/completions

    async def _completions(self, body: dict[str, Any], struck: set[str]) -> dict[str, Any]:
        dialect = self._options.dialect
        if dialect == "chat":
            raise Refused("Not Found", 404)
        _refuse(body, "stream", "stop", "best_of")
        echo = bool(body.get("echo")) or (dialect == "fireworks" and body.get("echo_last") is not None)
        if dialect == "llama-server":
            echo = False
        content = dialect == "fireworks" and body.get("logprobs") is True
        top = self._checked(
            (body.get("top_logprobs") or 0) if content else body.get("logprobs"), "sample logprobs", "logprobs"
        )
        prompt_top = (
            self._checked(body.get("prompt_logprobs"), "prompt logprobs", "prompt_logprobs")
            if dialect == "vllm"
            else None
        )
        if prompt_top is None and echo:
            prompt_top = top
        max_tokens = int(body.get("max_tokens", 16))
        if dialect == "vllm" and max_tokens < 1 and not echo:
            raise Refused(
                f"max_tokens must be at least 1, got {max_tokens}. (parameter=max_tokens, value={max_tokens})"
            )
        if dialect == "llama-server":
            max_tokens = max(1, max_tokens)
        prompts = self._prompts(body)
        jobs = [
            self._job(
                ids,
                body,
                temperature=float(body.get("temperature", 1)),
                score_from=None if prompt_top is None else 0,
                shifted="shifted" in struck,
                top=max(top or 0, prompt_top or 0),
                max_tokens=max_tokens,
            )
            for ids in prompts
        ]
        outcomes = await self._run(jobs)
        tokens = self._tokens(struck, body)
        whole: dict[str, Any] = {**self._head("cmpl"), "object": "text_completion", "choices": []}
        for n, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True)):
            text = self._said(outcome)
            seen: list[Place] = cut(outcome.answer, top or 0)
            asked = cut(outcome.prompt, prompt_top or 0)
            if echo and dialect != "together":
                last = body.get("echo_last") if dialect == "fireworks" else None
                kept = len(job.ids) if last is None else min(int(last), len(job.ids))
                text = tokens.join(job.ids[len(job.ids) - kept :]) + text
                seen = asked[len(asked) - min(kept, len(asked)) :] + seen
            choice: dict[str, Any] = {"index": n, "text": text, "logprobs": None}
            choice["finish_reason"] = "stop" if outcome.ended else "length"
            places = damaged(seen, struck)
            if top is not None and places is not None:
                if content:
                    choice["logprobs"] = {"content": formats.fireworks_content(places, tokens)}
                elif dialect == "llama-server":
                    choice["logprobs"] = {"content": formats.llama_content(places, tokens, self._model.ends)}
                else:
                    ids = dialect in ("together", "fireworks")
                    choice["logprobs"] = formats.legacy(places, tokens, own=dialect != "together", ids=ids)
            if dialect == "vllm":
                places = damaged(asked, struck)
                told = prompt_top is not None and places is not None
                choice["prompt_logprobs"] = formats.vllm_prompt(places or [], tokens) if told else None
                if body.get("return_token_ids"):
                    choice["token_ids"] = [place.token for place in outcome.answer]
                    choice["prompt_token_ids"] = job.ids
            whole["choices"].append(choice)
            if dialect == "together" and echo:
                places = damaged(asked, struck)
                part = None if top is None or places is None else formats.legacy(places, tokens, own=False, ids=True)
                whole.setdefault("prompt", []).append({"text": tokens.join(job.ids), "logprobs": part})
        return whole | {"usage": self._usage(jobs, outcomes)}

    def _prompts(self, body: dict[str, Any]) -> list[list[int]]:
        """Token ids of each prompt: it is a text, ids, or a list of either."""
        prompt = body.get("prompt")
        if isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(one, int) for one in prompt)):
            prompt = [prompt]
        if not isinstance(prompt, list):
            raise Refused("prompt must be a text, a list of token ids, or a list of either")
        prompts = [self._ids(one, body) if isinstance(one, str) else one for one in prompt]
        if not all(isinstance(one, list) and all(type(token) is int for token in one) for one in prompts):
            raise Refused("prompt must be a text, a list of token ids, or a list of either")
        return prompts

    # ---- POST /generate

    async def _generate(self, body: dict[str, Any], struck: set[str]) -> Any:
        if self._options.dialect != "sglang":
            raise Refused("Not Found", 404)
        _refuse(body, "stream")
        given = [body[name] for name in ("text", "input_ids") if body.get(name) is not None]
        if len(given) != 1:
            raise Refused("Either text or input_ids must be provided.")
        [asked] = given
        single = isinstance(asked, str) or all(type(token) is int for token in asked)
        prompts = self._prompts({**body, "prompt": asked})
        params = body.get("sampling_params") or {}
        top = self._checked(body.get("top_logprobs_num") or 0, "input logprobs", "top_logprobs_num") or 0
        start: Any = body.get("logprob_start_len", -1)
        starts: list[int] = start if isinstance(start, list) else [start] * len(prompts)
        starts = [len(ids) - 1 if first == -1 else first for ids, first in zip(prompts, starts, strict=True)]
        scored = bool(body.get("return_logprob"))
        jobs = [
            self._job(
                ids,
                body | params,
                temperature=float(params.get("temperature", 1)),
                score_from=first + 1 if scored else None,
                shifted="shifted" in struck,
                top=top,
                max_tokens=int(params.get("max_new_tokens", DEFAULT_ANSWER)),
            )
            for ids, first in zip(prompts, starts, strict=True)
        ]
        outcomes = await self._run(jobs)
        tokens = self._tokens(struck, body)
        answers: list[dict[str, Any]] = []
        for job, outcome, first in zip(jobs, outcomes, starts, strict=True):
            length = len(outcome.answer)
            meta: dict[str, Any] = {
                "id": str(self._number),
                "finish_reason": {"type": "stop"} if outcome.ended else {"type": "length", "length": length},
                "prompt_tokens": len(job.ids),
                "completion_tokens": length,
                "cached_tokens": 0,
            }
            if scored:
                for name, places in (("input", outcome.prompt[first:]), ("output", outcome.answer)):
                    text = bool(body.get("return_text_in_logprobs"))
                    hurt = damaged(places, struck)
                    own, named = formats.sglang(hurt or [], tokens, top=top > 0, text=text)
                    meta[f"{name}_token_logprobs"] = None if hurt is None else own
                    if top:
                        meta[f"{name}_top_logprobs"] = None if hurt is None else named
            output = [place.token for place in outcome.answer]
            answers.append({"text": self._said(outcome), "output_ids": output, "meta_info": meta})
        return answers[0] if single else answers

    # ---- POST /v1/chat/completions

    async def _chat(self, body: dict[str, Any], struck: set[str]) -> dict[str, Any]:
        _refuse(body, "stream", "stop", "tools")
        if body.get("n", 1) != 1:
            raise Refused("only n = 1 is supported")
        top = int(body.get("top_logprobs") or 0)
        if top and not body.get("logprobs"):
            raise Refused("when using `top_logprobs`, `logprobs` must be set to true.")
        if not 0 <= top <= 20:
            raise Refused(f"Invalid value for 'top_logprobs': must be between 0 and 20, got {top}")
        self._checked(top, "sample logprobs", "top_logprobs")
        dialect = self._options.dialect
        text, begun = self._chat_text(body)
        ids = self._model.tokenizer(text, add_special_tokens=False)["input_ids"]
        job = self._job(
            ids,
            body,
            temperature=float(body.get("temperature", 1)),
            top=top,
            max_tokens=int(body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_ANSWER),
        )
        [outcome] = await self._run([job])
        tokens = self._tokens(struck, body)
        hidden = outcome.ended and not self._options.end_in_logprobs
        places = damaged(cut(outcome.answer[:-1] if hidden else outcome.answer, top), struck)
        written = None
        if body.get("logprobs") and places is not None:
            if dialect == "llama-server":
                written = {"content": formats.llama_content(places, tokens, self._model.ends)}
            else:
                written = {"content": formats.chat_content(places, tokens, top=top, vllm=dialect == "vllm")}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": begun + self._said(outcome)},
            "logprobs": written,
            "finish_reason": "stop" if outcome.ended else "length",
        }
        head = {**self._head("chatcmpl"), "object": "chat.completion"}
        return head | {"choices": [choice], "usage": self._usage([job], [outcome])}

    def _chat_text(self, body: dict[str, Any]) -> tuple[str, str]:
        """The conversation as the model reads it, and what an answer repeats of it."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refused("messages must be a list with at least one message")
        render = self._model.tokenizer.apply_chat_template
        begin = bool(body.get("add_generation_prompt", True))
        asked = bool(body.get("continue_final_message"))
        if self._options.prefill == "flags" and asked and begin:
            raise Refused("continue_final_message and add_generation_prompt are not compatible.")
        flagged = asked or self._options.prefill != "flags"
        if self._options.prefill != "ignore" and messages[-1].get("role") == "assistant" and flagged:
            begun = messages[-1]["content"]
            text = render(messages[:-1], tokenize=False, add_generation_prompt=True) + begun
            return text, begun if self._options.dialect == "llama-server" else ""
        return render(messages, tokenize=False, add_generation_prompt=begin), ""

    # ---- the rest

    async def _models(self, _: web.Request) -> web.Response:
        options, context = self._options, self._model.context
        model: dict[str, Any] = {"id": options.name, "object": "model", "created": 1, "owned_by": options.dialect}
        model["max_model_len" if options.dialect == "vllm" else "context_length"] = context
        if options.prompt_price or options.completion_price:
            model["pricing"] = {
                "prompt": f"{options.prompt_price:.12f}",
                "completion": f"{options.completion_price:.12f}",
            }
            model["supported_parameters"] = ["logprobs", "top_logprobs", "max_tokens", "temperature", "top_p", "seed"]
        return _json({"object": "list", "data": [model]})

    async def _get_stats(self, _: web.Request) -> web.Response:
        counts = {name: self._stats[name] for name in ("requests", "prompts", "prompt_tokens", "completion_tokens")}
        paths = {name: count for name, count in self._stats.items() if name.startswith("/")}
        rest = {"peak_in_flight": self._peak, "authorization": self._authorization, "faults": dict(self._struck)}
        return _json({**counts, "paths": paths, **rest})

    async def _configure(self, request: web.Request) -> web.Response:
        try:
            changes = orjson.loads(await request.read())
            self._options = replace(self._options, **changes)
        except (ValueError, TypeError) as error:
            return _json({"error": str(error)}, 400)
        if "faults" in changes:
            self._fault_calls.clear()
        return _json(dataclasses.asdict(self._options))


def cut(places: Sequence[Place], top: int) -> list[Place]:
    """Places with so many of their most probable tokens."""
    return [replace(place, top=place.top[:top]) for place in places]


def damaged(places: Sequence[Place], struck: set[str]) -> list[Place] | None:
    """What the faults leave of them; None is nothing at all."""
    if "null_logprobs" in struck:
        return None
    left = list(places)
    if "null_entries" in struck:
        left = [Place(place.token) if n % 3 == 2 else place for n, place in enumerate(left)]
    if "fewer" in struck:
        left = [replace(place, top=place.top[: len(place.top) // 2]) for place in left]
    if "own_missing" in struck:
        left = [place if place.token in dict(place.top) else replace(place, logprob=None, rank=None) for place in left]
    return left[:-1] if "wrong_length" in struck else left


def _refuse(body: dict[str, Any], *names: str) -> None:
    for name in names:
        if body.get(name):
            raise Refused(f"{name} is not supported")


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(value), status=status, headers=headers, content_type="application/json", charset="utf-8"
    )


@dataclass(frozen=True)
class Running:
    """A server in a thread of this process. base: http://127.0.0.1:PORT.   url: the same with /v1."""

    base: str

    @property
    def url(self) -> str:
        return f"{self.base}/v1"

    def stats(self) -> dict[str, Any]:
        return self.ask("/_stats")

    def config(self, **options: Any) -> dict[str, Any]:
        """Change options; those not named stay. Returns all of them."""
        return self.ask("/_config", options)

    def ask(self, path: str, body: Any = None) -> Any:
        """GET, or POST with a body. Raises urllib.error.HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)


_loaded = lru_cache(maxsize=2)(ScoringModel)


@contextmanager
def scoring_server(model_folder: Path, **options: Any) -> Iterator[Running]:
    """A server with a model of transformers' layout, in a thread of this process, until the block ends.

    options: those of `Options`.
    """
    server = Server(_loaded(model_folder), Options(**options))
    taken = _listening(0)
    started, stopped = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        runner = web.AppRunner(server.app(), shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, taken).start()
        started.set()
        await stopped.wait()
        await runner.cleanup()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=work, name="scoring server", daemon=True)
    thread.start()
    if not started.wait(30):
        raise RuntimeError("the scoring server did not start")
    try:
        yield Running(f"http://127.0.0.1:{taken.getsockname()[1]}")
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(30)


def _listening(port: int) -> socket.socket:
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", port))
    taken.listen(512)
    return taken


def main(arguments: Sequence[str] | None = None) -> None:
    """The server in a process of its own, until it is interrupted or terminated."""
    from core.teachers.hf_model import hf_folder
    from core.teachers.locate import locate

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a folder, a .gguf file or a packaged model")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    for option in fields(Options):
        flag = f"--{option.name.replace('_', '-')}"
        if option.name == "faults":
            parser.add_argument(flag, type=json.loads, default={}, help=f"as JSON; {', '.join(FAULTS)}")
        elif option.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=option.default)
        else:
            parser.add_argument(flag, type=type(option.default), default=option.default)
    given = vars(parser.parse_args(arguments))
    path, port, threads = given.pop("model"), given.pop("port"), given.pop("threads")
    options = Options(**given)

    import torch

    torch.set_num_threads(threads)
    server = Server(ScoringModel(hf_folder(locate(path, gguf=False))), options)
    taken = _listening(port)
    print(f"scoring server on 127.0.0.1:{taken.getsockname()[1]} pid {os.getpid()}", flush=True)
    web.run_app(server.app(), sock=taken, print=None, access_log=None, shutdown_timeout=1)


if __name__ == "__main__":
    main()
