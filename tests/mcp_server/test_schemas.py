"""The schemas of the tools: small, true to the command models, and in the words of a caller."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from core.commands import load
from core.commands.check_data import CheckData
from core.commands.run_rollouts import RunRollouts
from mcp_server.jobs import CancelJob, GetJob, ListJobs
from mcp_server.schemas import JOBS, command_of, input_schema, job_schema, jobs_schema, options_schema, words
from mcp_server.texts import TEXTS

COMMAND_TOOLS = [name for name, text in TEXTS.items() if text.command is not None]
ADDED = {"config", "confirm", "client_request_id"}


@pytest.mark.parametrize("tool", [*COMMAND_TOOLS, *JOBS])
def test_an_input_schema_is_valid_and_small_and_says_nothing_of_flags(tool: str) -> None:
    schema = input_schema(tool)
    jsonschema.Draft202012Validator.check_schema(schema)
    text = json.dumps(schema)
    assert len(text) < 2200
    assert not re.search(r"(?<![\w-])--?[a-z]|anyOf|\$ref|\$defs|\"title\"|standard input", text)
    assert set(schema.get("required", ())) <= set(schema["properties"])


@pytest.mark.parametrize("tool", COMMAND_TOOLS)
def test_a_tool_shows_the_marked_options_and_takes_the_others_in_config(tool: str) -> None:
    model, text = command_of(tool), TEXTS[tool]
    shown = input_schema(tool)["properties"]
    marked = {name for name in model.model_fields if model.option(name).mcp}
    added = ADDED if text.asks_a_teacher else ADDED - {"confirm"}
    assert marked
    assert set(shown) == marked | added
    assert not added & set(model.model_fields) - {"config"}  # which is train_sft's own, and goes through config itself
    for name in marked:
        assert 8 <= len(shown[name]["description"]) <= 110, name
        assert shown[name]["description"][0].isupper() or shown[name]["description"].split()[0].strip(",:") in (
            *("hf", "score", "offline", "general"),  # values
        )


def test_no_command_marks_options_for_a_tool_that_is_not_there() -> None:
    from core.commands import COMMANDS

    without = set(COMMANDS) - {TEXTS[tool].command for tool in COMMAND_TOOLS}
    assert without == {"show", "demo", "jobs", "mcp_server"}
    for name in without:
        model = load(name)
        assert not [field for field in model.model_fields if model.option(field).mcp]


@pytest.mark.parametrize("tool", COMMAND_TOOLS)
def test_types_choices_and_defaults_are_those_of_the_command(tool: str) -> None:
    model = command_of(tool)
    for name, schema in input_schema(tool)["properties"].items():
        if name in ADDED:
            continue
        info = model.model_fields[name]
        if "default" in schema:
            assert model.model_validate({**least(tool), name: schema["default"]})
            assert schema["default"] == json.loads(json.dumps(info.default, default=str))
        else:
            assert info.is_required() or info.default in (None, False, "") or info.default_factory
        for value in schema.get("enum", ()):
            schemas_of(model)[name].validate(value)


def schemas_of(model: Any) -> dict[str, Any]:
    """A validator for each option, by pydantic's own schema."""
    whole = model.model_json_schema()
    return {
        name: jsonschema.Draft202012Validator({**schema, "$defs": whole.get("$defs", {})})
        for name, schema in whole["properties"].items()
    }


def least(tool: str) -> dict[str, Any]:
    """What each command cannot be without."""
    known: dict[str, dict[str, Any]] = {
        "generate_teacher_data": {"input": "p.txt"},
        "check_data": {"data": "train.jsonl"},
        "make_student": {"model": "smollm2", "layers": 2, "output": "student"},
        "train_sft": {"model": "smollm2"},
        "train_gold": {"data": "d.jsonl", "output": "runs/gold"},
        "evaluate": {"student": "runs/sft"},
        "compare_tokenizers": {"student": "smollm2", "teacher": "gpt2"},
    }
    return known.get(tool, {})


