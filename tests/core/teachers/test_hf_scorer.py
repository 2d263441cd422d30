"""The transformers scorer, on a tiny model that is built here."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from core.errors import RequestRejected, UsageError
from core.teachers.hf_scorer import HfScorer, largest_norm
from core.teachers.scorer import ScoreRequest
from tests.support.tiny_model import make_tiny_model

OPTIONS: dict[str, Any] = {
    "batch_size": 4,
    "dtype": "float32",
    "device_map": "auto",
    "attention": "sdpa",
    "load_in_4bit": False,
    "threads": 1,
}
REQUESTS = [
    ScoreRequest([5, 6, 7], [8, 9]),
    ScoreRequest([10], [11, 12, 13, 14, 15, 16, 17, 18]),
    ScoreRequest(list(range(20, 90)), [3]),
    ScoreRequest([1, 2], []),
    ScoreRequest(list(range(30, 50)), list(range(60, 110))),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def opened(folder: Path, **options: Any) -> HfScorer:
    scorer = HfScorer(str(folder), **{**OPTIONS, **options})
    scorer.prepare(lambda note: None)
    return scorer


@pytest.fixture(scope="module")
def scorer(folder: Path) -> HfScorer:
    return opened(folder)


def logprobs_of(folder: Path, request: ScoreRequest) -> torch.Tensor:
    """(T, V), by the model as transformers runs it: the row before a token predicts it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*request.prompt_ids, *request.completion_ids]])).logits[0]
    return logits[len(request.prompt_ids) - 1 : -1].log_softmax(-1)


def test_row_k_predicts_token_k_of_the_completion_the_first_one_included(scorer: HfScorer, folder: Path):
    request = REQUESTS[1]
    scores = scorer.score([request])[0]
    expected = logprobs_of(folder, request)
    assert scores.hidden is not None
    assert scores.head is not None
    assert scores.hidden.shape == (8, 64)
    assert torch.allclose(scores.head.logits(scores.hidden).log_softmax(-1), expected, atol=1e-5)
    by_hand = expected[torch.arange(8), torch.tensor(request.completion_ids)]
    assert torch.allclose(scores.picked_logprobs, by_hand, atol=1e-5)
    assert scores.picked_logprobs.dtype == torch.float32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_text_has_the_same_scores_alone_and_beside_texts_of_other_lengths(folder: Path, attention: str):
    scorer = opened(folder, attention=attention, batch_size=8)
    together = scorer.score(REQUESTS)
    for request, beside in zip(REQUESTS, together, strict=True):
        alone = scorer.score([request])[0]
        assert torch.allclose(alone.picked_logprobs, beside.picked_logprobs, atol=1e-5)
        if request.completion_ids:
            assert torch.allclose(alone.top(5)[1], beside.top(5)[1], atol=1e-5)


def test_batches_of_any_size_keep_the_order(folder: Path, scorer: HfScorer):
    one_by_one = opened(folder, batch_size=1).score(REQUESTS)
    for request, a, b in zip(REQUESTS, one_by_one, scorer.score(REQUESTS), strict=True):
        assert a.completion_ids == b.completion_ids == tuple(request.completion_ids)
        assert torch.allclose(a.picked_logprobs, b.picked_logprobs, atol=1e-5)


def test_an_empty_completion_has_empty_scores(scorer: HfScorer):
    scores = scorer.score([ScoreRequest([1, 2], [])])[0]
    assert (scores.tokens, scores.picked_logprobs.shape, scores.top(3)[0].shape) == (0, (0,), (0, 3))


def test_only_one_place_of_each_text_goes_through_the_models_own_head(scorer: HfScorer):
    shapes: list[tuple[int, ...]] = []
    hook = scorer._model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: shapes.append(tuple(out.shape))
    )
    scorer.score(REQUESTS[:2])
    hook.remove()
    assert shapes == [(2, 1, scorer.width)]


def test_a_loss_may_keep_the_states_for_its_backward(scorer: HfScorer):
    scores = scorer.score([REQUESTS[0]])[0]
    assert scores.hidden is not None
    student = torch.zeros_like(scores.hidden, requires_grad=True)
    (student * scores.hidden).sum().backward()  # inference tensors would raise
    assert not scores.hidden.requires_grad
    assert not scorer.head.weight.requires_grad


def test_states_keep_the_models_number_format_and_logprobs_are_float32(folder: Path, scorer: HfScorer):
    half = opened(folder, dtype="bfloat16").score([REQUESTS[1]])[0]
    assert half.hidden is not None
    assert half.hidden.dtype == torch.bfloat16
    assert half.picked_logprobs.dtype == torch.float32
    assert (half.picked_logprobs - scorer.score([REQUESTS[1]])[0].picked_logprobs).abs().max() < 0.05


