"""config.yml: its options for train_sft, all that is wrong with it at once, and `rnow`'s own reading beside ours."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.commands.project_config import Project, read_project
from core.commands.project_options import beside, from_config
from core.commands.project_schema import NO_MODEL, RANK_CAPS
from core.commands.resolve import resolve
from core.commands.train_sft import TrainSft
from core.errors import InputError, UsageError
from tests.support.rnow import rnow_models

SKILL = """\
project_id: "p-1"
project_name: "support"
dataset_type: sft

data:
  train_file: train.jsonl
  batch_size: 4
  val_split: 0.1

model:
  path: Qwen/Qwen3-8B
  qlora_rank: 16
  qlora_alpha: 64

trainer:
  num_epochs: 2
  learning_rate: 1e-4
  save_step: 20
"""


def project(folder: Path, text: str) -> Project:
    path = folder / "config.yml"
    path.write_text(text, encoding="utf-8")
    return read_project(path)


def lines(found: Project) -> list[str]:
    """Findings without the folder, and without what the hosted service alone uses."""
    return [str(each).removeprefix(f"{found.path.parent}/") for each in found.findings if each.level != "ignored"]


def test_every_key_becomes_its_option_with_its_line(folder: Path) -> None:
    Path("config.yml").write_text(SKILL, encoding="utf-8")
    options, origins = resolve(TrainSft, {})
    assert isinstance(options, TrainSft)
    wanted = {
        "dataset_type": ("sft", 3),
        "project_name": ("support", 2),
        "data": ("train.jsonl", 6),
        "batch_size": (4, 7),
        "val_split": (0.1, 8),
        "model": ("Qwen/Qwen3-8B", 11),
        "qlora_rank": (16, 12),
        "qlora_alpha": (64, 13),
        "num_epochs": (2, 16),
        "learning_rate": (1e-4, 17),  # PyYAML reads 1e-4 as a text
        "save_step": (20, 18),
    }
    for name, (value, line) in wanted.items():
        assert (getattr(options, name), origins[name]) == (value, f"config.yml:{line}"), name
    assert options.config == Path("config.yml")
    assert lines(read_project(Path("config.yml"))) == []


def test_flags_win_and_mend_what_the_file_cannot_give(folder: Path) -> None:
    text = SKILL.replace("path: Qwen/Qwen3-8B", "path: [Qwen/Qwen3-8B, Qwen/Qwen3-32B]")
    Path("config.yml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"config.yml:11: error: path is a list.*--model"):
        resolve(TrainSft, {})
    options, origins = resolve(TrainSft, {"model": "smollm2", "batch_size": 2})
    assert isinstance(options, TrainSft)
    assert (options.model, options.batch_size, options.num_epochs) == ("smollm2", 2, 2)
    assert origins["model"] == "--model"
    [warning] = [
        each for each in read_project(Path("config.yml")).findings_beside({"model"}) if each.level != "ignored"
    ]
    assert warning.level == "warning"
    assert "the option model was given in its place" in warning.text


def test_the_rows_lie_beside_the_file(folder: Path) -> None:
    Path("proj").mkdir()
    Path("proj/config.yml").write_text(SKILL.replace("train.jsonl", "rows/a.jsonl"), encoding="utf-8")
    values, origins = from_config({"config": Path("proj/config.yml")})
    assert (values["data"], origins["data"]) == ("proj/rows/a.jsonl", "proj/config.yml:6")
    Path("proj/config.yml").write_text(SKILL.replace("  train_file: train.jsonl\n", ""), encoding="utf-8")
    values, origins = from_config({"config": Path("proj/config.yml")})
    assert (values["data"], origins["data"]) == ("proj/train.jsonl", "beside proj/config.yml")


@pytest.mark.parametrize(
    ("config", "path", "wanted"),
    [
        ("proj/config.yml", "./student", "./proj/student"),  # proj/student could be a model on the Hub
        ("proj/config.yml", "../student", "./proj/../student"),
        ("../proj/config.yml", "./student", "../proj/student"),
        ("/proj/config.yml", "./a/student", "/proj/a/student"),
        ("config.yml", "./student", "./student"),
        ("config.yml", ".", "."),
        ("proj/config.yml", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("proj/config.yml", "/models/student", "/models/student"),
        ("proj/config.yml", "~/student", "~/student"),
    ],
)
def test_a_student_that_begins_with_a_dot_lies_beside_the_file(config: str, path: str, wanted: str) -> None:
    assert beside(Path(config), path) == wanted


def test_the_student_and_the_rows_are_taken_from_the_same_folder(folder: Path) -> None:
    Path("proj").mkdir()
    Path("proj/config.yml").write_text(SKILL.replace("Qwen/Qwen3-8B", "./student"), encoding="utf-8")
    values, origins = from_config({"config": Path("proj/config.yml")})
    assert (values["model"], origins["model"]) == ("./proj/student", "proj/config.yml:11")
    assert values["data"] == "proj/train.jsonl"


@pytest.mark.parametrize(
    "text",
    [
        "site_name: Docs\nnav: !!python/name:x.y [1]\n",  # a tag that only the other program knows
        "services:\n  model: x\n",
        "- 1\n",
        "",
    ],
)
def test_a_file_of_another_program_is_left_alone_unless_it_is_named(folder: Path, text: str) -> None:
    Path("config.yml").write_text(text, encoding="utf-8")
    options, origins = resolve(TrainSft, {"model": "smollm2"})
    assert isinstance(options, TrainSft)
    assert (options.config, origins["config"], options.data) == (None, "default", "train.jsonl")
    with pytest.raises(InputError, match="to mend"):
        resolve(TrainSft, {"model": "smollm2", "config": Path("config.yml")})
    with pytest.raises(UsageError, match="none was read here"):
        resolve(TrainSft, {})


@pytest.mark.parametrize("text", ["model:\n  qlora_rank: 8\n", "data: !x [1]\nother: 1\n", "site: [1\n"])
def test_a_file_that_may_be_ours_is_not_left_alone(folder: Path, text: str) -> None:
    Path("config.yml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="to mend"):
        resolve(TrainSft, {"batch_size": 2})


def test_a_yes_is_no_number_and_a_text_may_be_one(tmp_path: Path) -> None:
    text = SKILL.replace("qlora_rank: 16", "qlora_rank: yes").replace("batch_size: 4", "batch_size: true")
    text = text.replace("num_epochs: 2", 'num_epochs: "2"').replace("val_split: 0.1", "val_split: off")
    found = project(tmp_path, text.replace("learning_rate: 1e-4", "learning_rate: on\n  max_billing: true"))
    assert [line for line in lines(found) if "no qlora_rank" not in line] == [
        "config.yml:7: error: batch_size: Input should be a number, not a yes or no (found True)",
        "config.yml:8: error: val_split: Input should be a number, not a yes or no (found False)",
        "config.yml:12: error: qlora_rank: Input should be a number, not a yes or no (found True)",
        "config.yml:17: error: learning_rate: Input should be a number, not a yes or no (found True)",
    ]
    assert found.values["trainer.num_epochs"] == 2
    assert project(tmp_path, SKILL).values["trainer.learning_rate"] == 1e-4


def test_without_a_file_nothing_is_said_and_a_named_one_must_be_there(folder: Path) -> None:
    assert from_config({"model": "x"}) == ({}, {})
    with pytest.raises(InputError, match=r"other.yml: no such file"):
        from_config({"config": Path("other.yml")})


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    found = project(
        tmp_path,
        """\
