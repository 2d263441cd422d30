"""What looks like personal data or a secret in a text: by its form and check digits, with what is nobody's let pass.

A heuristic for people to look at what it finds: names, birthdays and addresses of houses have no form that tells.
"""

import ipaddress
import re
from collections.abc import Iterator

MOST = 3
"""Findings that a reason names."""

NUMBERS = re.compile(r"\d[\d .()-]{5,}\d|[A-Z]{2}\d\d ?[A-Z]{4}")
"""Stands wherever one of the patterns of numbers does."""
EMAIL = re.compile(r"(?<![\w.%+/-])([\w.%+-]{1,64})@((?:[A-Za-z0-9-]{1,63}\.){1,8}([A-Za-z]{2,24}))(?![\w@])")
RESERVED = re.compile(
    r"(?:^|\.)(?:example\.(?:com|net|org)|example|test|invalid|localhost|local)$|^(?:your|my)?-?"
    r"(?:domain|company|site|website|organi[sz]ation)\.(?:com|net|org)$",
    re.IGNORECASE,
)
"""Domains that RFC 2606 and 6761 keep for examples, and those that everybody writes instead."""
NOBODY = re.compile(
    r"(?:e?-?mail|user(?:name)?\d?|name|some(?:one|body)|you|me|foo|bar|your[._-]?\w*|first\w*[._-]last\w*|j(?:ohn|ane)?[._-]?doe"
    r"|git|info|contact|support|help(?:desk)?|service|customer[._-]?\w*|sales|marketing|office|press|jobs|careers|hr|legal"
    r"|billing|privacy|admin|security|abuse|noc|(?:post|host|web)master|no-?reply|do-?not-?reply|notifications?|feedback)",
    re.IGNORECASE,
)
"""Local parts that name no person: placeholders, and roles (RFC 2142 and its like)."""
FILES = {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "py", "md", "json", "html", "txt"}

INTERNATIONAL = re.compile(r"(?<![\w)])(?<!\d )\+([1-9]\d{0,2}(?:[ .-]?\(?\d{1,5}\)?){2,6})(?![\w-])")
AMERICAN = re.compile(
    r"(?<![\w.+/-])(?<!\+1[ .-])(?:1[ .-])?"
    r"(?:\(([2-9]\d\d)\) ?[2-9]\d\d[-.]|([2-9]\d\d)([-.])[2-9]\d\d\3)\d{4}(?![\w-])"
)
FICTION = re.compile(r"44(?:2079460|7700900|1632960)|1\d{3}555|1555|1(?:800|833|844|855|866|877|888)|3(?:3199|3639)")
"""Beginnings of numbers that are kept for films and books (Ofcom, ARCEP, 555), or free of charge and so a firm's."""

CARD = re.compile(r"(?<![\w.,-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{5})(?![\w-]|[.,]\d)")
ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|64[4-9]\d|65\d\d|62\d\d)\d{12}|35\d{14}|3(?:0[0-5]|[68]\d)\d{11}"
)
"""Visa, Mastercard, American Express, Discover and UnionPay, JCB, Diners Club."""
TEST_CARDS = frozenset(
    re.findall(
        r"\d+",
        "4111111111111111 4242424242424242 4012888888881881 4222222222222 4000056655665556 4000000000000002 "
        "4532015112830366 5555555555554444 5105105105105100 5200828282828210 2223003122003222 378282246310005 "
        "371449635398431 378734493671000 6011111111111117 6011000990139424 30569309025904 38520000023237 "
        "3530111333300000 3566002020360505 6200000000000005",
    )
)
"""Those that payment services publish for tests."""

IBAN = re.compile(r"(?<!\w)([A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?)(?!\w)")
IBAN_LENGTHS = {
    text[:2]: int(text[2:])
    for text in re.findall(
        r"\w+",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 "
        "LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 "
        "SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20",
    )
}
"""Of the registry of ISO 13616."""
SAMPLE_IBANS = {
    "DE89370400440532013000",
    "GB82WEST12345698765432",
    "GB29NWBK60161331926819",
    "FR1420041010050500013M02606",
}

SSN = re.compile(r"(?<![\w.-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])")
SAMPLE_SSNS = {"123-45-6789", "078-05-1120", "219-09-9999", "987-65-4321", "111-11-1111"}

IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w/-]|\.\w)")
IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}:[0-9a-fA-F:]{4,34}[0-9a-fA-F](?![\w:/])")
RESOLVERS = frozenset(
    re.findall(
        r"\S+",
        "8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220 2001:4860:4860::8888 "
        "2001:4860:4860::8844 2606:4700:4700::1111 2606:4700:4700::1001 2620:fe::fe",
    )
)
VERSION = 32
"""Four numbers below it may be a version or a section as well as an address."""

