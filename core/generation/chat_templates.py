"""What a student's chat template does to conversations with tools, found out by rendering one.

A template is a small program, and many were written before there were tool calls: they render such a conversation
without an error and leave out what matters. So a probe with a word of its own in every place is rendered, and the words
are looked for.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.conversation import Message
from ..errors import MissingDependency, UsageError, pip_line
from ..teachers.locate import locate
from .conversation import Form, one_call_a_turn, with_form

Render = Callable[..., str]
"""(messages, tools=None) -> text; raises what the template raises."""

NAME, ABOUT = "temperature_in", "The temperature of a place."
VALUES, RESULTS = ("Reykjavik", "Ushuaia"), ("31 degrees", "17 degrees")
QUESTION, ANSWER, THOUGHT = "How warm is it?", "It is thirty-one.", "First the thermometer."
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": ABOUT,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
LONG_IDS = "call_0123456789", "call_9876543210"


@dataclass(frozen=True)
class Findings:
    """form: the one to write rows in.   says: sentences for a person, the worst first.

    drops: which of "calls", "results", "schemas", "reasoning", "second calls" (those beside another in a turn) the
    template leaves out without a word.
    """

    form: Form
    says: list[str]
    drops: tuple[str, ...] = ()


def examine(student: str, form: Form, *, choose_arguments: bool = False) -> Findings:
    """What the student's template does to rows of this form; ids are made short, and turns with several calls split,
    where it wants that.

    choose_arguments: whether arguments may become objects where the template needs them. Raises UsageError when there
    is no template to be found, or what is found is none.
    """
    label, template, tokens = find_template(student)
    try:
        render = compiled(template, tokens)
    except MissingDependency:
        raise
    except Exception as error:  # jinja2's
        raise UsageError(f"{label} is no chat template: {short(error)}.") from None
    return findings(label, render, form, choose_arguments=choose_arguments)


def probe(form: Form, count: int = 1) -> tuple[list[Message], list[dict[str, Any]]]:
    """Question, a turn with `count` calls (1 or 2), results, answer, in a form; and the schemas to go with it."""
    calls = [
        {"id": id_, "type": "function", "function": {"name": NAME, "arguments": json.dumps({"city": value})}}
        for id_, value in zip(LONG_IDS[:count], VALUES, strict=False)
    ]
    messages: list[Message] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "", "tool_calls": calls},
        *(
            {"role": "tool", "tool_call_id": call["id"], "name": NAME, "content": result}
            for call, result in zip(calls, RESULTS, strict=False)
        ),
        {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT},
    ]
    if form.single_calls:
        messages, _ = one_call_a_turn(messages)
    tools = with_form(messages, [TOOL], form)
    return messages, tools


def findings(label: str, render: Render, form: Form, *, choose_arguments: bool) -> Findings:
    """What becomes of the probe in a template. Raises UsageError for one that renders nothing of it."""

    def rendered(form: Form, count: int = 1) -> str | Exception:
        try:
            messages, tools = probe(form, count)
            return render(messages, tools or None)
        except Exception as error:  # the template's own refusal, or what its code meets
            return error

    says: list[str] = []
    whole = rendered(form)
    other = replace(form, arguments="object" if form.arguments == "string" else "string")
    if isinstance(whole, Exception) and form.calls == "structured":
        for candidate in (form, other):
            short_form = replace(candidate, short_ids=True)
            if not isinstance(rendered(short_form), Exception) and isinstance(rendered(candidate), Exception):
                says.append(f"{label} takes only ids of nine letters and digits, so calls get such ids.")
                form, other = replace(form, short_ids=True), replace(other, short_ids=True)
                whole = rendered(form)
                break
    if not sound(whole) and sound(found := rendered(other)):
        fault = f"refuses them ({short(whole)})" if isinstance(whole, Exception) else "encodes them twice"
        if choose_arguments:
            says.append(f"{label} {fault} when arguments are a {form.arguments}, so they are an {other.arguments}.")
            form, whole = other, found
        else:
            return Findings(
                form,
                [f"{label} {fault} when arguments are a {form.arguments}. Pass --arguments {other.arguments}.", *says],
            )
    if isinstance(whole, Exception):
        way = "Give it another template" + ", or pass --calls text" * (form.calls == "structured")
        return Findings(form, [f"{label} refuses conversations with tools ({short(whole)}). {way}."])
    if QUESTION not in whole and ANSWER not in whole:
        raise UsageError(
            f"{label} is no chat template for text: what it renders holds neither the question nor the answer."
        )
    drops: list[str] = []
    bad: list[str] = []
    if VALUES[0] not in whole:  # the schemas have the name too; the call alone has the value
        drops.append("calls")
        bad.append(
            f"{label} silently drops tool calls: the student would see results and never learn to call. "
            "Pass --calls text, or give it another template."
        )
    elif not sound(whole):
        bad.append(f"{label} encodes arguments twice.")
    if RESULTS[0] not in whole:
        drops.append("results")
        bad.append(f"{label} silently drops tool results: the student would learn to make them up.")
    if ABOUT not in whole:
        drops.append("schemas")
        bad.append(f"{label} silently drops the tools' schemas: describe the tools in --system, or pass --calls text.")
    if form.thinking == "keep" and THOUGHT not in whole:
        drops.append("reasoning")
        bad.append(f"{label} drops reasoning_content. Pass --thinking tags to train on it, or --thinking strip.")
    two = rendered(form, 2)
    if lost := lacks_second(two, whole):
        split = replace(form, single_calls=True)
        if not lacks_second(rendered(split, 2), whole):
            says.append(f"{label} {lost}, so such turns are split: each call in a turn of its own, before its result.")
            form = split
        else:
            drops += [] if isinstance(two, Exception) else ["second calls"]
            bad.append(f"{label} {lost}, and it takes no second turn with a call either: give it another template.")
    return Findings(form, [*bad, *says] or [f"{label} renders calls, results and schemas."], tuple(drops))


def sound(text: str | Exception) -> bool:
    """Whether it was rendered, and the arguments are not a string within a string."""
    return not isinstance(text, Exception) and not double_encoded(text)


def lacks_second(text: str | Exception, first: str) -> str:
    """What a template does to the probe with two calls in a turn; "" when it takes them as it does a single one.

    first: the probe with one call, rendered.
    """
    if isinstance(text, Exception):
        return f"refuses turns with several calls ({short(text)})"
    wanted = [word for words in (VALUES, RESULTS) if words[0] in first for word in words]
    return "" if all(word in text for word in wanted) else "silently drops calls from turns with several"


def double_encoded(text: str) -> bool:
    """Whether the probe's arguments stand there as a string within a string."""
    return '\\"city\\"' in text or "\\u0022city" in text


