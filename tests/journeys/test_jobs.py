"""Jobs whose processes are killed at random: what is said about them is true, and none of their processes stays."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from core.jobs import Job, JobStore
from core.jobs.files import read
from tests.support.running import (
    KEY,
    ROOT,
    Mock,
    ended,
    environment,
    questions,
    read_rows,
    start,
    write_rows,
)
from tests.support.scripted_teacher import Call, Chat, scripted_teacher

TRUE_WITHIN_S = 2.0
VICTIMS = ("worker", "supervisor", "starter")
JOBS = ROOT / "scripts" / "jobs.py"
LEAVES_CHILDREN = '''
import subprocess
import sys
import time
from pathlib import Path


SLEEP = "import os, time; print(os.getpid(), file=open('children.txt', 'a'), flush=True); time.sleep(300)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


def linger(n: int) -> int:
    """Start processes, two of them in sessions of their own, one without a parent, and take long."""
    subprocess.Popen([sys.executable, "-c", SLEEP])
    subprocess.Popen([sys.executable, "-c", DEAF if Path("deaf").exists() else SLEEP], start_new_session=True)
    subprocess.run(["sh", "-c", '"$0" -c "$1" &', sys.executable, SLEEP], start_new_session=True)
    while len(Path("children.txt").read_text().splitlines() if Path("children.txt").exists() else ()) < 3:
        time.sleep(0.02)
    Path("ready").touch()
    time.sleep(2)
    return n
'''


def processes_of(name: str) -> list[psutil.Process]:
    """Living processes with a job's id among their words."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if any(name in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def noted(job: Job, of: str) -> int | None:
    note = read(job.folder / f"{of}.json")
    return None if note is None else note["pid"]


def kill_one(folder: Path, mock: Mock, victim: str, delay_s: float) -> tuple[str, str]:
    """(who was killed, the state of the job in the end). The truth is asked of the machine, not of the job's files."""
    folder.mkdir()
    write_rows(folder / "prompts.jsonl", questions(24))
    store = JobStore(folder / ".distill" / "jobs", grace_s=5)
    options = ("-i", "prompts.jsonl", "--base-url", mock.base_url, "--model", mock.model, "-c", "4")
    starter = start(folder, *options, "--background", OPENAI_API_KEY=KEY, XDG_CACHE_HOME=str(folder))
    if victim == "starter":
        while starter.poll() is None and not (store.folder.exists() and any(store.folder.iterdir())):
            time.sleep(0.001)
        time.sleep(delay_s)
        starter.kill()
        starter.communicate()
        end = time.monotonic() + TRUE_WITHIN_S
        while store.folder.exists() and any(path.name.startswith(".new-") for path in store.folder.iterdir()):
            assert time.monotonic() < end, "what was begun is still there"
            time.sleep(0.02)
        jobs = store.list()
        if not jobs:
            while left := processes_of(str(store.folder)):
                assert time.monotonic() < end, left
                time.sleep(0.02)
            return victim, "never begun"
    else:
        outcome = ended(starter)
        assert outcome.code == 0, outcome.stderr
        jobs = [store.get(outcome.stdout.strip())]
        while (pid := noted(jobs[0], victim)) is None:
            time.sleep(0.01)
        time.sleep(delay_s)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it had ended
    (job,) = jobs
    end = time.monotonic() + TRUE_WITHIN_S
    while victim != "starter":
        job = store.get(job.id)
        alive = processes_of(job.id)
        if job.finished == (not alive):
            break
        assert time.monotonic() < end, f"{victim}: it is said to be {job.state}, and {alive} live"
        time.sleep(0.02)
    job = store.wait(job.id, 30)
    assert job.finished
    end = time.monotonic() + TRUE_WITHIN_S
    while left := processes_of(job.id):
        assert time.monotonic() < end, left
        time.sleep(0.02)
    rows = read_rows(folder / "train.jsonl") if (folder / "train.jsonl").exists() else []
    if job.result is not None:
        assert job.result["rows_in_output"] == len(rows)
    if job.state == "succeeded":
        assert len(rows) == 24
    return victim, job.state


@pytest.mark.parametrize("kills", [9, pytest.param(50, marks=pytest.mark.slow)])
def test_whoever_is_killed_whenever_the_state_is_true_and_nothing_is_left(
    tmp_path: Path, mock: Mock, kills: int
) -> None:
    mock.configure(latency="fixed:0.3")
    chance = random.Random(kills)
    victims = [VICTIMS[number % 3] for number in range(kills)]
    delays = [chance.uniform(0, 0.15 if victim == "starter" else 2.5) for victim in victims]
    folders = [tmp_path / str(number) for number in range(kills)]
    with ThreadPoolExecutor(3) as pool:
        seen = Counter(
            pool.map(lambda each: kill_one(each[0], mock, each[1], each[2]), zip(folders, victims, delays, strict=True))
        )
    print(seen)
    expected = {
        "worker": {"lost", "succeeded"},
        "supervisor": {"lost", "stopped", "succeeded"},
        "starter": {"never begun", "succeeded"},
    }
    for victim, state in seen:
        assert state in expected[victim], seen
    assert seen["worker", "lost"] > kills // 10
    assert seen["supervisor", "stopped"] > kills // 10


