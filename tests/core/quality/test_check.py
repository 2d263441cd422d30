"""`check_data` from its options to its report, on files whose faults are known by hand."""

import csv
import io
import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from core.commands.check_data import CheckData, Measured
from core.data.run import Run
from core.quality.check import check, default_name, judged, says_little
from core.quality.language import identifier
from core.quality.report import read_report
from tests.core.quality.conftest import Check
from tests.core.quality.test_fix import TOPICS, row
from tests.support.running import Outcome, read_rows, write_rows

GERMAN = (
    "Die Brücke über den Fluss wurde vor vielen Jahren von Handwerkern gebaut, die aus den Dörfern der Umgebung kamen. "
    "Noch heute gehen die Leute jeden Morgen darüber zum Markt."
)
LEAKED = "What is the name of the tower that the old clockmaker of the town repaired twice in one winter?"
LOOP = "The tide comes in. " + "It goes out and it comes in again. " * 30


def figures(outcome: Outcome) -> dict[str, tuple[int | None, int]]:
    """Measure -> (rows at fault, rows it was measured on)."""
    return {one["name"]: (one["count"], one["of"]) for one in outcome.result["measured"]}


def one(outcome: Outcome, name: str) -> dict[str, Any]:
    return next(each for each in outcome.result["measured"] if each["name"] == name)


def faulty() -> list[Any]:
    """Twenty rows; every fault stands in one, but for two exact duplicates."""
    good = [row(topic, kind="fact" if number % 2 else "story") for number, topic in enumerate(TOPICS)]
    changed = json.loads(json.dumps(good[3]).replace("with care", "with patience"))
    return [
        *good,  # lines 1 to 10
        good[0],  # 11 and 12: as line 1
        good[0],
        changed,  # 13: like line 4
        row("doors", ""),  # 14
        row("hills", "I'm sorry, but I can't help with that request."),  # 15
        row("trees", finish_reason="length"),  # 16
        row("towns", GERMAN),  # 17
        row("waves", LOOP),  # 18
        row("phones", "Write to maria.keller84@gmail.com about the phones, she has looked after them for years."),  # 19
        {**row("sums", "The answer is 12."), "expected_answer": "13"},  # 20
    ]


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_every_fault_is_counted_on_the_rows_that_it_can_be_told_of(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), faulty())
    Path("test.txt").write_text(f"{LEAKED}\nWho painted the long wall behind the harbour of the northern island?\n")
    with open("train.jsonl", "a", encoding="utf-8") as file:
        file.write('{"prompt": 3}\n')  # line 21
        file.write(json.dumps(row("clocks", f"A riddle: {LEAKED} Nobody knows it today.")) + "\n")  # line 22
    outcome = check_data("train.jsonl", "--against", "test.txt", "--output-dir", "report")
    assert outcome.code == 1, outcome.stderr
    assert outcome.result["rows"] == 22
    assert figures(outcome) == {
        "schema": (1, 22),  # line 21
        "empty": (1, 21),
        "truncated": (1, 20),  # rows with an answer
        "refusal": (1, 20),
        "other_language": (1, 21),
        "repetitive": (1, 20),
        "personal": (1, 21),
        "exact_duplicate": (2, 21),
        "near_duplicate": (1, 21),
        "contaminated": (1, 21),
        "wrong_answer": (1, 1),
    }
    assert one(outcome, "exact_duplicate")["value"] == pytest.approx(2 / 21)
    assert one(outcome, "exact_duplicate")["low"] == pytest.approx(0.0265, abs=1e-4)  # Wilson, 2 of 21
    report = read_report(Path("report"))
    assert {name: [each.place for each in examples] for name, examples in report.examples.items()} == {
        "schema": ["train.jsonl:21"],
        "empty": ["train.jsonl:14"],
        "truncated": ["train.jsonl:16"],
        "refusal": ["train.jsonl:15"],
        "other_language": ["train.jsonl:17"],
        "repetitive": ["train.jsonl:18"],
        "personal": ["train.jsonl:19"],
        "exact_duplicate": ["train.jsonl:11", "train.jsonl:12"],
        "near_duplicate": ["train.jsonl:13"],
        "contaminated": ["train.jsonl:22"],
        "wrong_answer": ["train.jsonl:20"],
    }
    assert [each.like for each in report.examples["exact_duplicate"]] == ["train.jsonl:1", "train.jsonl:1"]
    assert report.examples["near_duplicate"][0].like == "train.jsonl:4"
    assert report.examples["contaminated"][0].like == "test.txt:1"
    assert report.examples["other_language"][0].why == "its language is de, not en"
    assert report.contamination == {"test.txt": (2, 1)}
    assert report.languages["de"] == 1
    assert report.kinds["kind"] == {"story": 7, "fact": 6}  # five each; line 1 twice more, line 4 once
    assert {(each.what, each.unit) for each in report.lengths} >= {("prompt", "words"), ("answer", "characters")}
    assert report.headline[0].startswith("Not good enough: schema 4.5 % (wanted: none)")


