"""Tool calls of an API, in one form."""

import json
from typing import Any

import pytest

from core.errors import TransientError
from core.teachers.api_answers import parse_answer
from core.teachers.protocol import Completion
from core.teachers.tool_calls import short_id, with_object_arguments


def answered(message: dict[str, Any], finish_reason: str = "tool_calls", turn: int = 1) -> Completion:
    body = {"choices": [{"message": {"content": None, **message}, "finish_reason": finish_reason}]}
    return parse_answer(200, {}, json.dumps(body).encode(), 100, turn=turn)


def call(name: Any = "f", arguments: Any = "{}", **more: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def test_an_ordinary_call_stays_as_it_is_and_nothing_is_echoed() -> None:
    completion = answered({"tool_calls": [call(arguments='{"a": 1}')]})
    assert completion.tool_calls == [call(arguments='{"a": 1}')]
    assert (completion.text, completion.finish_reason, completion.echo) == ("", "tool_calls", {})


@pytest.mark.parametrize(
    ("sent", "arguments"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ({"a": "é"}, '{"a": "é"}'),  # Ollama
        (None, "{}"),
        ("", "{}"),
        ('{"a": ', '{"a": '),  # whoever runs it tells the model
        ([1], "[1]"),
    ],
)
def test_arguments_are_a_json_string_or_what_the_teacher_wrote(sent: Any, arguments: str) -> None:
    assert answered({"tool_calls": [call(arguments=sent)]}).tool_calls[0]["function"]["arguments"] == arguments


def test_missing_and_repeated_ids_are_made_from_the_call_and_its_turn() -> None:
    calls = [call(id=None), call(), call(), {"function": {"name": "f"}}]
    ids = [made["id"] for made in answered({"tool_calls": calls}).tool_calls]
    assert ids[1] == "call_1"
    assert len(set(ids)) == 4
    assert all(len(made) == len("call_01234567") for made in (ids[0], ids[2], ids[3]))
    assert ids == [made["id"] for made in answered({"tool_calls": calls}).tool_calls]
    later = {made["id"] for made in answered({"tool_calls": calls}, turn=3).tool_calls}
    assert later & set(ids) == {"call_1"}


def test_what_names_no_tool_is_no_call() -> None:
    calls = [None, 5, {}, {"function": "f"}, call(name=None), call(name=" "), call(name=7), call()]
    assert answered({"tool_calls": calls}).tool_calls == [call()]
    with pytest.raises(TransientError, match="empty answer"):
        answered({"tool_calls": calls[:-1]})


def test_the_deprecated_function_call_is_a_call() -> None:
    completion = answered({"function_call": {"name": "f", "arguments": '{"a": 1}'}}, "function_call")
    assert completion.tool_calls[0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert completion.tool_calls[0]["id"].startswith("call_")
    assert completion.finish_reason == "tool_calls"


@pytest.mark.parametrize(("said", "meant"), [("stop", "tool_calls"), ("length", "length")])
def test_calls_end_in_tool_calls_unless_they_were_cut_off(said: str, meant: str) -> None:
    assert answered({"tool_calls": [call()]}, said).finish_reason == meant


def test_text_beside_calls_is_kept() -> None:
    assert answered({"content": "I look.", "tool_calls": [call()]}).text == "I look."


def test_a_web_page_as_an_answer_is_text() -> None:
    assert answered({"content": "<html><body>404</body></html>"}, "stop").text == "<html><body>404</body></html>"


def test_reasoning_goes_back_in_the_form_in_which_it_came() -> None:
    details = [{"type": "reasoning.encrypted", "data": "abc"}]
    echo = answered({"content": "4", "reasoning": "2+2", "reasoning_details": details}, "stop").echo
    assert echo == {"reasoning_details": details}
    assert answered({"content": "4", "reasoning_content": "2+2"}, "stop").echo == {"reasoning_content": "2+2"}
    assert answered({"content": "4", "reasoning_content": None, "reasoning_details": []}, "stop").echo == {}


def test_calls_that_carry_more_go_back_with_it_and_with_the_ids_of_the_normal_form() -> None:
    signature = {"google": {"thought_signature": "abc"}}
    completion = answered({"tool_calls": [call(id="", extra_content=signature), call(index=1)]})
    first, second = completion.tool_calls
    assert set(first) == {"id", "type", "function"}
    assert completion.echo == {"tool_calls": [{**first, "extra_content": signature}, second]}


def test_a_local_template_gets_arguments_as_objects() -> None:
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call(arguments='{"a": 1}'), call(arguments="{")]},
        {"role": "assistant", "content": "x", "tool_calls": []},
        {"role": "tool", "tool_call_id": "call_1", "content": "y"},
    ]
    before = json.dumps(messages)
    prepared = with_object_arguments(messages)
    assert [made["function"]["arguments"] for made in prepared[0]["tool_calls"]] == [{"a": 1}, "{"]
    assert "tool_calls" not in prepared[1]
    short = with_object_arguments(messages, short_ids=True)
    assert short[0]["tool_calls"][0]["id"] == short[2]["tool_call_id"] == short_id("call_1")
    assert json.dumps(messages) == before


def test_a_short_id_has_nine_letters_and_digits_and_stays() -> None:
    assert short_id("abcdef123") == "abcdef123"
    assert len(short_id("call_1")) == 9
    assert short_id("call_1").isalnum()
    assert short_id("call_1") != short_id("call_2")
