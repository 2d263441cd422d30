"""What the student learns from: one `Signal` for each kind of teacher, chosen before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

from torch import Tensor

from ..commands.train_gold import TeacherMode
from ..data.text import one_line
from ..distillation.measures import Measures
from ..distillation.output_head import OutputHead
from ..distillation.terms import LossTerms
from ..errors import BudgetReached, RequestRejected, StoppedEarly, TeacherError
from .exchange import Exchange
from .samples import Sample

Mode = TeacherMode
Answers = Literal["both", "own", "teacher"]
"""Whose answers are trained on: the student's own and those in the data; the student's only; the teacher's only."""


OF_THE_SERVER = (
    *("top_k_limit", "not_found", "invalid_request", "refused_by_provider", "no_logprobs", "not_logprobs"),
    *("no_sampled_token", "other_tokens", "tokens_as_ids", "tokens_do_not_fit", "thinks_first", "too_large"),
)
"""Reasons why a request was rejected that are the server's or ours, when several are rejected and none is not."""
SEVERAL = 4
TOO_DEAR = "over_budget"
"""The reason of what alone could cost more than --max-cost, or than the provider allows."""
T = TypeVar("T")


class Signal(Protocol):
    """How what the teacher tells becomes a loss.

    words: what trains the student, for people.   per_prompt: how many answers to one prompt are compared with another.
    reasons: by which the server rejected what it was asked, each with the first message.
    lost: why `scored` leaves answers out, for people.   waits: whether `scored` waits for a server and computes nothing
    with the student, so that it may run beside a step of training.
    """

    mode: Mode
    answers: Answers
    words: str
    per_prompt: int
    reasons: dict[str, str]

    @property
    def lost(self) -> str: ...

    @property
    def waits(self) -> bool: ...

    def exchange(self, sample: Sample, completion_ids: Sequence[int], ended: bool, on_policy: bool) -> Exchange:
        """An answer in the student's tokens, before the teacher has said anything."""
        ...

    def scored(self, exchanges: Sequence[Exchange], *, measuring: bool = False) -> list[Exchange]:
        """The same with what the teacher says of them, in their order; those that it can say nothing of are left out.

        measuring: for validation, whose figures shall be comparable from one time to the next.
        Raises StoppedEarly, which names the sample, when training cannot go on.
        """
        ...

    def loss(self, hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> LossTerms:
        """The sum over what is compared of the answers, with its gradient; as many terms as `Exchange.compared` says.

        hidden: (N, D), the student's rows that predict the answers' tokens, one answer behind the other; head: its
        output layer.
        """
        ...

    def measure(self, hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> Measures:
        """How far the student is from the teacher on these answers; sums and counts, no gradient. Arguments as `loss`.

        kl, reverse_kl       KL(teacher || student) and KL(student || teacher), nats per position. Of a teacher's k best
                             tokens they are lower bounds; across tokenizers they are over groups of one token on each
                             side, matched columns and the rest as one.
        top1_agreement       share of these positions where both find the same token most probable.
        entropy, teacher_entropy         nats per token; the teacher's is known with whole distributions only.
        bits_per_byte, teacher_bits_per_byte   of the text; its end counts as one more byte.
        Across tokenizers also single_groups, the share of groups of one token on each side, and span_log_ratio, log
        p_student - log p_teacher per group: on the student's own answers it estimates KL(student || teacher).
        probed_mass          probe: the teacher's probability of what it told that the student has a column for.
        score                judge: of an answer, 0..1.
        kd_loss              judge: in the place of the mean of `loss`, which says nothing of how good the student is.
        """
        ...


def answered(
    results: Sequence[T | TeacherError], places: Sequence[str], server: str, reasons: dict[str, str]
) -> list[T | None]:
    """What a server said, None where it would say nothing of a text itself (too long, refused, unreadable, ...).

    places: of the samples that the results are about, for people.   reasons: gets those of what was rejected.
    Raises StoppedEarly when a text got no answer for another reason: left out, it would change what is learnt, and what
    came is in the cache. Also when all were rejected for a reason that lies in none of them.
    """
    errors = [result for result in results if isinstance(result, TeacherError)]
    dear = next((error for error in errors if error.reason == TOO_DEAR), None)
    if dear is not None:  # that says nothing of the text, and more money would bring it back
        raise BudgetReached(f"{one_line(str(dear), 400).rstrip('.')}. The same command with more of it goes on.")
    unanswered = [error for error in errors if not isinstance(error, RequestRejected)]
    if not unanswered and len(errors) == len(results) >= SEVERAL:
        unanswered = [error for error in errors if error.reason in OF_THE_SERVER]
    if unanswered:
        named = list(dict.fromkeys(places))
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        raise StoppedEarly(
            f"{server} said nothing of {len(unanswered)} of {len(results)} requests about the answers in "
            f"{', '.join(named[:5])}{more}: {one_line(str(unanswered[0]), 400).rstrip('.')}. What it did say is kept: "
            "the same command goes on, with --resume where steps were made."
        )
    for place, result in zip(places, results, strict=True):
        if isinstance(result, TeacherError):
            reasons.setdefault(result.reason, f"{place}: {one_line(str(result), 400)}")
    return [None if isinstance(result, TeacherError) else result for result in results]


def exchange_of(signal: Signal | None, sample: Sample, ids: Sequence[int], ended: bool, own: bool) -> Exchange:
    """An answer as the signal's two sides read it; without a signal (SFT) there is only the student's.

    own: the student wrote it.
    """
    if signal is not None:
        return signal.exchange(sample, ids, ended, own)
    return Exchange(sample, list(ids), ended, own, list(ids), None)
