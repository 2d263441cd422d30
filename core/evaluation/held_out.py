"""Prompts with reference answers that no model was trained on, and how near the models' own answers come to them."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..commands.evaluate import Evaluate
from ..data.keys import work_key
from ..data.overlap import score
from ..data.prompts import BadRow, Message, Prompt, PromptOptions, open_prompts
from ..data.run import Run
from ..data.trained_on import HELD_OUT, content_hash, read_trained_on
from ..distillation.chat import PLAIN, ChatSide
from ..errors import InputError, UsageError
from ..teachers.template_messages import BAD_CALL, LeftOut, content_text, template_messages, tool_schemas
from . import runs
from .answers import Broken, broken
from .models import Named
from .results import Answered, Metric, Question, Scored
from .suites import fixed_choice

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from .cached_lm import CachedLM

Note = Callable[[str], None]
TASK = "held_out"
VERSION = "1"
"""Goes up when the same rows and answers would get other figures."""
METRICS = (Metric("rouge_l", primary=True), Metric("f1"), Metric("exact_match"))
NO_REFERENCE = "there is no reference answer"
SHOWN = 3
"""How many places are named."""
ROLE_LINE = "\n### User:"
"""Where a model that is prompted in plain text begins to speak for the user."""


@dataclass(frozen=True)
class HeldOut:
    """A prompt and its reference answer.

    key: a hash of both, and of how often they stood before.   content: of the prompt alone (`data.trained_on`).
    place: for the user.   messages: up to where the answer begins, as chat templates take them.
    tools: the schemas that belong to them.   ended: False where the reference was cut off.
    """

    key: str
    content: str
    place: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    reference: str
    ended: bool

    @property
    def prompt(self) -> str:
        """For people."""
        if len(self.messages) == 1:
            return str(self.messages[0]["content"])
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


# ---- which rows ------------------------------------------------------------------------------------------------


def read_held_out(options: Evaluate, models: Sequence[Named], note: Note) -> list[HeldOut] | None:
    """The rows of --data, or by default those that the student's run held out; None where there are none.

    note: gets what was left out, and what a reader of the report must know.

    Raises UsageError: a file that cannot be read, no row with a reference, and rows that one of the models was trained
    on, unless --drop-trained leaves these out.
    """
    if options.data is not None:
        rows = _read(options.data, PromptOptions(options.prompt_key, options.system), note)
        if not rows:
            raise UsageError(
                f"{options.data}: no row has a reference answer (messages that end with the assistant's, or a key such "
                "as response, answer, output), so there is nothing to compare an answer with."
            )
        rows = _untrained(rows, options, models, note)
    else:
        run = _student_run(models)
        if run is None:
            return None
        if not (run / HELD_OUT).exists():
            note(f"{run} keeps no {HELD_OUT}: held-out prompts are measured only with --data")
            return None
        rows = _read(str(run / HELD_OUT), PromptOptions(system=options.system), note)
        if not rows:
            note(f"the rows that {run} held out have no answers: held-out prompts are measured only with --data")
            return None
        seen = {each for hashes in _trained_on(models, note).values() for each in hashes}
        rows, all_rows = [row for row in rows if row.content not in seen], rows
        if len(rows) < len(all_rows):  # in another run, or here under another system prompt
            note(f"{len(all_rows) - len(rows):,} rows that {run} held out were trained on elsewhere and are left out")
        if not rows:
            return None
    _note_choice(rows, models, note)
    return rows


def choose(rows: Sequence[HeldOut], options: Evaluate) -> list[HeldOut]:
    """At most --limit of the rows: the same ones in every run with this --seed, in the order of the data."""
    chosen = fixed_choice(TASK, len(rows), options)
    return list(rows) if chosen is None else [rows[place] for place in chosen]


def questions(rows: Sequence[HeldOut]) -> list[Question]:
    """They as a report has them. Turns of one conversation, and samples of one prompt, are one cluster."""
    openings = [_opening(row.messages) for row in rows]
    shared = {each for each, count in Counter(openings).items() if count > 1}
    return [
        Question(
            row.key,
            work_key([row.messages, row.tools, row.reference, row.ended]),
            row.prompt,
            row.reference,
            opening if opening in shared else None,
        )
        for row, opening in zip(rows, openings, strict=True)
    ]


def _opening(messages: Sequence[Message]) -> str:
    first = next((place for place, message in enumerate(messages) if message["role"] == "user"), len(messages))
    return content_hash(messages[: first + 1])


def _read(source: str, how: PromptOptions, note: Note) -> list[HeldOut]:
    rows: list[HeldOut] = []
    left_out: Counter[str] = Counter()
    bad: list[str] = []
    seen: Counter[str] = Counter()
    count = 0
    with open_prompts(source, how) as prompts:
        for prompt in prompts():
            count += 1
            if isinstance(prompt, BadRow):
                bad.append(str(prompt))
                continue
            try:
                rows.append(_row(prompt, seen))
            except LeftOut as why:
                left_out[why.reason] += 1
    if not count:
        raise InputError(source, None, "holds no row.")
    for line in bad[:SHOWN]:
        note(line)
    if len(bad) > SHOWN:
        note(f"and {len(bad) - SHOWN:,} more rows of {source} that cannot be read")
    for reason, times in left_out.items():
        note(f"{times:,} of {count:,} rows of {source} left out: {reason}")
    return rows


def _row(prompt: Prompt, seen: Counter[str]) -> HeldOut:
    """Raises LeftOut."""
    messages = template_messages(prompt.messages)
    reference = content_text(prompt.answer[0].get("content")).strip() if prompt.answer else ""
    if not reference:
        raise LeftOut(NO_REFERENCE)
    tools = tool_schemas(prompt.metadata.get("tools"))
    ended = prompt.metadata.get("finish_reason") != "length"
    try:
        name = work_key([messages, tools, reference, ended])
    except TypeError:  # arguments that are nested too deeply, or hold numbers of more than 64 bits
        raise LeftOut(BAD_CALL) from None
    occurrence, seen[name] = seen[name], seen[name] + 1
    key = work_key([name, occurrence])[:16]
    return HeldOut(key, content_hash(messages), prompt.place, messages, tools, reference, ended)


def _untrained(rows: list[HeldOut], options: Evaluate, models: Sequence[Named], note: Note) -> list[HeldOut]:
    """The rows that no model was trained on. Raises UsageError when there are others, without --drop-trained."""
    trained = _trained_on(models, note)
    known: dict[str, Path] = {each: run for run, hashes in trained.items() for each in hashes}
    found = [row for row in rows if row.content in known]
    if not found:
        return rows
    by = ", ".join(sorted({str(known[row.content]) for row in found}))
    places = ", ".join(row.place for row in found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
    said = f"{len(found):,} of {len(rows):,} rows of {options.data} were trained on ({by}): {places}"
    if len(found) == len(rows):
        raise UsageError(f"{said}. None is left. Give rows that no model was trained on.")
    if not options.drop_trained:
        raise UsageError(
            f"{said}. A model knows their answers, so they show nothing. Give other rows, or leave these out with "
            "--drop-trained."
        )
    note(f"{said}; they are left out")
    return [row for row in rows if row.content not in known]


def _trained_on(models: Sequence[Named], note: Note) -> dict[Path, frozenset[str]]:
    """What the runs of these models were trained on, and the runs that these began from."""
    found: dict[Path, frozenset[str]] = {}
    unknown = [model.name for model in models if model.run is None and model.role in ("student", "checkpoint")]
    if unknown:
        note(f"{', '.join(unknown)}: in no run's folder, so rows cannot be compared with what it was trained on")
    waiting = [model.run for model in models if model.run is not None]
    while waiting:
        run = waiting.pop(0)
        if run in found:
            continue
        hashes = read_trained_on(run)
        if hashes is None:
            note(f"{run} does not say what it was trained on, so no row could be compared with that")
        found[run] = hashes or frozenset()
        if lost := runs.lost_beginning(run):
            note(lost)
        begun = runs.begun_from(run)
        before = runs.run_of(Path(begun).expanduser()) if begun else None
        if before is not None:
            waiting.append(before)
    return found


def _student_run(models: Sequence[Named]) -> Path | None:
    """The run whose held-out rows are taken: the first student's, else that of a checkpoint."""
    for role in ("student", "checkpoint"):
        for model in models:
            if model.role == role and model.run is not None:
                return model.run
    return None