def lingering(chat: Chat) -> Call | str:
    return Call("linger", {"n": 1}) if chat.turn < 1 else "Done."


@pytest.mark.parametrize("victim", ["worker", "supervisor", "nobody"])
def test_processes_that_a_command_starts_do_not_outlive_its_job(tmp_path: Path, victim: str) -> None:
    (tmp_path / "tools.py").write_text(LEAVES_CHILDREN, encoding="utf-8")
    write_rows(tmp_path / "train.jsonl", [{"prompt": "q0"}, {"prompt": "q1"}])
    if victim == "supervisor":  # which would give it ten seconds
        (tmp_path / "deaf").touch()
    store = JobStore(tmp_path / ".distill" / "jobs")
    with scripted_teacher(lingering) as teacher:
        words = [*teacher.options, "--all", "-c", "1", "--tools", "tools.py", "--background"]
        outcome = ended(start(tmp_path, *words, script=ROOT / "scripts" / "run_rollouts.py"))
        assert outcome.code == 0, outcome.stderr
        job = store.get(outcome.stdout.strip())
        end = time.monotonic() + 30
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < end, store.log(job.id)
            time.sleep(0.02)
        children = [psutil.Process(int(pid)) for pid in (tmp_path / "children.txt").read_text(encoding="utf-8").split()]
        assert len(children) >= 3
        assert all(child.is_running() for child in children)
        if victim != "nobody":
            pid = noted(job, victim)
            assert pid
            os.kill(pid, signal.SIGKILL)
        job = store.wait(job.id, 40)
    assert job.state == {"worker": "lost", "supervisor": "stopped", "nobody": "succeeded"}[victim], store.log(job.id)
    _, alive = psutil.wait_procs(children, timeout=3)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []


def test_a_script_in_the_background_is_followed_looked_at_and_cancelled(tmp_path: Path, mock: Mock) -> None:
    mock.configure(latency="fixed:0.3")
    write_rows(tmp_path / "prompts.jsonl", questions(20))
    options = ("-i", "prompts.jsonl", "--base-url", mock.base_url, "--model", mock.model)
    begun = time.monotonic()
    outcome = ended(start(tmp_path, *options, "--background", "--json", OPENAI_API_KEY=KEY))
    assert outcome.code == 0, outcome.stderr
    job_id = json.loads(outcome.stdout)["job_id"]
    assert time.monotonic() - begun < 10
    assert f"next: python scripts/jobs.py log {job_id} -f" in outcome.stderr

    followed = ended(start(tmp_path, "log", job_id[:12], "-f", script=JOBS))
    assert followed.code == 0
    assert "20 rows added" in followed.stdout
    assert followed.stdout.count("model = 'mock/model'") == 1
    shown = ended(start(tmp_path, "show", script=JOBS))
    assert f"job       {job_id}" in shown.stdout
    assert "state     succeeded" in shown.stdout

    second = ended(start(tmp_path, *options, "-o", "other.jsonl", "--background", OPENAI_API_KEY=KEY)).stdout.strip()
    cancelled = ended(start(tmp_path, "cancel", second, "-f", "--json", script=JOBS))
    assert cancelled.result["jobs"][0]["state"] == "cancelled"
    listed = ended(start(tmp_path, script=JOBS)).stdout.splitlines()
    assert [line.split()[0] for line in listed] == [second[:12], job_id[:12]]
    assert "cancelled" in listed[0]
    assert "succeeded" in listed[1]
    none = ended(start(tmp_path, "list", "-u", script=JOBS))
    assert none.stdout == "no jobs here\n"


def test_ctrl_c_ends_the_following_and_not_the_job(tmp_path: Path, mock: Mock) -> None:
    mock.configure(latency="fixed:2")
    write_rows(tmp_path / "prompts.jsonl", questions(5))
    options = ("-i", "prompts.jsonl", "--base-url", mock.base_url, "--model", mock.model)
    job_id = ended(start(tmp_path, *options, "--background", OPENAI_API_KEY=KEY)).stdout.strip()
    follower = subprocess.Popen(
        [sys.executable, str(JOBS), "log", "-f"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert follower.stdout is not None
    follower.stdout.readline()  # it listens
    time.sleep(0.5)
    os.killpg(follower.pid, signal.SIGINT)
    assert ended(follower, 10).code == 130
    assert JobStore(tmp_path / ".distill" / "jobs").wait(job_id, 30).state == "succeeded"
