"""Sums and differences of small numbers, and the check of an answer."""

import random
import re
from collections.abc import Iterator
from typing import Any

SUMS, DIFFERENCES = 60, 40
SEED = 2011  # part of the task: other items would be another version
QUESTION = "What is {left} {sign} {right}? Answer with the number only."

NUMBER = re.compile(r"[-−]?\w*[0-9]\w*(?:[.,][0-9]\w*)*")
"""A word that has a digit in it, so that "12th" is no 12 and "1.5" is one number."""
PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
OPERATION = re.compile(r"\s*(?:[+\-−–]|plus|minus|and|from|to)\s*", re.IGNORECASE)
"""What may stand between the two numbers where an answer repeats the question."""
HEDGES = re.compile(r"\b(?:or|not|either)\b|n['’]t\b|\?", re.IGNORECASE)


def load(**_: Any) -> dict[str, Any]:
    """{"test": the items}, each with left, sign, right, question and answer. lm-eval passes the task's metadata."""
    from datasets import Dataset

    return {"test": Dataset.from_list(items())}


def items() -> list[dict[str, Any]]:
    """The same ones every time. No answer is a number of its question, so that repeating it is never right."""
    chance = random.Random(SEED)
    sums = [(a, "+", b, a + b) for a in range(1, 10) for b in range(1, 10)]
    differences = [(a, "-", b, a - b) for a in range(3, 13) for b in range(1, 10) if b < a and a != 2 * b]
    chosen = chance.sample(sums, SUMS) + chance.sample(differences, DIFFERENCES)
    chance.shuffle(chosen)
    return [
        {
            "left": left,
            "sign": sign,
            "right": right,
            "question": QUESTION.format(left=left, sign=sign, right=right),
            "answer": str(answer),
        }
        for left, sign, right, answer in chosen
    ]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """{"acc": 1.0 or 0.0} of one answer."""
    return {"acc": float(is_right(results[0], doc["left"], doc["right"], int(doc["answer"])))}


def is_right(said: str, left: int, right: int, answer: int) -> bool:
    """Whether the first line says this number, and no other one.

    It may repeat the question ("7 + 5 = 12", "The sum of 5 and 7 is 12."); a number more, or a hedge, is wrong.
    """
    line = said.strip().partition("\n")[0]
    if HEDGES.search(line):
        return False
    found = list(_numbers(line))
    rest: list[float | None] = []
    place = 0
    while place < len(found):
        pair = [value for _, _, value in found[place : place + 2]]
        if pair in ([left, right], [right, left]) and OPERATION.fullmatch(line[found[place][1] : found[place + 1][0]]):
            place += 2
        else:
            rest.append(found[place][2])
            place += 1
    return bool(rest) and all(value == answer for value in rest)


def _numbers(line: str) -> Iterator[tuple[int, int, float | None]]:
    """(start, end, value) of each number; the value is None for a word such as "12th"."""
    for match in NUMBER.finditer(line):
        start, text = match.start(), match.group()
        # In "12-5" and "12 -5" the sign is a minus between two numbers; in "= -5" it belongs to the number.
        if text[0] in "-−" and line[:start].rstrip()[-1:].isdigit():
            start, text = start + 1, text[1:]
        text = text.strip("_").replace("−", "-")
        yield start, match.end(), float(text) if PLAIN.fullmatch(text) else None
