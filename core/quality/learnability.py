"""How probable a teacher finds the answers that are there, and how much more of a surprise they are to a student.

    check_scorer(teacher)                              before anything is paid
    with opened_scorer(teacher, "teacher", asking) as scorer:
        score_answers(samples, scorer, asking)         fills tokens, top1, teacher_nats and bytes of each row
    agreement(samples), surprise(samples)              the figures and their intervals

An answer is scored as training reads it: after the conversation in the model's own chat template, the whole text of the
message in the model's own tokens, and the token that ends the turn, unless the row says that it was cut off
(finish_reason "length"). That token counts as one more token, and as one more byte.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ..commands.check_data import Measured
from ..commands.teacher import TeacherOptions
from ..data.statistics import wilson
from ..errors import MissingDependency, RequestRejected, StoppedEarly, TeacherError, UsageError
from ..evaluation.statistics import Items
from ..teachers import backend_of
from ..teachers.engine import Limits
from ..teachers.providers import PROVIDERS
from ..teachers.scorer import Scorer, ScoreRequest, TeacherScores, open_scorer
from ..teachers.template_messages import template_messages
from .asking import Asking, Estimate
from .results import Model
from .rows import text_of
from .teaching import Sample, why_not

if TYPE_CHECKING:
    from ..distillation.chat import ChatSide
    from ..teachers.remote import Remote

Side = Literal["teacher", "student"]
SCORES = ".scores.sqlite"
"""Of a folder: what servers said of given texts."""
LOCAL = ("hf", "gguf")
TOP_K = 1
"""The first choice is all that is looked at."""
AT_ONCE = 8
"""Rows of which hidden states are held."""


@dataclass(frozen=True)
class OpenScorer:
    """A model that is ready to score. side: whose surprise it is.   at_once: rows in one call.
    model: for the report; its counts grow."""

    scorer: Scorer
    side: Side
    results: Callable[[Sequence[ScoreRequest]], list[TeacherScores | TeacherError]]
    at_once: int
    model: Model


def check_scorer(options: TeacherOptions) -> None:
    """Raises UsageError for a model that cannot be asked how probable a text is, before anything is paid."""
    backend = backend_of(options.model, options.backend, options.base_url)
    if backend in LOCAL:
        open_scorer(options, top_k=TOP_K)  # loads nothing yet
    elif PROVIDERS[backend].scoring is None:
        able = ", ".join([*LOCAL, *(name for name, provider in PROVIDERS.items() if provider.scoring)])
        own = " Is it one of these? Name it with --teacher-backend." if options.base_url else ""
        raise UsageError(
            f"--score: {options.model} through {backend} writes answers, and does not say how probable a given one is. "
            f"These do: {able}.{own} Without --score the teacher's new answers are compared all the same."
        )


@contextmanager
def opened_scorer(
    options: TeacherOptions, side: Side, asking: Asking, tokenizer: str | None = None
) -> Iterator[OpenScorer]:
    """A scorer, loaded. A server is tested before it scores the first text; what it says is kept in the folder of
    `asking`, and paid from its budget.

    tokenizer: of a server's model, where its name does not tell.
    Raises UsageError for a model that cannot be loaded.
    """
    role = "scoring teacher" if side == "teacher" else side
    note = asking.run.progress.note
    backend = backend_of(options.model, options.backend, options.base_url)
    if backend in LOCAL:
        scorer = open_scorer(options, top_k=TOP_K)
        try:
            scorer.prepare(note)
            model = Model(role=role, name=scorer.model, backend=backend, usd=0.0)
            yield OpenScorer(scorer, side, lambda requests: local_results(scorer, requests), AT_ONCE, model)
        finally:
            scorer.close()
        return
    try:
        from ..teachers.api_scorer import ApiScorer
        from ..teachers.score_cache import cache_key
    except ModuleNotFoundError as missing:
        raise MissingDependency(str(missing.name), f"scoring with {backend}", "train") from None
    with _remote(options, asking) as remote:
        server = ApiScorer(remote, top_k=TOP_K, tokenizer=tokenizer)
        server.prepare(note)
        cache = remote.cache
        assert cache is not None, "a dry run scores nothing"
        tested = cache_key("self_test", server.identity, server.tokenizer.name_or_path)
        spent_usd = asking.spending.known
        model = Model(role=role, name=server.model, backend=backend)

        def results(requests: Sequence[ScoreRequest]) -> list[TeacherScores | TeacherError]:
            if cache.get(tested) is None:
                noise = str(server.self_test())
                note(f"{role}: {noise}")
                cache.put(tested, noise.encode())
            hits = cache.hits
            found = server.score_or_not(requests)
            model.cached += cache.hits - hits
            return found

        try:
            yield OpenScorer(server, side, results, options.concurrency, model)
        finally:
            known = remote.price is not None or not remote.provider.hosted or asking.spending.known > spent_usd
            model.usd = asking.spending.known - spent_usd if known else None


@contextmanager
def _remote(options: TeacherOptions, asking: Asking) -> "Iterator[Remote]":
    """The server, under the budget of `asking`."""
    from ..teachers.remote import open_remote

    cache = None if asking.dry_run else asking.folder / SCORES
    remote = open_remote(options, asking.run.stop, cache=cache, note=asking.run.progress.note)
    try:
        remote.asker.spending = asking.spending
        remote.asker.limits = replace(
            remote.asker.limits, cheaper="raise it, or leave out --score", goes_on=Limits.goes_on
        )
        yield remote
    finally:
        remote.close()


def estimate(samples: Sequence[Sample], options: TeacherOptions, asking: Asking) -> Estimate:
    """At most what scoring costs; what was scored before is not taken off."""
    if backend_of(options.model, options.backend, options.base_url) in LOCAL:
        return Estimate(0, 0, 0.0)
    with _remote(options, asking) as remote:
        if remote.price is None:
            return Estimate(len(samples), 0, None if remote.provider.hosted else 0.0)
        # A token has at least one byte; a server may add one, and must be let write one.
        sizes = [sample.question.most_tokens + len(_stored(sample).encode()) + 2 for sample in samples]
        return Estimate(len(samples), 0, sum(remote.worst_usd(size, 1) for size in sizes))


# ---- scoring -----------------------------------------------------------------------------------------------------


def score_answers(samples: Sequence[Sample], scorer: OpenScorer, asking: Asking) -> None:
    """Score the answers of the rows. Of `results.ShownRow` it fills bytes and, from a teacher, tokens, top1 and
    teacher_nats, from a student student_nats; a row that cannot be scored gets a note instead.

    A budget that is reached, or a server that is gone, is in `asking.stopped` afterwards.
    Raises UsageError for a tokenizer that cannot be read, and a server that fails its test.
    """
    from ..distillation.chat import ChatSide

    run, chat = asking.run, ChatSide(scorer.scorer.tokenizer)
    if chat.note:
        run.progress.note(f"{scorer.side}: {chat.note}")
    texts = [(sample, text) for sample in samples if (text := _text(sample, chat, scorer))]
    run.progress.begin(f"{scorer.model.role}: {scorer.model.name}", total=len(texts), unit="answers")
    try:
        for start in range(0, len(texts), scorer.at_once):
            if asking.ended:
                break
            some = texts[start : start + scorer.at_once]
            scorer.model.requests += len(some)
            found = scorer.results([request for _, (request, _) in some])
            for (sample, (_, size)), scores in zip(some, found, strict=True):
                _take(sample, scores, size, scorer)
                run.progress.counts.done += 1
            run.progress.tick()
    except StoppedEarly as stop:
        asking.stopped = stop
    except TeacherError as error:  # the test of a server asks for no row
        asking.stopped = StoppedEarly(f"{scorer.model.name} could not be tested: {error}")
    finally:
        run.progress.end()


def _text(sample: Sample, chat: "ChatSide", scorer: OpenScorer) -> tuple[ScoreRequest, int] | None:
    """The row as the model reads it, and the bytes of its answer; None, and a note on the row, where it cannot."""
    from ..distillation.chat import Part

    room = scorer.scorer.context_tokens
    try:
        prompt = chat.prompt_ids(template_messages(sample.question.messages), sample.question.tools or None)
    except UsageError as error:  # its template refuses the conversation
        sample.shown.notes.append(f"not scored by the {scorer.side}: {error}")
        return None
    ended = sample.entry.metadata.get("finish_reason") != "length"
    ids, ends = chat.write([Part(_stored(sample).encode())], ended)
    request = ScoreRequest(prompt, ids)
    if room is not None and request.tokens > room:
        too_long = f"{request.tokens:,} tokens do not fit into its context of {room:,}"
        sample.shown.notes.append(f"not scored by the {scorer.side}: {too_long}")
        return None
    return request, int(ends[-1])


def _stored(sample: Sample) -> str:
    """The answer with its thoughts, where it has any: the text that a student learns."""
    return text_of(sample.entry.said[0])


def _take(sample: Sample, scores: TeacherScores | TeacherError, size: int, scorer: OpenScorer) -> None:
    row = sample.shown
    if isinstance(scores, TeacherError):
        row.notes.append(why_not(f"not scored by the {scorer.side}", scores))
        return
    row.bytes = size
    nats = -scores.picked_logprobs.cpu().double().sum().item()
    if scorer.side == "student":
        row.student_nats = nats
        return
    first = scores.top(1)[0][:, 0].tolist()
    row.tokens, row.teacher_nats = scores.tokens, nats
    row.top1 = sum(one == other for one, other in zip(first, scores.completion_ids, strict=True))


def local_results(scorer: Scorer, requests: Sequence[ScoreRequest]) -> list[TeacherScores | TeacherError]:
    """The scores of each request, or why there are none."""
    try:
        return [*scorer.score(requests)]
    except RequestRejected as error:
        if error.row is None:
            return [error for _ in requests]
        row = error.row
        others = local_results(scorer, [*requests[:row], *requests[row + 1 :]])
        return [*others[:row], error, *others[row:]]


# ---- figures -----------------------------------------------------------------------------------------------------


def agreement(samples: Sequence[Sample]) -> Measured | None:
    """top1_agreement: the share of the answers' tokens, ends of turns included, that are the teacher's first choice.

    The interval takes rows with one question as one: sum(top1) / sum(tokens) by the bootstrap over them (see
    `evaluation.statistics.Items`), cut at 0 and 1. Where it is 0 or 1 in all rows, Wilson's over as many trials as
    there are questions; 0 to 1 with a single one. None where nothing was scored.
    """
    there = [sample for sample in samples if sample.shown.top1 is not None and sample.shown.tokens]
    if not there:
        return None
    items = Items(
        [[sample.shown.top1 or 0 for sample in there]],
        [[sample.shown.tokens or 0 for sample in there]],
        [sample.cluster for sample in there],
    )
    found = items.score(0)
    low, high = found.low, found.high
    if items.units == 1 or low is None or high is None:
        low, high = 0.0, 1.0
    elif found.value in (0.0, 1.0):
        low, high = wilson(found.value * items.units, items.units)
    return Measured(
        name="top1_agreement",
        kind="mean",
        value=found.value,
        low=max(0.0, low),
        high=min(1.0, high),
        of=len(there),
    )


def surprise(samples: Sequence[Sample]) -> list[Measured]:
    """How unexpected the answers are, as means over the rows' texts taken together, with bootstrap intervals over rows.

    teacher_nats_per_token    in the teacher's own tokens; says nothing beside another tokenizer's.
    teacher_nats_per_byte, student_nats_per_byte
                              the same over bytes, which models with different tokenizers share (Gao et al.,
                              arXiv:2101.00027, bits per byte).
    learnability              student less teacher, in nats per byte, on the rows that both have scored, paired row by
                              row. Near 0 there is nothing to learn; much where the teacher itself is surprised is
                              noise (the idea of reducible loss: Mindermann et al., arXiv:2206.07137).

    A figure that rests on one row, or on one question, is left out: it has no interval. The row's own are in
    `results.ShownRow`.
    """
    by_teacher = [sample for sample in samples if sample.shown.teacher_nats is not None]
    by_student = [sample for sample in samples if sample.shown.student_nats is not None]
    found = [
        _ratio("teacher_nats_per_token", by_teacher, "teacher_nats", "tokens"),
        _ratio("teacher_nats_per_byte", by_teacher, "teacher_nats", "bytes"),
        _ratio("student_nats_per_byte", by_student, "student_nats", "bytes"),
        _gap([sample for sample in by_teacher if sample.shown.student_nats is not None]),
    ]
    return [each for each in found if each is not None]


def _ratio(name: str, samples: Sequence[Sample], total: str, count: str) -> Measured | None:
    if not samples:
        return None
    items = Items(
        [[getattr(sample.shown, total) for sample in samples]],
        [[getattr(sample.shown, count) for sample in samples]],
        [sample.cluster for sample in samples],
    )
    found = items.score(0)
    if found.low is None or found.high is None:
        return None
    return Measured(
        name=name, kind="mean", value=found.value, low=max(0.0, found.low), high=found.high, of=len(samples)
    )


def _gap(samples: Sequence[Sample]) -> Measured | None:
    if not samples:
        return None
    sizes = [sample.shown.bytes or 0 for sample in samples]
    items = Items(
        [
            [sample.shown.student_nats or 0.0 for sample in samples],
            [sample.shown.teacher_nats or 0.0 for sample in samples],
        ],
        [sizes, sizes],
        [sample.cluster for sample in samples],
    )
    found = items.paired(0, 1)
    if found is None:
        return None
    return Measured(name="learnability", kind="mean", value=found.value, low=found.low, high=found.high, of=items.n)
