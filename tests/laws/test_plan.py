"""Laws of the plan: every beginning of a data set is even, whatever the weights."""

import math
from collections import Counter
from fractions import Fraction
from itertools import islice, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from core.commands.generate_synthetic import TYPES
from core.synthetic.domain import Domain
from core.synthetic.plan import Plan, Turns, evenness
from core.synthetic.records import Passage

law = settings(max_examples=25, deadline=None)

weights = st.lists(st.integers(1, 40) | st.sampled_from([0.1, 0.3, 1 / 3, 1e-3, 2.5, 700.0]), min_size=1, max_size=9)
names = st.lists(st.sampled_from([f"n{number}" for number in range(12)]), min_size=1, max_size=7, unique=True)


@law
@given(weights)
def test_each_kind_has_its_share_of_any_number_of_turns(weights: list[float]) -> None:
    turns, counts = Turns(weights), [0] * len(weights)
    exact = [Fraction(str(weight)) for weight in weights]
    bound = 1 - Fraction(1, 2 * len(weights) - 2) if len(weights) > 1 else Fraction(0)
    for n in range(1, 200):
        counts[turns.next()] += 1
        for count, weight in zip(counts, exact, strict=True):
            assert abs(count - n * weight / sum(exact)) <= bound


@st.composite
def domains(draw: st.DrawFn) -> Domain:
    """Any tasks, weights, topics and examples."""

    def tasks(**more: object) -> list[dict[str, object]]:
        return [
            {
                "name": name,
                "weight": draw(st.sampled_from([1.0, 2.5, 4.0])),
                "topics": draw(st.just([]) | names),
                "examples": draw(st.just([]) | names),
                **more,
            }
            for name in draw(names)
        ]

    return Domain.model_validate(
        {
            "description": "Any.",
            "difficulty": {"easy": draw(st.integers(0, 3)), "medium": 1, "hard": draw(st.integers(0, 3))},
            "topics": draw(names),
            "personas": draw(names),
            "reasoning": tasks(),
            "dialogue": tasks(turns={1: 2, draw(st.integers(2, 10)): 1}),
            "instruction": tasks(subcategories=draw(names)),
        }
    )


seeds = st.integers(0, 2**63 - 1)
counts = st.integers(0, 150)


@law
@given(domains(), seeds, counts)
def test_every_beginning_has_all_shares_within_one(domain: Domain, seed: int, count: int) -> None:
    slots = list(Plan(domain, seed, (50, 20, 30), ()).slots(count))
    types = Counter(slot.type for slot in slots)
    for kind, share in zip(TYPES, (0.5, 0.2, 0.3), strict=True):
        assert abs(types[kind] - count * share) < 1
        of = [slot for slot in slots if slot.type == kind]
        tasks, every = Counter(slot.task for slot in of), sum(task.weight for task in domain.tasks(kind))
        for at, task in enumerate(domain.tasks(kind)):
            assert abs(tasks[at] - len(of) * task.weight / every) < 1
    for at, task in enumerate(domain.dialogue):
        turns = Counter(slot.turns for slot in slots if slot.type == "dialogue" and slot.task == at)
        for number, weight in task.turns.items():
            assert abs(turns[number] - turns.total() * weight / 3) < 1
    for at, task in enumerate(domain.instruction):
        names = Counter(slot.fields["subcategory"] for slot in slots if slot.type == "instruction" and slot.task == at)
        assert set(names) <= set(task.subcategories)
        assert max(names.values(), default=0) - min(names[name] for name in task.subcategories) <= 1
    for at in range(len(domain.reasoning)):
        levels = Counter(slot.fields["difficulty"] for slot in slots if slot.type == "reasoning" and slot.task == at)
        for level, weight in domain.difficulty.items():
            assert abs(levels[level] - levels.total() * weight / sum(domain.difficulty.values())) < 1


