"""What scoring servers write, and what is read from it. Every log-probability here is made up and small in number."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from core.distillation.losses import LOG_ZERO
from core.distillation.token_bytes import TokenBytes
from core.errors import RequestRejected, TeacherError, TeacherUnavailable, TransientError
from core.teachers.protocol import Usage
from core.teachers.scorer import ScoreRequest
from core.teachers.scoring_wire import Echo, Fireworks, Scored, Sglang, Told, Vllm, Wire
from core.teachers.teacher_tokens import TeacherTokens
from tests.support.tokenizers import small_tokenizer

PIECES = ("the", "Ġcat", "Ġsat", "Ġon", "é")
"""Numbers 0 to 4; the first text is "the cat sat on", its completion the last two."""
TEXT = ScoreRequest([0, 1], [2, 3])
OTHER = ScoreRequest([0], [1])


def names_of(*pieces: str, bos: str | None = None, **more: Any) -> TeacherTokens:
    special = ("<eos>",) if bos is None else (bos, "<eos>")
    tokenizer = small_tokenizer(*pieces, special=special, **more)
    place = None if bos is None else tokenizer.convert_tokens_to_ids(bos)
    return TeacherTokens(TokenBytes(tokenizer), tokenizer.get_vocab(), place)


NAMES = names_of(*PIECES)


def told(wire: Wire, answer: Any, *texts: ScoreRequest, status: int = 200, check: bool = False) -> Told:
    raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return wire.told((status, {}, raw), texts or (TEXT,), check=check)


def scored(wire: Wire, answer: Any, *texts: ScoreRequest, **more: Any) -> Scored:
    [first, *_] = told(wire, answer, *texts, **more).scores
    assert isinstance(first, Scored), first
    return first


def failed(wire: Wire, answer: Any, *texts: ScoreRequest, **more: Any) -> TeacherError:
    [first, *_] = told(wire, answer, *texts, **more).scores
    assert isinstance(first, TeacherError)
    return first


def close(found: Any, *expected: Any) -> bool:
    return bool(np.allclose(found, expected, atol=1e-6))


# ---- vLLM


def entries(**logprobs: float | None) -> dict[str, Any]:
    """t2=-1.0 is token 2."""
    return {name[1:]: {"logprob": value, "rank": 1, "decoded_token": "?"} for name, value in logprobs.items()}


def vllm(*places: Any, **more: Any) -> dict[str, Any]:
    """An answer. places: of the completion TEXT; the prompt's are added."""
    before = [None, entries(t1=-9.0)]
    choice = {"index": 0, "text": "x", "prompt_logprobs": [*before, *places]}
    return {"choices": [choice], "usage": {"prompt_tokens": 4, "completion_tokens": 1}} | more


def test_vllm_is_asked_with_ids_and_one_token_of_answer():
    wire = Vllm(NAMES, 2)
    body = {"model": "m", "prompt": [0, 1, 2, 3], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 2}
    assert wire.body("m", [TEXT], 1.0, check=False) == body
    assert wire.body("m", [TEXT, OTHER], 1.0, check=True)["prompt"] == [[0, 1, 2, 3], [0, 1]]
    assert (wire.path, wire.root) == ("/completions", False)


def test_the_token_that_is_there_is_told_in_or_outside_of_the_top_k():
    # Token 2 is the second one of its place; token 3 comes beside the two most probable ones, which stay two.
    answer = vllm(entries(t2=-1.5, t4=-0.5), entries(t3=-4.0, t1=-0.75, t0=-1.0))
    found = scored(Vllm(NAMES, 2), answer)
    assert close(found.picked, -1.5, -4.0)
    assert found.ids.tolist() == [[4, 2], [1, 0]]
    assert close(found.logprobs, [-0.5, -1.5], [-0.75, -1.0])
    assert (found.picked.dtype, found.ids.dtype, found.logprobs.dtype) == (np.float32, np.int64, np.float32)
    assert told(Vllm(NAMES, 2), answer).usage == Usage(4, 1)


def test_where_fewer_than_k_are_told_a_row_ends_in_nothing():
    found = scored(Vllm(NAMES, 3), vllm(entries(t2=-0.5), entries(t3=-1.0, t1=-2.0)))
    assert found.ids.tolist() == [[2, -1, -1], [3, 1, -1]]
    assert close(found.logprobs, [-0.5, LOG_ZERO, LOG_ZERO], [-1.0, -2.0, LOG_ZERO])


