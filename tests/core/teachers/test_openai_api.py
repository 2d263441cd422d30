"""What a chat API answers, and what we do about it. The tables follow what OpenRouter and OpenAI document."""

import asyncio
import email.utils
import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from core.commands.generate_teacher_data import GenerateTeacherData
from core.errors import (
    MissingKey,
    RequestRejected,
    TeacherError,
    TeacherUnavailable,
    Throttled,
    TransientError,
    UsageError,
)
from core.teachers import open_teacher
from core.teachers.api_answers import parse_answer, retry_after_s
from core.teachers.api_client import LONGEST_RESPONSE_BYTES
from core.teachers.openai_api import ApiTeacher
from core.teachers.protocol import Completion, Sampling, Usage
from tests.support.running import KEY, Mock, Received, Reply, chat_answer, small_server

USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "cost": 0.25,
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def answer(choice: dict[str, Any] | None = None, **top: Any) -> bytes:
    return json.dumps({"choices": [choice] if choice else [], "usage": USAGE, **top}).encode()


def said(text: str | None, finish: str = "stop", **message: Any) -> bytes:
    return answer({"message": {"content": text, **message}, "finish_reason": finish})


def error(code: Any = None, message: str = "why", **more: Any) -> dict[str, Any]:
    return {"code": code, "message": message, **more}


def raised(status: int, body: Any, **headers: str) -> TeacherError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with pytest.raises(TeacherError) as caught:
        parse_answer(status, named, raw, 100)
    return caught.value


# ---- answers ---------------------------------------------------------------------------------------------------


def test_an_ordinary_answer() -> None:
    raw = answer({"message": {"content": "Hi", "reasoning": "hm"}, "finish_reason": "stop"})
    assert parse_answer(200, {}, raw, 100) == Completion(
        "Hi", "stop", reasoning="hm", usage=Usage(10, 5, 3), cost_usd=0.25
    )


def test_a_cut_off_answer_is_an_answer_that_says_so() -> None:
    assert parse_answer(200, {}, said("Once upon", "length"), 100).finish_reason == "length"


def test_an_answer_without_usage_costs_an_unknown_amount() -> None:
    completion = parse_answer(200, {}, b'{"choices": [{"message": {"content": "Hi"}}]}', 100)
    assert (completion.usage, completion.cost_usd, completion.finish_reason) == (Usage(), None, "stop")


def test_a_cost_of_zero_is_known() -> None:
    raw = json.dumps({"choices": [{"message": {"content": "Hi"}}], "usage": {"cost": 0}}).encode()
    assert parse_answer(200, {}, raw, 100).cost_usd == 0


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image", "text": None}]
    assert parse_answer(200, {}, answer({"message": {"content": parts}}), 100).text == "ab"


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "4", "reasoning": "2+2"}, "4", "2+2"),  # OpenRouter
        ({"content": "4", "reasoning_content": "2+2"}, "4", "2+2"),  # vLLM, DeepSeek, NIM
        ({"content": "<think>\n2+2\n</think>\n\n4"}, "4", "2+2"),  # a server without a reasoning parser
        ({"content": "2+2\n</think>\n\n4"}, "4", "2+2"),  # the template opened the tag
        ({"content": "<think></think>4"}, "4", ""),
        ({"content": "Write <think> and </think> in HTML"}, "Write <think> and </think> in HTML", ""),
        ({"content": "  4 "}, "  4 ", ""),
        ({"content": "4", "reasoning": None, "reasoning_content": None}, "4", ""),
    ],
)
def test_thinking_is_captured_apart_from_the_answer(message: dict[str, Any], text: str, reasoning: str) -> None:
    completion = parse_answer(200, {}, answer({"message": message, "finish_reason": "stop"}), 100)
    assert (completion.text, completion.reasoning) == (text, reasoning)


def test_a_thought_that_never_closes_leaves_no_answer() -> None:
    problem = raised(200, said("<think>and then", "length"))
    assert (type(problem), problem.reason) == (RequestRejected, "no_room_for_answer")
    assert "raise --max-tokens" in str(problem)


def test_tool_calls_without_text_are_an_answer() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    completion = parse_answer(200, {}, said(None, "tool_calls", tool_calls=[call]), 100)
    assert (completion.text, completion.tool_calls) == ("", [call])


# ---- errors ----------------------------------------------------------------------------------------------------

