"""The tools that start a command: their arguments checked as the command line checks flags, then a job.

What only a call needs is imported by the call, because clients wait for a server to start.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import to_thread

from core.commands import Command, load
from core.commands.base import flag
from core.commands.resolve import Origins, given, resolve, suggestion
from core.data.environment import dotenv_of
from core.data.secrets import child_environment
from core.errors import UsageError
from core.jobs import Job

from .confirm import LEAST_USD, Agreements, answered, ask, billed, cost_of, pinned, question_of, refuse_prices, work_of
from .door import Door
from .jobs import job_answer, job_tool, wait_for
from .tool import Tool
from .words import COMMAND_OF, told

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context
    from mcp.types import CallToolResult, InputRequiredResult

OURS = ("config", "confirm", "client_request_id")
"""Arguments that are no options of the command."""
QUICK_WAIT_S = 40
PLAN_WAIT_S = 30
LONGEST_ID = 200


@dataclass(frozen=True)
class Call:
    """A call of a command's tool. values: options by name, as flags would give them."""

    tool: str
    model: type[Command]
    values: dict[str, Any]
    confirm: str | None
    request_id: str | None


def command_tools(door: Door) -> list[Tool]:
    """A tool for every command that callers may start."""
    agreements = Agreements()
    return [job_tool(tool, partial(start, door, agreements, tool)) for tool in COMMAND_OF]


async def start(
    door: Door, agreements: Agreements, tool: str, arguments: Mapping[str, Any], context: "Context[Any, Any]"
) -> "CallToolResult | InputRequiredResult":
    """Check, ask where money is at stake, start the job; of quick work, wait for its end."""
    call = read_call(tool, arguments)
    command, origins = await to_thread.run_sync(checked, door, call)
    job = await to_thread.run_sync(earlier, door, call, command, origins)
    if job is None:
        agreed = await agreement(door, agreements, call, command, origins, context)
        if not isinstance(agreed, dict):
            return agreed
        job = await to_thread.run_sync(partial(begin, door, call, command, origins, agreed))
    if not is_quick(tool, command):
        return job_answer(door, job)
    job = await wait_for(door, job, QUICK_WAIT_S, context)
    return job_answer(door, job, is_error=job.state in ("failed", "lost"))


def read_call(tool: str, arguments: Mapping[str, Any]) -> Call:
    """Options from the arguments that are shown and from `config`. Raises UsageError for a name that no option has."""
    model = load(COMMAND_OF[tool])
    more = arguments.get("config")
    if more is not None and not isinstance(more, Mapping):
        raise UsageError(f"config: an object with options by name is needed, not {_kind(more)}. See options://{tool}.")
    values: dict[str, Any] = {}
    shown = {name: value for name, value in arguments.items() if name not in OURS}
    for place, found in (("", shown), ("config: ", more or {})):
        for name, value in found.items():
            if name not in model.model_fields:
                near = suggestion(name, model.model_fields)
                raise UsageError(f'{place}there is no option "{name}".{near} options://{tool} lists all.')
            if name in values:
                raise UsageError(f"{name} is given twice, once in config.")
            if value is not None:  # which is how many clients leave out an argument
                values[name] = value
    return Call(tool, model, values, _text(arguments, "confirm"), _text(arguments, "client_request_id"))


def checked(door: Door, call: Call) -> tuple[Command, Origins]:
    """The command with all its options, and whence they came. Raises UsageError, in the words of the caller."""
    from .guard import guard

    try:
        command, origins = resolved(door, call)
        guard(command, origins, door.workspace, door.settings.allow_urls, door.settings.allow_code)
    except UsageError as error:
        raise UsageError(told(str(error), call.model)) from None
    if getattr(command, "dataset_type", None) == "distill":
        raise UsageError(
            f"{told(origins['dataset_type'], call.model)} asks for distill, which starts train_gold, whose teacher may "
            "cost money. Call train_gold itself, with data, student and teacher: it asks first, and takes max_cost."
        )
    ceiling, wanted = door.settings.max_cost, bound_of(command)
    if wanted is not None and wanted > ceiling:
        raise UsageError(
            f"max_cost: {wanted:g} USD are more than a job may spend here, {ceiling:g} USD, as whoever started this "
            "server decided. Give less."
        )
    return command, origins


def resolved(door: Door, call: Call) -> tuple[Command, Origins]:
    """As the command line does it, with the environment that the job will have and the workspace's .env."""
    from .guard import guard_project

    guard_project(call.model, call.values, door.workspace)  # before its files are read
    environment = child_environment(call.model, os.environ)
    return resolve(call.model, call.values, environment, dotenv_of(door.workspace.root))


