"""A bundle with the real launcher, bootstrap.py and installer.py that needs one tiny package, so that making its
environment takes pip a second; and the index from which pip gets that package, as slowly as a test wishes."""

import base64
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "skills/off-policy/scripts/doctor.py"
PYPROJECT = """\
[project]
dependencies = [
    "distill-test-tiny>=1,<{below}", # one module
]

[project.optional-dependencies]
mcp = ["distill-test-mcp>=1,<2"]
data = ["distill-test-data>=1,<2"]
dev = []

[tool.nothing]
"""
HELLO = """\
import os, sys, importlib.metadata as m
sys.stdout.write(m.version("distill-test-tiny") + " " + repr(sys.argv[1:]) + " " + sys.stdin.read())
sys.stdout.flush()
sys.exit(7)
"""


def wheel(folder: Path, name: str, version: str) -> None:
    """A wheel with one module and nothing else."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""])
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def small_bundle(
    folder: Path, *, below: int = 2, constraint: str = "distill-test-tiny==1.0\ndistill-test-data==1.0"
) -> Path:
    """The bundle; needs the tiny package in a version below `below`."""
    for name in ("bootstrap.py", "installer.py", "__init__.py"):
        (folder / "core").mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / "core" / name, folder / "core" / name)
    (folder / "pyproject.toml").write_text(PYPROJECT.format(below=below), encoding="utf-8")
    (folder / "constraints.txt").write_text(constraint + "\n", encoding="utf-8")
    (folder / "converter.txt").write_text("", encoding="utf-8")
    (folder / "scripts").mkdir(exist_ok=True)
    (folder / "scripts/hello.py").write_text(HELLO, encoding="utf-8")
    (folder / "scripts/doctor.py").write_text("print('doctor')\n", encoding="utf-8")
    launchers = folder / "skills/off-policy/scripts"
    launchers.mkdir(parents=True, exist_ok=True)
    for name in ("hello.py", "doctor.py"):
        shutil.copy2(LAUNCHER, launchers / name)
    shutil.copy2(ROOT / "skills/off-policy/SKILL.md", launchers.parent)
    return folder


class Index:
    """A page with links to wheels. gate: downloads wait until it is set.   asked: names of the wheels that were."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[str] = []
        self.url = ""


@contextmanager
def index(folder: Path) -> Iterator[Index]:
    """Serves the wheels of a folder to pip."""
    folder.mkdir(parents=True)
    for name in ("tiny", "mcp", "data"):
        wheel(folder, f"distill-test-{name}", "1.0")
    wheel(folder, "distill-test-tiny", "1.5")
    wheel(folder, "distill-test-data", "1.5")
    served = Index(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            if name:
                served.asked.append(name)
                served.gate.wait(60)
                body, kind = (folder / name).read_bytes(), "application/zip"
            else:
                links = "".join(f'<a href="{each.name}">{each.name}</a>\n' for each in sorted(folder.iterdir()))
                body, kind = f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:
                pass  # pip was killed

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield served
    finally:
        served.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Place:
    """A user's machine: an empty home, a folder for data, a PATH; and pip's index."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.project = folder / "the user's own folder"
        self.project.mkdir(parents=True)
        (folder / "home").mkdir()
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(folder / "home"),
            "DISTILL_DATA": str(self.data),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": url,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
        }

    def run(
        self, *line: str | Path, send: str = "", environment: Mapping[str, str | None] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program in the user's folder. environment: changes; None removes a variable."""
        return subprocess.run(
            list(map(str, line)),
            cwd=self.project,
            env=self.with_changes(environment or {}),
            input=send,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )

    def begin(self, *line: str | Path) -> "subprocess.Popen[str]":
        """The same, without waiting."""
        return subprocess.Popen(
            list(map(str, line)),
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def with_changes(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        merged = {**self.environment, **changes}
        return {name: value for name, value in merged.items() if value is not None}


def python_that(folder: Path, customize: str = "") -> Path:
    """A Python without packages, in a folder of its own. customize: what it does at its start."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    if customize:
        (site / "sitecustomize.py").write_text(customize, encoding="utf-8")
    return folder / "bin/python3"


def until(found: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something to be true. Raises AssertionError."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below one -> (size, time of the last change in ns)."""
    found = {path: path.stat() for path in sorted(folder.rglob("*"))}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}
