"""What a server can be asked for: seen, said, priced, and chosen by name; against servers on loopback."""

import os
import pty
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.commands.teacher import TeacherOptions
from core.commands.train_gold import TeacherMode, TrainGold
from core.data.stop import Stop
from core.errors import BudgetReached, StoppedEarly, UsageError
from core.teachers import engine
from core.teachers.ability import (
    EVERYTHING,
    Ability,
    Load,
    StepCost,
    ask_terminal,
    choose_mode,
    cost_of_step,
    examine,
)
from core.teachers.judging import overhead_bytes
from core.teachers.protocol import Price
from core.teachers.remote import Remote, open_remote
from core.teachers.scorer import KNOWN
from tests.support.running import KEY, Received, Reply, small_server
from tests.support.scoring_server import scoring_server
from tests.support.scripted_chat import ScriptedChat
from tests.support.tiny_model import make_tiny_model, teach


@contextmanager
def opened(url: str, **options: Any) -> Iterator[Remote]:
    asked = TeacherOptions(**{"model": "m", "backend": "openai", "base_url": url, "retries": 0, **options})
    remote = open_remote(asked, Stop(), cache=None, note=lambda text: None)
    try:
        yield remote
    finally:
        remote.close()


def seen(
    url: str, *, tokenizer: str | None = None, top_k: int = 20, accept_noise: bool = False, **options: Any
) -> Ability:
    wishes = {name: options.pop(name) for name in ("asked", "rubric", "pairwise") if name in options}
    with opened(url, **options) as remote:
        return examine(remote, tokenizer=tokenizer, top_k=top_k, accept_noise=accept_noise, **wishes)


def of_chat(wishes: dict[str, Any] | None = None, **switches: Any) -> Ability:
    with small_server(ScriptedChat(**switches)) as server:
        return seen(server.url, **(wishes or {}))


# ---- servers that score --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that knows the text of the self-test: of a random one nobody can say whether it scores well."""
    folder = make_tiny_model(tmp_path_factory.mktemp("teacher"), corpus="".join(KNOWN))
    prompt = f"<|im_start|>user\n{KNOWN[0]}<|im_end|>\n<|im_start|>assistant\n"
    teach(folder, prompt, KNOWN[1], steps=60)
    return folder


@pytest.mark.parametrize(("after", "words"), [(False, "before the temperature"), (True, "after the temperature")])
def test_a_scoring_server_scores_whatever_its_log_probabilities_are_scaled_by(
    tiny: Path, after: bool, words: str
) -> None:
    with scoring_server(tiny, temperature_processed=after) as server:
        ability = seen(server.url, tokenizer=str(tiny), backend="vllm", model="scoring/model")
    assert ability.modes[0] == "score"
    assert ability.scoring is not None
    assert ability.scoring.alternatives == 20
    assert ability.scoring.noise.again < 1e-4
    assert ability.scoring.follows_temperature is after
    assert any(words in line for line in ability.lines())
    assert ability.requests >= 8


@pytest.mark.parametrize("backend", ["sglang", "together"])
def test_other_protocols_score_too(tiny: Path, backend: str) -> None:
    with scoring_server(tiny, dialect=backend) as server:
        ability = seen(server.url, tokenizer=str(tiny), backend=backend, model="scoring/model", api_key_env=None)
    assert ability.modes[0] == "score", ability.reasons


def test_a_noisy_server_is_refused_unless_the_noise_is_accepted(tiny: Path) -> None:
    with scoring_server(tiny, noise=3.0) as server:
        asked: dict[str, Any] = {"tokenizer": str(tiny), "backend": "vllm", "model": "scoring/model"}
        ability = seen(server.url, **asked)
        accepted = seen(server.url, **asked, accept_noise=True)
    assert "score" not in ability.modes
    assert "two scorings of one text differ by a KL of" in ability.reasons["score"]
    assert "--accept-noise" in ability.reasons["score"]
    assert accepted.modes[0] == "score"


def test_a_server_that_caps_k_says_which_option_to_lower(tiny: Path) -> None:
    with scoring_server(tiny, max_logprobs=5) as server:
        ability = seen(server.url, tokenizer=str(tiny), top_k=64, backend="vllm", model="scoring/model")
        lowered = seen(server.url, tokenizer=str(tiny), top_k=5, backend="vllm", model="scoring/model")
    assert "--teacher-top-k" in ability.reasons["score"]
    assert lowered.modes[0] == "score"


