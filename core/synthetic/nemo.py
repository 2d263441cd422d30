"""--backend nemo: NVIDIA's data-designer between our drafts and the models, with its samplers, judges and validators.

What it asks goes through a gateway on this machine, which hands it on to the model as every other back end would. So a
budget, rate limits, prices, `finish_reason` and failures, which data-designer does not tell, hold for each answer, and
it never sees a key. Rows that it drops without a word are found missing, and fail.
"""

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from ..data.keys import work_key
from ..data.text import one_line, without_surrogates
from ..errors import MissingDependency, TeacherError, TeacherUnavailable, TransientError, UsageError
from ..teachers import Completer, Completion, Message, Price, Sampling, ToolSchema
from ..teachers.judging import bar_beside
from .domain import NemoSettings
from .records import Rejected

FOLDER = Path(sys.prefix) / "share" / "data-designer"
"""Where data-designer may lie by itself, for it wants versions of packages that other parts of us cannot live with."""
PROCESS = Path(__file__).with_name("nemo_process.py")

TOGETHER = 50
"""Rows that data-designer gets at once, and attributes drawn at once."""
GATHER_S = 0.05
"""How long a row waits for others."""
SPARE_S = 30
"""By how much data-designer is more patient than the model's own timeout."""

PYTHON_BLOCK = re.compile(r"^```(?:python|py)[^\S\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "TEMP", "SYSTEMROOT")
"""Variables that the process gets: no keys, and no proxy, for it talks to this machine alone."""


def find_data_designer() -> dict[str, str]:
    """What the environment needs so that data-designer is found: in its folder, else beside our packages.

    Raises MissingDependency with the line that installs it.
    """
    if (FOLDER / "data_designer").is_dir():
        return {"PYTHONPATH": str(FOLDER)}
    if find_spec("data_designer") is not None:
        return {}
    raise MissingDependency("data-designer", "--backend nemo", "nemo")


def version() -> str:
    """Of the data-designer that is used."""
    path = [str(FOLDER)] if (FOLDER / "data_designer").is_dir() else sys.path
    return next((found.version for found in distributions(name="data-designer", path=path)), "of unknown version")


class Process:
    """data-designer in a process of its own, started when the first job comes. log: gets all that it prints."""

    def __init__(self, log: Path) -> None:
        """Raises MissingDependency."""
        self._log, self._found = log, find_data_designer()
        self._process: subprocess.Popen[bytes] | None = None
        self._place: tempfile.TemporaryDirectory[str] | None = None

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """{"rows": [...]} or {"error": why}. Blocks. Raises TeacherUnavailable when the process is gone."""
        try:
            process = self._process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError) as error:
            raise TeacherUnavailable("data_designer", f"data-designer cannot be asked: {error}") from None
        if not line.endswith(b"\n"):
            raise TeacherUnavailable(
                "data_designer", f"data-designer ended, perhaps for want of memory; see {self._log}"
            )
        return json.loads(line)

    def _start(self) -> "subprocess.Popen[bytes]":
        nowhere = "http://127.0.0.1:9"  # whatever else it may want to fetch or to tell
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        quiet = {"NEMO_TELEMETRY_ENABLED": "false", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
        same = {"PYTHONHASHSEED": "0"}  # it goes through sets of samplers, so that the seed alone would not do
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), nowhere)
        self._place = tempfile.TemporaryDirectory(prefix="data-designer-")
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(PROCESS), self._place.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=kept | quiet | same | proxies | self._found,
                start_new_session=True,  # Ctrl-C is ours: what is in flight is waited for
            )

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # a job that was never read
        if self._place is not None:
            self._place.cleanup()


