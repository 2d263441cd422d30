"""Everything that can be wrong with what an assistant asks for, or with the folder and the machine it asks about."""

import asyncio
import ctypes
import hashlib
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp import Client, MCPError
from mcp.types import CallToolResult

from tests.support.assistant import SERVER, as_json, assistant, talk
from tests.support.running import (
    KEY,
    Received,
    Reply,
    SmallServer,
    chat_answer,
    ended,
    environment,
    small_server,
    start,
    write_rows,
)

NEVER = "job_" + "0" * 32


@pytest.fixture
def workspace(folder: Path) -> Path:
    """A folder with three prompts; what is beside it belongs to somebody else."""
    (folder / "project").mkdir()
    write_rows(folder / "project/prompts.jsonl", [{"prompt": f"What is {number}?"} for number in range(3)])
    (folder / "secret.txt").write_text("not for you", encoding="utf-8")
    return folder / "project"


class SlowTeacher:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.may = threading.Event()

    def __call__(self, received: Received) -> Reply:
        if received.method == "POST":
            self.may.wait(60)
        return Reply(body=chat_answer())


@pytest.fixture
def slow() -> Iterator[tuple[SlowTeacher, SmallServer]]:
    teacher = SlowTeacher()
    with small_server(teacher) as server:
        yield teacher, server
        teacher.may.set()


def generate(server: SmallServer, **more: Any) -> dict[str, Any]:
    """Arguments of work that nobody has to pay for."""
    asked = {"input": "prompts.jsonl", "model": "mock/model", "base_url": server.url, "output": "train.jsonl"}
    return {**asked, "backend": "vllm", **more}


# ---- arguments -----------------------------------------------------------------------------------------------------

GOLD = {"data": "prompts.jsonl", "output": "run", "student": "student", "teacher": "teacher"}


def test_wrong_values_are_answered_with_the_field_and_what_it_may_be(workspace: Path) -> None:
    async def conversation() -> None:
        async with assistant(workspace) as we:
            for tool, arguments, words in (
                ("train_gold", {**GOLD, "max_steps": "many"}, ("max_steps", "integer", "many")),
                ("train_gold", {**GOLD, "max_steps": 0}, ("max_steps", "0")),
                ("train_gold", {**GOLD, "loss": "best"}, ("loss", "auto", "gold", "uld", "jsd", "best")),
                ("train_gold", {**GOLD, "loss": ["gold"]}, ("loss", "auto")),
                ("train_gold", {**GOLD, "data": 5}, ("data", "5")),
                ("train_gold", {"output": "run"}, ("data",)),
                ("train_gold", {**GOLD, "max_step": 5}, ("max_step", "max_steps")),
                ("train_gold", {**GOLD, "config": {"batchsize": 5}}, ("batchsize", "batch_size")),
                ("train_gold", {**GOLD, "config": {"batch_size": "x"}}, ("batch_size", "integer")),
                ("train_gold", {**GOLD, "config": "fast"}, ("config", "object")),
                ("train_gold", {**GOLD, "config": [1]}, ("config", "object")),
                ("evaluate", {"student": "student", "tasks": {"a": 1}}, ("tasks",)),
                ("evaluate", {"student": None}, ("student",)),
                ("evaluate", {}, ("student",)),
                ("convert_rollouts", {"input": {}}, ("input",)),
                ("check_data", {"data": []}, ("data",)),
                ("read_rows", {"path": "prompts.jsonl", "mode": "all"}, ("mode", "head", "sample", "search")),
                ("read_rows", {"path": 5}, ("path",)),
                ("read_rows", {"path": "prompts.jsonl", "n": -1}, ("n",)),
                ("read_rows", {}, ("path",)),
                ("get_job", {}, ("job_id",)),
                ("get_job", {"job_id": NEVER, "wait_s": "soon"}, ("wait_s",)),
                ("get_job", {"job_id": NEVER, "wait_s": 3600}, ("wait_s", "45")),
                ("list_jobs", {"state": "sleeping"}, ("state", "running")),
                ("list_jobs", {"limit": 1e9}, ("limit", "100")),
                ("cancel_job", {"job_id": ["a"]}, ("job_id",)),
            ):
                text = await we.refused(tool, *words, **arguments)
                assert len(text) < 1000, text
                assert "pydantic" not in text
            assert not (await we.done("list_jobs")).data["jobs"]

    talk(conversation)


