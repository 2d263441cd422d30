"""The mock of `tests/support` that also writes questions: as JSON, of words that are drawn anew for each request.

    python -m tests.bench.asking_mock --port 0 --latency fixed:0.2        options as those of the mock

Its answers are of --tokens drawn English words, so that nothing about them repeats itself.
"""

import json
import random
from typing import Any

from core.data.corpus import built_in
from tests.support import openai_mock_server as mock

QUESTION = "What should {} {} know about {} {} {}, before {} {} {} and {} {}?"


def english() -> list[str]:
    """Words of the built-in corpus."""
    text = " ".join(passage.text for passage in built_in() if passage.kind == "English").lower()
    return sorted({word for word in text.split() if word.isalpha()})


WORDS = english()


class Asking(mock.Connection):  # pyright: ignore[reportUntypedBaseClass]
    """A connection of the mock that tells questions from answers by how they are asked for."""

    def content(self, req: dict[str, Any], rec: dict[str, Any], i: int) -> tuple[str, int]:
        """(what the model says, its tokens)."""
        chance = random.Random(f"{rec['id']}/{rec['seed']}/{rec['n']}/{i}")
        if req["messages"][-1]["content"].endswith("as JSON."):
            text = json.dumps({"question": QUESTION.format(*chance.choices(WORDS, k=10))})
            return text, len(text) // 4
        tokens = int(self.st.c["tokens"])
        return " ".join(chance.choices(WORDS, k=tokens)).capitalize() + ".", tokens


if __name__ == "__main__":
    mock.Connection = Asking  # what `serve` makes of every connection
    mock.main()
