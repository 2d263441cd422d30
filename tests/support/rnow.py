"""The real `rnow` models, from its wheel, to hold our reading of its formats against."""

import importlib.util
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import ModuleType

VERSION = "0.4.37"


def rnow_models(folder: Path) -> ModuleType:
    """Download the wheel into a folder and load its models.py, and nothing else of it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", f"rnow=={VERSION}", "-d", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(next(folder.glob("rnow-*.whl"))) as wheel:
        wheel.extract("rnow/models.py", folder)
    spec = importlib.util.spec_from_file_location("rnow_models_of_the_wheel", folder / "rnow" / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its annotations are strings, which pydantic looks up there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module
