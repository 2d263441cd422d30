"""Runs of `train_sft` that are killed, stopped or out of disk, and what --resume makes of them: the same weights."""

import json
import random
import re
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.running import read_rows
from tests.support.tiny_model import make_tiny_model
from tests.support.training import (
    ForkServer,
    Process,
    fork_server,
    same_bits,
    sft_options,
    weights,
    write_conversations,
)

EPOCHS, STEPS = 2, 8
EVERY = (
    "--num-epochs",
    str(EPOCHS),
    "--val-split",
    "0.2",
    "--eval-every",
    "2",
    "--save-step",
    "2",
    "--progress",
    "off",
)
ENDED = "has come to its end"


@dataclass
class Scene:
    """folder: with train.jsonl, of which 16 rows are trained.   undisturbed: a run that nothing happened to."""

    server: ForkServer
    model: Path
    folder: Path
    undisturbed: Path
    options: tuple[str, ...] = EVERY

    def start(self, output: Path, *more: str, file_bytes: int | None = None) -> Process:
        """With --resume where a run has begun."""
        again = ("--resume",) if (output / "run.json").exists() else ()
        argv = sft_options(self.model, self.folder / "train.jsonl", output, *self.options, *again, *more)
        return self.server.start(self.folder, *argv, file_bytes=file_bytes)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    write_conversations(folder / "train.jsonl")
    made = Scene(fork_server("train_sft"), make_tiny_model(folder / "student"), folder, folder / "undisturbed")
    outcome = made.start(made.undisturbed).ended()
    assert outcome.code == 0, outcome.stderr
    assert f"{STEPS} steps ({EPOCHS} epochs)" in outcome.stdout + outcome.stderr
    return made


def is_whole(output: Path) -> None:
    """Whatever bears a model's name is a whole model."""
    for folder in output.iterdir():
        if folder.name in ("best", "final") or folder.name.startswith("step-"):
            weights(folder)
            about = "config.json" if (folder / "config.json").exists() else "adapter_config.json"
            json.loads((folder / about).read_bytes())


