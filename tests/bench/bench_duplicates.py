"""Near duplicates among 100,000 rows: seconds, memory a row, what is found and what rightly, against datasketch.

    python -m tests.bench.bench_duplicates [--rows 100000] [--threshold 0.8]

Rows of 60 to 200 words: the corpus's English and words of Zipf's frequencies. One in twenty is an earlier row again,
with so many words changed that the exact Jaccard similarity of the two lies anywhere from 0.5 to 1. In turns, each
in a process of its own, one row after the other as it comes:

    ours             core.quality.near_duplicates, find_and_add
    datasketch       MinHash with as many hashes of the same pairs of words, MinHashLSH with the same threshold: query,
                     what it gives held against the threshold by MinHash.jaccard, insert
    datasketch_128   the same with its default number of hashes
    ours_long        rows of 800 words, a tenth as many: for information

Seconds are CPU seconds of the search alone, of one thread; memory is what the process grew by at its largest, after its
first rows. Recall: of the rows that are as similar as the threshold, those that matched. Precision: of those that
matched, the ones whose exact similarity reaches the threshold. Prints one JSON report, and leaves with 0 when its
criteria hold.
"""

import argparse
import itertools
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from core.data.corpus import built_in

from .harness import ROOT, finish, load, measure, peak_bytes, succeeded

THREADS = ("OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", "MKL_NUM_THREADS=1")
PLANTED = 20
"""One row in so many is an earlier one again."""
FIRST = 2000
"""Rows before memory is counted: the benchmark itself keeps a thousand."""
MOST_SECONDS, MOST_BYTES, LEAST_RECALL = 60, 1024, 0.95
VOCABULARY = 30_000
Search = Callable[[str], tuple[int, float] | None]


# ---- rows ----------------------------------------------------------------------------------------------------------


def vocabulary(chance: random.Random) -> list[str]:
    """The corpus's English words by their frequency, then made-up ones."""
    english = " ".join(passage.text for passage in built_in() if passage.kind == "English").lower()
    own = [word for word in dict.fromkeys(english.split()) if word.isalpha()]
    own.sort(key=english.split().count, reverse=True)
    syllables = [a + b for a in "bcdfglmnprstv" for b in ("a", "e", "i", "o", "u", "ar", "en", "is")]
    found = dict.fromkeys(own)
    while len(found) < VOCABULARY:
        found["".join(chance.choices(syllables, k=chance.randint(2, 4)))] = None
    return list(found)


class Rows:
    """Texts, the same for the same seed, and for the planted ones their source and exact similarity."""

    def __init__(self, count: int, shortest: int, longest: int) -> None:
        self.count, self.lengths = count, (shortest, longest)
        self.planted: dict[int, tuple[int, float]] = {}

    def __iter__(self) -> Iterator[str]:
        chance = random.Random(11)
        every = vocabulary(chance)
        weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(every))))
        pool: list[tuple[int, list[str]]] = []
        for number in range(self.count):
            if number % PLANTED == PLANTED - 1:
                source, original = pool.pop(chance.randrange(len(pool)))
                words = changed(original, chance.uniform(0.5, 1), every, chance)
                self.planted[number] = source, jaccard(pairs(original), pairs(words))
            else:
                words = chance.choices(every, cum_weights=weights, k=chance.randint(*self.lengths))
                if len(pool) < 1000:
                    pool.append((number, words))
                else:
                    pool[chance.randrange(1000)] = number, words
            yield sentences(words, chance)


def changed(words: list[str], similarity: float, every: list[str], chance: random.Random) -> list[str]:
    """The words with one after the other exchanged until they are just at least that similar."""
    found, before = list(words), pairs(words)
    for place in chance.sample(range(len(words)), len(words)):
        was, found[place] = found[place], chance.choice(every)
        if jaccard(before, pairs(found)) < similarity:
            found[place] = was
            break
    return found


def pairs(words: list[str]) -> set[tuple[str, str]]:
    return set(itertools.pairwise(["", *words, ""]))


def jaccard(one: set[tuple[str, str]], other: set[tuple[str, str]]) -> float:
    return len(one & other) / len(one | other)


def sentences(words: list[str], chance: random.Random) -> str:
    """Words with capitals, commas and points, other ones in a copy."""
    written: list[str] = []
    begins = True
    for word in words:
        end = chance.random()
        written.append((word.capitalize() if begins else word) + ("." if end < 0.08 else "," if end < 0.15 else ""))
        begins = end < 0.08
    return " ".join(written)


# ---- searches ------------------------------------------------------------------------------------------------------


def ours(threshold: float) -> Search:
    from core.quality.near_duplicates import NearDuplicates

    near = NearDuplicates(threshold)

    def search(text: str) -> tuple[int, float] | None:
        match = near.find_and_add(text)
        return match and (match.number, match.similarity)

    return search


