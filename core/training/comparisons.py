"""What a student's answers are compared by: one way for each pair of tokenizers, loss and kind of teacher.

Every loss takes the student's hidden states (N, D) of several answers behind one another, and returns the sum over
their positions; every measure takes those of one answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..commands.train_gold import TrainGold
from ..distillation.fused import fused_jsd, fused_top_k_tail
from ..distillation.fused_hybrid import fused_hybrid
from ..distillation.fused_picked import fused_logprobs
from ..distillation.fused_sparse import fused_sparse
from ..distillation.gold import Merged, student_columns
from ..distillation.losses import LOG_ZERO, log_probs, sampled_reverse_kl, token_logprobs
from ..distillation.measures import Measures, Tally, add, compare, compare_groups
from ..distillation.output_head import OutputHead
from ..distillation.terms import LossTerms, sum_dtype
from ..distillation.vocabulary import VocabularyMap
from ..errors import UsageError
from .exchange import (
    Exchange,
    at_positions,
    joined,
    pieces,
    student_tokens,
    teacher_best,
    teacher_picked,
    teacher_states,
    teacher_tokens,
    teacher_top,
)
from .signal import Mode

MEASURED_VALUES = 2**23
"""Most logits of either side that a measure holds at a time: 32 MiB in float32."""
NAMES = {
    "kl_teacher_student": "kl",
    "kl_student_teacher": "reverse_kl",
    "top1_agreement": "top1_agreement",
    "student_entropy": "entropy",
    "teacher_entropy": "teacher_entropy",
    "span_log_ratio": "span_log_ratio",
    "single_groups": "single_groups",
}
"""Of `distillation.measures` -> of a run."""


@dataclass(frozen=True, eq=False)
class Settings:
    """What all comparisons of a run have in common. vocabulary: None with one tokenizer."""

    beta: float
    temperature: float
    merged: Merged
    unmatched_top_k: int | None
    student_width: int
    teacher_width: int
    vocabulary: VocabularyMap | None

    @property
    def width(self) -> int:
        """Logits that both models have: with one tokenizer they may pad it differently."""
        return min(self.student_width, self.teacher_width)

    @property
    def divergence(self) -> str:
        """In words."""
        at = "" if self.temperature == 1.0 else f" at temperature {self.temperature:g}"
        return divergence_words(self.beta) + at


def divergence_words(beta: float) -> str:
    """What beta chooses."""
    if beta in (0.0, 1.0):
        return "KL(teacher || student)" if beta == 0.0 else "KL(student || teacher)"
    return f"generalised Jensen-Shannon divergence, beta {beta:g}"


@dataclass(frozen=True)
class Comparison:
    """words: what is compared, for people."""

    words: Callable[[Settings], str]
    loss: Callable[[Tensor, OutputHead, Sequence[Exchange], Settings], LossTerms]
    measure: Callable[[Tensor, OutputHead, Exchange, Settings], Measures]


# --- losses ---


def whole_rows(hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange], settings: Settings) -> LossTerms:
    """One tokenizer, whole distributions."""
    states, teacher_head = teacher_states(exchanges, hidden)
    ours, theirs = head.narrowed(settings.width), teacher_head.narrowed(settings.width)
    return fused_jsd(hidden, ours, states, theirs, settings.beta, settings.temperature)


def top_rows(hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange], settings: Settings) -> LossTerms:
    """One tokenizer, the teacher's k best tokens and all others as one."""
    ids, logprobs = _best(exchanges, hidden, settings)
    return fused_top_k_tail(hidden, head, ids, logprobs, settings.beta)


def groups_of_columns(hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange], settings: Settings) -> LossTerms:
    """Two tokenizers, whole distributions: GOLD."""
    assert settings.vocabulary is not None
    states, teacher_head = teacher_states(exchanges, hidden)
    return fused_hybrid(
        hidden,
        head,
        student_tokens(exchanges, hidden),
        states,
        teacher_head,
        teacher_tokens(exchanges, hidden),
        joined(exchanges),
        settings.vocabulary,
        settings.beta,
        temperature=settings.temperature,
        merged=settings.merged,
        unmatched_top_k=settings.unmatched_top_k,
    )


