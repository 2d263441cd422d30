"""How pictures look: colours that stay what they are on both papers, text that fits, files that are whole."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.plots import style
from core.plots.style import BLUE, DARK, INK, PAPER, fit, picture, text_width, wrapped


def pixels(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def luminance(colour: str) -> float:
    """Relative luminance of sRGB (WCAG 2.2)."""
    parts = [value / 255 for value in rgb(colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", DARK)
def test_every_colour_is_itself_on_light_paper_and_its_partner_on_dark_paper(tmp_path: Path, colour: str):
    with picture(tmp_path / "a.png", 1.0, 1.0, dark=True) as figure:
        figure.set_facecolor(colour)
    assert pixels(tmp_path / "a.png").getpixel((75, 75)) == rgb(colour)
    assert pixels(tmp_path / "a.dark.png").getpixel((75, 75)) == rgb(DARK[colour])


def test_marks_and_text_stand_out_from_either_paper():
    # WCAG: 4.5 for text; 3 for what is drawn, though Okabe and Ito's lighter colours have less on white
    for colour in (INK, style.SOFT):
        assert contrast(colour, PAPER) > 4.5
        assert contrast(DARK[colour], DARK[PAPER]) > 4.5
    for colour in (style.BLUE, style.ORANGE, style.GREEN, style.RED, style.PURPLE, style.GREY):
        assert contrast(colour, PAPER) > 2.2
        assert contrast(DARK[colour], DARK[PAPER]) > 4.5


def test_both_pictures_have_the_same_shapes(tmp_path: Path):
    with picture(tmp_path / "a.png", 2.0, 1.0, dark=True) as figure:
        figure.text(0.1, 0.5, "words", color=BLUE)
    light, dark = pixels(tmp_path / "a.png"), pixels(tmp_path / "a.dark.png")
    assert light.size == dark.size == (300, 150)
    for place in ((x, y) for x in range(0, 300, 3) for y in range(0, 150, 3)):
        assert (light.getpixel(place) == rgb(PAPER)) == (dark.getpixel(place) == rgb(DARK[PAPER]))
    assert len(light.getcolors() or []) > 5


def test_a_picture_has_no_strip_of_another_colour_at_its_edges(tmp_path: Path):
    with picture(tmp_path / "a.png", 1.003, 1.004, dark=True) as _:
        pass
    for name, paper in (("a.png", PAPER), ("a.dark.png", DARK[PAPER])):
        assert pixels(tmp_path / name).getcolors() == [(150 * 151, rgb(paper))]


def test_a_sign_that_the_font_lacks_and_dollars_are_no_error(tmp_path: Path):
    name = fit("模型 $x_{1$ \N{RIGHT-TO-LEFT OVERRIDE}", 5.0)
    assert name == "模型 $x_{1$ \\u202e"
    with picture(tmp_path / "a.png", 1.0, 1.0, dark=True) as figure:
        figure.text(0.1, 0.5, name, parse_math=False)
    assert (tmp_path / "a.png").is_file()


def test_a_picture_that_fails_leaves_the_older_one(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"older")
    with pytest.raises(RuntimeError), picture(tmp_path / "a.png", 1.0, 1.0, dark=True):
        raise RuntimeError
    assert (tmp_path / "a.png").read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_users_own_settings_of_matplotlib_change_nothing(tmp_path: Path):
    import matplotlib

    def draw(name: str) -> bytes:
        with picture(tmp_path / name, 2.0, 1.0) as figure:
            figure.add_subplot().set_title("title")
        return (tmp_path / name).read_bytes()

    ours = draw("a.png")
    with matplotlib.rc_context({"axes.facecolor": "red", "text.color": "red", "axes.spines.top": True}):
        assert draw("b.png") == ours
        assert matplotlib.rcParams["axes.facecolor"] == "red"


def test_what_fits_is_left_alone_and_names_keep_both_ends():
    assert fit("arc_easy", 2.0) == "arc_easy"
    cut = fit("mmlu_flan_cot_fewshot_professional_psychology_12", 1.5)
    assert cut.startswith("mmlu_")
    assert cut.endswith("_12")
    assert "…" in cut


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.floats(0.4, 4.0))
def test_text_fits_into_its_inches(text: str, inches: float):
    assert text_width(fit(text, inches)) <= inches
    for line in wrapped(text, inches):
        assert text_width(line) <= inches


def test_nothing_is_lost_when_words_are_wrapped():
    text = "On the same items; lines are 95 % intervals. A full mark: the interval excludes zero."
    assert " ".join(wrapped(text, 2.0)) == text
    assert len(wrapped(text, 2.0)) > 2


def test_neither_matplotlib_nor_pillow_is_loaded_before_something_is_drawn():
    modules = "core.evaluation.plots, core.plots.costs, core.plots.curves"
    code = f"import sys, {modules}; print({{'matplotlib', 'PIL', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
