"""The transformers teacher, on a tiny model that is built here."""

import ast
import asyncio
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import ModelNotFound, RequestRejected, TeacherUnavailable, UsageError
from core.teachers import Completion, Sampling, tokenizer_loading
from core.teachers.hf import HfTeacher
from core.teachers.hf_model import GumbelNoise, generate_batch, load_config, load_model, load_tokenizer
from tests.support.running import ROOT
from tests.support.tiny_model import make_tiny_model, real_template, teach

OPTIONS: dict[str, Any] = {
    "batch_size": 4,
    "dtype": "float32",
    "device_map": "auto",
    "attention": "sdpa",
    "load_in_4bit": False,
    "threads": None,
}
SILENT = Sampling(max_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def ask(folder: Path, prompts: list[str], sampling: Sampling, **options: Any) -> list[Completion]:
    async def all_at_once() -> list[Completion]:
        teacher = HfTeacher(str(folder), **{**OPTIONS, **options})
        await teacher.prepare(lambda note: None)
        try:
            return await asyncio.gather(*(teacher.complete(user(prompt), sampling) for prompt in prompts))
        finally:
            await teacher.aclose()

    return asyncio.run(all_at_once())


def test_batched_greedy_answers_equal_those_asked_one_by_one(folder: Path):
    prompts = ["What is the capital of France?", "Explain.", "Paris " * 20, "The capital", "photosynthesis?"]
    together = ask(folder, prompts, SILENT)
    alone = [ask(folder, [prompt], SILENT, batch_size=1)[0] for prompt in prompts]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.usage for answer in together] == [answer.usage for answer in alone]


def test_a_seed_decides_the_answer_whatever_its_neighbours_are(folder: Path):
    seeded = Sampling(max_tokens=8, temperature=1.0, seed=7)
    alone = ask(folder, ["Explain."], seeded)[0]
    among_others = ask(folder, ["The capital of France is", "Explain.", "Paris"], seeded)[1]
    other_seed = ask(folder, ["Explain."], Sampling(max_tokens=8, temperature=1.0, seed=8))[0]
    assert alone.text == among_others.text
    assert alone.text != other_seed.text


def test_max_tokens_bounds_the_answer_and_says_so(folder: Path):
    answer = ask(folder, ["Explain."], SILENT)[0]
    assert answer.finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    # <|im_start|>user\nExplain.<|im_end|>\n<|im_start|>assistant\n, in the teacher's own template
    tokenizer = load_tokenizer(folder)
    text = "<|im_start|>user\nExplain.<|im_end|>\n<|im_start|>assistant\n"
    assert answer.usage.prompt_tokens == len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_gumbel_noise_draws_from_the_softmax():
    # logits ln(.5), ln(.3), ln(.2): 4,000 draws; the standard error of a share is at most sqrt(.25/4000) = 0.008
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    draws = 4000
    noise = GumbelNoise(range(draws), torch.device("cpu"))
    scores = noise(torch.zeros(draws, 1), probabilities.log().repeat(draws, 1))
    shares = Counter(scores.argmax(-1).tolist())
    for token, probability in enumerate(probabilities.tolist()):
        assert math.isclose(shares[token] / draws, probability, abs_tol=4 * 0.008)


def test_gumbel_noise_never_draws_what_top_p_removed():
    scores = GumbelNoise([1, 2], torch.device("cpu"))(
        torch.zeros(2, 1), torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    )
    assert scores.argmax(-1).tolist() == [0, 1]


def test_the_folders_sampling_defaults_do_not_leak_in(folder: Path, tmp_path: Path):
    (tmp_path / "model").mkdir()
    for file in folder.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model" / "generation_config.json").write_text(
        '{"do_sample": true, "top_k": 1, "repetition_penalty": 9.0, "eos_token_id": 2}', encoding="utf-8"
    )
    assert ask(tmp_path / "model", ["Explain."], SILENT)[0].text == ask(folder, ["Explain."], SILENT)[0].text


def test_an_aborted_generation_ends_at_once(folder: Path):
    settings = {"dtype": "float32", "device_map": "auto", "attention": "sdpa", "load_in_4bit": False}
    model, tokenizer = load_model(folder, **settings), load_tokenizer(folder)
    answers = generate_batch(model, tokenizer, [[5, 6, 7]], Sampling(200, 0.0), [None], lambda: True)
    assert len(answers[0].tokens) == 1


