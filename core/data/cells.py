"""Cells of CSV files that a spreadsheet does not take for formulas, and the texts that they were before."""

import re

NUMBER = re.compile(r"[ ]*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?[ ]*")
FORMULA = re.compile(r"[\t\r\n]|\s*[-=+@\uff0d\uff1d\uff0b\uff20]")
"""How it begins (OWASP, CSV Injection); the last four are the same signs in full width."""


def neutralised(text: str) -> str:
    """The text as a cell holds it: behind an apostrophe where a spreadsheet would calculate it, or fetch what it names.

    Numbers stay as they are. `restored` gives back every text: one that begins like the result gets an apostrophe too.

    >>> neutralised("=1+1"), neutralised("-5"), neutralised("'tis")
    ("'=1+1", '-5', "'tis")
    """
    return "'" + text if _is_formula(text.lstrip("'")) else text


def restored(cell: str) -> str:
    """The text that `neutralised` made this cell of. Others, as one that begins with 'tis, are what they were."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell.lstrip("'")) else cell


def _is_formula(text: str) -> bool:
    return FORMULA.match(text) is not None and not NUMBER.fullmatch(text)
