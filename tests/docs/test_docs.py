"""The pages are true: commands parse, links lead somewhere, and what the prose names exists: options, their values and
defaults, paths, scripts, keys. (test_run_docs.py runs the commands.)"""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from core.commands import COMMANDS, load
from core.commands.base import choices
from core.commands.project_config import read_project
from core.teachers.providers import PROVIDERS
from tests.docs.generate import ROOT, default_of, main
from tests.support.pages import (
    FENCE,
    PAGES,
    SKILLS,
    blocks,
    check_options,
    commands,
    flags_of,
    home,
    name_of,
    prose,
    script_arguments,
    spans,
)

OTHERS = {"accelerate", "cat", "cd", "claude", "codex", "cp", "echo", "gemini", "git", "grep", "iconv", "pip", "printf"}
OTHERS |= {"copilot", "head", "ls", "mkdir", "npx", "opencode", "rnow", "source", "tail", "wc"}
"""Commands of others that the docs may name."""


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_the_docs_exists_and_takes_its_flags(page: Path):
    for block in blocks(page, "bash"):
        for words in commands(block.text):
            ours = script_arguments(words, home(page))
            if ours:
                check_options(*ours)
            elif words[0] == "make":
                targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
                assert set(words[1:]) <= targets, block
            else:
                known = words[:3] == ["python3", "-m", "venv"] or Path(words[0]).name in OTHERS
                assert known, f"{block}: unknown: {words}"


def test_a_wrong_flag_in_the_docs_would_be_found():
    arguments = next(commands("FOO=1 python scripts/generate_teacher_data.py \\\n  --input x.txt --modle y > out.txt"))
    assert arguments[-2:] == ["--modle", "y"]
    ours = script_arguments(arguments, ROOT)
    assert ours
    with pytest.raises(ValueError, match="--model"):
        check_options(*ours)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_in_help_parse(command: str):
    for example in load(command).examples:
        ours = script_arguments(shlex.split(example), ROOT)
        assert ours
        check_options(*ours)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_and_every_path_in_the_docs_exists(page: Path):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    folders = (page.parent, home(page))
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert any((folder / target).exists() for folder in folders), target
    for path in re.findall(r"`((?:core|scripts|skills|tests|references|assets|mcp_server)/[\w./-]*)", text):
        stands_for_any = Path(path).name == "NAME.py"
        assert stands_for_any or any((folder / path).exists() for folder in (*folders, ROOT)), path


def test_architecture_has_a_line_for_every_file_of_the_library():
    tree = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[1]
    files = [path for path in (*ROOT.glob("core/**/*.py"), *ROOT.glob("mcp_server/*.py")) if path.stem != "__init__"]
    assert [path.name for path in files if not re.search(rf"^ +{path.name} ", tree, re.MULTILINE)] == []
    names = {path.name for path in (*ROOT.glob("*"), *ROOT.glob("[!.]*/**/*"))}  # not those of .venv
    assert [name for name in re.findall(r"^ +(?:\w+/)*(\w+\.py)\b", tree, re.MULTILINE) if name not in names] == []


def test_option_tables_are_in_step(capsys: pytest.CaptureFixture[str]):
    assert main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_project_file_in_the_docs_is_one(page: Path, tmp_path: Path):
    for number, block in enumerate(each for each in blocks(page, "yaml") if "dataset_type" in each.text):
        path = tmp_path / f"config{number}.yml"
        path.write_text(block.text, encoding="utf-8")
        found = [str(finding) for finding in read_project(path).findings if finding.level in ("error", "warning")]
        assert found == [], block


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_the_docs_is_python(page: Path):
    for block in blocks(page, "python"):
        compile(block.text, str(block), "exec")


def test_the_docs_speak_of_no_machine():
    for page in PAGES:
        assert not re.search(r"/(root|home|work|opt)/", page.read_text(encoding="utf-8")), page


# ---- what the prose names --------------------------------------------------------------------------------------------

OF_OTHERS = {
    "--init": "Docker",
    "--logprobs-mode": "vLLM",
    "--jinja": "llama-server",
    "--max-logprobs": "vLLM",
    "--consent": "gemini",
    "--enable-auto-tool-choice": "vLLM",
    "--headless": "Playwright's MCP server",
    "--isolated": "Playwright's MCP server",
    "--multi_gpu": "accelerate",
    "--num_processes": "accelerate",
    "--strict": "claude plugin validate",
    "--tool-call-parser": "vLLM",
}
"""Options of other programs that the prose names."""
FILES = {"tools.py", "rewards.py", "tasks.py", "NAME.py"}
"""Python files that a user writes; and NAME.py, which stands for any."""
SEEDS = {
    "train_gpu_hf.sh",
    "train_mac_local.sh",
    "run_distill.py",
    "prepare_dataset.py",
    "nemo_opd_demo.py",
    "generate_custom_domain.py",
}
"""Scripts that stand in our pages as what others know under that name."""
KEYS_OF_OTHERS = {
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "OMP_NUM_THREADS",
    "PIP_INDEX_URL",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
}
"""Variables that others read."""
OPTION = re.compile(r"(?<![\w-])(--[a-z][\w-]*\w)(?![\w-])(?:[ =]([\w.]+))?")


