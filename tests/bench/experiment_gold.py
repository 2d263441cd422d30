"""What train_gold does to a real student, three seeds each: on-policy against off-policy, GOLD against ULD and SFT.

    python -m tests.bench.experiment_gold prepare            prompts, the teacher's answers, the students
    python -m tests.bench.experiment_gold same               lmbda 0, 0.5 and 1, one tokenizer
    python -m tests.bench.experiment_gold cross --steps 25   GOLD, ULD and SFT, the student in GPT-2's vocabulary
    python -m tests.bench.experiment_gold api --steps 12     the teacher here, behind a server (top-64), and probed
    python -m tests.bench.experiment_gold table              the table, from what has been run

Teacher: SmolLM2-135M-Instruct. Student: 24 of its 30 layers, by `make_student`. Prompts: the questions of MMLU's
development set that lm-eval's package carries (pip install --no-deps lm_eval), up to 300 characters, without their
choices. The last 40 are the test set; train_gold holds out a sixth of the others. A run that is there is not made
again, so `same`, `cross` and `api` may be stopped and started, or shared by two processes with other --seeds.

Everything is budgeted by steps. The test figures are measured in float32 after training, on answers of the teacher to
the test questions (as they were drawn, temperature 0.7, cut at 48 tokens) and on answers of the student's own.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ITEM = re.compile(r"(.*?)\n\(A\)\s+.*?\n.*", re.DOTALL)
TEST, LONGEST, TOKENS = 40, 300, 48
COMMON = [
    "--teacher=smollm2", "--batch-size=8", "--micro-batch-size=4", f"--max-new-tokens={TOKENS}",
    "--student-dtype=bfloat16", "--teacher-dtype=bfloat16", "--val-fraction=0.16", "--val-max-samples=24",
    "--learning-rate=3e-4", "--patience=0", "--save-every=100000", "--progress=lines",
]  # fmt: skip


def prepare(work: Path, threads: int) -> None:
    """Questions, answers of the teacher, and the two students."""
    questions = [question for question in mmlu_questions() if len(question) <= LONGEST]
    work.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", questions[:-TEST]), ("test", questions[-TEST:])):
        source = work / f"{name}-questions.jsonl"
        source.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in some), encoding="utf-8")
        script(
            "generate_teacher_data.py", "-i", source, "-o", work / f"{name}.jsonl", "-m", "smollm2",
            "--dtype", "bfloat16", "--batch-size", 16, "--max-tokens", 64, "--temperature", 0.7, "--seed", 0,
            "--no-drop-truncated", "--threads", threads,
        )  # fmt: skip
    if not (work / "student").is_dir():
        script("make_student.py", "smollm2", "-o", work / "student", "--layers", 24)
    if not (work / "student-gpt2").is_dir():
        from tests.support.tokenizers import tokenizer_folder

        script(
            "make_student.py", work / "student", "-o", work / "student-gpt2", "--tokenizer", tokenizer_folder("gpt2")
        )


def mmlu_questions() -> list[str]:
    """The questions of MMLU's development set, without their choices, by subject."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("lm_eval is not installed: pip install --no-deps lm_eval")
    path = Path(spec.submodule_search_locations[0]) / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
    prompts = json.loads(path.read_text(encoding="utf-8"))
    blocks = [block for text in prompts.values() for block in re.split(r"(?m)^Q: ", text)[1:]]
    return [found.group(1).strip() for block in blocks if (found := ITEM.fullmatch(block))]