class Samples:
    """The further attributes of a domain's `nemo: samplers`, drawn by data-designer."""

    def __init__(self, settings: NemoSettings, seed: int, log: Path) -> None:
        """Raises MissingDependency."""
        self._samplers = [each.model_dump(mode="json") for each in settings.samplers]
        self._seed = seed
        self._process = Process(log)
        self._block = lru_cache(maxsize=256)(self._drawn)

    def of(self, number: int, attempt: int) -> dict[str, str]:
        """Those of a slot's draft: always the same for a domain, a seed, a slot and an attempt.

        Raises UsageError for what data-designer does not accept.
        """
        return self._block(number // TOGETHER, attempt)[number % TOGETHER] if self._samplers else {}

    def _drawn(self, block: int, attempt: int) -> list[dict[str, str]]:
        # A seed of numpy has 32 bits.
        seed = int(work_key(["nemo", self._seed, block, attempt])[:8], 16)
        job = {
            "kind": "sample",
            "url": None,
            "key": "none",
            "count": TOGETHER,
            "seed": seed,
            "samplers": self._samplers,
        }
        try:
            result = self._process.do(job)
        except TeacherUnavailable as error:
            raise UsageError(f"{error}.") from None
        if "error" in result or len(result["rows"]) != TOGETHER:
            why = one_line(result.get("error", "rows are missing"), 400)
            raise UsageError(f"nemo: samplers: data-designer does not accept them: {why}")
        return result["rows"]

    def close(self) -> None:
        self._process.close()


@dataclass(eq=False)
class _Row:
    """Something to ask or to review. told: what the model said to it."""

    model: Completer
    sampling: Sampling
    messages: list[Message]
    review: bool
    result: "asyncio.Future[Completion]"
    told: Completion | TeacherError | None = None

    @property
    def kind(self) -> tuple[Any, ...]:
        """What rows have in common that go together."""
        return id(self.model), self.review, replace(self.sampling, seed=None)


class Nemo:
    """One data-designer for all models of a run. at_once: most requests to a model.   timeout_s: of one request.
    log: gets what it prints; its folder is there when the first thing is asked."""

    def __init__(self, settings: NemoSettings, seed: int, log: Path, at_once: int, timeout_s: float) -> None:
        """Raises MissingDependency."""
        self.samples = Samples(settings, seed, log)
        self.settings, self.log = settings, log
        self._at_once, self._timeout_s = at_once, timeout_s
        self._process = Process(log)
        self._key = secrets.token_urlsafe(24)  # so that nobody else on this machine asks at the user's expense
        self._waiting: list[_Row] = []
        self._batch: list[_Row] = []
        self._worker: asyncio.Task[None] | None = None
        self._gateway: web.AppRunner | None = None

    def teacher(self, model: Completer) -> "NemoTeacher":
        """A model that is asked by way of data-designer."""
        return NemoTeacher(self, model, review=False)

    def reviewer(self, model: Completer) -> "NemoTeacher":
        """What gives a conversation its scores, by a model, and checks it: the answer is JSON for `read_review`."""
        return NemoTeacher(self, model, review=True)

    async def ask(self, model: Completer, sampling: Sampling, messages: list[Message], review: bool) -> Completion:
        """An answer, or a review. Raises TeacherError as the model does, or when data-designer lost it."""
        row = _Row(model, sampling, messages, review, asyncio.get_running_loop().create_future())
        self._waiting.append(row)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await row.result

    async def aclose(self) -> None:
        """End data-designer and the gateway. Does nothing the second time."""
        self.samples.close()
        self._process.close()
        for row in (*self._waiting, *self._batch):
            row.result.cancel()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        if self._gateway is not None:
            await self._gateway.cleanup()
            self._gateway = None

    # ---- batches -----------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Give data-designer what waits, until nothing does."""
        while self._waiting:
            await asyncio.sleep(GATHER_S)
            kind = self._waiting[0].kind
            self._batch = [row for row in self._waiting if row.kind == kind][:TOGETHER]
            self._waiting = [row for row in self._waiting if row not in self._batch]
            try:
                await self._do(self._batch)
            except Exception as error:  # nobody else would hear of it
                for row in self._batch:
                    if not row.result.done():
                        row.result.set_exception(error)

    async def _do(self, batch: list[_Row]) -> None:
        """Have a batch answered. Answers that were paid are kept, even where data-designer ended after them."""
        try:
            result = await asyncio.to_thread(self._process.do, await self._job(batch))
        except TeacherUnavailable as error:
            self._process.close()
            for row in batch:
                self._end(row, None, error)
            return
        why = one_line(result.get("error", "it dropped the row"), 400)
        rows = {row["record"]: row for row in result.get("rows", [])}
        for number, row in enumerate(batch):
            self._end(
                row, rows.get(_mark(number)), TransientError("data_designer", f"data-designer gave nothing: {why}")
            )

    def _end(self, row: _Row, made: dict[str, Any] | None, lost: TeacherError) -> None:
        """The row's answer. lost: where there is none, and the model did not say why."""
        if row.result.done():  # cancelled
            return
        told = row.told
        if isinstance(told, TeacherError):
            row.result.set_exception(told)
        elif row.review and made is not None and (told is not None or not self.settings.judges):
            row.result.set_result(self._reviewed(made, told))
        elif told is None:
            row.result.set_exception(lost)
        elif row.review:
            message = f"the judge did not give its scores in the form that was asked for: {one_line(told.text)}"
            row.result.set_exception(TransientError("not_judged", message, billed=True, cost_usd=told.cost_usd))
        else:
            row.result.set_result(replace(told, text=made["reply"]) if made and made["reply"] else told)

    async def _job(self, batch: list[_Row]) -> dict[str, Any]:
        """What data-designer is told. A row's number stands at the beginning of all that it sends: the gateway takes it
        away."""
        first = batch[0]
        asks = not first.review or bool(self.settings.judges)
        job = {
            "kind": "review" if first.review else "ask",
            "url": await self._url() if asks else None,
            "key": self._key,
            "at_once": self._at_once,
            "timeout": self._timeout_s + SPARE_S,
            "sampling": asdict(first.sampling),
        }
        if not first.review:
            return job | {"rows": [_asked(_mark(n), row.messages) for n, row in enumerate(batch)]}
        settings = self.settings.model_dump(mode="json")
        rows = [
            {"record": _mark(n), "conversation": _text(as_material(row.messages)), **self._checked(row.messages)}
            for n, row in enumerate(batch)
        ]
        return job | {"judges": settings["judges"], "checks": settings["validators"], "rows": rows}

    # ---- gateway -----------------------------------------------------------------------------------------------

    async def _url(self) -> str:
        if self._gateway is None:
            app = web.Application(client_max_size=64 * 2**20)
            app.router.add_post("/v1/chat/completions", self._handle)
            gateway = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)  # who closes it waits for nobody
            await gateway.setup()
            await web.TCPSite(gateway, "127.0.0.1", 0).start()
            self._gateway = gateway
        return f"http://127.0.0.1:{self._gateway.addresses[0][1]}/v1"

    async def _handle(self, request: web.Request) -> web.Response:
        """A request of data-designer's: ask the model, and remember what it said."""
        if not secrets.compare_digest(request.headers.get("authorization", ""), f"Bearer {self._key}"):
            return _refused("this gateway is not for you", 401)
        body = orjson.loads(await request.read())
        sent = [(str(each["role"]), _flat(each["content"])) for each in body["messages"]]
        mark = sent[-1][1].partition("\n")[0]
        row = next((row for number, row in enumerate(self._batch) if _mark(number) == mark), None)
        if row is None:
            return _refused(f"no row of this batch: {one_line(mark)}")
        texts = [{"role": role, "content": text.partition("\n")[2]} for role, text in sent]
        before = [] if row.review else [each for each in row.messages[:-1] if each["role"] != "system"]
        messages = [*(each for each in texts[:-1] if each["content"]), *without_surrogates(before), texts[-1]]
        try:
            said = row.told = await row.model.complete(messages, row.sampling)
        except TeacherError as error:
            row.told = error
            return _refused(error.reason)
        usage = {"prompt_tokens": said.usage.prompt_tokens, "completion_tokens": said.usage.completion_tokens}
        usage["total_tokens"] = sum(usage.values())
        message = {"role": "assistant", "content": said.text}
        choice = {"index": 0, "message": message, "finish_reason": said.finish_reason}
        answer = {"id": mark, "object": "chat.completion", "created": 0, "model": row.model.model}
        return web.json_response(answer | {"choices": [choice], "usage": usage})

    # ---- reviews -----------------------------------------------------------------------------------------------

    def _checked(self, messages: Sequence[Message]) -> dict[str, str]:
        """What each validator looks at, by the name of its column."""
        texts: dict[str, str] = {}
        for check in self.settings.validators:
            role = "user" if check.of == "question" else "assistant"
            text = "\n\n".join(str(said["content"]) for said in messages if said["role"] == role)
            if check.kind == "python":
                text = "\n\n".join(PYTHON_BLOCK.findall(text))
            texts[f"of_{check.name}"] = _text(text)
        return texts

    def _reviewed(self, made: dict[str, Any], told: Completion | None) -> Completion:
        checks = {each.name: _fault(made[f"check_{each.name}"]) for each in self.settings.validators}
        text = json.dumps({"scores": made.get("scores") or {}, "checks": checks}, ensure_ascii=False)
        if told is None:
            return Completion(text, "stop", cost_usd=0.0)
        return Completion(text, "stop", usage=told.usage, cost_usd=told.cost_usd)


