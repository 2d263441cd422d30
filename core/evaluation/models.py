"""Which models take part in an evaluation: where each one is, and what its answers depend on.

--student runs/gold  ->  runs/gold/best, its base where it is an adapter, its hash  ->  Named
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from ..commands.evaluate import Evaluate
from ..commands.teacher import TeacherOptions
from ..errors import ModelNotFound, UsageError
from ..teachers import backend_of, open_teacher
from ..teachers.locate import PACKAGED, locate
from . import runs
from .model_files import (
    ADAPTER,
    content_of,
    count_parameters,
    digest,
    gguf_parts,
    hash_of,
    template_hash,
    tokenizer_folder,
    vocabulary_hash,
    weight_files,
)
from .results import ModelInfo, Role

Note = Callable[[str], None]
BEGUN = "the beginning of"
WRITERS = 1
"""Raised when `completer_lm` makes another answer of what a teacher wrote, as by cutting it elsewhere. Not lm-eval's
version: answers that were paid for outlive an upgrade."""


@dataclass
class Named:
    """A model that takes part.

    name: in the report ("baseline", "student", "teacher", "step-50", or as --models says).   path: as the user gave it.
    backend: hf, gguf, openrouter, openai, nvidia.   identity: see `ModelInfo`; the key of its kept answers.
    folder: where its weights are; with the backend gguf the file; None for an API.   adapter: a folder with a LoRA
    adapter on top of them.   tokenizer_folder: where its tokenizer is, with the backend hf.
    run: the folder of the training run that it comes of.   info: what the report says of it.
    """

    name: str
    role: Role
    path: str
    backend: str
    folder: Path | None
    adapter: Path | None
    tokenizer_folder: Path | None
    run: Path | None
    identity: str
    info: ModelInfo


@dataclass(frozen=True)
class _Given:
    """A model as it was asked for.   option: the flag that named it."""

    name: str
    role: Role
    path: str
    option: str


def resolve_models(options: Evaluate, note: Note = lambda text: None) -> list[Named]:
    """The baseline, then students and checkpoints in the order in which they were given, the teacher last.

    note: tells the user what was chosen, and about conversions.

    Raises UsageError: no model at a path, weights that are missing or damaged, an adapter without its base, two models
    of one name, nothing to compare, a key or a package that is missing, --chat-template on without one.
    """
    given = _given(options, note)
    if len(given) < 2:
        raise UsageError(f"there is nothing to compare {given[0].path} with: add another --models name=path.")
    for place, each in enumerate(given):
        if before := next((other for other in given[:place] if other.name == each.name), None):
            raise UsageError(
                f"two models are called {each.name}: {before.option} {before.path} and {each.option} {each.path}. "
                "Give one of them another name with --models name=path."
            )
    device, dtype = computation(options)
    found = [_resolved(each, options, device, dtype, note) for each in given]
    if options.chat_template == "on":
        for model in found:
            if model.backend == "hf" and not model.info.chat_template:
                raise UsageError(f"{model.name} ({model.path}) has no chat template; leave --chat-template auto.")
    return found


def _given(options: Evaluate, note: Note) -> list[_Given]:
    """Every model that the options name, the baseline first."""
    students: list[_Given] = []
    if options.student:
        students.append(_Given("student", "student", options.student, "--student"))
    for text in options.models or []:
        name, _, path = text.partition("=")
        students.append(_Given(name, "student", path, f"--models {name}:"))
    if options.sft:
        students.append(_Given("sft", "student", options.sft, "--sft"))
    if options.scan:
        students += [_Given(path.name, "checkpoint", str(path), "--scan") for path in _scanned(options.scan)]
    if options.baseline:
        students.insert(0, _Given("baseline", "baseline", options.baseline, "--baseline"))
    else:
        students = _with_baseline(options, students, note)
    teacher = [_Given("teacher", "teacher", options.teacher, "--teacher")] if options.teacher else []
    return students + teacher


def _with_baseline(options: Evaluate, students: list[_Given], note: Note) -> list[_Given]:
    """Without --baseline: what the student's run (or that of --scan) began from, else the first of --models."""
    for path in filter(None, (options.student, options.scan)):
        run = runs.run_of(Path(path).expanduser())
        begun = runs.begun_from(run) if run else None
        if begun:
            note(f"baseline: {begun}, from which the run in {run} began")
            return [_Given("baseline", "baseline", begun, f"{BEGUN} the run in {run},"), *students]
    first = next((each for each in students if each.option.startswith("--models")), None)
    if first is None:
        raise UsageError(f"there is nothing to compare {students[0].path} with: add --baseline.")
    note(f"baseline: {first.name} ({first.path}), the first of --models")
    baseline = _Given(first.name, "baseline", first.path, first.option)
    return [baseline, *(each for each in students if each is not first)]


