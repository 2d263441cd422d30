"""Whether a final answer is the expected one, and what the user's own reward functions say."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from core.errors import InputError, UsageError
from core.generation.check import Check, Rewards, Verdict, final_answer, matches, normalised, number_in

SAID = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "The answer is 42."}]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Paris", "paris"),
        ("  **Paris**. ", "Paris"),
        ("It is in PARIS, of course.", "Paris"),
        ("“Paris”", "Paris"),
        ("The answer is `Paris`!", "Paris"),
        ("Straße", "STRASSE"),
        ("ﬁne print", "fine print"),  # a ligature
        ("Ｐａｒｉｓ", "paris"),  # full width
        ("New   York\ncity", "new york city"),
        ("C++ is it", "C++"),
        ("O’Brien", "O'Brien"),
        ("It costs 1,200 euros.", "1,200"),
        ("either London or Rome", ["Paris", "Rome"]),
        ("The temperature is −5 °C", "-5"),  # a real minus sign
        ("It is 42.", 42),
        ("Version 3.5, I think.", "3.5"),
        ("Yes: true", True),
    ],
)
def test_contains_finds_the_expected_answer_as_whole_words(answer: str, expected: Any) -> None:
    assert matches(answer, expected, "contains")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Parisian", "Paris"),
        ("142", "42"),
        ("421", "42"),
        ("London", "Paris"),
        ("anything", ""),
        ("", "Paris"),
        ("anything", []),
        ("London", ["Paris", "Rome"]),
    ],
)
def test_contains_finds_no_part_of_a_word(answer: str, expected: Any) -> None:
    assert not matches(answer, expected, "contains")


@pytest.mark.parametrize(
    ("answer", "expected"), [("3.5", "5"), ("It is -5.", "5"), ("42.5 km", "42"), ("1,042", "42"), ("42,000", "42")]
)
def test_contains_finds_no_number_in_another(answer: str, expected: str) -> None:
    assert not matches(answer, expected, "contains")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("42", "42"),
        ("The answer is 42.", "42"),
        ("Let us see: 6 x 7.\n\n**Final Answer:** 42", "42"),
        ("Final Answer: Ada Lovelace", "ada lovelace"),
        (r"So it is \boxed{42}, I say", "42"),
        (r"\boxed{1} was wrong, \boxed{2} is right", "2"),
        ("The answer is -5", "-5"),
        ("The answer:\n42", "42"),
        ("**Final Answer:**\n\n42", "42"),
        ("answer = blue", "blue"),
    ],
)
def test_exact_takes_the_whole_answer_or_what_it_marks_as_its_result(answer: str, expected: str) -> None:
    assert matches(answer, expected, "exact")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("It is 42, or so", "42"), ("The answer is 43", "42"), (r"\boxed{43} or 42", "42"), ("", "42")],
)
def test_exact_takes_nothing_beside_it(answer: str, expected: str) -> None:
    assert not matches(answer, expected, "exact")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It costs $1,200.50 in all", "1200.5"),
        ("There are 12 boxes with 4 each, so 48", 48),
        ("The answer is 12 x 4 = 48 boxes.\nI am sure, to 99 %", "48 boxes"),
        ("The answer is -5", "-5"),
        ("Answer: .5", 0.5),
        (r"\boxed{-7}", "-7"),
        ("−7", "-7"),
        ("6.02e23", "602000000000000000000000"),
        ("٤٢", "42"),  # Arabic digits
        ("0.3333333", "0.33333333"),
        ("1,000,000", "1000000"),
        ("The area is 25 m².", "25"),
        ("There are 17 in H2O", "17"),
        ("50%", "50 %"),
        ("7", ["5", "7"]),
    ],
)
def test_number_compares_the_last_number_of_the_result(answer: str, expected: Any) -> None:
    assert matches(answer, expected, "number")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("none at all", "5"), ("5", "none at all"), ("5.01", "5"), ("-5", "5"), ("48 of 12", "48"), ("", "0")],
)
def test_number_does_not_take_another_number(answer: str, expected: str) -> None:
    assert not matches(answer, expected, "number")


def test_numbers_and_texts_are_read_as_people_write_them() -> None:
    assert number_in("no number") is None
    assert number_in("3 and 1,234,567.5") == 1234567.5
    assert normalised(" **A**  `b`\n'C'. ") == "a b c"


def judged(check: Check, ended: str = "final_answer", row: dict[str, Any] | None = None, **metadata: Any) -> Verdict:
    return asyncio.run(check.judge(ended, SAID, metadata, row or {}))


def test_a_right_answer_has_a_reward_of_one_and_a_wrong_one_of_zero() -> None:
    assert judged(Check("contains", None), expected_answer=42) == Verdict(True, 1.0, {"expected_answer": 1.0})
    assert judged(Check("contains", None), expected_answer=43) == Verdict(False, 0.0, {"expected_answer": 0.0})


@pytest.mark.parametrize("ended", ["max_turns", "length"])
def test_only_a_final_answer_is_a_success(ended: str) -> None:
    assert judged(Check("contains", None), ended, expected_answer=42) == Verdict(False, 0.0, {"expected_answer": 0.0})
    assert judged(Check("none", None), ended) == Verdict(False)


def test_without_an_expected_answer_or_a_check_a_final_answer_is_a_success_without_a_reward() -> None:
    assert judged(Check("contains", None)) == Verdict(True)
    assert judged(Check("none", None), expected_answer=43) == Verdict(True)


def test_the_final_answer_is_the_last_message_of_the_assistant_only() -> None:
    assert final_answer(SAID) == "The answer is 42."
    assert final_answer([*SAID, {"role": "tool", "content": "42"}]) == ""
    assert final_answer([]) == ""


# ---- reward functions ----------------------------------------------------------------------------------------------

RNOW_STYLE = """
from rnow.core import RewardArgs, get_response, reward

