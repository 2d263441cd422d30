"""The tree as an assistant gets it, and each manifest's own way to start the server: with its variables filled in, in
the folder and the environment that its client was seen to use."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.running import ROOT

SKILLS = ("off-policy", "on-policy", "rollout-distill")
MANIFESTS = (
    ".claude-plugin/plugin.json",
    ".claude-plugin/marketplace.json",
    ".codex-plugin/plugin.json",
    ".agents/plugins/marketplace.json",
    ".cursor-plugin/plugin.json",
    ".opencode-plugin/package.json",
    ".mcp.json",
    "gemini-extension.json",
)
CODEX_PASSES_ON = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
"""Gemini CLI takes variables of such names out of a server's environment, unless the manifest has them."""
HANDSHAKE = (
    {
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    },
    {"method": "notifications/initialized"},
    {"id": 2, "method": "tools/list", "params": {}},
)


@dataclass(frozen=True)
class Start:
    """How a client starts the server."""

    command: list[str]
    cwd: Path
    env: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What it answered. tools: names, in order."""

    name: str
    version: str
    instructions: str
    tools: list[str]


def read(path: str, root: Path = ROOT) -> Any:
    return json.loads((root / path).read_text(encoding="utf-8"))


def copy_of_bundle(to: Path) -> Path:
    """What a plugin's copy or a fresh clone holds: the files that git tracks, or would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if not name.startswith(("tests/", ".ci/")) and (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name, follow_symlinks=False)
    return to


def files_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def base(project: Path, home: Path, **more: str) -> dict[str, str]:
    """The environment of the client itself, in a user's project."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": str(home), "PWD": str(project), "DISTILL_PYTHON": sys.executable, **more}


def filled(text: str, variables: Mapping[str, str]) -> str:
    """Only what a client is known to substitute; what is left over stays, and breaks the start."""
    for name, value in variables.items():
        text = text.replace(f"${{{name}}}", value)
    return text


def claude(root: Path, project: Path, env: dict[str, str]) -> Start:
    """Claude Code 2.1: in the project, with everything; the root ends in a slash."""
    server = read(".claude-plugin/plugin.json", root)["mcpServers"]["distill"]
    arguments = [filled(word, {"CLAUDE_PLUGIN_ROOT": f"{root}/"}) for word in server["args"]]
    more = {"CLAUDE_PLUGIN_ROOT": str(root), "CLAUDE_PROJECT_DIR": str(project)}
    return Start([server["command"], *arguments], project, {**env, **more})


def copilot(root: Path, project: Path, env: dict[str, str]) -> Start:
    """Copilot CLI 1.0: in the plugin's folder, with everything; it is itself in the project."""
    server = read(".mcp.json", root)["mcpServers"]["distill"]
    assert "cwd" not in server, "Copilot takes the plugin's folder only where there is none"
    more = dict.fromkeys(("CLAUDE_PLUGIN_ROOT", "COPILOT_PLUGIN_ROOT", "PLUGIN_ROOT"), str(root))
    return Start([server["command"], *server["args"]], root, {**env, **more})


def codex(root: Path, project: Path, env: dict[str, str]) -> Start:
    """Codex 0.169: in the plugin's copy, with a few variables and those of env_vars; nothing is substituted."""
    server = read(".codex-plugin/plugin.json", root)["mcpServers"]["distill"]
    kept = {name: value for name, value in env.items() if name in (*CODEX_PASSES_ON, *server["env_vars"])}
    return Start([server["command"], *server["args"]], root / server["cwd"], kept)


def gemini(root: Path, project: Path, env: dict[str, str]) -> Start:
    """Gemini CLI 0.61: in the project, without keys but for those of env, which are empty where they are not set."""
    server = read("gemini-extension.json", root)["mcpServers"]["distill"]
    arguments = [filled(word, {"extensionPath": str(root), "/": os.sep}) for word in server["args"]]
    kept = {name: value for name, value in env.items() if not SECRET.search(name)}
    named = {name: re.sub(r"\$\{(\w+)\}", lambda it: env.get(it[1], ""), text) for name, text in server["env"].items()}
    return Start([server["command"], *arguments], project, {**kept, **named})


def cursor(root: Path, project: Path, env: dict[str, str]) -> Start:
    """Cursor, as its users report: in the home folder."""
    server = read(".cursor-plugin/plugin.json", root)["mcpServers"]["distill"]
    arguments = [filled(word, {"CURSOR_PLUGIN_ROOT": str(root)}) for word in server["args"]]
    return Start([server["command"], *arguments], Path(env["HOME"]), env)


STARTS = {start.__name__: start for start in (claude, copilot, codex, gemini, cursor)}


def handshake(start: Start, timeout_s: float = 60) -> Answer:
    """A whole conversation, by hand: one JSON object a line. AssertionError with the server's stderr where it fails."""
    process = subprocess.Popen(
        start.command,
        cwd=start.cwd,
        env=start.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        answers: list[Any] = []
        for message in HANDSHAKE:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            process.stdin.flush()
            if "id" in message:
                answers.append(process.stdout.readline())
        rest, errors = process.communicate(timeout=timeout_s)
    except BrokenPipeError:
        raise AssertionError(f"{start.command} ended: {process.communicate()[1]}") from None
    finally:
        process.kill()
        process.wait()
    assert all(answers), f"{start.command}: {errors}"
    assert rest == "", "nothing but answers is on the wire"
    assert "Traceback" not in errors, errors
    hello, tools = (json.loads(line)["result"] for line in answers)
    about = hello["serverInfo"]
    return Answer(about["name"], about["version"], hello["instructions"], [tool["name"] for tool in tools["tools"]])
