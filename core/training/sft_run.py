"""One SFT run: rows and masks first, then the model, TRL's loop, and what is left of it in the folder."""

import ctypes
import importlib.util
import math
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ..commands.train_sft import SftPlan, SftTrained, TrainSft
from ..data.run import Run
from ..errors import StoppedEarly
from ..teachers import hf_model
from ..teachers.hf_states import out_of_memory
from .chat_forms import chosen_template, ensure_pad
from .checkpoints import STAGING
from .folder import RunFolder, open_folder
from .gguf_export import find_converter, require_convertible
from .masks import Masker
from .packing import check_packing
from .record import sha256
from .sft_books import SftBooks
from .sft_card import card_of
from .sft_data import SftData, longest_row, read_sft_data
from .sft_export import export_best
from .sft_plan import plan_lines
from .sft_trainer import SftTrainer, Sizes, packed
from .student import Student, context_of, find_student, load_student, load_weights
from .world import World

M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt(3): blocks of so many bytes and more are mapped, and unmapped when they are freed."""
REHEARSED = 8
"""Held-out rows that --dry-run measures."""


@dataclass(frozen=True, eq=False)
class Ready:
    """All that a run begins with.

    rows: of `data`, packed where that is asked for.   form: of conversations, in words.
    """

    student: Student
    data: SftData
    rows: Any
    sizes: Sizes
    plan: list[str]
    form: str


def run_sft(options: TrainSft, run: Run) -> SftTrained | SftPlan:
    """Train a student on rows whose file has been checked. Raises UsageError before anything is written, StoppedEarly
    with the checkpoints kept."""
    if options.export:
        find_converter()
    world = World(options)
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the libraries talk to one another by older names
        stack.callback(world.close)
        datasets.disable_progress_bars()  # there is one bar, ours
        return _run(options, run, world, stack)


def _run(options: TrainSft, run: Run, world: World, stack: ExitStack) -> SftTrained | SftPlan:
    ended_is_well = options.export is not None
    folder = (
        None if options.dry_run else world.on_main(lambda: open_folder(options, run, world.count, stack, ended_is_well))
    )
    before = world.gather(folder.result if folder is not None and folder.finished else None)[0]
    student = None
    if before is not None:
        result = SftTrained.model_validate({**before, "output": options.output, "gguf": []})
    else:
        ready = prepare(options, run, world, folder)
        if options.dry_run:
            with enough_memory(options, ready):
                return rehearse(options, run, world, ready)
        result, student = train(options, run, world, folder, ready), ready.student
    if options.export and result.status == "done":
        paths = world.on_main(lambda: folder and export_best(options, folder, run, world.device, student))
        result = result.model_copy(update={"gguf": paths or []})
    return result


# ---- before the first step -----------------------------------------------------------------------------------------


def prepare(options: TrainSft, run: Run, world: World, folder: RunFolder | None) -> Ready:
    """Rows as the student reads them, which asks for its tokenizer only; then the student, and the plan."""
    note = run.progress.note
    source = find_student(options, note)
    tokenizer = hf_model.load_tokenizer(source, chat=False)
    template = chosen_template(tokenizer, options.chat_template, note)
    if template is not None:
        tokenizer.chat_template = template  # it is saved with the student
    form = options.chat_template or ("the model's own" if template is None else "chosen, as the model has none")
    if options.export:
        world.on_main(lambda: require_convertible(source, note, run.stop.check))
    in_4bit = held_in_4bit(options, world, run)
    masker = Masker(tokenizer, template, options.thinking)
    identity = {"chat_template": masker.template_hash[:16], "in_4bit": in_4bit, "bfloat16": world.mixed}
    world.on_main(lambda: folder and folder.identify(**identity))
    context = context_of(hf_model.load_config(source))
    length = longest_row(options, context)
    data = read_sft_data(options, masker, context, note, run.stop.check)
    for shown in data.shown:
        note(shown)

    rows = packed(data.train, options, length)
    data.close()  # what is mapped stays readable
    sizes = Sizes(options, len(rows), length if options.packing else data.longest, world)
    flash = options.packing and options.lora and world.mixed and importlib.util.find_spec("flash_attn") is not None
    if sizes.checkpointing and world.device.type == "cpu":
        return_freed_memory()
    student = load_student(
        options.model_copy(update={"gradient_checkpointing": sizes.checkpointing}),
        world.device,
        note,
        tokenizer=tokenizer,
        attention="flash_attention_2" if flash else "sdpa",
        in_4bit=in_4bit,
        dropout=True,
    )
    ensure_pad(student.tokenizer, student.side.end_of_turn)
    if options.packing:
        check_packing(student, DataCollatorForLanguageModeling(0, padding_free=True), world.device, world.autocast)
    plan = plan_lines(options, student, data, sizes, length, world.count, world.device)
    note("\n".join(plan))
    run.stop.check()
    return Ready(student, data, rows, sizes, plan, form)


def return_freed_memory() -> None:
    """Let the C library give large freed blocks back to the system at once, where it is glibc.

    Left to itself it keeps them as holes between the activations that are still needed: with long rows the process then
    holds half as much again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


