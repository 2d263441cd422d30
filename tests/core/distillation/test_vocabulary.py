"""Pairs of vocabulary entries: by hand, and of real tokenizers."""

import os
from pathlib import Path

import numpy as np
import pytest

from core.distillation.token_bytes import TokenBytes
from core.distillation.vocabulary import Numerals, VocabularyMap, build, build_cached, is_numeral, kind
from core.errors import UsageError
from tests.support.tokenizers import LOGITS, NAMES, real_bytes, real_side, small_tokenizer


def pairs(made: VocabularyMap) -> list[tuple[int, int]]:
    return list(zip(made.student_ids.tolist(), made.teacher_ids.tolist(), strict=True))


def built(student: str, teacher: str) -> VocabularyMap:
    one, two = real_side(student), real_side(teacher)
    ends = (one.end_of_turn, two.end_of_turn)
    return build(one.token_bytes, two.token_bytes, LOGITS[student], LOGITS[teacher], ends)


def test_three_notations_of_one_word_meet() -> None:
    # Ids: pieces from 0 on, then what the merges need, then <eos>.
    byte_level = TokenBytes(small_tokenizer("Ġthe", "cat", whole=False, special=()))
    metaspace = TokenBytes(small_tokenizer("cat", "▁the", "▁of", sentencepiece=True, whole=False, special=()))
    made = build(byte_level, metaspace, byte_level.size, metaspace.size)
    assert {(0, 1), (1, 0)} <= set(pairs(made))
    for one, two in pairs(made):
        assert byte_level.pieces[one] == metaspace.pieces[two]
    assert 2 in made.teacher_rest  # " of"


def test_an_ordinary_token_comes_before_a_byte_token() -> None:
    student = TokenBytes(small_tokenizer("a", whole=False, special=()))
    teacher = TokenBytes(small_tokenizer("<0x61>", "a", sentencepiece=True, special=()))
    assert teacher.pieces[0] == teacher.pieces[1] == b"a"
    assert pairs(build(student, teacher, 1, teacher.size)) == [(0, 1)]
    assert pairs(build(teacher, student, teacher.size, 1)) == [(1, 0)]


def test_special_tokens_meet_special_tokens_and_never_ordinary_text() -> None:
    student = TokenBytes(small_tokenizer("a", whole=False, special=("<s>", "<pad>"), eos=None))  # 0, 1, 2
    teacher = TokenBytes(small_tokenizer("<s>", whole=False, special=("<pad>",), eos=None))
    assert teacher.pieces[0] == b"<s>"
    pad = teacher.pieces.index(b"<pad>")
    assert pairs(build(student, teacher, student.size, teacher.size)) == [(2, pad)]


def test_added_tokens_meet_whether_special_or_not() -> None:
    student = TokenBytes(small_tokenizer("a", whole=False, special=("<think>",), eos=None))
    teacher = TokenBytes(small_tokenizer("b", whole=False, special=(), added=("<think>",), eos=None))
    assert pairs(build(student, teacher, 2, 2)) == [(1, 1)]
    assert pairs(build(teacher, student, 2, 2)) == [(1, 1)]


def test_ends_of_turn_are_a_pair_whatever_they_are_called() -> None:
    student = TokenBytes(small_tokenizer("a", whole=False, special=("<eot>", "<eos>")))  # a 0, <eot> 1, <eos> 2
    teacher = TokenBytes(small_tokenizer("a", whole=False, special=("<eos>", "<end>")))  # a 0, <eos> 1, <end> 2
    assert pairs(build(student, teacher, 3, 3)) == [(0, 0), (2, 1)]
    assert pairs(build(student, teacher, 3, 3, (1, 1))) == [(0, 0), (1, 1)]  # <eos> is taken
    assert pairs(build(student, teacher, 3, 3, (1, 2))) == [(0, 0), (1, 2), (2, 1)]
    with pytest.raises(UsageError, match="end of turn of small is token 3, but its model has 3 logits"):
        build(student, teacher, 3, 3, (1, 3))


def test_rows_beyond_the_tokenizer_belong_to_the_rest() -> None:
    student = TokenBytes(small_tokenizer("a", "b", whole=False, special=()))
    made = build(student, student, 5, 2)
    assert pairs(made) == [(0, 0), (1, 1)]
    assert made.student_rest.tolist() == [2, 3, 4]
    assert made.teacher_rest.tolist() == []
    assert (made.student_width, made.teacher_width) == (5, 2)


def test_tokens_beyond_the_models_logits_are_left_out() -> None:
    student = TokenBytes(small_tokenizer("a", "b", "c", whole=False, special=()))
    made = build(student, student, 2, 3)
    assert pairs(made) == [(0, 0), (1, 1)]
    assert made.teacher_rest.tolist() == [2]
    assert made.report().student_tokens == 2


