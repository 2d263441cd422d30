"""A skill's launcher in every shape in which it can lie on a disk, started by a Python that has no packages."""

import ast
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core import bootstrap
from tests.install.small_bundle import ROOT, Place, files, python_that, small_bundle

LAUNCHER = ROOT / "skills/off-policy/scripts/generate_teacher_data.py"


def test_every_launcher_is_the_same_file_under_the_name_of_its_script():
    launchers = sorted(ROOT.glob("skills/*/scripts/*.py"))
    assert len(launchers) > 20
    for launcher in launchers:
        assert launcher.read_bytes() == LAUNCHER.read_bytes(), launcher
        assert (ROOT / "scripts" / launcher.name).is_file()
        assert os.access(launcher, os.X_OK)


@pytest.mark.parametrize("path", [LAUNCHER, ROOT / "core/bootstrap.py", ROOT / "mcp_server/__main__.py"], ids=str)
def test_what_starts_first_is_python_3_8(path: Path):
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_requirements_are_read_as_a_toml_parser_reads_them():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert bootstrap.declared(str(ROOT)) == {"": project["dependencies"], **project["optional-dependencies"]}


def test_every_module_that_is_looked_for_belongs_to_a_requirement():
    import importlib.metadata

    owners = importlib.metadata.packages_distributions()
    for extra, modules in bootstrap.MODULES.items():
        needed = {bootstrap.package_name(each) for each in bootstrap.declared(str(ROOT))[extra]}
        assert {bootstrap.package_name(owners[module][0]) for module in modules} == needed


@pytest.mark.parametrize(
    ("version", "requirement", "within"),
    [
        ("5.4.0", "cyclopts>=5,<6", True),
        ("5", "cyclopts>=5.0.0,<6", True),
        ("4.20", "cyclopts>=5,<6", False),
        ("6.0", "cyclopts>=5,<6", False),
        ("2.13.0+cpu", "torch>=2.8,<2.14", True),
        ("2.14.0rc1", "torch>=2.8,<2.14", False),
        ("3.10", "orjson>=3.9,<4", True),
        ("1.0", "any", True),
    ],
)
def test_whether_a_version_is_within_bounds(version: str, requirement: str, within: bool):
    assert bootstrap.is_within(version, requirement) is within


# ---- where it lies -----------------------------------------------------------------------------------------------


@pytest.fixture
def user(later: Place) -> Place:
    return later


