"""`train_sft` next to bare TRL: tokens per second and losses; rows packed and not; memory.

SmolLM2-135M with a LoRA adapter of rank 16 on every linear layer, float32, 4 rows a step, 2 per forward pass, rows of
about 130 tokens of real text of which the answer is trained. Ours is the command's own work, from the checks to its
folder; bare TRL is `SFTTrainer` on the same messages, with SmolLM2's template and {% generation %} marks in it. Its
settings are ours, but for what our users do not choose, which is as TRL has it: a fused AdamW.

Each side is a process of its own, and they take turns step by step, on the same rows in the same order: the ratio is
the median over the pairs of steps, so that a busy machine slows both alike. A step is timed from the end of the one
before to its own end, with its rows, its figures and their line in metrics.jsonl; the first one of a process warms up
and is not counted.

    python -m tests.bench.bench_sft                                    # all of it: about 25 minutes
    python -m tests.bench.bench_sft --only speed --rounds 1 --steps 2  # one look: 2 minutes
    python -m tests.bench.bench_sft --only speed --full                # all weights trained instead

Packing: rows of about 50 tokens, about as many tokens a step either way; tokens count without padding. Memory:
ru_maxrss of the command with its defaults, validation included, for rows of three lengths up to nearly the longest.
Needs 0.6 GB of temporary files.
"""

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .harness import ROOT, clean_environment, finish, load, measure, succeeded
from .trl_gold_peer import sources

LEAST, MOST_GB, SAME = 0.95, 6.0, 1e-5
RANK, BATCH, MICRO, RATE = 16, 4, 2, 1e-4
SHORT, USUAL, LONG, LONGEST = (30, 40), (120, 240), (1200, 2100), (4600, 8400)
"""Characters of a prompt and of an answer, on average: with the template about 50, 130, 1,000 and 3,600 tokens."""
PACKED_LENGTH = 256
SHORT_BATCH = 20
"""Short rows that have about as many tokens as four packed sequences."""
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
)
"""SmolLM2's, with marks around what the assistant says. What follows the last turn is left away, as ours does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="train all weights")
    parser.add_argument("--worker", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        (ours if options.worker == "ours" else theirs)(options.options)
        return
    report: dict[str, Any] = {"threads": options.threads, "load": [load()]}
    criteria: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="sft-bench-") as made:
        folder = Path(made)
        # In another process: what converts the model would count for what is measured (see `harness.Used`).
        copy = [sys.executable, "-m", "tests.bench.bench_train_memory", "--copy-to", str(folder / "student")]
        subprocess.run(copy, cwd=ROOT, check=True, stdout=sys.stderr)
        for name in options.only:
            report[name], found = PARTS[name](folder, options)
            criteria |= found
            report["load"].append(load())
    finish(report | {"criteria": criteria})


# ---- the parts -----------------------------------------------------------------------------------------------------


def speed(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bool]]:
    """(figures, criteria) of ours and TRL's on the same rows."""
    rows = folder / "rows.jsonl"
    write_rows(rows, BATCH * (options.steps + 1), *USUAL)
    said = {"data": str(rows), "batch": BATCH, "micro": MICRO, "rank": None if options.full else RANK}
    sides = {"ours": ("ours", said), "trl": ("trl", said)}
    rounds = [alternate(sides, folder, options) for _ in range(options.rounds)]
    figures = {name: summary([each[name] for each in rounds]) for name in sides}
    ratio = ratios(rounds, "ours", "trl")
    apart = furthest(rounds)
    criteria = {
        f"tokens/s >= {LEAST:g} of TRL's": ratio["wall"] >= LEAST,
        f"losses within {SAME:g} of TRL's": apart <= SAME,
        "as many tokens as TRL": same_tokens(rounds),
    }
    return figures | {"ratio_tokens_per_s": ratio, "losses_apart": apart}, criteria