def test_a_prompt_longer_than_the_context_is_rejected(folder: Path):
    with pytest.raises(RequestRejected, match=r"the prompt has \d+ tokens, the model takes 256"):
        ask(folder, ["Paris " * 300], SILENT)


def test_drain_cancels_what_has_not_begun(folder: Path):
    async def drained() -> list[Any]:
        teacher = HfTeacher(str(folder), **{**OPTIONS, "batch_size": 1})
        await teacher.prepare(lambda note: None)
        asked = [asyncio.create_task(teacher.complete(user("Explain."), SILENT)) for _ in range(3)]
        while len(teacher._queue) != 2:  # the first one is being answered
            await asyncio.sleep(0.001)
        teacher.drain()
        results = await asyncio.gather(*asked, return_exceptions=True)
        await teacher.aclose()
        return results

    first, *others = asyncio.run(drained())
    assert isinstance(first, Completion)
    assert all(isinstance(other, asyncio.CancelledError) for other in others)


def test_a_base_model_without_a_chat_template_is_refused(tmp_path: Path):
    base = make_tiny_model(tmp_path / "base", template=None)
    with pytest.raises(UsageError, match="has no chat template"):
        ask(base, ["Explain."], SILENT)


def test_a_template_that_refuses_the_conversation_fails_that_row_only(tmp_path: Path):
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    folder = make_tiny_model(tmp_path / "strict", template=strict)

    async def ask_with_system() -> Completion:
        teacher = HfTeacher(str(folder), **OPTIONS)
        await teacher.prepare(lambda note: None)
        try:
            return await teacher.complete([{"role": "system", "content": "s"}, *user("hi")], SILENT)
        finally:
            await teacher.aclose()

    with pytest.raises(RequestRejected, match="no system role"):
        asyncio.run(ask_with_system())


def test_a_model_that_is_nowhere_is_named_with_all_places_that_were_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match=r"Tried: the path nobody/nothing .*the Hub's cache.*Names of packaged"):
        HfTeacher("nobody/nothing", **OPTIONS)


def test_four_bit_weights_need_their_package():
    with pytest.raises(UsageError, match=r"bitsandbytes, which is not installed\. Run: .* -m pip install bitsandbytes"):
        HfTeacher("smollm2", **{**OPTIONS, "load_in_4bit": True})


# ---- tools ------------------------------------------------------------------------------------------------------

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def ask_with_tools(folder: Path, messages: list[dict[str, Any]], max_tokens: int = 80) -> Completion:
    async def once() -> Completion:
        teacher = HfTeacher(str(folder), **OPTIONS, tools=True)
        await teacher.prepare(lambda note: None)
        try:
            return await teacher.complete(messages, Sampling(max_tokens, 0.0), TOOLS)
        finally:
            await teacher.aclose()

    return asyncio.run(once())


