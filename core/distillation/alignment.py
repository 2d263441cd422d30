"""Which tokens of two tokenizers cover the same bytes of one completion."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .token_bytes import Ids, Ints, TokenBytes


@dataclass(frozen=True, eq=False)
class Groups:
    """The finest common partition of one completion: every token of either side lies in exactly one group, and the
    tokens of a group cover the same bytes on both sides.

    student: (S,) and teacher: (T,) group index of each token; both start at 0, never fall and name every group.
    count: number of groups G.
    """

    student: Ints
    teacher: Ints
    count: int

    @property
    def student_sizes(self) -> Ints:
        """(G,) student tokens in each group, at least 1."""
        return np.bincount(self.student, minlength=self.count).astype(np.int64)

    @property
    def teacher_sizes(self) -> Ints:
        """(G,) teacher tokens in each group, at least 1."""
        return np.bincount(self.teacher, minlength=self.count).astype(np.int64)

    @property
    def is_single(self) -> NDArray[np.bool_]:
        """(G,) whether the group is one token on each side."""
        return (self.student_sizes == 1) & (self.teacher_sizes == 1)


def align(student_ends: Ids, teacher_ends: Ids) -> Groups:
    """Group two tokenizations of the same bytes: a group closes wherever a token of each side ends.

    student_ends: (S,) and teacher_ends: (T,) cumulative byte ends, as from `completion_ends`. A token without bytes of
    its own (its end is its predecessor's) belongs to the group of its predecessor; at the start, to the first group.

    Both empty: no groups. Raises ValueError when the two do not cover the same number of bytes, when ends fall, or when
    there are tokens but not one byte.
    """
    student, teacher = np.asarray(student_ends, np.int64), np.asarray(teacher_ends, np.int64)
    totals: list[int] = []
    for name, ends in (("student", student), ("teacher", teacher)):
        if ends.ndim != 1:
            raise ValueError(f"the {name}'s ends have {ends.ndim} dimensions: expected one number per token")
        if ends.size and (ends[0] < 0 or bool((ends[1:] < ends[:-1]).any())):
            place = int(np.argmax(ends[1:] < ends[:-1])) + 1 if ends[0] >= 0 else 0
            raise ValueError(f"the {name}'s token {place} ends before it starts (end {ends[place]}): ends never fall")
        totals.append(int(ends[-1]) if ends.size else 0)
    if totals[0] != totals[1]:
        raise ValueError(
            f"the student's tokens end at byte {totals[0]} and the teacher's at byte {totals[1]}: they are not two "
            f"tokenizations of the same text (they part after byte {min(totals)})"
        )
    if totals[0] == 0 and (student.size or teacher.size):
        raise ValueError(f"{student.size} student and {teacher.size} teacher tokens without a single byte")
    if not student.size:
        return Groups(student, teacher, 0)
    shared = teacher[np.searchsorted(teacher, student)] == student  # both are sorted and end alike
    common = student[shared & (np.diff(student, prepend=0) > 0)]
    return Groups(np.searchsorted(common, student), np.searchsorted(common, teacher), int(common.size))


def completion_ends(token_bytes: TokenBytes, ids: Ids, ended: bool, lead: int = 0) -> Ints:
    """(n,) where each token of a completion ends, in bytes of the completion's text.

    ended: the last id is the end of turn. Its own text counts nothing: it is one virtual byte after the text, on every
    side alike, so that the ends of turn of two models are a group of their own however they are spelt. A truncated
    completion has no such byte.
    lead: bytes at the start that the side's own way of writing adds and that are not text (the prefix space of
    SentencePiece): the text starts after them.

    Raises ValueError when an ended completion has no token.
    """
    array = np.asarray(ids, np.int64)
    if not ended:
        return np.maximum(token_bytes.ends(array) - lead, 0)
    if not array.size:
        raise ValueError("a completion that ended has at least its end of turn: there is no token")
    ends = np.maximum(token_bytes.ends(array[:-1]) - lead, 0)
    return np.append(ends, (ends[-1] if ends.size else 0) + 1)
