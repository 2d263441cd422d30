"""Hidden states at the head's door, and the heads of model families."""

from typing import Any

import pytest
import torch
import transformers

from core.errors import UsageError
from core.teachers.hf_states import head_of, states_at_head

SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("config", "scale", "softcap"),
    [
        (transformers.LlamaConfig(**SMALL), 1.0, None),
        (transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4), 1.0, None),
        (transformers.CohereConfig(**SMALL, logit_scale=0.0625), 0.0625, None),
        (transformers.GraniteConfig(**SMALL, logits_scaling=8.0), 0.125, None),
        (transformers.Gemma2Config(**SMALL, final_logit_softcapping=0.5), 1.0, 0.5),
        # Its states are projected before the head.
        (transformers.OPTConfig(vocab_size=99, hidden_size=32, word_embed_proj_dim=16, num_hidden_layers=2,
                                num_attention_heads=4, ffn_dim=64, do_layer_norm_before=False), 1.0, None),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "vocab_size") else "",
)  # fmt: skip
def test_the_head_of_every_family_gives_its_logits(config: Any, scale: float, softcap: float | None):
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    head = head_of(model, "a model")
    assert head.scale == pytest.approx(scale, rel=1e-4)
    assert head.softcap == softcap
    ids = torch.randint(3, 99, (2, 9))
    states, _ = states_at_head(model, ids, torch.ones_like(ids))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert torch.allclose(head.logits(states.flatten(0, 1)), logits.flatten(0, 1), atol=1e-4)


class Twisted(transformers.LlamaForCausalLM):
    """Does something after its head that nobody knows."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        assert out.logits is not None
        out.logits = out.logits**3 + 1
        return out


def test_a_model_whose_logits_are_not_those_of_its_head_is_refused():
    model = Twisted(transformers.LlamaConfig(**SMALL)).eval()
    with pytest.raises(UsageError, match=r"its output layer does not give its logits .* architecture Twisted"):
        head_of(model, "a model")
