"""Paid work needs a bound or a yes: by the user in the client, or by a second call."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.client.context import ClientRequestContext
from mcp.types import ElicitRequestParams, ElicitResult, ErrorData

from core.commands import Command, load
from core.errors import UsageError
from mcp_server import commands, confirm
from mcp_server.confirm import (
    Agreements,
    Billed,
    Question,
    billed,
    cost_of,
    no_price,
    pinned,
    question_of,
    refuse_prices,
    usd,
    work_of,
)
from mcp_server.door import Settings
from mcp_server.server import build
from mcp_server.texts import TEXTS
from tests.mcp_server.conftest import Answer, Caller, called
from tests.support.running import Mock, questions, read_rows, write_rows

LOCAL, REMOTE = "http://127.0.0.1:8000/v1", "https://gpu.example/v1"
PRICE = "1000/1000"
"""USD per million tokens: what a few short answers cost is seen."""


@pytest.fixture
def prompts(workspace: Path) -> Path:
    return write_rows(workspace / "prompts.jsonl", questions(3))


@pytest.fixture
def hosted(workspace: Path, mock: Mock) -> Caller:
    """A caller of a server that may ask the mock under a name that is not this machine's: a provider, as it seems."""
    return Caller(build(Settings(workspace, allow_urls=(elsewhere(mock),))), "2026-07-28", {})


def elsewhere(mock: Mock) -> str:
    return mock.base_url.replace("127.0.0.1", "0.0.0.0")


def paid(mock: Mock, price: str | None = PRICE, **more: Any) -> dict[str, Any]:
    asks = {"input": "prompts.jsonl", "model": mock.model, "base_url": mock.base_url, "max_tokens": 100}
    return {**asks, "config": {"price": price}, **more}


