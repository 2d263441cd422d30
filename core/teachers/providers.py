"""Servers by name: where they are, whose key they take, and what they can be asked."""

from dataclasses import dataclass, field
from typing import Any, Literal

Protocol = Literal["vllm", "echo", "sglang"]
"""How a server scores a given text. vllm: `prompt_logprobs` of /completions. echo: `echo` and `logprobs` there
(OpenAI's old completions; Together, Fireworks, llama-cpp-python). sglang: /generate with `return_logprob`."""


@dataclass(frozen=True)
class Provider:
    """url: of its API, up to and with /v1.   key: the variable that holds its key; one's own servers often have none.
    hosted: it is somebody else's and needs the key.   scoring: how it scores a given text; None: it cannot.
    prefill: fields of a request that make it go on with a last message of the assistant, instead of answering it.
    """

    url: str
    key: str
    hosted: bool = False
    scoring: Protocol | None = None
    prefill: dict[str, Any] = field(default_factory=dict[str, Any])


GO_ON = {"continue_final_message": True, "add_generation_prompt": False}
"""vLLM's and SGLang's chat API close a last message of the assistant unless they are told not to."""

PROVIDERS: dict[str, Provider] = {
    "openrouter": Provider("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", hosted=True),
    "openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY", hosted=True),
    "nvidia": Provider("https://integrate.api.nvidia.com/v1", "NVIDIA_API_KEY", hosted=True),
    "together": Provider("https://api.together.xyz/v1", "TOGETHER_API_KEY", hosted=True, scoring="echo"),
    "fireworks": Provider("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", hosted=True, scoring="echo"),
    "vllm": Provider("http://127.0.0.1:8000/v1", "VLLM_API_KEY", scoring="vllm", prefill=GO_ON),
    "sglang": Provider("http://127.0.0.1:30000/v1", "SGLANG_API_KEY", scoring="sglang", prefill=GO_ON),
    "llama-server": Provider("http://127.0.0.1:8080/v1", "LLAMA_API_KEY"),
    "ollama": Provider("http://127.0.0.1:11434/v1", "OLLAMA_API_KEY"),
}
"""By the name of --backend."""
