"""How the figures of a file of data are written, and what they mean: the same in the page, in Markdown and in plots."""

import math
from pathlib import PurePath

from ..commands.check_data import DEFAULT_REQUIREMENTS, LEAST, MEASURES, MOST, Measured
from ..data.statistics import wilson
from ..evaluation.report_words import NONE, Kind
from .results import DataReport, Lengths, ShownRow

FAULTS = frozenset(name for name, (side, _) in DEFAULT_REQUIREMENTS.items() if side == MOST)
"""Measures that count rows at fault; of the others more is better."""

LEARNING = {
    "teacher_nats_per_token": "in the teacher's own tokens, which no other tokenizer's can be held against",
    "teacher_nats_per_byte": "surprise of the teacher by the stored answers",
    "student_nats_per_byte": "surprise of the student by them",
    "learnability": "student less teacher, per byte, row by row",
}
"""Figure of learnability -> what it is."""

QUANTILES = ("min", "25%", "median", "75%", "90%", "max")

GLOSSARY: tuple[tuple[str, str, str, frozenset[str]], ...] = (
    (
        "95 % interval",
        "What the share or mean may be in all that the same source would give, judged by these rows; of the file "
        "itself the share is exact. From 10 rows it says little: 6 of 10 may be anything from 31 % to 83 %. "
        "A verdict is not certain where the interval reaches across the threshold.",
        "E. B. Wilson 1927 (shares)",
        frozenset(),
    ),
    (
        "Near duplicate",
        "A row whose pairs of neighbouring words are for the most part those of an earlier row: the Jaccard similarity "
        "of the two sets, estimated by MinHash, is at or above --near-duplicate. The first of them is not at "
        "fault. Arithmetic and Countdown problems that generate_synthetic made differ in their numbers only, and count "
        "when they are equal.",
        "A. Broder, On the Resemblance and Containment of Documents, 1997",
        frozenset({"near_duplicate"}),
    ),
    (
        "Contamination",
        "A row shares a run of 13 words (--ngram) with an item that the student will be reported on, or holds a "
        "shorter item as a whole (with its signs where it has numbers), or most of an item's runs of 8 words. A score "
        "on such an item may be memory.",
        "T. Brown et al., arXiv:2005.14165",
        frozenset({"contaminated"}),
    ),
    (
        "Repetition",
        "An answer in which lines or runs of words come back so often that they make up much of it, or that ends in "
        "a loop.",
        "J. Rae et al., arXiv:2112.11446, rules of MassiveText",
        frozenset({"repetitive"}),
    ),
    (
        "Personal data",
        "Patterns with check digits where there are any: what is found may be invented, and a name alone is not "
        "found. The report never shows the thing itself.",
        "",
        frozenset({"personal"}),
    ),
    (
        "Unigram F1",
        "Harmonic mean of the precision and the recall of words, each as often as it stands there, without case, "
        "punctuation and articles: the teacher's new answer against the row's.",
        "P. Rajpurkar et al., SQuAD, arXiv:1606.05250",
        frozenset({"f1"}),
    ),
    (
        "ROUGE-L",
        "The same for the longest sequence of words that both answers have in this order.",
        "C.-Y. Lin, ROUGE, 2004",
        frozenset({"rouge_l"}),
    ),
    (
        "Top-1 agreement",
        "Share of the tokens of the stored answers that the teacher would have chosen first, given all before them. "
        "Tokens of one row count together in its interval.",
        "",
        frozenset({"top1_agreement"}),
    ),
    (
        "Learnability",
        "How much more the student is surprised by the stored answers than the teacher, in nats per byte, which "
        "models with different tokenizers share. Near zero: nothing to learn. A surprised teacher: not its answers.",
        "S. Mindermann et al., arXiv:2206.07137; L. Gao et al., arXiv:2101.00027 (per byte)",
        frozenset({"learnability"}),
    ),
    (
        "Judge",
        "A model's opinion, no measurement: it grades the stored answer, and compares it with the teacher's new one "
        "in both orders, because judges favour a place. An answer counts as better where both orders say so.",
        "L. Zheng et al., arXiv:2306.05685",
        frozenset({"judge_score", "judge_win"}),
    ),
    (
        "distinct-n",
        "Different runs of n words among all of them: near 0, the same phrases come back for ever. It falls as "
        "texts grow, so compare only files of like size.",
        "J. Li et al., arXiv:1510.03055",
        frozenset({"distinct"}),
    ),
)
"""(term, explanation, source, measures that it is for; none: for all)."""

CAPTIONS = {
    "shares": "Shares of the rows with 95 % intervals, and what is wanted",
    "overlap": "How near the teacher's new answers come to those of the rows",
    "learnability": "Surprise of student and teacher by the answers of the rows",
    "lengths": "Lengths",
    "balance": "What the rows are made of",
}
"""Name of a plot's file -> what it shows."""