def held_in_4bit(options: TrainSft, world: World, run: Run) -> bool:
    """Whether the weights under an adapter are held in 4 bits: where the machine can, unless the user says no."""
    can = world.device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is not None
    if options.load_in_4bit and not can:
        run.progress.note("--load-in-4bit: this needs CUDA and bitsandbytes; the weights are held whole instead")
    return options.lora and can and options.load_in_4bit is not False


# ---- the run -------------------------------------------------------------------------------------------------------


def train(options: TrainSft, run: Run, world: World, folder: RunFolder | None, ready: Ready) -> SftTrained:
    """The run itself, from its beginning or from its last checkpoint."""
    books = SftBooks(options, run, world, folder, ready.student, ready.sizes.steps)
    digest = sha256(options.data)
    books.card = lambda books: card_of(books, ready.data, digest, ready.sizes.an_epoch, ready.form)
    world.on_main(lambda: folder and folder.begin(ready.data.files))
    try:
        with enough_memory(options, ready):
            make_steps(options, run, world, books, ready)
        epochs = books.step / ready.sizes.an_epoch
        if books.interrupted:
            books.close("interrupted")
            return books.result("interrupted", ready.data.counts, epochs, ready.data.tool_rows)
        books.finish()
        result = books.result("done", ready.data.counts, epochs, ready.data.tool_rows)
        books.close("done", result)
        return result
    except StoppedEarly as error:
        books.stopped(error)
        raise
    finally:
        run.progress.end()
        if world.main:
            shutil.rmtree(options.output / STAGING, ignore_errors=True)


def make_steps(options: TrainSft, run: Run, world: World, books: SftBooks, ready: Ready) -> None:
    """The steps that are left, and the measures of the held-out rows."""
    folder, sizes, held_out = books.folder, ready.sizes, ready.data.held_out
    checkpoint = world.gather(folder.last_checkpoint if folder is not None else None)[0]
    for line in folder.notes if folder is not None else ():
        run.progress.note(line)
    staging = options.output / STAGING
    trainer = SftTrainer(options, run, world, books, ready.student, sizes, ready.rows, held_out, staging)
    checkpoint = checkpoint if options.resume else None
    if checkpoint is not None:
        load_weights(ready.student, checkpoint)
        books.load(checkpoint)
    world.track("train_sft", options.model_dump(mode="json"))
    if held_out is not None and books.step % sizes.eval_every == 0 and books.measured_at != books.step:
        # At the beginning, and after a checkpoint of one who wanted to leave and did not wait for the measures.
        books.validated(trainer.measure(held_out))
    run.progress.begin("train", total=sizes.steps, already=books.step, unit="steps")
    if not books.done:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


@contextmanager
def enough_memory(options: TrainSft, ready: Ready) -> Generator[None, None, None]:
    """Say what to do when memory runs out. Raises StoppedEarly."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise no_room(options, ready) from None


def no_room(options: TrainSft, ready: Ready) -> StoppedEarly:
    """What to do when memory ran out."""
    micro, longest = ready.sizes.micro, ready.data.longest
    same = [f"--micro-batch-size {micro // 2}"] if micro > 1 else []
    same += [] if ready.sizes.checkpointing else ["--gradient-checkpointing"]
    anew = [] if options.lora else ["--qlora-rank 16"]
    anew += [f"a --max-length below {longest:,}"]
    ways = [f"{' or '.join(same)} (with --resume, where there is a checkpoint)"] if same else []
    ways.append(f"{' or '.join(anew)} (a run of its own)")
    return StoppedEarly(
        f"out of memory with {micro} rows per forward pass, the longest of {longest:,} tokens. "
        f"Try {', or '.join(ways)}."
    )


# ---- --dry-run -----------------------------------------------------------------------------------------------------


def rehearse(options: TrainSft, run: Run, world: World, ready: Ready) -> SftPlan:
    """Make two steps and throw them away: what the run will take. The first one warms up, and only after it does the
    optimiser hold all its memory."""
    sizes, held_out = ready.sizes, ready.data.held_out
    books = SftBooks(options, run, world, None, ready.student, 2)
    with tempfile.TemporaryDirectory(prefix="distill-") as place:
        staging = Path(place)
        trainer = SftTrainer(options, run, world, books, ready.student, sizes.of(steps=2), ready.rows, None, staging)
        run.progress.begin("rehearse", total=2, unit="steps")
        trainer.train()
        run.progress.end()
        validation_s = 0.0
        if held_out is not None:
            some = held_out.select(range(min(REHEARSED, len(held_out))))
            began = time.monotonic()
            trainer.measure(some)
            validation_s = (time.monotonic() - began) * len(held_out) / len(some)
    step_s = books.last["seconds"]
    validations = 1 + math.ceil(sizes.steps / sizes.eval_every) if held_out is not None else 0
    return SftPlan(
        plan=ready.plan,
        steps=sizes.steps,
        seconds_per_step=step_s,
        tokens_per_second=books.last["tokens_read"] / step_s,
        seconds_per_validation=validation_s,
        seconds_in_all=step_s * sizes.steps + validation_s * validations,
        peak_memory_gb=world.peak_memory_gb,
        loss=books.losses[-1],
    )
