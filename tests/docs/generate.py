"""Writes the option tables of the pages and of the skills' references from the command models, and the JSON schema of
domain files from their model.

    python -m tests.docs.generate            write them
    python -m tests.docs.generate --check    exit 1 and name the files that are out of step

A table stands between `<!-- options:COMMAND -->` and `<!-- /options -->`.
"""

import json
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from core.cli import GENERAL, general_options
from core.commands import Command, load
from core.commands.base import choices, flag
from core.synthetic.domain import domain_schema

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "skills" / "on-policy" / "references" / "domain.schema.json"
BLOCK = re.compile(r"(<!-- options:(\w+) -->\n).*?(<!-- /options -->)", re.DOTALL)


def pages() -> list[Path]:
    """The Markdown files that may hold tables."""
    written = [ROOT / "README.md", ROOT / "mcp_server/README.md"]
    return [*written, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("skills/*/references/*.md"))]


def rewritten(text: str) -> str:
    """The text with every table made anew."""
    return BLOCK.sub(lambda found: found[1] + tables(found[2]) + found[3], text)


def tables(name: str) -> str:
    """The options of a command as Markdown: a table per group, in the order of `--help`."""
    model = load(name)
    fields = model.ordered_fields()
    parts: list[str] = []
    for group, members in groupby(fields, key=lambda item: model.option(item[0]).group):
        rows = [row(model, field, info) for field, info in members]
        parts.append(table(group, rows))
    parts.append(table(GENERAL, general(model)))
    return "\n" + "\n".join(parts) + "\n"


def table(group: str, rows: list[tuple[str, str, str]]) -> str:
    lines = [f"**{group}**", "", "| Option | Default | Meaning |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {option} | {default} | {meaning} |" for option, default, meaning in rows)]) + "\n"


def row(model: type[Command], field: str, info: FieldInfo) -> tuple[str, str, str]:
    option = model.option(field)
    names = f"`{flag(field)}`" + (f", `{option.short}`" if option.short else "")
    meaning = info.description or ""
    if allowed := choices(info):
        meaning += " One of " + ", ".join(f"`{value}`" for value in allowed) + "."
    if option.env_keys:
        meaning += f" Environment: {', '.join(f'`{key}`' for key in option.env_keys)}."
    return names, default_of(info), plain(meaning)


def default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value: Any = info.default
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{','.join(value) if isinstance(value, list) else value}`"


def general(model: type[Command]) -> list[tuple[str, str, str]]:
    """The options that a command has in common with all others."""
    rows: list[tuple[str, str, str]] = []
    for field, kind, meaning in general_options(model):
        allowed = choices(FieldInfo(annotation=kind))
        if allowed:
            meaning += " One of " + ", ".join(f"`{value}`" for value in allowed) + "."
        default = "`auto`" if allowed else "off" if bool in get_args(kind) else "none"
        rows.append((f"`{flag(field)}`", default, plain(meaning)))
    return rows


def plain(text: str) -> str:
    """Text for a table's cell: one line, no column or tag of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    if arguments and not check:
        print(f"unknown: {' '.join(arguments)}. There is only --check.", file=sys.stderr)
        return 2
    drifted = 0
    wanted = {page: rewritten(page.read_text(encoding="utf-8")) for page in pages()}
    wanted[SCHEMA] = json.dumps(domain_schema(), indent=2, ensure_ascii=False) + "\n"
    for page, after in wanted.items():
        before = page.read_text(encoding="utf-8") if page.exists() else ""
        if before != after:
            drifted += 1
            print(
                f"{page.relative_to(ROOT)}: " + ("out of step with the options. Run: make docs" if check else "written")
            )
            if not check:
                page.write_text(after, encoding="utf-8")
    return 1 if check and drifted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