def test_an_unknown_job_and_ids_that_are_none(workspace: Path) -> None:
    async def conversation() -> None:
        async with assistant(workspace) as we:
            for tool in ("get_job", "cancel_job"):
                for job in (NEVER, "", "job_1", "../../secret.txt", "job_" + "f" * 32 + "/..", "\x00", "a" * 5000):
                    text = await we.refused(tool, "job", job_id=job)
                    assert len(text) < 1000
            with pytest.raises(MCPError):
                await we.client.read_resource(f"job://{NEVER}")

    talk(conversation)


def test_paths_outside_the_workspace(workspace: Path) -> None:
    (workspace / "link.jsonl").symlink_to(workspace.parent / "secret.txt")
    (workspace / "out").symlink_to(workspace.parent)

    async def conversation() -> None:
        async with assistant(workspace) as we:
            inside, outside = "prompts.jsonl", str(workspace.parent / "secret.txt")
            for path in (
                outside,
                "../secret.txt",
                "link.jsonl",
                "out/secret.txt",
                "~/secret.txt",
                "a/../../secret.txt",
            ):
                for tool, arguments in (
                    ("read_rows", {"path": path}),
                    ("generate_teacher_data", {"input": path, "model": "smollm2"}),
                    ("generate_teacher_data", {"input": inside, "output": path, "model": "smollm2"}),
                    ("train_gold", {**GOLD, "output": path}),
                    ("train_gold", {**GOLD, "student": path}),
                    ("train_gold", {**GOLD, "config": {"score_cache_path": path}}),
                    ("check_data", {"data": path}),
                    ("compare_tokenizers", {"student": path, "teacher": "smollm2"}),
                ):
                    text = await we.refused(tool, "workspace", **arguments)
                    assert str(workspace) not in text
                    assert "not for you" not in text
            for uri in (
                f"report://{outside}",
                "report://../secret.txt",
                "rollout://link.jsonl",
                "run://out/secret.txt",
            ):
                with pytest.raises(MCPError) as refused:
                    await we.client.read_resource(uri)
                assert "not for you" not in str(refused.value)
            assert not (await we.done("list_jobs")).data["jobs"]
        assert sorted(path.name for path in workspace.parent.iterdir() if path.is_dir()) in (
            ["project"],
            ["project", "project-cache"],
        )

    talk(conversation)


def test_ten_megabytes_of_arguments(workspace: Path) -> None:
    """They are answered, and the server goes on; what is shown of them is short."""
    much = "x" * 10_000_000

    async def conversation() -> None:
        async with assistant(workspace) as we:
            for tool, arguments in (
                ("read_rows", {"path": much}),
                ("get_job", {"job_id": much}),
                ("train_gold", {**GOLD, "loss": much}),
                ("train_gold", {**GOLD, much: 1}),
                ("train_gold", {**GOLD, "config": {much: much}}),
                ("generate_teacher_data", {"input": "prompts.jsonl", "model": "smollm2", "system": much}),
            ):
                answer = await we.call(tool, **arguments)
                assert answer.is_error, as_json(answer)[:1000]
                assert len(answer.text) < 2000, (tool, list(arguments), answer.text[:300])
            assert not (await we.done("list_jobs")).data["jobs"]

    talk(conversation)


# ---- what is missing -----------------------------------------------------------------------------------------------


def test_a_missing_extra_is_named_with_the_line_that_installs_it(workspace: Path, tmp_path: Path) -> None:
    """With an interpreter that has all but what training needs: the server works, and says what the job lacks."""
    python = without(tmp_path / "bare", "torch", "transformers", "accelerate", "peft", "trl", "gguf")

    async def conversation() -> None:
        async with assistant(workspace, python=python) as we:
            last = await we.finished(await we.done("train_gold", **{**GOLD, "student": "smollm2"}, config={}))
            assert last.state == "failed"
            assert "--install train" in last.data["error"]
            assert "Traceback" not in as_json(last)
            checked = await we.finished(await we.done("check_setup"))
            assert "--install train" in as_json(checked)

    talk(conversation)