def caption(plot: str) -> str:
    """What a plot shows, from its file name."""
    stem = PurePath(plot).stem
    return CAPTIONS.get(stem, stem)


def made_of(report: DataReport) -> str:
    """The file and when it was looked at, on one line."""
    data = report.data if report.data != report.name else ""
    return ", ".join(part for part in (data, some(report.rows, "row"), report.made) if part)


def some(number: int, what: str) -> str:
    """A number of things: 1 row, 1,000 rows."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def share(value: float) -> str:
    """A share in per cent, in as many digits as keep it apart from 0 and 100 %.

    >>> [share(value) for value in (0.0, 0.0123, 0.000031, 0.99996, 1.0)]
    ['0.0 %', '1.2 %', '0.0031 %', '99.996 %', '100.0 %']
    """
    if not math.isfinite(value):
        return NONE
    near = min(abs(100 * value), abs(100 - 100 * value))
    digits = 1 if near >= 1 or near < 1e-6 else min(6, 1 - math.floor(math.log10(near)))
    text = f"{100 * value:.{digits}f}"
    return f"{text.rstrip('0') if digits > 1 else text} %"


def between(low: float, high: float) -> str:
    """Both ends of the interval of a share, in per cent: 0.9 to 1.6. Empty where there is none."""
    ends = [share(end).removesuffix(" %") for end in (low, high)]
    return "" if NONE in ends else " to ".join(ends)


def nats(value: float | None) -> str:
    """A surprise per byte; signs stay."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def about(name: str) -> str:
    """What a measure is the share or the mean of; empty where nobody has said."""
    return MEASURES.get(name, "")


def wanted(one: Measured) -> str:
    """The threshold: ≤ 2 %, or none at all; a dash without one."""
    if one.bound is None:
        return NONE
    side, value = one.bound
    if side == MOST and value == 0:
        return "none"
    return f"{'≥' if side == LEAST else '≤'} {100 * value:g} %"


def verdict(one: Measured) -> tuple[Kind, str, str]:
    """(kind of mark, word, doubt) of a figure against its threshold."""
    if one.passed is None:
        return "none", NONE, ""
    doubt = "not certain" if one.certain is False else ""
    return ("good", "met", doubt) if one.passed else ("bad", "missed", doubt)


def in_data(items: int, found: int) -> tuple[str, str]:
    """(share, its interval) of the items of a task that stand in the data."""
    return (share(found / items), between(*wilson(found, items))) if items else (NONE, "")


def quantile(lengths: Lengths, name: str) -> str:
    """One of the quantiles of lengths."""
    value = lengths.quantiles.get(name)
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:,.1f}"


def shares_of(values: dict[str, int], rows: int, most: int) -> tuple[list[tuple[str, int, float]], int]:
    """(value, rows, share) of the most frequent values, and how many further ones there are."""
    ordered = sorted(values.items(), key=lambda each: (-each[1], each[0]))
    return [(name, number, number / rows if rows else 0.0) for name, number in ordered[:most]], len(ordered[most:])


def rows_made_of(report: DataReport) -> dict[str, dict[str, int]]:
    """The languages and every key of `kinds`: name -> value -> rows."""
    return ({"language": report.languages} if report.languages else {}) | {
        name: values for name, values in report.kinds.items() if values
    }


def figures_of(row: ShownRow) -> list[str]:
    """What was measured on a row that a model saw, in words."""
    found: list[str] = []
    if row.f1 is not None:
        found.append(f"F1 {share(row.f1)}")
    if row.rouge_l is not None:
        found.append(f"ROUGE-L {share(row.rouge_l)}")
    if row.top1 is not None and row.tokens:
        found.append(f"first choice of the teacher {row.top1:,} of {some(row.tokens, 'token')}")
    if row.bytes:
        for role, surprise in (("teacher", row.teacher_nats), ("student", row.student_nats)):
            if surprise is not None:
                found.append(f"{role} {nats(surprise / row.bytes)} nats per byte")
    if row.judge_score is not None:
        found.append(f"grade {share(row.judge_score)}")
    return found


def choice(row: ShownRow) -> str:
    """What the judge finds better: stored, new, or neither; empty where it was not asked."""
    if row.judge_choice is None:
        return ""
    return "stored" if row.judge_choice > 0.5 else "new" if row.judge_choice < 0.5 else "neither"


def farthest_first(rows: list[ShownRow]) -> list[ShownRow]:
    """Rows in the order in which they are worth a look: first those that the new answer agrees least with."""
    return sorted(rows, key=lambda one: (one.f1 is None, one.f1, -1.0 if one.judge_score is None else one.judge_score))


def glossary(report: DataReport) -> list[tuple[str, str, str]]:
    """(term, explanation, source) of what this report has."""
    seen = {one.name for one in report.measured}
    seen |= {"learnability"} if report.learnability else set()
    seen |= {"distinct"} if report.distinct else set()
    return [(term, text, source) for term, text, source, of in GLOSSARY if not of or of & seen]
