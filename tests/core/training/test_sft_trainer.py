"""TRL's Trainer on our rows: its losses are those of a plain loop, packed or not, in one go or in two."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

from core.commands.train_sft import TrainSft
from core.data.progress import Progress
from core.data.run import Run
from core.errors import StoppedEarly
from core.training.folder import open_folder
from core.training.sft_books import SftBooks
from core.training.sft_trainer import SftTrainer, Sizes, packed
from core.training.student import load_student, load_weights
from core.training.world import World
from tests.support.running import read_rows
from tests.support.tiny_model import make_tiny_model
from tests.support.training import furthest, same_bits, weights

IGNORED = -100


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def rows(count: int = 10) -> list[dict[str, list[int]]]:
    """Rows of 8 to 24 tokens, each with an untrained beginning and, in every third one, an untrained middle."""
    draw = torch.Generator().manual_seed(3)
    made = []
    for number in range(count):
        length = int(torch.randint(8, 25, (1,), generator=draw))
        ids = torch.randint(5, 200, (length,), generator=draw).tolist()
        labels = [IGNORED] * 3 + ids[3:]
        if number % 3 == 0:
            labels[5:7] = [IGNORED] * 2
        made.append({"input_ids": ids, "labels": labels})
    return made


class Ran:
    """What a run left: its trainer, its books, its folder."""

    def __init__(self, trainer: SftTrainer, books: SftBooks, output: Path) -> None:
        self.trainer, self.books, self.output = trainer, books, output

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [event for event in read_rows(self.output / "metrics.jsonl") if event["event"] == "train_step"]


def ran(model: Path, output: Path, held_out: int = 0, stop_after: int = 0, **more: Any) -> Ran:
    """A run over `rows()`, without the commands around it. stop_after: the user asks to leave after that step."""
    options = TrainSft.model_validate(
        {"model": str(model), "data": "rows", "output": output, "learning_rate": 1e-2, "device": "cpu", "threads": 1}
        | {"batch_size": 4, "num_epochs": 2}
        | more
    )
    run, world = Run(Progress()), World(options)
    with ExitStack() as stack:
        stack.callback(world.close)
        folder = open_folder(options, run, 1, stack)
        student = load_student(options, world.device, lambda text: None, dropout=True)
        data = packed(datasets.Dataset.from_list(rows()), options, options.max_length or 64)
        sizes = Sizes(options, len(data), 64, world)
        books = SftBooks(options, run, world, folder, student, sizes.steps)
        checkpoint = folder.last_checkpoint if options.resume else None
        folder.begin()
        held = datasets.Dataset.from_list(rows()[:held_out]) if held_out else None
        trainer = SftTrainer(options, run, world, books, student, sizes, data, held, output / ".checkpoint.new")
        if checkpoint is not None:
            load_weights(student, checkpoint)
            books.load(checkpoint)
        if stop_after:
            record = books.record

            def stopping(*given: Any) -> None:
                record(*given)
                if books.step == stop_after - 1:
                    run.stop.ask()

            books.record = stopping  # type: ignore[method-assign]
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not books.interrupted:
            books.finish()
        return Ran(trainer, books, output)


def loss_of(network: Any, batch: list[dict[str, list[int]]]) -> tuple[torch.Tensor, int]:
    """(summed negative log-likelihood of the labels, how many there are), a row at a time, by transformers alone."""
    total, count = torch.zeros(()), 0
    for row in batch:
        logits = network(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        count += int((labels != IGNORED).sum())
    return total, count


def order_of(trainer: SftTrainer) -> list[list[int]]:
    """The rows that each step of the first epoch trained on, in the order in which the Trainer draws them."""
    loader = trainer.get_train_dataloader()
    found: list[list[int]] = []
    everything = rows()
    for number, batch in enumerate(loader):
        if number % trainer.sizes.accumulated == 0:
            found.append([])
        for ids in batch["input_ids"].tolist():
            found[-1] += [at for at, row in enumerate(everything) if ids[: len(row["input_ids"])] == row["input_ids"]]
    return found


def test_the_losses_are_those_of_a_plain_loop(model: Path, tmp_path: Path) -> None:
    """Three steps of four, four and two rows: the mean over the step's trained tokens, AdamW, and the weights after."""
    made = ran(model, tmp_path / "run", num_epochs=1, schedule="constant", grad_clip=0.0, warmup_steps=2)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    order = order_of(made.trainer)
    assert sorted(at for step in order for at in step) == list(range(10))
    assert [len(step) for step in order] == [4, 4, 2]
    expected = []
    for number, places in enumerate(order):
        optimiser.param_groups[0]["lr"] = 1e-2 * number / 2  # two steps of warm-up: 0, a half, all of it
        total, count = loss_of(network, [rows()[at] for at in places])
        (total / count).backward()
        optimiser.step()
        optimiser.zero_grad()
        expected.append((total / count).item())
        assert made.steps[number]["tokens"] == count
    assert made.books.losses == pytest.approx(expected, abs=1e-5)
    ours, plain = weights(made.output / "final"), network.state_dict()
    assert furthest(ours, {name: plain[name] for name in ours}) < 1e-5


