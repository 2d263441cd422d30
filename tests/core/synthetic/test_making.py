"""From answers to records: what is asked next, what becomes of what was said, and that a replay ends as a run did."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from core.commands.generate_synthetic import GenerateSynthetic
from core.synthetic.domain import Domain
from core.synthetic.making import Making, Workshop
from core.synthetic.plan import Plan
from core.teachers import Completion
from core.teachers.answer_book import Paid
from core.teachers.protocol import Usage
from tests.support.synthetic import question_of, random_of

REASONING = (1.0, 0.0, 0.0)
ANSWER = "That depends on how much honey there is, and on what the keeper wants to do with it."


def domain(**more: Any) -> Domain:
    given: dict[str, Any] = {
        "description": "Bees.",
        "topics": ["swarms", "honey"],
        "personas": ["a beginner", "a cook"],
    }
    return Domain.model_validate(given | {"reasoning": ["cause"], **more})


def workshop(of: Domain, shares: tuple[float, float, float] = REASONING, model: str = "m", **options: Any) -> Workshop:
    given = GenerateSynthetic(model=model, base_url="http://127.0.0.1:1/v1", **options)
    identity: dict[str, Any] = {"teacher": model}
    return Workshop(
        given, of, Plan(of, 0, shares, ()), {"questions": identity, "answers": identity, "reviews": identity}
    )


def tell(shop: Workshop, making: Making, text: str, finish: str = "stop", cost: float | None = 0.5) -> Paid:
    """Answer what is asked next."""
    said = Completion(text, finish, usage=Usage(10, 5))
    paid = Paid(shop.request(making).key, "m", said, cost, making.slot.number)
    shop.take(making, paid)
    return paid


def ask(number: int) -> str:
    return json.dumps({"question": question_of(random_of(str(number)))})


def begun(shop: Workshop, number: int = 0) -> Making:
    return shop.begin(shop.plan.slot(number))


def test_a_question_then_an_answer_make_a_record() -> None:
    shop = workshop(domain(system="Be kind."))
    making = begun(shop)
    assert making.role == "questions"
    tell(shop, making, ask(1))
    assert (making.role, making.record) == ("answers", None)
    assert shop.request(making).messages[0]["content"].startswith("Be kind.")
    last = tell(shop, making, f"<think>Hm.</think>{ANSWER}")
    assert making.record is not None
    assert [each["role"] for each in making.record.messages] == ["system", "user", "assistant"]
    assert making.record.messages[-1]["content"] == ANSWER
    metadata = making.record.metadata
    assert (metadata["id"], metadata["index"], metadata["attempt"], metadata["cost"]) == (last.key, 0, 0, 1.0)
    assert metadata["usage"] == {"prompt_tokens": 20, "completion_tokens": 10}


def test_a_cost_that_is_unknown_stays_unknown() -> None:
    shop = workshop(domain())
    making = begun(shop)
    tell(shop, making, ask(1), cost=None)
    tell(shop, making, ANSWER)
    assert making.record is not None
    assert making.record.metadata["cost"] is None


def test_every_request_has_a_key_of_its_own() -> None:
    keys: list[str] = []
    for model in ("m", "n"):
        shop = workshop(domain(dialogue=[{"name": "help", "turns": {2: 1}}]), (0.0, 1.0, 0.0), model)
        for number in range(3):
            making = begun(shop, number)
            keys.append(shop.request(making).key)
            for text in ("{}", ask(number), ANSWER, ask(100 + number), ANSWER):
                tell(shop, making, text)
                if making.record is None:
                    keys.append(shop.request(making).key)
            assert making.record is not None
    assert len({*keys}) == len(keys) == 2 * 3 * 5


def test_a_draft_that_is_not_kept_is_followed_by_another_one_until_the_tries_are_over() -> None:
    shop = workshop(domain(), tries=3)
    making = begun(shop)
    seen: set[str] = set()
    for attempt in range(3):
        assert making.attempt == attempt
        assert not shop.given_up(making)
        seen.add(json.dumps(shop.request(making).messages))
        tell(shop, making, "{}")
    assert len(seen) == 3  # each draft draws something else
    assert shop.given_up(making)
    assert shop.rejected == {"no_question": 3}


@pytest.mark.parametrize(
    ("answer", "finish", "reason"),
    [
        ("I'm sorry, but I can't help with that.", "stop", "refusal"),
        ("It is so that the", "length", "truncated"),
        ("", "content_filter", "content_filter"),
        ("<think>Nothing but thoughts.</think>", "stop", "empty"),
        ("Das kommt darauf an, wie viel Honig es gibt und was der Imker damit machen will.", "stop", "other_language"),
        ("and then the bees came back to the old hive again " * 60, "stop", "repetitive"),
    ],
)
def test_an_answer_that_is_not_kept(answer: str, finish: str, reason: str) -> None:
    shop = workshop(domain())
    making = begun(shop)
    tell(shop, making, ask(1))
    tell(shop, making, answer, finish)
    assert (making.attempt, making.role, making.record, dict(shop.rejected)) == (1, "questions", None, {reason: 1})
    assert shop.last is not None
    assert shop.last.reason == reason


def test_a_question_that_is_like_an_earlier_one_is_not_kept() -> None:
    shop = workshop(domain())
    tell(shop, begun(shop, 0), ask(1))
    making = begun(shop, 1)
    tell(shop, making, ask(1))
    question = json.loads(ask(1))["question"]
    tell(shop, making, json.dumps({"question": question.replace("Why does", "Then why does")}))
    tell(shop, making, ask(2))
    assert dict(shop.rejected) == {"duplicate": 1, "near_duplicate": 1}
    assert (making.attempt, making.role) == (2, "answers")


def test_a_later_turn_that_says_the_same_again_costs_the_whole_dialogue() -> None:
    shop = workshop(domain(dialogue=[{"name": "help", "turns": {2: 1}}]), (0.0, 1.0, 0.0))
    making = begun(shop)
    for text in (ask(1), ANSWER, ask(1)):
        tell(shop, making, text)
    assert dict(shop.rejected) == {"duplicate": 1}
    assert (making.attempt, making.conversation, making.paid) == (1, [], [])


def test_a_wrong_result_is_not_kept_and_a_right_one_is() -> None:
    shop = workshop(domain(reasoning=[{"name": "sums", "verify": "expression"}]))
    making = begun(shop)
    asked = json.dumps({"question": "A hive holds 12 frames. How many frames are in 7 hives?", "expression": "12 * 7"})
    tell(shop, making, asked)
    tell(shop, making, "Answer: 85")
    assert dict(shop.rejected) == {"wrong_answer": 1}
    other = json.dumps({"question": "Nine boxes of 15 jars of honey stand there: how many jars?", "expression": "9*15"})
    tell(shop, making, other.replace("Nine", "The 9"))
    tell(shop, making, "Answer: 135")
    assert making.record is not None
    assert (making.record.metadata["expected_answer"], making.record.metadata["verify"]) == ("135", "expression")


def test_a_problem_that_is_made_here_needs_no_question() -> None:
    of = domain(reasoning=[{"name": "sums", "verify": "arithmetic"}])
    shop = workshop(of)
    making = begun(shop)
    assert making.role == "answers"
    assert making.problem is not None
    tell(shop, making, f"Answer: {making.problem.expected}")
    assert making.record is not None
    assert making.record.metadata["question_model"] is None


def test_a_replay_in_the_order_of_the_answers_ends_where_the_run_did() -> None:
    replies = [
        *((number, ask(number)) for number in range(6)),
        (1, ANSWER),
        (0, "I'm sorry, but I can't help with that."),
        (0, ask(3)),  # there already
        (3, ANSWER),
        (0, ask(20)),
        (2, "It is so"),
        (0, ANSWER),
    ]

    def played(answers: Sequence[tuple[int, str]]) -> tuple[Workshop, dict[int, Making], list[Paid]]:
        shop, making, book = workshop(domain()), dict[int, Making](), list[Paid]()
        for number, text in answers:
            one = making.setdefault(number, begun(shop, number))
            if one.record is None:
                book.append(tell(shop, one, text))
        return shop, making, book

    shop, making, book = played(replies)
    again, remade = workshop(domain()), dict[int, Making]()
    for paid in book:
        number = paid.place or 0
        one = remade.setdefault(number, again.begin(again.plan.slot(number)))
        assert again.request(one).key == paid.key
        again.take(one, paid)
    assert dict(again.rejected) == dict(shop.rejected)
    assert (again.rejected.total(), len(again.questions)) == (2, len(shop.questions))
    for number, one in making.items():
        assert (remade[number].record, remade[number].attempt) == (one.record, one.attempt)
        assert remade[number].conversation == one.conversation
