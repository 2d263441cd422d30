"""A tokenizer without its model's weights: from a folder, a tokenizer.json, a GGUF file, a package, the Hub."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..distillation.chat import ChatSide
from ..distillation.token_bytes import TokenBytes
from ..errors import MissingDependency, ModelNotFound, UsageError
from .locate import PACKAGED, LocalModel, locate, whole_ggufs

NAMES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
HUB_FILES = [
    "tokenizer*",
    "*.jinja",
    "config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
]


@dataclass(frozen=True)
class Loaded:
    """A tokenizer ready for counting.

    written: (token as its vocabulary writes it -> id), without padding rows.   notes: what is used in the place of what
    is missing.   real: (V,) ids that stand for something: no padding rows of the embeddings.
    """

    name: str
    table: TokenBytes
    written: dict[str, int]
    real: NDArray[np.bool_]
    byte_level: bool
    end_of_turn: int | None
    chat_template: bool
    notes: list[str]


def load(name: str, note: Callable[[str], None] = lambda text: None) -> Loaded:
    """Find and read a tokenizer. Raises ModelNotFound, and UsageError as `TokenBytes` does."""
    path = find(name, note)
    tokenizer = read(path, name)
    tokenizer.name_or_path = name  # messages name what was asked for, not a folder of the cache
    notes: list[str] = []
    end: int | None = None
    try:
        side = ChatSide(tokenizer)
        table, end = side.token_bytes, side.end_of_turn
        if side.note:
            notes.append(side.note + ".")
    except UsageError as error:
        table = TokenBytes(tokenizer)  # raises again where the tokenizer itself is the reason
        notes.append(str(error))
    if not table.known.any():
        raise UsageError(f"the tokenizer of {name} has no tokens.")
    # llama.cpp names rows of the embeddings that have no token after their id.
    written = {text: place for text, place in tokenizer.get_vocab().items() if text != f"[PAD{place}]"}
    real = table.known.copy()
    real[[place for place in np.flatnonzero(table.added) if table.pieces[place] == b"[PAD%d]" % place]] = False
    byte_level = bool(re.search(r'"type":\s*"ByteLevel"', _decoder(tokenizer)))
    return Loaded(name, table, written, real, byte_level, end, bool(tokenizer.chat_template), notes)


def find(name: str, note: Callable[[str], None] = lambda text: None) -> Path:
    """A folder or a tokenizer.json. Raises ModelNotFound with what was tried, UsageError for an unreadable GGUF."""
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".json":
        beside = path.name == "tokenizer.json" and (path.parent / "tokenizer_config.json").is_file()
        return path.parent if beside else path
    if path.is_dir():
        if any((path / file).is_file() for file in NAMES):
            return path
        if not whole_ggufs(path.glob("*.gguf")):
            raise ModelNotFound(f"the folder {path} holds no tokenizer: none of {', '.join(NAMES)}, and no .gguf file.")
    elif not path.is_file() and name not in PACKAGED and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _on_the_hub(name)
    return _of_gguf(locate(name, gguf=False), note)


def _of_gguf(model: LocalModel, note: Callable[[str], None]) -> Path:
    from .hf_model import tokenizer_folder  # it imports torch

    try:
        return tokenizer_folder(model, note)
    except Exception as error:  # transformers raises whatever it meets
        raise UsageError(
            f"the tokenizer in {model.path} cannot be read: {_first_line(error)}. "
            "Name the model's folder or its tokenizer.json instead."
        ) from None


def _on_the_hub(name: str) -> Path:
    """The tokenizer's files, from the cache or the Hub: never the weights."""
    try:
        import huggingface_hub as hub
    except ModuleNotFoundError:
        raise MissingDependency("huggingface_hub", f"the tokenizer of {name}", "hub") from None
    tried = [f"the path {Path(name)} (there is nothing)"]
    for where, offline in (("the Hub's cache", True), ("the Hub", False)):
        try:
            folder = Path(hub.snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=offline))
        except Exception as error:  # the Hub's, the transport's, or a name that is none
            tried.append(f"{where} ({'not there' if offline else _first_line(error)})")
            continue
        if any((folder / file).is_file() for file in NAMES):
            return folder
        tried.append(f"{where} (no tokenizer in it)")
    raise ModelNotFound(f"no tokenizer {name}. Tried: {'; '.join(tried)}. Packaged models: {', '.join(PACKAGED)}.")


def read(path: Path, name: str) -> Any:
    """The tokenizer at a path that `find` gave. Raises UsageError when transformers cannot load it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if path.is_dir():
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        said = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict) or "model" not in said:
            raise UsageError(f"{path} is not a tokenizer.json: it has no model.")
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    except UsageError:
        raise
    except Exception as error:  # transformers raises whatever it meets
        raise UsageError(f"the tokenizer of {name} cannot be loaded: {_first_line(error)}") from None


def _decoder(tokenizer: Any) -> str:
    decoder = tokenizer.backend_tokenizer.decoder
    return "" if decoder is None else decoder.__getstate__().decode()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
