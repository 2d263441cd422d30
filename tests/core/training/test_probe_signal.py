"""A teacher's next token at a few positions: which, what becomes of it, and that it is the exact loss in the limit."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.commands.teacher import TeacherOptions
from core.data.stop import Stop
from core.distillation.chat import ChatSide
from core.distillation.output_head import OutputHead
from core.errors import UsageError
from core.teachers.chat_teacher import ChatTeacher
from core.teachers.remote import open_remote
from core.teachers.scorer import TeacherScores
from core.training.columns import Columns, padded
from core.training.comparisons import measure_told, told_rows
from core.training.exchange import Exchange
from core.training.probe_signal import ProbeSignal, beginnings
from core.training.validation import figures, validate
from tests.support.chatting import MESSAGES, ModelChat, hidden_of, noisy_model, sample_of, student_of
from tests.support.scoring_server import scoring_server
from tests.support.tokenizers import small_tokenizer

ANSWER = "The capital of France is Paris."
ACCENTS = "naïve 太陽 Paris"
SILENT = ("<|endoftext|>",)
"""It would count as an end of turn, which for the student is another token."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: noisy_model(folder / name, seed) for seed, name in enumerate(("own", "sister"))}


class Pupil:
    """A student and its signal from a chat."""

    def __init__(self, models: dict[str, Path], chat: Any = None, **values: Any) -> None:
        self.options, self.student = student_of(models["own"], **values)
        self.chat: Any = chat or ModelChat(models["sister"], silent=SILENT)
        self.signal = ProbeSignal(self.options, self.student, self.chat)

    def exchange(self, answer: str, key: int = 0, ended: bool = True) -> Exchange:
        ids = self.student.side.completion_ids(answer.encode(), ended)
        return self.signal.exchange(sample_of(self.student, key), ids, ended, on_policy=True)

    def scored(self, *answers: str, measuring: bool = False) -> list[Exchange]:
        return self.signal.scored([self.exchange(text, key) for key, text in enumerate(answers)], measuring=measuring)


ROLES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


# --- by hand ---


def told(positions: Sequence[int], *rows: list[tuple[int, float]], tokens: int = 3) -> Exchange:
    """An answer of so many tokens, and what is told at some of its positions, as probabilities."""
    ids, logprobs = padded([[(column, math.log(p)) for column, p in row] for row in rows])
    scores = TeacherScores("top_k", [0] * len(rows), top_ids=ids, top_logprobs=logprobs)
    sample: Any = None
    return Exchange(sample, [0] * tokens, False, True, [], None, scores, positions)


HEAD = OutputHead(torch.eye(3))
"""Logits are the hidden states."""


def test_the_loss_of_a_vocabulary_of_three_by_hand():
    student = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log().requires_grad_()
    exchange = told([1], [(0, 0.8)])  # .8 for token 0, .2 for all others, which the student gives .5 and .5
    terms = told_rows(student, HEAD, [exchange], beta=0.0)
    # .8 ln(.8/.5) + .2 ln(.2/.5) = .37600 - .18326
    assert terms.total.item() == pytest.approx(0.19274, abs=1e-5)
    assert terms.tokens == exchange.compared == 1
    terms.total.backward()
    assert student.grad is not None
    # d/dz = p - q by outcome: .5 - .8 for token 0, and +.3 shared by the others as they are.
    assert student.grad[1].tolist() == pytest.approx([-0.3, 0.15, 0.15], abs=1e-5)
    assert student.grad[[0, 2]].abs().max() == 0.0


def test_measures_by_hand():
    student = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log()
    # The second teacher's most probable token is one that the student has no column for.
    exchange = told([0, 1], [(2, 0.6), (0, 0.1)], [(-1, 0.7), (0, 0.2)])
    found = measure_told(student, HEAD, [exchange])
    assert found["probed_mass"].total == pytest.approx(0.6 + 0.1 + 0.2)
    assert (found["top1_agreement"].total, found["top1_agreement"].count) == (1, 2)
    # .6 ln(.6/.5) + .1 ln(.1/.2) + .3 ln(.3/.3)  +  .2 ln(.2/.5) + .8 ln(.8/.5)
    assert found["kl"].total == pytest.approx(0.10939 - 0.06931 - 0.18326 + 0.37600, abs=1e-4)
    # -(.2 ln .2 + .3 ln .3 + .5 ln .5) - (.5 ln .5 + 2 x .25 ln .25)
    assert found["entropy"].total == pytest.approx(1.02965 + 1.03972, abs=1e-4)
    assert found["nats"].total == pytest.approx(-math.log(0.2) - math.log(0.5) - math.log(0.1), abs=1e-4)
    assert {tally.count for name, tally in found.items() if name != "nats"} == {2}


