"""The options of train_gold about its teacher: which need another, what a mode settles, what a server is told."""

from pathlib import Path
from typing import Any

import pytest

from core.commands.resolve import resolve
from core.commands.train_gold import CacheUse, GoldPlan, GoldTrained, Phase, TrainGold
from core.errors import UsageError

NEEDED = {"data": "rows.jsonl", "output": "run"}
VLLM: dict[str, Any] = {"teacher_backend": "vllm"}
LOCAL: tuple[dict[str, Any], ...] = ({}, {"teacher_backend": "gguf", "teacher_gguf": "a.gguf"})


def gold(environment: dict[str, str] | None = None, **values: Any) -> TrainGold:
    options, _ = resolve(TrainGold, {**NEEDED, **values}, environment)
    assert isinstance(options, TrainGold)
    return options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("teacher_api_key_env", "MY_KEY"),
        ("teacher_extra_body", {"top_k": 1}),
        ("teacher_concurrency", 3),
        ("teacher_timeout", 5),
        ("teacher_retries", 0),
        ("teacher_price", "3/15"),
        ("max_cost", 1.0),
        ("accept_noise", True),
        ("staleness", 1),
        ("probe_positions", 4),
        ("judge", "pairwise"),
        ("judge_group", 8),
        ("judge_rubric", "Short answers win."),
        ("score_cache", False),
    ],
)
def test_an_option_for_servers_is_refused_with_a_teacher_in_this_process(option: str, value: Any) -> None:
    flag = "--" + option.replace("_", "-") if option != "score_cache" else "--no-score-cache"
    for local in LOCAL:
        with pytest.raises(UsageError, match=rf"^{flag}: for a teacher behind an API, and --teacher-backend"):
            gold(**local, **{option: value})
    assert getattr(gold(**VLLM, **{option: value}), option) == value


def test_options_that_are_as_they_are_anyway_are_no_matter() -> None:
    assert gold(probe_positions=8, judge="rubric", accept_noise=False, max_cost=None) == gold()


def test_what_is_known_of_a_server_may_stay_in_env_while_the_teacher_is_here() -> None:
    keys = {"TEACHER_BASE_URL": "http://127.0.0.1:8000/v1", "TEACHER_TOKENIZER": "x", "TEACHER_BACKEND": "hf"}
    keys["SCORE_CACHE"] = "scores.sqlite"
    options = gold(keys)
    assert options.idle
    assert options.idle.startswith("--teacher-base-url or TEACHER_BASE_URL, --teacher-tokenizer or TEACHER_TOKENIZER, ")
    assert "--score-cache-path or SCORE_CACHE: not used" in options.idle
    assert gold({**keys, "TEACHER_BACKEND": "vllm"}).idle is None
    assert gold().idle is None


@pytest.mark.parametrize("mode", ["probe", "teacher-text", "judge"])
def test_a_weaker_mode_is_refused_with_a_teacher_that_scores_here(mode: str) -> None:
    with pytest.raises(UsageError, match=rf"--teacher-mode {mode} \(TEACHER_MODE\): for teachers that can only chat"):
        gold({"TEACHER_MODE": mode})
    assert gold({"TEACHER_MODE": "score"}).teacher_mode == "score"


@pytest.mark.parametrize(
    ("option", "value", "right", "wrong"),
    [
        ("probe_positions", 4, "probe", "judge"),
        ("judge", "pairwise", "judge", "score"),
        ("judge_group", 2, "judge", "probe"),
        ("judge_rubric", "Short answers win.", "judge", "teacher-text"),
        ("staleness", 1, "score", "teacher-text"),
        ("accept_noise", True, "probe", "judge"),
        ("beta", 0.5, "probe", "judge"),
    ],
)
def test_an_option_of_one_mode_is_refused_in_another(option: str, value: Any, right: str, wrong: str) -> None:
    given = {**VLLM, option: value}
    flag = "--" + option.replace("_", "-") + (" or BETA" if option == "beta" else "")
    with pytest.raises(UsageError, match=rf"^{flag}: for --teacher-mode .*, and the mode is {wrong}$"):
        gold(**given, teacher_mode=wrong)
    gold(**given, teacher_mode=right)
    open_choice = gold(**given)  # the mode is not known yet
    with pytest.raises(UsageError, match=rf"^{flag}: for --teacher-mode .*, and the mode is {wrong}\.$"):
        open_choice.in_mode(wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("batch", "group", "good"), [(10, 4, "8 or 12"), (2, 4, "4"), (8, 3, "6 or 9")])