def test_personal_data_stand_in_no_file_of_the_report(check_data: Check) -> None:
    secret = "maria.keller84@gmail.com"
    refusal = f"I'm sorry, but I can't help with that. Ask {secret} instead."
    rows = [row("phones", f"Write to {secret} about it."), row("bees", refusal), row("bees", refusal)]
    write_rows(Path("train.jsonl"), rows)
    assert check_data("train.jsonl", "--output-dir", "report").code == 1
    for path in Path("report").rglob("*.*"):
        assert secret.encode() not in path.read_bytes(), path
    assert read_report(Path("report")).examples["refusal"][0].text == "(not shown: personal data)"


def test_a_row_that_cannot_be_read_shows_nothing_personal_either(check_data: Check) -> None:
    secret = "maria.keller84@gmail.com"
    odd = {"messages": [{"role": "user", "content": "bees"}, {"role": secret, "content": "They hum."}]}
    write_rows(Path("train.jsonl"), [row("bees"), odd])
    outcome = check_data("train.jsonl", "--output-dir", "report")
    assert figures(outcome)["schema"] == (1, 2)
    assert secret not in outcome.stdout + outcome.stderr
    for path in Path("report").rglob("*.*"):
        assert secret.encode() not in path.read_bytes(), path


def test_what_cannot_be_read_is_said_with_the_next_step(check_data: Check) -> None:
    Path("table.csv").write_text("user,reply\nHow do bees fly?,With four wings.\nHow do fish swim?,With fins.\n")
    outcome = check_data("table.csv")
    assert outcome.code == 1
    said = outcome.result["notes"][0]
    assert said.startswith('2 rows cannot be read, the first: table.csv:2: no "prompt" or "messages" key')
    assert said.endswith("pass --prompt-key user.")
    assert check_data("table.csv", "--prompt-key", "user").code == 0


def test_all_rows_at_fault_are_listed_with_their_reasons(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), faulty())
    check_data("train.jsonl", "--output-dir", "report")
    found = read_rows(Path("report/findings.jsonl"))
    assert [each["row"] + 1 for each in found] == list(range(11, 21))
    assert found[0] == {
        "row": 10,
        "place": "train.jsonl:11",
        "reasons": {"exact_duplicate": "says word for word what an earlier row says"},
        "like_row": 0,
        "like": "train.jsonl:1",
    }
    assert found[6]["reasons"] == {"other_language": "its language is de, not en"}


