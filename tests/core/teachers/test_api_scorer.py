"""The scorer over HTTP: a real tiny model behind vLLM's, SGLang's and echo's formats, and servers that misbehave."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from core.commands.teacher import TeacherOptions
from core.data.stop import Stop
from core.errors import RequestRejected, StoppedEarly, TeacherError, TransientError, UsageError
from core.teachers.api_scorer import ApiScorer
from core.teachers.hf_scorer import HfScorer
from core.teachers.remote import Remote, open_remote
from core.teachers.scorer import ScoreRequest, TeacherScores
from tests.support.running import KEY, Received, Reply, small_server
from tests.support.scoring_server import Running, scoring_server
from tests.support.tiny_model import make_tiny_model

BACKENDS = {"vllm": "vllm", "sglang": "sglang", "fireworks": "fireworks", "together": "together"}
"""Dialect of the server -> name of the backend."""
TOP_K = 8


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    with scoring_server(folder, max_logprobs=20, retry_after_s=0.01) as server:
        yield server


@pytest.fixture
def server(running: Running) -> Running:
    running.config(dialect="vllm", faults={}, noise=0.0, prompt_price=0.0, completion_price=0.0)
    return running


@pytest.fixture(scope="module")
def here(folder: Path) -> HfScorer:
    scorer = HfScorer(
        str(folder),
        batch_size=4,
        dtype="float32",
        device_map="cpu",
        attention="sdpa",
        load_in_4bit=False,
        threads=1,
    )
    scorer.prepare(lambda note: None)
    return scorer


@contextmanager
def remote_of(url: str, backend: str = "vllm", cache: Path | None = None, **options: Any) -> Iterator[Remote]:
    given = {"model": "scoring/model", "backend": backend, "base_url": url, "concurrency": 4, "retries": 3}
    remote = open_remote(TeacherOptions.model_validate(given | options), Stop(), cache=cache, note=lambda note: None)
    try:
        yield remote
    finally:
        remote.close()


def scorer_of(remote: Remote, folder: Path, top_k: int = TOP_K, **more: Any) -> ApiScorer:
    scorer = ApiScorer(remote, top_k=top_k, tokenizer=str(folder), **more)
    scorer.prepare(lambda note: None)
    return scorer


def requests_of(here: HfScorer) -> list[ScoreRequest]:
    def ids(text: str) -> list[int]:
        return here.tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    answers = ("The capital of France is Paris.<|im_end|>", "Explain photosynthesis", "Paris", "The naïve 太陽")
    return [ScoreRequest(ids(prompt), ids(answer)) for answer in answers]


def same_bits(first: TeacherScores, second: TeacherScores) -> bool:
    assert first.top_ids is not None
    assert second.top_ids is not None
    assert first.top_logprobs is not None
    assert second.top_logprobs is not None
    return (
        torch.equal(first.picked_logprobs, second.picked_logprobs)
        and torch.equal(first.top_ids, second.top_ids)
        and torch.equal(first.top_logprobs, second.top_logprobs)
    )


def near(scores: Any, exact: TeacherScores) -> bool:
    assert isinstance(scores, TeacherScores), scores
    return bool((scores.picked_logprobs - exact.picked_logprobs).abs().max() < 1e-4)


# ---- what it tells


@pytest.mark.parametrize("dialect", BACKENDS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_tells_what_the_model_says(folder: Path, here: HfScorer, server: Running, dialect: str, batch_size: int):
    server.config(dialect=dialect)
    requests = requests_of(here)
    with remote_of(server.url, BACKENDS[dialect]) as remote:
        before = server.stats()["requests"]
        scorer = scorer_of(remote, folder, batch_size=batch_size)
        scores = scorer.score([*requests, ScoreRequest(requests[0].prompt_ids, [])])
        assert server.stats()["requests"] - before == -(-len(requests) // batch_size)
    for one, exact in zip(scores, here.score(requests), strict=False):
        assert near(one, exact)
        assert one.top_ids is not None
        assert one.top_ids.shape == (one.tokens, TOP_K)
        if dialect != "together":  # where parts of characters have one name
            assert torch.equal(one.top_ids, exact.top(TOP_K)[0])
    assert (scores[-1].tokens, scores[-1].top_ids is not None and scores[-1].top_ids.shape) == (0, (0, TOP_K))
    assert (scorer.ability, scorer.width, scorer.context_tokens) == ("top_k", here.width, 255)


def test_without_top_k_it_tells_the_token_that_is_there(folder: Path, here: HfScorer, server: Running):
    requests = requests_of(here)
    for dialect, backend in BACKENDS.items():
        server.config(dialect=dialect)
        with remote_of(server.url, backend) as remote:
            scorer = scorer_of(remote, folder, top_k=0)
            scores = scorer.score(requests)
        assert scorer.ability == "sampled"
        assert all(near(*pair) and pair[0].top_ids is None for pair in zip(scores, here.score(requests), strict=True))


def test_a_provider_that_cannot_score_is_refused_with_those_that_can(server: Running):
    with (
        remote_of(server.url, "openrouter") as remote,
        pytest.raises(UsageError, match="together, fireworks, vllm, sglang"),
    ):
        ApiScorer(remote, top_k=8, tokenizer=None)


def test_a_missing_tokenizer_names_the_option(server: Running):
    with remote_of(server.url) as remote, pytest.raises(UsageError, match="--teacher-tokenizer"):
        ApiScorer(remote, top_k=8, tokenizer="./nowhere").prepare(lambda note: None)


def test_texts_that_can_never_be_scored_are_named_by_row(folder: Path, here: HfScorer, server: Running):
    good = requests_of(here)[0]
    too_long = ScoreRequest(good.prompt_ids, [5] * 256)
    with remote_of(server.url) as remote:
        scorer = scorer_of(remote, folder)
        for bad, reason in ((ScoreRequest([], [5]), "no_prompt"), (too_long, "context_length")):
            with pytest.raises(RequestRejected) as caught:
                scorer.score([good, bad])
            assert (caught.value.reason, caught.value.row) == (reason, 1)
            fine, failed = scorer.score_or_not([good, bad])
            assert isinstance(fine, TeacherScores)
            assert isinstance(failed, RequestRejected)
            assert failed.reason == reason


def test_the_self_test_measures_the_noise_of_replicas(folder: Path, server: Running):
    with remote_of(server.url) as remote:
        scorer = scorer_of(remote, folder)
        assert scorer.self_test().again < 1e-4
        server.config(noise=0.3)
        assert scorer.self_test().again > 0.05


@pytest.mark.parametrize("shift", [0, 1])
def test_the_self_test_refuses_answers_that_belong_to_the_next_token(folder: Path, shift: int):
    # The most probable token of each place is the one that is there, or the one behind it.
    def answer(received: Received) -> Reply:
        if received.method == "GET":
            return Reply()
        prompt = received.json["prompt"]
        choices: list[dict[str, Any]] = []
        for index, ids in enumerate(prompt if isinstance(prompt[0], list) else [prompt]):
            behind = [*ids[1 + shift :], *ids[:shift]]
            places = [
                {str(own): {"logprob": -3.0}, str(best): {"logprob": -0.1}}
                for own, best in zip(ids[1:], behind, strict=True)
            ]
            choices.append({"index": index, "prompt_logprobs": [None, *places]})
        return Reply(body=json.dumps({"choices": choices}).encode())

    with small_server(answer) as server, remote_of(server.url) as remote:
        scorer = scorer_of(remote, folder, batch_size=4)
        if shift:
            with pytest.raises(UsageError, match="belong to the next token"):
                scorer.self_test()
        else:
            assert scorer.self_test().again == 0.0


# ---- faults


@pytest.mark.parametrize("fault", ["rate_limit", "server_error", "overloaded", "drop"])
def test_what_a_retry_cures_is_asked_again(folder: Path, here: HfScorer, server: Running, fault: str):
    server.config(faults={fault: 2})
    requests = requests_of(here)[:2]
    with remote_of(server.url) as remote:
        scores = scorer_of(remote, folder).score(requests)
        assert remote.asker.requests > 2
    assert server.stats()["faults"][fault] >= 1
    assert all(near(*pair) for pair in zip(scores, here.score(requests), strict=True))


REASONS = {
    "null_logprobs": {"no_logprobs"},
    "null_entries": {"no_logprobs", "no_sampled_token"},
    "own_missing": {"no_sampled_token"},
    "wrong_length": {"other_tokens"},
}


@pytest.mark.parametrize("dialect", BACKENDS)
@pytest.mark.parametrize("fault", REASONS)
def test_what_no_retry_cures_is_told_at_once(folder: Path, here: HfScorer, server: Running, dialect: str, fault: str):
    server.config(dialect=dialect, faults={fault: 1})
    request = requests_of(here)[0]
    if (dialect, fault) == ("fireworks", "wrong_length"):
        return  # what is missing there is the token that the server wrote
    with remote_of(server.url, BACKENDS[dialect]) as remote:
        scorer = scorer_of(remote, folder)
        [failed] = scorer.score_or_not([request])
        asked = remote.asker.requests
        with pytest.raises(RequestRejected, match="row 0") as caught:
            scorer.score([request])
    assert asked == 1
    assert isinstance(failed, RequestRejected)
    assert {failed.reason, caught.value.reason} <= REASONS[fault]
    assert caught.value.row == 0


@pytest.mark.parametrize("dialect", BACKENDS)
def test_fewer_than_k_are_taken_as_they_are(folder: Path, here: HfScorer, server: Running, dialect: str):
    server.config(dialect=dialect, faults={"fewer": 1})
    request = requests_of(here)[0]
    with remote_of(server.url, BACKENDS[dialect]) as remote:
        [scores] = scorer_of(remote, folder).score([request])
    [exact] = here.score([request])
    assert near(scores, exact)
    assert scores.top_ids is not None
    kept = (scores.top_ids >= 0).sum(1)
    assert kept.max() <= TOP_K // 2 + 1  # vLLM tells the token that is there beside them
    assert kept.min() >= 1


@pytest.mark.parametrize("dialect", ["together", "fireworks", "sglang"])
@pytest.mark.parametrize("fault", ["as_ids", "as_bytes", "as_pieces", "no_ids"])
def test_every_way_to_write_tokens(folder: Path, here: HfScorer, server: Running, dialect: str, fault: str):
    server.config(dialect=dialect, faults={fault: 1})
    requests = requests_of(here)
    with remote_of(server.url, BACKENDS[dialect]) as remote:
        scores = scorer_of(remote, folder).score(requests)
    for one, exact in zip(scores, here.score(requests), strict=True):
        assert near(one, exact)
        if fault in ("as_ids", "as_bytes"):
            assert torch.equal(one.top(TOP_K)[0], exact.top(TOP_K)[0])


def test_a_cap_on_k_is_told_in_the_servers_words_with_the_option(folder: Path, here: HfScorer, server: Running):
    for dialect, backend in BACKENDS.items():
        server.config(dialect=dialect)
        with remote_of(server.url, backend) as remote:
            scorer = scorer_of(remote, folder, top_k=21, batch_size=2)
            before = remote.asker.requests
            results = scorer.score_or_not(requests_of(here))
            assert remote.asker.requests - before == 2  # and none of them one by one
        for failed in results:
            assert isinstance(failed, RequestRejected)
            assert failed.reason == "top_k_limit"
            assert "of 21, which is greater than max allowed: 20" in str(failed)
            assert "--teacher-top-k (now 21)" in str(failed)


def test_another_tokenizer_is_refused_at_the_first_answer(
    tmp_path: Path, here: HfScorer, folder: Path, server: Running
):
    other = make_tiny_model(tmp_path / "other", corpus="zebra quartz vixen " * 9)
    for dialect in ("vllm", "sglang", "together"):
        server.config(dialect=dialect)
        with remote_of(server.url, BACKENDS[dialect]) as remote:
            scorer = scorer_of(remote, other)
            ids = scorer.tokenizer("zebra quartz vixen zebra", add_special_tokens=False)["input_ids"]
            with pytest.raises(StoppedEarly, match=r"another tokenizer than .*--teacher-tokenizer"):
                scorer.score([ScoreRequest(ids[:2], ids[2:])])


Answer = Callable[[list[int]], Reply]


def vllm_reply(ids: list[int]) -> Reply:
    places = [None, *({str(token): {"logprob": -1.0, "rank": 1}} for token in ids[1:])]
    choice = {"index": 0, "prompt_logprobs": places}
    return Reply(body=json.dumps({"choices": [choice], "usage": {"prompt_tokens": len(ids)}}).encode())


def test_one_bad_text_fails_alone_although_the_server_refuses_all(folder: Path):
    def answer(received: Received) -> Reply:
        if received.method == "GET":
            return Reply()
        prompt = received.json["prompt"]
        many = prompt if isinstance(prompt[0], list) else [prompt]
        if any(7 in ids for ids in many):
            return Reply(400, b'{"error": {"message": "this text is refused", "code": 400}}')
        choices = [json.loads(vllm_reply(ids).body)["choices"][0] | {"index": n} for n, ids in enumerate(many)]
        return Reply(body=json.dumps({"choices": choices}).encode())

    texts = [ScoreRequest([5], [6]), ScoreRequest([5], [7]), ScoreRequest([5], [8]), ScoreRequest([5], [9])]
    with small_server(answer) as server, remote_of(server.url) as remote:
        results = scorer_of(remote, folder, batch_size=4).score_or_not(texts)
        assert len(server.chats) == 1 + 4
    assert [isinstance(result, TeacherScores) for result in results] == [True, False, True, True]
    assert "this text is refused" in str(results[1])


def batches(broken: Callable[[list[list[int]]], bool], seen: list[int]) -> Callable[[Received], Reply]:
    """vLLM, with odd ids for the first text of a request that is `broken`. seen: texts of each request."""

    def answer(received: Received) -> Reply:
        if received.method == "GET":
            return Reply()
        prompt = received.json["prompt"]
        many = prompt if isinstance(prompt[0], list) else [prompt]
        seen.append(len(many))
        choices = [json.loads(vllm_reply(ids).body)["choices"][0] | {"index": n} for n, ids in enumerate(many)]
        if broken(many):
            choices[0]["prompt_logprobs"] = [None, {str(2**63): {"logprob": -1.0}}]
        return Reply(body=json.dumps({"choices": choices}).encode())

    return answer


FOUR = [ScoreRequest([5], [6]), ScoreRequest([5], [7]), ScoreRequest([5], [8]), ScoreRequest([5], [9])]


def test_what_is_broken_of_one_text_among_several_is_asked_once_more(folder: Path):
    seen: list[int] = []
    answer = batches(lambda many: len(many) > 1, seen)
    with small_server(answer) as server, remote_of(server.url) as remote:
        results = scorer_of(remote, folder, batch_size=4).score_or_not(FOUR)
    assert all(isinstance(result, TeacherScores) for result in results)
    assert seen == [4, 1]


def test_texts_are_not_asked_one_by_one_of_a_server_that_fails(folder: Path):
    def answer(received: Received) -> Reply:
        return Reply() if received.method == "GET" else Reply(500, b'{"error": {"message": "out of order"}}')

    with small_server(answer) as server, remote_of(server.url, retries=0) as remote:
        results = scorer_of(remote, folder, batch_size=4).score_or_not(FOUR)
        assert len(server.chats) == 1
    assert all(isinstance(result, TransientError) for result in results)


def test_sglang_is_asked_again_without_texts_where_they_spoil_the_answer(folder: Path):
    spelt: list[bool] = []

    def answer(received: Received) -> Reply:
        if received.method == "GET":
            return Reply()
        asked = received.json
        spelt.append(asked["return_text_in_logprobs"])
        own: list[list[Any]] = [
            [None, asked["input_ids"][0], None],
            *([-1.0, one, None] for one in asked["input_ids"][1:]),
        ]
        own = own[:1] if spelt[-1] else own
        meta = {"prompt_tokens": 3, "input_token_logprobs": own, "input_top_logprobs": [None] * len(own)}
        return Reply(body=json.dumps({"meta_info": meta}).encode())

    texts = [ScoreRequest([5], [6, 7]), ScoreRequest([5], [8, 9])]
    with small_server(answer) as server, remote_of(server.url, "sglang", concurrency=1) as remote:
        results = scorer_of(remote, folder).score_or_not(texts)
    assert all(isinstance(result, TeacherScores) for result in results)
    assert spelt == [True, False, False]


def test_a_text_that_echo_cannot_carry_costs_nothing(folder: Path, here: HfScorer, server: Running):
    server.config(dialect="together")
    fine = requests_of(here)[2]
    spelt = here.tokenizer.backend_tokenizer
    pieces = [spelt.token_to_id(letter) for letter in "Paris"]
    assert pieces != list(fine.completion_ids)
    with remote_of(server.url, "together") as remote:
        good, bad = scorer_of(remote, folder, batch_size=2).score_or_not([fine, ScoreRequest(fine.prompt_ids, pieces)])
        assert remote.asker.requests == 1
    assert isinstance(good, TeacherScores)
    assert isinstance(bad, RequestRejected)
    assert (bad.reason, bad.billed) == ("other_tokens", False)


def test_an_answer_that_is_too_large_says_what_makes_it_so(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("core.teachers.api_client.LONGEST_RESPONSE_BYTES", 1 << 20)

    def answer(received: Received) -> Reply:
        return Reply() if received.method == "GET" else Reply(body=b" " * (2 << 20))

    with small_server(answer) as server, remote_of(server.url) as remote:
        [failed] = scorer_of(remote, folder).score_or_not([ScoreRequest([5], [6, 7])])
    assert isinstance(failed, RequestRejected)
    assert failed.reason == "too_large"
    assert "1 MiB" in str(failed)
    assert f"1 texts of up to 3 tokens, {TOP_K} most probable ones" in str(failed)
    assert "--teacher-top-k" in str(failed)


def test_another_tokenizer_is_another_question(folder: Path, tmp_path: Path):
    other = make_tiny_model(tmp_path / "other", corpus="zebra quartz vixen " * 9)
    cache, text = tmp_path / "scores.sqlite", ScoreRequest([5], [6])
    with (
        small_server(lambda got: Reply() if got.method == "GET" else vllm_reply(got.json["prompt"])) as server,
        remote_of(server.url, cache=cache) as remote,
    ):
        for place, requests in ((folder, 1), (folder, 1), (other, 2)):
            scorer_of(remote, place).score([text])
            assert remote.asker.requests == requests


def test_the_key_stands_in_no_error_and_not_in_the_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)

    def answer(received: Received) -> Reply:
        if received.method == "GET":
            return Reply()
        ids = received.json["prompt"]
        if 7 in ids:
            return Reply(
                400, json.dumps({"error": {"message": f"not for {received.headers['authorization']}"}}).encode()
            )
        return vllm_reply(ids)

    cache = tmp_path / "scores.sqlite"
    with small_server(answer) as server, remote_of(server.url, cache=cache) as remote:
        scorer = scorer_of(remote, folder)
        fine, failed = scorer.score_or_not([ScoreRequest([5], [6]), ScoreRequest([5], [7])])
        assert KEY in server.chats[0].headers["authorization"]
        assert KEY not in json.dumps(scorer.identity)
    assert isinstance(fine, TeacherScores)
    assert "not for Bearer ***" in str(failed)
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


# ---- cache and money


def test_nothing_is_asked_twice_and_what_is_found_has_the_same_bits(
    folder: Path, here: HfScorer, server: Running, tmp_path: Path
):
    requests = requests_of(here)
    twice = [*requests, requests[1], requests[0]]
    cache = tmp_path / "scores.sqlite"
    with remote_of(server.url, cache=cache) as remote:
        first = scorer_of(remote, folder).score(twice)
        assert remote.asker.requests == len(requests)
        assert remote.cache is not None
        assert remote.cache.written == len(requests)
    with remote_of(server.url, cache=cache) as remote:
        scorer = scorer_of(remote, folder)
        second = scorer.score(twice)
        assert remote.asker.requests == 0
        scorer.fresh(requests[:1])  # past the cache
        assert remote.asker.requests == 1
        other = scorer_of(remote, folder, top_k=TOP_K - 1)
        other.score(requests[:1])  # another question
        assert remote.asker.requests == 2
    assert all(same_bits(*pair) for pair in zip(first, second, strict=True))
    assert same_bits(first[1], first[4])
    with remote_of(server.url) as remote:  # keeps nothing
        third = scorer_of(remote, folder).score(requests)
    assert all(same_bits(*pair) for pair in zip(first, third, strict=False))
    assert near(first[0], here.score(requests[:1])[0])


def test_what_had_come_when_the_budget_ended_is_kept(folder: Path, here: HfScorer, server: Running, tmp_path: Path):
    server.config(prompt_price=1e-3, completion_price=0.0)
    requests = requests_of(here)
    price = {"price": "1000/1000", "concurrency": 1}  # USD per million tokens: 0.001 each
    dearest = max(request.tokens + 2 for request in requests) * 1e-3
    cache = tmp_path / "scores.sqlite"
    with remote_of(server.url, cache=cache, max_cost=2.5 * dearest, **price) as remote:
        with pytest.raises(StoppedEarly, match="--max-cost"):
            scorer_of(remote, folder).score(requests)
        paid = remote.asker.requests
        assert 0 < paid < len(requests)
        assert remote.asker.spending.known == pytest.approx(sum(one.tokens for one in requests[:paid]) * 1e-3)
    with remote_of(server.url, cache=cache, **price) as remote:
        scorer_of(remote, folder).score(requests)
        assert remote.asker.requests == len(requests) - paid


def test_a_rejected_answer_is_paid_for(folder: Path, here: HfScorer, server: Running):
    server.config(prompt_price=1e-3, faults={"null_logprobs": 1})
    request = requests_of(here)[0]
    with remote_of(server.url, price="1000/0") as remote:
        [failed] = scorer_of(remote, folder).score_or_not([request])
        assert isinstance(failed, TeacherError)
        assert remote.asker.spending.known == pytest.approx(request.tokens * 1e-3)
