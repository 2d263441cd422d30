"""Resources: what is listed, read and completed, in both eras, and that nothing outside is."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import BlobResourceContents, ResourceTemplateReference, TextResourceContents

from mcp_server import resources
from mcp_server.words import COMMAND_OF

from .conftest import Caller

KEY = "sk-or-v1-0123456789abcdef0123456789abcdef"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


@pytest.fixture
def files(workspace: Path) -> Path:
    """A workspace with a report, a run, rollouts; beside it a canary, to which links lead."""
    (workspace.parent / "outside.md").write_text("the canary", encoding="utf-8")
    for name, content in {
        "reports/first try/report.md": f"# Good\x1b[31m \u202ered {KEY} in {workspace}/x\n",
        "reports/first try/report.json": '{"a": 1}',
        "runs/gold/run.json": json.dumps({"options": {"output": f"{workspace}/runs/gold"}, "loss": float("nan")}),
        "rollouts/rollout_1/sample_1.json": json.dumps(
            {"id": "r", "conversation": [{"role": "user", "content": "hi"}]}
        ),
        "rollouts/other.json": '{"a": 1}',
        "list.json": "[1]",
        "torn.json": '{"a": ',
        ".env": "OPENAI_API_KEY=hidden-canary",
    }.items():
        path = workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (workspace / "runs/gold/curves.png").write_bytes(PNG)
    (workspace / "runs/gold/curves.dark.png").write_bytes(PNG)
    (workspace / "out.md").symlink_to(workspace.parent / "outside.md")
    return workspace


def read(call: Caller, uri: str) -> Any:
    """(text or bytes, type) of a resource."""
    content = call.talk(lambda client: client.read_resource(uri)).contents[0]
    if isinstance(content, BlobResourceContents):
        return base64.b64decode(content.blob), content.mime_type
    assert isinstance(content, TextResourceContents)
    return content.text, content.mime_type


def refused(call: Caller, uri: str) -> str:
    """The code and the text of the error."""

    async def ask(client: Client) -> MCPError:
        with pytest.raises(MCPError) as caught:
            await client.read_resource(uri)
        return caught.value

    error = call.talk(ask).error
    assert "canary" not in error.message
    assert str(call.server.door.workspace.root) not in error.message
    return f"{error.code}: {error.message}"


def complete(call: Caller, uri: str, value: str, name: str = "path") -> list[str]:
    reference = ResourceTemplateReference(uri=uri)
    return call.talk(lambda client: client.complete(reference, {"name": name, "value": value})).completion.values


def test_templates_are_listed_with_what_they_are(call: Caller) -> None:
    templates = call.talk(lambda client: client.list_resource_templates()).resource_templates
    assert {template.uri_template: template.mime_type for template in templates} == {
        "job://{job_id}": "application/json",
        "job://{job_id}/log": "text/plain",
        "options://{command}": "application/json",
        "report://{+path}": "text/markdown",
        "plot://{+path}": "image/png",
        "run://{+path}": "application/json",
        "rollout://{+path}": "application/json",
    }
    assert all(template.description and template.title for template in templates)


def test_reports_and_runs_are_listed_and_what_is_listed_can_be_read(call: Caller, files: Path) -> None:
    listed = call.talk(lambda client: client.list_resources()).resources
    assert [resource.uri for resource in listed] == ["report://reports/first%20try", "run://runs/gold"]
    for resource in listed:
        _, mime_type = read(call, resource.uri)
        assert mime_type == resource.mime_type


def test_a_report_is_markdown_with_nothing_unseen_and_no_key(call: Caller, files: Path) -> None:
    for uri in ("report://reports/first%20try", "report://reports/first try/report.md"):
        assert read(call, uri) == ("# Good red *** in x\n", "text/markdown")
    assert read(call, "report://reports/first%20try/report.json")[0] == '```json\n{"a": 1}\n```'


def test_files_are_marked_as_data(call: Caller, files: Path) -> None:
    content = call.talk(lambda client: client.read_resource("report://reports/first%20try")).contents[0]
    assert content.meta is not None
    assert content.meta["untrusted"] is True


def test_a_plot_is_a_picture(call: Caller, files: Path) -> None:
    assert read(call, "plot://runs/gold/curves.png") == (PNG, "image/png")
    assert "is no PNG picture" in refused(call, "plot://list.json")


def test_a_run_and_a_rollout_are_json_without_the_place_of_the_workspace(call: Caller, files: Path) -> None:
    for uri in ("run://runs/gold", "run://runs/gold/run.json"):
        text, _ = read(call, uri)
        assert json.loads(text) == {"options": {"output": "runs/gold"}, "loss": None}
    text, _ = read(call, "rollout://rollouts/rollout_1/sample_1.json")
    assert json.loads(text)["conversation"] == [{"role": "user", "content": "hi"}]
    assert "with a conversation" in refused(call, "rollout://rollouts/other.json")


def test_the_options_of_every_tool_can_be_read(call: Caller) -> None:
    for tool in COMMAND_OF:
        text, _ = read(call, f"options://{tool}")
        assert json.loads(text)["properties"]
    message = refused(call, "options://train_golf")
    assert 'Did you mean "train_gold"?' in message


def test_a_job_and_its_log(call: Caller, workspace: Path) -> None:
    job = call.ended(call.done("check_setup"))
    text, _ = read(call, f"job://{job['job_id']}")
    found = json.loads(text)
    assert (found["job_id"], found["state"], found["tool"]) == (job["job_id"], "succeeded", "check_setup")
    log, mime_type = read(call, f"job://{job['job_id']}/log")
    assert mime_type == "text/plain"
    assert str(workspace) not in log
    listed = call.talk(lambda client: client.list_resources()).resources
    assert f"job://{job['job_id']}" in [resource.uri for resource in listed]
    assert complete(call, "job://{job_id}", "job_", "job_id") == [job["job_id"]]
    assert complete(call, "job://{job_id}/log", "nothing", "job_id") == []


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("report://out.md", "is outside the workspace"),
        ("report://../outside.md", ""),
        ("report://%2e%2e/outside.md", ""),
        ("report:///etc/passwd", ""),
        ("report://%2Fetc%2Fpasswd", ""),
        ("report://a%00.md", ""),
        ("report://.env", "is hidden"),
        ("run://.distill/jobs/x/spec.json", "is hidden"),
        ("report://reports/none", "no such file"),
        ("run://torn.json", "torn.json is no JSON"),
        ("run://list.json", "is no JSON object"),
        ("job://job_00000000000000000000000000000000", "is no job of this workspace"),
        ("job://..%2f..%2fx", ""),
        ("job://job_1/log", "is no job of this workspace"),
        ("what://ever", ""),
    ],
)
def test_what_cannot_be_had_is_an_error_of_the_caller(call: Caller, files: Path, uri: str, what: str) -> None:
    message = refused(call, uri)
    assert message.startswith("-32602: ")  # as SEP-2164 wants it
    assert what in message


def test_a_large_file_is_cut_or_refused(call: Caller, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "long.md").write_text("word " * 100_000, encoding="utf-8")
    text, _ = read(call, "report://long.md")
    assert len(text) < 80_000
    assert "bytes left out" in text
    (files / "long.json").write_text(json.dumps({"rows": ["word " * 1000] * 1000}), encoding="utf-8")
    text, _ = read(call, "run://long.json")
    assert len(json.loads(text)["rows"]) < 1000
    monkeypatch.setattr(resources, "MOST_FILE_BYTES", 1 << 10)
    assert "read_rows shows parts of it" in refused(call, "report://long.md")


def test_paths_and_tools_are_completed(call: Caller, files: Path) -> None:
    assert complete(call, "report://{+path}", "") == ["reports/first try/report.json", "reports/first try/report.md"]
    assert complete(call, "report://{+path}", "try/report.m") == ["reports/first try/report.md"]
    assert complete(call, "plot://{+path}", "runs") == ["runs/gold/curves.png"]
    assert complete(call, "run://{+path}", "") == ["runs/gold/run.json"]
    assert complete(call, "rollout://{+path}", "roll") == ["rollouts/"]
    assert complete(call, "rollout://{+path}", "rollouts/") == ["rollouts/other.json", "rollouts/rollout_1/"]
    assert complete(call, "rollout://{+path}", "../") == []
    assert complete(call, "options://{command}", "train_", "command") == ["train_sft", "train_gold"]
    assert complete(call, "no://{such}", "x", "such") == []


def test_the_walk_through_a_workspace_has_bounds(ask: Caller, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "node_modules/b", "c/d/e/f/g/h/i/j"):
        (workspace / name).mkdir(parents=True)
        (workspace / name / "run.json").write_text("{}", encoding="utf-8")
    os.mkfifo(workspace / "pipe")
    (workspace / "around").symlink_to(".")
    uris = [each.uri for each in ask.talk(lambda client: client.list_resources()).resources]
    assert uris == ["run://a"]
    monkeypatch.setattr(resources, "MOST_LISTED", 3)
    for n in range(10):
        (workspace / "runs" / str(n)).mkdir(parents=True)
        path = workspace / "runs" / str(n) / "run.json"
        path.write_text("{}", encoding="utf-8")
        os.utime(path, (n, n + 4e9))
    uris = [each.uri for each in ask.talk(lambda client: client.list_resources()).resources]
    assert uris == ["run://runs/9", "run://runs/8", "run://runs/7"]
    monkeypatch.setattr(resources, "LONGEST_S", 0.0)
    assert ask.talk(lambda client: client.list_resources()).resources == []
