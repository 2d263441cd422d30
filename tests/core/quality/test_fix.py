"""A file without the rows at fault: what stays, unchanged, and what goes with its reasons."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.quality.fix import Standing
from tests.core.quality.conftest import Check
from tests.support.running import read_rows, write_rows

TOPICS = ("rivers", "bridges", "bees", "clouds", "violins", "trains", "glass", "tides", "chess", "maps")


def row(topic: str, answer: str | None = None, **metadata: Any) -> dict[str, Any]:
    """A row without a fault, whose words are its own."""
    whole = (
        f"Think of {topic} first. What people know about {topic} comes from those who worked with {topic} day by day, "
        f"and who wrote down with care how {topic} change over the years."
    )
    said = whole if answer is None else answer
    messages = [{"role": "user", "content": f"Tell me about {topic}."}, {"role": "assistant", "content": said}]
    return {"messages": messages, "metadata": metadata}


# ---- which of several that are alike stays -------------------------------------------------------------------------


def test_the_first_of_rows_that_are_alike_stays() -> None:
    standing = Standing()
    # Row 0 has no fault. 1 and 2 are like it, 3 is like 2.
    assert not standing.stays(1, {"near_duplicate"}, 0)
    assert not standing.stays(2, {"exact_duplicate"}, 0)
    assert not standing.stays(3, {"near_duplicate"}, 2)


def test_where_the_first_goes_for_another_fault_the_next_without_one_stays_and_only_that() -> None:
    standing = Standing()
    assert not standing.stays(0, {"truncated"}, None)
    assert not standing.stays(1, {"near_duplicate", "refusal"}, 0)
    assert standing.stays(2, {"near_duplicate"}, 1)
    assert not standing.stays(3, {"near_duplicate"}, 0)
    assert not standing.stays(4, {"exact_duplicate"}, 2)


# ---- through the command -------------------------------------------------------------------------------------------


def test_rows_that_pass_stay_byte_for_byte_and_the_others_go_with_their_reasons(check_data: Check) -> None:
    odd = '{"metadata": {"note": "caf\\u00e9", "n": 1.50}, "messages": ' + json.dumps(row("rivers")["messages"]) + "}"
    refused = json.dumps(row("bees", "I'm sorry, but I can't help with that request."))
    lines = [odd, json.dumps(row("bridges")), refused, "{broken", odd]
    Path("train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    outcome = check_data("train.jsonl", "--fix", "clean.jsonl")
    assert outcome.code == 1, outcome.stderr  # thresholds are missed, and the file is there all the same
    assert (outcome.result["kept"], outcome.result["dropped"]) == (2, 3)
    assert Path("clean.jsonl").read_text(encoding="utf-8").splitlines() == lines[:2]
    gone = read_rows(Path("clean.dropped.jsonl"))
    assert [(each["place"], sorted(each["reasons"])) for each in gone] == [
        ("train.jsonl:3", ["refusal"]),
        ("train.jsonl:4", ["schema"]),
        ("train.jsonl:5", ["exact_duplicate"]),
    ]
    assert [each["row"] for each in gone] == [json.loads(refused), "{broken", json.loads(odd)]

    again = check_data("clean.jsonl")
    assert again.code == 0, again.stderr
    assert {one["count"] for one in again.result["measured"]} == {0}


def test_a_whole_row_stays_where_the_first_one_like_it_is_cut_off(check_data: Check) -> None:
    whole = row("rivers")
    cut = {**whole, "metadata": {"finish_reason": "length"}}
    write_rows(Path("train.jsonl"), [cut, whole, whole])
    outcome = check_data("train.jsonl", "--fix", "clean.jsonl")
    assert (outcome.result["kept"], outcome.result["dropped"]) == (1, 2)
    assert read_rows(Path("clean.jsonl")) == [whole]


def test_rows_of_tables_become_conversations_with_their_other_columns(check_data: Check) -> None:
    Path("qa.csv").write_text(
        'question,answer,level\n"What is a river, in short?","Water that flows, by itself, to a sea.",easy\n'
        "Why?,,hard\n",
        encoding="utf-8",
    )
    outcome = check_data("qa.csv", "--prompt-key", "question", "--fix", "clean.jsonl")
    assert (outcome.result["kept"], outcome.result["dropped"]) == (1, 1)
    (kept,) = read_rows(Path("clean.jsonl"))
    assert kept["messages"] == [
        {"role": "user", "content": "What is a river, in short?"},
        {"role": "assistant", "content": "Water that flows, by itself, to a sea."},
    ]
    assert kept["metadata"]["level"] == "easy"
    assert check_data("clean.jsonl").code == 0


def test_lists_in_one_document_go_over_as_they_are(check_data: Check) -> None:
    turns = [{"from": "human", "value": "Tell me about tides."}, {"from": "gpt", "value": "The moon pulls at the sea."}]
    rows = [{"conversations": turns, "dataset_type": "dialogue", "id": 7}]
    Path("combined_1.json").write_text(json.dumps({"conversations": rows}), encoding="utf-8")
    assert check_data("combined_1.json", "--fix", "clean.jsonl").result["kept"] == 1
    assert read_rows(Path("clean.jsonl")) == rows


def test_where_nothing_passes_nothing_is_written(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), [row("bees", "I'm sorry, but I can't help with that request.")])
    outcome = check_data("train.jsonl", "--fix", "clean.jsonl")
    assert outcome.code == 2
    assert "not one of the 1 rows of train.jsonl passes, so nothing is written. The report says why." in outcome.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["reports", "train.jsonl"]
    assert Path("reports/train/report.html").is_file()


def test_nothing_is_written_over_and_never_the_data(check_data: Check) -> None:
    data = write_rows(Path("train.jsonl"), [row(topic) for topic in TOPICS])
    before = data.read_bytes()
    outcome = check_data("train.jsonl", "--fix", "train.jsonl", "--overwrite")
    assert outcome.code == 2
    assert "--fix would write over train.jsonl, which is read" in outcome.stderr
    Path("link.jsonl").symlink_to("train.jsonl")
    assert check_data("train.jsonl", "--fix", "link.jsonl", "--overwrite").code == 2
    Path("clean.jsonl").write_text("mine", encoding="utf-8")
    outcome = check_data("train.jsonl", "--fix", "clean.jsonl")
    assert outcome.code == 2
    assert "clean.jsonl exists. Name another file with --fix, or pass --overwrite." in outcome.stderr
    assert check_data("train.jsonl", "--fix", "nowhere/clean.jsonl").code == 2
    assert (data.read_bytes(), Path("clean.jsonl").read_text(encoding="utf-8")) == (before, "mine")
    assert not Path("reports").exists()  # all of it is refused before a row is read

    assert check_data("train.jsonl", "--fix", "clean.jsonl", "--overwrite").code == 0
    assert Path("clean.jsonl").read_bytes() == before
    assert not Path("clean.dropped.jsonl").exists()  # no row went


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_values_that_json_does_not_have_do_not_stop_it(check_data: Check, kind: str) -> None:
    if kind == "jsonl":
        text = json.dumps(row("rivers"))[:-1] + ', "score": NaN}\n'
        Path("train.jsonl").write_text(text, encoding="utf-8")
        assert check_data("train.jsonl", "--fix", "clean.jsonl").result["kept"] == 1
        assert Path("clean.jsonl").read_text(encoding="utf-8") == text  # as it was
        return
    import datetime

    import pyarrow
    import pyarrow.parquet

    day = [datetime.date(2020, 1, 2)]
    table = pyarrow.table({"prompt": ["Tell me about bees."], "answer": ["They build combs of wax."], "day": day})
    pyarrow.parquet.write_table(table, "train.parquet")
    assert check_data("train.parquet", "--fix", "clean.jsonl").result["kept"] == 1
    assert read_rows(Path("clean.jsonl"))[0]["metadata"]["day"] == "2020-01-02"
