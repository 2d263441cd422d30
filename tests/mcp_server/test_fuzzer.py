"""mcp-fuzzer over every tool, resource, prompt and message of a server in a scratch workspace."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from mcp import Client

from core.jobs import JobStore
from tests.support.mcp_http import SHIPPED, Served, served
from tests.support.mcp_tools import fuzzer

pytestmark = pytest.mark.mcp_tools

CANARY = "this-text-lies-outside-the-workspace"
OURS = {"cache", "reports", "workspace"}
"""Where something may appear: the queues of the devices, the workspace, what the fuzzer writes."""


@contextmanager
def fuzzed_server(folder: Path, *flags: str) -> Iterator[Served]:
    """A server in folder/workspace. Afterwards: no traceback, no job that still runs, nothing new outside."""
    workspace = folder / "workspace"
    for name in ("workspace", "home", "tmp", "outside"):
        (folder / name).mkdir()
    (folder / "outside" / "secret.jsonl").write_text(f'{{"prompt": "{CANARY}"}}\n', "utf-8")
    (workspace / "prompts.jsonl").write_text('{"prompt": "What is 2+2?"}\n', "utf-8")
    (workspace / "link").symlink_to(folder / "outside")
    environment = {
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",  # a made-up model is no reason to ask the internet
    }
    words = (*SHIPPED, "--max-jobs", "2", "--max-cost", "0.01", *flags)
    jobs = JobStore(workspace / ".distill" / "jobs")
    try:
        with served(*words, folder=workspace, home=folder / "home", **environment) as server:
            before = outside(folder)
            yield server
            said = server.said
        assert "Traceback" not in said, said
        assert "crashed" not in said, said
    finally:
        for job in jobs.list(limit=1000):
            if not job.finished:
                jobs.cancel(job.id)
        for job in jobs.list(limit=1000):
            assert jobs.wait(job.id, 60).finished
    assert outside(folder) == before
    assert not any(
        CANARY in path.read_text("utf-8", "replace") for path in files(folder) if "outside" not in path.parts
    )


def files(folder: Path) -> list[Path]:
    return [
        Path(place) / name
        for place, _, names in os.walk(folder)
        for name in names
        if not (Path(place) / name).is_symlink()
    ]


def outside(folder: Path) -> dict[str, bytes]:
    """Every file that is none of ours, with its content."""
    found = (path.relative_to(folder) for path in files(folder))
    return {str(path): (folder / path).read_bytes() for path in found if path.parts[0] not in OURS}


def fuzz(server: Served, folder: Path, *options: str) -> list[dict[str, Any]]:
    """Runs it; returns what it took for findings. Fails when it found nothing to try, or itself gave up."""
    reports = folder / "reports"
    reports.mkdir(exist_ok=True)
    ran = subprocess.run(
        [
            *(*fuzzer(), "--protocol", "streamablehttp", "--endpoint", server.url, "--seed", "1", "--no-corpus"),
            *("--no-network", "--allow-host", "127.0.0.1", "--no-safety"),  # or it would mend its own bad paths
            *("--fs-root", str(reports / "root"), "--output-dir", str(reports), "--fail-if-no-tools", *options),
        ],
        cwd=reports,
        env={"PATH": os.environ["PATH"], "HOME": str(reports)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=200,
    )
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    return json.loads((reports / "findings.json").read_text("utf-8"))["findings"]


def tried(folder: Path) -> dict[str, Any]:
    """What it did in its last run with a tool."""
    results = max((folder / "reports").rglob("*_fuzzing_results.json"), key=lambda path: path.stat().st_mtime)
    (tool,) = json.loads(results.read_text("utf-8"))["data"]["tools_tested"]
    return tool


def listed(server: Served) -> dict[str, dict[str, Any]]:
    """The input schema of each tool."""

    async def ask() -> dict[str, dict[str, Any]]:
        async with Client(server.url) as client:
            return {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}

    return anyio.run(ask)


@pytest.mark.parametrize("flags", [(), ("--read-only",)], ids=["every tool", "read-only"])
def test_every_tool_refuses_what_is_malformed_and_nothing_gets_out(flags: tuple[str, ...], tmp_path: Path):
    with fuzzed_server(tmp_path, *flags) as server:
        schemas = listed(server)
        assert len(schemas) == (3 if flags else 15)
        for name, schema in schemas.items():
            findings = fuzz(server, tmp_path, "--mode", "tools", "--tool", name, "--phase", "both", "--runs", "6")
            done = tried(tmp_path)
            assert (done["name"], done["runs"]) == (name, 12)
            assert done["outcomes"]["crashed"] == done["outcomes"]["anomaly"] == done["exceptions"] == 0, findings
            for finding in findings:  # a call of its own that is in order is a finding to it
                assert finding["category"] == "accepted_malformed", finding
                jsonschema.validate(finding["evidence"]["input"], schema)
    if flags:
        assert {path.name for path in files(tmp_path / "workspace")} == {"prompts.jsonl"}


@pytest.mark.parametrize("mode", ["resources", "prompts", "protocol"])
def test_broken_messages_end_nothing(mode: str, tmp_path: Path):
    with fuzzed_server(tmp_path) as server:
        names = list(listed(server))
        findings = fuzz(server, tmp_path, "--mode", mode, "--protocol-phase", "aggressive", "--runs-per-type", "4")
        # Much of what it sends is in order, and "reflected" is a name within an error: texts, which no page shows.
        assert {finding["category"] for finding in findings} <= {"accepted_malformed", "injection_reflection"}
        assert list(listed(server)) == names
