"""The `docker` program: one call, bounded by time, out of reach of Ctrl-C."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .leash import Leash
from .plain import plain

LAST_LINES = 15
# What the `docker` program itself reads: with `--env NAME` it would take the row's value for its own.
_CLIENT_READS = re.compile(
    r"DOCKER_.*|BUILDKIT_.*|.*_proxy|PATH|HOME|USER|TMPDIR|XDG_.*|SSL_.*|LD_.*|SSH_.*|GO.*", re.I
)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Answer:
    """What the `docker` program said."""

    code: int
    out: bytes
    err: bytes

    @property
    def lines(self) -> str:
        """The last lines of what went wrong, or of all that was said."""
        return last_lines(self.err.strip() or self.out)


class NoAnswer(Exception):
    """`docker` is missing or did not answer in time."""


async def docker(
    leash: Leash, *arguments: str, limit_s: float, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> Answer:
    """Run `docker`, away from Ctrl-C, ended after limit_s. Raises NoAnswer."""
    program = shutil.which("docker")
    if program is None:
        raise NoAnswer("there is no `docker` on the PATH")
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise NoAnswer(f"{program} cannot be run: {error.strerror}") from None
    held = arguments[0] in ("run", "build", "pull")  # what could still make something after our death
    if held:
        leash.hold_process(process.pid)
    try:
        async with asyncio.timeout(limit_s):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        raise NoAnswer(f"docker {arguments[0]} gave no answer within {limit_s:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await finish(process.wait())
        if held:
            leash.release(process.pid)
    return Answer(process.returncode or 0, out, err)


def last_lines(output: bytes) -> str:
    """Fit for a terminal: without colours, other control characters as visible escapes."""
    lines = [plain(line).rstrip() for line in output.decode(errors="replace").splitlines()]
    return "\n".join("  " + line[:500] for line in lines[-LAST_LINES:] if line)


def environment_options(ref: str, env: Mapping[str, str]) -> tuple[list[str], bytes | None, dict[str, str]]:
    """How the values reach the container without a command line: options, standard input, the client's environment."""
    options: list[str] = []
    own: dict[str, str] = {}
    file: list[str] = []
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name) or "\0" in value or _is_broken(value):
            raise UsageError(f"docker_env of {ref}: {name!r} is not a variable that a container can have")
        if not _CLIENT_READS.fullmatch(name):
            options += ["--env", name]
            own[name] = value
        elif "\n" in value or "\r" in value:
            raise UsageError(f"docker_env of {ref}: the value of {name} must not have more than one line")
        else:
            file.append(f"{name}={value}\n")
    if file:
        options += ["--env-file", "/dev/stdin"]
    return options, "".join(file).encode() if file else None, own


def _is_broken(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)  # half a character, as JSON can hold it


def first_object(answer: Answer) -> dict[str, Any]:
    try:
        found = json.loads(answer.out)
    except ValueError:
        raise NoAnswer("docker inspect gave no JSON") from None
    return found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else {}


async def finish(work: Awaitable[Any]) -> None:
    """Await to the end even when cancelled meanwhile; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done():
                break
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
