"""A whole report of 5 models x 10 tasks x 1,000 items: figures from items, plots, files; seconds and size.

    python -m tests.bench.bench_report

The items are invented (`tests/support/evaluation.py`), right and wrong with models of different strength.
"""

import argparse
import tempfile
import time
from pathlib import Path

from core.evaluation.comparison import compare
from core.evaluation.plots import draw_plots
from core.evaluation.report import write_report
from core.evaluation.results import Answered, Metric, Question, Sample, Scored
from tests.support.evaluation import large

from .harness import finish, load


def answered(samples: list[Sample]) -> list[Answered]:
    """The items of a report, as models give them."""
    found: list[Answered] = []
    for task in dict.fromkeys(sample.task for sample in samples):
        items = [sample for sample in samples if sample.task == task]
        questions = [Question(item.key, item.key, item.prompt, item.reference) for item in items]
        for model, scores in items[0].scores.items():
            scored = [
                Scored(Metric(name, primary=place == 0), [item.scores[model][name] for item in items])
                for place, name in enumerate(scores)
            ]
            found.append(Answered(model, task, questions, scored, [item.answers[model] for item in items]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    report, samples = large()
    samples = list(samples)
    models = answered(samples)
    with tempfile.TemporaryDirectory(prefix="report-bench-") as made:
        folder = Path(made)
        began = time.process_time()
        metrics = compare(report.models, models, 10_000, 0)
        compared = time.process_time() - began
        report.plots = draw_plots(report, folder / "plots")
        drawn = time.process_time() - began - compared
        write_report(folder, report, samples)
        whole = time.process_time() - began
        size = (folder / "report.html").stat().st_size / 1e6
    figures = {
        "items": len(samples),
        "metrics": len(metrics),
        "cpu_s": {"figures": round(compared, 2), "plots": round(drawn, 2), "all": round(whole, 2)},
        "html_mb": round(size, 2),
        "load": load(),
    }
    finish(figures | {"criteria": {"all < 10 s": whole < 10, "report.html < 5 MB": size < 5}})


if __name__ == "__main__":
    main()
