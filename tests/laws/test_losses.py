"""Laws of the losses, in float64: what holds for any two models, any text and any two tokenizers."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from core.distillation.alignment import Groups, align
from core.distillation.gold import REST_FLOOR, gold_hybrid, gold_uld, merged, rest_divergence, span_logprobs
from core.distillation.losses import cross_entropy, divergence, generalized_jsd, sampled_reverse_kl, top_k_tail, uld
from core.distillation.measures import add, compare, compare_groups
from core.distillation.terms import LossTerms
from core.distillation.vocabulary import VocabularyMap

ROUNDING = 1e-11
"""What sums over a few float64 columns may be off by."""

# A first call into torch may take any time, so there are no deadlines.
law = settings(max_examples=40, deadline=None)
few = settings(max_examples=12, deadline=None)

betas = st.sampled_from([0.0, 1.0]) | st.floats(0.0, 1.0)
temperatures = st.floats(0.3, 3.0)
hows = st.sampled_from(["last_token", "span"])
values = st.floats(-12.0, 12.0, width=32) | st.floats(-1.0, 1.0, width=32)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors as small as these only wait for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@st.composite
def tables(draw: st.DrawFn, rows: int, width: int) -> Tensor:
    """(rows, width) float64 logits."""
    return torch.from_numpy(draw(arrays.arrays(np.float64, (rows, width), elements=values)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits of a student and a teacher with one vocabulary."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    return draw(tables(rows, width)), draw(tables(rows, width))


@dataclass(frozen=True)
class Text:
    """One completion in two tokenizations, with what two models say of it."""

    student: Tensor
    student_ids: Tensor
    teacher: Tensor
    teacher_ids: Tensor
    groups: Groups
    words: VocabularyMap

    def loss(self, beta: float, how: Any, temperature: float = 1.0, weights: Any = None) -> LossTerms:
        return gold_hybrid(
            self.student, self.student_ids, self.teacher, self.teacher_ids, self.groups, self.words, beta,
            weights, temperature, how,
        )  # fmt: skip


def words_of(student_ids: list[int], teacher_ids: list[int], student_width: int, teacher_width: int) -> VocabularyMap:
    return VocabularyMap(
        np.array(student_ids, np.int64),
        np.array(teacher_ids, np.int64),
        np.setdiff1d(np.arange(student_width), student_ids),
        np.setdiff1d(np.arange(teacher_width), teacher_ids),
        student_width,
        teacher_width,
    )


@st.composite
def vocabularies(draw: st.DrawFn) -> VocabularyMap:
    student_width, teacher_width = draw(st.integers(2, 6)), draw(st.integers(2, 6))
    matched = draw(st.integers(0, min(student_width, teacher_width)))
    student_ids = draw(st.permutations(range(student_width)))[:matched]
    teacher_ids = draw(st.permutations(range(teacher_width)))[:matched]
    return words_of(student_ids, teacher_ids, student_width, teacher_width)


@st.composite
def texts(draw: st.DrawFn, words: VocabularyMap | None = None) -> Text:
    words = draw(vocabularies()) if words is None else words
    length = draw(st.integers(1, 7))
    ends = st.sets(st.integers(1, length), max_size=length).map(lambda inner: sorted(inner | {length}))
    student_ends, teacher_ends = draw(ends), draw(ends)
    student_count, teacher_count = len(student_ends), len(teacher_ends)
    student_ids = draw(
        st.lists(st.integers(0, words.student_width - 1), min_size=student_count, max_size=student_count)
    )
    teacher_ids = draw(
        st.lists(st.integers(0, words.teacher_width - 1), min_size=teacher_count, max_size=teacher_count)
    )
    return Text(
        draw(tables(student_count, words.student_width)),
        torch.tensor(student_ids),
        draw(tables(teacher_count, words.teacher_width)),
        torch.tensor(teacher_ids),
        align(student_ends, teacher_ends),
        words,
    )


def joined(first: Text, second: Text) -> Text:
    """Two completions behind one another."""
    groups = Groups(
        np.append(first.groups.student, second.groups.student + first.groups.count),
        np.append(first.groups.teacher, second.groups.teacher + first.groups.count),
        first.groups.count + second.groups.count,
    )
    return Text(
        torch.cat([first.student, second.student]),
        torch.cat([first.student_ids, second.student_ids]),
        torch.cat([first.teacher, second.teacher]),
        torch.cat([first.teacher_ids, second.teacher_ids]),
        groups,
        first.words,
    )


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    z = at.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(z), z)
    return result


# --- one vocabulary ---


@given(pairs(), betas, temperatures)
@law
def test_the_divergence_is_never_negative_and_finite(both: tuple[Tensor, Tensor], beta: float, temperature: float):
    total = generalized_jsd(*both, None, beta, temperature).total
    assert -ROUNDING <= total.item() < float("inf")


@given(pairs(), betas, temperatures)
@law
def test_a_model_has_no_divergence_from_itself_and_no_gradient(
    both: tuple[Tensor, Tensor], beta: float, temperature: float
):
    student = both[0]
    shifted = student + 3.0  # the same distribution
    assert abs(generalized_jsd(student, shifted, None, beta, temperature).total.item()) < ROUNDING
    assert (
        gradient(lambda z: generalized_jsd(z, shifted, None, beta, temperature).total, student).abs().max() < ROUNDING
    )


@given(pairs(), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
@law
def test_a_divergence_of_zero_means_equal_distributions(both: tuple[Tensor, Tensor], beta: float):
    student, teacher = (logits.softmax(-1) for logits in both)
    total = generalized_jsd(*both, None, beta).total.item()
    # Pinsker: KL >= |p - q|_1^2 / 2 to the mixture, which is beta and 1 - beta of the way between the two.
    share = 1.0 if beta in (0.0, 1.0) else beta * (1.0 - beta)
    assert total >= share * (student - teacher).abs().sum(-1).square().sum().item() / 2 - ROUNDING


@given(pairs(), betas)
@law
def test_the_divergence_changes_sides_with_beta(both: tuple[Tensor, Tensor], beta: float):
    forward = generalized_jsd(both[0], both[1], None, beta).total.item()
    backward = generalized_jsd(both[1], both[0], None, 1.0 - beta).total.item()
    assume(beta in (0.0, 1.0) or 1e-6 < beta < 1 - 1e-6)  # 1 - 1e-300 is 1, where the scale jumps
    assert forward == pytest.approx(backward, abs=ROUNDING)


@given(pairs(), betas, st.data())
@law
def test_the_order_of_the_vocabulary_does_not_matter(both: tuple[Tensor, Tensor], beta: float, data: st.DataObject):
    student, teacher = both
    rows, width = student.shape
    order = data.draw(st.permutations(range(width)))
    place = torch.tensor(np.argsort(order))
    moved_student, moved_teacher = student[:, order], teacher[:, order]
    ids = torch.arange(rows) % width
    top = teacher.log_softmax(-1).topk(min(2, width), -1)

    def losses(s: Tensor, t: Tensor, tokens: Tensor, top_ids: Tensor) -> list[float]:
        return [
            generalized_jsd(s, t, None, beta).total.item(),
            uld(s.softmax(-1), t.softmax(-1)).total.item(),
            cross_entropy(s, tokens, None).total.item(),
            top_k_tail(s, top_ids, top.values, None, beta).total.item(),
        ]

    assert losses(moved_student, moved_teacher, place[ids], place[top.indices]) == pytest.approx(
        losses(student, teacher, ids, top.indices), abs=ROUNDING
    )


@given(pairs(), betas, st.data())
@law
def test_the_sum_over_any_split_is_the_whole(both: tuple[Tensor, Tensor], beta: float, data: st.DataObject):
    student, teacher = both
    rows = len(student)
    cut = data.draw(st.integers(0, rows))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    ids = torch.arange(rows) % student.shape[-1]
    top = teacher.log_softmax(-1).topk(1, -1)

    def losses(z: Tensor, of: slice) -> list[LossTerms]:
        picked = z[of].log_softmax(-1)[:, 0], teacher[of].log_softmax(-1)[:, 0]
        return [
            generalized_jsd(z[of], teacher[of], mask[of], beta),
            cross_entropy(z[of], ids[of], mask[of]),
            top_k_tail(z[of], top.indices[of], top.values[of], mask[of], beta),
            sampled_reverse_kl(*picked, mask[of], "policy_gradient"),
            sampled_reverse_kl(*picked, mask[of], "k3"),
        ]

    def sums(z: Tensor) -> list[LossTerms]:
        return [a + b for a, b in zip(losses(z, slice(0, cut)), losses(z, slice(cut, rows)), strict=True)]

    for number, (whole, split) in enumerate(zip(losses(student, slice(0, rows)), sums(student), strict=True)):
        assert split.tokens == whole.tokens == int(mask.sum())
        assert split.total.item() == pytest.approx(whole.total.item(), abs=ROUNDING)
        assert {name: part.item() for name, part in split.parts.items()} == pytest.approx(
            {name: part.item() for name, part in whole.parts.items()}, abs=ROUNDING
        )
        torch.testing.assert_close(
            gradient(lambda z, n=number: sums(z)[n].total, student),
            gradient(lambda z, n=number: losses(z, slice(0, rows))[n].total, student),
        )


@given(pairs(), betas)
@law
def test_top_k_and_tail_rise_to_the_full_divergence_from_below(both: tuple[Tensor, Tensor], beta: float):
    student, teacher = both
    full = generalized_jsd(student, teacher, None, beta).total.item()
    order = teacher.log_softmax(-1).sort(-1, descending=True)
    below = rounding = 0.0
    for k in range(1, student.shape[-1] + 1):
        some = top_k_tail(student, order.indices[:, :k], order.values[:, :k], None, beta).total.item()
        # 1 - sum is off by some 1e-16, which is a larger share of a smaller tail.
        tail = order.values[:, k:].exp().sum(-1).min().item() if k < student.shape[-1] else 1.0
        before, rounding = rounding, ROUNDING + 1e-14 / tail
        assert below - before - rounding <= some <= full + rounding
        below = some
    assert below == pytest.approx(full, abs=ROUNDING)


@given(pairs())
@law
def test_k3_is_never_negative_and_zero_for_equal_models(both: tuple[Tensor, Tensor]):
    student, teacher = (logits.log_softmax(-1)[:, 0] for logits in both)
    assert sampled_reverse_kl(student, teacher, None, "k3").total.item() >= -ROUNDING
    assert sampled_reverse_kl(student, student, None, "k3").total.item() == 0.0
    assert gradient(lambda s: sampled_reverse_kl(s, student, None).total, student).abs().max() == 0.0


@given(pairs(), st.sampled_from([0.0, 1e-3, 0.3, 1.0]), temperatures)
@few
def test_gradients_are_those_of_finite_differences(both: tuple[Tensor, Tensor], beta: float, temperature: float):
    student, teacher = both[0].clone().requires_grad_(), both[1]
    top = teacher.log_softmax(-1).topk(1, -1)
    ids = torch.arange(len(student)) % student.shape[-1]
    check = torch.autograd.gradcheck
    assert check(lambda z: generalized_jsd(z, teacher, None, beta, temperature).total, student, atol=1e-6)
    assert check(lambda z: top_k_tail(z, top.indices, top.values, None, beta).total, student, atol=1e-6)
    assert check(lambda z: cross_entropy(z, ids, None).total, student, atol=1e-6)


# --- two tokenizers ---


@given(texts(), betas, hows, temperatures)
@law
def test_no_part_of_the_hybrid_is_ever_negative(text: Text, beta: float, how: Any, temperature: float):
    terms = text.loss(beta, how, temperature)
    assert all(part.item() >= -ROUNDING for part in terms.parts.values())
    assert -ROUNDING <= terms.total.item() < float("inf")
    assert terms.tokens == text.groups.count


@given(st.lists(st.tuples(st.floats(-40.0, 0.0), st.floats(-40.0, 0.0)), min_size=1), betas)
@law
def test_everything_else_costs_what_any_outcome_costs_down_to_its_floor(logs: list[tuple[float, float]], beta: float):
    student, teacher = torch.tensor(logs, dtype=torch.float64).unbind(1)
    found = rest_divergence(student, teacher, beta)
    plain = divergence(student.unsqueeze(-1), teacher.unsqueeze(-1), beta)
    above = (student >= math.log(REST_FLOOR)) & (teacher >= math.log(REST_FLOOR))
    torch.testing.assert_close(found[above], plain[above])
    assert rest_divergence(student, student, beta).abs().max() < ROUNDING
    # With p - q at beta 0 and q - p at beta 1, which over all outcomes add up to 0, an outcome costs at least nothing.
    gap = (student.exp() - teacher.exp()) * {0.0: 1.0, 1.0: -1.0}.get(beta, 0.0)
    if beta in (0.0, 1.0):
        assert (found + gap >= -ROUNDING).all()
        assert (found + gap <= plain + gap + ROUNDING).all()  # the floor only hides differences
        assert (found <= -math.log(REST_FLOOR) + REST_FLOOR).all()


@given(vocabularies(), betas, hows, temperatures, st.data())
@law
def test_a_model_through_two_copies_of_its_tokenizer_has_no_loss_and_no_gradient(
    words: VocabularyMap, beta: float, how: Any, temperature: float, data: st.DataObject
):
    # Of the shared columns any number may be paired: the others meet in the rest and, sorted, one another.
    paired = [int(i) for i in words.student_ids]
    words = words_of(paired, paired, words.student_width, words.student_width)
    text = data.draw(texts(words))
    same = Groups(text.groups.student, text.groups.student, text.groups.count)
    text = replace(text, teacher=text.student + 1.0, teacher_ids=text.student_ids, groups=same)
    terms = text.loss(beta, how, temperature)
    assert abs(terms.total.item()) < ROUNDING
    # L1 has a kink where sorted values meet, and there its gradient may be +-p; so the divergences are asked.
    only = gradient(lambda z: replace(text, student=z).loss(beta, how, temperature, (1.0, 0.0)).total, text.student)
    assert only.abs().max() < ROUNDING
    exact = replace(text, teacher=text.student)
    both = gradient(lambda z: replace(exact, student=z).loss(beta, how, temperature).total, text.student)
    assert both.abs().max() < ROUNDING
    uld_terms = gold_uld(text.student, text.student_ids, text.student, text.student_ids, text.groups, temperature)
    assert uld_terms.total.item() == 0.0


@given(texts(), betas, hows, st.data())
@law
def test_the_order_of_both_vocabularies_does_not_matter_across_tokenizers(
    text: Text, beta: float, how: Any, data: st.DataObject
):
    words = text.words
    student_order = np.array(data.draw(st.permutations(range(words.student_width))))
    teacher_order = np.array(data.draw(st.permutations(range(words.teacher_width))))
    student_place, teacher_place = np.argsort(student_order), np.argsort(teacher_order)
    moved = Text(
        text.student[:, student_order],
        torch.from_numpy(student_place)[text.student_ids],
        text.teacher[:, teacher_order],
        torch.from_numpy(teacher_place)[text.teacher_ids],
        text.groups,
        words_of(
            student_place[words.student_ids].tolist(),
            teacher_place[words.teacher_ids].tolist(),
            words.student_width,
            words.teacher_width,
        ),
    )
    assert moved.loss(beta, how).total.item() == pytest.approx(text.loss(beta, how).total.item(), abs=ROUNDING)


@given(vocabularies(), betas, hows, st.data())
@law
def test_completions_behind_one_another_are_the_sum_of_their_losses(
    words: VocabularyMap, beta: float, how: Any, data: st.DataObject
):
    first, second = data.draw(texts(words)), data.draw(texts(words))
    whole, split = joined(first, second).loss(beta, how), first.loss(beta, how) + second.loss(beta, how)
    assert whole.tokens == split.tokens
    assert whole.total.item() == pytest.approx(split.total.item(), abs=ROUNDING)
    assert {name: part.item() for name, part in whole.parts.items()} == pytest.approx(
        {name: part.item() for name, part in split.parts.items()}, abs=ROUNDING
    )

    def measured(text: Text) -> Any:
        return compare_groups(
            text.student, text.student_ids, text.teacher, text.teacher_ids, text.groups, text.words, chunk=2
        )

    together, apart = measured(joined(first, second)), add(measured(first), measured(second))
    assert {name: tally.total for name, tally in together.items() if not name.endswith("columns")} == pytest.approx(
        {name: tally.total for name, tally in apart.items() if not name.endswith("columns")}, abs=1e-9
    )


@given(texts(), temperatures)
@law
def test_a_merged_row_sums_to_its_earlier_tokens_and_names_the_span(text: Text, temperature: float):
    rows = merged(text.student, text.student_ids, text.groups.student, temperature)
    spans = span_logprobs(text.student, text.student_ids, text.groups.student, temperature)
    logprobs = (text.student / temperature).log_softmax(-1)
    for group in range(text.groups.count):
        tokens = np.flatnonzero(text.groups.student == group)
        steps = [logprobs[k, text.student_ids[k]].item() for k in tokens]
        assert spans[group].item() == pytest.approx(sum(steps), abs=ROUNDING)
        assert rows[group, text.student_ids[tokens[-1]]].item() == pytest.approx(sum(steps), abs=ROUNDING)
        assert rows[group].logsumexp(-1).item() == pytest.approx(sum(steps[:-1]), abs=ROUNDING)


@given(pairs(), betas, st.data())
@law
def test_the_matched_part_is_never_above_the_divergence_of_any_common_vocabulary(
    both: tuple[Tensor, Tensor], beta: float, data: st.DataObject
):
    student, teacher = both
    rows, width = student.shape
    known = data.draw(st.sets(st.integers(0, width - 1)).map(sorted))
    words = words_of(known, known, width, width)
    every = np.arange(rows)
    ids = torch.arange(rows) % width
    terms = gold_hybrid(student, ids, teacher, ids, Groups(every, every, rows), words, beta)
    # Knowing that the other columns are the same tokens, too, can only show more.
    assert terms.parts["matched"].item() <= generalized_jsd(student, teacher, None, beta).total.item() + ROUNDING


@given(texts(), st.sampled_from([0.0, 0.3, 1.0]), hows, temperatures)
@few
def test_gradients_across_tokenizers_are_those_of_finite_differences(
    text: Text, beta: float, how: Any, temperature: float
):
    # 1 - p of a nearly certain token has too few digits for differences.
    student = text.student.clamp(-1.0, 1.0).requires_grad_()

    def loss(z: Tensor) -> Tensor:
        return replace(text, student=z).loss(beta, how, temperature, (1.0, 0.0)).total  # sorted L1 has kinks

    # Differences lose digits of a large loss: one side may exclude what the other does not.
    assert torch.autograd.gradcheck(loss, student, atol=1e-6 + 1e-8 * abs(loss(student).item()))


# --- one model on bytes, written with two alphabets of tokens ---

CODES = (
    ("a", "b", "c"),
    ("aa", "ab", "ac", "b", "c"),
    ("aaa", "aab", "aac", "ab", "ac", "ba", "bb", "bc", "c"),
    tuple("".join(pair) for pair in itertools.product("abc", repeat=2)),
)
"""Complete prefix codes: every text has one tokenization, and the tokens' probabilities sum to 1."""


