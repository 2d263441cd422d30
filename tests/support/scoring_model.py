"""The model behind the scoring server: what it thinks of given tokens and what it answers, for several requests at
a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from core.teachers.hf_model import load_model, load_tokenizer

FORWARD_TOKENS = 512
"""Tokens (padding too) in one pass whose logits are all kept: 100 MB of them for a vocabulary of 49,152."""


@dataclass(frozen=True)
class Place:
    """One token of a text, and what the model thought there before it read that token.

    logprob: nats; None for a text's first token.   rank: 1 is the most probable token.
    top: (token, logprob), the most probable first.
    """

    token: int
    logprob: float | None = None
    rank: int | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What one request asks of the model.

    score_from: the first token whose log-probability is wanted; None scores nothing.
    shifted: score each token with what the model expects after it, as llama-cpp-python's `echo` does.
    top: how many of the most probable tokens are named; -1 names all.
    max_tokens: length of the answer, 0 for none.   temperature: of the draw, 0 is greedy.
    scale: what logits are divided by before they become the log-probabilities that are reported.
    noise: standard deviation, in nats, of what is added to every logit.
    """

    ids: list[int]
    score_from: int | None = None
    shifted: bool = False
    top: int = 0
    max_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    scale: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0
    seed: int = 0


@dataclass
class Outcome:
    """prompt: a place for each token of the prompt, where they were asked for.   answer: its tokens, the end of turn
    among them.   ended: the model ended its turn itself."""

    prompt: list[Place] = field(default_factory=list)
    answer: list[Place] = field(default_factory=list)
    ended: bool = False


class Chance:
    """The random numbers of one job."""

    def __init__(self, job: Job) -> None:
        self.draws = torch.Generator().manual_seed(job.seed)
        self.noise = torch.Generator().manual_seed(job.noise_seed)


class ScoringModel:
    """A causal model of transformers in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        transformers.utils.logging.disable_progress_bar()
        self.tokenizer = load_tokenizer(folder, chat=False)
        self._model = load_model(folder, dtype="float32", device_map="cpu", attention="sdpa", load_in_4bit=False)
        self._model.requires_grad_(False)
        self.width: int = self._model.get_output_embeddings().weight.shape[0]
        spelled = token_bytes(self.tokenizer)
        self.bytes = spelled + [b""] * (self.width - len(spelled))  # rows of the head that belong to no token
        self.context: int = self._model.config.max_position_embeddings
        ends = self._model.generation_config.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The outcome of each job. Texts of similar length share a pass, which changes the last digits of float32: by
        up to 2e-5 for a log-probability of SmolLM2."""
        outcomes = [Outcome() for _ in jobs]
        with torch.inference_mode():
            scored = [n for n, job in enumerate(jobs) if job.score_from is not None]
            for batch in _batches(jobs, scored, FORWARD_TOKENS):
                self._score([jobs[n] for n in batch], [outcomes[n] for n in batch])
            waiting = [n for n, job in enumerate(jobs) if len(outcomes[n].answer) < job.max_tokens]
            for batch in _batches(jobs, waiting, 8 * FORWARD_TOKENS):
                self._answer([jobs[n] for n in batch], [outcomes[n] for n in batch])
        return outcomes

    def _score(self, jobs: list[Job], outcomes: list[Outcome]) -> None:
        longest = max(len(job.ids) for job in jobs)
        # Padding on the right: a causal model never looks there, so no mask is needed.
        ids = torch.tensor([job.ids + [0] * (longest - len(job.ids)) for job in jobs])
        logits = self._model(input_ids=ids, use_cache=False).logits
        for row, job, outcome in zip(logits, jobs, outcomes, strict=True):
            assert job.score_from is not None
            first = max(1, job.score_from)
            chance = Chance(job)
            before = 0 if job.shifted else 1
            seen = _logprobs(row[first - before : len(job.ids) - before], job, chance)
            outcome.prompt = [Place(token) for token in job.ids[:first]]
            outcome.prompt += _places(seen, job.ids[first:], job.top)
            if job.max_tokens == 1:
                self._extend(row[len(job.ids) - 1], job, outcome, chance)

    def _answer(self, jobs: list[Job], outcomes: list[Outcome]) -> None:
        longest, steps = max(len(job.ids) for job in jobs), max(job.max_tokens for job in jobs)
        missing = [longest - len(job.ids) for job in jobs]
        ids = torch.tensor([[0] * gap + job.ids for gap, job in zip(missing, jobs, strict=True)])
        mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in missing])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        chances = [Chance(job) for job in jobs]
        cache: Any = None
        for step in range(steps):
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=steps > 1,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            busy = False
            for row, job, outcome, chance in zip(out.logits[:, -1], jobs, outcomes, chances, strict=True):
                if step < job.max_tokens and not outcome.ended:
                    self._extend(row, job, outcome, chance)
                busy |= step + 1 < job.max_tokens and not outcome.ended
            if not busy:
                return
            ids = torch.tensor([[outcome.answer[-1].token] for outcome in outcomes])
            mask = torch.cat([mask, torch.ones(len(jobs), 1, dtype=mask.dtype)], 1)
            positions = positions[:, -1:] + 1

    def _extend(self, logits: Tensor, job: Job, outcome: Outcome, chance: Chance) -> None:
        """One more token of an answer. logits: (V,)."""
        seen = _logprobs(logits[None], job, chance)
        if job.temperature == 0:
            token = int(seen.argmax())
        else:
            weights = torch.softmax(seen[0] * (job.scale / job.temperature), 0)
            if job.top_p < 1:
                sizes, order = weights.sort(descending=True)
                weights[order[sizes.cumsum(0) - sizes >= job.top_p]] = 0
            token = int(torch.multinomial(weights, 1, generator=chance.draws))
        outcome.answer += _places(seen, [token], job.top)
        outcome.ended = token in self.ends


