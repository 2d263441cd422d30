"""What models reply when they are asked for a question as JSON, and what is read out of it."""

import json
import re
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.commands.generate_synthetic import RecordType
from core.generation.filters import REFUSAL
from core.quality.repetition import repetition
from core.quality.verify import countdown_right, number_right
from core.synthetic.problems import is_right
from core.synthetic.reading import Asked, read_question, read_turn
from core.synthetic.records import Draft, Rejected, Slot

EXAMPLES = ("How many legs do 3 dogs have?", "What weighs more, a litre of oil or of water?")


def draft(kind: RecordType = "reasoning") -> Draft:
    return Draft(Slot(0, kind, 0, {}), 0, {}, EXAMPLES)


def question(reply: str, kind: RecordType = "reasoning") -> str:
    found = read_question(reply, draft(kind), "none")
    assert isinstance(found, Asked), found
    assert found.problem is None
    return found.question


def reason(reply: str, kind: RecordType = "reasoning") -> str:
    found = read_question(reply, draft(kind), "none")
    assert isinstance(found, Rejected), found
    assert found.why
    assert "\n" not in found.why
    return found.reason


WHAT = "What is 2+2?"


@pytest.mark.parametrize(
    "reply",
    [
        '{"question": "What is 2+2?"}',
        '\n\n  {"question":"What is 2+2?"}\n',
        'Sure! Here is the question:\n\n{"question": "What is 2+2?"}\n\nLet me know if you need more {variety}!',
        '```json\n{"question": "What is 2+2?"}\n```',
        'Here you go:\n```\n{\n  "question": "What is 2+2?"\n}\n```\nHope this helps.',
        '<think>The set {"question": "of what?"} is...</think>\n{"question": "What is 2+2?"}',
        'I thought about it.</think>{"question": "What is 2+2?"}',
        "{'question': 'What is 2+2?'}",
        '{"question": "What is 2+2?",}',
        '{"question": "What is 2+2?", // easy\n "difficulty": "easy"}',
        '{"question": "What is 2+2?" "answer": "4"}',
        '{"question": "What is 2+2?"',  # cut off after the text
        '{"question": "What is 2+2?", "answer": "It is fo',
        '{"question": "What is 2+2?}',  # a mark forgotten
        '{"question": What is 2+2?}',
        "{question: What is 2+2?}",
        '{question: "What is 2+2?"}',
        "{\u201cquestion\u201d: \u201cWhat is 2+2?\u201d}",
        '{"Question": "What is 2+2?"}',
        '{"question_1": "What is 2+2?", "question_2": "What is 3+3?"}',
        '{"prompt": "What is 2+2?"}',
        '{"task": "arithmetic", "question": "What is 2+2?"}',
        '{"task": "arith "m" etic", "question": "What is 2+2?"}',
        '{"user_message": "What is 2+2?", "assistant": "4"}',
        '{"role": "user", "content": "What is 2+2?"}',
        '{"messages": [{"role": "system", "content": "Count."}, {"role": "user", "content": "What is 2+2?"}]}',
        '{"questions": ["What is 2+2?", "What is 3+3?"]}',
        '{"data": {"question": {"text": "What is 2+2?"}}}',
        '[{"question": "What is 2+2?"}, {"question": "What is 3+3?"}]',
        '["What is 2+2?", "What is 3+3?"]',
        '{"question": "What is 2+2?"}\n{"question": "What is 3+3?"}',
        "{'question': 'What is 2+2?'}\n{'question': 'What is 3+3?'}",
        '{"question": "..."}\n{"question": "What is 2+2?"}',
        '{"question": "<your question>"}. For example: {"question": "What is 2+2?"}',
        '{"topic": "sums"} {"question": "What is 2+2?"}',
        '{"question": "Question: What is 2+2?"}',
        '{"question": "  \\"What is 2+2?\\"  "}',
        "What is 2+2?",
        '"What is 2+2?"',
        "**Question:** What is 2+2?",
        "```\nWhat is 2+2?\n```",
        "Question 1: What is 2+2?",
    ],
)
def test_however_it_is_wrapped_the_question_is_found(reply: str) -> None:
    assert question(reply) == WHAT


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"question": "He said "yes", and left. Why?"}', 'He said "yes", and left. Why?'),
        ('{"question": "Is "x", "y": "z" valid?"}', 'Is "x", "y": "z" valid?'),
        ('{"question": "What does {"a": "b"} print?"}', 'What does {"a": "b"} print?'),
        ("{'question': 'What's the user's name?'}", "What's the user's name?"),
        ("{'question': 'It\\'s late. Why?'}", "It's late. Why?"),
        ('{"question": "It\\\'s late. Why?"}', "It's late. Why?"),
        ('{"question": "One.\nTwo.\n\nThree?"}', "One.\nTwo.\n\nThree?"),
        ('{"question": "One.\\nTwo \\"2\\"?"}', 'One.\nTwo "2"?'),
        ('{"question": "One "1".\\nTwo \\u00e4 \\ud83d\\ude00?"}', 'One "1".\nTwo ä 😀?'),
        ('{"question": "What is \\frac{1}{2} \\times \\( x \\)?"}', "What is \\frac{1}{2} \\times \\( x \\)?"),
        ('{"question": "What is \\\\frac{1}{2}?"}', "What is \\frac{1}{2}?"),
        ('{"question": "Is it?\\ni have no idea"}', "Is it?\ni have no idea"),
        ('{"question": "What does `print({})` do?"}', "What does `print({})` do?"),
        ('{"question": "Was ist größer: 1\u202f000 oder 10³?"}', "Was ist größer: 1\u202f000 oder 10³?"),
        ('{"question": "broken \\ud83d half?"}', "broken \ufffd half?"),
        ('{"question": "What does {name} stand for?"}', "What does {name} stand for?"),
    ],
)
def test_the_words_of_the_question_are_whole(reply: str, expected: str) -> None:
    assert question(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("<think>What shall I ask", "empty"),
        ('{"question": "What is 2+', "truncated"),
        ('{"question": "What is 2+2?', "truncated"),  # it might have gone on
        ('{"question": "What is "it" and', "truncated"),
        ('Sure!\n```json\n{"question": "A farmer has 17 sheep. All but', "truncated"),
        ('{"question": ', "no_question"),
        ('{"question": ""}', "no_question"),
        ('{"question": null}', "no_question"),
        ('{"question": 42}', "no_question"),
        ('{"question": "..."}', "no_question"),
        ('{"question": "<question>"}', "no_question"),
        ('{"question": "[Your question here]"}', "no_question"),
        ('{"question": "{question}"}', "no_question"),
        ('{"question": "Your question here"}', "no_question"),
        ('{"question": "Insert the question text here."}', "no_question"),
        ('{"question": "string"}', "no_question"),
        ('{"answer": "4"}', "no_question"),
        ('{"task": "Daily_Labor_Management"}', "no_question"),
        ('{"user": "Max", "query": {"query": {"example": [{"id": "", "value": 1', "no_question"),
        ("{}", "no_question"),
        ("[]", "no_question"),
        ("...", "no_question"),
        ('{"question": "Here is a question: what is 2+2?"}', "no_question"),
        ('{"question": "Hello! How can I help you today?"}', "no_question"),
        ("Hi there! How may I assist you?", "no_question"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I cannot create that.", "refusal"),
        ('{"question": "I\u2019m sorry, but I can\u2019t assist with that request."}', "refusal"),
        ('{"question": "As an AI language model, I cannot write questions about this."}', "refusal"),
        ('{"question": "how many legs do 3 dogs have"}', "echo"),
        ('{"question": "How many legs do 3 dogs have?"} and more', "echo"),
        ("What weighs more: a litre of oil, or of water?", "echo"),
        ('{"question": "' + "word " * 801 + '?"}', "too_long"),
        ("Sure, here is a question: What is 2+2?", "not_json"),
        ("Sure! What is 2+2?", "not_json"),
        ("The question is what 2+2 is?", "not_json"),
        ("What is 2+2? The answer is 4.", "not_json"),
        ("Q: What is 2+2?\nAnswer: 4", "not_json"),
        ("The sum of 2 and 2 has always been 4.", "not_json"),
        ("1. What is 2+2?\n2. What is 3+3?", "not_json"),
        ("What is 2+2?\n\nIt is a good question.", "not_json"),
        ('The field is {"question": and then "What is 2+2', "truncated"),
        ("word " * 200 + "?", "not_json"),
        ("How many eggs are left? Please provide a JSON object.", "not_json"),
    ],
)
def test_what_is_no_question_is_rejected_with_the_reason(reply: str, expected: str) -> None:
    assert reason(reply) == expected