def test_without_a_top_k_only_the_token_that_is_there_is_kept():
    found = scored(Vllm(NAMES, 0), vllm(entries(t2=-0.5), entries(t3=-1.0)))
    assert found.ids.shape == found.logprobs.shape == (2, 0)
    assert close(found.picked, -0.5, -1.0)


def test_an_id_that_no_token_has_is_left_out():
    beyond = {str(NAMES.width): {"logprob": -0.1}, "2": {"logprob": -3.0}}
    assert scored(Vllm(NAMES, 1), vllm(beyond, entries(t3=-1.0))).ids.tolist() == [[2], [3]]


def test_choices_may_come_in_any_order():
    first, second = vllm(entries(t2=-1.0), entries(t3=-2.0))["choices"][0], {"prompt_logprobs": [None, entries(t1=-3)]}
    answer = {"choices": [{**second, "index": 1}, first]}
    one, two = told(Vllm(NAMES, 1), answer, TEXT, OTHER).scores
    assert isinstance(one, Scored)
    assert isinstance(two, Scored)
    assert close(one.picked, -1.0, -2.0)
    assert close(two.picked, -3.0)


def test_what_is_wrong_with_one_text_leaves_the_others():
    answer = vllm(entries(t2=-1.0), entries(t3=-2.0))
    answer["choices"].append({"index": 1, "prompt_logprobs": None})
    one, two = told(Vllm(NAMES, 1), answer, TEXT, OTHER).scores
    assert isinstance(one, Scored)
    assert isinstance(two, RequestRejected)
    assert two.reason == "no_logprobs"


FINE = entries(t3=-1.0)


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        ({"choices": [{"index": 0, "prompt_logprobs": None}]}, "no_logprobs", "no prompt_logprobs"),
        ({"choices": []}, "no_logprobs", "no prompt_logprobs"),
        (vllm(None, FINE), "no_logprobs", "token 0 of the completion has null"),
        (vllm(entries(t2=-1.0), {}), "no_sampled_token", "nothing of token 3, number 1"),
        (vllm(entries(t4=-1.0), FINE), "no_sampled_token", "nothing of token 2, number 0"),
        (vllm(entries(t2=None), FINE), "no_sampled_token", "token 0 of the completion"),
        (vllm(FINE), "other_tokens", "4 tokens were sent, the server tells of 3"),
        (vllm(FINE, FINE, FINE, FINE), "other_tokens", "tells of 6"),
        (vllm(entries(t2=0.5), FINE), "not_logprobs", "0.5 is above 0"),
        (vllm(entries(t2=-0.1, t4=-0.1), FINE), "not_logprobs", "token 0 add up to 1.8097"),
    ],
)
def test_what_no_retry_can_cure_is_rejected_with_its_reason(answer: Any, reason: str, words: str):
    error = failed(Vllm(NAMES, 2), answer)
    assert isinstance(error, RequestRejected)
    assert error.reason == reason
    assert words in str(error)


def test_rounding_above_one_is_taken_back():
    # e^-0.6929 twice is 1.0005: each loses log(1.0005). A single 0.0004 is 0.
    found = scored(Vllm(NAMES, 2), vllm(entries(t2=-0.6929, t4=-0.6929), entries(t3=0.0004)))
    assert np.exp(found.logprobs[0]).sum() == pytest.approx(1.0, abs=1e-6)
    assert found.picked[1] == pytest.approx(0.0, abs=1e-6)


def test_impossible_tokens_are_log_zero_whatever_stands_for_them():
    text = json.dumps(vllm(entries(t2=-9999.0, t4=-0.5), entries(t3=-math.inf, t1=math.nan, t0=-0.25)))
    assert "-Infinity" in text
    assert "NaN" in text
    found = scored(Vllm(NAMES, 3), text.encode())
    assert close(found.picked, LOG_ZERO, LOG_ZERO)
    assert found.ids.tolist() == [[4, 2, -1], [0, 3, -1]]  # of NaN nothing is known
    assert failed(Vllm(NAMES, 1), vllm(entries(t2=math.inf), FINE)).reason == "not_logprobs"
    assert failed(Vllm(NAMES, 1), vllm(entries(t2=math.nan), FINE)).reason == "no_sampled_token"


