"""What `doctor --data` says of files and folders of every kind, those that are none included."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from core import cli
from core.cli import parse
from core.commands import load
from tests.support.running import ROOT, Outcome, write_rows

Doctor = Callable[..., Outcome]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """The command in this process, in a folder of its own, with --json."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        code, _ = cli.run("doctor", [*arguments, "--json"])
        printed = capsys.readouterr()
        return Outcome(int(code), printed.out, printed.err)

    return run


CHAT = [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "Four."}]


def test_a_file_of_prompts_is_told_with_bad_lines_and_the_next_command_of_each_road(
    doctor: Doctor, tmp_path: Path
) -> None:
    rows = [b'{"prompt": "12345678"}', b'{"prompt": ""}', b"{broken", b'{"prompt": "1234"}', *[b"[]"] * 5]
    (tmp_path / "my prompts.jsonl").write_bytes(b"\n".join(rows))
    found = doctor("--data", "my prompts.jsonl")
    assert found.code == 1  # some rows are no prompts
    seen = found.result["data"]
    assert (seen["kind"], seen["count"], seen["bad"], seen["with_answers"]) == ("prompts", 2, 7, 0)
    assert [problem.partition(": ")[0] for problem in seen["problems"]] == [
        f"my prompts.jsonl:{line}" for line in (2, 3, 5, 6, 7)
    ]
    assert seen["prompt_tokens_estimate"] == 3  # 12 bytes
    assert seen["next"]["off-policy"] == "python scripts/generate_teacher_data.py --input 'my prompts.jsonl' --dry-run"
    assert "... and 2 more" in found.stderr
    for command in seen["next"].values():
        assert command in found.stderr


def test_rows_with_answers_are_held_against_what_training_wants(doctor: Doctor, tmp_path: Path) -> None:
    rows = [{"messages": CHAT}, {"messages": CHAT}, {"messages": CHAT[:1]}]
    write_rows(tmp_path / "train.jsonl", rows)
    seen = doctor("--data", "train.jsonl").result["data"]
    assert (seen["kind"], seen["count"], seen["with_answers"]) == ("prompts and rows", 3, 2)
    assert any("train_sft refuses 1 of 3: train.jsonl:3: " in note for note in seen["notes"])
    assert any("1 of 3 stood before" in note for note in seen["notes"])
    write_rows(tmp_path / "train.jsonl", rows[:1])
    found = doctor("-d", "train.jsonl")
    assert found.code == 0
    assert found.result["data"]["kind"] == "rows"
    assert found.result["data"]["next"]["off-policy"] == "python scripts/check_data.py train.jsonl"


def test_prompts_under_another_name_are_found_and_the_option_is_named(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("id,question\n1,Why?\n2,How?\n", encoding="utf-8")
    seen = doctor("--data", "q.csv").result["data"]
    assert (seen["kind"], seen["count"], seen["bad"]) == ("prompts", 2, 0)
    assert all(
        "--input q.csv --prompt-key question" in seen["next"][road] for road in ("off-policy", "rollout-distill")
    )
    assert '"question"; the commands take them with --prompt-key question' in seen["notes"][0]


def test_the_commands_that_a_file_leads_to_are_commands(doctor: Doctor, tmp_path: Path) -> None:
    write_rows(tmp_path / "q.jsonl", [{"question": "Why?"}])
    write_rows(tmp_path / "t.jsonl", [{"messages": CHAT}])
    for name in ("q.jsonl", "t.jsonl"):
        for command in doctor("--data", name).result["data"]["next"].values():
            _, script, *arguments = shlex.split(command)
            model = load(Path(script).stem)
            assert (ROOT / script).is_file()
            assert parse(Path(script).stem, model, arguments)


def test_a_folder_of_rollouts_is_counted_by_how_they_ended(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    for number, success in enumerate((True, False, True)):
        record = {"id": f"r{number}", "completed": True, "success": success, "conversation": CHAT}
        (tmp_path / "rollouts" / f"{number}.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "rollouts" / "torn.json").write_text('{"conversation": [', encoding="utf-8")
    found = doctor("--data", "rollouts")
    seen = found.result["data"]
    assert (found.code, seen["kind"], seen["count"], seen["with_answers"], seen["bad"]) == (1, "rollouts", 3, 2, 1)
    assert seen["notes"] == ["2 succeeded; 1 not_a_success"]
    assert seen["problems"][0].startswith("rollouts/torn.json: ")
    assert seen["next"] == {"rollout-distill": "python scripts/convert_rollouts.py -d rollouts -o train.jsonl"}
    assert doctor("--data", "rollouts/0.json").result["data"]["notes"] == ["it succeeded"]


def unreadable(tmp_path: Path) -> dict[str, str]:
    """Name of a file or folder -> what is to be said of it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    contents: dict[str, tuple[bytes, str]] = {
        "empty.jsonl": (b"", "is empty"),
        "blank.txt": (b"\n \n\n", "holds no rows"),
        "binary.jsonl": (bytes(range(256)) * 9, "is binary"),
        "binary.txt": (b"abc\0b", "is binary"),
        "noise.txt": (b"\xff\xfa\xfb\n\xf8\n", "none of 2 rows can be used"),
        "noise.parquet": (b"PAR1" + bytes(50), "not a parquet file"),
        "zeros.csv": (bytes(100), "is binary"),
        "utf16.csv": ("prompt\nWarum?\n".encode("utf-16"), "is UTF-16. Convert it: iconv"),
        "torn.json": (b'[{"prompt": "a"}, {', "invalid JSON"),
        "deep.jsonl": (b"[" * 100_000, "none of 1 rows can be used"),
        "number.json": (b"3", "expected a list of rows"),
        "header.csv": (b"prompt,answer\n", "holds no rows"),
        "config.yml": (b"model: {path: smollm2}\n", "is settings, no data"),
        "weights.safetensors": (b"\x08", "is a model's weights"),
        "photo.jpg": (b"\xff\xd8", 'unknown kind ".jpg"'),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.jsonl")
    return {name: said for name, (_, said) in contents.items()} | {
        "pipe.jsonl": "is no file",
        "model": "is a model's folder, no data. python scripts/doctor.py --teacher model tests it.",
        "empty": "is a folder without rollouts: it holds no .json files. In it: nothing",
        "nowhere.jsonl": "no such file",
        "-": "name a file",
        "": "at least 1 character",
    }


def test_a_file_that_nothing_can_be_done_with_is_an_error_and_never_a_traceback(doctor: Doctor, tmp_path: Path) -> None:
    for name, said in unreadable(tmp_path).items():
        found = doctor("--data", name)
        assert found.code == 2, (name, found.stderr)
        assert said in found.stderr, name
        assert "doctor: error: " in found.stderr
        assert "Traceback" not in found.stderr
