"""What is wrong with a file of rows to train on, and what is in it: the whole file, read once, a row at a time."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from ..commands.project_config import DatasetType, Finding, Level
from ..errors import InputError
from .jsonlines import read_lines
from .keys import KeyCounts
from .prompts import check_file
from .sft_row import ROLES, has_schemas, is_texts, kind_of_value, part_text, problems_of

FIRST = 20
"""So many rows with problems of a level are named; of problems that stop no run, ALIKE of each kind."""
ALIKE = 3
MOST_KINDS = 1000


@dataclass
class Lint:
    """What a file of rows holds.

    findings: of the first 20 rows with problems of each level, one a row and level; `named` counts them.
    bad_rows: rows with problems, by level.   kinds: problems by level and kind ("messages[]: no content").
    duplicates: rows that stood before, byte for byte.
    with_calls, with_results, with_schemas, with_thinking: rows that have such.
    rewards: names of reward functions in the rows.
    longest: characters of text in the longest row, and its line.
    """

    path: Path
    rows: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])
    named: Counter[Level] = field(default_factory=Counter[Level])
    bad_rows: Counter[Level] = field(default_factory=Counter[Level])
    kinds: Counter[tuple[Level, str]] = field(default_factory=Counter[tuple[Level, str]])
    duplicates: int = 0
    roles: Counter[str] = field(default_factory=Counter[str])
    with_calls: int = 0
    with_results: int = 0
    with_schemas: int = 0
    with_thinking: int = 0
    rewards: set[str] = field(default_factory=set[str])
    longest: tuple[int, int] = (0, 0)

    @property
    def errors(self) -> list[Finding]:
        """Those of the first 20 rows that cannot be used."""
        return [finding for finding in self.findings if finding.level == "error"]

    def add(self, line: int | None, level: Level, texts: list[str]) -> None:
        """Count the problems of one row that have one level."""
        self.bad_rows[level] += 1
        seldom = False
        for text in texts:
            kind = (level, kind_of(text))
            if kind in self.kinds or len(self.kinds) < MOST_KINDS:
                self.kinds[kind] += 1
                seldom = seldom or self.kinds[kind] <= ALIKE
        if (level == "error" or seldom) and self.named[level] < FIRST:
            self.named[level] += 1
            more = f"; and {len(texts) - 3} more" if len(texts) > 3 else ""
            place = str(self.path) if line is None else f"{self.path}:{line}"
            self.findings.append(Finding(place=place, level=level, text="; ".join(texts[:3]) + more))

    def about(self) -> list[str]:
        """Lines for a person: what is in the rows, and how often each problem occurs."""
        roles = ", ".join(f"{count:,} {role}" for role, count in self.roles.most_common())
        lines = [
            f"  messages    {roles or 'none'}",
            f"  tools       {self.with_calls:,} rows with tool calls, {self.with_results:,} with results, "
            f"{self.with_schemas:,} with schemas",
            f"  thinking    {self.with_thinking:,} rows",
            f"  longest     {self.longest[0]:,} characters (line {self.longest[1]})",
        ]
        if self.duplicates:
            lines.append(f"  duplicates  {self.duplicates:,} rows stood before, byte for byte")
        for level in ("error", "warning", "rnow"):
            if self.bad_rows[level] > self.named[level]:
                lines.append(f"  {level:<11} {self.bad_rows[level]:,} rows, of which {self.named[level]} are named")
            kinds = [(kind, count) for (of, kind), count in self.kinds.most_common() if of == level]
            lines += [f"    {count:>8,}  {kind}" for kind, count in kinds[:FIRST]]
        return lines


def lint(path: Path, dataset_type: DatasetType = "sft") -> Lint:
    """All problems of a file of rows. Raises InputError for what is no readable file of JSON Lines."""
    check_file(path)
    if path.suffix.lower() not in ("", ".jsonl", ".ndjson"):
        raise InputError(
            path, None, "rows to train on are JSON Lines, an object with messages a line (train.jsonl), as "
            "generate_teacher_data and convert_rollouts write them."
        )  # fmt: skip
    found = Lint(path)
    seen = KeyCounts()
    with open(path, "rb") as file:
        if file.read(3) == b"\xef\xbb\xbf":
            found.add(1, "rnow", ["a byte order mark, which `rnow run` does not take for JSON"])
    for number, line in read_lines(path):
        found.rows += 1
        found.duplicates += seen.add(hashlib.blake2b(line, digest_size=8).hexdigest()) > 0
        row = parsed(line)
        if isinstance(row, str):
            found.add(number, "error", [row])
            continue
        by_level: dict[Level, list[str]] = {}
        for level, text in problems_of(row, dataset_type):
            by_level.setdefault(level, []).append(text)
        for level, texts in by_level.items():
            found.add(number, level, texts)
        take_facts(found, number, row)
    if not found.rows:
        found.add(None, "error", ["no rows"])
    return found


def parsed(line: bytes) -> dict[str, Any] | str:
    """A line's row, or what is wrong with it."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as problem:
            byte = line[problem.start]
            return f"not UTF-8 (byte 0x{byte:02x} at position {problem.start + 1})"
        return f"not JSON: {error.msg} at column {error.colno}"
    return row if isinstance(row, dict) else f"not an object, but {kind_of_value(row)}"


def take_facts(found: Lint, number: int, row: dict[str, Any]) -> None:
    """Count what is in a row."""
    messages = row.get("messages")
    characters = 0
    calls = results = thinking = False
    for message in messages if type(messages) is list else ():
        if type(message) is not dict:
            continue
        role, content = message.get("role"), message.get("content")
        if type(role) is str and (role in ROLES or len(found.roles) < 20):
            found.roles[role] += 1
        if type(content) is str:
            characters += len(content)
            thinking = thinking or (role == "assistant" and content.lstrip().startswith("<think>"))
        elif type(content) is list:
            characters += sum(len(text) for part in content if (text := part_text(part)) is not None)
        if type(reasoning := message.get("reasoning_content")) is str and reasoning:
            characters += len(reasoning)
            thinking = True
        calls = calls or bool(message.get("tool_calls"))
        results = results or role == "tool"
    tools = row.get("tools")
    found.with_calls += calls
    found.with_results += results
    found.with_thinking += thinking
    found.with_schemas += has_schemas(tools)
    rewards = row.get("rewards")
    if rewards and is_texts(rewards) and len(found.rewards) < MOST_KINDS:
        found.rewards.update(rewards)
    if characters > found.longest[0]:
        found.longest = characters, number


@lru_cache(maxsize=4096)
def kind_of(text: str) -> str:
    """A problem without what differs from row to row: places and the user's values."""
    text = re.sub(r"\[\d+\]", "[]", text)
    return re.sub(r"0x\w+|\b\d+\b", "N", re.sub(r'"[^"]*"(, )?', '"..."', text))
