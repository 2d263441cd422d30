"""`train_gold`: the student answers, the teacher scores, the student learns."""

from contextlib import ExitStack, closing

import torch

from ..commands.train_gold import GoldPlan, GoldTrained, TrainGold
from ..data.prompts import check_source
from ..data.run import Run
from ..errors import Elsewhere, ExitCode, StoppedEarly
from .ahead import Ahead
from .exchange import Exchange
from .folder import open_folder
from .job import Job
from .learner import Draw, Learner
from .order import Order
from .plan import plan_lines
from .student import load_student
from .teaching import open_teacher, take_in
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
    teacher = open_teacher(options, world, run, stack)
    folder = None if options.dry_run else world.on_main(lambda: open_folder(options, run, world.count, stack))
    student = load_student(options, world.device, note, freeze_embeddings=options.freeze_embeddings)
    lesson = take_in(options, run, world, teacher, student, folder)
    options, signal, samples = lesson.options, lesson.signal, lesson.samples
    plan = plan_lines(lesson, student, world.count, world.device)
    note("\n".join(plan))
    learner = Learner(options, world, student, signal, note)
    per_prompt = 1 if signal is None else signal.per_prompt
    order = Order(len(samples.train), max(1, options.batch_size // per_prompt), options.seed)
    job = Job(lesson, run, world, folder, learner)
    run.stop.check()

    def draws(step: int) -> list[Draw]:
        """This process' part of a step; answers to one prompt stay together."""
        return [
            (samples.train[place], draw * per_prompt + number)
            for place, draw in world.share(order.step(step))
            for number in range(per_prompt)
        ]

    if options.dry_run:
        return job.rehearse(draws(1), plan)

    with job, closing(job.open_ahead(draws)) as ahead:
        while not job.done:
            job.step += 1
            torch.manual_seed((options.seed * 1_000_003 + job.step) * 1_009 + world.rank)  # for dropout

            exchanges = prepare(ahead, job, world)
            learnt = learner.learn(exchanges)

            job.record(learnt, exchanges)
            if job.step % options.eval_every == 0 or job.step == options.max_steps:
                job.validate()
            interrupted = world.any(run.stop.requested)
            if interrupted:
                ahead.close()  # what is being asked is paid: it belongs into the books
            if job.step % options.save_every == 0 or interrupted:
                job.save()
            if interrupted and not job.done:
                return job.result("interrupted")
        return job.finish()


def prepare(ahead: Ahead, job: Job, world: World) -> list[Exchange]:
    """The answers of a step, scored, and the next step's begun.

    Raises StoppedEarly when there are none in one of the processes (the budget is reached, the server is gone, ...):
    what was learnt before is saved first, so that no step is paid for twice.
    """
    exchanges: list[Exchange] = []
    for prepares in (
        lambda: exchanges.extend(ahead.take(job.step)),
        lambda: ahead.begin(job.step + 1, asks=not job.run.stop.requested),
    ):
        problem: StoppedEarly | None = None
        try:
            prepares()
        except StoppedEarly as error:
            problem = error
        if world.any(problem is not None):
            job.step -= 1
            if job.step:
                job.save()
            raise problem or Elsewhere(ExitCode.STOPPED, "another process cannot go on")
    return exchanges
