"""What is said before a run: the plan's lines, its estimate of memory by hand, what two tokenizers share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.commands.train_gold import TrainGold
from core.distillation.chat import ChatSide
from core.distillation.vocabulary import VocabularyMap, build
from core.teachers.scorer import Scorer, open_scorer
from core.training.memory import memory_estimate, teacher_size
from core.training.plan import Shared, amount, counted, plan_lines, shared_tokens
from core.training.samples import Sample, Samples
from core.training.score_signal import ScoreSignal
from core.training.student import Student, load_student
from core.training.teaching import Lesson
from tests.support.tiny_model import CHATML, make_tiny_model
from tests.support.tokenizers import small_tokenizer

CPU = torch.device("cpu")
PARTS = ("libraries", "weights", "gradients", "optimiser", "activations", "loss", "KV cache", "teacher", "in all")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabulary maps are kept with the test, not with the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per layer D = 64, queries H = 4 x 16 = 64, keys K = 2 x 16 = 32, inner I = 128; 2 layers, an untied head."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other tokens."""
    return make_tiny_model(tmp_path_factory.mktemp("other"), corpus="Paris Paris photosynthesis of plants")


def settings(folder: Path, **options: Any) -> TrainGold:
    fixed = {"data": "x.jsonl", "output": "run", "student": str(folder), "teacher": str(folder), "device": "cpu"}
    return TrainGold.model_validate({**fixed, **options})


def opened(options: TrainGold) -> Student:
    return load_student(options, CPU, lambda note: None)


@pytest.fixture(scope="module")
def student(folder: Path) -> Student:
    return opened(settings(folder))


def prepared(options: TrainGold) -> Scorer:
    scorer = open_scorer(options.teacher_options("cpu", "sdpa"))
    scorer.prepare(lambda note: None)
    return scorer


def sample(prompt: int, answer: int | None, words: str = "What is the capital of France?") -> Sample:
    """Of so many tokens."""
    ids = None if answer is None else [7] * answer
    return Sample(
        key="0" * 16,
        place="x.jsonl:1",
        messages=[{"role": "user", "content": words}],
        tools=None,
        prompt_ids=[5] * prompt,
        teacher_prompt_ids=[5] * prompt,
        answer_ids=ids,
        answer_ended=False,
        answer=None if ids is None else "so",
    )


def samples(*train: Sample, held_out: tuple[Sample, ...] = ()) -> Samples:
    return Samples(train=list(train), held_out=list(held_out), skipped={}, notes=[])


def estimated(options: TrainGold, data: Samples, **more: Any) -> tuple[Student, dict[str, float]]:
    student = opened(options)
    known = {"teacher_gb": 0.25, "teacher_width": student.width, "processes": 1, "device": CPU, **more}
    return student, memory_estimate(options, student, data, **known)


def lines_of(options: TrainGold, data: Samples, *, processes: int = 1) -> dict[str, str]:
    """The plan by the names of its lines."""
    student = opened(options)
    scorer = prepared(options) if options.lambda_kd else None
    signal = None if scorer is None else ScoreSignal(options, student.side, student.head, scorer)
    lines = plan_lines(Lesson(options, data, signal, scorer), student, processes, CPU)
    return {line[:12].strip(): line[12:] for line in lines}


# ---- memory ------------------------------------------------------------------------------------------------------


def test_memory_of_full_training_by_hand(folder: Path):
    student, parts = estimated(
        settings(folder, batch_size=8, micro_batch_size=4, max_new_tokens=20), samples(sample(30, 10))
    )
    n, v = student.parameters, student.width
    assert tuple(parts) == PARTS
    assert parts["weights"] == pytest.approx(4 * n / 1e9)
    assert parts["gradients"] == pytest.approx(4 * n / 1e9)
    assert parts["optimiser"] == pytest.approx(8 * n / 1e9)
    # 6 x 64 + 2 x 64 + 2 x 32 + 4 x 128 = 1088 numbers of 4 bytes for each of 2 layers and of 4 x (30 + 20) tokens
    assert parts["activations"] == pytest.approx(1088 * 4 * 2 * 200 / 1e9)
    # 4 x 20 rows of both models' logits, and the gradient of the output layer
    assert parts["loss"] == pytest.approx((80 * 2 * v * 4 + v * 64 * 4) / 1e9)
    # keys and values of 32 numbers, 2 layers, 8 samples of 30 + 20 tokens
    assert parts["KV cache"] == pytest.approx(2 * 2 * 32 * 8 * 50 * 4 / 1e9)
    learning = parts["gradients"] + parts["activations"] + parts["loss"]
    assert parts["in all"] == pytest.approx(0.6 + 0.25 + 12 * n / 1e9 + learning)


