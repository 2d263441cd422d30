"""What we start outside this process must not outlive it, not even after `kill -9`.

`Leash` keeps one small child process, the keeper, which is this file run as a script. It reads on its standard input
what we hold. When that ends, because we closed it or because we died of whatever cause, it ends what is still held:
SIGTERM, three seconds, SIGKILL for processes with all their descendants, `docker rm --force` for containers.

Standard library only, and no import from this package: the keeper starts in a few hundredths of a second.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

TERM_S = 3.0
"""Between asking a process to end and ending it."""
LOOK_S = 2.0
"""How often the keeper looks for descendants: one whose parent has died can no longer be found by its parent."""
DOCKER_S = 30.0
CLOSE_S = 2 * DOCKER_S + TERM_S + 5


class Process(NamedTuple):
    """A living process. start: when it began, in a form that only serves for comparison (a pid may be used again)."""

    parent: int
    group: int
    session: int
    start: str


def processes() -> dict[int, Process]:
    """All living processes by pid; zombies are not alive."""
    if not Path("/proc/self/stat").exists():
        return processes_of_ps()
    found: dict[int, Process] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := _of_proc(name)):
            found[int(name)] = process
    return found


def _of_proc(pid: int | str) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second field is the name in parentheses; it may hold spaces and parentheses itself.
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return Process(int(fields[1]), int(fields[2]), int(fields[3]), fields[19].decode())


def processes_of_ps() -> dict[int, Process]:
    """The same where there is no /proc. The session is left out: `ps` has no common word for it."""
    command = ["ps", "-axo", "pid=,ppid=,pgid=,stat=,lstart="]
    environment = {**os.environ, "LC_ALL": "C"}
    answer = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    found: dict[int, Process] = {}
    for line in answer.stdout.decode(errors="replace").splitlines():
        pid, parent, group, state, start = line.split(None, 4)
        if not state.startswith("Z"):
            found[int(pid)] = Process(int(parent), int(group), 0, "_".join(start.split()))
    return found


def process_start(pid: int) -> str | None:
    """When a living process began; None for one that is dead. Without spaces."""
    process = _of_proc(pid) if Path("/proc/self/stat").exists() else processes_of_ps().get(pid)
    return process.start if process else None


class Leash:
    """Holds processes and containers for this process. Cheap until the first thing is held; safe in threads."""

    def __init__(self) -> None:
        self._keeper: subprocess.Popen[bytes] | None = None
        self._held: dict[int | str, str] = {}
        self._lock = threading.Lock()

    def hold_process(self, pid: int) -> None:
        """End this process, its descendants, its group and its session when we end. A dead one is not held."""
        if pid <= 1 or pid == os.getpid():
            raise ValueError(f"process {pid} cannot be held")
        start = process_start(pid)
        if start is not None:
            self._hold(pid, f"pid {pid} {start}\n")

    def hold_container(self, name: str) -> None:
        """Remove this container (its name or id; it need not exist yet) when we end."""
        if not name or not all(letter.isalnum() or letter in "_.-" for letter in name) or name.startswith("-"):
            raise ValueError(f"{name!r} is not the name of a container")
        self._hold(name, f"container {name}\n")

    def release(self, held: int | str) -> None:
        """What has ended in order: a process by its pid, a container by the name it was held with."""
        with self._lock:
            if self._held.pop(held, None) is not None:
                self._tell(f"forget {held}\n")

    def close(self) -> None:
        """End what is still held, wait for that, and end the keeper."""
        with self._lock:
            keeper, self._keeper = self._keeper, None
            self._held.clear()
        if keeper is None:
            return
        _close_stdin(keeper)
        try:
            keeper.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()

    def __enter__(self) -> "Leash":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hold(self, key: int | str, line: str) -> None:
        with self._lock:
            self._held[key] = line
            self._tell(line)

    def _tell(self, line: str) -> None:
        if self._keeper is not None:
            try:
                _write(self._keeper, line)
                return
            except BrokenPipeError:  # somebody ended the keeper: another one takes over all that is held
                _close_stdin(self._keeper)
                self._keeper.wait()
                self._keeper = None
        if self._held:
            self._keeper = _start_keeper()
            _write(self._keeper, "".join(self._held.values()))


def _start_keeper() -> "subprocess.Popen[bytes]":
    """A session of its own keeps Ctrl-C away; it holds none of our pipes, so nobody waits for it to read to an end."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd="/",
        start_new_session=True,
    )


