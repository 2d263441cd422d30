"""Tools from a Python file of the user's own: functions with type hints and docstrings."""

import asyncio
import enum
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, NotRequired, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

import orjson
from docstring_parser import ParseError
from docstring_parser import parse as parse_docstring
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from ..errors import InputError
from .protocol import Tool, ToolResult
from .rnow_names import TOOL_MARK, ToolMark, in_thread, load_user_file

_typed_dict: Any = TypedDict
WHAT = "the tools file"
HOW = "or start its name with _ if it is no tool"


@dataclass(frozen=True)
class _Callable:
    """A function that is a tool, and the check of its arguments."""

    function: Callable[..., Any]
    arguments: TypeAdapter[dict[str, Any]]
    timeout_s: float | None


class PythonTools:
    """The tools of one file. Each call of a plain function has a thread of its own; nothing is shared by rollouts but
    the module itself, whose functions should therefore not keep a rollout's state in globals.

    What the functions print goes to our stdout: they should print to stderr.
    """

    concurrent = True
    """Calls may run side by side."""

    def __init__(self, path: str | Path, name: str = "tools") -> None:
        self.path, self.name = Path(path), name
        self.tools: list[Tool] = []
        self._functions: dict[str, _Callable] = {}

    async def open(self) -> None:
        """Run the file and read its functions. Raises InputError, which names the line and the function."""
        module = load_user_file(self.path, WHAT)
        functions = _tool_functions(module)
        if not functions:
            raise InputError(self.path, None, "no public function. Define one with type hints and a docstring.")
        self.tools, self._functions = [], {}
        for function in functions:
            tool, call = self._described(function)
            self.tools.append(tool)
            self._functions[tool.name] = call

    @asynccontextmanager
    async def session(self) -> AsyncIterator["PythonTools"]:
        """The functions themselves: they have no session."""
        yield self

    async def aclose(self) -> None:
        """Nothing to end: a thread that still runs ends with its function or with the process."""

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """Check the arguments and call the function; what it raises is a result with `is_error`."""
        tool = self._functions[name]
        try:
            checked = tool.arguments.validate_python(arguments)
        except ValidationError as error:
            return ToolResult(f"Wrong arguments for {name}: {_compact(error)}", is_error=True)
        if inspect.iscoroutinefunction(tool.function):
            work: Awaitable[Any] = tool.function(**checked)
        else:
            work = in_thread(tool.function, checked)
        try:
            async with asyncio.timeout(tool.timeout_s) as limit:
                value = await work
        except (Exception, SystemExit) as error:
            if isinstance(error, TimeoutError) and limit.expired():
                return ToolResult(f"{name} did not end within {tool.timeout_s:g} s.", is_error=True)
            return ToolResult(f"{type(error).__name__}: {error}", is_error=True)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: it is the function's own, such as the end of a task that it had cancelled.
            return ToolResult(f"{name} was cancelled from within.", is_error=True)
        return ToolResult(_as_text(value))

    def _described(self, function: Callable[..., Any]) -> tuple[Tool, _Callable]:
        line = inspect.unwrap(function).__code__.co_firstlineno
        where = f"{function.__name__}()"
        mark = getattr(function, TOOL_MARK, ToolMark())
        if mark.sandbox:
            raise InputError(
                self.path, line, f"{where} wants a sandbox, and tools of a Python file run in this process. Remove "
                "sandbox=True if that is safe, or offer it as an MCP server in a container."
            )  # fmt: skip
        text = inspect.getdoc(function) or ""
        if not text.strip():
            raise InputError(self.path, line, f"{where} has no docstring; the model needs one. Write one, {HOW}.")
        try:
            docstring = parse_docstring(text)
            described = {one.arg_name: one.description for one in docstring.params if one.description}
            about = "\n\n".join(part for part in (docstring.short_description, docstring.long_description) if part)
        except ParseError:
            described, about = {}, text
        try:
            hints = get_type_hints(function, include_extras=True)
            hints = {name: _with_new_typed_dicts(hint) for name, hint in hints.items()}
        except Exception as error:  # a hint is any expression; a TypedDict may hold itself
            raise InputError(self.path, line, f"{where} has a type hint that does not hold: {error}.") from None
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD and parameter.kind is not parameter.KEYWORD_ONLY:
                raise InputError(
                    self.path, line, f"{where} takes {parameter}, which a model cannot name. Give it plain parameters."
                )
            if parameter.name not in hints:
                raise InputError(self.path, line, f"{where}: {parameter.name} has no type hint. Add one, {HOW}.")
            fields[parameter.name] = _field(
                parameter, _with_new_typed_dicts(hints[parameter.name]), described.get(parameter.name)
            )
        # Not a model, whose own attributes (`schema`, `json`) such parameters would hide.
        shape = _typed_dict(function.__name__, fields)
        shape.__pydantic_config__ = ConfigDict(extra="forbid")
        try:
            adapter = cast("TypeAdapter[dict[str, Any]]", TypeAdapter(shape))
            schema = adapter.json_schema()
        except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUserError) as error:
            fact = str(error).partition("\n")[0]
            raise InputError(
                self.path, line, f"{where} has a type that JSON has no form for: {fact} Use str, int, list, dict, ..."
            ) from None
        schema = {"type": "object", "properties": {}, **_untitled(schema)}
        tool = Tool(function.__name__, about or text.strip(), schema)
        return tool, _Callable(function, adapter, mark.timeout)


