"""What a caller of a tool may name: files in the workspace, models, servers, and keys for the right servers."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from core.commands import Command
from core.commands.base import Names
from core.commands.check_data import CheckData
from core.commands.doctor import Doctor
from core.commands.evaluate import Evaluate
from core.commands.generate_synthetic import GenerateSynthetic
from core.commands.project import read_section
from core.commands.resolve import resolve
from core.commands.run_rollouts import RunRollouts
from core.commands.teacher import TeacherOptions
from core.commands.teachers import Teachers
from core.commands.train_gold import TrainGold
from core.commands.train_sft import TrainSft
from core.data.environment import dotenv_of
from core.data.secrets import PROVIDER_KEYS, child_environment
from core.data.text import one_line
from core.errors import UsageError
from core.teachers import backend_of
from core.teachers.locate import PACKAGED
from core.teachers.providers import PROVIDERS

from .workspace import Workspace

MODEL = re.compile(r"\w[\w.-]*(/\w[\w.-]*){0,3}(:\w[\w.-]*)?", re.ASCII)
"""owner/name on the Hub or at a provider, :QUANT or :variant after it; Fireworks has accounts/NAME/models/NAME."""
DATASET = re.compile(r"hf:(\w[\w.-]*(/\w[\w.-]*)?)(:\w[\w.-]*)?", re.ASCII)
OWN_KEY = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY")
LONGEST = 2000
"""Characters of a path, a name or a URL."""
_PORTS = {"http": 80, "https": 443}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""What a server on this machine is called."""
OUTPUTS = ("output", "output_dir", "fix", "plot", "score_cache_path", "cache")
"""Options that name what a command writes."""
ACTIVE = (".py", ".sh", ".yml", ".yaml")
"""Endings of what is run, or read as settings, by whoever finds it."""
DEARER = ("models", "plugins", "preset", "route", "service_tier", "web_search_options")
"""Fields of a request that make it cost more than the model's listed price."""
MODEL_KEYS = ("STUDENT_MODEL_PATH", "STUDENT_MODEL_ID", "BASE_MODEL_ID", "KD_MODEL_PATH", "SFT_MODEL_PATH")
"""Variables by which the user names a model, wherever it lies."""
ADAPTER, RUN = "adapter_config.json", "run.json"
"""Files of a model's folder that name another model, which is loaded with it or compared with it."""
MOST_RECORD_BYTES = 4 << 20


class Asked(NamedTuple):
    """A model that a command may ask, as its options name it. api_key_env: the variable of its key, None for the
    provider's."""

    model: str
    backend: Any
    base_url: str | None
    api_key_env: str | None


def guard(
    command: Command,
    origins: Mapping[str, str],
    workspace: Workspace,
    allow_urls: Sequence[str],
    allow_code: bool = False,
) -> None:
    """Raises UsageError for a value that a caller may not give: one that leads out of the workspace, names no model, or
    a server that may not be asked, or starts a program; and for a key that would go where it does not belong.

    origins: as `resolve` says them. What comes from the environment or from `.env` was decided by the user; everything
    else is the caller's, files of the project included, since the caller says which. Paths that are defaults are looked
    at, too: what lies there came with the workspace. So may `.env` have: an address in it gets no key from elsewhere.
    allow_urls: servers that may be asked besides those on this machine and the providers'.
    allow_code: whether Python files of the workspace may be run.
    Hosts are known by name: what a name stands for is not looked at.
    """
    given = [name for name in type(command).model_fields if from_caller(command, name, origins)]
    base = _base(command, workspace)
    for name, kind, text in _named(command, origins, base):
        try:
            if kind == "code" and not allow_code:
                raise UsageError(
                    f"{one_line(text, 80)} is Python, which is run for callers of tools only where the user allows it "
                    "(this server's option allow_code)."
                )
            if name in OUTPUTS and Path(text).suffix.lower() in ACTIVE:
                raise UsageError(f"{one_line(text, 80)} ends as programs or settings do. Give it another ending.")
            _check(kind, text, workspace, base, allow_urls)
            if kind in ("model", "named model") or name == "scan":
                _check_origin(text.partition("=")[2] if kind == "named model" else text, command, workspace, base)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    if isinstance(command, RunRollouts) and "allow_tools" in given:
        _check_tools(command.allow_tools or ())
    for name in given:
        if name.endswith("extra_body"):
            _check_body(name, getattr(command, name) or {})
    _check_written(command, origins, workspace, allow_urls)
    _check_keys(command, given, workspace, allow_urls)


