"""What a teacher has said, kept in a file by the hash of what it was asked: a repeated or crashed run pays nothing
twice. And how scores become few bytes: the top 64 of a token in 200 to 280."""

import array
import hashlib
import json
import os
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..data.jsonlines import cannot_write
from ..errors import StoppedEarly, UsageError
from .scorer import Ability, TeacherScores

FORMAT = 1
"""Of the file and of the values in it."""
BUSY_S = 60.0
"""How long a process waits for another one's write, which takes milliseconds."""
FINE, COARSE = 2**30, 2**14
"""Steps per nat of a log-probability; a coarse one is 2^16 fine ones."""
PROBABLE = 4
"""Above minus that many nats, log-probabilities are kept in fine steps."""
JUMP = 0xFFFF
"""In place of a difference of that many coarse steps or more, which stands elsewhere."""
LARGEST = 1e-3
"""In nats. Rounding puts a log-probability above 0, but not above that."""
ABILITIES: tuple[Ability, ...] = ("sampled", "top_k")


# ---- the file ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CacheReport:
    """What a cache did for this process.

    hits, misses: keys that were asked for.   damaged: those of the misses that were there, and not as they were put.
    written: entries.   tokens: those of the entries whose tokens were told.
    bytes_per_token: of those entries; None when there are none.   size_bytes: of the file, whoever wrote it.
    """

    hits: int
    misses: int
    damaged: int
    written: int
    tokens: int
    bytes_per_token: float | None
    size_bytes: int

    @property
    def hit_rate(self) -> float | None:
        """None when nothing was asked."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None

    def __str__(self) -> str:
        rate = "" if self.hit_rate is None else f" ({self.hit_rate:.0%})"
        each = "" if self.bytes_per_token is None else f", {self.bytes_per_token:.0f} bytes a token"
        damaged = f"; {self.damaged:,} damaged entries were asked anew" if self.damaged else ""
        return (
            f"{self.hits:,} of {self.hits + self.misses:,} found{rate}, {self.written:,} written{each}; "
            f"{self.size_bytes / 1e6:,.1f} MB on disk{damaged}"
        )


class ScoreCache:
    """Values under keys in one SQLite file. Any number of threads and processes may use it at once.

    What `put` returned from survives a kill -9 of the process. A loss of power may cost the last entries, and never
    the file. Every value is checked when it is read: one that the disk has changed counts as not there.

    hits, misses, damaged, written, written_bytes: see `CacheReport`; of this process.
    """

    def __init__(self, path: Path) -> None:
        """Raises UsageError for a file that cannot be written, is no score cache, or has another version's format."""
        self.path = path
        self.hits = self.misses = self.damaged = 0
        self.written = self.written_bytes = 0
        self._tokens = self._token_bytes = 0
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(cannot_write(path, error)) from None
        with suppress(OSError):  # it is there, or SQLite says why it cannot be
            path.touch(0o600, exist_ok=False)  # a teacher's words are nobody else's; SQLite's log gets the same rights
        with self._explained(UsageError):
            self._connection = sqlite3.connect(path, BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(self._connection)
            except BaseException:
                self._connection.close()
                raise

    def get(self, key: bytes) -> bytes | None:
        """The value that was put. Raises StoppedEarly when the file cannot be read any more."""
        with self._lock, self._explained(StoppedEarly):
            row = self._connection.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
            value = None if row is None else _checked_value(key, row[0])
            if value is None:
                self.misses += 1
                self.damaged += row is not None
            else:
                self.hits += 1
            return value

    def put(self, key: bytes, value: bytes, *, tokens: int = 0) -> None:
        """Keep a value, in place of an older one. tokens: those of the completion that it scores, for the report.

        Raises StoppedEarly when it cannot be written; all that was put before is kept.
        """
        row = (key, _checksum(key, value) + value)
        with self._lock, self._explained(StoppedEarly):
            self._connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", row)
            self.written += 1
            self.written_bytes += len(value)
            self._tokens += tokens
            self._token_bytes += len(value) if tokens else 0

    @property
    def size_bytes(self) -> int:
        """Of the file and of what SQLite has not moved into it yet."""
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def report(self) -> CacheReport:
        """So far."""
        each = self._token_bytes / self._tokens if self._tokens else None
        return CacheReport(self.hits, self.misses, self.damaged, self.written, self._tokens, each, self.size_bytes)

    def close(self) -> None:
        """May be called again."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "ScoreCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Somebody else's file is left as it is."""
        connection.execute("BEGIN")  # one view of both, whoever is making the file just now
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        connection.execute("COMMIT")
        if (version, tables) not in ((0, []), (FORMAT, [("entries",)])):
            what = "is no score cache"
            if tables == [("entries",)]:
                what = f"has format {version}, and this version of distill knows format {FORMAT}"
            raise UsageError(f"{self.path} {what}. {_move_away(self.path)}")
        # A commit is one write to the log beside the file, and no wait for the disk.
        _set_log(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")  # fails where nothing can be written; a second process waits here
        connection.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")

    @contextmanager
    def _explained(self, kind: type[UsageError] | type[StoppedEarly]) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # used after it was closed
        except sqlite3.OperationalError as error:  # a full disk, no permission, a disk that fails
            raise kind(
                f"{self.path} cannot be used: {error}. What was put there before is kept. Free space or choose another "
                "place, then run the same command."
            ) from None
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter when it cannot even say what is wrong
            raise kind(f"{self.path} is damaged, or no score cache: {error}. {_move_away(self.path)}") from None


def default_path() -> Path:
    """$XDG_CACHE_HOME/distill/scores.sqlite, by default ~/.cache/distill/scores.sqlite."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill" / "scores.sqlite"


def cache_key(*parts: Any) -> bytes:
    """32 bytes that tell these parts, in their order, from all others.

    parts: values that JSON can hold, and bytes. The order of a dict's keys does not matter. Lists of token ids are
    fast where they are parts themselves. Raises TypeError for anything else.
    """
    digest = hashlib.sha256()
    for part in parts:
        kind, content = _canonical(part)
        digest.update(struct.pack("<cQ", kind, len(content)))
        digest.update(content)
    return digest.digest()


def encode_json(value: Any) -> bytes:
    """A value that JSON can hold, compressed."""
    return zlib.compress(orjson.dumps(value))


def decode_json(value: bytes) -> Any:
    """What `encode_json` was given. Tuples have become lists."""
    return orjson.loads(zlib.decompress(value))


def _canonical(part: Any) -> tuple[bytes, bytes]:
    """(kind, content)."""
    if isinstance(part, bytes):
        return b"b", part
    if isinstance(part, list | tuple):
        try:
            return b"i", array.array("i", part).tobytes()
        except (TypeError, OverflowError):  # not only ids
            pass
    return b"j", json.dumps(part, sort_keys=True).encode()


def _checksum(key: bytes, value: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(value, zlib.crc32(key)))


def _checked_value(key: bytes, stored: Any) -> bytes | None:
    """None: it is not what was put there. SQLite has no checksums of its own."""
    if not isinstance(stored, bytes) or stored[:4] != _checksum(key, stored[4:]):
        return None
    return stored[4:]


def _set_log(connection: sqlite3.Connection) -> None:
    """For this switch alone SQLite does not wait for other processes that open or close the file."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _move_away(path: Path) -> str:
    return f"Move it away and run the same command: mv {path} {path}.old"


# ---- scores as bytes --------------------------------------------------------------------------------------------
#
# Log-probabilities above -4 nats are kept to 2^-30: what the top k leave to all other tokens is 1 minus their sum, so
# the large ones must be right. All others are rounded to multiples of 2^-14, an error of 3.1e-5 at most. In a row,
# which is sorted, only the differences stand.


def encode_scores(scores: TeacherScores) -> bytes:
    """Scores with the ability "top_k" or "sampled", without the ids of the completion.

    Picked log-probabilities are kept exactly, ids too. The top k lose 3.1e-5 nats at most, and are sorted where they
    were not: what they leave to all other tokens changes by a twentieth of what float32 makes of it anyway
    (SmolLM2). All are cut at 0 and at LOG_ZERO. A negative id is padding.
    Raises ValueError for "full" scores (hidden states are no cheaper to keep than to compute), shapes that do not
    fit, NaN, and values that are no log-probabilities.
    """
    if scores.ability not in ABILITIES:
        raise ValueError(f'scores with the ability "{scores.ability}" cannot be kept: they hold hidden states')
    tokens = scores.tokens
    picked = _logprobs(_array(scores.picked_logprobs, np.float32))
    if picked.shape != (tokens,):
        raise ValueError(f"picked log-probabilities {picked.shape} do not fit {tokens} tokens")
    width, packed = 0, [_pack(picked)]
    if scores.ability == "top_k":
        ids, logprobs = _array(scores.top_ids, np.int32), _array(scores.top_logprobs, np.float32)
        if ids.ndim != 2 or ids.shape != logprobs.shape or len(ids) != tokens:
            raise ValueError(f"top ids {ids.shape} and log-probabilities {logprobs.shape} do not fit {tokens} tokens")
        width = ids.shape[1]
        packed += _pack_top(ids, logprobs)
    return struct.pack("<BII", ABILITIES.index(scores.ability), tokens, width) + b"".join(packed)


def decode_scores(value: bytes, completion_ids: Sequence[int]) -> TeacherScores:
    """The scores of these tokens, on the CPU; padding has id -1 and LOG_ZERO.

    Raises ValueError when the value holds the scores of another number of tokens, or none.
    """
    import torch

    try:
        kind, tokens, width = struct.unpack_from("<BII", value)
        if tokens != len(completion_ids):
            raise ValueError(f"{len(completion_ids)} tokens")
        offset = struct.calcsize("<BII")
        picked, offset = _unpack(value, offset, "<f4")
        if ABILITIES[kind] == "sampled":
            return TeacherScores("sampled", completion_ids, torch.from_numpy(picked))
        ids, logprobs = _unpack_top(value, offset, (tokens, width))
    except (ValueError, IndexError, struct.error, zlib.error) as error:
        raise ValueError(f"{len(value)} bytes are not the scores of this completion: {error}") from None
    return TeacherScores(
        "top_k", completion_ids, torch.from_numpy(picked), torch.from_numpy(ids), torch.from_numpy(logprobs)
    )


def settled(scores: TeacherScores) -> TeacherScores:
    """Scores as the cache gives them back. Used in place of fresh ones, so that a run that finds them computes the
    same bits as the run that asked for them. Settling twice changes nothing more."""
    return decode_scores(encode_scores(scores), scores.completion_ids)


def _pack_top(ids: NDArray[Any], logprobs: NDArray[Any]) -> list[bytes]:
    ids = np.maximum(ids, -1)
    logprobs = _logprobs(np.where(ids < 0, -np.inf, logprobs))
    order = np.argsort(np.where(ids < 0, np.inf, -logprobs), axis=1, kind="stable")
    ids, logprobs = np.take_along_axis(ids, order, 1), np.take_along_axis(logprobs, order, 1)
    fine = np.rint(logprobs.astype(np.float64) * -FINE).astype(np.int64)
    probable = fine < PROBABLE * FINE
    coarse = np.where(probable, fine, fine + (1 << 15)) >> 16
    steps = np.diff(coarse, axis=1, prepend=0)
    jumps = steps[steps >= JUMP].astype("<u4")
    return [
        _pack(ids.astype("<i4")),
        _pack(np.minimum(steps, JUMP).astype("<u2")),
        _pack(jumps),
        _pack((fine[probable] & 0xFFFF).astype("<u2")),
    ]


def _unpack_top(value: bytes, offset: int, shape: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    ids, offset = _unpack(value, offset, "<i4")
    small, offset = _unpack(value, offset, "<u2")
    jumps, offset = _unpack(value, offset, "<u4")
    rest, offset = _unpack(value, offset, "<u2")
    steps = small.astype(np.int32)
    steps[small == JUMP] = jumps
    coarse = steps.reshape(shape).cumsum(1, dtype=np.int32)
    # Integers change sign without making -0.0. Both products are exact in their formats for what float32 can hold.
    logprobs = (-coarse).astype(np.float32) * np.float32(1 / COARSE)
    probable = coarse < PROBABLE * COARSE
    logprobs[probable] = -((coarse[probable].astype(np.int64) << 16) | rest) * (1 / FINE)
    return ids.reshape(shape).astype(np.int64), logprobs


def _array(tensor: Any, dtype: Any) -> NDArray[Any]:
    if tensor is None:
        raise ValueError("the scores lack what their ability says they tell")
    return tensor.detach().cpu().numpy().astype(dtype)


def _logprobs(values: NDArray[Any]) -> NDArray[np.float32]:
    from ..distillation.losses import LOG_ZERO

    wrong = ~(values <= LARGEST)  # NaN, too
    if wrong.any():
        raise ValueError(f"{values[wrong][0]} is no log-probability")
    return np.clip(values, LOG_ZERO, 0.0).astype("<f4")


def _pack(values: NDArray[Any]) -> bytes:
    """Number of values, then for each of their bytes all first, all second ones and so on: length, content.

    Content is compressed where that saves a tenth. Runs and letter frequencies are all that there is to find.
    """
    packed = [struct.pack("<I", values.size)]
    for plane in np.ascontiguousarray(values).reshape(-1, 1).view(np.uint8).T:
        content = plane.tobytes()
        deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
        small = deflate.compress(content) + deflate.flush()
        content = small if len(small) <= 0.9 * len(content) else content
        packed += [struct.pack("<I", len(content)), content]
    return b"".join(packed)


def _unpack(value: bytes, offset: int, dtype: str) -> tuple[NDArray[Any], int]:
    """(values, offset of what follows)."""
    (size,) = struct.unpack_from("<I", value, offset)
    offset += 4
    values = np.empty(size, dtype)
    planes = values.view(np.uint8).reshape(size, values.itemsize)
    for number in range(values.itemsize):
        (length,) = struct.unpack_from("<I", value, offset)
        content = value[offset + 4 : offset + 4 + length]
        if length != size:
            content = zlib.decompress(content, -zlib.MAX_WBITS, size)
        planes[:, number] = np.frombuffer(content, np.uint8).reshape(size)
        offset += 4 + length
    return values, offset
