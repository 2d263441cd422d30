"""The server's process: stdout kept for the wire, secrets kept out of stderr, the workspace as the current folder."""

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, cast

from core.commands.mcp_server import McpServer, Served
from core.data.environment import credential
from core.data.run import Run
from core.data.secrets import RedactingStream
from core.errors import ExitCode

if TYPE_CHECKING:
    from .server import DistillServer


def serve(options: McpServer, run: Run) -> Served:
    """Answer until the client goes away, or the user ends it. Raises UsageError.

    Ctrl-C and SIGTERM end it at once: nothing lives in this process that would have to be saved.
    """
    with stderr_without_secrets():
        with stdout_to_stderr():  # modules may print when they are imported
            server = made(options)
        if options.http:
            from .http import TOKEN_KEY, serve_http

            token = credential(TOKEN_KEY)
            where = (options.host, options.port, token, options.allow_host)
            serve_http(server, *where, stop=run.stop, note=run.progress.note)
        else:
            import anyio

            run.stop.subscribe(lambda: os._exit(ExitCode.INTERRUPTED))
            anyio.run(server.run_stdio_async)
    return Served()


def made(options: McpServer) -> "DistillServer":
    """The server, in its workspace. Raises UsageError for a workspace that is none."""
    from .door import Settings
    from .server import build

    settings = Settings(
        workspace=options.workspace,
        toolsets=frozenset(options.toolsets),  # pyright: ignore[reportArgumentType]  McpServer has looked at them
        read_only=options.read_only,
        max_cost=options.max_cost,
        max_jobs=options.max_jobs,
        allow_urls=tuple(options.allow_url),
        allow_code=options.allow_code,
    )
    server = build(settings)
    os.chdir(server.door.workspace.root)
    return server


@contextmanager
def stdout_to_stderr() -> Generator[None, None, None]:
    """Whatever is printed meanwhile, by Python or by a library below it, comes out on stderr."""
    sys.stdout.flush()
    wire = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(wire, 1)
        os.close(wire)


@contextmanager
def stderr_without_secrets() -> Generator[None, None, None]:
    """Logs and tracebacks go through `redact`. The SDK logs nothing below a warning, then."""
    before = sys.stderr
    sys.stderr = cast(TextIO, RedactingStream(before))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)  # before the SDK, which would add its own and show every request
    try:
        yield
    finally:
        root.removeHandler(handler)
        sys.stderr.flush()
        sys.stderr = before
