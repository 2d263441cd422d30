"""The environment that launchers make in the user's data folder: real pip, real processes, a tiny package."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.install.small_bundle import Index, Place, files, python_that, small_bundle, until

pytestmark = pytest.mark.alone
OLD = "import sys; sys.version_info = (3, 8, 18, 'final', 0)"
NO_VENV = "import sys; sys.modules['ensurepip'] = None"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A plugin's copy, in a folder with a blank and letters beyond ASCII."""
    return small_bundle(tmp_path / "plug-ins é" / "1.0")


@pytest.fixture
def hello(bundle: Path) -> Path:
    return bundle / "skills/off-policy/scripts/hello.py"


def made(user: Place) -> bool:
    stamp = user.data / "env/distill.json"
    return stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8"))["state"] == "ready"


def test_the_first_start_makes_it_and_says_so_and_later_ones_are_silent(user: Place, bundle: Path, hello: Path):
    before = files(bundle)
    first = user.run(sys.executable, hello, "--flag", "a b", send="typed")
    assert (first.returncode, first.stdout) == (7, "1.0 ['--flag', 'a b'] typed"), first.stderr
    assert str(user.data / "env") in first.stderr
    assert "about 110 MB" in first.stderr
    assert "time: about a minute" in first.stderr
    second = user.run(sys.executable, hello)
    assert (second.returncode, second.stdout, second.stderr) == (7, "1.0 [] ", "")
    assert files(bundle) == before
    assert list(user.project.iterdir()) == []


def test_two_starts_at_once_make_it_once(user: Place, hello: Path, wheels: Index):
    wheels.gate.clear()
    one = user.begin(sys.executable, hello)
    until(lambda: wheels.asked)
    other = user.begin(sys.executable, hello)
    assert other.stderr
    assert "another start is installing the packages; waiting for it" in other.stderr.readline()
    wheels.gate.set()
    for start in (one, other):
        out, err = start.communicate(timeout=60)
        assert (start.returncode, out) == (7, "1.0 [] "), err
    assert wheels.asked.count("distill_test_tiny-1.0-py3-none-any.whl") == 1


def test_one_that_was_killed_half_way_is_mended(user: Place, hello: Path, wheels: Index):
    wheels.gate.clear()
    start = user.begin(sys.executable, hello)
    until(lambda: wheels.asked)
    for pid in processes_of(user):
        os.kill(pid, signal.SIGKILL)
    start.kill()
    start.communicate(timeout=60)
    assert not made(user)
    (user.data / "env/lib").rename(user.data / "env/lib-half-there")
    wheels.gate.set()
    again = user.run(sys.executable, hello)
    assert (again.returncode, again.stdout) == (7, "1.0 [] "), again.stderr
    assert "mending" in again.stderr


def processes_of(user: Place) -> list[int]:
    """Processes that install into the user's data folder: the installer, and pip."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, line = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(str(user.data)) in environment and (b"installer" in line or b"pip" in line):
            found.append(int(entry.name))
    assert len(found) == 2
    return found


@pytest.mark.slow
def test_whoever_waits_may_be_killed_and_the_next_start_finds_it_done(user: Place, hello: Path, wheels: Index):
    wheels.gate.clear()
    start = user.begin(sys.executable, hello)
    until(lambda: wheels.asked)
    start.kill()
    start.communicate(timeout=60)
    wheels.gate.set()
    until(lambda: made(user))
    after = user.run(sys.executable, hello)
    assert (after.returncode, after.stdout, after.stderr) == (7, "1.0 [] ", "")


def test_ctrl_c_ends_it_and_the_next_start_mends_it(user: Place, hello: Path, wheels: Index):
    wheels.gate.clear()
    start = user.begin(sys.executable, hello)
    until(lambda: wheels.asked)
    pids = processes_of(user)
    start.send_signal(signal.SIGINT)
    out, err = start.communicate(timeout=60)
    assert (start.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "hello: interrupted; the next start mends what is half done"
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    wheels.gate.set()
    assert user.run(sys.executable, hello).stdout == "1.0 [] "


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The launcher of the next version, which was tested with another version of the package."""
    return small_bundle(tmp_path / "2.0", constraint="distill-test-tiny==1.5") / "skills/off-policy/scripts/hello.py"


def test_a_new_version_of_the_bundle_brings_it_in_step_and_the_old_one_leaves_it_so(
    installed: Place, hello: Path, newer: Path
):
    assert installed.run(sys.executable, hello).stderr == ""
    updated = installed.run(sys.executable, newer)
    assert updated.stdout == "1.5 [] "
    assert "bringing them in step" in updated.stderr
    old = installed.run(sys.executable, hello)  # 1.5 is within its bounds, >=1,<2: else the two would take turns
    assert (old.stdout, old.stderr) == ("1.5 [] ", "")


