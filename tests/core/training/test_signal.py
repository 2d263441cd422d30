"""What a server answered, and what becomes of the rest."""

import pytest

from core.errors import BudgetReached, RequestRejected, StoppedEarly, TeacherError, Throttled, TransientError
from core.training.signal import OF_THE_SERVER, answered

TOO_LONG = RequestRejected("context_length", "the text is too long")
PLACES = ["x:1", "x:2"]
SERVER = "qwen at http://127.0.0.1/v1 (vllm)"


def test_what_was_rejected_is_told_with_its_place():
    reasons: dict[str, str] = {}
    for error in (TOO_LONG, RequestRejected("context_length", "another one")):
        answered([1.5, error], PLACES, SERVER, reasons)
    assert reasons == {"context_length": "x:2: the text is too long"}


def test_a_text_that_is_rejected_is_left_out_alone_or_with_all_others():
    assert answered([1.5, TOO_LONG], PLACES, SERVER, {}) == [1.5, None]
    assert answered([TOO_LONG, TOO_LONG], PLACES, SERVER, {}) == [None, None]
    assert answered([], [], SERVER, {}) == []


@pytest.mark.parametrize(
    "error", [TransientError("connection", "cannot connect"), Throttled("rate_limit", "cannot connect")]
)
def test_a_text_without_an_answer_ends_the_run_since_the_others_alone_would_teach_something_else(error: TeacherError):
    with pytest.raises(StoppedEarly) as stopped:
        answered([1.5, error], PLACES, SERVER, {})
    assert str(stopped.value) == (
        f"{SERVER} said nothing of 1 of 2 requests about the answers in x:1, x:2: cannot connect. What it did say is "
        "kept: the same command goes on, with --resume where steps were made."
    )


@pytest.mark.parametrize("reason", OF_THE_SERVER)
def test_a_reason_that_lies_in_no_text_ends_the_run_when_it_holds_for_all(reason: str):
    error = RequestRejected(reason, "no such thing")
    assert answered([1.5, error], PLACES, SERVER, {}) == [1.5, None]
    assert answered([error], ["x:1"], SERVER, {}) == [None]  # of one or two it may be the text, after all
    with pytest.raises(StoppedEarly, match="no such thing"):
        answered([error] * 4, [*PLACES, *PLACES], SERVER, {})


def test_of_many_samples_only_some_are_named():
    errors: list[float | TeacherError] = [TransientError("timeout", "late")] * 12
    with pytest.raises(StoppedEarly, match=r"12 of 12 .* x:0, x:1, x:2, x:3, x:4 and 7 more: late\."):
        answered(errors, [f"x:{n}" for n in range(12)], SERVER, {})


def test_what_is_too_dear_is_left_to_the_user_and_says_nothing_of_the_text():
    error = RequestRejected("over_budget", "this request alone may cost 2 USD, more than --max-cost; raise it")
    with pytest.raises(BudgetReached, match=r"more than --max-cost; raise it\. The same command with more"):
        answered([1.5, error], PLACES, SERVER, {})


def test_a_servers_words_do_not_steer_a_terminal():
    reasons: dict[str, str] = {}
    answered([1.5, RequestRejected("refusal", "no\x1b[2J\nway")], PLACES, SERVER, reasons)
    assert "\x1b" not in reasons["refusal"]
    assert "\n" not in reasons["refusal"]
