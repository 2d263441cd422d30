"""The MCP server next to an empty one on the same SDK: start, memory, its list of tools, what it imports, many calls.

    python -m tests.bench.bench_mcp [--repeat 10] [--jobs 10000]

On stdio, in turns, each as a process of its own: from its start to the answer of `initialize`, then `tools/list`, then
its memory while nothing happens. Memory is what the process has to itself (USS). What it imports is read from
`python -X importtime`, after every kind of question was asked. Over HTTP: 100 calls of get_job at the same time, in a
workspace with that many jobs, next to as many calls of an empty server's only tool, in both eras of the protocol.
Prints one JSON report, and leaves with 0 when its criteria hold.
"""

import argparse
import asyncio
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from core.jobs import JobStore

from .bench_jobs import copies
from .harness import ROOT, clean_environment, finish, load, medians

MOST_TIMES, MOST_MB, MOST_BYTES, MOST_SECONDS, CALLS = 1.3, 30, 25_000, 1.0, 100
LEGACY, MODERN = "2025-11-25", "2026-07-28"
OURS = [sys.executable, str(ROOT / "mcp_server")]
EMPTY = """
import sys
from mcp.server import MCPServer
server = MCPServer("empty")
if len(sys.argv) > 1:
    @server.tool()
    async def get_job(job_id: str) -> dict[str, str]:
        return {"job_id": job_id}
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]), stateless_http=False)
else:
    server.run()
"""
BARE = [sys.executable, "-c", EMPTY]
HEAVY = {"accelerate", "aiohttp", "datasets", "datasketch", "gguf", "llama_cpp", "lm_eval", "matplotlib", "numpy"}
HEAVY |= {"pandas", "peft", "playwright", "pyarrow", "scipy", "sklearn", "tokenizers", "torch", "transformers", "trl"}
"""Nothing that answers from here needs any of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=10_000)
    options = parser.parse_args()
    report: dict[str, Any] = {"load": [load()]}
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as name:
        folder = Path(name)
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}  # as once installed
        environment = clean_environment() | {"XDG_CACHE_HOME": str(folder / "cache")} | compiled
        report |= started(folder, environment, options.repeat)
        heavy = sorted(HEAVY & imported(folder, environment))
        report["calls"] = asyncio.run(called(folder, environment, some_job(folder, environment, options.jobs)))
    report["heavy_modules"] = heavy
    report["load"].append(load())
    ratios, more_mb = report["ratios"], report["more_mb"]
    slowest = max(era["s"] for era in report["calls"].values())
    report["criteria"] = {
        f"initialize answered within {MOST_TIMES} x the time of an empty server": ratios["wall"] <= MOST_TIMES,
        f"and its CPU time within {MOST_TIMES} x": ratios["cpu"] <= MOST_TIMES,
        f"idle memory within {MOST_MB} MB of an empty server's": more_mb <= MOST_MB,
        f"tools/list < {MOST_BYTES:,} bytes": report["tools_list_bytes"] < MOST_BYTES,
        "nothing heavy is imported": not heavy,
        f"{CALLS} calls of get_job at once, {options.jobs:,} jobs on disk: < {MOST_SECONDS:g} s": slowest
        < MOST_SECONDS,
    }
    finish(report)


# ---- stdio ---------------------------------------------------------------------------------------------------------


class Wire:
    """A server on stdio, spoken to line by line: no client of the SDK shares its two cores."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str], errors: int) -> None:
        self.born = time.monotonic()
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        self._count = 0
        self.process = psutil.Process(self._process.pid)

    def tell(self, method: str, **parameters: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", "method": method, "params": parameters}).encode())
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def ask(self, method: str, **parameters: Any) -> bytes:
        """The line that answers. Raises RuntimeError for an error."""
        assert self._process.stdin
        assert self._process.stdout
        self._count += 1
        question = {"jsonrpc": "2.0", "id": self._count, "method": method, "params": parameters}
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        while line := self._process.stdout.readline():
            told = json.loads(line)
            if told.get("id") == self._count:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return line
        raise RuntimeError(f"{method}: the server has ended")

    def initialize(self) -> None:
        client = {"name": "bench", "version": "0"}
        self.ask("initialize", protocolVersion=LEGACY, capabilities={}, clientInfo=client)

    def end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()
        self._process.wait(20)


def started(folder: Path, environment: dict[str, str], repeat: int) -> dict[str, Any]:
    """Start, list of tools and idle memory of both servers, in turns."""
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "empty": []}
    tools = 0
    for number in range(repeat + 1):  # the first one compiles what has to be compiled
        for name, command in (("ours", OURS), ("empty", BARE)):
            wire = Wire(command, folder, environment, subprocess.DEVNULL)
            try:
                wire.initialize()
                wall_s = time.monotonic() - wire.born
                used = wire.process.cpu_times()
                wire.tell("notifications/initialized")
                before = time.monotonic()
                listed = wire.ask("tools/list")
                list_s = time.monotonic() - before
                time.sleep(0.3)
                memory = wire.process.memory_full_info()
            finally:
                wire.end()
            if name == "ours":
                tools = len(json.dumps(json.loads(listed)["result"], separators=(",", ":")).encode())
            figures = {"wall_s": wall_s, "cpu_s": used.user + used.system, "list_s": list_s, "uss_mb": memory.uss / 1e6}
            if number:
                rows[name].append(figures)
    ours, empty = medians(rows["ours"]), medians(rows["empty"])
    ratios = {
        what: round(statistics.median(a[key] / b[key] for a, b in zip(rows["ours"], rows["empty"], strict=True)), 3)
        for what, key in (("wall", "wall_s"), ("cpu", "cpu_s"))
    }
    more_mb = round(ours["uss_mb"] - empty["uss_mb"], 1)
    return {"ours": ours, "empty": empty, "ratios": ratios, "more_mb": more_mb, "tools_list_bytes": tools}


