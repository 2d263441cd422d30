"""A report as files: report.json, report.md, report.html and samples.jsonl, beside the plots.

reports/NAME/report.json     every number; `read_report` gives it back
             samples.jsonl   an item a line: prompt, reference, every model's answer and scores
             report.md, report.html, plots/
"""

import base64
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pydantic_core
from pydantic import BaseModel, ValidationError

from ..data.run import write_atomic
from ..data.text import without_surrogates
from ..errors import InputError, UsageError
from .flips import Flips
from .page import html
from .report_markdown import markdown
from .results import SCHEMA, Report, Sample

__all__ = ["markdown", "plot_pictures", "read_report", "read_samples", "write_report"]


def write_report(folder: Path, report: Report, samples: Iterable[Sample]) -> None:
    """Write all files of a report but its plots, which lie in folder/plots already. Each is whole or as it was.

    samples: read once, and never all held. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flips = Flips(report)
    unfinished = folder / ".samples.jsonl.new"
    with unfinished.open("wb") as file:
        for sample in samples:
            flips.add(sample)
            file.write(_json(sample) + b"\n")
    os.replace(unfinished, folder / "samples.jsonl")
    write_atomic(folder / "report.json", _json(report, indent=2) + b"\n")
    write_atomic(folder / "report.md", markdown(report).encode("utf-8", "replace"))
    page = html(report, flips.ways(), plot_pictures(folder, report))
    write_atomic(folder / "report.html", page.encode("utf-8", "replace"))


def _json(value: BaseModel, indent: int | None = None) -> bytes:
    """NaN and infinity become texts, which pydantic reads as numbers again: JSON has no word for them."""
    plain = without_surrogates(value.model_dump())
    return pydantic_core.to_json(plain, inf_nan_mode="strings", indent=indent)


def plot_pictures(folder: Path, report: Report) -> list[tuple[str, str, str | None]]:
    """(file name, data URI, data URI for dark pages or None) of each plot that is there."""
    pictures: list[tuple[str, str, str | None]] = []
    for name in report.plots:
        path = folder / "plots" / Path(name).name
        if path.name.endswith(".dark.png") or not path.is_file():
            continue
        dark = path.with_suffix(".dark.png")
        pictures.append((path.name, _data_uri(path), _data_uri(dark) if dark.is_file() else None))
    return pictures


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def read_report(folder: Path) -> Report:
    """A finished report. folder: where it lies, or its report.json. Raises UsageError when there is none to read."""
    path = folder if folder.name == "report.json" else folder / "report.json"
    try:
        raw: Any = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file. Name a folder that evaluate has written.") from None
    except NotADirectoryError:
        raise UsageError(f"{folder} is no folder. Name a folder that evaluate has written.") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise InputError(path, error.lineno, f"this is not JSON: {error.msg}. Was it edited?") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise UsageError(f"{path}: this is no report of evaluate: it has no schema_version")
    if version != SCHEMA:
        raise UsageError(
            f"{path}: its schema_version is {version}, and this version of distill reads {SCHEMA}. "
            "Evaluate again: what the models answered is kept."
        )
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        raise InputError(path, None, _first_fault(error)) from None


def read_samples(folder: Path) -> Iterator[Sample]:
    """The items of a finished report, one by one. Raises UsageError."""
    path = folder.parent / "samples.jsonl" if folder.name == "report.json" else folder / "samples.jsonl"
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}. Without it the items cannot be compared.") from None
    with file:
        for number, line in enumerate(file, 1):
            try:
                yield Sample.model_validate_json(line)
            except ValidationError as error:
                raise InputError(path, number, _first_fault(error)) from None


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}. Was it edited?" if place else f"{fault['msg']}. Was it edited?"