@pytest.mark.parametrize("wire", [Vllm, Sglang, Echo])
def test_errors_within_a_200_and_bodies_that_are_no_answer(wire: type[Wire]):
    one = wire(NAMES, 1)
    for body, kind, reason in (
        ({"error": {"message": "busy", "code": 500}}, TransientError, "upstream_error"),
        ({"error": {"message": "no such model", "code": 404}}, RequestRejected, "not_found"),
        (b'{"choices": [{"index": 0, "prompt_lo', TransientError, "broken_answer"),
        (b'{"choices": 7, "meta_info": 7, "index": 0}', TeacherError, None),
        (b"<html>gateway</html>", TeacherUnavailable, "not_an_api"),
    ):
        try:
            [error] = told(one, body).scores
        except TeacherError as whole:
            error = whole
        assert isinstance(error, kind)
        assert reason in (None, error.reason)


def test_other_texts_than_the_tokenizer_has_are_noticed():
    def spelt(*texts: str) -> dict[str, Any]:
        ids = (2, 3)
        return vllm(*({str(n): {"logprob": -1.0, "decoded_token": text}} for n, text in zip(ids, texts, strict=True)))

    wire = Vllm(NAMES, 1)
    for texts in ((" sat", " on"), ("sat", "on"), ("Ġsat", "Ġon"), ("", "\ufffd")):
        assert scored(wire, spelt(*texts), check=True)
    error = failed(wire, spelt("ing", "!"), check=True)
    assert error.reason == "other_tokenizer"
    assert "token 2 is 'ing' for the server, and ' sat' for small" in str(error)
    assert scored(wire, spelt("ing", "!"))  # not looked at
    assert scored(wire, spelt(" sat", "!"), check=True)  # a single odd one proves nothing


# ---- SGLang


def sglang(own: list[Any], top: list[Any] | None, **more: Any) -> dict[str, Any]:
    meta = {"prompt_tokens": 4, "completion_tokens": 0, "input_token_logprobs": own, "input_top_logprobs": top}
    return {"text": "", "meta_info": meta | more}


OWN = [[None, 1, None], [-1.5, 2, None], [-4.0, 3, None]]
TOP = [None, [[-0.5, 4, None], [-1.5, 2, None]], [[-0.75, 1, None], [None, 0, None]]]


def test_sglang_is_asked_from_the_last_token_of_the_prompt_on():
    wire = Sglang(NAMES, 2)
    body = wire.body("m", [TEXT], 1.0, check=True)
    assert (wire.path, wire.root) == ("/generate", True)
    assert (body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"]) == ([0, 1, 2, 3], 1, 2)
    assert body["return_text_in_logprobs"] is True
    two = wire.body("m", [TEXT, OTHER], 1.0, check=False)
    assert (two["input_ids"], two["logprob_start_len"]) == ([[0, 1, 2, 3], [0, 1]], [1, 0])


def test_sglang_says_the_same_in_its_own_form():
    answer = told(Sglang(NAMES, 2), sglang(OWN, TOP))
    [found] = answer.scores
    assert isinstance(found, Scored)
    assert close(found.picked, -1.5, -4.0)
    assert found.ids.tolist() == [[4, 2], [1, -1]]
    assert close(found.logprobs, [-0.5, -1.5], [-0.75, LOG_ZERO])
    assert answer.usage == Usage(4, 0)
    one, two = told(Sglang(NAMES, 0), [sglang(OWN, None), sglang([[None, 0], [-1.0, 1]], None)], TEXT, OTHER).scores
    assert isinstance(one, Scored)
    assert isinstance(two, Scored)
    assert close(two.picked, -1.0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (sglang([], TOP), "no_logprobs"),
        (sglang(OWN, None), "no_logprobs"),
        ({"meta_info": {"prompt_tokens": 4}}, "no_logprobs"),
        (sglang([OWN[0], OWN[1], [None, 3, None]], TOP), "no_sampled_token"),
        (sglang([OWN[0], OWN[1], [-1.0, 4, None]], TOP), "other_tokens"),
        (sglang(OWN[2:], TOP), "other_tokens"),
        (sglang([OWN[0], OWN[1], 7], TOP), "broken_answer"),
        (sglang(OWN, [None, [[-0.5]], []]), "broken_answer"),
        (sglang([OWN[0], [-1.5, 2, "x"], [-1.0, 3, "y"]], TOP), "other_tokenizer"),
    ],
)
def test_what_sglang_may_get_wrong(answer: Any, reason: str):
    assert failed(Sglang(NAMES, 2), answer, check=True).reason == reason


