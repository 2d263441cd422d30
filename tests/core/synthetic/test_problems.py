"""Problems that are made here: solvable, varied, and answered rightly by what is stored as right."""

import operator
import re
from collections import Counter
from random import Random

import pytest

from core.quality.verify import value_of
from core.synthetic.problems import BEGINNINGS, OF_SIGNS, STATE_NUMBER, STEPS, STORIES, WRITTEN, is_right, make_problem
from core.synthetic.records import Problem

MANY = 400
DIFFICULTIES = ("easy", "medium", "hard")


def arithmetic(difficulty: str, count: int = MANY) -> list[Problem]:
    return [make_problem("arithmetic", difficulty, Random(seed)) for seed in range(count)]


def countdown(difficulty: str, count: int = MANY) -> list[Problem]:
    return [make_problem("countdown", difficulty, Random(seed)) for seed in range(count)]


def shape(template: str) -> "re.Pattern[str]":
    """A template as a pattern whose groups are its numbers."""
    pattern = re.escape(template).replace(r"\{\}", r"(\d+)")
    return re.compile(re.sub(r"\\\{\w+\\\}", r"\\w+", pattern))


def in_turn(operations: str, numbers: list[int]) -> int:
    """Left to right, as somebody follows a story."""
    total = numbers[0]
    for operation, number in zip(operations, numbers[1:], strict=True):
        total = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}[operation](
            total, number
        )
    return total


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_the_value_of_a_written_calculation_is_what_is_expected(difficulty: str) -> None:
    checked = 0
    for problem in arithmetic(difficulty):
        for wording in WRITTEN + OF_SIGNS:
            before, after = map(re.escape, wording.split("{}"))
            if found := re.match(f"{before}([^a-z]*\\d[^a-z]*){after} ", problem.question):
                assert value_of(found[1]) == int(problem.expected), problem
                numbers = len(re.findall(r"\d+", found[1]))
                assert numbers == {"easy": 2, "medium": 3, "hard": 4}[difficulty]
                assert ("(" in found[1]) >= (difficulty == "hard")
                checked += 1
                break
    assert checked > MANY / 4


def test_steps_one_after_another_lead_to_what_is_expected() -> None:
    checked = 0
    for problem in [each for difficulty in DIFFICULTIES for each in arithmetic(difficulty)]:
        first, *steps = problem.question.split(".")[0].split(", then ")
        if not steps or not any(shape(start).fullmatch(first) for start in BEGINNINGS):
            continue
        total = int(re.findall(r"\d+", first)[0])
        for step in steps:
            ((operation, number),) = {
                (sign, int(found[1])) for sign, texts in STEPS.items() for text in texts
                if (found := shape(text).fullmatch(step))
            }  # fmt: skip
            total = in_turn(operation, [total, number])
        assert total == int(problem.expected), problem
        checked += 1
    assert checked > 3 * MANY / 8


def test_every_story_is_told_and_comes_to_what_is_expected() -> None:
    told = Counter[str]()
    for problem in [each for difficulty in DIFFICULTIES for each in arithmetic(difficulty, 3 * MANY)]:
        for operations, stories in STORIES.items():
            for story in stories:
                if found := shape(story).match(problem.question):
                    numbers = [int(number) for number in found.groups()]
                    assert in_turn(operations, numbers) == int(problem.expected), problem
                    assert all(in_turn(operations[:n], numbers[: n + 1]) >= 0 for n in range(len(numbers)))
                    told[story] += 1
    assert set(told) == {story for stories in STORIES.values() for story in stories}


def test_a_phrase_in_words_has_one_meaning() -> None:
    # Of two operations, the inner one stands last or is closed off by "is divided by" or "is taken away from".
    names = {"sum of": "+", "product of": "*", "difference when": "-", "quotient when": "/"}
    noun = (
        r"(?:the (?:sum|product) of \d+ and \d+|the (?:difference|quotient) when \d+ is \w+ (?:away from|by) \d+|\d+)"
    )
    phrase = re.compile(
        rf"the (?:(sum of|product of) (\d+) and ({noun})|(difference|quotient) when ({noun}) is \w+ (?:away from|by) "
        rf"({noun}))"
    )

    def value(text: str) -> int:
        if text.isdigit():
            return int(text)
        found = phrase.fullmatch(text)
        assert found, text
        if found[1]:
            return in_turn(names[found[1]], [value(found[2]), value(found[3])])
        one, other = value(found[5]), value(found[6])
        return other - one if found[4] == "difference" else one // other

    checked = 0
    for problem in [*arithmetic("easy"), *arithmetic("medium")]:
        for wording in WRITTEN:
            before, after = map(re.escape, wording.split("{}"))
            if found := re.match(f"{before}(the .*?){after} (?=[A-Z])", problem.question):
                assert value(found[1]) == int(problem.expected), problem
                checked += 1
                break
    assert checked > MANY / 5


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_what_is_expected_is_right_and_its_neighbours_are_not(difficulty: str) -> None:
    for problem in arithmetic(difficulty, 50):
        assert problem.verify == "arithmetic"
        result = int(problem.expected)
        for answer in ("Answer: {}", "So it is \\boxed{{{}}}.", "First 1 + 1 = 2, then ...\n**Answer: {}**"):
            assert is_right(problem, answer.format(result))
            assert not is_right(problem, answer.format(result + 1))
        assert not is_right(problem, "I do not know.")


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_countdown_has_a_solution_and_no_trivial_one(difficulty: str) -> None:
    for problem in countdown(difficulty):
        numbers, target = problem.numbers, problem.target
        assert len(numbers) == (4 if difficulty == "hard" else 3)
        assert all(2 <= number <= (20 if difficulty == "easy" else 99) for number in numbers)
        assert 10 <= target <= 99
        assert target not in numbers
        assert target != sum(numbers)
        assert value_of(problem.expected) == target
        assert is_right(problem, f"<answer>{problem.expected}</answer>")
        assert is_right(problem, f"Let me see.\n{problem.expected} = {target}")
        assert not is_right(problem, f"<answer>{problem.expected} + 1</answer>")
        assert not is_right(problem, f"<answer>{target}</answer>")
        said = [int(number) for number in re.findall(r"\d+", problem.question.split(" Use ")[0].split(" Each ")[0])]
        assert set(numbers) | {target} <= set(said)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_questions_differ_in_numbers_and_in_words(difficulty: str) -> None:
    for made, least in ((arithmetic(difficulty), 20), (countdown(difficulty), 40)):
        assert len({problem.question for problem in made}) > 0.98 * MANY
        wordings = {re.sub(r"\d+|[^\w ]|\b[A-Z]\w+\b", "", problem.question) for problem in made}
        assert len(wordings) >= least


def test_every_question_says_how_the_result_is_to_be_stated() -> None:
    assert all(problem.question.endswith(STATE_NUMBER) for problem in arithmetic("medium"))
    assert all("answer>" in problem.question for problem in countdown("medium"))


def test_the_same_random_gives_the_same_problem() -> None:
    for verify in ("arithmetic", "countdown"):
        assert make_problem(verify, "hard", Random(7)) == make_problem(verify, "hard", Random(7))
        assert make_problem(verify, "hard", Random(7)) != make_problem(verify, "hard", Random(8))


def test_an_expression_that_came_with_its_question_is_checked_as_a_number() -> None:
    problem = Problem("What is a third of 10?", "expression", "10/3")
    assert is_right(problem, "10/3 = 3.33")
    assert not is_right(problem, "It is 3.4")
