"""Whether a model keeps rows apart that are packed into one sequence.

Most architectures tell them apart by their positions, which begin anew with each row. Others take no note of these:
the second row would read the first as its beginning, and nothing would say so.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..teachers.hf_states import out_of_memory
from .student import Student

NEIGHBOURS = ("The heart pumps blood through the body.", "Never count on fair weather in spring, people.")
ROW = "Zebra finches are small birds that live in Australia."
EXACT, ROUNDED, ROUNDED_ALONE = 1e-3, 5e-2, 0.5
"""Most nats that the log-probability of a token may differ by on average: in float32; in shorter numbers behind another
neighbour; and there alone, as a sequence of another length is rounded otherwise. SmolLM2 in bfloat16 differs by 0 and
0.07 where rows are kept apart, by 0.8 and 2.5 where they are not."""


def check_packing(
    student: Student,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
) -> None:
    """Read a row behind one neighbour, behind another, and alone: its tokens must be as probable each time.

    collate: as the trainer's own, without padding: it says where rows begin.   autocast: opens the trainer's context.

    Raises UsageError for a model that cannot be trained on packed rows. Leaves the student as it is.
    """
    first, other, row = (student.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*NEIGHBOURS, ROW))
    length = min(len(first), len(other))
    was_training = student.model.training
    student.model.eval()
    try:
        with torch.no_grad(), autocast():
            behind, behind_other, alone = (
                _log_probs(student.model, collate, device, neighbour, row)
                for neighbour in (first[:length], other[:length], [])
            )
            exact = not torch.is_autocast_enabled(device.type) and all(
                weight.dtype == torch.float32 for weight in student.model.parameters()
            )
    except (ValueError, RuntimeError, TypeError) as error:  # it has no kernel for it, or does not take positions
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        raise _refusal(student, f" ({' '.join(str(error).split())[:200]})") from None
    finally:
        student.model.train(was_training)
    other_neighbour, no_neighbour = (float((behind - each).abs().mean()) for each in (behind_other, alone))
    most, most_alone = (EXACT, EXACT) if exact else (ROUNDED, ROUNDED_ALONE)
    if not (other_neighbour <= most and no_neighbour <= most_alone):  # nor may they be no numbers
        apart = max(other_neighbour, no_neighbour)
        raise _refusal(student, f" (what comes before a row changes its tokens' log-probabilities by {apart:.2g})")


def _log_probs(
    model: Any, collate: Callable[[list[dict[str, Any]]], dict[str, Any]], device: torch.device, first: Any, row: Any
) -> Tensor:
    """(tokens of the row - 1,) of the row's tokens but its first one, behind the tokens `first`."""
    lengths = [len(part) for part in (first, row) if part]
    inputs = collate([{"input_ids": [*first, *row], "seq_lengths": lengths}])
    inputs.pop("labels")
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    logits = model(**inputs, use_cache=False).logits[0, -len(row) : -1]
    said = torch.tensor(row[1:], device=logits.device)[:, None]
    return logits.float().log_softmax(-1).gather(1, said)[:, 0]


def _refusal(student: Student, why: str) -> UsageError:
    return UsageError(
        f"--packing: {student.name} lets packed rows see one another{why}. "
        "Such rows would be trained as one another's beginnings: leave out --packing."
    )