def imported(folder: Path, environment: dict[str, str]) -> set[str]:
    """Packages that the server has imported after it was asked everything."""
    with open(folder / "errors.txt", "w+b") as errors:
        wire = Wire([OURS[0], "-X", "importtime", *OURS[1:]], folder, environment, errors.fileno())
        try:
            wire.initialize()
            wire.tell("notifications/initialized")
            for what in ("tools", "prompts", "resources", "resources/templates"):
                wire.ask(f"{what}/list")
            wire.ask("resources/read", uri="options://train_gold")
            for tool, arguments in (
                ("list_jobs", {}),
                ("read_rows", {"path": "errors.txt"}),
                ("train_gold", {"data": "none.jsonl", "output": "run"}),  # refused, but by the very checks
                ("compare_tokenizers", {"student": "smollm2", "teacher": "smollm2"}),
            ):
                wire.ask("tools/call", name=tool, arguments=arguments)
        finally:
            wire.end()
        errors.seek(0)
        lines = errors.read().decode()
    found = re.findall(r"^import time:[^|]*\|[^|]*\| *([\w.]+)$", lines, re.MULTILINE)
    packages = {module.partition(".")[0] for module in found}
    if not {"mcp", "mcp_server", "core"} <= packages:
        raise RuntimeError(f"no list of what was imported:\n{lines[-2000:]}")
    return packages


# ---- HTTP ----------------------------------------------------------------------------------------------------------


def some_job(folder: Path, environment: dict[str, str], count: int) -> str:
    """The id of a finished job, one of so many."""
    store = JobStore(folder / ".distill" / "jobs")
    work = {"student": "smollm2", "teacher": "smollm2"}
    done = store.wait(store.start("compare_tokenizers", work, cwd=folder, environment=environment, origins={}).id, 120)
    if done.state != "succeeded":
        raise RuntimeError(f"no job to look at: {done.error}")
    copies(store, done, count)
    return done.id


@dataclass
class Server:
    """url: of the endpoint."""

    url: str


@contextmanager
def serving(command: Sequence[str], port: int, folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    """A server over HTTP, once it answers."""
    quiet = subprocess.DEVNULL
    with open(folder / "server.txt", "w+b") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=quiet, stdout=said, stderr=said)
        try:
            until = time.monotonic() + 30
            while not answers(f"http://127.0.0.1:{port}/mcp"):
                if process.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    raise RuntimeError(f"no server: {said.read().decode()[-2000:]}")
                time.sleep(0.05)
            yield Server(f"http://127.0.0.1:{port}/mcp")
        finally:
            process.terminate()
            process.wait(20)


def answers(url: str) -> bool:
    """Whether somebody is there; what is answered does not matter."""
    try:
        urllib.request.urlopen(url, b"{}", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


async def called(folder: Path, environment: dict[str, str], job: str) -> dict[str, dict[str, float]]:
    """{era: {s, empty_s}}: seconds from the first question to the last answer, the median of five times in turns."""
    port, bare_port = free_port(), free_port()
    ours, bare = [*OURS, "--http", "--port", str(port)], [*BARE, str(bare_port)]
    found: dict[str, dict[str, float]] = {}
    with serving(ours, port, folder, environment) as server, serving(bare, bare_port, folder, environment) as empty:
        for era in (MODERN, LEGACY):
            rows: list[dict[str, float]] = []
            for number in range(6):
                row = {"s": await at_once(server.url, era, job), "empty_s": await at_once(empty.url, era, job)}
                if number:
                    rows.append(row)
            found[era] = medians(rows)
    return found


async def at_once(url: str, era: str, job: str) -> float:
    """Seconds of so many calls at the same time, by one client with a connection for each."""
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": era}
    call: dict[str, Any] = {"name": "get_job", "arguments": {"job_id": job}}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CALLS)) as session:
        if era == LEGACY:
            client = {"name": "bench", "version": "0"}
            begin = {"protocolVersion": era, "capabilities": {}, "clientInfo": client}
            async with session.post(url, json=request("initialize", begin), headers=headers) as answer:
                headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
                await answer.read()
            ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            async with session.post(url, json=ready, headers=headers) as answer:
                await answer.read()
        else:
            headers |= {"Mcp-Method": "tools/call", "Mcp-Name": "get_job"}
            about = "io.modelcontextprotocol"
            call["_meta"] = {f"{about}/protocolVersion": era, f"{about}/clientCapabilities": {}}

        async def one(number: int) -> None:
            async with session.post(url, json=request("tools/call", call, number), headers=headers) as answer:
                text = await answer.text()
            if answer.status != 200 or job not in text or '"isError":true' in text:
                raise RuntimeError(f"{era}: HTTP {answer.status}: {text[:500]}")

        begun = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(1, CALLS + 1)))
        took = time.monotonic() - begun
        if era == LEGACY:
            async with session.delete(url, headers=headers) as answer:
                await answer.read()
        return took


def request(method: str, parameters: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": parameters}


if __name__ == "__main__":
    main()