def damaged(folder: Path, target: Path, tensor: str, token: int, value: float) -> Path:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_parameter(tensor)[token] = value
    model.save_pretrained(target)
    for file in folder.glob("*token*"):
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_logits_that_are_not_finite_are_named_by_row_and_position(folder: Path, tmp_path: Path):
    broken = opened(damaged(folder, tmp_path, "model.embed_tokens.weight", 200, float("nan")))
    # Token 200 is number 2 of the completion: it is read before number 3 is predicted.
    bad = ScoreRequest([5, 6], [7, 8, 200, 9, 10])
    with pytest.raises(RequestRejected, match=r"row 1: the teacher's logits for token 3 of the completion are NaN"):
        broken.score([ScoreRequest([5], [6]), bad])
    assert broken.score([ScoreRequest([5, 6], [7, 8, 200])])[0].picked_logprobs.isfinite().all()


def test_output_weights_that_are_not_finite_are_refused_at_the_start(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="not finite"):
        opened(damaged(folder, tmp_path, "lm_head.weight", 200, float("inf")))


def test_doubtful_logits_are_computed_and_refused_only_if_they_overflow(folder: Path):
    scorer = opened(folder)
    scorer._largest = float("inf")  # so that every position looks as if it might overflow, and is computed
    assert scorer.score([REQUESTS[0]])[0].picked_logprobs.isfinite().all()
    scorer.head.weight[3] = 3e38
    with pytest.raises(
        RequestRejected, match=r"row 0: the teacher's logits for token 0 of the completion are NaN.*--dtype"
    ):
        scorer.score([ScoreRequest([5, 6], [7])])


def test_logits_beyond_half_precision_are_no_harm(folder: Path):
    half = opened(folder, dtype="float16")
    half.head.weight[3] = 6e4  # in float16 the logit of token 3 would be infinite; heads compute in float32
    half._largest = largest_norm(half.head, "a model")
    assert half.score([ScoreRequest([5, 6], [7])])[0].picked_logprobs.isfinite().all()


def test_a_text_longer_than_the_context_is_rejected_with_both_lengths(scorer: HfScorer):
    with pytest.raises(RequestRejected, match=r"row 1: the text has 257 tokens .* the context 256\. Shorten"):
        scorer.score([REQUESTS[0], ScoreRequest([1] * 200, [2] * 57)])
    assert scorer.score([ScoreRequest([1] * 200, [2] * 56)])[0].tokens == 56


def test_a_base_model_without_a_chat_template_can_score(tmp_path: Path):
    base = opened(make_tiny_model(tmp_path, template=None))
    assert base.score([REQUESTS[0]])[0].tokens == 2


def test_the_self_test_finds_no_noise_where_there_is_none(scorer: HfScorer):
    noise = scorer.self_test()
    assert noise.tokens > 50
    assert noise.again == 0.0
    assert noise.among_others < 1e-5
    assert noise.kl is not None
    assert noise.kl < 1e-5


def test_batches_shrink_when_the_device_has_no_room_and_a_text_that_is_too_long_alone_is_named(folder: Path):
    """A graphics card with room for 60 places stands in for a real one."""
    scorer = opened(folder, batch_size=8)
    sizes: list[int] = []

    def small(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if kwargs["input_ids"].numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.\nmore")

    hook = scorer._model.register_forward_pre_hook(small, with_kwargs=True)
    short = [ScoreRequest([5] * 20, [n]) for n in range(4)]
    assert [scores.completion_ids for scores in scorer.score(short)] == [(0,), (1,), (2,), (3,)]
    assert sizes == [4, 2, 2]  # 80 places, then 40 and 40
    with pytest.raises(RequestRejected, match=r"row 1: no memory for a text of 70 tokens, even alone: CUDA out of"):
        scorer.score([short[0], ScoreRequest([5] * 60, [6] * 10)])
    hook.remove()


def test_four_bit_weights_need_their_package():
    with pytest.raises(UsageError, match=r"bitsandbytes, which is not installed\. Run: .* -m pip install bitsandbytes"):
        HfScorer("smollm2", **{**OPTIONS, "load_in_4bit": True})


def test_a_closed_scorer_leaves_its_scores_whole(folder: Path):
    scorer = opened(folder)
    scores = scorer.score([REQUESTS[0]])[0]
    scorer.close()
    assert scores.picked_logprobs.shape == (2,)
