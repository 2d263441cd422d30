"""What is asked about, before any model says a word: a slot for each record, and for each try at it a draft.

All of it follows from the domain, the seed and a record's number. So more records never change those before them, the
same seed gives the same prompts, and nothing needs to be kept.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from random import Random
from typing import TypeVar

from ..commands.generate_synthetic import TYPES, RecordType
from ..data.keys import work_key
from .domain import Domain, Task
from .problems import make_problem
from .records import Draft, Passage, Slot

T = TypeVar("T")

PASSAGE_TRIES = 3
"""Drafts about one passage before another one is taken: it may be a table of contents."""


class Turns:
    """Who is next, when each kind is to have its share at any time: the chairman assignment problem.

    After n turns kind k has had within 1 - 1/(2K - 2) of n w_k of them, for K kinds with shares w, and no method can
    promise less (Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980). A kind's turn number c,
    from 0, is open from (c + d) / w on and due by (c + 1 - d) / w, with d = 1/(2K - 2); the first one due goes first.

    weights: each more than 0, in any unit. Counted exactly, in whole numbers: every machine finds the same order.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        parts = [Fraction(str(weight)) for weight in weights]  # the decimal that the user wrote
        unit = math.lcm(*(part.denominator for part in parts))
        self._weights = [int(part * unit) for part in parts]
        self._scale = 2 * len(parts) - 2
        self._all = sum(self._weights)
        self._step = [self._scale * weight for weight in self._weights]
        self._open = [self._all] * len(parts)
        self._due = [(self._scale - 1) / weight for weight in self._weights]
        self._had = [0] * len(parts)
        self._turn = 0

    def next(self) -> int:
        """The kind whose turn it is. Of kinds that are due at once, the first."""
        if not self._scale:
            return 0
        self._turn += 1
        turn, due, chosen = self._turn, math.inf, 0
        for kind, step in enumerate(self._step):
            if self._due[kind] < due and step * turn >= self._open[kind]:
                due, chosen = self._due[kind], kind
        had = self._had[chosen] = self._had[chosen] + 1
        self._open[chosen] = (self._scale * had + 1) * self._all
        self._due[chosen] = (self._scale * (had + 1) - 1) / self._weights[chosen]
        return chosen


@dataclass(frozen=True)
class _Kind:
    """Slots that differ in nothing but their number. of: what names their task.   topics: what names the deck that
    their topics come from: the task's, else the one that all tasks share."""

    slot: Slot
    task: Task
    of: str
    topics: str


