"""Checking rows to train on: seconds and memory, against a bare loop of `orjson.loads` over the same lines.

    python -m tests.bench.bench_lint [--rows 100000] [--repeat 3]

Writes that many rows of about 1 kB (plain, with a system message, of several turns, with thinking, with tool calls),
and once more with something wrong in a third of them. In turns, each as a process of its own with all that its start
costs: the loop, `core.data.sft_rows.lint`, and `train_sft --check`, which is that and config.yml. Memory is compared
with that of a tenth of the rows.
Prints one JSON report, and leaves with 0 when its criteria hold.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .harness import ROOT, Used, finish, load, measure, succeeded

SCRIPT = ROOT / "scripts" / "train_sft.py"
MOST_SECONDS, MOST_GROWTH_MB = 10, 20
WORDS = ("river", "bridge", "harbour", "signal", "engine", "lantern", "market", "garden", "Stra\u00dfe", "mountain")
LOOP = """
import orjson, sys
with open(sys.argv[1], "rb") as file:
    for line in file:
        try:
            orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
"""
LINT = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from core.data.sft_rows import lint
found = lint(pathlib.Path(sys.argv[1]))
print(found.rows, found.bad_rows["error"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    report: dict[str, Any] = {"load": [load()], "rows": options.rows, "criteria": {}}
    with tempfile.TemporaryDirectory(prefix="lint-bench-") as name:
        folder = Path(name)
        for kind, write in (("sound", row), ("damaged", damaged)):
            few, all_rows = folder / f"{kind}-few.jsonl", folder / f"{kind}.jsonl"
            write_rows(few, options.rows // 10, write)
            size = write_rows(all_rows, options.rows, write)
            figures, criteria = measured(folder, few, all_rows, kind, options.repeat)
            report[kind] = {"bytes_per_row": round(size / options.rows), **figures}
            report["criteria"] |= {f"{kind}: {said}": holds for said, holds in criteria.items()}
            report["load"].append(load())
    finish(report)


def measured(
    folder: Path, few: Path, all_rows: Path, kind: str, repeat: int
) -> tuple[dict[str, float], dict[str, bool]]:
    """(figures, criteria) of one file and a tenth of it."""

    def linted(path: Path) -> Used:
        return succeeded(measure([sys.executable, "-c", LINT, path, ROOT], folder))

    def checked(path: Path) -> Used:
        command = [sys.executable, SCRIPT, "-d", path, "--model", "smollm2", "--check", "--progress", "off"]
        return succeeded(measure(command, folder), 0 if kind == "sound" else 2)

    loops: list[Used] = []
    lints: list[Used] = []
    checks: list[Used] = []
    for _ in range(repeat):
        loops.append(succeeded(measure([sys.executable, "-c", LOOP, all_rows], folder)))
        lints.append(linted(all_rows))
        checks.append(checked(all_rows))
    lint_mb, check_mb = growth(lints, linted(few)), growth(checks, checked(few))
    loop_s = statistics.median(used.cpu_s for used in loops)
    lint_s = statistics.median(used.cpu_s for used in lints)
    figures = {
        "loop_cpu_s": round(loop_s, 2),
        "lint_cpu_s": round(lint_s, 2),
        "lint_wall_s": round(statistics.median(used.wall_s for used in lints), 2),
        "check_cpu_s": round(statistics.median(used.cpu_s for used in checks), 2),
        "check_wall_s": round(statistics.median(used.wall_s for used in checks), 2),
        "ratio_to_loop": round(lint_s / loop_s, 2),
        "lint_rss_mb": round(max(used.rss for used in lints) / 1e6, 1),
        "lint_growth_mb": round(lint_mb, 1),
        "check_rss_mb": round(max(used.rss for used in checks) / 1e6, 1),
        "check_growth_mb": round(check_mb, 1),
        "loop_rss_mb": round(max(used.rss for used in loops) / 1e6, 1),
    }
    seconds = max(figures["lint_wall_s"], figures["check_wall_s"])
    return figures, {
        f"< {MOST_SECONDS} s, started and read": seconds < MOST_SECONDS,
        f"memory grows by < {MOST_GROWTH_MB} MB from a tenth of the rows": max(lint_mb, check_mb) < MOST_GROWTH_MB,
    }


def growth(of_all: list[Used], of_few: Used) -> float:
    """MB that ten times the rows took more."""
    return (max(used.rss for used in of_all) - of_few.rss) / 1e6


# ---- rows ----------------------------------------------------------------------------------------------------------


def write_rows(path: Path, count: int, make: Callable[[int, random.Random], bytes]) -> int:
    """Lines of a file; how many bytes."""
    chance = random.Random(7)
    with open(path, "wb") as file:
        return sum(file.write(make(number, chance) + b"\n") for number in range(count))


def text(chance: random.Random, characters: int) -> str:
    """Words of about so many characters."""
    return " ".join(chance.choices(WORDS, k=characters // 8)) + "."


def row(number: int, chance: random.Random) -> bytes:
    """A row of about 1 kB that can be used."""
    about = {"teacher": "mock/model", "row": number, "finish_reason": "stop"}
    return json.dumps(messages_of(number, chance) | {"metadata": about}, ensure_ascii=False).encode()


def messages_of(number: int, chance: random.Random) -> dict[str, Any]:
    """Its messages, of five kinds in turns; with tool calls their schemas too."""

    def said(role: str, characters: int, **more: Any) -> dict[str, Any]:
        return {"role": role, "content": text(chance, characters), **more}

    question = said("user", 250)
    match number % 5:
        case 0:
            return {"messages": [question, said("assistant", 550)]}
        case 1:
            return {"messages": [said("system", 100), question, said("assistant", 450)]}
        case 2:
            return {"messages": [question, said("assistant", 200), said("user", 100), said("assistant", 200)]}
        case 3:
            return {"messages": [question, said("assistant", 250, reasoning_content=text(chance, 250))]}
    arguments = json.dumps({"url": f"https://example.org/{number}"})
    call = {"id": f"call_{number}", "type": "function", "function": {"name": "open_page", "arguments": arguments}}
    parameters = {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]}
    schema = {"name": "open_page", "description": "Open a page.", "parameters": parameters}
    turns = [
        question,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        said("tool", 150, tool_call_id=f"call_{number}"),
        said("assistant", 80),
    ]
    return {"messages": turns, "tools": [{"type": "function", "function": schema}]}


def damaged(number: int, chance: random.Random) -> bytes:
    """As `row`, with something wrong in one of three, told in words that differ from row to row."""
    sound = row(number, chance)
    if number % 3:
        return sound
    found = json.loads(sound)
    messages = found["messages"]
    match number // 3 % 6:
        case 0:
            return sound[: chance.randrange(100, len(sound) - 1)]
        case 1:
            messages[-1]["role"] = f"robot_{number}"
        case 2:
            messages[-1]["content"] = None
        case 3:
            messages.insert(1, {"role": "tool", "tool_call_id": f"lost_{number}", "content": "nothing"})
        case 4:
            messages[0]["content"] = [{"type": "image_url", "image_url": {"url": f"https://example.org/{number}.png"}}]
        case _:
            messages.pop()
            messages[-1]["tool_calls"] = [{"id": "1", "type": "function", "function": {"name": "", "arguments": "no"}}]
    return json.dumps(found, ensure_ascii=False).encode()


if __name__ == "__main__":
    main()
