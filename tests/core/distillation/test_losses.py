"""The losses of models that share a vocabulary: numbers worked out by hand, extremes, and what is refused."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from core.distillation.losses import (
    LOG_ZERO,
    check_finite,
    cross_entropy,
    divergence,
    generalized_jsd,
    log1mexp,
    sampled_reverse_kl,
    top_k_tail,
    uld,
)
from core.distillation.terms import LossTerms

INF, NAN = math.inf, math.nan


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors as small as these only wait for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logits(*rows: tuple[float, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """Logits whose softmax is these probabilities."""
    return torch.tensor(rows, dtype=dtype).log()


# --- LossTerms ---


def test_terms_of_two_batches_add_up_and_are_averaged_once():
    first = LossTerms(torch.tensor(3.0), 2, {"matched": torch.tensor(1.0)})
    second = LossTerms(torch.tensor(1.0), 6, {"matched": torch.tensor(0.5), "span": torch.tensor(2.0)})
    both = first + second
    assert both.total.item() == 4.0
    assert both.tokens == 8
    assert {name: part.item() for name, part in both.parts.items()} == {"matched": 1.5, "span": 2.0}
    assert both.mean().item() == 0.5  # 4 / 8, not the mean of 1.5 and 1/6
    assert first.parts["matched"].item() == 1.0


def test_weighted_terms_keep_count_and_parts():
    terms = LossTerms(torch.tensor(3.0), 2, {"jsd": torch.tensor(3.0)}).weighted(0.5)
    assert (terms.total.item(), terms.tokens, terms.parts["jsd"].item()) == (1.5, 2, 3.0)


def test_no_token_gives_a_mean_of_zero_with_a_zero_gradient():
    student = torch.randn(2, 3, requires_grad=True)
    terms = generalized_jsd(student, torch.randn(2, 3), torch.zeros(2, dtype=torch.bool), 0.5)
    terms.mean().backward()
    assert terms.tokens == 0
    assert terms.mean().item() == 0.0
    assert student.grad is not None
    assert student.grad.abs().max() == 0.0


# --- generalised JSD ---


def test_forward_kl_of_a_hand_computed_pair():
    # teacher (.5, .5), student (.75, .25): KL = .5 ln(.5/.75) + .5 ln(.5/.25) = -.2027 + .3466 = .1438
    terms = generalized_jsd(logits((0.75, 0.25)), logits((0.5, 0.5)), None, beta=0.0)
    assert terms.total.item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert terms.total.item() == pytest.approx(0.1438, abs=1e-4)
    assert terms.tokens == 1


def test_reverse_kl_of_a_hand_computed_pair():
    # KL(student || teacher) = .75 ln(.75/.5) + .25 ln(.25/.5) = .3041 - .1733 = .1308
    terms = generalized_jsd(logits((0.75, 0.25)), logits((0.5, 0.5)), None, beta=1.0)
    assert terms.total.item() == pytest.approx(0.1308, abs=1e-4)


def test_jsd_of_a_hand_computed_pair():
    # m = (.625, .375); KL(t||m) = .5 ln .8 + .5 ln 1.3333 = .03227; KL(s||m) = .75 ln 1.2 + .25 ln .6667 = .03538
    terms = generalized_jsd(logits((0.75, 0.25)), logits((0.5, 0.5)), None, beta=0.5)
    assert terms.total.item() == pytest.approx(0.5 * 0.03227 + 0.5 * 0.03538, abs=1e-5)


def test_beta_weighs_the_teacher_and_its_part_of_the_mixture():
    # beta = .25: m = .25 t + .75 s = (.6875, .3125)
    # .25 [.5 ln(.5/.6875) + .5 ln(.5/.3125)] + .75 [.75 ln(.75/.6875) + .25 ln(.25/.3125)]
    forward = 0.5 * math.log(0.5 / 0.6875) + 0.5 * math.log(0.5 / 0.3125)
    backward = 0.75 * math.log(0.75 / 0.6875) + 0.25 * math.log(0.25 / 0.3125)
    terms = generalized_jsd(logits((0.75, 0.25)), logits((0.5, 0.5)), None, beta=0.25)
    assert terms.total.item() == pytest.approx(0.25 * forward + 0.75 * backward)


def test_the_kls_at_the_ends_are_the_limits_of_the_scaled_jsd_which_itself_goes_to_zero():
    student, teacher = logits((0.7, 0.2, 0.1)), logits((0.1, 0.3, 0.6))

    def at(beta: float) -> float:
        return generalized_jsd(student, teacher, None, beta).total.item()

    assert at(1e-6) / 1e-6 == pytest.approx(at(0.0), rel=1e-4)
    assert at(1 - 1e-6) / 1e-6 == pytest.approx(at(1.0), rel=1e-4)
    assert at(1e-6) < 1e-5 < at(0.0)


def test_temperature_divides_both_sides_logits_and_nothing_else():
    # (.75, .25) at temperature 1/2 is (.75^2, .25^2) / .625 = (.9, .1); (.5, .5) stays.
    terms = generalized_jsd(logits((0.75, 0.25)), logits((0.5, 0.5)), None, beta=0.0, temperature=0.5)
    assert terms.total.item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))


def test_only_masked_in_tokens_count():
    student = torch.stack([logits((0.75, 0.25), (0.9, 0.1)), logits((0.9, 0.1), (0.75, 0.25))])
    teacher = logits((0.5, 0.5)).expand(2, 2, 2)
    mask = torch.tensor([[True, False], [False, True]])
    terms = generalized_jsd(student, teacher, mask, beta=0.0)
    assert terms.tokens == 2
    assert terms.total.item() == pytest.approx(2 * 0.14384, abs=1e-4)
    assert terms.parts["jsd"].item() == terms.total.item()
    assert not terms.parts["jsd"].requires_grad


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_whatever_stands_in_a_masked_row_has_gradient_zero(beta: float):
    student = torch.tensor([[1.0, 2.0, 3.0], [NAN, INF, -INF], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[3.0, 2.5, 1.0], [INF, NAN, NAN], [-INF, -INF, -INF]])
    generalized_jsd(student, teacher, torch.tensor([True, False, False]), beta).total.backward()
    assert student.grad is not None
    assert student.grad[0].abs().min() > 0
    assert (student.grad[1:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_padding_columns_of_minus_infinity_change_nothing(beta: float, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(1)
    narrow = torch.randn(4, 5, generator=generator, dtype=dtype, requires_grad=True)
    teacher = torch.randn(4, 5, generator=generator, dtype=dtype)
    padding = torch.full((4, 3), -INF, dtype=dtype)
    wide = torch.cat([narrow.detach(), padding], -1).requires_grad_()
    expected = generalized_jsd(narrow, teacher, None, beta).total
    total = generalized_jsd(wide, torch.cat([teacher, padding], -1), None, beta).total
    expected.backward()
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert wide.grad is not None
    assert narrow.grad is not None
    torch.testing.assert_close(wide.grad[:, :5], narrow.grad)
    assert (wide.grad[:, 5:] == 0).all()


def test_a_token_that_only_the_teacher_excludes_costs_a_finite_amount():
    # Student (.5, .5), teacher (1, 0): KL(s||t) = .5 ln(.5/1) + .5 (ln .5 - LOG_ZERO) = -ln 2 + 5000
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    total = generalized_jsd(student, torch.tensor([[0.0, -INF]]).double(), None, 1.0).total
    total.backward()
    assert total.item() == pytest.approx(-math.log(2.0) - 0.5 * LOG_ZERO)
    assert student.grad is not None
    # .5 * (gap - mean gap) = .5 * (10000 - 5000)
    assert student.grad[0].tolist() == pytest.approx([-2500.0, 2500.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", [0.0, 1e-4, 0.5, 1.0])
def test_certain_models_give_finite_losses_and_gradients(beta: float, dtype: torch.dtype):
    large = 6e4 if dtype is torch.float16 else 1e30
    student = torch.tensor([[large, -large, 0.0], [-large, large, 0.0], [0, 0, 0], [-INF, 0, 0]], dtype=dtype)
    teacher = torch.tensor([[large, 0.0, 0.0], [large, 0.0, -INF], [0, 200.0, -200.0], [0, 0, -INF]], dtype=dtype)
    student.requires_grad_()
    terms = generalized_jsd(student, teacher, None, beta)
    terms.total.backward()
    assert terms.total >= 0
    assert torch.isfinite(terms.total)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_half_precision_is_computed_in_float32_and_float64_stays():
    for dtype, computed in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert generalized_jsd(torch.zeros(1, 2, dtype=dtype), torch.zeros(1, 2), None, 0.0).total.dtype is computed


def test_no_gradient_flows_to_the_teacher():
    student, teacher = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    generalized_jsd(student, teacher, None, 0.5).total.backward()
    assert teacher.grad is None


# --- the sampled token ---


def test_estimates_of_a_hand_computed_token():
    # p_student = .5, p_teacher = .25: d = ln(.25/.5) = -ln 2. k1 = .6931; k3 = .5 - 1 + .6931 = .1931
    student, teacher = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert sampled_reverse_kl(student, teacher, None, "k1").total.item() == pytest.approx(0.6931, abs=1e-4)
    assert sampled_reverse_kl(student, teacher, None, "k3").total.item() == pytest.approx(0.1931, abs=1e-4)
    terms = sampled_reverse_kl(student, teacher, None, "policy_gradient")
    assert terms.total.item() == pytest.approx(0.6931, abs=1e-4)
    assert terms.parts["reverse_kl"].item() == pytest.approx(0.6931, abs=1e-4)


def mean_gradient(estimator: str) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of an estimator, averaged over the student's own tokens; those of both KLs."""
    values = torch.tensor([0.3, -1.2, 2.0, 0.1], dtype=torch.float64)
    teacher = torch.tensor([1.0, 0.4, -0.3, 0.0], dtype=torch.float64).log_softmax(-1)
    mean = torch.zeros(4, dtype=torch.float64)
    for token, probability in enumerate(values.softmax(-1)):
        z = values.clone().requires_grad_()
        sampled_reverse_kl(z.log_softmax(-1)[token], teacher[token], None, estimator).total.backward()  # type: ignore[arg-type]
        assert z.grad is not None
        mean += probability * z.grad
    exact: list[Tensor] = []
    for beta in (0.0, 1.0):
        z = values.clone().requires_grad_()
        divergence(z.log_softmax(-1), teacher, beta).backward()
        assert z.grad is not None
        exact.append(z.grad)
    return mean, exact[0], exact[1]


