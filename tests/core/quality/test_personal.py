"""What looks personal is found, what is reserved for examples is let pass, and a reason gives nothing away."""

import random
import time

import pytest

from core.quality.personal import ISSUERS, TEST_CARDS, findings, is_card, is_iban, personal

# Put together here, so that no scanner of secrets takes this file for a leak.
KEY = "sk-" + "proj-" + "h7Gk2LpQ9vXr4TzB8nWc"
TOKEN = "gh" + "p_" + "Zk3vN8qLr5Xw2Bt7Hd9Gf4Js6Pm1Yc0Ra8Ue"
HUB = "hf" + "_" + "QwRtYpLkJhGfDsZxCvBnMzXqWeTyUiOpAs"
AMAZON = "AK" + "IA" + "Q7RT2LMZX9KPW3VB"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to anna.schmidt@gmail.com today.", "an e-mail address (a...@g....com)"),
        ("<m.rossi+news@posta.studio.it>", "an e-mail address (m...@p....it)"),
        ("Call +49 30 901820 or write.", "a phone number (+49...)"),
        ("+33 6 12 45 78 31", "a phone number (+33...)"),
        ("tel:+442083661177", "a phone number (+44...)"),
        ("+1 (212) 867-5309", "a phone number (+1 ...)"),
        ("Ring me at (212) 867-5309.", "a phone number (212...)"),
        ("212-867-5309", "a phone number (212...)"),
        ("1-212-867-5309", "a phone number (212...)"),
        ("My card is 4539 1488 0343 6467, valid until May", "a card number (4...)"),
        ("4539148803436467", "a card number (4...)"),
        ("3714-496353-98456", "a card number (3...)"),
        ("IBAN: CH93 0076 2011 6238 5295 7", "an IBAN (CH...)"),
        ("NL91ABNA0417164300", "an IBAN (NL...)"),
        ("SSN 536-22-8714", "a social security number"),
        ("from 84.17.52.201 at noon", "an IP address (84...)"),
        ("2003:e8:2714:9b00:1c2d:3e4f:5a6b:7c8d", "an IP address (2003...)"),
        (f"export OPENAI_API_KEY={KEY}", "a secret key (sk-...)"),
        (f"git clone https://{TOKEN}@github.com/a/b", "a secret key (ghp_...)"),
        (HUB, "a secret key (hf_...)"),
        (AMAZON, "a secret key (AKIA...)"),
        ("-----BEGIN " + "RSA PRIVATE KEY-----\n" + "MIIEowIBAAKCAQEA7bq0v2Yx1n" * 3, "a private key"),
    ],
)
def test_what_looks_personal_is_named_and_masked(text: str, kind: str) -> None:
    assert personal(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        # reserved: RFC 2606, 555, Ofcom, RFC 5737, RFC 3849
        *("user@example.com", "a.b@mail.example.org", "root@db.test", "x@y.invalid", "anna@example"),
        *("+1 212 555 0123", "(415) 555-1234", "555-0199", "+44 20 7946 0018", "+44 7700 900123", "+1 555 123 4567"),
        *("192.168.178.24", "10.0.0.1", "127.0.0.1", "203.0.113.9", "255.255.255.0", "169.254.1.1", "2001:db8::1"),
        # roles, firms, placeholders, published samples
        *(
            "support@openai.com",
            "info@rathaus.de",
            "no-reply@github.com",
            "john.doe@gmail.com",
            "your.name@company.com",
        ),
        *("git@github.com:a/b.git", "1-800-442-4000", "+1234567890", "123-456-7890", "123-45-6789", "000-12-3456"),
        *("4111 1111 1111 1111", "4242424242424242", "378282246310005", "DE89 3704 0044 0532 0130 00", "8.8.8.8"),
        *("sk-your-api-key-goes-here-1", "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "AKIAIOSFODNN7EXAMPLE"),
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        # other things with such forms
        *("icon@2x.png", "@pytest.fixture", "a @ b.c", "npm i lodash@latest", "user@localhost", "$x@y"),
        *("version 1.2.3.4", "see section 4.12.7.1", "v84.17.52.201", "1.0.0.127.in-addr.arpa", "999.999.999.999"),
        *("12:30:45", "std::vector<int>", "00:1b:44:11:3a:b7", "9780306406157", "3.141592653589793", "2023-10-12"),
        *("4539148803436468", "2 +4930901820", "x+4930901820", "+1000000000000", "GB00 WEST 1234 5698 7654 32"),
        *("risk-adjusted-return-2024-models", "sk-learn-like-estimators-and-more", "hf_hub_download_with_retries"),
        *("The sum of 2128675309 and 84 is 2128675393.", "Population: 1 402 112 000", "ID 4500187263, 10029"),
    ],
)
def test_what_is_nobodys_is_let_pass(text: str) -> None:
    assert personal(text) is None


def test_a_reason_names_three_and_counts_the_others() -> None:
    text = "anna@gmail.com bert@gmx.de carl@web.de dora@aol.com emil@yahoo.com anna@gmail.com"
    assert personal(text) == (
        "an e-mail address (a...@g....com), an e-mail address (b...@g....de), an e-mail address (c...@w....de), "
        "and 2 more"
    )


def test_a_reason_shows_no_more_than_three_signs_of_anything() -> None:
    for secret in ("anna.schmidt", "901820", "8675309", "4539148803436467", "0417164300", "536-22-8714", KEY, TOKEN):
        text = f"{secret}@gmail.com +49 30 901820 (212) 867-5309 4539148803436467 NL91ABNA0417164300 {KEY} {TOKEN}"
        for reason in findings(text):
            assert not any(secret[start : start + 6] in reason for start in range(len(secret) - 5))


def test_one_wrong_digit_makes_a_card_and_an_iban_invalid() -> None:
    rng = random.Random(0)
    for digits in sorted(TEST_CARDS):
        assert ISSUERS.fullmatch(digits)
        assert not is_card(digits)
    card, iban = "4539148803436467", "NL91ABNA0417164300"
    for _ in range(50):
        place = rng.randrange(8, 16)
        step = rng.randint(1, 9)
        assert not is_card(with_another_digit(card, place, step))
        assert not is_iban(with_another_digit(iban, place, step))


def with_another_digit(text: str, place: int, step: int) -> str:
    return text[:place] + str((int(text[place]) + step) % 10) + text[place + 1 :]


def test_a_long_text_takes_no_time() -> None:
    began = time.process_time()
    for unit in (
        "1",
        "1 ",
        "a@",
        "a.",
        "1.",
        "+1 ",
        "(212) ",
        "2a:",
        "sk-a",
        "AB12 CDEF ",
        "-----BEGIN PRIVATE KEY-----\n",
    ):
        personal(unit * (200_000 // len(unit)))
    assert time.process_time() - began < 20
