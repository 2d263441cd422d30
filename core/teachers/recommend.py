"""`teachers`: which models a server lists now, which of them suit what, and what the answers to some prompts cost.

A list says prices, dates and abilities, and not how good a model is: each choice says its rule.
"""

import asyncio
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from ..commands.teachers import ROWS, ROWS_BY_PURPOSE, Purpose, TeacherListed, Teachers, TeachersFound
from ..data.prompts import BadRow, PromptOptions, open_prompts
from ..data.run import Run
from ..data.text import one_line
from ..errors import InputError, UsageError
from .api_client import ApiClient
from .money import message_bytes
from .price_list import Listed, PriceList, read_price_list
from .providers import PROVIDERS

YEAR_S = 365 * 86400.0
LONG = 200_000
"""Tokens of context from which texts count as long."""


def teachers(options: Teachers, run: Run) -> TeachersFound:
    """Read the list and choose. Raises UsageError for a list or prompts that cannot be read."""
    work = _work(options, run) if options.input else None
    listed = asyncio.run(_read(options))
    fitting = _fitting(options, listed)
    by_purpose = work is None and not (options.search or options.tools or options.distillable or options.sort)
    purposes = _purposes(fitting, options.limit or ROWS_BY_PURPOSE) if by_purpose else []
    if purposes:
        named = {name for purpose in purposes for name in purpose.models}
        shown = [each for each in fitting if each.name in named]
    else:
        shown = _ordered(options, fitting, work)[: options.limit or ROWS]
    found = TeachersFound(
        source=listed.source,
        read_at=f"{listed.read_at:%Y-%m-%d %H:%M} UTC",
        listed=len(listed.models),
        fitting=len(fitting),
        purposes=purposes,
        teachers=[_shown(each, work) for each in shown],
        prompts=work.prompts if work else None,
        bad_rows=work.bad_rows if work else 0,
        prompt_tokens_estimate=work.tokens_in if work else None,
        completion_tokens_at_most=work.tokens_out if work else None,
        notes=_notes(options, listed, fitting, shown, by_purpose=bool(purposes)),
        next=_next(options),
    )
    run.out(found.table())
    return found


async def _read(options: Teachers) -> PriceList:
    # OpenRouter's list is open to all; named by its URL it needs no key, though one that is there goes along.
    public = options.server == "openrouter" and options.api_key_env is None
    url = options.base_url or (PROVIDERS["openrouter"].url if public else None)
    client = ApiClient(
        options.server, base_url=url, api_key_env=options.api_key_env, timeout_s=options.timeout, connections=2
    )
    try:
        permissions = options.server == "openrouter"
        return await read_price_list(client, permissions=permissions, required=options.distillable)
    finally:
        await client.aclose()


# ---- what is to be paid --------------------------------------------------------------------------------------------


class Work:
    """The answers to a file of prompts. The figures are those of generate_teacher_data's dry run."""

    def __init__(self, prompts: int, bad_rows: int, prompt_bytes: int, samples: int, max_tokens: int) -> None:
        self.prompts, self.bad_rows = prompts, bad_rows
        self.tokens_in = prompt_bytes * samples // 4  # 4 characters of English are about a token
        self.tokens_out = prompts * samples * max_tokens


def _work(options: Teachers, run: Run) -> Work:
    """Raises InputError for a file without a prompt."""
    prompts = size = 0
    bad: list[str] = []
    reading = PromptOptions(options.prompt_key, options.system)
    with open_prompts(str(options.input), reading) as rows:
        for row in rows():
            run.stop.check()
            if isinstance(row, BadRow):
                bad.append(str(row))
            else:
                prompts, size = prompts + 1, size + message_bytes(row.messages)
    if not prompts:
        if bad:
            raise UsageError("no usable prompt in the input:\n  " + "\n  ".join(bad[:5]))
        raise InputError(str(options.input), None, "holds no prompts (only blank lines).")
    if bad:
        more = f"\n  ... and {len(bad) - 5:,} more" if len(bad) > 5 else ""
        run.progress.note(f"unusable rows: {len(bad):,}\n  " + "\n  ".join(bad[:5]) + more)
    return Work(prompts, len(bad), size, options.samples, options.max_tokens)


def _cost(each: Listed, work: Work) -> float | None:
    return None if each.price is None else each.price.cost(work.tokens_in, work.tokens_out)


# ---- which are asked for -------------------------------------------------------------------------------------------


def _fitting(options: Teachers, listed: PriceList) -> list[Listed]:
    """Those that the options leave. Raises UsageError where none is left, or the list does not say."""
    models = [each for each in listed.models if each.text]
    if options.tools and all(each.tools is None for each in models):
        raise UsageError(f"{listed.source} does not say which models call tools: leave out --tools.")
    word = (options.search or "").lower()
    found = [
        each
        for each in models
        if word in each.name.lower()
        and (not options.tools or each.tools)
        and (not options.distillable or each.may_train)
    ]
    if not found:
        raise UsageError(
            f"none of the {len(models):,} models in {listed.source} that write text is of that kind: "
            "ask for less (--search, --tools, --distillable)."
        )
    return found