def sorted_columns(hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange], settings: Settings) -> LossTerms:
    """Any tokenizers, whole distributions sorted: ULD. It is GOLD when no column has a partner."""
    states, teacher_head = teacher_states(exchanges, hidden)
    terms = fused_hybrid(
        hidden,
        head,
        student_tokens(exchanges, hidden),
        states,
        teacher_head,
        teacher_tokens(exchanges, hidden),
        joined(exchanges),
        without_pairs(settings.student_width, settings.teacher_width),
        beta=0.5,  # of the part that weighs nothing
        weights=(0.0, 1.0),
        temperature=settings.temperature,
        unmatched_top_k=None,
    )
    return LossTerms(terms.total, terms.tokens, {"uld": terms.parts["unmatched"]})


def groups_of_best(hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange], settings: Settings) -> LossTerms:
    """Two tokenizers, the teacher's k best tokens."""
    assert settings.vocabulary is not None
    ids, logprobs = teacher_top(exchanges, hidden)
    return fused_sparse(
        hidden,
        head,
        student_tokens(exchanges, hidden),
        teacher_picked(exchanges, hidden),
        ids,
        logprobs,
        joined(exchanges),
        settings.vocabulary,
        settings.beta,
    )


def given_tokens(hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange], settings: Settings) -> LossTerms:
    """Any tokenizers, the probability of the answer's own tokens: a policy gradient on KL(student || teacher)."""
    ours = fused_logprobs(hidden, head, student_tokens(exchanges, hidden))
    groups = joined(exchanges)
    ours, theirs = (
        values.new_zeros(groups.count).index_add(0, torch.tensor(group, device=values.device), values)
        for values, group in ((ours, groups.student), (teacher_picked(exchanges, hidden), groups.teacher))
    )
    return sampled_reverse_kl(ours, theirs, None)


def told_rows(hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange], beta: float) -> LossTerms:
    """A few positions of answers, the teacher's most probable tokens there (in columns of the student's) and all others
    as one. Of the answer's own token nothing more is known than that."""
    rows, parts = at_positions(hidden, exchanges)
    return fused_top_k_tail(rows, head, *teacher_best(parts, rows), beta)


# --- measures ---


