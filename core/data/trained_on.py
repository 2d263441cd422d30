"""Which prompts a run was trained on, and which rows it held out: two files in its folder.

trained_on.txt    16 hex digits a line, sorted: a hash of each prompt that was trained on
held_out.jsonl    the rows of the held-out samples: {"messages": [...]}, with the answer where there is one
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from ..errors import UsageError

TRAINED_ON, HELD_OUT = "trained_on.txt", "held_out.jsonl"
DIGITS = 16
HASH = re.compile(f"[0-9a-f]{{{DIGITS}}}")


def content_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """16 hex digits of what a prompt asks: roles and texts, however they are spaced.

    messages: up to where the answer begins. Neither a system prompt nor the answer counts: the same question under
    another system prompt is no new question.
    """
    return content_hashes(messages, [len(messages)])[0]


def content_hashes(messages: Sequence[Mapping[str, Any]], ends: Sequence[int]) -> list[str]:
    """`content_hash` of messages[:end] for each of the ends, which rise; every message is read once."""
    # The SHA-256 of the JSON [[role, [word, ...]], ...], which grows by what comes before its last bracket.
    grown, comma, done = hashlib.sha256(b"["), b"", 0
    found: list[str] = []
    for end in ends:
        for message in messages[done:end]:
            if message["role"] not in ("system", "developer"):
                grown.update(comma + orjson.dumps([message["role"], _text(message.get("content")).split()]))
                comma = b","
        done = end
        whole = grown.copy()
        whole.update(b"]")
        found.append(whole.hexdigest()[:DIGITS])
    return found


def trained_on_text(prompts: Iterable[Sequence[Mapping[str, Any]]]) -> bytes:
    """The contents of trained_on.txt."""
    return "".join(f"{each}\n" for each in sorted(set(map(content_hash, prompts)))).encode()


def read_trained_on(run: Path) -> frozenset[str] | None:
    """The hashes of the prompts that the run in this folder was trained on; None where it does not say.

    Raises UsageError for a file that holds anything else.
    """
    path = run / TRAINED_ON
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    for number, line in enumerate(lines, 1):
        if line and not HASH.fullmatch(line):
            raise UsageError(
                f"{path}:{number} is no hash of a prompt, so what the run was trained on is not known. "
                "The run that wrote the file writes it anew with --resume once it is removed."
            )
    return frozenset(filter(None, lines))


def _text(content: Any) -> str:
    """A message's text; of one that is more than that, such as an image, whatever stands there."""
    if isinstance(content, list):
        return "".join(str(part["text"] if isinstance(part, dict) and "text" in part else part) for part in content)
    return "" if content is None else str(content)
