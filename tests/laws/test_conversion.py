"""Laws of conversion: whatever a rollout holds, its rows are sound, and what the teacher said is in them."""

import copy
import json
from itertools import chain
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from core.data.conversation import NotARollout, as_it_stands, mended, normalised
from core.data.rollouts import natural
from core.data.tags import reasoned
from core.generation.conversation import Form, conversation_key, one_call_a_turn, prompt_hash, short_id, with_form

texts = st.sampled_from(
    ["", " ", "Yes.", "é\u2028😀", "<think>a</think>b", "a</think>b", "<tool_call>", "Look"]
) | st.text(max_size=8)
ids = st.sampled_from(["a", "b", "call_1", "", None, 7])
names = st.sampled_from(["open_page", "add", "", None])
arguments = st.sampled_from(
    [
        '{"n": 1}',
        "{}",
        "",
        None,
        '{"n": ',
        '"{\\"n\\": 1}"',
        "[1]",
        '{"n": NaN}',
        {"n": 1},
        {"deep": [None, {"x": "é"}]},
        3,
    ]
)
call_objects = st.one_of(
    st.fixed_dictionaries(
        {
            "id": ids,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": names, "arguments": arguments}),
        }
    ),
    st.fixed_dictionaries({"name": names, "arguments": arguments}),
    st.just("nonsense"),
)
contents = st.one_of(
    texts,
    st.none(),
    st.lists(
        st.one_of(
            texts,
            st.builds(lambda text: {"type": "text", "text": text}, texts),
            st.builds(lambda text: {"type": "thinking", "thinking": text}, texts),
        ),
        max_size=3,
    ),
)
inline = st.builds(
    lambda name, about: f"Look.\n<tool_call>\n{json.dumps({'name': name, 'arguments': about})}\n</tool_call>",
    names,
    arguments,
)
messages = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "user", "system", "developer"]), "content": contents}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": contents | inline},
        optional={"tool_calls": st.lists(call_objects, max_size=3) | st.none(), "reasoning_content": texts},
    ),
    st.fixed_dictionaries(
        {"role": st.just("tool"), "content": contents | st.just({"n": 1})},
        optional={"tool_call_id": ids, "name": names},
    ),
    st.builds(lambda id_: {"type": "function_call", "call_id": id_, "name": "add", "arguments": "{}"}, ids),
    st.builds(lambda id_: {"type": "function_call_output", "call_id": id_, "output": "2"}, ids),
)
conversations = st.lists(messages, max_size=8).map(lambda rest: [{"role": "user", "content": "Question?"}, *rest])
forms = st.builds(
    Form,
    thinking=st.sampled_from(["keep", "strip", "tags"]),
    calls=st.sampled_from(["structured", "text"]),
    arguments=st.sampled_from(["string", "object"]),
    system=st.none() | st.just("Be brief."),
    short_ids=st.booleans(),
)


def check_sound(found: list[dict[str, Any]]) -> None:
    """The form that core/data/conversation.py promises."""
    used: set[str] = set()
    waiting: list[tuple[str, str]] = []
    before = ""
    for message in found:
        assert type(message["content"]) is str
        if message["role"] == "tool":
            assert message.keys() == {"role", "tool_call_id", "name", "content"}
            assert (message["tool_call_id"], message["name"]) == waiting.pop(0)
        else:
            assert not waiting
            assert message["role"] in ("system", "user", "assistant")
            assert not (message["role"] == before == "assistant")
        assert message.get("tool_calls") != []
        for call in message.get("tool_calls", ()):
            assert type(orjson.loads(call["function"]["arguments"])) is dict
            assert call["id"] not in used
            used.add(call["id"])
            waiting.append((call["id"], call["function"]["name"]))
        before = message["role"]
    assert not waiting


@given(conversations)
def test_a_normalised_conversation_is_sound_and_normalising_it_again_changes_nothing(conversation: list[Any]) -> None:
    before = copy.deepcopy(conversation)
    found, repairs = normalised(conversation)
    assert conversation == before
    check_sound(found)
    assert all(count > 0 for count in repairs.values())
    again, none = normalised(found)
    assert again == found
    assert not none


@given(conversations)
def test_the_short_way_leads_where_the_long_one_does(conversation: list[Any]) -> None:
    for one in (conversation, normalised(conversation)[0]):
        sound = as_it_stands(one)
        if sound is not None:
            found, repairs = mended(one)
            assert sound == found
            assert not repairs


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts,
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "type", "function", "user"]), inner)
        ),
        max_leaves=12,
    )
)
def test_whatever_stands_in_a_file_is_read_or_refused(value: Any) -> None:
    for conversation in (
        [value],
        [{"role": "user", "content": "Question?"}, value],
        value if isinstance(value, list) else [],
    ):
        try:
            check_sound(normalised(conversation)[0])
        except NotARollout as error:
            assert error.reason


@given(conversations, forms)
def test_every_form_is_json_and_keeps_questions_and_results(conversation: list[Any], form: Form) -> None:
    found, _ = normalised(conversation)
    kept = [(message["role"], message["content"]) for message in found if message["role"] in ("user", "tool")]
    key, hash_ = conversation_key(found), prompt_hash(found)
    calls = sum(len(message.get("tool_calls", ())) for message in found)
    with_form(found, [], form)
    assert [(m["role"], m["content"]) for m in found if m["role"] in ("user", "tool")] == kept
    assert orjson.loads(orjson.dumps(found)) == found
    assert len(key) == len(hash_) == 32
    if form.calls == "structured":
        assert sum(len(message.get("tool_calls", ())) for message in found) == calls
        pairs = [call["id"] for message in found for call in message.get("tool_calls", ())]
        assert pairs == [message["tool_call_id"] for message in found if message["role"] == "tool"]
    else:
        assert sum(m["content"].count('<tool_call>\n{"name": ') for m in found if m["role"] == "assistant") >= calls


@given(conversations)
def test_turns_split_call_by_call_say_and_call_the_same_in_the_same_order(conversation: list[Any]) -> None:
    def told(messages: list[dict[str, Any]], what: str) -> list[Any]:
        return [found for message in messages if (found := message.get(what))]

    whole, _ = normalised(conversation)
    before = copy.deepcopy(whole)
    found, split = one_call_a_turn(whole)
    assert whole == before
    check_sound(found)
    assert split == sum(len(calls) > 1 for calls in told(whole, "tool_calls"))
    assert all(len(calls) == 1 for calls in told(found, "tool_calls"))
    assert list(chain(*told(found, "tool_calls"))) == list(chain(*told(whole, "tool_calls")))
    for what in ("content", "reasoning_content", "tool_call_id"):
        assert told(found, what) == told(whole, what)
    assert one_call_a_turn(found) == (found, 0)


@given(texts, texts)
@example("a", "b")
def test_thinking_comes_back_out_of_its_tags(thought: str, answer: str) -> None:
    if "<" in thought + answer:
        return
    assert reasoned(f"<think>\n{thought}\n</think>\n\n{answer}") == (thought.strip(), answer.lstrip())


@given(st.text(max_size=20))
def test_short_ids_are_nine_letters_and_digits_and_stay(id_: str) -> None:
    short = short_id(id_)
    assert len(short) == 9
    assert short.isascii()
    assert short.isalnum()
    assert short_id(short) == short


@given(st.lists(st.integers(0, 10**30), max_size=8))
def test_paths_sort_by_their_numbers(numbers: list[int]) -> None:
    paths = [f"rollout_{number}/sample_1.json" for number in numbers]
    assert sorted(paths, key=natural) == [f"rollout_{number}/sample_1.json" for number in sorted(numbers)]
