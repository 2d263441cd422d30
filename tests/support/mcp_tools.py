"""Others' tools that judge an MCP server: the official conformance suite and the Inspector (both want a newer Node than
most machines have, so npm brings that too) and mcp-fuzzer. Installed once, pinned, into the user's cache."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NODE = "22.23.3"
NPM = {"@modelcontextprotocol/conformance": "0.2.0-alpha.12", "@modelcontextprotocol/inspector": "2.12.0"}
FUZZER = "0.7.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill"


def conformance() -> list[str]:
    """The command of the conformance suite."""
    return [*_node(), str(_modules() / "@modelcontextprotocol/conformance/dist/index.js")]


def inspector() -> list[str]:
    """The command of the Inspector."""
    return [*_node(), str(_modules() / "@modelcontextprotocol/inspector/clients/launcher/build/index.js")]


def fuzzer() -> list[str]:
    """The command of mcp-fuzzer, in an environment of its own: it wants other versions than we do."""
    home = CACHE / f"mcp-fuzzer-{FUZZER}"
    with _once(home):
        if not (home / "bin" / "mcp-fuzzer").exists():
            venv.create(home, with_pip=True, clear=True)
            pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, f"mcp-fuzzer=={FUZZER}"], check=True)
    return [str(home / "bin" / "mcp-fuzzer")]


def _node_package() -> str:
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    bundled = "node-bin" if (sys.platform, machine) == ("darwin", "arm64") else "node"
    return f"{bundled}-{sys.platform}-{machine}"


def _node() -> list[str]:
    return [str(_modules() / _node_package() / "bin" / "node")]


def _modules() -> Path:
    """The folder node_modules with everything in it; npm installs what is not there."""
    home = CACHE / "mcp-tools"
    wanted = {**NPM, _node_package(): NODE}

    def there(package: str, version: str) -> bool:
        about = home / "node_modules" / package / "package.json"
        return about.exists() and json.loads(about.read_text("utf-8"))["version"] == version

    with _once(home):
        if not all(there(*package) for package in wanted.items()):
            home.mkdir(parents=True, exist_ok=True)
            npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(home)]
            packages = [f"{package}@{version}" for package, version in wanted.items()]
            subprocess.run([*npm, *packages], check=True, capture_output=True)
    return home / "node_modules"


@contextmanager
def _once(home: Path) -> Iterator[None]:
    """One process installs; the others wait for it."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{home}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
