"""MCP servers as processes: a small one on stdio that can misbehave, the SDK's own over HTTP and SSE, and one that
answers HTTP with whatever it is told.

As a script: `mcp_servers.py stdio BEHAVIOUR` needs the standard library only, so that two hundred of them start in
seconds; `mcp_servers.py http|sse PORT` runs the SDK's server.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
ANY = {"type": "object", "properties": {}}
TOOLS = ["add", "count", "die", "environment", "error", "image", "pid", "refuse", "slow", "structured", "long", "odd"]


def command(behaviour: str) -> list[str]:
    """The command line of the stdio server."""
    return [sys.executable, "-I", "-S", str(Path(__file__)), "stdio", behaviour]


# --- stdio ----------------------------------------------------------------------------------------------------------


def _listed(behaviour: str, cursor: str | None) -> dict[str, Any]:
    if behaviour == "empty":
        return {"tools": []}
    if behaviour == "badlist":
        return {"tools": [{"name": "x", "inputSchema": "a string"}]}
    if behaviour == "many":
        start = int(cursor or 0)
        page: dict[str, Any] = {
            "tools": [
                {"name": f"tool_{n}", "description": "d" * 100, "inputSchema": ANY} for n in range(start, start + 50)
            ]
        }
        return {**page, "nextCursor": str(start + 50)} if start < 150 else page
    return {"tools": [{"name": n, "description": n, "inputSchema": NUMBERS if n == "add" else ANY} for n in TOOLS]}


def _text(text: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], **more}


class _Refused(Exception):
    pass


def _called(name: str, arguments: dict[str, Any], calls: int) -> dict[str, Any]:
    match name:
        case "add":
            return _text(str(arguments["a"] + arguments["b"]))
        case "count":
            return _text(str(calls))
        case "pid":
            return _text(str(os.getpid()))
        case "environment":
            return _text(json.dumps(dict(os.environ)))
        case "error":
            return _text("that did not work", isError=True)
        case "structured":
            return {"content": [], "structuredContent": {"answer": 42}}
        case "long":
            return _text("x" * 3_000_000)
        case "odd":
            return {"content": "no list"}
        case "image":
            image = {"type": "image", "mimeType": "image/png", "data": "AAAA" * 100}
            audio = {"type": "audio", "mimeType": "audio/wav", "data": "AAA="}
            link = {"type": "resource_link", "name": "page", "uri": "file:///out/page.yml"}
            inside = {"type": "resource", "resource": {"uri": "note://1", "text": "a note"}}
            return {"content": [{"type": "text", "text": "seen"}, image, audio, link, inside]}
        case "die":
            print("fatal: told to die", file=sys.stderr, flush=True)
            os._exit(7)
        case "slow":
            time.sleep(arguments.get("seconds", 0.5))
            return _text("late")
    raise _Refused(f"no tool is called {name}")


def _stdio(behaviour: str) -> None:
    if behaviour == "exits":
        print("reading configuration\nTOKEN was ***hidden***: " + os.environ.get("SECRET", ""), file=sys.stderr)
        sys.exit(3)
    if behaviour == "rude":
        sys.stderr.buffer.write(b"\x1b[31mred\x1b[0m\x1b[2J\x1b]0;title\x07 \xc2\x9b and \xe2\x80\xaeback\n")
        sys.exit(3)
    if behaviour == "late":
        time.sleep(1.5)
    if behaviour == "garbage":
        print("<html>hello</html>\n{not json", flush=True)
    calls = 0
    for line in sys.stdin:
        if behaviour in {"silent", "garbage"}:
            continue
        message = json.loads(line)
        if "id" not in message:
            continue
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        parameters = message.get("params") or {}
        match message["method"]:
            case "initialize" if behaviour == "modern":
                data = {"supported": ["2026-07-28"], "requested": parameters["protocolVersion"]}
                reply["error"] = {"code": -32022, "message": "Unsupported protocol version", "data": data}
            case "server/discover" if behaviour == "modern":
                reply["result"] = {
                    "supportedVersions": ["2026-07-28"],
                    "capabilities": {"tools": {}},
                    "resultType": "complete",
                    "ttlMs": 0,
                    "cacheScope": "private",
                }
            case "initialize":
                about = {"name": "small", "version": "1"}
                reply["result"] = {
                    "protocolVersion": parameters["protocolVersion"],
                    "capabilities": {"tools": {"listChanged": True}},
                    "serverInfo": about,
                }
            case "tools/list":
                reply["result"] = _listed(behaviour, parameters.get("cursor"))
            case "tools/call":
                if behaviour == "noisy":
                    print("a line that is no message", flush=True)
                    print("x" * 1000, file=sys.stderr, flush=True)
                    print('{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}', flush=True)
                calls += 1
                try:
                    reply["result"] = _called(parameters["name"], parameters.get("arguments") or {}, calls)
                except _Refused as error:
                    reply["error"] = {"code": -32602, "message": str(error)}
            case _:
                reply["error"] = {"code": -32601, "message": "Method not found"}
        if behaviour == "modern" and "result" in reply:
            more = {"ttlMs": 0, "cacheScope": "private"} if message["method"] == "tools/list" else {}
            reply["result"] = {"resultType": "complete", **more, **reply["result"]}
        print(json.dumps(reply), flush=True)
    if behaviour == "stubborn":
        time.sleep(60)


# --- HTTP -----------------------------------------------------------------------------------------------------------


def _http(transport: str, port: int) -> None:
    import asyncio

    from mcp.server import MCPServer
    from mcp.server.mcpserver import Context

    server = MCPServer("over-http", log_level="ERROR")
    counts: dict[str, int] = {}

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    def count(ctx: Context) -> str:
        """How often this session has called."""
        key = (ctx.headers or {}).get("mcp-session-id", "none")
        counts[key] = counts.get(key, 0) + 1
        return str(counts[key])

    @server.tool()
    async def slow(seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        return "late"

    @server.tool()
    def die() -> str:
        """End the server."""
        os._exit(1)

    @server.tool()
    def large() -> str:
        """A result above a megabyte."""
        return "x" * 3_000_000

    if transport == "sse":
        server.run("sse", host="127.0.0.1", port=port)
    else:
        server.run("streamable-http", host="127.0.0.1", port=port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class HttpServer:
    """The SDK's server in a process of its own; `with` waits until it listens and ends it."""

    def __init__(self, transport: str) -> None:
        self.transport, self.port = transport, free_port()
        self.host = f"localhost:{self.port}"

    def __enter__(self) -> "HttpServer":
        arguments = [sys.executable, str(Path(__file__)), self.transport, str(self.port)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the MCP server did not start") from None
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


class Nonsense:
    """An HTTP server that gives one answer to everything."""

    def __init__(self, status: int, body: str, content_type: str = "text/plain", delay_s: float = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                time.sleep(delay_s)
                self.send_response(status)
                self.send_header("content-type", content_type)
                self.send_header("content-length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Nonsense":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        _stdio(sys.argv[2])
    else:
        _http(sys.argv[1], int(sys.argv[2]))