# ---- echo


def legacy(tokens: Sequence[str], own: Sequence[float | None], top: Any = None, **more: Any) -> dict[str, Any]:
    logprobs = {
        "tokens": list(tokens),
        "token_logprobs": list(own),
        "top_logprobs": top,
        "text_offset": [0] * len(tokens),
    } | more
    return {"choices": [{"index": 0, "text": "".join(tokens), "logprobs": logprobs}]}


WORDS = ["the", " cat", " sat", " on"]
SAID = [None, -9.0, -1.5, -4.0]
TOPS = [None, {}, {" on": -0.5, " sat": -1.5}, {" cat": -0.75, "é": -1.0, " on": -4.0}]


def test_echo_is_asked_with_text_and_fireworks_with_ids():
    wire = Echo(NAMES, 20)
    body = wire.body("m", [TEXT], 1.0, check=False)
    assert body == {
        "model": "m",
        "prompt": "the cat sat on",
        "max_tokens": 1,
        "temperature": 1.0,
        "echo": True,
        "logprobs": 20,
    }
    assert wire.body("m", [TEXT, OTHER], 1.0, check=False)["prompt"] == ["the cat sat on", "the cat"]
    body = Fireworks(NAMES, 5).body("m", [TEXT], 1.0, check=False)
    assert (body["prompt"], body["logprobs"], body["top_logprobs"]) == ([0, 1, 2, 3], True, 5)
    half = NAMES.table.encode("é".encode()[:1])
    with pytest.raises(RequestRejected, match="half a character"):
        wire.body("m", [ScoreRequest([0], half)], 1.0, check=False)


def test_echo_in_openais_form_with_the_token_that_was_written_behind():
    answer = legacy([*WORDS, "!"], [*SAID, -0.1], [*TOPS, {"!": -0.1}])
    found = scored(Echo(NAMES, 2), answer)
    assert close(found.picked, -1.5, -4.0)
    assert found.ids.tolist() == [[3, 2], [1, 4]]
    assert close(found.logprobs, [-0.5, -1.5], [-0.75, -1.0])


def test_echo_in_togethers_form():
    part = legacy(WORDS, SAID, TOPS)["choices"][0]
    answer = {"prompt": [{"text": "", "logprobs": part["logprobs"]}], "choices": [{"logprobs": {"tokens": ["!"]}}]}
    assert close(scored(Echo(NAMES, 2), answer).picked, -1.5, -4.0)
    ids = legacy(["?"] * 4, SAID, TOPS, token_ids=[0, 1, 2, 3])["choices"][0]["logprobs"]
    assert close(scored(Echo(NAMES, 2), {"prompt": [{"logprobs": ids}]}).picked, -1.5, -4.0)


def test_echo_in_fireworks_form():
    def entry(token: int, logprob: float, top: list[tuple[int, float]]) -> dict[str, Any]:
        named = [{"token": "?", "token_id": place, "logprob": value} for place, value in top]
        return {"token": "?", "token_id": token, "logprob": logprob, "bytes": [63], "top_logprobs": named}

    content = [entry(0, 0.0, []), entry(1, -9.0, []), entry(2, -1.5, [(4, -0.5), (2, -1.5)]), entry(3, -4.0, [(1, -1)])]
    found = scored(Fireworks(NAMES, 2), {"choices": [{"index": 0, "logprobs": {"content": content}}]})
    assert found.ids.tolist() == [[4, 2], [1, -1]]
    assert close(found.picked, -1.5, -4.0)


@pytest.mark.parametrize(
    "written",
    [
        WORDS,
        ["the", "Ġcat", "Ġsat", "Ġon"],  # as the vocabulary has it
        ["token_id:0", "token_id:1", "token_id:2", "token_id:3"],
        ["bytes:\\x74\\x68\\x65", " cat", "bytes:\\x20\\x73\\x61\\x74", " on"],
    ],
)
def test_tokens_under_all_their_names(written: list[str]):
    assert close(scored(Echo(NAMES, 1), legacy(written, SAID)).picked, -1.5, -4.0)


