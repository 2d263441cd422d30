"""The job: two tokenizers on the same text, counted as GOLD's alignment sees them."""

import importlib.util
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..commands.compare_tokenizers import (
    CompareTokenizers,
    Counted,
    Overall,
    Share,
    Side,
    TokenizersCompared,
    Vocabulary,
)
from ..data.corpus import Passage, built_in, own, spread, words_of
from ..data.jsonlines import cannot_write
from ..data.run import Run
from ..data.statistics import wilson
from ..distillation.alignment import align
from ..distillation.token_bytes import TokenBytes
from ..distillation.vocabulary import VocabularyMap, build_cached, kind
from ..errors import MissingDependency, UsageError
from ..teachers.tokenizer_loading import Loaded, load

Ints = NDArray[np.int64]
Relation = Literal["same", "same_text_tokens", "different", "no_overlap"]
RESAMPLES, MOST_DRAWS = 1000, 4_000_000
PLACEHOLDER = re.compile(r"reserved|unused|place.?holder|extra_id|dummy|^\[PAD\d+\]$", re.IGNORECASE)
COLUMNS = (
    "text_bytes", "words", "spaced_student", "spaced_teacher", "student", "teacher", "exact", "merged", "outside",
    "student_known", "teacher_known", "student_cuts", "teacher_cuts", "shared_cuts", "groups", "single",
)  # fmt: skip
AT = {name: place for place, name in enumerate(COLUMNS)}


@dataclass
class Counts:
    """What was counted, by passage.

    table: (P, columns) as COLUMNS names them.   sizes: (student, teacher) tokens of a group -> how many groups.
    token_kinds: kind of token -> passage -> [student's tokens, exact, merged, outside, teacher's tokens].
    """

    table: Ints
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    token_kinds: dict[str, dict[int, Ints]] = field(default_factory=dict[str, dict[int, Ints]])


def compare(options: CompareTokenizers, run: Run) -> TokenizersCompared:
    """Compare two tokenizers and print the tables through `run.out`.

    Raises UsageError: a tokenizer or text that is not there or cannot be compared, a plot that cannot be written.
    """
    began = time.monotonic()
    _check_plot(options)
    passages = spread(own(options.text) if options.text else built_in(), options.limit)
    student, teacher = load(options.student, run.progress.note), load(options.teacher, run.progress.note)
    result = measure(student, teacher, passages, run)
    if options.text:
        result = result.model_copy(update={"source": ", ".join(map(str, options.text))})
    if options.plot is not None:
        from .tokenizer_plot import draw

        try:
            draw(result, options.plot)
        except OSError as error:
            raise UsageError(cannot_write(options.plot, error)) from None
    result = result.model_copy(update={"plot": options.plot, "seconds": round(time.monotonic() - began, 2)})
    from .tokenizer_words import tables

    run.out(tables(result))
    return result


def measure(
    student: Loaded, teacher: Loaded, passages: Sequence[Passage], run: Run | None = None
) -> TokenizersCompared:
    """All figures and what they mean, for tokenizers and text that are there."""
    from .tokenizer_words import advice

    ends = None
    if student.end_of_turn is not None and teacher.end_of_turn is not None:
        ends = (student.end_of_turn, teacher.end_of_turn)
    matched = build_cached(student.table, teacher.table, student.table.size, teacher.table.size, ends)
    counts = count(student.table, teacher.table, matched, passages, run or Run())
    kinds = {passage.kind: passage.group for passage in passages}
    rows = {name: np.array([n for n, each in enumerate(passages) if each.kind == name]) for name in kinds}
    result = TokenizersCompared(
        student=_side(student, teacher),
        teacher=_side(teacher, student),
        relation=_relation(student.table, teacher.table, matched, counts),
        source="built in",
        vocabulary=_vocabulary(student, teacher, matched),
        all=_counted("all", "all", counts.table),
        overall=_overall(counts),
        groups=_groups(passages, counts),
        kinds=[_counted(name, kinds[name], counts.table[where]) for name, where in rows.items()],
        token_kinds=_token_kinds(counts, student.table, passages),
        advice=[],
    )
    return result.model_copy(update={"advice": advice(result)})


