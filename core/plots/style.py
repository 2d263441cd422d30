"""How our pictures look: colours, fonts, text that fits; files that are whole or not there, for light and dark paper.

A page shows a picture at WIDTH inches of 100 pixels; with DPI dots it is sharp on finer screens, too.
"""

import functools
import io
import itertools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.run import write_atomic
from ..data.text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DPI = 7.0, 150
SIZE, TITLE_SIZE = 8.5, 11.0
"""Of text, in points."""

# On light paper. Okabe and Ito's palette (2008), whose colours are apart for every kind of colour vision; grey and ink.
PAPER, INK, SOFT, LINE, BAND, GREY = "#ffffff", "#000000", "#5c626c", "#dddddd", "#e3e5ea", "#7A7A7A"
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
DARK = {
    PAPER: "#16181c",
    INK: "#eceef1",
    SOFT: "#a0a4ac",
    LINE: "#32353a",
    BAND: "#353a44",
    GREY: "#8d9199",
    BLUE: "#56B4E9",  # their sky blue: their blue is too dark here
    ORANGE: ORANGE,
    GREEN: "#12B287",
    RED: "#E3702A",
    PURPLE: "#D58DB5",
}
"""The same on dark paper."""
GREYS, SHADES, SHADES_ON_BAND = 40, 22, 8
"""Steps between paper and ink, between paper and a colour, between band and a colour."""
NEAR = 8
"""Colours that Pillow may take for one another when it looks for the nearest of a palette."""

SETTINGS: Any = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "text.usetex": False,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": "auto",
    "savefig.bbox": None,
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}
"""Whatever the user's own matplotlibrc says."""


@contextmanager
def picture(target: Path, width: float, height: float, *, dpi: int = DPI, dark: bool = False) -> "Iterator[Figure]":
    """An empty figure of so many inches; saved at the end of the block, in the format that the target's name ends in.

    dark: also for dark paper, as name.dark.png (PNG only). Files are replaced as a whole.
    Raises OSError; ValueError for a format that matplotlib does not know; ModuleNotFoundError without matplotlib.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a sign that the font does not have is drawn as a box
        # Whole dots: half of one at the edge would not be painted.
        figure = Figure(figsize=(round(width * dpi) / dpi, math.ceil(height * dpi) / dpi), dpi=dpi)
        canvas = FigureCanvasAgg(figure)
        yield figure
        if dark:
            canvas.draw()
            light, other = _both(bytes(canvas.buffer_rgba()), canvas.get_width_height())
            write_atomic(target, light)
            write_atomic(target.with_suffix(".dark.png"), other)
            return
        found = io.BytesIO()
        figure.savefig(found, format=target.suffix.removeprefix("."))
        write_atomic(target, found.getvalue())


def _both(pixels: bytes, size: tuple[int, int]) -> tuple[bytes, bytes]:
    """A picture on light and on dark paper, drawn once: the second is the first with another palette.

    Drawing takes most of the time. A palette also makes the file a third as large.
    """
    from PIL import Image

    light, dark = _palettes()
    holder = Image.new("P", (1, 1))
    holder.putpalette(light)
    image = Image.frombytes("RGBA", size, pixels).convert("RGB").quantize(palette=holder, dither=Image.Dither.NONE)
    files: list[bytes] = []
    for palette in (light, dark):
        image.putpalette(palette)
        found = io.BytesIO()
        image.save(found, "png")
        files.append(found.getvalue())
    return files[0], files[1]


@functools.cache
def _palettes() -> tuple[bytes, bytes]:
    """The same mixtures of colours for light and dark paper: 256 entries of red, green and blue."""
    hues = (BLUE, ORANGE, GREEN, RED, PURPLE)
    mixed = [(PAPER, INK, step / GREYS) for step in range(1, GREYS)]
    mixed += [(PAPER, hue, step / SHADES) for hue, step in itertools.product(hues, range(1, SHADES))]
    mixed += [(BAND, hue, step / SHADES_ON_BAND) for hue, step in itertools.product(hues, range(1, SHADES_ON_BAND))]
    mixed = [(PAPER, colour, 1.0) for colour in DARK] + [each for each in mixed if not _is_near_a_colour(*each)]
    assert len(mixed) <= 256
    mixed += [(PAPER, PAPER, 1.0)] * (256 - len(mixed))
    light = bytes(value for below, above, part in mixed for value in _mixture(below, above, part))
    dark = bytes(value for below, above, part in mixed for value in _mixture(DARK[below], DARK[above], part))
    return light, dark


def _is_near_a_colour(below: str, above: str, part: float) -> bool:
    """Whether a mixture looks like a colour that has a meaning, and that may differ from it on dark paper."""
    mixed = _mixture(below, above, part)
    return any(
        max(abs(a - b) for a, b in zip(mixed, _mixture(PAPER, other, 1.0), strict=True)) < NEAR for other in DARK
    )


def _mixture(below: str, above: str, part: float) -> list[int]:
    """Red, green and blue where `above` covers that part of `below`."""
    pairs = zip(bytes.fromhex(below[1:]), bytes.fromhex(above[1:]), strict=True)
    return [round(first + part * (second - first)) for first, second in pairs]


@functools.lru_cache(4096)
def text_width(text: str, size: float = SIZE, *, bold: bool = False) -> float:
    """Inches that the text takes on one line."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def fit(text: str, inches: float, size: float = SIZE, *, bold: bool = False) -> str:
    """The text on one line of so many inches, without control characters; what is too much goes from its middle.

    Names of tasks and models often differ at both ends.
    """
    text = one_line(text, 400)
    keep = len(text)
    shown = text
    while keep > 2 and (taken := text_width(shown, size, bold=bold)) > inches:
        keep = max(2, min(keep - 1, math.ceil(keep * inches / taken)))
        shown = f"{text[: -(-keep // 2)].rstrip()}…{text[len(text) - keep // 2 :].lstrip()}"
    return shown


def wrapped(text: str, inches: float, size: float = SIZE) -> list[str]:
    """Lines of whole words, each of at most so many inches."""
    lines: list[str] = []
    for word in one_line(text, 1000).split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= inches:
            lines[-1] = longer
        else:
            lines.append(fit(word, inches, size))
    return lines
