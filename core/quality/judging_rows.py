"""What a judge says of the rows: it grades the answers that are there, and holds them against the teacher's new ones.

A judge favours a place (Zheng et al., arXiv:2306.05685), so two answers are shown in both orders, and only a verdict
that both have in common counts. A verdict that cannot be read is none: it is counted, never guessed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..commands.check_data import Measured
from ..errors import InputError, RequestRejected, TeacherError
from ..teachers import Completion
from ..teachers.judging import (
    BETTER,
    RUBRIC,
    SCORE,
    THINKING_TOKENS,
    VERDICT_TOKENS,
    Graded,
    Pair,
    compare_prompt,
    grade_prompt,
    read_choice,
    read_score,
    score_share,
    settled_choice,
)
from .asking import Asking, Estimate, Question, Respondent
from .teaching import Sample, greedy, mean, why_not

Verdict = float | TeacherError


@dataclass
class Judged:
    """What became of the verdicts. asked: rows that were shown, for a grade or a comparison.   unreadable: of these,
    what the judge said in words that hold no verdict.   failed: what it said nothing of."""

    asked: int = 0
    unreadable: int = 0
    failed: int = 0

    def count(self, verdict: Verdict) -> None:
        """One more row."""
        self.asked += 1
        if isinstance(verdict, TeacherError):
            self.unreadable += verdict.reason == "unreadable_verdict"
            self.failed += verdict.reason != "unreadable_verdict"

    @property
    def notes(self) -> list[str]:
        """For a report."""
        notes: list[str] = []
        if self.unreadable:
            notes.append(
                f"judge: {self.unreadable:,} of {self.asked:,} verdicts could not be read and count for nothing"
            )
        if self.failed:
            notes.append(f"judge: {self.failed:,} of {self.asked:,} verdicts did not come")
        return notes


def read_rubric(path: Path | None) -> str:
    """What counts, in words: the file's, or the default. Raises InputError for a file that says nothing."""
    if path is None:
        return RUBRIC
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(path, None, f"the rubric cannot be read: {why}.") from None
    if not text.strip():
        raise InputError(path, None, "the rubric is empty. Say in words what a good answer is, or leave out --rubric.")
    return text


async def grade_and_compare(
    samples: Sequence[Sample], asking: Asking, judge: Respondent, rubric: str = RUBRIC
) -> Judged:
    """Let the judge grade the answers of the rows (judge_score of `results.ShownRow`, 0 to 1) and, where the teacher
    has given a new one, compare the two (judge_choice: 1 the row's, 0 the new one, 0.5 a tie, or the order decided).

    Answers that are equal are a tie, and not asked. Raises as `Asking.ask`.
    """
    judged = Judged()
    grades = await _verdicts([_grade(sample, rubric) for sample in samples], read_score, asking, judge)
    for sample, verdict in zip(samples, grades, strict=True):
        judged.count(verdict)
        if isinstance(verdict, TeacherError):
            sample.shown.notes.append(why_not("no grade", verdict))
        else:
            sample.shown.judge_score = score_share(verdict)
    pairs = [sample for sample in samples if sample.shown.new_answer is not None]
    for sample in pairs:
        if _equal(sample):
            sample.shown.judge_choice = 0.5
    pairs = [sample for sample in pairs if not _equal(sample)]
    questions = [_comparison(sample, rubric, swapped=swapped) for sample in pairs for swapped in (False, True)]
    verdicts = await _verdicts(questions, read_choice, asking, judge)
    for sample, first, second in zip(pairs, verdicts[::2], verdicts[1::2], strict=True):
        verdict = _settled(first, second)
        judged.count(verdict)
        if isinstance(verdict, TeacherError):
            sample.shown.notes.append(why_not("not compared", verdict))
        else:
            sample.shown.judge_choice = verdict
    return judged


def _settled(first: Verdict, second: Verdict) -> Verdict:
    """first: when the row's answer is A.   second: when it is B."""
    if isinstance(first, TeacherError):
        return first
    return second if isinstance(second, TeacherError) else settled_choice(first, 1.0 - second)


