"""The one declaration of a command's options, from which flags, environment keys, YAML and schemas are made.

A command is a frozen pydantic model: a docstring per field is its help, `Option` carries what only a command
line needs. The model names its work as a string that is resolved when the work starts, so that `--help` and
schema listings never import torch.
"""

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from ..errors import ExitCode

Names = Literal[
    "file", "text or file", "data", "model", "named model", "url", "host", "key", "code", "program", "packages"
]
"""What a text may name beyond itself, so that the value of a caller who is not the user can be held against it.

file: a path, or a word of ours.   text or file: a path where such a file is there, else a text.
data: a file or folder of rows, hf:owner/name, or "-".
model: a path, a packaged model, a name on the Hub or at a provider; a tokenizer, too.   named model: name=model.
url: the address of a server.   host: the name of one, perhaps with a port, or a pattern.
key: the environment variable that holds a key.
code: a path to what is run as Python.   program: what starts a program.   packages: what would be installed.
"""


@dataclass(frozen=True)
class Option:
    """How a field is reached from outside.

    short: a one-letter flag ("-i").
    env: the environment (and `.env`) key that sets it; of several the first that is set.
    group: its heading in `--help`.
    mcp: whether an MCP tool shows it (the others go through `config`); a text: in these words, for every description is
    read by a model again and again.
    hidden: a wrong value is not shown in the error, because it may be a key in the wrong place.
    positional: the value may stand without its flag (`show.py FILE`).
    names: what a text names; None where it is only a text. A field of type Path names a file without it.
    """

    group: str
    short: str | None = None
    env: str | tuple[str, ...] | None = None
    mcp: bool | str = False
    hidden: bool = False
    positional: bool = False
    names: Names | None = None

    @property
    def env_keys(self) -> tuple[str, ...]:
        """Those of `env`, none where it is None."""
        return (self.env,) if isinstance(self.env, str) else self.env or ()


class Result(BaseModel):
    """What a command did. `--json` prints it; `summary()` is what a person reads."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    status: Literal["done", "some_failed", "stopped", "interrupted", "dry_run"] = "done"
    """How it ended."""
    stopped_because: str | None = None
    """Why it ended early, in words that name the next step."""

    @property
    def exit_code(self) -> ExitCode:
        return {
            "done": ExitCode.DONE,
            "dry_run": ExitCode.DONE,
            "some_failed": ExitCode.SOME_FAILED,
            "stopped": ExitCode.STOPPED,
            "interrupted": ExitCode.INTERRUPTED,
        }[self.status]

    def summary(self) -> str:
        """Lines for a person; the last one says what to do next."""
        raise NotImplementedError


class Command(BaseModel):
    """Base of every command model."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    work: ClassVar[str]
    """Where the work is, relative to `core.commands`: "..generation.generate:generate"."""
    examples: ClassVar[tuple[str, ...]]
    """Command lines that end `--help`; tests run or parse each of them."""
    program: ClassVar[str | None] = None
    """What starts it, where that is no script of its name."""
    as_job: ClassVar[bool] = True
    """Whether it can run in the background. Not what is over at once, or serves somebody."""
    reads_dotenv: ClassVar[bool] = True
    """Whether `.env` of the current folder sets its options, too. Not those of what others start in unseen folders."""
    headings: ClassVar[tuple[str, ...]] = ()
    """The order of the options' groups; by default that of the fields."""
    ignored_env: ClassVar[dict[str, str]] = {}
    """Environment keys that others know and this command does not follow, with the reason that the user is told."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """A field's docstring is its description. pydantic can do this too, by running a tokenizer over the source of
        every class, which costs `--help` more than all the rest of a model."""
        super().__pydantic_init_subclass__(**kwargs)
        docs = attribute_docs(cls)
        for name, info in cls.model_fields.items():
            info.description = docs.get(name, info.description)

    @classmethod
    def ordered_fields(cls) -> list[tuple[str, FieldInfo]]:
        """The options, group by group."""
        groups = list(cls.headings or dict.fromkeys(cls.option(name).group for name in cls.model_fields))
        return sorted(cls.model_fields.items(), key=lambda item: groups.index(cls.option(item[0]).group))

    @classmethod
    def from_project(cls, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Values that files of the user's project name, and where: they stand below everything but the defaults.

        given: what is known from flags, environment and YAML. Raises InputError.
        """
        return {}, {}

    @classmethod
    def unmeant(cls, origins: Mapping[str, str]) -> list[str]:
        """Options whose values from the environment do not count, because nothing that was given asks for them.

        origins: of all values that are known, as `resolve` says them.
        """
        return []

    @classmethod
    def option(cls, name: str) -> Option:
        """The `Option` of a field. Raises LookupError for a field declared without one."""
        for item in cls.model_fields[name].metadata:
            if isinstance(item, Option):
                return item
        raise LookupError(f"{cls.__name__}.{name} has no Option")


def attribute_docs(cls: type) -> dict[str, str]:
    """The strings below the fields of a class, by the fields' names."""
    tree = parsed(str(sys.modules[cls.__module__].__file__))
    name = cls.__qualname__.rpartition(".")[2]
    body = next(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    docs: dict[str, str] = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                docs[field.target.id] = inspect.cleandoc(text)
    return docs


@cache
def parsed(path: str) -> ast.Module:
    """A module's source as a tree."""
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def choices(field: FieldInfo) -> list[str]:
    """The values that a `Literal[...]` field (or `Literal[...] | None`) allows; empty for other types."""
    allowed: list[str] = []
    for part in (field.annotation, *get_args(field.annotation)):
        allowed += [value for value in get_args(part) if isinstance(value, str)]
    return list(dict.fromkeys(allowed))


def flag(name: str) -> str:
    """The command-line flag of a field: max_tokens -> --max-tokens. (json_ is `json` where Python has that name.)"""
    return "--" + name.strip("_").replace("_", "-")
