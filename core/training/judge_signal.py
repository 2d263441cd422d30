"""A teacher that can only chat, as a judge: what its grades of whole answers tell the student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from ..commands.train_gold import TrainGold
from ..distillation.fused_picked import fused_logprobs
from ..distillation.measures import Measures, Tally
from ..distillation.output_head import OutputHead
from ..distillation.terms import LossTerms, sum_dtype
from ..errors import UsageError
from ..teachers.chat_teacher import ChatTeacher
from ..teachers.judging import Graded, Pair
from .comparisons import bits_per_byte, check_loss, judge_words, own_nats
from .exchange import Exchange, student_tokens, text_bytes
from .samples import Sample
from .signal import Answers, Mode, answered
from .student import Student


class JudgeSignal:
    """A `Signal` from one score for each of the student's own answers: REINFORCE with the mean of a group as baseline.

    advantage = score - mean of the scores of its group, the answers to one prompt in a step. It is not divided by the
    group's standard deviation, nor an answer's gradient by its length: the one would give prompts whose answers are
    nearly alike the largest updates, the other would make long answers that are bad cheap (Dr. GRPO, Liu et al.,
    arXiv:2503.20783).

    rubric: the score is a grade in 0..1.   pairwise: the share of comparisons with the others of the group that the
    answer wins, ties half, whose mean over a group is 0.5.

    Raises UsageError for options that compare what such a teacher does not tell, or that make all answers the same.
    """

    mode: Mode = "judge"
    answers: Answers = "own"
    lost = "the judge gave no readable grade, or the answers to its prompt are all as good as one another"
    waits = True

    def __init__(self, options: TrainGold, student: Student, chat: ChatTeacher) -> None:
        check_loss(options, self.mode)
        self.reasons: dict[str, str] = {}
        if not options.do_sample:
            raise UsageError(
                "--no-do-sample (DO_SAMPLE): a student that always takes its most probable token gives one prompt one "
                "answer, and --teacher-mode judge compares several. Leave it out."
            )
        self._side, self._chat, self._temperature = student.side, chat, options.temperature
        self._pairwise = options.judge == "pairwise"
        self.per_prompt = options.judge_group
        self.words = judge_words(options.judge, options.judge_group)

    def exchange(self, sample: Sample, completion_ids: Sequence[int], ended: bool, on_policy: bool) -> Exchange:
        """See `Signal`."""
        ids = [int(place) for place in completion_ids]
        return Exchange(sample, ids, ended, on_policy, ids, None)

    def scored(self, exchanges: Sequence[Exchange], *, measuring: bool = False) -> list[Exchange]:
        """See `Signal`; the advantage of each answer. Left out are those without a grade, and whole groups that say
        nothing: fewer than two graded answers, or equal ones.

        measuring: every answer by itself, and instead of an advantage its score; pairwise against the answer in the
        data, so that samples without one are left out.
        Raises StoppedEarly as `signal.answered` does.
        """
        if measuring:
            scores = self._against_data(exchanges) if self._pairwise else self._grades(exchanges)
            return [
                replace(exchange, advantage=score)
                for exchange, score in zip(exchanges, scores, strict=True)
                if score is not None
            ]
        groups: dict[str, list[int]] = {}
        for place, exchange in enumerate(exchanges):
            groups.setdefault(exchange.sample.key, []).append(place)
        scores = self._win_rates(exchanges, groups.values()) if self._pairwise else self._grades(exchanges)
        found = list(exchanges)
        for places in groups.values():
            graded = {place: score for place in places if (score := scores[place]) is not None}
            for place, advantage in advantages(graded).items():
                found[place] = replace(exchanges[place], advantage=advantage)
        return [exchange for exchange in found if exchange.advantage is not None]

    def loss(self, hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> LossTerms:
        """See `Signal`: the sum of -advantage log p(answer), p at the temperature that answers are drawn at. Its
        gradient is what counts; as a figure it says nothing of how good the student is (see `measure`)."""
        logprobs = fused_logprobs(hidden, head, student_tokens(exchanges, hidden), self._temperature)
        weights = [advantage for each, advantage in _weighed(exchanges) for _ in each.completion_ids]
        weighed = torch.tensor(weights, dtype=logprobs.dtype, device=logprobs.device) * logprobs
        return LossTerms(-weighed.sum(dtype=sum_dtype(logprobs.device)), len(logprobs))

    def measure(self, hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> Measures:
        """See `Signal`. Of answers that were scored with `measuring`:

        score     0..1 per answer; pairwise 1 for each that is better than the one in the data.
        kd_loss   -score, which is what training lowers.
        """
        scores = sum(score for _, score in _weighed(exchanges))
        found = {"kd_loss": Tally(-scores, len(exchanges)), "score": Tally(scores, len(exchanges))}
        size = sum(text_bytes(self._side, each) for each in exchanges)
        return bits_per_byte(found | {"nats": own_nats(hidden, head, exchanges)}, size)

    # ---- what the judge is asked ---------------------------------------------------------------------------------

    def _grades(self, exchanges: Sequence[Exchange]) -> list[float | None]:
        asked = [Graded(each.sample.messages, self._text(each)) for each in exchanges]
        return answered(
            self._chat.grade(asked), [each.sample.place for each in exchanges], self._chat.server, self.reasons
        )

    def _against_data(self, exchanges: Sequence[Exchange]) -> list[float | None]:
        """Each answer's share of the comparison with the one in the data, which was cut where the student's are."""
        known = [each for each in exchanges if each.sample.answer]
        asked = [Pair(each.sample.messages, self._text(each), each.sample.answer or "") for each in known]
        places = [each.sample.place for each in known]
        scores = iter(answered(self._chat.compare(asked), places, self._chat.server, self.reasons))
        return [next(scores) if each.sample.answer else None for each in exchanges]

    def _win_rates(self, exchanges: Sequence[Exchange], groups: Iterable[Sequence[int]]) -> list[float | None]:
        """Of each answer against all others of its group; None where no comparison could be read."""
        texts = [self._text(each) for each in exchanges]
        pairs = [pair for places in groups for pair in combinations(places, 2)]
        asked = [Pair(exchanges[one].sample.messages, texts[one], texts[other]) for one, other in pairs]
        places = [exchanges[one].sample.place for one, _ in pairs]
        shares = answered(self._chat.compare(asked), places, self._chat.server, self.reasons)
        won: list[list[float]] = [[] for _ in exchanges]
        for (one, other), share in zip(pairs, shares, strict=True):
            if share is not None:
                won[one].append(share)
                won[other].append(1.0 - share)
        return [sum(shares) / len(shares) if shares else None for shares in won]

    def _text(self, exchange: Exchange) -> str:
        ids = exchange.completion_ids[:-1] if exchange.ended else exchange.completion_ids
        return self._side.token_bytes.of(ids).removeprefix(self._side.lead).decode(errors="replace")


def advantages(scores: Mapping[int, float]) -> dict[int, float]:
    """Score less mean, of a group's graded answers; nothing where that is 0 for all of them."""
    if len(set(scores.values())) < 2:
        return {}
    mean = sum(scores.values()) / len(scores)
    return {place: score - mean for place, score in scores.items()}


def _weighed(exchanges: Sequence[Exchange]) -> list[tuple[Exchange, float]]:
    """Raises ValueError for answers that were not graded."""
    known = [(exchange, exchange.advantage) for exchange in exchanges if exchange.advantage is not None]
    if len(known) != len(exchanges):
        raise ValueError(f"{len(exchanges) - len(known)} of {len(exchanges)} answers were not graded")
    return known
