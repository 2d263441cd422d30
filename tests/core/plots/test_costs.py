"""The picture of costs: from free to dear, one panel or three, and numbers in few signs."""

from pathlib import Path

import pytest
from PIL import Image

from core.plots.costs import CostPicture, Costs, Point, draw_costs, short
from core.plots.parts import Look
from core.plots.style import BLUE, GREY

LOOK = Look(BLUE, "s")


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.25, "0.25"), (999.0, "999"), (1500.0, "1.5k"), (2.5e6, "2.5M"), (3e9, "3G")]
)
def test_numbers_in_few_signs(value: float, text: str):
    assert short(value) == text


@pytest.mark.parametrize("costs", [(0.0, 5.0), (0.01, 0.02), (1.0, 1e6), (7.0, 7.0)])
@pytest.mark.parametrize("panels", [1, 3])
def test_it_is_drawn_for_costs_of_any_size(tmp_path: Path, costs: tuple[float, float], panels: int):
    points = [Point(LOOK, costs[0], 40.0, 30.0, 50.0), Point(LOOK, costs[1], 60.0)]
    shown = CostPicture(
        "Costs", "words", "score, %", [Costs("hours", points)] * panels, [(Look(GREY, "o"), 20.0)], [(LOOK, True, "a")]
    )
    draw_costs(shown, tmp_path / "cost.png")
    with Image.open(tmp_path / "cost.png") as image:
        assert image.width == 1050
        seen = {colour for _, colour in image.convert("RGB").getcolors(2**20) or []}
    assert {tuple(bytes.fromhex(BLUE[1:])), tuple(bytes.fromhex(GREY[1:]))} <= seen
    assert (tmp_path / "cost.dark.png").is_file()
