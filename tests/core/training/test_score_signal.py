"""What the teacher's scores become: the laws of the loss for every pair of tokenizers and every kind of scorer."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.commands.train_gold import TrainGold
from core.distillation.alignment import Groups
from core.distillation.measures import Measures
from core.distillation.terms import LossTerms
from core.errors import UsageError
from core.teachers.hf_scorer import HfScorer
from core.teachers.scorer import Ability, ScoreRequest, TeacherScores
from core.training.exchange import Exchange, joined, pieces
from core.training.samples import Sample
from core.training.score_signal import ScoreSignal
from core.training.student import Student, load_student
from tests.support.tiny_model import make_tiny_model

OTHER_CORPUS = "Paris is where France has its capital. Plants explain sunlight: synthesis of what the capital is."
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
ANSWERS = ("The capital of France is Paris.", "Explain photosynthesis: 42 leaves, naïve 太陽.", "Paris")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, one with the same tokenizer and other weights, and one with another tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        "own": make_tiny_model(folder / "own"),
        "sister": make_tiny_model(folder / "sister"),
        "stranger": make_tiny_model(folder / "stranger", corpus=OTHER_CORPUS, special=("<|other|>",)),
    }
    for seed, place in enumerate(made.values()):
        file = place / "model.safetensors"
        torch.manual_seed(seed)
        # As they are made, all tokens are nearly equally probable.
        noisy = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in load_file(file).items()}
        save_file(noisy, file, {"format": "pt"})
    return made


def options_of(models: dict[str, Path], **values: Any) -> TrainGold:
    given = {"data": "x", "output": "runs", "student": str(models["own"]), "device": "cpu", "threads": 1}
    return TrainGold.model_validate(given | values)


class Sparse:
    """A scorer that tells only a part of what a Hugging Face model knows."""

    def __init__(self, whole: HfScorer, ability: Ability, k: int) -> None:
        self.ability: Ability = ability
        self.whole, self.k = whole, k

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def score(self, batch: Sequence[ScoreRequest]) -> list[TeacherScores]:
        told: list[TeacherScores] = []
        for scores in self.whole.score(batch):
            ids, logprobs = scores.top(self.k) if self.ability == "top_k" else (None, None)
            told.append(TeacherScores(self.ability, scores.completion_ids, scores.picked_logprobs, ids, logprobs))
        return told


class Pair:
    """A student, a teacher and the signal between them."""

    def __init__(
        self, models: dict[str, Path], teacher: str, ability: Ability = "full", k: int = 8, **values: Any
    ) -> None:
        self.options = options_of(models, teacher=str(models[teacher]), **values)
        self.student: Student = load_student(self.options, torch.device("cpu"), lambda text: None)
        whole = HfScorer(
            str(models[teacher]), batch_size=8, dtype="float32", device_map="cpu", attention="sdpa",
            load_in_4bit=False, threads=1,
        )  # fmt: skip
        whole.prepare(lambda text: None)
        self.scorer: Any = whole if ability == "full" else Sparse(whole, ability, k or whole.width)
        self.signal = ScoreSignal(self.options, self.student.side, self.student.head, self.scorer)

    def exchange(self, answer: str, ended: bool = True) -> Exchange:
        side, teacher = self.student.side, self.signal.teacher_side
        sample = Sample("0" * 16, "x:1", MESSAGES, None, side.prompt_ids(MESSAGES), teacher.prompt_ids(MESSAGES))
        made = self.signal.exchange(sample, side.completion_ids(answer.encode(), ended), ended, on_policy=True)
        return replace(made, scores=self.scorer.score([self.signal.request(made)])[0])

    def hidden(self, exchanges: Sequence[Exchange]) -> torch.Tensor:
        return self.student.hidden([e.sample.prompt_ids for e in exchanges], [e.completion_ids for e in exchanges])

    def loss(self, *exchanges: Exchange) -> LossTerms:
        return self.signal.loss(self.hidden(exchanges), self.student.head, exchanges)

    def measure(self, *exchanges: Exchange) -> Measures:
        return self.signal.measure(self.hidden(exchanges), self.student.head, exchanges)

    def gradient(self, exchange: Exchange) -> torch.Tensor:
        """(N,) length of the gradient at each row of the answer."""
        hidden = self.hidden([exchange]).detach().requires_grad_()
        head = self.student.head
        head = replace(head, weight=head.weight.detach())
        (found,) = torch.autograd.grad(self.signal.loss(hidden, head, [exchange]).total, hidden)
        return found.norm(dim=-1)


WAYS: list[dict[str, Any]] = [
    {"teacher": "sister"},
    {"teacher": "sister", "beta": 1.0, "loss_temperature": 2.0},
    {"teacher": "sister", "beta": 0.5},
    {"teacher": "sister", "loss": "uld"},
    {"teacher": "sister", "ability": "top_k"},
    {"teacher": "sister", "ability": "sampled", "lmbda": 1.0},
    {"teacher": "stranger"},
    {"teacher": "stranger", "merged": "span", "beta": 1.0},
    {"teacher": "stranger", "loss": "uld"},
    {"teacher": "stranger", "ability": "top_k"},
    {"teacher": "stranger", "ability": "top_k", "beta": 0.5},
    {"teacher": "stranger", "ability": "sampled", "lmbda": 1.0},
]
"""Every comparison that there is."""


def name_of(way: dict[str, Any]) -> str:
    return " ".join(f"{value}" for value in way.values())


# --- laws of every signal ---


@pytest.mark.parametrize("way", WAYS, ids=name_of)
def test_a_batch_is_the_sum_of_its_samples(models: dict[str, Path], way: dict[str, Any]):
    pair = Pair(models, **way)
    exchanges = [pair.exchange(answer, ended=answer != "Paris") for answer in ANSWERS]
    whole, apart = pair.loss(*exchanges), [pair.loss(exchange) for exchange in exchanges]
    assert whole.tokens == sum(terms.tokens for terms in apart) == sum(exchange.compared for exchange in exchanges)
    assert whole.total.item() == pytest.approx(sum(terms.total.item() for terms in apart), rel=1e-4, abs=1e-5)
    together = pair.measure(*exchanges)
    for name, tally in together.items():
        summed = sum((pair.measure(exchange)[name].total for exchange in exchanges), 0.0)
        assert tally.total == pytest.approx(summed, rel=1e-4, abs=1e-4), name


# ULD alone may have no gradient: where one side's group has earlier tokens, its sorted columns can lie below all of the
# other's, whose sum is fixed.
@pytest.mark.parametrize("way", [way for way in WAYS if way.get("loss") != "uld"], ids=name_of)
def test_the_first_token_and_the_end_of_turn_are_trained_and_a_cut_answer_has_no_end(
    models: dict[str, Path], way: dict[str, Any]
):
    pair = Pair(models, **way)
    gradient = pair.gradient(pair.exchange(ANSWERS[0]))
    assert gradient[0] > 1e-6
    assert gradient[-1] > 1e-6
    cut = pair.exchange(ANSWERS[0], ended=False)
    assert cut.completion_ids == pair.exchange(ANSWERS[0]).completion_ids[:-1]
    assert pair.signal.teacher_side.end_of_turn not in cut.teacher_ids
    assert len(pair.gradient(cut)) == len(gradient) - 1


@pytest.mark.parametrize("way", WAYS, ids=name_of)
def test_an_empty_answer_is_no_loss(models: dict[str, Path], way: dict[str, Any]):
    pair = Pair(models, **way)
    empty = pair.exchange("", ended=False)
    terms = pair.loss(empty)
    assert (terms.total.item(), terms.tokens, empty.compared) == (0.0, 0, 0)
    more = pair.loss(pair.exchange(ANSWERS[0]), empty)
    assert more.total.item() == pytest.approx(pair.loss(pair.exchange(ANSWERS[0])).total.item(), rel=1e-5)


# --- one tokenizer ---


@pytest.mark.parametrize(
    "way", [{}, {"beta": 1.0}, {"beta": 0.5}, {"loss": "uld"}, {"ability": "top_k"}, {"ability": "top_k", "beta": 1.0}],
    ids=name_of,
)  # fmt: skip
def test_a_student_that_is_its_teacher_has_nothing_to_learn(models: dict[str, Path], way: dict[str, Any]):
    pair = Pair(models, "own", **way)
    exchange = pair.exchange(ANSWERS[0])
    assert pair.signal.same_tokenizer
    assert pair.loss(exchange).total.item() == pytest.approx(0.0, abs=2e-4)
    measures = pair.measure(exchange)
    assert measures["kl"].mean == pytest.approx(0.0, abs=2e-5)
    assert measures["reverse_kl"].mean == pytest.approx(0.0, abs=2e-5)
    assert measures["top1_agreement"].mean == 1.0
    assert measures["bits_per_byte"].mean == pytest.approx(measures["teacher_bits_per_byte"].mean, rel=1e-5)


def test_sampled_ids_are_scored_as_they_are(models: dict[str, Path]):
    pair = Pair(models, "sister")
    letters = [pair.student.side.token_bytes.encode(bytes([byte]))[0] for byte in b"Paris"]
    sample = pair.exchange("").sample
    made = pair.signal.exchange(sample, letters, False, True)  # no tokenizer would write the word so
    assert made.teacher_ids == made.completion_ids == letters
    assert made.groups is None


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_k_best_of_all_tokens_are_the_whole_distribution(models: dict[str, Path], beta: float):
    whole, best = Pair(models, "sister", beta=beta), Pair(models, "sister", "top_k", k=0, beta=beta)
    terms = [pair.loss(pair.exchange(ANSWERS[0])).total.item() for pair in (whole, best)]
    assert terms[1] == pytest.approx(terms[0], rel=1e-4)
    measured = [pair.measure(pair.exchange(ANSWERS[0])) for pair in (whole, best)]
    for name in ("kl", "reverse_kl", "top1_agreement", "entropy", "bits_per_byte", "teacher_bits_per_byte"):
        assert measured[1][name].mean == pytest.approx(measured[0][name].mean, rel=1e-4), name


def test_the_sampled_token_is_an_outcome_of_its_own_where_it_is_not_among_the_best(models: dict[str, Path]):
    """KL over {best, second, sampled, all others}, from whole distributions of both sides."""
    pair = Pair(models, "sister", "top_k", k=2)
    exchange = pair.exchange(ANSWERS[0])
    whole = Pair(models, "sister")
    hidden, theirs = pair.hidden([exchange]).detach(), whole.exchange(ANSWERS[0]).scores
    assert theirs is not None
    assert theirs.hidden is not None
    assert theirs.head is not None
    p, q = theirs.head.logits(theirs.hidden).log_softmax(-1), pair.student.head.logits(hidden).detach().log_softmax(-1)
    expected, outside = 0.0, 0
    for row, token in enumerate(exchange.completion_ids):
        named = set(p[row].topk(2).indices.tolist())
        outside += token not in named
        columns = [*named, *({token} - named)]
        inside_p, inside_q = p[row][columns].exp(), q[row][columns].exp()
        rest_p, rest_q = 1 - inside_p.sum(), 1 - inside_q.sum()
        expected += float((inside_p * (inside_p / inside_q).log()).sum() + rest_p * (rest_p / rest_q).log())
    assert outside > 0
    assert pair.loss(exchange).total.item() == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_whole_rows_is_the_measured_divergence(models: dict[str, Path]):
    for beta, name in ((0.0, "kl"), (1.0, "reverse_kl")):
        pair = Pair(models, "sister", beta=beta)
        exchange = pair.exchange(ANSWERS[1])
        terms, tally = pair.loss(exchange), pair.measure(exchange)[name]
        assert terms.total.item() == pytest.approx(tally.total, rel=1e-4)
        assert terms.tokens == tally.count


def test_a_model_that_is_padded_wider_is_narrowed_and_padding_that_was_sampled_ends_the_answer(
    models: dict[str, Path], tmp_path: Path
):
    import shutil

    from transformers import AutoModelForCausalLM

    wide = tmp_path / "wide"
    shutil.copytree(models["own"], wide)
    model: Any = AutoModelForCausalLM.from_pretrained(models["own"])
    width = model.config.vocab_size
    model.resize_token_embeddings(width + 9)
    model.save_pretrained(wide)
    both = models | {"wide": wide}
    plain = Pair(both, "sister")
    for student, teacher in (("wide", "sister"), ("own", "wide")):
        pair = Pair(both | {"own": both[student]}, teacher)
        assert pair.signal.same_tokenizer
        assert math.isfinite(pair.loss(pair.exchange(ANSWERS[0])).total.item())
        assert pair.signal.words.startswith(f"whole distributions of {width:,} tokens, one tokenizer")
    pair = Pair(both | {"own": wide}, "sister")
    sample, ids = pair.exchange("").sample, plain.exchange("Paris").completion_ids
    made = pair.signal.exchange(sample, [*ids[:2], width + 3, *ids[2:]], True, True)
    assert made.completion_ids == ids[:2]
    assert not made.ended


# --- two tokenizers ---


def test_both_sides_spell_the_same_bytes_and_end_together(models: dict[str, Path]):
    pair = Pair(models, "stranger")
    assert not pair.signal.same_tokenizer
    for answer in ANSWERS:
        exchange = pair.exchange(answer)
        assert pair.student.side.token_bytes.of(exchange.completion_ids[:-1]) == answer.encode()
        assert pair.signal.teacher_side.token_bytes.of(exchange.teacher_ids[:-1]) == answer.encode()
        assert exchange.groups is not None
        assert exchange.groups.student_sizes[-1] == exchange.groups.teacher_sizes[-1] == 1
    assert pair.signal.vocabulary is not None
    ends = dict(zip(pair.signal.vocabulary.student_ids, pair.signal.vocabulary.teacher_ids, strict=True))
    assert ends[pair.student.side.end_of_turn] == pair.signal.teacher_side.end_of_turn


def test_across_tokenizers_the_k_best_of_all_tokens_say_what_matched_columns_and_the_rest_say(models: dict[str, Path]):
    # With every column told, those with a partner and the rest are just the outcomes of GOLD's matched part.
    best = Pair(models, "stranger", "top_k", k=0)
    whole = Pair(models, "stranger", merged="span")
    exchanges = [pair.exchange(ANSWERS[1]) for pair in (best, whole)]
    sparse, gold = (pair.loss(exchange) for pair, exchange in zip((best, whole), exchanges, strict=True))
    assert sparse.parts["matched"].item() == pytest.approx(gold.parts["matched"].item(), rel=1e-3)
    assert sparse.parts["span"].item() == pytest.approx(gold.parts["span"].item(), rel=1e-3)
    measured = [pair.measure(exchange) for pair, exchange in zip((best, whole), exchanges, strict=True)]
    for name in ("kl", "reverse_kl", "span_log_ratio", "single_groups", "bits_per_byte", "teacher_bits_per_byte"):
        assert measured[0][name].mean == pytest.approx(measured[1][name].mean, rel=1e-3), name


def test_fewer_known_tokens_only_hide_differences(models: dict[str, Path]):
    found = []
    for k in (1, 8, 64, 0):
        pair = Pair(models, "stranger", "top_k", k=k)
        found.append(pair.loss(pair.exchange(ANSWERS[1])).parts["matched"].item())
    assert found == sorted(found)
    assert found[0] >= 0.0


# --- what is chosen, and what is refused ---


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ({"teacher": "sister"}, "one tokenizer: KL(teacher || student)"),
        ({"teacher": "sister", "beta": 1.0}, "one tokenizer: KL(student || teacher)"),
        ({"teacher": "sister", "beta": 0.3, "loss_temperature": 2.0}, "beta 0.3 at temperature 2"),
        ({"teacher": "sister", "ability": "top_k"}, "the teacher's most probable tokens and all others as one"),
        ({"teacher": "stranger"}, "the 64 largest of the others by rank; groups of several tokens at their last one"),
        ({"teacher": "stranger", "merged": "span", "unmatched_top_k": 0}, "all others by rank; groups of several"),
        ({"teacher": "stranger", "loss": "uld"}, "ULD, sorted whole distributions of two tokenizers"),
        ({"teacher": "sister", "ability": "sampled", "lmbda": 1.0}, "policy gradient"),
    ],
)
def test_the_words_name_what_trains_the_student(models: dict[str, Path], way: dict[str, Any], words: str):
    assert words in Pair(models, **way).signal.words


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"teacher": "sister", "loss": "gold"}, "--loss gold compares two tokenizers, and .* take --loss jsd"),
        ({"teacher": "stranger", "loss": "jsd"}, "--loss jsd needs one tokenizer, .* take --loss gold"),
        (
            {"teacher": "sister", "ability": "top_k", "loss": "uld"},
            "--loss uld sorts whole distributions, and .* tells",
        ),
        ({"teacher": "sister", "ability": "top_k", "loss_temperature": 2.0}, "--loss-temperature 2 reshapes"),
        ({"teacher": "stranger", "ability": "sampled", "lmbda": 0.5}, "--lmbda 0.5 mixes in .* Set --lmbda 1"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused_with_the_one_that_does(
    models: dict[str, Path], way: dict[str, Any], message: str
):
    with pytest.raises(UsageError, match=message):
        Pair(models, **way)


def test_an_answer_without_scores_is_refused(models: dict[str, Path]):
    pair = Pair(models, "sister")
    with pytest.raises(ValueError, match="1 of 2 answers have no scores"):
        pair.loss(pair.exchange("Paris"), replace(pair.exchange("Paris"), scores=None))


# --- groups behind one another ---


def test_groups_are_numbered_on_and_cut_between_groups():
    sample: Any = None
    one = Exchange(sample, [5, 6], False, True, [5, 6], None)
    two = Exchange(sample, [1, 2, 3], True, True, [7, 8], Groups(np.array([0, 0, 1]), np.array([0, 1]), 2))
    groups = joined([one, two])
    assert groups.student.tolist() == [0, 1, 2, 2, 3]
    assert groups.teacher.tolist() == [0, 1, 2, 3]
    found = [(here, there, part.student.tolist(), part.count) for here, there, part in pieces(groups, 3)]
    # Two tokens, then the group of two and the last one: 2 + 2 would be more than 3.
    assert found == [(slice(0, 2), slice(0, 2), [0, 1], 2), (slice(2, 5), slice(2, 4), [0, 0, 1], 2)]
    alone = [(here, there) for here, there, _ in pieces(groups, 1)]  # a group is never cut, however long it is
    assert alone == [(slice(n, m), slice(k, k + 1)) for n, m, k in ((0, 1, 0), (1, 2, 1), (2, 4, 2), (4, 5, 3))]


def test_measures_in_pieces_are_those_of_the_whole(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    from core.training import comparisons

    for teacher in ("sister", "stranger"):
        pair = Pair(models, teacher)
        exchange = pair.exchange(ANSWERS[1])
        whole = pair.measure(exchange)
        monkeypatch.setattr(comparisons, "MEASURED_VALUES", 1)
        for name, tally in pair.measure(exchange).items():
            assert tally.total == pytest.approx(whole[name].total, rel=1e-5, abs=1e-5), name
            assert tally.count == whole[name].count, name
        monkeypatch.undo()
