"""The files of a data set: everything that was made is in them, and our readers give it back."""

import csv
import itertools
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.commands.check_data import CheckData
from core.data.prompts import Prompt, PromptOptions, open_prompts
from core.quality.rows import open_rows
from core.show.entries import Entry, open_source
from core.synthetic.export import export
from core.synthetic.records import Record, Slot
from core.teachers import Message

EVIL = '=HYPERLINK("http://x.test"), "quoted"\r\nsecond line\rthird\n'


def record(
    number: int, kind: Any, fields: dict[str, str], texts: list[str], system: str = "", **metadata: Any
) -> Record:
    said = [{"role": role, "content": text} for role, text in zip(itertools.cycle(("user", "assistant")), texts)]
    messages: list[Message] = [{"role": "system", "content": system}, *said] if system else said
    turns = len(texts) // 2
    return Record(
        Slot(number, kind, 0, fields, turns), messages, {"dataset_type": kind, **fields, "index": number, **metadata}
    )


def reasoning(number: int, question: str = "2+2?", answer: str = "4", **metadata: Any) -> Record:
    return record(number, "reasoning", {"task_type": "math", "difficulty": "easy"}, [question, answer], **metadata)


def dialogue(number: int, *texts: str, **metadata: Any) -> Record:
    return record(number, "dialogue", {"domain": "support"}, list(texts), **metadata)


def instruction(number: int, **metadata: Any) -> Record:
    fields = {"category": "writing", "subcategory": "poem"}
    return record(number, "instruction", fields, ["Write.", "- a\n- b"], **metadata)


ALL = [
    reasoning(0, expected_answer="4", passage={"place": "a.md:1", "text": "ä, \u2028"}, cost=None, ratio=0.5),
    dialogue(1, "Hi", "Hello", "More?", "No."),
    instruction(2, system="Be kind."),
    reasoning(3, EVIL, EVIL, attributes={"topic": "=1+1"}),
    dialogue(4, "'=Hi", "-5", system="+Be", models=["a", "b"]),
    dialogue(5, "One", "Two", "=Three", "Four", system="Be short."),
]


def write(folder: Path, records: list[Record]) -> list[str]:
    return export(folder, lambda: iter(records), len(records))


def table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        return list(reader.fieldnames or ()), rows


def conversations(path: Path, key: str = "prompt") -> list[list[Message]]:
    """What every reader of ours gets from a file: the messages with the answer."""
    with open_prompts(str(path), PromptOptions(key)) as prompts:
        rows = list(prompts())
    assert all(isinstance(row, Prompt) for row in rows), rows
    return [[*row.messages, *row.answer] for row in rows if isinstance(row, Prompt)]


def test_the_files_and_their_names(tmp_path: Path) -> None:
    names = ["train.jsonl", "combined_6.json", "combined_6.csv", "reasoning.csv", "dialogue.csv", "instruction.csv"]
    assert write(tmp_path, ALL) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize(
    ("name", "key"), [("train.jsonl", "prompt"), ("combined_6.json", "prompt"), ("combined_6.csv", "user")]
)
def test_the_same_conversations_come_back_from_every_file_in_the_order_of_the_slots(
    tmp_path: Path, name: str, key: str
) -> None:
    write(tmp_path, ALL)
    assert conversations(tmp_path / name, key) == [each.messages for each in ALL]


@pytest.mark.parametrize(("kind", "key"), [("reasoning", "question"), ("dialogue", "user"), ("instruction", "prompt")])
def test_the_same_conversations_come_back_from_the_file_of_a_type(tmp_path: Path, kind: str, key: str) -> None:
    write(tmp_path, ALL)
    expected = [each.messages for each in ALL if each.slot.type == kind]
    assert conversations(tmp_path / f"{kind}.csv", key) == expected


