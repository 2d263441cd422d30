"""How sure a figure is, and a difference between two models on the same items.

    Items (one metric, all models)  ->  .score(model)                     a figure and its interval
                                        .paired(model, against)           the difference, item by item
                                        .gap(model, baseline, teacher)    the share of the teacher's lead

Sources: Miller, arXiv:2411.00640 (paired and clustered standard errors, power); McNemar 1947; Agresti and Min 2005
(interval of paired shares); Holm 1979; Efron and Tibshirani 1993 (bootstrap); Hesterberg, arXiv:1411.5279 (few items).
All intervals are of 95 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.statistics import wilson

Floats = NDArray[np.float64]

Z, POWER = 1.96, 0.84
"""Quantiles of the normal distribution: 97.5 % for the interval, 80 % for the power. Together Miller's 2.8."""
FEWEST = 6
"""Items that must differ, all in one direction, before the exact test says p < 0.05: 2 / 2^6 = 0.03, 2 / 2^5 = 0.06.
With fewer items or clusters than this the bootstrap finds nothing, either."""
ROUNDING = 1e-12
"""Relative; a standard error below this is what is left when equal differences are subtracted from their mean."""
AT_ONCE = 1_000_000
"""Picks of the bootstrap that are in memory together: 8 bytes each, four times."""


@dataclass(frozen=True)
class Estimate:
    """A model's figure. se, low, high: None where one item alone cannot tell."""

    value: float
    se: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """One model minus another; the fields are those of `results.Difference`."""

    value: float
    se: float
    low: float
    high: float
    p: float
    test: Literal["McNemar", "bootstrap"]
    wins: int
    losses: int
    ties: int
    correlation: float | None
    detectable: float | None
    clusters: int | None


