"""What the tests of the documentation share."""

from pathlib import Path

import pytest

CONFIG = """\
project_name: x
dataset_type: sft
data: {train_file: train.jsonl, batch_size: 2, val_split: 0.1}
model: {path: smollm2, qlora_rank: 8}
trainer: {num_epochs: 1, learning_rate: 0.0001}
"""


@pytest.fixture
def project(folder: Path) -> Path:
    """The current folder, which holds a config.yml, as users of `train_sft` have one."""
    (folder / "config.yml").write_text(CONFIG, encoding="utf-8")
    return folder
