"""The student's own answers: what on-policy training trains on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ..commands.train_gold import TrainGold
from ..errors import StoppedEarly
from ..teachers.hf_model import Generated, generate_batch
from ..teachers.hf_states import empty_caches, out_of_memory
from ..teachers.protocol import Sampling
from .student import Student


def answer(
    student: Student,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    options: TrainGold,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    aborted: Callable[[], bool] = lambda: False,
) -> list[Generated]:
    """One answer to each prompt (token ids), of at most options.max_new_tokens tokens, drawn with its own seed.

    All prompts go through the model together, and until the last one has its end; fewer at a time when the memory of
    the device does not hold them all. An answer depends on its neighbours by float rounding alone.

    autocast: makes the context of the computation; it is entered here, and must not be around this call: the weights
    that it keeps in bfloat16 would be those of a later training step as well, without their gradient.
    aborted: asked before each token; the answers are then cut where they are.
    Raises StoppedEarly when one prompt alone does not fit into memory.
    """
    temperature = options.temperature if options.do_sample else 0.0
    sampling = Sampling(temperature=temperature, top_p=options.top_p, max_tokens=options.max_new_tokens)
    answers: list[Generated] = []
    rows = len(prompts)
    training = student.model.training
    student.model.eval()
    try:
        while len(answers) < len(prompts):
            here = slice(len(answers), len(answers) + rows)
            try:
                with torch.no_grad(), castable_once(student.network), autocast():
                    answers += generate_batch(
                        student.network,
                        student.tokenizer,
                        [list(prompt) for prompt in prompts[here]],
                        sampling,
                        seeds[here],
                        aborted,
                        ends=student.side.ends,
                    )
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                error.__traceback__ = None  # its frames hold the tensors that did not fit
                empty_caches()
                if rows == 1:
                    raise StoppedEarly(
                        f"no memory for an answer of {options.max_new_tokens} tokens to a prompt of "
                        f"{len(prompts[here][0])}, even alone. Lower --max-new-tokens, or leave out long prompts."
                    ) from None
                rows = max(1, min(rows, len(prompts[here])) // 2)
    finally:
        student.model.train(training)
    return answers


@contextmanager
def castable_once(network: Any) -> Iterator[None]:
    """Inside, autocast keeps the cast of every float32 weight for as long as its context lasts.

    It does so only for weights that require a gradient, and never in inference mode; all others it casts again for
    every token, which makes bfloat16 slower than float32. So frozen weights ask for a gradient that nobody computes.
    """
    frozen = [weight for weight in network.parameters() if not weight.requires_grad and weight.is_floating_point()]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
