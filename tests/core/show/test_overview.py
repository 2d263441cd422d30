"""The figures at the head: rates with their interval, and counts that stay small."""

from core.show.entries import row_entry
from core.show.overview import NAMES, OTHERS, Tally, overview_lines


def test_names_beyond_a_few_hundred_are_counted_together():
    tally = Tally("rows")
    for number in range(NAMES + 50):
        tally.entry(row_entry(number, "x", {"messages": [{"role": f"role {number}", "content": "x"}]}))
    roles = tally.overview(True).roles
    assert roles[OTHERS] == 50
    assert sum(roles.values()) == NAMES + 50


def test_rows_that_only_say_that_they_failed_have_no_success_rate():
    tally = Tally("rows")
    tally.entry(row_entry(0, "x", {"prompt": "a"}))
    tally.entry(row_entry(1, "x", {"id": "k", "reason": "timeout", "message": "no answer within 120 s"}))
    assert overview_lines(tally.overview(True)) == [("failed", "1 error")]