def test_a_teacher_without_a_known_tokenizer_names_the_option(tiny: Path) -> None:
    with scoring_server(tiny) as server:
        ability = seen(server.url, backend="vllm", model="scoring/model")
    assert "--teacher-tokenizer" in ability.reasons["score"]


def test_another_tokenizer_than_the_servers_is_a_reason_and_no_end(tiny: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path, special=("<first>", "<second>"))  # every other id is two further
    with scoring_server(tiny) as server:
        ability = seen(server.url, tokenizer=str(other), backend="vllm", model="scoring/model")
    assert "score" not in ability.modes
    assert "--teacher-tokenizer" in ability.reasons["score"]


# ---- servers that chat ---------------------------------------------------------------------------------------------


def test_a_chat_server_with_everything_allows_all_modes_but_scores() -> None:
    ability = of_chat(price=(3e-6, 15e-6))
    assert ability.modes == ("probe", "teacher-text", "judge")
    assert (
        "never of a given text. If the server is vLLM or SGLang: --teacher-backend vllm or sglang"
        in ability.reasons["score"]
    )
    assert ability.chatting is not None
    assert (ability.chatting.alternatives, ability.chatting.noise) == (4, 0.0)
    assert ability.chatting.follows_temperature is False
    said = "\n".join(ability.lines())
    assert "4 alternatives told of each token" in said
    assert "3 / 15 USD per million prompt / completion tokens" in said
    assert "probe, teacher-text, judge" in said
    assert ability.json["modes"] == ("probe", "teacher-text", "judge")
    assert ability.spent_usd == pytest.approx(ability.requests * (10 * 3e-6 + 15e-6))


def test_log_probabilities_after_the_temperature_are_seen_and_no_reason_against_anything() -> None:
    ability = of_chat(after=True)
    assert ability.chatting is not None
    assert ability.chatting.follows_temperature is True
    assert ability.modes[0] == "probe"
    assert any("after the temperature of the request; 1 is sent" in line for line in ability.lines())


@pytest.mark.parametrize(
    ("switches", "modes", "mode", "reason"),
    [
        ({"prefill": False}, ("teacher-text", "judge"), "probe", "does not go on with a begun answer: 0 of 4"),
        ({"logprobs": False}, ("judge",), "probe", "no log-probabilities"),
        ({"logprobs": False}, ("judge",), "teacher-text", "generate_teacher_data and train_sft need none"),
        ({"noise": 2.0}, ("teacher-text", "judge"), "probe", "changes a log-probability by 2 nats"),
        ({"grades": None}, ("probe", "teacher-text"), "judge", "verdict holds no score"),
        ({"grades": (5, 5)}, ("probe", "teacher-text"), "judge", "a right answer 0.44 and nonsense 0.44"),
    ],
)
def test_what_is_missing_is_the_reason_against_a_mode(
    switches: dict[str, Any], modes: Sequence[str], mode: TeacherMode, reason: str
) -> None:
    ability = of_chat(**switches)
    assert ability.modes == modes
    assert reason in ability.reasons[mode]
    assert any(line.startswith(f"not {mode} ") and reason in line for line in ability.lines())


def test_a_server_that_can_do_nothing_gives_a_reason_for_every_mode() -> None:
    ability = of_chat(logprobs=False, grades=None)
    assert ability.modes == ()
    assert set(ability.reasons) == {"score", "probe", "teacher-text", "judge"}
    with pytest.raises(UsageError, match="cannot teach:\n  score: "):
        choose_mode("auto", ability, {})


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_server_that_refuses_everything_gives_its_words_as_reasons(status: int) -> None:
    ability = of_chat(status=status, error="not today")
    assert ability.modes == ()
    assert all(f"{status}: not today" in ability.reasons[mode] for mode in ("probe", "teacher-text", "judge"))


def test_a_bad_key_or_address_ends_the_test_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with small_server(ScriptedChat(status=401, error=f"no such key {KEY}")) as server:
        with pytest.raises(UsageError, match="refuses the API key") as error:
            seen(server.url)
        assert KEY not in str(error.value)
        assert len(server.chats) == 1
    page = Reply(body=b"<html>", headers={"content-type": "text/html"})
    with small_server(lambda request: page) as server, pytest.raises(UsageError, match="a web page, not JSON"):
        seen(server.url)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(
            UsageError, match=r"cannot connect .* Is the server running, and is the address \(--teacher-"
        ):
            seen(nobody, retries=5)


def test_an_empty_account_is_no_reason_but_the_end() -> None:
    with pytest.raises(StoppedEarly, match="out of money"):
        of_chat(status=402, error="no credit")


