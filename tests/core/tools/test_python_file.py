"""Tools from a user's own Python file."""

import asyncio
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from core.errors import InputError
from core.tools.protocol import ToolResult
from core.tools.python_file import PythonTools
from core.tools.rnow_names import REWARD_MARK, TOOL_MARK, RewardMark, ToolMark, get_response, load_user_file

ADD = '''
def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The first one.
        b: The second one.
    """
    return a + b
'''


def opened(folder: Path, source: str) -> PythonTools:
    path = folder / "tools.py"
    path.write_text(source)
    tools = PythonTools(path)
    asyncio.run(tools.open())
    return tools


def refusal(folder: Path, source: str) -> str:
    with pytest.raises(InputError) as caught:
        opened(folder, source)
    return str(caught.value)


def call(tools: PythonTools, name: str, **arguments: Any) -> ToolResult:
    async def work() -> ToolResult:
        async with tools.session() as session:
            return await session.call(name, arguments)

    return asyncio.run(work())


def test_a_function_that_raises_a_cancellation_of_its_own_is_a_failed_call(folder: Path) -> None:
    source = """
import asyncio

async def direct() -> str:
    "Raise it."
    raise asyncio.CancelledError

async def through_a_task() -> str:
    "Wait for a task that was cancelled."
    task = asyncio.ensure_future(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task

def in_a_thread() -> str:
    "Raise it elsewhere."
    raise asyncio.CancelledError

async def well() -> str:
    "Answer."
    return "well"
"""
    tools = opened(folder, source)

    async def work() -> list[ToolResult]:
        return [await tools.call(tool.name, {}) for tool in tools.tools]

    *cancelled, well = asyncio.run(work())
    assert all(result.is_error and "cancelled from within" in result.text for result in cancelled)
    assert [result.text.split()[0] for result in cancelled] == ["direct", "through_a_task", "in_a_thread"]
    assert well == ToolResult("well")


@pytest.mark.parametrize("kind", ["async def", "def"])
def test_a_call_that_the_caller_cancels_is_cancelled(folder: Path, kind: str) -> None:
    pause = "await asyncio.sleep(1)" if kind == "async def" else "time.sleep(1)"
    source = f'import asyncio, time\n{kind} nap() -> str:\n    """Nap."""\n    {pause}\n    return "late"\n'
    tools = opened(folder, source)

    async def work() -> None:
        task = asyncio.create_task(tools.call("nap", {}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await tools.call("nap", {})

    asyncio.run(work())


def parameters(tools: PythonTools) -> dict[str, Any]:
    return tools.tools[0].parameters


def test_a_function_becomes_a_tool_with_a_schema_from_its_hints_and_docstring(folder: Path) -> None:
    (tool,) = opened(folder, ADD).tools
    assert tool.name == "add"
    assert tool.description == "Add two numbers."
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "The first one."},
            "b": {"type": "integer", "description": "The second one.", "default": 1},
        },
        "required": ["a"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "docstring",
    [
        "Find.\n\n    Args:\n        word (str): What to find.",
        "Find.\n\n    Parameters\n    ----------\n    word : str\n        What to find.",
        "Find.\n\n    :param word: What to find.",
    ],
    ids=["google", "numpy", "sphinx"],
)
def test_parameters_are_described_in_any_of_three_styles(folder: Path, docstring: str) -> None:
    tools = opened(folder, f'def find(word: str) -> str:\n    """{docstring}\n    """\n    return word\n')
    assert parameters(tools)["properties"]["word"] == {"type": "string", "description": "What to find."}
    assert tools.tools[0].description == "Find."


def test_types_beyond_the_plain_ones_are_checked_and_converted(folder: Path) -> None:
    tools = opened(
        folder,
        '''
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Optional, TypedDict

class Colour(Enum):
    RED = "red"

class Place(TypedDict):
    city: str

@dataclass
class Point:
    x: int
    title: str = ""

def many(
    unit: Literal["c", "f"], schema: list[int], json: dict[str, float], colour: Colour, place: Place | None,
    point: Point, copy: Optional[str] = None, shade: Colour = Colour.RED,
) -> str:
    """All at once."""
    return f"{unit} {schema} {json} {colour.name} {place['city']} {point.x + 1} {copy} {shade.name}"
''',
    )
    arguments: dict[str, Any] = {
        "unit": "c",
        "schema": [1],
        "json": {"a": 1},
        "colour": "red",
        "place": {"city": "Bern"},
    }
    assert call(tools, "many", **arguments, point={"x": "1"}).text == "c [1] {'a': 1.0} RED Bern 2 None RED"
    wrong = call(tools, "many", **{**arguments, "unit": "kelvin"}, point={})
    assert wrong.is_error
    assert "unit: Input should be 'c' or 'f' (got 'kelvin')" in wrong.text
    assert "point.x: Field required" in wrong.text
    assert "http" not in wrong.text
    schema = parameters(tools)
    assert schema["properties"]["unit"]["enum"] == ["c", "f"]
    assert schema["properties"]["shade"]["default"] == "red"
    assert set(schema["$defs"]["Point"]["properties"]) == {"x", "title"}  # the name stays, pydantic's titles go
    assert "title" not in schema["$defs"]["Point"]["properties"]["x"]


