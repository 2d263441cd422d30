"""What a step draws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.training.order import Order, on_policy, rollout_seed

seeds = st.integers(0, 2**31 - 1)


@given(count=st.integers(1, 30), batch_size=st.integers(1, 12), seed=seeds, steps=st.integers(1, 20))
def test_every_epoch_takes_every_sample_once(count: int, batch_size: int, seed: int, steps: int) -> None:
    order = Order(count, batch_size, seed)
    drawn = [pair for step in range(1, steps + 1) for pair in order.step(step)]
    assert [draw for _, draw in drawn] == list(range(steps * batch_size))
    for first in range(0, len(drawn) - count + 1, count):
        assert sorted(sample for sample, _ in drawn[first : first + count]) == list(range(count))


@given(count=st.integers(1, 30), batch_size=st.integers(1, 12), seed=seeds, step=st.integers(1, 100))
def test_a_step_does_not_depend_on_the_steps_that_were_asked_for_before(
    count: int, batch_size: int, seed: int, step: int
) -> None:
    resumed = Order(count, batch_size, seed).step(step)
    running = Order(count, batch_size, seed)
    for before in range(1, step):
        running.step(before)
    assert running.step(step) == resumed


@given(seed=seeds, steps=st.integers(1, 10))
def test_the_samples_do_not_depend_on_how_they_are_batched(seed: int, steps: int) -> None:
    small, large = Order(7, 2, seed), Order(7, 6, seed)
    assert [pair for step in range(1, 3 * steps + 1) for pair in small.step(step)] == [
        pair for step in range(1, steps + 1) for pair in large.step(step)
    ]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [[sample for sample, _ in Order(50, 50, seed).step(epoch)] for seed in (0, 1) for epoch in (1, 2)]
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(50)) not in orders


@pytest.mark.parametrize("lmbda", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_of_on_policy_draws_is_lmbda(lmbda: float) -> None:
    # 10,000 draws: the standard deviation of the share is at most (.25 / 10,000) ** .5 = .005
    share = sum(on_policy(3, draw, lmbda) for draw in range(10_000)) / 10_000
    assert share == pytest.approx(lmbda, abs=0.02 if 0 < lmbda < 1 else 0)


@given(seed=seeds, draw=st.integers(0, 2**40), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_draw_that_is_on_policy_stays_so_at_a_larger_lmbda(seed: int, draw: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert on_policy(seed, draw, high) >= on_policy(seed, draw, low)


@given(seed=seeds, draw=st.integers(0, 2**40))
def test_every_draw_has_a_rollout_seed_of_its_own(seed: int, draw: int) -> None:
    assert 0 <= rollout_seed(seed, draw) < 2**63
    assert rollout_seed(seed, draw) == rollout_seed(seed, draw)
    assert len({rollout_seed(seed, draw), rollout_seed(seed, draw + 1), rollout_seed(seed + 1, draw)}) == 3


@pytest.mark.parametrize(("count", "batch_size"), [(0, 1), (1, 0)])
def test_nothing_cannot_be_drawn(count: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Order(count, batch_size, 0)


def test_steps_count_from_one() -> None:
    with pytest.raises(ValueError, match="step 0: steps count from 1"):
        Order(3, 1, 0).step(0)
