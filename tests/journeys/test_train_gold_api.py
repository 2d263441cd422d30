"""`train_gold` with a teacher behind an API: killed, broke, rate-limited and left alone, it ends with the same bits and
pays nothing twice."""

import http.client
import json
import os
import pty
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.teachers.ability import BAD, GOOD
from core.teachers.chat_teacher import BLANK, CERTAIN
from tests.support.running import (
    KEY,
    ROOT,
    Outcome,
    Received,
    Reply,
    chat_answer,
    ended,
    environment,
    read_rows,
    small_server,
)
from tests.support.scoring_server import Running, scoring_server
from tests.support.scripted_chat import ScriptedChat
from tests.support.tiny_model import make_tiny_model, teach
from tests.support.training import (
    ForkServer,
    Models,
    Process,
    fork_server,
    furthest,
    make_models,
    options_of,
    same_bits,
    weights,
    write_conversations,
)

STEPS = 8
WIDTH = 306
"""Tokens of the tiny models' vocabulary."""
EVERY = ("--max-steps", str(STEPS), "--eval-every", "3", "--save-every", "2", "--sample-every", "1")
SHORT = ("--max-steps", "3", "--eval-every", "3")
PRICE = ("--teacher-price", "1000/1000")
USD = 0.001
"""Per token, with that price."""
LITTLE = ("--teacher-price", "1000/1")
"""The same for less than each token of an answer: the most that a judge might write costs nothing."""
SCORED = ("/v1/completions", "/generate")
REPLAY = "tests.support.replayed:replay"


