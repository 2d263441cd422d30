"""What the installer does to an environment that is there, step by step in this process; pip is not started."""

import errno
import json
import shutil
import sys
from pathlib import Path

import pytest

from core import bootstrap, installer
from core.data import secrets
from tests.install.small_bundle import small_bundle


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(small_bundle(tmp_path / "bundle"))


@pytest.fixture
def half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment on another disk whose making was ended; all its packages look as if they were there."""
    monkeypatch.setenv("DISTILL_DATA", str(tmp_path / "data"))
    disk = tmp_path / "disk"
    for name in ("tiny", "mcp", "data"):
        info = disk / f"lib/python3.11/site-packages/distill_test_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: distill-test-{name}\nVersion: 1.0\n")
    (disk / "distill.json").write_text(json.dumps({"state": "making", "extras": ["data"]}), encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/env").symlink_to(disk)
    return disk


def test_one_that_is_half_done_is_emptied_where_it_lies(root: str, half_done: Path, monkeypatch: pytest.MonkeyPatch):
    def venv(*_: object) -> None:
        raise installer.Unable("stopped here")

    monkeypatch.setattr(installer, "_venv", venv)
    said: list[str] = []
    with pytest.raises(installer.Unable, match="stopped here"):
        installer.make(root, said.append)
    assert [path.name for path in half_done.iterdir()] == ["distill.json"]
    assert bootstrap.stamp() == {"state": "making", "extras": ["data"]}
    assert "size: about 430 MB" in said[1]  # 110 for every command, 320 for data


def test_too_little_room_is_said_before_pip_starts(root: str, half_done: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(installer.SIZES_MB, "data", 10**9)
    with pytest.raises(installer.Unable, match="Make room"):
        installer.make(root, lambda _: None)


def test_killed_while_it_is_emptied_it_is_known_for_ours(root: str, half_done: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(folder: Path, **_: object) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                path.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        installer.make(root, lambda _: None)
    assert bootstrap.stamp()["state"] == "making"


def test_what_cannot_be_removed_is_named(root: str, half_done: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(folder: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(installer.shutil, "rmtree", refused)
    with pytest.raises(installer.Unable, match=r"cannot write .*lib: Permission denied"):
        installer.make(root, lambda _: None)


def test_a_disk_without_locks_is_named(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setenv("DISTILL_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(installer.fcntl, "flock", no_locks)
    with pytest.raises(installer.Unable, match=r"No locks available\. Name another folder"):
        installer.make(root, lambda _: None)


def test_pip_gets_no_keys(monkeypatch: pytest.MonkeyPatch):
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "MY_KEY_2", "PIP_SOME_TOKEN", "SOMETHING"):
        monkeypatch.setenv(name, "value")
        assert bool(installer.SECRET.fullmatch(name)) is (secrets.CREDENTIAL.search(name) is not None) or "PIP_" in name
    line = [sys.executable, "-c", "import os; print(*os.environ, sep='\\n')"]
    code, names = installer._watched(line, None, lambda _: None, lambda: None)  # pyright: ignore[reportPrivateUsage]
    assert code == 0
    assert {"PATH", "PIP_SOME_TOKEN", "SOMETHING"} <= set(names)
    assert not {"OPENAI_API_KEY", "HF_TOKEN", "MY_KEY_2"} & set(names)
