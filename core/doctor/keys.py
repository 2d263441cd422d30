"""Which keys are there, by name and place alone, and whether `.env` would be published with the user's project."""

import os
import subprocess
from pathlib import Path

from ..commands.doctor import Found
from ..data.environment import credential, dotenv
from ..errors import UsageError
from ..teachers.providers import PROVIDERS

NONE = "none: teachers that run here need none; for others put a line OPENROUTER_API_KEY=... into .env"
NAMED = ".env or the environment names one: --teacher tests it, with a few tiny requests, which an API is paid for"
TEACHERS = ("TEACHER_BACKEND", "TEACHER_MODEL_ID", "TEACHER_GGUF_PATH", "TEACHER_GGUF", "TEACHER_BASE_URL")
"""Variables by which a teacher is named."""
IGNORE = r"printf '\n.env\n' >> .gitignore"
"""Begins with a line break: the file's last line may have none."""
GIT_S = 3.0


def keys() -> list[Found]:
    """Every key that is set. A value is never shown."""
    names = dict.fromkeys([*(provider.key for provider in PROVIDERS.values()), "HF_TOKEN"])
    there: list[str] = []
    wrong: list[str] = []
    for name in names:
        try:
            if credential(name):
                there.append(f"{name} ({'environment' if os.environ.get(name) else '.env'})")
        except UsageError as error:
            if str(error) not in wrong:  # a .env that cannot be read is wrong for every key
                wrong.append(str(error))
    found = [Found(group="Keys", name="keys", found=", ".join(there) or NONE)]
    if not wrong and any(os.environ.get(name) or dotenv().get(name) for name in TEACHERS):
        found.append(Found(group="Keys", name="teacher", found=NAMED))
    return found + [Found(group="Keys", name="unusable", found=text, fix="mend that line of .env") for text in wrong]


def dotenv_is_private() -> list[Found]:
    """A warning where git would take up a `.env` of the current folder that holds something, or has done so."""
    try:
        if not any(dotenv().values()):
            return []
    except UsageError:
        return []
    if _git("rev-parse", "--is-inside-work-tree") != 0:
        return []
    if _git("ls-files", "--error-unmatch", ".env") == 0:
        return [
            Found(
                group="Keys",
                name=".env",
                found="is in git: whoever gets the repository gets the keys. Replace them, too",
                fix=f"git rm --cached .env && {IGNORE}",
            )
        ]
    if _git("check-ignore", "-q", ".env") == 1:
        return [
            Found(
                group="Keys",
                name=".env",
                found="is not ignored by git: the next commit may publish the keys",
                fix=IGNORE,
            )
        ]
    return []


def _git(*arguments: str) -> int | None:
    """The exit code; None where git is not there or does not answer. No program that a repository names is started."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments],
            cwd=Path.cwd(),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=GIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode
