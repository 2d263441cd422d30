"""Distillation over MCP alone: what an assistant does with the tools, and what is left when a server dies under it."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp.client import ClientRequestContext
from mcp.types import BlobResourceContents, ElicitRequestParams, ElicitResult, ResourceTemplateReference

from mcp_server.texts import TEXTS
from tests.support.assistant import ENDED, as_json, assistant, talk
from tests.support.running import Received, Reply, SmallServer, chat_answer, read_rows, small_server, write_rows
from tests.support.scoring_server import scoring_server
from tests.support.tiny_model import make_tiny_model
from tests.support.training import make_models, write_conversations

ONE = {"device": "cpu", "threads": 1}
QUICK = {**ONE, "batch_size": 2, "val_fraction": 0.25}


@pytest.fixture
def workspace(folder: Path) -> Path:
    """An empty folder; what is beside it belongs to somebody else."""
    (folder / "project").mkdir()
    return folder / "project"


def test_from_a_teacher_to_a_report(workspace: Path) -> None:
    """generate_teacher_data, train_gold, evaluate, and the report as a resource: with SmolLM2 as the teacher."""
    asked = ["What is the capital of France?", "Name a colour.", "What is 2+2?", "Say hello."]
    write_rows(workspace / "prompts.jsonl", [{"prompt": text} for text in asked])
    make_tiny_model(workspace / "student")

    async def conversation() -> None:
        async with assistant(workspace) as we:
            teacher = {"input": "prompts.jsonl", "output": "train.jsonl", "model": "smollm2", "max_tokens": 16}
            more = {"threads": 1, "drop_truncated": False}
            plan = await we.done("generate_teacher_data", **teacher, config=more, dry_run=True)
            assert plan.state == "succeeded"
            assert plan.data["result"]["requests"] == 4
            assert not (workspace / "train.jsonl").exists()

            started = time.monotonic()
            answer = await we.done("generate_teacher_data", **teacher, config=more)
            assert time.monotonic() - started < 2
            made = await we.finished(answer)
            assert made.state == "succeeded", as_json(made)
            assert made.data["result"]["rows"] == 4
            assert "train.jsonl" in made.data["files"]
            rows = await we.done("read_rows", path="train.jsonl")
            assert "What is the capital of France?" in as_json(rows)

            models = {"data": "train.jsonl", "student": "student", "teacher": "smollm2", "output": "runs/gold"}
            answer = await we.done("train_gold", **models, max_steps=3, max_new_tokens=8, config=QUICK)
            trained = await we.finished(answer)
            assert trained.state == "succeeded", as_json(trained)
            assert trained.data["result"]["steps"] == 3
            assert any(name.startswith("runs/gold") for name in trained.data["files"])

            answer = await we.done("evaluate", student="runs/gold", tasks=["small_sums"], limit=5, config=ONE)
            judged = await we.finished(answer)
            assert judged.state == "succeeded", as_json(judged)
            assert "small_sums" in judged.data["result"]["table"]

            listed = [str(resource.uri) for resource in (await we.client.list_resources()).resources]
            (report,) = (uri for uri in listed if uri.startswith("report://"))
            text = await we.read(report)
            assert "small_sums" in text
            plots = ResourceTemplateReference(uri="plot://{+path}")
            completed = await we.client.complete(plots, {"name": "path", "value": "reports/"})
            (plot,) = (path for path in completed.completion.values if path.endswith("/accuracy.png"))
            (image,) = (await we.client.read_resource(f"plot://{plot}")).contents
            assert isinstance(image, BlobResourceContents)
            assert image.mime_type == "image/png"

            jobs = (await we.done("list_jobs")).data["jobs"]
            expected = ["evaluate", "train_gold", *2 * ["generate_teacher_data"]]
            assert [job["tool"] for job in jobs] == expected
            for looked_at in (plan, made, rows, trained, judged):
                assert str(workspace) not in as_json(looked_at)

    talk(conversation)


def test_a_job_survives_its_server(workspace: Path) -> None:
    """kill -9 in the middle of training; the next server finds the job at work, and its result."""
    models = make_models(workspace)
    write_conversations(workspace / "train.jsonl")

    async def conversation() -> None:
        with scoring_server(models.teacher, max_logprobs=-1, latency_s=0.5) as teacher:
            async with assistant(workspace) as first:
                places = {"data": "train.jsonl", "student": "student", "output": "run", "teacher": "scoring/model"}
                server = {"teacher_backend": "vllm", "teacher_base_url": teacher.url}
                more = {**ONE, "batch_size": 4, "teacher_tokenizer": "teacher", "score_cache_path": "scores.sqlite"}
                sizes = {"max_steps": 8, "max_new_tokens": 8}
                answer = await first.done("train_gold", **places, **server, **sizes, config=more)
                job = answer.job
                seen = await first.until(job, lambda found: bool(found["progress"] and found["progress"]["done"]))
                await first.send(signal.SIGKILL)
            async with assistant(workspace) as second:
                again = await second.done("get_job", job_id=job)
                assert again.state == "running"
                assert seen.data["progress"]["done"] <= again.data["progress"]["done"] < 8
                teacher.config(latency_s=0.0)
                ended = await second.finished(again)
                assert ended.state == "succeeded", as_json(ended)
                assert ended.data["result"]["steps"] == 8
                assert (workspace / "run/final/model.safetensors").exists()
        assert nobody_works_in(workspace)

    talk(conversation)


def test_a_cancelled_job_keeps_what_is_done_and_goes_on(workspace: Path) -> None:
    """No answer is asked for twice, but the one that was in flight."""
    write_rows(workspace / "prompts.jsonl", [{"prompt": f"What is {number}?"} for number in range(12)])

    def answered(received: Received) -> Reply:
        time.sleep(0.3 if received.method == "POST" else 0)
        return Reply(body=chat_answer())

    async def conversation() -> None:
        async with assistant(workspace) as we:
            asked = {"input": "prompts.jsonl", "model": "mock/model", "base_url": server.url, "backend": "vllm"}
            job = (await we.done("generate_teacher_data", **asked, concurrency=1)).job
            await we.until(job, lambda found: len(server.chats) == 3)
            last = await we.finished(await we.done("cancel_job", job_id=job))
            assert last.state == "cancelled"
            assert "generate_teacher_data with the same arguments goes on" in last.data["next"]
            kept = len(read_rows(workspace / "train.jsonl"))
            assert 2 <= kept < 12
            last = await we.finished(await we.done("generate_teacher_data", **asked))
            assert last.data["result"]["rows"] == 12 - kept
            assert len(read_rows(workspace / "train.jsonl")) == 12
            assert len(server.chats) <= 13
            assert (await we.done("cancel_job", job_id=job)).state == "cancelled"  # once more does nothing

    with small_server(answered) as server:
        talk(conversation)


def nobody_works_in(folder: Path) -> bool:
    """Whether no process is left whose current folder this is; the last of them may need a moment."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if not any(process.info["cwd"] == str(folder) for process in psutil.process_iter(["cwd"])):
            return True
        time.sleep(0.05)
    return False


