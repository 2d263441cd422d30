"""The command line of every script: parse, run, show an error as one readable line, exit codes.

A script is `core.cli.main("<command>")`. At module level this imports the standard library only, so that a Python
without the dependencies gets one line and no traceback.
"""

import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from . import bootstrap
from .errors import DistillError, Elsewhere, ExitCode, MissingDependency, UsageError, in_bundle, pip_line

if TYPE_CHECKING:
    import cyclopts

    from .commands import Command, Result
    from .data.progress import Progress
    from .data.run import Run

ROOT = Path(__file__).resolve().parents[1]
GENERAL = "This command line"
BARE = {"doctor": ("--teacher", "--test-teacher")}
"""A flag that may stand without a value, and what it means then, by command."""
BUG = "this is a bug; please report it with the lines above. What was finished is kept."
TRAIN = ("accelerate", "datasets", "gguf", "matplotlib", "msgspec", "numpy", "peft", "torch", "transformers", "trl")
"""Modules of the extra `train`. Commands of other extras look for theirs themselves."""
GENERAL_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("config", Path | None, "YAML file with options of this command; flags and environment win over it."),
    ("json_", bool | None, "Print the result as one JSON object on stdout; everything else goes to stderr."),
    ("progress", Literal["auto", "bar", "lines", "off"] | None, "How progress is shown (auto: bar on a terminal)."),
    ("events", Path | None, "Also append progress to this file, as JSON Lines."),
    ("background", bool | None, "Run as a job that goes on without this terminal: see scripts/jobs.py."),
)
"""Options of every command that are not its own: (name, type, help)."""


def main(name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave the process with its exit code."""
    if argv is None and lacks() is not None:  # `python3 scripts/NAME.py` beside a .venv that nobody activated
        bootstrap.hand_over(str(ROOT), sys.argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # an ASCII terminal must not end what was asked for
        sys.stdout.reconfigure(errors="backslashreplace")
    code, at_once = run(name, sys.argv[1:] if argv is None else argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if at_once:  # a second Ctrl-C: a model may still be computing in a thread that cannot be stopped
        os._exit(code)
    sys.exit(code)


def run(name: str, argv: Sequence[str]) -> tuple[int, bool]:
    """(exit code, whether the user asked to leave at once). Errors are printed to stderr, never raised.

    With --json an error is an object on stdout too: {"status": "error", "error": message}.
    """
    try:
        check_dependencies()
        return _run(name, argv)
    except DistillError as error:
        rank = other_process()
        if rank is None:
            print(f"{name}: error: {as_typed(str(error))}", file=sys.stderr)
        elif not isinstance(error, Elsewhere):
            first = str(error).partition("\n")[0]  # all of it is said by the first process
            print(f"{name}: process {rank}: {first}", file=sys.stderr)
        if "--json" in argv and rank is None:
            print(json.dumps({"status": "error", "error": str(error)}), flush=True)
        return error.exit_code, False
    except Exception:  # a mistake of ours: exit code 1 would say that only some rows failed
        traceback.print_exc()
        print(f"{name}: {BUG}", file=sys.stderr)
        return ExitCode.STOPPED, False
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED, True


def _run(name: str, argv: Sequence[str]) -> tuple[int, bool]:
    from .commands import load

    model = load(name)
    argv, typed = undotted(model, argv)
    try:
        return _run_parsed(name, model, argv)
    except UsageError as error:
        error.args = (with_dots(str(error), typed),)
        raise


def _run_parsed(name: str, model: "type[Command]", argv: Sequence[str]) -> tuple[int, bool]:
    flags = parse(name, model, argv)
    if flags is None:
        return ExitCode.DONE, False
    from .commands.resolve import resolve
    from .data.environment import dotenv
    from .data.progress import open_progress

    door = {field: flags.pop(field, None) for field, _, _ in general_options(model)}
    written = dotenv() if model.reads_dotenv else {}
    command, origins = resolve(model, flags, os.environ, written, door.get("config"))
    if door.get("background"):
        in_background(name, command, origins, door)
        return ExitCode.DONE, False
    silent = other_process() is not None
    try:
        progress = (
            open_progress("off", stream=io.StringIO())
            if silent
            else open_progress(door["progress"] or "auto", door["events"])
        )
    except OSError as error:
        raise UsageError(f"--events: {error}") from None
    out = (lambda text: None) if door["json_"] or silent else print_all
    result, at_once = perform(command, origins, progress, out)
    if door["json_"] and not silent:
        print_all(result.model_dump_json())
    if not silent:
        print(as_typed(result.summary()), file=sys.stderr)
    return result.exit_code, at_once


def perform(
    command: "Command",
    origins: dict[str, str],
    progress: "Progress",
    out: Callable[[str], None],
    *,
    defaults: bool = True,
) -> "tuple[Result, bool]":
    """(result, whether the user asked to leave at once) of a command, once it is known what it shall do.

    Says which options count (defaults: also those that nobody set), and closes `progress`. Raises whatever the work
    does.
    """
    from .data.environment import dotenv
    from .data.run import Run
    from .data.stop import Stop, signals

    stop = Stop()
    context = Run(progress, stop, origins, out=out)
    try:
        progress.note(describe(command, origins, defaults=defaults))
        for key, why in command.ignored_env.items():
            if os.environ.get(key) or dotenv().get(key):
                progress.note(f"{key} is not used: {why}")
        with signals(stop, progress.note):
            result = work(command, context)
    finally:
        progress.close()
    return result, stop.now


def in_background(name: str, command: "Command", origins: dict[str, str], door: dict[str, Any]) -> None:
    """Start a job and say how to follow it. Raises UsageError for what no job can do."""
    from .commands.resolve import given
    from .jobs import JobStore
    from .jobs.devices import device_for

    for option, why in (("progress", "its log has lines"), ("events", "it has a progress.jsonl of its own")):
        if door[option] is not None:
            raise UsageError(f"--{option} is not for a job: {why}. Leave it out.")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("--background: a job is one process, and this is one of several (accelerate launch).")
    if any(value == "-" for _, value in command):
        raise UsageError("- is standard input, which a job does not have. Write it to a file first.")
    job = JobStore(Path.cwd() / ".distill" / "jobs").start(
        name,
        given(command, origins),
        origins=origins,
        cwd=Path.cwd(),
        environment=os.environ,
        device=device_for(name, dict(command), os.environ),
    )
    print_all(json.dumps({"job_id": job.id}) if door["json_"] else job.id)
    waits = f" waits for {job.device} behind {job.ahead} more" if job.ahead else " is started"
    print(
        f"the job{waits}; it goes on when this terminal is closed\n"
        + as_typed(f"next: python scripts/jobs.py log {job.id} -f     (or show, or cancel)"),
        file=sys.stderr,
    )


def other_process() -> str | None:
    """The number of this process in a job of several (`accelerate launch`); None for the one that speaks for all."""
    rank, alone = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1") == "1"
    return None if rank == "0" or alone else rank


def work(command: "Command", context: "Run") -> "Result":
    """Import the command's work and do it. Raises MissingDependency where one of the heavy packages is not there."""
    module, _, function = command.work.partition(":")
    try:
        return getattr(importlib.import_module(module, f"{__package__}.commands"), function)(command, context)
    except ModuleNotFoundError as missing:
        package = str(missing.name).partition(".")[0]
        if package not in TRAIN:
            raise
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(command).__name__).lower()
        raise MissingDependency(package, name, "train") from None


