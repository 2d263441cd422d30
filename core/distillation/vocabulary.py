"""Which entries of two vocabularies mean the same bytes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


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