def test_alternatives_become_columns():
    side = ChatSide(small_tokenizer("the", "Ġthe", added=("the!",)))
    columns = Columns(side, side.token_bytes.size)
    pieces = side.token_bytes.pieces
    plain, spaced, added = (pieces.index(name) for name in (b"the", b" the", b"the!"))
    told = [(b"the", math.log(0.3)), (b"<eos>", math.log(0.2)), (b" the", math.log(0.1)), (b"theory", math.log(0.05))]
    row = columns.row([*told, (b"the!", math.log(0.04)), (b"the", math.log(0.1))], math.log(0.15), first=False)
    # The same bytes twice: .3 + .1. What looks like a special token is text, of which there is none in one token.
    assert [place for place, _ in row] == [plain, -1, side.end_of_turn, spaced, -1, added]
    assert [math.exp(value) for _, value in row] == pytest.approx([0.4, 0.2, 0.15, 0.1, 0.05, 0.04])


def test_a_student_that_puts_a_space_before_its_answers_is_asked_for_the_token_with_it():
    side = ChatSide(
        small_tokenizer(
            "▁the", "▁cat", "the", sentencepiece=True, special=("<eos>", "<user>", "<assistant>"), template=ROLES
        )
    )
    assert side.lead == b" "
    columns = Columns(side, side.token_bytes.size)
    pieces = side.token_bytes.pieces
    assert columns.of(b"the", first=True) == pieces.index(b" the")
    assert columns.of(b"the", first=False) == pieces.index(b"the")
    ids = [pieces.index(b" the"), pieces.index(b" cat"), side.end_of_turn]
    assert beginnings(side, ids) == {0: "", 1: "the", 2: "the cat"}


# --- where a beginning is a text ---


@given(st.text(max_size=12), st.booleans())
def test_beginnings_are_the_text_so_far_and_only_whole_characters(text: str, ended: bool):
    side = ChatSide(small_tokenizer("Ġthe", "cat"))
    ids = side.completion_ids(text.encode(), ended)
    found = beginnings(side, ids)
    for place in range(len(ids)):
        data = side.token_bytes.of(ids[:place])
        try:
            assert found.get(place) == data.decode()
        except UnicodeDecodeError:
            assert place not in found


def test_nothing_is_asked_within_a_character_or_behind_a_special_token():
    side = ChatSide(small_tokenizer(special=("<eos>", "<tool>")))
    letters = side.token_bytes.encode("aïb".encode())
    special = side.token_bytes.pieces.index(b"<tool>")
    assert len(letters) == 4
    # a | first half of ï | second half | <tool> | b
    assert beginnings(side, [*letters[:3], special, letters[3]]) == {0: "", 1: "a", 3: "aï"}
    broken = side.token_bytes.encode(b"a\xffb")
    assert beginnings(side, broken) == {0: "", 1: "a"}
    assert beginnings(side, [letters[0], side.token_bytes.size + 5, letters[3]]) == {0: "", 1: "a"}  # a padding row


# --- which positions ---


def test_the_positions_are_those_of_the_largest_entropies(models: dict[str, Path]):
    pupil = Pupil(models, probe_positions=4)
    (exchange,) = pupil.scored(ACCENTS)
    ids, side = exchange.completion_ids, pupil.student.side
    logits = pupil.student.head.logits(hidden_of(pupil.student, [exchange]))
    p = logits.softmax(-1)
    entropies = -(p * p.log()).sum(-1).detach()
    whole = []
    for place in range(len(ids)):
        try:
            side.token_bytes.of(ids[:place]).decode()
            whole.append(place)
        except UnicodeDecodeError:
            continue
    assert len(whole) < len(ids)  # 太 and 陽 are several tokens each
    expected = sorted(whole, key=lambda place: -float(entropies[place]))[:4]
    assert exchange.positions == sorted(expected)
    assert [prefix.text for prefix in pupil.chat.asked] == [
        side.token_bytes.of(ids[:place]).decode() for place in sorted(expected)
    ]
    assert all(prefix.messages == MESSAGES for prefix in pupil.chat.asked)


def test_a_short_answer_is_asked_everywhere_its_end_included_and_the_student_stays_in_its_mode(
    models: dict[str, Path],
):
    pupil = Pupil(models, probe_positions=40)
    pupil.student.model.train()
    (exchange,) = pupil.scored(ANSWER)
    assert exchange.positions == list(range(len(exchange.completion_ids)))
    assert pupil.chat.asked[-1].text == ANSWER
    assert pupil.student.model.training


