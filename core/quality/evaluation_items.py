"""What must not stand in data to train on: the questions of evaluation tasks, and the texts of files that are named.

Of a task the question alone counts, as evaluations without choices and worked examples ask it: that is what gives an
answer away. All of its items, because --limit of an evaluation may take any.
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ..commands.check_data import CheckData
from ..commands.evaluate import SUITES, Evaluate
from ..data.prompts import BadRow, PromptOptions, open_records, prompts_of
from ..errors import InputError, MissingDependency, UsageError
from .rows import text_of

NEEDED = ("lm_eval", "datasets", "torch", "transformers")
HINT = ("--suite offline needs no network", "--tasks offline needs no network")
"""What lm_tasks advises, and how this command is told it."""


class Collects(Protocol):
    def add(self, source: str, place: str, text: str) -> None: ...


def names_of(options: CheckData) -> list[str]:
    """The names in --tasks, which may be separated by commas, each once."""
    names = [part.strip() for text in options.tasks for part in text.split(",")]
    return list(dict.fromkeys(filter(None, names)))


def check_installed(options: CheckData) -> None:
    """Raises MissingDependency for a package of the extra `eval`, where --tasks needs it."""
    for package in NEEDED if names_of(options) else ():
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, "--tasks", "eval")


def add_items(items: Collects, options: CheckData, note: Callable[[str], None]) -> None:
    """Every item of --tasks and --against.

    Raises UsageError: a task that nobody knows, whose data are not here and cannot be fetched, or that runs code; a
    file that cannot be read or holds no text.
    """
    for path in options.against:
        _add_file(items, path, options.prompt_key, note)
    if names := names_of(options):
        _add_tasks(items, names, note)


# ---- files ---------------------------------------------------------------------------------------------------------


def _add_file(items: Collects, path: Path, prompt_key: str, note: Callable[[str], None]) -> None:
    found = unread = 0
    first = ""
    with open_records(str(path)) as records:
        for place, text, problem in _texts(records(), prompt_key):
            if problem:
                unread, first = unread + 1, first or problem
            else:
                items.add(str(path), place, text)
                found += 1
    if not found:
        raise InputError(path, None, f"holds no text to compare with{f' ({first})' if first else ''}.")
    if unread:
        note(f"--against {path}: {unread:,} rows cannot be read and are not looked for, the first: {first}")


def _texts(records: Iterator[tuple[str, Any]], prompt_key: str) -> Iterator[tuple[str, str, str]]:
    """(place, what the user says, why there is nothing) of every row. A row {"text": ...} is that text."""
    for row, record in prompts_of(records, PromptOptions(prompt_key)):
        if not isinstance(row, BadRow):
            asked = [text_of(message) for message in row.messages if message["role"] == "user"]
            yield row.place, "\n".join(asked), ""
        elif isinstance(record, dict) and isinstance(record.get("text"), str) and record["text"].strip():
            yield row.place, record["text"], ""
        else:
            yield row.place, "", str(row)


# ---- tasks ---------------------------------------------------------------------------------------------------------


def _add_tasks(items: Collects, names: Iterable[str], note: Callable[[str], None]) -> None:
    from ..evaluation.lm_tasks import load_tasks  # imports torch and lm-eval
    from ..evaluation.suites import selected

    suites = [name for name in names if name in SUITES]
    tasks = [name for name in names if name not in SUITES]
    # Evaluate names a student; the tasks are the same for all.
    options = Evaluate(student="data", suite=suites or None, tasks=tasks or None)
    try:
        loaded = load_tasks(options, selected(options), note=note)
    except UsageError as error:
        if HINT[0] in str(error):
            raise UsageError(str(error).replace(*HINT)) from None
        raise
    for each in loaded:
        for number, text in enumerate(questions(each.task)):
            items.add(each.info.name, f"{each.info.name} item {number}", text)


def questions(task: Any) -> Iterator[str]:
    """What each item of one of lm-eval's tasks asks, without what its template writes around every one of them."""
    before, after = _around(task)
    for doc in task.eval_docs:
        yield _question(task, doc).removeprefix(before).removesuffix(after)


def _question(task: Any, doc: Any) -> str:
    """Tasks whose choices are whole texts have no question of their own; those that only score a text have it as the
    target."""
    ask = task.doc_to_decontamination_query if task.get_config("should_decontaminate") else task.doc_to_text
    text = ask(doc)
    if isinstance(text, str) and text.strip():
        return text
    if task.OUTPUT_TYPE == "multiple_choice":
        return "\n".join(str(choice) for choice in task.doc_to_choice(doc))
    return str(task.doc_to_target(doc))


def _around(task: Any) -> tuple[str, str]:
    """What the template of a task writes before and after its first and last field: "Question: " and "\\nAnswer:"."""
    own = task.get_config("should_decontaminate") and task.get_config("doc_to_decontamination_query")
    template = own or task.get_config("doc_to_text")
    if not isinstance(template, str) or "{{" not in template or "{%" in template:
        return "", ""
    return template[: template.index("{{")], template[template.rindex("}}") + 2 :]
