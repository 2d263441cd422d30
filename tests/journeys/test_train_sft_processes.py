"""Several processes (gloo, CPU) make the SFT run of one: the same losses and weights, and one voice."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.running import ROOT, Outcome, ended, environment, read_rows
from tests.support.tiny_model import make_tiny_model
from tests.support.training import (
    ForkServer,
    Process,
    fork_server,
    furthest,
    same_bits,
    sft_options,
    weights,
    write_conversations,
)

EVERY = ("--val-split", "0.2", "--num-epochs", "1", "--eval-every", "2", "--save-step", "2", "--progress", "off")
EVERY += ("--learning-rate", "1e-3")
CLOSE = 1e-5


@dataclass
class Scene:
    """folder: with train.jsonl, of which 16 rows are trained, of answers of different lengths."""

    server: ForkServer
    model: Path
    folder: Path

    def argv(self, output: Path, *more: str) -> list[str]:
        every = tuple(
            word for pair in zip(EVERY[::2], EVERY[1::2], strict=True) if pair[0] not in more for word in pair
        )
        return sft_options(self.model, self.folder / "train.jsonl", output, *every, *more)

    def start(self, output: Path, *more: str, processes: int = 1) -> list[Process]:
        """One after the other by rank, as torchrun would start them."""
        if processes == 1:
            return [self.server.start(self.folder, *self.argv(output, *more))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        return [
            self.server.start(
                self.folder,
                *self.argv(output, *more),
                variables={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]

    def run(self, output: Path, *more: str, processes: int = 1) -> list[Outcome]:
        outcomes = [process.ended(120) for process in self.start(output, *more, processes=processes)]
        for outcome in outcomes:
            assert outcome.code == 0, outcome.stderr
        return outcomes


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    write_conversations(folder / "train.jsonl")
    return Scene(fork_server("train_sft"), make_tiny_model(folder / "student"), folder)


def is_close(output: Path, expected: Path, processes: int = 2, but: str = "") -> None:
    """Losses, measures and weights to 1e-5; counts exactly, but for one of them."""
    for run, count in ((output, processes), (expected, 1)):
        assert json.loads((run / "run.json").read_bytes())["identity"]["processes"] == count
    ours, theirs = (
        [row for row in read_rows(run / "metrics.jsonl") if row["event"] in ("train_step", "val")]
        for run in (output, expected)
    )
    assert [(row["event"], row["step"]) for row in ours] == [(row["event"], row["step"]) for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert row.keys() == other.keys()
        for name in {"rows", "tokens", "tokens_read"} - {but}:
            assert row.get(name) == other.get(name), name
        for name in row.keys() - {"time", "seconds", "tokens_per_s", "event", but}:
            assert row[name] == pytest.approx(other[name], abs=CLOSE, rel=1e-4), name
    for name in ("final", "best", "step-2"):
        assert furthest(weights(output / name), weights(expected / name)) < CLOSE, name


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("--micro-batch-size", "1"), id="two_rows_each_one_after_the_other"),
        pytest.param(("--qlora-rank", "4"), id="lora", marks=pytest.mark.slow),
        pytest.param(("--packing", "--max-length", "64", "--batch-size", "2"), id="packed", marks=pytest.mark.slow),
        pytest.param(("--grad-clip", "0.1"), id="gradients_cut", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_losses_and_weights_of_one(scene: Scene, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Rows of different lengths: a mean of the processes' means would be another loss, and another gradient."""
    scene.run(tmp_path / "one", *more)
    main, other = scene.run(tmp_path / "two", *more, "--json", processes=2)
    is_close(tmp_path / "two", tmp_path / "one")
    assert main.result["status"] == "done"
    assert other.stdout == ""
    assert other.stderr == ""


def test_an_epoch_that_the_processes_cannot_share_evenly_trains_every_row_once(scene: Scene, tmp_path: Path) -> None:
    """18 rows, four per step: two are left for the last one. The second process reads two more, and learns nothing."""
    more = ("--val-split", "0.1", "--micro-batch-size", "2")
    scene.run(tmp_path / "one", *more)
    scene.run(tmp_path / "two", *more, processes=2)
    rows = [row["rows"] for row in read_rows(tmp_path / "one/metrics.jsonl") if row["event"] == "train_step"]
    assert rows == [4, 4, 4, 4, 2]
    is_close(tmp_path / "two", tmp_path / "one", but="tokens_read")


@pytest.mark.slow
def test_a_batch_that_the_processes_cannot_share_becomes_larger_and_the_plan_says_so(
    scene: Scene, tmp_path: Path
) -> None:
    """Four rows over three processes are two rows each."""
    outcome = scene.run(tmp_path / "three", processes=3)[0]
    assert "6 rows (--batch-size 4, made even) over 3 processes" in outcome.stderr
    scene.run(tmp_path / "one", "--batch-size", "6")
    steps = [row for row in read_rows(tmp_path / "three/metrics.jsonl") if row["event"] == "train_step"]
    alone = [row for row in read_rows(tmp_path / "one/metrics.jsonl") if row["event"] == "train_step"]
    assert [row["rows"] for row in steps] == [row["rows"] for row in alone] == [6, 6, 4]
    for row, other in zip(steps, alone, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=CLOSE)


