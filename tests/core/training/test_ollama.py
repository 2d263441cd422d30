"""Chat templates in Ollama's language."""

from pathlib import Path

import pytest

from core.teachers.hf_model import load_tokenizer
from core.training.ollama import Form, form_of, modelfile
from core.training.student import PLAIN_TEMPLATE
from tests.support.tiny_model import CHATML, real_template
from tests.support.tokenizers import real_tokenizer, small_tokenizer, tokenizer_folder


def saved(folder: Path, template: str | None) -> Path:
    small_tokenizer(template=template).save_pretrained(folder)
    return folder


def test_the_modelfile_of_a_chatml_model(tmp_path: Path):
    notes: list[str] = []
    text = modelfile(saved(tmp_path, CHATML), "smol-q8_0.gguf", notes.append)
    assert text == (
        "# ollama create NAME -f Modelfile && ollama run NAME\n"
        "FROM ./smol-q8_0.gguf\n"
        "# Text only. For tool calls use llama-server --jinja, which reads the template inside the file.\n"
        'TEMPLATE """{{ range .Messages }}'
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\n'
    )
    assert notes == []


def test_a_default_system_message_stands_where_the_conversation_has_none():
    form = form_of(load_tokenizer(tokenizer_folder("smollm2")))
    assert form is not None
    told = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    assert form.start == told
    assert form.user == ("<|im_start|>user\n", "<|im_end|>\n")
    go = form.go()
    assert go is not None
    assert go.startswith(
        f'{{{{ if ne (index .Messages 0).Role "system" }}}}{told}{{{{ end }}}}{{{{ range .Messages }}}}'
    )


def test_ends_of_turn_that_differ_between_the_roles():
    # As Mistral and DeepSeek write: nothing but the other role's beginning ends a question.
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<A>{{ m.content }}<end>{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<A>{% endif %}"
    )
    form = form_of(small_tokenizer(template=template))
    assert form == Form("", ("", "\n"), ("<U>", ""), ("<A>", "<end>"), "<A>")
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert form is not None
    assert form.render(talk) == "<U>a<A>b<end><U>c<A>"


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "glm4moe", "deepseekv3", "gptoss", "cohere"])
def test_templates_of_real_families(name: str):
    tokenizer = small_tokenizer(template=real_template(name))
    form = form_of(tokenizer)
    assert form is not None
    assert form.go() is not None
    talk = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Two?\nOr three?"},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "Well."},
    ]
    for messages in (talk, talk[1:], talk[1:2]):
        assert form.render(messages) == tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )


def test_the_beginning_of_the_text_that_llama_cpp_puts_there_too_is_left_out():
    llama3 = real_tokenizer("llama3")
    form = form_of(llama3)
    assert form is not None
    said = llama3.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert form.render([{"role": "user", "content": "Hi"}]) == said.removeprefix(
        llama3.bos_token if llama3("a")["input_ids"][0] == llama3.bos_token_id else ""
    )


@pytest.mark.parametrize(
    "template",
    [
        None,
        real_template("gemma3"),  # the system's words stand in the user's turn
        CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"),
        CHATML.replace("<|im_end|>", "{{ '{{' }}"),  # Go would read it
        CHATML.replace("{{ m.role }}", "{{ loop.index }}"),  # not the same twice
        "{{ raise_exception('no') }}",
    ],
)
def test_what_cannot_be_put_into_go_is_left_to_the_user(tmp_path: Path, template: str | None):
    notes: list[str] = []
    text = modelfile(saved(tmp_path, template), "a.gguf", notes.append)
    assert "\nTEMPLATE" not in text
    assert "Ollama cannot read this model's chat template" in text
    assert len(notes) == 1


def test_the_plain_form():
    form = form_of(small_tokenizer(template=PLAIN_TEMPLATE))
    system, user, assistant = ((f"### {who}:\n", "\n\n") for who in ("System", "User", "Assistant"))
    assert form == Form("", system, user, assistant, "### Assistant:\n")
