"""Finds the Python that can run a script of this bundle, and hands over to it.

Launchers load this file by its path, with whatever `python3` is. So it takes Python 3.8 and the standard library, and
imports nothing of the bundle. The first that fits, in this order:

    DISTILL_PYTHON               its packages are looked at; one that lacks some is an error
    the running Python           where it is a virtual environment and has the packages
    .venv in the bundle          what `make .venv` makes
    env in the user's data       made by installer.py, where it is there and in step with this bundle
    the running Python           of the system, where it has the packages
    env in the user's data       made now, unless DISTILL_SETUP=off

Nothing is written into the bundle: it may be an assistant's copy, which goes with the next version.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

LEAST = (3, 11)
NAMES = ("python3.13", "python3.12", "python3.11", "python3.14", "python3", "python")
"""Pythons to look for where the running one will not do."""
MODULES = {
    "": ("aiohttp", "cyclopts", "dotenv", "orjson", "psutil", "pydantic", "tqdm", "yaml"),
    "mcp": ("mcp",),
}
"""Extra ("" for what every command needs) -> modules that it brings."""
STAMP = "distill.json"
POLL_S = 0.1
PATIENCE_S = 10
"""How long an interrupted installation may take to clean up."""
INSTALLER = "import sys; sys.path.insert(0, sys.argv[1]); from core.installer import main; main(sys.argv[1:])"


class Unable(ValueError):
    """No Python can be had. The message is one or two lines: why, and what to do."""


# ---- doors -----------------------------------------------------------------------------------------------------------


def start(root: str, script: str, argv: Sequence[str]) -> NoReturn:
    """Run scripts/<script> of the bundle, as this process. What goes wrong before that is one line, exit code 2."""
    os.environ["DISTILL_LAUNCHER"] = sys.argv[0]  # messages name its folder
    path = os.path.join(root, "scripts", script)
    python = chosen_or_exit(root, (), argv, os.path.splitext(script)[0])
    leave_no_traces(root)
    if python != sys.executable:
        execute(python, [path, *argv])
    sys.argv[:] = [path, *argv]
    sys.path[0] = os.path.dirname(path)
    runpy.run_path(path, run_name="__main__")
    sys.exit(0)


def serve(root: str, argv: Sequence[str]) -> None:
    """Return where this Python can run the MCP server, else go on as another one that can."""
    extras = () if {"--help", "-h"} & set(argv) else ("mcp",)
    decided = os.environ.pop("DISTILL_CHOSEN", None) is not None  # what was chosen may start another: a shim does
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a client that is out of patience; the making goes on
    python = sys.executable if decided else chosen_or_exit(root, extras, argv, "mcp_server")
    signal.signal(signal.SIGINT, before)
    leave_no_traces(root)
    if python != sys.executable:
        os.environ["DISTILL_CHOSEN"] = python
        execute(python, [os.path.join(root, "mcp_server", "__main__.py"), *argv])


def hand_over(root: str, argv: Sequence[str]) -> None:
    """Go on as the Python of .venv, or of the user's data folder, where one is ready; else return.

    argv: the running script and its arguments.
    """
    own = own_python(root)
    ready = own if has_modules(own) else python_of(environment()) if is_fresh(root) else None
    if ready is not None and os.path.dirname(os.path.dirname(ready)) != os.path.abspath(sys.prefix):
        execute(ready, argv)


def chosen_or_exit(root: str, extras: Sequence[str], argv: Sequence[str], name: str) -> str:
    """The path of the Python that runs it; leaves the process where there is none."""
    try:
        return choose(root, extras)
    except Unable as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        if "--json" in argv:
            print(json.dumps({"status": "error", "error": str(error)}), flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the next start mends what is half done", file=sys.stderr)
        sys.exit(130)


def execute(python: str, arguments: Sequence[str]) -> NoReturn:
    """This process goes on as another Python: same stdin, same signals, and its exit code is ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(python, [python, *arguments])


def leave_no_traces(root: str) -> None:
    """Without a .venv the bundle is somebody's copy: no __pycache__ in it, by this process or those it starts."""
    if not os.path.isdir(os.path.join(root, ".venv")):
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


# ---- the choice ------------------------------------------------------------------------------------------------------


