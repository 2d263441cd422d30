"""A small version of tests/bench/crash_test.py, whose docstring explains it."""

import json
from pathlib import Path

from tests.bench.crash_test import crash_test


def test_a_run_killed_at_random_moments_loses_nothing_doubles_nothing_and_pays_little_twice(tmp_path: Path) -> None:
    report = crash_test(tmp_path, prompts=200, samples=3, kills=3, concurrency=40)
    assert all(report["criteria"].values()), json.dumps(report, indent=1)
