"""A model that remembers what it answered."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from core.commands.teacher import TeacherOptions
from core.data.progress import Progress
from core.data.run import Run
from core.errors import StoppedEarly
from core.evaluation.answers import Answers, Broken, broken
from core.evaluation.cached_lm import INTERRUPTED, CachedLM
from core.evaluation.completer_lm import CompleterLM
from core.evaluation.language_models import CannotScore, HuggingFaceLM, LanguageModel
from core.teachers.hf_model import load_tokenizer
from tests.support.running import Received, Reply, chat_answer, small_server
from tests.support.tiny_model import make_tiny_model

GREEDY = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


Open = Callable[..., CachedLM]


@pytest.fixture
def open_lm(folder: Path, tmp_path: Path) -> Iterator[Open]:
    """The tiny model with the answers in tmp_path, as often as a test likes."""
    made: list[CachedLM] = []

    def build(run: Run | None = None, change: Callable[[Any], None] = lambda network: None, **more: Any) -> CachedLM:
        from transformers import AutoModelForCausalLM

        tokenizer = load_tokenizer(folder)

        def load() -> LanguageModel:
            network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            change(network)
            own = load_tokenizer(folder)
            return LanguageModel(HuggingFaceLM(network, own, more.get("batch"), 1), network, own, more.get("batch"))

        fixed = more.get("batch") is not None
        lm = CachedLM(
            "student",
            Answers(tmp_path, "m"),
            load,
            run or Run(),
            tokenizer=tokenizer,
            fixed_batch=fixed,
            seed=more.get("seed", 0),
        )
        made.append(lm)
        return lm

    yield build
    for lm in made:
        if lm.loaded:
            lm.close()


def scored(*pairs: tuple[str, str], task: str = "t") -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, 0, (task, n, 1)) for n, pair in enumerate(pairs)]


def written(*texts: str, task: str = "w", **settings: Any) -> list[Instance]:
    return [
        Instance("generate_until", {}, (text, {**GREEDY, **settings}), 0, (task, n, 1)) for n, text in enumerate(texts)
    ]


PAIRS = [(f"What is the capital of {n}?", f" Paris {n}") for n in range(10)]
TEXTS = [f"Explain {n}" * (n + 1) for n in range(6)]


def test_answers_are_those_of_lm_evals_own_class(open_lm: Open, folder: Path):
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain = HuggingFaceLM(network, load_tokenizer(folder), 1, 1)
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0, ("r", n, 1)) for n, text in enumerate(TEXTS)]
    lm = open_lm()
    for kind, requests in (
        ("loglikelihood", scored(*PAIRS)),
        ("generate_until", written(*TEXTS)),
        ("loglikelihood_rolling", rolling),
    ):
        ours, theirs = getattr(lm, kind)(requests), getattr(plain, kind)(requests)
        if kind == "generate_until":
            assert ours == theirs
        else:
            flat = [(each if isinstance(each, tuple) else (each, True)) for each in (*ours, *theirs)]
            for (value, greedy), (wanted, wanted_greedy) in zip(flat[: len(ours)], flat[len(ours) :], strict=True):
                assert value == pytest.approx(wanted, abs=1e-4)
                assert greedy == wanted_greedy
    assert lm.requests == 22
    assert lm.cached == 0
    assert lm.seconds > 0


def test_a_second_run_loads_no_model_and_says_the_same(open_lm: Open):
    first = open_lm()
    values = first.loglikelihood(scored(*PAIRS)), first.generate_until(written(*TEXTS))
    first.close()
    second = open_lm()
    assert (second.loglikelihood(scored(*PAIRS)), second.generate_until(written(*TEXTS))) == values
    assert second.loaded is None
    assert (second.requests, second.cached, second.seconds) == (16, 16, 0)


def test_a_killed_run_lost_only_what_it_was_working_on(open_lm: Open):
    calls: list[int] = []

    def dies_at_third(network: Any) -> None:
        def count(module: Any, inputs: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise MemoryError

        network.register_forward_pre_hook(count)

    lm = open_lm(change=dies_at_third, batch=2)
    with pytest.raises(MemoryError):
        lm.loglikelihood(scored(*PAIRS))
    lm.close()

    asked: list[int] = []
    lm = open_lm(change=lambda network: network.register_forward_hook(lambda m, i, out: asked.append(len(out.logits))))
    assert lm.missing("loglikelihood", scored(*PAIRS)) == 6
    values = lm.loglikelihood(scored(*PAIRS))
    assert (lm.cached, sum(asked)) == (4, 6)
    lm.close()

    whole = open_lm(batch=1)
    whole.answers = Answers(whole.answers._journal.path.parent, "other")
    for (value, _), (wanted, _) in zip(values, whole.loglikelihood(scored(*PAIRS)), strict=True):
        assert value == pytest.approx(wanted, abs=1e-4)


def test_equal_requests_are_asked_once_and_draws_are_not_equal(open_lm: Open):
    lm = open_lm()
    assert lm.missing("loglikelihood", scored(*PAIRS, *PAIRS)) == 10
    values = lm.loglikelihood(scored(*PAIRS, *PAIRS))
    assert values[:10] == values[10:]
    torch.manual_seed(1)
    drawn = lm.generate_until(written(*["Explain"] * 5, do_sample=True, temperature=5.0))
    assert len(set(drawn)) > 1
    lm.close()
    again = open_lm()
    assert again.generate_until(written(*["Explain"] * 5, do_sample=True, temperature=5.0)) == drawn
    assert again.loaded is None
    other = open_lm(seed=1)
    assert other.missing("generate_until", written(*["Explain"] * 5, do_sample=True, temperature=5.0)) == 5
    assert other.missing("generate_until", written("Explain")) == 1


def test_a_model_with_nan_is_not_measured(open_lm: Open):
    def spoil(network: Any) -> None:
        with torch.no_grad():
            network.model.embed_tokens.weight[network.config.eos_token_id - 1] = math.nan  # "<|im_start|>"

    lm = open_lm(change=spoil, batch=2)
    values = lm.loglikelihood(scored(("<|im_start|>What", " is"), ("What", " is"), ("Explain", " is")))
    assert [broken(value) for value in values] == [True, False, False]
    texts = ["What", "<|im_start|>x", "Explain this", "France", "<|im_start|>"]
    said = lm.generate_until(written(*texts))
    assert [broken(value) for value in said] == [text.startswith("<|im") for text in texts]
    lm.close()
    again = open_lm()
    assert [broken(value) for value in again.loglikelihood(scored(("<|im_start|>What", " is")))] == [True]
    assert isinstance(again.generate_until(written("<|im_start|>x"))[0], Broken)
    assert again.loaded is None


def test_ctrl_c_keeps_what_is_finished_and_says_what_is_not(open_lm: Open):
    run = Run()
    passes: list[int] = []

    def stop_at_second(network: Any) -> None:
        def look(module: Any, inputs: Any, output: Any) -> None:
            passes.append(1)
            if len(passes) == 3:
                run.stop.ask()

        network.register_forward_hook(look)

    lm = open_lm(run, change=stop_at_second, batch=5)
    values = lm.loglikelihood([*scored(*PAIRS, task="a"), *scored(*[(c + "?", a) for c, a in PAIRS], task="b")])
    assert lm.not_measured == {"b": INTERRUPTED}
    assert [broken(value) for value in values] == [False] * 15 + [True] * 5
    assert len(passes) == 3
    assert lm.loglikelihood(scored(*PAIRS, task="a")) == values[:10]
    lm.close()
    assert open_lm().missing("loglikelihood", scored(*[(c + "?", a) for c, a in PAIRS])) == 5


def test_a_second_ctrl_c_ends_it(open_lm: Open):
    run = Run()
    lm = open_lm(run)
    run.stop.ask()
    run.stop.ask()
    with pytest.raises(KeyboardInterrupt):
        lm.loglikelihood(scored(*PAIRS))
    assert lm.loaded is None


def test_a_bar_for_each_task_counts_requests(open_lm: Open):
    class Seen(Progress):
        def __init__(self) -> None:
            super().__init__()
            self.bars: list[tuple[str, int | None, int, int]] = []

        def end(self) -> None:
            counts = self.counts
            self.bars.append((counts.what, counts.total, counts.already, counts.done))

    progress = Seen()
    lm = open_lm(Run(progress=progress))
    lm.loglikelihood(scored(*PAIRS[:3], task="first"))
    lm.loglikelihood([*scored(*PAIRS[:5], task="first"), *scored(*PAIRS[5:], task="second")])
    assert progress.bars == [
        ("student: first", 3, 0, 3),
        ("student: first", 5, 3, 2),
        ("student: second", 5, 0, 5),
    ]


def test_texts_longer_than_the_context_are_counted(open_lm: Open):
    lm = open_lm()  # 256 positions
    long, short = "capital " * 300, "capital"
    lm.loglikelihood(scored((long, " a"), (short, " a"), (long, " b")))
    lm.generate_until(written(long, short, max_gen_toks=100))
    assert lm.truncated == {"t": {0, 2}, "w": {0}}
    assert "t: 2 items are longer than the context of student (256 tokens)" in lm.notes[0]
    lm.close()
    again = open_lm()
    again.generate_until(written(long, short, max_gen_toks=100))
    assert again.truncated == {"w": {0}}
    assert again.loaded is None


def test_what_lm_eval_refuses_is_a_task_not_measured(open_lm: Open):
    lm = open_lm()
    assert isinstance(lm.generate_until(written("a", max_gen_toks=300))[0], Broken)
    assert broken(lm.loglikelihood(scored(("a", " b" * 300)))[0])
    assert "(300) must be less than model's maximum sequence length (256)" in lm.not_measured["w"]
    assert "longer than the model's context" in lm.not_measured["t"]


def test_a_model_that_cannot_score_still_writes(tmp_path: Path):
    from lm_eval.api.model import LM

    class Writer(LM):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.usd, self.notes = 3, 0.5, ["slow"]
            self.asked = 0

        def loglikelihood(self, requests: Any) -> Any:
            raise CannotScore("it only writes")

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests: Any) -> list[str]:
            self.asked += len(requests)
            for request in requests[:-1]:  # the last one is refused
                self.cache_hook.add_partial("generate_until", request.args, "\ud800said")
            return ["?"] * (len(requests) - 1) + [Broken()]

        def close(self) -> None: ...

    writer: Any = Writer()
    with CachedLM("teacher", Answers(tmp_path, "t"), lambda: LanguageModel(writer), Run()) as lm:
        assert broken(lm.loglikelihood(scored(*PAIRS))[0])
        assert lm.not_measured == {"t": "it only writes"}
        for _ in range(2):
            said = lm.generate_until(written("a", "b", "c"))
            assert said == ["?said", "?said", ""]
            assert [broken(each) for each in said] == [False, False, True]
        assert lm.apply_chat_template([{"role": "user", "content": "x"}]) == '[{"role":"user","content":"x"}]'
        assert (lm.tokens, lm.usd, lm.notes) == (3, 0.5, ["slow"])
        assert writer.asked == 3
        lm.free()
        assert (lm.tokens, lm.usd, lm.notes) == (3, 0.5, ["slow"])
        lm.generate_until(written("d", "e"))
        assert (lm.tokens, lm.usd, lm.notes) == (6, 1.0, ["slow"])
    with CachedLM("teacher", Answers(tmp_path, "t"), lambda: LanguageModel(writer), Run()) as lm:
        assert lm.missing("generate_until", written("a", "b", "c")) == 1  # a refusal is not kept


def test_a_teacher_that_fails_ends_its_task_and_keeps_what_it_answered(tmp_path: Path):
    served = 0

    def answer(_: Received) -> Reply:
        nonlocal served
        served += 1
        return Reply(body=chat_answer()) if served != 4 else Reply(500)  # the first request is for prices

    with small_server(answer) as server:
        options = TeacherOptions(model="mock/model", base_url=server.url, concurrency=1, retries=0)
        open_model = lambda: LanguageModel(CompleterLM(options))  # noqa: E731
        with CachedLM("teacher", Answers(tmp_path, "t"), open_model, Run()) as lm:
            said = lm.generate_until([*written("a", "b", "c", "d", task="one"), *written("e", task="two")])
            assert [broken(each) for each in said] == [False, False, True, True, False]
            assert list(lm.not_measured) == ["one"]
            assert "gave no answer in 1 attempts" in lm.not_measured["one"]
        with CachedLM("teacher", Answers(tmp_path, "t"), open_model, Run()) as lm:
            assert lm.missing("generate_until", written("a", "b", "c", "d", "e")) == 2


def test_a_full_disk_still_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise StoppedEarly("no space")

    with small_server(lambda _: Reply(body=chat_answer())) as server:
        options = TeacherOptions(model="mock/model", base_url=server.url, concurrency=1)
        with CachedLM("t", Answers(tmp_path, "t"), lambda: LanguageModel(CompleterLM(options)), Run()) as lm:
            monkeypatch.setattr(lm.answers, "put", full)
            with pytest.raises(StoppedEarly, match="no space"):
                lm.generate_until(written("a"))


def test_loading_is_not_counted_as_answering(open_lm: Open):
    lm = open_lm(change=lambda network: time.sleep(1.5))
    lm.loglikelihood(scored(*PAIRS[:1]))
    assert 0 < lm.seconds < 1.5


def test_memory_that_runs_out_halves_the_batch(open_lm: Open):
    sizes: list[int] = []

    def small(network: Any) -> None:
        def look(module: Any, inputs: Any) -> None:
            sizes.append(len(inputs[0]))
            if len(inputs[0]) > 3:
                raise torch.OutOfMemoryError

        network.register_forward_pre_hook(look)

    lm = open_lm(change=small, batch=10)
    assert not any(broken(value) for value in lm.loglikelihood(scored(*PAIRS)))
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert lm.model.batch_size == 2

    def none_fits(network: Any) -> None:
        def fail(module: Any, inputs: Any) -> None:
            raise torch.OutOfMemoryError

        network.register_forward_pre_hook(fail)

    lm.close()
    with pytest.raises(StoppedEarly, match="one text at a time"):
        open_lm(change=none_fits).generate_until(written("a"))
