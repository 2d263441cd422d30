"""Laws of masks and of our ChatML: for any conversation of any text."""

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.teachers.tool_text import parse_tool_calls
from core.training.chat_forms import CHATML, PLAIN
from core.training.masks import Masker, strip_thinking
from tests.support.tokenizers import small_tokenizer

MARKS = ("<|im_start|>", "<|im_end|>", "<eos>")
TOKENS = small_tokenizer(" the", "ing", "\n\n", "  ", special=MARKS)
CHAT, TEXT = Masker(TOKENS, CHATML, "keep"), Masker(TOKENS, PLAIN, "keep")

texts = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
calls = st.builds(
    lambda name, arguments: {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}},
    st.from_regex(r"[a-z_]{1,9}", fullmatch=True),
    st.dictionaries(texts, values, max_size=3),
)
answers = st.builds(
    lambda text, thought, called: {
        "role": "assistant",
        "content": text,
        **({"reasoning_content": thought} if thought else {}),
        **({"tool_calls": called} if called else {}),
    },
    texts,
    st.none() | texts,
    st.lists(calls, max_size=2),
)
questions = st.builds(
    lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "tool", "system"]), texts
)
conversations = st.lists(
    st.builds(lambda asked, said: [*asked, said], st.lists(questions, min_size=1, max_size=2), answers),
    min_size=1,
    max_size=3,
).map(lambda turns: [message for turn in turns for message in turn])


def written(messages: list[dict[str, Any]]) -> str:
    return TOKENS.apply_chat_template(CHAT.prepared(messages), chat_template=CHATML, tokenize=False)


def decoded(ids: list[int]) -> str:
    return TOKENS.decode(ids, clean_up_tokenization_spaces=False)


@given(conversations)
def test_tokens_spell_the_row_and_the_trained_ones_every_answer_to_its_end(messages: list[dict[str, Any]]) -> None:
    encoded = CHAT.encode(messages)
    whole = written(messages)
    assert decoded(encoded.ids) == whole.removesuffix("\n")
    # Texts have no "<", so an answer is what stands between these marks.
    answers = re.findall(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", whole, re.DOTALL)
    trained = [place for place, is_trained in zip(encoded.ids, encoded.trained, strict=True) if is_trained]
    said = "".join(answers)
    # A token may reach over the line break before an answer: "\n\n" is one.
    assert decoded(trained).replace("\n", "") == said.replace("\n", "")
    assert len(encoded.borders) == len(answers)
    assert encoded.borders == sorted(set(encoded.borders))
    assert encoded.borders[-1] == len(encoded.ids)


@given(conversations)
def test_a_row_cut_at_a_border_is_the_shorter_conversation(messages: list[dict[str, Any]]) -> None:
    encoded = CHAT.encode(messages)
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    for at, border in zip(turns, encoded.borders, strict=True):
        shorter = CHAT.encode(messages[: at + 1])
        assert shorter.ids == encoded.ids[:border]
        assert shorter.trained == encoded.trained[:border]


@given(conversations)
def test_what_stands_before_an_answer_is_what_the_student_is_asked_with(messages: list[dict[str, Any]]) -> None:
    encoded = CHAT.encode(messages)
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    for at, border in zip(turns, encoded.borders, strict=True):
        asked = TOKENS.apply_chat_template(
            CHAT.prepared(messages)[:at], chat_template=CHATML, add_generation_prompt=True, tokenize=False
        )
        assert decoded(encoded.ids[:border]).startswith(asked)


@given(conversations)
def test_plain_text_trains_every_answer_to_the_end_of_text(messages: list[dict[str, Any]]) -> None:
    encoded = TEXT.encode(messages)
    trained = [place for place, is_trained in zip(encoded.ids, encoded.trained, strict=True) if is_trained]
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    assert decoded(trained).replace("\n", "") == "".join(f"{text}<eos>" for text in said).replace("\n", "")


@given(st.lists(calls, min_size=1, max_size=3), texts.filter(str.strip))
def test_calls_that_our_chatml_writes_are_read_back(called: list[dict[str, Any]], text: str) -> None:
    whole = written([{"role": "user", "content": "?"}, {"role": "assistant", "content": text, "tool_calls": called}])
    body = whole.partition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")
    around, read = parse_tool_calls(body)
    assert around.strip() == text.strip()
    expected = TEXT.prepared([{"role": "assistant", "content": "", "tool_calls": called}])[0]["tool_calls"]
    back = TEXT.prepared([{"role": "assistant", "content": "", "tool_calls": read}])[0]["tool_calls"]
    assert [call["function"] for call in back] == [call["function"] for call in expected]


@given(texts.filter(str.strip), texts, st.sampled_from(["{t}</think>{a}", "<think>{t}</think>\n\n{a}", "{a}"]))
def test_stripping_thoughts_twice_is_stripping_them_once(answer: str, thought: str, form: str) -> None:
    message = {"role": "assistant", "content": form.format(t=thought, a=answer), "reasoning_content": thought}
    strip_thinking(message)
    once = dict(message)
    strip_thinking(message)
    assert message == once
    assert message["content"].strip() == answer.strip()


@given(conversations)
def test_our_chatml_drops_nothing(messages: list[dict[str, Any]]) -> None:
    assert CHAT.drops(messages) == set()
