"""The user's config.yml: what it says, what is wrong with it here, and what only `rnow run` would refuse."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import InputError
from .project import parse_yaml
from .project_schema import (
    HOSTED,
    NEEDED_BY_RNOW,
    OPTIONAL_SECTIONS,
    OPTIONS,
    RANK_CAPS,
    RNOW_BATCH,
    RNOW_GROUP,
    RNOW_PRODUCT,
    SECTIONS,
    DatasetType,
    Evaluation,
    Section,
    Top,
)
from .resolve import suggestion

Level = Literal["error", "warning", "rnow", "ignored"]


class Finding(BaseModel):
    """One thing that a check has to say."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    place: str
    """A file, with its line where there is one: "config.yml:7"."""
    level: Level
    """error: stops a run here. warning: does not. rnow: only `rnow run` refuses it. ignored: has no effect here."""
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.level}: {self.text}"


@dataclass
class Project:
    """What a config.yml says.

    values: sound values by key ("data.batch_size").   lines: of keys and sections, from 1.
    problems: findings, each with the key whose value it is about; "" where it is about no single value.
    """

    path: Path
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: dict[str, int] = field(default_factory=dict[str, int])
    problems: list[tuple[Finding, str]] = field(default_factory=list[tuple[Finding, str]])

    @property
    def findings(self) -> list[Finding]:
        """All of them, in the order of their lines."""
        return self.findings_beside(())

    def findings_beside(self, given: Container[str]) -> list[Finding]:
        """All of them; an error about a key in whose place an option of `given` stands is a warning."""
        found: list[tuple[int, Finding]] = []
        for finding, key in self.problems:
            option = OPTIONS.get(key)
            if finding.level == "error" and option is not None and option in given:
                text = f"{finding.text} (not used: the option {option} was given in its place)"
                finding = Finding(place=finding.place, level="warning", text=text)
            found.append((line_of(finding.place), finding))
        return [finding for _, finding in sorted(found, key=lambda pair: pair[0])]

    @property
    def dataset_type(self) -> DatasetType:
        """sft where the file does not say a sound one."""
        return self.values.get("dataset_type", "sft")

    def add(self, level: Level, key: str, text: str, line: int | None = None) -> None:
        """Note a finding about a key: at `line`, else where the key stands, else where its section does."""
        line = line or self.lines.get(key) or self.lines.get(key.partition(".")[0])
        place = f"{self.path}:{line}" if line else str(self.path)
        self.problems.append((Finding(place=place, level=level, text=text), key))


def line_of(place: str) -> int:
    """The line in "config.yml:7"; 0 where there is none, which is shown first."""
    number = place.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0


def read_project(path: Path) -> Project:
    """A config.yml with all that is wrong with it. Raises InputError for a file that cannot be read."""
    project = Project(path)
    if not path.is_file():
        raise InputError(path, None, "no such file. Name an existing one with --config.")
    try:
        content, node = parse_yaml(path)
    except InputError as error:
        project.add("error", "", str(error).removeprefix(f"{path}:").removeprefix(f"{error.line}:").strip(), error.line)
        return project
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        project.add("error", "", f"expected `key: value` lines, found {found}")
        return project
    for key, line, first in key_lines(node):
        if first is not None:
            project.add("error", "", f'"{key}" is there twice (first in line {first}): only one of them counts', line)
        else:
            project.lines[key] = line
    read_values(project, content)
    rules(project, content)
    rnow_limits(project)
    hosted(project, content)
    return project


def key_lines(node: Any) -> Iterator[tuple[str, int, int | None]]:
    """("data.batch_size", its line, the line where the same key stood before or None), as deep as config.yml goes."""
    import yaml

    def walk(node: Any, prefix: str, depth: int) -> Iterator[tuple[str, int, int | None]]:
        if isinstance(node, yaml.SequenceNode):
            for place, item in enumerate(node.value):
                yield f"{prefix}{place}", item.start_mark.line + 1, None
                yield from walk(item, f"{prefix}{place}.", depth + 1)
        if not isinstance(node, yaml.MappingNode) or depth > 3:
            return
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            yield name, line, seen.get(name)
            if name not in seen:
                seen[name] = line
                yield from walk(value, f"{name}.", depth + 1)

    yield from walk(node, "", 1)


