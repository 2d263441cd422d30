"""Some of the rows are shown to models: a teacher answers them anew and scores them, a student scores them, a judge
grades them. What came of it is a figure for each question and a line for each row."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..commands.check_data import CheckData, CheckPlan, Measured
from ..commands.teacher import TeacherOptions
from ..data.run import Run
from ..errors import UsageError
from ..teachers import Completion
from . import judging_rows as judging
from . import learnability, teaching
from .asking import Asking, Estimate
from .results import Model, ShownRow
from .teaching import Sample


@dataclass(frozen=True)
class Said:
    """measured: f1, rouge_l, top1_agreement, judge_score, judge_win, as far as there are any.   learnability: see
    `learnability.surprise`.   shown: what came of each row that models saw.   stopped: why not all was asked, in words.
    usd: US dollars that this run cost; None where nothing is known."""

    measured: list[Measured]
    learnability: list[Measured]
    shown: list[ShownRow]
    models: list[Model]
    stopped: str | None
    usd: float | None


def check_models(options: CheckData) -> None:
    """Raises UsageError for a rubric that cannot be read, and a teacher or student that cannot score, before the rows
    are read."""
    judging.read_rubric(options.rubric)
    if options.score:
        learnability.check_scorer(options.teaching())
        if options.student is not None:
            learnability.check_scorer(student_of(options))


def student_of(options: CheckData) -> TeacherOptions:
    assert options.student is not None
    return TeacherOptions(model=options.student, backend="hf")


def show_to_models(
    samples: Sequence[Sample], options: CheckData, folder: Path, run: Run, note: Callable[[str], None]
) -> Said:
    """folder: keeps what is said and paid, so that the same command asks for nothing twice.

    Raises UsageError where no row can be shown, and for a model that cannot be asked; KeyboardInterrupt when the user
    asked to stop. When the money runs out, or a server is gone, the rows so far count.
    """
    refuse_nothing(samples, options)
    asking = Asking(folder, run, max_cost=options.max_cost)
    models = asyncio.run(_ask(samples, options, asking, note))
    if options.score and not asking.ended:
        models += _score(samples, options, asking)
    run.stop.check()
    agreement = learnability.agreement(samples)
    measured = [*teaching.overlap(samples), *([agreement] if agreement else []), *judging.opinions(samples)]
    costs = [model.usd for model in models if model.usd is not None]
    return Said(
        measured,
        learnability.surprise(samples),
        [sample.shown for sample in samples],
        models,
        str(asking.stopped) if asking.stopped is not None else _missing(measured, samples, options),
        sum(costs) if costs else None,
    )


def refuse_nothing(samples: Sequence[Sample], options: CheckData) -> None:
    if not samples:
        who = "--teacher" if options.teacher is not None else "--judge"
        raise UsageError(f"{who}: no row of {options.data} has an answer that is a text, so there is nothing to show.")


async def _ask(
    samples: Sequence[Sample], options: CheckData, asking: Asking, note: Callable[[str], None]
) -> list[Model]:
    """Both models are opened before one is paid. A local one gives its memory back before the next is loaded."""
    async with asking:
        teacher = await asking.open(options.teaching(), "teacher") if options.teacher is not None else None
        judge = await asking.open(options.judging(), "judge") if options.judge is not None else None
        if teacher is not None:
            await teaching.answer_anew(samples, asking, teacher, options.max_new_tokens)
            await asking.release(teacher)
        if judge is not None and not asking.ended:
            judged = await judging.grade_and_compare(samples, asking, judge, judging.read_rubric(options.rubric))
            for text in judged.notes:
                note(text)
        return [who.model for who in asking.respondents]


def _score(samples: Sequence[Sample], options: CheckData, asking: Asking) -> list[Model]:
    """Teacher and student one after the other: both together may be too much for the machine."""
    models: list[Model] = []
    with learnability.opened_scorer(options.teaching(), "teacher", asking, options.teacher_tokenizer) as scorer:
        learnability.score_answers(samples, scorer, asking)
    models.append(scorer.model)
    if options.student is not None and not asking.ended:
        with learnability.opened_scorer(student_of(options), "student", asking) as scorer:
            learnability.score_answers(samples, scorer, asking)
        models.append(scorer.model)
    return models


def _missing(measured: Sequence[Measured], samples: Sequence[Sample], options: CheckData) -> str | None:
    """Why something that was asked for has no figure at all, although nothing stopped it."""
    there = {one.name for one in measured}
    wanted = {
        "f1": (options.teacher is not None, "the teacher gave no new answer"),
        "top1_agreement": (options.score, "the teacher scored none"),
        "judge_score": (options.judge is not None, "the judge gave no grade"),
    }
    for name, (asked_for, what) in wanted.items():
        if asked_for and name not in there:
            first = next((text for sample in samples for text in sample.shown.notes), "")
            return f"{what} for any of {len(samples)} rows{f': {first}' if first else ''}"
    return None


# ---- before anything is paid ---------------------------------------------------------------------------------------


def plan(samples: Sequence[Sample], rows: int, options: CheckData, folder: Path, run: Run) -> CheckPlan:
    """What the models would be asked, and at most what that costs. rows: of the file. Raises UsageError as the run
    would."""
    refuse_nothing(samples, options)
    estimates = asyncio.run(_estimates(samples, options, folder, run))
    roles = [role for (role, _), found in estimates if found.worst_usd is None]
    return CheckPlan(
        rows=rows,
        requests=sum(found.requests for _, found in estimates),
        worst_case_usd=None if roles else sum(found.worst_usd or 0.0 for _, found in estimates),
        unpriced=list(dict.fromkeys("--judge-price" if role == "judge" else "--teacher-price" for role in roles)),
        lines=[
            f"{role:<11} {name}: {found.requests:,} requests, {found.cached:,} answers are there already"
            for (role, name), found in estimates
        ],
    )


async def _estimates(
    samples: Sequence[Sample], options: CheckData, folder: Path, run: Run
) -> list[tuple[tuple[str, str], Estimate]]:
    found: list[tuple[tuple[str, str], Estimate]] = []
    async with Asking(folder, run, max_cost=options.max_cost, dry_run=True) as asking:
        if options.teacher is not None:
            teacher = await asking.open(options.teaching(), "teacher")
            questions, sampling = teaching.questions_of(samples), teaching.greedy(options.max_new_tokens)
            found.append((("teacher", teacher.name), asking.estimate(teacher, questions, sampling)))
            _take_known(samples, asking.known(teacher, questions, sampling))
        if options.judge is not None:
            judge = await asking.open(options.judging(), "judge")
            new_tokens = options.max_new_tokens if options.teacher is not None else None
            rubric = judging.read_rubric(options.rubric)
            found.append((("judge", judge.name), judging.estimate(samples, asking, judge, rubric, new_tokens)))
        if options.score:
            found.append(
                (("scoring", options.teacher or ""), learnability.estimate(samples, options.teaching(), asking))
            )
    return found


def _take_known(samples: Sequence[Sample], answers: Iterable[Completion | None]) -> None:
    """The new answers that are there already, for the judge to compare."""
    there = [(sample, answer) for sample, answer in zip(samples, answers, strict=True) if answer is not None]
    teaching.take_answers([sample for sample, _ in there], [answer for _, answer in there])