class Between:
    """A server between a run and the one with the model: it sees each request, and may spoil it.

    known: what the model has told, by model, path and body. The same question gets the same bytes, because a pass of
    the model may differ in its last digits; None is for models that differ on purpose.
    asked: the texts to be scored, in the order in which they came.   chats: requests to chat.   spoil: a reply in place
    of the model's; it may wait, and raises ConnectionError to hang up.   prompt_tokens, completion_tokens: what a
    provider would bill.
    """

    def __init__(self, server: Running, model: str, known: dict[tuple[str, str, bytes], Reply] | None) -> None:
        self.server, self._model, self._known = server, model, known
        self._one = threading.Lock()
        self.url = ""
        self.asked: list[str] = []
        self.chats = self.prompt_tokens = self.completion_tokens = 0
        self.spoil: Callable[[Received], Reply | None] = lambda received: None

    def __call__(self, received: Received) -> Reply:
        if received.path in SCORED:
            body = received.json
            self.asked.append(json.dumps(body.get("prompt") or body.get("input_ids")))
        self.chats += received.path.endswith("/chat/completions")
        reply = self.spoil(received)
        if reply is not None:
            return reply
        with self._one:
            reply = self._forwarded(received)
            if reply.status == 200 and received.method == "POST":
                if self._known is not None:
                    reply = self._known.setdefault((self._model, received.path, received.body), reply)
                told = json.loads(reply.body)
                usage = told.get("usage", {}) if isinstance(told, dict) else {}
                self.prompt_tokens += usage.get("prompt_tokens", 0)
                self.completion_tokens += usage.get("completion_tokens", 0)
        return reply

    def _forwarded(self, received: Received) -> Reply:
        connection = http.client.HTTPConnection(self.server.base.removeprefix("http://"), timeout=60)
        try:
            connection.request(received.method, received.path, received.body or None, dict(received.headers))
            answer = connection.getresponse()
            body, told = answer.read(), dict(answer.headers)
        finally:
            connection.close()
        return Reply(answer.status, body, {name: told[name] for name in ("Retry-After",) if name in told})

    @property
    def paid_usd(self) -> float:
        """With LITTLE as the price."""
        return self.prompt_tokens * USD + self.completion_tokens * 1e-6

    @property
    def counted(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass
class Scene:
    """folder: with train.jsonl.   whole: a run that nothing happened to.   first, second: what it was asked to score in
    that run, and in one with the same cache, whose result is `again`.   test: the texts of the ability test."""

    forks: ForkServer
    models: Models
    folder: Path
    whole: Path = Path()
    first: list[str] = field(default_factory=list[str])
    second: list[str] = field(default_factory=list[str])
    again: dict[str, Any] = field(default_factory=dict[str, Any])
    known: dict[tuple[str, str, bytes], Reply] = field(default_factory=dict[tuple[str, str, bytes], Reply])
    test: set[str] = field(default_factory=set[str])

    @contextmanager
    def teacher(self, model: Path | None = None, **options: Any) -> Iterator[Between]:
        """A server with the teacher, or another model, which tells as much as is asked for."""
        folder = model or self.models.teacher
        known = None if "noise" in options else self.known
        with ExitStack() as stack:
            server = stack.enter_context(scoring_server(folder, max_logprobs=-1, **options))
            between = Between(server, f"{folder.name} {options.get('dialect')}", known)
            between.url = stack.enter_context(small_server(between)).url
            yield between

    def start(
        self,
        output: Path,
        teacher: Between,
        *more: str,
        cache: Path | None = None,
        backend: str = "vllm",
        variables: dict[str, str] | None = None,
        before: str | None = None,
    ) -> Process:
        """With --resume where a run has begun. cache: the file; by default one beside the output."""
        again = ("--resume",) if (output / "run.json").exists() else ()
        kept = cache or output.with_name(output.name + ".sqlite")
        places = ("--teacher-backend", backend, "--teacher", "scoring/model", "--teacher-base-url", teacher.url)
        places += ("--teacher-tokenizer", str(self.models.teacher), "--score-cache-path", str(kept))
        data = self.folder / "train.jsonl"
        argv = [*options_of(self.models, data, output, *places, "--progress", "off", *more), *again]
        key = f"{backend.upper().replace('-', '_')}_API_KEY"
        return self.forks.start(self.folder, *argv, variables={key: KEY, **(variables or {})}, before=before)

    def run(self, output: Path, teacher: Between, *more: str, **places: Any) -> Outcome:
        outcome = self.start(output, teacher, *more, **places).ended()
        assert outcome.code == 0, outcome.stderr
        assert "Traceback" not in outcome.stderr
        return outcome

    def trained_on(self, teacher: Between, since: int = 0) -> list[str]:
        """What a server was asked to score, less the ability tests."""
        return [text for text in teacher.asked[since:] if text not in self.test]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    write_conversations(folder / "train.jsonl")
    scene = Scene(fork_server(), make_models(folder), folder, folder / "whole")
    with scene.teacher() as teacher:
        scene.run(scene.whole, teacher, *EVERY, *LITTLE)
        scene.first = list(teacher.asked)
        scene.again = scene.run(folder / "again", teacher, *EVERY, "--json", cache=folder / "whole.sqlite").result
        scene.second = teacher.asked[len(scene.first) :]
    scene.test = set(scene.second)
    return scene


def is_the_same(output: Path, expected: Path) -> None:
    """Weights to the bit, and books that tell every step once."""
    for name in ("final", "best", f"step-{STEPS}"):
        assert same_bits(output / name, expected / name), name
    assert figures(output) == figures(expected)
    assert read_rows(output / "samples.jsonl") == read_rows(expected / "samples.jsonl")
    assert record(output)["status"] == "done"


def figures(output: Path) -> list[dict[str, Any]]:
    """What the books tell of the steps and validations, less times and what was asked of the server."""
    left_out = {"time", "seconds", "tokens_per_s", "phases", "requests", "spent_usd", "maybe_billed_usd"}
    rows = (row for row in read_rows(output / "metrics.jsonl") if row["event"] in ("train_step", "val"))
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows]


def record(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_bytes())


def spent(output: Path) -> list[float]:
    """USD until the end of each step."""
    return [row["spent_usd"] for row in read_rows(output / "metrics.jsonl") if row["event"] == "train_step"]


def steps_of(output: Path) -> int:
    """The last step that its books tell of."""
    path = output / "metrics.jsonl"
    told = re.findall(rb'"event":"train_step","step":(\d+)', path.read_bytes()) if path.exists() else []
    return max(map(int, told), default=0)


# ---- scores over HTTP are scores -------------------------------------------------------------------------------


