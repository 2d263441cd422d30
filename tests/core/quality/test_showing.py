"""What teacher, judge and student say of some rows, from the command line to the report: real servers, real models."""

from pathlib import Path

import pytest

from core.commands.check_data import CheckData
from core.data.run import Run
from core.quality.check import check
from core.quality.report import read_report
from tests.core.quality.conftest import Check
from tests.core.quality.test_check import figures, one
from tests.core.quality.test_fix import TOPICS, row
from tests.support.running import read_rows, write_rows
from tests.support.scripted_teacher import Answer, Chat, ScriptedTeacher, refusal, scripted_teacher
from tests.support.tiny_model import make_tiny_model

DEAR = (0.0, 0.001)
"""USD per token; the script's answers say that they cost 0.001."""


def stored(topic: str) -> str:
    return row(topic)["messages"][1]["content"]


def about(chat: Chat) -> str:
    return next(topic for topic in TOPICS if f"Tell me about {topic}" in chat.question)


def teach(chat: Chat) -> str:
    """The stored answer of five topics; of the others four words that it has none of."""
    topic = about(chat)
    return stored(topic) if topic in TOPICS[:5] else "Something else completely different"


def judge(chat: Chat) -> str:
    """9 of 10 for each; the longer answer wins, wherever it stands."""
    if "Score: N" in chat.question:
        return "Good.\nScore: 9"
    first = chat.question.index("ANSWER A")
    return "Better: " + ("B" if "Something else" in chat.question[first : first + 40] else "A")


@pytest.fixture
def data(folder: Path) -> Path:
    return write_rows(Path("train.jsonl"), [row(topic) for topic in TOPICS])


def teacher_at(server: ScriptedTeacher, *more: str) -> list[str]:
    return ["--teacher", server.model, "--teacher-base-url", server.base_url, *more]


def judge_at(server: ScriptedTeacher, *more: str) -> list[str]:
    return ["--judge", server.model, "--judge-base-url", server.base_url, *more]


def test_a_teacher_and_a_judge_say_how_good_the_answers_are(check_data: Check, data: Path) -> None:
    with scripted_teacher(teach) as teacher, scripted_teacher(judge) as other:
        command = [data, *teacher_at(teacher), *judge_at(other), "--output-dir", "report"]
        outcome = check_data(*command)
        assert outcome.code == 1, outcome.stderr
        # Five answers with all words in common and five with none: 0.5. Equal answers are a tie, the others win.
        assert (one(outcome, "f1")["value"], one(outcome, "f1")["of"]) == (0.5, 10)
        assert one(outcome, "f1")["required"] == ">= 0.6"
        assert one(outcome, "f1")["passed"] is False
        assert one(outcome, "rouge_l")["value"] == 0.5
        assert one(outcome, "judge_score")["value"] == pytest.approx(8 / 9)  # 9 on the way from 1 to 10
        assert one(outcome, "judge_win")["value"] == 0.75
        assert [each["name"] for each in outcome.result["measured"]][-4:] == [
            "f1",
            "rouge_l",
            "judge_score",
            "judge_win",
        ]
        report = read_report(Path("report"))
        assert [(model.role, model.requests) for model in report.models] == [("teacher", 10), ("judge", 20)]
        assert len(read_rows(Path("report/samples.jsonl"))) == len(report.shown) == 10
        assert sum(row.f1 or 0 for row in report.shown) == 5
        assert outcome.result["cost_usd"] == pytest.approx(0.03)

        asked = len(teacher.chats) + len(other.chats)
        assert asked == 30
        again = check_data(*command)
        assert (again.code, again.result["measured"]) == (1, outcome.result["measured"])
        assert len(teacher.chats) + len(other.chats) == asked  # nothing is paid twice
        assert check_data(*command, "--require", "f1>=0.5").code == 0


def test_a_dry_run_says_what_would_be_asked_and_asks_nothing(check_data: Check, data: Path) -> None:
    with scripted_teacher(teach, DEAR) as teacher, scripted_teacher(judge, DEAR) as other:
        models = [*teacher_at(teacher), *judge_at(other), "--output-dir", "report"]
        outcome = check_data(data, *models, "--samples", "4", "--max-new-tokens", "100", "--dry-run")
        assert outcome.code == 0, outcome.stderr
        assert outcome.result["rows"] == 10
        assert outcome.result["requests"] == 4 + 4 + 8  # answers, grades, both orders
        # 100 tokens of an answer, 512 of a verdict
        assert outcome.result["worst_case_usd"] == pytest.approx((4 * 100 + 12 * 512) * 0.001)
        assert teacher.chats == other.chats == []
        assert not Path("report").exists()
        check_data(data, *models, "--samples", "4", "--max-new-tokens", "100")
        outcome = check_data(data, *models, "--samples", "4", "--max-new-tokens", "100", "--dry-run")
        assert (outcome.result["requests"], outcome.result["worst_case_usd"]) == (0, 0)
        assert outcome.result["unpriced"] == []
    with scripted_teacher(teach, DEAR) as teacher, scripted_teacher(judge) as other:
        models = [*teacher_at(teacher), *judge_at(other), "--output-dir", "unpriced", "--dry-run"]
        outcome = check_data(data, *models)
        assert (outcome.result["worst_case_usd"], outcome.result["unpriced"]) == (None, ["--judge-price"])
        assert "unknown (see --judge-price)" in outcome.stderr