IN_FLIGHT = {"limit_source": "openrouter_in_flight_budget", "reason": "in_flight_budget_exhausted"}
CREDITS = {"limit_source": "openrouter_credits"}

STATUSES: list[tuple[int, dict[str, Any], type[TeacherError], str]] = [
    (400, error(400, metadata={"error_type": "invalid_request"}), RequestRejected, "invalid_request"),
    (400, error(400, metadata={"error_type": "invalid_prompt"}), RequestRejected, "invalid_request"),
    (400, error(400, metadata={"error_type": "context_length_exceeded"}), RequestRejected, "context_length"),
    (400, error("context_length_exceeded", type="invalid_request_error"), RequestRejected, "context_length"),
    (400, error(400, metadata={"error_type": "string_too_long"}), RequestRejected, "context_length"),
    (400, error(400, metadata={"error_type": "content_policy_violation"}), RequestRejected, "refused_by_provider"),
    (400, error(400, error_type="refusal"), RequestRejected, "refused_by_provider"),
    (401, error(401, metadata={"error_type": "authentication"}), TeacherUnavailable, "authentication"),
    (402, error(402, metadata=IN_FLIGHT), Throttled, "in_flight_budget"),
    (402, error(402, metadata={**CREDITS, "reason": "weight_exceeds_budget"}), RequestRejected, "over_budget"),
    (402, error(402, metadata=CREDITS), TeacherUnavailable, "payment"),
    (402, error(402, metadata={"limit_source": "openrouter_key_limit"}), TeacherUnavailable, "payment"),
    (402, error(402), TeacherUnavailable, "payment"),
    (403, error(403, metadata={"error_type": "permission_denied"}), RequestRejected, "refused_by_provider"),
    (403, error(403, "flagged", metadata={"reasons": ["violence"]}), RequestRejected, "refused_by_provider"),
    (403, error(403, "Budget limit exceeded"), TeacherUnavailable, "payment"),
    (403, error(403, metadata={"limit_source": "openrouter_key_limit"}), TeacherUnavailable, "payment"),
    (404, error(404, metadata={"error_type": "not_found"}), RequestRejected, "not_found"),
    (404, error(404, availability={"retryable": True}), TransientError, "upstream_error"),
    (408, error(408), TransientError, "timeout"),
    (413, error(413, metadata={"error_type": "payload_too_large"}), RequestRejected, "context_length"),
    (422, error(422, metadata={"error_type": "unprocessable"}), RequestRejected, "invalid_request"),
    (429, error(429, metadata={"error_type": "rate_limit_exceeded"}), Throttled, "rate_limit"),
    (429, error("insufficient_quota", type="insufficient_quota"), TeacherUnavailable, "payment"),
    (500, error(500, metadata={"error_type": "server"}), TransientError, "upstream_error"),
    (502, error(502, metadata={"error_type": "provider_unavailable"}), TransientError, "upstream_error"),
    (503, error(503, metadata={"error_type": "provider_overloaded"}), TransientError, "overloaded"),
    (503, error(503, metadata={"retry_after_seconds": 2}), Throttled, "overloaded"),
    (504, error(504), TransientError, "timeout"),
    (529, error(529), TransientError, "upstream_error"),
]


@pytest.mark.parametrize(("status", "problem", "kind", "reason"), STATUSES)
def test_what_each_status_means(status: int, problem: dict[str, Any], kind: type[TeacherError], reason: str) -> None:
    found = raised(status, {"error": problem})
    assert (type(found), found.reason) == (kind, reason)
    assert f"{status}: {problem['message']}" in str(found)


@pytest.mark.parametrize(("status", "problem", "kind", "reason"), [row for row in STATUSES if row[1]["code"] == row[0]])
def test_an_error_inside_a_200_means_the_same(
    status: int, problem: dict[str, Any], kind: type[TeacherError], reason: str
) -> None:
    found = raised(200, {"id": "gen-1", "error": problem})
    assert (type(found), found.reason) == (kind, reason)