# ---- what costs money ----------------------------------------------------------------------------------------------


@pytest.fixture
def teacher() -> Iterator[SmallServer]:
    with small_server(lambda received: Reply(body=chat_answer("Paid words."))) as server:
        yield server


def paid(teacher: SmallServer, **more: Any) -> dict[str, Any]:
    """Arguments of work that a price is known for."""
    asked = {"input": "prompts.jsonl", "model": "mock/model", "base_url": teacher.url, "output": "train.jsonl"}
    return {**asked, "config": {"price": "3/15"}, **more}


@pytest.fixture
def prompts(workspace: Path) -> Path:
    return write_rows(workspace / "prompts.jsonl", [{"prompt": f"What is {number}?"} for number in range(3)])


@pytest.mark.usefixtures("prompts")
def test_money_is_spent_after_a_second_call_where_nobody_can_be_asked(workspace: Path, teacher: SmallServer) -> None:
    async def conversation() -> None:
        async with assistant(workspace) as we:
            first = await we.done("generate_teacher_data", **paid(teacher))
            assert first.state == "needs_confirmation"
            token = first.data["confirm"]
            assert token in first.data["next"]
            assert "USD" in as_json(first)
            assert not teacher.chats
            other = paid(teacher, model="mock/dearer", confirm=token)
            changed = await we.call("generate_teacher_data", **other)
            assert changed.is_error or changed.state == "needs_confirmation"
            assert not teacher.chats

            again = await we.done("generate_teacher_data", **paid(teacher))
            started = await we.done("generate_teacher_data", **paid(teacher, confirm=again.data["confirm"]))
            ended = await we.finished(started)
            assert ended.data["result"]["rows"] == 3
            assert len(teacher.chats) == 3
            used = paid(teacher, confirm=again.data["confirm"])
            second = await we.call("generate_teacher_data", **used)
            assert second.is_error or second.state == "needs_confirmation"
            assert len(teacher.chats) == 3

    talk(conversation)


