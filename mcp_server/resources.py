"""What can be read by its address: jobs, logs, reports, plots, records of runs, rollouts, and the options of tools."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
from anyio import to_thread
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.types import (
    Completion,
    CompletionArgument,
    CompletionContext,
    PromptReference,
    Resource,
    ResourceTemplateReference,
)

from core.commands.resolve import suggestion
from core.errors import DistillError, UsageError

from .answers import MOST_BYTES, cut_text, shortened, strings, within
from .door import Door
from .jobs import job_answer
from .marked import UNTRUSTED, safe, washer
from .reading import parsed
from .schemas import options_schema
from .words import COMMAND_OF
from .workspace import Workspace

if TYPE_CHECKING:
    from .server import DistillServer

MOST_FILE_BYTES = 8 << 20
"""Of a file that is read as a whole. A picture goes through as it is; texts are cut to what an answer may have."""
LOG_BYTES = 20_000
MOST_LISTED = 25
"""Of each kind, the newest."""
MOST_COMPLETED = 100
DEPTH, MOST_FOLDERS, MOST_ENTRIES, LONGEST_S = 6, 1000, 2000, 2.0
"""How far and how long the workspace is walked through; what is beyond that is found by its path all the same."""
SKIPPED = {"__pycache__", "node_modules", "site-packages", "venv"}
REPORT, FIGURES, RUN = "report.md", "report.json", "run.json"


@dataclass(frozen=True)
class Kind:
    """What a template leads to. fits: whether a file of this name is one.

    listed: the name of the file by which those of the workspace are listed, each as its folder.
    """

    scheme: str
    title: str
    description: str
    mime_type: str
    read: Callable[[Workspace, str], str | bytes]
    fits: Callable[[str], bool]
    listed: str | None = None

    @property
    def template(self) -> str:
        return f"{self.scheme}://{{+path}}"

    def uri(self, path: str) -> str:
        return f"{self.scheme}://{quote(path)}"


# ---- reading -------------------------------------------------------------------------------------------------------


def whole(workspace: Workspace, path: str) -> bytes:
    """A file. Raises UsageError, also for one that is too large."""
    with workspace.open(path) as file:
        data = file.read(MOST_FILE_BYTES + 1)
    if len(data) > MOST_FILE_BYTES:
        raise UsageError(f"{path} has more than {MOST_FILE_BYTES >> 20} MiB. read_rows shows parts of it.")
    return data


def text_of(workspace: Workspace, path: str) -> str:
    """A text, cut to what an answer may have: before keys are looked for, and after, where no half of one is left."""
    text = cut_text(whole(workspace, path).decode("utf-8-sig", "replace"), 4 * MOST_BYTES)
    return cut_text(workspace.show(safe(text)), MOST_BYTES)


def report(workspace: Workspace, path: str) -> str:
    """report.md of a folder, or any .md; report.json as code within Markdown. Raises UsageError."""
    if not path.endswith((".md", ".json")):
        path = f"{path.rstrip('/')}/{REPORT}"
    text = text_of(workspace, path)
    return f"```json\n{text}\n```" if path.endswith(".json") else text


def plot(workspace: Workspace, path: str) -> bytes:
    """Raises UsageError for what is no PNG."""
    data = whole(workspace, path)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UsageError(f"{path} is no PNG picture.")
    return data


def run_record(workspace: Workspace, path: str) -> str:
    """run.json of a run's folder, or any JSON object. Raises UsageError."""
    return json_text(workspace, path if path.endswith(".json") else f"{path.rstrip('/')}/{RUN}")


def rollout(workspace: Workspace, path: str) -> str:
    """Raises UsageError for what is no rollout."""
    return json_text(workspace, path, "conversation")


def json_text(workspace: Workspace, path: str, needed: str | None = None) -> str:
    """A JSON object, cleaned, and cut where it is longer than an answer may be. Raises UsageError."""
    wash = washer()
    try:
        value = shortened(parsed(whole(workspace, path)), MOST_BYTES, 10_000)
        tidy = strings(value, lambda text: workspace.show(wash(text)))
    except RecursionError:
        raise UsageError(f"{path} is JSON that is nested too deeply.") from None
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is no JSON: {error}.") from None
    if not isinstance(tidy, dict) or (needed and needed not in tidy):
        raise UsageError(f"{path} is no JSON object" + (f" with a {needed}." if needed else "."))
    return orjson.dumps(within(tidy, MOST_BYTES), default=str, option=orjson.OPT_INDENT_2).decode("utf-8")


KINDS = (
    Kind(
        "report",
        "A report",
        "report.md of an evaluation or of a check of data: its folder, or the file.",
        "text/markdown",
        report,
        lambda name: name in (REPORT, FIGURES),
        REPORT,
    ),
    Kind(
        "plot",
        "A plot",
        "A PNG picture of a report or of a run (curves.png).",
        "image/png",
        plot,
        lambda name: name.endswith(".png") and not name.endswith(".dark.png"),
    ),
    Kind(
        "run",
        "The record of a run",
        "run.json of a training or a synthesis: with which options it was begun. Its folder, or the file.",
        "application/json",
        run_record,
        lambda name: name == RUN,
        RUN,
    ),
    Kind(
        "rollout",
        "A rollout",
        "One conversation of a teacher with tools, as run_rollouts writes it.",
        "application/json",
        rollout,
        lambda name: name.endswith(".json"),
    ),
)


