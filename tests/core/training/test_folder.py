"""The folder of a run: what survives kill -9 and a full disk, what may go on, what is refused."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from core.commands.train_gold import TrainGold
from core.commands.train_sft import TrainSft
from core.commands.training import TrainingCommand
from core.errors import StoppedEarly, UsageError
from core.training import record
from core.training.checkpoints import STATE, load_state, mend, put_folder
from core.training.folder import RunFolder
from core.training.ownership import check

ROOT = Path(__file__).resolve().parents[3]
PARTS = ("model.safetensors", "config.json", "tokenizer.json")
WHOLE = 1000
"""Times that a saved model's parts repeat their step."""


def options(folder: Path, **more: Any) -> TrainGold:
    return TrainGold(output=folder / "run", data=str(folder / "train.jsonl"), **more)


def sft(folder: Path, **more: Any) -> TrainSft:
    return TrainSft(output=folder / "run", data=str(folder / "train.jsonl"), model="owner/name", **more)


@contextmanager
def opened(given: TrainingCommand, identity: dict[str, Any] | None = None) -> Iterator[RunFolder]:
    folder = RunFolder.open(given, {"output": "--output"}, identity)
    try:
        folder.begin()
        yield folder
    finally:
        folder.close()


def model(step: int) -> Callable[[Path], None]:
    """Saves a model of three files, each of which tells its step."""

    def save(folder: Path) -> None:
        for part in PARTS:
            (folder / part).write_text(f"{step} " * WHOLE)

    return save


def step_of(folder: Path) -> int:
    """The step of a saved model, all of whose files must be whole and of the same step."""
    texts = {(folder / part).read_text() for part in PARTS}
    assert len(texts) == 1
    step = texts.pop().split()
    assert step == [step[0]] * WHOLE
    return int(step[0])


def state(step: int) -> dict[str, Any]:
    return {"step": step, "moment": torch.full((1000,), float(step))}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text('{"prompt": "One?"}\n')
    return tmp_path


@pytest.fixture
def run(place: Path) -> Path:
    """A run that was stopped after step 3; its checkpoint is that of step 2."""
    with opened(options(place)) as folder:
        for step in (1, 2, 3):
            folder.event("train_step", step=step, loss=1 / step)
            folder.sample(step=step, answer=f"answer {step}")
            if step < 3:
                folder.checkpoint(step, model(step), state(step))
        folder.best(2, model(2), {"val_total_loss": 0.5})
        folder.finish("interrupted")
    return place / "run"


# ---- a whole run -----------------------------------------------------------------------------------------------


def test_a_run_leaves_its_models_its_books_and_one_training_state(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock",
        "best",
        "best_metrics.json",
        "metrics.jsonl",
        "run.json",
        "samples.jsonl",
        "step-1",
        "step-2",
    ]
    assert [step_of(run / name) for name in ("step-1", "step-2", "best")] == [1, 2, 2]
    assert not (run / "step-1" / STATE).exists()
    assert load_state(run / "step-2")["moment"].tolist() == [2.0] * 1000
    best = json.loads((run / "best_metrics.json").read_text())
    assert best.pop("timestamp").endswith("+00:00")
    assert best == {"metric": "val_total_loss", "mode": "min", "value": 0.5, "step": 2}


