"""What models state as results: read exactly, never run."""

import operator
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.quality.verify import countdown_right, number_right, value_of


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7 * 8", 56),
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("20 - 3 - 4", 13),
        ("100 / 5 / 4", 5),
        ("10 / 4", Fraction(5, 2)),
        ("0.1 + 0.2", Fraction(3, 10)),  # exact, unlike floating point
        ("1,200 + .5", Fraction(2401, 2)),
        ("-5 + 12", 7),
        ("3 - -2", 5),
        ("6 \u00d7 7 \u2212 4 \u00f7 2", 40),
        ("  ((7))  ", 7),
        ("7 * 8 = 56", 56),
        ("7 * 8 = ?", 56),
        ("10 / 3 = 3.33", Fraction(10, 3)),
    ],
)
def test_an_expression_has_its_exact_value(expression: str, value: Any) -> None:
    assert value_of(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("2**3", "7//2", "5.*(2)", "95**87**76", "0x10", "1_0", "1e3", "1/0", "2(3)", "(2)(3)", "3 4", "12,34"),
        *(
            "",
            " ",
            "=",
            "(",
            "()",
            "(1",
            "1)",
            "1 +",
            "* 2",
            "+2",
            "7 % 2",
            "5\u00b2",
            "\u0665",
            "x + 1",
            "2;3",
            "1 < 2",
        ),
        *("__import__('os')", "().__class__", "print(1)", "1 if 1 else 2", "[1][0]", "1\x00", "\U0001d7d7"),
        *("(" * 21 + "1" + ")" * 21, "-" * 22 + "1", "1+" * 100 + "1", "9" * 201),
        "3 + 4 = 7 * 5 = 35",
    ],
)
def test_what_is_not_plain_arithmetic_is_refused_with_a_reason(expression: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=r"\w") as caught:
        value_of(expression)
    assert type(caught.value) is ValueError
    assert time.process_time() - began < 0.5


OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@st.composite
def calculations(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction]:
    """A text in full parentheses, and its value by Fraction's own arithmetic."""
    if depth == 0 or draw(st.booleans()):
        whole, decimals = draw(st.integers(0, 9999)), draw(st.integers(0, 2))
        text = f"{whole}" if not decimals else f"{whole / 10**decimals:.{decimals}f}"
        return text, Fraction(text)
    sign = draw(st.sampled_from("+-*/"))
    left, one = draw(calculations(depth - 1))
    right, other = draw(calculations(depth - 1).filter(lambda tree: sign != "/" or tree[1] != 0))
    return f"({left} {sign} {right})", OPERATIONS[sign](one, other)


@settings(deadline=None, max_examples=200)
@given(calculations())
def test_a_written_tree_has_the_value_of_its_fractions(tree: tuple[str, Fraction]) -> None:
    text, value = tree
    assert value_of(text) == value


@settings(deadline=None, max_examples=300)
@given(st.text("0123456789+-*/().,= eE_xj", max_size=40) | st.text(max_size=300))
def test_any_text_has_a_value_or_a_reason(text: str) -> None:
    try:
        assert isinstance(value_of(text), Fraction)
    except ValueError as error:
        assert str(error)
    assert number_right("7", text) in (True, False)
    assert not countdown_right((3, 5, 7, 11), 10**9 + 7, text)


# ---- Countdown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        "<answer>(25 - 5) * 3</answer>",
        "<answer> (25 - 5) * 3 = 60 </answer>",
        "Try <answer>25 + 5</answer> no: <answer>3 * (25 - 5)</answer>",
        r"\boxed{(25 - 5) \times 3}",
        r"<answer>\boxed{(25 - 5) \cdot 3}</answer>",
        "(25 - 5) * 3",
        "Let me see.\n25 + 5 = 30\n\n**(25 - 5) * 3 = 60**",
        "- (25 \u2212 5) \u00d7 3 = 60.",
        "1. (25 - 5) * 3 = 20 * 3 = 60",
        "60 = (25 - 5) * 3",
        "The equation is `(25 - 5) * 3`, which uses each number once.",
    ],
)
def test_a_calculation_with_every_number_once_reaches_the_target(answer: str) -> None:
    assert countdown_right((3, 5, 25), 60, answer)


