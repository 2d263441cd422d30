"""The folder of rollouts."""

import datetime
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import StoppedEarly, UsageError
from core.generation.shelf import Shelf
from tests.support.running import ROOT, environment

KEY = "0123456789abcdef0123456789abcdef"
NOW = datetime.datetime(2026, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)


def record(key: str = KEY, completed: bool | str = True, cost_usd: float | None = 0.25) -> dict[str, Any]:
    return {
        "id": "x",
        "completed": completed,
        "provenance": {"key": key, "cost_usd": cost_usd},
        "conversation": [{"role": "user", "content": "Hi"}],
    }


def ended_in(reason: str, backend: str = "openai", turns: int = 1) -> dict[str, Any]:
    """A record of a rollout that ended in an error."""
    one = record(completed="error")
    return one | {"turns": turns, "provenance": one["provenance"] | {"reason": reason, "backend": backend}}


def put(shelf: Shelf, **changes: Any) -> Path:
    one = record(**changes)
    path = shelf.place_for(one["provenance"]["key"], NOW)
    shelf.put(path, one, one["provenance"]["key"])
    return path


@pytest.fixture
def shelf(folder: Path) -> Shelf:
    return Shelf(Path("rollouts"))


def test_a_file_is_named_after_its_time_and_eight_hex_digits(shelf: Shelf) -> None:
    with shelf.open():
        paths = {shelf.place_for(f"{number:032x}", NOW) for number in range(50)}
    assert len(paths) == 50
    assert all(re.fullmatch(r"20260304_050607_[0-9a-f]{8}\.json", path.name) for path in paths)


def test_what_is_finished_is_known_now_and_next_time(shelf: Shelf) -> None:
    with shelf.open():
        assert not shelf.has(KEY)
        put(shelf)
        assert shelf.has(KEY)
    again = Shelf(shelf.folder)
    with again.open():
        assert again.has(KEY)
    assert again.mean_cost_usd == 0.25


@pytest.mark.parametrize("completed", ["error", False])
def test_what_ended_in_an_error_or_was_interrupted_is_replaced_in_the_same_file(
    shelf: Shelf, completed: bool | str
) -> None:
    with shelf.open():
        path = put(shelf, completed=completed)
        assert not shelf.has(KEY)
    again = Shelf(shelf.folder)
    with again.open():
        assert not again.has(KEY)
        assert put(again) == path
        assert again.has(KEY)
    assert [one.name for one in shelf.folder.glob("*.json")] == [path.name]


def test_an_error_beside_a_finished_rollout_of_the_same_key_does_not_undo_it(shelf: Shelf) -> None:
    with shelf.open():
        put(shelf)
    (shelf.folder / "20990101_000000_00000000.json").write_text(json.dumps(record(completed="error")))
    again = Shelf(shelf.folder)
    again.read()
    assert again.has(KEY)


def test_the_mean_cost_is_that_of_finished_rollouts_whose_cost_is_known(shelf: Shelf) -> None:
    with shelf.open():
        assert shelf.mean_cost_usd is None
        put(shelf, key="1" * 32, cost_usd=0.5)
        put(shelf, key="2" * 32, cost_usd=None)
        put(shelf, key="3" * 32, cost_usd=1.0)
        put(shelf, key="4" * 32, cost_usd=9.0, completed="error")
        assert shelf.mean_cost_usd == 0.75


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a": 1}',
        b'{"conversation": []}',
        b'{"conversation": [1], "total_reward": NaN}',
        b"\xff\xfe{}",
    ],
)
def test_files_that_are_no_rollouts_are_counted_and_left_alone(shelf: Shelf, content: bytes) -> None:
    shelf.folder.mkdir()
    foreign = shelf.folder / "notes.json"
    foreign.write_bytes(content)
    with shelf.open():
        put(shelf)
    assert shelf.foreign == 1
    assert foreign.read_bytes() == content


@pytest.mark.parametrize("key", ["abc", "not a key", "", 5, None, "0" * 32, "é" * 32])
def test_a_rollout_of_somebody_else_is_no_trouble_whatever_its_key_is(shelf: Shelf, key: Any) -> None:
    shelf.folder.mkdir()
    (shelf.folder / "theirs.json").write_text(json.dumps(record(key)))
    (shelf.folder / "rnow.json").write_text('{"conversation": [{"role": "user", "content": "Hi"}], "completed": true}')
    with shelf.open():
        assert not shelf.has(KEY)


