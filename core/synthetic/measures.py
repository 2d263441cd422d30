"""How even and how varied a data set is."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise

from ..commands.generate_synthetic import TYPES
from ..data.overlap import words
from .domain import Domain
from .plan import evenness
from .records import Record

FIRST = 10_000
"""Questions that distinct-n is measured on: it falls with their number, so that more would not be comparable."""


class Measures:
    """Counts over records, read once.

    by_type: records of each type.   counts: attribute -> value -> records; task types, difficulties, categories and all
    that was drawn.
    """

    def __init__(self, domain: Domain, records: Iterable[Record]) -> None:
        self._domain = domain
        self.by_type: dict[str, int] = {}
        self.counts: dict[str, Counter[str]] = defaultdict(Counter[str])
        self.passages = 0
        self._pairs: set[tuple[str, str]] = set()
        self._pair_count = self._read = 0
        for record in records:
            self._add(record)

    def _add(self, record: Record) -> None:
        kind = record.slot.type
        self.by_type[kind] = self.by_type.get(kind, 0) + 1
        for name, value in {**record.slot.fields, **record.metadata.get("attributes", {})}.items():
            self.counts[name][value] += 1
        self.passages += "passage" in record.metadata
        self._read += 1
        if self._read <= FIRST:
            said = words(next(str(each["content"]) for each in record.messages if each["role"] == "user"))
            pairs = list(pairwise(said))
            self._pairs.update(pairs)
            self._pair_count += len(pairs)

    @cached_property
    def balance(self) -> dict[str, float]:
        """How near each attribute is to what was to be drawn; 1: exactly (see `plan.evenness`)."""
        found: dict[str, float] = {}
        for name, counts in self.counts.items():
            if name == "subcategory":  # its shares differ from category to category
                continue
            weights = self._weights(name) or dict.fromkeys(counts, 1.0)
            if len(weights) > 1 and counts:
                found[name] = round(evenness(counts, {**dict.fromkeys(counts, 0.0), **weights}), 4)
        return found

    def _weights(self, name: str) -> Mapping[str, float]:
        """What the shares of an attribute's values are to be; empty where all are to be equal."""
        domain = self._domain
        if name == "difficulty":
            return {str(level): weight for level, weight in domain.difficulty.items()}
        kind = {"task_type": "reasoning", "domain": "dialogue", "category": "instruction"}.get(name)
        return {task.name: task.weight for each in TYPES if each == kind for task in domain.tasks(each)}

    @property
    def distinct_2(self) -> float | None:
        """Different word pairs over all, in the first questions (distinct-n: Li et al., arXiv:1510.03055); None without
        any."""
        return len(self._pairs) / self._pair_count if self._pair_count else None
