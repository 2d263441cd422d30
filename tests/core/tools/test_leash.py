"""The leash with real processes: whatever way its owner ends, what was held ends too."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.tools import leash as module
from core.tools.leash import Leash, Process, process_start, processes, processes_of_ps
from tests.support.running import ROOT, environment

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)",
]
# A child in a session of its own, as browsers start theirs; the pid of the child is printed.
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)",
]


@contextmanager
def running(command: list[str], own_session: bool = False) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A process, and the first line that it printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=own_session)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().decode().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until(true: Callable[[], bool], limit_s: float = 10) -> bool:
    end = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def dead(pid: int) -> bool:
    return process_start(pid) is None


def owner(body: str, tmp_path: Path) -> "subprocess.Popen[bytes]":
    """A program that has a leash; it prints the pids that matter, and then does `body`."""
    path = tmp_path / "owner.py"
    path.write_text(
        "import os, subprocess, sys, time\n"
        "from core.tools.leash import Leash\n"
        f"child = subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL, start_new_session=True)\n"
        "leash = Leash()\n"
        "leash.hold_process(child.pid)\n"
        "print(child.pid, leash._keeper.pid, flush=True)\n" + body,
        encoding="utf-8",
    )
    return subprocess.Popen(
        [sys.executable, str(path)],
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("number", "body"),
    [
        (signal.SIGKILL, "time.sleep(600)\n"),
        (signal.SIGTERM, "time.sleep(600)\n"),
        (signal.SIGINT, "time.sleep(600)\n"),
        (None, "os.abort()\n"),
        (None, "raise RuntimeError\n"),
        (None, ""),
    ],
    ids=["kill -9", "SIGTERM", "Ctrl-C for the whole group", "abort", "exception", "end without close"],
)
def test_what_was_held_ends_with_its_owner(number: signal.Signals | None, body: str, tmp_path: Path) -> None:
    process = owner(body, tmp_path)
    assert process.stdout is not None
    child, keeper = (int(word) for word in process.stdout.readline().split())
    if number is not None:
        assert not dead(child)
        os.killpg(process.pid, number)
    process.communicate(timeout=20)  # returns although the keeper may still be at work: it holds no pipe of ours
    assert until(lambda: dead(child))
    assert until(lambda: dead(keeper))


def test_nothing_is_started_before_something_is_held() -> None:
    leash = Leash()
    leash.release(4_000_000)
    assert leash._keeper is None
    leash.close()


def test_close_ends_what_is_held_and_spares_what_was_released() -> None:
    with running(SLEEP) as (held, _), running(SLEEP) as (released, _):
        leash = Leash()
        leash.hold_process(held.pid)
        leash.hold_process(released.pid)
        leash.release(released.pid)
        leash.close()
        assert held.wait(5) == -signal.SIGTERM
        assert released.poll() is None


def test_who_ignores_sigterm_is_killed_after_three_seconds() -> None:
    with running(STUBBORN) as (process, _), Leash() as leash:
        leash.hold_process(process.pid)
        began = time.monotonic()
        leash.close()
        assert process.wait(1) == -signal.SIGKILL
        assert module.TERM_S <= time.monotonic() - began < module.TERM_S + 2


def test_descendants_in_sessions_of_their_own_end_too() -> None:
    with running(PARENT) as (process, child):
        with Leash() as leash:
            leash.hold_process(process.pid)
        assert process.wait(5) == -signal.SIGTERM
        assert until(lambda: dead(int(child)))


def test_a_descendant_that_was_seen_ends_even_when_its_parent_died_first() -> None:
    with running(PARENT) as (process, child):
        keeper = module.Keeper()
        keeper.obey(["pid", str(process.pid), process_start(process.pid) or ""])
        assert set(keeper.look()) == {process.pid, int(child)}
        process.kill()
        process.wait()
        keeper.end_processes()
        assert until(lambda: dead(int(child)))


def test_the_rest_of_a_held_group_ends_when_its_leader_is_already_dead() -> None:
    command = PARENT.copy()
    command[2] = command[2].replace(", start_new_session=True", "")
    with running(command, own_session=True) as (process, child):
        with Leash() as leash:
            leash.hold_process(process.pid)
            process.kill()
            process.wait()
        assert until(lambda: dead(int(child)))


def test_a_pid_that_belongs_to_somebody_else_by_now_is_left_alone() -> None:
    with running(SLEEP, own_session=True) as (stranger, _):
        keeper = module.Keeper()
        keeper.obey(["pid", str(stranger.pid), "1"])  # held was a process of this number that began at another time
        assert keeper.look() == {}
        keeper.end_processes()
        assert stranger.poll() is None


def test_a_dead_process_is_not_held() -> None:
    with running(SLEEP) as (process, _):
        process.kill()
        process.wait()
        leash = Leash()
        leash.hold_process(process.pid)
        assert leash._keeper is None


def test_a_killed_keeper_is_replaced_and_the_new_one_holds_everything() -> None:
    with running(SLEEP) as (first, _), running(SLEEP) as (second, _):
        leash = Leash()
        leash.hold_process(first.pid)
        assert leash._keeper is not None
        before = leash._keeper
        before.kill()
        before.wait()
        leash.hold_process(second.pid)
        assert leash._keeper is not before
        leash.close()
        assert (first.wait(5), second.wait(5)) == (-signal.SIGTERM, -signal.SIGTERM)


@pytest.mark.parametrize("pid", [0, 1, -1, pytest.param(os.getpid(), id="our own")])
def test_what_must_not_be_killed_cannot_be_held(pid: int) -> None:
    with pytest.raises(ValueError, match="cannot be held"):
        Leash().hold_process(pid)


@pytest.mark.parametrize("name", ["", "--all", "a b", "a\ncontainer b", "*"])
def test_only_a_name_can_be_held_as_a_container(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a container"):
        Leash().hold_container(name)


def test_the_keeper_has_no_file_of_ours_open(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "wb"), running(SLEEP) as (process, _), Leash() as leash:
        leash.hold_process(process.pid)
        assert leash._keeper is not None
        files = {os.readlink(path) for path in Path(f"/proc/{leash._keeper.pid}/fd").iterdir() if path.is_symlink()}
        assert not [name for name in files if str(tmp_path) in name]
        assert os.getsid(leash._keeper.pid) == leash._keeper.pid


def test_ps_sees_the_same_tree_as_proc() -> None:
    with running(SLEEP, own_session=True) as (process, _):
        of_ps, of_proc = processes_of_ps()[process.pid], processes()[process.pid]
        assert (of_ps.parent, of_ps.group) == (of_proc.parent, of_proc.group) == (os.getpid(), process.pid)
        assert of_ps.start == processes_of_ps()[process.pid].start
        assert " " not in of_ps.start


def test_an_odd_process_name_does_not_hide_its_fields(tmp_path: Path) -> None:
    odd = tmp_path / "a) Z 1 (b"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(odd), "600"])
    try:
        assert until(lambda: b"a) Z 1 (b" in Path(f"/proc/{process.pid}/stat").read_bytes())
        found = processes()[process.pid]
        assert isinstance(found, Process)
        assert found.parent == os.getpid()
    finally:
        process.kill()
        process.wait()
