"""What a model wrote -> a question, however it wrapped it, or the reason why there is none.

A question was asked for as one JSON object, {"question": "..."}. Models put prose around it, forget quotes, or leave
the JSON out. What they meant is taken when it is certain where the question ends; nothing is made up. The rules are our
own and not a library's, because the same paid answer must be read the same way in every later run. A model that is
caught in a loop writes anything at any length: repeats in a pattern that may meet the same signs are possessive or
bounded.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ..data.overlap import words
from ..data.tags import reasoned
from ..data.text import one_line, without_surrogates
from ..generation.filters import REFUSAL
from ..quality.verify import value_of
from .records import Draft, Problem, Rejected, Verify

LONGEST, LONGEST_PLAIN = 4000, 600
"""Characters of a question, and of one that came without JSON."""
LONGEST_REPLY = 40_000
"""Characters of a reply that are read at all: of what is longer, nobody knows what it was about."""
LONGEST_EXPRESSION, LONGEST_EXPECTED = 1000, 30
MOST_BROKEN = 20
"""Objects of a reply that are no JSON, and are looked into all the same."""

SURE_KEYS = ("question", "prompt", "instruction", "problem", "usermessage")
QUESTION_KEYS = (*SURE_KEYS, "task", "query", "request", "message", "user", "text", "content", "input", "q")
"""Under which a question may stand, the likeliest first; compared in small letters, without signs, digits, plural. In
broken JSON only the sure ones."""
EXPRESSION_KEYS = ("expression", "calculation", "equation")
OTHER_KEYS = (
    *("answer", "solution", "explanation", "reasoning", "assistant", "response", "topic", "difficulty", "type"),
    *("category", "subcategory", "hint", "options", "choices", "persona", "style", "level", "context", "role", "id"),
)
"""That models add; in broken JSON only known keys show that the text before them has ended."""

KEY = "|".join(sorted((*QUESTION_KEYS, "user_message", "user message", *EXPRESSION_KEYS, *OTHER_KEYS), key=len)[::-1])
OBJECT = re.compile(r"\{\s*(?:[\"'\u201c\u2018]|\w+\s*:)")
FIELD = re.compile(
    rf"[{{,\s][\"'\u201c\u2018]?({KEY})s?[\"'\u201d\u2019]?\s*[:=]\s*([\"'\u201c\u2018]?)(?=[^\s])", re.IGNORECASE
)
CLOSING = {'"': '"', "'": "'", "\u201c": '[\u201d\u201c"]', "\u2018": "[\u2019\u2018']"}
AFTER = (
    rf"(?:\s*+,\s*+(?://[^\n]{{0,200}}+\n\s*+)?[\"'\u201c\u2018]?|\s++[\"'\u201c\u2018])(?:{KEY})s?"
    r"[\"'\u201d\u2019]?\s*+:"
    r"|\s*+,?\s*+[}\]][^\S\n]*+(?:$|[\]},{`\n])"
)
"""What stands behind the mark that ends a text: another known key, or the end of the object and of its line."""
BARE_END = re.compile(r"\}[^\S\n]*+(?:$|[\]},{`\n])|,\s*+[\"'\u201c]|\n")
"""What ends a text that has no marks."""
OBJECT_END = re.compile(r"[ \t\r\n,]*+[}\]]")
SENTENCE_END = re.compile(r"[.?!:)\u2026\u3002\uff01\uff1f\u061f]\s*$")
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "", "f": ""}
BACKSLASH = re.compile(
    r"\\(?:[\"\\/]|u[0-9a-fA-F]{4}|(?P<quote>')"
    r"|(?P<latex>[bfr](?=[A-Za-z])|n(?=(?:abla|eq|ot)\b)|t(?=(?:imes|ext\w*|frac|heta|an|au|o|riangle|ilde)\b)"
    r"|[^bfnrt]))"
)
"""An escape as JSON has them, or a backslash that was meant as one, in \\frac, \\times or \\(."""

FENCE = re.compile(r"```\w*+")
LABEL = re.compile(
    r"\W{0,3}\b(?:question|q|prompt|task|instruction|user|human|customer|message|problem)\s*\d*\W{0,3}:\W{0,3}\s+",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(
    r"(?:(?:insert|write|put|enter|type)\s+)?(?:(?:your|the|a|an|my|user'?s?|next|new|own|actual)\s+)*"
    r"(?:question|prompt|instruction|message|text|task|string|query|problem|todo|tbd|n/?a|none|null)"
    r"(?:\s+(?:text|goes|here|mark))*",
    re.IGNORECASE,
)
BLANK_FORM = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}")

POLITE = r"(?:sure(?:\s+thing)?|certainly|of\s+course|okay|ok|absolutely|alright|great|yes)\b[\s,.!:\u2013-]*"
SPEAKS_OF_IT = re.compile(
    rf"(?:{POLITE})*(?:here(?:'s|\s+is|\s+are)\b|below\s+(?:is|are)\b|as\s+requested|the\s+following\b|voici\b"
    r"|hier\s+(?:ist|sind)\b|aqu\u00ed\s+(?:est|tienes)|ecco\b"
    r"|the\s+(?:next\s+|user's\s+)*(?:question|prompt|task|message|instruction)\s+(?:is|would|could|should|for)\b"
    r"|this\s+question\b|json\b|i(?:'ve|'ll|'d|\s+have|\s+will|\s+can|\s+would)\s+(?:be\s+(?:happy|glad)\s+to|creat"
    r"|generat|writ))",
    re.IGNORECASE,
)
"""How a model begins that writes about the question before it writes it."""
HERE_IT_IS = re.compile(
    rf"(?:{POLITE})*here(?:'s|\s+is|\s+are)\s+(?:\w+\s+){{0,4}}(?:questions?|prompts?|messages?|tasks?|instructions?)\b"
    rf"(?!\s+(?:about|for|i)\b)",
    re.IGNORECASE,
)
"""The same, where even a text out of JSON is not taken: a user has a question "for you"."""
AGREES = re.compile(r"(?:sure|certainly|of\s+course|absolutely|okay|ok)\b\s*[,.!:]", re.IGNORECASE)
DECLINES = re.compile(
    r"\b(?:(?:help|assist)(?:\s+you)?\s+with\s+(?:that|this|your\s+request)|(?:that|this|your)\s+request|as\s+an\s+ai\b"
    r"|language\s+model|fulfil|comply|(?:generat|creat|writ|provid)\w*\s+(?:(?:a|an|the|any|such|that|this)\s+)*"
    r"(?:\w+\s+)?(?:questions?|content|prompts?))",
    re.IGNORECASE,
)
"""What tells a model's refusal from a user who "can't log in"."""
ASSISTANT = re.compile(
    r"(?:\W*+(?:hi|hello|hey|welcome|greetings|good\s+\w+|thank\s+you|thanks)\b[^.!?\n]{0,60}[.!,]){0,3}\W*+"
    r"(?:how\s+(?:can|may)\s+i\s+(?:help|assist)\s+you|is\s+there\s+anything\s+else\s+i\s+can"
    r"|i'm\s+(?:here|happy|glad)\s+to\s+(?:help|assist))",
    re.IGNORECASE,
)
ANSWERED = re.compile(r"\b(?:the\s+)?(?:correct\s+)?(?:answer|solution)\s*(?:is\b|:)", re.IGNORECASE)
LISTED = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s", re.MULTILINE)
ASKS = re.compile(r"[?\uff1f\u061f]")
ORDERS = re.compile(
    r"(?:^|[.!;:]\s+)(?:please\s+)?(?:find|calculate|compute|determine|solve|explain|prove|show|evaluate|simplify"
    r"|identify|describe|estimate|work\s+out|derive|decide|compare|arrange|deduce|justify|name|list|give|state|choose)\b",
    re.IGNORECASE,
)

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
TIMES = re.compile(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])")
OPERATION = re.compile(r"[\d)]\s*[-+*/\u2212\u00d7\u00f7\u00b7]")


