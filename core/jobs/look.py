"""`jobs`: the jobs of the current folder as a person sees them."""

import os
import time
from pathlib import Path

from ..commands.jobs import Jobs, JobSeen, JobsSeen
from ..data.progress import clock
from ..data.run import Run
from ..data.secrets import redact
from ..errors import UsageError
from ..show.clean import clean, clean_line
from . import files
from .job import LOG, UNFINISHED, Job
from .store import JobStore

LOOK_S = 0.2
SHOWN = 20_000
"""Bytes of the log before what is followed."""


def look(options: Jobs, run: Run) -> JobsSeen:
    """Do what `action` says. Raises UsageError for a job that is not here."""
    store = JobStore(Path.cwd() / ".distill" / "jobs")
    if options.action == "list":
        jobs = store.list(states=UNFINISHED if options.unfinished else None, limit=options.limit)
        run.out("\n".join(map(line, jobs)) if jobs else "no jobs here")
        then = "python scripts/jobs.py show JOB" if jobs else "any command that takes long, with --background"
        return JobsSeen(jobs=[seen(job) for job in jobs], next=then)
    job = store.get(whole_id(store, options.job))
    if options.action == "log":
        return log(store, job, options.follow, run)
    if options.action == "cancel":
        job = store.cancel(job.id)
        while options.follow and not job.finished and not run.stop.requested:
            job = store.wait(job.id, LOOK_S)
    run.out(clean("\n".join(details(job))))
    return JobsSeen(jobs=[seen(job)], next=following(job))


def log(store: JobStore, job: Job, follow: bool, run: Run) -> JobsSeen:
    """Print the end of the log, and with `follow` what is added to it until the job has ended."""
    if follow:
        place = job.folder / LOG
        at = end_of(place)
        if job.state == "queued" and job.device:
            run.progress.note(f"it {standing(job) or f'waits for {job.device}'}")
        while not run.stop.requested:
            job = store.get(job.id)  # before reading, so that nothing of a finished job is missed
            text, at = lines_after(place, at, ended=job.finished)
            if text:
                run.out(clean(redact(text)).rstrip("\n"))
            if job.finished:
                break
            time.sleep(LOOK_S)
    else:
        run.out(clean(store.log(job.id)).rstrip("\n"))
    status = "interrupted" if run.stop.requested else "done"
    return JobsSeen(status=status, jobs=[seen(job)], log=store.log(job.id), next=following(job))


def end_of(path: Path) -> int:
    """Where the last lines of a file begin."""
    try:
        with files.opened(path) as file:
            start = file.seek(0, os.SEEK_END) - SHOWN
            if start <= 0:
                return 0
            file.seek(start)
            file.readline()
            return file.tell()
    except OSError:
        return 0


def lines_after(path: Path, at: int, *, ended: bool) -> tuple[str, int]:
    """(whole lines after a place in a file, the place after them). ended: the last one even without its end."""
    try:
        with files.opened(path) as file:
            file.seek(at)
            data = file.read()
    except OSError:
        return "", at
    length = len(data) if ended else data.rfind(b"\n") + 1
    return data[:length].decode(errors="replace"), at + length


def whole_id(store: JobStore, beginning: str | None) -> str:
    """The id that begins so; without one, that of the newest job. Raises UsageError for none or several."""
    if beginning is None:
        newest = store.list(limit=1)
        if not newest:
            raise UsageError("no job was started in this folder yet. Start one with --background.")
        return newest[0].id
    found = store.ids(beginning if beginning.startswith("job_") else f"job_{beginning}")
    if len(found) > 1:
        raise UsageError(
            f"{beginning} is the beginning of {len(found)} jobs: {', '.join(found[:3])}. Write more of it."
        )
    if not found:
        raise UsageError(f"no job of this folder begins with {beginning}. python scripts/jobs.py lists them.")
    return found[0]


def line(job: Job) -> str:
    """One job in one line."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created))
    return f"{job.id[:12]}  {when}  {job.command:<21}  {job.state:<10}  {standing(job)}".rstrip()


def standing(job: Job) -> str:
    """How far it is, or how it ended, in a few words."""
    if job.state == "queued":
        return f"waits for {job.device}, {job.ahead} ahead" if job.ahead else ""
    if job.error:
        return clean_line(job.error.partition("\n")[0], 80)
    figures = job.progress
    if not figures:
        return ""
    total = f"/{figures['total']}" if figures.get("total") is not None else ""
    done = figures.get("done"), figures.get("already")
    text = f"{figures.get('what')}: {sum(n for n in done if isinstance(n, int))}{total} {figures.get('unit', '')}"
    if isinstance(left := figures.get("eta_s"), float) and not job.finished:
        text += f", ETA {clock(left)}"
    return clean_line(text)


def details(job: Job) -> list[str]:
    """A job in full."""
    at = {"created": job.created, "started": job.started, "ended": job.ended}
    rows = {
        "job": job.id,
        "command": job.command,
        "state": job.state,
        **{name: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) for name, value in at.items() if value},
        "device": job.device,
        "progress": standing(job) if not job.error else None,
        "error": job.error,
        "folder": str(job.folder),
    }
    lines = [f"{name:<10}{value}" for name, value in rows.items() if value]
    return [*lines, *(["", job.summary] if job.summary else [])]


def following(job: Job) -> str:
    """What one does next."""
    if not job.finished:
        return f"python scripts/jobs.py log {job.id} -f"
    return f"the files that it names; its log is {job.folder / LOG}" if job.result else f"look at {job.folder / LOG}"


def seen(job: Job) -> JobSeen:
    values = {name: getattr(job, name) for name in JobSeen.model_fields if name not in ("job_id", "folder")}
    return JobSeen(job_id=job.id, folder=str(job.folder), **values)