@reward
def accuracy(args: RewardArgs, messages: list) -> float:
    return 1.0 if str(args.metadata["expected"]) in get_response(messages) else 0.0

@reward(precondition=True)
async def polite(args: RewardArgs, messages: list) -> float:
    return 0.0 if args.variables.get("rude") else 0.5

def helper(x):
    return 1 / 0
"""


def rewards(folder: Path, text: str, timeout_s: float = 5.0) -> Check:
    path = folder / "rewards.py"
    path.write_text(text)
    return Check("contains", Rewards(path, timeout_s))


def test_reward_functions_in_rnows_style_are_added_up(folder: Path) -> None:
    check = rewards(folder, RNOW_STYLE)
    assert check.name == "rewards"
    assert judged(check, expected=42) == Verdict(True, 1.5, {"accuracy": 1.0, "polite": 0.5})
    assert judged(check, expected=43) == Verdict(True, 0.5, {"accuracy": 0.0, "polite": 0.5})


def test_a_precondition_of_zero_vetoes_the_rest(folder: Path) -> None:
    verdict = judged(rewards(folder, RNOW_STYLE), row={"variables": {"rude": True}}, expected=42)
    assert verdict == Verdict(False, 0.0, {"accuracy": 1.0, "polite": 0.0})


def test_a_row_names_the_reward_functions_that_judge_it(folder: Path) -> None:
    assert judged(rewards(folder, RNOW_STYLE), row={"rewards": ["accuracy"]}, expected=42).rewards == {"accuracy": 1.0}


def test_a_reward_function_that_the_file_lacks_is_an_error_of_that_row(folder: Path) -> None:
    verdict = judged(rewards(folder, RNOW_STYLE), row={"rewards": ["accuracy", "style"]}, expected=42)
    assert verdict.rewards == {"accuracy": 1.0, "style": "error"}
    assert (verdict.success, verdict.reward) == (False, 0.0)
    assert "no such function" in verdict.errors[0]


def test_a_reward_function_that_fails_makes_the_reward_zero_and_says_why(folder: Path) -> None:
    verdict = judged(rewards(folder, RNOW_STYLE))  # no metadata.expected
    assert verdict.rewards == {"accuracy": "error", "polite": 0.5}
    assert (verdict.success, verdict.reward) == (False, 0.0)
    assert verdict.errors == ["accuracy: KeyError: 'expected'"]


def test_a_reward_function_that_ends_the_program_ends_nothing(folder: Path) -> None:
    check = rewards(folder, "def leave(args, messages):\n    raise SystemExit(3)\n")
    assert judged(check).rewards == {"leave": "error"}


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_reward_function_that_never_returns_is_not_waited_for(folder: Path, kind: str) -> None:
    wait = "await asyncio.sleep(60)" if "async" in kind else "time.sleep(5)"
    check = rewards(folder, f"import asyncio, time\n{kind} slow(args, messages):\n    {wait}\n", 0.1)
    began = time.monotonic()
    verdict = judged(check)
    assert time.monotonic() - began < 2
    assert (verdict.success, verdict.reward, verdict.rewards) == (False, 0.0, {"slow": "timeout"})
    assert verdict.errors == ["slow: timed out after 0.1 s"]


def test_a_reward_functions_own_time_limit_wins(folder: Path) -> None:
    text = "import time\nfrom rnow.core import reward\n"
    text += "@reward(timeout=0.05)\ndef slow(args, messages):\n    time.sleep(2)\n"
    assert judged(rewards(folder, text)).errors == ["slow: timed out after 0.05 s"]


@pytest.mark.parametrize("value", ["None", "'high'", "float('nan')", "float('inf')", "[1]"])
def test_what_is_no_finite_number_is_an_error(folder: Path, value: str) -> None:
    verdict = judged(rewards(folder, f"def odd(args, messages):\n    return {value}\n"))
    assert verdict.rewards == {"odd": "error"}
    assert (verdict.success, verdict.reward) == (False, 0.0)


def test_without_decorators_functions_that_take_args_first_are_the_reward_functions(folder: Path) -> None:
    text = "from os.path import join\ndef exists(args, messages):\n    return 1\ndef other(x):\n    return 2\n"
    assert judged(rewards(folder, text)).rewards == {"exists": 1.0}


def test_a_high_reward_without_a_final_answer_is_no_success(folder: Path) -> None:
    verdict = judged(rewards(folder, RNOW_STYLE), "max_turns", expected=42)
    assert (verdict.success, verdict.reward) == (False, 1.5)


def test_a_reward_function_cannot_change_the_conversation(folder: Path) -> None:
    messages = [dict(message) for message in SAID]
    check = rewards(folder, "def bad(args, messages):\n    messages.clear()\n    return 1\n")
    asyncio.run(check.judge("final_answer", messages, {}, {}))
    assert messages == SAID


def test_a_file_without_reward_functions_is_refused_with_an_example(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no reward function\. Write one: def accuracy"):
        rewards(folder, "x = 1\n")


def test_a_file_that_cannot_be_loaded_is_named_with_its_line(folder: Path) -> None:
    with pytest.raises(InputError, match=r"rewards\.py:2"):
        rewards(folder, "x = 1\n1 / 0\n")
