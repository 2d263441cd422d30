"""The coding assistants themselves, by npm, pinned, in the user's cache (1.4 GB). They run in a home of their own, and
nobody logs in."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bundle.bundle import base
from tests.support.mcp_tools import CACHE, NODE, _node_package, _once  # pyright: ignore[reportPrivateUsage]

PACKAGES = {
    "@anthropic-ai/claude-code": "2.1.330",
    "@openai/codex": "0.169.0",
    "@google/gemini-cli": "0.61.0",
    "@github/copilot": "1.0.102",
    "opencode-ai": "1.18.33",
    "skills": "1.7.4",
}
SCRIPTS = {
    "claude": "@anthropic-ai/claude-code/cli-wrapper.cjs",
    "codex": "@openai/codex/bin/codex.js",
    "gemini": "@google/gemini-cli/bundle/gemini.js",
    "copilot": "@github/copilot/npm-loader.js",
    "skills": "skills/bin/cli.mjs",
}
QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "COPILOT_AUTO_UPDATE": "false",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "DISABLE_TELEMETRY": "1",
}
KEY = "sk-or-v1-0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Client:
    """One assistant. home: its own, empty at first.   project: the user's folder, in which it runs."""

    command: list[str]
    home: Path
    project: Path
    env: dict[str, str]

    def __call__(self, *words: str, **env: str) -> str:
        """What it says on stdout and stderr, without colours and cursors. AssertionError where it fails."""
        done = subprocess.run(
            [*self.command, *words],
            cwd=self.project,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout.decode("utf-8", "replace"))
        assert done.returncode == 0, f"{' '.join(words)}: {said}"
        return said


@contextmanager
def client(name: str) -> Iterator[Client]:
    """An assistant that was never started before. Its home is outside the temporary folder, which Codex minds."""
    modules = installed()
    if name == "opencode":
        machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        command = [str(modules / f"opencode-{sys.platform}-{machine}" / "bin" / "opencode")]
    else:
        command = [str(modules / _node_package() / "bin" / "node"), str(modules / SCRIPTS[name])]
    with TemporaryDirectory(prefix=f"{name}-", dir=CACHE, ignore_cleanup_errors=True) as folder:
        home, project = Path(folder) / "home", Path(folder) / "my project"
        home.mkdir()
        project.mkdir()
        yield Client(command, home, project, base(project, home, OPENROUTER_API_KEY=KEY, TERM="xterm", **QUIET))


def installed() -> Path:
    """The folder node_modules with all of them. RuntimeError, with npm's words, where they cannot be had."""
    home = CACHE / "clients"
    wanted = {**PACKAGES, _node_package(): NODE}

    def there(package: str, version: str) -> bool:
        about = home / "node_modules" / package / "package.json"
        return about.exists() and json.loads(about.read_text("utf-8"))["version"] == version

    with _once(home):
        if not all(there(*package) for package in wanted.items()):
            home.mkdir(parents=True, exist_ok=True)
            npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(home)]
            packages = [f"{package}@{version}" for package, version in wanted.items()]
            try:
                subprocess.run([*npm, *packages], check=True, capture_output=True, env=os.environ)
            except FileNotFoundError:
                raise RuntimeError("no npm here, which fetches the assistants. Install Node.js.") from None
            except subprocess.CalledProcessError as error:
                raise RuntimeError(f"npm could not fetch the assistants: {error.stderr.decode()}") from None
    return home / "node_modules"
