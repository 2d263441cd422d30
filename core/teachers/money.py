"""What a teacher's answers cost."""

from ..commands.teacher import TeacherOptions
from ..errors import UsageError
from .protocol import Completer, Completion, Price, Usage


def given_price(options: TeacherOptions) -> Price | None:
    """The price of --price, in USD per token."""
    if options.price is None:
        return None
    prompt, completion = (float(part) / 1e6 for part in options.price.split("/"))
    return Price(prompt, completion, "--price")


async def find_price(options: TeacherOptions, teacher: Completer) -> Price | None:
    """The price of --price, else of the provider's list. Raises UsageError if --max-cost needs one that is unknown."""
    price = given_price(options) or await teacher.price()
    if price is None and not teacher.local and options.max_cost is not None and not options.dry_run:
        raise UsageError(
            f"--max-cost needs a price, and {teacher.endpoint} lists none for {teacher.model}. "
            "Add --price PROMPT/COMPLETION in USD per million tokens, for example --price 3/15."
        )
    return price


def answer_cost(completion: Completion, teacher: Completer, price: Price | None) -> float | None:
    """USD of an answer: what the teacher says, else the price times its tokens; 0 for a local teacher."""
    if teacher.local:
        return 0.0
    if completion.cost_usd is None and price is not None and completion.usage != Usage():
        return price.cost(completion.usage.prompt_tokens, completion.usage.completion_tokens)
    return completion.cost_usd