def commands_of(page: Path) -> list[str]:
    """The commands that a page speaks of; for a skill's reference, those of its skill too."""
    text = page.read_text(encoding="utf-8")
    named = [command for command in COMMANDS if re.search(rf"\b{command}\b", text)]
    skill = home(page)
    return [*named, *(path.stem for path in skill.glob("scripts/*.py") if path.stem in COMMANDS)]


@cache
def flags_of_command(command: str) -> dict[str, str]:
    return flags_of(load(command))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_in_the_prose_is_one_of_a_command_that_the_page_is_about(page: Path):
    tables = [flags_of_command(command) for command in commands_of(page)]
    known = set().union(*tables) | set(OF_OTHERS)
    unknown = {option for span in spans(page) for option, _ in OPTION.findall(span) if option not in known}
    assert unknown == set()


def only(command: str, field: str) -> set[str]:
    """The words that a field takes; empty for one that takes any text or number."""
    info = load(command).model_fields[field]
    return set() if str in get_args(info.annotation) else set(choices(info))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_word_behind_an_option_in_the_prose_is_one_that_it_takes(page: Path):
    for span in spans(page):
        for option, value in OPTION.findall(span):
            takers = [(command, flags_of_command(command).get(option)) for command in commands_of(page)]
            allowed = [only(command, field) for command, field in takers if field]
            if value and allowed and all(allowed) and not value.isupper():
                assert any(value in each for each in allowed), f"`{span}`: {option} takes {allowed[0]}"


def tables(page: Path) -> Iterator[list[tuple[str, str]]]:
    """(option, default) of the rows of each table in a page whose second column is Default."""
    for table in re.findall(r"^\| *Option *\| *Default *\|.*\n\|[-| :]+\n((?:\|.*\n?)+)", prose(page), re.MULTILINE):
        found = re.findall(r"^\| `(--[\w-]+)[^|]*\| ([^|]*?) *\|", table, re.MULTILINE)
        assert len(found) == table.count("\n"), f"{name_of(page)}: a row without an option:\n{table}"
        yield found


def is_default(shown: str, real: str) -> bool:
    """Whether a table's cell says the default, with or without its unit."""
    bare = real.strip("`")
    return shown.replace("`", "").partition(" ")[0] == bare or shown.strip("`") == bare


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_default_in_a_table_is_the_real_one(page: Path):
    for rows in tables(page):
        wrong: dict[str, list[str]] = {}
        for command in commands_of(page):
            fields = flags_of_command(command)
            if all(fields.get(option) for option, _ in rows):
                model = load(command)
                wrong[command] = [
                    f"{option}: {default}"
                    for option, default in rows
                    if not is_default(default, default_of(model.model_fields[fields[option]]))
                ]
        assert wrong, f"no command has all of {rows}"
        assert [] in wrong.values(), wrong


def test_the_tables_of_the_skills_are_found():
    counted = {skill.name: sum(len(rows) for rows in tables(skill / "SKILL.md")) for skill in SKILLS}
    assert counted["off-policy"] >= 5
    assert counted["on-policy"] >= 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_script_in_the_prose_is_a_command_or_a_file_that_is_known(page: Path):
    if page.name in ("ARCHITECTURE.md", "CHANGELOG.md"):
        return  # they speak of the code, whose files ARCHITECTURE's tree lists
    for span in spans(page):
        for path in re.findall(r"(?<![\w./-])[\w.-][\w./-]*\.(?:py|sh)\b", span):
            name = Path(path).name
            own = {each.name for each in (*ROOT.glob("scripts/*"), *home(page).glob("*/*"), *page.parent.glob("*"))}
            assert name in own | FILES | SEEDS or (ROOT / path).exists(), f"{path} in `{span}`"


@cache
def keys_in_code() -> set[str]:
    """Every word in the code that could be a variable's name."""
    folders = ("core", "mcp_server", "skills")
    texts = (path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {key for text in texts for key in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", text)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_variable_in_the_prose_is_read_by_somebody(page: Path):
    known = keys_in_code() | {provider.key for provider in PROVIDERS.values()} | KEYS_OF_OTHERS
    for command in COMMANDS:
        model = load(command)
        known |= {key for name in model.model_fields for key in model.option(name).env_keys} | set(model.ignored_env)
    named = {
        key for span in spans(page) for key in re.findall(r"(?<![\w-])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![\w.-])", span)
    }
    assert named - known == set()