@dataclass(frozen=True)
class Asked:
    """A question as a model wrote it. problem: the question with what its expression comes to, where one was wanted."""

    question: str
    problem: Problem | None = None


def read_question(text: str, draft: Draft, verify: Verify) -> Asked | Rejected:
    """A question out of a model's reply to a draft. verify: of the draft's task; "expression" wants one beside it."""
    found = _read(text, is_turn=False, must_ask=draft.slot.type == "reasoning")
    if isinstance(found, Rejected):
        return found
    question, expression = found
    asked = words(question)
    if asked and any(asked == words(example) for example in draft.examples):
        return Rejected("echo", f"an example was given back: {one_line(question)}")
    return _solved(question, expression) if verify == "expression" else Asked(question)


def read_turn(text: str) -> str | Rejected:
    """A user's next message in a dialogue."""
    found = _read(text, is_turn=True, must_ask=False)
    return found if isinstance(found, Rejected) else found[0]


def _read(text: str, *, is_turn: bool, must_ask: bool) -> tuple[str, str | None] | Rejected:
    """(question, expression or None). is_turn: it may begin with "Okay, ..."."""
    text = without_surrogates(reasoned(text)[1]).strip().removeprefix("\ufeff")
    if not text:
        return Rejected("empty", "nothing, or nothing but reasoning")
    if len(text) > LONGEST_REPLY:
        return Rejected("too_long", f"{len(text):,} characters: {one_line(text)}")
    problem = None
    for found in _in_json(text):
        if not isinstance(found, Rejected):
            question = _bare(found[0])
            found = _fault(question, is_plain=False) or (question, found[1])
        if not isinstance(found, Rejected):
            return found
        problem = problem or found
    if problem:
        return problem
    question = _bare(text)
    return (
        _fault(question, is_plain=True)
        or _no_plain_question(question, is_turn=is_turn, must_ask=must_ask)
        or (question, None)
    )