def is_the_same(output: Path, expected: Path) -> None:
    """Weights to the bit, and books that tell every step once."""
    folders = {path.name for path in expected.iterdir() if path.is_dir()}
    assert {path.name for path in output.iterdir() if path.is_dir()} >= folders
    for name in folders:
        assert same_bits(output / name, expected / name), name
    for kind, names in {
        "train_step": ("step", "loss", "grad_norm", "learning_rate", "rows", "tokens", "tokens_read"),
        "val": ("step", "val_loss", "val_accuracy"),
        "best_checkpoint_saved": ("step", "metric", "value"),
    }.items():
        ours, theirs = (
            [[row[name] for name in names] for row in read_rows(run / "metrics.jsonl") if row["event"] == kind]
            for run in (output, expected)
        )
        assert ours == theirs, kind
        assert ours or kind != "train_step"
    names, others = ({path.name for path in run.iterdir() if path.is_file()} - {".lock"} for run in (output, expected))
    assert names == others
    for name in names & {"trained_on.txt", "held_out.jsonl"}:
        assert (output / name).read_bytes() == (expected / name).read_bytes()
    ours, theirs = (json.loads((run / "best_metrics.json").read_bytes()) for run in (output, expected))
    assert {**ours, "timestamp": ""} == {**theirs, "timestamp": ""}
    ours, theirs = (json.loads((run / "run.json").read_bytes()) for run in (output, expected))
    assert ours["status"] == "done"
    own = {"seconds": 0, "output": "", "curves": ""}
    assert {**ours["result"], **own} == {**theirs["result"], **own}
    left = [path.name for path in output.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert left == []


def steps_of(output: Path) -> int:
    """The last step that its books tell of."""
    path = output / "metrics.jsonl"
    told = re.findall(rb'"step":(\d+)', path.read_bytes()) if path.exists() else []
    return max(map(int, told), default=0)


def killed_runs(
    scene: Scene, folder: Path, kills: int, seed: int, signals: tuple[signal.Signals, ...] = (signal.SIGKILL,)
) -> None:
    """Runs that are killed, or asked to stop, at random moments until they are done, until that was done so often."""
    moments = random.Random(seed)
    done = runs = 0
    while done < kills:
        runs += 1
        output = folder / f"run{runs}"
        while True:
            process = scene.start(output)
            if done < kills:
                step = moments.randint(steps_of(output), steps_of(scene.undisturbed))
                while process.running() and steps_of(output) < step:
                    time.sleep(0.005)
                process.wait(moments.uniform(0.0, 0.3))
            if done >= kills or not process.running():
                break
            number = moments.choice(signals)
            process.send(number)
            code = process.wait(30)
            asked = number != signal.SIGKILL and (code in (0, 130) or ENDED in process.said)
            assert asked or code == -number, process.said
            done += 1
            if output.exists():
                is_whole(output)
        outcome = process.ended()
        assert outcome.code == 0 or ENDED in outcome.stderr, outcome.stderr
        is_the_same(output, scene.undisturbed)


def test_a_run_killed_at_random_moments_ends_with_the_weights_of_an_undisturbed_one(
    scene: Scene, tmp_path: Path
) -> None:
    killed_runs(scene, tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_twenty_random_moments_and_signals(scene: Scene, tmp_path: Path, seed: int) -> None:
    killed_runs(scene, tmp_path, 20, seed, (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param((*EVERY, "--qlora-rank", "4", "--lora-dropout", "0.3"), id="lora_with_dropout"),
        pytest.param((*EVERY, "--packing", "--max-length", "64"), id="packed"),
        pytest.param((*EVERY, "--patience", "2"), id="patience"),
        pytest.param(("--num-epochs", "2", "--val-split", "0.2"), id="checkpoints_to_go_on_from_only"),
        pytest.param(("--num-epochs", "2", "--save-step", "3"), id="nothing_held_out"),
    ],
)
def test_killed_runs_of_other_kinds(scene: Scene, tmp_path: Path, more: tuple[str, ...]) -> None:
    """The adapter and the state of the random numbers come back; an epoch of packed sequences has fewer steps."""
    other = replace(scene, options=more, undisturbed=tmp_path / "undisturbed")
    outcome = other.start(other.undisturbed).ended()
    assert outcome.code == 0, outcome.stderr
    killed_runs(other, tmp_path, kills=5, seed=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [".best.new", ".best.old", ".checkpoint.new", ".step-6.new", ".final.new", "final", "step-2"]
)
def test_a_run_killed_when_something_has_just_appeared(scene: Scene, tmp_path: Path, moment: str) -> None:
    output = tmp_path / "run"
    process = scene.start(output)
    until = time.monotonic() + 60
    while not (output / moment).exists() and process.running() and time.monotonic() < until:
        pass
    if process.running():
        process.send(signal.SIGKILL)
    process.wait(20)
    is_whole(output)
    outcome = scene.start(output).ended()
    assert outcome.code == 0 or ENDED in outcome.stderr, outcome.stderr
    is_the_same(output, scene.undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_same_weights(
    scene: Scene, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "run"
    process = scene.start(output, "--json")
    process.until(output / "metrics.jsonl", '"train_step","step":3')
    process.send(number)
    outcome = process.ended()
    assert outcome.code == 130, outcome.stderr
    assert "stopping: finishing what is in flight" in outcome.stderr
    assert "interrupted: the same command with --resume goes on" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    result = outcome.result
    assert result["status"] == "interrupted"
    assert 3 <= result["steps"] < STEPS
    assert (output / f"step-{result['steps']}" / "training_state.pt").exists()
    assert (output / f"step-{result['steps']}" / "optimizer.pt").exists()
    assert not (output / "final").exists()
    again = scene.start(output).ended()
    assert again.code == 0, again.stderr
    assert f"going on after step {result['steps']}" in again.stderr
    is_the_same(output, scene.undisturbed)


def test_without_save_step_a_stopped_run_keeps_one_checkpoint_and_a_finished_one_none(
    scene: Scene, tmp_path: Path
) -> None:
    """save_step -1, rnow's default."""
    only = replace(scene, options=("--num-epochs", "2", "--val-split", "0.2", "--progress", "off"))
    output, whole = tmp_path / "run", tmp_path / "whole"
    process = only.start(output, "--json")
    process.until(output / "metrics.jsonl", '"train_step","step":5,')
    process.send(signal.SIGTERM)
    outcome = process.ended()
    assert outcome.code == 130, outcome.stderr
    assert [path.name for path in output.glob("step-*")] == [f"step-{outcome.result['steps']}"]
    for run in (output, whole):
        ended = only.start(run).ended()
        assert ended.code == 0, ended.stderr
        assert list(run.glob("step-*")) == []
    is_the_same(output, whole)


def test_ctrl_c_twice_ends_at_once_and_what_was_saved_goes_on(scene: Scene, tmp_path: Path) -> None:
    """A step over rows of a thousand tokens would take seconds; the second Ctrl-C does not wait for its end."""
    output = tmp_path / "run"
    long = ("--batch-size", "20", "--micro-batch-size", "1", "--num-epochs", "500", "--save-step", "1")
    argv = sft_options(scene.model, scene.folder / "train.jsonl", output, *long, "--progress", "off")
    process = scene.server.start(scene.folder, *argv)
    process.until(output / "metrics.jsonl", '"train_step","step":2,')
    began = time.monotonic()
    process.send(signal.SIGINT)
    time.sleep(0.02)
    process.send(signal.SIGINT)
    outcome = process.ended()
    assert time.monotonic() - began < 10
    assert outcome.code == 130, outcome.stderr
    assert "Traceback" not in outcome.stderr
    is_whole(output)
    step = steps_of(output)
    process = scene.server.start(scene.folder, *argv, "--resume")
    process.until(output / "metrics.jsonl", f'"train_step","step":{step + 1},')
    process.send(signal.SIGKILL)
    process.wait(20)


def test_ctrl_c_while_the_model_is_loaded_leaves_nothing_behind(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = scene.start(output)
    until = time.monotonic() + 30
    while "as the student reads it" not in process.said and time.monotonic() < until:
        time.sleep(0.001)
    process.send(signal.SIGINT)
    outcome = process.ended()
    assert outcome.code == 130, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not output.exists() or (output / "run.json").exists()


def test_a_full_disk_stops_the_run_with_its_checkpoint_whole_and_it_goes_on_to_the_same_weights(
    scene: Scene, tmp_path: Path
) -> None:
    """No file above 600 kB: the model (450 kB) can still be written, the optimiser's state (900 kB) cannot."""
    output = tmp_path / "run"
    process = scene.start(output)
    process.until(output / "metrics.jsonl", '"train_step","step":3')
    process.send(signal.SIGTERM)
    process.ended()
    (last,) = [path.parent for path in output.glob("step-*/training_state.pt")]
    before = {path.name: path.read_bytes() for path in last.iterdir()}
    outcome = scene.start(output, file_bytes=600_000).ended()
    assert outcome.code == 3, outcome.stderr
    assert re.search("cannot be saved: .*(File too large|the disk may be full)", outcome.stderr), outcome.stderr
    assert "--resume goes on" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert {path.name: path.read_bytes() for path in last.iterdir()} == before
    assert json.loads((output / "run.json").read_bytes())["status"] == "stopped"
    is_whole(output)
    assert [path.name for path in output.iterdir() if path.name.endswith(".new")] == []
    again = scene.start(output).ended()
    assert again.code == 0, again.stderr
    is_the_same(output, scene.undisturbed)


@pytest.mark.slow
def test_a_disk_on_which_not_even_a_model_fits(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "run"
    outcome = scene.start(output, file_bytes=100_000).ended()
    assert outcome.code == 3, outcome.stderr
    assert "cannot be saved: " in outcome.stderr
    assert "File too large" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (output / "step-2").exists()
    assert not (output / "best").exists()
    again = scene.start(output).ended()
    assert again.code == 0, again.stderr
    is_the_same(output, scene.undisturbed)


@pytest.mark.slow
def test_two_runs_at_once_in_one_folder_are_refused(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "run"
    first = scene.start(output)
    first.until(output / "metrics.jsonl", '"train_step","step":1,')
    second = scene.start(output).ended()
    assert second.code == 2
    assert "another run is at work in" in second.stderr
    assert first.ended().code == 0
    is_the_same(output, scene.undisturbed)
