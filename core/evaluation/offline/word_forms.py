"""Questions about single English words, and the check of an answer."""

import random
import re
from typing import Any

SEED = 2011  # part of the task: other items would be another version

OPPOSITES = """
    hot:cold big:small/little happy:sad/unhappy fast:slow up:down day:night young:old full:empty open:closed/close
    hard:soft/easy light:dark/heavy/darkness rich:poor early:late win:lose love:hate/hatred wet:dry tall:short
    long:short strong:weak thick:thin wide:narrow deep:shallow near:far clean:dirty loud:quiet/silent/soft
    left:right front:back/rear black:white
"""
PLURALS = """
    child:children box:boxes foot:feet city:cities mouse:mice leaf:leaves tooth:teeth dog:dogs man:men baby:babies
    knife:knives bus:buses woman:women goose:geese wolf:wolves story:stories church:churches brush:brushes
    half:halves house:houses lady:ladies potato:potatoes shelf:shelves key:keys ox:oxen thief:thieves
"""
PASTS = """
    go:went eat:ate run:ran walk:walked see:saw write:wrote take:took sing:sang buy:bought play:played make:made
    think:thought swim:swam give:gave come:came know:knew find:found speak:spoke break:broke drive:drove help:helped
    stop:stopped try:tried teach:taught sleep:slept open:opened
"""
FIRST_LETTERS = "table window music paper river doctor yellow kitchen summer bridge"
LAST_LETTERS = "garden forest mirror winter castle basket pencil orange cotton planet"

QUESTIONS = {
    "opposite": 'What is the opposite of "{word}"? Answer with one word.',
    "plural": 'What is the plural of "{word}"? Answer with one word.',
    "past": 'What is the past tense of "{word}"? Answer with one word.',
    "first": 'What is the first letter of the word "{word}"?',
    "last": 'What is the last letter of the word "{word}"?',
}
FRAME = frozenset(
    {"the", "of", "is", "it", "its", "be", "would", "sure", "correct"}
    | {"answer", "form", "letter", "word", "adjective", "noun", "verb"}
)
"""Words that say nothing by themselves, and may stand around the answer."""
WORD = re.compile(r"\w+(?:['’-]\w+)*")


def load(**_: Any) -> dict[str, Any]:
    """{"test": the items}, each with kind, word, question and answers. lm-eval passes the task's metadata."""
    from datasets import Dataset

    return {"test": Dataset.from_list(items())}


def items() -> list[dict[str, Any]]:
    """The same ones every time. answers: those that are right, the usual one first."""
    asked = [
        *(("opposite", *pair.split(":")) for pair in OPPOSITES.split()),
        *(("plural", *pair.split(":")) for pair in PLURALS.split()),
        *(("past", *pair.split(":")) for pair in PASTS.split()),
        *(("first", word, word[0]) for word in FIRST_LETTERS.split()),
        *(("last", word, word[-1]) for word in LAST_LETTERS.split()),
    ]
    random.Random(SEED).shuffle(asked)
    return [
        {"kind": kind, "word": word, "question": QUESTIONS[kind].format(word=word), "answers": answers.split("/")}
        for kind, word, answers in asked
    ]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """{"acc": 1.0 or 0.0} of one answer."""
    return {"acc": float(is_right(results[0], doc["question"], doc["answers"]))}


def is_right(said: str, question: str, answers: list[str]) -> bool:
    """Whether the first line gives one right answer, and no other word that could be meant as one.

    Words of the question and those of FRAME may stand around it ('The plural of "mouse" is "mice".'); any further
    word, "or" and "not" among them, makes it wrong. Upper and lower case are the same.
    """
    line = said.strip().partition("\n")[0]
    around = FRAME | _words(question)
    given = _words(line) - around
    return len(given) == 1 and given <= {answer.casefold() for answer in answers}


def _words(text: str) -> set[str]:
    return {word.strip("_") for word in WORD.findall(text.casefold())}