@dataclass(frozen=True)
class Recovered:
    """(S - B) / (T - B) and its interval, or why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str | None = None


class Items:
    """One metric of several models on the same items.

    totals, counts: (models, items), finite; a model's value is sum(totals) / sum(counts). counts: None for 1 each.
    clusters: a name per item, shared by items that are not independent; None for an item on its own.
    higher_is_better: None where neither side is; wins are then the items with more.
    draws, seed: of the bootstrap, which picks items (or whole clusters) of all models together.

    Without clusters and with totals of 0 and 1 alone the items are binary: Wilson's interval for a score, Agresti and
    Min's for a difference, and McNemar's exact test. All else: the bootstrap. Its draws do not depend on the order of
    the models; they do on the order of the items.
    """

    def __init__(
        self,
        totals: ArrayLike,
        counts: ArrayLike | None = None,
        clusters: Sequence[str | None] | None = None,
        *,
        higher_is_better: bool | None = True,
        draws: int = 10_000,
        seed: int | Sequence[int] = 0,
    ) -> None:
        self.totals: Floats = np.asarray(totals, dtype=np.float64)
        self.counts: Floats = np.ones_like(self.totals) if counts is None else np.asarray(counts, dtype=np.float64)
        self.n = self.totals.shape[1]
        self.sign = -1 if higher_is_better is False else 1
        self.draws, self.seed = draws, seed
        self.group = _groups(clusters, self.n)
        self.units = int(self.group.max()) + 1
        """Independent ones: clusters, or items."""
        self.clustered = self.units < self.n
        self.ratio = bool((self.counts != 1).any())
        self.binary = not self.ratio and bool(((self.totals == 0) | (self.totals == 1)).all())
        self.values: Floats = self.totals.sum(axis=1) / self.counts.sum(axis=1)
        # What each item adds to its model's deviation, to first order (Cochran 1977, ratio estimator). With counts
        # of 1 this is just the score minus the mean.
        self.residuals = (self.totals - self.values[:, None] * self.counts) / self.counts.mean(axis=1)[:, None]

    def score(self, model: int) -> Estimate:
        """Wilson's interval for binary items, the bootstrap's for ratios, else value +- t SE."""
        value = float(self.values[model])
        se = self._se(self.residuals[model]) if self.units > 1 else None
        if self.binary and not self.clustered:
            return Estimate(value, se, *wilson(round(self.totals[model].sum()), self.n, Z))
        if se is None:
            return Estimate(value, None, None, None)
        if self.ratio:
            return Estimate(value, se, *_middle(self._spread(value, self.drawn[:, model])))
        half = student(self.units - 1) * se
        return Estimate(value, se, value - half, value + half)

    def paired(self, model: int, against: int) -> Paired | None:
        """model minus against; None with a single item or cluster, which tells nothing of the others.

        Two models with the same score on every item: difference 0, interval [0, 0], p 1. `detectable` is None where
        nothing is known of how differences vary: when all are equal, but for binary items, and with fewer than FEWEST
        items or clusters, unless the test is McNemar's. With so few the interval of all others contains zero.
        """
        if self.units < 2:
            return None
        value = float(self.values[model] - self.values[against])
        se = self._se(self.residuals[model] - self.residuals[against])
        with np.errstate(invalid="ignore", divide="ignore"):  # an item without counts is a tie
            better = self.sign * (self._of_items(model) - self._of_items(against))
        wins, losses = int((better > 0).sum()), int((better < 0).sum())

        detectable: float | None = (student(self.units - 1) + POWER) * se
        if self.binary and not self.clustered:
            test = "McNemar"
            p = mcnemar(wins, losses)
            more, fewer = (wins, losses) if self.sign > 0 else (losses, wins)
            low, high = agresti_min(more, fewer, self.n)
            detectable = (Z + POWER) * math.sqrt((wins + losses) / self.n / self.n)
        else:
            test = "bootstrap"
            spread = self._spread(value, self.drawn[:, model] - self.drawn[:, against])
            low, high = _middle(spread)
            p = self._p(spread)
            if self.units < FEWEST:  # that all of so few agree is no evidence: p is above 0.05
                low, high = min(low, 0.0), max(high, 0.0)
                detectable = None
            elif not self.binary and se <= ROUNDING * float(np.abs(self.values[[model, against]]).sum()):
                detectable = None
        if detectable is not None and self.binary:
            detectable = max(detectable, FEWEST / self.n)
        return Paired(
            value=value,
            se=se,
            low=low,
            high=high,
            p=p,
            test=test,
            wins=wins,
            losses=losses,
            ties=self.n - wins - losses,
            correlation=self._correlation(model, against),
            detectable=detectable,
            clusters=self.units if self.clustered else None,
        )

    def gap(self, model: int, baseline: int, teacher: int) -> Recovered:
        """(S - B) / (T - B): 0 as the baseline, 1 as the teacher; a percentile interval of the bootstrap.

        Draws in which the teacher is no better count as endlessly far in the direction that the model went. They are
        fewer than 2.5 % where the teacher's lead is clear; where they are not, there is no interval.
        """
        lead = self.paired(teacher, baseline)
        if lead is None:
            return Recovered(None, why="a single item cannot tell whether the teacher is better")
        if self.units < FEWEST and lead.test == "bootstrap":
            return Recovered(None, why="too few items")
        if self.sign * lead.value <= 0:
            return Recovered(None, why="the teacher is not better than the baseline")
        if lead.low <= 0 <= lead.high:
            return Recovered(None, why="the teacher's lead may be chance: its interval contains 0")
        value = float((self.values[model] - self.values[baseline]) / (self.values[teacher] - self.values[baseline]))
        went = self.sign * (self.drawn[:, model] - self.drawn[:, baseline])
        leads = self.sign * (self.drawn[:, teacher] - self.drawn[:, baseline])
        shares = np.where(went == 0, 0.0, np.copysign(np.inf, went))
        np.divide(went, leads, out=shares, where=leads > 0)
        low, high = _middle(self._spread(value, shares))
        if not (math.isfinite(low) and math.isfinite(high)):
            return Recovered(None, why="the teacher's lead is too uncertain to be divided by")
        return Recovered(value, low, high)

    @cached_property
    def drawn(self) -> Floats:
        """(draws, models): the value of each model in each draw of the bootstrap."""
        models = len(self.values)
        sums = [np.bincount(self.group, row, self.units) for row in (*self.totals, *self.counts)]
        columns = np.array(sums, dtype=np.float64).T
        # Equal columns are summed once: it is quicker, and two copies of a model then differ by nothing at all. As they
        # are sorted, too, exchanged models get the same draws.
        distinct, where = np.unique(columns, axis=1, return_inverse=True)
        drawn = _resampled(distinct, self.draws, np.random.default_rng(self.seed))[:, where.ravel()]
        # A draw may miss all items that have counts; it then says nothing new.
        values = np.tile(self.values, (self.draws, 1))
        return np.divide(drawn[:, :models], drawn[:, models:], out=values, where=drawn[:, models:] > 0)

    def _of_items(self, model: int) -> Floats:
        """(items,); NaN for an item without counts."""
        return self.totals[model] / self.counts[model]

    def _se(self, residuals: Floats) -> float:
        """sqrt(G / (G - 1) sum_g (sum_{i in g} e_i)^2) / n over G clusters (Miller, with the usual correction for
        few clusters); where every item is its own this is sd(e, ddof=1) / sqrt(n)."""
        sums = np.bincount(self.group, residuals, self.units)
        return math.sqrt(self.units / (self.units - 1) * float(sums @ sums)) / self.n

    def _spread(self, value: float, drawn: Floats) -> Floats:
        """The bootstrap's distribution is too narrow for few items: by sqrt((n - 1) / n), and because it has normal
        tails where Student's are due. So it is widened by both about the value; Hesterberg's expanded percentiles are
        the same idea, but they cannot reach beyond the outermost draw."""
        stretch = student(self.units - 1) / Z * math.sqrt(self.units / (self.units - 1))
        return value + stretch * (drawn - value)

    def _p(self, spread: Floats) -> float:
        """Twice the share of draws on the other side of zero, the observed one counted in (Davison and Hinkley 1997):
        p <= 0.05 just where `_middle` excludes zero. Never less than if the signs of all items were coins."""
        beyond = min(int((spread <= 0).sum()), int((spread >= 0).sum()))
        return max(min(1.0, 2 * (beyond + 1) / (len(spread) + 1)), math.ldexp(2, -min(self.units, 1000)))

    def _correlation(self, model: int, against: int) -> float | None:
        """Pearson's, of what the items add; for counts of 1 of the scores themselves."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if any(np.nanmin(scores) == np.nanmax(scores) for scores in map(self._of_items, (model, against))):
                return None
        a, b = self.residuals[model], self.residuals[against]
        scale = float(np.linalg.norm(a) * np.linalg.norm(b))
        return max(-1.0, min(1.0, float(a @ b) / scale)) if scale else None