@pytest.mark.usefixtures("prompts")
def test_no_tool_asks_a_provider_before_its_user_was_asked(workspace: Path, teacher: SmallServer) -> None:
    make_tiny_model(workspace / "student")
    (workspace / "tools.py").write_text('def add(a: int, b: int) -> int:\n    """Add."""\n    return a + b\n')
    write_conversations(workspace / "rows.jsonl")
    here = {"base_url": teacher.url}
    scored = {"teacher": "mock/model", "teacher_base_url": teacher.url}
    calls: dict[str, dict[str, Any]] = {
        "generate_teacher_data": {"input": "prompts.jsonl", "model": "mock/model", "config": here},
        "run_rollouts": {"input": "prompts.jsonl", "model": "mock/model", "config": {**here, "tools": "tools.py"}},
        "generate_synthetic": {"num_records": 5, "domain": "general", "model": "mock/model", "config": here},
        "check_data": {"data": "rows.jsonl", "judge": "mock/model", "config": {"judge_base_url": teacher.url}},
        "train_gold": {"data": "rows.jsonl", "student": "student", "output": "run", "teacher_mode": "probe", **scored},
        "evaluate": {"student": "student", "baseline": "student", "data": "rows.jsonl", "config": scored},
        "check_setup": scored,
    }

    async def conversation() -> None:
        async with assistant(workspace, "--allow-code") as we:
            tools = {tool.name for tool in (await we.client.list_tools()).tools}
            tools = {name for name in tools if TEXTS[name].asks_a_teacher}
            assert tools == calls.keys()
            for tool, arguments in calls.items():
                answer = await we.call(tool, **arguments)
                assert answer.data.get("state") == "needs_confirmation", (tool, as_json(answer))
                assert not teacher.chats, tool

    talk(conversation)


@pytest.mark.usefixtures("prompts")
def test_a_bound_is_a_confirmation_unless_the_server_allows_less(workspace: Path, teacher: SmallServer) -> None:
    async def conversation() -> None:
        async with assistant(workspace, "--max-cost", "0.5") as we:
            await we.refused("generate_teacher_data", "max_cost", "0.5", **paid(teacher, max_cost=5))
            assert not teacher.chats
            ended = await we.finished(await we.done("generate_teacher_data", **paid(teacher, max_cost=0.4)))
            assert ended.data["result"]["rows"] == 3
            assert ended.data["result"]["cost_usd"] == pytest.approx(0.003)

    talk(conversation)


@pytest.mark.usefixtures("prompts")
def test_the_user_is_asked_where_the_client_can(workspace: Path, teacher: SmallServer) -> None:
    questions: list[str] = []
    says: list[ElicitResult] = []

    async def asked(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        questions.append(params.message)
        return says.pop(0)

    async def conversation() -> None:
        async with assistant(workspace, mode="legacy", elicit=asked) as we:
            for no in ("decline", "cancel"):
                says.append(ElicitResult(action=no))
                refused = await we.call("generate_teacher_data", **paid(teacher))
                assert refused.is_error or refused.data.get("state") not in (*ENDED, "running", "queued")
            assert not teacher.chats
            says.append(ElicitResult(action="accept", content={"confirm": True}))
            ended = await we.finished(await we.done("generate_teacher_data", **paid(teacher)))
            assert ended.data["result"]["rows"] == 3
            assert len(questions) == 3
            assert "mock/model" in questions[0]
            assert "USD" in questions[0]

    talk(conversation)
