"""The model in training: what it computes, what it trains, and that what is saved is what was trained."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
import transformers
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from core.commands.train_gold import TrainGold
from core.distillation.chat import ChatSide
from core.errors import ModelNotFound, UsageError
from core.training.chat_forms import ensure_pad
from core.training.student import Student, load_student, load_weights
from tests.support.tiny_model import make_tiny_model

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [10], list(range(20, 60)), [1, 2]]
COMPLETIONS = [[8, 9], [11, 12, 13, 14, 15], [3], []]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def opened(folder: Path, **options: Any) -> Student:
    settings = TrainGold.model_validate({"data": "x.jsonl", "output": "run", "student": str(folder), **options})
    return load_student(settings, CPU, lambda note: None, freeze_embeddings=settings.freeze_embeddings)


def from_config(folder: Path, config: Any) -> Path:
    """Another architecture, with the tokenizer of the tiny model."""
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(make_tiny_model(folder / "tokenizer"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def shaken(student: Student) -> Student:
    """With other weights than it was loaded with, as after training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in student.trained_parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return student


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]])).logits


def moved(student: Student, one_step: Any) -> set[str]:
    """Names of the weights that a step of SGD on them changes."""
    before = {name: weight.clone() for name, weight in student.model.state_dict().items()}
    one_step()
    torch.optim.SGD(student.trained_parameters(), lr=0.1).step()
    return {name for name, weight in student.model.state_dict().items() if not torch.equal(weight, before[name])}


# ---- hidden states -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True])
def test_the_hidden_states_of_a_text_are_the_models_own_whatever_its_neighbours(folder: Path, lora: bool):
    student = shaken(opened(folder, lora=lora))
    with torch.no_grad():
        hidden = student.hidden(PROMPTS, COMPLETIONS)
        own = [
            student.network(input_ids=torch.tensor([[*prompt, *completion]]), output_hidden_states=True)
            .hidden_states[-1][0, len(prompt) - 1 : -1]
            for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
        ]  # fmt: skip
        alone = student.hidden(PROMPTS[1:2], COMPLETIONS[1:2])
    assert hidden.shape == (2 + 5 + 1 + 0, 64)
    assert torch.allclose(hidden, torch.cat(own), atol=1e-5)
    assert torch.allclose(hidden[2:7], alone, atol=1e-5)


def test_the_head_gives_the_models_logits(folder: Path):
    student = opened(folder)
    with torch.no_grad():
        logits = student.model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:4]
        assert torch.allclose(student.head.logits(student.hidden([[5, 6, 7]], [[8, 9]])), logits, atol=1e-5)
    assert student.head.weight is student.model.lm_head.weight
    assert student.width == logits.shape[-1]


def test_no_answers_have_no_rows_and_an_empty_prompt_is_refused(folder: Path):
    student = opened(folder)
    assert student.hidden([[1], [2]], [[], []]).shape == (0, 64)
    with pytest.raises(ValueError, match="an empty prompt"):
        student.hidden([[1], []], [[2], [3]])


# ---- what is trained -----------------------------------------------------------------------------------------------


def test_a_full_student_trains_every_weight_in_float32(folder: Path):
    student = opened(folder, student_dtype="bfloat16")
    assert {weight.dtype for weight in student.trained_parameters()} == {torch.float32}
    assert student.trainable == student.parameters == sum(weight.numel() for weight in student.model.parameters())
    names = {name for name, _ in student.model.named_parameters()}
    loss = lambda: student.head.logits(student.hidden(PROMPTS, COMPLETIONS)).pow(2).sum().backward()  # noqa: E731
    assert moved(student, loss) == names


def test_a_name_that_no_file_system_takes_is_told_in_words():
    with pytest.raises(ModelNotFound, match="no model xxx"):
        opened(Path("x" * 5000))


def test_frozen_embeddings_stay_and_all_else_is_trained(folder: Path):
    student = opened(folder, freeze_embeddings=True)
    loss = lambda: student.head.logits(student.hidden(PROMPTS, COMPLETIONS)).pow(2).sum().backward()  # noqa: E731
    names = {name for name, _ in student.model.named_parameters()}
    assert names - moved(student, loss) == {"model.embed_tokens.weight"}
    assert student.parameters - student.trainable == student.model.get_input_embeddings().weight.numel()


def test_an_output_layer_tied_to_frozen_embeddings_is_frozen_with_them(tmp_path: Path):
    student = opened(from_config(tmp_path, llama(tie_word_embeddings=True)), freeze_embeddings=True)
    assert not student.head.weight.requires_grad
    assert student.head.weight is student.model.get_input_embeddings().weight
    student.head.logits(student.hidden(PROMPTS, COMPLETIONS)).pow(2).sum().backward()
    assert student.head.weight.grad is None


