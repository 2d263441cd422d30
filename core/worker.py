"""The process in which a job's command runs, exactly as its script would; started by the job's supervisor."""

import io
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from .cli import BUG, check_dependencies, perform
from .errors import DistillError, ExitCode
from .jobs import files
from .jobs.job import PROGRESS, RESULT, SPEC
from .jobs.processes import ASKING, JOB, end_marked, signal_descendants

GRACE_S = 30.0
"""For the command to save what it has, when the supervisor was killed."""
LEFT_BEHIND_S = 2.0
"""For what it has started to end by itself then."""


def main() -> NoReturn:
    """Arguments: the job's folder, a file descriptor that ends when the supervisor does, and others to hold."""
    folder, supervisor, *handles = Path(sys.argv[1]), *map(int, sys.argv[2:])
    for each in (supervisor, *handles):  # what the command starts must not hold a device, or say that the job lives
        os.set_inheritable(each, False)
    if not os.read(supervisor, 1):  # it died before it could note us down
        sys.exit(ExitCode.STOPPED)
    alone = threading.Event()
    threading.Thread(target=end_without, args=(supervisor, alone), name="supervisor", daemon=True).start()
    code, at_once = work(folder)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # a full disk; Python would try again, and make another exit code of it
        at_once = True
    if alone.is_set():
        end_all()
    if at_once:  # a model may still be computing in a thread that cannot be stopped
        os._exit(code)
    sys.exit(code)


def leave(number: int, frame: object) -> NoReturn:
    """While the command does not listen yet."""
    raise KeyboardInterrupt


def end_without(supervisor: int, alone: threading.Event) -> None:
    """Wait until the supervisor is dead, which it never is before us in good order. Then nobody could cancel this job
    or tidy up after it: end as after SIGTERM, and take all processes along that we started."""
    while os.read(supervisor, 1):
        pass
    alone.set()
    say("the supervisor of this job was killed, so the job ends")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    end_all()


def end_all() -> NoReturn:
    """This process and those that it started, wherever they are; but for the keepers of leashes, which ignore SIGTERM
    and have containers to remove."""
    signal_descendants(signal.SIGTERM)
    end_marked(os.environ[JOB], LEFT_BEHIND_S)
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("killed")


def work(folder: Path) -> tuple[int, bool]:
    """(exit code, whether to leave at once). The command's last word goes into the job's folder."""
    word: dict[str, Any] = {"exit_code": ExitCode.STOPPED, "result": None, "summary": None, "error": None}
    at_once = False
    try:
        for number in ASKING:
            signal.signal(number, leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        redact_output()
        result, at_once = run(folder)
        word |= {"exit_code": result.exit_code, "result": result.model_dump(mode="json"), "summary": result.summary()}
    except DistillError as error:
        word |= {"exit_code": error.exit_code, "error": str(error)}
    except KeyboardInterrupt:
        word |= {"exit_code": ExitCode.INTERRUPTED, "error": "it was ended before there was a result"}
        at_once = True
    except Exception as error:
        say(traceback.format_exc())
        word |= {"crashed": True, "error": f"{type(error).__name__}: {error}\n{BUG}"}
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)  # too late: everything is done but this
    word = without_secrets(word)
    say(word["summary"] or f"error: {word['error']}")
    try:
        files.insist(files.write, folder / RESULT, word)
    except OSError as error:
        word = {"exit_code": ExitCode.STOPPED, "error": f"the result could not be written: {error.strerror}"}
        try:
            files.insist(files.write_reserved, folder / RESULT, word)
        except OSError:  # the folder was deleted; an exit code is all that can be said
            pass
    return int(word["exit_code"]), at_once


def redact_output() -> None:
    """What is printed from here on comes into the log line by line, without secrets."""
    from .data.secrets import RedactingStream

    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    sys.stdout, sys.stderr = RedactingStream(sys.stdout), RedactingStream(sys.stderr)


def run(folder: Path) -> Any:
    """(result, whether the user asked twice to stop). Raises whatever the command does."""
    check_dependencies()
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # libraries' bars in a log are noise
    from .commands import load
    from .commands.resolve import validated
    from .data.progress import open_progress

    spec = files.read(folder / SPEC)
    if spec is None:
        raise FileNotFoundError(f"{SPEC} of this job was deleted or damaged")
    model = load(spec["command"])
    command = validated(model, spec["options"], spec["origins"])
    origins = {name: spec["origins"].get(name, "default") for name in model.model_fields}
    progress = open_progress("lines", folder / PROGRESS, sys.stderr)
    progress.notes_are_events = False
    return perform(command, origins, progress, out=print, defaults=False)


def say(text: str) -> None:
    """Into the log, which may be on a full disk."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def without_secrets(value: Any) -> Any:
    """A JSON value whose texts are redacted."""
    from .data.secrets import redactor

    redacted = redactor()

    def walked(value: Any) -> Any:
        if isinstance(value, str):
            return redacted(value)
        if isinstance(value, list):
            return [walked(item) for item in value]
        if isinstance(value, dict):
            return {key: walked(item) for key, item in value.items()}
        return value

    return walked(value)
