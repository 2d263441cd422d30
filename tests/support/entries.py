"""Rows as checks of data see them, without a file."""

from collections.abc import Iterable
from typing import Any

from core.data.prompts import PromptOptions, prompts_of
from core.quality.rows import Entry, entry_of


def entries(rows: Iterable[Any]) -> list[Entry]:
    """Rows of a data.jsonl."""
    records = ((f"data.jsonl:{number}", row) for number, row in enumerate(rows, 1))
    return [entry_of(row, record) for row, record in prompts_of(records, PromptOptions())]


def pairs(*texts: tuple[str, str]) -> list[Entry]:
    """Prompts and their answers."""
    return entries({"prompt": prompt, "answer": answer} for prompt, answer in texts)
