"""How far a student is from its teacher: numbers worked out by hand, and sums that add up over batches."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from core.distillation.alignment import Groups
from core.distillation.gold import span_logprobs
from core.distillation.losses import generalized_jsd
from core.distillation.measures import Measures, Tally, add, compare, compare_groups, matched_share, sampled, surprise
from core.distillation.vocabulary import VocabularyMap

NAN = math.nan


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors as small as these only wait for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logits(*rows: Sequence[float]) -> Tensor:
    """Logits whose softmax is these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.long)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def means(measures: Measures) -> dict[str, float]:
    return {name: tally.mean for name, tally in measures.items()}


# Student columns 0, 1 are teacher columns 1, 0; student 2 and teacher 2, 3 have no partner.
WORDS = VocabularyMap(ints(0, 1), ints(1, 0), ints(2), ints(2, 3), 3, 4)
# Group 0: one token each; group 1: two student tokens, one teacher token; group 2: one each.
GROUPS = Groups(ints(0, 1, 1, 2), ints(0, 1, 2), 3)
STUDENT = logits((0.5, 0.3, 0.2), (0.2, 0.2, 0.6), (0.1, 0.8, 0.1), (0.2, 0.7, 0.1))
TEACHER = logits((0.25, 0.25, 0.25, 0.25), (0.1, 0.2, 0.3, 0.4), (0.6, 0.2, 0.1, 0.1))
STUDENT_IDS, TEACHER_IDS = ids(0, 2, 1, 1), ids(1, 3, 0)


def test_tallies_add_up_and_nothing_counted_has_no_mean():
    assert Tally(3.0, 2) + Tally(1.0, 6) == Tally(4.0, 8)
    assert (Tally(3.0, 2) + Tally(1.0, 6)).mean == 0.5
    assert math.isnan(Tally(0.0, 0).mean)
    assert add({"a": Tally(1, 2)}, {"a": Tally(2, 3), "b": Tally(5, 1)}) == {"a": Tally(3, 5), "b": Tally(5, 1)}


def test_a_hand_computed_pair_of_models():
    # Row 0: teacher (.5, .5), student (.75, .25); row 1: both (.5, .5)
    measures = compare(logits((0.75, 0.25), (0.5, 0.5)), logits((0.5, 0.5), (0.5, 0.5)))
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert means(measures) == pytest.approx(
        {
            "kl_teacher_student": 0.14384 / 2,  # .5 ln(.5/.75) + .5 ln(.5/.25)
            "kl_student_teacher": 0.13081 / 2,  # .75 ln(.75/.5) + .25 ln(.25/.5)
            "top1_agreement": 1.0,  # of equals the lowest
            "student_entropy": (entropy + math.log(2)) / 2,
            "teacher_entropy": math.log(2),
        },
        abs=1e-5,
    )
    assert all(tally.count == 2 for tally in measures.values())


def test_only_masked_in_rows_count_in_any_shape_and_chunk():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 7, 11, generator=generator)
    mask = torch.rand(3, 7, generator=generator) < 0.6
    student[~mask], teacher[~mask] = NAN, math.inf
    whole = compare(student, teacher, mask)
    assert whole["top1_agreement"].count == int(mask.sum())
    for chunk in (1, 4, 1000):
        measures = compare(student, teacher, mask, chunk)
        assert {name: tally.total for name, tally in measures.items()} == pytest.approx(
            {name: tally.total for name, tally in whole.items()}
        )
    for name, beta in (("kl_teacher_student", 0.0), ("kl_student_teacher", 1.0)):
        assert whole[name].total == pytest.approx(generalized_jsd(student, teacher, mask, beta).total.item(), rel=1e-5)


def test_logits_that_were_cut_and_a_single_row_are_read_in_place():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 7, 11, generator=generator)
    cut = compare(student[:, :-1], teacher[:, :-1])
    assert means(cut) == pytest.approx(means(compare(student[:, :-1].clone(), teacher[:, :-1].clone())))
    assert means(compare(student[0, 0], teacher[0, 0])) == pytest.approx(means(compare(student[0, :1], teacher[0, :1])))


def test_measures_of_batches_add_up_to_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 10, 6, generator=generator)
    whole = compare(student, teacher)
    parts = add(compare(student[:3], teacher[:3]), compare(student[3:], teacher[3:]))
    assert means(parts) == pytest.approx(means(whole))


def test_log_probabilities_are_as_good_as_logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    assert means(compare(student.log_softmax(-1), teacher.log_softmax(-1))) == pytest.approx(
        means(compare(student, teacher))
    )