def test_the_losses_are_those_of_the_model_itself(scene: Scene, tmp_path: Path) -> None:
    """With as many tokens as the vocabulary has, what a server tells is the whole distribution."""
    local = scene.forks.start(
        scene.folder, *options_of(scene.models, scene.folder / "train.jsonl", tmp_path / "hf", *SHORT)
    )
    assert local.ended().code == 0, local.said
    expected = [row for row in figures(tmp_path / "hf") if row["event"] == "train_step"]
    output = tmp_path / "run"
    with scene.teacher() as teacher:
        outcome = scene.run(output, teacher, *SHORT, *PRICE, "--teacher-top-k", str(WIDTH), "--json")
        counted = teacher.counted
    told = [row for row in figures(output) if row["event"] == "train_step"]
    assert [row["loss"] for row in told] == pytest.approx([row["loss"] for row in expected], abs=1e-4)
    assert furthest(weights(output / "final"), weights(tmp_path / "hf/final")) < 1e-3
    assert record(output)["identity"] == {"processes": 1, "mode": "score"}
    steps = [row for row in read_rows(output / "metrics.jsonl") if row["event"] == "train_step"]
    result = outcome.result
    assert 0 < steps[0]["requests"] < steps[-1]["requests"] <= result["requests"]
    assert 0 < steps[0]["spent_usd"] < steps[-1]["spent_usd"] <= result["spent_usd"]
    assert result["spent_usd"] == pytest.approx(counted * USD)
    assert (result["mode"], result["cache"]["lookups"] > result["cache"]["hits"]) == ("score", True)
    for words in (
        "mode score",
        "signal      the teacher's most probable tokens and all others as one",
        f"  requests    {result['requests']:,}, {result['spent_usd']:.4f} USD",
        "answers were there",
    ):
        assert words in outcome.stderr, words


@pytest.mark.parametrize("backend", ["sglang", pytest.param("fireworks", marks=pytest.mark.slow)])
def test_another_wire_tells_the_same(scene: Scene, tmp_path: Path, backend: str) -> None:
    with scene.teacher(dialect=backend) as teacher:
        scene.run(tmp_path / "run", teacher, *EVERY, backend=backend)
    losses, expected = (
        [(row["loss"], row["grad_norm"]) for row in figures(output) if row["event"] == "train_step"]
        for output in (tmp_path / "run", scene.whole)
    )
    assert np.allclose(losses, expected, rtol=0, atol=1e-5)


def test_the_key_is_nowhere_not_even_when_the_server_repeats_it(scene: Scene, tmp_path: Path) -> None:
    said = json.dumps({"error": {"message": f"the key Bearer {KEY} is wrong, {KEY}!"}}).encode()
    output = tmp_path / "run"
    with scene.teacher() as teacher:
        scene.run(output, teacher, *SHORT, "--save-every", "1")
        for status in (401, 400):
            teacher.spoil = lambda received, status=status: Reply(status, said) if received.method == "POST" else None
            refused = scene.start(tmp_path / f"refused{status}", teacher, *SHORT).ended()
            assert refused.code == 2, refused.stderr
            assert "***" in refused.stderr
    files = [path for path in (*tmp_path.rglob("*"), *scene.folder.glob(".*")) if path.is_file()]
    assert any(path.suffix == ".sqlite" for path in files)
    assert any(path.name.startswith(".err") for path in files)
    for path in files:
        content = path.read_bytes()
        for part in (KEY, KEY[-20:]):
            assert part.encode() not in content, path


# ---- nothing is lost and nothing paid twice --------------------------------------------------------------------


def test_a_second_run_asks_nothing_but_the_ability_test(scene: Scene) -> None:
    is_the_same(scene.folder / "again", scene.whole)
    assert scene.again["cache"]["hits"] == scene.again["cache"]["lookups"] > 0
    assert sorted(text for text in scene.first if text in scene.test) == sorted(scene.second)
    trained = [text for text in scene.first if text not in scene.test]
    assert len(set(trained)) == len(trained) == entries(scene.folder / "whole.sqlite") >= 4 * STEPS


def killed_runs(scene: Scene, folder: Path, kills: int, seed: int) -> None:
    """Runs that are killed at random moments until they are done, until so many kills have been."""
    moments = random.Random(seed)
    done = runs = 0
    while done < kills:
        runs += 1
        output, cache = folder / f"run{runs}", folder / f"cache{runs}.sqlite"
        with scene.teacher() as teacher:
            lost = 0
            while True:
                process = scene.start(output, teacher, *EVERY, cache=cache)
                if done < kills:
                    step = moments.randint(steps_of(output), STEPS)
                    while process.running() and steps_of(output) < step:
                        time.sleep(0.005)
                    process.wait(moments.uniform(0.0, 0.2))
                if done >= kills or not process.running():
                    break
                process.send(signal.SIGKILL)
                assert process.wait(20) == -signal.SIGKILL
                done += 1
                lost = len(set(scene.trained_on(teacher))) - entries(cache)
                assert lost <= 4  # texts of one step: all that was in flight
            outcome = process.ended()
            assert outcome.code == 0 or "has come to its end" in outcome.stderr, outcome.stderr
            assert max(Counter(scene.trained_on(teacher)).values()) <= 1 + kills
            twice = len(scene.trained_on(teacher)) - len(set(scene.trained_on(teacher)))
            assert twice <= 4 * done
            assert entries(cache) == len(set(scene.trained_on(teacher)))
        is_the_same(output, scene.whole)


