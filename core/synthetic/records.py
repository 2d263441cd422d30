"""What is planned, drafted and made: slots, drafts, records."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..commands.generate_synthetic import RecordType
from ..teachers import Message

Verify = Literal["none", "expression", "arithmetic", "countdown"]
"""How the answer to a task is checked. expression: the question comes with the arithmetic that solves it.
arithmetic, countdown: the question is made here, so its answer is known."""


@dataclass(frozen=True)
class Slot:
    """A place in the data set, whatever is drafted for it.

    number: from 0.   fields: what its CSV says of it, in this order: task_type and difficulty, domain, or category and
    subcategory.   turns: questions of a dialogue; 1 for the other types.   task: its number among the domain's tasks of
    its type.
    """

    number: int
    type: RecordType
    task: int
    fields: dict[str, str]
    turns: int = 1


@dataclass(frozen=True)
class Passage:
    """A stretch of a document. place: file and number of the passage in it, from 1."""

    place: str
    text: str


@dataclass(frozen=True)
class Problem:
    """A question that was made here, or comes with its solution. expected: what a right answer states.
    numbers, target: of Countdown."""

    question: str
    verify: Verify
    expected: str
    numbers: tuple[int, ...] = ()
    target: int = 0


@dataclass(frozen=True)
class Draft:
    """One try at a slot. attempt: from 0.   attributes: what was drawn for it (topic, persona, style, length, ...).
    examples: questions shown as examples, the domain's own.   passage: that it is about.   problem: made here.
    sampled: drawn by data-designer, as the domain's `nemo` says."""

    slot: Slot
    attempt: int
    attributes: dict[str, str]
    examples: tuple[str, ...] = ()
    passage: Passage | None = None
    problem: Problem | None = None
    sampled: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Rejected:
    """Why a draft is not kept: one lower-case word for counting, and words for people."""

    reason: str
    why: str


@dataclass(frozen=True)
class Record:
    """A finished one. messages: user and assistant in turns, with a system message before them where there is one.
    metadata: everything else, as it stands in train.jsonl."""

    slot: Slot
    messages: list[Message]
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
