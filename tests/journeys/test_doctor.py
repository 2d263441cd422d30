"""`doctor` as people run it: a teacher that works, one that does not, and a look at the installation."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core import __version__
from tests.support.running import KEY, ROOT, Outcome, ended, environment, small_server, start
from tests.support.scripted_chat import ScriptedChat
from tests.support.tiny_model import make_tiny_model

DOCTOR = ROOT / "scripts" / "doctor.py"


def doctor(folder: Path, *arguments: str, **env: Any) -> Outcome:
    return ended(start(folder, *arguments, script=DOCTOR, **env))


def test_a_chat_teacher_is_tested_priced_and_the_key_shown_nowhere(folder: Path) -> None:
    with small_server(ScriptedChat(price=(1e-6, 2e-6))) as server:
        (folder / ".env").write_text(
            f"TEACHER_BACKEND=openrouter\nOPENROUTER_MODEL=m\nOPENROUTER_API_KEY={KEY}\nTEACHER_BASE_URL={server.url}\n",
            encoding="utf-8",
        )
        found = doctor(folder, "--teacher", "--json")
        assert {request.headers.get("authorization") for request in server.chats} == {f"Bearer {KEY}"}
    assert found.code == 0, found.stderr
    teacher = found.result["teacher"]
    assert (teacher["backend"], teacher["modes"]) == ("openrouter", ["probe", "teacher-text", "judge"])
    # 8 samples of 8 positions: prompts of 200 tokens, answers of 128, on average half of one before a position
    assert teacher["requests_per_step"]["probe"] == 64
    assert teacher["cost_per_step_usd"]["probe"] == pytest.approx(64 * (264e-6 + 2e-6))
    assert teacher["seen"]["chatting"]["prefill"]["right"] == 4
    assert "cost of probe" in found.stderr
    assert "next: python scripts/train_gold.py with the same options and --teacher-mode probe" in found.stderr
    assert KEY not in found.stdout + found.stderr


def test_a_flag_without_a_value_means_the_teacher_of_env(folder: Path) -> None:
    bare = doctor(folder, "--teacher")
    assert bare.code == 0
    assert "with --teacher NAME\n" in bare.stderr
    with small_server(ScriptedChat()) as server:
        (folder / ".env").write_text(f"TEACHER_BASE_URL={server.url}\nTEACHER_MODEL_ID=m\n", encoding="utf-8")
        for words in (["--teacher", "--json"], ["--json", "--teacher"]):
            found = doctor(folder, *words)
            assert found.code == 0, found.stderr
            assert found.result["teacher"]["model"] == "m"


def test_a_teacher_that_only_env_names_is_not_asked_without_a_word_about_teachers(folder: Path) -> None:
    with small_server(ScriptedChat()) as server:
        (folder / ".env").write_text(f"TEACHER_BASE_URL={server.url}\nTEACHER_MODEL_ID=m\n", encoding="utf-8")
        found = doctor(folder, "--json")
        assert found.code == 0, found.stderr
        assert (found.result["teacher"], server.received) == (None, [])
        parts = {part["name"]: part["found"] for part in found.result["parts"]}
        assert "--teacher tests it" in parts["teacher"]
        found = doctor(folder, "--batch-size", "2", "--dry-run")  # which are of a step with it
        assert "m (openai) would be asked for:" in found.stderr


def test_a_teacher_that_can_teach_nothing_ends_with_2_and_its_reasons(folder: Path) -> None:
    with small_server(ScriptedChat(logprobs=False, grades=None)) as server:
        found = doctor(folder, "--teacher.base-url", server.url, "--teacher", "m")
    assert found.code == 2
    assert "none works" in found.stderr
    for line in ("not score", "not probe", "not teacher-text", "not judge"):
        assert f"\n{line} " in found.stderr
    assert "next: this teacher can train nothing" in found.stderr


def test_a_dry_run_asks_nothing_and_says_what_it_would_ask(folder: Path) -> None:
    with small_server(ScriptedChat()) as server:
        found = doctor(folder, "--teacher-base-url", server.url, "--teacher", "m", "--dry-run")
        assert server.received == []
    assert found.code == 0
    assert "m (openai) would be asked for:\n    a greeting\n" in found.stderr


def test_a_refused_key_and_a_missing_one_are_one_line(folder: Path) -> None:
    with small_server(ScriptedChat(status=401, error=f"bad key {KEY}")) as server:
        refused = doctor(folder, "--teacher-base-url", server.url, "--teacher", "m", OPENAI_API_KEY=KEY)
    assert refused.code == 2
    assert "doctor: error: the provider refuses the API key" in refused.stderr
    assert KEY not in refused.stderr
    missing = doctor(folder, "--teacher-backend", "together", "--teacher", "m")
    assert missing.code == 2
    assert "TOGETHER_API_KEY is not set" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--teacher-backend", "hf", "--teacher-price", "3/15"], "--teacher-price: for a teacher behind an API"),
        (["--teacher", "m", "--teacher-gguf", "a.gguf"], "two teachers are given"),
        (["--teacher-backend", "vllm", "--teacher-price", "3"], "--teacher-price: String should match pattern"),
    ],
)
def test_options_are_judged_as_train_gold_judges_them(folder: Path, arguments: list[str], said: str) -> None:
    found = doctor(folder, *arguments)
    assert found.code == 2
    assert f"doctor: error: {said}" in found.stderr


def test_a_local_teacher_scores_a_known_text(folder: Path) -> None:
    found = doctor(folder, "--teacher", str(make_tiny_model(folder / "model")), "--json")
    assert found.code == 0, found.stderr
    assert found.result["teacher"]["modes"] == ["score"]
    assert found.result["teacher"]["seen"]["noise"]["again"] == 0
    assert "whole distributions" in found.stderr


def test_without_a_teacher_it_says_what_is_there_and_keys_by_name_alone(folder: Path) -> None:
    (folder / ".env").write_text(f"NVIDIA_API_KEY={KEY}\n", encoding="utf-8")
    found = doctor(folder, "--json", OPENROUTER_API_KEY=KEY)
    assert found.code == 0
    parts: dict[str, Any] = {part["name"]: part for part in found.result["parts"]}
    extras = {"hub", "train", "gguf", "eval", "data", "browser", "mcp", "nemo", "smollm2"}
    assert {"python", "distill", *extras, "device", "memory", "disk", "keys", "chromium", "node", "docker"} <= set(
        parts
    )
    assert parts["keys"]["found"] == "OPENROUTER_API_KEY (environment), NVIDIA_API_KEY (.env)"
    assert "torch " in parts["train"]["found"]
    assert parts["distill"]["found"].startswith(f"{__version__}, ")
    roads = {road["name"]: road for road in found.result["roads"]}
    assert [*roads] == ["off-policy", "rollout-distill", "on-policy"]
    assert all(not road["missing"] for road in roads.values())
    assert "teachers: openrouter, nvidia" in roads["rollout-distill"]["has"]
    assert KEY not in found.stdout + found.stderr


def test_the_report_fits_100_columns_in_groups_and_ends_with_the_roads(folder: Path) -> None:
    found = doctor(folder)
    assert found.code == 0
    report = found.stderr[found.stderr.index("\nHere\n") + 1 :].splitlines()
    headings = [line for line in report if line and not line.startswith((" ", "next: "))]
    assert headings == ["Here", "Extras", "Machine", "Keys", "Programs", "Servers", "Roads"]
    assert all(len(line) <= 100 for line in report if not line.lstrip().startswith("->"))
    assert report[-1].startswith("next: python scripts/doctor.py with --data FILE")
    assert "\x1b" not in found.stderr
    assert list(folder.iterdir()) == []


def test_a_look_around_imports_no_torch_and_takes_no_two_seconds_of_work(folder: Path) -> None:
    code = (
        "import resource, sys\n"
        "from core import cli\n"
        "code, _ = cli.run('doctor', [])\n"
        "heavy = sorted({'torch', 'transformers', 'datasets', 'playwright', 'mcp', 'numpy'} & set(sys.modules))\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(code, heavy, used.ru_utime + used.ru_stime < 2)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.stdout == "0 [] True\n", done.stderr


# ---- a file, and installing ----------------------------------------------------------------------------------------


def test_a_file_is_told_and_a_broken_line_is_exit_1(folder: Path) -> None:
    (folder / "p.jsonl").write_text('{"prompt": "Why?"}\n{broken\n', encoding="utf-8")
    found = doctor(folder, "--data", "p.jsonl")
    assert found.code == 1
    assert "p.jsonl:2: invalid JSON" in found.stderr
    assert "  off-policy       python scripts/generate_teacher_data.py --input p.jsonl --dry-run\n" in found.stderr


def test_what_an_installation_takes_is_said_before_and_a_dry_run_stops_there(folder: Path) -> None:
    found = doctor(folder, "--install", "gguf,hub", "--dry-run", "--json", XDG_DATA_HOME=str(folder / "data"))
    assert found.code == 0, found.stderr
    assert found.result["status"] == "dry_run"
    assert found.result["installation"]["extras"] == ["gguf", "hub"]
    assert any("llama-cpp-python" in each for each in found.result["installation"]["packages"])
    assert "dry run: nothing was installed." in found.stderr
    assert list(folder.iterdir()) == []


def test_an_extra_that_is_none_and_two_tasks_at_once_are_refused(folder: Path) -> None:
    found = doctor(folder, "--install", "torch")
    assert found.code == 2
    assert "--install: torch is no extra. There are hub, train, gguf, eval, data, browser, mcp, nemo" in found.stderr
    found = doctor(folder, "--install", "train", "--data", "x.jsonl")
    assert found.code == 2
    assert "one at a time" in found.stderr


def test_without_the_training_packages_it_names_the_line_that_installs_them(folder: Path) -> None:
    # What `pip install -e .` alone leaves: nothing that imports numpy or torch, and no metadata of them.
    code = (
        "import importlib.abc, sys\n"
        "from importlib import metadata\n"
        "GONE = ('torch', 'numpy', 'msgspec', 'playwright')\n"
        "class Without(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in GONE: raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Without())\n"
        "here = metadata.Distribution.from_name\n"
        "def from_name(name):\n"
        "    if name in GONE: raise metadata.PackageNotFoundError(name)\n"
        "    return here(name)\n"
        "metadata.Distribution.from_name = from_name\n"
        "from core import cli\n"
        "cli.main('doctor', sys.argv[1:])\n"
    )

    def bare(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", timeout=60, check=False
        )

    done = bare("--json")
    assert done.returncode == 0, done.stderr
    parts = {part["name"]: part for part in json.loads(done.stdout)["parts"]}
    assert parts["train"]["found"].startswith("missing: torch, ")
    assert parts["train"]["fix"].endswith("doctor.py --install train")
    assert parts["browser"]["fix"].endswith("doctor.py --install browser")
    roads = {road["name"]: road for road in json.loads(done.stdout)["roads"]}
    for road in roads.values():
        assert parts["train"]["fix"] in [lack["fix"] for lack in road["missing"]]
    assert "no teacher: no key, no server" in roads["off-policy"]["missing"][0]["what"]
    assert done.stderr.count("doctor.py --install train\n") == 4  # the extra's, and each road's
    assert "next: the lines above, then python scripts/doctor.py again" in done.stderr
    for arguments in (["--teacher", "smollm2"], ["--teacher-backend", "ollama"]):
        refused = bare(*arguments)
        assert refused.returncode == 2
        assert "doctor: error: testing a teacher needs the package" in refused.stderr


def test_the_terminal_that_it_prints_to_may_be_a_real_one(folder: Path) -> None:
    keyboard, terminal = pty.openpty()
    with small_server(ScriptedChat()) as server:
        done = subprocess.run(
            [sys.executable, str(DOCTOR), "--teacher", "m", "--teacher-base-url", server.url],
            cwd=folder,
            env=environment(TERM="xterm"),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            timeout=60,
        )
    os.close(terminal)
    said = b""
    while True:
        try:
            more = os.read(keyboard, 65536)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        said += more
    os.close(keyboard)
    assert done.returncode == 0
    assert b"probe, teacher-text, judge" in said
