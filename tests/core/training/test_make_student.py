"""Students made of tiny models: layers by hand, embeddings by hand, what is saved loads and answers, bad input."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from core import cli
from core.commands.make_student import MakeStudent, StudentMade
from core.data.run import Run
from core.distillation.chat import ChatSide
from core.errors import StoppedEarly, UsageError
from core.training.make_student import make, save
from core.training.pruning import Influence, choose, keep
from core.training.revocabulary import compose, move, prepare
from tests.support.tiny_model import CHATML
from tests.support.tokenizers import small_tokenizer

MARKS = ("<|im_start|>", "<|im_end|>", "<eos>")
IDLE = (2, 3)
"""Layers of the tiny model that add nothing to the state; the other four are its ends."""


def shape(size: int, layers: int = 6, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        **more,
    }


def old_tokenizer() -> Any:
    tokenizer = small_tokenizer("ab", "Ġcd", special=MARKS, template=CHATML)
    tokenizer.pad_token = "<eos>"
    return tokenizer


def tiny(size: int, **more: Any) -> Any:
    """Six layers, of which IDLE do nothing."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**shape(size, **more))).eval()
    with torch.no_grad():
        for place in set(IDLE) & set(range(len(model.model.layers))):
            model.model.layers[place].self_attn.o_proj.weight.zero_()
            model.model.layers[place].mlp.down_proj.weight.zero_()
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tokenizer = old_tokenizer()
    tiny(len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("ab cd ab\n\ncd cd\n", encoding="utf-8")
    return tmp_path / "text.txt"


def made(source: Path, text: Path, **options: Any) -> StudentMade:
    return make(MakeStudent.model_validate({"model": str(source), "text": [text], **options}), Run())


def logits(model: Any, ids: Sequence[int] = (5, 3, 9, 7)) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


# ---- layers ------------------------------------------------------------------------------------------------------


def test_layers_that_change_nothing_have_no_influence_and_the_others_have_some():
    model = tiny(40)
    influence = Influence(model)
    with influence.measured():
        logits(model)
    values = influence.values()
    logits(model)  # no longer counted
    assert values == influence.values()
    assert [place for place, value in enumerate(values) if abs(value) < 1e-6] == list(IDLE)


def test_the_least_influential_inner_layers_go_first_and_the_ends_last():
    #             0    1    2    3    4    5    6    7       0, 1, 6 and 7 are the ends
    influence = [0.1, 0.2, 0.9, 0.3, 0.7, 0.5, 0.0, 0.4]
    assert choose(influence, 7) == [0, 1, 2, 4, 5, 6, 7]
    assert choose(influence, 5) == [0, 1, 2, 6, 7]
    assert choose(influence, 4) == [0, 1, 6, 7]
    assert choose(influence, 2) == [1, 7]
    assert choose([0.5, 0.1], 1) == [0]
    with pytest.raises(UsageError, match=r"--layers 9, but the model has 8\. Give 1 to 8\."):
        choose(influence, 9)


def test_without_its_idle_layers_a_model_says_the_same_bit_for_bit_with_and_without_a_cache():
    model = tiny(40)
    before = logits(model)
    keep(model, [0, 1, 4, 5])
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]
    assert model.config.num_hidden_layers == 4
    assert torch.equal(before, logits(model))
    with torch.no_grad():
        first = model(input_ids=torch.tensor([[5, 3, 9]]), use_cache=True)
        last = model(input_ids=torch.tensor([[7]]), past_key_values=first.past_key_values).logits
    torch.testing.assert_close(last[0, -1], before[0, -1])


def test_what_the_configuration_says_of_each_layer_stays_with_its_layer(tmp_path: Path):
    kinds = ["full_attention", "sliding_attention"] * 3
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(**shape(40, layer_types=kinds, sliding_window=2, use_sliding_window=True))
    ).eval()
    keep(model, [0, 1, 3, 5])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.layer_types == ["full_attention", *["sliding_attention"] * 3]
    assert torch.equal(logits(model), logits(again))


def test_weights_that_are_no_numbers_are_said_with_their_layer():
    model = tiny(40)
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    influence = Influence(model)
    with influence.measured():
        logits(model)
    with pytest.raises(UsageError, match="layer 3 gives states that are not finite"):
        influence.values()


# ---- vocabulary --------------------------------------------------------------------------------------------------