def works(done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode == 0, done.stderr
    assert "--max-cost" in done.stdout
    assert done.stderr == ""


def test_in_a_checkout(user: Place, bare: Path):
    works(user.run(bare, LAUNCHER, "--help"))


def test_in_a_plugins_copy_into_which_nothing_may_be_written(user: Place, bare: Path, plugin: Path):
    before = files(plugin)
    launcher = plugin / "skills/off-policy/scripts" / LAUNCHER.name
    works(user.run(bare, launcher, "--help"))
    works(user.run(sys.executable, launcher, "--help"))  # one that has the packages
    done = user.run(
        bare,
        launcher,
        "--base-url",
        "http://127.0.0.1:9/v1",
        "--model",
        "x",
        "--dry-run",
        *("--input", plugin / "skills/off-policy/assets/prompts.jsonl"),
    )
    assert done.returncode == 0, done.stderr
    assert files(plugin) == before
    assert list(user.project.iterdir()) == []


def test_through_a_linked_skill_folder(user: Place, bare: Path, plugin: Path):
    linked = user.folder / "linked"
    linked.symlink_to(plugin / "skills/off-policy")
    works(user.run(bare, linked / "scripts" / LAUNCHER.name, "--help"))


def skill_alone(folder: Path) -> Path:
    """The launcher in a copy of a skill's folder, as `skills add` makes it."""
    copy = shutil.copytree(ROOT / "skills/off-policy", folder / ".agents/skills/off-policy")
    return copy / "scripts" / LAUNCHER.name


def test_in_a_skills_folder_alone_one_line_says_how_to_get_the_rest(user: Place, bare: Path):
    done = user.run(bare, skill_alone(user.project), "--help")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "install the whole repository as a plugin, or set DISTILL_HOME to a checkout" in line


@pytest.mark.parametrize("variable", ["DISTILL_HOME", "CLAUDE_PLUGIN_ROOT", "PLUGIN_ROOT", "COPILOT_PLUGIN_ROOT"])
def test_a_skills_folder_alone_finds_the_bundle_by_a_variable(variable: str, user: Place, bare: Path, plugin: Path):
    works(user.run(bare, skill_alone(user.folder), "--help", environment={variable: str(plugin)}))


def test_a_distill_home_that_is_none_is_said(user: Place, bare: Path):
    done = user.run(bare, LAUNCHER, "--help", environment={"DISTILL_HOME": str(user.folder)})
    assert (done.returncode, done.stdout) == (2, "")
    assert f"DISTILL_HOME={user.folder} holds no distill bundle" in done.stderr


def test_another_plugins_folder_in_the_environment_does_no_harm(user: Place, bare: Path):
    other = planted(user.folder / "other")
    done = user.run(bare, skill_alone(user.project), "--help", environment={"CLAUDE_PLUGIN_ROOT": str(other)})
    assert (done.returncode, done.stdout) == (2, "")


def planted(folder: Path) -> Path:
    """A project with files of the same names as ours, which end with code 9 when they are run."""
    for path in (folder / "scripts" / LAUNCHER.name, folder / "core/bootstrap.py"):
        path.parent.mkdir(parents=True)
        path.write_text("raise SystemExit(9)", encoding="utf-8")
    return folder


def test_a_skill_in_a_project_runs_nothing_of_the_folders_around_it(user: Place, bare: Path, plugin: Path):
    launcher = skill_alone(user.project)
    for folder in (user.project, user.folder):
        planted(folder)
        (folder / "skills/off-policy").mkdir(parents=True)
        (folder / "skills/off-policy/SKILL.md").touch()
    works(user.run(bare, launcher, "--help", environment={"CLAUDE_PLUGIN_ROOT": str(plugin)}))


# ---- which Python ------------------------------------------------------------------------------------------------


def test_the_environment_of_make_is_used_where_there_is_one(user: Place, bare: Path, tmp_path: Path):
    root = small_bundle(tmp_path / "checkout")
    (root / ".venv").symlink_to(Path(sys.prefix))
    (root / "scripts/hello.py").write_text("import sys; print(sys.argv[1:], sys.prefix)", encoding="utf-8")
    done = user.run(bare, root / "skills/off-policy/scripts/hello.py", "a b")
    assert done.stdout == f"['a b'] {root / '.venv'}\n", done.stderr


def test_a_script_beside_that_environment_hands_over_to_it(user: Place, bare: Path):
    done = user.run(bare, ROOT / "scripts/generate_teacher_data.py", "--help")
    works(done)


def test_without_it_the_script_says_in_one_line_how_to_make_it(user: Place, bare: Path, plugin: Path):
    shutil.copy2(ROOT / "Makefile", plugin / "Makefile")
    script = plugin / "scripts/generate_teacher_data.py"
    changes = {"DISTILL_DATA": str(user.folder / "none"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = user.run(bare, script, "--help", environment=changes)
    (plugin / "Makefile").unlink()
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f"Run: make -C '{plugin}' .venv" in line


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("/nowhere/python", "is no program"),
        ("sleep", "does not run as a Python"),
        ("OLD", "is Python 3.8, and 3.11 or newer is needed"),
        ("BARE", r"lacks packages. Run: "),
    ],
)
def test_distill_python_that_will_not_do_is_said(named: str, said: str, user: Place, bare: Path, tmp_path: Path):
    if named == "OLD":
        named = str(python_that(tmp_path / "old", "import sys; sys.version_info = (3, 8, 18, 'final', 0)"))
    named = str(bare) if named == "BARE" else named
    done = user.run(sys.executable, LAUNCHER, "--help", environment={"DISTILL_PYTHON": named})
    assert (done.returncode, done.stdout) == (2, "")
    assert f"DISTILL_PYTHON={named} " in done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_distill_python_comes_first(user: Place, tmp_path: Path):
    root = small_bundle(tmp_path / "bundle")
    (root / "pyproject.toml").write_text(
        (root / "pyproject.toml").read_text(encoding="utf-8").replace("distill-test-tiny>=1,<2", "pytest>=1"),
        encoding="utf-8",
    )
    (root / "scripts/hello.py").write_text("import sys; print(sys.executable)", encoding="utf-8")
    launcher = root / "skills/off-policy/scripts/hello.py"
    assert user.run(sys.executable, launcher).stdout == f"{sys.executable}\n"
    python = Path(sys.executable).with_name("python")
    assert user.run(sys.executable, launcher, environment={"DISTILL_PYTHON": str(python)}).stdout == f"{python}\n"


def test_looking_for_modules_runs_nothing_of_the_current_folder(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for module in (*bootstrap.MODULES[""], "mcp", "warnings", "contextlib"):
        Path(f"{module}.py").write_text("print('of the project')", encoding="utf-8")
    assert not bootstrap.has_modules(str(bare), ["mcp"])
    assert capfd.readouterr() == ("", "")


def test_pythons_are_not_looked_for_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in bootstrap.NAMES:
        Path(name).write_text("#!/bin/sh\n", encoding="utf-8")
        Path(name).chmod(0o755)
    monkeypatch.setenv("PATH", f".:{tmp_path}/none:")
    assert not any(os.path.samefile(os.path.dirname(python), tmp_path) for python in bootstrap.others())


def test_without_a_home_folder_one_line_names_the_variable(user: Place, bare: Path, plugin: Path):
    changes = {"DISTILL_DATA": None, "HOME": ""}
    done = user.run(bare, plugin / "skills/off-policy/scripts" / LAUNCHER.name, "--help", environment=changes)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "DISTILL_DATA=/some/folder" in line


@pytest.mark.alone
def test_signals_and_stdin_reach_the_script(user: Place, bare: Path, plugin: Path, tmp_path: Path):
    root = Path(shutil.copytree(plugin, tmp_path / "bundle"))
    (root / "scripts/show.py").write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print(sys.stdin.readline(), flush=True)\n"
        "signal.pause()\n",
        encoding="utf-8",
    )
    with subprocess.Popen(
        [bare, root / "skills/off-policy/scripts/show.py"],
        env=user.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("typed\n")
        process.stdin.flush()
        assert process.stdout.readline() == "typed\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 5