def guard_project(model: type[Command], values: Mapping[str, Any], workspace: Workspace) -> None:
    """The same for the files that a command looks into while it is resolved: to be asked before that.
    values: the call's options, unchecked. Raises UsageError."""
    for name, text in values.items():
        if isinstance(text, str) and model.option(name).names == "text or file":
            try:
                _check("text or file", text, workspace, workspace.root, ())
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from None
    if not issubclass(model, RunRollouts | TrainSft):
        return
    base, config = values.get("dir") or ".", values.get("config") or "config.yml"
    for name, text in (("dir", base), ("config", config)):
        if not isinstance(text, str):
            continue  # `resolve` says so
        try:
            folder = workspace.root if name == "dir" else workspace.inside(str(base))
            _check_word(text)
            workspace.inside(text, folder)
            if name == "config" and (folder / text).exists() and not (folder / text).is_file():
                raise UsageError(f"{one_line(text, 200)} is no file.")
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None


def make_parents(command: Command, workspace: Workspace) -> None:
    """Make the folders that a command's outputs lie in: callers have no tool for it, and commands want them there.
    To be called after `guard`. Raises UsageError."""
    base = _base(command, workspace)
    for name in OUTPUTS:
        for value in _items(getattr(command, name, None)):
            try:
                place = workspace.inside(value, base)
            except UsageError:  # a place that the user chose elsewhere
                continue
            if not place.parent.is_dir():
                workspace.make_folder(place.parent)


def from_caller(command: Command, name: str, origins: Mapping[str, str]) -> bool:
    """Whether a value was given in the call, or by a file of the project."""
    keys = type(command).option(name).env_keys
    return origins.get(name, "default") not in {"default", *keys, *(f"{key} in .env" for key in keys)}


def teachers(command: Command) -> list[Asked]:
    """Every model that a command may ask over an API or run here, as a teacher or as a judge."""
    match command:
        case GenerateSynthetic():
            nothing = command.skip_generation and not command.validate_
            options = [] if nothing else [command.answering(), command.asking()]
        case TeacherOptions():
            options = [command]
        case CheckData():
            options = [] if command.teacher is None else [command.teaching()]
            options += [] if command.judge is None else [command.judging()]
        case TrainGold() | Doctor():
            gold = command if isinstance(command, TrainGold) else command.training if command.has_teacher else None
            if gold is None:
                return []
            return [Asked(gold.teacher_name, gold.backend, gold.teacher_base_url, gold.teacher_api_key_env)]
        case Evaluate() if command.teacher is not None:
            return [Asked(command.teacher, command.teacher_backend, command.teacher_base_url, command.api_key_env)]
        case _:
            return []
    return [Asked(each.model, each.backend, each.base_url, each.api_key_env) for each in options]


# ---- one value -----------------------------------------------------------------------------------------------------


def _base(command: Command, workspace: Workspace) -> Path:
    """The folder in which the paths of a command begin. Raises UsageError."""
    if not isinstance(command, RunRollouts):
        return workspace.root
    try:
        return workspace.inside(command.dir)
    except UsageError as error:
        raise UsageError(f"dir: {error}") from None


def _named(command: Command, origins: Mapping[str, str], base: Path) -> Iterator[tuple[str, Names, str]]:
    """(option, what it names, value) of everything that the user did not name; also of what stands in the place of an
    option that is not given."""
    for name in type(command).model_fields:
        if name == "dir" and isinstance(command, RunRollouts):  # where others begin: nothing else in it is read
            continue
        if origins.get(name, "default") == "default" or from_caller(command, name, origins):
            for value in _items(getattr(command, name)):
                kind = type(command).option(name).names or ("file" if isinstance(value, Path) else None)
                if kind is not None:
                    yield name, kind, str(value)
    match command:
        case RunRollouts(input=None):
            config = base / "config.yml"
            section = read_section(config, "data") if config.is_file() else []
            train = next((str(value) for key, value, _ in section if key == "train_file" and value), "train.jsonl")
            yield "input", "data", train  # and what lies beside it, train.prompts.jsonl
        case Evaluate(output=None) | CheckData(output_dir=None):
            yield "output" if isinstance(command, Evaluate) else "output_dir", "file", "reports"
        case _:
            pass


