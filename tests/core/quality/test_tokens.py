"""Tokens of a row, as training reads it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from core.errors import ModelNotFound
from core.quality.rows import Entry
from core.quality.tokens import TokenCounter
from tests.support.tiny_model import CHATML, make_tiny_model

TURNS = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of forbidden lands?"},
    {"role": "assistant", "content": "None."},
]


def entry(messages: list[dict[str, Any]], said: int = 1) -> Entry:
    cut = len(messages) - said
    return Entry(0, "f:1", {}, None, messages[:cut], messages[cut:], {}, "", "")


def test_a_row_has_the_tokens_of_its_conversation_in_the_template_and_the_end_of_turn(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    count, tokenizer = TokenCounter(str(folder), print), AutoTokenizer.from_pretrained(folder)
    for messages in (TURNS[:2], TURNS):
        whole = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")  # after the end of turn
        assert count(entry(messages)) == len(tokenizer(whole)["input_ids"])
    asked = tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert count(entry(TURNS[:1], said=0)) == len(tokenizer(asked)["input_ids"])
    assert count.refused == 0


def test_a_row_that_the_template_refuses_has_the_tokens_of_its_texts(tmp_path: Path) -> None:
    refuses = (
        "{% for m in messages %}{% if 'forbidden' in m.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    )
    folder = make_tiny_model(tmp_path / "model", template=refuses + CHATML)
    count, tokenizer = TokenCounter(str(folder), print), AutoTokenizer.from_pretrained(folder)
    row = entry(TURNS)
    assert count(row) == count(row) == len(tokenizer(row.text)["input_ids"])  # however often it is asked
    assert count.refused == 1


def test_a_tokenizer_that_is_nowhere_is_an_error_in_words() -> None:
    with pytest.raises(ModelNotFound, match="no tokenizer nobody/nothing"):
        TokenCounter("nobody/nothing", print)
