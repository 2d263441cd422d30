"""Servers that say on stderr where they listen, as processes of their own."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (str(ROOT / "mcp_server"), "--http", "--port", "0")
CONFORMANCE = ("-m", "tests.mcp_server.conformance_app")


@dataclass
class Served:
    """url: http://127.0.0.1:PORT/mcp.   log: the file of its stderr."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")


@contextmanager
def started(*words: str, folder: Path = ROOT, home: Path | None = None, **environment: str) -> Iterator[Served]:
    """`python WORDS` in a folder, once it says where it listens; killed in the end. Fails when it ends before."""
    given = {"PATH": os.environ["PATH"], "HOME": str(home or os.environ["HOME"]), "OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "stderr"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=folder, env=given, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr
            )
        try:
            end = time.monotonic() + 60
            while not (found := re.search(r"listening on (\S+)\s", said := log.read_text("utf-8", "replace"))):
                assert process.poll() is None, said
                assert time.monotonic() < end, f"it does not say where it listens: {said}"
                time.sleep(0.05)
            yield Served(found[1], log, process)
        finally:
            process.kill()
            process.wait(20)


@contextmanager
def served(*words: str, folder: Path = ROOT, home: Path | None = None, **environment: str) -> Iterator[Served]:
    """The same to the end: SIGTERM, upon which it must leave with exit code 0. Fails when it ended by itself."""
    with started(*words, folder=folder, home=home, **environment) as server:
        yield server
        assert server.process.poll() is None, f"it ended by itself: {server.said}"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0, server.said
