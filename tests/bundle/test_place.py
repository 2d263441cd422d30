"""The workspace that the server takes when nobody names one."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundle.bundle import Start, base, handshake
from tests.support.running import ROOT

CHOOSE = "from mcp_server.place import choose; it = choose(None); print(it.folder, it.why, it.is_ours, sep='|')"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the program that starts the server."""
    (tmp_path / "home").mkdir()
    project = tmp_path / "my project"
    project.mkdir()
    monkeypatch.chdir(project)
    return project


def chosen(cwd: Path, home: Path, **env: str) -> tuple[str, str, bool]:
    """(folder, why, whether it is ours) of a server that is started in a folder."""
    environment = base(cwd, home, PYTHONPATH=str(ROOT), **env)
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE],
        cwd=cwd,
        env=environment,
        capture_output=True,
        check=True,
        text=True,
        encoding="utf-8",
    )
    folder, why, is_ours = done.stdout.strip().split("|")
    return folder, why, is_ours == "True"


def test_the_current_folder_is_taken_before_all_others(project: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    place = chosen(other, tmp_path / "home", CLAUDE_PROJECT_DIR=str(project))
    assert place == (str(other), "the current folder", False)


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "core", Path("/"), "home"])
def test_not_the_bundle_nor_the_home_folder_nor_the_machine_but_where_the_assistant_is(
    cwd: Path | str, project: Path, tmp_path: Path
):
    home = tmp_path / "home"
    folder, why, is_ours = chosen(tmp_path / cwd, home)
    assert (folder, is_ours) == (str(project), False)
    assert why.startswith("the current folder of ")
    assert not list(home.iterdir())


@pytest.mark.parametrize("value", ["relative", "/nonexistent/folder", str(ROOT), "/"])
def test_claude_project_dir_comes_before_the_assistants_folder_where_it_is_one(
    value: str, project: Path, tmp_path: Path
):
    other, home = tmp_path / "other", tmp_path / "home"
    other.mkdir()
    assert chosen(ROOT, home, CLAUDE_PROJECT_DIR=str(other)) == (str(other), "CLAUDE_PROJECT_DIR", False)
    assert chosen(ROOT, home, CLAUDE_PROJECT_DIR=value)[0] == str(project)


def test_a_link_into_the_bundle_is_the_bundle(project: Path, tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to(ROOT / "skills")
    assert chosen(link, tmp_path / "home")[0] == str(project)


def test_where_there_is_none_a_folder_of_ours_is_made(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    monkeypatch.chdir("/")
    ours = home / ".local/share/distill/workspace"
    assert chosen(ROOT, home) == (str(ours), "the server was started in no project", True)
    assert ours.is_dir()
    data = tmp_path / "data"
    assert chosen(ROOT, home, DISTILL_DATA=str(data))[0] == str(data / "workspace")
    assert chosen(ROOT, home, XDG_DATA_HOME=str(data))[0] == str(data / "distill/workspace")


SERVER = [sys.executable, str(ROOT / "mcp_server/__main__.py"), "--toolsets", "data"]


def test_where_no_folder_can_be_made_one_line_says_what_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    (tmp_path / "data").write_text("a file", encoding="utf-8")
    env = base(Path("/"), tmp_path, DISTILL_DATA=str(tmp_path / "data"))
    done = subprocess.run(
        SERVER, cwd="/", env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 2
    assert "cannot be made" in done.stderr
    assert "Name one with --workspace or DISTILL_WORKSPACE" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("home", ["", "/"])  # of containers
def test_without_a_home_folder_one_line_says_what_to_name(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    env = {**base(Path("/"), tmp_path), "HOME": home}
    done = subprocess.run(
        SERVER, cwd="/", env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 2
    assert "no home folder (HOME). Name one with --workspace or DISTILL_WORKSPACE" in done.stderr
    assert "Traceback" not in done.stderr
    named = handshake(Start([*SERVER, "--workspace", str(tmp_path)], Path("/"), env))
    assert f"The workspace is {tmp_path} (as named)" in named.instructions


def test_a_checkout_is_a_workspace_where_it_is_named(tmp_path: Path):
    named = handshake(Start([*SERVER, "--workspace", "."], ROOT, base(ROOT, tmp_path)))
    assert named.instructions.endswith(f"The workspace is {ROOT} (as named).")
