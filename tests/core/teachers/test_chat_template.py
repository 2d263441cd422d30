"""Tools in the chat templates of real models."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import TeacherUnavailable
from core.teachers.chat_template import ChatTemplate
from core.teachers.hf_model import load_tokenizer, template_of
from core.teachers.tool_text import parse_tool_calls
from tests.support.tiny_model import make_tiny_model, real_template

MISTRAL = """{%- for m in messages %}{%- if m.role == "user" %}
{%- if tools is not none and loop.last %}{{ "[AVAILABLE_TOOLS]" + tools|tojson + "[/AVAILABLE_TOOLS]" }}{%- endif %}
{{- "[INST]" + m.content + "[/INST]" }}
{%- elif m.tool_calls is defined %}{{- m.content + "[TOOL_CALLS][" }}{%- for call in m.tool_calls %}
{%- if call.id|length != 9 %}{{ raise_exception("Tool call IDs should have length 9!") }}{%- endif %}
{{- (call.function|tojson)[:-1] + ', "id": "' + call.id + '"}' }}{%- if not loop.last %}{{ ", " }}{%- endif %}
{%- endfor %}{{ "]</s>" }}
{%- elif m.role == "tool" %}{{ '[TOOL_RESULTS]{"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}' }}
{%- else %}{{ m.content + "</s>" }}{%- endif %}{%- endfor %}"""
"""Written after the template of Mistral Nemo."""
SAYS_HOW = """{%- if tools %}{{ "Answer with <tool_call>JSON</tool_call>: " + tools|tojson + "\n" }}{%- endif %}
{%- for m in messages %}{{ m.role + ": " + m.content + "\n" }}{%- endfor %}
{%- if add_generation_prompt %}{{ "assistant: " }}{%- endif %}"""
"""Like SmolLM3's: it offers tools, and shows earlier turns without their calls."""

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}},
}
READ = ["qwen2_5", "qwen3", "qwen3_5_think", "llama3_1", "glm4moe", "nemotron_3_nano"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def template(tokenizer: Any, source: str) -> ChatTemplate:
    tokenizer.chat_template = source
    return template_of(tokenizer, "the-model")


def conversation(*calls: tuple[str, Any], content: str = "") -> list[dict[str, Any]]:
    made = [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for n, (name, arguments) in enumerate(calls)
    ]
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": content, "tool_calls": made},
        *({"role": "tool", "tool_call_id": call["id"], "name": "weather", "content": "mild"} for call in made),
    ]


@pytest.mark.parametrize("name", READ)
def test_real_templates_show_tools_calls_and_results(tokenizer: Any, name: str) -> None:
    prompt = template(tokenizer, real_template(name)).prompt(conversation(("weather", {"city": "Ulm"})), [TOOL])
    assert "The weather." in prompt
    assert "Ulm" in prompt
    assert "{\\" not in prompt  # arguments are no string within a string
    assert "mild" in prompt


def test_mistrals_template_gets_ids_of_nine_letters_and_digits(tokenizer: Any) -> None:
    prompt = template(tokenizer, MISTRAL).prompt(conversation(("weather", {"city": "Ulm"})), [TOOL])
    call_id = prompt.partition('"id": "')[2][:9]
    assert call_id.isalnum()
    assert f'"call_id": "{call_id}"' in prompt


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (real_template("phi3"), "has no place for tools"),
        (real_template("gemma4"), "writes tool calls in a notation that is not understood here"),
        (real_template("gptoss"), "writes tool calls in a notation that is not understood here"),
        (real_template("lfm2"), "drops tool calls"),
        (MISTRAL.replace('m.content + \', "call_id"', '\', "call_id"'), "drops the results of tools"),
        ("{% if tools %}{{ raise_exception('no tools, please') }}{% endif %}", r"refuses tools \(no tools, please\)"),
    ],
)
def test_a_template_that_cannot_do_it_is_named_with_the_ways_out(tokenizer: Any, source: str, problem: str) -> None:
    with pytest.raises(
        TeacherUnavailable, match=rf"the chat template of the-model {problem}\. Use another.*--base-url"
    ):
        template(tokenizer, source).prompt(conversation(("weather", {})), [TOOL])


def test_a_template_that_drops_only_the_calls_gets_them_in_the_text(tokenizer: Any) -> None:
    messages = conversation(("weather", {"city": "Ulm"}), content="I look.")
    prompt = template(tokenizer, SAYS_HOW).prompt(messages, [TOOL])
    written = 'assistant: I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>\n'
    assert written in prompt


def test_a_conversation_without_tools_is_rendered_by_any_template(tokenizer: Any) -> None:
    assert "Weather?" in template(tokenizer, real_template("phi3")).prompt([{"role": "user", "content": "Weather?"}])


def test_a_template_of_its_own_for_tools_is_taken(tokenizer: Any, tmp_path: Path) -> None:
    both = {"default": real_template("phi3"), "tool_use": real_template("qwen2_5")}
    made = template(tokenizer, both)  # pyright: ignore[reportArgumentType]
    assert "<tools>" in made.prompt(conversation(("weather", {})), [TOOL])


# ---- laws -------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[a-z][a-z0-9_-]{0,12}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
calls = st.tuples(names, st.dictionaries(texts, values, max_size=3))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("source", [real_template("qwen2_5"), real_template("llama3_1"), MISTRAL, SAYS_HOW])
@given(data=st.data())
def test_what_a_template_writes_is_read_back(tokenizer: Any, source: str, data: st.DataObject) -> None:
    one = source == real_template("llama3_1")  # it takes one call at a time
    made = data.draw(st.lists(calls, min_size=1, max_size=1 if one else 3))
    asked, called, *_ = conversation(*made, content="" if one else "I look.")
    written = template(tokenizer, source)
    written.check_tools()
    prompt = written.prompt([asked], [TOOL])
    turn = written.prompt([asked, called], [TOOL]).removeprefix(prompt).split("<|eot_id|><|start_header")[0]
    around, read = parse_tool_calls(turn, [TOOL])
    found = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in read]
    assert found == made
    assert one or "I look." in around