def without(folder: Path, *packages: str) -> str:
    """An interpreter with the packages of this one, but for some."""
    venv.create(folder, symlinks=True)
    (theirs,) = (folder / "lib").glob("python*/site-packages")
    for found in Path(pytest.__file__).parents[1].iterdir():
        if found.name.partition("-")[0].partition(".")[0] not in packages and not (theirs / found.name).exists():
            (theirs / found.name).symlink_to(found)
    return str(folder / "bin/python")


def test_no_key(workspace: Path) -> None:
    async def conversation() -> None:
        async with assistant(workspace) as we:
            asked = {"input": "prompts.jsonl", "model": "anthropic/claude-sonnet-4", "max_cost": 1}
            answer = await we.call("generate_teacher_data", **asked)
            if not answer.is_error:
                answer = await we.finished(answer)
                assert answer.state == "failed"
            assert "OPENROUTER_API_KEY is not set" in as_json(answer)
            assert ".env" in as_json(answer)
            assert str(workspace) not in as_json(answer)

    talk(conversation)


def test_a_key_of_the_workspace_reaches_its_teacher_and_nobody_else(
    workspace: Path, slow: tuple[SlowTeacher, SmallServer]
) -> None:
    """.env of the workspace is read; the key is in no file of the job, and in no answer."""
    teacher, server = slow
    teacher.may.set()
    (workspace / ".env").write_text(f"VLLM_API_KEY={KEY}\n", encoding="utf-8")

    async def conversation() -> None:
        async with assistant(workspace) as we:
            last = await we.finished(await we.done("generate_teacher_data", **generate(server)))
            assert last.state == "succeeded", as_json(last)
            assert KEY not in as_json(last)
            assert server.chats[0].headers["authorization"] == f"Bearer {KEY}"
            for file in (workspace / ".distill").rglob("*"):
                assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
            await we.refused("read_rows", path=".env")
            assert KEY not in we.said

    talk(conversation)


# ---- the disk ------------------------------------------------------------------------------------------------------


def test_a_workspace_that_cannot_be_written(workspace: Path, slow: tuple[SlowTeacher, SmallServer]) -> None:
    """Reading works; a job is refused in a sentence."""
    teacher, server = slow
    teacher.may.set()
    workspace.chmod(0o555)

    async def conversation() -> None:
        async with assistant(workspace, python=as_anybody(workspace.parent)) as we:
            rows = await we.done("read_rows", path="prompts.jsonl")
            assert "What is 1?" in as_json(rows)
            assert not (await we.done("list_jobs")).data["jobs"]
            await we.refused("generate_teacher_data", "Permission denied", **generate(server))
            assert not server.chats

    try:
        talk(conversation)
    finally:
        workspace.chmod(0o755)


def as_anybody(folder: Path) -> str:
    """An interpreter without root's right to read and write everywhere: permissions count as for anybody else."""
    program = folder / "python"
    drop = ("ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)", "ctypes.CDLL(None).prctl(24, 2, 0, 0, 0)")
    run = f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])"
    program.write_text("\n".join([f"#!{sys.executable}", "import ctypes, os, sys", *drop, run, ""]), encoding="utf-8")
    program.chmod(0o755)
    assert ctypes.CDLL(None).prctl  # Linux, as the other tests of permissions
    return str(program)


def test_a_full_disk(workspace: Path, slow: tuple[SlowTeacher, SmallServer]) -> None:
    teacher, server = slow
    teacher.may.set()

    async def conversation() -> None:
        async with assistant(workspace) as we:
            resource.prlimit(we.pid, resource.RLIMIT_FSIZE, (100, 100))  # as full, but for this process alone
            await we.refused("generate_teacher_data", "File too large", **generate(server))
            assert not (await we.done("list_jobs")).data["jobs"]
            assert not server.chats

    talk(conversation)


