"""The text of --help."""

import pytest

from core.cli import help_of
from core.commands import COMMANDS, load
from core.commands.base import flag


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [20, 80, 500])
def test_the_help_names_every_option_and_fits_the_terminal(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    model = load(name)
    text = help_of(name, model)
    for field in model.model_fields:
        shown = f"[{flag(field)}]" if model.option(field).positional else flag(field)
        assert f"  {shown}" in text, field
    for general in ("--config", "--json", "--progress NAME", "--events PATH", "--help, -h"):
        assert f"  {general}" in text
    free = (*model.examples, "Usage: ")  # commands are to be copied, so that they are never wrapped
    unwrapped = [line for line in text.splitlines() if not line.strip().startswith(free)]
    assert max(len(line) for line in unwrapped) <= max(60, min(columns, 120))


def test_the_help_says_what_is_required_allowed_and_default() -> None:
    text = " ".join(help_of("generate_teacher_data", load("generate_teacher_data")).split())
    assert "generate_teacher_data.py --input TEXT [OPTIONS]" in text
    assert "or - for standard input. [required]" in text
    assert "--max-tokens INT Longest answer, in tokens; reasoning counts. [default: 2048]" in text
    assert (
        "[openrouter | openai | nvidia | together | fireworks | vllm | sglang | llama-server | ollama | gguf | hf]"
        in text
    )
    assert "--no-drop-truncated keeps them. [default: on]" in text


def test_a_list_that_is_empty_unless_named_has_no_default() -> None:
    assert "PydanticUndefined" not in "".join(help_of(name, load(name)) for name in COMMANDS)
