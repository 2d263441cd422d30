"""One optimiser step: what is averaged over what, and that micro-batches, memory and restarts change nothing."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from core.commands.train_gold import TrainGold
from core.errors import RequestRejected, StoppedEarly
from core.teachers.hf_model import Generated
from core.teachers.hf_scorer import HfScorer
from core.training import sampling
from core.training.exchange import Exchange
from core.training.learner import Learner, learning_rate_of, micro_batches
from core.training.samples import Sample
from core.training.score_signal import ScoreSignal
from core.training.student import Student, load_student
from core.training.world import World
from tests.support.training import Models, furthest, make_models

QUESTIONS = ("What is the capital of France?", "Explain photosynthesis.", "What is Paris?", "Explain Paris.")
ANSWERS = ("The capital of France is Paris.", "Paris", "The capital.", None)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Kit:
    """A teacher that is loaded once, and students that are loaded as often as a test needs a fresh one."""

    models: Models
    scorer: HfScorer

    def options(self, **values: Any) -> TrainGold:
        given = {"data": "x", "output": "runs", "student": str(self.models.student), "teacher": "x", "device": "cpu"}
        return TrainGold.model_validate({**given, "threads": 1, "learning_rate": 1e-2, "max_new_tokens": 12, **values})

    def learner(self, **values: Any) -> Learner:
        options = self.options(**values)
        student = load_student(options, torch.device("cpu"), lambda text: None)
        if options.lambda_kd == 0:
            return Learner(options, World(options), student, None)
        signal = ScoreSignal(options, student.side, student.head, self.scorer)
        return Learner(options, World(options), student, signal)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    models = make_models(tmp_path_factory.mktemp("models"))
    loading: dict[str, Any] = {"dtype": "float32", "device_map": "cpu", "attention": "sdpa", "load_in_4bit": False}
    scorer = HfScorer(str(models.teacher), batch_size=8, threads=1, **loading)
    scorer.prepare(lambda text: None)
    return Kit(models, scorer)


def samples_of(student: Student) -> list[Sample]:
    """Three questions with answers of different lengths, and one without."""
    found: list[Sample] = []
    for number, (question, text) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        messages = [{"role": "user", "content": question}]
        prompt = student.side.prompt_ids(messages)
        ids = None if text is None else student.side.completion_ids(text.encode(), True)
        key = f"{number + 1:016x}"
        found.append(Sample(key, f"x:{number + 1}", messages, None, prompt, prompt, ids, text is not None, text))
    return found


def draws_of(learner: Learner, count: int = 4) -> list[tuple[Sample, int]]:
    return [(sample, draw) for draw, sample in enumerate(samples_of(learner.student)[:count])]


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in learner.student.model.state_dict().items()}


def made(learner: Learner, steps: int = 1, count: int = 4) -> list[Any]:
    """What so many steps on the same samples learnt."""
    found: list[Any] = []
    for step in range(steps):
        draws = [(sample, draw + step * count) for sample, draw in draws_of(learner, count)]
        found.append(learner.learn(learner.score(learner.answer(draws))))
    return found


def logits(folder: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """(T, V) with which a saved model predicts the answer's tokens, the plain way."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]


# ---- what is averaged over what --------------------------------------------------------------------------------


def test_the_distillation_loss_is_the_sum_over_all_tokens_by_their_number(kit: Kit) -> None:
    """Two answers of different lengths: (KL of all their tokens) / (tokens of both), not a mean of means."""
    learner = kit.learner(lmbda=0.0, micro_batch_size=1)
    (found,) = made(learner, count=2)
    sums: list[float] = []
    tokens: list[int] = []
    for sample in samples_of(learner.student)[:2]:
        assert sample.answer_ids is not None
        ours = logits(kit.models.student, sample.prompt_ids, sample.answer_ids).log_softmax(-1)
        theirs = logits(kit.models.teacher, sample.prompt_ids, sample.answer_ids).log_softmax(-1)
        sums.append(float((theirs.exp() * (theirs - ours)).sum()))
        tokens.append(len(sample.answer_ids))
    assert tokens[0] > tokens[1] + 2
    assert found.tokens == sum(tokens)
    assert found.loss == found.kd_loss == pytest.approx(sum(sums) / sum(tokens), rel=1e-5)
    mean_of_means = (sums[0] / tokens[0] + sums[1] / tokens[1]) / 2
    assert abs(mean_of_means - found.loss) > 1e-4


