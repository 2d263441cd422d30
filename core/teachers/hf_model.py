"""Hugging Face models on this machine: loading (from a folder or a GGUF file) and batched answers."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
)
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from ..errors import UsageError
from .chat_template import ChatTemplate
from .locate import LocalModel
from .protocol import Message, Sampling, ToolSchema


@dataclass(frozen=True)
class Generated:
    """The tokens of one answer, without padding. ended: the model closed its turn itself."""

    tokens: list[int]
    ended: bool


def cache_folder() -> Path:
    """Where converted models are kept: $XDG_CACHE_HOME/distill, by default ~/.cache/distill."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill"


def hf_folder(model: LocalModel, note: Callable[[str], None] = lambda text: None) -> Path:
    """The model as a folder that transformers loads. A GGUF file is converted once (its weights become float32) and
    cached under its SHA-256 and transformers' version, which does the conversion.
    """
    if not model.is_gguf:
        return model.path
    folder = cache_folder() / "models" / f"{sha256(model.path)[:16]}-transformers-{transformers.__version__}"
    if folder.is_dir():
        return folder
    note(f"converting {model.path.name} for transformers, once (about half a minute for 135M parameters)")
    from transformers.utils.quantization_config import GgufConfig

    source: dict[str, Any] = {"gguf_file": model.path.name, "trust_remote_code": False}
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path.parent, **source)
        # Without dequantize=True the folder could not be saved: the config would keep a GGUF quantisation.
        network = AutoModelForCausalLM.from_pretrained(
            model.path.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **source
        )
        network.save_pretrained(new)
        tokenizer.save_pretrained(new)
        new.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_folder(model: LocalModel, note: Callable[[str], None] = lambda text: None) -> Path:
    """A folder with the model's tokenizer, for `load_tokenizer`. That of a GGUF file is converted once, without its
    weights, and cached as `hf_folder` does.
    """
    if not model.is_gguf:
        return model.path
    name = f"{sha256(model.path)[:16]}-transformers-{transformers.__version__}"
    whole, folder = cache_folder() / "models" / name, cache_folder() / "tokenizers" / name
    if whole.is_dir() or folder.is_dir():
        return whole if whole.is_dir() else folder
    note(f"converting the tokenizer of {model.path.name}, once")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    try:
        source: dict[str, Any] = {"gguf_file": model.path.name, "trust_remote_code": False}
        AutoTokenizer.from_pretrained(model.path.parent, **source).save_pretrained(new)
        new.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def load_config(folder: Path) -> Any:
    """The model's configuration. Raises UsageError when it cannot be loaded, or needs Python code of the model's."""
    try:
        # Unset, transformers would ask on the terminal whether to run code that lies beside the model.
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever it meets
        raise UsageError(f"the configuration in {folder} cannot be loaded: {_reason(error)}") from None


def load_tokenizer(folder: Path, *, chat: bool = True) -> Any:
    """The tokenizer, as its folder has it. Raises UsageError when it cannot be loaded.

    chat: refuse a model that cannot chat, too.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever it meets
        raise UsageError(f"the tokenizer in {folder} cannot be loaded: {_reason(error)}") from None
    if chat and not tokenizer.chat_template:
        raise UsageError(f"{folder} has no chat template: a base model cannot answer prompts.")
    return tokenizer


def template_of(tokenizer: Any, model: str) -> ChatTemplate:
    """The tokenizer's chat template; where it has several, transformers takes the one for tools when there are any."""
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("tool_use") or source.get("default") or ""

    def render(messages: list[Message], tools: list[ToolSchema] | None, begin: bool) -> str:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=begin)

    return ChatTemplate(model, source, render)


def load_model(folder: Path, *, dtype: str, device_map: str, attention: str, load_in_4bit: bool) -> Any:
    """The network, ready to generate. dtype "auto" is float32 without an accelerator, else the folder's own.

    Raises UsageError with the loader's own words.
    """
    accelerated = device_map != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    options: dict[str, Any] = {"attn_implementation": attention, "trust_remote_code": False}
    if dtype == "auto":
        options["dtype"] = "auto" if accelerated else torch.float32
    else:
        options["dtype"] = getattr(torch, dtype)
    if load_in_4bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    if accelerated or device_map not in ("auto", "cpu"):
        options["device_map"] = device_map
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    except Exception as error:  # transformers and torch raise whatever they meet
        raise UsageError(f"{folder} cannot be loaded: {_reason(error)}") from None
    # The folder's own defaults (top_k, repetition_penalty, ...) must not change the distribution that is asked for.
    model.generation_config = GenerationConfig(
        eos_token_id=model.generation_config.eos_token_id, bos_token_id=model.generation_config.bos_token_id
    )
    return model


def _reason(error: Exception) -> str:
    """Why a model cannot be loaded: the loader's own words, unless they advise what is not to be had here."""
    if "trust_remote_code" in str(error):
        return "it needs Python code that comes with the model, and such code is not run"
    return f"{type(error).__name__}: {error}"


class Abort(StoppingCriteria):
    """Ends a generation when `asked()` holds."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """input_ids: (B, T). Returns (B,) booleans."""
        return torch.full((input_ids.shape[0],), self._asked(), device=input_ids.device)


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel(0, 1) noise, so that the argmax is a draw from the softmax (Gumbel, 1954; Maddison et al., 2014,
    arXiv:1411.0030). Every row has a generator of its own: its draw depends on its seed, not on its neighbours.
    """

    def __init__(self, seeds: Sequence[int | None], device: torch.device) -> None:
        """device: where the logits are; on CUDA the noise is drawn there, elsewhere on the CPU."""
        where = device if device.type == "cuda" else torch.device("cpu")
        self._generators = [torch.Generator(where) for _ in seeds]
        for generator, seed in zip(self._generators, seeds, strict=True):
            if seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: (B, V) logits, -inf where nothing may be drawn. Returns (B, V)."""
        noise = torch.empty(scores.shape, dtype=torch.float32, device=self._generators[0].device)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.log_().to(scores.device)


def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    seeds: Sequence[int | None],
    aborted: Callable[[], bool] = lambda: False,
    *,
    ends: Sequence[int] = (),
) -> list[Generated]:
    """One answer per prompt (token ids), up to sampling.max_tokens tokens each.

    Temperature, then top-p, then a seeded draw per row; temperature 0 is greedy.
    ends: further tokens that end an answer, besides those of the model and the tokenizer.
    """
    processors: list[LogitsProcessor] = []
    if sampling.temperature > 0:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(GumbelNoise(seeds, model.device))
    known = model.generation_config.eos_token_id
    known = [known] if isinstance(known, int) else list(known or [])
    stops = [*dict.fromkeys([*known, *ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])])]
    # The mask says what is padding, and an answer is cut at its first end: so the token itself may be an end, too.
    pad = next((token for token in (tokenizer.pad_token_id, *stops) if token is not None), 0)
    longest = max(map(len, prompts))
    missing = [longest - len(prompt) for prompt in prompts]
    ids = [[pad] * count + prompt for count, prompt in zip(missing, prompts, strict=True)]
    mask = [[0] * count + [1] * (longest - count) for count in missing]
    # Not in inference mode: in there autocast casts every weight again for every token.
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=stops,
                pad_token_id=pad,
            ),
            logits_processor=transformers.LogitsProcessorList(processors),
            stopping_criteria=transformers.StoppingCriteriaList([Abort(aborted)]),
        )
    answers: list[Generated] = []
    for row in out[:, longest:].tolist():
        end = next((place for place, token in enumerate(row) if token in stops), None)
        answers.append(Generated(row if end is None else row[: end + 1], end is not None))
    return answers
