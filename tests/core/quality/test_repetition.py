"""Loops are found; poems, lists, tables, code and JSON are not taken for them."""

import json
import time

import pytest

from core.quality.repetition import loop_of, repeated_share, repetition

PROSE = (
    "The ferry left the island at noon, and nobody on the quay noticed that the keeper had not come down to wave. "
    "Photosynthesis turns light, water and carbon dioxide into sugar; the oxygen that we breathe is what is left. "
    "If you want bread to rise evenly, let the dough rest twice: once after kneading, and once more in the tin. "
)
VILLANELLE = """The harbour keeps the light it cannot hold,
And boats come home before the evening bell;
The tide returns whatever has been sold.

My father mended nets against the cold
And spoke of storms as others speak of hell:
The harbour keeps the light it cannot hold.

The gulls are bargaining for what is old,
A rope, a crust, the lining of a shell;
The tide returns whatever has been sold.

We learned to read the weather, we were told
That silence is the deepest kind of swell;
The harbour keeps the light it cannot hold.

No map will say how far the water rolled
The summer that the northern tower fell;
The tide returns whatever has been sold.

So leave the door ajar, the lamp, the fold
Of linen that the salt has learned to smell;
The harbour keeps the light it cannot hold,
The tide returns whatever has been sold."""
SONG = "\n\n".join(
    f"{verse}\n\nOh, carry me over the river again,\nOh, carry me over the sea,\nAnd I will remember the summer rain\n"
    "And you will remember me."
    for verse in (
        "The morning was grey and the kettle was slow,\nThe letters lay cold on the floor,\nI put on the coat that you "
        "left in the snow\nAnd nobody came to the door.",
        "The train was too late and the platform was bare,\nThe porter was counting his change,\nI asked him the "
        "way and he gave me a stare,\nAs though I were somebody strange.",
    )
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (PROSE + "I hope that this helps you. " * 10, 'ends in a loop: "i hope that this helps you" 10 times'),
        (PROSE + "I hope that this helps you. " * 9 + "I hope th", "ends in a loop"),  # the last word is cut off
        ("no " * 40, 'ends in a loop: "no" 40 times'),
        ("\u6211\u559c\u6b22\u4f60\u3002" * 12, "ends in a loop"),
        ("```\n" + "x = next_value(x)\n" * 40, "ends in a loop"),
        ("A" * 100, 'one character ("A") 100 times in a row'),
        ("Aaargh" + "!" * 300, "one character"),
        ("0." + "3" * 150, "one character"),
        ("\n".join([PROSE] * 6) + "\nAnd so it goes on.", "% of it are lines that stood before"),
        (
            "This sentence stands here all the time. Now and then one differs. " * 14 + PROSE,
            "% of its runs of four words",
        ),
    ],
)
def test_loops_are_found(text: str, why: str) -> None:
    assert why in (repetition(text) or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        PROSE,
        "very, very, very, very, very good",
        "Ha ha ha ha ha ha ha ha!",
        VILLANELLE,
        SONG,
        "\n".join(f"- The capital of {land} is {city}." for land, city in zip("ABCDEFGHIJ", "KLMNOPQRST", strict=True)),
        "\n".join(f"{n} times 7 is {7 * n}." for n in range(1, 21)),
        "\n".join(f"7 x {n} = {7 * n}" for n in range(1, 31)),
        "| name | yes | no |\n|---|---|---|\n"
        + "".join(f"| a row of this table, no. {n} | x | x |\n" for n in range(30)),
        "\n".join("0 0 0 0 1 0 0 0 0" for _ in range(12)),
        "Total\n" + "=" * 200 + "\n" + "-" * 200 + "\n" + "." * 150 + " 12",
        json.dumps([{"name": "unknown", "value": 0, "tags": []}] * 50, indent=1),
        "```python\n" + "".join(f"    self.{name} = {name}\n" for name in "abcdefghijkl") + "```",
        "```\n" + "assert check(value) is None\n" * 4 + "```\nFour times the same check.",
        "10^99 = 1" + "0" * 99,
        "A chance of 1 in 2.\n\n" + PROSE + "\n\nIn short: 1 in 2.",
    ],
    ids=lambda text: text[:20],
)
def test_what_repeats_itself_with_reason_passes(text: str) -> None:
    assert repetition(text) is None


def test_a_loop_needs_five_rounds_and_thirty_words() -> None:
    unit = ["one", "two", "three", "four", "five", "six", "seven"]
    head = ["so", "it", "begins"]
    assert loop_of(head + unit * 5)  # 35 words
    assert not loop_of(head + unit * 4)
    assert not loop_of(head + unit[:5] * 5)  # 25 words
    assert not loop_of(unit * 5 + head)  # not at the end
    assert not loop_of(["1", "0"] * 50)  # columns of numbers


def test_the_share_of_repeated_runs_of_a_hand_counted_text() -> None:
    # a b c d a b c d: runs abcd bcda cdab dabc abcd, the last of which stood before
    assert repeated_share(list("abcdabcd")) == pytest.approx(1 / 5)
    assert repeated_share(list("abc")) == 0.0


def test_a_long_text_takes_no_time() -> None:
    began = time.process_time()
    for unit in ("a", "a ", "ab ", "a b c ", "```\n", "|\n", "0 ", "{"):
        repetition(unit * (200_000 // len(unit)))
    assert time.process_time() - began < 10
