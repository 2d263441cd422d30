"""The options of run_rollouts: flags, the project's config.yml, and what of the prompts they select."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from core.commands.resolve import resolve
from core.commands.run_rollouts import RunRollouts
from core.errors import InputError, UsageError
from tests.conftest import Generate
from tests.support.running import KEY, Outcome, write_rows
from tests.support.scripted_teacher import Chat, ScriptedTeacher, scripted_teacher


def resolved(**flags: Any) -> RunRollouts:
    command, _ = resolve(RunRollouts, flags)
    assert isinstance(command, RunRollouts)
    return command


def refusal(**flags: Any) -> str:
    with pytest.raises(UsageError) as caught:
        resolved(**flags)
    return str(caught.value)


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"num_rollouts": 2, "entry": ["1"]}, "-n and -e exclude one another"),
        ({"num_rollouts": 2, "all": True}, "-n and --all exclude one another"),
        ({"entry": ["0-3"], "all": True}, "-e and --all exclude one another"),
        ({"num_rollouts": 1, "entry": ["1"], "all": True}, "-n and -e and --all exclude one another"),
        ({"random": True}, "--random needs -n"),
        ({"random": True, "all": True}, "--random needs -n"),
    ],
)
def test_ways_to_select_exclude_one_another(flags: dict[str, Any], named: str) -> None:
    assert named in refusal(**flags)


@pytest.mark.parametrize("entry", ["x", "1-", "-1", "5-2", "1.5", "0x1", "1 2", "1--2"])
def test_an_index_that_is_none_is_refused_with_an_example(entry: str) -> None:
    assert f'"{entry}" is neither an index such as 7 nor a range such as 0-99' in refusal(entry=[entry])


@pytest.mark.parametrize(
    ("flags", "option"),
    [
        ({"num_rollouts": 0}, "--num-rollouts"),
        ({"max_turns": 0}, "--max-turns"),
        ({"max_context": 5}, "--max-context"),
        ({"max_tool_response": 0}, "--max-tool-response"),
        ({"tool_timeout": 0}, "--tool-timeout"),
        ({"rollout_timeout": -1}, "--rollout-timeout"),
        ({"temperature": 3}, "--temperature"),
        ({"check": "fuzzy"}, "--check"),
        ({"termination_policy": "never"}, "--termination-policy"),
        ({"samples": 0}, "--samples"),
        ({"price": "3"}, "--price"),
    ],
)
def test_a_value_out_of_range_is_named_by_its_flag(flags: dict[str, Any], option: str) -> None:
    assert option in refusal(**flags)


def test_lists_may_be_repeated_or_separated_by_commas() -> None:
    command = resolved(
        entry=["0,2", "5-7"], allow_tools=["add, browser_*", "x"], mcp_url=["localhost:1", "localhost:2"]
    )
    assert command.ranges == [range(0, 1), range(2, 3), range(5, 8)]
    assert command.allow_tools == ["add", "browser_*", "x"]
    assert command.mcp_url == ["localhost:1", "localhost:2"]


# ---- config.yml ----------------------------------------------------------------------------------------------------

CONFIG = """\
dataset_id: mine
data:
  train_file: tasks.jsonl
rollout:
  max_turns: 7
  max_context_window: 4096
  termination_policy: max_turns
  reasoning_mode: low
  mcp_url: http://localhost:8931/mcp
  tool_timeout: 33
  reward_timeout: 11
  rollout_timeout: 600
  max_tool_response: 500
  include_thinking: true