def test_the_mean_gradient_of_the_policy_gradient_is_that_of_the_reverse_kl():
    mean, _, reverse = mean_gradient("policy_gradient")
    torch.testing.assert_close(mean, reverse)


def test_the_mean_gradient_of_k3_is_that_of_the_forward_kl():
    mean, forward, _ = mean_gradient("k3")
    torch.testing.assert_close(mean, forward)


def test_the_mean_gradient_of_k1_is_zero_so_that_it_trains_nothing():
    mean, _, _ = mean_gradient("k1")
    assert mean.abs().max() < 1e-12


def test_tokens_of_an_older_student_are_weighted_by_their_ratio():
    # old .5, now .6, teacher .25: -(ln .25 - ln .5) * .6 / .5 = .6931 * 1.2 = .8318, and so is its gradient
    student = torch.tensor([0.6]).log().requires_grad_()
    old = torch.tensor([0.5]).log()
    total = sampled_reverse_kl(student, torch.tensor([0.25]).log(), None, sampling_logprobs=old).total
    total.backward()
    assert total.item() == pytest.approx(0.8318, abs=1e-4)
    assert student.grad is not None
    assert student.grad.item() == pytest.approx(0.8318, abs=1e-4)


@pytest.mark.parametrize("estimator", ["k1", "k3", "policy_gradient"])
def test_impossible_and_masked_tokens_stay_finite(estimator: str):
    student = torch.tensor([0.0, -INF, -500.0, NAN], requires_grad=True)
    teacher = torch.tensor([-INF, 0.0, 0.0, NAN])
    mask = torch.tensor([True, True, True, False])
    terms = sampled_reverse_kl(student, teacher, mask, estimator)  # type: ignore[arg-type]
    terms.total.backward()
    assert torch.isfinite(terms.total)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad[3] == 0
    assert terms.tokens == 3


