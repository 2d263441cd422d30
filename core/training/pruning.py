"""Which layers of a model do least, and the model without them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import UsageError

ENDS = 2
"""The first and the last so many layers are removed after all others: they turn tokens into states and back."""
PER_LAYER = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
"""Settings without "layer" in their names that some families give as one value per layer."""


class Influence:
    """The block influence of each layer: 1 - the mean cosine of its input and its output, over tokens.

    A layer that hardly turns the state of any token is hardly missed (ShortGPT, Men et al., arXiv:2403.03853, Eq. 1).
    It is to be measured in float32: in bfloat16 the order of close layers changes.
    """

    def __init__(self, model: Any) -> None:
        """Raises UsageError as `layers_of`."""
        self._layers = layers_of(model)[1]
        self._cosines = [0.0] * len(self._layers)
        self._tokens = 0

    @contextmanager
    def measured(self) -> Iterator["Influence"]:
        """While it holds, every forward pass of the model counts, for all of its places (no padding)."""
        hooks = [
            layer.register_forward_hook(partial(self._see, place), with_kwargs=True)
            for place, layer in enumerate(self._layers)
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def values(self) -> list[float]:
        """One number for each layer, 0 (does nothing) to 2. Raises UsageError when a state is not a finite number."""
        found = [1 - cosines / self._tokens for cosines in self._cosines]
        for place, value in enumerate(found):
            if not math.isfinite(value):
                raise UsageError(
                    f"layer {place} gives states that are not finite numbers: the model's weights are broken."
                )
        return found

    def _see(self, place: int, layer: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        before = inputs[0] if inputs else named["hidden_states"]
        after = output if isinstance(output, Tensor) else output[0]
        cosines = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        self._cosines[place] += float(cosines.cpu().double().sum())
        if place == 0:
            self._tokens += cosines.numel()


def choose(influence: Sequence[float], count: int) -> list[int]:
    """The `count` layers to keep, ascending: the most influential ones, with the first and last ENDS before all others.

    Raises UsageError for more layers than there are.
    """
    layers = len(influence)
    if not 1 <= count <= layers:
        raise UsageError(f"--layers {count}, but the model has {layers}. Give 1 to {layers}.")
    inner = range(ENDS, layers - ENDS)
    ranked = sorted(range(layers), key=lambda place: (place not in inner, influence[place], place))
    return sorted(ranked[layers - count :])


def keep(model: Any, kept: Sequence[int]) -> None:
    """Remove all other layers, in place: renumber the kept ones and shorten what the configuration says of each.

    Raises UsageError as `layers_of`.
    """
    name, layers = layers_of(model)
    config = model.config.get_text_config()
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.ModuleList(layers[place] for place in kept))
    for new, old in enumerate(kept):
        parts: Iterator[Any] = layers[old].modules()
        for module in parts:
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = new  # the cache of a generation is indexed by it
    for key, value in config.to_dict().items():
        per_layer = isinstance(value, list) and len(value) == len(layers)
        if per_layer and ("layer" in key or key in PER_LAYER):
            setattr(config, key, [value[place] for place in kept])
    config.num_hidden_layers = len(kept)


def layers_of(model: Any) -> tuple[str, nn.ModuleList]:
    """Where a model keeps its layers, and they themselves. Raises UsageError where they cannot be told."""
    count = model.config.get_text_config().num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise UsageError(f"{type(model).__name__} has no list of {count} layers that could be shortened.")
    return min(found, key=lambda item: item[0].count("."))  # experts of a layer are a list further inside
