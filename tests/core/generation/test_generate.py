"""The command against a server: nothing paid for is lost, nothing is paid for twice."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from core.commands.generate_teacher_data import Generated
from core.data.jsonlines import Journal
from tests.conftest import Generate
from tests.support.running import (
    KEY,
    Mock,
    Received,
    Reply,
    chat_answer,
    ended,
    questions,
    read_rows,
    small_server,
    start,
    write_rows,
)

OUT, FAILURES, REJECTED, RUN = (
    Path(f"train.jsonl{end}") for end in ("", ".failures.jsonl", ".rejected.jsonl", ".run.json")
)


@pytest.fixture
def prompts(folder: Path) -> Path:
    """prompts.jsonl with ten questions."""
    return write_rows(folder / "prompts.jsonl", questions(10))


def answered(path: Path = OUT) -> Counter[tuple[str, int]]:
    """(prompt, sample) of every row."""
    return Counter((row["messages"][-2]["content"], row["metadata"]["sample"]) for row in read_rows(path))


def everything_written(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# ---- rows ------------------------------------------------------------------------------------------------------


def test_a_row_holds_the_conversation_and_everything_about_the_answer(folder: Path, ask: Generate) -> None:
    row = {
        "prompt": "[id:a] Hi",
        "category": "x",
        "id": "theirs",
        "teacher": 7,
        "metadata": {"usage": [1], "deep": {"a": 1}, "input_id": "also theirs"},
    }
    write_rows(folder / "prompts.jsonl", [{"oops": 1}, row])
    assert ask("--system", "Be kind.").code == 1  # the first row is bad
    (written,) = read_rows(OUT)
    assert [m["role"] for m in written["messages"]] == ["system", "user", "assistant"]
    assert written["messages"][0]["content"] == "Be kind."
    assert written["messages"][2]["content"].startswith("[a/None] ")
    metadata = written["metadata"]
    assert metadata["teacher"] == "mock/model"
    assert metadata["index"] == 1  # its place in the input, the bad row counted
    assert metadata["sample"] == 0
    assert metadata["finish_reason"] == "stop"
    # "[id:a] Hi" and "Be kind." are 9 and 8 characters: 17 // 4 + 3 = 7 tokens in and 12 out, at 3 and 15 USD a million
    assert metadata["usage"] == {"prompt_tokens": 7, "completion_tokens": 12, "reasoning_tokens": 0}
    assert metadata["cost"] == pytest.approx(7 * 3e-6 + 12 * 15e-6)
    assert len(metadata["id"]) == 32
    assert (metadata["category"], metadata["deep"]) == ("x", {"a": 1})
    assert (metadata["input_input_id"], metadata["input_id"]) == ("theirs", "also theirs")
    assert (metadata["input_teacher"], metadata["input_usage"]) == (7, [1])


@pytest.mark.usefixtures("prompts")
def test_reasoning_is_kept_apart_and_goes_into_the_message_on_request(ask: Generate, mock: Mock) -> None:
    mock.configure(reasoning="reasoning")
    ask("--limit", "1")
    mock.configure(reasoning="content")
    ask("--limit", "1", "--keep-reasoning", "--output", "kept.jsonl")
    (plain,), (kept,) = read_rows(OUT), read_rows(Path("kept.jsonl"))
    assert plain["metadata"]["reasoning"].startswith("Let me think.")
    assert plain["metadata"]["usage"]["reasoning_tokens"] == 20
    assert "reasoning_content" not in plain["messages"][-1]
    assert "Let me think" not in plain["messages"][-1]["content"]
    assert kept["messages"][-1]["reasoning_content"] == kept["metadata"]["reasoning"]


@pytest.mark.usefixtures("prompts")
def test_the_result_counts_rows_tokens_money_and_lengths(ask: Generate) -> None:
    outcome = ask("--samples", "2")
    result = outcome.result
    assert outcome.code == 0
    assert (result["status"], result["rows"], result["rows_in_output"], result["remaining"]) == ("done", 20, 20, 0)
    assert result["completion_tokens"] == 20 * 12
    assert result["finish_reasons"] == {"stop": 20}
    assert result["answer_tokens"] == {"min": 12, "25%": 12, "median": 12, "75%": 12, "90%": 12, "max": 12}
    assert result["cost_usd"] == pytest.approx(sum(row["metadata"]["cost"] for row in read_rows(OUT)))
    assert not FAILURES.exists()
    assert not REJECTED.exists()


@pytest.mark.usefixtures("prompts")
def test_the_next_step_is_to_check_the_rows_and_only_those_of_the_usual_name_are_to_train_on(ask: Generate) -> None:
    results = ask().result, ask("--output", "test set.jsonl").result
    trained, tested = (Generated.model_validate(result).summary() for result in results)
    assert "show.py train.jsonl; python scripts/check_data.py train.jsonl --fix clean.jsonl; train_sft.py" in trained
    assert tested.endswith("show.py 'test set.jsonl'; python scripts/check_data.py 'test set.jsonl'")


@pytest.mark.usefixtures("prompts")
def test_run_json_holds_every_run_with_options_origins_and_result(ask: Generate, mock: Mock) -> None:
    ask("--temperature", "0.5")
    ask("--temperature", "0.5")
    runs = json.loads(RUN.read_bytes())["runs"]
    assert len(runs) == 2
    first, second = runs
    assert first["command"] == "generate_teacher_data"
    assert first["options"]["temperature"] == {"value": 0.5, "from": "--temperature"}
    assert first["options"]["samples"] == {"value": 1, "from": "default"}
    assert first["teacher"]["model"] == "mock/model"
    assert first["teacher"]["endpoint"] == mock.base_url
    assert (first["result"]["rows"], second["result"]["rows"], second["result"]["rows_in_output"]) == (10, 0, 10)
    assert first["started"] <= first["ended"] <= second["started"]
    assert first["version"]


# ---- the same command again ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prompts")
def test_the_same_command_again_asks_for_nothing_and_changes_nothing(ask: Generate, mock: Mock) -> None:
    ask()
    before = OUT.read_bytes()
    outcome = ask("--concurrency", "9", "--retries", "1", "--timeout", "30", "--min-chars", "2")
    assert outcome.code == 0
    assert mock.requests == 10
    assert OUT.read_bytes() == before


@pytest.mark.usefixtures("prompts")
def test_more_samples_top_up_and_each_has_its_own_seed(ask: Generate, mock: Mock) -> None:
    ask("--samples", "1")
    outcome = ask("--samples", "3")
    assert outcome.result["rows"] == 20
    assert mock.requests == 30
    assert mock.stats()["paid_more_than_once"] == 0  # prompt and seed differ in every request
    assert answered() == {(q["prompt"], sample): 1 for q in questions(10) for sample in range(3)}
    assert ask("--samples", "2").result["rows"] == 0
    assert mock.requests == 30


@pytest.mark.usefixtures("prompts")
def test_a_second_teacher_adds_its_rows_to_the_same_file(ask: Generate, mock: Mock) -> None:
    ask()
    assert ask("--model", "mock/not-distillable").result["rows"] == 10
    teachers = Counter(row["metadata"]["teacher"] for row in read_rows(OUT))
    assert teachers == {"mock/model": 10, "mock/not-distillable": 10}
    ask()
    assert mock.requests == 20


@pytest.mark.usefixtures("prompts")
@pytest.mark.parametrize(
    "change",
    [
        ("--system", "Be brief."),
        ("--temperature", "0.1"),
        ("--max-tokens", "100"),
        ("--top-p", "0.5"),
        ("--seed", "1"),
        ("--extra-body", '{"min_p": 0.1}'),
    ],
)
def test_whatever_changes_the_answer_is_new_work(ask: Generate, mock: Mock, change: tuple[str, ...]) -> None:
    ask("--limit", "2")
    assert ask("--limit", "2", *change).result["rows"] == 2
    assert ask("--limit", "2").result["rows"] == 0
    assert ask("--limit", "2", *change).result["rows"] == 0
    assert mock.requests == 4


@pytest.mark.usefixtures("prompts")
def test_another_base_url_is_new_work(ask: Generate, mock: Mock) -> None:
    ask("--limit", "2")
    assert ask("--limit", "2", "--base-url", f"http://{mock.address}/api/v1").result["rows"] == 2
    assert ask("--limit", "2", "--base-url", mock.base_url + "/").result["rows"] == 0


def test_reordering_and_extending_the_prompts_asks_only_for_what_is_new(
    folder: Path, ask: Generate, mock: Mock
) -> None:
    write_rows(folder / "prompts.jsonl", questions(6))
    ask()
    write_rows(folder / "prompts.jsonl", [*questions(3, 6), *reversed(questions(6))])
    assert ask().result["rows"] == 3
    assert mock.requests == 9
    assert answered() == {(q["prompt"], 0): 1 for q in questions(9)}


def test_the_same_prompt_from_another_kind_of_file_is_the_same_work(folder: Path, ask: Generate, mock: Mock) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": "[id:a] Hi", "category": "x"}])
    (folder / "prompts.txt").write_text("[id:a] Hi\n", encoding="utf-8")
    ask()
    assert ask("--input", "prompts.txt").result["rows"] == 0
    assert mock.requests == 1


def test_equal_prompts_are_work_of_their_own_unless_deduplicated(folder: Path, ask: Generate, mock: Mock) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"prompt": "a"}])
    assert ask("--dedupe").result["rows"] == 2
    assert ask().result["rows"] == 2  # the other two occurrences of "a"
    assert ask().result["rows"] == 0
    assert mock.requests == 4
    assert answered() == {("a", 0): 3, ("b", 0): 1}


def test_shards_are_disjoint_and_together_the_whole(folder: Path, ask: Generate, mock: Mock) -> None:
    rows = [*questions(7), {"prompt": "twice"}, {"prompt": "twice"}, {"prompt": "last"}]
    write_rows(folder / "prompts.jsonl", rows)
    for i in (1, 2, 3):
        assert ask("--shard", f"{i}/3", "--output", f"{i}.jsonl").code == 0
    parts = [{row["metadata"]["id"] for row in read_rows(Path(f"{i}.jsonl"))} for i in (1, 2, 3)]
    assert [len(part) for part in parts] == [4, 3, 3]  # rows 0 3 6 9, 1 4 7, 2 5 8
    whole = set.union(*parts)
    assert len(whole) == 10
    OUT.write_bytes(b"".join(Path(f"{i}.jsonl").read_bytes() for i in (1, 2, 3)))
    assert ask().result["rows"] == 0  # the parts put together are the output of the run without shards
    assert mock.requests == 10


@pytest.mark.usefixtures("prompts")
def test_overwrite_starts_anew_and_keeps_what_was_there(ask: Generate, mock: Mock) -> None:
    ask()
    before = OUT.read_bytes()
    for _ in range(2):
        assert ask("--overwrite").result["rows"] == 10
    assert Path("train.jsonl.old").read_bytes() == before
    assert Path("train.jsonl.old2").exists()
    assert mock.requests == 30


@pytest.mark.usefixtures("prompts")
def test_overwrite_moves_nothing_aside_when_the_input_is_wrong(ask: Generate) -> None:
    ask()
    before = OUT.read_bytes()
    Path("bad.jsonl").write_text('{"question": "x"}\n', encoding="utf-8")
    assert ask("--input", "bad.jsonl", "--overwrite").code == 2
    assert OUT.read_bytes() == before


@pytest.mark.usefixtures("prompts")
def test_the_output_cannot_be_its_own_input(ask: Generate, mock: Mock) -> None:
    ask()
    outcome = ask("--input", "train.jsonl", "--temperature", "0.1")
    assert outcome.code == 2
    assert "--output" in outcome.stderr
    assert mock.requests == 10


# ---- crashes ---------------------------------------------------------------------------------------------------


def test_killed_at_any_moment_the_same_command_completes_the_file(folder: Path, mock: Mock) -> None:
    mock.configure(latency="uniform:0.01:0.05", p500=0.02, pmalformed=0.02, pdrop=0.02, perr200=0.02)
    write_rows(folder / "prompts.jsonl", questions(80))
    arguments = ("--input", "prompts.jsonl", "--base-url", mock.base_url, "--model", mock.model, "--samples", "3")
    arguments = (*arguments, "--concurrency", "20", "--retries", "9")
    kills = 0
    for share in (0.2, 0.5, 0.8):
        process = start(folder, *arguments)
        until = time.monotonic() + 30
        while mock.stats()["paid"] < share * 240 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        kills += process.poll() is None  # before the kill: at once after it the process may be gone
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        with open(folder / OUT, "ab") as file:
            file.write(b'{"messages":[{"role":"user","content":"torn')
    outcome = ended(start(folder, *arguments))
    assert outcome.code == 0, outcome.stderr
    assert answered(folder / OUT) == {(q["prompt"], sample): 1 for q in questions(80) for sample in range(3)}
    stats = mock.stats()
    unusable = stats["kinds"].get("malformed", 0)
    assert stats["paid"] - unusable - 240 <= 20 * kills  # at most what was in flight at each kill


@pytest.mark.usefixtures("prompts")
def test_a_torn_last_line_is_asked_again_and_nothing_else(ask: Generate, mock: Mock) -> None:
    ask("--concurrency", "1")
    whole = OUT.read_bytes()
    OUT.write_bytes(whole[:-30])
    assert ask().result["rows"] == 1
    assert mock.requests == 11
    assert len(read_rows(OUT)) == 10
    assert len({row["metadata"]["id"] for row in read_rows(OUT)}) == 10


@pytest.mark.usefixtures("prompts")
def test_two_writers_at_once_are_refused(ask: Generate, mock: Mock) -> None:
    ask("--limit", "1")
    first = Journal(OUT, lambda _, row: None)
    for more in ((), ("--overwrite",)):
        outcome = ask(*more)
        assert outcome.code == 2
        assert "another run is writing train.jsonl" in outcome.stderr
    first.append({"still": "here"})
    first.close()
    assert read_rows(OUT)[-1] == {"still": "here"}
    assert mock.requests == 1


@pytest.mark.usefixtures("prompts")
def test_a_damaged_run_record_does_not_stop_a_run(ask: Generate) -> None:
    for damage in (b"", b"{", b"[]", b'{"runs": 5}', b"\xff"):
        RUN.write_bytes(damage)
        assert ask("--limit", "1").code == 0


# ---- failures and rejections -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("prompts")
def test_failures_are_listed_with_reasons_tried_again_and_forgotten(ask: Generate, mock: Mock) -> None:
    mock.configure(p500=1)
    outcome = ask("--retries", "0", "--limit", "3")
    assert outcome.code == 1
    assert outcome.result["failures"] == {"upstream_error": 3}
    assert "3 upstream_error: the provider had errors: run the same command again" in outcome.stderr
    failures = read_rows(FAILURES)
    assert [(f["reason"], f["attempts"]) for f in failures] == [("upstream_error", 1)] * 3
    assert {f["place"] for f in failures} == {f"prompts.jsonl:{n}" for n in (1, 2, 3)}
    assert "500: mock 500" in failures[0]["message"]
    assert not OUT.exists()
    assert ask("--retries", "0", "--limit", "3").code == 1
    assert len(read_rows(FAILURES)) == 3  # not six: the last word about each
    mock.configure(p500=0)
    assert ask("--limit", "3").code == 0
    assert not FAILURES.exists()
    assert len(read_rows(OUT)) == 3


def test_bad_rows_are_listed_and_forgotten_when_they_are_mended(folder: Path, ask: Generate) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}, {"promt": "b"}])
    outcome = ask()
    assert outcome.code == 1
    assert 'prompts.jsonl:2: no "prompt" or "messages" key (found: "promt")' in outcome.stderr
    assert [f["reason"] for f in read_rows(FAILURES)] == ["bad_row"]
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    assert ask().code == 0
    assert not FAILURES.exists()
    assert len(read_rows(OUT)) == 2


@pytest.mark.usefixtures("prompts")
def test_rejected_answers_are_paid_once_and_taken_in_by_looser_filters(ask: Generate, mock: Mock) -> None:
    outcome = ask("--min-chars", "1000", "--limit", "4")
    assert (outcome.code, outcome.result["rejected"], outcome.result["rows"]) == (0, 4, 0)
    assert {row["metadata"]["rejected_because"] for row in read_rows(REJECTED)} == {"too_short"}
    assert ask("--min-chars", "999", "--limit", "4").result["rows"] == 0
    outcome = ask("--min-chars", "10", "--limit", "4")
    assert (outcome.result["rows"], outcome.result["rows_in_output"]) == (4, 4)
    assert mock.requests == 4
    assert not REJECTED.exists()
    assert all("rejected_because" not in row["metadata"] for row in read_rows(OUT))
    assert ask("--limit", "4").result["rows"] == 0


@pytest.mark.usefixtures("prompts")
def test_truncated_answers_are_rejected_and_taken_in_on_request(ask: Generate, mock: Mock) -> None:
    outcome = ask("--max-tokens", "5", "--limit", "2")
    assert (outcome.result["rejected"], outcome.result["finish_reasons"]) == (2, {"length": 2})
    assert "2 truncated: cut off by --max-tokens" in outcome.stderr
    assert ask("--max-tokens", "5", "--limit", "2", "--no-drop-truncated").result["rows"] == 2
    assert mock.requests == 2


def test_an_answer_that_the_provider_marks_as_a_refusal_stays_rejected(folder: Path, generate: Generate) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}])
    with small_server(lambda _: Reply(body=chat_answer("No.", refusal="I will not."))) as server:
        arguments = ("--input", "prompts.jsonl", "--base-url", server.url, "--model", "m")
        for _ in range(2):
            generate(*arguments, "--drop-refusals")
            assert len(read_rows(REJECTED)) == 1
            assert not OUT.exists()
        assert generate(*arguments).result["rows"] == 1
        assert len(server.chats) == 1


@pytest.mark.usefixtures("prompts")
def test_faults_of_every_kind_leave_only_whole_answers(ask: Generate, mock: Mock) -> None:
    faults = ("p429", "p500", "p502", "p408", "pdrop", "pdropmid", "pmalformed", "perr200", "pempty", "pstreamerr")
    mock.configure(**dict.fromkeys(faults, 0.02))
    outcome = ask("--retries", "12", "--concurrency", "20", "--samples", "2")
    assert outcome.code == 0, outcome.stderr
    assert answered() == {(q["prompt"], sample): 1 for q in questions(10) for sample in (0, 1)}
    assert all(row["messages"][-1]["content"].endswith(" student may") for row in read_rows(OUT))  # the end of it


# ---- money -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prompts")
def test_max_cost_stops_before_the_request_that_could_exceed_it(ask: Generate, mock: Mock) -> None:
    # At the listed 15 USD per million, 1,000 tokens are 0.015 USD at worst (and a little for the prompt); an answer of
    # 12 tokens costs about 0.0002. After n answers the next one still fits while n x 0.0002 + 0.0151 <= 0.0165.
    outcome = ask("--max-cost", "0.0165", "--max-tokens", "1000", "--concurrency", "3")
    assert outcome.code == 3
    assert "--max-cost 0.0165 USD is reached" in outcome.stderr
    assert 0 < outcome.result["rows"] < 10
    assert outcome.result["cost_usd"] <= 0.0165
    assert mock.stats()["peak_inflight"] == 1
    assert ask("--max-tokens", "1000").result["rows_in_output"] == 10
    assert mock.requests == 10


@pytest.mark.usefixtures("prompts")
def test_max_cost_without_a_price_is_refused_and_works_with_price(ask: Generate, mock: Mock) -> None:
    outcome = ask("--model", "mock/unlisted", "--max-cost", "1")
    assert outcome.code == 2
    assert "--max-cost needs a price" in outcome.stderr
    assert "--price 3/15" in outcome.stderr
    assert ask("--model", "mock/unlisted", "--max-cost", "1", "--price", "3/15").code == 0


@pytest.mark.usefixtures("prompts")
def test_a_dry_run_says_what_it_would_cost_and_touches_nothing(folder: Path, ask: Generate, mock: Mock) -> None:
    ask("--limit", "4")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    mock.forget()
    outcome = ask("--dry-run", "--samples", "2", "--max-tokens", "1000")
    plan = outcome.result
    assert outcome.code == 0
    assert (plan["prompts"], plan["answers_wanted"], plan["requests"]) == (10, 20, 20)  # another max_tokens: new work
    assert plan["completion_tokens_at_most"] == 20_000
    assert plan["price_usd_per_million"] == [3.0, 15.0]
    # 20,000 tokens at 15 USD a million are 0.30 USD, and 20 prompts of 22 characters 110 tokens at 3
    assert plan["worst_case_usd"] == pytest.approx(0.3 + 110 * 3e-6)
    # the four answers there have 12 tokens each, and 20 such answers cost 240 * 15e-6 = 0.0036 USD
    assert plan["expected_usd"] == pytest.approx(0.0036 + 110 * 3e-6)
    assert ask("--dry-run").result["answers_there"] == 4
    assert mock.requests == 0
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.usefixtures("prompts")
def test_a_dry_run_without_a_list_of_prices_says_so(generate: Generate) -> None:
    outcome = generate("--input", "prompts.jsonl", "--base-url", "http://127.0.0.1:1/v1", "--model", "m", "--dry-run")
    assert outcome.code == 0
    assert outcome.result["price_usd_per_million"] is None
    assert "unknown, none found at http://127.0.0.1:1/v1/models; see --price" in outcome.stderr


@pytest.mark.usefixtures("prompts")
def test_a_dry_run_finds_that_the_output_has_no_place(ask: Generate, folder: Path) -> None:
    outcome = ask("--dry-run", "--output", "nowhere/train.jsonl")
    assert (outcome.code, "mkdir -p nowhere" in outcome.stderr) == (2, True)
    outcome = ask("--dry-run", "--output", str(folder))
    assert (outcome.code, "is a directory" in outcome.stderr) == (2, True)


# ---- seeds -----------------------------------------------------------------------------------------------------


def seeds_sent(generate: Generate, *arguments: str) -> list[int | None]:
    with small_server(lambda _: Reply(body=chat_answer())) as server:
        outcome = generate("--input", "prompts.jsonl", "--base-url", server.url, "--model", "m", "-c", "1", *arguments)
        assert outcome.code == 0, outcome.stderr
        return [request.json.get("seed") for request in server.chats]


def test_every_sample_has_its_own_seed_and_the_same_base_seed_gives_the_same(folder: Path, generate: Generate) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}])
    with small_server(lambda _: Reply(body=chat_answer())) as server:
        arguments = ("--input", "prompts.jsonl", "--base-url", server.url, "--model", "m", "--samples", "2")
        generate(*arguments, "--seed", "1")
        generate(*arguments, "--seed", "1", "--output", "again.jsonl")
        generate(*arguments, "--seed", "2", "--output", "other.jsonl")
        seeds = [request.json["seed"] for request in server.chats]
    first, again, other = (set(seeds[part : part + 6]) for part in (0, 6, 12))
    assert len(first) == 6
    assert first == again
    assert not first & other
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_without_a_seed_only_further_samples_carry_one(folder: Path, generate: Generate) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}])
    first, *others = seeds_sent(generate, "--samples", "3")
    assert first is None
    assert None not in others
    assert len(set(others)) == 2


# ---- the key ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
def test_the_key_is_in_no_file_and_in_no_output_even_if_the_server_echoes_it(
    folder: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "b"}])

    def echo(got: Received) -> Reply:
        authorization = got.headers.get("authorization", "")
        if status == 200:
            return Reply(body=chat_answer(f"You sent {authorization}"))
        return Reply(status, json.dumps({"error": {"message": f"bad key {authorization}"}}).encode())

    with small_server(echo) as server:
        outcome = generate(
            "--input",
            "prompts.jsonl",
            "--base-url",
            server.url,
            "--model",
            "m",
            "--retries",
            "0",
            "--events",
            "e.jsonl",
        )
        assert server.chats[0].headers["authorization"] == f"Bearer {KEY}"
    assert outcome.code == {200: 0, 401: 2}.get(status, 1)
    assert KEY not in outcome.stdout + outcome.stderr
    assert KEY.encode() not in everything_written(folder)
    assert b"***" in everything_written(folder) + outcome.stderr.encode()


def test_a_redirect_to_another_host_gets_neither_key_nor_prompt(
    folder: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}])
    with small_server(lambda _: Reply(body=chat_answer())) as thief:
        place = thief.url.replace("127.0.0.1", "localhost") + "/chat/completions"
        with small_server(lambda _: Reply(307, b"", {"location": place})) as server:
            outcome = generate(
                "--input",
                "prompts.jsonl",
                "--base-url",
                server.url,
                "--model",
                "m",
                "--max-cost",
                "1",
                "--price",
                "1/1",
            )
        assert thief.received == []
    assert outcome.code == 2
    assert place in outcome.stderr
    assert not OUT.exists()


def test_a_netrc_neither_breaks_the_run_nor_leaves_this_machine(
    folder: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (folder / "netrc").write_text("default login me password s3cretword\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}])
    with small_server(lambda _: Reply(body=chat_answer())) as server:
        assert generate("--input", "prompts.jsonl", "--base-url", server.url, "--model", "m").code == 0
        assert server.chats[0].headers["authorization"] == f"Bearer {KEY}"


def test_proxies_of_the_environment_are_used(folder: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}])
    with small_server(lambda _: Reply(body=chat_answer("through the proxy"))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        arguments = ("--input", "prompts.jsonl", "--base-url", "http://teacher.example/v1", "--model", "m")
        assert generate(*arguments).code == 0
        assert proxy.chats[0].path == "http://teacher.example/v1/chat/completions"
    assert read_rows(OUT)[0]["messages"][-1]["content"] == "through the proxy"


# ---- money that must not leak ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("prompts")
def test_the_runs_own_files_are_no_input(ask: Generate, mock: Mock) -> None:
    assert ask("--min-chars", "100000").code == 0
    mock.forget()
    outcome = ask("--input", "train.jsonl.rejected.jsonl", "--min-chars", "100000")
    assert (outcome.code, mock.requests) == (2, 0)
    assert "belongs to --output" in outcome.stderr


def test_the_budget_holds_where_a_server_counts_no_tokens(generate: Generate, folder: Path) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": f"question {i}"} for i in range(50)])
    silent = json.dumps({"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}).encode()
    with small_server(lambda _: Reply(200, silent)) as server:
        outcome = generate(
            *("--input", "prompts.jsonl", "--base-url", server.url, "--model", "m"),
            *("--max-tokens", "100", "--max-cost", "0.05", "--price", "0/100"),
        )
        # 100 tokens at 100 USD a million may cost 0.01 USD an answer: five fit into 0.05
        assert (outcome.code, len(server.chats)) == (3, 5)
    assert outcome.result["cost_usd"] is None


@pytest.mark.usefixtures("prompts")
@pytest.mark.parametrize("field", ["n", "stream", "max_tokens", "model", "messages", "tools"])
def test_extra_body_may_not_set_what_the_budget_and_the_rows_rest_on(ask: Generate, mock: Mock, field: str) -> None:
    outcome = ask("--extra-body", json.dumps({field: 3}))
    assert (outcome.code, mock.requests) == (2, 0)
    assert f'--extra-body: "{field}"' in outcome.stderr


def test_bad_prompts_at_the_front_stop_one_run_and_not_every_run(generate: Generate, folder: Path) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": f"{'bad' if i < 30 else 'good'} {i}"} for i in range(40)])

    def refuse_the_bad(request: Received) -> Reply:
        if b'"bad ' in request.body:
            return Reply(400, b'{"error": {"message": "too long"}}')
        return Reply(200, chat_answer("fine"))

    with small_server(refuse_the_bad) as server:
        arguments = ("--input", "prompts.jsonl", "--base-url", server.url, "--model", "m")
        assert generate(*arguments).code == 3  # 25 failures one after another
        generate(*arguments)
    assert len(read_rows(OUT)) == 10


@pytest.mark.parametrize(
    "damaged",
    [
        '{"messages": "text", "metadata": {"id": "%s"}}',
        '{"messages": [1], "metadata": {"id": "%s"}}',
        '{"messages": [{"role": "assistant", "content": "A"}], "metadata": {"id": "%s"}}',
        '{"messages": [{"role": "assistant", "content": 5}], "metadata": {"id": "%s", "finish_reason": "stop"}}',
    ],
)
def test_a_damaged_row_among_the_rejected_is_named_with_its_line(damaged: str, ask: Generate, folder: Path) -> None:
    write_rows(folder / "prompts.jsonl", questions(1))
    (folder / "train.jsonl.rejected.jsonl").write_text(damaged % ("0" * 32) + "\n", encoding="utf-8")
    outcome = ask()
    assert outcome.code == 2
    assert "train.jsonl.rejected.jsonl:1: not a" in outcome.stderr
