"""`train_gold` through its command line, within this process, with tiny models: what it writes, says and refuses."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import cli
from core.data.trained_on import content_hash, read_trained_on
from core.training import gold, job
from core.training.learner import Learner
from tests.support.running import Outcome, read_rows, write_rows
from tests.support.tiny_model import make_tiny_model
from tests.support.training import (
    Models,
    conversations,
    furthest,
    make_models,
    options_of,
    same_bits,
    shaken,
    weights,
    write_conversations,
)

SHORT = ("--max-steps", "2", "--eval-every", "2", "--save-every", "2")


class Train:
    """Runs the command in `folder`, always with --json."""

    def __init__(self, folder: Path, models: Models, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.models, self._capfd = folder, models, capfd
        self.data = write_conversations(folder / "train.jsonl")
        self.output = folder / "run"

    def __call__(self, *more: str, data: Path | None = None, output: Path | None = None) -> Outcome:
        return self.raw(*options_of(self.models, data or self.data, output or self.output, *more), "--json")

    def raw(self, *argv: str) -> Outcome:
        self._capfd.readouterr()
        code, _ = cli.run("train_gold", argv)
        captured = self._capfd.readouterr()
        return Outcome(int(code), captured.out, captured.err)

    def done(self, *more: str, data: Path | None = None, output: Path | None = None) -> Outcome:
        outcome = self(*more, data=data, output=output)
        assert outcome.code == 0, outcome.stderr
        assert "Traceback" not in outcome.stderr
        return outcome

    def refused(self, *more: str, words: Sequence[str], data: Path | None = None) -> Outcome:
        """Exit code 2 with these words, no traceback, the same message in JSON, and the folder as it was."""
        before = sorted(self.folder.rglob("*"))
        outcome = self(*more, data=data)
        assert outcome.code == 2, outcome.stderr
        assert "Traceback" not in outcome.stderr
        for word in words:
            assert word in outcome.stderr
        assert json.loads(outcome.stdout)["error"] in outcome.stderr
        assert sorted(self.folder.rglob("*")) == before
        return outcome

    def events(self, kind: str, output: Path | None = None) -> list[dict[str, Any]]:
        return [row for row in read_rows((output or self.output) / "metrics.jsonl") if row["event"] == kind]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than such a run."""
    monkeypatch.setattr(job, "draw_curves", lambda *_: None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def drawing(folder: Path, models: Models, capfd: pytest.CaptureFixture[str]) -> Train:
    return Train(folder, models, capfd)


@pytest.fixture
def train(drawing: Train, no_curves: None) -> Train:
    return drawing


def loads(folder: Path) -> Any:
    """The model of a folder, which must answer with its tokenizer and chat template, the plain way."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model.generate(**asked, max_new_tokens=2, do_sample=False)
    return model


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]])).logits


# ---- a run -----------------------------------------------------------------------------------------------------


def test_a_run_brings_the_student_nearer_to_the_teacher_and_leaves_everything_it_promises(drawing: Train) -> None:
    train = drawing
    outcome = train.done("--max-steps", "12", "--eval-every", "6", "--save-every", "5", "--sample-every", "4")
    result = outcome.result
    assert result["status"] == "done"
    assert result["steps"] == 12
    assert result["after"]["val_kl"] < 0.8 * result["before"]["val_kl"]
    assert result["after"]["own_reverse_kl"] < 0.8 * result["before"]["own_reverse_kl"]
    assert result["samples_trained"] == 12 * 4
    steps = train.events("train_step")
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert result["tokens_trained"] == sum(row["tokens"] for row in steps)
    assert [row["step"] for row in train.events("val")] == [0, 6, 12]
    assert [row["step"] for row in train.events("checkpoint_saved")] == [5, 10]
    for name in ("best", "final", "step-5", "step-10"):
        loads(train.output / name)
    # Two answers of each validation (0, 6, 12), one of each training step that --sample-every names.
    said = read_rows(train.output / "samples.jsonl")
    assert [row["step"] for row in said] == [0, 0, 1, 4, 6, 6, 8, 12, 12, 12]
    assert all(row["on_policy"] for row in said)
    assert (train.output / "curves.png").read_bytes().startswith(b"\x89PNG")
    # 20 conversations with a question of their own each, 2 of them held out.
    trained_on = read_trained_on(train.output) or frozenset()
    held_out = read_rows(train.output / "held_out.jsonl")
    assert (len(trained_on), len(held_out)) == (18, 2)
    asked = {content_hash(row["messages"][:1]): row for row in conversations(20)}
    assert asked.keys() - trained_on == {content_hash(row["messages"][:1]) for row in held_out}
    assert all(row == asked[content_hash(row["messages"][:1])] for row in held_out)
    about = json.loads((train.output / "best_metrics.json").read_bytes())
    best = min(train.events("val")[1:], key=lambda row: row["val_total_loss"])
    assert (about["metric"], about["mode"], about["step"]) == ("val_total_loss", "min", best["step"])
    assert about["value"] == best["val_total_loss"]
    assert json.loads((train.output / "run.json").read_bytes())["status"] == "done"
    for row in steps:
        assert row["loss"] == pytest.approx(row["kd_loss"])
        assert {"generate", "teacher", "student", "loss", "optimiser"} >= set(row["phases"])
    rates = [row["learning_rate"] for row in steps]
    assert rates[0] == pytest.approx(0.005)  # the first of 1 step of warm-up: half of 0.01
    assert max(rates) == rates[1] == pytest.approx(0.01)


def test_two_runs_of_one_seed_are_the_same_to_the_bit_and_another_seed_is_another_run(train: Train) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        train.done(*SHORT, "--seed", seed, "--val-fraction", "0", output=train.folder / name)
    assert same_bits(train.folder / "a/final", train.folder / "b/final")
    assert not same_bits(train.folder / "a/final", train.folder / "c/final")


def test_the_size_of_the_micro_batch_changes_the_result_by_rounding_alone(train: Train) -> None:
    for size in ("1", "2", "4"):
        more = ("--micro-batch-size", size, "--lmbda", "0", "--lambda-sft", "0.5", "--val-fraction", "0")
        train.done(*SHORT, "--learning-rate", "1e-3", *more, output=train.folder / size)
    losses = [[row["loss"] for row in train.events("train_step", train.folder / size)] for size in ("1", "2", "4")]
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)
    assert losses[1] == pytest.approx(losses[2], abs=1e-5)
    for size in ("1", "2"):
        assert furthest(weights(train.folder / size / "final"), weights(train.folder / "4/final")) < 1e-5


def test_supervised_training_needs_no_teacher(train: Train) -> None:
    outcome = train.done(*SHORT, "--lambda-kd", "0", "--lambda-sft", "1", "--teacher", "nobody/has-this")
    assert "nobody/has-this with" not in outcome.stderr
    assert set(outcome.result["before"]) >= {"val_total_loss", "val_bits_per_byte", "own_length"}
    assert "val_kl" not in outcome.result["before"]
    assert outcome.result["after"]["val_total_loss"] < outcome.result["before"]["val_total_loss"]
    assert all(row["on_policy"] == 0 for row in train.events("train_step"))


def test_the_two_parts_of_the_loss_are_weighted_and_logged(train: Train) -> None:
    train.done(*SHORT, "--lambda-kd", "0.5", "--lambda-sft", "2")
    for row in train.events("train_step"):
        assert row["loss"] == pytest.approx(0.5 * row["kd_loss"] + 2 * row["sft_loss"])
    for row in train.events("val"):
        assert row["val_total_loss"] == pytest.approx(0.5 * row["val_kd_loss"] + 2 * row["val_sft_loss"])


@pytest.mark.parametrize("lmbda", ["0", "1"])
def test_lmbda_0_takes_the_answers_in_the_data_and_lmbda_1_only_the_students_own(train: Train, lmbda: str) -> None:
    train.done(*SHORT, "--lmbda", lmbda)
    assert {row["on_policy"] for row in train.events("train_step")} == {float(lmbda)}


def test_several_turns_of_a_conversation_are_several_samples_or_only_the_last(train: Train) -> None:
    said = [("user", "What is Paris?"), ("assistant", "The capital."), ("user", "Of what?"), ("assistant", "France.")]
    messages = [{"role": role, "content": content} for role, content in said]
    rows = [{"messages": [{**messages[0], "content": f"What is Paris {n}?"}, *messages[1:]]} for n in range(5)]
    data = write_rows(train.folder / "turns.jsonl", rows)
    every = train.done("--dry-run", data=data)
    assert "samples to train on: 8 (8 with an answer), held out: 2" in every.stderr
    last = train.done("--dry-run", "--turns", "last", data=data)
    assert "samples to train on: 4 (4 with an answer), held out: 1" in last.stderr


def test_combined_json_is_read(train: Train) -> None:
    rows = [{**row, "metadata": {"dataset_type": "dialogue"}} for row in conversations(6)]
    data = train.folder / "combined_6.json"
    data.write_text(json.dumps({"conversations": rows}), encoding="utf-8")
    assert "samples to train on: 5 (5 with an answer), held out: 1" in train.done("--dry-run", data=data).stderr


def test_prompts_without_answers_are_answered_by_the_student_also_in_validation(train: Train) -> None:
    data = write_conversations(train.folder / "prompts.jsonl", answered=False)
    outcome = train.done(*SHORT, "--lmbda", "0.2", data=data)
    assert {row["on_policy"] for row in train.events("train_step")} == {1.0}
    before = outcome.result["before"]
    assert before["val_total_loss"] == before["own_kd_loss"]
    assert "the student always answers them itself" in outcome.stderr


def test_empty_answers_count_as_none(train: Train) -> None:
    rows = [{"messages": [*row["messages"], {"role": "assistant", "content": ""}]} for row in conversations(8, False)]
    data = write_rows(train.folder / "empty.jsonl", rows)
    outcome = train.done(*SHORT, data=data)
    assert "8 answers are empty and count as none" in outcome.stderr
    assert {row["on_policy"] for row in train.events("train_step")} == {1.0}
    train.output = train.folder / "other"
    for more in (("--lmbda", "0"), ("--lambda-kd", "0", "--lambda-sft", "1")):
        train.refused(*more, data=data, words=["answer"])


def test_a_student_whose_answers_end_at_once_still_learns(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is empty but for its end of turn."""
    from core.teachers.hf_model import Generated
    from core.training import sampling, validation

    def answer(student: Any, prompts: Sequence[Any], *_: Any, **__: Any) -> list[Generated]:
        return [Generated([student.side.ends[0]], True) for _ in prompts]

    monkeypatch.setattr(sampling, "answer", answer)
    monkeypatch.setattr(validation, "answer", answer)
    train.done(*SHORT, "--lmbda", "1")
    assert all(row["tokens"] == 4 and math.isfinite(row["loss"]) for row in train.events("train_step"))
    other = train.done(*SHORT, "--lmbda", "1", "--teacher", str(train.models.other), output=train.folder / "x")
    assert math.isfinite(other.result["after"]["val_total_loss"])


# ---- across tokenizers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--merged", "span"), ("--loss", "uld"), ("--beta", "0.5"), ("--beta", "1")])
def test_a_teacher_with_another_tokenizer_teaches(train: Train, more: tuple[str, ...]) -> None:
    outcome = train.done(
        "--teacher", str(train.models.other), "--max-steps", "8", "--learning-rate", "3e-3", "--lmbda", "0.3", *more
    )
    result = outcome.result
    assert result["after"]["val_total_loss"] < result["before"]["val_total_loss"]
    assert 0 < result["before"]["val_single_groups"] <= 1
    assert ("ULD, sorted whole distributions" if "uld" in more else "by rank") in result["signal"]


def test_a_loss_that_does_not_fit_the_tokenizers_is_refused(train: Train) -> None:
    train.refused("--teacher", str(train.models.other), "--loss", "jsd", words=["--loss jsd needs one tokenizer"])
    train.refused("--loss", "gold", words=["jsd"])


# ---- LoRA ------------------------------------------------------------------------------------------------------


def test_an_adapter_and_the_model_that_it_is_merged_into_give_the_same_logits(train: Train) -> None:
    more = (*SHORT, "--lora", "--lora-targets", "q,k,v,o_proj", "--val-fraction", "0")
    train.done(*more)
    assert (train.output / "final/adapter_config.json").exists()
    assert set(json.loads((train.output / "final/adapter_config.json").read_bytes())["target_modules"]) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    whole = train.folder / "merged"
    train.done(*more, "--merge", output=whole)
    assert not (whole / "final/adapter_config.json").exists()
    assert (whole / "step-2/adapter_config.json").exists()
    adapted, merged = logits_of(loads(train.output / "final")), logits_of(loads(whole / "final"))
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(merged, logits_of(loads(train.models.student)), atol=1e-5)
    base = weights(train.models.student)["model.embed_tokens.weight"]
    assert torch.equal(weights(whole / "final")["model.embed_tokens.weight"], base)


def test_an_unknown_layer_is_refused_with_those_that_there_are(train: Train) -> None:
    train.refused("--lora", "--lora-targets", "c_attn", words=["no layer c_attn", "q_proj", "down_proj"])


# ---- validation and the best -----------------------------------------------------------------------------------


def test_a_run_that_improves_no_more_ends_by_patience(train: Train) -> None:
    """A learning rate that changes nothing: the first validation is the best, the next two are no better."""
    outcome = train.done("--learning-rate", "1e-30", "--max-steps", "9", "--eval-every", "1", "--patience", "2")
    result = outcome.result
    assert (result["steps"], result["best_step"]) == (3, 1)
    assert "--patience: val_total_loss has not improved in 2 validations" in outcome.stderr
    assert json.loads((train.output / "run.json").read_bytes())["status"] == "done"
    loads(train.output / "final")


def test_another_measure_may_choose_the_best(train: Train) -> None:
    train.done("--max-steps", "2", "--monitor", "val_top1_agreement", "--eval-every", "1")
    about = json.loads((train.output / "best_metrics.json").read_bytes())
    assert (about["metric"], about["mode"]) == ("val_top1_agreement", "max")
    best = max(row["val_top1_agreement"] for row in train.events("val")[1:])
    assert about["value"] == best


def test_a_measure_that_there_is_not_is_refused_with_those_that_there_are(train: Train) -> None:
    train.refused(*SHORT, "--monitor", "val_loss", words=["--monitor val_loss", "val_kl", "own_reverse_kl"])


def test_without_validation_there_is_a_final_model_all_the_same(train: Train) -> None:
    outcome = train.done(*SHORT, "--val-fraction", "0")
    assert outcome.result["before"] == {}
    loads(train.output / "final")


# ---- the command line ------------------------------------------------------------------------------------------


def test_a_dry_run_measures_a_step_and_writes_nothing(train: Train) -> None:
    before = sorted(train.folder.rglob("*"))
    outcome = train.done("--dry-run", "--max-steps", "1000")
    assert sorted(train.folder.rglob("*")) == before
    result = outcome.result
    assert result["status"] == "dry_run"
    validations = 1 + 1000 // 50
    assert result["seconds_in_all"] == pytest.approx(
        1000 * result["seconds_per_step"] + validations * result["seconds_per_validation"]
    )
    assert result["loss"] > 0
    assert any("KL(teacher || student)" in line for line in result["plan"])


def test_a_dry_run_may_look_at_the_folder_of_another_run(train: Train) -> None:
    train.done(*SHORT, "--val-fraction", "0")
    before = {path: path.stat().st_mtime_ns for path in train.output.rglob("*")}
    train.done("--dry-run")
    assert {path: path.stat().st_mtime_ns for path in train.output.rglob("*")} == before


def test_everything_may_stand_in_the_env_file(train: Train) -> None:
    lines = {
        "DATA_PATH": train.data,
        "OUTPUT_DIR": "out",
        "STUDENT_MODEL_ID": "nobody/has-this",
        "STUDENT_MODEL_PATH": train.models.student,
        "TEACHER_MODEL_ID": train.models.teacher,
        "TEACHER_BACKEND": "hf",
        "TEACHER_DTYPE": "bf16",
        "TEACHER_FLASH_ATTENTION": "1",
        "MAX_STEPS": "2",
        "SAVE_EVERY": "1",
        "EVAL_EVERY": "2",
        "LEARNING_RATE": "1e-3",
        "MAX_NEW_TOKENS": "6",
        "LMBDA": "1.0",
        "KD_LORA": "1",
        "KD_LORA_R": "4",
        "KD_LORA_ALPHA": "8",
        "KD_LORA_DROPOUT": "0.0",
        "KD_LORA_TARGET": "q,k,v,o_proj",
        "KD_MAX_GROUPS": "512",
        "KD_GRAD_CLIP": "0.5",
        "VAL_FRACTION": "0.2",
        "VAL_MAX_SAMPLES": "3",
        "MONITOR_METRIC": "val_kl",
        "MONITOR_MODE": "min",
        "PATIENCE": "5",
        "DO_SAMPLE": "0",
    }
    Path(".env").write_text("".join(f"{key}={value}\n" for key, value in lines.items()), encoding="utf-8")
    outcome = train.raw("--json", "--batch-size", "4")
    assert outcome.code == 0, outcome.stderr
    record = json.loads(Path("out/run.json").read_bytes())
    options = record["options"]
    assert options["teacher_dtype"] == "bfloat16"
    assert options["lora_targets"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (options["lora"], options["lora_rank"], options["lmbda"], options["do_sample"]) == (True, 4, 1.0, False)
    assert record["origins"]["max_steps"] == "MAX_STEPS in .env"
    assert record["origins"]["student"] == "STUDENT_MODEL_PATH in .env"
    assert "KD_MAX_GROUPS is not used: every aligned group is trained" in outcome.stderr
    assert "TEACHER_FLASH_ATTENTION: there is no CUDA" in outcome.stderr
    assert sorted(path.name for path in Path("out").glob("step-*")) == ["step-1", "step-2"]


def test_options_may_stand_in_a_yaml_file_and_a_flag_wins(train: Train) -> None:
    text = (
        f"student: {train.models.student}\nteacher: {train.models.teacher}\nmax-steps: 50\nbatch_size: 3\nbeta: 0.5\n"
    )
    Path("gold.yml").write_text(text, encoding="utf-8")
    outcome = train.raw(
        *("--config", "gold.yml", "--max-steps", "1", "--val-fraction", "0", "--threads", "1", "--json"),
        *("--data", str(train.data), "--output", str(train.output), "--max-new-tokens", "4"),
    )
    assert outcome.code == 0, outcome.stderr
    record = json.loads((train.output / "run.json").read_bytes())
    assert (record["options"]["batch_size"], record["options"]["beta"], record["options"]["max_steps"]) == (3, 0.5, 1)
    assert record["origins"]["batch_size"] == "gold.yml:4"


def test_events_and_json_are_for_programs(train: Train) -> None:
    outcome = train.done(*SHORT, "--events", "events.jsonl", "--progress", "off")
    assert len(outcome.stdout.splitlines()) == 1
    events = read_rows(Path("events.jsonl"))
    assert events
    assert all(isinstance(event, dict) for event in events)
    assert "2" in str(events[-1])


def test_a_run_that_is_done_cannot_be_resumed_and_is_not_changed(train: Train) -> None:
    train.done(*SHORT, "--val-fraction", "0")
    before = {path: path.read_bytes() for path in train.output.rglob("*") if path.is_file() and path.name != ".lock"}
    outcome = train(*SHORT, "--val-fraction", "0", "--resume")
    assert outcome.code == 2
    assert "has come to its end (step 2)" in outcome.stderr
    after = {path: path.read_bytes() for path in train.output.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


# ---- bad input -------------------------------------------------------------------------------------------------


def test_student_and_teacher_in_one_folder_are_refused(train: Train) -> None:
    train.refused("--teacher", str(train.models.student), words=["the same model", "make_student"])
    (train.folder / "link").symlink_to(train.models.student)
    train.refused("--teacher", "link", words=["the same model"])
    train.refused("--teacher", f"{train.models.student}/../{train.models.student.name}/", words=["the same model"])


def test_a_context_shorter_than_every_prompt_is_refused_with_the_numbers(train: Train) -> None:
    train.refused("--max-new-tokens", "250", words=["does not fit the student's context of 256 tokens"])
    short = shaken(make_tiny_model(train.folder / "short", positions=32), 4.0)
    train.refused("--teacher", str(short), words=["does not fit the teacher's context of 32 tokens"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"\n\n", ["train.jsonl"]),
        (b'{"messages": [\n{"prompt": \n', ["train.jsonl:1", "JSON"]),
        (b"\x00\x01\xff\xfe\x80", ["train.jsonl"]),
        (b'{"nothing": 1}\n', ["train.jsonl"]),
        (b"[]", ["train.jsonl"]),
    ],
)
def test_data_that_holds_no_prompt_is_refused(train: Train, content: bytes, words: list[str]) -> None:
    train.data.write_bytes(content)
    train.refused(words=words)


def test_data_that_is_not_there_is_refused(train: Train) -> None:
    train.refused(data=train.folder / "none.jsonl", words=["none.jsonl: no such file"])


def test_a_broken_row_is_named_and_the_others_are_trained_on(train: Train) -> None:
    with train.data.open("ab") as file:
        file.write(b'{"messages": \n')
    outcome = train.done(*SHORT)
    assert "train.jsonl:21" in outcome.stderr
    assert outcome.result["skipped"] == {"the row cannot be read": 1}


def test_a_student_that_is_not_there_is_refused_and_leaves_no_folder(train: Train) -> None:
    train.refused("--student", str(train.folder / "nothing"), words=["nothing"])
    train.refused("--teacher", str(train.folder / "nothing"), words=["nothing"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--resume",), ["there is no run in", "Leave out --resume"]),
        (("--resume", "--overwrite"), ["give one of them"]),
        (("--lambda-kd", "0"), ["nothing to learn from"]),
        (("--device", "cuda"), ["--device cuda"]),
        (("--lora-targets", ","), ["name at least one layer"]),
    ],
)
def test_options_that_make_no_sense_are_refused(train: Train, more: tuple[str, ...], words: list[str]) -> None:
    if "cuda" in more and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    train.refused(*more, words=words)


def test_the_folder_of_another_run_is_refused_or_replaced_or_gone_on_with(train: Train) -> None:
    more = (*SHORT, "--val-fraction", "0")
    train.done(*more)
    train.refused(*more, words=["holds a run already", "--resume", "--overwrite"])
    train.refused(*more, "--resume", "--learning-rate", "1e-3", words=["--learning-rate: was 0.01, is 0.001"])
    (train.output / "thesis.txt").write_text("mine", encoding="utf-8")
    train.refused(*more, "--overwrite", words=["thesis.txt", "--overwrite removes runs only"])
    (train.output / "thesis.txt").unlink()
    assert len(read_trained_on(train.output) or ()) == 20
    few = write_conversations(train.folder / "few.jsonl", 6)
    train.done(*more, "--overwrite", "--seed", "3", data=few)
    assert len(read_trained_on(train.output) or ()) == 6
    assert json.loads((train.output / "run.json").read_bytes())["options"]["seed"] == 3


def test_a_folder_that_is_a_file_is_refused(train: Train) -> None:
    train.output.write_text("mine", encoding="utf-8")
    train.refused(words=["run is not a folder"])


# ---- accidents -------------------------------------------------------------------------------------------------


def poisoned(source: Path, folder: Path, word: str) -> Path:
    """A copy of a model in which the embedding of a one-token word is NaN: it breaks where it reads that word."""
    shutil.copytree(source, folder)
    (token,) = AutoTokenizer.from_pretrained(folder)(word, add_special_tokens=False)["input_ids"]
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][token] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_one_sample_at_which_a_model_breaks_stops_the_run_and_is_named(train: Train, who: str) -> None:
    """Only the question in line 8 has the sign at which the model breaks."""
    rows = conversations(10)
    rows[7]["messages"][0]["content"] = "What is @ then?"
    data = write_rows(train.folder / "odd.jsonl", rows)
    broken = poisoned(getattr(train.models, who), train.folder / "broken", "@")
    more = ("--max-steps", "4", "--lmbda", "0", "--val-fraction", "0", "--save-every", "1")
    outcome = train(*more, f"--{who}", str(broken), data=data)
    assert outcome.code == 3, outcome.stderr
    assert "Traceback" not in outcome.stderr
    error = json.loads(outcome.stdout)["error"]
    assert ("finite" if who == "student" else "NaN") in error
    assert "odd.jsonl:8" in error
    assert error.count("odd.jsonl:") == 1
    assert json.loads((train.output / "run.json").read_bytes())["status"] == "stopped"


def test_a_held_out_sample_at_which_the_student_breaks_stops_the_run_and_is_named(train: Train) -> None:
    rows = [{"messages": [{"role": "user", "content": f"What is @ {number}?"}]} for number in range(6)]
    broken = poisoned(train.models.student, train.folder / "broken", "@")
    outcome = train(*SHORT, "--student", str(broken), data=write_rows(train.folder / "odd.jsonl", rows))
    assert outcome.code == 3, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "finite" in outcome.stderr
    assert "odd.jsonl:" in outcome.stderr


def test_a_model_that_breaks_at_every_word_is_refused_at_once(train: Train) -> None:
    for who in ("student", "teacher"):
        broken = shutil.copytree(getattr(train.models, who), train.folder / f"broken-{who}")
        tensors = load_file(broken / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = math.nan
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
        train.refused(f"--{who}", str(broken), words=["gives logits that are not finite"])


def breaking(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let a weight become NaN before this step learns, once."""
    learn = Learner.learn
    made: list[int] = []

    def breaks(learner: Learner, *arguments: Any, **named: Any) -> Any:
        made.append(1)
        if len(made) == step:
            with torch.no_grad():
                learner.parameters[1][0, 0] = math.nan
        return learn(learner, *arguments, **named)

    monkeypatch.setattr(Learner, "learn", breaks)


@pytest.mark.parametrize("more", [(), ("--lora", "--lora-dropout", "0.3"), ("--lambda-kd", "0", "--lambda-sft", "1")])
def test_a_student_that_breaks_on_the_way_leaves_a_checkpoint_from_which_the_run_goes_on_to_the_same_bits(
    train: Train, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    every = ("--max-steps", "5", "--save-every", "2", "--eval-every", "2", *more)
    train.done(*every, output=train.folder / "undisturbed")
    breaking(monkeypatch, 4)
    outcome = train(*every)
    assert outcome.code == 3, outcome.stderr
    assert "the loss is no longer finite, in the answer to " in outcome.stderr
    assert not (train.output / "step-4").exists()
    assert not (train.output / "final").exists()
    loads(train.output / "step-2")
    train.done(*every, "--resume")
    for name in ("best", "final", "step-4"):
        assert same_bits(train.output / name, train.folder / "undisturbed" / name)
    assert [row["step"] for row in train.events("train_step")] == [1, 2, 3, 4, 5]
    for kind, names in (
        ("train_step", ("loss", "grad_norm", "learning_rate")),
        ("val", ("val_total_loss", "own_length")),
    ):
        found, expected = train.events(kind), train.events(kind, train.folder / "undisturbed")
        assert [[row.get(name) for name in names] for row in found] == [
            [row.get(name) for name in names] for row in expected
        ]


def narrow(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let the student's memory hold only so many texts at a time."""
    load: Callable[..., Any] = gold.load_student

    def loaded(*arguments: Any, **more: Any) -> Any:
        student = load(*arguments, **more)
        hidden = student.hidden

        def refuses(prompts: Sequence[Any], completions: Sequence[Any]) -> torch.Tensor:
            if len(prompts) > rows:
                raise torch.OutOfMemoryError("out of memory")
            return hidden(prompts, completions)

        student.hidden = refuses
        return student

    monkeypatch.setattr(gold, "load_student", loaded)


def test_a_lack_of_memory_halves_the_micro_batch_says_so_and_changes_nothing(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.done(*SHORT, "--micro-batch-size", "1", output=train.folder / "single")
    narrow(monkeypatch, 1)
    outcome = train.done(*SHORT, "--micro-batch-size", "4")
    assert same_bits(train.output / "final", train.folder / "single/final")
    assert "micro-batch" in outcome.stderr.partition("step 0:")[2] or "memory" in outcome.stderr.partition("step 0:")[2]


def test_no_memory_for_a_single_sample_stops_the_run_in_words(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, 0)
    outcome = train(*SHORT, "--val-fraction", "0")
    assert outcome.code == 3, outcome.stderr
    assert "memory" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.gguf
def test_a_gguf_teacher_teaches_across_tokenizers(train: Train) -> None:
    outcome = train.done(
        *SHORT,
        "--teacher-backend",
        "gguf",
        "--teacher-gguf",
        "smollm2",
        "--teacher-n-ctx",
        "256",
        "--val-fraction",
        "0.1",
    )
    assert math.isfinite(outcome.result["after"]["val_total_loss"])
    assert outcome.result["after"]["val_total_loss"] < outcome.result["before"]["val_total_loss"]