def test_rows_of_every_kind_of_file_are_the_same_rows(check_data: Check) -> None:
    import pyarrow
    import pyarrow.parquet

    questions = [f"Tell me about {topic}, in a sentence or two, please." for topic in TOPICS]
    answers = [row(topic)["messages"][1]["content"] for topic in TOPICS[:-1]] + [
        "I'm sorry, but I can't help with that."
    ]
    rows = [{"prompt": asked, "answer": said} for asked, said in zip(questions, answers, strict=True)]
    write_rows(Path("a.jsonl"), rows)
    Path("b.json").write_text(json.dumps(rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "c.parquet")
    table = [f'"{each["prompt"]}","{each["answer"]}"' for each in rows]
    Path("d.csv").write_text("\n".join(["prompt,answer", *table]), encoding="utf-8")
    turns = [
        {"conversations": [{"from": "human", "value": each["prompt"]}, {"from": "gpt", "value": each["answer"]}]}
        for each in rows
    ]
    Path("e.json").write_text(json.dumps({"data": turns}), encoding="utf-8")
    found = [
        figures(check_data(name, "--output-dir", "r")) for name in ("a.jsonl", "b.json", "c.parquet", "d.csv", "e.json")
    ]
    assert found[0]["refusal"] == (1, 10)
    assert all(each == found[0] for each in found[1:])


def test_a_file_of_prompts_is_not_measured_on_answers(check_data: Check) -> None:
    Path("prompts.txt").write_text("\n".join(f"Tell me about {topic}, please." for topic in (*TOPICS, "maps")))
    outcome = check_data("prompts.txt")
    assert set(figures(outcome)) == {"schema", "personal", "other_language", "exact_duplicate", "near_duplicate"}
    assert figures(outcome)["exact_duplicate"] == (1, 11)
    assert "no row has an answer: this is a file of prompts" in outcome.result["notes"][0]
    assert [sorted(each["reasons"]) for each in read_rows(Path("reports/prompts/findings.jsonl"))] == [
        ["exact_duplicate"]
    ]
    assert check_data("prompts.txt", "--fix", "clean.jsonl").result["kept"] == 10
    refused = check_data("prompts.txt", "--require", "refusal<=0")
    assert refused.code == 2
    assert "no row of prompts.txt could be measured on refusal: it needs rows with an answer" in refused.stderr


def test_standard_input_is_read_like_a_file(check_data: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(json.dumps(each).encode() + b"\n" for each in faulty())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    outcome = check_data("--data", "-", "--fix", "clean.jsonl")
    assert (outcome.result["rows"], outcome.result["kept"], outcome.result["data"]) == (20, 10, "standard input")
    assert read_rows(Path("clean.jsonl")) == faulty()[:10]
    assert Path("reports/stdin/report.html").is_file()


def test_limit_looks_at_the_first_rows_only_and_says_so(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), faulty())
    outcome = check_data("train.jsonl", "--limit", "10")
    assert (outcome.code, outcome.result["rows"]) == (0, 10)
    assert outcome.result["notes"] == ["only the first 10 rows were looked at (--limit)"]


def test_languages_that_are_named_are_the_ones_that_count(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), [row("towns", GERMAN), *(row(topic) for topic in TOPICS[:3])])
    assert figures(check_data("train.jsonl"))["other_language"] == (1, 4)
    assert figures(check_data("train.jsonl", "--language", "de"))["other_language"] == (3, 4)
    assert figures(check_data("train.jsonl", "--language", "de,en"))["other_language"] == (0, 4)
    assert "other_language" not in figures(check_data("train.jsonl", "--language", "any"))


def test_tokens_are_counted_in_the_chat_template_and_long_rows_are_cut_off(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), [row("rivers"), row("bees", "They make honey."), row("maps", "word " * 400)])
    outcome = check_data("train.jsonl", "--tokenizer", "smollm2", "--max-length", "300", "--output-dir", "report")
    assert figures(outcome)["truncated"] == (1, 3)
    (tokens,) = [each for each in read_report(Path("report")).lengths if each.unit == "tokens"]
    from transformers import AutoTokenizer

    from core.teachers.tokenizer_loading import find

    tokenizer = AutoTokenizer.from_pretrained(find("smollm2"))
    whole = tokenizer.apply_chat_template(row("bees", "They make honey.")["messages"], tokenize=False).removesuffix(
        "\n"
    )
    assert tokens.quantiles["min"] == len(tokenizer(whole)["input_ids"])
    assert tokens.quantiles["max"] > 400