def packing(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bool]]:
    """(figures, criteria) of short rows: packed, by rows (2 and 10 per forward pass), packed by TRL."""
    rows = folder / "short.jsonl"
    write_rows(rows, SHORT_BATCH * (options.steps + 1), *SHORT)
    said = {"data": str(rows), "rank": RANK}
    by_row = said | {"batch": SHORT_BATCH}
    in_sequences = said | {"batch": 4, "micro": 1, "packed_length": PACKED_LENGTH}
    sides = {
        "packed": ("ours", in_sequences),
        "trl_packed": ("trl", in_sequences),
        "micro_2": ("ours", by_row | {"micro": 2}),
        "micro_10": ("ours", by_row | {"micro": 10}),
    }
    rounds = [alternate(sides, folder, options) for _ in range(options.rounds)]
    figures = {name: summary([each[name] for each in rounds]) for name in sides}
    both = [{name: each[name] for name in ("packed", "trl_packed")} for each in rounds]
    to_trl, to_rows, apart = ratios(both, *both[0]), ratios(rounds, "packed", "micro_2"), furthest(both)
    criteria = {
        f"packed: tokens/s >= {LEAST:g} of TRL's": to_trl["wall"] >= LEAST,
        f"packed: losses within {SAME:g} of TRL's": apart <= SAME,
        "packed: more tokens/s than by rows, 2 at a time": to_rows["wall"] > 1,
    }
    more = {
        "packed_to_trl_packed": to_trl,
        "packed_to_micro_2": to_rows,
        "packed_to_micro_10": ratios(rounds, "packed", "micro_10"),
        "losses_apart": apart,
    }
    return figures | more, criteria


def memory(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, bool]]:
    """(figures, criteria) of the command, as users run it, with rows of three lengths."""
    found: dict[str, Any] = {}
    # How many passes make a step does not change what is held; long ones take long.
    for characters, batch in ((USUAL, BATCH), (LONG, 1), (LONGEST, 1)):
        rows, output = folder / "rows.jsonl", folder / f"run-{len(found)}"
        write_rows(rows, 20, *characters, even=True)
        command = [sys.executable, str(ROOT / "scripts" / "train_sft.py"), "-d", str(rows), "-o", str(output)]
        command += ["--model", str(folder / "student"), "--qlora-rank", str(RANK), "--val-split", "0.1"]
        command += ["--batch-size", str(batch), "--max-steps", "2"]
        command += ["--device", "cpu", "--threads", str(options.threads)]
        used = succeeded(measure(command, folder))
        read = [step["tokens_read"] for step in events(output)]
        tokens = round(sum(read) / len(read) / batch)
        found[f"rows of {tokens:,} tokens"] = {"peak_gb": round(used.rss / 1e9, 3), "cpu_s": round(used.cpu_s, 1)}
        print(f"memory: {tokens} tokens {used.rss / 1e9:.2f} GB", file=sys.stderr)
    return found, {f"{name}: peak < {MOST_GB:g} GB": each["peak_gb"] < MOST_GB for name, each in found.items()}


PARTS: dict[str, Callable[[Path, argparse.Namespace], tuple[dict[str, Any], dict[str, bool]]]] = {
    "speed": speed,
    "packing": packing,
    "memory": memory,
}

# ---- taking turns --------------------------------------------------------------------------------------------------

Steps = list[dict[str, float]]
"""What each measured step of a process said: seconds, cpu_s, loss, tokens."""
Sides = dict[str, tuple[str, dict[str, Any]]]
"""Which worker a side is, and its options."""


