"""The README.md of a trained model: what it was made from and how, what came of it, how to load it.

Names come from files and models of others. In YAML they are written by the YAML library, in Markdown as code, so that
they stay data.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..data.text import as_code
from ..teachers.locate import is_local

ON_THE_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
MEASURES = {
    "val_loss": ("loss per trained token on the held-out rows, in nats", "{:.4f}"),
    "val_accuracy": ("share of their tokens that were the most probable one", "{:.1%}"),
}


@dataclass(frozen=True)
class CardFacts:
    """What a card says. Texts may hold anything.

    name: of the project or the run.   base_model: the student before training, as the user named it.
    adapter: whether the folder holds a PEFT adapter, and not a whole model.
    data: file name of the rows.   data_sha256: hex digest of that file.   rows: how many it has.
    trained_rows, held_out_rows: how many of them were trained on, and how many kept for validation.
    trained_tokens: tokens of the assistant's in the trained rows, counted once.
    teachers: name -> rows that it answered; "" for rows that do not say.
    changed: reason -> rows that were left out, cut or changed.   thinking: whether reasoning was trained.
    template: the form of conversations, in words.
    step, steps: of these weights, and of the run.   epochs: times through the rows at `step`.
    settings: option -> value.
    before, after: measures (see MEASURES) before the first step and with these weights; empty without validation.
    versions: package -> version.
    """

    name: str
    base_model: str
    adapter: bool
    data: str
    data_sha256: str
    rows: int
    trained_rows: int
    held_out_rows: int
    trained_tokens: int
    teachers: Mapping[str, int]
    thinking: bool
    template: str
    step: int
    steps: int
    epochs: float
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    changed: Mapping[str, int] = field(default_factory=dict[str, int])
    before: Mapping[str, float] = field(default_factory=dict[str, float])
    after: Mapping[str, float] = field(default_factory=dict[str, float])


def model_card(about: CardFacts) -> str:
    """A README.md as the Hub reads it: YAML, then Markdown. It claims no licence."""
    return "\n".join(["---", _front_matter(about), "---", "", *_lines(about)]) + "\n"


def _front_matter(about: CardFacts) -> str:
    says: dict[str, Any] = {}
    if ON_THE_HUB.fullmatch(about.base_model) and not is_local(about.base_model):
        says["base_model"] = about.base_model
    says["library_name"] = "peft" if about.adapter else "transformers"
    says["pipeline_tag"] = "text-generation"
    says["tags"] = ["distillation", "sft", *(["lora"] if about.adapter else [])]
    return yaml.safe_dump(says, sort_keys=False, allow_unicode=True).rstrip()


def _lines(about: CardFacts) -> Iterator[str]:
    what = "A LoRA adapter for" if about.adapter else "A model that began as"
    yield f"# {as_code(about.name)}\n"
    yield f"{what} {as_code(_named(about.base_model))}, trained (SFT) on the answers of {_teachers_in_words(about)}."

    yield "\n## Terms\n"
    yield (
        "This card claims no licence. The licence of the base model holds for this one too. And the terms of the "
        "teacher's provider decide what its answers may be used for: some forbid training models that compete with "
        "theirs. Read both before you use or publish these weights."
    )

    yield "\n## Data\n"
    yield f"- File: {as_code(about.data)}, {_count(about.rows, 'row')}, SHA-256 {as_code(about.data_sha256)}"
    for teacher, rows in sorted(about.teachers.items(), key=lambda item: (-item[1], item[0])):
        yield f"- Teacher: {as_code(teacher) if teacher else 'not said in the data'}, {_count(rows, 'row')}"
    yield (
        f"- Trained: {_count(about.trained_rows, 'row')} with {_count(about.trained_tokens, 'token')} of the "
        "assistant's: its text, its tool calls, its ends of turn, nothing else"
    )
    yield f"- Held out for validation: {_count(about.held_out_rows, 'row')}"
    yield f"- Reasoning (thinking): {'trained where the data has it' if about.thinking else 'taken out'}"
    yield f"- Form of conversations: {as_code(about.template)}"
    for reason, rows in sorted(about.changed.items(), key=lambda item: (-item[1], item[0])):
        yield f"- Left out, cut or changed: {as_code(reason)}, {_count(rows, 'row')}"

    yield "\n## Results\n"
    yield f"Step {about.step:,} of {about.steps:,}, after {about.epochs:.2f} epochs."
    if about.after:
        yield "\n| Measure | Before | After |\n| --- | ---: | ---: |"
        yield from (_measured(measure, about) for measure in about.after)
        yield "\nTo predict the teacher's words well is not yet to answer well: evaluate its own answers."
    else:
        yield "No rows were held out, so nothing was measured."

    yield "\n## How to load it\n"
    yield f"```python\n{_loading(about.adapter)}\n```"

    yield "\n## Settings\n"
    yield from (f"- {as_code(name)}: {as_code(_value(value))}" for name, value in about.settings.items())
    yield "\n## Software\n"
    yield from (f"- {as_code(package)} {as_code(version)}" for package, version in about.versions.items())


def _teachers_in_words(about: CardFacts) -> str:
    known = sorted((name for name in about.teachers if name), key=lambda name: (-about.teachers[name], name))
    if not known:
        return "a teacher that the data does not name"
    more = f" and {len(known) - 3} more" if len(known) > 3 else ""
    return ", ".join(as_code(name) for name in known[:3]) + more


def _measured(measure: str, about: CardFacts) -> str:
    words, form = MEASURES.get(measure, (measure, "{:.4g}"))
    before = about.before.get(measure)
    return (
        f"| {_cell(words)} | {'-' if before is None else form.format(before)} | {form.format(about.after[measure])} |"
    )


def _loading(adapter: bool) -> str:
    module, loader = ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
    imports = ["from transformers import AutoTokenizer"]
    if adapter:
        imports.insert(0, f"from {module} import {loader}")
    else:
        imports = [f"from {module} import {loader}, AutoTokenizer"]
    return "\n".join(
        [
            *imports,
            "",
            'folder = "."  # where this file lies',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            f"model = {loader}.from_pretrained(folder)",
            'messages = [{"role": "user", "content": "..."}]',
            "prompt = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
            "answer = model.generate(**prompt, max_new_tokens=256)",
            'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def _named(model: str) -> str:
    """A model's name; of a path only its end: where it lay is nobody's business."""
    if is_local(model):
        return re.split(r"[/\\]", model.rstrip("/\\"))[-1] or model
    return model


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _cell(text: str) -> str:
    """`as_code` within a table, unless the words are ours."""
    ours = any(text == words for words, _ in MEASURES.values())
    return text if ours else as_code(text).replace("|", "\\|")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
