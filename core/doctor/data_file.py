"""What a file or folder of the user's holds, told by the readers that the other commands use."""

import os
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..commands.doctor import DataSeen, Diagnosis
from ..data.prompts import PROMPT_KEYS, SUFFIXES, BadRow, Prompt, PromptOptions, check_file, open_records, prompts_of
from ..data.rollouts import NotARollout, read_rollout, rollout_names
from ..data.run import Run
from ..data.sft_rows import lint
from ..data.text import one_line
from ..errors import DistillError, InputError, UsageError
from ..teachers.money import message_bytes

NAMED = 5
"""So many problems are named."""
OF_THE_HUB = 1000
"""Rows of a data set on the Hub that are read."""
MODELS = (".gguf", ".safetensors", ".bin", ".pt", ".pth")


def look_at(source: str, run: Run) -> Diagnosis:
    """Say what it is. Raises UsageError for what no command can read, with the reason."""
    if source == "-":
        raise UsageError("--data -: name a file; standard input is read once, and then it is gone.")
    if source.startswith("hf:"):
        return _diagnosis(_rows(source, run, OF_THE_HUB))
    path = Path(source)
    if os.path.isdir(path):
        return _diagnosis(_folder(path, run))
    if path.suffix == ".json" and os.path.isfile(path) and (seen := _one_rollout(path)) is not None:
        return _diagnosis(seen)
    _check(path)
    return _diagnosis(_rows(source, run, None))


def _diagnosis(seen: DataSeen) -> Diagnosis:
    return Diagnosis(status="some_failed" if seen.bad else "done", data=seen)


def _check(path: Path) -> None:
    """Raises InputError for what holds no rows, and says what it is where that can be told."""
    suffix = path.suffix.lower()
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(path, None, "is no file. Save what it gives into one.")
    if os.path.isfile(path) and suffix in (".yml", ".yaml"):
        raise InputError(
            path,
            None,
            f"is settings, no data. python scripts/train_sft.py --config {path} --check looks at a project's.",
        )
    if os.path.isfile(path) and suffix in MODELS:
        raise InputError(path, None, "is a model's weights, no data. python scripts/doctor.py --teacher tests a model.")
    if suffix in SUFFIXES and suffix != ".parquet" and os.path.isfile(path) and _is_binary(path):
        raise InputError(path, None, "is binary: it holds zero bytes, which no text has. Save it as text.")
    check_file(path)


