"""Who serves a model: by its name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.commands.generate_teacher_data import GenerateTeacherData
from core.errors import ModelNotFound, UsageError
from core.teachers import backend_of, open_teacher
from core.teachers.locate import is_local, is_whole_model, locate, whole_ggufs
from tests.support.running import ROOT, environment


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


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 3000, "a\0b"])
def test_a_name_that_no_file_system_takes_is_not_local(name: str) -> None:
    assert not is_local(name)
    with pytest.raises(ModelNotFound):
        locate(name, gguf=False)


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


def test_a_projector_of_images_is_no_model(folder: Path) -> None:
    for name in ("a-mmproj-Q4_K_M.gguf", "mmproj-F16.gguf", "z-Q8_0.gguf"):
        (folder / name).touch()
    assert locate(".", gguf=True).path.name == "z-Q8_0.gguf"


def test_a_gguf_in_parts_is_whole_with_all_of_them(folder: Path) -> None:
    parts = [folder / f"m-Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for part in parts[:2]:
        part.touch()
    assert whole_ggufs(folder.glob("*.gguf")) == []
    parts[2].touch()
    assert whole_ggufs(folder.glob("*.gguf")) == parts[:1]


def test_a_model_is_whole_with_its_configuration_its_tokenizer_and_every_shard(folder: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for name in ("config.json", "tokenizer.json", *shards):
        assert not is_whole_model(folder)
        (folder / name).touch()
    assert is_whole_model(folder)
    (folder / "model.safetensors.index.json").write_text("{", encoding="utf-8")
    assert not is_whole_model(folder)
    (folder / "model.safetensors").touch()
    assert is_whole_model(folder)


def test_a_download_that_broke_off_is_not_taken_from_the_hubs_cache(folder: Path) -> None:
    snapshot = folder / "cache" / "models--owner--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123", encoding="utf-8")
    for name in ("config.json", "tokenizer.json", "mmproj-Q4_K_M.gguf"):
        (snapshot / name).touch()

    def located(gguf: bool) -> str:
        code = f"from core.teachers.locate import locate; print(locate('owner/name', gguf={gguf}).path.name)"
        env = environment(HF_HUB_CACHE=str(folder / "cache"), PYTHONPATH=str(ROOT))
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, encoding="utf-8")
        return (ran.stdout or ran.stderr.splitlines()[-1]).strip()

    assert "the Hub's cache (nothing that fits)" in located(gguf=False)
    assert "the Hub's cache (nothing that fits)" in located(gguf=True)
    (snapshot / "model.safetensors").touch()
    (snapshot / "name-Q4_K_M.gguf").touch()
    assert located(gguf=False) == "0123"
    assert located(gguf=True) == "name-Q4_K_M.gguf"
