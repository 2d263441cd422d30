"""Tool calls in a model's own text."""

import json
from typing import Any

import pytest

from core.teachers.tool_text import parse_tool_calls


def read(text: str, *tools: dict[str, Any]) -> tuple[str, list[tuple[str, Any]]]:
    """(the text around, [(name, arguments)]); arguments that are no JSON stay text."""
    around, calls = parse_tool_calls(text, tools)
    found: list[tuple[str, Any]] = []
    for call in calls:
        arguments = call["function"]["arguments"]
        try:
            found.append((call["function"]["name"], json.loads(arguments)))
        except ValueError:
            found.append((call["function"]["name"], arguments))
    return around, found


PARIS = ("weather", {"city": "Paris"})
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


@pytest.mark.parametrize(
    ("text", "around", "calls"),
    [
        # Hermes, Qwen, SmolLM3
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>', "", [PARIS]),
        ('<tool_call>{"name":"weather","parameters":{"city":"Paris"}}</tool_call>', "", [PARIS]),
        ('I look.\n<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>', "I look.", [PARIS]),
        (
            '<tool_call>{"name": "a", "arguments": {}}</tool_call>\n<tool_call>{"name": "b"}</tool_call> Done.',
            "Done.",
            [("a", {}), ("b", {})],
        ),
        ('<tool_call>[{"name": "a"}, {"name": "b"}]</tool_call>', "", [("a", {}), ("b", {})]),
        ('<tool_call>{"function": {"name": "weather", "arguments": {"city": "Paris"}}}</tool_call>', "", [PARIS]),
        (
            '<tool_call>{"name": "a", "arguments": {"x": "</tool_call>"}}</tool_call>',
            "",
            [("a", {"x": "</tool_call>"})],
        ),
        ('<tool_call>{"name": "a", "arguments": {"x": "two\nlines"}}</tool_call>', "", [("a", {"x": "two\nlines"})]),
        ('<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [("a", {"x": 1})]),
        # Qwen3-Coder, Qwen 3.5
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
            "</function>\n</tool_call>",
            "",
            [("weather", {"city": "12", "days": 3})],  # the schema says that a city is text
        ),
        # GLM 4.5
        (
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
            "",
            [PARIS],
        ),
        ("<tool_call>weather\n</tool_call>", "", [("weather", {})]),
        # Llama 3.1
        ('{"name": "weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
        ('<|python_tag|>{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
        ('{"name": "a", "parameters": {}}; {"name": "b", "parameters": {}}', "", [("a", {}), ("b", {})]),
        # Mistral
        ('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdef123"}]', "", [PARIS]),
        ('Wait. [TOOL_CALLS] [{"name": "a", "arguments": {}}, {"name": "b"}]', "Wait.", [("a", {}), ("b", {})]),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Paris"}', "", [PARIS]),
        (
            '[TOOL_CALLS]a[CALL_ID]abcdef123[ARGS]{}[TOOL_CALLS]weather[CALL_ID]abcdef124[ARGS]{"city": "Paris"}',
            "",
            [("a", {}), PARIS],
        ),
        # DeepSeek V3.1, V3
        (
            "So.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁call▁begin｜>weather"
            '<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            "So.",
            [("a", {}), PARIS],
        ),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
            '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            "",
            [PARIS],
        ),
    ],
)
def test_every_notation_is_read(text: str, around: str, calls: list[tuple[str, Any]]) -> None:
    assert read(text, TOOL) == (around, calls)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('<tool_call>{"name": "weather", "arguments": {"city": Paris}}</tool_call>', '{"city": Paris}'),
        ('<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}}</tool_call>', '{"city": "Paris"}}'),
        ('<tool_call>{"name": "weather", "arguments": {"x": NaN}}</tool_call>', '{"x": NaN}'),
        ('<tool_call>{"name": "weather", "arguments": {"x": "\\ud800"}}</tool_call>', '{"x": "\\ud800"}'),
    ],
)
def test_broken_arguments_stay_as_they_were_written_when_the_name_can_be_read(text: str, arguments: str) -> None:
    around, calls = parse_tool_calls(text)
    assert around == ""
    assert [call["function"] for call in calls] == [{"name": "weather", "arguments": arguments}]


@pytest.mark.parametrize(
    "text",
    [
        "Paris.",
        "  with blanks around \n",
        '<tool_call>{"name": "weather", "arguments": {"city": "Par',  # cut off
        '<tool_call>\n{"name": "weather", "arguments": {}}',  # never closed
        "<tool_call>no call at all</tool_call>",
        '<tool_call>{"city": "Paris"}</tool_call>',
        "<tool_call><function=weather><parameter=city>Par",
        '{"city": "Paris"}',
        '{"name": "Paris", "population": 2000000}',
        'The answer: {"name": "weather", "parameters": {}}',
        '{"name": "weather", "parameters": {}} is what I would call',
        "[TOOL_CALLS]",
        "[TOOL_CALLS] [1, 2]",
        '[TOOL_CALLS][{"name": "weather", "argu',
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{",
        "<|python_tag|>weather.call(city='Paris')",
        "[" * 5000,
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_what_is_no_whole_call_stays_text(text: str) -> None:
    assert parse_tool_calls(text, [TOOL]) == (text, [])


def test_a_call_that_is_cut_off_does_not_hide_the_one_before_it() -> None:
    whole = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'
    assert read(whole + '\n<tool_call>{"name": "b", "argu') == ('<tool_call>{"name": "b", "argu', [("a", {})])
