"""A scoring server asked over HTTP: how near a window of rollouts comes to the ideal.

    python -m tests.bench.bench_scoring [--rollouts 64] [--tokens 256] [--concurrency 32] [--latency 0.2] [--runs 5]

A mock in a process of its own answers in vLLM's format, --latency seconds after a request: bodies that it has made
before, so that it costs little itself. The ideal is rollouts / concurrency x latency, also with two texts in a
request. Beside the scorer (with the cache, and without), in turns: an aiohttp client with as many connections that
only reads the bodies (`bare`). Ratios are wall / ideal: medians, and the least. `cpu_ms` is the processor time of this
process for one rollout. Prints one JSON report with criteria.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
from aiohttp import web

from core.commands.teacher import TeacherOptions
from core.data.stop import Stop
from core.teachers.api_scorer import ApiScorer
from core.teachers.remote import open_remote
from core.teachers.score_cache import ScoreCache
from core.teachers.scorer import ScoreRequest

from .harness import ROOT, finish, load

PROMPT, WIDTH = 64, 49_152
MOST = 1.15
"""wall / ideal that is to be reached."""


def rollout(number: int, tokens: int) -> ScoreRequest:
    """The same one in both processes. Its first token is its number."""
    ids = np.random.default_rng(number).integers(0, WIDTH, PROMPT + tokens).tolist()
    return ScoreRequest([number, *ids[1:PROMPT]], ids[PROMPT:])


def body(text: ScoreRequest, top_k: int) -> bytes:
    """`prompt_logprobs` as vLLM writes them: the token itself first, then the k most probable ones."""
    chance = np.random.default_rng(text.prompt_ids[0])
    ids = [*text.prompt_ids, *text.completion_ids]
    places: list[Any] = [None]
    for token in ids[1:]:
        top = chance.choice(WIDTH, top_k, replace=False).tolist()
        logits = -np.sort(chance.exponential(3.0, 1000).astype(np.float32))[:top_k]
        logprobs = (np.sort(logits)[::-1] - np.float32(np.log(1000))).astype(np.float32).tolist()
        entries = {str(token): {"logprob": -14.25091552734375, "rank": 9041, "decoded_token": " token"}}
        for rank, (other, logprob) in enumerate(zip(top, logprobs, strict=True), 1):
            entries[str(other)] = {"logprob": logprob, "rank": rank, "decoded_token": " other"}
        places.append(entries)
    return orjson.dumps(places)


def serve(rollouts: int, tokens: int, top_k: int, latency_s: float) -> None:
    """The mock, until it is killed."""
    import uvloop

    bodies = {number: body(rollout(number, tokens), top_k) for number in range(rollouts)}
    usage = b'"usage":{"prompt_tokens":%d,"completion_tokens":1}' % (PROMPT + tokens)

    async def answer(request: web.Request) -> web.Response:
        arrived = time.monotonic()
        prompt = orjson.loads(await request.read())["prompt"]
        prompts = prompt if isinstance(prompt[0], list) else [prompt]
        choices = b",".join(
            b'{"index":%d,"text":" a","logprobs":null,"finish_reason":"length","prompt_logprobs":%b}'
            % (index, bodies[ids[0]])
            for index, ids in enumerate(prompts)
        )
        whole = b'{"id":"cmpl-1","object":"text_completion","choices":[' + choices + b"]," + usage + b"}"
        await asyncio.sleep(max(0.0, latency_s - (time.monotonic() - arrived)))
        return web.Response(body=whole, content_type="application/json")

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "mock/model", "max_model_len": 4096}]})

    async def run() -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/completions", answer)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    uvloop.run(run())


@contextmanager
def mock(arguments: argparse.Namespace, top_k: int) -> Iterator[str]:
    """Its URL, with /v1."""
    command = [sys.executable, "-m", "tests.bench.bench_scoring", "--serve", str(top_k)]
    command += ["--rollouts", str(arguments.rollouts), "--tokens", str(arguments.tokens)]
    command += ["--latency", str(arguments.latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def measured(work: Any) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


class Bare:
    """Reads bodies with as many connections, and does nothing with them."""

    def __init__(self, url: str, requests: list[bytes], concurrency: int) -> None:
        self._url, self._requests, self._concurrency = url, requests, concurrency

    def __call__(self) -> None:
        asyncio.run(self._all())

    async def _all(self) -> None:
        waiting = iter(self._requests)
        connector = aiohttp.TCPConnector(limit=self._concurrency)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def worker() -> None:
                for request in waiting:
                    async with session.post(f"{self._url}/completions", data=request) as response:
                        await response.read()

            await asyncio.gather(*(worker() for _ in range(self._concurrency)))


def bare_requests(texts: list[ScoreRequest], batch: int, top_k: int) -> list[bytes]:
    ids = [[*text.prompt_ids, *text.completion_ids] for text in texts]
    return [
        orjson.dumps({"model": "mock/model", "prompt": ids[n : n + batch], "max_tokens": 1, "prompt_logprobs": top_k})
        for n in range(0, len(ids), batch)
    ]


def measure_case(arguments: argparse.Namespace, url: str, top_k: int, batch: int, folder: Path) -> dict[str, Any]:
    texts = [rollout(number, arguments.tokens) for number in range(arguments.rollouts)]
    options = TeacherOptions.model_validate(
        {"model": "mock/model", "backend": "vllm", "base_url": url, "concurrency": arguments.concurrency}
    )
    remote = open_remote(options, Stop(), cache=None, note=lambda note: None)
    scorer = ApiScorer(remote, top_k=top_k, tokenizer="smollm2", batch_size=batch)
    scorer.prepare(lambda note: None)
    scorer._agreed = True  # the mock's texts are not the tokenizer's
    keeping = ApiScorer(remote, top_k=top_k, tokenizer="smollm2", batch_size=batch)
    keeping.__dict__ |= scorer.__dict__
    bare = Bare(url, bare_requests(texts, batch, top_k), arguments.concurrency)
    ideal_s = arguments.rollouts / arguments.concurrency * arguments.latency
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "scorer": [], "scorer_and_cache": []}
    for run in range(arguments.runs + 1):
        with ScoreCache(folder / f"{top_k}-{batch}-{run}.sqlite") as cache:
            keeping._remote = replace(remote, cache=cache)
            for name, work in (
                ("bare", bare),
                ("scorer", lambda: scorer.score(texts)),
                ("scorer_and_cache", lambda: keeping.score(texts)),
            ):
                used = measured(work)
                if run:  # the first one opens connections, and loads what is loaded late
                    found[name].append(used)
    remote.close()
    report: dict[str, Any] = {"top_k": top_k, "texts_in_a_request": batch, "ideal_s": ideal_s}
    for name, runs in found.items():
        report[name] = {
            "ratio": round(statistics.median(wall for wall, _ in runs) / ideal_s, 3),
            "least": round(min(wall for wall, _ in runs) / ideal_s, 3),
            "cpu_ms": round(statistics.median(cpu for _, cpu in runs) * 1000 / arguments.rollouts, 2),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--top-k", type=int, nargs="+", default=[0, 20, 64])
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.rollouts, arguments.tokens, arguments.serve, arguments.latency)
        return
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for top_k in arguments.top_k:
            with mock(arguments, top_k) as url:
                cases += [measure_case(arguments, url, top_k, batch, Path(folder)) for batch in (1, 2)]
    criteria = {
        f"k={case['top_k']} batch={case['texts_in_a_request']}: wall <= {MOST} x ideal": case["scorer"]["ratio"] <= MOST
        for case in cases
    }
    finish({"load": load(), "cores": os.cpu_count(), "cases": cases, "criteria": criteria})


if __name__ == "__main__":
    main()
