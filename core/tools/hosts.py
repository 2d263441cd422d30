"""Which hosts the embedded browser may talk to."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from ..errors import UsageError

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_PRIVATE_NAMES = ("localhost", "internal", "local", "localdomain", "lan", "home.arpa", "intranet", "corp", "home")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class _Pattern:
    """host: without the "*." of a wildcard; "*" for every public host.   port: None is any."""

    text: str
    host: str
    wildcard: bool
    ports: frozenset[int] | None

    def covers(self, host: str, port: int) -> bool:
        if self.ports is not None and port not in self.ports:
            return False
        if self.host == "*":
            return True
        return host.endswith(f".{self.host}") if self.wildcard else host == self.host


class HostRules:
    """Decides by name and by address.

    allow: patterns: `example.org` (ports 80 and 443), `*.example.org` (every name below it), `localhost:8080`,
    `127.0.0.1:*` (any port), `[::1]:8080`, `*` (every public host). Without patterns every public host on any port
    is allowed. Private, loopback and link-local addresses are refused, also behind a public name, unless an exact
    pattern (no wildcard) names the host. Raises UsageError for a pattern that cannot be meant.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self._patterns = [_pattern(text) for text in allow]

    def refuse_url(self, url: str) -> str | None:
        """Why a page may not be opened, or None. Looks at the scheme and the name only; see `refuse_address`."""
        if url == "about:blank":
            return None
        try:
            parts = urlsplit(url)
            host, port = place(parts)
        except ValueError:
            return f"{shown(url)} is not a URL that can be opened."
        if parts.scheme not in ("http", "https"):
            what = f"a {parts.scheme}: URL" if parts.scheme else "a URL without a scheme"
            return f"{what} is not allowed: only http: and https: pages can be opened."
        return self.refuse_host(host, port)

    def refuse_host(self, host: str, port: int) -> str | None:
        """Why no connection to this name may be made, or None."""
        host = normal_host(host)
        if self._exactly(host, port):
            return None
        if self._patterns and not any(pattern.covers(host, port) for pattern in self._patterns):
            listed = ", ".join(pattern.text for pattern in self._patterns)
            return f"{host}:{port} is not among the allowed hosts ({listed}). {_hint(host, port)}"
        address = as_address(host)
        private_name = any(host == name or host.endswith(f".{name}") for name in _PRIVATE_NAMES)
        if private_name or (address is not None and not is_public(address)):
            return f"{host}:{port} is in a private network or on this machine. {_hint(host, port)}"
        return None

    def refuse_address(self, host: str, port: int, address: Address) -> str | None:
        """Why `host`, which `refuse_host` let pass, may not be reached at the address that its name stands for."""
        host = normal_host(host)
        if is_public(address) or self._exactly(host, port):
            return None
        return f"{host} stands for {address}, in a private network or on this machine. {_hint(host, port)}"

    def _exactly(self, host: str, port: int) -> bool:
        exact = (pattern for pattern in self._patterns if not pattern.wildcard and pattern.host != "*")
        return any(pattern.covers(host, port) for pattern in exact)


def place(parts: SplitResult) -> tuple[str, int]:
    """The normal host and the port of a URL ("", 0 where the scheme knows none). Raises ValueError for a bad one."""
    if parts.scheme not in _DEFAULT_PORTS:
        return "", 0
    if not parts.hostname:
        raise ValueError("no host")
    return normal_host(parts.hostname), parts.port or _DEFAULT_PORTS[parts.scheme]


def normal_host(host: str) -> str:
    """Lower case, ASCII, without brackets or a final dot."""
    host = host.strip("[]").rstrip(".").lower()
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            pass  # matches no pattern and resolves to nothing
    address = as_address(host)
    return host if address is None else str(address)


def as_address(host: str) -> Address | None:
    """The address that is written as such, or None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether an address is reachable by everybody: not private, loopback, link-local, shared, reserved or multicast.

    An IPv6 address that carries an IPv4 address (mapped, 6to4, Teredo, NAT64) is as public as that one.
    """
    if isinstance(address, ipaddress.IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in _NAT64:
            carried = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if carried:
            return is_public(carried)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast


def shown(text: str, limit: int = 200) -> str:
    """A URL for a message: one line, not endless."""
    line = "".join(sign if sign.isprintable() else "?" for sign in text)
    return line if len(line) <= limit else f"{line[:limit]}..."


def _hint(host: str, port: int) -> str:
    return f"Whoever runs this can allow it with --allow-hosts {f'[{host}]' if ':' in host else host}:{port}"


def _pattern(text: str) -> _Pattern:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:/\[\]@\s]+)(?::(\d{1,5}|\*))?", text.strip())
    if match is None:
        raise UsageError(
            f"--allow-hosts {shown(text)}: not a host. Write a name or an address, with a port where it is not the "
            "usual one, and no scheme or path: example.org, *.example.org, localhost:8080, 127.0.0.1:*"
        )
    host, port = match[1], match[2]
    wildcard = host.startswith("*.")
    name = normal_host(host.removeprefix("*.")) if host != "*" else host
    if name != "*" and as_address(name) is None and not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise UsageError(f"--allow-hosts {shown(text)}: a * can only stand alone or before a dot at the start.")
    if port is not None and port != "*" and not 0 < int(port) < 65536:
        raise UsageError(f"--allow-hosts {shown(text)}: {port} is not a port (1 to 65535).")
    anything = port == "*" or (port is None and name == "*")
    ports = None if anything else frozenset({80, 443} if port is None else {int(port)})
    return _Pattern(text.strip(), name, wildcard, ports)
