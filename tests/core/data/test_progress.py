"""One way to report, drawn in several."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from core.data.progress import Bar, Lines, Progress, clock, open_progress, short


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_auto_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    assert isinstance(open_progress("auto", stream=Terminal()), Bar)
    assert isinstance(open_progress("auto", stream=io.StringIO()), Lines)
    assert type(open_progress("off", stream=Terminal())) is Progress


def test_a_line_says_done_failed_retrying_rate_tokens_spend_and_eta() -> None:
    stream = io.StringIO()
    progress = Lines(stream)
    progress.begin("generate", total=100, already=40, unit="answers")
    progress.counts.done, progress.counts.failed, progress.counts.retrying = 9, 1, 2
    progress.counts.tokens, progress.counts.spend_usd = 12_345, 0.0132
    progress._started_s -= 5  # 10 of 60 in 5 s: 2 a second, 50 to go in 25 s
    progress.end()
    line = stream.getvalue()
    assert line.startswith("generate: 49/100 answers, 1 failed, 2 retrying, 2.0 answers/s, 12.3k tokens, 0.0132 USD")
    assert line.rstrip().endswith("ETA 0:25")


def test_nothing_done_yet_means_no_eta() -> None:
    progress = Progress(io.StringIO())
    progress.begin("x", total=10)
    assert progress.eta_s is None
    assert "ETA" not in progress.figures()


@pytest.mark.parametrize("kind", [Progress, Lines, Bar])
def test_a_note_is_shown_at_once_in_every_mode(kind: type[Progress]) -> None:
    stream = io.StringIO()
    progress = kind(stream)
    progress.begin("x", total=2)
    progress.note("look here")
    assert "look here" in stream.getvalue()
    progress.end()


def test_events_are_json_lines_and_end_with_the_last_state(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    progress = open_progress("off", file, io.StringIO())
    progress.begin("x", total=3)
    progress.counts.done = 3
    progress.note("hello")
    progress.end()
    progress.close()
    events: list[dict[str, Any]] = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [event["event"] for event in events] == ["begin", "note", "end"]
    assert events[1]["text"] == "hello"
    assert (events[2]["done"], events[2]["total"]) == (3, 3)


def test_numbers_and_times_are_short() -> None:
    assert [short(n) for n in (7, 1234, 1_234_567, 2_000_000_000)] == ["7", "1.2k", "1.2M", "2.0G"]
    assert [clock(s) for s in (0, 59.4, 61, 3661)] == ["0:00", "0:59", "1:01", "1:01:01"]