def count(
    student: TokenBytes, teacher: TokenBytes, matched: VocabularyMap, passages: Sequence[Passage], run: Run
) -> Counts:
    """Cut every passage into tokens of both sides, as the middle of an answer, and group them by their bytes.

    A token of the student is exact in a group of one token on each side that the map pairs; outside where the map has
    no partner for it (or another one); merged otherwise. Raises KeyboardInterrupt when the run is to stop.
    """
    partner, known = np.full(student.size, -1), np.zeros(teacher.size, np.bool_)
    partner[matched.student_ids], known[matched.teacher_ids] = matched.teacher_ids, True
    found = Counts(np.zeros((len(passages), len(COLUMNS)), np.int64))
    names: tuple[dict[int, str], dict[int, str]] = ({}, {})
    for place, passage in enumerate(passages):
        run.stop.check()
        data = passage.text.encode()
        (student_list, student_ends), (teacher_list, teacher_ends) = student.spell(data), teacher.spell(data)
        student_ids, teacher_ids = np.array(student_list, np.int64), np.array(teacher_list, np.int64)
        groups = align(student_ends, teacher_ends)
        single = groups.is_single
        of_single = single[groups.student]
        exact = np.zeros(len(student_ids), np.bool_)
        exact[of_single] = partner[student_ids[of_single]] == teacher_ids[single[groups.teacher]]
        outside = (partner[student_ids] < 0) | (of_single & ~exact)
        words = words_of(passage.text)
        inner = [len(np.unique(side[(side > 0) & (side < len(data))])) for side in (student_ends, teacher_ends)]
        found.table[place] = [
            len(data),
            words or 0,
            len(student_ids) if words else 0,
            len(teacher_ids) if words else 0,
            len(student_ids),
            len(teacher_ids),
            exact.sum(),
            len(student_ids) - exact.sum() - outside.sum(),
            outside.sum(),
            (partner[student_ids] >= 0).sum(),
            known[teacher_ids].sum(),
            *inner,
            groups.count - 1,
            groups.count,
            single.sum(),
        ]
        found.sizes.update(zip(groups.student_sizes.tolist(), groups.teacher_sizes.tolist(), strict=True))
        marks = np.stack([np.ones_like(exact), exact, ~exact & ~outside, outside], 1).astype(np.int64)
        for name, row in zip(_kinds_of(student_list, student, names[0]), marks, strict=True):
            _row(found, name, place)[:4] += row
        for name in _kinds_of(teacher_list, teacher, names[1]):
            _row(found, name, place)[4] += 1
    return found


def _row(counts: Counts, name: str, place: int) -> Ints:
    rows = counts.token_kinds.setdefault(name, {})
    if place not in rows:
        rows[place] = np.zeros(5, np.int64)
    return rows[place]


def _kinds_of(ids: Sequence[int], table: TokenBytes, known: dict[int, str]) -> list[str]:
    for place in ids:
        if place not in known:
            known[place] = "special" if table.special[place] else kind(table.pieces[place])
    return [known[place] for place in ids]


# ---- from counts to shares ---------------------------------------------------------------------------------------


