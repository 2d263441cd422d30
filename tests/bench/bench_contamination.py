"""100,000 rows held against 10,000 items of evaluations: seconds, memory, and whether what was planted is found.

    python -m tests.bench.bench_contamination [--rows 100000] [--items 10000]

Rows of 60 to 200 words as in bench_duplicates; items of 4 to 120 words. One row in twenty holds something of an item:
all of it, a run of 13 words, one of 24 or 25 words with its middle word exchanged (no run of 13 is left), or, which
must not be found, 12 words of 40 or more. Beside it the plain way: a Python set of the items' 13-grams as text and a
loop over each row's, which knows neither short items nor exchanged words. CPU seconds of one thread, reading the items
included. Prints one JSON report, and leaves with 0 when its criteria hold.
"""

import argparse
import random
import resource
import time
from collections import Counter
from typing import Any

from core.quality.contamination import FEWEST, Items

from .bench_duplicates import Rows, vocabulary
from .harness import finish, load, peak_bytes

MOST_SECONDS = 30
NGRAM = 13
PLANTED = 20
KINDS = ("whole", "run of 13", "middle word exchanged", "run of 12")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=10_000)
    options = parser.parse_args()
    chance = random.Random(2)
    every = vocabulary(chance)
    lengths = [chance.randint(4, 120) for _ in range(options.items)]
    evaluation = [" ".join(chance.choices(every, k=length)) for length in lengths]
    report: dict[str, Any] = {"rows": options.rows, "items": options.items, "load": [load()]}

    before = peak_bytes(resource.getrusage(resource.RUSAGE_SELF))
    start = time.process_time()
    items = Items(NGRAM)
    for number, text in enumerate(evaluation):
        items.add("task", f"item {number}", text)
    items.find(evaluation[0])  # the first search sorts them
    adding = time.process_time() - start
    grown = peak_bytes(resource.getrusage(resource.RUSAGE_SELF)) - before
    runs = {run for text in evaluation for run in grams(text)}

    seconds = plain_seconds = 0.0
    planted: Counter[str] = Counter()
    found: Counter[str] = Counter()
    plain_found: Counter[str] = Counter()
    for number, text in enumerate(Rows(options.rows, 60, 200)):
        kind = "nothing"
        if number % PLANTED == 0:
            kind, part = stretch(KINDS[number // PLANTED % len(KINDS)], evaluation, chance)
            text = f"{text} qq {part} qq"  # a word that no item has
        planted[kind] += 1
        start = time.process_time()
        shared = items.find(text)
        middle = time.process_time()
        hit = not runs.isdisjoint(grams(text))
        plain_seconds += time.process_time() - middle
        seconds += middle - start
        found[kind] += shared is not None
        plain_found[kind] += hit
    shares = {kind: round(found[kind] / count, 4) for kind, count in planted.items()}
    total = round(adding + seconds, 1)
    finish(
        report
        | {
            "cpu_s": total,
            "us_a_row": round(seconds / options.rows * 1e6),
            "items_s": round(adding, 2),
            "items_mb": round(grown / 1e6, 1),
            "set_of_texts_cpu_s": round(plain_seconds, 1),
            "planted": dict(planted),
            "found": shares,
            "set_of_texts_found": {kind: round(plain_found[kind] / count, 4) for kind, count in planted.items()},
            "load_after": load(),
            "criteria": {
                f"< {MOST_SECONDS} s": total < MOST_SECONDS,
                "every whole item and every run of 13": shares["whole"] == shares["run of 13"] == 1,
                "every item with its middle word exchanged": shares["middle word exchanged"] == 1,
                "nothing in the other rows": shares["nothing"] == shares["run of 12"] == 0,
            },
        }
    )


def grams(text: str) -> set[str]:
    """The 13-grams of a text, as text."""
    words = text.lower().replace(".", "").replace(",", "").split()
    return {" ".join(words[at : at + NGRAM]) for at in range(len(words) - NGRAM + 1)}


def stretch(kind: str, evaluation: list[str], chance: random.Random) -> tuple[str, str]:
    """(kind, text) of what is planted of an item that is long enough for it."""
    limits = {"whole": (FEWEST, 120), "middle word exchanged": (24, 25), "run of 13": (14, 120)}
    least, most = limits.get(kind, (40, 120))  # 12 words of 40 have 5 of its 33 8-grams
    words: list[str] = []
    while not least <= len(words) <= most:
        words = chance.choice(evaluation).split()
    if kind == "whole":
        return kind, " ".join(words)
    if kind == "middle word exchanged":
        words[12] = "exchanged"
        return kind, " ".join(words)
    length = 13 if kind == "run of 13" else 12
    at = chance.randrange(len(words) - length)
    return kind, " ".join(words[at : at + length])


if __name__ == "__main__":
    main()