def test_what_is_refused_is_said_once_and_ends_all_processes(scene: Scene, tmp_path: Path) -> None:
    for more, words in (
        (("--max-length", "100000"), "is more than the 256 tokens"),
        (("--resume",), "there is no run"),
    ):
        main, other = (process.ended() for process in scene.start(tmp_path / "run", *more, processes=2))
        assert (main.code, other.code) == (2, 2), main.stderr + other.stderr
        assert main.stderr.count(words) == 1
        assert "Traceback" not in main.stderr + other.stderr
        assert other.stdout == ""
        assert other.stderr == "" or other.stderr.startswith("train_sft: process 1: ")


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_ways_to_split_the_model_itself_are_refused(scene: Scene, tmp_path: Path, variable: str, name: str) -> None:
    """`accelerate launch` tells its choice, or that of its configuration file, in the environment."""
    process = scene.server.start(scene.folder, *scene.argv(tmp_path / "run"), variables={variable: "true"})
    outcome = process.ended()
    assert outcome.code == 2, outcome.stderr
    assert name in outcome.stderr
    assert "--multi_gpu" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_the_number_format_is_ours_whatever_accelerate_was_told(scene: Scene, tmp_path: Path) -> None:
    scene.run(tmp_path / "plain", "--max-steps", "2")
    told = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    argv = scene.argv(tmp_path / "told", "--max-steps", "2")
    outcome = scene.server.start(scene.folder, *argv, variables=told).ended()
    assert outcome.code == 0, outcome.stderr
    assert same_bits(tmp_path / "told/final", tmp_path / "plain/final")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_process_saves_and_ends_all_and_they_go_on_to_the_same_weights(
    scene: Scene, tmp_path: Path, rank: int
) -> None:
    scene.run(tmp_path / "whole", "--num-epochs", "2", processes=2)
    output = tmp_path / "run"
    processes = scene.start(output, "--num-epochs", "2", processes=2)
    processes[0].until(output / "metrics.jsonl", '"train_step","step":1,')
    processes[rank].send(signal.SIGTERM)
    codes = [process.ended().code for process in processes]
    assert codes == [130, 130], [process.said for process in processes]
    scene.run(output, "--num-epochs", "2", "--resume", processes=2)
    for name in ("final", "best"):
        assert same_bits(output / name, tmp_path / "whole" / name)


def test_another_number_of_processes_does_not_go_on_with_a_run(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "run"
    (process,) = scene.start(output)
    process.until(output / "metrics.jsonl", '"train_step","step":2,')
    process.send(signal.SIGKILL)
    process.wait(20)
    main, other = (process.ended() for process in scene.start(output, "--resume", processes=2))
    assert (main.code, other.code) == (2, 2)
    assert "processes: was 1, is 2" in main.stderr


def test_check_and_dry_run_in_two_processes_speak_once_and_write_nothing(scene: Scene, tmp_path: Path) -> None:
    for more, words in ((("--check",), "20 rows: 0 errors"), (("--dry-run",), "over 2 processes")):
        main, other = scene.run(tmp_path / "run", *more, processes=2)
        assert words in main.stdout + main.stderr
        assert other.stdout == ""
        assert other.stderr == ""
        assert not (tmp_path / "run").exists()


# ---- the launchers ---------------------------------------------------------------------------------------------


def launched(scene: Scene, output: Path, launcher: list[str], *more: str) -> "subprocess.Popen[bytes]":
    script = str(ROOT / "scripts/train_sft.py")
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, script, *scene.argv(output, *more)],
        cwd=scene.folder,
        env={**environment(OMP_NUM_THREADS="1", PYTHONWARNDEFAULTENCODING="")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


# Without a GPU, too: --cpu makes accelerate start one process, whatever --num_processes says.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_accelerate_launch_with_two_processes(scene: Scene, tmp_path: Path) -> None:
    scene.run(tmp_path / "one")
    outcome = ended(launched(scene, tmp_path / "two", ACCELERATE, "--json"), 120)
    assert outcome.code == 0, outcome.stderr
    is_close(tmp_path / "two", tmp_path / "one")
    assert outcome.result["steps"] == 4  # one object on stdout, from one process
    assert outcome.stderr.count("step 0: val_loss") == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN])
def test_a_killed_process_ends_the_job_within_a_minute_and_the_run_goes_on(
    scene: Scene, tmp_path: Path, launcher: list[str]
) -> None:
    more = ("--num-epochs", "3")
    scene.run(tmp_path / "whole", *more, processes=2)
    output = tmp_path / "run"
    process = launched(scene, output, launcher, *more)
    until = time.monotonic() + 100
    metrics = output / "metrics.jsonl"
    while not (metrics.exists() and '"train_step","step":3,' in metrics.read_text(encoding="utf-8")):
        assert time.monotonic() < until
        time.sleep(0.01)
    ranks = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children(recursive=True)}
    os.kill(ranks["1"].pid, signal.SIGKILL)
    began = time.monotonic()
    outcome = ended(process, 60)
    assert time.monotonic() - began < 60
    assert outcome.code != 0
    assert not any(child.is_running() for child in ranks.values())
    again = ended(launched(scene, output, launcher, *more, "--resume"), 120)
    assert again.code == 0, again.stderr
    assert same_bits(output / "final", tmp_path / "whole/final")
    assert json.loads((output / "run.json").read_bytes())["status"] == "done"
