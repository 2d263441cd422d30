"""Runs of `train_gold` that are killed, stopped or out of disk, and what --resume makes of them: the same weights."""

import json
import random
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.running import read_rows
from tests.support.training import (
    ForkServer,
    Models,
    Process,
    fork_server,
    make_models,
    options_of,
    same_bits,
    weights,
    write_conversations,
)

STEPS = 8
EVERY = (
    "--max-steps",
    str(STEPS),
    "--eval-every",
    "4",
    "--save-every",
    "2",
    "--sample-every",
    "2",
    "--progress",
    "off",
)


@dataclass
class Scene:
    """folder: with train.jsonl.   undisturbed: a run that nothing happened to."""

    server: ForkServer
    models: Models
    folder: Path
    undisturbed: Path

    def start(self, output: Path, *more: str, file_bytes: int | None = None) -> Process:
        """With --resume where a run has begun."""
        again = ("--resume",) if (output / "run.json").exists() else ()
        argv = options_of(self.models, self.folder / "train.jsonl", output, *EVERY, *again, *more)
        return self.server.start(self.folder, *argv, file_bytes=file_bytes)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    write_conversations(folder / "train.jsonl")
    scene = Scene(fork_server(), make_models(folder), folder, folder / "undisturbed")
    outcome = scene.start(scene.undisturbed).ended()
    assert outcome.code == 0, outcome.stderr
    return scene


def is_whole(output: Path) -> None:
    """Whatever bears a model's name is a whole model."""
    for folder in output.iterdir():
        if folder.name in ("best", "final") or folder.name.startswith("step-"):
            weights(folder)
            json.loads((folder / "config.json").read_bytes())


def is_the_same(output: Path, expected: Path) -> None:
    """Weights to the bit, and books that tell every step once."""
    for name in ("final", "best", f"step-{STEPS}"):
        assert same_bits(output / name, expected / name), name
    for kind, names in {
        "train_step": ("step", "loss", "kd_loss", "grad_norm", "learning_rate", "tokens", "on_policy", "truncated"),
        "val": ("step", "val_total_loss", "val_kl", "own_reverse_kl", "own_length"),
    }.items():
        ours, theirs = (
            [[row.get(name) for name in names] for row in read_rows(run / "metrics.jsonl") if row["event"] == kind]
            for run in (output, expected)
        )
        assert ours == theirs, kind
    assert read_rows(output / "samples.jsonl") == read_rows(expected / "samples.jsonl")
    ours, theirs = (json.loads((run / "best_metrics.json").read_bytes()) for run in (output, expected))
    assert {**ours, "timestamp": ""} == {**theirs, "timestamp": ""}
    assert json.loads((output / "run.json").read_bytes())["status"] == "done"
    left = [path.name for path in output.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert left == []


def steps_of(output: Path) -> int:
    """The last step that its books tell of."""
    path = output / "metrics.jsonl"
    told = re.findall(rb'"step":(\d+)', path.read_bytes()) if path.exists() else []
    return max(map(int, told), default=0)


def killed_runs(scene: Scene, folder: Path, kills: int, seed: int) -> None:
    """Runs that are killed at random moments until they are done, until so many kills have been."""
    moments = random.Random(seed)
    done = runs = 0
    while done < kills:
        runs += 1
        output = folder / f"run{runs}"
        while True:
            process = scene.start(output)
            if done < kills:
                step = moments.randint(steps_of(output), STEPS)
                while process.running() and steps_of(output) < step:
                    time.sleep(0.005)
                process.wait(moments.uniform(0.0, 0.3))
            if done >= kills or not process.running():
                break
            process.send(signal.SIGKILL)
            assert process.wait(20) == -signal.SIGKILL
            done += 1
            if output.exists():
                is_whole(output)
        outcome = process.ended()
        assert outcome.code == 0 or "has come to its end" in outcome.stderr, outcome.stderr
        is_the_same(output, scene.undisturbed)


def test_a_run_killed_at_random_moments_ends_with_the_weights_of_an_undisturbed_one(
    scene: Scene, tmp_path: Path
) -> None:
    killed_runs(scene, tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_ten_random_moments(scene: Scene, tmp_path: Path, seed: int) -> None:
    killed_runs(scene, tmp_path, kills=10, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [".best.new", ".best.old", ".step-6.new", ".final.new", "final", "step-2"])
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
    assert outcome.code == 0 or "has come to its end" in outcome.stderr, outcome.stderr
    is_the_same(output, scene.undisturbed)


def test_sigterm_saves_and_the_run_goes_on_to_the_same_weights(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = scene.start(output, "--json")
    process.until(output / "metrics.jsonl", '"train_step","step":3')
    process.send(signal.SIGTERM)
    outcome = process.ended()
    assert outcome.code == 130, outcome.stderr
    assert "stopping: finishing what is in flight" in outcome.stderr
    assert "interrupted: the same command with --resume goes on" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    result = outcome.result
    assert result["status"] == "interrupted"
    assert 3 <= result["steps"] < STEPS
    assert (output / f"step-{result['steps']}" / "training_state.pt").exists()
    assert not (output / "final").exists()
    again = scene.start(output).ended()
    assert again.code == 0, again.stderr
    assert f"going on after step {result['steps']}" in again.stderr
    is_the_same(output, scene.undisturbed)


def test_ctrl_c_twice_ends_at_once_and_what_was_saved_goes_on(scene: Scene, tmp_path: Path) -> None:
    """Answers of 200 tokens each would take seconds; the second Ctrl-C does not wait for them."""
    output = tmp_path / "run"
    long = ("--max-new-tokens", "200", "--lmbda", "1", "--batch-size", "40", "--val-fraction", "0", "--save-every", "1")
    argv = options_of(scene.models, scene.folder / "train.jsonl", output, "--max-steps", "500", *long)
    process = scene.server.start(scene.folder, *argv)
    process.until(output / "metrics.jsonl", '"train_step","step":1,')
    time.sleep(0.3)
    began = time.monotonic()
    process.send(signal.SIGINT)
    time.sleep(0.1)
    process.send(signal.SIGINT)
    outcome = process.ended()
    assert time.monotonic() - began < 10
    assert outcome.code == 130, outcome.stderr
    assert "Traceback" not in outcome.stderr
    is_whole(output)
    process = scene.server.start(scene.folder, *argv, "--resume")
    process.until(output / "metrics.jsonl", '"train_step","step":2,')
    process.send(signal.SIGKILL)
    process.wait(20)


def test_ctrl_c_while_the_models_are_loaded_leaves_nothing_behind(scene: Scene, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = scene.start(output)
    until = time.monotonic() + 30
    while "loading" not in process.said and time.monotonic() < until:
        time.sleep(0.001)
    process.send(signal.SIGINT)
    outcome = process.ended()
    assert outcome.code == 130, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not output.exists() or (output / "run.json").exists()


@pytest.mark.slow
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
    state = (last / "training_state.pt").read_bytes()
    outcome = scene.start(output, file_bytes=600_000).ended()
    assert outcome.code == 3, outcome.stderr
    assert "cannot be saved: File too large." in outcome.stderr
    assert f"{last} is whole" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert (last / "training_state.pt").read_bytes() == state
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
    assert "step-2 cannot be saved: " in outcome.stderr
    assert "File too large" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not (output / "step-2").exists()
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
