"""Node's @playwright/mcp with the Chromium of this machine, for tests: installed once into the user's cache."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "0.0.83"


def program() -> Path:
    """The server's start script; npm installs it when it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill" / "playwright-mcp"
    package = cache / "node_modules" / "@playwright" / "mcp" / "package.json"
    if not package.exists() or json.loads(package.read_text("utf-8"))["version"] != VERSION:
        cache.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(cache)]
        subprocess.run([*npm, f"@playwright/mcp@{VERSION}"], check=True, capture_output=True)
    return cache / "node_modules" / ".bin" / "playwright-mcp"


def chromium() -> str:
    """An installed Chromium or Chrome."""
    found = next(
        (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), ""
    )
    assert found, "no Chromium on PATH: apt-get install chromium"
    return found


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def playwright_mcp() -> Iterator[str]:
    """The server on a free port; yields "localhost:PORT", as --mcp-url takes it."""
    port = free_port()
    output = tempfile.mkdtemp()
    options = ["--executable-path", chromium(), "--no-sandbox", "--headless", "--isolated"]
    process = subprocess.Popen(
        [program(), *options, "--host", "127.0.0.1", "--port", str(port), "--output-dir", output],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"localhost:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
        shutil.rmtree(output, ignore_errors=True)
