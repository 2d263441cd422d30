"""A teacher with another tokenizer that tells its best tokens alone: numbers by hand, the reference, refusals."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.distillation.alignment import Groups, align
from core.distillation.fused_sparse import fused_sparse
from core.distillation.gold import gold_hybrid, gold_sparse, gold_uld, student_columns
from core.distillation.output_head import OutputHead
from core.distillation.terms import LossTerms
from tests.core.distillation.test_fused import differences, same
from tests.core.distillation.test_fused_hybrid import Pair as Whole
from tests.core.distillation.test_fused_hybrid import vocabulary
from tests.core.distillation.test_gold import FIRST, SECOND, groups, ids, logits
from tests.core.distillation.test_gold import vocabulary as pairs

BETAS = [0.0, 0.3, 1.0]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Pair:
    """A student, and what a teacher with other tokens tells of the same text."""

    def __init__(
        self,
        ends: Sequence[int] = (2, 5, 6, 9, 10, 14, 15),
        teacher_ends: Sequence[int] = (2, 3, 6, 8, 9, 10, 11, 15),
        width: int = 300,
        teacher_width: int = 260,
        matched: int = 120,
        k: int = 9,
    ) -> None:
        make = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=make, dtype=torch.float64)

        self.groups = align(ends, teacher_ends)
        self.vocabulary = vocabulary(width, teacher_width, matched)
        self.hidden, self.weight = draw(len(ends), 6).requires_grad_(), draw(width, 6).requires_grad_()
        self.head = OutputHead(self.weight)
        self.ids = torch.randint(width, (len(ends),), generator=make)
        self.teacher_ids = torch.randint(teacher_width, (len(teacher_ends),), generator=make)
        self.teacher_logits = 2 * draw(len(teacher_ends), teacher_width)
        logprobs = self.teacher_logits.log_softmax(-1)
        self.picked = logprobs.gather(1, self.teacher_ids.unsqueeze(1)).squeeze(1)
        best = logprobs.topk(k)
        self.top_ids, self.top_logprobs = best.indices, best.values
        self.inputs = [self.hidden, self.weight]

    @property
    def told(self) -> tuple[Any, ...]:
        return self.picked, self.top_ids, self.top_logprobs, self.groups, self.vocabulary

    def fused(self, beta: float, chunk: int | None = None) -> LossTerms:
        return fused_sparse(self.hidden, self.head, self.ids, *self.told, beta=beta, chunk=chunk)

    def reference(self, beta: float) -> LossTerms:
        return gold_sparse(self.head.logits(self.hidden), self.ids, *self.told, beta=beta)


# --- by hand ---


def test_a_group_of_one_token_is_compared_by_the_columns_that_are_told_and_have_a_partner():
    # Teacher tells its columns 0 (.6) and 1 (.3); only 0 has a partner, the student's 2 (.2).
    # {.2, .8} against {.6, .4}: .6 ln(.6/.2) + .4 ln(.4/.8) = .6592 - .2773 = .3819
    told = (torch.tensor([0.6]).log(), ids(0, 1).unsqueeze(0), torch.tensor([[0.6, 0.3]]).log())
    terms = gold_sparse(logits(FIRST), ids(2), *told, groups([0], [0]), pairs([(2, 0)], 3, 4), 0.0)
    assert terms.total.item() == pytest.approx(0.3819, abs=1e-4)
    assert (terms.tokens, terms.parts["span"].item()) == (1, 0.0)


def test_any_other_group_is_compared_by_its_bytes():
    # Student .3 * .3 = .09, teacher .6: .6 ln(.6/.09) + .4 ln(.4/.91) = 1.1383 - .3288 = .8095
    told = (torch.tensor([0.6]).log(), ids(0).unsqueeze(0), torch.tensor([[0.6]]).log())
    terms = gold_sparse(logits(FIRST, SECOND), ids(1, 2), *told, groups([0, 0], [0]), pairs([(0, 0)], 3, 2), 0.0)
    assert terms.parts["span"].item() == pytest.approx(0.8095, abs=1e-4)
    assert terms.total.item() == terms.parts["span"].item()


def test_columns_of_the_teacher_become_those_of_the_student():
    # Pairs (student 4, teacher 0) and (student 1, teacher 2).
    found = student_columns(torch.tensor([[0, 1, 2], [2, 3, -1]]), pairs([(1, 2), (4, 0)], 5, 4))
    assert found.tolist() == [[4, -1, 1], [1, -1, -1]]  # -1 is padding


# --- the reference ---


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("matched", [0, 1, 120, 260])
def test_the_chunks_are_the_reference(beta: float, chunk: int | None, matched: int):
    pair = Pair(matched=matched)
    assert pair.groups.is_single.any()
    assert not pair.groups.is_single.all()
    same(pair.fused(beta, chunk), pair.reference(beta), pair.inputs)


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_agree_with_finite_differences(beta: float):
    pair = Pair((1, 3, 4), (2, 3, 4), width=12, teacher_width=11, matched=5, k=4)
    found = torch.autograd.grad(pair.fused(beta).total, pair.inputs)
    for tensor, gradient in zip(pair.inputs, found, strict=True):
        expected = differences(lambda: pair.fused(beta).total, tensor)
        assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("beta", BETAS)
def test_with_every_column_told_it_is_the_matched_part_of_the_hybrid_by_spans(beta: float):
    pair = Pair(k=260)
    gold = gold_hybrid(
        pair.head.logits(pair.hidden), pair.ids, pair.teacher_logits, pair.teacher_ids, pair.groups, pair.vocabulary,
        beta, merged="span",
    )  # fmt: skip
    sparse = pair.fused(beta)
    for name in ("matched", "span"):
        assert sparse.parts[name].item() == pytest.approx(gold.parts[name].item(), rel=1e-7)


@pytest.mark.parametrize("beta", BETAS)
def test_more_tokens_told_show_more_and_never_less_than_nothing(beta: float):
    found = [Pair(k=k).fused(beta).parts["matched"].item() for k in (1, 4, 16, 64, 260)]
    assert found == sorted(found)
    assert found[0] >= 0.0


def test_every_row_is_trained_and_no_text_is_no_loss():
    pair = Pair()
    gradient = torch.autograd.grad(pair.fused(0.0).total, pair.hidden)[0]
    assert (gradient.abs().sum(1) > 1e-9).all()
    none = np.zeros(0, np.int64)
    pair.groups = Groups(none, none, 0)
    pair.hidden, pair.ids, pair.picked = torch.zeros(0, 6, dtype=torch.float64), pair.ids[:0], pair.picked[:0]
    pair.top_ids, pair.top_logprobs = pair.top_ids[:0], pair.top_logprobs[:0]
    terms = pair.fused(0.5)
    assert (terms.total.item(), terms.tokens) == (0.0, 0)


# --- refusals ---


def broken(**parts: Any) -> Callable[[], object]:
    def call() -> object:
        pair = Pair()
        for name, value in parts.items():
            setattr(pair, name, value(getattr(pair, name)))
        return pair.fused(0.5)

    return call


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (broken(hidden=lambda h: h[:-1], ids=lambda i: i[:-1]), "6 rows of the student do not fit 7 aligned tokens"),
        (broken(picked=lambda p: p[:-1]), r"log-probabilities \(7,\), top ids \(8, 9\) .* must be \(8,\)"),
        (broken(top_ids=lambda i: i[:, :-1]), r"top ids \(8, 8\) and their log-probabilities \(8, 9\)"),
        (broken(picked=lambda p: p * math.nan), "teacher log-probabilities: nan in row 0"),
        (broken(vocabulary=lambda v: vocabulary(299, 260, 120)), "map is for 299 student columns, not 300"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()


# --- ULD as the hybrid without pairs ---


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_hybrid_without_pairs_is_uld(temperature: float):
    pair = Whole()
    pair.vocabulary = vocabulary(300, 260, 0)
    terms = pair.fused(0.5, weights=(0.0, 1.0), temperature=temperature)
    teacher = pair.teacher_head.logits(pair.teacher_hidden)
    expected = gold_uld(pair.head.logits(pair.hidden), pair.ids, teacher, pair.teacher_ids, pair.groups, temperature)
    same(LossTerms(terms.total, terms.tokens, {"uld": terms.parts["unmatched"]}), expected, pair.inputs)
