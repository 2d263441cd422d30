"""What an SFT run is going to do, in lines for a person, before the first step."""

import torch

from ..commands.train_sft import TrainSft
from .plan import counted
from .sft_data import SftData
from .sft_trainer import Sizes
from .student import Student


def plan_lines(
    options: TrainSft, student: Student, data: SftData, sizes: Sizes, length: int, processes: int, device: torch.device
) -> list[str]:
    """The plan, a line for each part: its name, padded to a column, and what it will be."""
    lines = [
        ("student", _student(options, student)),
        ("data", _data(data)),
        ("rows", f"at most {length:,} tokens (the longest {data.longest:,}); {_left_out(data)}"),
        ("step", _step(options, sizes, processes, device)),
        ("optimiser", _optimiser(options, sizes)),
        ("validation", _validation(options, data, sizes)),
        ("result", _result(options)),
    ]
    return [f"  {name:<12}{text}" for name, text in lines]


def _student(options: TrainSft, student: Student) -> str:
    share = student.trainable / max(1, student.parameters)
    trained = f"{student.trainable:,} trained ({share:.1%})" if options.lora else "all trained"
    how = ""
    if options.lora:
        kind = "QLoRA (weights in 4 bits)" if student.in_4bit else "LoRA"
        how = f"; {kind}, rank {options.lora_rank}, alpha {options.lora_alpha}, on {', '.join(options.lora_targets)}"
    return f"{student.name}: {student.parameters:,} parameters, {trained}{how}"


def _data(data: SftData) -> str:
    held_out = 0 if data.held_out is None else len(data.held_out)
    share = data.trained_tokens / max(1, data.tokens)
    return (
        f"{data.rows:,} rows to train on, {held_out:,} held out; {data.tokens:,} tokens, {data.trained_tokens:,} of "
        f"them ({share:.0%}) the assistant's and trained"
    )


def _left_out(data: SftData) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in data.counts.items()) or "none left out or cut"


def _step(options: TrainSft, sizes: Sizes, processes: int, device: torch.device) -> str:
    what = "packed sequences" if options.packing else "rows"
    split = f" over {processes} processes" if processes > 1 else ""
    more = f" (--batch-size {options.batch_size}, made even)" if sizes.batch != options.batch_size else ""
    twice = ", activations computed twice" if sizes.checkpointing else ""
    return f"{sizes.batch:,} {what}{more}{split}, {sizes.micro} per forward pass on {device.type}{twice}"


def _optimiser(options: TrainSft, sizes: Sizes) -> str:
    rises = f" after {counted(sizes.warmup, 'step')}" if sizes.warmup else ""
    clip = f"gradients up to {options.grad_clip:g}" if options.grad_clip else "gradients of any length"
    return (
        f"AdamW, {counted(sizes.steps, 'step')} ({sizes.steps / sizes.an_epoch:.3g} epochs of {sizes.an_epoch:,}), "
        f"learning rate {options.learning_rate:g}{rises}, then {options.schedule}, "
        f"weight decay {options.weight_decay:g}, {clip}, seed {options.seed}"
    )


def _validation(options: TrainSft, data: SftData, sizes: Sizes) -> str:
    kept = (
        f"step-N/ every {counted(options.save_step, 'step')}"
        if options.save_step > 0
        else "to go on from, once an epoch"
    )
    if data.held_out is None:
        return f"none, nothing is held out; checkpoint {kept}"
    patience = f", stop after {options.patience} without improvement" if options.patience else ""
    return (
        f"before, every {counted(sizes.eval_every, 'step')} and at the end, on {len(data.held_out):,} held-out rows; "
        f"best by val_loss{patience}; checkpoint {kept}"
    )


def _result(options: TrainSft) -> str:
    whole = "whole models" if options.merge or not options.lora else "adapters"
    gguf = f", gguf/ ({', '.join(options.gguf_types)})" if options.export else ""
    return f"{options.output}: best/ and final/ ({whole}){gguf}"
