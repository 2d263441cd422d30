"""Fixtures for all tests: the mock server, and a folder in which the commands run for real."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

from core import cli
from tests.support.running import KEY, Mock, Outcome, ended, start

settings.register_profile("whatever the machine does", deadline=None)
settings.load_profile("whatever the machine does")

UNDISTURBED = {"test_check_data.py", "test_doctor.py", "test_train_gold_api.py", "test_train_sft.py"}
"""Journeys that hold beside others: they count no processes, and kill none but their own at moments of their choice."""


LONG = (
    "journeys/test_mcp.py",
    "journeys/test_mcp_bad_input.py",
    "jobs/test_store.py",
    "tools/test_browser_pages.py",
    "tools/test_browser.py",
    "journeys/test_train_gold_api.py",
    "docs/test_run_docs.py",
    "mcp_server/test_confirm.py",
    "journeys/test_train_sft.py",
    "training/test_gguf_export.py",
    "training/test_gold.py",
    "training/test_folder.py",
    "teachers/test_chat_teacher.py",
    "synthetic/test_generate.py",
    "synthetic/test_reading.py",
    "teachers/test_api_scorer_real.py",
)
"""Files that take longest, longest first: a worker that came to one last would keep the others waiting."""


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts or counts processes (browsers, containers, jobs that are killed): they run apart. What takes
    longest begins first."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(f"{item.path.parent.name}/{item.path.name}", len(LONG)))
    for item in items:
        disturbed = item.path.parent.name in ("jobs", "tools", "journeys") and item.path.name not in UNDISTURBED
        if item.get_closest_marker("browser") or disturbed:
            item.add_marker(pytest.mark.alone)


def pytest_collection() -> None:
    gc.disable()  # a quarter of the time that the imports take


def pytest_collection_finish() -> None:
    """What was imported stays: no search for garbage need look at all of it again."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def mock_process() -> Iterator[Mock]:
    mock = Mock("--latency", "fixed:0.002", "--tokens", "12", "--retry-after", "none")
    yield mock
    mock.stop()


@pytest.fixture
def mock(mock_process: Mock) -> Mock:
    """A teacher that answers at once, with all its options and counters fresh."""
    mock_process.reset()
    return mock_process


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one; no key and no proxy in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name.lower().endswith("_proxy") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    return tmp_path


class Generate(Protocol):
    def __call__(self, *arguments: str) -> Outcome: ...


@pytest.fixture
def generate(folder: Path, capfd: pytest.CaptureFixture[str]) -> Generate:
    """`generate_teacher_data` through its command line, within this process; always with --json."""

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        code, _ = cli.run("generate_teacher_data", [*arguments, "--json"])
        captured = capfd.readouterr()
        return Outcome(int(code), captured.out, captured.err)

    return run


@pytest.fixture
def ask(generate: Generate, mock: Mock) -> Generate:
    """`generate`, with the mock as the teacher and prompts.jsonl as the input."""

    def run(*arguments: str) -> Outcome:
        options = list(arguments)
        for name, value in (("--input", "prompts.jsonl"), ("--base-url", mock.base_url), ("--model", mock.model)):
            if name not in arguments:
                options += [name, value]
        return generate(*options)

    return run


@pytest.fixture
def script(folder: Path) -> Generate:
    """`scripts/generate_teacher_data.py` as a process of its own, with a key in its environment."""

    def run(*arguments: str) -> Outcome:
        return ended(start(folder, *arguments, OPENAI_API_KEY=KEY, OPENROUTER_API_KEY=KEY))

    return run


@pytest.fixture
def roll(folder: Path, capfd: pytest.CaptureFixture[str]) -> Generate:
    """`run_rollouts` through its command line, within this process; always with --json."""

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        code, _ = cli.run("run_rollouts", [*arguments, "--json"])
        captured = capfd.readouterr()
        return Outcome(int(code), captured.out, captured.err)

    return run
