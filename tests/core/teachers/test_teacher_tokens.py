"""A server's names for tokens -> the teacher's ids."""

import math

import pytest

from core.distillation.token_bytes import TokenBytes
from core.errors import TransientError
from core.teachers.api_tokens import Told, told_of
from core.teachers.teacher_tokens import NONE, TeacherTokens, padded
from tests.support.tokenizers import small_tokenizer


def names_of(*pieces: str, sentencepiece: bool = False) -> TeacherTokens:
    tokenizer = small_tokenizer(
        *pieces, sentencepiece=sentencepiece, added=("Ġthe!", "cat") if not sentencepiece else ()
    )
    return TeacherTokens(TokenBytes(tokenizer), tokenizer.get_vocab(), None)


def test_ids_stay_and_bytes_find_the_token_with_exactly_these_bytes():
    names = names_of("the", "Ġthe", "Ã©")
    assert names.id_of(1) == 1
    assert names.id_of(names.width) == NONE
    assert [names.id_of(each) for each in (b"the", b" the", "é".encode(), "Ġthe".encode())] == [0, 1, 2, 1]
    assert names.id_of(b"\xc3") == names.table.encode(b"\xc3")[0]
    assert [names.id_of(each) for each in (b"unheard of", b"", "\ufffd".encode(), "a\ufffd".encode())] == [NONE] * 4


def test_of_several_tokens_with_the_same_bytes_the_plain_one_is_meant():
    names = names_of("cat")
    added = names.table.pieces.index(b"cat", 1) if b"cat" in names.table.pieces[1:] else None
    assert names.id_of(b"cat") == 0
    assert added is None or names.table.added[added]
    spm = names_of("A", sentencepiece=True)
    byte = int(spm.table.fallback.nonzero()[0][ord("A")])
    assert spm.table.pieces[byte] == b"A"
    assert spm.id_of(b"A") == 0


def test_names_of_one_token_are_added_up_and_what_has_no_id_is_left_out():
    names = names_of("Ġthe", "x")
    found = names.top([(b" the", -1.0), (b"nothing", -0.1), ("Ġthe".encode(), -2.0), (b"x", None), (1, -3.0)])
    assert found == {0: pytest.approx(math.log(math.exp(-1) + math.exp(-2))), 1: -3.0}


def test_a_chats_odd_alternatives_are_a_broken_answer():
    for odd in (5, "the", {"token": "the", "logprob": -1.0}):
        with pytest.raises(TransientError) as caught:
            told_of([{"token": "the", "logprob": -1.0, "top_logprobs": odd}])
        assert caught.value.reason == "broken_answer"
    assert told_of([{"token": "a", "logprob": -(10**400), "top_logprobs": None}]) == [Told(b"a", -math.inf, [])]


def test_rows_of_different_lengths_become_arrays():
    ids, logprobs = padded([{5: -1.0}, {}, {7: -2.0, 8: -3.0}])
    assert ids.tolist() == [[5, NONE], [NONE, NONE], [7, 8]]
    assert logprobs[2].tolist() == [-2.0, -3.0]
    assert math.isnan(logprobs[0, 1])