@pytest.mark.parametrize(
    "text",
    [
        "I can't log in to my account. It says the password is wrong. What now?",
        "I'm unable to open the invoice you sent me, could you send it again?",
        "I'm sorry, but I can't find my order. Where is it?",
        "Hello! My card was declined twice. How can I pay?",
        "Here is my problem: the screen stays black.",
    ],
)
def test_a_user_in_trouble_is_no_model_that_refuses(text: str) -> None:
    assert question(json.dumps({"question": text}), "dialogue") == text


def test_a_text_that_orders_needs_no_question_mark() -> None:
    assert question("Write a short poem about rain in October.", "instruction").startswith("Write")
    assert question("A train goes 60 km in 40 minutes. Calculate its speed.").startswith("A train")
    assert reason("A train goes 60 km in 40 minutes.") == "not_json"
    assert reason("A train that goes", "instruction") == "not_json"  # cut off


def test_a_turn_of_a_dialogue_may_agree_first_and_a_question_may_not() -> None:
    assert read_turn('{"question": "And how long does it take?"}') == "And how long does it take?"
    assert read_turn("Okay, that works. And what does it cost?") == "Okay, that works. And what does it cost?"
    assert reason("Okay, that works. And what does it cost?", "dialogue") == "not_json"
    found = read_turn("Sure, here is the user's next message: Thanks!")
    assert isinstance(found, Rejected)
    assert found.reason == "not_json"
    found = read_turn('{"question": "Is there anything else I can help you with?"}')
    assert isinstance(found, Rejected)
    assert found.reason == "no_question"


