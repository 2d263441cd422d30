"""Most memory of a LoRA run of `train_gold` with SmolLM2-135M twice: as the teacher, and a copy of it as the student.

    python -m tests.bench.bench_train_memory

The command runs as a process of its own, with its defaults but for --lora, one thread and few steps: batches of 8,
micro-batches of 4, answers of up to 128 tokens, half of them the student's own; validation before the first step and
after the last, and checkpoints. The figure is ru_maxrss of that process, in float32 on the CPU. It grows with the
prompts, which have about 100 tokens here. Needs 0.6 GB of temporary files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from .harness import ROOT, finish, load, measure, succeeded
from .trl_gold_peer import sources

LIMIT_GB = 4.0
PROMPT, ANSWER = 300, 600
"""Characters of a prompt and of an answer, about 100 and 200 tokens: answers are cut to --max-new-tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rows", type=int, default=80, help="of them a tenth is held out")
    parser.add_argument("--tokens", type=int, default=128, help="longest answer")
    parser.add_argument("--threads", type=int, default=1, help="more of them than free cores take far longer")
    parser.add_argument("--copy-to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.copy_to:
        copy_smollm2(options.copy_to)
        return
    with tempfile.TemporaryDirectory(prefix="memory-bench-") as made:
        folder = Path(made)
        # In another process: the libraries that convert the model would count for the run as well (see `Used`).
        again = [sys.executable, "-m", "tests.bench.bench_train_memory", "--copy-to", str(folder / "student")]
        subprocess.run(again, cwd=ROOT, check=True, stdout=sys.stderr)
        write_rows(folder / "rows.jsonl", options.rows)
        command = [sys.executable, str(ROOT / "scripts" / "train_gold.py"), "--data", "rows.jsonl", "--output", "run"]
        command += ["--student", str(folder / "student"), "--teacher", "smollm2", "--lora", "--device", "cpu"]
        command += ["--max-steps", str(options.steps), "--max-new-tokens", str(options.tokens)]
        command += ["--threads", str(options.threads)]
        used = succeeded(measure(command, folder))
    report = {
        "peak_gb": round(used.rss / 1e9, 3),
        "wall_s": round(used.wall_s, 1),
        "cpu_s": round(used.cpu_s, 1),
        "load": load(),
        "output": used.output.splitlines()[-12:],
    }
    finish(report | {"criteria": {f"peak < {LIMIT_GB:g} GB": used.rss < LIMIT_GB * 1e9}})


def copy_smollm2(target: Path) -> None:
    """SmolLM2 in the Hugging Face layout (float32), converted if nobody has yet."""
    import shutil

    from core.teachers.hf_model import hf_folder
    from core.teachers.locate import locate

    shutil.copytree(hf_folder(locate("smollm2", gguf=False)), target)


def write_rows(path: Path, count: int) -> None:
    """Prompts and answers of real text."""
    size = PROMPT + ANSWER
    text = "".join(file.read_text(encoding="utf-8", errors="ignore") for file in sources()[:200])
    if len(text) < size * count:
        raise ValueError(f"only {len(text) // size} of {count} rows found")
    parts = [text[start : start + size] for start in range(0, size * count, size)]
    rows = [{"prompt": part[:PROMPT], "response": part[PROMPT:]} for part in parts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
