"""The descriptions of the skills, by which an assistant chooses, against requests as users put them.

This tests wording alone, by counting words (tests/support/ranking.py): whether the words that people use stand in the
right description, and not much in the others. It is no measure of how often a model chooses the right skill. The
descriptions were revised by the themes that a first version missed here, so the requests guard against a step back; of
24 requests of another author, which nobody had seen, the ranking put 16 right, and 6 of 6 foreign ones below the
threshold. Requests are not to be fitted to the descriptions, nor descriptions to single requests.
"""

import itertools
import json
from pathlib import Path

import pytest
import yaml

from tests.support.pages import SKILLS
from tests.support.ranking import Ranking, overlap, stem, wanted

REQUESTS: dict[str, list[str]] = json.loads(Path(__file__).with_name("triggers.json").read_text(encoding="utf-8"))
FOREIGN = REQUESTS["none"]
MEANT = [(skill, request) for skill, requests in REQUESTS.items() if skill != "none" for request in requests]
THRESHOLD = 1.5
"""BM25 below which no skill is meant: less than two words that only one description has."""
ALIKE = 0.4
"""Most of two descriptions' words that both may have."""


def description(skill: Path) -> str:
    return yaml.safe_load((skill / "SKILL.md").read_text(encoding="utf-8").split("---\n")[1])["description"]


DESCRIPTIONS = {skill.name: wanted(description(skill)) for skill in SKILLS}
RANKING = Ranking(DESCRIPTIONS)


def test_there_are_as_many_requests_as_there_should_be():
    assert {skill: len(requests) for skill, requests in REQUESTS.items()} == dict.fromkeys(DESCRIPTIONS, 8) | {
        "none": 6
    }
    every = [request for requests in REQUESTS.values() for request in requests]
    assert len(set(every)) == len(every)


def test_the_right_skill_comes_first():
    missed = [f"{skill}: {request}" for skill, request in MEANT if RANKING.ranked(request)[0][1] != skill]
    assert len(missed) <= 2, "\n".join(missed)


def test_no_skill_is_meant_by_what_others_want():
    found = {request: RANKING.ranked(request)[0] for request in FOREIGN}
    assert {request: best for request, best in found.items() if best[0] >= THRESHOLD} == {}


def test_the_threshold_tells_something():
    over = [request for _, request in MEANT if RANKING.ranked(request)[0][0] >= THRESHOLD]
    assert len(over) >= 20, [request for _, request in MEANT if request not in over]


def test_no_request_is_a_description():
    """It would be found without any meaning."""
    for text in DESCRIPTIONS.values():
        for _, request in MEANT:
            assert overlap(request, text) < 0.3


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(DESCRIPTIONS, 2)])
def test_the_descriptions_differ(one: str, other: str):
    assert overlap(DESCRIPTIONS[one], DESCRIPTIONS[other]) <= ALIKE


# ---- the ranking itself ----------------------------------------------------------------------------------------------


def test_the_scores_of_a_hand_computed_example():
    # Two texts of two stems each, so the length does not matter: every word that is there once weighs
    # (1.2 + 1) / (1 + 1.2) = 1. "cat" is in one of two: ln(1 + 1.5/1.5) = .693; "tree" in both: ln(1 + .5/2.5) = .182
    ranking = Ranking({"a": "cat tree", "b": "dog tree"})
    assert ranking.score("Which cats climb trees?", "a") == pytest.approx(0.693 + 0.182, abs=1e-3)
    assert ranking.ranked("my dog")[0][1] == "b"


def test_words_are_counted_by_their_stems():
    assert {stem(word) for word in ("train", "training", "trained", "trainer", "trains")} == {"train"}
    assert stem("stopped") == stem("stop")
    assert overlap("generate answers", "answering generations") == 1


def test_what_a_skill_is_not_for_does_not_count():
    assert wanted("Answers prompts. Not for tools (other does that). Use it here.") == "Answers prompts. Use it here."
