"""--backend nemo from the command line: the same data set as ever, with scores, checks and further attributes."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from core.errors import MissingDependency
from core.synthetic.nemo import find_data_designer
from tests.support.running import KEY, Reply
from tests.support.synthetic import DOMAIN, Said, Town, town

try:
    find_data_designer()
    HERE = True
except MissingDependency:
    HERE = False
pytestmark = [pytest.mark.nemo, pytest.mark.slow, pytest.mark.skipif(not HERE, reason="data-designer is not installed")]

NEMO = """\
nemo:
  judges:
    - {name: helpful, rubric: "Does it help?", scores: {1: not at all, 2: a little, 3: much}, least: 2}
  judged_by: questions
  validators:
    - {name: thinks, kind: pattern, pattern: "I think|That is"}
  samplers:
    - {name: mood, kind: category, params: {values: [calm, cross]}}
"""
GRADE = re.compile(r"Judge the assistant's part")


def judged(said: Said) -> Reply | str | None:
    """One draft in ten is given a bad score, which follows from its text."""
    if not GRADE.search(said.question):
        return None
    score = 1 if sum(map(ord, said.question)) % 10 == 0 else 3
    return f'```json\n{{"helpful": {{"reasoning": "So it is.", "score": {score}}}}}\n```'


def through_nemo(here: Town, *arguments: str) -> dict[str, Any]:
    outcome = here.run("--backend", "nemo", "--api-key-env", "MY_KEY", *arguments)
    assert outcome.code == 0, outcome.stderr
    return outcome.result


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", KEY)


def test_a_data_set_by_way_of_data_designer(tmp_path: Path):
    with town(tmp_path, fault=judged) as here:
        (tmp_path / "domain.yml").write_text(DOMAIN + NEMO, encoding="utf-8")
        result = through_nemo(here, "-n", "24", "--price", "1/2", "--max-cost", "1")
        rows, paid = here.rows(), here.paid()
        before, asked = here.files(), here.asked
        again = through_nemo(here, "-n", "24", "--price", "1/2")
        assert here.asked == asked  # nothing is paid twice
        assert here.files() == before
        sent = [each.json["messages"] for each in here.received if each.method == "POST"]
    assert result["records"] == again["records"] == 24
    assert again["added"] == 0
    assert result["rejected"].get("low_score", 0) > 0
    assert result["prompt_tokens"] == 100 * asked
    assert result["cost_usd"] == pytest.approx(asked * (100 * 1 + 20 * 2) / 1e6)
    assert len(paid) == asked == len(sent)
    for row in rows:
        about = row["metadata"]
        assert about["scores"] == {"helpful": {"reasoning": "So it is.", "score": 3}}
        assert about["sampled"]["mood"] in ("calm", "cross")
        assert [said["role"] for said in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)
        assert "Judge" not in json.dumps(row["messages"])
        assert about["finish_reason"] == "stop"
    assert {row["metadata"]["sampled"]["mood"] for row in rows} == {"calm", "cross"}
    assert any("Mood: c" in str(messages[-1]["content"]) for messages in sent)
    assert any(len(messages) > 2 and messages[-2]["role"] == "assistant" for messages in sent)  # turns stay turns
    for file in (each for each in (tmp_path / "out").rglob("*") if each.is_file()):
        assert KEY.encode() not in file.read_bytes()


def test_a_dry_run_counts_the_judge_and_touches_nothing(tmp_path: Path):
    with town(tmp_path) as here:
        (tmp_path / "domain.yml").write_text(DOMAIN + NEMO, encoding="utf-8")
        plan = through_nemo(here, "-n", "20", "--price", "1/2", "--dry-run")
        assert here.asked == 0
    reviews = next(each for each in plan["asks"] if each["role"] == "reviews")
    assert reviews["requests"] == 20
    assert reviews["worst_case_usd"] > 0
    assert any(line.startswith("Mood: ") for line in plan["example"][-1]["content"].splitlines())
    assert os.listdir(tmp_path) == ["domain.yml"]


def test_a_budget_stops_it_and_more_goes_on(tmp_path: Path):
    with town(tmp_path, fault=judged) as here:
        (tmp_path / "domain.yml").write_text(DOMAIN + NEMO, encoding="utf-8")
        outcome = here.run("--backend", "nemo", "-n", "24", "--price", "1000/1000", "--max-cost", "12")
        assert outcome.code == 3, outcome.stderr
        assert 0 < outcome.result["cost_usd"] <= 12
        asked = here.asked
        assert len(here.paid()) == asked
        assert through_nemo(here, "-n", "24")["records"] == 24
        assert len(here.paid()) == here.asked > asked
