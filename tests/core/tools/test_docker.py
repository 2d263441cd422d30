"""Containers through a fake `docker` that records its calls; the containers' servers are real processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import UsageError
from core.tools import docker
from core.tools.docker import Containers, answers_http
from core.tools.docker_client import environment_options
from core.tools.docker_images import Image, exposed_ports, image_of, local_source
from core.tools.leash import Leash
from core.tools.protocol import ToolsetGone
from tests.support.fake_docker import FakeDocker
from tests.support.running import ROOT, environment

DOCKERFILE = "FROM scratch\nEXPOSE 8931\nRUN printf x > /start.sh\n"
SECRET = "sk-0123456789abcdef"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDocker]:
    fake = FakeDocker(tmp_path / "engine")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    yield fake
    fake.clear()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "Dockerfile.site").write_text(DOCKERFILE, encoding="utf-8")
    return folder


Work = Callable[[Containers], Awaitable[Any]]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def using(engine: FakeDocker, project: Path, notes: list[str]) -> Callable[[Work], Any]:
    """Run `work` with containers that are closed afterwards, whatever happened."""

    def run(work: Work) -> Any:
        async def all_of_it() -> Any:
            with Leash() as leash:
                containers = Containers(project, run_label="run-1", leash=leash, note=notes.append)
                try:
                    return await work(containers)
                finally:
                    await containers.aclose()

        return asyncio.run(all_of_it())

    return run


def test_an_engine_that_answers_is_named_by_its_version(using: Any) -> None:
    assert using(lambda containers: containers.check()) == "29.0.0"


def test_where_no_engine_answers_one_line_names_the_ways_on(using: Any, engine: FakeDocker) -> None:
    engine.behave(down=True)
    with pytest.raises(UsageError) as caught:
        using(lambda containers: containers.check())
    words = str(caught.value)
    assert words == (
        "no Docker engine answers (Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running). "
        "Use --browser, or start a server yourself and pass --no-docker --mcp-url localhost:8931."
    )


def test_an_engine_that_hangs_is_not_waited_for(
    using: Any, engine: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.behave(hang=60)
    monkeypatch.setattr(docker, "ASK_S", 1.0)
    with pytest.raises(UsageError, match=r"gave no answer within .*--browser"):
        using(lambda containers: containers.check())


def test_no_docker_program_at_all_is_said(using: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"there is no `docker` on the PATH.*--mcp-url"):
        using(lambda containers: containers.check())


def test_an_image_is_built_once_and_again_only_when_its_dockerfile_changed(
    using: Any, engine: FakeDocker, project: Path, notes: list[str]
) -> None:
    async def twice(containers: Containers) -> tuple[Image, Image]:
        first, second = await asyncio.gather(containers.image("local/site"), containers.image("local/site"))
        return first, second

    first, second = using(twice)
    assert first is second
    assert len(engine.called("build")) == 1
    using(lambda containers: containers.image("local/site"))  # another run, the same file
    assert len(engine.called("build")) == 1
    (project / "Dockerfile.site").write_text(DOCKERFILE + "# changed\n", encoding="utf-8")
    changed = using(lambda containers: containers.image("local/site"))
    assert len(engine.called("build")) == 2
    assert changed.tag != first.tag
    assert changed.tag.startswith("local/site:")
    assert len([note for note in notes if "building local/site" in note]) == 2


def test_a_build_sees_the_text_alone_and_its_last_lines_are_shown(using: Any, project: Path) -> None:
    (project / "Dockerfile.site").write_text("FROM scratch\nCOPY app /app\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        using(lambda containers: containers.image("local/site"))
    words = str(caught.value)
    assert "local/site: docker build failed" in words
    assert "did not complete successfully: COPY app /app" in words
    assert "COPY and ADD find no files of yours" in words


def test_the_bundle_lends_its_dockerfile_and_says_so_but_the_projects_own_comes_first(
    using: Any, engine: FakeDocker, project: Path, notes: list[str]
) -> None:
    image = using(lambda containers: containers.image("local/playwright"))
    assert (image.ports, image.start_script, image.read_only) == ((8931,), True, True)
    assert [note for note in notes if "using the one of distill" in note]
    notes.clear()
    (project / "Dockerfile.playwright").write_text("FROM scratch\nEXPOSE 1234\n", encoding="utf-8")
    own = using(lambda containers: containers.image("local/playwright"))
    assert own.ports == (1234,)
    assert not [note for note in notes if "using the one of distill" in note]


def test_a_missing_dockerfile_is_named_with_its_place(using: Any, project: Path) -> None:
    with pytest.raises(UsageError) as caught:
        using(lambda containers: containers.image("local/nothing"))
    assert str(caught.value).startswith(f"{project}/Dockerfile.nothing: not found")


@pytest.mark.parametrize("ref", ["local/../secret", "local/", "local/a b", "--privileged", "-v/:/host", "a b", ""])
def test_a_name_that_is_a_path_or_an_option_is_refused(ref: str, using: Any, engine: FakeDocker) -> None:
    with pytest.raises(UsageError):
        using(lambda containers: containers.start(ref))
    assert engine.calls == []


def test_a_registry_image_is_pulled_once(using: Any, engine: FakeDocker) -> None:
    engine.behave(registry=["mcp/thing:1.2"])
    for _ in range(2):
        image = using(lambda containers: containers.image("mcp/thing:1.2"))
        assert image == Image("mcp/thing:1.2", "mcp/thing:1.2", (8931,), start_script=False, read_only=False)
    assert len(engine.called("pull")) == 1
    with pytest.raises(UsageError, match=r"(?s)mcp/nothing: docker pull failed.*pull access denied"):
        using(lambda containers: containers.image("mcp/nothing"))


def test_an_image_that_exposes_nothing_needs_a_port(using: Any, engine: FakeDocker) -> None:
    engine.add_image("plain")
    with pytest.raises(UsageError, match="exposes no port"):
        using(lambda containers: containers.start("plain"))

    async def with_a_port(containers: Containers) -> int:
        return (await containers.start("plain", port=8931)).inner_port

    assert using(with_a_port) == 8931


def test_a_container_is_published_on_loopback_only_with_few_rights(using: Any, engine: FakeDocker) -> None:
    async def work(containers: Containers) -> docker.Container:
        container = await containers.start("local/site")
        await containers.wait_healthy(container, 20)
        assert await answers_http(container.port)
        return container

    container = using(work)
    (call,) = engine.called("run")
    assert call[call.index("--publish") + 1] == "127.0.0.1::8931"
    assert container.address == f"localhost:{container.port}"
    text = " ".join(call)
    assert "--init --cap-drop ALL --security-opt no-new-privileges --shm-size 1g --memory 2g --pids-limit 512" in text
    assert "--label distill.run=run-1" in text
    assert f"--label distill.pid={os.getpid()}:" in text
    assert "--pull never" in text  # else a missing local/... would be asked from a public registry
    assert "--read-only" not in call
    assert call[-5:-3] == ["--entrypoint", "/start.sh"]
    assert call[-2:] == ["sleep", "infinity"]
    assert engine.containers == []


def test_an_image_without_a_start_script_keeps_its_entrypoint(using: Any, engine: FakeDocker, project: Path) -> None:
    (project / "Dockerfile.site").write_text("# not /start.sh\nFROM scratch\nEXPOSE 80/tcp\n", encoding="utf-8")
    using(lambda containers: containers.start("local/site"))
    (call,) = engine.called("run")
    assert call[-1].startswith("local/site:")
    assert "--entrypoint" not in call


def test_the_shipped_image_runs_on_a_read_only_file_system(using: Any, engine: FakeDocker) -> None:
    using(lambda containers: containers.start("local/playwright"))
    (call,) = engine.called("run")
    assert "--read-only" in call
    assert call[call.index("--tmpfs") + 1].startswith("/tmp:")


def test_values_of_the_environment_arrive_but_stand_on_no_command_line(using: Any, engine: FakeDocker) -> None:
    given = {"TOKEN": SECRET, "LINES": "one\ntwo", "PATH": "/opt/bin", "DOCKER_HOST": "tcp://nowhere:1", "EMPTY": ""}

    async def work(containers: Containers) -> dict[str, str]:
        await containers.start("local/site", given)
        return engine.containers[0]["Env"]

    assert using(work) == given
    assert SECRET not in json.dumps(engine.calls)
    assert "nowhere" not in json.dumps(engine.calls)


@pytest.mark.parametrize(
    "env", [{"A B": "1"}, {"": "1"}, {"A=B": "1"}, {"A": "\0"}, {"A": "\ud800"}, {"HOME": "two\nlines"}], ids=repr
)
def test_an_environment_that_no_container_can_have_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="docker_env of local/site"):
        environment_options("local/site", env)


def test_a_container_that_exits_is_an_error_with_its_last_lines_but_without_secrets(
    using: Any, engine: FakeDocker
) -> None:
    engine.behave(run="exit")
    with pytest.raises(ToolsetGone) as caught:
        using(lambda containers: containers.start("local/site", {"TOKEN": SECRET}))
    assert str(caught.value) == (
        "the container of local/site ended with exit code 7; its last lines:\n  starting with ***"
    )
    assert engine.containers == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("silent", r"did not answer on port 8931 within 1 s; its last lines:\n  busy"),
        ("unhealthy", r"is unhealthy \(connect ECONNREFUSED\)"),
        ("deaf", r"it is healthy inside: does its server listen on 0\.0\.0\.0\?"),
    ],
)
def test_a_container_that_never_gets_ready_is_an_error_and_is_removed(
    kind: str, words: str, using: Any, engine: FakeDocker
) -> None:
    engine.behave(run=kind)

    async def work(containers: Containers) -> None:
        async with containers.own("local/site", timeout_s=1):
            raise AssertionError

    with pytest.raises(ToolsetGone, match=words):
        using(work)
    assert engine.containers == []


def test_a_container_that_dies_while_it_is_waited_for_is_noticed(using: Any, engine: FakeDocker) -> None:
    engine.behave(run="silent")

    async def work(containers: Containers) -> None:
        container = await containers.start("local/site")
        engine.kill(container.name)
        await containers.wait_healthy(container, 30)

    began = time.monotonic()
    with pytest.raises(ToolsetGone, match="ended with exit code 137"):
        using(work)
    assert time.monotonic() - began < 15


def test_an_engine_that_goes_away_is_told_apart_from_a_container_that_does(using: Any, engine: FakeDocker) -> None:
    engine.behave(run="silent")

    async def work(containers: Containers, down: bool) -> None:
        container = await containers.start("local/site")
        if down:
            engine.behave(down=True)
        else:
            await containers.remove(container)
        try:
            await containers.wait_healthy(container, 20)
        finally:
            engine.behave(down=False)

    with pytest.raises(ToolsetGone, match="local/site: docker inspect failed: Cannot connect to the Docker daemon"):
        using(lambda containers: work(containers, down=True))
    with pytest.raises(ToolsetGone, match="the container of local/site is gone"):
        using(lambda containers: work(containers, down=False))


def test_a_real_mcp_server_in_a_container_is_waited_for_and_used(using: Any, engine: FakeDocker) -> None:
    from mcp.client.client import Client

    engine.behave(run="mcp")

    async def work(containers: Containers) -> str:
        container = await containers.shared("local/site")
        async with Client(f"http://{container.address}/mcp") as client:
            result = await client.call_tool("shout", {"text": "heard"})
        return result.content[0].text  # type: ignore[union-attr]

    assert using(work) == "HEARD"


def test_rollouts_share_a_container_or_have_their_own(using: Any, engine: FakeDocker) -> None:
    async def own(containers: Containers) -> str:
        async with containers.own("local/site") as container:
            assert await answers_http(container.port)
            return container.name

    async def work(containers: Containers) -> None:
        shared = await asyncio.gather(*(containers.shared("local/site") for _ in range(5)))
        assert len({container.name for container in shared}) == 1
        other = await containers.shared("local/site", {"A": "1"})
        assert other.name != shared[0].name
        assert len(set(await asyncio.gather(*(own(containers) for _ in range(3))))) == 3
        assert {it["Name"] for it in engine.containers} == {shared[0].name, other.name}

    using(work)
    assert len(engine.called("run")) == 5
    assert engine.containers == []


def test_a_shared_container_that_died_is_replaced(using: Any, engine: FakeDocker, notes: list[str]) -> None:
    async def work(containers: Containers) -> None:
        first = await containers.shared("local/site")
        engine.kill(first.name)
        second = await containers.shared("local/site")
        assert first.name != second.name
        assert await answers_http(second.port)
        assert [it["Name"] for it in engine.containers] == [second.name]

    using(work)
    assert "docker: the container of local/site has died; starting another" in notes


def test_a_shared_container_that_fails_twice_is_not_tried_for_every_rollout(using: Any, engine: FakeDocker) -> None:
    engine.behave(run="exit")

    async def work(containers: Containers) -> list[Any]:
        tries = (containers.shared("local/site") for _ in range(20))
        return await asyncio.gather(*tries, return_exceptions=True)

    outcomes = using(work)
    assert {type(outcome) for outcome in outcomes} == {ToolsetGone}
    assert len(engine.called("run")) == 2


def test_containers_are_removed_after_an_exception_and_after_a_cancellation(using: Any, engine: FakeDocker) -> None:
    async def failing(containers: Containers) -> None:
        async with containers.own("local/site"):
            await containers.shared("local/site")
            raise RuntimeError("the rollout")

    with pytest.raises(RuntimeError, match="the rollout"):
        using(failing)
    assert engine.containers == []

    engine.behave(slow_answer=1.0)  # the container is there, and its name not yet known to us

    async def cancelled(containers: Containers) -> None:
        task = asyncio.create_task(containers.start("local/site"))
        while not engine.containers:
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.containers == []

    using(cancelled)


def test_what_cannot_be_removed_is_said(using: Any, engine: FakeDocker, notes: list[str]) -> None:
    async def work(containers: Containers) -> None:
        container = await containers.start("local/site")
        engine.behave(rm_fails=True)
        await containers.remove(container)
        engine.behave(rm_fails=False)  # so that the end succeeds

    using(work)
    assert any("could not remove" in note and "driver failed" in note for note in notes)
    assert engine.containers == []


OWNER = """
import asyncio, sys, pathlib
from core.tools.docker import Containers
from core.tools.leash import Leash

