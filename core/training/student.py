"""The model in training: loading it, the hidden states that its losses are made of, saving it.

    model ----- network -----> hidden states -> head -> losses
      \\-- LoRA: the network inside carries the adapter in its layers

Trained weights are float32, whatever the computation is in; that comes from an autocast context of the caller's.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from ..distillation.chat import CHATML, ChatSide
from ..distillation.output_head import OutputHead
from ..errors import UsageError
from ..teachers import hf_model
from ..teachers.hf import located
from ..teachers.hf_states import completion_states, head_of
from ..teachers.locate import is_local

ALL_LINEAR = ["all-linear"]
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}### {{ m.role | capitalize }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""What `ChatSide` writes for a tokenizer that has neither a chat template nor ChatML's tokens.

`chat_forms.PLAIN`, which SFT writes whole conversations in, ends earlier answers with the end of text; distillation
samples single answers, and `ChatSide` writes none behind those before them. A student is saved with what it has read.
"""


class StudentOptions(Protocol):
    """What decides which weights are trained, and in what numbers."""

    @property
    def student(self) -> str: ...
    @property
    def student_dtype(self) -> str: ...
    @property
    def gradient_checkpointing(self) -> bool | None: ...
    @property
    def lora(self) -> bool: ...
    @property
    def lora_rank(self) -> int: ...
    @property
    def lora_alpha(self) -> int: ...
    @property
    def lora_dropout(self) -> float: ...
    @property
    def lora_targets(self) -> list[str]: ...
    @property
    def seed(self) -> int: ...


