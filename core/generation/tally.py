"""What a run has had so far, for its closing summary."""

from collections import Counter

from ..teachers import Completion

ADVICE = {
    "timeout": "slow answers: a higher --timeout or a lower --max-tokens",
    "connection": "the connection failed: is the server up, is --base-url right?",
    "context_length": "longer than the teacher's context: shorten them, lower --max-tokens, or raise --n-ctx (gguf)",
    "no_room_for_answer": "reasoning used up --max-tokens: raise it",
    "over_budget": "one request exceeds the provider's budget: lower --max-tokens",
    "not_found": "nothing is served there under this name: check --base-url (it usually ends in /v1) and --model",
    "invalid_request": "the provider does not accept these requests: read their messages",
    "refused_by_provider": "the provider's rules refuse these prompts",
    "content_filter": "the provider's content filter cut these answers",
    "refusal": "the teacher refuses these prompts",
    "overloaded": "the provider is overloaded: run the same command again, or lower --concurrency",
    "too_large": "answers beyond 64 MB: is --base-url a chat API?",
    "out_of_memory": "too long for this machine's memory: shorten them, or take a smaller --dtype or model",
    "bad_row": "rows of the input that cannot be used: mend them",
    "upstream_error": "the provider had errors: run the same command again",
    "broken_answer": "broken answers: run the same command again",
    "empty_answer": "empty answers: run the same command again",
    "truncated": "cut off by --max-tokens: raise it, or --no-drop-truncated takes these answers as they are",
    "too_short": "shorter than --min-chars; a lower value takes these answers in without asking again",
}
"""Reason of a failure or a rejection -> what it means, and the next step."""


class Tally:
    """What a run has had so far, in memory that does not grow with the rows."""

    def __init__(self) -> None:
        self.kept = self.prompt_tokens = self.completion_tokens = 0
        self.cost_known = True
        self.rejected: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.finish_reasons: Counter[str] = Counter()
        self.last_message: dict[str, str] = {}
        self._lengths: Counter[int] = Counter()

    def answer(self, completion: Completion, cost: float | None, rejected: str | None) -> None:
        if rejected:
            self.rejected[rejected] += 1
        else:
            self.kept += 1
        self.prompt_tokens += completion.usage.prompt_tokens
        self.completion_tokens += completion.usage.completion_tokens
        self.cost_known = self.cost_known and cost is not None
        self.finish_reasons[completion.finish_reason] += 1
        self._lengths[completion.usage.completion_tokens or len(completion.text) // 4] += 1

    def failure(self, reason: str, message: str) -> None:
        self.failures[reason] += 1
        self.last_message[reason] = message

    def quantiles(self) -> dict[str, int]:
        """Smallest, quartiles, 90 % and largest length of the answers (nearest rank)."""
        ordered = sorted(self._lengths.items())
        total = sum(self._lengths.values())
        if not total:
            return {}
        wanted = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "90%": 0.9, "max": 1.0}
        found: dict[str, int] = {}
        for name, share in wanted.items():
            rank, passed = max(1, -int(-share * total // 1)), 0
            for length, count in ordered:
                passed += count
                if passed >= rank:
                    found[name] = length
                    break
        return found

    def advice(self) -> list[str]:
        """A line for each kind of failure and rejection."""
        lines: list[str] = []
        for reason, count in (self.failures + self.rejected).most_common():
            said = self.last_message.get(reason)
            last = f" (last: {said[:160]})" if said and reason != "bad_row" else ""
            lines.append(f"{count:,} {reason}: {ADVICE.get(reason, 'read the messages')}{last}")
        return lines
