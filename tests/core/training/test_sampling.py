"""The student's own answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from core.commands.train_gold import TrainGold
from core.errors import StoppedEarly
from core.training.sampling import answer
from core.training.student import Student, load_student
from tests.support.tiny_model import make_tiny_model, teach

PROMPTS = [[5, 6, 7], [10], list(range(20, 60)), [1, 2, 3, 4, 5, 6, 7, 8]]
SEEDS = [11, 12, 13, 14]
ASKED = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def options_for(folder: Path, **options: Any) -> TrainGold:
    values = {"data": "x.jsonl", "output": "run", "student": str(folder), "max_new_tokens": 12, **options}
    return TrainGold.model_validate(values)


def opened(options: TrainGold) -> Student:
    return load_student(options, torch.device("cpu"), lambda note: None)


def bfloat16() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_an_answer_is_the_same_alone_and_among_others(folder: Path, do_sample: bool, lora: bool):
    options = options_for(folder, do_sample=do_sample, lora=lora)
    student = opened(options)
    together = answer(student, PROMPTS, SEEDS, options)
    alone = [answer(student, [prompt], [seed], options)[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert together == alone
    assert all(1 <= len(each.tokens) <= 12 for each in together)


def test_another_seed_draws_another_answer_and_greedy_does_not_look_at_it(folder: Path):
    drawn, greedy = options_for(folder), options_for(folder, do_sample=False)
    student = opened(drawn)
    assert answer(student, PROMPTS, SEEDS, drawn) != answer(student, PROMPTS, SEEDS[::-1], drawn)
    assert answer(student, PROMPTS, SEEDS, greedy) == answer(student, PROMPTS, SEEDS[::-1], greedy)


def test_greedy_takes_the_most_probable_token_each_time(folder: Path):
    options = options_for(folder, do_sample=False, max_new_tokens=4)
    student = opened(options)
    tokens = answer(student, [PROMPTS[0]], [1], options)[0].tokens
    for place, token in enumerate(tokens):
        with torch.no_grad():
            logits = student.model(input_ids=torch.tensor([[*PROMPTS[0], *tokens[:place]]])).logits
        assert int(logits[0, -1].argmax()) == token


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("taught"))
    teach(folder, ASKED, "Paris.<|im_end|>")
    return folder


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<|im_end|>", None])
def test_the_end_of_turn_is_kept_once_whatever_pads(taught: Path, tmp_path: Path, pad: str | None):
    transformers.AutoModelForCausalLM.from_pretrained(taught).save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(taught)
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(tmp_path)
    options = options_for(tmp_path, do_sample=False, max_new_tokens=40)
    student = opened(options)
    assert student.tokenizer.pad_token == pad
    prompt = student.side.prompt_ids([{"role": "user", "content": "What is the capital of France?"}])
    end = student.side.end_of_turn
    # The second prompt goes on past the first one's end, which is then padded.
    ended, other = answer(student, [prompt, PROMPTS[2]], [1, 2], options)
    assert student.side.token_bytes.of(ended.tokens[:-1]) == b"Paris."
    assert ended.tokens.count(end) == 1
    assert (ended.tokens[-1], ended.ended) == (end, True)
    assert other == answer(student, [PROMPTS[2]], [2], options)[0]


def test_an_answer_that_is_cut_has_all_its_tokens_and_no_end(taught: Path):
    options = options_for(taught, do_sample=False, max_new_tokens=1)
    student = opened(options)
    prompt = student.side.prompt_ids([{"role": "user", "content": "What is the capital of France?"}])
    cut = answer(student, [prompt], [1], options)[0]
    assert (len(cut.tokens), cut.ended) == (1, False)


@pytest.mark.parametrize("freeze", [False, True])
def test_answers_in_bfloat16_leave_the_training_step_its_gradient(folder: Path, freeze: bool):
    options = options_for(folder, freeze_embeddings=freeze)
    student = opened(options)
    trained = student.trained_parameters()
    student.model.train()
    answers = answer(student, PROMPTS, SEEDS, options, autocast=bfloat16)
    assert student.model.training
    assert all(a is b for a, b in zip(trained, student.trained_parameters(), strict=True))
    with bfloat16():
        hidden = student.hidden(PROMPTS, [each.tokens for each in answers])
        student.head.logits(hidden).pow(2).mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trained)


class Casts(TorchDispatchMode):
    """Counts how often a tensor of one shape is copied to another number format."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default and tuple(args[0].shape) == self.shape
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("freeze", [False, True])
def test_autocast_casts_a_weight_once_for_all_tokens(folder: Path, freeze: bool):
    options = options_for(folder, freeze_embeddings=freeze)
    student = opened(options)
    if freeze:
        student.head.weight.requires_grad_(False)  # as where it is tied to the embeddings
    with Casts(tuple(student.head.weight.shape)) as casts:
        answer(student, [[5, 6, 7]], [1], options, autocast=bfloat16)
    assert casts.count == 1  # the output layer; the embeddings are looked up as they are


def test_a_stop_that_is_asked_for_cuts_the_answers(folder: Path):
    options = options_for(folder, do_sample=False)
    student = opened(options)
    asked: list[int] = []

    def aborted() -> bool:
        asked.append(1)
        return len(asked) >= 2

    assert [len(each.tokens) for each in answer(student, PROMPTS[:2], SEEDS[:2], options, aborted=aborted)] == [2, 2]


def test_rows_are_halved_until_the_device_has_room(folder: Path):
    """A graphics card with room for the answers to two prompts stands in for a real one."""
    options = options_for(folder, do_sample=False)
    student = opened(options)
    whole = answer(student, PROMPTS, SEEDS, options)
    room, sizes = 2, []

    def small(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows = len(kwargs["input_ids"])
        if not sizes or sizes[-1] != rows:
            sizes.append(rows)
        if rows > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")

    hook = student.model.register_forward_pre_hook(small, with_kwargs=True)
    assert answer(student, PROMPTS, SEEDS, options) == whole
    assert sizes == [4, 2]
    room = 0
    with pytest.raises(StoppedEarly, match=r"no memory for an answer of 12 tokens to a prompt of 3, even alone"):
        answer(student, PROMPTS, SEEDS, options)
    hook.remove()


def test_no_prompts_have_no_answers(folder: Path):
    options = options_for(folder)
    assert answer(opened(options), [], [], options) == []
