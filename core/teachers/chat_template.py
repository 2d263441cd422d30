"""A local model's chat template, with tools: what the template has no place for is found out before it is missed."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import TeacherUnavailable
from .protocol import Completion, Message, ToolSchema, split_thinking
from .tool_calls import with_ids, with_object_arguments
from .tool_text import parse_tool_calls

Render = Callable[[list[Message], list[ToolSchema] | None, bool], str]
"""(messages, tools, whether the answer's beginning is appended) -> text. It may raise whatever the template raises."""

PROBE: ToolSchema = {
    "type": "function",
    "function": {
        "name": "temperature_in",
        "description": "The temperature in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
ASKED: list[Message] = [{"role": "user", "content": "How warm is it in Paris?"}]
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "temperature_in", "arguments": {"city": "Paris"}}}
RESULT = "31 degrees"
WAY_OUT = "Use another model, or serve this one with a server that knows its tools (vLLM, llama-server) and --base-url."


class ChatTemplate:
    """The template `source` of a model, rendered by `render`."""

    def __init__(self, model: str, source: str, render: Render) -> None:
        self._model, self._render = model, render
        self._short_ids = re.search(r"length\s*!=\s*9", source) is not None  # Mistral's
        self._writes_calls: bool | None = None  # None: not looked at yet

    def prompt(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> str:
        """The conversation up to where the answer begins.

        Raises what the template raises, and TeacherUnavailable when it has no place for the tools.
        """
        if tools:
            self.check_tools()
        prepared = with_object_arguments(messages, short_ids=self._short_ids)
        if self._writes_calls is False:
            prepared = [written_out(message) for message in prepared]
        return self._render(prepared, list(tools) or None, True)

    def check_tools(self) -> None:
        """Raises TeacherUnavailable when the template drops tools or their results, or writes calls in a notation that
        cannot be read back. A template that drops only the calls is helped: they are put into the text."""
        if self._writes_calls is not None:
            return
        try:
            prompt = self._render(ASKED, [PROBE], True)
        except Exception as error:  # jinja2's, or whatever the template's own code meets
            raise self._refusal(f"refuses tools ({error})") from None
        if prompt == self._rendered(ASKED, None, True):
            raise self._refusal("has no place for tools")
        called: Message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        silent: Message = {"role": "assistant", "content": ""}
        answered: Message = {"role": "tool", "tool_call_id": CALL["id"], "name": "temperature_in", "content": RESULT}
        whole = self._rendered([*ASKED, called, answered], [PROBE], True)
        if whole is None:  # it wants conversations of another shape; the real ones will show
            self._writes_calls = True
            return
        if RESULT not in whole:
            raise self._refusal("drops the results of tools")
        self._writes_calls = whole != self._rendered([*ASKED, silent, answered], [PROBE], True)
        if not self._writes_calls:
            if "<tool_call>" not in prompt:
                raise self._refusal("drops tool calls")
            return
        turn = self._rendered([*ASKED, called], [PROBE], False) or whole
        plain = self._rendered([*ASKED, {"role": "assistant", "content": RESULT}], [PROBE], False) or ""
        begin = next((n for n, (a, b) in enumerate(zip(prompt, turn, strict=False)) if a != b), len(prompt))
        if begin < len(prompt):  # the prompt may open a thought: back to the line where both still say the same
            begin = prompt.rfind("\n", 0, begin) + 1
        written = turn[begin:].removesuffix(plain.rpartition(RESULT)[2])
        read = parse_tool_calls(written, [PROBE])[1]
        if [call["function"]["name"] for call in read] != ["temperature_in"]:
            self._writes_calls = None
            raise self._refusal("writes tool calls in a notation that is not understood here")

    def _rendered(self, messages: list[Message], tools: list[ToolSchema] | None, begin: bool) -> str | None:
        """None when the template refuses."""
        try:
            return self._render(messages, tools, begin)
        except Exception:  # jinja2's, or whatever the template's own code meets
            return None

    def _refusal(self, problem: str) -> TeacherUnavailable:
        return TeacherUnavailable("no_tools", f"the chat template of {self._model} {problem}. {WAY_OUT}", usage=True)


def written_out(message: Message) -> Message:
    """The message with its tool calls in its text, in Hermes' notation."""
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    pieces = [message.get("content") or ""]
    for call in calls:
        function = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        pieces.append(f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>")
    return {**message, "content": "\n".join(piece for piece in pieces if piece)} if calls else message


def answer_of(completion: Completion, tools: Sequence[ToolSchema], turn: int) -> Completion:
    """A model's text -> its thinking, its tool calls (only where tools were offered) and its answer.

    turn: see `with_ids`.
    """
    completion = split_thinking(completion)
    if not tools:
        return completion
    text, calls = parse_tool_calls(completion.text, tools)
    if not calls:
        return completion
    reason = "length" if completion.finish_reason == "length" else "tool_calls"
    return replace(completion, text=text, tool_calls=with_ids(calls, turn), finish_reason=reason)