@law
@given(domains(), seeds, counts, counts)
def test_more_records_change_none_of_those_before(domain: Domain, seed: int, fewer: int, more: int) -> None:
    long = Plan(domain, seed, (50, 20, 30), ())
    assert list(long.slots(fewer + more))[:fewer] == list(Plan(domain, seed, (50, 20, 30), ()).slots(fewer))
    # A draft can be asked of a plan that was never asked for its slots, in any order.
    fresh = Plan(domain, seed, (50, 20, 30), ())
    for slot in reversed(list(long.slots(fewer))):
        assert fresh.draft(slot, slot.number % 3) == long.draft(slot, slot.number % 3)


@law
@given(domains(), seeds, counts, st.integers(1, 40))
def test_what_is_drawn_is_as_even_as_whole_numbers_are(domain: Domain, seed: int, count: int, size: int) -> None:
    passages = [Passage(f"a.txt#{number}", str(number)) for number in range(size)]
    plan = Plan(domain, seed, (50, 20, 30), passages)
    drafts = [plan.draft(slot, 0) for slot in plan.slots(count)]

    def even(values: list[str], of: list[str]) -> None:
        found = Counter(values)
        assert max((found[each] for each in of), default=0) - min((found[each] for each in of), default=0) <= 1

    even([draft.attributes["persona"] for draft in drafts], domain.personas)
    even([draft.attributes["length"] for draft in drafts], domain.lengths)
    even([draft.passage.text for draft in drafts if draft.passage], [each.text for each in passages])
    plan = Plan(domain, seed, (50, 20, 30), ())  # with passages, there would be no topics
    drafts = [plan.draft(slot, 0) for slot in plan.slots(count)]
    tasks = [
        (kind, at, task)
        for kind in ("reasoning", "dialogue", "instruction")
        for at, task in enumerate(domain.tasks(kind))
    ]
    common: list[str] = []
    for kind, at, task in tasks:
        of = [draft for draft in drafts if (draft.slot.type, draft.slot.task) == (kind, at)]
        topics = [draft.attributes["topic"] for draft in of]
        if task.topics:
            even(topics, task.topics)
        else:
            common += topics
        shown = Counter(example for draft in of for example in draft.examples)
        whole = len(of) // len(task.examples) * len(task.examples) if task.examples else 0
        # After whole rounds each example was shown equally often.
        rounds = Counter(example for draft in of[:whole] for example in draft.examples)
        assert len({rounds[example] for example in task.examples}) <= 1
        assert set(shown) <= set(task.examples)
        assert all(len(set(draft.examples)) == len(draft.examples) <= 3 for draft in of)
    even(common, domain.topics)


@law
@given(domains(), seeds)
def test_further_tries_draw_every_topic_once_before_any_twice(domain: Domain, seed: int) -> None:
    plan = Plan(domain, seed, (50, 20, 30), ())
    for slot in islice(plan.slots(30), 0, None, 7):
        topics = domain.tasks(slot.type)[slot.task].topics or domain.topics
        drawn = [plan.draft(slot, attempt).attributes["topic"] for attempt in range(len(topics))]
        assert sorted(drawn) == sorted(topics)


@law
@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=2), st.integers(1, 1000))
def test_evenness_is_1_for_the_weights_own_shares_and_falls_to_0_at_the_rarest(
    weights: dict[str, float], scale: int
) -> None:
    rarest = min(weights, key=lambda kind: weights[kind])
    assert math.isclose(evenness({rarest: scale}, weights), 0, abs_tol=1e-9)
    own = {kind: round(1e9 * weight) for kind, weight in weights.items()}
    assert evenness(own, weights) > 1 - 1e-6
    # On the way from the one to the other it only falls.
    steps = [{**own, rarest: own[rarest] + 10**power} for power in range(8, 14)]
    assert all(evenness(more, weights) <= evenness(less, weights) + 1e-9 for less, more in pairwise(steps))
