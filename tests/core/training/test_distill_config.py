"""A config.yml with `dataset_type: distill` starts train_gold: its options, their origins, and a run of a few steps."""

import json
from pathlib import Path
from typing import Any

import pytest

from core import cli
from core.commands.project_config import read_project
from core.commands.resolve import resolve
from core.commands.train_gold import TrainGold
from core.commands.train_sft import TrainSft
from core.errors import UsageError
from core.training.distill_config import gold_options
from tests.support.training import make_models, write_conversations

CONFIG = """\
project_id: p
dataset_type: distill
data:
  batch_size: 4
  val_split: 0.25
model:
  path: Qwen/Qwen3-8B
  qlora_rank: 8
teacher:
  path: Qwen/Qwen3-32B
trainer:
  num_epochs: 3
  learning_rate: 2e-4
"""


def gold(
    text: str = CONFIG,
    flags: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    dotenv: dict[str, str | None] | None = None,
) -> tuple[TrainGold, dict[str, str]]:
    """From config.yml in the current folder, for 30 rows."""
    Path("config.yml").write_text(text, encoding="utf-8")
    options, origins = resolve(TrainSft, flags or {}, environment, dotenv)
    assert isinstance(options, TrainSft)
    project = read_project(options.config) if options.config else None
    return gold_options(options, origins, project, 30, environment or {}, dotenv or {})


def test_a_teacher_that_begins_with_a_dot_lies_beside_the_file(folder: Path) -> None:
    Path("proj").mkdir()
    text = CONFIG.replace("Qwen/Qwen3-32B", "./teacher").replace("Qwen/Qwen3-8B", "./student")
    Path("proj/config.yml").write_text(text, encoding="utf-8")
    options, origins = resolve(TrainSft, {"config": Path("proj/config.yml")})
    assert isinstance(options, TrainSft)
    made, _ = gold_options(options, origins, read_project(Path("proj/config.yml")), 30, {}, {})
    assert (made.student, made.teacher) == ("./proj/student", "./proj/teacher")


def test_every_key_reaches_train_gold_with_its_line(folder: Path) -> None:
    options, origins = gold()
    wanted = {
        "student": ("Qwen/Qwen3-8B", "config.yml:7"),
        "teacher": ("Qwen/Qwen3-32B", "config.yml:10"),
        "data": ("train.jsonl", "beside config.yml"),
        "batch_size": (4, "config.yml:4"),
        "val_fraction": (0.25, "config.yml:5"),
        "learning_rate": (2e-4, "config.yml:13"),
        "lora": (True, "config.yml:8"),
        "lora_rank": (8, "config.yml:8"),
        "lora_alpha": (16, "config.yml:8"),  # twice the rank, as rnow
        "max_steps": (17, "config.yml:12"),  # 30 rows, of which 7.5 are held out, 3 times, 4 a step: 16.9
        "lmbda": (1.0, "dataset_type: distill"),
        "beta": (1.0, "dataset_type: distill"),
        "output": (Path("runs/sft"), "default"),
    }
    for name, (value, origin) in wanted.items():
        assert (getattr(options, name), origins[name]) == (value, origin), name
    assert options.save_every == options.max_steps  # -1: only at the end


def test_without_a_rank_all_weights_are_trained(folder: Path) -> None:
    options, origins = gold(CONFIG.replace("  qlora_rank: 8\n", ""))
    assert not options.lora
    assert origins["lora"] == "default"


def test_flag_then_environment_then_dotenv_then_file(folder: Path) -> None:
    environment = {"TEACHER_MODEL_ID": "one", "MAX_STEPS": "9", "DATA_PATH": "other.jsonl", "BETA": "0.5"}
    flags = {"learning_rate": 1e-3, "output": Path("run"), "save_step": 5, "max_steps": 7}
    options, origins = gold(flags=flags, environment=environment, dotenv={"LEARNING_RATE": "1e-6", "LMBDA": "0.5"})
    assert (options.learning_rate, origins["learning_rate"]) == (1e-3, "--learning-rate")
    assert (options.max_steps, origins["max_steps"]) == (7, "--max-steps")
    assert (options.teacher, origins["teacher"]) == ("one", "TEACHER_MODEL_ID")
    assert (options.beta, origins["beta"]) == (0.5, "BETA")
    assert (options.lmbda, origins["lmbda"]) == (0.5, "LMBDA in .env")
    assert (options.output, options.save_every) == (Path("run"), 5)
    assert options.data == "train.jsonl"  # the rows that were checked and counted
    assert gold(environment={"MAX_STEPS": "9"})[0].max_steps == 9
    assert gold(environment={"SFT_OUTPUT_DIR": "mine", "OUTPUT_DIR": "theirs"})[0].output == Path("mine")
    assert gold(environment={"OUTPUT_DIR": "theirs"})[0].output == Path("theirs")


