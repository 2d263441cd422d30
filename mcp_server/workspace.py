"""The one folder that callers may read and write in, and how a file in it is opened without leaving it."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from core.data.text import one_line, path_text
from core.errors import InputError, UsageError

_ATTEMPTS = 5
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would be waited for, for ever
_REPLACED = (errno.ELOOP, errno.EMLINK, errno.ENOTDIR)  # what O_NOFOLLOW says of a link, by system
_RELATIVE = "Paths are relative to the workspace."
KEYS = re.compile(
    r".*\.(env|pem|key|p12|pfx|kdbx|keystore)|id_(rsa|dsa|ecdsa|ed25519)|(client_)?secrets?\.(json|ya?ml|toml)"
    r"|credentials(\.json)?",
    re.IGNORECASE,
)
"""Names of files that hold keys and nothing else, where they are not hidden."""
MOST_ENTRIES = 1_000_000
"""Of a folder with all below it that is searched for links: one to two seconds."""
UNUSED = {".git", ".venv", ".tox", ".nox", ".distill"}
"""Folders in which no command reads or writes, so that links in them lead nobody out."""


class Workspace:
    """A folder with everything below it, but for hidden files and folders (names that begin with a dot): there are
    keys (`.env`, `.netrc`), programs of others (`.git/hooks`, `.venv`), and our jobs, which have tools of their own.
    Nor does it have files whose names say that they hold keys (KEYS).

    Symbolic links count as what they lead to: those that stay inside are followed, those that lead out are refused.
    What the server itself opens stays inside also when folders are replaced by links in that very moment (`open`,
    `entries`). A job opens its files by path, after `inside` and `below` have looked at them: whoever can rename things
    in the workspace in between can lead it elsewhere, with the rights that this person has anyway.
    """

    def __init__(self, root: str | Path) -> None:
        """Raises UsageError for what is no folder, and for the whole machine."""
        given = Path(os.path.expanduser(root)).absolute()
        self.root = Path(os.path.realpath(given))
        if not self.root.is_dir():
            raise UsageError(f"the workspace {given} is no folder. Make it, or name another one with --workspace.")
        if self.root == Path(self.root.anchor):
            raise UsageError(f"the workspace {given} is the whole machine. Name a folder of yours with --workspace.")
        self._spellings = sorted({str(self.root), str(given)}, key=len, reverse=True)
        either = "|".join(map(re.escape, self._spellings))
        self._in_texts = re.compile(rf"(?<![\w.-])(?:{either})(?:{os.sep}|(?![\w-]|\.\w))")  # not /ws-2, not /mnt/ws

    def inside(self, text: str | Path, base: Path | None = None) -> Path:
        """The real path of what is there, or would be.

        base: the folder that relative paths begin in (default: the workspace).
        Raises UsageError for a path that leads out, is hidden, or is none.
        """
        shown = one_line(str(text), 200)
        if not str(text).strip():
            raise UsageError('a path is empty. Name a file or folder in the workspace; "." is the workspace itself.')
        if any(character < " " or character == "\x7f" for character in str(text)):
            raise UsageError(f'"{shown}" is no path: a character in it is no letter.')
        if str(text).startswith("~"):
            raise UsageError(f'"{shown}": ~ is not known here. {_RELATIVE}')
        try:
            path = Path(os.path.realpath((base or self.root) / text))
            below = path.relative_to(self.root).parts
            if os.path.realpath(path) != str(path):  # where links lead in a circle, realpath gives up half-way
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        except UnicodeEncodeError:
            raise UsageError(f'"{shown}" is no path: a character in it is half of one.') from None
        except ValueError:
            raise UsageError(f'"{shown}" is outside the workspace. {_RELATIVE}') from None
        except OSError as error:  # also a link that was exchanged while it was followed
            raise UsageError(f'"{shown}" cannot be followed: {error.strerror}. Try again.') from None
        hidden = next((part for part in below if part.startswith(".")), None)
        if hidden is not None:
            raise UsageError(
                f'"{shown}": {one_line(hidden, 80)} is hidden (its name begins with a dot), and hidden files and '
                "folders are not for tools. Name another file or folder."
            )
        if below and KEYS.fullmatch(below[-1]):
            raise UsageError(f'"{shown}" is a file for keys, which are not for tools. Name another file.')
        return path

    def open(self, text: str | Path) -> BinaryIO:
        """A regular file in the workspace, for reading. Raises UsageError as `inside` does, and InputError for what is
        no file or cannot be read."""
        handle = self._descend(text, _FILE)
        kind = os.fstat(handle).st_mode
        if not stat.S_ISREG(kind):
            os.close(handle)
            what = "a folder" if stat.S_ISDIR(kind) else "no regular file"
            raise InputError(one_line(str(text), 200), None, f"is {what}. Name a file.")
        return os.fdopen(handle, "rb")

    def entries(self, text: str | Path, most: int = 10_000) -> list[tuple[str, os.stat_result]]:
        """(name, what it is) of the regular files and folders in a folder, sorted by name; links, hidden ones and those
        for keys are left out.

        most: entries that are looked at. Raises UsageError as `open` does.
        """
        handle = self._descend(text, _FOLDER)
        try:
            found: list[tuple[str, os.stat_result]] = []
            with os.scandir(handle) as entries:
                for entry in islice(entries, most):
                    try:
                        about = entry.stat(follow_symlinks=False)
                    except OSError:  # removed a moment ago
                        continue
                    regular = stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)
                    if regular and not entry.name.startswith(".") and not KEYS.fullmatch(entry.name):
                        found.append((entry.name, about))
            return sorted(found, key=lambda item: item[0])
        finally:
            os.close(handle)

    def below(self, place: Path) -> Iterator[str]:
        """The files that work on a place can come upon, as real paths: the place itself, or what is below it where
        links lead to, too; and, not among the answers but looked at as well, its neighbours of the same name, for
        commands write beside their files (train.jsonl.failures.jsonl, .train.jsonl.new, report-2).

        place: as `inside` returns it. Raises UsageError for a link on the way that `inside` would refuse, and for more
        entries than can be looked at.
        """
        is_folder = place.is_dir()
        if place != self.root:
            ours = re.compile(rf"\.?{re.escape(place.name if is_folder else place.stem)}[.-]")
            for entry in _entries(place.parent):
                if entry.is_symlink() and ours.match(entry.name):
                    self._behind(entry)
        if not is_folder:
            yield str(place)
            return
        waiting, seen, looked = [str(place)], set[str](), 0
        while waiting:
            folder = waiting.pop()
            if folder in seen:
                continue
            seen.add(folder)
            for entry in _entries(folder):
                looked += 1
                if looked > MOST_ENTRIES:
                    much = f"{one_line(self.name(place), 200)} holds more than {MOST_ENTRIES:,} files and folders"
                    raise UsageError(f"{much}, which are not all looked at. Name a smaller folder.")
                linked = entry.is_symlink()
                path = str(self._behind(entry)) if linked else entry.path
                if os.path.isdir(path) if linked else entry.is_dir(follow_symlinks=False):
                    waiting += [] if entry.name in UNUSED else [path]
                else:
                    yield path

    def _behind(self, link: os.DirEntry[str]) -> Path:
        try:
            return self.inside(link.path)
        except UsageError:
            raise UsageError(
                f'"{one_line(self.name(link.path), 200)}" is a link to what is outside the workspace, hidden, or for '
                "keys. Take the link away, or put what it leads to in its place."
            ) from None

    def make_folder(self, place: Path) -> None:
        """A folder with those above it, of which none is a link by then. place: as `inside` returns it. Raises
        UsageError where it cannot be made."""
        handle = os.open(self.root, _FOLDER)
        try:
            for part in place.relative_to(self.root).parts:
                try:
                    os.mkdir(part, dir_fd=handle)
                except FileExistsError:
                    pass
                inner = os.open(part, _FOLDER, dir_fd=handle)
                os.close(handle)
                handle = inner
        except OSError as error:
            why = "a file or a link is there" if error.errno == errno.ENOTDIR else error.strerror
            raise UsageError(f"the folder {self.name(place)} cannot be made: {why}. Name another place.") from None
        finally:
            os.close(handle)

    def name(self, path: str | Path) -> str:
        """A path as answers show it: relative to the workspace; of what is elsewhere only the last part."""
        path = Path(os.path.abspath(self.root / path))
        for spelling in self._spellings:
            if path.is_relative_to(spelling):
                return path_text(path.relative_to(spelling))
        return path_text(Path("...") / path.name)

    def show(self, text: str) -> str:
        """A text without the place of the workspace on this machine, and with ~ for the user's home."""
        if os.sep not in text:  # most texts of an answer, of which there may be a thousand
            return text
        text = self._in_texts.sub(lambda found: "" if found[0].endswith(os.sep) else "the workspace", text)
        home = os.path.expanduser("~")
        return text.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else text

    def _descend(self, text: str | Path, flags: int) -> int:
        """A descriptor of what a path leads to, which nobody can make lie outside.

        `inside` resolves all links by name; then every step is taken from the folder before it and follows none, so
        that a link that appeared meanwhile is an error, and not a way out.
        """
        problem = ""
        for _ in range(_ATTEMPTS):
            below = self.inside(text).relative_to(self.root).parts
            try:
                handle = os.open(self.root, _FOLDER)
                for part in below[:-1]:
                    handle = _step(handle, part, _FOLDER)
                return _step(handle, below[-1] if below else ".", flags)
            except OSError as error:
                problem = _why_not(error)
                if error.errno not in _REPLACED:
                    break
        raise InputError(one_line(str(text), 200), None, problem)


def _step(folder: int, name: str, flags: int) -> int:
    """What is in an open folder, which is closed. Raises OSError, also for a link."""
    try:
        return os.open(name, flags, dir_fd=folder)
    finally:
        os.close(folder)


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder; nothing where there is none, or it may not be read: a job could not, either."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return


def _why_not(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "no such file or folder in the workspace. read_rows of a folder lists what is there."
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return "its links lead in a circle, or it is being replaced right now."
    if error.errno == errno.ENOTDIR:
        return "a file stands where its path needs a folder, or a file is named where a folder is needed."
    return f"cannot be read: {error.strerror}."