def _is_binary(path: Path) -> bool:
    """Whether zero bytes stand in it; not so where about half of them are zero, which is English in UTF-16."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:  # check_file says so
        return False
    zeros = head.count(b"\0")
    return zeros > 0 and not 0.3 < zeros / len(head) < 0.6


# ---- rows ----------------------------------------------------------------------------------------------------------


def _rows(source: str, run: Run, most: int | None) -> DataSeen:
    """Prompts, and rows with answers. Raises UsageError when none can be used."""
    prompts = answered = calling = size = answer_size = 0
    bad: list[str] = []
    bad_count = 0
    key = _prompt_key(source)
    for row, record in islice(_read(source, key), most):
        run.stop.check()
        if isinstance(row, BadRow):
            bad_count += 1
            if len(bad) < NAMED:
                bad.append(one_line(str(row), 300))
            continue
        prompts += 1
        size += message_bytes(row.messages)
        answered += bool(row.answer)
        answer_size += message_bytes(row.answer)
        calling += _calls(record)
    if not prompts:
        if bad:
            raise UsageError("\n  ".join([f"{source}: none of {bad_count:,} rows can be used:", *bad]))
        raise InputError(source, None, "holds no rows (only blank lines).")
    kind = "rows" if answered == prompts else "prompts and rows" if answered else "prompts"
    notes = [f"only the first {most:,} rows were read"] if prompts + bad_count == most else []
    if key != "prompt":
        notes.append(f'the prompts are under "{key}"; the commands take them with --prompt-key {key}')
    if answered and Path(source).suffix in (".jsonl", ".ndjson") and most is None:
        notes += _of_training(Path(source), bad_count, prompts + bad_count)
    return DataSeen(
        path=source,
        kind=kind,
        count=prompts,
        with_answers=answered,
        with_tool_calls=calling,
        bad=bad_count,
        problems=bad,
        notes=notes,
        prompt_tokens_estimate=size // 4,
        answer_tokens_estimate=answer_size // 4,
        next=_next(shlex.quote(source), kind, calling, "" if key == "prompt" else f" --prompt-key {key}"),
    )


def _prompt_key(source: str) -> str:
    """The column or key that holds the prompts, told from the first row that is an object."""
    for _, record in islice(_read(source, "prompt"), 20):
        if isinstance(record, dict):
            if any(record.get(name) for name in ("prompt", "messages", "conversations", "instruction")):
                break
            return next((name for name in PROMPT_KEYS if isinstance(record.get(name), str)), "prompt")
    return "prompt"


def _read(source: str, key: str) -> Iterator[tuple[Prompt | BadRow, Any]]:
    with open_records(source) as records:
        rows = prompts_of(records(), PromptOptions(prompt_key=key))
        while True:
            try:
                row = next(rows, None)
            except (DistillError, KeyboardInterrupt):
                raise
            except Exception as error:  # the Hub's readers raise whatever they meet; a file of ours is our own mistake
                if not source.startswith("hf:"):
                    raise
                raise UsageError(f"{source} cannot be read: {one_line(str(error), 200)}") from None
            if row is None:
                return
            yield row


def _calls(record: Any) -> bool:
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list):
        return False
    return any(isinstance(each, dict) and bool(each.get("tool_calls")) for each in messages)


def _of_training(path: Path, known: int, rows: int) -> list[str]:
    """What train_sft would object to beyond what was said."""
    found = lint(path)
    notes: list[str] = []
    errors = [finding for finding in found.findings if finding.level == "error"]
    if found.bad_rows["error"] > known:
        first = "; ".join(one_line(f"{finding.place}: {finding.text}", 200) for finding in errors[:NAMED])
        notes.append(f"train_sft refuses {found.bad_rows['error']:,} of {rows:,}: {first}")
    if found.bad_rows["warning"]:
        notes.append(f"warnings about {found.bad_rows['warning']:,} of {rows:,}, which train_sft.py --check lists")
    if found.duplicates:
        notes.append(f"{found.duplicates:,} of {rows:,} stood before, byte for byte")
    return notes


def _next(name: str, kind: str, calling: int, key: str) -> dict[str, str]:
    """The command that comes next on each road. key: the option that says where the prompts are."""
    gold = f"python scripts/train_gold.py --data {name}{key} --output runs/gold --dry-run"
    if kind == "rows":
        check = f"python scripts/check_data.py {name}{key}"
        return {"off-policy": check, **({"rollout-distill": check} if calling else {}), "on-policy": gold}
    return {
        "off-policy": f"python scripts/generate_teacher_data.py --input {name}{key} --dry-run",
        "rollout-distill": f"python scripts/run_rollouts.py --input {name}{key} --dry-run",
        "on-policy": gold,
    }


# ---- rollouts ------------------------------------------------------------------------------------------------------


def _folder(path: Path, run: Run) -> DataSeen:
    """Rollouts. Raises UsageError for a folder that holds none, and says what it is where that can be told."""
    names = rollout_names(path)
    good = calling = answers = 0
    size = 0
    why_not: list[str] = []
    unread = 0
    failures: Counter[str] = Counter()
    for name in names:
        run.stop.check()
        try:
            rollout = read_rollout(Path(name))
        except NotARollout as error:
            unread += 1
            if len(why_not) < NAMED:
                why_not.append(one_line(f"{name}: {error}", 300))
            continue
        good += 1
        size += rollout.size
        calling += _calls({"messages": rollout.conversation})
        answers += rollout.failure is None
        failures.update([rollout.failure] if rollout.failure else [])
    if not good:
        raise UsageError(_no_rollouts(path, len(names)))
    notes = [f"{answers:,} succeeded" + (f"; {_counted(failures)}" if failures else "")]
    return DataSeen(
        path=str(path),
        kind="rollouts",
        count=good,
        with_answers=answers,
        with_tool_calls=calling,
        bad=unread,
        problems=why_not,
        notes=notes,
        prompt_tokens_estimate=size // 4,
        answer_tokens_estimate=0,
        next={"rollout-distill": _conversion(path)},
    )


def _one_rollout(path: Path) -> DataSeen | None:
    """A .json file that is a rollout; None for any other."""
    try:
        rollout = read_rollout(path)
    except NotARollout:
        return None
    return DataSeen(
        path=str(path),
        kind="rollouts",
        count=1,
        with_answers=int(rollout.failure is None),
        with_tool_calls=int(_calls({"messages": rollout.conversation})),
        bad=0,
        problems=[],
        notes=["it succeeded" if rollout.failure is None else f"it does not count as a success: {rollout.failure}"],
        prompt_tokens_estimate=rollout.size // 4,
        answer_tokens_estimate=0,
        next={"rollout-distill": _conversion(path.parent)},
    )


def _conversion(folder: Path) -> str:
    """Only the rollouts of `rollouts` become train.jsonl unasked: another folder may be an evaluation's."""
    rows = "train.jsonl" if folder.name == "rollouts" else f"{folder.name}.jsonl"
    return f"python scripts/convert_rollouts.py -d {shlex.quote(str(folder))} -o {shlex.quote(rows)}"


def _counted(failures: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in failures.most_common())


def _no_rollouts(path: Path, files: int) -> str:
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return f"{path} is a model's folder, no data. python scripts/doctor.py --teacher {path} tests it."
    if (path / "run.json").is_file():
        return f"{path} is the folder of a run, no data. python scripts/show.py {path} shows it."
    inside = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
    names = ", ".join(one_line(name, 40) for name in inside[:6]) or "nothing"
    what = f"none of its {files:,} .json files is one" if files else "it holds no .json files"
    return f"{path} is a folder without rollouts: {what}. In it: {names}. Name a file in it."