def test_a_model_calls_a_tool_and_its_markers_may_be_special_tokens(tmp_path: Path):
    markers = ("<tool_call>", "</tool_call>")
    template = real_template("qwen2_5")
    folder = make_tiny_model(tmp_path, template=template, positions=1024, special=markers, corpus=template + CALL)
    prompt = load_tokenizer(folder).apply_chat_template(
        user("Weather?"), tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    teach(folder, prompt, f"I look.\n{CALL}<|im_end|>")
    answer = ask_with_tools(folder, user("Weather?"))
    assert (answer.text, answer.finish_reason) == ("I look.", "tool_calls")
    assert [call["function"] for call in answer.tool_calls] == [{"name": "weather", "arguments": '{"city": "Paris"}'}]
    cut_off = ask_with_tools(folder, user("Weather?"), max_tokens=answer.usage.completion_tokens - 6)
    assert (cut_off.tool_calls, cut_off.finish_reason) == ([], "length")
    assert cut_off.text.startswith("I look.\n<tool_call>")


def test_a_model_whose_template_drops_tools_is_refused_before_it_is_loaded_and_when_it_is_asked(folder: Path):
    with pytest.raises(UsageError, match=r"the chat template of .* has no place for tools\. Use another model"):
        ask_with_tools(folder, user("Weather?"))

    async def without_a_warning() -> None:
        teacher = HfTeacher(str(folder), **OPTIONS)
        await teacher.prepare(lambda note: None)
        try:
            with pytest.raises(TeacherUnavailable, match="has no place for tools") as caught:
                await teacher.complete(user("Weather?"), SILENT, TOOLS)
            assert caught.value.usage
        finally:
            await teacher.aclose()

    asyncio.run(without_a_warning())


def test_a_local_teacher_has_no_price_and_knows_its_context(folder: Path):
    async def about() -> None:
        teacher = HfTeacher(str(folder), **OPTIONS)
        assert teacher.context_tokens is None
        await teacher.prepare(lambda note: None)
        assert teacher.context_tokens == 256
        assert (await teacher.price(), await teacher.credit_left_usd(), teacher.notes) == (None, None, [])
        assert teacher.endpoint is None
        assert teacher.sampling_sent(SILENT) == {"max_tokens": 8, "temperature": 0.0, "top_p": 1.0, "seed": None}
        await teacher.aclose()

    asyncio.run(about())


# ---- memory -----------------------------------------------------------------------------------------------------


def test_only_the_request_that_does_not_fit_alone_fails_when_memory_runs_out(folder: Path):
    """A graphics card with room for 36 tokens stands in for a real one."""

    async def asked() -> tuple[list[Any], list[int]]:
        teacher = HfTeacher(str(folder), **OPTIONS)
        await teacher.prepare(lambda note: None)
        whole: Any = teacher._generate
        sizes: list[int] = []

        def small(model: Any, tokenizer: Any, prompts: Any, *rest: Any) -> Any:
            sizes.append(len(prompts))
            if sum(map(len, prompts)) > 36:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.\nmore")
            return whole(model, tokenizer, prompts, *rest)

        teacher._generate = small  # pyright: ignore[reportAttributeAccessIssue]
        prompts = ["Explain.", "Paris " * 20, "The capital"]
        try:
            results = await asyncio.gather(
                *(teacher.complete(user(prompt), SILENT) for prompt in prompts), return_exceptions=True
            )
        finally:
            await teacher.aclose()
        return results, sizes

    (first, long, third), sizes = asyncio.run(asked())
    assert isinstance(first, Completion)
    assert isinstance(third, Completion)
    assert isinstance(long, RequestRejected)
    assert long.reason == "out_of_memory"
    assert str(long).endswith("tokens of prompt alone: CUDA out of memory. Tried to allocate 1 TiB.")
    assert sizes[0] == 3


# ---- code that comes with a model ----------------------------------------------------------------------------------


def opened(folder: Path) -> Any:
    return load_model(folder, dtype="float32", device_map="cpu", attention="sdpa", load_in_4bit=False)


@pytest.mark.parametrize(
    "load", [load_config, load_tokenizer, opened, lambda folder: tokenizer_loading.read(folder, "it")]
)
def test_python_code_beside_a_model_is_not_run_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], load: Callable[[Path], Any]
) -> None:
    model, ran = make_tiny_model(tmp_path / "model"), tmp_path / "ran"
    (model / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()\n", encoding="utf-8")
    for name, more in (
        (
            "config.json",
            {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"}},
        ),
        ("tokenizer_config.json", {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": [None, "theirs.T"]}}),
    ):
        said = json.loads((model / name).read_text(encoding="utf-8"))
        (model / name).write_text(json.dumps(said | more), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(UsageError, match=r"cannot be loaded: .*code"):
        load(model)
    assert not ran.exists()
    assert "[y/N]" not in capfd.readouterr().out


def test_every_loader_in_the_project_says_that_no_code_is_to_be_run() -> None:
    """Left unsaid, transformers asks on the terminal."""
    silent: list[str] = []
    calls = 0
    for path in sorted((ROOT / "core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value).rpartition(".")[2]
                if node.func.attr == "from_pretrained" and owner.startswith("Auto"):
                    calls += 1
                    # None: a mapping, whose content the test above sees
                    if not {"trust_remote_code", None} & {keyword.arg for keyword in node.keywords}:
                        silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert calls > 5
    assert silent == []


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "of-no-library"}', "{}", None])
def test_a_configuration_that_cannot_be_loaded_is_told_in_words(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"the configuration in .* cannot be loaded"):
        load_config(tmp_path)


def test_a_sound_configuration_is_loaded(folder: Path) -> None:
    assert load_config(folder).model_type == "llama"
