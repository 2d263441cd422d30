"""The files of a report: what is written can be read again, and others' text stays text."""

import json
import math
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from core.data.text import printable
from core.errors import InputError, UsageError
from core.evaluation import report_words as words
from core.evaluation.flips import MOST_EACH_WAY, Flips
from core.evaluation.report import markdown, read_report, read_samples, write_report
from core.evaluation.results import Gap, Report
from tests.support.evaluation import STRENGTHS, TASKS, Figure, Invented, example, large, made

EVIL = "a|b `c` **d** <script>x</script> [e](http://x) \\| # \x1b[2J\u202e ![f](g)\n\n- h"


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_report_and_its_items_can_be_read_again(tmp_path: Path):
    report, samples = example()
    write_report(tmp_path / "reports" / "a", report, iter(samples))
    folder = tmp_path / "reports" / "a"
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
        "samples.jsonl",
    ]
    assert read_report(folder) == report
    assert read_report(folder / "report.json") == report
    assert list(read_samples(folder)) == samples


def test_what_is_no_number_and_what_is_no_unicode_are_written_as_json(tmp_path: Path):
    report, samples = example()
    samples[0].scores["student"]["exact_match"] = math.nan
    samples[0].answers["student"] = "half an emoji: \ud83d"
    report.metrics[0].scores[0].value = math.inf
    write_report(tmp_path, report, samples)
    first = (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()[0]
    assert json.loads(first)["scores"]["student"]["exact_match"] == "NaN"
    again = next(iter(read_samples(tmp_path)))
    assert math.isnan(again.scores["student"]["exact_match"])
    assert again.answers["student"] == "half an emoji: \ufffd"
    assert read_report(tmp_path).metrics[0].scores[0].value == math.inf


def test_a_failure_while_items_come_leaves_the_older_report_whole(tmp_path: Path):
    report, samples = example()
    write_report(tmp_path, report, samples)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken():
        yield samples[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_report(tmp_path, report, broken())
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such file"),
        ("{", "this is not JSON"),
        ("[]", "no report of evaluate"),
        ('{"schema_version": 2}', "schema_version is 2, and this version of distill reads 1"),
        ('{"schema_version": 1}', "name: Field required"),
    ],
)
def test_what_is_no_report_is_refused_with_the_file_and_the_reason(tmp_path: Path, text: str | None, said: str):
    if text is not None:
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said) as refused:
        read_report(tmp_path)
    assert str(tmp_path / "report.json") in str(refused.value)


def test_an_edited_line_of_the_items_is_named(tmp_path: Path):
    report, samples = example()
    write_report(tmp_path, report, samples[:3])
    lines = (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "samples.jsonl").write_text("\n".join([lines[0], "{}"]), encoding="utf-8")
    with pytest.raises(InputError, match=r"samples\.jsonl:2: task: Field required"):
        list(read_samples(tmp_path))


def test_five_models_on_ten_tasks_of_a_thousand_items_take_seconds_and_five_megabytes(tmp_path: Path):
    report, samples = large()
    (tmp_path / "plots").mkdir()
    report.plots = [f"plot-{i}.png" for i in range(6)]
    for name in report.plots:  # 1.5 MB of plots
        (tmp_path / "plots" / name).write_bytes(random.Random(0).randbytes(125_000))
        (tmp_path / "plots" / name.replace(".png", ".dark.png")).write_bytes(random.Random(1).randbytes(125_000))
    for sample in samples:  # long answers, as of models that reason
        sample.answers = {model: text * 20 for model, text in sample.answers.items()}
    start = time.process_time()
    write_report(tmp_path, report, samples)
    assert time.process_time() - start < 10
    assert 2_000_000 < (tmp_path / "report.html").stat().st_size < 5_000_000


# ---- Markdown ------------------------------------------------------------------------------------------------------


def tables(text: str) -> list[list[list[str]]]:
    """Cells of every table, as GitHub's reader of Markdown sees them."""
    found: list[list[list[str]]] = []
    inside = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in ("table_open", "table_close"):
            inside = token.type == "table_open"
            found += [[]] if inside else []
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and inside:
            inner = token.children or []
            found[-1][-1].append("".join(child.content for child in inner))
    return found