def test_a_disk_that_fills_up_under_a_job(workspace: Path, slow: tuple[SlowTeacher, SmallServer]) -> None:
    """The job's end is told all the same."""
    teacher, server = slow
    teacher.may.set()
    write_rows(workspace / "prompts.jsonl", [{"prompt": f"What is {number}?"} for number in range(300)])

    async def conversation() -> None:
        async with assistant(workspace) as we:
            resource.prlimit(we.pid, resource.RLIMIT_FSIZE, (40_000, 40_000))
            last = await we.finished(await we.done("generate_teacher_data", **generate(server)))
            assert last.state in ("stopped", "failed"), as_json(last)
            assert "File too large" in as_json(last)
            assert "Traceback" not in as_json(last)

    talk(conversation)


def test_a_job_whose_files_were_deleted(workspace: Path, slow: tuple[SlowTeacher, SmallServer]) -> None:
    """What is left is told; nothing else suffers from it."""
    teacher, server = slow
    teacher.may.set()

    async def conversation() -> None:
        async with assistant(workspace) as we:
            whole = await we.finished(await we.done("generate_teacher_data", **generate(server)))
            place = workspace / ".distill/jobs" / whole.job
            for lost in ("result.json", "progress.jsonl", "log.txt", "exit.json", "spec.json", "*"):
                job = "job_" + hashlib.sha256(lost.encode()).hexdigest()[:32]
                shutil.copytree(place, place.parent / job)
                gone = [path for path in (place.parent / job).glob(lost) if path.is_file()]
                assert gone
                for path in gone:
                    path.unlink()
                answer = await we.call("get_job", job_id=job)
                assert answer.data["state"] == ("lost" if lost in ("spec.json", "*") else "succeeded"), as_json(answer)
                assert "a mistake in this server" not in answer.text
                assert str(workspace) not in as_json(answer)
                if lost == "result.json":
                    assert "result.json was deleted" in answer.text
                await we.call("cancel_job", job_id=job)
            listed = await we.done("list_jobs")
            assert len(listed.data["jobs"]) == 7
            shutil.rmtree(place)
            await we.refused("get_job", "no job of this workspace", job_id=whole.job)
            again = await we.finished(await we.done("generate_teacher_data", **generate(server, output="more.jsonl")))
            assert again.state == "succeeded"

    talk(conversation)


# ---- several at once -----------------------------------------------------------------------------------------------


def test_two_servers_on_one_workspace(workspace: Path, slow: tuple[SlowTeacher, SmallServer]) -> None:
    """The same request starts once; each sees, follows and ends the other's jobs."""
    teacher, server = slow

    async def conversation() -> None:
        async with assistant(workspace) as first, assistant(workspace) as second:
            work = generate(server, client_request_id="the-same")
            one, two = await asyncio.gather(
                first.done("generate_teacher_data", **work), second.done("generate_teacher_data", **work)
            )
            assert one.job == two.job
            await second.refused("generate_teacher_data", "other work", one.job, **{**work, "output": "other.jsonl"})
            other = await second.done("generate_teacher_data", **generate(server, output="other.jsonl"))
            assert {job["job_id"] for job in (await first.done("list_jobs")).data["jobs"]} == {one.job, other.job}
            await first.done("cancel_job", job_id=other.job)
            assert (await second.finished(other)).state == "cancelled"
            teacher.may.set()
            assert (await second.finished(one)).state == "succeeded"
            assert (await first.done("get_job", job_id=one.job)).state == "succeeded"

    talk(conversation)


def test_a_client_that_disconnects_in_the_middle_of_a_call(
    workspace: Path, slow: tuple[SlowTeacher, SmallServer]
) -> None:
    """The server ends with its client, at once; the job it had started goes on."""
    teacher, server = slow

    async def conversation() -> None:
        async with assistant(workspace) as we:
            job = (await we.done("generate_teacher_data", **generate(server))).job
            waiting = asyncio.create_task(we.call("get_job", job_id=job, wait_s=45))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            pid = we.pid
        with suppress(BaseException):
            await waiting
        assert not psutil.pid_exists(pid)
        async with assistant(workspace) as next_one:
            found = await next_one.done("get_job", job_id=job)
            assert found.state == "running"
            teacher.may.set()
            assert (await next_one.finished(found)).state == "succeeded"

    talk(conversation)


