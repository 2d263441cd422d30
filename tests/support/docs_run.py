"""Follows a page as its reader would: the commands of its bash blocks, in order, in one folder that holds what the page
says the user has.

A command is run as it is written, by bash, through the launcher that it names. What differs:
- `scripts/`, `assets/`, `skills/` and `.venv/` are where the page's skill or checkout is, and the folder is elsewhere:
  as the skills tell their reader to do it.
- A teacher behind an API is a server on this machine: its address is put behind the script's name (`aimed`).
- What tests/support/docs_table.py says, each with its reason.
The home folder is empty, but for smollm2 as it was converted for transformers before, which takes half a minute.

An output that a page shows is a ```text block right behind the bash block that printed it. Its lines have to come, in
their order, among the lines that were printed, where numbers, durations and sizes are alike, "..." is anything, and
paths of this run are left out (`told`).
"""

import fnmatch
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from core.cli import parse
from core.commands import load
from core.teachers import backend_of
from core.teachers.providers import PROVIDERS
from tests.support.assistant import MODELS
from tests.support.docs_teacher import DocsTeacher, docs_teacher
from tests.support.mcp_servers import HttpServer
from tests.support.pages import Block, blocks, commands, home, lines_of_shell, name_of, script_arguments
from tests.support.running import ROOT, environment, small_server
from tests.support.scripted_chat import ScriptedChat

ASKS_A_CHAT = ("generate_teacher_data", "run_rollouts", "generate_synthetic", "teachers")
"""Commands whose teacher is named by --model, --backend and --base-url; that of others by --teacher-..."""
HERE = re.compile(r"(?<![\w./~-])(?=(?:scripts|assets|skills|mcp_server|\.venv)/)")


@dataclass(frozen=True)
class Rule:
    """What is done with some commands of the pages, and why.

    pages: a pattern of their names.   command: a regular expression, searched in the command as one line.
    run: False for what is not run here.   slow: it takes more than some seconds.   browser: it starts a Chromium.
    replace: texts in the command, and what stands there instead.   add: options put behind the script's name.
    code: the exit code that it has.
    """

    pages: str
    command: str
    why: str
    run: bool = True
    slow: bool = False
    browser: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    add: str = ""
    code: int = 0

    def fits(self, page: str, command: str) -> bool:
        return fnmatch.fnmatchcase(page, self.pages) and re.search(self.command, command) is not None


@dataclass(frozen=True)
class Step:
    """A command line of a page. text: on one line, as it is written.   block: that it stands in."""

    block: Block
    text: str
    rules: tuple[Rule, ...]

    @property
    def page(self) -> str:
        return name_of(self.block.page)

    @property
    def runs(self) -> bool:
        return all(rule.run for rule in self.rules)

    @property
    def slow(self) -> bool:
        return any(rule.slow or rule.browser for rule in self.rules)

    @property
    def browser(self) -> bool:
        return self.runs and any(rule.browser for rule in self.rules)

    @property
    def code(self) -> int:
        return next((rule.code for rule in self.rules if rule.code), 0)


@dataclass(frozen=True)
class Unseen:
    """A shown output that is not compared. first: its first line, as a regular expression."""

    pages: str
    first: str
    why: str

    def fits(self, output: Block) -> bool:
        first = output.text.splitlines()[0]
        return fnmatch.fnmatchcase(name_of(output.page), self.pages) and re.search(self.first, first) is not None


@dataclass
class Servers:
    """Addresses by the name that stands in braces in the table ("{teacher}"); each is started when it is wanted."""

    start: Callable[[str], str]
    started: dict[str, str] = field(default_factory=dict[str, str])

    def __getitem__(self, name: str) -> str:
        if name not in self.started:
            self.started[name] = self.start(name)
        return self.started[name]

    def fill(self, text: str) -> str:
        """The text with addresses in place of their names."""
        return re.sub(r"\{(teacher|chat|vllm|tiny|mcp)\}", lambda found: self[found[1]], text)


def start_server(name: str, stack: ExitStack, folder: Path) -> str:
    """Start a kind of teacher, until the stack is closed. Gives its address, or the folder of the model.

    teacher: answers, uses tools, writes questions.   chat: tells how sure it is of what it writes, and goes on with a
    begun answer.   vllm: scores given texts.   tiny: the model behind that.   mcp: an MCP server with some tools.
    """
    if name == "teacher":
        return stack.enter_context(docs_teacher(models_named(pages())))
    if name == "mcp":
        return stack.enter_context(HttpServer("http")).host
    if name == "chat":
        models, chat = DocsTeacher(tuple(models_named(pages()))), ScriptedChat(grades=None)
        answers = small_server(lambda request: models(request) if request.method == "GET" else chat(request))
        return stack.enter_context(answers).url
    from tests.support.scoring_server import scoring_server
    from tests.support.tiny_model import make_tiny_model

    make_tiny_model(folder, positions=4096)
    if name == "tiny":
        return str(folder)
    return stack.enter_context(scoring_server(folder, name=str(folder), max_logprobs=64)).url


@dataclass(frozen=True)
class Ran:
    """How a command of a page ended. printed: stdout and stderr, as they came."""

    step: Step
    command: str
    code: int
    printed: str

    def __str__(self) -> str:
        return f"{self.step.block}: {self.step.text}\nrun as: {self.command}\nexit code {self.code}\n{self.printed}"


@cache
def pages() -> list[Path]:
    """The pages that are followed."""
    skills = [*ROOT.glob("skills/*/SKILL.md"), *ROOT.glob("skills/*/references/*.md")]
    return sorted([ROOT / "README.md", ROOT / "mcp_server/README.md", *ROOT.glob("docs/**/*.md"), *skills])


