"""Credentials: read from the environment or `.env`, never from a field, and never shown."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from ..errors import MissingKey


@cache
def dotenv(folder: Path | None = None) -> Mapping[str, str | None]:
    """The keys of `.env` in `folder` (default: the current one); quotes and `export` are understood, nothing is
    exported into the process."""
    from dotenv import dotenv_values

    path = (folder or Path.cwd()) / ".env"
    return dotenv_values(path, interpolate=False) if path.is_file() else {}


def credential(name: str) -> str | None:
    """A key from the environment, else from `.env`; None when neither has it."""
    value = os.environ.get(name) or dotenv().get(name)
    return value.strip() if value and value.strip() else None


def require_credential(name: str, why: str) -> str:
    """A key that must be there. Raises MissingKey, which says where to put it."""
    value = credential(name)
    if value is None:
        raise MissingKey(
            f"{name} is not set; {why}. Export it, or put the line {name}=... into the file .env in "
            f"{Path.cwd()} (see .env.example)."
        )
    return value


def redacted(text: str, *secrets: str | None) -> str:
    """The text without the secrets: providers quote keys in their error messages."""
    for secret in secrets:
        if secret and len(secret) >= 4:
            text = text.replace(secret, "***")
    return text
