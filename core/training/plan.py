"""What a run is going to do, in lines for a person, before the first step: models, signal, data, step, memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from ..commands.train_gold import TrainGold
from ..distillation.alignment import align
from ..distillation.chat import ChatSide
from ..distillation.vocabulary import VocabularyMap
from .memory import TeacherSize, memory_estimate, teacher_size
from .samples import Sample, Samples
from .score_signal import ScoreSignal
from .signal import Mode
from .student import Student
from .teaching import Lesson

MEASURED = 50
"""Samples whose text shows what the tokenizers share."""

Answer = tuple[Sequence[int], bool]
"""Token ids of the student's, and whether its end of turn is the last of them."""


@dataclass(frozen=True)
class Shared:
    """How the student's tokens of some answers stand to the teacher's, as counts that add up to `tokens`.

    exact: one token on each side that the vocabularies pair, compared as it is.   outside: without a partner in the
    teacher's vocabulary, or alone against another token.   merged: the others, in groups of several tokens.
    """

    tokens: int
    exact: int
    merged: int
    outside: int


def plan_lines(
    lesson: Lesson,
    student: Student,
    processes: int,
    device: torch.device,
) -> list[str]:
    """The plan, a line for each part: its name, padded to a column, and what it will be."""
    options, samples, scorer, signal = lesson.options, lesson.samples, lesson.scorer, lesson.signal
    local = scorer is not None and lesson.remote is None
    size = teacher_size(options, device) if local else None
    lines = [("student", _student(options, student)), ("teacher", _teacher(lesson, size, device))]
    if signal is not None:
        lines.append(("signal", signal.words))
    if isinstance(signal, ScoreSignal):
        lines.append(("tokenizers", _tokenizers(student.side, signal, samples)))
    memory = memory_estimate(
        options,
        student,
        samples,
        teacher_gb=0.0 if size is None else size.gb,
        teacher_width=0 if scorer is None or scorer.ability != "full" else scorer.width,
        processes=processes,
        device=device,
    )
    lines += [
        ("data", _data(samples)),
        ("step", _step(options, processes, device)),
        ("answers", _answers(options, samples, lesson.mode)),
        ("optimiser", _optimiser(options, samples)),
        ("memory", _memory(memory, processes, known=not local or size is not None)),
        ("validation", _validation(options, samples)),
    ]
    if lesson.cost is not None:
        lines.append(("cost", str(lesson.cost)))
    return [f"{name:<12}{text}" for name, text in lines]


# ---- what the tokenizers share -----------------------------------------------------------------------------------


def shared_tokens(student: ChatSide, teacher: ChatSide, vocabulary: VocabularyMap, answers: Sequence[Answer]) -> Shared:
    """How the student's tokens of some answers stand to the teacher's."""
    total = exact = outside = 0
    for ids, ended in answers:
        parts, student_ends = student.read(ids, ended)
        teacher_ids, teacher_ends = teacher.write(parts, ended)
        groups = align(student_ends, teacher_ends)
        ours, theirs = np.asarray(ids, np.int64), np.asarray(teacher_ids, np.int64)
        partner = _partners(vocabulary, ours)
        alone = groups.is_single[groups.student]
        is_exact = np.zeros(ours.size, np.bool_)
        is_exact[alone] = partner[alone] == theirs[groups.is_single[groups.teacher]]
        total += ours.size
        exact += int(is_exact.sum())
        outside += int(((partner < 0) | (alone & ~is_exact)).sum())
    return Shared(total, exact, total - exact - outside, outside)


def _partners(vocabulary: VocabularyMap, ids: np.ndarray) -> np.ndarray:
    """(n,) the teacher's token of the same bytes for each of the student's, -1 where there is none."""
    if not vocabulary.student_ids.size:
        return np.full(ids.size, -1, np.int64)
    places = np.minimum(np.searchsorted(vocabulary.student_ids, ids), vocabulary.student_ids.size - 1)
    return np.where(vocabulary.student_ids[places] == ids, vocabulary.teacher_ids[places], -1)


