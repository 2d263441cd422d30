"""One conversation for two models: templates, ends of turn, prefix spaces, special tokens."""

import numpy as np
import pytest

from core.distillation.chat import ChatSide, encode_pair
from core.errors import UsageError
from tests.support.tiny_model import CHATML, real_template
from tests.support.tokenizers import NAMES, real_bytes, real_side, real_tokenizer, small_tokenizer

HI = [{"role": "user", "content": "Hi!"}]
TALK = [{"role": "system", "content": "Be short."}, *HI, {"role": "assistant", "content": "Yes?"}, HI[0]]


def text(name: str, ids: list[int]) -> str:
    return real_bytes(name).of(ids).decode(errors="replace")


def test_ends_of_turn_are_found_by_rendering_not_taken_from_eos() -> None:
    found = {name: real_bytes(name).pieces[real_side(name).end_of_turn].decode() for name in NAMES}
    assert found == {
        "gpt2": "<|endoftext|>",
        "qwen2": "<|im_end|>",
        "llama3": "<|eot_id|>",
        "phi3": "<|end|>",
        "deepseek": "<｜end▁of▁sentence｜>",
        "smollm2": "<|im_end|>",
    }
    for name, eos in (("qwen2", "<|endoftext|>"), ("llama3", "<|end_of_text|>"), ("phi3", "<|endoftext|>")):
        assert real_tokenizer(name).eos_token == eos
        assert real_side(name).ends == (real_side(name).end_of_turn, real_tokenizer(name).eos_token_id)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("qwen3", "<|im_end|>"),
        ("llama3_1", "<|eot_id|>"),
        ("phi3", "<|end|>"),
        ("gemma", "<end_of_turn>"),
        ("glm4moe", "<|user|>"),  # it closes no answer: the next turn's mark is what its models stop at
        ("deepseekv3", "<｜end▁of▁sentence｜>"),
    ],
)
def test_ends_of_turn_of_real_templates(template: str, end: str) -> None:
    marks = ("<bos>", "<eos>", "<|im_start|>", "<|assistant|>", "<|start_header_id|>", "<|end_header_id|>", end)
    tokenizer = small_tokenizer("a", special=marks, template=real_template(template))
    tokenizer.bos_token = "<bos>"
    side = ChatSide(tokenizer)
    assert side.token_bytes.pieces[side.end_of_turn].decode() == end


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt2"])
def test_a_prompt_is_the_templates_own(name: str) -> None:
    tokenizer = real_tokenizer(name)
    expected = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert real_side(name).prompt_ids(TALK) == expected
    assert real_side(name).note == ""


def test_the_teachers_prompt_has_nothing_of_the_students_template() -> None:
    qwen, llama = real_side("qwen2"), real_side("llama3")
    pair = encode_pair(qwen, llama, TALK, qwen.completion_ids(b"Hello there", True), True)
    assert text("llama3", pair.teacher_prompt_ids) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert "<|im_" in text("qwen2", pair.student_prompt_ids)
    assert text("llama3", pair.teacher_completion_ids) == "Hello there<|eot_id|>"


def test_ids_are_kept_as_sampled_although_the_text_would_be_tokenised_otherwise() -> None:
    qwen, llama = real_side("qwen2"), real_side("llama3")
    sampled = [place for sign in b"Hello" for place in qwen.token_bytes.encode(bytes([sign]))]  # letter by letter
    assert len(sampled) == 5
    pair = encode_pair(qwen, llama, HI, [*sampled, qwen.end_of_turn], True)
    assert pair.student_completion_ids == [*sampled, qwen.end_of_turn]
    assert len(pair.teacher_completion_ids) == 2
    assert pair.groups.student.tolist() == [0, 0, 0, 0, 0, 1]
    assert pair.groups.teacher.tolist() == [0, 1]


