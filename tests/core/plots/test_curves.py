"""The curves of a run, and what is said of it: hand-computed figures, gaps, one point, torn lines."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.plots.curves import (
    PAGE,
    PANELS,
    SCREEN,
    Line,
    _draw_panel,  # pyright: ignore[reportPrivateUsage]
    _limit,  # pyright: ignore[reportPrivateUsage]
    best_step,
    draw_curves,
    points,
    read_events,
    running_mean,
    shown,
    summary,
)

PNG = b"\x89PNG\r\n\x1a\n"
LOSS, HELD_OUT = next(panel for panel in PANELS if "ULD" in panel.axis).lines


def step(number: int, loss: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {"event": "train_step", "step": number, "loss": loss, "tokens": 100, "phases": {"teacher": 0.5}, **more}


def whole_step(number: int) -> dict[str, Any]:
    return step(number, 2.0 / number, answer_length=90.0 + number % 7, truncated=0.2, tokens_per_s=250.0)


def val(number: int, **measures: float | None) -> dict[str, Any]:
    return {"event": "val", "step": number, "time": "12:00", **measures}


def whole_val(number: int) -> dict[str, Any]:
    value = 1.0 / (1 + number)
    return val(
        number,
        val_total_loss=value,
        val_kl=value,
        val_top1_agreement=1 - value / 2,
        val_entropy=2.0,
        val_teacher_entropy=1.5,
        own_reverse_kl=value,
        own_top1_agreement=1 - value / 3,
        own_length=80.0,
        own_truncated=value,
        own_repetition=value / 2,
    )


def sft_step(number: int) -> dict[str, Any]:
    figures = {"learning_rate": 1e-4 / number, "grad_norm": 1.5, "rows": 8, "seconds": 2.0, "tokens_per_s": 50.0}
    return step(number, 2.0 / number, **figures)


def best(number: int) -> dict[str, Any]:
    return {"event": "best_checkpoint_saved", "step": number, "metric": "val_kl", "value": 0.1}


def written(folder: Path, *events: dict[str, Any], tail: str = "") -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + tail, encoding="utf-8")
    return path


def titles(*events: dict[str, Any]) -> list[str]:
    return [panel.title for panel, _ in shown(events)]


# ---- what it came to ---------------------------------------------------------------------------------------------


def test_what_a_run_came_to():
    # three steps of 100 tokens; the student of step 3 was kept last
    events = [val(0, val_kl=0.9), step(1), best(1), step(2), step(3), best(3)]
    assert summary(events) == "3 steps, 300 tokens of answers; best at step 3"
    assert best_step(events) == 3


def test_a_run_without_a_best_step_names_none():
    assert summary([step(1)]) == "1 step, 100 tokens of answers"
    assert best_step([step(1)]) is None
    assert summary([]) == "0 steps, 0 tokens of answers"


def test_of_two_events_for_one_step_the_later_one_counts():
    # a step that was made again after a crash is not counted twice
    assert summary([step(1), step(2), step(2, tokens=40)]) == "2 steps, 140 tokens of answers"


# ---- reading and points ------------------------------------------------------------------------------------------


def test_a_torn_last_line_and_rows_of_another_kind_are_left_out(tmp_path: Path):
    path = written(tmp_path, step(1), {"event": "stopped"}, {"step": 2}, tail='{"event": "train_st')
    assert [event["step"] for event in read_events(path)] == [1]
    assert read_events(tmp_path / "nothing.jsonl") == []


def test_points_come_in_the_order_of_their_steps_with_nan_for_null():
    steps, values = points([step(3, 0.3), step(1, 0.1), step(2, None), val(1, loss=9.0)], LOSS)
    assert steps == [1.0, 2.0, 3.0]
    assert values[0] == 0.1
    assert math.isnan(values[1])
    assert values[2] == 0.3


def test_a_line_of_validations_does_not_take_training_steps():
    assert points([step(1, val_total_loss=5.0), val(2, val_total_loss=0.5)], HELD_OUT) == ([2.0], [0.5])


def test_the_running_mean_of_hand_computed_values():
    # (1), (1 + 3) / 2, (3), (5): the value that is not there counts in no mean
    assert running_mean([1.0, 3.0, math.nan, 5.0], 2) == [1.0, 2.0, 3.0, 5.0]


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=30), st.integers(1, 10))
def test_a_running_mean_lies_between_the_values_of_its_window(values: list[float], window: int):
    for place, mean in enumerate(running_mean(values, window)):
        seen = [value for value in values[max(0, place + 1 - window) : place + 1] if not math.isnan(value)]
        assert math.isnan(mean) if not seen else min(seen) - 1e-6 <= mean <= max(seen) + 1e-6


# ---- what is drawn -----------------------------------------------------------------------------------------------


def test_all_panels_of_a_run_with_validation():
    assert titles(whole_val(0), whole_step(1), whole_val(1)) == [
        "Loss",
        "Divergence from the teacher",
        "Same most probable token as the teacher",
        "Entropy",
        "Length of the student's answers",
        "Broken answers of the student",
        "Speed",
    ]


def test_across_tokenizers_the_matched_share_has_a_panel():
    assert titles(step(1), val(1, val_single_groups=0.7, val_kl=0.1)) == [
        "Loss",
        "Divergence from the teacher",
        "Matched share: one token on each side",
    ]


def test_without_validation_only_what_training_measures_is_shown():
    assert titles(whole_step(1)) == [
        "Loss",
        "Length of the student's answers",
        "Broken answers of the student",
        "Speed",
    ]


def test_training_without_a_teacher_shows_bits_per_byte_in_the_place_of_the_divergence():
    assert titles(step(1), val(1, val_bits_per_byte=0.7)) == ["Loss", "Bits per byte"]
    assert titles(step(1), val(1, val_bits_per_byte=0.7, val_kl=0.1)) == ["Loss", "Divergence from the teacher"]


def test_a_run_of_sft_shows_its_loss_with_that_of_held_out_rows():
    events = [val(0, val_loss=2.0, val_accuracy=0.5), sft_step(1), val(1, val_loss=1.5, val_accuracy=0.6)]
    names = ["Loss", "Most probable token is the data's", "Gradient", "Learning rate", "Speed"]
    assert titles(*events) == names
    panel, lines = shown(events)[0]
    assert panel.axis == "nats per trained token"  # and not a loss that may be a probability, as that of train_gold
    assert [found for _, found in lines] == [([1.0], [2.0]), ([0.0, 1.0], [2.0, 1.5])]
    assert titles(sft_step(1)) == [name for name in names if not name.startswith("Most")]


def test_a_learning_rate_is_drawn_as_it_was_and_its_axis_has_room(tmp_path: Path):
    from matplotlib.figure import Figure

    events = [sft_step(number) for number in range(1, 41)]
    (panel, lines) = next(each for each in shown(events) if each[0].title == "Learning rate")
    axes = Figure().add_subplot()
    _draw_panel(axes, panel, lines, None, SCREEN, 0.0)
    (drawn,) = axes.get_lines()  # no running mean of 40 steps, which would make the warm-up longer than it was
    assert np.asarray(drawn.get_ydata()).tolist() == [1e-4 / number for number in range(1, 41)]
    assert axes.yaxis.get_major_formatter()(0.00008) == "8e-05"


def test_a_measure_that_is_never_finite_has_no_panel():
    assert titles(step(1, None), val(1, val_kl=None)) == []


def test_every_line_of_a_panel_looks_different():
    def look(line: Line) -> tuple[str, str, bool]:
        return line.colour, line.style, line.every_step

    for panel in PANELS:
        assert len({look(line) for line in panel.lines}) == len(panel.lines)


@pytest.mark.parametrize(("steps", "validated"), [(0, False), (0, True), (1, False), (3, True), (60, True)])
def test_curves_are_drawn_for_any_number_of_steps(tmp_path: Path, steps: int, validated: bool):
    events = [whole_step(number) for number in range(1, steps + 1)]
    if validated:
        events += [whole_val(number) for number in {0, steps}] + [best(steps)]
    target = tmp_path / "curves.png"
    draw_curves(written(tmp_path, *events), target)
    with Image.open(target) as image:
        # 130 dots per inch, 3 columns of 4.6 inches, 3 rows of 3.3 inches for 7 panels and 0.4 more
        if steps and validated:
            assert image.size == (1794, 1339)
        colours = image.convert("RGB").getcolors(2**24)
    assert colours is not None
    assert len(colours) > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_curves_for_a_page_are_there_for_light_and_dark_paper(tmp_path: Path):
    events = [whole_step(number) for number in range(1, 4)] + [whole_val(0), whole_val(3), best(3)]
    draw_curves(written(tmp_path, *events), tmp_path / "curves.png", layout=PAGE, title="Training of $student_1$")
    corners: list[object] = []
    for name in ("curves.png", "curves.dark.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width == 1050  # 7 inches of 150 dots
            corners.append(image.convert("RGB").getpixel((0, image.height - 1)))
    assert corners == [(0xFF, 0xFF, 0xFF), (0x16, 0x18, 0x1C)]


def test_the_axis_of_a_share_shows_nothing_below_zero_and_above_one(tmp_path: Path):
    from matplotlib.figure import Figure

    for value in (0.0, 1.0):
        axes = Figure().add_subplot()
        panel, lines = shown([val(0, val_top1_agreement=value), val(1, val_top1_agreement=value)])[0]
        _limit(axes, panel, lines)
        low, high = axes.get_ylim()
        assert 0.0 <= low < high <= 1.0


def test_a_gap_in_the_loss_is_drawn_as_a_gap(tmp_path: Path):
    target = tmp_path / "curves.png"
    draw_curves(written(tmp_path, step(1, 1.0), step(2, None), step(3, 0.5)), target)
    assert target.read_bytes().startswith(PNG)


def test_older_curves_are_replaced_as_a_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "curves.nosuchformat"
    target.write_bytes(b"older")
    with pytest.raises(ValueError, match="nosuchformat"):
        draw_curves(written(tmp_path, step(1)), target)
    assert target.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.nosuchformat", "metrics.jsonl"]


def test_curves_that_cannot_be_written_say_so(tmp_path: Path):
    with pytest.raises(OSError, match="no-folder"):
        draw_curves(written(tmp_path, step(1)), tmp_path / "no-folder" / "curves.png")
