"""The command against a server that plays both models: what is asked, kept, refused, paid, and written."""

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import cli
from core.commands.check_data import CheckData
from core.data.cells import neutralised
from core.data.prompts import Prompt, PromptOptions, open_prompts
from core.quality.rows import Entry, open_rows
from core.synthetic.domain import load_domain
from core.teachers.answer_book import AnswerBook
from tests.support.running import KEY, Reply, small_server
from tests.support.synthetic import DOMAIN, Said, Town, completion, error, question_of, random_of, solutions_of, town

REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture
def place(folder: Path) -> Iterator[Town]:
    with town(folder) as there:
        yield there


def random(said: Said) -> Any:
    return random_of(json.dumps(said.body["messages"]))


# ---- what is made ------------------------------------------------------------------------------------------------


def test_types_come_in_the_shares_of_the_mix_and_every_record_is_whole(place: Town) -> None:
    outcome = place.run("-n", "40")
    assert outcome.code == 0, outcome.stderr
    result = outcome.result
    assert result["by_type"] == {"reasoning": 20, "dialogue": 8, "instruction": 12}
    assert (result["records"], result["wanted"], result["added"], result["drafts"]) == (40, 40, 40, 40)
    rows = place.rows()
    assert Counter(row["metadata"]["dataset_type"] for row in rows) == result["by_type"]
    assert [row["metadata"]["index"] for row in rows] == list(range(40))
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        turns = len(roles) // 2
        assert roles == ["user", "assistant"] * turns
        assert turns == 1 or row["metadata"]["dataset_type"] == "dialogue"
        assert all(message["content"] for message in row["messages"])
    lengths = Counter(len(row["messages"]) // 2 for row in rows if row["metadata"]["dataset_type"] == "dialogue")
    assert sorted(lengths) == [1, 2, 3]
    assert max(lengths.values()) - min(lengths.values()) <= 1
    sums = [row for row in rows if row["metadata"].get("task_type") == "sums"]
    assert 6 <= len(sums) <= 7
    for row in sums:
        assert row["metadata"]["expected_answer"] in row["messages"][-1]["content"]
    assert place.models.questions == place.models.answers == sum(len(row["messages"]) // 2 for row in rows)


def test_another_mix(place: Town) -> None:
    assert place.run("-n", "20", "--mix", "0/10/90").result["by_type"] == {"dialogue": 2, "instruction": 18}
    refused = place.run("-n", "20", "--mix", "0/0/0", "-o", "other")
    assert (refused.code, "at least one share must be more than 0" in refused.stderr) == (2, True)


def test_every_file_holds_the_same_records_and_its_readers_take_them(place: Town, folder: Path) -> None:
    result = place.run("-n", "20").result
    assert set(result["files"]) == {each.name for each in (folder / "out").iterdir()} - {
        *("paid_answers.jsonl", "rejected.jsonl", "failures.jsonl", "run.json")
    }
    rows = place.rows()
    combined = json.loads((folder / "out/combined_20.json").read_text(encoding="utf-8"))
    assert combined == {"conversations": rows}
    with open(folder / "out/combined_20.csv", encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert [(row["user"], row["assistant"]) for row in cells] == [
        tuple(message["content"] for message in row["messages"][:2]) for row in rows
    ]
    for kind, count in result["by_type"].items():
        with open(folder / f"out/{kind}.csv", encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) == count
    for name in ("train.jsonl", "combined_20.json"):
        with open_prompts(str(folder / "out" / name), PromptOptions()) as read_prompts:  # what train_gold reads
            prompts = [prompt for prompt in read_prompts() if isinstance(prompt, Prompt)]
        assert [prompt.messages for prompt in prompts] == [row["messages"][:-1] for row in rows]
        with open_rows(CheckData(data=str(folder / "out" / name))) as read:
            entries = [entry for entry in read() if isinstance(entry, Entry)]
        assert [[*entry.messages, {"role": "assistant", "content": entry.answer}] for entry in entries] == [
            row["messages"] for row in rows
        ]


def test_check_data_and_show_take_the_data_set(place: Town, capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    place.run("-n", "20")
    for words in (
        ["check_data", "out/train.jsonl", "-o", "report"],
        ["check_data", "out/combined_20.json", "-o", "report2"],
        ["show", "out/combined_20.json"],
        ["show", "out/train.jsonl"],
    ):
        code, _ = cli.run(words[0], words[1:])
        said = capfd.readouterr()
        assert code == 0, said.err
        assert "Traceback" not in said.err
    assert (folder / "report").is_dir()


def test_formulas_in_answers_are_neutralised_in_csv_and_nowhere_else(place: Town, folder: Path) -> None:
    formula = '=HYPERLINK("http://x.test", "the answer"), and so it is said by people of the town\r\nwith a line more'

    def fault(said: Said) -> str | None:
        return formula if not said.for_question and "boxes" not in said.question else None

    place.models.fault = fault
    assert place.run("-n", "10").code == 0
    kept = [row["messages"][1]["content"] for row in place.rows()]
    assert kept.count(formula) >= 6
    data = (folder / "out/combined_10.csv").read_bytes()
    texts = [row["assistant"] for row in csv.DictReader(io.StringIO(data.decode(), newline=""))]
    assert texts == [neutralised(text) for text in kept]
    assert all(text.startswith("'=") for text in texts if "HYPERLINK" in text)


def test_an_old_type_file_goes_when_the_mix_has_no_such_type_any_more(place: Town, folder: Path) -> None:
    place.run("-n", "30")
    place.run("-n", "10")
    names = {each.name for each in (folder / "out").iterdir()}
    assert {"combined_10.json", "combined_10.csv"} <= names
    assert not names & {"combined_30.json", "combined_30.csv"}
    before = place.asked
    assert place.run("-n", "30").result["added"] == 0  # nothing that was paid is lost by asking for fewer
    assert place.asked == before


# ---- who is asked ------------------------------------------------------------------------------------------------


def test_two_models_behind_two_servers(folder: Path) -> None:
    with town(folder) as asking, town(folder) as answering:
        outcome = answering.run(
            *("-n", "10", "--model", "big", "--price", "2/10"),
            *("--question-model", "small", "--question-base-url", asking.url, "--question-price", "1/5"),
        )
        assert outcome.code == 0, outcome.stderr
        assert (asking.models.answers, answering.models.questions) == (0, 0)
        assert {request.json["model"] for request in asking.received if request.method == "POST"} == {"small"}
        assert {request.json["model"] for request in answering.received if request.method == "POST"} == {"big"}
        result = outcome.result
        assert (result["question_model"], result["answer_model"]) == ("small", "big")
        spent = asking.models.questions * (100 * 1 + 20 * 5) + answering.models.answers * (100 * 2 + 20 * 10)
        assert result["cost_usd"] == pytest.approx(spent / 1e6)
        records = [row["metadata"]["cost"] for row in answering.rows()]
        assert sum(records) == pytest.approx(spent / 1e6)
        assert {(row["metadata"]["teacher"], row["metadata"]["question_model"]) for row in answering.rows()} == {
            ("big", "small")
        }


def test_a_cost_that_is_known_in_part_is_not_shown_as_all_of_it(place: Town) -> None:
    result = place.run("-n", "5", "--question-model", "other", "--question-price", "1/5").result
    assert result["cost_usd"] is None or result["maybe_billed"], "answers without a price are left out of the cost"


@pytest.mark.parametrize("length", [0, 3])
def test_temperatures_and_limits_go_to_the_model_that_they_are_for(place: Town, length: int) -> None:
    place.run(
        "-n", "4", "-t", "0.25", "--question-temperature", "1.5", "--max-tokens", "99", "--question-max-tokens", "77"
    )
    for request in place.received:
        if request.method == "POST":
            writes = request.json["messages"][0]["content"].startswith("You write what people ask")
            sent = request.json
            limit = sent.get("max_tokens", sent.get("max_completion_tokens"))
            assert (sent["temperature"], limit) == ((1.5, 77) if writes else (0.25, 99))


def test_the_system_prompt_stands_in_every_row_and_before_every_answer(place: Town) -> None:
    place.run("-n", "6", "--system", "You are a gull.")
    assert {row["messages"][0]["content"] for row in place.rows()} == {"You are a gull."}
    answered = [r.json for r in place.received if r.method == "POST" and "gull" in r.json["messages"][0]["content"]]
    assert len(answered) == place.models.answers


def test_the_language_of_the_options_is_asked_for(place: Town) -> None:
    place.run("-n", "6", "--language", "de", "--patience", "5")
    sent = [request.json["messages"][0]["content"] for request in place.received if request.method == "POST"]
    assert all("German" in system for system in sent)


def test_documents_stand_in_the_prompts_and_in_the_metadata(place: Town, folder: Path) -> None:
    (folder / "docs").mkdir()
    (folder / "docs/tides.md").write_text("# Tides\n\nThe sea rises twice a day, and the boats wait for it.\n")
    (folder / "docs/bells.txt").write_text("The bells of the old church ring at noon and at six, never at night.\n")
    (folder / "docs/empty.txt").touch()
    outcome = place.run("-n", "8", "--documents", "docs")
    assert outcome.code == 0, outcome.stderr
    assert "no text to ask about in empty.txt" in outcome.stderr
    passages = Counter(row["metadata"]["passage"]["place"] for row in place.rows())
    assert passages == {"tides.md#1": 4, "bells.txt#1": 4}
    for request in place.received:
        if request.method == "POST":
            sent = json.dumps(request.json["messages"])
            assert ("The sea rises" in sent) + ("old church" in sent) == 1
    assert not any("The sea rises" in str(row["messages"]) for row in place.rows())
    (folder / "docs/tides.md").write_text("# Tides\n\nThe sea rises once a day, and no boat waits for it any more.\n")
    assert "in this: documents" in place.run("-n", "8", "--documents", "docs").stderr


def test_no_text_in_the_documents(place: Town, folder: Path) -> None:
    (folder / "docs").mkdir()
    (folder / "docs/empty.txt").touch()
    outcome = place.run("--documents", "docs")
    assert (outcome.code, "no text to ask about" in outcome.stderr, place.asked) == (2, True, 0)


def test_an_output_schema_is_asked_for_and_kept(place: Town, folder: Path) -> None:
    schema = "{type: object, required: [title], properties: {title: {type: string}}, additionalProperties: false}"
    forms = f"instruction: [{{name: forms, weight: 3, output: {{json_schema: {schema}}}}}, "
    (folder / "domain.yml").write_text(DOMAIN.replace("instruction: [", forms))

    def fault(said: Said) -> str | None:
        if said.for_question or "JSON schema" not in said.system:
            return None
        return '```json\n{"title": "The boats are late"}\n```' if random(said).random() < 0.6 else '{"title": 5}'

    place.models.fault = fault
    result = place.run("-n", "20", "--mix", "0/0/1", "--tries", "20").result
    assert result["records"] == 20
    assert result["rejected"]["schema"] > 0
    for row in place.rows():
        if row["metadata"]["category"] == "forms":
            assert "The boats are late" in row["messages"][-1]["content"]


def test_problems_that_are_made_here_are_answered_and_checked(folder: Path, place: Town) -> None:
    (folder / "made.yml").write_text(
        "description: Sums.\nreasoning: [{name: sums, verify: arithmetic}, {name: rounds, verify: countdown}]\n"
    )
    domain = load_domain("made.yml")
    place.models.solutions = solutions_of(domain, 0, 20, (1, 0, 0))
    result = place.run("-n", "20", "--domain", "made.yml").result
    assert (result["records"], place.models.questions) == (20, 0)
    for row in place.rows():
        assert row["metadata"]["verify"] in ("arithmetic", "countdown")
        assert row["metadata"]["question_model"] is None


def test_wrong_results_are_not_kept(place: Town) -> None:
    place.models.fault = lambda said: "Answer: 5" if not said.for_question and "boxes" in said.question else None
    outcome = place.run("-n", "30")
    assert outcome.code == 1
    result = outcome.result
    assert result["rejected"] == {"wrong_answer": 25}  # five sums, each with five tries
    assert result["records"] == 25
    assert not any(row["metadata"].get("task_type") == "sums" for row in place.rows())
    assert "given up after 5 drafts: 5 of the records" in outcome.stderr
    before = place.asked
    assert place.run("-n", "30").code == 1  # what was given up is not asked again
    assert place.asked == before
    place.models.fault = lambda said: None
    assert place.run("-n", "30", "--tries", "6").result["records"] == 30


# ---- the same seed -----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_prompts_and_another_one_others(place: Town) -> None:
    def asked(*arguments: str) -> list[str]:
        at = len(place.received)
        assert place.run("-n", "20", *arguments).code == 0
        sent = [json.dumps(each.json["messages"]) for each in place.received[at:] if each.method == "POST"]
        return sorted(sent)

    first = asked("-o", "a")
    assert asked("-o", "b", "-c", "1") == first
    other = asked("-o", "c", "--seed", "1")
    assert len(other) > 20
    assert not {*other} & {*first}
    assert place.files("a") == place.files("b")


def test_more_records_ask_for_nothing_that_is_there(place: Town) -> None:
    place.run("-n", "15")
    rows, before = place.rows(), place.asked
    result = place.run("-n", "40").result
    assert (result["added"], result["records"]) == (25, 40)
    assert place.rows()[:15] == rows
    assert max(place.models.seen.values()) == 1
    assert place.asked - before == sum(len(row["messages"]) // 2 for row in place.rows()[15:]) * 2


# ---- money -------------------------------------------------------------------------------------------------------


def test_a_dry_run_beside_drafts_that_were_not_kept(place: Town, folder: Path) -> None:
    place.models.fault = lambda said: "{}" if said.for_question and said.number < 3 else None
    place.run("-n", "10")
    before = {each.name: each.read_bytes() for each in (folder / "out").iterdir()}
    outcome = place.run("-n", "20", "--dry-run")
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["there"] == 10
    assert {each.name: each.read_bytes() for each in (folder / "out").iterdir()} == before


def test_a_dry_run_asks_nothing_writes_nothing_and_its_figures_hold(place: Town, folder: Path) -> None:
    place.models.price = (1e-6, 5e-6)
    outcome = place.run("-n", "40", "--dry-run", "--max-tokens", "100", "--question-max-tokens", "50")
    assert outcome.code == 0, outcome.stderr
    assert (place.asked, sorted(each.name for each in folder.iterdir())) == (0, ["domain.yml"])
    plan = outcome.result
    assert plan["records"] == {"reasoning": 20, "dialogue": 8, "instruction": 12}
    questions, answers = plan["asks"]
    assert (questions["role"], answers["role"]) == ("questions", "answers")
    total = 0.0
    for ask, most in ((questions, 50), (answers, 100)):
        assert ask["completion_tokens_at_most"] == most * ask["requests"]
        by_hand = (ask["prompt_tokens_estimate"] * 1 + ask["completion_tokens_at_most"] * 5) / 1e6
        assert ask["worst_case_usd"] == pytest.approx(by_hand)
        total += by_hand
    assert plan["worst_case_usd"] == pytest.approx(total)
    assert plan["worst_case_with_tries_usd"] == pytest.approx(5 * total)
    shown = [one["content"] for one in plan["example"]]
    place.run("-n", "40", "--max-tokens", "100", "--question-max-tokens", "50")
    assert (questions["requests"], answers["requests"]) == (place.models.questions, place.models.answers)
    sent = [each.json["messages"] for each in place.received if each.method == "POST"]
    assert shown in [[one["content"] for one in messages] for messages in sent]
    written = [m for m in sent if m[0]["content"].startswith("You write what people ask")]
    size = sum(len(one["content"]) for messages in written for one in messages) / 4
    assert questions["prompt_tokens_estimate"] == pytest.approx(size, rel=0.35)
    after = place.run("-n", "50", "--dry-run", "--max-tokens", "100", "--question-max-tokens", "50").result
    assert (after["there"], sum(after["records"].values())) == (40, 50)
    assert after["asks"][0]["requests"] < 20


def test_half_a_budget_stops_and_a_fresh_one_goes_on_where_it_stopped(place: Town) -> None:
    options = ("-n", "40", "--price", "1000/1000", "--max-tokens", "40", "--question-max-tokens", "40")
    outcome = place.run(*options, "--max-cost", "5")
    assert outcome.code == 3, outcome.stderr
    result = outcome.result
    assert "--max-cost 5 USD is reached" in result["stopped_because"]
    assert result["cost_usd"] + result["maybe_billed_usd"] <= 5
    assert result["cost_usd"] == pytest.approx(place.asked * 120 * 1e-3)
    assert 0 < result["records"] < 40
    made = place.rows()
    done = place.run(*options, "--max-cost", "100")
    assert done.code == 0, done.stderr
    assert max(place.models.seen.values()) == 1  # nothing was asked twice
    assert [row for row in place.rows() if row in made] == made


def test_a_budget_without_a_price_is_refused(place: Town) -> None:
    outcome = place.run("--max-cost", "1")
    assert (outcome.code, "--max-cost needs a price" in outcome.stderr, place.asked) == (2, True, 0)


def test_a_listed_price_holds_the_budget(place: Town) -> None:
    place.models.price = (1e-3, 1e-3)
    outcome = place.run("-n", "10", "--max-cost", "3", "--max-tokens", "40", "--question-max-tokens", "40")
    assert outcome.code == 3
    assert 0 < outcome.result["cost_usd"] <= 3


# ---- models that answer badly ------------------------------------------------------------------------------------


def in_prose(said: Said) -> str | None:
    return f"Sure! Here is one:\n```json\n{_json(said)}\n```\nI hope that helps." if said.for_question else None


def broken(said: Said) -> str | None:
    return _json(said).replace('{"question"', "{question").removesuffix("}") + ",}" if said.for_question else None


def plain(said: Said) -> str | None:
    if said.for_question and '"expression"' not in said.system:
        return question_of(random(said))
    return None


def thinking(said: Said) -> str | None:
    return f'<think>What may they ask? {{"question": "This?"}}</think>{_json(said)}' if said.for_question else None


def _json(said: Said) -> str:
    from tests.support.synthetic import Models

    return Models().text(said)


@pytest.mark.parametrize("fault", [in_prose, broken, plain, thinking])
def test_a_question_is_read_however_it_is_wrapped(place: Town, fault: Any) -> None:
    place.models.fault = fault
    outcome = place.run("-n", "20")
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["rejected"] == {}
    users = [message["content"] for row in place.rows() for message in row["messages"] if message["role"] == "user"]
    assert all(re.match(r"Why does the |Each of \d+", user) for user in users)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (
            '{"question": "Warum ist der alte Hafen im Winter leer, und wo sind dann alle Boote der Fischer?"}',
            "other_language",
        ),
        (REFUSAL, "refusal"),
        ("{}", "no_question"),
        ("Here are three of them:\n\n- one\n- two\n- three", "not_json"),
        ("   ", "empty"),
        ('{"question": "Why is the harbour empty in winter?"}', "echo"),
    ],
)
def test_a_model_that_never_writes_a_question_stops_the_run_and_no_answer_is_paid(
    place: Town, reply: str, reason: str
) -> None:
    place.models.fault = lambda said: reply if said.for_question else None
    outcome = place.run("-n", "500")
    assert outcome.code == 3, outcome.stderr
    result = outcome.result
    assert any(name.startswith(reason) for name in result["rejected"])
    assert result["records"] == 0
    assert place.models.answers == 0
    assert place.models.questions <= 50 + 5
    assert "drafts in a row gave" in result["stopped_because"]
    assert reason in result["stopped_because"]
    assert "combined_0.json" not in result["files"]
    assert "Traceback" not in outcome.stderr


def test_the_same_question_for_ever_stops_the_run_with_what_was_made(place: Town) -> None:
    place.models.fault = lambda said: (
        '{"question": "How many boats may wait in the harbour of the town when the wind is strong?"}'
        if said.for_question
        else None
    )
    outcome = place.run("-n", "500", "--mix", "0/0/1")
    assert outcome.code == 3, outcome.stderr
    assert (outcome.result["records"], place.models.answers) == (1, 1)
    assert place.models.questions <= 1 + 50 + 2 * 5  # what was in flight when the one came, and at the end
    assert "duplicate" in outcome.result["stopped_because"]
    assert len(place.rows()) == 1


def test_the_same_question_for_ever_ends_beside_problems_that_are_made_here(place: Town, folder: Path) -> None:
    """Their answers are something new; they must not keep a fruitless question model at work for ever."""
    (folder / "both.yml").write_text(
        "description: Sums and boats.\nreasoning: [{name: sums, verify: arithmetic}, {name: boats}]\n"
    )
    place.models.solutions = solutions_of(load_domain("both.yml"), 0, 300, (1, 0, 0))
    place.models.fault = lambda said: '{"question": "Why do boats leak?"}' if said.for_question else None
    outcome = place.run("-n", "300", "--domain", "both.yml")
    assert outcome.code == 3, outcome.stderr
    assert place.models.questions <= 150


def test_refusals_are_not_kept_unless_they_are_wanted_and_then_nothing_is_asked(place: Town) -> None:
    place.models.fault = lambda said: (
        REFUSAL if not said.for_question and random(said).random() < 0.3 and "boxes" not in said.question else None
    )
    result = place.run("-n", "40", "--mix", "1/0/1", "--tries", "20").result
    assert result["rejected"]["refusal"] >= 5
    assert not any(REFUSAL in str(row["messages"]) for row in place.rows())
    before, first = place.asked, place.files()
    assert place.run("-n", "40", "--mix", "1/0/1", "--tries", "20", "--no-drop-refusals").result["records"] == 40
    assert any(REFUSAL in str(row["messages"]) for row in place.rows())
    assert place.run("-n", "40", "--mix", "1/0/1", "--tries", "20").result["records"] == 40
    assert place.asked == before
    assert place.files() == first


def test_answers_in_another_language_cut_off_or_going_round_are_not_kept(place: Town) -> None:
    bad = {
        "other_language": "Das hängt davon ab, wie viel Zeit es gibt und was die Leute hier im Ort darüber denken.",
        "repetitive": "and then the boat came back to the harbour again " * 60,
    }

    def fault(said: Said) -> Reply | str | None:
        if said.for_question or "boxes" in said.question:
            return None
        turn = random(said).randrange(6)
        if turn == 0:
            return Reply(body=completion("It is so that the", finish_reason="length"))
        return {1: bad["other_language"], 2: bad["repetitive"]}.get(turn)

    place.models.fault = fault
    outcome = place.run("-n", "40", "--tries", "20")
    assert outcome.code == 0, outcome.stderr
    assert {"truncated", "other_language", "repetitive"} <= {*outcome.result["rejected"]}
    texts = str([row["messages"] for row in place.rows()])
    assert not any(text in texts for text in bad.values())


def test_what_the_provider_filters_is_another_draft(place: Town) -> None:
    def fault(said: Said) -> Reply | None:
        turn = random(said).randrange(10)
        if turn == 3:
            return Reply(body=completion("", finish_reason="content_filter"))
        return error(403, "refused: content policy") if turn == 7 else None

    place.models.fault = fault
    outcome = place.run("-n", "30", "--tries", "20")
    assert outcome.code == 0, outcome.stderr
    assert {"content_filter", "refused_by_provider"} <= {*outcome.result["rejected"]}
    assert outcome.result["records"] == 30


# ---- servers in trouble ------------------------------------------------------------------------------------------


def test_rate_limits_and_broken_servers_are_tried_again(place: Town) -> None:
    def fault(said: Said) -> Reply | None:
        if said.again == 0 and said.number % 9 == 4:
            return error(429, "slow down", {"retry-after": "0"})
        if said.again == 0 and said.number % 9 == 8:
            return error(503, "overloaded")
        return None

    place.models.fault = fault
    outcome = place.run("-n", "15")
    assert outcome.code == 0, outcome.stderr
    assert outcome.result["records"] == 15
    assert outcome.result["failures"] == {}


def test_a_server_that_is_not_there(place: Town, folder: Path) -> None:
    outcome = place.run("-n", "10", "--base-url", "http://127.0.0.1:9/v1", "--retries", "0")
    assert outcome.code == 1, outcome.stderr
    assert "10 connection: the connection failed: is the server up, is --base-url right?" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.result["files"] == []
    assert not (folder / "out/README.md").exists()
    assert place.run("-n", "10").code == 0


def test_a_wrong_key_is_said_at_once_and_never_shown(
    place: Town, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    place.models.fault = lambda said: error(401, f"Incorrect API key provided: {KEY}")
    outcome = place.run("-n", "30")
    assert (outcome.code, place.asked <= 5) == (2, True)
    assert "OPENAI_API_KEY" in outcome.stderr
    written = b"".join(each.read_bytes() for each in folder.rglob("*") if each.is_file())
    assert KEY.encode() not in written + outcome.stderr.encode() + outcome.stdout.encode()
    place.models.fault = lambda said: None
    assert place.run("-n", "3").code == 0


@pytest.mark.parametrize(("backend", "variable"), [("openai", "OPENAI_API_KEY"), ("nvidia", "NVIDIA_API_KEY")])
@pytest.mark.usefixtures("folder")
def test_the_documents_command_without_a_key(capfd: pytest.CaptureFixture[str], backend: str, variable: str) -> None:
    code, _ = cli.run(
        "generate_synthetic", ["--num-records", "100", "--backend", backend, "--output-dir", "synthetic_datasets"]
    )
    said = capfd.readouterr().err
    assert (code, variable in said, Path("synthetic_datasets").exists()) == (2, True, False)


def test_a_folder_without_answers_takes_other_models(place: Town, folder: Path) -> None:
    place.models.fault = lambda said: error(404, "no such model") if said.body["model"] == "typo" else None
    outcome = place.run("-n", "4", "--model", "typo")
    assert outcome.code != 0
    assert not (folder / "out/README.md").exists()
    assert place.run("-n", "4").code == 0


# ---- whose folder it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--seed", "1"], "seed"),
        (["--mix", "1/1/1"], "mix"),
        (["--domain", "finance"], "domain"),
        (["--model", "n"], "model that answers"),
        (["--question-model", "n"], "model that asks"),
        (["--question-temperature", "0.1"], "model that asks"),
    ],
)
def test_another_data_set_in_the_same_folder_is_refused(place: Town, arguments: list[str], what: str) -> None:
    place.run("-n", "4")
    before, files = place.asked, place.files()
    outcome = place.run("-n", "4", *arguments)
    assert (outcome.code, place.asked) == (2, before)
    assert re.search(rf"in this: .*{what}", outcome.stderr)
    assert "--overwrite" in outcome.stderr
    assert place.files() == files


def test_overwrite_keeps_the_old_data_set_beside_the_new_one(place: Town, folder: Path) -> None:
    place.run("-n", "4")
    files = place.files()
    assert place.run("-n", "4", "--seed", "1", "--overwrite").code == 0
    assert place.files("out.old") == files
    assert place.files() != files
    assert place.run("-n", "4", "--seed", "2", "--overwrite").code == 0
    assert (folder / "out.old2").is_dir()


def test_an_overwriting_run_that_stops_says_how_to_go_on(place: Town) -> None:
    outcome = place.run(
        *("-n", "10", "--overwrite", "--price", "1000/1000", "--max-cost", "1"),
        *("--max-tokens", "40", "--question-max-tokens", "40"),
    )
    assert outcome.code == 3
    assert "WITHOUT --overwrite" in outcome.stderr


@pytest.mark.parametrize("name", ["README.md", "reasoning.csv", "train.jsonl", "combined_4.json", "run.json"])
def test_files_of_others_are_not_overwritten(place: Town, folder: Path, name: str) -> None:
    (folder / "out").mkdir()
    (folder / "out" / name).write_text("mine\n")
    outcome = place.run("-n", "4")
    assert (folder / "out" / name).read_text() == "mine\n"
    assert (outcome.code, place.asked) == (2, 0)


def test_a_file_in_the_place_of_the_folder(place: Town, folder: Path) -> None:
    (folder / "out").write_text("mine")
    outcome = place.run("-n", "4")
    assert (outcome.code, "out is a file" in outcome.stderr, place.asked) == (2, True, 0)


def test_a_book_that_is_not_ours(place: Town, folder: Path) -> None:
    place.run("-n", "4")
    with open(folder / "out/paid_answers.jsonl", "ab") as file:
        file.write(b'{"hello": 1}\n')
    outcome = place.run("-n", "8")
    assert outcome.code == 2
    assert re.search(r"paid_answers\.jsonl:\d+: not an answer of ours", outcome.stderr)
    assert "Traceback" not in outcome.stderr


# ---- validation, other doors -------------------------------------------------------------------------------------


def test_validation_alone_asks_for_ten_new_answers_and_says_how_little_they_tell(place: Town) -> None:
    place.run("-n", "20")
    before, questions = place.asked, place.models.questions
    outcome = place.run("--skip-generation", "--validate", "--validate-samples", "10")
    assert outcome.code == 0, outcome.stderr
    assert (place.asked - before, place.models.questions) == (10, questions)
    overlap = outcome.result["overlap"]
    assert overlap["rows"] == 10
    assert overlap["f1_low"] < overlap["f1"] < overlap["f1_high"]
    assert 0 < overlap["f1"] < 1
    assert "95 % intervals" in outcome.stderr
    again = place.asked
    assert place.run("--skip-generation", "--validate").code == 0
    assert place.asked == again  # they were paid


def test_validation_after_generation_and_without_a_data_set(place: Town) -> None:
    assert place.run("-n", "5", "--validate", "--validate-samples", "3").result["overlap"]["rows"] == 3
    missing = place.run("--skip-generation", "--validate", "-o", "none")
    assert (missing.code, "there is no data set yet" in missing.stderr) == (2, True)
    assert place.run("--skip-generation").code == 2


def test_options_from_a_yaml_file(place: Town, folder: Path) -> None:
    (folder / "options.yml").write_text("num_records: 6\nmix: 0/0/1\nseed: 3\n")
    result = place.run("--config", "options.yml").result
    assert result["by_type"] == {"instruction": 6}
    assert json.loads((folder / "out/run.json").read_bytes())["runs"][0]["options"]["seed"]["value"] == 3


def test_the_record_of_the_runs(place: Town, folder: Path) -> None:
    place.run("-n", "4")
    place.run("-n", "6")
    said = json.loads((folder / "out/run.json").read_bytes())
    assert [run["result"]["records"] for run in said["runs"]] == [4, 6]
    assert [run["options"]["num_records"]["value"] for run in said["runs"]] == [4, 6]


def test_rejected_drafts_and_failures_are_listed_with_their_place(place: Town, folder: Path) -> None:
    refused: list[str] = []

    def fault(said: Said) -> Reply | str | None:
        if said.for_question:
            return "{}" if said.number == 0 else None
        refused[:] = refused or [said.question]  # the first that is asked, whichever it is
        return error(400, "bad request") if said.question in refused else None

    place.models.fault = fault
    outcome = place.run("-n", "10")
    assert outcome.code == 1, outcome.stderr
    (rejected,) = [json.loads(line) for line in (folder / "out/rejected.jsonl").read_text().splitlines()]
    assert (rejected["reason"], rejected["attempt"]) == ("no_question", 0)
    failures = [json.loads(line) for line in (folder / "out/failures.jsonl").read_text().splitlines()]
    assert len(failures) == sum(outcome.result["failures"].values()) == 10 - outcome.result["records"] == 1
    place.models.fault = lambda said: None
    assert place.run("-n", "10").code == 0


@pytest.mark.usefixtures("folder")
def test_the_package_that_is_not_installed(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)  # as Python marks what is not there
    outcome = place.run("-n", "4")
    assert outcome.code == 2
    assert "datasketch" in outcome.stderr
    assert "doctor.py --install data" in outcome.stderr
    assert place.asked == 0


def test_the_book_is_left_whole_by_a_torn_last_line(place: Town, folder: Path) -> None:
    place.run("-n", "6")
    files, before = place.files(), place.asked
    book = folder / "out/paid_answers.jsonl"
    with open(book, "ab") as file:
        file.write(b'{"id": "0123')
    assert place.run("-n", "6").code == 0
    assert (place.files(), place.asked) == (files, before)
    AnswerBook(book, lambda paid: None).close()


def test_a_server_that_lists_nothing_is_no_hindrance(folder: Path) -> None:
    def no_list(request: Any) -> Reply:
        return error(404, "no") if request.method == "GET" else here.models(request)

    with town(folder) as here, small_server(no_list) as server:
        assert here.run("-n", "3", "--base-url", server.url).code == 0
