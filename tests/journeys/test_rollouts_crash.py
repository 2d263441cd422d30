"""kill -9 in the middle of a hundred rollouts: the next run loses none, doubles none, reads no half file."""

import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.running import ROOT, ended, start, write_rows
from tests.support.scripted_teacher import Call, Chat, scripted_teacher

SCRIPT = ROOT / "scripts" / "run_rollouts.py"
WANTED = 100
KILL_AT = (0, 15, 45, 80)
"""How many rollouts are finished when the process is killed."""
TOOLS = '''
import time


def add(a: int, b: int) -> int:
    """Add two numbers."""
    time.sleep(0.02)
    return a + b
'''


def pupil(chat: Chat) -> Call | str:
    """Three calls, then the answer."""
    found = re.match(r"q(\d+)", chat.question)
    assert found
    time.sleep(0.01)
    if chat.turn < 3:
        return Call("add", {"a": int(found[1]), "b": chat.turn})
    return f"The answer is {found[1]}."


def whole(folder: Path) -> dict[str, dict[str, Any]]:
    """Every visible file, which must be whole JSON, by name."""
    return {path.name: json.loads(path.read_bytes()) for path in folder.glob("*.json")}


def test_a_run_that_is_killed_again_and_again_ends_with_every_rollout_once(tmp_path: Path) -> None:
    rollouts = tmp_path / "rollouts"
    (tmp_path / "tools.py").write_text(TOOLS)
    rows = [{"prompt": f"q{number}: which number is this?", "expected_answer": number} for number in range(WANTED)]
    write_rows(tmp_path / "train.jsonl", rows)
    finished: dict[str, dict[str, Any]] = {}
    with scripted_teacher(pupil) as teacher:
        command = [
            "--all",
            "--tools",
            "tools.py",
            *teacher.options,
            "--concurrency",
            "10",
            "--progress",
            "off",
            "--json",
        ]
        for kill_at in KILL_AT:
            asked = len(teacher.chats)
            process = start(tmp_path, *command, script=SCRIPT)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                if len(teacher.chats) > asked + 5 and len(whole(rollouts)) >= kill_at:
                    break
                time.sleep(0.005)
            assert process.poll() is None, "it ended before it could be killed"
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            there = whole(rollouts)
            assert finished.items() <= there.items()  # nothing finished was written again
            finished = there
            (rollouts / ".20260304_050607_0123abcd.json.torn1234").write_text('{"id": "half a ')
        assert 0 < len(finished) < WANTED
        before = len(teacher.chats)
        outcome = ended(start(tmp_path, *command, script=SCRIPT))
        assert outcome.code == 0, outcome.stderr
        assert len(teacher.chats) - before == 4 * (WANTED - len(finished))  # only what was missing, each from its start
        assert outcome.result["complete"] == outcome.result["wanted"] == WANTED

        records = whole(rollouts)
        assert finished.items() <= records.items()
        assert len(records) == len({record["provenance"]["key"] for record in records.values()}) == WANTED
        assert Counter(record["index"] for record in records.values()) == Counter(range(WANTED))
        for name, record in records.items():
            assert (record["id"], record["completed"], record["success"]) == (name.removesuffix(".json"), True, True)
            roles = [message["role"] for message in record["conversation"]]
            assert roles == ["user", *["assistant", "tool"] * 3, "assistant"]
        assert sorted(path.name for path in rollouts.iterdir() if path.name not in records) == [".lock"]

        again = ended(start(tmp_path, *command, script=SCRIPT))
        assert (again.code, again.result["rollouts"], whole(rollouts)) == (0, 0, records)
