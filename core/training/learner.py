"""One optimiser step, in the order in which it happens: answer, score, learn."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ..commands.train_gold import TrainGold
from ..distillation.fused import fused_cross_entropy
from ..errors import StoppedEarly
from ..teachers.hf_states import empty_caches, out_of_memory
from . import sampling
from .exchange import Exchange
from .order import on_policy, rollout_seed
from .samples import Sample
from .signal import Signal, exchange_of
from .stopwatch import Stopwatch
from .student import Student
from .world import World

Draw = tuple[Sample, int]
"""A sample, and the number of its turn in the endless sequence of samples."""


@dataclass(frozen=True)
class Learnt:
    """What one step did, over all processes.

    loss: lambda_kd kd_loss + lambda_sft sft_loss. kd_loss: nats per token (across tokenizers: per group).
    sft_loss: nats per token of the answers in the data; None where they are not trained on.
    tokens: of the answers that were trained on.   own: how many of them the student gave.
    own_tokens, truncated: length of its own answers together, and how many were cut off.
    """

    loss: float
    kd_loss: float
    sft_loss: float | None
    grad_norm: float
    samples: int
    tokens: int
    own: int
    own_tokens: int
    truncated: int
    learning_rate: float


class Learner:
    """The student and all that changes with it.

    signal: None when only the answers in the data are learnt (SFT).   note: tells the user.
    skipped: samples that a step had to leave out, by reason.
    """

    def __init__(
        self,
        options: TrainGold,
        world: World,
        student: Student,
        signal: Signal | None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.options, self.world, self.student, self.signal = options, world, student, signal
        self.note = note
        self.watch = Stopwatch(world.device)
        self.parameters = student.trained_parameters()
        self.optimizer = AdamW(
            self.parameters, lr=options.peak_learning_rate, betas=(0.9, 0.95), weight_decay=options.weight_decay
        )
        self.schedule = LambdaLR(self.optimizer, learning_rate_of(options))
        self.micro_batch_size = options.micro_batch_size
        self.skipped: dict[str, int] = {}
        self._told: set[str] = set()

    # ---- answer ------------------------------------------------------------------------------------------------

    def answer(self, draws: Sequence[Draw], aborted: Callable[[], bool] = lambda: False) -> list[Exchange]:
        """What each sample is trained on: an answer of the student's own, or the one in the data.

        All of the student's answers are written in one batch.
        """
        own = [(sample, draw) for sample, draw in draws if self.answers_itself(sample, draw)]
        written: list[Any] = []
        if own:
            with self.watch("generate"):
                prompts = [sample.prompt_ids for sample, _ in own]
                seeds = [rollout_seed(self.options.seed, draw) for _, draw in own]
                written = sampling.answer(
                    self.student, prompts, seeds, self.options, autocast=self.world.autocast, aborted=aborted
                )
        answers = {draw: found for (_, draw), found in zip(own, written, strict=True)}
        made: list[Exchange] = []
        for sample, draw in draws:
            if draw in answers:
                made.append(exchange_of(self.signal, sample, answers[draw].tokens, answers[draw].ended, True))
            elif self.signal is not None and self.signal.answers == "teacher":
                made.append(exchange_of(self.signal, sample, [], False, False))  # it is written when it is scored
            elif sample.answer_ids:
                made.append(exchange_of(self.signal, sample, sample.answer_ids, sample.answer_ended, False))
        return made

    def answers_itself(self, sample: Sample, draw: int) -> bool:
        """Whether the student gives the answer to a draw."""
        if self.signal is None or self.signal.answers == "teacher":
            return False
        return (
            self.signal.answers == "own"
            or not sample.answer_ids
            or on_policy(self.options.seed, draw, self.options.lmbda)
        )

    # ---- score -------------------------------------------------------------------------------------------------

    def score(self, exchanges: Sequence[Exchange]) -> list[Exchange]:
        """The same with the teacher's scores (`Signal.scored`); what was left out is counted."""
        if self.signal is None:
            return list(exchanges)
        with self.watch("teacher"):
            scored = self.signal.scored(exchanges)
        self.count_lost(exchanges, scored)
        return scored

    def count_lost(self, asked: Sequence[Exchange], scored: Sequence[Exchange]) -> None:
        """Remember how many answers the teacher said nothing of."""
        if self.signal is not None and (lost := len(asked) - len(scored)):
            self.skipped[self.signal.lost] = self.skipped.get(self.signal.lost, 0) + lost
            for reason, message in self.signal.reasons.items():
                if reason not in self._told:
                    self._told.add(reason)
                    self.note(f"left out: {message}")

    # ---- learn -------------------------------------------------------------------------------------------------

    def learn(self, exchanges: Sequence[Exchange]) -> Learnt:
        """One optimiser step on this process' part of the samples.

        Every component is a sum over the processes and micro-batches divided by its own count over all of them, so
        that neither changes the result.

        Raises StoppedEarly when the loss or the gradient is not finite (before anything has changed), and when memory
        runs out.
        """
        options, world = self.options, self.world
        counts = world.sum(
            [
                sum(exchange.compared for exchange in exchanges),
                sum(len(answer_to_learn(exchange)) for exchange in exchanges),
                len(exchanges),
                sum(len(exchange.completion_ids) for exchange in exchanges),
                sum(exchange.on_policy for exchange in exchanges),
                sum(len(exchange.completion_ids) for exchange in exchanges if exchange.on_policy),
                sum(exchange.on_policy and not exchange.ended for exchange in exchanges),
            ]
        )
        self.student.model.train()
        kd, sft = world.sum(self._accumulate(exchanges, max(counts[0], 1.0), max(counts[1], 1.0)))
        if counts[2]:
            norm, rate = self._update(exchanges, kd, sft)
        else:  # no gradient is no reason to follow the momentum of the steps before
            norm, rate = 0.0, float(self.schedule.get_last_lr()[0])
        whole = [int(count) for count in counts]
        return Learnt(
            loss=options.lambda_kd * kd + options.lambda_sft * sft,
            kd_loss=kd,
            sft_loss=sft if options.lambda_sft else None,
            grad_norm=norm,
            samples=whole[2],
            tokens=whole[3],
            own=whole[4],
            own_tokens=whole[5],
            truncated=whole[6],
            learning_rate=rate,
        )

    def _update(self, exchanges: Sequence[Exchange], kd: float, sft: float) -> tuple[float, float]:
        """Move the weights along the gradients of all processes; (length of the gradient, learning rate)."""
        with self.watch("optimiser"):
            try:
                self.world.sum_gradients(self.parameters)
                limit = self.options.grad_clip or math.inf
                norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
                if not (math.isfinite(kd) and math.isfinite(sft) and math.isfinite(norm)):
                    raise StoppedEarly(self._not_finite(exchanges, norm))
                rate = float(self.schedule.get_last_lr()[0])
                self.optimizer.step()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                # Weights may be half updated, so this step is not tried again.
                raise StoppedEarly(
                    "out of memory in the optimiser, which keeps 8 bytes for every trained weight. Go on with --resume "
                    "and a smaller --micro-batch-size, or begin anew with --lora or --freeze-embeddings."
                ) from None
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
        return norm, rate

    def _accumulate(self, exchanges: Sequence[Exchange], groups: float, answer_tokens: float) -> tuple[float, float]:
        """Gradients of this process' samples; (kd, sft) losses of them, each over the global count.

        When memory runs out, the step's passes are made again in smaller micro-batches.
        """
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            totals = [0.0, 0.0]
            try:
                for batch in micro_batches(exchanges, self.micro_batch_size):
                    for place, value in enumerate(self._backward(batch, groups, answer_tokens)):
                        totals[place] += value
                return totals[0], totals[1]
            except RuntimeError as error:
                self.make_room(error, [exchange.sample for exchange in exchanges])

    def make_room(self, error: RuntimeError, samples: Sequence[Sample]) -> None:
        """Halve the micro-batch after memory ran out, and say so: its size changes nothing but the memory.

        Raises `error` when it is another one, StoppedEarly when a sample does not fit alone.
        """
        if not out_of_memory(error):
            raise error
        error.__traceback__ = None  # its frames hold the tensors that did not fit
        if self.micro_batch_size == 1:
            longest = max(samples, key=lambda sample: len(sample.prompt_ids))
            raise StoppedEarly(
                f"out of memory with one sample at a time; the longest is {longest.place} with a prompt of "
                f"{len(longest.prompt_ids):,} tokens. Use --gradient-checkpointing, --lora or --student-dtype "
                "bfloat16, lower --max-new-tokens, or leave out long prompts."
            ) from None
        self.micro_batch_size //= 2
        self.note(
            f"out of memory: {self.micro_batch_size} samples per forward pass from now on; the step stays as it is"
        )
        empty_caches()

    def _backward(self, batch: Sequence[Exchange], groups: float, answer_tokens: float) -> tuple[float, float]:
        options, student = self.options, self.student
        losses: list[Tensor] = []
        kd = sft = 0.0
        learns_answers = bool(options.lambda_sft)
        with self.watch("student"), self.world.autocast():
            hidden = student.hidden(
                [exchange.sample.prompt_ids for exchange in batch], [exchange.completion_ids for exchange in batch]
            )
            # The answer in the data needs a pass of its own where the student gave another one.
            others = [exchange.sample for exchange in batch if exchange.on_policy and exchange.sample.answer_ids]
            others = others if learns_answers else []
            other_answers = [sample.answer_ids or [] for sample in others]
            again = student.hidden([sample.prompt_ids for sample in others], other_answers) if others else None
        with self.watch("loss"):
            if self.signal is not None and options.lambda_kd:
                terms = self.signal.loss(hidden, student.head, batch)
                losses.append(terms.total * (options.lambda_kd / groups))
                kd = float(terms.total.detach()) / groups
            if learns_answers:
                for states, ids in (
                    (hidden[self._offline_rows(batch)], [e.completion_ids for e in batch if not e.on_policy]),
                    (again, other_answers),
                ):
                    if states is not None and ids:
                        flat = torch.tensor([token for row in ids for token in row], device=states.device)
                        terms = fused_cross_entropy(states, student.head, flat)
                        losses.append(terms.total * (options.lambda_sft / answer_tokens))
                        sft += float(terms.total.detach()) / answer_tokens
        with self.watch("student"):
            # None has a gradient when all answers are empty and the head is frozen.
            if any(loss.requires_grad for loss in losses):
                sum(losses, start=torch.zeros((), device=hidden.device)).backward()
        return kd, sft

    def _offline_rows(self, batch: Sequence[Exchange]) -> Tensor:
        """(N,) bool: which rows of the batch's hidden states belong to answers in the data."""
        flags = [not exchange.on_policy for exchange in batch for _ in exchange.completion_ids]
        return torch.tensor(flags, device=self.world.device)

    def _not_finite(self, exchanges: Sequence[Exchange], norm: float) -> str:
        """Which sample broke the step. The student has not been changed by it."""
        self.student.model.eval()
        broken: list[str] = []
        for exchange in exchanges:
            with torch.no_grad(), self.world.autocast():
                hidden = self.student.hidden([exchange.sample.prompt_ids], [exchange.completion_ids])
                value = (
                    hidden.sum()
                    if self.signal is None
                    else self.signal.loss(hidden, self.student.head, [exchange]).total
                )
            if not math.isfinite(float(value)):
                broken.append(exchange.sample.place)
        broken = [place for places in self.world.gather(broken) for place in places]
        where = f"in the answer to {', '.join(broken)}" if broken else f"in the gradient alone (its length is {norm})"
        return (
            f"the loss is no longer finite, {where}. This step has changed nothing, earlier checkpoints are kept. "
            "Begin anew in another --output with a lower --learning-rate, --student-dtype float32, or without that "
            "sample; a copy of step-N/ may be its --student."
        )

    # ---- state -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything but the weights that the next step depends on."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "micro_batch_size": self.micro_batch_size,
            "skipped": self.skipped,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.micro_batch_size = min(self.micro_batch_size, state["micro_batch_size"])
        self.skipped = dict(state["skipped"])


def answer_to_learn(exchange: Exchange) -> Sequence[int]:
    """What the cross-entropy is taken of: an answer that is not the student's own."""
    return (exchange.sample.answer_ids or ()) if exchange.on_policy else exchange.completion_ids


def micro_batches(exchanges: Sequence[Exchange], size: int) -> Iterator[Sequence[Exchange]]:
    """At most `size` at a time, those of like length together: less padding."""
    ordered = sorted(exchanges, key=lambda exchange: len(exchange.sample.prompt_ids) + len(exchange.completion_ids))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def learning_rate_of(options: TrainGold) -> Callable[[int], float]:
    """Steps made so far -> share of the highest learning rate: a linear rise, then --schedule."""
    warmup, total = options.warmup, options.max_steps

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, total - warmup)
        if options.schedule == "cosine":
            return 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return 1.0 if options.schedule == "constant" else max(0.0, 1.0 - done)

    return share
