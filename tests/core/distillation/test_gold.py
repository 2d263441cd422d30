"""Losses across tokenizers: numbers worked out by hand, what a group is worth, extremes, and what is refused."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.distillation.alignment import Groups, align
from core.distillation.gold import component_weights, gold_hybrid, gold_uld, merged, span_divergence, span_logprobs
from core.distillation.losses import generalized_jsd
from core.distillation.vocabulary import VocabularyMap

INF, NAN = math.inf, math.nan


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors as small as these only wait for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logits(*rows: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """Logits whose softmax is these probabilities."""
    return torch.tensor(rows, dtype=dtype).log()


def ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.long)


def groups(student: Sequence[int], teacher: Sequence[int]) -> Groups:
    count = student[-1] + 1 if student else 0
    return Groups(np.array(student, np.int64), np.array(teacher, np.int64), count)


def vocabulary(pairs: Sequence[tuple[int, int]], student_width: int, teacher_width: int) -> VocabularyMap:
    student, teacher = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return VocabularyMap(
        np.array(student, np.int64),
        np.array(teacher, np.int64),
        np.array([i for i in range(student_width) if i not in student], np.int64),
        np.array([i for i in range(teacher_width) if i not in teacher], np.int64),
        student_width,
        teacher_width,
    )


FIRST, SECOND = (0.5, 0.3, 0.2), (0.1, 0.6, 0.3)
"""Two rows of a student; its tokens are 1 and 2, with probabilities .3 and .3, both of one group."""


# --- groups ---


def test_a_merged_group_leaves_its_last_token_open():
    # .3 * (.1, .6, .3) = (.03, .18, .09)
    rows = merged(logits(FIRST, SECOND), ids(1, 2), [0, 0]).exp()
    assert rows.tolist() == [pytest.approx([0.03, 0.18, 0.09])]


def test_a_group_of_one_token_is_its_row():
    rows = merged(logits(FIRST, SECOND), ids(1, 2), [0, 1]).exp()
    assert rows.tolist() == [pytest.approx(FIRST), pytest.approx(SECOND)]


def test_three_tokens_by_hand_with_temperature():
    # At temperature .5 a row is squared and normalised: (.5,.5) stays, (.75,.25) -> (.9,.1), (.6,.4) -> (.36,.16)/.52
    rows = logits((0.5, 0.5), (0.75, 0.25), (0.6, 0.4))
    group = merged(rows, ids(0, 1, 0), [0, 0, 0], temperature=0.5).exp()
    assert group.tolist() == [pytest.approx([0.5 * 0.1 * 0.36 / 0.52, 0.5 * 0.1 * 0.16 / 0.52])]


def test_the_log_probability_of_a_span_is_the_sum_of_its_tokens():
    spans = span_logprobs(logits(FIRST, SECOND, FIRST), ids(1, 2, 0), [0, 0, 1])
    assert spans.exp().tolist() == pytest.approx([0.3 * 0.3, 0.5])


def test_a_merged_row_at_the_groups_own_last_token_is_the_span():
    rows, tokens, group = logits(FIRST, SECOND, FIRST), ids(1, 2, 0), [0, 0, 1]
    merged_rows = merged(rows, tokens, group)
    assert merged_rows[[0, 1], [2, 0]].tolist() == pytest.approx(span_logprobs(rows, tokens, group).tolist())


# --- the hybrid, by hand ---


def test_hybrid_of_one_token_by_hand():
    # One pair (0, 0). Matched and rest: student {.5, .5}, teacher {.6, .4}: .6 ln(.6/.5) + .4 ln(.4/.5) = .02014
    # Unmatched: student (.3, .2), teacher (.4): |.3 - .4| + |.2 - 0| = .3. Weights 1/2 and 1/2: .01007 + .15
    terms = gold_hybrid(
        logits(FIRST), ids(0), logits((0.6, 0.4)), ids(0), groups([0], [0]), vocabulary([(0, 0)], 3, 2), beta=0.0
    )
    assert terms.parts["matched"].item() == pytest.approx(0.02014, abs=1e-5)
    assert terms.parts["unmatched"].item() == pytest.approx(0.3)
    assert terms.total.item() == pytest.approx(0.5 * 0.02014 + 0.5 * 0.3, abs=1e-5)
    assert terms.tokens == 1


def test_the_rest_of_a_merged_group_holds_whatever_starts_with_other_tokens():
    # Student: two tokens, .3 * (.1, .6, .3): column 0 .03, all else .97 = (1 - .3) + .3 * (.6 + .3).
    # Teacher: one token, {.6, .4}. .6 ln(.6/.03) + .4 ln(.4/.97) = 1.7974 - .3543 = 1.4431
    # Unmatched: student (.18, .09), teacher (.4): .22 + .09 = .31
    terms = gold_hybrid(
        logits(FIRST, SECOND), ids(1, 2), logits((0.6, 0.4)), ids(0), groups([0, 0], [0]),
        vocabulary([(0, 0)], 3, 2), beta=0.0, weights=(1.0, 2.0),
    )  # fmt: skip
    assert terms.parts["matched"].item() == pytest.approx(1.4431, abs=1e-4)
    assert terms.parts["unmatched"].item() == pytest.approx(0.31)
    assert terms.total.item() == pytest.approx(1.4431 + 0.62, abs=1e-4)


def test_a_span_is_its_bytes_against_anything_else():
    # Student .3 * .3 = .09, teacher .6: .6 ln(.6/.09) + .4 ln(.4/.91) = 1.1383 - .3288 = .8095
    # The second group is compared as ever.
    terms = gold_hybrid(
        logits(FIRST, SECOND, FIRST), ids(1, 2, 0), logits((0.6, 0.4), (0.6, 0.4)), ids(0, 0),
        groups([0, 0, 1], [0, 1]), vocabulary([(0, 0)], 3, 2), beta=0.0, weights=(1.0, 1.0), merged="span",
    )  # fmt: skip
    assert terms.parts["span"].item() == pytest.approx(0.8095, abs=1e-4)
    assert terms.parts["matched"].item() == pytest.approx(0.02014, abs=1e-5)
    assert terms.parts["unmatched"].item() == pytest.approx(0.3)
    assert terms.total.item() == pytest.approx(0.8095 + 0.02014 + 0.3, abs=1e-4)
    assert terms.tokens == 2


def test_a_number_that_one_side_writes_digit_by_digit_keeps_its_mass_as_a_span():
    # Student: "42" is one token, .81. Teacher: "4" .9, then "2" .9, the same belief: .9 * .9 = .81.
    # Columns: student (4, 2, 42), teacher (4, 2, other).
    student, teacher = logits((0.1, 0.09, 0.81)), logits((0.9, 0.05, 0.05), (0.05, 0.9, 0.05))
    same = groups([0], [0, 0])
    words = vocabulary([(0, 0), (1, 1)], 3, 3)

    def loss(how: Any) -> float:
        return gold_hybrid(student, ids(2), teacher, ids(0, 1), same, words, 0.5, merged=how).total.item()

    assert loss("span") == pytest.approx(0.0, abs=1e-15)
    # Column by column the teacher's .81 for "2" (after its "4") meets the student's .09 for "2".
    assert loss("last_token") > 0.3


def test_a_model_defined_on_bytes_has_no_divergence_from_itself_in_other_tokens():
    # The student writes a and b; the teacher aa, ab and b. p(a) = .3 everywhere, so p(aa) = .09, p(ab) = .21.
    # "ab|b|aa": student a b | b | a a.
    student, teacher = logits(*[(0.3, 0.7)] * 5), logits(*[(0.09, 0.21, 0.7)] * 3)
    both = align([1, 2, 3, 4, 5], [2, 3, 5])
    words = vocabulary([(1, 2)], 2, 3)
    for beta in (0.0, 0.5, 1.0):
        terms = gold_hybrid(student, ids(0, 1, 1, 0, 0), teacher, ids(1, 2, 0), both, words, beta, merged="span")
        assert terms.parts["span"].item() == pytest.approx(0.0, abs=1e-12)
        assert terms.parts["matched"].item() == pytest.approx(0.0, abs=1e-12)
        # Sorted L1 cannot see it: student (.3), teacher (.21, .09), at the one group of one token: .09 + .09
        assert terms.parts["unmatched"].item() == pytest.approx(0.18)


def test_uld_over_groups_by_hand():
    # Group 0: student .3 * (.1, .6, .3) sorted (.18, .09, .03), teacher (.6, .4): .42 + .31 + .03 = .76
    # Group 1: student (.5, .3, .2), teacher (.6, .4): .1 + .1 + .2 = .4
    terms = gold_uld(
        logits(FIRST, SECOND, FIRST), ids(1, 2, 0), logits((0.6, 0.4), (0.4, 0.6)), ids(0, 0), groups([0, 0, 1], [0, 1])
    )
    assert terms.total.item() == pytest.approx(1.16)
    assert terms.tokens == 2


# --- edges of the vocabularies and of the text ---


def test_vocabularies_without_overlap_leave_the_sorted_part_alone():
    student, teacher, one = logits(FIRST), logits((0.6, 0.4)), groups([0], [0])
    terms = gold_hybrid(student, ids(0), teacher, ids(0), one, vocabulary([], 3, 2), beta=0.5)
    assert terms.parts["matched"].item() == 0.0
    assert terms.total.item() == pytest.approx(gold_uld(student, ids(0), teacher, ids(0), one).total.item())


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("how", ["last_token", "span"])
def test_equal_vocabularies_and_tokens_are_the_loss_of_one_vocabulary(beta: float, how: Any):
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    order = [3, 1, 4, 0, 2]  # teacher column of each student column
    terms = gold_hybrid(
        student, ids(0, 1, 2, 3), teacher[:, np.argsort(order)], ids(3, 1, 4, 0), groups([0, 1, 2, 3], [0, 1, 2, 3]),
        vocabulary(list(enumerate(order)), 5, 5), beta, temperature=0.7, merged=how,
    )  # fmt: skip
    expected = generalized_jsd(student, teacher, None, beta, temperature=0.7)
    assert terms.total.item() == pytest.approx(expected.total.item())
    assert terms.tokens == expected.tokens


@pytest.mark.parametrize("how", ["last_token", "span"])
def test_an_empty_completion_is_no_token_and_no_loss(how: Any):
    student = torch.zeros(0, 3, requires_grad=True)
    terms = gold_hybrid(
        student, ids(), torch.zeros(0, 2), ids(), groups([], []), vocabulary([(0, 0)], 3, 2), 0.5, merged=how
    )
    terms.mean().backward()
    assert (terms.total.item(), terms.tokens) == (0.0, 0)


def test_the_weights_are_the_matched_share_of_the_teachers_columns_or_as_given():
    words = vocabulary([(0, 0), (1, 1), (2, 2)], 5, 4)
    assert component_weights(None, words) == (0.75, 0.25)
    assert component_weights((0.0, 3.0), words) == (0.0, 3.0)


def test_padding_columns_of_the_logits_belong_to_the_rest():
    padded = torch.cat([logits(FIRST), torch.full((1, 4), -INF, dtype=torch.float64)], -1).requires_grad_()
    terms = gold_hybrid(
        padded, ids(0), logits((0.6, 0.4)), ids(0), groups([0], [0]), vocabulary([(0, 0)], 7, 2), 0.0, (1.0, 1.0)
    )
    terms.total.backward()
    assert terms.total.item() == pytest.approx(0.02014 + 0.3, abs=1e-5)
    assert padded.grad is not None
    assert torch.isfinite(padded.grad).all()
    assert (padded.grad[:, 3:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("how", ["last_token", "span"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_certain_and_impossible_tokens_give_finite_losses_and_gradients(beta: float, how: Any, dtype: torch.dtype):
    rows = [
        [1e30, -1e30, 0.0, 0.0],
        [0.0, -INF, 300.0, -INF],
        [-INF, 0.0, -INF, -INF],
        [0.0, 0.0, 0.0, 0.0],
        [-1e30, 0.0, 50.0, -50.0],
    ]
    for shift in range(5):
        student = torch.tensor(rows, dtype=dtype).requires_grad_()
        teacher = torch.tensor(rows[shift:] + rows[:shift], dtype=dtype)
        for student_ids, teacher_ids in (
            (ids(0, 2, 1, 0, 2), ids(1, 3, 0, 0, 3)),
            (ids(1, 1, 0, 3, 0), ids(0, 2, 1, 1, 2)),
        ):
            terms = gold_hybrid(
                student, student_ids, teacher, teacher_ids, groups([0, 0, 0, 1, 2], [0, 1, 1, 2, 2]),
                vocabulary([(0, 1), (1, 0)], 4, 4), beta, merged=how,
            )  # fmt: skip
            (gradient,) = torch.autograd.grad(terms.total, student)
            assert terms.total >= 0
            assert torch.isfinite(terms.total)
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("how", ["last_token", "span"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_float32_agrees_with_float64(beta: float, how: Any):
    generator = torch.Generator().manual_seed(5)
    student, teacher = 4 * torch.randn(2, 4, 5000, generator=generator, dtype=torch.float64)
    words, of = vocabulary([(i, i) for i in range(2000)], 5000, 5000), groups([0, 0, 1, 2], [0, 1, 1, 2])
    results: list[tuple[float, Tensor]] = []
    for dtype in (torch.float32, torch.float64):
        z = student.to(dtype).requires_grad_()
        terms = gold_hybrid(z, ids(0, 1, 2, 3), teacher.to(dtype), ids(4, 5, 6, 7), of, words, beta, merged=how)
        (gradient,) = torch.autograd.grad(terms.total, z)
        results.append((terms.total.item(), gradient.double()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("how", ["last_token", "span"])
def test_every_row_of_the_completion_is_trained_the_first_included(how: Any):
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(4, 5, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 4, generator=generator)
    words = vocabulary([(0, 2), (1, 0), (2, 1)], 5, 4)
    terms = gold_hybrid(
        student, ids(4, 1, 0, 2), teacher, ids(3, 2, 1), groups([0, 0, 1, 2], [0, 1, 2]), words, 0.5, merged=how
    )
    terms.total.backward()
    assert student.grad is not None
    assert (student.grad.abs().sum(-1) > 1e-4).all()


@pytest.mark.parametrize("how", ["last_token", "span"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_gradient_of_the_whole_hybrid_is_that_of_finite_differences(beta: float, how: Any):
    generator = torch.Generator().manual_seed(4)
    student = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    words, of = vocabulary([(0, 2), (1, 0)], 5, 4), groups([0, 1, 1, 2], [0, 0, 1, 2])

    def loss(z: Tensor) -> Tensor:
        terms = gold_hybrid(z, ids(0, 1, 3, 2), teacher, ids(1, 0, 3, 1), of, words, beta, None, 0.9, how)
        return terms.total + gold_uld(z, ids(0, 1, 3, 2), teacher, ids(1, 0, 3, 1), of, 0.9).total

    assert torch.autograd.gradcheck(loss, student)


# --- a rest that only one side has ---


def test_a_rest_that_the_student_cannot_have_is_counted_and_not_drawn_at():
    # All of the student's columns have a partner; the teacher has .3 elsewhere. Its rest counts as 1e-4:
    # .5 ln(.5/.6) + .2 ln(.2/.4) + .3 ln(.3/.0001) + .0001 = -.0912 - .1386 + 2.4019 + .0001 = 2.1722
    student, teacher = logits((0.6, 0.4)).requires_grad_(), logits((0.5, 0.2, 0.3))
    words = vocabulary([(0, 0), (1, 1)], 2, 3)
    terms = gold_hybrid(student, ids(0), teacher, ids(0), groups([0], [0]), words, 0.0, (1.0, 0.0))
    assert terms.total.item() == pytest.approx(2.1722, abs=1e-4)
    # The gradient is that of the teacher's own proportions, .7 (p - q / .7): .7 * .6 - .5 = -.08
    (gradient,) = torch.autograd.grad(terms.total, student)
    assert gradient.tolist() == [pytest.approx([-0.08, 0.08])]


def test_a_rest_that_the_teacher_cannot_have_pushes_the_student_out_of_it():
    # .4 ln(.4/.5) + .3 ln(.3/.5) + .3 ln(.3/.0001) + .0001 = -.0893 - .1532 + 2.4019 + .0001 = 2.1595
    student, teacher = logits((0.4, 0.3, 0.3)).requires_grad_(), logits((0.5, 0.5))
    words = vocabulary([(0, 0), (1, 1)], 3, 2)
    terms = gold_hybrid(student, ids(0), teacher, ids(0), groups([0], [0]), words, 1.0, (1.0, 0.0))
    assert terms.total.item() == pytest.approx(2.1595, abs=1e-4)
    (gradient,) = torch.autograd.grad(terms.total, student)
    assert gradient[0, 2] > 1.0


def test_a_student_with_next_to_no_rest_is_not_drawn_into_it():
    # One junk column of 1e-6 without a partner, and a teacher with .3 outside of the common columns: without a floor
    # the student would lose .3 of its mass to that column.
    student = logits((0.6, 0.4 - 1e-6, 1e-6)).requires_grad_()
    words = vocabulary([(0, 0), (1, 1)], 3, 3)
    terms = gold_hybrid(student, ids(0), logits((0.5, 0.2, 0.3)), ids(0), groups([0], [0]), words, 0.0, (1.0, 0.0))
    (gradient,) = torch.autograd.grad(terms.total, student)
    assert gradient[0, 2].abs() < 1e-6


def test_a_span_that_the_student_is_certain_of_costs_no_thousands():
    # In float32 its probability is 1; the teacher's is .9: .9 ln(.9/1) + .1 ln(.1/.0001) + .0001 = .5961
    spans = torch.tensor([0.0]), torch.tensor([0.9]).log()
    assert span_divergence(*spans, 0.0).item() == pytest.approx(0.5961, abs=1e-4)
    assert span_divergence(spans[1], spans[0], 1.0).item() == pytest.approx(0.5961, abs=1e-4)


# --- what is refused ---

Z = torch.zeros
ONE = groups([0], [0])


def hybrid(s: Tensor, s_ids: Tensor, t: Tensor, t_ids: Tensor, of: Groups, beta: float = 0.5, *options: Any) -> None:
    gold_hybrid(s, s_ids, t, t_ids, of, vocabulary([(0, 0)], 3, 2), beta, *options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hybrid(Z(2, 3), ids(0, 0), Z(1, 2), ids(0), ONE), r"student logits \(2, 3\) do not fit 1"),
        (lambda: hybrid(Z(1, 3), ids(0), Z(2, 2), ids(0, 0), ONE), r"teacher logits \(2, 2\) do not fit 1"),
        (lambda: hybrid(Z(1, 3), ids(0, 1), Z(1, 2), ids(0), ONE), r"\(1, 3\), ids \(2,\)"),
        (lambda: hybrid(Z(1, 3), ids(3), Z(1, 2), ids(0), ONE), "token 0 has id 3, outside"),
        (lambda: hybrid(Z(1, 4), ids(0), Z(1, 2), ids(0), ONE), "map is for 3 student and 2 teacher"),
        (lambda: hybrid(Z(1, 3), ids(0), Z(1, 2), ids(0), ONE, 2.0), "beta is 2.0"),
        (lambda: hybrid(Z(1, 3), ids(0), Z(1, 2), ids(0), ONE, 0.5, (-1.0, 1.0)), r"weights are \(-1.0, 1.0\)"),
        (lambda: hybrid(Z(1, 3), ids(0), Z(1, 2), ids(0), ONE, 0.5, (NAN, 1.0)), "weights are"),
        (lambda: hybrid(Z(1, 3), ids(0), Z(1, 2), ids(0), ONE, 0.5, None, -1.0), "temperature is -1.0"),
        (lambda: hybrid(Z(1, 3), ids(0), Z(1, 2), ids(0), ONE, 0.5, None, 1.0, "x"), "merged is 'x'"),
        (lambda: hybrid(Z(1, 3), ids(0), Z(1, 2) * NAN, ids(0), ONE), "teacher logits: nan in row 0"),
        (lambda: gold_uld(Z(1, 3), ids(0), Z(1, 2) + INF, ids(0), ONE), "inf in row 0, position 0 of 2"),
        (lambda: gold_uld(Z(1, 3), ids(0), Z(2, 2), ids(0, 0), groups([0], [0, 1])), "tokens lie in 2 groups"),
        (lambda: merged(Z(2, 3), ids(0, 0), [1, 1]), "token 0 lies in group 1: groups start at 0"),
        (lambda: merged(Z(2, 3), ids(0, 0), [0, 2]), "token 1 lies in group 2"),
        (lambda: merged(Z(3, 3), ids(0, 0, 0), [0, 1, 0]), "token 2 lies in group 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_numbers(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()
