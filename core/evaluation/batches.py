"""How many texts go through a model at once, from their lengths and from what memory there is: never from a clock, so
that the same machine always chooses the same.
"""

import os
from pathlib import Path
from typing import Literal

Kind = Literal["score", "generate"]
"""score: log-likelihoods of given texts.   generate: answers are written, token by token."""

MOST: dict[Kind, int] = {"score": 16, "generate": 32}
"""Texts. SmolLM2-135M on one core: scored texts of 16 to 86 tokens take 0.64 of the time of one by one in batches of
16 and 0.71 in batches of 32; answers of 16 to 20 tokens take 0.24 to 0.32 in batches of 32."""
TOKENS_AT_ONCE = 2048
"""Of texts to be scored. Beyond that a CPU gains nothing: its caches are full, and padding costs more."""
COPIES = 3
"""Of the logits: the model's, their log-softmax, and what the output head holds on its way."""
SHARE = 1 / 8
"""Of the machine's memory that the logits of a batch may take."""


def batch_size(kind: Kind, longest: int, vocabulary: int, memory: int | None = None) -> int:
    """Texts per forward pass on a CPU, 1 or more.

    longest: tokens of the longest text, with room for its answer.   vocabulary: entries of the output head.
    memory: bytes; None: those of this machine.

    lm-eval holds the logits of all positions of a batch in float32 when it scores: B * T * V * 4 bytes, several times.
    """
    longest = max(1, longest)
    positions = longest if kind == "score" else 1
    fits = int((memory or memory_bytes()) * SHARE) // (positions * vocabulary * 4 * COPIES)
    wanted = min(MOST[kind], max(1, TOKENS_AT_ONCE // longest)) if kind == "score" else MOST[kind]
    return max(1, min(wanted, fits))


def memory_bytes() -> int:
    """Of this machine, or of the container where that is less."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        found = 8 * 2**30
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit ("max")
            pass
    return found