@pytest.mark.parametrize("provenance", [[], "x", {"key": KEY, "cost_usd": "dear"}, {"key": KEY, "cost_usd": True}])
def test_odd_provenance_is_no_trouble(shelf: Shelf, provenance: Any) -> None:
    shelf.folder.mkdir()
    (shelf.folder / "theirs.json").write_text(json.dumps(record() | {"provenance": provenance}))
    with shelf.open():
        assert shelf.mean_cost_usd in (None, 1.0)


def test_a_file_that_was_being_written_when_its_run_was_killed_is_removed_and_no_other(shelf: Shelf) -> None:
    shelf.folder.mkdir()
    torn = shelf.folder / ".20260304_050607_0123abcd.json.k3j2"
    for path in (torn, shelf.folder / ".hidden.json", shelf.folder / "20260304_050607_0123abcd.json.bak"):
        path.write_text('{"id": "half')
    with shelf.open():
        assert not torn.exists()
    names = sorted(path.name for path in shelf.folder.iterdir())
    assert names == [".hidden.json", ".lock", "20260304_050607_0123abcd.json.bak"]


def test_two_runs_cannot_use_one_folder_at_the_same_time(shelf: Shelf) -> None:
    with shelf.open():
        other = Shelf(shelf.folder)
        with pytest.raises(UsageError, match="another run is at work in rollouts"), other.open():
            pass
    with Shelf(shelf.folder).open():
        pass


def test_a_folder_of_a_killed_run_is_free_again(shelf: Shelf) -> None:
    hold = "import sys; from pathlib import Path; from core.generation.shelf import Shelf\n"
    hold += "with Shelf(Path('rollouts')).open(): print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold],
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(UsageError, match="another run is at work in rollouts"), shelf.open():
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with shelf.open():
        pass


def test_reading_a_folder_that_is_not_there_makes_none(shelf: Shelf) -> None:
    shelf.read()
    assert not shelf.folder.exists()


def test_a_file_in_the_folders_place_is_named(folder: Path, shelf: Shelf) -> None:
    shelf.folder.write_text("mine")
    with pytest.raises(UsageError, match="rollouts cannot be written"), shelf.open():
        pass
    assert shelf.folder.read_text() == "mine"


def test_a_folder_that_vanishes_stops_the_run(shelf: Shelf) -> None:
    with shelf.open():
        path = shelf.place_for(KEY, NOW)
        with pytest.raises(StoppedEarly, match="does not exist"):
            shelf.put(path.parent / "gone" / path.name, record(), KEY)
        assert not shelf.has(KEY)


@pytest.mark.parametrize(
    ("error", "own"),
    [
        (ended_in("malformed_arguments"), True),
        (ended_in("loop"), True),
        (ended_in("refusal"), True),
        (ended_in("no_room_for_answer"), True),
        (ended_in("empty_answer"), True),
        (ended_in("context_length", turns=1), True),
        (ended_in("context_length", turns=0), False),
        (ended_in("tool_calls_as_text", "hf"), True),
        (ended_in("tool_calls_as_text", "openai"), False),
        (ended_in("timeout"), False),
        (ended_in("rollout_timeout"), False),
        (ended_in("tools_gone"), False),
        (ended_in("upstream_error"), False),
    ],
)
def test_an_error_of_the_models_own_is_told_from_one_of_its_surroundings_now_and_next_time(
    shelf: Shelf, error: dict[str, Any], own: bool
) -> None:
    with shelf.open():
        shelf.put(shelf.place_for(KEY, NOW), error, KEY)
        assert (KEY in shelf.faults, shelf.has(KEY)) == (own, False)
    again = Shelf(shelf.folder)
    with again.open():
        assert (KEY in again.faults, again.has(KEY)) == (own, False)
        put(again)
        assert not again.faults


def test_verdicts_are_known_next_time(shelf: Shelf) -> None:
    keys = [f"{number:x}" * 32 for number in range(1, 4)]
    verdicts = [{"success": True, "total_reward": 1.0}, {"success": False, "total_reward": 0.0}, {"success": True}]
    with shelf.open():
        for key, verdict in zip(keys, verdicts, strict=True):
            shelf.put(shelf.place_for(key, NOW), record(key) | verdict, key)
    again = Shelf(shelf.folder)
    with again.open():
        for one in (shelf, again):
            assert [one.succeeded(key) for key in keys] == [True, False, True]
            assert [one.unchecked(key) for key in keys] == [False, False, True]
