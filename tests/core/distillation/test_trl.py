"""Ours beside TRL 1.16's GOLD and GKD: equal where TRL is right, and every known difference shown (B1 to B7)."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.distillation.alignment import Groups, align
from core.distillation.chat import ChatSide, encode_pair
from core.distillation.gold import Merged, gold_hybrid, gold_uld, merged
from core.distillation.losses import LOG_ZERO, cross_entropy, divergence, generalized_jsd
from core.distillation.terms import LossTerms
from core.distillation.vocabulary import VocabularyMap
from tests.support.tiny_model import CHATML, make_tiny_model

trl = pytest.importorskip("trl")
if not trl.__version__.startswith("1.16."):
    pytest.skip(f"what is shown here is TRL 1.16's, not {trl.__version__}'s", allow_module_level=True)
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.gkd.gkd_trainer import GKDTrainer
    from trl.experimental.gold.gold_config import GOLDConfig
    from trl.experimental.gold.gold_trainer import GOLDTrainer, ULDLoss, build_teacher_inputs_from_texts

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6.*:FutureWarning"),
]

IGNORED = -100


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Strings:
    """A vocabulary by its tokens' strings, as TRL's map reads it."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.tokens)}


STUDENT_WORDS = Strings("a", "b", "c", "ab", "bc", "<s>")
TEACHER_WORDS = Strings("c", "abc", "a", "b", "</t>")
WORDS = VocabularyMap(  # a, b, c
    np.array([0, 1, 2]), np.array([2, 3, 0]), np.array([3, 4, 5]), np.array([1, 4]), 6, 5
)


def trl_loss(student: Strings = STUDENT_WORDS, teacher: Strings = TEACHER_WORDS, **options: Any) -> ULDLoss:
    """TRL's cross-tokenizer loss: hybrid, merged by the chain rule, end of text kept, unless said otherwise."""
    defaults: dict[str, Any] = {
        "uld_crossentropy_weight": 0.0,
        "uld_distillation_weight": 1.0,
        "uld_student_temperature": 1.0,
        "uld_teacher_temperature": 1.0,
        "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False,
        "use_extended_uld": True,
        "uld_token_merge_strategy": "bayesian",
        "uld_use_hybrid_loss": True,
        "beta": 0.5,
    }
    return ULDLoss(SimpleNamespace(**(defaults | options)), student, teacher)  # type: ignore[arg-type]


class Sample:
    """One completion of "abcabcc": tokens, the logits of a whole sequence with its prompt, and how TRL is given it."""

    student_pieces = ("ab", "c", "a", "bc", "c")
    teacher_pieces = ("abc", "a", "b", "c", "c")

    def __init__(self, seed: int, student_prompt: int = 3, teacher_prompt: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.starts = student_prompt, teacher_prompt
        self.ids = [
            torch.tensor([words.tokens.index(piece) for piece in pieces])
            for words, pieces in ((STUDENT_WORDS, self.student_pieces), (TEACHER_WORDS, self.teacher_pieces))
        ]
        self.ends = [np.cumsum([len(p) for p in pieces]) for pieces in (self.student_pieces, self.teacher_pieces)]
        self.groups = align(*self.ends)
        self.student, self.teacher = (
            torch.randn(start + 5, width, generator=generator, dtype=torch.float64)
            for start, width in zip(self.starts, (6, 5), strict=True)
        )

    def rows(self, student: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Groups]:
        """What our losses take: rows that predict the completion's tokens."""
        student = self.student if student is None else student
        return (
            student[self.starts[0] - 1 : -1], self.ids[0], self.teacher[self.starts[1] - 1 : -1], self.ids[1],
            self.groups,
        )  # fmt: skip

    def to_trl(self, loss: ULDLoss, student: Tensor | None = None) -> Tensor:
        """The loss as TRL computes it from whole sequences."""
        sequences: list[Tensor] = []
        labels: list[Tensor] = []
        offsets: list[Tensor] = []
        for start, ids, ends in zip(self.starts, self.ids, self.ends, strict=True):
            sequences.append(torch.cat([torch.zeros(start, dtype=torch.long), ids]).unsqueeze(0))
            labels.append(torch.cat([torch.full((start,), IGNORED), ids]).unsqueeze(0))
            spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], -1)
            offsets.append(torch.from_numpy(np.concatenate([np.zeros((start, 2), np.int64), spans])).unsqueeze(0))
        student = self.student if student is None else student
        return loss(
            student.unsqueeze(0), self.teacher.unsqueeze(0), labels[0], labels[1], sequences[0], sequences[1],
            offsets[0], offsets[1],
        )  # fmt: skip


