"""Domain files: what they may say, and what is said of mistakes in them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from core.errors import InputError, MissingDependency, UsageError
from core.synthetic.domain import (
    LENGTHS,
    STYLES,
    DocumentSettings,
    Domain,
    Output,
    Task,
    domain_schema,
    load_domain,
    presets,
)

LEAST = "description: Bees and their keepers.\n"


def domain(tmp_path: Path, text: str) -> Domain:
    """Of a file that has the text, after a description in its first line."""
    path = tmp_path / "bees.yml"
    path.write_text(LEAST + text, encoding="utf-8")
    return load_domain(str(path))


def problem(tmp_path: Path, text: str, description: str = LEAST) -> str:
    """What is wrong with a file, without the folder: "bees.yml:2: ..."."""
    path = tmp_path / "bees.yml"
    path.write_text(description + text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_domain(str(path))
    return str(caught.value).replace(f"{tmp_path}/", "")


# ---- what a file may say ---------------------------------------------------------------------------------------------


def test_a_description_and_one_task_are_enough(tmp_path: Path):
    bees = domain(tmp_path, "reasoning: [swarms]\n")
    assert bees.name == "bees"
    assert bees.reasoning == [Task(name="swarms")]
    assert bees.shares() == (5, 0, 0)  # of the usual 50/20/30, what there are tasks for
    assert (bees.language, bees.styles, bees.lengths) == ("en", STYLES, LENGTHS)


def test_tasks_may_be_written_in_short_and_under_their_old_keys(tmp_path: Path):
    short = domain(
        tmp_path,
        "reasoning_tasks: {swarms: 2, honey: 0.5, wax: }\n"
        "dialogues: [beginners, buyers]\n"
        "instructions: {writing: [label, recipe], planning: {weight: 3}}\n",
    )
    long = domain(
        tmp_path,
        "reasoning: [{name: swarms, weight: 2}, {name: honey, weight: 0.5}, {name: wax}]\n"
        "dialogue: [{name: beginners}, {name: buyers}]\n"
        "instruction:\n"
        "  - {name: writing, subcategories: {label: 1, recipe: 1}}\n"
        "  - {name: planning, weight: 3}\n",
    )
    assert short == long
    assert short.shares() == (5, 2, 3)


def test_a_full_file_comes_back_as_it_was_written(tmp_path: Path):
    bees = domain(
        tmp_path,
        """
name: apiary
language: de
mix: {reasoning: 0.6, instruction: 0.4}
difficulty: {hard: 1}
topics: [queens, "401", 'a colon: quoted']
personas: [a beginner]
styles: [short]
lengths: [one sentence]
answers: Be calm.
system: You are a beekeeper.
reasoning:
  - {name: sums, verify: expression, about: hives and honey, topics: [jars], examples: ['How many jars?']}
instruction:
  - name: records
    output:
      json_schema: {type: object, required: [hives], properties: {hives: {type: integer}}}
      instructions: No prose.
