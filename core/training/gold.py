"""`train_gold`: the student answers, the teacher scores, the student learns."""

import importlib.util
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from ..commands.train_gold import GoldPlan, GoldTrained, TrainGold
from ..data.prompts import check_source
from ..data.run import Run
from ..errors import UsageError
from ..teachers.scorer import Scorer, open_scorer
from .folder import open_folder
from .job import Job
from .learner import Learner
from .order import Order
from .plan import plan_lines
from .samples import read_samples
from .signal import Signal
from .student import load_student
from .world import World

ON_A_CPU = 2
"""Samples per forward pass: with more a CPU is no faster, and activations take more memory."""


def train(options: TrainGold, run: Run) -> GoldTrained | GoldPlan:
    """Train a student. Raises UsageError before anything is written, StoppedEarly with the checkpoints kept."""
    world = World(options)
    if world.device.type == "cpu" and "micro_batch_size" not in options.model_fields_set:
        options = options.model_copy(update={"micro_batch_size": ON_A_CPU})
    with ExitStack() as stack:
        stack.callback(world.close)
        return _train(options, run, world, stack)


def _train(options: TrainGold, run: Run, world: World, stack: ExitStack) -> GoldTrained | GoldPlan:
    note = run.progress.note

    # What can be refused at once, then both models, the data as they read it, and what the student will learn from.
    world.on_main(lambda: check_source(options.data))
    scorer = open_teacher(options, world, note)
    folder = None if options.dry_run else world.on_main(lambda: open_folder(options, run, world.count, stack))
    student = load_student(options, world.device, note, freeze_embeddings=options.freeze_embeddings)
    signal = None
    if scorer is not None:
        stack.callback(scorer.close)
        scorer.prepare(note)
        signal = Signal(options, student.side, student.head, scorer)
    samples = read_samples(
        options,
        student.side,
        None if signal is None else signal.teacher_side,
        student.context_tokens,
        None if scorer is None else scorer.context_tokens,
        note,
    )
    plan = plan_lines(options, student, scorer, signal, samples, world.count, world.device)
    note("\n".join(plan))
    learner = Learner(options, world, student, scorer, signal, note)
    order = Order(len(samples.train), options.batch_size, options.seed)
    job = Job(options, run, world, folder, learner, samples)
    run.stop.check()
    if options.dry_run:
        draws = [(samples.train[place], draw) for place, draw in world.share(order.step(1))]
        return job.rehearse(draws, plan)

    with job:
        while not job.done:
            job.step += 1
            torch.manual_seed((options.seed * 1_000_003 + job.step) * 1_009 + world.rank)  # for dropout
            draws = [(samples.train[place], draw) for place, draw in world.share(order.step(job.step))]

            exchanges = learner.answer(draws, aborted=lambda: run.stop.now)
            if run.stop.now:
                raise KeyboardInterrupt
            exchanges = learner.score(exchanges)
            learnt = learner.learn(exchanges)

            job.record(learnt, exchanges)
            if job.step % options.eval_every == 0 or job.step == options.max_steps:
                job.validate()
            interrupted = world.any(run.stop.requested)
            if job.step % options.save_every == 0 or interrupted:
                job.save()
            if interrupted and not job.done:
                return job.result("interrupted")
        return job.finish()


def open_teacher(options: TrainGold, world: World, note: Callable[[str], None]) -> Scorer | None:
    """The scorer of this process; None where only the answers in the data are learnt (--lambda-kd 0).

    Raises UsageError for a teacher that cannot score, is not there, or is the student itself.
    """
    if options.lambda_kd == 0:
        return None
    flash = options.teacher_flash_attention
    if flash and not (world.device.type == "cuda" and importlib.util.find_spec("flash_attn")):
        note("TEACHER_FLASH_ATTENTION: there is no CUDA or no package flash_attn here, so attention is torch's own")
        flash = False
    device = str(world.device)
    if options.backend == "gguf":  # llama.cpp takes all cores and all GPUs unless it is told
        threads = options.threads or max(1, (os.cpu_count() or 1) // world.count)
        layers = 0 if world.device.type == "cpu" else options.teacher_n_gpu_layers
        options = options.model_copy(update={"threads": threads, "teacher_n_gpu_layers": layers})
    scorer = open_scorer(
        options.teacher_options(device, "flash_attention_2" if flash else "sdpa"), top_k=options.teacher_top_k
    )
    if options.backend == "hf" and same_model(options.student, options.teacher_name):
        raise UsageError(
            f"student and teacher are the same model ({options.teacher_name}): there is nothing to learn. "
            "make_student makes a smaller one of it."
        )
    return scorer


def same_model(student: str, teacher: str) -> bool:
    """Whether two names stand for one model."""
    paths = [Path(name).expanduser().resolve() for name in (student, teacher)]
    return student == teacher or (paths[0] == paths[1] and paths[0].exists())
