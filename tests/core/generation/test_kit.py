"""The tools of a run as its options name them: containers through a fake `docker`, servers that are real."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.commands.run_rollouts import RunRollouts
from core.data.prompts import Prompt
from core.errors import UsageError
from core.generation.entries import Entry, to_entry
from core.generation.kit import Kit, is_loopback, loopback_port
from tests.support.fake_docker import FakeDocker
from tests.support.mcp_servers import HttpServer, command, free_port

IMAGES = ("first", "second")
SHOUT_TOO = """
def shout(text: str) -> str:
    "Louder."
    return text + "!"
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDocker]:
    fake = FakeDocker(tmp_path / "engine")
    fake.behave(run="mcp")
    for tag in IMAGES:
        fake.add_image(tag, ExposedPorts={"8931/tcp": {}})
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    yield fake
    fake.clear()


def entry(image: str | None = None, **env: str) -> Entry:
    row: dict[str, Any] = {"docker": image, "docker_env": env} if image else {}
    made = to_entry(Prompt(0, "train.jsonl:1", [{"role": "user", "content": "Hi"}], row))
    assert isinstance(made, Entry)
    return made


def with_kit(work: Callable[[Kit], Awaitable[Any]], **options: Any) -> tuple[Any, list[str]]:
    """What `work` gives, and the notes."""
    notes: list[str] = []

    async def main() -> Any:
        kit = Kit(RunRollouts(**options), notes.append)
        try:
            return await work(kit)
        finally:
            await kit.aclose()

    return asyncio.run(main()), notes


async def names(kit: Kit, what: Entry) -> list[str]:
    async with kit.toolbox(what) as toolbox:
        return [tool.name for tool in toolbox.tools]


def test_notes_about_the_tools_of_containers_are_shown_once_each(engine: FakeDocker, folder: Path) -> None:
    (folder / "tools.py").write_text(SHOUT_TOO)

    async def work(kit: Kit) -> list[list[str]]:
        same = [await names(kit, entry("first")) for _ in range(2)]
        return [*same, await names(kit, entry("first", A="1")), await names(kit, entry("second"))]

    found, notes = with_kit(work, tools=Path("tools.py"))
    # Named after the image: a name with the port in it would be another one in every run.
    assert found == [["tools__shout", "first__shout"]] * 3 + [["tools__shout", "second__shout"]]
    renamed = [note for note in notes if "more than one set" in note]
    assert len(renamed) == 1
    assert len([note for note in notes if "tokens in every request" in note]) == 2  # of the two images
    assert len(notes) == len(set(notes))


def test_a_container_that_starts_slowly_holds_back_no_rollout_of_another_image(engine: FakeDocker) -> None:
    async def work(kit: Kit) -> list[str]:
        await names(kit, entry("first"))
        engine.behave(slow_run=3)
        slow = asyncio.create_task(names(kit, entry("second")))
        while len(engine.called("run")) < 2:
            await asyncio.sleep(0.02)
        found = await names(kit, entry("first"))
        assert not slow.done()
        assert await slow == found
        return found

    assert with_kit(work)[0] == ["shout"]


def test_rollouts_that_begin_together_share_one_container_and_one_toolbox(engine: FakeDocker) -> None:
    async def work(kit: Kit) -> int:
        async def one() -> int:
            async with kit.toolbox(entry("first")) as toolbox:
                return id(toolbox)

        return len(set(await asyncio.gather(*(one() for _ in range(4)))))

    assert with_kit(work)[0] == 1
    assert len(engine.called("run")) == 1


def test_an_address_of_this_machine_beside_a_container_is_a_port_inside_it(engine: FakeDocker) -> None:
    with HttpServer("http") as elsewhere:  # running, and not to be reached

        async def work(kit: Kit) -> list[str]:
            return await names(kit, entry("first"))

        assert with_kit(work, mcp_url=[elsewhere.host])[0] == ["shout"]
    (run,) = engine.called("run")
    assert run[run.index("--publish") + 1] == f"127.0.0.1::{elsewhere.port}"


@pytest.mark.browser
def test_the_browser_takes_the_place_of_servers_on_this_machine_and_says_so(folder: Path) -> None:
    nobody = f"localhost:{free_port()}"

    async def work(kit: Kit) -> tuple[list[str], list[str]]:
        return await names(kit, entry()), await names(kit, entry("first"))

    (outside, with_image), notes = with_kit(work, mcp_url=[nobody, f"http://{nobody}/mcp"], browser=True)
    assert outside == with_image
    assert "browser_navigate" in outside
    (told,) = [note for note in notes if "takes the place" in note]
    assert told.startswith(f"--browser takes the place of mcp_url {nobody}, http://{nobody}/mcp. ")
    assert "--mcp-servers" in told


@pytest.mark.browser
def test_a_server_elsewhere_is_used_beside_the_browser() -> None:
    async def work(kit: Kit) -> None:
        await kit.main()

    with pytest.raises(UsageError, match=r"nothing answers at http://surely-not\.invalid:8931/mcp"):
        with_kit(work, mcp_url=["surely-not.invalid:8931"], browser=True)


@pytest.mark.parametrize("way", ["command", "file"])
def test_servers_that_are_started_are_on_the_leash_of_the_run(folder: Path, way: str) -> None:
    first, *rest = command("plain")
    (folder / "mcp.json").write_text(json.dumps({"mcpServers": {"a": {"command": first, "args": rest}}}))
    ways: dict[str, dict[str, Any]] = {
        "command": {"mcp_command": [" ".join(f"'{word}'" for word in command("plain"))]},
        "file": {"mcp_servers": Path("mcp.json")},
    }

    async def work(kit: Kit) -> None:
        async with kit.toolbox(entry()) as toolbox, toolbox.session() as session:
            assert kit._leash._held == {}
            pid = int((await session.call("pid", {})).text)
            assert list(kit._leash._held) == [pid]

    with_kit(work, **ways[way])


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("localhost:8931", 8931),
        ("http://LOCALHOST:8931/mcp", 8931),
        ("127.0.0.1:1", 1),
        ("127.0.0.2:1", 1),
        ("http://[::1]:5/sse", 5),
        ("http://x.localhost:5", 5),
    ],
)
def test_what_an_address_of_this_machine_is(url: str, port: int) -> None:
    assert (is_loopback(url), loopback_port(url)) == (True, port)


def test_an_address_of_this_machine_may_have_no_port() -> None:
    assert (is_loopback("http://localhost/mcp"), loopback_port("http://localhost/mcp")) == (True, None)


@pytest.mark.parametrize(
    "url", ["example.org:8931", "127.example.org:1", "localhost.example.org:1", "http://[::1", "localhost:99999999", ""]
)
def test_what_is_none(url: str) -> None:
    assert (is_loopback(url), loopback_port(url)) == (False, None)
