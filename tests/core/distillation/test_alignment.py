"""Groups of tokens that cover the same bytes, by hand."""

import numpy as np
import pytest

from core.distillation.alignment import align, completion_ends
from core.distillation.token_bytes import TokenBytes
from tests.support.tokenizers import real_bytes, small_tokenizer


def test_a_group_closes_where_a_token_of_each_side_ends() -> None:
    # The| cat|s sat     ends 3, 7, 13
    # Th|e| ca|ts| sat   ends 2, 3, 6, 9, 13; both end at 3 and at 13
    groups = align([3, 7, 13], [2, 3, 6, 9, 13])
    assert groups.student.tolist() == [0, 1, 1]
    assert groups.teacher.tolist() == [0, 0, 1, 1, 1]
    assert groups.count == 2
    assert groups.student_sizes.tolist() == [1, 2]
    assert groups.teacher_sizes.tolist() == [2, 3]
    assert groups.is_single.tolist() == [False, False]


def test_the_same_tokens_are_groups_of_one() -> None:
    groups = align([1, 4, 6], [1, 4, 6])
    assert groups.student.tolist() == groups.teacher.tolist() == [0, 1, 2]
    assert groups.is_single.all()


def test_nothing_in_common_but_the_end_is_one_group() -> None:
    groups = align([1, 3, 5], [2, 4, 5])
    assert groups.count == 1
    assert groups.student_sizes.tolist() == groups.teacher_sizes.tolist() == [3]


def test_the_index_types_are_those_that_tensors_are_indexed_with() -> None:
    groups = align(np.array([2, 3], np.int32), [3])
    assert groups.student.dtype == groups.teacher.dtype == groups.student_sizes.dtype == np.int64


def test_two_empty_completions_have_no_groups() -> None:
    groups = align([], [])
    assert groups.count == 0
    assert groups.student_sizes.size == groups.is_single.size == 0


def test_a_token_without_bytes_belongs_to_the_group_before_it() -> None:
    groups = align([0, 2, 2, 5], [2, 5, 5])
    assert groups.student.tolist() == [0, 0, 0, 1]  # at the start: to the first
    assert groups.teacher.tolist() == [0, 1, 1]


def test_different_texts_are_refused_with_the_place() -> None:
    with pytest.raises(
        ValueError, match=r"student's tokens end at byte 7 and the teacher's at byte 6.*part after byte 6"
    ):
        align([3, 7], [3, 6])
    with pytest.raises(ValueError, match="byte 0 and the teacher's at byte 1"):
        align([], [1])


def test_ends_that_fall_are_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher's token 2 ends before it starts \(end 4\)"):
        align([6], [3, 5, 4, 6])
    with pytest.raises(ValueError, match="student's token 0"):
        align([-1, 6], [6])
    with pytest.raises(ValueError, match="2 dimensions"):
        align(np.ones((1, 1), np.int64), [1])


def test_tokens_without_any_byte_are_refused() -> None:
    with pytest.raises(ValueError, match="1 student and 0 teacher tokens without a single byte"):
        align([0], [])


def test_an_end_of_turn_is_one_byte_whatever_it_is_called() -> None:
    short = small_tokenizer("Hi", special=("<eos>",))
    long = small_tokenizer("H", "i", special=("<｜end▁of▁turn｜>",), eos="<｜end▁of▁turn｜>")
    one, two = TokenBytes(short), TokenBytes(long)
    student = completion_ends(one, [*one.encode(b"Hi"), short.eos_token_id], ended=True)
    teacher = completion_ends(two, [*two.encode(b"Hi"), long.eos_token_id], ended=True)
    assert student.tolist() == [2, 3]
    assert teacher.tolist() == [1, 2, 3]
    groups = align(student, teacher)
    assert groups.student.tolist() == [0, 1]
    assert groups.teacher.tolist() == [0, 0, 1]
    assert groups.is_single.tolist() == [False, True]


def test_a_cut_completion_has_no_end_of_turn() -> None:
    table = real_bytes("gpt2")
    ids = table.encode(b"The cat")
    assert completion_ends(table, ids, ended=False).tolist() == [3, 7]
    assert completion_ends(table, [], ended=False).tolist() == []


def test_an_end_of_turn_alone_is_a_completion() -> None:
    table = real_bytes("gpt2")
    assert completion_ends(table, [50256], ended=True).tolist() == [1]
    with pytest.raises(ValueError, match="at least its end of turn"):
        completion_ends(table, [], ended=True)


def test_a_lead_is_no_text() -> None:
    table = real_bytes("phi3")
    ids = [*table.encode(b" Hello you"), 32007]
    assert [table.pieces[place] for place in ids] == [b" Hello", b" you", b"<|end|>"]
    assert completion_ends(table, ids, ended=True, lead=1).tolist() == [5, 9, 10]
    assert completion_ends(table, table.encode(b" \n"), ended=False, lead=1).tolist() == [0, 1]


def test_an_emoji_in_halves_is_one_group() -> None:
    # GPT-2 writes it in three tokens (F0 9F | 8E | 89), Phi-3 in four: every piece of GPT-2 ends where a byte ends.
    party = "🎉".encode()
    gpt, phi, llama = (real_bytes(name) for name in ("gpt2", "phi3", "llama3"))
    groups = align(gpt.ends(gpt.encode(party)), phi.ends(phi.encode(party)))
    assert groups.teacher.tolist() == [0, 0, 1, 2]
    groups = align(gpt.ends(gpt.encode(b" " + party)), llama.ends(llama.encode(b" " + party)))
    assert groups.count == 3  # " F0 9F", 8E, 89
