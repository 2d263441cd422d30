"""The llama.cpp teacher, on the real SmolLM2-135M-Instruct that ships in a package."""

import asyncio
from typing import Any

import pytest

from core.errors import RequestRejected
from core.teachers import Completion, Sampling
from core.teachers.gguf import GgufTeacher

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
