"""Which rows and rollouts are read, counted, chosen and shown."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from core import cli
from core.commands.show import Show
from core.data.run import Run
from core.errors import InputError, UsageError
from core.show.entries import Entry, open_source
from core.show.show import colored, show
from tests.support.running import ROOT, environment, write_rows

from .traces import CONVERSATION, look, rollout, said, write


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    """Seven files of every layout: three successes (one is old), a failure, an error, a running one, half a file."""
    folder = tmp_path / "rollouts"
    write(folder / "20260125_101500_0f3a9c12.json", rollout())
    write(folder / "20260125_101501_0f3a9c13.json", said("What is 2 + 2?", "5", success=False, total_reward=0.0))
    write(folder / "rollout_1" / "sample_2.json", said("What is 3 * 3?", "9", provenance=None, tools=None))
    write(folder / "rollout_1" / "sample_10.json", said("Rate?", "...", completed="error", success=False, error="no"))
    write(folder / "rollout_2" / "sample_1.json", {"completed": False, "conversation": CONVERSATION[:3]})
    old = '<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n</tool_call>'
    write(
        folder / "rollout_2" / "sample_2.json",
        {
            "total_reward": 1.0,
            "conversation": [{"role": "user", "content": "Old?"}, {"role": "assistant", "content": old}],
        },
    )
    (folder / "rollout_2" / "sample_3.json").write_text('{"id": "x", "conversation": [{"role"', encoding="utf-8")
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Ten rows as generate_teacher_data writes them."""
    return write_rows(
        tmp_path / "train.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": f"Question {n}?"},
                    {"role": "assistant", "content": f"It is {n}."},
                ],
                "metadata": {"teacher": "t/one", "usage": {"completion_tokens": 10 * n}, "finish_reason": "stop"},
            }
            for n in range(10)
        ],
    )


def indexes(result: Any) -> list[int]:
    return [picked.index for picked in result.shown]


# ---- what is read -------------------------------------------------------------------------------------------------


def test_a_folder_of_rollouts_is_counted_and_shown_in_natural_order(rollouts: Path):
    result, text = look(rollouts, limit=100)
    overview = result.overview
    assert [Path(picked.place).name for picked in result.shown] == [
        "20260125_101500_0f3a9c12.json",
        "20260125_101501_0f3a9c13.json",
        "sample_2.json",
        "sample_10.json",
        "sample_1.json",
        "sample_2.json",
        "sample_3.json",
    ]
    assert (overview.kind, overview.entries, overview.unreadable) == ("rollouts", 6, 1)
    assert overview.verdicts == {"success": 3, "failed": 1, "error": 1, "interrupted": 1}
    assert overview.success is not None
    assert (overview.success.successes, overview.success.judged) == (3, 6)
    assert {name: (use.calls, use.errors) for name, use in overview.tools.items()} == {
        "browser_navigate": (2, 0),
        "browser_click": (2, 1),
        "search": (1, 0),
    }
    assert overview.teachers == {"openai/gpt-5.2": 3}
    assert "success    3 of 6, 50 % (95 %: 19 to 81 %)" in text


def test_a_truncated_file_is_named_with_its_reason_and_stops_nothing(rollouts: Path):
    result, text = look(rollouts, limit=100)
    assert result.status == "some_failed"
    assert result.overview.unreadable_examples[0].place.endswith("sample_3.json")
    assert "it ends in the middle" in result.summary()
    assert "unreadable\n  it ends in the middle" in text


def test_old_traces_show_their_inline_calls(rollouts: Path):
    _, text = look(rollouts, index="5")
    assert "→ search\n             q: x" in text


def test_one_rollout_is_shown_without_a_folder(rollouts: Path):
    result, text = look(rollouts / "20260125_101500_0f3a9c12.json")
    assert (result.overview.kind, result.status) == ("rollout", "done")
    assert "success · reward 1 · 2 turns · 1,200 tokens" in text
    assert "reasoning\n             The list should link to it." in text
    assert "teacher  openai/gpt-5.2" in text
    assert "tools        browser_navigate" in text


def test_rows_are_shown_as_conversations_with_their_metadata(rows: Path):
    result, text = look(rows, index="3")
    assert "user       Question 3?\n\nassistant  It is 3.\n" in text
    assert "finish_reason  stop" in text
    assert result.overview.mean_tokens == 45
    assert result.overview.roles == {"user": 10, "assistant": 10}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "What is a bridge?\n", "text  What is a bridge?"),
        ("a.csv", 'prompt,topic\n"Two\nlines",x\n', "prompt  Two\n        lines\ntopic   x"),
        (
            "a.json",
            '[{"instruction": "Add.", "input": "1 1", "output": "2"}]',
            "instruction  Add.\ninput        1 1\noutput       2",
        ),
        ("b.json", '{"conversations": [{"from": "human", "value": "Hi"}]}', "user       Hi"),
        (
            "b.jsonl",
            '{"conversations": [{"from": "gpt", "value": "Hi"}], "system": "Be"}',
            "system     Be\n\nassistant  Hi",
        ),
        ("train.jsonl.run.json", '{"runs": [{"model": "m"}]}', 'runs  [{"model": "m"}]'),
        ("c.jsonl", '{"prompt": [{"role": "user", "content": "Q"}], "answer": 4}', "user       Q\n\n· · ·\nanswer  4"),
        ("d.jsonl", "[1, 2]\n", "text  [1, 2]"),
    ],
)
def test_every_kind_of_row_is_shown(tmp_path: Path, name: str, content: str, expected: str):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert expected in look(tmp_path / name)[1]