def test_tools_reach_the_template() -> None:
    listing = "{% for t in tools or [] %}{{ t.name }}{% endfor %}<eos>"
    side = ChatSide(small_tokenizer("a", template=listing))
    other = ChatSide(small_tokenizer("b", template=listing))
    pair = encode_pair(side, other, HI, [0], False, tools=[{"name": "look"}])
    assert other.token_bytes.of(pair.teacher_prompt_ids) == b"look<eos>"
    assert side.token_bytes.of(pair.student_prompt_ids) == b"look<eos>"


def test_prompt_ids_that_the_student_was_given_are_kept() -> None:
    qwen, llama = real_side("qwen2"), real_side("llama3")
    pair = encode_pair(qwen, llama, HI, [9707], False, student_prompt_ids=[1, 2, 3])
    assert pair.student_prompt_ids == [1, 2, 3]


def test_a_cut_completion_is_given_no_end_of_turn() -> None:
    qwen, llama = real_side("qwen2"), real_side("llama3")
    pair = encode_pair(qwen, llama, HI, qwen.completion_ids(b"Hello there", False), False)
    assert text("llama3", pair.teacher_completion_ids) == "Hello there"
    assert pair.groups.count == 2


def test_a_completion_cut_inside_an_emoji() -> None:
    gpt, qwen = real_side("gpt2"), real_side("qwen2")
    ids = gpt.token_bytes.encode("ok 🎉".encode())[:2]
    assert gpt.token_bytes.of(ids) == b"ok \xf0\x9f"
    pair = encode_pair(gpt, qwen, HI, ids, False)
    assert qwen.token_bytes.of(pair.teacher_completion_ids) == b"ok \xf0\x9f"
    assert pair.groups.count == 2


def test_an_empty_completion() -> None:
    qwen, llama = real_side("qwen2"), real_side("llama3")
    cut = encode_pair(qwen, llama, HI, [], False)
    assert (cut.student_completion_ids, cut.teacher_completion_ids, cut.groups.count) == ([], [], 0)
    ended = encode_pair(qwen, llama, HI, [qwen.end_of_turn], True)
    assert ended.teacher_completion_ids == [llama.end_of_turn]
    assert ended.groups.is_single.tolist() == [True]


@pytest.mark.parametrize("teacher", NAMES)
def test_a_completion_of_special_tokens_only(teacher: str) -> None:
    qwen, reader = real_side("qwen2"), real_side(teacher)
    start, pad, end = (
        real_tokenizer("qwen2").convert_tokens_to_ids(n) for n in ("<|im_start|>", "<|endoftext|>", "<|im_end|>")
    )
    pair = encode_pair(qwen, reader, HI, [start, pad, end], True)
    read = reader.token_bytes.of(pair.teacher_completion_ids[:-1])
    assert read == reader.lead + b"<|im_start|><|endoftext|>"
    assert pair.groups.student.tolist() == [0, 1, 2]
    names = [
        reader.token_bytes.pieces[place]
        for place in pair.teacher_completion_ids[:-1]
        if reader.token_bytes.added[place]
    ]
    own = {"smollm2": [b"<|im_start|>", b"<|endoftext|>"], "qwen2": [b"<|im_start|>", b"<|endoftext|>"]}
    one = [] if teacher in ("llama3", "deepseek") else [b"<|endoftext|>"]
    assert names == own.get(teacher, one)


def test_a_special_token_inside_is_text_for_a_teacher_that_has_none_of_its_name() -> None:
    llama, qwen = real_side("llama3"), real_side("qwen2")
    head = real_tokenizer("llama3").convert_tokens_to_ids("<|start_header_id|>")
    ids = [*llama.token_bytes.encode(b"a"), head, *llama.token_bytes.encode(b"b"), llama.end_of_turn]
    pair = encode_pair(llama, qwen, HI, ids, True)
    assert qwen.token_bytes.of(pair.teacher_completion_ids) == b"a<|start_header_id|>b<|im_end|>"
    assert not qwen.token_bytes.added[pair.teacher_completion_ids[:-1]].any()
    assert pair.groups.student.tolist() == [0, 1, 2, 3]


