"""What several tests of installing start from."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import bootstrap
from tests.install.small_bundle import ROOT, Index, Place, index, python_that, small_bundle

SHIPPED = ("core", "mcp_server", "scripts", "skills", "pyproject.toml", "constraints.txt", "converter.txt")


@pytest.fixture
def wheels(tmp_path: Path) -> Iterator[Index]:
    with index(tmp_path / "wheels") as served:
        yield served


@pytest.fixture
def user(tmp_path: Path, wheels: Index) -> Place:
    """A user's machine on which nothing of ours is installed."""
    return Place(tmp_path / "user", wheels.url)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder after the first start of a small bundle."""
    folder = tmp_path_factory.mktemp("made")
    hello = small_bundle(folder / "bundle") / "skills/off-policy/scripts/hello.py"
    with index(folder / "wheels") as served:
        first = Place(folder / "user", served.url)
        done = first.run(sys.executable, hello)
    assert done.returncode == 7, done.stderr
    return first.data


@pytest.fixture
def installed(user: Place, made_once: Path) -> Place:
    """A user's machine after a first start of a small bundle."""
    shutil.copytree(made_once, user.data, symlinks=True)
    return user


# ---- the whole bundle --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python without packages."""
    return python_that(tmp_path_factory.mktemp("bare") / "python")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose environment is there: the packages of the Python that runs the tests, and a true stamp."""
    folder = tmp_path_factory.mktemp("data")
    python_that(folder / "env")
    (site,) = folder.glob("env/lib/python3*/site-packages")
    own = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join(own), encoding="utf-8")
    stamp = {
        "state": "ready",
        "bundles": {bootstrap.digest(str(ROOT)): []},
        "extras": [],
        "python": os.path.realpath(folder / "env/bin/python"),
    }
    (folder / "env/distill.json").write_text(json.dumps(stamp), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an assistant keeps of a plugin: a copy without .git and .venv, in a folder with a blank and an accent."""
    root = tmp_path_factory.mktemp("cache") / "plug-ins é" / "0.1.0"
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, root / name)
    return root


@pytest.fixture
def later(tmp_path: Path, data: Path) -> Place:
    """A user's machine on which the packages of the whole bundle are installed."""
    place = Place(tmp_path / "user", "")
    place.environment["DISTILL_DATA"] = str(data)
    return place