def test_parquet_rows_are_shown(tmp_path: Path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    pq.write_table(pa.table({"prompt": ["One?", "Two?"], "n": [1, 2]}), tmp_path / "a.parquet")
    result, text = look(tmp_path / "a.parquet")
    assert "prompt  Two?\nn       2" in text
    assert result.overview.entries == 2


def test_a_rollout_on_a_line_is_judged_like_one_in_a_file(tmp_path: Path):
    result, _ = look(
        write_rows(tmp_path / "all.jsonl", [rollout(), rollout(completed="error"), rollout(rewards={"a": "timeout"})])
    )
    assert [picked.verdict for picked in result.shown] == ["success", "error", "failed"]


def test_failures_and_rejected_rows_of_a_run_count_as_failed(tmp_path: Path):
    failure = {"id": "0" * 32, "place": "p.jsonl:1", "reason": "timeout", "message": "no answer within 120 s"}
    rejected = {"messages": CONVERSATION[:2], "metadata": {"rejected_because": "refusal"}}
    path = write_rows(tmp_path / "train.jsonl.failures.jsonl", [failure, rejected, {"prompt": "fine"}])
    assert [picked.verdict for picked in look(path, failed=True)[0].shown] == ["error", "rejected"]


# ---- which are chosen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "expected"),
    [("3", [3]), ("7,0,2-4", [0, 2, 3, 4, 7]), ("-1", [9]), ("0,-2", [0, 8]), ("8-12", [8, 9]), ("4,4", [4])],
)
def test_indexes_ranges_and_counting_from_the_end(rows: Path, index: str, expected: list[int]):
    assert indexes(look(rows, index=index)[0]) == expected


def test_an_index_past_the_end_is_named_and_an_error_when_no_other_is_there(rows: Path):
    assert look(rows, index="2,12")[0].notes == ["--index 12 goes past the end: there are 10, 0 to 9"]
    for index in ("10", "-11", "10-20"):
        with pytest.raises(UsageError, match=rf"--index {index}: no such index; there are 10, 0 to 9"):
            look(rows, index=index)


@pytest.mark.parametrize("index", ["", "a", "3-", "5-2", "1,,2", "--1", "0x1", "1-2-3"])
def test_what_is_no_index_is_refused(index: str):
    with pytest.raises(ValueError, match=r"no index|ends before"):
        Show(path=Path("x"), index=index)


def test_failed_takes_everything_that_is_no_success(rollouts: Path):
    assert [picked.verdict for picked in look(rollouts, failed=True)[0].shown] == [
        "failed",
        "error",
        "interrupted",
        "unreadable",
    ]


def test_search_looks_everywhere_and_in_any_case(rollouts: Path):
    assert indexes(look(rollouts, search="ASHDOWN")[0]) == [0, 4]  # the user's words
    assert indexes(look(rollouts, search="bridge 39")[0]) == [0]  # deep in a tool's result
    assert indexes(look(rollouts, search="no element e99")[0]) == [
        0,
        1,
        2,
        3,
    ]  # a result, and tool_errors in the record
    assert indexes(look(rollouts, search="sample_10")[0]) == [3]  # the place


def test_search_takes_its_words_literally_and_says_when_nothing_fits(rollouts: Path):
    result, _ = look(rollouts, search="3 * 3?")
    assert indexes(result) == [2]
    nothing, _ = look(rollouts, search=".*", failed=True)
    assert nothing.notes == ["nothing fits --failed --search '.*'"]


def test_a_sample_is_the_same_for_a_seed_and_in_order(rows: Path):
    first, again, other = (indexes(look(rows, sample=4, seed=seed)[0]) for seed in (1, 1, 2))
    assert first == again == sorted(first)
    assert first != other
    assert len(set(first)) == 4


def test_every_row_has_the_same_chance_in_a_sample(rows: Path):
    hits = [index for seed in range(400) for index in indexes(look(rows, sample=3, seed=seed, overview=False)[0])]
    # 400 samples of 3 in 10: each row 120 times, standard deviation sqrt(400 * .3 * .7) = 9.2; 5 of them either way
    assert all(74 < hits.count(index) < 166 for index in range(10))