def test_sentencepiece_tokens_and_byte_pieces():
    names = names_of("▁the", "▁cat", "cat", sentencepiece=True, bos="<s>")
    euro = [names.table.encode(bytes([byte]))[0] for byte in "€".encode()]
    assert names.bos is not None
    text = ScoreRequest([names.bos, 0], [1, *euro])
    for tokens in (
        ["<s>", "▁the", "▁cat", "<0xE2>", "<0x82>", "<0xAC>"],
        ["<s>", " the", " cat", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"],
        ["<s>", " the", " cat", "\ufffd", "\ufffd", "\ufffd"],
        ["", " the", " cat", "", "", ""],
        [" the", " cat", "<0xE2>", "<0x82>", "<0xAC>"],  # it tells nothing of any
    ):
        own = [-float(number) for number in range(1, len(tokens) + 1)]
        top = [{"<0xE2>": -2.0, "\ufffd": -0.5, "▁cat": -1.0, " cat": -3.0, "cat": -4.0} for _ in tokens]
        found = scored(Echo(names, 4), legacy(tokens, own, top), text)
        first = len(tokens) - 4
        assert close(found.picked, *own[first:])
        # "▁cat" and " cat" are one token: log(e^-1 + e^-3). What \ufffd stands for, nobody knows.
        assert found.ids.tolist() == [[1, euro[0], 2, -1]] * 4
        assert close(found.logprobs[0], *(math.log(math.exp(-1) + math.exp(-3)), -2.0, -4.0, LOG_ZERO))


def test_a_bos_of_the_servers_own_before_ours_is_another_text():
    names = names_of("▁the", "▁cat", sentencepiece=True, bos="<s>")
    assert names.bos is not None
    doubled = legacy(["<s>", "<s>", " the", " cat"], [None, -9.0, -1.0, -2.0])
    for prompt in ([names.bos, 0], [names.bos, 0, 0, 0]):
        rest = [" the"] * (len(prompt) - 2)
        answer = legacy(["<s>", "<s>", " the", *rest, " cat"], [None, *[-1.0] * (len(prompt) + 1)])
        error = failed(Echo(names, 0), answer, ScoreRequest(prompt, [1]))
        assert (error.reason, "b'<s>' before the text" in str(error)) == ("other_tokens", True)
    # A prompt without one may get one.
    once = legacy(["<s>", " the", " cat"], [None, -9.0, -2.0])
    assert close(scored(Echo(names, 0), once, ScoreRequest([0], [1])).picked, -2.0)
    assert failed(Echo(names, 0), doubled, ScoreRequest([0], [1])).reason == "other_tokens"


def test_a_bos_that_the_tokenizer_writes_itself_is_not_sent():
    tokenizer = small_tokenizer(*PIECES, special=("<s>", "<eos>"))
    bos, vocabulary = tokenizer.convert_tokens_to_ids("<s>"), tokenizer.get_vocab()

    def read(text: str) -> list[int]:
        return [bos, *tokenizer(text, add_special_tokens=False)["input_ids"]]

    adding = Echo(TeacherTokens(TokenBytes(tokenizer), vocabulary, bos, read), 1)
    plain = Echo(TeacherTokens(TokenBytes(tokenizer), vocabulary, bos, lambda text: read(text)[1:]), 1)
    text = ScoreRequest([bos, 0], [1])
    assert adding.body("m", [text], 1.0, check=False)["prompt"] == "the cat"
    assert adding.body("m", [OTHER], 1.0, check=False)["prompt"] == "the cat"
    assert plain.body("m", [text], 1.0, check=False)["prompt"] == "<s>the cat"


def test_a_text_that_reads_as_other_tokens_is_refused_before_it_is_paid_for():
    tokenizer = small_tokenizer(*PIECES)
    names = TeacherTokens(
        TokenBytes(tokenizer),
        tokenizer.get_vocab(),
        None,
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
    )
    pieces = names.table.encode(b"t")
    assert pieces != [0]
    in_pieces = ScoreRequest([1], [place for byte in b"the" for place in names.table.encode(bytes([byte]))])
    Echo(names, 1).check(TEXT)
    with pytest.raises(RequestRejected, match="token ids") as caught:
        Echo(names, 1).check(in_pieces)
    assert (caught.value.reason, caught.value.billed) == ("other_tokens", False)
    for wire in (Vllm(names, 1), Sglang(names, 1), Fireworks(names, 1)):
        wire.check(in_pieces)


def test_a_server_that_ignores_echo_is_told_from_one_with_another_tokenizer():
    error = failed(Echo(NAMES, 1), legacy(["!"], [-0.5]))
    assert (error.reason, "ignores `echo`" in str(error)) == ("no_logprobs", True)
    content = [{"token": "!", "logprob": -0.5, "bytes": [33], "top_logprobs": []}]
    assert failed(Echo(NAMES, 1), {"choices": [{"logprobs": {"content": content}}]}).reason == "no_logprobs"


HUGE = 10**400


@pytest.mark.parametrize(
    ("wire", "answer"),
    [
        (Vllm, vllm({str(2**63): {"logprob": -1.0}, "2": {"logprob": -2.0}}, entries(t3=-1.0))),
        (Vllm, b'{"choices": [{"prompt_logprobs": [null, {"1": {"logprob": -1e999999}}, ' + b"[" * 100_000),
        (Sglang, sglang([[-1, 2], [-1, 3]], [[[-1, 2**70]]] * 2)),
        (Sglang, sglang([[-HUGE, 2], [-1, 3]], [None] * 2)),
        (Echo, {"choices": [{"index": [0], "logprobs": None}]}),
        (Echo, legacy(["the", " cat", " sat", " on"], [None, -1.0, -HUGE, -1.0])),
        (Echo, b"[" * 100_000),
    ],
)
def test_values_that_no_type_can_hold_are_a_broken_answer_and_no_traceback(wire: type[Wire], answer: Any):
    try:
        [error] = told(wire(NAMES, 1), answer).scores
    except TeacherError as whole:
        error = whole
    assert isinstance(error, TransientError)
    assert error.reason == "broken_answer"


def test_odd_values_of_one_text_leave_the_others():
    answer = vllm(entries(t2=-1.0), entries(t3=-2.0))
    answer["choices"].append({"index": 1, "prompt_logprobs": [None, {str(2**63): {"logprob": -1.0}}]})
    one, two = told(Vllm(NAMES, 1), answer, TEXT, OTHER).scores
    assert isinstance(one, Scored)
    assert isinstance(two, TransientError)


def test_a_negative_id_is_no_token():
    odd = {"-7": {"logprob": -0.1}, "2": {"logprob": -3.0}}
    found = scored(Vllm(NAMES, 2), vllm(odd, entries(t3=-1.0)))
    assert found.ids.tolist() == [[2, -1], [3, -1]]


def test_other_tokens_of_the_same_text_are_told_from_another_tokenizer():
    joined = failed(Echo(NAMES, 1), legacy(["the", " cat", " sat on"], [None, -9.0, -1.0]))
    assert joined.reason == "other_tokens"
    assert "token ids" in str(joined)
    other = failed(Echo(NAMES, 1), legacy(["th", "e c", "at", " sat", " on"], [None, -9.0, -1.0, -1.0, -1.0]))
    assert other.reason == "other_tokenizer"
    two = failed(Echo(NAMES, 1), legacy(["x", "y", *WORDS], [None] * 6))
    assert two.reason == "other_tokenizer"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logprobs: None, "no_logprobs"),
        (lambda logprobs: {}, "no_logprobs"),
        (lambda logprobs: logprobs | {"token_logprobs": [None, -9.0, None, -4.0]}, "no_sampled_token"),
        (lambda logprobs: logprobs | {"token_logprobs": [None, -9.0, -9999.0, -4.0]}, "no_sampled_token"),
        (lambda logprobs: logprobs | {"token_logprobs": SAID[:3]}, "broken_answer"),
        (lambda logprobs: logprobs | {"tokens": [7, *WORDS[1:]]}, "broken_answer"),
    ],
)
def test_what_echo_may_get_wrong(change: Callable[[Any], Any], reason: str):
    answer = legacy(WORDS, SAID, TOPS)
    answer["choices"][0]["logprobs"] = change(answer["choices"][0]["logprobs"])
    assert failed(Echo(NAMES, 2), answer).reason == reason