def test_a_budget_that_holds_no_test_says_nothing_of_the_server() -> None:
    with small_server(ScriptedChat()) as server:
        with pytest.raises(BudgetReached, match=r"--max-cost is too low to test m at .*: this request alone may cost"):
            seen(server.url, price="1000000/1000000", max_cost=0.01)
        assert server.chats == []


def test_nothing_of_the_test_is_read_from_the_cache_or_kept_there(tmp_path: Path) -> None:
    with small_server(ScriptedChat()) as server:
        asked = TeacherOptions(model="m", backend="openai", base_url=server.url, retries=0)
        counts: list[int] = []
        for _ in range(2):
            remote = open_remote(asked, Stop(), cache=tmp_path / "scores.sqlite", note=lambda text: None)
            counts.append(examine(remote, tokenizer=None, top_k=20).requests)
            assert remote.cache is not None
            report = remote.cache.report()
            assert (report.hits, report.misses, report.written) == (0, 0, 0)
            remote.close()
    assert counts[0] == counts[1]


# ---- only what can be chosen is asked ------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, "auto", "score"])
def test_of_a_server_that_scores_the_chat_is_not_tested(tiny: Path, asked: str | None) -> None:
    with scoring_server(tiny) as server:
        ability = seen(server.url, tokenizer=str(tiny), backend="vllm", model="scoring/model", asked=asked)
    assert ability.modes == ("score",)
    assert ability.chatting is None
    assert set(ability.reasons.values()) == {"not tested, since score works"}


def test_everything_is_tested_where_that_is_asked(tiny: Path) -> None:
    with scoring_server(tiny) as server:
        ability = seen(server.url, tokenizer=str(tiny), backend="vllm", model="scoring/model", asked=EVERYTHING)
    assert ability.modes[0] == "score"
    assert ability.chatting is not None
    assert not any("not tested" in reason for reason in ability.reasons.values())


@pytest.mark.parametrize(
    ("asked", "modes", "untested"),
    [
        ("probe", ("probe", "teacher-text"), {"score", "judge"}),
        ("teacher-text", ("probe", "teacher-text"), {"score", "judge"}),
        ("judge", ("judge",), {"score", "probe", "teacher-text"}),
    ],
)
def test_a_weaker_mode_that_is_named_is_tested_alone(tiny: Path, asked: str, modes: Any, untested: set[str]) -> None:
    ability = of_chat({"asked": asked, "backend": "vllm", "tokenizer": str(tiny)})
    assert ability.modes == modes
    assert {mode for mode, reason in ability.reasons.items()} == untested
    assert set(ability.reasons.values()) == {f"not tested, since --teacher-mode {asked} is asked for"}


def test_a_named_mode_that_fails_where_nothing_else_was_tested_says_why() -> None:
    ability = of_chat({"asked": "judge"}, grades=(5, 5))
    assert ability.modes == ()
    with pytest.raises(UsageError, match=r"--teacher-mode judge does not work with m: as a judge .*") as error:
        choose_mode("judge", ability, {})
    assert "  probe: not tested" in str(error.value)


@pytest.mark.parametrize(
    ("grades", "reason"), [((9, 2), None), ((5, 5), "no better than nonsense"), ((2, 9), "worse than nonsense")]
)
def test_a_judge_of_pairs_is_tested_by_a_pair(grades: tuple[int, int], reason: str | None) -> None:
    with small_server(ScriptedChat(grades=grades)) as server:
        ability = seen(server.url, asked="judge", pairwise=True)
        judged = [chat.json["messages"][-1]["content"] for chat in server.chats[1:]]
    assert len(judged) == 2
    assert all("ANSWER B" in text for text in judged)
    if reason is None:
        assert ability.modes == ("judge",)
    else:
        assert reason in ability.reasons["judge"]


def test_the_users_rubric_is_tested_and_may_prefer_what_ours_does_not() -> None:
    with small_server(ScriptedChat(grades=(2, 9))) as server:
        ability = seen(server.url, asked="judge", rubric="Bananas win.")
        assert all("Bananas win." in chat.json["messages"][-1]["content"] for chat in server.chats[1:])
    assert ability.modes == ("judge",)
    unreadable = of_chat({"asked": "judge", "rubric": "Never write a number."}, grades=None)
    assert "verdict holds no score" in unreadable.reasons["judge"]


def test_a_judge_that_does_not_answer_is_not_asked_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BACKOFF_BASE_S", 0.001)

    def grades(request: Received) -> Reply:
        said = request.method == "POST" and request.json["messages"][-1]["content"] == "Hi"
        return ScriptedChat()(request) if said else Reply(500, b'{"error": {"message": "overloaded"}}')

    with small_server(grades) as server:
        ability = seen(server.url, asked="judge", retries=50)
        assert len(server.chats) == 1 + 2 * 3
    assert "overloaded" in ability.reasons["judge"]


