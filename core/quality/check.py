"""`check_data`: every row is looked at once, some are shown to models, and what was found becomes figures and files.

options -> rows -> Look (shares) -> samples -> Said (means) -> DataReport -> reports/NAME/, and the rows that pass
"""

import datetime
import importlib.util
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from .. import __version__
from ..commands.check_data import LEAST, MEASURES, REQUIREMENT, CheckData, Checked, CheckPlan, Measured
from ..data.jsonlines import cannot_write
from ..data.run import Run
from ..data.statistics import wilson
from ..data.text import one_line, path_text, printable
from ..errors import InputError, MissingDependency, StoppedEarly, UsageError
from . import report_words as words
from .evaluation_items import add_items, names_of
from .evaluation_items import check_installed as check_evaluation
from .fix import check_fix, write_fixed
from .personal import personal
from .results import DataReport, ShownRow
from .rows import open_rows

if TYPE_CHECKING:
    from .contamination import Items
    from .look import Look
    from .showing import Said
    from .tokens import TokenCounter

NEEDED = ("datasketch", "py3langid", "matplotlib")
FINDINGS = "findings.jsonl"
"""In the folder of the report: every row at fault, with its reasons."""
LEFT_BY_AN_INTERRUPTED_ONE = (".", "plots", FINDINGS, "samples.jsonl", "asked.jsonl")
FEW = 100
"""Rows from which on a share is known to ten percentage points: half of Wilson's interval for 50 of 100 is 9.6."""
NEEDS = {
    "other_language": "it needs --language other than any, and rows long enough to tell",
    "contaminated": "it needs --tasks or --against",
    "wrong_answer": "it needs rows with an expected_answer",
    "f1": "it needs --teacher",
    "rouge_l": "it needs --teacher",
    "top1_agreement": "it needs --teacher and --score",
    "judge_score": "it needs --judge",
    "judge_win": "it needs --judge and --teacher",
}
"""What a measure is not there without; all others need rows with an answer."""


def check(options: CheckData, run: Run) -> Checked | CheckPlan:
    """Do the work of the command.

    Raises UsageError before anything is read or paid for what can be known before, and for a file without rows;
    MissingDependency; StoppedEarly when a place cannot be written; KeyboardInterrupt when the user asks to stop: then
    no file was written, and what models said is kept.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        if text not in notes:
            notes.append(text)
            run.progress.note(text)

    folder = report_folder(options, note)
    check_before(options, folder)

    with open_rows(options) as rows, ExitStack() as stack:
        from .look import Look, look_at
        from .teaching import Choice

        tokens = token_counter(options, note)
        look = stack.enter_context(Look(options, evaluation_items(options, note), tokens))
        asks = options.teacher is not None or options.judge is not None
        choice = Choice(options.samples, options.seed) if asks else None
        look_at(rows, look, choice, run)
        if not look.rows:
            raise InputError(options.data, None, "holds no row.")
        check_requirements(options, look)
        note_what_is_special(options, look, tokens, note)
        said = None
        if choice is not None and options.dry_run:
            from .showing import plan

            return plan(choice.samples, look.rows, options, folder, run)
        if choice is not None:
            from .showing import show_to_models

            said = show_to_models(choice.samples, options, folder, run, note)
        report = reported(options, look, said, notes)
        written(report, folder, look)
        fixed = write_fixed(rows, look, options, run) if options.fix is not None else (None, None)
    stopped = said.stopped if said is not None else None
    return Checked(
        status="done" if stopped is None else "stopped",
        stopped_because=stopped,
        data=report.data,
        rows=report.rows,
        measured=report.measured,
        report=folder,
        fixed=options.fix,
        kept=fixed[0],
        dropped=fixed[1],
        cost_usd=said.usd if said is not None else None,
        notes=notes,
    )


# ---- before anything is read ---------------------------------------------------------------------------------------


def report_folder(options: CheckData, note: Callable[[str], None]) -> Path:
    """Where the report goes. Raises UsageError for a place that holds something else or cannot be written."""
    folder = options.output_dir or default_folder(options.data, note)
    if folder.exists() and not folder.is_dir():
        raise InputError(folder, None, "is no folder. Choose another --output-dir.")
    if folder.is_dir() and not is_ours(folder):
        raise InputError(folder, None, "holds something else than a report of check_data. Choose another --output-dir.")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise UsageError(cannot_write(folder, PermissionError(13, os.strerror(13))))
    return folder


def is_ours(folder: Path) -> bool:
    """Whether a folder is empty, or holds a report of this command or what an interrupted one left."""
    if not (folder / "report.json").exists():
        return all(path.name.startswith(LEFT_BY_AN_INTERRUPTED_ONE) for path in folder.iterdir())
    return data_of(folder) is not None


def data_of(folder: Path) -> str | None:
    """What the report of this command in a folder is about; None where there is none."""
    try:
        report = orjson.loads((folder / "report.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    ours = isinstance(report, dict) and "measured" in report and "schema_version" in report
    return str(report.get("data")) if ours else None


def default_folder(data: str, note: Callable[[str], None]) -> Path:
    """reports/train for a/train.jsonl; where that holds the report of b/train.jsonl, reports/a-train. Raises UsageError
    where that holds another one's, too."""
    name, above = default_name(data), folder_name(data)
    taken = ""
    for folder in (Path("reports") / name, *([Path("reports") / f"{above}-{name}"] if above else [])):
        there = data_of(folder)
        if there is None or os.path.abspath(there) == os.path.abspath(data_name(data)):
            if taken:
                note(f"{taken}, so this one goes to {folder}")
            return folder
        taken = f"{folder} holds the report of {one_line(there)}"
    raise UsageError(f"{taken}. Name another folder with --output-dir.")


