"""Which paid answers become training rows. Pure functions; the engine has already refused empty and broken ones."""

import re
from dataclasses import dataclass

REFUSAL = re.compile(
    r"""^\W*(?:
        (?:i\ am|i'm)\ (?:very\ |so\ |truly\ |really\ )?(?:sorry|afraid)\b[^.!?\n]{0,40}
        \b(?:can(?:no|')t|unable|not\ able|won't)
      | (?:sorry|apologies|unfortunately)\b[^.!?\n]{0,30}\bi(?:'m|\ am)?\ (?:can(?:no|')t|unable|not\ able|won't)
      | i\ (?:can(?:no|')t|won't|will\ not|am\ (?:unable|not\ able)\ to|must\ (?:decline|refuse))\ ?
        (?:help|assist|provide|comply|fulfil|answer|create|write|generate|discuss|do\ that|support|engage|continue)?\b
      | i'm\ (?:unable|not\ able)\ to
      | as\ an\ (?:ai|artificial\ intelligence)\b[^.!?\n]{0,60}\b(?:can(?:no|')t|unable|not\ able|don't|do\ not)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""How a refusal begins, in English. A heuristic: `check_data` and a reader's eye are needed for the rest."""


@dataclass(frozen=True)
class Filters:
    """Whether an answer is kept. Loosening them later takes rejected answers back in without asking again."""

    min_chars: int = 0
    drop_truncated: bool = True
    drop_refusals: bool = False

    def reject(self, text: str, finish_reason: str, refusal: str = "") -> str | None:
        """Why an answer is not kept ("truncated", "too_short", "refusal"), or None. Text in characters."""
        if self.drop_truncated and finish_reason == "length":
            return "truncated"
        if len(text.strip()) < self.min_chars:
            return "too_short"
        if self.drop_refusals and (refusal or REFUSAL.match(text.replace("\u2019", "'"))):
            return "refusal"
        return None
