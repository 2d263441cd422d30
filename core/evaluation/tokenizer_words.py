"""What the comparison of two tokenizers says: tables for a terminal, and its meaning in words."""

import textwrap
from collections.abc import Sequence

from ..commands.compare_tokenizers import Counted, Share, Side, TokenizersCompared

WIDTH = 100
GROUPS = {
    "language": "languages",
    "code": "code",
    "numbers": "numbers",
    "chat": "chat",
    "text": "your text",
    "tokens": "by kind of the student's tokens, in all texts",
}
ENOUGH, LITTLE = 0.8, 0.5
"""Exact shares above which little is lost, and below which GOLD has little to go by: rules of thumb, not measured
thresholds."""
ALIEN = 0.3
"""Outside shares above this are named."""
FEW = 1000
"""Tokens in all of the text below which more is asked for."""
ODD_TOKENS = 20
"""Kinds of tokens with fewer than these are not listed: nothing can be said of them."""


def tables(result: TokenizersCompared) -> str:
    """Everything that the terminal shows; for the same tokenizer no figures, as all are 1."""
    counted = [] if result.relation == "same" else [_figures(result), _kinds(result)]
    return "\n\n".join([_heads(result), *counted, "In words\n" + "\n".join(_wrapped(result.advice))])


def ordered(rows: Sequence[Counted]) -> list[Counted]:
    """By group, the most exact first."""
    names = list(GROUPS)
    return sorted(rows, key=lambda row: (names.index(row.group), -row.exact.value))


def _heads(result: TokenizersCompared) -> str:
    lines: list[str] = []
    for role, side in (("student", result.student), ("teacher", result.teacher)):
        end = f"end of turn {side.end_of_turn}" if side.end_of_turn else "no end of turn"
        template = "chat template" if side.chat_template else "no chat template"
        lines.append(f"{role}  {side.name}: {side.tokens:,} tokens, {side.spelling}, {end}, {template}")
    return "\n".join([*lines, f"text     {_source(result)}"])


def _source(result: TokenizersCompared) -> str:
    whole = result.all
    return f"{result.source}: {many(whole.passages, 'passage')}, {whole.text_bytes:,} bytes"


def _figures(result: TokenizersCompared) -> str:
    words, vocabulary = result.overall, result.vocabulary
    sizes, groups = list(words.group_sizes.items()), words.groups
    common = [f"{name} {often / groups:.1%}" for name, often in sizes[:6]]
    rest = sum(often for _, often in sizes[6:])
    if rest:
        common.append(f"others {rest / groups:.1%}")
    rows = [
        ("vocabularies, IoU", f"strict (token and id) {vocabulary.iou_strict:.3f}, as written "
         f"{vocabulary.iou_strings:.3f}, by bytes {vocabulary.iou_bytes:.3f}"),
        ("shared entries", f"{vocabulary.shared:,}: {vocabulary.student_share:.1%} of the student's, "
         f"{vocabulary.teacher_share:.1%} of the teacher's"),
        ("shared, as used", f"{_share(words.student_coverage)} of the student's tokens in the text, "
         f"{_share(words.teacher_coverage)} of the teacher's"),
        ("boundaries", f"precision {_share(words.boundary_precision)}, recall {_share(words.boundary_recall)}, "
         f"F1 {words.boundary_f1:.3f}"),
        ("tokens per word", _pair(words.student_tokens_per_word, words.teacher_tokens_per_word)
         + f" ({words.words:,} words, scripts with spaces)" if words.words else "no words between spaces"),
        ("bytes per token", _pair(words.student_bytes_per_token, words.teacher_bytes_per_token)
         + f"; {words.length_ratio:.2f} student tokens for one of the teacher"),
        ("groups", f"{groups:,} between shared cuts, of {words.mean_student_group:.2f} student and "
         f"{words.mean_teacher_group:.2f} teacher tokens; {_share(words.single_groups)} are 1:1"),
        ("", ", ".join(common)),
        ("numerals", f"tokens of several digits: {vocabulary.numerals_both:,} on both sides, "
         f"{vocabulary.numerals_student_only:,} only the student's, "
         f"{vocabulary.numerals_teacher_only:,} only the teacher's"),
        ("special tokens", f"{_specials('student', result.student)}; {_specials('teacher', result.teacher)}"),
    ]  # fmt: skip
    lines: list[str] = []
    for name, text in rows:
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=f"{name:<18}", subsequent_indent=" " * 18, break_on_hyphens=False,
            break_long_words=False,
        )  # fmt: skip
    return "\n".join(lines)


