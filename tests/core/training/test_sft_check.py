"""`train_sft --check`, and what a run refuses before torch is loaded, through the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import cli
from tests.support.running import ROOT, Outcome, environment, write_rows

CONFIG = """\
project_id: p
dataset_type: {kind}
data:
  train_file: train.jsonl
  batch_size: {batch}
model:
  path: Qwen/Qwen3-8B
  qlora_rank: 16
trainer:
  num_epochs: 1
{more}"""
Sft = Callable[..., Outcome]


def configure(kind: str = "sft", batch: int = 2, more: str = "") -> None:
    Path("config.yml").write_text(CONFIG.format(kind=kind, batch=batch, more=more), encoding="utf-8")


def row(number: int = 0, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": "An answer."}]
    return {"messages": turns, **more}


def data(*extra: dict[str, Any], sound: int = 4) -> None:
    write_rows(Path("train.jsonl"), [*(row(number) for number in range(sound)), *extra])


@pytest.fixture
def sft(folder: Path, capfd: pytest.CaptureFixture[str]) -> Sft:
    """The command within this process, in an empty folder."""

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        code, _ = cli.run("train_sft", arguments)
        captured = capfd.readouterr()
        return Outcome(int(code), captured.out, captured.err)

    return run


def checked(sft: Sft, *arguments: str) -> dict[str, Any]:
    outcome = sft("--check", "--json", *arguments)
    found = json.loads(outcome.stdout)
    assert outcome.code == (2 if found["errors"] else 0), outcome.stderr
    return found


def of_level(found: dict[str, Any], level: str) -> list[str]:
    return [f"{each['place']}: {each['text']}" for each in found["findings"] if each["level"] == level]


def test_sound_files_have_no_errors(sft: Sft) -> None:
    configure()
    data(row(9, tools=[{"type": "function", "function": {"name": "look"}}]))
    found = checked(sft)
    assert (found["rows"], found["errors"], found["warnings"], found["rnow"]) == (5, 0, 0, 1)
    assert of_level(found, "rnow")[0].startswith("train.jsonl:5: tools holds schemas")
    assert of_level(found, "ignored") == ["config.yml: only the hosted service uses project_id"]
    outcome = sft("--check")
    assert "5 rows: 0 errors, 0 warnings, 1 for rnow run only\nnext: the same command without --check" in outcome.stderr


def test_config_and_rows_are_told_together(sft: Sft) -> None:
    configure(more="  save_step: 0\n  epochs: 3\n")
    data({"prompt": "x"}, {"messages": [{"role": "system", "content": "Only this."}]})
    found = checked(sft)
    assert of_level(found, "error") == [
        "config.yml:11: save_step cannot be 0: -1 keeps no step-N/, a positive number keeps one every so many steps",
        'config.yml:12: unknown key "epochs" in trainer:. Did you mean "num_epochs"?',
        'train.jsonl:5: no messages (found: "prompt")',
        "train.jsonl:6: only a system message: there is nothing to learn",
    ]
    assert found["errors"] == 4


def test_rows_alone_can_be_checked(sft: Sft) -> None:
    data()
    assert checked(sft)["errors"] == 1  # the default batch of 8 is larger than the 4 rows
    data(sound=8)
    assert checked(sft, "-d", "train.jsonl")["findings"] == []


def test_a_config_of_another_program_is_left_alone_and_that_is_said(sft: Sft) -> None:
    Path("config.yml").write_text("site_name: Docs\n", encoding="utf-8")
    data(sound=8)
    said = "config.yml: not read: it has none of dataset_type, data, model, trainer"
    found = checked(sft)
    assert [text.partition(", so")[0] for text in of_level(found, "ignored")] == [said]
    data(sound=4)  # too few for a batch, which ends the run before torch is loaded
    outcome = sft("--model", "smollm2")
    assert "config.yml: ignored: not read" in outcome.stderr
    assert "batch_size 8 is larger than the data" in outcome.stderr


def test_a_name_that_no_file_system_takes_is_no_such_file(sft: Sft) -> None:
    outcome = sft("-d", "x" * 5000, "-m", "smollm2")
    assert outcome.code == 2
    assert "x: no such file" in outcome.stderr


def test_missing_rows_do_not_hide_what_is_wrong_with_the_file(sft: Sft) -> None:
    configure(more="  learning_rate: 5\n")
    errors = of_level(checked(sft), "error")
    assert errors[0].startswith("config.yml:11: learning_rate: ")
    assert errors[1].startswith("train.jsonl: no such file")


def test_a_batch_larger_than_the_data(sft: Sft) -> None:
    configure(batch=5)
    data()
    said = "batch_size 5 is larger than the data (4 rows). Lower it, or add rows."
    assert of_level(checked(sft), "error") == [f"config.yml:5: {said}"]
    assert said in sft().stderr
    configure(batch=4)
    assert checked(sft, "-n", "3")["errors"] == 1
    assert checked(sft)["errors"] == 0


def test_a_run_is_refused_with_every_line_up_to_twenty_and_writes_nothing(sft: Sft) -> None:
    configure()
    data(*({"text": str(number)} for number in range(25)))
    outcome = sft("-o", "run")
    assert outcome.code == 2
    assert "train.jsonl: 25 of 29 rows cannot be used:" in outcome.stderr
    assert [f'train.jsonl:{line}: no messages (found: "text")' in outcome.stderr for line in (4, 5, 24, 25)] == [
        *(False, True, True, False)
    ]
    assert "... and 5 more" in outcome.stderr
    assert "--skip-bad-rows" in outcome.stderr
    assert not Path("run").exists()


def test_bad_rows_may_be_left_out_and_then_no_longer_count(sft: Sft) -> None:
    configure(batch=5)
    data({"prompt": "x"})
    assert "1 of 5 rows cannot be used" in sft().stderr
    assert "batch_size 5 is larger than the data (4 rows)" in sft("--skip-bad-rows").stderr


def test_errors_of_the_file_refuse_a_run(sft: Sft) -> None:
    configure(more="teacher:\n  path: Qwen/Qwen3-32B\n")
    data()
    outcome = sft()
    assert outcome.code == 2
    assert "config.yml:11: error: teacher: is for dataset_type: distill only" in outcome.stderr


@pytest.mark.parametrize("kind", ["rl", "midtrain"])
def test_what_only_the_hosted_service_trains_is_checked_only(sft: Sft, kind: str) -> None:
    configure(kind)
    rows = [row(number, rewards=["accurate"], text="A text.") for number in range(4)]
    write_rows(Path("train.jsonl"), rows)
    Path("rewards.py").write_text("@reward\ndef accurate(args, messages):\n    return 1.0\n", encoding="utf-8")
    assert checked(sft)["errors"] == 0
    outcome = sft()
    assert outcome.code == 2
    assert f"dataset_type: {kind} can only be trained by `rnow run`" in outcome.stderr


def test_rewards_of_rl_must_be_defined(sft: Sft) -> None:
    configure("rl")
    write_rows(Path("train.jsonl"), [row(number, rewards=["accurate", "brief"]) for number in range(4)])
    assert of_level(checked(sft), "error") == ["rewards.py: no such file: dataset_type: rl needs it"]
    code = "@reward(timeout=3)\nasync def brief(args, messages): ...\n\ndef accurate(args, messages): ...\n"
    Path("rewards.py").write_text(code, encoding="utf-8")
    assert of_level(checked(sft), "error") == [
        'rewards.py: the rows name the reward "accurate", which is not defined there'
    ]
    Path("rewards.py").write_text("def (", encoding="utf-8")
    assert of_level(checked(sft), "error")[0].startswith("rewards.py: not Python")


def test_distill_is_checked_as_train_gold_would_take_it(sft: Sft) -> None:
    configure("distill", more="teacher:\n  path: Qwen/Qwen3-32B\nrollout:\n  max_turns: 3\n")
    data()
    [error] = of_level(checked(sft), "error")
    assert "config.yml:14: rollout.max_turns" in error
    configure("distill", more="teacher:\n  path: Qwen/Qwen3-32B\n")
    assert checked(sft)["errors"] == 0


def test_a_check_imports_nothing_heavy(folder: Path) -> None:
    configure()
    data()
    heavy = "{'torch', 'transformers', 'datasets', 'trl', 'numpy'}"
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from core import cli
code, _ = cli.run("train_sft", ["--check"])
print(int(code), sorted({heavy} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.stdout == "0 []\n", done.stderr
