"""Which models keep packed rows apart: a real Llama does, a real OPT does not."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from core.commands.train_sft import TrainSft
from core.errors import UsageError
from core.training.packing import check_packing
from core.training.student import Student, load_student
from tests.support.tiny_model import make_tiny_model

CPU = torch.device("cpu")
COLLATE = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("llama"))


def another(folder: Path, tokenizer: Path, config: Any, scale: float = 0.3) -> Path:
    """Another architecture with the tokenizer of the tiny model. scale: of its weights."""
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    config.vocab_size = len(words)
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, scale)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def opened(folder: Path, **options: Any) -> Student:
    given = {"data": "x.jsonl", "output": "run", "model": str(folder), **options}
    return load_student(TrainSft.model_validate(given), CPU, lambda note: None, dropout=True)


def mixed() -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("autocast", [nullcontext, mixed])
@pytest.mark.parametrize("lora", [{}, {"qlora_rank": 4, "student_dtype": "bfloat16", "lora_dropout": 0.5}])
def test_a_llama_keeps_packed_rows_apart_and_stays_as_it_is(llama: Path, autocast: Any, lora: dict[str, Any]) -> None:
    student = opened(llama, **lora)
    student.model.train()
    before = {name: weight.clone() for name, weight in student.model.state_dict().items()}
    check_packing(student, COLLATE, CPU, autocast)
    assert student.model.training
    assert all(torch.equal(weight, before[name]) for name, weight in student.model.state_dict().items())
    assert all(weight.grad is None for weight in student.model.parameters())


def test_dropout_does_not_look_like_a_neighbour(tmp_path: Path, llama: Path) -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.5)
    student = opened(another(tmp_path / "gpt2", llama, config))
    student.model.train()
    check_packing(student, COLLATE, CPU, nullcontext)


@pytest.mark.parametrize("autocast", [nullcontext, mixed])
def test_an_opt_is_refused(tmp_path: Path, llama: Path, autocast: Any) -> None:
    folder = another(tmp_path / "opt", llama, transformers.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32))
    student = opened(folder)
    expected = r"--packing: .*opt lets packed rows see one another .*changes.* by \d.*leave out --packing"
    with pytest.raises(UsageError, match=expected):
        check_packing(student, COLLATE, CPU, autocast)
    add_fused_lm_head(student.model)  # as TRL's trainer leaves it
    with pytest.raises(UsageError, match=expected):
        check_packing(student, COLLATE, CPU, autocast)


def test_a_neighbour_that_shows_through_a_little_is_found_in_short_numbers(tmp_path: Path, llama: Path) -> None:
    """As far from the row alone as rounding might be, but two neighbours of one length must not differ."""
    config = transformers.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32)
    student = opened(another(tmp_path / "opt", llama, config, scale=0.15))
    with pytest.raises(UsageError, match=r"log-probabilities by 0\.[1-4]"):
        check_packing(student, COLLATE, CPU, mixed)


def test_a_row_that_is_read_at_other_places_than_alone_is_found(tmp_path: Path, llama: Path) -> None:
    student = opened(another(tmp_path / "gpt2", llama, transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2)))

    def shifted(rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The second row's positions begin at 3, so that the rows are told apart all the same."""
        found = COLLATE(rows)
        if len(rows[0]["seq_lengths"]) > 1:
            found["position_ids"][0, rows[0]["seq_lengths"][0] :] += 3
        return found

    check_packing(student, COLLATE, CPU, nullcontext)
    with pytest.raises(UsageError, match="leave out --packing"):
        check_packing(student, shifted, CPU, nullcontext)


def test_a_model_that_needs_a_kernel_for_it_is_refused_with_its_own_words(tmp_path: Path, llama: Path) -> None:
    sizes = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 64}
    config = transformers.Lfm2Config(**sizes, layer_types=["conv", "full_attention"])
    student = opened(another(tmp_path / "lfm2", llama, config))
    with pytest.raises(UsageError, match=r"lfm2 lets packed rows see one another \(.*causal_conv1d.*leave out"):
        check_packing(student, COLLATE, CPU, nullcontext)


def test_a_lack_of_memory_is_no_refusal(llama: Path) -> None:
    student = opened(llama)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    student.model.register_forward_pre_hook(full)
    student.model.train()
    with pytest.raises(torch.OutOfMemoryError):
        check_packing(student, COLLATE, CPU, nullcontext)
    assert student.model.training


def test_logits_that_are_no_numbers_are_refused(llama: Path) -> None:
    student = opened(llama)
    with torch.no_grad():
        student.head.weight.fill_(float("nan"))
    with pytest.raises(UsageError, match="by nan"):
        check_packing(student, COLLATE, CPU, nullcontext)