async def main():
    containers = Containers(pathlib.Path(sys.argv[1]), run_label="owner", leash=Leash(), note=lambda text: None)
    try:
        if sys.argv[2] == "ready":
            await containers.shared("local/site")
            print("ready", flush=True)
        else:
            await containers.image("local/site")
            print("starting", flush=True)
            await containers.shared("local/site")
        await asyncio.sleep(600)
    finally:
        await containers.aclose()

asyncio.run(main())
"""


def owner(project: Path, when: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(project), when],
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() in (b"ready", b"starting")
    return process


def gone(engine: FakeDocker, limit_s: float = 15) -> bool:
    end = time.monotonic() + limit_s
    while engine.containers and time.monotonic() < end:
        time.sleep(0.05)
    return not engine.containers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_containers_are_removed_however_their_owner_is_ended(
    number: signal.Signals, engine: FakeDocker, project: Path
) -> None:
    process = owner(project, "ready")
    assert len(engine.containers) == 1
    os.killpg(process.pid, number)  # the whole group, as Ctrl-C does
    process.communicate(timeout=20)
    assert gone(engine)


def test_a_container_that_was_being_made_when_its_owner_was_killed_is_removed(
    engine: FakeDocker, project: Path
) -> None:
    engine.behave(slow_answer=3)
    process = owner(project, "starting")
    while not engine.containers:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert gone(engine)


def test_a_container_that_was_not_made_yet_when_its_owner_was_killed_is_never_made(
    engine: FakeDocker, project: Path
) -> None:
    engine.behave(slow_run=3)
    process = owner(project, "starting")
    while not engine.called("run"):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    time.sleep(4)
    assert len(engine.called("run")) == 1
    assert engine.containers == []


def test_leftovers_of_dead_runs_are_swept_and_those_of_living_ones_are_not(
    using: Any, engine: FakeDocker, project: Path, notes: list[str]
) -> None:
    async def work(containers: Containers) -> tuple[int, list[str]]:
        mine = await containers.start("local/site")
        for name, change in (
            ("dead", {"distill.pid": "999999:1"}),
            ("reused", {"distill.pid": f"{os.getpid()}:1"}),
            ("elsewhere", {"distill.pid": "999999:1", "distill.host": "another"}),
            ("unknown", {"distill.pid": "", "distill.host": ""}),
        ):
            record = {**engine.containers[0], "Name": name, "pid": 999999}
            record["Labels"] = {**record["Labels"], **change}
            (engine.folder / "containers" / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
        swept = await containers.sweep()
        names = sorted(it["Name"] for it in engine.containers)
        assert mine.name in names
        return swept, [name for name in names if name != mine.name]

    assert using(work) == (2, ["elsewhere", "unknown"])
    assert "docker: removing 2 container(s) that an earlier run left behind" in notes


def test_docker_calls_are_out_of_reach_of_ctrl_c(using: Any, engine: FakeDocker) -> None:
    using(lambda containers: containers.check())
    (record,) = [json.loads(line) for line in (engine.folder / "calls.jsonl").read_text("utf-8").splitlines()]
    assert record["session"] != os.getsid(0)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("EXPOSE 8931", (8931,)),
        ("expose 80/tcp 53/udp 443", (80, 443)),
        ("# EXPOSE 1\nEXPOSE $PORT 8000-8010\nEXPOSE 9", (9,)),
        ("FROM x", ()),
    ],
)
def test_exposed_ports_of_a_dockerfile(text: str, ports: tuple[int, ...]) -> None:
    assert exposed_ports(text) == ports


def test_ports_of_the_base_image_count_when_the_dockerfile_names_none(project: Path) -> None:
    (project / "Dockerfile.site").write_text("FROM base\n", encoding="utf-8")
    source = local_source("local/site", project)
    image = image_of("local/site", "local/site:1", source, {"ExposedPorts": {"9000/tcp": {}, "53/udp": {}}})
    assert image.port() == 9000


def test_the_tag_of_a_dockerfile_is_lower_case_as_engines_want_it(project: Path) -> None:
    (project / "Dockerfile.MySite").write_text(DOCKERFILE, encoding="utf-8")
    source = local_source("local/MySite", project)
    assert source is not None
    assert source.tag.startswith("local/mysite:")
