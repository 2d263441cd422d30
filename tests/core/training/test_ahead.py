"""Answers and scores of the next step while the student learns: whose weights wrote them, and that nothing depends on
what was ready."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from core.commands.train_gold import TrainGold
from core.errors import StoppedEarly
from core.teachers.hf_scorer import HfScorer
from core.training.ahead import Ahead, Answer
from core.training.exchange import Exchange
from core.training.learner import Draw, Learner
from core.training.samples import Sample
from core.training.score_signal import ScoreSignal
from core.training.student import Student, load_student
from core.training.world import World
from tests.support.training import Models, make_models

STEPS, BATCH = 5, 4
Weights = dict[str, torch.Tensor]
Told = list[tuple[str, list[int], bool]]
"""Key, tokens and whether they are the student's own, of each answer of a step."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Served(ScoreSignal):
    """Scores as those of a server: asked for in a thread, and not before somebody lets them go.

    asked: the answers of each call.   hook: what happens in a call before the scores come.
    """

    asked: list[Told]
    hook: Callable[[], None]

    @property
    def waits(self) -> bool:
        return True

    def scored(self, exchanges: Sequence[Exchange], *, measuring: bool = False) -> list[Exchange]:
        self.asked.append(told(exchanges))
        self.hook()
        return super().scored(exchanges, measuring=measuring)


def told(exchanges: Sequence[Exchange]) -> Told:
    return [(each.sample.key, list(each.completion_ids), each.on_policy) for each in exchanges]


@dataclass
class Kit:
    models: Models
    scorer: HfScorer

    def learner(self, served: bool = True, **values: Any) -> Learner:
        given = {"data": "x", "output": "runs", "student": str(self.models.student), "teacher": "x", "device": "cpu"}
        given |= {"threads": 1, "learning_rate": 1e-2, "max_new_tokens": 8, "max_steps": STEPS, "batch_size": BATCH}
        options = TrainGold.model_validate({**given, **values})
        student = load_student(options, torch.device("cpu"), lambda text: None)
        signal = (Served if served else ScoreSignal)(options, student.side, student.head, self.scorer)
        if isinstance(signal, Served):
            signal.asked, signal.hook = [], lambda: None
        return Learner(options, World(options), student, signal)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    models = make_models(tmp_path_factory.mktemp("models"))
    loading: dict[str, Any] = {"dtype": "float32", "device_map": "cpu", "attention": "sdpa", "load_in_4bit": False}
    scorer = HfScorer(str(models.teacher), batch_size=1, threads=1, **loading)
    scorer.prepare(lambda text: None)
    return Kit(models, scorer)


def draws_of(student: Student) -> Callable[[int], list[Draw]]:
    """Six questions in turn, with answers."""
    samples: list[Sample] = []
    for number in range(6):
        messages = [{"role": "user", "content": f"What is {number}?"}]
        prompt, text = student.side.prompt_ids(messages), f"Paris {number}."
        ids = student.side.completion_ids(text.encode(), True)
        samples.append(Sample(f"{number + 1:016x}", f"x:{number}", messages, None, prompt, prompt, ids, True, text))

    def draws(step: int) -> list[Draw]:
        first = (step - 1) * BATCH
        return [(samples[draw % len(samples)], draw) for draw in range(first, first + BATCH)]

    return draws


def opened(learner: Learner, staleness: int = 0, aborted: Callable[[], bool] = lambda: False) -> Ahead:
    return Ahead(learner, draws_of(learner.student), staleness=staleness, last=STEPS, aborted=aborted)


def weights_of(learner: Learner) -> Weights:
    return {name: weight.detach().clone() for name, weight in learner.student.model.state_dict().items()}


