"""What a teacher's answers cost."""

from collections.abc import Sequence

from ..commands.teacher import TeacherOptions
from ..errors import UsageError
from .protocol import Completer, Completion, Message, Price, Usage


def given_price(options: TeacherOptions) -> Price | None:
    """The price of --price, in USD per token."""
    if options.price is None:
        return None
    prompt, completion = (float(part) / 1e6 for part in options.price.split("/"))
    return Price(prompt, completion, "--price")


async def find_price(options: TeacherOptions, teacher: Completer, option: str = "--price") -> Price | None:
    """The price that was given, else that of the provider's list. option: that gives it.

    Raises UsageError if --max-cost needs one that is unknown.
    """
    price = given_price(options) or await teacher.price()
    if price is None and not teacher.local and options.max_cost is not None and not options.dry_run:
        raise UsageError(
            f"--max-cost needs a price, and {teacher.endpoint} lists none for {teacher.model}. "
            f"Add {option} PROMPT/COMPLETION in USD per million tokens, for example {option} 3/15."
        )
    return price


def answer_cost(completion: Completion, teacher: Completer, price: Price | None) -> float | None:
    """USD of an answer: what the teacher says, else the price times its tokens; 0 for a local teacher."""
    if teacher.local:
        return 0.0
    if completion.cost_usd is None and price is not None and completion.usage != Usage():
        return price.cost(completion.usage.prompt_tokens, completion.usage.completion_tokens)
    return completion.cost_usd


def message_bytes(messages: Sequence[Message]) -> int:
    """UTF-8 bytes of the messages' texts."""
    return sum(len(str(message.get("content") or "").encode("utf-8", "replace")) for message in messages)


def worst_cost(price: Price, messages: Sequence[Message], max_tokens: int) -> float:
    """The most that an answer can cost, in USD. A token has at least one byte, so bytes bound the prompt's tokens;
    templates add a few per message."""
    return price.cost(message_bytes(messages) + 16 * len(messages), max_tokens)
