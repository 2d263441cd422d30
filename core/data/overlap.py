"""How near a text comes to another one: words in common, words in the same order; and how varied texts are."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence


def score(answer: str, reference: str) -> dict[str, float]:
    """exact_match and f1 after SQuAD's normalisation (Rajpurkar et al., arXiv:1606.05250), and rouge_l."""
    ours, theirs = normalised(answer), normalised(reference)
    return {
        "exact_match": float(ours == theirs),
        "f1": unigram_f1(ours.split(), theirs.split()),
        "rouge_l": rouge_l(words(answer), words(reference)),
    }


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, one space between words."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case: for ASCII the tokens of the package rouge_score, without stemming."""
    return re.findall(r"[^\W_]+", text.lower())


def unigram_f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, each as often as it stands there; 1 for two empty texts."""
    if not ours or not theirs:
        return float(ours == theirs)
    return _f1((Counter(ours) & Counter(theirs)).total(), len(ours), len(theirs))


def rouge_l(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004, ROUGE, beta = 1); 0 where a text has no word."""
    return _f1(longest_common(ours, theirs), len(ours), len(theirs)) if ours and theirs else 0.0


def longest_common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Length of the longest common subsequence, in bits of one number for each word of `ours` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(ours):
        places[word] = places.get(word, 0) | 1 << place
    full = rows = (1 << len(ours)) - 1
    for word in theirs:
        matches = rows & places.get(word, 0)
        rows = ((rows + matches) | (rows - matches)) & full
    return len(ours) - rows.bit_count()


def distinct_n(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """distinct-n (Li et al., arXiv:1510.03055): different runs of n words within a text as a share of all;
    None where there are none.

    >>> distinct_n([["to", "be"], ["to", "do"]], 1)
    0.75
    """
    grams = [gram for text in texts for gram in zip(*(text[start:] for start in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else None


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs)