def test_measuring_draws_evenly_and_the_same_positions_every_time(models: dict[str, Path]):
    pupil = Pupil(models, probe_positions=3)
    first, again = (pupil.scored(ANSWER, measuring=True)[0].positions for _ in range(2))
    assert first == again
    places = beginnings(pupil.student.side, pupil.exchange(ANSWER).completion_ids)
    drawn = [pupil.signal._drawn(pupil.exchange(ANSWER, key), places) for key in range(1000)]
    counts = torch.tensor([place for each in drawn for place in each]).bincount(minlength=len(places))
    assert all(each == sorted(set(each)) and len(each) == 3 for each in drawn)
    # 1000 draws of 3 among n: 3000 / n each, and four standard deviations of that.
    mean = 3000 / len(places)
    assert (counts - mean).abs().max() < 4 * math.sqrt(mean)


def test_where_blanks_are_cut_off_nothing_is_asked_behind_one(models: dict[str, Path]):
    pupil = Pupil(models, probe_positions=40)
    text = "Paris  \nis"
    before = [exchange.positions for exchange in pupil.scored(text)]
    pupil.chat.keeps_blanks = False
    for measuring in (False, True):
        pupil.chat.asked.clear()
        (exchange,) = pupil.scored(text, measuring=measuring)
        texts = beginnings(pupil.student.side, exchange.completion_ids)
        blank = [place for place, begun in texts.items() if begun.endswith((" ", "\n"))]
        assert blank
        assert [exchange.positions] == [[place for place in before[0] or () if place not in blank]]


# --- the exact loss ---


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_all_positions_and_the_whole_vocabulary_are_the_exact_loss(models: dict[str, Path], beta: float):
    pupil = Pupil(models, probe_positions=100, beta=beta)
    (exchange,) = pupil.scored(ANSWER)
    hidden = hidden_of(pupil.student, [exchange])
    loss = pupil.signal.loss(hidden, pupil.student.head, [exchange]).total.item()
    q = pupil.student.head.logits(hidden).double().log_softmax(-1)
    texts = beginnings(pupil.student.side, exchange.completion_ids)
    p = torch.stack([pupil.chat.after(text) for text in texts.values()])
    # Special tokens that end no turn have no column: they are one outcome.
    table = pupil.student.side.token_bytes
    special = [place for place in table.special.nonzero()[0].tolist() if place != pupil.student.side.end_of_turn]
    said = [place for place in range(table.size) if place not in special]
    assert len(special) == 2
    p, q = (torch.cat([side[:, said], side[:, special].logsumexp(-1, keepdim=True)], 1) for side in (p, q))
    if beta in (0.0, 1.0):
        one, other = (p, q) if beta == 0.0 else (q, p)
        expected = (one.exp() * (one - other)).sum()
    else:
        m = torch.logaddexp(p, q) + math.log(0.5)
        expected = 0.5 * ((p.exp() * (p - m)).sum() + (q.exp() * (q - m)).sum())
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)


def test_fewer_alternatives_only_hide_differences(models: dict[str, Path]):
    found: list[float] = []
    for top in (1, 4, 20, None):
        pupil = Pupil(models, ModelChat(models["sister"], top, SILENT), probe_positions=100)
        scored = pupil.scored(ANSWER)
        found.append(
            pupil.signal.loss(hidden_of(pupil.student, scored), pupil.student.head, scored).total.item()
        )  # fmt: skip
    assert 0.0 < found[0] < found[1] < found[2] < found[3]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(models: dict[str, Path]):
    pupil = Pupil(models, ModelChat(models["own"], top=20), probe_positions=5)
    scored = pupil.scored(ANSWER)
    hidden = hidden_of(pupil.student, scored)
    assert pupil.signal.loss(hidden, pupil.student.head, scored).total.item() == pytest.approx(0.0, abs=1e-4)
    assert pupil.signal.measure(hidden, pupil.student.head, scored)["top1_agreement"].mean == 1.0


def test_a_batch_is_the_sum_of_its_samples_and_only_probed_rows_have_a_gradient(models: dict[str, Path]):
    pupil = Pupil(models, ModelChat(models["sister"], top=20), probe_positions=3)
    scored = pupil.scored(ANSWER, "Paris", ACCENTS)
    hidden = hidden_of(pupil.student, scored).detach().requires_grad_()
    head = replace(pupil.student.head, weight=pupil.student.head.weight.detach())
    terms = pupil.signal.loss(hidden, head, scored)
    assert terms.tokens == sum(exchange.compared for exchange in scored)
    apart, start, probed = 0.0, 0, []
    for exchange in scored:
        rows = hidden[start : start + len(exchange.completion_ids)]
        apart += pupil.signal.loss(rows, head, [exchange]).total.item()
        probed += [start + place for place in exchange.positions or ()]
        start += len(exchange.completion_ids)
    assert terms.total.item() == pytest.approx(apart, rel=1e-5)
    (gradient,) = torch.autograd.grad(terms.total, hidden)
    assert gradient.norm(dim=-1).nonzero().squeeze(-1).tolist() == probed