def test_the_cross_entropy_is_averaged_over_the_tokens_of_the_answers_in_the_data(kit: Kit) -> None:
    """lambda_kd KD / (tokens trained on) + lambda_sft CE / (answer tokens), each mean over its own count."""
    learner = kit.learner(lmbda=0.0, lambda_kd=0.5, lambda_sft=2.0, micro_batch_size=2)
    (found,) = made(learner, count=3)
    total = count = 0.0
    for sample in samples_of(learner.student)[:3]:
        assert sample.answer_ids is not None
        ours = logits(kit.models.student, sample.prompt_ids, sample.answer_ids)
        total += float(cross_entropy(ours, torch.tensor(sample.answer_ids), reduction="sum"))
        count += len(sample.answer_ids)
    assert found.sft_loss == pytest.approx(total / count, rel=1e-5)
    assert found.loss == pytest.approx(0.5 * found.kd_loss + 2.0 * found.sft_loss)
    assert found.kd_loss == pytest.approx(made(kit.learner(lmbda=0.0), count=3)[0].kd_loss, rel=1e-5)


def test_answers_in_the_data_are_learnt_by_cross_entropy_also_where_the_student_wrote_its_own(kit: Kit) -> None:
    """With lmbda 1 the distillation is on the student's answers, and the cross-entropy on those in the data still."""
    own = kit.learner(lmbda=1.0, lambda_sft=1.0)
    (found,) = made(own)
    (offline,) = made(kit.learner(lmbda=0.0, lambda_sft=1.0))
    assert found.own == 4
    assert offline.own == 1  # the sample without an answer
    assert found.sft_loss == pytest.approx(offline.sft_loss, rel=1e-5)
    assert abs(found.kd_loss - offline.kd_loss) > 1e-5