def test_an_error_inside_a_choice_is_no_answer_and_is_paid_for() -> None:
    choice = {"message": {"content": "half"}, "finish_reason": "error", "error": error(502, "Provider disconnected")}
    found = raised(200, answer(choice))
    assert (type(found), found.reason, found.billed, found.cost_usd) == (TransientError, "upstream_error", True, 0.25)


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (said("half", "error"), TransientError, "upstream_error"),
        (said("half", "content_filter"), RequestRejected, "content_filter"),
        (said(""), TransientError, "empty_answer"),
        (said(" \n"), TransientError, "empty_answer"),
        (said(None), TransientError, "empty_answer"),
        (said("", "length"), RequestRejected, "no_room_for_answer"),
        (said(None, refusal="I will not."), RequestRejected, "refusal"),
        (answer(), TransientError, "broken_answer"),
        (b'{"choices": null}', TransientError, "broken_answer"),
        (b'{"choices": [{"message": null}]}', TransientError, "broken_answer"),
        (said("whole")[:-20], TransientError, "broken_answer"),
        (b"", TransientError, "broken_answer"),
        (b"[1, 2]", TransientError, "broken_answer"),
    ],
)
def test_a_200_that_is_no_usable_answer_may_have_been_billed(
    body: bytes, kind: type[TeacherError], reason: str
) -> None:
    found = raised(200, body)
    assert (type(found), found.reason, found.billed) == (kind, reason, True)


@pytest.mark.parametrize("status", [200, 404, 403])
def test_a_web_page_ends_the_run_and_names_base_url(status: int) -> None:
    found = raised(status, b"<!DOCTYPE html><html>Welcome</html>", content_type="text/html")
    assert isinstance(found, TeacherUnavailable)
    assert found.usage
    assert "a web page" in str(found)
    assert "--base-url" in str(found)


def test_a_gateways_error_page_is_transient() -> None:
    assert type(raised(502, b"<html>Bad Gateway</html>", content_type="text/html")) is TransientError
    assert type(raised(503, b"<html>Busy</html>", content_type="text/html")) is TransientError
    assert type(raised(503, b"<html>Busy</html>", content_type="text/html", retry_after="3")) is Throttled


def test_a_redirect_ends_the_run_and_names_the_other_place() -> None:
    found = raised(307, b"", location="https://elsewhere.example/v1/chat/completions")
    assert isinstance(found, TeacherUnavailable)
    assert "https://elsewhere.example/v1/chat/completions" in str(found)
    assert "the key stays here" in str(found)


def test_an_error_in_a_list_is_read() -> None:
    found = raised(400, [{"error": error(400, "API key not valid", status="INVALID_ARGUMENT")}])
    assert (type(found), found.reason) == (RequestRejected, "invalid_request")
    assert "API key not valid" in str(found)
    assert type(raised(429, [{"error": error(429)}])) is Throttled


@pytest.mark.parametrize("body", [b"", b"prompt is too long", b"[]"])
def test_a_400_without_an_explanation_fails_its_row_only(body: bytes) -> None:
    found = raised(400, body)
    assert (type(found), found.reason) == (RequestRejected, "invalid_request")
    assert isinstance(raised(400, b"<html>nginx</html>"), TeacherUnavailable)


def test_other_models_that_would_do_are_named() -> None:
    found = raised(404, {"error": error(404, availability={"fallback_models": ["a/b"]})})
    assert "a/b" in str(found)


@pytest.mark.parametrize(
    "body",
    [{"error": "our words"}, {"detail": "our words"}, {"message": "our words"}, {"error": {"message": "our words"}}],
)
def test_the_providers_own_words_are_found_in_every_shape(body: dict[str, Any]) -> None:
    assert "our words" in str(raised(400, body))


# ---- how long to be silent --------------------------------------------------------------------------------------