def gradient_rows(loss: Any, student: Tensor) -> list[int]:
    """Which rows of the logits get a gradient."""
    z = student.clone().requires_grad_()
    loss(z).backward()
    assert z.grad is not None
    return torch.nonzero(z.grad.abs().sum(-1) > 1e-9).squeeze(-1).tolist()


# --- equal where TRL is right ---


@pytest.mark.parametrize("trainer", [GOLDTrainer, GKDTrainer])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.9, 2.0])
def test_the_generalised_jsd_is_that_of_gold_and_gkd(trainer: Any, beta: float, temperature: float):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 2, 7, 11, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 11, (2, 7), generator=generator)
    labels[0, :3] = labels[1, 5:] = IGNORED
    mask = labels != IGNORED
    ours = student.clone().requires_grad_()
    theirs = student.clone().requires_grad_()
    terms = generalized_jsd(ours, teacher, mask, beta, temperature)
    loss = trainer.generalized_jsd_loss(theirs, teacher, labels=labels, beta=beta, temperature=temperature)
    terms.mean().backward()
    loss.backward()
    assert terms.tokens == 9
    assert terms.mean().item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_merged_groups_are_those_of_the_chain_rule_strategy(temperature: float):
    sample = Sample(1)
    logits, ids, _, _, groups = sample.rows()
    members = [np.flatnonzero(groups.student == group).tolist() for group in range(groups.count)]
    theirs = trl_loss()._merge_probabilities_with_alignment_groups(
        (logits / temperature).softmax(-1), members, ids.tolist()
    )
    torch.testing.assert_close(merged(logits, ids, groups.student, temperature).exp(), theirs)


def test_groups_are_those_of_the_walk_over_byte_offsets():
    sample = Sample(1)
    spans = [np.stack([np.concatenate([[0], ends[:-1]]), ends], -1).tolist() for ends in sample.ends]
    theirs = ULDLoss._align_by_byte_offsets(*spans)
    ours = [
        [np.flatnonzero(side == group).tolist() for group in range(sample.groups.count)]
        for side in (sample.groups.student, sample.groups.teacher)
    ]
    assert ours == [list(side) for side in theirs] == [[[0, 1], [2], [3], [4]], [[0], [1], [2, 3], [4]]]


@pytest.mark.parametrize("seed", range(3))
def test_sorted_uld_over_merged_groups_is_equal_in_loss_and_gradient(seed: int):
    sample = Sample(seed)
    ours, theirs = sample.student.clone().requires_grad_(), sample.student.clone().requires_grad_()
    terms = gold_uld(*sample.rows(ours))
    loss = sample.to_trl(trl_loss(uld_use_hybrid_loss=False), theirs)
    terms.mean().backward()
    loss.backward()
    assert terms.tokens == 4
    assert terms.mean().item() == pytest.approx(loss.item(), rel=1e-9)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_hybrid_differs_from_trl_by_the_bucket_for_the_rest_and_by_nothing_else(beta: float):
    sample = Sample(2)
    theirs = trl_loss(beta=beta)
    total = sample.to_trl(theirs).item()
    terms = gold_hybrid(*sample.rows(), WORDS, beta)
    # The rest of the mass by hand, from the merged rows.
    sides: list[Tensor] = []
    logits = sample.rows()
    for table, ids, group_of, columns in (
        (logits[0], logits[1], sample.groups.student, WORDS.student_ids),
        (logits[2], logits[3], sample.groups.teacher, WORDS.teacher_ids),
    ):
        sides.append(1.0 - merged(table, ids, group_of)[:, columns].exp().sum(-1, keepdim=True))
    bucket = divergence(sides[0].log(), sides[1].log(), beta).sum().item()
    count = terms.tokens
    assert terms.parts["unmatched"].item() / count == pytest.approx(theirs.last_unmatched_loss.item(), rel=1e-9)
    assert (terms.parts["matched"].item() - bucket) / count == pytest.approx(theirs.last_matched_loss.item(), rel=1e-6)
    # The default weights are TRL's as well: 3 of 5 teacher columns are matched.
    assert (terms.total.item() - 0.6 * bucket) / count == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_with_nothing_unmatched_and_one_token_per_group_the_hybrid_is_equal(beta: float):
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    theirs = trl_loss(Strings("a", "b", "c"), Strings("c", "a", "b"), beta=beta)
    words = VocabularyMap(np.arange(3), np.array([1, 2, 0]), np.arange(0), np.arange(0), 3, 3)
    one = np.arange(4)
    terms = gold_hybrid(
        student, torch.zeros(4).long(), teacher, torch.ones(4).long(), Groups(one, one, 4), words, beta, (1.0, 0.0)
    )
    loss = theirs._compute_hybrid_uld_loss(student.softmax(-1), teacher.softmax(-1))
    assert terms.mean().item() == pytest.approx(float(loss), rel=1e-9)


