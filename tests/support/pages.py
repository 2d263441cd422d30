"""Reads our Markdown pages: their fenced blocks, the commands in them, and what stands in `code` in their prose."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.cli import general_options, parse
from core.commands import COMMANDS, Command, load
from core.commands.base import flag
from core.commands.resolve import resolve
from tests.support.running import ROOT

SKILLS = sorted(path.parent for path in ROOT.glob("skills/*/SKILL.md"))
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("mcp_server/*.md"), *ROOT.glob("skills/**/*.md")]
)
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
OPERATOR = re.compile(r"[|&;]+|[<>]+")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. language: what stands behind the fence, or "".   line: of its fence, from 1."""

    page: Path
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """skills/off-policy/SKILL.md"""
    return page.relative_to(ROOT).as_posix()


def home(page: Path) -> Path:
    """What commands in a page are relative to: its skill's folder, else the checkout."""
    return next((skill for skill in SKILLS if skill in page.parents), ROOT)


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in their order; all, or those of some languages."""
    text = page.read_text(encoding="utf-8")
    found = [Block(page, kind, body, text[: at.start()].count("\n") + 1) for at, kind, body in _fences(text)]
    return [block for block in found if not languages or block.language in languages]


def _fences(text: str) -> Iterator[tuple[re.Match[str], str, str]]:
    for match in FENCE.finditer(text):
        indent, language, body = match.groups()
        yield match, language, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its fenced blocks and without the option tables that are made from the commands."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"<!-- options:.*?<!-- /options -->", "", text, flags=re.DOTALL)


def spans(page: Path) -> list[str]:
    """What stands between single backticks in a page's prose."""
    return [span.strip() for span in re.findall(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", prose(page))]


def lines_of_shell(block: str) -> list[str]:
    """The command lines of a bash block: continued lines joined, a loop as one, comments left out, single blanks where
    nothing is quoted."""
    found: list[str] = []
    depth = 0
    for line in block.replace("\\\n", " ").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if depth:
            found[-1] += ("; " if not found[-1].endswith(("do", "then")) else " ") + line
        else:
            found.append(line)
        depth += len(re.findall(r"^(?:for|while|if)\b", line)) - len(re.findall(r"^(?:done|fi)\b|; *done$", line))
    return [re.sub(r" {2,}", " ", line) for line in found]


def commands(block: str) -> Iterator[list[str]]:
    """The words of every command of a bash block, without comments, redirections and NAME=value before it."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        redirected = False
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                if words[:1] == ["do"]:
                    words = words[1:]
                if words and words[0] not in ("for", "done"):
                    yield words
                words, redirected = [], False
            elif set(word) <= set("<>"):
                redirected = True
            elif not redirected and (words or not re.fullmatch(r"[A-Z_]+=.*", word)):
                words.append(word)


def script_arguments(words: Sequence[str], folder: Path) -> tuple[str, list[str]] | None:
    """(command, arguments) of a line that runs one of our scripts, which must exist; None for other lines."""
    if list(words[:2]) == ["accelerate", "launch"]:
        words = ["python", *words[next(place for place, word in enumerate(words) if word.endswith(".py")) :]]
    if Path(words[0]).name not in ("python", "python3"):
        return None
    if list(words[1:3]) == ["-m", "mcp_server"]:
        return "mcp_server", list(words[3:])
    if not words[1].endswith(".py"):
        return None
    script = folder / words[1]
    assert script.is_file(), f"{words[1]} does not exist"
    assert script.stem in COMMANDS, f"{words[1]} is no command"
    return script.stem, [re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", word) for word in words[2:]]


def check_options(command: str, arguments: list[str]) -> None:
    """Raises UsageError for a flag or a value that the command would refuse. What must be given, and may be in `.env`,
    counts as given there."""
    model = load(command)
    given = parse(command, model, arguments)
    if given is not None:
        needed = (name for name, info in model.model_fields.items() if info.is_required())
        in_dotenv = {key: "given" for name in needed for key in model.option(name).env_keys[:1]}
        resolve(model, {key: value for key, value in given.items() if key in model.model_fields}, {}, in_dotenv)


def flags_of(model: type[Command]) -> dict[str, str]:
    """Every flag that a command takes -> the field that it sets ("" for one of all commands)."""
    found = {"--help": ""}
    for field, kind, _ in general_options(model):
        found[flag(field)] = ""
        if "bool" in str(kind):
            found[flag(field).replace("--", "--no-", 1)] = ""
    for field, info in model.model_fields.items():
        found[flag(field)] = field
        if "bool" in str(info.annotation):
            found[flag(field).replace("--", "--no-", 1)] = field
    return found