def read_values(project: Project, content: Mapping[Any, Any]) -> None:
    """Take the sound values of all sections, and note unknown keys and values of a wrong type or out of bounds."""
    known = [*Top.model_fields, *SECTIONS, "evals"]
    top = {key: value for key, value in content.items() if key in Top.model_fields}
    for key in content:
        if key not in known:
            near = suggestion(str(key), [*known, *(name for model in SECTIONS.values() for name in model.model_fields)])
            project.add("error", str(key), f'unknown key "{key}".{near}')
    take(project, "", Top, top)
    for name, model in SECTIONS.items():
        section = content.get(name)
        if section is None and name in OPTIONAL_SECTIONS:
            continue
        if section is None:
            if name in content:
                project.add("rnow", name, f"{name}: has no keys: `rnow run` refuses an empty section")
        elif isinstance(section, dict):
            take(project, f"{name}.", model, section)
        else:
            project.add("error", name, f"{name}: expected `key: value` lines, found {shown(section)}")
    evals = content.get("evals", [])
    if not isinstance(evals, list):
        project.add("rnow", "evals", "evals: expected a list")
        return
    for place, item in enumerate(evals):
        if isinstance(item, dict):
            take(project, f"evals.{place}.", Evaluation, item)
        else:
            project.add("rnow", f"evals.{place}", f"evals: expected `key: value` lines, found {shown(item)}")


def take(project: Project, prefix: str, model: type[Section], section: Mapping[Any, Any]) -> None:
    """Take the sound values of one section, and note what is wrong with the others. prefix: "data."."""
    names = {each.alias or name: each for name, each in model.model_fields.items()}
    section = dict(section)
    for key in [key for key, value in section.items() if value is None and key in names]:
        if type(None) not in get_args(names[key].annotation):
            del section[key]  # then the default holds here
            project.add("rnow", prefix + key, f"{key} has no value: `rnow run` refuses that. Leave the line out.")
    while section:
        try:
            sound = model.model_validate(section)
        except ValidationError as error:
            messages: dict[Any, list[str]] = {}
            for problem in error.errors():
                if problem["type"] == "missing":  # of evals only: elsewhere `rules` tells what it means here
                    project.add("rnow", prefix + str(problem["loc"][0]), f"{problem['loc'][0]} is missing")
                messages.setdefault(problem["loc"][0], []).append(problem["msg"])
            missing = [key for key in messages if key not in section]
            for key, found in messages.items():
                if key not in missing:
                    value = section.pop(key)
                    refuse(project, prefix, key, value, found, list(names))
            if missing:
                return
        else:
            project.values |= {prefix + str(key): getattr(sound, attribute(model, str(key))) for key in section}
            return


def attribute(model: type[Section], key: str) -> str:
    """The field of a key, which may be its alias."""
    return key if key in model.model_fields else next(n for n, each in model.model_fields.items() if each.alias == key)


def refuse(project: Project, prefix: str, key: Any, value: Any, messages: list[str], known: list[str]) -> None:
    """Note a key that is unknown, or whose value has a wrong type or is out of bounds."""
    name = prefix + str(key)
    if key not in known:
        section = f" in {prefix.partition('.')[0]}:" if prefix else ""
        project.add("error", name, f'unknown key "{key}"{section}.{suggestion(str(key), known) or " See --help."}')
    elif name == "model.path" and isinstance(value, list):
        project.add("error", name, "path is a list, one run for each: name one of them with --model")
    else:
        level: Level = "rnow" if is_hosted(name, project.dataset_type) else "error"
        project.add(level, name, f"{key}: {' or '.join(dict.fromkeys(messages))} (found {shown(value)})")


def is_hosted(key: str, dataset_type: DatasetType) -> bool:
    """Whether only the hosted service uses a key."""
    unused = {"sft": ("rollout", "algorithm"), "distill": ("rollout", "algorithm")}.get(dataset_type, ())
    return key in HOSTED or key.partition(".")[0] in ("evals", *unused)


