"""The tasks that need no download: what they ask, and that no wrong answer passes for a right one."""

import json
import re
from importlib.resources import files
from typing import Any

import pytest

from core.commands.evaluate import Evaluate
from core.evaluation.lm_tasks import load_tasks
from core.evaluation.offline import mmlu_dev, small_sums, word_forms
from core.evaluation.suites import selected


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    """As lm-eval loads them from our YAML."""
    options = Evaluate(student="student", suite=["offline"])
    return {loaded.info.name: loaded.task for loaded in load_tasks(options, selected(options))}


def documents(task: Any) -> list[dict[str, Any]]:
    return list(task.eval_docs)


def score(task: Any, answers: list[Any]) -> float:
    """Share of items that lm-eval counts as right."""
    docs = documents(task)
    return sum(task.process_results(doc, answer)["acc"] for doc, answer in zip(docs, answers, strict=True)) / len(docs)


# ---- all of them ---------------------------------------------------------------------------------------------------


def test_the_suite_has_about_300_different_items_in_about_equal_shares(tasks: dict[str, Any]) -> None:
    items = {name: documents(task) for name, task in tasks.items()}
    assert {name: len(docs) for name, docs in items.items()} == {"mmlu_dev": 106, "small_sums": 100, "word_forms": 100}
    for docs in items.values():
        assert len({doc["question"] for doc in docs}) == len(docs)


def test_who_knows_everything_gets_all_right_and_who_repeats_the_question_nothing(tasks: dict[str, Any]) -> None:
    for name in ("small_sums", "word_forms"):
        docs = documents(tasks[name])
        assert score(tasks[name], [[tasks[name].doc_to_target(doc)] for doc in docs]) == 1
        assert score(tasks[name], [[doc["question"]] for doc in docs]) == 0
        assert score(tasks[name], [[""] for _ in docs]) == 0
    choice = tasks["mmlu_dev"]
    keys = [doc["answer"] for doc in documents(choice)]
    assert score(choice, [[(0.0 if n == key else -50.0, False) for n in range(4)] for key in keys]) == 1
    assert score(choice, [[(-50.0 if n == key else 0.0, False) for n in range(4)] for key in keys]) == 0


def test_another_item_s_right_answer_is_wrong_here(tasks: dict[str, Any]) -> None:
    task = tasks["word_forms"]
    docs = documents(task)
    others = [next(other for other in docs if not set(other["answers"]) & set(doc["answers"])) for doc in docs]
    assert score(task, [[other["answers"][0]] for other in others]) == 0


# ---- sums ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "12",
        " 12.\n",
        "12.0",
        "**12**",
        "_12_",
        "$12",
        "The answer is 12.",
        "The answer is: 12",
        "7 + 5 = 12",
        "7+5=12.",
        "5 + 7 = 12",
        "7 plus 5 is 12!",
        "The sum of 7 and 5 is 12.",
        "\\( 7 + 5 = 12 \\)",
        "12. That is, 7 + 5 = 12.",
        "7 + 5 = 12\n\nThis is one of 100 examples",
    ],
)
def test_a_right_sum_may_come_in_a_sentence(said: str) -> None:
    assert small_sums.is_right(said, 7, 5, 12)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "twelve or so",
        "13",
        "12 or 13",
        "12, 13",
        "13, no, 12",
        "either 12",
        "7 or 12",
        "7, 5, 12",
        "7 or 5 = 12",
        "not 12",
        "It isn't 12",
        "Is it 12?",
        "112",
        "120",
        "12th",
        "x12",
        "1.2",
        "12.5",
        "12,5",
        "1,200",
        "-12",
        "7 + 5 = -12",
        "−12",
        "7 + 5",
        "7 + 5 = 7 + 5",
        "7 + 6 = 12",
        "75 = 12",
        "12/2",
        "1 2",
        "12 13",
        "10-12",
        "12e1",
        "1_2",
        "१२",
        "The answer is\n\n12",
    ],
)
def test_a_wrong_or_doubtful_sum_is_wrong(said: str) -> None:
    assert not small_sums.is_right(said, 7, 5, 12)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("12 - 5 = 7", True),
        ("12-5=7", True),
        ("12 -5 = 7", True),
        ("12 − 5 = 7", True),
        ("12 minus 5 is 7", True),
        ("5 from 12 leaves 7.", True),
        ("12 - 5 = -7", False),
        ("12 - 5", False),
        ("12 - 7 = 5", False),
        ("7 - 5 = 12", False),
    ],
)
def test_a_difference_keeps_its_signs_apart(said: str, right: bool) -> None:
    assert small_sums.is_right(said, 12, 5, 7) is right