def test_new_tokens_are_the_means_of_the_old_ones_that_spell_them():
    old, new = old_tokenizer(), small_tokenizer("abab", "Ġcda", special=MARKS, template=CHATML)
    model = tiny(len(old), tie_word_embeddings=False)
    before, head = model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()
    sides = ChatSide(new), ChatSide(old)
    move(model, composition := compose(*sides, len(old)), *sides, new)
    after, end = model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()
    mine, theirs = new.get_vocab(), old.get_vocab()
    torch.testing.assert_close(after[mine["abab"]], before[theirs["ab"]])  # (ab + ab) / 2
    torch.testing.assert_close(after[mine["Ġcda"]], (before[theirs["Ġcd"]] + before[theirs["a"]]) / 2)
    torch.testing.assert_close(end[mine["Ġcda"]], (head[theirs["Ġcd"]] + head[theirs["a"]]) / 2)
    for same in ("ab", "Ġcd", "x", "<|im_end|>", "<eos>"):
        assert torch.equal(after[mine[same]], before[theirs[same]])
    # abab, and aba on the way to it; Ġcda. Everything else has a partner: Ġc, Ġcd, ab, 256 bytes, three marks.
    assert (composition.composed, composition.unknown) == (3, 0)
    assert composition.copied == len(new) - 3
    assert logits(model).shape == (1, 4, len(new))


def test_bytes_that_cannot_be_spelt_and_padding_rows_begin_as_the_mean_of_all():
    old = small_tokenizer("ab", special=MARKS, whole=False, unk="<unk>", template=CHATML)
    new = small_tokenizer("ab", special=(*MARKS, "[PAD260]"), template=CHATML)
    model = tiny(len(old) + 3)  # rows beyond the tokenizer do not count
    mean = model.get_input_embeddings().weight.detach()[: len(old)].mean(0)
    sides = ChatSide(new), ChatSide(old)
    move(model, composition := compose(*sides, len(old) + 3), *sides, new)
    rows = model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(rows[new.get_vocab()["z"]], mean)
    assert composition.unknown >= 254


@pytest.mark.parametrize("tied", [True, False])
def test_moving_to_the_same_tokenizer_changes_nothing(tied: bool):
    model, tokenizer = tiny(len(old_tokenizer()), tie_word_embeddings=tied), old_tokenizer()
    before, side = logits(model), ChatSide(tokenizer)
    move(model, composition := compose(side, side, len(tokenizer)), side, side, tokenizer)
    assert (composition.copied, composition.composed, composition.unknown) == (len(tokenizer), 0, 0)
    assert torch.equal(before, logits(model))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_a_bias_of_the_output_layer_moves_along():
    old, new = old_tokenizer(), small_tokenizer("cd", special=MARKS, template=CHATML)
    model = tiny(len(old), tie_word_embeddings=False)
    model.lm_head.bias = torch.nn.Parameter(torch.arange(float(len(old))))
    move(model, compose(ChatSide(new), ChatSide(old), len(old)), ChatSide(new), ChatSide(old), new)
    c, d = old.get_vocab()["c"], old.get_vocab()["d"]
    assert float(model.lm_head.bias.detach()[new.get_vocab()["cd"]]) == (c + d) / 2


def test_a_tokenizer_without_template_gets_that_of_the_model_and_its_marks():
    new = small_tokenizer("ab", special=("<eos>",))
    side, notes = prepare(new, old_tokenizer())
    assert new.chat_template == CHATML
    assert [side.token_bytes.pieces[place] for place in side.ends] == [b"<|im_end|>", b"<eos>"]
    assert new.pad_token == "<eos>"  # not the end of turn
    assert "<|im_start|>, <|im_end|> became special tokens" in notes[0]
    assert side.note == ""


def test_where_neither_has_a_template_it_is_chatml():
    new = small_tokenizer("ab", eos=None)
    side, notes = prepare(new, small_tokenizer("cd"))
    assert "ChatML is saved with it" in notes[0]
    assert new.eos_token == new.pad_token == "<|im_end|>"
    assert side.prompt_ids([{"role": "user", "content": "ab"}])


def test_a_template_and_padding_of_its_own_stay():
    new = small_tokenizer("ab", special=(*MARKS, "<pad>"), template=CHATML + " ")
    new.pad_token = "<pad>"
    assert prepare(new, old_tokenizer())[1] == []
    assert (new.chat_template, new.pad_token) == (CHATML + " ", "<pad>")


# ---- the whole job -----------------------------------------------------------------------------------------------


