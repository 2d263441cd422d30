"""Regular expressions of the user's that a looping model could keep busy for ever: found before anything is asked."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PIECE = re.compile(
    r"(?P<open>\((?:\?(?:P?<\w+>|<?[=!]|[:>]|P=\w+|[a-zA-Z]*-?[a-zA-Z]*:?))?)|(?P<close>\))|(?P<bar>\|)"
    r"|(?P<sign>\[\^?\]?(?:\\.|[^\]\\])*+\]|\\(?:x..|u....|.)|.)",
    re.DOTALL,
)
REPEAT = re.compile(r"(?:(?P<mark>[*+?])|\{(?P<least>\d*)(?P<comma>,?)(?P<most>\d*)\})(?P<how>[?+]?)")
LITERAL = re.compile(r"\\\W|[^\\\w\[.^$]|\w", re.DOTALL)


@dataclass
class Group:
    """What stands between two parentheses. choices: where there are several ways to match it.   signs: all that match
    one character, those of groups within it too.   edges: the signs of its own, in order; None for all else."""

    start: int
    atomic: bool = False
    choices: int = 0
    signs: list[str] = field(default_factory=list[str])
    edges: list[str | None] = field(default_factory=list[str | None])


def tangled(pattern: str) -> str | None:
    """The first repeated group of a pattern whose repeats a text may be cut into in more ways than one, as (a+)+: their
    number is exponential in the text's length. None where there is none. Of patterns that `re` compiles.

    What is repeated passes when it always matches alike, when one sign that nothing else in it matches stands at an end
    of it, as in (?:, \\w+)*, or when its repeat is possessive or atomic. A rule that would rather refuse a pattern.
    """
    groups, at = [Group(0)], 0
    while at < len(pattern):
        piece = PIECE.match(pattern, at)
        assert piece is not None
        at = piece.end()
        if piece["open"]:
            groups.append(Group(piece.start(), atomic=piece["open"] == "(?>"))
            if piece["open"].startswith("(?P="):
                groups[-1].signs.append(".")
            continue
        if piece["bar"]:
            groups[-1].choices += 1
            groups[-1].edges += [None]
            continue
        repeat = REPEAT.match(pattern, at)
        at = repeat.end() if repeat else at
        least, most = _times(repeat) if repeat else (1, 1)
        possessive = repeat is not None and repeat["how"] == "+"
        choice = int(least != most and not possessive)
        if piece["close"]:
            inner = groups.pop()
            if most > 1 and not possessive and not inner.atomic and inner.choices and not _is_parted(inner):
                return pattern[inner.start : at]
            outer = groups[-1]
            outer.choices += choice + (0 if possessive or inner.atomic else inner.choices)
            outer.signs += inner.signs
            outer.edges.append(None)
        else:
            sign = "." if re.match(r"\\[1-9]", piece["sign"]) else piece["sign"]
            groups[-1].choices += choice
            groups[-1].signs.append(sign)
            groups[-1].edges.append(sign if repeat is None else None)
    return None


def patterns(schema: Any, place: tuple[int | str, ...] = ()) -> Iterator[tuple[list[int | str], str]]:
    """(where, pattern) of all that a JSON schema has."""
    below = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for key, value in below:
        if key == "pattern" and isinstance(value, str):
            yield [*place, key], value
        if key == "patternProperties" and isinstance(value, dict):
            yield from (([*place, key, name], name) for name in value)
        yield from patterns(value, (*place, key))


def _times(repeat: "re.Match[str]") -> tuple[int, float]:
    if repeat["mark"]:
        return {"*": (0, float("inf")), "+": (1, float("inf")), "?": (0, 1)}[repeat["mark"]]
    least, most = int(repeat["least"] or 0), float(repeat["most"] or "inf")
    return least, most if repeat["comma"] else least


def _is_parted(group: Group) -> bool:
    """Whether a sign at an end of a group tells where each of its repeats begins, with one choice between two."""
    ends = [sign for sign in (group.edges[0], group.edges[-1]) if sign and LITERAL.fullmatch(sign)]
    matching = ([sign for sign in group.signs if _matches(sign, end.removeprefix("\\"))] for end in ends)
    return group.choices == 1 and any(len(signs) == 1 for signs in matching)


def _matches(sign: str, character: str) -> bool:
    return re.fullmatch(sign, character, re.IGNORECASE | re.DOTALL) is not None