# ---- what it costs -------------------------------------------------------------------------------------------------


def training(**values: Any) -> TrainGold:
    given = {"data": "x", "output": "y", "teacher_backend": "vllm", "batch_size": 8, "max_steps": 100, "eval_every": 50}
    return TrainGold.model_validate({**given, **values})


PRICE = Price(1e-6, 10e-6, "here")
LOAD = Load(prompt_tokens=100, answer_tokens=60, prompts=500, held_out=20, held_out_answers=10)


def cost(mode: TeacherMode, load: Load = LOAD, price: Price | None = PRICE, **values: Any) -> StepCost:
    return cost_of_step(mode, training(**values), load, price)


def test_a_step_of_scores_is_a_request_a_sample() -> None:
    found = cost("score")
    # 8 requests of 100 + 60 tokens, one token written each
    assert (found.requests, found.prompt_tokens, found.completion_tokens) == (8, 8 * 160, 8)
    assert found.usd == pytest.approx(8 * (160e-6 + 10e-6))
    # 3 validations (before, 50, 100) of 20 own answers, and the data's 10 answers once
    assert found.requests_in_all == 800 + 60 + 10
    assert found.usd_in_all == pytest.approx(870 * 170e-6)
    assert str(found) == (
        "score: 8 requests of about 160 tokens a step, about 0.0014 USD; 870 requests in all, about 0.15 USD"
    )


def test_a_step_of_probes_is_a_request_a_position() -> None:
    found = cost("probe", probe_positions=4)
    # 4 positions of each answer, on average behind half of it: 4 x (100 + 30) tokens
    assert (found.requests, found.prompt_tokens, found.completion_tokens) == (32, 8 * 4 * 130, 32)
    assert found.requests_in_all == 4 * 870


def test_the_teachers_own_text_is_paid_once_for_each_prompt() -> None:
    found = cost("teacher-text")
    assert (found.requests, found.prompt_tokens, found.completion_tokens) == (8, 800, 480)
    assert found.requests_in_all == 500 + 20
    assert cost("teacher-text", Load(100, 60, prompts=5000)).requests_in_all == 800


def test_a_judge_grades_each_answer_or_each_pair_in_both_orders() -> None:
    rubric = cost("judge", judge_rubric="x y")  # its instructions with 3 bytes of a rubric, 4 bytes a token
    assert (rubric.requests, rubric.requests_in_all) == (8, 800 + 60)
    assert rubric.prompt_tokens == 8 * (overhead_bytes("x y") / 4 + 160)
    # groups of 4: 6 pairs, twice, for 4 answers = 3 requests an answer
    pairs = cost("judge", judge="pairwise", judge_group=4, judge_rubric="x y")
    assert pairs.requests == 8 * 3
    assert pairs.prompt_tokens == 24 * (overhead_bytes("x y", pairwise=True) / 4 + 100 + 2 * 60)
    # measured against the 10 answers of the data, in both orders, three times
    assert pairs.requests_in_all == pytest.approx(800 * 3 + 3 * 10 * 2)


def test_without_a_price_there_is_no_usd() -> None:
    found = cost("score", price=None)
    assert (found.usd, found.usd_in_all) == (None, None)
    assert "its own server, no price" in str(found)
    assert "price not known" in str(cost("probe", price=None, teacher_backend="openai"))


# ---- the choice ----------------------------------------------------------------------------------------------------

WEAK = Ability("openai", "m", "http://s/v1", ("probe", "judge"), {"score": "it only chats", "teacher-text": "no logs"})
STRONG = Ability("vllm", "m", "http://s/v1", ("score", "probe"), {"teacher-text": "no", "judge": "no"})
COSTS: dict[TeacherMode, StepCost] = {"probe": cost("probe"), "judge": cost("judge")}


def never(question: str) -> str | None:
    raise AssertionError(f"nobody was to be asked: {question}")


def test_scores_are_taken_where_they_work_and_nobody_is_asked() -> None:
    assert choose_mode(None, STRONG, {}, ask=never) == "score"
    assert choose_mode("probe", STRONG, {}, ask=never) == "probe"
    assert choose_mode("judge", WEAK, COSTS, ask=never) == "judge"


