"""The skills keep the open specification, and what lies in their folders works."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import yaml

from core.data.prompts import Prompt, PromptOptions, open_prompts
from tests.support.pages import SKILLS, blocks
from tests.support.running import ROOT, read_rows, write_rows

by_name = pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)


@by_name
def test_a_skill_keeps_the_open_specification(skill: Path):
    validator = Path(sys.executable).with_name("agentskills")
    done = subprocess.run([validator, "validate", skill], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


@by_name
def test_the_frontmatter_and_size_of_a_skill(skill: Path):
    _, front, body = (skill / "SKILL.md").read_text(encoding="utf-8").split("---\n", 2)
    fields = yaml.safe_load(front)
    assert set(fields) <= {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    assert fields["name"] == skill.name
    assert 1 <= len(fields["description"]) <= 1024
    assert not set("<>") & set(fields["description"])
    assert len(fields["compatibility"]) <= 500
    assert all(isinstance(value, str) for value in fields["metadata"].values())
    assert re.fullmatch(r"[\w()*:.-]+( [\w()*:.-]+)*", fields["allowed-tools"])
    assert body.count("\n") < 500
    assert not any(path.is_symlink() for path in skill.rglob("*"))  # some assistants drop links when they copy


TRIGGERS = {
    "off-policy": (
        "distillation",
        "teacher model",
        "generate completions",
        "OpenRouter",
        "off-policy",
        "knowledge transfer",
    ),
    "on-policy": (
        "on-policy distillation",
        "GOLD",
        "train_gold",
        "distill across tokenizers",
        "make_student",
    ),
    "rollout-distill": (
        "distillation with tools",
        "teacher rollouts",
        "browser agent",
        "rnow test",
        "convert_rollouts",
    ),
}


@pytest.mark.parametrize("skill", TRIGGERS)
def test_a_skill_keeps_its_trigger_words(skill: str):
    text = (ROOT / "skills" / skill / "SKILL.md").read_text(encoding="utf-8")
    for word in TRIGGERS[skill]:
        assert f'"{word}"' in text.split("---\n")[1]


def test_the_sample_tools_answer_the_sample_prompts():
    folder = ROOT / "skills/rollout-distill/assets"
    rows = [orjson.loads(line) for line in (folder / "prompts.jsonl").read_bytes().splitlines()]
    assert len(rows) == len({row["messages"][-1]["content"] for row in rows}) == 12
    assert all(row["metadata"]["expected_answer"] for row in rows)
    tools = runpy.run_path(str(folder / "tools.py"))
    assert tools["calculate"]("4.2 * 3.5") == pytest.approx(14.7)
    assert tools["calculate"]("6.4 * 3.5") == pytest.approx(22.4)
    assert tools["convert_units"](26.2, "mile", "km") == pytest.approx(42.2, abs=0.05)
    with pytest.raises(ValueError, match="only"):
        tools["calculate"]("__import__('os').getcwd()")


def test_the_shipped_prompts_are_good_prompts():
    rows = [orjson.loads(line) for line in (ROOT / "skills/off-policy/assets/prompts.jsonl").read_bytes().splitlines()]
    assert len(rows) == len({row["prompt"] for row in rows}) == len({row["category"] for row in rows}) == 12


def test_the_sample_conversations_all_have_answers_and_cover_the_three_kinds():
    with open_prompts(str(ROOT / "skills/on-policy/assets/combined_12.json"), PromptOptions()) as read:
        rows = [row for row in read() if isinstance(row, Prompt)]
    assert len(rows) == len({row.messages[-1]["content"] for row in rows}) == 12
    assert all(row.answer for row in rows)
    assert {row.metadata["dataset_type"] for row in rows} == {"reasoning", "dialogue", "instruction"}


def test_the_skill_for_training_is_short_enough_to_be_read_whole():
    assert (ROOT / "skills/on-policy/SKILL.md").read_bytes().count(b"\n") < 200


@by_name
def test_the_python_in_a_skill_runs_on_its_rows(skill: Path, tmp_path: Path):
    """Snippets that filter rows: what they keep is a part of what was there."""
    rows = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x" * length}], "metadata": {}}
        for length in (5, 500)
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    for block in (block for page in sorted(skill.rglob("*.md")) for block in blocks(page, "python")):
        if "train.jsonl" not in block.text:
            continue
        subprocess.run([sys.executable, "-c", block.text], cwd=tmp_path, check=True, capture_output=True)
        assert read_rows(tmp_path / "train.jsonl") == rows, f"{block} changes train.jsonl"
        for written in tmp_path.glob("*.jsonl"):
            assert all(row in rows for row in read_rows(written))


# ---- evaluations -----------------------------------------------------------------------------------------------------


@by_name
def test_the_evaluations_of_a_skill_keep_their_form(skill: Path):
    """evals/evals.json: wishes to give to an assistant that has the skill, and what to look for in what it does. A
    person or a model judges; here only the form is held."""
    content = orjson.loads((skill / "evals/evals.json").read_bytes())
    assert set(content) == {"skill_name", "evals"}
    assert content["skill_name"] == skill.name
    assert len(content["evals"]) >= 3
    for each in content["evals"]:
        assert set(each) == {"id", "prompt", "expected_output", "files", "expectations"}
        assert len(each["prompt"].split()) >= 5
        assert len(each["expected_output"].split()) >= 5
        assert all((skill / file).is_file() for file in each["files"]), each["files"]
        assert len(each["expectations"]) >= 2
        assert all(isinstance(one, str) and len(one.split()) >= 3 for one in each["expectations"])
    for key in ("id", "prompt"):
        values = [each[key] for each in content["evals"]]
        assert len(set(values)) == len(values), key


def test_the_evaluations_are_not_the_requests_that_the_descriptions_are_tested_with():
    requests = set().union(*orjson.loads((ROOT / "tests/docs/triggers.json").read_bytes()).values())
    for skill in SKILLS:
        content = orjson.loads((skill / "evals/evals.json").read_bytes())
        assert not requests & {each["prompt"] for each in content["evals"]}