def test_an_argument_that_the_function_does_not_have_is_told_to_the_model(folder: Path) -> None:
    result = call(opened(folder, ADD), "add", a=1, c=2)
    assert result == ToolResult("Wrong arguments for add: c: Extra inputs are not permitted", is_error=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("'as it is'", "as it is"),
        ("None", "null"),
        ("{'a': [1, 2.5, 'ü']}", '{"a":[1,2.5,"ü"]}'),
        ("2 ** 80", str(2**80)),
        ("{1: 'one'}", '{"1":"one"}'),
        ("{7}", "[7]"),
        ("float('nan')", "null"),
        ("{(1, 2): 3}", "{(1, 2): 3}"),
        ("object", "\"<class 'object'>\""),
    ],
)
def test_what_is_no_string_comes_as_json(folder: Path, value: str, text: str) -> None:
    tools = opened(folder, f'def give() -> object:\n    """Give."""\n    return {value}\n')
    assert call(tools, "give") == ToolResult(text)


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        ("KeyError('x')", "KeyError: 'x'"),
        ("SystemExit(3)", "SystemExit: 3"),
        ("StopIteration(1)", "RuntimeError: StopIteration: 1"),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_a_function_raises_is_an_error_for_the_model_without_a_traceback(
    folder: Path, raised: str, text: str, kind: str
) -> None:
    result = call(opened(folder, f'{kind} fail() -> str:\n    """Fail."""\n    raise {raised}\n'), "fail")
    assert result.is_error
    assert "Traceback" not in result.text
    if kind == "def":
        assert result.text == text


def test_an_error_of_pydantic_inside_the_function_is_not_taken_for_wrong_arguments(folder: Path) -> None:
    source = (
        "from pydantic import TypeAdapter\n"
        'def f() -> int:\n    """F."""\n    return TypeAdapter(int).validate_python("x")\n'
    )
    assert call(opened(folder, source), "f").text.startswith("ValidationError: ")


def test_two_hundred_calls_of_50_ms_do_not_wait_for_one_another(folder: Path) -> None:
    tools = opened(folder, 'import time\ndef nap() -> str:\n    """Nap."""\n    time.sleep(0.05)\n    return "ok"\n')

    async def work() -> float:
        start = time.monotonic()
        results = await asyncio.gather(*(tools.call("nap", {}) for _ in range(200)))
        assert [result.text for result in results] == ["ok"] * 200
        return time.monotonic() - start

    assert asyncio.run(work()) < 1.0  # one after another: 10 s; with the loop's own 6 threads: 1.7 s


def test_a_cancelled_call_leaves_the_others_alone_and_its_thread_ends_with_the_function(folder: Path) -> None:
    tools = opened(
        folder, ADD + '\ndef nap() -> str:\n    """Nap."""\n    import time\n    time.sleep(0.3)\n    return "late"\n'
    )

    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await tools.call("nap", {})
        assert (await tools.call("add", {"a": 1})).text == "2"

    asyncio.run(work())
    deadline = time.monotonic() + 5
    while any(thread.name == "tool nap" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(thread.name == "tool nap" for thread in threading.enumerate())


def test_only_public_functions_that_the_file_defines_are_tools(folder: Path) -> None:
    source = (
        "from json import dumps\nfrom os.path import join\n" + ADD + "\ndef _hidden(x):\n    return x\nalias = add\n"
    )
    assert [tool.name for tool in opened(folder, source).tools] == ["add"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(x):\n    '''F.'''\n", "tools.py:1: f(): x has no type hint"),
        ("\n\ndef f(x: int): pass\n", "tools.py:3: f() has no docstring"),
        ("def f(*x: int):\n    '''F.'''\n", "takes *x: int, which a model cannot name"),
        ("def f(**x: int):\n    '''F.'''\n", "takes **x: int"),
        ("def f(x: Nothing):\n    '''F.'''\n", "tools.py:1: the tools file cannot be loaded: NameError"),
        ("def f(x: 'Nothing'):\n    '''F.'''\n", "tools.py:1: f() has a type hint that does not hold"),
        ("class A: pass\ndef f(x: A):\n    '''F.'''\n", "tools.py:2: f() has a type that JSON has no form for"),
        ("x = 1\n", "tools.py: no public function"),
        ("x = (1\n", "tools.py:1: the tools file is not valid Python"),
        ("x = 1\nimport surely_not_there\n", "tools.py:2: the tools file cannot be loaded: No module named"),
        ("x = 1\n\n1 / 0\n", "tools.py:3: the tools file cannot be loaded: ZeroDivisionError"),
        ("import sys\nsys.exit(1)\n", "tools.py:2: the tools file cannot be loaded: SystemExit"),
        ("x = '\0'\n", "is not valid Python"),
    ],
)
def test_a_file_that_cannot_be_used_names_the_line_and_the_function(folder: Path, source: str, said: str) -> None:
    assert said in refusal(folder, source)


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(InputError, match=r"none\.py: the tools file does not exist"):
        asyncio.run(PythonTools(folder / "none.py").open())


