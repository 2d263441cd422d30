"""Whether the result that an answer states is right: arithmetic and Countdown. What models wrote is read, never run."""

import re
from collections import deque
from collections.abc import Sequence
from fractions import Fraction

from ..generation.check import stated_answer

LONGEST, DEEPEST = 200, 20
"""Of an expression: characters, and parentheses (or minus signs) within one another."""

SIGNS = str.maketrans({"\u00d7": "*", "\u22c5": "*", "\u00b7": "*", "\u2217": "*", "\u00f7": "/", "\u2212": "-"})
LATEX = ((r"\times", "*"), (r"\cdot", "*"), (r"\div", "/"), (r"\left", ""), (r"\right", ""), (r"\,", ""), (r"\$", ""))
FRAC = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
TEXT = re.compile(r"\\(?:text|mathrm)\{([^{}]*)\}")
TOKEN = re.compile(r"\s*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+|[-+*/()])")

ANSWER = re.compile(r"<answer>([^<]*+(?:<(?!/?answer>)[^<]*+)*+)</answer>", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
BULLET = re.compile(r"^\s*(?:[-*+]|[0-9]+[.)])\s+")
BOLD = re.compile(r"(?<![\d)])\*\*|\*\*(?![\d(])")
"""Marks of Markdown, not the power of two numbers."""
CALCULATION = re.compile(r"[-+*/()0-9.\s=]+")
OPERATION = re.compile(r"[0-9)]\s*[-+*/]\s*[(0-9]")

NUMBER = re.compile(
    r"(?<![\w.,])(?P<sign>[-+]?)(?:(?:(?P<whole>\d+)\s+)?(?P<over>\d+)\s*/\s*(?P<under>\d+)(?![\w/])"
    r"|(?P<plain>\.?\d(?:[\d.,]*\d)?)(?P<exponent>[eE][-+]?\d{1,3})?)"
)
"""3, -1,200.50, 1.200,50, .5, 6.02e23, 10/3, 3 1/3; not the digits of a word, as in m2."""
ENGLISH = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
EUROPEAN = re.compile(r"(?:\d{1,3}(?:\.\d{3})+|\d+)(?:,\d+)?")


def value_of(expression: str) -> Fraction:
    """The exact value of an expression of numbers, + - * / and parentheses. Raises ValueError with the reason.

    Powers, whole division, names, other notations (1e3, 0x10, 1_0) and juxtaposition, as 2(3), are refused; a minus
    before a number or a parenthesis is not. An equation has the value of its sides, which must be equal but for
    rounding (1 %): of "3 + 4 = 7 * 5 = 35" nobody can tell which is meant.

    >>> value_of("(1,200 + 0.5) * 2 = 2401")
    Fraction(2401, 1)
    """
    sides = [_Reading(side).value for side in expression.rstrip(" =?").split("=")]
    if any(abs(side - sides[0]) > abs(sides[0]) / 100 for side in sides):
        raise ValueError("the sides of the equation differ")
    return sides[0]


def countdown_right(numbers: Sequence[int], target: int, answer: str) -> bool:
    """Whether an answer reaches the target with every number used once, as in the blog post on GOLD (exactly: no
    tolerance, no number left over).

    What counts is the last <answer>...</answer>, else the last \\boxed{...}, else the last calculation on the last line
    that has one; of an equation, what stands before "=". Decimals and a minus as a sign are refused, as is all that
    `value_of` refuses.
    """
    try:
        reading = _Reading(_calculation(answer).partition("=")[0])
    except ValueError:
        return False
    return (
        reading.value == target
        and not reading.signs
        and sorted(reading.numbers) == sorted(str(number) for number in numbers)
    )


def number_right(expected: str, answer: str) -> bool:
    """Whether the number that an answer states as its result is the expected one. Raises ValueError when `expected`
    has no value.

    The last number of what the answer marks as its result (\\boxed{...}, "answer: ..."), else of all of it. It is right
    when it is equal to 1 in a million, or is the expected one rounded to at least two decimals and 1 %. Decimal points
    and decimal commas are both understood, fractions too; 0.5 is not 50 %.
    """
    right = value_of(expected)
    text = _plain(answer)
    found = _last_number(stated_answer(text)) or _last_number(text)
    return any(
        abs(number - right) <= max(abs(right) / 1_000_000, _rounding(decimals, right)) for number, decimals in found
    )


class _Reading:
    """An expression, read by descent. value: exact.   numbers: as they were written.   signs: minus signs before
    something, which subtract nothing."""

    def __init__(self, expression: str) -> None:
        if len(expression) > LONGEST:
            raise ValueError(f"longer than {LONGEST} characters")
        self._tokens = _tokens(expression.translate(SIGNS))
        self._at = 0
        self.numbers: list[str] = []
        self.signs = 0
        self.value = self._sum(0)
        if self._next:
            raise ValueError(f'"{self._next}" where an operation should stand')

    @property
    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._next
        self._at += 1
        return token

    def _sum(self, depth: int) -> Fraction:
        total = self._product(depth)
        while self._next in ("+", "-"):
            sign = self._take()
            term = self._product(depth)
            total = total + term if sign == "+" else total - term
        return total

    def _product(self, depth: int) -> Fraction:
        product = self._factor(depth)
        while self._next in ("*", "/"):
            sign = self._take()
            factor = self._factor(depth)
            if sign == "/" and not factor:
                raise ValueError("a division by zero")
            product = product * factor if sign == "*" else product / factor
        return product

    def _factor(self, depth: int) -> Fraction:
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} parentheses within one another")
        token = self._take()
        if token == "-":
            self.signs += 1
            return -self._factor(depth + 1)
        if token == "(":
            value = self._sum(depth + 1)
            if self._take() != ")":
                raise ValueError("a parenthesis that is not closed")
            return value
        if not token or token in "+*/)":
            raise ValueError(
                f'"{token}" where a number should stand' if token else "it ends where a number should stand"
            )
        self.numbers.append(token)
        return Fraction(token.replace(",", ""))


