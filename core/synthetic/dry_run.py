"""What a run would ask, and what that would cost."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..commands.generate_synthetic import TYPES, Ask, RecordType, SyntheticPlan
from ..teachers.answer_book import read_answers
from ..teachers.money import message_bytes
from .making import Role
from .records import Slot
from .shelf import Shelf

if TYPE_CHECKING:
    from .synthesis import Synthesis

LOOKED_AT = 200
"""Slots whose prompts are made to see how long they are."""
QUESTION = "x" * 200
"""What stands for a question that is not written yet."""


def plan_of(synthesis: "Synthesis") -> SyntheticPlan:
    """The plan of a run that was not begun. Touches no file of the user's, and makes no paid request."""
    options, workshop, domain = synthesis.options, synthesis.workshop, synthesis.domain
    wanted: Counter[RecordType] = Counter()
    requests: Counter[Role] = Counter()
    looked_at: list[Slot] = []
    synthesis.shelf = Shelf(Path(tempfile.gettempdir()), options.num_records)
    try:
        if not options.overwrite:
            synthesis.folder.check(synthesis.made_of)
            read_answers(synthesis.folder.answers, synthesis.replay)
        there = len(synthesis.shelf)
        every = max(1, (options.num_records - there) // LOOKED_AT)
        for slot in synthesis.plan.slots(options.num_records):
            wanted[slot.type] += 1
            if slot.number in synthesis.shelf:
                continue
            if requests["reviews"] % every == 0:
                looked_at.append(slot)
            requests["reviews"] += 1
            requests["answers"] += slot.turns
            requests["questions"] += 0 if domain.task(slot).is_made_here else slot.turns
    finally:
        synthesis.shelf.close()
    if domain.nemo is None or not domain.nemo.judges:
        requests["reviews"] = 0
    roles: list[Role] = ["questions", "answers", "reviews"]
    asks = [_ask(synthesis, role, requests[role], looked_at) for role in roles if role in synthesis.voices]
    costs = [ask.worst_case_usd for ask in asks if ask.requests]
    worst = None if None in costs else sum(cost for cost in costs if cost is not None)
    first = next((slot for slot in looked_at if not domain.task(slot).is_made_here), None)
    example = workshop.request(workshop.begin(first)).messages if first else []
    return SyntheticPlan(
        domain=domain.name,
        records={kind: wanted[kind] for kind in TYPES if wanted[kind]},
        there=there,
        asks=asks,
        worst_case_usd=worst,
        worst_case_with_tries_usd=None if worst is None else worst * options.tries,
        example=[{"role": str(one["role"]), "content": str(one["content"])} for one in example],
    )


def _ask(synthesis: "Synthesis", role: Role, requests: int, slots: Sequence[Slot]) -> Ask:
    """What one of the models would get, from the prompts of some of the slots."""
    options, workshop, voice = synthesis.options, synthesis.workshop, synthesis.voices[role]
    sizes: list[int] = []
    for slot in slots:
        making = workshop.begin(slot)
        if role == "answers" and not making.conversation:
            making.conversation = [{"role": "user", "content": QUESTION}]
        if role == "reviews":
            length = options.max_tokens + options.question_max_tokens
            making.conversation = [
                {"role": "user", "content": QUESTION},
                *[{"role": "assistant", "content": ""}] * (2 * slot.turns - 1),
            ]
            sizes.append(message_bytes(workshop.request(making).messages) + voice.around + 4 * slot.turns * length)
        elif making.role == role and not workshop.given_up(making):
            # On average, half of a dialogue was said when a turn is asked for.
            said = 4 * (slot.turns - 1) * (options.max_tokens + options.question_max_tokens) // 2
            sizes.append(message_bytes(workshop.request(making).messages) + said)
    tokens_in = requests * sum(sizes) // (4 * len(sizes)) if sizes else 0
    tokens_out = requests * voice.sampling.max_tokens
    price, teacher = voice.price, voice.teacher
    unlisted = f"unknown, none found at {teacher.endpoint}/models; see --price and --question-price"
    free = 0.0 if teacher.local or not requests else None
    return Ask(
        model=teacher.model,
        backend=teacher.backend,
        role=role,
        requests=requests,
        prompt_tokens_estimate=tokens_in,
        completion_tokens_at_most=tokens_out,
        price_usd_per_million=(price.prompt * 1e6, price.completion * 1e6) if price else None,
        price_source=price.source if price else ("none, it runs here" if teacher.local else unlisted),
        worst_case_usd=price.cost(tokens_in, tokens_out) if price else free,
    )