def test_the_questions_of_tasks_are_looked_for(check_data: Check) -> None:
    from core.evaluation.offline.mmlu_dev import items

    question = next(each["question"] for each in items() if len(each["question"].split()) > 20)
    rows = [row(topic) for topic in TOPICS] + [row("tests", f"Consider this. {question} It is an old one.")]
    write_rows(Path("train.jsonl"), rows)
    outcome = check_data("train.jsonl", "--tasks", "offline", "--output-dir", "report", "--fix", "clean.jsonl")
    assert outcome.code == 1
    assert figures(outcome)["contaminated"] == (1, 11)
    found = read_report(Path("report"))
    assert {name: count for name, (_, count) in found.contamination.items()} == {
        "mmlu_dev": 1,
        "small_sums": 0,
        "word_forms": 0,
    }
    (example,) = found.examples["contaminated"]
    assert example.place == "train.jsonl:11"
    assert example.like is not None
    assert example.like.startswith("mmlu_dev item")
    assert len(read_rows(Path("clean.jsonl"))) == 10


# ---- thresholds ----------------------------------------------------------------------------------------------------


def test_thresholds_decide_the_exit_code(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), [row(topic) for topic in TOPICS] * 2)
    missed = check_data("train.jsonl")
    assert missed.code == 1
    assert one(missed, "exact_duplicate")["passed"] is False
    assert "not good enough: exact_duplicate; --fix out.jsonl writes a file without the rows at fault" in missed.stderr
    met = check_data("train.jsonl", "--require", "exact_duplicate<=50%")
    assert met.code == 0
    assert one(met, "exact_duplicate") | {"low": 0, "high": 0} == {
        "name": "exact_duplicate",
        "kind": "share",
        "value": 0.5,
        "low": 0,
        "high": 0,
        "count": 10,
        "of": 20,
        "required": "<= 0.5",
        "passed": True,
        "certain": False,  # 10 of 20: 30 to 70 %
    }
    assert check_data("train.jsonl", "--require", "exact_duplicate<=0.499").code == 1


def share(count: int, of: int, low: float, high: float) -> Measured:
    return Measured(name="x", kind="share", value=count / of, low=low, high=high, count=count, of=of)


def test_a_verdict_is_certain_where_the_whole_interval_is_on_its_side() -> None:
    few, many = share(6, 10, 0.31, 0.83), share(600, 1000, 0.57, 0.63)
    for found, requirement, passed, certain in (
        (few, ("<=", 0.7), True, False),
        (many, ("<=", 0.7), True, True),
        (few, ("<=", 0.5), False, False),
        (many, ("<=", 0.5), False, True),
        (few, (">=", 0.5), True, False),
        (many, (">=", 0.5), True, True),
        (many, (">=", 0.62), False, False),
        (many, (">=", 0.9), False, True),
        (share(0, 10, 0.0, 0.28), ("<=", 0.0), True, True),  # every row was seen, and none has the fault
        (share(1, 10, 0.02, 0.4), ("<=", 0.0), False, True),
    ):
        verdict = judged(found, requirement)
        assert (verdict.passed, verdict.certain) == (passed, certain), requirement
    assert judged(few, None) == few


def test_ten_rows_say_little() -> None:
    # Wilson's interval of 6 of 10
    assert says_little(10) == "10 rows: a share of 60 % may be anything from 31 % to 83 %."


def test_a_small_file_says_in_its_headline_how_little_it_says(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), [row(topic) for topic in TOPICS])
    check_data("train.jsonl", "--output-dir", "report")
    assert read_report(Path("report")).headline == ["Every threshold is met.", says_little(10)]


def test_thresholds_on_what_is_not_measured_are_refused_before_anything_is_read(check_data: Check) -> None:
    for name, hint in (
        ("contaminated<=0", "it needs --tasks or --against"),
        ("f1>=60%", "it needs --teacher"),
        ("top1_agreement>=0.3", "it needs --teacher and --score"),
        ("judge_win>=0.5", "it needs --judge and --teacher"),
    ):
        outcome = check_data("gone.jsonl", "--require", name)
        assert outcome.code == 2
        measure = name.partition("<")[0].partition(">")[0]
        assert f"{measure} is not measured: {hint}" in outcome.stderr or "no such file" in outcome.stderr
        assert f"--require {name}: {measure} is not measured: {hint}." in outcome.stderr
    assert check_data("gone.jsonl", "--language", "any", "--require", "other_language<=0").code == 2


