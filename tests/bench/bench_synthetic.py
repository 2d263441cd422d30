"""Speed and memory of generate_synthetic against a mock API, next to generate_teacher_data.

    python -m tests.bench.bench_synthetic [--repeat 3] [--records 20000] [--latency fixed:0.2]

Speed: 1,000 records of one turn, so two requests each, one after the other; answers of 100 tokens after 200 ms, 100 at
once. generate_teacher_data asks as many requests of the same server, in turns. Wall time is the server's own, from the
first request to the last answer, over the ideal: requests x latency / concurrency. CPU is that of the whole process,
per request; `net` is without start-up: the same command for one record (one prompt).
At a fixed latency all answers come at once, and everybody waits until the last of them has been judged.
Memory: peak of a run over --records at no latency above one over 1,000, divided by the records between them;
of a resume too, whose start is smaller, because what was judged before needs no language model.
Resume: the same command again over a folder that is complete, and once more over one whose data set is to be made anew
from its paid answers alone. CPU per answer, without start-up.
Prints one JSON report with medians and criteria, and leaves with 0 when all hold.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from .experiment_synthetic import asked_domain
from .harness import (
    MODEL,
    ROOT,
    Mock,
    Used,
    finish,
    generate,
    load,
    measure,
    medians,
    mock_server,
    succeeded,
    write_prompts,
)

SCRIPT = ROOT / "scripts" / "generate_synthetic.py"
SERVER = ("-m", "tests.bench.asking_mock")
RECORDS, LATENCY_S, CONCURRENCY = 1_000, 0.2, 100
MOST_WALL = 1.15
MOST_BYTES = 1_200
"""A record: 1 kB is what the search for near duplicates may take of each question."""


def synthesize(domain: Path, output: Path, mock: Mock, records: int, concurrency: int, *more: str) -> list[str]:
    """The command line."""
    command = [sys.executable, str(SCRIPT), "--num-records", str(records), "--output-dir", str(output)]
    command += ["--domain", str(domain), "--base-url", mock.base_url, "--model", MODEL]
    return [*command, "--concurrency", str(concurrency), *more]


def write_domain(folder: Path) -> Path:
    """The preset `general`, with one question a record, and none whose answer is checked."""
    path = folder / "domain.yml"
    path.write_text(json.dumps(asked_domain().model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return path


def speed(mock: Mock, folder: Path) -> dict[str, float]:
    """Both commands once."""
    requests = 2 * RECORDS
    row: dict[str, float] = {"load_before": load()}

    def note(name: str, start_up: Used, used: Used) -> None:
        stats = mock.stats()
        row[name + "_wall_over_ideal"] = stats["span_s"] / (requests * LATENCY_S / CONCURRENCY)
        row[name + "_requests"] = stats["requests"]
        row[name + "_cpu_ms"] = 1000 * used.cpu_s / requests
        row[name + "_cpu_ms_net"] = 1000 * (used.cpu_s - start_up.cpu_s) / requests

    def once(command: list[str]) -> Used:
        mock.reset()
        return succeeded(measure(command, folder))

    def teacher_data(prompts: int) -> list[str]:
        path, output = write_prompts(folder / f"{prompts}.jsonl", prompts), folder / f"{prompts}.train.jsonl"
        return generate(path, output, mock.base_url, "--concurrency", str(CONCURRENCY))

    domain = write_domain(folder)
    note("teacher_data", once(teacher_data(1)), once(teacher_data(requests)))
    one = synthesize(domain, folder / "one", mock, 1, CONCURRENCY)
    note("synthetic", once(one), once(synthesize(domain, folder / "all", mock, RECORDS, CONCURRENCY)))
    return row


def memory(mock: Mock, folder: Path, records: int) -> dict[str, Any]:
    """Of a long run next to a short one, and what it takes to go on with its folder."""
    domain = write_domain(folder)
    row: dict[str, Any] = {"records": records}

    def run(count: int) -> tuple[Used, Used, Used]:
        """(made, again, made anew of the paid answers)."""
        output = folder / str(count)
        command = synthesize(domain, output, mock, count, 64)
        made = succeeded(measure(command, folder))
        mock.reset()
        again = succeeded(measure(command, folder))
        before = (output / "train.jsonl").read_bytes()
        for path in output.iterdir():
            if path.name not in ("paid_answers.jsonl", "run.json"):
                path.unlink()
        anew = succeeded(measure(command, folder))
        row[f"requests_of_resumes_{count}"] = mock.stats()["requests"]
        row[f"same_{count}"] = (output / "train.jsonl").read_bytes() == before
        shutil.rmtree(output)
        return made, again, anew

    (small, small_again, small_anew), (made, again, anew) = run(RECORDS), run(records)
    more = records - RECORDS
    return row | {
        "seconds": round(made.wall_s, 1),
        "records_per_s": round(records / made.wall_s),
        "cpu_ms_per_request": round(1000 * (made.cpu_s - small.cpu_s) / (2 * more), 3),
        "rss_mb": [round(used.rss / 1e6, 1) for used in (small, made)],
        "bytes_per_record": round((made.rss - small.rss) / more),
        "bytes_per_record_of_a_resume": round((again.rss - small_again.rss) / more),
        "resume_cpu_ms_per_answer": round(1000 * (again.cpu_s - small_again.cpu_s) / (2 * more), 3),
        "anew_cpu_ms_per_answer": round(1000 * (anew.cpu_s - small_anew.cpu_s) / (2 * more), 3),
        "resume_s": round(again.wall_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--latency", default=f"fixed:{LATENCY_S}", help=f"as the mock takes it, of {LATENCY_S} s on average"
    )
    parser.add_argument("--records", type=int, default=20_000, help="of the run whose memory is measured; 0: none")
    options = parser.parse_args()
    report: dict[str, Any] = {"criteria": {}}
    if options.repeat:
        rounds: list[dict[str, float]] = []
        with mock_server("--latency", options.latency, server=SERVER) as mock:
            for _ in range(options.repeat):
                with tempfile.TemporaryDirectory() as folder:
                    rounds.append(speed(mock, Path(folder)))
                print({name: round(value, 3) for name, value in rounds[-1].items()}, file=sys.stderr, flush=True)
        found = medians(rounds)
        report["speed"] = found | {
            f"ratio_of_{kind}": round(found[f"synthetic_{kind}"] / found[f"teacher_data_{kind}"], 2)
            for kind in ("wall_over_ideal", "cpu_ms", "cpu_ms_net")
        }
        report["criteria"] |= {
            f"first to last request <= {MOST_WALL} x ideal": found["synthetic_wall_over_ideal"] <= MOST_WALL,
            "two requests a record": found["synthetic_requests"] == 2 * RECORDS,
        }
    if options.records:
        with mock_server("--latency", "fixed:0", server=SERVER) as mock, tempfile.TemporaryDirectory() as folder:
            found = report["memory"] = memory(mock, Path(folder), options.records)
        report["criteria"] |= {
            f"<= {MOST_BYTES} bytes a record": found["bytes_per_record"] <= MOST_BYTES,
            "a resume asks nothing": found[f"requests_of_resumes_{options.records}"] == 0,
            "the same data set from the paid answers": found[f"same_{options.records}"],
        }
    report["load_after"] = load()
    finish(report)


if __name__ == "__main__":
    main()