def same(first: Weights, second: Weights) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@dataclass
class Trained:
    """taken: the answers of each step.   weights: after each step, the first before any.   kept: after each step what
    belongs into a checkpoint, with the learner's state."""

    taken: list[Told] = field(default_factory=list[Told])
    weights: list[Weights] = field(default_factory=list[Weights])
    kept: list[tuple[list[Answer], dict[str, Any]]] = field(default_factory=list[tuple[list[Answer], dict[str, Any]]])


def trained(
    learner: Learner,
    ahead: Ahead,
    first: int = 1,
    begins: bool = True,
    learnt: Callable[[int], None] = lambda step: None,
) -> Trained:
    """The steps of a run. begins: the next step is begun before the student learns, as a run does it."""
    done = Trained(weights=[weights_of(learner)])
    for step in range(first, STEPS + 1):
        exchanges = ahead.take(step)
        if begins:
            ahead.begin(step + 1)
        learner.learn(exchanges)
        learnt(step)
        done.taken.append(told(exchanges))
        done.weights.append(weights_of(learner))
        done.kept.append((list(ahead.kept(step + 1)), copy.deepcopy(learner.state())))
    ahead.close()
    return done


# ---- whose answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("staleness", [0, 1])
def test_answers_are_those_of_the_weights_so_many_steps_before(kit: Kit, staleness: int) -> None:
    learner = kit.learner(lmbda=1.0)
    run = trained(learner, opened(learner, staleness))
    judge = kit.learner(lmbda=1.0)
    draws = draws_of(judge.student)
    written: list[list[Told]] = []  # of each step, by the weights after 0, 1, ... steps
    for weights in run.weights:
        judge.student.model.load_state_dict(weights)
        written.append([told(judge.answer(draws(step))) for step in range(1, STEPS + 1)])
    for step in range(1, STEPS + 1):
        updates = max(0, step - 1 - staleness)
        assert run.taken[step - 1] == written[updates][step - 1], step
    # ... which the weights of another step would not have written.
    assert all(written[step - 1][step - 1] != written[step - 2][step - 1] for step in range(2, STEPS + 1))


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 1.0])
def test_without_staleness_nothing_depends_on_what_was_ready(kit: Kit, lmbda: float) -> None:
    ready, late = kit.learner(lmbda=lmbda), kit.learner(lmbda=lmbda)
    first = trained(ready, opened(ready))
    second = trained(late, opened(late), begins=False)
    assert first.taken == second.taken
    assert same(first.weights[-1], second.weights[-1])
    own = [[own for _, _, own in answers] for answers in first.taken]
    assert all(answers == sorted(answers) for answers in own)  # the student's own last
    assert {flag for answers in own for flag in answers} == (
        {False} if lmbda == 0 else {True} if lmbda == 1 else {False, True}
    )


def test_a_teacher_on_this_machine_is_asked_for_one_step_at_a_time(kit: Kit) -> None:
    local, served = kit.learner(served=False, lmbda=1.0), kit.learner(lmbda=1.0)
    assert trained(local, opened(local)).taken == trained(served, opened(served)).taken


# ---- beside the learning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("staleness", "lmbda"), [(1, 1.0), (1, 0.5), (0, 0.0)])
def test_the_next_step_is_scored_while_this_one_is_learnt(kit: Kit, staleness: int, lmbda: float) -> None:
    """The scores of a step do not come before the one before it has been learnt: nobody waits for them till then."""
    learner = kit.learner(lmbda=lmbda)
    signal = learner.signal
    assert isinstance(signal, Served)
    asked, learnt = ([threading.Event() for _ in range(STEPS + 2)] for _ in range(2))
    learnt[0].set()
    asked[STEPS + 1].set()

    def hook() -> None:
        step = len(signal.asked)
        asked[step].set()
        assert learnt[step - 1].wait(30)

    def done(step: int) -> None:
        assert asked[step + 1].wait(30)
        learnt[step].set()

    signal.hook = hook
    trained(learner, opened(learner, staleness), learnt=done)
    assert len(signal.asked) == STEPS