def entries(cache: Path) -> int:
    if not cache.exists():
        return 0
    with closing(sqlite3.connect(cache)) as opened:
        return int(opened.execute("SELECT count(*) FROM entries").fetchone()[0])


def test_a_run_killed_at_random_moments_ends_with_the_same_weights_and_pays_nothing_twice(
    scene: Scene, tmp_path: Path
) -> None:
    killed_runs(scene, tmp_path, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_ten_random_moments(scene: Scene, tmp_path: Path, seed: int) -> None:
    killed_runs(scene, tmp_path, kills=10, seed=seed)


FAULTS = {"rate_limit": 0.1, "server_error": 0.1, "drop": 0.1}


def test_faults_change_nothing(scene: Scene, tmp_path: Path) -> None:
    with scene.teacher(faults=FAULTS, retry_after_s=0.05) as teacher:
        scene.run(tmp_path / "run", teacher, *EVERY)
        struck = teacher.server.stats()["faults"]
    assert all(struck.get(fault) for fault in FAULTS), struck
    is_the_same(tmp_path / "run", scene.whole)


@pytest.mark.parametrize("faults", [{}, pytest.param(FAULTS, marks=pytest.mark.slow)])
def test_a_budget_stops_the_run_before_it_is_spent_and_more_money_goes_on(
    scene: Scene, tmp_path: Path, faults: dict[str, float]
) -> None:
    output, enough = tmp_path / "run", spent(scene.whole)[-2]
    with scene.teacher(faults=faults, retry_after_s=0.05) as teacher:
        stopped = scene.start(output, teacher, *EVERY, *LITTLE, "--max-cost", str(enough), "--json").ended()
        assert teacher.paid_usd <= enough
        assert stopped.code == 3, stopped.stderr
        assert "--max-cost" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        step = steps_of(output)
        assert 0 < step < STEPS
        assert (output / f"step-{step}/training_state.pt").exists()
        assert record(output)["status"] == "stopped"
        before = len(scene.trained_on(teacher))
        scene.run(output, teacher, *EVERY, *LITTLE, "--max-cost", "20")
        assert len(set(scene.trained_on(teacher))) == len(scene.trained_on(teacher)) > before or faults
    is_the_same(output, scene.whole)


def test_a_budget_too_small_for_the_ability_test(scene: Scene, tmp_path: Path) -> None:
    """It says nothing of what the server can do."""
    with scene.teacher() as teacher:
        more = (*SHORT, *PRICE, "--max-cost", "0.5", "--teacher-mode", "auto")
        stopped = scene.start(tmp_path / "run", teacher, *more).ended()
        assert teacher.counted * USD <= 0.5
    assert stopped.code == 3, stopped.stderr
    assert "--max-cost" in stopped.stderr.splitlines()[-1]
    assert "cannot teach" not in stopped.stderr
    assert not (tmp_path / "run").exists()


def test_a_budget_without_a_price(scene: Scene, tmp_path: Path) -> None:
    with scene.teacher() as teacher:
        refused = scene.start(tmp_path / "run", teacher, *SHORT, "--max-cost", "5").ended()
    assert refused.code == 2, refused.stderr
    assert "--teacher-price 3/15" in refused.stderr.splitlines()[-1]


def test_a_server_that_dies_stops_the_run_and_it_goes_on_when_it_is_back(scene: Scene, tmp_path: Path) -> None:
    """It dies in the middle of a step: what is scored of it already is kept, and nothing is learnt from half a step."""
    output = tmp_path / "run"

    dead = threading.Event()

    def dies(received: Received) -> Reply | None:
        if dead.is_set() or (steps_of(output) >= 2 and received.path in SCORED and teacher.asked[-1] not in seen):
            if first:
                first.pop()
                return None
            dead.set()
            raise ConnectionError
        return None

    first, seen = [True], set(scene.test)
    with scene.teacher() as teacher:
        teacher.spoil = dies
        stopped = scene.start(output, teacher, *EVERY, "--teacher-retries", "1").ended()
        assert stopped.code == 3, stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert teacher.url.removesuffix("/v1") in stopped.stderr.splitlines()[-1]
        step = steps_of(output)
        assert (output / f"step-{step}/training_state.pt").exists()
        teacher.spoil = lambda received: None
        scene.run(output, teacher, *EVERY)
    is_the_same(output, scene.whole)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_lets_the_step_end_and_twice_leaves_at_once(scene: Scene, tmp_path: Path, times: int) -> None:
    """Both while the server has answered some texts of a step and is slow with the rest."""
    output, cache = tmp_path / "run", tmp_path / "run.sqlite"
    slow, free = threading.Event(), threading.Event()
    with scene.teacher() as teacher:

        def held(received: Received) -> None:
            if received.path in SCORED and steps_of(output) >= 2 and len(scene.trained_on(teacher)) > 14:
                slow.set()
                free.wait(60)

        teacher.spoil = held
        process = scene.start(output, teacher, *EVERY)
        assert slow.wait(60), process.said
        for _ in range(times):
            process.send(signal.SIGINT)
            time.sleep(0.2)
        if times == 1:
            assert process.running()
            free.set()
        outcome = process.ended(10)
        free.set()
        teacher.spoil = lambda received: None
        assert outcome.code == 130, outcome.stderr
        assert "Traceback" not in outcome.stderr
        step = steps_of(output)
        assert step == (3 if times == 1 else 2)
        lost = len(set(scene.trained_on(teacher))) - entries(cache)
        if times == 1:
            assert (output / f"step-{step}/training_state.pt").exists()
            assert record(output)["status"] == "interrupted"
            assert lost == 0
        else:
            assert 0 < lost <= 4
        scene.run(output, teacher, *EVERY)
        asked = scene.trained_on(teacher)
        assert len(asked) - len(set(asked)) <= lost
    is_the_same(output, scene.whole)


# ---- the next step is scored while this one is learnt ----------------------------------------------------------


@pytest.mark.parametrize("staleness", [0, 1])
def test_with_staleness_a_step_is_asked_about_before_the_one_before_it_is_learnt(
    scene: Scene, tmp_path: Path, staleness: int
) -> None:
    output = tmp_path / "run"
    own = ("--lmbda", "1", "--val-fraction", "0", "--save-every", "1", "--max-steps", str(STEPS))
    own += ("--staleness", str(staleness)) if staleness else ()
    came: list[int] = []  # for each text, the steps that were learnt
    with scene.teacher() as teacher:

        def notes(received: Received) -> None:
            if received.path in SCORED and teacher.asked[-1] not in scene.test:
                came.append(steps_of(output))

        teacher.spoil = notes
        whole = scene.run(output, teacher, *own, "--json")
        early = [place // 4 > learnt for place, learnt in enumerate(came)]
        assert len(came) == 4 * STEPS
        assert any(early) == bool(staleness)
        assert ("staleness   1 step" in whole.stderr) == bool(staleness)
        if not staleness:
            return
        killed = tmp_path / "killed"
        process = scene.start(killed, teacher, *own)
        process.until(killed / "metrics.jsonl", '"train_step","step":3,')
        process.send(signal.SIGKILL)
        process.wait(20)
        scene.run(killed, teacher, *own)
        assert same_bits(killed / "final", output / "final")
        assert read_rows(killed / "samples.jsonl") == read_rows(output / "samples.jsonl")


@pytest.mark.slow
def test_with_staleness_a_budget_loses_no_answers(scene: Scene, tmp_path: Path) -> None:
    """The step that could not be paid has answers of weights that are gone."""
    own = ("--lmbda", "1", "--val-fraction", "0", "--save-every", "50", "--max-steps", str(STEPS), "--staleness", "1")
    own += ("--batch-size", "8", *LITTLE)
    with scene.teacher() as teacher:
        scene.run(tmp_path / "whole", teacher, *own)
        output, enough = tmp_path / "run", spent(tmp_path / "whole")[-2]
        stopped = scene.start(output, teacher, *own, "--max-cost", str(enough)).ended()
        assert stopped.code == 3, stopped.stderr
        assert 0 < steps_of(output) < STEPS
        scene.run(output, teacher, *own)
    assert same_bits(output / "final", tmp_path / "whole/final")


# ---- what is refused, asked and planned ------------------------------------------------------------------------


def test_a_dry_run_asks_for_the_price_alone(scene: Scene, tmp_path: Path) -> None:
    posted: list[str] = []

    def notes(received: Received) -> None:
        if received.method == "POST":
            posted.append(received.path)

    with scene.teacher(prompt_price=1e-6, completion_price=2e-6) as teacher:
        teacher.spoil = notes
        outcome = scene.run(tmp_path / "run", teacher, *SHORT, "--dry-run", "--json")
    assert posted == []
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run.sqlite").exists()
    plan = outcome.result
    assert plan["mode"] == "score"
    assert plan["requests_per_step"] == 4
    assert 4 * 10e-6 < plan["cost_per_step_usd"] < 4 * 100e-6
    assert plan["cost_in_all_usd"] > 3 * plan["cost_per_step_usd"]
    assert "no request was made; nothing was written" in outcome.stderr
    assert "4 requests of about" in outcome.stderr


@pytest.mark.parametrize("noise", [0.5, pytest.param(1.5, marks=pytest.mark.slow)])
def test_replicas_that_disagree_are_refused_unless_that_is_accepted(scene: Scene, tmp_path: Path, noise: float) -> None:
    """The smaller noise is little in itself, and much beside the distance of this student to its teacher."""
    output = tmp_path / "run"
    with scene.teacher(noise=noise) as teacher:
        refused = scene.start(output, teacher, *SHORT, "--teacher-mode", "score").ended()
        assert refused.code == 2, refused.stderr
        assert re.search(r"two scorings of one text differ by a KL of [\d.]+ nats per token", refused.stderr)
        assert "--accept-noise" in refused.stderr
        assert steps_of(output) == 0
        assert not (output / "run.json").exists()
        scene.run(output, teacher, *SHORT, "--accept-noise")
    assert steps_of(output) == 3


# ---- teachers that can only chat -------------------------------------------------------------------------------

BEGUN = {each.begun for each in (*CERTAIN, BLANK)}
GRADED = re.compile(r"^(=+) ANSWER(?: [AB])? \1\n(.*?)\n\1 END OF ANSWER", re.MULTILINE | re.DOTALL)


def chatting(received: Received) -> Reply | None:
    """What the tiny model cannot do: to go on with what begins in the ability test, and to judge (by a checksum)."""
    if not received.path.endswith("/chat/completions"):
        return None
    body = received.json
    last = body["messages"][-1]
    if last["role"] == "assistant" and last["content"] in BEGUN:
        return Reply(body=json.dumps(ScriptedChat().answer(body)).encode())
    graded = [text for _, text in GRADED.findall(last["content"])]
    if not graded:
        return None
    marks = [9 if text == GOOD else 2 if text == BAD else 1 + zlib.crc32(text.encode()) % 10 for text in graded]
    said = f"Score: {marks[0]}" if len(marks) == 1 else f"Better: {'AB'[marks[1] > marks[0]]}"
    if len(set(marks)) < len(marks):
        said = "Better: tie"
    return Reply(body=chat_answer(said))


@dataclass
class Mode:
    """A way of training from chats. more: options.   said: words of the plan and of the closing table."""

    name: str
    more: tuple[str, ...]
    said: tuple[str, ...]


MODES = [
    Mode("probe", ("--probe-positions", "3"), ("probe: 3 of up to 8 positions of each answer",)),
    Mode("teacher-text", (), ("the teacher's own answers",)),
    Mode("judge", ("--judge-group", "2"), ("group of 2 answers per prompt", "rubric")),
    Mode(
        "judge", ("--judge", "pairwise", "--judge-group", "2"), ("group of 2 answers per prompt", "every two compared")
    ),
]


@pytest.fixture(scope="module")
def speaker(scene: Scene) -> Path:
    """A teacher that says something."""
    folder = make_tiny_model(scene.folder / "speaker")
    prompt = "<|im_start|>user\nWhat is the capital of number 3?<|im_end|>\n<|im_start|>assistant\n"
    teach(folder, prompt, "The capital of France is Paris.<|im_end|>")
    return folder


@pytest.mark.parametrize(
    "mode",
    [*MODES[:3], pytest.param(MODES[3], marks=pytest.mark.slow)],
    ids=["probe", "teacher-text", "rubric", "pairwise"],
)
def test_a_chat_teaches_in_a_mode_that_was_named_and_a_killed_run_goes_on(
    scene: Scene, speaker: Path, tmp_path: Path, mode: Mode
) -> None:
    more = (*EVERY, "--teacher-mode", mode.name, *mode.more)
    with scene.teacher(speaker, dialect="chat") as teacher:
        teacher.spoil = chatting
        whole = scene.run(tmp_path / "whole", teacher, *more, "--json", backend="openai")
        chats, first = teacher.chats, whole.result
        assert record(tmp_path / "whole")["identity"]["mode"] == mode.name
        assert (first["mode"], first["status"], first["steps"]) == (mode.name, "done", STEPS)
        plan, closing = whole.stderr.split("step 0: ")
        for words in (f"mode {mode.name}", *mode.said):
            assert words in plan, words
        for words in (f"  mode        {mode.name}: not every token was scored", f"  signal      {first['signal']}"):
            assert words in closing, words
        assert all(words in first["signal"] for words in mode.said)
        assert any(row.get("grad_norm", 0) > 0 for row in figures(tmp_path / "whole"))
        output = tmp_path / "run"
        process = scene.start(output, teacher, *more, backend="openai")
        process.until(output / "metrics.jsonl", '"train_step","step":3,')
        process.send(signal.SIGKILL)
        process.wait(20)
        asked = teacher.chats - chats
        scene.run(output, teacher, *more, backend="openai")
        again = teacher.chats - chats - asked
    is_the_same(output, tmp_path / "whole")
    assert again < chats
    assert not teacher.asked


# ---- several processes -----------------------------------------------------------------------------------------


def started(
    scene: Scene,
    output: Path,
    teacher: Between,
    *more: str,
    processes: int,
    backend: str = "vllm",
    before: str | None = REPLAY,
) -> list[Process]:
    """One after the other by rank, as torchrun would start them. With REPLAY answers depend on their seeds alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    found: list[Process] = []
    for rank in range(processes):
        own = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        found.append(scene.start(output, teacher, *more, variables=own, before=before, backend=backend))
    return found


def test_two_processes_learn_what_one_does_and_share_the_budget(scene: Scene, tmp_path: Path) -> None:
    more = ("--max-steps", "6", "--eval-every", "6", "--lmbda", "1", "--batch-size", "16", "--learning-rate", "1e-3")
    more += LITTLE
    with scene.teacher() as teacher:
        for count in (1, 2):
            output = tmp_path / str(count)
            outcomes = [each.ended() for each in started(scene, output, teacher, *more, processes=count)]
            assert [each.code for each in outcomes] == [0] * count, [each.stderr for each in outcomes]
            assert [each.stderr for each in outcomes[1:]] == [""] * (count - 1)
        assert record(tmp_path / "2")["identity"] == {"processes": 2, "mode": "score"}
        for one, two in zip(figures(tmp_path / "1"), figures(tmp_path / "2"), strict=True):
            assert one.keys() == two.keys()
            for name in one.keys() - {"event"}:
                assert two[name] == pytest.approx(one[name], abs=1e-5, rel=1e-4), name
        assert furthest(weights(tmp_path / "1/final"), weights(tmp_path / "2/final")) < 1e-5
        before, enough = teacher.paid_usd, 2 * spent(tmp_path / "1")[1]  # half of it is for the ability test
        stopped = started(scene, tmp_path / "3", teacher, *more, "--max-cost", f"{enough:.3f}", processes=2)
        outcomes = [each.ended() for each in stopped]
        assert [each.code for each in outcomes] == [3, 3], [each.stderr for each in outcomes]
        assert "--max-cost" in outcomes[0].stderr
        assert "Traceback" not in outcomes[0].stderr + outcomes[1].stderr
        assert teacher.paid_usd - before <= enough


@pytest.mark.slow
def test_two_processes_keep_the_stale_answers_of_both(scene: Scene, tmp_path: Path) -> None:
    own = ("--lmbda", "1", "--val-fraction", "0", "--save-every", "50", "--max-steps", "8", "--staleness", "1")

    def run(output: Path, teacher: Between) -> list[Process]:
        return started(scene, output, teacher, *own, processes=2, before=None)

    with scene.teacher() as teacher:
        assert [each.ended().code for each in run(tmp_path / "whole", teacher)] == [0, 0]
        output = tmp_path / "run"
        processes = run(output, teacher)
        processes[0].until(output / "metrics.jsonl", '"train_step","step":2,')
        processes[1].send(signal.SIGTERM)
        assert [each.ended().code for each in processes] == [130, 130], [each.said for each in processes]
        assert 2 <= steps_of(output) < 8
        assert [each.ended().code for each in run(output, teacher)] == [0, 0]
    assert same_bits(output / "final", tmp_path / "whole/final")


def test_of_two_processes_one_asks_which_mode(scene: Scene, speaker: Path, tmp_path: Path) -> None:
    with scene.teacher(speaker, dialect="chat") as teacher:
        teacher.spoil = chatting
        main, other = (
            each.ended() for each in started(scene, tmp_path / "run", teacher, *SHORT, processes=2, backend="openai")
        )
    assert (main.code, other.code) == (2, 2), main.stderr + other.stderr
    assert "TEACHER_MODE=probe in .env" in main.stderr
    assert (other.stdout, other.stderr) == ("", "")


# ---- as the documents have it: nothing but a .env --------------------------------------------------------------

SCRIPT = ROOT / "scripts" / "train_gold.py"


@dataclass
class Workplace:
    folder: Path
    env: dict[str, str]

    def write(self, **more: str) -> None:
        lines = (f"{name}={value}\n" for name, value in {**self.env, **more}.items())
        (self.folder / ".env").write_text("".join(lines), encoding="utf-8")

    def popen(self, *argv: str, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *argv],
            cwd=self.folder,
            env=environment(OMP_NUM_THREADS="1", PYTHONWARNDEFAULTENCODING=""),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


@contextmanager
def workplace(scene: Scene, speaker: Path, folder: Path) -> Iterator[Workplace]:
    with scene.teacher(speaker, dialect="chat", prompt_price=1e-6, completion_price=5e-6) as teacher:
        teacher.spoil = chatting
        env = {"TEACHER_BACKEND": "openrouter", "OPENROUTER_API_KEY": KEY, "OPENROUTER_MODEL": "scoring/model"}
        env |= {"TEACHER_BASE_URL": teacher.url, "DATA_PATH": str(scene.folder / "train.jsonl"), "OUTPUT_DIR": "run"}
        env |= {"STUDENT_MODEL_PATH": str(scene.models.student), "MAX_STEPS": "2", "MAX_NEW_TOKENS": "8"}
        env |= {"SCORE_CACHE": "scores.sqlite", "LEARNING_RATE": "1e-2"}
        place = Workplace(folder, env)
        place.write()
        yield place


def test_a_env_is_enough_and_a_weaker_mode_is_asked_for(scene: Scene, speaker: Path, tmp_path: Path) -> None:
    with workplace(scene, speaker, tmp_path) as place:
        nobody = scene.forks.start(tmp_path).ended()
        assert nobody.code == 2, nobody.stderr
        assert not (tmp_path / "run/run.json").exists()
        for words in (
            "cannot score the student's answers",
            "1  probe: the teacher's next token",
            "2  teacher-text:",
            "3  judge:",
            "USD",
            "A weaker mode is never chosen silently",
            "TEACHER_MODE=probe in .env",
        ):
            assert words in nobody.stderr, words
        main, terminal = pty.openpty()
        process = place.popen(stdin=terminal)
        os.close(terminal)
        os.write(main, b"\n")
        chosen = ended(process, 60)
        os.close(main)
        assert chosen.code == 0, chosen.stderr
        assert "Which one? [probe]" in chosen.stderr
        assert "teacher mode probe (chosen by you)" in chosen.stderr
        assert record(tmp_path / "run")["identity"]["mode"] == "probe"
        assert KEY not in chosen.stderr + chosen.stdout


@pytest.mark.slow
def test_the_mode_comes_from_a_pipe_or_the_env(scene: Scene, speaker: Path, tmp_path: Path) -> None:
    with workplace(scene, speaker, tmp_path) as place:
        process = place.popen(stdin=subprocess.PIPE)
        _, err = process.communicate(b"judge\n", 60)
        assert process.returncode == 0, err.decode()
        assert b"teacher mode judge (chosen by you)" in err
        assert record(tmp_path / "run")["identity"]["mode"] == "judge"
        place.write(TEACHER_MODE="probe", OUTPUT_DIR="other", MAX_STEPS="30")
        process = scene.forks.start(tmp_path)
        process.until(tmp_path / "other/metrics.jsonl", '"train_step","step":1,')
        process.send(signal.SIGTERM)
        stopped = process.ended()
        assert stopped.code == 130, stopped.stderr
        assert "Which one?" not in stopped.stderr
        place.write(OUTPUT_DIR="other", MAX_STEPS="30")
        again = scene.forks.start(tmp_path, "--resume").ended()
        assert again.code == 0, again.stderr
        assert record(tmp_path / "other")["identity"]["mode"] == "probe"
