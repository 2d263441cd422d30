"""Which tokens of a row are trained, under our templates and those of real model families."""

import hashlib
import re
from typing import Any

import pytest
from transformers import AddedToken, CanineTokenizer

from core.errors import UsageError
from core.teachers.template_messages import BAD_CALL, NOT_TEXT, LeftOut
from core.training.chat_forms import CHATML, PLAIN
from core.training.masks import NO_ANSWER, ONLY_THINKING, Encoded, Masker
from core.training.template_turns import REFUSED
from tests.support import tiny_model
from tests.support.tiny_model import real_template
from tests.support.tokenizers import real_side, real_tokenizer, small_tokenizer

MARKS = ("<|im_start|>", "<|im_end|>", "<eos>")
SPECIAL = re.compile(
    r"<\|[\w ]+\|>|<｜[^>｜]+｜>|<(?:end|start)_of_turn>|\[gMASK\]|<sop>|<\|?turn\|?>|<\|tool_response>"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "warmth",
            "description": "How warm it is.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "warmth", "arguments": '{"city": "Rome"}'}}
"""With arguments as a string and an id that Mistral's templates take, too."""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": CALL["id"], "name": "warmth", "content": text}


TALK = [user("Hi"), said("Hello!"), user("Bye"), said("See you.")]
THOUGHT = [
    user("Hi"),
    said("Hello!", reasoning_content="They greet."),
    user("Bye"),
    said("See you.", reasoning_content="They leave."),
]
CALLED = [user("How warm?"), said("", tool_calls=[CALL]), result("31"), said("It is 31.")]


def byte_tokenizer(template: str | None, *special: str) -> Any:
    """A token for each byte and for each special token that the template writes."""
    marks = (*special, *SPECIAL.findall(template or ""), "<bos>", "<eos>")
    tokens = small_tokenizer(special=tuple(dict.fromkeys(marks)), eos="<eos>", template=template)
    tokens.add_special_tokens({"bos_token": AddedToken("<bos>", special=True, normalized=False)})
    return tokens


def family(name: str) -> Any:
    """A byte tokenizer with the template of a real family."""
    return byte_tokenizer(real_template(name))


def masker(tokens: Any, template: str | None = None, thinking: Any = "keep") -> Masker:
    return Masker(tokens, template, thinking)


def decoded(tokens: Any, ids: list[int]) -> str:
    return tokens.decode(ids, clean_up_tokenization_spaces=False)


def trained(tokens: Any, encoded: Encoded) -> list[str]:
    """The texts of the trained stretches."""
    texts: list[list[int]] = []
    before = False
    for place, is_trained in zip(encoded.ids, encoded.trained, strict=True):
        if is_trained and not before:
            texts.append([])
        if is_trained:
            texts[-1].append(place)
        before = is_trained
    return [decoded(tokens, ids) for ids in texts]


def test_what_the_assistant_says_is_trained_to_its_end_of_turn_counted_by_hand() -> None:
    tokens = byte_tokenizer(tiny_model.CHATML, *MARKS)
    encoded = masker(tokens).encode([user("Hi"), said("Yes?"), user("No"), said("Oh"), user("never answered")])
    assert decoded(tokens, encoded.ids) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
        "<|im_start|>user\nNo<|im_end|>\n<|im_start|>assistant\nOh<|im_end|>"
    )
    # A mark is one token, a letter one: 1 + 4 + 1 + 2 + 1 + 1 for the user, 1 + 9 + 1 to open the answer.
    asked, opened = 10, 11
    answer, second = 5, 3
    first = asked + opened + answer
    last = first + 1 + asked + opened + second  # the line break behind the first answer
    assert encoded.borders == [first, last]
    assert [place for place, is_trained in enumerate(encoded.trained) if is_trained] == [
        *range(asked + opened, first),
        *range(last - second, last),
    ]


