"""What the official conformance suite wants of any server (tools, resources and prompts with names that it knows),
added to ours, so that our builder, our answers and our HTTP are what it judges. Never part of what is shipped.

`python -m tests.mcp_server.conformance_app` serves it on a free port and prints the address.
"""

import base64
import json
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Annotated, Any

import anyio
import mcp.types as types
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.shared.exceptions import MCPError
from pydantic import Field

from core.data.stop import Stop, signals
from mcp_server.door import Settings
from mcp_server.http import serve_http
from mcp_server.server import build

Asked = types.InputRequiredResult
Result = types.CallToolResult


def _png() -> bytes:
    """One red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
        + chunk(b"IEND", b"")
    )


PNG = _png()
WAV = b"RIFF" + struct.pack("<I", 38) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
WAV += b"data" + struct.pack("<I", 2) + b"\x80\x80"
IMAGE = types.ImageContent(type="image", data=base64.b64encode(PNG).decode(), mime_type="image/png")
SCHEMA_2020 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def text(words: str) -> Result:
    return Result(content=[types.TextContent(type="text", text=words)])


def embedded(uri: str, words: str, kind: str = "text/plain") -> types.EmbeddedResource:
    resource = types.TextResourceContents(uri=uri, mime_type=kind, text=words)
    return types.EmbeddedResource(type="resource", resource=resource)


def question(message: str, **fields: str) -> types.ElicitRequest:
    """A form with these fields (name=JSON type), all required."""
    schema = {"type": "object", "properties": {k: {"type": v} for k, v in fields.items()}, "required": list(fields)}
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def sampling(words: str, max_tokens: int = 100) -> types.CreateMessageRequest:
    message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=words))
    return types.CreateMessageRequest(
        params=types.CreateMessageRequestParams(messages=[message], max_tokens=max_tokens)
    )


def asked(state: str | None = None, /, **requests: Any) -> Asked:
    """An answer that asks: requests by their keys, and what the server wants to be told again."""
    return Asked(input_requests=requests, request_state=state)


def answered(ctx: Context[Any, Any], key: str) -> types.ElicitResult | None:
    """What the user filled in under this key, if anything."""
    found = (ctx.input_responses or {}).get(key)
    return found if isinstance(found, types.ElicitResult) and found.content is not None else None


def add_fixtures(server: MCPServer[Any]) -> None:
    """Everything that the suite names."""
    contents(server)
    behaviour(server)
    back_channel(server)
    input_required(server)
    resources(server)
    prompts(server)


def contents(server: MCPServer[Any]) -> None:
    """Tools by the kind of what they answer."""

    @server.tool()
    def test_simple_text() -> Result:
        """Text."""
        return text("This is a simple text response for testing.")

    @server.tool()
    def test_image_content() -> Result:
        """An image."""
        return Result(content=[IMAGE])

    @server.tool()
    def test_audio_content() -> Result:
        """A sound."""
        sound = types.AudioContent(type="audio", data=base64.b64encode(WAV).decode(), mime_type="audio/wav")
        return Result(content=[sound])

    @server.tool()
    def test_embedded_resource() -> Result:
        """A resource within the answer."""
        return Result(content=[embedded("test://embedded-resource", "This is an embedded resource content.")])

    @server.tool()
    def test_multiple_content_types() -> Result:
        """Text, image and resource."""
        words = types.TextContent(type="text", text="Multiple content types test:")
        data = json.dumps({"test": "data", "value": 123})
        return Result(content=[words, IMAGE, embedded("test://mixed-content-resource", data, "application/json")])

    @server.tool()
    def test_error_handling() -> Result:
        """Always an error."""
        raise ToolError("This tool intentionally returns an error for testing")

    @server.tool()
    def json_schema_2020_12_tool() -> Result:
        """Its schema uses what JSON Schema 2020-12 has."""
        return text("ok")

    declared = server._tool_manager.get_tool("json_schema_2020_12_tool")  # pyright: ignore[reportPrivateUsage]
    assert declared is not None
    declared.parameters = SCHEMA_2020

    @server.tool()
    def test_custom_headers(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> Result:
        """One argument is repeated in a header."""
        return text(region)


def behaviour(server: MCPServer[Any]) -> None:
    """Tools by what they do meanwhile."""

    @server.tool()
    async def test_tool_with_logging(ctx: Context[Any, Any]) -> Result:
        """Three lines to the client's log."""
        for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.info(line)  # pyright: ignore[reportDeprecated]
            await anyio.sleep(0.05)
        return text("logged")

    @server.tool()
    async def test_logging_tool(ctx: Context[Any, Any]) -> Result:
        """A line to the client's log, if it wants one."""
        await ctx.info("a line")  # pyright: ignore[reportDeprecated]
        return text("logged")

    @server.tool()
    async def test_tool_with_progress(ctx: Context[Any, Any]) -> Result:
        """Progress in three steps."""
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100)
            await anyio.sleep(0.05)
        return text("done")

    @server.tool()
    async def test_trigger_tool_change(ctx: Context[Any, Any]) -> Result:
        """Says that the list of tools changed."""
        await ctx.notify_tools_changed()
        return text("said")

    @server.tool()
    async def test_trigger_prompt_change(ctx: Context[Any, Any]) -> Result:
        """Says that the list of prompts changed."""
        await ctx.notify_prompts_changed()
        return text("said")

    @server.tool()
    def test_missing_capability(ctx: Context[Any, Any]) -> Result:
        """Cannot do without a client that samples."""
        if ctx.client_capabilities is None or ctx.client_capabilities.sampling is None:
            raise MCPError(
                types.MISSING_REQUIRED_CLIENT_CAPABILITY,
                "sampling is needed",
                {"requiredCapabilities": {"sampling": {}}},
            )
        return text("ok")


