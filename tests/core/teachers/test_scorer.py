"""What all scorers share: who can score, what scores say, what is refused."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.commands.teacher import TeacherOptions
from core.distillation import output_head
from core.distillation.output_head import OutputHead
from core.errors import ModelNotFound, RequestRejected, UsageError
from core.teachers import scorer as scorer_module
from core.teachers.scorer import (
    Noise,
    ScoreRequest,
    TeacherScores,
    check_requests,
    measure_noise,
    not_finite,
    open_scorer,
    top_k_kl,
)
from tests.support.tiny_model import make_tiny_model


def options(**values: Any) -> TeacherOptions:
    return TeacherOptions.model_construct(**{**TeacherOptions.model_validate({}).model_dump(), **values})


# ---- who can score ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "served"),
    [
        ({"model": "anthropic/claude-sonnet-4"}, "through openrouter"),
        ({"model": "gpt-4o"}, "through openai"),
        ({"model": "x", "backend": "nvidia"}, "through nvidia"),
        ({"model": "x", "base_url": "http://127.0.0.1:1/v1"}, "through the server at http://127.0.0.1:1/v1"),
    ],
)
def test_a_server_is_no_scorer_on_this_machine(values: dict[str, Any], served: str):
    with pytest.raises(UsageError) as caught:
        open_scorer(options(**values))
    message = str(caught.value)
    assert message.startswith(f"{values['model']} {served} is no scorer on this machine. ")
    assert "the backends hf and gguf" in message
    assert "train_gold also learns from servers" in message


def test_a_folder_is_opened_with_transformers_and_tells_whole_distributions(tmp_path: Path):
    opened = open_scorer(options(model=str(make_tiny_model(tmp_path))))
    assert (opened.backend, opened.ability) == ("hf", "full")


@pytest.mark.gguf
def test_a_gguf_file_is_opened_with_llama_cpp_and_tells_the_top_k():
    opened = open_scorer(options(model="smollm2", backend="gguf"), top_k=7)
    assert (opened.backend, opened.ability, opened.identity["top_k"]) == ("gguf", "top_k", 7)


def test_a_model_that_is_nowhere_is_named():
    with pytest.raises(ModelNotFound, match=r"no model \./nothing"):
        open_scorer(options(model="./nothing", backend="hf"))


def test_the_refusal_costs_no_heavy_import():
    code = (
        "import sys\nfrom core.commands.teacher import TeacherOptions\nfrom core.teachers.scorer import open_scorer\n"
        "try:\n    open_scorer(TeacherOptions.model_construct(model='gpt-4o', backend=None, base_url=None))\n"
        "except ValueError:\n    print([name for name in ('torch', 'transformers', 'llama_cpp', 'numpy') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"


# ---- what scores say --------------------------------------------------------------------------------------------


def test_a_head_scales_and_caps_as_its_formula_says():
    # W h + b = (1 + 1, 2 - 1) = (2, 1);  times .5 = (1, .5);  2 tanh(z / 2) = (.9242, .4898)
    head = OutputHead(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, -1.0]), scale=0.5, softcap=2.0)
    assert torch.allclose(head.logits(torch.tensor([[1.0]])), torch.tensor([[0.9242, 0.4898]]), atol=1e-4)


def of_logits(logits: torch.Tensor, ids: list[int]) -> TeacherScores:
    """Scores whose hidden states are the logits themselves. logits: (T, V)."""
    return TeacherScores("full", ids, hidden=logits, head=OutputHead(torch.eye(logits.shape[1])))


def test_picked_logprobs_come_from_the_hidden_states():
    # p = (.5, .3, .2) and (.1, .1, .8); token 1, then token 2
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log() + 7.0
    scores = of_logits(logits, [1, 2])
    assert torch.allclose(scores.picked_logprobs, torch.tensor([math.log(0.3), math.log(0.8)]))
    ids, logprobs = scores.top(2)
    assert ids[0].tolist() == [0, 1]
    assert torch.allclose(logprobs[0], torch.tensor([0.5, 0.3]).log())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    logits, ids = torch.randn(7, 5), [0, 1, 2, 3, 4, 0, 1]
    whole = of_logits(logits, ids)
    picked, top = whole.picked_logprobs, whole.top(3)
    monkeypatch.setattr(output_head, "CHUNK_VALUES", 10)  # two rows of five
    pieces = of_logits(logits, ids)
    assert torch.equal(pieces.picked_logprobs, picked)
    assert all(torch.equal(a, b) for a, b in zip(pieces.top(3), top, strict=True))


def test_no_more_is_told_than_is_known():
    sampled = TeacherScores("sampled", [3], picked=torch.tensor([-1.0]))
    assert sampled.picked_logprobs.tolist() == [-1.0]
    with pytest.raises(ValueError, match='ability "sampled" hold no hidden states'):
        sampled.top(1)
    two = TeacherScores("top_k", [3], torch.tensor([-1.0]), torch.tensor([[3, 4]]), torch.tensor([[-1.0, -2.0]]))
    assert two.top(1)[0].tolist() == [[3]]
    with pytest.raises(ValueError, match="the 3 most probable tokens are wanted, 2 are known"):
        two.top(3)


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (ScoreRequest([], [1]), "row 1: an empty prompt, so nothing predicts the first token"),
        (
            ScoreRequest([1] * 6, [1] * 5),
            r"row 1: the text has 11 tokens \(6 of prompt, 5 of completion\), the context 10\. Raise it\.",
        ),
        (ScoreRequest([1], [2, 8]), "row 1: token 8 in the completion, and the model has 0 to 7"),
        (ScoreRequest([-1], [2]), "row 1: token -1 in the prompt"),
    ],
)
def test_a_text_that_cannot_be_scored_is_named_by_its_row(request_: ScoreRequest, says: str):
    good = ScoreRequest([1] * 5, [7] * 5)  # exactly the context
    check_requests([good], 8, 10, "Raise it.")
    with pytest.raises(RequestRejected, match=says):
        check_requests([good, request_], 8, 10, "Raise it.")


def test_broken_logits_are_named_by_row_and_position():
    assert str(not_finite(2, 5, math.nan, "So?")).startswith(
        "row 2: the teacher's logits for token 5 of the completion"
    )
    assert "are NaN. So?" in str(not_finite(2, 5, math.nan, "So?"))
    assert "are infinite." in str(not_finite(2, 5, -math.inf, ""))


# ---- noise ------------------------------------------------------------------------------------------------------


def test_kl_over_the_shared_top_k_and_the_rest():
    # ours (.5, .3, .2), theirs (.4, .4, .2), both top 2 = {0, 1}, the rest .2 on both sides:
    # .5 ln(.5/.4) + .3 ln(.3/.4) + 0 = .1116 - .0863 = .0253
    ours, theirs = (of_logits(torch.tensor([p]).log(), [0]) for p in ([0.5, 0.3, 0.2], [0.4, 0.4, 0.2]))
    assert math.isclose(top_k_kl(ours, theirs, 2).item(), 0.02527, abs_tol=1e-5)
    # theirs (.4, .2, .4): top 2 = {0, 2} shares only 0:  .5 ln(.5/.4) + .5 ln(.5/.6) = .1116 - .0912 = .0204
    theirs = of_logits(torch.tensor([[0.4, 0.2, 0.4]]).log(), [0])
    assert math.isclose(top_k_kl(ours, theirs, 2).item(), 0.02041, abs_tol=1e-5)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 8))
def test_the_coarse_kl_never_exceeds_the_kl_and_is_zero_of_itself(seed: int, k: int):
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(3, 8, generator=generator) * 2 for _ in range(2))
    kl = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).double()
    coarse = top_k_kl(of_logits(p, [0] * 3), of_logits(q, [0] * 3), k)
    assert (coarse >= 0).all()
    assert (coarse <= kl + 1e-5).all()
    assert top_k_kl(of_logits(p, [0] * 3), of_logits(p, [0] * 3), k).max() < 1e-5


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


def test_the_self_test_reports_how_much_two_runs_differ():
    runs = iter([0.0, 0.25, 0.5])

    def score(batch: Any) -> list[TeacherScores]:
        shift = next(runs)
        return [
            TeacherScores("sampled", r.completion_ids, torch.full((len(r.completion_ids),), -1 - shift)) for r in batch
        ]

    noise = measure_noise(score, bytes_of, 100)
    prompt = bytes_of(scorer_module.KNOWN[0])
    assert noise == Noise(100 - len(prompt), again=0.25, among_others=0.5, kl=None)
    assert "changes a log-probability by 0.25 nats at most, beside other texts by 0.5" in str(noise)


@pytest.mark.parametrize(
    ("cut", "value", "says"),
    [(1, -1.0, "log-probabilities of shape"), (0, math.nan, "no log-probabilities"), (0, 0.5, "no log-probabilities")],
)
def test_the_self_test_refuses_what_is_no_log_probabilities(cut: int, value: float, says: str):
    def score(batch: Any) -> list[TeacherScores]:
        return [
            TeacherScores("sampled", r.completion_ids, torch.full((len(r.completion_ids) - cut,), value)) for r in batch
        ]

    with pytest.raises(UsageError, match=says):
        measure_noise(score, bytes_of, None)
