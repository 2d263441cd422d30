"""Memory of generate_teacher_data over many prompts, and the cost of resuming a big file.

    python -m tests.bench.bench_memory [--prompts 1000000] [--seconds 180] [--resume 1000000]

Growth: as many of --prompts as --seconds allow, against a mock that answers at once. What counts is the peak memory of
that run above a run over 1,000 prompts, divided by the prompts.
Resume: an output with --resume rows is written (with the keys that a run would give them), and the same command runs
over it. It must ask for nothing, read the output once, and remember at most 64 bytes a row.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .harness import ROOT, Mock, finish, generate, load, measure, mock_server, succeeded, write_prompts

SMALL, PILOT = 1_000, 20_000
MOST_GROWTH, MOST_RESUME = 100, 64
CONCURRENCY = ("--concurrency", "64")


def growth(mock: Mock, folder: Path, prompts: int, seconds: float) -> dict[str, Any]:
    """Peak memory of a long run against that of a short one."""

    def run(count: int, most_s: float | None = None) -> tuple[float, int, int]:
        """(seconds, peak memory, rows) of a run over so many prompts."""
        path = write_prompts(folder / f"{count}.jsonl", count)
        output = folder / f"{count}.out.jsonl"
        command = generate(path, output, mock.base_url, *CONCURRENCY)
        used = succeeded(measure(command, folder, interrupt_after_s=most_s), 0, 130)
        rows = count_lines(output)
        output.unlink()
        return used.wall_s, used.rss, rows

    _, small_rss, _ = run(SMALL)
    pilot_s, pilot_rss, _ = run(PILOT)
    count = min(prompts, int(0.95 * seconds * PILOT / pilot_s))
    wall_s, rss, rows = run(count, 1.5 * seconds)
    return {
        "prompts": count,
        "rows": rows,
        "seconds": round(wall_s, 1),
        "answers_per_s": round(rows / wall_s),
        "rss_mb_1000": round(small_rss / 1e6, 1),
        "rss_mb_20000": round(pilot_rss / 1e6, 1),
        "rss_mb": round(rss / 1e6, 1),
        "bytes_per_prompt": round((rss - small_rss) / max(1, rows), 1),
    }


def resume(mock: Mock, folder: Path, count: int) -> dict[str, Any]:
    """Memory, time and reading of a run that finds everything done."""

    def run(rows: int) -> tuple[Path, Any]:
        prompts, output = write_prompts(folder / f"{rows}.jsonl", rows), folder / f"{rows}.done.jsonl"
        # In a process of its own: this one's memory would count into the peak of what it starts.
        command = [sys.executable, "-m", "tests.bench.bench_memory", "--write", prompts, output, mock.base_url]
        subprocess.run(command, cwd=ROOT, check=True)
        size = output.stat().st_size
        used = succeeded(measure(generate(prompts, output, mock.base_url, *CONCURRENCY), folder))
        if output.stat().st_size != size:
            raise RuntimeError("the run over a complete output added to it")
        return output, used

    _, small = run(SMALL)
    mock.reset()
    output, used = run(count)
    requests = mock.stats()["requests"]
    prompts_size = (folder / f"{count}.jsonl").stat().st_size
    return {
        "rows": count,
        "file_mb": round(output.stat().st_size / 1e6, 1),
        "seconds": round(used.wall_s, 1),
        "cpu_s": round(used.cpu_s, 1),
        "bytes_per_row": round((used.rss - small.rss) / count, 1),
        "requests": requests,
        "read_over_output_and_input": round((used.read - small.read) / (output.stat().st_size + prompts_size), 3),
    }


def count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def write_output(prompts: Path, output: Path, base_url: str) -> None:
    """The output of a run over `prompts` that has answered them all."""
    import orjson

    from core.commands.generate_teacher_data import GenerateTeacherData
    from core.data.prompts import BadRow, PromptOptions, open_prompts
    from core.data.run import Run
    from core.generation.generate import Generation
    from core.teachers import open_teacher

    from .harness import MODEL

    options = GenerateTeacherData.model_validate(
        {"input": str(prompts), "output": output, "base_url": base_url, "model": MODEL}
    )
    text = "The model answers with plain words so that a student may learn from them. " * 8
    usage = {"prompt_tokens": 20, "completion_tokens": 100, "reasoning_tokens": 0}
    with open_prompts(options.input, PromptOptions()) as read, open(output, "wb") as file:
        generation = Generation(options, Run(), open_teacher(options), read)
        for prompt, occurrence in generation.rows():
            assert not isinstance(prompt, BadRow)
            for work in generation.works(prompt, occurrence):
                metadata = {"teacher": MODEL, "id": work.key, "index": prompt.index, "sample": work.sample}
                metadata |= {"finish_reason": "stop", "usage": usage, "cost": 0.0016, "reasoning": ""}
                messages = [*prompt.messages, {"role": "assistant", "content": text}]
                file.write(orjson.dumps({"messages": messages, "metadata": metadata}) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--resume", type=int, default=1_000_000)
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        prompts, output, base_url = options.write
        return write_output(Path(prompts), Path(output), base_url)
    report: dict[str, Any] = {"load_before": load(), "criteria": {}}
    with mock_server("--latency", "fixed:0") as mock, tempfile.TemporaryDirectory() as folder:
        if options.resume:
            found = report["resume"] = resume(mock, Path(folder), options.resume)
            report["criteria"] |= {
                f"resume: <= {MOST_RESUME} bytes a row": found["bytes_per_row"] <= MOST_RESUME,
                "resume: nothing asked": found["requests"] == 0,
                # The input is read once too; 0 where the system does not count.
                "resume: the output read once": found["read_over_output_and_input"] < 1.1,
            }
        if options.prompts:
            found = report["growth"] = growth(mock, Path(folder), options.prompts, options.seconds)
            report["criteria"] |= {
                f"growth: < {MOST_GROWTH} bytes a prompt": found["bytes_per_prompt"] < MOST_GROWTH,
                "growth: every prompt answered": found["rows"] == found["prompts"],
            }
    report["load_after"] = load()
    finish(report)


if __name__ == "__main__":
    main()