def test_memory_of_lora_by_hand(folder: Path):
    data = samples(sample(30, 10))
    student, parts = estimated(settings(folder, lora=True, lora_rank=4, max_new_tokens=20), data)
    # q 4 (64 + 64), k and v 4 (64 + 32) each, o 4 (64 + 64): 1792 weights for each of 2 layers
    assert student.trainable == 3584
    assert parts["optimiser"] == pytest.approx(8 * 3584 / 1e9)
    assert parts["weights"] == pytest.approx(4 * (student.parameters + 3584) / 1e9)
    # 2 x 64 + 2 x 64 + 2 x 32 + 3 x 128 = 704, and the four adapters' inputs of 64 numbers, mask and result: 512
    assert parts["activations"] == pytest.approx((704 + 512) * 4 * 2 * 200 / 1e9)
    assert parts["loss"] == pytest.approx(80 * 2 * student.width * 4 / 1e9)  # nothing for an output layer that stays


def test_checkpointing_keeps_a_layers_input_and_the_numbers_of_one_layer(folder: Path):
    _, parts = estimated(settings(folder, gradient_checkpointing=True, max_new_tokens=20), samples(sample(30, 10)))
    assert parts["activations"] == pytest.approx((2 * 64 + 1088) * 4 * 200 / 1e9)


def test_without_own_answers_lengths_are_those_of_the_data(folder: Path):
    options = settings(folder, lmbda=0, max_new_tokens=100)
    _, parts = estimated(options, samples(sample(30, 10), sample(5, 15)))
    assert parts["activations"] == pytest.approx(1088 * 4 * 2 * 4 * 40 / 1e9)  # 30 + 10 is the longest text
    assert parts["KV cache"] == 0.0
    # validation draws answers, also to held-out prompts: 8 rows of 50 + 100 tokens
    _, parts = estimated(options, samples(sample(30, 10), held_out=(sample(50, 10),)))
    assert parts["KV cache"] == pytest.approx(2 * 2 * 32 * 8 * 150 * 4 / 1e9)


def test_a_sample_without_an_answer_is_as_long_as_an_answer_may_be(folder: Path):
    options = settings(folder, lmbda=0, max_new_tokens=20)
    _, parts = estimated(options, samples(sample(30, 10), sample(25, None)))
    assert parts["activations"] == pytest.approx(1088 * 4 * 2 * 4 * 45 / 1e9)


def test_two_answers_to_a_sample_take_twice_the_activations(folder: Path):
    data = samples(sample(30, 10))
    once, twice = (estimated(settings(folder, lambda_sft=x), data)[1]["activations"] for x in (0.0, 0.5))
    assert twice == 2 * once


def test_bfloat16_keeps_float32_weights_and_their_cast_copies(folder: Path):
    student, parts = estimated(settings(folder, student_dtype="bfloat16"), samples(sample(30, 10)))
    assert parts["weights"] == pytest.approx((4 + 2) * student.parameters / 1e9)


def test_answers_that_are_written_together_can_need_more_than_learning(folder: Path):
    data, more = samples(sample(10, 10)), {"max_new_tokens": 1000, "micro_batch_size": 1, "lora": True}
    _, parts = estimated(settings(folder, batch_size=1000, **more), data)
    assert parts["KV cache"] > parts["gradients"] + parts["activations"] + parts["loss"]
    held = sum(parts[name] for name in ("libraries", "weights", "optimiser", "teacher", "KV cache"))
    assert parts["in all"] == pytest.approx(held)


