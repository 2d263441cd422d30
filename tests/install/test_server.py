"""The MCP server as clients start it: with a Python that has no packages, from a folder of theirs."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.install.small_bundle import ROOT, Index, Place, files, small_bundle, until

SERVED = """\
import importlib.metadata as m
def main(name):
    print(name, m.version("distill-test-mcp"))
"""
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
}


def test_a_python_without_packages_goes_on_as_the_one_that_has_them(later: Place, bare: Path, plugin: Path):
    before = files(plugin)
    workspace = later.folder / "workspace"
    workspace.mkdir()
    server = plugin / "mcp_server/__main__.py"
    done = later.run(bare, server, "--workspace", workspace, send=json.dumps(HELLO) + "\n")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["result"]["serverInfo"]["name"]
    assert files(plugin) == before


def test_with_setup_off_two_lines_say_what_to_run_and_stdout_stays_clean(later: Place, bare: Path, plugin: Path):
    changes = {"DISTILL_DATA": str(later.folder / "none"), "DISTILL_SETUP": "off"}
    done = later.run(bare, plugin / "mcp_server/__main__.py", send=json.dumps(HELLO) + "\n", environment=changes)
    assert (done.returncode, done.stdout) == (2, "")
    why, line = done.stderr.splitlines()
    assert why.startswith("mcp_server: error: the packages that distill needs are not installed")
    assert f"DISTILL_SETUP=on python3 '{plugin / 'skills/off-policy/scripts/doctor.py'}'" in line


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """The door of a small server, which needs a package of its own."""
    root = small_bundle(tmp_path / "bundle")
    (root / "core/cli.py").write_text(SERVED, encoding="utf-8")
    (root / "mcp_server").mkdir()
    shutil.copy2(ROOT / "mcp_server/__main__.py", root / "mcp_server/__main__.py")
    return root / "mcp_server/__main__.py"


@pytest.mark.alone
def test_a_client_that_loses_patience_finds_it_made_at_its_next_start(user: Place, server: Path, wheels: Index):
    wheels.gate.clear()
    start = user.begin(sys.executable, server)
    until(lambda: wheels.asked)
    start.kill()
    out, _ = start.communicate(timeout=60)
    assert out == ""
    wheels.gate.set()
    again = user.run(sys.executable, server)  # waits for what the first one began
    assert (again.returncode, again.stdout) == (0, "mcp_server 1.0\n"), again.stderr
    assert wheels.asked.count("distill_test_mcp-1.0-py3-none-any.whl") == 1


def test_a_shim_as_distill_python_is_started_once(installed: Place, server: Path):
    shim, starts = installed.folder / "python", installed.folder / "starts"
    real = installed.data / "env/bin/python"
    shim.write_text(f'#!/bin/sh\necho >> "{starts}"\nexec "{real}" "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    done = installed.run("timeout", "20", sys.executable, server, environment={"DISTILL_PYTHON": str(shim)})
    assert (done.returncode, done.stdout) == (0, "mcp_server 1.0\n"), done.stderr
    assert len(starts.read_text(encoding="utf-8").splitlines()) == 2  # asked for its packages, then run


@pytest.mark.slow
@pytest.mark.alone
def test_the_whole_bundle_installs_itself_from_an_index(later: Place, bare: Path, plugin: Path):
    """With pip as this machine has it set up, which has to have an index."""
    later.environment["DISTILL_DATA"] = str(later.folder / "data")
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CONFIG_FILE", "PIP_NO_CACHE_DIR"):
        del later.environment[name]
    later.environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    launcher = plugin / "skills/off-policy/scripts/generate_teacher_data.py"
    done = later.run(bare, launcher, "--help")
    assert done.returncode == 0, done.stderr
    assert "--max-cost" in done.stdout
    assert done.stderr.splitlines()[-1] == "distill: done"
    workspace = later.folder / "workspace"
    workspace.mkdir()
    line = [bare, plugin / "mcp_server/__main__.py", "--workspace", workspace]
    served = later.run(*line, send=json.dumps(HELLO) + "\n")
    assert served.returncode == 0, served.stderr
    assert json.loads(served.stdout)["id"] == 1
