"""Time of alignment and of the vocabulary map, on the tokenizers of Qwen 2 (152k entries) and Llama 3 (128k).

    python -m tests.bench.bench_alignment

Criteria: grouping a completion of 1,000 student tokens takes less than 2 ms (the teacher's tokenization of it is told
beside it), the map of two 150k vocabularies less than 2 s, and once built it is read from disk in less than 0.1 s.
CPU time of one thread, medians; the tables of bytes are built before.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

from core.distillation.alignment import align
from core.distillation.chat import ChatSide, encode_pair
from core.distillation.token_bytes import TokenBytes
from core.distillation.vocabulary import build, build_cached
from tests.support.tokenizers import LOGITS, real_tokenizer

from .harness import finish, load

TEXT = (
    "To solve 47 * 13 = 611, split 13 into 10 + 3: first 470, then 141; their sum is 611.\n\n"
    "```python\ndef area(radius: float) -> float:\n    return 3.14159265 * radius ** 2  # naïve\n```\n"
    "Grüße aus Köln, 東京 и Москва 🎉 — “that's all”, she said.\n"
)


def cpu_s(work: Callable[[], Any], times: int) -> float:
    """Median CPU seconds of one call."""
    found: list[float] = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


def main() -> None:
    names = ("qwen2", "llama3")
    tokenizers = [real_tokenizer(name) for name in names]
    table_s = cpu_s(lambda: TokenBytes(tokenizers[0]), 3)
    student, teacher = (ChatSide(tokenizer) for tokenizer in tokenizers)
    ids = [*student.token_bytes.encode((TEXT * 20).encode())[:999], student.end_of_turn]
    parts, student_ends = student.read(ids, True)
    _, teacher_ends = teacher.write(parts, True)
    asked = [{"role": "user", "content": "Solve it."}]
    figures = {
        "align_ms": cpu_s(lambda: align(student_ends, teacher_ends), 500) * 1e3,
        "read_ms": cpu_s(lambda: student.read(ids, True), 200) * 1e3,
        "teacher_tokenization_ms": cpu_s(lambda: teacher.write(parts, True), 100) * 1e3,
        "encode_pair_ms": cpu_s(lambda: encode_pair(student, teacher, asked, ids, True), 50) * 1e3,
        "table_of_152k_s": table_s,
    }
    sides = (student.token_bytes, teacher.token_bytes)
    widths = (LOGITS["qwen2"], LOGITS["llama3"])
    ends = (student.end_of_turn, teacher.end_of_turn)
    figures["map_152k_128k_s"] = cpu_s(lambda: build(*sides, *widths, ends), 3)
    other = TokenBytes(tokenizers[0])
    figures["map_152k_152k_s"] = cpu_s(lambda: build(sides[0], other, widths[0], widths[0]), 3)
    with tempfile.TemporaryDirectory() as folder:
        build_cached(*sides, *widths, ends, Path(folder))
        figures["cached_map_s"] = cpu_s(lambda: build_cached(*sides, *widths, ends, Path(folder)), 5)
    finish(
        {
            "student_tokens": len(ids),
            "teacher_tokens": int(teacher_ends.size),
            "groups": align(student_ends, teacher_ends).count,
            "load": load(),
            **{name: round(value, 4) for name, value in figures.items()},
            "criteria": {
                "ends and groups < 2 ms": figures["align_ms"] + figures["read_ms"] < 2,
                "map < 2 s": max(figures["map_152k_128k_s"], figures["map_152k_152k_s"]) < 2,
                "cached map < 0.1 s": figures["cached_map_s"] < 0.1,
            },
        }
    )


if __name__ == "__main__":
    main()