def test_an_adapter_is_trained_and_the_model_below_it_is_not(folder: Path):
    student = opened(folder, lora=True, lora_targets="q,v")
    assert {weight.dtype for weight in student.trained_parameters()} == {torch.float32}
    # Two layers, of each q (64 -> 64) and v (64 -> 32) at rank 16: A is (16, 64), B is (out, 16)
    assert student.trainable == 2 * (16 * 64 + 64 * 16 + 16 * 64 + 32 * 16)
    shaken(student)
    loss = lambda: student.head.logits(student.hidden(PROMPTS, COMPLETIONS)).pow(2).sum().backward()  # noqa: E731
    changed = moved(student, loss)
    assert len(changed) == 8
    assert all(".lora_" in name for name in changed)


def test_an_adapter_begins_as_its_seed_says_and_draws_nothing_from_others(folder: Path):
    torch.manual_seed(5)
    one, expected = opened(folder, lora=True, seed=3), torch.rand(1)
    torch.manual_seed(5)
    two, other = opened(folder, lora=True, seed=3), opened(folder, lora=True, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.trained_parameters(), two.trained_parameters(), strict=True))
    assert not torch.equal(one.trained_parameters()[0], other.trained_parameters()[0])
    assert torch.equal(torch.rand(1), expected)


def test_below_an_adapter_the_model_is_kept_in_the_format_of_the_computation(folder: Path):
    student = opened(folder, lora=True, student_dtype="bfloat16")
    formats = {(".lora_" in name, weight.dtype) for name, weight in student.model.named_parameters()}
    assert formats == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.parametrize("lora", [False, True])
def test_recomputed_activations_give_the_same_gradients(folder: Path, lora: bool):
    gradients: list[list[torch.Tensor]] = []
    for again in (False, True):
        student = shaken(opened(folder, gradient_checkpointing=again, lora=lora, lora_dropout=0.0))
        student.model.train()
        student.head.logits(student.hidden(PROMPTS, COMPLETIONS)).pow(2).sum().backward()
        gradients.append([weight.grad for weight in student.trained_parameters() if weight.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_only_the_adapter_has_dropout(tmp_path: Path):
    # GPT-2 has dropout layers at 0.1, and linear layers of its own kind.
    source = from_config(tmp_path, transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4))
    full = opened(source)
    full.model.train()
    assert torch.equal(full.hidden([[1, 2]], [[3, 4]]), full.hidden([[1, 2]], [[3, 4]]))
    adapted = shaken(opened(source, lora=True, lora_targets="c_attn", lora_dropout=0.5))
    adapted.model.train()
    assert not torch.equal(adapted.hidden([[1, 2]], [[3, 4]]), adapted.hidden([[1, 2]], [[3, 4]]))


# ---- what is saved -------------------------------------------------------------------------------------------------


def llama(**more: Any) -> Any:
    return transformers.LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, **more
    )


def test_a_saved_student_is_a_plain_model_with_bit_identical_logits(folder: Path, tmp_path: Path):
    student = shaken(opened(folder))
    student.save(tmp_path, merge=False)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again), logits_of(student.model))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == student.tokenizer.chat_template
    assert ChatSide(tokenizer).ends == student.side.ends
    assert again.generation_config.eos_token_id == list(student.side.ends)


def test_a_saved_adapter_is_loaded_by_peft_with_bit_identical_logits(folder: Path, tmp_path: Path):
    student = shaken(opened(folder, lora=True))
    student.save(tmp_path, merge=False)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    again = peft.PeftModel.from_pretrained(base, str(tmp_path))
    assert torch.equal(logits_of(again), logits_of(student.model))
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_merged_adapter_gives_the_logits_of_the_adapter_and_the_student_stays_as_it_is(
    architecture: str, tmp_path: Path
):
    gpt2 = transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4)
    source = from_config(tmp_path / "source", gpt2 if architecture == "gpt2" else llama(tie_word_embeddings=True))
    targets = "c_attn" if architecture == "gpt2" else "q,v,up"
    student = shaken(opened(source, lora=True, lora_targets=targets))
    before = logits_of(student.model)
    student.save(tmp_path / "merged", merge=True)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits_of(again), before, atol=1e-5)
    assert not torch.allclose(logits_of(again), logits_of(opened(source).model), atol=1e-2)
    assert torch.equal(logits_of(student.model), before)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_goes_on_with_exactly_the_weights_that_were_saved(folder: Path, tmp_path: Path, lora: bool):
    student = shaken(opened(folder, lora=lora))
    student.save(tmp_path, merge=False)
    fresh = opened(folder, lora=lora)
    kept = fresh.trained_parameters()
    load_weights(fresh, tmp_path)
    assert all(a is b for a, b in zip(kept, fresh.trained_parameters(), strict=True))  # an optimiser holds them
    assert all(torch.equal(a, b) for a, b in zip(kept, student.trained_parameters(), strict=True))


def test_weights_of_another_student_are_refused(folder: Path, tmp_path: Path):
    opened(folder, lora=True, lora_rank=4).save(tmp_path, merge=False)
    with pytest.raises(UsageError, match=r"are not those of the student .* or begin anew with --overwrite"):
        load_weights(opened(folder, lora=True), tmp_path)
    with pytest.raises(UsageError, match="are not those of the student"):
        load_weights(opened(folder), tmp_path)


