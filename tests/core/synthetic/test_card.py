"""The card of a data set: its front matter is YAML whatever the names are, and its figures are those of the run."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.commands.generate_synthetic import GenerateSynthetic, Synthesized
from core.synthetic.card import write_card
from core.synthetic.domain import Domain
from core.synthetic.measures import Measures
from core.synthetic.records import Record, Slot
from core.teachers import Price

EVIL = "x: |`# ]] <b>\n---\ny"


def domain(**more: Any) -> Domain:
    given = {
        "name": "bees",
        "description": "Bees and their keepers.",
        "reasoning": [{"name": "cause"}, {"name": "sums"}],
    }
    return Domain.model_validate(given | more)


def record(number: int, name: str = "cause", **metadata: Any) -> Record:
    messages = [{"role": "user", "content": f"Why {number}?"}, {"role": "assistant", "content": "So."}]
    return Record(Slot(number, "reasoning", 0, {"task_type": name, "difficulty": "easy"}), messages, metadata)


def card(folder: Path, of: Domain, records: list[Record], **result: Any) -> tuple[dict[str, Any], str]:
    """(front matter, text below it)"""
    measures = Measures(of, records)
    given: dict[str, Any] = {
        "output_dir": folder,
        "domain": of.name,
        "records": len(records),
        "wanted": len(records),
        "added": len(records),
        "by_type": measures.by_type,
        "balance": measures.balance,
    }
    made = Synthesized.model_validate(given | result)
    path = folder / "README.md"
    options = GenerateSynthetic(model="m", base_url="http://127.0.0.1:1/v1", domain="bees.yml")
    write_card(path, made, of, options, {"questions": None, "answers": Price(3e-6, 15e-6, "--price")}, measures)
    _, head, text = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_card_says_what_is_in_the_data_set_how_it_was_made_and_at_what_price(tmp_path: Path) -> None:
    records = [record(0), record(1, "sums", attributes={"topic": "swarms"}), record(2)]
    head, text = card(
        tmp_path,
        domain(),
        records,
        question_model="asks",
        answer_model="answers",
        prompt_tokens=1234,
        completion_tokens=56,
        cost_usd=0.0421,
        rejected={"near_duplicate": 7},
    )
    assert head == {
        "pretty_name": "bees",
        "language": ["en"],
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "tags": ["synthetic", "distillation"],
        "configs": [{"config_name": "default", "data_files": "train.jsonl"}],
    }
    for words in (
        "# `bees`",
        "3 synthetic records (3 reasoning)",
        "`asks`",
        "`answers`",
        "`near_duplicate` 7",
        "`combined_3.json`",
        "`reasoning.csv`",
        "3 / 15 USD per million prompt / completion tokens (--price)",
        "0.0421 USD",
        "claims no licence",
        "Nothing that a model wrote was executed",
    ):
        assert words in text
    assert "`cause` 2, `sums` 1" in text
    assert "not complete" not in text
    assert "dialogue.csv" not in text


def test_names_of_others_stay_data(tmp_path: Path) -> None:
    records = [record(0, "a|b", attributes={"topic": EVIL})]
    head, text = card(
        tmp_path, domain(description=EVIL, language="any"), records, question_model=EVIL, answer_model="a`b"
    )
    assert "language" not in head
    assert head["pretty_name"] == "bees"
    below = text.splitlines()
    assert "---" not in below
    assert [line.count("|") - line.count("\\|") for line in below if line.startswith("| `task_type`")] == [4]
    assert [line.count("|") - line.count("\\|") for line in below if line.startswith("| `topic`")] == [4]


@pytest.mark.parametrize(("count", "size"), [(1, "n<1K"), (1000, "1K<n<10K")])
def test_the_size_of_the_data_set(tmp_path: Path, count: int, size: str) -> None:
    head, _ = card(tmp_path, domain(), [record(number) for number in range(count)])
    assert head["size_categories"] == [size]


def test_what_is_missing_and_what_is_grounded_is_said(tmp_path: Path) -> None:
    passage = {"place": "a.md#1", "text": "Bees dance."}
    _, text = card(tmp_path, domain(), [record(0, passage=passage), record(1)], wanted=10)
    assert "not complete: 10 records were wanted" in text
    assert "1 records are about a passage of a document" in text
    assert "unknown" in text.split("What it cost")[1]


def test_many_values_of_an_attribute_are_counted(tmp_path: Path) -> None:
    records = [record(number, attributes={"topic": f"topic {number}"}) for number in range(20)]
    _, text = card(tmp_path, domain(), records)
    assert "and 8 more" in text
