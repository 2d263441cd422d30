"""Jobs: real ones, with the mock teacher, in processes of their own."""

import ctypes
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.commands import load
from core.commands.resolve import given, resolve
from core.errors import UsageError
from core.jobs import Job, JobStore, State, look
from core.jobs.files import read
from core.jobs.store import UnknownJob
from tests.support.running import (
    KEY,
    ROOT,
    Mock,
    Reply,
    ended,
    environment,
    questions,
    read_rows,
    small_server,
    start,
    write_rows,
)

ENDS_S = 30


@dataclass
class Place:
    """A folder with prompts.jsonl, a teacher, and the jobs that were started here."""

    folder: Path
    mock: Mock
    store: JobStore
    started: list[Job] = field(default_factory=list[Job])

    @property
    def options(self) -> dict[str, Any]:
        return {"input": "prompts.jsonl", "base_url": self.mock.base_url, "model": self.mock.model}

    def start(self, command: str = "generate_teacher_data", *, env: dict[str, str] | None = None, **more: Any) -> Job:
        """Answers to prompts.jsonl, unless `options` says otherwise."""
        flags = {**self.options, **more.pop("options", {})}
        options, origins = resolve(load(command), flags, config=more.pop("config", None))
        every = environment(OPENAI_API_KEY=KEY, XDG_CACHE_HOME=str(self.folder / "cache"), **(env or {}))
        places = {"cwd": self.folder, "environment": every, "origins": origins}
        job = self.store.start(command, given(options, origins), **places, **more)
        self.started.append(job)
        return job

    def until(self, job: Job, *states: State, seconds: float = ENDS_S) -> Job:
        """The job, once it is in one of these states."""
        end = time.monotonic() + seconds
        while (now := self.store.get(job.id)).state not in states:
            assert time.monotonic() < end, f"{now.state}, not {states}: {self.store.log(job.id)}"
            time.sleep(0.02)
        return now

    def ended(self, job: Job, seconds: float = ENDS_S) -> Job:
        now = self.store.wait(job.id, seconds)
        assert now.finished, f"{now.state}: {self.store.log(job.id)}"
        return now

    def pid(self, job: Job, of: str) -> int:
        note = read(job.folder / f"{of}.json")
        assert note is not None
        return note["pid"]


@pytest.fixture
def place(folder: Path, mock: Mock) -> Iterator[Place]:
    write_rows(folder / "prompts.jsonl", questions(6))
    place = Place(folder, mock, JobStore(folder / ".distill" / "jobs", grace_s=4))
    yield place
    for job in place.started:
        if job.folder.exists() and not place.store.get(job.id).finished:
            place.store.cancel(job.id)
            place.ended(job)