def test_run_json_holds_options_origins_versions_and_the_hash_of_the_data(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert record["options"]["max_steps"] == 200
    assert record["origins"] == {"output": "--output"}
    assert record["versions"]["torch"] == torch.__version__
    assert len(record["data_sha256"]) == 64


def test_what_is_not_a_number_is_null_in_the_books(place: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    with opened(options(place)) as folder:
        folder.event("train_step", step=1, loss=nan, phases={"loss": [infinite, -infinite, 1.5]})
        folder.best(1, model(1), {"val_total_loss": nan})
    row = lines(place / "run" / "metrics.jsonl")[0]
    assert list(row) == ["event", "step", "time", "loss", "phases"]
    assert row["loss"] is None
    assert row["phases"] == {"loss": [None, None, 1.5]}
    assert json.loads((place / "run" / "best_metrics.json").read_text())["value"] is None


def test_a_checkpoint_of_the_same_step_is_replaced(place: Path) -> None:
    with opened(options(place)) as folder:
        folder.checkpoint(1, model(1), state(1))
        folder.checkpoint(1, model(7), state(7))
        assert step_of(place / "run" / "step-1") == 7
        assert load_state(place / "run" / "step-1")["step"] == 7


def test_a_state_that_could_not_be_read_back_is_refused_at_once(place: Path) -> None:
    with opened(options(place)) as folder:
        folder.checkpoint(1, model(1), state(1))
        with pytest.raises(StoppedEarly, match=r"step-2 cannot be saved: .*step-1 is whole.*--resume"):
            folder.checkpoint(2, model(2), {"path": Path("/")})  # weights_only=True reads no such object
        assert folder.last_checkpoint == place / "run" / "step-1"


# ---- going on --------------------------------------------------------------------------------------------------


def test_going_on_cuts_the_books_back_to_the_checkpoint(run: Path, place: Path) -> None:
    with opened(options(place, resume=True)) as folder:
        assert folder.start_step == 2
        assert folder.last_checkpoint == run / "step-2"
        assert not folder.finished
        folder.event("train_step", step=3, loss=0.25)
    assert [(row["step"], row["loss"]) for row in lines(run / "metrics.jsonl")] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert [row["answer"] for row in lines(run / "samples.jsonl")] == ["answer 1", "answer 2"]
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "running"
    assert [again["step"] for again in record["resumed"]] == [2]


def test_an_event_of_an_earlier_step_that_was_written_after_the_cut_goes_too(run: Path, place: Path) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"event":"stopped","step":2}\n')  # after the line of step 3
    with opened(options(place, resume=True)):
        pass
    assert [row["event"] for row in lines(run / "metrics.jsonl")] == ["train_step", "train_step"]


def test_a_torn_last_line_does_not_keep_a_run_from_going_on(run: Path, place: Path) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"event":"train_step","st')
    with opened(options(place, resume=True)) as folder:
        folder.event("train_step", step=3, loss=0.0)
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == [1, 2, 3]


def test_a_line_that_no_run_wrote_is_named_with_its_number(run: Path, place: Path) -> None:
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("hello\n" + text)
    with (
        pytest.raises(UsageError, match=r"metrics.jsonl:1 is no line that a run wrote.*--overwrite"),
        opened(options(place, resume=True)),
    ):
        pass


def test_a_run_without_a_checkpoint_begins_again_at_its_first_step(place: Path) -> None:
    with opened(options(place)) as folder:
        folder.event("val", step=0, val_kl=1.0)
        folder.event("train_step", step=1, loss=1.0)
    with opened(options(place, resume=True)) as folder:
        assert folder.start_step == 0
        assert folder.last_checkpoint is None
        assert "no checkpoint yet" in folder.notes[0]
    assert not (place / "run" / "metrics.jsonl").exists()  # empty


def test_a_finished_run_says_so_and_stays_as_it_is(run: Path, place: Path) -> None:
    with opened(options(place, resume=True)) as folder:
        folder.event("train_step", step=3, loss=0.25)
        folder.final(3, model(3))
        folder.finish("done", steps=3)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with opened(options(place, resume=True)) as folder:
        assert folder.finished
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert json.loads((run / "run.json").read_text())["steps"] == 3


def test_going_on_with_other_options_lists_what_was_and_what_is(run: Path, place: Path) -> None:
    with pytest.raises(UsageError) as error:
        RunFolder.open(options(place, resume=True, max_steps=400, learning_rate=1e-4, lora_targets="q,v"), {})
    told = str(error.value)
    assert "--learning-rate: was not given, is 0.0001\n" in told
    assert "--max-steps: was 200, is 400 (the learning rate follows it from the first step on" in told
    assert "--lora-targets: was q_proj,k_proj,v_proj,o_proj, is q_proj,v_proj\n" in told
    assert "--overwrite" in told
    assert "--resume: was" not in told


def test_going_on_after_the_data_has_changed_is_refused_but_moved_data_will_do(run: Path, place: Path) -> None:
    shutil.copy(place / "train.jsonl", place / "moved.jsonl")
    moved = TrainGold(output=run, data=str(place / "moved.jsonl"), resume=True)
    RunFolder.open(moved, {}).close()
    with open(place / "train.jsonl", "a") as file:
        file.write('{"prompt": "Two?"}\n')
    with pytest.raises(UsageError, match=r"--data .*train.jsonl: its content has changed \(sha256 was"):
        RunFolder.open(options(place, resume=True), {})


def test_going_on_with_another_identity_is_refused(place: Path) -> None:
    with opened(options(place), {"processes": 2}):
        pass
    with pytest.raises(UsageError, match="processes: was 2, is 1"):
        RunFolder.open(options(place, resume=True), {}, {"processes": 1})


def test_options_without_effect_on_the_result_may_differ_and_those_that_round_are_noted(run: Path, place: Path) -> None:
    free = options(place, resume=True, save_every=7, sample_every=3, teacher_batch_size=1)
    with opened(free) as folder:
        assert folder.notes == []
    with opened(options(place, resume=True, threads=2, micro_batch_size=1)) as folder:
        assert folder.notes[0].startswith(
            "since the run began, --threads was not given, is 2; --micro-batch-size was 4"
        )
    assert json.loads((run / "run.json").read_text())["resumed"][-1]["changed"][0] == "--threads was not given, is 2"


def test_each_command_says_which_of_its_options_may_differ_and_what_best_is(place: Path) -> None:
    with opened(sft(place)) as folder:
        folder.best(1, model(1), {"val_loss": 0.5})
        folder.checkpoint(1, model(1), state(1))
    best = json.loads((place / "run" / "best_metrics.json").read_text())
    assert (best["metric"], best["mode"], best["value"]) == ("val_loss", "min", 0.5)
    free = sft(place, resume=True, save_step=2, export="gguf", gguf_types=["f16"], config=place / "config.yml")
    with opened(free) as folder:
        assert (folder.start_step, folder.notes) == (1, [])
    with opened(sft(place, resume=True, micro_batch_size=1)) as folder:
        assert "--micro-batch-size was not given, is 1" in folder.notes[0]
    with pytest.raises(UsageError) as error:
        RunFolder.open(sft(place, resume=True, num_epochs=5, thinking="strip"), {})
    assert "--num-epochs: was 3, is 5 (the learning rate follows it from the first step on" in str(error.value)
    assert "--thinking: was keep, is strip\n" in str(error.value)


def test_a_folder_may_be_moved(run: Path, place: Path) -> None:
    run.rename(place / "elsewhere")
    with opened(TrainGold(output=place / "elsewhere", data=str(place / "train.jsonl"), resume=True)) as folder:
        assert folder.start_step == 2


def test_a_damaged_training_state_is_named(run: Path) -> None:
    (run / "step-2" / STATE).write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UsageError, match=r"step-2/training_state.pt cannot be read \(.*\).*--overwrite"):
        load_state(run / "step-2")


