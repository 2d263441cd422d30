"""rnow's row fields, and which rows a user selected."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.commands.run_rollouts import RunRollouts
from core.data.prompts import BadRow, Prompt
from core.errors import UsageError
from core.generation.entries import Entry, Rows, Selection, prompts_file, select, spelled, to_entry


def prompt(text: str = "Hi", **metadata: Any) -> Prompt:
    return Prompt(3, "train.jsonl:4", [{"role": "user", "content": text}], metadata)


def entry(text: str = "Hi", **metadata: Any) -> Entry:
    found = to_entry(prompt(text, **metadata))
    assert isinstance(found, Entry), found
    return found


# ---- rows ----------------------------------------------------------------------------------------------------------


def test_the_fields_of_a_row_leave_its_metadata() -> None:
    found = entry(
        expected_answer=4,
        docker="local/web",
        docker_env={"PORT": "80"},
        tools=["add"],
        variables={"n": 2},
        rewards=["accuracy"],
    )
    assert (found.docker, found.docker_env, found.tools) == ("local/web", {"PORT": "80"}, ["add"])
    assert found.row == {"variables": {"n": 2}, "rewards": ["accuracy"]}
    assert found.prompt.metadata == {"expected_answer": 4}


def test_a_plain_prompt_asks_for_nothing_and_gets_all_tools() -> None:
    found = entry()
    assert (found.docker, found.docker_env, found.tools, found.row) == (None, {}, None, {})


def test_a_row_may_want_no_tools() -> None:
    assert entry(tools=[]).tools == []


def test_variables_are_put_into_the_messages_and_unknown_ones_stay() -> None:
    found = entry("Add $a and ${b}, and $c, for $5", variables={"a": 1, "b": "two"})
    assert found.prompt.messages == [{"role": "user", "content": "Add 1 and two, and $c, for $5"}]


def test_without_variables_a_dollar_is_a_dollar() -> None:
    assert entry("It costs $$5 and $a").prompt.messages[0]["content"] == "It costs $$5 and $a"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"docker": 5}, '"docker" must be the name of an image, found 5.'),
        ({"docker": " "}, '"docker" must be the name of an image'),
        ({"docker_env": {"A": "1"}}, 'beside "docker"'),
        ({"docker": "x", "docker_env": {"A": 1}}, '"docker_env" must be an object of texts'),
        ({"docker": "x", "docker_env": ["A=1"]}, '"docker_env" must be an object of texts'),
        ({"tools": "add"}, '"tools" must be a list of tool names'),
        ({"tools": [{"type": "function"}]}, '"tools" must be a list of tool names'),
        ({"variables": ["a"]}, '"variables" must be an object, found list.'),
        ({"rewards": "accuracy"}, '"rewards" must be a list of names of reward functions.'),
        ({"rewards": [1]}, '"rewards" must be a list of names of reward functions.'),
    ],
)
def test_a_wrong_field_makes_a_bad_row_with_its_place(row: dict[str, Any], problem: str) -> None:
    bad = to_entry(prompt(**row))
    assert isinstance(bad, BadRow)
    assert str(bad).startswith("train.jsonl:4: ")
    assert problem in str(bad)


# ---- selection -----------------------------------------------------------------------------------------------------


def rows(count: int) -> Rows:
    def read() -> Iterator[Prompt | BadRow]:
        for index in range(count):
            yield Prompt(index, f"p:{index}", [], {}) if index % 3 else BadRow(index, f"p:{index}", "bad")

    return read


def chosen(size: int, **options: Any) -> list[int]:
    selection = selected(size, **options)
    found = [index for index in range(size + 5) if selection.wanted(index)]
    assert selection.count == len(found)
    return found


def selected(size: int, **options: Any) -> Selection:
    return select(RunRollouts.model_validate(options), rows(size))


@pytest.mark.parametrize(
    ("options", "indexes"),
    [
        ({}, [0]),
        ({"num_rollouts": 3}, [0, 1, 2]),
        ({"num_rollouts": 300}, list(range(10))),
        ({"all": True}, list(range(10))),
        ({"entry": "0,2,4"}, [0, 2, 4]),
        ({"entry": "3-5"}, [3, 4, 5]),
        ({"entry": ["1", "3-4", "8,9"]}, [1, 3, 4, 8, 9]),
        ({"entry": "1,1,0-1"}, [0, 1]),
        ({"entry": "8-20"}, [8, 9]),
        ({"entry": "9,10"}, [9]),
        ({"entry": "7-7"}, [7]),
        ({"entry": 4}, [4]),
        ({"entry": "5-99999999999999"}, [5, 6, 7, 8, 9]),
    ],
)
def test_what_is_selected_of_ten_rows_good_and_bad(options: dict[str, Any], indexes: list[int]) -> None:
    assert chosen(10, **options) == indexes


@pytest.mark.parametrize(
    ("entry", "skipped"),
    [("8-20", ["10-20"]), ("9,10", ["10"]), ("3,50-59,10", ["10", "50-59"]), ("0-9", [])],
)
def test_what_is_past_the_end_is_named(entry: str, skipped: list[str]) -> None:
    assert selected(10, entry=entry).skipped == skipped


def test_nothing_but_indexes_past_the_end_is_an_error(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--entry 10-19, 30: train\.jsonl has none of these; the last .* is 9\."):
        selected(10, entry="10-19,30")


def test_an_input_without_rows_is_an_error(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.jsonl: holds no prompts"):
        selected(0, all=True)


def test_random_rows_are_different_ones_and_the_same_for_the_same_seed() -> None:
    first = chosen(1000, num_rollouts=20, random=True, seed=1)
    assert len(first) == 20
    assert first == chosen(1000, num_rollouts=20, random=True, seed=1)
    assert first != chosen(1000, num_rollouts=20, random=True, seed=2)
    assert first != list(range(20))


def test_more_random_rows_than_there_are_is_all_of_them() -> None:
    assert chosen(10, num_rollouts=50, random=True) == list(range(10))


def test_ranges_are_spelled_as_the_user_wrote_them() -> None:
    assert (spelled(range(7, 8)), spelled(range(5, 9))) == ("7", "5-8")


# ---- where the prompts are -----------------------------------------------------------------------------------------


def test_prompts_that_a_conversion_set_aside_come_first(folder: Path) -> None:
    assert prompts_file(RunRollouts()) == "train.jsonl"
    (folder / "train.prompts.jsonl").write_text("{}")
    assert prompts_file(RunRollouts()) == "train.prompts.jsonl"
    assert prompts_file(RunRollouts(input="other.csv")) == "other.csv"


def test_config_yml_names_the_prompts(folder: Path) -> None:
    (folder / "config.yml").write_text("data:\n  train_file: tasks/all.jsonl\n")
    (folder / "train.prompts.jsonl").write_text("{}")
    assert prompts_file(RunRollouts()) == "tasks/all.jsonl"
    (folder / "tasks").mkdir()
    (folder / "tasks/all.prompts.jsonl").write_text("{}")
    assert prompts_file(RunRollouts()) == "tasks/all.prompts.jsonl"
