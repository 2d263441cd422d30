"""Whether an answer has the form that its task asks for: JSON that fits a schema."""

import json
import math
import re
from typing import TYPE_CHECKING, Any, NoReturn

from ..data.text import one_line
from ..errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from .domain import Output

FENCED = re.compile(r"```[\w-]*\s(.*)```", re.DOTALL)


def problem_with(output: "Output", answer: str) -> str | None:
    """What is wrong with an answer, in one line with the place in it, as "$.price: 'ten' is not of type 'number'".

    The answer is JSON alone; blanks around it, or a fence of code, do no harm. Nothing is fetched for the schema:
    raises UsageError when it refers to what it does not hold. Raises MissingDependency.
    """
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
        from jsonschema.validators import validator_for
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ModuleNotFoundError:
        raise MissingDependency("jsonschema", "an output with a json_schema", "data") from None
    text = answer.strip()
    fenced = FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {one_line(str(error))}"
    validator: Any = validator_for(output.json_schema, default=Draft202012Validator)
    try:
        fault = best_match(validator(output.json_schema, registry=Registry()).iter_errors(value))
    except RecursionError:
        return "nested too deeply"
    except (Unresolvable, re.error) as error:
        raise UsageError(f"json_schema: {one_line(str(error))}. Mend the output of the task in the domain.") from None
    return None if fault is None else one_line(f"{fault.json_path}: {fault.message}", 400)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number
