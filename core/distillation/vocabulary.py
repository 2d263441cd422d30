"""Which entries of two vocabularies mean the same bytes, and what share of them that is."""

import hashlib
import json
import os
import tempfile
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .token_bytes import Ints, TokenBytes

FORMAT = 1
"""Of the cached files; to be raised with every change of what a map holds or of how entries are paired."""


@dataclass(frozen=True)
class Kind:
    """How many tokens of one kind each tokenizer has, and how many of them the other one has too.

    name: "special", "whitespace", "digits", "punctuation" (ASCII signs, as in code), "symbols", "bytes" (no UTF-8 of
    its own: part of a character), or "letters: Latin", "letters: Cjk", ... by the script of its first letter.
    """

    name: str
    student: int
    student_matched: int
    teacher: int
    teacher_matched: int


@dataclass(frozen=True)
class Numerals:
    """Tokens of two or more digits (ASCII, with or without a space before them). Where only one side has them, losses
    on matched columns never see them, and unmatched columns compare them only by rank (X-Token, arXiv:2605.21699)."""

    both: int = 0
    student_only: int = 0
    teacher_only: int = 0


@dataclass(frozen=True)
class VocabularyReport:
    """What two vocabularies have in common. Shares are of tokens by count (not by use), 0..1."""

    matched: int
    student_tokens: int
    teacher_tokens: int
    student_share: float
    teacher_share: float
    numerals: Numerals
    kinds: tuple[Kind, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """Pairs of entries with equal bytes, and all the others.

    student_ids, teacher_ids: (M,) the pairs, ascending in student_ids; no id appears twice.
    student_rest: (student_width - M,) and teacher_rest: (teacher_width - M,): columns without a partner, ascending.
    student_width, teacher_width: columns of the models' logits; those beyond the tokenizer belong to the rest.
    """

    student_ids: Ints
    teacher_ids: Ints
    student_rest: Ints
    teacher_rest: Ints
    student_width: int
    teacher_width: int
    kinds: tuple[Kind, ...] = ()
    numerals: Numerals = Numerals()

    def report(self) -> VocabularyReport:
        """Counts of what `build` saw: tokens with a text, within the widths of the logits."""
        matched = int(self.student_ids.size)
        student, teacher = (sum(kind.student for kind in self.kinds), sum(kind.teacher for kind in self.kinds))
        shares = (matched / student if student else 0.0, matched / teacher if teacher else 0.0)
        return VocabularyReport(matched, student, teacher, *shares, self.numerals, self.kinds)


def build(
    student: TokenBytes,
    teacher: TokenBytes,
    student_width: int,
    teacher_width: int,
    eot_pair: tuple[int, int] | None = None,
) -> VocabularyMap:
    """Pair the entries of two vocabularies by their canonical bytes.

    Special tokens are paired with tokens that the other side also matches as a whole and that have the same text, never
    with ordinary text. Of several ids with the same bytes, an ordinary token comes before SentencePiece's byte token,
    then the smallest id; the others stay without a partner.
    eot_pair: the ends of turn (student's, teacher's), paired whatever they are called.

    Columns at or beyond a width are left out: the model has no logit for them. No overlap at all gives an empty map.
    Raises UsageError when an end of turn lies beyond its width.
    """
    taken: dict[int, int] = {}
    if eot_pair is not None:
        for side, place, width in ((student, eot_pair[0], student_width), (teacher, eot_pair[1], teacher_width)):
            if not 0 <= place < width:
                raise UsageError(
                    f"the end of turn of {side.name} is token {place}, but its model has {width} logits: "
                    "tokenizer and model do not belong together."
                )
        taken[eot_pair[0]] = eot_pair[1]
    texts, wholes = (
        by_bytes(teacher, teacher_width, teacher.special),
        by_bytes(teacher, teacher_width, ~teacher.added),
    )
    own_texts, own_wholes = by_bytes(student, student_width, student.special), {}
    for place in np.flatnonzero((student.added & student.known)[:student_width]).tolist():
        own_wholes.setdefault(student.pieces[place], place)
    used = set(taken.values())
    for own, other in ((own_wholes, wholes), (own_texts, texts)):
        for piece, place in own.items():
            partner = other.get(piece)
            if partner is not None and place not in taken and partner not in used:
                taken[place] = partner
                used.add(partner)
    student_ids = np.sort(np.fromiter(taken, np.int64, len(taken)))
    teacher_ids = np.fromiter((taken[place] for place in student_ids.tolist()), np.int64, len(taken))
    kinds, numerals = _summary(student, teacher, student_ids, teacher_ids, student_width, teacher_width)
    return VocabularyMap(
        student_ids,
        teacher_ids,
        _rest(student_ids, student_width),
        _rest(teacher_ids, teacher_width),
        student_width,
        teacher_width,
        kinds,
        numerals,
    )


def build_cached(
    student: TokenBytes,
    teacher: TokenBytes,
    student_width: int,
    teacher_width: int,
    eot_pair: tuple[int, int] | None = None,
    folder: Path | None = None,
) -> VocabularyMap:
    """`build`, kept on disk under a hash of both vocabularies' contents and the other arguments.

    folder: by default $XDG_CACHE_HOME/distill/vocabularies (~/.cache/...). A file that is damaged is built anew; a
    folder that cannot be written is done without.
    """
    said = json.dumps([FORMAT, student.digest, teacher.digest, student_width, teacher_width, eot_pair])
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill" / "vocabularies"
    path = folder / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.npz"
    found = _read(path, student_width, teacher_width)
    if found is None:
        found = build(student, teacher, student_width, teacher_width, eot_pair)
        _write(path, found)
    return found


def by_bytes(side: TokenBytes, width: int, without: NDArray[np.bool_]) -> dict[bytes, int]:
    """The best id for each byte string, leaving out `without` (V,)."""
    usable = (side.known & ~without)[:width]
    best: dict[bytes, int] = {}
    for chosen in (usable & side.fallback[:width], usable & ~side.fallback[:width]):  # later ones win
        for place in np.flatnonzero(chosen)[::-1].tolist():
            best[side.pieces[place]] = place
    return best


def _rest(ids: Ints, width: int) -> Ints:
    alone = np.ones(width, np.bool_)
    alone[ids] = False
    return np.flatnonzero(alone)


def _summary(
    student: TokenBytes,
    teacher: TokenBytes,
    student_ids: Ints,
    teacher_ids: Ints,
    student_width: int,
    teacher_width: int,
) -> tuple[tuple[Kind, ...], Numerals]:
    counts: list[Counter[str]] = []
    numerals: list[int] = []
    for side, ids, width in ((student, student_ids, student_width), (teacher, teacher_ids, teacher_width)):
        matched = np.zeros(max(side.size, width), np.bool_)
        matched[ids] = True
        places = np.flatnonzero(side.known[:width]).tolist()
        names = ["special" if side.special[place] else kind(side.pieces[place]) for place in places]
        counts += [Counter(names), Counter(name for name, place in zip(names, places, strict=True) if matched[place])]
        many = [place for place in places if is_numeral(side.pieces[place]) and not side.special[place]]
        numerals += [len(many), int(matched[many].sum())]
    order = sorted({*counts[0], *counts[2]}, key=lambda name: (-counts[0][name] - counts[2][name], name))
    kinds = tuple(Kind(name, *(count[name] for count in counts)) for name in order)
    return kinds, Numerals(numerals[1], numerals[0] - numerals[1], numerals[2] - numerals[3])


def is_numeral(piece: bytes) -> bool:
    """Whether a token is a number of two or more ASCII digits, with or without one space before it."""
    digits = piece.removeprefix(b" ")
    return len(digits) > 1 and digits.isdigit()


def kind(piece: bytes) -> str:
    """The kind of a token that is not special; see `Kind`. What it holds counts in this order: letters, digits, ASCII
    punctuation, other signs."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "bytes"
    stripped = text.strip()
    if not stripped:
        return "whitespace"
    if stripped.isascii():
        if stripped.isalpha():
            return "letters: Latin"
        if stripped.isdigit():
            return "digits"
    best = min(map(_rank, stripped))
    if best > 0:
        return ("digits", "punctuation", "symbols")[best - 1]
    return "letters: " + _script(next(letter for letter in stripped if letter.isalpha()))


@cache
def _rank(sign: str) -> int:
    """0 a letter, 1 a digit of any script, 2 an ASCII sign, 3 anything else."""
    if sign.isalpha():
        return 0
    return 1 if sign.isdigit() else 2 if sign.isascii() and sign.isprintable() and sign != " " else 3


@cache
def _script(letter: str) -> str:
    """The first word of its Unicode name, which for letters is the script."""
    first = unicodedata.name(letter, "Unknown").split()[0].split("-")[0]
    return {"FULLWIDTH": "Latin", "HALFWIDTH": "Katakana", "MODIFIER": "Modifier"}.get(first, first.capitalize())


def _read(path: Path, student_width: int, teacher_width: int) -> VocabularyMap | None:
    """None when there is no such file or it is not what was written."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            student_ids, teacher_ids = file["student_ids"].astype(np.int64), file["teacher_ids"].astype(np.int64)
            summary = json.loads(str(file["summary"]))
        kinds = tuple(Kind(**row) for row in summary["kinds"])
        rests = (_rest(student_ids, student_width), _rest(teacher_ids, teacher_width))
        numerals = Numerals(**summary["numerals"])
    except Exception:  # zipfile's, numpy's and json's: whatever a damaged file makes them raise
        return None
    return VocabularyMap(student_ids, teacher_ids, *rests, student_width, teacher_width, kinds, numerals)


def _write(path: Path, made: VocabularyMap) -> None:
    summary = json.dumps({"kinds": [asdict(row) for row in made.kinds], "numerals": asdict(made.numerals)})
    new: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, new = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                student_ids=made.student_ids.astype(np.int32),
                teacher_ids=made.teacher_ids.astype(np.int32),
                summary=np.array(summary),
            )
        os.replace(new, path)
    except OSError:  # it is only a cache
        if new is not None:
            Path(new).unlink(missing_ok=True)
