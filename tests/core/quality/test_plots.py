"""The plots of a report on data: what each of them shows, computed by hand; every kind of report is drawn."""

import math
import time
from pathlib import Path

import pytest
from PIL import Image

from core.commands.check_data import Measured
from core.plots.style import BAND, BLUE, GREEN, GREY, RED
from core.quality.plots import (
    FREE,
    MET,
    MISSED,
    ROWS_MOST,
    VALUES_MOST,
    agreement,
    axis_of_faults,
    draw_plots,
    is_logarithmic,
    marks,
    parts,
    round_lengths,
    surprises,
)
from core.quality.results import DataReport, Lengths
from tests.support.data_report import example, mean, share, shown_row

ALL = ["shares.png", "overlap.png", "learnability.png", "lengths.png", "balance.png"]


def report(*measured: Measured) -> DataReport:
    return DataReport(name="a", data="a.jsonl", rows=100, made="now", headline=[], measured=list(measured))


def drawn(found: DataReport, folder: Path) -> list[str]:
    """Names of the plots, each of which is there for both papers, 1050 dots wide and small."""
    plots = draw_plots(found, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        name for plot in plots for name in (plot, plot.replace(".png", ".dark.png"))
    )
    for path in folder.iterdir():
        assert path.stat().st_size < 150_000
        with Image.open(path) as image:
            assert image.width == 1050
    return plots


def count(path: Path, colour: str) -> int:
    """Dots of that colour."""
    with Image.open(path) as image:
        seen = image.convert("RGB").getcolors(2**20) or []
    return next((times for times, each in seen if each == tuple(bytes.fromhex(colour[1:]))), 0)


# ---- shares ------------------------------------------------------------------------------------------------------


def test_shares_are_in_per_cent_with_what_is_allowed():
    faults, others = marks(report(share("near_duplicate", 10, 100), mean("f1", 0.62, 0.1, 10, ">= 0.6")))
    (fault,), (other,) = faults, others
    # Wilson, 10 of 100: 5.52 to 17.44
    assert (fault.value, fault.low, fault.high) == pytest.approx((10, 5.523, 17.437), abs=1e-3)
    assert (fault.bound, fault.allowed, fault.look, fault.filled) == (5.0, (0.0, 5.0), MISSED, True)
    assert fault.text == "10.0 % [5.5, 17.4]"
    assert (other.bound, other.allowed, other.look, other.filled) == (60.0, (60.0, 100.0), MET, False)


def test_a_figure_without_threshold_has_nothing_allowed_and_one_that_is_no_number_is_left_out():
    _, (other,) = marks(report(mean("rouge_l", 0.5, 0.1, 10), mean("f1", math.nan, 0.1, 10)))
    assert (other.name, other.bound, other.look, other.filled) == ("rouge_l", None, FREE, True)


def test_an_interval_that_is_not_known_is_no_line():
    _, (other,) = marks(report(mean("f1", 0.5, math.nan, 1)))
    assert (other.low, other.high, other.text) == (50.0, 50.0, "50.0 %")


def test_the_axis_of_faults_reaches_every_interval_and_threshold_and_names_round_shares():
    # the threshold of 5 % and 15 % more; 0.2 % is less than a twentieth of it
    end, named = axis_of_faults(marks(report(share("near_duplicate", 0, 10_000)))[0])
    assert end == pytest.approx(5.75)
    assert named == [0.0, 0.5, 1.0, 2.0, 5.0]
    # 0 of 1: the interval ends at 79.3 %
    end, named = axis_of_faults(marks(report(share("near_duplicate", 0, 1)))[0])
    assert (end, named) == (pytest.approx(91.2, abs=0.1), [0.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0])
    end, _ = axis_of_faults(marks(report(share("schema", 1, 1)))[0])
    assert end == 100.0


def test_each_verdict_has_its_colour_and_what_is_allowed_is_grey(tmp_path: Path):
    only = {
        GREEN: share("near_duplicate", 1, 100),
        RED: share("near_duplicate", 20, 100),
        GREY: mean("rouge_l", 0.5, 0.1, 10),
    }
    for colour, one in only.items():
        draw_plots(report(one), tmp_path)
        seen = {each: count(tmp_path / "shares.png", each) for each in (*only, BAND)}
        assert [each for each in only if seen[each] > 700] == [colour]  # edges of letters are grey, too
        assert (seen[BAND] > 1000) == (colour != GREY)  # without a threshold nothing is allowed
        assert count(tmp_path / "shares.dark.png", colour) != seen[colour]


# ---- models ------------------------------------------------------------------------------------------------------


