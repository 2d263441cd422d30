"""Containers for rows that name a Docker image: made once or pulled, published on loopback, removed whatever happens.

`Containers` speaks to the engine through the `docker` program alone. Every container has a name before it exists, and
that name is on the leash, so that not even `kill -9` between two lines leaves one behind.
"""

import asyncio
import contextlib
import os
import re
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.text import one_line
from ..errors import UsageError
from .docker_client import LAST_LINES, NoAnswer, docker, environment_options, finish, first_object, last_lines
from .docker_images import Image, image_of, local_source
from .leash import Leash, process_start
from .protocol import ToolsetGone

WAYS_ON = "Use --browser, or start a server yourself and pass --no-docker --mcp-url localhost:8931."

ASK_S = 30.0
"""For questions to the engine, and for removals."""
RUN_S = 120.0
PULL_S = BUILD_S = 1800.0
HEALTHY_S = 90.0
POLL_S = 0.2

# No rights, no more memory or processes than a browser needs. A page that breaks out of it is in a box.
LIMITS = (
    *("--init", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--shm-size", "1g", "--memory", "2g", "--pids-limit", "512"),
)
READ_ONLY = ("--read-only", "--tmpfs", "/tmp:rw,nosuid,nodev,mode=1777,size=512m")


@dataclass(frozen=True)
class Container:
    """A running container.

    ref: as its row names the image.   port: on this machine, published on 127.0.0.1.   env: what it was given.
    """

    name: str
    ref: str
    port: int
    inner_port: int
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @property
    def address(self) -> str:
        """host:port, as `--mcp-url` takes it."""
        return f"localhost:{self.port}"


class Containers:
    """The containers of one run.

    project: folder of the Dockerfiles.   run_label: on every container, to tell runs apart.   note: takes one line.
    """

    def __init__(self, project: Path, *, run_label: str, leash: Leash, note: Callable[[str], None]) -> None:
        self._project = project
        self._run_label = run_label
        self._leash = leash
        self._note = note
        self._images: dict[str, asyncio.Task[Image]] = {}
        self._names: set[str] = set()
        self._shared: dict[Any, Container] = {}
        self._failed: dict[Any, list[str]] = {}
        self._locks: dict[Any, asyncio.Lock] = {}

    async def check(self) -> str:
        """The engine's version. Raises UsageError, with the ways on, where none answers."""
        try:
            answer = await docker(self._leash, "version", "--format", "{{.Server.Version}}", limit_s=ASK_S / 2)
        except NoAnswer as error:
            raise UsageError(f"no Docker engine answers ({error}). {WAYS_ON}") from None
        if answer.code != 0:
            said = " ".join(answer.lines.split()) or f"exit code {answer.code}"
            raise UsageError(f"no Docker engine answers ({said[:300].rstrip('.?')}). {WAYS_ON}")
        return answer.out.decode(errors="replace").strip()

    async def sweep(self) -> int:
        """Remove containers of runs that have died on this machine. Returns how many."""
        form = '{{.Names}}\t{{.Label "distill.pid"}}\t{{.Label "distill.host"}}'
        try:
            answer = await docker(
                self._leash, "ps", "--all", "--filter", "label=distill.run", "--format", form, limit_s=ASK_S
            )
        except NoAnswer:
            return 0
        left: list[str] = []
        for line in answer.out.decode(errors="replace").splitlines():
            name, owner, host = [*line.split("\t"), "", ""][:3]
            pid, _, start = owner.partition(":")
            # Only this machine's process table can tell; an engine may serve several machines.
            if host == _this_host() and pid.isdigit() and process_start(int(pid)) != start:
                left.append(name)
        if left:
            self._note(f"docker: removing {len(left)} container(s) that an earlier run left behind")
            await self._remove(left)
        return len(left)

    async def image(self, ref: str) -> Image:
        """The image of a row's `docker`, built or pulled if needed, once a run. Raises UsageError."""
        if ref not in self._images:
            self._images[ref] = asyncio.ensure_future(self._made(ref))
        return await asyncio.shield(self._images[ref])

    async def start(self, ref: str, env: Mapping[str, str] | None = None, port: int | None = None) -> Container:
        """Run a container and publish `port` of it on a free port of 127.0.0.1.

        port: inside; None for the one that the image exposes.   env: its values never stand in a command line.
        Raises UsageError (image, port, env), ToolsetGone (it does not run).
        """
        env = dict(env or {})
        options, file, own = environment_options(ref, env)
        image = await self.image(ref)
        inner = port or image.port()
        name = f"distill-{re.sub('[^A-Za-z0-9_.-]', '-', self._run_label)[:40]}-{secrets.token_hex(4)}"
        command = ["run", "--detach", "--name", name, "--pull", "never", "--publish", f"127.0.0.1::{inner}"]
        for label in (f"run={self._run_label}", f"pid={os.getpid()}:{process_start(os.getpid())}"):
            command += ["--label", f"distill.{label}"]
        command += [
            "--label",
            f"distill.host={_this_host()}",
            *LIMITS,
            *(READ_ONLY if image.read_only else ()),
            *options,
        ]
        if image.start_script:
            command += ["--entrypoint", "/start.sh", image.tag, "sleep", "infinity"]
        else:
            command += [image.tag]
        self._names.add(name)
        self._leash.hold_container(name)
        try:
            answer = await docker(self._leash, *command, limit_s=RUN_S, stdin=file, env=own)
            if answer.code != 0:
                raise ToolsetGone(f"docker run of {ref} failed:\n{_without(env, answer.lines)}")
            state = await self._inspect(name)
            bindings = ((state.get("NetworkSettings") or {}).get("Ports") or {}).get(f"{inner}/tcp")
            if not bindings:
                words = _without(env, await self._last_words(name))
                raise ToolsetGone(f"the container of {ref} {_ended(state)}; its last lines:\n{words}")
            return Container(name, ref, int(bindings[0]["HostPort"]), inner, env)
        except NoAnswer as error:
            await finish(self._remove([name]))
            raise ToolsetGone(f"{ref}: {error}") from None
        except BaseException:
            await finish(self._remove([name]))
            raise

    async def wait_healthy(self, container: Container, timeout_s: float = HEALTHY_S) -> None:
        """Until its server answers on the published port. Raises ToolsetGone with the container's last lines."""
        # The image's own health check counts against it only. It looks from the inside, every ten seconds or so: it
        # would be late, and it cannot see a server that listens on the container's loopback alone.
        deadline = time.monotonic() + timeout_s
        health = ""
        while True:
            if await answers_http(container.port):
                return
            try:
                state = await self._inspect(container.name)
            except NoAnswer as error:
                raise ToolsetGone(f"{container.ref}: {error}") from None
            health = _health(state)
            if not _running(state):
                problem = _ended(state)
            elif health == "unhealthy":
                problem = f"is unhealthy ({_health_words(state)})"
            elif time.monotonic() >= deadline:
                problem = f"did not answer on port {container.inner_port} within {timeout_s:.0f} s"
                if health == "healthy":
                    problem += ", though it is healthy inside: does its server listen on 0.0.0.0?"
                elif os.environ.get("DOCKER_HOST", "").startswith(("tcp:", "ssh:")):
                    problem += " (DOCKER_HOST names another machine; its loopback cannot be reached from here)"
            else:
                await asyncio.sleep(POLL_S)
                continue
            raise ToolsetGone(
                f"the container of {container.ref} {problem}; its last lines:\n{await self.logs(container)}"
            )

    async def shared(
        self, ref: str, env: Mapping[str, str] | None = None, port: int | None = None, timeout_s: float = HEALTHY_S
    ) -> Container:
        """The one healthy container that rollouts with equal image, environment and port have in common.

        One that has died is replaced. After two failures in a row nothing more is tried. Raises as `start` does.
        """
        key = (ref, tuple(sorted((env or {}).items())), port)
        async with self._locks.setdefault(key, asyncio.Lock()):
            container = self._shared.get(key)
            if container is not None:
                if await answers_http(container.port) or await self._alive(container):
                    return container
                self._note(f"docker: the container of {ref} has died; starting another")
                del self._shared[key]
                await self.remove(container)
            failures = self._failed.setdefault(key, [])
            if len(failures) >= 2:
                raise ToolsetGone(failures[-1])
            try:
                container = await self._healthy(ref, env, port, timeout_s)
            except ToolsetGone as error:
                failures.append(str(error))
                raise
            failures.clear()
            self._shared[key] = container
            return container

    @asynccontextmanager
    async def own(
        self, ref: str, env: Mapping[str, str] | None = None, port: int | None = None, timeout_s: float = HEALTHY_S
    ) -> AsyncGenerator[Container, None]:
        """A healthy container for one rollout; removed when the block is left. Raises as `start` does."""
        container = await self._healthy(ref, env, port, timeout_s)
        try:
            yield container
        finally:
            await finish(self.remove(container))

    async def logs(self, container: Container) -> str:
        """What a container, living or dead, said last, without the values of its environment. Never raises."""
        return _without(container.env, await self._last_words(container.name))

    async def remove(self, container: Container) -> None:
        """End and remove a container, and its volumes without a name."""
        await self._remove([container.name])

    async def aclose(self) -> None:
        """Remove every container of this run that is left."""
        for task in self._images.values():
            task.cancel()
        await asyncio.gather(*self._images.values(), return_exceptions=True)
        self._shared.clear()
        await finish(self._remove(list(self._names)))

    async def _healthy(self, ref: str, env: Mapping[str, str] | None, port: int | None, timeout_s: float) -> Container:
        container = await self.start(ref, env, port)
        try:
            await self.wait_healthy(container, timeout_s)
        except BaseException:
            await finish(self.remove(container))
            raise
        return container

    async def _made(self, ref: str) -> Image:
        source = local_source(ref, self._project)
        try:
            if source is None:
                tag = ref
                if (config := await self._image_config(tag)) is None:
                    self._note(f"docker: pulling {ref}")
                    await self._make(ref, "pull", "--quiet", tag, limit_s=PULL_S)
                    config = await self._image_config(tag)
            else:
                tag = source.tag
                if source.shipped:
                    self._note(f"docker: no {source.path.name} in {self._project}; using the one of distill")
                if (config := await self._image_config(tag)) is None:
                    self._note(f"docker: building {ref} from {source.path} (this can take some minutes)")
                    # From standard input there is no build context: none is needed, and nothing of the project leaks.
                    await self._make(ref, "build", "--tag", tag, "-", limit_s=BUILD_S, stdin=source.text.encode())
                    config = await self._image_config(tag)
        except NoAnswer as error:
            raise UsageError(f"{ref}: {error}") from None
        if config is None:
            raise UsageError(f"{ref}: the engine does not know the image {tag} that it has just made")
        return image_of(ref, tag, source, config)

    async def _make(self, ref: str, *command: str, limit_s: float, stdin: bytes | None = None) -> None:
        answer = await docker(self._leash, *command, limit_s=limit_s, stdin=stdin)
        if answer.code != 0:
            hint = ""
            if stdin is not None and re.search(rb"(?im)^\s*(copy|add)\s(?!.*--from)", stdin):
                hint = "\nIt is built from its text alone, as sandboxes do: COPY and ADD find no files of yours."
            raise UsageError(f"{ref}: docker {command[0]} failed; its last lines:\n{answer.lines}{hint}")

    async def _image_config(self, tag: str) -> dict[str, Any] | None:
        answer = await docker(self._leash, "image", "inspect", tag, limit_s=ASK_S)
        return (first_object(answer).get("Config") or {}) if answer.code == 0 else None

    async def _inspect(self, name: str) -> dict[str, Any]:
        """The container's state; {} when there is no such container. Raises NoAnswer."""
        answer = await docker(self._leash, "inspect", "--type", "container", name, limit_s=ASK_S)
        if answer.code != 0 and b"no such" not in answer.err.lower():
            raise NoAnswer(f"docker inspect failed: {answer.lines.strip()}")
        return first_object(answer) if answer.code == 0 else {}

    async def _alive(self, container: Container) -> bool:
        try:
            state = await self._inspect(container.name)
        except NoAnswer:
            return True  # the engine is busy, which says nothing about the container
        return _running(state) and _health(state) != "unhealthy"

    async def _last_words(self, name: str) -> str:
        try:
            answer = await docker(self._leash, "logs", "--tail", str(LAST_LINES), name, limit_s=ASK_S)
        except NoAnswer as error:
            return f"({error})"
        return last_lines(answer.out + answer.err) or "(it said nothing)"

    async def _remove(self, names: list[str]) -> None:
        if not names:
            return
        try:
            answer = await docker(self._leash, "rm", "--force", "--volumes", *names, limit_s=ASK_S)
            problem = "" if answer.code == 0 else last_lines(answer.err)
        except NoAnswer as error:
            problem = str(error)
        harmless = ("no such container", "already in progress")
        if not all(any(words in line.lower() for words in harmless) for line in problem.splitlines()):
            # They stay on the leash, which tries once more at the end.
            self._note(f"docker: could not remove {', '.join(names)}: {problem}")
            return
        for name in names:
            self._names.discard(name)
            self._leash.release(name)


async def answers_http(port: int, limit_s: float = 3.0) -> bool:
    """Whether a server on 127.0.0.1:port answers HTTP; 4xx is an answer. Opens no session with it."""
    # A bare connection proves nothing: the engine's own proxy accepts before the server inside listens.
    ask = f"GET /mcp HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: application/json, text/event-stream\r\n"
    try:
        async with asyncio.timeout(limit_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"{ask}Connection: close\r\n\r\n".encode())
                first = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, ValueError):
        return False
    return re.match(rb"HTTP/1\.[01] [234]", first) is not None


def _without(env: Mapping[str, str], text: str) -> str:
    """Text without the environment's values, which may be secrets. Short ones are words, not secrets."""
    for value in sorted(env.values(), key=len, reverse=True):
        for line in value.splitlines():
            if len(line.strip()) >= 6:
                text = text.replace(line.strip(), "***")
    return text


def _running(state: dict[str, Any]) -> bool:
    return bool((state.get("State") or {}).get("Running"))


def _health(state: dict[str, Any]) -> str:
    return ((state.get("State") or {}).get("Health") or {}).get("Status") or ""


def _health_words(state: dict[str, Any]) -> str:
    log = ((state.get("State") or {}).get("Health") or {}).get("Log") or []
    said = one_line(str(log[-1].get("Output") or ""), 200) if log else ""
    return said or "its health check fails"


def _ended(state: dict[str, Any]) -> str:
    if not state:
        return "is gone"
    about = state.get("State") or {}
    killed = ", out of memory" if about.get("OOMKilled") else ""
    return f"ended with exit code {about.get('ExitCode', '?')}{killed}"


def _this_host() -> str:
    """Where our pids mean something: this machine, this pid namespace, since this boot."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
    return ":".join(parts)