def _ordered(options: Teachers, models: list[Listed], work: Work | None) -> list[Listed]:
    """What costs an unknown amount, or is of an unknown age, comes last."""
    if options.sort == "context":
        return sorted(models, key=lambda each: (-(each.context or 0), each.usd_both))
    if options.sort == "price" or (work is None and options.sort is None and all(m.created is None for m in models)):
        return sorted(models, key=lambda each: each.usd_both)
    if work is not None and options.sort is None:
        return sorted(models, key=lambda each: (each.price is None, _cost(each, work) or 0.0))
    return sorted(models, key=lambda each: -(each.created or 0))


def _purposes(models: list[Listed], limit: int) -> list[Purpose]:
    """A few teachers for each purpose; none where the list names no prices."""
    lasting = [each for each in models if each.price is not None and each.expires is None]
    newest = max((each.created or 0 for each in lasting), default=0)
    recent = [each for each in lasting if (each.created or 0) >= newest - YEAR_S]
    paid = [each for each in recent if each.usd_both > 0]
    if not paid:
        return []
    middle = sorted(each.usd_both for each in paid)[len(paid) // 2]
    vendors = Counter(each.vendor for each in models)

    def of_each_vendor(found: Iterable[Listed]) -> list[Listed]:
        """The newest of each vendor, vendors with most models first."""
        latest: dict[str, Listed] = {}
        for each in sorted(found, key=lambda each: -(each.created or 0)):
            latest.setdefault(each.vendor, each)
        return sorted(latest.values(), key=lambda each: (-vendors[each.vendor], each.vendor))

    def cheapest(found: Iterable[Listed]) -> list[Listed]:
        return sorted(found, key=lambda each: each.usd_both)

    each_vendor = "the newest of each vendor, those with most models first"
    permitted = "calls tools, may be trained on" if any(m.may_train is not None for m in paid) else "calls tools"
    rules: list[tuple[str, str, Callable[[], list[Listed]]]] = [
        (
            "may be trained on",
            f"their authors allow it; {each_vendor}",
            lambda: of_each_vendor(each for each in paid if each.may_train),
        ),
        (
            "tools",
            f"{permitted}, at most the median price; {each_vendor}",
            lambda: of_each_vendor(m for m in paid if m.tools and m.may_train is not False and m.usd_both <= middle),
        ),
        ("newest", each_vendor, lambda: of_each_vendor(paid)),
        ("cheapest", "the lowest prices of the last twelve months", lambda: cheapest(paid)),
        (
            "long texts",
            f"a context of {LONG:,} tokens or more, the cheapest of the last twelve months",
            lambda: cheapest(each for each in paid if (each.context or 0) >= LONG),
        ),
        (
            "reasoning",
            f"thinks before it answers, at most the median price; {each_vendor}",
            lambda: of_each_vendor(each for each in paid if each.reasons and each.usd_both <= middle),
        ),
        (
            "log-probabilities",
            f"tells those of its tokens, as train_gold's probe asks; {each_vendor}",
            lambda: of_each_vendor(each for each in paid if each.logprobs),
        ),
    ]
    chosen = [Purpose(name=name, how=how, models=[m.name for m in rule()[:limit]]) for name, how, rule in rules]
    return [purpose for purpose in chosen if purpose.models]


# ---- how it is said ------------------------------------------------------------------------------------------------


def _shown(each: Listed, work: Work | None) -> TeacherListed:
    return TeacherListed(
        model=each.name,
        prompt_usd_per_million=None if each.price is None else round(each.price.prompt * 1e6, 9),
        completion_usd_per_million=None if each.price is None else round(each.price.completion * 1e6, 9),
        context_tokens=each.context,
        created=None if each.created is None else f"{datetime.fromtimestamp(each.created, UTC):%Y-%m-%d}",
        calls_tools=each.tools,
        reasons=each.reasons,
        tells_logprobs=each.logprobs,
        distillable=each.may_train,
        cost_at_most_usd=None if work is None else _cost(each, work),
    )


def _notes(
    options: Teachers, listed: PriceList, fitting: list[Listed], shown: list[Listed], *, by_purpose: bool
) -> list[str]:
    notes = [listed.note] if listed.note else []
    if all(each.price is None for each in fitting):
        notes.append("no prices: the list names none" if len(fitting) > 1 else "no price: the list names none")
    elif not by_purpose and len(shown) < len(fitting):
        notes.append(f"{len(shown):,} of {len(fitting):,} that fit are shown: --limit {len(fitting)} shows all")
    if by_purpose:
        notes.append("chosen by these rules from that list alone, which says nothing of how good a model is")
        if free := sum(each.usd_both == 0 for each in fitting):
            notes.append(f"{free:,} more cost nothing: --sort price shows them first")
    leaving = [f"{each.name} ({one_line(each.expires, 20)})" for each in shown if each.expires]
    if leaving:
        notes.append(f"soon to be gone: {', '.join(leaving)}")
    if any(each.tools is not None for each in shown):
        notes.append("can: tools - calls tools; think - reasons first; logp - tells log-probabilities of its tokens")
    if any(each.may_train is not None for each in shown):
        notes.append("can: train - its author allows training on its text, as the provider knows; the licence decides")
    return notes


def _next(options: Teachers) -> str:
    if options.input:
        return f"python scripts/generate_teacher_data.py --input {shlex.quote(options.input)} --model NAME --dry-run"
    return "python scripts/teachers.py --input FILE adds what the answers to your prompts cost with each"
