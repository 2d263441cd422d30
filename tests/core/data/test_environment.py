"""Where keys come from, and that they are never shown."""

from pathlib import Path

import pytest

from core.data.environment import credential, dotenv_of, redacted, require_credential
from core.errors import MissingKey, UsageError


@pytest.mark.parametrize(
    "line",
    [
        "OPENAI_API_KEY=sk-abc",
        'OPENAI_API_KEY="sk-abc"',
        "OPENAI_API_KEY='sk-abc'",
        "export OPENAI_API_KEY=sk-abc",
        "OPENAI_API_KEY = sk-abc   # a comment",
        "  OPENAI_API_KEY=sk-abc  ",
        "\ufeffOPENAI_API_KEY=sk-abc",
        "# first\r\nOPENAI_API_KEY=sk-abc\r",
    ],
)
def test_a_key_in_dotenv_is_found_however_it_is_written(folder: Path, line: str) -> None:
    (folder / ".env").write_text(line + "\n", encoding="utf-8", newline="")
    assert credential("OPENAI_API_KEY") == "sk-abc"


def test_the_environment_wins_over_dotenv(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("OPENAI_API_KEY=file\n", encoding="utf-8")
    monkeypatch.setenv("OPENAI_API_KEY", "environment")
    assert credential("OPENAI_API_KEY") == "environment"
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert credential("OPENAI_API_KEY") == "file"


def test_a_dollar_in_a_key_is_part_of_the_key(folder: Path) -> None:
    (folder / ".env").write_text("OPENAI_API_KEY=sk-${HOME}x\n", encoding="utf-8")
    assert credential("OPENAI_API_KEY") == "sk-${HOME}x"


def test_a_missing_key_says_which_variable_and_where_to_put_it(folder: Path) -> None:
    with pytest.raises(MissingKey) as caught:
        require_credential("OPENAI_API_KEY", "api.openai.com needs it")
    message = str(caught.value)
    assert message.startswith("OPENAI_API_KEY is not set; api.openai.com needs it.")
    assert f"put the line OPENAI_API_KEY=... into the file .env in {folder}" in message


@pytest.mark.parametrize("content", ["OPENAI_API_KEY=sk-ä\n".encode("latin-1"), "OPENAI_API_KEY=sk\n".encode("utf-16")])
def test_a_dotenv_that_is_not_utf8_is_named(folder: Path, content: bytes) -> None:
    (folder / ".env").write_bytes(content)
    with pytest.raises(UsageError, match=r"\.env: .*UTF-8"):
        credential("OPENAI_API_KEY")


@pytest.mark.parametrize("key", ["sk-abc def", "sk-abc\ndef", "sk-abc…", "\u201csk-abc\u201d"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError, match="OPENAI_API_KEY") as caught:
        credential("OPENAI_API_KEY")
    assert "sk-abc" not in str(caught.value)


def test_dotenv_is_looked_for_in_the_current_folder_only(folder: Path) -> None:
    (folder / ".env").write_text("OPENAI_API_KEY=x\n", encoding="utf-8")
    (folder / "inner").mkdir()
    assert dotenv_of(folder / "inner") == {}


def test_a_dotenv_that_changes_is_read_again(folder: Path) -> None:
    assert credential("OPENAI_API_KEY") is None
    for key in ("first", "second-and-longer", "another"):
        (folder / ".env").write_text(f"OPENAI_API_KEY={key}\n", encoding="utf-8")
        assert credential("OPENAI_API_KEY") == key
    (folder / ".env").unlink()
    assert credential("OPENAI_API_KEY") is None


def test_redacting_takes_every_occurrence_and_leaves_short_words_alone() -> None:
    assert redacted("key sk-abcd, again sk-abcd", "sk-abcd") == "key ***, again ***"
    assert redacted("a short key", "key", None, "") == "a short key"
