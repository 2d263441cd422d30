"""The process over a job: waits for the device, starts the worker, ends it when asked, and has the last word about it.

It imports the standard library and psutil only, so that whatever kills a worker (no memory, a library's crash) leaves
it alone. Everything that it knows is in the job's folder.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import files, index
from .job import CANCEL, EXIT, LOG, RESULT, SPEC, SUPERVISOR, WORKER, read_job
from .processes import ASKING, JOB, be_subreaper, noted, signal_descendants
from .queue import Place
from .store import python

LOOK_S = 0.2
"""How often it looks whether it is asked to cancel, and whether the device is free."""
LEFT_BEHIND_S = 10.0
"""What the worker left behind has so long to end by itself: a keeper may be removing containers."""


class Supervisor:
    """One job."""

    def __init__(self, folder: Path, spec: dict[str, Any], handles: list[int]) -> None:
        """handles: what says that this job lives, while they are open here or in the worker."""
        self.folder = folder
        self.spec = spec
        self.handles = handles
        self.place = Place.of(spec)
        self.worker: subprocess.Popen[bytes] | None = None
        self.ended_from_outside = self.killed = False
        self._wake, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._end)
        be_subreaper()

    def _end(self, number: int, frame: object) -> None:
        """The machine is shut down, or somebody ends us by hand: the worker shall save what it has."""
        self.ended_from_outside = True

    @property
    def asked(self) -> bool:
        """Whether the job shall end. Nobody could see or cancel one whose folder was deleted."""
        try:
            return self.ended_from_outside or (self.folder / CANCEL).exists() or not self.folder.exists()
        except OSError:  # a disk that is away for a while says nothing
            return False

    def run(self) -> None:
        """The whole job. Its last word is written whatever happens."""
        last: dict[str, Any] = {"exit_code": None, "error": "its supervisor crashed; the log says how"}
        try:
            last = self.work()
        except OSError as error:
            last["error"] = f"{error.filename or self.folder}: {error.strerror}"
        finally:
            try:
                files.insist(files.write_reserved, self.folder / EXIT, {**last, "time": time.time()})
                index.note(self.folder.parent, self.folder.name, self.spec["command"], read_job(self.folder).state)
            except OSError as error:
                print(f"jobs: the end of this job could not be written: {error}", file=sys.stderr)
            finally:
                self.end_what_is_left()
                if self.place is not None:
                    self.place.leave()

    def work(self) -> dict[str, Any]:
        """Wait for the device, run the worker. Returns what `ending` reads; said: whether there is a result."""
        device = self.wait_for_device()
        if self.asked:
            return {"exit_code": 3, "error": "it was ended before it had begun"}
        self.worker = self.start_worker(device)
        code = self.watch(self.worker)
        if code >= 0:
            return {"exit_code": code, "said": (self.folder / RESULT).exists()}
        if self.killed:
            return {"exit_code": None, "signal": "SIGKILL", "error": KILLED}
        named = {each.value: each.name for each in signal.Signals}
        name = named.get(-code, f"signal {-code}")
        return {"exit_code": None, "signal": name, "error": f"it was ended by {name}. {SIGNALS.get(name, CRASH)}"}

    def wait_for_device(self) -> int | None:
        """The lock of the device, when it is this job's turn; None where there is nothing to wait for, or no more."""
        if self.place is None:
            return None
        try:
            self.place.clean()
            while not self.asked:
                handle = self.place.lock()
                if handle is not None:
                    return handle
                self.sleep()
        except OSError as error:
            print(
                f"jobs: the queue of {self.spec['device']} cannot be used ({error}), so this job waits for no other. "
                "XDG_CACHE_HOME names another place for it.",
                file=sys.stderr,
                flush=True,
            )
        return None

    def start_worker(self, device: int | None) -> "subprocess.Popen[bytes]":
        """The worker waits for one byte, by which time it is noted down; the end of that pipe tells it that we died.
        It holds what we hold, and the lock of the device; it listens to signals when it can answer."""
        reading, writing = os.pipe()
        inherited = (reading, *self.handles, *(() if device is None else (device,)))
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        with open(self.folder / LOG, "ab") as log:
            worker = subprocess.Popen(
                [*python(__name__.replace(".jobs.supervisor", ".worker")), str(self.folder), *map(str, inherited)],
                env={**os.environ, JOB: self.folder.name},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                pass_fds=inherited,
            )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        os.close(reading)
        files.write_reserved(self.folder / WORKER, {**noted(worker.pid), "time": time.time()})
        os.write(writing, b"!")  # and it stays open
        return worker

    def watch(self, worker: "subprocess.Popen[bytes]") -> int:
        """Until the worker has ended: by itself, when asked, or killed because asking did not help. Returns how, as
        subprocess has it."""
        grace_s = float(self.spec["grace_s"])
        # SIGINT, as SIGTERM may come from outside too: twice means "stop now".
        calls = [(0.0, signal.SIGINT), (grace_s / 2, signal.SIGINT), (grace_s, signal.SIGKILL)]
        since: float | None = None
        while True:
            self.reap()
            if worker.returncode is not None:
                return worker.returncode
            if since is None and self.asked:
                since = time.monotonic()
            while since is not None and calls and time.monotonic() - since >= calls[0][0]:
                self.send(calls.pop(0)[1])
            self.sleep()

    def send(self, number: signal.Signals) -> None:
        """SIGINT to the worker alone, which needs its helpers to finish; SIGKILL to all of them."""
        assert self.worker is not None
        os.kill(self.worker.pid, number)  # not reaped yet, so the number is still its own
        if number == signal.SIGKILL:
            self.killed = True
            signal_descendants(number)

    def reap(self) -> bool:
        """Take in every child that has ended, adopted ones too. Returns whether there is no child any more."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if self.worker is not None and pid == self.worker.pid:
                self.worker.returncode = os.waitstatus_to_exitcode(status)

    def end_what_is_left(self) -> None:
        """No process of the job outlives it. They are asked, and killed when they take too long."""
        since = time.monotonic()
        if not self.reap():
            signal_descendants(signal.SIGTERM)
        while not self.reap() and time.monotonic() - since < 2 * LEFT_BEHIND_S:  # then they are in the kernel's hands
            if time.monotonic() - since > LEFT_BEHIND_S:
                signal_descendants(signal.SIGKILL)
            self.sleep()

    def sleep(self) -> None:
        """Until something happens: a child has ended, a signal came, or it is time to look."""
        if select.select([self._wake], [], [], LOOK_S)[0]:
            os.read(self._wake, 4096)


KILLED = "it did not end when it was asked to, so it was killed. What was finished is kept."
CRASH = "That is a crash of a library or of Python; the end of the log may say where."
SIGNALS = {
    "SIGKILL": "Most often that is the system, for want of memory. What was finished is kept.",
    "SIGTERM": "It had not begun yet, or could not listen. What was finished is kept.",
}


def main() -> None:
    """Arguments: the folder in which the job was prepared, the one that it gets when it comes to be, and file
    descriptors to hold."""
    draft, folder, *handles = sys.argv[1:]
    supervise(Path(draft), Path(folder), [*map(int, handles)])


def supervise(draft: Path, folder: Path, handles: list[int]) -> None:
    """Once the job has come to be; else tidy up, as a starter that was killed could not."""
    sys.stdin.buffer.read()  # until the starter has closed it, or is dead
    note = files.read(folder / SUPERVISOR)
    if note is None or note["pid"] != os.getpid():
        spec = files.read(draft / SPEC)
        place = Place.of(spec) if spec else None
        if place is not None:
            place.leave()
        shutil.rmtree(draft, ignore_errors=True)
        return
    spec = files.read(folder / SPEC)
    assert spec is not None
    Supervisor(folder, spec, handles).run()
