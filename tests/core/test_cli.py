"""The command line: light, precise, one object on stdout."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from core import cli
from core.commands import COMMANDS
from tests.conftest import Generate
from tests.support.running import ROOT, Mock, ended, environment, start, write_rows

HEAVY = "{'torch', 'transformers', 'datasets', 'llama_cpp', 'lm_eval', 'matplotlib', 'aiohttp', 'huggingface_hub'}"


def python(code: str, *flags: str, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_heavy_and_shows_every_option(name: str) -> None:
    done = python(
        f"import sys; from core import cli; cli.run('{name}', ['--help']); print(sorted({HEAVY} & set(sys.modules)))"
    )
    assert done.stdout.endswith("[]\n"), done.stdout[-300:] + done.stderr
    from core.commands import load
    from core.commands.base import flag

    text = " ".join(done.stdout.split())
    for field in load(name).model_fields:
        assert flag(field) in text
    assert "Exit codes: 0 done" in text
    assert "Examples:" in text


def test_schemas_of_all_commands_import_nothing_heavy() -> None:
    code = f"""
import sys
from core.commands import COMMANDS, load
for name in COMMANDS:
    assert load(name).model_json_schema()["properties"]
print(sorted({HEAVY} & set(sys.modules)))
"""
    done = python(code)
    assert done.stdout == "[]\n", done.stderr


def test_a_mistake_in_the_options_imports_nothing_heavy() -> None:
    done = python(
        "import sys; from core import cli; print(cli.run('generate_teacher_data', ['--inptu', 'x'])); "
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    assert done.stdout.endswith("[]\n")
    assert "2" in done.stdout.splitlines()[0]


def test_an_unknown_flag_suggests_the_nearest_one(generate: Generate) -> None:
    outcome = generate("--input", "a.txt", "--max-tokenz", "5")
    assert outcome.code == 2
    assert "--max-tokenz" in outcome.stderr
    assert "--max-tokens" in outcome.stderr.replace("--max-tokenz", "")
    assert "Traceback" not in outcome.stderr


def test_a_word_without_a_flag_is_refused(generate: Generate) -> None:
    outcome = generate("prompts.txt")
    assert outcome.code == 2
    assert "prompts.txt" in outcome.stderr


@pytest.mark.parametrize("arguments", [("--max-tokens", "many"), ("--max-tokens",), ("--extra-body", "{'a': 1}")])
def test_a_value_of_the_wrong_kind_is_named(generate: Generate, arguments: tuple[str, ...]) -> None:
    outcome = generate("--input", "a.txt", *arguments)
    assert outcome.code == 2
    assert arguments[0] in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_json_prints_one_object_on_stdout_and_everything_else_on_stderr(folder: Path, mock: Mock) -> None:
    write_rows(folder / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    teacher = ("--base-url", mock.base_url, "--model", mock.model)
    outcome = ended(start(folder, "--input", "p.jsonl", "--json", *teacher))
    assert outcome.code == 0
    assert outcome.stdout.count("\n") == 1
    assert json.loads(outcome.stdout)["rows"] == 2
    assert "train.jsonl: 2 rows added" in outcome.stderr
    assert ended(start(folder, "--input", "p.jsonl", *teacher)).stdout == ""


def test_every_option_is_shown_with_its_value_and_origin(folder: Path, ask: Generate) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}])
    (folder / "c.yml").write_text("temperature: 0.25\nmax-tokens: 99\n", encoding="utf-8")
    outcome = ask("--config", "c.yml", "--max-tokens", "50")
    assert "max_tokens = 50  (--max-tokens)" in outcome.stderr
    assert "temperature = 0.25  (c.yml:1)" in outcome.stderr
    assert "defaults: " in outcome.stderr
    assert "concurrency=5" in outcome.stderr


def test_events_hold_the_run_as_json_lines(folder: Path, ask: Generate) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    assert ask("--events", "events.jsonl", "--progress", "off").code == 0
    events = [json.loads(line) for line in (folder / "events.jsonl").read_bytes().splitlines()]
    assert events[-1]["event"] == "end"
    assert (events[-1]["done"], events[-1]["total"]) == (2, 2)


def test_events_that_cannot_be_written_are_refused_before_the_first_request(folder: Path, ask: Generate) -> None:
    write_rows(folder / "prompts.jsonl", [{"prompt": "a"}])
    outcome = ask("--events", "no/where/events.jsonl")
    assert outcome.code == 2
    assert "--events" in outcome.stderr


def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    outcome = ended(start(tmp_path, "--help"))
    assert outcome.code == 0
    assert "--input" in outcome.stdout


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--teacher.backend", "bogus"], 'Invalid value "bogus" for --teacher.backend.'),
        (["--teacher.backend=vllm", "--teacher.base-url", "ftp://x"], "--teacher.base-url: does not begin with http"),
        (["--no-score.cache", "--teacher.mode", "probe"], "--teacher.mode probe (TEACHER_MODE): for teachers that"),
        (["--teacher-backend", "vllm", "--teacher.timeout", "0"], "--teacher.timeout: "),
        (["--teacher.bakend", "vllm"], "Unknown option: --teacher.bakend. Did you mean --teacher-backend?"),
    ],
)
def test_a_dot_is_a_dash_in_flags_and_errors_name_what_was_typed(
    typed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = cli.run("train_gold", ["--data", "x", "--output", "y", *typed])
    assert code == 2
    assert said in capsys.readouterr().err


def test_dotted_flags_give_what_dashed_ones_give_and_values_keep_their_dots() -> None:
    from core.commands import load

    model = load("train_gold")
    words, _ = cli.undotted(
        model, ["--teacher.backend=v.llm", "--teacher", "--a.b", "-d", "x.jsonl", "--no-score.cache"]
    )
    assert words == ["--teacher-backend=v.llm", "--teacher", "--a.b", "-d", "x.jsonl", "--no-score-cache"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--background", "--events", "e.jsonl"), "--events is not for a job: it has a progress.jsonl of its own"),
        (("--background", "--progress", "bar"), "--progress is not for a job"),
        (("--background", "--input", "-"), "- is standard input, which a job does not have"),
        (("--background", "--max-tokens", "0"), "--max-tokens: Input should be greater than or equal to 1"),
        (("--background", "--inptu", "x"), "Unknown option: --inptu. Did you mean --input?"),
    ],
)
def test_what_no_job_can_do_is_said_before_one_is_started(
    folder: Path, ask: Generate, words: tuple[str, ...], said: str
) -> None:
    outcome = ask(*words)
    assert outcome.code == 2
    assert said in outcome.stderr
    assert list(folder.iterdir()) == []


def test_one_process_of_several_starts_no_job(folder: Path, ask: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "accelerate launch" in ask("--background").stderr
    assert list(folder.iterdir()) == []


def test_only_what_takes_long_has_a_background() -> None:
    from core.commands import load

    without = {
        name for name in COMMANDS if "background" not in {each for each, _, _ in cli.general_options(load(name))}
    }
    assert without == {"show", "jobs", "mcp_server", "teachers"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "job_12"], "no job of this folder begins with job_12"),
        (["show", "../x"], "no job of this folder begins with ../x"),
        (["show"], "no job was started in this folder yet"),
        (["cancel"], "cancel needs the job: its id or the beginning of it (python scripts/jobs.py lists them)"),
        (["list", "job_12"], "list takes no job; did you mean: show job_12"),
        (["show", "-f"], "--follow is for log and cancel, not for show"),
        (["halt"], 'Invalid value "halt" for'),
    ],
)
def test_jobs_says_what_it_was_not_given(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, _ = cli.run("jobs", words)
    assert code == 2
    assert said in capsys.readouterr().err
    assert list(folder.iterdir()) == []


CONFIG = "model:\n  path: smollm2\n  qlora_rank: 8\ndata:\n  val_split: 0.1\n"
NEEDED = {"DATA_PATH": "rows.jsonl", "OUTPUT_DIR": "run", "TEACHER_MODEL_ID": "teacher", "EVAL_TASKS": "arc_easy,gsm8k"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_job_gets_the_command_that_was_checked(folder: Path, name: str) -> None:
    from core.commands import load
    from core.commands.resolve import given, resolve, validated

    (folder / "config.yml").write_text(CONFIG, encoding="utf-8")
    model = load(name)
    general = {each for each, _, _ in cli.general_options(model)}
    examples = [shlex.split(example) for example in model.examples] if model.as_job else []
    for words in examples:
        at = next(at for at, word in enumerate(words) if word.endswith(f"{name}.py"))
        flags = cli.parse(name, model, cli.undotted(model, words[at + 1 :])[0]) or {}
        own = {option: value for option, value in flags.items() if option not in general}
        command, origins = resolve(model, own, NEEDED)
        (folder / "config.yml").rename(folder / "other.yml")  # nothing is read again
        again = validated(model, json.loads(json.dumps(given(command, origins))), origins)
        (folder / "other.yml").rename(folder / "config.yml")
        assert again == command
        assert again.model_fields_set == command.model_fields_set
        assert {type(getattr(again, option)) for option in again.model_fields_set} == {
            type(getattr(command, option)) for option in again.model_fields_set
        }


def test_what_to_run_next_is_named_as_the_launcher_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    text = "done\nnext: python scripts/show.py train.jsonl; python scripts/demo.py"
    monkeypatch.delenv("DISTILL_LAUNCHER", raising=False)
    assert cli.as_typed(text) == text
    scripts = tmp_path / "a skill" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "show.py").touch()
    monkeypatch.setenv("DISTILL_LAUNCHER", str(scripts / "generate_teacher_data.py"))
    elsewhere = cli.ROOT / "scripts" / "demo.py"
    assert cli.as_typed(text) == f"done\nnext: python3 '{scripts}/show.py' train.jsonl; python3 {elsewhere}"