def silence(status: int = 429, body: Any = None, **headers: str) -> float | None:
    found = raised(status, {"error": body or error(status)}, **headers)
    assert isinstance(found, Throttled)
    return found.retry_after_s


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert silence(retry_after="7") == 7
    assert silence(retry_after="1.5") == 1.5
    assert silence(retry_after=email.utils.formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
    assert silence(retry_after=email.utils.formatdate(time.time() - 30, usegmt=True)) == 0
    assert silence(503, retry_after="7") == 7
    assert silence(402, error(402, metadata=IN_FLIGHT), retry_after="2") == 2


def test_a_hint_in_the_body_counts_when_there_is_no_header() -> None:
    assert silence(body=error(429, availability={"retry_after": 4})) == 4
    assert silence(body=error(429, metadata={"retry_after_seconds": 5})) == 5
    assert silence(body=error(429, availability={"retry_after": 4}), retry_after="9") == 9


def test_nothing_said_means_nothing_known() -> None:
    assert silence() is None
    assert silence(retry_after="soon") is None
    assert retry_after_s({"retry-after": "nan"}) in (None, 0.0)


def test_a_daily_quota_that_resets_in_hours_ends_the_run() -> None:
    in_two_hours = str(int((time.time() + 7200) * 1000))
    found = raised(429, {"error": error(429)}, x_ratelimit_remaining="0", x_ratelimit_reset=in_two_hours)
    assert (type(found), found.reason) == (TeacherUnavailable, "quota")
    assert type(raised(429, {"error": error(429)}, retry_after="86400")) is TeacherUnavailable


# ---- requests ---------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "Hi"}]


def teacher(model: str, backend: str, **options: Any) -> ApiTeacher:
    return ApiTeacher(model, backend, **options)


@pytest.fixture
def keys(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENROUTER_API_KEY", "OPENAI_API_KEY", "NVIDIA_API_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.mark.usefixtures("keys")
def test_the_body_for_openrouter() -> None:
    asked = teacher("a/b", "openrouter", require_distillable=True, extra_body={"provider": {"sort": "price"}})
    assert asked.endpoint == "https://openrouter.ai/api/v1"
    assert asked.body(MESSAGES, Sampling(100, 0.7, 0.9, 5)) == {
        "model": "a/b",
        "messages": MESSAGES,
        "max_tokens": 100,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 5,
        "provider": {"enforce_distillable_text": True, "sort": "price"},
    }


@pytest.mark.usefixtures("keys")
def test_a_seed_that_was_asked_for_goes_only_to_providers_that_take_one() -> None:
    seeded = open_teacher(GenerateTeacherData(input="p.txt", model="a/b", seed=1))
    unseeded = open_teacher(GenerateTeacherData(input="p.txt", model="a/b"))
    assert isinstance(seeded, ApiTeacher)
    assert isinstance(unseeded, ApiTeacher)
    assert seeded.body(MESSAGES, Sampling(9, 0.7, seed=5))["provider"] == {"require_parameters": True}
    # a further sample gets a seed of its own, and does without where a provider has none
    assert "provider" not in unseeded.body(MESSAGES, Sampling(9, 0.7, seed=5))


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("model", ["o3", "o4-mini", "gpt-5.2"])
def test_openais_reasoning_models_get_the_new_name_and_no_temperature(model: str) -> None:
    asked = teacher(model, "openai")
    assert asked.body(MESSAGES, Sampling(100, 0.7, 0.9)) == {
        "model": model,
        "messages": MESSAGES,
        "max_completion_tokens": 100,
    }
    assert "no temperature" in asked.notes[0]


@pytest.mark.usefixtures("keys")
def test_the_same_name_at_another_server_is_asked_like_any_model() -> None:
    body = teacher("o3", "openai", base_url="http://127.0.0.1:1/v1").body(MESSAGES, Sampling(100, 0.7))
    assert body == {"model": "o3", "messages": MESSAGES, "max_tokens": 100, "temperature": 0.7}


TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]


@pytest.mark.usefixtures("keys")
def test_tools_are_offered_and_go_only_to_providers_that_take_them() -> None:
    body = teacher("a/b", "openrouter").body(MESSAGES, Sampling(100, 0.7), TOOLS)
    assert body == {
        "model": "a/b",
        "messages": MESSAGES,
        "max_tokens": 100,
        "temperature": 0.7,
        "tools": TOOLS,
        "provider": {"require_parameters": True},
    }
    assert list(body)[:2] == ["model", "messages"]
    elsewhere = teacher("m", "openai", base_url="http://127.0.0.1:1/v1").body(MESSAGES, Sampling(100, 0.7), TOOLS)
    assert elsewhere["tools"] == TOOLS
    assert "provider" not in elsewhere
    assert "tools" not in teacher("a/b", "openrouter").body(MESSAGES, Sampling(100, 0.7))


@pytest.mark.usefixtures("keys")
def test_what_of_the_sampling_is_sent_is_known() -> None:
    sampling = Sampling(100, 0.7, 0.9, 5)
    assert teacher("gpt-5.2", "openai").sampling_sent(sampling) == {
        "max_tokens": 100,
        "temperature": None,
        "top_p": None,
        "seed": 5,
    }
    assert teacher("gpt-4o", "openai").sampling_sent(sampling)["temperature"] == 0.7


@pytest.mark.parametrize("extra", [{"a": "\ud800"}, {"a": {"b": 2**70}}])
def test_an_extra_body_that_no_json_can_carry_is_refused_before_anything_is_sent(
    folder: Any, extra: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="--extra-body cannot be sent as JSON"):
        teacher("m", "openai", base_url="http://127.0.0.1:1/v1", extra_body=extra)


@pytest.mark.usefixtures("keys")
def test_the_same_request_is_the_same_bytes() -> None:
    one = json.dumps(teacher("a/b", "openrouter").body(MESSAGES, Sampling(100, 0.7, 0.9, 5)))
    assert one == json.dumps(teacher("a/b", "openrouter").body(MESSAGES, Sampling(100, 0.7, 0.9, 5)))


def test_a_provider_needs_its_key_and_a_server_of_ones_own_does_not(folder: Any) -> None:
    for backend, name in (
        ("openrouter", "OPENROUTER_API_KEY"),
        ("openai", "OPENAI_API_KEY"),
        ("nvidia", "NVIDIA_API_KEY"),
    ):
        with pytest.raises(MissingKey, match=f"{name} is not set"):
            teacher("a/b", backend)
    teacher("a/b", "openai", base_url="http://127.0.0.1:1/v1")
    with pytest.raises(MissingKey, match="MY_KEY is not set"):
        teacher("a/b", "openai", base_url="http://127.0.0.1:1/v1", api_key_env="MY_KEY")


def complete(
    answering: Callable[[Received], Reply], **options: Any
) -> tuple[Completion | TeacherError, list[Received]]:
    """One request to a small server: what came of it, and what the server was sent."""
    with small_server(answering) as server:

        async def once() -> Completion | TeacherError:
            asked = teacher("m", "openai", base_url=server.url, **options)
            try:
                return await asked.complete(MESSAGES, Sampling(100, 0.7))
            except TeacherError as problem:
                return problem
            finally:
                await asked.aclose()

        return asyncio.run(once()), server.received


@pytest.mark.usefixtures("keys")
def test_the_key_travels_in_the_authorization_header() -> None:
    completion, received = complete(lambda _: Reply(body=chat_answer("Hi")))
    assert isinstance(completion, Completion)
    assert completion.text == "Hi"
    assert received[0].headers["authorization"] == f"Bearer {KEY}"
    assert received[0].path == "/v1/chat/completions"
    assert received[0].json["messages"] == MESSAGES


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_key_stays_here(status: int) -> None:
    with small_server(lambda _: Reply(body=chat_answer())) as elsewhere:
        problem, received = complete(lambda _: Reply(status, b"", {"location": elsewhere.url}))
        assert isinstance(problem, TeacherUnavailable)
        assert elsewhere.url in str(problem)
        assert len(received) == 1
        assert elsewhere.received == []


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("padding", [0, 80, 150, 180, 190, 270, 290, 300])
@pytest.mark.parametrize(
    "shape",
    [
        lambda text: json.dumps({"error": {"message": text}}),
        lambda text: json.dumps({"oops": text}),
        lambda text: json.dumps({"error": {"message": "x", "metadata": {"raw": text}}}),
        lambda text: "<html>" + text,
        lambda text: text,
    ],
)
@pytest.mark.parametrize("status", [400, 401, 500])
def test_no_piece_of_the_key_is_in_an_error_when_the_server_echoes_it(
    status: int, shape: Callable[[str], str], padding: int
) -> None:
    # An excerpt that is cut at 100, 200 or 300 characters may cut the key in two; half a key is a secret too.
    problem, _ = complete(lambda got: Reply(status, shape("x" * padding + got.headers["authorization"]).encode()))
    assert isinstance(problem, TeacherError)
    pieces = [KEY[start : start + 12] for start in range(len(KEY) - 12)]
    assert not [piece for piece in pieces if piece in str(problem)]


@pytest.mark.usefixtures("keys")
def test_a_key_that_a_server_writes_into_its_answer_does_not_reach_the_training_data() -> None:
    completion, _ = complete(lambda got: Reply(body=chat_answer("You sent " + got.headers["authorization"])))
    assert isinstance(completion, Completion)
    assert completion.text == "You sent Bearer ***"


def test_a_placeholder_for_a_key_is_no_secret_and_stays_in_answers(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ollama")
    completion, _ = complete(lambda _: Reply(body=chat_answer("Use ollama.")))
    assert isinstance(completion, Completion)
    assert completion.text == "Use ollama."


def test_no_answer_in_time_is_transient_and_may_be_billed(folder: Any) -> None:
    def slow(_: Received) -> Reply:
        time.sleep(0.5)
        return Reply()

    problem, _ = complete(slow, timeout_s=0.1)
    assert isinstance(problem, TransientError)
    assert (problem.reason, problem.billed) == ("timeout", True)
    assert "0.1 s" in str(problem)


def test_nobody_listens_is_transient_and_names_the_place(folder: Any) -> None:
    async def once() -> None:
        asked = teacher("m", "openai", base_url="http://127.0.0.1:1/v1")
        try:
            with pytest.raises(TransientError, match=r"cannot connect to http://127\.0\.0\.1:1/v1") as caught:
                await asked.complete(MESSAGES, Sampling(100, 0.7))
            assert not caught.value.billed
        finally:
            await asked.aclose()

    asyncio.run(once())


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/v1", "http:///v1", "http://a..b/v1", "http://[::1/v1"])
def test_a_url_that_is_none_is_refused_before_anything_is_sent(folder: Any, url: str) -> None:
    with pytest.raises(UsageError, match="is not a URL such as"):
        teacher("m", "openai", base_url=url)


def test_a_conversation_that_no_json_can_carry_fails_alone(folder: Any) -> None:
    async def once() -> None:
        asked = teacher("m", "openai", base_url="http://127.0.0.1:1/v1")
        with pytest.raises(RequestRejected, match="cannot be sent as JSON"):
            await asked.complete([{"role": "tool", "content": "\ud800"}], Sampling(100, 0.7))
        await asked.aclose()

    asyncio.run(once())


def test_the_turn_decides_about_the_ids_of_calls_that_came_without(folder: Any) -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    with small_server(lambda _: Reply(body=chat_answer("", tool_calls=[call]))) as server:

        async def twice() -> list[str]:
            asked = teacher("m", "openai", base_url=server.url)
            answers = [await asked.complete(MESSAGES * times, Sampling(9, 0.0), TOOLS) for times in (1, 3)]
            await asked.aclose()
            return [answer.tool_calls[0]["id"] for answer in answers]

        first, second = asyncio.run(twice())
    assert first != second
    assert server.received[0].json["tools"] == TOOLS


@pytest.mark.parametrize("packed", [False, True])
def test_a_server_that_never_stops_sending_does_not_take_our_memory(folder: Any, packed: bool) -> None:
    blanks = b" " * (LONGEST_RESPONSE_BYTES + 1)
    body = gzip.compress(blanks, 1) if packed else blanks
    headers = {"content-encoding": "gzip"} if packed else {}
    problem, _ = complete(lambda _: Reply(body=body, headers=headers))
    assert isinstance(problem, RequestRejected)
    assert (problem.reason, problem.billed) == ("too_large", True)
    assert "more than 64 MiB" in str(problem)


# ---- prices -----------------------------------------------------------------------------------------------------


def test_a_list_of_prices_that_never_ends_is_no_price(folder: Any) -> None:
    body = b" " * (LONGEST_RESPONSE_BYTES + 1)
    with small_server(lambda _: Reply(body=body)) as server:
        assert price_of("m", server.url) is None


def price_of(model: str, url: str) -> tuple[float, float] | None:
    async def once() -> tuple[float, float] | None:
        asked = teacher(model, "openai", base_url=url)
        try:
            price = await asked.price()
            return (price.prompt, price.completion) if price else None
        finally:
            await asked.aclose()

    return asyncio.run(once())


def test_the_price_is_read_from_the_live_list(folder: Any, mock: Mock) -> None:
    assert price_of("mock/model", mock.base_url) == (3e-6, 15e-6)
    assert price_of("mock/none", mock.base_url) is None


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"data": 5}',
        b'{"data": [5, {"id": "m"}, {"id": "m", "pricing": {"prompt": "cheap"}}]}',
        b'{"data": [{"id": "m", "pricing": {"prompt": "-1", "completion": "-1"}}]}',
        b'{"data": [{"id": "m", "pricing": {"prompt": "nan", "completion": "0"}}]}',
    ],
)
def test_a_list_that_says_nothing_useful_is_no_price(folder: Any, body: bytes) -> None:
    with small_server(lambda _: Reply(body=body)) as server:
        assert price_of("m", server.url) is None