@pytest.mark.parametrize(("chatml", "begins"), [(True, "<|im_start|>user\nHi"), (False, "### User:\nHi\n\n### Ass")])
def test_a_student_without_a_chat_template_is_saved_with_the_one_it_was_trained_with(
    tmp_path: Path, chatml: bool, begins: str
):
    source = make_tiny_model(tmp_path / "source", template=None)
    if not chatml:
        for file in source.glob("tokenizer*.json"):
            file.write_text(file.read_text(encoding="utf-8").replace("<|im_start|>", "<|begin|>"), encoding="utf-8")
    student = opened(source)
    messages = [{"role": "user", "content": "Hi"}]
    student.save(tmp_path / "saved", merge=False)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    asked = saved.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked.startswith(begins)
    assert saved(asked, add_special_tokens=False)["input_ids"] == student.side.prompt_ids(messages)
    assert ChatSide(saved).ends == student.side.ends
    assert student.tokenizer.chat_template is None


@pytest.mark.parametrize("options", [{}, {"lora": True}])
def test_what_batches_are_padded_with_is_not_saved_as_the_students_own(
    folder: Path, tmp_path: Path, options: dict[str, Any]
):
    """TRL's trainer makes the end of text the padding of tokenizer and model where they have none; trained again, a
    student with that in its configuration would never train the end's embedding."""
    source = without_padding(folder, tmp_path / "source", eos="<|im_end|>")
    student = opened(source, **options)
    trl_trainer(student, tmp_path)
    end = student.side.end_of_turn
    text_config = student.network.config.get_text_config()
    assert (student.tokenizer.pad_token, text_config.pad_token_id) == ("<|im_end|>", end)
    for merge in {False, bool(options)}:
        saved = tmp_path / f"saved {merge}"
        student.save(saved, merge)
        assert transformers.AutoTokenizer.from_pretrained(saved).pad_token is None
        if (saved / "config.json").exists():
            assert transformers.AutoConfig.from_pretrained(saved).pad_token_id is None
            network: Any = transformers.AutoModelForCausalLM.from_pretrained(saved)
            assert network.get_input_embeddings().padding_idx is None
    assert (student.tokenizer.pad_token, text_config.pad_token_id) == ("<|im_end|>", end)


def test_a_student_that_can_pad_is_saved_with_its_own_padding(folder: Path, tmp_path: Path):
    student = opened(folder)
    student.save(tmp_path, merge=False)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).pad_token == "<|endoftext|>"
    assert transformers.AutoConfig.from_pretrained(tmp_path).pad_token_id == student.pad_id == 0


def test_trl_trains_a_tokenizer_without_padding_and_end_of_text(folder: Path, tmp_path: Path):
    student = opened(without_padding(folder, tmp_path / "source", eos=None))
    with pytest.raises(ValueError, match="pad_token"):
        trl_trainer(student, tmp_path)
    ensure_pad(student.tokenizer, student.side.end_of_turn)
    trainer = trl_trainer(student, tmp_path)
    collate: Any = trainer.data_collator
    assert collate(list(rows()))["input_ids"][1].tolist() == [8, 9, student.side.end_of_turn]
    student.save(tmp_path / "saved", merge=False)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (saved.pad_token, saved.eos_token) == (None, None)
    assert ChatSide(saved).end_of_turn == student.side.end_of_turn


def without_padding(folder: Path, target: Path, eos: str | None) -> Path:
    """The tiny model, with a tokenizer and a configuration that name no padding."""
    shutil.copytree(folder, target)
    for file, names in (("tokenizer_config.json", ("pad_token", "eos_token")), ("config.json", ("pad_token_id",))):
        content = json.loads((target / file).read_text(encoding="utf-8"))
        content = {name: value for name, value in content.items() if name not in names}
        if eos is not None and file.startswith("tokenizer"):
            content["eos_token"] = eos
        (target / file).write_text(json.dumps(content), encoding="utf-8")
    return target


def trl_trainer(student: Student, folder: Path) -> SFTTrainer:
    """TRL's own over `rows()`, as its users make it."""
    arguments = SFTConfig(
        str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return SFTTrainer(student.model, arguments, train_dataset=rows(), processing_class=student.tokenizer)


def rows() -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    )


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_an_unknown_target_is_named_with_those_that_there_are(folder: Path):
    with pytest.raises(UsageError, match=r"has no layer c_attn .* There are: q_proj, k_proj, v_proj, o_proj, gate_"):
        opened(folder, lora=True, lora_targets="q,c_attn")
    with pytest.raises(UsageError, match=r"has no layer lm_head "):
        opened(folder, lora=True, lora_targets="lm_head")


def test_an_adapter_is_no_student(folder: Path, tmp_path: Path):
    opened(folder, lora=True).save(tmp_path, merge=False)
    with pytest.raises(UsageError, match=r"is a LoRA adapter, .* Merge it first"):
        opened(tmp_path)


def test_the_user_is_told_of_a_missing_chat_template(tmp_path: Path):
    options = TrainGold.model_validate(
        {"data": "x.jsonl", "output": "run", "student": str(make_tiny_model(tmp_path, template=None))}
    )
    notes: list[str] = []
    load_student(options, CPU, notes.append)
    assert "has no chat template" in notes[0]