# ---- JSON ------------------------------------------------------------------------------------------------------


def _in_json(text: str) -> Iterator[tuple[str, str | None] | Rejected]:
    """Every question that stands in a JSON object of a reply, whole or broken; (question, expression or None)."""
    text = BACKSLASH.sub(_meant, text)
    decoder = json.JSONDecoder(strict=False)
    inside = _unfenced(text)
    starts_with_json = OBJECT.match(inside) or inside.startswith(('["', "[{"))
    if inside.startswith('["'):
        try:
            found = _question_in(decoder.decode(inside))
        except (ValueError, RecursionError):
            found = None
        if found:
            yield found
            return
    at, seen, broken = 0, False, 0
    while broken < MOST_BROKEN and (begin := OBJECT.search(text, at)):
        try:
            value, at = decoder.raw_decode(text, begin.start())
            found = _question_in(value)
        except (ValueError, RecursionError):
            found, at = _in_broken(text, begin.start())
            broken += 1
        if found:
            seen = True
            yield found
    if starts_with_json and not seen:
        yield Rejected("no_question", f"JSON without a question: {one_line(text)}")


def _question_in(value: Any, expression: str | None = None) -> tuple[str, str | None] | None:
    """The first question in a JSON value; an expression stands beside it, or around it."""
    if isinstance(value, list):
        return next(filter(None, (_question_in(item, expression) for item in value)), None)
    if isinstance(value, str):
        return value, expression
    if not isinstance(value, dict) or str(value.get("role", "user")).lower() in ("system", "assistant"):
        return None
    fields = {_canonical(key): field for key, field in reversed(value.items())}
    given = next((fields[key] for key in EXPRESSION_KEYS if key in fields), None)
    expression = expression if given is None else str(given)
    named = [fields[key] for key in QUESTION_KEYS if key in fields]
    for field in named or [field for field in value.values() if isinstance(field, dict)]:
        if found := _question_in(field, expression):
            return found
    return None


def _canonical(key: str) -> str:
    letters = re.sub(r"[^a-z]", "", key.lower())
    return letters if letters in QUESTION_KEYS else letters.removesuffix("s")


def _in_broken(text: str, start: int) -> tuple[tuple[str, str | None] | Rejected | None, int]:
    """The question of an object that is no JSON, and where to go on."""
    fields: dict[str, tuple[str, bool]] = {}
    at = start
    while field := FIELD.search(text, at):
        value, at, ended = _value(text, field)
        fields.setdefault(_canonical(field[1]), (value, ended))
        if at == len(text) or OBJECT_END.match(text, at):
            break
    if not fields:
        return None, len(text)  # nor does any other object have a field
    key = next((key for key in SURE_KEYS if key in fields), None)
    if key is None:
        return None, at
    question, ended = fields[key]
    if not ended:
        return Rejected("truncated", f"the question does not end: {one_line(question)}"), len(text)
    expression = next((fields[key][0] for key in EXPRESSION_KEYS if key in fields and fields[key][1]), None)
    return (question, expression), at


def _value(text: str, field: "re.Match[str]") -> tuple[str, int, bool]:
    """(value, where it ends, whether it does end) of a field in broken JSON."""
    start = field.end()
    if field[2]:
        quote = CLOSING[field[2]]
        if end := re.compile(rf"(?<!\\){quote}(?={AFTER})", re.IGNORECASE).search(text, start):
            return _unescaped(text[start : end.start()]), end.end(), True
        # Cut off after the text, or its closing mark was forgotten: whole only when a sentence ends there.
        behind = re.match(rf"([}}\]`\s]*+,?\s*+)({quote})?", text[start:][::-1])
        assert behind is not None
        value = text[start : len(text) - behind.end()]
        whole = SENTENCE_END.search(value) is not None or _canonical(field[1]) in EXPRESSION_KEYS
        return _unescaped(value), len(text), whole and (behind[2] is not None or "}" in behind[1])
    end = BARE_END.search(text, start)
    value = text[start : end.start()].rstrip() if end else text[start:]
    return _unescaped(value), end.start() if end else len(text), end is not None


