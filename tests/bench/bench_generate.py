"""Speed of generate_teacher_data against a mock API, side by side with a bare aiohttp loop and, on request, curator.

    python -m tests.bench.bench_generate [--repeat 3] [--scenario small|large|all] [--curator PYTHON]

Wall time is the mock's own, from the first request to the last answer, over the ideal: N x latency / concurrency.
CPU is that of the whole process, per request; `net` is without start-up: the same command with --dry-run (ours,
so that the first reading of the prompts counts as start-up), or with no prompt (bare), or with one (curator).
Prints one JSON report with medians and criteria, and leaves with 0 when all hold.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .harness import Mock, Used, finish, generate, load, measure, medians, mock_server, succeeded, write_prompts

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Scenario:
    """latency_s: of every answer.   most_wall: allowed wall time, in ideals."""

    name: str
    latency_s: float
    prompts: int
    concurrency: int
    most_wall: float

    @property
    def ideal_s(self) -> float:
        return self.prompts * self.latency_s / self.concurrency


SCENARIOS = (
    Scenario("small", 0.2, 2_000, 100, 1.15),
    Scenario("large", 1.0, 5_000, 500, 1.25),
)


def one_round(scenario: Scenario, mock: Mock, folder: Path, curator: str | None) -> dict[str, float]:
    """Every client once."""
    prompts = write_prompts(folder / "prompts.jsonl", scenario.prompts)
    concurrency = str(scenario.concurrency)
    row: dict[str, float] = {"load_before": load()}

    def note(name: str, start_up: Used, used: Used) -> None:
        stats = mock.stats()
        row[name + "_wall_over_ideal"] = stats["span_s"] / scenario.ideal_s
        row[name + "_cpu_ms"] = 1000 * used.cpu_s / scenario.prompts
        row[name + "_cpu_ms_net"] = 1000 * (used.cpu_s - start_up.cpu_s) / scenario.prompts
        row[name + "_rss_mb"] = used.rss / 1e6
        row[name + "_requests"] = stats["requests"]

    bare = [sys.executable, HERE / "bare.py", mock.base_url]
    nothing = write_prompts(folder / "nothing.jsonl", 0)
    start_up = succeeded(measure([*bare, nothing, concurrency], folder))
    mock.reset()
    note("bare", start_up, succeeded(measure([*bare, prompts, concurrency], folder)))

    ours = generate(prompts, folder / "train.jsonl", mock.base_url, "--concurrency", concurrency, "--overwrite")
    start_up = succeeded(measure([*ours, "--dry-run"], folder))
    mock.reset()
    note("ours", start_up, succeeded(measure(ours, folder)))

    if curator:
        theirs = [curator, HERE / "curator_client.py", mock.base_url]
        home = Path(tempfile.mkdtemp(dir=folder))
        one = write_prompts(folder / "one.jsonl", 1)
        start_up = succeeded(measure([*theirs, one, concurrency, home], folder))
        mock.reset()
        note("curator", start_up, succeeded(measure([*theirs, prompts, concurrency, home], folder)))
    return row


def criteria(scenario: Scenario, figures: dict[str, float]) -> dict[str, bool]:
    """What has to hold for the medians."""
    name = scenario.name
    found = {
        f"{name}: first to last request <= {scenario.most_wall} x ideal": (
            figures["ours_wall_over_ideal"] <= scenario.most_wall
        ),
        f"{name}: every prompt asked once": figures["ours_requests"] == scenario.prompts,
    }
    for kind in ("cpu_ms", "cpu_ms_net"):
        most = 1.5 * figures["bare_" + kind] + 0.3
        found[f"{name}: {kind} per request <= 1.5 x bare + 0.3"] = figures["ours_" + kind] <= most
    if "curator_cpu_ms" in figures:
        found[f"{name}: cpu_ms <= a fifth of curator's"] = figures["ours_cpu_ms"] <= figures["curator_cpu_ms"] / 5
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scenario", choices=[s.name for s in SCENARIOS] + ["all"], default="all")
    parser.add_argument("--curator", metavar="PYTHON", help="an interpreter that has bespokelabs-curator")
    options = parser.parse_args()
    report: dict[str, Any] = {"criteria": {}}
    for scenario in SCENARIOS:
        if options.scenario not in (scenario.name, "all"):
            continue
        rounds: list[dict[str, float]] = []
        with mock_server("--latency", f"fixed:{scenario.latency_s}") as mock:
            for _ in range(options.repeat):
                with tempfile.TemporaryDirectory() as folder:
                    rounds.append(one_round(scenario, mock, Path(folder), options.curator))
                print(scenario.name, {k: round(v, 3) for k, v in rounds[-1].items()}, file=sys.stderr, flush=True)
        figures = medians(rounds)
        report[scenario.name] = figures
        report["criteria"] |= criteria(scenario, figures)
    report["load_after"] = load()
    finish(report)


if __name__ == "__main__":
    main()
