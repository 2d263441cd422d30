"""`evaluate` from its options to its report, with tiny models whose differences are known."""

import contextlib
import importlib.util
import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from core import cli
from core.evaluation.report import read_report
from core.evaluation.results import Difference, Report, TaskMetric
from tests.support.lm_tasks import choice_rows, choice_task, letters_task, rows_of, writing_task
from tests.support.running import KEY, Mock, Outcome, write_rows
from tests.support.tiny_model import make_tiny_model
from tests.support.training import OTHER_CORPUS, QUICK, shaken, write_conversations

CPU = ("--device", "cpu", "--threads", "1", "--progress", "off")


def command(name: str, *arguments: str | Path) -> Outcome:
    """A command line in this process; its streams are its own."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code, _ = cli.run(name, [str(word) for word in arguments])
    said = [stream.detach() for stream in (out, err)]
    assert all(isinstance(stream, io.BytesIO) for stream in said)
    return Outcome(int(code), *(stream.getvalue().decode() for stream in said if isinstance(stream, io.BytesIO)))


def learn(folder: Path, texts: list[str], steps: int = 120) -> Path:
    """Train a tiny model until it knows these texts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for the other threads
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimiser.step()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Bench:
    """good: knows the answers of `pick`.   copy: its bytes in another folder.   damaged: it, with noise on its weights.
    teacher: other weights.   other: another tokenizer and chat template.   tasks: pick, write, letters.
    data: twelve prompts with references.   answers: the cache of all tests.
    """

    folder: Path
    good: Path
    copy: Path
    damaged: Path
    teacher: Path
    other: Path
    tasks: Path
    data: Path
    answers: Path

    def evaluate(self, *arguments: str | Path) -> Outcome:
        """With --json, on the CPU, with the cache of all tests unless another is given."""
        more = () if "--cache" in arguments else ("--cache", self.answers)
        return command("evaluate", *arguments, *CPU, *more, "--json")

    @property
    def whole(self) -> tuple[str | Path, ...]:
        """Four models, all that can be asked."""
        models = ("--student", self.damaged, "--baseline", self.good, "--models", f"twin={self.copy}")
        asked = ("--tasks", "pick,letters", "--tasks-dir", self.tasks, "--data", self.data, "--max-new-tokens", "6")
        return (*models, "--teacher", self.teacher, *asked)

    def pair(self, student: Path, baseline: Path, *more: str | Path) -> tuple[str | Path, ...]:
        """Two models on the task `pick`."""
        return ("--student", student, "--baseline", baseline, "--tasks", "pick", "--tasks-dir", self.tasks, *more)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("evaluate")
    known = [f"Question: {row['question']}\nAnswer: {row['choices'][row['gold']]}" for row in choice_rows(24)]
    good = learn(make_tiny_model(folder / "good"), known)
    copy = Path(shutil.copytree(good, folder / "copy"))
    damaged = shaken(Path(shutil.copytree(good, folder / "damaged")), 8.0)
    other = make_tiny_model(folder / "other", corpus=OTHER_CORPUS)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "{# another #}", encoding="utf-8")
    tasks = folder / "tasks"
    choice_task(tasks)
    writing_task(tasks)
    letters_task(tasks)
    rows = [{"prompt": f"What is thing {number}?", "answer": f"It is Paris {number}."} for number in range(12)]
    return Bench(
        folder,
        good,
        copy,
        damaged,
        shaken(make_tiny_model(folder / "teacher"), 4.0),
        other,
        tasks,
        write_rows(folder / "data.jsonl", rows),
        folder / "answers",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty current folder, and no key in the environment, for the runs that several tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("place"))
        patch.setenv("HOME", "/nonexistent")
        for name in [name for name in os.environ if name.endswith("_API_KEY")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def whole(bench: Bench, place: None) -> tuple[Outcome, Path]:
    outcome = bench.evaluate(*bench.whole, "--output", bench.folder / "whole")
    assert outcome.code == 0, outcome.stderr
    return outcome, bench.folder / "whole"


def metric_of(report: Report, task: str, metric: str | None = None) -> TaskMetric:
    return next(one for one in report.metrics if one.task == task and metric in (one.metric, None))


def difference(found: TaskMetric, model: str) -> Difference:
    return next(one for one in found.differences if one.model == model)


def never(*_: Any, **__: Any) -> Never:
    raise AssertionError("a model was loaded")


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.evaluation.cached_lm.open_language_model", never)


# ---- the whole way ---------------------------------------------------------------------------------------------------


def test_the_report_holds_all_that_was_asked(bench: Bench, whole: tuple[Outcome, Path]) -> None:
    outcome, folder = whole
    assert len(outcome.stdout.splitlines()) == 1
    report = read_report(folder)
    assert [(model.name, model.role) for model in report.models] == [
        ("baseline", "baseline"),
        ("student", "student"),
        ("twin", "student"),
        ("teacher", "teacher"),
    ]
    assert {task.name: task.items for task in report.tasks} == {
        "pick": 24,
        "letters": 12,
        "held_out": 12,
        "closeness": 12,
    }
    closeness = {one.metric: one.unit for one in report.metrics if one.task == "closeness"}
    assert (
        closeness.items()
        >= {
            "kl": "nats",
            "reverse_kl": "nats",
            "top1_agreement": "share",
            "bits_per_byte": "bits",
            "entropy": "nats",
        }.items()
    )
    assert outcome.result["items"] == 60
    assert {path.name for path in folder.iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
        "samples.jsonl",
        "plots",
    }
    drawn = {path.name for path in (folder / "plots").iterdir()}
    assert "accuracy.png" in report.plots
    assert set(report.plots) <= drawn
    assert {name.replace(".png", ".dark.png") for name in report.plots} <= drawn
    samples = rows_of(folder / "samples.jsonl")
    assert len(samples) == 60
    assert all(sample["answers"].keys() == {"baseline", "student", "twin", "teacher"} for sample in samples)
    picked = [sample for sample in samples if sample["task"] == "pick"]
    scores = {score.model: score.value for score in metric_of(report, "pick", "acc").scores}
    for model, value in scores.items():
        assert sum(sample["scores"][model]["acc"] for sample in picked) / 24 == pytest.approx(value)


def test_a_damaged_copy_is_found_worse(whole: tuple[Outcome, Path]) -> None:
    outcome, folder = whole
    report = read_report(folder)
    pick = metric_of(report, "pick")
    assert next(score.value for score in pick.scores if score.model == "baseline") > 0.9
    worse = difference(pick, "student")
    assert worse.test == "McNemar"
    assert worse.high < 0
    assert worse.p < 0.01
    assert worse.losses > worse.wins
    lines = outcome.result["table"].split("twin against baseline")[0].splitlines()
    assert next(line for line in lines if line.startswith("pick")).count("▼") == 1
    assert "worse on" in " ".join(report.headline)


def test_a_copy_of_a_model_differs_by_nothing(whole: tuple[Outcome, Path]) -> None:
    _, folder = whole
    report = read_report(folder)
    assert report.models[2].identity == report.models[0].identity
    compared = [found for found in report.metrics if found.differences]
    assert {found.task for found in compared if found.primary} == {"pick", "letters", "held_out", "closeness"}
    for found in compared:
        same = difference(found, "twin")
        assert (same.value, same.low, same.high, same.wins, same.losses) == (0, 0, 0, 0, 0), found.metric
        assert same.p == 1


def test_a_second_run_is_answered_from_the_cache_with_equal_figures(
    bench: Bench, whole: tuple[Outcome, Path], folder: Path, nothing_is_loaded: None
) -> None:
    first, output = whole
    second = bench.evaluate(*bench.whole, "--output", folder / "again")
    assert second.code == 0, second.stderr
    assert second.result["cached"] == second.result["requests"] == first.result["requests"]
    assert second.result["table"] == first.result["table"]
    assert read_report(folder / "again").metrics == read_report(output).metrics
    assert rows_of(folder / "again/samples.jsonl") == rows_of(output / "samples.jsonl")


def test_other_weights_at_the_same_path_are_asked_anew(bench: Bench, folder: Path) -> None:
    student = Path(shutil.copytree(bench.good, folder / "student"))
    more = ("--cache", folder / "answers", "--output", folder / "report")
    first = bench.evaluate(*bench.pair(student, bench.copy, *more))
    assert first.code == 0, first.stderr
    shaken(student, 8.0)
    second = bench.evaluate(*bench.pair(student, bench.copy, "--cache", folder / "answers", "--output", folder / "b"))
    assert second.result["cached"] == second.result["requests"] / 2  # the baseline's
    assert difference(metric_of(read_report(folder / "b"), "pick"), "student").high < 0


def test_a_dry_run_writes_nothing_and_counts_what_is_left(
    bench: Bench, whole: tuple[Outcome, Path], folder: Path, nothing_is_loaded: None
) -> None:
    known = bench.evaluate(*bench.whole, "--output", folder / "report", "--dry-run")
    assert known.code == 0, known.stderr
    assert known.result["status"] == "dry_run"
    assert known.result["cached"] == known.result["requests"] > 0
    new = bench.evaluate(*bench.whole, "--output", folder / "report", "--dry-run", "--cache", folder / "new")
    assert new.result["cached"] == 0
    assert new.result["requests"] == known.result["requests"]
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert not (folder / "report").exists()


def test_keys_in_dotenv_are_enough(bench: Bench, folder: Path) -> None:
    keys = {
        "KD_MODEL_PATH": bench.damaged,
        "BASE_MODEL_ID": bench.good,
        "SFT_MODEL_PATH": bench.teacher,
        "EVAL_TASKS": "small_sums,word_forms",
        "EVAL_MAX_SAMPLES": 2,
        "EVAL_OUTPUT_DIR": "found",
        "DATA_PATH": "never-read.jsonl",
    }
    (folder / ".env").write_text("".join(f"{key}={value}\n" for key, value in keys.items()), encoding="utf-8")
    outcome = bench.evaluate()
    assert outcome.code == 0, outcome.stderr
    report = read_report(folder / "found")
    assert [model.name for model in report.models] == ["baseline", "student", "sft"]
    assert [(task.name, task.items, task.of) for task in report.tasks] == [
        ("small_sums", 2, 100),
        ("word_forms", 2, 100),
    ]
    assert "nothing could have been found" in report.headline[0]  # two items


def test_an_api_teacher_takes_part_where_answers_are_written(bench: Bench, mock: Mock, folder: Path) -> None:
    (folder / ".env").write_text(f"OPENAI_API_KEY={KEY}\n", encoding="utf-8")
    teacher = ("--teacher", mock.model, "--teacher-base-url", mock.base_url)
    asked = ("--tasks", "pick,letters", "--tasks-dir", bench.tasks, "--data", bench.data, "--max-new-tokens", "6")
    call = ("--student", bench.damaged, "--baseline", bench.good, *teacher, *asked, "--output", "report")
    outcome = bench.evaluate(*call)
    assert outcome.code == 0, outcome.stderr
    report = read_report(folder / "report")
    api = report.models[-1]
    assert (api.role, api.usd is not None) == ("teacher", True)
    assert "does not say how probable" in api.not_measured["pick"]
    measured = {one.task for one in report.metrics for score in one.scores if score.model == "teacher"}
    assert measured >= {"letters", "held_out"}
    assert "pick" not in measured
    assert "teacher" not in {score.model for score in metric_of(report, "closeness", "bits_per_byte").scores}
    assert len(metric_of(report, "pick").differences) == 1
    assert mock.requests == 24
    assert bench.evaluate(*call).result["cached"] >= 24
    assert mock.requests == 24
    assert all(KEY.encode() not in path.read_bytes() for path in (folder / "report").rglob("*.*"))


# ---- a run of training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(bench: Bench, place: None) -> Path:
    """A run of two steps that made an adapter; its data is train.jsonl beside it."""
    data = write_conversations(bench.folder / "train.jsonl")
    models = ("--student", bench.good, "--teacher", bench.teacher)
    run = bench.folder / "lora"
    made = command(
        "train_gold",
        *models,
        "--data",
        data,
        "--output",
        run,
        "--lora",
        "--max-steps",
        "2",
        "--save-every",
        "1",
        *QUICK,
    )
    assert made.code == 0, made.stderr
    return run


def test_rows_that_were_trained_on_are_refused(
    bench: Bench, trained: Path, folder: Path, nothing_is_loaded: None
) -> None:
    data = bench.folder / "train.jsonl"
    outcome = bench.evaluate("--student", trained, "--data", data)
    assert outcome.code == 2
    assert f"18 of 20 rows of {data} were trained on" in outcome.stderr
    assert outcome.result["error"].count("train.jsonl:") == 3
    assert "--drop-trained" in outcome.result["error"]
    assert list(folder.iterdir()) == []


def test_an_adapter_is_compared_with_what_its_run_began_from(bench: Bench, trained: Path, folder: Path) -> None:
    """On the rows that the run held out, and these are those that --drop-trained leaves of the data."""
    call = ("--student", trained, "--scan", trained, "--teacher", bench.teacher, "--max-new-tokens", "4")
    outcome = bench.evaluate(*call, "--tasks", "pick", "--tasks-dir", bench.tasks, "--output", "own")
    assert outcome.code == 0, outcome.stderr
    report = read_report(folder / "own")
    assert [model.name for model in report.models] == ["baseline", "student", "step-1", "step-2", "final", "teacher"]
    assert report.models[0].path == str(bench.good)
    assert {task.name: task.items for task in report.tasks} == {"pick": 24, "held_out": 2, "closeness": 2}
    assert any("best/ was chosen on these rows" in note for note in report.notes)
    nearer = difference(metric_of(report, "closeness", "kl"), "student")
    assert nearer.value != 0
    dropped = bench.evaluate(
        *("--student", trained, "--data", bench.folder / "train.jsonl", "--drop-trained", "--max-new-tokens", "4"),
        *("--output", "dropped"),
    )
    assert dropped.code == 0, dropped.stderr
    keys = [
        {row["key"] for row in rows_of(folder / name / "samples.jsonl") if row["task"] == "held_out"}
        for name in ("own", "dropped")
    ]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 2


# ---- models that are not alike, or broken ----------------------------------------------------------------------------


def test_models_with_other_tokenizers_and_templates_are_said_to_be_prompted_otherwise(
    bench: Bench, folder: Path
) -> None:
    bare = Path(shutil.copytree(bench.good, folder / "bare"))
    (bare / "chat_template.jinja").unlink()
    call = (
        "--student",
        bench.other,
        "--baseline",
        bench.good,
        "--models",
        f"bare={bare}",
        "--output",
        folder / "report",
    )
    asked = ("--data", bench.data, "--tasks", "letters", "--tasks-dir", bench.tasks, "--max-new-tokens", "4")
    outcome = bench.evaluate(*call, *asked)
    assert outcome.code == 0, outcome.stderr
    report = read_report(folder / "report")
    notes = " ".join(report.notes)
    assert "different tokenizers: baseline and bare; student" in notes
    assert "different chat templates: baseline; student" in notes
    assert "no chat template: bare" in notes
    assert next(task for task in report.tasks if task.name == "letters").prompted == "plain text"


def test_a_model_with_nan_logits_is_not_measured_and_spares_the_others(bench: Bench, folder: Path) -> None:
    broken = Path(shutil.copytree(bench.good, folder / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    call = (*bench.whole, "--models", f"broken={broken}", "--output", folder / "report", "--cache", folder / "answers")
    outcome = bench.evaluate(*call)
    assert outcome.code == 0, outcome.stderr
    report = read_report(folder / "report")
    model = next(model for model in report.models if model.name == "broken")
    assert model.not_measured["pick"] == "its logits are not finite"
    assert "broken" not in {score.model for found in report.metrics for score in found.scores}
    assert difference(metric_of(report, "pick"), "student").high < 0
    assert difference(metric_of(report, "closeness", "kl"), "student").value != 0


def test_a_baseline_that_cannot_be_measured_is_said_first_and_by_the_exit_code(bench: Bench, folder: Path) -> None:
    broken = Path(shutil.copytree(bench.good, folder / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    outcome = bench.evaluate(*bench.pair(bench.damaged, broken, "--output", folder / "report"))
    assert outcome.code == 1, outcome.stderr
    said = read_report(folder / "report").headline[0]
    assert said == "baseline could not be measured on pick, so nothing is compared there: its logits are not finite"
    assert said in outcome.stderr


def test_weights_that_lack_a_tensor_are_refused(bench: Bench, folder: Path) -> None:
    """transformers would fill it with random numbers."""
    broken = Path(shutil.copytree(bench.good, folder / "broken"))
    weights = load_file(broken / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    outcome = bench.evaluate(*bench.pair(broken, bench.good, "--output", folder / "report"))
    assert outcome.code == 2
    assert "lm_head.weight" in outcome.stderr
    assert not (folder / "report/report.json").exists()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_is_wrong_is_refused_before_a_model_is_loaded(bench: Bench, folder: Path, nothing_is_loaded: None) -> None:
    busy, empty, unanswered = folder / "busy", folder / "empty.jsonl", folder / "unanswered.jsonl"
    busy.mkdir()
    (busy / "mine.txt").write_text("mine", encoding="utf-8")
    empty.touch()
    write_rows(unanswered, [{"prompt": "a"}])
    lost = folder / "adapter"
    lost.mkdir()
    (lost / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere/base"}', encoding="utf-8")
    hollow = Path(shutil.copytree(bench.good, folder / "hollow"))
    (hollow / "model.safetensors").unlink()
    two = ("--student", bench.damaged, "--baseline", bench.good)
    pick = bench.pair(bench.damaged, bench.good)
    refused: list[tuple[tuple[str | Path, ...], str]] = [
        ((), "name what to evaluate: --student (KD_MODEL_PATH)"),
        (("--student", bench.good), f"there is nothing to compare {bench.good} with: add --baseline"),
        ((*two, "--suite", "everything"), "There are: offline, opd, reasoning"),
        ((*two, "--suite", "opd"), "--suite offline needs no network"),
        ((*two, "--tasks", "gsm8k"), "--suite offline needs no network"),
        ((*two, "--data", empty), "is empty"),
        ((*two, "--data", folder / "none.jsonl"), "no such file"),
        ((*two, "--data", unanswered), "no row has a reference answer"),
        ((*two, "--tasks", "pick", "--tasks-dir", folder / "none"), "is no folder"),
        (("--student", hollow, "--baseline", bench.good), "no weights"),
        (("--student", busy, "--baseline", bench.good), "no model is in this folder"),
        (("--student", lost, "--baseline", bench.good), "/nowhere/base, which is not there"),
        (("--student", bench.good, "--baseline", folder / "none"), "there is nothing"),
        ((*two, "--models", f"student={bench.copy}"), "two models are called student"),
        ((*two, "--models", "twin"), "twin is not name=path"),
        (("--scan", bench.folder), "no step-N/ and no final/"),
        ((*two, "--teacher", "gpt-4o-mini"), "OPENAI_API_KEY is not set"),
        ((*pick, "--output", busy), "holds something else than a report"),
        ((*pick, "--output", busy / "mine.txt"), "is no folder"),
        ((*pick, "--output", busy / "mine.txt/report"), "cannot be written"),
        ((*pick, "--output", folder / "r", "--cache", busy / "mine.txt"), "Choose another folder with --cache"),
        ((*pick, "--system", "Be brief.", "--chat-template", "off"), "--system needs the chat template"),
    ]
    for arguments, words in refused:
        outcome = bench.evaluate(*arguments)
        assert outcome.code == 2, (arguments, outcome.stderr)
        assert words in " ".join(outcome.stderr.split()), (arguments, outcome.stderr)
        assert outcome.result["status"] == "error"
    assert {path.name for path in folder.iterdir()} <= {"busy", "empty.jsonl", "unanswered.jsonl", "adapter", "hollow"}
    assert [path.name for path in busy.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_an_unknown_task_is_refused_with_its_neighbours(bench: Bench, folder: Path, nothing_is_loaded: None) -> None:
    """lm-eval reads the files of all its tasks for that."""
    outcome = bench.evaluate("--student", bench.damaged, "--baseline", bench.good, "--tasks", "arc_esay")
    assert outcome.code == 2
    assert "no task is called arc_esay" in outcome.stderr
    assert "arc_easy" in outcome.stderr


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_there_is_named_at_once(
    bench: Bench, folder: Path, tracker: str, nothing_is_loaded: None
) -> None:
    if importlib.util.find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    outcome = bench.evaluate(*bench.pair(bench.damaged, bench.good, "--track", tracker))
    assert outcome.code == 2
    assert f"--track {tracker} needs the package {tracker}" in outcome.stderr
    assert list(folder.iterdir()) == []


# ---- reports side by side --------------------------------------------------------------------------------------------


def test_two_reports_side_by_side(bench: Bench, whole: tuple[Outcome, Path], folder: Path) -> None:
    _, first = whole
    second = folder / "second"
    assert bench.evaluate(*bench.pair(bench.other, bench.copy, "--output", second)).code == 0
    before = {path: path.read_bytes() for path in [*first.rglob("*.json*"), *second.rglob("*.json*")]}
    outcome = command("evaluate", "--compare", first, "--compare", second, "--output", folder / "both", "--json")
    assert outcome.code == 0, outcome.stderr
    report = read_report(folder / "both")
    assert {task.name for task in report.tasks} == {"pick"}  # the one that both have
    names = {model.name for model in report.models}
    assert {"whole/student", "second/student"} <= names
    found = metric_of(report, "pick")
    assert {one.against for one in found.differences} == {"whole/baseline"}
    alone = difference(metric_of(read_report(first), "pick"), "student")
    assert difference(found, "whole/student").value == alone.value
    for taken in (first, second):  # a report that is compared is not written over
        refused = command("evaluate", "--compare", first, "--compare", second, "--output", taken)
        assert refused.code == 2, refused.stderr
    assert before == {path: path.read_bytes() for path in before}


def test_reports_of_other_items_and_folders_without_one_are_not_compared(
    bench: Bench, whole: tuple[Outcome, Path], folder: Path
) -> None:
    _, first = whole
    fewer = ("--limit", "5")
    for name, seed in (("a", "1"), ("b", "2")):
        outcome = bench.evaluate(*bench.pair(bench.damaged, bench.good, *fewer, "--seed", seed, "--output", name))
        assert outcome.code == 0, outcome.stderr
    keys = [[row["key"] for row in rows_of(folder / name / "samples.jsonl")] for name in ("a", "b")]
    assert [len(each) for each in keys] == [5, 5]
    assert keys[0] != keys[1]
    refused = {
        ("a", "b"): "pick was asked with other items",
        (str(first), "a"): "pick was asked with other items",
        (str(first), str(bench.tasks)): "there is no such file",
        (str(first), "nowhere"): "there is no such file",
        (str(first),): "--compare needs two reports",
    }
    for folders, words in refused.items():
        flags = [word for each in folders for word in ("--compare", each)]
        outcome = command("evaluate", *flags, "--output", "both")
        assert outcome.code == 2, outcome.stderr
        assert words in " ".join(outcome.stderr.split())
    assert not (folder / "both").exists()
