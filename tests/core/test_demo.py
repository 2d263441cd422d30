"""`make demo` in small: a tiny teacher, one layer, one step. What is there already is not done again."""

from pathlib import Path

import pytest

from core import cli
from core.data.jsonlines import read_lines
from tests.support.running import write_rows
from tests.support.tiny_model import make_tiny_model


def test_from_prompts_to_a_report_and_a_second_time_from_what_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    teacher = make_tiny_model(folder / "teacher", positions=1024)
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": f"What is {n}?"} for n in range(8)])
    arguments = ["-i", str(prompts), "-m", str(teacher), "--max-tokens", "8", "--layers", "1", "--steps", "1"]
    arguments += ["--items", "2", "--progress", "lines"]

    assert cli.run("demo", arguments) == (0, False)
    said = capfd.readouterr().err
    assert len(list(read_lines(folder / "demo/train.jsonl"))) == 8
    assert (folder / "demo/gold/best/model.safetensors").is_file()
    assert (folder / "demo/report/report.html").is_file()
    assert "student against baseline" in said
    assert "held_out" in said

    assert cli.run("demo", arguments) == (0, False)
    said = capfd.readouterr().err
    for words in ("is there already", "is trained already", "student against baseline"):
        assert words in said
    assert "train: 1/1 steps" not in said
    assert "baseline: mmlu_dev" not in said  # no bar: all answers are kept
    assert sorted(path.name for path in (folder / "demo").iterdir() if path.name.startswith("report")) == ["report"]
