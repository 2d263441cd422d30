"""The job tools, and the one form in which every answer shows a job."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio
from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.commands import COMMANDS, Command, load
from core.commands.resolve import suggestion
from core.errors import UsageError
from core.jobs import Job, State

from .answers import answer
from .door import Door
from .schemas import input_schema, job_schema, jobs_schema
from .texts import TEXTS
from .tool import Tool
from .words import COMMAND_OF, TOOL_OF, summed_up, told

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context
    from mcp.types import CallToolResult

LONGEST_WAIT_S = 45
"""Below the 60 seconds after which the impatient clients give up."""
LOOK_EVERY_S = 0.1, 0.5
"""While waiting: at first, and at last."""
LINE_BYTES = 300
"""Of the log, for each line that is asked for."""

FILES = (
    "output",
    "output_dir",
    "val_output",
    "prompts_moved_to",
    "kept_as",
    "report",
    "fixed",
    "curves",
    "gguf",
    "plot",
)
"""Fields of results that name files or folders which the command wrote."""

AFTER = {
    "generate_teacher_data": 'read_rows(path="{output}") shows rows, check_data(data="{output}") looks for faults; '
    'then train_sft(data="{output}")',
    "list_teachers": "generate_teacher_data(model=..., input=..., dry_run=true) with one that the user chose",
    "run_rollouts": 'convert_rollouts(dir="{output}") makes rows to train on',
    "convert_rollouts": 'check_data(data="{output}") looks for faults; then train_sft(data="{output}")',
    "generate_synthetic": 'check_data(data="{output_dir}/train.jsonl") looks for faults; then '
    'train_sft(data="{output_dir}/train.jsonl")',
    "check_data": 'read_rows(path="{report}/report.md") shows the report; then train_sft with the data, or what passed',
    "make_student": 'train_gold(student="{output}", ...) or train_sft(model="{output}", ...) trains it',
    "train_sft": 'evaluate(student="{output}/best") says whether it got better',
    "train_gold": 'evaluate(student="{output}/best") says whether it got better',
    "evaluate": 'read_rows(path="{output}/report.md") shows the report',
    "compare_tokenizers": "train_gold distils where much is exact; make_student(tokenizer=...) gives a student the "
    "teacher's tokenizer where little is",
    "check_setup": "train_gold or generate_teacher_data with a teacher that works",
}
"""What to call when a tool's work is done."""
OWN_FOLDER = (
    'read_rows(path="{output}") shows them; where no prompt is held back, convert_rollouts(dir="{output}", '
    'output="{output}.jsonl") makes rows to train on'
)
"""After rollouts in a folder of another name: perhaps an evaluation, whose rows do not belong into train.jsonl."""


# ---- the tools -----------------------------------------------------------------------------------------------------


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)


A = TypeVar("A", bound=BaseModel)


class ListJobs(_Arguments):
    """state: or "unfinished"."""

    state: State | Literal["unfinished"] | None = None
    tool: str | None = None
    limit: int = Field(default=20, ge=1, le=100)
    offset: int = Field(default=0, ge=0)


class GetJob(_Arguments):
    job_id: str
    wait_s: float = Field(default=0, ge=0, le=LONGEST_WAIT_S)
    log_lines: int = Field(default=20, ge=0, le=200)


class CancelJob(_Arguments):
    job_id: str


def job_tools(door: Door) -> list[Tool]:
    return [
        job_tool("list_jobs", partial(list_jobs, door), output_schema=jobs_schema),
        job_tool("get_job", partial(get_job, door)),
        job_tool("cancel_job", partial(cancel_job, door)),
    ]


def job_tool(name: str, answered: Any, output_schema: Any = job_schema) -> Tool:
    """A tool with the texts and the schema that are kept for its name."""
    text = TEXTS[name]
    return Tool(
        name=name,
        title=text.title,
        description=text.description,
        toolset=text.toolset,
        input_schema=partial(input_schema, name),
        output_schema=output_schema,
        answer=answered,
        read_only=text.read_only,
        destructive=text.destructive,
        idempotent=text.idempotent,
        open_world=text.open_world,
    )


