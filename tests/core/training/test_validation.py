"""Validation: what is measured on which answers, that parts add up, and that the student comes out as it went in."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from core.commands.train_gold import TrainGold
from core.data.stop import Stop
from core.distillation.measures import Measures, Tally, add
from core.errors import StoppedEarly
from core.teachers.hf_scorer import HfScorer
from core.training import validation
from core.training.exchange import Exchange
from core.training.samples import Sample
from core.training.score_signal import ScoreSignal
from core.training.student import Student, load_student
from core.training.validation import figures, sample_lines, validate
from tests.support.tiny_model import make_tiny_model

QUESTIONS = ("What is the capital of France?", "Explain photosynthesis.", "What is Paris?", "Explain Paris.")
ANSWERS = ("The capital of France is Paris.", None, "The capital.", "Paris")


@dataclass
class Models:
    student: Student
    scorer: HfScorer
    signal: ScoreSignal
    options: TrainGold
    samples: list[Sample]

    def validate(self, samples: Sequence[Sample] | None = None, *, teacher: bool = True, **values: Any) -> Measures:
        options = self.options.model_copy(update=values)
        return validate(
            self.student,
            self.signal if teacher else None,
            self.samples if samples is None else samples,
            options,
            nullcontext,
            Stop(),
        )


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = make_tiny_model(tmp_path_factory.mktemp("model"))
    options = TrainGold.model_validate(
        {"data": "x", "output": "runs", "student": str(folder), "teacher": str(folder), "device": "cpu", "threads": 1}
        | {"max_new_tokens": 12, "micro_batch_size": 2}
    )
    student = load_student(options, torch.device("cpu"), lambda text: None)
    scorer = HfScorer(
        str(folder), batch_size=8, dtype="float32", device_map="cpu", attention="sdpa", load_in_4bit=False, threads=1
    )
    scorer.prepare(lambda text: None)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in scorer._model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    side = student.side
    samples: list[Sample] = []
    for number, (question, text) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        messages = [{"role": "user", "content": question}]
        ids = None if text is None else side.completion_ids(text.encode(), True)
        prompt = side.prompt_ids(messages)
        key = f"{number + 1:016x}"
        samples.append(Sample(key, f"x:{number + 1}", messages, None, prompt, prompt, ids, text is not None, text))
    return Models(student, scorer, ScoreSignal(options, side, student.head, scorer), options, samples)


def same(first: Measures, second: Measures) -> None:
    assert first.keys() == second.keys()
    for name, tally in first.items():
        assert tally.count == second[name].count, name
        assert tally.total == pytest.approx(second[name].total, rel=1e-4, abs=1e-4), name


def test_both_the_answers_in_the_data_and_the_students_own_are_measured(models: Models):
    found = models.validate()
    given = sum(len(sample.answer_ids or []) for sample in models.samples)
    for name in ("kd_loss", "kl", "reverse_kl", "top1_agreement", "entropy", "bits_per_byte", "teacher_bits_per_byte"):
        assert {f"val_{name}", f"own_{name}"} <= found.keys()
    assert found["val_kl"].count == found["val_kd_loss"].count == given
    # Each answer's bytes, and one for each of the three ends.
    assert found["val_bits_per_byte"].count == sum(len(text) for text in ANSWERS if text) + 3
    assert found["own_length"].count == found["own_truncated"].count == 4
    assert found["own_kl"].count == found["own_length"].total
    assert found["val_kl"].mean > 0.01
    assert found["val_kl"].total == pytest.approx(found["val_kd_loss"].total, rel=1e-4)


def test_the_shares_of_two_processes_add_up_to_the_whole(models: Models):
    same(add(models.validate(models.samples[::2]), models.validate(models.samples[1::2])), models.validate())


def test_neither_order_nor_batches_change_a_measure(models: Models):
    again = models.validate(models.samples[::-1], micro_batch_size=1, teacher_batch_size=1)
    same(again, models.validate(micro_batch_size=8))


def test_the_same_answers_are_drawn_every_time_and_others_with_another_seed(models: Models):
    lengths = [models.validate(seed=seed, max_new_tokens=40)["own_entropy"].total for seed in (0, 0, 1)]
    assert lengths[0] == lengths[1] != lengths[2]


def test_the_student_comes_back_in_its_mode_and_without_gradients(models: Models):
    for training in (True, False):
        models.student.model.train(training)
        models.validate()
        assert models.student.model.training is training
    assert all(weight.grad is None for weight in models.student.model.parameters())


def test_without_a_teacher_the_answers_in_the_data_and_the_form_of_its_own_are_left(models: Models):
    found = models.validate(teacher=False, lambda_kd=0.0, lambda_sft=1.0)
    assert found.keys() == {"val_sft_loss", "val_bits_per_byte", "own_length", "own_truncated", "own_repetition"}
    with_teacher = models.validate(lambda_sft=1.0)
    for name in ("val_sft_loss", "val_bits_per_byte"):
        assert found[name].mean == pytest.approx(with_teacher[name].mean, rel=1e-5)


def test_held_out_samples_without_answers_are_judged_by_the_students_own(models: Models):
    found = models.validate([sample for sample in models.samples if not sample.answer_ids])
    assert not any(name.startswith("val_") for name in found)
    assert figures(found, models.options)["val_total_loss"] == found["own_kd_loss"].mean


def test_an_answer_that_does_not_fit_into_the_teachers_context_is_not_measured(models: Models):
    long = replace(models.samples[0], answer_ids=(models.samples[0].answer_ids or [])[:1] * 300)
    assert models.scorer.context_tokens == 256
    exchange = models.signal.exchange(long, long.answer_ids or [], False, False)
    assert models.signal.scored([exchange]) == []


def test_nothing_held_out_is_nothing_measured(models: Models):
    found = models.validate([])
    assert all(math.isnan(tally.mean) for tally in found.values())


# --- figures, by hand ---


def test_the_total_is_weighed_as_training_weighs_it(models: Models):
    # 3 / 2 nats per token, 8 / 4 of cross-entropy: 0.5 * 1.5 + 2 * 2 = 4.75
    options = models.options.model_copy(update={"lambda_kd": 0.5, "lambda_sft": 2.0})
    found = figures(
        {"val_kd_loss": Tally(3.0, 2), "val_sft_loss": Tally(8.0, 4), "own_kd_loss": Tally(9.0, 1)}, options
    )
    assert found == {"val_total_loss": 4.75, "val_kd_loss": 1.5, "val_sft_loss": 2.0, "own_kd_loss": 9.0}
    assert figures({}, options) == {}


def test_the_form_of_answers_by_hand():
    sample: Any = None
    # abcdabcd: rows abcd bcda cdab dabc abcd, one of five again; "ab" and its end: too short for a row.
    own = [
        Exchange(sample, [1, 2, 3, 4, 1, 2, 3, 4], False, True, [], None),
        Exchange(sample, [1, 2, 9], True, True, [], None),
    ]
    found = validation._form(own)
    assert found == {"length": Tally(11, 2), "truncated": Tally(1, 2), "repetition": Tally(1, 5)}


# --- for people, and accidents ---


def test_a_sample_is_shown_as_texts_without_its_end(models: Models):
    sample = models.samples[0]
    ids = sample.answer_ids or []
    exchange = models.signal.exchange(sample, ids, True, False)
    assert sample_lines(models.student, [exchange]) == [
        {
            "place": "x:1",
            "prompt": QUESTIONS[0],
            "answer": ANSWERS[0],
            "on_policy": False,
            "ended": True,
            "tokens": len(ids),
        }
    ]


def test_a_user_who_asks_twice_is_heard(models: Models):
    stop = Stop()
    stop.ask()
    stop.ask()
    with pytest.raises(KeyboardInterrupt):
        validate(
            models.student, models.signal, models.samples, models.options, nullcontext, stop
        )  # fmt: skip


def test_a_teacher_that_breaks_is_named_with_the_answers_place(models: Models):
    weight: Any = models.scorer._model.get_input_embeddings().weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[:] = math.nan
        with pytest.raises(StoppedEarly, match=r"cannot score the answer in .*x:\d: "):
            models.validate()
    finally:
        with torch.no_grad():
            weight[:] = kept


def test_prompts_that_are_answered_in_several_calls_get_the_same_answers(models: Models):
    same(models.validate(batch_size=3), models.validate(batch_size=32))
