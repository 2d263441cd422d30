"""Ranks short texts against a request by their words: BM25 (Robertson and Zaragoza 2009) over simple stems.

It stands in for the choice that an assistant makes when it reads the descriptions of its skills, and knows nothing but
words: no synonyms, no negation, no sense. What it finds wanting may well be understood by a model, and the other way
round; it tests the wording, not a model's behaviour.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping

K1, B = 1.2, 0.75
"""How fast a repeated word stops counting, and how much longer texts are held back: the usual values."""
STOP = frozenset(
    """
    a about above after again all also an and any are as at be because been before being but by can
    could did do does doing don for from get had has have having he her here his how i if in into is it
    its just let like make me more most my need no nor not now of off on once only or other our out over
    same she should so some such than that the their them then there these they this those to too
    under until up us use used using very want was we were what when where which while who whom why will
    with would you your
    """.split()  # noqa: SIM905
)
SUFFIXES = (
    *("ations", "ation", "ating", "ates", "ated", "ate", "ings", "ing", "ions", "ion"),
    *("ies", "ers", "ed", "er", "es", "s", "e", "y"),
)
SHORTEST = 3


def stem(word: str) -> str:
    """A word without its endings, as long as three letters are left: answer, answering, answered -> answ."""
    for suffix in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= SHORTEST:
            return stem(word.removesuffix(suffix))
    return word[:-1] if len(word) > SHORTEST and word[-1] == word[-2] else word


def stems(text: str) -> list[str]:
    """The stems of a text's words, without the words that say nothing. Parts of train_gold and on-policy count too."""
    words = re.findall(r"[a-z0-9]+", text.lower().replace("'s", " ").replace("n't", " not"))
    return [stem(word) for word in words if word not in STOP and len(word) > 1]


def wanted(description: str) -> str:
    """A description without the sentences that say what the skill is not for: whoever counts words misreads them."""
    return " ".join(each for each in re.split(r"(?<=[.!?])\s+", description) if not each.startswith("Not "))


class Ranking:
    """BM25 of requests against texts by name."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.counts = {name: Counter(stems(text)) for name, text in texts.items()}
        self.mean = sum(count.total() for count in self.counts.values()) / len(self.counts)

    def rarity(self, word: str) -> float:
        """ln(1 + (N - n + 1/2) / (n + 1/2)), for a word of n among N texts."""
        within = sum(word in count for count in self.counts.values())
        return math.log(1 + (len(self.counts) - within + 0.5) / (within + 0.5))

    def score(self, request: str, name: str) -> float:
        count = self.counts[name]
        length = 1 - B + B * count.total() / self.mean
        return sum(
            self.rarity(word) * count[word] * (K1 + 1) / (count[word] + K1 * length) for word in set(stems(request))
        )

    def ranked(self, request: str) -> list[tuple[float, str]]:
        """(score, name), the best first."""
        return sorted(((self.score(request, name), name) for name in self.counts), reverse=True)


def overlap(one: str, other: str) -> float:
    """The share of two texts' different stems that both have (Jaccard)."""
    a, b = set(stems(one)), set(stems(other))
    return len(a & b) / len(a | b)