# --- what fails ---


def test_positions_that_are_not_answered_are_left_out_and_answers_without_any(models: dict[str, Path]):
    pupil = Pupil(models, probe_positions=2)
    whole = pupil.scored(ANSWER, "Paris")
    texts = beginnings(pupil.student.side, whole[0].completion_ids)
    first, second = whole[0].positions or (-1, -1)
    pupil.chat.failures = [texts[first]]
    (part, *_) = pupil.scored(ANSWER)
    assert part.positions == [second]
    assert part.scores is not None
    assert part.scores.tokens == len(part.scores.top_ids if part.scores.top_ids is not None else ()) == 1
    pupil.chat.failures = [texts[first], texts[second]]
    kept = pupil.scored(ANSWER, "Paris")
    assert [exchange.sample.place for exchange in kept] == ["x:1"]


def test_answers_of_which_nothing_is_told_are_left_out(models: dict[str, Path]):
    pupil = Pupil(models, probe_positions=2)
    texts = [beginnings(pupil.student.side, pupil.exchange(text).completion_ids) for text in (ANSWER, "Paris")]
    pupil.chat.failures = [text for each in texts for text in each.values()]
    assert pupil.scored(ANSWER, "Paris") == []
    assert pupil.signal.scored([]) == []


# --- the whole of it ---


def test_validation_measures_both_kinds_of_answers(models: dict[str, Path]):
    pupil = Pupil(models, ModelChat(models["sister"], top=20), probe_positions=3, max_new_tokens=12)
    samples = [sample_of(pupil.student, 1, ANSWER), sample_of(pupil.student, 2)]
    found = validate(pupil.student, pupil.signal, samples, pupil.options, nullcontext, Stop())
    assert found["val_kd_loss"].count == 3
    assert 2 <= found["own_kd_loss"].count <= 6  # such a student's own answers soon hold what is no text
    assert found["val_kl"].total == pytest.approx(found["val_kd_loss"].total, rel=1e-5)
    assert 0.0 < found["val_probed_mass"].mean < 1.0
    assert found["val_bits_per_byte"].count == len(ANSWER) + 1
    assert figures(found, pupil.options)["val_total_loss"] == found["val_kd_loss"].mean


def test_the_words_say_how_much_is_compared(models: dict[str, Path]):
    words = Pupil(models, ModelChat(models["sister"], top=20), probe_positions=8).signal.words
    assert words.startswith("probe: 8 of up to 40 positions of each answer, those where the student is least sure")
    assert "the teacher's 20 most probable next tokens and all others as one: KL(teacher || student)" in words


@pytest.mark.parametrize(
    ("way", "message"),
    [({"loss": "uld"}, "--loss uld: for teachers that score"), ({"loss_temperature": 2.0}, "--loss-temperature 2: ")],
)
def test_options_that_need_scores_are_refused(models: dict[str, Path], way: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        Pupil(models, **way)


def test_over_http_it_is_what_the_model_itself_says(models: dict[str, Path]):
    options = TeacherOptions.model_validate({"model": "scoring/model", "backend": "openai", "retries": 0})
    with scoring_server(models["sister"], dialect="chat") as running:
        remote = open_remote(
            options.model_copy(update={"base_url": running.url}), Stop(), cache=None, note=lambda note: None
        )
        try:
            far = Pupil(models, ChatTeacher(remote), probe_positions=6)
            (exchange,) = far.scored(ANSWER)
        finally:
            remote.close()
    (here,) = Pupil(models, ModelChat(models["sister"], top=20), probe_positions=6).scored(ANSWER)
    assert exchange.positions == here.positions
    for came, known in zip(told_at(exchange), told_at(here), strict=True):
        # The server draws a token; where that is none of the 20, it is told, too.
        assert set(known) <= set(came)
        assert len(came) <= len(known) + 1
        assert {column: came[column] for column in known} == pytest.approx(known, abs=1e-4)


def told_at(exchange: Exchange) -> list[dict[int, float]]:
    """Column -> log-probability, for each position."""
    scores = exchange.scores
    assert scores is not None
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    rows = zip(scores.top_ids.tolist(), scores.top_logprobs.tolist(), strict=True)
    return [{place: value for place, value in zip(*row, strict=True) if place >= 0} for row in rows]
