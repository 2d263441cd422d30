"""What is wrong with a single row, whatever it is written as."""

import re
from typing import Any

import pytest

from core.commands.check_data import MEASURES, CheckData
from core.data.prompts import PromptOptions, prompts_of
from core.quality.row_checks import RowChecks, cut_off
from core.quality.rows import Entry, entry_of

PROSE = (
    "The ferry left the island at noon, and nobody noticed that the keeper had not come down to wave. "
    "Photosynthesis turns light, water and carbon dioxide into sugar; oxygen is what is left over. "
    "If you want bread to rise evenly, let the dough rest twice: once after kneading, and once in the tin. "
    "Turn left at the second roundabout, pass the petrol station, and the museum is on your right."
)


def entry(record: Any) -> Entry:
    return next(entry_of(row, record) for row, record in prompts_of(iter([("data.jsonl:1", record)]), PromptOptions()))


def chat(*texts: str, **rest: Any) -> dict[str, Any]:
    """A row whose messages are the user's and the assistant's in turns."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)], **rest}


def checked(record: Any, length: int | None = None, **options: Any) -> dict[str, str | None]:
    token_length = None if length is None else lambda entry: length
    return RowChecks(CheckData(data="data.jsonl", **options), token_length).of(entry(record))


def faults(record: Any, **options: Any) -> dict[str, str | None]:
    return {name: why for name, why in checked(record, **options).items() if why is not None}


# ---- whole rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        chat("What is 7 times 8?", "56"),
        chat("Where does the ferry go?", PROSE),
        chat("Hi!", "Hello! How can I help?", "Name a city.", "Paris"),
        {"messages": [{"role": "system", "content": "Be brief."}, *chat("Why?", "Because.")["messages"]]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"prompt": "Why?", "response": "Because."},
        {"instruction": "Say why.", "input": "The sky is blue.", "output": "Rayleigh scattering."},
        {"prompt": "Why?", "chosen": chat("Why?", "Because.")["messages"], "rejected": "No."},
    ],
)
def test_a_good_row_passes_in_every_form(record: Any) -> None:
    found = checked(record)
    assert set(found) == {"schema", "empty", "truncated", "refusal", "repetitive", "personal"}
    assert set(found) <= set(MEASURES)
    assert not any(found.values())


def test_a_row_that_cannot_be_read_has_nothing_but_that() -> None:
    found = checked({"foo": 1})
    assert list(found) == ["schema"]
    assert 'no "prompt" or "messages" key' in (found["schema"] or "")


def test_a_call_of_a_tool_is_an_answer() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "ferry"}'}}
    record = chat("When?")
    record["messages"].append({"role": "assistant", "content": "", "tool_calls": [call]})
    found = checked(record)
    assert set(found) == {"schema", "empty", "personal"}
    assert not any(found.values())


# ---- schema --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (
            {"messages": [*chat("a", "b")["messages"], {"role": "assistant", "content": "c"}]},
            "the assistant speaks twice in a row",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, *chat("b", "c")["messages"]]},
            "messages[1]: the user speaks twice in a row",
        ),
        (
            {
                "messages": [
                    *chat("a", "b")["messages"],
                    {"role": "system", "content": "s"},
                    *chat("c", "d")["messages"],
                ]
            },
            "a system message that is not the first",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "human", "value": "b"},
                    {"from": "gpt", "value": "c"},
                ]
            },
            "messages[1]: the user speaks twice in a row",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "tool", "content": "1"},
                    chat("", "b")["messages"][1],
                ]
            },
            "messages[1]: a tool result, and no call is open",
        ),
        (chat("a", "b", tools=[1]), "tools is neither a list of schemas"),
        (chat("a", "", "b", "c"), "messages[1]: an empty answer without tool calls"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "wizard"),
    ],
)
def test_the_schema_and_the_order_of_turns(record: Any, why: str) -> None:
    assert why in (faults(record)["schema"] or "")


def test_what_rnow_alone_refuses_is_no_fault() -> None:
    assert faults(chat("a", "b", docker=3, rewards="none")) == {}


# ---- empty ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (chat("Why?"), "no answer"),
        ({"prompt": "Why?"}, "no answer"),
        (chat("Why?", " \n"), "a blank answer"),
        (chat("Why?", "<think>Let me see.</think>"), "nothing but reasoning"),
        (chat("Why?", "<think>Let me see, but I was cut"), "nothing but reasoning"),
    ],
)
def test_a_row_without_an_answer_is_empty_and_judged_no_further(record: Any, why: str) -> None:
    assert faults(record) == {"empty": why}
    assert set(checked(record)) == {"schema", "empty", "personal"}


# ---- truncated -----------------------------------------------------------------------------------------------------


def test_what_the_model_or_the_tokenizer_says_of_the_length_counts() -> None:
    cut = chat("a", "b", metadata={"finish_reason": "length"})
    assert faults(cut) == {"truncated": "the model was cut off (finish_reason is length)"}
    assert faults(chat("a", "b", metadata={"finish_reason": "stop"})) == {}
    limits = {"tokenizer": "smollm2", "max_length": 2048}
    assert faults(chat("a", "b"), length=2048, **limits) == {}
    assert faults(chat("a", "b"), length=2049, **limits) == {"truncated": "2,049 tokens, more than --max-length 2,048"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Here it is:\n```python\nprint(1)\n", "a code block that is not closed"),
        ("````markdown\n```python\nprint(1)\n```\nand so on", "a code block that is not closed"),
        ('{"name": "Anna", "towns": ["Bern", "Ba', "JSON that is not closed"),
        ('[{"a": 1}, {"a": 2}', "JSON that is not closed"),
        ("To get there you have to cross the bridge, the park and", 'ends "...cross the bridge, the park and"'),
        ("To get there you have to cross the bridge, the park,", "ends"),
        ("To get there you have to cross the bridge and the cita-", "ends"),
        ("To get there you have to follow these simple instructions:", "ends"),
        ("Um dorthin zu kommen, muss man die Brücke überqueren und", "ends"),
        (PROSE + " My grandfather repaired clocks, umbrellas, radi", "ends in the middle of a sentence"),
        (
            "\n".join(f"{n}. The carpenter of street {n} repairs {PROSE[:90]}." for n in (1, 2, 3))
            + "\n4. The carpenter of street 4 repairs clocks, umbrellas, rad",
            "ends in the middle of a sentence",
        ),
    ],
)
def test_an_end_before_the_end_is_noticed(text: str, why: str) -> None:
    assert why in (cut_off(text) or "")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "42",
            "Paris",
            "B",
            "yes",
            "x = 7",
            "the",
            "Paris, London, Rome and Athens",
            "and",
            "3/4",
            "[1, 2",
            "[citation",
        ),
        "The capital of France is Paris and that of Germany has been Berlin",
        "Sure. It is on the left. Tell me if you need anything else that I can help with",  # short
        PROSE,
        PROSE + " (See the map.)",
        PROSE + " **That is all.**",
        PROSE + " \U0001f600",
        PROSE + "\n\nhttps://example.com/a/long/address/of/a/page/that/goes/on/and/on",
        PROSE + "\n\n# A heading that is longer than forty characters of text",
        PROSE + "\n\nBest regards,\nAnna",
        PROSE + "\n\nSincerely,",
        PROSE + "\n\n| a table of which the last line is long | and without a full stop |",
        PROSE + "\n```python\nprint('this is a line of code of more than forty characters') and\n```",
        "\n".join(
            f"- an item of this list that has no full stop at its end, as item {n} of ten has none" for n in "abcdefg"
        ),
        "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\nRough winds do shake the "
        "darling buds of May,\nAnd summer's lease hath all too short a date",
        "````markdown\n# Title\n```python\nprint(1)\n```\n````",
        "```markdown\n# Title\n```python\nprint(1)\n```\n```",
        '{"name": "Anna", "towns": ["Bern", "Basel"]}',
        "```json\n[1, 2]\n```",
        "高山上的气压较低，所以水在不到一百度的时候就会沸腾。" * 12,
        "น้ำเดือดที่อุณหภูมิต่ำลงเมื่ออยู่บนภูเขาสูงเพราะความดันอากาศต่ำกว่า" * 8,
        "Πού είναι η πλησιέστερη στάση του λεωφορείου;",
    ],
    ids=lambda text: text[:24],
)
def test_a_whole_answer_is_not_taken_for_a_cut_one(text: str) -> None:
    assert cut_off(text) is None


def test_of_texts_cut_anywhere_most_are_noticed_and_of_whole_ones_none() -> None:
    texts = [f"{PROSE}\n\n{PROSE[: 99 + number]}ends here. {PROSE}" for number in range(40)]
    words = [[*re.finditer(r"\S+", text)] for text in texts]
    cut = [
        text[: ends[len(ends) - 5 - number].end()] for number, (text, ends) in enumerate(zip(texts, words, strict=True))
    ]
    assert not any(map(cut_off, texts))
    assert sum(cut_off(text) is not None for text in cut) >= 30


# ---- refusals, repetition, personal data ---------------------------------------------------------------------------


def test_refusals_are_found_in_every_answer_of_a_dialogue() -> None:
    sorry = "I'm sorry, but I can't help with that."
    assert faults(chat("a", sorry)) == {"refusal": f'begins "{sorry}"'}
    assert "refusal" in faults(chat("a", sorry, "b", "Fine."))
    assert "refusal" in faults(chat("a", f"<think>No.</think>{sorry}"))
    assert faults(chat("a", "No.", metadata={"refusal": "I will not"})) == {
        "refusal": "the provider marked it as a refusal"
    }
    assert faults(chat("a", metadata={"refusal": "I will not"}))["refusal"] is not None
    assert faults(chat(f"What does '{sorry}' mean?", "A refusal.")) == {}


def test_loops_are_found_in_every_answer_of_a_dialogue() -> None:
    assert "ends in a loop" in (faults(chat("a", "I do not know. " * 20))["repetitive"] or "")
    assert "repetitive" in faults(chat("a", "I do not know. " * 20, "b", "Fine."))
    assert faults(chat("Repeat. " * 40, "No.")) == {}  # the user may


def test_personal_data_are_found_in_whatever_is_said() -> None:
    address = "anna.schmidt@" + "gmail.com"
    for record in (chat(address, "b"), chat("a", address), {"system": address, "prompt": "a", "response": "b"}):
        assert faults(record) == {"personal": "an e-mail address (a...@g....com)"}


def test_personal_data_are_found_in_what_tools_are_called_with() -> None:
    address = "anna.schmidt@" + "gmail.com"
    call = {"id": "c", "type": "function", "function": {"name": "send", "arguments": f'{{"to": "{address}"}}'}}
    asked, said = (
        {"role": "user", "content": "Write to her."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    )
    assert faults({"messages": [asked, said]})["personal"] == "an e-mail address (a...@g....com)"


def test_an_expected_answer_that_is_personal_is_not_quoted() -> None:
    found = faults(chat("Who?", "I do not know.", expected_answer="anna.schmidt@" + "gmail.com"))
    assert found == {"wrong_answer": 'not "..."'}


def test_other_reasons_quote_nothing_of_a_row_with_personal_data() -> None:
    address = "anna.schmidt@" + "gmail.com"
    record = chat("a", f"I can't help you, {address}. Write to {address}. " * 8, expected_answer=address + "x")
    found = faults(record)
    assert set(found) == {"refusal", "repetitive", "personal", "wrong_answer"}
    assert found["refusal"] == 'begins "..."'
    assert found["wrong_answer"] == 'not "..."'
    assert not any("schmidt" in str(why) for why in found.values())


# ---- expected answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "metadata", "right"),
    [
        ("It is Paris.", {"expected_answer": "Paris"}, True),
        ("It is Rome.", {"expected_answer": "Paris"}, False),
        ("It is Rome.", {"expected_answer": ["Paris", "Rome"]}, True),
        ("10 / 3 is 3.33", {"expected_answer": "10/3", "verify": "expression"}, True),
        ("10 / 3 is 3", {"expected_answer": "10/3", "verify": "expression"}, False),
        ("It is 56, not 8.", {"expected_answer": "56", "verify": "arithmetic"}, False),  # the last number counts
        ("It is Paris.", {"expected_answer": "Paris", "verify": "expression"}, True),
        (
            "<answer>3 * (25 - 5)</answer>",
            {"expected_answer": "(25 - 5) * 3", "verify": "countdown", "numbers": [3, 5, 25], "target": 60},
            True,
        ),
        (
            "<answer>20 * 3</answer>",
            {"expected_answer": "(25 - 5) * 3", "verify": "countdown", "numbers": [3, 5, 25], "target": 60},
            False,
        ),
    ],
)
def test_the_expected_answer_is_checked_as_the_row_says(answer: str, metadata: dict[str, Any], right: bool) -> None:
    found = checked(chat("?", answer, metadata=metadata))
    assert (found["wrong_answer"] is None) == right


def test_the_numbers_of_countdown_may_come_from_a_csv_and_without_them_nothing_is_said() -> None:
    record = {"prompt": "?", "answer": "3 * (25 - 5)", "expected_answer": "(25 - 5) * 3", "verify": "countdown"}
    assert "wrong_answer" not in checked(record)
    assert checked({**record, "numbers": "[3, 5, 25]", "target": "60"})["wrong_answer"] is None
    assert checked({**record, "numbers": "[3, 5, 25]", "target": "61"})["wrong_answer"] == 'not "(25 - 5) * 3"'


def test_an_expected_answer_may_stand_beside_the_conversation_and_be_compared_as_the_user_says() -> None:
    record = chat("?", "It is 42.0, or so", expected_answer=42)
    assert faults(record, match="number") == {}
    assert faults(record, match="exact") == {"wrong_answer": 'not "42"'}


@pytest.mark.parametrize("expected", [None, "", []])
def test_nothing_is_expected_of_a_row_that_expects_nothing(expected: Any) -> None:
    assert "wrong_answer" not in checked(chat("?", "b", metadata={"expected_answer": expected}))
