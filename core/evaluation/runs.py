"""What the folder of a training run tells: where its models are, what it began from, what it cost."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from ..plots.curves import read_events
from ..teachers.locate import PACKAGED
from .results import Training

STEP = re.compile(r"step-(\d+)")
BEGINNING = {"train_gold": "student", "train_sft": "model"}
"""The commands that train, and their option that names the model a run begins from."""


def record_of(folder: Path) -> dict[str, Any] | None:
    """run.json of a training run; None where there is none."""
    found = _object(folder / "run.json")
    return found if isinstance(found.get("options"), dict) and found.get("command") in BEGINNING else None


def run_of(folder: Path) -> Path | None:
    """The run that a folder is, or whose best/, final/ or step-N/ it is."""
    for place in (folder, folder.parent, folder.resolve().parent):
        if record_of(place) is not None:
            return place
    return None


def steps(run: Path) -> list[Path]:
    """step-N/ in the order of N."""
    found = [path for path in run.iterdir() if path.is_dir() and STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def begun_from(run: Path) -> str | None:
    """The model that a run began from: where it is, or else as its user gave it."""
    model = _beginning(run)
    place = None if model is None else _place(run, model)
    return model if place is None else str(place)


def lost_beginning(run: Path) -> str | None:
    """A sentence for the user when the model that a run began from is no longer where it was, so that nobody can tell
    what that was trained on; None when it is there, or a name on the Hub."""
    model = _beginning(run)
    if model is None or model in PACKAGED or _place(run, model) is not None:
        return None
    path = Path(model).expanduser()
    folders = [Path(model).parts[0], _cwd(run) / path.parts[0]] if path.parts else []
    if model.startswith(("/", ".", "~")) or model.count("/") != 1 or any(Path(each).is_dir() for each in folders):
        return f"the run in {run} began from {model}, which is not there: what that was trained on is not known"
    return None


def _beginning(run: Path) -> str | None:
    """The model that a run began from, as its user gave it."""
    record = record_of(run)
    return _option(run, BEGINNING[record["command"]]) if record else None


def _option(run: Path, name: str) -> str | None:
    value = (record_of(run) or {"options": {}})["options"].get(name)
    return value if isinstance(value, str) and value else None


def _cwd(run: Path) -> Path:
    """Where a run was begun; today's folder for a run that does not tell."""
    cwd = (record_of(run) or {}).get("cwd")
    return Path(cwd) if isinstance(cwd, str) else Path()


def _place(run: Path, path: str) -> Path | None:
    """What a run's option names, seen from where the run was begun, else from here; None when it is not there."""
    wanted = Path(path).expanduser()
    return next((each for each in (_cwd(run) / wanted, wanted) if each.exists()), None)


def training(run: Path, model: Path) -> Training:
    """What it cost to make a model of a run: its steps up to that model, and all of the data."""
    try:
        found = read_events(run / "metrics.jsonl")
    except OSError:
        found = []
    events = {event["step"]: event for event in found if event["event"] == "train_step"}
    last = _step_of(model)
    if last is not None:
        events = {step: event for step, event in events.items() if step <= last}
    return Training(
        folder=str(run),
        steps=len(events) if events else None,
        seconds=sum(_number(event.get("seconds")) for event in events.values()) if events else None,
        tokens=int(sum(_number(event.get("tokens")) for event in events.values())) if events else None,
        usd=_sum([_paid(run), *(event.get("spent_usd") for event in list(events.values())[-1:])]),
        signal=_text((record_of(run) or {}).get("signal")),
    )


def _step_of(model: Path) -> int | None:
    """After which step a model was saved; None for the last one."""
    if match := STEP.fullmatch(model.name):
        return int(match[1])
    step = _object(model / "best_metrics.json").get("step")
    return step if isinstance(step, int) else None


def _paid(run: Path) -> float | None:
    """USD for the run's data, from <data>.run.json as generate_teacher_data and run_rollouts write it; None where it
    does not tell."""
    data = _option(run, "data")
    place = None if data is None else _place(run, data + ".run.json")
    if place is None:
        return None
    runs = _object(place).get("runs")
    results = [each.get("result") for each in runs if isinstance(each, dict)] if isinstance(runs, list) else []
    costs = [result.get("cost_usd") for result in results if isinstance(result, dict)]
    return _sum(costs)


def _sum(values: Sequence[Any]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if isinstance(value, int | float)]
    return sum(known) if known else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0.0


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; {} for what is none."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