def test_when_the_user_asks_to_stop_nothing_is_written(folder: Path) -> None:
    write_rows(Path("train.jsonl"), faulty())
    run = Run()
    run.stop.ask()
    with pytest.raises(KeyboardInterrupt):
        check(CheckData(data="train.jsonl", fix=Path("clean.jsonl")), run)
    assert [path.name for path in Path().iterdir()] == ["train.jsonl"]


# ---- what cannot be done ---------------------------------------------------------------------------------------------


def test_files_that_hold_nothing_are_refused_and_leave_nothing_behind(check_data: Check) -> None:
    Path("empty.jsonl").touch()
    Path("blank.jsonl").write_text("\n \n")
    Path("list.json").write_text("[]")
    for name, why in (
        ("empty.jsonl", "empty.jsonl: is empty."),
        ("blank.jsonl", "blank.jsonl: holds no row."),
        ("list.json", "list.json: holds no row."),
        ("gone.jsonl", "gone.jsonl: no such file"),
        ("odd.xyz", "no such file"),
    ):
        outcome = check_data(name)
        assert (outcome.code, why in outcome.stderr) == (2, True), outcome.stderr
    assert not Path("reports").exists()


def test_a_file_in_which_nothing_can_be_read_is_all_faults(check_data: Check) -> None:
    Path("train.jsonl").write_text("no json\n{\n")
    outcome = check_data("train.jsonl")
    assert (outcome.code, figures(outcome)) == (1, {"schema": (2, 2)})


def test_the_report_goes_over_another_of_its_kind_and_over_nothing_else(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), [row(topic) for topic in TOPICS])
    assert check_data("train.jsonl").code == check_data("train.jsonl", "--limit", "5").code == 0
    assert read_report(Path("reports/train")).rows == 5
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    outcome = check_data("train.jsonl", "--output-dir", "mine")
    assert outcome.code == 2
    assert "mine: holds something else than a report of check_data" in outcome.stderr
    Path("mine/report.json").write_text('{"schema_version": 1, "models": []}')  # of evaluate
    assert check_data("train.jsonl", "--output-dir", "mine").code == 2
    assert check_data("train.jsonl", "--output-dir", "train.jsonl").code == 2


def test_what_a_killed_run_left_of_a_report_is_gone_over(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), [row(topic) for topic in TOPICS])
    assert check_data("train.jsonl").code == 0
    Path("reports/train/report.json").unlink()  # the first file that names the report comes after the others
    Path("reports/train/report.md").unlink()
    Path("reports/train/report.html").unlink()
    assert check_data("train.jsonl").code == 0


