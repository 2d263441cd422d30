"""`demo`: what the product does, offline, on real input with a real teacher."""

import orjson

from .commands.demo import Demo, DemoResult, Example
from .commands.generate_teacher_data import Generated, GenerateTeacherData
from .data.jsonlines import read_lines
from .data.run import Run
from .errors import InputError, StoppedEarly
from .generation.generate import generate

SHOWN = 3


def demo(options: Demo, run: Run) -> DemoResult:
    """Generate teacher data. Raises DistillError as the commands do that it runs."""
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
    examples: list[Example] = []
    if generated.rows_in_output:
        for _, line in read_lines(generated.output):
            messages = orjson.loads(line)["messages"]
            examples.append(Example(prompt=messages[-2]["content"], answer=messages[-1]["content"]))
            if len(examples) == SHOWN:
                break
    return DemoResult(
        status=generated.status, stopped_because=generated.stopped_because, generated=generated, examples=examples
    )