def test_a_client_of_http_that_disconnects_in_the_middle_of_a_call(
    workspace: Path, slow: tuple[SlowTeacher, SmallServer]
) -> None:
    """Server and job go on."""
    teacher, server = slow

    async def conversation(url: str) -> None:
        async with Client(url) as client:
            started = await client.call_tool("generate_teacher_data", generate(server))
            assert isinstance(started, CallToolResult)
            assert started.structured_content
            job = started.structured_content["job_id"]
        for mode in ("2026-07-28", "legacy"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1), Client(url, mode=mode) as client:
                    await client.call_tool("get_job", {"job_id": job, "wait_s": 45})
        teacher.may.set()
        async with Client(url) as client:
            found = await client.call_tool("get_job", {"job_id": job, "wait_s": 45})
            assert isinstance(found, CallToolResult)
            assert found.structured_content
            assert found.structured_content["state"] == "succeeded"

    apart = str(workspace.parent / "cache")
    process = start(workspace, "--http", "--port", "0", script=Path(SERVER), XDG_CACHE_HOME=apart)
    assert process.stderr
    try:
        for line in process.stderr:
            if address := re.search(r"listening on (\S+)", line.decode()):
                break
        else:
            raise AssertionError("it does not listen")
        asyncio.run(conversation(address[1]))
        assert process.poll() is None
    finally:
        process.terminate()
        outcome = ended(process)
    assert "Traceback" not in outcome.stderr
    assert "ERROR" not in outcome.stderr


def test_a_client_that_gives_up_waiting_can_go_on(workspace: Path, slow: tuple[SlowTeacher, SmallServer]) -> None:
    teacher, server = slow

    async def conversation() -> None:
        async with assistant(workspace) as we:
            job = (await we.done("generate_teacher_data", **generate(server))).job
            with pytest.raises(MCPError):
                await we.client.call_tool("get_job", {"job_id": job, "wait_s": 45}, read_timeout_seconds=0.5)
            found = await we.done("get_job", job_id=job)
            assert found.state == "running"
            teacher.may.set()
            assert (await we.finished(found)).state == "succeeded"

    talk(conversation)


def test_signals_end_the_server_and_no_job(workspace: Path, slow: tuple[SlowTeacher, SmallServer]) -> None:
    teacher, server = slow

    async def conversation() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            async with assistant(workspace) as we:
                job = (await we.done("generate_teacher_data", **generate(server, output=f"{number}.jsonl"))).job
                await we.send(number)
            assert "Traceback" not in we.said
            await asyncio.sleep(0.2)
            async with assistant(workspace) as next_one:
                assert (await next_one.done("get_job", job_id=job)).state == "running"
        teacher.may.set()

    talk(conversation)


def wire(**message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"


def test_lines_that_are_no_messages(workspace: Path) -> None:
    """They are answered or passed over; the next question is answered."""
    begin = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
    lines = [
        wire(id=1, method="initialize", params=begin),
        wire(method="notifications/initialized"),
        b"not json\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"null\n",
        b'{"jsonrpc": "2.0", "id": 7}\n',
        b"[" * 100_000 + b"\n",
        wire(id=8, method="tools/call", params={"name": "no_such_tool", "arguments": {}}),
        wire(id=9, method="tools/call", params={"name": "list_jobs", "arguments": {}}),
    ]
    process = subprocess.Popen(
        [sys.executable, SERVER],
        cwd=workspace,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(b"".join(lines))
    process.stdin.flush()
    answers: dict[Any, Any] = {}
    while 9 not in answers:
        line = process.stdout.readline()
        assert line, process.stderr.read().decode()
        message = json.loads(line)
        answers[message.get("id")] = message
    process.stdin.close()
    errors = process.stderr.read().decode()
    assert process.wait(10) == 0, errors
    process.stdout.close()
    process.stderr.close()
    assert "Traceback" not in errors
    assert answers[8]["result"]["isError"]
    assert "no_such_tool" in json.dumps(answers[8])
    assert answers[9]["result"]["structuredContent"]["jobs"] == []
