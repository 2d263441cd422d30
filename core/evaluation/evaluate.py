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
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..commands.evaluate import Evaluate, Evaluated, EvaluationPlan
from ..data.jsonlines import cannot_write
from ..data.run import Run
from ..data.tracking import check_tracker
from ..errors import MissingDependency, StoppedEarly, UsageError
from .held_out import TASK as HELD_OUT
from .held_out import VERSION as HELD_OUT_VERSION
from .held_out import HeldOut, answer_held_out, choose, read_held_out, requests_of
from .models import Named, computation, prompting_notes, resolve_models
from .place import free_folder, make_folder, report_folder
from .report import write_report
from .results import Answered, Report, Sample, TaskInfo
from .suites import selected
from .table import terminal

if TYPE_CHECKING:
    from .cached_lm import CachedLM
    from .harness import LoadedTask

NEEDED = ("lm_eval", "torch", "transformers", "matplotlib")


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
        asked = opened(work.models, options, run, stack)
        folder = free_folder(folder, settings(options), [each.identity for each in work.models], run.progress.note)
        if options.dry_run:
            return plan(work, asked, folder, options, run)
        make_folder(folder)  # refused now, not after an hour
        try:
            answered = [found for each in work.models for found in answers(each, work, asked, options, run)]
        except KeyboardInterrupt:
            run.progress.note("what was answered is kept: the same command goes on")
            raise
    report = reported(work, answered, folder, options)
    failed = unmeasured(work, answered)
    report.headline[:0] = failed
    report.seconds = time.monotonic() - started
    found = written(report, samples(answered), folder, options, started)
    return found.model_copy(update={"status": "some_failed"}) if failed else found


def opened(models: Sequence[Named], options: Evaluate, run: Run, stack: ExitStack) -> "dict[str, CachedLM]":
    """Every model by its name, until the stack is closed. Copies of one model share its answers. Nothing is loaded
    but tokenizers."""
    from .cached_lm import open_cached

    found: dict[str, CachedLM] = {}
    for named in models:
        twins = [found[each.name].answers for each in models if each.name in found and each.identity == named.identity]
        found[named.name] = stack.enter_context(open_cached(named, options, run, *twins[:1]))
    return found