DATA = {"trained_on.txt": b"0123456789abcdef\n", "held_out.jsonl": b'{"messages":[]}\n'}


def test_what_a_run_is_trained_on_is_written_once_kept_by_resume_and_replaced_by_overwrite(place: Path) -> None:
    def begun(data: dict[str, bytes], **more: Any) -> dict[str, bytes]:
        folder = RunFolder.open(options(place, **more), {})
        folder.begin(data)
        folder.close()
        return {name: (place / "run" / name).read_bytes() for name in DATA if (place / "run" / name).exists()}

    assert begun(DATA) == DATA
    other = dict.fromkeys(DATA, b"other\n")
    assert begun(other, resume=True) == DATA
    (place / "run" / "held_out.jsonl").unlink()  # as if the run had been killed between the two
    assert begun(DATA, resume=True) == DATA
    (place / "run" / ".held_out.jsonl.k2_x81").write_text("{")
    assert begun({"trained_on.txt": b""}, overwrite=True) == {"trained_on.txt": b""}
    assert not list((place / "run").glob(".held_out*"))


def test_a_full_disk_at_the_beginning_is_told_in_words(place: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = RunFolder.open(options(place), {})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        with pytest.raises(UsageError, match="cannot be written: File too large"):
            folder.begin({"trained_on.txt": b"0" * 50_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
        folder.close()
    with opened(options(place, overwrite=True)):  # it is a run's folder all the same
        pass
    assert names(place / "run") == [".lock", "run.json"]


# ---- what is refused -------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_nothing_is_changed_before_the_run_begins(place: Path, run: Path) -> None:
    before = names(run)
    RunFolder.open(options(place, overwrite=True), {}).close()
    assert names(run) == [name for name in before if name != ".lock"]
    new = TrainGold(output=place / "new", data=str(place / "train.jsonl"))
    RunFolder.open(new, {}).close()
    assert not (place / "new").exists()


def test_another_runs_folder_is_refused_without_resume_or_overwrite(run: Path, place: Path) -> None:
    before = names(run)
    with pytest.raises(UsageError, match=r"run already \(begun 20.*interrupted, last checkpoint step-2\).*--resume"):
        RunFolder.open(options(place), {})
    assert names(run) == before


def test_there_must_be_a_run_to_go_on_with(place: Path) -> None:
    with pytest.raises(UsageError, match=r"no run in .*Leave out --resume"):
        RunFolder.open(options(place, resume=True), {})
    assert not (place / "run").exists()


def test_a_file_in_the_folders_place_is_refused(place: Path) -> None:
    (place / "run").write_text("mine")
    for more in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match="not a folder"):
            RunFolder.open(options(place, **more), {})
    assert (place / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UsageError, match=r"cannot be written: Permission denied. Change the permissions"):
        RunFolder.open(options(place), {})


def test_a_folder_with_our_names_but_no_run_of_ours_is_left_alone(place: Path) -> None:
    (place / "run" / "best").mkdir(parents=True)
    (place / "run" / "run.json").write_text('{"command": "another"}')
    for more in ({}, {"overwrite": True}):
        with pytest.raises(UsageError, match=r"holds best, run.json, but no run.json of a run of train_gold"):
            RunFolder.open(options(place, **more), {})
    assert names(place / "run") == ["best", "run.json"]


def test_a_run_of_another_command_is_left_alone(run: Path, place: Path) -> None:
    before = names(run)
    for more in ({}, {"overwrite": True}):
        with pytest.raises(UsageError, match=r"holds best, .* but no run.json of a run of train_sft"):
            RunFolder.open(sft(place, **more), {})
    with pytest.raises(UsageError, match=r"no run in .* to go on with"):
        RunFolder.open(sft(place, resume=True), {})
    assert names(run) == before


def test_overwrite_removes_no_model_from_which_the_new_run_begins(place: Path) -> None:
    with opened(sft(place)) as folder:
        folder.best(1, model(1), {"val_loss": 0.5})
    given = sft(place, overwrite=True).model_copy(update={"model": str(place / "run" / "best")})
    with pytest.raises(UsageError, match=r"--overwrite would remove .*/best, which lies in"):
        RunFolder.open(given, {})
    assert step_of(place / "run" / "best") == 1


def test_overwrite_removes_what_runs_write_and_nothing_else(run: Path, place: Path) -> None:
    (run / "curves.png").write_bytes(b"png")
    (run / ".DS_Store").write_bytes(b"mac")
    (run / "train_gold").mkdir()  # as tensorboard has it
    (run / ".step-9.new").mkdir()
    (run / ".run.json.k2_x81").write_text("{")
    with opened(options(place, overwrite=True, seed=1)) as folder:
        assert folder.last_checkpoint is None
    assert names(run) == [".DS_Store", ".lock", "run.json"]
    assert json.loads((run / "run.json").read_text())["options"]["seed"] == 1


def test_overwrite_refuses_a_folder_with_what_no_run_wrote(run: Path, place: Path) -> None:
    for name in ("b.txt", "a.txt", "c.txt", "d.txt", "e.txt", "f.txt"):
        (run / name).write_text("mine")
    (run / "final").symlink_to(place)
    before = names(run)
    with pytest.raises(UsageError, match=r"no run wrote: a.txt, b.txt, c.txt, d.txt, e.txt and 2 more"):
        RunFolder.open(options(place, overwrite=True), {})
    assert names(run) == before


def test_a_new_run_may_begin_beside_other_files(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "log.txt").write_text("of the shell")
    (place / "run" / "train_gold").mkdir()
    with opened(options(place, overwrite=True)):
        pass
    assert names(place / "run") == [".lock", "log.txt", "run.json", "train_gold"]


def test_a_look_at_the_folder_changes_nothing(run: Path, place: Path) -> None:
    before = names(run)
    record = check(options(place, overwrite=True))
    assert record is not None
    assert record["status"] == "interrupted"
    assert check(TrainGold(output=place / "new", data="d")) is None
    assert names(run) == before


def test_a_folder_at_which_another_process_is_at_work_is_refused(run: Path, place: Path) -> None:
    child = subprocess.Popen(command("hold", place), env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        for more in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UsageError, match="another run is at work in"):
                RunFolder.open(options(place, **more), {})
    finally:
        child.kill()
        child.communicate()
    RunFolder.open(options(place, resume=True), {}).close()  # the lock went with the process


# ---- accidents -------------------------------------------------------------------------------------------------


def test_what_a_killed_swap_left_is_mended(tmp_path: Path) -> None:
    old, new = tmp_path / ".best.old", tmp_path / ".best.new"
    for folder, step in ((old, 1), (new, 2)):
        folder.mkdir()
        model(step)(folder)
    (tmp_path / ".step-4.new").mkdir()
    (tmp_path / ".final.gone").mkdir()
    mend(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert step_of(tmp_path / "best") == 1
    old.mkdir()
    mend(tmp_path)  # best/ stands: what it replaced may go
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_folder_that_cannot_take_its_place_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_folder(tmp_path / "best", model(1))
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if source.name == ".best.new":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        put_folder(tmp_path / "best", model(2))
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert step_of(tmp_path / "best") == 1


def test_a_second_ctrl_c_while_saving_leaves_nothing_by_half(place: Path) -> None:
    def interrupted(folder: Path) -> None:
        model(2)(folder)
        raise KeyboardInterrupt

    with opened(options(place)) as folder:
        folder.checkpoint(1, model(1), state(1))
        with pytest.raises(KeyboardInterrupt):
            folder.checkpoint(2, interrupted, state(2))
        assert sorted(path.name for path in (place / "run").glob("*step*")) == ["step-1"]


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(run: Path, place: Path) -> None:
    finished = subprocess.run(command("full", place), env=environment(), capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    said = finished.stdout.splitlines()
    assert len(said) == 4
    assert said[0].startswith(f"{run}/step-3 cannot be saved: File too large. {run}/step-2 is whole.")
    assert said[1] == said[0]
    assert said[2].startswith(f"{run}/best cannot be saved: File too large. {run}/step-2 is whole.")
    assert said[3].startswith(f"{run}/metrics.jsonl cannot be written: File too large.")
    assert all("--resume" in line for line in said)
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["best", "step-1", "step-2"]
    assert [step_of(run / name) for name in ("step-1", "step-2", "best")] == [1, 2, 2]
    assert load_state(run / "step-2")["step"] == 2
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == [1, 2]


def test_kill_9_before_every_system_call_of_a_save_loses_nothing(run: Path, place: Path) -> None:
    finished = subprocess.run(command("every", place), env=environment(), capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) > 40  # points at which it was killed


def test_kill_9_at_any_moment_loses_nothing(run: Path, place: Path) -> None:
    finished = subprocess.run(command("random", place), env=environment(), capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr


# ---- what runs in a process of its own -------------------------------------------------------------------------


def command(part: str, place: Path) -> list[str]:
    return [sys.executable, __file__, part, str(place)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def hold(place: Path) -> None:
    """Be at work until killed."""
    with opened(options(place, resume=True)):
        print("held", flush=True)
        time.sleep(60)


def full(place: Path) -> None:
    """Say what is told when no file may grow past some size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def told(limit: int, work: Callable[[], object]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            work()
        except StoppedEarly as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            print(error)

    with opened(options(place, resume=True)) as folder:
        told(1500, lambda: folder.checkpoint(3, model(3), state(3)))  # a model's file has 2 * 1000 bytes
        told(3000, lambda: folder.checkpoint(3, model(3), state(3)))  # a state has more than 4 * 1000
        told(1500, lambda: folder.best(3, model(3), {}))
        told(1500, lambda: folder.event("val", step=3, text="x" * 2000))


def saves(place: Path, count: int = 1) -> None:
    """Go on with a run for so many steps."""
    with opened(options(place, resume=True)) as folder:
        for step in range(folder.start_step + 1, folder.start_step + 1 + count):
            folder.event("train_step", step=step, loss=1.0)
            folder.best(step, model(step), {"val_total_loss": 1 / step})
            folder.checkpoint(step, model(step), state(step))


def sound(place: Path, earliest: int) -> int:
    """Go on after a kill, and look at everything. Returns the step of the checkpoint."""
    run = place / "run"
    with opened(options(place, resume=True)) as folder:
        step = folder.start_step
        assert step >= earliest
        assert folder.last_checkpoint is not None
        assert step_of(folder.last_checkpoint) == load_state(folder.last_checkpoint)["step"] == step
        best = step_of(run / "best")
        assert best in (step, step + 1)  # it is saved before the checkpoint
        assert json.loads((run / "best_metrics.json").read_text())["step"] == best
        assert [row["step"] for row in lines(run / "metrics.jsonl")] == list(range(1, step + 1))
        assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".lock"]
    return step


def child(work: Callable[[], None]) -> int:
    """Run it in a process of its own; returns that one's id."""
    if pid := os.fork():
        return pid
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def killed(pid: int) -> bool:
    """Whether it was; it must not have failed otherwise."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def every(place: Path) -> None:
    """Kill it at its first system call, at its second, ... until it lives."""
    run, point, alive = place / "run", 0, False
    shutil.copytree(run, place / "copy")
    while not alive:
        shutil.rmtree(run)
        shutil.copytree(place / "copy", run)
        point += 1
        alive = not killed(child(lambda last=point: kill_at(last, place)))
        sound(place, 2)
        alive = alive and sound(place, 3) == 3
    print(point - 1)


def kill_at(last: int, place: Path) -> None:
    """Go on with a run, until that system call."""
    count = 0

    def met() -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and str(arguments[0]).startswith(str(place))
        if opens or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"):
            met()

    sys.addaudithook(hook)
    os.fsync = lambda _: met()
    saves(place)


def random(place: Path) -> None:
    """Kill it a little later each time, while it saves step after step."""
    step, kills = 2, 0
    while kills < 15 or step == 2:
        kills += 1
        pid = child(lambda: saves(place, 10_000))
        time.sleep(kills * 0.007)
        os.kill(pid, signal.SIGKILL)
        killed(pid)
        step = sound(place, step)


if __name__ == "__main__":
    record.versions = cache(record.versions)
    os.fsync = lambda _: None  # kill -9 leaves what was written to the system's care; and the disk would take its time
    {"hold": hold, "full": full, "every": every, "random": random}[sys.argv[1]](Path(sys.argv[2]))