def _note_choice(rows: Sequence[HeldOut], models: Sequence[Named], note: Note) -> None:
    """Say so when a run chose its best/ by how well it did on these rows."""
    contents = {row.content for row in rows}
    for model in models:
        place = model.adapter or model.folder
        if model.run is None or place is None or place.name != "best" or not (model.run / HELD_OUT).exists():
            continue
        chosen_by = {row.content for row in _read(str(model.run / HELD_OUT), PromptOptions(), lambda _: None)}
        if contents & chosen_by:
            note(f"{place}: best/ was chosen on these rows: its figures are a little too good; give --data")


# ---- answers ---------------------------------------------------------------------------------------------------


def answer_held_out(
    named: Named,
    lm: "CachedLM",
    rows: Sequence[HeldOut],
    options: Evaluate,
    run: Run,
    note: Note | None = None,
    *,
    chat: bool = True,
) -> Answered:
    """A model's greedy answers to the prompts, and how near they come to the references.

    lm: the model as lm-eval asks it.   note: gets what a reader of the report must know.
    chat: prompts are put into the model's own chat template, as in training; else they are a plain transcript, as they
    are where it has none.

    A prompt that a chat template refuses, or that the model gives no answer to, is an item that the model could not
    be measured on (see `lm.not_measured`).
    """
    note = note or run.progress.note
    requests, asked, refused = requests_of(named, lm, rows, options, chat)
    if refused:
        note(f"{named.name}: {len(refused):,} held-out prompts are refused, such as {refused[0]}")
    if chat and lm.tokenizer is not None and (instead := chat_side(lm.tokenizer).note):
        note(f"{named.name}: {instead}")
    said: list[str] = [Broken()] * len(rows)
    figures = [dict.fromkeys((metric.name for metric in METRICS), math.nan) for _ in rows]
    for place, answer in zip(asked, lm.generate_until(requests) if requests else [], strict=True):
        said[place] = answer
        if not broken(answer):
            figures[place] = score(answer, rows[place].reference)
    scored = [Scored(metric, [each[metric.name] for each in figures]) for metric in METRICS]
    return Answered(named.name, TASK, questions(rows), scored, said)


