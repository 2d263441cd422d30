"""A report on data as files.

FOLDER/report.json     every number; `read_report` gives it back
       samples.jsonl   a row that models saw a line
       report.md, report.html, plots/
"""

from pathlib import Path

from ..evaluation.report_files import plots_of, read_figures, write_figures, write_samples, write_text
from .page import html
from .plots import draw_plots
from .report_markdown import markdown
from .results import SCHEMA, DataReport

__all__ = ["markdown", "read_report", "write_report"]


def write_report(folder: Path, report: DataReport) -> None:
    """Write all files of a report, its plots first; `report.plots` then names them. Each is whole or as it was.

    Raises OSError. Needs matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report.plots = draw_plots(report, folder / "plots")
    write_samples(folder / "samples.jsonl", report.shown)
    write_figures(folder, report)
    write_text(folder / "report.md", markdown(report))
    write_text(folder / "report.html", html(report, plots_of(folder, report.plots)))


def read_report(folder: Path) -> DataReport:
    """A finished report. folder: where it lies, or its report.json. Raises UsageError when there is none to read."""
    return read_figures(folder, DataReport, SCHEMA, "check_data", "Check the data again.")