def living(job: Job) -> list[psutil.Process]:
    """Supervisor and worker of a job, by their command lines; zombies are not alive."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if any(job.id in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def gone(job: Job, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while living(job):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_job_does_what_its_script_does_and_its_files_are_private(place: Place) -> None:
    begun = time.monotonic()
    job = place.start()
    assert time.monotonic() - begun < 1
    assert job.state in ("queued", "running")
    assert job.id.startswith("job_")
    job = place.ended(job)
    assert (job.state, job.exit_code, job.error) == ("succeeded", 0, None)
    assert job.result
    assert job.result["rows_in_output"] == 6
    assert job.result["status"] == "done"
    assert job.summary
    assert "6 rows added" in job.summary
    assert job.progress
    assert (job.progress["done"], job.progress["total"], job.progress["unit"]) == (6, 6, "answers")
    assert job.started
    assert job.ended
    assert job.created <= job.started <= job.ended
    assert len(read_rows(place.folder / "train.jsonl")) == 6
    assert "model = 'mock/model'  (--model)" in place.store.log(job.id)
    assert gone(job)
    assert stat.S_IMODE(place.store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(job.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in job.folder.iterdir()} == {0o600}
    assert {path.name for path in job.folder.iterdir()} == {
        *("spec.json", "supervisor.json", "worker.json"),
        *("log.txt", "progress.jsonl", "result.json", "exit.json", ".cancel_requested.reserved"),
    }
    assert (place.folder / ".distill" / ".gitignore").read_text(encoding="utf-8") == "*\n"


def test_a_job_does_what_it_was_started_for_whatever_its_files_say_when_its_turn_comes(place: Place) -> None:
    config = place.folder / "options.yml"
    config.write_text("limit: 1\noutput: one.jsonl\n", encoding="utf-8")
    place.mock.configure(latency="fixed:0.5")
    first = place.start(device="gpu3", options={"output": "first.jsonl"})
    jobs = [place.start(device="gpu3", config=config)]
    config.write_text("limit: 2\noutput: two.jsonl\n", encoding="utf-8")
    jobs.append(place.start(device="gpu3", config=config))
    config.unlink()
    assert place.store.get(jobs[0].id).state == "queued"
    jobs = [place.ended(job) for job in (first, *jobs)]
    assert [job.state for job in jobs] == ["succeeded"] * 3
    assert [len(read_rows(place.folder / f"{name}.jsonl")) for name in ("one", "two")] == [1, 2]
    assert f"limit = 1  ({config}:1)" in place.store.log(jobs[1].id)
    assert "defaults" not in place.store.log(jobs[1].id)


def test_no_file_of_a_job_holds_the_key_even_when_the_server_quotes_it(place: Place) -> None:
    quoted = json.dumps({"error": {"message": f"no such key: {KEY}"}}).encode()
    with small_server(lambda request: Reply(401, quoted)) as server:
        job = place.ended(place.start(options={"base_url": server.url}))
    assert job.state == "failed"
    assert job.exit_code == 2
    assert job.error
    assert KEY not in job.error
    for path in job.folder.iterdir():
        assert KEY.encode() not in path.read_bytes(), path.name
    assert not any(KEY in word for word in " ".join(place.store.log(job.id)))


def test_wrong_input_is_a_failure_that_says_why(place: Place) -> None:
    job = place.ended(place.start(options={"input": "nothing.jsonl"}))
    assert (job.state, job.exit_code, job.result) == ("failed", 2, None)
    assert job.error
    assert "nothing.jsonl" in job.error
    assert "Traceback" not in place.store.log(job.id)


def test_a_command_that_cannot_even_begin_has_failed(place: Place) -> None:
    broken = "import sys\nif 'core.worker' in ' '.join(sys.orig_argv):\n    sys.exit('no such library')\n"
    (place.folder / "site").mkdir()
    (place.folder / "site" / "sitecustomize.py").write_text(broken, encoding="utf-8")
    job = place.ended(place.start(env={"PYTHONPATH": str(place.folder / "site")}))
    assert (job.state, job.exit_code) == ("failed", 1)
    assert job.error == "its command could not be run; the log says why"
    assert "no such library" in place.store.log(job.id)


def test_a_python_that_does_not_start_is_said_with_its_words(place: Place) -> None:
    (place.folder / "site").mkdir()
    (place.folder / "site" / "sitecustomize.py").write_text("raise SystemExit('no such library')\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"did not start: .*no such library"):
        place.start(env={"PYTHONPATH": str(place.folder / "site")})
    assert [path.name for path in place.store.folder.iterdir()] == []


def test_the_current_folder_is_not_imported_from(place: Place) -> None:
    for name in ("json.py", "core.py", "sitecustomize.py"):
        (place.folder / name).write_text("raise SystemExit('imported from the workspace')\n", encoding="utf-8")
    job = place.ended(place.start(env={"PYTHONPATH": os.pathsep.join(["", ".", "/nonexistent"])}))
    assert job.state == "succeeded", place.store.log(job.id)


def test_one_request_id_is_one_job_from_many_threads(place: Place) -> None:
    jobs: list[Job] = []
    ready = threading.Barrier(8)

    def ask() -> None:
        ready.wait()
        jobs.append(place.start(request_id="r-1"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job in jobs}) == 1
    assert len(jobs) == 8
    assert len([path for path in place.store.folder.iterdir() if not path.name.startswith(".")]) == 1
    place.ended(jobs[0])
    assert place.start(request_id="r-1").id == jobs[0].id
    assert len(read_rows(place.folder / "train.jsonl")) == 6
    assert place.mock.requests == 6
    with pytest.raises(UsageError, match=r"other work already .* differs in limit\)"):
        place.start(request_id="r-1", options={"limit": 1})
    assert not [path for path in place.store.folder.iterdir() if path.name.startswith(".new-")]
    assert place.store.earlier("r-2", "generate_teacher_data", {}) is None
    other = {**place.options, "max_cost": 1.0}
    with pytest.raises(UsageError, match=r"differs in max_cost\)"):
        place.store.earlier("r-1", "generate_teacher_data", other)
    with pytest.raises(UsageError, match=r"differs in the command\)"):
        place.store.earlier("r-1", "evaluate", place.options)
    again = place.store.earlier("r-1", "generate_teacher_data", other, but=("max_cost",))
    assert again
    assert again.id == jobs[0].id


def test_so_many_jobs_and_no_more(place: Place) -> None:
    place.mock.configure(latency="fixed:5")
    first = place.start(most=1)
    with pytest.raises(UsageError, match="1 jobs are unfinished"):
        place.start(most=1)
    place.store.cancel(first.id)
    place.ended(first)
    place.mock.configure(latency="fixed:0")
    assert place.ended(place.start(most=1, options={"output": "other.jsonl"})).state == "succeeded"


def test_of_several_that_start_at_once_only_so_many_get_a_job(place: Place) -> None:
    place.mock.configure(latency="fixed:5")

    def start(number: int) -> str | None:
        try:
            return place.start(most=2, options={"output": f"{number}.jsonl"}).id
        except UsageError:
            return None

    with ThreadPoolExecutor(6) as starters:
        started = [id for id in starters.map(start, range(6)) if id]
    assert len(started) == 2
    for id in started:
        place.store.cancel(id)


def test_unknown_jobs_are_told_apart_from_paths(place: Place) -> None:
    for name in ("", "..", "job_1", f"job_{'0' * 32}", "job_" + "0" * 31 + "/", "/etc", "\0", "\n"):
        with pytest.raises(UnknownJob, match="No job was started here yet"):
            place.store.get(name)
        with pytest.raises(UnknownJob):
            place.store.log(name)
        with pytest.raises(UnknownJob):
            place.store.cancel(name)
    job = place.start()
    with pytest.raises(UnknownJob, match=job.id):
        place.store.get(f"job_{'0' * 32}")


@pytest.mark.parametrize(
    "content",
    [None, b"", b'{"comm', b"[]", b"\xff\xfe", b"[" * 100_000],
    ids=["deleted", "empty", "torn", "list", "bytes", "deep"],
)
def test_damaged_files_give_a_sentence(place: Place, content: bytes | None) -> None:
    job = place.ended(place.start())
    assert gone(job)

    def damage(name: str) -> None:
        (job.folder / name).unlink()
        if content is not None:
            (job.folder / name).write_bytes(content)

    damage("result.json")
    now = place.store.get(job.id)
    assert now.state == "succeeded"
    assert now.error == "its result.json was deleted or damaged"
    damage("progress.jsonl")
    assert place.store.get(job.id).progress is None
    damage("exit.json")
    assert place.store.get(job.id).state == "lost"
    damage("supervisor.json")
    damage("worker.json")
    assert place.store.get(job.id).state == "lost"
    (job.folder / "log.txt").unlink()
    assert "cannot be read" in place.store.log(job.id)
    damage("spec.json")
    now = place.store.get(job.id)
    assert now.error
    assert (now.state, now.command) == ("lost", "")
    assert "deleted or damaged" in now.error
    assert place.store.cancel(job.id).state == "lost"
    assert [each.id for each in place.store.list()] == [job.id]


def test_nothing_that_stands_in_a_jobs_files_is_a_traceback(place: Place) -> None:
    job = place.ended(place.start(device="gpu3"))
    assert gone(job)
    values = [None, True, -1, 1e400, "x", "\ud800", [], [[]], {}, {"a": {}}]
    for path in [path for path in job.folder.iterdir() if path.suffix in (".json", ".jsonl")]:
        whole = path.read_bytes()
        lines = whole.splitlines()
        fields = json.loads(lines[-1])
        damaged = [whole[:at] for at in range(0, len(whole.rstrip()), 9)]
        damaged += [json.dumps({**fields, name: value}).encode() for name in fields for value in values]
        damaged += [json.dumps(value).encode() for value in values]
        for content in damaged:
            path.write_bytes(content)
            assert place.store.get(job.id).finished
            (seen,) = place.store.list()
            look.line(seen)
            look.details(seen)
            look.seen(seen).model_dump_json()
        path.write_bytes(whole)
    assert place.store.get(job.id) == job


def test_links_and_pipes_in_a_jobs_folder_are_not_read(place: Place) -> None:
    job = place.ended(place.start())
    (place.folder / "private.txt").write_text('{"exit_code": 0, "result": {"a": "private"}}', encoding="utf-8")
    for name in ("log.txt", "result.json"):
        (job.folder / name).unlink()
        (job.folder / name).symlink_to(place.folder / "private.txt")
    assert "cannot be read" in place.store.log(job.id)
    assert place.store.get(job.id).result is None
    (job.folder / "log.txt").unlink()
    os.mkfifo(job.folder / "log.txt")
    assert "not a regular file" in place.store.log(job.id)
    other = place.store.folder / f"job_{'1' * 32}"
    other.symlink_to(job.folder)
    with pytest.raises(UnknownJob):
        place.store.get(other.name)


@pytest.mark.parametrize(
    ("number", "options", "state", "code"),
    [
        (signal.SIGSEGV, {}, "succeeded", 0),
        (signal.SIGKILL, {}, "succeeded", 0),
        (signal.SIGSEGV, {"input": "nothing.jsonl"}, "failed", 2),
    ],
)
def test_a_crash_after_the_last_word_undoes_nothing(
    place: Place, number: signal.Signals, options: dict[str, Any], state: State, code: int
) -> None:
    crash = (
        "import atexit, os, sys\n"
        f"if 'core.worker' in ' '.join(sys.orig_argv):\n    atexit.register(os.kill, os.getpid(), {number:d})\n"
    )
    (place.folder / "site").mkdir()
    (place.folder / "site" / "sitecustomize.py").write_text(crash, encoding="utf-8")
    job = place.ended(place.start(env={"PYTHONPATH": str(place.folder / "site")}, options=options))
    told = read(job.folder / "exit.json")
    assert told
    assert told["signal"] == number.name
    assert (job.state, job.exit_code) == (state, code)
    assert "nothing.jsonl" in (job.error or "") if code else job.result


def test_a_job_of_another_container_lives_and_can_be_cancelled(place: Place) -> None:
    place.mock.configure(latency="fixed:20")
    job = place.until(place.start(), "running")
    for name in ("supervisor.json", "worker.json"):  # where these numbers are nobody's, or somebody else's
        with open(job.folder / name, "r+b") as file:
            file.write(json.dumps({"pid": 1, "start": "another boot"}).encode().ljust(200))
    assert place.store.get(job.id).state == "running"
    assert place.store.cancel(job.id).state == "cancelling"
    place.store.cancel(job.id)
    assert place.ended(job).state == "cancelled"


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="no right to make a PID namespace",
)
def test_from_another_pid_namespace_a_job_is_seen_queued_for_and_cancelled(place: Place) -> None:
    place.mock.configure(latency="fixed:20")
    job = place.until(place.start(device="gpu3"), "running")

    def ask(*words: str) -> str:
        script = str(ROOT / "scripts" / "jobs.py")
        done = subprocess.run(
            [*NAMESPACE, sys.executable, script, *words],
            cwd=place.folder,
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            check=True,
        )
        return done.stdout

    assert "running" in ask("show", job.id)
    clean = "import sys, json; from core.jobs.queue import Place; Place.of(json.load(sys.stdin)).clean()"
    spec = (job.folder / "spec.json").read_bytes()
    subprocess.run([*NAMESPACE, sys.executable, "-c", clean], cwd=ROOT, input=spec, check=True)
    assert place.start(device="gpu3", options={"output": "other.jsonl"}).ahead == 1
    assert "cancel" in ask("cancel", job.id)
    assert place.ended(job).state == "cancelled"


def test_a_disk_that_is_away_for_a_while_ends_no_job(place: Place) -> None:
    libc = ctypes.CDLL(None)

    def give_up_root() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)

    place.mock.configure(latency="fixed:1.5")
    options = ("-i", "prompts.jsonl", "--base-url", place.mock.base_url, "--model", place.mock.model, "-c", "6")
    outcome = ended(start(place.folder, *options, "--background", preexec=give_up_root, OPENAI_API_KEY=KEY))
    assert outcome.code == 0, outcome.stderr
    job = place.until(place.store.get(outcome.stdout.strip()), "running")
    place.started.append(job)
    while place.mock.requests < 6:
        time.sleep(0.02)
    place.store.folder.chmod(0)
    time.sleep(2.5)  # the command ends meanwhile, and the last words are said when the disk is back
    assert len(read_rows(place.folder / "train.jsonl")) == 6
    place.store.folder.chmod(0o700)
    job = place.ended(job)
    assert job.state == "succeeded"
    assert job.result
    assert read(job.folder / "exit.json")
    assert "Traceback" not in place.store.log(job.id)


def test_a_shutdown_asks_all_processes_and_is_one_wish(place: Place) -> None:
    write_rows(place.folder / "prompts.jsonl", questions(50))
    place.mock.configure(latency="fixed:2")
    job = place.until(place.start(options={"concurrency": 3}), "running")
    while place.mock.requests < 3:
        time.sleep(0.02)
    for name in ("worker", "supervisor"):
        os.kill(place.pid(job, name), signal.SIGTERM)
        time.sleep(0.3)
    job = place.ended(job)
    assert (job.state, job.exit_code) == ("stopped", 130)
    assert job.result
    assert job.result["rows_in_output"] == 3  # what was paid for is kept


def test_a_password_in_an_option_is_in_the_spec_alone(place: Place) -> None:
    job = place.ended(place.start(options={"extra_body": {"note": "password=opensesame17"}}))
    assert job.state == "succeeded"
    assert [path.name for path in job.folder.iterdir() if b"opensesame17" in path.read_bytes()] == ["spec.json"]
    assert "password=***" in place.store.log(job.id)


def test_a_job_whose_folder_is_deleted_ends(place: Place) -> None:
    place.mock.configure(latency="fixed:20")
    job = place.until(place.start(), "running")
    shutil.rmtree(job.folder)
    assert gone(job, 15)
    with pytest.raises(UnknownJob):
        place.store.get(job.id)


def test_the_newest_job_is_first_and_lists_can_be_narrowed(place: Place) -> None:
    jobs = [place.ended(place.start(options={"output": f"{n}.jsonl", "limit": 1})) for n in range(3)]
    bad = place.ended(place.start(options={"input": "nothing.jsonl"}))
    newest = [bad.id, *(job.id for job in reversed(jobs))]
    assert [job.id for job in place.store.list()] == newest
    assert [job.id for job in place.store.list(limit=2, offset=1)] == newest[1:3]
    assert [job.id for job in place.store.list(states=["failed"])] == [bad.id]
    assert place.store.list(command="train_sft") == []
    assert place.store.ids(bad.id[:10]) == [bad.id]


def test_cancelling_keeps_what_is_finished(place: Place) -> None:
    write_rows(place.folder / "prompts.jsonl", questions(400))
    place.mock.configure(latency="fixed:0.1")
    job = place.start()
    while not ((now := place.store.get(job.id)).progress or {}).get("done"):
        assert not now.finished
        time.sleep(0.05)
    assert place.store.cancel(job.id).state == "cancelling"
    job = place.ended(job)
    assert job.state == "cancelled"
    assert job.result
    assert job.result["status"] in ("stopped", "interrupted")
    assert len(read_rows(place.folder / "train.jsonl")) == job.result["rows_in_output"] > 0
    assert place.store.cancel(job.id).state == "cancelled"
    assert gone(job)


def test_what_does_not_listen_is_killed_with_all_its_processes(place: Place) -> None:
    place.store.grace_s = 1
    place.mock.configure(latency="fixed:20")
    job = place.until(place.start(), "running")
    os.kill(place.pid(job, "worker"), signal.SIGSTOP)
    begun = time.monotonic()
    place.store.cancel(job.id)
    job = place.ended(job)
    assert 1 <= time.monotonic() - begun < 4
    assert job.state == "cancelled"
    assert job.error
    assert "so it was killed" in job.error
    assert gone(job)


@pytest.mark.parametrize(
    ("number", "state"),
    [(signal.SIGKILL, "lost"), (signal.SIGSEGV, "failed"), (signal.SIGTERM, "stopped")],
)
def test_how_a_worker_died_is_told(place: Place, number: signal.Signals, state: State) -> None:
    place.mock.configure(latency="fixed:1")
    job = place.until(place.start(), "running")
    os.kill(place.pid(job, "worker"), number)
    job = place.ended(job)
    assert job.state == state
    assert job.result or number.name in (job.error or "") or job.exit_code == 130
    assert gone(job)


def test_a_job_without_its_supervisor_ends_by_itself_and_keeps_what_is_finished(place: Place) -> None:
    write_rows(place.folder / "prompts.jsonl", questions(400))
    place.mock.configure(latency="fixed:0.1")
    job = place.start()
    while not (place.store.get(job.id).progress or {}).get("done"):
        time.sleep(0.05)
    os.kill(place.pid(job, "supervisor"), signal.SIGKILL)
    assert place.store.get(job.id).state == "running"
    job = place.ended(job)
    assert job.state == "stopped"
    assert job.result
    assert len(read_rows(place.folder / "train.jsonl")) == job.result["rows_in_output"] > 0
    assert gone(job)
    assert "the supervisor of this job was killed" in place.store.log(job.id)


def test_a_supervisor_that_is_asked_to_end_ends_its_job_in_order(place: Place) -> None:
    place.mock.configure(latency="fixed:1")
    job = place.until(place.start(), "running")
    os.kill(place.pid(job, "supervisor"), signal.SIGTERM)
    job = place.ended(job)
    assert job.state == "stopped"
    assert read(job.folder / "exit.json")
    assert gone(job)


def test_jobs_of_one_device_run_one_after_another(place: Place) -> None:
    place.mock.configure(latency="fixed:0.5")
    jobs = [place.start(device="gpu3", options={"output": f"{n}.jsonl", "limit": 1}) for n in range(3)]
    other = place.start(device="gpu4", options={"output": "other.jsonl", "limit": 1})
    last = place.store.get(jobs[-1].id)
    assert (last.state, last.device, last.ahead) == ("queued", "gpu3", 2)
    ended = [place.ended(job) for job in jobs]
    assert [job.state for job in ended] == ["succeeded"] * 3
    for earlier, later in pairwise(ended):
        assert earlier.ended
        assert later.started
        assert earlier.ended <= later.started
    other = place.ended(other)
    assert other.started
    assert ended[0].ended
    assert other.started < ended[0].ended
    assert ended[0].ahead is None


def test_more_jobs_of_one_device_where_that_is_allowed(place: Place) -> None:
    place.mock.configure(latency="fixed:10")
    more = {"DISTILL_JOBS_PER_DEVICE": "2"}
    jobs = [place.start(device="gpu3", env=more, options={"output": f"{n}.jsonl", "limit": 1}) for n in range(3)]
    for job in jobs[:2]:
        place.until(job, "running")
    time.sleep(0.5)
    assert place.store.get(jobs[2].id).ahead == 2
    place.store.cancel(jobs[0].id)
    place.until(jobs[2], "running")
    with pytest.raises(UsageError, match="DISTILL_JOBS_PER_DEVICE=many"):
        place.start(device="gpu3", env={"DISTILL_JOBS_PER_DEVICE": "many"})


def test_a_waiting_job_is_cancelled_at_once_and_the_killed_give_their_place_to_the_next(place: Place) -> None:
    place.mock.configure(latency="fixed:10")
    jobs = [place.start(device="gpu3", options={"output": f"{n}.jsonl", "limit": 1}) for n in range(4)]
    place.until(jobs[0], "running")
    place.store.cancel(jobs[1].id)
    cancelled = place.ended(jobs[1], 2)
    assert (cancelled.state, cancelled.started) == ("cancelled", None)
    os.kill(place.pid(jobs[2], "supervisor"), signal.SIGKILL)
    assert place.until(jobs[2], "lost", seconds=2).started is None
    assert place.store.get(jobs[3].id).ahead == 1
    os.kill(place.pid(jobs[0], "worker"), signal.SIGKILL)
    place.until(jobs[3], "running", seconds=3)


def test_a_device_is_free_only_when_the_worker_is_gone_too(place: Place) -> None:
    place.mock.configure(latency="fixed:10")
    first, second = (place.start(device="gpu3", options={"output": f"{n}.jsonl"}) for n in range(2))
    place.until(first, "running")
    while not place.mock.requests:  # which it waits for when it is asked to end
        time.sleep(0.05)
    os.kill(place.pid(first, "supervisor"), signal.SIGKILL)
    time.sleep(1)
    assert place.store.get(first.id).state == "running"
    assert place.store.get(second.id).state == "queued"
    os.kill(place.pid(first, "worker"), signal.SIGKILL)
    place.until(second, "running", seconds=3)
    assert place.store.get(first.id).state == "lost"


def test_a_starter_that_lives_on_has_neither_children_nor_zombies(place: Place) -> None:
    place.mock.configure(latency="fixed:0.3")
    for n in range(3):
        place.start(options={"output": f"{n}.jsonl", "limit": 1})
    mine = {process.pid for process in psutil.Process().children(recursive=True)}
    assert not mine & {place.pid(job, "supervisor") for job in place.started}  # who ends us and ours does not end them
    for job in place.started:
        place.ended(job)
        assert gone(job)
    assert [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE] == []


def test_a_job_goes_on_when_its_starter_is_killed(place: Place) -> None:
    place.mock.configure(latency="fixed:0.5")
    code = (
        "import sys, json, os, time; from pathlib import Path; from core.jobs import JobStore; "
        "job = JobStore(Path(sys.argv[1])).start('generate_teacher_data', json.loads(sys.argv[2]), origins={}, "
        "cwd=Path.cwd(), environment=os.environ); print(job.id, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(place.store.folder), json.dumps(place.options)],
        env=environment(OPENAI_API_KEY=KEY, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert starter.stdout is not None
    id = starter.stdout.readline().strip()
    starter.kill()
    starter.communicate()
    assert place.ended(place.store.get(id)).state == "succeeded"


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_left(place: Place) -> None:
    (place.folder / ".distill").write_text("a file", encoding="utf-8")
    with pytest.raises(UsageError, match=r"no job can be started: .*\.distill"):
        place.start()
    (place.folder / ".distill").unlink()
    (place.folder / "elsewhere").mkdir()
    (place.folder / ".distill").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="is a symbolic link"):
        place.start()
    assert [*(place.folder / "elsewhere").iterdir()] == []


def test_a_full_disk_is_said_and_nothing_is_left(place: Place) -> None:
    place.ended(place.start(options={"limit": 1}))
    before = sorted(place.store.folder.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # what is reserved is longer
    try:
        with pytest.raises(UsageError, match=r"no job can be started: .*File too large"):
            place.start(options={"limit": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(place.store.folder.iterdir()) == before
