"""`demo`: what the product does, offline, on real input with a real teacher."""

from pathlib import Path

import orjson

from .commands.demo import Demo, DemoResult, Example
from .commands.evaluate import Evaluate, Evaluated
from .commands.generate_teacher_data import Generated, GenerateTeacherData
from .commands.make_student import MakeStudent
from .commands.train_gold import GoldTrained, TrainGold
from .data.jsonlines import read_lines
from .data.run import Run
from .errors import InputError, StoppedEarly
from .generation.generate import generate

SHOWN = 3
HELD_OUT = 0.25
"""Of the prompts, for the figures before and after."""
PASSAGES = 4
"""Of each kind of text, on which the layers' influence is measured."""


def demo(options: Demo, run: Run) -> DemoResult:
    """Generate teacher data, make a student, train it, evaluate it; what is there already is not done again.

    Raises DistillError as the commands do that it runs.
    """
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(options.output, None, f"cannot be made: {error.strerror}. Choose another --output.") from None
    generated = generate(
        GenerateTeacherData(
            input=str(options.input),
            output=options.output / "train.jsonl",
            model=options.model,
            backend=options.backend,
            max_tokens=options.max_tokens,
            drop_truncated=False,
            seed=0,
        ),
        run,
    )
    if not isinstance(generated, Generated):
        raise StoppedEarly("the demo made no data")
    result = DemoResult(
        status=generated.status,
        stopped_because=generated.stopped_because,
        generated=generated,
        examples=examples(generated),
    )
    if not options.steps:
        return result
    if generated.status != "done":
        run.progress.note("not all answers are there, so nothing is trained: the same command asks for the rest")
        return result
    student = make_student(options, run)
    trained = train_student(options, generated, student, run)
    result = result.model_copy(update={"student": student, "trained": trained})
    if trained is not None and trained.status != "done":
        return result.model_copy(update={"status": trained.status})
    return result.model_copy(update={"evaluated": evaluate_student(options, student, run)})


def examples(generated: Generated) -> list[Example]:
    """The first rows of the data."""
    found: list[Example] = []
    if generated.rows_in_output:
        for _, line in read_lines(generated.output):
            messages = orjson.loads(line)["messages"]
            found.append(Example(prompt=messages[-2]["content"], answer=messages[-1]["content"]))
            if len(found) == SHOWN:
                break
    return found


def make_student(options: Demo, run: Run) -> Path:
    """A student out of the teacher, or the one that is there."""
    from .training.make_student import make

    student = options.output / "student"
    if (student / "config.json").is_file():
        run.progress.note(f"the student in {student} is there already; remove it to make another")
    else:
        run.progress.note(f"making a student with {options.layers} layers")
        made = make(MakeStudent(model=options.model, output=student, layers=options.layers, limit=PASSAGES), run)
        run.progress.note(made.summary())
    return student


def train_student(options: Demo, generated: Generated, student: Path, run: Run) -> GoldTrained | None:
    """The student trained on its own answers and on the teacher's; None when it has been, with these options."""
    from .training.gold import train
    from .training.ownership import is_done

    training = TrainGold(
        data=str(generated.output),
        output=options.output / "gold",
        student=str(student),
        teacher=options.model,
        max_steps=options.steps,
        batch_size=4,
        max_new_tokens=64,
        learning_rate=3e-4,
        freeze_embeddings=True,
        val_fraction=HELD_OUT,
        eval_every=max(1, options.steps // 2),
        save_every=max(1, options.steps),
        overwrite=True,
    )
    if is_done(training):
        run.progress.note(f"the student in {training.output} is trained already; remove it to train anew")
        return None
    trained = train(training, run)
    if not isinstance(trained, GoldTrained):
        raise StoppedEarly("the demo has trained nothing")
    return trained


def evaluate_student(options: Demo, student: Path, run: Run) -> Evaluated:
    """The trained student against what it was, and against the teacher, on tasks and on held-out prompts."""
    from .evaluation.evaluate import evaluate

    evaluated = evaluate(
        Evaluate(
            student=str(options.output / "gold"),
            baseline=str(student),
            teacher=options.model,
            teacher_backend="hf",
            suite=["offline"],
            limit=options.items,
            max_new_tokens=64,
            output=options.output / "report",
        ),
        run,
    )
    if not isinstance(evaluated, Evaluated):
        raise StoppedEarly("the demo has evaluated nothing")
    return evaluated