def _meant(match: "re.Match[str]") -> str:
    if match["quote"]:
        return "'"
    return "\\" + match[0] if match["latex"] else match[0]


def _unescaped(text: str) -> str:
    def plain(match: "re.Match[str]") -> str:
        escaped = match[1]
        return chr(int(escaped[1:], 16)) if len(escaped) == 5 else ESCAPES.get(escaped, escaped)

    text = ESCAPE.sub(plain, text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # two escapes may be one character


# ---- text ------------------------------------------------------------------------------------------------------


def _unfenced(text: str) -> str:
    """What stands in a fence of code, where that is all."""
    opening = FENCE.match(text)
    return text[opening.end() :].rstrip().removesuffix("```").strip() if opening else text


def _bare(text: str) -> str:
    """Without a fence, "Question:" before it, and quotation marks around it."""
    text = without_surrogates(_unfenced(text.strip())).strip()
    text = LABEL.sub("", text, count=1) if LABEL.match(text) else text
    for left, right in ('""', "\u201c\u201d", "\u00ab\u00bb"):
        inner = text[1:-1]
        if len(text) > 2 and text[0] == left and text[-1] == right and left not in inner and right not in inner:
            text = inner
    return text.strip()


def _fault(question: str, *, is_plain: bool) -> Rejected | None:
    """Why a text is no question, wherever it stood. is_plain: without JSON, so it may be anything."""
    if len(question) > LONGEST:
        return Rejected("too_long", f"{len(question):,} characters: {one_line(question)}")
    bare = question.strip(" .\u2026_*?!\"'")
    is_label = question.isascii() and not re.search(r"[\s?]", question)
    if (
        is_label
        or not words(question)
        or BLANK_FORM.fullmatch(question)
        or PLACEHOLDER.fullmatch(bare.strip("<>[]{}() "))
    ):
        return Rejected("no_question", f"nothing is asked: {one_line(question)}")
    straight = question.replace("\u2019", "'")
    if REFUSAL.match(straight) and (is_plain or DECLINES.search(straight[:300])):
        return Rejected("refusal", one_line(question))
    if HERE_IT_IS.match(straight) and not is_plain:
        return Rejected("no_question", f"words about a question: {one_line(question)}")
    if ASSISTANT.match(straight):
        return Rejected("no_question", f"an assistant's words: {one_line(question)}")
    return None


def _no_plain_question(text: str, *, is_turn: bool, must_ask: bool) -> Rejected | None:
    """Why a reply without JSON is not simply the question."""
    no_question = Rejected("not_json", f"neither JSON nor simply a question: {one_line(text)}")
    if len(text) > LONGEST_PLAIN:
        return no_question
    straight = text.replace("\u2019", "'")
    last = [*ASKS.finditer(text)]
    is_one = not re.search(r"\n\s*\n|```|\bJSON\b|[{\[]\s*[\"']\w+[\"']\s*:", text)
    talks = SPEAKS_OF_IT.match(straight) or (not is_turn and AGREES.match(straight))
    asks = bool(last) or (ORDERS.search(text) if must_ask else SENTENCE_END.search(text))
    solved = ANSWERED.search(text, last[-1].end() if last else 0)
    if is_one and asks and not talks and not solved and not LISTED.search(text):
        return None
    return no_question


# ---- expressions -----------------------------------------------------------------------------------------------


def _solved(question: str, expression: str | None) -> Asked | Rejected:
    """A question with the value of its expression; it must be one that its numbers lead to."""
    if expression is None or not expression.strip():
        return Rejected("unverifiable", f"no expression: {one_line(question)}")
    if len(expression) > LONGEST_EXPRESSION:
        return Rejected("unverifiable", f"too long an expression: {one_line(expression)}")
    expression = TIMES.sub(" * ", expression)
    try:
        value = value_of(expression)
    except ValueError as error:
        return Rejected("unverifiable", f"{error}: {one_line(expression)}")
    if not OPERATION.search(expression.strip()):
        return Rejected("unverifiable", f"a number, and no calculation: {one_line(expression)}")
    given, used = ({number.replace(",", "") for number in NUMBER.findall(part)} for part in (question, expression))
    if given and not given & used:
        return Rejected("unverifiable", f"{one_line(expression)} has none of the numbers of: {one_line(question)}")
    expected = _number_text(value)
    if len(expected) > LONGEST_EXPECTED:
        return Rejected("unverifiable", f"too long a number: {one_line(expression)}")
    return Asked(question, Problem(question, "expression", expected))


def _number_text(value: Fraction) -> str:
    """Exact: 36, 2.5, or 1/3 where no decimal says it."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    return f"{Decimal(value.numerator) / Decimal(value.denominator):f}" if value.denominator != 1 else str(value)
