"""The teacher's own answers: the same as its scores of them, whatever their tokens, their length and their end."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.commands.teacher import TeacherOptions
from core.data.stop import Stop
from core.distillation.alignment import Groups
from core.errors import StoppedEarly, UsageError
from core.teachers.chat_teacher import ChatTeacher
from core.teachers.remote import open_remote
from core.teachers.scorer import TeacherScores
from core.training.comparisons import COMPARISONS, Settings
from core.training.exchange import Exchange
from core.training.text_signal import TextSignal, first_groups, told_groups, with_itself
from core.training.validation import figures, validate
from tests.support.chatting import MESSAGES, OTHER_CORPUS, ModelChat, hidden_of, noisy_model, sample_of, student_of
from tests.support.scoring_server import scoring_server
from tests.support.tiny_model import teach

ANSWER = "The capital of France is Paris."
ANSWERS = (ANSWER, "Explain photosynthesis: 42 leaves, naïve 太陽.", "Paris")
SILENT = ("<|endoftext|>", "<|im_start|>")
"""Special tokens, which have no column in what a chat tells."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {name: noisy_model(folder / name, seed) for seed, name in enumerate(("own", "sister"))}
    taught = noisy_model(folder / "taught", 1)
    teach(
        taught, f"<|im_start|>user\n{MESSAGES[0]['content']}<|im_end|>\n<|im_start|>assistant\n", f"{ANSWER}<|im_end|>"
    )
    return made | {"stranger": noisy_model(folder / "stranger", 2, corpus=OTHER_CORPUS), "taught": taught}


class Pupil:
    """A student and its signal from a chat."""

    def __init__(self, models: dict[str, Path], teacher: str = "sister", top: int | None = 20, **values: Any) -> None:
        self.options, self.student = student_of(models["own"], **values)
        self.chat: Any = ModelChat(models[teacher], top, SILENT)
        self.signal = TextSignal(self.options, self.student, self.chat)

    def empty(self, key: int = 0) -> Exchange:
        return self.signal.exchange(sample_of(self.student, key), [], False, on_policy=False)

    def told(self, text: str, *, ended: bool = True, ends: bool = True) -> Exchange:
        self.chat.text, self.chat.ended, self.chat.ends = text, ended, ends
        (found,) = self.signal.scored([self.empty()])
        return found

    def loss(self, *exchanges: Exchange) -> float:
        return self.signal.loss(hidden_of(self.student, exchanges), self.student.head, exchanges).total.item()

    def measure(self, *exchanges: Exchange) -> Any:
        return self.signal.measure(hidden_of(self.student, exchanges), self.student.head, exchanges)


def scored(pupil: Pupil, exchange: Exchange, top: int) -> Exchange:
    """The same answer with the scores of the same teacher, which has the student's tokenizer."""
    rows = pupil.chat.logprobs(MESSAGES, exchange.completion_ids)[:-1].float()
    best = rows.topk(top)
    picked = rows[range(len(rows)), exchange.completion_ids]
    scores = TeacherScores("top_k", exchange.completion_ids, picked, best.indices, best.values)
    return replace(exchange, groups=None, positions=None, scores=scores)


# --- the same text, told and scored ---


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("text", ANSWERS)
def test_with_one_tokenizer_it_is_what_scores_of_the_same_text_are(models: dict[str, Path], text: str, beta: float):
    pupil = Pupil(models, beta=beta)
    exchange = pupil.told(text)
    assert exchange.completion_ids == pupil.student.side.completion_ids(text.encode(), True)
    reference = scored(pupil, exchange, 20)
    width = pupil.student.width
    common = Settings(beta, 1.0, "span", None, width, width, None)
    by_scores = COMPARISONS["one", "jsd", "top_k"]
    hidden = hidden_of(pupil.student, [exchange])
    expected = by_scores.loss(hidden, pupil.student.head, [reference], common)
    assert pupil.loss(exchange) == pytest.approx(expected.total.item(), rel=1e-4)
    assert exchange.compared == expected.tokens == len(exchange.completion_ids)
    measured = by_scores.measure(hidden, pupil.student.head, reference, common)
    found = pupil.measure(exchange)
    for name in ("kl", "reverse_kl", "top1_agreement", "entropy"):
        assert found[name].mean == pytest.approx(measured[name].mean, rel=1e-4), name
    assert found["teacher_bits_per_byte"].total == pytest.approx(measured["teacher_nats"].total / math.log(2))
    assert found["bits_per_byte"].count == len(text.encode()) + 1


def test_across_tokenizers_every_byte_is_compared_once(models: dict[str, Path]):
    pupil = Pupil(models, "stranger")
    merged = 0
    for text in ANSWERS:
        exchange = pupil.told(text)
        groups = exchange.groups
        assert groups is not None
        assert len(groups.student) == len(exchange.completion_ids)
        assert len(groups.teacher) == len(pupil.chat.side.completion_ids(text.encode(), True))
        assert groups.student_sizes[-1] == groups.teacher_sizes[-1] == 1  # the ends of turn
        assert exchange.teacher_ids[-1] == pupil.student.side.end_of_turn
        assert 0.0 < pupil.loss(exchange) < math.inf
        merged += int((~groups.is_single).sum())
    assert merged