def back_channel(server: MCPServer[Any]) -> None:
    """Tools that ask the client in the middle of a call: protocols before 2026-07-28."""

    @server.tool()
    async def test_sampling(prompt: str, ctx: Context[Any, Any]) -> Result:
        """Asks the client's model."""
        message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text=prompt))
        session = ctx.request_context.session
        said = await session.create_message(  # pyright: ignore[reportDeprecated]
            [message], max_tokens=100, related_request_id=ctx.request_id
        )
        return text(
            f"LLM response: {said.content.text if isinstance(said.content, types.TextContent) else said.content}"
        )

    async def ask(
        ctx: Context[Any, Any], message: str, properties: dict[str, Any], *required: str
    ) -> types.ElicitResult:
        schema = {"type": "object", "properties": properties, "required": list(required)}
        return await ctx.request_context.session.elicit_form(message, schema, ctx.request_id)

    @server.tool()
    async def test_elicitation(message: str, ctx: Context[Any, Any]) -> Result:
        """Asks for two words."""
        fields = {
            "username": {"type": "string", "description": "User's response"},
            "email": {"type": "string", "description": "User's email address"},
        }
        said = await ask(ctx, message, fields, *fields)
        return text(f"User response: action: {said.action}, content: {json.dumps(said.content)}")

    @server.tool()
    async def test_elicitation_sep1034_defaults(ctx: Context[Any, Any]) -> Result:
        """Asks with a default for every type."""
        fields = {
            "name": {"type": "string", "default": "John Doe"},
            "age": {"type": "integer", "default": 30},
            "score": {"type": "number", "default": 95.5},
            "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            "verified": {"type": "boolean", "default": True},
        }
        said = await ask(ctx, "Review these", fields)
        return text(f"Elicitation completed: action={said.action}, content={json.dumps(said.content)}")

    @server.tool()
    async def test_elicitation_sep1330_enums(ctx: Context[Any, Any]) -> Result:
        """Asks with every form of a choice."""
        plain = ["option1", "option2", "option3"]
        titled = [
            {"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(("First", "Second", "Third"), 1)
        ]
        legacy = {"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]}
        fields = {
            "untitledSingle": {"type": "string", "enum": plain},
            "titledSingle": {"type": "string", "oneOf": titled},
            "legacyEnum": {"type": "string", **legacy},
            "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
            "titledMulti": {"type": "array", "items": {"anyOf": titled}},
        }
        said = await ask(ctx, "Choose", fields)
        return text(f"Elicitation completed: action={said.action}, content={json.dumps(said.content)}")


def input_required(server: MCPServer[Any]) -> None:
    """Tools that answer with questions: 2026-07-28."""

    @server.tool()
    async def test_input_required_result_elicitation(ctx: Context[Any, Any]) -> Result | Asked:
        """Asks for a name."""
        said = answered(ctx, "user_name")
        if said is None or not isinstance((said.content or {}).get("name"), str):
            return asked(user_name=question("What is your name?", name="string"))
        return text(f"Hello, {(said.content or {})['name']}!")

    @server.tool()
    async def test_streaming_elicitation(ctx: Context[Any, Any]) -> Result | Asked:
        """The same, after progress."""
        await ctx.report_progress(1, 2)
        return await test_input_required_result_elicitation(ctx)

    @server.tool()
    async def test_input_required_result_sampling(ctx: Context[Any, Any]) -> Result | Asked:
        """Asks the client's model."""
        said = (ctx.input_responses or {}).get("capital_question")
        if not isinstance(said, types.CreateMessageResult):
            return asked(capital_question=sampling("What is the capital of France?"))
        return text(said.content.text if isinstance(said.content, types.TextContent) else "no text")

    @server.tool()
    async def test_input_required_result_list_roots(ctx: Context[Any, Any]) -> Result | Asked:
        """Asks for the client's roots."""
        said = (ctx.input_responses or {}).get("client_roots")
        if not isinstance(said, types.ListRootsResult):
            return asked(client_roots=types.ListRootsRequest())
        return text(", ".join(str(root.uri) for root in said.roots))

    async def confirmed(ctx: Context[Any, Any]) -> Result | Asked:
        if answered(ctx, "confirm") is None or ctx.request_state != "asked":
            return asked("asked", confirm=question("Please confirm", ok="boolean"))
        return text("state-ok")

    server.tool("test_input_required_result_request_state", description="Keeps a state.")(confirmed)
    server.tool("test_input_required_result_tampered_state", description="Keeps a state that is sealed.")(confirmed)

    @server.tool()
    async def test_input_required_result_multiple_inputs(ctx: Context[Any, Any]) -> Result | Asked:
        """Asks three things at once."""
        wanted: dict[str, Any] = {
            "user_name": question("What is your name?", name="string"),
            "greeting": sampling("Generate a greeting", 50),
            "client_roots": types.ListRootsRequest(),
        }
        if ctx.request_state != "asked" or not wanted.keys() <= (ctx.input_responses or {}).keys():
            return asked("asked", **wanted)
        return text("all there")

    @server.tool()
    async def test_input_required_result_multi_round(ctx: Context[Any, Any]) -> Result | Asked:
        """Asks twice."""
        state = json.loads(ctx.request_state or "{}")
        if "name" not in state:
            said = answered(ctx, "step1") if state else None
            if said is None:
                step = question("Step 1: What is your name?", name="string")
                return asked(json.dumps({"step": 1}), step1=step)
            state = {"name": (said.content or {}).get("name")}
        said = answered(ctx, "step2")
        if said is None:
            step = question("Step 2: What is your favorite color?", color="string")
            return asked(json.dumps(state), step2=step)
        return text(f"{state['name']} likes {(said.content or {}).get('color')}")

    @server.tool()
    async def test_input_required_result_capabilities(ctx: Context[Any, Any]) -> Result | Asked:
        """Asks only what the client said that it can answer."""
        able = ctx.client_capabilities or types.ClientCapabilities()
        wanted: dict[str, Any] = {}
        if able.elicitation is not None:
            wanted["user_name"] = question("What is your name?", name="string")
        if able.sampling is not None:
            wanted["greeting"] = sampling("Generate a greeting", 50)
        return asked(**wanted) if wanted and not ctx.input_responses else text("done")


def resources(server: MCPServer[Any]) -> None:
    @server.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        """A text."""
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        """An image."""
        return PNG

    @server.resource("test://watched-resource", mime_type="text/plain")
    def watched() -> str:
        """A text that can be subscribed to."""
        return "watched"

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def from_template(id: str) -> str:
        """JSON with the id of its address."""
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    async def accept(ctx: Any, params: Any) -> types.EmptyResult:
        return types.EmptyResult()

    # Methods that 2026-07-28 no longer has, and that the SDK leaves to its low level.
    low = server._lowlevel_server  # pyright: ignore[reportPrivateUsage]
    low.add_request_handler("resources/subscribe", types.SubscribeRequestParams, accept)
    low.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, accept)
    low.add_request_handler("logging/setLevel", types.SetLevelRequestParams, accept)


def prompts(server: MCPServer[Any]) -> None:
    @server.prompt()
    def test_simple_prompt() -> str:
        """No arguments."""
        return "This is a simple prompt for testing."

    @server.prompt()
    def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        """Two arguments."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt()
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
        """A resource within the prompt."""
        resource = embedded(resourceUri, "Embedded resource content for testing.")
        return [UserMessage(resource), UserMessage("Please process the embedded resource above.")]

    @server.prompt()
    def test_prompt_with_image() -> list[UserMessage]:
        """An image within the prompt."""
        return [UserMessage(IMAGE), UserMessage("Please analyze the image above.")]

    @server.prompt()
    async def test_input_required_result_prompt(ctx: Context[Any, Any]) -> str | Asked:
        """A prompt that asks first."""
        said = answered(ctx, "user_context")
        if said is None:
            return asked(user_context=question("What context should the prompt use?", context="string"))
        return f"In the context of {(said.content or {}).get('context')}"


def main() -> None:
    """Serve until SIGTERM."""

    def note(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    stop = Stop()
    with tempfile.TemporaryDirectory() as workspace, signals(stop, note):
        server = build(Settings(workspace=Path(workspace)), log_level="WARNING")
        add_fixtures(server)
        serve_http(server, "127.0.0.1", 0, None, (), stop=stop, note=note)


if __name__ == "__main__":
    main()