async def list_jobs(door: Door, arguments: Mapping[str, Any], context: "Context[Any, Any]") -> "CallToolResult":
    """Jobs, newest first, a line each."""
    asked = checked(ListJobs, arguments)
    if asked.tool is not None and asked.tool not in COMMAND_OF:
        raise UsageError(f'tool: "{asked.tool}" starts no jobs.{suggestion(asked.tool, COMMAND_OF)}')
    unfinished = ("queued", "running", "cancelling")
    states = None if asked.state is None else unfinished if asked.state == "unfinished" else (asked.state,)
    command = None if asked.tool is None else COMMAND_OF[asked.tool]

    def read() -> list[Job]:
        return door.jobs.list(states=states, command=command, limit=asked.limit + 1, offset=asked.offset)

    found = await to_thread.run_sync(read)
    jobs, more = found[: asked.limit], len(found) > asked.limit
    rows = [{key: value for key, value in row(job).items() if value is not None} for job in jobs]
    lines = [headline(job) for job in jobs] or ["no such jobs" if asked.state or asked.tool else "no jobs yet"]
    if more:
        lines.append(f"there are more: list_jobs(offset={asked.offset + asked.limit})")
    return answer({"jobs": rows, "more": more}, "\n".join(lines), door.workspace.show)


async def get_job(door: Door, arguments: Mapping[str, Any], context: "Context[Any, Any]") -> "CallToolResult":
    """One job; with wait_s, as soon as it has ended or that time is over."""
    asked = checked(GetJob, arguments)
    job = await to_thread.run_sync(door.jobs.get, asked.job_id)
    if asked.wait_s:
        job = await wait_for(door, job, asked.wait_s, context)
    log = await to_thread.run_sync(tail, door, job.id, asked.log_lines) if asked.log_lines else None
    return job_answer(door, job, log_tail=log)


async def cancel_job(door: Door, arguments: Mapping[str, Any], context: "Context[Any, Any]") -> "CallToolResult":
    """Asks a job to end; what it has finished is kept."""
    asked = checked(CancelJob, arguments)
    return job_answer(door, await to_thread.run_sync(door.jobs.cancel, asked.job_id))


def checked(model: type[A], arguments: Mapping[str, Any]) -> A:
    """The arguments of a job tool. Raises UsageError that names the field and what it may be."""
    try:
        return model.model_validate(dict(arguments))
    except ValidationError as error:
        raise UsageError("\n".join(mistake(problem, model.model_fields) for problem in error.errors())) from None


def mistake(problem: Any, fields: Mapping[str, Any]) -> str:
    """One mistake in the arguments, as a line."""
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{name} is required."
    if problem["type"] == "extra_forbidden":
        return f'there is no argument "{name}".{suggestion(name, fields)} There are: {", ".join(fields)}.'
    return f"{name}: {problem['msg']}"


def tail(door: Door, job_id: str, lines: int) -> str:
    """The last lines of a job's log."""
    text = door.jobs.log(job_id, lines * LINE_BYTES)
    return "\n".join(text.splitlines()[-lines:])


# ---- waiting -------------------------------------------------------------------------------------------------------


async def wait_for(door: Door, job: Job, seconds: float, context: "Context[Any, Any]") -> Job:
    """The job when it has ended, or as it stands after so many seconds.

    Meanwhile the client is told how far it is, where it asked for that. A client that goes away ends the waiting, not
    the job.
    """
    ends, pause = time.monotonic() + seconds, LOOK_EVERY_S[0]
    steps = Steps()
    while not job.finished and (left := ends - time.monotonic()) > 0:
        if (step := steps.of(job.progress)) is not None:
            await context.report_progress(*step)
        await anyio.sleep(min(pause, left))
        pause = min(1.5 * pause, LOOK_EVERY_S[1])
        job = await to_thread.run_sync(door.jobs.get, job.id)
    return job


class Steps:
    """Progress of a job with several pieces of work as one that only grows, which the specification asks for."""

    def __init__(self) -> None:
        self._what: str | None = None
        self._before = self._last = 0.0

    def of(self, progress: Mapping[str, Any] | None) -> tuple[float, float | None, str] | None:
        """(progress, total, message), None where nothing has grown."""
        if not progress:
            return None
        if progress.get("what") != self._what:
            self._what, self._before = progress.get("what"), self._last
        done = self._before + sum(float(progress.get(key) or 0) for key in ("already", "done", "failed"))
        if done <= self._last:
            return None
        self._last = done
        total = progress.get("total")
        return done, None if total is None else max(done, self._before + float(total)), progress_line(progress)


# ---- the form of a job ---------------------------------------------------------------------------------------------


def job_answer(door: Door, job: Job, *, log_tail: str | None = None, is_error: bool = False) -> "CallToolResult":
    """What every tool that starts, follows or ends a job answers."""
    command = load(job.command) if job.command in COMMANDS else Command  # "": its files were damaged
    error = None if job.error is None or job.result is not None else told(job.error, command)
    then = next_call(job)
    value: dict[str, Any] = {
        **row(job),
        "result": job.result,
        "error": error,
        "files": files_of(door, job),
        "next": then,
    }
    lines = [headline(job)]
    if job.summary:
        lines.append(summed_up(job.summary, command))
    if error:
        lines.append(error)
    if log_tail is not None:
        value["log_tail"] = log_tail
    if log_tail and job.result is None:
        lines += ["log:", log_tail]
    lines.append(f"next: {then}")
    return answer(value, "\n".join(lines), door.workspace.show, is_error=is_error)