documents: {in_prompt: true, characters: 800}
nemo: {judges: [{name: sound, rubric: Is it right, scores: {1: wrong, 2: right}, least: 2}]}
""",
    )
    assert bees.name == "apiary"
    assert bees.mix == {"reasoning": 0.6, "dialogue": 0, "instruction": 0.4}
    assert bees.topics == ["queens", "401", "a colon: quoted"]
    assert bees.reasoning[0].verify == "expression"
    assert bees.instruction[0].output is not None
    assert bees.instruction[0].output.json_schema["required"] == ["hives"]
    assert (bees.documents.in_prompt, bees.documents.characters) == (True, 800)
    assert bees.nemo is not None
    assert bees.nemo.judges[0].scores == {1: "wrong", 2: "right"}
    assert Domain.model_validate(bees.model_dump()) == bees


def test_anchors_and_merged_keys_are_followed(tmp_path: Path):
    bees = domain(tmp_path, "dialogue:\n  - &one {name: a, turns: {2: 1}}\n  - {<<: *one, name: b}\n")
    assert [(task.name, task.turns) for task in bees.dialogue] == [("a", {2: 1}), ("b", {2: 1})]


def test_a_mix_of_the_command_line_stands_in_the_place_of_the_files(tmp_path: Path):
    bees = domain(tmp_path, "mix: {reasoning: 1}\nreasoning: [a]\ndialogue: [b]\n")
    assert bees.shares("20/80/0") == (20, 80, 0)
    with pytest.raises(UsageError, match=r"--mix 20/70/10, --domain bees: no instruction task is there"):
        bees.shares("20/70/10")
    with pytest.raises(UsageError, match="nothing is left to make"):
        bees.shares("0/0/0")


# ---- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "unknown key": ("topcs: [a]\nreasoning: [a]\n", 'bees.yml:2: unknown key "topcs". Did you mean "topics"?'),
    "unknown key of a task": (
        "reasoning:\n  - name: a\n    verfy: none\n",
        'bees.yml:4: unknown key "verfy". Did you mean "verify"?',
    ),
    "unknown key of a task in short": (
        "reasoning:\n  a: 1\n  b:\n    wieght: 2\n",
        'bees.yml:5: unknown key "wieght". Did you mean "weight"?',
    ),
    "unknown key of an output": (
        "reasoning:\n- name: a\n  output:\n    schema: {}\n    json_schema: {}\n",
        'bees.yml:5: unknown key "schema". Did you mean "json_schema"?',
    ),
    "unknown key that is near nothing": (
        "dialogue:\n- name: a\ndocuments:\n  zzz: 1\n",
        'bees.yml:5: unknown key "zzz". Known here: in_prompt, characters.',
    ),
    "unknown verify": (
        "reasoning:\n- name: a\n  verify: expresion\n",
        "bees.yml:4: verify: input should be 'none', 'expression', 'arithmetic' or 'countdown', not 'expresion'. "
        'Did you mean "expression"?',
    ),
    "unknown type in the mix": (
        "mix: {reasonning: 1}\nreasoning: [a]\n",
        "bees.yml:2: reasonning: input should be 'reasoning', 'dialogue' or 'instruction', not 'reasonning'. "
        'Did you mean "reasoning"?',
    ),
    "unknown difficulty": (
        "difficulty:\n  easy: 1\n  expert: 1\nreasoning: [a]\n",
        "bees.yml:4: expert: input should be 'easy', 'medium' or 'hard', not 'expert'.",
    ),
    "a number that is no text": (
        "topics:\n  - queens\n  - 401\nreasoning: [a]\n",
        "bees.yml:4: topics: expected text, found 401. Put it in quotes if it is meant as text.",
    ),
    "no as a language": (
        "language: no\nreasoning: [a]\n",
        "bees.yml:2: language: expected text, found False. Put it in quotes if it is meant as text.",
    ),
    "a colon in a topic": (
        "topics:\n  - swarms: when they come\nreasoning: [a]\n",
        "bees.yml:3: topics: expected text, found {'swarms': 'when they come'}: a colon makes a key. "
        "Put the text in quotes.",
    ),
    "an empty text": ("personas: [a, ' ']\nreasoning: [a]\n", "bees.yml:2: personas: a text is empty."),
    "a text where a list belongs": (
        "topics: queens\nreasoning: [a]\n",
        "bees.yml:2: topics: expected a list (lines that begin with -), found 'queens'.",
    ),
    "a list where an object belongs": (
        "documents: [800]\nreasoning: [a]\n",
        "bees.yml:2: documents: expected `key: value` lines, found [800].",
    ),
    "a key without a value": (
        "topics:\nreasoning: [a]\n",
        "bees.yml:2: topics has no value. Give it one, or leave the line out.",
    ),
    "examples that are no texts": (
        "reasoning:\n- name: a\n  examples:\n  - {question: why}\n",
        "bees.yml:5: examples: expected text, found {'question': 'why'}: a colon makes a key. Put the text in quotes.",
    ),
    "a task without a name": (
        "reasoning:\n- weight: 2\n",
        "bees.yml:3: name is missing: What the data set calls it: task_type, domain (of a dialogue) or category.",
    ),
    "the same topic twice": ("topics: [a, b, a]\nreasoning: [a]\n", "bees.yml:2: topics: 'a' is there twice."),
    "the same subcategory twice": (
        "instruction:\n  a: [x, x]\n",
        "bees.yml:3: subcategories: 'x' is there twice.",
    ),
    "the same task twice": (
        "reasoning:\n- name: a\n- name: b\n- name: a\n",
        'bees.yml:5: reasoning: "a" is there twice. Give one of them another name.',
    ),
    "a key twice": (
        "reasoning: [a]\ntopics: [a]\nreasoning: [b]\n",
        'bees.yml:4: "reasoning" is there twice (first in line 2). Keep one of them.',
    ),
    "a task's name twice": (
        "reasoning:\n  a: 1\n  a: 2\n",
        'bees.yml:4: "a" is there twice (first in line 3). Keep one of them.',
    ),
    "an old and a new key": (
        "reasoning: [a]\nreasoning_tasks: [b]\n",
        'bees.yml:3: "reasoning_tasks" is an old name of "reasoning", and both are there. Keep one of them.',
    ),
    "shares that do not sum": (
        "mix: {reasoning: 0.5, dialogue: 0.2}\nreasoning: [a]\ndialogue: [b]\n",
        "bees.yml:2: mix: the weights read like shares, but their sum is 0.7. Make it 1, or count in wholes.",
    ),
    "per cent that do not sum": (
        "mix: {reasoning: 50, dialogue: 20, instruction: 20}\nreasoning: [a]\ndialogue: [b]\ninstruction: [c]\n",
        "bees.yml:2: mix: the shares read like per cent, but their sum is 90. Make it 100.",
    ),
    "shares of tasks that do not sum": (
        "topics: [x]\nreasoning:\n  a: 0.5\n  b: 0.75\n",
        "bees.yml:3: reasoning: the weights read like shares, but their sum is 1.25. Make it 1, or count in wholes.",
    ),
    "shares of subcategories that do not sum": (
        "instruction:\n- name: a\n  subcategories: {x: 0.5, y: 0.1}\n",
        "bees.yml:4: subcategories: the weights read like shares, but their sum is 0.6. Make it 1, or count in wholes.",
    ),
    "weights of 0": (
        "difficulty: {easy: 0, hard: 0}\nreasoning: [a]\n",
        "bees.yml:2: difficulty: all weights are 0. Give one of them more.",
    ),
    "a negative weight": (
        "reasoning:\n  a: 1\n  b: -1\n",
        "bees.yml:4: weight: input should be greater than or equal to 0 (found -1).",
    ),
    "a weight that is no number": (
        "reasoning:\n  a: .nan\n  b: yes\n",
        "bees.yml:3: weight: input should be a finite number (found nan).\n"
        "bees.yml:4: weight: input should be a valid number (found True).",
    ),
    "no turns": (
        "dialogue:\n- name: a\n  turns: {0: 1}\n",
        "bees.yml:4: turns: input should be greater than or equal to 1 (found 0).",
    ),
    "too many turns": (
        "dialogue:\n- name: a\n  turns:\n    2: 1\n    11: 1\n",
        "bees.yml:6: turns: input should be less than or equal to 10 (found 11).",
    ),
    "a task that the mix wants is not there": (
        "mix:\n  reasoning: 50\n  instruction: 50\nreasoning: [a]\n",
        "bees.yml:4: mix: no instruction task is there, but instruction records are wanted. Add a task, or give "
        "instruction the share 0.",
    ),
    "no tasks at all": ("topics: [a]\n", "no tasks: what is to be made? Give reasoning, dialogue or instruction."),
    "turns of an instruction": (
        "instruction:\n- name: a\n  turns: {2: 1}\n",
        "bees.yml:4: turns belongs to dialogue tasks: under instruction it would do nothing.",
    ),
    "topics of a task that is made here": (
        "reasoning:\n- name: a\n  verify: countdown\n  topics: [b]\n",
        "bees.yml:5: topics would do nothing: verify: countdown has its questions made here.",
    ),
    "output of a checked task": (
        "reasoning:\n- name: a\n  verify: expression\n  output: {json_schema: {}}\n",
        "bees.yml:5: output and verify: expression exclude each other: a checked result stands in plain text.",
    ),
    "a schema that is none": (
        "reasoning:\n- name: a\n  output:\n    json_schema:\n      items:\n\n        type: txt\n",
        "bees.yml:8: json_schema: not a JSON schema: 'txt' is not valid under any of the given schemas.",
    ),
    "a draft that is none": (
        "reasoning:\n- name: a\n  output:\n    json_schema:\n      $schema: draft-9\n",
        "bees.yml:6: json_schema: 'draft-9' is no draft that is known. Leave the line out for draft 2020-12.",
    ),
    "a schema that is fetched from elsewhere": (
        "reasoning:\n- name: a\n  output:\n    json_schema:\n      items:\n        $ref: http://127.0.0.1:9/x.json\n",
        "bees.yml:7: json_schema: nothing is at 'http://127.0.0.1:9/x.json'. A $ref must point into the same schema, "
        "as #/$defs/name.",
    ),
    "a schema with a date": (
        "reasoning:\n- name: a\n  output:\n    json_schema: {const: 2024-01-01}\n",
        "bees.yml:5: json_schema: cannot be written as JSON: Object of type date is not JSON serializable. "
        "Put dates in quotes.",
    ),
    "a schema with a broken pattern": (
        "reasoning:\n- name: a\n  output:\n    json_schema:\n      pattern: '['\n",
        "bees.yml:6: json_schema: not a JSON schema: '[' is not a 'regex'.",
    ),
    "a schema with a pattern that may take for ever": (
        "reasoning:\n- name: a\n  output:\n    json_schema:\n      items:\n        pattern: '^(\\w+\\s?)*$'\n",
        "bees.yml:7: json_schema: a text can be cut into the repeats of (\\w+\\s?)* in so many ways that an answer "
        "might keep it busy for ever. Make it possessive, as in (?:...)*+, or begin what is repeated with a sign that "
        "the rest of it does not match.",
    ),
    "a check with a pattern that may take for ever": (
        "reasoning: [a]\nnemo:\n  validators:\n  - {name: a, kind: pattern, pattern: (a+)+$}\n",
        "bees.yml:5: validators: pattern: a text can be cut into the repeats of (a+)+ in so many ways that an answer "
        "might keep it busy for ever. Make it possessive, as in (?:...)*+, or begin what is repeated with a sign that "
        "the rest of it does not match.",
    ),
    "a score that no judge can give": (
        "reasoning: [a]\nnemo:\n  judges:\n  - {name: good, rubric: How good, scores: {1: bad, 2: good}, least: 3}\n",
        "bees.yml:5: judges: least: 3 must be one of the scores, and not the lowest, which all reach.",
    ),
    "a judge's name that is no key": (
        "reasoning: [a]\nnemo:\n  judges:\n  - {name: How good, rubric: How, scores: {1: bad, 2: good}}\n",
        "bees.yml:5: name: string should match pattern '^[a-z][a-z0-9_]{0,39}$' (found 'How good').",
    ),
    "two checks of one name": (
        "reasoning: [a]\nnemo:\n  validators: [{name: a, kind: python}, {name: a, kind: python}]\n",
        "bees.yml:4: validators: 'a' is there twice.",
    ),
    "a check that would run code": (
        "reasoning: [a]\nnemo:\n  validators:\n  - {name: a, kind: sql}\n",
        "bees.yml:5: kind: input should be 'python' or 'pattern', not 'sql'.",
    ),
    "a check without its pattern": (
        "reasoning: [a]\nnemo:\n  validators:\n  - {name: a, kind: pattern}\n",
        "bees.yml:5: validators: a validator of the kind pattern needs a pattern, and no other has one.",
    ),
    "a pattern that is none": (
        "reasoning: [a]\nnemo:\n  validators:\n  - {name: a, kind: pattern, pattern: '('}\n",
        "bees.yml:5: validators: pattern: not a regular expression: missing ), unterminated subpattern at position 0.",
    ),
    "an attribute that is drawn already": (
        "reasoning: [a]\nnemo:\n  samplers:\n  - name: topic\n    kind: person\n    params: {}\n",
        "bees.yml:5: name: topic is drawn for every record already. Choose another name.",
    ),
    "a tab": ("reasoning:\n\t- name: a\n", "bees.yml:3: not YAML: a tab. Indent with blanks."),
    "broken YAML": ("reasoning: [a\n", "bees.yml:3: not YAML: expected ',' or ']', but got '<stream end>'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_shown_with_its_line(name: str, tmp_path: Path):
    text, message = MISTAKES[name]
    assert problem(tmp_path, text).endswith(message)


def test_all_mistakes_are_shown_in_the_order_of_their_lines(tmp_path: Path):
    found = problem(tmp_path, "topcs: [a]\nreasoning:\n- name: a\n  weight: -1\nlanguage: english\n")
    assert [line.split(": ")[0] for line in found.splitlines()] == ["bees.yml:2", "bees.yml:5", "bees.yml:6"]


def test_a_file_without_a_description_is_told_what_it_is(tmp_path: Path):
    assert problem(tmp_path, "reasoning: [a]\n", description="").startswith(
        "bees.yml:1: description is missing: What the domain is about, in a sentence or two"
    )


@pytest.mark.parametrize(("text", "found"), [("", "nothing"), ("- a\n", "list"), ("words\n", "str")])
def test_a_file_that_holds_no_keys(text: str, found: str, tmp_path: Path):
    assert problem(tmp_path, text, description="").startswith(
        f"bees.yml:1: expected `key: value` lines, found {found}."
    )


def test_another_encoding_is_refused_with_its_line(tmp_path: Path):
    (tmp_path / "bees.yml").write_bytes("description: Bees\ntopics: [K\xf6nigin]\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"bees.yml:2: not UTF-8. Convert it: iconv"):
        load_domain(str(tmp_path / "bees.yml"))


def test_what_refers_to_itself_is_refused(tmp_path: Path):
    assert "bees.yml:2" in problem(tmp_path, "reasoning: &a [*a]\n")


def test_sound_schemas_of_other_drafts_with_references_are_taken(tmp_path: Path):
    schema: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"hive": {"type": "integer"}},
        "items": {"$ref": "#/definitions/hive"},
    }
    bees = domain(tmp_path, yaml.safe_dump({"reasoning": [{"name": "a", "output": {"json_schema": schema}}]}))
    assert bees.reasoning[0].output is not None
    assert bees.reasoning[0].output.json_schema == schema


def test_a_domain_with_a_schema_asks_for_the_extra_where_jsonschema_is_missing(tmp_path: Path):
    (tmp_path / "bees.yml").write_text(LEAST + "reasoning: [{name: a, output: {json_schema: {}}}]\n", encoding="utf-8")
    code = (
        "import sys; sys.modules['jsonschema'] = None\n"
        "from core.synthetic.domain import load_domain\n"
        f"load_domain({str(tmp_path / 'bees.yml')!r})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert MissingDependency.__name__ in ended.stderr
    assert "doctor.py --install data" in ended.stderr


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_preset_is_found_by_its_name_however_it_is_written():
    assert load_domain("Customer-Support").name == "customer_support"


def test_an_unknown_preset_is_told_the_nearest_and_all():
    with pytest.raises(UsageError, match=r'no preset "finnance"\. Did you mean "finance"') as caught:
        load_domain("finnance")
    assert ", ".join(presets()) in str(caught.value)
    with pytest.raises(UsageError, match='Did you mean "medical"'):
        load_domain("healthcare")


def test_a_file_that_is_not_there_is_told_the_presets():
    with pytest.raises(InputError, match=r'finance.yml: no such file. Did you mean "finance"'):
        load_domain("finance.yml")
    with pytest.raises(InputError, match="no such file"):
        load_domain("folder/finance")


# ---- the schema ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_editors_accept_the_presets(name: str):
    path = Path(__file__).parents[3] / "core" / "synthetic" / "presets" / f"{name}.yml"
    content = json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
    jsonschema.validate(content, domain_schema())


def test_editors_accept_short_tasks_and_refuse_unknown_keys():
    content = {"description": "x", "reasoning": {"a": 1}, "dialogue": ["b"], "instruction": {"c": ["d"]}}
    jsonschema.validate(content, domain_schema())
    with pytest.raises(jsonschema.ValidationError, match="topcs"):
        jsonschema.validate({**content, "topcs": []}, domain_schema())


def test_every_key_of_the_schema_is_described():
    schema = domain_schema()
    for name, part in {"Domain": schema, **schema["$defs"]}.items():
        for key, value in part["properties"].items():
            # An object's own description stands where it is defined.
            assert value.get("description") or "$ref" in value, f"{name}.{key}"
        assert part["description"]


# ---- the reference ---------------------------------------------------------------------------------------------------

REFERENCE = Path(__file__).parents[3] / "skills" / "on-policy" / "references" / "domains.md"


def test_the_complete_file_in_the_reference_is_one(tmp_path: Path):
    _, complete = REFERENCE.read_text(encoding="utf-8").split("\n## A complete file\n")
    block = re.findall(r"```yaml\n(.*?)```", complete, re.DOTALL)[0]
    (tmp_path / "bike_workshop.yml").write_text(block, encoding="utf-8")
    workshop = load_domain(str(tmp_path / "bike_workshop.yml"))
    assert workshop.name == "bike_workshop"
    assert workshop.instruction[1].output is not None
    unused = set(Domain.model_fields) - workshop.model_fields_set
    assert unused == {"nemo"}  # has a page of its own


def test_the_reference_names_every_key_and_every_preset():
    text = REFERENCE.read_text(encoding="utf-8")
    for name in (*Domain.model_fields, *Task.model_fields, *Output.model_fields, *DocumentSettings.model_fields):
        assert f"`{name}`" in text, name
    table = text[: text.index("## A complete file")]
    assert sorted(re.findall(r"^\| `(\w+)` \| ", table, re.MULTILINE)) == presets()


def test_samplers_keep_their_parameters_as_json(tmp_path: Path):
    text = "reasoning: [a]\nnemo:\n  samplers:\n  - {name: day, kind: datetime, params: {start: 2024-01-01, unit: D}}\n"
    nemo = domain(tmp_path, text).nemo
    assert nemo is not None
    assert nemo.samplers[0].params == {"start": "2024-01-01", "unit": "D"}
