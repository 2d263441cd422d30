"""What callers may name, held against the real commands: every option that reaches beyond itself."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.commands import COMMANDS, load
from core.commands.resolve import resolve
from core.data.text import printable
from core.errors import UsageError
from core.teachers.providers import PROVIDERS
from mcp_server.guard import MODEL_KEYS, OUTPUTS, guard, guard_project, make_parents, teachers
from mcp_server.workspace import Workspace

NEEDED: dict[str, dict[str, Any]] = {
    "generate_teacher_data": {"input": "p.jsonl", "output": "o.jsonl"},
    "compare_tokenizers": {"student": "a/b", "teacher": "c/d"},
    "make_student": {"model": "smollm2", "output": "student", "layers": 2},
    "train_sft": {"model": "smollm2", "output": "runs/sft"},
    "train_gold": {"data": "p.jsonl", "output": "runs/gold", "student": "smollm2", "teacher": "a/b"},
    "evaluate": {"student": "runs/gold", "suite": ["offline"]},
    "generate_synthetic": {"output_dir": "data"},
    "check_data": {"data": "train.jsonl"},
    "run_rollouts": {"model": "gpt-5.2", "num_rollouts": 1},
    "convert_rollouts": {"dir": "rollouts", "output": "train.jsonl"},
    "doctor": {},
    "teachers": {},
}
"""What makes each command that is a tool complete."""


@pytest.fixture
def workspace(folder: Path) -> Workspace:
    """An empty workspace, the current folder; beside it a folder `outside`, to which the link `out` leads."""
    root = folder / "ws"
    root.mkdir()
    (folder / "outside").mkdir()
    (folder / "outside" / "secret.txt").touch()
    (root / "out").symlink_to("../outside")
    return Workspace(root)


def ask(
    workspace: Workspace,
    name: str,
    environment: Any = None,
    dotenv: Any = None,
    allow: Any = (),
    code: Any = True,
    **given: Any,
) -> None:
    guard_project(load(name), given, workspace)
    command, origins = resolve(load(name), {**NEEDED[name], **given}, environment, dotenv)
    guard(command, origins, workspace, allow, allow_code=code)


def refused(workspace: Workspace, name: str, environment: Any = None, code: Any = True, **given: Any) -> str:
    with pytest.raises(UsageError) as caught:
        ask(workspace, name, environment, code=code, **given)
    assert str(workspace.root) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", NEEDED)
def test_a_complete_call_passes(workspace: Workspace, name: str) -> None:
    ask(workspace, name)


def reaching(kinds: set[str]) -> list[tuple[str, str, bool]]:
    """(command, option, whether it is a list) of all options that name such things."""
    found: list[tuple[str, str, bool]] = []
    for name in NEEDED:
        model = load(name)
        for field, info in model.model_fields.items():
            kind = model.option(field).names or ("file" if "Path" in str(info.annotation) else None)
            if kind in kinds:
                found.append((name, field, "list" in str(info.annotation)))
    return found


def test_every_command_that_is_a_tool_is_tried() -> None:
    assert set(NEEDED) == set(COMMANDS) - {"show", "demo", "mcp_server", "jobs"}


FILES = reaching({"file", "code", "data", "model"})


ENDINGS = {"plot": ".png", "fix": ".jsonl"}
WITH = {"teacher_gguf": {"teacher_backend": "gguf"}, "check_data.student": {"score": True, "teacher": "a/b"}}
"""What these options want: an ending, other options."""


@pytest.mark.parametrize("value", ["/etc/passwd", "../outside/secret.txt", "out/secret.txt", "~/x", "a/.env", "-rf"])
@pytest.mark.parametrize(("name", "field", "many"), FILES, ids=lambda value: str(value))
def test_no_option_that_names_a_file_or_a_model_leads_out(
    workspace: Workspace, name: str, field: str, many: bool, value: str
) -> None:
    value += ENDINGS.get(field, "")
    others = WITH.get(field, WITH.get(f"{name}.{field}", {}))
    message = refused(workspace, name, **others, **{field: [value, "x"] if many else value})
    assert message.startswith(f"{field}: ")
    assert value in message


@pytest.mark.parametrize("value", ["x", "deep/er/x.jsonl", "out-of/the-way", "ä ö.json", "./a/../b"])
@pytest.mark.parametrize("field", ["input", "output", "model"])
def test_places_in_the_workspace_pass(workspace: Workspace, field: str, value: str) -> None:
    (workspace.root / "x").mkdir()
    ask(workspace, "generate_teacher_data", backend="hf", **{field: value})
    ask(workspace, "generate_teacher_data", backend="hf", **{field: str(workspace.root / value)})


@pytest.mark.parametrize(
    "value",
    [
        *("smollm2", "gpt-5.2", "Qwen/Qwen3-4B", "owner/repo:Q4_K_M", "z-ai/glm-4.5-air:free"),
        *("accounts/fireworks/models/llama-v3p1-8b", "meta/llama-3.1-8b-instruct"),
    ],
)
def test_names_of_models_pass(workspace: Workspace, value: str) -> None:
    ask(workspace, "generate_teacher_data", model=value, backend="openrouter")
    ask(workspace, "evaluate", models=[f"a={value}"])


@pytest.mark.parametrize("value", ["/models/a", "../a", "~/a", "-a", "--trust-remote-code", "a\nb", "out"])
def test_what_is_no_name_of_a_model_is_a_path_and_must_be_inside(workspace: Workspace, value: str) -> None:
    assert refused(workspace, "generate_teacher_data", model=value, backend="hf").startswith("model: ")
    assert refused(workspace, "evaluate", models=[f"mine={value}"]).startswith("models: ")


def test_a_name_on_the_hub_that_is_also_a_link_to_somewhere_else_is_refused(workspace: Workspace) -> None:
    (workspace.root / "owner").mkdir()
    (workspace.root / "owner" / "name").symlink_to(workspace.root.parent / "outside")
    for name, options in (
        ("generate_teacher_data", {"input": "hf:owner/name"}),
        ("check_data", {"tokenizer": "owner/name"}),
    ):
        assert "is outside the workspace" in refused(workspace, name, **options)


def test_data_is_a_file_or_a_data_set_on_the_hub(workspace: Workspace) -> None:
    for value in ("hf:owner/name", "hf:name:test", "hf:owner/name:train"):
        ask(workspace, "generate_teacher_data", input=value)
    for value in ("hf:../x", "hf:/etc", "hf:a/b/c", "hf:https://x.example/d", "hf:"):
        assert "names no data set" in refused(workspace, "generate_teacher_data", input=value)
    assert "standard input is not there" in refused(workspace, "generate_teacher_data", input="-")


def test_a_text_that_is_also_the_name_of_a_file_outside_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    (workspace.root / "rubric.txt").touch()
    judged = {"teacher_mode": "judge", "teacher_backend": "ollama"}
    ask(workspace, "train_gold", **judged, judge_rubric="Correct, complete / clear.\n" * 300)
    ask(workspace, "train_gold", **judged, judge_rubric="rubric.txt")
    for value in ("/etc/passwd", "out/secret.txt", "../outside/secret.txt"):
        assert "judge_rubric: " in refused(workspace, "train_gold", **judged, judge_rubric=value)
        assert "chat_template: " in refused(workspace, "train_sft", chat_template=value)


def test_a_text_is_not_even_looked_for_outside(workspace: Workspace) -> None:
    """Commands open such a file while they are resolved, so it would be too late to refuse it afterwards."""
    for name, field in (("train_gold", "judge_rubric"), ("train_sft", "chat_template")):
        with pytest.raises(UsageError, match=f"{field}: .* is outside"):
            guard_project(load(name), {field: "../outside/secret.txt"}, workspace)


# ---- links inside -------------------------------------------------------------------------------------------------


def link(workspace: Workspace, place: str, to: str) -> str:
    """A link somewhere in the workspace, to what is named from its root; its own name."""
    path = workspace.root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(workspace.root / to, path.parent))
    return place


@pytest.mark.parametrize(
    "place", ["roll/0.json", "roll/deep/er/0.json", "roll/.0.json", "roll/all", "roll/.step-1.new/w"]
)
def test_a_folder_with_a_link_that_leads_out_is_no_input_and_no_output(workspace: Workspace, place: str) -> None:
    link(workspace, place, "../outside" if place.endswith("all") else "../outside/secret.txt")
    for name, field in (
        *(("convert_rollouts", "dir"), ("train_gold", "output"), ("generate_synthetic", "documents")),
        *(("check_data", "data"), ("train_sft", "model"), ("run_rollouts", "output"), ("evaluate", "scan")),
    ):
        message = refused(workspace, name, **{field: "roll"})
        assert message.startswith(f'{field}: "{place}" is a link to what is outside the workspace')


def test_a_link_to_another_folder_is_followed_to_what_that_holds(workspace: Workspace) -> None:
    link(workspace, "roll/more", "other")
    (workspace.root / "other").mkdir()
    (workspace.root / "other" / "0.json").touch()
    link(workspace, "other/around", "roll")
    ask(workspace, "convert_rollouts", dir="roll")
    link(workspace, "other/1.json", "../outside/secret.txt")
    assert refused(workspace, "convert_rollouts", dir="roll").startswith('dir: "other/1.json" is a link')


def test_links_to_keys_lead_out_too_and_links_that_stay_inside_do_not(workspace: Workspace) -> None:
    (workspace.root / ".env").touch()
    (workspace.root / "a.json").touch()
    link(workspace, "roll/0.json", "a.json")
    link(workspace, "roll/1.json", "not-there-yet.json")
    link(workspace, "roll/.venv/bin/python", "../outside")  # where nothing of ours is read
    ask(workspace, "convert_rollouts", dir="roll")
    link(workspace, "roll/2.json", ".env")
    assert "roll/2.json" in refused(workspace, "convert_rollouts", dir="roll")


@pytest.mark.parametrize("beside", ["o.jsonl.failures.jsonl", "o.jsonl.run.json", ".o.jsonl.new", "o.dropped.jsonl"])
def test_a_link_beside_an_output_is_refused_where_it_leads_out(workspace: Workspace, beside: str) -> None:
    link(workspace, f"data/{beside}", "../outside/not-there-yet")
    for name, field in (("generate_teacher_data", "output"), ("convert_rollouts", "output"), ("check_data", "fix")):
        message = refused(workspace, name, **{field: "data/o.jsonl"})
        assert message.startswith(f'{field}: "data/{beside}" is a link')
        ask(workspace, name, **{field: "data/oo.jsonl"})


def test_a_second_report_goes_to_no_folder_outside(workspace: Workspace) -> None:
    link(workspace, "mine-2", "../outside")
    assert refused(workspace, "evaluate", output="mine").startswith('output: "mine-2" is a link')
    link(workspace, "reports/gold-best", "../outside")
    for name, field in (("evaluate", "output"), ("check_data", "output_dir")):
        assert refused(workspace, name).startswith(f'{field}: "reports/gold-best" is a link')


def test_a_place_that_is_a_default_is_looked_at_too(workspace: Workspace) -> None:
    link(workspace, "rollouts", "../outside")
    assert refused(workspace, "run_rollouts").startswith('output: "rollouts" is outside')
    link(workspace, "runs/sft/best", "../outside")
    with pytest.raises(UsageError, match='output: "runs/sft/best" is a link'):
        guard(*resolve(load("train_sft"), {"model": "smollm2"}), workspace, ())


def test_the_prompts_that_config_yml_names_are_inside(workspace: Workspace) -> None:
    config = workspace.root / "config.yml"
    config.write_text("data:\n  train_file: rows.jsonl\n", encoding="utf-8")
    ask(workspace, "run_rollouts")
    link(workspace, "rows.prompts.jsonl", "../outside/secret.txt")
    assert refused(workspace, "run_rollouts").startswith('input: "rows.prompts.jsonl" is a link')
    config.write_text("data:\n  train_file: ../outside/secret.txt\n", encoding="utf-8")
    assert refused(workspace, "run_rollouts").startswith('input: "../outside/secret.txt" is outside')
    ask(workspace, "run_rollouts", input="other.jsonl")


def test_a_folder_with_too_much_in_it_to_be_looked_at_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_server.workspace.MOST_ENTRIES", 5)
    for number in range(5):
        link(workspace, f"roll/{number}/x", "data")
    assert "holds more than 5 files and folders" in refused(workspace, "convert_rollouts", dir="roll")
    ask(workspace, "convert_rollouts", dir="roll/1")


# ---- what a model's folder names ----------------------------------------------------------------------------------


def say(workspace: Workspace, place: str, **content: Any) -> None:
    path = workspace.root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_an_adapter_of_a_model_outside_is_not_loaded(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = workspace.root.parent / "outside"
    (workspace.root / "base").mkdir()
    for base in (str(outside), "../outside", "../../../outside"):
        say(workspace, "run/best/adapter_config.json", base_model_name_or_path=base)
        for student in ("run/best", "run"):
            message = refused(workspace, "evaluate", student=student, baseline="smollm2")
            assert message.startswith(
                "student: run/best/adapter_config.json names a model that lies outside the workspace"
            )
            assert str(outside) not in message
        assert refused(workspace, "evaluate", models=["a=run/best"]).startswith("models: ")
        assert refused(workspace, "train_sft", model="run/best").startswith("model: ")
    for base in ("Qwen/Qwen3-4B", "smollm2", "base", "../../base", str(workspace.root / "base"), "/not/there", 3, None):
        say(workspace, "run/best/adapter_config.json", base_model_name_or_path=base)
        ask(workspace, "evaluate", student="run/best", baseline="smollm2")
    (workspace.root / "run/best/adapter_config.json").write_text("no json", encoding="utf-8")
    ask(workspace, "evaluate", student="run/best", baseline="smollm2")


def test_an_adapter_may_belong_to_what_the_user_named_or_what_is_in_a_cache(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = workspace.root.parent
    cached = top / "cache" / "distill" / "models" / "smollm2"
    cached.mkdir(parents=True)
    for base, variable, value in (
        (cached, "XDG_CACHE_HOME", top / "cache"),
        (top / "outside", "STUDENT_MODEL_PATH", top / "outside"),
        (top / "outside", "HF_HUB_CACHE", top),
    ):
        say(workspace, "best/adapter_config.json", base_model_name_or_path=str(base))
        assert "student: " in refused(workspace, "evaluate", student="best", baseline="smollm2")
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(value))
            ask(workspace, "evaluate", student="best", baseline="smollm2")


def test_a_run_is_not_compared_with_a_model_outside(workspace: Workspace) -> None:
    outside = workspace.root.parent / "outside"
    (workspace.root / "run" / "best").mkdir(parents=True)
    for command, option, named, cwd in (
        ("train_gold", "student", str(outside), "/"),
        ("train_sft", "model", "outside", str(outside.parent)),
    ):
        say(workspace, "run/run.json", command=command, options={option: named}, cwd=cwd)
        for field, value in (("student", "run"), ("student", "run/best"), ("scan", "run")):
            given = {"student": None, field: value}
            message = refused(workspace, "evaluate", **{key: each for key, each in given.items() if each})
            assert message.endswith("run/run.json names a model that lies outside the workspace. Name a baseline.")
        ask(workspace, "evaluate", student="run/best", baseline="smollm2")
        ask(workspace, "train_gold", output="run")  # which goes on with it
    say(workspace, "run/run.json", command="train_gold", options={"student": "smollm2"}, cwd=str(outside))
    ask(workspace, "evaluate", student="run/best")


def test_the_variables_that_name_a_model_are_those_of_the_commands() -> None:
    found = {
        key
        for name in NEEDED
        for field in load(name).model_fields
        if load(name).option(field).names == "model" and "teacher" not in field and "openrouter" not in field
        for key in load(name).option(field).env_keys
    }
    assert set(MODEL_KEYS) == found


# ---- outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["rewards.py", "config.yml", "x/lm.YAML", "run.sh"])
def test_no_output_becomes_a_program_or_settings(workspace: Workspace, value: str) -> None:
    for name in ("generate_teacher_data", "convert_rollouts", "run_rollouts", "train_gold", "train_sft"):
        assert refused(workspace, name, output=value).startswith(f"output: {value} ends as programs or settings do")
    assert refused(workspace, "generate_synthetic", output_dir=value).startswith("output_dir: ")


def test_every_option_that_names_an_output_is_known_as_one() -> None:
    """A further one would have to be added: what is written is confined further than what is read."""
    read = {
        *("dir", "text", "config", "compare", "scan", "domain", "documents", "against", "rubric"),
    }
    assert {field for _, field, _ in reaching({"file"})} - read == set(OUTPUTS)


def test_folders_for_outputs_are_made_in_the_workspace_only(workspace: Workspace) -> None:
    for name, options in {
        "generate_teacher_data": {"output": "data/new/train.jsonl"},
        "check_data": {"fix": "fixed/train.jsonl"},
        "run_rollouts": {"dir": "project", "output": "out/rollouts"},
        "train_gold": {"output": "../elsewhere/run"},
        "convert_rollouts": {"output": "here.jsonl"},
    }.items():
        (workspace.root / "project").mkdir(exist_ok=True)
        make_parents(load(name).model_validate(NEEDED[name] | options), workspace)
    made = {str(path.relative_to(workspace.root)) for path in workspace.root.rglob("*") if not path.is_symlink()}
    assert made == {"data", "data/new", "fixed", "project", "project/out"}
    assert not (workspace.root.parent / "elsewhere").exists()


def test_paths_of_run_rollouts_begin_in_its_folder(workspace: Workspace) -> None:
    (workspace.root / "project").mkdir()
    (workspace.root / "project" / "data").symlink_to("../../outside")
    ask(workspace, "run_rollouts", dir="project", output="../rollouts", tools="tools.py")
    for field in ("input", "output", "tools", "rewards"):
        message = refused(workspace, "run_rollouts", dir="project", **{field: "data/secret.txt"})
        assert message.startswith(f'{field}: "data/secret.txt" is outside')
    assert "dir: " in refused(workspace, "run_rollouts", dir="..")


def test_what_the_users_own_environment_says_is_not_held_against_the_caller(workspace: Workspace) -> None:
    theirs = {"STUDENT_MODEL_PATH": "/models/mine", "TEACHER_BASE_URL": "http://10.0.0.5:8000/v1"}
    given = {"student": None, "teacher_backend": "vllm"}
    command, origins = resolve(
        load("train_gold"), {k: v for k, v in (NEEDED["train_gold"] | given).items() if v}, theirs
    )
    guard(command, origins, workspace, ())
    command, origins = resolve(load("train_gold"), NEEDED["train_gold"], {}, theirs)
    guard(command, origins, workspace, ())
    assert "teacher_base_url: " in refused(
        workspace, "train_gold", theirs, teacher_backend="vllm", teacher_base_url="http://10.0.0.5:8000/v1"
    )


def test_a_file_of_the_project_may_not_say_what_its_caller_may_not(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    (workspace.root / "config.yml").write_text("rollout:\n  mcp_url: http://169.254.169.254/mcp\n", encoding="utf-8")
    assert "mcp_url: http://169.254.169.254:80 may not be asked" in refused(workspace, "run_rollouts")


# ---- programs and servers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"), [("mcp_command", ["sh -c id"]), ("mcp_servers", "servers.json"), ("browser_path", "chrome")]
)
def test_no_program_is_started_for_a_caller(workspace: Workspace, field: str, value: Any) -> None:
    message = refused(workspace, "run_rollouts", **{field: value})
    assert message.startswith(f"{field}: starts a program, which callers of tools may not do.")
    assert "mcp_url" in message


@pytest.mark.parametrize(
    "name", ["browser_evaluate", "browser_run_code_unsafe", "pw_browser_file_upload", "browser_drop"]
)
def test_no_tool_that_is_denied_by_default_is_allowed_by_a_caller(workspace: Workspace, name: str) -> None:
    ask(workspace, "run_rollouts", browser=True, allow_tools=["browser_*", "browser_click"])
    assert refused(workspace, "run_rollouts", browser=True, allow_tools=["browser_click", name]).startswith(
        "allow_tools"
    )


def test_python_of_the_workspace_is_run_only_where_the_user_allows_it(workspace: Workspace) -> None:
    for name, field, value in (
        *(("run_rollouts", "tools", "tools.py"), ("run_rollouts", "rewards", "rewards.py")),
        ("evaluate", "tasks_dir", "tasks"),
    ):
        for dry in ({}, {"dry_run": True}):
            message = refused(workspace, name, code=False, **{field: value}, **dry)
            assert message.startswith(f"{field}: {value} is Python, which is run for callers of tools only where")
            assert "allow_code" in message
            ask(workspace, name, code=True, **{field: value}, **dry)


@pytest.mark.parametrize("field", ["models", "plugins", "service_tier", "web_search_options"])
def test_no_request_is_made_dearer_than_its_price(workspace: Workspace, field: str) -> None:
    gold = {"teacher_backend": "vllm"}
    for name, option, more in (
        *(("generate_teacher_data", "extra_body", {}), ("train_gold", "teacher_extra_body", gold)),
        ("doctor", "teacher_extra_body", {"teacher": "m", "teacher_backend": "openai"}),
    ):
        assert refused(workspace, name, **more, **{option: {field: "x"}}).startswith(
            f'{option}: "{field}" may cost more'
        )
        ask(workspace, name, **more, **{option: {"top_k": 40, "provider": {"require_parameters": True}}})


HERE = ["http://127.0.0.1:8000/v1", "http://localhost:11434/v1", "http://[::1]:8000/v1", "https://127.0.0.1/v1"]
ELSEWHERE = [
    "http://169.254.169.254/latest/meta-data",
    "http://[fe80::1]/v1",
    "http://10.0.0.5:8000/v1",
    "http://0.0.0.0:8000/v1",
    "http://127.8.9.1:8000/v1",
    "http://127.0.0.1.evil.example/v1",
    "http://localhost.evil.example/v1",
    "http://2130706433/v1",
    "https://evil.example/v1",
    "https://openrouter.ai.evil.example/api/v1",
    "http://openrouter.ai/api/v1",
    "https://openrouter.ai:8443/api/v1",
    "https://[::ffff:169.254.169.254]/v1",
]


def test_a_project_file_outside_is_not_even_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.root)
    (workspace.root.parent / "outside" / "config.yml").write_text("the: canary\n", encoding="utf-8")
    for name, options in (("train_sft", {"config": "out/config.yml"}), ("run_rollouts", {"dir": "out"})):
        message = refused(workspace, name, **options)
        assert "is outside the workspace" in message
        assert "canary" not in message
    (workspace.root / "config.yml").symlink_to("out/config.yml")
    for name in ("train_sft", "run_rollouts"):
        assert refused(workspace, name).startswith('config: "config.yml" is outside')
    (workspace.root / "config.yml").unlink()
    os.mkfifo(workspace.root / "config.yml")
    assert "config: config.yml is no file." in refused(workspace, "train_sft")  # nobody waits for a pipe


@pytest.mark.parametrize(("name", "field", "many"), reaching({"url"}), ids=lambda value: str(value))
def test_only_servers_on_this_machine_of_providers_or_allowed_ones_are_asked(
    workspace: Workspace, name: str, field: str, many: bool
) -> None:
    needed = {"train_gold": {"teacher_backend": "vllm"}, "check_data": {"teacher": "a/b", "judge": "a/b"}}
    needed |= {"doctor": {"teacher": "m"}, "evaluate": {"teacher": "m", "data": "held.jsonl"}}
    needed["generate_synthetic"] = {"model": "m", "backend": "openai", "question_model": "m"}

    def given(value: str) -> dict[str, Any]:
        return needed.get(name, {}) | {field: [value] if many else value}

    for value in HERE:
        ask(workspace, name, **given(value))
    for value in ELSEWHERE:
        message = refused(workspace, name, **given(value))
        assert message.startswith(f"{field}: ")
        assert "may not be asked" in message
    for value in ("http://10.0.0.5:8000/v1", "http://10.0.0.5:8000/v1/more"):
        ask(workspace, name, allow=("https://other.example", "http://10.0.0.5:8000/v1/"), **given(value))
    for value in (
        "http://10.0.0.5:8000/v2",
        "http://10.0.0.5/v1",
        "https://10.0.0.5:8000/v1",
        "http://10.0.0.5:8000/v1/../x",
    ):
        assert "may not be asked" in refused(workspace, name, allow=("http://10.0.0.5:8000/v1",), **given(value))


def test_an_mcp_server_may_be_named_without_a_scheme(workspace: Workspace) -> None:
    ask(workspace, "run_rollouts", mcp_url=["localhost:8931"])
    for value in ("file:///etc/passwd", "gopher://localhost/x", "ftp://localhost", "localhost:8931 ", "http://a\\b"):
        assert "is not a URL" in refused(workspace, "run_rollouts", mcp_url=[value])


def test_a_secret_in_a_url_is_not_repeated(workspace: Workspace) -> None:
    """Commands refuse some of these themselves, before the guard sees them."""
    for value in ("http://me:hunter2hunter2@localhost/v1", "http://localhost/v1?key=hunter2hunter2"):
        for name, field in (("generate_teacher_data", "base_url"), ("check_data", "judge_base_url")):
            assert "hunter2" not in refused(workspace, name, **{field: value})


def test_hosts_for_the_browser(workspace: Workspace) -> None:
    for value in ("example.org", "*.example.org", "*", "example.org:8443", "*:8080", "93.184.216.34"):
        ask(workspace, "run_rollouts", browser=True, allow_hosts=[value])
    private = (
        "localhost:8000",
        "127.0.0.1:*",
        "[::1]:80",
        "10.1.2.3",
        "169.254.169.254",
        "printer.local",
        "LOCALHOST.",
    )
    for value in private:
        assert "private network" in refused(workspace, "run_rollouts", browser=True, allow_hosts=[value])
    ask(workspace, "run_rollouts", browser=True, allow_hosts=["localhost:8000"], allow=("http://localhost:8000",))
    for value in ("localhost:8001", "localhost:*", "localhost"):
        message = refused(
            workspace, "run_rollouts", browser=True, allow_hosts=[value], allow=("http://localhost:8000",)
        )
        assert message.startswith("allow_hosts: ")


# ---- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [name for name, each in PROVIDERS.items() if each.hosted])
def test_a_provider_gets_its_own_key_and_no_other(workspace: Workspace, provider: str) -> None:
    url, key = PROVIDERS[provider].url, PROVIDERS[provider].key
    ask(workspace, "generate_teacher_data", backend=provider)
    ask(workspace, "generate_teacher_data", backend=provider, base_url=url)
    ask(workspace, "generate_teacher_data", backend="vllm", base_url=url, api_key_env=key)
    for other in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DISTILL_MCP_TOKEN", "VLLM_API_KEY", "MY_API_KEY"):
        message = refused(workspace, "generate_teacher_data", backend=provider, api_key_env=other)
        assert f"the key {other} does not belong to" in message
    wrong = next(name for name, each in PROVIDERS.items() if each.hosted and name != provider)
    assert f'Name the back end "{provider}"' in refused(
        workspace, "generate_teacher_data", backend=wrong, base_url=url, api_key_env=PROVIDERS[wrong].key
    )


def test_without_a_back_end_the_key_of_openai_goes_to_no_other_provider(workspace: Workspace) -> None:
    message = refused(workspace, "generate_teacher_data", base_url="https://openrouter.ai/api/v1", model="a/b")
    assert "the key OPENAI_API_KEY does not belong to openrouter.ai" in message


def test_servers_of_ones_own_get_keys_of_models_only(workspace: Workspace) -> None:
    here, theirs = "http://127.0.0.1:8000/v1", "https://llm.example.com/v1"
    ask(workspace, "generate_teacher_data", base_url=here)
    ask(workspace, "generate_teacher_data", base_url=here, api_key_env="VLLM_API_KEY")
    for key in ("MY_API_KEY", "HF_TOKEN", "DISTILL_MCP_TOKEN", "AWS_SECRET_ACCESS_KEY", "HOME", "PATH"):
        message = refused(workspace, "generate_teacher_data", base_url=here, api_key_env=key)
        assert f"{key} may not be sent to 127.0.0.1" in message
    ask(workspace, "generate_teacher_data", base_url=theirs, api_key_env="MY_API_KEY", allow=(theirs,))
    for key in ("HF_TOKEN", "DISTILL_MCP_TOKEN", "AWS_SECRET_ACCESS_KEY", "HOME"):
        refused(workspace, "generate_teacher_data", base_url=theirs, api_key_env=key, allow=(theirs,))


def test_a_key_of_a_provider_goes_to_no_port_of_this_machine_on_a_callers_word(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may listen there. Where no such key is set, none is sent."""
    here = "http://127.0.0.1:8000/v1"
    calls: list[tuple[str, dict[str, Any], str]] = [
        ("generate_teacher_data", {"base_url": here}, "OPENAI_API_KEY"),
        ("generate_teacher_data", {"base_url": here, "api_key_env": "OPENROUTER_API_KEY"}, "OPENROUTER_API_KEY"),
        ("generate_teacher_data", {"backend": "vllm", "api_key_env": "NVIDIA_API_KEY"}, "NVIDIA_API_KEY"),
        ("generate_teacher_data", {"backend": "together", "base_url": here}, "TOGETHER_API_KEY"),
        ("check_data", {"judge": "m", "judge_base_url": here}, "OPENAI_API_KEY"),
    ]
    for name, options, key in calls:
        ask(workspace, name, **options)
        (workspace.root / ".env").write_text(f"{key}=sk-0123456789abcdef\n", encoding="utf-8")
        message = refused(workspace, name, **options)
        assert f"{key} is the key of a provider and does not go to 127.0.0.1" in message
        assert "vllm" in message
        assert "allow_url" in message
        ask(workspace, name, allow=("http://127.0.0.1:8000/v1",), **options)
        (workspace.root / ".env").unlink()
        with monkeypatch.context() as patch:
            patch.setenv(key, "sk-0123456789abcdef")
            assert "does not go to" in refused(workspace, name, **options)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    monkeypatch.setenv("VLLM_API_KEY", "my-own-server")
    ask(workspace, "generate_teacher_data", base_url=here, backend="vllm")
    ask(workspace, "generate_teacher_data", backend="openai")
    theirs = {"TEACHER_BASE_URL": here}  # an address that the user wrote down
    ask(workspace, "train_gold", theirs, teacher_backend="openai")


