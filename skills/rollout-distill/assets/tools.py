"""Sample tools: arithmetic, units and dates. Every public function is a tool.

The teacher reads a function's name, its type hints and its docstring. What it returns or raises is the result that the
teacher gets.
"""

import ast
import operator
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

_OPERATIONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}

# Of one metre, one kilogram and one litre.
_UNITS = {
    "length": {
        "mm": 0.001,
        "cm": 0.01,
        "m": 1.0,
        "km": 1000.0,
        "inch": 0.0254,
        "foot": 0.3048,
        "yard": 0.9144,
        "mile": 1609.344,
    },
    "mass": {"g": 0.001, "kg": 1.0, "ounce": 0.028349523125, "pound": 0.45359237},
    "volume": {"ml": 0.001, "litre": 1.0, "us_pint": 0.473176473, "us_gallon": 3.785411784},
}

# To kelvin: (value + first) * second
_TEMPERATURES = {"kelvin": (0.0, 1.0), "celsius": (273.15, 1.0), "fahrenheit": (459.67, 5 / 9)}


def calculate(expression: str) -> float:
    """Work out an arithmetic expression.

    Args:
        expression: numbers with + - * / // % ** and brackets, such as (3 + 4) * 2.5
    """
    if len(expression) > 200:
        raise ValueError("longer than 200 characters")
    return round(_value(ast.parse(expression.strip(), mode="eval").body), 10)


def convert_units(value: float, from_unit: str, to_unit: str) -> float:
    """Convert a quantity from one unit to another.

    Args:
        value: how much there is of from_unit
        from_unit: mm cm m km inch foot yard mile, g kg ounce pound, ml litre us_pint us_gallon, or
            kelvin celsius fahrenheit
        to_unit: another unit of the same kind
    """
    if from_unit in _TEMPERATURES and to_unit in _TEMPERATURES:
        shift, factor = _TEMPERATURES[from_unit]
        back_shift, back_factor = _TEMPERATURES[to_unit]
        return round((value + shift) * factor / back_factor - back_shift, 6)
    for factors in _UNITS.values():
        if from_unit in factors and to_unit in factors:
            return round(value * factors[from_unit] / factors[to_unit], 6)
    known = ", ".join([*_TEMPERATURES, *(unit for factors in _UNITS.values() for unit in factors)])
    raise ValueError(f"{from_unit} and {to_unit} are not two units of one kind. Known: {known}")


def days_between(first: date, second: date) -> int:
    """Count the days from one date to another; negative when the second is earlier.

    Args:
        first: as YYYY-MM-DD
        second: as YYYY-MM-DD
    """
    return (second - first).days


def add_days(day: date, days: int) -> str:
    """Find the date, with its weekday, that lies some days after another one.

    Args:
        day: where to start, as YYYY-MM-DD
        days: how many days later; negative for earlier, 0 for the weekday of the day itself
    """
    found = day + timedelta(days=days)
    return f"{found:%Y-%m-%d}, a {found:%A}"


def _value(node: ast.AST) -> float:
    """The value of a part of an expression. Nothing but numbers and operators is let in, so nothing is executed."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # pyright: ignore[reportReturnType]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and (abs(left) > 1e6 or abs(right) > 100):
            raise ValueError("this power is too large")
        return _OPERATIONS[type(node.op)](left, right)
    raise ValueError("only numbers, + - * / // % ** and brackets can be worked out")
