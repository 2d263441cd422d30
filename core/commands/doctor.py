"""Options and result of `doctor`."""

import textwrap
from collections.abc import Mapping
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import ExitCode
from .base import Command, Option, Result, flag
from .teacher import Backend
from .train_gold import TeacherMode, TrainGold

LOOK, TEACHER, STEP, RUN = "Here", "Teacher", "A step of train_gold", "Running"
WIDTH = 100
"""Most columns of what is printed, but for commands, which are not broken."""

EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hub": ("data sets and models of the Hub, parquet", ("datasets", "huggingface_hub", "pyarrow")),
    "train": (
        "training, and teachers that run here",
        (
            *("torch", "transformers", "trl", "accelerate", "peft", "datasets", "gguf", "matplotlib", "msgspec"),
            "sentencepiece",
        ),
    ),
    "gguf": ("teachers in .gguf files", ("llama-cpp-python",)),
    "eval": (
        "evaluate",
        ("lm-eval", "torch", "transformers", "accelerate", "peft", "gguf", "matplotlib"),
    ),
    "data": ("check_data and generate_synthetic", ("datasketch", "jsonschema", "matplotlib", "py3langid")),
    "browser": ("rollouts with --browser", ("playwright",)),
    "mcp": ("tools of MCP servers, and this bundle's own server", ("mcp",)),
    "nemo": ("generate_synthetic through NVIDIA's Data Designer", ("data-designer",)),
}
"""Extra -> what it is for, and the packages that show whether it is there."""


