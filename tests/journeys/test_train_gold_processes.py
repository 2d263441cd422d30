"""Several processes (gloo, CPU) make the run of one: the same losses and weights, and one voice."""

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
from tests.support.training import (
    ForkServer,
    Models,
    Process,
    fork_server,
    furthest,
    make_models,
    options_of,
    same_bits,
    weights,
    write_conversations,
)

REPLAY = "tests.support.replayed:replay"
EVERY = ("--max-steps", "4", "--eval-every", "2", "--save-every", "2", "--learning-rate", "1e-3", "--progress", "off")
CLOSE = 1e-5


@dataclass
class Scene:
    server: ForkServer
    models: Models
    folder: Path

    def argv(self, output: Path, *more: str) -> list[str]:
        return options_of(self.models, self.folder / "train.jsonl", output, *EVERY, *more)

    def start(self, output: Path, *more: str, processes: int = 1) -> list[Process]:
        """One after the other by rank, as torchrun would start them."""
        if processes == 1:
            return [self.server.start(self.folder, *self.argv(output, *more), before=REPLAY)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        return [
            self.server.start(
                self.folder,
                *self.argv(output, *more),
                before=REPLAY,
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
    return Scene(fork_server(), make_models(folder), folder)


def is_close(output: Path, expected: Path, processes: int = 2) -> None:
    """Losses, measures and weights to 1e-5; counts exactly."""
    for run, count in ((output, processes), (expected, 1)):
        assert json.loads((run / "run.json").read_bytes())["identity"] == {"processes": count}
    ours, theirs = (
        [row for row in read_rows(run / "metrics.jsonl") if row["event"] in ("train_step", "val")]
        for run in (output, expected)
    )
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"time", "seconds", "tokens_per_s", "phases", "event"}:
            assert row[name] == pytest.approx(other[name], abs=CLOSE, rel=1e-4), name
    for name in ("final", "best", "step-4"):
        assert furthest(weights(output / name), weights(expected / name)) < CLOSE, name


@pytest.mark.parametrize(
    "more",
    [
        ("--lmbda", "0.5", "--lambda-sft", "0.5", "--batch-size", "3", "--micro-batch-size", "1"),
        pytest.param(("--lmbda", "0"), marks=pytest.mark.slow),
        pytest.param(("--lmbda", "1", "--lora", "--lora-dropout", "0"), marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_losses_and_weights_of_one(scene: Scene, tmp_path: Path, more: tuple[str, ...]) -> None:
    scene.run(tmp_path / "one", *more)
    main, other = scene.run(tmp_path / "two", *more, "--json", processes=2)
    is_close(tmp_path / "two", tmp_path / "one")
    assert main.result["status"] == "done"
    assert other.stdout == ""
    assert other.stderr == ""


@pytest.mark.slow
def test_more_processes_than_samples_in_a_step_give_the_same(scene: Scene, tmp_path: Path) -> None:
    more = ("--batch-size", "2", "--lmbda", "0.5")
    scene.run(tmp_path / "one", *more)
    scene.run(tmp_path / "three", *more, processes=3)
    is_close(tmp_path / "three", tmp_path / "one", processes=3)


@pytest.mark.slow
def test_across_tokenizers_too(scene: Scene, tmp_path: Path) -> None:
    more = ("--teacher", str(scene.models.other), "--lmbda", "0.5")
    scene.run(tmp_path / "one", *more)
    scene.run(tmp_path / "two", *more, processes=2)
    is_close(tmp_path / "two", tmp_path / "one")


def test_what_is_refused_is_said_once_and_ends_all_processes(scene: Scene, tmp_path: Path) -> None:
    for more, words in ((("--monitor", "nothing"), "is not measured"), (("--resume",), "there is no run in")):
        main, other = (process.ended() for process in scene.start(tmp_path / "run", *more, processes=2))
        assert (main.code, other.code) == (2, 2), main.stderr + other.stderr
        assert words in main.stderr
        assert "Traceback" not in main.stderr + other.stderr
        assert other.stdout == ""
        assert other.stderr == ""


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all_and_they_go_on_to_the_same_weights(
    scene: Scene, tmp_path: Path
) -> None:
    scene.run(tmp_path / "whole", processes=2)
    output = tmp_path / "run"
    processes = scene.start(output, processes=2)
    processes[0].until(output / "metrics.jsonl", '"train_step","step":1,')
    processes[1].send(signal.SIGTERM)
    codes = [process.ended().code for process in processes]
    assert codes == [130, 130] or codes == [0, 0], [process.said for process in processes]
    if codes == [130, 130]:
        scene.run(output, "--resume", processes=2)
    assert same_bits(output / "final", tmp_path / "whole/final")


def test_another_number_of_processes_does_not_go_on_with_a_run(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "run"
    (process,) = scene.start(output)
    process.until(output / "metrics.jsonl", '"train_step","step":2,')
    process.send(signal.SIGKILL)
    process.wait(20)
    main, other = (process.ended() for process in scene.start(output, "--resume", processes=2))
    assert (main.code, other.code) == (2, 2)
    assert "processes: was 1, is 2" in main.stderr


# ---- the launchers ---------------------------------------------------------------------------------------------


def launched(scene: Scene, output: Path, launcher: list[str], *more: str) -> "subprocess.Popen[bytes]":
    script = str(ROOT / "tests/support/replayed.py")
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
    scene.run(tmp_path / "one", "--lmbda", "0.5")
    outcome = ended(launched(scene, tmp_path / "two", ACCELERATE, "--lmbda", "0.5", "--json"), 120)
    assert outcome.code == 0, outcome.stderr
    is_close(tmp_path / "two", tmp_path / "one")
    assert outcome.result["steps"] == 4  # one object on stdout, from one process
    assert outcome.stderr.count("step 0: val_total_loss") == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN])
def test_a_killed_process_ends_the_job_within_a_minute_and_the_run_goes_on(
    scene: Scene, tmp_path: Path, launcher: list[str]
) -> None:
    scene.run(tmp_path / "whole", processes=2)
    output = tmp_path / "run"
    process = launched(scene, output, launcher)
    until = time.monotonic() + 100
    metrics = output / "metrics.jsonl"
    while not (metrics.exists() and '"train_step","step":2,' in metrics.read_text(encoding="utf-8")):
        assert time.monotonic() < until
        time.sleep(0.01)
    ranks = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children(recursive=True)}
    os.kill(ranks["1"].pid, signal.SIGKILL)
    began = time.monotonic()
    outcome = ended(process, 60)
    assert time.monotonic() - began < 60
    assert outcome.code != 0
    assert not any(child.is_running() for child in ranks.values())
    again = ended(launched(scene, output, launcher, "--resume"), 120)
    assert again.code == 0, again.stderr
    assert same_bits(output / "final", tmp_path / "whole/final")
    assert json.loads((output / "run.json").read_bytes())["status"] == "done"