def test_processes_share_the_samples_of_a_step(folder: Path):
    options, data = settings(folder, batch_size=8, micro_batch_size=8), samples(sample(30, 10))
    one, two = (estimated(options, data, processes=count)[1] for count in (1, 2))
    assert two["activations"] == one["activations"] / 2
    assert two["KV cache"] == one["KV cache"] / 2
    assert two["weights"] == one["weights"]


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 200))
def test_longer_texts_and_larger_micro_batches_never_need_less(student: Student, batch: int, micro: int, tokens: int):
    options = settings(Path("student"), batch_size=batch, micro_batch_size=micro, max_new_tokens=tokens)
    wider = options.model_copy(update={"micro_batch_size": micro + 1, "max_new_tokens": tokens + 1})
    known: Any = {"teacher_gb": 0.0, "teacher_width": 0, "processes": 1, "device": CPU}
    data = samples(sample(30, 10))
    first, second = (memory_estimate(each, student, data, **known) for each in (options, wider))
    assert all(first[name] <= second[name] for name in PARTS)


def test_the_size_of_a_teacher_is_read_from_its_files(folder: Path, student: Student):
    n = student.parameters
    found = teacher_size(settings(folder), CPU)
    assert found is not None
    assert (found.parameters, found.gb) == (n, pytest.approx(4 * n / 1e9))
    half = teacher_size(settings(folder, teacher_dtype="bfloat16"), CPU)
    assert half is not None
    assert half.gb == pytest.approx(2 * n / 1e9)


def test_a_gguf_teacher_is_as_large_as_its_files(folder: Path, tmp_path: Path):
    for part in ("model-00001-of-00002.gguf", "model-00002-of-00002.gguf", "another.gguf"):
        (tmp_path / part).write_bytes(b"x" * 500)
    options = settings(folder, teacher_backend="gguf", teacher_gguf=str(tmp_path / "model-00001-of-00002.gguf"))
    found = teacher_size(options, CPU)
    assert found is not None
    assert (found.parameters, found.gb) == (None, pytest.approx(1000 / 1e9))


