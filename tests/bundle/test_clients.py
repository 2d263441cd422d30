"""This tree in real assistants: installed as docs/install.md says, three skills listed, the server answering.

Nobody is logged in, and no model is asked but one on this machine. `make test-clients` runs it.
"""

import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from core import __version__
from mcp_server.texts import TEXTS
from tests.bundle.bundle import SKILLS, claude, copy_of_bundle, files_of, handshake
from tests.bundle.clients import PACKAGES, Client, client
from tests.support.running import Received, Reply, small_server

pytestmark = [pytest.mark.clients, pytest.mark.alone]
NAME = "distill-kit"
WHOLE = f"{NAME}@{NAME}"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose path has blanks."""
    return copy_of_bundle(tmp_path_factory.mktemp("a clone") / "distill kit")


@pytest.fixture(autouse=True)
def _nothing_is_written_into_the_bundle(bundle: Path):
    before = files_of(bundle)
    yield
    assert files_of(bundle) == before


def in_project(asked: Client) -> None:
    """The server found the user's folder: else it would have made one of its own."""
    assert not (asked.home / ".local/share/distill").exists()


def test_claude_code(bundle: Path):
    with client("claude") as run:
        assert PACKAGES["@anthropic-ai/claude-code"] in run("--version")
        for place in (".claude-plugin/plugin.json", "."):
            said = run("plugin", "validate", "--strict", str(bundle / place))
            assert "Validation passed" in said
            assert "README_MISSING" not in said
        run("plugin", "marketplace", "add", str(bundle))
        run("plugin", "install", WHOLE)
        listed = run("plugin", "list")
        assert re.search(rf"{WHOLE}\s+Version: {re.escape(__version__)}", listed), listed
        assert "enabled" in listed
        assert f"Read from: {bundle}\n" in listed  # so that an update is a `git pull`
        assert "Skills (3)  off-policy, on-policy, rollout-distill" in run("plugin", "details", NAME)
        assert re.search(r"plugin:distill-kit:distill: .*Connected", run("mcp", "list"))
        in_project(run)
        cached = run.home / ".claude/plugins/cache" / NAME / NAME / __version__
        assert handshake(claude(cached, run.project, run.env)).tools == list(TEXTS)
        run("plugin", "uninstall", WHOLE)
        assert WHOLE not in run("plugin", "list")


def test_codex(bundle: Path):
    with client("codex") as run:
        assert PACKAGES["@openai/codex"] in run("--version")
        run("plugin", "marketplace", "add", str(bundle))
        assert str(run.home / ".codex/plugins/cache") in run("plugin", "add", WHOLE)
        assert re.search(rf"{WHOLE}\s+installed, enabled\s+{re.escape(__version__)}", run("plugin", "list"))
        prompt = run("debug", "prompt-input", "x")
        assert all(f"{NAME}:{skill}: " in prompt for skill in SKILLS)
        servers, skills = app_server(run, ("mcpServerStatus/list", {}), ("skills/list", {"cwds": [str(run.project)]}))
        (server,) = [one for one in servers["data"] if one["name"] == "distill"]
        assert sorted(server["tools"]) == sorted(TEXTS)
        (of_project,) = skills["data"]
        assert {f"{NAME}:{skill}" for skill in SKILLS} <= {skill["name"] for skill in of_project["skills"]}
        in_project(run)
        run("plugin", "remove", WHOLE)
        assert "installed, enabled" not in run("plugin", "list")


def app_server(run: Client, *requests: tuple[str, dict[str, Any]]) -> list[Any]:
    """The answers of Codex's own server, which starts ours."""
    process = subprocess.Popen(
        [*run.command, "app-server"],
        cwd=run.project,
        env=run.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    about = {"clientInfo": {"name": "test", "title": "test", "version": "1"}}
    messages = [{"id": 0, "method": "initialize", "params": about}, {"method": "initialized"}]
    messages += [
        {"id": number, "method": method, "params": params} for number, (method, params) in enumerate(requests, 1)
    ]
    limit = threading.Timer(90, process.kill)
    limit.start()
    try:
        process.stdin.write("".join(json.dumps(message) + "\n" for message in messages))
        process.stdin.flush()
        answers: dict[int, Any] = {}
        for line in process.stdout:
            said = json.loads(line)
            if isinstance(said.get("id"), int) and said["id"] > 0 and "method" not in said:
                answers[said["id"]] = said["result"]
            if len(answers) == len(requests):
                break
        assert len(answers) == len(requests), "it ended, or took more than 90 s"
        return [answers[number] for number in sorted(answers)]
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


def test_gemini_cli(bundle: Path):
    with client("gemini") as run:
        assert PACKAGES["@google/gemini-cli"] in run("--version")
        assert "successfully validated" in run("extensions", "validate", str(bundle))
        run("extensions", "link", str(bundle), "--consent")
        assert f"{NAME} ({__version__})" in run("extensions", "list")
        listed = run("skills", "list")
        assert all(f"{skill} [Enabled]" in listed for skill in SKILLS)
        assert re.search(rf"distill \(from {NAME}\): python3 .* - Connected", run("mcp", "list"))
        in_project(run)
        run("extensions", "uninstall", NAME)
        assert "No extensions installed" in run("extensions", "list")


def test_copilot_cli_and_what_it_tells_its_model(bundle: Path):
    with client("copilot") as run:
        assert PACKAGES["@github/copilot"] in run("--version")
        run("plugin", "marketplace", "add", str(bundle))
        said = run("plugin", "install", WHOLE)
        assert "Installed 3 skills" in said
        assert f"It is loaded live from {bundle}, so edits take effect on the next session" in said
        listed = run("skill", "list")
        assert all(f"  {skill} - " in listed for skill in SKILLS)
        assert json.loads(run("mcp", "get", "distill", "--json"))["distill"]["cwd"] == "${PLUGIN_ROOT}"
        with small_server(a_streamed_word) as model:
            said = run(
                "-p", "hello", COPILOT_OFFLINE="true", COPILOT_PROVIDER_BASE_URL=model.url, COPILOT_MODEL="a/model"
            )  # fmt: skip
        assert "a-word" in said
        request = model.chats[-1].json
        tools = {tool["function"]["name"] for tool in request["tools"]}
        assert {f"distill-{name}" for name in TEXTS} <= tools
        in_project(run)
        assert "disabled" in run("plugin", "uninstall", WHOLE)
        run("plugin", "marketplace", "remove", NAME)
        assert WHOLE not in run("plugin", "list")


def a_streamed_word(request: Received) -> Reply:
    if request.method == "GET":
        return Reply(body=b'{"object": "list", "data": [{"id": "a/model", "object": "model"}]}')
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "a/model"}
    parts = [{"delta": {"role": "assistant", "content": "a-word"}, "finish_reason": None}]
    parts += [{"delta": {}, "finish_reason": "stop"}]
    lines = [f"data: {json.dumps({**chunk, 'choices': [{'index': 0, **part}]})}\n\n" for part in parts]
    return Reply(body="".join([*lines, "data: [DONE]\n\n"]).encode(), headers={"content-type": "text/event-stream"})