def test_a_step_of_a_judge_holds_whole_groups(batch: int, group: int, good: str) -> None:
    said = rf"--batch-size {batch} is no multiple of --judge-group {group}, .*: take --batch-size {good}\.?$"
    with pytest.raises(UsageError, match=said):
        gold(**VLLM, teacher_mode="judge", batch_size=batch, judge_group=group)
    with pytest.raises(UsageError, match=said):
        gold(**VLLM, batch_size=batch, judge_group=group).in_mode("judge")
    assert gold(**VLLM, teacher_mode="probe", batch_size=10).batch_size == 10


def test_the_teachers_own_text_is_never_asked_without_a_cache() -> None:
    for ask in (lambda: gold(**VLLM, teacher_mode="teacher-text", score_cache=False),
                lambda: gold(**VLLM, score_cache=False).in_mode("teacher-text")):  # fmt: skip
        with pytest.raises(UsageError, match="--no-score-cache: with --teacher-mode teacher-text each answer would be"):
            ask()
    assert not gold(**VLLM, teacher_mode="probe", score_cache=False).score_cache


def test_without_distillation_the_options_of_a_server_are_refused() -> None:
    plain: dict[str, Any] = {**VLLM, "lambda_kd": 0, "lambda_sft": 1}
    with pytest.raises(UsageError, match=r"^--max-cost: for a teacher, and --lambda-kd 0 \(LAMBDA_KD\) asks none"):
        gold(**plain, max_cost=1)
    gold(**plain)


@pytest.mark.parametrize(("mode", "share", "other"), [("teacher-text", 0.0, 0.5), ("judge", 1.0, 0.0)])
def test_a_mode_that_settles_lmbda_refuses_another(mode: Any, share: float, other: float) -> None:
    with pytest.raises(UsageError, match=rf"--teacher-mode {mode}: the .* writes all answers, .* not {other:g}"):
        gold(**VLLM, teacher_mode=mode, lmbda=other)
    assert gold(**VLLM, teacher_mode=mode, lmbda=share).lmbda == share
    with pytest.raises(UsageError, match="Leave it out"):
        gold(**VLLM, lmbda=other).in_mode(mode)
    chosen = gold(**VLLM).in_mode(mode)
    assert (chosen.teacher_mode, chosen.lmbda) == (mode, share)
    assert chosen.in_mode(mode) == chosen
    assert gold(**VLLM, lmbda=0.3).in_mode("probe").lmbda == 0.3


def test_a_field_of_ours_is_refused_in_the_extra_body() -> None:
    for key in ("model", "temperature", "logprobs", "prompt_logprobs", "echo"):
        with pytest.raises(UsageError, match=f'"{key}" is set by train_gold itself'):
            gold(**VLLM, teacher_extra_body={key: 1})


def test_the_address_is_checked_and_not_shown() -> None:
    with pytest.raises(UsageError, match=r"put the key into \.env") as error:
        gold(**VLLM, teacher_base_url="http://me:secret@host/v1")
    assert "secret" not in str(error.value)
    assert gold(**VLLM, teacher_base_url="http://host/v1/").teacher_base_url == "http://host/v1"


def test_the_servers_options_reach_the_teacher() -> None:
    body = {"provider": {"order": ["x"]}}
    options = gold(
        teacher="m",
        teacher_backend="together",
        teacher_base_url="http://host/v1",
        teacher_api_key_env="MY_KEY",
        teacher_extra_body=body,
        teacher_concurrency=3,
        teacher_timeout=4.0,
        teacher_retries=2,
        teacher_price="3/15",
        max_cost=1.5,
        dry_run=True,
    )
    asked = options.teacher_options("cpu", "sdpa")
    assert (asked.model, asked.backend, asked.base_url, asked.api_key_env) == (
        "m",
        "together",
        "http://host/v1",
        "MY_KEY",
    )
    assert (asked.concurrency, asked.timeout, asked.retries, asked.price) == (3, 4.0, 2, "3/15")
    assert (asked.extra_body, asked.max_cost, asked.dry_run) == (body, 1.5, True)


