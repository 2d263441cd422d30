"""The options of train_sft: which need another, and what an MCP client is shown."""

from typing import Any

import pytest

from core.commands.resolve import resolve
from core.commands.train_sft import TrainSft
from core.errors import UsageError

RANK, ROWS, EXPORT = {"qlora_rank": 8}, {"val_split": 0.1}, {"export": "gguf"}


@pytest.mark.parametrize(
    ("option", "value", "needed", "missing"),
    [
        ("qlora_alpha", 16, RANK, "--qlora-rank"),
        ("merge", True, RANK, "--qlora-rank"),
        ("lora_dropout", 0.1, RANK, "--qlora-rank"),
        ("lora_targets", ["q"], RANK, "--qlora-rank"),
        ("lora_targets", ["all-linear"], RANK, "--qlora-rank"),  # the default, but only somebody who wants LoRA says it
        ("load_in_4bit", True, RANK, "--qlora-rank"),
        ("load_in_4bit", False, RANK, "--qlora-rank"),
        ("patience", 3, ROWS, "--val-split"),
        ("eval_every", 5, ROWS, "--val-split"),
        ("gguf_types", ["f16"], EXPORT, "--export gguf"),
    ],
)
def test_an_option_that_would_do_nothing_names_the_one_it_needs(
    folder: Any, option: str, value: Any, needed: dict[str, Any], missing: str
) -> None:
    flag = "--" + option.replace("_", "-")
    with pytest.raises(UsageError, match=rf"^{flag}.*Give {missing}"):
        resolve(TrainSft, {"model": "x", option: value})
    options, _ = resolve(TrainSft, {"model": "x", option: value, **needed})
    assert getattr(options, option) in (value, ["q_proj"])


def test_all_of_them_are_named_with_the_keys_that_may_have_set_them(folder: Any) -> None:
    with pytest.raises(UsageError, match=r"^--eval-every or SFT_EVAL_EVERY, --patience or SFT_PATIENCE: for the valid"):
        resolve(TrainSft, {"model": "x"}, {"SFT_PATIENCE": "3", "SFT_EVAL_EVERY": "5"})


def test_values_that_ask_for_nothing_and_defaults_are_no_matter(folder: Any) -> None:
    plain, _ = resolve(TrainSft, {"model": "x"})
    nothing = {"merge": False, "patience": 0, "lora_dropout": 0.0, "eval_every": None, "load_in_4bit": None}
    assert resolve(TrainSft, {"model": "x", **nothing})[0] == plain


def test_distill_hands_on_what_train_gold_has_a_default_for(folder: Any) -> None:
    more = {"patience": 3, "eval_every": 5, "lora_targets": ["q"], "lora_dropout": 0.1}
    # It holds rows out and may have LORA set.
    options, _ = resolve(TrainSft, {"model": "x", "dataset_type": "distill", **more})
    assert options.model_dump(include=set(more)) == {**more, "lora_targets": ["q_proj"]}
