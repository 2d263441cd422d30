"""A whole on-policy step, accumulation included, next to TRL's GOLDTrainer (`trl_gold_peer`).

Both sides: tiny models with random weights, 4 micro-batches of 2, prompts of 32 tokens of real text, answers of exactly
128 (`text_only` bars every end of an answer), one thread. The student answers, the teacher scores, the student learns.
Ours is the real `Learner` on saved models, with the default --teacher-batch-size. Each side runs in processes of its
own, one after the other, in turns; the first step of a process warms up and is not counted.

    python -m tests.bench.bench_step                          # 3 rounds: about 8 minutes
    python -m tests.bench.bench_step --rounds 1 --steps 1     # one look: 3 minutes

Ratios are of CPU seconds, medians over the rounds. `hybrid` compares the top 64 of the unmatched columns, our default;
`hybrid_exact` compares all of them, as TRL does. Of our phases, "student" is the forward and the backward pass without
the output layers, which are in "loss" with their gradients; TRL's are in its forward passes. "other" is what no part
counts: reading the answer in the teacher's tokens and the alignment; TRL's includes its optimiser.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from . import trl_gold_peer as peer
from .bench_loss import middle, run
from .harness import finish, load

ACCUMULATION = 4
VARIANTS = {"hybrid": ("hybrid", "hybrid_exact"), "jsd": ("jsd",)}
"""TRL's mode -> those of ours that do the same."""
LIMIT = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--modes", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured steps per process of ours (TRL: 1)")
    parser.add_argument("--worker", choices=["hybrid", "hybrid_exact", "jsd"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with tempfile.TemporaryDirectory(prefix="step-bench-") as folder:
            print(json.dumps(steps(options.vocab, options.worker, options.steps, Path(folder))))
        return
    for side in ("student", "teacher"):
        peer.tokenizer(side, options.vocab)
    report: dict[str, Any] = {"vocab": options.vocab, "rounds": options.rounds, "load": [load()]}
    criteria: dict[str, bool] = {}
    for mode in options.modes:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ("trl", *VARIANTS[mode])}
        for _ in range(options.rounds):
            found["trl"].append(theirs(options.vocab, mode))
            for name in VARIANTS[mode]:
                more = ("--worker", name, "--vocab", options.vocab, "--steps", options.steps)
                found[name].append(run("tests.bench.bench_step", *more))
            report["load"].append(load())
        figures = {name: {key: middle([row[key] for row in rows]) for key in rows[0]} for name, rows in found.items()}
        trl = figures["trl"]
        report[mode] = figures | {"ratios": {}}
        for name in VARIANTS[mode]:
            ours = figures[name]
            parts = {
                "step": ours["step"] / trl["step"],
                "generate": ours["generate"] / trl["generate"],
                "all but generate": (ours["step"] - ours["generate"]) / (trl["step"] - trl["generate"]),
                "memory": ours["peak_mb"] / trl["peak_mb"],
            }
            report[mode]["ratios"][name] = {key: round(value, 3) for key, value in parts.items()}
            criteria[f"{name}: step <= {LIMIT} of TRL's CPU"] = parts["step"] <= LIMIT
            criteria[f"{name}: as many tokens as TRL"] = ours["tokens"] == trl["tokens"]
    finish(report | {"criteria": criteria})


def theirs(vocab: int, mode: str) -> dict[str, float]:
    """TRL's CPU seconds of a step, by part; the tokens that it trained; the memory that it added."""
    more = ("--vocab", vocab, "--mode", mode, "--steps", 1, "--lmbda", 1, "--accumulation", ACCUMULATION)
    row = run("tests.bench.trl_gold_peer", *more)
    parts = {key: value for key, value in row.items() if isinstance(value, float)}
    named = ("generate", "teacher_forward", "student_forward", "loss", "backward")
    return parts | {"other": round(parts["step"] - sum(parts[name] for name in named), 4)}


def steps(vocab: int, variant: str, count: int, folder: Path) -> dict[str, float]:
    """CPU seconds of one of our steps, by phase; the tokens that it trained; the memory that the steps added."""
    import torch

    from core.commands.train_gold import TrainGold
    from core.teachers.scorer import open_scorer
    from core.training.learner import Learner
    from core.training.samples import Sample
    from core.training.score_signal import ScoreSignal
    from core.training.student import load_student
    from core.training.world import World

    same = variant == "jsd"
    tokens = peer.tokenizer("student", vocab)
    teacher_tokens = tokens if same else peer.tokenizer("teacher", vocab)
    for side, own in (("student", tokens), ("teacher", teacher_tokens)):
        peer.model(side, own).save_pretrained(folder / side)
        own.save_pretrained(folder / side)
    size = peer.BATCH * ACCUMULATION
    options = TrainGold.model_validate(
        {
            "data": "rows.jsonl",
            "output": folder / "run",
            "student": str(folder / "student"),
            "teacher": str(folder / "teacher"),
            "lmbda": 1.0,
            "beta": 0.5,
            "loss": "jsd" if same else "gold",
            "unmatched_top_k": 0 if variant == "hybrid_exact" else 64,
            "max_new_tokens": peer.COMPLETION,
            "batch_size": size,
            "micro_batch_size": peer.BATCH,
            "max_steps": count + 1,
            "learning_rate": 1e-4,
            "device": "cpu",
            "threads": 1,
        }
    )
    world = World(options)
    scorer = open_scorer(options.teacher_options("cpu", "sdpa"))
    assert scorer is not None
    scorer.prepare(lambda note: None)
    student = load_student(options, torch.device("cpu"), lambda note: None)
    learner = Learner(options, world, student, ScoreSignal(options, student.side, student.head, scorer))
    peer.text_only(student.network, tokens)
    samples = []
    for place, row in enumerate(peer.rows(tokens, size * (count + 1))):
        asked, read = (side(row["prompt"], add_special_tokens=False)["input_ids"] for side in (tokens, teacher_tokens))
        message = {"role": "user", "content": row["prompt"]}
        samples.append(Sample(f"{place:016x}", f"rows.jsonl:{place + 1}", [message], None, asked, read))

    def step(number: int) -> int:
        draws = [(samples[place], place) for place in range(size * number, size * (number + 1))]
        return learner.learn(learner.score(learner.answer(draws))).own_tokens

    before, watch = peer.resident(), peer.Peak()
    step(0)
    start = time.process_time()
    warm = {name: phase.cpu_seconds for name, phase in learner.watch.total.items()}
    trained = sum(step(number) for number in range(1, count + 1))
    spent = time.process_time() - start
    phases = {name: phase.cpu_seconds - warm[name] for name, phase in learner.watch.total.items()}
    parts = {name: seconds for name, seconds in phases.items() if seconds}
    parts |= {"other": spent - sum(parts.values()), "step": spent}
    return {
        **{name: round(seconds / count, 4) for name, seconds in parts.items()},
        "tokens": trained / count,
        "peak_mb": round((watch.stop() - before) / 2**20, 1),
    }


if __name__ == "__main__":
    main()
