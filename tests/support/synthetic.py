"""Both models of `generate_synthetic` in one small server: it writes questions that differ, and answers them.

What it says follows from what it is asked, so that every run that asks the same gets the same.
"""

import io
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

from core import cli
from core.synthetic.domain import Domain
from core.synthetic.plan import Plan
from tests.support.running import ROOT, Outcome, Received, Reply, read_rows, small_server, start

SCRIPT = ROOT / "scripts" / "generate_synthetic.py"

NOUNS = re.findall(
    r"\w+",
    """
    garden river teacher window market letter bridge candle doctor engine feather glacier hammer island jacket
    kitchen lantern mirror needle orchard pencil quarry railway saddle tunnel umbrella village wagon yacht anchor
    basket copper desert elephant factory guitar harbour insect journal kettle library mountain nephew ocean parcel
    quilt rabbit satellite theatre uncle violin whistle printer zebra barrel cottage dolphin envelope forest goblet
    helmet icicle
    """,
)
WORDS = re.findall(
    r"\w+",
    """
    the answer to this depends on how much time there is and what people who live here think about it
    """,
)

DOMAIN = """\
description: Life in a small town by the sea.
topics: [boats, shops, weather, schools, gardens, trains, festivals, houses, animals, letters]
personas: [a fisher, a shopkeeper, a pupil, a visitor, a nurse]
answers: Be brief.
reasoning:
  - name: cause
    weight: 2
    about: why something happens
    examples:
      - Why is the harbour empty in winter?
      - Why do gulls follow the boats?
      - Why is bread sold out so early?
      - Why do the bells ring twice?
  - {name: sums, verify: expression}
dialogue: [{name: help_desk, turns: {1: 1, 2: 1, 3: 1}}]
instruction: [{name: writing, subcategories: [note, story]}]
"""
"""A domain with everything but problems that are made by us."""


@dataclass(frozen=True)
class Said:
    """A request as the server sees it. question: the text that is to be answered; "" where one is to be written.
    number: how many requests came before it, of all.   again: how many with the same messages."""

    body: dict[str, Any]
    question: str
    number: int
    again: int

    @property
    def for_question(self) -> bool:
        return not self.question

    @property
    def system(self) -> str:
        first = self.body["messages"][0]
        return first["content"] if first["role"] == "system" else ""


@dataclass
class Models:
    """Answers of a `small_server`.

    fault: what is said instead, as a text or a whole reply; None leaves it to the models.   price: USD per token, which
    /models lists.   delay_s: of every answer.   solutions: question -> answer, for problems that no model wrote.
    seen: requests by their messages.   tokens: (prompt, completion) of every answer.
    """

    fault: Callable[[Said], Reply | str | None] = lambda said: None
    price: tuple[float, float] | None = None
    delay_s: float = 0.0
    solutions: dict[str, str] = field(default_factory=dict[str, str])
    seen: Counter[str] = field(default_factory=Counter[str])
    tokens: tuple[int, int] = (100, 20)
    questions: int = 0
    answers: int = 0
    lock: Lock = field(default_factory=Lock)

    def __call__(self, request: Received) -> Reply:
        if request.method == "GET":
            row: dict[str, Any] = {"id": "m"}
            if self.price:
                row["pricing"] = {"prompt": str(self.price[0]), "completion": str(self.price[1])}
            return Reply(body=json.dumps({"data": [row]}).encode())
        body = request.json
        messages = body["messages"]
        wants_question = messages[0]["content"].startswith("You write what people ask")
        identity = json.dumps([body["model"], messages])
        with self.lock:
            number = self.questions + self.answers
            said = Said(body, "" if wants_question else messages[-1]["content"], number, self.seen[identity])
            self.seen[identity] += 1
            if wants_question:
                self.questions += 1
            else:
                self.answers += 1
        if self.delay_s:
            time.sleep(self.delay_s)
        instead = self.fault(said)
        if isinstance(instead, Reply):
            return instead
        return Reply(body=completion(self.text(said) if instead is None else instead, self.tokens))

    def text(self, said: Said) -> str:
        """What a good model says."""
        random = random_of(json.dumps(said.body["messages"]))
        if said.for_question:
            return json.dumps(sum_of(random) if '"expression"' in said.system else {"question": question_of(random)})
        if said.question in self.solutions:
            return f"It is easy. {self.solutions[said.question]}"
        if found := re.search(r"Each of (\d+) .* holds (\d+) ", said.question):
            return f"That is {found[1]} times {found[2]}.\nAnswer: {int(found[1]) * int(found[2])}"
        return f"I think {' '.join(random.sample(WORDS, len(WORDS)))}, and the {random.choice(NOUNS)} is near."


