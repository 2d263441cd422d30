"""Rollout files of every layout, and conversations of every make."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from core.data.rollouts import MOST_BYTES, NotARollout, natural, normalised, read_rollout, rollout_paths
from core.data.tags import reasoned
from core.data.text import one_line, printable
from core.errors import UsageError
from tests.support.rollouts import SCHEMA, call, calls, record, result, says, user, with_tool, write

# ---- which files ---------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in rollout_paths(folder)]


def test_files_of_all_layouts_are_found_in_natural_order(tmp_path: Path) -> None:
    wanted = [
        "20260125_101500_0f3a9c12.json",
        "rollout_2/sample_1.json",
        "rollout_2/sample_2.json",
        "rollout_2/sample_10.json",
        "rollout_10/sample_1.json",
        "rollout_10/deep/er/sample_1.json",
    ]
    for name in [*reversed(wanted), "rollout_2/.hidden.json", ".git/x.json", "train.jsonl", "notes.txt"]:
        write(tmp_path / name, {})
    assert sorted(names(tmp_path)) == sorted(wanted)
    assert names(tmp_path) == sorted(wanted, key=natural)
    assert names(tmp_path).index("rollout_2/sample_2.json") < names(tmp_path).index("rollout_2/sample_10.json")
    assert names(tmp_path).index("rollout_2/sample_10.json") < names(tmp_path).index("rollout_10/sample_1.json")


def test_numbers_of_any_length_sort_by_value() -> None:
    paths = ["a9", "a10", "a010", "a11", "a" + "9" * 30, "a1" + "0" * 30, "b1"]
    assert sorted(paths, key=natural) == ["a9", "a010", "a10", "a11", "a" + "9" * 30, "a1" + "0" * 30, "b1"]


def test_a_single_file_is_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "one.json", record())
    assert rollout_paths(path) == [path]


def test_loops_of_links_end_and_nothing_is_listed_twice(tmp_path: Path) -> None:
    write(tmp_path / "rollout_1/sample_1.json", record())
    (tmp_path / "rollout_1/again").symlink_to(tmp_path)
    (tmp_path / "latest").symlink_to(tmp_path / "rollout_1")
    (tmp_path / "best.json").symlink_to(tmp_path / "rollout_1/sample_1.json")
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere.json")
    assert names(tmp_path) == ["rollout_1/sample_1.json"]


def test_a_folder_behind_a_link_is_read(tmp_path: Path) -> None:
    write(tmp_path / "disk/sample_1.json", record())
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts/linked").symlink_to(tmp_path / "disk")
    assert names(tmp_path / "rollouts") == ["linked/sample_1.json"]


def test_a_pipe_named_like_a_rollout_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sample_1.json")
    assert rollout_paths(tmp_path) == []
    with pytest.raises(UsageError, match="neither a folder nor a file"):
        rollout_paths(tmp_path / "sample_1.json")


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="/nowhere/at/all does not exist"):
        rollout_paths(Path("/nowhere/at/all"))


# ---- what is in a file ---------------------------------------------------------------------------------------------


def test_a_finished_rollout_is_read_with_all_it_says(tmp_path: Path) -> None:
    provenance = {"key": "0" * 32, "teacher": "openai/gpt-5.2", "ended": "final_answer"}
    rollout = read_rollout(write(tmp_path / "a.json", record(provenance=provenance, tools=[SCHEMA])))
    assert (rollout.id, rollout.completed, rollout.success, rollout.reward) == ("sample_1", True, True, 1.0)
    assert (rollout.total_tokens, rollout.prompt_tokens, rollout.completion_tokens) == (300, 280, 20)
    assert (rollout.teacher, rollout.key, rollout.tools) == ("openai/gpt-5.2", "0" * 32, [SCHEMA])
    assert (rollout.turns, rollout.truncated, rollout.failure) == (2, False, None)
    assert rollout.conversation == with_tool()
    assert "conversation" not in rollout.record


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"completed": "error", "success": False, "error": "403"}, "error"),
        ({"completed": False, "success": None, "total_reward": None}, "interrupted"),
        ({"success": False}, "not_a_success"),
        ({"rewards": {"accuracy": "timeout"}}, "reward_timeout"),
        ({"rewards": {"used": 1.0, "accuracy": "error"}}, "reward_error"),
        ({"total_reward": 0.0}, "no_reward"),
        ({"total_reward": None, "rewards": None}, None),
        ({"success": None, "completed": None}, None),  # as the oldest files are
        ({"success": None, "completed": None, "total_reward": 0}, "no_reward"),
        ({"total_reward": "NaN", "turns": None, "metadata": [], "rewards": 3, "truncated": "no"}, None),
    ],
)
def test_what_counts_as_a_failure(tmp_path: Path, changes: dict[str, Any], failure: str | None) -> None:
    assert read_rollout(write(tmp_path / "a.json", record(**changes))).failure == failure


def test_the_reward_is_0_when_one_could_not_be_computed(tmp_path: Path) -> None:
    rollout = read_rollout(write(tmp_path / "a.json", record(rewards={"a": "timeout"}, total_reward=1.0)))
    assert rollout.reward == 0.0


@pytest.mark.parametrize(("told", "found"), [(3, 3), (0, 0), (None, None), ("many", None), (True, None)])
def test_shortened_results_are_counted_where_the_file_says(tmp_path: Path, told: Any, found: int | None) -> None:
    provenance = {"shortened_tool_results": told}
    assert read_rollout(write(tmp_path / "a.json", record(provenance=provenance))).shortened == found
    assert read_rollout(write(tmp_path / "b.json", record())).shortened is None


def test_turns_are_counted_where_the_file_does_not_say(tmp_path: Path) -> None:
    rollout = read_rollout(write(tmp_path / "x.json", record(turns=None, id=None)))
    assert (rollout.turns, rollout.id) == (2, "x")


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"", "empty", "empty"),
        (b" \n", "empty", "empty"),
        (json.dumps(record()).encode()[:200], "not_json", "ends in the middle"),
        (b'{"conversation": [}', "not_json", "line 1, column 19"),
        (b'{"total_reward": NaN, "conversation": [{}]}', "nan", "NaN"),
        (b'{"total_reward": -Infinity, "conversation": [{}]}', "nan", "-Infinity"),
        (b'{"conversation": ["\xff"]}', "not_utf8", "byte 19"),
        (b"[1]", "not_a_rollout", "JSON list"),
        (b'"text"', "not_a_rollout", "JSON string"),
        (b'{"name": "x", "version": "1.0"}', "not_a_rollout", "name, version"),
        (b'{"conversation": "text"}', "not_a_rollout", "conversation"),
        (b'{"conversation": []}', "empty_conversation", "no message"),
        (b'{"conversation": ' + b"[" * 100_000, "not_json", "deeply"),
    ],
)
def test_a_file_that_is_no_rollout_says_what_it_is(tmp_path: Path, content: bytes, reason: str, detail: str) -> None:
    with pytest.raises(NotARollout) as caught:
        read_rollout(write(tmp_path / "a.json", content))
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_a_huge_file_is_refused_without_being_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(MOST_BYTES + 1)  # sparse
    with pytest.raises(NotARollout, match="64 MiB, and 64 are allowed"):
        read_rollout(tmp_path / "a.json")


def test_a_file_that_cannot_be_opened_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(NotARollout, match="unreadable: No such file"):
        read_rollout(tmp_path / "gone.json")


def test_a_bom_and_halves_of_characters_are_read(tmp_path: Path) -> None:
    plain = read_rollout(write(tmp_path / "bom.json", b"\xef\xbb\xbf" + json.dumps(record()).encode()))
    assert plain.repairs == ()
    cut = read_rollout(write(tmp_path / "cut.json", b'{"conversation": [{"role": "user", "content": "a\\ud83d"}]}'))
    assert cut.conversation == [{"role": "user", "content": "a\ufffd"}]
    assert cut.repairs == ("lone_surrogates",)


# ---- conversations -------------------------------------------------------------------------------------------------


def mended(*messages: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    found, repairs = normalised(list(messages))
    return found, dict(repairs)


def test_a_sound_conversation_stays_and_only_results_get_their_tools_name() -> None:
    found, repairs = mended(*with_tool())
    wanted = with_tool()
    wanted[3]["name"] = "open_page"
    assert found == wanted
    assert repairs == {}


def test_null_content_becomes_empty() -> None:
    found, repairs = mended(user(), calls(call("a"), text=None), result("a", None), says("x"))
    assert [message["content"] for message in found] == ["When was the bridge opened?", "", "", "x"]
    assert repairs == {"null_content": 2}


def test_parts_become_text_and_thinking_parts_reasoning() -> None:
    parts = [{"type": "thinking", "thinking": "three threes"}, {"type": "text", "text": "9"}]
    found, repairs = mended(user("3*3?"), says("", content=parts))
    assert found[1] == {"role": "assistant", "content": "9", "reasoning_content": "three threes"}
    assert repairs == {"content_parts": 1}


def test_a_picture_in_a_result_is_marked_and_one_in_a_question_is_refused() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    found, repairs = mended(user(), calls(call("a")), result("a", [{"type": "text", "text": "A"}, picture]), says("x"))
    assert found[2]["content"] == "A\n[image]"
    assert repairs["image_result"] == 1
    with pytest.raises(NotARollout, match=r"not_text: .*image_url"):
        mended({"role": "user", "content": [picture]}, says("x"))


@pytest.mark.parametrize(
    ("arguments", "wanted", "repair"),
    [
        ({"url": "é"}, '{"url":"é"}', "object_arguments"),
        (None, "{}", "empty_arguments"),
        ("", "{}", "empty_arguments"),
        ('"{\\"url\\": \\"x\\"}"', '{"url":"x"}', "double_encoded_arguments"),
        ('{ "url" :"x" }', '{ "url" :"x" }', None),
    ],
)
def test_arguments_become_the_json_of_an_object(arguments: Any, wanted: str, repair: str | None) -> None:
    found, repairs = mended(user(), calls(call("a", arguments)), result("a"), says("x"))
    assert found[1]["tool_calls"][0]["function"]["arguments"] == wanted
    assert repairs == ({repair: 1} if repair else {})


def test_a_malformed_call_goes_with_its_result_and_the_others_stay() -> None:
    bad = call("b", '{"url": ')
    found, repairs = mended(user(), calls(call("a"), bad), result("a", "A"), result("b", "invalid"), says("x"))
    assert [message["content"] for message in found] == ["When was the bridge opened?", "", "A", "x"]
    assert [one["id"] for one in found[1]["tool_calls"]] == ["a"]
    assert repairs == {"malformed_call": 1}


def test_a_turn_of_nothing_but_a_malformed_call_goes() -> None:
    found, repairs = mended(
        user(), calls(call("a", "{oops")), result("a", "invalid"), calls(call("b")), result("b", "B"), says("x")
    )
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "assistant"]
    assert found[1]["tool_calls"][0]["id"] == "b"
    assert repairs == {"malformed_call": 1}


def test_results_without_a_call_and_calls_without_a_result_go() -> None:
    found, repairs = mended(
        user(), result("ghost"), calls(call("a"), call("b")), result("a", "A"), result("zzz", "?"), says("x")
    )
    assert [message["content"] for message in found] == ["When was the bridge opened?", "", "A", "x"]
    assert repairs == {"orphan_result": 2, "unanswered_call": 1}


def test_ids_are_made_for_those_without_and_for_those_used_twice() -> None:
    found, repairs = mended(
        user(),
        calls(call(None), call("call_1")),
        result(None, "first"),
        result("call_1", "second"),
        calls(call("call_1")),
        result("call_1", "third"),
        says("x"),
    )
    ids = [one["id"] for message in found for one in message.get("tool_calls", ())]
    assert ids == ["call_2", "call_1", "call_3"]
    told = [(message["tool_call_id"], message["content"]) for message in found if message["role"] == "tool"]
    assert told == [("call_2", "first"), ("call_1", "second"), ("call_3", "third")]
    assert repairs == {"missing_id": 1, "duplicate_id": 1}


def test_results_in_another_order_follow_their_calls() -> None:
    found, _ = mended(user(), calls(call("a"), call("b")), result("b", "B"), result("a", "A"), says("x"))
    assert [message["content"] for message in found[2:4]] == ["A", "B"]


def test_calls_written_as_text_become_calls() -> None:
    inline = 'I look.\n<tool_call>\n{"name": "open_page", "arguments": {"url": "</tool_call>"}}\n</tool_call>'
    found, repairs = mended(
        {"role": "system", "content": "# Tools\n..."},
        user(),
        says(inline),
        {"role": "tool", "content": '<tool_result>"Opened in 1931."</tool_result>'},
        says('<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g", "arguments": {}}'),
        {"role": "tool", "content": "<tool_error>down</tool_error>"},
        {"role": "tool", "content": '<tool_result>{"n": 1}</tool_result>'},
        says("In 1931."),
    )
    first, second = found[2], found[4]
    assert first["content"] == "I look."
    assert json.loads(first["tool_calls"][0]["function"]["arguments"]) == {"url": "</tool_call>"}
    assert [one["function"]["name"] for one in second["tool_calls"]] == ["f", "g"]
    assert [m["content"] for m in found if m["role"] == "tool"] == ["Opened in 1931.", "Error: down", '{"n": 1}']
    assert [one["id"] for m in found for one in m.get("tool_calls", ())] == ["call_1", "call_2", "call_3"]
    assert repairs == {"inline_tool_call": 3, "inline_result": 3, "missing_id": 3}


def test_a_tag_that_is_only_spoken_of_stays_text() -> None:
    text = "Models write <tool_call> before a call."
    found, repairs = mended(user(), says(text))
    assert found[1] == says(text)
    assert repairs == {}


def test_items_of_the_responses_api_become_messages() -> None:
    found, repairs = mended(
        user(),
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I need the page."}]},
        {"type": "function_call", "call_id": "c9", "name": "open_page", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c9", "output": "Opened in 1931."},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "In 1931."}]},
    )
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "assistant"]
    assert found[1]["reasoning_content"] == "I need the page."
    assert repairs["responses_item"] == 3


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (["text"], "not_a_message"),
        ([{"role": "judge", "content": "x"}], "unknown_role"),
        ([{"content": "x"}], "unknown_role"),
        ([says("x")], "no_user_message"),
        ([{"role": "user", "content": {"a": 1}}], "not_text"),
    ],
)
def test_a_conversation_that_cannot_be_mended_says_why(conversation: list[Any], reason: str) -> None:
    with pytest.raises(NotARollout) as caught:
        normalised(conversation)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<think>\nI think.\n</think>\n\nYes.", ("I think.", "Yes.")),
        ("I think.</think>Yes.", ("I think.", "Yes.")),
        ("<think>I was cut", ("I was cut", "")),
        ("A <think> in the middle </think> stays.", ("", "A <think> in the middle </think> stays.")),
        ("Yes.", ("", "Yes.")),
    ],
)
def test_thinking_is_found_at_the_head(text: str, wanted: tuple[str, str]) -> None:
    assert reasoned(text) == wanted


def test_text_from_a_file_cannot_move_the_cursor() -> None:
    assert printable("\x1b[2Jred\x07\x9b \u202etxt\ttab\n") == "\\x1b[2Jred\\x07\\x9b \\u202etxt\ttab\n"
    assert one_line("a\n  b\x00") == "a b\\x00"
    assert len(one_line("x" * 999, 40)) == 40
