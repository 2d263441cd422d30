"""The fused hybrid loss: the reference, finite differences, the largest of what is unmatched, extremes, refusals."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.distillation.alignment import Groups, align
from core.distillation.fused import fused_jsd
from core.distillation.fused_chunks import Buffer
from core.distillation.fused_hybrid import TOP_K, fused_hybrid
from core.distillation.fused_sorted import Rest, _signs_numpy, _signs_torch, exact_l1, top_k_l1
from core.distillation.gold import Merged, gold_hybrid
from core.distillation.losses import sorted_l1
from core.distillation.output_head import OutputHead
from core.distillation.terms import LossTerms
from core.distillation.vocabulary import VocabularyMap
from tests.core.distillation.test_fused import differences, same

BETAS = [0.0, 0.3, 1.0]
HOWS = ["last_token", "span"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vocabulary(width: int, teacher_width: int, matched: int, seed: int = 0) -> VocabularyMap:
    """A map of so many random pairs."""
    choose = np.random.default_rng(seed)
    student = np.sort(choose.choice(width, matched, replace=False))
    teacher = choose.choice(teacher_width, matched, replace=False)
    rest, teacher_rest = np.setdiff1d(np.arange(width), student), np.setdiff1d(np.arange(teacher_width), teacher)
    return VocabularyMap(student, teacher, rest, teacher_rest, width, teacher_width)


class Pair:
    """Two models with vocabularies of their own, and a text of which each has its own tokens."""

    def __init__(
        self,
        ends: Sequence[int] = (2, 5, 6, 9, 10, 14, 15),
        teacher_ends: Sequence[int] = (2, 3, 6, 8, 9, 10, 11, 15),
        width: int = 300,
        teacher_width: int = 260,
        matched: int = 120,
        dtype: torch.dtype = torch.float64,
        **head: Any,
    ) -> None:
        make = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype)

        rows, teacher_rows = len(ends), len(teacher_ends)
        self.groups = align(ends, teacher_ends)
        self.vocabulary = vocabulary(width, teacher_width, matched)
        self.hidden, self.weight = draw(rows, 6).requires_grad_(), draw(width, 6).requires_grad_()
        bias = draw(width).requires_grad_() if head.pop("biased", False) else None
        self.head = OutputHead(self.weight, bias, **head)
        self.teacher_hidden, self.teacher_head = draw(teacher_rows, 9), OutputHead(draw(teacher_width, 9), **head)
        self.ids = torch.randint(width, (rows,), generator=make)
        self.teacher_ids = torch.randint(teacher_width, (teacher_rows,), generator=make)
        self.inputs = [self.hidden, self.weight] + ([] if bias is None else [bias])

    def fused(self, beta: float = 0.5, unmatched_top_k: int | None = None, **options: Any) -> LossTerms:
        return fused_hybrid(
            self.hidden,
            self.head,
            self.ids,
            self.teacher_hidden,
            self.teacher_head,
            self.teacher_ids,
            self.groups,
            self.vocabulary,
            beta,
            unmatched_top_k=unmatched_top_k,
            **options,
        )

    def reference(self, beta: float = 0.5, **options: Any) -> LossTerms:
        return gold_hybrid(
            self.head.logits(self.hidden),
            self.ids,
            self.teacher_head.logits(self.teacher_hidden),
            self.teacher_ids,
            self.groups,
            self.vocabulary,
            beta,
            **options,
        )


# --- against the reference ---


@pytest.mark.parametrize("head", [{}, {"biased": True, "scale": 0.5, "softcap": 5.0}])
@pytest.mark.parametrize("merged", HOWS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_all_columns_are_the_reference(head: dict[str, Any], merged: str, beta: float, chunk: int | None):
    pair = Pair(**head)
    assert not pair.groups.is_single.all()
    options: dict[str, Any] = {"temperature": 0.7, "merged": merged}
    same(pair.fused(beta, chunk=chunk, **options), pair.reference(beta, **options), pair.inputs)


@pytest.mark.parametrize("merged", HOWS)
@pytest.mark.parametrize("beta", BETAS)
def test_a_k_that_covers_the_longer_side_is_the_reference(merged: str, beta: float):
    pair = Pair()
    same(pair.fused(beta, 180, merged=merged), pair.reference(beta, merged=merged), pair.inputs)


@pytest.mark.parametrize("matched", [1, 260])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("top_k", [None, 300])
def test_nearly_disjoint_and_contained_vocabularies_are_the_reference(matched: int, beta: float, top_k: int | None):
    pair = Pair(matched=matched)
    same(pair.fused(beta, top_k), pair.reference(beta), pair.inputs)


def test_weights_are_the_reference():
    pair = Pair()
    same(pair.fused(weights=(0.4, 1.3)), pair.reference(weights=(0.4, 1.3)), pair.inputs)


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize(
    ("beta", "merged"), [(0.0, "last_token"), (0.4, "last_token"), (1.0, "last_token"), (0.4, "span")]
)
def test_gradients_agree_with_finite_differences(beta: float, merged: str, top_k: int | None):
    pair = Pair((1, 3, 4), (2, 3, 4), width=12, teacher_width=11, matched=5, biased=True, softcap=4.0)
    found = torch.autograd.grad(pair.fused(beta, top_k, merged=merged).total, pair.inputs)
    for tensor, gradient in zip(pair.inputs, found, strict=True):
        expected = differences(lambda: pair.fused(beta, top_k, merged=merged).total, tensor)
        assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("merged", HOWS)
def test_float32_follows_float64(beta: float, merged: str):
    precise, rough = Pair(), Pair(dtype=torch.float32)
    exact, fused = precise.fused(beta, merged=merged), rough.fused(beta, merged=merged)
    assert fused.total.item() == pytest.approx(exact.total.item(), rel=1e-5)
    found = torch.autograd.grad(fused.total, rough.inputs)
    for mine, true in zip(found, torch.autograd.grad(exact.total, precise.inputs), strict=True):
        assert float((mine - true).norm()) <= 1e-4 * float(true.norm())


# --- what is unmatched ---


def sides(rows: int = 5, width: int = 90, teacher_width: int = 70) -> tuple[Rest, Tensor, Rest]:
    """Probabilities of which all but every third have no partner, and a scale."""
    make = torch.Generator().manual_seed(1)
    found = []
    for size in (width, teacher_width):
        probs = torch.softmax(2 * torch.randn(size, rows, generator=make, dtype=torch.float64), 0)
        ids = torch.tensor([place for place in range(size) if place % 3])
        found.append(Rest.of(probs, ids, Buffer(100 * rows, probs), 32, True))
    return found[0], torch.linspace(0.2, 1.0, rows, dtype=torch.float64), found[1]


def entries(rest: Rest) -> Tensor:
    return rest.probs[rest.ids].t()


def test_the_largest_are_found_through_the_maxima_of_their_groups():
    for rest in (sides()[0], sides()[2]):
        for k in (1, 5, 40, 200):
            values, ids = rest.largest(k)
            expected = entries(rest).topk(min(k, len(rest.ids))).values.t()
            assert torch.equal(values[: len(expected)], expected)
            assert torch.equal(rest.probs.gather(0, ids[: len(expected)]), expected)
            assert values[len(expected) :].abs().sum() == 0.0


def test_sorted_distance_and_its_signs_by_hand():
    # Student .5 .2 .1, teacher .3 .3: |.5-.3| + |.2-.3| + |.1-0| = .4; signs +, -, +.
    probs = torch.tensor([[0.1], [0.5], [0.2]], dtype=torch.float64)
    teacher = torch.tensor([[0.3], [0.3]], dtype=torch.float64)
    empty = torch.zeros(0, 1, dtype=torch.float64)
    ours = Rest(probs, torch.arange(3), probs.sum(0), empty)
    theirs = Rest(teacher, torch.arange(2), teacher.sum(0), empty)
    found = exact_l1(ours, torch.ones(1, dtype=torch.float64), theirs)
    assert found.loss.tolist() == pytest.approx([0.4])
    assert found.signs.flatten().tolist() == [1, 1, -1]
    assert found.pull.tolist() == pytest.approx([0.1 + 0.5 - 0.2])


def test_the_top_k_form_rises_to_the_whole_distance():
    ours, scale, theirs = sides()
    whole = sorted_l1(entries(ours) * scale.unsqueeze(1), entries(theirs))
    assert torch.allclose(exact_l1(ours, scale, theirs).loss, whole)
    before = torch.zeros_like(whole)
    for k in (1, 2, 4, 8, 16, 32, 60):
        found = top_k_l1(ours, scale, theirs, k).loss
        assert (found <= whole + 1e-12).all()
        assert (found >= before - 1e-12).all()
        before = found
    assert torch.allclose(before, whole)


def test_an_accelerator_sorts_to_the_same():
    ours, scale, theirs = sides()
    for first, second in ((ours, theirs), (theirs, ours)):
        pair = (entries(first) * scale.unsqueeze(1)).contiguous(), entries(second).contiguous()
        loss, signs = _signs_torch(*pair)
        other_loss, other_signs = _signs_numpy(pair[0], pair[1].clone())
        assert torch.allclose(loss, other_loss)
        assert torch.equal(signs, other_signs)


# --- extremes ---


@pytest.mark.parametrize("merged", HOWS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("top_k", [None, 8])
def test_two_copies_of_one_model_and_tokenizer_lose_nothing(merged: str, beta: float, top_k: int | None):
    pair = Pair(teacher_ends=(2, 5, 6, 9, 10, 14, 15), teacher_width=300)
    pair.teacher_hidden, pair.teacher_head, pair.teacher_ids = pair.hidden.detach(), pair.head, pair.ids
    every = np.arange(300)
    pair.vocabulary = VocabularyMap(every[::2], every[::2], every[1::2], every[1::2], 300, 300)
    terms = pair.fused(beta, top_k, merged=merged)
    assert abs(terms.total.item()) <= 1e-12
    for gradient in torch.autograd.grad(terms.total, pair.inputs):
        assert gradient.abs().max() <= 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_one_tokenizer_on_both_sides_is_the_loss_of_one_vocabulary(beta: float):
    pair = Pair(teacher_ends=(2, 5, 6, 9, 10, 14, 15), teacher_width=300)
    every, none = np.arange(300), np.arange(0)
    pair.vocabulary = VocabularyMap(every, every, none, none, 300, 300)
    terms = pair.fused(beta)
    plain = fused_jsd(pair.hidden, pair.head, pair.teacher_hidden, pair.teacher_head, beta)
    assert terms.parts["unmatched"].item() == 0.0
    same(replace(terms, parts={}), replace(plain, parts={}), pair.inputs)


def test_vocabularies_without_overlap_still_have_the_sorted_distance():
    pair = Pair()
    every, none = np.arange(300), np.arange(0)
    pair.vocabulary = VocabularyMap(none, none, every, every[:260], 300, 260)
    terms, reference = pair.fused(merged="span"), pair.reference(merged="span")
    assert terms.parts["unmatched"].item() == pytest.approx(reference.parts["unmatched"].item())
    assert terms.total.item() == pytest.approx(reference.total.item())


def test_no_text_gives_zero_and_a_zero_gradient():
    pair = Pair()
    none = np.zeros(0, np.int64)
    pair.groups = Groups(none, none, 0)
    pair.inputs[0] = pair.hidden = torch.zeros(0, 6, dtype=torch.float64, requires_grad=True)
    pair.teacher_hidden, pair.ids, pair.teacher_ids = pair.teacher_hidden[:0], pair.ids[:0], pair.teacher_ids[:0]
    for merged in HOWS:
        terms = pair.fused(merged=merged)
        assert (terms.total.item(), terms.tokens) == (0.0, 0)
        assert torch.autograd.grad(terms.mean(), pair.weight)[0].abs().max() == 0.0


def test_one_group_of_everything_is_its_last_row():
    pair = Pair(ends=(1, 2, 4), teacher_ends=(3, 4))
    assert pair.groups.count == 1
    same(pair.fused(), pair.reference(), pair.inputs)
    spans = pair.fused(merged="span")
    same(spans, pair.reference(merged="span"), pair.inputs)
    assert spans.parts["matched"].item() == 0.0


@pytest.mark.parametrize("merged", HOWS)
def test_completions_behind_one_another_add_up(merged: Merged):
    pair = Pair()
    whole = pair.fused(merged=merged)
    cut, teacher_cut = 3, 3  # both sides end at byte 6, after two groups
    parts = []
    for rows, teacher_rows in ((slice(0, cut), slice(0, teacher_cut)), (slice(cut, 99), slice(teacher_cut, 99))):
        student, teacher = pair.groups.student[rows], pair.groups.teacher[teacher_rows]
        groups = Groups(student - student[0], teacher - teacher[0], int(student[-1] - student[0]) + 1)
        parts.append(
            fused_hybrid(
                pair.hidden[rows],
                pair.head,
                pair.ids[rows],
                pair.teacher_hidden[teacher_rows],
                pair.teacher_head,
                pair.teacher_ids[teacher_rows],
                groups,
                pair.vocabulary,
                0.5,
                merged=merged,
                unmatched_top_k=None,
            )
        )
    same(parts[0] + parts[1], whole, pair.inputs, 1e-12)


def test_a_frozen_output_layer_gets_no_gradient():
    pair = Pair()
    expected = torch.autograd.grad(pair.fused().total, pair.hidden)[0]
    pair.weight.requires_grad_(False)
    pair.fused().total.backward()
    assert pair.weight.grad is None
    assert torch.equal(pair.hidden.grad, expected)  # type: ignore[arg-type]


def test_every_token_of_a_group_is_trained():
    pair = Pair()
    for merged in HOWS:
        gradient = torch.autograd.grad(pair.fused(merged=merged).total, pair.hidden)[0]
        assert (gradient.abs().sum(1) > 0).all()


# --- refusals ---


def test_a_teacher_that_is_not_finite_is_named_by_row_and_position():
    pair = Pair()
    for row in (1, 7):  # one in the middle of a group, one at its end
        broken = pair.teacher_hidden.clone()
        broken[row] = math.nan
        pair.teacher_hidden, kept = broken, pair.teacher_hidden
        with pytest.raises(ValueError, match=rf"teacher logits: nan in row {row}, position 0 of 260"):
            pair.fused(chunk=2)
        pair.teacher_hidden = kept


def test_what_does_not_fit_is_refused():
    pair = Pair()
    with pytest.raises(ValueError, match=r"weights are \(-1, 0\)"):
        pair.fused(weights=(-1, 0))
    with pytest.raises(ValueError, match=r"merged is 'first'"):
        pair.fused(merged="first")
    with pytest.raises(ValueError, match=r"unmatched_top_k is 0"):
        pair.fused(unmatched_top_k=0)
    with pytest.raises(ValueError, match=r"beta is -0.1"):
        pair.fused(-0.1)
    pair.groups = Groups(pair.groups.student[:-1], pair.groups.teacher, pair.groups.count)
    with pytest.raises(ValueError, match=r"7 student rows, but group indices \(6,\)"):
        pair.fused()
    pair = Pair()
    pair.groups = replace(pair.groups, count=9)
    with pytest.raises(ValueError, match=r"student's tokens do not lie in groups 0 to 8"):
        pair.fused()
    pair = Pair()
    pair.vocabulary = vocabulary(300, 261, 120)
    with pytest.raises(ValueError, match=r"300 student and 261 teacher columns, the models have 300 and 260"):
        pair.fused()


# --- real models ---


@pytest.mark.slow
@pytest.mark.parametrize("merged", HOWS)
def test_the_largest_unmatched_columns_are_enough_on_real_logits(merged: Merged):
    """SmolLM2 teaches itself in GPT-2's vocabulary: its embedding of a GPT-2 token is the mean of its own tokens'."""
    from transformers import AutoModelForCausalLM

    from core.distillation.vocabulary import build
    from core.errors import UsageError
    from tests.support.tokenizers import LOGITS, real_bytes, tokenizer_folder

    model: Any = AutoModelForCausalLM.from_pretrained(tokenizer_folder("smollm2"), dtype=torch.float32)
    own, other = real_bytes("gpt2"), real_bytes("smollm2")
    text = (
        "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. In 1779 Jan Ingenhousz found that "
        "plants need sunlight for it: submerged leaves gave off bubbles by day, and none at night. The reaction runs "
        "in chloroplasts, whose chlorophyll absorbs mostly blue and red light, which is why leaves look green."
    )
    ids = own.encode(text.encode())
    teacher_ids = other.encode(text.encode())
    embeddings = model.get_input_embeddings().weight.detach()
    torch.manual_seed(0)
    # A little noise: tokens that nothing tells apart would tie, and which of them ranks first is then arbitrary.
    weight = 0.02 * embeddings.std(0) * torch.randn(LOGITS["gpt2"], embeddings.shape[1])
    for place, piece in enumerate(own.pieces):
        try:
            weight[place] += embeddings[other.encode(piece)].mean(0)
        except UsageError:  # a byte that SmolLM2 has no token for
            weight[place] += embeddings.mean(0)
    with torch.no_grad():
        first = embeddings[:1]
        student = model.model(inputs_embeds=torch.cat([first, weight[ids]]).unsqueeze(0)).last_hidden_state[0, :-1]
        teacher = model.model(torch.tensor([[0, *teacher_ids]])).last_hidden_state[0, :-1]
    student, weight = student.clone().requires_grad_(), weight.requires_grad_()
    losses = []
    for top_k in (None, TOP_K):
        losses.append(
            fused_hybrid(
                student,
                OutputHead(weight),
                torch.tensor(ids),
                teacher,
                OutputHead(model.lm_head.weight.detach()),
                torch.tensor(teacher_ids),
                align(own.ends(ids), other.ends(teacher_ids)),
                build(own, other, LOGITS["gpt2"], LOGITS["smollm2"]),
                0.5,
                merged=merged,
                unmatched_top_k=top_k,
            )
        )
    exact, rough = losses
    assert rough.total.item() == pytest.approx(exact.total.item(), rel=0.01)
    expected = torch.autograd.grad(exact.total, [student, weight])
    for mine, true in zip(torch.autograd.grad(rough.total, [student, weight]), expected, strict=True):
        assert float((mine - true).norm()) <= 0.01 * float(true.norm())
