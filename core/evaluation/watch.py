"""A look at every forward pass of a model that lm-eval is asking."""

from typing import Any

from ..data.stop import Stop


class Stopped(Exception):
    """The user asked to stop, between two forward passes."""


class Watch:
    """Before a forward pass: whether the user asked to stop. After it: whether the logits are NaN.

    A scored text shows NaN in its log-likelihood. An answer does not: the argmax of NaN is a token like any other.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._active = self._looking = self._reporting = False
        self._bad: Any = None
        """(B,) booleans, of the batch that is being written or reported."""
        self._row = 0

    def attach(self, network: Any) -> list[Any]:
        """Hooks on the network itself, also where PEFT has wrapped it."""
        inner = network.get_base_model() if hasattr(network, "get_base_model") else network
        return [inner.register_forward_pre_hook(self._before), inner.register_forward_hook(self._after)]

    def begin(self, *, answers: bool) -> None:
        """A call of the model begins. answers: it writes, so look for NaN."""
        self._active, self._looking, self._reporting, self._bad, self._row = True, answers, False, None, 0

    def end(self) -> None:
        self._active, self._looking, self._bad = False, False, None

    def check(self) -> None:
        """Raises Stopped."""
        if self._stop.requested:
            raise Stopped

    def next_is_bad(self) -> bool:
        """For the rows of a batch, one after another as they are reported."""
        self._reporting, row = True, self._row
        self._row += 1
        return self._bad is not None and row < len(self._bad) and bool(self._bad[row])

    def _before(self, *_: Any) -> None:
        if self._active:
            self.check()

    def _after(self, module: Any, inputs: Any, output: Any) -> None:
        if not self._looking:
            return
        bad = output.logits[:, -1].isnan().any(-1)
        if self._reporting or self._bad is None or self._bad.shape != bad.shape:  # the next batch has begun
            self._bad, self._row, self._reporting = bad, 0, False
        else:
            self._bad |= bad
