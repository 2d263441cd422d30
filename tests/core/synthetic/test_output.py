"""Answers that are to be JSON of a form."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from core.errors import UsageError
from core.synthetic.domain import Output
from core.synthetic.output import problem_with

OUTPUT = Output(
    json_schema={
        "type": "object",
        "properties": {
            "price": {"type": "number", "multipleOf": 0.5},
            "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        },
        "required": ["price"],
        "additionalProperties": False,
        "$defs": {"item": {"type": "string", "maxLength": 3}},
    }
)


@pytest.mark.parametrize(
    "answer",
    [
        '{"price": 3}',
        '\n  {"price": 3.5, "items": ["a", "abc"]}\n\n',
        '```json\n{"price": 3}\n```',
        ' ```JSON\r\n{"price": 3}\r\n``` ',
        '```\n{"price": 3}```',
        '```json {"price": 3} ```',
        '{"price": 3, "items": ["```"]}',
    ],
)
def test_an_answer_that_fits(answer: str) -> None:
    assert problem_with(OUTPUT, answer) is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"price": "ten"}', "$.price: 'ten' is not of type 'number'"),
        ("{}", "$: 'price' is a required property"),
        ("[]", "$: [] is not of type 'object'"),
        ('{"price": 3, "items": ["a", "abcd"]}', "$.items[1]: 'abcd' is too long"),
        ('{"price": 3, "more": 1}', "$: Additional properties are not allowed ('more' was unexpected)"),
        ("Sure! {}", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ('```json\n{"price": 3}\n```\nIt is 3.', "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"price": 3} {}', "not JSON: Extra data: line 1 column 14 (char 13)"),
        ('{"price": 3', "not JSON: Expecting ',' delimiter: line 1 column 12 (char 11)"),
        ('{"price": NaN}', "not JSON: NaN is no JSON"),
        ('{"price": -Infinity}', "not JSON: -Infinity is no JSON"),
        ('{"price": 1e999}', "not JSON: 1e999 is too large a number"),
        ("", "not JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line_with_the_place(answer: str, problem: str) -> None:
    assert problem_with(OUTPUT, answer) == problem


@pytest.mark.parametrize("answer", ["[" * 100_000, "9" * 5000, '{"price": "' + "x\\n" * 5000 + '"}'])
def test_what_is_meant_to_break_a_reader_is_a_problem_like_others(answer: str) -> None:
    problem = problem_with(OUTPUT, answer)
    assert problem is not None
    assert len(problem) <= 400
    assert "\n" not in problem


def test_a_value_nested_deeper_than_a_schema_can_be_followed() -> None:
    nested = Output(json_schema={"items": {"$ref": "#"}})
    assert problem_with(nested, "[" * 20 + "]" * 20) is None
    assert problem_with(nested, "[" * 900 + "]" * 900) == "nested too deeply"


def test_another_draft_is_read_as_it_says() -> None:
    draft_7 = "http://json-schema.org/draft-07/schema#"
    schema: dict[str, Any] = {"items": [{"type": "string"}]}  # of a list's first item, up to draft 2019-09
    assert problem_with(Output(json_schema={"$schema": draft_7, **schema}), "[1]") == "$[0]: 1 is not of type 'string'"


MEND = r"^json_schema: .*\. Mend the output of the task in the domain\.$"


@pytest.mark.parametrize("schema", [{"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}])
def test_a_schema_that_cannot_be_followed_is_the_users_to_mend(schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=MEND):
        problem_with(Output(json_schema=schema), '"a"')


def test_nothing_is_fetched_for_a_schema() -> None:
    asked: list[str] = []

    class Schemas(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Schemas) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(UsageError, match=MEND):
                problem_with(Output(json_schema={"$ref": f"http://127.0.0.1:{server.server_port}/x.json"}), '"a"')
        finally:
            server.shutdown()
    assert asked == []
