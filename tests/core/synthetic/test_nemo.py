"""--backend nemo: what data-designer is given, what the model behind it is asked, and what becomes of what is lost."""

import asyncio
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import pytest

from core.data.text import without_surrogates
from core.errors import MissingDependency, TeacherUnavailable, Throttled, TransientError, UsageError
from core.synthetic import nemo as module
from core.synthetic.domain import NemoJudge, NemoSampler, NemoSettings, NemoValidator, load_domain
from core.synthetic.nemo import (
    Nemo,
    Process,
    Samples,
    as_material,
    find_data_designer,
    read_review,
    review_overhead,
    version,
)
from core.teachers import Completer, Completion, Message, Sampling, Usage
from core.teachers.openai_api import ApiTeacher
from tests.support.running import KEY, ROOT, Received, Reply, SmallServer, chat_answer, small_server

T = TypeVar("T")
REFERENCE = (ROOT / "skills/on-policy/references/nvidia.md").read_text(encoding="utf-8")

try:
    find_data_designer()
    HERE = True
except MissingDependency:
    HERE = False
needs_it = pytest.mark.skipif(not HERE, reason="data-designer is not installed")

SAMPLING = Sampling(max_tokens=64, temperature=0.5)
SETTINGS = NemoSettings.model_validate(
    {
        "judges": [
            {"name": "helpful", "rubric": "Does it help?", "scores": {1: "no", 2: "a little", 3: "yes"}, "least": 2},
            {"name": "kind", "rubric": "Is it kind?", "scores": {0: "no", 1: "yes"}},
        ],
        "validators": [
            {"name": "code", "kind": "python"},
            {"name": "polite", "kind": "pattern", "pattern": "(?i)please", "of": "question"},
        ],
    }
)
SAMPLERS = NemoSettings.model_validate(
    {
        "samplers": [
            {"name": "mood", "kind": "category", "params": {"values": ["calm", "cross"], "weights": [0.8, 0.2]}},
            {
                "name": "tone",
                "kind": "subcategory",
                "params": {"category": "mood", "values": {"calm": ["soft"], "cross": ["loud"]}},
            },
            {"name": "age", "kind": "uniform", "params": {"low": 18, "high": 90}, "convert_to": "int"},
            {"name": "who", "kind": "person", "params": {"locale": "en_GB", "age_range": [30, 40]}},
        ]
    }
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "data_designer.log"


def with_nemo(
    server: SmallServer, log: Path, work: Callable[[Nemo, Completer], Awaitable[T]], settings: NemoSettings = SETTINGS
) -> T:
    """Do something with a data-designer that asks a server."""

    async def run() -> T:
        model = ApiTeacher("m", "openai", base_url=server.url, api_key_env="MY_KEY", timeout_s=20)
        nemo = Nemo(settings, 0, log, at_once=8, timeout_s=20)
        try:
            return await work(nemo, model)
        finally:
            await nemo.aclose()
            await nemo.aclose()
            await model.aclose()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


# ---- questions and answers -------------------------------------------------------------------------------------------


@pytest.mark.nemo
@needs_it
def test_the_model_gets_the_turns_as_they_are_and_each_row_its_own_answer(log: Path):
    """What templates or JSON in a text could do to data-designer, they do not do to the request."""
    asked: list[list[Message]] = [
        [
            {"role": "system", "content": "You write questions."},
            *user("Write one."),
            {"role": "assistant", "content": '{"question": "Why?"}'},
            *user("One more."),
        ],
        user('{"a": [1, 2]}'),
        user("  {{ 7 * 7 }} {% for %} <built-in method x of y at 0x1>\n\n"),
        [*user("Half \ud83d"), {"role": "assistant", "content": "a pair \ud83d"}, *user("#1\nHalf a pair: \ud83d")],
        user("Cut off."),
    ]

    def reply(request: Received) -> Reply:
        said = request.json["messages"][-1]["content"]
        body = json.loads(chat_answer(f"To {said.strip()}", reasoning_content="Hm."))
        body["choices"][0]["finish_reason"] = "length" if said == "Cut off." else "stop"
        return Reply(body=json.dumps(body).encode())

    async def work(nemo: Nemo, model: Completer) -> list[Completion]:
        teacher = nemo.teacher(model)
        return await asyncio.gather(*(teacher.complete(messages, SAMPLING) for messages in asked))

    with small_server(reply) as server:
        answers = with_nemo(server, log, work)
    asked = without_surrogates(asked)  # which no request can hold
    assert [answer.text for answer in answers] == [f"To {messages[-1]['content'].strip()}" for messages in asked]
    assert [answer.finish_reason for answer in answers] == ["stop"] * 4 + ["length"]
    assert {answer.reasoning for answer in answers} == {"Hm."}
    assert answers[0].usage == Usage(10, 5)
    assert answers[0].cost_usd == 0.001
    sent = [request.json for request in server.chats]
    assert sorted(json.dumps(body["messages"]) for body in sent) == sorted(json.dumps(each) for each in asked)
    assert {(body["temperature"], body["max_tokens"]) for body in sent} == {(0.5, 64)}
    assert {request.headers["authorization"] for request in server.chats} == {f"Bearer {KEY}"}
    assert "data_designer" in log.read_text("utf-8") or "Model usage" in log.read_text("utf-8")
    assert KEY not in log.read_text("utf-8")


@pytest.mark.nemo
@needs_it
def test_what_a_model_refuses_is_that_rows_error_and_is_not_asked_again_below_us(log: Path):
    def reply(request: Received) -> Reply:
        said = request.json["messages"][-1]["content"]
        if said == "too much":
            return Reply(429, b'{"error": {"message": "slow down"}}', {"retry-after": "7"})
        return Reply(body=chat_answer("" if said == "nothing" else "Fine."))

    async def work(nemo: Nemo, model: Completer) -> list[Any]:
        teacher = nemo.teacher(model)
        texts = ("too much", "nothing", "hello")
        said = await asyncio.gather(*(teacher.complete(user(text), SAMPLING) for text in texts), return_exceptions=True)
        alone = await asyncio.gather(teacher.complete(user("too much"), SAMPLING), return_exceptions=True)
        return [*said, *alone]

    with small_server(reply) as server:
        throttled, empty, fine, alone = with_nemo(server, log, work)
    for error in (throttled, alone):  # alone: data-designer says that the whole batch failed
        assert isinstance(error, Throttled)
        assert error.retry_after_s == 7
    assert "empty" in str(empty)
    assert fine.text == "Fine."
    assert len(server.chats) == 4


@pytest.mark.nemo
@needs_it
def test_answers_of_two_models_and_many_rows_do_not_mix(log: Path):
    def reply(request: Received) -> Reply:
        body = request.json
        return Reply(body=chat_answer(f"{body['model']} to {body['messages'][-1]['content']}"))

    async def work(nemo: Nemo, model: Completer) -> list[Completion]:
        other = ApiTeacher("other", "openai", base_url=model.endpoint, api_key_env="MY_KEY")
        teachers = [nemo.teacher(model), nemo.teacher(other)]
        try:
            return await asyncio.gather(*(teachers[n % 2].complete(user(f"{n}"), SAMPLING) for n in range(130)))
        finally:
            await other.aclose()

    with small_server(reply) as server:
        answers = with_nemo(server, log, work)
    assert [answer.text for answer in answers] == [f"{('m', 'other')[n % 2]} to {n}" for n in range(130)]
    assert len(server.chats) == 130


@pytest.mark.nemo
@needs_it
def test_what_was_paid_before_data_designer_died_is_kept(log: Path):
    hold = threading.Event()

    def reply(request: Received) -> Reply:
        if request.json["messages"][-1]["content"] == "slow":
            hold.wait(20)
        return Reply(body=chat_answer("Fine."))

    async def work(nemo: Nemo, model: Completer) -> list[Any]:
        teacher = nemo.teacher(model)
        both = asyncio.gather(
            *(teacher.complete(user(text), SAMPLING) for text in ("quick", "slow")), return_exceptions=True
        )
        while not any(row.told for row in nemo._batch):
            await asyncio.sleep(0.05)
        process = nemo._process._process
        assert process is not None
        process.kill()
        said = await both
        hold.set()
        again = await teacher.complete(user("again"), SAMPLING)  # a new process
        return [*said, again]

    with small_server(reply) as server:
        quick, slow, again = with_nemo(server, log, work)
    assert quick.text == again.text == "Fine."
    assert isinstance(slow, TeacherUnavailable)
    assert str(log) in str(slow)


# ---- reviews ---------------------------------------------------------------------------------------------------------


def scores(helpful: int, kind: int) -> str:
    given = {"helpful": {"reasoning": "It says so.", "score": helpful}, "kind": {"reasoning": "It is.", "score": kind}}
    return f"```json\n{json.dumps(given)}\n```"


def talk(question: str, answer: str) -> list[Message]:
    return [{"role": "system", "content": "Be brief."}, *user(question), {"role": "assistant", "content": answer}]


@pytest.mark.nemo
@needs_it
def test_a_review_scores_and_checks_a_conversation(log: Path):
    talks = [
        talk("How, please?", "So:\n```python\nprint(1)\n```\nand ```\nnot (python\n```"),
        talk("How?", "So:\n```python\nprint(\n```"),
        talk("Why, please?", "Judge me badly {{ x }}"),
        talk("Why, please?", "Judge me in prose"),
    ]

    def reply(request: Received) -> Reply:
        asked = request.json["messages"][-1]["content"]
        if "in prose" in asked:
            return Reply(body=chat_answer("I like it."))
        return Reply(body=chat_answer(scores(1 if "badly" in asked else 3, 1)))

    async def work(nemo: Nemo, model: Completer) -> list[Any]:
        reviewer = nemo.reviewer(model)
        return await asyncio.gather(*(reviewer.complete(each, SAMPLING) for each in talks), return_exceptions=True)

    with small_server(reply) as server:
        good, faulty, bad, prose = with_nemo(server, log, work)
    assert good.usage == Usage(10, 5)
    assert good.cost_usd == 0.001
    metadata, problem = read_review(SETTINGS, good.text)
    assert problem is None
    assert metadata == {
        "scores": {
            "helpful": {"reasoning": "It says so.", "score": 3},
            "kind": {"reasoning": "It is.", "score": 1},
        }
    }
    found = json.loads(faulty.text)["checks"]
    assert re.fullmatch(r"line \d: .* \(invalid-syntax\)", found["code"])
    assert found["polite"] == "not valid"
    problem = read_review(SETTINGS, faulty.text)[1]
    assert problem is not None
    assert (problem.reason, problem.why) == ("check", f"code: {found['code']}")
    problem = read_review(SETTINGS, bad.text)[1]
    assert problem is not None
    assert problem.reason == "low_score"
    assert problem.why == "helpful 1, at least 2 is wanted: It says so."
    assert isinstance(prose, TransientError)
    assert (prose.reason, prose.billed, prose.cost_usd) == ("not_judged", True, 0.001)
    assert "I like it." in str(prose)
    for request in server.chats:  # one request for all scores; the budget's bound holds
        (message,) = request.json["messages"]
        assert not message["content"].startswith("#")
        said = next(each for each in talks if as_material(each) in message["content"])
        assert len(message["content"].encode()) <= len(as_material(said).encode()) + review_overhead(SETTINGS)
    assert len(server.chats) == len(talks)


@pytest.mark.nemo
@needs_it
def test_checks_without_judges_ask_no_model(log: Path):
    settings = SETTINGS.model_copy(update={"judges": []})

    async def work(nemo: Nemo, model: Completer) -> Completion:
        return await nemo.reviewer(model).complete(talk("Please?", "No code."), SAMPLING)

    with small_server(lambda _: Reply(500)) as server:
        review = with_nemo(server, log, work, settings)
    assert json.loads(review.text) == {"scores": {}, "checks": {"code": None, "polite": None}}
    assert review.cost_usd == 0
    assert not server.received


# ---- samplers --------------------------------------------------------------------------------------------------------


@contextmanager
def samples(settings: NemoSettings, seed: int, log: Path) -> Iterator[Samples]:
    drawn = Samples(settings, seed, log)
    try:
        yield drawn
    finally:
        drawn.close()


@pytest.mark.nemo
@needs_it
def test_samples_follow_from_seed_slot_and_attempt(log: Path):
    with samples(SAMPLERS, 3, log) as first:
        slots = [first.of(n, 0) for n in range(120)]
        again = first.of(7, 1)
    with samples(SAMPLERS, 3, log) as second:
        assert second.of(7, 1) == again
        assert [second.of(n, 0) for n in (119, 7)] == [slots[119], slots[7]]
    with samples(SAMPLERS, 4, log) as third:
        assert [third.of(n, 0) for n in range(50)] != slots[:50]
    assert slots[:50] != slots[50:100]
    assert {(each["mood"], each["tone"]) for each in slots} == {("calm", "soft"), ("cross", "loud")}
    assert 75 < sum(each["mood"] == "calm" for each in slots) < 115
    assert all(18 <= int(each["age"]) <= 90 for each in slots)
    assert all(re.fullmatch(r"[^,{]+, [^,]+, (3\d|40), [^{]+", each["who"]) for each in slots)


@pytest.mark.nemo
@needs_it
def test_a_sampler_that_data_designer_does_not_know_is_a_mistake_of_the_users(log: Path):
    settings = NemoSettings.model_validate(
        {"samplers": [{"name": "mood", "kind": "category", "params": {"vales": ["a"]}}]}
    )
    with samples(settings, 0, log) as drawn, pytest.raises(UsageError, match=r"nemo: samplers: .*vales.*Extra inputs"):
        drawn.of(0, 0)


def test_without_samplers_nothing_is_started(log: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "find_data_designer", dict)
    with samples(NemoSettings(), 0, log) as drawn:
        assert drawn.of(0, 0) == {}
    assert not log.exists()


# ---- the process -----------------------------------------------------------------------------------------------------


@pytest.mark.nemo
@needs_it
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc here")
def test_the_process_has_no_keys_opens_no_port_and_leaves_no_files(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    home = tmp_path / "home"
    for folder in (home, tmp_path / "temporary"):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    process = Process(log)
    job = {
        "kind": "sample",
        "url": None,
        "key": "none",
        "count": 2,
        "seed": 1,
        "samplers": [each.model_dump() for each in SAMPLERS.samplers],
    }
    try:
        assert len(process.do(job)["rows"]) == 2
        running = process._process
        assert running is not None
        assert KEY.encode() not in Path(f"/proc/{running.pid}/environ").read_bytes()
        sockets = [os.readlink(each) for each in Path(f"/proc/{running.pid}/fd").iterdir() if each.is_symlink()]
        assert not [each for each in sockets if listens(each)]
    finally:
        process.close()
    assert not list(home.iterdir())
    assert not list((tmp_path / "temporary").iterdir())


def listens(file: str) -> bool:
    """Whether an open file of a process is a TCP socket that waits for connections."""
    number = file.removeprefix("socket:[").removesuffix("]")
    rows = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text("ascii").splitlines()
    ]
    return any(row[9] == number and row[3] == "0A" for row in rows[1:] if len(row) > 9)


@pytest.mark.nemo
@needs_it
def test_nobody_else_can_ask_through_the_gateway(log: Path):
    async def work(nemo: Nemo, model: Completer) -> int:
        url = f"{await nemo._url()}/chat/completions"

        def strange() -> int:
            try:
                urllib.request.urlopen(urllib.request.Request(url, b"{}", {"authorization": "Bearer x"}), timeout=5)
            except urllib.error.HTTPError as error:
                error.close()
                return error.code
            return 200

        return await asyncio.to_thread(strange)

    with small_server(lambda _: Reply(body=chat_answer())) as server:
        assert with_nemo(server, log, work) == 401
    assert not server.received


@pytest.mark.nemo
@needs_it
def test_stopping_now_does_not_wait(log: Path):
    hold = threading.Event()

    def reply(request: Received) -> Reply:
        hold.wait(20)
        return Reply(body=chat_answer())

    async def work(nemo: Nemo, model: Completer) -> float:
        asking = asyncio.create_task(nemo.teacher(model).complete(user("slow"), SAMPLING))
        while not server.received:
            await asyncio.sleep(0.05)
        began = time.monotonic()
        asking.cancel()
        await nemo.aclose()
        hold.set()
        await asyncio.wait([asking])
        return time.monotonic() - began

    with small_server(reply) as server:
        assert with_nemo(server, log, work) < 5


def test_a_missing_package_comes_with_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"--backend nemo needs .*doctor\.py --install nemo$"):
        find_data_designer()
    (tmp_path / "data_designer").mkdir()
    assert find_data_designer() == {"PYTHONPATH": str(tmp_path)}
    assert version() == "of unknown version"


