"""Grades of whole answers: the baseline of a group, the gradient that they weigh, and what validation makes of them."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.commands.teacher import TeacherOptions
from core.data.stop import Stop
from core.distillation.output_head import OutputHead
from core.errors import UsageError
from core.teachers.chat_teacher import ChatTeacher
from core.teachers.judging import Graded, Pair
from core.teachers.remote import open_remote
from core.training.exchange import Exchange
from core.training.judge_signal import JudgeSignal, advantages
from core.training.validation import figures, validate
from tests.support.chatting import MESSAGES, ModelChat, hidden_of, noisy_model, sample_of, student_of
from tests.support.running import Received, Reply, small_server

TEXTS = ("Paris.", "The capital of France is Paris.", "France", "Explain Paris.")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_model(tmp_path_factory.mktemp("model"), 0)


class Pupil:
    """A student and its judge, whose verdicts are given."""

    def __init__(self, model: Path, verdicts: Sequence[float | None] = (), **values: Any) -> None:
        self.options, self.student = student_of(model, **values)
        self.chat: Any = ModelChat(model)
        self.chat.verdicts = list(verdicts)
        self.signal = JudgeSignal(self.options, self.student, self.chat)

    def exchange(self, text: str, key: int = 0, answer: str | None = None) -> Exchange:
        ids = self.student.side.completion_ids(text.encode(), True)
        return self.signal.exchange(sample_of(self.student, key, answer), ids, True, on_policy=True)

    def scored(self, *texts: str, key: int = 0) -> list[Exchange]:
        return self.signal.scored([self.exchange(text, key) for text in texts])


# --- by hand ---


def test_the_advantage_is_the_score_less_the_mean_of_its_group(model: Path):
    pupil = Pupil(model, [0.2, 0.6, 0.5, 0.7])
    exchanges = [pupil.exchange(text, key) for text, key in zip(TEXTS, (1, 1, 2, 1), strict=True)]
    # A group is one prompt's: (.2 + .6 + .7) / 3 = .5. The second prompt's one answer has nothing to be compared with.
    found = pupil.signal.scored(exchanges)
    assert [exchange.completion_ids for exchange in found] == [exchanges[place].completion_ids for place in (0, 1, 3)]
    assert [exchange.advantage for exchange in found] == pytest.approx([-0.3, 0.1, 0.2])
    assert pupil.chat.asked == [Graded(MESSAGES, text) for text in TEXTS]


def test_the_loss_of_a_vocabulary_of_three_by_hand(model: Path):
    signal = Pupil(model).signal
    head = OutputHead(torch.eye(3))  # logits are the hidden states
    student = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log().requires_grad_()
    sample: Any = None
    good = Exchange(sample, [2, 0], True, True, [], None, advantage=0.25)
    bad = Exchange(sample, [1], True, True, [], None, advantage=-0.5)
    terms = signal.loss(student, head, [good, bad])
    # -.25 (ln .5 + ln .5) + .5 ln .1
    assert terms.total.item() == pytest.approx(0.34657 - 1.15129, abs=1e-4)
    assert terms.tokens == good.compared + bad.compared == 3
    terms.total.backward()
    assert student.grad is not None
    # d(-A log p)/dz = A (p - 1[token])
    assert student.grad[0].tolist() == pytest.approx([0.05, 0.075, -0.125], abs=1e-6)
    assert student.grad[1].tolist() == pytest.approx([-0.125, 0.0625, 0.0625], abs=1e-6)
    assert student.grad[2].tolist() == pytest.approx([-0.05, 0.45, -0.4], abs=1e-6)
    with pytest.raises(ValueError, match="1 of 2 answers were not graded"):
        signal.loss(student, head, [good, replace(bad, advantage=None)])


def test_win_rates_by_hand(model: Path):
    # Of A, B, C, D: A beats B, loses to C, ties with D; B loses to C, D cannot be read; C ties with D.
    pupil = Pupil(model, [1.0, 0.0, 0.5, 0.0, None, 0.5], judge="pairwise")
    found = pupil.scored(*TEXTS)
    # A 1.5 / 3, B 0 / 2, C 2.5 / 3, D 1 / 2; their mean is .45833
    rates = [1.5 / 3, 0.0, 2.5 / 3, 0.5]
    assert [exchange.advantage for exchange in found] == pytest.approx([rate - sum(rates) / 4 for rate in rates])
    a, b, c, d = TEXTS
    asked = [(pair.first, pair.second) for pair in pupil.chat.asked]
    assert asked == [(a, b), (a, c), (a, d), (b, c), (b, d), (c, d)]
    whole = Pupil(model, [1.0, 0.0, 0.5, 0.0, 0.5, 0.5], judge="pairwise").scored(*TEXTS)
    # With every pair read the mean of the rates is .5: each win is somebody's loss.
    assert [exchange.advantage for exchange in whole] == pytest.approx([0.0, 0.5 / 3 - 0.5, 2.5 / 3 - 0.5, 0.0])


# --- laws ---


@given(st.dictionaries(st.integers(0, 9), st.floats(0, 1), max_size=6))
def test_advantages_sum_to_nothing_and_keep_the_order(scores: dict[int, float]):
    found = advantages(scores)
    if len(set(scores.values())) < 2:
        assert found == {}
        return
    assert found.keys() == scores.keys()
    assert sum(found.values()) == pytest.approx(0.0, abs=1e-9)
    ranked = sorted(scores, key=lambda place: scores[place])
    assert [found[place] for place in ranked] == sorted(found.values())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_the_advantage_times_that_of_the_log_probability(model: Path, temperature: float):
    pupil = Pupil(model, [0.9, 0.1, 0.4], temperature=temperature)
    scored = pupil.scored(*TEXTS[:3])
    hidden = hidden_of(pupil.student, scored).detach().requires_grad_()
    head = replace(pupil.student.head, weight=pupil.student.head.weight.detach())
    (found,) = torch.autograd.grad(pupil.signal.loss(hidden, head, scored).total, hidden)
    logprobs = (head.logits(hidden) / temperature).log_softmax(-1)
    start = 0
    for exchange in scored:
        ids = exchange.completion_ids
        rows = slice(start, start + len(ids))
        (of_answer,) = torch.autograd.grad(logprobs[rows][range(len(ids)), ids].sum(), hidden, retain_graph=True)
        torch.testing.assert_close(found[rows], -float(exchange.advantage or 0.0) * of_answer[rows])
        start += len(ids)


def test_a_step_along_it_makes_the_better_answer_more_probable(model: Path):
    pupil = Pupil(model, [0.0, 1.0])
    scored = pupil.scored(*TEXTS[:2])
    student = pupil.student

    def likelihoods() -> list[float]:
        with torch.no_grad():
            return [-pupil.signal.measure(hidden_of(student, [each]), student.head, [each])["bits_per_byte"].total
                    for each in scored]  # fmt: skip

    before = likelihoods()
    optimizer = torch.optim.SGD(student.trained_parameters(), lr=1e-3)
    pupil.signal.loss(hidden_of(student, scored), student.head, scored).total.backward()
    optimizer.step()
    worse, better = (after - earlier for after, earlier in zip(likelihoods(), before, strict=True))
    assert better > 0 > worse


# --- what says nothing ---


def test_answers_without_a_grade_and_groups_that_say_nothing_are_left_out(model: Path):
    assert [e.advantage for e in Pupil(model, [0.2, None, 0.6]).scored(*TEXTS[:3])] == pytest.approx([-0.2, 0.2])
    assert Pupil(model, [None, 0.6]).scored(*TEXTS[:2]) == []
    assert Pupil(model, [0.6, 0.6]).scored(*TEXTS[:2]) == []
    assert Pupil(model, [0.5], judge="pairwise").scored(*TEXTS[:2]) == []
    assert Pupil(model).scored() == []


@pytest.mark.parametrize("judge", ["rubric", "pairwise"])
def test_answers_without_any_readable_verdict_are_left_out(model: Path, judge: str):
    assert Pupil(model, [None, None, None], judge=judge).scored(*TEXTS[:3], key=7) == []


# --- validation ---


def test_validation_has_a_loss_that_falls_when_the_score_rises(model: Path):
    totals = []
    for verdicts in ([0.2, 0.4], [0.7, 0.9]):
        pupil = Pupil(model, verdicts, max_new_tokens=8)
        samples = [sample_of(pupil.student, 1, "Paris"), sample_of(pupil.student, 2)]
        found = validate(pupil.student, pupil.signal, samples, pupil.options, nullcontext, Stop())
        assert not any(name.startswith("val_") for name in found)
        assert found["own_score"].mean == pytest.approx(sum(verdicts) / 2)
        assert found["own_kd_loss"].mean == -found["own_score"].mean
        assert found["own_bits_per_byte"].mean > 0
        totals.append(figures(found, pupil.options)["val_total_loss"])
    assert totals == pytest.approx([-0.3, -0.8])


def test_pairwise_validation_is_against_the_answers_in_the_data(model: Path):
    pupil = Pupil(model, [1.0], judge="pairwise")
    given = [pupil.exchange("France", 1), pupil.exchange("Paris.", 2, answer="The capital.")]
    found = pupil.signal.scored(given, measuring=True)
    assert [(exchange.sample.place, exchange.advantage) for exchange in found] == [("x:2", 1.0)]
    assert pupil.chat.asked == [Pair(MESSAGES, "Paris.", "The capital.")]


def test_without_any_verdict_there_is_no_total(model: Path):
    pupil = Pupil(model, judge="pairwise", max_new_tokens=8)
    found = validate(pupil.student, pupil.signal, [sample_of(pupil.student)], pupil.options, nullcontext, Stop())
    assert math.isnan(figures(found, pupil.options)["val_total_loss"])


# --- what is chosen, and what is refused ---


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("rubric", "judge: group of 4 answers per prompt, each graded by a rubric; one score for a whole answer"),
        ("pairwise", "judge: group of 4 answers per prompt, every two compared in both orders; one score"),
    ],
)
def test_the_words_and_the_size_of_a_group(model: Path, judge: str, words: str):
    signal = Pupil(model, judge=judge).signal
    assert signal.words.startswith(words)
    assert signal.per_prompt == 4


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"do_sample": False}, "--no-do-sample .* gives one prompt one answer"),
        ({"loss": "jsd"}, "--loss jsd: for teachers that score"),
    ],
)
def test_options_that_leave_nothing_to_compare_are_refused(model: Path, way: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        Pupil(model, **way)


# --- over HTTP ---


def test_a_served_judge_reads_the_students_words(model: Path):
    def judge(request: Received) -> Reply:
        """It likes France."""
        if request.method == "GET":  # the list of models
            return Reply()
        asked = request.json["messages"][-1]["content"]
        text = "Clear enough.\nScore: 9" if "\nFrance\n" in asked else "Not what was asked.\nScore: 3"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return Reply(body=json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9}}).encode())

    options = TeacherOptions.model_validate({"model": "judge", "backend": "openai", "retries": 0})
    with small_server(judge) as server:
        remote = open_remote(
            options.model_copy(update={"base_url": server.url}), Stop(), cache=None, note=lambda note: None
        )
        try:
            pupil = Pupil(model)
            signal = JudgeSignal(pupil.options, pupil.student, ChatTeacher(remote))
            found = signal.scored([pupil.exchange(text) for text in TEXTS])
        finally:
            remote.close()
    # 8/9 and three times 2/9: the mean is 14/36, and so 18/36 above it and 6/36 below.
    assert [exchange.advantage for exchange in found] == pytest.approx([-1 / 6, -1 / 6, 1 / 2, -1 / 6])
