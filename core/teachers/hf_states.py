"""What a Hugging Face model's output head reads, and that head: for teachers and for the student in training."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..distillation.output_head import OutputHead
from ..errors import UsageError

NOT_FINITE = "Load it in bfloat16 or float32 (--dtype); if they stay so, its weights are damaged."


def states_at_head(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(what the head reads (B, L, D), the logits of each row's last place (B, 1, V)). ids, mask: (B, L).

    With gradient, where the caller has not switched it off.

    The states are taken at the head's door, so that whatever an architecture does before it (the final norm, a
    projection, a scale) is in them, and only one place goes through.
    """
    seen: list[Tensor] = []

    def at_the_door(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0])
        return (args[0][:, -1:], *args[1:])

    door = model.get_output_embeddings().register_forward_pre_hook(at_the_door)
    try:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        door.remove()
    return seen[0], logits


def completion_states(model: Any, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
    """(T, D) for each (prompt, completion): what the head reads where the completion's T tokens are predicted.

    With gradient, where the caller has not switched it off. Prompts and completions have a token at least. Padding is
    on the right, and a text's own last token: no position sees what follows it, so neither the mask nor the positions
    of a text depend on its neighbours.
    """
    whole = [[*prompt, *completion][:-1] for prompt, completion in texts]
    longest = max(map(len, whole))
    ids = torch.tensor([text + text[-1:] * (longest - len(text)) for text in whole], device=model.device)
    lengths = torch.tensor([len(text) for text in whole], device=ids.device)
    mask = (torch.arange(longest, device=ids.device) < lengths[:, None]).long()
    states, _ = states_at_head(model, ids, mask)
    return [states[row, len(prompt) - 1 : len(whole[row])] for row, (prompt, _) in enumerate(texts)]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it says so: CUDA has a type for it, Apple's MPS and the CPU's allocator only words."""
    words = ("MPS backend out of memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(each in str(error) for each in words)


def empty_caches() -> None:
    """Give back to the device what torch holds of its memory and does not use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


@torch.no_grad()
def head_of(model: Any, name: str) -> OutputHead:
    """The model's output head, sharing its weights, proved on the model's own logits of a few tokens.

    The scale is measured (one number that maps W h + b to the logits), because configurations call it by many names;
    the softcap is the configuration's. Raises UsageError when that does not give the model's logits, and as
    `OutputHead.from_model` does.
    """
    declared = OutputHead.from_model(model)
    if declared.weight.is_meta:
        raise UsageError(f"{name}: its output layer is not in memory. Load it without offloading that layer.")
    ids = torch.arange(1, 9, device=model.device)[None] % declared.width
    states, logits = states_at_head(model, ids, torch.ones_like(ids))
    found = logits[0, -1].cpu().double()  # (V,)
    raw = replace(declared, scale=1.0, softcap=None).logits(states[0, -1:])[0].cpu().double()
    if found.shape != raw.shape:
        raise UsageError(f"{name} has {found.shape[0]} logits and an output layer of {raw.shape[0]} rows.")
    if not found.isfinite().all():
        raise UsageError(f"{name} gives logits that are not finite. {NOT_FINITE}")
    wanted, steep, softcap = found, torch.ones_like(found, dtype=torch.bool), declared.softcap
    if softcap:
        steep = found.abs() < 0.9 * softcap  # nearer to the cap its inverse is all rounding
        wanted = (found / softcap).clamp(-0.9, 0.9).atanh() * softcap
    scale = ((wanted * raw)[steep].sum() / (raw * raw)[steep].sum()).item()
    if abs(scale / declared.scale - 1) < 1e-3:
        scale = declared.scale  # the configuration says it exactly
    head = replace(declared, scale=scale)
    wrong = (head.logits(states[0, -1:])[0].cpu() - found).abs().max().item()
    tolerance = (1e-4 if head.weight.dtype == torch.float32 else 2e-2) * max(1.0, found.abs().max().item())
    if not wrong <= tolerance:
        raise UsageError(
            f"{name}: its output layer does not give its logits (they differ by {wrong:.3g}); architecture "
            f"{type(model).__name__} does something after it that is not known here. Take another model."
        )
    return head
