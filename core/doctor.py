"""`doctor`: what a teacher can be asked for, and what is installed."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from .commands.doctor import Diagnosis, Doctor, Found, TeacherTested
from .commands.train_gold import TrainGold
from .data.environment import credential
from .data.run import Run
from .errors import MissingDependency, UsageError
from .teachers.providers import PROVIDERS

EXTRAS = {
    "hub": ("datasets", "huggingface_hub", "pyarrow"),
    "train": ("torch", "transformers", "accelerate", "peft", "trl", "matplotlib"),
    "gguf": ("llama-cpp-python",),
    "eval": ("lm-eval",),
    "browser": ("playwright",),
    "mcp": ("mcp",),
}
"""Extra -> the packages that show whether it is there."""
FREE_GB = 20
"""Less free disk than this is worth a word: models are large."""


def doctor(options: Doctor, run: Run) -> Diagnosis:
    """Test the teacher that is named, else look at the installation. Raises UsageError for a teacher that cannot be
    reached."""
    if not options.has_teacher:
        return Diagnosis(parts=[*python(), *extras(), *devices(), *keys(), disk()])
    training = options.training
    if training.idle:
        run.progress.note(training.idle)
    if options.dry_run:
        return Diagnosis(status="dry_run", would_ask=would_ask(training))
    try:
        return Diagnosis(teacher=local(training, run) if training.is_local else server(options, training, run))
    except ModuleNotFoundError as missing:
        raise MissingDependency(str(missing.name), "testing a teacher", "pip install -e '.[train]'") from None


# ---- a teacher -----------------------------------------------------------------------------------------------------


def would_ask(training: TrainGold) -> list[str]:
    """What the test takes."""
    if training.is_local:
        return [f"  {training.teacher_name} would be loaded here and score a known text three times; nothing is paid"]
    scores = PROVIDERS[training.backend].scoring is not None
    asked = ["a greeting"]
    if scores:
        asked.append("a known text of about 150 tokens scored six times, once between two others")
    asked += ["the first token of an answer five times", "the next token of ten questions", "two grades"]
    return [f"  {training.teacher_name} ({training.backend}) would be asked for:", *(f"    {each}" for each in asked)]


def local(training: TrainGold, run: Run) -> TeacherTested:
    """A model in this process scores, or it cannot be had at all. Raises UsageError."""
    import torch

    from .teachers.scorer import open_scorer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    scorer = open_scorer(training.teacher_options(device, "sdpa"), top_k=training.teacher_top_k)
    try:
        scorer.prepare(run.progress.note)
        noise = scorer.self_test()
    finally:
        scorer.close()
    told = {"full": "whole distributions", "top_k": f"{training.teacher_top_k} tokens of each position"}
    lines = [
        ("teacher", f"{scorer.model} ({scorer.backend}), here on {device}"),
        ("scoring", f"given texts, {told.get(scorer.ability, 'their own tokens')} told"),
        ("noise", str(noise)),
        ("modes", "score"),
        ("cost", "nothing"),
    ]
    return TeacherTested(
        model=scorer.model,
        backend=scorer.backend,
        modes=["score"],
        reasons={},
        seen={"ability": scorer.ability, "noise": vars(noise)},
        requests_per_step={"score": 0.0},
        cost_per_step_usd={"score": 0.0},
        lines=aligned(lines),
    )


def server(options: Doctor, training: TrainGold, run: Run) -> TeacherTested:
    """A server is asked. Raises UsageError where it cannot be reached."""
    from .teachers.ability import EVERYTHING, Load, cost_of_step, examine
    from .teachers.remote import open_remote

    remote = open_remote(training.teacher_options("cpu", "sdpa"), run.stop, cache=None, note=run.progress.note)
    try:
        ability = examine(
            remote,
            tokenizer=training.teacher_tokenizer,
            top_k=training.teacher_top_k,
            asked=EVERYTHING,
            note=run.progress.note,
        )
    finally:
        remote.close()
    load = Load(options.prompt_tokens, training.max_new_tokens, prompts=1)
    costs = [cost_of_step(mode, training, load, ability.price) for mode in ability.modes]
    return TeacherTested(
        model=ability.model,
        backend=ability.backend,
        modes=list(ability.modes),
        reasons=dict(ability.reasons),
        seen=ability.json,
        requests_per_step={cost.mode: cost.requests for cost in costs},
        cost_per_step_usd={cost.mode: cost.usd for cost in costs},
        lines=[*ability.lines(), *aligned([(f"cost of {cost.mode}", cost.of_a_step) for cost in costs])],
    )


# ---- what is installed ---------------------------------------------------------------------------------------------


def python() -> list[Found]:
    return [Found(name="python", found=f"{platform.python_version()} on {platform.system()} {platform.machine()}")]


def extras() -> list[Found]:
    """The optional packages, and the line that installs what is missing."""
    found: list[Found] = []
    for extra, packages in EXTRAS.items():
        versions: list[str] = []
        missing: list[str] = []
        for package in packages:
            try:
                versions.append(f"{package} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                missing.append(package)
        there = ", ".join([*versions, *(f"{name} missing" for name in missing)])
        fix = f"pip install -c constraints.txt -e '.[{extra}]'" if missing else None
        found.append(Found(name=extra, found=there, fix=fix))
    return found


def devices() -> list[Found]:
    """Where torch would train."""
    try:
        import torch
    except ModuleNotFoundError:
        return []
    if torch.cuda.is_available():
        each = (torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count()))
        return [Found(name="device", found=", ".join(f"{one.name}, {one.total_memory / 1e9:.0f} GB" for one in each))]
    kind = "Apple's MPS" if torch.backends.mps.is_available() else "CPU"
    return [Found(name="device", found=f"{kind}, {os.cpu_count()} cores")]


def keys() -> list[Found]:
    """The keys that are there, by name alone."""
    names = dict.fromkeys([*(provider.key for provider in PROVIDERS.values()), "HF_TOKEN"])
    there: list[str] = []
    for name in names:
        try:
            if credential(name):
                there.append(name)
        except UsageError as error:
            there.append(str(error))
    return [Found(name="keys", found=", ".join(there) or "none: local teachers need none, others one line in .env")]


def disk() -> Found:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    return Found(
        name="disk",
        found=f"{free_gb:.0f} GB free here",
        fix=None if free_gb >= FREE_GB else "models and checkpoints take many GB: make room, or name another --output",
    )


def aligned(lines: list[tuple[str, str]]) -> list[str]:
    return [f"{name:<22}{text}" for name, text in lines]
