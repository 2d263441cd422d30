"""What a model folder holds: whether its weights are whole, and hashes of all that its answers depend on."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from ..errors import UsageError

ADAPTER = "adapter_config.json"
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)
"""Files of a tokenizer, and of its chat templates."""
PLACES = {"_name_or_path", "name_or_path", "base_model_name_or_path"}
"""Keys of configurations that say where something lay when it was saved: nothing that an answer depends on."""
GGUF_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")
BLOCK = 16 * 2**20


def weight_files(folder: Path, stem: str = "model", old: str = "pytorch_model.bin") -> list[Path]:
    """The files that transformers loads the weights from: safetensors before pickles, one file before several.

    Raises UsageError when there are none, or not all.
    """
    for single in (f"{stem}.safetensors", old):
        if (folder / single).is_file():
            return [folder / single]
        index = folder / f"{single}.index.json"
        if not index.is_file():
            continue
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{index} cannot be read: it does not say which files hold the weights.") from None
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UsageError(
                f"{folder} lacks {len(missing)} of {len(names)} files of its weights ({missing[0]}). "
                "Was a download cut off?"
            )
        return [folder / name for name in names]
    raise UsageError(
        f"{folder} has a configuration, but no weights: neither {stem}.safetensors nor {old}. Name a folder that a "
        "whole model was saved to."
    )


def gguf_parts(file: Path) -> list[Path]:
    """All files of a GGUF model of which one is given: NAME-00001-of-00003.gguf, ...

    Raises UsageError when one is missing.
    """
    part = GGUF_PART.fullmatch(file.name)
    if part is None:
        return [file]
    files = [file.with_name(f"{part[1]}-{n:05}-of-{part[2]}.gguf") for n in range(1, int(part[2]) + 1)]
    if missing := [each.name for each in files if not each.is_file()]:
        raise UsageError(f"{file} is one of {len(files)} files of a model, and {missing[0]} is not beside it.")
    return files


def count_parameters(files: Iterable[Path]) -> int | None:
    """How many numbers the files of weights hold; None for pickles, which nobody should open to count.

    Raises UsageError for a safetensors file that is cut off or is none.
    """
    total = 0
    for file in files:
        if file.suffix != ".safetensors":
            return None
        total += sum(math.prod(entry["shape"]) for entry in _header(file).values())
    return total


def _header(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file: {name: {"dtype", "shape", "data_offsets"}}; the format is 8 bytes of length,
    so many bytes of JSON, then the data. Raises UsageError when the file is not whole."""
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = os.fstat(opened.fileno()).st_size
            if length > size:
                raise ValueError
            entries = orjson.loads(opened.read(length))
        entries.pop("__metadata__", None)
        wanted = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise UsageError(
            f"{file} is no safetensors file, or its beginning is damaged. Save or fetch it again."
        ) from None
    if size != wanted:
        raise UsageError(
            f"{file} is damaged: it has {size:,} bytes and should have {wanted:,}. Save or fetch it again."
        )
    return entries


# ---- hashes ------------------------------------------------------------------------------------------------------


def hash_of(value: Any) -> str:
    """32 hex digits of any JSON value; the order of keys does not matter."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def digest(path: Path) -> str:
    """Hash of a file's content, once in a process for a file that does not change."""
    about = path.stat()
    return _digest(path, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@cache
def _digest(path: Path, *about: int) -> str:
    """SHA-256 of the SHA-256 of each block: several cores share the blocks, and none holds more than one."""
    with open(path, "rb") as file:
        handle, size = file.fileno(), os.fstat(file.fileno()).st_size
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            blocks = pool.map(
                lambda start: hashlib.sha256(os.pread(handle, BLOCK, start)).digest(), range(0, size, BLOCK)
            )
            return hashlib.sha256(b"".join(blocks)).hexdigest()


def contents(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """{name: hash} of the files in a folder; of the places that a configuration names, nothing."""
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    hashes: dict[str, str] = {}
    for file in sorted(found):
        name = file.relative_to(folder).as_posix()
        settings = _settings(file) if name.endswith("config.json") else None
        if settings is not None and settings.keys() & PLACES:
            hashes[name] = hash_of({key: value for key, value in settings.items() if key not in PLACES})
        else:
            hashes[name] = digest(file)
    return hashes


def content_of(folder: Path, adapter: Path | None) -> dict[str, Any]:
    """All in a model folder that its answers depend on, as hashes, and the same of an adapter on top of it."""
    found = {
        "weights": {file.name: digest(file) for file in weight_files(folder)},
        "config": contents(folder, ["config.json"]),
        "tokenizer": contents(tokenizer_folder(folder, adapter), TOKENIZER),
        "generation": contents(generation_folder(folder, adapter), ["generation_config.json"]),
    }
    if adapter is not None:
        files = weight_files(adapter, "adapter_model", "adapter_model.bin")
        found["adapter"] = {file.name: digest(file) for file in files} | contents(adapter, [ADAPTER])
    return found


# ---- tokenizers --------------------------------------------------------------------------------------------------


def tokenizer_folder(folder: Path, adapter: Path | None) -> Path:
    """Where the tokenizer is: beside the adapter, where one was saved with it, as it was trained with that."""
    own = adapter is not None and any(
        (adapter / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    )
    return adapter if own and adapter is not None else folder


def generation_folder(folder: Path, adapter: Path | None) -> Path:
    """Where generation_config.json is, by the same rule."""
    return adapter if adapter is not None and (adapter / "generation_config.json").is_file() else folder


def vocabulary_hash(folder: Path) -> str | None:
    """Hash of a tokenizer's tokens and their ids; None where there is no tokenizer."""
    written = _settings(folder / "tokenizer.json")
    model = (written or {}).get("model")
    if written is not None and isinstance(model, dict) and "vocab" in model:
        added = [[token.get("id"), token.get("content")] for token in written.get("added_tokens") or []]
        return hash_of([model["vocab"], added])
    files = contents(folder, ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json"))
    return hash_of(files) if files else None


def template_hash(folder: Path) -> str | None:
    """Hash of a tokenizer's chat template; None where it has none."""
    template = None
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = template or (_settings(folder / name) or {}).get("chat_template")
    return hash_of(template) if template else None


def _settings(file: Path) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        found = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None
