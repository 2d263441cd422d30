"""Conversations of every form become messages, and nothing that is in them is lost."""

import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.show.messages import Message, Part, as_text, conversation_of, read_messages


def test_chat_messages_give_text_reasoning_calls_and_results():
    function = {"name": "search", "arguments": '{"query": "bridge", "most": 3}'}
    turns = [
        {"role": "assistant", "content": "", "reasoning": "Hm.", "tool_calls": [{"id": "a", "function": function}]},
        {"role": "tool", "tool_call_id": "a", "content": "3 hits"},
    ]
    assert read_messages(turns) == [
        Message("assistant", [Part("reasoning", "Hm."), Part("call", "query: bridge\nmost: 3", "search")]),
        Message("tool", [Part("result", "3 hits", "search")]),
    ]


def test_sharegpt_is_read_with_its_roles_translated():
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "observation", "value": "x"}]
    assert [(m.role, m.parts[0].kind, m.parts[0].text) for m in read_messages(turns)] == [
        ("user", "text", "Hi"),
        ("assistant", "text", "Hello"),
        ("tool", "result", "x"),
    ]


def test_inline_tags_of_older_traces_are_taken_apart():
    text = (
        '<think>\nthree\n</think>\nLet me look.\n<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n</tool_call>'
    )
    tool = {"role": "tool", "content": "<tool_error>no network</tool_error>"}
    assistant, result = read_messages([{"role": "assistant", "content": text}, tool])
    assert assistant.parts == [Part("reasoning", "three"), Part("text", "Let me look."), Part("call", "q: x", "search")]
    assert result.parts == [Part("result", "no network", failed=True)]


def test_items_of_the_responses_api_are_calls_and_results():
    turns = [
        {"type": "function_call", "call_id": "a", "name": "search", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "Error: none"},
    ]
    assert read_messages(turns) == [
        Message("assistant", [Part("call", "", "search")]),
        Message("tool", [Part("result", "Error: none", "search", failed=True)]),
    ]


def test_content_may_be_parts_null_or_an_image_whose_bytes_are_not_shown():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "9"}, image]
    first, second = read_messages([{"role": "assistant", "content": parts}, {"role": "user", "content": None}])
    assert [(part.kind, part.text[:14]) for part in first.parts] == [
        ("reasoning", "hm"),
        ("text", "9"),
        ("text", "[image_url, 5,"),
    ]
    assert second.parts == []


def test_malformed_arguments_are_shown_as_they_stand():
    turn = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": '}}, 7]}
    assert read_messages([turn])[0].parts == [Part("call", '{"a": ', "f"), Part("call", "7")]


def test_tags_that_are_never_closed_stay_text_and_cost_no_time():
    text = "<think>" * 200_000 + "<tool_call>" * 200_000
    began = time.process_time()
    messages = read_messages([{"role": "assistant", "content": text}])
    assert time.process_time() - began < 5  # linear: about 0.2 s; quadratic: hours
    assert messages[0].parts == [Part("text", text)]


def test_a_list_of_objects_without_roles_is_no_conversation():
    assert conversation_of({"messages": [{"a": 1}]}) == (None, [])
    assert conversation_of({"prompt": "text"}) == (None, [])
    assert conversation_of({"conversations": [{"from": "human", "value": "x"}]})[0] == "conversations"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["role", "content", "from", "value", "type", "tool_calls", "function", "name", "output", "text"])


@given(st.lists(st.dictionaries(KEYS, JSON | st.sampled_from(["tool", "user", "function_call"]), max_size=6) | JSON))
def test_any_json_can_be_read(turns: list[Any]):
    assert len(read_messages(turns)) == len(turns)


@given(st.text().filter(lambda text: "<" not in text), st.sampled_from(["user", "assistant", "system", "critic"]))
def test_text_comes_out_as_it_went_in(text: str, role: str):
    (message,) = read_messages([{"role": role, "content": text}])
    assert "".join(part.text for part in message.parts) == text


def test_what_is_nested_too_deeply_is_named_and_not_an_error():
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert as_text(value) == "(nested too deeply to show)"
    while value:  # taken apart by hand, for a destructor recurses too
        value = value[0]
