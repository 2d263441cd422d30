"""What tests run for real: the mock server, servers that misbehave, and the commands themselves."""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GENERATE = ROOT / "scripts" / "generate_teacher_data.py"
KEY = "sk-or-v1-0123456789abcdef0123456789abcdef"
"""A made-up key. It must never appear in what a command writes."""


class Mock:
    """The OpenAI-compatible server of tests/support/openai_mock_server.py, in a process of its own."""

    model = "mock/model"

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/support/openai_mock_server.py"), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()  # mock on 127.0.0.1:41283 pid 6688
        self.address = first.split()[2]
        self.base_url = f"http://{self.address}/v1"
        self._fresh = {k: v for k, v in self._post("_config", {}).items() if k not in ("log", "port", "max_seconds")}

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(f"http://{self.address}/{path}", json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def configure(self, **options: Any) -> None:
        self._post("_config", options)

    def reset(self) -> None:
        """As it was at the start."""
        self._post("_config", self._fresh)
        self._post("_reset", {})

    def forget(self) -> None:
        """Counters to zero; the options stay."""
        self._post("_reset", {})

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.address}/_stats", timeout=10) as answer:
            return json.load(answer)

    @property
    def requests(self) -> int:
        return self.stats()["requests"]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


@dataclass(frozen=True)
class Reply:
    """What a `small_server` answers."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Received:
    """What a `small_server` was sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class SmallServer:
    """url: "http://127.0.0.1:PORT/v1".   received: every request, in order."""

    url: str
    received: list[Received]

    @property
    def chats(self) -> list[Received]:
        return [request for request in self.received if request.method == "POST"]


@contextmanager
def small_server(answer: Callable[[Received], Reply]) -> Iterator[SmallServer]:
    """An HTTP server on this machine that answers whatever `answer` says."""
    received: list[Received] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Received(self.command, self.path, headers, body)
            received.append(request)
            reply = answer(request)
            self.send_response(reply.status)
            for name, value in {"content-type": "application/json", **(reply.headers or {})}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = handle_any

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield SmallServer(f"http://127.0.0.1:{server.server_address[1]}/v1", received)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chat_answer(text: str = "An answer.", **changes: Any) -> bytes:
    """The body of an ordinary answer; `changes` go into its message."""
    message = {"role": "assistant", "content": text, **changes}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "cost": 0.001}
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The object that --json printed."""
        return json.loads(self.stdout)


def environment(**more: str) -> dict[str, str]:
    """A clean environment: no keys, no proxies, no network for Hugging Face; omitted encodings are errors."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "HOME": "/nonexistent",
        "PYTHONWARNDEFAULTENCODING": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def start(
    folder: Path, *arguments: str, script: Path = GENERATE, preexec: Callable[[], None] | None = None, **env: str
) -> "subprocess.Popen[bytes]":
    """A command in a process (and process group) of its own, in `folder`."""
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=preexec,
    )


def ended(process: "subprocess.Popen[bytes]", timeout_s: float = 60) -> Outcome:
    """Wait for a started command."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"did not end within {timeout_s} s: {err.decode()}") from None
    return Outcome(process.returncode, out.decode(), err.decode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON Lines file; a line that does not parse fails the test."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


def questions(count: int, first: int = 0) -> list[dict[str, str]]:
    """Prompt rows whose identity the mock understands."""
    return [{"prompt": f"[id:q{number}] What is {number} + 1?"} for number in range(first, first + count)]