def folder_name(data: str) -> str:
    """That of the folder which a file lies in; empty for other data."""
    named = data != "-" and not data.startswith("hf:")
    return printable(Path(os.path.abspath(data)).parent.name).replace("\n", " ") if named else ""


def data_name(data: str) -> str:
    """The data as a report names them."""
    return "standard input" if data == "-" else path_text(data)


def default_name(data: str) -> str:
    """That of the file: data/train.jsonl -> train, hf:owner/name:test -> owner-name-test."""
    if data == "-":
        return "stdin"
    if data.startswith("hf:"):
        return data.removeprefix("hf:").replace("/", "-").replace(":", "-")
    return printable(Path(data).stem).replace("\n", " ") or "data"


def check_before(options: CheckData, folder: Path) -> None:
    """Raises UsageError for what is wrong whatever the data hold, MissingDependency for a package that is needed."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, "check_data", "data")
    check_evaluation(options)
    check_fix(options)
    if options.teacher is not None or options.judge is not None:
        from .showing import check_models

        check_models(options)
    there = {
        "other_language": options.language != "any",
        "contaminated": bool(names_of(options) or options.against),
        "f1": options.teacher is not None,
        "rouge_l": options.teacher is not None,
        "top1_agreement": options.score,
        "judge_score": options.judge is not None,
        "judge_win": options.judge is not None and options.teacher is not None,
    }
    for name, text in asked_for(options):
        if not there.get(name, True):
            raise UsageError(f"--require {text}: {name} is not measured: {NEEDS[name]}.")


def asked_for(options: CheckData) -> list[tuple[str, str]]:
    """(measure, as the user wrote it) of every --require."""
    return [(found[1], text) for text in options.require if (found := REQUIREMENT.fullmatch(text))]


def token_counter(options: CheckData, note: Callable[[str], None]) -> "TokenCounter | None":
    if options.tokenizer is None:
        return None
    from .tokens import TokenCounter

    return TokenCounter(options.tokenizer, note)


def evaluation_items(options: CheckData, note: Callable[[str], None]) -> "Items | None":
    """What the rows are not to share text with; None where nothing was named."""
    if not (names_of(options) or options.against):
        return None
    from .contamination import FEWEST, Items

    items = Items(options.ngram)
    add_items(items, options, note)
    all_items = {source: count for source, (count, _) in items.found.items()}
    for source, short in items.unjudged.items():
        of = all_items[source]
        text = f"{source}: {short:,} of {of:,} items have fewer than {FEWEST} words and cannot be looked for"
        if items.unjudged.total() == sum(all_items.values()):
            raise UsageError(f"{text}: any text may hold them. Leave it out of --tasks and --against.")
        note(text)
    return items


# ---- after all rows were read ----------------------------------------------------------------------------------------


def check_requirements(options: CheckData, look: "Look") -> None:
    """Raises UsageError where --require asks for a share that no row could be measured on."""
    from .look import SHARES

    for name, text in asked_for(options):
        if name in SHARES and not look.applied[name]:
            why = NEEDS.get(name, "it needs rows with an answer")
            raise UsageError(f"--require {text}: no row of {options.data} could be measured on {name}: {why}.")


def note_what_is_special(
    options: CheckData, look: "Look", tokens: "TokenCounter | None", note: Callable[[str], None]
) -> None:
    """What a reader of the figures must know of the file."""
    if options.limit is not None and look.rows == options.limit:
        note(f"only the first {look.rows:,} rows were looked at (--limit)")
    if look.crowded:
        note(
            f"{look.crowded:,} rows are alike in part with very many others, as those of one template are, and were "
            "compared with the latest of these only: some near duplicates may not have been found"
        )
        near = next(one for one in shares(look) if one.name == "near_duplicate")
        if judged(near, options.requirements.get("near_duplicate")).passed is False:
            note(
                "rows of one template count as near duplicates though they may be meant to differ in a few words only: "
                "--near-duplicate 0.95 takes only nearly equal ones for alike, --require "
                '"near_duplicate<=50%" accepts more of them'
            )
    if look.unread:
        note(f"{words.some(look.unread, 'row')} cannot be read, the first: {one_line(look.first_unread, 300)}")
    if not look.answers:
        note("no row has an answer: this is a file of prompts, and what concerns answers is not measured")
    if tokens is not None and tokens.refused:
        note(f"the chat template refuses {tokens.refused:,} rows: the tokens of their texts alone are counted")


def reported(options: CheckData, look: "Look", said: "Said | None", notes: list[str]) -> DataReport:
    """All that was found, but the plots."""
    requirements = options.requirements
    measured = [*shares(look), *(said.measured if said is not None else [])]
    measured = [judged(one, requirements.get(one.name)) for one in measured]
    report = DataReport(
        name=default_name(options.data),
        data=data_name(options.data),
        rows=look.rows,
        made=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, distill {__version__}",
        headline=[],
        measured=sorted(measured, key=lambda one: list(MEASURES).index(one.name)),
        learnability=said.learnability if said is not None else [],
        examples=look.examples,
        lengths=look.figures.lengths(),
        languages=dict(look.languages.most_common()),
        kinds=look.figures.kinds(),
        distinct=look.figures.distinct(),
        contamination={} if look.items is None else look.items.found,
        shown=[without_personal(one) for one in said.shown] if said is not None else [],
        models=said.models if said is not None else [],
        notes=[printable(text) for text in notes],
        settings=settings(options, look),
    )
    report.headline = headline(report, said)
    return report


def without_personal(one: ShownRow) -> ShownRow:
    """What came of a row that was shown to models. It holds nothing personal itself; what they said may."""
    from .look import WITHHELD

    notes = [WITHHELD if personal(note) else note for note in one.notes]
    answer = WITHHELD if personal(one.new_answer or "") else one.new_answer
    return one.model_copy(update={"new_answer": answer, "notes": notes})


def shares(look: "Look") -> list[Measured]:
    """The share of rows at fault for every measure that at least one row could be measured on."""
    from .look import SHARES

    found: list[Measured] = []
    for name in SHARES:
        if of := look.applied[name]:
            count = look.faults[name]
            low, high = wilson(count, of)
            found.append(Measured(name=name, kind="share", value=count / of, low=low, high=high, count=count, of=of))
    return found


def judged(one: Measured, requirement: tuple[str, float] | None) -> Measured:
    """A figure with its threshold. It passes by its value; that is certain where its whole interval is on that side.

    Nothing can be below 0 or above 1, so a file without a single fault meets "<= 0" for certain: all rows were seen.
    """
    if requirement is None:
        return one
    side, bound = requirement
    passed = one.value >= bound if side == LEAST else one.value <= bound
    above, below = one.low >= bound, one.high <= bound
    at_the_end = one.kind == "share" and passed and one.value == bound and bound in (0.0, 1.0)
    certain = at_the_end or (above if passed == (side == LEAST) else below)
    return one.model_copy(update={"required": f"{side} {bound:g}", "passed": passed, "certain": certain})


def headline(report: DataReport, said: "Said | None") -> list[str]:
    """What a reader must know, in whole sentences."""
    missed = [one for one in report.measured if one.passed is False]
    lines: list[str] = []
    if missed:
        told = ", ".join(f"{one.name} {words.share(one.value)} (wanted: {words.wanted(one)})" for one in missed)
        lines.append(f"Not good enough: {told}.")
    else:
        lines.append(
            "Every threshold is met." if any(one.passed for one in report.measured) else "There is no threshold."
        )
    if said is not None and said.stopped is not None:
        lines.append(f"It was stopped early: {said.stopped}")
    if report.rows < FEW:
        lines.append(says_little(report.rows))
    if said is not None and 0 < len(said.shown) < min(FEW, report.rows):
        lines.append(f"Models were shown {says_little(len(said.shown))}")
    return lines


def says_little(rows: int) -> str:
    """10 rows: a share of 60 % may be anything from 31 % to 83 %."""
    of_them = round(0.6 * rows)
    low, high, value = (f"{100 * share:.0f} %" for share in (*wilson(of_them, rows), of_them / rows))
    return f"{words.some(rows, 'row')}: a share of {value} may be anything from {low} to {high}."


def settings(options: CheckData, look: "Look") -> dict[str, Any]:
    """What the figures depend on."""
    hidden = {"output_dir", "overwrite", "fix", "concurrency", "timeout", "retries", "dry_run"}
    chosen = options.model_dump(mode="json", exclude=hidden, exclude_none=True)
    languages = "any" if look.expected is None else ", ".join(sorted(look.expected))
    return {**chosen, "languages": languages}


def written(report: DataReport, folder: Path, look: "Look") -> None:
    """The report and the rows at fault. Raises StoppedEarly."""
    from .report import write_report

    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{FINDINGS}.{os.getpid()}"  # another run may be at work on the same report
        with unfinished.open("wb") as file:
            for finding in look.findings():
                file.write(orjson.dumps(finding, option=orjson.OPT_APPEND_NEWLINE))
        os.replace(unfinished, folder / FINDINGS)
        write_report(folder, report)
    except OSError as error:
        raise StoppedEarly(cannot_write(folder, error)) from None