# What each family's template makes of the three conversations above: the trained texts, in the order of their turns.
EXPECTED: dict[str, list[list[str] | None]] = {
    "qwen2_5": [
        ["Hello!<|im_end|>", "See you.<|im_end|>"],
        ["Hello!<|im_end|>", "See you.<|im_end|>"],
        [
            '<tool_call>\n{"name": "warmth", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
            "It is 31.<|im_end|>",
        ],
    ],
    "qwen3": [
        ["<think>\n\n</think>\n\nHello!<|im_end|>", "<think>\n\n</think>\n\nSee you.<|im_end|>"],
        ["<think>\nThey greet.\n</think>\n\nHello!<|im_end|>", "<think>\nThey leave.\n</think>\n\nSee you.<|im_end|>"],
        [
            "<think>\n\n</think>\n\n"
            '<tool_call>\n{"name": "warmth", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
            "<think>\n\n</think>\n\nIt is 31.<|im_end|>",
        ],
    ],
    "llama3": [["Hello!<|eot_id|>", "See you.<|eot_id|>"], ["Hello!<|eot_id|>", "See you.<|eot_id|>"], None],
    "llama3_1": [  # TRL has no training template for it
        ["Hello!<|eot_id|>", "See you.<|eot_id|>"],
        ["Hello!<|eot_id|>", "See you.<|eot_id|>"],
        ['{"name": "warmth", "parameters": {"city": "Rome"}}<|eot_id|>', "It is 31.<|eot_id|>"],
    ],
    "phi3": [["Hello!<|end|>", "See you.<|end|>"], ["Hello!<|end|>", "See you.<|end|>"], None],
    "gemma": [["Hello!<end_of_turn>", "See you.<end_of_turn>"], ["Hello!<end_of_turn>", "See you.<end_of_turn>"], None],
    "glm4moe": [  # the token that opens the next turn ends an answer
        ["\n<think></think>\nHello!<|user|>", "\n<think></think>\nSee you.<|user|>"],
        ["\n<think></think>\nHello!<|user|>", "\n<think>They leave.</think>\nSee you.<|user|>"],
        [
            "\n<think></think>\n<tool_call>warmth\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>"
            "<|observation|>",
            "\n<think></think>\nIt is 31.<|user|>",
        ],
    ],
    "deepseekv3": [
        ["Hello!<｜end▁of▁sentence｜>", "See you.<｜end▁of▁sentence｜>"],
        ["Hello!<｜end▁of▁sentence｜>", "See you.<｜end▁of▁sentence｜>"],
        [
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>warmth\n"
            '```json\n{"city": "Rome"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
            "<｜tool▁outputs▁end｜>It is 31.<｜end▁of▁sentence｜>",
        ],
    ],
    "gptoss": [
        ["<|channel|>final<|message|>Hello!<|end|>", "<|channel|>final<|message|>See you.<|return|>"],
        [
            "<|channel|>final<|message|>Hello!<|end|>",
            "<|channel|>analysis<|message|>They leave.<|end|><|start|>assistant"
            "<|channel|>final<|message|>See you.<|return|>",
        ],
        [
            ' to=functions.warmth<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>',
            "<|channel|>final<|message|>It is 31.<|return|>",
        ],
    ],
    "gemma4": [  # a call is followed by its result without a new turn
        ["Hello!<turn|>", "See you.<turn|>"],
        ["Hello!<turn|>", "See you.<turn|>"],
        ['<|tool_call>call:warmth{city:<|"|>Rome<|"|>}<tool_call|><|tool_response>', "It is 31.<turn|>"],
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_trained_texts_of_real_families(name: str) -> None:
    tokens = family(name)
    mask = masker(tokens)
    for messages, tools, texts in zip((TALK, THOUGHT, CALLED), (None, None, TOOLS), EXPECTED[name], strict=True):
        if texts is not None:
            encoded = mask.encode(messages, tools)
            assert trained(tokens, encoded) == texts
            assert encoded.borders[-1] == len(encoded.ids)
            cut = [decoded(tokens, encoded.ids[:border]) for border in encoded.borders]
            assert all(text.endswith(said) for text, said in zip(cut, texts, strict=True))


@pytest.mark.parametrize(
    "name", ["qwen2", pytest.param("llama3", marks=pytest.mark.slow), "phi3", "deepseek", "smollm2"]
)
def test_the_trained_texts_in_the_tokens_of_real_models(name: str) -> None:
    tokens = real_tokenizer(name)
    close = {"qwen2": "<|im_end|>", "llama3": "<|eot_id|>", "phi3": "<|end|>", "smollm2": "<|im_end|>"}
    end = close.get(name, "<｜end▁of▁sentence｜>")
    messages = [user("Wie heißt er?"), said("Er heißt  Ünal\n\n🙂"), user("Und sie?"), said("Ana.")]
    encoded = masker(tokens).encode(messages)
    found = [text.lstrip() if name == "phi3" else text for text in trained(tokens, encoded)]
    assert found == [f"Er heißt  Ünal\n\n🙂{end}", f"Ana.{end}"]
    side = real_side(name)  # how train_gold and evaluate write prompt and answer
    asked, answer = side.prompt_ids(messages[:3]), side.completion_ids(b"Ana.", True)
    assert encoded.trained[-len(answer) :] == [True] * len(answer)
    assert not any(encoded.trained[encoded.borders[0] : -len(answer)])
    if name != "deepseek":  # whose prompt opens a thought that this answer has not
        assert encoded.ids == asked + answer


TRAINED_BY_TRL = (
    "cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "glm4moe", "gptoss", "lfm2", "lfm2_v2",
    "llama3", "muse_glimmer", "nemotron_3_nano", "phi3", "phi3_5", "qwen2_5", "qwen3", "qwen3_5_nothink",
    "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_instruct_2507",
)  # fmt: skip


@pytest.mark.parametrize("name", TRAINED_BY_TRL)
def test_the_masks_are_those_of_trl_but_for_prompts_and_what_follows_the_end_of_turn(name: str) -> None:
    tokens = family(name)
    mask, training = masker(tokens), real_template(f"{name}_training")
    prompt = tokens.apply_chat_template([user("?")], add_generation_prompt=True, tokenize=False)
    for messages, tools in ((TALK, None), (THOUGHT, None), (CALLED, TOOLS)):
        try:
            ours = mask.encode(messages, tools)
        except LeftOut as why:
            assert why.reason == REFUSED  # as TRL's template does
            continue
        theirs = tokens.apply_chat_template(
            mask.prepared(messages), tools=tools, chat_template=training, tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        ids, mask_of_trl = theirs["input_ids"], list(map(bool, theirs["assistant_masks"]))
        assert ids[: len(ours.ids)] == ours.ids
        assert decoded(tokens, ids[len(ours.ids) :]).strip() in ("", "<eos>")  # Phi-3 writes the latter
        more = [their and not our for our, their in zip(ours.trained, mask_of_trl, strict=False)]
        assert [our or also for our, also in zip(ours.trained, more, strict=True)] == mask_of_trl[: len(ours.ids)]
        for text in trained(tokens, Encoded(ours.ids, more, [])):
            assert prompt.endswith(text) or text.strip() in ("", "<｜Assistant｜>")


@pytest.mark.parametrize("name", TRAINED_BY_TRL)
def test_turns_found_by_their_prompts_are_those_that_the_template_marks(name: str) -> None:
    # TRL's templates write earlier turns alike whatever follows; without their marks they say the same.
    training = real_template(f"{name}_training")
    without = re.sub(r"(\{%-?\s*)generation(\s*-?%\})", r"\1if true\2", training)
    without = re.sub(r"(\{%-?\s*)endgeneration(\s*-?%\})", r"\1endif\2", without)
    assert without != training
    tokens = family(name)
    marked, unmarked = masker(tokens), masker(tokens, without)
    for messages, tools in ((TALK, None), (THOUGHT, None), (CALLED, TOOLS)):
        try:
            expected = marked.encode(messages, tools)
        except LeftOut:
            continue
        found = unmarked.encode(messages, tools)
        assert found.ids == expected.ids
        assert found.borders == expected.borders
        differing = [ours != theirs for ours, theirs in zip(found.trained, expected.trained, strict=True)]
        # The prompt for an answer may open its thought, and after a tool's result it closes that.
        allowed = ("<think>\n", "<｜tool▁outputs▁end｜>", "<think></think>", "<think></think>\n", "\n")
        assert all(text in allowed for text in trained(tokens, Encoded(found.ids, differing, [])))


def test_a_template_that_forgets_earlier_thoughts_is_trained_on_what_it_writes() -> None:
    # Qwen 3's own, changed by a word so that TRL does not know it: only what follows the last question has thoughts,
    # so the prompt of an earlier turn is written otherwise than the row.
    tokens = byte_tokenizer(real_template("qwen3") + "{# changed #}")
    messages = [user("How warm?"), said("", tool_calls=[CALL], reasoning_content="I look."), result("31"),
                said("It is 31."), user("Bye"), said("See you.", reasoning_content="They leave.")]  # fmt: skip
    encoded = masker(tokens).encode(messages, TOOLS)
    assert trained(tokens, encoded) == [
        '<tool_call>\n{"name": "warmth", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
        "It is 31.<|im_end|>",
        "<think>\nThey leave.\n</think>\n\nSee you.<|im_end|>",
    ]


def test_what_a_template_writes_in_the_place_of_a_forgotten_thought_is_trained_too() -> None:
    tokens = byte_tokenizer(real_template("glm4moe") + "{# changed #}")
    thought = said("", tool_calls=[CALL], reasoning_content="I look.")
    messages = [CALLED[0], thought, *CALLED[2:], user("Bye"), said("See you.")]
    call = "<tool_call>warmth\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call><|observation|>"
    assert trained(tokens, masker(tokens).encode(messages, TOOLS)) == [
        f"\n<think></think>\n{call}",
        "\n<think></think>\nIt is 31.<|user|>",
        "\n<think></think>\nSee you.<|user|>",
    ]


def test_a_prompt_that_opens_a_thought_is_found_in_turns_without_one() -> None:
    template = CHATML.removesuffix("{{- '<|im_start|>assistant\\n' -}}\n{%- endif -%}")
    template += "{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"
    assert len(template) > len(CHATML)
    tokens = byte_tokenizer(template, *MARKS)
    encoded = masker(tokens).encode([*TALK[:2], *THOUGHT[2:]])
    assert trained(tokens, encoded) == ["Hello!<|im_end|>", "They leave.\n</think>\n\nSee you.<|im_end|>"]


def test_marks_of_the_users_own_template_say_what_is_trained() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{{ m.reasoning_content }};"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
        "{% endfor %}"
    )
    tokens = byte_tokenizer(template, *MARKS)
    assert trained(tokens, masker(tokens).encode(THOUGHT)) == ["Hello!<|im_end|>", "See you.<|im_end|>"]


def test_marks_that_leave_the_end_of_turn_out_are_not_followed() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokens = byte_tokenizer(template, *MARKS)
    assert trained(tokens, masker(tokens).encode(TALK)) == ["Hello!<|im_end|>", "See you.<|im_end|>"]


def test_an_end_of_turn_that_is_no_special_token_is_one_all_the_same() -> None:
    tokens = small_tokenizer(special=("<eos>",), added=MARKS[:2], template=tiny_model.CHATML)
    assert trained(tokens, masker(tokens).encode(TALK)) == ["Hello!<|im_end|>", "See you.<|im_end|>"]


def test_where_nothing_closes_an_answer_the_end_of_text_does_at_the_rows_end() -> None:
    template = (
        "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:{% endif %}"
    )
    tokens = byte_tokenizer(template)
    encoded = masker(tokens).encode(TALK)
    assert decoded(tokens, encoded.ids).endswith("### assistant: See you.<eos>")
    assert trained(tokens, encoded) == [" Hello!", " See you.<eos>"]
    assert trained(tokens, masker(tokens).encode(TALK, cut=True)) == [" Hello!", " See you."]


def test_plain_text_closes_every_answer() -> None:
    tokens = byte_tokenizer(None)
    assert trained(tokens, masker(tokens, PLAIN).encode(TALK)) == ["Hello!<eos>", "See you.<eos>"]


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "glm4moe", "phi3"])
def test_an_answer_that_was_cut_off_does_not_teach_to_stop(name: str) -> None:
    tokens = family(name)
    whole, cut = masker(tokens).encode(TALK), masker(tokens).encode(TALK, cut=True)
    assert cut.ids == whole.ids[:-1]
    assert cut.trained == whole.trained[:-1]
    assert cut.borders == [whole.borders[0], whole.borders[1] - 1]
    assert decoded(tokens, cut.ids).endswith("See you.")


