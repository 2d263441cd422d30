"""The embedded browser's tools as the teacher sees them: names and arguments are those of Playwright MCP 0.0.83."""

from collections.abc import Mapping
from typing import Any

from .protocol import Tool

_TARGET = {
    "type": "string",
    "description": "Which element: its ref from the last snapshot, such as e12, or a selector that fits it alone",
}
_ELEMENT = {"type": "string", "description": "The element in words, for whoever reads along"}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _flag(description: str) -> dict[str, Any]:
    return {"type": "boolean", "description": description}


def _number(description: str) -> dict[str, Any]:
    return {"type": "number", "description": description}


def _tool(name: str, description: str, required: tuple[str, ...] = (), **properties: Any) -> Tool:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = list(required)
    return Tool(f"browser_{name}", description, {**parameters, "additionalProperties": False})


_FIELD = {
    "type": "object",
    "properties": {
        "element": _ELEMENT,
        "target": _TARGET,
        "name": _text("What the field is called"),
        "type": _text("Kind of field", enum=["textbox", "checkbox", "radio", "combobox", "slider"]),
        "value": _text("What to fill in; true or false for a checkbox, the option's text for a combobox"),
    },
    "required": ["target", "name", "type", "value"],
    "additionalProperties": False,
}

TOOLS = [
    _tool("navigate", "Open a web page and show it.", ("url",), url=_text("Address of the page")),
    _tool("navigate_back", "Return to the page before this one in the tab's history."),
    _tool(
        "snapshot",
        "Show the current page as a tree of its visible elements. A ref such as [ref=e12] names an element for the "
        "other tools; refs hold until the next snapshot.",
        target={**_TARGET, "description": "Show only this element: its ref or a selector"},
        depth=_number("Show no more than this many levels of the tree"),
        boxes=_flag("Add where each element stands: [box=x,y,width,height] in CSS pixels"),
    ),
    _tool(
        "find",
        "Look for a text in the current page's snapshot and show the places with the elements around them. Good for "
        "long pages.",
        ("text",),
        text=_text("What to look for; upper and lower case are the same"),
    ),
    _tool(
        "click",
        "Click an element of the page and show what came of it.",
        ("target",),
        element=_ELEMENT,
        target=_TARGET,
        doubleClick=_flag("Click twice"),
        button=_text("Mouse button; left unless told", enum=["left", "right", "middle"]),
        modifiers={
            "type": "array",
            "items": {"type": "string", "enum": ["Alt", "Control", "ControlOrMeta", "Meta", "Shift"]},
            "description": "Keys held down meanwhile",
        },
    ),
    _tool(
        "type",
        "Write text into a field, in place of what it holds.",
        ("target", "text"),
        element=_ELEMENT,
        target=_TARGET,
        text=_text("What to write"),
        submit=_flag("Press Enter afterwards"),
        slowly=_flag("Press the keys one after another, for pages that listen to each"),
    ),
    _tool(
        "fill_form",
        "Fill in several fields of a form at once.",
        ("fields",),
        fields={"type": "array", "items": _FIELD, "description": "The fields"},
    ),
    _tool(
        "select_option",
        "Choose in a drop-down list.",
        ("target", "values"),
        element=_ELEMENT,
        target=_TARGET,
        values={"type": "array", "items": {"type": "string"}, "description": "What to choose: values or texts"},
    ),
    _tool("hover", "Hold the mouse over an element.", ("target",), element=_ELEMENT, target=_TARGET),
    _tool("press_key", "Press a key.", ("key",), key=_text("A key's name, such as ArrowDown or Enter, or a character")),
    _tool(
        "wait_for",
        "Wait for some seconds, or until a text is on the page or gone from it.",
        time=_number("Seconds, at most 30"),
        text=_text("Text to wait for"),
        textGone=_text("Text that has to go"),
    ),
    _tool(
        "tabs",
        "See the open tabs, open one, go to one or close one.",
        ("action",),
        action=_text("What to do", enum=["list", "new", "close", "select"]),
        index=_number("Which tab, for close and select; the current one is closed unless told"),
        url=_text("Page to open in a new tab"),
    ),
    _tool("close", "Close the current page."),
]

_PARAMETERS = {tool.name: tool.parameters for tool in TOOLS}


def wrong_arguments(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with the arguments of a tool, one line each. The schemas above need no more than this."""
    return _wrong(_PARAMETERS[name], arguments, "")


def _wrong(schema: Mapping[str, Any], value: Any, place: str) -> list[str]:
    kind = schema["type"]
    at = f"{place}: " if place else ""
    if not isinstance(value, _TYPES[kind]) or (kind == "number" and isinstance(value, bool)):
        return [f"{at}has to be of type {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{at}has to be one of {', '.join(schema['enum'])}"]
    if kind == "array":
        return [line for index, item in enumerate(value) for line in _wrong(schema["items"], item, f"{place}[{index}]")]
    if kind != "object":
        return []
    inside = f"{place}." if place else ""
    known = schema["properties"]
    lines = [f"{inside}{key}: is required" for key in schema.get("required", ()) if key not in value]
    lines += [f"{inside}{key}: is not an argument of this tool" for key in value if key not in known]
    return lines + [line for key in known if key in value for line in _wrong(known[key], value[key], f"{inside}{key}")]