def test_agreement_is_in_per_cent_in_ascending_order_without_rows_that_were_not_answered():
    found = report()
    found.shown = [
        shown_row(1, f1=0.9, rouge_l=None),
        shown_row(2, f1=None, rouge_l=None),
        shown_row(3, f1=0.25, rouge_l=None),
    ]
    assert [(name, values) for name, _, values in agreement(found)] == [("unigram F1", [25.0, 90.0])]
    assert agreement(report()) == []


def test_surprise_is_per_byte_and_of_rows_that_both_have_scored():
    found = report()
    found.shown = [
        shown_row(1, teacher_nats=50.0, student_nats=75.0, bytes=100),
        shown_row(2, teacher_nats=None),
        shown_row(3, student_nats=None),
        shown_row(4, bytes=0),
        shown_row(5, student_nats=math.nan),
    ]
    assert surprises(found) == [(0.5, 0.75)]


# ---- lengths -----------------------------------------------------------------------------------------------------


def test_bins_that_double_are_logarithmic_and_equal_ones_are_not():
    assert is_logarithmic([0, 1, 2, 4, 8])
    assert not is_logarithmic([0, 10, 20, 30, 40])
    assert not is_logarithmic([0, 1])


def test_lengths_on_a_logarithmic_axis_are_round():
    assert round_lengths(1.0, 2000.0) == [1, 5, 20, 100, 500, 2000]
    assert round_lengths(64.0, 512.0) == [100, 200, 500]
    assert round_lengths(8.0, 16.0) == [10]


@pytest.mark.parametrize(
    ("edges", "counts"),
    [
        ([0.0, 1.0], [5]),
        ([0.0, 1.0, 2.0, 4.0, 8.0], [1, 0, 0, 3]),
        ([0.0, 1.0, 2.0, 4.0, 8.0, 1e6], [0, 0, 0, 3, 1]),
        ([40.0, 60.0, 80.0], [7, 10_000_000]),
    ],
)
def test_histograms_of_every_shape_are_drawn(tmp_path: Path, edges: list[float], counts: list[int]):
    found = report()
    found.lengths = [Lengths(what="row", unit="tokens", quantiles={"median": 1.0}, edges=edges, counts=counts)]
    assert drawn(found, tmp_path) == ["lengths.png"]
    assert count(tmp_path / "lengths.png", BLUE) > 100


# ---- balance -----------------------------------------------------------------------------------------------------


def test_the_most_frequent_values_come_first_and_the_others_are_one():
    found = report()
    found.languages = {"en": 100}  # one value: nothing to balance
    found.kinds = {"task": {f"t{number}": number for number in range(1, 13)}}  # 78 rows
    (each,) = parts(found)
    assert [name for name, _, _ in each.bars] == [f"t{number}" for number in range(12, 4, -1)] + ["4 more"]
    assert each.bars[0] == ("t12", 12.0, "12.0 % (12)")
    assert each.bars[-1][1:] == (pytest.approx(10.0), "10.0 % (10)")  # 1 + 2 + 3 + 4
    assert len(each.bars) == VALUES_MOST + 1


def test_keys_that_do_not_fit_are_left_to_the_table():
    found = report()
    found.kinds = {f"key{number}": {"a": 50, "b": 50} for number in range(ROWS_MOST)}
    assert len(parts(found)) == ROWS_MOST // 2


# ---- files -------------------------------------------------------------------------------------------------------


def test_only_plots_with_something_to_show_are_made(tmp_path: Path):
    assert drawn(example(), tmp_path / "all") == ALL
    assert drawn(report(), tmp_path / "none") == []
    assert drawn(report(share("schema", 0, 10)), tmp_path / "one") == ["shares.png"]


def test_plots_of_an_earlier_report_are_removed_and_other_files_are_kept(tmp_path: Path):
    draw_plots(example(), tmp_path)
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert draw_plots(report(share("schema", 0, 10)), tmp_path) == ["shares.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.png", "shares.dark.png", "shares.png"]


@pytest.mark.parametrize("samples", [1, 1000])
def test_texts_of_rows_and_odd_figures_are_drawn(tmp_path: Path, samples: int):
    odd = "a-name-that-is-much-longer-than-its-column_" * 2500 + "$x_{1$ 模\N{RIGHT-TO-LEFT OVERRIDE}\x1b[2J\ud83d"
    found = example(1_000_000, samples)
    found.measured[0].name = odd
    found.kinds = {odd: {odd: 1, "": 999_999, "\n": 3}}
    found.lengths[0].what = found.lengths[0].unit = odd
    found.shown[0] = shown_row(1, place=odd, prompt=odd, f1=0.0, rouge_l=1.0, teacher_nats=0.0, student_nats=0.0)
    began = time.process_time()
    assert drawn(found, tmp_path) == ALL
    assert time.process_time() - began < 20