def _tool_functions(module: ModuleType) -> list[Callable[..., Any]]:
    """The decorated functions, if there are any; else the public ones that the file itself defines."""
    functions = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name == value.__name__
    ]
    marked = [function for function in functions if hasattr(function, TOOL_MARK)]
    return marked or [function for function in functions if not function.__name__.startswith("_")]


def _field(parameter: inspect.Parameter, hint: Any, description: str | None) -> Any:
    """The hint with its description; a default is left for the function to fill in, and shown where JSON can."""
    default = parameter.default
    required = default is parameter.empty
    extra: dict[str, Any] | None = None
    if isinstance(default, enum.Enum):
        default = default.value
    if isinstance(default, str | int | float | bool | list | dict):
        extra = {"default": default}
    if description or extra:
        hint = Annotated[hint, Field(description=description, json_schema_extra=extra)]
    return hint if required else NotRequired[hint]


def _with_new_typed_dicts(hint: Any) -> Any:
    """The hint with every `typing.TypedDict` made anew as the one that pydantic takes before Python 3.12."""
    if is_typeddict(hint):
        fields = {
            key: inner if key in hint.__required_keys__ else NotRequired[inner]
            for key, inner in ((key, _with_new_typed_dicts(inner)) for key, inner in get_type_hints(hint).items())
        }
        return _typed_dict(hint.__name__, fields)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_with_new_typed_dicts(arguments[0]), *hint.__metadata__)]
    if origin in {Union, UnionType}:
        return Union[tuple(_with_new_typed_dicts(one) for one in arguments)]  # noqa: UP007 (of a tuple)
    if origin in {list, dict, set, frozenset, tuple}:
        return origin[tuple(_with_new_typed_dicts(one) for one in arguments)]
    return hint


def _untitled(schema: Any) -> Any:
    """A schema without the titles that repeat the names: they cost tokens."""
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _untitled(inner) for name, inner in value.items()} if key in {"properties", "$defs"} else
        value if key in {"default", "enum", "const"} else _untitled(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }  # fmt: skip


def _compact(error: ValidationError) -> str:
    """Where and what, without pydantic's links."""
    told = []
    for one in error.errors(include_url=False, include_context=False)[:5]:
        place = ".".join(map(str, one["loc"]))
        given = "" if one["type"] in {"missing", "extra_forbidden"} else f" (got {_short(one['input'])})"
        told.append(f"{place}: {one['msg']}{given}")
    more = error.error_count() - len(told)
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _as_text(value: Any) -> str:
    """A string as it is, everything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, RecursionError):  # an integer of more than 64 bits, a key that is a tuple
        try:
            return json.dumps(value, default=_plain, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return list(value)
    return str(value)
