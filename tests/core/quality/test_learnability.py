"""How probable models find stored answers: against log_softmax of whole logits, computed here."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.commands.check_data import Measured
from core.commands.teacher import TeacherOptions
from core.data.run import Run
from core.data.statistics import wilson
from core.errors import BudgetReached, ModelNotFound, UsageError
from core.quality.asking import Asking, Estimate
from core.quality.learnability import (
    SCORES,
    Side,
    agreement,
    check_scorer,
    estimate,
    opened_scorer,
    score_answers,
    surprise,
)
from core.quality.results import Model
from core.quality.teaching import Sample, choose
from tests.support.chatting import OTHER_CORPUS, noisy_model
from tests.support.entries import entries, pairs
from tests.support.scoring_server import Running, scoring_server
from tests.support.tiny_model import make_tiny_model, teach

QUESTION = "What is the capital of France?"
ANSWERS = (
    "The capital of France is Paris.",
    "Explain photosynthesis",
    "größer, 太陽!",
    "Paris",
    "It is.",
    "What?",
    "No.",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_keys(folder: Path) -> None:
    """An empty folder and no keys around every test."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_model(tmp_path_factory.mktemp("teacher"), seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other tokens."""
    return noisy_model(tmp_path_factory.mktemp("student"), seed=2, corpus=OTHER_CORPUS)


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[Running]:
    with scoring_server(model, max_logprobs=20, retry_after_s=0.01) as server:
        yield server


@pytest.fixture
def server(running: Running) -> Running:
    running.config(dialect="vllm", faults={}, noise=0.0, prompt_price=0.0, completion_price=0.0)
    return running


def samples_of(*answers: str) -> list[Sample]:
    rows = pairs(*((f"{number}: {QUESTION}", answer) for number, answer in enumerate(answers or ANSWERS)))
    return sorted(choose(rows, len(rows), seed=0), key=lambda sample: sample.entry.index)


def local(folder: Path) -> TeacherOptions:
    return TeacherOptions(model=str(folder), backend="hf", device_map="cpu", threads=1)


def served(server: Running, **more: Any) -> TeacherOptions:
    given = {"model": "scoring/model", "backend": "vllm", "base_url": server.url, "concurrency": 2, "retries": 1}
    return TeacherOptions.model_validate(given | more)


def scored(
    samples: Sequence[Sample],
    options: TeacherOptions,
    folder: Path,
    side: Side = "teacher",
    *,
    tokenizer: Path | None = None,
    run: Run | None = None,
) -> tuple[Asking, Model]:
    async def score() -> tuple[Asking, Model]:
        async with Asking(folder, run or Run(), max_cost=options.max_cost) as asking:
            with opened_scorer(options, side, asking, None if tokenizer is None else str(tokenizer)) as scorer:
                score_answers(samples, scorer, asking)
            return asking, scorer.model

    return asyncio.run(score())