def test_a_student_of_fewer_layers_and_another_tokenizer_loads_and_answers(source: Path, text: Path, tmp_path: Path):
    small_tokenizer("Ġcdc", special=("<eos>",)).save_pretrained(tmp_path / "other")
    result = made(source, text, layers=4, tokenizer=str(tmp_path / "other"), output=tmp_path / "student")
    assert result.dropped == list(IDLE)
    assert [each.model for each in result.measured] == ["before", "fewer layers", "new tokenizer"]
    assert result.measured[0].bits_per_byte == pytest.approx(result.measured[1].bits_per_byte)  # idle ones
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert result.vocabulary is not None
    assert result.vocabulary.tokens == len(tokenizer) == model.config.vocab_size
    assert result.parameters == model.num_parameters() < result.parameters_before
    side = ChatSide(tokenizer)
    assert model.generation_config.eos_token_id == list(side.ends)
    ids = side.prompt_ids([{"role": "user", "content": "ab"}])
    assert model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False).shape[1] > len(ids)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "source", "student", "text.txt"]


def test_bits_per_byte_are_the_same_when_nothing_was_changed_but_the_numbers_of_the_tokens(
    source: Path, text: Path, tmp_path: Path
):
    small_tokenizer("Ġcd", "ab", special=MARKS[::-1], template=CHATML).save_pretrained(tmp_path / "other")
    result = made(source, text, tokenizer=str(tmp_path / "other"), output=tmp_path / "student")
    assert result.measured[0].bits_per_byte == pytest.approx(result.measured[1].bits_per_byte, rel=1e-5)
    assert result.measured[0].tokens == result.measured[1].tokens == 7  # ab| cd| |ab and c|d| cd


def test_a_half_precision_model_stays_one(source: Path, text: Path, tmp_path: Path):
    model: Any = AutoModelForCausalLM.from_pretrained(source)
    model.to(torch.bfloat16).save_pretrained(source)
    made(source, text, layers=5, output=tmp_path / "student")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype="auto").dtype == torch.bfloat16


def test_a_dry_run_shows_every_layer_and_writes_nothing(
    source: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = sorted(tmp_path.iterdir())
    command = ["make_student", str(source), "--layers", "5", "--text", str(text), "--dry-run", "--json"]
    with pytest.raises(SystemExit) as ended:
        cli.main(command[0], command[1:])
    assert ended.value.code == 0
    said = capsys.readouterr()
    found = StudentMade.model_validate(orjson.loads(said.out))
    assert (found.status, len(found.layers), len(found.dropped)) == ("dry_run", 6, 1)
    assert "next: the same command without --dry-run" in said.err
    assert sorted(tmp_path.iterdir()) == before


# ---- bad input ---------------------------------------------------------------------------------------------------


def test_folders_that_may_not_be_written_are_said_before_anything_is_measured(source: Path, text: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="is the model itself"):
        made(source, text, layers=5, output=source, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        made(source, text, layers=5, output=text)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="something else than a model"):
        made(source, text, layers=5, output=tmp_path / "foreign", overwrite=True)
    assert (tmp_path / "foreign" / "thesis.txt").exists()


def test_a_model_in_the_folder_is_replaced_only_when_asked(source: Path, text: Path, tmp_path: Path):
    output = tmp_path / "student"
    made(source, text, layers=5, output=output)
    with pytest.raises(UsageError, match="--overwrite"):
        made(source, text, layers=4, output=output)
    made(source, text, layers=4, output=output, overwrite=True)
    assert AutoModelForCausalLM.from_pretrained(output).config.num_hidden_layers == 4
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_a_saved_model_that_differs_from_the_one_in_memory_is_not_kept(source: Path, tmp_path: Path):
    model: Any = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.model.norm.weight = torch.nn.Parameter(model.model.norm.weight.detach() * 2)
    model.lm_head.register_forward_hook(lambda *each: each[-1] + 1)  # what no file holds
    (tmp_path / "student").mkdir()
    with pytest.raises(StoppedEarly, match="does not give the logits of the one in memory"):
        save(model, tokenizer, tmp_path / "student")
    assert [each.name for each in tmp_path.iterdir() if each.name != "source"] == ["student"]


def test_options_that_say_nothing_to_do_are_refused():
    with pytest.raises(ValueError, match="nothing to do: give --layers, --tokenizer or both"):
        MakeStudent.model_validate({"model": "smollm2", "output": "student"})
    with pytest.raises(ValueError, match="name the folder for the student with --output"):
        MakeStudent.model_validate({"model": "smollm2", "layers": 24})


def test_a_stop_ends_the_measuring(source: Path, text: Path, tmp_path: Path):
    run = Run()
    run.stop.ask()
    with pytest.raises(KeyboardInterrupt):
        make(MakeStudent(model=str(source), text=[text], layers=5, output=tmp_path / "student"), run)
    assert not (tmp_path / "student").exists()
