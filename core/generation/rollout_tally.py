"""What a run of rollouts has had so far, for its closing table."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..data.text import one_line
from ..teachers import Usage
from .check import Verdict
from .rollout import Rollout
from .tally import ADVICE

MORE_ADVICE = {
    "malformed_arguments": "the model writes broken tool calls: was it trained for tools, with these schemas?",
    "loop": "the model repeats a call that gets it nowhere: read one with scripts/show.py --failed",
    "refusal": "the model refuses these prompts",
    "empty_answer": "the model answers with nothing",
    "tools_gone": "a tool server ended in the middle: is it up, is its memory enough?",
    "container": "a container did not start: see the message",
    "rollout_timeout": "longer than --rollout-timeout: raise it, or lower --max-turns",
    "context_length": "longer than --max-context: raise it, or lower --max-tool-response",
    "no_room_for_answer": ADVICE["no_room_for_answer"],
    "tool_calls_as_text": "tool calls that cannot be read: broken ones, or a server without a tool parser",
    "web_page": "a gateway before the provider answers with web pages: run the same command again",
    "bad_row": ADVICE["bad_row"],
}
"""Reason of a failed rollout -> what it means, and the next step."""

OWN_FAULTS = frozenset({"malformed_arguments", "loop", "refusal", "empty_answer", "no_room_for_answer"})
"""Errors that a model makes by itself, whoever serves it. They are no successes, as a wrong answer is none."""


def own_fault(provenance: Mapping[str, Any], turns: int) -> bool:
    """Whether a rollout that ended in an error ended by the model's own fault: not by its provider, a time limit, or
    tools that went away.

    A context that overflows is the model's when it has filled it in turns of its own, a call that stands in the text
    when no server was to read it.
    """
    reason = provenance.get("reason")
    if reason == "context_length":
        return turns > 0
    if reason == "tool_calls_as_text":
        return provenance.get("backend") in ("hf", "gguf")
    return reason in OWN_FAULTS


class RolloutTally:
    """Counts over the rollouts of this run."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.tools_used: Counter[str] = Counter()
        self.tools_failed: Counter[str] = Counter()
        self.last_message: dict[str, str] = {}
        self.answers = self.successes = self.unchecked = self.prompt_tokens = self.completion_tokens = 0
        self.cut_off, self.cut_off_usd = 0, 0.0
        self.reward_errors: Counter[str] = Counter()
        self.cost_known = True
        self._turns: Counter[int] = Counter()  # turns -> rollouts

    def turn(self, usage: Usage, cost_usd: float | None) -> None:
        """Count one answer of the teacher."""
        self.answers += 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cost_known = self.cost_known and cost_usd is not None

    def ended(self, rollout: Rollout, verdict: Verdict) -> None:
        """Count a rollout that came to its end."""
        self.outcomes[rollout.ended] += 1
        self.successes += verdict.success
        self.unchecked += verdict.reward is None
        for error in verdict.errors:
            self.reward_errors[one_line(error, 300)] += 1
        self._count(rollout)

    def failed(self, rollout: Rollout | None, reason: str, message: str) -> None:
        """Count one that ended in an error."""
        self.outcomes["error"] += 1
        self.failures[reason] += 1
        self.last_message[reason] = message
        if rollout is not None:
            self._count(rollout)

    def _count(self, rollout: Rollout) -> None:
        self.tools_used += rollout.totals.tools_used
        self.tools_failed += rollout.totals.tools_failed
        self._turns[rollout.turns] += 1

    @property
    def rollouts(self) -> int:
        return sum(self.outcomes.values())

    @property
    def finished(self) -> int:
        """Rollouts that did not end in an error."""
        return self.rollouts - self.outcomes["error"]

    @property
    def turns(self) -> dict[str, float]:
        """Turns of a rollout."""
        if not self._turns:
            return {}
        mean = sum(turns * count for turns, count in self._turns.items()) / self._turns.total()
        return {"min": min(self._turns), "mean": round(mean, 2), "max": max(self._turns)}

    def advice(self) -> list[str]:
        """One line per kind of failure."""
        lines: list[str] = []
        for reason, count in self.failures.most_common():
            lines.append(f"{count:,} x {reason}: {MORE_ADVICE.get(reason) or ADVICE.get(reason) or 'see the message'}")
            lines.append(f"    last message: {self.last_message[reason][:300]}")
        if self.reward_errors:
            last, count = self.reward_errors.most_common(1)[0]
            lines.append(
                f"{self.reward_errors.total():,} x errors of --rewards ({count:,} x {last}): mend the file and run the "
                "same command: these rollouts are judged again, and nothing is asked"
            )
        if count := self.outcomes["length"]:
            lines.append(
                f"{count:,} x length: --max-tokens cut the model off. With a higher one every prompt is new work: "
                "select these with -e"
            )
        if count := self.outcomes["max_turns"]:
            lines.append(f"{count:,} x max_turns: no answer within --max-turns: a higher one runs these again")
        if self.cut_off:
            lines.append(f"{self.cut_off:,} begun rollouts were cut off ({self.cut_off_usd:.4f} USD) and start anew")
        return lines