def test_equal_models_differ_in_nothing():
    measures = means(compare(STUDENT, STUDENT))
    assert measures["kl_teacher_student"] == measures["kl_student_teacher"] == 0.0
    assert measures["top1_agreement"] == 1.0
    assert measures["student_entropy"] == measures["teacher_entropy"]


def test_excluded_and_certain_tokens_stay_finite():
    certain = torch.tensor([[0.0, -math.inf, -math.inf], [0.0, 1e30, 0.0]])
    measures = means(compare(certain, torch.tensor([[0.0, 0.0, -math.inf], [1e30, 0.0, 0.0]])))
    assert all(math.isfinite(value) for value in measures.values())
    assert measures["student_entropy"] == 0.0
    assert measures["teacher_entropy"] == pytest.approx(math.log(2) / 2)
    assert measures["top1_agreement"] == 0.5


def test_a_completion_in_two_tokenizations_by_hand():
    measures = compare_groups(STUDENT, STUDENT_IDS, TEACHER, TEACHER_IDS, GROUPS, WORDS)
    # Groups 0 and 2, student (0, 1, rest) against teacher (1, 0, rest):
    # (.5, .3, .2) | (.25, .25, .5) and (.2, .7, .1) | (.2, .6, .2)
    first = 0.25 * math.log(0.25 / 0.5) + 0.25 * math.log(0.25 / 0.3) + 0.5 * math.log(0.5 / 0.2)
    third = 0.6 * math.log(0.6 / 0.7) + 0.2 * math.log(0.2 / 0.1)
    assert measures["kl_teacher_student"].total == pytest.approx(first + third)
    first = 0.5 * math.log(0.5 / 0.25) + 0.3 * math.log(0.3 / 0.25) + 0.2 * math.log(0.2 / 0.5)
    third = 0.7 * math.log(0.7 / 0.6) + 0.1 * math.log(0.1 / 0.2)
    assert measures["kl_student_teacher"].total == pytest.approx(first + third)
    # Group 0: student's best 0, teacher's best (of equals the lowest) 0, whose partner is 1: no. Group 2: 1 and 0: yes.
    assert measures["top1_agreement"] == Tally(1.0, 2)
    # Spans: student .5, .6 * .8, .7; teacher .25, .4, .6
    ratio = math.log(0.5 * 0.6 * 0.8 * 0.7) - math.log(0.25 * 0.4 * 0.6)
    assert measures["span_log_ratio"].total == pytest.approx(ratio)
    assert measures["span_log_ratio"].count == 3
    # Matched mass: student .8 + .4 + .9 + .9 = 3.0 of 4 rows; teacher .5 + .3 + .8 = 1.6 of 3
    assert measures["student_matched_mass"].total == pytest.approx(3.0)
    assert measures["student_matched_mass"].count == 4
    assert measures["teacher_matched_mass"].total == pytest.approx(1.6)
    assert measures["teacher_matched_mass"].count == 3
    assert measures["teacher_entropy"].total == pytest.approx(-(TEACHER.exp() * TEACHER).sum().item())
    # Shares: 2 of 4 student tokens, 2 of 3 teacher tokens and 2 of 3 groups are one to one; 2 of 3 and of 4 columns
    assert measures["student_single_tokens"] == Tally(2, 4)
    assert measures["teacher_single_tokens"] == Tally(2, 3)
    assert measures["single_groups"] == Tally(2, 3)
    assert measures["student_matched_columns"] == Tally(2, 3)
    assert measures["teacher_matched_columns"] == Tally(2, 4)


def test_chunks_of_any_size_give_the_same_measures():
    whole = compare_groups(STUDENT, STUDENT_IDS, TEACHER, TEACHER_IDS, GROUPS, WORDS)
    small = compare_groups(STUDENT, STUDENT_IDS, TEACHER, TEACHER_IDS, GROUPS, WORDS, chunk=1)
    assert means(small) == pytest.approx(means(whole))


def test_the_log_ratio_of_spans_is_that_of_the_losses():
    measures = compare_groups(STUDENT, STUDENT_IDS, TEACHER, TEACHER_IDS, GROUPS, WORDS)
    student = span_logprobs(STUDENT, STUDENT_IDS, GROUPS.student)
    teacher = span_logprobs(TEACHER, TEACHER_IDS, GROUPS.teacher)
    assert measures["span_log_ratio"].total == pytest.approx((student - teacher).sum().item())