def written(chain: np.ndarray, code: tuple[str, ...], text: str) -> tuple[Tensor, Tensor, list[int]]:
    """A text in a code's tokens: logits of a byte model (chain[i, j]: log p of byte j after byte i), ids, ends."""
    rows: list[list[float]] = []
    ids: list[int] = []
    ends: list[int] = []
    at = 0
    while at < len(text):
        before = text[at - 1] if at else "a"
        steps = [[chain["abc".index(x), "abc".index(y)] for x, y in itertools.pairwise(before + t)] for t in code]
        rows.append([float(sum(some)) for some in steps])
        ids.append(next(i for i, token in enumerate(code) if text.startswith(token, at)))
        at += len(code[ids[-1]])
        ends.append(at)
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(ids), ends


@given(
    arrays.arrays(np.float64, (3, 3), elements=st.floats(-3, 3)),
    st.sampled_from(CODES),
    st.sampled_from(CODES),
    st.lists(st.sampled_from(CODES[3]), min_size=1, max_size=6).map("".join),
    betas,
)
@law
def test_one_model_of_bytes_gives_every_span_the_same_probability_in_any_tokens(
    table: np.ndarray, student_code: tuple[str, ...], teacher_code: tuple[str, ...], text: str, beta: float
):
    text += "cc"  # from wherever a token of any code stands open, this closes it
    chain = torch.from_numpy(table).log_softmax(-1).numpy()
    cut: dict[tuple[str, ...], str] = {}
    for code in (student_code, teacher_code):
        done = 0
        while any(text.startswith(token, done) for token in code):
            done += len(next(token for token in code if text.startswith(token, done)))
        cut[code] = text[:done]
    assume(len(cut[student_code]) == len(cut[teacher_code]))
    student, student_ids, student_ends = written(chain, student_code, cut[student_code])
    teacher, teacher_ids, teacher_ends = written(chain, teacher_code, cut[teacher_code])
    groups = align(student_ends, teacher_ends)
    torch.testing.assert_close(
        span_logprobs(student, student_ids, groups.student), span_logprobs(teacher, teacher_ids, groups.teacher)
    )
    common = [token for token in student_code if token in teacher_code]
    words = words_of(
        [student_code.index(token) for token in common],
        [teacher_code.index(token) for token in common],
        len(student_code),
        len(teacher_code),
    )
    assume((len(words.student_rest) > 0 and len(words.teacher_rest) > 0) or student_code == teacher_code)
    terms = gold_hybrid(student, student_ids, teacher, teacher_ids, groups, words, beta, merged="span")
    assert terms.parts["span"].item() == pytest.approx(0.0, abs=1e-9)
    assert compare_groups(student, student_ids, teacher, teacher_ids, groups, words)["span_log_ratio"].total == (
        pytest.approx(0.0, abs=1e-9)
    )
    # A common token has the same probability on both sides, and so has the rest of the bytes.
    assert terms.parts["matched"].item() == pytest.approx(0.0, abs=1e-9)


# --- measures ---


@given(pairs(), st.integers(1, 5), st.data())
@law
def test_measures_of_batches_add_up_whatever_the_chunks(both: tuple[Tensor, Tensor], chunk: int, data: st.DataObject):
    student, teacher = both
    cut = data.draw(st.integers(0, len(student)))
    whole = compare(student, teacher)
    parts = add(compare(student[:cut], teacher[:cut], chunk=chunk), compare(student[cut:], teacher[cut:], chunk=chunk))
    for name, tally in whole.items():
        assert parts[name].count == tally.count
        assert parts[name].total == pytest.approx(tally.total, abs=ROUNDING)
    assert whole["kl_teacher_student"].total >= -ROUNDING
    assert whole["kl_student_teacher"].total >= -ROUNDING
