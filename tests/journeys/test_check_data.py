"""check_data as its user meets it: from a bad file to a good one, interrupted, killed, out of disk, and not alone."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import ROOT, Outcome, ended, environment, read_rows, start, write_rows

SCRIPT = ROOT / "scripts" / "check_data.py"
SECRET = "maria.keller84@" + "gmail.com"
WORDS = re.findall(
    r"\w+",
    "river stone light garden paper winter number music window market silver bridge forest morning teacher signal "
    "theory copper island shadow harbour village question letter summer mountain story painter journey evening",
)


def checking(folder: Path, *arguments: str, file_bytes: int | None = None) -> "subprocess.Popen[bytes]":
    """file_bytes: no file may become longer: like a full disk, but for this process alone."""

    def small_disk() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return start(folder, *arguments, script=SCRIPT, preexec=small_disk, OMP_NUM_THREADS="1")


def row(number: int, answer: str | None = None, **metadata: Any) -> dict[str, Any]:
    """A row like no other one."""
    chance = random.Random(number)

    def sentence(count: int) -> str:
        return " ".join(chance.choices(WORDS, k=count)).capitalize() + "."

    said = f"{sentence(16)} {sentence(12)}" if answer is None else answer
    asked = f"Write about the {sentence(10)}"
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
        "metadata": metadata,
    }


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def quiet(outcome: Outcome) -> Outcome:
    assert "Traceback" not in outcome.stderr, outcome.stderr
    return outcome


def test_a_bad_file_becomes_a_good_one_and_a_program_reads_why(folder: Path) -> None:
    good = [row(number) for number in range(40)]
    leak = f"How many legs has the spider that sits in the corner of the old mill? Ask {SECRET} for it."
    faults = [
        good[3],
        row(90, "I'm sorry, but I can't help with that."),
        row(91, f"Write to {SECRET} about it."),
        row(92, "The answer is 12.", expected_answer="13"),
        row(93, leak),
        row(94, ""),
        {"no": "row"},
    ]
    (folder / "test.txt").write_text("How many legs has the spider that sits in the corner of the old mill?\n")
    write_rows(folder / "train.jsonl", [*good, *faults])
    outcome = quiet(ended(checking(folder, "train.jsonl", "--against", "test.txt", "--fix", "clean.jsonl")))
    assert outcome.code == 1, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert "train.jsonl: 47 rows" in lines
    assert lines[-1] == (
        "not good enough: schema, empty, refusal, personal, exact_duplicate, contaminated, wrong_answer"
    )
    assert '1 row cannot be read, the first: train.jsonl:47: no "prompt" or "messages" key' in outcome.stderr
    assert read_rows(folder / "clean.jsonl") == good
    gone = [set(each["reasons"]) for each in read_rows(folder / "clean.dropped.jsonl")]
    assert gone == [
        {"exact_duplicate"},
        {"refusal"},
        {"personal"},
        {"wrong_answer"},
        {"contaminated", "personal"},
        {"empty"},
        {"schema"},
    ]
    assert SECRET not in outcome.stdout + outcome.stderr
    for path in (folder / "reports").rglob("*.*"):
        assert SECRET.encode() not in path.read_bytes(), path

    with open(folder / "clean.jsonl", "rb") as clean:
        again = subprocess.run(
            [sys.executable, str(SCRIPT), "-", "--json", "--require", "near_duplicate<=0"],
            cwd=folder,
            env=environment(OMP_NUM_THREADS="1"),
            stdin=clean,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert (found["status"], found["rows"]) == ("done", 40)
    assert {one["count"] for one in found["measured"]} == {0}
    # Wilson: 0 of 40 may be z^2 / (40 + z^2) = 8.8 %
    assert {round(one["high"], 3) for one in found["measured"]} == {0.088}
    assert (folder / found["report"] / "report.html").is_file()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_nothing_that_could_be_taken_for_a_result(folder: Path, how: signal.Signals) -> None:
    write_rows(folder / "train.jsonl", [row(number) for number in range(200)] * 40)
    command = ("train.jsonl", "--fix", "clean.jsonl", "--events", "events.jsonl")
    process = checking(folder, *command)
    until = time.monotonic() + 60
    while '"done":' not in (text := said(folder / "events.jsonl")) or json.loads(text.splitlines()[-1])["done"] < 50:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, text
        time.sleep(0.02)
    os.killpg(process.pid, how)
    outcome = quiet(ended(process))
    assert outcome.code == {signal.SIGINT: 130, signal.SIGKILL: -9}[how]
    assert visible(folder) == {"train.jsonl", "events.jsonl"}
    if how == signal.SIGKILL:
        again = ended(checking(folder, *command, "--limit", "210"))
        assert again.code == 1, again.stderr
        assert len(read_rows(folder / "clean.jsonl")) == 200
        assert not list(folder.glob(".*"))


def said(path: Path) -> str:
    """Whole lines of a file that may not be there yet."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1]


def test_two_at_once_write_no_file_together(folder: Path) -> None:
    rows = write_rows(folder / "train.jsonl", [row(number) for number in range(60)]).read_bytes()
    both = [checking(folder, "train.jsonl", "--fix", "clean.jsonl", "--overwrite") for _ in range(2)]
    outcomes = [quiet(ended(process)) for process in both]
    assert 0 in [outcome.code for outcome in outcomes]
    for outcome in outcomes:
        assert outcome.code == 0 or "another run is" in outcome.stderr, outcome.stderr
    assert (folder / "clean.jsonl").read_bytes() == rows
    assert json.loads((folder / "reports/train/report.json").read_bytes())["rows"] == 60
    assert not [*folder.glob(".*"), *(folder / "reports/train").glob(".*")]


def test_a_full_disk_is_said_and_nothing_is_left(folder: Path) -> None:
    write_rows(folder / "train.jsonl", [row(number) for number in range(400)])
    outcome = quiet(ended(checking(folder, "train.jsonl", "--fix", "clean.jsonl", file_bytes=2_000)))
    assert outcome.code == 3, outcome.stderr
    assert "File too large" in outcome.stderr
    assert "TMPDIR" in outcome.stderr
    assert visible(folder) == {"train.jsonl"}
