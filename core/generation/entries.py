"""The prompts of a project that rollouts are wanted for: `rnow`'s row fields, and which rows a user selected."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

from ..commands.project import read_section
from ..commands.run_rollouts import RunRollouts
from ..data.prompts import BadRow, Prompt
from ..errors import UsageError

Rows = Callable[[], Iterator[Prompt | BadRow]]


def prompts_file(options: RunRollouts) -> str:
    """--input, else what a conversion set aside (train.prompts.jsonl), else config.yml's train_file or train.jsonl."""
    if options.input:
        return options.input
    config = Path("config.yml")
    section = read_section(config, "data") if config.is_file() else []
    named = next((str(value) for key, value, _ in section if key == "train_file" and value), "train.jsonl")
    set_aside = prompts_beside(Path(named))
    return str(set_aside) if set_aside.is_file() else named


def prompts_beside(train: Path) -> Path:
    """Where convert_rollouts puts the prompts when it needs their name: train.jsonl -> train.prompts.jsonl."""
    return train.with_name(f"{train.stem}.prompts{train.suffix}")


@dataclass(frozen=True)
class Entry:
    """A prompt with what its row says about the rollout.

    tools: names, None for all.   row: `variables` and `rewards`, for reward functions.
    """

    prompt: Prompt
    docker: str | None
    docker_env: dict[str, str]
    tools: list[str] | None
    row: dict[str, Any]


def to_entry(prompt: Prompt) -> Entry | BadRow:
    """Take the fields of `rnow` rows out of a prompt's metadata, and put variables into its messages."""
    metadata = dict(prompt.metadata)
    docker, env, tools, variables, rewards = (
        metadata.pop(name, None) for name in ("docker", "docker_env", "tools", "variables", "rewards")
    )
    problem = None
    if docker is not None and not (isinstance(docker, str) and docker.strip()):
        problem = f'"docker" must be the name of an image, found {docker!r}.'
    elif env is not None and not (docker and is_texts(env)):
        problem = '"docker_env" must be an object of texts, beside "docker".'
    elif tools is not None and not (isinstance(tools, list) and all(isinstance(name, str) for name in tools)):
        problem = '"tools" must be a list of tool names (schemas come from --tools, --mcp-url and the like).'
    elif variables is not None and not isinstance(variables, dict):
        problem = f'"variables" must be an object, found {type(variables).__name__}.'
    elif rewards is not None and not (isinstance(rewards, list) and all(isinstance(name, str) for name in rewards)):
        problem = '"rewards" must be a list of names of reward functions.'
    if problem:
        return BadRow(prompt.index, prompt.place, problem)
    messages = [filled(message, variables) for message in prompt.messages] if variables else prompt.messages
    row = {name: value for name, value in (("variables", variables), ("rewards", rewards)) if value is not None}
    return Entry(replace(prompt, messages=messages, metadata=metadata), docker, env or {}, tools, row)


def is_texts(value: Any) -> bool:
    """Whether it is an object of texts."""
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


def filled(message: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
    """A message with $name replaced by its value; an unknown $name stays."""
    content = message.get("content")
    return {**message, "content": Template(content).safe_substitute(variables)} if isinstance(content, str) else message


@dataclass
class Selection:
    """Which rows of the input are wanted. skipped: what --entry asked for past the end, such as "1000-1099".

    left: rows that -n leaves for later.
    """

    wanted: Callable[[int], bool]
    count: int
    skipped: list[str]
    left: int = 0


def select(options: RunRollouts, rows: Rows) -> Selection:
    """What -n, -e and --all ask for. Raises UsageError when that is nothing."""
    size = sum(1 for _ in rows())
    if not size:
        raise UsageError(f"{prompts_file(options)}: holds no prompts.")
    if options.entry:
        chosen = [indexes for indexes in options.ranges if indexes.start < size]
        past = [range(max(indexes.start, size), indexes.stop) for indexes in options.ranges if indexes.stop > size]
        skipped = [spelled(indexes) for indexes in joined(past)]
        if not chosen:
            last = f"the last of its {size:,} prompts is {size - 1}"
            raise UsageError(f"--entry {', '.join(skipped)}: {prompts_file(options)} has none of these; {last}.")
        picked = {index for indexes in chosen for index in range(indexes.start, min(indexes.stop, size))}
        return Selection(picked.__contains__, len(picked), skipped)
    count = size if options.all else min(size, options.num_rollouts or 1)
    if options.random and count < size:
        drawn = set(random.Random(options.seed).sample(range(size), count))
        return Selection(drawn.__contains__, count, [], size - count)
    return Selection(lambda index: index < count, count, [], size - count)


def joined(ranges: list[range]) -> list[range]:
    """The same indexes in as few ranges as there can be, in order."""
    found: list[range] = []
    for one in sorted(ranges, key=lambda one: one.start):
        if found and one.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, one.stop))
        else:
            found.append(one)
    return found


def spelled(indexes: range) -> str:
    """range(7, 8) -> "7", range(5, 9) -> "5-8"."""
    return f"{indexes.start}-{indexes[-1]}" if len(indexes) > 1 else str(indexes.start)
