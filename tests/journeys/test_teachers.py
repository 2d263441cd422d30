"""`teachers` as people run it: without a key, with the figures of a dry run, and where there is no list."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.price_lists import PriceLists
from tests.support.running import GENERATE, KEY, ROOT, Outcome, ended, small_server, start, write_rows

TEACHERS = ROOT / "scripts" / "teachers.py"


def run(folder: Path, *arguments: str, script: Path = TEACHERS, **env: Any) -> Outcome:
    return ended(start(folder, *arguments, script=script, **env))


def test_the_table_is_on_stdout_and_how_it_was_made_on_stderr(folder: Path) -> None:
    with small_server(PriceLists()) as server:
        found = run(folder, "--backend", "openrouter", "--base-url", server.url)
        assert {request.headers.get("authorization") for request in server.received} == {None}
        assert {request.method for request in server.received} == {"GET"}
    assert found.code == 0, found.stderr
    assert found.stdout.startswith("MODEL ")
    assert "may be trained on: their authors allow it" in found.stdout
    assert f"10 models in {server.url}/models, read 20" in found.stderr
    assert list(folder.iterdir()) == []


def test_costs_are_those_of_the_dry_run_of_generate_teacher_data(folder: Path) -> None:
    prompts = [
        {"prompt": "Was ist ein Äquator? " * 7},
        {"prompt": "x"},
        {"messages": [{"role": "user", "content": "é"}]},
    ]
    write_rows(folder / "prompts.jsonl", [*prompts, {"prompt": ""}])
    shared = ("--input", "prompts.jsonl", "--max-tokens", "700", "--samples", "3", "--system", "Be brief.", "--json")
    with small_server(PriceLists()) as server:
        where = ("--backend", "openrouter", "--base-url", server.url)
        listed = run(folder, *shared, *where)
        assert listed.code == 0, listed.stderr
        plans = {
            model: run(folder, *shared, *where, "--model", model, "--dry-run", script=GENERATE)
            for model in ("acme/large", "open/mini")
        }
        assert not server.chats
    rows = {each["model"]: each for each in listed.result["teachers"]}
    for model, plan in plans.items():
        assert plan.code == 0, plan.stderr
        assert rows[model]["cost_at_most_usd"] == pytest.approx(plan.result["worst_case_usd"])
        assert plan.result["worst_case_usd"] > 0
        for figure in ("prompts", "bad_rows", "prompt_tokens_estimate", "completion_tokens_at_most"):
            assert listed.result[figure] == plan.result[figure]
        price = (rows[model]["prompt_usd_per_million"], rows[model]["completion_usd_per_million"])
        assert price == pytest.approx(tuple(plan.result["price_usd_per_million"]))
    assert "unusable rows: 1" in listed.stderr


def test_without_a_list_there_is_one_line_and_exit_2(folder: Path) -> None:
    for arguments, said in (
        (("--base-url", "http://127.0.0.1:9/v1"), "cannot connect to http://127.0.0.1:9/v1"),
        (("--backend", "openai"), "OPENAI_API_KEY is not set"),
        (("--base-url", "http://127.0.0.1:9/v1", "--distillable"), "only OpenRouter knows what may be trained on"),
        (("--input", "nowhere.txt"), "nowhere.txt: no such file"),
        (("--base-url", f"http://me:{KEY}@127.0.0.1/v1"), "a user, a password or a query"),
        (("--sort", "quality"), "--sort"),
    ):
        found = run(folder, *arguments)
        assert found.code == 2
        assert found.stdout == ""
        (error,) = [line for line in found.stderr.splitlines() if "error: " in line]
        assert said in error
        assert "Traceback" not in found.stderr
        assert KEY not in found.stderr


def test_a_key_goes_to_its_own_server_and_nowhere_into_the_output(folder: Path) -> None:
    with small_server(PriceLists()) as server:
        (folder / ".env").write_text(f"MY_API_KEY={KEY}\n", encoding="utf-8")
        found = run(folder, "--base-url", server.url, "--api-key-env", "MY_API_KEY", "--json")
        assert {request.headers["authorization"] for request in server.received} == {f"Bearer {KEY}"}
    assert found.code == 0, found.stderr
    assert KEY not in found.stdout + found.stderr
