"""The teacher of a run: opened, tested where it is a server, and what the student is going to learn from it."""

import importlib.util
import os
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..commands.train_gold import TrainGold
from ..data.run import Run
from ..errors import UsageError
from ..teachers.ability import Ability, Load, StepCost, choose_mode, cost_of_step, examine
from ..teachers.api_scorer import ApiScorer
from ..teachers.chat_teacher import ChatTeacher
from ..teachers.providers import PROVIDERS
from ..teachers.remote import Remote, open_remote
from ..teachers.score_cache import default_path
from ..teachers.scorer import Scorer, open_scorer
from .folder import RunFolder
from .judge_signal import JudgeSignal
from .probe_signal import ProbeSignal
from .samples import Samples, read_samples
from .score_signal import ScoreSignal
from .signal import Mode, Signal
from .student import Student
from .text_signal import TextSignal
from .world import World

Teacher = Scorer | Remote


@dataclass(frozen=True)
class Lesson:
    """What a run is made of, once everything about its teacher is known.

    options: as they were given, with the mode and its share of the student's own answers.   scorer, signal: None where
    only the answers in the data are learnt (SFT); scorer also where the teacher can only chat.   remote, ability: of a
    teacher that is a server; ability: None before it was asked anything (--dry-run).   cost: of a step; None for a
    teacher on this machine.
    """

    options: TrainGold
    samples: Samples
    signal: Signal | None = None
    scorer: Scorer | None = None
    remote: Remote | None = None
    ability: Ability | None = None
    cost: StepCost | None = None

    @property
    def mode(self) -> Mode | None:
        """What the student learns from, or will, if the test of its server allows it; None: the answers in the data."""
        if self.signal is not None:
            return self.signal.mode
        return None if self.cost is None else self.cost.mode


