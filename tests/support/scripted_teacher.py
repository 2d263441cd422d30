"""A teacher that follows a script: an OpenAI-compatible server whose answers a function of the test decides."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .running import Received, Reply, small_server


@dataclass(frozen=True)
class Call:
    """A tool call. arguments: an object, or a text that is sent as it is."""

    name: str
    arguments: dict[str, Any] | str = field(default_factory=dict[str, Any])
    id: str = ""


@dataclass(frozen=True)
class Answer:
    """A turn of the teacher. usage: prompt and completion tokens, None for a server that counts nothing.
    cost_usd: None for one that states no cost.   more: further keys of the message.
    """

    text: str = ""
    calls: Sequence[Call] = ()
    finish_reason: str | None = None
    usage: tuple[int, int] | None = (10, 5)
    cost_usd: float | None = 0.001
    more: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Chat:
    """What the teacher is asked. number: of the request, from 0, over all conversations."""

    number: int
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.body["messages"]

    @property
    def tools(self) -> list[str]:
        """Names of the tools that it may use."""
        return [tool["function"]["name"] for tool in self.body.get("tools", ())]

    @property
    def turn(self) -> int:
        """How often the teacher has spoken in this conversation."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def question(self) -> str:
        """The first text of the user."""
        return next(message["content"] for message in self.messages if message["role"] == "user")

    @property
    def results(self) -> list[str]:
        """What the tools have said so far."""
        return [message["content"] for message in self.messages if message["role"] == "tool"]


Script = Callable[[Chat], "str | Call | Answer | Reply"]
"""A text is a final answer, a `Call` a turn that calls a tool, a `Reply` anything at all (an error, a web page)."""


@dataclass
class ScriptedTeacher:
    """base_url: up to and with /v1.   chats: all that was asked, in order."""

    base_url: str
    chats: list[Chat]
    model: str = "scripted/model"

    @property
    def options(self) -> list[str]:
        """For a command line."""
        return ["--base-url", self.base_url, "--model", self.model]


@contextmanager
def scripted_teacher(script: Script, price: tuple[float, float] | None = None) -> Iterator[ScriptedTeacher]:
    """price: USD per token of prompts and completions, for the list of models."""
    chats: list[Chat] = []

    def answer(request: Received) -> Reply:
        if request.method != "POST":
            return Reply(404) if price is None else Reply(body=price_list(teacher.model, *price))
        chat = Chat(len(chats), request.json)
        chats.append(chat)
        said = script(chat)
        return said if isinstance(said, Reply) else Reply(body=body_of(said, chat))

    teacher = ScriptedTeacher("", chats)
    with small_server(answer) as server:
        teacher.base_url = server.url
        yield teacher


def price_list(model: str, prompt: float, completion: float) -> bytes:
    """OpenRouter's list of models, with one in it."""
    listed = {"id": model, "pricing": {"prompt": str(prompt), "completion": str(completion)}}
    return json.dumps({"data": [listed]}).encode()


def body_of(said: str | Call | Answer, chat: Chat) -> bytes:
    """The body of an HTTP answer."""
    answer = Answer(said) if isinstance(said, str) else Answer(calls=[said]) if isinstance(said, Call) else said
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, **answer.more}
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call.id or f"call_{chat.turn}_{number}",
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments),
                },
            }
            for number, call in enumerate(answer.calls)
        ]
    finish_reason = answer.finish_reason or ("tool_calls" if answer.calls else "stop")
    body: dict[str, Any] = {"choices": [{"message": message, "finish_reason": finish_reason}]}
    if answer.usage:
        cost = {} if answer.cost_usd is None else {"cost": answer.cost_usd}
        body["usage"] = {"prompt_tokens": answer.usage[0], "completion_tokens": answer.usage[1], **cost}
    return json.dumps(body).encode()


def refusal(status: int, message: str, **headers: str) -> Reply:
    """An error as OpenAI words it. headers: retry_after="1" is Retry-After: 1."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps({"error": {"message": message}}).encode(), named)
