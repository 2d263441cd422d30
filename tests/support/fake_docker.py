"""A `docker` for machines without an engine: it records every call, keeps its state in a folder, and its containers are
real local processes with real logs on really published ports.

`FakeDocker(folder)` writes the program to folder/bin/docker; put that first on PATH. What an image does when it is run
is `behave`d: "serve" answers HTTP, "mcp" is a real MCP server, "exit" ends at once with words, "silent" publishes a
port on which nothing answers, "unhealthy" is silent and has a health check that fails, "deaf" one that passes.
"""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SERVE = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(400); self.send_header("content-length", "0"); self.end_headers()
print("serving", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
MCP = """
import sys
from mcp.server import MCPServer
server = MCPServer("contained")
@server.tool()
def shout(text: str) -> str:
    "The text in capitals."
    return text.upper()
server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
"""
EXIT = """
import os
print("starting with", os.environ.get("TOKEN", "nothing"), flush=True)
raise SystemExit(7)
"""
SILENT = """
import time
print("busy", flush=True)
time.sleep(600)
"""
PROGRAMS = {"serve": SERVE, "mcp": MCP, "exit": EXIT, "silent": SILENT, "unhealthy": SILENT, "deaf": SILENT}


class FakeDocker:
    """The test's side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        for name in ("bin", "images", "containers"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        program = self.bin / "docker"
        program.write_text(
            f"#!{sys.executable} -IB\nimport runpy, sys\nsys.argv.insert(1, {str(folder)!r})\n"
            f"runpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')\n",
            encoding="utf-8",
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def behave(self, **options: Any) -> None:
        """run="serve"..., down=True (no engine), hang=SECONDS (of `version`), slow_run=SECONDS (before it is made)."""
        path = self.folder / "behaviour.json"
        path.write_text(json.dumps({**_behaviour(self.folder), **options}), encoding="utf-8")

    @property
    def calls(self) -> list[list[str]]:
        """The argument lists of all calls, in the order of their beginning."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line)["argv"] for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def called(self, *first: str) -> list[list[str]]:
        return [call for call in self.calls if tuple(call[: len(first)]) == first]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text("utf-8")) for path in sorted((self.folder / "containers").glob("*.json"))]

    def add_image(self, tag: str, **config: Any) -> None:
        """An image that needs no building. config: as `docker image inspect` shows it under Config."""
        _image_path(self.folder, tag).write_text(json.dumps({"Config": config}), encoding="utf-8")

    def kill(self, name: str) -> None:
        """What the container runs dies."""
        (found,) = [it for it in self.containers if it["Name"] == name]
        os.killpg(found["pid"], signal.SIGKILL)

    def clear(self) -> None:
        for container in self.containers:
            _end(container["pid"])


def _behaviour(folder: Path) -> dict[str, Any]:
    path = folder / "behaviour.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def _image_path(folder: Path, tag: str) -> Path:
    return folder / "images" / (tag.replace("/", "%").replace(":", "+") + ".json")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] != b"Z"
    except OSError:
        return False