def test_a_teacher_without_safetensors_has_no_known_size(folder: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    assert teacher_size(settings(folder, teacher=str(tmp_path)), CPU) is None


# ---- what the tokenizers share -----------------------------------------------------------------------------------


def sides() -> tuple[ChatSide, ChatSide, VocabularyMap]:
    student = ChatSide(small_tokenizer("ab", "Ġcd", template=CHATML))
    teacher = ChatSide(small_tokenizer("Ġ12", "ab", template=CHATML))
    widths = student.token_bytes.size, teacher.token_bytes.size
    ends = student.end_of_turn, teacher.end_of_turn
    return student, teacher, build(student.token_bytes, teacher.token_bytes, *widths, ends)


def test_shares_of_a_text_that_can_be_counted_by_hand():
    # "ab cd 12"   student: ab| cd| |1|2   teacher: ab| |c|d| 12   groups: ab|ab, " cd"|" ",c,d, " ",1,2|" 12"
    # ab is exact; " cd" has no partner; the space, 1 and 2 have partners, but stand in a group of three
    student, teacher, matched = sides()
    ids = student.completion_ids(b"ab cd 12", False)
    assert shared_tokens(student, teacher, matched, [(ids, False)]) == Shared(tokens=5, exact=1, merged=3, outside=1)


def test_the_end_of_turn_is_one_more_exact_token():
    student, teacher, matched = sides()
    ids = student.completion_ids(b"ab", True)
    assert shared_tokens(student, teacher, matched, [(ids, True)]) == Shared(tokens=2, exact=2, merged=0, outside=0)


def test_nothing_is_exact_between_vocabularies_without_a_pair():
    student, teacher, matched = sides()
    empty = VocabularyMap(
        matched.student_ids[:0],
        matched.teacher_ids[:0],
        matched.student_rest,
        matched.teacher_rest,
        matched.student_width,
        matched.teacher_width,
    )
    ids = student.completion_ids(b"ab", False)
    assert shared_tokens(student, teacher, empty, [(ids, False)]) == Shared(tokens=1, exact=0, merged=0, outside=1)


@given(st.lists(st.text(max_size=20), max_size=4), st.booleans())
def test_every_token_is_exact_merged_or_outside(texts: list[str], ended: bool):
    student, teacher, matched = SIDES
    answers = [(student.completion_ids(text.encode(errors="replace"), ended), ended) for text in texts]
    found = shared_tokens(student, teacher, matched, answers)
    assert found.tokens == sum(len(ids) for ids, _ in answers) == found.exact + found.merged + found.outside
    assert min(found.exact, found.merged, found.outside) >= 0


SIDES = sides()


# ---- the lines ---------------------------------------------------------------------------------------------------


def test_the_plan_of_a_run_with_one_tokenizer(folder: Path):
    held_out = (sample(30, 10),)
    options = settings(folder, lmbda=0.5, batch_size=4, max_new_tokens=20, max_steps=100)
    lines = lines_of(options, samples(sample(30, 10), sample(20, None), held_out=held_out))
    assert list(lines) == [
        "student", "teacher", "signal", "tokenizers", "data", "step", "answers", "optimiser", "memory", "validation",
    ]  # fmt: skip
    assert lines["student"].endswith("parameters, all of them trained")
    assert "(hf): " in lines["teacher"]
    assert "float32" in lines["teacher"]
    assert "context of 256 tokens" in lines["teacher"]
    assert lines["tokenizers"] == "one, compared token by token"
    assert lines["data"] == "samples to train on: 2 (1 with an answer), held out: 1 (1 with an answer)"
    assert lines["step"] == "4 samples, 4 per forward pass on cpu, at most 80 answer tokens"
    # the row without an answer is always the student's, the other half of the time: (1 + 0.5) / 2
    assert lines["answers"].startswith("75% the student's own, up to 20 tokens, temperature 1, top-p 1; 25% from")
    assert "100 steps (200 times through the data), learning rate 5e-05 after 5 steps, then" in lines["optimiser"]
    assert lines["memory"].startswith("about 0.6 GB (libraries 0.60")
    assert "on 1 held-out sample; best by val_total_loss (lower is better)" in lines["validation"]


def test_the_plan_across_tokenizers_says_what_they_share(folder: Path, other: Path):
    options = settings(folder, teacher=str(other))
    side = opened(options).side
    asked = sample(20, None, words="The capital of France is Paris.")
    line = lines_of(options, samples(asked))["tokenizers"]
    said = len(side.completion_ids(b"The capital of France is Paris.", False))
    assert line.startswith(f"two; of {said} student tokens in 1 prompt ")
    assert "are compared exactly" in line
    assert "outside the teacher's vocabulary" in line


def test_without_a_teacher_the_plan_says_that_the_data_teaches(folder: Path):
    lines = lines_of(settings(folder, lambda_kd=0, lambda_sft=1), samples(sample(30, 10)))
    assert "signal" not in lines
    assert lines["teacher"].startswith("none: --lambda-kd is 0")
    assert lines["answers"] == "those in the data, cut at 128 tokens"
    assert lines["validation"].startswith("none, nothing is held out")
    assert "teacher" not in lines["memory"]


def test_the_plan_of_lora_over_two_processes(folder: Path):
    options = settings(folder, lora=True, lora_rank=4, batch_size=6, micro_batch_size=4)
    data = Samples(train=[sample(30, 10)], held_out=[], skipped={"too long": 3}, notes=[])
    lines = lines_of(options, data, processes=2)
    assert "3.6 k of them trained" in lines["student"]
    assert lines["student"].endswith("LoRA of rank 4 on q_proj, k_proj, v_proj, o_proj")
    assert lines["step"].startswith("6 samples over 2 processes, 3 per forward pass")
    assert "GB for each process" in lines["memory"]
    assert lines["data"].endswith("left out: 3")


def test_numbers_are_said_shortly():
    said = [amount(count) for count in (134_515_008, 921_600, 7_615_616_512, 640)]
    assert said == ["134.5 M", "921.6 k", "7.62 B", "640"]
    assert [counted(1, "process"), counted(2, "process"), counted(1200, "step")] == [
        "1 process",
        "2 processes",
        "1,200 steps",
    ]