def verified(question: str, **fields: Any) -> Asked | Rejected:
    return read_question(json.dumps({"question": question, **fields}), draft(), "expression")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("3 * 4", "12"),
        ("3 * 4 = 12", "12"),
        ("(3 + 4) / 2", "3.5"),
        ("3 \u00d7 4", "12"),
        ("3 x 4", "12"),
        ("4 / 3", "4/3"),
        ("-3 - 4", "-7"),
        ("1,000 * 3 / 8", "375"),
        ("3 / 16", "0.1875"),
        ("100000000 * 1000", "100000000000"),
    ],
)
def test_a_question_with_its_expression_becomes_a_problem_that_its_value_solves(expression: str, expected: str) -> None:
    asked = verified("Of 3 and 4 and 1,000 and 100000000?", expression=expression)
    assert isinstance(asked, Asked)
    assert asked.problem is not None
    assert (asked.problem.verify, asked.problem.expected) == ("expression", expected)
    assert asked.problem.question == asked.question
    assert is_right(asked.problem, f"Answer: {expected}")
    assert not is_right(asked.problem, f"Answer: {expected}1")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "no expression"),
        ({"expression": ""}, "no expression"),
        ({"expression": None}, "no expression"),
        ({"expression": "three plus four"}, "is no part of arithmetic"),
        ({"expression": "3 ** 4"}, "where a number should stand"),
        ({"expression": "3 / 0"}, "division by zero"),
        ({"expression": "3 + 4 = 8"}, "the sides of the equation differ"),
        ({"expression": "7"}, "a number, and no calculation"),
        ({"expression": 7}, "a number, and no calculation"),
        ({"expression": "-7"}, "a number, and no calculation"),
        ({"expression": "5 * 9"}, "has none of the numbers of"),
        ({"expression": "3 * " + "9" * 60}, "too long a number"),
        ({"expression": "__import__('os').system('echo 3')"}, "is no part of arithmetic"),
    ],
)
def test_what_cannot_be_verified_is_rejected_with_the_reason(fields: dict[str, Any], why: str) -> None:
    found = verified("Tom has 3 apples and gets 4. How many?", **fields)
    assert isinstance(found, Rejected)
    assert found.reason == "unverifiable"
    assert why in found.why


def test_a_question_in_words_may_have_an_expression_in_digits() -> None:
    asked = verified("Tom has three apples and gets four. How many?", expression="3 + 4")
    assert isinstance(asked, Asked)
    assert asked.problem is not None
    assert asked.problem.expected == "7"


@pytest.mark.parametrize(
    "reply",
    [
        "{'question': 'Tom's 3 apples and 4 pears?', 'expression': '3 + 4'}",
        '{"question": "Tom\'s "3" and 4?", "expression": "3 + 4"}',
        '{"question": "3 and 4?", "expression": 3 + 4}',
        '{"question": "3 and 4?" "expression": "3 + 4"',
        '{"expression": "3 + 4", "question": "3 and "4"?"}',
        '{"problem": {"question": "3 and 4?", "expression": "3 + 4"}}',
        '{"problem": {"question": "3 and 4?"}, "expression": "3 + 4"}',
        '{"question": "3 and 4?", "equation": "3 + 4 = 7"}',
    ],
)
def test_an_expression_is_found_in_broken_json_too(reply: str) -> None:
    found = read_question(reply, draft(), "expression")
    assert isinstance(found, Asked), found
    assert found.problem is not None
    assert found.problem.expected == "7"


def test_an_expression_that_was_cut_off_is_none() -> None:
    found = read_question('{"question": "3 and 4?", "expression": "3 + 4', draft(), "expression")
    assert isinstance(found, Rejected)
    assert found.reason == "unverifiable"


# Of the control characters, \b, \f and \r are taken for the beginning of \beta, \frac and \rho.
plain = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters='\\"\u201c\u201d'), max_size=60
)