def _end(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


# ---- the program's side: imports and tools of its own above, standard library alone ----


def _options(arguments: list[str], flags: set[str]) -> tuple[dict[str, list[str]], list[str]]:
    """--name value pairs until the first other word; `flags` have no value."""
    found: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("--"):
        name = rest.pop(0)
        found.setdefault(name, []).append("" if name in flags else rest.pop(0))
    return found, rest


class Engine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.behaviour = _behaviour(folder)

    def main(self, arguments: list[str]) -> int:
        with open(self.folder / "calls.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"argv": arguments, "session": os.getsid(0)}) + "\n")
        if self.behaviour.get("down"):
            return self.fail("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?")
        if arguments[:2] == ["image", "inspect"]:
            return self.image_inspect(arguments[2])
        return getattr(self, arguments[0])(arguments[1:])

    def fail(self, words: str, code: int = 1) -> int:
        print(words, file=sys.stderr)
        return code

    def version(self, arguments: list[str]) -> int:
        time.sleep(self.behaviour.get("hang", 0))
        print("29.0.0")
        return 0

    def image_inspect(self, tag: str) -> int:
        path = _image_path(self.folder, tag)
        if not path.exists():
            print("[]")
            return self.fail(f"Error response from daemon: No such image: {tag}")
        print(f"[{path.read_text('utf-8')}]")
        return 0

    def pull(self, arguments: list[str]) -> int:
        _, (tag,) = _options(arguments, {"--quiet"})
        if tag not in self.behaviour.get("registry", []):
            return self.fail(f"Error response from daemon: pull access denied for {tag}, repository does not exist")
        _image_path(self.folder, tag).write_text('{"Config": {"ExposedPorts": {"8931/tcp": {}}}}', encoding="utf-8")
        return 0

    def build(self, arguments: list[str]) -> int:
        options, rest = _options(arguments, set())
        text = sys.stdin.read()
        assert rest == ["-"], rest
        for number, line in enumerate(text.splitlines()):
            print(f"#{number} {line}", file=sys.stderr)
            if line.startswith(("RUN false", "COPY ")):
                return self.fail(f"ERROR: process did not complete successfully: {line}")
        labels = {"distill.read-only": "true"} if 'distill.read-only="true"' in text else None
        image = {"Config": {"ExposedPorts": None, "Labels": labels}}
        _image_path(self.folder, options["--tag"][0]).write_text(json.dumps(image), encoding="utf-8")
        return 0

    def run(self, arguments: list[str]) -> int:
        flags = {"--detach", "--init", "--read-only", "--rm"}
        options, (tag, *command) = _options(arguments, flags)
        if not _image_path(self.folder, tag).exists():
            return self.fail(f"docker: Error response from daemon: No such image: {tag}.", 125)
        time.sleep(self.behaviour.get("slow_run", 0))
        environment = {name: os.environ[name] for name in options.get("--env", [])}
        for path in options.get("--env-file", []):
            for line in Path(path).read_text("utf-8").splitlines():
                variable, _, value = line.partition("=")
                environment[variable] = value
        host, host_port, inner = options["--publish"][0].split(":")
        if not host_port:
            with socket.create_server((host, 0)) as free:
                host_port = str(free.getsockname()[1])
        name = options["--name"][0]
        kind = self.behaviour.get("run", "serve")
        with open(self.folder / "containers" / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAMS[kind], host_port],
                env={"PATH": os.environ["PATH"], **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        container = {
            **{"Name": name, "Id": f"{process.pid:064x}", "pid": process.pid, "kind": kind, "tag": tag},
            **{"Labels": dict(label.split("=", 1) for label in options["--label"]), "Env": environment},
            **{"command": command, "Ports": {f"{inner}/tcp": [{"HostIp": host, "HostPort": host_port}]}},
        }
        if kind == "exit":
            process.wait()
            container["ExitCode"] = process.returncode
        (self.folder / "containers" / f"{name}.json").write_text(json.dumps(container), encoding="utf-8")
        time.sleep(self.behaviour.get("slow_answer", 0))
        print(container["Id"])
        return 0

    def found(self, name: str) -> dict[str, Any] | None:
        path = self.folder / "containers" / f"{name}.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def inspect(self, arguments: list[str]) -> int:
        _, (name,) = _options(arguments, set())
        container = self.found(name)
        if container is None:
            print("[]")
            return self.fail(f"Error response from daemon: No such container: {name}")
        running = _alive(container["pid"])
        state: dict[str, Any] = {"Running": running, "ExitCode": container.get("ExitCode", 0 if running else 137)}
        if container["kind"] in ("unhealthy", "deaf"):
            status = "unhealthy" if container["kind"] == "unhealthy" else "healthy"
            state["Health"] = {"Status": status, "Log": [{"Output": "connect ECONNREFUSED\n"}]}
        print(json.dumps([{"State": state, "NetworkSettings": {"Ports": container["Ports"] if running else {}}}]))
        return 0

    def logs(self, arguments: list[str]) -> int:
        options, (name,) = _options(arguments, set())
        if self.found(name) is None:
            return self.fail(f"Error response from daemon: No such container: {name}")
        lines = (self.folder / "containers" / f"{name}.log").read_text("utf-8").splitlines()
        print("\n".join(lines[-int(options["--tail"][0]) :]))
        return 0

    def ps(self, arguments: list[str]) -> int:
        options, _ = _options(arguments, {"--all"})
        assert options["--filter"] == ["label=distill.run"]
        for path in sorted((self.folder / "containers").glob("*.json")):
            container = json.loads(path.read_text("utf-8"))
            labels = container["Labels"]
            print("\t".join((container["Name"], labels["distill.pid"], labels["distill.host"])))
        return 0

    def rm(self, arguments: list[str]) -> int:
        _, names = _options(arguments, {"--force", "--volumes"})
        if self.behaviour.get("rm_fails"):
            return self.fail("Error response from daemon: driver failed to remove root filesystem")
        missing = 0
        for name in names:
            container = self.found(name)
            if container is None:
                missing = self.fail(f"Error response from daemon: No such container: {name}")
                continue
            _end(container["pid"])
            for ending in (".json", ".log"):
                (self.folder / "containers" / (name + ending)).unlink(missing_ok=True)
            print(name)
        return missing


if __name__ == "__main__":
    sys.exit(Engine(Path(sys.argv[1])).main(sys.argv[2:]))