# --- top k and tail ---


def test_top_1_and_tail_of_a_hand_computed_row():
    # teacher {.6, rest .4}, student {.2, rest .5 + .3}: .6 ln(.6/.2) + .4 ln(.4/.8) = .6592 - .2773 = .3819
    student = logits((0.2, 0.5, 0.3))
    terms = top_k_tail(student, torch.tensor([[0]]), torch.tensor([[0.6]]).double().log(), None, beta=0.0)
    assert terms.total.item() == pytest.approx(0.6 * math.log(3) + 0.4 * math.log(0.5))
    assert terms.tokens == 1


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_padding_of_the_top_k_counts_nothing(beta: float):
    student = logits((0.2, 0.5, 0.3)).requires_grad_()
    short = top_k_tail(student, torch.tensor([[0]]), torch.tensor([[0.6]]).double().log(), None, beta)
    filler = torch.tensor([[-INF, 0.6, NAN, 7.0]]).double()
    filler[0, 1] = math.log(0.6)
    padded = top_k_tail(student, torch.tensor([[-1, 0, -1, -100]]), filler, None, beta)
    padded.total.backward()
    assert padded.total.item() == pytest.approx(short.total.item())
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_all_columns_as_top_k_are_the_full_divergence():
    student, teacher = logits((0.2, 0.5, 0.3)), logits((0.6, 0.3, 0.1))
    for beta in (0.0, 0.5, 1.0):
        full = generalized_jsd(student, teacher, None, beta).total.item()
        ids = torch.tensor([[2, 0, 1]])
        assert top_k_tail(student, ids, teacher[:, [2, 0, 1]], None, beta).total.item() == pytest.approx(
            full, abs=1e-11
        )