class User:
    """Whoever sits before a client. answer: to every question.   asked: the questions."""

    def __init__(self, answer: ElicitResult | ErrorData) -> None:
        self.answer, self.asked = answer, list[str]()

    async def __call__(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult | ErrorData:
        self.asked.append(params.message)
        return self.answer


def work_started(call: Caller) -> list[Any]:
    """Jobs that are no dry runs."""
    jobs = call.done("list_jobs", limit=100)["jobs"]
    found = [call.done("get_job", job_id=job["job_id"], wait_s=20) for job in jobs]
    return [job for job in found if not options_of(call, job).get("dry_run")]


# ---- a client that cannot ask ----------------------------------------------------------------------------------------


def test_without_a_bound_paid_work_is_planned_and_not_begun(call: Caller, prompts: Path, mock: Mock):
    answer = call.done("generate_teacher_data", **paid(mock))
    assert answer["state"] == "needs_confirmation"
    assert answer["plan"]["requests"] == 3
    assert answer["plan"]["worst_case_usd"] > 0.3
    assert f'confirm="{answer["confirm"]}"' in answer["next"]
    assert mock.model in answer.text
    assert "USD" in answer.text
    assert "Nothing was started" in answer.text
    assert work_started(call) == []
    assert not (prompts.parent / "train.jsonl").exists()


def test_the_second_call_with_the_token_starts_it_with_the_bound_that_was_named(
    call: Caller, prompts: Path, mock: Mock
):
    planned = call.done("generate_teacher_data", **paid(mock))
    done = call.ended(call.done("generate_teacher_data", **paid(mock, confirm=planned["confirm"])))
    assert done["state"] == "succeeded", done.text
    assert len(read_rows(prompts.parent / "train.jsonl")) == 3
    assert f"stopped at {max_cost_of(call, done):.2f} USD" in planned.text


def max_cost_of(call: Caller, job: Answer) -> float:
    return options_of(call, job)["max_cost"]


def options_of(call: Caller, job: Answer) -> dict[str, Any]:
    spec = call.server.door.jobs.get(job["job_id"]).folder / "spec.json"
    return json.loads(spec.read_bytes())["options"]


def test_a_token_counts_once_and_for_the_very_arguments(ask: Caller, prompts: Path, mock: Mock):
    token = ask.done("generate_teacher_data", **paid(mock))["confirm"]
    other = ask.refused("generate_teacher_data", **paid(mock, confirm=token, samples=100))
    assert "for other arguments" in other
    ask.ended(ask.done("generate_teacher_data", **paid(mock, confirm=token)))
    assert "counts once" in ask.refused("generate_teacher_data", **paid(mock, confirm=token))
    assert "not known" in ask.refused("generate_teacher_data", **paid(mock, confirm="made-up"))


def test_a_token_expires(monkeypatch: pytest.MonkeyPatch):
    agreements, question = Agreements(), Question("evaluate", "work", "Start it?", None, None)
    monkeypatch.setattr(confirm, "TOKEN_S", 0.0)
    token = agreements.token(question)
    with pytest.raises(UsageError, match="ten minutes"):
        agreements.redeem(token, "work")


def test_tokens_that_nobody_comes_back_with_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(confirm, "MOST_OPEN", 3)
    agreements, question = Agreements(), Question("evaluate", "work", "Start it?", None, 1.0)
    tokens = [agreements.token(question) for _ in range(5)]
    with pytest.raises(UsageError):
        agreements.redeem(tokens[0], "work")
    assert agreements.redeem(tokens[-1], "work") == 1.0


def test_a_repeated_call_whose_answer_was_lost_is_not_asked_again(ask: Caller, prompts: Path, mock: Mock):
    arguments = paid(mock, client_request_id="safe")
    planned = ask.done("generate_teacher_data", **arguments)
    first = ask.done("generate_teacher_data", **{**arguments, "confirm": planned["confirm"]})
    again = ask.done("generate_teacher_data", **{**arguments, "confirm": planned["confirm"]})
    assert again["job_id"] == first["job_id"]
    done = ask.ended(first)
    assert max_cost_of(ask, done) > 0
    restarted = Caller(build(ask.server.door.settings), "legacy", {})
    assert restarted.done("generate_teacher_data", **arguments)["job_id"] == first["job_id"]
    assert "other work" in restarted.refused("generate_teacher_data", **{**arguments, "samples": 2})


ASKING: dict[str, dict[str, Any]] = {
    "generate_teacher_data": {"input": "prompts.jsonl", "model": "MODEL", "base_url": "URL"},
    "run_rollouts": {"input": "prompts.jsonl", "model": "MODEL", "base_url": "URL"},
    "generate_synthetic": {"num_records": 2, "model": "MODEL", "base_url": "URL"},
    "check_data": {"data": "rows.jsonl", "judge": "MODEL", "config": {"judge_base_url": "URL"}},
    "train_gold": {
        **{"data": "prompts.jsonl", "output": "runs/gold", "student": "smollm2"},
        **{"teacher": "MODEL", "teacher_base_url": "URL", "teacher_mode": "judge"},
    },
    "evaluate": {
        **{"student": "smollm2", "baseline": "smollm2", "teacher": "MODEL"},
        **{"config": {"teacher_base_url": "URL"}},
    },
    "check_setup": {"teacher": "MODEL", "teacher_base_url": "URL"},
}
"""A call of each tool that asks a teacher."""


def asking(tool: str, mock: Mock) -> dict[str, Any]:
    return json.loads(json.dumps(ASKING[tool]).replace("MODEL", mock.model).replace("URL", elsewhere(mock)))


def test_no_tool_that_asks_a_teacher_is_forgotten_below():
    assert set(ASKING) == {name for name, text in TEXTS.items() if text.asks_a_teacher}


@pytest.mark.parametrize("tool", ASKING)
def test_no_tool_asks_a_teacher_for_money_before_a_yes(
    hosted: Caller, prompts: Path, mock: Mock, monkeypatch: pytest.MonkeyPatch, tool: str
):
    row = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}
    write_rows(prompts.with_name("rows.jsonl"), [row] * 3)
    if tool == "evaluate":  # whose dry run imports for 10 seconds
        monkeypatch.setattr(commands, "PLAN_WAIT_S", 0)
    answer = hosted.done(tool, **asking(tool, mock))
    assert answer["state"] == "needs_confirmation", answer.text
    assert mock.model in answer.text
    bounded = "max_cost" in load(TEXTS[tool].command or "").model_fields
    assert ("It is stopped at " if bounded else "nothing bounds it") in answer.text
    assert "Start it?" in answer.text
    if tool == "train_gold":  # whose dry run loads the student
        assert hosted.done("list_jobs")["jobs"] == []
        assert answer.seconds < 5
    elif tool != "evaluate":
        assert answer["plan"]["status"] == "dry_run"
    if tool == "check_setup":
        assert "the next token of ten questions" in answer.text, "what it asks, where nobody knows what that costs"
    assert work_started(hosted) == []
    assert mock.requests == 0


