"""Prompts that name a container, from the command line, with a `docker` that records its calls."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_docker import FakeDocker
from tests.support.running import ROOT, Outcome, ended, start, write_rows
from tests.support.scripted_teacher import Call, Chat, scripted_teacher

SCRIPT = ROOT / "scripts" / "run_rollouts.py"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeDocker]:
    fake = FakeDocker(tmp_path / "engine")
    fake.behave(run="mcp")
    yield fake
    fake.clear()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "Dockerfile.loud").write_text("FROM scratch\nEXPOSE 8931\nRUN printf x > /start.sh\n", encoding="utf-8")
    (folder / "config.yml").write_text("rollout:\n  mcp_url: localhost:8931\n", encoding="utf-8")
    rows = [
        {
            "messages": [{"role": "user", "content": f"Shout word{n}."}],
            "docker": "local/loud",
            "metadata": {"expected_answer": f"WORD{n}"},
        }
        for n in range(4)
    ]
    write_rows(folder / "train.jsonl", rows)
    return folder


def shouter(chat: Chat) -> str | Call:
    if not chat.results:
        return Call("shout", {"text": chat.question.split()[1].rstrip(".")})
    return f"It is {chat.results[-1]}."


def run(project: Path, engine: FakeDocker, *arguments: str) -> Outcome:
    path = f"{engine.bin}:{os.environ['PATH']}"
    return ended(start(project, "--all", "--json", *arguments, script=SCRIPT, PATH=path), timeout_s=120)


def test_one_container_for_all_is_built_used_and_removed(project: Path, engine: FakeDocker) -> None:
    with scripted_teacher(shouter) as teacher:
        outcome = run(project, engine, *teacher.options)
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["successes"] == 4
    assert outcome.result["tools_used"] == {"shout": 4}
    assert len(engine.called("build")) == 1
    assert len(engine.called("run")) == 1
    assert engine.containers == []


def test_a_container_for_each_rollout(project: Path, engine: FakeDocker) -> None:
    with scripted_teacher(shouter) as teacher:
        outcome = run(project, engine, "--docker-per-rollout", *teacher.options)
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["successes"] == 4
    assert len(engine.called("build")) == 1
    assert len(engine.called("run")) == 4
    assert engine.containers == []


def test_without_an_engine_nothing_is_asked_and_one_line_names_the_ways_on(project: Path, engine: FakeDocker) -> None:
    engine.behave(down=True)
    with scripted_teacher(shouter) as teacher:
        outcome = run(project, engine, *teacher.options)
        assert teacher.chats == []
    assert outcome.code == 2
    last = [line for line in outcome.stderr.splitlines() if "error:" in line]
    assert len(last) == 1
    assert "--browser" in last[0]
    assert "--mcp-url" in last[0]


def test_a_container_that_ends_at_once_fails_its_rollouts_with_its_last_words(
    project: Path, engine: FakeDocker
) -> None:
    engine.behave(run="exit")
    with scripted_teacher(shouter) as teacher:
        outcome = run(project, engine, *teacher.options)
        assert teacher.chats == []
    assert outcome.code == 1
    assert outcome.result["failures"] == {"container": 4}
    assert "starting with" in json.dumps(outcome.result["advice"])
    assert engine.containers == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_container_outlives_its_run(project: Path, engine: FakeDocker, number: int) -> None:
    def slow(chat: Chat) -> str | Call:
        if chat.results:
            time.sleep(3)
        return shouter(chat)

    path = f"{engine.bin}:{os.environ['PATH']}"
    with scripted_teacher(slow) as teacher:
        process = start(project, "--all", "-c", "2", *teacher.options, script=SCRIPT, PATH=path)
        for _ in range(300):
            if any(chat.results for chat in list(teacher.chats)):
                break
            time.sleep(0.1)
        held = engine.containers
        process.send_signal(number)
        outcome = ended(process)
    assert held != [], outcome.stderr
    assert outcome.code == (-9 if number == signal.SIGKILL else 130)
    for _ in range(150):
        if engine.containers == []:
            return
        time.sleep(0.1)
    raise AssertionError(f"left: {engine.containers}")
