"""The comparison of two tokenizers as a picture: one bar for each kind of text."""

import textwrap
import warnings
from pathlib import Path

from ..commands.compare_tokenizers import Counted, TokenizersCompared
from .tokenizer_words import ODD_TOKENS, many, ordered

PARTS = (("exact", "#0072B2"), ("merged", "#E69F00"), ("outside", "#B8B8B8"))
"""Blue, orange and grey of Okabe and Ito's palette: apart for every kind of colour vision, and in grey print."""
NAMES = {
    "exact": "exact: one token on each side",
    "merged": "merged: in a group of several tokens",
    "outside": "outside the teacher's vocabulary",
}
ROW_INCHES, MOST_TOKEN_KINDS = 0.21, 12
HEADINGS = {
    "all": "all of the text",
    "language": "languages",
    "code": "code",
    "numbers": "numbers",
    "chat": "chat",
    "text": "your text",
    "tokens": "the student's tokens, by kind",
}


def draw(result: TokenizersCompared, path: Path) -> None:
    """Write the picture, in the format that the file's name ends in. Raises OSError.

    Needs matplotlib; nothing is shown on a screen.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _rows(result)
    height = len(rows) * ROW_INCHES + 2.0
    figure = Figure(figsize=(9, height), dpi=150)
    FigureCanvasAgg(figure)
    top, bottom = 1.35 / height, 0.6 / height
    axes = figure.add_axes((0.27, bottom, 0.64, 1 - top - bottom))
    for place, row in enumerate(rows):
        if isinstance(row, str):
            axes.text(-0.012, place, row, ha="right", va="center", fontsize=9, fontweight="bold", color="#333333")
            continue
        left = 0.0
        for part, colour in PARTS:
            value = getattr(row, part).value
            axes.barh(place, value, left=left, height=0.78, color=colour)
            left += value
        axes.plot([row.exact.low, row.exact.high], [place, place], color="black", linewidth=1.1, solid_capstyle="butt")
        axes.text(-0.012, place, _short(row.name, 30), ha="right", va="center", fontsize=8.5, parse_math=False)
        axes.text(1.012, place, f"{row.exact.value:.0%}", ha="left", va="center", fontsize=8.5)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6), yticks=[])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"], fontsize=8.5)
    axes.set_xlabel("share of the student's tokens; black line: 95 % interval of the exact share", fontsize=9)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _head(figure, result, height)
    with warnings.catch_warnings():  # a sign in a file's name that the font does not have is drawn as a box
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(path)


def _rows(result: TokenizersCompared) -> list[Counted | str]:
    """Bars, and the headings between them."""
    tokens = [row for row in result.token_kinds if row.student_tokens >= ODD_TOKENS][:MOST_TOKEN_KINDS]
    rows: list[Counted | str] = [result.all.model_copy(update={"name": HEADINGS["all"]}), *result.groups]
    group = ""
    for row in [*ordered(result.kinds), *ordered(tokens)]:
        if row.group != group:
            group = row.group
            rows.append(HEADINGS[group])
        rows.append(row)
    return rows


def _head(figure, result: TokenizersCompared, height: float) -> None:  # pyright: ignore[reportMissingParameterType]
    from matplotlib.patches import Patch

    pair = f"{_short(result.student.name)} taught by {_short(result.teacher.name)}"
    figure.text(0.03, 1 - 0.2 / height, "How much GOLD compares exactly", fontsize=13, fontweight="bold", va="top")
    text = "built-in text" if result.source == "built in" else _short(result.source)
    about = (
        f"{pair}; {text}: {result.all.student_tokens:,} tokens of the student, {many(result.all.passages, 'passage')}"
    )
    figure.text(
        0.03, 1 - 0.5 / height, textwrap.fill(about, 105), fontsize=9.5, color="#333333", va="top", parse_math=False
    )
    figure.legend(
        handles=[Patch(color=colour, label=NAMES[part]) for part, colour in PARTS],
        loc="upper left",
        bbox_to_anchor=(0.022, 1 - 0.84 / height),
        ncols=3,
        frameon=False,
        fontsize=9,
        handlelength=1.2,
        columnspacing=1.6,
    )


def _short(name: str, most: int = 40) -> str:
    """The end of a path, which names it."""
    parts = Path(name).parts
    last = parts[-1] if parts else name
    shown = "/".join(parts[-2:]) if last in ("tokenizer.json",) and len(parts) > 1 else last
    return shown if len(shown) <= most else shown[: most - 1] + "…"
