"""Tasks of lm-eval, ours and the user's: found by name, loaded with their data, each with a fixed choice of items."""

import random
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from ..commands.evaluate import Evaluate
from ..errors import DistillError, UsageError, pip_line
from .quiet import quiet
from .results import TaskInfo
from .suites import Selected, fixed_choice, nearest, offline_folder

FEWSHOT_SEED = 1234
"""lm-eval's own, to which --seed is added."""
LOCAL = ("json", "csv", "parquet", "arrow", "text", "pandas", "sql", "xml")
"""Kinds of files that `datasets` reads without the Hub."""


@dataclass(frozen=True)
class LoadedTask:
    """task: lm-eval's.   items: numbers of the items that are asked, ascending; None: all of them."""

    task: Any
    info: TaskInfo
    items: list[int] | None


def load_tasks(
    options: Evaluate,
    selected: Sequence[Selected],
    every_model_chats: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> list[LoadedTask]:
    """The tasks with their data, a group or tag as the tasks in it, each task once.

    every_model_chats: all models have a chat template, which `--chat-template auto` asks.   note: tells the user.
    Raises UsageError: a name that nobody knows, data that are not here and cannot be fetched, a package that a task
    needs, a task that runs what models write, a task about pictures or sound.
    """
    folders = [offline_folder()] + ([options.tasks_dir] if options.tasks_dir else [])
    if options.tasks_dir and not options.tasks_dir.is_dir():
        raise UsageError(f"--tasks-dir {options.tasks_dir} is no folder.")
    seed_everything(options)
    loaded: dict[str, LoadedTask] = {}
    with quiet(), _hub():
        manager = _manager([one.task for one in selected], folders, note)
        for one in selected:
            if one.task not in manager.all_tasks:
                raise UsageError(_unknown(one.task, manager.all_tasks, options.tasks_dir))
            for task in _load(manager, one.task):
                if task.task_name not in loaded:
                    _configure(task, options, note)
                    loaded[task.task_name] = _loaded(task, one, options, every_model_chats)
    return list(loaded.values())


def seed_everything(options: Evaluate) -> None:
    """As lm-eval's command line does before it loads tasks and before it asks a model."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    torch.manual_seed(FEWSHOT_SEED + options.seed)


def fewshot_seed(options: Evaluate) -> int:
    """Of the choice of solved examples: lm-eval's own where --seed is 0, which is the default."""
    return FEWSHOT_SEED + options.seed


# ---- by name -----------------------------------------------------------------------------------------------------


def _manager(names: Sequence[str], folders: list[Path], note: Callable[[str], None]) -> Any:
    """lm-eval's TaskManager, over as few folders as the names need: reading all 14,000 tasks takes ten seconds."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.tasks.__file__).parent
    # The folder of lm-eval that is called like the task.
    likely = {folder for folder in root.iterdir() for name in names if f"{name}_".startswith(f"{folder.name}_")}
    for some in ([], sorted(likely)):
        manager = TaskManager(include_path=[*some, *folders], include_defaults=False)
        if all(_complete(name, manager.task_index) for name in names):
            return manager
    note("looking through all tasks that lm-eval knows")
    return TaskManager(include_path=list(folders))


def _complete(name: Any, index: dict[str, Any]) -> bool:
    """Whether a task, or a group with all that it names, is in an index. A tag may stand in any folder."""
    from lm_eval.tasks._index import Kind

    entry = index.get(name) if isinstance(name, str) else None
    if entry is None or entry.kind == Kind.TAG:
        return False
    if entry.kind != Kind.GROUP:
        return True
    members = (entry.cfg or {}).get("task")
    return isinstance(members, list) and all(_complete(member, index) for member in members)


def _unknown(name: str, known: Sequence[str], folder: Path | None) -> str:
    near = nearest(name, known)
    text = f"no task is called {name}. " + (
        f"Similar ones: {', '.join(near)}." if near else "lm-eval has none like it."
    )
    for path in sorted(folder.glob("**/*.yaml")) if folder else []:
        if problem := _unreadable(path):
            text += f" {path} cannot be read: {problem}"
    return text


def _unreadable(path: Path) -> str | None:
    """Why lm-eval passes over a file."""
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        TaskIndex.process_cfg(load_yaml(path, resolve_func=False), path, {})
    except Exception as error:  # whatever YAML and lm-eval raise
        return first_line(error)
    return None


# ---- with their data ---------------------------------------------------------------------------------------------


def _load(manager: Any, name: str) -> list[Any]:
    try:
        return list(manager.load([name])["tasks"].values())
    except ModuleNotFoundError as error:
        raise UsageError(f"the task {name} needs the package {error.name}. Run: {pip_line(str(error.name))}") from None
    except DistillError:
        raise
    except Exception as error:  # lm-eval, datasets, the Hub and the task's own functions raise whatever they meet
        entry = manager.task_index[name]
        source = (entry.cfg or {}).get("dataset_path")
        from_hub = source and source not in LOCAL and isinstance(error, OSError)
        if from_hub or isinstance(error, ConnectionError):  # a group's own entry names no data
            what = f"its data set {source}" if source else "a data set of its tasks"
            raise UsageError(
                f"{name}: {what} is not on this machine and could not be fetched ({first_line(error)}). "
                "--suite offline needs no network."
            ) from None
        where = f" ({entry.yaml_path})" if entry.yaml_path else ""
        raise UsageError(
            f"the task {name}{where} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        ) from None


def _configure(task: Any, options: Evaluate, note: Callable[[str], None]) -> None:
    """What lm_eval.evaluator.simple_evaluate does between loading tasks and asking the model."""
    name = task.task_name
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"the task {name} runs code that models write. This command does not do that.")
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"the task {name} needs pictures or sound. Only models of text are evaluated.")
    own = task.get_config("num_fewshot")
    if own == 0 and options.num_fewshot:  # lm-eval's rule: a 0 in a task's file is meant
        note(f"{name}: its file says num_fewshot: 0, so it is asked without solved examples despite --num-fewshot")
    elif own is None or options.num_fewshot is not None:
        task.set_config("num_fewshot", options.num_fewshot or 0)


def _loaded(task: Any, one: Selected, options: Evaluate, every_model_chats: bool) -> LoadedTask:
    of = len(task.eval_docs)
    if not of:
        raise UsageError(f"the task {task.task_name} has no items.")
    items = fixed_choice(task.task_name, of, options)
    chat = options.chat_template == "on" or (
        options.chat_template == "auto" and every_model_chats and task.OUTPUT_TYPE == "generate_until"
    )
    metadata = task.get_config("metadata") or {}
    info = TaskInfo(
        name=task.task_name,
        suite=one.suite,
        version=str(task.VERSION),
        items=of if items is None else len(items),
        of=of,
        prompted="chat template" if chat else "plain text",
        fewshot=task.get_config("num_fewshot") or 0,
        about=one.about or str(metadata.get("about", "")),
    )
    return LoadedTask(task, info, items)


@contextmanager
def _hub() -> Iterator[None]:
    """Without a network, what is kept of the Hub is used at once; else every data set waits for half a minute."""
    import datasets.config
    import huggingface_hub.constants

    if _network():
        yield
        return
    places: list[Any] = [datasets.config, huggingface_hub.constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _network() -> bool:
    """Whether the Hub's name is known here; behind a proxy nobody can tell."""
    import huggingface_hub.constants

    if getproxies().keys() & {"http", "https", "all"}:
        return True
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