project_id: p
dataset_type: sft
data:
  batch_size: 0
  batchsize: 4
  val_split: 1
model:
  path: Qwen/Qwen3-8B
  qlora_rank: 0
  qlora_rank: 8
teacher:
  path: Qwen/Qwen3-32B
trainer:
  num_epochs: many
  learning_rate: 5
  save_step: 0
trianer: 3
""",
    )
    assert lines(found) == [
        "config.yml:4: error: batch_size: Input should be greater than 0 (found 0)",
        'config.yml:5: error: unknown key "batchsize" in data:. Did you mean "batch_size"?',
        "config.yml:6: error: val_split: Input should be less than 1 (found 1)",
        'config.yml:10: error: "model.qlora_rank" is there twice (first in line 9): only one of them counts',
        "config.yml:11: error: teacher: is for dataset_type: distill only, not for sft",
        "config.yml:14: error: num_epochs: Input should be a valid integer, unable to parse string as an integer "
        "(found 'many')",
        "config.yml:15: error: learning_rate: Input should be less than or equal to 1 (found 5)",
        "config.yml:16: error: save_step cannot be 0: -1 keeps no step-N/, a positive number keeps one every so many "
        "steps",
        'config.yml:17: error: unknown key "trianer". Did you mean "trainer"?',
    ]
    with pytest.raises(InputError) as raised:
        from_config({"config": found.path})
    assert str(raised.value).count(": error: ") == 9
    values, _ = from_config({"config": found.path, "check": True})  # what is sound reaches the check
    assert {name: values[name] for name in ("model", "qlora_rank")} == {"model": "Qwen/Qwen3-8B", "qlora_rank": 8}


def test_a_rank_of_zero_is_an_error(tmp_path: Path) -> None:
    found = project(tmp_path, SKILL.replace("qlora_rank: 16", "qlora_rank: 0"))
    assert lines(found) == ["config.yml:12: error: qlora_rank: Input should be greater than or equal to 1 (found 0)"]


def test_without_a_rank_the_difference_to_rnow_is_told_and_alpha_is_left_out(tmp_path: Path) -> None:
    found = project(tmp_path, SKILL.replace("  qlora_rank: 16\n", ""))
    assert lines(found) == [
        "config.yml:10: warning: no qlora_rank: here all weights are trained, and qlora_alpha has no effect, "
        "`rnow run` trains an adapter of rank 32"
    ]
    assert "qlora_alpha" not in from_config({"config": found.path})[0]
    assert from_config({"config": found.path, "qlora_rank": 8})[0]["qlora_alpha"] == 64


def test_sections_that_sft_does_not_use_are_named(tmp_path: Path) -> None:
    found = project(tmp_path, SKILL + "rollout:\n  max_turns: 0\nalgorithm:\n")
    assert lines(found) == [
        "config.yml:19: warning: rollout: has no effect under dataset_type: sft: `rnow` drops it without a word",
        "config.yml:20: rnow: max_turns: Input should be greater than 0 (found 0)",
    ]
    [ignored] = [each.text for each in found.findings if each.level == "ignored"]
    assert ignored == "only the hosted service uses project_id"


def test_limits_of_the_hosted_service_do_not_hold_here(tmp_path: Path) -> None:
    text = SKILL.replace("batch_size: 4", "batch_size: 64\n  group_size: 40").replace(
        "qlora_rank: 16", "qlora_rank: 200"
    )
    found = project(tmp_path, text.replace('"p-1"', '""'))
    assert lines(found) == [
        "config.yml:1: rnow: project_id is missing or empty: `rnow init` gives one",
        "config.yml:7: rnow: batch_size 64: `rnow run` takes at most 32",
        "config.yml:8: rnow: batch_size 64 times group_size 40 is 2560: `rnow run` takes at most 2048",
        "config.yml:13: rnow: qlora_rank 200: `rnow run` takes at most 128 for this model",
    ]
    values, _ = from_config({"config": found.path})
    assert (values["batch_size"], values["qlora_rank"]) == (64, 200)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("data: [1\n", 2, "not YAML"),
        ("\tdata: 1\n", 1, "not YAML"),
        ("a: 2024-13-45\n", None, "not YAML"),
        ("a: !!python/object:os.system x\n", 1, "not YAML"),
        ("", None, "expected `key: value` lines, found nothing"),
        ("- 1\n", None, "expected `key: value` lines, found list"),
        ("[" * 600, None, "nested too deeply"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML"),
    ],
)
def test_what_is_no_mapping_is_one_finding(tmp_path: Path, text: str, line: int | None, what: str) -> None:
    found = project(tmp_path, text)
    [finding] = found.findings
    assert finding.level == "error"
    assert what in finding.text
    assert finding.place == (str(found.path) if line is None else f"{found.path}:{line}")


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path: Path) -> None:
    found = project(tmp_path, "\ufeff" + SKILL.replace("\n", "\r\n"))
    assert lines(found) == []
    assert found.lines["trainer.save_step"] == 18


def test_merged_keys_may_be_given_again(tmp_path: Path) -> None:
    text = SKILL.replace(
        "model:\n  path: Qwen/Qwen3-8B\n", "model:\n  <<: {path: other/model, name: x}\n  path: Qwen/Qwen3-8B\n"
    )
    found = project(tmp_path, text)
    assert lines(found) == []
    assert (found.values["model.path"], found.lines["model.path"]) == ("Qwen/Qwen3-8B", 12)


def test_a_file_that_cannot_be_read_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_bytes(b"project_name: \xff\xfe\n")
    [finding] = read_project(path).findings
    assert "cannot be read" in finding.text
    with pytest.raises(InputError, match="no such file"):
        read_project(tmp_path)


def test_checking_needs_no_student(folder: Path) -> None:
    options, _ = resolve(TrainSft, {"check": True, "data": "rows.jsonl"})
    assert isinstance(options, TrainSft)
    assert options.model == NO_MODEL
    Path("config.yml").write_text("project_id: p\ndataset_type: sft\nmodel:\n  qlora_rank: 8\n", encoding="utf-8")
    resolve(TrainSft, {"check": True})
    with pytest.raises(InputError, match=r"config.yml:3: error: model.path is missing"):
        resolve(TrainSft, {})


# ---- beside the real thing -----------------------------------------------------------------------------------------

BASE: dict[str, Any] = yaml.safe_load(SKILL) | {"trainer": {"num_epochs": 2, "learning_rate": 0.0001, "save_step": 20}}
KEYS = (
    *("", "project_id", "project_name", "description", "dataset_type", "organization_id", "evals", "unknown"),
    *("data", "data.train_file", "data.batch_size", "data.group_size", "data.val_split", "data.unknown"),
    *("model", "model.path", "model.qlora_rank", "model.qlora_alpha", "model.name", "model.description"),
    *("model._baseModelName", "model.resolved_base_model", "model.unknown"),
    *("trainer", "trainer.num_epochs", "trainer.learning_rate", "trainer.save_step", "trainer.max_billing"),
    *("algorithm", "algorithm.loss_fn", "algorithm.adv_estimator", "algorithm.kl_penalty_coef", "algorithm.unknown"),
    *("rollout", "rollout.max_turns", "rollout.max_context_window", "rollout.termination_policy"),
    *("rollout.reasoning_mode", "rollout.mcp_url", "rollout.tool_timeout", "rollout.reward_timeout"),
    *("rollout.max_tool_response", "rollout.include_thinking", "rollout.rollout_timeout", "rollout.max_tokens"),
    *("teacher", "teacher.path", "teacher.agentic", "teacher.unknown"),
)
VALUES: tuple[Any, ...] = (
    *(None, "", "text", "7", "1e-4", 0, 1, -1, 7, 33, 65, 129, 600, 0.5, 1.5, float("nan"), float("inf"), True, False),
    *([], ["a"], ["a", 1], {}, {"a": 1}, "Qwen/Qwen3-8B", "openai/gpt-oss-20b", "other/model", "last_tool", "ppo"),
    *("sft", "rl", "distill", "midtrain", "SFT", "high", "yes"),
    *([{"eval_id": "e", "step": 1}], [{"eval_id": "e", "step": 0}], [{"step": 1, "x": 2}], [None]),
)
OURS_ALONE = (
    "learning_rate: Input should be less than or equal to 1",
    "val_split: Input should be less than 1 ",
    "takes a name without a slash for a model trained there",  # rnow asks its server only
    "whatever train_file says",  # rnow finds no train.jsonl, or another
    "train_file: String should have at least 1",
    "path: String should have at least 1",
    "not a yes or no",  # rnow takes true for 1 and false for 0
)
"""What we report although the models of `rnow` accept it."""
ABSENT = object()


def changed(base: dict[str, Any], key: str, value: Any) -> Any:
    """A copy with another value of a key; without it for ABSENT."""
    if not key:
        return value
    found = copy.deepcopy(base)
    section, _, name = key.rpartition(".")
    inner = found if not section else found.setdefault(section, {})
    inner[name] = value
    if value is ABSENT:
        del inner[name]
    return found


@pytest.mark.network
def test_what_rnow_refuses_we_report_and_what_it_accepts_we_do_not(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Every key with every value for sft, and with a fifth of them for the others: `rnow`'s own models decide."""
    rnow = rnow_models(tmp_path_factory.mktemp("rnow"))
    assert set(RANK_CAPS) == rnow.SUPPORTED_MODELS_SET
    assert {name: rnow.get_max_lora_rank(name) for name in RANK_CAPS} == RANK_CAPS
    refused = accepted = 0
    for kind in ("sft", "rl", "distill", "midtrain"):
        base = BASE | {"dataset_type": kind} | ({"teacher": {"path": "Qwen/Qwen3-32B"}} if kind == "distill" else {})
        for place, key in enumerate(KEYS):
            for value in (*(VALUES if kind == "sft" else VALUES[place % 5 :: 5]), ABSENT):
                if value is ABSENT and not key:
                    continue
                content = changed(base, key, value)
                path = tmp_path / "config.yml"
                text = yaml.dump(content, Dumper=yaml.CSafeDumper)  # in C: fifteen times as fast
                path.write_text(text, encoding="utf-8")
                content = yaml.load(text, Loader=yaml.CSafeLoader)
                try:
                    theirs = bool(rnow.ProjectConfig(**content).project_id)
                except (ValueError, TypeError):
                    theirs = False
                ours = [each for each in read_project(path).findings if each.level in ("error", "rnow")]
                ours = [
                    str(each) for each in ours if theirs is False or not any(text in each.text for text in OURS_ALONE)
                ]
                assert bool(ours) != theirs, f"{kind}: {key} = {value!r}: rnow says {theirs}, we say {ours}"
                refused, accepted = refused + (not theirs), accepted + theirs
    assert refused > 1000
    assert accepted > 400
