"""How much memory a run will need, from the shapes of its models and of its data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..commands.train_gold import TrainGold
from ..distillation.fused_chunks import CHUNK_BYTES, MAX_ROWS
from ..teachers.hf_model import hf_folder
from ..teachers.locate import locate
from .samples import Sample, Samples
from .student import Student, computation_dtype

GB = 1e9
LIBRARIES_GB = 0.6
"""Resident memory of torch, transformers and peft, and of the tables of two tokenizers."""
NF4_BYTES = 0.5 + 4 / 64
"""Of a weight in 4 bits: half a byte, and a float32 scale for every 64 of them."""


@dataclass(frozen=True)
class TeacherSize:
    """parameters: None where its file does not tell.   gb: its weights in memory."""

    parameters: int | None
    gb: float


def memory_estimate(
    options: TrainGold,
    student: Student,
    samples: Samples,
    *,
    teacher_gb: float,
    teacher_width: int,
    processes: int,
    device: torch.device,
) -> dict[str, float]:
    """GB (10^9 bytes) that one process holds at most, by part, and "in all". An estimate from shapes, not a bound.

    libraries      0.6 on a CPU; elsewhere 0, as they lie in other memory than the models
    weights        as they are stored; in bfloat16 over float32 weights 2 bytes each for the cast copies, too
    gradients      4 bytes for each trained weight
    optimiser      8 bytes for each trained weight: the two averages of AdamW
    activations    rows x tokens x layers x bytes x numbers, with the numbers that are kept for the backward pass
                     6 D + 2 H + 2 K + 4 I                  full training
                     2 D + 2 H + 2 K + 3 I + adapters       LoRA, whose frozen layers need not keep their inputs
                   D: hidden width, H and K: width of all queries and of all keys, I: inner width of the MLP,
                   adapters: the input widths, twice with dropout (its mask, its result). 4 bytes each in float32; in
                   bfloat16 2, but 4 for those of the norms (6 D, 2 D).
                   Checkpointing keeps D for each layer, and the numbers of one layer.
                   rows: --micro-batch-size. tokens: the longest prompt and answer. Twice with --lambda-sft where a
                   sample can have two answers.
    loss           a chunk of both models' logits, and the output layer's gradient (V D 4 bytes) where it is trained
    KV cache       2 layers K tokens for each sample of the process' step, which are answered together
    teacher        its weights
    in all         libraries + weights + optimiser + teacher + max(KV cache, gradients + activations + loss)

    Not in it: what the allocator holds on to, logits while answers are drawn, the teacher's own forward pass,
    attention that keeps its weights (eager), padding to longer neighbours of held-out samples.

    Measured on a CPU with one thread, SmolLM2-135M as student and teacher, 4 texts of 60 + 64 tokens, against the peak
    resident memory of two steps: full 4.1 GB estimated, 4.0 measured (+2 %), with checkpointing 3.5 and 3.6 (-3 %);
    LoRA 2.5 and 2.6 (-6 %), with checkpointing 1.8 and 1.9 (-4 %), on all seven projections with 8 samples and no
    dropout 2.5 and 3.0 (-16 %); 2 texts of 312 tokens with frozen embeddings 4.0 and 4.0 (-2 %). The 0.6 GB of the
    libraries were chosen on the others of these runs. Not measured on a GPU.

    teacher_width: its number of logits where it tells the whole distribution, else 0.
    """
    model, shape = student.model, _shape(student.model.config.get_text_config())
    accelerated = device.type != "cpu"
    rows = -(-options.batch_size // processes)
    micro = min(rows, options.micro_batch_size)
    draws = bool(options.lambda_kd) and any(may_be_own(sample, options) for sample in samples.train)
    longest, longest_answer = _longest(samples.train, options)
    number = 2 if (computation_dtype(options.student_dtype, device) == torch.bfloat16) else 4

    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    if number == 2 and not student.lora:
        weights += 2 * student.parameters
    numbers, norms = shape.kept_by_full_training if not student.lora else shape.kept_by_lora
    a_layer = (numbers - norms) * number + norms * 4
    adapters = _adapter_inputs(model) * (2 if options.lora_dropout else 1) * number
    kept = shape.layers * a_layer + adapters
    if options.gradient_checkpointing:
        kept = shape.layers * shape.width * 4 + a_layer + adapters // shape.layers
    twice = options.lambda_sft and draws and any(sample.answer_ids for sample in samples.train)

    a_row = (student.width + teacher_width) * 4
    chunk = min(micro * longest_answer, MAX_ROWS * (16 if accelerated else 1))
    loss = min(chunk * a_row, CHUNK_BYTES * (10 if accelerated else 1))
    if student.head.weight.requires_grad:
        loss += student.head.weight.numel() * 4
    answers_drawn = draws or bool(samples.held_out)
    longest_drawn = max((len(each.prompt_ids) for each in [*samples.train, *samples.held_out]), default=0)
    cached = rows * (longest_drawn + options.max_new_tokens) if answers_drawn else 0
    parts = {
        "libraries": 0.0 if accelerated else LIBRARIES_GB,
        "weights": weights / GB,
        "gradients": 4 * student.trainable / GB,
        "optimiser": 8 * student.trainable / GB,
        "activations": micro * longest * kept * (2 if twice else 1) / GB,
        "loss": loss / GB,
        "KV cache": 2 * shape.layers * shape.keys * cached * number / GB,
        "teacher": teacher_gb,
    }
    always = sum(parts[name] for name in ("libraries", "weights", "optimiser", "teacher"))
    learning = parts["gradients"] + parts["activations"] + parts["loss"]
    return {**parts, "in all": always + max(parts["KV cache"], learning)}


@dataclass(frozen=True)
class Shape:
    """layers, and the widths D (width), H (queries), K (keys), I (inner) of `memory_estimate`."""

    layers: int
    width: int
    queries: int
    keys: int
    inner: int

    @property
    def kept_by_full_training(self) -> tuple[int, int]:
        """(numbers that a layer keeps of a token, how many of them belong to norms)."""
        norms = 6 * self.width
        return norms + 2 * self.queries + 2 * self.keys + 4 * self.inner, norms

    @property
    def kept_by_lora(self) -> tuple[int, int]:
        """The same without what the adapters keep."""
        norms = 2 * self.width
        return norms + 2 * self.queries + 2 * self.keys + 3 * self.inner, norms


def _shape(config: Any) -> Shape:
    """Of a transformers configuration; architectures name less than all of it."""
    width, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or width // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or 4 * width
    return Shape(config.num_hidden_layers, width, heads * size, keys * size, inner)


def _adapter_inputs(model: Any) -> int:
    """Input widths of all LoRA adapters together."""
    return sum(
        layer.in_features for module in model.modules() if hasattr(module, "lora_A") for layer in module.lora_A.values()
    )


def may_be_own(sample: Sample, options: TrainGold) -> bool:
    """Whether the student may have to answer it in training."""
    return options.lmbda > 0 or not sample.answer_ids


def _longest(samples: Sequence[Sample], options: TrainGold) -> tuple[int, int]:
    """(most tokens of a prompt with its answer, most tokens of an answer), as far as they can be known before."""
    texts = answers = 0
    for sample in samples:
        answer = len(sample.answer_ids or ())
        if may_be_own(sample, options) and options.lambda_kd:
            answer = max(answer, options.max_new_tokens)
        texts, answers = max(texts, len(sample.prompt_ids) + answer), max(answers, answer)
    return texts, answers


def teacher_size(options: TrainGold, device: torch.device) -> TeacherSize | None:
    """From the teacher's files, which are on this disk once it is prepared; None where they do not tell."""
    gguf = options.backend == "gguf"
    located = locate(options.teacher_name, gguf=gguf, preferred_quant=options.teacher_preferred_quant)
    if gguf:
        return TeacherSize(None, sum(file.stat().st_size for file in _parts_of(located.path)) / GB)
    parameters, stored, head = _in_folder(hf_folder(located))
    if not parameters:
        return None
    if options.teacher_load_in_4bit:
        return TeacherSize(parameters, ((parameters - head) * NF4_BYTES + head * 2) / GB)
    if options.teacher_dtype == "auto":
        return TeacherSize(parameters, (4 * parameters if device.type == "cpu" else stored) / GB)
    return TeacherSize(parameters, parameters * getattr(torch, options.teacher_dtype).itemsize / GB)


def _parts_of(path: Path) -> list[Path]:
    """All files of a GGUF model that may be split."""
    part = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path.name)
    return sorted(path.parent.glob(f"{part[1]}-*-of-{part[2]}.gguf")) if part else [path]


def _in_folder(folder: Path) -> tuple[int, int, int]:
    """(parameters, their bytes, those of them in the embeddings and the output layer), by the heads of its
    safetensors files; zeros without such files."""
    from safetensors import safe_open

    parameters = stored = head = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  it is no dict
                entry = opened.get_slice(name)
                count = int(np.prod(entry.get_shape()))
                parameters += count
                bits = re.search(r"\d+", entry.get_dtype())  # BF16, F32, F8_E4M3; BOOL has none
                stored += count * int(bits[0] if bits else 8) // 8
                head += count if "embed" in name or "lm_head" in name else 0
    return parameters, stored, head