@dataclass(eq=False)
class Student:
    """A causal language model in training, and what is known of it.

    name: as the user gave it.   folder: where it was loaded from.
    model: a transformers model, or with LoRA a PEFT model around it.   tokenizer: as its folder has it.
    side: its tokenizer as a side of a conversation.   head: its output layer, sharing its weights.
    width: number of logits.   context_tokens: most tokens of a prompt and an answer together; None when unknown.
    parameters: of the model without an adapter; its weights are held in 4 bits if `in_4bit`.
    trainable: how many numbers are trained.
    generation: the generation config that is saved with it; its end tokens include those of `side`.
    pad_token, pad_id: those of its folder's tokenizer and configuration, None where these have none.
    """

    name: str
    folder: Path
    model: Any
    tokenizer: Any
    side: ChatSide
    head: OutputHead
    width: int
    context_tokens: int | None
    parameters: int
    trainable: int
    lora: bool
    generation: GenerationConfig
    pad_token: str | None
    pad_id: int | None
    in_4bit: bool = False

    @property
    def network(self) -> Any:
        """The transformers model itself; with LoRA its layers hold the adapter, which a forward pass goes through."""
        return self.model.get_base_model() if self.lora else self.model

    def hidden(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
        """(sum of the completions' lengths, D): what the head reads where the completions' tokens are predicted.

        Text after text, with gradient; an empty completion has no rows. A text's states do not depend on the others.
        Raises ValueError for an empty prompt: nothing would predict the first token.
        """
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("an empty prompt: nothing predicts the first token of the completion")
        texts = [(prompt, said) for prompt, said in zip(prompts, completions, strict=True) if len(said)]
        if not texts:
            return self.head.weight.new_zeros(0, self.head.weight.shape[1])
        return torch.cat(completion_states(self.network, texts))

    def trained_parameters(self) -> list[nn.Parameter]:
        """The weights that are trained, each once."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def save(self, folder: Path, merge: bool) -> None:
        """Write what `from_pretrained` loads: the model, or the adapter unless `merge`; the tokenizer beside it.

        The student in memory stays as it is, to the bit.
        """
        with self._as_its_folder_has_it():
            if not self.lora:
                self.model.save_pretrained(folder)
            elif merge and self.in_4bit:
                save_merged_original(self.model, self.folder, folder)
            elif merge:
                self.network.save_pretrained(folder, state_dict=merged_weights(self.network))
            else:
                self.model.save_pretrained(folder, save_embedding_layers=False)
            self.generation.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    @contextmanager
    def _as_its_folder_has_it(self) -> Iterator[None]:
        """Takes back for a while what training has set: TRL makes another token the padding where there is none. Saved
        with the student, that token would be masked out and its embedding frozen when it is trained again. A tokenizer
        without a chat template gets that of the fallback: trained in its form, it should be asked in that form."""
        tokenizer, config = self.tokenizer, self.network.config.get_text_config()
        template, pad_token, pad_id = tokenizer.chat_template, tokenizer.pad_token, pad_id_of(config)
        tokenizer.chat_template = template or fallback_template(tokenizer)
        tokenizer.pad_token = self.pad_token
        if pad_id != self.pad_id:
            config.pad_token_id = self.pad_id
        try:
            yield
        finally:
            tokenizer.chat_template, tokenizer.pad_token = template, pad_token
            if pad_id != self.pad_id:
                config.pad_token_id = pad_id


def find_student(options: StudentOptions, note: Callable[[str], None]) -> Path:
    """The folder of the options' student, converted from GGUF or taken from the Hub where need be.

    Raises UsageError for what is not there, and for an adapter.
    """
    if os.path.isfile(Path(options.student).expanduser() / "adapter_config.json"):  # no error for an endless name
        raise UsageError(
            f"{options.student} is a LoRA adapter, and a student is a whole model. Merge it first (training does so "
            "with --merge, PEFT with merge_and_unload), and give the merged folder."
        )
    transformers.utils.logging.disable_progress_bar()
    return hf_model.hf_folder(located(options.student, attention="sdpa", load_in_4bit=False), note)


def load_student(
    options: StudentOptions,
    device: torch.device,
    note: Callable[[str], None],
    *,
    tokenizer: Any = None,
    attention: str = "sdpa",
    in_4bit: bool = False,
    dropout: bool = False,
    freeze_embeddings: bool = False,
) -> Student:
    """The options' student on `device`, in evaluation mode, with the weights that are to be trained in float32.

    note: tells the user about conversions and fallbacks.   tokenizer: instead of the folder's own.
    in_4bit: of the weights that an adapter leaves as they are.   dropout: keep that of the model's configuration.
    freeze_embeddings: do not train them, nor an output layer tied to them.

    Raises UsageError for what cannot be trained.
    """
    folder = find_student(options, note)
    tokenizer = tokenizer or hf_model.load_tokenizer(folder, chat=False)
    pad_token = tokenizer.pad_token
    side = ChatSide(tokenizer)
    if side.note:
        note(side.note)
    dtype = computation_dtype(options.student_dtype, device) if options.lora else torch.float32
    network = hf_model.load_model(
        folder,
        dtype=str(dtype).removeprefix("torch."),
        device_map=str(device),
        attention=attention,
        load_in_4bit=in_4bit,
    )
    if getattr(network, "is_quantized", False) and not in_4bit:
        raise UsageError(f"{options.student} has quantised weights, which cannot be trained. Take its original model.")
    generation = own_generation(folder, network, side)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if not dropout:
        without_dropout(network)
    if in_4bit:
        network = ready_for_adapter(network)
    if options.gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if freeze_embeddings:  # the output layer has the same parameter where it is tied
        network.get_input_embeddings().requires_grad_(False)
    model = with_adapter(network, options) if options.lora else network
    head = head_of(network, options.student)
    return Student(
        name=options.student,
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        side=side,
        head=head,
        width=head.width,
        context_tokens=context_of(network.config),
        parameters=parameters,
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        lora=options.lora,
        generation=generation,
        in_4bit=in_4bit,
        pad_token=pad_token,
        pad_id=pad_id_of(network.config.get_text_config()),
    )


def context_of(config: Any) -> int | None:
    """Most tokens that a model reads, by its configuration; None where that does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def pad_id_of(config: Any) -> int | None:
    """The padding token of a text model's configuration, whose embedding is not trained; None where it has none."""
    return getattr(config, "pad_token_id", None)


def computation_dtype(asked: str, device: torch.device) -> torch.dtype:
    """The number format of --student-dtype; auto is bfloat16 where CUDA has it, else float32."""
    if asked != "auto":
        return getattr(torch, asked)
    return (
        torch.bfloat16
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        else torch.float32
    )


def own_generation(folder: Path, network: Any, side: ChatSide) -> GenerationConfig:
    """The folder's generation config, ending at every token that ends an answer of the student's."""
    try:
        generation = GenerationConfig.from_pretrained(folder)
        generation.validate(strict=True)  # some folders hold one that transformers reads but would not write
    except (OSError, ValueError):
        generation = network.generation_config
    ends = generation.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    generation.eos_token_id = [*ends, *(end for end in side.ends if end not in ends)]
    return generation


def fallback_template(tokenizer: Any) -> str:
    """The template of a tokenizer that has none, as `ChatSide` writes its prompts.

    SFT saves its own with the tokenizer. Its ChatML (`chat_forms.CHATML`) writes the same for conversations of text,
    but has a place for tools and thoughts, which a student that was trained in this one has never read.
    """
    chatml = {"<|im_start|>", "<|im_end|>"} <= tokenizer.get_added_vocab().keys()
    return CHATML if chatml else PLAIN_TEMPLATE


def without_dropout(network: nn.Module) -> None:
    """Switch the network's own dropout off, in training mode, too; its configuration keeps what it says.

    Distillation compares distributions: noise in the student's would only blur what the teacher tells.
    """
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):  # rates that attention and layers keep as numbers
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


