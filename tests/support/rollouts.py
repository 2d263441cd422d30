"""Rollouts for tests, small and in every layout."""

import json
from pathlib import Path
from typing import Any

SCHEMA = {
    "type": "function",
    "function": {
        "name": "open_page",
        "description": "Open a page.",
        "parameters": {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]},
    },
}


def user(text: str = "When was the bridge opened?") -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(id_: str | None, arguments: Any = '{"url": "https://example.org/bridge"}', name: Any = "open_page") -> Any:
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made if id_ is None else {"id": id_, **made}


def calls(*made: Any, text: str | None = "") -> dict[str, Any]:
    return {"role": "assistant", "content": text, "tool_calls": list(made)}


def result(id_: str | None, text: Any = "Opened in 1931.") -> dict[str, Any]:
    return {"role": "tool", "content": text} | ({} if id_ is None else {"tool_call_id": id_})


def with_tool(question: str = "When was the bridge opened?", answer: str = "In 1931.") -> list[dict[str, Any]]:
    """A conversation with one call."""
    system = {"role": "system", "content": "Answer by browsing."}
    return [system, user(question), calls(call("call_1")), result("call_1"), says(answer)]


def record(conversation: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    """A finished rollout as newer files have it; a key that is None is left out."""
    found = {
        "id": "sample_1",
        "completed": True,
        "success": True,
        "total_reward": 1.0,
        "rewards": {"accuracy": 1.0},
        "errors": [],
        "turns": 2,
        "truncated": False,
        "totalTokens": 300,
        "promptTokens": 280,
        "completion": 20,
        "metadata": {"expected_answer": "1931"},
        **more,
        "conversation": with_tool() if conversation is None else conversation,
    }
    return {key: value for key, value in found.items() if value is not None}


def write(path: Path, content: Any) -> Path:
    """A file with a JSON value, or with bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content, indent=2).encode())
    return path
