"""Rollouts and rows for the tests of what is shown."""

import json
from pathlib import Path
from typing import Any

from core.commands.show import Show, Shown
from core.data.run import Run
from core.show.show import show


def call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"call_{number}", "type": "function", "function": function}


SNAPSHOT = "### Page state\n" + "\n".join(f'- link "Bridge {number}" [ref=e{number}]' for number in range(40))

CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Answer by browsing."},
    {"role": "user", "content": "Which year was the Ashdown bridge opened?"},
    {
        "role": "assistant",
        "content": "I open the list.",
        "reasoning_content": "The list should link to it.",
        "tool_calls": [
            call(1, "browser_navigate", url="http://127.0.0.1/bridges"),
            call(2, "browser_click", ref="e99"),
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "name": "browser_navigate", "content": SNAPSHOT},
    {"role": "tool", "tool_call_id": "call_2", "name": "browser_click", "content": "Error: no element e99"},
    {"role": "assistant", "content": "It opened in 1931."},
]


def rollout(**changes: Any) -> dict[str, Any]:
    """A finished rollout as run_rollouts writes it, with changes; a key changed to None is left out."""
    record = {
        "id": "20260125_101500_0f3a9c12",
        "completed": True,
        "success": True,
        "total_reward": 1.0,
        "rewards": {"contains": 1.0},
        "errors": [],
        "turns": 2,
        "truncated": False,
        "totalTokens": 1200,
        "metadata": {"expected_answer": "1931"},
        "index": 0,
        "tool_errors": ["browser_click: no element e99"],
        "provenance": {"teacher": "openai/gpt-5.2", "ended": "final_answer", "seconds": 3.5},
        "tools": [{"type": "function", "function": {"name": "browser_navigate", "parameters": {}}}],
        "conversation": CONVERSATION,
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


def said(question: str, answer: str, **changes: Any) -> dict[str, Any]:
    """A rollout of one question and its answer."""
    conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return rollout(conversation=conversation, turns=1, **changes)


def write(path: Path, record: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def look(path: Path, **options: Any) -> tuple[Shown, str]:
    """(result, what a person sees), 80 columns wide, without colours."""
    texts: list[str] = []
    result = show(Show(path=path, **{"width": 80, "color": False, **options}), Run(out=texts.append))
    return result, "\n".join(texts)
