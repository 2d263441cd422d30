"""Counts over everything that was read, in memory that does not grow with it."""

from collections import Counter

from ..commands.show import Overview, Success, ToolUse, Unreadable
from ..data.statistics import wilson
from .clean import clean, clean_line
from .entries import FAILED, GOOD, Broken, Entry

EXAMPLES = 20
"""Unreadable files that are named; the others are counted."""
NAMES = 200
"""Different names (of roles, tools, teachers) that are counted each for itself; hostile input may hold millions."""
OTHERS = "(others)"


class Tally:
    """Counts that grow entry by entry."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.entries = self.unreadable = self.truncated = 0
        self._examples: list[Unreadable] = []
        self._roles: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._teachers: Counter[str] = Counter()
        self._conversations = self._turns = self._most_turns = 0
        self._counted = self._tokens = 0

    def broken(self, broken: Broken) -> None:
        self.unreadable += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append(Unreadable(place=clean_line(broken.place), reason=clean(broken.reason)))

    def entry(self, entry: Entry) -> None:
        self.entries += 1
        self.truncated += entry.truncated
        if entry.verdict:
            self._verdicts[entry.verdict] += 1
        if entry.teacher:
            _count(self._teachers, entry.teacher)
        if entry.tokens is not None:
            self._counted += 1
            self._tokens += entry.tokens
        if entry.messages:
            self._conversations += 1
            self._turns += entry.turns
            self._most_turns = max(self._most_turns, entry.turns)
        for message in entry.messages:
            _count(self._roles, message.role)
            for part in message.parts:
                if part.kind == "call":
                    _count(self._calls, part.name)
                elif part.kind == "result" and part.failed:
                    _count(self._errors, part.name)

    def overview(self, whole: bool) -> Overview:
        """What was counted. whole: whether the input was read to its end."""
        judged = sum(self._verdicts.values())
        success = None
        if judged:
            low, high = wilson(self._verdicts[GOOD], judged)
            success = Success(successes=self._verdicts[GOOD], judged=judged, low=low, high=high)
        tools = self._calls + Counter(dict.fromkeys(self._errors, 0))
        return Overview(
            kind=self._kind,
            entries=self.entries,
            whole=whole,
            unreadable=self.unreadable,
            unreadable_examples=self._examples,
            roles=dict(self._roles.most_common()),
            verdicts=dict(self._verdicts.most_common()),
            success=success,
            truncated=self.truncated,
            tools={
                name or "(no name)": ToolUse(calls=self._calls[name], errors=self._errors[name])
                for name in dict.fromkeys([*(n for n, _ in tools.most_common()), *self._errors])
            },
            mean_turns=self._turns / self._conversations if self._conversations else None,
            most_turns=self._most_turns,
            mean_tokens=self._tokens / self._counted if self._counted else None,
            teachers=dict(self._teachers.most_common()),
        )


def _count(counter: Counter[str], name: str) -> None:
    name = clean_line(name, 80) if name not in counter else name
    counter[name if name in counter or len(counter) < NAMES else OTHERS] += 1


def overview_lines(overview: Overview) -> list[tuple[str, str]]:
    """(name, figures) for a person, the headline first; what is not there is left out."""
    lines: list[tuple[str, str]] = []
    others = [f"{n:,} {name}" for name, n in overview.verdicts.items() if name != GOOD]
    if overview.kind == "rows" and not {GOOD, FAILED} & set(
        overview.verdicts
    ):  # rows that say no more than that they failed
        lines += [("failed", ", ".join(others))] if others else []
    elif success := overview.success:
        rate, low, high = (100 * x for x in (success.successes / success.judged, success.low, success.high))
        lines.append(
            (
                "success",
                f"{success.successes:,} of {success.judged:,}, {rate:.0f} % (95 %: {low:.0f} to {high:.0f} %)"
                + "".join(f", {other}" for other in others),
            )
        )
    if overview.mean_turns is not None:
        lines.append(("turns", f"{overview.mean_turns:.1f} on average, {overview.most_turns:,} at most"))
    if overview.tools:
        lines.append(("tools", _listed({name: _use(use) for name, use in overview.tools.items()})))
    if overview.roles:
        lines.append(("roles", _listed({name: f"{n:,}" for name, n in overview.roles.items()})))
    if overview.mean_tokens is not None:
        lines.append(("tokens", f"{overview.mean_tokens:,.0f} on average"))
    if overview.truncated:
        lines.append(("truncated", f"{overview.truncated:,}"))
    if overview.teachers:
        lines.append(("teachers", _listed({name: f"{n:,}" for name, n in overview.teachers.items()})))
    if overview.unreadable:
        lines.append(("unreadable", f"{overview.unreadable:,}"))
    return lines


def _use(use: ToolUse) -> str:
    errors = f" ({use.errors:,} error{'s' * (use.errors != 1)})" if use.errors else ""
    return f"{use.calls:,}{errors}"


def _listed(counts: dict[str, str], most: int = 12) -> str:
    shown = [f"{name} {figures}" for name, figures in list(counts.items())[:most]]
    return ", ".join(shown) + (f" and {len(counts) - most:,} more" if len(counts) > most else "")
