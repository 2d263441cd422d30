"""Looking at jobs where 10,000 are on the disk: one of them, lists, and how many are unfinished.

    python -m tests.bench.bench_jobs [--jobs 10000]

The jobs are one real job, 10,000 times. Prints one JSON report, and leaves with 0 when its criteria hold.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.jobs import Job, JobStore, index
from tests.support.running import Mock, environment, questions, write_rows

from .harness import finish, load

MOST_MS = 10.0
REPEAT = 200


def milliseconds(call: Callable[[], Any], repeat: int) -> float:
    """The median of so many calls."""
    taken: list[float] = []
    for _ in range(repeat):
        begun = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - begun))
    return round(statistics.median(taken), 3)


def copies(store: JobStore, done: Job, count: int) -> None:
    """A finished job so many times more; the files are the same ones, linked."""
    for number in range(count):
        copy = store.folder / f"job_{number:032x}"
        copy.mkdir(mode=0o700)
        for path in done.folder.iterdir():
            os.link(path, copy / path.name)
        for state in ("-", done.state):
            index.note(store.folder, copy.name, done.command, state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    count = parser.parse_args().jobs
    mock = Mock("--latency", "fixed:0.01", "--tokens", "12")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "prompts.jsonl", questions(200))
        options = {"input": "prompts.jsonl", "base_url": mock.base_url, "model": mock.model}
        every = environment(OPENAI_API_KEY="test", XDG_CACHE_HOME=name)
        places = {"cwd": folder, "environment": every, "origins": {}}
        store = JobStore(folder / "jobs", grace_s=1)
        done = store.wait(store.start("generate_teacher_data", options, **places).id, 60)
        assert done.state == "succeeded", done.error
        copies(store, done, count - 1)
        mock.configure(latency="fixed:60")
        more = {**options, "output": "other.jsonl"}
        running = store.start("generate_teacher_data", more, **places, device="gpu0")
        waiting = store.start("generate_teacher_data", more, **places, device="gpu0")
        while store.get(running.id).state != "running":
            time.sleep(0.05)
        report = {
            "jobs": count,
            "finished_ms": milliseconds(lambda: store.get(done.id), REPEAT),
            "running_ms": milliseconds(lambda: store.get(running.id), REPEAT),
            "waiting_ms": milliseconds(lambda: store.get(waiting.id), REPEAT),
            "list_ms": milliseconds(lambda: store.list(), 5),
            "list_unfinished_ms": milliseconds(lambda: store.list(states=["queued", "running"]), 3),
            "count_unfinished_ms": milliseconds(lambda: store.unfinished(50), 5),
            "load": load(),
        }
        for job in (waiting, running):
            store.cancel(job.id)
            store.wait(job.id, 30)
        while store.unfinished(1):
            time.sleep(0.05)
    mock.stop()
    slowest = max(report["finished_ms"], report["running_ms"], report["waiting_ms"])
    finish({**report, "criteria": {f"a job's state in less than {MOST_MS:g} ms": slowest < MOST_MS}})


if __name__ == "__main__":
    main()