def requests_of(
    named: Named, lm: "CachedLM", rows: Sequence[HeldOut], options: Evaluate, chat: bool
) -> "tuple[list[Instance], list[int], list[str]]":
    """(what the model is asked, the places of these rows, why the others cannot be asked)."""
    from lm_eval.api.instance import Instance

    requests: list[Instance] = []
    asked: list[int] = []
    refused: list[str] = []
    for place, row in enumerate(rows):
        try:
            text, until = prompted(named, lm, row, chat)
        except UsageError as error:
            refused.append(f"{row.place}: {error}")
            continue
        asked.append(place)
        settings = {"until": until, "max_gen_toks": options.max_new_tokens, "do_sample": False}
        requests.append(Instance("generate_until", {}, (text, settings), 0, (TASK, place, 1)))
    return requests, asked, refused


def prompted(named: Named, lm: "CachedLM", row: HeldOut, chat: bool = True) -> tuple[str, list[str]]:
    """(the prompt as the model reads it, the texts that end its answer). Raises UsageError when it is refused."""
    if lm.tokenizer is None:  # it is told messages
        if row.tools or any(message.get("tool_calls") for message in row.messages):
            raise UsageError(
                f"{named.path} is asked through {named.backend}, to which rows with tools are not sent yet"
            )
        return lm.apply_chat_template(row.messages), []
    side = chat_side(lm.tokenizer)
    ends = [side.token_bytes.pieces[end].decode(errors="replace") for end in side.ends]
    if named.info.chat_template is None or not chat:
        ends.append(ROLE_LINE)
    return side.prompt_text(row.messages, row.tools) if chat else plain(row.messages), ends


def plain(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as a transcript, up to where the assistant is to speak."""
    said = [PLAIN.format(role=str(each["role"]).capitalize(), content=each["content"]) for each in messages]
    return "".join([*said, "### Assistant:\n"])


@lru_cache(maxsize=8)
def chat_side(tokenizer: Any) -> ChatSide:
    """A tokenizer and its chat template, as training reads them. Made once for each tokenizer."""
    return ChatSide(tokenizer)