def test_a_tail_too_small_for_a_difference_keeps_its_digits():
    # float32 cannot tell 1 - 1e-12 from 1, but the student's tail is added up: reverse KL of {1, 1e-12} to {.5, .5}
    student = torch.tensor([[0.0, math.log(1e-12)]], requires_grad=True)
    total = top_k_tail(student, torch.tensor([[0]]), torch.tensor([[0.5]]).log(), None, beta=0.0).total
    total.backward()
    # .5 ln(.5/1) + .5 ln(.5/1e-12) = -.6931 + .5 * 27.631 = 13.122
    assert total.item() == pytest.approx(-math.log(2) - 0.5 * math.log(1e-12), rel=1e-5)
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_masked_rows_of_a_top_k_may_hold_anything(beta: float):
    student = torch.tensor([[0.0, 1.0, 2.0], [NAN, INF, 0.0]], requires_grad=True)
    ids = torch.tensor([[0, 1], [99, 99]])
    teacher = torch.tensor([[-1.0, -2.0], [-INF, NAN]])
    terms = top_k_tail(student, ids, teacher, torch.tensor([True, False]), beta)
    terms.total.backward()
    assert torch.isfinite(terms.total)
    assert student.grad is not None
    assert (student.grad[1] == 0).all()
    assert torch.isfinite(student.grad).all()


def test_a_tail_that_was_rounded_away_costs_no_more_than_rounding():
    # float32: the teacher's 1 leaves between 0 and 1.2e-7. Student {.99, .01}, reverse KL:
    # .99 ln .99 + .01 ln(.01 / 1.19e-7) = -.00995 + .01 * 11.338 = .1034, not .01 * 10000
    student = torch.tensor([[0.99, 0.01]]).log()
    total = top_k_tail(student, torch.tensor([[0]]), torch.tensor([[0.0]]), None, beta=1.0).total
    assert total.item() == pytest.approx(0.1034, abs=1e-4)


def test_a_certain_teacher_has_no_tail():
    # teacher {1, 0}, student {.5, .5}: ln 2
    student = torch.zeros(1, 2, requires_grad=True)
    total = top_k_tail(student, torch.tensor([[1]]), torch.tensor([[0.0]]), None, beta=0.0).total
    total.backward()
    assert total.item() == pytest.approx(math.log(2), abs=1e-5)
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([0.5, -0.5])


# --- cross-entropy and ULD ---


def test_cross_entropy_is_the_sum_of_minus_log_p():
    # -ln .75 - ln .1 = .2877 + 2.3026
    terms = cross_entropy(
        logits((0.75, 0.25), (0.9, 0.1), (0.5, 0.5)),
        torch.tensor([0, 1, -100]),
        torch.tensor([True, True, False]),
    )
    assert terms.total.item() == pytest.approx(0.2877 + 2.3026, abs=1e-4)
    assert terms.tokens == 2


def test_uld_of_a_hand_computed_row():
    # sorted (.7, .2, .1) and (.6, .4, 0): .1 + .2 + .1 = .4
    student = torch.tensor([[0.1, 0.7, 0.2]], dtype=torch.float64, requires_grad=True)
    terms = uld(student, torch.tensor([[0.4, 0.6]], dtype=torch.float64))
    terms.total.backward()
    assert terms.total.item() == pytest.approx(0.4)
    assert terms.tokens == 1
    assert student.grad is not None
    # signs of student - teacher, back at their own columns: .1 > 0, .7 > .6, .2 < .4
    assert student.grad[0].tolist() == [1.0, 1.0, -1.0]


