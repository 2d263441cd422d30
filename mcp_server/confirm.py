"""Paid work needs a yes: a bound that came with the call, the user's answer in the client, or a second call."""

import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
from mcp.shared.exceptions import MCPError
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from mcp.types.version import is_version_at_least

from core.commands import Command
from core.data.keys import work_key
from core.errors import UsageError

from .answers import answer
from .door import Door
from .marked import safe

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context
    from mcp.types import CallToolResult

KEY = "confirm"
"""Of the question among those that a client is asked."""
ASKED_AS_RESULT = "2026-07-28"
"""From this version of the protocol on a question is the result of a call, and the call is made again with the
answer; before it the server asks in the middle of the call."""
TOKEN_S = 600.0
ANSWER_S = 300.0
"""For the user, while the call waits."""
MOST_OPEN = 1000
LISTED = ("openrouter",)
"""Back ends whose list of prices is read, so that no call need give one."""
LEAST_USD = 0.01
"""Bound of what costs nothing or next to nothing: no job goes without one."""
MOST_LINES = 20


# ---- what may cost money -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Billed:
    """A model that a command asks over an API which may bill for it.

    hosted: by a provider, not a server on this machine, which may be anything.   before: how the names of its options
    begin, as "judge_".   price: that the call gives, in USD per million prompt/completion tokens.
    """

    model: str
    backend: str
    hosted: bool
    before: str = ""
    price: str | None = None

    def __str__(self) -> str:
        return f"{self.model} ({self.backend})"


def billed(command: Command) -> list[Billed]:
    """Whom a command would ask for money. Raises UsageError for a model whose name says nothing."""
    from core.teachers import backend_of  # all of this here, because clients wait for a server to start
    from core.teachers.providers import PROVIDERS

    from .guard import is_here, teachers

    found: dict[tuple[Any, ...], Billed] = {}
    for before, (model, wanted, base_url, _) in zip(beginnings(command), teachers(command), strict=False):
        backend = backend_of(model, wanted, base_url)
        provider = PROVIDERS.get(backend)
        if provider is None:  # it runs on this machine
            continue
        here = is_here(urlsplit(base_url or provider.url))
        if provider.hosted or not here:
            price = getattr(command, f"{before}price", None)
            found.setdefault((model, backend, base_url, price), Billed(model, backend, not here, before, price))
    return list(found.values())


def beginnings(command: Command) -> tuple[str, ...]:
    """How the names of the options begin that are about each of `guard.teachers`: "backend", "judge_backend", ..."""
    from core.commands.check_data import CheckData
    from core.commands.generate_synthetic import GenerateSynthetic
    from core.commands.teacher import TeacherOptions

    match command:
        case GenerateSynthetic():
            return ("", "question_")
        case TeacherOptions():
            return ("",)
        case CheckData(teacher=None):
            return ("judge_",)
        case _:
            return ("teacher_", "judge_")


def pinned(command: Command) -> dict[str, Any]:
    """The back ends that follow from models' names and from what is on the disk, as options. The job is held to them,
    so that a model which was a folder here when nobody was asked for money is not looked for at a provider later."""
    from core.teachers import backend_of

    from .guard import teachers

    found: dict[str, Any] = {}
    for before, (model, wanted, base_url, _) in zip(beginnings(command), teachers(command), strict=False):
        if wanted is not None:
            continue
        try:
            backend = backend_of(model, None, base_url)
        except UsageError:  # the command will say so
            continue
        if not before or backend != found.get("backend"):  # a question model shares the place of the other
            found[f"{before}backend"] = backend
    return found


def refuse_prices(asked: list[Billed]) -> None:
    """Raises UsageError for prices of a call's that would make a bound of nothing."""
    for each in asked:
        if each.price is None or not each.hosted:
            continue
        if each.backend in LISTED:
            raise UsageError(f"{each.before}price: {each.backend} lists its prices, and those count. Leave it out.")
        if not all(map(float, each.price.split("/"))):
            raise UsageError(f"{each.before}price: {each.price} would bound nothing. Give what {each} charges.")