def test_a_module_beside_the_file_can_be_imported_and_nothing_is_left_of_the_loading(folder: Path) -> None:
    (folder / "distance_helper.py").write_text("def km(m): return m / 1000\n")
    before = list(sys.path)
    tools = opened(
        folder, 'import distance_helper\ndef f(m: float) -> float:\n    """F."""\n    return distance_helper.km(m)\n'
    )
    assert call(tools, "f", m=1500).text == "1.5"
    assert sys.path == before
    assert "rnow" not in sys.modules
    sys.modules.pop("distance_helper")


# --- rnow's names -----------------------------------------------------------


def test_a_file_written_for_rnow_loads_without_rnow_and_its_decorated_functions_win(folder: Path) -> None:
    source = (
        "from rnow.core import tool\n"
        + ADD
        + '\n@tool\ndef twice(x: int) -> int:\n    """Twice."""\n    return 2 * x\n'
    )
    tools = opened(folder, source)
    assert [tool.name for tool in tools.tools] == ["twice"]
    assert call(tools, "twice", x=4).text == "8"


def test_a_tools_own_time_limit_is_kept(folder: Path) -> None:
    source = (
        "import time\nfrom rnow.core import tool\n"
        '@tool(timeout=0.05)\ndef nap() -> str:\n    """Nap."""\n    time.sleep(0.5)\n    return "late"\n'
    )
    assert call(opened(folder, source), "nap") == ToolResult("nap did not end within 0.05 s.", is_error=True)


def test_a_tool_that_wants_a_sandbox_is_refused(folder: Path) -> None:
    told = refusal(
        folder, 'from rnow.core import tool\n@tool(sandbox=True)\ndef f() -> str:\n    """F."""\n    return ""\n'
    )
    assert "f() wants a sandbox" in told


def test_rewards_keep_what_their_decorator_said(folder: Path) -> None:
    path = folder / "rewards.py"
    path.write_text(
        "from rnow.core import RewardArgs, get_response, llm_judge, reward\n"
        "@reward\ndef plain(args: RewardArgs, messages: list) -> float:\n"
        "    return float(args.metadata['answer'] in get_response(messages))\n"
        "@reward(precondition=True, timeout=60)\ndef first(args, messages): return llm_judge('x')\n"
        "ARGS = RewardArgs(metadata={'answer': '42'}, variables={})\n"
    )
    module = load_user_file(path, "the rewards file")
    assert getattr(module.plain, REWARD_MARK) == RewardMark()
    assert getattr(module.first, REWARD_MARK) == RewardMark(precondition=True, timeout=60)
    assert not hasattr(module.plain, TOOL_MARK)
    assert ToolMark() == ToolMark(sandbox=False, timeout=None)
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "It is 42."}]
    assert module.plain(module.ARGS, messages) == 1.0
    with pytest.raises(NotImplementedError, match="not available"):
        module.first(module.ARGS, messages)


@pytest.mark.parametrize(
    ("messages", "response"),
    [
        ([], ""),
        ([{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}], "a"),
        ([{"role": "assistant", "content": None}], ""),
        (
            [
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}],
                }
            ],
            "so",
        ),
        ([{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}], "hm"),
    ],
)
def test_the_response_is_the_text_of_the_last_assistant_message(messages: list[Any], response: str) -> None:
    assert get_response(json.loads(json.dumps(messages))) == response