def test_the_cross_entropy_on_reference_answers_is_equal():
    sample = Sample(4)
    loss = sample.to_trl(trl_loss(uld_crossentropy_weight=1.0, uld_distillation_weight=0.0))
    terms = cross_entropy(sample.rows()[0], sample.ids[0], None)
    assert terms.mean().item() == pytest.approx(loss.item(), rel=1e-9)


# --- B1: the default merge reads the rows one too late ---


def test_b1_the_default_merge_never_trains_the_first_token_of_a_completion():
    sample = Sample(5)  # the student's completion is at 3..7, so rows 2..6 predict it
    observed = trl_loss(uld_token_merge_strategy="observed")
    assert gradient_rows(lambda z: sample.to_trl(observed, z), sample.student) == [3, 4, 5, 6, 7]
    assert gradient_rows(lambda z: sample.to_trl(trl_loss(), z), sample.student) == [2, 3, 4, 5, 6]
    ways: tuple[Merged, ...] = ("last_token", "span")
    for way in ways:

        def ours(z: Tensor, way: Merged = way) -> Tensor:
            return gold_hybrid(*sample.rows(z), WORDS, 0.5, merged=way).total

        assert gradient_rows(ours, sample.student) == [2, 3, 4, 5, 6]


def test_b1_the_default_merge_weighs_a_group_with_a_token_of_another_row():
    # Tokens x, y at rows 0, 1 that predict them: "observed" multiplies row k's distribution of what FOLLOWS x by
    # row k+1's probability of y; the row that predicts y gave .9, the row after it .2.
    probs = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.8, 0.2]])  # rows predict: x | y | what follows y
    observed = trl_loss(uld_token_merge_strategy="observed")._merge_probabilities_with_alignment_groups(
        probs[1:], [[0, 1]], [0, 1]
    )
    assert observed.tolist() == [pytest.approx([0.1 * 0.2, 0.9 * 0.2])]
    ours = merged(probs[:2].log(), torch.tensor([0, 1]), [0, 0]).exp()
    assert ours.tolist() == [pytest.approx([0.5 * 0.1, 0.5 * 0.9])]


# --- B2 to B4: one normaliser; shown with the real trainer, one step each ---


ROWS = [
    {"prompt": "What is", "completion": " the capital of France?"},
    {"prompt": "The", "completion": " capital of Paris is photosynthesis."},
    {"prompt": "Explain", "completion": " what"},
    {"prompt": "Is", "completion": " France the capital?"},
]


class Recorder(GOLDTrainer):
    """The trainer itself; it keeps what its loss was given."""

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        self.seen: list[Any] = [*getattr(self, "seen", []), inputs]
        return super().compute_loss(model, inputs, *arguments, **options)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, a and b, with different tokens."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "a", template=None)
    make_tiny_model(folder / "b", template=None, corpus="Photosynthesis of the capital: Paris explains nothing at all.")
    return folder


