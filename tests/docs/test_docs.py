"""The documentation is true: commands parse, links lead somewhere, tables are in step, skills and wheel install."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from core.cli import parse
from core.commands import COMMANDS, load
from core.commands.base import flag
from core.commands.project_config import read_project
from core.commands.resolve import resolve
from core.data.prompts import Prompt, PromptOptions, open_prompts
from core.teachers.providers import PROVIDERS
from tests.docs.generate import ROOT, default_of, main

SKILLS = sorted(path.parent for path in ROOT.glob("skills/*/SKILL.md"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("mcp_server/*.md"), *ROOT.glob("skills/**/*.md")])
OTHERS = {"accelerate", "cat", "cd", "claude", "codex", "echo", "gemini", "git", "grep", "iconv", "pip", "printf"}
OTHERS |= {"rnow", "source"}
"""Commands of others that the docs may name."""
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
BARE = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OPENAI_API_KEY": "test"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for _, kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


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


def home(page: Path) -> Path:
    """What commands in a page are relative to: its skill's folder, else the checkout."""
    return next((skill for skill in SKILLS if skill in page.parents), ROOT)


def script_arguments(words: list[str], folder: Path) -> tuple[str, list[str]] | None:
    """(command, arguments) of a line that runs one of our scripts, which must exist; None for other lines."""
    if words[:2] == ["accelerate", "launch"]:
        words = ["python", *words[next(place for place, word in enumerate(words) if word.endswith(".py")) :]]
    if words[0] not in ("python", "python3", ".venv/bin/python"):
        return None
    if words[1:3] == ["-m", "mcp_server"]:
        return "mcp_server", words[3:]
    if not words[1].endswith(".py"):
        return None
    script = folder / words[1]
    assert script.is_file(), f"{words[1]} does not exist"
    assert script.stem in COMMANDS, f"{words[1]} is no command"
    return script.stem, [re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", word) for word in words[2:]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds a config.yml, as users of `train_sft` do."""
    (tmp_path / "config.yml").write_text(blocks(ROOT / "skills/off-policy/SKILL.md", "yaml")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def check_options(command: str, arguments: list[str]) -> None:
    """Raises UsageError for a flag or a value that the command would refuse. What must be given, and may be in `.env`,
    counts as given there."""
    model = load(command)
    given = parse(command, model, arguments)
    if given is not None:
        needed = (name for name, info in model.model_fields.items() if info.is_required())
        in_dotenv = {key: "given" for name in needed for key in model.option(name).env_keys[:1]}
        resolve(model, {key: value for key, value in given.items() if key in model.model_fields}, {}, in_dotenv)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_the_docs_exists_and_takes_its_flags(page: Path):
    for block in blocks(page, "bash"):
        for words in commands(block):
            ours = script_arguments(words, home(page))
            if ours:
                check_options(*ours)
            elif words[0] == "make":
                targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
                assert set(words[1:]) <= targets
            else:
                assert words[:3] == ["python3", "-m", "venv"] or Path(words[0]).name in OTHERS, f"unknown: {words}"


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
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    folders = (page.parent, home(page))
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert any((folder / target).exists() for folder in folders), target
    for path in re.findall(r"`((?:core|scripts|skills|tests|references|assets)/[\w./-]*)`", text):
        assert any((folder / path).exists() for folder in (*folders, ROOT)), path


def test_architecture_has_a_line_for_every_file_of_the_library():
    tree = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[1]
    files = [path for path in (*ROOT.glob("core/**/*.py"), *ROOT.glob("mcp_server/*.py")) if path.stem != "__init__"]
    assert [path.name for path in files if not re.search(rf"^ +{path.name} ", tree, re.MULTILINE)] == []
    names = {path.name for path in ROOT.glob("**/*") if ".venv" not in path.parts}
    assert [name for name in re.findall(r"^ +(?:\w+/)*(\w+\.py)\b", tree, re.MULTILINE) if name not in names] == []


def test_option_tables_are_in_step(capsys: pytest.CaptureFixture[str]):
    assert main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(("skill", "command"), [("off-policy", "generate_teacher_data"), ("on-policy", "train_gold")])
def test_every_default_in_the_short_table_is_the_real_one(skill: str, command: str):
    model = load(command)
    text = (ROOT / "skills" / skill / "SKILL.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `--([\w-]+)` \| `?([^|`]+)`? \|", text, re.MULTILINE)
    assert len(rows) >= 7
    for option, default in rows:
        assert default.strip() == default_of(model.model_fields[option.replace("-", "_")]).strip("`"), option


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_project_file_in_the_docs_is_one(page: Path, tmp_path: Path):
    for number, block in enumerate(each for each in blocks(page, "yaml") if "dataset_type" in each):
        path = tmp_path / f"config{number}.yml"
        path.write_text(block, encoding="utf-8")
        found = [str(finding) for finding in read_project(path).findings if finding.level in ("error", "warning")]
        assert found == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_the_docs_is_python(page: Path):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


# ---- the keys of .env --------------------------------------------------------------------------------------------

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


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("command", READERS)
def test_the_commands_take_every_value_in_the_example_of_env(command: str):
    resolve(load(command), {}, {key: EXAMPLES[key] for key in keys_of(command)}, READERS[command])


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_for_env_in_the_docs_is_followed(page: Path):
    for block in blocks(page, "ini"):
        values = dict(re.findall(r"^([A-Z][A-Z0-9_]+)=(.*)$", block, re.MULTILINE))
        (command,) = [command for command in READERS if set(values) <= set(keys_of(command))][:1]
        assert all(line.startswith("#") or "=" in line for line in block.splitlines() if line)
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


def test_the_docs_speak_of_no_machine():
    for page in PAGES:
        assert not re.search(r"/(root|home|work|opt)/", page.read_text(encoding="utf-8")), page


# ---- the skills --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_a_skill_keeps_the_open_specification(skill: Path):
    validator = Path(sys.executable).with_name("agentskills")
    done = subprocess.run([validator, "validate", skill], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_the_frontmatter_and_size_of_a_skill(skill: Path):
    import yaml

    _, front, body = (skill / "SKILL.md").read_text(encoding="utf-8").split("---\n", 2)
    fields = yaml.safe_load(front)
    assert set(fields) <= {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    assert fields["name"] == skill.name
    assert 1 <= len(fields["description"]) <= 1024
    assert not set("<>") & set(fields["description"])
    assert len(fields["compatibility"]) <= 500
    assert all(isinstance(value, str) for value in fields["metadata"].values())
    assert re.fullmatch(r"[\w()*:.-]+( [\w()*:.-]+)*", fields["allowed-tools"])
    assert body.count("\n") < 500
    assert not any(path.is_symlink() for path in skill.rglob("*"))  # some assistants drop links when they copy


LAUNCHER = ROOT / "skills/off-policy/scripts/generate_teacher_data.py"
TRIGGERS = {
    "off-policy": (
        "distillation",
        "teacher model",
        "generate completions",
        "OpenRouter",
        "off-policy",
        "knowledge transfer",
    ),
    "on-policy": (
        "on-policy distillation",
        "GOLD",
        "train_gold",
        "distill across tokenizers",
        "make_student",
    ),
    "rollout-distill": (
        "distillation with tools",
        "teacher rollouts",
        "browser agent",
        "rnow test",
        "convert_rollouts",
    ),
}


@pytest.mark.parametrize("skill", TRIGGERS)
def test_a_skill_keeps_its_trigger_words(skill: str):
    text = (ROOT / "skills" / skill / "SKILL.md").read_text(encoding="utf-8")
    for word in TRIGGERS[skill]:
        assert f'"{word}"' in text.split("---\n")[1]


def test_the_sample_tools_answer_the_sample_prompts():
    folder = ROOT / "skills/rollout-distill/assets"
    rows = [orjson.loads(line) for line in (folder / "prompts.jsonl").read_bytes().splitlines()]
    assert len(rows) == len({row["messages"][-1]["content"] for row in rows}) == 12
    assert all(row["metadata"]["expected_answer"] for row in rows)
    tools = runpy.run_path(str(folder / "tools.py"))
    assert tools["calculate"]("4.2 * 3.5") == pytest.approx(14.7)
    assert tools["calculate"]("6.4 * 3.5") == pytest.approx(22.4)
    assert tools["convert_units"](26.2, "mile", "km") == pytest.approx(42.2, abs=0.05)
    with pytest.raises(ValueError, match="only"):
        tools["calculate"]("__import__('os').getcwd()")


@pytest.mark.parametrize("launcher", sorted(ROOT.glob("skills/*/scripts/*.py")), ids=lambda path: path.stem)
def test_every_launcher_is_the_same_file_under_the_name_of_its_script(launcher: Path):
    assert launcher.read_bytes() == LAUNCHER.read_bytes()
    assert (ROOT / "scripts" / launcher.name).is_file()
    assert os.access(launcher, os.X_OK)


def test_the_shipped_prompts_are_good_prompts():
    rows = [orjson.loads(line) for line in (ROOT / "skills/off-policy/assets/prompts.jsonl").read_bytes().splitlines()]
    assert len(rows) == len({row["prompt"] for row in rows}) == len({row["category"] for row in rows}) == 12


def test_the_sample_conversations_all_have_answers_and_cover_the_three_kinds():
    with open_prompts(str(ROOT / "skills/on-policy/assets/combined_12.json"), PromptOptions()) as read:
        rows = [row for row in read() if isinstance(row, Prompt)]
    assert len(rows) == len({row.messages[-1]["content"] for row in rows}) == 12
    assert all(row.answer for row in rows)
    assert {row.metadata["dataset_type"] for row in rows} == {"reasoning", "dialogue", "instruction"}


def test_the_skill_for_training_is_short_enough_to_be_read_whole():
    assert (ROOT / "skills/on-policy/SKILL.md").read_bytes().count(b"\n") < 200


# ---- the launcher ------------------------------------------------------------------------------------------------


@pytest.fixture
def mock() -> Iterator[str]:
    """The base URL of a local server that speaks OpenAI."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests/support/openai_mock_server.py", "--port", "0", "--latency", "fixed:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    assert server.stdout
    try:
        found = re.search(r"127\.0\.0\.1:(\d+)|\b(\d{4,5})\b", line := server.stdout.readline())
        assert found, line
        yield f"http://127.0.0.1:{found[1] or found[2]}/v1"
    finally:
        server.terminate()
        server.communicate(timeout=30)


def launch(script: Path, *arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=cwd,
        env={**BARE, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def test_the_launcher_works_from_another_folder_and_the_python_snippet_filters_its_output(mock: str, tmp_path: Path):
    prompts = ROOT / "skills/off-policy/assets/prompts.jsonl"
    done = launch(LAUNCHER, "--input", str(prompts), "--base-url", mock, "--model", "mock", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert orjson.loads(done.stdout)["rows"] == 12
    assert (tmp_path / "train.jsonl").read_bytes().count(b"\n") == 12

    (snippet,) = blocks(ROOT / "skills/off-policy/SKILL.md", "python")
    filtered = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True
    )
    rows = [orjson.loads(line) for line in (tmp_path / "train.jsonl").read_bytes().splitlines()]
    longer = [row for row in rows if len(row["messages"][-1]["content"]) > 100]
    assert filtered.stdout == f"{len(longer)} of 12 answers have more than 100 characters\n"
    assert [orjson.loads(line) for line in (tmp_path / "train_filtered.jsonl").read_bytes().splitlines()] == longer


def test_the_launcher_works_through_a_symlinked_skill_folder(tmp_path: Path):
    (tmp_path / "linked").symlink_to(ROOT / "skills" / "off-policy")
    done = launch(tmp_path / "linked/scripts/generate_teacher_data.py", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--max-cost" in done.stdout


def bare_copy(folder: Path) -> Path:
    return Path(shutil.copytree(ROOT / "skills/off-policy", folder / "off-policy")) / "scripts" / LAUNCHER.name


@pytest.mark.parametrize("variable", ["DISTILL_HOME", "CLAUDE_PLUGIN_ROOT", "PLUGIN_ROOT", "COPILOT_PLUGIN_ROOT"])
def test_a_bare_copy_finds_the_bundle_by_a_variable(variable: str, tmp_path: Path):
    done = launch(bare_copy(tmp_path), "--help", cwd=tmp_path, **{variable: str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "--max-cost" in done.stdout


def test_another_plugins_folder_in_the_environment_does_no_harm(tmp_path: Path):
    (tmp_path / "other/scripts").mkdir(parents=True)
    (tmp_path / "other/scripts" / LAUNCHER.name).write_text("raise SystemExit(9)", encoding="utf-8")
    done = launch(LAUNCHER, "--help", cwd=tmp_path, CLAUDE_PLUGIN_ROOT=str(tmp_path / "other"))
    assert done.returncode == 0


def test_a_bare_copy_alone_says_so_in_one_line(tmp_path: Path):
    done = launch(bare_copy(tmp_path), "--help", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "DISTILL_HOME" in done.stderr


def test_a_python_without_the_dependencies_hands_over_to_the_bundles_own(tmp_path: Path):
    home = tmp_path / "bundle"
    (home / ".venv/bin").mkdir(parents=True)
    (home / "core").mkdir()
    (home / "core/__init__.py").touch()
    (home / "scripts").mkdir()
    (home / "scripts" / LAUNCHER.name).write_text("import sys; print(sys.argv[1:])", encoding="utf-8")
    own = home / ".venv/bin/python"
    own.write_text(f'#!/bin/sh\necho handed over\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    own.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-S", "-E", LAUNCHER, "--flag", "a b"],  # -S: no site-packages
        env={**BARE, "DISTILL_HOME": str(home)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.stdout == "handed over\n['--flag', 'a b']\n", done.stderr


# ---- the wheel ---------------------------------------------------------------------------------------------------

HEAVY = (
    *("hf", "hf_model", "hf_states", "gguf", "scorer", "hf_scorer", "gguf_scorer", "tokenizer_loading"),
    *("api_scorer", "scoring_wire", "harness", "cached_lm", "language_models", "completer_lm", "closeness"),
)


def test_the_wheel_holds_one_package_whose_modules_import_one_another_only(tmp_path: Path):
    building = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    built = subprocess.run(building, capture_output=True, text=True, encoding="utf-8", env=dict(os.environ))
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("distill_kit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    installing = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*installing, tmp_path / "site", wheel], check=True)
    tops = {name.split("/")[0] for name in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"distill_kit"}
    assert any(name.endswith("licenses/LICENSE") for name in files)

    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in files
        if name.endswith(".py") and Path(name).stem not in HEAVY and not re.search("/(distillation|training)/", name)
    ]
    assert len(modules) > 20
    # -P and another folder: the checkout's core must not help
    code = f"import importlib, sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n" + "".join(
        f"importlib.import_module({module!r})\n" for module in modules
    )
    code += "print(sorted(name for name in sys.modules if name.split('.')[0] in ('core', 'torch', 'transformers')))"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
