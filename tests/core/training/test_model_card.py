"""The card: read back as YAML and as Markdown, with names that want to be more than names."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.training.model_card import CardFacts, model_card
from tests.support.tiny_model import make_tiny_model

FACTS = CardFacts(
    name="capitals",
    base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
    adapter=True,
    data="train.jsonl",
    data_sha256="ab" * 32,
    rows=1200,
    trained_rows=1100,
    held_out_rows=60,
    trained_tokens=54321,
    teachers={"": 1, "big/teacher": 1000, "other": 199},
    thinking=False,
    template="the model's own",
    step=400,
    steps=413,
    epochs=2.9,
    settings={"learning_rate": 0.0001, "lora_targets": ["all-linear"]},
    versions={"transformers": "5.23.0"},
    changed={"longer than the context": 40},
    before={"val_loss": 1.25, "val_accuracy": 0.5},
    after={"val_loss": 0.75, "val_accuracy": 0.625},
)


def parts(card: str) -> tuple[dict[str, Any], str]:
    """The YAML and the Markdown, as the Hub takes them apart."""
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_card_says_everything():
    front, text = parts(model_card(FACTS))
    assert front == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "sft", "lora"],
    }
    for words in (
        "# `capitals`\n",
        "A LoRA adapter for `HuggingFaceTB/SmolLM2-135M-Instruct`, trained (SFT) on the answers of `big/teacher`, "
        "`other`.",
        f"- File: `train.jsonl`, 1,200 rows, SHA-256 `{'ab' * 32}`\n",
        "- Teacher: `big/teacher`, 1,000 rows\n- Teacher: `other`, 199 rows\n- Teacher: not said in the data, 1 row\n",
        "- Trained: 1,100 rows with 54,321 tokens of the assistant's",
        "- Held out for validation: 60 rows\n",
        "- Reasoning (thinking): taken out\n",
        "- Left out, cut or changed: `longer than the context`, 40 rows\n",
        "Step 400 of 413, after 2.90 epochs.\n",
        "| loss per trained token on the held-out rows, in nats | 1.2500 | 0.7500 |\n",
        "| share of their tokens that were the most probable one | 50.0% | 62.5% |\n",
        "- `learning_rate`: `0.0001`\n- `lora_targets`: `all-linear`\n",
        "- `transformers` `5.23.0`\n",
        "the terms of the teacher's provider decide what its answers may be used for",
        "This card claims no licence.",
    ):
        assert words in text
    assert "license" not in front


def test_a_card_without_validation_and_without_a_named_teacher():
    front, text = parts(model_card(replace(FACTS, adapter=False, teachers={"": 3}, before={}, after={}, thinking=True)))
    assert front["library_name"] == "transformers"
    assert front["tags"] == ["distillation", "sft"]
    assert "A model that began as" in text
    assert "the answers of a teacher that the data does not name." in text
    assert "No rows were held out, so nothing was measured." in text
    assert "| Before |" not in text
    assert "trained where the data has it" in text


def test_many_teachers_are_counted_in_the_first_sentence():
    text = model_card(replace(FACTS, teachers={f"t{number}": 10 - number for number in range(5)}))
    assert "the answers of `t0`, `t1`, `t2` and 2 more." in text


@pytest.mark.parametrize("model", ["smollm2", "/home/someone/secret/my-model", "./models/my-model/", "~/my-model"])
def test_a_model_of_this_disk_is_no_base_model_on_the_hub_and_its_place_is_not_told(model: str):
    front, text = parts(model_card(replace(FACTS, base_model=model)))
    assert "base_model" not in front
    assert f"`{'smollm2' if model == 'smollm2' else 'my-model'}`" in text
    assert not any(word in text for word in ("someone", "models/", "~"))


def test_an_unknown_measure_is_shown_as_it_is():
    text = model_card(replace(FACTS, after={"a|b": 2.0}))
    assert "| `a\\|b` | - | 2 |" in text


HOSTILE = (
    "x\n---\nlicense: mit\n---\n",
    "`code` ``more`` [link](http://x) <script>alert(1)</script>",
    "a | b\r\n# heading\u2028- list",
    "\x1b[2J\u202eback",
    "\ud800",
    "`",
    "",
    "  ",
    "x" * 250,
    "!!python/object:os.system",
)
TEXT = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), max_size=60))


@given(
    one=TEXT,
    two=TEXT,
    three=TEXT,
    model=st.one_of(TEXT, st.sampled_from(["a/b", "a/b\n", "a/b: c", "null/1"])),
)
def test_names_stay_names(one: str, two: str, three: str, model: str):
    """Whatever they hold: the same headings, list items and code, no HTML, no link, nothing more in the YAML."""
    plain = replace(FACTS, teachers={"t": 5}, changed={"c": 1}, settings={"s": "v"}, versions={"p": "1"})
    named = replace(
        plain, name=one, base_model=model, data=two, template=three, teachers={one or "t": 5}, changed={two: 1},
        settings={three: one}, versions={two: three},
    )  # fmt: skip
    card = model_card(named)
    card.encode("utf-8")
    front, text = parts(card)
    assert set(front) - {"base_model"} == {"library_name", "pipeline_tag", "tags"}
    assert front.get("base_model", model) == model

    def shape(markdown: str) -> list[tuple[str, str, list[str]]]:
        tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
        return [(token.type, token.tag, [child.type for child in token.children or []]) for token in tokens]

    assert shape(text) == shape(parts(model_card(plain))[1])


@pytest.mark.parametrize("adapter", [False, True])
def test_the_lines_that_load_it_load_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], adapter: bool
):
    folder = make_tiny_model(tmp_path / "tiny")
    if adapter:
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules="all-linear")
        )
        model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "adapter")
        folder = tmp_path / "adapter"
    tokens = MarkdownIt().parse(model_card(replace(FACTS, adapter=adapter)))
    (code,) = (token.content for token in tokens if token.type == "fence")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code.replace("max_new_tokens=256", "max_new_tokens=4"), names)
    assert len(capsys.readouterr().out) > 0
    assert names["answer"].shape[1] <= names["prompt"]["input_ids"].shape[1] + 4
    assert type(names["model"]).__name__ == ("PeftModelForCausalLM" if adapter else "LlamaForCausalLM")
    assert os.path.samefile(Path.cwd(), folder)
