"""`train_gold` with answers that do not depend on which prompts are answered together: for several processes.

A student's answer depends on its neighbours by float rounding, and a draw that falls on an edge may come out otherwise.
Here an answer is made of its seed alone. Run by `accelerate launch` and torchrun in the place of the script.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])


def replay() -> None:
    """Take the place of the student in training and validation."""
    from core.teachers.hf_model import Generated
    from core.training import sampling, validation

    def answer(student: Any, prompts: Sequence[Any], seeds: Sequence[int], options: Any, **_: Any) -> list[Generated]:
        found: list[Generated] = []
        for seed in seeds:
            draw = random.Random(seed)
            ended = draw.random() < 0.5
            tokens = [draw.randrange(3, student.width) for _ in range(draw.randrange(1, options.max_new_tokens))]
            found.append(Generated([*tokens, student.side.ends[0]] if ended else tokens, ended))
        return found

    sampling.answer = validation.answer = answer


if __name__ == "__main__":
    from core.cli import main

    replay()
    main("train_gold")
