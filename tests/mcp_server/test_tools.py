"""The tools in memory, asked by the SDK's client in both eras of the protocol."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from mcp import Client, MCPError
from mcp.server.mcpserver import Context
from mcp.types import INVALID_PARAMS

from core.jobs import Job
from mcp_server.answers import MOST_BYTES, answer, within
from mcp_server.commands import is_quick
from mcp_server.door import Settings
from mcp_server.jobs import AFTER, CancelJob, GetJob, ListJobs, Steps, next_call, progress_line
from mcp_server.schemas import input_schema
from mcp_server.server import DistillServer, build
from mcp_server.texts import TEXTS
from mcp_server.tool import Tool
from mcp_server.words import COMMAND_OF, told
from tests.mcp_server.conftest import Caller, Era, called
from tests.support import rollouts
from tests.support.price_lists import PriceLists
from tests.support.running import Mock, questions, read_rows, small_server, write_rows

TOOLS = [
    *("generate_teacher_data", "list_teachers", "run_rollouts", "convert_rollouts", "generate_synthetic"),
    *("check_data", "make_student", "train_sft", "train_gold", "evaluate", "compare_tokenizers", "check_setup"),
    *("list_jobs", "get_job", "cancel_job", "read_rows"),
]


# ---- what is listed --------------------------------------------------------------------------------------------------


def test_every_tool_is_listed_in_a_fixed_order_with_schemas_title_and_annotations(call: Caller):
    async def tools(client: Client) -> Any:
        return (await client.list_tools()).tools

    listed = call.talk(tools)
    assert [tool.name for tool in listed] == TOOLS
    for tool in listed:
        assert tool.title
        assert tool.description
        assert tool.input_schema["type"] == tool.output_schema["type"] == "object"
        assert None not in (
            tool.annotations.read_only_hint,
            tool.annotations.destructive_hint,
            tool.annotations.idempotent_hint,
            tool.annotations.open_world_hint,
        )


def test_what_a_schema_shows_is_what_a_tool_takes():
    for model, name in ((ListJobs, "list_jobs"), (GetJob, "get_job"), (CancelJob, "cancel_job")):
        assert set(input_schema(name)["properties"]) == set(model.model_fields)


def test_every_command_has_a_next_call():
    assert set(AFTER) == set(COMMAND_OF) == {name for name in TOOLS if TEXTS[name].command}


def test_rollouts_in_a_folder_of_their_own_are_not_to_be_converted_into_train_jsonl():
    def after(output: str) -> str:
        result = {"status": "done", "output": output}
        return next_call(Job("job_1", "run_rollouts", "succeeded", 0.0, Path("job_1"), result=result))

    assert after("rollouts") == 'convert_rollouts(dir="rollouts") makes rows to train on'
    assert after("rollouts-before").startswith('read_rows(path="rollouts-before") shows them')
    assert 'convert_rollouts(dir="rollouts-before", output="rollouts-before.jsonl")' in after("rollouts-before")


def listed(settings: Settings, era: Era) -> list[str]:
    async def names(client: Client) -> list[str]:
        return [tool.name for tool in (await client.list_tools()).tools]

    return Caller(build(settings), era, {}).talk(names)


def test_read_only_beats_every_toolset(workspace: Path, era: Era):
    reading = Settings(workspace, read_only=True)
    assert listed(reading, era) == ["list_jobs", "get_job", "read_rows"]
    refusal = Caller(build(reading), era, {})("convert_rollouts")
    assert refusal.is_error
    assert "only reads" in refusal.text
    assert Caller(build(reading), era, {}).done("list_jobs").data == {"jobs": [], "more": False}
    assert list(workspace.iterdir()) == []


def test_toolsets_choose_and_jobs_are_always_there(workspace: Path, era: Era):
    names = listed(Settings(workspace, toolsets=frozenset({"data"})), era)
    assert [TEXTS[name].toolset for name in names] == ["data"] * 6 + ["jobs"] * 5
    refusal = Caller(build(Settings(workspace, toolsets=frozenset({"data"}))), era, {})("train_sft")
    assert refusal.is_error
    assert "toolset train" in refusal.text


def test_a_tool_that_is_not_there_is_answered_with_the_nearest(ask: Caller):
    answer = ask("convert_rollout")
    assert answer.is_error
    assert 'Did you mean "convert_rollouts"?' in answer.text
    assert f"There are: {', '.join(TOOLS)}." in answer.text


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("convert_rollouts", {"dirr": "x"}, ['no option "dirr"', 'Did you mean "dir"?', "options://convert_rollouts"]),
        ("convert_rollouts", {"config": {"best_off": 1}}, ['config: there is no option "best_off"', '"best_of"']),
        ("convert_rollouts", {"config": ["dir"]}, ["config: an object", "not a list"]),
        ("convert_rollouts", {"dir": "a", "config": {"dir": "b"}}, ["dir is given twice"]),
        ("convert_rollouts", {"thinking": "loud"}, ["thinking", "'keep', 'strip' or 'tags'", "loud"]),
        ("convert_rollouts", {"best_of": "many"}, ["best_of", "integer", "many"]),
        ("convert_rollouts", {"best_of": 0}, ["best_of", "greater than or equal to 1"]),
        ("convert_rollouts", {"dir": {"a": 1}}, ["dir", "path"]),
        ("convert_rollouts", {"dir": "../outside"}, ["outside the workspace"]),
        ("convert_rollouts", {"dir": "/etc"}, ["outside the workspace"]),
        ("convert_rollouts", {"client_request_id": "a b"}, ["client_request_id", "without blanks"]),
        ("convert_rollouts", {"client_request_id": 7}, ["client_request_id", "a text is needed, not a number"]),
        ("compare_tokenizers", {"student": "smollm2"}, ["teacher is required"]),
        ("generate_teacher_data", {"input": "p.jsonl", "max_tokens": 0}, ["max_tokens", "greater than or equal to 1"]),
        ("make_student", {"model": "smollm2"}, ["nothing to do: give layers, tokenizer or both"]),
        ("train_sft", {"model": "smollm2", "config": {"export": "zip"}}, ["export is given", "config"]),
        ("get_job", {}, ["job_id is required"]),
        ("get_job", {"job_id": 3}, ["job_id", "string"]),
        ("get_job", {"job_id": "job_1", "wait": 3}, ['no argument "wait"', '"wait_s"']),
        ("get_job", {"job_id": "job_1", "wait_s": 46}, ["wait_s", "less than or equal to 45"]),
        ("get_job", {"job_id": "job_1"}, ["job_1 is no job of this workspace", "No job was started here yet"]),
        ("list_jobs", {"state": "done"}, ["state", "'queued'", "'unfinished'"]),
        ("list_jobs", {"tool": "doctor"}, ['"doctor" starts no jobs']),
        ("cancel_job", {"job_id": "../../etc"}, ["is no job of this workspace"]),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(
    call: Caller, workspace: Path, tool: str, arguments: dict[str, Any], words: list[str]
):
    if words[0] == "export is given":
        arguments, words = {"model": "smollm2", "export": "zip"}, ["export", "'gguf'", "zip"]
    text = call.refused(tool, **arguments)
    for word in words:
        assert word in text
    assert text.startswith(f"{tool}: ")
    assert not (workspace / ".distill").exists(), "nothing was started"


def test_config_reaches_every_option_and_null_is_none(ask: Caller, workspace: Path):
    rollouts.write(workspace / "rollouts" / "0.json", rollouts.record(rollouts.with_tool()))
    more = {"calls": "text", "best_of": None}
    done = ask.done("convert_rollouts", system=None, output="rows.jsonl", config=more)
    (row,) = read_rows(workspace / "rows.jsonl")
    assert done["result"]["rows"] == 1
    assert "<tool_call>" in json.dumps(row["messages"])


def test_flags_in_a_text_become_fields_and_long_values_are_cut():
    from core.commands import load

    model = load("convert_rollouts")
    text = "--best-of: Give --no-dedupe. See --help."
    assert told(text, model) == "best_of: Give dedupe=false."
    assert told(f"--best-of: no (given: {'x' * 5000})\nnext", model) == f"best_of: no (given: {'x' * 200}...)\nnext"
    assert told("Run python scripts/show.py x, then scripts/doctor.py", model) == "Run read_rows x, then check_setup"


# ---- quick work ------------------------------------------------------------------------------------------------------


def test_quick_work_is_answered_with_its_result(call: Caller, workspace: Path):
    rollouts.write(workspace / "rollouts" / "0.json", rollouts.record(rollouts.with_tool()))
    done = call.done("convert_rollouts", output="rows.jsonl")
    assert done["state"] == "succeeded"
    assert done["tool"] == "convert_rollouts"
    assert done["result"]["rows"] == 1
    assert done["result"]["output"] == "rows.jsonl"
    assert done["files"] == ["rows.jsonl"]
    assert done["next"].startswith('check_data(data="rows.jsonl")')
    assert "1 rows in rows.jsonl" in done.text
    assert "scripts" not in done.text
    again = call.done("get_job", job_id=done["job_id"])
    assert {**again.data, "log_tail": None} == {**done.data, "log_tail": None}
    assert str(workspace) not in json.dumps(again.data)


def test_work_that_fails_says_why_in_words_of_tools(call: Caller):
    text = call.refused("convert_rollouts", dir="nowhere")
    assert "failed" in text
    assert "nowhere" in text
    assert "next: mend what the error says, then call convert_rollouts again" in text


def test_check_setup_says_what_is_installed_and_what_each_road_lacks(ask: Caller):
    done = ask.done("check_setup")
    assert {part["name"] for part in done["result"]["parts"]} >= {"python", "mcp"}
    assert [road["name"] for road in done["result"]["roads"]] == ["off-policy", "rollout-distill", "on-policy"]
    assert done["tool"] == "check_setup"


def test_check_setup_looks_at_a_file_and_installs_nothing(ask: Caller, workspace: Path):
    write_rows(workspace / "prompts.jsonl", questions(3))
    seen = ask.done("check_setup", data="prompts.jsonl")["result"]["data"]
    assert (seen["kind"], seen["count"]) == ("prompts", 3)
    assert "outside the workspace" in ask.refused("check_setup", data="/etc/passwd")
    refused = ask.refused("check_setup", config={"install": ["train"]})
    assert "installs packages, which callers of tools may not do" in refused
    assert "install" not in input_schema("check_setup")["properties"]


def test_list_teachers_reads_the_list_of_a_server_and_sends_no_foreign_key(
    ask: Caller, workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    write_rows(workspace / "prompts.jsonl", questions(2))
    with small_server(PriceLists()) as server:
        where = {"backend": "openrouter", "base_url": server.url, "max_tokens": 100}
        done = ask.done("list_teachers", input="prompts.jsonl", tools=True, config=where)
        assert [each["model"] for each in done["result"]["teachers"]][:2] == ["lone/leaving", "acme/small"]
        # 2 prompts of 22 bytes are 11 tokens; acme/small: 11 at 0.1 and 200 at 0.4 USD a million
        assert done["result"]["teachers"][1]["cost_at_most_usd"] == pytest.approx((11 * 0.1 + 200 * 0.4) / 1e6)
        asked = len(server.received)
        (workspace / ".env").write_text("OPENROUTER_API_KEY=sk-or-0123456789abcdef\n", encoding="utf-8")
        refused = ask.refused("list_teachers", config=where)
        assert "OPENROUTER_API_KEY is the key of a provider" in refused
        assert len(server.received) == asked


# ---- long work -------------------------------------------------------------------------------------------------------


def teacher(mock: Mock, **more: Any) -> dict[str, Any]:
    """Arguments that ask the mock, which costs nothing."""
    local = {"input": "prompts.jsonl", "model": mock.model, "base_url": mock.base_url, "config": {"price": "0/0"}}
    return {**local, "max_cost": 1, **more}


@pytest.fixture
def prompts(workspace: Path) -> Path:
    return write_rows(workspace / "prompts.jsonl", questions(5))


def test_long_work_is_answered_with_a_job_within_a_second(call: Caller, prompts: Path, mock: Mock):
    begun = call.done("generate_teacher_data", **teacher(mock))
    assert begun.seconds < 1
    assert begun["state"] in ("queued", "running")
    assert f'get_job(job_id="{begun["job_id"]}", wait_s=45)' in begun["next"]
    done = call.ended(begun)
    assert done["state"] == "succeeded", done.text
    assert done["result"]["rows"] == 5
    assert done["files"] == ["train.jsonl"]
    assert 'train_sft(data="train.jsonl")' in done["next"]
    assert len(read_rows(prompts.with_name("train.jsonl"))) == 5


def test_a_dry_run_that_loads_a_model_is_long_work(ask: Caller, workspace: Path):
    begun = ask.done("make_student", model="smollm2", output="student", config={"layers": 2}, dry_run=True)
    assert begun.seconds < 1
    assert begun["state"] in ("queued", "running")
    ask.ended(ask.done("cancel_job", job_id=begun["job_id"]))


@pytest.mark.parametrize(
    ("tool", "values", "waited"),
    [
        ("convert_rollouts", {}, True),
        ("compare_tokenizers", {"student": "a", "teacher": "b"}, True),
        ("check_data", {"data": "d"}, True),
        ("check_data", {"data": "d", "judge": "a/b"}, False),
        ("check_data", {"data": "d", "judge": "a/b", "dry_run": True}, True),
        ("check_setup", {}, True),
        ("check_setup", {"teacher": "smollm2"}, False),
        ("list_teachers", {"input": "p"}, True),
        ("evaluate", {"student": "s"}, False),
        ("evaluate", {"student": "s", "dry_run": True}, True),
        ("evaluate", {"compare": ["a", "b"]}, True),
        ("run_rollouts", {"input": "p"}, False),
        ("run_rollouts", {"input": "p", "dry_run": True}, True),
        ("train_sft", {"model": "smollm2", "check": True}, True),
        ("train_sft", {"model": "smollm2", "dry_run": True}, False),
        ("train_gold", {"data": "d", "output": "o", "dry_run": True}, False),
    ],
)
def test_what_loads_and_asks_no_model_is_waited_for(tool: str, values: dict[str, Any], waited: bool):
    from core.commands import load

    assert is_quick(tool, load(COMMAND_OF[tool]).model_validate(values)) is waited


def test_get_job_comes_back_as_soon_as_the_job_has_ended(ask: Caller, prompts: Path, mock: Mock):
    begun = ask.done("generate_teacher_data", **teacher(mock))
    started = time.monotonic()
    done = ask.ended(begun)
    assert time.monotonic() - started < 20
    assert ask.done("get_job", job_id=done["job_id"], wait_s=45).seconds < 1, "nothing is left to wait for"


def test_the_end_of_the_log_is_shown_as_far_as_it_is_asked_for(ask: Caller, prompts: Path, mock: Mock):
    done = ask.ended(ask.done("generate_teacher_data", **teacher(mock)))
    assert 0 < len(done["log_tail"].splitlines()) <= 20
    assert len(ask.done("get_job", job_id=done["job_id"], log_lines=2)["log_tail"].splitlines()) == 2
    assert "log_tail" not in ask.done("get_job", job_id=done["job_id"], log_lines=0).data


def slow(mock: Mock) -> dict[str, Any]:
    """Work that takes 20 seconds."""
    mock.configure(latency="fixed:4")
    return teacher(mock, concurrency=1)


def test_cancelled_work_keeps_what_is_done(call: Caller, prompts: Path, mock: Mock):
    begun = call.done("generate_teacher_data", **slow(mock))
    asked = call.done("cancel_job", job_id=begun["job_id"])
    assert asked["state"] in ("cancelling", "cancelled")
    done = call.ended(asked)
    assert done["state"] == "cancelled"
    assert "goes on" in done["next"]
    assert call.done("cancel_job", job_id=begun["job_id"])["state"] == "cancelled", "asking twice is no error"


def test_a_client_that_gives_up_leaves_the_job_running(call: Caller, prompts: Path, mock: Mock):
    begun = call.done("generate_teacher_data", **slow(mock))

    async def impatient(client: Client) -> None:
        with pytest.raises(MCPError):
            await called(client, "get_job", {"job_id": begun["job_id"], "wait_s": 45}, read_timeout_seconds=0.5)

    call.talk(impatient)
    assert call.done("get_job", job_id=begun["job_id"])["state"] in ("queued", "running")
    call.ended(call.done("cancel_job", job_id=begun["job_id"]))


def test_progress_is_told_to_who_waits_and_asked_for_it(call: Caller, prompts: Path, mock: Mock):
    told: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    mock.configure(latency="fixed:1.2")
    begun = call.done("generate_teacher_data", **teacher(mock, concurrency=1))

    async def watch(client: Client) -> str:
        state = "running"
        while state == "running" or state == "queued":
            waited = {"job_id": begun["job_id"], "wait_s": 30}
            state = (await called(client, "get_job", waited, progress_callback=note))["state"]
        return state

    assert call.talk(watch) == "succeeded"
    assert told
    assert [progress for progress, _, _ in told] == sorted({progress for progress, _, _ in told})
    assert all(total == 5 and message and "answers" in message for _, total, message in told)


def test_a_measure_that_is_no_number_is_left_out_of_a_line():
    progress = {"what": "step", "unit": "steps", "done": 3, "total": 10, "metrics": {"loss": None, "kl": 0.25}}
    assert progress_line(progress) == "step 3/10 steps, kl 0.25"


def test_progress_only_grows_over_several_pieces_of_work():
    steps = Steps()
    first = {"what": "answers", "unit": "rows", "done": 3, "total": 4}
    assert steps.of(None) is None
    assert steps.of(first) is not None
    assert steps.of(first) is None, "nothing has grown"
    second = steps.of({"what": "checks", "unit": "rows", "done": 1, "total": 10})
    assert second is not None
    assert second[:2] == (4, 13)


def test_a_request_id_makes_a_call_safe_to_repeat(ask: Caller, prompts: Path, mock: Mock):
    first = ask.done("generate_teacher_data", **teacher(mock, client_request_id="once"))
    assert ask.done("generate_teacher_data", **teacher(mock, client_request_id="once"))["job_id"] == first["job_id"]
    assert "other work" in ask.refused("generate_teacher_data", **teacher(mock, client_request_id="once", limit=1))
    ask.ended(first)
    assert len(ask.done("list_jobs")["jobs"]) == 1


def test_two_servers_on_one_workspace_see_the_same_jobs(ask: Caller, prompts: Path, mock: Mock):
    other = Caller(build(ask.server.door.settings), "legacy", {})
    begun = ask.done("generate_teacher_data", **teacher(mock, client_request_id="shared"))
    assert other.done("generate_teacher_data", **teacher(mock, client_request_id="shared"))["job_id"] == begun["job_id"]
    assert other.ended(begun)["state"] == "succeeded"


def test_jobs_are_listed_newest_first_and_chosen_by_state_and_tool(ask: Caller, workspace: Path):
    ask("convert_rollouts", dir="nowhere")
    rollouts.write(workspace / "rollouts" / "0.json", rollouts.record())
    ask.done("convert_rollouts")
    ask("compare_tokenizers", student="a/b", teacher="smollm2", text=["nothing.txt"])
    rows = ask.done("list_jobs")["jobs"]
    assert [(row["tool"], row["state"]) for row in rows] == [
        ("compare_tokenizers", "failed"),
        ("convert_rollouts", "succeeded"),
        ("convert_rollouts", "failed"),
    ]
    assert [row["tool"] for row in ask.done("list_jobs", tool="compare_tokenizers")["jobs"]] == ["compare_tokenizers"]
    assert [row["state"] for row in ask.done("list_jobs", state="succeeded")["jobs"]] == ["succeeded"]
    assert ask.done("list_jobs", state="unfinished").data == {"jobs": [], "more": False}
    page = ask.done("list_jobs", limit=2)
    assert page["more"]
    assert page["jobs"] == rows[:2]
    assert ask.done("list_jobs", limit=2, offset=2).data == {"jobs": rows[2:], "more": False}


def test_too_many_jobs_are_refused(workspace: Path, prompts: Path, mock: Mock):
    ask = Caller(build(Settings(workspace, max_jobs=1)), "legacy", {})
    begun = ask.done("generate_teacher_data", **slow(mock))
    assert "1 jobs are unfinished" in ask.refused("convert_rollouts")
    ask.ended(ask.done("cancel_job", job_id=begun["job_id"]))


def test_a_job_whose_files_were_deleted_is_told_in_a_sentence(ask: Caller, workspace: Path):
    done = ask("convert_rollouts", dir="nowhere")
    folder = workspace / ".distill" / "jobs" / done["job_id"]
    (folder / "spec.json").unlink()
    broken = ask.done("get_job", job_id=done["job_id"])
    assert broken["state"] == "lost"
    assert "spec.json" in broken["error"]
    assert ask.done("list_jobs")["jobs"][0]["state"] == "lost"
    shutil.rmtree(folder)
    assert "is no job" in ask.refused("get_job", job_id=done["job_id"])


# ---- faults ----------------------------------------------------------------------------------------------------------


SECRET = "sk-or-v1-0123456789abcdef0123456789abcdef"


def test_a_crash_tells_the_caller_nothing_of_what_it_was(
    call: Caller, server: DistillServer, caplog: pytest.LogCaptureFixture
):
    async def crash(arguments: Mapping[str, Any], context: Context[Any, Any]) -> Any:
        raise RuntimeError(f"no such key: {SECRET}")

    tool = server.tools["list_jobs"]
    server.tools["list_jobs"] = Tool(**{**vars(tool), "answer": crash})
    answer = call("list_jobs")
    assert answer.is_error
    assert SECRET not in answer.text
    assert "RuntimeError" not in answer.text
    assert "RuntimeError" in caplog.text, "whoever runs the server can see it"


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("distill", {}, ["there is no prompt distill", "diagnose_run"]),
        ("diagnose_run", {}, ["diagnose_run needs run"]),
        ("diagnose_run", {"run": "a", "rum": "b"}, ["rum", "run"]),
    ],
)
def test_a_wrong_prompt_is_named(
    call: Caller, caplog: pytest.LogCaptureFixture, name: str, arguments: dict[str, str], words: list[str]
):
    async def ask(client: Client) -> str:
        with pytest.raises(MCPError) as caught:
            await client.get_prompt(name, arguments)
        assert caught.value.code == INVALID_PARAMS
        return str(caught.value)

    said = call.talk(ask)
    for word in words:
        assert word in said
    assert "Traceback" not in caplog.text


def test_ten_megabytes_of_argument_are_answered_in_short(ask: Caller):
    for much in ("9" * 10_000_000, ["9" * 100_000] * 100, {"9" * 10_000_000: 1}):
        text = ask.refused("convert_rollouts", best_of=much)
        assert "200,000 are the most" in text
    for name in ("dir", "best_of", "system"):
        assert len(ask.refused("convert_rollouts", **{name: "9" * 100_000, "best_of": "9" * 99_000})) < 2000


@pytest.mark.parametrize("text", ["\x00", "a\x1b[31mb", "\ud800", "a\nb", "‮"])
def test_odd_characters_are_no_traceback(ask: Caller, text: str):
    for tool, name in (("convert_rollouts", "dir"), ("check_data", "data"), ("get_job", "job_id")):
        said = ask.refused(tool, **{name: text})
        assert "\x1b" not in said
        assert "\x00" not in said


def test_an_answer_is_cut_to_what_a_client_takes():
    value = {"rows": [{"text": "word " * 2000} for _ in range(500)], "state": "succeeded", "next": "go"}
    result = answer(value, "x" * 10**6, str)
    assert isinstance(result.structured_content, dict)
    size = len(orjson.dumps(result.structured_content)) + len(result.content[0].text.encode())  # pyright: ignore
    assert size <= MOST_BYTES
    assert result.structured_content["next"] == "go"
    assert result.structured_content["rows"][-1].startswith("... and ")
    assert within({str(number): {"a": 1} for number in range(20_000)}, 1000) == {
        "cut": "308,891 bytes are more than one answer may have"
    }
    assert within({"a": 1}, 1000) == {"a": 1}


def test_what_is_no_number_in_json_is_null():
    result = answer({"a": float("nan"), "b": [float("inf"), 1.5]}, "", str)
    assert result.structured_content == {"a": None, "b": [None, 1.5]}


def test_keys_and_control_characters_leave_no_answer():
    result = answer({"log": f"a\x1b[31m {SECRET}", "short": "\x1b[31m"}, f"\x07{SECRET}", str)
    assert SECRET not in result.model_dump_json()
    assert "\\u001b" not in result.model_dump_json()