def _items(value: Any) -> Iterable[Any]:
    found = value if isinstance(value, list | tuple) else [value]
    return [item for item in found if isinstance(item, str | Path) and str(item)]


def _check(kind: Names, text: str, workspace: Workspace, base: Path, allow_urls: Sequence[str]) -> None:
    """Raises UsageError for a value that may not be given, whatever the option."""
    if kind == "named model":
        kind, text = "model", text.partition("=")[2]
    if kind != "text or file":
        _check_word(text)
    match kind:
        case "file" | "code":
            _check_path(text, workspace, base)
        case "text or file":
            if _is_there(text, base):
                _check_path(text, workspace, base)
        case "data":
            _check_data(text, workspace, base)
        case "model":
            _check_model(text, workspace, base)
        case "url":
            _check_url(text, allow_urls)
        case "host":
            _check_host(text, allow_urls)
        case "program":
            raise UsageError(
                "starts a program, which callers of tools may not do. The user can do it on the command line, or start "
                "an MCP server and tell you its address for mcp_url."
            )
        case "packages":
            raise UsageError(
                "installs packages, which callers of tools may not do. Show the user the line that check_setup gives."
            )
        case "key" | "named model":
            pass  # whether a key may go where it would go: _check_keys


def _check_word(text: str) -> None:
    if len(text) > LONGEST:
        raise UsageError(f"{len(text):,} characters are too many for a name.")
    if text.startswith("-"):
        hint = "standard input is not there for a tool." if text == "-" else "a name does not begin with a dash."
        raise UsageError(f'"{one_line(text, 80)}": {hint} Name a file in the workspace.')


def _check_data(text: str, workspace: Workspace, base: Path) -> None:
    if not text.startswith("hf:"):
        _check_path(text, workspace, base)
        return
    found = DATASET.fullmatch(text)
    if found is None:
        raise UsageError(
            f'"{one_line(text, 80)}" names no data set on the Hub. Write hf:owner/name or hf:owner/name:split.'
        )
    if _is_there(found[1], base):  # a folder of that name is what would be read
        _check_path(found[1], workspace, base)


def _check_model(text: str, workspace: Workspace, base: Path) -> None:
    if MODEL.fullmatch(text) is None or _is_there(text, base):
        try:
            _check_path(text, workspace, base)
        except UsageError as error:
            raise UsageError(
                f"{error} A model is a folder or file in the workspace, owner/name, or {', '.join(PACKAGED)}."
            ) from None


def _check_path(text: str, workspace: Workspace, base: Path) -> None:
    """Raises UsageError for a path that leads out, and for links in it or beside it that do."""
    for _ in workspace.below(workspace.inside(text, base)):
        pass


def _check_origin(text: str, command: Command, workspace: Workspace, base: Path) -> None:
    """Raises UsageError for a folder that makes a command load another model, which lies where the caller may not read:
    that of an adapter, and that which the run began from, with which a student is compared unless a baseline is named.
    """
    place = workspace.inside(text, base) if _is_there(text, base) else None
    if place is None or not place.is_dir():
        return
    files = [file for file in map(Path, workspace.below(place)) if file.name == ADAPTER]
    if isinstance(command, Evaluate) and command.baseline is None:
        files += [folder / RUN for folder in (place, place.parent) if (folder / RUN).is_file()]
    for file in files:
        found = _record(workspace, file)
        options = found.get("options")
        options = options if isinstance(options, dict) else {}
        cwd = found.get("cwd")
        for named in (found.get("base_model_name_or_path"), options.get("student"), options.get("model")):
            if not isinstance(named, str) or not named:
                continue
            for start in (cwd if isinstance(cwd, str) else "", file.parent, workspace.root):
                path = os.path.realpath(workspace.root / start / os.path.expanduser(named))
                if os.path.exists(path) and not _may_be_read(path, workspace):
                    instead = "Name a baseline." if file.name == RUN else "Put that model into the workspace."
                    where = one_line(workspace.name(file), 200)
                    raise UsageError(f"{where} names a model that lies outside the workspace. {instead}")