def describe(command: "Command", origins: dict[str, str], *, defaults: bool = True) -> str:
    """Every option with its value: a line for each that was set, with its origin; the defaults together, if wanted."""

    def shown(name: str) -> str:
        value = getattr(command, name)
        return str(value) if isinstance(value, Path) else repr(value)

    named = [f"{name} = {shown(name)}  ({origins[name]})" for name in origins if origins[name] != "default"]
    rest = [f"{name}={shown(name)}" for name in origins if origins[name] == "default"]
    if not rest or not defaults:
        return "\n".join([*named, *([f"{len(rest)} more by default"] if rest else [])])
    width = min(118, max(60, shutil.get_terminal_size().columns - 1))
    wrapped = textwrap.wrap("defaults: " + " ".join(rest), width, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([*named, *wrapped])


def parse(name: str, model: "type[Command]", argv: Sequence[str]) -> dict[str, Any] | None:
    """The flags that were given, or None after `--help` was printed. Raises UsageError with a suggestion."""
    if any(word in ("--help", "-h") for word in argv):
        print_all(help_of(name, model))
        return None
    if not argv:  # a server is started so, and waited for
        return {}
    import cyclopts

    from .commands.base import flag

    alone, meant = BARE.get(name, ("", ""))
    followed = zip(argv, [*argv[1:], "-"], strict=False)
    argv = [meant if word == alone and then[:1] == "-" else word for word, then in followed]
    for at in range(len(argv) - 1, 0, -1):  # "--input -", "--index -1,0": values, which the parser takes for flags
        if re.fullmatch(r"-(\d[\d,-]*)?", argv[at]) and argv[at - 1].startswith("-"):
            argv = [*argv[: at - 1], f"{argv[at - 1]}={argv[at]}", *argv[at + 1 :]]
    for field in (field for field in model.model_fields if model.option(field).positional):  # "-" is standard input
        argv = [f"{flag(field)}=-" if word == "-" else word for word in argv]
    app = parser(name, model)
    try:
        given: dict[str, Any] = app(list(argv), exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        message = str(error).replace("Unused Tokens:", "not an option, and no option takes it:")
        raise UsageError(f"{message} See --help.") from None
    return given


def undotted(model: "type[Command]", argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(the words with --teacher.backend as --teacher-backend, what was typed by what it means). A dot is a dash where
    that makes a flag of the command."""
    from .commands.base import flag

    flags = {flag(field) for field in (*model.model_fields, *(field for field, _, _ in general_options(model)))}
    words: list[str] = []
    typed: dict[str, str] = {}
    for word in argv:
        name, equals, value = word.partition("=")
        dashed = name.replace(".", "-")
        if dashed != name and (dashed in flags or dashed.replace("--no-", "--", 1) in flags):
            typed[dashed] = name
            word = dashed + equals + value
        words.append(word)
    return words, typed


def with_dots(message: str, typed: dict[str, str]) -> str:
    """An error with the flags as they were typed."""
    for dashed, dotted in typed.items():
        message = re.sub(rf"{re.escape(dashed)}(?![\w-])", lambda _, name=dotted: name, message)
    return message


def help_of(name: str, model: "type[Command]") -> str:
    """What `--help` prints, as wide as the terminal."""
    from pydantic.fields import FieldInfo

    from .commands import Option
    from .commands.help import Line, help_text, option_line

    general = [
        option_line(field, Option(GENERAL), FieldInfo(annotation=kind, default=None, description=help_))
        for field, kind, help_ in general_options(model)
    ]
    general.append(Line(GENERAL, "--help, -h", "Show this and leave.", required=False))
    width = min(120, max(60, shutil.get_terminal_size().columns))
    return help_text(model.program or f"python scripts/{name}.py", model, general, EXIT_CODES, width)


def general_options(model: "type[Command]") -> list[tuple[str, Any, str]]:
    """The general options of a command, without those that it has as its own: --config of `train_sft` is another
    file."""
    left_out = {*model.model_fields, *(() if model.as_job else ("background",))}
    return [option for option in GENERAL_OPTIONS if option[0] not in left_out]


def as_typed(text: str) -> str:
    """A text whose lines to run next name the launcher's folder, where a launcher was typed: the user is in a project
    of their own, which has no scripts/."""
    launcher = os.environ.get("DISTILL_LAUNCHER")
    if not launcher:
        return text

    def path(found: re.Match[str]) -> str:
        beside = Path(launcher).parent / found[1]
        return f"python3 {shlex.quote(str(beside if beside.is_file() else ROOT / 'scripts' / found[1]))}"

    return re.sub(r"\bpython scripts/(\w+\.py)\b", path, text)


def print_all(text: str) -> None:
    """To stdout, whose reader (`| head`) may leave before the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser(name: str, model: "type[Command]") -> "cyclopts.App":
    """A cyclopts application whose call returns the flags that were given.

    Every flag is optional to it, because environment and YAML come after the flags; `resolve` knows what is required.
    """
    import cyclopts

    from .commands.base import Option, flag

    def parameter(field: str, kind: Any, option: Option) -> inspect.Parameter:
        names = [flag(field), *([option.short] if option.short else [])]
        converter = _json_object if kind == dict[str, Any] | None else None
        details = cyclopts.Parameter(name=names, accepts_keys=False, converter=converter)
        annotation = Annotated[kind | None, details]
        place = inspect.Parameter.POSITIONAL_OR_KEYWORD if option.positional else inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(field, place, default=None, annotation=annotation)

    def given(*values: Any, **flags: Any) -> dict[str, Any]:
        found = {**dict(zip(positional, values, strict=False)), **flags}
        return {key: value for key, value in found.items() if value is not None}

    positional = [field for field in model.model_fields if model.option(field).positional]
    ordered = sorted(model.model_fields, key=lambda field: field not in positional)
    fields = [parameter(field, model.model_fields[field].annotation, model.option(field)) for field in ordered]
    general = [parameter(field, kind, Option(GENERAL)) for field, kind, _ in general_options(model)]
    signature = inspect.Signature([*fields, *general])
    setattr(given, "__signature__", signature)  # noqa: B010 (pyright)
    given.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    app = cyclopts.App(name=name, version_flags=[], help_flags=[])
    app.default(given)
    return app


EXIT_CODES = (
    "Exit codes: 0 done; 1 some of it failed (listed, the good is kept); 2 input or options are wrong (nothing was "
    "started); 3 stopped early, what was finished is kept; 130 interrupted (the same command goes on)."
)


def _json_object(_: Any, tokens: Sequence[Any]) -> dict[str, Any]:
    """Converts --extra-body's value. Raises ValueError with the position for broken JSON."""
    value = json.loads(tokens[0].value)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is needed, not {type(value).__name__}")
    return value


def check_dependencies() -> None:
    """Raises MissingDependency when this Python lacks what every command needs."""
    lacking = lacks()
    if lacking is not None:
        made = in_bundle() and (ROOT / "Makefile").is_file()
        line = f"make -C {shlex.quote(str(ROOT))} .venv" if made else pip_line("distill-kit")
        raise MissingDependency(lacking, "distill", line)


def lacks() -> str | None:
    """The first module of those that every command needs which this Python does not find."""
    for module in bootstrap.MODULES[""]:
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
        if found is None:
            return module
    return None