def alternate(sides: Sides, folder: Path, options: argparse.Namespace) -> dict[str, Steps]:
    """The steps of each side, made in turns. Raises RuntimeError with what a process said that broke off."""
    workers: dict[str, subprocess.Popen[str]] = {}
    with ExitStack() as stack:
        errors: dict[str, Path] = {}
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        for name, (worker, said) in sides.items():
            own = {**said, "model": str(folder / "student"), "output": str(place / name)}
            own |= {"steps": options.steps + 1, "threads": options.threads}
            command = [sys.executable, "-m", "tests.bench.bench_sft", "--worker", worker, "--options", json.dumps(own)]
            errors[name] = place / f"{name}.txt"
            log = stack.enter_context(open(errors[name], "w", encoding="utf-8"))
            environment = clean_environment() | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(place / "cache")}
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            workers[name] = process
            heard(process, errors[name])  # ready: one after the other is loaded, so that none waits for long
        found: dict[str, Steps] = {name: [] for name in sides}
        names = list(sides)
        for number in range(options.steps + 1):
            for name in names if number % 2 else reversed(names):
                tell(workers[name])
                found[name].append(heard(workers[name], errors[name]))
        for name, process in workers.items():
            tell(process)
            ended = heard(process, errors[name])
            for step, tokens in zip(found[name], ended["tokens"], strict=True):
                step["tokens"] = tokens
            process.wait(60)
    shown = {name: summary([steps[1:]])["tokens_per_s"] for name, steps in found.items()}
    print(f"round: {shown} tokens/s, load {load()}", file=sys.stderr)
    return {name: steps[1:] for name, steps in found.items()}


def tell(process: "subprocess.Popen[str]") -> None:
    """Let a worker go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def heard(process: "subprocess.Popen[str]", errors: Path) -> dict[str, Any]:
    """What a worker says next. Raises RuntimeError when it has nothing more to say."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args}\n{errors.read_text(encoding='utf-8')[-3000:]}")
    return json.loads(line)


class Turns:
    """A worker's end of it: says what a step took, and waits for the next turn."""

    def __init__(self) -> None:
        self._out, sys.stdout = sys.stdout, sys.stderr  # whatever prints is not to be taken for a step
        self._wall_s = self._cpu_s = 0.0

    def say(self, **more: Any) -> None:
        """What the piece of work took that ends here; the next begins when it may."""
        took = {"seconds": time.perf_counter() - self._wall_s, "cpu_s": time.process_time() - self._cpu_s}
        print(json.dumps(took | more), file=self._out, flush=True)
        if not sys.stdin.readline():
            raise SystemExit("nobody is there any more")
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def end(self, tokens: Sequence[float]) -> None:
        """tokens: that each step read, without padding."""
        print(json.dumps({"tokens": list(tokens)}), file=self._out, flush=True)


# ---- ours and theirs -----------------------------------------------------------------------------------------------


def ours(said: dict[str, Any]) -> None:
    """`train_sft` with a progress that takes turns."""
    from core.commands.train_sft import TrainSft
    from core.data.progress import Progress
    from core.data.run import Run
    from core.training.sft import train

    turns = Turns()

    class InTurns(Progress):
        def begin(self, what: str, *, total: int | None, already: int = 0, unit: str = "rows") -> None:
            super().begin(what, total=total, already=already, unit=unit)
            turns.say()

        def tick(self) -> None:
            super().tick()
            turns.say(loss=self.counts.metrics["loss"])

    options: dict[str, Any] = {
        "data": said["data"],
        "model": said["model"],
        "output": said["output"],
        "qlora_rank": said["rank"],
        "batch_size": said["batch"],
        "micro_batch_size": said["micro"],
        "max_steps": said["steps"],
        "warmup_steps": 1,
        "learning_rate": RATE,
        "threads": said["threads"],
        "device": "cpu",
    }
    if "packed_length" in said:
        options |= {"packing": True, "max_length": said["packed_length"]}
    train(TrainSft.model_validate(options), Run(InTurns()))
    turns.end([step["tokens_read"] for step in events(Path(said["output"]))])