EVIL = "https://evil.example/v1"
KEY = "sk-0123456789abcdef"


@pytest.mark.parametrize("name", ["train_gold", "doctor", "train_sft"])
@pytest.mark.parametrize(
    ("backend", "url", "key"),
    [
        ("", EVIL, "OPENAI_API_KEY"),
        ("openai", "http://127.0.0.1:8000/v1", "OPENAI_API_KEY"),
        ("together", EVIL, "TOGETHER_API_KEY"),
        ("together", "https://openrouter.ai/api/v1", "TOGETHER_API_KEY"),
        ("vllm", EVIL, "VLLM_API_KEY"),
    ],
)
def test_a_key_of_the_environment_goes_to_no_server_that_only_the_folders_env_file_names(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, backend: str, url: str, key: str
) -> None:
    """The folder may be a stranger's. What its own file gives may go where that file says."""
    given: dict[str, Any] = {"doctor": {"teacher": "x"}, "train_sft": {"dataset_type": "distill"}}.get(name, {})
    written = {"TEACHER_BASE_URL": url, "TEACHER_BACKEND": backend, key: KEY}
    (workspace.root / ".env").write_text("".join(f"{key}={value}\n" for key, value in written.items()), "utf-8")

    def start(environment: Any = None, allow: Any = ()) -> None:
        ask(workspace, name, environment, written, allow=allow, **given)

    start()
    monkeypatch.setenv(key, KEY + "-mine")
    with pytest.raises(UsageError, match=f"{key} of your environment does not go to http") as caught:
        start()
    assert "allow_url" in str(caught.value)
    assert KEY not in str(caught.value)
    start(allow=(url,))
    if name != "train_sft":  # which reads no address from the environment
        start({"TEACHER_BASE_URL": url})


