"""Conversion: bytes a second and memory, against plain `json.load` loops over the same files.

    python -m tests.bench.bench_convert [--megabytes 1000] [--repeat 3]

Writes that much of rollouts (a third of a percent of them unusable), and runs over them in turns: a loop that only
loads, a loop that loads and writes rows without a look at them, and the conversion; each as a process of its own with
all that its start costs. Memory is compared with that of a twentieth.
Prints one JSON report, and leaves with 0 when its criteria hold.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .harness import ROOT, Used, finish, load, measure, succeeded

SCRIPT = ROOT / "scripts" / "convert_rollouts.py"
WORDS = "Bridge", "Br\u00fccke"
LEAST_MB_PER_S, MOST_GROWTH_MB = 100, 20
LOOP = """
import json, os, sys
output = open(sys.argv[2], "w", encoding="utf-8") if len(sys.argv) > 2 else None
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                found = json.load(file)
        except ValueError:
            continue
        if output and found["success"]:
            row = {"messages": found["conversation"], "metadata": found["metadata"]}
            output.write(json.dumps(row, ensure_ascii=False) + "\\n")
"""
"""A plain loop over the files: `json.load` alone, or, with an output, the least that is a conversion."""


def rollout(number: int, chance: random.Random) -> dict[str, Any]:
    """A rollout of five turns with page snapshots as the results, about 60 kB: a context of 32k tokens."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Answer by browsing the web."},
        {"role": "user", "content": f"Which year was bridge {number // 4} opened?"},
    ]
    for turn in range(5):
        arguments = json.dumps({"url": f"https://example.org/{number}/{turn}"})
        call = {"name": "browser_navigate", "arguments": arguments}
        messages.append(
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": f"c{turn}", "type": "function", "function": call}],
            }
        )
        # One line in ten has letters beyond ASCII, which rnow's writer escapes.
        # One line in ten has letters beyond ASCII, which rnow's writer escapes.
        lines = [
            f'- link "{WORDS[i % 10 == 0]} {chance.randrange(10**6)}, a page on it" [ref=e{i}]'
            for i in range(chance.randrange(60, 360))
        ]
        messages.append({"role": "tool", "tool_call_id": f"c{turn}", "content": "\n".join(lines)})
    messages.append({"role": "assistant", "content": f"It was opened in 19{number % 90 + 10}."})
    about = {"turns": 6, "truncated": False, "totalTokens": 9000, "promptTokens": 8800, "completion": 200}
    return {
        "id": f"sample_{number}",
        "completed": True,
        "success": number % 5 != 0,
        "total_reward": float(number % 5 != 0),
        "rewards": {"accuracy": 1.0},
        "errors": [],
        **about,
        "metadata": {"expected_answer": "1931"},
        "conversation": messages,
    }


def write_corpus(folder: Path, size: int) -> int:
    """Rollouts of at least `size` bytes, in folders of 500; how many bytes."""
    chance, written, number = random.Random(7), 0, 0
    while written < size:
        number += 1
        place = folder / f"rollout_{number // 500 + 1}"
        place.mkdir(parents=True, exist_ok=True)
        text = json.dumps(rollout(number, chance), indent=2)  # rnow's writer indents, and escapes what is not ASCII
        if number % 300 == 0:
            text = text[: len(text) // 2]
        written += (place / f"sample_{number}.json").write_text(text, encoding="utf-8")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(write_corpus(Path(options.write[0]), int(options.write[1])))
        return
    report: dict[str, Any] = {"load_before": load(), "criteria": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def corpus(name: str, size: int) -> int:
            # In a process of its own: this one's memory would count into the peak of what it starts.
            command = [sys.executable, "-m", "tests.bench.bench_convert", "--write", str(folder / name), str(size)]
            return int(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)

        def convert(name: str, *more: str) -> Used:
            output = folder / f"{name}.jsonl"
            output.unlink(missing_ok=True)
            command = [sys.executable, SCRIPT, "-d", folder / name, "-o", output, "--progress", "off", *more]
            return succeeded(measure(command, folder))

        size, small_size = options.megabytes * 10**6, options.megabytes * 10**6 // 20
        corpus("small", small_size)
        read = corpus("all", size)
        loops: list[Used] = []
        writes: list[Used] = []
        runs: list[Used] = []
        for _ in range(options.repeat):
            loops.append(succeeded(measure([sys.executable, "-c", LOOP, folder / "all"], folder)))
            writes.append(succeeded(measure([sys.executable, "-c", LOOP, folder / "all", folder / "loop"], folder)))
            runs.append(convert("all"))
        small, selecting = convert("small"), convert("all", "--best-of", "1", "--dedupe", "--val-split", "0.1")
        loop_s = statistics.median(used.cpu_s for used in loops)
        write_s = statistics.median(used.cpu_s for used in writes)
        cpu_s = statistics.median(used.cpu_s for used in runs)
        growth = (max(used.rss for used in runs) - small.rss) / 1e6
        report |= {
            "read_mb": round(read / 1e6, 1),
            "files": sum(1 for _ in (folder / "all").rglob("*.json")),
            "convert_cpu_s": round(cpu_s, 2),
            "convert_wall_s": round(statistics.median(used.wall_s for used in runs), 2),
            "convert_mb_per_cpu_s": round(read / 1e6 / cpu_s, 1),
            "json_load_cpu_s": round(loop_s, 2),
            "json_load_mb_per_cpu_s": round(read / 1e6 / loop_s, 1),
            "json_load_and_dump_cpu_s": round(write_s, 2),
            "ratio_to_load": round(cpu_s / loop_s, 3),
            "ratio_to_load_and_dump": round(cpu_s / write_s, 3),
            "best_of_dedupe_val_cpu_s": round(selecting.cpu_s, 2),
            "rss_mb": round(max(used.rss for used in runs) / 1e6, 1),
            "rss_mb_of_a_twentieth": round(small.rss / 1e6, 1),
            "rss_mb_best_of_dedupe_val": round(selecting.rss / 1e6, 1),
        }
        report["criteria"] = {
            f">= {LEAST_MB_PER_S} MB per CPU second": read / 1e6 / cpu_s >= LEAST_MB_PER_S,
            "not slower than a plain loop that loads and writes": cpu_s <= write_s,
            f"memory grows by <= {MOST_GROWTH_MB} MB": growth <= MOST_GROWTH_MB,
        }
    report["load_after"] = load()
    finish(report)


if __name__ == "__main__":
    main()
