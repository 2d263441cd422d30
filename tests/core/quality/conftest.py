"""`check_data` through its command line, in this process."""

from typing import Protocol

import pytest

from core import cli
from tests.support.running import Outcome


class Check(Protocol):
    def __call__(self, *arguments: object) -> Outcome: ...


@pytest.fixture
def check_data(folder: object, capfd: pytest.CaptureFixture[str]) -> Check:
    """In an empty folder, always with --json."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        code, _ = cli.run("check_data", [*map(str, arguments), "--json", "--progress", "off"])
        captured = capfd.readouterr()
        return Outcome(int(code), captured.out, captured.err)

    return run