class NemoTeacher:
    """A `Completer` that asks a model by way of data-designer. review: it judges and checks what it is given."""

    context_tokens: int | None = None
    concurrency = TOGETHER

    def __init__(self, nemo: Nemo, model: Completer, review: bool) -> None:
        self._nemo, self._model, self._review = nemo, model, review
        self.backend, self.model, self.local = "nemo", model.model, model.local
        self.endpoint = model.endpoint
        self.identity = {**model.identity, "through": "data-designer"}
        if review:
            self.identity["nemo"] = nemo.settings.model_dump(mode="json", include={"judges", "validators"})

    @property
    def notes(self) -> list[str]:
        return [*self._model.notes, f"by way of data-designer {version()}; its log is {self._nemo.log}"]

    async def prepare(self, note: Callable[[str], None]) -> None:
        await self._model.prepare(note)

    async def complete(
        self, messages: list[Message], sampling: Sampling, tools: Sequence[ToolSchema] = ()
    ) -> Completion:
        """One answer. Raises TeacherError."""
        return await self._nemo.ask(self._model, sampling, messages, self._review)

    def sampling_sent(self, sampling: Sampling) -> dict[str, Any]:
        return self._model.sampling_sent(sampling)

    async def price(self) -> Price | None:
        return await self._model.price()

    async def credit_left_usd(self) -> float | None:
        return await self._model.credit_left_usd()

    def drain(self) -> None:
        self._model.drain()

    async def aclose(self) -> None:
        """Ends data-designer too, for all that it asks."""
        await self._nemo.aclose()
        await self._model.aclose()


