"""What the data must not hold: the items of tasks, and the texts of files."""

import json
from pathlib import Path

import pytest

from core.commands.check_data import CheckData
from core.errors import InputError, UsageError
from core.quality.evaluation_items import add_items, names_of
from tests.support.running import write_rows


class Collected:
    """Everything that was added, in its order."""

    def __init__(self) -> None:
        self.items: list[tuple[str, str, str]] = []

    def add(self, source: str, place: str, text: str) -> None:
        self.items.append((source, place, text))


def items_of(*tasks: str, against: list[Path] | None = None) -> tuple[list[tuple[str, str, str]], list[str]]:
    found, notes = Collected(), list[str]()
    add_items(found, CheckData(data="train.jsonl", tasks=list(tasks), against=against or []), notes.append)
    return found.items, notes


def test_names_may_be_separated_by_commas_and_count_once() -> None:
    assert names_of(CheckData(data="d", tasks=["a, b", "b,,c"])) == ["a", "b", "c"]


def test_a_suite_gives_all_items_of_its_tasks_as_they_are_asked() -> None:
    found, _ = items_of("offline")
    assert {source for source, _, _ in found} == {"mmlu_dev", "small_sums", "word_forms"}
    sums = [text for source, _, text in found if source == "small_sums"]
    assert len(sums) == 100
    assert sums[0] == "What is 5 + 9? Answer with the number only."
    # The template writes "Question: ...\nAnswer:" around each: no words of the item.
    questions = [text for source, _, text in found if source == "mmlu_dev"]
    assert not [text for text in questions if text.startswith("Question:") or text.endswith("Answer:")]


def test_a_task_by_name_gives_the_same_items_as_its_suite() -> None:
    suite, _ = items_of("offline")
    assert items_of("word_forms")[0] == [item for item in suite if item[0] == "word_forms"]


def test_unknown_tasks_and_those_whose_data_are_not_here_are_refused_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")  # no network, nothing kept
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UsageError, match=r"no task is called small_sum\. Similar ones: small_sums"):
        items_of("small_sum")
    with pytest.raises(UsageError, match=r"arc_easy: its data set .* --tasks offline needs no network"):
        items_of("arc_easy")


def test_files_of_prompts_texts_and_lines_are_items_with_their_places(tmp_path: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "no item"}]}
    rows = write_rows(tmp_path / "test.jsonl", [{"prompt": "two?"}, asked, {"text": "a page"}])
    lines = tmp_path / "secret.txt"
    lines.write_text("first line\n\nsecond line\n", encoding="utf-8")
    found, notes = items_of(against=[rows, lines])
    assert found == [
        (str(rows), f"{rows}:1", "two?"),
        (str(rows), f"{rows}:2", "one?"),
        (str(rows), f"{rows}:3", "a page"),
        (str(lines), f"{lines}:1", "first line"),
        (str(lines), f"{lines}:3", "second line"),
    ]
    assert notes == []


def test_rows_that_cannot_be_read_are_counted_and_a_file_without_any_text_is_refused(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "test.jsonl", [{"prompt": "two?"}, {"other": 1}, {"prompt": ""}])
    found, notes = items_of(against=[rows])
    assert len(found) == 1
    assert notes[0].startswith(f"--against {rows}: 2 rows cannot be read and are not looked for, the first: {rows}:2")
    nothing = write_rows(tmp_path / "nothing.jsonl", [{"other": 1}])
    with pytest.raises(InputError, match=r"holds no text to compare with \(.*nothing.jsonl:1: no \"prompt\""):
        items_of(against=[nothing])
    with pytest.raises(InputError, match="no such file"):
        items_of(against=[tmp_path / "gone.jsonl"])
    (tmp_path / "notes.json").write_text(json.dumps(["only a text"]), encoding="utf-8")
    assert [text for _, _, text in items_of(against=[tmp_path / "notes.json"])[0]] == ["only a text"]