@pytest.mark.parametrize(
    ("numbers", "target", "answer"),
    [
        ((95, 87, 76), 10, "95**87**76"),
        ((2, 3), 8, "2**3"),
        ((7, 2), 3, "7//2"),
        ((3, 4, 10), 34, "3.4*10"),
        ((5, 2), 10, "5.*(2)"),
        ((3, 5), 2, "-(3)+5"),
        ((16,), 16, "0x10"),
        ((10,), 10, "1_0"),
        ((1, 0), 1, "1/0"),
    ],
)
def test_tricks_of_notation_reach_nothing(numbers: tuple[int, ...], target: int, answer: str) -> None:
    for text in (answer, f"<answer>{answer}</answer>", rf"\boxed{{{answer}}}"):
        assert not countdown_right(numbers, target, text)


@pytest.mark.parametrize(
    "answer",
    [
        "<answer>25 + 5 * 3</answer>",  # 40
        "<answer>(25 - 5) * 3 * 3 / 3</answer>",  # 3 more than once
        "<answer>20 * 3</answer>",  # a number of its own
        "<answer>25 - 5 = 20, 20 * 3 = 60</answer>",
        "<answer>60</answer>",
        "<answer>(25 - 5) * 3.0</answer>",
        "<answer>(25 - 5) * 03</answer>",
        "(25 - 5) * 3 <answer>I do not know</answer>",
        "25 - 5 = 20\n20 * 3 = 60",
        "(25 - 5) * 3 = 60, or rather 25 + 5 + 3",
        "It is impossible.",
        "",
    ],
)
def test_another_calculation_is_wrong(answer: str) -> None:
    assert not countdown_right((3, 5, 25), 60, answer)


def test_a_long_line_is_read_in_no_time() -> None:
    began = time.process_time()
    for text in ("1" * 200_000, "1 " * 100_000, "(" * 200_000, "1" + " " * 200_000, "1 + " * 50_000, "-" * 200_000):
        assert not countdown_right((1, 2), 3, text)
        assert not number_right("3", text)
    assert time.process_time() - began < 5


# ---- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ("56", "7 * 8 = 56"),
        ("56", "First 7, then 8.\n\n**Answer:** 56"),
        ("56", r"Hence $\boxed{56\text{ apples}}$."),
        ("-7", "It is \u22127 degrees"),
        ("1200.5", "It costs $1,200.50."),
        ("1200.5", "Das kostet 1.200,50 \u20ac."),
        ("2.5", "Die Antwort lautet 2,5"),
        ("10/3", "3.33"),
        ("10/3", "about 3.3333"),
        ("10/3", "10/3"),
        ("10/3", r"\boxed{\frac{10}{3}}"),
        ("10/3", "The answer is 3 1/3"),
        ("10/3", r"$3\frac{1}{3}$"),
        ("0.125", "0.125"),
        ("602000000000000000000000", "6.02e23"),
        ("40", "There are 40 in 3 boxes. The answer is 40 apples."),
    ],
)
def test_a_number_may_be_written_in_many_ways(expected: str, answer: str) -> None:
    assert number_right(expected, answer)


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        ("10/3", "3"),
        ("10/3", "3.3"),  # one decimal tells too little
        ("10/3", "3.34"),
        ("0.0012", "0.00"),
        ("56", "57"),
        ("56", "-56"),
        ("56", "56.5"),
        ("56", "no number"),
        ("56", ""),
        ("56", "1/0"),
        ("0.5", "50 %"),
        ("4", "version 3.2.4"),
        ("2", "H2"),
        ("5", "9" * 5000),
    ],
)
def test_another_number_is_wrong(expected: str, answer: str) -> None:
    assert not number_right(expected, answer)


def test_an_expected_result_without_a_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="no part of arithmetic"):
        number_right("Paris", "Paris")