def review_overhead(settings: NemoSettings) -> int:
    """Bytes, at most, that data-designer puts around a conversation when it asks a judge: rubrics, and a schema of the
    answer."""
    return 1500 + sum(1000 + 2 * len(judge.model_dump_json().encode()) for judge in settings.judges)


def read_review(settings: NemoSettings, text: str) -> tuple[dict[str, Any], Rejected | None]:
    """(what becomes of the record's metadata, why it is not kept) of a reviewer's answer."""
    review = json.loads(text)
    scores, checks = review["scores"], review["checks"]
    metadata = {"scores": scores} if scores else {}
    for judge in settings.judges:
        given = scores[judge.name]
        if judge.least is not None and int(given["score"]) < judge.least:
            why = f"{judge.name} {given['score']}, at least {judge.least} is wanted: {given['reasoning']}"
            return metadata, Rejected("low_score", why)
    for name, fault in checks.items():
        if fault is not None:
            return metadata, Rejected("check", f"{name}: {fault}")
    return metadata, None


def as_material(messages: Sequence[Message]) -> str:
    """A conversation for a judge, between marks that it cannot draw."""
    bar = bar_beside([str(said["content"]) for said in messages])
    said = (f"{bar} {str(each['role']).upper()} {bar}\n{each['content']}" for each in messages)
    return "\n".join([*said, f"{bar} END {bar}"])


def _asked(mark: str, messages: Sequence[Message]) -> dict[str, str]:
    """A row of data-designer: what stands in its columns' templates. The turns between are the gateway's to add."""
    system = next((str(each["content"]) for each in messages if each["role"] == "system"), "")
    prompt = str(messages[-1]["content"])
    return {"record": mark, "system": f"{mark}\n{_text(system)}", "prompt": f"{mark}\n{_text(prompt)}"}


def _mark(number: int) -> str:
    """At the beginning of a row's texts. (With it, none looks like JSON, which data-designer would take apart.)"""
    return f"#{number}"


def _text(text: str) -> str:
    return without_surrogates(text)  # a single one would cost the whole batch


def _flat(content: Any) -> str:
    """A message's content, which may come in parts."""
    return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)


def _fault(outcome: Any) -> str | None:
    """What a validator found; None where all is well."""
    if isinstance(outcome, dict) and outcome.get("is_valid"):
        return None
    messages = outcome.get("python_linter_messages") if isinstance(outcome, dict) else None
    if not messages:
        return "not valid"
    first = messages[0]
    return one_line(f"line {first['line']}: {first['message']} ({first['symbol']})")


def _refused(why: str, status: int = 400) -> web.Response:
    """An answer that data-designer takes for its own mistake, so that it does not ask again: that is the engine's to
    decide."""
    return web.json_response({"error": {"message": why}}, status=status)
