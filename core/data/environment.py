"""Credentials: read from the environment or `.env`, never from a field, and never shown."""

import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from ..errors import InputError, MissingKey, UsageError


def dotenv() -> Mapping[str, str | None]:
    """The keys of `.env` in the current folder; quotes and `export` are understood, nothing is exported into the
    process. Raises InputError for a file that cannot be read."""
    return dotenv_of(Path.cwd())


def dotenv_of(folder: Path) -> Mapping[str, str | None]:
    """The same for any folder. Read again when the file has changed: a server may see keys come while it runs."""
    path = folder / ".env"
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            return {}
        return _read(path, (about.st_ino, about.st_mtime_ns, about.st_size))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UnicodeDecodeError:
        raise InputError(
            path, None, "is not UTF-8. Save it as UTF-8 (a key has plain letters and digits only)."
        ) from None
    except OSError as error:
        raise InputError(path, None, f"cannot be read: {error.strerror}.") from None


@lru_cache(maxsize=16)
def _read(path: Path, version: tuple[int, int, int]) -> Mapping[str, str | None]:
    """version: what tells the file from what it was before."""
    from dotenv import dotenv_values

    return dotenv_values(path, interpolate=False)


def credential(name: str) -> str | None:
    """A key from the environment, else from `.env`; None when neither has it.

    Raises UsageError for a value that no HTTP header can carry (a cut-off "...", curly quotes, two lines).
    """
    value = (os.environ.get(name) or dotenv().get(name) or "").strip()
    for position, character in enumerate(value, 1):
        if not "!" <= character <= "~":
            raise UsageError(
                f"{name} is not a key: its character {position} of {len(value)} is a blank or no plain letter. "
                "Copy the key again, without quotes."
            )
    return value or None


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
