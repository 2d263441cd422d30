"""Laws of what a server may send: whatever it is, it is an answer or a reason."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from core.errors import TeacherError
from core.teachers.api_answers import parse_answer
from core.teachers.protocol import Completion

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def objects(*names: str, **known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these keys, each holding what belongs there or anything at all."""
    return st.fixed_dictionaries(
        {}, optional={**dict.fromkeys(names, anything), **{k: v | anything for k, v in known.items()}}
    )


errors = objects(
    "code", "message", "type", "detail", "http_status", "error_type",
    code=st.sampled_from([400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, "insufficient_quota"]),
    metadata=objects("error_type", "raw", "reasons", "retry_after_seconds", "limit_source", "reason"),
    availability=objects("retryable", "retry_after", "fallback_models"),
)  # fmt: skip
functions = objects("name", "arguments", name=st.text(max_size=5), arguments=st.text(max_size=5))
calls = objects("id", "type", "function", "extra_content", id=st.sampled_from(["", "1", "2"]), function=functions)
messages = objects(
    "role", "content", "reasoning", "reasoning_content", "reasoning_details", "refusal", "function_call",
    content=st.text(max_size=9), tool_calls=st.lists(calls, max_size=3), function_call=functions,
)  # fmt: skip
choices = objects("finish_reason", "index", message=messages, error=errors)
usages = objects("prompt_tokens", "completion_tokens", "cost", completion_tokens_details=objects("reasoning_tokens"))
bodies = objects("provider", choices=st.lists(choices | anything, max_size=2), usage=usages, error=errors) | anything
headers = st.dictionaries(
    st.sampled_from(["retry-after", "content-type", "location", "x-ratelimit-remaining", "x-ratelimit-reset"]),
    st.text(st.characters(codec="ascii"), max_size=20) | st.integers().map(str),
)


def parsed(status: int, headers: dict[str, str], raw: bytes) -> Completion | TeacherError:
    try:
        return parse_answer(status, headers, raw, 100)
    except TeacherError as error:
        return error


@given(
    st.sampled_from([200, 201, 302, 400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504]),
    headers,
    bodies,
)
@example(200, {}, {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "many"}})
@example(200, {}, {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 1e400}})
@example(200, {}, {"error": {"http_status": "bad"}})
def test_every_json_is_an_answer_or_a_teacher_error(status: int, headers: dict[str, str], body: Any) -> None:
    outcome = parsed(status, headers, json.dumps(body).encode())
    if isinstance(outcome, TeacherError):
        assert outcome.reason
        assert str(outcome)
    else:
        assert isinstance(outcome.text, str)
        for call in outcome.tool_calls:
            assert set(call) == {"id", "type", "function"}
            assert set(call["function"]) == {"name", "arguments"}
            assert all(isinstance(text, str) and text.strip() for text in (call["id"], *call["function"].values()))
        ids = [call["id"] for call in outcome.tool_calls]
        assert len(set(ids)) == len(ids)
        assert [call["id"] for call in outcome.echo.get("tool_calls", outcome.tool_calls)] == ids
        assert outcome.text.strip() or outcome.tool_calls
        assert outcome.usage.completion_tokens >= 0


@given(st.integers(100, 599), headers, st.binary(max_size=60))
def test_every_body_is_a_teacher_error_when_it_is_no_json(status: int, headers: dict[str, str], raw: bytes) -> None:
    assert isinstance(parsed(status, headers, b"\x00" + raw), TeacherError)
