"""What a row's `docker` names: `local/NAME`, a Dockerfile of the project, or an image of a registry."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError

BUNDLE = Path(__file__).resolve().parents[2]
SHIPPED = frozenset({"playwright"})
"""Names whose Dockerfile comes with the bundle."""

_LOCAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# Nothing that could be an option of `docker`, and nothing with spaces.
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*")


@dataclass(frozen=True)
class Source:
    """A Dockerfile.   tag: local/NAME:HASH, the hash of its bytes, so that an unchanged file is built once.
    shipped: whether it is the bundle's."""

    path: Path
    text: str
    tag: str
    shipped: bool


@dataclass(frozen=True)
class Image:
    """An image that the engine has.

    start_script: whether it is run as `/start.sh sleep infinity`, its ENTRYPOINT and CMD ignored, as rnow does.
    read_only: whether it says (label distill.read-only=true) that it writes to /tmp alone.
    """

    ref: str
    tag: str
    ports: tuple[int, ...]
    start_script: bool
    read_only: bool

    def port(self) -> int:
        """The port to publish where the configuration names none. Raises UsageError."""
        if not self.ports:
            raise UsageError(
                f"{self.ref}: the image exposes no port, so there is nothing to connect to. "
                "Add EXPOSE to its Dockerfile, or name the port: --mcp-url localhost:8931"
            )
        return self.ports[0]


def local_source(ref: str, project: Path) -> Source | None:
    """The Dockerfile of a `local/NAME`; None for an image of a registry. Raises UsageError."""
    if not ref.startswith("local/"):
        if not _REFERENCE.fullmatch(ref):
            raise UsageError(
                f"docker: {ref!r} is not an image. Write local/NAME for Dockerfile.NAME, or an image's name"
            )
        return None
    name = ref.removeprefix("local/")
    if not _LOCAL_NAME.fullmatch(name):
        raise UsageError(f"docker: {ref!r}: the name after local/ is letters, digits, '_', '.' and '-'")
    own = project / f"Dockerfile.{name}"
    shipped = not own.is_file() and name in SHIPPED and (BUNDLE / own.name).is_file()
    path = BUNDLE / own.name if shipped else own
    try:
        data = path.read_bytes()
        text = data.decode()
    except FileNotFoundError:
        raise InputError(
            path, None, f'not found; "docker": "{ref}" is built from it. Write it, or use --browser'
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, None, f"cannot be read: {error}") from None
    return Source(path, text, f"local/{name.lower()}:{hashlib.sha256(data).hexdigest()[:12]}", shipped)


def image_of(ref: str, tag: str, source: Source | None, config: dict[str, Any]) -> Image:
    """config: `Config` of `docker image inspect`."""
    text = _instructions(source.text) if source else ""
    declared = [int(name.partition("/")[0]) for name in config.get("ExposedPorts") or {} if _is_tcp(name)]
    ports = exposed_ports(text) or tuple(sorted(declared))
    labels = config.get("Labels") or {}
    return Image(ref, tag, ports, "/start.sh" in text, labels.get("distill.read-only") == "true")


def exposed_ports(dockerfile: str) -> tuple[int, ...]:
    """The TCP ports that a Dockerfile exposes, in its order. Ranges and variables are left out."""
    words = [word for line in re.findall(r"(?im)^\s*expose\s+(.+)$", dockerfile) for word in line.split()]
    return tuple(int(word.partition("/")[0]) for word in words if _is_tcp(word))


def _is_tcp(port: str) -> bool:
    number, _, protocol = port.lower().partition("/")
    return number.isascii() and number.isdigit() and protocol in ("", "tcp")


def _instructions(dockerfile: str) -> str:
    """Without comments."""
    return "\n".join(line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
