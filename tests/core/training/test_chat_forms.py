"""The forms that conversations are trained in: what they write, who can read it back, which is chosen."""

from pathlib import Path
from typing import Any

import jinja2
import pytest

from core.distillation.chat import ChatSide
from core.errors import UsageError
from core.teachers.chat_template import PROBE, ChatTemplate
from core.teachers.tool_text import parse_tool_calls
from core.training.chat_forms import CHATML, PLAIN, chosen_template, ensure_pad
from core.training.student import fallback_template
from tests.support import tiny_model
from tests.support.tokenizers import small_tokenizer

MARKS = ("<|im_start|>", "<|im_end|>", "<eos>")
CALL = {"id": "c1", "type": "function", "function": {"name": "temperature_in", "arguments": {"city": "Orléans"}}}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How warm is it?"},
    {"role": "assistant", "content": "", "reasoning_content": "I must look.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "c1", "name": "temperature_in", "content": "31"},
    {"role": "tool", "tool_call_id": "c1", "name": "temperature_in", "content": "13"},
    {"role": "assistant", "content": "31 degrees, or 13."},
]
WRITTEN_CALL = '<tool_call>\n{"name": "temperature_in", "arguments": {"city": "Orléans"}}\n</tool_call>'
WRITTEN = f"""<|im_start|>user
How warm is it?<|im_end|>
<|im_start|>assistant
<think>
I must look.
</think>

{WRITTEN_CALL}
{WRITTEN_CALL}<|im_end|>
<|im_start|>user
<tool_response>
31
</tool_response>
<tool_response>
13
</tool_response><|im_end|>
<|im_start|>assistant
31 degrees, or 13.<|im_end|>
"""


def tokenizer(*special: str, template: str | None = None) -> Any:
    return small_tokenizer(special=special or MARKS, eos="<eos>", template=template)


def written(template: str, messages: list[dict[str, Any]], tools: list[Any] | None = None, begin: bool = False) -> str:
    return tokenizer().apply_chat_template(
        messages, tools=tools, chat_template=template, add_generation_prompt=begin, tokenize=False
    )


def test_chatml_writes_thoughts_calls_and_results_as_hermes_and_qwen_do() -> None:
    assert written(CHATML, CONVERSATION) == "<|im_start|>system\nBe brief.<|im_end|>\n" + WRITTEN
    told = written(CHATML, CONVERSATION, [PROBE])
    system, found, rest = told.partition("<|im_end|>\n")
    assert found + rest == "<|im_end|>\n" + WRITTEN
    assert system.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert f"<tools>\n{written('{{ tools[0] | tojson }}', CONVERSATION, [PROBE])}\n</tools>" in system


def test_chatml_names_tools_without_a_system_prompt_and_keeps_a_later_one() -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "developer", "content": "Now in French."}]
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>system\nNow in French.<|im_end|>\n<|im_start|>assistant\n"
    assert written(CHATML, said, begin=True) == expected
    told = written(CHATML, said, [PROBE], begin=True)
    assert told.startswith("<|im_start|>system\n# Tools\n")
    assert told.endswith("<|im_end|>\n" + expected)


def test_chatml_writes_text_before_a_call_on_its_own_line() -> None:
    call = {"id": "", "type": "function", "function": {"name": 'a"b', "arguments": '{"x": 1}'}}
    said = written(CHATML, [{"role": "assistant", "content": "Let me see.", "tool_calls": [call]}])
    body = 'Let me see.\n<tool_call>\n{"name": "a\\"b", "arguments": {"x": 1}}\n</tool_call>'
    assert said == f"<|im_start|>assistant\n{body}<|im_end|>\n"
    text, calls = parse_tool_calls(body)
    assert text == "Let me see."
    assert [call["function"] for call in calls] == [{"name": 'a"b', "arguments": '{"x": 1}'}]


def test_a_local_model_with_our_chatml_is_offered_tools_and_its_calls_are_read_back() -> None:
    form = ChatTemplate("student", CHATML, lambda messages, tools, begin: written(CHATML, messages, tools, begin))
    asked = CONVERSATION[:2]
    assert form.prompt(asked, [PROBE]) == written(CHATML, asked, [PROBE], begin=True)
    _, calls = parse_tool_calls(f"{WRITTEN_CALL}\n{WRITTEN_CALL}", [PROBE])
    assert [call["function"] for call in calls] == 2 * [{"name": "temperature_in", "arguments": '{"city": "Orléans"}'}]


