"""Which tasks an evaluation runs: the presets, tasks by name, and the names nearest to one that nobody knows."""

import difflib
import importlib.util
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..commands.evaluate import Evaluate
from ..errors import MissingDependency

OPD = {
    "arc_easy": "Grade-school science questions, multiple choice (ARC, the easy set).",
    "arc_challenge": "Grade-school science questions that word overlap does not answer (ARC, the challenge set).",
    "hellaswag": "Which ending a description of an everyday scene has.",
    "truthfulqa_mc1": "Questions that people often answer wrongly: the one true answer is preferred.",
    "truthfulqa_mc2": "The same questions: the share of probability that falls on true answers.",
}
REASONING = {
    "gsm8k": "Grade-school word problems in mathematics; the last number counts.",
    "ifeval": "Instructions whose fulfilment a program can check, such as a length or a format.",
}
IFEVAL_NEEDS = ("langdetect", "immutabledict", "nltk")


@dataclass(frozen=True)
class Selected:
    """A task to run.

    task: its name in lm-eval or in a folder of tasks.   suite: the preset that brought it, None where it was named.
    about: one line for people, "" where nothing is known.
    """

    task: str
    suite: str | None
    about: str


def selected(options: Evaluate) -> list[Selected]:
    """The tasks of all suites, then those that were named; each once, and a suite's where it is both.

    Raises MissingDependency for IFEval without the packages that its checks need.
    """
    chosen = [Selected(task, suite, about) for suite in options.suites for task, about in tasks_of(suite).items()]
    known = {**OPD, **REASONING, **offline_tasks()}
    chosen += [Selected(task, None, known.get(task, "")) for task in options.tasks or []]
    once: dict[str, Selected] = {}
    for one in chosen:
        once.setdefault(one.task, one)
    if "ifeval" in once:
        _check_ifeval()
    return list(once.values())


def tasks_of(suite: str) -> dict[str, str]:
    """Tasks of a preset, with a line about each."""
    return {"opd": OPD, "reasoning": REASONING, "offline": offline_tasks()}[suite]


def offline_folder() -> Path:
    """The folder of the tasks of `offline`, for lm-eval's TaskManager."""
    return Path(__file__).parent / "offline"


def offline_tasks() -> dict[str, str]:
    """The tasks in that folder, with what each says about itself."""
    found: dict[str, str] = {}
    for path in sorted(offline_folder().glob("*.yaml")):
        # BaseLoader reads lm-eval's "!function" as the text behind it, and calls nothing.
        task = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
        found[task["task"]] = task["metadata"]["about"]
    return found


def fixed_choice(task: str, of: int, options: Evaluate) -> list[int] | None:
    """Numbers of the --limit items that are asked of a task with so many, ascending: the same in every run with this
    --seed. None: all of them."""
    if options.limit is None or options.limit >= of:
        return None
    return sorted(random.Random(f"{options.seed}/{task}").sample(range(of), options.limit))


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """At most three known names that look like this one, the nearest first; upper and lower case are the same."""
    by_key = {one.casefold(): one for one in known}
    return [by_key[key] for key in difflib.get_close_matches(name.casefold(), list(by_key), n=3, cutoff=0.6)]


def _check_ifeval() -> None:
    missing = [package for package in IFEVAL_NEEDS if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingDependency(" and ".join(missing), "the task ifeval", "eval")