def estimate(
    samples: Sequence[Sample], asking: Asking, judge: Respondent, rubric: str, new_tokens: int | None
) -> Estimate:
    """What `grade_and_compare` would cost, as far as the teacher's new answers are there; of others at most
    `new_tokens` tokens are counted, and none are compared where that is None. A judge that thinks first costs more."""
    sampling = greedy(VERDICT_TOKENS)
    found = asking.estimate(judge, _readable([_grade(sample, rubric) for sample in samples]), sampling)
    if new_tokens is None:
        return found
    known = [sample for sample in samples if sample.shown.new_answer is not None and not _equal(sample)]
    unknown = [sample for sample in samples if sample.shown.new_answer is None]
    for some, more in ((known, 0), (unknown, new_tokens)):
        questions = [_comparison(sample, rubric, swapped=swapped) for sample in some for swapped in (False, True)]
        found += asking.estimate(judge, _readable(questions), sampling, more)
    return found


# ---- questions and verdicts --------------------------------------------------------------------------------------


def _grade(sample: Sample, rubric: str) -> Question | TeacherError:
    return _question(lambda: grade_prompt(Graded(sample.entry.messages, sample.shown.answer), rubric))


def _comparison(sample: Sample, rubric: str, *, swapped: bool) -> Question | TeacherError:
    """The row's answer is A, or B when they are swapped."""
    pair = Pair(sample.entry.messages, sample.shown.answer, sample.shown.new_answer or "")
    if swapped:
        pair = replace(pair, first=pair.second, second=pair.first)
    return _question(lambda: compare_prompt(pair, rubric))


def _question(prompt: Callable[[], str]) -> Question | TeacherError:
    try:
        return Question([{"role": "user", "content": prompt()}])
    except RequestRejected as error:  # more than text
        return error


def _readable(questions: Sequence[Question | TeacherError]) -> list[Question]:
    return [question for question in questions if isinstance(question, Question)]


def _equal(sample: Sample) -> bool:
    return sample.shown.answer.strip() == (sample.shown.new_answer or "").strip()


async def _verdicts(
    questions: Sequence[Question | TeacherError], read: Callable[[str], float], asking: Asking, judge: Respondent
) -> list[Verdict]:
    """What the judge says of each. One that thinks, and has used up its tokens for that, is asked again with more."""
    verdicts: dict[int, Verdict] = {n: each for n, each in enumerate(questions) if isinstance(each, TeacherError)}
    asked = {n: each for n, each in enumerate(questions) if isinstance(each, Question)}
    # What was settled with more tokens in a run before must not be asked again with fewer.
    settled = asking.known(judge, list(asked.values()), greedy(THINKING_TOKENS))
    longer = {n for n, answer in zip(asked, settled, strict=True) if answer is not None}
    for tokens in (VERDICT_TOKENS, THINKING_TOKENS):
        some = [n for n in asked if (n in longer) == (tokens == THINKING_TOKENS)]
        answers = await asking.ask(judge, [asked[n] for n in some], greedy(tokens))
        verdicts |= {n: _read(answer, read) for n, answer in zip(some, answers, strict=True)}
        longer |= {n for n in some if _no_room(verdicts[n])}
    return [verdicts[n] for n in range(len(questions))]


def _read(answer: Completion | TeacherError, read: Callable[[str], float]) -> Verdict:
    """Of a text that was cut off only a verdict that is named as one counts: a bare number in it may mean anything."""
    if isinstance(answer, TeacherError):
        return answer
    if answer.finish_reason == "length" and not (SCORE.search(answer.text) or BETTER.search(answer.text)):
        reason = "no_room_for_answer" if answer.reasoning else "unreadable_verdict"
        return RequestRejected(reason, "the judge's verdict is cut off")
    try:
        return read(answer.text)
    except RequestRejected as error:
        return error


def _no_room(verdict: Verdict) -> bool:
    return isinstance(verdict, TeacherError) and verdict.reason == "no_room_for_answer"


# ---- figures -----------------------------------------------------------------------------------------------------


def opinions(samples: Sequence[Sample]) -> list[Measured]:
    """Means of judge_score and judge_win over the rows that have them; see `teaching.mean`."""
    found: list[Measured] = []
    for name, values in (
        ("judge_score", [(sample.shown.judge_score, sample.cluster) for sample in samples]),
        ("judge_win", [(sample.shown.judge_choice, sample.cluster) for sample in samples]),
    ):
        there = [(value, cluster) for value, cluster in values if value is not None]
        if there:
            found.append(mean(name, [value for value, _ in there], [cluster for _, cluster in there]))
    return found
