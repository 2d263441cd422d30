"""The options of `train_sft` that the user's config.yml gives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .project_config import Finding, Project, read_project
from .project_schema import NO_MODEL, OPTIONS

CONFIG = Path("config.yml")
"""Read where it is there, unless another file is named."""
HOSTED = (
    "dataset_type: {kind} can only be trained by `rnow run`; here --check checks it, and sft and distill are trained."
)
OURS = ("dataset_type", "data", "model", "trainer")
"""A file that nobody named and that has none of these keys belongs to another program."""


def from_config(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options of `train_sft` that a config.yml gives, and where: ("config.yml:7").

    given: the options known already; `config` names the file, else it is ./config.yml where that is there and ours.
    Raises InputError for a named file that is not there and, unless `check` is given, for errors in it, a line each.
    """
    named = given.get("config")
    path = Path(named) if named else CONFIG
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if named or (path.is_file() and is_ours(path)):
        project = read_project(path)
        errors = [str(each) for each in project.findings_beside(given) if each.level == "error"]
        kind = given.get("dataset_type") or project.values.get("dataset_type")
        if errors and not given.get("check") and kind in ("rl", "midtrain"):
            raise InputError(path, project.lines.get("dataset_type"), HOSTED.format(kind=kind))
        if errors and not given.get("check"):
            raise InputError(path, None, "\n".join([f"{len(errors)} to mend (--check shows all there is):", *errors]))
        values, origins = options_of(project, ranked=given.get("qlora_rank") is not None)
        values["config"], origins["config"] = path, "found here"
    if given.get("check") and "model" not in values:  # rows can be checked without a student
        values["model"], origins["model"] = NO_MODEL, "not needed to check"
    return values, origins


def is_ours(path: Path) -> bool:
    """Whether a file that nobody named is meant: it has a key of `OURS`, or is broken, which its owner should hear."""
    import yaml

    try:
        # Its keys alone: values may have tags that only another program knows.
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return True
    return isinstance(node, yaml.MappingNode) and any(key.value in OURS for key, _ in node.value)


def not_ours() -> list[Finding]:
    """What there is to say where no file was read: that there is one of another program, perhaps."""
    if not CONFIG.is_file():
        return []
    text = f"not read: it has none of {', '.join(OURS)}, so it belongs to another program (--config reads it)"
    return [Finding(place=str(CONFIG), level="ignored", text=text)]


def options_of(project: Project, *, ranked: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The options that a file gives, and where. ranked: whether a LoRA rank is given elsewhere."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, option in OPTIONS.items():
        value = project.values.get(key)
        if value is None or (key == "model.qlora_alpha" and not ranked and "model.qlora_rank" not in project.values):
            continue
        line = project.lines.get(key)
        values[option], origins[option] = value, f"{project.path}:{line}" if line else str(project.path)
    if "model" in values:
        values["model"] = beside(project.path, values["model"])
    data = project.values.get("data.train_file", "train.jsonl")
    values["data"] = str(project.path.parent / Path(data).expanduser())
    origins.setdefault("data", f"beside {project.path}")
    return values, origins


def beside(path: Path, model: str) -> str:
    """A model's name in a config.yml: what begins with a dot is a path from the folder of that file."""
    if not model.startswith("."):
        return model
    place = path.parent / model
    # Without the dot, folder/name could be a name on the Hub.
    return str(place) if place.is_absolute() or str(place).startswith(".") else f"./{place}"