@pytest.mark.parametrize("form", [CHATML, PLAIN])
@pytest.mark.parametrize("trimmed", [True, False])
def test_the_forms_do_not_depend_on_how_an_engine_trims_blocks(form: str, trimmed: bool) -> None:
    environment = jinja2.Environment(trim_blocks=trimmed, lstrip_blocks=trimmed)
    known = {"bos_token": "", "eos_token": "<eos>", "add_generation_prompt": True, "tools": None}
    said = [message for message in CONVERSATION if "tool_calls" not in message]
    theirs = environment.from_string(form).render(messages=said, **known)
    assert theirs == written(form, said, begin=True)


def test_plain_text_ends_every_answer_and_asks_as_a_model_without_a_template_is_asked() -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert written(PLAIN, said) == "### User:\nHi\n\n### Assistant:\nYes?<eos>\n\n"
    own, ours = ChatSide(tokenizer("<eos>")), ChatSide(tokenizer("<eos>", template=PLAIN))
    assert own.prompt_ids(said[:1]) == ours.prompt_ids(said[:1])
    assert own.end_of_turn == ours.end_of_turn


@pytest.mark.parametrize("marks", [MARKS, ("<eos>",)])
def test_conversations_of_text_are_written_as_distillation_saves_them_but_for_what_ends_old_answers(marks: Any) -> None:
    """A student that was distilled without a template of its own is asked in `fallback_template`, as it was trained."""
    said = [message for message in CONVERSATION if message["role"] in ("system", "user")]
    said = [*said, {"role": "assistant", "content": "31"}, {"role": "user", "content": "And then?"}]
    tokens = tokenizer(*marks)
    form, _ = chosen(tokens, None)
    saved = fallback_template(tokens)
    assert form is not None
    theirs, ours = written(saved, said, begin=True), written(form, said, begin=True)
    assert theirs == ours.replace("31<eos>", "31")
    assert ("31<eos>" in ours) == (form == PLAIN)
    assert ChatSide(tokens).prompt_text(said) == theirs


def test_a_tokenizer_that_can_pad_is_left_as_it_is_and_another_pads_with_its_end_of_turn() -> None:
    own = tokenizer()
    ensure_pad(own, own.convert_tokens_to_ids("<|im_end|>"))
    assert own.pad_token is None  # <eos> does
    silent = small_tokenizer(special=MARKS[:2], eos=None, template=CHATML)
    ensure_pad(silent, ChatSide(silent).end_of_turn)
    assert silent.pad_token == "<|im_end|>"
    silent.pad_token = "<|im_start|>"
    ensure_pad(silent, ChatSide(silent).end_of_turn)
    assert silent.pad_token == "<|im_start|>"


def chosen(tokens: Any, asked: str | None) -> tuple[str | None, list[str]]:
    notes: list[str] = []
    return chosen_template(tokens, asked, notes.append), notes


def test_the_tokenizers_own_template_is_kept_unless_another_is_asked_for() -> None:
    own = tokenizer(template=tiny_model.CHATML)
    assert chosen(own, None) == (None, [])
    assert chosen(own, "chatml") == (CHATML, [])
    assert chosen(own, "plain") == (PLAIN, [])


def test_without_a_template_it_is_chatml_where_its_marks_are_tokens_else_plain_and_said() -> None:
    form, notes = chosen(tokenizer(), None)
    assert (form, len(notes)) == (CHATML, 1)
    assert "chatml is used, as it has <|im_start|> and <|im_end|>" in notes[0]
    form, notes = chosen(tokenizer("<eos>"), None)
    assert (form, len(notes)) == (PLAIN, 1)
    assert "plain is used" in notes[0]


def test_forms_that_need_tokens_which_are_missing_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no tokens <\|im_start\|> and <\|im_end\|>.*--chat-template plain"):
        chosen(tokenizer("<eos>"), "chatml")
    with pytest.raises(UsageError, match=r"no token of .* ends a text"):
        chosen(small_tokenizer(special=("<x>",), eos=None), "plain")


def test_a_template_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "form.jinja"
    file.write_text("{{ raise_exception('wants a system prompt') }}", encoding="utf-8")
    assert chosen(tokenizer(), str(file))[0] == "{{ raise_exception('wants a system prompt') }}"  # rows may have one
    with pytest.raises(UsageError, match=r"chatmel: No such file or directory. Give chatml, plain"):
        chosen(tokenizer(), "chatmel")
    with pytest.raises(UsageError, match="Is a directory"):
        chosen(tokenizer(), str(tmp_path))
    file.write_text("fine\n{% for m in messages %}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"form\.jinja:2: no Jinja template: .*endfor"):
        chosen(tokenizer(), str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="it is not UTF-8"):
        chosen(tokenizer(), str(file))
