"""The llama.cpp teacher, on the real SmolLM2-135M-Instruct that ships in a package."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import RequestRejected, TeacherUnavailable, TransientError, UsageError
from core.teachers import Completion, Sampling
from core.teachers.gguf import GgufTeacher
from core.teachers.locate import locate
from tests.support.tiny_model import real_template

pytestmark = pytest.mark.gguf

OPTIONS: dict[str, Any] = {"preferred_quant": "Q4_K_M", "n_gpu_layers": 0, "n_ctx": 512, "threads": 2}
QUESTION = [{"role": "user", "content": "Name three primary colours."}]


def ask(sampling: Sampling, times: int = 1, messages: list[dict[str, Any]] = QUESTION) -> list[Completion]:
    async def one_after_another() -> list[Completion]:
        teacher = GgufTeacher("smollm2", **OPTIONS)
        await teacher.prepare(lambda note: None)
        try:
            return [await teacher.complete(messages, sampling) for _ in range(times)]
        finally:
            await teacher.aclose()

    return asyncio.run(one_after_another())


def test_a_seed_repeats_an_answer_and_no_seed_does_not():
    first, second = ask(Sampling(24, 1.0, seed=3), times=2)
    assert first.text == second.text
    drawn = {answer.text for answer in ask(Sampling(24, 1.5), times=4)}
    assert len(drawn) > 1


def test_the_prompt_goes_through_the_models_own_template():
    # SmolLM2 inserts its own system message when there is none: far more tokens than the question has
    answer = ask(Sampling(8, 0.0))[0]
    assert answer.usage.prompt_tokens > 25
    assert answer.usage.completion_tokens == 8
    assert answer.finish_reason == "length"
    assert answer.text.strip()


def test_a_prompt_longer_than_the_context_is_rejected():
    with pytest.raises(RequestRejected, match="Raise --n-ctx"):
        ask(Sampling(8, 0.0), messages=[{"role": "user", "content": "word " * 2000}])


def test_a_context_of_zero_is_all_that_the_model_has():
    async def context() -> int | None:
        teacher = GgufTeacher("smollm2", **{**OPTIONS, "n_ctx": 0})
        await teacher.prepare(lambda note: None)
        await teacher.aclose()
        return teacher.context_tokens

    assert asyncio.run(context()) == 8192


# ---- tools ------------------------------------------------------------------------------------------------------

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Get the weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@pytest.fixture(scope="module")
def with_qwens_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with the chat template of Qwen 2.5: both are ChatML, and Qwen's has a place for tools."""
    folder = tmp_path_factory.mktemp("gguf")
    (folder / "template.jinja").write_text(real_template("qwen2_5"), encoding="utf-8")
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force", "--chat-template-file"]
    files = [str(folder / "template.jinja"), str(locate("smollm2", gguf=True).path), str(folder / "model.gguf")]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return folder / "model.gguf"


def turns(number: int, city: str) -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": json.dumps({"city": city})}
    return [
        {"role": "user", "content": f"What is the weather in {city}?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": f"{number}", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": f"{number}", "content": f"mild in {city}"},
        {"role": "assistant", "content": f"It is mild in {city}."},
    ]


def test_a_model_calls_a_tool_as_it_did_before(with_qwens_template: Path):
    # Alone a model of this size does not know how; after four examples it does.
    before = [message for n, city in enumerate(["Rome", "Oslo", "Lima", "Bonn"]) for message in turns(n, city)]

    async def next_one() -> Completion:
        teacher = GgufTeacher(str(with_qwens_template), **{**OPTIONS, "n_ctx": 1024}, tools=True)
        await teacher.prepare(lambda note: None)
        try:
            return await teacher.complete([*before, turns(4, "Paris")[0]], Sampling(40, 0.0), TOOLS)
        finally:
            await teacher.aclose()

    answer = asyncio.run(next_one())
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    assert [call["function"]["name"] for call in answer.tool_calls] == ["weather"]
    assert "Paris" in answer.tool_calls[0]["function"]["arguments"]


def test_a_model_whose_template_drops_tools_is_refused_when_it_is_loaded_and_when_it_is_asked():
    async def ask_anyway() -> None:
        teacher = GgufTeacher("smollm2", **OPTIONS)
        await teacher.prepare(lambda note: None)
        try:
            with pytest.raises(TeacherUnavailable, match=r"SmolLM2.* has no place for tools\. Use another model"):
                await teacher.complete(QUESTION, Sampling(8, 0.0), TOOLS)
        finally:
            await teacher.aclose()

    async def load_for_tools() -> None:
        teacher = GgufTeacher("smollm2", **OPTIONS, tools=True)
        try:
            await teacher.prepare(lambda note: None)
        finally:
            await teacher.aclose()

    asyncio.run(ask_anyway())
    with pytest.raises(UsageError, match="has no place for tools"):
        asyncio.run(load_for_tools())


def test_an_answer_that_is_under_way_ends_when_the_teacher_is_closed():
    async def close_early() -> None:
        teacher = GgufTeacher("smollm2", **{**OPTIONS, "n_ctx": 4096})
        await teacher.prepare(lambda note: None)
        story = asyncio.create_task(teacher.complete([{"role": "user", "content": "Count on."}], Sampling(4000, 2.0)))
        await asyncio.sleep(0.5)
        await teacher.aclose()
        with pytest.raises(TransientError, match="closed before its answer was whole"):
            await story

    asyncio.run(close_early())
