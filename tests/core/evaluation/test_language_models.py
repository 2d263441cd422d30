"""Models as lm-eval asks them: real tiny ones through transformers, teachers over real HTTP, and a real GGUF file."""

import gc
import json
import logging
import shutil
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from core.commands.evaluate import Evaluate
from core.commands.teacher import TeacherOptions
from core.errors import UsageError
from core.evaluation import completer_lm
from core.evaluation.answers import broken
from core.evaluation.completer_lm import CompleterLM, TeacherFailed, messages_of
from core.evaluation.language_models import CannotScore, LanguageModel, open_language_model
from core.evaluation.models import resolve_models
from tests.support.running import Mock, Received, Reply, chat_answer, small_server
from tests.support.tiny_model import make_tiny_model
from tests.support.training import shaken

PAIRS = [
    ("What is the capital of France?", " Paris."),
    ("What is the capital of France?", " Photosynthesis."),
    ("Explain", " photosynthesis. The capital of France is Paris."),
    ("", "The capital of France"),
]
TEXTS = ["The capital of France is", "Explain photosynthesis", "What?"]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers.utils.logging.disable_progress_bar()
    return shaken(make_tiny_model(tmp_path_factory.mktemp("models") / "student"), 4.0)


@pytest.fixture(scope="module")
def adapter(student: Path) -> Path:
    """A LoRA adapter that changes a lot, beside the student."""
    folder = student.parent / "adapter"
    made = with_lora(transformers.AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32))
    made.peft_config["default"].base_model_name_or_path = str(student)
    made.save_pretrained(folder)
    return folder


def with_lora(network: Any) -> Any:
    config = peft.LoraConfig(task_type=peft.TaskType.CAUSAL_LM, r=4, target_modules=["q_proj", "v_proj"])
    with warnings.catch_warnings(action="ignore"):  # PEFT calls transformers by older names
        made: Any = peft.get_peft_model(network, config)
    generator = torch.Generator().manual_seed(3)
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            weight.data = 0.5 * torch.randn(weight.shape, generator=generator)
    return made


def scored(pairs: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)]


def asked(texts: list[str], **settings: Any) -> list[Instance]:
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False, **settings}
    return [Instance("generate_until", {}, (text, dict(settings)), place) for place, text in enumerate(texts)]


def opened(path: Path, **options: Any) -> LanguageModel:
    wanted = Evaluate(student=str(path), baseline=str(path), device="cpu", **options)
    return open_language_model(resolve_models(wanted)[1], wanted)


def answers_of(lm: Any) -> tuple[list[Any], list[Any], list[Any]]:
    rolling = [Instance("loglikelihood_rolling", {}, (text,), place) for place, text in enumerate(TEXTS)]
    return lm.loglikelihood(scored(PAIRS)), lm.loglikelihood_rolling(rolling), lm.generate_until(asked(TEXTS))


def lm_eval_of(path: Path, **more: Any) -> Any:
    """lm-eval's own model."""
    made: Any = HFLM
    return made(pretrained=str(path), device="cpu", dtype="float32", batch_size=4, **more)


# ---- transformers ----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_lm_evals_own_model(student: Path) -> None:
    ours = opened(student, batch_size=4)
    assert answers_of(ours.lm) == answers_of(lm_eval_of(student))
    ours.close()


def test_an_adapter_answers_as_peft_computes_it(student: Path, adapter: Path) -> None:
    ours = opened(adapter, batch_size=4)
    scores, rolling, answers = answers_of(ours.lm)
    assert (scores, rolling, answers) == answers_of(lm_eval_of(student, peft=str(adapter)))
    assert scores != opened(student, batch_size=4).lm.loglikelihood(scored(PAIRS))

    network = transformers.AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    with warnings.catch_warnings(action="ignore"):
        merged: Any = peft.PeftModel.from_pretrained(network, str(adapter)).merge_and_unload()  # pyright: ignore
    folder = adapter.parent / "merged"
    merged.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(student / name, folder)
    again = opened(folder, batch_size=4).lm.loglikelihood(scored(PAIRS))
    assert [value for value, _ in again] == pytest.approx([value for value, _ in scores], abs=1e-4)


def test_hooks_on_the_network_of_an_adapter_see_every_pass(adapter: Path) -> None:
    model = opened(adapter, batch_size=4)
    passes: list[int] = []
    model.network.register_forward_hook(lambda *_: passes.append(1))
    model.lm.loglikelihood(scored(PAIRS))
    assert passes


