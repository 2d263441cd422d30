"""The keys of `.env`: the example, the references and the blocks in the pages name those that are read, no others."""

import re
from pathlib import Path

import pytest

from core.commands import load
from core.commands.base import flag
from core.commands.resolve import resolve
from core.teachers.providers import PROVIDERS
from tests.support.pages import PAGES, blocks, name_of
from tests.support.running import ROOT

CREDENTIALS = {provider.key for provider in PROVIDERS.values()}
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
ENVIRONMENT = ROOT / "skills/on-policy/references/environment.md"
REFERENCES = {
    "train_gold": ENVIRONMENT,
    "evaluate": ENVIRONMENT,
    "train_sft": ROOT / "skills/off-policy/references/training.md",
}

PATHS = {"DATA_PATH": "train.jsonl", "OUTPUT_DIR": "runs/gold"}


READERS = {"train_gold": PATHS, "train_sft": {}, "evaluate": {"KD_MODEL_PATH": "runs/gold/best"}}
"""The commands that read keys, and those that they cannot do without."""


def keys_of(command: str) -> dict[str, str]:
    """Environment key -> the field of the command that reads it."""
    model = load(command)
    return {key: name for name in model.model_fields for key in model.option(name).env_keys}


def test_the_example_of_env_has_every_key_once_and_no_other():
    keys = re.findall(r"^#?([A-Z][A-Z0-9_]+)=", EXAMPLE, re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert set(keys) == CREDENTIALS.union(*map(keys_of, READERS))
    assert set(re.findall(r"^([A-Z][A-Z0-9_]+)=", EXAMPLE, re.MULTILINE)) == CREDENTIALS


EXAMPLES = dict(re.findall(r"^#([A-Z][A-Z0-9_]+)=(.*)$", EXAMPLE, re.MULTILINE))


@pytest.mark.parametrize(
    ("command", "needed", "keys_with_defaults"),
    [("train_gold", {"data": "train.jsonl", "output": "runs/gold"}, 26), ("train_sft", {"model": "smollm2"}, 7)],
)
def test_the_values_in_the_example_of_env_are_the_defaults(
    command: str, needed: dict[str, str], keys_with_defaults: int
):
    model, keys = load(command), keys_of(command)
    shown = {
        key: EXAMPLES[key]
        for key, name in keys.items()
        if model.model_fields[name].default is not None and not key.endswith("_PATH")
    }
    assert len(shown) >= keys_with_defaults
    assert resolve(model, needed, shown, {})[0] == resolve(model, needed, {}, {})[0]


@pytest.mark.parametrize("command", READERS)
def test_the_commands_take_every_value_in_the_example_of_env(command: str, project: Path):
    resolve(load(command), {}, {key: EXAMPLES[key] for key in keys_of(command)}, READERS[command])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_for_env_in_the_docs_is_followed(page: Path, project: Path):
    for block in blocks(page, "ini"):
        values = dict(re.findall(r"^([A-Z][A-Z0-9_]+)=(.*)$", block.text, re.MULTILINE))
        (command,) = [command for command in READERS if set(values) <= set(keys_of(command))][:1]
        assert all(line.startswith("#") or "=" in line for line in block.text.splitlines() if line)
        resolve(load(command), {}, values, READERS[command])


def test_the_references_name_every_key_with_its_option_or_the_reason():
    for command in READERS:
        text = REFERENCES[command].read_text(encoding="utf-8")
        section = text.partition(f"## Read by {command}")[2].partition("\n## ")[0].splitlines()
        for key, name in keys_of(command).items():
            (row,) = [line for line in section if line.startswith("| `") and f"`{key}`" in line.split("|")[1]]
            assert f"`{flag(name)}`" in row, key
    rows = [line for line in ENVIRONMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for key, reason in load("train_gold").ignored_env.items():
        (row,) = [line for line in rows if line.startswith(f"| `{key}` |")]
        assert reason.split(" in the ")[0] in row.replace("`", ""), key