def _record(workspace: Workspace, file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; {} for what is none, which the command says in its own words."""
    try:
        with workspace.open(file) as opened:
            found = json.loads(opened.read(MOST_RECORD_BYTES))
    except (UsageError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _may_be_read(path: str, workspace: Workspace) -> bool:
    """Whether a model is in the workspace, in a cache that its name leads to anyway, or is one that the user named."""
    try:
        workspace.inside(path)
        return True
    except UsageError:
        pass
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"
    if any(Path(path).is_relative_to(os.path.realpath(folder)) for folder in (cache / "distill" / "models", hub)):
        return True
    theirs = [os.environ.get(key) or dotenv_of(workspace.root).get(key) for key in MODEL_KEYS]
    return path in {os.path.realpath(workspace.root / os.path.expanduser(each)) for each in theirs if each}


def _is_there(text: str, base: Path) -> bool:
    """Whether a text is also the name of something on this disk, inside or outside."""
    try:
        return os.path.lexists(base / text)
    except ValueError:  # a zero byte, half a character
        return False


# ---- servers -------------------------------------------------------------------------------------------------------


def _check_url(text: str, allow_urls: Sequence[str]) -> None:
    """Raises UsageError for a server that a caller may not name. A text in which a secret may be is not repeated."""
    parts = _split(text)
    if parts is None or parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "is not a URL such as http://127.0.0.1:8000/v1: http or https, a host, no user, no password, no query."
        )
    if not (is_here(parts) or _provider_at(parts) or _allowed(parts, allow_urls)):
        raise UsageError(
            f"{one_line(_place(parts), 120)} may not be asked. Allowed are servers on this machine (127.0.0.1, "
            "localhost), those of the known providers, and those that the user allows (this server's option allow_url)."
        )


def _check_host(text: str, allow_urls: Sequence[str]) -> None:
    """A host or pattern for the browser. Patterns reach no private host (core.tools.hosts); an exact name may."""
    from core.tools.hosts import HostRules

    HostRules([text])  # raises UsageError for what is no pattern
    if text.startswith("*"):
        return
    parts = _split(f"http://{text.removesuffix(':*')}")
    name, port = (parts.hostname or "", parts.port) if parts else ("", None)
    if HostRules().refuse_host(name, 443) and not any(
        allowed is not None and allowed.hostname == name and _port(allowed) == port
        for allowed in map(_split, allow_urls)
    ):
        raise UsageError(
            f"{one_line(text, 120)} is this machine or in a private network, where a browser may only go if the user "
            "allows it (this server's option allow_url)."
        )


def _split(text: str) -> SplitResult | None:
    """The parts of a URL or host:port, or None for what is neither."""
    if any(character <= " " or character == "\\" for character in text):
        return None
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        fits = parts.scheme in _PORTS and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if fits else None


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS[parts.scheme]


def _place(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.hostname}:{_port(parts)}"


def is_here(parts: SplitResult) -> bool:
    """Whether a URL is on this machine."""
    return parts.hostname in LOOPBACK


def _provider_at(parts: SplitResult) -> str | None:
    """The hosted provider whose server a URL names."""
    places = {_place(urlsplit(each.url)): name for name, each in PROVIDERS.items() if each.hosted}
    return places.get(_place(parts))


def _allowed(parts: SplitResult, allow_urls: Sequence[str]) -> bool:
    """Whether the user allowed a URL: the same scheme, host and port, and the path or one below it."""
    for text in allow_urls:
        allowed = _split(text)
        if allowed is None or _place(allowed) != _place(parts):
            continue
        folder = allowed.path.rstrip("/")
        if ".." not in parts.path and "%" not in parts.path and f"{parts.path}/".startswith(f"{folder}/"):
            return True
    return False


# ---- keys ----------------------------------------------------------------------------------------------------------


def _check_keys(command: Command, given: Sequence[str], workspace: Workspace, allow_urls: Sequence[str]) -> None:
    """Raises UsageError for a key that would go to a server it does not belong to.

    A hosted provider's server gets its own key. Servers on this machine get those of servers that one runs oneself, for
    anybody may listen there; what the user allowed or named may get any provider's, and what the user allowed one of
    the user's own (..._API_KEY). No other variable is sent anywhere.
    """
    if not any(name.endswith(("base_url", "backend", "api_key_env")) for name in given):
        return  # who is asked, with which key, is all the user's own choice
    named_here = {
        getattr(command, name) for name in given if type(command).option(name).names == "url" and "base" in name
    }
    theirs = {each.key for each in PROVIDERS.values() if each.hosted}
    lists = [Asked("", command.server, command.base_url, command.api_key_env)] if isinstance(command, Teachers) else []
    for model, wanted, base_url, named in [*teachers(command), *lists]:
        provider = PROVIDERS.get(backend_of(model, wanted, base_url))
        if provider is None:  # it runs here
            continue
        parts, key = urlsplit(base_url or provider.url), named or provider.key
        owner = _provider_at(parts)
        if owner is not None and key != PROVIDERS[owner].key:
            raise UsageError(
                f"the key {key} does not belong to {parts.hostname}, whose key is {PROVIDERS[owner].key}. "
                f'Name the back end "{owner}", without a base URL or another key.'
            )
        trusted = _allowed(parts, allow_urls) or (base_url is not None and base_url not in named_here)
        if owner is None and key in theirs and not trusted and _is_set(key, workspace):
            raise UsageError(
                f"{key} is the key of a provider and does not go to {parts.hostname} on a caller's word. Say with the "
                f"back end what runs there ({', '.join(name for name, each in PROVIDERS.items() if not each.hosted)}), "
                "or let the user allow the address (this server's option allow_url)."
            )
        own = OWN_KEY.fullmatch(key) is not None and _allowed(parts, allow_urls)
        if key not in PROVIDER_KEYS and not own:
            raise UsageError(
                f"{one_line(key, 80)} may not be sent to {parts.hostname}. Keys for it: {', '.join(PROVIDER_KEYS)}, or "
                "any other ..._API_KEY at an address that the user allows (this server's option allow_url)."
            )


def _check_written(
    command: Command, origins: Mapping[str, str], workspace: Workspace, allow_urls: Sequence[str]
) -> None:
    """Raises UsageError for a key of the environment that would go to a server which only the folder's `.env` names,
    unless the key belongs there or the user allowed the address. Whoever wrote that file may give a key in it, too.
    """
    if isinstance(command, TrainSft) and command.dataset_type == "distill":  # the job makes this of the same `.env`
        given = {"data": "-", "output": "-", "student": "-", "teacher": "-"}
        environment = child_environment(command, os.environ)
        command, origins = resolve(TrainGold, {}, environment, dotenv_of(workspace.root), project=(given, given))
    written = {
        getattr(command, name)
        for name, origin in origins.items()
        if origin.endswith(" in .env") and type(command).option(name).names == "url"
    }
    for model, wanted, base_url, named in teachers(command):
        provider = PROVIDERS.get(backend_of(model, wanted, base_url))
        if provider is None or base_url is None or base_url not in written:
            continue
        parts, key = urlsplit(base_url), named or provider.key
        owner = _provider_at(parts)
        belongs = key == PROVIDERS[owner].key if owner else is_here(parts) and not provider.hosted
        if os.environ.get(key) and not belongs and not _allowed(parts, allow_urls):
            raise UsageError(
                f"{key} of your environment does not go to {one_line(_place(parts), 120)}, which only the file .env of "
                "this folder names. Let the user allow the address (this server's option allow_url), or put the key "
                "that is meant for it into that file and start the server without the other."
            )


def _is_set(key: str, workspace: Workspace) -> bool:
    return bool((os.environ.get(key) or dotenv_of(workspace.root).get(key) or "").strip())


def _check_body(option: str, body: Mapping[str, Any]) -> None:
    """Raises UsageError for fields of requests that nobody has agreed to pay for."""
    for name in body:
        if name in DEARER:
            raise UsageError(
                f'{option}: "{name}" may cost more than the price that is listed, which callers of tools cannot allow. '
                "Leave it out."
            )


# ---- the tools of rollouts -----------------------------------------------------------------------------------------


def _check_tools(allowed: Sequence[str]) -> None:
    """Raises UsageError for tools that are denied by default, because they run code or read files of the machine: what
    a teacher may use beyond that is for the user to say."""
    from core.tools.toolbox import DEFAULT_DENIED

    for name in allowed:
        if any(fnmatchcase(name, f"*{pattern}") for pattern in DEFAULT_DENIED):
            raise UsageError(
                f"allow_tools: {one_line(name, 80)} runs code or reads files of the machine, which callers of tools "
                "cannot allow. The user can, on the command line."
            )