def test_two_turns_in_a_row_are_both_trained() -> None:
    tokens = byte_tokenizer(CHATML, *MARKS)
    encoded = masker(tokens).encode([user("Hi"), said("Hello!"), said("And more.")])
    assert trained(tokens, encoded) == ["Hello!<|im_end|>", "And more.<|im_end|>"]


def test_the_assistant_may_speak_first() -> None:
    tokens = byte_tokenizer(CHATML, *MARKS)
    encoded = masker(tokens).encode([said("Welcome."), user("Hi"), said("Hello!")])
    assert trained(tokens, encoded) == ["Welcome.<|im_end|>", "Hello!<|im_end|>"]


def test_a_tokenizer_with_a_template_for_tools_uses_it_for_rows_with_tools() -> None:
    tokens = byte_tokenizer(None, *MARKS, "<tools>")
    tokens.chat_template = {"default": tiny_model.CHATML, "tool_use": "<tools>" + CHATML}
    plain, tools = masker(tokens).encode(TALK), masker(tokens).encode(CALLED, TOOLS)
    assert decoded(tokens, plain.ids[:1]) == "<|im_start|>"
    assert decoded(tokens, tools.ids[:1]) == "<tools>"


def test_the_hash_is_of_the_template_that_rows_are_written_in() -> None:
    tokens = byte_tokenizer(CHATML, *MARKS)
    assert masker(tokens).template_hash == hashlib.sha256(CHATML.encode()).hexdigest()
    assert masker(tokens, PLAIN).template_hash == hashlib.sha256(PLAIN.encode()).hexdigest()
    tokens.chat_template = {"default": CHATML, "tool_use": CHATML + " "}
    assert masker(tokens).template_hash == hashlib.sha256(f"{CHATML}\0{CHATML} ".encode()).hexdigest()
    qwen = byte_tokenizer(real_template("qwen3"))  # in its place, TRL's form for training is used
    assert masker(qwen).template_hash == hashlib.sha256(real_template("qwen3_training").encode()).hexdigest()