def test_the_size_of_a_forward_pass_changes_nothing_but_rounding(model: Path, tmp_path: Path) -> None:
    one = ran(model, tmp_path / "one", micro_batch_size=1, num_epochs=1)
    four = ran(model, tmp_path / "four", micro_batch_size=4, num_epochs=1)
    assert (one.trainer.sizes.micro, four.trainer.sizes.micro) == (1, 4)
    assert one.books.losses == pytest.approx(four.books.losses, abs=1e-5)


def test_packed_rows_do_not_see_one_another(model: Path, tmp_path: Path) -> None:
    """A packed step's loss is the mean over the same tokens as the plain loop's, row by row."""
    made = ran(model, tmp_path / "run", packing=True, max_length=64, num_epochs=1, batch_size=16, grad_clip=0.0)
    assert made.trainer.sizes.steps == 1
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    total, count = loss_of(network, rows())
    assert made.steps[0]["rows"] == 10
    assert made.books.losses == pytest.approx([(total / count).item()], abs=1e-5)


@pytest.mark.parametrize("micro", [1, 3])
def test_held_out_loss_is_a_mean_over_tokens(model: Path, tmp_path: Path, micro: int) -> None:
    made = ran(model, tmp_path / "run", micro_batch_size=micro, batch_size=3, max_steps=1, held_out=5)
    network = transformers.AutoModelForCausalLM.from_pretrained(made.output / "final", dtype=torch.float32)
    with torch.no_grad():
        total, count = loss_of(network, rows()[:5])
    assert made.books.after["val_loss"] == pytest.approx((total / count).item(), abs=1e-5)
    assert made.books.best_step == 1
    assert made.books.best == made.books.after


@pytest.mark.parametrize("rank", [None, 4])
def test_a_run_in_two_parts_is_the_run_in_one(model: Path, tmp_path: Path, rank: int | None) -> None:
    more = {"qlora_rank": rank, "lora_dropout": 0.1 if rank else 0.0, "held_out": 3}
    whole = ran(model, tmp_path / "whole", **more)
    first = ran(model, tmp_path / "parts", stop_after=4, **more)
    assert first.books.interrupted
    assert (first.output / "step-4").is_dir()
    second = ran(model, tmp_path / "parts", resume=True, **more)
    assert second.books.losses == whole.books.losses
    assert same_bits(tmp_path / "parts/final", tmp_path / "whole/final")
    assert second.books.best == whole.books.best
    for run in (whole, second):
        events = read_rows(run.output / "metrics.jsonl")
        assert [event["step"] for event in events if event["event"] == "train_step"] == list(range(1, 7))
        assert [event["step"] for event in events if event["event"] == "val"] == [3, 6]


def test_a_loss_that_is_no_number_stops_the_run(model: Path, tmp_path: Path) -> None:
    books = ran(model, tmp_path / "run", max_steps=1).books
    books.folder = None
    with pytest.raises(StoppedEarly, match="the loss of step 1 is not a number"):
        books.record(float("nan"), {"rows": 4, "tokens": 40}, 0.1)


def test_checkpoints_stay_as_save_step_says(model: Path, tmp_path: Path) -> None:
    """Five steps: every second one is kept with --save-step 2, and only the last of them can be gone on from."""
    made = ran(model, tmp_path / "run", max_steps=5, save_step=2)
    assert sorted(path.name for path in made.output.glob("step-*")) == ["step-2", "step-4"]
    assert [(made.output / f"step-{step}/training_state.pt").exists() for step in (2, 4)] == [False, True]
    assert [(made.output / f"step-{step}/optimizer.pt").exists() for step in (2, 4)] == [False, True]
    assert not list(made.output.rglob("training_args.bin"))  # a pickle
    transformers.AutoModelForCausalLM.from_pretrained(made.output / "step-2")


@pytest.mark.parametrize(
    ("longest", "more", "micro", "checkpointing"),
    [
        (512, {}, 2, False),
        (513, {}, 1, False),
        (1025, {}, 1, True),
        (1025, {"gradient_checkpointing": False}, 1, False),
        (600, {"micro_batch_size": 4}, 4, True),
        (100, {"packing": True}, 1, False),
        (100, {"batch_size": 3, "micro_batch_size": 2}, 1, False),
    ],
)
def test_long_rows_go_alone_on_a_cpu(
    longest: int, more: dict[str, Any], micro: int, checkpointing: bool, tmp_path: Path
) -> None:
    options = TrainSft.model_validate({"model": "m", "output": tmp_path, "device": "cpu", "batch_size": 4} | more)
    sizes = Sizes(options, 10, longest, World(options))
    assert (sizes.micro, sizes.checkpointing) == (micro, checkpointing)
