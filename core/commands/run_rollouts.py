"""Options and result of `run_rollouts`."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..errors import InputError
from .base import Option, Result
from .project import read_section
from .teacher import LOCAL, MONEY, RUN, SAMPLING, TEACHER, TeacherOptions

PROMPTS, TOOLS, LOOP, CHECK = "Prompts and output", "Tools", "The rollout", "Success"

FROM_CONFIG = {
    "max_turns": "max_turns",
    "max_context_window": "max_context",
    "termination_policy": "termination_policy",
    "reasoning_mode": "reasoning",
    "mcp_url": "mcp_url",
    "tool_timeout": "tool_timeout",
    "reward_timeout": "reward_timeout",
    "rollout_timeout": "rollout_timeout",
    "max_tool_response": "max_tool_response",
}
"""Key of config.yml's `rollout:` section -> option. (`include_thinking` is none: thinking is always recorded.)"""


class RunRollouts(TeacherOptions):
    """Let a teacher work on prompts with tools, and keep every conversation as a file.

    Tools come from MCP servers, a Python file, an embedded browser, or a container that the prompt names. Each rollout
    is one file in --output; the same command again runs only what is missing or ended in an error.
    convert_rollouts turns the folder into train.jsonl.
    """

    work: ClassVar[str] = "..generation.rollouts:run_rollouts"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/run_rollouts.py -n 10 --model gpt-5.2 --browser --dry-run",
        "python scripts/run_rollouts.py -e 0-99 --model openai/gpt-5.2 --mcp-url localhost:8931 --max-cost 5",
        "python scripts/run_rollouts.py --all --model openai/gpt-5.2 --tools tools.py --samples 2",
        "python scripts/run_rollouts.py -n 2 --model my-model --base-url http://localhost:8000/v1 --browser",
    )
    headings: ClassVar[tuple[str, ...]] = (PROMPTS, TEACHER, TOOLS, LOOP, CHECK, SAMPLING, RUN, MONEY, LOCAL)

    dir: Annotated[Path, Option(PROMPTS, "-d")] = Path(".")
    """Project folder: all relative paths, config.yml, .env and Dockerfiles are taken from there."""
    input: Annotated[
        str | None, Option(PROMPTS, "-i", mcp="Prompts (default: train.prompts.jsonl, else train.jsonl).", names="data")
    ] = None
    """Prompts, in any form that generate_teacher_data reads (default: train.prompts.jsonl where it is there, else
    config.yml's train_file, else train.jsonl)."""
    output: Annotated[Path, Option(PROMPTS, "-o", mcp=True)] = Path("rollouts")
    """Folder for the rollouts, one file each."""
    num_rollouts: Annotated[int | None, Option(PROMPTS, "-n", mcp="Only the first N prompts (default: 1).")] = Field(
        default=None, ge=1
    )
    """The first N prompts; above their number, all (default: 1)."""
    random: Annotated[bool, Option(PROMPTS)] = False
    """With -n: N prompts at random, none of them twice (--seed repeats the choice)."""
    entry: Annotated[list[str] | None, Option(PROMPTS, "-e")] = None
    """These prompts, counted from 0: 0,1,2 or 0-99, also repeated. What is past the end is skipped."""
    all: Annotated[bool, Option(PROMPTS)] = False
    """All prompts."""
    prompt_key: Annotated[str, Option(PROMPTS)] = "prompt"
    """Column or key that holds the prompt."""

    model: Annotated[str, Option(TEACHER, "-m", mcp="Teacher that can call tools.", names="model")] = "gpt-5-nano"
    """Teacher, which must know how to call tools: a name at the provider, a model folder, a .gguf file, or
    owner/repo:QUANT (GGUF on the Hub)."""
    reasoning: Annotated[
        Literal["disabled", "none", "minimal", "low", "medium", "high", "xhigh"] | None, Option(TEACHER)
    ] = None
    """How much an API teacher is to think before each turn."""

    mcp_url: Annotated[
        list[str] | None, Option(TOOLS, mcp="Addresses of MCP servers whose tools to give.", hidden=True, names="url")
    ] = None
    """MCP server by address: localhost:8931, or a URL; may be repeated. Beside a prompt's container, an address on this
    machine means a port inside the container."""
    mcp_command: Annotated[list[str] | None, Option(TOOLS, names="program")] = None
    """MCP server by the command that starts it ("npx -y @playwright/mcp --headless --isolated"); may be repeated."""
    mcp_servers: Annotated[Path | None, Option(TOOLS, names="program")] = None
    """JSON file with `mcpServers`, as coding assistants have it."""
    mcp_shared: Annotated[bool, Option(TOOLS)] = False
    """One session with each MCP server for all rollouts, for servers that keep no state (default: one per rollout)."""
    tools: Annotated[
        Path | None, Option(TOOLS, mcp="Python file whose functions are tools; it is run.", names="code")
    ] = None
    """Python file whose functions (type hints, docstrings) are tools. It runs here, with your rights."""
    browser: Annotated[bool, Option(TOOLS, mcp="Give a real browser.")] = False
    """A real browser in this process, with a context of its own for every rollout. Prompts' containers stay off."""
    browser_path: Annotated[Path | None, Option(TOOLS, names="program")] = None
    """The Chromium or Chrome to use (default: Playwright's, else the one installed)."""
    allow_tools: Annotated[list[str] | None, Option(TOOLS)] = None
    """Only these tools, as names or patterns (browser_*), comma-separated; also allows those denied by default."""
    deny_tools: Annotated[list[str] | None, Option(TOOLS)] = None
    """Not these tools. Running code in a page and uploading files are always denied unless allowed by name."""
    allow_hosts: Annotated[list[str] | None, Option(TOOLS, names="host")] = None
    """With --browser: only these hosts (example.org, *.example.org, localhost:8000), comma-separated (default: every
    public one, none of the local network)."""
    docker: Annotated[bool, Option(TOOLS)] = True
    """Start the containers that prompts name."""
    docker_per_rollout: Annotated[bool, Option(TOOLS)] = False
    """A container for every rollout instead of one for all."""

    max_turns: Annotated[int, Option(LOOP)] = Field(default=10, ge=1)
    """Most turns of the teacher in a rollout."""
    termination_policy: Annotated[Literal["last_tool", "max_turns"], Option(LOOP)] = "last_tool"
    """last_tool: a turn without a tool call ends the rollout. max_turns: the teacher is told to go on until all turns
    are used."""
    max_context: Annotated[int, Option(LOOP)] = Field(default=32768, ge=256)
    """Most tokens of a conversation; the oldest tool results are shortened to keep it."""
    max_tool_response: Annotated[int | None, Option(LOOP)] = Field(default=8000, ge=1)
    """Most tokens of one tool result (about 4 characters each); the rest is cut, with a marker."""
    tool_timeout: Annotated[float, Option(LOOP)] = Field(default=60, gt=0, le=86_400)
    """Seconds for one tool call."""
    rollout_timeout: Annotated[float, Option(LOOP)] = Field(default=3600, gt=0, le=7 * 86_400)
    """Seconds for one rollout, waiting for rate limits not counted."""

    check: Annotated[
        Literal["exact", "contains", "number", "none"],
        Option(CHECK),
    ] = "contains"
    """How the final answer is compared with the prompt's metadata.expected_answer."""
    rewards: Annotated[Path | None, Option(CHECK, names="code")] = None
    """Python file of reward functions, f(args, messages) -> number, used instead of --check. It runs here."""
    reward_timeout: Annotated[float, Option(CHECK)] = Field(default=60, gt=0, le=86_400)
    """Seconds for one reward function."""

    max_tokens: Annotated[int, Option(SAMPLING)] = Field(default=4096, ge=1, le=10_000_000)
    """Longest turn of the teacher, in tokens; reasoning counts."""
    temperature: Annotated[float, Option(SAMPLING, "-t")] = Field(default=1.0, ge=0, le=2)
    """Sampling temperature, 0 to 2."""
    samples: Annotated[int, Option(SAMPLING)] = Field(default=1, ge=1)
    """Rollouts per prompt; raising it later adds the missing ones."""

    concurrency: Annotated[int, Option(RUN, "-c")] = Field(default=5, ge=1)
    """Most rollouts at work at a time."""
    dry_run: Annotated[bool, Option(RUN, mcp="Only open the tools, say what would be run and what it costs.")] = False
    """Open the tools, say what would be run and what it costs, and stop. No request is paid, nothing is written."""
    retries: Annotated[int, Option(RUN)] = Field(default=5, ge=0)
    """Further attempts for a turn after timeouts, 5xx and broken answers (rate limits do not count)."""

    @field_validator("mcp_url", "mcp_command", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("allow_tools", "deny_tools", "allow_hosts", "entry", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        parts = [value] if isinstance(value, str | int) else value
        if not isinstance(parts, list):
            return value
        return [word.strip() for part in parts for word in str(part).split(",") if word.strip()]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    @field_validator("mcp_url")
    @classmethod
    def _without_secrets(cls, value: list[str] | None) -> list[str] | None:
        if any(character in url for url in value or () for character in "@?#"):
            raise ValueError(
                "a URL with a user, a password or a query in it, which others can read in the list of processes: put "
                'it into a file for --mcp-servers, {"mcpServers": {"NAME": {"url": ..., "headers": {...}}}}, with '
                "${VAR} for what is secret"
            )
        return value

    @field_validator("entry")
    @classmethod
    def _indexes(cls, value: list[str] | None) -> list[str] | None:
        for word in value or ():
            found = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
            if not found or (found[2] and int(found[2]) < int(found[1])):
                raise ValueError(f'"{word}" is neither an index such as 7 nor a range such as 0-99')
        return value

    @model_validator(mode="after")
    def _one_way_to_select(self) -> "RunRollouts":
        ways = [flag for flag, given in (("-n", self.num_rollouts), ("-e", self.entry), ("--all", self.all)) if given]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} exclude one another: give one of them")
        if self.random and not self.num_rollouts:
            raise ValueError("--random needs -n: how many")
        return self

    @property
    def ranges(self) -> list[range]:
        """What --entry asks for."""
        bounds = [word.partition("-") for word in self.entry or ()]
        return [range(int(first), int(last or first) + 1) for first, _, last in bounds]

    @classmethod
    def from_project(cls, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """What the project's config.yml says in its `rollout:` section and as `data.train_file`."""
        config = Path(given.get("dir") or ".") / "config.yml"
        if not config.is_file():
            return {}, {}
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for key, value, line in read_section(config, "rollout"):
            if key == "include_thinking":
                continue
            if key not in FROM_CONFIG:
                raise InputError(config, line, f'unknown key "{key}" in rollout:. Known: {", ".join(FROM_CONFIG)}.')
            if value is not None:
                values[FROM_CONFIG[key]], origins[FROM_CONFIG[key]] = value, f"{config}:{line}"
        return values, origins


class RolloutPlan(Result):
    """What `--dry-run` found. Token and money figures are estimates; `worst_case_usd` bounds them at the list price."""

    status: Literal["dry_run"] = "dry_run"  # pyright: ignore[reportIncompatibleVariableOverride]
    prompts: int
    bad_rows: int
    without_expected_answer: int = 0
    """Prompts with nothing to compare a final answer with, unless --rewards or --check none was given."""
    unused_answer_keys: dict[str, int] = Field(default_factory=dict[str, int])
    """Keys of theirs that look like an answer, which is not compared."""
    rollouts_wanted: int
    rollouts_there: int
    rollouts_to_run: int
    tools: list[str]
    prompt_tokens_estimate: int
    """Tokens of the first turn of all rollouts, tool schemas included."""
    worst_case_tokens: tuple[int, int]
    """Prompt and completion tokens when every rollout uses all its turns, tokens and context."""
    price_usd_per_million: tuple[float, float] | None
    worst_case_usd: float | None
    expected_usd: float | None = None
    """Cost when new rollouts are like those in the output; None when there are none yet."""
    model: str
    backend: str

    def summary(self) -> str:
        tokens_in, tokens_out = self.worst_case_tokens
        shown = ", ".join(self.tools[:8]) + (f", and {len(self.tools) - 8} more" if len(self.tools) > 8 else "")
        lines = [
            f"dry run: nothing was asked or paid. Teacher {self.model} through {self.backend}.",
            f"  prompts     {self.prompts:,}" + (f", and {self.bad_rows:,} unusable rows" if self.bad_rows else ""),
            *self._answers(),
            f"  rollouts    {self.rollouts_wanted:,} wanted, {self.rollouts_there:,} there already, "
            f"{self.rollouts_to_run:,} to run",
            f"  tools       {len(self.tools)}" + (f": {shown}" if self.tools else ""),
            f"  first turns about {self.prompt_tokens_estimate:,} tokens in (4 characters each, tool schemas included)",
            f"  at most     {tokens_in:,} tokens in, {tokens_out:,} out, when every rollout uses all turns and context",
        ]
        if self.price_usd_per_million:
            prompt, completion = self.price_usd_per_million
            lines.append(f"  price       {prompt:g} / {completion:g} USD per million prompt / completion tokens")
        if self.worst_case_usd is None:
            lines.append("  cost        unknown: no price is listed for this model; see --price")
        else:
            lines.append(f"  cost        at most {self.worst_case_usd:.2f} USD")
        if self.expected_usd is not None:
            lines.append(f"              about {self.expected_usd:.2f} USD, when they are like those there already")
        bound = "" if self.worst_case_usd == 0 else " (add --max-cost to bound the spending)"
        lines.append(f"next: the same command without --dry-run{bound}")
        return "\n".join(lines)

    def _answers(self) -> list[str]:
        """What to know about prompts without an expected answer."""
        if not self.without_expected_answer:
            return []
        lines = [
            f"  answers     {self.without_expected_answer:,} of {self.prompts:,} prompts have no expected_answer: any "
            "final answer counts as a success"
        ]
        for key, count in self.unused_answer_keys.items():
            lines.append(f'              {count:,} have "{key}", which is not compared: name it expected_answer')
        return lines


class RolledOut(Result):
    """What a run added to its folder."""

    output: Path
    model: str
    backend: str
    rollouts: int
    """Rollouts that ended in this run, errors included."""
    wanted: int
    complete: int
    """Rollouts of the wanted ones that are there now and did not end in an error."""
    successes: int
    """Among the wanted rollouts that are there now, those of earlier runs included."""
    judged: int
    """How many of these ended by the model's doing: an answer, a limit of turns or tokens, an error of its own. Errors
    of providers, time limits and tools that went away are no part of it."""
    own_faults: int
    """How many of the judged ended in an error of the model's own, such as broken tool calls: no successes."""
    success_rate: float | None
    """successes / judged; None when nothing is there to judge."""
    success_interval: tuple[float, float] | None
    """Wilson's 95 % interval of it."""
    unchecked: int
    """Rollouts whose prompt has no expected answer: any final answer counts as success."""
    outcomes: dict[str, int]
    """final_answer, max_turns, length, error."""
    failures: dict[str, int]
    """Why rollouts ended in an error."""
    bad_rows: int
    remaining: int
    prompts_left: int
    """Prompts of the input beyond those of -n."""
    turns: dict[str, float]
    """Smallest, mean and largest number of turns."""
    tools_used: dict[str, int]
    tool_errors: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    maybe_billed: int
    maybe_billed_usd: float
    seconds: float
    advice: list[str]

    def summary(self) -> str:
        unknown = "unknown (the teacher states none)" if self.rollouts else "unknown"
        cost = unknown if self.cost_usd is None else f"{self.cost_usd:.4f} USD"
        if self.maybe_billed:
            bound = f", for up to {self.maybe_billed_usd:.4f} USD" if self.maybe_billed_usd else ""
            cost += f"; {self.maybe_billed:,} attempts without an answer may be billed too{bound}"
        lines = [f"{self.output}/: {self.rollouts:,} rollouts in {self.seconds:.1f} s by {self.model}"]
        lines.append(f"  complete    {self.complete:,} of {self.wanted:,}")
        if self.success_rate is not None and self.success_interval:
            low, high = self.success_interval
            lines.append(
                f"  success     {self.successes:,} of {self.judged:,} "
                f"({self.success_rate:.0%}, 95 % interval {low:.0%} to {high:.0%})"
            )
            if self.own_faults:
                lines.append(f"              {self.own_faults:,} ended in an error of the model's own: no success")
            if left_out := self.wanted - self.judged:
                lines.append(f"              {left_out:,} are missing or ended in another error: not counted")
            if self.unchecked:
                lines.append(f"              {self.unchecked:,} have no expected answer: any final answer counts")
        if self.outcomes:
            lines.append("  ended       " + ", ".join(f"{name} {count:,}" for name, count in self.outcomes.items()))
        if self.turns:
            lines.append("  turns       " + ", ".join(f"{name} {value:g}" for name, value in self.turns.items()))
        if self.tools_used:
            lines.append("  tools       " + ", ".join(f"{name} {count:,}" for name, count in self.tools_used.items()))
        if self.tool_errors:
            lines.append("  tool errors " + ", ".join(f"{name} {count:,}" for name, count in self.tool_errors.items()))
        lines += [f"  tokens      {self.prompt_tokens:,} in, {self.completion_tokens:,} out", f"  cost        {cost}"]
        lines += ["  " + line for line in self.advice]
        if self.stopped_because:
            lines.append(f"stopped: {self.stopped_because}")
        elif self.status == "interrupted":
            lines.append("interrupted: the same command goes on where it stopped")
        elif self.remaining:
            lines.append("next: the same command again runs what is missing or ended in an error")
        elif self.prompts_left and self.output.name == "rollouts":
            lines += [
                f"next: read them: python scripts/show.py {shlex.quote(str(self.output))}",
                f"  then the same command with --all --dry-run says what the other {self.prompts_left:,} prompts cost",
            ]
        else:
            lines.append(f"next: {self.next_step}")
        return "\n".join(lines)

    @property
    def next_step(self) -> str:
        """Rows for training; of a folder with a name of its own, which may be an evaluation, not in train.jsonl."""
        folder = shlex.quote(str(self.output))
        if self.output.name != "rollouts":
            rows = shlex.quote(f"{self.output}.jsonl")
            convert = f"python scripts/convert_rollouts.py -d {folder} -o {rows}"
            return f"python scripts/show.py {folder}     (rows, where no prompt is held back: {convert})"
        there = f" -o {shlex.quote(str(self.output.parent / 'train.jsonl'))}" if self.output.parent != Path() else ""
        return f"python scripts/convert_rollouts.py -d {folder}{there}"