def test_opencode(bundle: Path):
    with client("opencode") as run:
        assert PACKAGES["opencode-ai"] in run("--version")
        run("plugin", "-g", str(bundle / ".opencode-plugin"))
        skills = json.loads(run("debug", "skill"))
        assert {*SKILLS} <= {skill["name"] for skill in skills}
        places = {skill["location"] for skill in skills if skill["name"] in SKILLS}
        assert places == {str(bundle / "skills" / skill / "SKILL.md") for skill in SKILLS}
        assert re.search(r"distill\s+connected", run("mcp", "list"))
        in_project(run)


def test_skills_alone_are_real_files_and_say_how_to_get_the_rest(bundle: Path):
    with client("skills") as run:
        assert "Found 3 skills" in run("add", str(bundle), "--list")
        agents = ("claude-code", "codex", "cursor", "gemini-cli", "github-copilot", "opencode")
        run("add", str(bundle), "--skill", "*", *[word for agent in agents for word in ("-a", agent)], "-y")
        for skill in SKILLS:
            copied = run.project / ".agents/skills" / skill
            names = {path.name for path in (bundle / "skills" / skill / "scripts").glob("*.py")}
            assert {path.name for path in (copied / "scripts").glob("*.py") if not path.is_symlink()} == names
            done = subprocess.run(
                ["python3", str(copied / "scripts/doctor.py")],
                cwd=run.project,
                env=run.env,
                capture_output=True,
                text=True,
                encoding="utf-8",
            )
            assert done.returncode == 2
            assert len(done.stderr.splitlines()) == 1, done.stderr
            assert "DISTILL_HOME" in done.stderr
            named = subprocess.run(
                ["python3", str(copied / "scripts/doctor.py"), "--help"],
                cwd=run.project,
                env={**run.env, "DISTILL_HOME": str(bundle)},
                capture_output=True,
                text=True,
                encoding="utf-8",
            )
            assert named.returncode == 0, named.stderr
            assert (run.project / ".claude/skills" / skill / "SKILL.md").exists()


@pytest.mark.timeout(900)
def test_the_first_start_of_all_makes_an_environment_even_when_the_client_gives_up(bundle: Path):
    with client("claude") as run:
        run("plugin", "marketplace", "add", str(bundle))
        run("plugin", "install", WHOLE)
        bare = {"DISTILL_PYTHON": "", **{name: value for name, value in os.environ.items() if name.startswith("PIP_")}}
        assert "timed out after 1500ms" in run("mcp", "list", **bare, MCP_TIMEOUT="1500")
        until = time.monotonic() + 600
        while "Connected" not in (said := run("mcp", "list", **bare)):
            assert time.monotonic() < until, said
        ours = run.home / ".local/share/distill"
        assert (ours / "env").is_dir()
        assert not (ours / "workspace").exists()


def test_a_server_without_python_packages_is_named_by_the_client_as_failed(bundle: Path):
    """What docs/install.md tells to look for: the client says that it could not connect, and our line says why."""
    with client("claude") as run:
        run("plugin", "marketplace", "add", str(bundle))
        run("plugin", "install", WHOLE)
        off = {"DISTILL_PYTHON": "", "DISTILL_SETUP": "off", "PATH": "/usr/bin:/bin"}
        assert re.search(r"plugin:distill-kit:distill: .*Failed to connect", run("mcp", "list", **off))
        start = claude(bundle, run.project, {**run.env, **off})
        done = subprocess.run(
            start.command,
            cwd=start.cwd,
            env=start.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == 2
        assert "DISTILL_SETUP=off" in done.stderr
        assert "Traceback" not in done.stderr
