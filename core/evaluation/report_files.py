"""Files of reports: figures that can be read again, samples a line each, plots as data for a page."""

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pydantic_core
from pydantic import BaseModel, ValidationError

from ..data.run import write_atomic
from ..data.text import without_surrogates
from ..errors import InputError, UsageError
from .page_kit import Plot

Of = TypeVar("Of", bound=BaseModel)
FIGURES = "report.json"


def write_figures(folder: Path, report: BaseModel) -> None:
    """Every number of a report. The file is whole or as it was. Raises OSError."""
    write_atomic(folder / FIGURES, _json(report, indent=2) + b"\n")


def write_text(path: Path, text: str) -> None:
    """A page or Markdown; what is no Unicode becomes "?". The file is whole or as it was. Raises OSError."""
    write_atomic(path, text.encode("utf-8", "replace"))


def write_samples(path: Path, samples: Iterable[BaseModel]) -> None:
    """A sample a line, read once and never all held. The file is whole or as it was. Raises OSError."""
    unfinished = path.with_name(f".{path.name}.new")
    with unfinished.open("wb") as file:
        for sample in samples:
            file.write(_json(sample) + b"\n")
    os.replace(unfinished, path)


def _json(value: BaseModel, indent: int | None = None) -> bytes:
    """NaN and infinity become texts, which pydantic reads as numbers again: JSON has no word for them."""
    plain = without_surrogates(value.model_dump())
    return pydantic_core.to_json(plain, inf_nan_mode="strings", indent=indent)


def read_figures(folder: Path, form: type[Of], schema: int, command: str, again: str) -> Of:
    """A finished report. folder: where it lies, or its report.json.

    form, schema: what it is read as, and the version of that.   command: that writes such reports.   again: what to do
    with a report of another version. Raises UsageError when there is none to read.
    """
    path = folder if folder.name == FIGURES else folder / FIGURES
    try:
        raw: Any = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file. Name a folder that {command} has written.") from None
    except NotADirectoryError:
        raise UsageError(f"{folder} is no folder. Name a folder that {command} has written.") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise InputError(path, error.lineno, f"this is not JSON: {error.msg}. Was it edited?") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise UsageError(f"{path}: this is no report of {command}: it has no schema_version")
    if version != schema:
        raise UsageError(
            f"{path}: its schema_version is {version}, and this version of distill reads {schema}. {again}"
        )
    try:
        return form.model_validate(raw)
    except ValidationError as error:
        raise InputError(path, None, first_fault(error)) from None


def first_fault(error: ValidationError) -> str:
    """What is wrong with a file that this program once wrote."""
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}. Was it edited?" if place else f"{fault['msg']}. Was it edited?"


def plots_of(folder: Path, names: Iterable[str]) -> list[Plot]:
    """The plots in folder/plots that are there, those for dark pages beside the light ones."""
    found: list[Plot] = []
    for name in names:
        path = folder / "plots" / Path(name).name
        if path.name.endswith(".dark.png") or not path.is_file():
            continue
        dark = path.with_suffix(".dark.png")
        found.append(Plot(path.name, _data_uri(path), _data_uri(dark) if dark.is_file() else None))
    return found


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
