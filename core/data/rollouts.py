"""Rollout files of every layout: which there are, and what is in one.

Ours and the newer ones of `rnow` are objects with a `conversation`: flat files, `rollout_N/sample_M.json`, and files of
rollouts that are still running or were interrupted. Older ones hold tool calls as text and have no `completed` and no
`success`. Every key but `conversation` may be missing, and nothing is trusted to have the right type.
"""

import json
import math
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from ..errors import UsageError
from .conversation import NotARollout, normalised
from .text import path_text, without_surrogates

__all__ = [
    "NotARollout",
    "Rollout",
    "natural",
    "normalised",
    "read_rollout",
    "rollout_names",
    "rollout_paths",
]

MOST_BYTES = 64 * 2**20
"""Larger files are refused: 64 MiB of text is more than ten million tokens, which no model's context holds, and reading
it would take ten times as much memory."""


HASH = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout file. record: all its keys but the conversation.   conversation: as it stands in the file.

    repairs: what had to be mended to read it at all ("lone_surrogates").   size: of the file, in bytes.
    """

    path: Path
    record: dict[str, Any]
    conversation: list[Any]
    repairs: tuple[str, ...] = ()
    size: int = 0

    @property
    def id(self) -> str:
        """Its id, else the name of its file."""
        found = self.record.get("id")
        return found if isinstance(found, str) and found else path_text(Path(self.path.stem))

    @property
    def completed(self) -> "bool | Literal['error'] | None":
        """True: it ran to its end.   False: running or interrupted.   None: the file does not say."""
        found = self.record.get("completed")
        return found if found is None or isinstance(found, bool) else "error"

    @property
    def success(self) -> bool | None:
        """None: the file does not say."""
        found = self.record.get("success")
        return found if isinstance(found, bool) else None

    @property
    def rewards(self) -> dict[str, Any]:
        """By name: a number, or "error" or "timeout"."""
        return self._object("rewards")

    @property
    def reward(self) -> float | None:
        """The total; 0 when any reward failed to be computed, None when nothing was checked."""
        for value in self.rewards.values():
            if isinstance(value, str):
                return 0.0
        return _number(self.record.get("total_reward"))

    @property
    def truncated(self) -> bool:
        """Whether something was cut off by a limit: of context, turns or tokens."""
        return self.record.get("truncated") is True or self.provenance.get("ended") == "length"

    @property
    def turns(self) -> int:
        """Turns of the teacher, counted where the file does not say."""
        found = _number(self.record.get("turns"))
        if found is not None:
            return int(found)
        return sum(isinstance(message, dict) and message.get("role") == "assistant" for message in self.conversation)

    @property
    def error(self) -> str | None:
        """What ended it before its time, in words."""
        found = self.record.get("error")
        return found if isinstance(found, str) and found else None

    @property
    def failure(self) -> str | None:
        """Why it does not count as a success, as one word; None when it does. Truncation is a matter of its own.

        Where neither `completed` nor `success` is there, a reward above 0 decides; without one a success is assumed.
        """
        if self.completed == "error" or self.error:
            return "error"
        if self.completed is False:
            return "interrupted"
        for value in self.rewards.values():
            if isinstance(value, str):
                return "reward_timeout" if value == "timeout" else "reward_error"
        if self.success is False:
            return "not_a_success"
        if self.reward is not None and self.reward <= 0:
            return "no_reward"
        return None

    @property
    def metadata(self) -> dict[str, Any]:
        """The prompt row's."""
        return self._object("metadata")

    @property
    def provenance(self) -> dict[str, Any]:
        """What run_rollouts wrote about its making; empty for rnow's files."""
        return self._object("provenance")

    @property
    def key(self) -> str | None:
        """What identifies the piece of work (prompt, teacher, sampling, sample)."""
        return _text(self.provenance.get("key"))

    @property
    def prompt_hash(self) -> str | None:
        """32 hex digits of the prompt's messages, where the file says."""
        found = self.provenance.get("prompt_hash")
        return found if isinstance(found, str) and HASH.fullmatch(found) else None

    @property
    def teacher(self) -> str | None:
        """The model that answered, where the file says so."""
        return _text(self.provenance.get("teacher"))

    @property
    def tools(self) -> list[dict[str, Any]]:
        """Schemas of the tools that the teacher saw, where the file has them."""
        found = self.record.get("tools")
        return [tool for tool in found if isinstance(tool, dict)] if isinstance(found, list) else []

    @property
    def shortened(self) -> int | None:
        """Tool results that were shortened to fit into the context, where the file says."""
        found = _number(self.provenance.get("shortened_tool_results"))
        return None if found is None else int(found)

    @property
    def tool_errors(self) -> list[str]:
        found = self.record.get("tool_errors")
        return [str(error) for error in found] if isinstance(found, list) else []

    @property
    def total_tokens(self) -> int | None:
        return self._tokens("totalTokens")

    @property
    def prompt_tokens(self) -> int | None:
        return self._tokens("promptTokens")

    @property
    def completion_tokens(self) -> int | None:
        return self._tokens("completion")

    def _object(self, key: str) -> dict[str, Any]:
        found = self.record.get(key)
        return found if isinstance(found, dict) else {}

    def _tokens(self, key: str) -> int | None:
        found = _number(self.record.get(key))
        return None if found is None else int(found)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


# ---- which files there are -----------------------------------------------------------------------------------------