def choose(root: str, extras: Sequence[str] = ()) -> str:
    """The path of a Python that has the packages of every command, and of the extras. Raises Unable."""
    named = os.environ.get("DISTILL_PYTHON")
    if named:
        return named_python(root, named, extras)
    here = sys.version_info >= LEAST and not missing(root, extras)
    if here and is_isolated():
        return sys.executable
    own = own_python(root)
    if has_modules(own, extras):
        return own
    if is_fresh(root):
        return python_of(environment())
    if here:
        return sys.executable
    make(root)
    return python_of(environment())


def named_python(root: str, named: str, extras: Sequence[str]) -> str:
    """What DISTILL_PYTHON names. Raises Unable where it is none, is too old, or lacks packages."""
    python = absolute(named)
    if python is None:
        raise Unable(f"DISTILL_PYTHON={named} is no program. Name a Python 3.11 or newer, or unset it.")
    asked = [python, "-B", __file__, "missing", root, *extras]
    try:
        told = subprocess.run(
            asked, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True
        ).stdout
        version, lacks = json.loads(told.decode())
    except (OSError, ValueError, subprocess.SubprocessError):
        raise Unable(f"DISTILL_PYTHON={named} does not run as a Python. Name another, or unset it.") from None
    if tuple(version) < LEAST:
        raise Unable(f"DISTILL_PYTHON={named} is Python {version[0]}.{version[1]}, and 3.11 or newer is needed.")
    if lacks:
        line = [python, "-m", "pip", "install", "-c", os.path.join(root, "constraints.txt"), *lacks]
        raise Unable(f"DISTILL_PYTHON={named} lacks packages. Run: {words(line)}\nor unset it.")
    return python


def absolute(name: str) -> str | None:
    """A program by its path or its name on the PATH; None where there is none. Links are not followed: a virtual
    environment's Python is one."""
    found = shutil.which(os.path.expanduser(name))
    return os.path.abspath(found) if found else None


def is_isolated() -> bool:
    """Whether the running Python is a virtual environment, which its user made to install things into."""
    of_conda = os.path.isdir(os.path.join(sys.prefix, "conda-meta")) and "envs" in sys.prefix.split(os.sep)
    return sys.prefix != sys.base_prefix or of_conda


def own_python(root: str) -> str:
    return python_of(os.path.join(os.path.abspath(root), ".venv"))


def python_of(folder: str) -> str:
    return os.path.join(folder, "bin", "python")


