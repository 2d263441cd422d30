"""CPU and memory of the fused losses, next to TRL's GOLDTrainer (`trl_gold_peer`) and to a fused cross-entropy step.

Tiny models with random weights, batch 2, prompts of 32 and completions of 128 tokens of real text, one thread. TRL runs
in processes of its own, in turns with ours, on the same rows; the losses of ours take turns within one process, so that
a busy machine slows all of them alike. Medians of CPU seconds; memory is what a step adds to the resident set.

    python -m tests.bench.bench_loss                    # 32k and 150k, three rounds: about 10 minutes, 3 GB
    python -m tests.bench.bench_loss --vocab 32000 --rounds 1

Ours counts "loss" from hidden states to the end of the backward pass: both output layers and the alignment are in it.
TRL's "loss_and_backward" lacks the forward pass of both output layers, which is in its models.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from . import trl_gold_peer as peer
from .harness import ROOT, finish, load

BETA = 0.5
LOSSES = ("cross_entropy", "jsd", "hybrid_top_k", "hybrid_exact")
TOKENS = (512, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32000, 150000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured steps per process of ours (TRL: 1)")
    parser.add_argument("--worker", choices=["steps", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=512, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", default=LOSSES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work = (
            steps(options.vocab[0], options.steps, options.only)
            if options.worker == "steps"
            else memory(options.vocab[0], options.tokens)
        )
        print(json.dumps(work))
        return
    report: dict[str, Any] = {"load": [load()], "rounds": options.rounds}
    criteria: dict[str, bool] = {}
    for vocab in options.vocab:
        for side in ("student", "teacher"):
            peer.tokenizer(side, vocab)
        trl, ours = [], []
        for _ in range(options.rounds):
            trl.append(run("tests.bench.trl_gold_peer", "--vocab", vocab, "--steps", 1))
            ours.append(run("tests.bench.bench_loss", "--worker", "steps", "--vocab", vocab, "--steps", options.steps))
            report["load"].append(load())
        found = {name: {key: middle([row[name][key] for row in ours]) for key in ours[0][name]} for name in LOSSES}
        for name in LOSSES:  # each in a process of its own: freed memory is often kept, and would count for the next
            alone = run("tests.bench.bench_loss", "--worker", "steps", "--vocab", vocab, "--steps", 1, "--only", name)
            found[name]["peak_mb"] = alone["peak_mb"]
        theirs = {key: middle([row[key] for row in trl]) for key in trl[0] if isinstance(trl[0][key], float)}
        flat = {
            tokens: run("tests.bench.bench_loss", "--worker", "memory", "--vocab", vocab, "--tokens", tokens)
            for tokens in TOKENS
        }
        ratios = {
            **{f"{name} of TRL's CPU": found[name]["loss"] / theirs["loss_and_backward"] for name in LOSSES[2:]},
            **{f"{name} of TRL's step": found[name]["step"] / theirs["step"] for name in LOSSES[2:]},
            **{f"{name} of TRL's memory": found[name]["peak_mb"] / theirs["peak_mb"] for name in LOSSES[2:]},
            **{
                f"{name} of cross-entropy's step": middle(
                    [row[name]["step"] / row["cross_entropy"]["step"] for row in ours]
                )
                for name in LOSSES[1:]
            },
            **{
                f"{name} of cross-entropy alone": middle(
                    [row[name]["loss"] / row["cross_entropy"]["loss"] for row in ours]
                )
                for name in LOSSES[1:]
            },
            "memory of 2048 of 512 tokens": max(flat[TOKENS[1]][name] / flat[TOKENS[0]][name] for name in flat[512]),
        }
        small = vocab <= 64000
        limits = {
            "hybrid_exact of TRL's CPU": 0.5 if small else 1.0,
            "hybrid_top_k of TRL's CPU": 1 / 3 if small else 0.5,
            "jsd of cross-entropy's step": 1.5,
            "hybrid_top_k of cross-entropy's step": 2.5,
            "memory of 2048 of 512 tokens": 1.1,
        }
        if not small:
            limits |= {f"{name} of TRL's memory": 0.25 for name in LOSSES[2:]}
        report[str(vocab)] = {
            "trl": theirs,
            "ours": found,
            "memory_mb": flat,
            "ratios": {name: round(value, 3) for name, value in ratios.items()},
        }
        criteria |= {f"{vocab}: {name} <= {limit:.3g}": ratios[name] <= limit for name, limit in limits.items()}
    finish(report | {"criteria": criteria})


def run(module: str, *options: object) -> dict[str, Any]:
    """The JSON line that a module prints. Raises CalledProcessError with what it said."""
    command = [sys.executable, "-m", module, *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def middle(values: list[float]) -> float:
    return round(statistics.median(values), 4)


def steps(vocab: int, count: int, losses: list[str]) -> dict[str, Any]:
    """Median CPU seconds of a step with each loss, on the rows that TRL gets, and the most memory of any step."""
    import numpy as np
    import torch

    from core.distillation.alignment import Groups, align
    from core.distillation.fused import fused_cross_entropy, fused_jsd
    from core.distillation.fused_hybrid import TOP_K, fused_hybrid
    from core.distillation.output_head import OutputHead
    from core.distillation.token_bytes import TokenBytes
    from core.distillation.vocabulary import build

    torch.set_num_threads(1)
    tokens, teacher_tokens = peer.tokenizer("student", vocab), peer.tokenizer("teacher", vocab)
    student, teacher = peer.model("student", tokens), peer.model("teacher", teacher_tokens).requires_grad_(False)
    own, other = TokenBytes(tokens), TokenBytes(teacher_tokens)
    vocabulary = build(own, other, vocab, vocab, (tokens.eos_token_id, teacher_tokens.eos_token_id))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    rows = peer.rows(tokens, peer.BATCH * (count + 1))
    head, teacher_head = OutputHead.from_model(student), OutputHead.from_model(teacher)
    encoded = []
    for row in rows:
        prompt, completion = (tokens(row[part], add_special_tokens=False)["input_ids"] for part in row)
        teacher_prompt = teacher_tokens(row["prompt"], add_special_tokens=False)["input_ids"]
        encoded.append((prompt, completion, teacher_prompt, other.encode(own.of(completion))))

    def hidden(model: Any, prompt: list[int], completion: list[int]) -> Any:
        return model.model(torch.tensor([prompt + completion])).last_hidden_state[0, len(prompt) - 1 : -1]

    def step(name: str, batch: list[Any]) -> dict[str, float]:
        optimizer.zero_grad()
        with torch.no_grad():
            same = name == "jsd"
            teachers = (
                [hidden(teacher, p, c) if same else hidden(teacher, q, d) for p, c, q, d in batch]
                if name != "cross_entropy"
                else []
            )
        start = time.process_time()
        states = torch.cat([hidden(student, p, c) for p, c, _, _ in batch])
        begun = time.process_time()
        ids = torch.tensor([token for _, completion, _, _ in batch for token in completion])
        if name == "cross_entropy":
            terms = fused_cross_entropy(states, head, ids)
        elif name == "jsd":
            terms = fused_jsd(states, head, torch.cat(teachers), teacher_head, BETA)
        else:
            pairs = [align(own.ends(c), other.ends(d)) for _, c, _, d in batch]
            first = np.cumsum([0, *(pair.count for pair in pairs)])
            groups = Groups(
                np.concatenate([pair.student + at for pair, at in zip(pairs, first, strict=False)]),
                np.concatenate([pair.teacher + at for pair, at in zip(pairs, first, strict=False)]),
                int(first[-1]),
            )
            teacher_ids = torch.tensor([token for _, _, _, completion in batch for token in completion])
            top_k = TOP_K if name == "hybrid_top_k" else None
            terms = fused_hybrid(
                states,
                head,
                ids,
                torch.cat(teachers),
                teacher_head,
                teacher_ids,
                groups,
                vocabulary,
                BETA,
                unmatched_top_k=top_k,
            )
        terms.mean().backward()
        end = time.process_time()
        optimizer.step()
        return {"loss": end - begun, "step": end - start, "value": terms.mean().item()}

    found: dict[str, list[dict[str, float]]] = {name: [] for name in losses}
    before, watch = peer.resident(), peer.Peak()
    for at in range(count + 1):
        batch = encoded[at * peer.BATCH : (at + 1) * peer.BATCH]
        for name in losses:
            found[name].append(step(name, batch))
    peak_mb = (watch.stop() - before) / 2**20
    result: dict[str, Any] = {"matched": len(vocabulary.student_ids) / vocab, "peak_mb": round(peak_mb, 1)}
    for name, all_of in found.items():
        result[name] = {key: middle([one[key] for one in all_of[1:]]) for key in all_of[0]}
    return result


def memory(vocab: int, tokens: int) -> dict[str, float]:
    """MB that the losses alone add, at most, for so many tokens: hidden states and weights at random."""
    import numpy as np
    import torch

    from core.distillation.alignment import Groups
    from core.distillation.fused import fused_jsd
    from core.distillation.fused_hybrid import TOP_K, fused_hybrid
    from core.distillation.output_head import OutputHead
    from core.distillation.vocabulary import VocabularyMap

    torch.set_num_threads(1)
    torch.manual_seed(0)
    (width, _), (teacher_width, _) = peer.STUDENT, peer.TEACHER
    head = OutputHead(torch.randn(vocab, width).requires_grad_())
    teacher_head = OutputHead(torch.randn(vocab, teacher_width))
    states, teachers = torch.randn(tokens, width).requires_grad_(), torch.randn(tokens, teacher_width)
    ids = torch.randint(vocab, (tokens,))
    # Three of four tokens are a group of their own; a fourth joins the next.
    group = np.arange(tokens) * 3 // 4
    groups = Groups(group, group, int(group[-1]) + 1)
    every = np.arange(vocab)
    half = every[: vocab // 2]
    vocabulary = VocabularyMap(half, half, every[vocab // 2 :], every[vocab // 2 :], vocab, vocab)
    result = {}
    for name in ("jsd", "hybrid_top_k", "hybrid_exact"):
        trim()
        before, watch = peer.resident(), peer.Peak()
        if name == "jsd":
            terms = fused_jsd(states, head, teachers, teacher_head, BETA)
        else:
            top_k = TOP_K if name == "hybrid_top_k" else None
            terms = fused_hybrid(
                states, head, ids, teachers, teacher_head, ids, groups, vocabulary, BETA, unmatched_top_k=top_k
            )
        terms.mean().backward()
        result[name] = round((watch.stop() - before) / 2**20, 1)
        head.weight.grad = states.grad = None
    return result


def trim() -> None:
    """Give freed memory back to the system, so that the next peak is seen (glibc only)."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)


if __name__ == "__main__":
    main()