def test_a_group_of_several_tokens_is_compared_as_a_whole(models: dict[str, Path]):
    pupil = Pupil(models, "stranger")
    exchange = pupil.told(ANSWER)
    groups = exchange.groups
    assert groups is not None
    several = np.flatnonzero(~groups.is_single)
    assert len(several)
    hidden = hidden_of(pupil.student, [exchange])
    ours = pupil.student.head.logits(hidden).log_softmax(-1)[range(len(hidden)), exchange.completion_ids].detach()
    ids = pupil.chat.side.completion_ids(ANSWER.encode(), True)
    theirs = pupil.chat.logprobs(MESSAGES, ids)[range(len(ids)), ids]
    expected = 0.0
    for group in several:  # KL over {its bytes, anything else}, by the chain rule
        q = float(ours[torch.tensor(groups.student == group)].sum().exp())
        p = float(theirs[torch.tensor(groups.teacher == group)].sum().exp())
        expected += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    terms = pupil.signal.loss(hidden, pupil.student.head, [exchange])
    assert terms.parts["span"].item() == pytest.approx(expected, rel=1e-3)


def test_a_batch_is_the_sum_of_its_samples(models: dict[str, Path]):
    pupil = Pupil(models, "stranger")
    told = [pupil.told(text, ends=text != "Paris") for text in ANSWERS]
    assert pupil.loss(*told) == pytest.approx(sum(pupil.loss(each) for each in told), rel=1e-4)
    together = pupil.measure(*told)
    for name in ("kl", "bits_per_byte", "teacher_bits_per_byte", "top1_agreement"):
        tallies = [pupil.measure(each)[name] for each in told]
        assert together[name].total == pytest.approx(sum(each.total for each in tallies), rel=1e-4), name
        assert together[name].count == sum(each.count for each in tallies), name


# --- ends ---


def test_an_end_that_is_not_told_is_in_the_answer_but_not_compared(models: dict[str, Path]):
    pupil = Pupil(models)
    whole, without = pupil.told(ANSWER), pupil.told(ANSWER, ends=False)
    assert without.completion_ids == whole.completion_ids
    assert without.ended
    assert without.compared == whole.compared - 1
    hidden = hidden_of(pupil.student, [without]).detach().requires_grad_()
    head = replace(pupil.student.head, weight=pupil.student.head.weight.detach())
    (gradient,) = torch.autograd.grad(pupil.signal.loss(hidden, head, [without]).total, hidden)
    assert gradient[-1].norm() == 0.0
    assert gradient[-2].norm() > 1e-6
    assert pupil.measure(without)["bits_per_byte"].count == len(ANSWER)
    cut = pupil.told(ANSWER, ended=False)
    assert cut.completion_ids == whole.completion_ids[:-1]
    assert pupil.loss(cut) == pytest.approx(pupil.loss(without), rel=1e-5)


@pytest.fixture(scope="module")
def reader(models: dict[str, Path]) -> Pupil:
    return Pupil(models, "stranger")


@settings(deadline=None, max_examples=25)
@given(most=st.integers(1, 30), text=st.sampled_from(ANSWERS), ends=st.booleans())
def test_an_answer_that_is_too_long_is_cut_between_groups(reader: Pupil, most: int, text: str, ends: bool):
    options = reader.options.model_copy(update={"max_new_tokens": most})
    signal, side = TextSignal(options, reader.student, reader.chat), reader.student.side
    reader.chat.text, reader.chat.ended, reader.chat.ends = text, True, ends
    whole = side.completion_ids(text.encode(), True)
    theirs = reader.chat.side.completion_ids(text.encode(), True)
    for exchange in signal.scored([reader.empty()]):
        ids, groups = exchange.completion_ids, exchange.groups
        assert ids == whole[: len(ids)]
        assert len(ids) <= most
        assert exchange.ended == (len(ids) == len(whole))
        assert groups is not None
        assert exchange.compared == groups.count > 0
        assert len(groups.student) == len(ids) - (exchange.ended and not ends)
        spelt = side.token_bytes.of(ids[: len(ids) - exchange.ended])
        kept = [token for token in theirs[: len(groups.teacher)] if token != reader.chat.side.end_of_turn]
        assert reader.chat.side.token_bytes.of(kept) == spelt
        assert math.isfinite(reader.loss(exchange))


def test_the_first_groups_by_hand():
    groups = Groups(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]), 3)
    found = first_groups(groups, 2)
    assert (found.student.tolist(), found.teacher.tolist(), found.count) == ([0, 0, 1], [0, 1, 1], 2)
    assert first_groups(groups, 0).student.size == 0
    same = with_itself(3)
    assert same.student_ids.tolist() == same.teacher_ids.tolist() == [0, 1, 2]
    assert same.student_rest.size == same.teacher_rest.size == 0