def test_required_is_only_what_no_environment_key_can_give() -> None:
    assert input_schema("generate_teacher_data")["required"] == ["input"]
    assert input_schema("compare_tokenizers")["required"] == ["student", "teacher"]
    assert "required" not in input_schema("train_gold")  # DATA_PATH and OUTPUT_DIR may stand in .env
    assert options_schema("train_gold")["required"] == ["data", "output"]
    assert options_schema("train_gold")["properties"]["data"]["environment"] == ["DATA_PATH"]


def test_choices_of_several_types_are_one_list_and_null_is_not_mentioned() -> None:
    backend = input_schema("generate_synthetic")["properties"]["backend"]
    assert backend["type"] == "string"
    assert backend["enum"][0] == "openrouter"
    assert backend["enum"][-1] == "nemo"
    assert options_schema("convert_rollouts")["properties"]["min_reward"]["type"] == "number"
    assert options_schema("convert_rollouts")["properties"]["val_split"] == {
        **{"type": "number", "default": 0, "minimum": 0, "exclusiveMaximum": 1, "group": "Input and output"},
        "description": "Share of the prompts to hold out, in <name>.val.jsonl; no prompt is in both.",
    }
    assert options_schema("check_data")["properties"]["against"]["items"] == {"type": "string"}


@pytest.mark.parametrize("tool", COMMAND_TOOLS)
def test_options_list_all_that_a_caller_may_set_with_whole_descriptions(tool: str) -> None:
    schema = options_schema(tool)
    jsonschema.Draft202012Validator.check_schema(schema)
    model = command_of(tool)
    programs = {name for name in model.model_fields if model.option(name).names in ("program", "packages")}
    assert set(schema["properties"]) == set(model.model_fields) - programs
    not_theirs = {"run_rollouts": {"mcp_command", "mcp_servers", "browser_path"}, "check_setup": {"install"}}
    assert programs == not_theirs.get(tool, set())
    for name, option in schema["properties"].items():
        assert option["description"], name
        assert not re.search(r"(?<![\w-])--?[a-z]|may be repeated|repeat it", option["description"]), name
    assert len(json.dumps(schema)) < 25_000 * 3  # as much as an answer may hold


def test_texts_about_flags_are_told_in_names_of_arguments() -> None:
    text = words("--score needs --teacher; --no-drop-truncated keeps them, with -o and a-b -1", CheckData)
    assert text == "score needs teacher; drop_truncated=false keeps them, with output_dir and a-b -1"
    assert words("With -n: N prompts", RunRollouts) == "With num_rollouts: N prompts"
    assert words("--validate", command_of("generate_synthetic")) == "validate_"


def test_answers_fit_their_schemas() -> None:
    job = {"job_id": "job_1", "tool": "evaluate", "state": "running", "progress": {"done": 1}, "result": None}
    jsonschema.validate({**job, "error": None, "files": [], "next": "get_job"}, job_schema())
    jsonschema.validate({"state": "needs_confirmation", "plan": {}, "confirm": "x", "next": "again"}, job_schema())
    jsonschema.validate({"jobs": [job], "more": False}, jobs_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"state": "running"}, job_schema())


@pytest.mark.parametrize(("tool", "model"), [("list_jobs", ListJobs), ("get_job", GetJob), ("cancel_job", CancelJob)])
def test_the_job_tools_say_what_they_check(tool: str, model: type[BaseModel]) -> None:
    properties = input_schema(tool)["properties"]
    checked = model.model_json_schema()["properties"]
    assert properties.keys() == checked.keys()
    for name, schema in properties.items():
        assert schema.get("default") == checked[name].get("default")
        most = checked[name].get("maximum")
        assert most is None or "description" not in schema or f"{most} at most" in schema["description"]
    assert input_schema(tool).get("required", []) == model.model_json_schema().get("required", [])


def test_a_job_tool_runs_no_command() -> None:
    with pytest.raises(LookupError, match="get_job runs no command"):
        command_of("get_job")


def test_all_schemas_and_texts_are_made_without_torch_or_the_sdk() -> None:
    code = (
        "import sys; from mcp_server.schemas import *; from mcp_server import prompts\n"
        "[(input_schema(n), options_schema(n)) for n, t in TEXTS.items() if t.command]\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'aiohttp', 'mcp', 'numpy'} & set(sys.modules)))"
    )
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "[]\n", done.stderr
