"""Who serves a model: by its name."""

from pathlib import Path

import pytest

from core.commands.generate_teacher_data import GenerateTeacherData
from core.errors import ModelNotFound, UsageError
from core.teachers import backend_of, open_teacher
from core.teachers.locate import locate


@pytest.mark.parametrize(
    ("model", "backend"),
    [
        ("anthropic/claude-sonnet-4", "openrouter"),
        ("openai/gpt-5.2", "openrouter"),
        ("deepseek/deepseek-r1:free", "openrouter"),
        ("~openai/gpt-latest", "openrouter"),
        ("gpt-4o", "openai"),
        ("gpt-5.2-mini", "openai"),
        ("chatgpt-4o-latest", "openai"),
        ("o3", "openai"),
        ("o4-mini-2025-04-16", "openai"),
        ("./model.gguf", "gguf"),
        ("/models/Model-Q4_K_M.gguf", "gguf"),
        ("./folder", "hf"),
        ("/models/llama", "hf"),
        ("~/models/llama", "hf"),
        ("smollm2", "hf"),
    ],
)
def test_the_name_says_who_serves_the_model(folder: Path, model: str, backend: str) -> None:
    assert backend_of(model) == backend


def test_a_folder_that_exists_is_local_even_if_it_looks_like_a_name_at_a_provider(folder: Path) -> None:
    (folder / "vendor" / "name").mkdir(parents=True)
    assert backend_of("vendor/name") == "hf"


def test_what_was_asked_for_wins_and_a_base_url_means_openai() -> None:
    assert backend_of("anthropic/claude-sonnet-4", "nvidia") == "nvidia"
    assert backend_of("my-model", None, "http://127.0.0.1:8000/v1") == "openai"
    assert backend_of("vendor/name", None, "http://127.0.0.1:8000/v1") == "openai"


@pytest.mark.parametrize("model", ["mistral", "claude-sonnet-4", "a/b/c", "", "o", "two words"])
def test_a_name_that_says_nothing_is_refused_with_the_ways_out(folder: Path, model: str) -> None:
    with pytest.raises(UsageError, match=r"vendor/name \(OpenRouter\), or add --backend"):
        backend_of(model)


def test_only_openrouter_knows_what_may_be_distilled() -> None:
    with pytest.raises(UsageError, match=r"--require-distillable: only OpenRouter .* this is openai"):
        open_teacher(GenerateTeacherData(input="a.txt", model="gpt-4o", require_distillable=True))


# ---- where a local model is ------------------------------------------------------------------------------------


def test_a_gguf_file_and_a_folder_with_a_config_are_found(folder: Path) -> None:
    (folder / "m.gguf").touch()
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").touch()
    assert locate("m.gguf", gguf=True).is_gguf
    assert not locate("./hf", gguf=False).is_gguf


def test_the_preferred_quantisation_is_taken_from_a_folder(folder: Path) -> None:
    for name in ("m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        (folder / name).touch()
    assert locate(".", gguf=True).path.name == "m-Q4_K_M.gguf"
    assert locate(".", gguf=True, preferred_quant="q8_0").path.name == "m-Q8_0.gguf"


@pytest.mark.parametrize("gguf", [True, False])
def test_a_model_that_is_nowhere_lists_what_was_tried(folder: Path, gguf: bool) -> None:
    with pytest.raises(ModelNotFound) as caught:
        locate("./none", gguf=gguf)
    message = str(caught.value)
    assert message.startswith("no model ./none. Tried: the path none (there is nothing); ")
    assert "the Hub (not asked: a name there is owner/repo)" in message
    assert "smollm2" in message


def test_an_empty_folder_says_what_it_lacks(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=r"the folder empty \(it holds no config\.json\)"):
        locate("./empty", gguf=False)
    with pytest.raises(ModelNotFound, match=r"the folder empty \(it holds no \.gguf file\)"):
        locate("./empty", gguf=True)