@pytest.mark.parametrize(
    ("most_bytes", "what"), [(2_000, "temporary files cannot be written"), (40_000, "reports/train cannot be written")]
)
def test_a_full_disk_is_said_and_leaves_no_half_of_a_file(check_data: Check, most_bytes: int, what: str) -> None:
    """At first what is remembered of the rows at fault has no room, then the report."""
    write_rows(Path("train.jsonl"), [row(topic) for topic in TOPICS] * 30)
    identifier()  # is unpacked once, in more bytes
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, unlimited[1]))
    try:
        outcome = check_data("train.jsonl", "--fix", "clean.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert outcome.code == 3, outcome.stderr
    assert f"{what}: File too large. Free space" in outcome.stderr
    assert not Path("clean.jsonl").exists()
    assert not Path("reports/train/report.html").exists()
    assert check_data("train.jsonl", "--fix", "clean.jsonl").result["kept"] == 10


def test_names_of_reports() -> None:
    assert default_name("data/train.jsonl") == "train"
    assert default_name("hf:owner/name:test") == "owner-name-test"
    assert default_name("-") == "stdin"
    assert default_name("a\x1b[31m\nb.jsonl") == "a\\x1b[31m b"


def test_items_too_short_to_look_for_are_said_and_refused_where_there_are_no_others(check_data: Check) -> None:
    write_rows(Path("train.jsonl"), [row(topic) for topic in TOPICS])
    Path("test.txt").write_text(f"Why?\n{LEAKED}\n")
    outcome = check_data("train.jsonl", "--against", "test.txt")
    assert "test.txt: 1 of 2 items have fewer than 5 words and cannot be looked for" in outcome.result["notes"]
    Path("test.txt").write_text("Why?\nHow?\n")
    outcome = check_data("train.jsonl", "--against", "test.txt")
    assert outcome.code == 2
    assert "any text may hold them" in outcome.stderr


def test_reports_of_other_data_are_not_written_over(check_data: Check) -> None:
    rows = [row(topic) for topic in TOPICS]
    for folder in ("a", "b", "b/b"):
        Path(folder).mkdir()
        write_rows(Path(folder) / "train.jsonl", rows)
    said = [check_data(f"{folder}/train.jsonl") for folder in ("a", "b", "b", "./a")]
    assert [outcome.result["report"] for outcome in said] == [
        "reports/train", "reports/b-train", "reports/b-train", "reports/train",
    ]  # fmt: skip
    assert said[0].result["notes"] == []
    assert "reports/train holds the report of a/train.jsonl, so this one goes to reports/b-train" in said[1].stderr
    assert read_report(Path("reports/b-train")).data == "b/train.jsonl"
    third = check_data("b/b/train.jsonl")
    assert third.code == 2
    assert "reports/b-train holds the report of b/train.jsonl. Name another folder with --output-dir." in third.stderr
    check_data("a/train.jsonl", "--output-dir", "named")
    assert check_data("b/train.jsonl", "--output-dir", "named").result["report"] == "named"


def problem(number: int, **metadata: str) -> dict[str, Any]:
    asked = f"Work out the sum of {number} and 17, then tell me what the result is in one short sentence, please."
    said = f"We add seventeen to the number that was given and so the result of this sum comes to {number + 17}."
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return {"messages": messages, "metadata": metadata}


def test_problems_of_our_own_may_differ_in_their_numbers_only(check_data: Check) -> None:
    def alike(*rows: dict[str, Any]) -> tuple[int | None, int | None]:
        found = figures(check_data(write_rows(Path("sums.jsonl"), [*rows]), "--language", "any"))
        return found["exact_duplicate"][0], found["near_duplicate"][0]

    kinds = [
        [problem(number, **metadata) for number in range(20, 30)]
        for metadata in ({}, {"verify": "expression"}, {"verify": "arithmetic"}, {"verify": "countdown"})
    ]
    assert [alike(*rows) for rows in kinds] == [(0, 9), (0, 9), (0, 0), (0, 0)]
    ours = kinds[2]
    loud = json.loads(json.dumps(ours[4]).replace("Work out", "WORK OUT"))
    assert alike(*ours, loud, ours[3]) == (1, 1)
    found = {each["row"]: each["like_row"] for each in read_rows(Path("reports/sums/findings.jsonl"))}
    assert {index: like for index, like in found.items() if like is not None} == {10: 4, 11: 3}


def test_of_rows_of_one_template_it_is_said_what_to_do(check_data: Check) -> None:
    rows = write_rows(Path("sums.jsonl"), [problem(number) for number in range(1_000, 1_300)])
    noted = check_data(rows, "--language", "any").result["notes"]
    assert any("--near-duplicate 0.95" in note for note in noted)
    noted = check_data(rows, "--language", "any", "--require", "near_duplicate<=100%").result["notes"]
    assert any("are alike in part" in note for note in noted)
    assert not any("--near-duplicate 0.95" in note for note in noted)


def test_tables_of_generate_synthetic_need_no_name_of_a_column(check_data: Check) -> None:
    turns = [[turn["content"] for turn in row(topic)["messages"]] for topic in TOPICS]
    for name, asked, said in (("combined_10", "user", "assistant"), ("reasoning", "question", "answer")):
        with open(f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([[asked, said], *turns])
        outcome = check_data(f"{name}.csv")
        assert figures(outcome)["schema"] == (0, 10), outcome.stderr
        assert figures(outcome)["empty"] == (0, 10)
        assert figures(check_data(f"{name}.csv", "--prompt-key", "nothing"))["schema"] == (10, 10)
    Path("half.csv").write_text("question,topic\nWhy is that so?,sums\n")
    assert "pass --prompt-key question" in check_data("half.csv").result["notes"][0]
