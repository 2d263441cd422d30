"""Work that outlives whoever started it: one folder per job, a supervisor over each, a queue for each device."""

from .job import Job, State
from .store import JobStore

__all__ = ["Job", "JobStore", "State"]
