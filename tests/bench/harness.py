"""What the benchmarks share: the mock API as a process, a command with its CPU and peak memory, prompts, medians.

Everything talks to 127.0.0.1 only; the commands run in folders of their own and without anybody's API keys.
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "generate_teacher_data.py"
MOCK = ROOT / "tests" / "support" / "openai_mock_server.py"
MODEL = "mock/model"
QUESTION = "[id:{}] Explain item number {} in a few sentences for a student."
"""The mock finds a request again by its [id:...]."""


@dataclass
class Mock:
    """A running mock server. url: where it listens, without /v1."""

    url: str

    @property
    def base_url(self) -> str:
        return self.url + "/v1"

    def ask(self, path: str, data: bytes | None = None) -> dict[str, Any]:
        """The answer of a control endpoint: /_stats, /_reset, /_flush, /_config."""
        with urllib.request.urlopen(self.url + path, data, timeout=30) as response:
            return json.loads(response.read())

    def reset(self) -> None:
        """Start the counters anew."""
        self.ask("/_reset", b"")

    def stats(self) -> dict[str, Any]:
        return self.ask("/_stats")


@contextmanager
def mock_server(*options: str, max_seconds: int = 1800, server: Sequence[str] = (str(MOCK),)) -> Iterator[Mock]:
    """The mock on a free port. `options` as in its docstring.   server: what Python runs, another one made of it."""
    command = [sys.executable, *server, "--port", "0", "--max-seconds", str(max_seconds), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()  # "mock on 127.0.0.1:PORT pid N"
        yield Mock("http://" + first.split()[2])
    finally:
        process.terminate()
        process.wait()
        if process.stdout:
            process.stdout.close()


@dataclass(frozen=True)
class Used:
    """What a process took. rss: peak resident memory in bytes. read: bytes that it read, 0 where nobody counts them.

    The peak of a process is never below its parent's at its start (Linux), so a benchmark of memory stays small itself.
    """

    code: int
    wall_s: float
    cpu_s: float
    rss: int
    read: int
    output: str


def clean_environment() -> dict[str, str]:
    """This environment without API keys and proxies."""
    dropped = ("_API_KEY", "_PROXY", "_TOKEN")
    return {key: value for key, value in os.environ.items() if not key.upper().endswith(dropped)}


def measure(
    command: Sequence[str | Path], folder: Path, *, interrupt_after_s: float | None = None, **environment: str
) -> Used:
    """Run a command in `folder` to its end and measure it alone. After `interrupt_after_s` it gets one Ctrl-C."""
    with open(folder / "output.txt", "w+b") as output:
        start = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=clean_environment() | environment,
        )
        read, interrupted = 0, False
        try:
            while True:
                read = max(read, bytes_read(process.pid))
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if interrupt_after_s is not None and not interrupted and time.monotonic() - start > interrupt_after_s:
                    interrupted = True
                    process.send_signal(signal.SIGINT)
                time.sleep(0.02)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    return Used(process.returncode, wall_s, usage.ru_utime + usage.ru_stime, peak_bytes(usage), read, text)


def bytes_read(pid: int) -> int:
    """Bytes that a process has read so far, from anywhere."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").split()
        return int(lines[1])
    except (OSError, IndexError, ValueError):
        return 0


def peak_bytes(usage: resource.struct_rusage) -> int:
    """ru_maxrss is in KiB on Linux and in bytes on macOS."""
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024


def generate(prompts: Path, output: Path, base_url: str, *more: str) -> list[str]:
    """The command line of generate_teacher_data."""
    command = [sys.executable, str(SCRIPT), "--input", str(prompts), "--output", str(output)]
    return [*command, "--base-url", base_url, "--model", MODEL, *more]


def write_prompts(path: Path, count: int) -> Path:
    """A JSON Lines file of so many different prompts."""
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            file.write(json.dumps({"prompt": QUESTION.format(i, i)}) + "\n")
    return path


def succeeded(used: Used, *codes: int) -> Used:
    """The same, when the command ended as it should. Raises RuntimeError with the end of what it printed."""
    if used.code not in (codes or (0,)):
        raise RuntimeError(f"exit status {used.code}:\n{used.output[-2000:]}")
    return used


def load() -> float:
    """Load of the machine over the last minute: compare it with its cores."""
    return round(os.getloadavg()[0], 2)


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}


def finish(report: dict[str, Any]) -> None:
    """Print the report and leave with 0 when all of its criteria hold."""
    print(json.dumps(report, indent=1))
    sys.exit(0 if all(report["criteria"].values()) else 1)
