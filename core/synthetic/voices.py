"""The two models: one asks, one answers. They may be one."""

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..commands.generate_synthetic import GenerateSynthetic
from ..commands.teacher import TeacherOptions
from ..teachers import Completer, Completion, Message, Price, Sampling, open_teacher
from ..teachers.money import answer_cost, find_price, given_price, worst_cost
from .domain import Domain, NemoSettings
from .folder import Folder
from .making import Role

JUDGE_TEMPERATURE = 0.2
"""Not 0: what came in the wrong form would come again so."""


@dataclass(frozen=True)
class Voice:
    """One of the two models. sampling: of its answers, without a seed.   price: None where nobody says.
    around: bytes, at most, that are asked beside the messages."""

    teacher: Completer
    sampling: Sampling
    price: Price | None
    around: int = 0

    @property
    def identity(self) -> dict[str, Any]:
        """All that its answers depend on, besides the messages. Not the longest answer: what was whole stays whole."""
        sent = self.teacher.sampling_sent(self.sampling)
        return {**self.teacher.identity, **{name: sent[name] for name in sent if name != "max_tokens"}}

    def cost(self, completion: Completion) -> float | None:
        """USD of an answer; None where it is unknown."""
        return answer_cost(completion, self.teacher, self.price)

    def worst_cost(self, messages: list[Message]) -> float:
        """The most that an answer can cost, in USD; 0 where no price is known."""
        if self.price is None or self.teacher.local:
            return 0.0
        return worst_cost(self.price, messages, self.sampling.max_tokens) + self.price.cost(self.around, 0)


class Voices:
    """Who speaks in each role. samples: of --backend nemo, what else is drawn for a slot's draft."""

    def __init__(self, of: dict[Role, Voice], samples: Callable[[int, int], dict[str, str]] | None = None) -> None:
        self._of, self.samples = of, samples

    def __contains__(self, role: Role) -> bool:
        return role in self._of

    def __getitem__(self, role: Role) -> Voice:
        return self._of[role]

    @property
    def teachers(self) -> list[Completer]:
        """Each model once."""
        return list({id(voice.teacher): voice.teacher for voice in self._of.values()}.values())

    @property
    def identities(self) -> dict[Role, dict[str, Any]]:
        """What the answers in each role depend on, besides the messages."""
        return {role: voice.identity for role, voice in self._of.items()}

    @property
    def prices(self) -> dict[Role, Price | None]:
        """USD per token, where known."""
        return {role: voice.price for role, voice in self._of.items()}

    @property
    def notes(self) -> list[str]:
        """What a user should know before the run starts."""
        return list(dict.fromkeys(note for teacher in self.teachers for note in teacher.notes))

    async def aclose(self) -> None:
        """Let go of the models."""
        for teacher in self.teachers:
            await teacher.aclose()


async def open_voices(options: GenerateSynthetic, domain: Domain) -> Voices:
    """Raises UsageError: a key, a package, a model, a price that --max-cost needs."""
    answering, asking = options.answering(), options.asking()
    top_p = options.top_p or 1.0
    async with AsyncExitStack() as opened:
        teacher = open_teacher(answering)
        opened.push_async_callback(teacher.aclose)
        sampling = Sampling(options.max_tokens, options.temperature, top_p)
        answers = Voice(teacher, sampling, await _price(answering, teacher, "--price"))
        if asking.model_copy(update={"price": None}) != answering.model_copy(update={"price": None}):
            teacher = open_teacher(asking)
            opened.push_async_callback(teacher.aclose)
        sampling = Sampling(options.question_max_tokens, options.question_temperature, top_p)
        questions = Voice(teacher, sampling, await _price(asking, teacher, "--question-price"))
        voices = Voices({"questions": questions, "answers": answers})
        if options.backend == "nemo":
            voices = through_nemo(voices, options, domain.nemo or NemoSettings())
        opened.pop_all()  # they are the caller's now
        return voices


def through_nemo(voices: Voices, options: GenerateSynthetic, settings: NemoSettings) -> Voices:
    """The same models, asked by way of data-designer, and who reviews what they say. Raises MissingDependency."""
    from .nemo import Nemo, review_overhead

    log = Path(os.devnull) if options.dry_run else Folder(options.output_dir).path / "data_designer.log"
    nemo = Nemo(settings, options.seed or 0, log, options.concurrency, options.timeout)
    through = {id(teacher): nemo.teacher(teacher) for teacher in voices.teachers}
    of: dict[Role, Voice] = {
        role: replace(voices[role], teacher=through[id(voices[role].teacher)]) for role in ("questions", "answers")
    }
    if settings.judges or settings.validators:
        judge = voices[settings.judged_by]
        of["reviews"] = Voice(
            nemo.reviewer(judge.teacher),
            Sampling(options.max_tokens, JUDGE_TEMPERATURE, judge.sampling.top_p),
            judge.price if settings.judges else None,
            review_overhead(settings),
        )
    return Voices(of, nemo.samples.of if settings.samplers else None)


async def _price(options: TeacherOptions, teacher: Completer, option: str) -> Price | None:
    if options.dry_run or options.max_cost is not None:
        found = await find_price(options, teacher, option)
    else:
        found = given_price(options)
    return replace(found, source=option) if found and found.source == "--price" else found
