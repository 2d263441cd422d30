"""The score cache: bytes for a token of the top 64, and the time to find a rollout and make tensors of it.

    python -m tests.bench.bench_score_cache

Scores of SmolLM2-135M-Instruct (V = 49,152) on rollouts of 256 tokens of this repository's prose and code; then the
same ones with ids spread over a vocabulary of 152,000. A lookup is `get` and `decode_scores` of one rollout among
ROLLOUTS. Beside it, in turns, what one would write without this module: the same SQLite table with raw float32
log-probabilities and int32 ids, and np.frombuffer. Cold is a lookup in a new process that finds none of the file in
the system's memory (as far as the system lets go of it); its very first one is told apart.

Times are medians of wall seconds. Also: what `put` and a key of 2,000 token ids take, and how much the settled
scores change the loss against the fresh ones.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.commands.teacher import TeacherOptions
from core.distillation.losses import top_k_tail
from core.teachers.score_cache import ScoreCache, cache_key, decode_scores, encode_scores, settled
from core.teachers.scorer import ScoreRequest, TeacherScores, open_scorer

from .harness import ROOT, finish, load

TOKENS, TOP_K, ROLLOUTS = 256, 64, 200
WIDE = 152_000


def real_scores(rollouts: int) -> list[TeacherScores]:
    scorer = open_scorer(TeacherOptions.model_validate({"model": "smollm2", "backend": "hf"}), top_k=TOP_K)
    scorer.prepare(lambda note: None)
    files = ("README.md", "core/data/corpus.txt", "core/teachers/scorer.py")
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    ids = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
    found: list[TeacherScores] = []
    for start in np.linspace(0, len(ids) - TOKENS - 33, rollouts).astype(int).tolist():
        request = ScoreRequest(ids[start : start + 32], ids[start + 32 : start + 32 + TOKENS])
        (scores,) = scorer.score([request])
        found.append(TeacherScores("top_k", request.completion_ids, scores.picked_logprobs, *scores.top(TOP_K)))
    scorer.close()
    return found


def top(scores: TeacherScores) -> tuple[torch.Tensor, torch.Tensor]:
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    return scores.top_ids, scores.top_logprobs


def spread(scores: TeacherScores, places: torch.Tensor) -> TeacherScores:
    ids, logprobs = top(scores)
    return TeacherScores("top_k", scores.completion_ids, scores.picked, places[ids], logprobs)


def bytes_a_token(scores: list[TeacherScores]) -> float:
    return round(sum(len(encode_scores(one)) for one in scores) / sum(one.tokens for one in scores), 1)


def change_of_loss(scores: list[TeacherScores], beta: float) -> float:
    """Largest change of the mean loss of a rollout, in nats, for a student of random logits."""
    worst = 0.0
    for number, one in enumerate(scores):
        student = torch.randn(one.tokens, 49_152, generator=torch.Generator().manual_seed(number))
        before, after = (top_k_tail(student, *top(side), None, beta).total for side in (one, settled(one)))
        worst = max(worst, abs(float(after - before)) / one.tokens)
    return worst


class Bare:
    """The table without anything else."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)")

    def put(self, key: bytes, scores: TeacherScores) -> None:
        ids, logprobs = top(scores)
        value = logprobs.numpy().tobytes() + ids.to(torch.int32).numpy().tobytes()
        self.connection.execute("INSERT INTO entries VALUES (?, ?)", (key, value))

    def get(self, key: bytes) -> tuple[Any, Any]:
        (value,) = self.connection.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        half = TOKENS * TOP_K
        logprobs = np.frombuffer(value, np.float32, half).reshape(TOKENS, TOP_K)
        return logprobs, np.frombuffer(value, np.int32, half, half * 4).reshape(TOKENS, TOP_K)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def milliseconds(values: list[float]) -> float:
    return round(1e3 * statistics.median(values), 4)


def drop_from_memory(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_lookups(path: Path) -> list[float]:
    """Of rollouts that lie apart in the file."""
    keys = [cache_key(number) for number in range(0, ROLLOUTS, 20)]
    with ScoreCache(path) as cache:
        return [seconds(lambda key=key: decode_scores(cache.get(key) or b"", range(TOKENS))) for key in keys]


def cold(path: Path) -> list[float]:
    """In a process of its own."""
    drop_from_memory(path)
    command = [sys.executable, "-m", "tests.bench.bench_score_cache", "--cold", str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scored", type=int, default=12, help="rollouts that the model scores")
    parser.add_argument("--cold", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.cold:
        print(json.dumps(cold_lookups(arguments.cold)))
        return
    scores = real_scores(arguments.scored)
    places = torch.randperm(WIDE, generator=torch.Generator().manual_seed(0))
    wide = [spread(one, places) for one in scores]
    sizes = {"smollm2": bytes_a_token(scores), "vocabulary of 152k": bytes_a_token(wide)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.sqlite"
        cache, bare = ScoreCache(path), Bare(Path(folder) / "bare.sqlite")
        puts: list[float] = []
        for number in range(ROLLOUTS):
            one, key = wide[number % len(wide)], cache_key(number)
            puts.append(seconds(lambda key=key, one=one: cache.put(key, encode_scores(one), tokens=TOKENS)))
            bare.put(key, one)
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(arguments.rounds):
            for number in range(ROLLOUTS):
                key = cache_key(number)
                ours.append(seconds(lambda key=key: decode_scores(cache.get(key) or b"", range(TOKENS))))
                theirs.append(seconds(lambda key=key: bare.get(key)))
        cache.close()
        size = cache.size_bytes
        bare.connection.close()
        colds = [cold(path) for _ in range(arguments.rounds)]
    ids = np.random.default_rng(0).integers(0, WIDE, 2000).tolist()
    found = milliseconds(ours)
    finish(
        {
            "tokens": TOKENS,
            "top_k": TOP_K,
            "rollouts": ROLLOUTS,
            "bytes_a_token": sizes,
            "bytes_a_token_raw": TOP_K * 8,
            "file_bytes_a_token": round(size / ROLLOUTS / TOKENS, 1),
            "lookup_ms": found,
            "lookup_ms_cold": milliseconds([value for values in colds for value in values[1:]]),
            "lookup_ms_cold_first": milliseconds([values[0] for values in colds]),
            "lookup_ms_bare": milliseconds(theirs),
            "ratio_to_bare": round(found / milliseconds(theirs), 2),
            "encode_and_put_ms": milliseconds(puts),
            "key_of_2000_ids_ms": milliseconds([seconds(lambda: cache_key(ids)) for _ in range(200)]),
            "change_of_loss_nats": {str(beta): change_of_loss(scores, beta) for beta in (0.0, 0.5, 1.0)},
            "load": load(),
            "cores": os.cpu_count(),
            "criteria": {
                "at most 300 bytes a token": max(sizes.values()) <= 300,
                "at most 300 bytes a token in the file": size / ROLLOUTS / TOKENS <= 300,
                "a lookup below 1 ms": found < 1,
            },
        }
    )


if __name__ == "__main__":
    main()
