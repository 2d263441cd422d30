"""What the texts of options name: whoever lets others give values must be able to hold every one against it."""

from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from core.commands import COMMANDS, load
from core.commands.base import Names
from core.commands.teacher import TeacherOptions

TEXTS = {
    "generate_teacher_data": {"prompt_key", "shard"},
    "run_rollouts": {"entry", "prompt_key", "allow_tools", "deny_tools"},
    "convert_rollouts": {"system"},
    "show": {"index", "search"},
    "train_sft": {"project_name", "lora_targets", "gguf_types"},
    "train_gold": {
        *("prompt_key", "system", "teacher_preferred_quant", "teacher_price", "teacher_extra_body"),
        *("lora_targets", "monitor"),
    },
    "evaluate": {"suite", "tasks", "prompt_key", "system", "name"},
    "generate_synthetic": {"mix", "question_price", "language"},
    "check_data": {"prompt_key", "tasks", "language", "require", "judge_price", "teacher_price"},
    "doctor": {"teacher_extra_body", "teacher_price"},
    "teachers": {"search", "prompt_key", "system"},
    "jobs": {"job"},
    "mcp_server": {"toolsets"},
}
"""Options that are only texts: nothing is read, started or asked by their value. A new one belongs here after a look,
or gets `Option(names=...)`."""
GUARDED = ("code", "program", "packages", "key", "url", "host", "named model")
OF_TEACHERS = {"system", "price", "preferred_quant", "device_map", "extra_body"}
"""The same, of the commands that ask a teacher."""


def kinds(annotation: Any) -> set[Any]:
    """The classes in a type (and the values of a Literal)."""
    return {annotation, get_origin(annotation)}.union(*map(kinds, get_args(annotation)))


def texts_of(command: str) -> set[str]:
    """Fields that may hold a text, or something with texts in it."""
    fields = load(command).model_fields
    return {name for name, info in fields.items() if {str, dict} & kinds(info.annotation)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_text_of_every_command_says_what_it_names(command: str) -> None:
    model = load(command)
    unmarked = {name for name in texts_of(command) if model.option(name).names is None}
    assert unmarked == TEXTS.get(command, set()) | (OF_TEACHERS if issubclass(model, TeacherOptions) else set())


@pytest.mark.parametrize("command", COMMANDS)
def test_marks_are_known_and_stand_on_texts_and_paths_only(command: str) -> None:
    model = load(command)
    for name, info in model.model_fields.items():
        if (names := model.option(name).names) is not None:
            assert names in get_args(Names)
            assert {str, Path} & kinds(info.annotation), name


def test_the_marks_that_a_guard_rests_on() -> None:
    marked = {
        f"{command}.{name}": option.names
        for command in COMMANDS
        for name in load(command).model_fields
        if (option := load(command).option(name)).names in GUARDED
    }
    assert marked == {
        "generate_teacher_data.base_url": "url",
        "generate_teacher_data.api_key_env": "key",
        "run_rollouts.base_url": "url",
        "run_rollouts.api_key_env": "key",
        "run_rollouts.mcp_url": "url",
        "run_rollouts.mcp_command": "program",
        "run_rollouts.mcp_servers": "program",
        "run_rollouts.tools": "code",
        "run_rollouts.rewards": "code",
        "run_rollouts.browser_path": "program",
        "run_rollouts.allow_hosts": "host",
        "train_gold.teacher_base_url": "url",
        "train_gold.teacher_api_key_env": "key",
        "evaluate.teacher_base_url": "url",
        "evaluate.api_key_env": "key",
        "evaluate.models": "named model",
        "evaluate.tasks_dir": "code",
        "generate_synthetic.base_url": "url",
        "generate_synthetic.api_key_env": "key",
        "generate_synthetic.question_base_url": "url",
        "check_data.teacher_base_url": "url",
        "check_data.teacher_api_key_env": "key",
        "check_data.judge_base_url": "url",
        "check_data.judge_api_key_env": "key",
        "doctor.teacher_base_url": "url",
        "doctor.teacher_api_key_env": "key",
        "doctor.install": "packages",
        "teachers.base_url": "url",
        "teachers.api_key_env": "key",
        "mcp_server.host": "host",
        "mcp_server.allow_host": "host",
        "mcp_server.allow_url": "url",
    }