class Step:
    """One optimiser step of TRL's trainer: its loss and gradient norm, and what it was given."""

    def __init__(self, models: Path, *, across: bool, batch: int, accumulate: int, on_policy: bool, rows: Any) -> None:
        self.student = AutoModelForCausalLM.from_pretrained(models / "a")
        self.teacher = AutoModelForCausalLM.from_pretrained(models / ("b" if across else "a"))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weights in self.teacher.parameters():
                weights.add_(0.05 * torch.randn(weights.shape, generator=generator))
        options: dict[str, Any] = {}
        if across:
            options = {
                "use_uld_loss": True,
                "uld_use_hybrid_loss": True,
                "uld_token_merge_strategy": "bayesian",
                "teacher_tokenizer_name_or_path": str(models / "b"),
            }
        config = GOLDConfig(
            output_dir=str(models / "out"), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
            max_steps=1, max_length=64, max_completion_length=16, lmbda=float(on_policy), beta=0.5, temperature=1.0,
            learning_rate=0.0, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=True,
            bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False, max_grad_norm=1e9, **options,
        )  # fmt: skip
        trainer = Recorder(
            model=self.student, teacher_model=self.teacher, args=config, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(models / "a"),
        )  # fmt: skip
        trainer.train()
        log = next(entry for entry in trainer.state.log_history if "loss" in entry)
        self.loss, self.norm, self.seen = float(log["loss"]), float(log["grad_norm"]), trainer.seen

    def our_terms(self) -> LossTerms:
        """Our loss on the same micro-batches, added up."""
        total: LossTerms | None = None
        for inputs in self.seen:
            given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
            with torch.no_grad():
                teacher = self.teacher(**given).logits[:, :-1]
            mask = inputs["labels"][:, 1:] != IGNORED
            terms = generalized_jsd(self.student(**given).logits[:, :-1], teacher, mask, 0.5)
            total = terms if total is None else total + terms
        assert total is not None
        return total

    def our_norm(self) -> float:
        self.student.zero_grad()
        self.our_terms().mean().backward()
        return math.sqrt(sum(float(p.grad.square().sum()) for p in self.student.parameters() if p.grad is not None))


def step(models: Path, batch: int, accumulate: int, across: bool = False, on_policy: bool = False, rows: Any = None):
    return Step(models, across=across, batch=batch, accumulate=accumulate, on_policy=on_policy, rows=rows or ROWS)


def test_b2_across_tokenizers_the_loss_grows_with_gradient_accumulation(models: Path):
    whole, split = step(models, 4, 1, across=True), step(models, 1, 4, across=True)
    assert split.loss / whole.loss == pytest.approx(4.0, rel=1e-3)
    assert split.norm / whole.norm == pytest.approx(4.0, rel=1e-3)


def test_b2_every_sample_weighs_the_same_whatever_its_length():
    # TRL: the mean over samples of each one's mean over groups. Ours: sums, divided once by all groups.
    loss = trl_loss(uld_use_hybrid_loss=False)
    terms: list[LossTerms] = []
    means: list[float] = []
    for seed, tokens in ((6, 5), (7, 1)):
        sample = Sample(seed)
        if tokens == 1:  # only the last group, "c"
            sample.ids = [ids[-1:] for ids in sample.ids]
            sample.ends = [np.array([1]), np.array([1])]
            sample.student, sample.teacher = sample.student[:4], sample.teacher[:3]
            sample.groups = align(*sample.ends)
        terms.append(gold_uld(*sample.rows()))
        means.append(sample.to_trl(loss).item())
    assert [term.mean().item() for term in terms] == pytest.approx(means)
    assert [term.tokens for term in terms] == [4, 1]
    assert (terms[0] + terms[1]).mean().item() == pytest.approx((4 * means[0] + 1 * means[1]) / 5)


def test_b3_on_one_vocabulary_the_loss_shrinks_with_gradient_accumulation_and_ours_does_not(models: Path):
    whole, split = step(models, 4, 1), step(models, 1, 4)
    assert whole.loss / split.loss == pytest.approx(4.0, rel=1e-3)
    assert whole.norm / split.norm == pytest.approx(4.0, rel=1e-3)
    # Without accumulation TRL's loss and gradient are ours; with it, only ours stay.
    for one in (whole, split):
        assert one.our_terms().mean().item() == pytest.approx(whole.loss, rel=1e-4)
        assert one.our_norm() == pytest.approx(whole.norm, rel=1e-4)


def test_b4_an_on_policy_loss_is_divided_by_the_tokens_of_the_data_sets_answer(models: Path):
    short = [{**row, "completion": " is"} for row in ROWS]
    long = [{**row, "completion": " the capital of France? The capital of France is Paris."} for row in ROWS]
    tokenizer = AutoTokenizer.from_pretrained(models / "a")
    counts = [
        sum(len(tokenizer(row["completion"] + "<|im_end|>")["input_ids"]) for row in rows) for rows in (short, long)
    ]
    first, second = step(models, 4, 1, on_policy=True, rows=short), step(models, 4, 1, on_policy=True, rows=long)
    # The same prompts and the same rollouts ...
    assert torch.equal(first.seen[0]["input_ids"], second.seen[0]["input_ids"])
    # ... but losses in the ratio of texts that were not used.
    assert first.loss / second.loss == pytest.approx(counts[1] / counts[0], rel=1e-3)
    assert counts[1] / counts[0] > 3
    ours = first.our_terms(), second.our_terms()
    assert ours[0].tokens == ours[1].tokens == int((first.seen[0]["labels"][:, 1:] != IGNORED).sum())
    assert ours[0].mean().item() == ours[1].mean().item()
    assert first.loss * counts[0] == pytest.approx(ours[0].total.item(), rel=1e-4)


