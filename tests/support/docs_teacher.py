"""The teacher behind every command of the documentation that asks one: it lists prices, answers, uses the sample tools,
and writes questions for `generate_synthetic`."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from core.synthetic.domain import load_domain
from tests.support.running import ROOT, Received, Reply, read_rows, small_server
from tests.support.scripted_teacher import Answer, Call, Chat, body_of
from tests.support.synthetic import Models, solutions_of

PRICE = {"prompt": "0.000001", "completion": "0.000004"}
"""USD per token, of every model."""
ABLE = ["max_tokens", "temperature", "seed", "tools", "tool_choice", "structured_outputs", "logprobs", "top_logprobs"]
SUMS = ROOT / "skills/rollout-distill/assets/prompts.jsonl"
FALLBACK = "I do not know."


def model_row(name: str) -> dict[str, Any]:
    """A model as OpenRouter lists it."""
    return {
        "id": name,
        "name": name,
        "created": 1_760_000_000,
        "context_length": 131_072,
        "architecture": {"modality": "text->text", "input_modalities": ["text"], "output_modalities": ["text"]},
        "pricing": PRICE,
        "supported_parameters": ABLE,
        "top_provider": {"context_length": 131_072, "max_completion_tokens": 8192, "is_moderated": False},
    }


def right_answers() -> dict[str, str]:
    """Question -> answer, of the sample prompts for tools."""
    return {row["messages"][-1]["content"]: str(row["metadata"]["expected_answer"]) for row in read_rows(SUMS)}


def worked_out(chat: Chat, answers: dict[str, str]) -> str | Call | Answer:
    """One call of a tool, then the answer that it led to."""
    known = answers.get(chat.question, FALLBACK)
    if chat.results:
        return f"The tool said {chat.results[-1][:40]!r}.\nAnswer: {known}"
    for tool in chat.body["tools"]:
        if called := call_of(tool["function"], chat.question, known):
            return called
    raise AssertionError(f"no call for any of {chat.tools}")


def call_of(tool: dict[str, Any], question: str, known: str) -> Call | None:
    """A call of a tool with arguments that it takes; None for one that this teacher does not use."""
    match tool["name"]:
        case "calculate":
            return Call("calculate", {"expression": known if re.fullmatch(r"-?[\d.]+", known) else "1 + 1"})
        case "browser_snapshot":
            return Call("browser_snapshot", {})
    needed = tool["parameters"].get("required", [])
    kinds = {name: tool["parameters"]["properties"][name].get("type") for name in needed}
    values = {"integer": 2, "number": 2.0, "string": "2024-03-01", "boolean": False}
    if tool["name"].startswith("browser_") or not all(kind in values for kind in kinds.values()):
        return None
    return Call(tool["name"], {name: values[str(kind)] for name, kind in kinds.items()})


@dataclass
class DocsTeacher:
    """Answers of a `small_server`. models: names in its list.   asked: chat requests so far."""

    models: tuple[str, ...]
    writer: Models = field(default_factory=Models)
    asked: int = 0
    answers: dict[str, str] = field(default_factory=right_answers)

    def __post_init__(self) -> None:
        for preset in ("general", "finance"):
            domain = load_domain(preset)
            self.writer.solutions |= solutions_of(domain, 0, 100, domain.shares())

    def __call__(self, request: Received) -> Reply:
        path = request.path.partition("?")[0]
        if request.method == "GET":
            return self.listed() if path.endswith("/models") else Reply(404, b'{"error": {"message": "not here"}}')
        if not path.endswith("/chat/completions"):
            return Reply(404, b'{"error": {"message": "this server only chats"}}')
        self.asked += 1
        body = request.json
        asked = body["messages"][-1]["content"]
        if found := re.fullmatch(r"What is (\d+) times (\d+)\?", asked):
            self.writer.solutions[asked] = f"Answer: {int(found[1]) * int(found[2])}"
        if body.get("tools"):
            return Reply(body=body_of(worked_out(Chat(self.asked, body), self.answers), Chat(self.asked, body)))
        return self.writer(request)

    def listed(self) -> Reply:
        return Reply(body=json.dumps({"data": [model_row(name) for name in self.models]}).encode())


@contextmanager
def docs_teacher(models: Iterable[str]) -> Iterator[str]:
    """models: names that its list has. Gives its address, up to and with /v1."""
    with small_server(DocsTeacher(tuple(sorted(set(models))))) as server:
        yield server.url