def check_installed() -> None:
    """Raises MissingDependency for a package of the extra `eval`."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, "evaluate", "eval")


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
    if (
        not chats
        and options.chat_template == "auto"
        and any(task.task.OUTPUT_TYPE == "generate_until" for task in tasks)
    ):
        notes.append(
            "tasks whose answers are written were asked in plain text, of every model: not all have a template"
        )
    return Work(models, tasks, choose(rows, options), len(rows), notes)


def noted(run: Run, notes: list[str]) -> Callable[[str], None]:
    """Shows a line to the user and keeps it for the report."""

    def note(text: str) -> None:
        if text not in notes:
            notes.append(text)
            run.progress.note(text)

    return note


def plan(work: Work, asked: "Mapping[str, CachedLM]", folder: Path, options: Evaluate, run: Run) -> EvaluationPlan:
    """What would be done. Nothing is loaded but tokenizers."""
    from .closeness import missing
    from .harness import count_requests

    requests = cached = 0
    lines: list[str] = []
    for each in work.models:
        lm = asked[each.name]
        total, known = count_requests(work.tasks, lm, options)
        new = total - known
        if work.rows:
            prompts, _, _ = requests_of(each, lm, work.rows, options, options.chat_template != "off")
            new += lm.missing("generate_until", prompts) + missing(
                each, lm, teacher_of(each, work, asked), work.rows, options, run
            )
            total += len(prompts) + (len(work.rows) if each.backend == "hf" else 0)
        requests, cached = requests + total, cached + total - new
        lines.append(f"{each.info.role:<10}  {each.name}: {each.path} ({each.backend}), {new:,} new requests")
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
    from .closeness import TASK as CLOSENESS
    from .closeness import closeness
    from .harness import account, answer_tasks

    lm, note = asked[named.name], noted(run, work.notes)
    yield from answer_tasks(named, work.tasks, lm, options, run)
    run.stop.check()
    if work.rows:
        chat = options.chat_template != "off"
        said: list[str] | None = None
        if held_out := attempted(
            named, HELD_OUT, note, lambda: answer_held_out(named, lm, work.rows, options, run, note, chat=chat)
        ):
            said = held_out.answers
            yield held_out
        run.stop.check()
        teacher = teacher_of(named, work, asked)
        if near := attempted(
            named, CLOSENESS, note, lambda: closeness(named, lm, teacher, work.rows, options, run, note, said)
        ):
            yield near
        run.stop.check()
        account(named, lm)
    if named is not work.teacher:
        lm.free()


def attempted(
    named: Named, task: str, note: Callable[[str], None], work: Callable[[], Answered | None]
) -> Answered | None:
    """What the work gives. What one model cannot do here must not cost the figures of everything else."""
    try:
        return work()
    except (UsageError, StoppedEarly) as error:
        named.info.not_measured[task] = str(error)
        note(f"{named.name}: {task} is not measured: {error}")
        return None


def teacher_of(named: Named, work: Work, asked: "Mapping[str, CachedLM]") -> "tuple[Named, CachedLM] | None":
    """The teacher that a model is compared with; itself it is not."""
    teacher = work.teacher
    return None if teacher is None or teacher is named else (teacher, asked[teacher.name])


def task_infos(work: Work, answered: Sequence[Answered], options: Evaluate) -> list[TaskInfo]:
    """The tasks that at least one model was measured on."""
    from .closeness import TASK as CLOSENESS
    from .closeness import VERSION as CLOSENESS_VERSION

    chat = options.chat_template != "off" and any(
        each.info.chat_template or each.backend != "hf" for each in work.models
    )
    against = "against the teacher, " if work.teacher else ""
    own = {
        HELD_OUT: (HELD_OUT_VERSION, chat, "Answers to prompts that were not trained on, against reference answers."),
        CLOSENESS: (CLOSENESS_VERSION, True, f"Token by token, {against}on the same reference answers."),
    }
    infos = [task.info for task in work.tasks]
    for name, (version, templated, about) in own.items():
        infos.append(
            TaskInfo(
                name=name,
                version=version,
                items=len(work.rows),
                of=work.rows_in_all,
                prompted="chat template" if templated else "plain text",
                about=about,
            )
        )
    there = {each.task for each in answered}
    return [info for info in infos if info.name in there]


# ---- the report ------------------------------------------------------------------------------------------------------


def reported(work: Work, answered: Sequence[Answered], folder: Path, options: Evaluate) -> Report:
    """Everything but the plots."""
    from .comparison import compare, headline

    report = Report(
        name=options.name or folder.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        distill=__version__,
        headline=[],
        settings=settings(options),
        models=[each.info for each in work.models],
        tasks=task_infos(work, answered, options),
        metrics=compare([each.info for each in work.models], answered, options.draws, options.seed),
        notes=work.notes,
    )
    report.headline = headline(report)
    return report


def unmeasured(work: Work, answered: Sequence[Answered]) -> list[str]:
    """A line for each task that no model could be measured on, or not the baseline, with the reason."""
    lines: list[str] = []
    baseline = work.models[0]
    for name in (task.info.name for task in work.tasks):
        measured = {each.model for each in answered if each.task == name}
        if not measured:
            why = next((each.info.not_measured[name] for each in work.models if name in each.info.not_measured), "")
            lines.append(f"No model could be measured on {name}: {why}")
        elif baseline.name not in measured:
            why = baseline.info.not_measured.get(name, "")
            lines.append(f"{baseline.name} could not be measured on {name}, so nothing is compared there: {why}")
    return lines


def settings(options: Evaluate) -> dict[str, Any]:
    """What the figures depend on besides the models."""
    device, dtype = computation(options)
    return {
        "options": options.model_dump(
            mode="json", exclude={"output", "name", "cache", "track", "dry_run", "concurrency"}
        ),
        "device": device,
        "dtype": dtype,
        "versions": {name: _version(name) for name in ("lm-eval", "transformers", "torch")},
    }


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
        raise StoppedEarly(f"{cannot_write(folder, error)} All answers are kept.") from None
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
    """Finished reports as one. Raises UsageError for a folder that holds none."""
    from . import side_by_side as reports

    if folder.resolve() in [each.resolve() for each in options.compare or []]:
        raise UsageError(
            f"{folder} is one of the reports to compare. Choose another --output (EVAL_OUTPUT_DIR) or --name."
        )
    report, items = reports.side_by_side(options.compare or [], options.draws, options.seed)
    report.name = options.name or folder.name
    return written(report, items, folder, options, started)


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