def _kinds(result: TokenizersCompared) -> str:
    heads = f"{'':<26}{'student':>8}{'teacher':>8}   {'exact':<16}{'merged':>7}{'outside':>9}"
    lines = ["The student's tokens, as GOLD compares them [95 % interval]", heads, _line(result.all)]
    lines += [_line(row, "    ") for row in result.groups]
    listed = [row for row in result.token_kinds if row.student_tokens >= ODD_TOKENS]
    group = ""
    for row in [*ordered(result.kinds), *ordered(listed)]:
        if row.group != group:
            group = row.group
            lines.append(f"  {GROUPS[group]}")
        lines.append(_line(row, "    "))
    return "\n".join(lines)


def _line(row: Counted, indent: str = "  ") -> str:
    name = textwrap.shorten(row.name, 22, placeholder="…") if len(row.name) > 22 else row.name
    exact = f"{row.exact.value:>6.1%} [{row.exact.low * 100:.0f}-{row.exact.high * 100:.0f}]"
    return (
        f"{indent + name:<26}{row.student_tokens:>8,}{row.teacher_tokens:>8,}  {exact:<17}"
        f"{row.merged.value:>7.1%}{row.outside.value:>9.1%}"
    )


# ---- in words ----------------------------------------------------------------------------------------------------


def advice(result: TokenizersCompared) -> list[str]:
    """What share of GOLD's signal will be exact, where it will not be, and what to do about it."""
    said = {"same": _same, "same_text_tokens": _same_text, "no_overlap": _nothing}.get(result.relation, _different)(
        result
    )
    return [*said, *_turns(result)]


def _same(result: TokenizersCompared) -> list[str]:
    return [
        f"The two tokenizers are the same: all {result.student.tokens:,} ids mean the same, and the text is cut alike. "
        "Generalised JSD over the whole vocabulary applies directly; GOLD's alignment is not needed."
    ]


def _same_text(result: TokenizersCompared) -> list[str]:
    return [
        "The two tokenizers are the same but for added tokens: text is cut alike, and every id of text means the same. "
        "Generalised JSD applies directly over the ids that both have; only added tokens differ."
    ]


def _nothing(result: TokenizersCompared) -> list[str]:
    return [
        "The vocabularies have no token of text in common: the matched part of GOLD's loss is empty, and its sorted "
        "part only compares how sharp the two models are, not what they say. Train on the teacher's answers instead, "
        "or choose a teacher with a vocabulary nearer to the student's."
    ]


def _different(result: TokenizersCompared) -> list[str]:
    whole, words = result.all, result.overall
    by_group = ", ".join(f"{row.name} {row.exact.value:.0%}" for row in result.groups)
    by_group = f" ({by_group})" if by_group else ""
    return [
        f"{_share(whole.exact)} of GOLD's signal will be exact{by_group}: one token on each "
        f"side with the same bytes, compared column by column. Counted over {whole.student_tokens:,} student tokens in "
        f"{many(whole.passages, 'passage')}.",
        f"{_share(whole.merged)} lies in groups of several tokens and is compared approximately, and "
        f"{_share(whole.outside)} is in tokens that the teacher's vocabulary does not have, compared by rank only. "
        'With merged="span" such groups are compared by the probability of their bytes instead.',
        *(
            [f"Only {whole.student_tokens:,} tokens were counted: give more text."]
            if whole.student_tokens < FEW
            else []
        ),
        *_numerals(result),
        *_verdicts(result),
        f"{_share(words.teacher_coverage)} of the teacher's tokens are in the student's vocabulary too: about the mass "
        "that the teacher puts on matched columns. GOLD's default weight of the matched part is "
        f"{result.vocabulary.teacher_share:.2f}, from the sizes of the vocabularies alone.",
    ]