def datasketch(hashes: int, threshold: float) -> Search:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=hashes)
    empty = MinHash(hashes)
    kept: list[MinHash] = []

    def search(text: str) -> tuple[int, float] | None:
        words = ["", *text.lower().replace(".", "").replace(",", "").split(), ""]
        signature = empty.copy()
        signature.update_batch([f"{one} {other}".encode() for one, other in itertools.pairwise(words)])
        numbers: list[Any] = index.query(signature)
        near = [(signature.jaccard(kept[number]), -number) for number in numbers]
        index.insert(len(kept), signature, check_duplication=False)
        kept.append(signature)
        similarity, number = max(near, default=(0.0, 0))
        return (-number, similarity) if similarity >= threshold else None

    return search


SEARCHES: dict[str, Callable[[float], Search]] = {
    "ours": ours,
    "datasketch": partial(datasketch, 512),
    "datasketch_128": partial(datasketch, 128),
    "ours_long": ours,
}


def run(name: str, rows: Rows, threshold: float) -> dict[str, Any]:
    """One search over all rows, in this process."""
    search = SEARCHES[name](threshold)
    search("the first text, so that everything is there that does not grow")
    matches: dict[int, tuple[int, float]] = {}
    seconds = 0.0
    before = 0
    for number, text in enumerate(rows):
        if number == FIRST:
            before = peak_bytes(resource.getrusage(resource.RUSAGE_SELF))
        start = time.process_time()
        match = search(text)
        seconds += time.process_time() - start
        if match:
            matches[number] = match[0] - 1, match[1]  # after the first text
    grown = peak_bytes(resource.getrusage(resource.RUSAGE_SELF)) - before
    return {
        "cpu_s": round(seconds, 1),
        "us_a_row": round(seconds / rows.count * 1e6),
        "bytes_a_row": round(grown / (rows.count - FIRST)),
        **judged(rows, matches, threshold),
    }


def judged(rows: Rows, matches: dict[int, tuple[int, float]], threshold: float) -> dict[str, Any]:
    """Recall and precision, and the share found of each twentieth of similarity."""

    def right(number: int, least: float) -> bool:
        source, similarity = rows.planted.get(number, (-1, 0.0))
        return source == matches[number][0] and similarity >= least

    alike = [number for number, (_, similarity) in rows.planted.items() if similarity >= threshold]
    by_similarity: dict[str, list[bool]] = {}
    for number, (_, similarity) in sorted(rows.planted.items(), key=lambda planted: planted[1][1]):
        by_similarity.setdefault(f"{int(similarity * 20) / 20:.2f}", []).append(number in matches)
    known = [number for number in matches if number in rows.planted]
    return {
        "planted": len(rows.planted),
        "as_similar_as_the_threshold": len(alike),
        "matches": len(matches),
        "recall": round(sum(number in matches for number in alike) / len(alike), 4),
        "precision": round(sum(right(number, threshold) for number in matches) / len(matches), 4),
        "precision_within_0.05": round(sum(right(number, threshold - 0.05) for number in matches) / len(matches), 4),
        "mean_error": round(sum(abs(matches[n][1] - rows.planted[n][1]) for n in known) / len(known), 4),
        "found_by_similarity": {name: round(sum(found) / len(found), 3) for name, found in by_similarity.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--only", choices=SEARCHES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        long = options.only == "ours_long"
        rows = Rows(options.rows // 10, 800, 800) if long else Rows(options.rows, 60, 200)
        print(json.dumps(run(options.only, rows, options.threshold)))
        return
    report: dict[str, Any] = {"rows": options.rows, "threshold": options.threshold, "load": [load()]}
    with tempfile.TemporaryDirectory(prefix="duplicates-bench-") as folder:
        for name in SEARCHES:
            command = ["env", *THREADS, sys.executable, "-m", "tests.bench.bench_duplicates", "--only", name]
            sizes = ["--rows", str(options.rows), "--threshold", str(options.threshold)]
            used = succeeded(measure([*command, *sizes], Path(folder), PYTHONPATH=str(ROOT)))
            report[name] = json.loads(used.output.splitlines()[-1])
            report["load"].append(load())
    mine, theirs = report["ours"], report["datasketch"]
    report["ratio_of_seconds"] = round(mine["cpu_s"] / theirs["cpu_s"], 2)
    report["ratio_of_memory"] = round(mine["bytes_a_row"] / theirs["bytes_a_row"], 2)
    report["criteria"] = {
        f"< {MOST_SECONDS} s": mine["cpu_s"] < MOST_SECONDS,
        f"at most {MOST_BYTES} bytes a row": mine["bytes_a_row"] <= MOST_BYTES,
        f"recall of at least {LEAST_RECALL}": mine["recall"] >= LEAST_RECALL,
        "less time than datasketch": mine["cpu_s"] < theirs["cpu_s"],
    }
    finish(report)


if __name__ == "__main__":
    main()
