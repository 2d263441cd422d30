"""Many rollouts at a time: how near to the ideal, and whether anything is left behind.

    python -m tests.bench.bench_rollouts [--rollouts 200] [--turns 5] [--latency 1.0] [--tool-ms 50] [--runs 3]

Every rollout makes `turns - 1` tool calls (a plain function of a Python file that sleeps) and then answers; all run
at once, against the mock. The ideal is turns x latency + (turns - 1) x tool time. `wall` is the whole command with
Python's start, `work` what it reports itself. Afterwards no process and no connection may be left. Prints one JSON
report with criteria, and leaves with 0 when all hold.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import psutil

from .harness import ROOT, finish, load, measure, medians, mock_server, succeeded, write_prompts

TOOLS = '''"""One tool, as slow as a small web request."""

import time


def look_up(term: str) -> str:
    """Look a term up.

    Args:
        term: what to look up
    """
    time.sleep({seconds})
    return f"{{term}} at {{time.monotonic_ns()}}"
'''


def one_run(arguments: argparse.Namespace, base_url: str, port: int) -> dict[str, float]:
    """Run the command once; wall seconds, seconds of work, CPU per turn, peak memory, and what is left of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder / "train.jsonl", arguments.rollouts)
        (folder / "tools.py").write_text(TOOLS.format(seconds=arguments.tool_ms / 1000), encoding="utf-8")
        command = [ROOT / ".venv/bin/python", ROOT / "scripts/run_rollouts.py", "--all", "--tools", "tools.py"]
        command += ["--model", "mock/model", "--base-url", base_url, "--concurrency", str(arguments.rollouts)]
        used = succeeded(measure([*command, "--progress", "off", "--json"], folder))
        result = json.loads(next(line for line in used.output.splitlines() if line.startswith("{")))
        whole = sum(
            json.loads(path.read_bytes())["turns"] == arguments.turns for path in folder.glob("rollouts/*.json")
        )
    connections = [c for c in psutil.net_connections("tcp") if c.raddr and c.raddr.port == port and c.pid]
    return {
        "wall_s": used.wall_s,
        "work_s": result["seconds"],
        "cpu_ms_per_turn": used.cpu_s * 1000 / (arguments.rollouts * arguments.turns),
        "peak_mb": used.rss / 1e6,
        "whole_rollouts": whole,
        "left_processes": sum(base_url in (p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])),
        "left_connections": sum(c.status == psutil.CONN_ESTABLISHED for c in connections),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--tool-ms", type=float, default=50)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    before = load()
    calls = arguments.turns - 1
    options = ("--latency", f"fixed:{arguments.latency}", "--tools", str(calls), "--tokens", "60")
    with mock_server(*options) as mock:
        port = int(mock.url.rpartition(":")[2])
        rows = [one_run(arguments, mock.base_url, port) for _ in range(arguments.runs)]
    found = medians(rows)
    ideal_s = arguments.turns * arguments.latency + calls * arguments.tool_ms / 1000
    report: dict[str, Any] = {
        "load": before,
        "ideal_s": round(ideal_s, 3),
        **found,
        "wall_x_ideal": round(found["wall_s"] / ideal_s, 3),
        "work_x_ideal": round(found["work_s"] / ideal_s, 3),
    }
    report["criteria"] = {
        "wall <= 1.25 x ideal": report["wall_x_ideal"] <= 1.25,
        "every rollout is whole": all(row["whole_rollouts"] == arguments.rollouts for row in rows),
        "nothing is left": not any(row["left_processes"] or row["left_connections"] for row in rows),
    }
    finish(report)


if __name__ == "__main__":
    main()
