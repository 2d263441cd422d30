"""The llama.cpp scorer: its arithmetic, and the real SmolLM2-135M-Instruct that ships in a package."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import RequestRejected, UsageError
from core.teachers.gguf_scorer import GgufScorer, pieces, reduce
from core.teachers.hf_scorer import HfScorer
from core.teachers.locate import locate
from core.teachers.scorer import ScoreRequest, TeacherScores, top_k_kl

ROOT = Path(__file__).resolve().parents[3]

# ---- arithmetic -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 3000), k=st.integers(1, 70), seed=st.integers(0, 10**6))
def test_a_row_is_reduced_as_if_it_were_sorted(width: int, k: int, seed: int):
    k = min(k, width)
    logits = (np.random.default_rng(seed).standard_normal(width) * 5).astype(np.float32)
    logprobs = torch.from_numpy(logits).log_softmax(-1)
    picked = seed % width
    found, ids, top = reduce(logits, picked, k)
    assert found == pytest.approx(logprobs[picked].item(), abs=2e-5)
    expected = logprobs.topk(k)
    assert np.allclose(top, expected.values.numpy(), atol=2e-5)
    assert ids.tolist() == expected.indices.tolist()  # no two of these floats are equal


def test_a_row_of_equal_logits_has_a_top_k_of_different_tokens():
    found, ids, top = reduce(np.full(4096, 3.0, np.float32), 7, 64)
    assert len(set(ids.tolist())) == 64
    # 1 / 4096 = 2^-12, and 12 ln 2 = 8.3178
    assert np.allclose(top, -8.3178, atol=1e-4)
    assert found == pytest.approx(-8.3178, abs=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1000, 4999])
def test_a_row_with_one_broken_logit_is_no_distribution(value: float, place: int):
    logits = np.zeros(5000, np.float32)
    logits[place] = value
    with pytest.raises(FloatingPointError):
        reduce(logits, 3, 64)


def test_a_prompt_is_read_in_large_pieces_and_a_completion_in_small_ones():
    text = list(range(1400))
    found = [(start, stop) for start, stop, _ in pieces(text, 1100, 128)]
    # two of 512 end before position 1100; the piece from 1024 on holds it, and is small
    assert found == [(0, 512), (512, 1024), (1024, 1152), (1152, 1280), (1280, 1400)]
    assert pieces(text, 1100, 128)[2][2] == tuple(range(1024, 1152))
    assert [piece[:2] for piece in pieces(text[:5], 0, 128)] == [(0, 5)]


# ---- the real model ---------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"preferred_quant": "Q4_K_M", "n_gpu_layers": 0, "n_ctx": 2048, "threads": 1}


def opened(model: str = "smollm2", **options: Any) -> GgufScorer:
    scorer = GgufScorer(model, **{**OPTIONS, **options})
    scorer.prepare(lambda note: None)
    return scorer


@pytest.fixture(scope="module")
def scorer() -> Iterator[GgufScorer]:
    made = opened()
    yield made
    made.close()


def prose(scorer: GgufScorer, count: int) -> list[int]:
    return scorer.encode((ROOT / "LICENSE").read_text(encoding="utf-8"))[100 : 100 + count]


def same(a: TeacherScores, b: TeacherScores) -> bool:
    assert a.top_ids is not None
    assert b.top_ids is not None
    return torch.equal(a.picked_logprobs, b.picked_logprobs) and torch.equal(a.top_ids, b.top_ids)


@pytest.mark.gguf
def test_scores_are_those_of_the_rows_before_each_token(scorer: GgufScorer):
    ids = prose(scorer, 200)
    request = ScoreRequest(ids[:20], ids[20:])
    scores = scorer.score([request])[0]
    assert scores.tokens == 180
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    assert scores.top_ids.shape == scores.top_logprobs.shape == (180, 64)
    assert (scores.top_logprobs.diff(dim=1) <= 0).all()
    assert (scores.top_logprobs.exp().sum(1) <= 1 + 1e-5).all()
    # Where the picked token is among the top, it says the same there.
    here = scores.top_ids == torch.tensor(request.completion_ids)[:, None]
    assert torch.equal(scores.top_logprobs[here], scores.picked_logprobs[here.any(1)])
    # Rows that are off by one would hardly know the text: here the right token is mostly among the best five.
    assert here[:, :5].any(1).float().mean() > 0.6
    by_one = scores.top_ids[1:] == torch.tensor(request.completion_ids[:-1])[:, None]
    assert by_one[:, :5].any(1).float().mean() < 0.3


@pytest.mark.gguf
@pytest.mark.slow
def test_the_same_weights_say_the_same_in_llama_cpp_and_in_transformers(capsys: pytest.CaptureFixture[str]):
    """Mean KL at most 0.01 nats on prose; llama.cpp computes with 8-bit activations."""
    ggml = opened(top_k=49152)
    hf = HfScorer(
        "smollm2", batch_size=1, dtype="float32", device_map="auto", attention="sdpa", load_in_4bit=False, threads=1
    )
    hf.prepare(lambda note: None)
    ids = prose(ggml, 160)
    request = ScoreRequest(ids[:8], ids[8:])
    ours, theirs = ggml.score([request])[0], hf.score([request])[0]
    ggml.close()
    assert ours.top_ids is not None
    assert ours.top_logprobs is not None
    assert theirs.hidden is not None
    assert theirs.head is not None
    p = torch.cat(list(theirs.head.logprobs(theirs.hidden))).double()  # (T, V)
    q = torch.empty_like(p).scatter_(1, ours.top_ids, ours.top_logprobs.double())
    forward, backward = (p.exp() * (p - q)).sum(1), (q.exp() * (q - p)).sum(1)
    # As training sees it: the 64 most probable tokens of the GGUF model, and the rest as one.
    at = ours.top_ids[:, :64]
    kept, kept_q = p.gather(1, at), q.gather(1, at)
    rest, rest_q = (1 - kept.exp().sum(1)), (1 - kept_q.exp().sum(1))
    top = (kept.exp() * (kept - kept_q)).sum(1) + rest * (rest / rest_q).log()
    agreement = (p.argmax(1) == q.argmax(1)).double().mean()
    with capsys.disabled():
        print(
            f"\nHF || GGUF {forward.mean():.5f}, GGUF || HF {backward.mean():.5f}, over the top 64 and the rest "
            f"{top.mean():.5f} nats; worst position {forward.max():.4f}; top-1 agreement {agreement:.3f}"
        )
    assert forward.mean() <= 0.01
    assert backward.mean() <= 0.01
    assert 0 <= top.mean() <= forward.mean()
    assert (ours.picked_logprobs - theirs.picked_logprobs).abs().mean() < 0.15


@pytest.mark.gguf
def test_scores_do_not_depend_on_what_was_scored_before(scorer: GgufScorer):
    ids = prose(scorer, 240)
    shared = ids[:150]  # one piece of 128 tokens is kept
    requests = [
        ScoreRequest(shared, ids[150:190]),
        ScoreRequest(shared, ids[200:220]),
        ScoreRequest(ids[5:25], ids[25:30]),
        ScoreRequest(shared, ids[150:190]),
    ]
    together = scorer.score(requests)
    assert same(together[0], together[3])
    fresh = opened()
    assert same(fresh.score([requests[1]])[0], together[1])
    fresh.close()


@pytest.mark.gguf
def test_scores_hardly_depend_on_how_a_text_is_cut(scorer: GgufScorer):
    # Not at all here; but kernels differ from one processor to the next. With flash attention it is 0.003.
    ids = prose(scorer, 140)
    request = ScoreRequest(ids[:20], ids[20:])
    small = opened()
    small._micro_batch = 16
    assert top_k_kl(scorer.score([request])[0], small.score([request])[0], 64).mean() < 1e-3
    small.close()


@pytest.mark.gguf
def test_a_shared_prompt_is_read_once(scorer: GgufScorer):
    ids = prose(scorer, 330)
    scorer.score([ScoreRequest([5], [6])])  # nothing of what follows has been read before
    read: list[int] = []
    fill = scorer._batch.fill

    def counting(tokens: Any, start: int, flagged: int) -> Any:
        read.append(len(tokens))
        return fill(tokens, start, flagged)

    scorer._batch.fill = counting  # pyright: ignore[reportAttributeAccessIssue]
    try:
        scorer.score([ScoreRequest(ids[:300], ids[n : n + 10]) for n in (300, 310, 320)])
    finally:
        del scorer._batch.fill
    # 309 tokens are read in pieces of 128, 128 and 53; row 299 is wanted, so only the last one is read again.
    assert read == [128, 128, 53, 53, 53]


@pytest.mark.gguf
def test_a_context_grows_with_the_texts_up_to_n_ctx_and_no_further(scorer: GgufScorer):
    small = opened(n_ctx=300)
    ids = prose(small, 301)
    short = ScoreRequest(ids[:10], ids[10:30])
    before = small.score([short])[0]
    assert small._context_size == 256
    assert small.score([ScoreRequest(ids[:290], ids[290:300])])[0].tokens == 10
    assert small._context_size == 300
    assert same(small.score([short])[0], before)
    with pytest.raises(
        RequestRejected,
        match=r"row 1: the text has 301 tokens \(290 of prompt, 11 of completion\), the context 300\. Raise --n-ctx",
    ):
        small.score([short, ScoreRequest(ids[:290], ids[290:])])
    small.close()


@pytest.mark.gguf
def test_a_context_of_zero_is_all_that_the_model_has():
    whole = opened(n_ctx=0)
    assert whole.context_tokens == 8192
    whole.close()


@pytest.mark.gguf
def test_an_empty_completion_has_empty_scores_and_strange_tokens_are_named(scorer: GgufScorer):
    assert scorer.score([]) == []
    scores = scorer.score([ScoreRequest([5], [])])[0]
    assert (scores.tokens, scores.picked_logprobs.shape) == (0, (0,))
    assert scorer.score([ScoreRequest([5], [6])])[0].picked_logprobs.shape == (1,)
    with pytest.raises(RequestRejected, match="row 0: token 49152 in the completion, and the model has 0 to 49151"):
        scorer.score([ScoreRequest([5], [49152])])


@pytest.mark.gguf
def test_the_self_test_finds_no_noise_where_there_is_none(scorer: GgufScorer):
    noise = scorer.self_test()
    assert noise.tokens > 50
    assert (noise.again, noise.among_others) == (0.0, 0.0)
    assert noise.kl is not None
    assert noise.kl < 1e-6


@pytest.mark.gguf
def test_the_tokenizer_has_the_models_ids(scorer: GgufScorer):
    text = "The sun, 150 million km away.\n\tdef f(x):  return x  # 太陽 🦀"
    assert scorer.tokenizer(text, add_special_tokens=False)["input_ids"] == scorer.encode(text)
    assert len(scorer.tokenizer) == scorer.width == 49152


@pytest.mark.gguf
def test_broken_weights_are_named_by_row_and_position(tmp_path: Path):
    from gguf import GGUFReader

    file = Path(shutil.copy(locate("smollm2", gguf=True).path, tmp_path / "broken.gguf"))
    reader = GGUFReader(file, "r+")
    norm = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    norm.data[:] = np.nan
    reader.data.flush()
    del reader, norm
    broken = opened(str(file))
    with pytest.raises(RequestRejected, match=r"row 1: the teacher's logits for token 0 of the completion are NaN"):
        broken.score([ScoreRequest([5], []), ScoreRequest([5, 6], [7])])
    broken.close()


@pytest.mark.gguf
def test_a_file_that_is_no_model_is_refused(tmp_path: Path):
    (tmp_path / "torn.gguf").write_bytes(locate("smollm2", gguf=True).path.read_bytes()[:100_000])
    with pytest.raises(UsageError, match=r"llama.cpp cannot load .*torn\.gguf\. Is it a whole GGUF file"):
        opened(str(tmp_path / "torn.gguf"))


@pytest.mark.gguf
def test_closing_twice_does_no_harm():
    scorer = opened()
    scorer.score([ScoreRequest([5], [6])])
    scorer.close()
    scorer.close()


@pytest.mark.gguf
@pytest.mark.slow
def test_memory_stays_below_100_mb_above_the_model():
    command = [sys.executable, "-m", "tests.bench.bench_scorer", "--memory"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8")
    assert 0 < float(done.stdout.split(":")[1].strip(" }\n")) < 100
