"""Answers that were paid for, kept in a file in the order in which they came, whatever becomes of them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..data.jsonlines import FOREIGN, Journal, Row, sound_length
from ..errors import InputError
from .protocol import Completion, Usage


@dataclass(frozen=True)
class Paid:
    """One answer. key: of the request, 32 hex digits (`data.keys.work_key`).   teacher: the model's name.
    cost_usd: None where it is unknown.   place: which piece of work it belongs to, from 0; None where that has no
    number.   verdict: what was made of it when it came, where that is not to be judged again."""

    key: str
    teacher: str
    completion: Completion
    cost_usd: float | None
    place: int | None = None
    verdict: str | None = None


class AnswerBook:
    """An append-only file of answers, read once when it is opened: `seen` gets all that are there, in their order.

    Raises UsageError when the file is not ours, cannot be written, or another run has it.
    """

    def __init__(self, path: Path, seen: Callable[[Paid], None]) -> None:
        self.path = path
        self._journal = Journal(path, lambda number, row: seen(paid_of(path, number, row)), "--output-dir")

    def add(self, paid: Paid) -> None:
        """Keep an answer. Raises StoppedEarly when the disk is full."""
        said = paid.completion
        row: Row = {
            "id": paid.key,
            "teacher": paid.teacher,
            "text": said.text,
            "finish_reason": said.finish_reason,
            "reasoning": said.reasoning,
            "refusal": said.refusal,
            "usage": asdict(said.usage),
            "cost": paid.cost_usd,
            "place": paid.place,
            "verdict": paid.verdict,
        }
        self._journal.append(row)

    def sync(self) -> None:
        """Bring what was added to the disk. Raises StoppedEarly when the disk fails."""
        self._journal.sync()

    def close(self) -> None:
        """Sync and let go of the file; an empty one is removed."""
        self._journal.close()


def paid_of(path: Path, number: int, row: Row) -> Paid:
    """A row of the file as an answer. Raises InputError for a row that is not ours."""
    texts = [row.get(name) for name in ("id", "teacher", "text", "finish_reason", "reasoning", "refusal")]
    usage, cost, place, verdict = (row.get(name) for name in ("usage", "cost", "place", "verdict"))
    sound = (
        all(isinstance(text, str) for text in texts)
        and isinstance(usage, dict)
        and set(usage) == {"prompt_tokens", "completion_tokens", "reasoning_tokens"}
        and all(isinstance(count, int) for count in usage.values())
        and (cost is None or (isinstance(cost, int | float) and math.isfinite(cost)))
        and (place is None or isinstance(place, int))
        and (verdict is None or isinstance(verdict, str))
    )
    if not sound or not isinstance(usage, dict):
        raise InputError(path, number, f"not an answer of ours. {FOREIGN}")
    key, teacher, text, finish_reason, reasoning, refusal = map(str, texts)
    said = Completion(text, finish_reason, reasoning, usage=Usage(**usage), refusal=refusal)
    return Paid(key, teacher, said, cost, place, verdict)


def read_answers(path: Path, seen: Callable[[Paid], None]) -> None:
    """Look at a file of answers and touch nothing, for a dry run. Raises UsageError when a run could not use it."""
    if path.is_file():
        sound_length(path, lambda number, row: seen(paid_of(path, number, row)))
