"""The form of conversations that a student is trained in: its own template, or one of ours for a model without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from ..errors import UsageError

MARKS = ("<|im_start|>", "<|im_end|>")

CHATML = r"""
{%- set messages = messages or [] -%}
{%- set system = messages[0].content if messages and messages[0].role in ('system', 'developer') else '' -%}
{%- set rest = messages[1:] if messages and messages[0].role in ('system', 'developer') else messages -%}
{%- if tools -%}
{{- '<|im_start|>system\n' + (system + '\n\n' if system else '') -}}
{{- '# Tools\n\nYou may call one or more of these functions. Their signatures, one a line:\n<tools>' -}}
{%- for tool in tools -%}
{{- '\n' -}}{{- tool | tojson -}}
{%- endfor -%}
{{- '\n</tools>\n\nTo call one, write its name and its arguments as a JSON object within tags:\n<tool_call>\n' -}}
{{- '{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n' -}}
{%- elif rest | length < messages | length -%}
{{- '<|im_start|>system\n' + system + '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in rest -%}
{%- set content = message.content or '' -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or loop.previtem.role != 'tool' -%}
{{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\n<tool_response>\n' + content + '\n</tool_response>' -}}
{%- if loop.last or loop.nextitem.role != 'tool' -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\n' -}}
{%- if message.reasoning_content -%}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' -}}
{%- endif -%}
{{- content -}}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function or call -%}
{{- '\n' if content or not loop.first else '' -}}
{{- '<tool_call>\n{"name": ' -}}{{- call.name | tojson -}}{{- ', "arguments": ' -}}
{{- call.arguments if call.arguments is string else call.arguments | tojson -}}
{{- '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- else -%}
{{- '<|im_start|>' + ('system' if message.role == 'developer' else message.role) + '\n' + content + '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
""".strip()
"""ChatML with tools as Hermes and Qwen write them, and thinking in every turn that has it.

What was said stays written as it was when the conversation goes on, so that a row's turns are what the student will
read when it is asked.
"""
PLAIN = (
    "{{ bos_token or '' }}{% for m in messages %}### {{ m.role | capitalize }}:\n{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""Plain text for a model without a chat template and without ChatML's marks: the end of text ends every answer."""


def chosen_template(tokenizer: Any, asked: str | None, note: Callable[[str], None]) -> str | None:
    """The Jinja template that conversations are written in; None for the tokenizer's own.

    asked: "chatml", "plain", a file with a template, or None for the tokenizer's own, and where it has none chatml if
    it has the marks for it, else plain, which is said to `note`.

    Raises UsageError for a file that is no template, and for a form that needs tokens which the tokenizer has not.
    """
    name = tokenizer.name_or_path or "the tokenizer"
    if asked is None:
        if tokenizer.chat_template:
            return None
        asked = "chatml" if _has_marks(tokenizer) else "plain"
        why = "as it has <|im_start|> and <|im_end|>" if asked == "chatml" else 'every message as "### Role:" and text'
        note(f"{name} has no chat template: {asked} is used, {why} (--chat-template)")
    if asked == "chatml":
        if not _has_marks(tokenizer):
            raise UsageError(
                f"--chat-template chatml: {name} has no tokens {MARKS[0]} and {MARKS[1]}. Give --chat-template plain, "
                "or a .jinja file."
            )
        return CHATML
    if asked == "plain":
        if tokenizer.eos_token is None:
            raise UsageError(
                f"--chat-template plain: no token of {name} ends a text. Set eos_token in its tokenizer_config.json."
            )
        return PLAIN
    return _from_file(tokenizer, asked)


def ensure_pad(tokenizer: Any, end_of_turn: int) -> None:
    """Give a tokenizer something to pad batches with where it has neither a padding token nor an end of text, which
    would do as well: the token that ends an answer. Masks and labels leave padding out, whatever token it is.

    end_of_turn: of its `ChatSide`, which refuses a tokenizer in which no token ends an answer. `Student.save` writes
    the tokenizer without what is set here.
    """
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end_of_turn)


def _has_marks(tokenizer: Any) -> bool:
    """Whether ChatML's marks are tokens."""
    return all(len(tokenizer.encode(mark, add_special_tokens=False)) == 1 for mark in MARKS)


def _from_file(tokenizer: Any, path: str) -> str:
    """Raises UsageError."""
    try:
        source = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(
            f"--chat-template {path}: {reason}. Give chatml, plain, or the path of a .jinja file."
        ) from None
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], chat_template=source, tokenize=False)
    except TemplateSyntaxError as error:
        raise UsageError(f"--chat-template {path}:{error.lineno}: no Jinja template: {error.message}") from None
    except Exception:  # the template may want conversations of another shape; the rows will show
        pass
    return source
