"""Which device a job waits for, told without torch."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.commands import load
from core.commands.resolve import resolve
from core.jobs.devices import device_for, gpu_of
from core.jobs.processes import noted, sign
from core.jobs.queue import Place, new_place, queues
from tests.support.running import ROOT, environment


def device(command: str, **options: Any) -> str | None:
    values, _ = resolve(load(command), options)
    return device_for(command, dict(values), {})


def test_work_that_runs_a_model_here_waits_for_its_device_and_the_rest_for_none(folder: Path) -> None:
    (folder / "model").mkdir()
    here = gpu_of({}) or "cpu"
    assert device("train_sft", data="rows.jsonl", model="model") == here
    assert device("train_sft", data="rows.jsonl", check=True, model="model") is None
    assert device("train_gold", data="rows.jsonl", output="run", device="cpu") == "cpu"
    assert device("make_student", model="smollm2", layers=20, output="student") == here
    assert device("generate_teacher_data", input="p.txt", model="gpt-5-nano") is None
    assert device("generate_teacher_data", input="p.txt", model="vendor/name", backend="hf") == here
    assert device("generate_teacher_data", input="p.txt", model="model") == here
    assert device("generate_teacher_data", input="p.txt", model="model", base_url="http://localhost:1/v1") is None
    assert device("generate_teacher_data", input="p.txt", model="model", dry_run=True) is None
    assert device("generate_teacher_data", input="p.txt", model="smollm2", backend="hf", device_map="cuda:3") == (
        "gpu3" if here != "cpu" else "cpu"
    )
    assert device("generate_teacher_data", input="p.txt", model="smollm2", device_map="cpu") == "cpu"
    assert device("generate_teacher_data", input="p.txt", model="what is this") is None
    assert device("run_rollouts", all=True, model="smollm2") == here
    assert device("generate_synthetic", model="gpt-4o", question_model="smollm2") == here
    assert device("generate_synthetic", model="gpt-4o") is None
    assert device("evaluate", student="smollm2") == here
    assert device("evaluate", student="smollm2", dry_run=True) is None
    assert device("check_data", data="rows.jsonl") is None
    assert device("check_data", data="rows.jsonl", teacher="smollm2") == here
    assert device("check_data", data="rows.jsonl", judge="gpt-5-nano", rubric="Is it true?") is None
    assert device("doctor") is None
    assert device("doctor", teacher="smollm2") == here
    assert device("doctor", teacher="x", teacher_backend="vllm") is None
    assert device("doctor", teacher="smollm2", data="rows.jsonl") is None  # only the file is looked at
    assert device("teachers", input="prompts.txt") is None
    assert device("doctor", teacher="x", teacher_base_url="http://localhost:1/v1") is None
    for command, options in (("show", {"path": "x"}), ("convert_rollouts", {})):
        assert device(command, **options) is None


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has one GPU or none")
@pytest.mark.parametrize(
    ("seen", "index", "expected"),
    [
        *((None, 0, "gpu0"), (None, 3, "gpu3"), ("2", 0, "gpu2"), ("3, 1", 0, "gpu3"), ("3, 1", 1, "gpu1")),
        *(("", 0, None), ("-1", 0, None), ("GPU-8f/../x", 0, "gpu-GPU-8fx")),
    ],
)
def test_gpus_are_counted_among_those_that_are_seen(
    tmp_path: Path, seen: str | None, index: int, expected: str | None
) -> None:
    assert gpu_of({"CUDA_VISIBLE_DEVICES": "0"}, 0, tmp_path) is None
    (tmp_path / "nvidia0").touch()
    assert gpu_of({} if seen is None else {"CUDA_VISIBLE_DEVICES": seen}, index, tmp_path) == expected


def test_it_is_told_without_anything_heavy() -> None:
    code = (
        "import sys; from core.jobs.devices import device_for; from core.jobs import JobStore; import core.worker; "
        "print(sorted({'torch', 'transformers', 'aiohttp', 'numpy', 'cyclopts', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_a_supervisor_has_the_standard_library_only() -> None:
    code = (
        "import sys; import core.jobs.supervisor; "
        "print(sorted({'pydantic', 'orjson', 'dotenv', 'yaml', 'psutil', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_a_place_counts_while_a_process_holds_it(tmp_path: Path) -> None:
    every = {"XDG_CACHE_HOME": str(tmp_path)}
    first, second = (new_place("gpu0", f"job_{n}", n, every) for n in (1, 2))
    handle = first.take()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(handle,))
    sign(handle, noted(os.getpid()))  # whose life says nothing: it may be another's in this container
    os.close(handle)
    os.close(second.take())
    assert second.before() == [first.folder / first.ticket]
    assert second.lock() is None
    lock = first.lock()
    assert lock is not None
    second.clean()
    assert second.before() == [first.folder / first.ticket]
    sleeper.kill()
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert second.before() == []  # a zombie is dead
    sleeper.wait()
    second.clean()
    assert [path.name for path in second.folder.iterdir() if "ticket" in path.name] == [second.ticket]
    assert second.lock() is None  # the device is still held
    os.close(lock)
    again = second.lock()
    assert again is not None
    os.close(again)
    assert Place.of({"queue": second.noted()}) == second


def test_a_clock_that_was_set_back_lets_nobody_pass(tmp_path: Path) -> None:
    every = {"XDG_CACHE_HOME": str(tmp_path)}
    first = new_place("gpu0", "job_1", time.time_ns() + 10**12, every)
    handle = first.take()
    assert new_place("gpu0", "job_2", time.time_ns(), every).before() == [first.folder / first.ticket]
    os.close(handle)


def test_queues_are_the_users_and_the_machines(tmp_path: Path) -> None:
    assert queues({"XDG_CACHE_HOME": str(tmp_path), "HOME": "/"}).parent == tmp_path / "distill" / "devices"
    assert queues({"HOME": str(tmp_path)}).parent == tmp_path / ".cache" / "distill" / "devices"
    assert queues({"HOME": str(tmp_path / "none")}).is_relative_to(tempfile.gettempdir())
    assert not (tmp_path / "none").exists()
