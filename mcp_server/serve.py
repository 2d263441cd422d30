"""The server's process: stdout kept for the wire, secrets kept out of stderr, the workspace as the current folder."""

import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from core.bootstrap import Unable
from core.commands.mcp_server import McpServer, Served
from core.data.environment import credential, dotenv
from core.data.run import Run
from core.data.secrets import RedactingStream
from core.data.text import one_line, path_text
from core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from .place import Place
    from .server import DistillServer


def serve(options: McpServer, run: Run) -> Served:
    """Answer until the client goes away, or the user ends it. Raises UsageError.

    Ctrl-C and SIGTERM end it at once: nothing lives in this process that would have to be saved.
    """
    with stderr_without_secrets():
        for key in unread():
            run.progress.note(f"{key} in .env is not used: a folder does not set up the server. Export it.")
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
    from .place import choose
    from .server import build
    from .texts import INSTRUCTIONS

    name_one = "Name one with --workspace or DISTILL_WORKSPACE."
    try:
        place = choose(options.workspace)
    except OSError as error:
        raise UsageError(
            f"no folder to work in: {error.filename} cannot be made ({error.strerror}). {name_one}"
        ) from None
    except Unable:
        raise UsageError(f"no folder to work in: no project, and no home folder (HOME). {name_one}") from None
    settings = Settings(
        workspace=place.folder,
        toolsets=frozenset(options.toolsets),  # pyright: ignore[reportArgumentType]  McpServer has looked at them
        read_only=options.read_only,
        max_cost=options.max_cost,
        max_jobs=options.max_jobs,
        allow_urls=tuple(options.allow_url),
        allow_code=options.allow_code,
    )
    told = INSTRUCTIONS if options.http else f"{INSTRUCTIONS}\n\n{place_text(place)}"
    server = build(settings, instructions=told)
    os.chdir(server.door.workspace.root)
    return server


def unread() -> list[str]:
    """The server's own settings that stand in `.env` of the current folder."""
    try:
        written = dotenv()
    except UsageError:  # said by whatever wants a key
        return []
    return [key for name in McpServer.model_fields for key in McpServer.option(name).env_keys if written.get(key)]


def place_text(place: "Place") -> str:
    """What the assistant is told of the workspace: only whoever started the server on this machine is."""
    folder = shown_path(place.folder.resolve())
    if not place.is_ours:
        return f"The workspace is {folder} ({place.why})."
    return (
        f"The workspace is {folder}, because {place.why}: files to work on have to be put there. Where the user wants "
        "another folder, DISTILL_WORKSPACE or --workspace in the client's configuration of this server names it."
    )


def shown_path(path: Path) -> str:
    """A path with ~ for the user's home, on one line."""
    home = Path(os.path.expanduser("~")).resolve()
    below = path.is_relative_to(home) and home != Path(home.anchor)
    return one_line(path_text(Path("~") / path.relative_to(home) if below else path), 400)


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
