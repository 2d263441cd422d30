"""What data is made about: a domain with its kinds of tasks, from a preset or from a file of the user's."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ..commands.base import attribute_docs
from ..commands.generate_synthetic import DEFAULT_MIX, TYPES, RecordType
from ..commands.project import parse_yaml
from ..commands.resolve import suggestion
from ..errors import InputError, MissingDependency, UsageError
from .documents import utf8_text
from .domain_lines import known, line_at, mistakes, repeated_keys
from .patterns import patterns, tangled
from .records import Slot, Verify

Difficulty = Literal["easy", "medium", "hard"]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80, pattern=r"^[^\r\n]*$")]
Weight = Annotated[float, Field(ge=0, le=1e6, strict=True, allow_inf_nan=False)]
"""Relative to the other weights beside it."""
Turns = Annotated[int, Field(ge=1, le=10)]

STYLES = [
    "one short sentence, straight to the point",
    "polite and complete, with the background that matters",
    "informal, as in a chat message, all in lower case",
    "precise and formal, in the words of the trade",
    "hesitant, from somebody who does not know the right words",
    "a concrete situation first, then the question",
]
LENGTHS = ["one or two sentences", "a short paragraph", "several paragraphs", "a numbered list of steps"]

PRESETS = Path(__file__).with_name("presets")
OLD_KEYS = {"reasoning_tasks": "reasoning", "dialogues": "dialogue", "instructions": "instruction"}
"""Of domain files for the original project, and what they are called here."""
OLD_PRESETS = {"healthcare": "medical"}
TANGLED = (
    "a text can be cut into the repeats of {} in so many ways that an answer might keep it busy for ever. Make it "
    "possessive, as in (?:...)*+, or begin what is repeated with a sign that the rest of it does not match"
)
"""Of a regular expression."""


class Part(BaseModel):
    """Base of everything that stands in a domain file."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """A field's docstring is its description, in the JSON schema and where the field is missing."""
        super().__pydantic_init_subclass__(**kwargs)
        docs = attribute_docs(cls)
        for name, info in cls.model_fields.items():
            info.description = docs.get(name)


class Output(Part):
    """What an answer has to be, where a program reads it."""

    json_schema: dict[str, Any]
    """A JSON schema (draft 2020-12, unless $schema names another). Answers that do not fit are not kept."""
    instructions: str = ""
    """What else the answering model is told about the form."""

    @field_validator("json_schema")
    @classmethod
    def _json(cls, value: dict[str, Any]) -> dict[str, Any]:
        """As JSON has it: its keys are texts."""
        try:
            return json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot be written as JSON: {error}. Put dates in quotes") from None