def share(numerators: Ints, denominators: Ints) -> Share:
    """Sum of (P,) / sum of (P,), with the interval that `Share` describes; 0 of 0 is 0, anywhere from 0 to 1."""
    above, below = int(numerators.sum()), int(denominators.sum())
    low, high = wilson(above, below)
    if len(numerators) > 1 and below:
        resamples = max(200, min(RESAMPLES, MOST_DRAWS // len(numerators)))
        drawn = np.random.default_rng(0).multinomial(
            len(numerators), np.full(len(numerators), 1 / len(numerators)), resamples
        )
        sums = drawn @ denominators
        values = (drawn @ numerators)[sums > 0] / sums[sums > 0]
        if values.size:
            low, high = min(low, float(np.quantile(values, 0.025))), max(high, float(np.quantile(values, 0.975)))
    return Share(value=above / below if below else 0.0, low=low, high=high)


def _counted(name: str, group: str, table: Ints) -> Counted:
    column = {key: table[:, place] for key, place in AT.items()}
    return Counted(
        name=name,
        group=group,
        passages=len(table),
        text_bytes=int(column["text_bytes"].sum()),
        student_tokens=int(column["student"].sum()),
        teacher_tokens=int(column["teacher"].sum()),
        exact=share(column["exact"], column["student"]),
        merged=share(column["merged"], column["student"]),
        outside=share(column["outside"], column["student"]),
    )


def _groups(passages: Sequence[Passage], counts: Counts) -> list[Counted]:
    """The built-in text's groups; English apart from the other languages, as most students are made for it."""
    names = [
        each.group if each.group != "language" else "English" if each.kind == "English" else "other languages"
        for each in passages
    ]
    if len(set(names)) == 1:
        return []
    return [_counted(name, "all", counts.table[np.array(names) == name]) for name in dict.fromkeys(names)]


def _token_kinds(counts: Counts, student: TokenBytes, passages: Sequence[Passage]) -> list[Counted]:
    found: list[Counted] = []
    for name, rows in counts.token_kinds.items():
        table = np.stack(list(rows.values()))
        if table[:, 0].sum():
            exact, merged, outside = (share(table[:, place], table[:, 0]) for place in (1, 2, 3))
            found.append(
                Counted(
                    name=name,
                    group="tokens",
                    passages=len(table),
                    text_bytes=0,
                    student_tokens=int(table[:, 0].sum()),
                    teacher_tokens=int(table[:, 4].sum()),
                    exact=exact,
                    merged=merged,
                    outside=outside,
                )
            )
    return sorted(found, key=lambda row: -row.student_tokens)


def _overall(counts: Counts) -> Overall:
    column = {key: counts.table[:, place] for key, place in AT.items()}
    total = {key: int(values.sum()) for key, values in column.items()}
    cuts = total["student_cuts"] + total["teacher_cuts"]
    words, groups = total["words"], total["groups"]
    return Overall(
        student_coverage=share(column["student_known"], column["student"]),
        teacher_coverage=share(column["teacher_known"], column["teacher"]),
        boundary_precision=share(column["shared_cuts"], column["student_cuts"]),
        boundary_recall=share(column["shared_cuts"], column["teacher_cuts"]),
        boundary_f1=2 * total["shared_cuts"] / cuts if cuts else 1.0,
        words=words,
        student_tokens_per_word=total["spaced_student"] / words if words else None,
        teacher_tokens_per_word=total["spaced_teacher"] / words if words else None,
        student_bytes_per_token=total["text_bytes"] / total["student"],
        teacher_bytes_per_token=total["text_bytes"] / total["teacher"],
        length_ratio=total["student"] / total["teacher"],
        groups=groups,
        single_groups=share(column["single"], column["groups"]),
        mean_student_group=total["student"] / groups,
        mean_teacher_group=total["teacher"] / groups,
        group_sizes={f"{own}:{other}": often for (own, other), often in counts.sizes.most_common()},
    )


# ---- the vocabularies --------------------------------------------------------------------------------------------


def _vocabulary(student: Loaded, teacher: Loaded, matched: VocabularyMap) -> Vocabulary:
    own, other = (
        {side.table.pieces[place] for place in np.flatnonzero(side.real).tolist()} for side in (student, teacher)
    )
    shared, numerals = len(own & other), matched.report().numerals
    return Vocabulary(
        iou_strict=_iou(set(student.written.items()), set(teacher.written.items())),
        iou_strings=_iou(set(student.written), set(teacher.written)),
        iou_bytes=shared / len(own | other),
        shared=shared,
        student_share=shared / len(own),
        teacher_share=shared / len(other),
        numerals_both=numerals.both,
        numerals_student_only=numerals.student_only,
        numerals_teacher_only=numerals.teacher_only,
    )


def _iou(own: set[object], other: set[object]) -> float:
    return len(own & other) / len(own | other)


def _relation(student: TokenBytes, teacher: TokenBytes, matched: VocabularyMap, counts: Counts) -> Relation:
    if not (~student.added[matched.student_ids]).any():
        return "no_overlap"
    if (counts.table[:, AT["exact"]] != counts.table[:, AT["student"]]).any():
        return "different"
    if student.digest == teacher.digest:
        return "same"
    texts = [
        {place: side.pieces[place] for place in np.flatnonzero(side.known & ~side.added).tolist()}
        for side in (student, teacher)
    ]
    return "same_text_tokens" if texts[0] == texts[1] else "different"


def _side(side: Loaded, other: Loaded) -> Side:
    table = side.table
    theirs = {other.table.pieces[place] for place in np.flatnonzero(other.table.added).tolist()}
    specials = np.flatnonzero(table.special & side.real).tolist()
    only = [table.pieces[place].decode(errors="replace") for place in specials if table.pieces[place] not in theirs]
    end = side.end_of_turn
    return Side(
        name=side.name,
        tokens=int(side.real.sum()),
        spelling="byte-level" if side.byte_level else "SentencePiece",
        end_of_turn=None if end is None else table.pieces[end].decode(errors="replace"),
        end_of_turn_id=end,
        chat_template=side.chat_template,
        notes=side.notes,
        special_tokens=len(specials),
        special_only_here=[name for name in only if not PLACEHOLDER.search(name)],
    )


def _check_plot(options: CompareTokenizers) -> None:
    """Raises UsageError for a plot that could not be drawn, before anything is loaded."""
    plot = options.plot
    if plot is None:
        return
    if plot.is_dir() or not plot.parent.is_dir():
        what = "is a folder" if plot.is_dir() else f"is in {plot.parent}, which is no folder"
        raise UsageError(f"--plot {plot} {what}. Name a file in a folder that is there.")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency("matplotlib", "--plot", "eval")
