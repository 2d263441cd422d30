"""What a step draws, as pure functions of the seed and of how much was drawn before it: nothing of it need be saved."""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class Order:
    """Which samples a step takes: the data in a new order each epoch, without an end.

    The order of an epoch is drawn from (seed, epoch) alone, so a resumed run goes on exactly where it was.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < 1 or batch_size < 1:
            raise ValueError(f"{count} samples in batches of {batch_size}: both must be at least 1")
        self.count, self.batch_size, self.seed = count, batch_size, seed

    def step(self, step: int) -> list[tuple[int, int]]:
        """The `batch_size` samples of a step (from 1): (index of the sample, number of the draw from 0, which no other
        draw of the run has). The last batch of an epoch goes on into the next one."""
        if step < 1:
            raise ValueError(f"step {step}: steps count from 1")
        first = (step - 1) * self.batch_size
        return [(self._sample(draw), draw) for draw in range(first, first + self.batch_size)]

    def _sample(self, draw: int) -> int:
        epoch, place = divmod(draw, self.count)
        return int(permutation(self.count, self.seed, epoch)[place])


@lru_cache(maxsize=2)  # a batch seldom spans more than two epochs
def permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """(count,) the order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def on_policy(seed: int, draw: int, lmbda: float) -> bool:
    """Whether the student answers this draw itself, which it does with probability `lmbda`. A draw that is on-policy
    stays so at every larger lmbda."""
    return _drawn("on-policy", seed, draw) < lmbda * 2**64


def rollout_seed(seed: int, draw: int) -> int:
    """The seed of the student's answer for this draw, below 2**63."""
    return _drawn("rollout", seed, draw) >> 1


def _drawn(purpose: str, seed: int, draw: int) -> int:
    """64 random bits."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed} {draw}".encode()).digest()[:8], "big")