def theirs(said: dict[str, Any]) -> None:
    """Bare TRL, with the same settings."""
    import datasets
    import torch
    import transformers
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    turns = Turns()
    torch.set_num_threads(said["threads"])
    read: list[float] = [0.0]

    class InTurns(transformers.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs is not None and "loss" in logs:
                read.append(logs["num_tokens"])
                turns.say(loss=logs["loss"])

    packed: dict[str, Any] = {"max_length": None}
    if "packed_length" in said:
        packed = {"packing": True, "max_length": said["packed_length"]}
    tokenizer = transformers.AutoTokenizer.from_pretrained(said["model"])
    tokenizer.chat_template = TEMPLATE
    with open(said["data"], encoding="utf-8") as file:
        rows = datasets.Dataset.from_list([json.loads(line) for line in file])
    trainer = SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(said["model"], dtype=torch.float32),
        args=SFTConfig(
            output_dir=said["output"],
            assistant_only_loss=True,
            per_device_train_batch_size=said["micro"],
            gradient_accumulation_steps=said["batch"] // said["micro"],
            max_steps=said["steps"],
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            seed=0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **packed,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=said["rank"], lora_alpha=2 * said["rank"], target_modules="all-linear"
        )
        if said["rank"]
        else None,
        callbacks=[InTurns()],
    )
    turns.say()
    trainer.train()
    turns.end([after - before for before, after in itertools.pairwise(read)])


# ---- rows and figures ----------------------------------------------------------------------------------------------


def write_rows(path: Path, count: int, prompt: int, answer: int, *, even: bool = False) -> None:
    """Prompts and answers of real text, half as long to one and a half times as long as said; with `even`, as said."""
    chance = random.Random(5)
    text = "".join(file.read_text(encoding="utf-8", errors="ignore") for file in sources()[:300])
    place = 0

    def piece(characters: int) -> str:
        nonlocal place
        length = characters if even else chance.randint(characters // 2, characters * 3 // 2)
        place += length
        if place > len(text):
            raise ValueError(f"only {len(text):,} characters of text found")
        return text[place - length : place].strip() or "-"

    with open(path, "w", encoding="utf-8") as file:
        for _ in range(count):
            asked, said = piece(prompt), piece(answer)
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            file.write(json.dumps({"messages": messages}) + "\n")


def events(output: Path) -> list[dict[str, Any]]:
    """The steps in a run's metrics.jsonl."""
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "train_step"]


def summary(rounds: list[Steps]) -> dict[str, float]:
    """Medians of a step, and tokens per second over all of them."""
    steps = [step for each in rounds for step in each]
    return {
        "step_s": round(statistics.median(step["seconds"] for step in steps), 3),
        "step_cpu_s": round(statistics.median(step["cpu_s"] for step in steps), 3),
        "tokens_per_step": round(sum(step["tokens"] for step in steps) / len(steps), 1),
        "tokens_per_s": round(sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps), 2),
    }


def ratios(rounds: list[dict[str, Steps]], over: str, under: str) -> dict[str, Any]:
    """Tokens per second of one side over those of the other: the median of all pairs of steps, their range, and the
    same by CPU time."""
    pairs = [pair for each in rounds for pair in zip(each[over], each[under], strict=True)]

    def of(clock: str) -> list[float]:
        return sorted(
            first["tokens"] / first[clock] * other[clock] / other["tokens"] for first, other in pairs
        )  # fmt: skip

    wall, cpu = of("seconds"), of("cpu_s")
    return {
        "wall": round(statistics.median(wall), 3),
        "wall_range": [round(wall[0], 3), round(wall[-1], 3)],
        "cpu": round(statistics.median(cpu), 3),
        "pairs": len(pairs),
    }


def furthest(rounds: list[dict[str, Steps]]) -> float:
    """Greatest difference of two losses that ought to be the same."""
    return max(
        abs(first["loss"] - other["loss"])
        for each in rounds
        for steps in zip(*each.values(), strict=True)
        for first, other in itertools.pairwise(steps)
    )


def same_tokens(rounds: list[dict[str, Steps]]) -> bool:
    """Whether both sides read as many tokens in each step."""
    return all(len({step["tokens"] for step in steps}) == 1 for each in rounds for steps in zip(*each.values()))  # noqa: B905


if __name__ == "__main__":
    main()
