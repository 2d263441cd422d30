"""Which items a report shows: those where a model and the baseline differ most, each way."""

import heapq
import math
import zlib
from dataclasses import dataclass, field

from .comparison import baseline_of
from .results import CLOSENESS, Report, Sample

MOST_EACH_WAY = 20


@dataclass(frozen=True)
class Flip:
    """An item that a model answered better, or worse, than the baseline by the task's main metric."""

    sample: Sample
    metric: str
    before: float
    """The baseline's score."""
    after: float
    """The model's."""


@dataclass
class Way:
    """A model's items that changed for the better, or for the worse.

    of: how many there are; `shown` holds at most `MOST_EACH_WAY` of them.
    """

    model: str
    better: bool
    shown: list[Flip] = field(default_factory=list[Flip])
    of: int = 0


class Flips:
    """Chooses while samples go by: what is kept does not grow with their number.

    Of a task those with the largest change come first, and among equal ones chance decides: the same items in every
    run, for every model, and not merely the task's first. The places are dealt out to the tasks in turn. Closeness has
    no part in it: a reference was read there, and what a model would say is not to be seen. Nor has what has no better
    side.
    """

    def __init__(self, report: Report) -> None:
        self._baseline = baseline_of(report.models).name if report.models else ""
        others = [model for model in report.models if model.name != self._baseline]
        trained = [model.name for model in others if model.role != "teacher"]
        self._models = trained or [model.name for model in others]
        self._metrics = {
            metric.task: metric
            for metric in report.metrics
            if metric.primary and metric.task != CLOSENESS and metric.higher_is_better is not None
        }
        # Of each model, way and task: (size of the change, chance, a number against ties, the item).
        self._kept: dict[tuple[str, bool, str], list[tuple[float, int, int, Flip]]] = {}
        self._count: dict[tuple[str, bool], int] = {}
        self._seen = 0

    def add(self, sample: Sample) -> None:
        """Look at one more item."""
        metric = self._metrics.get(sample.task)
        if metric is None:
            return
        before = sample.scores.get(self._baseline, {}).get(metric.metric, math.nan)
        for model in self._models:
            after = sample.scores.get(model, {}).get(metric.metric, math.nan)
            change = after - before
            if not change or math.isnan(change):
                continue
            better = (change > 0) == metric.higher_is_better
            self._count[model, better] = self._count.get((model, better), 0) + 1
            kept = self._kept.setdefault((model, better, sample.task), [])
            self._seen += 1
            luck = zlib.crc32(f"{sample.task}/{sample.key}".encode("utf-8", "replace"))
            entry = (abs(change), luck, self._seen, Flip(sample, metric.metric, before, after))
            if len(kept) < MOST_EACH_WAY:
                heapq.heappush(kept, entry)
            else:
                heapq.heappushpop(kept, entry)

    def ways(self) -> list[Way]:
        """For each model the items that changed for the better, then those for the worse; in the order of the tasks."""
        return [self._way(model, better) for model in self._models for better in (True, False)]

    def _way(self, model: str, better: bool) -> Way:
        queues = [sorted(self._kept.get((model, better, task), []), reverse=True) for task in self._metrics]
        taken = [0] * len(queues)
        while sum(taken) < MOST_EACH_WAY and any(n < len(queue) for n, queue in zip(taken, queues, strict=True)):
            for place, queue in enumerate(queues):
                if taken[place] < len(queue) and sum(taken) < MOST_EACH_WAY:
                    taken[place] += 1
        shown = [entry[3] for n, queue in zip(taken, queues, strict=True) for entry in queue[:n]]
        return Way(model, better, shown, self._count.get((model, better), 0))