def test_arguments_may_be_strings_or_objects() -> None:
    tokens = byte_tokenizer(CHATML, *MARKS)
    other = {**CALL, "function": {"name": "warmth", "arguments": {"city": "Rome"}}}
    mask, row = masker(tokens), [CALLED[0], said(None, tool_calls=[other]), *CALLED[2:]]
    assert mask.encode(row, TOOLS).ids == mask.encode(CALLED, TOOLS).ids


def test_ids_of_calls_become_short_for_templates_that_want_them_so() -> None:
    template = "{# ids whose length != 9 are refused #}{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    long = "call_0123456789"
    row = [user("?"), said("", tool_calls=[{**CALL, "id": long}]), {**result("31"), "tool_call_id": long}, said("31")]
    found = masker(byte_tokenizer(template)).prepared(row)
    (call,) = found[1]["tool_calls"]
    assert re.fullmatch(r"\w{9}", call["id"])
    assert found[2]["tool_call_id"] == call["id"]


def test_a_developers_words_are_a_system_prompt_where_the_template_knows_no_developer() -> None:
    row = [{"role": "developer", "content": "Be brief."}, *TALK]
    assert masker(byte_tokenizer(tiny_model.CHATML, *MARKS)).prepared(row)[0]["role"] == "system"
    assert masker(family("gptoss")).prepared(row)[0]["role"] == "developer"


