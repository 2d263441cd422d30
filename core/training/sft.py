"""`train_sft`: check config.yml and every row, then train on them, without torch until there is something to train."""

import ast
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..commands.base import flag
from ..commands.project_config import Finding, Level, Project, line_of, read_project
from ..commands.project_options import HOSTED, not_ours
from ..commands.train_sft import SftChecked, SftPlan, SftTrained, TrainSft
from ..data.environment import dotenv
from ..data.run import Run
from ..data.sft_rows import Lint, lint
from ..errors import InputError, UsageError
from .distill_config import gold_options, told

if TYPE_CHECKING:
    from ..commands.train_gold import GoldPlan, GoldTrained


def train(options: TrainSft, run: Run) -> "SftTrained | SftPlan | SftChecked | GoldTrained | GoldPlan":
    """Check, or train. Raises UsageError before anything is written, StoppedEarly with the checkpoints kept."""
    project = None if options.config is None else read_project(options.config)
    if options.check:
        return check(options, run, project)
    if options.dataset_type in ("rl", "midtrain"):
        raise UsageError(HOSTED.format(kind=options.dataset_type))
    for finding in findings_of(project, run):
        if finding.level in ("warning", "ignored"):
            run.progress.note(str(finding))
    found = usable(options, run)
    if options.dataset_type == "distill":
        gold, origins = gold_options(options, run.origins, project, found.rows, os.environ, dotenv())
        run.progress.note(told(gold, origins))
        from .gold import train as train_gold

        return train_gold(gold, replace(run, origins=origins))
    from .sft_run import run_sft

    return run_sft(options, run)


def usable(options: TrainSft, run: Run) -> Lint:
    """What the rows are. Raises UsageError when they cannot be trained on, with the first 20 places."""
    found = lint(Path(options.data), options.dataset_type)
    run.stop.check()
    bad = found.bad_rows["error"]
    if bad and not (options.skip_bad_rows and found.rows):
        places = [str(finding).replace(": error: ", ": ", 1) for finding in found.errors]
        more = [f"... and {bad - len(places):,} more (--check tells all there is to tell)"] if bad > len(places) else []
        head = f"{options.data}: {bad:,} of {found.rows:,} rows cannot be used:"
        last = "Mend them, or leave them out with --skip-bad-rows." if found.rows else "Name a file with rows."
        raise UsageError("\n  ".join([head, *places, *more]) + f"\n{last}")
    if too_few := batch_problem(options, found):
        raise UsageError(f"{options.data}: {too_few}")
    for level, count in found.bad_rows.items():
        if level == "warning":
            kinds = "; ".join(kind for (of, kind), _ in found.kinds.most_common() if of == level)
            run.progress.note(f"{options.data}: {count:,} rows with warnings ({kinds}); --check names them")
    return found


def batch_problem(options: TrainSft, found: Lint) -> str | None:
    """What is wrong where a batch is larger than the data."""
    rows = found.rows - found.bad_rows["error"] if options.skip_bad_rows else found.rows
    rows = min(rows, options.num_samples or rows)
    if options.batch_size <= rows:
        return None
    return f"batch_size {options.batch_size} is larger than the data ({rows:,} rows). Lower it, or add rows."


# ---- --check -------------------------------------------------------------------------------------------------------


def check(options: TrainSft, run: Run, project: Project | None) -> SftChecked:
    """All that there is to say about config.yml and the rows."""
    findings = findings_of(project, run)
    data = Path(options.data)
    try:
        found = lint(data, options.dataset_type)
    except InputError as error:
        found = Lint(data)
        findings.append(Finding(place=str(data), level="error", text=str(error).removeprefix(f"{data}:").strip()))
    about_rows: list[str] = []
    if found.rows:
        about_rows = found.about()
        if too_few := batch_problem(options, found):
            findings.append(Finding(place=place_of("batch_size", run, data), level="error", text=too_few))
    if options.dataset_type == "rl":
        findings += [
            Finding(place=str(data.parent / "rewards.py"), level="error", text=text)
            for text in reward_problems(data.parent / "rewards.py", found.rewards)
        ]
    if options.dataset_type == "distill" and not any(finding.level == "error" for finding in findings):
        try:
            gold_options(options, run.origins, project, found.rows, os.environ, dotenv())
        except UsageError as error:
            findings.append(Finding(place=str(options.config or data), level="error", text=str(error)))

    def count(level: Level) -> int:
        return sum(finding.level == level for finding in findings) + found.bad_rows[level]

    return SftChecked(
        findings=[*findings, *sorted(found.findings, key=lambda finding: line_of(finding.place))],
        rows=found.rows,
        errors=count("error"),
        warnings=count("warning"),
        rnow=count("rnow"),
        about=about_rows,
    )


def findings_of(project: Project | None, run: Run) -> list[Finding]:
    """Those of config.yml, flags that stand in the place of its values taken into account."""
    flags = {name for name, origin in run.origins.items() if origin == flag(name)}
    return not_ours() if project is None else project.findings_beside(flags)


def place_of(option: str, run: Run, otherwise: Path) -> str:
    """Where an option was set: a line of config.yml, a flag, or the file that it does not fit."""
    origin = run.origins.get(option, "default")
    return str(otherwise) if origin == "default" else origin


def reward_problems(path: Path, wanted: set[str]) -> list[str]:
    """What `rnow run` refuses about the reward functions of rows of rl."""
    try:
        tree = ast.parse(path.read_bytes())
    except OSError:
        return ["no such file: dataset_type: rl needs it"]
    except (SyntaxError, ValueError) as error:
        return [f"not Python: {error}"]
    defined: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
            if any(isinstance(each, ast.Name) and each.id == "reward" for each in decorators):
                defined.add(node.name)
    return [f'the rows name the reward "{name}", which is not defined there' for name in sorted(wanted - defined)]
