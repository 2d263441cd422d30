"""A teacher that scores given texts: what its scores tell the student, decided once for a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..commands.train_gold import TrainGold
from ..distillation.alignment import align
from ..distillation.chat import ChatSide
from ..distillation.measures import Measures, add
from ..distillation.output_head import OutputHead
from ..distillation.terms import LossTerms
from ..distillation.token_bytes import same_tokens
from ..distillation.vocabulary import VocabularyMap, build_cached
from ..errors import RequestRejected, StoppedEarly, UsageError
from ..teachers.api_scorer import ApiScorer
from ..teachers.scorer import Scorer, ScoreRequest
from .comparisons import COMPARISONS, Settings, bits_per_byte
from .exchange import Exchange, text_bytes
from .samples import Sample
from .signal import Answers, Mode, answered


class ScoreSignal:
    """A `Signal` from the two tokenizers, what the scorer can tell, and the options.

    same_tokenizer: ids mean the same bytes on both sides, and answers end alike: what the student sampled is scored
        as it is.   vocabulary: otherwise, which columns of the two models are the same bytes.
    teacher_side: the teacher's tokenizer and chat template.

    Raises UsageError for a --loss that does not fit the two tokenizers, or needs more than the scorer tells.
    """

    mode: Mode = "score"
    answers: Answers = "both"
    per_prompt = 1

    def __init__(self, options: TrainGold, student: ChatSide, student_head: OutputHead, scorer: Scorer) -> None:
        self.scorer = scorer
        self.reasons: dict[str, str] = {}
        teacher = ChatSide(scorer.tokenizer)
        self.student_side, self.teacher_side = student, teacher
        self.same_tokenizer = (
            same_tokens(student.token_bytes, teacher.token_bytes)
            and student.end_of_turn == teacher.end_of_turn
            and student.lead == teacher.lead
        )
        widths = student_head.width, scorer.width
        self.vocabulary: VocabularyMap | None = None
        if not self.same_tokenizer:
            ends = student.end_of_turn, teacher.end_of_turn
            self.vocabulary = build_cached(student.token_bytes, teacher.token_bytes, *widths, ends)
        self._settings = Settings(
            beta=options.beta,
            temperature=options.loss_temperature,
            merged=options.merged,
            unmatched_top_k=options.unmatched_top_k or None,
            student_width=widths[0],
            teacher_width=widths[1],
            vocabulary=self.vocabulary,
        )
        loss = options.loss
        if loss == "auto":
            loss = "jsd" if self.same_tokenizer else "gold"
        self._check(options, loss, scorer)
        tokenizers = "one" if self.same_tokenizer else "two"
        self._comparison = COMPARISONS[tokenizers, "sampled" if scorer.ability == "sampled" else loss, scorer.ability]
        self.words = self._comparison.words(self._settings)

    def exchange(self, sample: Sample, completion_ids: Sequence[int], ended: bool, on_policy: bool) -> Exchange:
        """See `Signal`; `scores` are still to come (see `request`).

        With one tokenizer the answer is cut before a token that the teacher has no logit for (a padding row of a wider
        student that was sampled).
        """
        ids = [int(place) for place in completion_ids]
        if self.same_tokenizer:
            unknown = next((n for n, place in enumerate(ids) if place >= self._settings.teacher_width), None)
            if unknown is not None:
                ids, ended = ids[:unknown], False
            return Exchange(sample, ids, ended, on_policy, ids, None)
        parts, ends = self.student_side.read(ids, ended)
        teacher_ids, teacher_ends = self.teacher_side.write(parts, ended)
        return Exchange(sample, ids, ended, on_policy, teacher_ids, align(ends, teacher_ends))

    def request(self, exchange: Exchange) -> ScoreRequest:
        """What the scorer is asked: the conversation in the teacher's own template, then the answer."""
        return ScoreRequest(exchange.sample.teacher_prompt_ids, exchange.teacher_ids)

    def scored(self, exchanges: Sequence[Exchange], *, measuring: bool = False) -> list[Exchange]:
        """See `Signal`; what does not fit into the teacher's context is left out.

        Raises StoppedEarly, which names the sample, when the teacher cannot score one of them.
        """
        room = self.scorer.context_tokens
        kept = [exchange for exchange in exchanges if room is None or self.request(exchange).tokens <= room]
        requests = [self.request(exchange) for exchange in kept]
        if isinstance(self.scorer, ApiScorer):
            found = answered(
                self.scorer.score_or_not(requests),
                [each.sample.place for each in kept],
                self.scorer.server,
                self.reasons,
            )
            told = [(each, scores) for each, scores in zip(kept, found, strict=True) if scores is not None]
            return [replace(each, scores=scores) for each, scores in told]
        try:
            scores = self.scorer.score(requests)
        except RequestRejected as error:
            concerned = kept if error.row is None else [kept[error.row]]
            places = ", ".join(exchange.sample.place for exchange in concerned)
            raise StoppedEarly(f"the teacher cannot score the answer in {places}: {error}") from None
        return [replace(exchange, scores=score) for exchange, score in zip(kept, scores, strict=True)]

    @property
    def lost(self) -> str:
        if self.waits:
            return "the answer does not fit into the teacher's context, or its server would not score it"
        return "the answer does not fit into the teacher's context"

    @property
    def waits(self) -> bool:
        return isinstance(self.scorer, ApiScorer)

    def loss(self, hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> LossTerms:
        """See `Signal`. Raises ValueError when the teacher's scores hold NaN or inf."""
        return self._comparison.loss(hidden, head, exchanges, self._settings)

    def measure(self, hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> Measures:
        """See `Signal`."""
        found: Measures = {}
        start = 0
        for exchange in exchanges:
            count = len(exchange.completion_ids)
            rows = hidden[start : start + count].detach()
            found = add(found, self._comparison.measure(rows, head, exchange, self._settings))
            start += count
        return bits_per_byte(found, sum(text_bytes(self.student_side, each) for each in exchanges))

    def _check(self, options: TrainGold, loss: str, scorer: Scorer) -> None:
        names = f"{self.student_side.name} and {scorer.model}"
        if loss == "gold" and self.same_tokenizer:
            raise UsageError(
                f"--loss gold compares two tokenizers, and {names} have one and the same: take --loss jsd (or auto), "
                "which compares every token exactly."
            )
        if loss == "jsd" and not self.same_tokenizer:
            raise UsageError(
                f"--loss jsd needs one tokenizer, and those of {names} differ (in tokens, or in how an answer ends): "
                "take --loss gold (or auto)."
            )
        told = {"top_k": "the most probable tokens", "sampled": "the probability of the given token"}
        if scorer.ability == "full":
            return
        reason = f"{scorer.model} ({scorer.backend}) tells only {told[scorer.ability]} of each position"
        if loss == "uld":
            raise UsageError(f"--loss uld sorts whole distributions, and {reason}. Take --loss auto, or an hf teacher.")
        if options.loss_temperature != 1.0:
            raise UsageError(
                f"--loss-temperature {options.loss_temperature:g} reshapes whole distributions, and {reason}. "
                "Leave it at 1, or take an hf teacher."
            )
        if scorer.ability == "sampled" and options.lmbda < 1.0:
            raise UsageError(
                f"--lmbda {options.lmbda:g} mixes in answers from the data, and {reason}: that can only judge the "
                "student's own answers. Set --lmbda 1."
            )
