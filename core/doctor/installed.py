"""Which Python runs, where this bundle is, and which optional packages are there."""

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from .. import __version__, bootstrap, installer
from ..commands.doctor import EXTRAS, Found
from ..errors import in_bundle, install_line
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
    elif is_of_ours(place):
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


def is_of_ours(place: Path) -> bool:
    """Whether an environment is the one that distill makes."""
    try:
        return place == Path(bootstrap.environment())
    except bootstrap.Unable:  # there is no home
        return False


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
    for extra, (what_for, packages) in EXTRAS.items():
        unmet = wrong_versions(root, extra)
        versions = {package: version for package in packages if (version := version_of(package))}
        missing = [package for package in packages if package not in versions]
        other = {each: unmet[name] for each in versions if (name := bootstrap.package_name(each)) in unmet}
        if missing:
            said = f"missing: {', '.join(missing)} (for {what_for})"
        elif other:
            there = ", ".join(f"{package} {versions[package]}" for package in other)
            said = f"another version is needed: {', '.join(other.values())}, and there is {there}"
        else:
            named = [package for package in FIRST if package in versions] or list(versions)[:3]
            more = f" and {len(versions) - len(named)} more" if len(versions) > len(named) else ""
            said = ", ".join(f"{package} {versions[package]}" for package in named) + more
        fix = install_line(extra) if missing or other else None
        found.append(Found(group="Extras", name=extra, found=said, fix=fix))
    can_train = any(each.name == "train" and each.fix is None for each in found)
    return [*found, smollm2(), *(converter() if can_train else [])]


def apart() -> str:
    """The folder that data-designer may have for itself, for it needs other versions than we."""
    return os.path.join(sys.prefix, "share", "data-designer")


def version_of(package: str) -> str | None:
    """None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        own = [apart()] if package == "data-designer" else []
        return next((each.version for each in metadata.distributions(name=package, path=own)), None)


def wrong_versions(root: Path, extra: str) -> dict[str, str]:
    """Package -> what is asked of it, for those that are not there or not as asked; pip sees to that for a wheel."""
    if not (root / "pyproject.toml").is_file():
        return {}
    folders = [*sys.path, apart()] if extra == "nemo" else sys.path
    return {bootstrap.package_name(each): each for each in bootstrap.missing(str(root), [extra], folders)}


def smollm2() -> Found:
    """The small model that comes as a package: a teacher and student without a network."""
    package, _, line = PACKAGED["smollm2"]
    try:
        said = f"{package.replace('_', '-')} {metadata.version(package)} (a small model, offline)"
    except metadata.PackageNotFoundError:
        return Found(group="Extras", name="smollm2", found="missing (a small teacher and student, offline)", fix=line)
    return Found(group="Extras", name="smollm2", found=said)


def converter() -> list[Found]:
    """llama.cpp's converter, where it is missing: in a bundle it comes with the packages for training."""
    names = ("convert_hf_to_gguf.py", "convert-hf-to-gguf", "convert_hf_to_gguf")
    if not in_bundle() or installer.has_apart("train", Path(sys.prefix)) or any(map(shutil.which, names)):
        return []
    said = "missing: llama.cpp's converter (for --export gguf)"
    return [Found(group="Extras", name="converter", found=said, fix=install_line("train"))]


def short(path: Path) -> str:
    """A path with ~ for the home folder."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):  # elsewhere, or there is no home
        return str(path)
