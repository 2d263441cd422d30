"""The lines that tell a user what to install."""

import sys
from pathlib import Path

import pytest

from core import errors
from core.errors import MissingDependency, install_line, pip_line
from tests.support.running import ROOT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILL_LAUNCHER", raising=False)


def test_a_launcher_is_named_as_it_was_typed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT / "skills/on-policy")
    monkeypatch.setenv("DISTILL_LAUNCHER", "scripts/train_gold.py")
    assert install_line("train") == "python3 scripts/doctor.py --install train"
    monkeypatch.chdir(ROOT)  # where that path leads to another file, which is as good
    assert install_line("train") == "python3 scripts/doctor.py --install train"


def test_a_script_of_a_checkout_is_named_with_the_python_that_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["scripts/train_gold.py"])
    monkeypatch.setattr(sys, "executable", str(ROOT / "some folder/bin/python"))
    assert install_line("eval") == "'some folder/bin/python' scripts/doctor.py --install eval"


def test_another_python_in_the_same_folder_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("python3", "python3.13"):
        (tmp_path / name).write_text(name, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python").symlink_to("python3.13")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3.13"))
    assert pip_line("x") == "python -m pip install x"


def test_a_process_that_nobody_typed_names_a_launcher():
    assert install_line("data") == f"python3 {ROOT}/skills/off-policy/scripts/doctor.py --install data"


def test_the_wheel_has_no_scripts_and_names_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(errors, "ROOT", tmp_path)
    assert install_line("train").endswith(" -m pip install 'distill-kit[train]'")


def test_a_missing_package_is_told_with_its_extra_or_with_a_line():
    assert str(MissingDependency("torch", "This", "train")).endswith("--install train")
    assert str(MissingDependency("wandb", "This", pip_line("wandb"))).endswith(" -m pip install wandb")