def _texts(student: ChatSide, samples: Samples) -> tuple[list[Answer], str]:
    """(some answers of the data; where it has none, the users' last words as if the student had said them; what)."""
    every = [*samples.train, *samples.held_out]
    answered = [sample for sample in every if sample.answer_ids]
    if answered:
        taken = islice(answered, 0, None, max(1, len(answered) // MEASURED))
        return [(sample.answer_ids or [], sample.answer_ended) for sample in islice(taken, MEASURED)], "answer"
    words = (sample.messages[-1].get("content") for sample in every if sample.messages)
    said = (text for text in words if isinstance(text, str) and text)
    return [(student.completion_ids(text.encode(), False), False) for text in islice(said, MEASURED)], "prompt"


def _tokenizers(student: ChatSide, signal: ScoreSignal, samples: Samples) -> str:
    if signal.same_tokenizer or signal.vocabulary is None:
        return "one, compared token by token"
    answers, what = _texts(student, samples)
    text = counted(len(answers), what)
    shared = shared_tokens(student, signal.teacher_side, signal.vocabulary, answers)
    entries = signal.vocabulary.report()
    vocabularies = f"vocabularies share {entries.matched:,} entries ({entries.student_share:.0%} of the student's)"
    if not shared.tokens:
        return f"two; the {vocabularies}"
    return (
        f"two; of {shared.tokens:,} student tokens in {text} {shared.exact / shared.tokens:.0%} are compared exactly, "
        f"{shared.merged / shared.tokens:.0%} merged with others, "
        f"{shared.outside / shared.tokens:.0%} are outside the teacher's vocabulary; the {vocabularies}"
    )


# ---- the lines ---------------------------------------------------------------------------------------------------


def amount(count: int) -> str:
    """A number of parameters, short.

    >>> amount(134_515_008), amount(921_600), amount(7_615_616_512), amount(640)
    ('134.5 M', '921.6 k', '7.62 B', '640')
    """
    for limit, name, digits in ((10**9, "B", 2), (10**6, "M", 1), (10**3, "k", 1)):
        if count >= limit:
            return f"{count / limit:.{digits}f} {name}"
    return str(count)


def counted(count: int, name: str) -> str:
    """
    >>> counted(1, "process"), counted(2, "process"), counted(1200, "step")
    ('1 process', '2 processes', '1,200 steps')
    """
    return f"{count:,} {name}{'' if count == 1 else 'es' if name.endswith('s') else 's'}"


def _about(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _student(options: TrainGold, student: Student) -> str:
    trained = "all of them trained"
    if student.trainable < student.parameters:
        trained = f"{amount(student.trainable)} of them trained ({student.trainable / student.parameters:.2%})"
    how = f", LoRA of rank {options.lora_rank} on {', '.join(options.lora_targets)}" if student.lora else ""
    frozen = ", embeddings frozen" if options.freeze_embeddings and not student.lora else ""
    twice = ", activations computed twice" if options.gradient_checkpointing else ""
    return f"{student.name}: {amount(student.parameters)} parameters, {trained}{how}{frozen}{twice}"


def _teacher(lesson: Lesson, size: TeacherSize | None, device: torch.device) -> str:
    options, scorer = lesson.options, lesson.scorer
    if lesson.remote is not None:
        mode = f"mode {lesson.mode}" + ("" if lesson.signal is not None else ", if the test of the server allows it")
        return f"{lesson.remote.model} ({lesson.remote.backend}) at {lesson.remote.client.endpoint}: {mode}"
    if scorer is None:
        return "none: --lambda-kd is 0, the student learns the answers in the data (SFT)"
    facts: list[str] = []
    if size is not None and size.parameters is not None:
        facts.append(f"{amount(size.parameters)} parameters")
    if scorer.backend == "hf":
        own = "float32" if device.type == "cpu" else "its own number format"
        loaded = own if options.teacher_dtype == "auto" else options.teacher_dtype
        facts.append("4-bit weights" if options.teacher_load_in_4bit else loaded)
    if size is not None:
        facts.append(f"{size.gb:.2f} GB")
    if scorer.context_tokens is not None:
        facts.append(f"context of {scorer.context_tokens:,} tokens")
    return f"{scorer.model} ({scorer.backend})" + (f": {', '.join(facts)}" if facts else "")


def _data(samples: Samples) -> str:
    def part(these: Sequence[Sample]) -> str:
        return f"{len(these):,} ({sum(bool(each.answer_ids) for each in these):,} with an answer)"

    left_out = sum(samples.skipped.values())
    text = f"samples to train on: {part(samples.train)}, held out: {part(samples.held_out)}"
    return text + (f", left out: {left_out:,}" if left_out else "")


def _step(options: TrainGold, processes: int, device: torch.device) -> str:
    rows = -(-options.batch_size // processes)
    micro = min(options.micro_batch_size, rows)
    split = f" over {processes} processes" if processes > 1 else ""
    tokens = options.batch_size * options.max_new_tokens
    return (
        f"{counted(options.batch_size, 'sample')}{split}, {micro} per forward pass on {device.type}, "
        f"at most {tokens:,} answer tokens"
    )


def _answers(options: TrainGold, samples: Samples, mode: Mode | None) -> str:
    if not options.lambda_kd:
        return f"those in the data, cut at {options.max_new_tokens} tokens"
    if mode == "teacher-text":
        return f"the teacher's own, up to {counted(options.max_new_tokens, 'token')}, one for each prompt"
    with_answer = sum(bool(each.answer_ids) for each in samples.train)
    own = 1.0 - (1.0 - options.lmbda) * with_answer / max(1, len(samples.train))
    how = f"temperature {options.temperature:g}, top-p {options.top_p:g}" if options.do_sample else "the most probable"
    drawn = f", up to {counted(options.max_new_tokens, 'token')}, {how}" if own else ""
    stale = ", written by the student of the step before (--staleness 1)" if options.staleness and own else ""
    return f"{own:.0%} the student's own{drawn}{stale}; {1 - own:.0%} from the data (--lmbda {options.lmbda:g})"


def _optimiser(options: TrainGold, samples: Samples) -> str:
    epochs = options.max_steps * options.batch_size / max(1, len(samples.train))
    clip = f"gradients up to {options.grad_clip:g}" if options.grad_clip else "gradients of any length"
    return (
        f"AdamW, {counted(options.max_steps, 'step')} ({_about(epochs)} times through the data), learning rate "
        f"{options.peak_learning_rate:g} after {counted(options.warmup, 'step')}, then {options.schedule}, "
        f"weight decay {options.weight_decay:g}, {clip}, seed {options.seed}"
    )


def _memory(memory: dict[str, float], processes: int, *, known: bool) -> str:
    parts = ", ".join(f"{name} {gb:.2f}" for name, gb in memory.items() if name != "in all" and gb >= 0.005)
    each = " for each process" if processes > 1 else ""
    unknown = "" if known else "; without the teacher, whose size is not known"
    return f"about {memory['in all']:.1f} GB{each} ({parts}){unknown}"


def _validation(options: TrainGold, samples: Samples) -> str:
    saved = f"checkpoint every {counted(options.save_every, 'step')}"
    if not samples.held_out:
        return f"none, nothing is held out; {saved}"
    measured = counted(len(samples.held_out), "held-out sample")
    better = "higher" if options.higher_is_better else "lower"
    patience = f", stop after {options.patience} without improvement" if options.patience else ""
    return (
        f"before, every {counted(options.eval_every, 'step')} and at the end, on {measured}; "
        f"best by {options.monitor} ({better} is better){patience}; {saved}"
    )
