"""What must not be seen is not: in texts, in streams, and in the environment of other processes."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.commands import COMMANDS, load
from core.commands.generate_teacher_data import GenerateTeacherData
from core.commands.teacher import TeacherOptions
from core.data.secrets import MARK, PROVIDER_KEYS, RedactingStream, child_environment, is_credential, redact
from core.teachers.providers import PROVIDERS

OPENROUTER = "sk-or-v1-0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "secret",
    [
        OPENROUTER,
        "sk-proj-Ab12Cd34Ef56Gh78Ij90",
        "sk-ant-api03-Ab12Cd34Ef56Gh78",
        "hf_" + "aB" * 17,
        "nvapi-" + "x_9-" * 8,
        "gsk_" + "a1" * 20,
        "fw_" + "3Zk" * 8,
        "ghp_" + "q" * 36,
        "AKIA" + "Q7" * 8,
        "AIza" + "Sy" * 17,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r",
    ],
)
def test_keys_of_known_forms_are_blanked_wherever_they_stand(folder: Path, secret: str) -> None:
    for text in ("{}", "key={}.", '{{"key": "{}"}}', "(from {}, see below)", "https://x.example/?a={}&b=1"):
        assert secret not in redact(text.format(secret))
        assert redact(text.format(secret)) == text.format(MARK)


def test_secrets_by_their_place_are_blanked(folder: Path) -> None:
    assert redact("Authorization: Bearer ab12cd34ef") == "Authorization: Bearer ***"
    assert redact("authorization: Basic dXNlcjpwYXNz") == "authorization: Basic ***"
    assert redact("http://me:hunter2@proxy.example:3128/") == "http://***@proxy.example:3128/"
    assert redact("GET /models?key=abcdefgh12&limit=3") == "GET /models?key=***&limit=3"
    assert redact("api_key='x', api_key=abcdefgh") == "api_key='x', api_key=***"


@pytest.mark.parametrize(
    "text",
    [
        "a task-oriented risk-adjusted sk-learn-based-classification approach",
        "basic arithmetic, bearer certificates",
        "eos_token=<|endoftext|> pad_token=<|im_end|>",
        "max_tokens=12345678 and tokens: 87654321",
        "see https://example.org:8443/a@b for more",
        "hf_cache, fw_small, AKIA",
        "api_key_env=OPENAI_API_KEY",
    ],
)
def test_ordinary_words_stay(folder: Path, text: str) -> None:
    assert redact(text) == text


def test_values_of_credentials_are_blanked_whatever_their_form(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("MY_API_KEY='plain-words-only'\nNAME=plain\n", encoding="utf-8")
    monkeypatch.setenv("DISTILL_MCP_TOKEN", "correct horse")
    monkeypatch.setenv("LONGER_SECRET", "correct horse battery")
    monkeypatch.setenv("VLLM_API_KEY", "EMPTY")
    assert redact("plain-words-only, plain") == "***, plain"
    assert redact("correct horse battery staple; correct horse") == "*** staple; ***"
    assert redact("the queue is EMPTY") == "the queue is EMPTY"


def test_an_env_file_that_cannot_be_read_does_not_keep_texts_from_being_shown(folder: Path) -> None:
    (folder / ".env").write_bytes("OPENAI_API_KEY=ä\n".encode("latin-1"))
    assert redact(f"it was {OPENROUTER}") == "it was ***"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_KEY_2", "db_password"])
def test_names_of_credentials(name: str) -> None:
    assert is_credential(name)


@pytest.mark.parametrize("name", ["MAX_TOKENS", "TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "HOME", "KEYBOARD", ""])
def test_names_of_other_variables(name: str) -> None:
    assert not is_credential(name)


@pytest.mark.parametrize(
    "unit", ["sk-", "-eyJ", "://", "://a:", "bearer ", "hf_", "?key=", "password=", "sk-a bearer "]
)
def test_a_text_made_to_keep_the_search_busy_does_not(folder: Path, unit: str) -> None:
    text = unit * (300_000 // len(unit))
    before = time.process_time()
    redact(text)
    stream = RedactingStream(io.StringIO())
    stream.write(text[:100_000])
    stream.flush()
    assert time.process_time() - before < 5  # a search that is not bounded takes minutes


# ---- streams ------------------------------------------------------------------------------------------------------


def test_a_line_goes_on_when_it_ends_and_a_prompt_when_it_is_flushed(folder: Path) -> None:
    out = io.StringIO()
    stream = RedactingStream(out)
    stream.write("half a li")
    assert out.getvalue() == ""
    stream.write("ne\nand more? ")
    assert out.getvalue() == "half a line\n"
    stream.flush()
    assert out.getvalue() == "half a line\nand more? "


@given(st.data())
def test_a_secret_in_pieces_never_passes(data: st.DataObject) -> None:
    secret = data.draw(st.sampled_from([OPENROUTER, "hf_" + "aB3" * 11, "horse staple battery 9"]))
    text = (
        data.draw(st.text("ab -\n\r:s", max_size=12))
        + " "
        + secret
        + data.draw(st.sampled_from([" ", "\n", '"', ", x"]))
    )
    # Known values may be torn anywhere; a form is known by its beginning, which comes in one piece.
    head = text.index(secret) + (1 if secret.startswith("horse") else 3)
    cuts = sorted(data.draw(st.sets(st.integers(head, len(text)), max_size=6)))
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_SECRET", "horse staple battery 9")
        stream = RedactingStream(out)
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            stream.write(text[start:end])
            if data.draw(st.booleans()):
                stream.flush()
        stream.close()
    assert out.getvalue() == text.replace(secret, MARK)


def test_a_line_without_an_end_does_not_fill_the_memory(folder: Path) -> None:
    out = io.StringIO()
    stream = RedactingStream(out)
    for _ in range(300):
        stream.write("x" * 1000)
    assert len(out.getvalue()) > 200_000
    stream.write("." + OPENROUTER * 10_000)  # one long secret
    stream.close()
    assert OPENROUTER not in out.getvalue()
    assert out.getvalue().endswith("x.***")


def test_a_traceback_of_a_process_shows_no_key(tmp_path: Path) -> None:
    code = (
        "import sys; from core.data.secrets import RedactingStream; sys.stderr = RedactingStream(sys.stderr)\n"
        "def ask(key): raise RuntimeError(f'refused: {key}')\n"
        f"ask({OPENROUTER!r})\n"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1
    assert "RuntimeError: refused: ***" in done.stderr
    assert OPENROUTER not in done.stderr


# ---- environment --------------------------------------------------------------------------------------------------


def test_the_keys_of_all_providers_are_known() -> None:
    assert set(PROVIDER_KEYS) == {provider.key for provider in PROVIDERS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_process_gets_what_its_options_read_and_nothing_of_others(name: str) -> None:
    model = load(name)
    own = {key: "1" for field in model.model_fields for key in model.option(field).env_keys}
    needed = {"PATH": "/bin", "HOME": "/h", "LC_ALL": "C", "HF_HOME": "/hf", "CUDA_VISIBLE_DEVICES": "0"}
    needed |= {"https_proxy": "http://p:1", "SSL_CERT_FILE": "/c", "XDG_CACHE_HOME": "/x", "OMP_NUM_THREADS": "1"}
    others = {"AWS_SECRET_ACCESS_KEY": "s", "DISTILL_MCP_TOKEN": "t", "ANTHROPIC_API_KEY": "a", "LD_PRELOAD": "/e.so"}
    others |= {"SSH_AUTH_SOCK": "/s", "GIT_ASKPASS": "/g", "DATABASE_URL": "d"}
    assert child_environment(model, own | needed | others) == own | needed


def test_the_variable_that_an_option_names_as_the_key_goes_along() -> None:
    environ = {"MY_LLM_KEY": "k", "PATH": "/bin"}
    command = GenerateTeacherData.model_validate({"input": "p.jsonl", "output": "o.jsonl", "api_key_env": "MY_LLM_KEY"})
    assert child_environment(command, environ) == environ
    assert child_environment(TeacherOptions, environ) == {"PATH": "/bin"}


def test_a_job_learns_how_many_may_run_on_a_device() -> None:
    environ = {"DISTILL_JOBS_PER_DEVICE": "2", "DISTILL_MCP_TOKEN": "a token of the server"}
    assert child_environment(load("train_sft"), environ) == {"DISTILL_JOBS_PER_DEVICE": "2"}


def test_python_starts_in_that_environment(tmp_path: Path) -> None:
    kept = child_environment(load("check_data"), os.environ)
    code = "import json, os, sys; print(json.dumps(sorted(os.environ)))"
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, check=True, cwd=tmp_path)
    assert set(json.loads(done.stdout)) - set(kept) <= {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