def random_of(text: str) -> Random:
    return Random(int.from_bytes(blake2b(text.encode(), digest_size=8).digest()))


def question_of(random: Random) -> str:
    """One that no other is like."""
    a, b, c, d, e, f, g = random.sample(NOUNS, 7)
    return f"Why does the {a} near our {b} need a {c} and no {d} when {e} or {f} are what the {g} has?"


def sum_of(random: Random) -> dict[str, str]:
    a, b, c, d, e = random.sample(NOUNS, 5)
    many, each = random.randint(3, 99), random.randint(3, 99)
    question = f"Each of {many} {a} {b} boxes behind the {c} holds {each} {d} things for an {e}. How many are there?"
    return {"question": question, "expression": f"{many} * {each}"}


def completion(text: str, tokens: tuple[int, int] = (100, 20), finish_reason: str = "stop", **more: Any) -> bytes:
    """The body of an answer without a stated cost."""
    choice = {"message": {"role": "assistant", "content": text, **more}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps({"error": {"message": message}}).encode(), headers)


def solutions_of(
    domain: Domain, seed: int, count: int, shares: tuple[float, float, float], tries: int = 5
) -> dict[str, str]:
    """Question -> answer, of the problems that are made here for the first slots."""
    plan = Plan(domain, seed, shares, ())
    found: dict[str, str] = {}
    for slot in plan.slots(count):
        for attempt in range(tries):
            if problem := plan.draft(slot, attempt).problem:
                form = "<answer>{}</answer>" if problem.verify == "countdown" else "Answer: {}"
                found[problem.question] = form.format(problem.expected)
    return found


@dataclass
class Town:
    """A server with both models, and a folder in which domain.yml is DOMAIN. url: its address."""

    folder: Path
    models: Models
    url: str
    received: list[Received]

    @property
    def options(self) -> list[str]:
        """Of a run that asks this server."""
        return ["--model", "m", "--base-url", self.url, "--domain", "domain.yml", "-o", "out"]

    def run(self, *arguments: str) -> Outcome:
        """`generate_synthetic` through its command line, in this process, with --json."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code, _ = cli.run("generate_synthetic", [*self._options_beside(arguments), *arguments, "--json"])
        return Outcome(int(code), out.getvalue(), err.getvalue())

    def _options_beside(self, arguments: Sequence[str]) -> list[str]:
        given = iter(self.options)
        pairs = list(zip(given, given, strict=True))
        alias = {"-o": "--output-dir", "--model": "-m"}
        return [word for pair in pairs if not {pair[0], alias.get(pair[0])} & {*arguments} for word in pair]

    def start(
        self, *arguments: str, preexec: Callable[[], None] | None = None, **env: str
    ) -> "subprocess.Popen[bytes]":
        """The script as a process of its own, in the folder."""
        words = [*self._options_beside(arguments), *arguments, "--progress", "off", "--json"]
        return start(self.folder, *words, script=SCRIPT, preexec=preexec, **env)

    def start_and_wait(self, requests: int, *arguments: str) -> "subprocess.Popen[bytes]":
        """The same, back when the server has had so many requests more."""
        before, process = self.asked, self.start(*arguments)
        deadline = time.monotonic() + 60
        while self.asked < before + requests and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None, "it ended before it had asked so much"
        return process

    @property
    def asked(self) -> int:
        """Requests so far."""
        return self.models.questions + self.models.answers

    def rows(self, folder: str = "out") -> list[dict[str, Any]]:
        """Of train.jsonl."""
        return read_rows(self.folder / folder / "train.jsonl")

    def paid(self, folder: str = "out") -> list[dict[str, Any]]:
        return read_rows(self.folder / folder / "paid_answers.jsonl")

    def files(self, folder: str = "out") -> dict[str, bytes]:
        """The data set: what does not depend on when it was made."""
        names = re.compile(r"train\.jsonl|combined_\d+\.(csv|json)|(reasoning|dialogue|instruction)\.csv")
        return {each.name: each.read_bytes() for each in (self.folder / folder).iterdir() if names.fullmatch(each.name)}


@contextmanager
def town(folder: Path, **models: Any) -> Generator[Town]:
    """models: fields of `Models`."""
    (folder / "domain.yml").write_text(DOMAIN, encoding="utf-8")
    answers = Models(**models)
    with small_server(answers) as server:
        yield Town(folder, answers, server.url, server.received)
