"""Everything that can be wrong with what a user gives: each case reads the message and the exit code.

Where the process itself matters (signals, a full disk, another user), the script runs as a process of its own.
"""

import ctypes
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Generate
from tests.support.running import (
    GENERATE,
    KEY,
    Mock,
    Outcome,
    Reply,
    chat_answer,
    ended,
    environment,
    questions,
    read_rows,
    small_server,
    start,
    write_rows,
)

OUT = Path("train.jsonl")


def refused(outcome: Outcome, *words: str) -> None:
    """Exit code 2, all of the words, no traceback; on stdout the same message as one object."""
    assert outcome.code == 2, outcome.stderr
    for word in words:
        assert word in outcome.stderr
    assert "Traceback" not in outcome.stderr
    answer = json.loads(outcome.stdout)
    assert answer["status"] == "error"
    assert answer["error"] in outcome.stderr
    assert not OUT.exists()


@pytest.fixture
def prompts(folder: Path) -> Path:
    return write_rows(folder / "prompts.jsonl", questions(10))


# ---- the input -------------------------------------------------------------------------------------------------


def test_no_such_file(ask: Generate, folder: Path) -> None:
    refused(ask("--input", "none.txt"), f"error: none.txt: no such file (in {folder}).")


def test_a_directory(ask: Generate, folder: Path) -> None:
    refused(ask("--input", str(folder)), f"{folder}: is a directory. Name a file in it.")


def test_an_empty_file(ask: Generate, folder: Path) -> None:
    (folder / "a.txt").touch()
    refused(ask("--input", "a.txt"), "a.txt: is empty.")


def test_a_file_of_blank_lines(ask: Generate, folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"\n \r\n\t\n")
    refused(ask("--input", "a.txt"), "a.txt: holds no prompts (only blank lines).")


def test_invalid_json_at_a_line_spares_the_rows_beside_it(ask: Generate, folder: Path) -> None:
    (folder / "prompts.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": \n{"prompt": "c"}\n')
    outcome = ask()
    assert outcome.code == 1
    assert "prompts.jsonl:2: invalid JSON: " in outcome.stderr
    assert {row["metadata"]["index"]: row["messages"][0]["content"] for row in read_rows(OUT)} == {0: "a", 2: "c"}
    (failure,) = read_rows(Path("train.jsonl.failures.jsonl"))
    assert failure["place"] == "prompts.jsonl:2"


def test_nothing_but_invalid_json(ask: Generate, folder: Path) -> None:
    (folder / "prompts.jsonl").write_bytes(b"nonsense\n")
    refused(ask(), "no usable prompt in the input:", "prompts.jsonl:1: invalid JSON")


def test_a_row_without_a_prompt(ask: Generate, folder: Path) -> None:
    write_rows(folder / "prompts.jsonl", [{"question": "Why?"}])
    words = (
        'prompts.jsonl:1: no "prompt" or "messages" key (found: "question"). Rename it, or pass --prompt-key question.'
    )
    refused(ask(), words)
    assert ask("--prompt-key", "question").code == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": 5}, '"prompt" must be a text, found int.'),
        ({"prompt": "a", "metadata": []}, '"metadata" must be an object, found list.'),
        ({"messages": [{"role": "user", "content": 5}]}, 'messages[0] has no text in "content".'),
        ("{}", "expected"),
    ],
)
def test_wrong_types(ask: Generate, folder: Path, row: object, words: str) -> None:
    write_rows(folder / "prompts.jsonl", [row] if not isinstance(row, str) else [[row]])
    refused(ask(), f"prompts.jsonl:1: {words}")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_not_utf8(ask: Generate, folder: Path, name: str) -> None:
    text = {"a.txt": "Schön\n", "a.jsonl": '{"prompt": "Schön"}\n', "a.csv": "prompt\nSchön\n"}[name]
    (folder / name).write_bytes(text.encode("latin-1"))
    refused(ask("--input", name), f"{name}:", "not UTF-8")


def test_utf16(ask: Generate, folder: Path) -> None:
    (folder / "a.txt").write_text("Hello\n", encoding="utf-16")
    refused(ask("--input", "a.txt"), "a.txt: is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 a.txt > utf8.txt")


def test_an_input_that_may_not_be_read(folder: Path, mock: Mock) -> None:
    secret = write_rows(folder / "prompts.jsonl", questions(1))
    secret.chmod(0)
    outcome = as_anybody(folder, mock)
    assert outcome.code == 2
    assert "prompts.jsonl: cannot be read: Permission denied." in outcome.stderr