def by_hand(folder: Path, sample: Sample, *, ended: bool = True) -> tuple[int, int, float]:
    """(tokens, most probable ones, nats) of the answer, from the model's own template and all its logits."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = tokenizer.apply_chat_template(
        sample.entry.messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    ids = tokenizer(sample.shown.answer, add_special_tokens=False)["input_ids"]
    ids += [tokenizer.convert_tokens_to_ids("<|im_end|>")] if ended else []
    with torch.no_grad():
        logits = model(torch.tensor([asked + ids])).logits[0, len(asked) - 1 : -1].double()
    picked = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
    return len(ids), int((logits.argmax(-1) == torch.tensor(ids)).sum()), -float(picked.sum())


# ---- scores ------------------------------------------------------------------------------------------------------


def test_an_answer_is_scored_with_its_end_of_turn_after_the_models_own_template(model: Path, tmp_path: Path):
    samples = samples_of()
    _, told = scored(samples, local(model), tmp_path)
    for sample in samples:
        tokens, top1, nats = by_hand(model, sample)
        assert (sample.shown.tokens, sample.shown.top1) == (tokens, top1)
        assert sample.shown.teacher_nats == pytest.approx(nats, rel=1e-5)
        assert sample.shown.bytes == len(sample.shown.answer.encode()) + 1  # the end of turn counts as one
        assert sample.shown.student_nats is None
    assert (told.role, told.backend, told.requests, told.usd) == ("scoring teacher", "hf", len(ANSWERS), 0.0)


def test_an_answer_that_was_cut_has_no_end_and_thoughts_are_part_of_what_is_learnt(model: Path, tmp_path: Path):
    rows = [
        {"prompt": QUESTION, "answer": "Paris is", "finish_reason": "length"},
        {"prompt": QUESTION, "answer": "<think>hm</think>Paris is"},
    ]
    cut, thought = sorted(choose(entries(rows), 2, seed=0), key=lambda sample: sample.entry.index)
    scored([cut, thought], local(model), tmp_path)
    tokens, _, nats = by_hand(model, cut, ended=False)
    assert (cut.shown.tokens, cut.shown.bytes) == (tokens, len("Paris is"))
    assert cut.shown.teacher_nats == pytest.approx(nats, rel=1e-5)
    assert thought.shown.answer == "Paris is"
    assert thought.shown.bytes == len("<think>hm</think>Paris is") + 1


def test_a_model_agrees_with_what_it_was_taught_to_say(tmp_path: Path):
    folder = make_tiny_model(tmp_path / "taught")
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    teach(folder, prompt, "The capital of France is Paris.<|im_end|>")
    rows = pairs((QUESTION, "The capital of France is Paris."), (QUESTION, "Explain photosynthesis."))
    right, wrong = sorted(choose(rows, 2, seed=0), key=lambda sample: sample.entry.index)
    scored([right, wrong], local(folder), tmp_path / "report")
    assert right.shown.top1 == right.shown.tokens
    assert (right.shown.teacher_nats or 9) < 1 < (wrong.shown.teacher_nats or 0)
    assert (wrong.shown.top1 or 0) < (wrong.shown.tokens or 0)


def test_what_does_not_fit_or_is_refused_gets_a_note_and_the_others_their_scores(tmp_path: Path):
    raising = (
        "{% for m in messages %}{% if 'forbidden' in m.content %}{{ raise_exception('not this one') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder = make_tiny_model(tmp_path / "short", positions=64, template=raising)
    rows = pairs((QUESTION, "Paris."), (QUESTION, "x" * 100), ("forbidden", "Paris."))
    samples = sorted(choose(rows, 3, seed=0), key=lambda sample: sample.entry.index)
    scored(samples, local(folder), tmp_path / "report")
    assert samples[0].shown.teacher_nats is not None
    assert [sample.shown.teacher_nats for sample in samples[1:]] == [None, None]
    assert "do not fit into its context of 64" in samples[1].shown.notes[0]
    assert "not this one" in samples[2].shown.notes[0]


def test_ctrl_c_ends_between_rows(model: Path, tmp_path: Path):
    run = Run()
    run.stop.ask()
    samples = samples_of()
    asking, _ = scored(samples, local(model), tmp_path, run=run)
    assert asking.ended
    assert all(sample.shown.teacher_nats is None for sample in samples)


# ---- student and teacher -----------------------------------------------------------------------------------------


def figures(samples: Sequence[Sample]) -> dict[str, Measured]:
    return {each.name: each for each in surprise(samples)}


def test_a_student_that_is_its_teacher_has_nothing_to_learn(model: Path, tmp_path: Path):
    samples = samples_of()
    scored(samples, local(model), tmp_path)
    scored(samples, local(model), tmp_path, "student")
    assert [sample.shown.student_nats for sample in samples] == [sample.shown.teacher_nats for sample in samples]
    gap = figures(samples)["learnability"]
    assert (gap.value, gap.low, gap.high, gap.of) == (0.0, 0.0, 0.0, len(ANSWERS))


def test_the_gap_is_in_nats_per_byte_whatever_the_tokens(model: Path, other: Path, tmp_path: Path):
    samples = samples_of()
    scored(samples, local(model), tmp_path)
    scored(samples, local(other), tmp_path, "student")
    teacher, student = ([by_hand(folder, sample) for sample in samples] for folder in (model, other))
    assert [one[0] for one in teacher] != [one[0] for one in student]  # other tokens
    size = sum(len(answer.encode()) + 1 for answer in ANSWERS)
    found = figures(samples)
    assert found["teacher_nats_per_byte"].value == pytest.approx(sum(one[2] for one in teacher) / size, rel=1e-5)
    assert found["student_nats_per_byte"].value == pytest.approx(sum(one[2] for one in student) / size, rel=1e-5)
    assert found["teacher_nats_per_token"].value == pytest.approx(
        sum(one[2] for one in teacher) / sum(one[0] for one in teacher), rel=1e-5
    )
    gap = found["learnability"]
    assert gap.value == pytest.approx(found["student_nats_per_byte"].value - found["teacher_nats_per_byte"].value)
    assert gap.low < gap.value < gap.high
    assert all(each.low < each.value < each.high and each.kind == "mean" for each in found.values())


def test_only_rows_that_both_have_scored_are_compared():
    samples = samples_of("a", "b", "c")
    for sample, teacher, student in zip(samples, (10.0, 20.0, None), (14.0, None, 30.0), strict=True):
        sample.shown.bytes, sample.shown.tokens = 10, 5
        sample.shown.teacher_nats, sample.shown.student_nats = teacher, student
    found = figures(samples)
    assert (found["teacher_nats_per_byte"].value, found["teacher_nats_per_byte"].of) == (30 / 20, 2)
    assert (found["student_nats_per_byte"].value, found["student_nats_per_byte"].of) == (44 / 20, 2)
    assert "learnability" not in found  # one row alone says nothing of the others


# ---- agreement ---------------------------------------------------------------------------------------------------


def told(*rows: tuple[int, int]) -> list[Sample]:
    samples = samples_of(*map(str, range(len(rows))))
    for sample, (top1, tokens) in zip(samples, rows, strict=True):
        sample.shown.top1, sample.shown.tokens = top1, tokens
    return samples


def test_agreement_is_a_share_of_tokens_and_its_interval_one_over_rows():
    # 10 rows: 5 of 100 tokens in each of five, 90 of 100 in the others: 475 / 1000. As 1,000 independent tokens that
    # would be 0.475 +- 0.031; the rows' shares, 0.05 and 0.9, are 0.425 sqrt(10 / 9) / sqrt(10) = 0.142 apart.
    found = agreement(told(*[(5, 100), (90, 100)] * 5))
    assert found is not None
    assert (found.value, found.of) == (0.475, 10)
    assert found.high - found.value == pytest.approx(2.262 * 0.142, rel=0.1)
    assert found.value - found.low == pytest.approx(2.262 * 0.142, rel=0.1)


def test_long_answers_weigh_more():
    found = agreement(told((9, 10), (100, 1000)))
    assert found is not None
    assert found.value == pytest.approx(109 / 1010)


def test_agreement_in_everything_is_not_certainty():
    found = agreement(told(*[(7, 7)] * 10))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((1.0, *wilson(10, 10)))
    one = agreement(told((3, 4)))
    assert one is not None
    assert (one.value, one.low, one.high) == (0.75, 0.0, 1.0)
    assert agreement(samples_of()) is None


# ---- servers -----------------------------------------------------------------------------------------------------


def test_a_server_says_what_the_model_here_says_and_is_asked_once(model: Path, server: Running, tmp_path: Path):
    here, there = samples_of(), samples_of()
    scored(here, local(model), tmp_path / "here")
    before = server.stats()["requests"]
    _, told = scored(there, served(server), tmp_path / "there", tokenizer=model)
    for one, other in zip(here, there, strict=True):
        assert (one.shown.tokens, one.shown.top1, one.shown.bytes) == (
            other.shown.tokens, other.shown.top1, other.shown.bytes,
        )  # fmt: skip
        assert one.shown.teacher_nats == pytest.approx(other.shown.teacher_nats, rel=1e-4)
    assert (told.backend, told.requests, told.cached, told.usd) == ("vllm", len(ANSWERS), 0, 0.0)
    asked = server.stats()["requests"]
    assert asked > before + len(ANSWERS)  # the test of the server comes first
    again = samples_of()
    _, told = scored(again, served(server), tmp_path / "there", tokenizer=model)
    assert [sample.shown for sample in again] == [sample.shown for sample in there]
    assert (told.requests, told.cached) == (len(ANSWERS), len(ANSWERS))
    assert server.stats()["requests"] == asked
    assert (tmp_path / "there" / SCORES).is_file()


def test_scores_are_paid_from_the_common_budget(model: Path, server: Running, tmp_path: Path):
    scored(samples_of(), served(server), tmp_path, tokenizer=model)  # what the test of the server costs is no matter
    samples = samples_of(*(f"Answer number {number}" for number in range(20)))
    server.config(prompt_price=0.001, completion_price=0.0)
    options = served(server, price="1000/0", max_cost=0.5, concurrency=1)
    asking, told = scored(samples, options, tmp_path, tokenizer=model)
    assert isinstance(asking.stopped, BudgetReached)
    assert asking.ended
    there = [sample for sample in samples if sample.shown.teacher_nats is not None]
    assert 0 < len(there) < 20
    assert told.usd is not None
    assert 0.3 < told.usd <= 0.5
    assert asking.spending.known == pytest.approx(told.usd)
    assert "--resume" not in str(asking.stopped)


def test_a_dry_run_asks_no_server_for_scores(server: Running, tmp_path: Path):
    samples = samples_of("a", "b")
    before = server.stats()["requests"]
    asking = Asking(tmp_path / "none", Run(), max_cost=None, dry_run=True)
    options = served(server, price="1000/0")
    found = estimate(samples, options, asking)
    # Each as many tokens as bytes: the question, one of the answer, its end, and one that the server may add.
    tokens = sum(sample.question.most_tokens + 1 + 2 for sample in samples)
    assert (found.requests, found.cached) == (2, 0)
    assert found.worst_usd == pytest.approx(tokens * 0.001)
    assert estimate(samples, served(server), asking) == Estimate(2, 0, 0.0)  # a server of one's own
    assert estimate(samples, local(tmp_path), asking) == Estimate(0, 0, 0.0)
    assert server.stats()["requests"] == before
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_be_tested_stops_the_scoring_in_words(model: Path, server: Running, tmp_path: Path):
    samples = samples_of("a", "b")
    # The test of the server alone could cost more.
    asking, _ = scored(samples, served(server, price="1000/0", max_cost=0.01), tmp_path / "1", tokenizer=model)
    assert "more than --max-cost; raise it, or leave out --score" in str(asking.stopped)
    server.config(faults={"null_logprobs": 1})
    asking, told = scored(samples, served(server), tmp_path / "2", tokenizer=model)
    assert "scoring/model could not be tested" in str(asking.stopped)
    assert "tells no log-probabilities" in str(asking.stopped)
    assert (told.requests, told.cached) == (2, 0)
    assert all(sample.shown.teacher_nats is None for sample in samples)
    # Another time it can.
    server.config(faults={})
    asking, _ = scored(samples, served(server), tmp_path / "2", tokenizer=model)
    assert asking.stopped is None
    assert all(sample.shown.teacher_nats is not None for sample in samples)


def test_who_cannot_score_is_refused_in_words():
    with pytest.raises(UsageError, match=r"through openrouter writes answers.*hf, gguf, together, fireworks, vllm"):
        check_scorer(TeacherOptions(model="qwen/qwen-2.5-72b-instruct"))
    with pytest.raises(UsageError, match="Name it with --teacher-backend"):
        check_scorer(TeacherOptions(model="x/y", base_url="http://127.0.0.1:1/v1"))
    with pytest.raises(ModelNotFound):
        check_scorer(TeacherOptions(model="./no-such-folder", backend="hf"))
    check_scorer(TeacherOptions(model="x/y", backend="vllm", base_url="http://127.0.0.1:1/v1"))


@pytest.mark.gguf
def test_llama_cpp_and_transformers_agree_about_smollm2(tmp_path: Path):
    rows = pairs((QUESTION, "The capital of France is Paris."), ("Name a colour.", "Purple monkey dishwasher."))
    found: list[list[float]] = []
    for backend in ("gguf", "hf"):
        samples = sorted(choose(rows, 2, seed=0), key=lambda sample: sample.entry.index)
        options = TeacherOptions.model_validate(
            {"model": "smollm2", "backend": backend, "n_gpu_layers": 0, "threads": 1, "device_map": "cpu"}
        )
        scored(samples, options, tmp_path)
        found.append([(sample.shown.teacher_nats or math.nan) / (sample.shown.bytes or 1) for sample in samples])
        assert (samples[0].shown.top1 or 0) >= 6 > (samples[1].shown.top1 or 0)
    # The answer that it would give is far less of a surprise; both read one file, quantised in one of them.
    assert all(expected < 0.1 < 1 < absurd for expected, absurd in found)
    assert found[0] == pytest.approx(found[1], rel=0.1)