def script(name: str, *arguments: Any) -> None:
    """Run one of the project's scripts to its end."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)], check=True)


def train(work: Path, name: str, student: str, seed: int, steps: int, threads: int, *more: str) -> None:
    """One run, and what its last weights do on the test set; into NAME-SEED.json."""
    report, output = work / f"{name}-{seed}.json", work / "runs" / f"{name}-{seed}"
    trained = work / "runs" / f"{name}-{seed}.json"
    if report.is_file():
        return
    command = [
        sys.executable, str(ROOT / "scripts" / "train_gold.py"), "--json", "--overwrite", f"--data={work}/train.jsonl",
        f"--output={output}", f"--student={work / student}", f"--seed={seed}", f"--max-steps={steps}",
        f"--eval-every={steps // 2}", f"--threads={threads}",
        *(each for each in COMMON if name_of(each) not in map(name_of, more)), *more,
    ]  # fmt: skip
    if not trained.is_file():
        began, load = time.time(), os.getloadavg()[0]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        about = {"load": load, "wall_s": time.time() - began}
        trained.write_text(json.dumps(json.loads(done.stdout) | {"about": about}), encoding="utf-8")
    result = json.loads(trained.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"name": name, "seed": seed, "steps": steps, **result["about"]}
    found["validation"] = {"before": result["before"], "after": result["after"]}
    found["phases"], found["requests"] = result["phases"], result.get("requests") or 0
    found["test"] = {
        "before": measured(work, work / student, threads),
        "after": measured(work, output / "final", threads),
    }
    report.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps({"name": name, "seed": seed, "after": found["test"]["after"]}))


def name_of(option: str) -> str:
    """
    >>> name_of("--seed=1")
    '--seed'
    """
    return option.partition("=")[0]


def measured(work: Path, folder: Path, threads: int) -> dict[str, float]:
    """A student on the test set, by the validation of train_gold in float32; kept beside it for the next run."""
    kept = work / f"measured-{folder.parent.name}-{folder.name}.json"
    if folder.parent == work and kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "tests.bench.experiment_gold", "measure", "--work", str(work)]
    done = subprocess.run(
        [*command, "--folder", str(folder), "--threads", str(threads)],
        check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    kept.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def measure(work: Path, folder: Path, threads: int) -> None:
    """Print the measures of a student on the test set as one line of JSON."""
    from core.commands.train_gold import TrainGold
    from core.data.stop import Stop
    from core.teachers.scorer import open_scorer
    from core.training.samples import read_samples
    from core.training.score_signal import ScoreSignal
    from core.training.student import load_student
    from core.training.validation import figures, validate
    from core.training.world import World

    options = TrainGold(
        data=str(work / "test.jsonl"), output=work / "unused", student=str(folder), teacher="smollm2",
        max_new_tokens=TOKENS, val_fraction=0.0, threads=threads, seed=12345, device="cpu",
    )  # fmt: skip
    world = World(options)
    scorer = open_scorer(options.teacher_options("cpu", "sdpa"))
    scorer.prepare(lambda text: None)
    student = load_student(options, world.device, lambda text: None)
    signal = ScoreSignal(options, student.side, student.head, scorer)
    contexts = student.context_tokens, scorer.context_tokens
    samples = read_samples(options, student.side, signal.teacher_side, *contexts, lambda text: None)
    found = validate(student, signal, samples.train, options, contextlib.nullcontext, Stop())
    print(json.dumps(figures(found, options) | {"n": len(samples.train)}))


def table(work: Path) -> None:
    """Means of the seeds and their range, as Markdown."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(work.glob("*-[0-9]*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "test" in found:
            runs.setdefault(found["name"], []).append(found)
    for title, names, shown in (
        ("One tokenizer", ("lmbda0", "lmbda0.5", "lmbda1"), SAME),
        ("Across tokenizers", ("gold", "gold-span", "uld", "sft"), CROSS),
        ("A teacher behind an API", ("local", "server-64", "probe-8"), SAME),
    ):
        there = [name for name in names if name in runs]
        if not there:
            continue
        print(f"\n{title} ({', '.join(f'{name}: n = {len(runs[name])}' for name in there)})\n")
        print("| test set | before | " + " | ".join(there) + " |\n|---|---|" + "---|" * len(there))
        for name in shown:
            before = statistics.mean(run["test"]["before"][name] for run in runs[there[0]])
            cells = [spread([run["test"]["after"][name] for run in runs[each]]) for each in there]
            print(f"| {name} | {before:.3f} | " + " | ".join(cells) + " |")
        if "local" in there:
            kept = {each: statistics.mean(change(run) for run in runs[each]) for each in there}
            print(
                "| share of local's change | | "
                + " | ".join(f"{kept[each] / kept['local']:.0%}" for each in there)
                + " |"
            )
            print(
                "| requests | | " + " | ".join(spread([run["requests"] for run in runs[each]]) for each in there) + " |"
            )
        print(
            "| change of val_kl | | " + " | ".join(spread([change(run) for run in runs[each]]) for each in there) + " |"
        )
        for what, select in (
            ("val_kl on the held-out sixth", lambda run: run["validation"]["after"].get("val_kl", float("nan"))),
            ("CPU seconds, all", lambda run: cpu_seconds(run)),
            ("of it, generating", lambda run: cpu_seconds(run, "generate")),
        ):
            print(f"| {what} | | " + " | ".join(spread([select(run) for run in runs[each]]) for each in there) + " |")