def test_a_token_that_is_added_but_ordinary_text_does_not_break_the_teachers_words() -> None:
    student = ChatSide(small_tokenizer("f", "r", added=("ø",), template=CHATML))
    teacher = ChatSide(small_tokenizer("fÃ¸r", template=CHATML))  # "før" as ByteLevel writes it
    ids = [student.token_bytes.pieces.index(piece) for piece in (b"f", "ø".encode(), b"r")]
    pair = encode_pair(student, teacher, HI, ids, False)
    assert pair.teacher_completion_ids == [0]
    assert pair.groups.student.tolist() == [0, 0, 0]


def test_the_name_of_a_special_token_spelt_out_stays_text() -> None:
    gpt, qwen = real_side("gpt2"), real_side("qwen2")
    pair = encode_pair(gpt, qwen, HI, gpt.completion_ids(b"say <|im_end|>", True), True)
    assert pair.teacher_completion_ids.count(qwen.end_of_turn) == 1
    assert qwen.token_bytes.of(pair.teacher_completion_ids[:-1]) == b"say <|im_end|>"


def test_a_tag_of_the_models_own_stays_one_token() -> None:
    student = ChatSide(small_tokenizer("a", special=("<eos>", "<think>"), template=CHATML))
    teacher = ChatSide(small_tokenizer("b", added=("<think>",), template=CHATML))
    think = student.token_bytes.pieces.index(b"<think>")
    pair = encode_pair(student, teacher, HI, [think, 0], False)
    assert [teacher.token_bytes.pieces[place] for place in pair.teacher_completion_ids] == [b"<think>", b"a"]
    assert pair.groups.is_single.tolist() == [True, True]


def test_a_prefix_space_of_sentencepiece_is_no_text_of_the_answer() -> None:
    # Phi-3's marks take the line break after them, and the answer that follows begins with SentencePiece's own space.
    phi, qwen = real_side("phi3"), real_side("qwen2")
    assert (phi.lead, qwen.lead) == (b" ", b"")
    ids = [*phi.token_bytes.encode(b" Hello you"), phi.end_of_turn]
    pair = encode_pair(phi, qwen, HI, ids, True)
    assert qwen.token_bytes.of(pair.teacher_completion_ids) == b"Hello you<|im_end|>"
    assert pair.groups.is_single.tolist() == [True, True, True]
    back = encode_pair(qwen, phi, HI, pair.teacher_completion_ids, True)
    assert back.teacher_completion_ids == ids
    assert back.groups.is_single.tolist() == [True, True, True]


def test_what_a_model_with_a_prefix_space_reads_is_what_it_learnt_from() -> None:
    phi = real_side("phi3")
    talk = [*HI, {"role": "assistant", "content": "Hello  you, 12"}]
    whole = real_tokenizer("phi3").apply_chat_template(talk, tokenize=True, return_dict=False)
    said = [*phi.prompt_ids(HI), *phi.completion_ids(b"Hello  you, 12", True)]
    assert whole[: len(said)] == said


def test_a_lead_alone_or_no_lead_at_all() -> None:
    phi, qwen = real_side("phi3"), real_side("qwen2")
    space = phi.token_bytes.encode(b" ")
    cut = encode_pair(phi, qwen, HI, space, False)
    assert qwen.token_bytes.of(cut.teacher_completion_ids) == b" "
    ended = encode_pair(phi, qwen, HI, [*space, phi.end_of_turn], True)
    assert ended.teacher_completion_ids == [qwen.end_of_turn]
    assert ended.groups.student.tolist() == [0, 0]
    bare = encode_pair(phi, qwen, HI, phi.token_bytes.encode(b"Hello"), False)
    assert qwen.token_bytes.of(bare.teacher_completion_ids) == b"Hello"
    twice = encode_pair(phi, qwen, HI, phi.token_bytes.encode(b"  Hello"), False)
    assert qwen.token_bytes.of(twice.teacher_completion_ids) == b" Hello"


