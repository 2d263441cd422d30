"""From flags, environment, .env and YAML to one command."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from core.commands import COMMANDS, Command, Option, load
from core.commands.base import choices, flag
from core.commands.generate_teacher_data import GenerateTeacherData
from core.commands.resolve import resolve
from core.errors import InputError, UsageError


class Tiny(Command):
    """A command with environment keys."""

    work: ClassVar[str] = "..none:none"
    examples: ClassVar[tuple[str, ...]] = ()

    data: Annotated[Path, Option("In", "-d", env="DATA_PATH", mcp=True)]
    """Prompt file."""
    max_steps: Annotated[int, Option("Run", env="MAX_STEPS", mcp=True)] = Field(200, ge=1)
    """Optimizer steps."""
    learning_rate: Annotated[float, Option("Run", env="LEARNING_RATE")] = Field(1e-4, gt=0)
    """Step size."""
    lora: Annotated[bool, Option("Run", env="KD_LORA")] = True
    """Adapters instead of all weights."""
    device: Annotated[Literal["cpu", "cuda"] | None, Option("Run")] = None
    """Where."""


def tiny(flags: dict[str, Any] | None = None, **sources: Any) -> tuple[Tiny, dict[str, str]]:
    command, origins = resolve(Tiny, {"data": "p.txt", **(flags or {})}, **sources)
    assert isinstance(command, Tiny)
    return command, origins


def test_each_source_wins_over_the_next_one_and_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("max_steps: 5\n", encoding="utf-8")
    sources: dict[str, Any] = {
        "flags": {"max_steps": 2},
        "environment": {"MAX_STEPS": "3"},
        "dotenv": {"MAX_STEPS": "4"},
        "config": config,
    }
    expected = [(2, "--max-steps"), (3, "MAX_STEPS"), (4, "MAX_STEPS in .env"), (5, f"{config}:1"), (200, "default")]
    for value, origin in expected:
        command, origins = tiny(**sources)
        assert (command.max_steps, origins["max_steps"]) == (value, origin)
        if sources:
            del sources[next(iter(sources))]


def test_an_empty_variable_is_not_set() -> None:
    command, origins = tiny(environment={"MAX_STEPS": ""}, dotenv={"MAX_STEPS": None})
    assert (command.max_steps, origins["max_steps"]) == (200, "default")


def test_a_field_without_a_key_does_not_read_the_environment() -> None:
    command, _ = tiny(environment={"DEVICE": "cuda", "device": "cuda"})
    assert command.device is None


def test_generate_teacher_data_reads_nothing_but_credentials_from_the_environment() -> None:
    assert [name for name in GenerateTeacherData.model_fields if GenerateTeacherData.option(name).env] == []


@pytest.mark.parametrize(("word", "value"), [("1", True), ("true", True), ("no", False), ("0", False), ("off", False)])
def test_words_of_the_environment_become_booleans(word: str, value: bool) -> None:
    assert tiny(environment={"KD_LORA": word})[0].lora is value


def test_a_value_that_is_not_allowed_is_shown_with_the_place_it_came_from(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^MAX_STEPS in \.env: max_steps: Input should be greater than or equal to 1 \(given: 0\)"
    ):
        tiny(dotenv={"MAX_STEPS": "0"})
    with pytest.raises(UsageError, match=r"^LEARNING_RATE: .*valid number.* \(given: fast\)"):
        tiny(environment={"LEARNING_RATE": "fast"})
    config = tmp_path / "c.yml"
    config.write_text("max_steps: [1]\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"c\.yml:1: max_steps: .*valid integer \(given: \[1\]\)"):
        tiny(config=config)


def test_every_mistake_is_listed_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        tiny({"max_steps": 0, "learning_rate": -1})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["--max-steps", "--learning-rate"]


def test_a_required_option_that_nobody_gives_is_named() -> None:
    with pytest.raises(UsageError, match=r"--data \(DATA_PATH\) is required"):
        resolve(Tiny, {})


def test_dashes_and_underscores_are_the_same_in_yaml(tmp_path: Path) -> None:
    config = tmp_path / "c.yml"
    config.write_text("max-steps: 7\nlearning_rate: 0.5\n", encoding="utf-8")
    command, _ = tiny(config=config)
    assert (command.max_steps, command.learning_rate) == (7, 0.5)


def test_a_typo_in_yaml_is_named_with_its_line_and_the_nearest_option(tmp_path: Path) -> None:
    config = tmp_path / "c.yml"
    config.write_text("# settings\nlearning_rate: 0.5\nmax_stepz: 3\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        tiny(config=config)
    assert str(caught.value) == f'{config}:3: unknown option "max_stepz". Did you mean "max_steps"?'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1\n", r"c\.yml:\d: not YAML"),
        (b"- a\n- b\n", r"c\.yml:1: expected `option: value` lines, found list"),
        (b"just words\n", r"c\.yml:1: expected `option: value` lines, found str"),
        (b"max_steps: \xff\n", r"c\.yml: cannot be read"),
        (b"max_steps: !!python/object/apply:os.system ['true']\n", r"c\.yml:1: not YAML"),
        (b"? [a, b]\n: 1\n", r"c\.yml:1: "),
        (b"? {a: b}\n: 1\n", r"c\.yml:1: "),
        (b"max_steps: 2024-13-45\n", r"c\.yml: "),
        (b"5: 1\n", r'c\.yml:1: unknown option "5"'),
        (b"max_steps: 1\nmax_steps: 2\n", r'c\.yml:2: "max_steps" is there twice'),
        (b"max_steps: 1\nmax-steps: 2\n", r'c\.yml:2: "max-steps" is there twice'),
    ],
)
def test_yaml_that_is_no_list_of_options_is_refused_with_its_place(
    tmp_path: Path, content: bytes, message: str
) -> None:
    config = tmp_path / "c.yml"
    config.write_bytes(content)
    with pytest.raises(InputError, match=message):
        tiny(config=config)


def test_an_empty_yaml_sets_nothing_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    config = tmp_path / "c.yml"
    config.write_bytes(b"# nothing\n")
    assert tiny(config=config)[0].max_steps == 200
    with pytest.raises(InputError, match="no such file"):
        tiny(config=tmp_path / "none.yml")
    with pytest.raises(InputError, match="cannot be read"):
        tiny(config=tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_of_every_command_has_help_and_an_option(name: str) -> None:
    model = load(name)
    for field, info in model.model_fields.items():
        assert info.description, field
        assert model.option(field).group
    assert model.__doc__
    assert model.examples


def test_an_unknown_command_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"fly is not a command\. There are: generate_teacher_data"):
        load("fly")


def test_flags_and_choices() -> None:
    assert flag("max_tokens") == "--max-tokens"
    assert choices(Tiny.model_fields["device"]) == ["cpu", "cuda"]
    assert choices(Tiny.model_fields["max_steps"]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "0/4"}, r"--shard: 0/4 is not i/n with 1 <= i <= n"),
        ({"shard": "5/4"}, r"--shard: 5/4 is not i/n"),
        ({"shard": "1/0"}, r"--shard: 1/0 is not i/n"),
        ({"shard": "half"}, r"--shard: "),
        ({"base_url": "127.0.0.1:8000"}, r"does not begin with http"),
        ({"base_url": "http:///v1"}, r"--base-url: is not a URL such as"),
        ({"base_url": "http://127.0.0.1:99999/v1"}, r"--base-url: is not a URL such as"),
        ({"base_url": "http://[::1/v1"}, r"--base-url: is not a URL such as"),
        ({"base_url": "http://127.0.0.1/v1", "backend": "hf"}, r"--base-url is for API teachers"),
        ({"price": "3"}, r"--price: "),
        ({"backend": "bedrock"}, r"--backend: Input should be 'openrouter', 'openai'"),
        ({"temperature": float("nan")}, r"--temperature: "),
        ({"api_key_env": "sk-or-v1-abc"}, r"--api-key-env: "),
    ],
)
def test_impossible_options_of_generate_teacher_data(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(GenerateTeacherData, {"input": "a.txt", **options})


@pytest.mark.parametrize(
    "url", ["https://me:s3cretword@host/v1", "https://s3cretword@host/v1", "https://host/v1?key=s3cretword"]
)
def test_a_url_with_a_secret_in_it_is_refused_without_showing_the_secret(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(GenerateTeacherData, {"input": "a.txt", "base_url": url})
    assert "put the key into .env" in str(caught.value)
    assert "s3cretword" not in str(caught.value)


def test_a_key_given_where_the_name_of_its_variable_belongs_is_not_shown() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(GenerateTeacherData, {"input": "a.txt", "api_key_env": "sk-or-v1-s3cretword"})
    assert "s3cretword" not in str(caught.value)
