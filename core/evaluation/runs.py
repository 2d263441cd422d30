"""What the folder of a training run tells: where its models are, what it began from, what it cost."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from ..data.jsonlines import read_lines
from .results import Training

STEP = re.compile(r"step-(\d+)")


def record_of(folder: Path) -> dict[str, Any] | None:
    """run.json of a training run; None where there is none."""
    found = _object(folder / "run.json")
    return found if isinstance(found.get("options"), dict) and found.get("command") == "train_gold" else None


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
    """The model that a run began from, as its user gave it."""
    student = (record_of(run) or {"options": {}})["options"].get("student")
    return student if isinstance(student, str) else None


def training(run: Path, model: Path) -> Training:
    """What it cost to make a model of a run: its steps up to that model, and all of the data."""
    events = {event["step"]: event for event in _events(run) if event.get("event") == "train_step"}
    last = _step_of(model)
    if last is not None:
        events = {step: event for step, event in events.items() if step <= last}
    return Training(
        folder=str(run),
        steps=len(events) if events else None,
        seconds=sum(_number(event.get("seconds")) for event in events.values()) if events else None,
        tokens=int(sum(_number(event.get("tokens")) for event in events.values())) if events else None,
        usd=_paid(run),
    )


def _step_of(model: Path) -> int | None:
    """After which step a model was saved; None for the last one."""
    if match := STEP.fullmatch(model.name):
        return int(match[1])
    step = _object(model / "best_metrics.json").get("step")
    return step if isinstance(step, int) else None


def _events(run: Path) -> Iterator[dict[str, Any]]:
    try:
        for _, line in read_lines(run / "metrics.jsonl"):
            try:
                event = orjson.loads(line)
            except orjson.JSONDecodeError:  # a run that is at work, or was killed
                continue
            if isinstance(event, dict) and isinstance(event.get("step"), int):
                yield event
    except OSError:
        return


def _paid(run: Path) -> float | None:
    """USD for the run's data, from <data>.run.json as generate_teacher_data and run_rollouts write it; None where it
    does not tell."""
    data = (record_of(run) or {"options": {}})["options"].get("data")
    if not isinstance(data, str):
        return None
    runs = _object(Path(data + ".run.json").expanduser()).get("runs")
    results = [each.get("result") for each in runs if isinstance(each, dict)] if isinstance(runs, list) else []
    costs = [result.get("cost_usd") for result in results if isinstance(result, dict)]
    known = [cost for cost in costs if isinstance(cost, int | float)]
    return sum(known) if known else None


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0.0


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; {} for what is none."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
