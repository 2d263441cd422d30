"""`train_gold` as people run it: scripts/train_gold.py in a process of its own, and what is done with its student."""

import json
from pathlib import Path

import pytest

from core.data.trained_on import read_trained_on
from tests.support.running import ROOT, Outcome, ended, read_rows, start, write_rows
from tests.support.training import Models, make_models, shaken, weights, write_conversations

TRAIN, MAKE, GENERATE = (
    ROOT / "scripts" / f"{name}.py" for name in ("train_gold", "make_student", "generate_teacher_data")
)


@pytest.fixture
def models(folder: Path) -> Models:
    write_conversations(folder / "train.jsonl")
    return make_models(folder)


def ran(folder: Path, script: Path, *arguments: str) -> Outcome:
    outcome = ended(start(folder, *arguments, script=script, OMP_NUM_THREADS="1", PYTHONWARNDEFAULTENCODING=""), 120)
    assert outcome.code == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome


def test_the_script_reads_env_and_yaml_and_prints_a_plan_progress_and_a_table(folder: Path, models: Models) -> None:
    env = {"DATA_PATH": "train.jsonl", "OUTPUT_DIR": "runs/gold", "STUDENT_MODEL_PATH": "student"}
    env |= {"TEACHER_MODEL_ID": "teacher", "MAX_STEPS": "4", "KD_MAX_GROUPS": "64", "EVAL_EVERY": "2"}
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in env.items()), encoding="utf-8")
    (folder / "gold.yml").write_text("max_new_tokens: 8\nmax_steps: 99\nbatch_size: 4\n", encoding="utf-8")
    outcome = ran(folder, TRAIN, "--config", "gold.yml", "--progress", "lines", "--learning-rate", "1e-2", "--json")
    assert len(outcome.stdout.splitlines()) == 1
    assert outcome.result["steps"] == 4
    assert models.student.name in outcome.stderr
    for words in (
        "max_steps = 4  (MAX_STEPS in .env)",
        "batch_size = 4  (gold.yml:3)",
        "KD_MAX_GROUPS is not used",
        "signal      whole distributions of 306 tokens, one tokenizer: KL(teacher || student)",
        "data        samples to train on: 18 (18 with an answer), held out: 2",
        "step 0: val_total_loss",
        "train: 4/4 steps",
        "ETA",
        "held out",
        "runs/gold/best",
        "curves.png",
    ):
        assert words in outcome.stderr, words
    assert len(read_rows(folder / "runs/gold/metrics.jsonl")) >= 4 + 3
    assert len(read_trained_on(folder / "runs/gold") or ()) == 18
    assert len(read_rows(folder / "runs/gold/held_out.jsonl")) == 2
    weights(folder / "runs/gold/best")


@pytest.mark.slow
def test_from_a_teacher_to_a_student_that_answers(folder: Path, models: Models) -> None:
    """make_student, train_gold with LoRA merged, and the student writes answers through generate_teacher_data."""
    ran(folder, MAKE, "--model", "teacher", "--output", "small", "--layers", "1")
    shaken(folder / "small", 1.0)
    more = (
        "--lora",
        "--merge",
        "--max-steps",
        "3",
        "--save-every",
        "3",
        "--max-new-tokens",
        "8",
        "--val-fraction",
        "0.2",
    )
    ran(folder, TRAIN, "-d", "train.jsonl", "-o", "run", "--student", "small", "--teacher", str(models.teacher), *more)
    write_rows(folder / "prompts.jsonl", [{"prompt": f"What is {number}?"} for number in range(3)])
    given = ("--input", "prompts.jsonl", "--output", "answers.jsonl", "--backend", "hf", "--max-tokens", "8")
    outcome = ended(start(folder, *given, "--model", "run/final", script=GENERATE, PYTHONWARNDEFAULTENCODING=""), 120)
    assert outcome.code in (0, 1), outcome.stderr  # a tiny model may give an empty answer
    assert "Traceback" not in outcome.stderr
    adapter = ("--student", "run/step-3", "--teacher", str(models.teacher))  # to go on from, not merged
    refused = ended(start(folder, "-d", "train.jsonl", "-o", "run2", *adapter, script=TRAIN), 60)
    assert refused.code == 2, refused.stderr
    assert "run/step-3 is a LoRA adapter" in refused.stderr


@pytest.mark.slow
def test_a_run_goes_on_where_its_best_ended_as_a_new_run(folder: Path, models: Models) -> None:
    more = ("--teacher", str(models.teacher), "--max-steps", "3", "--max-new-tokens", "8", "--json")
    ran(folder, TRAIN, "-d", "train.jsonl", "-o", "one", "--student", str(models.student), *more)
    first = json.loads((folder / "one/best_metrics.json").read_bytes())
    outcome = ran(folder, TRAIN, "-d", "train.jsonl", "-o", "two", "--student", "one/best", *more)
    assert outcome.result["before"]["val_total_loss"] == pytest.approx(first["value"], rel=1e-4)