# --- B5 and B6: two templates, two ends of turn ---

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
ODD_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}_a|>{{ m.content }}<|eot_a|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant_a|>{% endif %}"
)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Tokenizers of a student and a teacher with different templates; neither knows the other's special tokens."""
    folder = tmp_path_factory.mktemp("sides")
    special = ("<|user_a|>", "<|assistant_a|>", "<|eot_a|>")
    make_tiny_model(folder / "student", template=ODD_TEMPLATE, special=special)
    make_tiny_model(folder / "teacher", template=CHATML, corpus="Paris, the capital. What is France?")
    student, teacher = (AutoTokenizer.from_pretrained(folder / name) for name in ("student", "teacher"))
    student.eos_token = "<|eot_a|>"
    return student, teacher


def test_b5_the_teacher_is_given_the_students_template_as_plain_text(sides: tuple[Any, Any]):
    student, teacher = sides
    rendered = student.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    given, labels, _, _ = build_teacher_inputs_from_texts(teacher, [rendered], ["Paris"])
    prompt = given[0][labels[0] == IGNORED].tolist()
    assert teacher.decode(prompt) == rendered
    assert len(teacher.encode("<|eot_a|>", add_special_tokens=False)) > 5
    assert not {teacher.convert_tokens_to_ids("<|im_start|>"), teacher.convert_tokens_to_ids("<|im_end|>")} & set(
        prompt
    )
    # Ours: the same messages in the teacher's own template, and the same bytes of the answer.
    ours = ChatSide(teacher).prompt_ids(MESSAGES)  # type: ignore[arg-type]
    assert ours == teacher.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert teacher.decode(ours).startswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>")


