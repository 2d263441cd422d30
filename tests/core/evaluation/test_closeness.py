"""How near a model is to its teacher: against log_softmax of whole logits, computed here."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.commands.evaluate import Evaluate
from core.data.run import Run
from core.distillation.output_head import OutputHead
from core.errors import UsageError
from core.evaluation import closeness as module
from core.evaluation.cached_lm import Broken, CachedLM, open_cached
from core.evaluation.closeness import closeness, own_form, together
from core.evaluation.held_out import HeldOut
from core.evaluation.models import Named, resolve_models
from core.evaluation.results import Answered, ModelInfo
from tests.support.training import Models, make_models

ANSWERS = (
    "Paris.",
    "Explain photosynthesis: größer, 太陽!",
    "The capital of France is Paris. The capital.",
    "2 + 2 = 4",
)


def row(number: int, reference: str, ended: bool = True) -> HeldOut:
    messages = [{"role": "user", "content": f"What is {number}?"}]
    return HeldOut(f"key{number}", f"content{number}", f"test.jsonl:{number}", messages, None, reference, ended)


ROWS = [*(row(number, text) for number, text in enumerate(ANSWERS)), row(9, "The capital of", ended=False)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


class Measure:
    """Measures a model in a folder against a teacher in another, with the answers kept in `cache`."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.run = cache, Run()
        self.notes: list[str] = []
        self.asked: list[CachedLM] = []

    def __call__(
        self,
        model: Path,
        teacher: Path | None,
        rows: Sequence[HeldOut] = ROWS,
        said: Sequence[str] | None = None,
        **more: Any,
    ) -> dict[str, list[tuple[float, float]]]:
        """Metric -> (total, count) of each row."""
        answered = self.answered(model, teacher, rows, said, **more)
        return {
            each.metric.name: list(zip(each.totals, each.counts or [1.0] * len(each.totals), strict=True))
            for each in answered.scored
        }

    def answered(
        self, model: Path, teacher: Path | None, rows: Sequence[HeldOut], said: Sequence[str] | None, **more: Any
    ) -> Answered:
        options = Evaluate(
            student=str(model), baseline=str(model), teacher=teacher and str(teacher), teacher_backend="hf",
            cache=self.cache, device="cpu", max_new_tokens=8, **more,
        )  # fmt: skip
        given = resolve_models(options)
        self.asked = [open_cached(each, options, self.run) for each in given[1:]]
        pair = (given[2], self.asked[1]) if teacher else None
        try:
            found = closeness(given[1], self.asked[0], pair, rows, options, self.run, self.notes.append, said)
            self.loaded = [lm.loaded is not None for lm in self.asked]
        finally:
            for lm in self.asked:
                lm.close()
        assert found is not None
        return found


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    return Measure(tmp_path / "cache")