def open_teacher(options: TrainGold, world: World, run: Run, stack: ExitStack) -> Teacher | None:
    """The teacher of this process, with nothing loaded and nothing asked yet; None where only the answers in the data
    are learnt (--lambda-kd 0).

    Raises UsageError for a teacher that cannot be had, and for one that is the student itself.
    """
    if options.lambda_kd == 0:
        return None
    note = run.progress.note
    if options.idle:
        note(options.idle)
    flash = options.teacher_flash_attention
    if flash and not (world.device.type == "cuda" and importlib.util.find_spec("flash_attn")):
        note("TEACHER_FLASH_ATTENTION: there is no CUDA or no package flash_attn here, so attention is torch's own")
        flash = False
    device = str(world.device)
    if options.backend == "gguf":  # llama.cpp takes all cores and all GPUs unless it is told
        threads = options.threads or max(1, (os.cpu_count() or 1) // world.count)
        layers = 0 if world.device.type == "cpu" else options.teacher_n_gpu_layers
        options = options.model_copy(update={"threads": threads, "teacher_n_gpu_layers": layers})
    asked = options.teacher_options(device, "flash_attention_2" if flash else "sdpa")
    if not options.is_local:
        cache = (options.score_cache_path or default_path()) if options.score_cache and not options.dry_run else None
        remote = open_remote(asked, run.stop, cache=cache, share=world.count, note=note)
        stack.callback(remote.close)
        return remote
    scorer = open_scorer(asked, top_k=options.teacher_top_k)
    if options.backend == "hf" and same_model(options.student, options.teacher_name):
        raise UsageError(
            f"student and teacher are the same model ({options.teacher_name}): there is nothing to learn. "
            "make_student makes a smaller one of it."
        )
    stack.callback(scorer.close)
    return scorer


def take_in(
    options: TrainGold, run: Run, world: World, teacher: Teacher | None, student: Student, folder: RunFolder | None
) -> Lesson:
    """Load or test the teacher, read the data, decide what the student learns. Raises UsageError."""
    note = run.progress.note
    if isinstance(teacher, Remote):
        return _from_server(options, run, world, teacher, student, folder)
    if teacher is None:
        return Lesson(options, _read(options, student, None, note))
    teacher.prepare(note)
    signal = ScoreSignal(options, student.side, student.head, teacher)
    return Lesson(options, _read(options, student, signal, note), signal, teacher)


def _from_server(
    options: TrainGold, run: Run, world: World, remote: Remote, student: Student, folder: RunFolder | None
) -> Lesson:
    """What a server can be asked is found out first, and a weaker mode than scores is chosen by the user alone."""
    note = run.progress.note
    if options.dry_run:
        mode = likely_mode(options)
        if options.teacher_mode == mode:
            options = options.in_mode(mode)
        samples = _read(options, student, None, note)
        return Lesson(options, samples, remote=remote, cost=_cost(options, remote, samples, mode))
    before = None if folder is None else folder.identity_before.get("mode")  # with --resume nobody is asked again
    asked = options.teacher_mode
    if asked in (None, "auto"):
        asked = world.gather(before)[0] or asked
    ability = world.gather(world.on_main(lambda: _examine(options, remote, asked, note)))[0]
    assert ability is not None
    note("\n".join(ability.lines()))
    if asked in (None, "auto", "score") and "score" in ability.modes:
        scorer = ApiScorer(
            remote,
            top_k=options.teacher_top_k,
            tokenizer=options.teacher_tokenizer,
            batch_size=options.texts_per_request,
        )
        scorer.prepare(note)
        signal = ScoreSignal(options, student.side, student.head, scorer)
        samples = _read(options, student, signal, note)
        options = options.in_mode("score")
        _identify(world, folder, mode="score")
        return Lesson(options, samples, signal, scorer, remote, ability, _cost(options, remote, samples, "score"))
    samples = _read(options, student, None, note)
    costs: dict[Mode, StepCost] = {mode: _cost(options, remote, samples, mode) for mode in ability.modes}
    chosen: list[Mode | None] = world.gather(
        world.on_main(lambda: choose_mode(asked, ability, costs, stop=run.stop, note=note))
    )
    mode = chosen[0]
    assert mode is not None
    options = options.in_mode(mode)
    pairwise = mode == "judge" and options.judge == "pairwise"
    if pairwise and samples.held_out and not any(sample.answer for sample in samples.held_out):
        raise UsageError(
            "--judge pairwise measures held-out answers against those in the data, and there are none. Take --judge "
            "rubric, or --val-fraction 0 for no validation."
        )
    prefill = None if ability.chatting is None else ability.chatting.prefill
    keeps_blanks = prefill is None or prefill.blanks is not False
    kept = world.gather(None if folder is None else folder.identity_before.get("keeps_blanks"))[0]
    keeps_blanks = keeps_blanks if kept is None else bool(kept)  # a run asks the same positions to its end
    _identify(world, folder, mode=mode, keeps_blanks=keeps_blanks)
    chat = ChatTeacher(remote, rubric=options.rubric, keeps_blanks=keeps_blanks)
    makers: dict[Mode, Callable[[], Signal]] = {
        "probe": lambda: ProbeSignal(options, student, chat),
        "teacher-text": lambda: TextSignal(options, student, chat),
        "judge": lambda: JudgeSignal(options, student, chat),
    }
    return Lesson(options, samples, makers[mode](), None, remote, ability, costs[mode])


def likely_mode(options: TrainGold) -> Mode:
    """What a run whose server has not been tested will train from, as far as its provider tells."""
    if options.teacher_mode not in (None, "auto"):
        return options.teacher_mode
    return "score" if PROVIDERS[options.backend].scoring else "probe"


def _examine(options: TrainGold, remote: Remote, asked: str | None, note: Callable[[str], None]) -> Ability:
    return examine(
        remote,
        tokenizer=options.teacher_tokenizer,
        top_k=options.teacher_top_k,
        accept_noise=options.accept_noise,
        asked=asked,
        rubric=options.rubric,
        pairwise=options.judge == "pairwise",
        note=note,
    )


def _cost(options: TrainGold, remote: Remote, samples: Samples, mode: Mode) -> StepCost:
    """From the student's tokens: the teacher's are about as many."""
    prompts = [len(sample.prompt_ids) for sample in samples.train]
    answers = [len(sample.answer_ids or ()) or options.max_new_tokens for sample in samples.train]
    load = Load(
        prompt_tokens=statistics.mean(prompts),
        answer_tokens=statistics.mean(answers),
        prompts=len(samples.train),
        held_out=len(samples.held_out),
        held_out_answers=sum(bool(sample.answer_ids) for sample in samples.held_out),
    )
    return cost_of_step(mode, options, load, remote.price)


def _identify(world: World, folder: RunFolder | None, **found: Any) -> None:
    """A run goes on as it was begun, whatever a later test of its server finds."""
    world.on_main(lambda: None if folder is None else folder.identify(**found))


def _read(options: TrainGold, student: Student, signal: ScoreSignal | None, note: Callable[[str], None]) -> Samples:
    if signal is not None and signal.teacher_side.note:  # it reads the prompts in another form than it was trained on
        note(f"teacher: {signal.teacher_side.note}")
    return read_samples(
        options,
        student.side,
        None if signal is None else signal.teacher_side,
        student.context_tokens,
        None if signal is None else signal.scorer.context_tokens,
        note,
    )


def same_model(student: str, teacher: str) -> bool:
    """Whether two names stand for one model."""
    paths = [Path(name).expanduser().resolve() for name in (student, teacher)]
    return student == teacher or (paths[0] == paths[1] and paths[0].exists())
