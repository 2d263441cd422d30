"""A teacher that can only chat, asked for its next token at a few positions of an answer."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..commands.train_gold import TrainGold
from ..distillation.chat import ChatSide
from ..distillation.measures import Measures
from ..distillation.output_head import OutputHead
from ..distillation.terms import LossTerms
from ..teachers.chat_teacher import ChatTeacher, NextToken, Prefix
from ..teachers.scorer import TeacherScores
from .columns import Columns, padded
from .comparisons import bits_per_byte, check_loss, entropies, measure_told, probe_words, told_rows
from .exchange import Exchange, text_bytes
from .samples import Sample
from .signal import Answers, Mode, answered
from .student import Student


class ProbeSignal:
    """A `Signal` from the teacher's next token after the beginning of an answer, one request for each position.

    The loss sees the positions where the student is least sure, which is where most of the difference between two
    models lies. Its mean is therefore not that over all positions; validation draws positions evenly instead.

    The teacher reads a beginning as text, in its own tokens. Where that ends inside a word, those are not the tokens it
    would have written, and what it tells next may differ from what it tells of the whole text.

    Raises UsageError for options that compare what such a teacher does not tell.
    """

    mode: Mode = "probe"
    answers: Answers = "both"
    per_prompt = 1
    lost = "the teacher's server told nothing of it at any of the probed positions"
    waits = False  # the student itself says where it is least sure

    def __init__(self, options: TrainGold, student: Student, chat: ChatTeacher) -> None:
        check_loss(options, self.mode)
        self.reasons: dict[str, str] = {}
        self._options, self._student, self._chat = options, student, chat
        self._columns = Columns(student.side, student.head.width)
        self.words = probe_words(options.beta, chat.top, options.probe_positions, options.max_new_tokens)

    def exchange(self, sample: Sample, completion_ids: Sequence[int], ended: bool, on_policy: bool) -> Exchange:
        """See `Signal`."""
        ids = [int(place) for place in completion_ids]
        return Exchange(sample, ids, ended, on_policy, ids, None)

    def scored(self, exchanges: Sequence[Exchange], *, measuring: bool = False) -> list[Exchange]:
        """See `Signal`; positions that the server told nothing of are left out, and answers without any.

        measuring: positions are drawn evenly, the same ones of an answer every time, so that the mean over them is an
        unbiased estimate of that over all that can be asked, and what does not change is paid once.
        Raises StoppedEarly as `signal.answered` does.
        """
        chosen: list[tuple[list[int], dict[int, str]]] = []
        for exchange in exchanges:
            texts = self._askable(exchange)
            places = self._drawn(exchange, texts) if measuring else self._least_sure(exchange, texts)
            chosen.append((places, texts))
        asked = [
            Prefix(exchange.sample.messages, texts[place], exchange.sample.tools or ())
            for exchange, (places, texts) in zip(exchanges, chosen, strict=True)
            for place in places
        ]
        named = [exchange.sample.place for exchange, (places, _) in zip(exchanges, chosen, strict=True) for _ in places]
        told = iter(answered(self._chat.next_tokens(asked), named, self._chat.server, self.reasons))
        found = [
            self._told(exchange, [(place, next(told)) for place in places])
            for exchange, (places, _) in zip(exchanges, chosen, strict=True)
        ]
        return [exchange for exchange in found if exchange.positions]

    def loss(self, hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> LossTerms:
        """See `Signal`."""
        return told_rows(hidden, head, exchanges, self._options.beta)

    def measure(self, hidden: Tensor, head: OutputHead, exchanges: Sequence[Exchange]) -> Measures:
        """See `Signal`; probed_mass as `comparisons.measure_told` has it."""
        found = measure_told(hidden, head, exchanges)
        return bits_per_byte(found, sum(text_bytes(self._student.side, each) for each in exchanges))

    def _askable(self, exchange: Exchange) -> dict[int, str]:
        """Position -> the text before it, where the teacher can be asked."""
        texts = beginnings(self._student.side, exchange.completion_ids)
        if self._chat.keeps_blanks:
            return texts
        return {place: text for place, text in texts.items() if text == text.rstrip()}

    def _drawn(self, exchange: Exchange, places: Mapping[int, str]) -> list[int]:
        count = min(self._options.probe_positions, len(places))
        drawn = np.random.default_rng(int(exchange.sample.key, 16)).choice(list(places), count, replace=False)
        return sorted(int(place) for place in drawn)

    @torch.no_grad()
    def _least_sure(self, exchange: Exchange, places: Mapping[int, str]) -> list[int]:
        """By the entropy of the student's distribution; of equals the first. One answer at a time: that is little
        beside the requests, and needs less memory than any step of training."""
        if len(places) <= self._options.probe_positions:
            return list(places)
        student = self._student
        training = student.model.training
        student.model.eval()
        try:
            hidden = student.hidden([exchange.sample.prompt_ids], [exchange.completion_ids])
        finally:
            student.model.train(training)
        unsure = torch.cat([entropies(rows) for rows in student.head.logprobs(hidden)]).tolist()
        return sorted(sorted(places, key=lambda place: -unsure[place])[: self._options.probe_positions])

    def _told(self, exchange: Exchange, answers: Sequence[tuple[int, NextToken | None]]) -> Exchange:
        """The answer with what came back. The log-probability of its own tokens is among the alternatives, or unknown:
        `picked` is None."""
        known = [(place, answer) for place, answer in answers if answer is not None]
        rows = [self._columns.row(answer.top, answer.ended, first=place == 0) for place, answer in known]
        positions = [place for place, _ in known]
        ids, logprobs = padded(rows)
        tokens = [exchange.completion_ids[place] for place in positions]
        scores = TeacherScores("top_k", tokens, top_ids=ids, top_logprobs=logprobs)
        return replace(exchange, positions=positions, scores=scores)


def beginnings(side: ChatSide, ids: Sequence[int]) -> dict[int, str]:
    """Position -> the answer's text before it, for every position where that is a text: whole characters, and no
    special token among them. The space that the student's own way of writing puts first is no part of it."""
    table = side.token_bytes
    decoder = codecs.getincrementaldecoder("utf-8")()
    found: dict[int, str] = {}
    text = ""
    for place, token in enumerate(ids):
        if not decoder.getstate()[0]:  # no character is begun
            found[place] = text.removeprefix(side.lead.decode())
        if token >= table.size or table.special[token] or not table.known[token]:
            break
        try:
            text += decoder.decode(table.pieces[token])
        except UnicodeDecodeError:
            break
    return found