def test_an_adapter_with_further_tokens_and_its_own_end_is_loaded_as_it_was_saved(
    student: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(student, tmp_path / "base"))
    network = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    made = with_lora(network)
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    end = tokenizer.convert_tokens_to_ids("<new>")
    transformers.GenerationConfig(eos_token_id=[end]).save_pretrained(tmp_path / "adapter")

    model = opened(tmp_path / "adapter")
    assert model.network.generation_config.eos_token_id == [end]
    assert len(model.tokenizer) == model.network.get_output_embeddings().weight.shape[0] == len(tokenizer)
    tokens = torch.tensor([[5, end, 7]])
    with torch.no_grad():
        assert torch.equal(model.network(tokens).logits, made.eval()(tokens).logits)


def test_weights_are_float32_on_a_cpu_unless_asked_otherwise(student: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(student, half)
    transformers.AutoModelForCausalLM.from_pretrained(student, dtype=torch.bfloat16).save_pretrained(half)
    assert opened(half).network.dtype == torch.float32
    assert opened(half, dtype="bfloat16").network.dtype == torch.bfloat16


def test_nothing_is_printed_or_logged(student: Path, adapter: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("lm_eval").setLevel(logging.NOTSET)
    transformers.utils.logging.enable_progress_bar()
    for path in (student, adapter):
        model = opened(path)
        answers_of(model.lm)
        model.close()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_threads_are_those_that_were_asked_for_until_the_end(student: Path) -> None:
    before = torch.get_num_threads()
    model = opened(student, threads=before + 1)
    assert torch.get_num_threads() == before + 1
    model.close()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("which", ["student", "adapter"])
def test_closing_frees_the_weights(which: str, request: pytest.FixtureRequest) -> None:
    model = opened(request.getfixturevalue(which))
    answers_of(model.lm)
    watched = [weakref.ref(weight) for weight in model.network.parameters()]
    assert all(each() is not None for each in watched)
    model.close()
    gc.collect()
    assert [each for each in watched if each() is not None] == []


def test_tokens_that_were_written_are_counted(student: Path) -> None:
    model = opened(student, batch_size=3)
    model.lm.generate_until(asked(TEXTS, max_gen_toks=4))
    alone = 0
    for text in TEXTS:
        tokens = model.tokenizer(text, return_tensors="pt")["input_ids"]
        alone += model.network.generate(tokens, max_new_tokens=4, do_sample=False).shape[1] - tokens.shape[1]
    assert model.tokens == alone
    assert model.usd is None


def test_weights_that_lack_a_tensor_are_refused(student: Path, adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def without(path: Path, file: str, word: str) -> Path:
        folder = Path(shutil.copytree(path, tmp_path / path.name))
        tensors = {name: tensor for name, tensor in load_file(folder / file).items() if word not in name}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        return folder

    with pytest.raises(UsageError, match=r"student .*the weights lack lm_head\.weight: they would be random"):
        opened(without(student, "model.safetensors", "lm_head"))
    with pytest.raises(UsageError, match=r"the adapter's weights lack .*layers\.1.*lora_B.*they would be random"):
        opened(without(adapter, "adapter_model.safetensors", "layers.1.self_attn.v_proj.lora_B"))


def test_weights_of_another_shape_are_refused(student: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(student, tmp_path / "broken"))
    file = broken / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | {"hidden_size": 96}), encoding="utf-8")
    with pytest.raises(UsageError, match=r"student .* cannot be loaded"):
        opened(broken)


# ---- teachers that only write ----------------------------------------------------------------------------------------


class Kept(CacheHook):
    """Every answer that a model reports."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        super().__init__(None)
        self.answers: list[tuple[str, Any, str]] = []
        self._then = then

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.answers.append((attr, req, res))
        self._then()


def completer(url: str, **options: Any) -> CompleterLM:
    return CompleterLM(TeacherOptions(model="mock/model", base_url=url, **options))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries that do not wait."""
    monkeypatch.setattr(completer_lm, "BACKOFF_BASE_S", 0.001)


def test_a_teacher_answers_over_http_and_counts_what_it_costs(folder: Path, mock: Mock) -> None:
    lm = completer(mock.base_url)
    kept = Kept()
    lm.set_cache_hook(kept)
    texts = [f"[id:q{place}] What is {place}?" for place in range(12)]
    found = lm.generate_until(asked(texts, max_gen_toks=20))
    assert len(found) == 12
    assert all(found)
    assert sorted(req[0] for _, req, _ in kept.answers) == sorted(texts)
    assert {req[0]: text for _, req, text in kept.answers} == dict(zip(texts, found, strict=True))
    assert lm.tokens == 12 * 12  # the mock writes 12 tokens each time
    assert lm.usd is not None
    assert lm.usd > 0
    more = lm.generate_until(
        asked(["[id:again] And now?"], max_gen_toks=20)
    )  # the connections are those of the first call
    assert more[0]
    assert lm.tokens == 13 * 12
    assert mock.requests == 13
    lm.close()
    lm.close()


def test_messages_arrive_as_messages_and_decoding_as_the_task_says(folder: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    with small_server(lambda _: Reply(body=chat_answer("Because."))) as server:
        lm = completer(server.url)
        lm.generate_until(asked([lm.apply_chat_template(chat)], max_gen_toks=7))
        lm.generate_until(asked(["Plain [text]"], do_sample=True, temperature=0.5, top_p=0.9))
        lm.generate_until([Instance("generate_until", {}, ("x", {"until": ["\n"]}), 0)])
        lm.close()
        greedy, sampled, plain = (received.json for received in server.chats)
    assert greedy["messages"] == chat
    assert (greedy["temperature"], greedy["max_tokens"]) == (0, 7)
    assert sampled["messages"] == [{"role": "user", "content": "Plain [text]"}]
    assert (sampled["temperature"], sampled["top_p"]) == (0.5, 0.9)
    assert (plain["temperature"], plain["max_tokens"]) == (0, 256)  # lm-eval's defaults


@pytest.mark.parametrize("text", ["plain", "[1, 2]", '[{"role"', '[{"a": 1}]', "[]", '{"role": "user"}', ""])
def test_what_is_no_list_of_messages_is_one_message(text: str) -> None:
    assert messages_of(text) == [{"role": "user", "content": text}]


def test_answers_end_at_the_first_stop_string(folder: Path) -> None:
    with small_server(lambda _: Reply(body=chat_answer("One. Two.\nQuestion: three"))) as server:
        lm = completer(server.url)
        found = [lm.generate_until(asked(["x"], until=until))[0] for until in ([], ["\n"], ["Question:", "Two"])]
        lm.close()
    assert found == ["One. Two.\nQuestion: three", "One. Two.", "One. "]


def test_a_teacher_cannot_score(folder: Path, mock: Mock) -> None:
    lm = completer(mock.base_url)
    with pytest.raises(CannotScore, match="mock/model is asked over a chat API, which writes answers"):
        lm.loglikelihood(scored(PAIRS))
    with pytest.raises(CannotScore):
        lm.loglikelihood_rolling([])
    lm.close()
    assert mock.requests == 0


def test_no_more_requests_than_asked_for_are_in_flight(folder: Path) -> None:
    now, most = 0, 0

    def answer(_: Received) -> Reply:
        nonlocal now, most
        now += 1
        most = max(most, now)
        time.sleep(0.03)
        now -= 1
        return Reply(body=chat_answer())

    with small_server(answer) as server:
        lm = completer(server.url, concurrency=3)
        lm.generate_until(asked([str(place) for place in range(9)]))
        lm.close()
    assert most == 3


@pytest.mark.usefixtures("quick")
def test_failures_that_pass_are_tried_again(folder: Path, mock: Mock) -> None:
    mock.configure(p500=0.2, pdrop=0.1, pmalformed=0.1)
    lm = completer(mock.base_url)
    texts = [f"[id:q{place}] What is {place}?" for place in range(30)]
    assert all(lm.generate_until(asked(texts)))
    lm.close()
    assert mock.requests > 30
    assert lm.notes == []


def test_a_rate_limit_silences_all_for_as_long_as_it_says(folder: Path) -> None:
    times: list[float] = []

    def answer(_: Received) -> Reply:
        times.append(time.monotonic())
        if len(times) == 3:
            return Reply(429, b'{"error": {"code": 429, "message": "slowly"}}', {"retry-after": "0.4"})
        return Reply(body=chat_answer())

    with small_server(answer) as server:
        lm = completer(server.url, concurrency=1)
        assert lm.generate_until(asked(["a", "b", "c"])) == ["An answer."] * 3
        lm.close()
    assert len(times) == 5  # prices, a, b refused, b, c
    assert times[3] - times[2] >= 0.4


@pytest.mark.usefixtures("quick")
def test_a_teacher_that_stays_away_ends_it_and_leaves_no_empty_answers(folder: Path) -> None:
    served = 0

    def answer(_: Received) -> Reply:
        nonlocal served
        served += 1
        return Reply(body=chat_answer()) if served <= 3 else Reply(500)

    with small_server(answer) as server:
        lm = completer(server.url, concurrency=1, retries=2)
        kept = Kept()
        lm.set_cache_hook(kept)
        with pytest.raises(TeacherFailed, match=r"gave no answer in 3 attempts.*the same command goes on"):
            lm.generate_until(asked([str(place) for place in range(9)]))
        lm.close()
    assert [text for _, _, text in kept.answers] == ["An answer."] * 2  # the first request was for prices


def test_a_wrong_key_ends_it_at_once(folder: Path) -> None:
    refusal = json.dumps({"error": {"code": 401, "message": "no"}}).encode()
    with small_server(lambda _: Reply(401, refusal)) as server:
        lm = completer(server.url, concurrency=1)
        with pytest.raises(UsageError, match="the provider refuses the API key"):
            lm.generate_until(asked([str(place) for place in range(9)]))
        lm.close()
        assert len(server.chats) == 1


def test_a_refused_request_has_no_score_and_is_not_kept(folder: Path) -> None:
    refusal = json.dumps({"error": {"code": 403, "message": "moderation"}}).encode()

    def answer(received: Received) -> Reply:
        bad = "bad" in received.body.decode()
        return Reply(403, refusal) if bad else Reply(body=chat_answer("Good."))

    with small_server(answer) as server:
        lm = completer(server.url)
        kept = Kept()
        lm.set_cache_hook(kept)
        found = lm.generate_until(asked(["good", "bad one", "good too"]))
        assert [broken(text) for text in found] == [False, True, False]
        assert [text for _, _, text in kept.answers] == ["Good.", "Good."]
        assert len(lm.notes) == 1
        assert "refused 1 request, which have no score (403: moderation)" in lm.notes[0]
        with pytest.raises(TeacherFailed, match="refused 20 requests one after another"):
            lm.generate_until(asked([f"bad {place}" for place in range(30)]))
        lm.close()


def test_reasoning_that_leaves_no_room_is_no_answer(folder: Path) -> None:
    def answer(received: Received) -> Reply:
        thinking = "hard" in received.body.decode()
        unfinished = chat_answer("").replace(b'"stop"', b'"length"')
        return Reply(body=unfinished if thinking else chat_answer("Good."))

    with small_server(answer) as server:
        lm = completer(server.url)
        kept = Kept()
        lm.set_cache_hook(kept)
        found = lm.generate_until(asked(["easy", "hard 1", "hard 2"]))
        assert [broken(text) for text in found] == [False, True, True]
        assert [text for _, _, text in kept.answers] == ["Good."]
        assert len(lm.notes) == 1
        assert lm.notes[0].startswith("2 answers had no room: mock/model used all tokens for reasoning.")
        assert lm.usd == pytest.approx(0.003)
        lm.close()
        assert len(server.chats) == 3


def test_a_key_that_is_refused_later_ends_the_task_and_not_the_evaluation(folder: Path) -> None:
    refusal = json.dumps({"error": {"code": 401, "message": "no"}}).encode()

    def answer(received: Received) -> Reply:
        return Reply(401, refusal) if "late" in received.body.decode() else Reply(body=chat_answer("Good."))

    with small_server(answer) as server:
        lm = completer(server.url, concurrency=1)
        assert lm.generate_until(asked(["soon"])) == ["Good."]
        with pytest.raises(TeacherFailed, match="the provider refuses the API key"):
            lm.generate_until(asked(["late"]))
        lm.close()


def test_an_empty_answer_is_an_answer(folder: Path) -> None:
    with small_server(lambda _: Reply(body=chat_answer(""))) as server:
        lm = completer(server.url)
        kept = Kept()
        lm.set_cache_hook(kept)
        assert lm.generate_until(asked(["x", "y"])) == ["", ""]
        assert len(kept.answers) == 2
        assert lm.usd == pytest.approx(0.002)
        lm.close()
        assert len(server.chats) == 2


def test_a_wish_to_stop_lets_what_is_in_flight_come_and_begins_nothing(folder: Path, mock: Mock) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    lm = completer(mock.base_url, concurrency=4)
    kept = Kept(stop)
    lm.set_cache_hook(kept)
    with pytest.raises(KeyboardInterrupt):
        lm.generate_until(asked([f"[id:q{place}] {place}" for place in range(40)]))
    assert 1 <= len(kept.answers) == mock.requests <= 4
    lm.set_cache_hook(Kept())
    assert lm.generate_until(asked(["[id:more] x"]))[0]  # it can still be asked
    lm.close()


@pytest.mark.gguf
def test_a_gguf_teacher_answers_and_cannot_score(student: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wanted = Evaluate(
        student=str(student), baseline=str(student), teacher="smollm2", teacher_backend="gguf", device="cpu", threads=1
    )
    model = open_language_model(resolve_models(wanted)[-1], wanted)
    chat = model.lm.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}])
    found = model.lm.generate_until(asked([chat], max_gen_toks=12))
    assert found[0].strip()
    assert 0 < model.tokens <= 12
    assert (model.usd, model.network, model.tokenizer) == (None, None, None)
    with pytest.raises(CannotScore, match="--teacher-backend hf runs the same file in transformers"):
        model.lm.loglikelihood(scored(PAIRS))
    model.close()
    assert capfd.readouterr().out == ""
