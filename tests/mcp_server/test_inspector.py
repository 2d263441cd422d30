"""The official Inspector, as a second real client, on stdio and over HTTP."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mcp_server.texts import TEXTS
from tests.support.mcp_http import ROOT, SHIPPED, served
from tests.support.mcp_tools import inspector

pytestmark = pytest.mark.mcp_tools

TOKEN = "a-token-of-24-characters"
TOOL_ERROR = 5
"""The Inspector's exit code for a tool that answers with an error."""


@dataclass
class Inspector:
    """target: a command or an address, as its command line wants it."""

    target: list[str]
    folder: Path

    def run(self, method: str, *options: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        ran = subprocess.run(
            [*inspector(), "--cli", *self.target, "--method", method, *options],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )
        return ran.returncode, ran.stdout, ran.stderr

    def ask(self, method: str, *options: str) -> dict[str, Any]:
        """What it answers, which must be no error."""
        code, out, err = self.run(method, *options)
        assert code == 0, out + err
        return json.loads(out)


@pytest.fixture(params=["stdio", "http", "http with a token"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inspector]:
    """A client of the shipped server over a workspace with one file."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "prompts.jsonl").write_text('{"prompt": "What is 2+2?"}\n{"prompt": "And 3+3?"}\n', "utf-8")
    if request.param == "stdio":
        yield Inspector([sys.executable, str(ROOT / "mcp_server"), "-e", f"DISTILL_WORKSPACE={workspace}"], tmp_path)
        return
    guarded = "token" in request.param
    header = ["--header", f"Authorization: Bearer {TOKEN}"] if guarded else []
    flags, token = ("--workspace", str(workspace)), TOKEN if guarded else ""
    with served(*SHIPPED, *flags, folder=tmp_path, DISTILL_MCP_TOKEN=token) as server:
        if guarded:
            code, out, err = Inspector([server.url, "--transport", "http"], tmp_path).run("tools/list")
            assert code != 0, "without the token it must not be answered"
            assert TOKEN not in out + err
        yield Inspector([server.url, "--transport", "http", *header], tmp_path)
        assert TOKEN not in server.said


def test_what_an_assistant_would_do(client: Inspector):
    tools = client.ask("tools/list", "--strict")["tools"]
    assert [tool["name"] for tool in tools] == list(TEXTS)

    jobs = client.ask("tools/call", "--tool-name", "list_jobs")
    assert jobs["structuredContent"]["jobs"] == []
    rows = client.ask("tools/call", "--tool-name", "read_rows", "--tool-arg", "path=prompts.jsonl")
    assert "And 3+3?" in json.dumps(rows["structuredContent"])
    checked = client.ask("tools/call", "--tool-name", "check_setup")["structuredContent"]
    assert checked["state"] == "succeeded"
    seen = client.ask("tools/call", "--tool-name", "get_job", "--tool-arg", f"job_id={checked['job_id']}")
    assert seen["structuredContent"]["result"] == checked["result"]

    code, out, err = client.run("tools/call", "--tool-name", "get_job", "--tool-arg", f"job_id=job_{'0' * 32}")
    assert code == TOOL_ERROR
    assert "list_jobs" in out + err
    code, out, err = client.run("tools/call", "--tool-name", "read_rows", "--tool-arg", "path=../secret.jsonl")
    assert code == TOOL_ERROR
    assert "workspace" in out + err


def test_resources_and_prompts(client: Inspector):
    uris = [template["uriTemplate"] for template in client.ask("resources/templates/list")["resourceTemplates"]]
    assert "job://{job_id}" in uris
    assert isinstance(client.ask("resources/list")["resources"], list)
    options = client.ask("resources/read", "--uri", "options://train_gold")["contents"][0]["text"]
    assert "max_steps" in json.loads(options)["properties"]

    names = {prompt["name"] for prompt in client.ask("prompts/list")["prompts"]}
    assert names == {"distill_off_policy", "distill_rollouts", "distill_on_policy", "diagnose_run"}
    plan = client.ask("prompts/get", "--prompt-name", "distill_off_policy", "--prompt-args", "goal=short answers")
    assert "short answers" in plan["messages"][0]["content"]["text"]