# --- what is asked, and what fails ---


def test_groups_with_a_token_that_is_not_told_are_left_out_by_hand():
    """Groups 0: student 0, teacher 0.   1: student 1 and 2, teacher 1.   2: student 3, teacher 2 and 3.   3: one each.
    The teacher's token 2 is not told, so group 2 goes and group 3 becomes number 2."""
    groups = Groups(np.array([0, 1, 1, 2, 3]), np.array([0, 1, 2, 2, 3]), 4)
    found, places, kept = told_groups(groups, [True, True, False, True, True])
    assert places == [0, 1, 2, 4]
    assert kept == [0, 1, 4]
    assert found.student.tolist() == [0, 1, 1, 2]
    assert found.teacher.tolist() == [0, 1, 2]
    assert found.count == 3


def test_a_token_whose_own_log_probability_is_kept_back_is_in_the_answer_but_not_compared(reader: Pupil):
    whole = reader.told(ANSWER)
    (answer,) = reader.chat.write([(MESSAGES, ())], max_tokens=40, seeds=[None])
    told = [replace(one, logprob=None) if place == 1 else one for place, one in enumerate(answer.told)]
    partly = reader.signal._told(reader.empty(), replace(answer, told=told))
    assert partly is not None
    assert math.isfinite(reader.loss(partly))
    assert reader.measure(partly)["bits_per_byte"].count < reader.measure(whole)["bits_per_byte"].count
    assert partly.completion_ids == whole.completion_ids
    assert partly.compared == whole.compared - 1


def test_each_sample_has_one_answer_with_a_seed_of_its_own(models: dict[str, Path]):
    pupil = Pupil(models, seed=5)
    for measuring in (False, True):
        pupil.signal.scored([pupil.empty(1), pupil.empty(2)], measuring=measuring)
    assert pupil.chat.asked == [((MESSAGES, ()), 6), ((MESSAGES, ()), 7)] * 2


def test_answers_that_do_not_come_are_left_out_and_without_log_probabilities_the_mode_is_refused(
    models: dict[str, Path],
):
    pupil = Pupil(models)
    other = pupil.empty(1)
    other = replace(other, sample=replace(other.sample, messages=[{"role": "user", "content": "Paris?"}]))
    pupil.chat.failures = ["Paris?"]
    assert [each.sample.place for each in pupil.signal.scored([other, pupil.empty(2)])] == ["x:2"]
    with pytest.raises(StoppedEarly, match=r"no log-probabilities .* generate_teacher_data writes them, train_sft"):
        pupil.signal.scored([other])
    assert pupil.signal.scored([]) == []


def test_validation_measures_the_teachers_answers_and_the_form_of_the_students(models: dict[str, Path]):
    pupil = Pupil(models, max_new_tokens=12, lambda_sft=0.5)
    samples = [sample_of(pupil.student, 1, "The capital."), sample_of(pupil.student, 2)]
    found = validate(pupil.student, pupil.signal, samples, pupil.options, nullcontext, Stop())
    paris = len(pupil.student.side.completion_ids(b"Paris", True))
    assert found["val_kd_loss"].count == found["val_sft_loss"].count == 2 * paris
    assert {name for name in found if name.startswith("own_")} == {"own_length", "own_truncated", "own_repetition"}
    total = figures(found, pupil.options)["val_total_loss"]
    assert total == pytest.approx(found["val_kd_loss"].mean + 0.5 * found["val_sft_loss"].mean)


def test_words_and_refused_options(models: dict[str, Path]):
    words = Pupil(models).signal.words
    assert words.startswith("teacher-text: the teacher's own answers (off-policy: the student writes none), of each")
    assert "its 20 most probable and all others as one: KL(teacher || student)" in words
    with pytest.raises(UsageError, match=r"--loss gold and --loss-temperature 2: for teachers that score"):
        Pupil(models, loss="gold", loss_temperature=2.0)


@pytest.mark.parametrize("end_in_logprobs", [True, False])
def test_over_http_it_is_what_the_model_itself_says(models: dict[str, Path], end_in_logprobs: bool):
    options = TeacherOptions.model_validate({"model": "scoring/model", "backend": "openai", "retries": 0})
    with scoring_server(models["taught"], dialect="chat", end_in_logprobs=end_in_logprobs) as running:
        remote = open_remote(
            options.model_copy(update={"base_url": running.url}), Stop(), cache=None, note=lambda note: None
        )
        try:
            pupil = Pupil(models, "taught")
            signal = TextSignal(pupil.options, pupil.student, ChatTeacher(remote))
            (far,) = signal.scored([pupil.empty()])
        finally:
            remote.close()
    here = pupil.told(ANSWER, ends=end_in_logprobs)
    assert far.completion_ids == here.completion_ids
    assert far.compared == here.compared
    assert pupil.loss(far) == pytest.approx(pupil.loss(here), rel=0.01)  # the end of text counts as an end there