def mcnemar(wins: int, losses: int) -> float:
    """p-value of the exact McNemar test (two-sided sign test of the items that differ):

    min(1, 2 sum_{i <= min(w, l)} C(m, i) / 2^m),  m = w + l

    >>> round(mcnemar(5, 1), 5)  # 2 (1 + 6) / 64
    0.21875
    """
    m, k = wins + losses, min(wins, losses)
    # The largest term from logarithms, the others as ratios to it, downwards, until they no longer count.
    largest = math.exp(math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1) - m * math.log(2))
    ratio = total = 1.0
    for i in range(k, 0, -1):
        ratio *= i / (m - i + 1)
        total += ratio
        if ratio < 1e-17:
            break
    return min(1.0, 2 * largest * total)


def agresti_min(more: int, fewer: int, n: int) -> tuple[float, float]:
    """Interval of the difference of two paired shares: Wald's after half an item is added to each of the four cells.

    d = (w - l) / (n + 2) +- 1.96 sqrt(w + l + 1 - (w - l)^2 / (n + 2)) / (n + 2)
    (Agresti and Min 2005, Statistics in Medicine 24:729, "Wald+2"). Wald's own covers 90 % where 5 of 100 items differ.
    Where none differs, [0, 0]: then the models are taken for copies.

    >>> [round(bound, 4) for bound in agresti_min(15, 5, 98)]  # 0.1 +- 1.96 sqrt(21 - 1) / 100
    [0.0123, 0.1877]
    """
    if not more + fewer:
        return 0.0, 0.0
    net = more - fewer
    half = Z * math.sqrt(more + fewer + 1 - net * net / (n + 2))
    return max(-1.0, (net - half) / (n + 2)), min(1.0, (net + half) / (n + 2))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979, step-down), in the order given.

    The i-th smallest of m is multiplied by m - i + 1, and none is less than one before it.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted


def student(df: int) -> float:
    """97.5 % quantile of Student's t, from Wallace's approximation (1959, Annals of Mathematical Statistics 30:1121).

    Off by less than 0.1 % from 8 degrees of freedom on; below it is too large (2: 4 %, 1: 38 %), the safe side.

    >>> round(student(9), 2)
    2.26
    """
    z = Z * (8 * df + 3) / (8 * df + 1)
    return math.sqrt(df * math.expm1(z * z / df))


def _groups(clusters: Sequence[str | None] | None, n: int) -> NDArray[np.intp]:
    """(items,): the number of each item's cluster, in order of appearance."""
    if clusters is None:
        return np.arange(n)
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(i if name is None else name, len(numbers)) for i, name in enumerate(clusters)])


def _resampled(columns: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """(draws, columns): sums of the columns (units, columns) over as many units, picked with replacement."""
    units = len(columns)
    rows, often = np.unique(columns, axis=0, return_counts=True)
    if len(rows) * 8 <= units:
        # Few kinds of units, as with right and wrong: how often each kind comes is multinomial.
        return rng.multinomial(units, often / units, size=draws) @ rows
    sums = np.empty((draws, columns.shape[1]))
    step = max(1, AT_ONCE // units)
    for start in range(0, draws, step):
        here = min(step, draws - start)
        picks = rng.integers(units, size=(here, units)) + np.arange(here)[:, None] * units
        weights = np.bincount(picks.ravel(), minlength=here * units).reshape(here, units)
        sums[start : start + here] = weights.astype(np.float64) @ columns
    return sums


def _middle(drawn: Floats) -> tuple[float, float]:
    """The 95 % in the middle (Efron and Tibshirani 1993, chapter 13): k-th smallest and largest, k = 2.5 %."""
    k = max(1, int((len(drawn) + 1) * 0.025))
    ordered = np.sort(drawn)
    return float(ordered[k - 1]), float(ordered[-k])