@given(
    plain.map(lambda text: f"Why {text} is it?"),
    st.sampled_from(["{}", "Sure:\n```json\n{}\n```", "<think>x</think>{}"]),
)
@example("Why \u2028 is it?", "{}")
def test_every_text_comes_back_out_of_its_json(text: str, around: str) -> None:
    for ascii_only in (True, False):
        reply = around.replace("{}", json.dumps({"question": text}, ensure_ascii=ascii_only))
        assert question(reply) == text


@given(
    st.text(max_size=300)
    | st.lists(st.sampled_from([*"{}[]\",:\\'`", '{"question": "', "question", "a", " ", "\n"])).map("".join)
)
def test_no_reply_breaks_the_reader_and_what_it_gives_can_be_written(reply: str) -> None:
    for found in (read_question(reply, draft(), "none"), read_turn(reply)):
        text = found.question if isinstance(found, Asked) else found.why if isinstance(found, Rejected) else found
        assert text.strip()
        text.encode()


@given(st.integers(0, 200))
def test_a_question_that_is_cut_anywhere_is_whole_or_nothing(cut: int) -> None:
    whole = '{"question": "A farmer has 17 sheep. All but 9 run away! How many are left, and how many "ran"?"}'
    found = read_question(whole[:cut], draft(), "none")
    if isinstance(found, Asked):
        assert found.question == 'A farmer has 17 sheep. All but 9 run away! How many are left, and how many "ran"?'


# What models write that are caught in a loop, around the marks by which a reply is read.
LOOPED = [
    *("Hi, ", "Hello, ", "Hello! ", "Thank you, ", "yes ", "Sure, ", "the ", "here text ", "!? ", "answer ", "good "),
    *(" ", "\n", " \n", '" ', '", ', '"', '",\n', " ,", "`}] ", "}", "] ", "```", "``` ", "\\", '\\"', "\u201c", "'"),
    *(
        '{"',
        "{a: ",
        '{"topic": ',
        '{"question": ',
        '{"question": "x", ',
        '{"q":[1\n],"a":',
        "topic: 1\n}",
        "question: ",
    ),
    *('", //', '", // x\n', "1", "1,", "1 ", "(1+", "1 / ", "1=", "\\frac{1}{", "<", "<think>", "</think>", "<answer>"),
    *("\\boxed{", "**", ".", "[", "a", "a ", "I can't aly ", "I'm sorry ", "message\t", "1 x 1 x "),
]
BEFORE = [
    *("", '{"question": "', '{"question": "a?"', '{"question": "a', "```json\n", '```json\n{"question": "a', '["'),
    *("{question: a", '{"question": "3 and 4?", "expression": "', "{'question': '", "How can I help"),
]


class TooLong(BaseException):
    """Not one of the errors that the reader catches."""


def quickly(read: Callable[[], object], most: float = 1.0) -> None:
    """Run it. Raises TooLong after so many seconds of this process's time: a pattern is interrupted as well."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, most)
        read()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def read_all(reply: str) -> None:
    """All that looks at a model's reply with patterns."""
    read_question(reply, draft(), "none")
    read_question(reply, draft(), "expression")
    read_turn(reply)
    repetition(reply)
    REFUSAL.match(reply)
    number_right("3", reply)
    countdown_right([1, 2, 3], 6, reply)


def test_an_endless_pattern_is_interrupted_by_the_clock_of_these_tests() -> None:
    with pytest.raises(TooLong):
        quickly(lambda: re.match("(a+)+$", "a" * 40 + "x"), 0.2)


@pytest.mark.parametrize("looped", LOOPED)
def test_no_loop_of_a_model_keeps_the_reader_busy(looped: str) -> None:
    for before in BEFORE:
        for times, after in ((20, "x"), (200, ""), (700, 'x"}'), (39_000 // len(looped), "x")):
            quickly(partial(read_all, before + looped * times + after))


@given(
    st.sampled_from(BEFORE),
    st.lists(st.tuples(st.sampled_from([*LOOPED, *BEFORE[1:]]), st.integers(1, 2000)), max_size=6),
    st.sampled_from([1, 10, 40]),
    st.sampled_from(["", "x", '"}', "?"]),
)
@settings(deadline=None)
def test_nor_do_several_of_them(before: str, parts: list[tuple[str, int]], rounds: int, after: str) -> None:
    reply = (before + "".join(part * times for part, times in parts))[: 50_000 // rounds] * rounds + after
    quickly(lambda: read_all(reply))


def test_a_reply_without_end_is_not_read() -> None:
    assert reason('{"question": "What is 2+2?"}' + "\n" * 50_000 + "x") == "too_long"