def _verdicts(result: TokenizersCompared) -> list[str]:
    """Kinds of text by how much of them is exact, and what to do about each."""
    kinds = result.kinds if len(result.kinds) > 1 else [result.all.model_copy(update={"name": "this text"})]
    bounds = ((ENOUGH, 2.0), (LITTLE, ENOUGH), (-1.0, LITTLE))
    good, middling, low = (
        ", ".join(
            f"{row.name} {row.exact.value:.0%}"
            for row in sorted(kinds, key=lambda row: -row.exact.value)
            if least <= row.exact.value < most
        )
        for least, most in bounds
    )
    lines: list[str] = []
    if good:
        lines.append(f"A good pair for GOLD (a rule of thumb: 80 % exact or more) on {good}.")
    if middling:
        lines.append(
            f'Usable (50 % to 80 %) on {middling}: prefer merged="span", and let the student begin with the teacher\'s '
            "answers, so that its own come near to them."
        )
    if low:
        lines.append(
            f"Too low to rely on (less than 50 %) on {low}: there train on the teacher's answers themselves, or choose "
            "a teacher of the student's family."
        )
    alien = [row for row in kinds if row.outside.value > ALIEN]
    if alien:
        named = ", ".join(row.name for row in sorted(alien, key=lambda row: -row.outside.value)[:6])
        lines.append(
            f"More than {ALIEN:.0%} outside the teacher's vocabulary: {named}. The matched loss is silent there."
        )
    return lines


def _numerals(result: TokenizersCompared) -> list[str]:
    vocabulary = result.vocabulary
    sides = [
        f"the {role} has {alone:,} tokens of several digits that the {other} does not have"
        for role, other, alone in (
            ("student", "teacher", vocabulary.numerals_student_only),
            ("teacher", "student", vocabulary.numerals_teacher_only),
        )
        if alone
    ]
    digits = next((row for row in result.token_kinds if row.name == "digits"), None)
    if digits is None or not sides:
        return []
    if digits.exact.value >= ENOUGH:
        return [
            f"Numbers: {' and '.join(sides)}, but {_share(digits.exact)} of the digits here are exact all the same."
        ]
    return [
        f"Numbers: {' and '.join(sides)}, and only {_share(digits.exact)} of the student's digit tokens are exact "
        f'({digits.student_tokens:,} counted). Use merged="span" where numbers matter, as in mathematics: column by '
        "column, the digits that one side writes together would be held down."
    ]


def _turns(result: TokenizersCompared) -> list[str]:
    student, teacher = result.student, result.teacher
    lines: list[str] = []
    if student.end_of_turn and teacher.end_of_turn:
        same = student.end_of_turn == teacher.end_of_turn
        named = f"{student.end_of_turn} on both sides" if same else f"{student.end_of_turn} is {teacher.end_of_turn}"
        lines.append(f"End of turn: {named}{'' if same else ' for the teacher'}; the pair is matched and trained.")
    for role, side in (("student", student), ("teacher", teacher)):
        lines += [f"The {role}: {note}" for note in side.notes]
    return lines


def _specials(role: str, side: Side) -> str:
    only = side.special_only_here
    if not only:
        return f"none that only the {role} has ({side.special_tokens:,} in all)"
    more = f" and {len(only) - 6} more" if len(only) > 6 else ""
    return f"only the {role}'s ({side.special_tokens:,} in all): {' '.join(only[:6])}{more}"


def _wrapped(paragraphs: Sequence[str]) -> list[str]:
    return [
        line
        for paragraph in paragraphs
        for line in textwrap.wrap(
            paragraph,
            WIDTH,
            initial_indent="- ",
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    ]


def _share(share: Share) -> str:
    return f"{share.value:.1%} [{share.low * 100:.0f}-{share.high * 100:.0f}]"


def _pair(student: float | None, teacher: float | None) -> str:
    return f"student {student or 0:.2f}, teacher {teacher or 0:.2f}"


def many(count: int, noun: str) -> str:
    """1 -> "1 passage", 2 -> "2 passages"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