def _batches(jobs: Sequence[Job], chosen: list[int], tokens: int) -> Iterator[list[int]]:
    """The chosen jobs, shortest first, in groups of at most so many tokens with their padding."""
    group: list[int] = []
    for n in sorted(chosen, key=lambda n: len(jobs[n].ids)):
        if group and (len(group) + 1) * len(jobs[n].ids) > tokens:
            yield group
            group = []
        group.append(n)
    if group:
        yield group


def _logprobs(logits: Tensor, job: Job, chance: Chance) -> Tensor:
    """(N, V) logits as the log-probabilities that are reported."""
    logits = logits.float()
    if job.noise:
        logits = logits + job.noise * torch.randn(logits.shape, generator=chance.noise)
    return torch.log_softmax(logits / job.scale, -1)


def _places(seen: Tensor, tokens: Sequence[int], top: int) -> list[Place]:
    """seen: (N, V) log-probabilities, one row for each token."""
    if not tokens:
        return []
    picked = seen.gather(1, torch.tensor(tokens)[:, None])
    ranks = (seen > picked).sum(1) + 1
    best = seen.topk(seen.shape[1] if top == -1 else min(top, seen.shape[1]), 1)
    rows = zip(tokens, picked[:, 0].tolist(), ranks.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Place(token, logprob, rank, list(zip(named, values, strict=True)))
        for token, logprob, rank, named, values in rows
    ]


def token_bytes(tokenizer: Any) -> list[bytes]:
    """What each token of a byte-level or SentencePiece tokenizer spells."""
    backend = tokenizer.backend_tokenizer.to_str()
    added = {int(number) for number in tokenizer.added_tokens_decoder}
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()} if '"ByteLevel"' in backend else None
    spelled: list[bytes] = []
    for number, piece in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if number in added:
            spelled.append(piece.encode())
        elif byte_of is not None:
            spelled.append(bytes(byte_of[char] for char in piece))
        elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            spelled.append(bytes.fromhex(piece[3:5]))
        else:
            spelled.append(piece.replace("▁", " ").encode())
    return spelled
