"""`evaluate`: the models answer the same items, one model after another; what differs is measured, drawn, written down.

options -> models, tasks, held-out rows -> Answered (models x tasks) -> Report -> reports/NAME/
"""

import datetime
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..commands.evaluate import Evaluate, Evaluated, EvaluationPlan
from ..data.jsonlines import cannot_write
from ..data.run import Run
from ..data.tracking import check_tracker
from ..errors import InputError, MissingDependency, UsageError
from .held_out import TASK as HELD_OUT
from .held_out import VERSION as HELD_OUT_VERSION
from .held_out import HeldOut, answer_held_out, choose, read_held_out
from .models import Named, computation, prompting_notes, resolve_models
from .report import write_report
from .results import Answered, Report, Sample, TaskInfo
from .suites import selected
from .table import terminal

if TYPE_CHECKING:
    from .cached_lm import CachedLM
    from .harness import LoadedTask

NEEDED = ("lm_eval", "torch", "transformers", "matplotlib")
PARTS_OF_A_RUN = ("best", "final")


def evaluate(options: Evaluate, run: Run) -> EvaluationPlan | Evaluated:
    """Raises UsageError before a model is loaded for what can be known before; MissingDependency; KeyboardInterrupt
    when the user asks to stop, with all answers kept."""
    started = time.monotonic()
    folder = report_folder(options)
    if options.compare:
        return side_by_side(options, folder, started)
    check_installed()
    check_tracker(options.track)
    work = prepare(options, run)
    with ExitStack() as stack:
        from .cached_lm import open_cached

        asked = {each.name: stack.enter_context(open_cached(each, options, run)) for each in work.models}
        if options.dry_run:
            return plan(work, asked, folder, options)
        make_folder(folder)  # refused now, not after an hour
        try:
            answered = [found for each in work.models for found in answers(each, work, asked, options, run)]
        except KeyboardInterrupt:
            run.progress.note("what was answered is kept: the same command goes on")
            raise
    report = reported(work, answered, folder, options)
    report.seconds = time.monotonic() - started
    return written(report, samples(answered), folder, options, started)


def check_installed() -> None:
    """Raises MissingDependency for a package of the extra `eval`."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, "evaluate", "pip install -e '.[eval]'")


# ---- what there is to do ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """models: baseline first, teacher last.   rows: held-out prompts, none where there are none.

    notes: what a reader of the report must know; grows while the models answer.
    """

    models: list[Named]
    tasks: "list[LoadedTask]"
    rows: list[HeldOut]
    rows_in_all: int
    notes: list[str]

    @property
    def teacher(self) -> Named | None:
        return next((each for each in self.models if each.info.role == "teacher"), None)


def prepare(options: Evaluate, run: Run) -> Work:
    """Find models, rows and tasks. Raises UsageError."""
    notes: list[str] = []
    models = resolve_models(options, run.progress.note)
    rows = read_held_out(options, models, noted(run, notes)) or []
    from .lm_tasks import load_tasks  # imports lm-eval: after all that is refused without it

    chats = all(each.info.chat_template or each.backend != "hf" for each in models)
    tasks = load_tasks(options, selected(options), chats, run.progress.note)
    if not tasks and not rows:
        raise UsageError("there is nothing to ask: name a --suite, --tasks, or --data with reference answers.")
    notes += prompting_notes(models)
    return Work(models, tasks, choose(rows, options), len(rows), notes)


def noted(run: Run, notes: list[str]) -> Callable[[str], None]:
    """Shows a line to the user and keeps it for the report."""

    def note(text: str) -> None:
        if text not in notes:
            notes.append(text)
            run.progress.note(text)

    return note


def plan(work: Work, asked: "Mapping[str, CachedLM]", folder: Path, options: Evaluate) -> EvaluationPlan:
    """What would be done. Nothing is loaded but tokenizers."""
    from .harness import count_requests

    requests = cached = 0
    lines: list[str] = []
    for each in work.models:
        total, known = count_requests(work.tasks, asked[each.name], options)
        requests, cached = requests + total, cached + known
        lines.append(f"{each.info.role:<10}  {each.name}: {each.path} ({each.backend}), {total - known:,} new requests")
    lines += [
        f"task        {task.info.name}: {task.info.items:,} of {task.info.of:,} items, {task.info.prompted}"
        for task in work.tasks
    ]
    if work.rows:
        lines.append(f"held out    {len(work.rows):,} of {work.rows_in_all:,} prompts with references, for every model")
    lines.append(f"report      {folder}")
    return EvaluationPlan(plan=lines, requests=requests, cached=cached)


# ---- answering -------------------------------------------------------------------------------------------------------


def answers(
    named: Named, work: Work, asked: "Mapping[str, CachedLM]", options: Evaluate, run: Run
) -> Iterator[Answered]:
    """One model on everything; its memory is given back afterwards, but for the teacher's, which others are held to.

    Raises KeyboardInterrupt when the user asks to stop.
    """
    from .closeness import closeness
    from .harness import account, answer_tasks

    lm, note = asked[named.name], noted(run, work.notes)
    yield from answer_tasks(named, work.tasks, lm, options, run)
    run.stop.check()
    if work.rows:
        held_out = answer_held_out(named, lm, work.rows, options, run, note, chat=options.chat_template != "off")
        run.stop.check()
        yield held_out
        teacher = None if work.teacher is None else (work.teacher, asked[work.teacher.name])
        near = closeness(named, lm, teacher, work.rows, options, run, note, held_out.answers)
        run.stop.check()
        if near is not None:
            yield near
        account(named, lm)
    if named is not work.teacher:
        lm.free()


def task_infos(work: Work, answered: Sequence[Answered], options: Evaluate) -> list[TaskInfo]:
    """The tasks that at least one model was measured on."""
    from .closeness import TASK as CLOSENESS
    from .closeness import VERSION as CLOSENESS_VERSION

    chat = options.chat_template != "off"
    own = {
        HELD_OUT: (HELD_OUT_VERSION, "Answers to prompts that were not trained on, against reference answers."),
        CLOSENESS: (CLOSENESS_VERSION, "Token by token against the teacher, on the same reference answers."),
    }
    infos = [task.info for task in work.tasks]
    for name, (version, about) in own.items():
        infos.append(
            TaskInfo(
                name=name,
                version=version,
                items=len(work.rows),
                of=work.rows_in_all,
                prompted="chat template" if chat else "plain text",
                about=about,
            )
        )
    there = {each.task for each in answered}
    return [info for info in infos if info.name in there]


# ---- the report ------------------------------------------------------------------------------------------------------


def reported(work: Work, answered: Sequence[Answered], folder: Path, options: Evaluate) -> Report:
    """Everything but the plots."""
    from .comparison import compare, headline

    device, dtype = computation(options)
    versions = {name: _version(name) for name in ("lm-eval", "transformers", "torch")}
    report = Report(
        name=folder.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        distill=__version__,
        headline=[],
        settings={
            "options": options.model_dump(mode="json", exclude={"output", "name", "cache", "track", "dry_run"}),
            "device": device,
            "dtype": dtype,
            "versions": versions,
        },
        models=[each.info for each in work.models],
        tasks=task_infos(work, answered, options),
        metrics=compare([each.info for each in work.models], answered, options.draws, options.seed),
        notes=work.notes,
    )
    report.headline = headline(report)
    return report


def samples(answered: Sequence[Answered]) -> Iterator[Sample]:
    """An item of each task with every model's answer and scores."""
    by_task: dict[str, list[Answered]] = {}
    for each in answered:
        by_task.setdefault(each.task, []).append(each)
    for task, models in by_task.items():
        for place, question in enumerate(models[0].questions):
            scores: dict[str, dict[str, float]] = {}
            counts: dict[str, dict[str, float]] = {}
            for each in models:
                ratios = {scored.metric.name: scored.counts[place] for scored in each.scored if scored.counts}
                if ratios:
                    counts[each.model] = ratios
                scores[each.model] = {
                    scored.metric.name: scored.totals[place] / (scored.counts[place] or 1.0)
                    if scored.counts is not None
                    else scored.totals[place]
                    for scored in each.scored
                }
            yield Sample(
                task=task,
                key=question.key,
                prompt=question.prompt,
                reference=question.reference,
                cluster=question.cluster,
                answers={each.model: each.answers[place] for each in models},
                scores=scores,
                counts=counts,
            )