@torch.no_grad()
def measure_whole_rows(hidden: Tensor, head: OutputHead, exchange: Exchange, settings: Settings) -> Measures:
    """Every token's whole rows."""
    states, teacher_head = teacher_states([exchange], hidden)
    heads = head.narrowed(settings.width), teacher_head.narrowed(settings.width)
    ids = student_tokens([exchange], hidden)
    found: Measures = {}
    for rows in torch.arange(len(ids)).split(max(1, MEASURED_VALUES // settings.width)):
        ours, theirs = (log_probs(side.logits(of[rows])) for side, of in zip(heads, (hidden, states), strict=True))
        found = add(found, _renamed(compare(ours, theirs)))
        found = add(found, _nats(token_logprobs(ours, ids[rows]), token_logprobs(theirs, ids[rows])))
    return found


@torch.no_grad()
def measure_groups(hidden: Tensor, head: OutputHead, exchange: Exchange, settings: Settings) -> Measures:
    """Matched columns at groups of one token on each side, likelihoods of all."""
    assert settings.vocabulary is not None
    states, teacher_head = teacher_states([exchange], hidden)
    ids, teacher_ids = student_tokens([exchange], hidden), teacher_tokens([exchange], hidden)
    found: Measures = {}
    widest = max(settings.student_width, settings.teacher_width)
    for here, there, groups in pieces(joined([exchange]), max(1, MEASURED_VALUES // widest)):
        ours, theirs = log_probs(head.logits(hidden[here])), log_probs(teacher_head.logits(states[there]))
        measured = compare_groups(ours, ids[here], theirs, teacher_ids[there], groups, settings.vocabulary)
        found = add(found, _renamed(measured))
        found = add(found, _nats(token_logprobs(ours, ids[here]), token_logprobs(theirs, teacher_ids[there])))
    return found


@torch.no_grad()
def measure_best(hidden: Tensor, head: OutputHead, exchange: Exchange, settings: Settings) -> Measures:
    """The teacher's k best tokens; across tokenizers at groups of one token on each side."""
    ids, logprobs = _best([exchange], hidden, settings)
    rows = torch.arange(len(hidden), device=hidden.device)
    groups, found = exchange.groups, _likelihoods(hidden, head, exchange)
    if groups is not None:
        single = groups.is_single
        rows = torch.tensor(np.flatnonzero(single[groups.student]), device=hidden.device)
        there = torch.tensor(np.flatnonzero(single[groups.teacher]), device=hidden.device)
        ids, logprobs = ids[there], logprobs[there]
        found["single_groups"] = Tally(int(single.sum()), groups.count)
    return found | _from_best(hidden[rows], head, ids, logprobs)


@torch.no_grad()
def measure_told(hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> Measures:
    """A few positions of answers, and how surely the student would have written them (`nats`).

    probed_mass: the teacher's probability of tokens that the student has a column for: what is compared one by one.
    """
    rows, parts = at_positions(hidden, exchanges)
    ids, logprobs = teacher_best(parts, rows)
    mass = logprobs.exp().masked_fill(ids < 0, 0.0).sum(dtype=sum_dtype(ids.device))
    found = {"nats": own_nats(hidden, head, exchanges), "probed_mass": Tally(float(mass), len(rows))}
    return found | _from_best(rows, head, ids, logprobs)


@torch.no_grad()
def own_nats(hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> Tally:
    """-log p of the answers' tokens by the student."""
    ours = fused_logprobs(hidden, head, student_tokens(exchanges, hidden))
    return Tally(-float(ours.sum(dtype=sum_dtype(ours.device))), len(ours))


@torch.no_grad()
def measure_given_tokens(hidden: Tensor, head: OutputHead, exchange: Exchange, settings: Settings) -> Measures:
    """Only likelihoods."""
    return _likelihoods(hidden, head, exchange)


def bits_per_byte(measures: Measures, count: int) -> Measures:
    """The measures with bits_per_byte and teacher_bits_per_byte in the place of the sums of nats."""
    found = {name: tally for name, tally in measures.items() if name not in ("nats", "teacher_nats")}
    for side in ("", "teacher_"):
        if f"{side}nats" in measures:
            found[f"{side}bits_per_byte"] = Tally(measures[f"{side}nats"].total / math.log(2.0), count)
    return found


# --- what can be compared by what ---


def _shared(settings: Settings) -> str:
    vocabulary = settings.vocabulary
    assert vocabulary is not None
    return f"{len(vocabulary.student_ids):,} of {settings.student_width:,} columns matched by their bytes"


def _gold_words(settings: Settings) -> str:
    k = settings.unmatched_top_k
    ranked = "all others" if k is None else f"the {k} largest of the others"
    several = {
        "last_token": "groups of several tokens at their last one",
        "span": "groups of several tokens as a whole",
    }
    return (
        f"GOLD, whole distributions of two tokenizers: {settings.divergence} over {_shared(settings)} and the rest; "
        f"{ranked} by rank; {several[settings.merged]}"
    )


def check_loss(options: TrainGold, mode: Mode) -> None:
    """Raises UsageError for options of comparisons that need more than a teacher tells that can only chat."""
    named = [] if options.loss == "auto" else [f"--loss {options.loss}"]
    if options.loss_temperature != 1.0:
        named.append(f"--loss-temperature {options.loss_temperature:g}")
    if named:
        raise UsageError(
            f"{' and '.join(named)}: for teachers that score the student's text, and with --teacher-mode {mode} "
            "there are no such scores. Leave it out."
        )


def probe_words(beta: float, top: int, positions: int, tokens: int) -> str:
    """positions: probed of each answer.   tokens: of the longest answer."""
    return (
        f"probe: {min(positions, tokens)} of up to {tokens:,} positions of each answer, those where the student is "
        f"least sure; there the teacher's {top} most probable next tokens and all others as one: "
        f"{divergence_words(beta)}. The other positions are not compared"
    )


def text_words(beta: float, top: int) -> str:
    return (
        f"teacher-text: the teacher's own answers (off-policy: the student writes none), of each token its {top} most "
        f"probable and all others as one: {divergence_words(beta)}; groups of several tokens as a whole"
    )


def judge_words(judge: str, group: int) -> str:
    graded = {"rubric": "each graded by a rubric", "pairwise": "every two compared in both orders"}
    return (
        f"judge: group of {group} answers per prompt, {graded[judge]}; one score for a whole answer, less the group's "
        "mean, weighs a policy gradient on its sampled tokens. No distribution is compared"
    )


COMPARISONS: dict[tuple[str, str, str], Comparison] = {
    ("one", "jsd", "full"): Comparison(
        lambda s: f"whole distributions of {s.width:,} tokens, one tokenizer: {s.divergence}",
        whole_rows,
        measure_whole_rows,
    ),
    ("one", "uld", "full"): Comparison(
        lambda s: "ULD, sorted whole distributions, one tokenizer: which token is probable is not compared",
        sorted_columns,
        measure_whole_rows,
    ),
    ("one", "jsd", "top_k"): Comparison(
        lambda s: f"the teacher's most probable tokens and all others as one, one tokenizer: {s.divergence}",
        top_rows,
        measure_best,
    ),
    ("one", "sampled", "sampled"): Comparison(
        lambda s: "the probability of each sampled token, one tokenizer: policy gradient on KL(student || teacher)",
        given_tokens,
        measure_given_tokens,
    ),
    ("two", "gold", "full"): Comparison(_gold_words, groups_of_columns, measure_groups),
    ("two", "uld", "full"): Comparison(
        lambda s: "ULD, sorted whole distributions of two tokenizers: which token is probable is not compared",
        sorted_columns,
        measure_groups,
    ),
    ("two", "gold", "top_k"): Comparison(
        lambda s: (
            f"the teacher's most probable tokens of two tokenizers: {s.divergence} over those among "
            f"{_shared(s)} and the rest; groups of several tokens as a whole"
        ),
        groups_of_best,
        measure_best,
    ),
    ("two", "sampled", "sampled"): Comparison(
        lambda s: "the probability of each sampled group, two tokenizers: policy gradient on KL(student || teacher)",
        given_tokens,
        measure_given_tokens,
    ),
}
"""(tokenizers, loss, what the scorer tells) -> how they are compared."""


def without_pairs(student_width: int, teacher_width: int) -> VocabularyMap:
    """A map in which no column has a partner."""
    none = np.zeros(0, np.int64)
    return VocabularyMap(none, none, np.arange(student_width), np.arange(teacher_width), student_width, teacher_width)


def _best(exchanges: Sequence[Exchange], like: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The teacher's k best tokens with the ids of the student's columns, -1 where it has none; (T, k) each."""
    ids, logprobs = teacher_top(exchanges, like)
    if settings.vocabulary is not None:
        return student_columns(ids, settings.vocabulary), logprobs
    return ids.masked_fill(ids >= settings.student_width, -1), logprobs


def _from_best(hidden: Tensor, head: OutputHead, ids: Tensor, logprobs: Tensor) -> Measures:
    """From rows (N, D) and the teacher's k best there, as columns of the student's: -1 where it has none."""
    found: Measures = {}
    for name, beta in (("kl", 0.0), ("reverse_kl", 1.0)):
        terms = fused_top_k_tail(hidden, head, ids, logprobs, beta)
        found[name] = Tally(terms.total.item(), terms.tokens)
    same, start, entropy = 0, 0, 0.0
    for ours in head.logprobs(hidden):
        same += int((ours.argmax(-1) == ids[start : start + len(ours), 0]).sum())
        entropy += float(entropies(ours).sum(dtype=sum_dtype(ours.device)))
        start += len(ours)
    return found | {"top1_agreement": Tally(same, len(hidden)), "entropy": Tally(entropy, len(hidden))}


def entropies(logprobs: Tensor) -> Tensor:
    """(N, V) -> (N,), nats."""
    return -(logprobs.exp() * logprobs.clamp_min(LOG_ZERO)).sum(-1)


def _likelihoods(hidden: Tensor, head: OutputHead, exchange: Exchange) -> Measures:
    ours = fused_logprobs(hidden, head, student_tokens([exchange], hidden))
    found = _nats(ours, teacher_picked([exchange], hidden))
    gap = found["teacher_nats"].total - found["nats"].total
    return found | ({} if exchange.groups is None else {"span_log_ratio": Tally(gap, exchange.compared)})


def _nats(ours: Tensor, theirs: Tensor) -> Measures:
    """-log p of the text on both sides."""
    sums = [-float(side.sum(dtype=sum_dtype(ours.device))) for side in (ours, theirs)]
    return {"nats": Tally(sums[0], len(ours)), "teacher_nats": Tally(sums[1], len(theirs))}


def _renamed(measures: Measures) -> Measures:
    return {NAMES[name]: tally for name, tally in measures.items() if name in NAMES}