KEYS = ("sk-", "sk_live_", "rk_live_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "hf_", "nvapi-")
KEYS += ("xoxa-", "xoxb-", "xoxp-", "xoxr-", "xoxs-", "npm_", "AKIA", "ASIA", "AIza")
"""How the keys of well-known services begin: OpenAI and its like, Stripe, GitHub, GitLab, Hugging Face, NVIDIA, Slack,
npm, Amazon, Google."""
SECRET = re.compile(rf"(?<![\w-])({'|'.join(KEYS)})([A-Za-z0-9_-]{{16,}})")
PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+(?:[\w-]+: .*\s+)*[A-Za-z0-9+/=]{40}")
PLACEHOLDER = re.compile(r"example|your|xxx|\*\*\*|test|dummy|fake|1234567|abcdef|0{6}", re.IGNORECASE)


def personal(text: str) -> str | None:
    """What of it looks personal, masked, as "an e-mail address (j...@g....com)"; None when nothing does."""
    found = list(dict.fromkeys(findings(text)))
    more = f", and {len(found) - MOST} more" if len(found) > MOST else ""
    return ", ".join(found[:MOST]) + more if found else None


def findings(text: str) -> Iterator[str]:
    """Everything that looks like personal data or a secret: its kind, and as much of it as gives nothing away.

    E-mail addresses of people; phone numbers in international or North American form; card numbers (issuer and Luhn's
    check digit) and IBANs (country, length, check digits); social security numbers of the USA; public addresses of
    the internet; keys of well-known services and private keys. What is reserved for examples, published for tests, a
    firm's or plainly a placeholder is let pass.
    """
    if "@" in text:
        for found in EMAIL.finditer(text):
            if is_personal_address(found[1], found[2], found[3]):
                yield f"an e-mail address ({found[1][0]}...@{found[2][0]}....{found[3]})"
    if NUMBERS.search(text):
        yield from numbers(text)
    if text.count(":") > 1:
        for found in IPV6.finditer(text):
            if is_public_address(found[0]):
                yield f"an IP address ({found[0].split(':')[0]}...)"
    if any(key in text for key in KEYS):
        for found in SECRET.finditer(text):
            if is_secret(found[2]):
                yield f"a secret key ({found[1]}...)"
    if "PRIVATE KEY" in text and PRIVATE_KEY.search(text):
        yield "a private key"


def numbers(text: str) -> Iterator[str]:
    """The findings that are mostly digits."""
    for found in INTERNATIONAL.finditer(text):
        if is_someones_phone(digits_of(found[1])):
            yield f"a phone number ({found[0][:3]}...)"
    for found in AMERICAN.finditer(text):
        if is_someones_phone("1" + digits_of(found[0])[-10:]):
            yield f"a phone number ({found[1] or found[2]}...)"
    for found in CARD.finditer(text):
        if is_card(digits := digits_of(found[0])):
            yield f"a card number ({digits[0]}...)"
    for found in IBAN.finditer(text):
        if is_iban(found[1]):
            yield f"an IBAN ({found[1][:2]}...)"
    for found in SSN.finditer(text):
        if found[0] not in SAMPLE_SSNS:
            yield "a social security number"
    for found in IPV4.finditer(text):
        octets = [int(number) for number in found[0].split(".")]
        if max(octets) >= VERSION and octets[-1] and is_public_address(found[0]):
            yield f"an IP address ({octets[0]}...)"


def digits_of(text: str) -> str:
    """Its digits alone."""
    return "".join(sign for sign in text if sign.isdigit())


def is_personal_address(local: str, domain: str, top: str) -> bool:
    """Whether an e-mail address may be a person's."""
    return not (RESERVED.search(domain) or NOBODY.fullmatch(local) or top.lower() in FILES)


def is_someones_phone(digits: str) -> bool:
    """Whether a number with its country code may be in use: not of fiction, not made up by running along the keys."""
    if not 10 <= len(digits) <= 15 or FICTION.match(digits) or len(set(digits[-6:])) == 1:
        return False
    return not any(digits[-6:] in run for run in ("01234567890123456789", "98765432109876543210"))


def is_card(digits: str) -> bool:
    """Whether digits are a card number that no payment service gives away for tests."""
    if digits in TEST_CARDS or not ISSUERS.fullmatch(digits) or len(set(digits)) < 4:
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(number // 10 + number % 10 for number in doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether a text is an IBAN: length of its country, remainder 1 modulo 97 (ISO 13616)."""
    text = text.replace(" ", "")
    if len(text) != IBAN_LENGTHS.get(text[:2]) or text in SAMPLE_IBANS:
        return False
    return int("".join(str(int(sign, 36)) for sign in text[4:] + text[:4])) % 97 == 1


def is_public_address(text: str) -> bool:
    """Whether an IP address is one of the internet's, and no well-known service's."""
    try:
        return ipaddress.ip_address(text).is_global and text.lower() not in RESOLVERS
    except ValueError:
        return False


def is_secret(text: str) -> bool:
    """Whether the rest of a key looks drawn by chance."""
    cases = any(map(str.isupper, text)) and any(map(str.islower, text))
    drawn = len(digits_of(text)) >= 3 or (cases and len(text) >= 30)
    return drawn and len(set(text)) >= 10 and not PLACEHOLDER.search(text)
