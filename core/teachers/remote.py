"""A server as a teacher of training: one client, one asker, one budget and one cache for a whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.stop import Stop
from ..errors import UsageError
from . import backend_of
from .api_client import ApiClient
from .asker import Asker
from .engine import Limits
from .money import given_price
from .protocol import Price, Usage
from .providers import PROVIDERS, Provider
from .score_cache import ScoreCache

if TYPE_CHECKING:
    from ..commands.teacher import TeacherOptions


@dataclass(frozen=True)
class Remote:
    """What everything that asks one server in training shares.

    price: USD per token; None when nobody says.   cache: None when nothing is kept.   extra_body: fields that every
    request carries besides ours.
    """

    backend: str
    model: str
    client: ApiClient
    provider: Provider
    asker: Asker
    cache: ScoreCache | None
    price: Price | None
    extra_body: Mapping[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer of the server depends on besides the question; part of every key in the cache."""
        return {
            "backend": self.backend,
            "model": self.model,
            "endpoint": self.client.endpoint,
            "extra_body": dict(self.extra_body),
        }

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.model} at {self.client.endpoint} ({self.backend})"

    def worst_usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The most that a request may cost; 0 where no price is known."""
        return self.price.cost(prompt_tokens, completion_tokens) if self.price else 0.0

    def cost_usd(self, usage: Usage, stated_usd: float | None) -> float | None:
        """What an answer cost: what the server says, else the price times its tokens; None when neither is known."""
        if stated_usd is None and self.price is not None and usage != Usage():
            return self.price.cost(usage.prompt_tokens, usage.completion_tokens)
        if stated_usd is None and self.price is None and not self.provider.hosted:
            return 0.0  # a server of one's own
        return stated_usd

    def close(self) -> None:
        """End the connections and the thread, close the cache."""
        self.asker.run(self.client.aclose()).result()
        self.asker.close()
        if self.cache is not None:
            self.cache.close()


def open_remote(
    options: TeacherOptions, stop: Stop, *, cache: Path | None, share: int = 1, note: Callable[[str], None]
) -> Remote:
    """The server that the options name, and its price. Raises UsageError for a key, an address or a file of the cache
    that cannot be used, and for --max-cost without a price.

    cache: its file.   share: processes that divide --max-cost among them.
    """
    backend = backend_of(options.model, options.backend, options.base_url)
    client = ApiClient(
        backend,
        base_url=options.base_url,
        api_key_env=options.api_key_env,
        timeout_s=options.timeout,
        connections=options.concurrency,
    )
    kept = None if cache is None else ScoreCache(cache)
    most = None if options.max_cost is None else options.max_cost / share
    limits = Limits(
        options.concurrency,
        options.retries,
        most,
        share=share,
        cheaper="raise it, or lower --max-new-tokens",
        goes_on="The same command with a fresh --max-cost goes on, with --resume where steps were made.",
    )
    asker = Asker(limits, stop)
    try:
        for line in client.notes:
            note(line)
        price = given_price(options) or asker.run(client.price(options.model)).result()
        remote = Remote(
            backend, options.model, client, PROVIDERS[backend], asker, kept, price, options.extra_body or {}
        )
        if price is None and options.max_cost is not None and not options.dry_run:
            raise UsageError(
                f"--max-cost needs a price, and {client.endpoint} lists none for {options.model}. Add "
                "--teacher-price PROMPT/COMPLETION in USD per million tokens, for example --teacher-price 3/15."
            )
        return remote
    except BaseException:
        asker.run(client.aclose()).result()
        asker.close()
        raise
