"""Options and result of `jobs`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .base import Command, Option, Result

WHAT, WHICH = "What", "Which jobs"
Action = Literal["list", "show", "log", "cancel"]


class Jobs(Command):
    """Look at the jobs of the current folder, and cancel them.

    Jobs are started with --background of any command that takes long, or by assistants through the MCP server. They go
    on without the terminal or the server that started them. On each GPU, and on the CPU, one job at a time runs a
    model; the others wait (DISTILL_JOBS_PER_DEVICE in the environment of a start allows more).
    """

    work: ClassVar[str] = "..jobs.look:look"
    as_job: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/jobs.py",
        "python scripts/jobs.py show job_5f0c",
        "python scripts/jobs.py log job_5f0c -f",
        "python scripts/jobs.py cancel job_5f0c",
    )

    action: Annotated[Action, Option(WHAT, positional=True)] = "list"
    """list: the jobs here, the newest first.   show: all about one.   log: the end of what it wrote.
    cancel: ask it to end; what is finished is kept."""
    job: Annotated[str | None, Option(WHAT, positional=True)] = Field(default=None, min_length=1)
    """The job, by its id or the beginning of it (default: the newest; cancel wants it named)."""
    follow: Annotated[bool, Option(WHAT, "-f")] = False
    """log: go on until the job has ended.   cancel: wait until it has."""

    unfinished: Annotated[bool, Option(WHICH, "-u")] = False
    """list: only jobs that wait or run."""
    limit: Annotated[int, Option(WHICH, "-n")] = Field(default=20, ge=1, le=10_000)
    """list: at most so many."""

    @model_validator(mode="after")
    def _options_of_the_action(self) -> "Jobs":
        if self.action == "list" and self.job is not None:
            raise ValueError(f"list takes no job; did you mean: show {self.job}")
        if self.action == "cancel" and self.job is None:
            raise ValueError("cancel needs the job: its id or the beginning of it (python scripts/jobs.py lists them)")
        if self.follow and self.action not in ("log", "cancel"):
            raise ValueError(f"--follow is for log and cancel, not for {self.action}")
        return self


class JobSeen(BaseModel):
    """A job as it stood."""

    model_config = ConfigDict(extra="forbid")

    job_id: str
    command: str
    state: str
    created: float
    """Unix seconds."""
    started: float | None
    ended: float | None
    device: str | None
    ahead: int | None
    exit_code: int | None
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: str | None
    folder: str


class JobsSeen(Result):
    """What was looked at."""

    jobs: list[JobSeen]
    log: str | None = None
    """The end of it, with `log`."""
    next: str

    def summary(self) -> str:
        return f"next: {self.next}"
