"""A real, tiny chat model: byte-level BPE trained on the spot, two layers of random weights, a ChatML template."""

import importlib.util
from pathlib import Path

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def real_template(name: str) -> str:
    """The chat template of a real model family, as TRL ships it ("qwen2_5", "qwen3", "llama3_1", "glm4moe", ...)."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def make_tiny_model(
    folder: Path,
    *,
    template: str | None = CHATML,
    positions: int = 256,
    special: tuple[str, ...] = (),
    corpus: str = "What is the capital of France? The capital of France is Paris. Explain photosynthesis.",
) -> Path:
    """Write a model of about 100,000 parameters in the Hugging Face layout; the same weights every time.

    special: further special tokens.   corpus: what its tokens are made for.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [corpus],
        trainers.BpeTrainer(
            vocab_size=1000,  # at most: a short corpus gives fewer
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        eos_token_id=bpe.token_to_id("<|im_end|>"),
        bos_token_id=None,
        pad_token_id=bpe.token_to_id("<|endoftext|>"),
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teach(folder: Path, prompt: str, answer: str, steps: int = 150) -> None:
    """Train a tiny model until it answers one prompt (both with their special tokens) word for word."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    tokens = torch.tensor([asked + said])
    labels = torch.tensor([[-100] * len(asked) + said])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only waits for the other threads
    for _ in range(steps):
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
