"""`scripts/run_eval.sh` as people call it: keys in the environment and in .env, from a folder of their own."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.support.running import ROOT, Outcome, environment
from tests.support.training import make_models

RUN_EVAL = ROOT / "scripts" / "run_eval.sh"


def bash(folder: Path, *command: str | Path, **env: str) -> Outcome:
    ended = subprocess.run(
        ["bash", *command],
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def python_that_tells(path: Path, name: str) -> None:
    """A stand-in for Python that prints its own name and its arguments, and ends with 7."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@"\nexit 7\n', encoding="utf-8")
    path.chmod(0o755)


def test_it_takes_the_bundle_s_own_python_or_else_python3_and_passes_everything_on(folder: Path) -> None:
    bundle, path = folder / "a bundle", folder / "bin"
    (bundle / "scripts").mkdir(parents=True)
    shutil.copy(RUN_EVAL, bundle / "scripts")
    python_that_tells(path / "python3", "other")
    env = {"PATH": f"{path}:{os.environ['PATH']}", "CDPATH": str(folder)}
    call = ("a bundle/scripts/run_eval.sh", "--name", "two words", "")
    passed_on = [str(bundle / "scripts/evaluate.py"), "--name", "two words", ""]
    assert bash(folder, *call, **env) == Outcome(7, "\n".join(["other", *passed_on, ""]), "")
    python_that_tells(bundle / ".venv/bin/python", "own")
    assert bash(folder, *call, **env) == Outcome(7, "\n".join(["own", *passed_on, ""]), "")


def test_keys_in_the_environment_and_in_dotenv_are_enough_for_a_report(folder: Path) -> None:
    make_models(folder)
    keys = {"BASE_MODEL_ID": "student", "EVAL_TASKS": "small_sums,mmlu_dev", "EVAL_OUTPUT_DIR": "found"}
    (folder / ".env").write_text("".join(f"{key}={value}\n" for key, value in keys.items()), encoding="utf-8")
    env = {"KD_MODEL_PATH": "teacher", "EVAL_MAX_SAMPLES": "4"}
    env |= {"HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONWARNDEFAULTENCODING": ""}
    outcome = bash(folder, RUN_EVAL, "--json", "--threads", "1", **env)
    assert outcome.code == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert len(outcome.stdout.splitlines()) == 1
    assert outcome.result["output"] == "found"
    assert outcome.result["models"] == 2
    assert outcome.result["items"] == 8
    report = json.loads((folder / "found/report.json").read_text(encoding="utf-8"))
    assert [model["path"] for model in report["models"]] == ["student", "teacher"]
    assert {task["name"]: (task["items"], task["of"]) for task in report["tasks"]} == {
        "small_sums": (4, 100),
        "mmlu_dev": (4, 106),
    }
    assert (folder / "found/report.html").is_file()


def test_a_wrong_option_is_refused_as_by_the_script_itself(folder: Path) -> None:
    outcome = bash(folder, RUN_EVAL, "--suite", "everything", KD_MODEL_PATH="student", PYTHONWARNDEFAULTENCODING="")
    assert outcome.code == 2
    assert "everything is no suite. There are: offline, opd, reasoning" in outcome.stderr