def logprobs(folder: Path, each: HeldOut) -> tuple[torch.Tensor, list[int], Any]:
    """((T, V) log-probabilities where the reference is predicted, its tokens, the tokenizer), the long way."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = tokenizer.apply_chat_template(each.messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = tokenizer(each.reference, add_special_tokens=False)["input_ids"]
    ids += [tokenizer.convert_tokens_to_ids("<|im_end|>")] if each.ended else []
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1), ids, tokenizer


def alone(folder: Path, each: HeldOut) -> dict[str, tuple[float, float]]:
    ours, ids, _ = logprobs(folder, each)
    bits = -float(ours[torch.arange(len(ids)), ids].sum()) / math.log(2)
    return {
        "bits_per_byte": (bits, len(each.reference.encode()) + each.ended),
        "entropy": (-float((ours.exp() * ours).sum()), len(ids)),
    }


def test_with_one_tokenizer_every_measure_is_that_of_whole_rows(measure: Measure, models: Models) -> None:
    found = measure(models.student, models.teacher)
    assert list(found) == ["kl", "reverse_kl", "top1_agreement", "bits_per_byte", "entropy"]
    for place, each in enumerate(ROWS):
        (ours, ids, _), (theirs, _, _) = (logprobs(folder, each) for folder in (models.student, models.teacher))
        by_hand = {
            "kl": (float((theirs.exp() * (theirs - ours)).sum()), len(ids)),
            "reverse_kl": (float((ours.exp() * (ours - theirs)).sum()), len(ids)),
            "top1_agreement": (int((ours.argmax(-1) == theirs.argmax(-1)).sum()), len(ids)),
            **alone(models.student, each),
        }
        for name, value in by_hand.items():
            assert found[name][place] == pytest.approx(value, rel=1e-4), (name, each.place)
    assert measure.notes == []


def test_across_tokenizers_it_is_that_of_single_tokens_over_matched_columns_and_the_rest(
    measure: Measure, models: Models
) -> None:
    found = measure(models.student, models.other)
    compared = []
    for place, each in enumerate(ROWS):
        ours, our_ids, mine = logprobs(models.student, each)
        theirs, their_ids, other = logprobs(models.other, each)
        # Byte-level BPE writes a token as its bytes, so that equal texts are equal bytes.
        columns = [(mine.get_vocab()[token], place) for token, place in other.get_vocab().items() if token in
                   mine.get_vocab()]  # fmt: skip
        pairs = dict(columns)
        spans: list[dict[tuple[int, int], int]] = []
        for tokenizer, ids in ((mine, our_ids), (other, their_ids)):
            end, places = 0, {}
            for number, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
                size = 1 if token == "<|im_end|>" else len(token)
                places[end, end + size] = number
                end += size
            spans.append(places)
        rows = [(spans[0][span], spans[1][span]) for span in spans[0] if span in spans[1]]
        compared.append((len(rows), len(our_ids), len(their_ids)))
        kl = reverse = 0.0
        agree = 0
        for here, there in rows:
            p, q = (
                torch.tensor([*logs[own].exp().tolist(), 1 - logs[own].exp().sum()])
                for logs, own in ((theirs[there], [b for _, b in columns]), (ours[here], [a for a, _ in columns]))
            )
            kl += float((p * (p / q).log()).sum())
            reverse += float((q * (q / p).log()).sum())
            agree += pairs.get(int(ours[here].argmax())) == int(theirs[there].argmax())
        assert found["kl"][place] == pytest.approx((kl, len(rows)), rel=2e-3)
        assert found["reverse_kl"][place] == pytest.approx((reverse, len(rows)), rel=2e-3)
        assert found["top1_agreement"][place] == (agree, len(rows))
        for name, value in alone(models.student, each).items():
            assert found[name][place] == pytest.approx(value, rel=1e-4)
    # The tokenizers do differ here, and not everywhere.
    assert any(same < ours and same < theirs for same, ours, theirs in compared)
    assert all(same > 0 for same, _, _ in compared)


def test_bits_per_byte_of_one_text_are_over_the_same_bytes_whatever_the_tokenizer(
    measure: Measure, models: Models
) -> None:
    both = [measure(folder, None)["bits_per_byte"] for folder in (models.student, models.other)]
    assert [count for _, count in both[0]] == [count for _, count in both[1]] == [7, 42, 45, 10, 14]
    for found, folder in zip(both, (models.student, models.other), strict=True):
        by_hand = [alone(folder, each)["bits_per_byte"] for each in ROWS]
        assert [total for total, _ in found] == pytest.approx([total for total, _ in by_hand], rel=1e-4)
    # Weights that know nothing: about log2(V) bits for each token, and the other tokenizer has more tokens here.
    assert sum(total for total, _ in both[1]) > sum(total for total, _ in both[0])


def test_a_model_against_itself_has_distance_0_and_agrees_everywhere(measure: Measure, models: Models) -> None:
    found = measure(models.teacher, models.teacher)
    assert {total for total, _ in found["kl"] + found["reverse_kl"]} == {0.0}
    assert all(total == count for total, count in found["top1_agreement"])


def test_what_was_measured_is_kept_and_no_model_is_loaded_for_it_again(measure: Measure, models: Models) -> None:
    first = measure(models.student, models.teacher, ROWS[:3])
    assert measure.loaded == [True, True]
    again = measure(models.student, models.teacher, ROWS[:3])
    assert measure.loaded == [False, False]
    assert (measure.asked[0].requests, measure.asked[0].cached) == (3, 3)
    assert again == first
    more = measure(models.student, models.teacher)
    assert measure.asked[0].cached == 3
    assert {name: values[:3] for name, values in more.items()} == first
    measure(models.student, models.other)
    assert measure.asked[0].cached == 0  # another teacher


def test_the_batch_changes_rounding_alone_and_never_more_than_a_chunk_of_logits_is_held(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Measure(tmp_path / "one")(models.student, models.other)
    widths: list[int] = []
    project = OutputHead.logits

    def watched(head: OutputHead, hidden: torch.Tensor) -> torch.Tensor:
        widths.append(hidden.shape[-2] * head.width)
        return project(head, hidden)

    monkeypatch.setattr(OutputHead, "logits", watched)
    few = 3 * 320  # three rows at a time
    monkeypatch.setattr(module, "CHUNK_VALUES", few)
    monkeypatch.setattr("core.distillation.output_head.CHUNK_VALUES", few)
    alone = Measure(tmp_path / "two")(models.student, models.other, batch_size=1)
    assert max(widths) <= few
    for name, values in whole.items():
        assert [total for total, _ in alone[name]] == pytest.approx([total for total, _ in values], rel=1e-4, abs=1e-6)


def test_without_a_teacher_bits_per_byte_stand_first(measure: Measure, models: Models) -> None:
    answered = measure.answered(models.student, None, ROWS, None)
    assert [(each.metric.name, each.metric.primary) for each in answered.scored] == [
        ("bits_per_byte", True),
        ("entropy", False),
    ]
    with_teacher = measure.answered(models.student, models.teacher, ROWS, None)
    assert [each.metric.name for each in with_teacher.scored if each.metric.primary] == ["kl"]
    assert [question.key for question in answered.questions] == [each.key for each in ROWS]


def test_the_form_of_own_answers_of_hand_counted_ones(measure: Measure, models: Models) -> None:
    said = ["Paris Paris, paris is", "", "one two three one two", Broken(), "The capital of France is Paris. " * 4]
    found = measure(models.student, None, said=said)
    # paris x 3 and is: 2 of 4 words differ; (paris paris) x 2 and (paris is): 2 of 3 pairs.
    assert found["own_distinct_1"][:3] == [(2, 4), (0, 0), (3, 5)]
    assert found["own_distinct_2"][:3] == [(2, 3), (0, 0), (3, 4)]
    tokenizer = AutoTokenizer.from_pretrained(models.student)
    lengths = [len(tokenizer(text)["input_ids"]) for text in said]
    assert [total for total, _ in found["own_length"][:3]] == lengths[:3]
    assert [total for total, _ in found["own_truncated"][:3]] == [float(n >= 8) for n in lengths[:3]]
    assert found["own_truncated"][4] == (1.0, 1.0)
    assert all(math.isnan(values[3][0]) for name, values in found.items() if name.startswith("own_"))
    assert [each.metric.name for each in own_form(said, None, 8)] == ["own_distinct_1", "own_distinct_2"]


def test_what_does_not_fit_a_context_is_not_measured_and_the_rest_is(measure: Measure, models: Models) -> None:
    rows = [ROWS[0], row(7, "Paris is far. " * 100), ROWS[1]]
    found = measure(models.student, models.teacher, rows)
    for values in found.values():
        assert [math.isnan(total) for total, _ in values] == [False, True, False]
    assert measure.notes == [
        "student: 1 held-out item not measured, such as test.jsonl:7: "
        "too long for the context of the model (256 tokens)"
    ]
    measure(models.student, models.teacher, rows)
    assert measure.loaded == [False, False]  # that it does not fit is known


def copied(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_an_item_at_which_a_model_computes_nan_is_not_measured_and_named(
    measure: Measure, models: Models, tmp_path: Path
) -> None:
    folder = copied(models.student, tmp_path / "poisoned")
    tensors = load_file(folder / "model.safetensors")
    bad = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("9")
    tensors["model.embed_tokens.weight"][bad] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = measure(folder, models.teacher)
    for values in found.values():
        assert [math.isnan(total) for total, _ in values] == [False] * 4 + [True]
    assert measure.notes == [
        "student: 1 held-out item not measured, such as test.jsonl:9: what the model computes for it is not finite"
    ]


def test_a_model_that_is_broken_everywhere_is_refused_in_words(
    measure: Measure, models: Models, tmp_path: Path
) -> None:
    folder = copied(models.other, tmp_path / "poisoned")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="student gives logits that are not finite"):
        measure(folder, models.teacher)
    with pytest.raises(UsageError, match="teacher gives logits that are not finite"):
        measure(models.student, folder)


def test_a_stop_keeps_what_was_measured(measure: Measure, models: Models) -> None:
    expected = Measure(measure.cache.with_name("other"))(models.student, models.teacher, batch_size=2)
    run = measure.run
    put = run.progress.tick
    run.progress.tick = lambda: (put(), run.stop.asked or run.stop.ask())  # pyright: ignore[reportAttributeAccessIssue]
    found = measure(models.student, models.teacher, batch_size=2)
    assert measure.asked[0].not_measured == {"closeness": "interrupted"}
    there = [place for place, (total, _) in enumerate(found["kl"]) if not math.isnan(total)]
    assert len(there) == 2  # the batch in which the user asked
    measure.run = Run()
    assert measure(models.student, models.teacher, batch_size=2) == expected
    assert measure.asked[0].cached == 2


def test_models_that_write_only_tell_no_distance(measure: Measure, models: Models) -> None:
    info = ModelInfo(name="teacher", role="teacher", path="api/one", backend="openrouter", identity="1")
    api = Named("teacher", "teacher", "api/one", "openrouter", None, None, None, None, "1", info)
    options = Evaluate(student=str(models.student), baseline=str(models.student), cache=measure.cache, device="cpu")
    student = resolve_models(options)[1]
    notes: list[str] = []
    with open_cached(student, options, measure.run) as lm, open_cached(api, options, measure.run) as theirs:
        found = closeness(student, lm, (api, theirs), ROWS, options, measure.run, notes.append)
        assert found is not None
        assert [each.metric.name for each in found.scored] == ["bits_per_byte", "entropy"]
        assert "api/one is asked through openrouter and does not tell whole distributions" in notes[0]
        said = ["Paris."] * len(ROWS)
        own = closeness(api, theirs, (api, theirs), ROWS, options, measure.run, notes.append, said)
        assert own is not None
        assert [each.metric.name for each in own.scored] == ["own_distinct_1", "own_distinct_2"]
        assert own.answers == said
        assert closeness(api, theirs, None, ROWS, options, measure.run, notes.append) is None


def test_one_vocabulary_that_is_padded_differently_is_compared_where_both_have_columns() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 4), torch.randn(5, 6)
    narrow, wide = OutputHead(torch.randn(10, 4)), OutputHead(torch.randn(12, 6))
    found = together(ours, narrow, theirs, wide, None, None)
    q, p = (ours @ narrow.weight.T).log_softmax(-1), (theirs @ wide.weight[:10].T).log_softmax(-1)
    assert found["kl"].total == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-5)
    assert found["kl"].count == 5
