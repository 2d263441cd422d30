"""Presets of tasks, and tasks by name."""

import subprocess
import sys

import pytest

from core.commands.evaluate import SUITES, Evaluate
from core.errors import MissingDependency
from core.evaluation import suites
from core.evaluation.suites import Selected, nearest, offline_tasks, selected, tasks_of
from tests.support.running import ROOT


def names(**options: object) -> list[str]:
    return [one.task for one in selected(Evaluate(student="student", **options))]  # pyright: ignore[reportArgumentType]


def test_the_offline_suite_is_the_default_and_tells_what_it_is_no_measure_of() -> None:
    chosen = {one.task: one for one in selected(Evaluate(student="student"))}
    assert list(chosen) == ["mmlu_dev", "small_sums", "word_forms"]
    assert all(one.suite == "offline" for one in chosen.values())
    assert "not MMLU" in chosen["mmlu_dev"].about
    assert "no measure of mathematics" in chosen["small_sums"].about


def test_named_tasks_or_data_replace_the_default() -> None:
    assert selected(Evaluate(student="student", tasks=["my_task"])) == [Selected("my_task", None, "")]
    assert names(data="test.jsonl") == []
    assert names(data="test.jsonl", suite=["offline"]) == list(offline_tasks())


def test_presets_hold_the_tasks_that_their_names_promise() -> None:
    assert names(suite=["opd"]) == ["arc_easy", "arc_challenge", "hellaswag", "truthfulqa_mc1", "truthfulqa_mc2"]
    assert names(suite=["reasoning"]) == ["gsm8k", "ifeval"]
    assert all(about for suite in SUITES for about in tasks_of(suite).values())


def test_a_task_of_a_suite_that_is_named_too_runs_once_and_stays_with_its_suite() -> None:
    chosen = selected(Evaluate(student="student", suite=["reasoning", "offline"], tasks=["small_sums", "piqa"]))
    assert [one.task for one in chosen] == ["gsm8k", "ifeval", "mmlu_dev", "small_sums", "word_forms", "piqa"]
    assert [one.suite for one in chosen][-2:] == ["offline", None]


def test_a_task_of_ours_keeps_its_line_where_it_is_named_without_its_suite() -> None:
    (one,) = selected(Evaluate(student="student", tasks=["small_sums"]))
    assert one == Selected("small_sums", None, offline_tasks()["small_sums"])


@pytest.mark.parametrize("options", [{"suite": ["reasoning"]}, {"tasks": ["ifeval"]}])
def test_ifeval_without_its_packages_names_them_and_the_line_that_installs_them(
    options: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "IFEVAL_NEEDS", ("json", "no_such_package"))
    with pytest.raises(MissingDependency, match=r"ifeval needs the package no_such_package.*doctor.py --install eval"):
        names(**options)
    assert names(suite=["offline"])


def test_the_nearest_names_come_first_whatever_their_case() -> None:
    known = ["arc_easy", "arc_challenge", "hellaswag", "IFEval"]
    assert nearest("arc_eazy", known)[0] == "arc_easy"
    assert nearest("ifeval", known) == ["IFEval"]
    assert nearest("HellaSwag", known) == ["hellaswag"]
    assert nearest("zzz", known) == []


def test_choosing_tasks_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from core.commands.evaluate import Evaluate\n"
        "from core.evaluation.suites import selected\n"
        "assert len(selected(Evaluate(student='s'))) == 3\n"
        "assert not {'torch', 'lm_eval', 'datasets', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