async def agreement(
    door: Door, agreements: Agreements, call: Call, command: Command, origins: Origins, context: "Context[Any, Any]"
) -> "dict[str, Any] | CallToolResult | InputRequiredResult":
    """Options to add to the call's once its cost is agreed to, or what the client is answered in its place.

    A bound in the call is a yes, unless it rests on a price of a provider's that the call gives, too.
    """
    bounded, wanted = "max_cost" in call.model.model_fields, bound_of(command)
    try:
        asked = [] if is_dry(command) else billed(command)
        if bounded:
            refuse_prices(asked)
    except UsageError as error:
        raise UsageError(told(str(error), call.model)) from None
    if not asked or (wanted is not None and not any(each.hosted and each.price for each in asked)):
        return {}
    work = work_of(call.tool, options_of(command, origins))
    agreed = answered(work, agreements, context)
    if agreed is None and call.confirm is not None:
        agreed = (agreements.redeem(call.confirm, work),)
    if agreed is None:
        job = await dry_run(door, call, command, origins, context)
        if job is not None and (job.state != "succeeded" or job.result is None):
            return job_answer(door, job, is_error=True)
        plan = None if job is None else job.result
        if bounded and plan is not None and cost_of(plan) == 0 and not any(each.price for each in asked):
            return {"max_cost": LEAST_USD}
        question = question_of(call.tool, work, asked, plan, door.settings.max_cost if bounded else None, wanted)
        reply = await ask(door, question, agreements, context)
        if not isinstance(reply, tuple):
            return reply
        agreed = reply
    return {} if agreed[0] is None else {"max_cost": agreed[0]}


async def dry_run(
    door: Door, call: Call, command: Command, origins: Origins, context: "Context[Any, Any]"
) -> Job | None:
    """What the work would ask for and cost, by the command itself; None where that takes too long, as it does where a
    model would have to be loaded."""
    from core.jobs.devices import loads_a_model

    if loads_a_model(COMMAND_OF[call.tool], {**dict(command), "dry_run": True}):
        return None
    trial = replace(call, confirm=None, request_id=None)
    job = await to_thread.run_sync(partial(begin, door, trial, command, origins, {"dry_run": True}))
    job = await wait_for(door, job, PLAN_WAIT_S, context)
    if job.finished:
        return job
    await to_thread.run_sync(door.jobs.cancel, job.id)
    return None


def options_of(command: Command, origins: Origins) -> dict[str, Any]:
    """The work as the options of a job: nothing is read, and no back end is chosen, again."""
    return {**given(command, origins), **pinned(command)}


def earlier(door: Door, call: Call, command: Command, origins: Origins) -> Job | None:
    """The job that this very call started before; what was agreed to then is no part of the call. Raises UsageError."""
    if call.request_id is None:
        return None
    but = () if bound_of(command) is not None else ("max_cost",)
    return door.jobs.earlier(call.request_id, COMMAND_OF[call.tool], options_of(command, origins), but=but)


def begin(door: Door, call: Call, command: Command, origins: Origins, more: Mapping[str, Any]) -> Job:
    """Start the job. more: options that the call did not give, over those that it gave. Raises UsageError."""
    from core.jobs.devices import device_for

    from .guard import make_parents

    make_parents(command, door.workspace)
    name, environment = COMMAND_OF[call.tool], child_environment(command, os.environ)
    more = {**pinned(command), **more}
    return door.jobs.start(
        name,
        {**given(command, origins), **more},
        origins={**origins, **{option: flag(option) for option in more}},
        cwd=door.workspace.root,
        environment=environment,
        device=device_for(name, {**dict(command), **more}, environment),
        request_id=call.request_id,
        most=door.settings.max_jobs,
    )


def bound_of(command: Command) -> float | None:
    """Most USD that the caller lets it spend; None where nothing was said."""
    return getattr(command, "max_cost", None)


def is_dry(command: Command) -> bool:
    """Whether nothing would be asked, paid or written."""
    return getattr(command, "dry_run", False) is True or getattr(command, "check", False) is True  # or a kind of check


def is_quick(tool: str, command: Command) -> bool:
    """Whether its end is waited for: no model is loaded, and none is asked."""
    from core.jobs.devices import loads_a_model

    from .guard import teachers

    return not loads_a_model(COMMAND_OF[tool], dict(command)) and (is_dry(command) or not teachers(command))


def _text(arguments: Mapping[str, Any], name: str) -> str | None:
    value = arguments.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise UsageError(f"{name}: a text is needed, not {_kind(value)}.")
    if not re.fullmatch(rf"[!-~]{{1,{LONGEST_ID}}}", value):
        raise UsageError(f"{name}: 1 to {LONGEST_ID} plain letters, digits and signs are needed, without blanks.")
    return value


def _kind(value: Any) -> str:
    """A value's type as JSON calls it."""
    kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "an object" if isinstance(value, Mapping) else "null")