def test_the_same_tokenizer_on_both_sides_measures_what_one_vocabulary_does():
    words = VocabularyMap(ints(0, 1, 2), ints(0, 1, 2), ints(), ints(), 3, 3)
    groups = Groups(ints(0, 1, 2, 3), ints(0, 1, 2, 3), 4)
    other = STUDENT.flip(0)
    across = compare_groups(STUDENT, STUDENT_IDS, other, STUDENT_IDS, groups, words)
    for name, tally in compare(STUDENT, other).items():
        assert across[name].total == pytest.approx(tally.total)
        assert across[name].count == tally.count
    assert across["teacher_matched_mass"].mean == pytest.approx(1.0)


def test_without_a_token_or_an_overlap_there_are_still_measures():
    words = VocabularyMap(ints(), ints(), ints(0, 1, 2), ints(0, 1, 2, 3), 3, 4)
    measures = compare_groups(STUDENT, STUDENT_IDS, TEACHER, TEACHER_IDS, GROUPS, words)
    assert measures["kl_teacher_student"].total == pytest.approx(0.0, abs=1e-12)
    assert measures["top1_agreement"] == Tally(0.0, 2)
    assert measures["teacher_matched_mass"].mean == 0.0
    empty = compare_groups(STUDENT[:0], ids(), TEACHER[:0], ids(), Groups(ints(), ints(), 0), WORDS)
    assert all(math.isnan(tally.mean) or name.endswith("columns") for name, tally in empty.items())
    assert set(empty) == set(measures)
    assert matched_share(GROUPS, words)["student_matched_columns"] == Tally(0, 3)


def test_sampled_tokens_estimate_the_reverse_kl():
    # p_student (.5, .8), p_teacher (.25, .8): d = (-ln 2, 0); k1 = .6931 + 0, k3 = (.5 - 1 + .6931) + 0
    student, teacher = torch.tensor([0.5, 0.8, NAN]).log(), torch.tensor([0.25, 0.8, NAN]).log()
    measures = sampled(student, teacher, torch.tensor([True, True, False]))
    assert means(measures) == pytest.approx({"reverse_kl_k1": 0.6931 / 2, "reverse_kl_k3": 0.1931 / 2}, abs=1e-4)
    assert measures["reverse_kl_k1"].count == 2


def test_bits_per_byte_do_not_depend_on_the_tokens():
    # Eight bytes of probability 2^-12: 12 / 8 bits per byte, as three tokens or as two
    three, two = torch.tensor([-2.0, -4.0, -6.0]) * math.log(2), torch.tensor([-5.0, -7.0]) * math.log(2)
    assert surprise(three, None, 8)["bits_per_byte"].mean == pytest.approx(1.5)
    assert surprise(two, None, 8)["bits_per_byte"].mean == pytest.approx(1.5)
    assert surprise(three, None, 8)["nats_per_token"].mean == pytest.approx(4 * math.log(2))
    some = surprise(three, torch.tensor([True, False, True]), 4)
    assert some["bits_per_byte"].total == pytest.approx(8.0)
    assert some["bits_per_byte"].count == 4
    assert some["nats_per_token"].count == 2


BROKEN = torch.tensor([[0.0, 0.0], [0.0, NAN]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare(torch.zeros(2, 2), torch.zeros(2, 3)), r"\(2, 2\) and teacher logits \(2, 3\)"),
        (lambda: compare(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(3).bool()), r"mask \(3,\)"),
        (lambda: compare(torch.zeros(2, 2), BROKEN), "teacher logits: nan in row 1, position 1 of 2"),
        (lambda: compare(BROKEN, torch.zeros(2, 2)), "student logits: nan in row 1, position 1 of 2"),
        (
            lambda: compare_groups(STUDENT[:3], STUDENT_IDS, TEACHER, TEACHER_IDS, GROUPS, WORDS),
            r"student logits \(3, 3\) do not fit 4 aligned tokens",
        ),
        (
            lambda: compare_groups(STUDENT, STUDENT_IDS, TEACHER[:, :3], TEACHER_IDS, GROUPS, WORDS),
            "map is for 3 student and 4 teacher columns",
        ),
        (
            lambda: compare_groups(STUDENT, STUDENT_IDS, TEACHER * NAN, TEACHER_IDS, GROUPS, WORDS),
            "teacher logits: nan in row 0",
        ),
        (lambda: sampled(torch.zeros(2), torch.zeros(3)), r"\(2,\) and teacher log-probabilities \(3,\)"),
        (lambda: sampled(torch.zeros(2), BROKEN[1]), "teacher log-probabilities: nan in row 1"),
        (lambda: surprise(BROKEN[1], None, 8), "log-probabilities: nan in row 1"),
        (lambda: surprise(torch.zeros(2), None, -1), "completion_bytes is -1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_numbers(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()
