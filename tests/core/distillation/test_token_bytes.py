"""The bytes of tokens: three notations of one text, and any bytes as tokens."""

from typing import Any

import numpy as np
import pytest

from core.distillation.token_bytes import LETTERS, TokenBytes, same_tokens
from core.errors import UsageError
from tests.support.tokenizers import NAMES, real_bytes, real_tokenizer, small_tokenizer

TEXTS = (
    "The cat sat.  It's 12345 o'clock\n\n\tdef f(x):\r\n        return x**2  # naïve\n",
    "日本語 한국어 العربية עברית हिन्दी ไทย Ελληνικά кириллица 𝒜𝓁𝓅𝒽𝒶 👩‍👩‍👧‍👦🏳️‍🌈 ½ ﬁ",
    "cafe\u0301 e\u0301\u0323 \u00a0\u2003\u200b\ufeff ﹣＃ \x00\x01\x7f",
    "▁ a▁b ▁▁ Ġthe Ċ <0x41> <s> </s> <|im_end|> <|eot_id|> <｜end▁of▁sentence｜> <think> [INST] <unk>",
)


def test_three_notations_of_one_word_are_the_same_bytes() -> None:
    for name, piece in (("gpt2", "Ġthe"), ("llama3", "Ġthe"), ("phi3", "▁the")):
        place = real_tokenizer(name).convert_tokens_to_ids(piece)
        assert real_bytes(name).pieces[place] == b" the"


def test_every_byte_has_its_letter() -> None:
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, [*range(0x800), *range(0x1000, 0xD000, 64), *range(0x10000, 0x110000, 0x1000)]))
    assert level.pre_tokenize_str(text)[0][0] == "".join(LETTERS[byte] for byte in text.encode())
    assert sorted(LETTERS) == sorted(level.alphabet())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_tokenizer_makes_of_a_text_is_the_bytes_of_the_text(name: str) -> None:
    tokenizer, made = real_tokenizer(name), real_bytes(name)
    for text in TEXTS[:2]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        prefix = b" " if name == "phi3" else b""  # SentencePiece's, at the start of every text
        assert made.of(ids) == prefix + text.encode()
        assert made.ends(ids)[-1] == len(prefix + text.encode())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_spelt_without_special_tokens(name: str, text: str) -> None:
    made = real_bytes(name)
    ids = made.encode(text.encode())
    assert made.of(ids) == text.encode()
    assert not made.special[ids].any()


def test_in_the_middle_of_a_text_it_is_what_the_tokenizer_itself_makes() -> None:
    for name in NAMES:
        tokenizer, made = real_tokenizer(name), real_bytes(name)
        text = "The cat sat.  It's 12345 o'clock\n\n\tdef f(x): 日本語 👩‍👩‍👧‍👦"
        marked = tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
        assert marked[-len(made.encode(text.encode())) :] == made.encode(text.encode())


def test_a_letter_and_its_accent_stay_two_although_qwen_would_compose_them() -> None:
    made = real_bytes("qwen2")
    decomposed = "e\u0301".encode()  # 65 CC 81; NFC makes it é, C3 A9
    assert made.of(made.encode(decomposed)) == decomposed
    assert made.of(real_tokenizer("qwen2")("e\u0301")["input_ids"]) == "é".encode()


def test_a_special_token_counts_the_bytes_of_its_name_not_its_characters() -> None:
    tokenizer, made = real_tokenizer("deepseek"), real_bytes("deepseek")
    # <｜end▁of▁sentence｜>: 19 characters; ｜ and ▁ take 3 bytes each, and there are 2 + 2 of them: 19 + 4 * 2 = 27.
    place = tokenizer.convert_tokens_to_ids("<｜end▁of▁sentence｜>")
    assert made.pieces[place] == "<｜end▁of▁sentence｜>".encode()
    assert made.lengths[place] == 27
    assert made.special[place]


def test_byte_tokens_are_bytes_only_where_the_tokenizer_falls_back_to_them() -> None:
    phi, gpt = real_bytes("phi3"), real_bytes("gpt2")
    place = real_tokenizer("phi3").convert_tokens_to_ids("<0xE2>")
    assert phi.pieces[place] == b"\xe2"
    assert phi.fallback[place]
    assert int(phi.fallback.sum()) == 256
    assert not gpt.fallback.any()
    assert phi.pieces[phi.encode(b"<0xE2>")[0]] != b"\xe2"  # the text is six signs


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama3", "deepseek", "phi3"])
def test_bytes_that_are_no_utf_8_are_spelt_too(name: str) -> None:
    made = real_bytes(name)
    emoji = "🎉".encode()  # F0 9F 8E 89
    for data in (emoji[:2], emoji[2:], b"ab" + emoji[:3] + b" c", b"\xff\xfe\x00", bytes(range(256))):
        assert made.of(made.encode(data)) == data


