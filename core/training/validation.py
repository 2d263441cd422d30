"""How good the student is by now, on prompts that it is never trained on: on their answers, and on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

from ..commands.train_gold import TrainGold
from ..data.stop import Stop
from ..distillation.fused import fused_cross_entropy
from ..distillation.measures import Measures, Tally, add
from ..errors import StoppedEarly
from .exchange import Exchange, text_bytes
from .samples import Sample
from .sampling import answer
from .signal import Signal, exchange_of
from .student import Student

T = TypeVar("T")
REPEATED = 4
"""Tokens in a row that make a repetition when they come again within an answer."""


def validate(
    student: Student,
    signal: Signal | None,
    held_out: Sequence[Sample],
    options: TrainGold,
    autocast: Callable[[], AbstractContextManager[Any]],
    stop: Stop,
    heard: list[Exchange] | None = None,
) -> Measures:
    """Sums and counts over these samples; those of all processes add up, and `figures` makes means of them.

    On the answers in the data, each name with "val_": kd_loss and sft_loss (what training would pay for them), and all
    of `Signal.measure`; on the teacher's instead, where it writes them (`Signal.answers`). On the student's own answers
    to the same prompts, drawn with the same seeds every time, each with "own_": kd_loss and all of `Signal.measure`,
    unless the teacher writes the answers, and
    length       tokens of an answer, its end of turn included.
    truncated    share of answers that were cut at options.max_new_tokens.
    repetition   share of rows of REPEATED tokens that stood before in the same answer.
    Without a signal (SFT) there is no teacher: val_sft_loss, val_bits_per_byte and these three are left.

    heard: gets the student's own answers.

    The student is back in the mode it was in. Raises KeyboardInterrupt when the user asked twice to stop, StoppedEarly
    when the teacher cannot score an answer.
    """
    training = student.model.training
    student.model.eval()
    try:
        given = [
            exchange_of(signal, sample, sample.answer_ids, sample.answer_ended, own=False)
            for sample in held_out
            if sample.answer_ids
        ]
        reader = signal
        if signal is not None and signal.answers == "own":
            reader = None  # nothing is said of answers that the student did not give; only their cross-entropy is left
        elif signal is not None and signal.answers == "teacher":
            given = [exchange_of(signal, sample, [], False, own=False) for sample in held_out]
        found = _named("val_", _measured(student, reader, given, options, autocast, stop))
        own: list[Exchange] = []
        for samples in _batches(held_out, options.batch_size, lambda sample: len(sample.prompt_ids)):
            written = answer(
                student,
                [sample.prompt_ids for sample in samples],
                [(int(sample.key, 16) + options.seed) % 2**63 for sample in samples],
                options,
                autocast=autocast,
                aborted=lambda: stop.now,
            )
            _check(stop)
            own += [
                exchange_of(signal, sample, text.tokens, text.ended, own=True)
                for sample, text in zip(samples, written, strict=True)
            ]
        found |= _named("own_", _form(own))
        if heard is not None:
            heard += own
        if signal is not None and signal.answers != "teacher":
            found |= _named("own_", _measured(student, signal, own, options, autocast, stop))
        return found
    finally:
        student.model.train(training)


def figures(measures: Mapping[str, Tally], options: TrainGold) -> dict[str, float]:
    """The means, by name, after val_total_loss: what training lowers, lambda_kd kd_loss + lambda_sft sft_loss.

    It is that on the answers in the data; where no held-out sample has one, that on the student's own. NaN when the
    teacher said nothing of any of them.
    """
    means = {name: tally.mean for name, tally in measures.items()}
    total = options.lambda_sft * means.get("val_sft_loss", 0.0)
    if options.lambda_kd:
        total += options.lambda_kd * means.get("val_kd_loss", means.get("own_kd_loss", math.nan))
    return {"val_total_loss": total, **means} if means else {}


def sample_lines(student: Student, exchanges: Sequence[Exchange]) -> list[dict[str, Any]]:
    """Prompts and answers as texts, for people: what the user said last, and what came of it."""
    lines: list[dict[str, Any]] = []
    for exchange in exchanges:
        ids = exchange.completion_ids[:-1] if exchange.ended else exchange.completion_ids
        lines.append(
            {
                "place": exchange.sample.place,
                "prompt": exchange.sample.messages[-1].get("content") if exchange.sample.messages else "",
                "answer": student.side.token_bytes.of(ids).decode(errors="replace"),
                "on_policy": exchange.on_policy,
                "ended": exchange.ended,
                "tokens": len(exchange.completion_ids),
            }
        )
    return lines


def _measured(
    student: Student,
    signal: Signal | None,
    exchanges: Sequence[Exchange],
    options: TrainGold,
    autocast: Callable[[], AbstractContextManager[Any]],
    stop: Stop,
) -> Measures:
    """Losses and measures on answers. The teacher's scores of a few are held at a time; of a server, which tells less
    of each and takes its time, of more."""
    found: Measures = {}
    local = max(options.micro_batch_size, options.teacher_batch_size)
    for scored in _batches(exchanges, local if options.is_local else 4 * options.teacher_concurrency, _length):
        if signal is not None:
            scored = signal.scored(scored, measuring=True)
        for batch in _batches(scored, options.micro_batch_size, _length):
            _check(stop)
            prompts = [exchange.sample.prompt_ids for exchange in batch]
            with torch.no_grad(), autocast():
                hidden = student.hidden(prompts, [exchange.completion_ids for exchange in batch])
            _check_finite(hidden, batch)
            with torch.no_grad():
                if signal is not None:
                    measured = signal.measure(hidden, student.head, batch)
                    if "kd_loss" not in measured:
                        terms = signal.loss(hidden, student.head, batch)
                        measured["kd_loss"] = Tally(terms.total.item(), terms.tokens)
                    found = add(found, measured)
                if options.lambda_sft and not batch[0].on_policy:
                    ids = [place for exchange in batch for place in exchange.completion_ids]
                    terms = fused_cross_entropy(hidden, student.head, torch.tensor(ids, device=hidden.device))
                    found = add(found, {"sft_loss": Tally(terms.total.item(), terms.tokens)})
                    if signal is None:
                        size = sum(text_bytes(student.side, exchange) for exchange in batch)
                        bits = Tally(terms.total.item() / math.log(2.0), size)
                        found = add(found, {"bits_per_byte": bits})
    return found


def _form(own: Sequence[Exchange]) -> Measures:
    """What the student's own answers look like."""
    rows = repeated = 0
    for exchange in own:
        ids = exchange.completion_ids[:-1] if exchange.ended else exchange.completion_ids
        found = [tuple(ids[start : start + REPEATED]) for start in range(len(ids) - REPEATED + 1)]
        rows, repeated = rows + len(found), repeated + len(found) - len(set(found))
    return {
        "length": Tally(sum(len(exchange.completion_ids) for exchange in own), len(own)),
        "truncated": Tally(sum(not exchange.ended for exchange in own), len(own)),
        "repetition": Tally(repeated, rows),
    }


def _batches(items: Sequence[T], size: int, length: Callable[[T], int]) -> Iterator[list[T]]:
    """At most `size` at a time, those of like length together."""
    ordered = sorted(items, key=length)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _length(exchange: Exchange) -> int:
    return len(exchange.sample.prompt_ids) + len(exchange.completion_ids)


def _named(prefix: str, measures: Measures) -> Measures:
    return {prefix + name: tally for name, tally in measures.items()}


def _check_finite(hidden: torch.Tensor, batch: Sequence[Exchange]) -> None:
    """hidden: (N, D), the rows of the batch's answers. Raises StoppedEarly, which names those that are not finite."""
    rows = hidden.isfinite().all(-1).split([len(exchange.completion_ids) for exchange in batch])
    broken = [exchange.sample.place for exchange, finite in zip(batch, rows, strict=True) if not finite.all()]
    if broken:
        raise StoppedEarly(
            f"what the student computes for the held-out {', '.join(broken)} is not finite. Begin anew in another "
            "--output with a lower --learning-rate or --student-dtype float32; earlier checkpoints are kept."
        )


def _check(stop: Stop) -> None:
    if stop.now:
        raise KeyboardInterrupt