def _scanned(root: Path) -> list[Path]:
    """step-N/ in order, then final/. Raises UsageError when there are none."""
    root = root.expanduser()
    if not root.is_dir():
        raise UsageError(f"--scan {root}: there is no such folder. Name the --output of a training run.")
    found = runs.steps(root)
    if (root / "final").is_dir():
        found.append(root / "final")
    if not found:
        raise UsageError(f"--scan {root}: it holds no step-N/ and no final/. Name the --output of a training run.")
    return found


# ---- one model ---------------------------------------------------------------------------------------------------


def _resolved(given: _Given, options: Evaluate, device: str, dtype: str, note: Note) -> Named:
    if given.role == "teacher":
        backend = backend_of(given.path, options.teacher_backend, options.teacher_base_url)
        if backend != "hf":
            return _writer(given, backend, options)
    try:
        return _hugging_face(given, device, dtype, note)
    except UsageError as error:
        instead = " Name a baseline with --baseline." if given.option.startswith(BEGUN) else ""
        kind = ModelNotFound if isinstance(error, ModelNotFound) else UsageError
        raise kind(f"{given.option} {given.path}: {error}{instead}") from None


def _hugging_face(given: _Given, device: str, dtype: str, note: Note) -> Named:
    """A model that transformers runs."""
    path = Path(given.path).expanduser()
    run = runs.run_of(path) if path.is_dir() else None
    place = _model_in_run(path) if path == run and not (path / "config.json").is_file() else path
    adapter = place if (place / ADAPTER).is_file() else None
    folder = _base_of(adapter, note) if adapter else _folder(str(place) if place != path else given.path, note)
    parameters = count_parameters(weight_files(folder))
    if adapter:
        count_parameters(weight_files(adapter, "adapter_model", "adapter_model.bin"))
    tokenizer = tokenizer_folder(folder, adapter)
    vocabulary = vocabulary_hash(tokenizer)
    if vocabulary is None:
        raise UsageError(
            f"{tokenizer} has no tokenizer. Save it beside the weights: tokenizer.save_pretrained(folder)."
        )
    identity = hash_of(
        {
            "backend": "hf",
            **content_of(folder, adapter),
            "dtype": dtype,
            "device": device,
            "versions": _versions("lm-eval", "transformers", "torch", *(["peft"] if adapter else [])),
        }
    )
    info = ModelInfo(
        name=given.name,
        role=given.role,
        path=given.path,
        backend="hf",
        identity=identity,
        tokenizer=vocabulary,
        chat_template=template_hash(tokenizer),
        parameters=parameters,
        dtype=dtype,
        training=runs.training(run, place) if run else None,
    )
    return Named(given.name, given.role, given.path, "hf", folder, adapter, tokenizer, run, identity, info)


def _model_in_run(run: Path) -> Path:
    """best/ of a run, else final/. Raises UsageError when it has neither yet."""
    for name in ("best", "final"):
        if (run / name).is_dir():
            return run / name
    there = ", ".join(path.name for path in runs.steps(run))
    raise UsageError(
        "this run has neither best/ nor final/ yet. " + (f"Name one of {there} in it." if there else "Train it first.")
    )


def _folder(name: str, note: Note) -> Path:
    """The model as a folder that transformers loads; a GGUF file is converted, once. Raises UsageError."""
    from ..teachers.hf import located

    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file() and not any(path.glob("*.gguf")):
        held = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))[:5]
        raise UsageError(
            f"no model is in this folder: no config.json, no {ADAPTER}, no run.json of a training run, no .gguf file "
            f"({'it is empty' if not held else 'it holds ' + ', '.join(held)})."
        )
    if path.is_file() and path.suffix != ".gguf":
        raise UsageError("a file that is no .gguf. Name the folder that holds config.json and the weights.")
    found = located(name, attention="sdpa", load_in_4bit=False)
    if not found.is_gguf:
        return found.path
    from ..teachers.hf_model import hf_folder

    try:
        return hf_folder(found, note)
    except Exception as error:  # transformers and gguf raise whatever they meet
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise UsageError(
            f"{found.path.name} cannot be converted for transformers: {reason}. Is it a whole GGUF file? As --teacher "
            "with --teacher-backend gguf, llama.cpp runs it as it is."
        ) from None