def test_the_backend_and_the_name_of_the_teacher() -> None:
    assert gold(teacher_base_url="http://host/v1").backend == "openai"
    assert gold().backend == "hf"
    from_document = {"TEACHER_BACKEND": "openrouter", "OPENROUTER_MODEL": "a/b", "TEACHER_MODEL_ID": "local/model"}
    assert gold(from_document).teacher_name == "a/b"
    assert gold({"TEACHER_BACKEND": "openrouter"}).teacher_name == "qwen/qwen-2.5-7b-instruct"
    assert gold(teacher_backend="openrouter", teacher="a/c").teacher_name == "a/c"
    assert gold(**VLLM, teacher="served").teacher_name == "served"


def test_texts_per_request_are_one_unless_they_are_said() -> None:
    assert gold(**VLLM).texts_per_request == 1
    assert gold(**VLLM, teacher_batch_size=8).texts_per_request == 8


def test_no_token_at_all_is_for_servers_only() -> None:
    assert gold(**VLLM, teacher_top_k=0).teacher_top_k == 0
    with pytest.raises(UsageError, match="a gguf teacher tells one token at least"):
        gold(teacher_gguf="a.gguf", teacher_top_k=0)


def test_a_rubric_is_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rubric.md"
    file.write_text("Short answers win.\n", encoding="utf-8")
    assert gold(**VLLM, judge_rubric=str(file)).rubric == "Short answers win."
    assert str(file) in gold(**VLLM, judge_rubric=str(file)).inputs
    text = "Short answers win. " * 500
    assert gold(**VLLM, judge_rubric=text).rubric == text
    with pytest.raises(UsageError, match="is no file, and a rubric has more than one word"):
        gold(**VLLM, judge_rubric="rubrik.md")
    file.write_text(" ", encoding="utf-8")
    with pytest.raises(UsageError, match=r"rubric\.md: the file is empty"):
        _ = gold(**VLLM, judge_rubric=str(file)).rubric
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"rubric\.md: cannot be read as text"):
        _ = gold(**VLLM, judge_rubric=str(file)).rubric


def test_a_plan_of_a_server_names_its_cost_and_no_seconds() -> None:
    plan = GoldPlan(plan=[], mode="probe", requests_per_step=64, cost_in_all_usd=2.0, cost="64 requests a step")
    assert plan.summary().splitlines() == [
        "dry run: no request was made; nothing was written.",
        "  cost        64 requests a step",
        "next: the same command without --dry-run (add --max-cost to bound the spending)",
    ]


def test_a_result_names_the_mode_the_requests_and_the_cache() -> None:
    result = GoldTrained(
        output=Path("run"),
        steps=2,
        best_step=None,
        monitor="val_kl",
        before={},
        after={},
        best={},
        signal="probe",
        mode="probe",
        requests=30,
        spent_usd=0.5,
        maybe_billed_usd=0.1,
        cache=CacheUse(hits=10, lookups=40, size_bytes=2_500_000),
        staleness=1,
        samples_trained=4,
        tokens_trained=50,
        skipped={},
        phases={"teacher": Phase(seconds=1, cpu_seconds=1)},
        seconds=3,
        improved=False,
    )
    said = result.summary()
    assert "  mode        probe: not every token was scored\n" in said
    assert "  requests    30, 0.5000 USD; up to 0.1000 USD more may be billed\n" in said
    assert "  cache       10 of 40 answers were there (25%); 2.5 MB\n" in said
    assert "  staleness   1 step" in said
    unknown = result.model_copy(update={"spent_usd": None, "cache": None, "mode": "score", "staleness": 0})
    assert "  requests    30, cost unknown" in unknown.summary()
    assert not any(f"  {word} " in unknown.summary() for word in ("mode", "cache", "staleness"))
