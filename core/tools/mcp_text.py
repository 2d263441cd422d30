"""What MCP tools say, as text; and the names and addresses that people write for servers."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import mcp_types as types

from ..errors import UsageError
from .plain import plain


def text_of(result: types.CallToolResult) -> str:
    """A result as text: what is no text becomes a short marker."""
    parts = [_block_text(block) for block in result.content]
    if not any(isinstance(block, types.TextContent) for block in result.content):
        structured = result.structured_content
        if structured is not None:
            parts.append(json.dumps(structured, ensure_ascii=False))
    return "\n".join(part for part in parts if part)


def _block_text(block: types.ContentBlock) -> str:
    match block:
        case types.TextContent():
            return block.text
        case types.ImageContent():
            return f"[image {block.mime_type}, {_decoded_bytes(block.data)} bytes]"
        case types.AudioContent():
            return f"[audio {block.mime_type}, {_decoded_bytes(block.data)} bytes]"
        case types.ResourceLink():
            return f"[{block.name}: {block.uri}]"
        case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
            return resource.text
        case types.EmbeddedResource(resource=types.BlobResourceContents() as resource):
            kind = resource.mime_type or "application/octet-stream"
            return f"[resource {resource.uri} {kind}, {_decoded_bytes(resource.blob)} bytes]"
    return f"[{type(block).__name__}]"


def _decoded_bytes(base64_text: str) -> int:
    return len(base64_text) * 3 // 4 - base64_text[-2:].count("=")


def toolset_name(text: str) -> str:
    """A name of [a-z0-9_-]+ made from any text."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-")[:32] or "mcp"


def program_name(argv: Sequence[str]) -> str:
    """The word that tells servers apart: `npx -y @playwright/mcp@latest` -> playwright-mcp, `python srv.py` -> srv."""
    words = [word for word in argv[1:] if not word.startswith("-")]
    runner = re.fullmatch(r"(npx|bunx|uvx|pipx|node|python[\d.]*|uv)", Path(argv[0]).stem)
    word = words[0] if runner and words else argv[0]
    return re.sub(r"(?<=.)@.*", "", word) if word.startswith("@") else Path(word).stem


def full_url(url: str) -> str:
    """`localhost:8931` -> http://localhost:8931/mcp; a URL with a path stays as it is. Raises UsageError, which shows
    no password and no query."""
    text = url.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{without_secrets(url)!r} is no URL: {without_secrets(str(error))}.") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(
            f"{without_secrets(url)!r} is no URL of an MCP server. Write it like localhost:8931 or https://host/mcp."
        )
    return urlunsplit(parts._replace(path="/mcp")) if parts.path in {"", "/"} else text


def without_secrets(url: str) -> str:
    """An address, or what was meant as one, without what stands before an @ and behind a ?."""
    return re.sub(r"[?#].*", "?***", re.sub(r"(^|//)[^/]*@", r"\1***@", url), flags=re.DOTALL)


def words_of(error: BaseException) -> str:
    return first_line(error) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Without the lines that a validation error goes on with, and fit for a terminal."""
    return plain(str(error).partition("\n")[0][:300]).rstrip(".: ")