def _tokens(expression: str) -> list[str]:
    tokens: list[str] = []
    at, end = 0, len(expression.rstrip())
    while at < end:
        found = TOKEN.match(expression, at)
        if not found:
            raise ValueError(f'"{expression[at:].strip()[0]}" is no part of arithmetic')
        tokens.append(found[1])
        at = found.end()
    return tokens


def _calculation(answer: str) -> str:
    """What an answer gives as its calculation."""
    tagged = ANSWER.findall(answer)
    text = _plain(tagged[-1] if tagged else answer)
    boxed = BOXED.findall(text)
    if tagged or boxed:
        return (boxed[-1] if boxed else text).strip()
    for line in reversed(text.splitlines()):
        line = BULLET.sub("", BOLD.sub("", line.translate(SIGNS)))
        for stretch in reversed(CALCULATION.findall(line)):
            for side in stretch.split("="):
                if OPERATION.search(side):
                    return side.strip(" .\t")
    raise ValueError("no calculation")


def _plain(text: str) -> str:
    """The text with LaTeX's signs written as others write them."""
    text = TEXT.sub(r" \1 ", FRAC.sub(r" (\1)/(\2)", text))
    for sign, plain in LATEX:
        text = text.replace(sign, plain)
    return text


def _last_number(text: str) -> list[tuple[Fraction, int]]:
    """(value, decimals) of every way to read the last number of a text; nothing when it has none."""
    text = re.sub(r"\((-?\d+)\)/\((\d+)\)", r"\1/\2", text.translate(SIGNS))
    found = next(iter(deque(NUMBER.finditer(text), maxlen=1)), None)
    if found is None or len(found[0]) > LONGEST:
        return []
    sign = -1 if found["sign"] == "-" else 1
    if found["over"]:
        under = int(found["under"])
        return [(sign * (int(found["whole"] or 0) + Fraction(int(found["over"]), under)), 0)] if under else []
    readings: list[tuple[Fraction, int]] = []
    for form, thousands, point in ((ENGLISH, ",", "."), (EUROPEAN, ".", ",")):
        if form.fullmatch(found["plain"]):
            number = found["plain"].replace(thousands, "").replace(point, ".")
            readings.append((sign * Fraction(number + (found["exponent"] or "")), len(number.partition(".")[2])))
    return readings


def _rounding(decimals: int, right: Fraction) -> Fraction:
    """How far a number with so many decimals may be off because it was rounded."""
    most = Fraction(1, 2 * 10**decimals)
    return most if decimals >= 2 and most <= abs(right) / 100 else Fraction(0)
