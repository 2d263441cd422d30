"""Laws of a rollout: what makes room, what arguments are, what a check says."""

import json
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.commands.run_rollouts import RunRollouts
from core.data.keys import work_key
from core.data.prompts import Prompt
from core.data.statistics import wilson
from core.errors import RequestRejected, UsageError
from core.generation.check import matches
from core.generation.entries import select, spelled
from core.generation.rollout import CHARS_PER_TOKEN, Conversation, arguments_of, cut
from core.teachers.protocol import Completion, Usage
from core.tools.protocol import Tool

texts = st.text(max_size=60) | st.integers(0, 3000).map(lambda size: "word " * size)
calls = st.lists(st.builds(dict, name=st.sampled_from(["look", "add"]), arguments=texts), max_size=3)
turns = st.lists(st.tuples(texts, calls, texts, st.none() | st.integers(1, 5000)), max_size=8)


def conversation_of(system: str, user: str, played: Sequence[tuple[str, Any, str, int | None]]) -> Conversation:
    conversation = Conversation(
        [{"role": "system", "content": system}, {"role": "user", "content": user}],
        [Tool("look", "Look.", {"type": "object", "properties": {}})],
    )
    for text, asked, result, counted in played:
        tool_calls = [{"id": f"c{n}", "type": "function", "function": call} for n, call in enumerate(asked)]
        usage = Usage(counted, 1) if counted else Usage()
        conversation.answer(Completion(text, "tool_calls", tool_calls=tool_calls, usage=usage))
        for call in tool_calls:
            conversation.messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    return conversation


@given(texts, texts, turns, st.integers(1, 6000))
def test_after_fitting_the_conversation_fits_or_is_rejected_and_only_results_are_shorter(
    system: str, user: str, played: list[tuple[str, Any, str, int | None]], room: int
) -> None:
    conversation = conversation_of(system, user, played)
    before = [dict(message) for message in conversation.messages]
    fitted_before = conversation.tokens <= room
    try:
        shortened = conversation.fit(room)
        assert conversation.tokens <= room
    except RequestRejected as error:
        assert error.reason == "context_length"
        assert conversation.tokens > room
        shortened = None
    after = conversation.messages
    assert len(after) == len(before)
    changed = [number for number, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    for number in changed:
        old, new = before[number], after[number]
        assert old["role"] == "tool"
        assert {**old, "content": ""} == {**new, "content": ""}
        assert len(new["content"]) < len(old["content"])
    assert shortened is None or shortened == len(changed)
    assert not (fitted_before and changed)
    # the oldest first: every long result before the last that was shortened was shortened too
    long = [n for n, message in enumerate(before) if message["role"] == "tool" and len(message["content"]) > 300]
    assert changed == long[: len(changed)]


@given(texts, texts, turns, st.integers(1, 6000))
def test_fitting_twice_is_fitting_once(system: str, user: str, played: Any, room: int) -> None:
    conversation = conversation_of(system, user, played)
    try:
        conversation.fit(room)
    except RequestRejected:
        return
    once = [dict(message) for message in conversation.messages]
    assert conversation.fit(room) == 0
    assert conversation.messages == once


@given(texts, texts, turns)
def test_the_bound_on_the_next_prompts_tokens_is_never_below_its_estimate(system: str, user: str, played: Any) -> None:
    uncounted = [(text, asked, result, None) for text, asked, result, _ in played]
    conversation = conversation_of(system, user, uncounted)
    assert conversation.tokens <= conversation.most_tokens


@given(st.text(max_size=400), st.none() | st.integers(1, 60))
def test_a_cut_result_begins_like_the_whole_one_and_has_a_marker_only_when_it_is_cut(
    text: str, most: int | None
) -> None:
    result = cut(text, most)
    result.encode("utf-8")
    if most is None or len(text) <= most * CHARS_PER_TOKEN:
        assert result == text.encode("utf-8", "replace").decode()
    else:
        kept, marker = result[: int(most * CHARS_PER_TOKEN)], result[int(most * CHARS_PER_TOKEN) :]
        assert text.encode("utf-8", "replace").decode().startswith(kept)
        assert marker.startswith("\n[cut: ")


plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
objects = st.dictionaries(st.text(max_size=5), plain | st.text(max_size=9), max_size=4)


@given(objects)
def test_arguments_that_are_a_json_object_are_that_object(arguments: dict[str, Any]) -> None:
    assert arguments_of({"function": {"arguments": json.dumps(arguments)}}) == arguments


@given(st.text(max_size=40) | plain.map(json.dumps))
def test_whatever_else_a_teacher_writes_is_a_sentence_for_it(written: str) -> None:
    found = arguments_of({"function": {"arguments": written}})
    if isinstance(found, str):
        assert found.startswith("the arguments are not ")
        assert found.endswith(".")
    else:
        assert not written or isinstance(json.loads(written), dict)


numbers = st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9, allow_nan=False).map(lambda number: round(number, 3))


@given(numbers)
def test_a_number_is_found_however_it_is_written(number: float) -> None:
    for answer in (str(number), f"{number:,}", f"The answer is {number}.", f"So we get \\boxed{{{number}}}."):
        assert matches(answer, number, "number"), answer


@given(numbers, numbers)
def test_two_numbers_that_differ_do_not_match(one: float, other: float) -> None:
    if not math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-5):
        assert not matches(f"The answer is {one}", other, "number")


words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


@given(words, st.sampled_from(["exact", "contains"]))
def test_an_answer_is_itself(word: str, how: str) -> None:
    assert matches(word, word, how)
    assert matches(f"  **{word}**. ", word, how)


@given(words, words)
def test_contains_is_exact_for_one_word(one: str, other: str) -> None:
    assert matches(one, other, "contains") == matches(one, other, "exact")


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_range_spelled_is_the_range_read(start: int, length: int) -> None:
    first, _, last = spelled(range(start, start + length)).partition("-")
    assert range(int(first), int(last or first) + 1) == range(start, start + length)


ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=5)


@given(ranges, st.integers(1, 20))
def test_an_entry_is_run_if_it_is_asked_for_and_there_and_named_if_it_is_not_there(
    asked: list[tuple[int, int]], size: int
) -> None:
    entry = [str(first) if not more else f"{first}-{first + more}" for first, more in asked]
    wanted = {index for first, more in asked for index in range(first, first + more + 1)}
    rows = [Prompt(index, f"p:{index}", []) for index in range(size)]
    try:
        selection = select(RunRollouts.model_validate({"entry": entry, "input": "p"}), lambda: iter(rows))
    except UsageError as error:
        assert min(wanted) >= size
        assert "has none of these" in str(error)
        return
    assert {index for index in range(60) if selection.wanted(index)} == {index for index in wanted if index < size}
    assert selection.count == len({index for index in wanted if index < size})
    skipped = RunRollouts.model_validate({"entry": selection.skipped}).ranges
    assert {index for one in skipped for index in one} == {index for index in wanted if index >= size}


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_an_interval_holds_its_rate_and_shrinks_with_more_trials(successes: int, more: int) -> None:
    trials = successes + more
    low, high = wilson(successes, trials)
    assert 0 <= low <= high <= 1
    if trials:
        assert low - 1e-9 <= successes / trials <= high + 1e-9
        wider = wilson(10 * successes, 10 * trials)
        assert wider[1] - wider[0] < high - low


@given(objects)
def test_a_key_does_not_depend_on_the_order_of_keys(content: dict[str, Any]) -> None:
    assert work_key(content) == work_key(dict(reversed(content.items())))
