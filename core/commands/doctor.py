"""Options and result of `doctor`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ExitCode
from .base import Command, Option, Result, flag
from .teacher import Backend
from .train_gold import TeacherMode, TrainGold

TEACHER, STEP, RUN = "Teacher", "A step of train_gold", "Running"


class Doctor(Command):
    """Is everything there, and what can this teacher be asked for?

    With a teacher it is tested as train_gold tests it before the first step: whether it scores given texts, whether two
    scorings agree, what it tells of the tokens that it writes, whether it goes on with a begun answer, which modes of
    train_gold that allows, and what a step of each costs. That takes a few tiny requests, which are paid.

    Without one: what is installed, and the line that installs the rest.
    """

    work: ClassVar[str] = "..doctor:doctor"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/doctor.py",
        "python scripts/doctor.py --teacher",
        "python scripts/doctor.py --teacher-backend openrouter --teacher qwen/qwen-2.5-72b-instruct",
        "python scripts/doctor.py --teacher Qwen/Qwen3-32B --teacher-backend vllm "
        "--teacher-base-url http://127.0.0.1:8000/v1",
        "python scripts/doctor.py --teacher smollm2",
    )

    teacher: Annotated[
        str | None,
        Option(TEACHER, env="TEACHER_MODEL_ID", mcp="Teacher to test; without one: what is installed.", names="model"),
    ] = None
    """The teacher to test: a folder, smollm2, a name on the Hub, or the name that a server has for it. Without a value:
    that of .env."""
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
    """Say what the teacher would be asked, and stop. No request is paid."""

    @model_validator(mode="after")
    def _as_train_gold_has_it(self) -> "Doctor":
        if self.has_teacher:
            try:
                _ = self.training
            except ValidationError as error:
                raise ValueError("\n".join(map(_said, error.errors()))) from None
        return self

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher is to be tested."""
        return any((self.teacher, self.teacher_backend, self.teacher_gguf, self.teacher_base_url))

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

    name: str
    found: str
    fix: str | None = None


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
    """What was found: a teacher, or what is installed."""

    status: Literal["done", "dry_run"] = "done"  # pyright: ignore[reportIncompatibleVariableOverride]
    teacher: TeacherTested | None = None
    parts: list[Found] = Field(default_factory=list[Found])
    would_ask: list[str] = Field(default_factory=list[str])
    """With --dry-run."""

    @property
    def exit_code(self) -> ExitCode:
        """2 for a teacher from which nothing can be learnt."""
        return ExitCode.USAGE if self.teacher is not None and not self.teacher.modes else super().exit_code

    def summary(self) -> str:
        if self.status == "dry_run":
            return "\n".join(["dry run: nothing was asked.", *self.would_ask, "next: the same without --dry-run"])
        if self.teacher is None:
            lines = [f"{part.name:<12}{part.found}" + (f"   {part.fix}" if part.fix else "") for part in self.parts]
            return "\n".join([*lines, "next: --teacher NAME tests a teacher; .env names none (TEACHER_BACKEND, ...)"])
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
