"""Requests to one host: its key, its proxy, and what can go wrong on the way.

aiohttp, not httpx: at 500 requests in flight an httpx pool spends ten times the processor time of the requests
themselves (encode/httpcore #1035), and aiohttp halves what is left.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from ..data.environment import credential, redacted, require_credential
from ..errors import RequestRejected, TeacherError, TeacherUnavailable, TransientError, UsageError
from .protocol import Price
from .providers import PROVIDERS

LONGEST_RESPONSE_BYTES = 64 * 2**20
"""A server that sends more for one answer has lost its way; it shall not take our memory."""

Reply = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body, with the key blanked out of the body."""


class ApiClient:
    """One server. The key goes to the configured host only: redirects are refused, never followed.

    endpoint: its URL, up to and with /v1.   timeout_s: for one request.
    """

    def __init__(
        self,
        backend: str,
        *,
        base_url: str | None = None,
        api_key_env: str | None = None,
        timeout_s: float = 120,
        connections: int = 5,
    ) -> None:
        """Raises MissingKey when the provider needs a key and none is set, UsageError for an address that cannot be
        used."""
        provider = PROVIDERS[backend]
        self.endpoint = checked_url(base_url or provider.url, "--base-url")
        self.timeout_s = timeout_s
        self._proxy = environment_proxy(self.endpoint)
        key_name = api_key_env or provider.key
        if api_key_env or (provider.hosted and not base_url):
            self._key = require_credential(key_name, f"{urlsplit(self.endpoint).hostname} needs it")
        else:  # servers of one's own often have no key
            self._key = credential(key_name)
        place = "the environment" if os.environ.get(key_name) else f".env in {Path.cwd()}"
        self._key_hint = f"It came as {key_name} from {place}" if self._key else f"None was sent: set {key_name}"
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(30, timeout_s))
        self._connections = connections
        self._session_: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._session_ is None:  # a session belongs to the running loop
            headers = {"content-type": "application/json"}
            if self._key:
                headers["authorization"] = f"Bearer {self._key}"
            self._session_ = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections + 2, keepalive_timeout=60),
                timeout=self._timeout,
                headers=headers,
                proxy=self._proxy,
            )
        return self._session_

    @property
    def notes(self) -> list[str]:
        """What a user should know before the first request."""
        url = urlsplit(self.endpoint)
        loopback = url.hostname in ("localhost", "127.0.0.1", "::1")
        if self._key and url.scheme == "http" and not loopback:
            return [f"warning: the API key goes to {url.hostname} unencrypted (http)"]
        return []

    async def post(self, path: str, body: Any, *, root: bool = False) -> Reply:
        """What the server answers to a JSON body. root: `path` begins at the server's root, not at /v1.

        Raises RequestRejected for a body that cannot be sent and an answer that is too long, TransientError for a
        connection that broke, TeacherUnavailable for an address that is none.
        """
        try:
            data = orjson.dumps(body)
        except TypeError as error:  # half a surrogate pair in a tool's result, ...
            raise RequestRejected("invalid_request", f"the conversation cannot be sent as JSON: {error}") from None
        url = (self.endpoint.removesuffix("/v1") if root else self.endpoint) + path
        return await self._exchange("POST", url, data, self._timeout)

    async def fetch(self, path: str) -> Reply:
        """What the server answers at an endpoint that takes no body. Raises as `post` does."""
        timeout = aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=min(10, self.timeout_s))
        return await self._exchange("GET", self.endpoint + path, None, timeout)

    async def _exchange(self, method: str, url: str, data: bytes | None, timeout: aiohttp.ClientTimeout) -> Reply:
        try:
            async with self._session.request(
                method, url, data=data, timeout=timeout, allow_redirects=False
            ) as response:
                raw = await read_bounded(response)
                status, headers = response.status, response.headers
        except aiohttp.ConnectionTimeoutError:
            raise TransientError("connection", f"cannot connect to {self.endpoint} in time") from None
        except TimeoutError:
            raise TransientError("timeout", f"no answer within {self.timeout_s:g} s", billed=True) from None
        except aiohttp.ClientConnectorError as error:
            raise TransientError("connection", f"cannot connect to {self.endpoint}: {error.strerror}") from None
        except aiohttp.InvalidURL:
            raise TeacherUnavailable("not_an_api", f"{self.endpoint} is not a URL", usage=True) from None
        except (aiohttp.ClientError, OSError) as error:
            message = f"the connection broke: {type(error).__name__}"
            raise TransientError("connection", message, billed=True) from None
        if raw is None:
            message = f"the server sends more than {LONGEST_RESPONSE_BYTES >> 20} MiB for one answer"
            raise RequestRejected("too_large", message, billed=True)
        return status, headers, without_key(raw, self._key)

    def told(self, error: TeacherError) -> TeacherError:
        """The error without the key, which providers quote; where they refuse it, with the place that it came from."""
        hint = f". {self._key_hint}" if error.reason == "authentication" else ""
        error.args = (redacted(str(error), self._key) + hint,)
        return error

    async def get(self, path: str) -> Any:
        """The JSON at a free endpoint, or None: prices are a convenience, so that a failure is not an error."""
        try:
            timeout = aiohttp.ClientTimeout(total=min(15, self.timeout_s))
            async with self._session.get(self.endpoint + path, timeout=timeout, allow_redirects=False) as response:
                raw = await read_bounded(response) if response.status == 200 else None
                return None if raw is None else orjson.loads(raw)
        except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError):
            return None

    async def price(self, model: str) -> Price | None:
        """The model's price in the provider's list; None when there is no list, or it does not name the model."""
        found = await self.get("/models")
        rows = found.get("data") if isinstance(found, dict) else None
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and row.get("id") == model:
                return listed_price(row, f"{self.endpoint}/models")
        return None

    async def aclose(self) -> None:
        if self._session_ is not None:
            await self._session_.close()


