"""kill -9 at random moments, half a line appended after each, then a run to the end: what was lost, what paid twice?

    python -m tests.bench.crash_test [--prompts 2000] [--samples 3] [--kills 20] [--concurrency 100] [--seed 1]

The mock answers with latencies around 0.2 s and 5 % faults: 1 % each of 429 (Retry-After 1), 500, dropped connection,
truncated JSON and an error inside a 200. Its log says what a provider would have billed. Every fourth kill comes within
the first 0.8 s of a process (start-up, resume); the others when a random share of the answers is paid, and a random
moment later. Prints one JSON report with criteria, and leaves with 0 when all hold.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .harness import Mock, clean_environment, finish, generate, load, mock_server, write_prompts

FAULTS = [f"--p{kind}=0.01" for kind in ("429", "500", "drop", "malformed", "err200")]
MOCK_OPTIONS = ("--latency", "lognorm:0.2:0.4", "--retry-after", "1", *FAULTS)
TORN = b'{"messages": [{"role": "user", "content": "half a li'
ANSWER = re.compile(r"\[([^\]/\s]+)/(None|-?\d+)\] ")
"""How each answer of the mock begins: [id of the prompt/seed of the request]."""
TIMEOUT_S = 300


@dataclass
class Bill:
    """What the mock's log says, per (prompt, seed).

    good: with at least one whole answer.   again: paid requests beyond the first.   of these cut_off: by a kill;
    unusable: broken answers;   good_again: whole answers beyond the first.
    """

    requests: int = 0
    paid: int = 0
    good: int = 0
    again: int = 0
    cut_off: int = 0
    unusable: int = 0
    good_again: int = 0
    kinds: dict[str, int] = field(default_factory=dict[str, int])


def read_bill(log: Path) -> Bill:
    """Add up the log."""
    bill = Bill()
    paid: dict[tuple[str, Any], list[str]] = defaultdict(list)
    for line in log.read_bytes().split(b"\n"):
        row = json.loads(line) if line else {}
        if "kind" in row:
            bill.requests += 1
            bill.kinds[row["kind"]] = bill.kinds.get(row["kind"], 0) + 1
            if row["paid"]:
                paid[row["id"], row["seed"]].append(row["kind"])
    for kinds in paid.values():
        good = kinds.count("ok")
        bill.paid += len(kinds)
        bill.again += len(kinds) - 1
        bill.good += good > 0
        bill.good_again += max(0, good - 1)
        bill.cut_off += kinds.count("gone")
        bill.unusable += len(kinds) - good - kinds.count("gone")
    return bill


def read_rows(output: Path) -> dict[str, int]:
    """Rows, answers that are there twice (by id and by content), and lines that are no row."""
    answers: Counter[tuple[str, str]] = Counter()
    ids: Counter[str] = Counter()
    broken = 0
    for line in output.read_bytes().split(b"\n"):
        try:
            row = json.loads(line) if line else None
            if row is not None:
                ids[row["metadata"]["id"]] += 1
                found = ANSWER.match(row["messages"][-1]["content"])
                answers[found.groups() if found else ("", "")] += 1  # type: ignore[index]
        except (ValueError, KeyError, TypeError):
            broken += 1
    rows = sum(ids.values())
    return {"rows": rows, "different": len(answers), "duplicates": rows - min(len(ids), len(answers)), "broken": broken}


def kill_in_mid_run(command: list[str], folder: Path, mock: Mock, paid: int, wait_s: float) -> dict[str, Any]:
    """Start, wait until the mock was paid so often and `wait_s` longer, kill -9 the process group.

    Returns what had been paid and what was in flight at the kill; `ended` when the process was faster.
    """
    with open(folder / "output.txt", "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    end = time.monotonic() + TIMEOUT_S
    while process.poll() is None and mock.stats()["paid"] < paid and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(wait_s)
    stats = mock.stats()
    ended = process.poll() is not None
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while mock.stats()["inflight"]:  # the provider finishes, and bills, what was in flight
        time.sleep(0.05)
    return {"paid": stats["paid"], "in_flight": stats["inflight"], "ended": ended}


def crash_test(
    folder: Path, *, prompts: int, samples: int, kills: int, concurrency: int, seed: int = 1
) -> dict[str, Any]:
    """The whole test in an empty folder. Returns its report; `criteria` says what held."""
    dice = random.Random(seed)
    wanted = prompts * samples
    source, output, log = folder / "prompts.jsonl", folder / "train.jsonl", folder / "served.jsonl"
    write_prompts(source, prompts)
    report: dict[str, Any] = {"wanted": wanted, "kills": [], "load_before": load()}
    with mock_server(*MOCK_OPTIONS, "--log", str(log)) as mock:
        more = ("--samples", str(samples), "--concurrency", str(concurrency), "--progress", "off")
        command = generate(source, output, mock.base_url, *more)
        shares = sorted(dice.random() * 0.95 for _ in range(kills))
        for number, share in enumerate(shares):
            early = number % 4 == 1
            paid, wait_s = (0, dice.uniform(0, 0.8)) if early else (int(share * wanted), dice.uniform(0, 0.3))
            report["kills"].append(kill_in_mid_run(command, folder, mock, paid, wait_s))
            if output.exists():
                with open(output, "ab") as file:
                    file.write(TORN)
        start = time.monotonic()
        with open(folder / "last.txt", "wb") as printed:
            last = subprocess.run(
                command,
                cwd=folder,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_S,
            )
        report |= {"last_run_status": last.returncode, "last_run_s": round(time.monotonic() - start, 1)}
        before = mock.stats()["requests"]
        again = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, timeout=TIMEOUT_S)
        report["asked_by_one_more_run"] = mock.stats()["requests"] - before
        mock.ask("/_flush")
        bill = read_bill(log)
    rows = read_rows(output)
    in_flight = sum(kill["in_flight"] for kill in report["kills"])
    report |= {"in_flight_at_kills": in_flight, "bill": asdict(bill), **rows, "load_after": load()}
    report["criteria"] = {
        "every kill came in mid-run": not any(kill["ended"] for kill in report["kills"]),
        "the last run ended well": last.returncode == 0 and again.returncode == 0,
        "0 lost": bill.good == wanted and rows["different"] == wanted,
        "0 duplicate rows": rows["duplicates"] == 0 and rows["rows"] == wanted,
        "every line is a row": rows["broken"] == 0,
        "good answers paid twice <= in flight at the kills": bill.good_again <= in_flight,
        "nothing is asked once all is there": report["asked_by_one_more_run"] == 0,
    }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        finish(crash_test(Path(folder), **vars(options)))


if __name__ == "__main__":
    main()