def test_json_files_lose_nothing(tmp_path: Path) -> None:
    write(tmp_path, ALL)
    expected = [{"messages": each.messages, "metadata": each.metadata} for each in ALL]

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    combined = json.loads((tmp_path / "combined_6.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert combined == {"conversations": expected}
    lines = (tmp_path / "train.jsonl").read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == expected


def test_what_is_no_number_is_null_so_that_json_stays_json(tmp_path: Path) -> None:
    write(tmp_path, [reasoning(0, ratio=float("nan"))])
    assert "NaN" not in (tmp_path / "combined_1.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "train.jsonl").read_bytes())["metadata"]["ratio"] is None


def test_each_type_has_its_columns_and_combined_has_them_all(tmp_path: Path) -> None:
    write(tmp_path, ALL)
    columns, rows = table(tmp_path / "reasoning.csv")
    assert columns[:4] == ["task_type", "difficulty", "question", "answer"]
    assert columns[4:] == ["index", "expected_answer", "passage", "ratio", "attributes"]
    assert rows[0]["passage"] == '{"place":"a.md:1","text":"ä, \u2028"}'
    columns, rows = table(tmp_path / "dialogue.csv")
    assert columns == ["domain", "user", "assistant", "messages", "index", "system", "models"]
    assert (rows[0]["user"], rows[0]["assistant"]) == ("Hi", "Hello")  # the first pair stands without the others
    columns, _ = table(tmp_path / "instruction.csv")
    assert columns[:4] == ["category", "subcategory", "instruction", "response"]
    columns, rows = table(tmp_path / "combined_6.csv")
    assert columns[:3] == ["user", "assistant", "dataset_type"]
    assert set(columns[3:]) == {
        *("task_type", "difficulty", "domain", "category", "subcategory", "system", "messages"),
        *("index", "expected_answer", "passage", "ratio", "attributes", "models"),
    }
    assert [row["dataset_type"] for row in rows] == [each.slot.type for each in ALL]


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    for name in write(tmp_path, ALL):
        if name.endswith(".csv"):
            _, rows = table(tmp_path / name)
            cells = [cell for row in rows for cell in row.values()]
            assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t", "\r")]
            assert [cell for cell in cells if cell[:1] == "-"] in ([], ["-5"])


def test_a_key_of_the_metadata_does_not_take_the_place_of_a_column(tmp_path: Path) -> None:
    write(tmp_path, [reasoning(0, user="nobody", messages=3, metadata={"a": 1})])
    for name, key in (("reasoning.csv", "question"), ("combined_1.csv", "user")):
        _, (row,) = table(tmp_path / name)
        assert row[key] == "2+2?"
        assert (row["metadata.user"], row["metadata.messages"], row["metadata.metadata"]) == ("nobody", "3", '{"a":1}')
        assert conversations(tmp_path / name, key) == [ALL[0].messages]


def test_a_column_is_no_formula_either(tmp_path: Path) -> None:
    write(tmp_path, [reasoning(0, **{"=1+1": "x"})])
    columns, _ = table(tmp_path / "combined_1.csv")
    assert columns[-1] == "'=1+1"


def test_check_data_and_show_read_every_file(tmp_path: Path) -> None:
    keys = {"combined_6.csv": "user", "reasoning.csv": "question", "dialogue.csv": "user"}
    for name in write(tmp_path, ALL):
        path = tmp_path / name
        with open_rows(CheckData(data=str(path), prompt_key=keys.get(name, "prompt"))) as rows:
            entries = list(rows())
        assert all(entry.problem is None and entry.answer for entry in entries), name
        shown = list(open_source(path).read())
        assert len(shown) == len(entries)
        for entry in shown:  # a row of texts shows them as its fields
            assert isinstance(entry, Entry)
            assert entry.messages or entry.fields, name
            assert entry.title


def test_files_of_an_earlier_export_go_and_others_stay(tmp_path: Path) -> None:
    write(tmp_path, ALL)
    (tmp_path / "combined_7.csv").write_text("mine,too\n1,2\n", encoding="utf-8")
    (tmp_path / "combined_8.json").write_text("{}", encoding="utf-8")
    (tmp_path / "combined_9.json").mkdir()
    (tmp_path / ".combined_9.json.tmp").write_text("torn", encoding="utf-8")
    (tmp_path / "paid_answers.jsonl").write_text("paid", encoding="utf-8")
    names = write(tmp_path, ALL[:1])
    assert names == ["train.jsonl", "combined_1.json", "combined_1.csv", "reasoning.csv"]
    others = {"combined_7.csv", "combined_8.json", "combined_9.json", "paid_answers.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == {*names, *others}


def test_somebody_elses_table_of_a_name_that_is_not_needed_stays(tmp_path: Path) -> None:
    (tmp_path / "dialogue.csv").write_text("mine,too\n1,2\n", encoding="utf-8")
    write(tmp_path, ALL[:1])
    assert (tmp_path / "dialogue.csv").read_text(encoding="utf-8") == "mine,too\n1,2\n"


def test_without_records_nothing_is_touched(tmp_path: Path) -> None:
    write(tmp_path, ALL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert write(tmp_path, []) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failure_in_the_midst_leaves_the_old_files_whole_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, ALL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    passes = itertools.count()

    def breaking() -> Iterator[Record]:
        yield ALL[0]
        if next(passes):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export(tmp_path, breaking, 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        export(tmp_path, lambda: (reasoning(number, "x" * 1000) for number in range(count)), count)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(100)
    assert peak(4000) < peak(1000) + 200_000  # 4,000 rows are 8 MB