def _write(keeper: "subprocess.Popen[bytes]", text: str) -> None:
    assert keeper.stdin is not None
    data = text.encode()
    while data:
        data = data[keeper.stdin.write(data) :]


def _close_stdin(keeper: "subprocess.Popen[bytes]") -> None:
    assert keeper.stdin is not None
    try:
        keeper.stdin.close()
    except BrokenPipeError:
        pass


class Keeper:
    """The other side: what is held, and its end."""

    def __init__(self) -> None:
        self.families: dict[int, dict[int, str]] = {}
        """held pid -> pid -> start, of itself and of every descendant that was seen so far."""
        self.containers: dict[str, None] = {}

    def keep(self, source: int) -> None:
        """Read lines from a file descriptor until its end, then end all that is held."""
        pending = b""
        while True:
            watching = self.families and Path("/proc/self/stat").exists()  # `ps` every two seconds would cost too much
            if not select.select([source], [], [], LOOK_S if watching else None)[0]:
                self.look()
                continue
            data = os.read(source, 65536)
            if not data:
                break
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self.obey(line.decode().split())
        self.end_processes()
        self.remove_containers()

    def obey(self, words: list[str]) -> None:
        match words:
            case ["pid", pid, start]:
                self.families[int(pid)] = {int(pid): start}
            case ["container", name]:
                self.containers[name] = None
            case ["forget", held]:
                self.containers.pop(held, None)
                if held.isdigit():
                    self.families.pop(int(held), None)
            case _:
                pass

    def look(self) -> dict[int, str]:
        """Add new descendants to the families. Returns all members that live, with their start."""
        table = processes()
        living: dict[int, str] = {}
        for root, family in self.families.items():
            start = family[root]
            known = {pid for pid, began in family.items() if pid in table and table[pid].start == began}
            if root not in table or root in known:  # else its number belongs to a stranger now, and so does its group
                # Kernels do not reuse a number while it names a group or a session.
                known |= {pid for pid, it in table.items() if root in (it.group, it.session) and _not_older(it, start)}
            grown = True
            while grown:
                children = {pid for pid, it in table.items() if it.parent in known} - known
                known |= children
                grown = bool(children)
            known -= {1, os.getpid(), os.getppid()}
            family.update((pid, table[pid].start) for pid in known)
            living.update((pid, table[pid].start) for pid in known)
        return living

    def end_processes(self) -> None:
        asked: set[int] = set()
        deadline = time.monotonic() + TERM_S
        while living := self.look():
            late = time.monotonic() >= deadline
            for pid in living if late else living.keys() - asked:
                _send(pid, signal.SIGKILL if late else signal.SIGTERM)
            asked |= living.keys()
            if time.monotonic() >= deadline + TERM_S:
                return  # in the kernel's hands, or not ours
            time.sleep(0.02)

    def remove_containers(self) -> None:
        left = list(self.containers)
        for pause in (0.0, 1.0):  # once more: the engine may have been creating it just when we died
            time.sleep(pause if left else 0)
            if left:
                gone = _docker_rm(left)
                left = [name for name in left if name not in gone]


def _not_older(process: Process, start: str) -> bool:
    return not (process.start.isdigit() and start.isdigit()) or int(process.start) >= int(start)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _docker_rm(names: list[str]) -> set[str]:
    """The names of those that were removed. Their volumes without a name go with them."""
    command = ["docker", "rm", "--force", "--volumes", *names]
    try:
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DOCKER_S)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return set(answer.stdout.decode(errors="replace").split())


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the keeper ends when its owner does, not before
        signal.signal(ignored, signal.SIG_IGN)
    Keeper().keep(0)
