"""A server's own list of its models: names, prices, and what it says of each. Nothing about a model stands in the code.

OpenRouter's list says most, and which models may be trained on; servers of one's own often say names alone.
"""

import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import orjson

from ..data.text import one_line
from ..errors import TeacherError, UsageError
from .api_client import ApiClient, listed_price
from .protocol import Price

MOST_PAGES = 100
NAME = re.compile(r"[\w~/.][\w.:/@+-]{0,199}", re.ASCII)
"""A name that may be pasted into a command line as it stands, and reads as nothing but a name."""
INSTEAD = (
    "Nothing was paid. Without the list: --model NAME --price 3/15 of generate_teacher_data says its price, and "
    "--model smollm2 is a small teacher that runs here."
)


@dataclass(frozen=True)
class Listed:
    """A model as its server lists it; None for what the list does not say.

    price: USD per token.   context: tokens of prompt and answer together.   created: Unix seconds.
    text: it writes text and nothing else.   expires: the day on which it goes, as the list writes it.
    may_train: its author allows training on its text.
    """

    name: str
    price: Price | None
    context: int | None
    created: float | None
    tools: bool | None
    reasons: bool | None
    logprobs: bool | None
    text: bool
    expires: str | None
    may_train: bool | None = None

    @property
    def vendor(self) -> str:
        """Who made it, as names at OpenRouter and on the Hub begin; the whole name where it has no such part."""
        return self.name.lstrip("~").partition("/")[0]

    @property
    def usd_both(self) -> float:
        """USD for a million tokens in and a million out; infinite where no price is known."""
        return math.inf if self.price is None else self.price.cost(1e6, 1e6)


@dataclass(frozen=True)
class PriceList:
    """models: in the order of the list.   source: its URL.   note: what could not be read."""

    models: list[Listed]
    source: str
    read_at: datetime
    note: str | None = None


async def read_price_list(client: ApiClient, *, permissions: bool, required: bool) -> PriceList:
    """The list of a server. permissions: also ask which models may be trained on.   required: and fail without that.

    Raises UsageError, one line, for a server that cannot be reached and for what is no list.
    """
    whole = asyncio.create_task(_rows(client, "/models"))
    allowed = asyncio.create_task(_rows(client, "/models?distillable=true")) if permissions else None
    await asyncio.wait([task for task in (whole, allowed) if task is not None])
    if allowed is not None and whole.exception() is not None:
        allowed.exception()  # asyncio complains of errors that nobody looked at
    source = f"{client.endpoint}/models"
    models = [_listed(row, source) for row in whole.result()]
    if not models:
        raise UsageError(f"{source} lists no models. {INSTEAD}")
    note = None
    if allowed is not None:
        try:
            names = {row["id"] for row in allowed.result()}
            models = [replace(each, may_train=each.name in names) for each in models]
        except UsageError as error:
            if required:
                raise
            why = str(error).removesuffix(INSTEAD).strip()
            note = f"which models may be trained on is not known: {why}"
    return PriceList(models, source, datetime.now(UTC), note)


async def _rows(client: ApiClient, path: str) -> list[dict[str, Any]]:
    """Every row with a name fit to be typed, of all pages. Raises UsageError."""
    found: dict[str, dict[str, Any]] = {}
    next_path: str | None = path
    for _ in range(MOST_PAGES):
        content = await _page(client, next_path)
        rows = content.get("data", content.get("models")) if isinstance(content, dict) else content
        if not isinstance(rows, list):
            raise UsageError(f"{client.endpoint}{path} is JSON, but no list of models. {INSTEAD}")
        before = len(found)
        for row in rows:
            name = row.get("id") if isinstance(row, dict) else None
            if isinstance(name, str) and NAME.fullmatch(name):
                found.setdefault(name, row)
        next_path = _next_page(client, path, content) if len(found) > before else None
        if next_path is None:
            break
    return list(found.values())


async def _page(client: ApiClient, path: str) -> Any:
    url = f"{client.endpoint}{path}"
    try:
        status, _, raw = await client.fetch(path)
    except TeacherError as error:
        raise UsageError(f"the list of models at {url} cannot be read: {client.told(error)}. {INSTEAD}") from None
    if status in (401, 403):
        raise UsageError(f"{url} refuses the key, or wants one ({status}); --api-key-env names its variable. {INSTEAD}")
    if status != 200:
        what = "a redirect, which is not followed" if 300 <= status < 400 else "no list of models"
        raise UsageError(f"{url} answers with status {status}: {what}. Is --base-url right, up to /v1? {INSTEAD}")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        begins = one_line(raw[:200].decode("utf-8", "replace"), 40)
        raise UsageError(
            f'{url} answers with no JSON (it begins "{begins}"): no list of models. Is --base-url right? {INSTEAD}'
        ) from None


def _next_page(client: ApiClient, path: str, content: Any) -> str | None:
    """Where the list goes on, at the same server; None at its end."""
    if not isinstance(content, dict):
        return None
    links = content.get("links")
    link = links.get("next") if isinstance(links, dict) else content.get("next")
    if isinstance(link, str) and link:
        there, here = urlsplit(urljoin(f"{client.endpoint}/", link)), urlsplit(client.endpoint)
        below = there.path.startswith(f"{here.path}/")
        if (there.scheme, there.netloc) != (here.scheme, here.netloc) or not below:
            return None  # the key does not go elsewhere
        return there.path.removeprefix(here.path) + (f"?{there.query}" if there.query else "")
    last = content.get("last_id")
    if content.get("has_more") is True and isinstance(last, str):
        return f"{path}{'&' if '?' in path else '?'}after_id={quote(last, safe='')}"
    return None


def _listed(row: Mapping[str, Any], source: str) -> Listed:
    able = _texts(row.get("supported_parameters"))
    made = row.get("architecture")
    output = _texts(made.get("output_modalities")) if isinstance(made, dict) else None
    created = row.get("created")
    return Listed(
        name=row["id"],
        price=listed_price(row, source),
        context=_first_count(row, "context_length", "max_model_len", "context_window"),
        created=float(created) if isinstance(created, int | float) and 0 < created < 1e11 else None,
        tools=None if able is None else "tools" in able,
        reasons=None if able is None else "reasoning" in able,
        logprobs=None if able is None else "logprobs" in able,
        text=output is None or output == {"text"},
        expires=row["expiration_date"] if isinstance(row.get("expiration_date"), str) else None,
    )


def _texts(value: Any) -> set[str] | None:
    return {each for each in value if isinstance(each, str)} if isinstance(value, list) else None


def _first_count(row: Mapping[str, Any], *keys: str) -> int | None:
    found = (row.get(key) for key in keys)
    return next((each for each in found if isinstance(each, int) and not isinstance(each, bool) and each > 0), None)