def _base_of(adapter: Path, note: Note) -> Path:
    """The folder of the model that an adapter sits on. Raises UsageError when it is not there."""
    import orjson

    try:
        settings = orjson.loads((adapter / ADAPTER).read_bytes())
        base = settings["base_model_name_or_path"]
        if not (base and isinstance(base, str)):
            raise KeyError
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{adapter / ADAPTER} does not say which model this adapter belongs to: set base_model_name_or_path in it."
        ) from None
    path = Path(base).expanduser()
    tried = [path] if path.is_absolute() else [path, adapter / path]
    there = next((each for each in tried if each.exists()), None)
    hint = (
        f"Put the folder of that model as base_model_name_or_path into {adapter / ADAPTER}, or merge the adapter where "
        "its model is (--merge of train_gold and train_sft, or PEFT's merge_and_unload)."
    )
    if there is not None and (there / ADAPTER).is_file():
        raise UsageError(f"its base {base} is an adapter itself, and a whole model is needed. {hint}")
    if there is None and base not in PACKAGED:
        where = "; ".join(str(each) for each in tried)
        if base.startswith((".", "/", "~")) or base.count("/") != 1:
            raise UsageError(f"an adapter of the model {base}, which is not there. Tried: {where}. {hint}")
        try:
            locate(base, gguf=False)
        except ModelNotFound as error:
            raise UsageError(f"an adapter of the model {base}, which is not there: {error} {hint}") from None
    try:
        return _folder(str(there or base), note)
    except UsageError as error:
        raise UsageError(f"its base {base}: {error}") from None


def teacher_options(options: Evaluate) -> TeacherOptions:
    """The teacher of an evaluation as other commands name theirs. Raises UsageError for a bad --teacher-base-url."""
    assert options.teacher is not None
    try:
        return TeacherOptions(
            model=options.teacher,
            backend=options.teacher_backend,
            base_url=options.teacher_base_url,
            api_key_env=options.api_key_env,
            concurrency=options.concurrency,
            threads=options.threads,
            n_gpu_layers=0 if options.device == "cpu" else -1,
        )
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise UsageError(f"--teacher-base-url {options.teacher_base_url}: {reason}") from None


def _writer(given: _Given, backend: str, options: Evaluate) -> Named:
    """A teacher that llama.cpp or an API runs: it writes answers. Raises UsageError for a key or package that is
    missing."""
    wanted = teacher_options(options)
    opened = open_teacher(wanted)  # nothing is loaded or asked yet
    limits = "it writes answers, and does not tell how probable a given one is: no figures where a model chooses"
    if backend == "gguf":
        file = locate(given.path, gguf=True).path
        content = {
            "files": [digest(part) for part in gguf_parts(file)],
            "n_ctx": wanted.n_ctx,
            "versions": _versions("llama-cpp-python"),
        }
        notes = [f"{given.name} runs in llama.cpp: {limits}"]
    else:
        file = None
        content = {"endpoint": opened.endpoint, "model": given.path}
        notes = [
            f"{given.name} is asked over an API: {limits}",
            f"what {given.path} answers may change behind its name; answers that are kept are not asked for again",
        ]
    identity = hash_of({"backend": backend, "writers": WRITERS, **content})
    info = ModelInfo(name=given.name, role=given.role, path=given.path, backend=backend, identity=identity, notes=notes)
    return Named(given.name, given.role, given.path, backend, file, None, None, None, identity, info)


def _versions(*packages: str) -> dict[str, str | None]:
    """Of what turns weights into answers; None for a package that is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


# ---- all of them -------------------------------------------------------------------------------------------------


def computation(options: Evaluate) -> tuple[str, str]:
    """(device, number format) of the models that transformers runs, such as ("cpu", "float32").

    Raises UsageError for a device that is not there.
    """
    device, dtype = options.device, options.dtype
    if device == "cpu":
        return device, "float32" if dtype == "auto" else dtype
    import torch  # only to ask what there is

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, is_there in there.items() if is_there)
    elif not there[device]:
        raise UsageError(f"--device {device}: there is none here. Leave it out, or take --device cpu.")
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return device, dtype


def prompting_notes(models: Iterable[Named]) -> list[str]:
    """What a reader must know of how the models were prompted: tokenizers and chat templates that differ."""
    local = [model for model in models if model.backend == "hf"]
    notes: list[str] = []
    if len(groups := _alike(local, [model.info.tokenizer for model in local])) > 1:
        notes.append(
            f"different tokenizers: {_against(groups)}. Figures per token (KL, entropy, length) do not compare "
            "between them; bits per byte and scores do."
        )
    with_template = [model for model in local if model.info.chat_template]
    if len(groups := _alike(with_template, [model.info.chat_template for model in with_template])) > 1:
        notes.append(f"different chat templates: {_against(groups)}. Where one is used, each was prompted in its own.")
    without = [model.name for model in local if not model.info.chat_template]
    if without:
        notes.append(f"no chat template: {_and(without)}.")
    return notes


def _alike(models: list[Named], hashes: list[str | None]) -> list[list[str]]:
    """Names of the models with equal hashes, together."""
    groups: dict[str | None, list[str]] = {}
    for model, value in zip(models, hashes, strict=True):
        groups.setdefault(value, []).append(model.name)
    return list(groups.values())


def _against(groups: list[list[str]]) -> str:
    return "; ".join(_and(names) for names in groups)


def _and(names: list[str]) -> str:
    """a, b and c"""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