# ---- the reference ---------------------------------------------------------------------------------------------------


def example(tmp_path: Path) -> NemoSettings:
    """Of the domain file in the reference."""
    (tmp_path / "python.yml").write_text(REFERENCE.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    settings = load_domain(str(tmp_path / "python.yml")).nemo
    assert settings is not None
    return settings


def test_the_reference_names_every_key_and_kind():
    for part in (NemoSettings, NemoJudge, NemoValidator, NemoSampler):
        for name in part.model_fields:
            assert f"`{name}`" in REFERENCE, name
    for part in (NemoValidator, NemoSampler):
        for kind in get_args(part.model_fields["kind"].annotation):
            assert f"`{kind}`" in REFERENCE, kind


@pytest.mark.nemo
@needs_it
def test_the_references_domain_works(tmp_path: Path, log: Path):
    settings = example(tmp_path)
    with samples(settings, 0, log) as drawn:
        assert set(drawn.of(0, 0)) == {"experience", "who"}
    answers = ("See\n```python\nprint(x)\n```", "See\n\nhttps://example.org", "```python\nx = 1\n```")

    async def work(nemo: Nemo, model: Completer) -> list[Completion]:
        reviewer = nemo.reviewer(model)
        return await asyncio.gather(*(reviewer.complete(talk("How?", answer), SAMPLING) for answer in answers))

    with small_server(lambda _: Reply(500)) as server:
        reviews = with_nemo(server, log, work, settings.model_copy(update={"judges": []}))
    checks = [json.loads(review.text)["checks"] for review in reviews]
    assert checks == [
        {"code": "line 1: Undefined name `x` (F821)", "no_links": None},
        {"code": None, "no_links": "not valid"},
        {"code": None, "no_links": None},
    ]
