"""What a teacher says of the rows: it answers some of them anew, and the overlap of its words with those that are there
is measured."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..commands.check_data import Measured
from ..commands.generate_synthetic import Overlap
from ..commands.teacher import TeacherOptions
from ..data.keys import work_key
from ..data.overlap import score
from ..data.run import Run
from ..data.statistics import wilson
from ..data.text import one_line
from ..data.trained_on import content_hash
from ..errors import StoppedEarly, TeacherError, UsageError
from ..evaluation.statistics import Items
from ..teachers import Completion, Sampling
from ..teachers.engine import Spending
from ..teachers.template_messages import LeftOut, template_messages, tool_schemas
from .asking import NOT_ASKED, Asking, Question, Respondent
from .results import ShownRow
from .rows import Entry


@dataclass
class Sample:
    """A row that models are shown.

    question: its conversation up to the answer.   shown: what came of it, for the report.
    cluster: a hash of what is asked (`data.trained_on.content_hash`): rows that share it are not independent.
    """

    entry: Entry
    question: Question
    shown: ShownRow
    cluster: str


class Choice:
    """At most `count` of the rows that are offered.

    The order is that of a hash of the row and the seed. So the same rows are chosen wherever they stand, more rows in
    the file leave most of the choice as it is, and a larger count keeps all of a smaller one: what was asked about them
    is asked only once. Equal rows count as one. Left out are rows that cannot be read, that have no answer, or more
    than text.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._heap: list[tuple[int, int, Entry]] = []  # the largest hash first, negative
        self._chosen: set[int] = set()

    def offer(self, entry: Entry) -> None:
        """Look at one more row."""
        if entry.problem is not None or not entry.answer.strip() or len(entry.said) != 1:
            return
        try:
            template_messages([*entry.messages, *entry.said])
            place = int(work_key([self._seed, entry.messages, entry.said]), 16)
        except (LeftOut, TypeError):  # images and the like; numbers of more than 64 bits
            return
        if place in self._chosen:
            return
        self._chosen.add(place)
        heapq.heappush(self._heap, (-place, entry.index, entry))
        if len(self._heap) > self._count:
            self._chosen.remove(-heapq.heappop(self._heap)[0])

    @property
    def samples(self) -> list[Sample]:
        """The rows that were chosen, the first of the order first."""
        return [_sample(entry) for _, _, entry in sorted(self._heap, key=lambda each: -each[0])]


def choose(rows: Iterable[Entry], count: int, seed: int) -> list[Sample]:
    """The same for rows that are all there."""
    choice = Choice(count, seed)
    for entry in rows:
        choice.offer(entry)
    return choice.samples


def _sample(entry: Entry) -> Sample:
    tools = tuple(tool_schemas(entry.metadata.get("tools")) or ())
    shown = ShownRow(place=entry.place, prompt=entry.prompt, answer=entry.answer)
    return Sample(entry, Question(entry.messages, tools), shown, content_hash(entry.messages))


# ---- new answers -------------------------------------------------------------------------------------------------


def greedy(max_tokens: int) -> Sampling:
    """How new answers and verdicts are drawn."""
    return Sampling(max_tokens, temperature=0.0)


async def answer_anew(samples: Sequence[Sample], asking: Asking, teacher: Respondent, max_tokens: int) -> None:
    """Let the teacher answer the same conversations greedily; see `take_answers`. Raises as `Asking.ask`."""
    take_answers(samples, await asking.ask(teacher, questions_of(samples), greedy(max_tokens)))


def questions_of(samples: Sequence[Sample]) -> list[Question]:
    """What the teacher is asked."""
    return [sample.question for sample in samples]


def take_answers(samples: Sequence[Sample], answers: Sequence[Completion | TeacherError]) -> None:
    """Put the teacher's answers beside those of the rows: new_answer, f1 (words in common, after SQuAD's normalisation)
    and rouge_l (Lin 2004) of `results.ShownRow`, or in its notes why there is none."""
    for sample, answer in zip(samples, answers, strict=True):
        row = sample.shown
        if isinstance(answer, TeacherError):
            row.notes.append(why_not("no new answer", answer))
            continue
        found = score(answer.text, row.answer)
        row.new_answer, row.f1, row.rouge_l = answer.text, found["f1"], found["rouge_l"]
        if answer.finish_reason == "length":
            row.notes.append("the new answer was cut off: it needs more tokens")