@pytest.mark.parametrize("content", [b"one\ntwo\n", b'{"prompt": "one"}\n{"prompt": "two"}\n'])
@pytest.mark.parametrize("flag", ["--input", "-i"])
def test_standard_input_is_read_and_empty_standard_input_is_refused(
    folder: Path, mock: Mock, flag: str, content: bytes
) -> None:
    command = [sys.executable, str(GENERATE), flag, "-", "--base-url", mock.base_url, "--model", mock.model]
    for given, code in ((content, 0), (b"", 2)):
        done = subprocess.run(
            command, input=given, cwd=folder, env=environment(), capture_output=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stderr
        if code:
            assert b"holds no prompts (only blank lines)" in done.stderr
    assert len(read_rows(folder / OUT)) == 2


# ---- the options -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prompts")
def test_an_unknown_flag(ask: Generate) -> None:
    refused(ask("--temprature", "0.5"), "--temprature", "--temperature")


@pytest.mark.usefixtures("prompts")
def test_an_unknown_yaml_key(ask: Generate, folder: Path) -> None:
    (folder / "c.yml").write_text("samples: 1\ntemprature: 0.5\n", encoding="utf-8")
    refused(ask("--config", "c.yml"), 'c.yml:2: unknown option "temprature". Did you mean "temperature"?')


@pytest.mark.usefixtures("prompts")
@pytest.mark.parametrize("value", ["2.5", "-0.1", "nan", "hot"])
def test_temperature_out_of_range(ask: Generate, value: str) -> None:
    refused(ask("--temperature", value), "--temperature")


@pytest.mark.usefixtures("prompts")
def test_no_concurrency_at_all(ask: Generate) -> None:
    refused(ask("--concurrency", "0"), "--concurrency: Input should be greater than or equal to 1 (given: 0)")


# ---- the key ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prompts")
@pytest.mark.parametrize(
    ("model", "name"), [("anthropic/claude-sonnet-4", "OPENROUTER_API_KEY"), ("gpt-4o", "OPENAI_API_KEY")]
)
def test_a_missing_key(generate: Generate, folder: Path, model: str, name: str) -> None:
    outcome = generate("--input", "prompts.jsonl", "--model", model)
    refused(outcome, f"{name} is not set", f"put the line {name}=... into the file .env in {folder}", ".env.example")


@pytest.mark.usefixtures("prompts")
@pytest.mark.parametrize("line", [f'OPENAI_API_KEY="{KEY}"', f"export OPENAI_API_KEY='{KEY}'", f"OPENAI_API_KEY={KEY}"])
def test_a_key_in_dotenv_with_quotes_works(ask: Generate, folder: Path, mock: Mock, line: str) -> None:
    mock.configure(api_key=KEY)
    (folder / ".env").write_text(line + "\n", encoding="utf-8")
    outcome = ask()
    assert outcome.code == 0, outcome.stderr
    assert KEY not in outcome.stdout + outcome.stderr


@pytest.mark.usefixtures("prompts")
def test_a_wrong_key_stops_the_run_after_the_first_answers(ask: Generate, folder: Path, mock: Mock) -> None:
    mock.configure(api_key=KEY)
    (folder / ".env").write_text("OPENAI_API_KEY=sk-wrong-wrong-wrong\n", encoding="utf-8")
    outcome = ask("--concurrency", "2")
    refused(outcome, "the provider refuses the API key (401: No auth credentials found")
    assert "sk-wrong" not in outcome.stderr
    assert mock.requests <= 2


# ---- the output ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prompts")
def test_an_output_folder_that_does_not_exist(ask: Generate, mock: Mock) -> None:
    refused(ask("--output", "no/where/train.jsonl"), "the folder no/where does not exist. Create it: mkdir -p no/where")
    assert mock.requests == 0


@pytest.mark.usefixtures("prompts")
def test_an_output_below_a_file(ask: Generate, mock: Mock) -> None:
    refused(
        ask("--output", "prompts.jsonl/train.jsonl"), "prompts.jsonl/train.jsonl cannot be written: Not a directory"
    )
    assert mock.requests == 0


@pytest.mark.usefixtures("prompts")
def test_an_output_that_is_a_directory(ask: Generate, folder: Path) -> None:
    (folder / "rows").mkdir()
    refused(ask("--output", "rows"), "rows is a directory. Name a file with --output.")


@pytest.mark.usefixtures("prompts")
def test_the_full_device_is_no_output(ask: Generate) -> None:
    refused(ask("--output", "/dev/full"), "/dev/full is not a regular file")


def as_anybody(folder: Path, mock: Mock, *arguments: str) -> Outcome:
    """The script without root's right to read and write everywhere: permissions count as for anybody else."""
    libc = ctypes.CDLL(None)

    def give_up_root() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; fails for who has no such right, who needs it not

    teacher = ("--base-url", mock.base_url, "--model", mock.model)
    return ended(start(folder, "--input", "prompts.jsonl", *teacher, *arguments, preexec=give_up_root))


def test_a_read_only_output_folder(folder: Path, mock: Mock) -> None:
    write_rows(folder / "prompts.jsonl", questions(2))
    folder.chmod(0o555)
    try:
        outcome = as_anybody(folder, mock)
    finally:
        folder.chmod(0o755)
    assert outcome.code == 2, outcome.stderr
    assert "train.jsonl cannot be written: Permission denied." in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert mock.requests == 0


def test_a_read_only_output_file(folder: Path, mock: Mock) -> None:
    write_rows(folder / "prompts.jsonl", questions(2))
    (folder / OUT).touch()
    (folder / OUT).chmod(0o444)
    outcome = as_anybody(folder, mock)
    assert outcome.code == 2, outcome.stderr
    assert "train.jsonl cannot be written: Permission denied." in outcome.stderr
    assert mock.requests == 0


def test_a_folder_that_became_read_only_beside_files_that_are_not(folder: Path, mock: Mock) -> None:
    write_rows(folder / "prompts.jsonl", questions(2))
    for end in ("", ".failures.jsonl", ".rejected.jsonl"):
        (folder / f"train.jsonl{end}").touch()
    folder.chmod(0o555)
    try:
        outcome = as_anybody(folder, mock)
    finally:
        folder.chmod(0o755)
    assert outcome.code == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "train.jsonl.run.json cannot be written: Permission denied." in outcome.stderr
    assert mock.requests == 0


def test_a_disk_that_fills_up_in_the_middle(folder: Path, mock: Mock) -> None:
    write_rows(folder / "prompts.jsonl", questions(300))
    arguments = ("--input", "prompts.jsonl", "--base-url", mock.base_url, "--model", mock.model)

    def small_disk() -> None:  # no file may pass 40,000 bytes: like a full disk, but for this process alone
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    outcome = ended(start(folder, *arguments, preexec=small_disk))
    assert outcome.code == 3, outcome.stderr
    assert "train.jsonl cannot be written: File too large. Free space or choose another place" in outcome.stderr
    assert "Every row before this one is kept." in outcome.stderr
    assert "Traceback" not in outcome.stderr
    kept = read_rows(folder / OUT)
    assert 20 < len(kept) < 300
    lost = mock.requests - len(kept)
    assert lost <= 5  # paid and not kept: what was in flight, at --concurrency 5
    assert ended(start(folder, *arguments)).code == 0
    assert len({row["metadata"]["id"] for row in read_rows(folder / OUT)}) == 300
    assert mock.requests == 300 + lost


def test_a_tiny_disk(folder: Path, mock: Mock) -> None:
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs a privilege that this process lacks")
    try:
        write_rows(folder / "prompts.jsonl", questions(300))
        output = ("--output", "disk/train.jsonl")
        outcome = ended(
            start(folder, "--input", "prompts.jsonl", "--base-url", mock.base_url, "--model", mock.model, *output)
        )
        assert outcome.code == 3, outcome.stderr
        assert "disk/train.jsonl cannot be written: No space left on device." in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert len(read_rows(disk / OUT)) > 20
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.usefixtures("prompts")
@pytest.mark.parametrize(
    "theirs",
    [
        b'{"messages": [{"role": "user", "content": "a"}]}\n',
        b'{"prompt": "a"}\n{"prompt": "b"}',
        b"prompt,answer\na,b\n",
        b"one line without an end",
        b"PAR1\x00\x00",
        b'{"messages": [], "metadata": {"id": "' + b"0" * 32 + b'"}}\n',
        b'["a"]\n',
        b"5",
    ],
)
@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.failures.jsonl", "train.jsonl.rejected.jsonl"])
def test_somebody_elses_data_is_kept_byte_for_byte(ask: Generate, mock: Mock, theirs: bytes, name: str) -> None:
    Path(name).write_bytes(theirs)
    for arguments in ((), ("--dry-run",)):
        outcome = ask(*arguments)
        assert outcome.code == 2, outcome.stderr
        assert f"{name}:1: not " in outcome.stderr
        assert "This file holds something else; choose another --output, or --overwrite" in outcome.stderr
        assert Path(name).read_bytes() == theirs
    assert mock.requests == 0


# ---- the server ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prompts")
def test_a_server_that_speaks_html(generate: Generate) -> None:
    page = Reply(200, b"<!DOCTYPE html><html><body>Welcome</body></html>", {"content-type": "text/html"})
    with small_server(lambda _: page) as server:
        outcome = generate("--input", "prompts.jsonl", "--base-url", server.url, "--model", "m")
        refused(outcome, "the server answers 200 with a web page, not JSON", "Is --base-url right?")
        assert len(server.chats) <= 5  # what was in flight


@pytest.mark.usefixtures("prompts")
def test_a_server_that_is_not_there(generate: Generate) -> None:
    outcome = generate(
        "--input", "prompts.jsonl", "--base-url", "http://127.0.0.1:1/v1", "--model", "m", "--retries", "0"
    )
    assert outcome.code == 1
    assert "10 connection: the connection failed: is the server up, is --base-url right?" in outcome.stderr
    assert "Connection refused" in outcome.stderr or "cannot connect" in outcome.stderr


@pytest.mark.usefixtures("prompts")
def test_a_redirect_to_another_host(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with small_server(lambda _: Reply(body=chat_answer())) as elsewhere:
        place = elsewhere.url.replace("127.0.0.1", "localhost")
        with small_server(lambda _: Reply(308, b"", {"location": place})) as server:
            outcome = generate("--input", "prompts.jsonl", "--base-url", server.url, "--model", "m")
        refused(outcome, f"308 and points to {place}", "use it as --base-url")
        assert elsewhere.received == []


# ---- the user stops it -----------------------------------------------------------------------------------------


def running(folder: Path, mock: Mock, requests: int) -> "subprocess.Popen[bytes]":
    """The script, at work on 200 prompts with four requests in flight, after so many requests."""
    write_rows(folder / "prompts.jsonl", questions(200))
    process = start(
        folder, "--input", "prompts.jsonl", "--base-url", mock.base_url, "--model", mock.model, "-c", "4", "--json"
    )
    until = time.monotonic() + 30
    while mock.requests < requests and time.monotonic() < until:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_once_finishes_what_is_in_flight(folder: Path, mock: Mock, number: signal.Signals) -> None:
    mock.configure(latency="fixed:0.4")
    process = running(folder, mock, 6)
    process.send_signal(number)
    outcome = ended(process)
    assert outcome.code == 130, outcome.stderr
    assert "stopping: finishing what is in flight (once more to stop now)" in outcome.stderr
    assert "interrupted: the same command goes on where it stopped" in outcome.stderr
    stats = mock.stats()
    assert len(read_rows(folder / OUT)) == stats["paid"] == stats["requests"] == 8  # two rounds of four
    assert outcome.result["status"] == "interrupted"
    assert outcome.result["remaining"] == 192
    mock.configure(latency="fixed:0")
    again = ended(start(folder, "--input", "prompts.jsonl", "--base-url", mock.base_url, "--model", mock.model))
    assert again.code == 0
    assert mock.requests == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twice_stops_now_and_nothing_is_corrupt(folder: Path, mock: Mock, number: signal.Signals) -> None:
    mock.configure(latency="fixed:0.05")
    process = running(folder, mock, 20)
    mock.configure(latency="fixed:30")
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(number)
    time.sleep(0.3)
    process.send_signal(number)
    outcome = ended(process)
    assert time.monotonic() - began < 5  # the answers would have taken 30 s
    assert outcome.code == 130, outcome.stderr
    assert "Traceback" not in outcome.stderr
    rows = read_rows(folder / OUT)
    assert len(rows) == mock.requests - 4
    runs = json.loads((folder / "train.jsonl.run.json").read_bytes())["runs"]
    assert runs[-1]["result"]["status"] == "interrupted"
    mock.configure(latency="fixed:0")
    again = ended(start(folder, "--input", "prompts.jsonl", "--base-url", mock.base_url, "--model", mock.model))
    assert again.code == 0
    assert len({row["metadata"]["id"] for row in read_rows(folder / OUT)}) == 200
    assert mock.requests == 204  # the four that were cut off are asked again, nothing else
