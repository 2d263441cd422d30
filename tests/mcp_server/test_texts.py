"""What a model reads of the tools, and what all of it weighs."""

import json
import re
from typing import get_args

import anyio
import pytest

from core.commands import COMMANDS
from mcp_server.schemas import TOOLS_BUDGET
from mcp_server.server import DistillServer
from mcp_server.texts import INSTRUCTIONS, TEXTS
from mcp_server.tool import Toolset

ORDER = (
    *("generate_teacher_data", "list_teachers", "run_rollouts", "convert_rollouts", "generate_synthetic"),
    *("check_data", "make_student", "train_sft", "train_gold", "evaluate", "compare_tokenizers", "check_setup"),
    *("list_jobs", "get_job", "cancel_job", "read_rows"),
)


def test_the_list_of_tools_is_within_its_budget_and_in_its_order(server: DistillServer) -> None:
    tools = anyio.run(server.list_tools)
    assert [tool.name for tool in tools] == [*ORDER]
    listed = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools]
    size = len(json.dumps({"tools": listed}, separators=(",", ":")).encode())
    assert size < TOOLS_BUDGET - 1000, {each["name"]: len(json.dumps(each)) for each in listed}


def test_the_texts_are_in_the_order_in_which_the_tools_are_listed() -> None:
    assert tuple(TEXTS) == ORDER


@pytest.mark.parametrize("tool", TEXTS)
def test_a_description_says_what_when_at_what_cost_and_what_next(tool: str) -> None:
    text = TEXTS[tool]
    sentences = re.findall(r"[^.;]+[.;]", text.description.replace("report.md", "report"))
    assert 3 <= len(sentences) <= 7
    assert len(text.description) <= 300
    assert re.search(r"\b(Before|After|When|For|First|To find|first)\b", text.description), "when to use it"
    assert re.search(r"\b([Ff]ree|costs?|paid)\b", text.description), "what it costs"
    assert re.search(r"\b[Tt]hen\b", text.description), "what to call next"
    assert "--" not in text.description
    assert "\n" not in text.description
    for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text.description):
        assert name in {*TEXTS, "dry_run", "job_id", "wait_s"}
    assert text.title[0].isupper()
    assert len(text.title) <= 40
    assert text.toolset in get_args(Toolset)


def test_annotations_say_what_may_happen() -> None:
    reading = {name for name, text in TEXTS.items() if text.read_only}
    assert reading == {"list_jobs", "get_job", "read_rows"}
    for name, text in TEXTS.items():
        assert not (text.read_only and text.destructive)
        assert text.open_world == (text.command not in (None, "convert_rollouts"))
        assert text.idempotent == (text.command is None), name
    destructive = {name for name, text in TEXTS.items() if text.destructive}
    assert destructive == {
        *("run_rollouts", "convert_rollouts", "check_data", "make_student", "train_sft", "train_gold"),
        *("compare_tokenizers", "cancel_job"),
    }


def test_what_overwrites_is_called_destructive_unless_it_keeps_the_old() -> None:
    from mcp_server.schemas import command_of

    for name, text in TEXTS.items():
        if text.command is None:
            continue
        overwrite = command_of(name).model_fields.get("overwrite")
        if overwrite is not None and ".old" not in (overwrite.description or ""):
            assert text.destructive, name


def test_every_toolset_has_its_tools_and_those_for_jobs_are_no_more_than_that() -> None:
    by_set = {
        toolset: [name for name, text in TEXTS.items() if text.toolset == toolset] for toolset in get_args(Toolset)
    }
    assert by_set["eval"] == ["evaluate", "compare_tokenizers"]
    assert by_set["train"] == ["make_student", "train_sft", "train_gold"]
    assert by_set["jobs"] == ["check_setup", "list_jobs", "get_job", "cancel_job", "read_rows"]
    assert len(by_set["data"]) == 6


def test_the_commands_behind_tools_are_there_and_whoever_has_a_bound_may_have_to_pay() -> None:
    from mcp_server.schemas import command_of

    for name, text in TEXTS.items():
        if text.command is not None:
            assert text.command in COMMANDS
            fields = command_of(name).model_fields
            assert text.asks_a_teacher == ("max_cost" in fields or name in ("evaluate", "check_setup"))
            assert not text.asks_a_teacher or "dry_run" in fields


def test_instructions_name_only_what_there_is() -> None:
    from mcp_server.prompts import PLANS

    for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", INSTRUCTIONS):
        assert name in {*TEXTS, *PLANS, "client_request_id", "dry_run", "max_cost", "job_id", "wait_s"} | {
            "needs_confirmation"
        }
    assert len(INSTRUCTIONS) < 2000