def has_modules(python: str, extras: Sequence[str] = ()) -> bool:
    """Whether a virtual environment's Python is there with what every command needs, and the extras."""
    if not os.access(python, os.X_OK):
        return False
    modules = [module for extra in ("", *extras) for module in MODULES[extra]]
    folder = os.path.join(glob.escape(os.path.dirname(os.path.dirname(python))), "lib*", "python3*", "site-packages")
    if any(all(os.path.isdir(os.path.join(one, module)) for module in modules) for one in glob.glob(folder)):
        return True
    code = f"import importlib.util as u; assert all(map(u.find_spec, {modules!r}))"  # packages of elsewhere
    line, nothing = [python, "-I", "-c", code], subprocess.DEVNULL  # -I: the current folder is somebody's project
    try:
        return subprocess.run(line, stdin=nothing, stdout=nothing, stderr=nothing, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


# ---- what is needed --------------------------------------------------------------------------------------------------


def declared(root: str) -> dict[str, list[str]]:
    """Extra ("" for what every command needs) -> requirements, from pyproject.toml. No tomllib: see above.

    Raises Unable.
    """
    try:
        with open(os.path.join(root, "pyproject.toml"), encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise Unable(f"the bundle in {root} is not whole: {error}. Install it anew.") from None
    text = re.sub(r"[ \t]*#.*", "", text)
    _, _, optional = text.partition("\n[project.optional-dependencies]\n")
    lists = re.findall(r"^(dependencies) = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE)[:1]
    lists += re.findall(r"^(\w+) = \[(.*?)\]$", optional.partition("\n[")[0], re.DOTALL | re.MULTILINE)
    return {name if name != "dependencies" else "": re.findall(r'"([^"]+)"', inside) for name, inside in lists}


def missing(root: str, extras: Sequence[str] = (), path: Sequence[str] | None = None) -> list[str]:
    """The requirements of every command, and of the extras, that are not met: a package is not there, or another
    version.

    path: the folders to look in; by default where the running Python does. Raises Unable.
    """
    from importlib.metadata import distributions

    lists = declared(root)
    folders = sys.path if path is None else list(path)
    lacking = []
    for requirement in dict.fromkeys(each for extra in ("", *extras) for each in lists[extra]):
        found = next(iter(distributions(name=package_name(requirement), path=folders)), None)
        if found is None or not is_within(found.version, requirement):
            lacking.append(requirement)
    return lacking


def package_name(requirement: str) -> str:
    """The normalised name at the beginning of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def is_within(version: str, requirement: str) -> bool:
    """Whether a version keeps the bounds of a requirement: >=, < and == with plain numbers, as ours are."""
    at = numbers(version)
    for sign, bound in re.findall(r"(>=|<|==)\s*([\d.]+)", requirement):
        limit = numbers(bound)
        if (sign == ">=" and at < limit) or (sign == "<" and at >= limit) or (sign == "==" and at != limit):
            return False
    return True


def numbers(version: str) -> list[int]:
    """2.13.0+cpu -> [2, 13]: without zeros at the end, so that 5 is not less than 5.0."""
    found = [int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0])]
    while found and found[-1] == 0:
        found.pop()
    return found


# ---- the environment in the user's data ------------------------------------------------------------------------------


def data_folder() -> str:
    """Where distill keeps what belongs to this user: DISTILL_DATA, else distill in XDG_DATA_HOME. Raises Unable."""
    named = os.environ.get("DISTILL_DATA")
    if named:
        return os.path.abspath(os.path.expanduser(named))
    shared, home = os.environ.get("XDG_DATA_HOME", ""), os.path.expanduser("~")
    if os.path.isabs(shared):
        return os.path.join(shared, "distill")
    if home in ("/", "~"):  # HOME is empty, or unset and the list of users has none
        raise Unable("there is no home folder (HOME) to keep the packages in. Name a folder: DISTILL_DATA=/some/folder")
    return os.path.join(home, ".local", "share", "distill")


def environment() -> str:
    """The folder of the environment. Raises Unable."""
    return os.path.join(data_folder(), "env")


def stamp() -> dict[str, Any]:
    """What the environment says of itself; {} where there is none. Raises Unable.

    state: "ready" or "making".   bundles: digest -> requirements, of the bundles that it suits.   extras: what was
    installed on request.   python: the program behind it.
    """
    try:
        with open(os.path.join(environment(), STAMP), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_fresh(root: str) -> bool:
    """Whether the environment is there, whole, and in step with what this bundle needs."""
    try:
        found, python = stamp(), python_of(environment())
    except Unable:
        return False
    return (
        found.get("state") == "ready"
        and digest(root) in found.get("bundles", {})
        and os.access(python, os.X_OK)
        and found.get("python") == os.path.realpath(python)  # the system's Python was replaced otherwise
    )


def digest(root: str) -> str:
    """A hash of what a bundle needs. Raises Unable."""
    parts = [json.dumps(declared(root), sort_keys=True).encode()]
    for name in ("constraints.txt", "converter.txt"):
        try:
            with open(os.path.join(root, name), "rb") as file:
                parts.append(file.read())
        except OSError:
            parts.append(b"")
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def make(root: str) -> None:
    """Have the environment made, or mended, and wait for it. Raises Unable.

    It is made in a session of its own: where whoever waits for us loses patience (clients of MCP servers and
    assistants' shells do) it goes on, and the next start finds it. Ctrl-C ends it.
    """
    if os.environ.get("DISTILL_SETUP", "").strip().lower() in ("off", "0", "no", "false"):
        raise Unable(
            "the packages that distill needs are not installed, and DISTILL_SETUP=off forbids to install them.\n"
            f"Run once: DISTILL_SETUP=on python3 {shlex.quote(doctor(root))}     (they go to {environment()})"
        )
    line = [python_with_venv(), "-I", "-B", "-c", INSTALLER, os.path.abspath(root)]
    try:
        with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as reason:
            making = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=reason, stderr=told, start_new_session=True
            )
            follow(making, told.fileno())
            reason.seek(0)
            message = reason.read().decode("utf-8", "replace").strip()
    except OSError as error:
        raise Unable(f"the packages cannot be installed: {error}. Mend that, and run the same again.") from None
    if making.returncode != 0:
        raise Unable(message or f"making {environment()} ended with code {making.returncode}. Run the same again.")


def follow(making: subprocess.Popen[bytes], log: int) -> None:
    """Show what a process writes into a file, until it ends. Ctrl-C ends it, too."""
    done = 0
    try:
        while True:
            ended = making.poll() is not None
            more = os.pread(log, 1 << 16, done)  # the file's own position is the writer's
            done += len(more)
            sys.stderr.write(more.decode("utf-8", "replace"))
            sys.stderr.flush()
            if ended and not more:
                return
            if not more:
                time.sleep(POLL_S)
    except KeyboardInterrupt:
        end(making)
        raise


def end(making: subprocess.Popen[bytes]) -> None:
    """Interrupt an installation, and wait until it has ended all that it started."""
    try:
        os.killpg(making.pid, signal.SIGINT)
        making.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(making.pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended meanwhile


def python_with_venv() -> str:
    """A Python of 3.11 or newer that can make environments: the running one, else one on the PATH. Raises Unable."""
    without = ""
    for python in [sys.executable, *others()]:
        version, able = probe(python)
        if version >= LEAST and able:
            return python
        if version >= LEAST:
            without = without or python
    if without:
        raise Unable(
            f"{without} cannot make environments: its modules venv and ensurepip are not installed.\n"
            "Install them (Debian, Ubuntu: sudo apt install python3-venv) and run the same again."
        )
    raise Unable(
        "distill needs Python 3.11 or newer; this is {}, version {}.{}, and the PATH has no newer one.\n"
        "Install one (Debian, Ubuntu: sudo apt install python3 python3-venv; macOS: brew install python) and run the "
        "same again.".format(sys.executable, *sys.version_info[:2])
    )


def others() -> Iterator[str]:
    """Pythons on the PATH, and where installers put them that do not change the PATH of programs with windows."""
    places = os.environ.get("PATH", os.defpath).split(os.pathsep)
    home = os.path.expanduser("~")
    places += [os.path.join(home, ".local", "bin")]
    places += sorted(glob.glob(os.path.join(glob.escape(home), ".pyenv", "versions", "*", "bin")), reverse=True)
    if sys.platform == "darwin":
        places += ["/opt/homebrew/bin", "/usr/local/bin"]
    seen = {os.path.realpath(sys.executable)}
    for name in NAMES:
        for folder in places:
            python = os.path.join(folder, name)
            if os.path.isabs(folder) and os.access(python, os.X_OK) and os.path.realpath(python) not in seen:
                seen.add(os.path.realpath(python))
                yield python


def probe(python: str) -> tuple[tuple[int, ...], bool]:
    """(version, whether it can make environments); ((), False) for what does not run."""
    code = "import sys; print(*sys.version_info[:2]); sys.stdout.flush(); import ensurepip, venv; print('able')"
    try:
        ran = subprocess.run(
            [python, "-I", "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return (), False
    told = ran.stdout.decode("utf-8", "replace").split()
    if len(told) < 2 or not (told[0].isdigit() and told[1].isdigit()):
        return (), False
    return (int(told[0]), int(told[1])), told[2:] == ["able"]


def doctor(root: str) -> str:
    """scripts/doctor.py as the user would type it: beside the launcher that was typed, else the one of a skill."""
    typed = os.environ.get("DISTILL_LAUNCHER")
    beside = os.path.join(os.path.dirname(typed), "doctor.py") if typed else ""
    if beside and os.path.isfile(beside):
        return beside
    return os.path.join(root, "skills", "off-policy", "scripts", "doctor.py")


def words(line: Sequence[str]) -> str:
    """A command line as a shell takes it."""
    return " ".join(shlex.quote(word) for word in line)


if __name__ == "__main__":  # what DISTILL_PYTHON is asked: bootstrap.py missing ROOT EXTRA...
    print(json.dumps([sys.version_info[:2], missing(sys.argv[2], sys.argv[3:])]))
