"""Intervals, against pairs worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.statistics import wilson


def test_the_interval_of_8_in_10() -> None:
    # z^2 = 3.8416; centre = (0.8 + 0.19208) / 1.38416 = 0.71673
    # half = 1.96 / 1.38416 * sqrt(0.016 + 0.009604) = 0.22658
    assert wilson(8, 10) == pytest.approx((0.71673 - 0.22658, 0.71673 + 0.22658), abs=1e-4)


@given(trials=st.integers(0, 10_000), share=st.floats(0, 1))
def test_the_rate_lies_within_and_more_trials_narrow_it(trials: int, share: float) -> None:
    successes = round(trials * share)
    low, high = wilson(successes, trials)
    assert 0 <= low <= high <= 1
    if trials:
        assert low <= successes / trials <= high
        wider = wilson(successes, trials)
        narrower = wilson(4 * successes, 4 * trials)
        assert narrower[1] - narrower[0] < wider[1] - wider[0]


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_successes_and_failures_have_mirrored_intervals(pair: tuple[int, int]) -> None:
    k, n = pair
    low, high = wilson(k, n)
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)