# ---- thinking -------------------------------------------------------------------------------------------------------


def test_thoughts_are_left_out_when_asked() -> None:
    tokens = byte_tokenizer(CHATML, *MARKS)
    rows = [
        said("Hello!", reasoning_content="They greet."),
        said("<think>\nThey greet.\n</think>\n\nHello!"),
        said("They greet.\n</think>\n\nHello!"),
    ]
    for row in rows:
        assert trained(tokens, masker(tokens, thinking="strip").encode([user("Hi"), row])) == ["Hello!<|im_end|>"]
        assert "They greet." in trained(tokens, masker(tokens).encode([user("Hi"), row]))[0]
    with pytest.raises(LeftOut, match=ONLY_THINKING):
        masker(tokens, thinking="strip").encode([user("Hi"), said("<think>Hm.")])


# ---- what cannot be used --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([user("Hi")], NO_ANSWER),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, said("A bird.")], NOT_TEXT),
        ([user("Hi"), said("", tool_calls=[{"function": {"arguments": "{}"}}])], BAD_CALL),
        ([user("Hi"), user("Hi?"), said("Hello!")], REFUSED),
    ],
)
def test_rows_that_cannot_be_used_are_left_out_with_a_reason(row: list[Any], reason: str) -> None:
    with pytest.raises(LeftOut) as caught:
        masker(family("gemma")).encode(row)
    assert caught.value.reason == reason
    assert (caught.value.__cause__ is not None) == (reason == REFUSED)


