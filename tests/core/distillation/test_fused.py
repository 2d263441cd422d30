"""The fused losses of models with one vocabulary: the reference, finite differences, numbers by hand, refusals."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from core.distillation import losses
from core.distillation.fused import fused_cross_entropy, fused_jsd, fused_top_k_tail
from core.distillation.fused_chunks import CHUNK_BYTES, HeadGradients, chunks
from core.distillation.fused_picked import fused_logprobs
from core.distillation.output_head import OutputHead
from core.distillation.terms import LossTerms

BETAS = [0.0, 0.3, 1.0]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Pair:
    """A student and a teacher of one vocabulary, at random: hidden states, output layers, tokens."""

    def __init__(self, rows: int = 19, width: int = 700, dtype: torch.dtype = torch.float64, **head: Any) -> None:
        make = torch.Generator().manual_seed(rows)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype)

        self.hidden = draw(rows, 12).requires_grad_()
        self.weight = draw(width, 12).requires_grad_()
        self.teacher_hidden = draw(rows, 20)
        bias = draw(width).requires_grad_() if head.pop("biased", False) else None
        self.head = OutputHead(self.weight, bias, **head)
        self.teacher_head = OutputHead(draw(width, 20), None, **head)
        self.ids = torch.randint(width, (rows,), generator=make)
        self.inputs = [self.hidden, self.weight] + ([] if bias is None else [bias])

    @property
    def logits(self) -> Tensor:
        return self.head.logits(self.hidden)

    @property
    def teacher_logits(self) -> Tensor:
        return self.teacher_head.logits(self.teacher_hidden)

    def jsd(self, beta: float, temperature: float = 1.0, chunk: int | None = None) -> LossTerms:
        return fused_jsd(self.hidden, self.head, self.teacher_hidden, self.teacher_head, beta, temperature, chunk=chunk)

    def top_k(self, k: int) -> dict[str, Tensor]:
        ids, logprobs = self.top(k)
        return {"teacher_top_ids": ids, "teacher_top_logprobs": logprobs}

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The teacher's k best, with padding in row 3 and a hidden share of the mass."""
        best = torch.log_softmax(self.teacher_logits, -1).topk(k)
        ids = best.indices.clone()
        ids[3, k // 2 :] = -1
        return ids, best.values - 0.3


def same(fused: LossTerms, reference: LossTerms, inputs: list[Tensor], tolerance: float = 1e-9) -> None:
    """Equal values, counts, parts and gradients (relative to their norms)."""
    assert fused.tokens == reference.tokens
    assert fused.parts.keys() == reference.parts.keys()
    for name, part in reference.parts.items():
        assert fused.parts[name].item() == pytest.approx(part.item(), rel=tolerance, abs=tolerance)
    assert fused.total.item() == pytest.approx(reference.total.item(), rel=tolerance, abs=tolerance)
    found = torch.autograd.grad(fused.total * 1.7, inputs, retain_graph=True)  # whatever follows the loss scales it
    expected = torch.autograd.grad(reference.total * 1.7, inputs, retain_graph=True)
    for mine, true in zip(found, expected, strict=True):
        assert mine.dtype == true.dtype
        assert float((mine - true).norm()) <= tolerance * max(1.0, float(true.norm()))


def differences(total: Callable[[], Tensor], tensor: Tensor, step: float = 1e-5) -> Tensor:
    """Central finite differences of a total by every element of a tensor."""
    found = torch.empty_like(tensor)
    with torch.no_grad():
        values, slopes = tensor.view(-1), found.view(-1)
        for place, value in enumerate(values.tolist()):
            values[place] = value + step
            above = total()
            values[place] = value - step
            slopes[place] = (above - total()) / (2 * step)
            values[place] = value
    return found


HEADS = [{}, {"biased": True, "scale": 0.5, "softcap": 5.0}, {"scale": 2.0}]


# --- against the reference ---


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_cross_entropy_is_the_reference(head: dict[str, Any], chunk: int | None):
    pair = Pair(**head)
    same(
        fused_cross_entropy(pair.hidden, pair.head, pair.ids, chunk),
        losses.cross_entropy(pair.logits, pair.ids, None),
        pair.inputs,
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("beta", BETAS)
def test_jsd_is_the_reference(head: dict[str, Any], chunk: int | None, beta: float):
    pair = Pair(**head)
    reference = losses.generalized_jsd(pair.logits, pair.teacher_logits, None, beta, 0.7)
    same(pair.jsd(beta, 0.7, chunk), reference, pair.inputs)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", [1, 9])
def test_top_k_and_tail_is_the_reference(head: dict[str, Any], beta: float, k: int):
    pair = Pair(**head)
    ids, logprobs = pair.top(k)
    reference = losses.top_k_tail(pair.logits, ids, logprobs, None, beta)
    same(fused_top_k_tail(pair.hidden, pair.head, ids, logprobs, beta, chunk=7), reference, pair.inputs)


def test_top_k_of_the_whole_vocabulary_leaves_no_tail():
    pair = Pair(rows=4, width=9)
    best = torch.log_softmax(pair.teacher_logits, -1).topk(9)
    fused = fused_top_k_tail(pair.hidden, pair.head, best.indices, best.values, 0.5)
    reference = losses.generalized_jsd(pair.logits, pair.teacher_logits, None, 0.5)
    assert fused.total.item() == pytest.approx(reference.total.item(), rel=1e-9)


def test_padding_that_points_to_a_picked_id_changes_nothing():
    # Padding is read at column 0, which is also the first pick of the row.
    pair = Pair(rows=4, width=9)
    ids = torch.tensor([[0, -1, 3], [0, 2, -1], [-1, -1, 0], [-1, -1, -1]])
    logprobs = torch.full((4, 3), -2.0, dtype=torch.float64)
    reference = losses.top_k_tail(pair.logits, ids, logprobs, None, 0.5)
    same(fused_top_k_tail(pair.hidden, pair.head, ids, logprobs, 0.5), reference, pair.inputs)


@pytest.mark.parametrize("head", HEADS)
def test_log_probabilities_are_the_reference(head: dict[str, Any]):
    pair = Pair(**head)
    weights = torch.linspace(-1.0, 2.0, len(pair.ids), dtype=torch.float64)
    fused = fused_logprobs(pair.hidden, pair.head, pair.ids, 0.7, chunk=5)
    true = losses.token_logprobs(losses.log_probs(pair.logits, 0.7), pair.ids)
    assert torch.allclose(fused, true, rtol=1e-12)
    found = torch.autograd.grad((fused * weights).sum(), pair.inputs)
    for mine, expected in zip(found, torch.autograd.grad((true * weights).sum(), pair.inputs), strict=True):
        assert torch.allclose(mine, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        lambda pair: fused_cross_entropy(pair.hidden, pair.head, pair.ids, 2),
        *(lambda pair, beta=beta: pair.jsd(beta, 1.3, 2) for beta in BETAS),
        *(
            lambda pair, beta=beta: fused_top_k_tail(pair.hidden, pair.head, **pair.top_k(3), beta=beta)
            for beta in BETAS
        ),
    ],
)
def test_gradients_agree_with_finite_differences(loss: Callable[[Pair], LossTerms]):
    pair = Pair(rows=5, width=11, biased=True, softcap=4.0)
    found = torch.autograd.grad(loss(pair).total, pair.inputs)
    for tensor, gradient in zip(pair.inputs, found, strict=True):
        assert torch.allclose(gradient, differences(lambda: loss(pair).total, tensor), rtol=1e-6, atol=1e-7)


# --- numbers by hand ---


def test_cross_entropy_of_equal_logits_is_the_log_of_the_vocabulary():
    head = OutputHead(torch.zeros(50, 3, requires_grad=True))
    hidden = torch.ones(2, 3, requires_grad=True)
    terms = fused_cross_entropy(hidden, head, torch.tensor([4, 7]))
    assert terms.total.item() == pytest.approx(2 * math.log(50), rel=1e-6)
    terms.total.backward()
    # d / d logit of the token: 1/50 - 1 in one row and 1/50 in the other; the hidden states are ones.
    assert head.weight.grad is not None
    assert head.weight.grad[4].tolist() == pytest.approx([2 / 50 - 1] * 3)
    assert head.weight.grad[5].tolist() == pytest.approx([2 / 50] * 3)


def test_forward_kl_of_a_hand_computed_pair():
    # teacher (.5, .5), student (.75, .25): KL = .5 ln(.5/.75) + .5 ln(.5/.25) = 0.1438; p - q = (.25, -.25)
    head = OutputHead(torch.eye(2, dtype=torch.float64))
    student = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    terms = fused_jsd(student, head, teacher, head, 0.0)
    assert terms.total.item() == pytest.approx(0.143841, abs=1e-6)
    (gradient,) = torch.autograd.grad(terms.total, student)
    assert gradient.tolist() == [pytest.approx([0.25, -0.25])]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_models_lose_nothing_and_are_left_alone(beta: float, dtype: torch.dtype):
    pair = Pair(dtype=dtype)
    terms = fused_jsd(pair.hidden, pair.head, pair.hidden.detach(), pair.head, beta)
    assert abs(terms.total.item()) <= 2e-5
    for gradient in torch.autograd.grad(terms.total, pair.inputs):
        assert gradient.abs().max() <= (1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("beta", BETAS)
def test_logits_that_underflow_have_a_finite_loss_and_gradient(beta: float):
    # Two models, each certain of another token, 300 nats apart: e^-300 is 0 in float32.
    hidden = torch.tensor([[1.0]], requires_grad=True)
    head = OutputHead(torch.tensor([[300.0], [0.0], [0.0]], requires_grad=True))
    terms = fused_jsd(hidden, head, torch.tensor([[1.0]]), OutputHead(torch.tensor([[0.0], [300.0], [0.0]])), beta)
    # The endpoints cost the whole distance, the mixture its largest value, -b ln b - (1-b) ln(1-b) = 0.6109.
    assert terms.total.item() == pytest.approx(300.0 if beta in (0.0, 1.0) else 0.610864, rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(terms.total, [hidden, head.weight]))


# --- chunks, batches, precision ---


def test_parts_of_a_batch_add_up_to_the_batch():
    pair = Pair(rows=10)
    whole = pair.jsd(0.5)
    parts = [
        fused_jsd(pair.hidden[part], pair.head, pair.teacher_hidden[part], pair.teacher_head, 0.5)
        for part in (slice(0, 3), slice(3, 10))
    ]
    same(parts[0] + parts[1], whole, pair.inputs, 1e-12)


def test_buffers_do_not_grow_with_the_rows():
    hidden = torch.zeros(1, 1)
    for floats in (2 * 32000, 3 * 150000, 10**8):
        sizes = {
            rows: max(part.stop - part.start for part in chunks(rows, floats, hidden, None)) for rows in (512, 9999)
        }
        assert sizes[512] == pytest.approx(sizes[9999], rel=0.1)
        assert 4 * floats * sizes[9999] <= max(CHUNK_BYTES, 16 * 4 * floats)


def test_chunks_cover_every_row_once_in_nearly_equal_parts():
    parts = chunks(100, 1, torch.zeros(1, 1), 30)
    assert [part.stop - part.start for part in parts] == [25, 25, 25, 25]
    assert [row for part in parts for row in range(100)[part]] == list(range(100))


def test_a_frozen_output_layer_gets_no_gradient_and_no_memory_for_one():
    pair = Pair()
    expected = torch.autograd.grad(pair.jsd(0.5).total, pair.hidden)[0]
    pair.weight.requires_grad_(False)
    assert HeadGradients(pair.hidden, pair.head, True).weight is None
    pair.jsd(0.5).total.backward()
    assert pair.weight.grad is None
    assert torch.equal(pair.hidden.grad, expected)  # type: ignore[arg-type]


def test_without_autograd_no_gradient_is_formed():
    pair = Pair()
    with torch.no_grad():
        terms = pair.jsd(0.5)
    assert not terms.total.requires_grad
    assert terms.total.item() == pytest.approx(pair.jsd(0.5).total.item(), rel=1e-12)


def test_gradients_can_be_taken_once():
    pair = Pair()
    terms = pair.jsd(0.5)
    terms.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        terms.total.backward()


@pytest.mark.parametrize("beta", BETAS)
def test_half_precision_is_widened_before_anything_is_computed(beta: float):
    pair = Pair(dtype=torch.bfloat16)
    fused = pair.jsd(beta)
    assert fused.total.dtype == torch.float32
    wide = [tensor.detach().float().requires_grad_() for tensor in pair.inputs]
    head = OutputHead(wide[1])
    reference = losses.generalized_jsd(head.logits(wide[0]), pair.teacher_logits, None, beta)
    assert fused.total.item() == pytest.approx(reference.total.item(), rel=1e-5)
    found = torch.autograd.grad(fused.total, pair.inputs)
    for mine, true in zip(found, torch.autograd.grad(reference.total, wide), strict=True):
        assert mine.dtype == torch.bfloat16
        assert float((mine.float() - true).norm()) <= 3e-3 * float(true.norm())  # bfloat16 rounds to 2^-9 = 0.002


def test_autocast_does_not_reach_into_a_fused_loss():
    pair = Pair(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pair.jsd(0.5).total
    assert inside.item() == pair.jsd(0.5).total.item()


@pytest.mark.parametrize("beta", BETAS)
def test_float32_follows_float64(beta: float):
    precise, rough = Pair(), Pair(dtype=torch.float32)
    exact, fused = precise.jsd(beta), rough.jsd(beta)
    assert fused.total.item() == pytest.approx(exact.total.item(), rel=1e-5)
    found = torch.autograd.grad(fused.total, rough.inputs)
    for mine, true in zip(found, torch.autograd.grad(exact.total, precise.inputs), strict=True):
        assert float((mine - true).norm()) <= 1e-4 * float(true.norm())


def test_no_rows_give_zero_and_a_zero_gradient():
    pair = Pair()
    none = slice(0, 0)
    for terms in (
        fused_cross_entropy(pair.hidden[none], pair.head, pair.ids[none]),
        fused_jsd(pair.hidden[none], pair.head, pair.teacher_hidden[none], pair.teacher_head, 0.5),
        fused_top_k_tail(pair.hidden[none], pair.head, pair.top(3)[0][none], pair.top(3)[1][none], 0.5),
    ):
        assert (terms.total.item(), terms.tokens) == (0.0, 0)
        (gradient,) = torch.autograd.grad(terms.mean(), pair.weight)
        assert gradient.abs().max() == 0.0


def test_an_entry_that_the_teacher_excludes_is_let_through():
    bias = torch.zeros(700, dtype=torch.float64)
    bias[5] = -math.inf
    pair = Pair()
    pair.teacher_head = OutputHead(pair.teacher_head.weight, bias)
    same(pair.jsd(0.3), losses.generalized_jsd(pair.logits, pair.teacher_logits, None, 0.3), pair.inputs)


# --- refusals ---


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("beta", BETAS)
def test_a_teacher_that_is_not_finite_is_named_by_row_and_position(value: float, beta: float):
    pair = Pair(rows=9)
    hidden, weight = torch.ones(9, 1, dtype=torch.float64), torch.ones(700, 1, dtype=torch.float64)
    hidden[6], weight[12] = 2.0, value
    hidden[:6] = 0.0 if value == math.inf else 1.0
    teacher = OutputHead(weight)
    with pytest.raises(ValueError, match=r"teacher logits: (nan|inf) in row \d, position 12 of 700"):
        fused_jsd(pair.hidden, pair.head, hidden, teacher, beta, chunk=4)


def test_what_does_not_fit_is_refused():
    pair = Pair()
    other = OutputHead(torch.zeros(30, 20, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"student has 700 logits and the teacher 30"):
        fused_jsd(pair.hidden, pair.head, pair.teacher_hidden, other, 0.5)
    with pytest.raises(ValueError, match=r"19 rows of the student, but 18"):
        fused_jsd(pair.hidden, pair.head, pair.teacher_hidden[1:], pair.teacher_head, 0.5)
    with pytest.raises(ValueError, match=r"beta is 1.5"):
        pair.jsd(1.5)
    with pytest.raises(ValueError, match=r"temperature is 0"):
        pair.jsd(0.5, 0.0)
    with pytest.raises(ValueError, match=r"chunk is 0"):
        pair.jsd(0.5, chunk=0)
    with pytest.raises(ValueError, match=r"hidden states \(19, 12\) do not fit"):
        fused_cross_entropy(pair.hidden, other, pair.ids)
    with pytest.raises(ValueError, match=r"token 2 has id 700"):
        fused_cross_entropy(pair.hidden[:3], pair.head, torch.tensor([0, 1, 700]))
    with pytest.raises(ValueError, match=r"\(19, k\)"):
        fused_top_k_tail(pair.hidden, pair.head, pair.ids, pair.ids, 0.5)


def test_sparse_teachers_that_cannot_be_are_refused():
    pair = Pair(rows=1)
    for ids, logprobs, message in (
        ([[3, 3]], [[-2.0, -2.0]], "top id 3 twice"),
        ([[3, 900]], [[-2.0, -2.0]], "top id 900"),
        ([[3, 4]], [[-0.1, -0.1]], "sum to 1.81"),  # 2 e^-0.1
        ([[3, 4]], [[-1.0, math.nan]], "nan in row 0, position 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fused_top_k_tail(pair.hidden, pair.head, torch.tensor(ids), torch.tensor(logprobs), 0.5)
