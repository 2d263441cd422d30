"""Users' own Python files, and the names of the package rnow that such files import.

A file written for rnow says `from rnow.core import tool, reward, RewardArgs, get_response`. Where rnow is not
installed, small modules of these names stand in for it while the file is loaded.
"""

import asyncio
import contextvars
import hashlib
import importlib.util
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

from ..errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])

REWARD_MARK = "__distill_reward__"
TOOL_MARK = "__distill_tool__"


@dataclass(frozen=True)
class RewardMark:
    """What `@reward(...)` said. precondition: at 0 the whole reward is 0. timeout: seconds; None is the run's."""

    precondition: bool = False
    sandbox: bool = False
    timeout: float | None = None


@dataclass(frozen=True)
class ToolMark:
    """What `@tool(...)` said. timeout: seconds; None is the run's."""

    sandbox: bool = False
    timeout: float | None = None


@dataclass
class RewardArgs:
    """What a reward function is given besides the messages: the row's metadata and variables."""

    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    variables: dict[str, Any] = field(default_factory=dict[str, Any])


@overload
def reward(function: Function, /) -> Function: ...
@overload
def reward(
    *, precondition: bool = False, sandbox: bool = False, timeout: float | None = None
) -> Callable[[Function], Function]: ...
def reward(
    function: Any = None, /, *, precondition: bool = False, sandbox: bool = False, timeout: float | None = None
) -> Any:
    """Mark a function as a reward: `@reward` or `@reward(precondition=True)`."""
    return _marked(function, REWARD_MARK, RewardMark(precondition, sandbox, timeout))


@overload
def tool(function: Function, /) -> Function: ...
@overload
def tool(*, sandbox: bool = False, timeout: float | None = None) -> Callable[[Function], Function]: ...
def tool(function: Any = None, /, *, sandbox: bool = False, timeout: float | None = None) -> Any:
    """Mark a function as a tool: `@tool` or `@tool(timeout=30)`."""
    return _marked(function, TOOL_MARK, ToolMark(sandbox, timeout))


def _marked(function: Any, attribute: str, mark: RewardMark | ToolMark) -> Any:
    def decorate(function: Any) -> Any:
        setattr(function, attribute, mark)
        return function

    return decorate if function is None else decorate(function)


def get_response(messages: list[Any]) -> str:
    """The text of the last assistant message: its text parts, or all parts where none is text."""
    for message in reversed(messages):
        if not isinstance(message, dict) or message.get("role") != "assistant":
            continue
        content = message.get("content")
        if not isinstance(content, list):
            return content if isinstance(content, str) else ""
        parts = [part if isinstance(part, dict) else {"type": "text", "text": str(part)} for part in content]
        texts = [str(part.get("text") or "") for part in parts if part.get("type") == "text"]
        return "".join(texts or [str(part.get("text") or part.get("thinking") or "") for part in parts])
    return ""


def llm_judge(*_: Any, **__: Any) -> float:
    """rnow's judge runs on its service."""
    raise NotImplementedError("llm_judge is a service of rnow and not available here; compute the reward in Python")


@contextmanager
def names_for_user_files() -> Iterator[None]:
    """While inside, `import rnow` works; the installed package is left alone where there is one."""
    if "rnow" in sys.modules or importlib.util.find_spec("rnow") is not None:
        yield
        return
    modules = [ModuleType("rnow", "Stands in for rnow."), ModuleType("rnow.core", "Stands in for rnow.core.")]
    modules[0].__path__ = []
    modules[0].core = modules[1]  # pyright: ignore[reportAttributeAccessIssue]
    for module in modules:
        for value in (tool, reward, RewardArgs, get_response, llm_judge):
            setattr(module, value.__name__, value)
        sys.modules[module.__name__] = module
    try:
        yield
    finally:
        for module in modules:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]


def load_user_file(path: Path, what: str) -> ModuleType:
    """Run a user's Python file and return it as a module; its own folder can be imported from meanwhile.

    what: what it is for, for messages ("the tools file"). Nothing is written beside it. Raises InputError with the
    line for whatever its code raises.
    """
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise InputError(path, None, f"{what} does not exist. Check the path.") from None
    except OSError as error:
        raise InputError(path, None, f"{what} cannot be read: {error.strerror}.") from None
    full = path.resolve()
    try:
        code = compile(source, str(full), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise InputError(path, error.lineno, f"{what} is not valid Python: {error.msg}.") from None
    except ValueError as error:  # NUL bytes
        raise InputError(path, None, f"{what} is not valid Python: {error}.") from None
    name = f"_user_file_{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(full)
    sys.modules[name] = module  # dataclasses and pydantic look their own module up
    folder = str(full.parent)
    sys.path.insert(0, folder)
    try:
        with names_for_user_files():
            exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(path, _line_in(error, str(full)), f"{what} cannot be loaded: {_said(error)}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _line_in(error: BaseException, filename: str) -> int | None:
    """The line of the file that the error came through last."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
    return lines[-1] if lines else None


def _said(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error}. Install it into {sys.prefix}, or put it beside the file."
    return f"{type(error).__name__}: {error}"


async def in_thread(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """The function's value, from a thread of its own.

    A daemon, unlike the threads of a pool: a function that never returns must not keep the process alive, and two
    hundred calls at once must not wait for one another.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def finish(value: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_result((value, error))

    def work() -> None:
        try:
            outcome = context.run(function, **arguments), None
        except BaseException as error:
            outcome = None, error
        try:
            loop.call_soon_threadsafe(finish, *outcome)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass

    threading.Thread(target=work, name=getattr(function, "__name__", "user code"), daemon=True).start()
    value, error = await done
    if error is None:
        return value
    if isinstance(error, StopIteration | KeyboardInterrupt | GeneratorExit):  # these mean something to a coroutine
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    raise error
