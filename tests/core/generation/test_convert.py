"""`convert_rollouts` through its command line: which rollouts become rows, in which form, and where they go."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from core import cli
from core.commands.convert_rollouts import REASONS, REPAIRS, ConvertRollouts
from core.data.keys import work_key
from core.data.progress import Progress
from core.data.run import Run
from core.generation.convert import convert
from core.generation.destination import temporary_beside
from tests.support.rollouts import SCHEMA, call, calls, record, result, says, user, with_tool, write
from tests.support.running import ROOT, Outcome, environment, read_rows, write_rows

Convert = Callable[..., Outcome]


@pytest.fixture
def converted(folder: Path, capfd: pytest.CaptureFixture[str]) -> Convert:
    """The command within this process, in an empty folder; always with --json."""

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        code, _ = cli.run("convert_rollouts", [*arguments, "--json"])
        captured = capfd.readouterr()
        return Outcome(int(code), captured.out, captured.err)

    return run


def rows() -> list[dict[str, Any]]:
    return read_rows(Path("train.jsonl"))


def answers() -> list[str]:
    return [row["messages"][-1]["content"] for row in rows()]


# ---- which rollouts ------------------------------------------------------------------------------------------------


def test_a_success_becomes_the_row_that_the_document_shows(converted: Convert) -> None:
    provenance = {"teacher": "openai/gpt-5.2"}
    write(Path("rollouts/rollout_1/sample_1.json"), record(tools=[SCHEMA], provenance=provenance))
    outcome = converted()
    assert outcome.code == 0, outcome.stderr
    [row] = rows()
    wanted = with_tool()
    wanted[3] |= {"name": "open_page"}
    assert row["messages"] == wanted
    assert json.loads(row["tools"]) == [SCHEMA]
    hash_ = row["metadata"].pop("prompt_hash")
    assert len(hash_) == 32
    assert row["metadata"] == {
        "expected_answer": "1931",
        "teacher": "openai/gpt-5.2",
        "rollout": "sample_1",
        "source": "rollout_1/sample_1.json",
        "success": True,
        "reward": 1.0,
        "turns": 2,
        "tokens": 300,
        "prompt_tokens": 280,
        "completion_tokens": 20,
        "shortened_tool_results": None,
        "written_by": "convert_rollouts",
    }


def test_metadata_of_the_prompt_that_has_our_names_is_kept_under_another(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record(metadata={"teacher": "me", "reward": [1]}))
    converted()
    metadata = rows()[0]["metadata"]
    assert (metadata["input_teacher"], metadata["teacher"], metadata["input_reward"]) == ("me", None, [1])


def folder_of_all_kinds() -> None:
    kinds: dict[str, Any] = {
        "a_good": record(),
        "b_failed": record(success=False, total_reward=0.0),
        "c_error": record(completed="error", success=False, error="\x1b[31m403"),
        "d_running": record(completed=False, success=None, total_reward=None),
        "e_timeout": record(rewards={"accuracy": "timeout"}, truncated=True),
        "f_truncated": record(truncated=True),
        "g_calls_last": record([user(), calls(call("a")), result("a")]),
        "h_package": {"name": "a-package", "version": "1.0.0"},
        "i_cut": json.dumps(record()).encode()[:-40],
        "j_nan": b'{"total_reward": NaN, "conversation": []}',
        "k_empty": b"",
        "l_long": record(turns=9),
        "m_half": record(total_reward=0.5),
        "n_old": {"total_reward": 1.0, "conversation": with_tool()},
    }
    for name, content in kinds.items():
        write(Path("rollouts") / f"{name}.json", content)


def test_everything_that_gives_no_row_is_counted_by_its_reason_and_named(converted: Convert) -> None:
    folder_of_all_kinds()
    outcome = converted("--explain")
    assert outcome.result["rows"] == len(rows()) == 4
    assert outcome.result["dropped"] == {
        "not_a_success": 1,
        "error": 1,
        "interrupted": 1,
        "reward_timeout": 1,
        "truncated": 1,
        "no_final_answer": 1,
        "not_a_rollout": 1,
        "not_json": 1,
        "nan": 1,
        "empty": 1,
    }
    assert outcome.result["files"] == 14
    lines = outcome.stderr.splitlines()
    assert "kept     a_good.json" in lines
    assert "dropped  c_error.json: ended in an error (\\x1b[31m403)" in lines
    assert "dropped  e_timeout.json: a reward timed out; truncated" in lines
    assert "dropped  j_nan.json: holds NaN or Infinity, which is not JSON" in outcome.stderr
    assert "\x1b" not in outcome.stderr


def test_failed_ones_come_with_include_failed_when_they_end_with_an_answer(converted: Convert) -> None:
    folder_of_all_kinds()
    outcome = converted("--include-failed", "--keep-truncated")
    assert outcome.result["rows"] == 9
    assert [row["metadata"]["success"] for row in rows()].count(False) == 4
    assert set(outcome.result["dropped"]) == {"no_final_answer", "not_a_rollout", "not_json", "nan", "empty"}


@pytest.mark.parametrize(
    ("options", "left", "reason"),
    [
        (("--min-reward", "0.6"), 3, "low_reward"),
        (("--max-turns", "8"), 3, "many_turns"),
        (("--no-drop-truncated",), 5, None),
        (("--keep-truncated",), 5, None),
        (("--dedupe",), 1, "duplicate"),
        (("--best-of", "2"), 2, "not_best"),
    ],
)
def test_each_option_takes_out_what_it_says(
    converted: Convert, options: tuple[str, ...], left: int, reason: str | None
) -> None:
    folder_of_all_kinds()
    outcome = converted(*options)
    assert outcome.result["rows"] == len(rows()) == left
    assert reason is None or outcome.result["dropped"][reason] == (4 - left)


def test_a_rollout_without_a_reward_cannot_pass_a_least_reward(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record(total_reward=None, rewards=None))
    write(Path("rollouts/b.json"), record())
    assert converted("--min-reward", "0").result["dropped"] == {"reward_unknown": 1}


def test_shortened_results_are_told_in_the_row_and_the_summary_or_left_out(converted: Convert) -> None:
    for name, shortened in (("a", 3), ("b", 0), ("c", 1)):
        conversation = with_tool(answer=name)
        provenance = {"shortened_tool_results": shortened}
        write(Path(f"rollouts/{name}.json"), record(conversation, provenance=provenance, turns=ord(name)))
    outcome = converted()
    assert [row["metadata"]["shortened_tool_results"] for row in rows()] == [3, 0, 1]
    assert outcome.result["shortened"] == 2
    assert "shortened: 2 rows have tool results that were shortened" in outcome.stderr
    assert converted("--best-of", "2").result["shortened"] == 1  # of the rows that are there, not of all files
    outcome = converted("--drop-shortened")
    assert answers() == ["b"]
    assert (outcome.result["shortened"], outcome.result["dropped"]) == (0, {"shortened": 2})


@pytest.mark.parametrize(
    ("last", "reason", "detail"),
    [
        (
            says('I look.\n<tool_call>\n{"name": "open_page", "arguments": {}}\n</tool_call>'),
            "call_as_text",
            "open_page",
        ),
        (calls(call("b")), "no_final_answer", "it ends with a tool call"),
        (says(" "), "no_final_answer", "an empty answer"),
        (user("And?"), "no_final_answer", "a turn of the role user"),
    ],
)
def test_what_stands_in_an_answers_place_is_said(converted: Convert, last: Any, reason: str, detail: str) -> None:
    write(Path("rollouts/a.json"), record([user(), calls(call("a")), result("a"), last]))
    write(Path("rollouts/b.json"), record())
    outcome = converted("--explain")
    assert outcome.result["dropped"] == {reason: 1}
    assert detail in outcome.stderr
    assert REASONS[reason] in outcome.stderr


def test_truncated_cannot_be_kept_and_dropped_at_once(converted: Convert) -> None:
    outcome = converted("--drop-truncated", "--keep-truncated")
    assert outcome.code == 2
    assert "opposite" in outcome.stderr


def test_the_best_of_a_prompt_are_successes_then_rewards_then_short_ones(converted: Convert) -> None:
    def attempt(name: str, answer: str, **more: Any) -> None:
        write(Path(f"rollouts/{name}.json"), record(with_tool(answer=answer), **more))

    attempt("1", "failed", success=False, total_reward=9.0)
    attempt("2", "low", total_reward=0.5)
    attempt("3", "long", turns=8)
    attempt("4", "shortest", turns=2)
    attempt("5", "short", turns=3)
    write(Path("rollouts/6.json"), record(with_tool("Another?", "other")))
    for k, wanted in ((1, ["shortest", "other"]), (3, ["long", "shortest", "short", "other"])):
        converted("--best-of", str(k), "--include-failed")
        assert answers() == wanted
    converted("--best-of", "9", "--include-failed")
    assert len(answers()) == 6


def test_prompts_that_begin_alike_are_told_apart_where_the_file_names_them(converted: Convert) -> None:
    for number in range(2):
        write(Path(f"rollouts/{number}.json"), record(provenance={"prompt_hash": f"{number:032x}"}))
    write(Path("rollouts/2.json"), record(provenance={"prompt_hash": "no hash"}))
    assert converted("--best-of", "1").result["rows"] == 3
    messages = [{"role": m["role"], "content": m["content"]} for m in with_tool()[:2]]
    hashes = [row["metadata"]["prompt_hash"] for row in rows()]
    assert hashes == [f"{0:032x}", f"{1:032x}", work_key(messages)]


def test_equal_conversations_are_found_whatever_their_calls_are_called(converted: Convert) -> None:
    other = json.loads(json.dumps(with_tool()).replace("call_1", "toolu_xyz"))
    write(Path("rollouts/a.json"), record())
    write(Path("rollouts/b.json"), record(other, metadata={"another": 1}))
    assert converted("--dedupe").result["dropped"] == {"duplicate": 1}
    assert [row["metadata"]["source"] for row in rows()] == ["a.json"]


def test_turns_after_the_answer_are_cut_or_with_require_final_answer_the_rollout_dropped(converted: Convert) -> None:
    went_on = [*with_tool(), user("And the other?"), calls(call("b")), result("b")]
    write(Path("rollouts/a.json"), record(went_on))
    write(Path("rollouts/b.json"), record())
    outcome = converted()
    assert [len(row["messages"]) for row in rows()] == [5, 5]
    assert outcome.result["repairs"] == {"trailing_turns": 1}
    assert converted("--require-final-answer").result["dropped"] == {"went_on": 1}


# ---- form ----------------------------------------------------------------------------------------------------------


def thinker() -> None:
    first = calls(call("a"))
    first["reasoning_content"] = "I need the page."
    write(Path("rollouts/a.json"), record([user(), first, result("a"), says("<think>So 1931.</think>\n\nIn 1931.")]))


def test_thinking_is_kept_stripped_or_put_into_tags(converted: Convert) -> None:
    thinker()
    found = {}
    for form in ("keep", "strip", "tags"):
        converted("--thinking", form)
        found[form] = [m for m in rows()[0]["messages"] if m["role"] == "assistant"]
    assert [m.get("reasoning_content") for m in found["keep"]] == ["I need the page.", "So 1931."]
    assert [m["content"] for m in found["keep"]] == ["", "In 1931."]
    assert [set(m) & {"reasoning_content"} for m in (*found["strip"], *found["tags"])] == [set()] * 4
    assert found["strip"][1]["content"] == "In 1931."
    assert found["tags"][1]["content"] == "<think>\nSo 1931.\n</think>\n\nIn 1931."
    assert found["tags"][0]["content"] == "<think>\nI need the page.\n</think>\n\n"


def test_arguments_are_a_string_or_an_object(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record())
    for form, wanted in (
        ("string", '{"url": "https://example.org/bridge"}'),
        ("object", {"url": "https://example.org/bridge"}),
    ):
        converted("--arguments", form)
        assert rows()[0]["messages"][2]["tool_calls"][0]["function"]["arguments"] == wanted


def test_calls_can_be_text_with_the_tools_in_the_system_prompt(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record(tools=[SCHEMA]))
    converted("--calls", "text")
    [row] = rows()
    assert "tools" not in row
    assert row["messages"][0]["content"].startswith("Answer by browsing.\n\n# Tools")
    assert json.dumps(SCHEMA, separators=(",", ":")) in row["messages"][0]["content"]
    text = row["messages"][2]["content"]
    assert "tool_calls" not in row["messages"][2]
    about = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert about == {"name": "open_page", "arguments": {"url": "https://example.org/bridge"}}


def test_the_system_prompt_is_replaced_or_put_first(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record())
    write(Path("rollouts/b.json"), record([user(), says("In 1931.")]))
    converted("--system", "Be brief.")
    assert [row["messages"][0] for row in rows()] == [{"role": "system", "content": "Be brief."}] * 2
    assert [len(row["messages"]) for row in rows()] == [5, 3]
    assert "tools" not in rows()[0]


def test_the_tools_column_can_be_left_out(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record(tools=[SCHEMA]))
    converted("--no-tools-column")
    assert "tools" not in rows()[0]


def test_held_out_prompts_are_in_no_other_file_and_always_the_same(converted: Convert) -> None:
    for number in range(60):
        conversation = with_tool(f"Question {number // 3}?", f"Answer {number}.")
        write(Path(f"rollouts/rollout_1/sample_{number}.json"), record(conversation))
    outcome = converted("--val-split", "0.2")
    assert (outcome.result["rows"], outcome.result["val_rows"]) == (48, 12)
    held_out = read_rows(Path("train.val.jsonl"))
    asked = [{row["messages"][1]["content"] for row in part} for part in (rows(), held_out)]
    assert (len(asked[0]), len(asked[1])) == (16, 4)
    assert not asked[0] & asked[1]
    before = Path("train.jsonl").read_bytes(), Path("train.val.jsonl").read_bytes()
    converted("--val-split", "0.2")
    assert (Path("train.jsonl").read_bytes(), Path("train.val.jsonl").read_bytes()) == before
    assert "train.val.jsonl is from an earlier run" in converted().stderr


def test_one_prompt_alone_is_not_held_out(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record())
    outcome = converted("--val-split", "0.5")
    assert (outcome.result["rows"], outcome.result["val_output"]) == (1, None)
    assert not Path("train.val.jsonl").exists()
    assert "none can be held out" in outcome.stderr


# ---- where rows go -------------------------------------------------------------------------------------------------


def test_the_prompts_that_have_the_outputs_name_are_renamed(converted: Convert) -> None:
    prompts = [{"messages": [user("q")], "metadata": {}, "tools": ["browser_click"], "docker": "local/playwright"}]
    before = write_rows(Path("train.jsonl"), [*prompts, {"prompt": "another"}]).read_bytes()
    write(Path("rollouts/a.json"), record())
    outcome = converted()
    assert outcome.code == 0
    assert Path("train.prompts.jsonl").read_bytes() == before
    assert len(rows()) == 1
    assert outcome.result["prompts_moved_to"] == "train.prompts.jsonl"
    assert "The prompts that were in train.jsonl are in train.prompts.jsonl now." in outcome.stderr
    first = Path("train.jsonl").read_bytes()
    assert converted().result["prompts_moved_to"] is None
    assert Path("train.jsonl").read_bytes() == first
    assert Path("train.prompts.jsonl").read_bytes() == before


def test_prompts_are_never_put_over_an_existing_file(converted: Convert) -> None:
    write_rows(Path("train.jsonl"), [{"prompt": "new"}])
    write_rows(Path("train.prompts.jsonl"), [{"prompt": "old"}])
    write(Path("rollouts/a.json"), record())
    outcome = converted()
    assert outcome.code == 2
    assert "train.prompts.jsonl holds something else" in outcome.stderr
    assert rows() == [{"prompt": "new"}]
    assert converted("--overwrite").result["kept_as"] == "train.jsonl.old"
    assert read_rows(Path("train.prompts.jsonl")) == [{"prompt": "old"}]
    assert read_rows(Path("train.jsonl.old")) == [{"prompt": "new"}]


def test_a_run_that_died_between_renaming_and_writing_is_repeated(converted: Convert) -> None:
    write_rows(Path("train.jsonl"), [{"prompt": "q"}])
    os.link("train.jsonl", "train.prompts.jsonl")
    write(Path("rollouts/a.json"), record())
    assert converted().result["rows"] == 1
    assert read_rows(Path("train.prompts.jsonl")) == [{"prompt": "q"}]


@pytest.mark.parametrize(
    "content",
    [
        [{"messages": [user("q"), says("a paid answer")], "metadata": {"id": "0" * 32}}],
        [{"prompt": "q"}, {"messages": [user("q"), says("a")]}],
        [{"prompt": "q", "completion": "a"}],
    ],
)
def test_other_data_is_kept_out_of_harms_way(converted: Convert, content: list[Any]) -> None:
    before = write_rows(Path("train.jsonl"), content).read_bytes()
    write(Path("rollouts/a.json"), record())
    outcome = converted()
    assert outcome.code == 2
    assert "--overwrite" in outcome.stderr
    assert Path("train.jsonl").read_bytes() == before
    assert converted("--overwrite").code == 0
    assert Path("train.jsonl.old").read_bytes() == before
    assert len(rows()) == 1


def test_prompts_made_from_our_own_rows_are_prompts(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record())
    converted()
    [row] = rows()
    row["messages"] = row["messages"][:2]
    before = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    Path("train.jsonl").write_bytes(before)
    assert converted().result["prompts_moved_to"] == "train.prompts.jsonl"
    assert Path("train.prompts.jsonl").read_bytes() == before
    assert len(rows()[0]["messages"]) == 5


def test_answers_to_prompts_made_from_our_own_rows_are_never_replaced(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record())
    converted()
    [row] = rows()
    metadata = row["metadata"]
    teacher = metadata.pop("teacher")
    for added in (
        {"teacher": "another", "input_teacher": teacher, **metadata, "id": "0" * 32},  # as generate_teacher_data does
        {"teacher": "another", "id": "0" * 32, **metadata},
    ):
        answered = row | {"metadata": added}
        before = orjson.dumps(answered, option=orjson.OPT_APPEND_NEWLINE)
        Path("train.jsonl").write_bytes(before)
        assert converted().code == 2
        assert Path("train.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "a"}\n{"prompt": \n{"prompt": "b"}\n',
        b'{"prompt": \n{"prompt": "a"}\n',
        b'{"prompt": "a"}\n\xff\n[1]\n',
        b'{"prompt": "a", "answer": "1931"}\n',
        b'{"messages": [{"role": "user", "content": "a"}], "answer": "1931", "reference": "In 1931."}\n',
        b'{"conversations": [{"from": "human", "value": "a"}]}\n',
        b'{"prompt": [{"role": "user", "content": "a"}]}\n',
    ],
)
def test_prompts_with_lines_that_cannot_be_read_or_with_known_answers_move(converted: Convert, content: bytes) -> None:
    Path("train.jsonl").write_bytes(content)
    write(Path("rollouts/a.json"), record())
    assert converted().result["prompts_moved_to"] == "train.prompts.jsonl"
    assert Path("train.prompts.jsonl").read_bytes() == content


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c", "completion": "d"}\n', 3),
        (b'{"prompt": "a"}\n\n{"conversations": [{"from": "gpt", "value": "a"}]}\n', 3),
        (b"no JSON\nat all\n", 1),
        (b'{"n": 1}\n', 1),
    ],
)
def test_the_line_that_is_another_programs_is_named(converted: Convert, content: bytes, line: int) -> None:
    Path("train.jsonl").write_bytes(content)
    write(Path("rollouts/a.json"), record())
    outcome = converted()
    assert outcome.code == 2
    assert f"the first in line {line}." in outcome.stderr
    assert Path("train.jsonl").read_bytes() == content


def test_a_row_of_ours_that_was_damaged_is_named(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record())
    converted()
    whole = Path("train.jsonl").read_bytes()
    for content, line in ((whole + whole[:-20] + b"\n" + whole, 2), (b"{\n" + whole, 1)):
        Path("train.jsonl").write_bytes(content)
        assert f"the first in line {line}." in converted().stderr
        assert Path("train.jsonl").read_bytes() == content


def test_rows_of_ours_with_others_among_them_are_other_data(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record())
    converted()
    with open("train.jsonl", "ab") as file:
        file.write(b'{"messages": [{"role": "user", "content": "\\"written_by\\":\\"convert_rollouts\\""}]}\n')
    assert converted().code == 2


def test_nothing_is_written_when_nothing_converts(converted: Convert) -> None:
    before = write_rows(Path("train.jsonl"), [{"prompt": "q"}]).read_bytes()
    write(Path("rollouts/a.json"), record(success=False))
    write(Path("rollouts/b.json"), b"{")
    outcome = converted()
    assert outcome.code == 2
    assert "1 x not a success" in outcome.stderr
    assert "1 x not whole JSON" in outcome.stderr
    assert "--include-failed" in outcome.stderr
    assert Path("train.jsonl").read_bytes() == before
    assert sorted(os.listdir()) == ["rollouts", "train.jsonl"]
    Path("train.jsonl").unlink()
    assert converted().code == 2
    assert os.listdir() == ["rollouts"]


@pytest.mark.parametrize(
    ("prepare", "word"),
    [
        (lambda: None, "rollouts does not exist"),
        (lambda: os.mkdir("rollouts"), "holds no .json file"),
        (lambda: (write(Path("rollouts/a.json"), record()), os.mkdir("train.jsonl")), "is a directory"),
    ],
)
def test_a_place_that_cannot_be_used_is_named(converted: Convert, prepare: Callable[[], Any], word: str) -> None:
    prepare()
    outcome = converted()
    assert outcome.code == 2
    assert word in outcome.stderr


def test_rows_are_in_natural_order_and_the_same_bytes_on_every_run(converted: Convert) -> None:
    for number in (10, 9, 1, 2, 11):
        write(Path(f"rollouts/rollout_{number}/sample_1.json"), record(with_tool(answer=str(number))))
    converted()
    assert answers() == ["1", "2", "9", "10", "11"]
    before = Path("train.jsonl").read_bytes()
    converted()
    assert Path("train.jsonl").read_bytes() == before


def test_a_single_file_and_a_name_that_is_not_utf8(converted: Convert) -> None:
    os.mkdir("rollouts")
    strange = Path(os.fsdecode(b"rollouts/\xff.json"))
    write(strange, record(id=None))
    assert converted().code == 0
    assert rows()[0]["metadata"]["source"] == "\ufffd.json"
    write(Path("one.json"), record())
    converted("-d", "one.json")
    assert rows()[0]["metadata"]["source"] == "one.json"


def test_stopping_leaves_the_output_as_it_was(folder: Path) -> None:
    for number in range(5):
        write(Path(f"rollouts/{number}.json"), record())
    before = write_rows(Path("train.jsonl"), [{"prompt": "q"}]).read_bytes()

    class Stopping(Progress):
        def tick(self) -> None:
            if self.counts.done == 2:
                run.stop.ask()

    run = Run(progress=Stopping())
    outcome = convert(ConvertRollouts(), run)
    assert (outcome.status, outcome.exit_code, outcome.files) == ("interrupted", 130, 2)
    assert Path("train.jsonl").read_bytes() == before
    assert sorted(os.listdir()) == ["rollouts", "train.jsonl"]


def test_a_killed_run_leaves_the_output_as_it_was_and_the_next_one_succeeds(folder: Path) -> None:
    big = record(with_tool(answer="x" * 200_000))
    for number in range(300):
        write(Path(f"rollouts/{number}.json"), big)
    before = write_rows(Path("train.jsonl"), [{"prompt": "q"}]).read_bytes()
    command = [sys.executable, str(ROOT / "scripts/convert_rollouts.py"), "--progress", "off"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(Path().glob(".train.jsonl.*")):
        pass
    process.send_signal(signal.SIGKILL)
    assert process.communicate()[1] is not None
    if process.returncode:  # killed before its end
        assert Path("train.jsonl").read_bytes() == before
    done = subprocess.run(command, env=environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(rows()) == 300
    assert sorted(os.listdir()) == ["rollouts", "train.jsonl", "train.prompts.jsonl"]


def test_two_runs_do_not_write_into_one_anothers_rows(converted: Convert) -> None:
    write(Path("rollouts/a.json"), record())
    with temporary_beside(Path("train.jsonl"), "rows") as held:
        held.write(b"mine")
        outcome = converted()
        assert outcome.code == 2
        assert "another run is writing train.jsonl" in outcome.stderr
        held.seek(0)
        assert held.read() == b"mine"
    assert converted().code == 0
    assert sorted(os.listdir()) == ["rollouts", "train.jsonl"]


def test_a_full_disk_leaves_what_was_there(folder: Path) -> None:
    import resource

    for number in range(20):
        write(Path(f"rollouts/{number}.json"), record(with_tool(answer="x" * 200_000)))
    before = write_rows(Path("train.jsonl"), [{"prompt": "q"}]).read_bytes()
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/convert_rollouts.py"), "--progress", "off"],
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert done.returncode == 3, done.stderr
    assert "train.jsonl cannot be written: File too large" in done.stderr
    assert Path("train.jsonl").read_bytes() == before
    assert sorted(os.listdir()) == ["rollouts", "train.jsonl"]


def test_the_script_says_in_words_what_it_did(folder: Path) -> None:
    folder_of_all_kinds()
    command = [sys.executable, str(ROOT / "scripts/convert_rollouts.py")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0
    assert "4 rows in train.jsonl, from 14 files" in done.stderr
    assert "  1 x ended in an error" in done.stderr
    assert "\nNext: python scripts/show.py train.jsonl; train_sft.py" in done.stderr


def test_every_reason_and_repair_has_words() -> None:
    import re

    source = "".join(
        (ROOT / "core" / name).read_text(encoding="utf-8")
        for name in ("data/rollouts.py", "data/conversation.py", "generation/conversation.py", "generation/convert.py")
    )
    assert set(re.findall(r'NotARollout\(\s*"(\w+)"', source)) <= set(REASONS)
    assert set(re.findall(r'repairs\[(?:"(\w+)")\]', source)) <= set(REPAIRS)
