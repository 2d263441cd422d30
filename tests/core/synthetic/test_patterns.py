"""Patterns that may take for ever, and those that do not."""

import re

import pytest

from core.synthetic.patterns import patterns, tangled


@pytest.mark.parametrize(
    ("pattern", "group"),
    [
        ("(a+)+$", "(a+)+"),
        (r"^(\w+\s?)*$", r"(\w+\s?)*"),
        ("^(?:a|aa)+$", "(?:a|aa)+"),
        ("x(?P<all>(?:ab)*b?){2,}", "(?P<all>(?:ab)*b?){2,}"),
        (r"^(?:,\w*\w*)*$", r"(?:,\w*\w*)*"),  # one way for each comma is too much as well
        (r"(?:,[\w,]+)*$", r"(?:,[\w,]+)*"),
        (r"(?:-.*)+$", r"(?:-.*)+"),
        (r"(\w)(?:,\1+)*$", r"(?:,\1+)*"),
        (r"((?:a+)b?)*?c", r"((?:a+)b?)*?"),
        ("(?i)(?:xX*)*$", "(?:xX*)*"),
    ],
)
def test_a_repeat_that_can_be_cut_in_many_ways(pattern: str, group: str) -> None:
    re.compile(pattern)
    assert tangled(pattern) == group


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        r"^\d{4}-\d\d-\d\d$",
        r"^\w+(?:, \w+)*$",
        r"^(?:\d{1,3}\.){3}\d{1,3}$",
        r"^[A-Z][a-z]+( [A-Z][a-z]+)?$",
        r"^(?:yes|no)$",
        r"^(?:ab)*$",
        r"^(?:[a-z][0-9])+$",
        r"^(?:/[^/]+)+$",
        r"[]()+*]*",
        r"^\(\w+\)+$",
        r"a{b}(c{,d})+",
        r"^(?:(?>yes|no) )*$",
        r"^(?:yes|no)*+$",
        r"^(?:\w++\s?)*+$",
    ],
)
def test_a_repeat_that_can_be_cut_in_one_way(pattern: str) -> None:
    re.compile(pattern)
    assert tangled(pattern) is None


def test_all_patterns_of_a_schema_are_found_with_their_place() -> None:
    schema = {
        "properties": {"pattern": {"pattern": "a"}, "b": {"anyOf": [{"type": "null"}, {"pattern": "b"}]}},
        "patternProperties": {"^c": {"pattern": "d"}},
    }
    assert list(patterns(schema)) == [
        (["properties", "pattern", "pattern"], "a"),
        (["properties", "b", "anyOf", 1, "pattern"], "b"),
        (["patternProperties", "^c"], "^c"),
        (["patternProperties", "^c", "pattern"], "d"),
    ]