def steps(page: Path, table: Sequence[Rule]) -> list[Step]:
    """The command lines of a page, with the rules of the table for each."""
    name = name_of(page)
    return [
        Step(block, text, tuple(rule for rule in table if rule.fits(name, text)))
        for block in blocks(page, "bash")
        for text in lines_of_shell(block.text)
    ]


def shown(page: Path) -> list[tuple[Block, Block]]:
    """(bash block, the output that a page shows of it)."""
    all_blocks = blocks(page)
    pairs: list[tuple[Block, Block]] = []
    for place, block in enumerate(all_blocks):
        if block.language == "text":
            before = [each for each in all_blocks[:place] if each.language == "bash"]
            assert before, f"{block}: a text block is an output, and no bash block stands before this one"
            pairs.append((before[-1], block))
    return pairs


def models_named(names: Sequence[Path]) -> set[str]:
    """Every model that a page's command asks a provider for."""
    found = {"anthropic/claude-sonnet-4", "gpt-5-nano"}
    for page in names:
        for block in blocks(page, "bash", "yaml", "ini"):
            found |= set(re.findall(r"(?:--model|-m|--teacher|--question-model|MODEL=)[ =]?([\w./:-]+)", block.text))
            found |= set(re.findall(r"(?:OPENROUTER_MODEL|TEACHER_MODEL_ID)=(\S+)", block.text))
    return found


def aimed(step: Step, command: str, servers: Servers, folder: Path) -> str:
    """The command with the address of a server on this machine, where it asks an API."""
    for words in commands(command):
        ours = script_arguments(words, home(step.block.page))
        if ours is None:
            continue
        name, arguments = ours
        given = parse(name, load(name), arguments) or {}
        wanted: list[str] = []
        if name in ASKS_A_CHAT:
            if given.get("base_url"):
                command = command.replace(given["base_url"], servers["teacher"])
                continue
            backend = given.get("backend") or usual_backend(name, given.get("model"), folder)
            if backend not in PROVIDERS:
                continue
            wanted = ["--base-url", servers["teacher"]]
            if not given.get("backend"):
                wanted += ["--backend", backend]
        elif given.get("teacher_backend") in PROVIDERS:
            url = servers["vllm" if PROVIDERS[given["teacher_backend"]].scoring else "chat"]
            if given.get("teacher_base_url"):
                command = command.replace(given["teacher_base_url"], url)
                continue
            wanted = ["--teacher-base-url", url]
        command = _behind_script(command, name, shlex.join(wanted))
    return command


def usual_backend(command: str, model: str | None, folder: Path) -> str:
    """How a command reaches a model when nothing is said of it. folder: that the command runs in."""
    if command == "teachers":
        return "openrouter"
    named = model or load(command).model_fields["model"].default
    return "hf" if (folder / named).exists() else backend_of(named)


def _behind_script(command: str, name: str, options: str) -> str:
    return (
        re.sub(rf"(scripts/{name}\.py)(?=\s|$)", lambda found: f"{found[1]} {options}", command) if options else command
    )


def command_of(step: Step, servers: Servers, folder: Path) -> str:
    """What bash is given."""
    command = step.text
    for rule in step.rules:
        for old, new in rule.replace:
            assert old in command, f"{step.block}: the table replaces {old!r}, which is not in {command!r}"
            command = command.replace(old, new)
    command = aimed(step, command, servers, folder)
    for rule in step.rules:
        if rule.add:
            command = re.sub(r"(scripts/\w+\.py)(?=\s|$)", lambda found, add=rule.add: f"{found[1]} {add}", command)
    return HERE.sub(lambda _: shlex.quote(f"{home(step.block.page)}/"), servers.fill(command))


def run(step: Step, servers: Servers, folder: Path, timeout_s: float) -> Ran:
    """Run a command of a page in the user's folder."""
    command = command_of(step, servers, folder)
    bin_ = str(Path(sys.executable).parent)
    house = folder.parent / "home"
    models = house / ".cache/distill/models"
    if not models.exists():
        models.parent.mkdir(parents=True)
        MODELS.mkdir(parents=True, exist_ok=True)
        models.symlink_to(MODELS)
    variables = environment(
        HOME=str(house),
        PATH=f"{bin_}:/usr/local/bin:/usr/bin:/bin",
        COLUMNS="120",
        DISTILL_SETUP="off",
        OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
    )
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"{step.block}: not done in {timeout_s} s: {command}\n{late.stdout}") from None
    return Ran(step, command, done.returncode, done.stdout)


# ---- outputs ---------------------------------------------------------------------------------------------------------

NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
UNITS = (
    (rf"{NUMBER} ?(?:ms|s|min|h|hours?|minutes?|seconds?|days?)\b", "TIME"),
    (rf"{NUMBER} ?(?:bytes|[kKMGT]i?B)\b", "SIZE"),
    (NUMBER, "N"),
)


def told(text: str, *places: Path) -> list[str]:
    """The lines of an output, without what differs from run to run. places: folders that are left out of paths."""
    for place in places:
        text = text.replace(f"{place}/", "").replace(str(place), ".")
    lines: list[str] = []
    for line in re.split(r"[\n\r]", text):
        for pattern, word in UNITS:
            line = re.sub(pattern, word, line)
        if line := " ".join(line.split()):
            lines.append(line)
    return lines


def missing_line(expected: str, printed: str, *places: Path) -> str | None:
    """The first line of a shown output that was not printed behind those before it; None where all were."""
    rest = told(printed, *places)
    for line in told(expected, *places):
        if line == "...":
            continue
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in line.split("...")), re.DOTALL)
        place = next((number for number, each in enumerate(rest) if pattern.fullmatch(each)), None)
        if place is None:
            return line
        rest = rest[place + 1 :]
    return None