def test_with_setup_off_two_lines_say_what_to_run(user: Place, hello: Path):
    done = user.run(sys.executable, hello, "--json", environment={"DISTILL_SETUP": "off"})
    assert done.returncode == 2
    why, line = done.stderr.splitlines()
    assert "DISTILL_SETUP=off" in why
    assert f"DISTILL_SETUP=on python3 '{hello.with_name('doctor.py')}'" in line
    assert json.loads(done.stdout) == {"status": "error", "error": f"{why.removeprefix('hello: error: ')}\n{line}"}
    assert not user.data.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PIP_FIND_LINKS": None}, r"no version that suits this Python .* of distill-test-tiny<2 and >=1"),
        (
            {
                "PIP_FIND_LINKS": None,
                "PIP_NO_INDEX": None,
                "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
                "PIP_RETRIES": "1",
            },
            "Connection refused",
        ),
    ],
)
def test_without_a_network_the_error_of_pip_and_the_line_to_run_are_shown(
    changes: dict[str, str | None], reason: str, installed: Place, hello: Path, newer: Path
):
    done = installed.run(sys.executable, newer, environment=changes)
    assert (done.returncode, done.stdout) == (2, "")
    why, line = done.stderr.splitlines()[-2:]
    assert re.search(reason, why)
    assert f"Then run: python3 {newer.with_name('doctor.py')}" in line
    assert "Traceback" not in done.stderr
    old = installed.run(sys.executable, hello, environment=changes)  # nothing was changed
    assert (old.returncode, old.stdout, old.stderr) == (7, "1.0 [] ", "")


def test_a_folder_that_cannot_be_written_is_named(user: Place, hello: Path):
    user.data.write_text("a file", encoding="utf-8")
    done = user.run(sys.executable, hello)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(user.data) in line
    assert "DISTILL_DATA=/some/folder" in line


def test_somebody_elses_folder_is_left_alone(user: Place, hello: Path):
    (user.data / "env").mkdir(parents=True)
    (user.data / "env/thesis.txt").write_text("years of work", encoding="utf-8")
    done = user.run(sys.executable, hello)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "not of our making" in line
    assert (user.data / "env/thesis.txt").read_text(encoding="utf-8") == "years of work"


@pytest.mark.slow
def test_it_lies_in_the_home_folder_where_nothing_else_is_said(user: Place, hello: Path):
    done = user.run(sys.executable, hello, environment={"DISTILL_DATA": None})
    assert done.stdout == "1.0 [] ", done.stderr
    assert (user.folder / "home/.local/share/distill/env/bin/python").exists()


@pytest.mark.slow
def test_an_old_python_looks_for_a_newer_one_on_the_path(user: Place, hello: Path, tmp_path: Path):
    old, new = python_that(tmp_path / "old", OLD), python_that(tmp_path / "new")
    (tmp_path / "bin").mkdir()
    for name, does in (("python3.13", "exit 127"), ("python3.12", f'exec "{new}" "$@"')):  # 127: of version managers
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    done = user.run(old, hello, environment={"PATH": f"{tmp_path / 'bin'}"})
    assert (done.returncode, done.stdout) == (7, "1.0 [] "), done.stderr


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (OLD, "version 3.8, and the PATH has no newer one"),
        (NO_VENV, "its modules venv and ensurepip are not installed"),
    ],
)
def test_where_no_python_will_do_two_lines_say_which_to_install(
    start: str, said: str, user: Place, hello: Path, tmp_path: Path
):
    done = user.run(python_that(tmp_path / "this", start), hello, environment={"PATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (2, "")
    why, line = done.stderr.splitlines()
    assert said in why
    assert "sudo apt install python3" in line


# ---- extras ------------------------------------------------------------------------------------------------------

INSTALL = (
    "import json, sys; sys.path.insert(0, sys.argv[1]); from core.installer import install\n"
    "print(json.dumps(install(sys.argv[1], sys.argv[3:], dry_run=sys.argv[2] == 'dry')))"
)


def installs(user: Place, python: Path, bundle: Path, *words: str) -> dict[str, object]:
    done = user.run(python, "-c", INSTALL, bundle, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_extra_goes_into_the_environment_and_is_brought_in_step_with_it(installed: Place, bundle: Path, newer: Path):
    python = installed.data / "env/bin/python"
    assert installs(installed, python, bundle, "dry", "data")["packages"] == ["distill-test-data>=1,<2"]
    assert installed.run(python, "-c", "import distill_test_data").returncode != 0
    assert installs(installed, python, bundle, "now", "data")["installed"] is True
    assert installed.run(python, "-c", "import distill_test_data").returncode == 0
    assert installs(installed, python, bundle, "now", "data")["packages"] == []
    (newer.parents[3] / "constraints.txt").write_text("distill-test-data==1.5", encoding="utf-8")
    assert installed.run(sys.executable, newer).returncode == 7
    assert installed.run(python, "-c", "import distill_test_data as d; print(d.version)").stdout == "1.5\n"


def test_an_extra_goes_into_a_virtual_environment_of_the_users_own(installed: Place, bundle: Path):
    own = installed.data.rename(installed.folder / "own") / "env"  # it has pip, and is not the one in the data folder
    plan = installs(installed, own / "bin/python", bundle, "now", "data")
    assert plan["place"] == str(own)
    assert installed.run(own / "bin/python", "-c", "import distill_test_data").returncode == 0
    assert not installed.data.exists()


def test_an_extra_that_there_is_not_is_answered_with_those_that_there_are(user: Place, bundle: Path):
    done = user.run(sys.executable, "-c", INSTALL, bundle, "now", "dat")
    assert done.stderr.splitlines()[-1].endswith('Unable: there is no extra "dat". There are: data, mcp')