def listed_price(row: Mapping[str, Any], source: str) -> Price | None:
    """The price in a row of a provider's list, USD per token; None where it names none, or one that depends."""
    pricing: Any = row.get("pricing")
    try:
        price = Price(float(pricing["prompt"]), float(pricing["completion"]), source)
    except (KeyError, TypeError, ValueError):
        return None
    known = all(0 <= each < float("inf") for each in (price.prompt, price.completion))
    return price if known else None  # -1: "depends" (a router)


async def read_bounded(response: aiohttp.ClientResponse) -> bytes | None:
    """The body, or None (and a closed connection) when it is longer than LONGEST_RESPONSE_BYTES, decompressed."""
    pieces: list[bytes] = []
    length = 0
    async for piece in response.content.iter_any():
        length += len(piece)
        if length > LONGEST_RESPONSE_BYTES:
            response.close()
            return None
        pieces.append(piece)
    return b"".join(pieces)


def checked_url(url: str, source: str) -> str:
    """The URL, when a request can be sent there. Raises UsageError, which names where it came from."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host.encode("idna")
        if not host or parts.port == 0:
            raise ValueError
    except ValueError:  # UnicodeError too, for "http://a..b"
        shown = re.sub(r"//[^/]*@", "//***@", url)
        raise UsageError(f"{source}: {shown} is not a URL such as http://127.0.0.1:8000/v1.") from None
    return url


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment (HTTPS_PROXY, NO_PROXY, ...) names for a URL; without a scheme it is http, as curl
    reads it. Raises UsageError for one that cannot be used.

    Found once and here, since aiohttp's trust_env looks it up for every request, in two threads, which costs as much
    as the request; and it would send a password of ~/.netrc to a server that has no key.
    """
    host = urlsplit(url)
    proxy = None if proxy_bypass(host.hostname or "") else getproxies().get(host.scheme)
    if proxy is None:
        return None
    source = f"the proxy of the environment ({host.scheme.upper()}_PROXY)"
    scheme, separator, _ = proxy.partition("://")
    if not separator:
        proxy = f"http://{proxy}"
    elif scheme not in ("http", "https"):
        raise UsageError(f"{source} is of the kind {scheme}; only http and https are supported.")
    return checked_url(proxy, source)


def without_key(raw: bytes, key: str | None) -> bytes:
    """What arrived, with the API key blanked out wherever a server echoes it: it has no place in training data.

    A short placeholder such as "ollama" is no secret, and may be a word of an answer.
    """
    return raw.replace(key.encode(), b"***") if key and len(key) >= 16 else raw