def test_markdown_has_every_figure_in_tables():
    report, _ = example()
    found = tables(markdown(report))
    assert [len(table) - 1 for table in found] == [4, 3, 4, 27]
    assert all(len(row) == len(table[0]) for table in found for row in table)
    verdicts = [dict(zip(found[0][0], row, strict=True)) for row in found[0][1:]]
    assert verdicts[0]["Task"] == "arithmetic, exact_match"
    assert (verdicts[0]["Baseline"], verdicts[0]["Score"], verdicts[0]["Verdict"]) == ("35.0 %", "56.7 %", "better")
    assert verdicts[0]["Difference"] == "+21.7 [+13.9, +29.4]"
    assert [row["Verdict"] for row in verdicts] == ["better", "no difference found", "worse", "better"]
    assert verdicts[1]["Gap recovered"] == "not defined"


def test_hostile_names_stay_text_in_markdown():
    report, _ = made({f"{name}{EVIL}": of for name, of in STRENGTHS.items()}, TASKS)
    report.name = report.notes[0] = report.headline[0] = report.tasks[0].about = EVIL
    report.models[0].path = report.models[0].not_measured[EVIL] = EVIL
    report.settings = {EVIL: [EVIL, "```"]}
    text = markdown(report)
    assert "\x1b" not in text
    assert "\u202e" not in text
    for table in tables(text):
        assert all(len(row) == len(table[0]) for row in table)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inline} == {"text", "strong_open", "strong_close"}
    assert len([child for child in inline if child.type == "strong_open"]) == len(words.GLOSSARY)
    assert [token.content for token in tokens if token.type == "html_block"] == [
        "<details>\n<summary>Settings</summary>\n",
        "</details>\n",
    ]
    assert [token for token in tokens if token.type == "heading_open" and token.tag == "h1"][1:] == []
    title = next(token for token in tokens if token.type == "inline")
    seen = "".join(child.content for child in title.children or [])
    assert seen == " ".join(EVIL.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e").split())


@pytest.fixture(scope="module")
def tiny() -> Report:
    report, _ = example()
    report.tasks, report.metrics = report.tasks[:1], report.metrics[:1]
    return report


@given(name=st.text(alphabet=st.characters(exclude_categories=()), max_size=40))
def test_any_name_is_one_cell_and_nothing_but_text(tiny: Report, name: str):
    tiny.tasks[0].about = name
    head, row = tables(markdown(tiny))[2]
    assert len(row) == len(head)
    assert row[-1] == " ".join(printable(name).split())


def test_plots_are_linked_for_light_and_dark_pages():
    report, _ = example()
    report.plots = ["accuracy.png", "curves-my run.png"]
    text = markdown(report)
    assert '<source media="(prefers-color-scheme: dark)" srcset="plots/accuracy.dark.png">' in text
    assert '<img alt="Training curves: my run" src="plots/curves-my%20run.png">' in text


# ---- the items that are shown ----------------------------------------------------------------------------------------


def test_at_most_twenty_items_each_way_from_all_tasks_in_turn():
    report, samples = example()
    flips = Flips(report)
    for sample in samples:
        flips.add(sample)
    better, worse = flips.ways()
    asked = [metric for metric in report.metrics if metric.primary and metric.task != "closeness"]
    by_task = {metric.task: metric.differences[0] for metric in asked}
    assert better.of == sum(difference.wins for difference in by_task.values())
    assert worse.of == sum(difference.losses for difference in by_task.values())
    assert len(better.shown) == len(worse.shown) == MOST_EACH_WAY
    # better: 27, 8 and 35 items: seven, seven, six. worse: arithmetic has one only, the others share what is left.
    count = [sum(flip.sample.task == task for flip in way.shown) for way in (better, worse) for task in by_task]
    assert count == [7, 7, 6, 1, 10, 9]
    assert [flip.sample.task for flip in better.shown] == sorted(
        (flip.sample.task for flip in better.shown), key=list(by_task).index
    )


def test_of_figures_that_are_not_right_or_wrong_the_largest_changes_are_shown_and_lower_may_be_better():
    rate = Invented("errors", (Figure("word_errors", "points", higher_is_better=False, binary=False),), items=80)
    report, samples = made(STRENGTHS, [rate])
    flips = Flips(report)
    for sample in samples:
        flips.add(sample)
    of = {sample.key: sample.scores for sample in samples}
    change = {key: scores["student"]["word_errors"] - scores["baseline"]["word_errors"] for key, scores in of.items()}
    better, worse = flips.ways()
    assert [flip.sample.key for flip in better.shown] == sorted(change, key=lambda key: change[key])[:20]
    assert [flip.sample.key for flip in worse.shown] == [
        key for key in sorted(change, key=lambda key: -change[key]) if change[key] > 0
    ]


def test_closeness_and_what_has_no_better_side_have_no_items_that_changed():
    report, samples = example()
    report.metrics[0].higher_is_better = None
    flips = Flips(report)
    for sample in samples:
        if sample.task in ("arithmetic", "closeness"):
            flips.add(sample)
    assert [way.of for way in flips.ways()] == [0, 0]


def test_which_items_are_shown_does_not_hang_on_their_order_and_they_are_not_merely_the_first():
    report, samples = example()
    chosen: list[list[str]] = []
    for order in (samples, random.Random(0).sample(samples, len(samples))):
        flips = Flips(report)
        for sample in order:
            flips.add(sample)
        chosen.append([flip.sample.key for flip in flips.ways()[0].shown])
    assert chosen[0] == chosen[1]
    wrong_to_right = [
        sample.key
        for sample in samples
        if sample.task == "arithmetic"
        and (sample.scores["baseline"]["exact_match"], sample.scores["student"]["exact_match"]) == (0, 1)
    ]
    assert chosen[0][:5] != wrong_to_right[:5]


def test_an_item_that_a_model_was_not_measured_on_has_not_changed():
    report, samples = example()
    for sample in samples:
        sample.scores["student"] = {"exact_match": math.nan}
    samples[0].scores.pop("student")
    flips = Flips(report)
    for sample in samples:
        flips.add(sample)
    assert [way.of for way in flips.ways()] == [0, 0]


# ---- words -----------------------------------------------------------------------------------------------------------


def test_figures_in_words():
    assert words.amount(0.35, "share") == "35.0 %"
    assert words.amount(None, "share") == words.amount(math.nan, "nats") == words.NONE
    assert words.signed(0.2166, "share") == "+21.7"
    assert words.signed(-0.172, "nats") == f"{words.MINUS}0.172"
    assert words.signed(-0.0001, "share") == "0.0"  # no sign on what is shown as zero
    assert words.signed(12.34, "tokens") == "+12.3"
    assert words.amount(-0.0001, "share") == "0.0 %"
    assert words.amount(-0.0001, "nats") == "0.000"
    assert words.recovered(Gap(model="m", value=-0.001, low=-0.004, high=0.3)) == ("0 %", "0 to 30")
    assert words.interval(0.265, 0.435, "share") == "26.5 to 43.5"
    assert words.interval(None, None, "share") == ""
    assert [words.chance(p) for p in (0.0004, 0.0433, 1.0, None)] == ["<0.001", "0.043", "1.000", words.NONE]
    assert [words.seconds(s) for s in (41.5, 1845, 12_240)] == ["42 s", "31 min", "3.4 h"]
    assert [words.size(n) for n in (113_275_008, 1_543_714_304, 900)] == ["113 M", "1.54 B", "900"]
    assert [words.dollars(d) for d in (0.42, 0.0042, 0.0, None)] == ["$0.42", "$0.0042", "$0.00", words.NONE]


def test_a_verdict_says_when_only_the_correction_takes_it_back():
    report, _ = example()
    metric = report.metrics[0]
    difference = metric.differences[0]
    assert words.verdict(metric, difference) == ("good", "better")
    assert words.verdict(metric, difference.model_copy(update={"p_holm": 0.06})) == ("good", "better, not after Holm")
    copies = difference.model_copy(update={"value": 0.0, "low": 0.0, "high": 0.0})
    assert words.verdict(metric, copies) == ("none", "equal")
    lower = metric.model_copy(update={"higher_is_better": False})
    assert words.verdict(lower, difference) == ("bad", "worse")
    neither = metric.model_copy(update={"higher_is_better": None})
    assert words.verdict(neither, difference) == ("none", "changed")
    assert [words.metric_name(each) for each in (lower, neither)] == ["exact_match (lower is better)", "exact_match"]


def test_a_verdict_says_when_the_test_does_not_confirm_the_interval():
    # 5 of 5 items won: the interval is [+27.8, +100.0], but five coins fall alike once in 16
    report, _ = example()
    metric = report.metrics[0]
    five = metric.differences[0].model_copy(update={"p": 0.0625, "p_holm": 0.25})
    assert words.verdict(metric, five) == ("good", "better by the interval, not by the test")


def test_a_detectable_effect_that_is_not_known_is_a_dash():
    report, _ = example()
    report.metrics[0].differences[0].detectable = None
    rows = tables(markdown(report))[0]
    assert dict(zip(rows[0], rows[1], strict=True))["Detectable"] == words.NONE
    assert Report.model_validate_json(report.model_dump_json()).metrics[0].differences[0].detectable is None