def rollout_paths(folder: Path, on_error: Callable[[OSError], object] | None = None) -> list[Path]:
    """Every *.json below a folder, in natural order of path (sample_2 before sample_10); a file is itself.

    Hidden files and folders are left out. A symbolic link is followed, but no folder and no file is listed twice, so
    loops end. on_error: told of folders that cannot be listed. Raises UsageError when there is no such place.
    """
    return [Path(path) for path in rollout_names(folder, on_error)]


def rollout_names(folder: Path, on_error: Callable[[OSError], object] | None = None) -> list[str]:
    """`rollout_paths` as strings, which take a third of the memory."""
    if folder.is_file():
        return [os.fspath(folder)]
    if not folder.is_dir():
        what = "is neither a folder nor a file" if os.path.lexists(folder) else "does not exist"
        raise UsageError(f"{folder} {what}. Name the folder that the rollouts were written to.")
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    # What is there itself is listed before what links lead to, so that a link to a neighbour adds nothing.
    waiting, linked, linked_files = [os.fspath(folder)], list[str](), list[str]()
    while waiting or linked:
        if not waiting:
            linked.sort(key=natural)
            waiting.append(linked.pop(0))
        place = waiting.pop()
        try:
            if not _first_seen(place, seen):
                continue
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        (linked if entry.is_symlink() else waiting).append(entry.path)
                    elif entry.name.endswith(".json") and entry.is_file():  # a pipe would be waited for, for ever
                        (linked_files if entry.is_symlink() else found).append(entry.path)
        except OSError as error:
            if place == os.fspath(folder):
                raise UsageError(f"{folder} cannot be read: {error.strerror}.") from None
            if on_error:
                on_error(error)
    if linked_files:
        seen_files = {(about.st_dev, about.st_ino) for about in map(os.stat, found)}
        found += [path for path in sorted(linked_files, key=natural) if _first_seen(path, seen_files)]
    found.sort(key=natural)
    return found


def _first_seen(path: str, seen: set[tuple[int, int]]) -> bool:
    about = os.stat(path)
    identity = about.st_dev, about.st_ino
    if identity in seen:
        return False
    seen.add(identity)
    return True


DIGITS = re.compile("0*([0-9]+)")


def natural(path: str | Path) -> tuple[str, str]:
    """Sorts paths part by part, and the numbers in them by value: sample_2 before sample_10."""
    text = str(path)
    # A number's length before it sorts the shorter one first; "\0" sorts a folder before its longer neighbours.
    return DIGITS.sub(lambda match: f"{len(match[1]):03}{match[1]}", text.replace(os.sep, "\0")), text


# ---- what is in one ------------------------------------------------------------------------------------------------


def read_rollout(path: Path) -> Rollout:
    """Read a file. Raises NotARollout, whose reason is one of: unreadable, too_large, empty, not_utf8, nan, not_json
    (truncated), not_a_rollout (no list `conversation`), empty_conversation."""
    try:
        data = _bytes(path)
    except OSError as error:
        raise NotARollout("unreadable", error.strerror or str(error)) from None
    repairs: tuple[str, ...] = ()
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        record, repairs = _awkward(data, error)
    if not isinstance(record, dict):
        raise NotARollout("not_a_rollout", f"the file holds a JSON {_kind(record)}, not an object")
    conversation = record.pop("conversation", None)
    if not isinstance(conversation, list):
        keys = ", ".join(map(str, list(record)[:6])) or "none"
        raise NotARollout("not_a_rollout", f"no list `conversation` among its keys ({keys})")
    if not conversation:
        raise NotARollout("empty_conversation", "its conversation has no message")
    return Rollout(path, record, conversation, repairs, len(data))


def _bytes(path: Path) -> bytes:
    """All of a file, in as few system calls as it takes. Raises OSError and NotARollout."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise NotARollout("unreadable", "not a regular file")
        size = about.st_size
        if size > MOST_BYTES:
            raise NotARollout("too_large", f"{size / 2**20:.0f} MiB, and {MOST_BYTES // 2**20} are allowed")
        data = os.read(handle, size)
        while len(data) < size and (more := os.read(handle, size - len(data))):
            data += more
        return data
    finally:
        os.close(handle)


def _awkward(data: bytes, error: orjson.JSONDecodeError) -> tuple[Any, tuple[str, ...]]:
    """What orjson refuses and can be read all the same: a BOM, and halves of characters, which a tool leaves that cuts
    text by UTF-16 units. Raises NotARollout for everything else, saying what it is."""
    if not data.strip(b" \t\r\n\0"):
        raise NotARollout("empty", "the file is empty") from None

    def refuse(word: str) -> Any:
        raise NotARollout("nan", f"it holds {word}, which is not JSON: the program that wrote it had no number there")

    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=refuse)
        sound = without_surrogates(value)
        return sound, () if sound == value else ("lone_surrogates",)
    except NotARollout:
        raise
    except UnicodeDecodeError as wrong:
        raise NotARollout("not_utf8", f"not UTF-8 at byte {wrong.start}") from None
    except RecursionError:
        raise NotARollout("not_json", "nested too deeply") from None
    except ValueError:
        at = f"line {error.lineno}, column {error.colno}"
        cut = error.pos >= len(data.decode("utf-8", "replace").rstrip()) - 1
        what = "it ends in the middle" if cut else str(error).split(":")[0]
        raise NotARollout("not_json", f"{what} ({at})") from None


def _kind(value: Any) -> str:
    return {list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
