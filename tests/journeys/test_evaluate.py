"""`evaluate` as processes: interrupted, killed, out of disk."""

import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from core.evaluation.answers import Answers
from core.evaluation.report import read_report
from tests.support.running import environment
from tests.support.tiny_model import make_tiny_model
from tests.support.training import ForkServer, Process, fork_server, shaken

ITEMS = 90
SLOWLY = "tests.journeys.test_evaluate:slowly"
SINGLE = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNDEFAULTENCODING": ""}


def slowly() -> None:
    """Let each answer take a moment, so that a test can come between two of them."""
    put = Answers.put

    def late(self: Answers, kind: str, args: Iterable[Any], value: Any) -> None:
        time.sleep(0.02)
        put(self, kind, args, value)

    Answers.put = late


@pytest.fixture
def server(folder: Path) -> ForkServer:
    """With two models in the folder."""
    make_tiny_model(folder / "before")
    shaken(Path(shutil.copytree(folder / "before", folder / "after")), 4.0)
    return fork_server("evaluate")


Start = Callable[..., Process]


@pytest.fixture
def start(server: ForkServer, folder: Path) -> Start:
    """The same evaluation each time: 90 items, two models."""
    flags = ("--student", "after", "--baseline", "before", "--tasks", "small_sums", "--limit", str(ITEMS))
    places = ("--cache", "answers", "--device", "cpu", "--threads", "1")

    def begin(*more: str, output: str = "report", before: str | None = None, file_bytes: int | None = None) -> Process:
        number = len(list(folder.glob(".err*")))
        out, err = folder / f".out{number}", folder / f".err{number}"
        err.touch()
        job = {
            "command": "evaluate",
            "argv": [*flags, *places, "--output", output, *more],
            "folder": str(folder),
            "environment": environment(**SINGLE),
            "out": str(out),
            "err": str(err),
            "file_bytes": file_bytes,
            "before": before,
        }
        return Process(server, server.ask(job)["pid"], out, err)

    return begin


def lines(folder: Path) -> int:
    """Lines in the cache, in each file one about the model itself."""
    return sum(file.read_bytes().count(b"\n") for file in (folder / "answers").glob("*.jsonl"))


def until_answered(folder: Path, count: int, process: Process) -> None:
    """Wait until there are so many answers more."""
    until, limit = lines(folder) + count, time.monotonic() + 90
    while lines(folder) < until:
        assert process.running(), process.said
        assert time.monotonic() < limit, process.said
        time.sleep(0.01)


def test_an_interrupted_evaluation_makes_no_report_and_goes_on(start: Start, folder: Path) -> None:
    for signals in ((signal.SIGINT,), (signal.SIGINT, signal.SIGINT)):
        process = start(before=SLOWLY)
        until_answered(folder, 5, process)
        for each in signals:
            process.send(each)
            time.sleep(0.1)
        outcome = process.ended()
        assert outcome.code == 130, outcome.stderr
        assert "interrupted" in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert not (folder / "report/report.json").exists()
        assert 5 <= lines(folder) < 2 * ITEMS
    process = start(before=SLOWLY)
    until_answered(folder, 5, process)
    process.send(signal.SIGKILL)
    assert process.ended().code == -signal.SIGKILL
    assert not (folder / "report/report.json").exists()
    for file in (folder / "answers").glob("*.jsonl"):  # the kernel may have written half a line
        with open(file, "ab") as end:
            end.write(b'{"key": "ha')
    before = lines(folder)
    assert before < 2 * ITEMS
    outcome = start("--json").ended()
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["requests"] == 2 * ITEMS
    assert before - 2 <= outcome.result["cached"] <= before
    report = read_report(folder / "report")
    shutil.rmtree(folder / "answers")
    fresh = start("--json", output="fresh").ended()
    assert fresh.code == 0, fresh.stderr
    assert fresh.result["cached"] == 0
    assert read_report(folder / "fresh").metrics == report.metrics  # as if nobody had come between


def test_a_full_disk_keeps_what_was_answered(start: Start, folder: Path) -> None:
    outcome = start(file_bytes=2000).ended()
    assert outcome.code == 3, outcome.stderr
    assert "cannot be written" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    there = kept_whole(folder)
    assert there > 5
    assert not (folder / "report/report.json").exists()
    again = start("--json").ended()
    assert again.code == 0, again.stderr
    assert again.result["cached"] == there


def kept_whole(folder: Path) -> int:
    """Answers in whole lines; the line that met the limit is torn."""
    lines = [line for file in (folder / "answers").glob("*.jsonl") for line in file.read_bytes().split(b"\n")[:-1]]
    return sum(b'"value":"' in line for line in lines)
