"""Programs of others that some commands use, and servers of the user's own that answer at their usual addresses."""

import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from ..commands.doctor import Found
from ..data.text import one_line
from ..teachers.providers import PROVIDERS, Provider
from .installed import short

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OWN = {name: each for name, each in PROVIDERS.items() if not each.hosted}
"""Servers that one runs oneself, at their usual addresses."""
DOCKER_S, ANSWER_S = 3.0, 1.0
MOST_BYTES = 1 << 20


def programs() -> list[Found]:
    """A browser, Node and Docker: some rollouts work with them."""
    browser = _browser()
    npx = shutil.which("npx")
    docker, fix = _docker()
    return [
        Found(
            group="Programs",
            name="chromium",
            found=browser or "missing (for rollouts with --browser)",
            fix=None if browser else "apt install chromium, or python -m playwright install chromium",
        ),
        Found(
            group="Programs",
            name="node",
            found=short(Path(npx)) if npx else "missing: no npx (for MCP servers that npx starts)",
            fix=None if npx else "install Node.js: https://nodejs.org",
        ),
        Found(group="Programs", name="docker", found=docker, fix=fix),
    ]


def servers(own: Mapping[str, Provider] = OWN) -> list[Found]:
    """Model servers on this machine, with the models that they name."""
    with ThreadPoolExecutor(max_workers=len(own)) as pool:
        answers = pool.map(_models, own.values())
    found = [
        Found(group="Servers", name=name, found=f"{provider.url}: {said}")
        for (name, provider), said in zip(own.items(), answers, strict=True)
        if said is not None
    ]
    if not found:
        places = ", ".join(f"{name} {urlsplit(each.url).port}" for name, each in own.items())
        found.append(Found(group="Servers", name="none", found=f"nothing answers at the usual ports ({places})"))
    return found


def _browser() -> str | None:
    """Chromium on the PATH, or Playwright's own."""
    on_path = next((place for place in map(shutil.which, BROWSERS) if place), None)
    if on_path:
        return short(Path(on_path))
    usual = "~/Library/Caches/ms-playwright" if sys.platform == "darwin" else "~/.cache/ms-playwright"
    folder = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or usual).expanduser()
    own = sorted(folder.glob("chromium-*")) if folder.is_dir() else []
    return f"Playwright's {own[-1].name}" if own else None


def _docker() -> tuple[str, str | None]:
    """What is to be said of it, and what to do where it cannot be used."""
    program = shutil.which("docker")
    if program is None:
        return "missing (for rollouts in containers)", "install Docker: https://docs.docker.com/engine/install"
    try:
        done = subprocess.run(
            [program, "version", "--format", "{{.Server.Version}}"],
            capture_output=True, stdin=subprocess.DEVNULL, encoding="utf-8", errors="replace", timeout=DOCKER_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "the program is here, its engine does not answer", "start the Docker engine"
    if done.returncode or not done.stdout.strip():
        why = one_line(done.stderr, 120) or "no answer"
        return f"the program is here, its engine is not ready: {why}", "start the Docker engine"
    return f"engine {one_line(done.stdout, 40)}", None


def _models(provider: Provider) -> str | None:
    """The models that a server names; None where there is no such server. No key is sent: nobody asked for that."""
    parts = urlsplit(provider.url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=ANSWER_S)
    try:
        connection.request("GET", f"{parts.path}/models")
        answer = connection.getresponse()
        if answer.status in (401, 403):
            return f"wants a key ({provider.key})"
        content = orjson.loads(answer.read(MOST_BYTES)) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, orjson.JSONDecodeError):
        return None
    finally:
        connection.close()
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        return None
    names = [one_line(row["id"], 60) for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "no model is loaded"