# ---- prices are a caller's word --------------------------------------------------------------------------------------


def test_a_price_of_the_calls_is_no_way_past_the_question(hosted: Caller, prompts: Path, mock: Mock):
    def told(price: str, **more: Any) -> dict[str, Any]:
        return {**paid(mock, price), "base_url": elsewhere(mock), **more}

    for bound in ({}, {"max_cost": 0.01}):
        for price in ("0/0", "3/0"):
            assert "would bound nothing" in hosted.refused("generate_teacher_data", **told(price, **bound))
        answer = hosted.done("generate_teacher_data", **told("0.0001/0.0001", **bound))
        assert answer["state"] == "needs_confirmation"
        assert "by the price that this call gives (0.0001/0.0001 USD per million" in answer.text
        assert "It is stopped at 0.01 USD" in answer.text
    assert mock.requests == 0
    done = hosted.ended(
        hosted.done("generate_teacher_data", **told("3/15", max_cost=2, confirm=confirmed(hosted, told, mock)))
    )
    assert done["state"] == "succeeded", done.text
    assert max_cost_of(hosted, done) == 2, "what the call gave"


def confirmed(caller: Caller, told: Any, mock: Mock) -> str:
    answer = caller.done("generate_teacher_data", **told("3/15", max_cost=2))
    assert "It is stopped at 2.00 USD" in answer.text
    return answer["confirm"]


def test_a_price_that_a_provider_lists_is_not_the_calls_to_give(hosted: Caller, prompts: Path, mock: Mock):
    listed = {"model": "acme/large", "base_url": None}
    assert "openrouter lists its prices" in hosted.refused("generate_teacher_data", **{**paid(mock, "3/15"), **listed})
    judge = {"judge": "acme/large", "config": {"judge_price": "3/15"}}
    assert "judge_price: openrouter lists" in hosted.refused("check_data", data="prompts.jsonl", max_cost=1, **judge)


def test_a_price_that_is_listed_needs_no_word_of_the_calls(hosted: Caller, prompts: Path, mock: Mock):
    bounded = {**paid(mock, None), "base_url": elsewhere(mock), "max_cost": 1}
    assert hosted.ended(hosted.done("generate_teacher_data", **bounded))["state"] == "succeeded"
    nothing_left = hosted.done("generate_teacher_data", **{**bounded, "max_cost": None})
    assert nothing_left["state"] in ("queued", "running"), "all is there, so that nothing is paid"
    assert max_cost_of(hosted, nothing_left) == 0.01
    assert hosted.ended(nothing_left)["state"] == "succeeded"


def test_the_option_for_a_price_that_is_missing_is_the_one_that_helps():
    judge, teacher = Billed("j", "openai", True, "judge_"), Billed("a/b", "openrouter", True, "teacher_")
    said = no_price([teacher, judge])
    assert 'config {"judge_price": "3/15"}' in said
    assert "teacher_price" not in said
    assert "Choose a model whose price is listed" in no_price([teacher])
    with pytest.raises(UsageError, match=r"judge_price: 0\.0/1 would bound nothing"):
        refuse_prices([Billed("j", "openai", True, "judge_", "0.0/1")])
    refuse_prices([Billed("m", "openai", False, "", "0/0"), judge])  # one's own server may cost nothing


# ---- what was decided stays decided ----------------------------------------------------------------------------------