def test_auto_takes_the_best_and_says_so() -> None:
    notes: list[str] = []
    assert choose_mode("auto", WEAK, COSTS, ask=never, note=notes.append) == "probe"
    assert notes == [f"teacher mode probe (auto): the teacher's next token at a few positions of each answer of the "
                     f"student's; {COSTS['probe'].words}"]  # fmt: skip


def test_a_named_mode_that_does_not_work_is_refused_with_the_reason_and_what_works() -> None:
    with pytest.raises(
        UsageError, match=r"--teacher-mode score does not work with m: it only chats\.\nWhat works:"
    ) as e:
        choose_mode("score", WEAK, COSTS, ask=never)
    assert "1  probe: " in str(e.value)
    assert "2  judge: " in str(e.value)


@pytest.mark.parametrize(
    ("said", "mode"),
    [
        ([""], "probe"),
        (["judge"], "judge"),
        ([" PROBE "], "probe"),
        (["2"], "judge"),
        (["score", "3", "judge"], "judge"),
    ],
)
def test_the_user_chooses(said: list[str], mode: str) -> None:
    questions: list[str] = []

    def ask(question: str) -> str:
        questions.append(question)
        return said[len(questions) - 1]

    assert choose_mode(None, WEAK, COSTS, ask=ask) == mode
    assert "cannot score the student's answers:\n  score: it only chats" in questions[0]
    assert COSTS["judge"].words in questions[0]
    assert len(questions) == len(said)


@pytest.mark.parametrize("answers", [[None], ["what?", "eh", "no", "judge"], ["what?", None]])
def test_without_a_clear_answer_nothing_is_chosen(answers: list[str | None]) -> None:
    left = iter(answers)
    with pytest.raises(UsageError) as error:
        choose_mode(None, WEAK, COSTS, ask=lambda question: next(left))
    assert "A weaker mode is never chosen silently" in str(error.value)
    assert "--teacher-mode probe, or the line TEACHER_MODE=probe in .env" in str(error.value)
    assert COSTS["probe"].words in str(error.value)


# ---- asking for real -----------------------------------------------------------------------------------------------


@contextmanager
def standard_input(source: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with os.fdopen(source, encoding="utf-8") as stream, monkeypatch.context() as here:
        here.setattr(sys, "stdin", stream)
        yield


def test_a_terminal_is_asked_and_its_line_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keyboard, terminal = pty.openpty()
    with standard_input(terminal, monkeypatch):
        typing = threading.Timer(0.5, lambda: os.write(keyboard, b"nonsense\njudge\n"))
        typing.start()
        assert choose_mode(None, WEAK, COSTS) == "judge"
        typing.join()
    os.close(keyboard)
    said = capsys.readouterr()
    assert "What works:\n  1  probe: " in said.err
    assert "'nonsense' is none of them" in said.err
    assert said.out == ""


def test_a_wish_to_stop_ends_the_waiting_for_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard, terminal = pty.openpty()
    stop = Stop()
    with standard_input(terminal, monkeypatch):
        wish = threading.Timer(0.3, stop.ask)
        wish.start()
        with pytest.raises(KeyboardInterrupt):
            choose_mode(None, WEAK, COSTS, stop=stop)
        wish.join()
    os.close(keyboard)


@pytest.mark.parametrize(("written", "mode"), [(b"probe\n", "probe"), (b"x\njudge\n", "judge"), (b"judge", "judge")])
def test_a_line_that_waits_in_a_pipe_is_an_answer(written: bytes, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, sink = os.pipe()
    os.write(sink, written)
    os.close(sink)
    with standard_input(source, monkeypatch):
        assert choose_mode(None, WEAK, COSTS) == mode


def test_at_the_end_of_standard_input_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        standard_input(os.open(os.devnull, os.O_RDONLY), monkeypatch),
        pytest.raises(UsageError, match="What works:"),
    ):
        choose_mode(None, WEAK, COSTS)
    assert capsys.readouterr().err == ""  # the error says it all, once


def test_where_nobody_writes_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    source, sink = os.pipe()
    with standard_input(source, monkeypatch):
        assert ask_terminal("?", Stop()) is None  # open, and empty
        os.close(sink)
        assert ask_terminal("?", Stop()) is None  # at its end
        with pytest.raises(UsageError, match="never chosen silently"):
            choose_mode(None, WEAK, COSTS)
    monkeypatch.setattr(sys, "stdin", None)
    assert ask_terminal("?", Stop()) is None


def test_the_request_that_says_hello_is_small() -> None:
    with small_server(ScriptedChat()) as server:
        seen(server.url)
        hello: Received = server.chats[0]
    assert hello.json == {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