class Doctor(Command):
    """Is everything there, what is this file, and what can this teacher be asked for?

    Without options: what is installed, the machine, keys by name, programs and servers; then for each of the three
    roads whether it is ready, or what is missing and the line that mends it. With --data: what a file or folder holds,
    what is wrong with it by line, and what to do with it next. With --install: packages for more.

    With a teacher it is tested as train_gold tests it before the first step: whether it scores given texts, whether two
    scorings agree, what it tells of the tokens that it writes, whether it goes on with a begun answer, which modes of
    train_gold that allows, and what a step of each costs. That takes a few tiny requests, which are paid.
    """

    work: ClassVar[str] = "..doctor.doctor:doctor"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/doctor.py",
        "python scripts/doctor.py --data prompts.jsonl",
        "python scripts/doctor.py --install train,eval --dry-run",
        "python scripts/doctor.py --teacher",
        "python scripts/doctor.py --teacher-backend openrouter --teacher qwen/qwen-2.5-72b-instruct",
        "python scripts/doctor.py --teacher Qwen/Qwen3-32B --teacher-backend vllm "
        "--teacher-base-url http://127.0.0.1:8000/v1",
        "python scripts/doctor.py --teacher smollm2",
    )

    data: Annotated[str | None, Option(LOOK, "-d", mcp="File or folder to look at.", names="data")] = Field(
        default=None, min_length=1
    )
    """Say what this file or folder is (prompts, rows to train on, rollouts; hf:owner/name, of which the first 1,000
    rows are read), what is wrong with it, and what comes next. No teacher is tested then."""
    install: Annotated[list[str], Option(LOOK, names="packages")] = Field(default_factory=list[str])
    """Install these extras into the environment of this Python, as train,eval (with --dry-run: only say what that
    takes). There are hub, train, gguf, eval, data, browser, mcp, nemo."""

    teacher: Annotated[
        str | None,
        Option(TEACHER, env="TEACHER_MODEL_ID", mcp="Teacher to test; without one: what is installed.", names="model"),
    ] = None
    """The teacher to test: a folder, smollm2, a name on the Hub, or the name that a server has for it. Without a value:
    that of .env."""
    test_teacher: Annotated[bool, Option(TEACHER)] = False
    """Test the teacher that .env or the environment names: what --teacher without a value means. It is not tested
    unless it is asked for, because that is paid."""
    teacher_backend: Annotated[Backend | None, Option(TEACHER, env="TEACHER_BACKEND", mcp=True)] = None
    """Who runs it, as for train_gold."""
    teacher_gguf: Annotated[str | None, Option(TEACHER, env=("TEACHER_GGUF_PATH", "TEACHER_GGUF"), names="model")] = (
        None
    )
    """gguf: a .gguf file, a folder of them, or owner/repo on the Hub."""
    openrouter_model: Annotated[str | None, Option(TEACHER, env="OPENROUTER_MODEL", names="model")] = None
    """openrouter: the model there."""
    teacher_base_url: Annotated[
        str | None,
        Option(TEACHER, env="TEACHER_BASE_URL", mcp="Its server, up to and with /v1.", hidden=True, names="url"),
    ] = None
    """The server, up to and with /v1 (default: the usual address of the --teacher-backend)."""
    teacher_api_key_env: Annotated[str | None, Option(TEACHER, hidden=True, names="key")] = None
    """Name of the variable that holds the key."""
    teacher_tokenizer: Annotated[
        str | None,
        Option(TEACHER, env="TEACHER_TOKENIZER", names="model"),
    ] = None
    """The teacher's tokenizer, where --teacher is a name that only the server knows."""
    teacher_extra_body: Annotated[dict[str, Any] | None, Option(TEACHER)] = None
    """JSON object merged into every request."""
    teacher_top_k: Annotated[int, Option(TEACHER, env="TEACHER_TOP_K")] = Field(default=64, ge=0, le=1024)
    """How many tokens a scoring server shall tell of each position."""
    teacher_price: Annotated[str | None, Option(TEACHER)] = None
    """USD per million prompt/completion tokens, as 3/15, where the provider lists no price."""

    batch_size: Annotated[int, Option(STEP, "-b")] = Field(default=8, ge=1)
    """Samples per step."""
    max_new_tokens: Annotated[int, Option(STEP, env="MAX_NEW_TOKENS")] = Field(default=128, ge=1)
    """Longest answer, in tokens; all are taken to be that long."""
    prompt_tokens: Annotated[int, Option(STEP)] = Field(default=200, ge=1)
    """Mean length of a prompt."""

    dry_run: Annotated[bool, Option(RUN, mcp="Only say what would be asked.")] = False
    """Say what the teacher would be asked, or what would be installed, and stop. No request is paid."""

    @field_validator("install", mode="before")
    @classmethod
    def _extras_by_name(cls, value: Any) -> Any:
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
            return value
        names = list(dict.fromkeys(name.strip() for each in given for name in each.split(",")))
        for name in names:
            if name not in EXTRAS:
                raise ValueError(f"{name or 'nothing'} is no extra. There are {', '.join(EXTRAS)}")
        return names

    @model_validator(mode="after")
    def _as_train_gold_has_it(self) -> "Doctor":
        if self.data is not None and self.install:
            raise ValueError("--data and --install are two different things: one at a time")
        if self.has_teacher and not self.looks_elsewhere:
            try:
                _ = self.training
            except ValidationError as error:
                raise ValueError("\n".join(map(_said, error.errors()))) from None
        return self

    @classmethod
    def unmeant(cls, origins: Mapping[str, str]) -> list[str]:
        """A teacher that only the environment names: it is tested, and paid, when some option speaks of a teacher."""
        from_environment = {
            name
            for name, origin in origins.items()
            if origin in {place for key in cls.option(name).env_keys for place in (key, f"{key} in .env")}
        }
        asking = {name for name in origins.keys() - from_environment if cls.option(name).group != LOOK}
        return [] if asking else [name for name in from_environment if cls.option(name).group == TEACHER]

    @property
    def looks_elsewhere(self) -> bool:
        """Whether it is about data or packages, so that a teacher in .env is not meant."""
        return self.data is not None or bool(self.install)

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher is to be tested."""
        return not self.looks_elsewhere and any(
            (self.teacher, self.teacher_backend, self.teacher_gguf, self.teacher_base_url)
        )

    @property
    def training(self) -> TrainGold:
        """The options of a run with this teacher. Raises ValidationError as that has it."""
        shared = self.model_fields_set & set(TrainGold.model_fields)
        given = {name: getattr(self, name) for name in shared if getattr(self, name) is not None}
        return TrainGold.model_validate({"data": "-", "output": "-", **given})


def _said(problem: Any) -> str:
    """A mistake as `resolve` words it."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{flag(str(problem['loc'][0]))}: {message}" if problem["loc"] else message


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Found(_Part):
    """Something that the commands may need. fix: what to do where it is missing; None where nothing need be done."""

    group: Literal["Here", "Extras", "Machine", "Keys", "Programs", "Servers"]
    name: str
    found: str
    fix: str | None = None


class Lack(_Part):
    """Something that a road lacks. fix: what mends it; None where nothing on this machine does."""

    what: str
    fix: str | None


class Road(_Part):
    """One way to distil. has: what it would use.   missing: without this it cannot be gone.   could: it can, but."""

    name: Literal["off-policy", "rollout-distill", "on-policy"]
    has: list[str]
    missing: list[Lack]
    could: list[Lack]

    @property
    def verdict(self) -> str:
        return "not ready" if self.missing else "ready"


class DataSeen(_Part):
    """What a file or folder holds.

    kind: rows are prompts with answers.   count: usable ones.   bad: unusable ones, of which `problems` names the first
    five by line.   tokens: at four bytes each.   next: the command that comes next, by road.
    """

    path: str
    kind: Literal["prompts", "rows", "prompts and rows", "rollouts"]
    count: int
    with_answers: int
    with_tool_calls: int
    bad: int
    problems: list[str]
    notes: list[str]
    prompt_tokens_estimate: int
    answer_tokens_estimate: int
    next: dict[str, str]


