"""The domains that come with the package."""

import pytest

from core.commands.generate_synthetic import DEFAULT_MIX, TYPES, GenerateSynthetic
from core.synthetic.domain import LENGTHS, PRESETS, STYLES, Task, load_domain, presets

CAREFUL = {"medical": "doctor", "legal": "lawyer", "finance": "adviser"}


def tasks_of(name: str) -> list[Task]:
    domain = load_domain(name)
    return [task for kind in TYPES for task in domain.tasks(kind)]


def test_the_help_names_every_preset():
    about = GenerateSynthetic.model_fields["domain"].description or ""
    assert set(presets()) == set(about[about.index("(") + 1 : about.index(")")].split(", "))


@pytest.mark.parametrize("name", presets())
def test_a_preset_has_something_to_draw_from(name: str):
    domain = load_domain(name)
    assert domain.name == name
    assert len(domain.topics) >= 15
    assert len(domain.personas) >= 10
    assert len(domain.styles) >= 6
    assert len(domain.lengths) >= 4
    assert domain.styles != STYLES
    assert domain.lengths != LENGTHS
    assert domain.answers
    assert all(domain.tasks(kind) for kind in TYPES)
    assert len((PRESETS / f"{name}.yml").read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("name", presets())
def test_every_task_that_a_model_writes_has_words_and_examples(name: str):
    for task in tasks_of(name):
        if task.is_made_here:
            continue
        assert task.about, task.name
        assert len(task.examples) >= 4, task.name  # three are shown, never all
        for example in task.examples:
            # An instruction may say what to do, a description of a situation may come first; none is a fragment.
            assert len(example) >= 20, example
        if task.verify == "expression":
            assert len(task.topics) >= 15, task.name
            assert all(
                any(c.isdigit() for c in each) or "eighths" in each or "angles" in each for each in task.examples
            )


@pytest.mark.parametrize("name", presets())
def test_dialogues_have_one_to_three_turns_and_instructions_four_subcategories(name: str):
    domain = load_domain(name)
    assert all(set(task.turns) == {1, 2, 3} for task in domain.dialogue)
    assert all(len(task.subcategories) == 4 for task in domain.instruction)


def test_no_example_stands_in_two_places():
    examples = [example for name in presets() for task in tasks_of(name) for example in task.examples]
    assert len(examples) == len(set(examples))


@pytest.mark.parametrize(("name", "who"), CAREFUL.items())
def test_answers_say_who_really_knows(name: str, who: str):
    assert who in load_domain(name).answers


def test_the_general_preset_is_the_original_with_checked_tasks():
    domain = load_domain("general")
    weights = {task.name: task.weight for task in domain.reasoning}
    assert weights == {
        "mathematical": 2,
        "logical": 2,
        "common_sense": 1,
        "reading_comprehension": 1.5,
        "arithmetic": 0.5,
        "countdown": 0.5,
    }
    assert {task.name: task.verify for task in domain.reasoning if task.verify != "none"} == {
        "mathematical": "expression",
        "arithmetic": "arithmetic",
        "countdown": "countdown",
    }
    assert [task.name for task in domain.dialogue] == [
        "customer_support",
        "technical_help",
        "general_chat",
        "educational_tutoring",
    ]
    assert [task.name for task in domain.instruction] == ["writing", "coding", "analysis", "planning"]
    assert domain.shares() == DEFAULT_MIX
    assert domain.difficulty == {"easy": 1, "medium": 2, "hard": 1}