# ---- LoRA ----------------------------------------------------------------------------------------------------------


def with_adapter(network: Any, options: StudentOptions) -> Any:
    """A PEFT model around the network: its weights frozen, an adapter in float32 in every target layer.

    The target all-linear is every linear layer but the output layer. Raises UsageError for a target that names none.
    """
    import peft  # only here: it takes a second to import

    output = network.get_output_embeddings()
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    inner = [name for name in layers if network.get_submodule(name) is not output]
    targets = list(options.lora_targets)
    unknown = [
        target
        for target in targets
        if targets != ALL_LINEAR and not any(name == target or name.endswith(f".{target}") for name in inner)
    ]
    if unknown:
        kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in inner))
        raise UsageError(
            f"--lora-targets: {options.student} has no layer {', '.join(unknown)} that can take an adapter. "
            f"There are: {', '.join(kinds)}."
        )
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=ALL_LINEAR[0] if targets == ALL_LINEAR else targets,
        fan_in_fan_out=any(isinstance(network.get_submodule(name), Conv1D) for name in inner),
    )
    drawn_on = [network.device] if network.device.type == "cuda" else []
    # The same adapter in every process, and in every run of one seed.
    with torch.random.fork_rng(drawn_on), warnings.catch_warnings():
        torch.manual_seed(options.seed)
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls transformers by an older name
        model: Any = peft.get_peft_model(network, config).eval()
    # On the Hub it has its name on any machine; on this one the adapter finds its base from any folder.
    base = str(Path(network.name_or_path).resolve()) if is_local(options.student) else options.student
    model.peft_config["default"].base_model_name_or_path = base
    return model


def ready_for_adapter(network: Any) -> Any:
    """A 4-bit network, prepared as QLoRA has it (arXiv:2305.14314): frozen, its norms in float32."""
    import peft

    return peft.prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)


def save_merged_original(model: Any, original: Path, folder: Path) -> None:
    """Write the adapter of a 4-bit model merged into the weights that these 4 bits were made of."""
    import peft

    with tempfile.TemporaryDirectory(prefix="distill-") as adapter:
        model.save_pretrained(adapter, save_embedding_layers=False)
        whole = hf_model.load_model(original, dtype="bfloat16", device_map="cpu", attention="sdpa", load_in_4bit=False)
        merged: Any = peft.PeftModel.from_pretrained(whole, adapter)
        merged.merge_and_unload().save_pretrained(folder)


def merged_weights(network: Any) -> dict[str, Tensor]:
    """The weights of a network that holds an adapter as those of one that needs none: W + scale B A where it sits.

    In the format of W. Computed beside the weights: merging in place and taking it back would leave rounding errors.
    """
    from peft.tuners.lora import LoraLayer

    weights = {
        name.replace(".base_layer.", "."): weight
        for name, weight in network.state_dict().items()
        if ".lora_" not in name
    }
    with torch.no_grad():
        for name, layer in network.named_modules():
            if isinstance(layer, LoraLayer):
                adapted: Any = layer  # every kind of it has get_delta_weight, their base class has not
                change: Tensor = adapted.get_delta_weight("default")
                weight = weights[f"{name}.weight"]
                weights[f"{name}.weight"] = (weight.to(change.dtype) + change).to(weight.dtype)
    return weights


def load_weights(student: Student, folder: Path) -> None:
    """Put the weights that `save` wrote (an adapter, not a merged model) back into the student, to the bit.

    Raises UsageError when they are of another model.
    """
    try:
        if student.lora:
            import peft

            device = str(student.network.device)
            found = peft.set_peft_model_state_dict(student.model, peft.load_peft_weights(str(folder), device=device))
            missing = [name for name in found.missing_keys if ".lora_" in name] + found.unexpected_keys
            if missing:
                raise ValueError(f"the adapters differ in {missing[0]}")
        else:
            saved = hf_model.load_model(folder, dtype="float32", device_map="cpu", attention="sdpa", load_in_4bit=False)
            student.model.load_state_dict(saved.state_dict())
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]  # torch lists every weight
        raise UsageError(
            f"the weights in {folder} are not those of the student {student.name}: {reason}. Resume with the options "
            "of that run, or begin anew with --overwrite."
        ) from None
