"""Hashes of what a run was trained on."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.trained_on import TRAINED_ON, content_hash, content_hashes, read_trained_on, trained_on_text
from core.errors import UsageError

ASKED = {"role": "user", "content": "What is  2 + 2?\n"}


def test_a_hash_is_16_digits_of_the_sha256_of_roles_and_words() -> None:
    by_hand = hashlib.sha256(b'[["user",["What","is","2","+","2?"]]]').hexdigest()[:16]
    assert content_hash([ASKED]) == by_hand


def test_spaces_and_the_system_prompt_do_not_count_but_words_roles_and_order_do() -> None:
    one = content_hash([ASKED])
    assert content_hash([{"role": "system", "content": "Be brief."}, {**ASKED, "content": "What is 2 + 2?"}]) == one
    assert content_hash([{"role": "developer", "content": "Be brief."}, ASKED]) == one
    assert content_hash([{**ASKED, "content": [{"type": "text", "text": "What is 2 "}, "+ 2?"]}]) == one
    other = [
        [{**ASKED, "content": "what is 2 + 2?"}],
        [{**ASKED, "role": "tool"}],
        [ASKED, ASKED],
        [{"role": "assistant", "content": None}, ASKED],
        [{**ASKED, "content": [{"type": "text", "text": "What is 2 + 2?"}, {"type": "image_url", "image_url": "x"}]}],
    ]
    assert len({one, *map(content_hash, other)}) == 1 + len(other)


ROLES = st.sampled_from(["user", "assistant", "tool", "system", "developer"])
CONTENTS = st.none() | st.text(st.characters(codec="utf-8")) | st.just([{"type": "text", "text": "a b"}, "c"])


@given(st.lists(st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}), max_size=6), st.data())
def test_the_hashes_of_a_conversations_turns_are_those_of_their_prompts(
    messages: list[Any], data: st.DataObject
) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(messages)), max_size=4)))
    assert content_hashes(messages, ends) == [content_hash(messages[:end]) for end in ends]


def test_several_messages_are_hashed_as_one_json_list() -> None:
    messages = [{"role": "system", "content": "x"}, ASKED, {"role": "assistant", "content": None}, ASKED]
    words = b'["user",["What","is","2","+","2?"]]'
    by_hand = [hashlib.sha256(text).hexdigest()[:16] for text in (b"[]", b"[%b]" % words)]
    by_hand.append(hashlib.sha256(b'[%b,["assistant",[]],%b]' % (words, words)).hexdigest()[:16])
    assert content_hashes(messages, [1, 2, 4]) == by_hand


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=4))
def test_texts_are_alike_when_their_words_are(texts: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    spaced = [{"role": "user", "content": " \n".join(text.split()) + "\t"} for text in texts]
    assert content_hash(messages) == content_hash(spaced)


def test_the_file_is_sorted_names_each_prompt_once_and_is_read_back(tmp_path: Path) -> None:
    prompts = [[{**ASKED, "content": f"{number % 3}"}] for number in range(7)]
    text = trained_on_text(prompts)
    assert text == trained_on_text(reversed(prompts))
    lines = text.decode().splitlines()
    assert lines == sorted(map(content_hash, prompts[:3]))
    (tmp_path / TRAINED_ON).write_bytes(text)
    assert read_trained_on(tmp_path) == set(lines)


def test_a_run_may_be_trained_on_nothing_and_one_without_the_file_does_not_say(tmp_path: Path) -> None:
    assert read_trained_on(tmp_path) is None
    (tmp_path / TRAINED_ON).write_bytes(trained_on_text([]))
    assert read_trained_on(tmp_path) == set()


def test_a_file_that_holds_something_else_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / TRAINED_ON).write_bytes(trained_on_text([[ASKED]]) + b"\xffhello\n")
    with pytest.raises(UsageError, match=r"trained_on.txt:2 is no hash of a prompt"):
        read_trained_on(tmp_path)
