"""Rows to train on: what is wrong with each, the whole file at once, and `rnow`'s own reading beside ours."""

import copy
import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.sft_row import problems_of
from core.data.sft_rows import Lint, lint
from core.errors import InputError
from tests.support.rnow import rnow_models
from tests.support.running import write_rows

USER, ANSWER = {"role": "user", "content": "Where is Paris?"}, {"role": "assistant", "content": "In France."}
SYSTEM = {"role": "system", "content": "Be brief."}
SCHEMA = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def call(id_: str | None = "c1", arguments: Any = '{"q": 1}', name: Any = "look") -> dict[str, Any]:
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made if id_ is None else {"id": id_, **made}


def calls(*made: dict[str, Any], content: Any = "") -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(made)}


def result(id_: str | None = "c1") -> dict[str, Any]:
    return {"role": "tool", "content": "r"} | ({} if id_ is None else {"tool_call_id": id_})


def of(*messages: Any, dataset_type: Any = "sft", **more: Any) -> list[tuple[str, str]]:
    """The problems of a row with these messages, in one string for each."""
    return [*problems_of({"messages": list(messages), **more}, dataset_type)]


def levels(*messages: Any, **more: Any) -> list[str]:
    return [level for level, _ in of(*messages, **more)]


# ---- one row -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        (USER, ANSWER),
        (SYSTEM, USER, ANSWER, USER, ANSWER),
        (USER, calls(call()), result(), ANSWER),
        (USER, calls(call("a"), call("b")), result("b"), result("a"), ANSWER),
        (USER, calls(call(None), call(None)), result(None), result("x"), ANSWER),
        (USER, calls(call())),  # a call is an answer, too
        (USER, calls(call(arguments="")), result(), ANSWER),
        (USER, {**ANSWER, "content": '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'}, result(), ANSWER),
        ({"role": "user", "content": [{"type": "text", "text": "hi"}, "there"]}, ANSWER),
        (USER, {**ANSWER, "reasoning_content": "Hm.", "tool_calls": None}),
    ],
)  # fmt: skip
def test_sound_rows(messages: tuple[Any, ...]) -> None:
    assert of(*messages) == []


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ((), "messages is empty"),
        ((USER, 7), "messages[1]: not an object, but a number"),
        ((SYSTEM,), "only a system message"),
        ((SYSTEM, USER), "no message of the assistant's"),
        ((SYSTEM, ANSWER), "no message of the user's"),
        ((USER, {"content": "x"}), "messages[1]: no role"),
        (({**USER, "role": "human"}, ANSWER), 'messages[0]: the role "human" is unknown. Did you mean user?'),
        ((USER, {**ANSWER, "role": "asistant"}), 'the role "asistant" is unknown. Did you mean assistant?'),
        ((USER, {"role": "assistant"}), "messages[1]: no content"),
        ((USER, {**ANSWER, "content": " \n"}), "messages[1]: an empty answer without tool calls"),
        ((USER, {**ANSWER, "content": [{"type": "text", "text": ""}]}), "messages[1]: an empty answer"),
        ((USER, {**ANSWER, "content": {"a": 1}}), "neither text nor a list of text parts, but an object"),
        (({**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER), "images and other media"),
        (({**USER, "content": [{"type": "thinking", "thinking": "x"}]}, ANSWER), "only text parts can be trained"),
        ((USER, {**ANSWER, "function_call": {"name": "f"}}), "function_call is the old form"),
        (({**USER, "tool_calls": [call()]}, ANSWER), "tool_calls in a message that is not the assistant's"),
        ((USER, {**ANSWER, "tool_calls": "f()"}), "tool_calls is no list"),
        ((USER, calls({"name": "look", "arguments": "{}"})), "tool_calls[0] has no function with a name"),
        ((USER, calls(call(name=" "))), "tool_calls[0] has no function with a name"),
        ((USER, calls(call(arguments="[1]"))), "tool_calls[0]: the arguments are not the JSON of an object"),
        ((USER, calls(call(arguments='{"a":'))), "tool_calls[0]: the arguments are not the JSON of an object"),
        ((USER, calls(call(arguments=[]))), "tool_calls[0]: the arguments are not the JSON of an object"),
        ((USER, calls(call(), call()), result(), result(), ANSWER), 'tool_calls[1]: the id "c1" is there twice'),
        ((USER, result(), ANSWER), "messages[1]: a tool result, and no call is open"),
        ((USER, calls(call()), result(), result(), ANSWER), "messages[3]: a tool result, and no call is open"),
        ((USER, calls(call("a")), ANSWER), 'messages[2]: the conversation goes on, and a call has no result ("a")'),
        ((USER, calls(call("a"), call("b")), result("a"), USER, ANSWER), "messages[3]: the conversation goes on"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(messages: tuple[Any, ...], problem: str) -> None:
    [(level, text)] = of(*messages)
    assert level == "error"
    assert problem in text


def test_a_result_of_another_call_is_named() -> None:
    [(level, text), after] = of(USER, calls(call("a")), result("b"), ANSWER)
    assert (level, text) == ("error", 'messages[2]: the tool_call_id "b" belongs to no open call just before it')
    assert "goes on" in after[1]


def test_arguments_may_be_text_or_an_object() -> None:
    assert of(USER, calls(call(arguments='{"a": 1}'))) == []
    assert levels(USER, calls(call(arguments={"a": 1}))) == ["rnow"]


def test_warnings() -> None:
    [(level, text)] = of(USER, ANSWER, USER)
    assert level == "warning"
    assert "ends without an answer: the user message" in text
    assert levels(USER, SYSTEM, ANSWER) == ["warning"]
    assert levels(USER, ANSWER, ANSWER) == ["warning"]
    assert levels(USER, calls(call()), result(None), ANSWER) == ["warning"]


def test_what_only_rnow_refuses() -> None:
    assert levels(USER, calls(call(), content=None)) == ["rnow"]
    for tools in ([SCHEMA], json.dumps([SCHEMA])):
        assert levels(USER, ANSWER, tools=tools) == ["rnow"]
    assert levels(USER, ANSWER, tools=["look"]) == []
    assert levels(USER, ANSWER, docker_env={"A": "b"}) == ["rnow"]
    assert levels(USER, ANSWER, metadata=[1], rewards="r") == ["rnow", "rnow"]
    assert levels(USER, ANSWER, tools="look") == ["error"]


def test_another_form_of_row_is_told_by_its_keys() -> None:
    assert [*problems_of({"prompt": "x", "completion": "y"})] == [
        ("error", 'no messages (found: "prompt", "completion")')
    ]
    assert [*problems_of({"prompt": "x"}, "distill")] == [("rnow", 'no messages (found: "prompt")')]
    assert [*problems_of({"text": "x"}, "midtrain")] == []
    assert next(problems_of({"text": ""}, "midtrain"))[0] == "error"


def test_prompts_for_rl_and_distill_need_no_answer_but_rl_needs_rewards() -> None:
    assert levels(USER, dataset_type="distill") == []
    assert levels(USER, dataset_type="rl", rewards=["r"]) == []
    assert levels(USER, dataset_type="rl") == ["error"]
    assert levels(USER, dataset_type="rl", rewards=[]) == ["error"]
    assert levels(USER, dataset_type="rl", rewards=["r"], docker_env={"A": "b"}) == ["error"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "user", "assistant", "tool", "c1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "tool_calls", "tool_call_id", "function", "name", "arguments", "id", "type", "text"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(messages=JSON, tools=JSON, kind=st.sampled_from(["sft", "rl", "distill", "midtrain"]))
def test_no_json_whatever_is_more_than_a_row_with_problems(messages: Any, tools: Any, kind: Any) -> None:
    for level, text in problems_of({"messages": messages, "tools": tools}, kind):
        assert level in ("error", "warning", "rnow")
        assert text


# ---- the whole file ------------------------------------------------------------------------------------------------


def linted(folder: Path, data: bytes) -> Lint:
    path = folder / "train.jsonl"
    path.write_bytes(data)
    return lint(path)


def test_every_bad_line_is_told_at_once_up_to_twenty(tmp_path: Path) -> None:
    sound = json.dumps({"messages": [USER, ANSWER]}).encode()
    bad = [b"{", b"[1]", b'"text"', b'{"messages": [{"role": "user", "content": "\xff"}]}', b'{"prompt": "x"}']
    found = linted(tmp_path, b"\n".join([sound, *bad, b"", sound] * 5))
    assert (found.rows, found.bad_rows["error"], found.duplicates) == (35, 25, 9 + 5 * 4)
    assert len(found.errors) == 20
    assert [finding.place.rpartition(":")[2] for finding in found.errors[:6]] == ["2", "3", "4", "5", "6", "10"]
    texts = [finding.text for finding in found.errors[:5]]
    assert "not JSON" in texts[0]
    assert texts[1:3] == ["not an object, but a list", "not an object, but a string"]
    assert texts[3] == "not UTF-8 (byte 0xff at position 44)"
    assert texts[4] == 'no messages (found: "prompt")'
    assert found.kinds["error", 'no messages (found: "...")'] == 5


def test_one_line_for_a_row_with_many_problems(tmp_path: Path) -> None:
    found = linted(tmp_path, json.dumps({"messages": [1, 2, 3, 4, USER]}).encode())
    [finding] = found.findings
    assert finding.text.endswith("; and 1 more")
    assert found.bad_rows["error"] == 1
    assert found.kinds["error", "messages[]: not an object, but a number"] == 4


def test_what_stops_no_run_is_named_three_times_a_kind_and_counted(tmp_path: Path) -> None:
    rows = [{"messages": [USER, ANSWER], "tools": [SCHEMA], "n": n} for n in range(50)]
    found = linted(tmp_path, b"\n".join(json.dumps(row).encode() for row in rows))
    assert len(found.findings) == 3
    assert found.bad_rows == {"rnow": 50}
    assert any("50  tools holds schemas" in line for line in found.about())


def test_facts_of_the_rows(tmp_path: Path) -> None:
    rows = [
        {"messages": [SYSTEM, USER, ANSWER]},
        {"messages": [USER, calls(call()), result(), ANSWER], "tools": json.dumps([SCHEMA])},
        {"messages": [USER, {**ANSWER, "reasoning_content": "x" * 100}]},
        {"messages": [USER, {**ANSWER, "content": "<think>\nHm.\n</think>\n\nIn France."}]},
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    found = lint(tmp_path / "train.jsonl")
    assert found.roles == {"user": 4, "assistant": 5, "system": 1, "tool": 1}
    assert (found.with_calls, found.with_results, found.with_schemas, found.with_thinking) == (1, 1, 1, 2)
    # "Where is Paris?" is 15 characters, "In France." 10, the reasoning 100
    assert found.longest == (125, 3)


def test_a_byte_order_mark_is_read_here_and_refused_by_rnow(tmp_path: Path) -> None:
    found = linted(tmp_path, b"\xef\xbb\xbf" + json.dumps({"messages": [USER, ANSWER]}).encode() + b"\r\n")
    assert [(each.level, each.place[-2:]) for each in found.findings] == [("rnow", ":1")]


def test_files_that_are_no_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        lint(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="is empty"):
        linted(tmp_path, b"")
    with pytest.raises(InputError, match="UTF-16"):
        linted(tmp_path, "{}".encode("utf-16"))
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="JSON Lines"):
        lint(tmp_path / "rows.csv")
    assert [each.text for each in linted(tmp_path, b"\n \n").findings] == ["no rows"]


def test_a_hundred_thousand_rows_in_ten_seconds_with_flat_memory(tmp_path: Path) -> None:
    text = "word " * 60
    path = tmp_path / "train.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(100_000):
            turn = [{**USER, "content": f"{number} {text}"}, calls(call(f"c{number}")), result(f"c{number}")]
            file.write(json.dumps({"messages": [SYSTEM, *turn, {**ANSWER, "content": text}]}) + "\n")
    assert path.stat().st_size > 100_000 * 900
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = lint(path)
    assert time.process_time() - start < 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 20  # MiB; the file has about 95
    assert (found.rows, found.findings) == (100_000, [])


# ---- beside the real thing -----------------------------------------------------------------------------------------

ROW: dict[str, Any] = {
    "messages": [SYSTEM, USER, calls(call()), result(), ANSWER],
    "rewards": ["accurate"],
    "tools": ["look"],
    "docker": "image",
    "docker_env": {"A": "b"},
    "metadata": {"a": 1},
    "variables": {"b": 2},
    "text": "A text.",
    "more": 1,
}
VALUES: tuple[Any, ...] = (
    *(None, "", "text", 0, 1.5, True, [], {}, ["a"], ["a", 1], [{"a": 1}], {"a": "b"}, {"a": 1}, [None], "[]"),
    *("system", "user", "assistant", "tool", "human", [{"type": "text", "text": "x"}], json.dumps([SCHEMA]), [SCHEMA]),
)
ABSENT = object()


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of the row with another value at a place; without it for ABSENT."""
    row = copy.deepcopy(ROW)
    inner: Any = row
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    if value is ABSENT:
        del inner[path[-1]]
    return row


@pytest.mark.network
def test_rows_that_rnow_refuses_are_reported_and_what_it_accepts_is_never_called_its_refusal(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every key with every value, for each type of data set: the models of `rnow` decide."""
    rnow = rnow_models(tmp_path_factory.mktemp("rnow"))
    models = {
        "sft": rnow.TrainEntry,
        "distill": rnow.TrainEntry,
        "rl": rnow.TrainEntryRL,
        "midtrain": rnow.TrainEntryMidtrain,
    }
    paths: list[tuple[Any, ...]] = [(key,) for key in ROW]
    paths += [("messages", at) for at in range(5)]
    paths += [("messages", at, key) for at in range(5) for key in ("role", "content")]
    refused = accepted = 0
    for kind, model in models.items():
        for path in paths:
            for value in (*VALUES, ABSENT):
                row = changed(path, value)
                try:
                    model.model_validate(row)
                    theirs = True
                except ValueError:
                    theirs = False
                ours = [level for level, _ in problems_of(row, kind)]  # pyright: ignore[reportArgumentType]
                if theirs:
                    assert "rnow" not in ours, (kind, path, value)
                else:
                    assert "rnow" in ours or "error" in ours, (kind, path, value)
                refused, accepted = refused + (not theirs), accepted + theirs
    assert refused > 500
    assert accepted > 500