def rules(project: Project, content: Mapping[Any, Any]) -> None:
    """Note what follows from several keys together, and what is missing."""
    values, kind = project.values, project.dataset_type
    if values.get("trainer.save_step") == 0:
        del values["trainer.save_step"]
        text = "save_step cannot be 0: -1 keeps no step-N/, a positive number keeps one every so many steps"
        project.add("error", "trainer.save_step", text)
    path = (content.get("model") or {}).get("path") if isinstance(content.get("model"), dict) else None
    if path is None:
        project.add("error", "model.path", "model.path is missing: the student, a name on the Hub or a folder")
    if content.get("teacher") is not None and kind != "distill":
        project.add("error", "teacher", f"teacher: is for dataset_type: distill only, not for {kind}")
    if (
        kind == "distill"
        and "teacher.path" not in values
        and not any(key == "teacher.path" for _, key in project.problems)
    ):
        project.add("error", "teacher.path", "dataset_type: distill needs teacher.path, a model on this machine")
    if kind in ("sft", "midtrain"):
        for name in ("rollout", "algorithm"):
            if content.get(name) is not None:
                text = f"{name}: has no effect under dataset_type: {kind}: `rnow` drops it without a word"
                project.add("warning", name, text)
    if kind == "sft" and "model.qlora_rank" not in values and not problem_with(project, "model.qlora_rank"):
        alpha = ", and qlora_alpha has no effect" if "model.qlora_alpha" in values else ""
        text = f"no qlora_rank: here all weights are trained{alpha}, `rnow run` trains an adapter of rank 32"
        project.add("warning", "model.qlora_rank", text)


def problem_with(project: Project, key: str) -> bool:
    """Whether something is wrong with a key already."""
    return any(about == key and finding.level == "error" for finding, about in project.problems)


def rnow_limits(project: Project) -> None:
    """Note what `rnow run` refuses of values that are sound here; where only `rnow` can train, these are errors."""
    values, kind = project.values, project.dataset_type
    level: Level = "error" if kind in ("rl", "midtrain") else "rnow"
    for key, here in NEEDED_BY_RNOW.items():
        if key not in values and not any(about == key for _, about in project.problems):
            project.add("rnow", key, f"{key} is missing: `rnow run` needs it, {here}")
    if not values.get("project_id") and not any(about == "project_id" for _, about in project.problems):
        project.add("rnow", "project_id", "project_id is missing or empty: `rnow init` gives one")
    batch, group = values.get("data.batch_size", 1), values.get("data.group_size", 4)
    if batch > RNOW_BATCH:
        project.add(level, "data.batch_size", f"batch_size {batch}: `rnow run` takes at most {RNOW_BATCH}")
    if group > RNOW_GROUP:
        project.add(level, "data.group_size", f"group_size {group}: `rnow run` takes at most {RNOW_GROUP}")
    if batch * group > RNOW_PRODUCT:
        text = (
            f"batch_size {batch} times group_size {group} is {batch * group}: `rnow run` takes at most {RNOW_PRODUCT}"
        )
        project.add(level, "data.group_size", text)
    if values.get("data.train_file", "train.jsonl") not in ("train.jsonl", "./train.jsonl"):
        project.add(
            level, "data.train_file", "`rnow run` reads train.jsonl beside config.yml, whatever train_file says"
        )
    for key in ("model.path", "teacher.path"):
        name = values.get(key)
        if name and name not in RANK_CAPS and ("/" in name or key == "teacher.path"):
            project.add(level, key, f"{name} is no model that `rnow run` has")
        elif name and name not in RANK_CAPS:
            project.add(level, key, f"{name}: `rnow run` takes a name without a slash for a model trained there")
    cap, rank = RANK_CAPS.get(values.get("model.path", "")), values.get("model.qlora_rank", 32)
    if cap and rank > cap:
        project.add(level, "model.qlora_rank", f"qlora_rank {rank}: `rnow run` takes at most {cap} for this model")


def hosted(project: Project, content: Mapping[Any, Any]) -> None:
    """Note once which keys of the file have no effect here."""
    keys = [f"{name}.{key}" for name, section in content.items() if isinstance(section, dict) for key in section]
    there = [key for key in [*(str(key) for key in content), *keys] if key in HOSTED]
    if project.dataset_type == "distill":
        there += [name for name in ("rollout", "algorithm") if content.get(name) is not None]
    if there:
        project.add("ignored", "", f"only the hosted service uses {', '.join(there)}")


def shown(value: Any) -> str:
    """A value as a person may have written it, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