def test_without_distillation_it_is_plain_supervised_training(kit: Kit) -> None:
    """The same step with transformers' own loss and torch's own optimiser gives the same weights."""
    learner = kit.learner(lambda_kd=0.0, lambda_sft=1.0, grad_clip=0.0, warmup_steps=0, schedule="constant")
    found = made(learner, steps=2, count=3)
    model = AutoModelForCausalLM.from_pretrained(kit.models.student, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step in found:
        losses: list[torch.Tensor] = []
        count = 0
        for sample in samples_of(learner.student)[:3]:
            assert sample.answer_ids is not None
            text = torch.tensor([[*sample.prompt_ids, *sample.answer_ids]])
            rows = model(text).logits[0, len(sample.prompt_ids) - 1 : -1]
            losses.append(cross_entropy(rows, torch.tensor(sample.answer_ids), reduction="sum"))
            count += len(sample.answer_ids)
        loss = torch.stack(losses).sum() / count
        assert step.loss == step.sft_loss == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert furthest(weights_of(learner), model.state_dict()) < 1e-4  # Adam's first steps have the size of the rate
    assert learner.signal is None


@pytest.mark.parametrize("more", [{"lmbda": 0.0}, {"lmbda": 0.5, "lambda_sft": 0.5}, {"lambda_kd": 0, "lambda_sft": 1}])
def test_the_size_of_the_micro_batch_changes_neither_loss_nor_weights(kit: Kit, more: dict[str, Any]) -> None:
    count = 3 if more.get("lambda_kd") == 0 else 4
    whole = kit.learner(micro_batch_size=4, **more)
    expected = made(whole, steps=2, count=count)
    for size in (1, 2):
        parts = kit.learner(micro_batch_size=size, **more)
        found = made(parts, steps=2, count=count)
        assert [step.tokens for step in found] == [step.tokens for step in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
            assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
        assert furthest(weights_of(parts), weights_of(whole)) < 1e-4  # Adam divides by sqrt(v): tiny gradients flip


def test_the_gradient_is_that_of_the_mean_over_all_tokens(kit: Kit) -> None:
    """Summed over micro-batches of one sample, to 1e-6 of the gradient's length."""
    learner = kit.learner(lmbda=0.0, micro_batch_size=1, grad_clip=0.0)
    exchanges = learner.score(learner.answer(draws_of(learner, 2)))
    learner._accumulate(exchanges, sum(each.compared for each in exchanges), 1.0)
    model = AutoModelForCausalLM.from_pretrained(kit.models.student, dtype=torch.float32)
    losses: list[torch.Tensor] = []
    for sample in samples_of(learner.student)[:2]:
        assert sample.answer_ids is not None
        text = torch.tensor([[*sample.prompt_ids, *sample.answer_ids]])
        ours = model(text).logits[0, len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
        theirs = logits(kit.models.teacher, sample.prompt_ids, sample.answer_ids).log_softmax(-1)
        losses.append((theirs.exp() * (theirs - ours)).sum())
    (torch.stack(losses).sum() / sum(each.compared for each in exchanges)).backward()
    expected = dict(model.named_parameters())
    for name, weight in learner.student.model.named_parameters():
        assert weight.grad is not None
        theirs = expected[name].grad
        assert theirs is not None
        assert float((weight.grad - theirs).norm()) < 1e-5 * max(1.0, float(theirs.norm())), name


# ---- who answers -----------------------------------------------------------------------------------------------


def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the student write "end of turn" at once; returns the seeds that it was given."""
    seeds: list[int] = []

    def answer(student: Student, prompts: Sequence[Any], given: Sequence[int], *_: Any, **__: Any) -> list[Generated]:
        seeds.extend(given)
        return [Generated([student.side.ends[0]], True) for _ in prompts]

    monkeypatch.setattr(sampling, "answer", answer)
    return seeds


@pytest.mark.parametrize("lmbda", [0.0, 0.25, 0.5, 1.0])
def test_lmbda_is_the_share_of_answers_that_the_student_gives(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, lmbda: float
) -> None:
    """Of n = 2,000 draws, within 4 standard deviations: 4 sqrt(0.25 / 2000) = 0.045."""
    seeds = written(monkeypatch)
    learner = kit.learner(lmbda=lmbda)
    sample = samples_of(learner.student)[0]
    exchanges = learner.answer([(sample, draw) for draw in range(2000)])
    share = sum(exchange.on_policy for exchange in exchanges) / 2000
    assert len(exchanges) == 2000
    assert share == lmbda if lmbda in (0.0, 1.0) else abs(share - lmbda) < 0.045
    assert len(set(seeds)) == len(seeds) == sum(exchange.on_policy for exchange in exchanges)


def test_a_sample_without_an_answer_is_always_answered_by_the_student(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(monkeypatch)
    learner = kit.learner(lmbda=0.0)
    assert [exchange.on_policy for exchange in learner.answer(draws_of(learner))] == [False, False, False, True]


def test_answers_stand_in_the_order_of_the_draws_and_a_draw_always_has_the_same_answer(kit: Kit) -> None:
    learner = kit.learner(lmbda=0.5)
    draws = [(sample, draw) for draw, sample in enumerate(samples_of(learner.student) * 3)]
    found = learner.answer(draws)
    assert [exchange.sample.key for exchange in found] == [sample.key for sample, _ in draws]
    backwards = learner.answer(draws[::-1])[::-1]
    assert [exchange.completion_ids for exchange in backwards] == [exchange.completion_ids for exchange in found]


def test_supervised_training_lets_the_student_answer_nothing(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = written(monkeypatch)
    learner = kit.learner(lambda_kd=0.0, lambda_sft=1.0, lmbda=1.0)
    found = learner.answer(draws_of(learner))
    assert seeds == []
    assert [exchange.sample.place for exchange in found] == ["x:1", "x:2", "x:3"]  # the fourth has no answer


# ---- the teacher's part ----------------------------------------------------------------------------------------


def test_an_answer_that_does_not_fit_into_the_teachers_context_is_left_out_and_counted(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = kit.learner(lmbda=0.0)
    exchanges = learner.answer(draws_of(learner, 3))
    sizes = [len(each.sample.prompt_ids) + len(each.completion_ids) for each in exchanges]
    monkeypatch.setattr(kit.scorer, "context_tokens", max(sizes) - 1)
    kept = learner.score(exchanges)
    assert len(kept) == 2
    assert learner.skipped == {"the answer does not fit into the teacher's context": 1}


def test_what_the_teacher_cannot_score_stops_the_run_and_names_the_sample(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = kit.learner(lmbda=0.0)

    def refuse(batch: Any) -> Any:
        raise RequestRejected("nan", "row 0: the logits are not finite")

    monkeypatch.setattr(kit.scorer, "score", refuse)
    with pytest.raises(StoppedEarly, match=r"x:1.*row 0: the logits are not finite"):
        learner.score(learner.answer(draws_of(learner, 2)))


# ---- accidents -------------------------------------------------------------------------------------------------


class Narrow:
    """A student's `hidden` on a machine whose memory holds so many texts at a time."""

    def __init__(self, student: Student, rows: int, error: RuntimeError) -> None:
        self._hidden, self._rows, self._error = student.hidden, rows, error
        self.refused = 0

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> torch.Tensor:
        if len(prompts) > self._rows:
            self.refused += 1
            raise self._error
        return self._hidden(prompts, completions)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(kit: Kit, error: RuntimeError) -> None:
    narrow = kit.learner(micro_batch_size=4, lmbda=0.5, lambda_sft=0.5)
    hidden = Narrow(narrow.student, 1, error)
    narrow.student.hidden = hidden  # type: ignore[method-assign]
    found = made(narrow, steps=2)
    assert narrow.micro_batch_size == 1
    assert hidden.refused == 2  # at 4 and at 2, in the first step only
    single = kit.learner(micro_batch_size=1, lmbda=0.5, lambda_sft=0.5)
    assert [(step.loss, step.tokens) for step in made(single, steps=2)] == [(step.loss, step.tokens) for step in found]
    assert furthest(weights_of(narrow), weights_of(single)) == 0.0


def test_out_of_memory_halfway_through_a_step_leaves_no_gradient_behind(kit: Kit) -> None:
    """The longest texts come last, so it is they that do not fit, after others went through."""
    narrow = kit.learner(micro_batch_size=2, lmbda=0.0)
    hidden = narrow.student.hidden

    def first_fits(prompts: Sequence[Any], completions: Sequence[Any]) -> torch.Tensor:
        if len(prompts) > 1 and max(map(len, completions)) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return hidden(prompts, completions)

    narrow.student.hidden = first_fits  # type: ignore[method-assign]
    found = made(narrow)
    assert narrow.micro_batch_size == 1
    single = kit.learner(micro_batch_size=1, lmbda=0.0)
    assert made(single)[0].loss == found[0].loss
    assert furthest(weights_of(narrow), weights_of(single)) == 0.0


def test_one_sample_that_does_not_fit_alone_stops_the_run_in_words(kit: Kit) -> None:
    learner = kit.learner(micro_batch_size=4, lmbda=0.0)
    learner.student.hidden = Narrow(learner.student, 0, torch.OutOfMemoryError("no"))  # type: ignore[method-assign]
    with pytest.raises(StoppedEarly, match="memory"):
        made(learner)


def test_another_error_is_not_taken_for_a_lack_of_memory(kit: Kit) -> None:
    learner = kit.learner(micro_batch_size=4, lmbda=0.0)
    learner.student.hidden = Narrow(learner.student, 0, RuntimeError("shapes"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes"):
        made(learner)


def test_a_loss_that_is_not_finite_names_the_sample_and_changes_no_weight(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = kit.learner(lmbda=0.0)
    before = weights_of(learner)
    exchanges = learner.score(learner.answer(draws_of(learner, 3)))
    hidden = learner.student.hidden
    poisoned = exchanges[1].completion_ids

    def broken(prompts: Sequence[Any], completions: Sequence[Any]) -> torch.Tensor:
        return hidden(prompts, completions) * (math.nan if poisoned in completions else 1.0)

    learner.student.hidden = broken  # type: ignore[method-assign]
    with pytest.raises(StoppedEarly, match=r"no longer finite, in the answer to x:2\. This step has changed nothing"):
        learner.learn(exchanges)
    assert furthest(weights_of(learner), before) == 0.0


def test_a_step_without_samples_changes_no_weight(kit: Kit) -> None:
    learner = kit.learner(lmbda=0.0, weight_decay=0.1)
    made(learner, steps=2)  # AdamW would go on along the momentum of these
    before = weights_of(learner)
    found = learner.learn([])
    assert (found.loss, found.samples, found.tokens) == (0.0, 0, 0)
    assert furthest(weights_of(learner), before) == 0.0


def test_a_learner_goes_on_from_the_state_of_another_to_the_bit(kit: Kit) -> None:
    whole = kit.learner(lmbda=0.0, max_steps=4)
    made(whole, steps=2)
    state, weights = copy.deepcopy(whole.state()), weights_of(whole)
    fresh = kit.learner(lmbda=0.0, max_steps=4)
    fresh.student.model.load_state_dict(weights)
    fresh.load_state({**state, "micro_batch_size": 4})
    assert made(whole, steps=2) == made(fresh, steps=2)
    assert furthest(weights_of(whole), weights_of(fresh)) == 0.0


# ---- small parts -----------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_and_falls_as_announced(kit: Kit) -> None:
    """10 steps, 2 of warm-up: 1/3, 2/3, 1; then 8 steps of cosine to a tenth: half-way (step 6) it is (1 + 0.1) / 2."""
    cosine = learning_rate_of(kit.options(max_steps=10, warmup_steps=2))
    assert [cosine(step) for step in (0, 1, 2, 6, 10)] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.55, 0.1])
    linear = learning_rate_of(kit.options(max_steps=10, warmup_steps=2, schedule="linear"))
    assert [linear(step) for step in (2, 6, 9, 10)] == pytest.approx([1.0, 0.5, 0.125, 0.0])
    constant = learning_rate_of(kit.options(max_steps=10, warmup_steps=0, schedule="constant"))
    assert {constant(step) for step in range(10)} == {1.0}


@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from(["cosine", "linear", "constant"]), st.data())
def test_the_learning_rate_is_never_zero_nor_above_its_highest(
    steps: int, warmup: int, schedule: str, data: st.DataObject
) -> None:
    options = TrainGold.model_validate(
        {"data": "x", "output": "y", "max_steps": steps, "warmup_steps": warmup, "schedule": schedule}
    )
    step = data.draw(st.integers(0, steps - 1))
    assert 0.0 < learning_rate_of(options)(step) <= 1.0


@given(st.lists(st.integers(0, 30)), st.integers(1, 9))
def test_micro_batches_hold_every_sample_once_and_none_too_many(lengths: list[int], size: int) -> None:
    sample = Sample("0" * 16, "x:1", [], None, [1], [1])
    exchanges = [Exchange(sample, [0] * length, True, False, [], None) for length in lengths]
    found = list(micro_batches(exchanges, size))
    assert sorted(id(each) for batch in found for each in batch) == sorted(map(id, exchanges))
    assert all(1 <= len(batch) <= size for batch in found)
    assert len(found) == -(-len(lengths) // size)