# ---- what there is -------------------------------------------------------------------------------------------------


def walk(workspace: Workspace) -> Iterator[tuple[str, float]]:
    """(path, when it was changed) of files in the workspace, folder after folder, the upper ones first."""
    waiting, folders = deque([("", 0)]), 0
    ends = time.monotonic() + LONGEST_S
    while waiting and folders < MOST_FOLDERS and time.monotonic() < ends:
        folder, depth = waiting.popleft()
        folders += 1
        try:
            entries = workspace.entries(folder or ".", MOST_ENTRIES)
        except UsageError:  # it was removed, or may not be read
            continue
        for name, about in entries:
            path = f"{folder}/{name}" if folder else name
            if not S_ISDIR(about.st_mode):
                yield path, about.st_mtime
            elif depth < DEPTH and name not in SKIPPED:
                waiting.append((path, depth + 1))


async def list_resources(door: Door) -> list[Resource]:
    """The newest jobs, reports and records of runs."""
    return await to_thread.run_sync(listed, door)


def listed(door: Door) -> list[Resource]:
    found: list[Resource] = []
    for job in door.jobs.list(limit=MOST_LISTED):
        title = f"{job.command}: {job.state}"
        found.append(Resource(uri=f"job://{job.id}", name=job.id, title=title, mime_type="application/json"))
    files = list(walk(door.workspace))
    for kind in KINDS:
        if kind.listed is None:
            continue
        mine = [(path, changed) for path, changed in files if path.rpartition("/")[2] == kind.listed]
        for path, _ in sorted(mine, key=lambda item: -item[1])[:MOST_LISTED]:
            folder = path.rpartition("/")[0]
            name = folder or path
            found.append(
                Resource(
                    uri=kind.uri(name), name=safe(name), title=f"{kind.title}: {safe(name)}", mime_type=kind.mime_type
                )
            )
    return found


def completed(door: Door, template: str, argument: str, value: str) -> list[str]:
    """What an argument of a template may go on to be."""
    if argument == "job_id":
        return [job.id for job in door.jobs.list(limit=1000) if job.id.startswith(value)]
    if argument == "command":
        return [tool for tool in COMMAND_OF if tool.startswith(value)]
    kind = next((kind for kind in KINDS if kind.template == template), None)
    if kind is None or argument != "path":
        return []
    if kind.scheme == "rollout":  # there may be a hundred thousand: by folders, as a shell completes
        return within_folder(door.workspace, value, kind)
    return [path for path, _ in walk(door.workspace) if kind.fits(path.rpartition("/")[2]) and value in path]


def within_folder(workspace: Workspace, value: str, kind: Kind) -> list[str]:
    folder, slash, beginning = value.rpartition("/")
    try:
        entries = workspace.entries(folder or ".")
    except UsageError:
        return []
    found: list[str] = []
    for name, about in entries:
        is_folder = S_ISDIR(about.st_mode)
        if name.startswith(beginning) and (is_folder or kind.fits(name)):
            found.append(folder + slash + name + "/" * is_folder)
    return found


# ---- the server ----------------------------------------------------------------------------------------------------


def add_resources(server: "DistillServer", door: Door) -> None:
    """The templates, and the completion of their arguments."""

    def told(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except DistillError as error:
            raise ResourceNotFoundError(door.workspace.show(safe(str(error)))) from None

    @server.resource(
        "job://{job_id}",
        name="job",
        title="A job",
        description="State, progress and result of a job, as get_job shows them.",
        mime_type="application/json",
    )
    def job(job_id: str) -> str:
        answer = told(lambda: job_answer(door, door.jobs.get(job_id)))
        return orjson.dumps(answer.structured_content, default=str, option=orjson.OPT_INDENT_2).decode("utf-8")

    @server.resource(
        "job://{job_id}/log",
        name="job_log",
        title="The log of a job",
        description="The end of what a job has printed.",
        mime_type="text/plain",
        meta=UNTRUSTED,
    )
    def log(job_id: str) -> str:
        return door.workspace.show(safe(told(lambda: door.jobs.log(job_id, LOG_BYTES))))

    @server.resource(
        "options://{command}",
        name="options",
        title="The options of a tool",
        description="Every option of a tool with its description, bounds, default and environment keys.",
        mime_type="application/json",
    )
    def options(command: str) -> str:
        if command not in COMMAND_OF:
            near = suggestion(command[:100], COMMAND_OF)
            raise ResourceNotFoundError(
                f"{safe(command[:100])} has no options.{near} There are: {', '.join(COMMAND_OF)}."
            )
        return orjson.dumps(options_schema(command), option=orjson.OPT_INDENT_2).decode("utf-8")

    def add(kind: Kind) -> None:
        @server.resource(
            kind.template,
            name=kind.scheme,
            title=kind.title,
            description=kind.description,
            mime_type=kind.mime_type,
            meta=UNTRUSTED,
        )
        def read(path: str) -> str | bytes:
            return told(partial(kind.read, door.workspace, path))

    for kind in KINDS:
        add(kind)

    @server.completion()
    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion | None:
        if not isinstance(ref, ResourceTemplateReference) or len(argument.value) > 1000:
            return None
        found = await to_thread.run_sync(completed, door, ref.uri, argument.name, argument.value)
        values = [safe(value) for value in found[:MOST_COMPLETED]]
        return Completion(values=values, total=len(found), has_more=len(found) > MOST_COMPLETED)