def test_a_gguf_teacher_of_the_environment_takes_the_place_of_the_named_one(folder: Path) -> None:
    options, _ = gold(dotenv={"TEACHER_GGUF_PATH": "teacher.gguf"})
    assert (options.backend, options.teacher_gguf) == ("gguf", "teacher.gguf")
    both = {"TEACHER_GGUF_PATH": "teacher.gguf", "TEACHER_BACKEND": "hf"}
    assert gold(environment=both)[0].teacher_name == "Qwen/Qwen3-32B"


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ("rollout:\n  max_turns: 2\n", "config.yml:15: rollout.max_turns"),
        ("rollout:\n  mcp_url: localhost:8931\n", "config.yml:15: rollout.mcp_url"),
    ],
)
def test_distillation_over_turns_with_tools_is_refused(folder: Path, more: str, place: str) -> None:
    with pytest.raises(UsageError, match="cannot distil over turns with tools yet") as raised:
        gold(CONFIG + more)
    assert place in str(raised.value)
    with pytest.raises(UsageError, match=r"config.yml:11: teacher.agentic"):
        gold(CONFIG.replace("trainer:", "  agentic: true\ntrainer:"))


def test_options_without_a_meaning_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--long-rows, --packing: not for dataset_type: distill"):
        gold(flags={"packing": True, "long_rows": "drop"})


def test_a_teacher_must_be_named(folder: Path) -> None:
    flags = {"dataset_type": "distill"}
    text = CONFIG.replace("distill", "sft").replace("teacher:\n  path: Qwen/Qwen3-32B\n", "")
    with pytest.raises(UsageError, match="needs a teacher"):
        gold(text, flags)
    assert gold(text, flags, {"TEACHER_MODEL_ID": "one"})[0].teacher == "one"


def test_the_same_file_trains(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    models = make_models(folder)
    write_conversations(folder / "train.jsonl", 8)
    text = CONFIG.replace("Qwen/Qwen3-8B", str(models.student)).replace("Qwen/Qwen3-32B", str(models.teacher))
    Path("config.yml").write_text(text.replace("num_epochs: 3", "num_epochs: 1"), encoding="utf-8")
    code, _ = cli.run("train_sft", ["-o", "run", "--device", "cpu", "--threads", "1", "--json"])
    captured = capfd.readouterr()
    assert code == 0, captured.err
    assert "dataset_type: distill starts train_gold with" in captured.err
    result = json.loads(captured.out.splitlines()[-1])
    assert result["steps"] == 2  # 8 rows, 2 held out, 4 a step
    record = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    assert record["command"] == "train_gold"
    assert record["origins"]["student"] == "config.yml:7"
    assert (record["options"]["lmbda"], record["options"]["beta"]) == (1.0, 1.0)


def test_a_teacher_at_openrouter_needs_no_other_name(folder: Path) -> None:
    keys = {"TEACHER_BACKEND": "openrouter", "OPENROUTER_MODEL": "a/b", "TEACHER_MODE": "probe"}
    asked, origins = resolve(TrainSft, {"model": "x", "dataset_type": "distill", "data": "rows.jsonl"})
    assert isinstance(asked, TrainSft)
    options, _ = gold_options(asked, origins, None, 30, keys, {})
    assert (options.backend, options.teacher_name, options.teacher_mode) == ("openrouter", "a/b", "probe")
    assert options.lmbda == 1.0
    with pytest.raises(UsageError, match="needs a teacher"):
        gold_options(asked, origins, None, 30, {"TEACHER_BACKEND": "vllm"}, {})


def test_the_teachers_own_text_is_trained_where_that_is_the_mode(folder: Path) -> None:
    options, _ = gold(environment={"TEACHER_BACKEND": "openrouter", "TEACHER_MODE": "teacher-text"})
    assert options.in_mode("teacher-text").lmbda == 0.0