def test_keys_of_the_environment_go_where_they_belong_though_the_env_file_names_the_place(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for provider, each in PROVIDERS.items():
        monkeypatch.setenv(each.key, KEY)
        ask(workspace, "train_gold", None, {"TEACHER_BASE_URL": each.url, "TEACHER_BACKEND": provider})


def test_judge_teacher_and_questioner_are_all_looked_at(workspace: Workspace) -> None:
    url = "http://127.0.0.1:8000/v1"
    for name, options in {
        "check_data": {"teacher": "m", "teacher_base_url": url, "teacher_api_key_env": "HF_TOKEN"},
        "evaluate": {"teacher": "m", "teacher_base_url": url, "api_key_env": "HF_TOKEN", "data": "held.jsonl"},
        "train_gold": {"teacher_backend": "vllm", "teacher_api_key_env": "HF_TOKEN"},
        "doctor": {"teacher": "m", "teacher_backend": "vllm", "teacher_api_key_env": "HF_TOKEN"},
        "generate_synthetic": {"model": "m", "base_url": url, "api_key_env": "HF_TOKEN"},
        "run_rollouts": {"base_url": url, "api_key_env": "HF_TOKEN"},
        "teachers": {"base_url": url, "api_key_env": "HF_TOKEN"},
    }.items():
        assert "HF_TOKEN may not be sent to 127.0.0.1" in refused(workspace, name, **options)
    judging = {"judge": "m", "judge_base_url": url, "judge_api_key_env": "HF_TOKEN"}
    assert "HF_TOKEN may not be sent" in refused(workspace, "check_data", **judging)
    asking = {"question_model": "m", "question_base_url": "https://openrouter.ai/api/v1"}
    assert "OPENAI_API_KEY does not belong to" in refused(workspace, "generate_synthetic", **asking)


def test_no_command_asks_a_model_that_the_guard_does_not_know_of() -> None:
    """Of a command that names a server or a key, `teachers` says who is asked."""
    asking = {name for name, _, _ in reaching({"key"})} | {
        name for name, field, _ in reaching({"url"}) if "base" in field
    }
    given = {"check_data": {"teacher": "m", "judge": "n"}, "doctor": {"teacher": "m"}, "evaluate": {"teacher": "m"}}
    for name in asking - {"teachers"}:  # which reads a list and asks no model
        assert teachers(load(name).model_validate(NEEDED[name] | given.get(name, {}))), name
    both = teachers(load("check_data").model_validate({**NEEDED["check_data"], "teacher": "m", "judge": "n"}))
    assert [each.model for each in both] == ["m", "n"]


# ---- whatever is said ---------------------------------------------------------------------------------------------


@given(st.text(max_size=60) | st.from_regex(r"\A[a-z./~:\\-]{0,20}\Z"), st.sampled_from(["input", "output", "model"]))
def test_whatever_a_caller_writes_it_passes_inside_or_is_refused_in_one_readable_line(value: str, field: str) -> None:
    workspace = Workspace(Path(__file__).parent)
    try:
        ask(workspace, "generate_teacher_data", backend="hf", **{field: value})
    except UsageError as error:
        assert str(error) == printable(str(error))
        assert len(str(error)) < 800
    else:
        plain = value.startswith("hf:") or not value or Path(value) == Path()
        assert plain or (workspace.root / value).resolve().is_relative_to(workspace.root)


def test_an_endless_name_is_refused(workspace: Workspace) -> None:
    assert "100,000 characters" in refused(workspace, "generate_teacher_data", input="x" * 100_000)
