"""The model in training: loading it, the hidden states that its losses are made of, saving it.

    model ----- network -----> hidden states -> head -> losses
      \\-- LoRA: the network inside carries the adapter in its layers

Trained weights are float32, whatever the computation is in; that comes from an autocast context of the caller's.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from ..commands.train_gold import TrainGold
from ..distillation.chat import CHATML, ChatSide
from ..distillation.output_head import OutputHead
from ..errors import UsageError
from ..teachers import hf_model
from ..teachers.hf import located
from ..teachers.hf_states import completion_states, head_of
from ..teachers.locate import is_local

PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}### {{ m.role | capitalize }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""What `ChatSide` writes for a tokenizer that has neither a chat template nor ChatML's tokens."""


@dataclass(eq=False)
class Student:
    """A causal language model in training, and what is known of it.

    name: as the user gave it.   folder: where it was loaded from.
    model: a transformers model, or with LoRA a PEFT model around it.   tokenizer: as its folder has it.
    side: its tokenizer as a side of a conversation.   head: its output layer, sharing its weights.
    width: number of logits.   context_tokens: most tokens of a prompt and an answer together; None when unknown.
    parameters: of the model without an adapter.   trainable: how many numbers are trained.
    generation: the generation config that is saved with it; its end tokens include those of `side`.
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
        if not self.lora:
            self.model.save_pretrained(folder)
        elif merge:
            self.network.save_pretrained(folder, state_dict=merged_weights(self.network))
        else:
            self.model.save_pretrained(folder, save_embedding_layers=False)
        self.generation.save_pretrained(folder)
        own = self.tokenizer.chat_template
        if not own:  # trained in a fallback's form, it should be asked in that form
            self.tokenizer.chat_template = fallback_template(self.tokenizer)
        try:
            self.tokenizer.save_pretrained(folder)
        finally:
            self.tokenizer.chat_template = own


def load_student(options: TrainGold, device: torch.device, note: Callable[[str], None]) -> Student:
    """The options' student on `device`, in evaluation mode, with the weights that are to be trained in float32.

    note: tells the user about conversions and fallbacks. Raises UsageError for what cannot be trained.
    """
    if (Path(options.student).expanduser() / "adapter_config.json").is_file():
        raise UsageError(
            f"{options.student} is a LoRA adapter, and a student is a whole model. Merge it first (train_gold does so "
            "with --merge, PEFT with merge_and_unload), and give the merged folder."
        )
    transformers.utils.logging.disable_progress_bar()
    folder = hf_model.hf_folder(located(options.student, attention="sdpa", load_in_4bit=False), note)
    tokenizer = hf_model.load_tokenizer(folder, chat=False)
    side = ChatSide(tokenizer)
    if side.note:
        note(side.note)
    dtype = computation_dtype(options, device) if options.lora else torch.float32
    network = hf_model.load_model(
        folder,
        dtype=str(dtype).removeprefix("torch."),
        device_map=str(device),
        attention="sdpa",
        load_in_4bit=False,
    )
    if getattr(network, "is_quantized", False):
        raise UsageError(f"{options.student} has quantised weights, which cannot be trained. Take its original model.")
    generation = own_generation(folder, network, side)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    without_dropout(network)
    if options.gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if options.freeze_embeddings:  # the output layer has the same parameter where it is tied
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
        context_tokens=getattr(network.config.get_text_config(), "max_position_embeddings", None),
        parameters=parameters,
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        lora=options.lora,
        generation=generation,
    )


def computation_dtype(options: TrainGold, device: torch.device) -> torch.dtype:
    """The number format of --student-dtype; auto is bfloat16 where CUDA has it, else float32."""
    if options.student_dtype != "auto":
        return getattr(torch, options.student_dtype)
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
    """The template of a tokenizer that has none, as `ChatSide` writes its prompts."""
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


def with_adapter(network: Any, options: TrainGold) -> Any:
    """A PEFT model around the network: its weights frozen, an adapter in float32 in every target layer.

    Raises UsageError for a target that is the name of no linear layer.
    """
    import peft  # only here: it takes a second to import

    output = network.get_output_embeddings()
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    inner = [name for name in layers if network.get_submodule(name) is not output]
    unknown = [
        target
        for target in options.lora_targets
        if not any(name == target or name.endswith(f".{target}") for name in inner)
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
        target_modules=list(options.lora_targets),
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
