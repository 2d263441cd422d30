"""A server's list of models, as OpenRouter writes it, for a `small_server`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.running import Received, Reply

DAY_S = 86400
TODAY_S = 1_790_000_000


def listed(
    name: str,
    price: tuple[float, float] | None = (1.0, 2.0),
    *,
    days_old: int = 10,
    context: int = 128_000,
    able: Sequence[str] = ("max_tokens", "tools"),
    output: Sequence[str] = ("text",),
    **more: Any,
) -> dict[str, Any]:
    """A row. price: USD per million tokens in and out, as the list has it per token, in a text."""
    row: dict[str, Any] = {
        "id": name,
        "created": TODAY_S - days_old * DAY_S,
        "context_length": context,
        "supported_parameters": list(able),
        "architecture": {"output_modalities": list(output)},
        **more,
    }
    if price is not None:
        row["pricing"] = {"prompt": f"{price[0] / 1e6:.12f}", "completion": f"{price[1] / 1e6:.12f}"}
    return row


CATALOGUE = [
    listed("acme/large", (3, 15), able=("tools", "reasoning", "logprobs")),
    listed("acme/old", (30, 60), days_old=800),
    listed("acme/small", (0.1, 0.4), days_old=30, context=1_000_000),
    listed("open/big", (0.5, 1.5), able=("tools", "reasoning"), days_old=5),
    listed("open/mini", (0.02, 0.04), able=("max_tokens",), days_old=40),
    listed("open/mini:free", (0, 0), able=("max_tokens",), days_old=40),
    listed("lone/one", (1, 1.5), able=(), days_old=100, context=8000),
    listed("lone/leaving", (0.01, 0.01), expiration_date="2026-12-31"),
    listed("draw/pictures", (0.001, 0.001), output=("image",)),
    listed("any/auto", None, pricing={"prompt": "-1", "completion": "-1"}),
]
MAY_TRAIN = ("open/big", "open/mini", "open/mini:free")


@dataclass
class PriceLists:
    """Answers of a `small_server`. pages: rows on each page; may_train: None where that list cannot be read."""

    rows: Sequence[Mapping[str, Any]] = field(default_factory=lambda: CATALOGUE)
    may_train: Sequence[str] | None = MAY_TRAIN
    status: int = 200
    body: bytes | None = None
    per_page: int = 0

    def __call__(self, request: Received) -> Reply:
        if self.status != 200 or self.body is not None:
            return Reply(self.status, self.body or b"{}", {"content-type": "text/html"})
        url = urlsplit(request.path)
        if request.method != "GET" or url.path != "/v1/models":
            return Reply(404, b'{"error": {"message": "Not Found"}}')
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        rows = list(self.rows)
        if asked.get("distillable") == "true":
            if self.may_train is None:
                return Reply(500, b"{}")
            rows = [row for row in rows if row["id"] in self.may_train]
        content: dict[str, Any] = {"data": rows}
        if self.per_page:
            begin = int(asked.get("offset", 0))
            end = begin + self.per_page
            same = "&distillable=true" if "distillable" in asked else ""
            content = {
                "data": rows[begin:end],
                "links": {"next": f"/v1/models?offset={end}{same}" if end < len(rows) else None},
            }
        return Reply(body=json.dumps(content).encode())
