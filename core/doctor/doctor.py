"""`doctor`: one of four things: test a teacher, say what a file is, install, or look at what is here."""

from concurrent.futures import ThreadPoolExecutor

from ..commands.doctor import Diagnosis, Doctor, Found
from ..data.run import Run
from ..errors import ROOT, MissingDependency, UsageError
from .installed import distill, extras, python
from .keys import dotenv_is_private, keys
from .machine import devices, disk, memory
from .outside import programs, servers
from .roads import roads


def doctor(options: Doctor, run: Run) -> Diagnosis:
    """Do what the options ask for. Raises UsageError for a teacher that cannot be reached, a file that cannot be read
    and packages that cannot be installed."""
    if options.install:
        return install(options, run)
    if options.data is not None:
        from .data_file import look_at

        return look_at(options.data, run)
    if options.has_teacher:
        return tested(options, run)
    return look_around()


def look_around() -> Diagnosis:
    """What is here. What has to be waited for is asked at the same time."""
    with ThreadPoolExecutor(max_workers=5) as pool:
        asked = [pool.submit(each) for each in (devices, programs, servers, dotenv_is_private)]
        first = [*python(ROOT), *distill(ROOT), *extras(ROOT)]
        machine, outside, answering, private = (each.result() for each in asked)
    parts: list[Found] = [*first, *machine, memory(), *disk(), *keys(), *private, *outside, *answering]
    return Diagnosis(parts=parts, roads=roads(parts))


def install(options: Doctor, run: Run) -> Diagnosis:
    """Install extras into the environment of this Python. Raises UsageError for what cannot be."""
    if not (ROOT / "pyproject.toml").is_file():
        wanted = ",".join(options.install)
        raise UsageError(
            f"this is the installed library, whose packages pip looks after: pip install 'distill-kit[{wanted}]'"
        )
    from .. import installer

    try:
        done = installer.install(
            ROOT, options.install, dry_run=options.dry_run, note=run.progress.note, check=run.stop.check
        )
    except installer.Unable as error:
        raise UsageError(str(error)) from None
    return Diagnosis(status="dry_run" if options.dry_run else "done", installation=done)


def tested(options: Doctor, run: Run) -> Diagnosis:
    """A teacher, as a run would test it. Raises UsageError."""
    from .teacher import local, server, would_ask

    training = options.training
    if training.idle:
        run.progress.note(training.idle)
    if options.dry_run:
        return Diagnosis(status="dry_run", would_ask=would_ask(training))
    try:
        return Diagnosis(teacher=local(training, run) if training.is_local else server(options, training, run))
    except ModuleNotFoundError as missing:
        raise MissingDependency(str(missing.name), "testing a teacher", "train") from None
