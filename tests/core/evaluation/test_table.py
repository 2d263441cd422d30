"""The closing table: 80 columns whatever the names, and an arrow only for what was found."""

import unicodedata

from core.evaluation.comparison import headline
from core.evaluation.results import Report
from core.evaluation.table import LINES_MOST, terminal
from tests.support.evaluation import STRENGTHS, TASKS, example, made


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def with_change(report: Report, low: float, high: float, *, higher_is_better: bool | None = True) -> str:
    """The line of the report's first task when its interval is this."""
    metric = report.metrics[0]
    metric.higher_is_better = higher_is_better
    change = {"value": (low + high) / 2, "low": low, "high": high}
    metric.differences = [metric.differences[0].model_copy(update=change)]
    report.metrics = [metric]
    return terminal(report, encoding="utf-8").splitlines()[2]


def test_a_block_for_each_model_with_its_figures():
    report, _ = example()
    lines = terminal(report, encoding="utf-8").splitlines()
    assert lines[0] == "student against baseline"
    assert lines[2].split() == [
        *("arithmetic", "exact_match", "120", "35.0%", "56.7%", "+21.7"),
        *("[+13.9,", "+29.4]", "▲", "<0.001"),
    ]
    assert "▲" not in lines[3]
    assert "▼" not in lines[3]
    assert "▼" in lines[4]
    assert "▲" in lines[5]  # less is better there
    assert "teacher against baseline" in lines
    assert lines[-1].startswith("▲ better, ▼ worse")


def test_an_arrow_stands_only_where_the_interval_excludes_zero():
    assert "▲" in with_change(example()[0], 0.001, 0.2)
    assert "▼" in with_change(example()[0], -0.2, -0.001)
    assert "▼" in with_change(example()[0], 0.001, 0.2, higher_is_better=False)
    assert not {"▲", "▼"} & set(with_change(example()[0], 0.001, 0.2, higher_is_better=None))
    for low, high in ((-0.001, 0.2), (0.0, 0.2), (-0.2, 0.0), (0.0, 0.0)):
        line = with_change(example()[0], low, high)
        assert "▲" not in line
        assert "▼" not in line


def test_without_a_difference_there_is_no_word_about_arrows():
    report, _ = example()
    report.metrics = report.metrics[1:2]
    assert "▲" not in terminal(report, encoding="utf-8")
    report.metrics = []
    assert terminal(report) == "no two models were measured on the same task"


def test_an_arrow_that_the_test_does_not_confirm_is_explained():
    report, _ = example()
    report.metrics = report.metrics[:1]
    assert "confirm" not in terminal(report, encoding="utf-8")
    report.metrics[0].differences[0].p_holm = 0.0625
    lines = terminal(report, encoding="utf-8").splitlines()
    assert "▲" in lines[2]
    assert lines[-1] == "where p, corrected for all tasks, is above 0.05 the test does not confirm it"


def test_what_was_not_measured_or_not_compared_stands_below_with_the_reason():
    report, _ = example()
    why = "it is asked through openai, which does not tell how probable a given answer is"
    report.models[2].not_measured = {"mmlu_dev": why, "hellaswag": why}
    arithmetic, words = report.metrics[0], report.metrics[1]
    words.differences, words.notes = [], ["a single item or cluster: no difference has an interval"]
    arithmetic.notes = ["3 of 120 items are left out"]  # not of interest here: all models are compared
    lines = terminal(report, encoding="utf-8").splitlines()
    assert lines[-4:] == [
        "",
        "teacher was not measured on mmlu_dev, hellaswag: it is asked through openai,",
        "  which does not tell how probable a given answer is",
        "mmlu_dev: a single item or cluster: no difference has an interval",
    ]
    arithmetic.differences.pop()  # that of the teacher
    assert terminal(report, encoding="utf-8").splitlines()[-2] == "arithmetic: 3 of 120 items are left out"


def test_why_nothing_was_compared():
    report, _ = example()
    for metric in report.metrics:
        metric.differences, metric.notes = [], ["baseline has no figure here, so nothing is compared"]
    assert terminal(report, encoding="utf-8").splitlines()[:3] == [
        "no difference between models could be taken",
        "",
        "arithmetic: baseline has no figure here, so nothing is compared",
    ]
    report.models = report.models[:1]
    assert terminal(report) == "baseline is the only model, so nothing is compared"


def test_no_line_is_wider_than_80_columns_whatever_the_names():
    for name in ("x" * 300, "评测" * 60, "e\u0301" * 100, "\x1b[2J\nb" * 30):
        report, _ = made({f"{name}{model}": of for model, of in STRENGTHS.items()}, TASKS)
        for metric in report.metrics:
            metric.task, metric.metric, metric.items = name, name, 1_234_567
        report.models[1].not_measured = {name: f"{name} " * 30}
        text = terminal(report, encoding="utf-8")
        assert max(map(columns, unicodedata.normalize("NFC", text).splitlines())) <= 80
        assert "\x1b" not in text
        assert 2 * 6 + 3 + 2 <= len(text.splitlines()) <= 2 * 6 + 3 + 1 + LINES_MOST


def test_a_terminal_without_the_signs_gets_plain_ones():
    report, _ = example()
    text = terminal(report, encoding="ascii")
    assert text.isascii()
    assert "-10.3, +6.3" in text
    assert "[+13.9, +29.4] ^  <0.001" in text
    assert "[-4.1, -0.8] v   0.008" in text
    report.metrics[0].task = "评测"
    assert terminal(report, encoding="latin-1").isascii()


def test_the_form_of_the_answers_stands_below_the_main_figures():
    """A student nearer to the teacher that goes in circles: the table shows both, and main figures alone have Holm."""
    report, _ = example()
    without = terminal(report, encoding="utf-8").splitlines()
    kl = next(each for each in report.metrics if each.metric == "kl")
    distinct, cut = (
        kl.model_copy(
            update={
                "metric": name,
                "primary": False,
                "unit": "share",
                "higher_is_better": higher,
                "scores": [
                    each.model_copy(update={"value": value})
                    for each, value in zip(kl.scores, (0.526, 0.286, 0.833), strict=True)
                ],
                "differences": [
                    kl.differences[0].model_copy(update={"value": -0.24, "low": low, "high": high, "p_holm": None}),
                ],
            }
        )
        for name, higher, low, high in (
            ("own_distinct_2", True, -0.535, -0.085),
            ("own_truncated", False, -0.535, 0.085),
        )
    )
    before = headline(report)
    report.metrics += [distinct, cut]
    assert headline(report) == before
    lines = terminal(report, encoding="utf-8").splitlines()
    block = lines[: lines.index("")]
    assert len(block) == without.index("") + 2  # two rows more, after the four tasks
    assert [line.split()[0] for line in block[2:]] == [
        *("arithmetic", "mmlu_dev", "held_out", "closeness"),
        *("own_distinct_2", "own_truncated"),
    ]
    assert block[-2].split()[1:7] == ["80", "52.6%", "28.6%", "−24.0", "[−53.5,", "−8.5]"]
    assert "▼" in block[-2]
    assert not {"▲", "▼"} & set(block[-1])
    teacher = lines[lines.index("teacher against baseline") :]
    assert not any(line.startswith("own_distinct_2 ") for line in teacher)  # no difference of it was taken
    assert "own_distinct_2: different pairs of words; own_truncated: share cut off" in lines
    assert not any("own_distinct_2" in line for line in without)
    assert max(map(columns, lines)) <= 80