def test_a_template_that_wants_more_than_text_is_refused() -> None:
    with pytest.raises(UsageError, match="leaves out what is said"):
        masker(family("smolvlm"))


def test_a_tokenizer_without_places_is_refused() -> None:
    with pytest.raises(UsageError, match=r"has no tokenizer\.json"):
        masker(CanineTokenizer(), CHATML)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", set()),
        ("llama3_1", set()),
        ("glm4moe", set()),
        ("llama3", {"calls", "schemas"}),
        ("phi3", {"calls", "results", "schemas"}),
        ("deepseekv3", {"schemas"}),
    ],
)
def test_what_a_template_leaves_out_of_a_row_is_found(name: str, expected: set[str]) -> None:
    assert masker(family(name)).drops(CALLED, TOOLS) == expected


def test_a_call_that_is_left_out_beside_a_text_is_found() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.content or (m.tool_calls or []) | tojson }}<|im_end|>{% endfor %}"
    )
    mask = masker(byte_tokenizer(template, *MARKS))
    assert mask.drops(CALLED) == set()
    assert mask.drops([CALLED[0], said("I look.", tool_calls=[CALL]), *CALLED[2:]]) == {"calls"}


def test_thoughts_that_are_left_out_are_found() -> None:
    assert masker(family("qwen2_5")).drops(THOUGHT) == {"thinking"}
    assert masker(family("glm4moe")).drops(THOUGHT) == set()  # the last one is written
    assert masker(family("qwen2_5"), thinking="strip").drops(THOUGHT) == set()


def test_a_text_that_spells_a_special_token_is_found() -> None:
    mask = masker(byte_tokenizer(CHATML, *MARKS))
    assert mask.has_special_text([user("What does <|im_end|> do?"), said("It ends a turn.")])
    assert not mask.has_special_text([user("What does <im_end> do?"), said("Nothing.")])


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_a_row_is_shown_with_marks_around_what_is_trained() -> None:
    tokens = byte_tokenizer(CHATML, *MARKS)
    mask = masker(tokens)
    shown = mask.shown(mask.encode([user("Hi\x1b[2J"), said("Grüße!")]))
    assert shown == "<|im_start|>user\nHi\\x1b[2J<|im_end|>\n<|im_start|>assistant\n⟦Grüße!<|im_end|>⟧"


def test_the_middle_of_what_is_long_is_left_out() -> None:
    tokens = byte_tokenizer(CHATML, *MARKS)
    mask = masker(tokens)
    shown = mask.shown(mask.encode([user("a" * 1000), said("b" * 5000)]))
    # <|im_start|>user\n + 1000 + <|im_end|>\n<|im_start|>assistant\n are 17 + 1000 + 33 characters, of which 240 stay;
    # 5000 + <|im_end|> are 5010, of which 1200 stay.
    assert "[... 810 characters ...]" in shown
    assert "[... 3,810 characters ...]" in shown
    assert shown.count("⟦") == shown.count("⟧") == 1