def test_sums_are_right_the_same_every_time_and_never_answered_by_their_own_numbers() -> None:
    items = small_sums.items()
    assert items == small_sums.items()
    for item in items:
        left, right, answer = item["left"], item["right"], int(item["answer"])
        assert answer == (left + right if item["sign"] == "+" else left - right)
        assert answer > 0
        assert answer not in (left, right)
        assert f"{left} {item['sign']} {right}?" in item["question"]


# ---- words -----------------------------------------------------------------------------------------------------------

MOUSE = 'What is the plural of "mouse"? Answer with one word.'
LETTER = 'What is the first letter of the word "table"?'


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (MOUSE, "mice"),
        (MOUSE, "MICE!"),
        (MOUSE, 'The plural of "mouse" is "mice".'),
        (MOUSE, "The answer is: **mice**."),
        (MOUSE, "_mice_"),
        (MOUSE, "One mouse, mice."),
        (MOUSE, "Mice\n\nMice are rodents"),
        (LETTER, "t"),
        (LETTER, 'The first letter of the word "table" is "T".'),
    ],
)
def test_a_right_word_may_come_in_a_sentence(question: str, said: str) -> None:
    assert word_forms.is_right(said, question, ["mice"] if question == MOUSE else ["t"])


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (MOUSE, ""),
        (MOUSE, "mouse"),
        (MOUSE, "mouses"),
        (MOUSE, "mice or mouses"),
        (MOUSE, "mice or mouse"),
        (MOUSE, "mice, mouses"),
        (MOUSE, "not mice"),
        (MOUSE, "It isn't mice"),
        (MOUSE, "micey"),
        (MOUSE, "dormice"),
        (MOUSE, "mice-like"),
        (MOUSE, "mice's"),
        (MOUSE, "mi ce"),
        (MOUSE, "mice2"),
        (MOUSE, "mouses\nmice"),
        (LETTER, "table"),
        (LETTER, "a"),
        (LETTER, "t, a"),
        (LETTER, "T-A-B-L-E"),
        (LETTER, "The first letter is not t"),
    ],
)
def test_a_wrong_or_doubtful_word_is_wrong(question: str, said: str) -> None:
    assert not word_forms.is_right(said, question, ["mice"] if question == MOUSE else ["t"])


def test_every_right_word_counts_and_stands_in_no_question_of_its_own() -> None:
    items = word_forms.items()
    assert items == word_forms.items()
    for item in items:
        for answer in item["answers"]:
            assert word_forms.is_right(f'The answer is "{answer}".', item["question"], item["answers"])
            assert not re.search(rf"\b{answer}\b", item["question"])


# ---- the development questions of MMLU -------------------------------------------------------------------------------


def test_development_questions_come_from_the_installed_lm_eval_without_their_solutions() -> None:
    texts: dict[str, str] = json.loads(files("lm_eval").joinpath(mmlu_dev.FILE).read_text(encoding="utf-8"))
    items = mmlu_dev.items()
    assert len({item["subject"] for item in items}) > 50
    for item in items:
        text = texts[item["subject"]]
        assert item["question"] in text
        assert all(choice in text for choice in item["choices"])
        assert "step by step" not in item["question"] + item["choices"][3]


def test_the_key_of_a_development_question_is_the_one_of_its_solution() -> None:
    by_question = {item["question"]: item for item in mmlu_dev.items()}
    item = by_question["Which of the following is the body cavity that contains the pituitary gland?"]
    assert item["choices"] == ["Abdominal", "Cranial", "Pleural", "Spinal"]
    assert item["choices"][item["answer"]] == "Cranial"
