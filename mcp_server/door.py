"""What every tool, resource and prompt of a server shares: its settings, its workspace, its jobs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from core.jobs import JobStore

from .tool import Toolset
from .workspace import Workspace

TOOLSETS: tuple[Toolset, ...] = get_args(Toolset)
MOST_USD = 20.0
MOST_JOBS = 50


@dataclass(frozen=True)
class Settings:
    """What whoever starts the server decides; no caller of a tool can change it.

    workspace: the one folder that the server reads and writes.   toolsets: which tools are offered ("jobs" always are).
    read_only: offer only tools that change nothing, whatever the toolsets say.   max_cost: most USD of one job.
    max_jobs: most jobs that have not ended.   allow_urls: servers that may be asked besides loopback and the providers.
    allow_code: whether Python files of the workspace may be run because a caller names them.
    """

    workspace: Path
    toolsets: frozenset[Toolset] = frozenset(TOOLSETS)
    read_only: bool = False
    max_cost: float = MOST_USD
    max_jobs: int = MOST_JOBS
    allow_urls: tuple[str, ...] = ()
    allow_code: bool = False


@dataclass(frozen=True)
class Door:
    """What the parts of a server are given. Nothing is read or made on the disk before it is asked for."""

    settings: Settings
    workspace: Workspace = field(init=False)
    jobs: JobStore = field(init=False)

    def __post_init__(self) -> None:
        workspace = Workspace(self.settings.workspace)
        object.__setattr__(self, "workspace", workspace)
        object.__setattr__(self, "jobs", JobStore(workspace.root / ".distill" / "jobs"))
