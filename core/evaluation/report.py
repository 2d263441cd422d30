"""A report as files: report.json, report.md, report.html and samples.jsonl, beside the plots.

reports/NAME/report.json     every number; `read_report` gives it back
             samples.jsonl   an item a line: prompt, reference, every model's answer and scores
             report.md, report.html, plots/
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from ..errors import InputError, UsageError
from .flips import Flips
from .page import html
from .report_files import first_fault, plots_of, read_figures, write_figures, write_samples, write_text
from .report_markdown import markdown
from .results import SCHEMA, Report, Sample

__all__ = ["markdown", "read_report", "read_samples", "write_report"]


def write_report(folder: Path, report: Report, samples: Iterable[Sample]) -> None:
    """Write all files of a report but its plots, which lie in folder/plots already. Each is whole or as it was.

    samples: read once, and never all held. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flips = Flips(report)
    write_samples(folder / "samples.jsonl", _seen_by(flips, samples))
    write_figures(folder, report)
    write_text(folder / "report.md", markdown(report))
    write_text(folder / "report.html", html(report, flips.ways(), plots_of(folder, report.plots)))


def _seen_by(flips: Flips, samples: Iterable[Sample]) -> Iterator[Sample]:
    for sample in samples:
        flips.add(sample)
        yield sample


def read_report(folder: Path) -> Report:
    """A finished report. folder: where it lies, or its report.json. Raises UsageError when there is none to read."""
    return read_figures(folder, Report, SCHEMA, "evaluate", "Evaluate again: what the models answered is kept.")


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
                raise InputError(path, number, first_fault(error)) from None