def short(error: object) -> str:
    """The first line of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")


# ---- where it is ---------------------------------------------------------------------------------------------------


def find_template(student: str) -> tuple[str, str, dict[str, str]]:
    """(what to call it, the template, its special tokens) of a folder, a file, or a packaged model.

    Raises UsageError when there is none.
    """
    path = Path(student).expanduser()
    if path.is_file() and path.suffix != ".gguf":
        return of_file(path)
    if path.is_dir():
        for name in ("chat_template.jinja", "tokenizer_config.json"):
            if (path / name).is_file():
                label, template, tokens = of_file(path / name)
                if name.endswith(".jinja") and (path / "tokenizer_config.json").is_file():
                    tokens = special_tokens(read_json(path / "tokenizer_config.json"))
                if template:
                    return label, template, tokens
    found = locate(student, gguf=False).path
    if found.suffix == ".gguf":
        return of_gguf(student, found)
    if found != path and found.is_dir():
        return find_template(str(found))
    raise UsageError(f"{student} has no chat template (no chat_template.jinja, none in tokenizer_config.json).")


def of_file(path: Path) -> tuple[str, str, dict[str, str]]:
    """The template of a .jinja file or of a tokenizer_config.json."""
    if path.suffix != ".json":
        return f"the template {path}", path.read_text(encoding="utf-8"), {}
    config = read_json(path)
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("tool_use") or named.get("default")
    if not isinstance(template, str):
        sibling = path.with_name("chat_template.jinja")
        if sibling.is_file():
            return f"the template {sibling}", sibling.read_text(encoding="utf-8"), special_tokens(config)
        raise UsageError(f"{path} holds no chat_template.")
    return f"the template in {path}", template, special_tokens(config)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UsageError."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not a JSON object.")
    return found


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, ... as text."""
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            tokens[name] = token
    return tokens


def of_gguf(student: str, path: Path) -> tuple[str, str, dict[str, str]]:
    """The template that a .gguf file carries."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise MissingDependency("gguf", f"the template of {path.name}", pip_line("gguf")) from None
    field = GGUFReader(path).fields.get("tokenizer.chat_template")
    if field is None:
        raise UsageError(f"{path} carries no chat template.")
    return f"the template of {student}", str(field.contents()), {}


# ---- rendering -----------------------------------------------------------------------------------------------------


def compiled(template: str, tokens: dict[str, str]) -> Render:
    """A template in the environment that transformers gives it, sandboxed. Raises jinja2's errors, also for a text
    that does not look at the messages."""
    try:
        import jinja2
        from jinja2 import meta, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        raise MissingDependency("jinja2", "--student", pip_line("jinja2")) from None

    class Generation(Extension):
        """{% generation %}...{% endgeneration %} marks what the student learns; here it is just its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.filters["from_json"] = environment.filters["fromjson"] = json.loads
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: "2025-01-01"}
    if "messages" not in meta.find_undeclared_variables(environment.parse(template)):
        refuse("it does not look at `messages`")
    parsed = environment.from_string(template)
    known = {"bos_token": "", "eos_token": "", **tokens}

    def render(messages: list[Message], tools: list[Any] | None = None) -> str:
        return parsed.render(messages=messages, tools=tools, add_generation_prompt=False, **known)

    return render