def test_at_the_budget_it_stops_with_what_it_has(check_data: Check, data: Path) -> None:
    with scripted_teacher(teach, DEAR) as teacher:
        # 0.005 is the most that an answer of 5 tokens costs, 0.001 what it does: the fourth would reach 0.003 + 0.005.
        limited = ["--max-new-tokens", "5", "--max-cost", "0.0075", "--concurrency", "1", "--fix", "clean.jsonl"]
        outcome = check_data(data, *teacher_at(teacher), *limited, "--output-dir", "report")
        assert outcome.code == 3, outcome.stderr
        assert outcome.result["status"] == "stopped"
        assert "--max-cost 0.0075" in outcome.result["stopped_because"]
        assert one(outcome, "f1")["of"] == 3
        assert "stopped early" in " ".join(read_report(Path("report")).headline)
        assert len(read_rows(Path("clean.jsonl"))) == 10  # what needs no model is whole


def test_a_teacher_that_says_nothing_is_no_pass(check_data: Check, data: Path) -> None:
    with scripted_teacher(lambda chat: refusal(400, "no")) as teacher:
        outcome = check_data(data, *teacher_at(teacher), "--retries", "0")
        assert outcome.code == 3, outcome.stderr
        assert "the teacher gave no new answer for any of 10 rows" in outcome.result["stopped_because"]
        assert "f1" not in figures(outcome)


def test_unreadable_verdicts_are_counted_and_no_grade_is_guessed(check_data: Check, data: Path) -> None:
    def vague(chat: Chat) -> str:
        return "Quite good." if "about bees" in chat.question else "Fine.\nScore: 5"

    with scripted_teacher(vague) as other:
        outcome = check_data(data, *judge_at(other))
        assert outcome.code == 0, outcome.stderr
        assert one(outcome, "judge_score")["of"] == 9
        assert outcome.result["notes"] == ["judge: 1 of 10 verdicts could not be read and count for nothing"]


def test_rows_with_personal_data_are_shown_to_no_model(check_data: Check) -> None:
    rows = [row("rivers"), row("phones", "Write to maria.keller84@gmail.com about the phones.")]
    write_rows(Path("train.jsonl"), rows)
    with scripted_teacher(lambda chat: Answer("Some answer.")) as teacher:
        check_data("train.jsonl", *teacher_at(teacher))
        assert [chat.question for chat in teacher.chats] == ["Tell me about rivers."]


def test_personal_data_that_a_teacher_makes_up_stand_in_no_report(check_data: Check, data: Path) -> None:
    secret = "maria.keller84@" + "gmail.com"
    with scripted_teacher(lambda _: f"Ask {secret}, please.") as teacher:
        outcome = check_data(data, *teacher_at(teacher, "--samples", "3"), "--output-dir", "report")
    assert one(outcome, "f1")["of"] == 3
    assert [row.new_answer for row in read_report(Path("report")).shown] == ["(not shown: personal data)"] * 3
    found = {path.name for path in Path("report").rglob("*.*") if secret.encode() in path.read_bytes()}
    assert found == {"asked.jsonl"}  # what was paid for


def test_what_models_cannot_do_is_refused_before_a_row_is_read(check_data: Check, data: Path) -> None:
    Path("empty.md").touch()
    for arguments, why in (
        (["--judge", "x/y", "--rubric", "empty.md"], "the rubric is empty"),
        (["--teacher", "openai/gpt-4o", "--score"], "does not say how probable a given one is"),
    ):
        outcome = check_data("gone.jsonl", *arguments)
        assert (outcome.code, why in outcome.stderr) == (2, True), outcome.stderr
    assert check_data(data, "--teacher", "vendor/model").code == 2  # no key
    Path("prompts.txt").write_text("Why?\n")
    with scripted_teacher(teach) as teacher:
        outcome = check_data("prompts.txt", *teacher_at(teacher))
        assert outcome.code == 2
        assert "no row of prompts.txt has an answer that is a text, so there is nothing to show" in outcome.stderr
        assert teacher.chats == []


def test_a_model_of_this_machine_answers_scores_and_is_scored_as_the_student(check_data: Check, data: Path) -> None:
    model = make_tiny_model(Path("model"))
    teacher = [
        "--teacher",
        f"./{model}",
        "--score",
        "--student",
        f"./{model}",
        "--max-new-tokens",
        "8",
        "--samples",
        "4",
    ]
    outcome = check_data(data, *teacher, "--output-dir", "report")
    assert outcome.code == 1, outcome.stderr  # random words
    assert one(outcome, "f1")["of"] == 4
    assert one(outcome, "top1_agreement")["of"] == 4
    report = read_report(Path("report"))
    gap = next(each for each in report.learnability if each.name == "learnability")
    assert (gap.value, gap.low, gap.high) == (0, 0, 0)  # of a model to itself
    assert {"learnability.png", "overlap.png"} <= set(report.plots)
    assert outcome.result["cost_usd"] == 0


def test_an_interrupted_run_keeps_what_was_paid_and_goes_on(check_data: Check, data: Path) -> None:
    run = Run()

    def until_the_third(chat: Chat) -> str:
        if chat.number == 2:
            run.stop.ask()  # as Ctrl-C does
        return teach(chat)

    with scripted_teacher(until_the_third) as teacher:
        options = CheckData(
            data=str(data),
            teacher=teacher.model,
            teacher_base_url=teacher.base_url,
            concurrency=1,
            fix=Path("clean.jsonl"),
        )
        with pytest.raises(KeyboardInterrupt):
            check(options, run)
        assert [path.name for path in Path("reports/train").iterdir()] == ["asked.jsonl"]
        assert not Path("clean.jsonl").exists()
        outcome = check_data(data, *teacher_at(teacher, "--concurrency", "1"))
        assert one(outcome, "f1")["of"] == 10
        assert len(teacher.chats) == 10