def test_a_byte_that_the_teacher_cannot_spell_does_not_shift_what_follows() -> None:
    gpt, smol = real_side("gpt2"), real_side("smollm2")
    pair = encode_pair(gpt, smol, HI, gpt.completion_ids(b"ab\xffcd", True), True)
    assert smol.token_bytes.of(pair.teacher_completion_ids[:-1]) == "ab\ufffdcd".encode()
    assert pair.groups.is_single.tolist() == [True, True, True, True]


def test_the_end_and_the_last_token_must_agree() -> None:
    qwen, llama = real_side("qwen2"), real_side("llama3")
    with pytest.raises(ValueError, match=r"ended, but its last token \(9707\) ends no answer"):
        encode_pair(qwen, llama, HI, [9707], True)
    with pytest.raises(ValueError, match=r"ended, but its last token \(None\)"):
        encode_pair(qwen, llama, HI, [], True)
    with pytest.raises(ValueError, match=r"was cut, but its last token \(151645\) is the end of turn"):
        encode_pair(qwen, llama, HI, [9707, 151645], False)


def test_the_end_of_text_ends_a_turn_too() -> None:
    qwen, llama = real_side("qwen2"), real_side("llama3")
    text_end = real_tokenizer("qwen2").eos_token_id
    pair = encode_pair(qwen, llama, HI, [9707, text_end], True)
    assert text("llama3", pair.teacher_completion_ids) == "Hello<|eot_id|>"
    assert pair.groups.is_single.tolist() == [True, True]


def test_without_a_chat_template_plain_text_is_used_and_it_says_so() -> None:
    gpt = real_side("gpt2")
    assert text("gpt2", gpt.prompt_ids(TALK)) == (
        "### System:\nBe short.\n\n### User:\nHi!\n\n### Assistant:\nYes?\n\n### User:\nHi!\n\n### Assistant:\n"
    )
    assert "has no chat template: plain text is used" in gpt.note
    assert gpt.note.endswith("an answer ends with <|endoftext|>")
    with pytest.raises(UsageError, match="no place for tools"):
        gpt.prompt_ids(HI, tools=[{"type": "function"}])


def test_chatml_is_used_where_its_tokens_are_there() -> None:
    side = ChatSide(small_tokenizer("a", special=("<eos>", "<|im_start|>", "<|im_end|>")))
    assert side.token_bytes.of(side.prompt_ids(HI)) == b"<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    assert side.token_bytes.pieces[side.end_of_turn] == b"<|im_end|>"
    assert "small has no chat template: ChatML is used" in side.note


def test_a_template_can_be_given_and_switched() -> None:
    tokenizer = small_tokenizer("a", special=("<eos>", "<|im_end|>"))
    given = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% if loud %}!{% endif %}"
    side = ChatSide(tokenizer, template=given, options={"loud": True})
    assert side.token_bytes.of(side.prompt_ids(HI)) == b"Hi!<|im_end|>!"
    assert side.note == ""


def test_no_token_that_ends_an_answer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no token of small ends an answer.*Set eos_token"):
        ChatSide(small_tokenizer("a", special=(), eos=None))


def test_a_template_that_refuses_the_conversation() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}<eos>"
    side = ChatSide(small_tokenizer("a", template=refusing))
    with pytest.raises(UsageError, match="chat template of small refuses the conversation: no system role"):
        side.prompt_ids(TALK)


def test_a_template_that_drops_answers_leaves_the_end_of_text() -> None:
    side = ChatSide(small_tokenizer("a", special=("<eos>", "<x>"), template="<x>{{ messages[0].content }}"))
    assert side.token_bytes.pieces[side.end_of_turn] == b"<eos>"


def test_ids_may_be_arrays() -> None:
    qwen, llama = real_side("qwen2"), real_side("llama3")
    pair = encode_pair(qwen, llama, HI, np.array([9707, 151645], np.int32), True)
    assert pair.student_completion_ids == [9707, 151645]