def test_the_limit_is_said_with_what_is_left_out(rows: Path):
    result, text = look(rows, limit=2)
    assert text.count("── #") == 2
    assert "8 not shown" in result.summary()
    assert len(look(rows)[0].shown) == 5


def test_without_an_overview_reading_stops_when_enough_is_found(rows: Path):
    with open(rows, "ab") as file:
        file.write(b"not JSON\n")
    result, text = look(rows, index="1", overview=False)
    assert (result.overview.entries, result.overview.whole, result.overview.unreadable) == (2, False, 0)
    assert text.startswith("── #1")


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_missing_empty_and_foreign_inputs_say_what_to_do(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "x.bin").write_bytes(b"\0\1")
    (tmp_path / "blank.jsonl").write_text("\n\n", encoding="utf-8")
    (tmp_path / "half.json").write_text('{"a": [', encoding="utf-8")
    for name, words in {
        "nowhere": "no such file",
        "empty": r"no rollout \(\*\.json\) in this folder",
        "rows": r"It holds train\.jsonl: name one of these files",
        "x.bin": "unknown kind",
        "blank.jsonl": "holds no rows",
        "half.json": "it ends in the middle",
    }.items():
        with pytest.raises(InputError, match=words):
            look(tmp_path / name)


def test_when_nothing_is_readable_every_reason_is_given(tmp_path: Path):
    (tmp_path / "a.json").write_text("[1", encoding="utf-8")
    (tmp_path / "b.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"(?s)nothing in it can be shown:.*a\.json: it ends.*b\.json: no list"):
        look(tmp_path)


def test_a_page_is_never_written_over_the_input_or_another_kind_of_file(rows: Path, tmp_path: Path):
    before = rows.read_bytes()
    with pytest.raises(UsageError, match="it would be replaced"):
        look(rows, html=rows)
    with pytest.raises(UsageError, match="does not exist"):
        look(rows, html=tmp_path / "no" / "x.html")
    with pytest.raises(UsageError, match="is a folder"):
        look(rows, html=tmp_path)
    assert rows.read_bytes() == before


def test_ctrl_c_shows_what_was_read_until_then(rows: Path):
    run, texts = Run(), list[str]()
    run.out = texts.append
    run.stop.ask()
    result = show(Show(path=rows), run)
    assert (result.status, result.overview.whole, result.exit_code) == ("interrupted", False, 130)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path):
    path = tmp_path / "big.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(20_000):
            file.write(json.dumps({"prompt": f"{number} " + "words " * 200}) + "\n")
    assert path.stat().st_size > 20e6
    look(path, limit=2)  # imports
    tracemalloc.start()
    try:
        result, _ = look(path, sample=3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.overview.entries == 20_000
    assert peak < 3e6


def test_reading_again_gives_the_same_entries(rollouts: Path):
    source = open_source(rollouts)
    assert [entry.place for entry in source.read()] == [entry.place for entry in source.read()]
    assert sum(isinstance(entry, Entry) for entry in source.read()) == 6


# ---- the command line -----------------------------------------------------------------------------------------------


def test_the_text_goes_to_stdout_and_with_json_only_the_result(
    rollouts: Path, folder: Path, capfd: pytest.CaptureFixture[str]
):
    assert cli.run("show", [str(rollouts), "--index=-1,0"])[0] == 1
    out = capfd.readouterr().out
    assert "── #0" in out
    assert "── #6" in out
    assert cli.run("show", ["--path", str(rollouts), "--json"])[0] == 1
    assert json.loads(capfd.readouterr().out)["overview"]["entries"] == 6
    assert cli.run("show", [str(rollouts), "--index", "99"])[0] == 2


def test_a_reader_that_leaves_early_is_no_error(rollouts: Path, folder: Path):
    command = f"{sys.executable} {ROOT}/scripts/show.py {rollouts} --limit 100 --full | head -n 1"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment(), capture_output=True, text=True)
    assert ended.stdout.startswith(str(rollouts))
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 1  # half a file is unreadable


def test_a_file_name_that_is_no_text_can_be_shown_and_is_shown_harmlessly(tmp_path: Path):
    name = os.fsencode(tmp_path) + b"/\xff\x1b[2J.json"
    with open(name, "w", encoding="utf-8") as file:
        json.dump(rollout(), file)
    result, text = look(tmp_path)
    assert "\x1b" not in text
    assert "\\x1b[2J.json" in text
    assert json.loads(result.model_dump_json())["overview"]["entries"] == 1


def test_no_color_and_the_flag_decide_on_colours(monkeypatch: pytest.MonkeyPatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colored(None)
    monkeypatch.setenv("NO_COLOR", "1")
    assert (colored(None), colored(True), colored(False)) == (False, True, False)