"""


def test_the_rollout_section_of_config_yml_is_taken_and_its_lines_are_the_origin(folder: Path) -> None:
    (folder / "config.yml").write_text(CONFIG)
    command, origins = resolve(RunRollouts, {})
    assert isinstance(command, RunRollouts)
    assert (command.max_turns, command.max_context, command.termination_policy) == (7, 4096, "max_turns")
    assert (command.reasoning, command.mcp_url, command.tool_timeout) == ("low", ["http://localhost:8931/mcp"], 33)
    assert (command.reward_timeout, command.rollout_timeout, command.max_tool_response) == (11, 600, 500)
    assert (origins["max_turns"], origins["max_tool_response"]) == ("config.yml:5", "config.yml:13")
    assert origins["temperature"] == "default"


def test_a_flag_wins_over_config_yml(folder: Path) -> None:
    (folder / "config.yml").write_text(CONFIG)
    command, origins = resolve(RunRollouts, {"max_turns": 3})
    assert isinstance(command, RunRollouts)
    assert (command.max_turns, command.tool_timeout, origins["max_turns"]) == (3, 33, "--max-turns")


@pytest.mark.parametrize(
    "url",
    [
        "http://me:pass-word@127.0.0.1:8931/mcp",
        "https://example.org/mcp?token=pass-word",
        "me:pass-word@localhost:8931",
        "https://example.org/mcp#pass-word",
    ],
)
def test_an_address_with_a_secret_in_it_is_refused_without_showing_it(folder: Path, url: str) -> None:
    told = refusal(mcp_url=["localhost:8931", url])
    assert told.startswith("--mcp-url: a URL with a user, a password or a query in it")
    assert "--mcp-servers" in told
    assert "headers" in told
    assert "${VAR}" in told
    assert "pass-word" not in told
    (folder / "config.yml").write_text(f"rollout:\n  mcp_url: {json.dumps(url)}\n")
    told = refusal()
    assert told.startswith("config.yml:2: mcp_url: a URL with")
    assert "pass-word" not in told


def test_several_mcp_servers_are_a_list(folder: Path) -> None:
    (folder / "config.yml").write_text("rollout:\n  mcp_url:\n    - localhost:1\n    - localhost:2\n")
    assert resolved().mcp_url == ["localhost:1", "localhost:2"]


def test_the_config_of_another_folder_is_found_through_dir(folder: Path) -> None:
    (folder / "config.yml").write_text("rollout: {max_turns: 1}")
    (folder / "other").mkdir()
    (folder / "other/config.yml").write_text("rollout: {max_turns: 2}")
    assert (resolved().max_turns, resolved(dir=Path("other")).max_turns, resolved(dir="other").max_turns) == (1, 2, 2)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "rollout:\n", "trainer: {x: 1}\n", "[1, 2]\n", "rollout: {max_turns: null}"]
)
def test_a_config_that_says_nothing_about_rollouts_changes_nothing(folder: Path, text: str) -> None:
    (folder / "config.yml").write_text(text)
    assert resolved() == RunRollouts()


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("rollout:\n  max_turns: 5\n  max_turn: 6\n", "config.yml:3", 'unknown key "max_turn" in rollout:'),
        ("a: 1\nrollout: 5\n", "config.yml:2", "expected `key: value` lines"),
        ("rollout:\n  - max_turns\n", "config.yml:2", "expected `key: value` lines"),
        ("rollout:\n\tmax_turns: 5\n", "config.yml:2", "not YAML"),
        ("rollout: {max_turns: 5\n", "config.yml", "not YAML"),
    ],
)
def test_what_is_wrong_in_config_yml_is_named_with_its_line(folder: Path, text: str, place: str, word: str) -> None:
    (folder / "config.yml").write_text(text)
    with pytest.raises(InputError) as caught:
        resolved()
    assert str(caught.value).startswith(place)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "line", ["max_turns: many", "max_turns: 0", "termination_policy: never", "mcp_url: {a: 1}", "tool_timeout: -1"]
)
def test_a_wrong_value_in_config_yml_is_named_with_its_line(folder: Path, line: str) -> None:
    (folder / "config.yml").write_text(f"rollout:\n  include_thinking: true\n  {line}\n")
    assert "config.yml:3" in refusal()


def test_a_config_that_is_not_utf8_is_named(folder: Path) -> None:
    (folder / "config.yml").write_bytes(b"rollout: {mcp_url: \xff}")
    assert refusal().startswith("config.yml: cannot be read")


# ---- which prompts are run -----------------------------------------------------------------------------------------


def echo(chat: Chat) -> str:
    return f"You said: {chat.question}"


class Runs:
    """Runs against a teacher that repeats the question; who was asked what."""

    def __init__(self, roll: Generate, teacher: ScriptedTeacher) -> None:
        self._roll, self.teacher = roll, teacher

    def __call__(self, *arguments: str) -> tuple[Outcome, list[str]]:
        before = len(self.teacher.chats)
        outcome = self._roll(*self.teacher.options, "--progress", "off", *arguments)
        return outcome, sorted(chat.question for chat in self.teacher.chats[before:])


@pytest.fixture
def runs(folder: Path, roll: Generate) -> Any:
    """Five prompts, p0 to p4, in train.jsonl."""
    write_rows(folder / "train.jsonl", [{"messages": [{"role": "user", "content": f"p{n}"}]} for n in range(5)])
    with scripted_teacher(echo) as teacher:
        yield Runs(roll, teacher)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ((), ["p0"]),
        (("-n", "2"), ["p0", "p1"]),
        (("-n", "99"), ["p0", "p1", "p2", "p3", "p4"]),
        (("--all",), ["p0", "p1", "p2", "p3", "p4"]),
        (("-e", "0,2"), ["p0", "p2"]),
        (("-e", "3-4", "-e", "1"), ["p1", "p3", "p4"]),
        (("-n", "4", "--random", "--seed", "3", "-o", "other"), None),
    ],
)
def test_the_selected_prompts_are_run(runs: Runs, arguments: tuple[str, ...], asked: list[str] | None) -> None:
    outcome, questions = runs(*arguments)
    assert outcome.code == 0, outcome.stderr
    assert questions == asked if asked else len(set(questions)) == 4
    assert "prompts from train.jsonl" in outcome.stderr


def test_a_random_choice_is_repeated_by_its_seed_so_that_the_second_run_asks_nothing(runs: Runs) -> None:
    _, first = runs("-n", "3", "--random", "--seed", "5")
    _, again = runs("-n", "3", "--random", "--seed", "5")
    assert (len(first), again) == (3, [])


def test_a_batch_loop_ends_with_exit_code_2_and_names_what_is_past_the_end(runs: Runs) -> None:
    outcome, asked = runs("-e", "3-7,9")
    assert (outcome.code, asked) == (0, ["p3", "p4"])
    assert "--entry 5-7, 9: past the end of train.jsonl, left out" in outcome.stderr
    outcome, asked = runs("-e", "8-11")
    assert (outcome.code, asked) == (2, [])
    assert "--entry 8-11: train.jsonl has none of these; the last of its 5 prompts is 4" in outcome.stderr


def test_exclusive_options_are_refused_with_exit_code_2(runs: Runs) -> None:
    outcome, asked = runs("-n", "2", "--all")
    assert (outcome.code, asked) == (2, [])
    assert "-n and --all exclude one another" in outcome.stderr


def test_dir_is_where_everything_is(folder: Path, runs: Runs) -> None:
    project = folder / "project"
    project.mkdir()
    write_rows(project / "tasks.jsonl", [{"prompt": "from the project"}])
    (project / "config.yml").write_text("data:\n  train_file: tasks.jsonl\nrollout:\n  max_turns: 2\n")
    (project / "mine.py").write_text('def nothing() -> str:\n    """Nothing."""\n    return ""\n')
    outcome, asked = runs("-d", "project", "--tools", "mine.py")
    assert (outcome.code, asked) == (0, ["from the project"])
    assert runs.teacher.chats[0].tools == ["nothing"]
    assert outcome.result["output"] == "project/rollouts"
    (written,) = (project / "rollouts").glob("*.json")
    assert json.loads(written.read_bytes())["provenance"]["max_turns"] == 2
    assert not (folder / "rollouts").exists()


def test_the_key_of_the_projects_own_env_file_is_used(folder: Path, runs: Runs, roll: Generate) -> None:
    project = folder / "project"
    project.mkdir()
    write_rows(project / "train.jsonl", [{"prompt": "Hi"}])
    (project / ".env").write_text("OPENAI_API_KEY=too short a key, with blanks\n")
    outcome, asked = runs("-d", "project")
    assert (outcome.code, asked) == (2, [])
    assert "OPENAI_API_KEY is not a key" in outcome.stderr
    (project / ".env").write_text(f"OPENAI_API_KEY={KEY}\n")
    assert runs("-d", "project")[0].code == 0


def test_a_folder_that_is_not_there_is_named(runs: Runs) -> None:
    outcome, _ = runs("-d", "nowhere")
    assert outcome.code == 2
    assert "--dir nowhere: no such folder." in outcome.stderr


def test_prompts_that_a_conversion_set_aside_are_read_instead(folder: Path, runs: Runs) -> None:
    write_rows(folder / "train.prompts.jsonl", [{"prompt": "set aside"}])
    outcome, asked = runs("--all")
    assert (outcome.code, asked) == (0, ["set aside"])
    assert "prompts from train.prompts.jsonl" in outcome.stderr


ALPACA = {"instruction": "one", "input": "", "output": "1"}


@pytest.mark.parametrize(
    ("name", "content", "asked"),
    [
        ("p.txt", "one\n\ntwo\n", ["one", "two"]),
        ("p.csv", "prompt,x\none,1\ntwo,2\n", ["one", "two"]),
        ("p.json", json.dumps([ALPACA, {**ALPACA, "instruction": "two", "input": "in"}]), ["one", "two\n\nin"]),
        ("p.jsonl", json.dumps({"conversations": [{"from": "human", "value": "one"}]}), ["one"]),
    ],
)
def test_every_form_of_prompts_is_read(folder: Path, runs: Runs, name: str, content: str, asked: list[str]) -> None:
    (folder / name).write_text(content)
    outcome, questions = runs("-i", name, "--all")
    assert (outcome.code, questions) == (0, asked)


def test_a_prompt_key_and_a_system_prompt_of_ones_own(folder: Path, runs: Runs) -> None:
    write_rows(folder / "q.jsonl", [{"question": "one"}, {"question": "two", "system": "Its own."}])
    outcome, asked = runs("-i", "q.jsonl", "--all", "--prompt-key", "question", "--system", "For all.")
    assert (outcome.code, asked) == (0, ["one", "two"])
    assert {chat.messages[0]["content"] for chat in runs.teacher.chats} == {"For all.", "Its own."}


def test_bad_rows_are_counted_and_named_and_the_others_run(folder: Path, runs: Runs) -> None:
    rows = [{"prompt": "good"}, {"prompt": ""}, {"prompt": "x", "docker": 7}, {"prompt": "y", "variables": [1]}]
    write_rows(folder / "train.jsonl", rows)
    outcome, asked = runs("--all")
    assert (outcome.code, asked) == (1, ["good"])
    assert (outcome.result["bad_rows"], outcome.result["wanted"]) == (3, 1)
    for place in ("train.jsonl:2", "train.jsonl:3", "train.jsonl:4"):
        assert f"{place}: " in outcome.stderr


def test_nothing_but_bad_rows_is_refused(folder: Path, runs: Runs) -> None:
    write_rows(folder / "train.jsonl", [{"prompt": ""}, {"prompt": "fine"}])
    outcome, asked = runs()
    assert (outcome.code, asked) == (2, [])
    assert "no usable prompt among those selected" in outcome.stderr
    assert not (folder / "rollouts").exists() or not list((folder / "rollouts").glob("*.json"))


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [("train.jsonl", "", "is empty"), ("none.jsonl", None, "no such file"), ("p.txt", "\n\n", "holds no prompts")],
)
def test_an_input_without_prompts_is_refused(
    folder: Path, runs: Runs, name: str, content: str | None, word: str
) -> None:
    if content is not None:
        (folder / name).write_text(content)
    outcome, _ = runs("-i", name)
    assert outcome.code == 2
    assert f"{name}" in outcome.stderr
    assert word in outcome.stderr


def test_variables_are_filled_in_before_the_teacher_sees_them(folder: Path, runs: Runs) -> None:
    write_rows(folder / "train.jsonl", [{"prompt": "Say $word twice", "variables": {"word": "hi"}}])
    assert runs()[1] == ["Say hi twice"]


def test_a_prompt_with_a_container_needs_an_engine_unless_containers_are_off(
    folder: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    write_rows(folder / "train.jsonl", [{"prompt": "Hi", "docker": "local/web", "docker_env": {"A": "1"}}])
    outcome, asked = runs()
    assert (outcome.code, asked) == (2, [])
    assert "--browser" in outcome.stderr
    assert "--mcp-url" in outcome.stderr
    assert runs("--no-docker")[1] == ["Hi"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--tools", "none.py"), "none.py"),
        (("--rewards", "none.py"), "none.py"),
        (("--allow-hosts", "example.org"), "--allow-hosts is for --browser"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_asked(
    runs: Runs, arguments: tuple[str, ...], word: str
) -> None:
    outcome, asked = runs(*arguments)
    assert (outcome.code, asked) == (2, [])
    assert word in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (("--base-url", "http://127.0.0.1:1/v1"), "reasoning_effort", "low"),
        (("--base-url", "http://127.0.0.1:1/v1", "--backend", "openrouter"), "reasoning", {"effort": "low"}),
    ],
)
def test_reasoning_is_asked_for_in_the_providers_words(arguments: tuple[str, ...], field: str, value: Any) -> None:
    from core.cli import parse
    from core.generation.rollouts import with_reasoning

    flags = parse("run_rollouts", RunRollouts, [*arguments, "--reasoning", "low"])
    assert flags is not None
    assert with_reasoning(resolved(**flags)).extra_body == {field: value}


def test_a_local_teacher_takes_no_reasoning() -> None:
    from core.generation.rollouts import with_reasoning

    with pytest.raises(UsageError, match="--reasoning is for API teachers"):
        with_reasoning(resolved(reasoning="low", backend="hf", model="x"))


def test_the_closing_lines_say_what_to_do_next(runs: Runs) -> None:
    outcome, _ = runs("-n", "5")
    assert "rollouts/: 5 rollouts in" in outcome.stderr
    assert "complete    5 of 5" in outcome.stderr
    assert outcome.stderr.rstrip().endswith("next: python scripts/convert_rollouts.py -d rollouts")


def test_after_some_of_the_prompts_reading_comes_before_converting(runs: Runs) -> None:
    outcome, _ = runs("-n", "2")
    assert outcome.stderr.rstrip().splitlines()[-2:] == [
        "next: read them: python scripts/show.py rollouts",
        "  then the same command with --all --dry-run says what the other 3 prompts cost",
    ]


@pytest.mark.parametrize("output", ["rollouts-before", "held back/rollouts-student"])
def test_a_folder_of_its_own_is_never_to_be_converted_into_train_jsonl(runs: Runs, output: str) -> None:
    """Its prompts may be held back, and train.jsonl is convert_rollouts' default."""
    outcome, _ = runs("-n", "2", "--output", output)
    last = outcome.stderr.rstrip().splitlines()[-1]
    looked, _, converted = last.removesuffix(")").partition(" (")
    assert shlex.split(looked) == ["next:", "python", "scripts/show.py", output]
    line = shlex.split(converted.partition(": ")[2])
    assert line == ["python", "scripts/convert_rollouts.py", "-d", output, "-o", f"{output}.jsonl"]