def written(report: Report, items: Iterable[Sample], folder: Path, options: Evaluate, started: float) -> Evaluated:
    """The report with its plots in its folder, and in the tracker."""
    from .plots import draw_plots

    make_folder(folder)
    try:
        report.plots = draw_plots(report, folder / "plots")
        write_report(folder, report, items)
    except OSError as error:
        raise UsageError(cannot_write(folder, error)) from None
    if options.track:
        track(report, folder, options.track)
    return Evaluated(
        output=folder,
        headline=report.headline,
        table=terminal(report),
        models=len(report.models),
        tasks=len(report.tasks),
        items=sum(task.items for task in report.tasks),
        requests=sum(model.requests for model in report.models),
        cached=sum(model.cached for model in report.models),
        seconds=time.monotonic() - started,
    )


def track(report: Report, folder: Path, tracker: str) -> None:
    """Every model's scores, through Accelerate as in training."""
    from accelerate import Accelerator

    from ..data.tracking import plain, project_of

    accelerator = Accelerator(cpu=True, log_with=tracker, project_dir=folder)
    accelerator.init_trackers(project_of(tracker, "evaluate"), config=plain(report.settings["options"]))
    figures = {
        f"{metric.task}/{metric.metric}/{score.model}": score.value
        for metric in report.metrics
        for score in metric.scores
    }
    accelerator.log(figures, step=0)
    accelerator.end_training()


def side_by_side(options: Evaluate, folder: Path, started: float) -> Evaluated:
    """Finished reports as one. Raises UsageError for a folder that holds none, and for a folder of its own."""
    from . import side_by_side as reports

    report, items = reports.side_by_side(options.compare or [], options.draws, options.seed)
    report.name = folder.name
    return written(report, items, folder, options, started)


# ---- where it goes ---------------------------------------------------------------------------------------------------


def report_folder(options: Evaluate) -> Path:
    """Raises InputError for a folder that holds something else."""
    folder = options.output or Path("reports") / (options.name or default_name(options))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "report.json").exists():
        if {entry.name for entry in folder.iterdir()} - {"plots"}:
            raise InputError(folder, None, "holds something else than a report. Choose another --output or --name.")
    elif folder.exists() and not folder.is_dir():
        raise InputError(folder, None, "is no folder. Choose another --output or --name.")
    return folder


def default_name(options: Evaluate) -> str:
    """That of what is evaluated: runs/gold/best -> gold-best."""
    if options.compare:
        return "-".join(["compared", *(path.name for path in options.compare)])[:80]
    first = options.student or (options.models or [""])[0].partition("=")[2] or str(options.scan)
    path = Path(first)
    inside_a_run = path.name in PARTS_OF_A_RUN or path.name.startswith("step-")
    name = f"{path.parent.name}-{path.name}" if inside_a_run and path.parent.name else path.name
    return name.strip("-.") or "report"


def make_folder(folder: Path) -> None:
    """Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(cannot_write(folder, error)) from None


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
