"""Options and result of the MCP server."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from .base import Command, Option, Result

WHAT, LIMITS, HTTP = "What is offered", "Limits", "HTTP"
TOOLSETS = ("data", "train", "eval", "jobs")


class McpServer(Command):
    """Offer these commands to assistants as tools (Model Context Protocol), over stdin and stdout or HTTP.

    Long work runs as jobs that outlive the server; scripts/jobs.py shows the same ones. Callers reach one folder, the
    workspace, and no paid work starts without a bound or somebody's yes.
    """

    work: ClassVar[str] = "mcp_server.serve:serve"
    program: ClassVar[str | None] = "python -m mcp_server"
    as_job: ClassVar[bool] = False
    reads_dotenv: ClassVar[bool] = False  # an assistant starts it in every folder, with whoever's .env
    examples: ClassVar[tuple[str, ...]] = (
        "python -m mcp_server",
        "python -m mcp_server --workspace ~/distillation --toolsets data,train --max-cost 5",
        "python -m mcp_server --read-only",
        "python -m mcp_server --http --port 8765",
    )

    workspace: Annotated[Path | None, Option(WHAT, "-w", env="DISTILL_WORKSPACE")] = None
    """The folder that callers may read and write in (default: the current one, or where that is the home folder or the
    bundle itself, the one in which the assistant was started). Its .env is read for keys and for options of commands,
    not for these."""
    toolsets: Annotated[list[str], Option(WHAT, env="DISTILL_TOOLSETS")] = Field(default=list(TOOLSETS), min_length=1)
    """Which tools: data, train, eval; repeat it or separate by commas. Those for jobs are always there."""
    read_only: Annotated[bool, Option(WHAT, env="DISTILL_READ_ONLY")] = False
    """Only tools that change nothing, whatever --toolsets says."""

    max_cost: Annotated[float, Option(LIMITS, env="DISTILL_MAX_COST")] = Field(default=20.0, gt=0, allow_inf_nan=False)
    """Most USD that one job may spend, whoever asks for more."""
    max_jobs: Annotated[int, Option(LIMITS, env="DISTILL_MAX_JOBS")] = Field(default=50, ge=1, le=10_000)
    """Most jobs that wait or run."""
    allow_url: Annotated[list[str], Option(LIMITS, env="DISTILL_ALLOW_URL", names="url")] = Field(
        default_factory=list[str]
    )
    """A server that callers may have asked as a teacher, beside those on this machine and the known providers, up to
    and with /v1; repeat it. It may get the key that a caller names."""
    allow_code: Annotated[bool, Option(LIMITS, env="DISTILL_ALLOW_CODE")] = False
    """Let callers have Python files of the workspace run: tools and rewards of rollouts, tasks of evaluations."""

    http: Annotated[bool, Option(HTTP)] = False
    """Answer over HTTP, at http://HOST:PORT/mcp, and not over stdin and stdout."""
    host: Annotated[str, Option(HTTP, names="host")] = "127.0.0.1"
    """The address to listen on. One that others can reach needs DISTILL_MCP_TOKEN in the environment or .env, which
    callers have to send."""
    port: Annotated[int, Option(HTTP, "-p")] = Field(default=8765, ge=0, le=65_535)
    """Its port; 0 for any that is free."""
    allow_host: Annotated[list[str], Option(HTTP, names="host")] = Field(default_factory=list[str])
    """A further name under which callers may reach it, as name or name:port; repeat it."""

    @field_validator("toolsets", "allow_url", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list):
            return value
        return [word.strip() for part in parts for word in str(part).split(",") if word.strip()]

    @field_validator("toolsets")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in TOOLSETS:
                raise ValueError(f'"{name}" is no toolset. There are: {", ".join(TOOLSETS)}')
        return value

    @field_validator("allow_url")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        from .teacher import web_address  # a heavy module, for a server that clients wait for

        return [web_address(url) for url in value]

    @model_validator(mode="after")
    def _http_options(self) -> "McpServer":
        if not self.http and (given := self.model_fields_set & {"host", "port", "allow_host"}):
            raise ValueError(f"--{min(given).replace('_', '-')} is for --http")
        return self


class Served(Result):
    """The server has ended."""

    status: Literal["done"] = "done"  # pyright: ignore[reportIncompatibleVariableOverride]

    def summary(self) -> str:
        return "The server has ended; jobs go on (scripts/jobs.py list)."
