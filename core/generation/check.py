"""Whether a rollout succeeded: its final answer against the expected one, or the user's reward functions."""

import asyncio
import copy
import inspect
import math
import re
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..tools.rnow_names import REWARD_MARK, RewardArgs, RewardMark, in_thread, load_user_file

MARKED = re.compile(r"\banswer\W{0,3}(?:is\b|[:=])(.*)", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
"""Not a digit that belongs to a word, as in m2 or H2O."""


@dataclass
class Verdict:
    """What a check found.

    reward: None when there was nothing to check against.   rewards: by name; "error" and "timeout" count as 0.
    """

    success: bool
    reward: float | None = None
    rewards: dict[str, float | str] = field(default_factory=dict[str, float | str])
    errors: list[str] = field(default_factory=list[str])


def normalised(text: str) -> str:
    """Compatibility characters unified, case folded, Markdown marks and quotes dropped, one blank between words.

    >>> normalised("  **Pembrolizumab**. ")
    'pembrolizumab'
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    text = re.sub(r"[*_`\"'\u2018\u2019\u201c\u201d]+", "", text)
    return " ".join(text.split()).strip(" .!")


def stated_answer(text: str) -> str:
    """What an answer marks as its result: \\boxed{...}, else what follows the last "answer:", else all of it."""
    boxed = BOXED.findall(text)
    if boxed:
        return boxed[-1]
    lines = [line for line in text.splitlines() if line.strip()]
    stated = text
    for number, line in enumerate(lines):
        if found := MARKED.search(line):
            rest = found[1].strip(" \t*_`")
            stated = rest or "\n".join(lines[number + 1 : number + 2]) or stated
    return stated


def number_in(text: str) -> float | None:
    """The last number in a text; None when it holds none. Commas between thousands are understood."""
    found = NUMBER.findall(unicodedata.normalize("NFKC", text).replace("\u2212", "-"))
    return float(found[-1].replace(",", "")) if found else None


def matches(answer: str, expected: Any, how: str) -> bool:
    """Whether an answer is the expected one (or one of a list of them).

    exact: the whole answer, or what it marks as its result, is equal after `normalised`. contains: it stands in the
    answer as whole words. number: the last number of the marked result is equal to 1 in a million.
    """
    if isinstance(expected, list):
        return any(matches(answer, one, how) for one in expected)
    wanted = normalised(str(expected))
    if how == "exact":
        return wanted in (normalised(answer), normalised(stated_answer(answer)))
    if how == "contains":
        return bool(wanted) and re.search(as_words(wanted), normalised(answer)) is not None
    right, found = number_in(str(expected)), number_in(stated_answer(answer))
    if found is None:
        found = number_in(answer)
    return right is not None and found is not None and math.isclose(found, right, rel_tol=1e-6, abs_tol=1e-9)


def as_words(text: str) -> str:
    """A pattern for the text as whole words; a number is not found in a longer one (5 in 3.5, -5 or 5,000)."""
    before = r"(?<!\w)" + (r"(?<!\d[.,])(?<!\W[-+])(?<!^[-+])" if text[:1].isdigit() else "")
    after = r"(?!\w)" + (r"(?![.,]\d)" if text[-1:].isdigit() else "")
    return before + re.escape(text) + after


class Check:
    """Judges finished rollouts."""

    def __init__(self, how: str, rewards: "Rewards | None") -> None:
        self.how, self.rewards = how, rewards

    @property
    def name(self) -> str:
        return "rewards" if self.rewards else self.how

    async def judge(
        self, ended: str, messages: list[dict[str, Any]], metadata: dict[str, Any], row: dict[str, Any]
    ) -> Verdict:
        """ended: "final_answer", or anything else, which is no success.   row: its `rewards` and `variables`."""
        if self.rewards:
            verdict = await self.rewards.judge(messages, metadata, row)
            verdict.success = verdict.success and ended == "final_answer"
            return verdict
        expected = metadata.get("expected_answer")
        if self.how == "none" or expected is None:
            return Verdict(ended == "final_answer")
        right = ended == "final_answer" and matches(final_answer(messages), expected, self.how)
        return Verdict(right, float(right), {"expected_answer": float(right)})


def final_answer(messages: list[dict[str, Any]]) -> str:
    """The text of the last message; "" when that is no assistant's."""
    last = messages[-1] if messages else {}
    return str(last.get("content") or "") if last.get("role") == "assistant" else ""


Reward = Callable[[Any, list[dict[str, Any]]], float | Awaitable[float]]


class Rewards:
    """The reward functions of a user's Python file, as `rnow` calls them: f(args, messages) -> number, where
    `args.metadata` and `args.variables` are the prompt's.

    A precondition that gives 0 makes the total 0; else the total is the sum of all.
    """

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Raises UsageError for a file that cannot be loaded or holds no reward function."""
        module = load_user_file(path, "reward functions")
        found = {
            name: value
            for name, value in vars(module).items()
            if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module.__name__
        }
        marked = {name: value for name, value in found.items() if hasattr(value, REWARD_MARK)}
        self.functions: dict[str, Reward] = marked or {
            name: value for name, value in found.items() if list(inspect.signature(value).parameters)[:1] == ["args"]
        }
        if not self.functions:
            raise UsageError(f"{path}: no reward function. Write one: def accuracy(args, messages) -> float.")
        for name, function in self.functions.items():
            if mark_of(function).sandbox:
                raise UsageError(
                    f"{path}: {name} is marked sandbox=True, and reward functions run here. Take the mark off."
                )
        self.path, self._timeout_s = path, timeout_s

    async def judge(self, messages: list[dict[str, Any]], metadata: dict[str, Any], row: dict[str, Any]) -> Verdict:
        """The functions that the row names, else all of them."""
        args = RewardArgs(metadata=metadata, variables=row.get("variables") or {})
        verdict = Verdict(True)
        vetoed = False
        for name in row.get("rewards") or self.functions:
            value = await self._value(name, args, copy.deepcopy(messages), verdict.errors)
            verdict.rewards[name] = value
            vetoed = vetoed or (mark_of(self.functions.get(name)).precondition and value == 0)
        numbers = [value for value in verdict.rewards.values() if isinstance(value, float)]
        verdict.reward = 0.0 if vetoed or len(numbers) < len(verdict.rewards) else sum(numbers)
        verdict.success = verdict.reward > 0
        return verdict

    async def _value(self, name: str, args: Any, messages: list[dict[str, Any]], errors: list[str]) -> float | str:
        function = self.functions.get(name)
        if function is None:
            errors.append(f"{name}: {self.path} has no such function")
            return "error"
        timeout_s = mark_of(function).timeout or self._timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                if inspect.iscoroutinefunction(function):
                    value = await function(args, messages)
                else:
                    value = await in_thread(partial(function, args, messages), {})
            number = float(value)
            if math.isfinite(number):
                return number
            errors.append(f"{name}: gave {number}, which is no finite number")
            return "error"
        except TimeoutError:
            errors.append(f"{name}: timed out after {timeout_s:g} s")
            return "timeout"
        except (Exception, SystemExit) as error:  # the user's code
            errors.append(f"{name}: {type(error).__name__}: {error}")
            return "error"


def mark_of(function: object) -> RewardMark:
    """What its decorator said."""
    return getattr(function, REWARD_MARK, RewardMark())
