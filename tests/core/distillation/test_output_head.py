"""The last layer of real model families, and what cannot be one."""

from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from core.distillation.output_head import OutputHead
from core.errors import UsageError

TINY: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("family", "config"),
    [
        (LlamaForCausalLM, LlamaConfig(**TINY)),
        (Gemma2ForCausalLM, Gemma2Config(**TINY, final_logit_softcapping=3.0)),  # a cap on the logits
        (CohereForCausalLM, CohereConfig(**TINY, logit_scale=0.25)),  # a factor
        (GraniteForCausalLM, GraniteConfig(**TINY, logits_scaling=4.0)),  # a divisor
        (PhiForCausalLM, PhiConfig(**{k: v for k, v in TINY.items() if k != "head_dim"})),  # a bias
    ],
    ids=["llama", "gemma2", "cohere", "granite", "phi"],
)
def test_the_head_of_a_family_gives_its_logits(family: Any, config: Any):
    torch.manual_seed(0)
    model = family(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        ids = torch.tensor([[1, 5, 80, 7]])
        head = OutputHead.from_model(model)
        hidden = model.model(ids).last_hidden_state
        assert torch.allclose(head.logits(hidden), model(ids).logits, atol=1e-5)
    assert head.weight is model.get_output_embeddings().weight


def test_only_the_first_logits_can_be_taken():
    head = OutputHead(torch.arange(12.0).view(4, 3).requires_grad_(), torch.arange(4.0), scale=2.0)
    narrow = head.narrowed(2)
    assert (narrow.width, narrow.scale) == (2, 2.0)
    assert torch.equal(narrow.logits(torch.ones(1, 3)), head.logits(torch.ones(1, 3))[:, :2])
    assert head.narrowed(4) is head
    with pytest.raises(ValueError, match="cannot narrow 4 logits to 5"):
        head.narrowed(5)


def test_a_layer_that_is_not_one_plain_matrix_is_refused():
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    layer: Any = model.get_output_embeddings()
    layer.base_layer = torch.nn.Linear(1, 1)  # as LoRA wraps it
    with pytest.raises(UsageError, match="Leave lm_head out of the LoRA target modules"):
        OutputHead.from_model(model)
    del layer.base_layer
    layer.weight = torch.nn.Parameter(torch.zeros(90 * 16, 1, dtype=torch.uint8), requires_grad=False)  # 4-bit
    with pytest.raises(UsageError, match=r"stored as torch.uint8 \(1440, 1\)"):
        OutputHead.from_model(model)
    with pytest.raises(UsageError, match="LlamaModel has no output embeddings"):
        OutputHead.from_model(model.model)