SAME = (
    "val_kl", "val_reverse_kl", "val_top1_agreement", "own_kl", "own_reverse_kl", "own_top1_agreement",
    "own_length", "own_truncated", "own_repetition",
)  # fmt: skip
CROSS = (
    "val_bits_per_byte", "val_kl", "val_top1_agreement", "own_teacher_bits_per_byte", "own_bits_per_byte",
    "own_reverse_kl", "own_length", "own_truncated", "own_repetition",
)  # fmt: skip


def change(run: dict[str, Any]) -> float:
    """Of KL(teacher || student) on the test set, as a share of what it was before."""
    before, after = (run["test"][when].get("val_kl", float("nan")) for when in ("before", "after"))
    return after / before - 1.0


def cpu_seconds(run: dict[str, Any], phase: str | None = None) -> float:
    """Of a run's training with its validations, or of one phase."""
    return sum(spent["cpu_seconds"] for name, spent in run["phases"].items() if phase in (None, name))


def spread(values: list[float]) -> str:
    """'0.45 (0.43-0.47)'."""
    digits = 0 if max(map(abs, values)) > 100 else 3
    mean = f"{statistics.mean(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "same", "cross", "api", "table", "measure"])
    parser.add_argument("--work", type=Path, default=Path("runs/experiment"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="of the runs, by name")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    work, steps, threads = options.work.absolute(), options.steps, options.threads
    if options.what == "prepare":
        prepare(work, threads)
    elif options.what == "table":
        table(work)
    elif options.what == "measure":
        measure(work, options.folder, threads)
    else:
        with teacher_server(threads) if options.what == "api" else contextlib.nullcontext("") as url:
            for seed in options.seeds:
                for name, student, more in RUNS[options.what]:
                    if not options.only or name in options.only:
                        train(work, name, student, seed, steps, threads, *(each.format(url=url) for each in more))


@contextlib.contextmanager
def teacher_server(threads: int) -> Iterator[str]:
    """SmolLM2 behind vLLM's wire formats, in a process of its own; its URL."""
    command = [sys.executable, "-m", "tests.support.scoring_server", "--model", "smollm2", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--prefill", "flags", "--max-logprobs", "64", "--threads", str(threads)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert server.stdout is not None
        address = re.search(r"127\.0\.0\.1:\d+", server.stdout.readline())
        assert address is not None
        yield f"http://{address.group()}/v1"
    finally:
        server.terminate()
        server.wait()


ON_SERVER = [
    "--lmbda=0.5", "--freeze-embeddings", "--beta=0", "--val-fraction=0", "--teacher-backend=vllm",
    "--teacher-base-url={url}", "--teacher-tokenizer=smollm2", "--no-score-cache", "--teacher-concurrency=8",
    "--teacher-batch-size=8", "--teacher-timeout=600",
]  # fmt: skip
RUNS: dict[str, list[tuple[str, str, list[str]]]] = {
    "same": [
        (f"lmbda{lmbda}", "student", [f"--lmbda={lmbda}", "--freeze-embeddings", "--beta=0"]) for lmbda in (0, 0.5, 1)
    ],
    "api": [
        ("local", "student", ON_SERVER[:4]),
        ("server-64", "student", [*ON_SERVER, "--teacher-mode=score", "--teacher-top-k=64"]),
        ("probe-8", "student", [*ON_SERVER, "--teacher-mode=probe", "--probe-positions=8"]),
    ],
    "cross": [
        ("gold", "student-gpt2", ["--lmbda=0", "--loss=gold", "--beta=0"]),
        ("gold-span", "student-gpt2", ["--lmbda=0", "--loss=gold", "--beta=0", "--merged=span"]),
        ("uld", "student-gpt2", ["--lmbda=0", "--loss=uld"]),
        ("sft", "student-gpt2", ["--lmbda=0", "--lambda-kd=0", "--lambda-sft=1"]),
    ],
}


if __name__ == "__main__":
    main()