class TeacherTested(_Part):
    """What was seen of a teacher.

    modes: of train_gold, those that work, best first.   reasons: why each other one does not.   seen: everything, as
    numbers.   cost_per_step_usd: by mode; None where no price is known.   lines: the same for people.
    """

    model: str
    backend: str
    modes: list[TeacherMode]
    reasons: dict[TeacherMode, str]
    seen: dict[str, Any]
    requests_per_step: dict[TeacherMode, float]
    cost_per_step_usd: dict[TeacherMode, float | None]
    lines: list[str]


class Diagnosis(Result):
    """What was found: a teacher, a file, or what is here."""

    status: Literal["done", "some_failed", "dry_run"] = "done"  # pyright: ignore[reportIncompatibleVariableOverride]
    teacher: TeacherTested | None = None
    parts: list[Found] = Field(default_factory=list[Found])
    roads: list[Road] = Field(default_factory=list[Road])
    data: DataSeen | None = None
    installation: dict[str, Any] | None = None
    """With --install: where, which packages, and about how large."""
    would_ask: list[str] = Field(default_factory=list[str])
    """With --dry-run."""

    @property
    def exit_code(self) -> ExitCode:
        """2 for a teacher from which nothing can be learnt."""
        return ExitCode.USAGE if self.teacher is not None and not self.teacher.modes else super().exit_code

    def summary(self) -> str:
        if self.installation is not None:
            if self.status == "dry_run":
                return "dry run: nothing was installed.\nnext: the same without --dry-run"
            done = "installed." if self.installation["installed"] else "nothing had to be installed."
            return f"{done}\nnext: python scripts/doctor.py"
        if self.status == "dry_run":
            return "\n".join(["dry run: nothing was asked.", *self.would_ask, "next: the same without --dry-run"])
        if self.data is not None:
            return "\n".join(_of_data(self.data))
        if self.teacher is None:
            lines = [*_of_parts(self.parts), *_of_roads(self.roads)]
            return "\n".join([*lines, f"next: {self._next}"])
        lines = list(self.teacher.lines)
        if not self.teacher.modes:
            lines.append("next: this teacher can train nothing; the reasons above say what would have to change")
        elif self.teacher.modes[0] == "score":
            lines.append("next: python scripts/train_gold.py with the same options")
        else:
            lines.append(f"next: python scripts/train_gold.py with the same options and --teacher-mode {self._best}")
        return "\n".join(lines)

    @property
    def _best(self) -> str:
        return self.teacher.modes[0] if self.teacher is not None else ""

    @property
    def _next(self) -> str:
        if all(road.missing for road in self.roads):
            return "the lines above, then python scripts/doctor.py again"
        return "python scripts/doctor.py with --data FILE, or with --teacher NAME"


def _of_parts(parts: list[Found]) -> list[str]:
    """A heading for each group, a line for each part, and below it what mends it."""
    lines: list[str] = []
    for group, members in groupby(parts, key=lambda part: part.group):
        lines.append(group)
        for part in members:
            lines += _wrapped(f"  {part.name:<14}", part.found)
            if part.fix is not None:
                lines.append(f"{'':<16}-> {part.fix}")
    return lines


def _of_roads(roads: list[Road]) -> list[str]:
    lines = ["Roads"]
    for road in roads:
        said: set[str] = set()
        lines += _wrapped(f"  {road.name:<17}", "; ".join([road.verdict, *road.has]))
        for lacks, sign in ((road.missing, "missing"), (road.could, "could be better")):
            for lack in lacks:
                lines += _wrapped(f"{'':<19}", f"{sign}: {lack.what}")
                if lack.fix is not None and lack.fix not in said:
                    said.add(lack.fix)
                    lines.append(f"{'':<19}-> {lack.fix}")
    return lines


def _of_data(data: DataSeen) -> list[str]:
    what = {
        "prompts": "prompts, none with an answer",
        "rows": "prompts, all with an answer",
        "prompts and rows": "prompts, some with an answer",
        "rollouts": "rollouts",
    }[data.kind]
    lines = [f"{data.path}: {what}", f"  usable      {data.count:,}"]
    if data.bad:
        lines.append(f"  unusable    {data.bad:,}")
        lines += [line for each in data.problems for line in _wrapped("    ", each)]
        if data.bad > len(data.problems):
            lines.append(f"    ... and {data.bad - len(data.problems):,} more")
    if data.kind == "prompts and rows":
        lines.append(f"  answers     {data.with_answers:,} have one, {data.count - data.with_answers:,} have none")
    if data.with_tool_calls:
        lines.append(f"  tools       {data.with_tool_calls:,} with tool calls")
    tokens = f"about {data.prompt_tokens_estimate:,} in prompts"
    if data.answer_tokens_estimate:
        tokens += f", {data.answer_tokens_estimate:,} in answers"
    lines.append(f"  tokens      {tokens} (4 bytes each)")
    lines += [line for note in data.notes for line in _wrapped("  note        ", note)]
    return [*lines, "next:", *(f"  {road:<17}{command}" for road, command in data.next.items())]


def _wrapped(before: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - len(before), break_on_hyphens=False, break_long_words=False) or [""]
    return [before + lines[0], *(" " * len(before) + line for line in lines[1:])]
