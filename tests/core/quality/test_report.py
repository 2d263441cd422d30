"""The files of a report on data: what is written can be read again, rows' text stays text, figures in words."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from core.commands.check_data import Measured
from core.data.text import printable
from core.errors import InputError, UsageError
from core.quality import report_words as words
from core.quality.report import markdown, read_report, write_report
from core.quality.results import DataReport, Example, Lengths, ShownRow
from tests.support.data_report import example, mean, share, shown_row

EVIL = "a|b `c` **d** <script>x</script> [e](http://x) \\| # \x1b[2J\u202e ![f](g)\n\n- h"


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_report_can_be_read_again(tmp_path: Path):
    report = example()
    folder = tmp_path / "reports" / "train"
    write_report(folder, report)
    assert sorted(path.name for path in folder.iterdir()) == [
        "plots",
        "report.html",
        "report.json",
        "report.md",
        "samples.jsonl",
    ]
    assert report.plots == ["shares.png", "overlap.png", "learnability.png", "lengths.png", "balance.png"]
    assert read_report(folder) == report
    assert read_report(folder / "report.json") == report
    lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
    assert [ShownRow.model_validate_json(line) for line in lines] == report.shown


def test_what_is_no_number_and_what_is_no_unicode_are_written_as_json(tmp_path: Path):
    report = example()
    report.shown[0].answer = "half an emoji: \ud83d"
    report.shown[0].f1 = math.nan
    report.measured[0].high = math.inf
    report.examples["near_duplicate"][0].text = "\udcff"
    write_report(tmp_path, report)
    first = json.loads((tmp_path / "samples.jsonl").read_text("utf-8").splitlines()[0])
    assert (first["answer"], first["f1"]) == ("half an emoji: \ufffd", "NaN")
    again = read_report(tmp_path)
    assert again.measured[0].high == math.inf
    assert again.examples["near_duplicate"][0].text == "\ufffd"


@pytest.mark.parametrize("rows", [0, 1])
def test_a_file_of_nothing_has_a_report(tmp_path: Path, rows: int):
    report = DataReport(name="a", data="a.jsonl", rows=rows, made="now", headline=[], measured=[])
    report.languages = {"en": rows}
    report.lengths = [Lengths(what="answer", unit="words", quantiles={}, edges=[0.0, 1.0], counts=[0])]
    write_report(tmp_path, report)
    assert report.plots == []
    assert read_report(tmp_path) == report


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such file"),
        ("{", "this is not JSON"),
        ("[]", "it has no schema_version"),
        ('{"schema_version": 2}', "its schema_version is 2, and this version of distill reads 1"),
        ('{"schema_version": 1}', "name: Field required"),
    ],
)
def test_what_is_no_report_is_refused_with_the_file_and_the_reason(tmp_path: Path, text: str | None, said: str):
    if text is not None:
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
    with pytest.raises((UsageError, InputError), match=said) as refused:
        read_report(tmp_path)
    assert str(tmp_path / "report.json") in str(refused.value)


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
            found[-1][-1].append("".join(child.content for child in token.children or []))
    return found


def test_markdown_has_every_table():
    found = tables(markdown(example()))
    # measures; two of examples; learnability, contamination, lengths, made of, variety, models
    assert [len(table) - 1 for table in found] == [7, 5, 1, 2, 2, 1, 5, 1, 2]
    assert all(len(row) == len(table[0]) for table in found for row in table)
    assert found[0][4] == [
        "near_duplicate (rows much like one that stood before)",
        "10.0 % (8.3 to 12.0)",
        "100 (of 1,000)",
        "≤ 5 %",
        "missed",
    ]
    assert found[0][6][1:] == ["62.0 % (52.0 to 72.0)", "10", "≥ 60 %", "met (not certain)"]
    assert found[1][1] == ["train.jsonl:91", "similarity 0.91", "train.jsonl:1", "How many?"]
    assert found[4][1:] == [["arc_easy", "2,376", "3", "0.13 % (0.043 to 0.37)"], ["empty.jsonl", "0", "0", "–"]]


def test_hostile_text_stays_text_in_markdown():
    report = example()
    report.name = report.data = report.made = report.notes[0] = report.headline[0] = EVIL
    report.settings = {EVIL: [EVIL, "```"]}
    report.examples = {EVIL: [Example(place=EVIL, why=EVIL, text=EVIL, like=EVIL)]}
    report.languages, report.kinds = {EVIL: 3}, {EVIL: {EVIL: 4}}
    report.contamination, report.distinct = {EVIL: (5, 1)}, {EVIL: 0.5}
    report.lengths[0].what = report.lengths[0].unit = report.measured[0].name = EVIL
    for model in report.models:
        model.name = model.role = model.backend = EVIL
    text = markdown(report)
    assert "\x1b" not in text
    assert "\u202e" not in text
    for table in tables(text):
        assert all(len(row) == len(table[0]) for row in table)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or []]
    assert {child.type for child in inline} == {"text", "strong_open", "strong_close"}
    assert len([child for child in inline if child.type == "strong_open"]) == len(words.glossary(report))
    assert [token.content for token in tokens if token.type == "html_block"] == [
        "<details>\n<summary>Settings</summary>\n",
        "</details>\n",
    ]
    assert len([token for token in tokens if token.type == "heading_open" and token.tag == "h1"]) == 1


@given(text=st.text(alphabet=st.characters(exclude_categories=()), max_size=40))
def test_any_name_is_one_cell_and_nothing_but_text(text: str):
    report = example()
    report.contamination = {text: (5, 1)}
    head, row = tables(markdown(report))[4]
    assert len(row) == len(head)
    assert row[0] == " ".join(printable(text).split())


def test_plots_are_linked_for_light_and_dark_pages():
    report = example()
    report.plots = ["shares.png"]
    text = markdown(report)
    assert '<source media="(prefers-color-scheme: dark)" srcset="plots/shares.dark.png">' in text
    assert '<img alt="Shares of the rows with 95 % intervals, and what is wanted" src="plots/shares.png">' in text


# ---- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0 %"),
        (1 / 3, "33.3 %"),
        (0.004, "0.4 %"),
        (3 / 1_000_000, "0.0003 %"),
        (1 / 30_000_000, "0.000003 %"),
        (1 - 1e-6, "99.9999 %"),
        (1.0, "100.0 %"),
        (1 - 1e-16, "100.0 %"),
        (math.nan, "–"),
    ],
)
def test_a_share_is_never_shown_as_nothing_or_as_all_unless_it_is(value: float, text: str):
    assert words.share(value) == text


def test_thresholds_and_verdicts_in_words():
    # 100 of 1,000 against 5 %: certain; 1 of 10 has [1.8, 40.4]: not
    assert words.verdict(share("near_duplicate", 100, 1000)) == ("bad", "missed", "")
    assert words.verdict(share("near_duplicate", 1, 10)) == ("bad", "missed", "not certain")
    assert words.verdict(share("near_duplicate", 0, 10)) == ("good", "met", "not certain")
    assert words.verdict(mean("judge_score", 0.5, 0.1, 10)) == ("none", "–", "")
    assert words.wanted(share("near_duplicate", 1, 10)) == "≤ 5 %"
    assert words.wanted(share("schema", 0, 10)) == "none"
    assert words.wanted(mean("f1", 0.7, 0.1, 10, ">= 0.07")) == "≥ 7 %"
    assert words.wanted(mean("f1", 0.7, 0.1, 10)) == "–"
    assert mean("f1", 0.7, 0.1, 10, ">= 0.6").bound == (">=", 0.6)


def test_an_interval_that_is_not_known_is_not_shown():
    assert words.between(math.nan, 0.5) == ""
    assert words.between(0.009, 0.016) == "0.9 to 1.6"


def test_what_was_measured_on_a_row_is_told_and_nothing_else():
    assert words.figures_of(shown_row(5)) == [
        "F1 50.0 %",
        "ROUGE-L 40.0 %",
        "first choice of the teacher 71 of 90 tokens",
        "teacher 0.250 nats per byte",
        "student 0.360 nats per byte",
        "grade 80.0 %",
    ]
    assert words.figures_of(ShownRow(place="a:1", prompt="", answer="", f1=0.0)) == ["F1 0.0 %"]


def test_rows_that_the_teacher_agrees_least_with_come_first_and_unanswered_ones_last():
    found = words.farthest_first(
        [shown_row(1, f1=None), shown_row(2, f1=0.9), shown_row(3, f1=0.0), shown_row(4, f1=None)]
    )
    assert [one.place for one in found] == [f"train.jsonl:{number}" for number in (3, 2, 1, 4)]


def test_the_glossary_explains_what_was_measured_and_nothing_else():
    report = example()
    terms = [term for term, _, _ in words.glossary(report)]
    assert terms == [
        "95 % interval",
        "Near duplicate",
        "Contamination",
        "Personal data",
        "Unigram F1",
        "Learnability",
        "Judge",
        "distinct-n",
    ]
    report.measured, report.learnability, report.distinct = [], [], {}
    assert [term for term, _, _ in words.glossary(report)] == ["95 % interval"]


def test_every_measure_that_needs_one_has_an_explanation():
    explained = {name for *_, of in words.GLOSSARY for name in of}
    known = {*words.FAULTS, "f1", "rouge_l", "top1_agreement", "judge_score", "judge_win", "learnability", "distinct"}
    assert explained <= known
    assert not {"near_duplicate", "contaminated", "f1", "rouge_l", "top1_agreement", "judge_win"} - explained


def test_the_number_of_rows_of_a_mean_is_no_share_of_them():
    one = Measured(name="f1", kind="mean", value=0.5, low=0.4, high=0.6, of=1234)
    report = DataReport(name="a", data="a", rows=5000, made="", headline=[], measured=[one])
    assert tables(markdown(report))[0][1][2] == "1,234"