# --- stable pieces ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1mexp_and_its_gradient_are_finite_everywhere(dtype: torch.dtype):
    x = torch.tensor([1e-7, 0.0, -1e-45, -1e-30, -1e-7, -0.5, -math.log(2), -3.0, -200.0, LOG_ZERO, -INF], dtype=dtype)
    x.requires_grad_()
    value = log1mexp(x)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert value[0].item() == value[1].item() == LOG_ZERO
    assert value[4].item() == pytest.approx(math.log(1e-7), rel=1e-6)
    assert value[6].item() == pytest.approx(math.log(0.5), rel=1e-6)
    assert value[7].item() == pytest.approx(math.log1p(-math.exp(-3)), rel=1e-6)


def test_what_cannot_happen_has_probability_zero_in_both_precisions():
    for dtype in (torch.float32, torch.float64):
        assert torch.tensor(LOG_ZERO, dtype=dtype).exp().item() == 0.0


# --- what is refused ---

Refused = Callable[[], object]
Z = torch.zeros


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generalized_jsd(Z(2, 3), Z(2, 4), None, 0.5), r"\(2, 3\) and teacher logits \(2, 4\) differ"),
        (lambda: generalized_jsd(Z(2, 3), Z(2, 3), Z(3).bool(), 0.5), r"mask \(3,\) does not fit rows \(2,\)"),
        (lambda: generalized_jsd(Z(2, 3), Z(2, 3), None, 1.5), r"beta is 1.5; it must lie in \[0, 1\]"),
        (lambda: generalized_jsd(Z(2, 3), Z(2, 3), None, NAN), "beta is nan"),
        (lambda: generalized_jsd(Z(2, 3), Z(2, 3), None, 0.5, 0.0), "temperature is 0.0; it must be above 0"),
        (lambda: generalized_jsd(Z(2, 3), Z(2, 3), None, 0.5, INF), "temperature is inf"),
        (lambda: sampled_reverse_kl(Z(2), Z(3), None), r"\(2,\) and teacher log-probabilities \(3,\)"),
        (lambda: sampled_reverse_kl(Z(2), Z(2), None, "k2"), "estimator is 'k2'"),  # type: ignore[arg-type]
        (lambda: sampled_reverse_kl(Z(2), Z(2), None, sampling_logprobs=Z(3)), r"sampling log-probabilities \(3,\)"),
        (lambda: sampled_reverse_kl(Z(2), torch.tensor([0.0, NAN]), None), "log-probabilities: nan in row 1"),
        (lambda: top_k_tail(Z(2, 3), Z(2, 2).long(), Z(2, 1), None, 0.0), r"\(2, 2\) and log-probabilities \(2, 1\)"),
        (lambda: top_k_tail(Z(2, 3), Z(1, 2).long(), Z(1, 2), None, 0.0), "must be"),
        (lambda: top_k_tail(Z(1, 3), torch.tensor([[3]]), -Z(1, 1), None, 0.0), "top id 3, outside the student's 3"),
        (lambda: top_k_tail(Z(1, 3), torch.tensor([[1, 1]]), Z(1, 2) - 1, None, 0.0), "top id 1 twice"),
        (lambda: top_k_tail(Z(1, 3), torch.tensor([[0, 1]]), Z(1, 2), None, 0.0), "sum to 2, more than 1"),
        (lambda: top_k_tail(Z(1, 3), torch.tensor([[0]]), Z(1, 1) - INF, None, 0.0), "-inf in row 0, position 0 of 1"),
        (lambda: cross_entropy(Z(2, 3), Z(3).long(), None), r"ids \(3,\) do not fit student logits \(2, 3\)"),
        (lambda: cross_entropy(Z(2, 3), torch.tensor([0, -100]), None), "token 1 has id -100, outside the logits' 3"),
        (lambda: uld(Z(2, 3), Z(1, 3)), r"student \(2, 3\) and teacher \(1, 3\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_numbers(call: Refused, message: str):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_broken_teacher_is_named_by_row_and_position(value: float):
    teacher = Z(2, 3, 5)
    teacher[1, 2, 4] = value
    message = rf"teacher logits: {value} in row \(1, 2\), position 4 of 5 \(1 of 6 rows"
    with pytest.raises(ValueError, match=message):
        generalized_jsd(Z(2, 3, 5), teacher, None, 0.5)
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1, 2] = False
    assert generalized_jsd(Z(2, 3, 5), teacher, mask, 0.5).total.item() == 0.0


def test_a_row_without_any_possible_token_is_named():
    teacher = Z(3, 5)
    teacher[1] = -INF
    with pytest.raises(ValueError, match="teacher logits: every position of row 1 is -inf"):
        check_finite(teacher, "teacher logits")
    teacher[1, 3] = 0.0
    check_finite(teacher, "teacher logits")
