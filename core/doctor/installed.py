"""Which Python runs, where this bundle is, and which optional packages are there."""

import platform
import re
import sys
from importlib import metadata
from pathlib import Path

from .. import __version__, bootstrap
from ..commands.doctor import EXTRAS, Found
from ..errors import install_line
from ..teachers.locate import PACKAGED

FIRST = ("torch", "transformers", "trl", "lm-eval", "datasets")
"""Packages whose versions say most, where there is no room for all."""


def python(root: Path) -> list[Found]:
    """The interpreter, and the environment that it belongs to."""
    place = Path(sys.prefix)
    if sys.prefix == sys.base_prefix:
        where = "no virtual environment"
    elif place == root / ".venv":
        where = "the bundle's .venv"
    elif place == Path(bootstrap.environment()):
        where = f"the environment that distill made, {short(place)}"
    else:
        where = f"the environment {short(place)}"
    return [
        Found(
            group="Here",
            name="python",
            found=f"{platform.python_version()} on {platform.system()} {platform.machine()}; {where}",
        )
    ]


def distill(root: Path) -> list[Found]:
    """The version of the bundle, and where it is."""
    if (root / ".git").exists():
        kind = "a checkout"
    elif (root / "pyproject.toml").is_file():
        kind = "a copy without git"
    else:
        kind = "the installed library"
    return [Found(group="Here", name="distill", found=f"{__version__}, {kind}: {short(root)}")]


def extras(root: Path) -> list[Found]:
    """The optional packages, and the line that installs what is missing."""
    found: list[Found] = []
    unmet = wrong_versions(root)
    for extra, (what_for, packages) in EXTRAS.items():
        versions: dict[str, str] = {}
        missing: list[str] = []
        for package in packages:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                missing.append(package)
        other = [unmet[package] for package in packages if package in unmet and package in versions]
        if missing:
            said = f"missing: {', '.join(missing)} (for {what_for})"
        elif other:
            there = ", ".join(f"{package} {versions[package]}" for package in packages if package in unmet)
            said = f"another version is needed: {', '.join(other)}, and there is {there}"
        else:
            named = [package for package in FIRST if package in versions] or list(versions)[:3]
            more = f" and {len(versions) - len(named)} more" if len(versions) > len(named) else ""
            said = ", ".join(f"{package} {versions[package]}" for package in named) + more
        fix = install_line(extra) if missing or other else None
        found.append(Found(group="Extras", name=extra, found=said, fix=fix))
    return [*found, smollm2()]


def wrong_versions(root: Path) -> dict[str, str]:
    """Package -> what is asked of it, for those that are not there or not as asked; pip sees to that for a wheel."""
    if not (root / "pyproject.toml").is_file():
        return {}
    return {re.split(r"[\[<>=!~; ]", each, maxsplit=1)[0]: each for each in bootstrap.missing(str(root), list(EXTRAS))}


def smollm2() -> Found:
    """The small model that comes as a package: a teacher and student without a network."""
    package, _, line = PACKAGED["smollm2"]
    try:
        said = f"{package.replace('_', '-')} {metadata.version(package)} (a small model, offline)"
    except metadata.PackageNotFoundError:
        return Found(group="Extras", name="smollm2", found="missing (a small teacher and student, offline)", fix=line)
    return Found(group="Extras", name="smollm2", found=said)


def short(path: Path) -> str:
    """A path with ~ for the home folder."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):  # elsewhere, or there is no home
        return str(path)