def why_not(what: str, error: TeacherError) -> str:
    """A note on a row that a model said nothing of."""
    return "not asked" if error.reason == NOT_ASKED else f"{what}: {one_line(str(error), 300)}"


def overlap(samples: Sequence[Sample]) -> list[Measured]:
    """Mean f1 and rouge_l over the rows that got a new answer; [] where none did."""
    there = [sample for sample in samples if sample.shown.f1 is not None and sample.shown.rouge_l is not None]
    clusters = [sample.cluster for sample in there]
    figures = {
        "f1": [sample.shown.f1 or 0.0 for sample in there],
        "rouge_l": [sample.shown.rouge_l or 0.0 for sample in there],
    }
    return [mean(name, values, clusters) for name, values in figures.items() if values]


def mean(name: str, values: Sequence[float], clusters: Sequence[str]) -> Measured:
    """The mean of figures from 0 to 1, one for each row, and its 95 % interval.

    Student's t over rows, with standard errors that take rows with one cluster as one (Miller, arXiv:2411.00640), cut
    at 0 and 1; figures of 0 and 1 alone get Wilson's interval. Where all rows are equal t would say that there is
    nothing else: then it is Wilson's interval, too, since of all figures with this mean those of 0 and 1 differ most.
    One row says nothing of the others: 0 to 1.
    """
    items = Items([values], clusters=clusters)
    found = items.score(0)
    low, high = found.low, found.high
    if items.units == 1:
        low, high = 0.0, 1.0
    elif min(values) == max(values):
        low, high = wilson(found.value * items.units, items.units)
    assert low is not None
    assert high is not None
    return Measured(
        name=name, kind="mean", value=found.value, low=max(0.0, low), high=min(1.0, high), of=len(values)
    )  # fmt: skip


# ---- for generate_synthetic --------------------------------------------------------------------------------------


async def validate(
    rows: Iterable[Entry],
    options: TeacherOptions,
    samples: int,
    seed: int,
    max_tokens: int,
    folder: Path,
    run: Run,
    *,
    spending: Spending | None = None,
) -> Overlap:
    """Let a model answer some of the rows once more, and say how far its words overlap with the answers that are there.

    folder: keeps what it says.   spending: what was spent before under --max-cost.
    Raises UsageError where no row has an answer, and for a model that cannot be asked; StoppedEarly where not one row
    got a new answer. When it stops before the last row (the budget, Ctrl-C), the rows so far count.
    """
    chosen = choose(rows, samples, seed)
    if not chosen:
        raise UsageError("--validate: no record has an answer that is a text, so there is nothing to compare with.")
    cheaper = "lower --max-tokens"
    async with Asking(folder, run, max_cost=options.max_cost, cheaper=cheaper, spending=spending) as asking:
        teacher = await asking.open(options, "teacher", price_option="--price")
        await answer_anew(chosen, asking, teacher, max_tokens)
    found = {each.name: each for each in overlap(chosen)}
    if not found:
        because = str(asking.stopped) if asking.stopped is not None else chosen[0].shown.notes[0]
        raise StoppedEarly(f"--validate: not one of {len(chosen)} records got a new answer. {because}")
    if asking.stopped is not None:
        run.progress.note(f"--validate stopped early: {asking.stopped}")
    f1, rouge_l = found["f1"], found["rouge_l"]
    return Overlap(
        rows=f1.of,
        f1=f1.value,
        f1_low=f1.low,
        f1_high=f1.high,
        rouge_l=rouge_l.value,
        rouge_l_low=rouge_l.low,
        rouge_l_high=rouge_l.high,
        failed=len(chosen) - f1.of,
        cost_usd=teacher.known_usd,
    )