def row(job: Job) -> dict[str, Any]:
    """The fields that a list of jobs has, too."""
    return {
        "job_id": job.id,
        "tool": TOOL_OF.get(job.command, job.command),
        "state": job.state,
        "created": job.created,
        "seconds": None if job.started is None else round((job.ended or time.time()) - job.started, 1),
        "ahead": job.ahead if job.state == "queued" else None,
        "progress": None if job.finished else job.progress,
    }


def headline(job: Job) -> str:
    """A job in one line."""
    parts = [f"{job.id} {TOOL_OF.get(job.command, job.command)}: {job.state}"]
    if job.state == "queued" and job.ahead:
        parts.append(f"{job.ahead} before it on {job.device}")
    if not job.finished and job.progress:
        parts.append(progress_line(job.progress))
    return ", ".join(parts)


def progress_line(progress: Mapping[str, Any]) -> str:
    """'step 12/200 steps, 1.3 steps/s, ETA 2:20'"""
    from core.data.progress import clock

    done, total = (progress.get("already") or 0) + (progress.get("done") or 0), progress.get("total")
    unit = str(progress.get("unit") or "")
    parts = [f"{progress.get('what') or 'work'} {done:,}" + (f"/{total:,}" if total else "") + f" {unit}".rstrip()]
    if progress.get("failed"):
        parts.append(f"{progress['failed']:,} failed")
    if progress.get("rate"):
        parts.append(f"{progress['rate']:.2g} {unit}/s")
    if progress.get("spend_usd") is not None:
        parts.append(f"{progress['spend_usd']:.4f} USD")
    metrics = {name: value for name, value in (progress.get("metrics") or {}).items() if value is not None}  # NaN
    parts += [f"{name} {value:.4g}" for name, value in list(metrics.items())[:4]]
    if progress.get("eta_s") is not None:
        parts.append(f"ETA {clock(progress['eta_s'])}")
    return ", ".join(parts)


def files_of(door: Door, job: Job) -> list[str]:
    """What the job wrote and is there now, by its name in the workspace."""
    result = job.result or {}
    named = [result[key] for key in FILES if result.get(key)]
    if isinstance(result.get("files"), list):  # in the output_dir; convert_rollouts counts what it read
        named += [Path(str(result.get("output_dir", ""))) / str(name) for name in result["files"]]
    found: list[str] = []
    for path in (item for entry in named for item in (entry if isinstance(entry, list) else [entry])):
        try:
            real = door.workspace.inside(str(path))
        except UsageError:  # not ours to name
            continue
        if real.exists():
            found.append(door.workspace.name(real))
    return list(dict.fromkeys(found))


def next_call(job: Job) -> str:
    """What a caller does now, as a call where there is one."""
    tool = TOOL_OF.get(job.command, job.command)
    result = job.result or {}
    if not job.finished:
        return f'get_job(job_id="{job.id}", wait_s={LONGEST_WAIT_S}) says how far it is; cancel_job ends it'
    if result.get("findings") is not None:  # of check
        return f"mend what it names, then {tool} with dry_run" if job.state == "failed" else f"{tool} with dry_run"
    if job.state == "failed" and result:
        return f"{tool} again, once what the result says has changed"
    if job.state == "failed":
        return f"mend what the error says, then call {tool} again" if job.error else f'get_job(job_id="{job.id}")'
    if job.state in ("lost", "cancelled", "stopped"):
        resumed = " and resume=true" if tool in ("train_sft", "train_gold") else ""
        return f"what was finished is kept; {tool} with the same arguments{resumed} goes on"
    if result.get("status") == "dry_run":
        return f"{tool} with the same arguments and dry_run=false"
    asks = tool in ("generate_teacher_data", "run_rollouts", "generate_synthetic")
    if asks and result.get("status") == "some_failed":
        return f"{tool} with the same arguments asks again for what failed"
    own = tool == "run_rollouts" and Path(str(result.get("output", "rollouts"))).name != "rollouts"
    try:
        return (OWN_FOLDER if own else AFTER[tool]).format_map({key: value for key, value in result.items() if value})
    except KeyError:  # a result that names no output: nothing was written
        return "list_jobs"