def test_half_an_emoji_is_the_token_that_its_whole_would_begin_with() -> None:
    made = real_bytes("gpt2")
    whole, half = made.encode("a🎉".encode()), made.encode("a🎉".encode()[:3])
    assert [made.pieces[place] for place in whole] == [b"a", b"\xf0\x9f", b"\x8e", b"\x89"]
    assert half == whole[:2]


def test_ends_are_cumulative_bytes() -> None:
    tokenizer = small_tokenizer("ab", "Ġc")
    made = TokenBytes(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["ab", "Ġc", "<eos>", "ab"])
    # 2, then " c" makes 4, "<eos>" is 5 bytes: 9, and 2 more.
    assert made.ends(ids).tolist() == [2, 4, 9, 11]
    assert made.of(ids) == b"ab c<eos>ab"
    assert made.ends([]).tolist() == []
    assert made.of([]) == b""


def test_an_id_without_a_text_is_the_replacement_character() -> None:
    made = real_bytes("qwen2")
    padding = 151_900  # a row of the embeddings beyond the tokenizer's 151,646 entries
    assert made.size == 151_646
    assert made.of([padding, made.encode(b"a")[0]]) == "\ufffda".encode()
    assert made.ends([padding]).tolist() == [3]


def test_negative_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="-100 is negative"):
        real_bytes("gpt2").of([5, -100])


def test_smollm2_cannot_spell_every_byte_and_says_so() -> None:
    made = real_bytes("smollm2")
    with pytest.raises(UsageError, match=r"no token for byte 0xFF .*byte 2 of a text"):
        made.encode(b"ab\xffcd")
    ids, ends = made.spell(b"ab\xffcd")
    assert made.of(ids) == "ab\ufffdcd".encode()  # the stand-in
    assert ends[-1] == 5  # which counts one byte


def test_a_stand_in_of_several_tokens_ends_once_and_the_others_are_empty() -> None:
    tokenizer = small_tokenizer("a", *(LETTERS[byte] for byte in "\ufffd".encode()), whole=False)
    made = TokenBytes(tokenizer)
    ids, ends = made.spell(b"a\xffa")
    assert made.of(ids) == "a\ufffda".encode()  # a, EF, BF, BD, a
    assert ends.tolist() == [1, 2, 2, 2, 3]


def test_the_unknown_token_stands_in_where_there_are_no_single_bytes() -> None:
    tokenizer = small_tokenizer("a", "▁", sentencepiece=True, whole=False, special=("<unk>", "<eos>"), unk="<unk>")
    made = TokenBytes(tokenizer)
    ids, ends = made.spell("aña a".encode())  # ñ is C3 B1
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "<unk>", "<unk>", "a", "▁", "a"]
    assert ends.tolist() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(UsageError, match=r"small has no token for byte 0xC3 .*byte 1 of a text"):
        made.encode("aña".encode())


def test_a_tokenizer_that_has_nothing_for_a_character_is_refused_there() -> None:
    made = TokenBytes(small_tokenizer("a", "▁", sentencepiece=True, whole=False))
    assert made.encode(b"a a")
    with pytest.raises(UsageError, match="cannot read every text"):
        made.spell(b"b")


def test_prefix_spaces_are_no_text() -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    old = small_tokenizer("Ġa", "a")
    old.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert old.convert_ids_to_tokens(old("a")["input_ids"]) == ["Ġa"]
    new = small_tokenizer("▁a", "a", sentencepiece=True)
    new.backend_tokenizer.normalizer = normalizers.Sequence([])
    new.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    new.backend_tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
    assert new.convert_ids_to_tokens(new("a")["input_ids"]) == ["▁a"]
    for tokenizer in (old, new):
        made = TokenBytes(tokenizer)
        assert tokenizer.convert_ids_to_tokens(made.encode(b"a")) == ["a"]
        assert [made.pieces[place] for place in made.encode(b" a")] == [b" a"]