def test_vocabularies_without_overlap_give_an_empty_map() -> None:
    student = TokenBytes(small_tokenizer("a", whole=False, special=(), eos=None))
    teacher = TokenBytes(small_tokenizer("b", whole=False, special=(), eos=None))
    made = build(student, teacher, 1, 1)
    assert pairs(made) == []
    assert made.student_ids.dtype == made.student_rest.dtype == np.int64
    report = made.report()
    assert (report.matched, report.student_share, report.teacher_share) == (0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("gpt2", "qwen2"), ("qwen2", "llama3"), ("phi3", "deepseek"), ("deepseek", "phi3"), ("smollm2", "gpt2")],
)
def test_a_map_of_real_vocabularies_is_a_bijection_of_equal_bytes(student: str, teacher: str) -> None:
    made = built(student, teacher)
    one, two = real_side(student), real_side(teacher)
    for width, ids, rest in (
        (LOGITS[student], made.student_ids, made.student_rest),
        (LOGITS[teacher], made.teacher_ids, made.teacher_rest),
    ):
        assert np.array_equal(np.sort(np.concatenate([ids, rest])), np.arange(width))
    assert (np.diff(made.student_ids) > 0).all()
    assert (one.end_of_turn, two.end_of_turn) in pairs(made)
    for own, other in pairs(made):
        if own != one.end_of_turn:
            assert one.token_bytes.pieces[own] == two.token_bytes.pieces[other]


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_with_itself_has_everything_in_common(name: str) -> None:
    made = built(name, name)
    # but for Phi-3's byte tokens, which say the same as its letters, and ids that say the same as an earlier one
    table = real_bytes(name)
    assert made.report().matched == len(
        {(piece, bool(s)) for piece, s in zip(table.pieces, table.special, strict=True)}
    )
    assert np.array_equal(made.student_ids, made.teacher_ids)


def test_llama_3_has_1100_numerals_that_qwen_2_has_not() -> None:
    # Llama 3 keeps up to three digits together, so 10**2 + 10**3 numerals; Qwen 2 takes digits one by one.
    assert built("llama3", "qwen2").report().numerals == Numerals(0, 1100, 0)
    assert built("qwen2", "llama3").report().numerals == Numerals(0, 0, 1100)
    shared = built("llama3", "deepseek").report().numerals
    assert (shared.both, shared.student_only, shared.teacher_only) == (1100, 0, 0)


def test_the_report_counts_by_kind_and_adds_up() -> None:
    report = built("qwen2", "llama3").report()
    kinds = {row.name: row for row in report.kinds}
    assert {"special", "digits", "punctuation", "whitespace", "bytes", "letters: Latin", "letters: Cjk"} <= kinds.keys()
    assert sum(row.student_matched for row in report.kinds) == report.matched
    assert sum(row.teacher_matched for row in report.kinds) == report.matched
    assert report.student_tokens == 151_646
    assert report.student_share == pytest.approx(report.matched / 151_646)
    assert kinds["digits"].teacher - kinds["digits"].student > 1000
    assert report.to_dict()["numerals"]["teacher_only"] == 1100


def test_kinds_of_tokens() -> None:
    for piece, name in (
        (b" the", "letters: Latin"),
        ("ñandú".encode(), "letters: Latin"),
        ("слово".encode(), "letters: Cyrillic"),
        ("日本".encode(), "letters: Cjk"),
        ("カ".encode(), "letters: Katakana"),
        (b".get(", "letters: Latin"),
        (b" 12", "digits"),
        ("٣".encode(), "digits"),
        (b"1.", "digits"),
        (b"();\n", "punctuation"),
        ("🎉".encode(), "symbols"),
        ("。".encode(), "symbols"),
        (b"\n\n  ", "whitespace"),
        (b"\xf0\x9f", "bytes"),
        ("\ufffd".encode(), "symbols"),
    ):
        assert kind(piece) == name, piece
    assert [is_numeral(piece) for piece in (b"12", b" 12", b"1", b" 1", b"1a", b"  12", "٣٤".encode())] == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]


def test_a_map_is_kept_on_disk_under_what_it_was_made_of(tmp_path: Path) -> None:
    one, two = TokenBytes(small_tokenizer("a", "12", "Ġc")), TokenBytes(small_tokenizer("Ġc", "a"))
    width, other = one.size, two.size + 1
    first = build_cached(one, two, width, other, (0, 0), tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = build_cached(one, two, width, other, (0, 0), tmp_path)
    assert file.stat().st_mtime_ns == written
    for name in ("student_ids", "teacher_ids", "student_rest", "teacher_rest"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert getattr(again, name).dtype == np.int64
    assert again.report() == first.report()
    assert again.report().numerals == Numerals(0, 1, 0)
    build_cached(one, two, width, other, None, tmp_path)
    build_cached(one, two, width, other + 1, (0, 0), tmp_path)
    build_cached(two, one, other, width, (0, 0), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_file_is_built_anew(tmp_path: Path) -> None:
    one = TokenBytes(small_tokenizer("a"))
    first = build_cached(one, one, one.size, one.size, None, tmp_path)
    (file,) = tmp_path.iterdir()
    for damage in (b"", file.read_bytes()[:-100], b"not a zip file"):
        file.write_bytes(damage)
        again = build_cached(one, one, one.size, one.size, None, tmp_path)
        assert np.array_equal(again.student_ids, first.student_ids)
        assert len(list(tmp_path.iterdir())) == 1


def test_without_a_place_to_write_there_is_no_cache(tmp_path: Path) -> None:
    one = TokenBytes(small_tokenizer("a"))
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert build_cached(one, one, one.size, one.size, None, tmp_path / "file" / "folder").student_ids.size == one.size


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = TokenBytes(small_tokenizer("a"))
    build_cached(one, one, one.size, one.size)
    assert [name.suffix for name in (tmp_path / "distill" / "vocabularies").iterdir()] == [".npz"]
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path)