def test_without_staleness_the_students_answers_wait_for_its_weights(kit: Kit) -> None:
    learner = kit.learner(lmbda=0.5)
    signal = learner.signal
    assert isinstance(signal, Served)
    ahead = opened(learner)
    learner.learn(ahead.take(1))
    before = len(signal.asked)
    ahead.begin(2)
    ahead.take(2)
    ahead.close()
    given, own = signal.asked[before:]
    assert {flag for _, _, flag in given} == {False}
    assert {flag for _, _, flag in own} == {True}


def test_nothing_is_asked_for_after_the_last_step(kit: Kit) -> None:
    learner = kit.learner(lmbda=1.0)
    ahead = opened(learner, staleness=1)
    trained(learner, ahead)
    assert isinstance(learner.signal, Served)
    assert len(learner.signal.asked) == STEPS
    assert ahead.kept(STEPS + 1) == []


# ---- checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("staleness", "lmbda"), [(0, 0.5), (1, 0.5), (1, 1.0)])
def test_a_run_that_goes_on_ends_with_the_same_bits(kit: Kit, staleness: int, lmbda: float) -> None:
    learner = kit.learner(lmbda=lmbda)
    whole = trained(learner, opened(learner, staleness))
    for saved in range(1, STEPS):
        again = kit.learner(lmbda=lmbda)
        kept, state = whole.kept[saved - 1]
        assert bool(kept) == bool(staleness)
        again.student.model.load_state_dict(whole.weights[saved])
        again.load_state(state)
        ahead = opened(again, staleness)
        if kept:
            ahead.restore(saved + 1, kept)
        rest = trained(again, ahead, first=saved + 1)
        assert rest.taken == whole.taken[saved:], saved
        assert same(rest.weights[-1], whole.weights[-1]), saved


def test_answers_whose_scores_do_not_come_belong_into_the_checkpoint(kit: Kit) -> None:
    """The budget is reached: weights that are gone wrote them."""
    learner = kit.learner(lmbda=1.0)
    ahead = opened(learner, staleness=1)
    exchanges = ahead.take(1)
    assert isinstance(learner.signal, Served)

    def fail() -> None:
        raise StoppedEarly("the budget is reached")

    learner.signal.hook = fail
    ahead.begin(2)
    learner.learn(exchanges)
    written = learner.signal.asked[-1]
    with pytest.raises(StoppedEarly, match="the budget is reached"):
        ahead.take(2)
    assert [list(ids) for ids, _ in ahead.kept(2)] == [ids for _, ids, _ in written]
    ahead.close()


# ---- the end ---------------------------------------------------------------------------------------------------


def test_closing_waits_for_what_is_being_asked(kit: Kit) -> None:
    learner = kit.learner(lmbda=1.0)
    assert isinstance(learner.signal, Served)
    ahead = opened(learner, staleness=1)
    ahead.take(1)
    began, finished = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        threading.Event().wait(0.2)
        finished.set()

    learner.signal.hook = slow
    ahead.begin(2)
    assert began.wait(30)
    ahead.close()
    assert finished.is_set()


@pytest.mark.parametrize("served", [True, False])
def test_a_user_who_does_not_want_to_wait_ends_it(kit: Kit, served: bool) -> None:
    learner = kit.learner(served=served, lmbda=1.0)
    ahead = opened(learner, aborted=lambda: True)
    with pytest.raises(KeyboardInterrupt):
        ahead.take(1)
    ahead.close()


def test_answers_that_were_broken_off_are_not_kept(kit: Kit) -> None:
    """Twice Ctrl-C while the next step's answers are written: what is saved is not half of them."""
    learner = kit.learner(lmbda=1.0)
    aborted = threading.Event()
    ahead = opened(learner, staleness=1, aborted=aborted.is_set)
    learner.learn(ahead.take(1))
    aborted.set()
    with pytest.raises(KeyboardInterrupt):
        ahead.begin(2)
    assert ahead.kept(2) == []
    ahead.close()
