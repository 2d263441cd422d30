#!/usr/bin/env python3
"""Finds the bundle that this skill belongs to and runs its script of the same name. Options: --help.

The bundle is $DISTILL_HOME, the assistant's plugin folder, or the checkout around this file.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve()
PLACES = ("DISTILL_HOME", "CLAUDE_PLUGIN_ROOT", "PLUGIN_ROOT", "COPILOT_PLUGIN_ROOT")
NEEDED = ("aiohttp", "cyclopts", "dotenv", "orjson", "pydantic", "tqdm", "yaml")


def bundle() -> Path | None:
    """The first folder that holds both the script and the library: another plugin's root is no match."""
    named = [Path(os.environ[place]) for place in PLACES if os.environ.get(place)]
    for root in [*named, *HERE.parents[2:6]]:
        script = root / "scripts" / HERE.name
        if script.is_file() and (root / "core" / "__init__.py").is_file() and script.resolve() != HERE:
            return root.resolve()
    return None


def ready() -> bool:
    """Whether this Python can run the script itself."""
    return sys.version_info >= (3, 11) and all(find_spec(package) for package in NEEDED)


root = bundle()
if root is None:
    print(
        "bundle not found: install the whole repository as a plugin, or set DISTILL_HOME to a checkout", file=sys.stderr
    )
    sys.exit(2)
script = str(root / "scripts" / HERE.name)
python = root / ".venv" / "bin" / "python"
if not ready() and python.is_file():
    os.execv(python, [str(python), script, *sys.argv[1:]])
sys.argv[0] = script
sys.path[0] = str(root / "scripts")
runpy.run_path(script, run_name="__main__")
