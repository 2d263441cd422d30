"""Which teachers are named for what: from the list alone, by rules that are said."""

import io
from pathlib import Path
from typing import Any

import pytest

from core.commands.teachers import Teachers, TeachersFound
from core.data.progress import open_progress
from core.data.run import Run
from core.data.stop import Stop
from core.errors import UsageError
from core.teachers.recommend import teachers
from tests.support.price_lists import PriceLists, listed
from tests.support.running import small_server, write_rows


def found_in(answer: PriceLists, *, backend: str = "openrouter", **options: Any) -> tuple[TeachersFound, str]:
    """(result, what was printed)."""
    printed: list[str] = []
    progress = open_progress("off", stream=io.StringIO())
    with small_server(answer) as server:
        command = Teachers.model_validate({"backend": backend, "base_url": server.url, **options})
        try:
            return teachers(command, Run(progress, Stop(), {}, out=printed.append)), "\n".join(printed)
        finally:
            progress.close()


def names(found: TeachersFound) -> list[str]:
    return [each.model for each in found.teachers]


def test_each_purpose_has_its_rule_and_what_the_list_does_not_bear_out_is_left_out() -> None:
    found, printed = found_in(PriceLists())
    chosen = {purpose.name: purpose.models for purpose in found.purposes}
    assert chosen == {
        "may be trained on": ["open/big"],  # the newest of its vendor; open/mini:free costs nothing
        "tools": ["open/big"],  # in and out: 0.06, 0.5, 2, 2.5, 18; the median is 2
        "newest": ["acme/large", "open/big", "lone/one"],
        "cheapest": ["open/mini", "acme/small", "open/big", "lone/one"],
        "long texts": ["acme/small"],
        "reasoning": ["open/big"],  # acme/large costs more than the median
        "log-probabilities": ["acme/large"],
    }
    named = {name for models in chosen.values() for name in models}
    assert named == set(names(found))
    # older than a year, gone soon, no text, no price
    assert not named & {"acme/old", "lone/leaving", "draw/pictures", "any/auto"}
    for purpose in found.purposes:
        assert purpose.how
        assert f"{purpose.name}: " in printed
    assert "1 more cost nothing" in found.summary()
    assert "says nothing of how good a model is" in " ".join(found.summary().split())


def test_other_lists_give_other_teachers() -> None:
    rows = [listed("new/vendor", (7, 7)), listed("new/vendor-cheap", (1, 1))]
    found, _ = found_in(PriceLists(rows=rows, may_train=["new/vendor"]))
    chosen = {purpose.name: purpose.models for purpose in found.purposes}
    assert chosen["may be trained on"] == ["new/vendor"]
    assert chosen["cheapest"] == ["new/vendor-cheap", "new/vendor"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tools": True, "sort": "price"}, ["lone/leaving", "acme/small", "open/big", "acme/large", "acme/old"]),
        ({"distillable": True}, ["open/big", "open/mini", "open/mini:free"]),
        ({"search": "ACME", "sort": "new"}, ["acme/large", "acme/small", "acme/old"]),
        ({"sort": "context", "limit": 2}, ["acme/small", "open/mini:free"]),  # of equal ones the cheapest
        ({"tools": True, "distillable": True}, ["open/big"]),
    ],
)
def test_filters_and_orders(options: dict[str, Any], expected: list[str]) -> None:
    found, printed = found_in(PriceLists(), **options)
    if options.get("limit"):
        assert f"2 of {found.fitting} that fit are shown: --limit {found.fitting} shows all" in found.summary()
    assert [name for name in names(found) if name != "any/auto"] == expected
    assert not found.purposes
    assert all(name in printed for name in expected)


def test_what_costs_an_unknown_amount_comes_last(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "x" * 400}, {"prompt": "y" * 400}])
    found, printed = found_in(PriceLists(), input=str(prompts), max_tokens=1000, samples=2)
    assert (found.prompts, found.prompt_tokens_estimate, found.completion_tokens_at_most) == (2, 400, 4000)
    costs = {each.model: each.cost_at_most_usd for each in found.teachers}
    # 400 at 3 USD and 4,000 at 15 USD a million
    assert costs["acme/large"] == pytest.approx((400 * 3 + 4000 * 15) / 1e6)
    assert names(found)[0] == "open/mini:free"
    assert names(found)[-1] == "any/auto"
    assert costs["any/auto"] is None
    assert "0.061" in next(line for line in printed.splitlines() if line.startswith("acme/large"))


def test_a_server_without_prices_gives_names_and_says_so() -> None:
    rows = [{"id": "qwen3:8b", "object": "model"}, {"id": "llama3", "object": "model"}]
    found, printed = found_in(PriceLists(rows=rows), backend="ollama")
    assert names(found) == ["qwen3:8b", "llama3"]
    assert "no prices: the list names none" in found.summary()
    assert "qwen3:8b" in printed
    with pytest.raises(UsageError, match="does not say which models call tools"):
        found_in(PriceLists(rows=rows), backend="ollama", tools=True)


def test_nothing_that_fits_is_an_error_that_says_what_to_leave_out() -> None:
    with pytest.raises(UsageError, match=r"none of the 9 models .* is of that kind: ask for less"):
        found_in(PriceLists(), search="no such")


def test_the_table_fits_a_terminal_with_every_name_whole(tmp_path: Path) -> None:
    long = "vendor-with-a-long-name/model-with-an-even-longer-name-and-a-date-2026-09-01:extended"
    rows = [listed(long, (1234.5, 0.00012), able=("tools", "reasoning", "logprobs")), listed("a/b")]
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "x"}])
    for options in ({}, {"search": "e"}, {"input": str(prompts), "max_tokens": 1_000_000}):
        found, printed = found_in(PriceLists(rows=rows, may_train=[long]), **options)
        assert long in printed
        summary = found.summary().partition("\nnext: ")[0]
        assert max(map(len, f"{printed}\n{summary}".splitlines())) <= 100
    found, printed = found_in(PriceLists(rows=[listed("a\x1b[2Jb"), listed("two\nlines"), listed("a/b")]))
    assert names(found) == ["a/b"]
    assert "\x1b" not in printed
