"""Laws of the checks of rows: whatever stands in a file, every row is judged, and good prose stays good."""

import random
import string
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from core.commands.check_data import MEASURES, CheckData
from core.data.prompts import PromptOptions, prompts_of
from core.quality.repetition import repetition
from core.quality.row_checks import RowChecks
from core.quality.rows import entry_of

law = settings(max_examples=150, deadline=None)
CHECKS = RowChecks(CheckData(data="data.jsonl"), None)

texts = st.text(max_size=60) | st.sampled_from(
    ["user", "assistant", "tool", "```", "<think>", "I can't help", "{", "a@b.co"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "wizard"]), "content": texts | values},
    optional={"tool_calls": values, "tool_call_id": texts},
)
keys = st.sampled_from(
    ["messages", "conversations", "prompt", "response", "system", "metadata", "tools", "expected_answer"]
)
records = st.dictionaries(keys, st.lists(turns, max_size=5) | values, max_size=5)
metadata = st.dictionaries(
    st.sampled_from(["expected_answer", "verify", "numbers", "target", "finish_reason", "refusal"]),
    values | st.sampled_from(["countdown", "expression", "length"]),
)


def judged(record: Any) -> dict[str, str | None]:
    ((row, _),) = prompts_of(iter([("data.jsonl:1", record)]), PromptOptions())
    return CHECKS.of(entry_of(row, record))


@law
@given(records | values)
def test_every_record_is_judged_by_known_measures(record: Any) -> None:
    found = judged(record)
    assert "schema" in found
    assert set(found) <= set(MEASURES)
    assert all(why is None or why for why in found.values())


@law
@given(texts.filter(str.strip), texts, metadata)
def test_whatever_the_metadata_say_a_row_is_judged(question: str, answer: str, extra: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert set(judged({"messages": messages, "metadata": extra})) <= set(MEASURES)


@law
@given(st.integers(0, 2**32), st.integers(0, 400))
def test_text_of_many_words_repeats_nothing_until_it_is_repeated(seed: int, length: int) -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices(string.ascii_lowercase, k=12)) for _ in range(length)]
    assert repetition(" ".join(words)) is None
    if length >= 6:
        assert repetition(" ".join(words + words[-60:] * 5)) is not None
