"""The jobs of a workspace: started, looked at, cancelled. Every call reads the disk, so that any process may ask."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ..errors import UsageError
from . import files, index
from .job import CANCEL, EXIT, LOG, PROGRESS, RESULT, SPEC, SUPERVISOR, UNFINISHED, WORKER, Job, State, read_job
from .processes import JOB, hold, noted, sign
from .queue import Place, new_place

ID = re.compile(r"job_[0-9a-f]{32}")
GRACE_S = 30.0
"""Between asking a job to end and killing it: a checkpoint is saved in that time."""
LOOK_S = 0.05
"""How often `wait` looks."""
ROOT = Path(__file__).resolve().parents[2]
"""Whence this package is imported."""
APART = (
    "import os, sys; tell = int(sys.argv.pop(1)); pid = os.fork(); "
    "pid and (os.write(tell, b'%d' % pid), os._exit(0)); os.close(tell); "
)
"""Code by which a process becomes nobody's child: it tells the number of its own child, which goes on, and ends."""


Jobs = list[Job]
Ids = list[str]
Handles = list[int]
"""`list` is a method below."""


class UnknownJob(UsageError):
    """There is no job of that name."""


class JobStore:
    """The jobs below one folder, by convention `.distill/jobs` of a workspace. Safe in threads, and beside others."""

    def __init__(self, folder: Path, *, grace_s: float = GRACE_S) -> None:
        """folder: made at the first start, not before.   grace_s: of the jobs started here."""
        self.folder = Path(os.path.abspath(folder))
        self.grace_s = grace_s

    def start(
        self,
        command: str,
        options: Mapping[str, Any],
        *,
        origins: Mapping[str, str],
        cwd: Path,
        environment: Mapping[str, str],
        device: str | None = None,
        request_id: str | None = None,
        most: int | None = None,
    ) -> Job:
        """Start a command as a job; it runs on when this process is gone.

        options: the values of a validated command that are not its defaults (`given`): nothing is read again when the
        job begins.   origins: where each came from.
        environment: all that the job gets; it may hold keys, and is written nowhere.
        device: whose queue it waits in (see `device_for`), None for none.
        request_id: the same id with the same work gives the same job, however often and from wherever it is started.
        most: how many unfinished jobs are enough.

        Raises UsageError: other work under the same request_id, too many jobs, a folder that cannot be written.
        """
        work = {"command": command, "options": options, "origins": origins, "cwd": os.path.abspath(cwd)}
        spec: dict[str, Any] = json.loads(json.dumps(work))
        if request_id is not None and (job := self.earlier(request_id, command, spec["options"])):
            return job
        id = f"job_{secrets.token_hex(16)}" if request_id is None else id_of(request_id)
        created = time.time_ns()
        try:
            self._make_folder()
            with self._counted(most):
                place = new_place(device, id, created, environment) if device else None
                spec |= {"device": device, "queue": place and place.noted()}
                spec |= {"created": created / 1e9, "grace_s": self.grace_s}
                return self._launch(id, spec, environment)
        except ChildProcessError as error:
            raise UsageError(f"no job can be started: {error.filename} {error.strerror}") from None
        except OSError as error:
            where = error.filename or self.folder
            raise UsageError(
                f"no job can be started: {where}: {error.strerror}. Make room, or choose a workspace that can be "
                "written."
            ) from None

    def earlier(
        self, request_id: str, command: str, options: Mapping[str, Any], *, but: Collection[str] = ()
    ) -> Job | None:
        """The job that this request has started already, None where it has started none.

        but: options that need not be the same. Raises UsageError when it was about other work.
        """
        id = id_of(request_id)
        return self._same(id, {"command": command, "options": options}, but) if (self.folder / id).exists() else None

    def get(self, id: str) -> Job:
        """A job as it stands now. Raises UnknownJob."""
        return read_job(self._place(id))

    def list(
        self,
        *,
        states: Collection[State] | None = None,
        command: str | None = None,
        limit: int = 20,
        offset: int = 0,
    ) -> "Jobs":
        """Jobs, the newest first."""
        jobs = map(read_job, self._newest(states, command))
        chosen = (job for job in jobs if (not states or job.state in states) and command in (None, job.command))
        return [*islice(chosen, offset, offset + limit)]

    def wait(self, id: str, seconds: float) -> Job:
        """A job when it is finished, or as it stands after so many seconds. Raises UnknownJob."""
        until = time.monotonic() + seconds
        while not (job := self.get(id)).finished and (left := until - time.monotonic()) > 0:
            time.sleep(min(LOOK_S, left))
        return job

    def cancel(self, id: str) -> Job:
        """Ask a job to end; what is finished is kept. Its supervisor sends SIGTERM, and SIGKILL to all its processes
        when that has not helped. Returns at once. Raises UnknownJob, or UsageError where it cannot be asked."""
        job = self.get(id)
        if not job.finished:
            try:
                files.mark(job.folder / CANCEL)
            except OSError as error:
                raise UsageError(f"{id} cannot be cancelled: {error.strerror}: {job.folder / CANCEL}") from None
        return self.get(id)

    def log(self, id: str, most_bytes: int = 20_000) -> str:
        """The end of what a job has written to stdout and stderr, without secrets. Raises UnknownJob."""
        from ..data.secrets import redact

        try:
            text = files.tail(self._place(id) / LOG, most_bytes).decode(errors="replace")
        except OSError as error:
            return f"The log of {id} cannot be read: {error.strerror}."
        return redact(text)

    def ids(self, beginning: str) -> "Ids":
        """Of the jobs whose id begins so."""
        return sorted(name for name in self._names() if name.startswith(beginning))

    def unfinished(self, most: int) -> int:
        """How many jobs are not finished; it stops counting at `most`."""
        return len(self.list(states=UNFINISHED, limit=most))

    @contextmanager
    def _counted(self, most: int | None) -> Generator[None, None, None]:
        """While others who count their jobs wait, so that several starts at once do not all find room for one more.

        Raises UsageError when there are enough, OSError.
        """
        if most is None:
            yield
            return
        import fcntl

        with open(os.open(self.folder / ".starting", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if self.unfinished(most) >= most:
                raise UsageError(
                    f"{most} jobs are unfinished, and no more are allowed at once. Wait for one, or cancel one "
                    "(list_jobs)."
                )
            yield

    # ---- the folders -----------------------------------------------------------------------------------------------

    def _names(self) -> "Ids":
        try:
            return [name for name in os.listdir(self.folder) if ID.fullmatch(name)]
        except OSError:
            return []

    def _newest(self, states: Collection[State] | None = None, command: str | None = None) -> Iterable[Path]:
        """Folders, the newest first, without those of which the index knows that they are not asked for."""
        names = {*self._names()}
        known = {id: hint for id, hint in index.hints(self.folder).items() if id in names}
        others = sorted((self.folder / name for name in names - known.keys()), key=_changed, reverse=True)
        for id, (of, state) in reversed(known.items()):
            if command in (None, of) and (not states or state == "-" or state in states):
                yield self.folder / id
        yield from others

    def _place(self, id: str) -> Path:
        """The folder of a job. Raises UnknownJob."""
        folder = self.folder / id
        if ID.fullmatch(id) and folder.is_dir() and not folder.is_symlink():
            return folder
        last = [place.name for place in islice(self._newest(), 3)]
        known = f"The last ones: {', '.join(last)}; list_jobs has all." if last else "No job was started here yet."
        raise UnknownJob(f"{id[:100]} is no job of this workspace. {known}")

    def _same(self, id: str, work: Mapping[str, Any], but: Collection[str] = ()) -> Job:
        """The job that an earlier request of the same id started. Raises UsageError when it was about other work."""
        spec = files.read(self.folder / id / SPEC)
        if spec is not None and (differ := [name for name in differences(spec, work) if name not in but]):
            raise UsageError(
                f"this request id has started other work already ({id}; it differs in {', '.join(differ)}). "
                "Use a new request id for new work."
            )
        return self.get(id)

    def _make_folder(self) -> None:
        """Raises OSError, and UsageError for a link in its place, which might lead anywhere."""
        for folder in (self.folder.parent, self.folder):
            if folder.is_symlink():
                raise UsageError(f"{folder} is a symbolic link. Remove it: jobs are kept in a folder of their own.")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ignore = self.folder.parent / ".gitignore"
        if self.folder.parent.name == ".distill" and not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")

    # ---- starting --------------------------------------------------------------------------------------------------

    def _launch(self, id: str, spec: dict[str, Any], environment: Mapping[str, str]) -> Job:
        """Prepare a job out of sight and rename it into its place, with its supervisor already there.

        So whatever can be seen is whole; of two who start the same, one rename fails; and when this process is killed
        on the way, the supervisor knows by the end of its standard input whether its job has come to be, and else
        tidies up: so it is started before anything is written.
        """
        draft = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))  # 0700
        place = Place.of(spec)
        handles: list[int] = []
        line: IO[bytes] | None = None
        try:
            handles.append(hold(draft / SUPERVISOR))
            if place is not None:
                handles.append(place.take())
            pid, line = self._supervisor(draft, id, spec["cwd"], environment, handles)
            files.write(draft / SPEC, spec)
            for name in (WORKER, RESULT, EXIT):
                files.reserve(draft / name)
            files.reserve_mark(draft / CANCEL)
            os.close(os.open(draft / PROGRESS, os.O_WRONLY | os.O_CREAT, 0o600))
            note = noted(pid)
            for handle in handles:
                sign(handle, note)
            index.note(self.folder, id, spec["command"])
            os.rename(draft, self.folder / id)
        except BaseException as error:
            if place is not None and draft.exists():  # else the job has come to be, and Ctrl-C came after that
                place.leave()
            shutil.rmtree(draft, ignore_errors=True)
            if isinstance(error, OSError) and (self.folder / id / SPEC).exists():
                return self._same(id, spec)
            raise
        finally:
            for handle in handles:
                os.close(handle)
            if line is not None:
                line.close()
        return self.get(id)

    def _supervisor(
        self, draft: Path, id: str, cwd: str, environment: Mapping[str, str], handles: "Handles"
    ) -> tuple[int, IO[bytes]]:
        """(its process id, the pipe that it waits at). It is nobody's child, so that those who end a server with its
        children do not end its jobs. handles: what it shall hold."""
        reading, writing = os.pipe()
        try:
            with open(os.open(draft / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as log:
                words = [str(writing), str(draft), str(self.folder / id), *map(str, handles)]
                parent = subprocess.Popen(
                    [*python(f"{__package__}.supervisor", APART), *words],
                    cwd=cwd,
                    env=elsewhere(environment),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(writing, *handles),
                )
        finally:
            os.close(writing)
            with open(reading, "rb") as told:
                pid = told.read()
        parent.wait()
        assert parent.stdin is not None
        if not pid:
            parent.stdin.close()
            said = files.tail(draft / LOG, 1000).decode(errors="replace").strip() or "it says nothing"
            raise ChildProcessError(errno.ECHILD, f"did not start: {said.splitlines()[-1]}", sys.executable)
        threading.Thread(target=adopted, args=(int(pid),), name=f"supervisor of {id}", daemon=True).start()
        return int(pid), parent.stdin


def adopted(pid: int) -> None:
    """Wait for a process that became our child when its parent ended, as all do for the first process of a container:
    it would stay as a zombie."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def id_of(request_id: str) -> str:
    """The id of the job of a request: the same one in every server, so that the folder's rename decides a race."""
    return f"job_{hashlib.sha256(request_id.encode(errors='surrogatepass')).hexdigest()[:32]}"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> "Ids":
    """The options by which two specs mean other work. Where they are done is no part of it: a workspace may move."""
    if one.get("command") != other["command"]:
        return ["the command"]
    here, there = one.get("options"), other["options"]
    if not isinstance(here, dict):  # damaged
        return ["options"]
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0


def python(module: str, before: str = "") -> "Ids":
    """The words that run `main()` of a module of ours, whatever lies in the current folder (-P): it may hold a json.py.

    The path is not handed on in PYTHONPATH, where it would also reach the programs that a command starts.
    """
    code = f"{before}import sys; sys.path.insert(0, {str(ROOT)!r}); from {module} import main; main()"
    return [sys.executable, "-P", "-X", "faulthandler", "-c", code]


def elsewhere(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without relative places in PYTHONPATH, which would mean the folder that the job works in, and
    without the mark of a job that starts another one."""
    places = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(path)]
    others = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", JOB)}
    return {**others, "PYTHONPATH": os.pathsep.join(places)} if places else others
