"""How near a model is to the teacher, token by token, on reference answers that neither was trained on."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..commands.evaluate import Evaluate
from ..data.overlap import words
from ..data.run import Run
from ..distillation.alignment import Groups, align
from ..distillation.chat import ChatSide, Part
from ..distillation.losses import token_logprobs
from ..distillation.measures import Measures, Tally, add, compare, compare_groups, surprise
from ..distillation.output_head import CHUNK_VALUES, OutputHead
from ..distillation.token_bytes import same_tokens
from ..distillation.vocabulary import VocabularyMap, build_cached
from ..errors import StoppedEarly, UsageError
from ..teachers.hf_states import completion_states, empty_caches, head_of, out_of_memory
from .answers import broken
from .cached_lm import INTERRUPTED, CachedLM
from .held_out import HeldOut, chat_side, questions
from .models import Named
from .results import Answered, Metric, Scored

TASK = "closeness"
VERSION = "1"
"""Goes up when the same models and rows would get other figures: what is kept under another one is not read."""
TOKENS_AT_ONCE = 4096
"""Most tokens of a batch, padding included: what is held of each is a few hidden states, never its logits."""
MEASURES = {"kl_teacher_student": "kl", "kl_student_teacher": "reverse_kl", "top1_agreement": "top1_agreement"}
"""Of `distillation.measures` -> here."""
FROM_TEACHER = (
    Metric("kl", higher_is_better=False, unit="nats", primary=True),
    Metric("reverse_kl", higher_is_better=False, unit="nats"),
    Metric("top1_agreement"),
)
ALONE = (
    Metric("bits_per_byte", higher_is_better=False, unit="bits"),
    Metric("entropy", higher_is_better=None, unit="nats"),
)
OWN = (
    Metric("own_length", higher_is_better=None, unit="tokens"),
    Metric("own_truncated", higher_is_better=False),
    Metric("own_distinct_1"),
    Metric("own_distinct_2"),
)
Text = tuple[list[int], list[int]]
"""(prompt, completion), in tokens."""


class Side:
    """A Hugging Face model that reads texts. Its weights are loaded when it is first asked for hidden states."""

    def __init__(self, named: Named, lm: CachedLM) -> None:
        self.named, self._lm = named, lm

    @cached_property
    def chat(self) -> ChatSide:
        return chat_side(self._lm.tokenizer)

    @property
    def network(self) -> Any:
        """Raises UsageError when it cannot be loaded."""
        return self._lm.model.network

    @cached_property
    def head(self) -> OutputHead:
        """Raises UsageError for an output layer that is not one plain matrix, or damaged."""
        return head_of(self.network, self.named.name)

    @cached_property
    def context(self) -> float:
        """Most tokens of a text."""
        return getattr(self.network.config.get_text_config(), "max_position_embeddings", None) or math.inf

    def states(self, texts: Sequence[Text]) -> list[Tensor]:
        """(T, D) for each text: what the head reads where its completion is predicted. Raises StoppedEarly."""
        try:
            with torch.no_grad():
                # A copy: a view would keep the prompts' states and the padding alive.
                return [each.clone() for each in completion_states(self.network, texts)]
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold the tensors that did not fit
            empty_caches()
            if len(texts) == 1:
                raise StoppedEarly(
                    f"{self.named.name}: out of memory with one text of {sum(map(len, texts[0])):,} tokens. "
                    "Try --device cpu."
                ) from None
            half = len(texts) // 2
            return self.states(texts[:half]) + self.states(texts[half:])


@dataclass(frozen=True)
class Reading:
    """A row as both sides read it. theirs, groups: None without a teacher; groups also with one tokenizer."""

    place: int
    ours: Text
    theirs: Text | None
    groups: Groups | None
    size: int
    """Bytes of the reference; its end of turn counts as one more."""


def closeness(
    named: Named,
    lm: CachedLM,
    teacher: tuple[Named, CachedLM] | None,
    rows: Sequence[HeldOut],
    options: Evaluate,
    run: Run,
    note: Callable[[str], None],
    said: Sequence[str] | None = None,
) -> Answered | None:
    """One model against the teacher on the rows' references; what was measured once is kept in `lm.answers`.

    Both read the conversation in their own chat template and the reference in their own tokens, as in training.

    kl, reverse_kl    KL(teacher || model) and KL(model || teacher), nats per position: per token, and across tokenizers
                      per stretch of text that is one token on each side, over the columns that mean the same bytes and
                      all others as one (a lower bound; positions depend on both tokenizers).
    top1_agreement    share of these positions at which both find the same token most probable.
    bits_per_byte     of the reference and its end of turn; comparable between tokenizers.
    entropy           of the model's predictions, nats per token.
    Of its own answers `said`, one per row: own_length (tokens of the text, read anew), own_truncated (share that fills
    --max-new-tokens), and own_distinct_1, own_distinct_2: different words and pairs of words within an answer, as a
    share of all (after Li et al., arXiv:1510.03055). Neither length nor entropy has a better side.

    Only Hugging Face models tell distributions: without such a model only its own answers are measured, without such a
    teacher only what needs none; None when nothing is left. An item that does not fit into a context, or for which a
    model computes what is not finite, is not measured. What the user must know goes to `note`.

    Raises UsageError when a model cannot be loaded or has no plain output layer, StoppedEarly for want of memory.
    """
    scored: list[Scored] = []
    if named.backend == "hf":
        if teacher is not None and teacher[0].backend != "hf":
            note(
                f"{teacher[0].path} is asked through {teacher[0].backend} and does not tell whole distributions: no "
                "distance from the teacher. What works: a teacher that transformers runs (--teacher-backend hf)."
            )
            teacher = None
        sides = Side(named, lm), Side(*teacher) if teacher is not None else None
        kept = _Measured(*sides, lm, rows, options, run).all(note)
        for metric in (*(FROM_TEACHER if teacher is not None else ()), *ALONE):
            tallies = [each.get(metric.name, Tally(math.nan, 1)) for each in kept]
            primary = metric.primary or (teacher is None and metric.name == "bits_per_byte")
            metric = Metric(metric.name, metric.higher_is_better, metric.unit, primary)
            scored.append(Scored(metric, [each.total for each in tallies], [each.count for each in tallies]))
    else:
        note(f"{named.name} is asked through {named.backend} and does not tell distributions: only its answers count")
    if said is not None:
        scored += own_form(said, None if lm.tokenizer is None else chat_side(lm.tokenizer), options.max_new_tokens)
    if not scored:
        return None
    return Answered(named.name, TASK, questions(rows), scored, list(said or [row.reference for row in rows]))


def missing(
    named: Named,
    lm: CachedLM,
    teacher: tuple[Named, CachedLM] | None,
    rows: Sequence[HeldOut],
    options: Evaluate,
    run: Run,
) -> int:
    """How many rows `closeness` would still have to measure."""
    if named.backend != "hf":
        return 0
    near = Side(*teacher) if teacher is not None and teacher[0].backend == "hf" else None
    return len(_Measured(Side(named, lm), near, lm, rows, options, run).new)


def own_form(said: Sequence[str], side: ChatSide | None, most: int) -> list[Scored]:
    """What answers look like: see `closeness`. side: None where the tokenizer is not known: no length in tokens.

    most: tokens at which an answer was cut.   An answer that there is none of (`Broken`) is NaN.
    """
    length, truncated, *distinct = OWN
    there = [not broken(text) for text in said]
    scored: list[Scored] = []
    if side is not None:
        lengths = [len(side.completion_ids(text.encode(), False)) for text in said]
        scored.append(Scored(length, [float(n) if ok else math.nan for n, ok in zip(lengths, there, strict=True)]))
        cut = [float(n >= most) if ok else math.nan for n, ok in zip(lengths, there, strict=True)]
        scored.append(Scored(truncated, cut))
    for n, metric in enumerate(distinct, 1):
        grams = [list(zip(*(words(text)[start:] for start in range(n)), strict=False)) for text in said]
        different = [float(len(set(each))) if ok else math.nan for each, ok in zip(grams, there, strict=True)]
        scored.append(Scored(metric, different, [float(len(each)) for each in grams]))
    return scored


class _Measured:
    """The measures of every row, from the cache or from the models.

    Rows are read in the same batches whatever is in the cache, since a batch decides how sums are rounded.
    """

    def __init__(
        self, model: Side, teacher: Side | None, lm: CachedLM, rows: Sequence[HeldOut], options: Evaluate, run: Run
    ) -> None:
        self._model, self._teacher, self._lm, self._rows, self._run = model, teacher, lm, rows, run
        self._at_once = options.batch_size
        who = None if teacher is None else teacher.named.identity
        self._keys = [[VERSION, who, row.messages, row.tools, row.reference, row.ended] for row in rows]

    @property
    def new(self) -> list[int]:
        """The places of the rows that are not measured yet."""
        return [place for place, key in enumerate(self._keys) if self._lm.answers.get(TASK, key) is None]

    def all(self, note: Callable[[str], None]) -> list[Measures]:
        """One for each row; {} for one that is not measured."""
        new = self.new
        self._lm.requests += len(self._rows)
        self._lm.cached += len(self._rows) - len(new)
        if new:
            self._measure(set(new))
        found: list[Measures] = []
        reasons: dict[str, list[str]] = {}
        for row, key in zip(self._rows, self._keys, strict=True):
            value = self._lm.answers.get(TASK, key) or {}
            if "why" in value:
                reasons.setdefault(value["why"], []).append(row.place)
            found.append({name: Tally(*tally) for name, tally in value.items() if name != "why"})
        for why, places in reasons.items():
            items = "1 held-out item" if len(places) == 1 else f"{len(places):,} held-out items"
            note(f"{self._model.named.name}: {items} not measured, such as {places[0]}: {why}")
        return found

    def _measure(self, new: set[int]) -> None:
        progress, stop = self._run.progress, self._run.stop
        for side in (self._model, self._teacher):
            if side is not None:
                _ = side.head  # a model that cannot be measured at all is refused here
        started, total = time.monotonic(), len(self._rows)
        progress.begin(f"{self._model.named.name}: {TASK}", total=total, already=total - len(new), unit="answers")
        try:
            for batch in self._batches(list(self._readable(new))):
                if not new.isdisjoint(reading.place for reading in batch):
                    if stop.requested:
                        self._lm.not_measured[TASK] = INTERRUPTED
                        break
                    for reading, value in zip(batch, self._values(batch), strict=True):
                        if reading.place in new:
                            self._keep(reading.place, value)
        finally:
            progress.end()
            self._lm.seconds += time.monotonic() - started
        if stop.now:
            raise KeyboardInterrupt

    def _keep(self, place: int, value: dict[str, Any]) -> None:
        self._lm.answers.put(TASK, self._keys[place], value)
        self._run.progress.counts.done += 1
        self._run.progress.tick()

    # ---- rows as both sides read them --------------------------------------------------------------------------

    def _readable(self, new: set[int]) -> Iterator[Reading]:
        """The rows that fit into both contexts; of the others the reason is kept."""
        for place, row in enumerate(self._rows):
            try:
                reading = self._reading(place, row)
            except UsageError as error:  # a template refuses it
                why = str(error)
            else:
                why = self._too_long(reading)
                if not why:
                    yield reading
            if why and place in new:
                self._keep(place, {"why": why})

    def _reading(self, place: int, row: HeldOut) -> Reading:
        """Raises UsageError when a chat template refuses the conversation."""
        model, teacher = self._model.chat, self._teacher.chat if self._teacher else None
        parts = [Part(row.reference.encode())]
        ids, ends = model.write(parts, row.ended)
        ours = model.prompt_ids(row.messages, row.tools), ids
        size = int(ends[-1])
        if teacher is None:
            return Reading(place, ours, None, None, size)
        prompt = teacher.prompt_ids(row.messages, row.tools)
        if self._vocabulary is None:
            return Reading(place, ours, (prompt, ids), None, size)
        theirs, their_ends = teacher.write(parts, row.ended)
        return Reading(place, ours, (prompt, theirs), align(ends, their_ends), size)

    def _too_long(self, reading: Reading) -> str:
        sides = ("the model", self._model, reading.ours), ("the teacher", self._teacher, reading.theirs)
        for who, side, text in sides:  # by no other name: what is kept is read under other names, too
            if side is not None and text is not None and sum(map(len, text)) > side.context:
                return f"too long for the context of {who} ({side.context:,} tokens)"
        return ""

    def _batches(self, readings: list[Reading]) -> Iterator[list[Reading]]:
        """Those of like length together, the longest first: what does not fit into memory shows at once."""
        readings.sort(key=lambda reading: -sum(map(len, reading.ours)))
        while readings:
            longest = sum(map(len, readings[0].ours))
            count = self._at_once or max(1, TOKENS_AT_ONCE // longest)
            yield readings[:count]
            readings = readings[count:]

    # ---- measuring ---------------------------------------------------------------------------------------------

    @cached_property
    def _vocabulary(self) -> VocabularyMap | None:
        """Which columns of both models mean the same bytes; None where all do, in the same order."""
        assert self._teacher is not None
        ours, theirs = self._model.chat, self._teacher.chat
        if (
            same_tokens(ours.token_bytes, theirs.token_bytes)
            and ours.end_of_turn == theirs.end_of_turn
            and ours.lead == theirs.lead
        ):
            return None
        widths = self._model.head.width, self._teacher.head.width
        return build_cached(ours.token_bytes, theirs.token_bytes, *widths, (ours.end_of_turn, theirs.end_of_turn))

    def _values(self, batch: Sequence[Reading]) -> list[dict[str, Any]]:
        """What is kept of each: name -> [sum, count], or {"why": ...}."""
        ours = self._model.states([reading.ours for reading in batch])
        theirs: Sequence[Tensor | None] = [None] * len(batch)
        if self._teacher is not None:
            theirs = self._teacher.states([reading.theirs for reading in batch if reading.theirs is not None])
        return [self._value(*each) for each in zip(batch, ours, theirs, strict=True)]

    def _value(self, reading: Reading, ours: Tensor, theirs: Tensor | None) -> dict[str, Any]:
        for who, states in (("the model", ours), ("the teacher", theirs)):
            if states is not None and not states.isfinite().all():
                return {"why": f"what {who} computes for it is not finite"}
        found = alone(ours, self._model.head, reading.ours[1], reading.size)
        if self._teacher is not None and theirs is not None:
            head = self._teacher.head
            found = add(found, together(ours, self._model.head, theirs, head, reading.groups, self._vocabulary))
        return {name: [tally.total, tally.count] for name, tally in found.items()}


@torch.no_grad()
def alone(hidden: Tensor, head: OutputHead, ids: Sequence[int], size: int) -> Measures:
    """bits_per_byte and entropy of one text.

    hidden: (T, D), where its T tokens `ids` are predicted.   size: its bytes. CHUNK_VALUES logits are held at a time.
    """
    picked: list[Tensor] = []
    entropy, start = 0.0, 0
    for logprobs in head.logprobs(hidden):
        here = torch.tensor(ids[start : start + len(logprobs)], device=logprobs.device)
        picked.append(token_logprobs(logprobs, here))
        entropy -= float((logprobs.exp() * logprobs).cpu().sum(dtype=torch.float64))
        start += len(logprobs)
    bits = surprise(torch.cat(picked), None, size)["bits_per_byte"]
    return {"bits_per_byte": bits, "entropy": Tally(entropy, len(ids))}


@torch.no_grad()
def together(
    ours: Tensor,
    our_head: OutputHead,
    theirs: Tensor,
    their_head: OutputHead,
    groups: Groups | None,
    vocabulary: VocabularyMap | None,
) -> Measures:
    """kl, reverse_kl and top1_agreement of the teacher (theirs) and the model (ours) on one text.

    ours: (S, D), theirs: (T, E).   groups, vocabulary: None with one tokenizer, where rows are compared one by one.
    CHUNK_VALUES logits of a side are held at a time.
    """
    found: Measures = {name: Tally(0.0, 0) for name in MEASURES}
    if groups is None or vocabulary is None:
        width = min(our_head.width, their_head.width)  # they may pad one vocabulary differently
        our_head, their_head = our_head.narrowed(width), their_head.narrowed(width)
        rows = their_rows = torch.arange(len(ours))
    else:  # a row of a group of one token on each side is the token's own, so no other row is needed
        rows, their_rows = (
            torch.from_numpy(groups.is_single[side]).nonzero().squeeze(-1) for side in (groups.student, groups.teacher)
        )
    chunk = max(1, CHUNK_VALUES // max(our_head.width, their_head.width))
    for here, there in zip(rows.split(chunk), their_rows.split(chunk), strict=True):
        student, teacher = our_head.logits(ours[here]), their_head.logits(theirs[there])
        if vocabulary is None:
            found = add(found, compare(student, teacher))
        else:
            every = torch.arange(len(here)).numpy()
            ids = torch.zeros(len(here), dtype=torch.long, device=student.device)  # of what is not asked for
            found = add(found, compare_groups(student, ids, teacher, ids, Groups(every, every, len(here)), vocabulary))
    return {name: found[key] for key, name in MEASURES.items()}
