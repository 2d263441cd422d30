"""Can SmolLM2 learn from rollouts to work out dates with two tools, though its chat template has no place for tools?

    python -m tests.bench.experiment_rollouts [--work DIR] [--rows 40] [--held-back 40] [--seed 7] [--threads 1]

The teacher is a program behind HTTP, so all of its rollouts are right: what is measured is whether these, as rows,
teach a student to call tools and to use what comes back. The commands are the skill's own: run_rollouts,
convert_rollouts, train_sft (LoRA rank 32, one epoch, learning rate 1e-3), and run_rollouts again with the student on
questions that were held back, before and after. What is there is not made again. Prints the table; leaves with 0 when
the intervals of before and after are apart.
"""

import argparse
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from tests.support.scripted_teacher import Call, Chat, scripted_teacher

from .harness import load

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ["--tools", str(ROOT / "skills/rollout-distill/assets/tools.py"), "--allow-tools", "days_between,add_days"]
SYSTEM = "Use the tools. End with a line that says: Answer: ..."
BETWEEN = (
    "How many days are there from {} to {}?",
    "Count the days between {} and {}.",
    "A lease ran from {} to {}. How many days is that?",
)
LATER = (
    "Which date is {1} days after {0}? Write YYYY-MM-DD.",
    "A bill of {0} is due in {1} days. On which date? Write YYYY-MM-DD.",
    "What is the date {1} days later than {0}? Write YYYY-MM-DD.",
)
DAY = re.compile(r"\d{4}-\d\d-\d\d")


def questions(seed: int) -> Iterator[tuple[str, str]]:
    """(question, right answer), for ever; no question twice."""
    draw, seen = random.Random(seed), set[str]()
    while True:
        first = date(1950, 1, 1) + timedelta(days=draw.randrange(30_000))
        days = draw.randrange(5, 900)
        last = str(first + timedelta(days=days))
        if draw.random() < 0.5:
            asked, right = draw.choice(BETWEEN).format(first, last), str(days)
        else:
            asked, right = draw.choice(LATER).format(first, days), last
        if asked not in seen:
            seen.add(asked)
            yield asked, right


def teach(chat: Chat) -> Call | str:
    """What the programmed teacher says: one call, then its result."""
    if chat.results:
        return "Answer: " + chat.results[-1].split(",")[0]
    days = DAY.findall(chat.question)
    if len(days) == 2:
        return Call("days_between", {"first": days[0], "second": days[1]})
    (number,) = re.findall(r"(?<![\d-])\d+(?![\d-])", DAY.sub("", chat.question))
    return Call("add_days", {"day": days[0], "days": int(number)})


def write_prompts(path: Path, asked: Iterator[tuple[str, str]], count: int) -> None:
    rows = [
        {
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            "metadata": {"expected_answer": right},
        }
        for question, right in (next(asked) for _ in range(count))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(folder: Path, name: str, *arguments: str, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """The result of a command, as it says it with --json."""
    line = [sys.executable, ROOT / "scripts" / f"{name}.py", *arguments, "--json", "--progress", "off"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    if done.returncode not in codes:
        sys.exit(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def training(output: str, threads: int) -> list[str]:
    """The options of a run of train_sft, but for its learning rate."""
    return [
        *("-d", "train.jsonl", "--model", "smollm2", "--chat-template", "chatml", "--qlora-rank", "32", "--merge"),
        *("--batch-size", "2", "--micro-batch-size", "1", "--no-gradient-checkpointing", "--num-epochs", "1"),
        *("-o", output, "--threads", str(threads)),
    ]


def success(folder: Path, model: str, output: str, threads: int) -> tuple[int, int, float, float]:
    """(right, of, 95 % interval) of a model on the questions that were held back."""
    told = run(
        folder,
        "run_rollouts",
        *("--input", "test.jsonl", *TOOLS, "--backend", "hf", "--model", model, "--temperature", "0", "--all"),
        *("--output", output, "--max-turns", "4", "--max-tokens", "96", "--threads", str(threads), "-c", "20"),
    )
    low, high = told["success_interval"]
    return told["successes"], sum(told["outcomes"].values()), low, high


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--work", type=Path, default=Path("bench-out/rollouts"))
    asked.add_argument("--rows", type=int, default=40)
    asked.add_argument("--held-back", type=int, default=40)
    asked.add_argument("--seed", type=int, default=7)
    asked.add_argument("--threads", type=int, default=1)
    options = asked.parse_args()
    folder: Path = options.work
    folder.mkdir(parents=True, exist_ok=True)

    stream = questions(options.seed)
    write_prompts(folder / "prompts.jsonl", stream, options.rows)
    write_prompts(folder / "test.jsonl", stream, options.held_back)
    with scripted_teacher(teach, price=(1e-6, 4e-6)) as teacher:
        server = ["--base-url", teacher.base_url, "--model", "scripted/dates"]
        run(folder, "run_rollouts", "--input", "prompts.jsonl", *TOOLS, *server, "--all")
    rows = run(folder, "convert_rollouts", "--output", "train.jsonl")
    if not (folder / "untrained").is_dir():  # the student as it was, with the template that the trained one has
        run(
            folder, "train_sft", *training("untrained", options.threads), "--learning-rate", "1e-12", "--max-steps", "1"
        )
    if not (folder / "runs").is_dir():
        run(folder, "train_sft", *training("runs", options.threads), "--learning-rate", "1e-3")
    before = success(folder, "untrained/best", "rollouts-before", options.threads)
    after = success(folder, "runs/best", "rollouts-after", options.threads)
    print(f"{rows['rows']} rows, load {load()}")
    for name, (right, count, low, high) in (("before", before), ("after", after)):
        print(f"| {name} | {right} of {count} | {right / count:.0%} ({low:.0%} to {high:.0%}) |")
    return 0 if before[3] < after[2] else 1


if __name__ == "__main__":
    sys.exit(main())