class Plan:
    """The slots of a data set, and their drafts.

    Slots are even in every beginning of the data set, not only at its end: of the first n, each type has its share,
    each task its share of the type, each difficulty (number of turns, subcategory) its share of the task, give or take
    less than one. What is drawn for them is dealt from shuffled decks, and so just as even.

    Keeps 14 bytes for each slot that it was asked for.
    """

    def __init__(
        self, domain: Domain, seed: int, shares: tuple[float, float, float], passages: Sequence[Passage]
    ) -> None:
        """shares: of TYPES, relative to one another (`Domain.shares`).   passages: what is asked about; () for none."""
        self.domain, self.seed, self.passages = domain, seed, passages
        self._kinds: list[_Kind] = []
        self._next = self._branch(
            "types", [(share, self._type(kind)) for kind, share in zip(TYPES, shares, strict=True) if share]
        )
        self._kind_of = array("H")
        # How many before it are of its task, are asked about at all, and draw from the same topics.
        self._in_task, self._in_asked, self._in_topics = array("I"), array("I"), array("I")
        self._dealt: dict[str, int] = {}

    def slots(self, count: int) -> Iterator[Slot]:
        """The first `count` slots. A slot is the same however many there are."""
        return map(self.slot, range(count))

    def slot(self, number: int) -> Slot:
        """One of them."""
        slot = self._kind(number).slot
        return Slot(number, slot.type, slot.task, slot.fields, slot.turns)

    def draft(self, slot: Slot, attempt: int) -> Draft:
        """A try at a slot, from 0. Each try draws something else; only the passage stays, for PASSAGE_TRIES."""
        number = slot.number
        kind = self._kind(number)
        if kind.task.verify in ("arithmetic", "countdown"):
            random = _random(self.seed, "problem", number, attempt)
            return Draft(slot, attempt, {}, problem=make_problem(kind.task.verify, slot.fields["difficulty"], random))
        domain, place = self.domain, self._in_asked[number]
        decks = {
            # A passage is the topic.
            "topic": (kind.topics, [] if self.passages else kind.task.topics or domain.topics, self._in_topics[number]),
            "persona": ("persona", domain.personas, place),
            "style": ("style", domain.styles, place),
            "length": ("length", domain.lengths, place),
        }
        attributes = {
            name: values[self._drawn(deck, len(values), at, number, attempt)[0]]
            for name, (deck, values, at) in decks.items()
            if values
        }
        passage = None
        if self.passages:
            tried = attempt // PASSAGE_TRIES
            passage = self.passages[self._drawn("passage", len(self.passages), place, number, tried)[0]]
        return Draft(slot, attempt, attributes, self._examples(kind, number, attempt), passage)

    # ---- slots -------------------------------------------------------------------------------------------------

    def _kind(self, number: int) -> _Kind:
        """Of a slot. Plans as far as it."""
        while len(self._kind_of) <= number:
            at = self._next()
            kind = self._kinds[at]
            self._kind_of.append(at)
            # Nothing is drawn for problems that are made here, so they take nothing from the common decks.
            made_here = kind.task.is_made_here
            self._in_task.append(self._deal(kind.of))
            self._in_asked.append(0 if made_here else self._deal("asked"))
            self._in_topics.append(0 if made_here else self._deal(kind.topics))
        return self._kinds[self._kind_of[number]]

    def _deal(self, deck: str) -> int:
        dealt = self._dealt.get(deck, 0)
        self._dealt[deck] = dealt + 1
        return dealt

    def _type(self, type: RecordType) -> Callable[[], int]:
        """What gives the next slot's kind, among those of a type."""
        tasks = enumerate(self.domain.tasks(type))
        return self._branch(type, [(task.weight, self._task(type, at, task)) for at, task in tasks if task.weight])

    def _task(self, type: RecordType, at: int, task: Task) -> Callable[[], int]:
        of = f"{type}/{at}"
        topics = f"{of}/topics" if task.topics else "topics"
        slots: list[tuple[float, Slot]]
        if type == "reasoning":
            levels = self.domain.difficulty.items()
            slots = [(w, Slot(0, type, at, {"task_type": task.name, "difficulty": level})) for level, w in levels]
        elif type == "dialogue":
            slots = [(w, Slot(0, type, at, {"domain": task.name}, turns)) for turns, w in task.turns.items()]
        else:
            names = (task.subcategories or {"": 1.0}).items()
            slots = [(w, Slot(0, type, at, {"category": task.name, "subcategory": name})) for name, w in names]
        return self._branch(of, [(w, self._leaf(_Kind(slot, task, of, topics))) for w, slot in slots if w])

    def _leaf(self, kind: _Kind) -> Callable[[], int]:
        self._kinds.append(kind)
        number = len(self._kinds) - 1
        return lambda: number

    def _branch(self, name: str, weighted: Sequence[tuple[float, Callable[[], int]]]) -> Callable[[], int]:
        # The seed says which comes first where several are due at once.
        weights, below = zip(*_shuffled(weighted, _random(self.seed, "order", name)), strict=True)
        turns = Turns(weights)
        return lambda: below[turns.next()]()

    # ---- drafts ------------------------------------------------------------------------------------------------

    def _drawn(self, deck: str, size: int, place: int, number: int, attempt: int, count: int = 1) -> list[int]:
        """What lies at a place of a deck that is shuffled anew each time that it is used up, and `count` - 1 others of
        it. Each lies in as many hands as any other once the deck is used up. Further attempts at a slot are dealt what
        lies at the deck's other places, each once before any twice."""
        cycle, at = divmod(place, size)
        cards = _deck(self.seed, deck, size, cycle)
        if attempt := attempt % size:
            at += _shuffled(range(1, size), _random(self.seed, "again", deck, number))[attempt - 1]
        steps = [0, *(step + 1 for step in _deck(self.seed, f"{deck}/steps", size - 1, cycle)[: count - 1])]
        return [cards[(at + step) % size] for step in steps]

    def _examples(self, kind: _Kind, number: int, attempt: int) -> tuple[str, ...]:
        """Three of the task's examples; two where it has only three, so that not all are shown each time."""
        given = kind.task.examples
        if not given:
            return ()
        count = min(len(given), 3 if len(given) > 3 else 2)
        drawn = self._drawn(f"{kind.of}/examples", len(given), self._in_task[number], number, attempt, count)
        return tuple(given[at] for at in _shuffled(drawn, _random(self.seed, "examples", number, attempt)))


def _random(*of: str | int) -> Random:
    """A generator of its own for each use: nothing that is drawn elsewhere changes it."""
    return Random(int(work_key(of), 16))


def _shuffled(values: Sequence[T], random: Random) -> list[T]:
    # Python promises that random() stays the same for a seed, and nothing about shuffle().
    return sorted(values, key=lambda _: random.random())


@lru_cache(maxsize=1024)
def _deck(seed: int, name: str, size: int, cycle: int) -> list[int]:
    """Shuffled places 0 to size - 1."""
    return _shuffled(range(size), _random(seed, "deck", name, cycle))


def evenness(counts: Mapping[str, int], weights: Mapping[str, float]) -> float:
    """How near counts are to the shares that weights name: 1 - D(p || w) / ln(1 / min w), with p and w the shares.

    1 for the weights' own shares, 0 when all is of the rarest kind. For equal weights it is the entropy of the counts
    over the largest possible, ln K: Pielou's evenness (Pielou, The measurement of diversity in different types of
    biological collections, 1966). n < K counts cannot be even: at most ln n / ln K then.

    counts: by kind; kinds with no weight make it 0.   weights: in any unit; kinds without one, or with 0, are not
    expected. 1 when nothing was counted, or only one kind is expected.
    """
    every, expected = sum(counts.values()), {kind: weight for kind, weight in weights.items() if weight}
    if any(count and kind not in expected for kind, count in counts.items()):
        return 0.0
    if not every or len(expected) < 2:
        return 1.0
    unit = sum(expected.values())
    divergence = sum(
        count / every * math.log(count / every * unit / expected[kind]) for kind, count in counts.items() if count
    )
    return min(1.0, max(0.0, 1 - divergence / math.log(unit / min(expected.values()))))