def turn(sides: tuple[Any, Any], ended: bool) -> tuple[Any, VocabularyMap, Tensor, Tensor]:
    """An answer of the student for both sides, a map that pairs only the ends of turn, and logits."""
    student, teacher = (ChatSide(side) for side in sides)
    completion = student.completion_ids(b"Paris is the capital", ended)
    pair = encode_pair(student, teacher, MESSAGES, completion, ended)  # type: ignore[arg-type]
    widths = [len(side) for side in sides]
    words = VocabularyMap(
        np.array([student.end_of_turn]), np.array([teacher.end_of_turn]),
        np.setdiff1d(np.arange(widths[0]), [student.end_of_turn]),
        np.setdiff1d(np.arange(widths[1]), [teacher.end_of_turn]), widths[0], widths[1],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(8)
    counts = len(pair.student_completion_ids), len(pair.teacher_completion_ids)
    tables = [torch.randn(n, width, generator=generator) for n, width in zip(counts, widths, strict=True)]
    return pair, words, tables[0], tables[1]


def test_b6_the_end_of_a_turn_is_never_taught_across_tokenizers_and_here_it_is(sides: tuple[Any, Any]):
    sample = Sample(9)
    defaults = trl_loss(uld_skip_student_eos=True, uld_skip_teacher_eos=True)
    # TRL's defaults: the last token of five (the end of text) gets no gradient; and its string has no partner.
    assert gradient_rows(lambda z: sample.to_trl(defaults, z), sample.student) == [2, 3, 4, 5]
    student, teacher = sides
    assert student.eos_token not in teacher.get_vocab()

    pair, words, z, teacher_logits = turn(sides, ended=True)
    ids = torch.tensor(pair.student_completion_ids), torch.tensor(pair.teacher_completion_ids)
    assert ids[0][-1] == words.student_ids[0]
    assert ids[1][-1] == words.teacher_ids[0]
    assert pair.groups.is_single[-1]
    z = z.requires_grad_()
    gold_hybrid(z, ids[0], teacher_logits, ids[1], pair.groups, words, 0.0, (1.0, 0.0)).total.backward()
    assert z.grad is not None
    # Forward KL over {end of turn, rest}: the gradient at the student's end of turn is p_student - p_teacher.
    expected = z[-1].softmax(-1)[words.student_ids[0]] - teacher_logits[-1].softmax(-1)[words.teacher_ids[0]]
    assert z.grad[-1, words.student_ids[0]].item() == pytest.approx(expected.item(), rel=1e-3)


def test_b6_a_truncated_answer_loses_a_real_token_and_is_given_an_end_and_here_neither(sides: tuple[Any, Any]):
    _, teacher = sides
    given, _, _, _ = build_teacher_inputs_from_texts(teacher, ["What is"], ["Paris is the cap"])
    assert given[0, -1] == teacher.eos_token_id  # though the answer was cut in mid-word
    sample = Sample(10)  # no end of text at all: the last token, "c", is one of the answer's own
    defaults = trl_loss(uld_skip_student_eos=True, uld_skip_teacher_eos=True)
    assert 6 not in gradient_rows(lambda z: sample.to_trl(defaults, z), sample.student)

    pair, words, z, teacher_logits = turn(sides, ended=False)
    assert words.student_ids[0] not in pair.student_completion_ids
    assert words.teacher_ids[0] not in pair.teacher_completion_ids
    ids = torch.tensor(pair.student_completion_ids), torch.tensor(pair.teacher_completion_ids)
    rows = gradient_rows(
        lambda s: gold_hybrid(s, ids[0], teacher_logits, ids[1], pair.groups, words, 0.5, (1.0, 1.0)).total, z
    )
    assert rows == list(range(len(ids[0])))


# --- B7: a "divergence" of what is not a distribution ---


def matched_only(student: Tensor, teacher: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """One row of logits in which columns 0, 1 of 3 are matched: TRL's matched loss, and ours."""
    weights = {"uld_hybrid_matched_weight": 1.0, "uld_hybrid_unmatched_weight": 0.0}
    theirs = trl_loss(Strings("a", "b", "x"), Strings("a", "b", "y"), beta=beta, **weights)
    loss = theirs._compute_hybrid_uld_loss(student.softmax(-1), teacher.softmax(-1))
    one = np.zeros(1, np.int64)
    both = np.array([0, 1])
    ours = gold_hybrid(
        student, torch.zeros(1).long(), teacher, torch.zeros(1).long(), Groups(one, one, 1),
        VocabularyMap(both, both, np.array([2]), np.array([2]), 3, 3), beta, (1.0, 0.0),
    )  # fmt: skip
    return loss, ours.total


def test_b7_the_matched_kl_can_be_negative_and_with_the_rest_it_cannot():
    # Matched columns: teacher (.1, .1), student (.45, .45): 2 * .1 ln(.1/.45) = -.3008.
    # With the rest, .8 and .1: + .8 ln(.8/.1) = 1.6636; together 1.3627.
    student, teacher = torch.tensor([[0.45, 0.45, 0.1]]).log(), torch.tensor([[0.1, 0.1, 0.8]]).log()
    theirs, ours = matched_only(student, teacher, beta=0.0)
    assert theirs.item() == pytest.approx(-0.3008, abs=1e-4)
    assert ours.item() == pytest.approx(-0.3008 + 1.6636, abs=1e-4)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_b7_at_equal_models_the_gradient_moves_mass_over_the_border_of_the_matched_columns(beta: float):
    probs = torch.tensor([[0.2, 0.3, 0.5]])
    gradients: list[Tensor] = []
    for which in (0, 1):
        z = probs.log().requires_grad_()
        matched_only(z, probs.log(), beta)[which].backward()
        assert z.grad is not None
        gradients.append(z.grad[0])
    # Of the unmatched column's logit; M = .5 is the matched mass. Forward: -sum t ln s gives s_x M = .25, so descent
    # takes mass out of it. Reverse: sum s (ln s/t + 1) at s = t gives -s_x M = -.25, so descent puts mass into it.
    assert gradients[0][2].item() == pytest.approx(0.25 if beta == 0.0 else -0.25, abs=1e-6)
    assert gradients[1].abs().max() < 1e-6


def test_a_probability_below_trls_clamp_is_still_trained():
    # TRL cuts matched probabilities at 1e-8, with no gradient below; ours go down to exp(LOG_ZERO).
    student, teacher = torch.tensor([[-30.0, 0.0, 0.0]]).double(), torch.tensor([[0.0, 0.0, 0.0]]).double()
    z, w = student.clone().requires_grad_(), student.clone().requires_grad_()
    theirs, ours = matched_only(z, teacher, 0.0)[0], matched_only(w, teacher, 0.0)[1]
    theirs.backward()
    ours.backward()
    assert z.grad is not None
    assert w.grad is not None
    assert z.grad[0, 0].abs().item() < 1e-12
    assert w.grad[0, 0].item() == pytest.approx(-1 / 3, abs=1e-6)
    assert math.exp(LOG_ZERO) == 0.0