def test_an_added_token_that_is_not_special_is_found_in_text_and_a_special_one_is_not() -> None:
    tokenizer = small_tokenizer("a", added=("<think>",))
    made = TokenBytes(tokenizer)
    think, eos = tokenizer.convert_tokens_to_ids(["<think>", "<eos>"])
    assert made.encode(b"a<think>") == [0, think]
    assert len(made.encode(b"a<eos>")) == 6  # a < e o s >
    assert made.added[[think, eos]].all()
    assert made.special[[think, eos]].tolist() == [False, True]


def test_an_added_run_of_spaces_is_spaces() -> None:
    made = TokenBytes(small_tokenizer("▁", "a", sentencepiece=True, special=("<a▁b>",), added=("▁▁▁",), eos=None))
    spaces, special = made.pieces.index(b"   "), made.pieces.index("<a▁b>".encode())
    assert made.added[[spaces, special]].all()
    assert made.encode(b"a   a") == [1, spaces, 1]


def test_a_unigram_tokenizer_with_byte_fallback() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    scores = [("<unk>", 0.0), ("▁a", -1.0), ("a", -2.0), ("▁", -2.0)]
    scores += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    assert made.of(made.encode("a aé▁".encode())) == "a aé▁".encode()


def refusal(tokenizer: Any) -> str:
    with pytest.raises(UsageError) as caught:
        TokenBytes(tokenizer)
    return str(caught.value)


def test_tokenizers_that_normalise_their_text_are_refused_by_name() -> None:
    from tokenizers import Regex, normalizers

    for normalizer, said in (
        (normalizers.NFKC(), "NFKC"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()]), "NFD, Lowercase"),
        (normalizers.Strip(), "Strip"),
        (normalizers.BertNormalizer(), "BertNormalizer"),
        (normalizers.Replace(Regex(" {2,}"), " "), "Replace"),
        (normalizers.Prepend("x"), "Prepend 'x'"),
    ):
        tokenizer = small_tokenizer("a")
        tokenizer.backend_tokenizer.normalizer = normalizer
        message = refusal(tokenizer)
        assert "small normalises its text" in message
        assert said in message


def test_tokenizers_whose_tokens_spell_no_bytes_are_refused() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    pieces.decoder = decoders.WordPiece()
    clip = Tokenizer(models.BPE(vocab={"a</w>": 0, "a": 1}, merges=[], end_of_word_suffix="</w>"))
    clip.decoder = decoders.BPEDecoder()
    bare = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    for tokenizer, said in ((pieces, "WordPiece"), (clip, "BPEDecoder"), (bare, "decoder none")):
        message = refusal(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
        assert "do not spell bytes" in message
        assert said in message


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        name_or_path = "old/model"
        is_fast = False

    assert "old/model is not a fast tokenizer" in refusal(Slow())


def test_digests_tell_vocabularies_apart() -> None:
    one, same, other = (TokenBytes(small_tokenizer(*pieces)) for pieces in (("ab", "c"), ("ab", "c"), ("c", "ab")))
    assert one.digest == same.digest
    assert one.digest != other.digest
    assert len({real_bytes(name).digest for name in NAMES}) == len(NAMES)


def test_ids_may_be_arrays() -> None:
    made = real_bytes("gpt2")
    ids = np.array(made.encode(b"The cat"), np.int32)
    assert made.of(ids) == b"The cat"


# --- the same tokens on both sides ---


def test_a_later_model_of_a_family_with_more_added_tokens_has_the_same_tokens() -> None:
    older = TokenBytes(small_tokenizer("Ġthe"))
    later = TokenBytes(small_tokenizer("Ġthe", special=("<eos>", "<think>"), added=("<tool>",)))
    assert same_tokens(older, later)
    assert same_tokens(later, older)
    assert same_tokens(older, older)


def test_other_pieces_other_specials_and_a_part_of_a_vocabulary_are_not_the_same_tokens() -> None:
    one = TokenBytes(small_tokenizer("Ġthe"))
    assert not same_tokens(one, TokenBytes(small_tokenizer("Ġtho")))
    # The name is an ordinary added token here: in a text it would mean something else.
    assert not same_tokens(one, TokenBytes(small_tokenizer("Ġthe", special=(), added=("<eos>",), eos=None)))
    # Bytes alone are the first ids of the other, which goes on with words.
    assert not same_tokens(TokenBytes(small_tokenizer(special=(), eos=None)), TokenBytes(small_tokenizer("Ġthe")))


def test_real_tokenizers_are_the_same_only_as_themselves() -> None:
    for name in ("gpt2", "smollm2"):
        for other in ("gpt2", "smollm2"):
            assert same_tokens(real_bytes(name), real_bytes(other)) == (name == other)