def listed(value: Any) -> Any:
    """A list of names as names of equal weights."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return value
    return dict.fromkeys(different(value), 1.0)


def different(texts: list[str]) -> list[str]:
    """The texts. Raises ValueError where one stands twice: it would be drawn twice as often, unseen."""
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise ValueError(f"{text!r} is there twice")
        seen.add(text)
    return texts


def check_weights(weights: Iterable[float]) -> None:
    """Weights are relative, so any sum will do, unless all are 0, or they read like shares that were miscounted."""
    given = list(weights)
    if given and not any(given):
        raise ValueError("all weights are 0. Give one of them more")
    if len(given) > 1 and max(given) < 1 and abs(sum(given) - 1) > 0.0101:
        raise ValueError(
            f"the weights read like shares, but their sum is {sum(given):g}. Make it 1, or count in wholes"
        )


class Task(Part):
    """One kind of question."""

    name: Name
    """What the data set calls it: task_type, domain (of a dialogue) or category."""
    weight: Weight = 1.0
    """How many there are of it, relative to the other tasks of its type."""
    about: str = ""
    """What such a question is, in words for the model that writes them."""
    topics: list[Text] = []
    """What its questions are about (default: the domain's topics)."""
    examples: list[Text] = []
    """Questions as they should be, three or more. Some are shown each time, others the next time."""
    verify: Verify = "none"
    """Of reasoning: how the answer is checked. expression: who asks also writes the arithmetic that solves it.
    arithmetic, countdown: the question is made here, and its answer is known."""
    turns: dict[Turns, Weight] = Field(default={1: 1.0}, min_length=1)
    """Of a dialogue: how many questions the user asks (1 to 10), with weights."""
    subcategories: dict[Name, Weight] = {}
    """Of an instruction: its subcategories with weights, or a list of them."""
    output: Output | None = None
    """What the answer has to be, where a program reads it."""

    @field_validator("subcategories", mode="before", json_schema_input_type=dict[Name, Weight] | list[Name])
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return listed(value)

    @field_validator("turns", "subcategories")
    @classmethod
    def _weights(cls, value: dict[Any, float]) -> dict[Any, float]:
        check_weights(value.values())
        return value

    @field_validator("topics", "examples")
    @classmethod
    def _different(cls, value: list[str]) -> list[str]:
        return different(value)

    @property
    def is_made_here(self) -> bool:
        """Whether no model is asked for its questions."""
        return self.verify in ("arithmetic", "countdown")


class DocumentSettings(Part):
    """How source documents (--documents) are used."""

    in_prompt: bool = False
    """Whether the passage also stands in the training row. If not, the student learns to answer without it."""
    characters: int = Field(default=1500, ge=100, le=100_000, strict=True)
    """About how long a passage is."""


NemoName = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[a-z][a-z0-9_]{0,39}$")]
"""Part of a column's name, and a key of the JSON that a judge writes."""
DRAWN_HERE = ("topic", "persona", "style", "length")
"""Attributes that every draft has, whatever the back end."""


class NemoJudge(Part):
    """A score that a model gives each record."""

    name: NemoName
    """What is scored, in small letters, digits and _."""
    rubric: Text
    """What to look at, in words for the judge."""
    scores: dict[int, Text] = Field(min_length=2)
    """Each score with what deserves it."""
    least: int | None = None
    """Records below this score are not kept (default: all are, with their score)."""

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.least is not None and self.least not in sorted(self.scores)[1:]:
            raise ValueError(f"least: {self.least} must be one of the scores, and not the lowest, which all reach")
        return self


class NemoValidator(Part):
    """A check of each record that asks no model and runs no code that a model wrote."""

    name: NemoName
    """What the check is called, in small letters, digits and _."""
    of: Literal["question", "answer"] = "answer"
    """What is checked: all that the user says, or all that the assistant says."""
    kind: Literal["python", "pattern"]
    """python: a linter (ruff) reads blocks of Python, and finds no error. pattern: a regular expression is found."""
    pattern: str = ""
    """The regular expression, as Python has them."""

    @model_validator(mode="after")
    def _with_its_pattern(self) -> Self:
        if bool(self.pattern) != (self.kind == "pattern"):
            raise ValueError("a validator of the kind pattern needs a pattern, and no other has one")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern: not a regular expression: {error}") from None
        if group := tangled(self.pattern):
            raise ValueError(f"pattern: {TANGLED.format(group)}")
        return self


class NemoSampler(Part):
    """A further attribute that is drawn for each record, and told to the model that writes questions."""

    name: NemoName
    """What the attribute is called in the prompt and in the record, in small letters, digits and _."""
    kind: Literal[
        "category", "subcategory", "uniform", "gaussian", "binomial", "bernoulli", "poisson", "datetime", "person"
    ]
    """A sampler of data-designer's. person: somebody made up (person_from_faker)."""
    params: dict[str, Any]
    """Its parameters, as data-designer has them: values and weights of a category, low and high of uniform, ..."""
    convert_to: str | None = None
    """int or str for numbers, a format such as %d/%m/%Y for a datetime."""

    @field_validator("name")
    @classmethod
    def _not_drawn_here(cls, value: str) -> str:
        if value in DRAWN_HERE:
            raise ValueError(f"{value} is drawn for every record already. Choose another name")
        return value

    @field_validator("params")
    @classmethod
    def _json(cls, value: dict[str, Any]) -> dict[str, Any]:
        """As JSON has it: YAML reads a bare 2020-01-31 as a date."""
        try:
            return json.loads(json.dumps(value, allow_nan=False, default=str))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot be written as JSON: {error}") from None


class NemoSettings(Part):
    """What --backend nemo does besides. Other back ends leave it alone."""

    judges: list[NemoJudge] = []
    """Scores that a model gives, all in one request for each record."""
    judged_by: Literal["questions", "answers"] = "answers"
    """Which model judges: that of the questions (--question-model) or that of the answers (--model)."""
    validators: list[NemoValidator] = []
    """Checks without a model."""
    samplers: list[NemoSampler] = []
    """Further attributes."""

    @field_validator("judges", "validators", "samplers")
    @classmethod
    def _names_differ(cls, value: list[Any]) -> list[Any]:
        different([each.name for each in value])
        return value


Tasks = list[Task | Name] | dict[Name, Weight | list[Name] | dict[str, Any] | None]
"""As a file may have them: objects, names, or an object with a weight, subcategories or other keys for each name."""


class Domain(Part):
    """What questions are about, who asks them and how, which kinds there are, and how they are to be answered."""

    name: Name = ""
    """What the data set is called (default: the name of the file)."""
    description: Text
    """What the domain is about, in a sentence or two for the model that writes questions."""
    language: str = Field(default="en", pattern=r"^(any|[a-z]{2,3})$")
    """Two letters of the language of questions and answers (ISO 639-1); any: all are kept."""
    mix: dict[RecordType, Weight] = {}
    """Shares of reasoning, dialogue and instruction (default: 50, 20, 30, of those that have tasks)."""
    difficulty: dict[Difficulty, Weight] = Field(default={"easy": 1.0, "medium": 2.0, "hard": 1.0}, min_length=1)
    """Of reasoning: easy, medium and hard, with weights."""
    topics: list[Text] = []
    """What questions are about, as concrete as possible: each is the subject of a record."""
    personas: list[Text] = []
    """Who asks."""
    styles: list[Text] = STYLES
    """How a question is worded."""
    lengths: list[Text] = LENGTHS
    """How long an answer is to be."""
    answers: str = ""
    """How answers are to be, in words for the answering model. It does not become part of the training row."""
    system: Text | None = None
    """System message of every training row."""
    reasoning: list[Task] = []
    """Questions whose answer follows from what they say."""
    dialogue: list[Task] = []
    """Conversations of a user with an assistant."""
    instruction: list[Task] = []
    """Things to write, code, analyse or plan."""
    documents: DocumentSettings = DocumentSettings()
    """How source documents (--documents) are used."""
    nemo: NemoSettings | None = None
    """What --backend nemo does besides."""

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, content: Any) -> Any:
        """Old keys under their new names, and a mix where none is given: the usual one, of the types with tasks."""
        if not isinstance(content, Mapping):
            return content
        for old, new in OLD_KEYS.items():
            if old in content and new in content:
                raise wrong((old,), f'"{old}" is an old name of "{new}", and both are there. Keep one of them.')
        content = {OLD_KEYS.get(str(key), key): value for key, value in content.items()}
        if "mix" not in content:
            usual = zip(TYPES, DEFAULT_MIX, strict=True)
            content["mix"] = {kind: share / 10 for kind, share in usual if content.get(kind)}
        return content

    @field_validator("reasoning", "dialogue", "instruction", mode="before", json_schema_input_type=Tasks)
    @classmethod
    def _tasks(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return [_task(name, given) for name, given in value.items()]
        if isinstance(value, list):
            return [{"name": each} if isinstance(each, str) else each for each in value]
        return value

    @field_validator("mix", "difficulty")
    @classmethod
    def _weights(cls, value: dict[Any, float]) -> dict[Any, float]:
        check_weights(value.values())
        return value

    @field_validator("mix")
    @classmethod
    def _all_types(cls, value: dict[RecordType, float]) -> dict[RecordType, float]:
        total = sum(value.values())
        if max(value.values(), default=0) >= 10 and abs(total - 100) > 1:
            raise ValueError(f"the shares read like per cent, but their sum is {total:g}. Make it 100")
        return {kind: value.get(kind, 0.0) for kind in TYPES}

    @field_validator("topics", "personas", "styles", "lengths")
    @classmethod
    def _different(cls, value: list[str]) -> list[str]:
        return different(value)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if not any(self.tasks(kind) for kind in TYPES):
            raise wrong((), "no tasks: what is to be made? Give reasoning, dialogue or instruction.")
        for kind in TYPES:
            check_tasks(kind, self.tasks(kind))
            if self.mix[kind] and not self.tasks(kind):
                raise wrong(("mix", kind), f"mix: {_without_task(kind)}")
        return self

    def task(self, slot: Slot) -> Task:
        """What a slot is for."""
        return self.tasks(slot.type)[slot.task]

    def tasks(self, kind: RecordType) -> list[Task]:
        """Those of one type."""
        return {"reasoning": self.reasoning, "dialogue": self.dialogue, "instruction": self.instruction}[kind]

    def shares(self, mix: str | None = None) -> tuple[float, float, float]:
        """How much is made of each of TYPES, relative to one another. mix: "50/20/30", in the place of the domain's.

        Raises UsageError for a mix of nothing, or of a type without tasks.
        """
        given = [float(part) for part in mix.split("/")] if mix else [self.mix[kind] for kind in TYPES]
        if not any(given):
            raise UsageError(f"--mix {mix}: nothing is left to make. Give one type a share.")
        for kind, share in zip(TYPES, given, strict=True):
            if share and not self.tasks(kind):
                raise UsageError(f"--mix {mix}, --domain {self.name}: {_without_task(kind)}")
        return given[0], given[1], given[2]


PARTS: dict[str, type[Part]] = {
    "": Domain,
    **dict.fromkeys(TYPES, Task),
    "output": Output,
    "documents": DocumentSettings,
    "nemo": NemoSettings,
    "judges": NemoJudge,
    "validators": NemoValidator,
    "samplers": NemoSampler,
}
"""What stands below a key of a domain file."""


def load_domain(name_or_path: str) -> Domain:
    """A preset by its name, or a file (its path ends in .yml or .yaml, or names a folder too).

    Raises UsageError for an unknown preset, InputError for a file with all that is wrong with it, line by line, and
    MissingDependency where an output constraint cannot be checked.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() not in (".yml", ".yaml") and path.name == name_or_path:
        path = preset(name_or_path)
    elif not path.is_file():
        near = suggestion(path.stem, presets())
        raise InputError(path, None, f"no such file.{near} Presets, which have no .yml: {', '.join(presets())}.")
    utf8_text(path)
    try:
        content, node = parse_yaml(path)
    except InputError as error:
        if "'\\t'" in str(error):
            raise InputError(path, error.line, "not YAML: a tab. Indent with blanks.") from None
        raise
    if not isinstance(content, dict) or node is None:
        found = "nothing" if content is None else type(content).__name__
        raise InputError(path, 1, f"expected `key: value` lines, found {found}.{known(Domain)}")
    if twice := list(repeated_keys(node)):
        raise _refusal(path, twice)
    try:
        domain = Domain.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        raise _refusal(path, mistakes(error, node, PARTS, OLD_KEYS)) from None
    outputs = [(kind, n, task.output) for kind in TYPES for n, task in enumerate(domain.tasks(kind)) if task.output]
    for kind, number, output in outputs:
        if mistake := schema_mistake(output.json_schema):
            place = (kind, number, "output", "json_schema", *mistake[0])
            raise InputError(path, line_at(node, place, OLD_KEYS), f"json_schema: {mistake[1]}")
    return domain


def preset(name: str) -> Path:
    """The file of a preset; - and _ are the same. Raises UsageError for an unknown one, with the nearest and all."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    if plain in presets():
        return PRESETS / f"{plain}.yml"
    near = suggestion(OLD_PRESETS.get(plain, plain), presets())
    raise UsageError(f'no preset "{name}".{near} Presets: {", ".join(presets())}. A file of your own ends in .yml.')


def presets() -> list[str]:
    """Names of the domains that come with this package."""
    return sorted(path.stem for path in PRESETS.glob("*.yml"))


def domain_schema() -> dict[str, Any]:
    """The JSON schema of a domain file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Domain.model_json_schema()}


def schema_mistake(schema: dict[str, Any]) -> tuple[list[int | str], str] | None:
    """Where and why a JSON schema is not one that can be checked here; None for a sound one.

    Raises MissingDependency. Nothing is fetched: a schema that refers to another one elsewhere is refused.
    """
    try:
        from jsonschema import Draft202012Validator, SchemaError, validators
        from referencing import Registry, Resource
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012
    except ImportError:
        raise MissingDependency("jsonschema", "A domain with a json_schema", "data") from None
    draft = schema.get("$schema")
    checker = validators.validator_for(schema, default=Draft202012Validator)
    if draft is not None and str(draft).rstrip("#") != str(checker.META_SCHEMA["$schema"]).rstrip("#"):
        return ["$schema"], f"{draft!r} is no draft that is known. Leave the line out for draft 2020-12."
    try:
        checker.check_schema(schema)
    except SchemaError as error:
        return list(error.path), f"not a JSON schema: {error.message}."
    for place, pattern in patterns(schema):
        if group := tangled(pattern):
            return place, f"{TANGLED.format(group)}."
    resolver = Registry[Any]().resolver_with_root(Resource.from_contents(schema, default_specification=DRAFT202012))
    for place, reference in _references(schema, []):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            return place, f"nothing is at {reference!r}. A $ref must point into the same schema, as #/$defs/name."
    return None


def check_tasks(kind: RecordType, tasks: list[Task]) -> None:
    """Raise for tasks of one type that do not go together, and for keys of a task that would do nothing."""
    names: dict[str, int] = {}
    for number, task in enumerate(tasks):
        if task.name in names:
            raise wrong((kind, number), f'{kind}: "{task.name}" is there twice. Give one of them another name.')
        names[task.name] = number
        given = {key for key, field in Task.model_fields.items() if getattr(task, key) != field.default}
        for key, only in (("verify", "reasoning"), ("turns", "dialogue"), ("subcategories", "instruction")):
            if key in given and kind != only:
                raise wrong((kind, number, key), f"{key} belongs to {only} tasks: under {kind} it would do nothing.")
        for key in ("about", "topics", "examples") if task.is_made_here else ():
            if key in given:
                text = f"{key} would do nothing: verify: {task.verify} has its questions made here."
                raise wrong((kind, number, key), text)
        if task.output and task.verify != "none":
            text = f"output and verify: {task.verify} exclude each other: a checked result stands in plain text."
            raise wrong((kind, number, "output"), text)
    try:
        check_weights(task.weight for task in tasks)
    except ValueError as error:
        raise wrong((kind,), f"{kind}: {error}.") from None


def wrong(at: tuple[int | str, ...], message: str) -> PydanticCustomError:
    """A mistake that several values make together. at: keys and numbers to the place that is shown."""
    return PydanticCustomError("wrong_at", "{message}", {"message": message, "at": at})


def _without_task(kind: str) -> str:
    return f"no {kind} task is there, but {kind} records are wanted. Add a task, or give {kind} the share 0."


def _task(name: Any, given: Any) -> Any:
    """What stands below a task's name, as the task's keys."""
    if given is None:
        return {"name": name}
    if isinstance(given, Mapping):
        return {"name": name, **given}
    return {"name": name, "subcategories" if isinstance(given, list) else "weight": given}


def _references(schema: Any, place: list[int | str]) -> Iterator[tuple[list[int | str], str]]:
    """(where, what it refers to) of every $ref in a schema."""
    below = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for key, value in below:
        if key in ("$ref", "$dynamicRef") and isinstance(value, str):
            yield [*place, key], value
        yield from _references(value, [*place, key])


def _refusal(path: Path, mistakes: list[tuple[int, str]]) -> InputError:
    """All of them in one error: the first says the file, and so does each line below it."""
    (line, text), *others = mistakes
    return InputError(path, line, "\n".join([text, *(f"{path}:{line}: {text}" for line, text in others)]))