def test_a_config_that_distils_is_no_way_around_train_gold(ask: Caller, workspace: Path):
    config = "dataset_type: distill\nmodel:\n  path: smollm2\nteacher:\n  path: acme/large\n"
    (workspace / "config.yml").write_text(config, encoding="utf-8")
    write_rows(workspace / "train.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    text = ask.refused("train_sft", config={"max_steps": 1})
    assert "config.yml:1 asks for distill" in text
    assert "Call train_gold itself" in text
    (workspace / "config.yml").unlink()
    given = {"dataset_type": "distill", "max_steps": 1}
    assert "dataset_type asks for distill" in ask.refused("train_sft", model="smollm2", config=given)
    assert not (workspace / ".distill").exists()


def test_a_folder_that_goes_away_while_a_job_waits_is_not_asked_for_at_a_provider(ask: Caller, prompts: Path):
    (prompts.parent / "acme" / "large").mkdir(parents=True)
    begun = ask.done("generate_teacher_data", input="prompts.jsonl", model="acme/large")
    assert options_of(ask, begun)["backend"] == "hf"
    assert ask.ended(begun)["state"] == "failed"  # the folder is empty


@pytest.mark.parametrize(
    ("command", "values", "options"),
    [
        ("generate_teacher_data", {"input": "p", "model": "smollm2"}, {"backend": "hf"}),
        ("generate_teacher_data", {"input": "p", "model": "a/b", "backend": "together"}, {}),
        (
            "generate_teacher_data",
            {"input": "p", "model": "a", "base_url": LOCAL},
            {"backend": "openai"},
        ),
        ("generate_teacher_data", {"input": "p", "model": "says nothing"}, {}),
        ("generate_synthetic", {"model": "a/b"}, {"backend": "openrouter"}),
        ("generate_synthetic", {"model": "a/b", "question_model": "c/d"}, {"backend": "openrouter"}),
        (
            "generate_synthetic",
            {"model": "smollm2", "question_model": "c/d"},
            {"backend": "hf", "question_backend": "openrouter"},
        ),
        ("generate_synthetic", {"model": "smollm2", "question_model": "c/d", "backend": "vllm"}, {}),
        ("check_data", {"data": "d", "judge": "a/b"}, {"judge_backend": "openrouter"}),
        (
            "check_data",
            {"data": "d", "teacher": "smollm2", "judge": "gpt-5"},
            {"teacher_backend": "hf", "judge_backend": "openai"},
        ),
        ("evaluate", {"student": "s", "teacher": "a/b"}, {"teacher_backend": "openrouter"}),
        ("train_gold", {"data": "d", "output": "o", "teacher": "a/b"}, {}),  # hf, whatever lies on the disk
        ("convert_rollouts", {}, {}),
    ],
)
def test_a_job_is_held_to_the_back_ends_that_its_models_had(
    workspace: Path, command: str, values: dict[str, Any], options: dict[str, Any]
):
    made = load(command).model_validate(values)
    assert pinned(made) == options
    again = load(command).model_validate({**values, **options})
    assert reached(again) == reached(made)
    assert pinned(again) == {}


def reached(command: Command) -> list[Any]:
    """By which back end, where, with which key each model is asked."""
    from core.teachers import backend_of
    from mcp_server.guard import teachers

    try:
        return [(model, backend_of(model, wanted, url), url, key) for model, wanted, url, key in teachers(command)]
    except UsageError:
        return []


# ---- a client that asks ----------------------------------------------------------------------------------------------


def test_the_user_is_asked_and_a_yes_starts_it(call: Caller, prompts: Path, mock: Mock):
    user = User(ElicitResult(action="accept", content={"start": True}))
    begun = call.with_(elicitation_callback=user)("generate_teacher_data", **paid(mock))
    assert not begun.is_error, begun.text
    (question,) = user.asked
    assert mock.model in question
    assert "Start it?" in question
    done = call.ended(begun)
    assert done["state"] == "succeeded"
    assert f"stopped at {max_cost_of(call, done):.2f} USD" in question


@pytest.mark.parametrize(
    "no",
    [
        ElicitResult(action="decline"),
        ElicitResult(action="cancel"),
        ElicitResult(action="accept", content={"start": False}),
    ],
)
def test_a_no_starts_nothing(call: Caller, prompts: Path, mock: Mock, no: ElicitResult):
    user = User(no)
    text = call.with_(elicitation_callback=user).refused("generate_teacher_data", **paid(mock))
    assert "did not agree" in text
    assert len(user.asked) == 1
    assert work_started(call) == []


def test_a_client_that_fails_to_ask_is_told_of_max_cost(workspace: Path, prompts: Path, mock: Mock):
    asking = Caller(
        build(Settings(workspace)), "legacy", {"elicitation_callback": User(ErrorData(code=-1, message="no window"))}
    )
    text = asking.refused("generate_teacher_data", **paid(mock))
    assert "no window" in text
    assert "max_cost" in text


def test_a_user_who_does_not_answer_is_not_waited_for_for_ever(
    workspace: Path, prompts: Path, mock: Mock, monkeypatch: pytest.MonkeyPatch
):
    async def away(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult | ErrorData:
        await anyio.sleep(60)
        raise AssertionError("nobody waits so long")

    monkeypatch.setattr(confirm, "ANSWER_S", 0.2)
    asking = Caller(build(Settings(workspace)), "legacy", {"elicitation_callback": away})
    answer = asking.done("generate_teacher_data", **paid(mock))
    assert answer["state"] == "needs_confirmation"
    assert answer.seconds < 30


# ---- what needs no yes -----------------------------------------------------------------------------------------------


def test_a_bound_in_the_call_is_a_yes(call: Caller, prompts: Path, mock: Mock):
    user = User(ElicitResult(action="decline"))
    begun = call.with_(elicitation_callback=user).done("generate_teacher_data", **paid(mock, max_cost=2))
    assert begun["state"] in ("queued", "running")
    assert user.asked == []
    assert call.ended(begun)["state"] == "succeeded"


def test_no_bound_may_be_above_the_servers(workspace: Path, prompts: Path, mock: Mock):
    call = Caller(build(Settings(workspace, max_cost=0.05)), "legacy", {})
    text = call.refused("generate_teacher_data", **paid(mock, max_cost=0.06))
    assert "max_cost: 0.06 USD are more than a job may spend here, 0.05 USD" in text
    planned = call.done("generate_teacher_data", **paid(mock))
    assert "more than the 0.05 USD that it may spend here" in planned.text
    assert "stopped at 0.05 USD" in planned.text


def test_a_bound_written_as_a_text_is_no_way_around_the_servers(workspace: Path, prompts: Path, mock: Mock):
    call = Caller(build(Settings(workspace, max_cost=0.05)), "legacy", {})
    assert "0.05 USD" in call.refused("generate_teacher_data", **paid(mock, max_cost="1000"))
    assert "0.05 USD" in call.refused("generate_teacher_data", **paid(mock, config={"max_cost": 1000}))


def test_a_plan_that_takes_too_long_is_not_waited_for(
    ask: Caller, prompts: Path, mock: Mock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(commands, "PLAN_WAIT_S", 0)
    answer = ask.done("generate_teacher_data", **paid(mock))
    assert answer["state"] == "needs_confirmation"
    assert answer["plan"] is None
    assert "It is stopped at 20.00 USD" in answer.text
    (job,) = ask.done("list_jobs")["jobs"]
    assert ask.ended(ask.done("get_job", job_id=job["job_id"]))["state"] == "cancelled"


def test_work_on_a_server_of_ones_own_that_costs_nothing_by_the_calls_word_is_asked_for_all_the_same(
    call: Caller, prompts: Path, mock: Mock
):
    asked = call.done("generate_teacher_data", **paid(mock, price="0/0"))
    assert asked["state"] == "needs_confirmation"
    assert "costs at most about 0.00 USD, by the price that this call gives (0/0 USD" in asked.text
    begun = call.done("generate_teacher_data", **paid(mock, price="0/0", confirm=asked["confirm"]))
    assert max_cost_of(call, begun) == 0.01
    assert call.ended(begun)["state"] == "succeeded"


def test_a_dry_run_is_free_and_answers_with_the_plan(call: Caller, prompts: Path, mock: Mock):
    plan = call.done("generate_teacher_data", **paid(mock, dry_run=True))
    assert plan["state"] == "succeeded"
    assert plan["result"]["requests"] == 3
    assert plan["next"] == "generate_teacher_data with the same arguments and dry_run=false"
    assert mock.requests == 0


def test_what_is_wrong_is_said_before_anybody_is_asked(call: Caller, workspace: Path, mock: Mock):
    user = User(ElicitResult(action="accept"))
    text = call.with_(elicitation_callback=user).refused("generate_teacher_data", **paid(mock))
    assert "prompts.jsonl" in text
    assert user.asked == []


# ---- what may cost money ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "values", "asked"),
    [
        ("generate_teacher_data", {"input": "p", "model": "smollm2"}, []),
        ("generate_teacher_data", {"input": "p", "model": "a/b"}, [Billed("a/b", "openrouter", True)]),
        ("generate_teacher_data", {"input": "p", "model": "a", "backend": "vllm"}, []),
        ("generate_teacher_data", {"input": "p", "model": "a", "base_url": LOCAL}, [Billed("a", "openai", False)]),
        (
            "generate_teacher_data",
            {"input": "p", "model": "a", "backend": "vllm", "base_url": REMOTE},
            [Billed("a", "vllm", True)],
        ),
        ("run_rollouts", {"model": "gpt-5"}, [Billed("gpt-5", "openai", True)]),
        (
            "generate_synthetic",
            {"model": "a/b", "question_model": "c/d"},
            [Billed("a/b", "openrouter", True), Billed("c/d", "openrouter", True, "question_")],
        ),
        ("generate_synthetic", {"model": "smollm2"}, []),
        ("check_data", {"data": "d"}, []),
        (
            "check_data",
            {"data": "d", "teacher": "smollm2", "judge": "a/b", "judge_price": "3/15"},
            [Billed("a/b", "openrouter", True, "judge_", "3/15")],
        ),
        ("train_gold", {"data": "d", "student": "s", "teacher": "t"}, []),
        (
            "train_gold",
            {"data": "d", "teacher": "a/b", "teacher_backend": "together"},
            [Billed("a/b", "together", True, "teacher_")],
        ),
        ("doctor", {}, []),
        ("doctor", {"teacher": "a/b", "teacher_backend": "openai"}, [Billed("a/b", "openai", True, "teacher_")]),
        ("evaluate", {"student": "s"}, []),
        ("evaluate", {"student": "s", "teacher": "a/b"}, [Billed("a/b", "openrouter", True, "teacher_")]),
        ("convert_rollouts", {}, []),
        ("train_sft", {"model": "smollm2"}, []),
    ],
)
def test_who_would_be_asked_for_money(workspace: Path, command: str, values: dict[str, Any], asked: list[Billed]):
    model = load(command)
    required = {"train_gold": {"output": "o"}, "run_rollouts": {"input": "p"}}.get(command, {})
    known = {name: value for name, value in {**required, **values}.items() if name in model.model_fields}
    assert billed(model.model_validate(known)) == asked


def test_a_provider_without_a_known_price_needs_one():
    asked = [Billed("a/b", "nvidia", True)]
    with pytest.raises(UsageError, match="no price is known for a/b"):
        question_of("generate_teacher_data", "w", asked, {"worst_case_usd": None}, 20.0)
    mine = question_of("generate_teacher_data", "w", [Billed("m", "openai", False)], {"worst_case_usd": None}, 20.0)
    assert mine.bound is None
    assert "nothing bounds it" in mine.text
    plan = {"plan": ["teacher  teacher: a/b (nvidia), 18 new requests"], "requests": 18}
    unbounded = question_of("evaluate", "w", asked, plan, None)
    assert unbounded.bound is None
    assert "has no max_cost, so that nothing bounds it.\nteacher  teacher: a/b (nvidia), 18 new" in unbounded.text


def test_the_cost_of_a_plan_is_its_worst_case():
    assert cost_of({"worst_case_usd": 1.0, "worst_case_with_tries_usd": 3.0}) == 3.0
    assert cost_of({"cost_in_all_usd": 0.5}) == 0.5
    assert cost_of({"worst_case_usd": 0.0}) == 0.0
    assert cost_of({"worst_case_usd": None}) is None


def test_sums_are_written_in_cents_unless_that_would_be_none():
    assert [usd(each) for each in (0, 1e-9, 0.0025, 0.01, 3)] == ["0.00", "0.000001", "0.0025", "0.01", "3.00"]


def test_equal_work_is_equal_whatever_the_order_and_the_characters():
    assert work_of("a", {"x": 1, "y": 2}) == work_of("a", {"y": 2, "x": 1})
    assert work_of("a", {"x": 1}) != work_of("b", {"x": 1})
    assert work_of("a", {"x": "\ud800"}) == work_of("a", {"x": "\ud800"}) != work_of("a", {"x": "\ud801"})


def test_over_one_connection_of_either_era_several_questions_can_be_asked(call: Caller, prompts: Path, mock: Mock):
    user = User(ElicitResult(action="decline"))

    async def twice(client: Client) -> None:
        for _ in range(2):
            answer = await called(client, "generate_teacher_data", paid(mock))
            assert answer.is_error

    call.with_(elicitation_callback=user).talk(twice)
    assert len(user.asked) == 2