def cost_of(plan: Mapping[str, Any]) -> float | None:
    """USD at most, as a dry run found it; None where no price is known."""
    names = ("worst_case_with_tries_usd", "worst_case_usd", "cost_in_all_usd")
    return next((float(plan[name]) for name in names if plan.get(name) is not None), None)


# ---- asking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """work: what identifies the very work that is agreed to.   text: for the user.   plan: what a dry run found.
    bound: USD at which the job will be stopped; None where nothing can stop it."""

    tool: str
    work: str
    text: str
    plan: Mapping[str, Any] | None
    bound: float | None


@dataclass
class Agreements:
    """Who agreed to what. All of it is forgotten with the process: nothing is paid on an old yes."""

    _open: dict[str, tuple[str, float, float | None]] = field(default_factory=dict)  # (work, expires, bound)

    def token(self, question: Question) -> str:
        """What stands for a question, once, for the next ten minutes."""
        now = time.monotonic()
        self._open = {token: entry for token, entry in self._open.items() if entry[1] > now}
        while len(self._open) >= MOST_OPEN:
            del self._open[next(iter(self._open))]
        token = secrets.token_urlsafe(16)
        self._open[token] = (question.work, now + TOKEN_S, question.bound)
        return token

    def redeem(self, token: str, work: str) -> float | None:
        """The bound that goes with a token. Raises UsageError for one that is not, or no longer, for this work."""
        asked_for, expires, bound = self._open.get(token, ("", 0.0, None))
        if expires <= time.monotonic():
            raise UsageError(
                "confirm: this token is not known here: each one counts once, for ten minutes. Call again without it."
            )
        if asked_for != work:
            raise UsageError("confirm: this token is for other arguments. Call again without it, or with those.")
        del self._open[token]
        return bound


def work_of(tool: str, values: Mapping[str, Any]) -> str:
    """What identifies a piece of work."""
    try:
        return work_key([tool, dict(values)])
    except TypeError:  # half characters, integers beyond 64 bits
        return work_key([tool, repr(sorted(values.items()))])


def question_of(
    tool: str,
    work: str,
    asked: list[Billed],
    plan: Mapping[str, Any] | None,
    ceiling: float | None,
    wanted: float | None = None,
) -> Question:
    """What the user is asked.

    plan: what the dry run found; None where it took, or would take, too long.   ceiling: None for a command that takes
    no bound.   wanted: the bound in the call. Raises UsageError where a provider would be paid without a bound,
    although the command takes one.
    """
    whom = " and ".join(dict.fromkeys(map(str, asked)))
    if ceiling is None:
        lines = [str(line) for line in (plan or {}).get("plan") or (plan or {}).get("would_ask") or ()]
        text = f"{tool} asks {whom}, which may cost money; it has no max_cost, so that nothing bounds it."
        return Question(tool, work, "\n".join([text, *lines[:MOST_LINES], "Start it?"]), plan, None)
    prices = " and ".join(dict.fromkeys(each.price for each in asked if each.price))
    by = f", by the price that this call gives ({prices} USD per million prompt/completion tokens)" if prices else ""
    if plan is None:
        text = f"{tool} asks {whom}, which may cost money; its dry_run says how much, and takes a while."
        bound = wanted or ceiling
        return Question(tool, work, f"{text} It is stopped at {usd(bound)} USD{by}. Start it?", None, bound)
    cost = cost_of(plan)
    if cost is None:
        if any(each.hosted for each in asked):
            raise UsageError(no_price(asked))
        text = f"{tool} asks {whom}. No price is known there: if it costs anything, nothing bounds it. Start it?"
        return Question(tool, work, text, plan, None)
    bound = wanted or min(ceiling, max(LEAST_USD, math.ceil(200 * cost) / 100))
    over = f" (more than the {bound:g} USD that it may spend here: it may end too early)" * (cost > bound)
    text = f"{tool} asks {whom} and costs at most about {usd(cost)} USD{by}{over}."
    return Question(tool, work, f"{text} It is stopped at {usd(bound)} USD. Start it?", plan, bound)


def no_price(asked: list[Billed]) -> str:
    """What a caller is told where nobody knows what a provider charges."""
    unknown = [each for each in asked if each.hosted and not each.price and each.backend not in LISTED]
    whom = " and ".join(map(str, unknown or asked))
    text = f"no price is known for {whom}, so that nothing would bound the spending."
    if not unknown:
        return f"{text} Choose a model whose price is listed."
    fields = ", ".join(f'"{each.before}price": "3/15"' for each in unknown)
    return f"{text} Give it as config {{{fields}}}: USD per million prompt/completion tokens."


def usd(amount: float) -> str:
    """Cents, and of what is less than one a millionth at least."""
    return f"{max(amount, 1e-6):.6f}".rstrip("0") if 0 < amount < LEAST_USD else f"{amount:.2f}"


async def ask(
    door: Door, question: Question, agreements: Agreements, context: "Context[Any, Any]"
) -> "tuple[float | None] | CallToolResult | InputRequiredResult":
    """(the bound that was agreed to,), or what the client is answered meanwhile. Raises UsageError for a no."""
    if not _can_ask(context):
        return in_two_steps(door, question, agreements)
    text = door.workspace.show(safe(question.text))
    form = ElicitRequestFormParams(message=text, requested_schema=FORM)
    if _in_results(context):
        state = agreements.token(question)
        return InputRequiredResult(input_requests={KEY: ElicitRequest(params=form)}, request_state=state)
    said = None
    try:
        with anyio.move_on_after(ANSWER_S):
            said = await context.session.elicit_form(
                message=text, requested_schema=FORM, related_request_id=context.request_id
            )
    except MCPError as error:
        raise UsageError(
            f"the client could not ask the user ({error}). Give max_cost, the most USD that this may cost."
        ) from None
    if said is None:  # nobody is there
        return in_two_steps(door, question, agreements)
    _agreed(said)
    return (question.bound,)


def in_two_steps(door: Door, question: Question, agreements: Agreements) -> "CallToolResult":
    """The question as an answer, with what a second call needs."""
    token = agreements.token(question)
    then = f'when the user agrees, call {question.tool} again with the same arguments and confirm="{token}"'
    value = {"state": "needs_confirmation", "plan": question.plan, "confirm": token, "next": then}
    return answer(value, f"{question.text}\nNothing was started.\nnext: {then}", door.workspace.show)


def answered(work: str, agreements: Agreements, context: "Context[Any, Any]") -> tuple[float | None] | None:
    """(the bound,) where the client comes back with the user's yes; None where it was not asked. Raises UsageError."""
    said = (context.input_responses or {}).get(KEY)
    if said is None or context.request_state is None:
        return None
    bound = agreements.redeem(context.request_state, work)
    if not isinstance(said, ElicitResult):
        raise UsageError("the answer to the question whether to start is of another kind. Call again.")
    _agreed(said)
    return (bound,)


FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"start": {"type": "boolean", "title": "Start it", "default": True}},
}


def _agreed(said: ElicitResult) -> None:
    if said.action != "accept" or (said.content or {}).get("start", True) is not True:
        raise UsageError("the user did not agree. Nothing was started, and nothing was paid.")


def _can_ask(context: "Context[Any, Any]") -> bool:
    capabilities = context.client_capabilities
    elicitation = None if capabilities is None else capabilities.elicitation
    if elicitation is None or (elicitation.form is None and elicitation.url is not None):
        return False
    return _in_results(context) or context.session.can_send_request


def _in_results(context: "Context[Any, Any]") -> bool:
    version = context.protocol_version
    return version is not None and is_version_at_least(version, ASKED_AS_RESULT)
