"""What a server can be asked for training: found out before the first step, said in words, priced, and chosen by name.

A server may say that it scores and not do so, swallow a prefill, answer from replicas that differ, or scale its
log-probabilities. Whatever is not seen here is not relied upon.
"""

from __future__ import annotations

import math
import os
import select
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from ..commands.train_gold import TeacherMode
from ..data.stop import Stop
from ..data.text import one_line
from ..errors import (
    BudgetReached,
    MissingDependency,
    StoppedEarly,
    TeacherError,
    TeacherUnavailable,
    TransientError,
    UsageError,
)
from .api_answers import parse_answer
from .asker import Question
from .chat_teacher import ChatTeacher, Graded, PrefillTest
from .judging import RUBRIC, Pair, overhead_bytes
from .providers import PROVIDERS
from .scorer import KNOWN, Noise, ScoreRequest

if TYPE_CHECKING:
    from ..commands.train_gold import TrainGold
    from .api_scorer import ApiScorer
    from .protocol import Price
    from .providers import Protocol
    from .remote import Remote

T = TypeVar("T")

MODES: tuple[TeacherMode, ...] = get_args(TeacherMode)
"""Best first."""
MEANING: dict[TeacherMode, str] = {
    "score": "the teacher scores every token of the student's answers",
    "probe": "the teacher's next token at a few positions of each answer of the student's",
    "teacher-text": "the teacher answers, and its own log-probabilities train the student (off-policy)",
    "judge": "the teacher grades whole answers of the student's, a weak and noisy signal",
}
EVERYTHING = "all"
"""Asked of `examine` instead of a mode, by who wants to know what there is."""
NOISE_KL = 0.1
"""Nats per token between two scorings of one text from which on score is refused, whoever the student is: one that was
trained is that near to its teacher. Against the distance of a run's own student, noise is held when that is known."""
NOISE_NATS = 1.0
"""The same for probe, as the largest difference of any alternative's log-probability."""
SAME_NATS = 0.02
"""Below that, two log-probabilities are the same but for the rounding of a server's number format."""


UNREACHABLE = ("connection", "authentication", "not_an_api", "redirect")
"""Reasons of `TeacherUnavailable` that are about the address and the key, whatever is asked."""


# ---- what was seen -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scoring:
    """How a server scores a given text.

    alternatives: the fewest that it told of any token.   follows_temperature: whether its log-probabilities are those
    after the temperature of the request.
    """

    protocol: Protocol
    alternatives: int
    noise: Noise
    follows_temperature: bool


@dataclass(frozen=True)
class Chatting:
    """What a server tells of the tokens that it writes.

    alternatives: how many come with each token; 0 without log-probabilities.   noise: the largest difference of a
    log-probability between two askings, nats.   prefill: whether it goes on with a begun answer.
    """

    alternatives: int
    noise: float | None
    follows_temperature: bool | None
    prefill: PrefillTest | None


@dataclass(frozen=True)
class Ability:
    """What was seen of a server.

    modes: those that work, best first.   reasons: why each of the others does not.   scoring, chatting: None where
    nothing came of it.   requests, spent_usd: what it took to find out.
    """

    backend: str
    model: str
    endpoint: str
    modes: tuple[TeacherMode, ...]
    reasons: Mapping[TeacherMode, str] = field(default_factory=dict[TeacherMode, str])
    scoring: Scoring | None = None
    chatting: Chatting | None = None
    price: Price | None = None
    requests: int = 0
    spent_usd: float = 0.0

    def lines(self) -> list[str]:
        """For people, as the lines of a plan."""
        lines = [("server", f"{self.model} at {self.endpoint} ({self.backend})")]
        if self.scoring is not None:
            told = self.scoring
            lines.append(
                ("scoring", f"given texts, {told.alternatives} tokens told of each position ({told.protocol})")
            )
            lines.append(("noise", str(told.noise)))
            lines.append(("temperature", _temperature(told.follows_temperature)))
        if self.chatting is not None:
            chat = self.chatting
            lines.append(("chat", f"{chat.alternatives or 'no'} alternatives told of each token that it writes"))
            if chat.noise is not None:
                lines.append(("", f"asking again changes a log-probability by {chat.noise:.2g} nats at most"))
            if chat.follows_temperature is not None and self.scoring is None:
                lines.append(("temperature", _temperature(chat.follows_temperature)))
            if chat.prefill is not None:
                lines.append(("prefill", chat.prefill.words))
        if self.price is not None:
            prompt, completion = self.price.prompt * 1e6, self.price.completion * 1e6
            source = self.price.source
            lines.append(
                ("price", f"{prompt:g} / {completion:g} USD per million prompt / completion tokens ({source})")
            )
        lines.append(("modes", ", ".join(self.modes) or "none works"))
        lines += [(f"not {mode}", reason) for mode, reason in self.reasons.items()]
        lines.append(("test", f"{self.requests} requests, {self.spent_usd:.4f} USD"))
        return [f"{name:<22}{text}" for name, text in lines]

    @property
    def json(self) -> dict[str, Any]:
        return asdict(self)


def _temperature(follows: bool) -> str:
    if follows:
        return "log-probabilities are after the temperature of the request; 1 is sent, so that they are the model's own"
    return "log-probabilities are before the temperature: the model's own"


# ---- the test ------------------------------------------------------------------------------------------------------


def examine(
    remote: Remote,
    *,
    tokenizer: str | None,
    top_k: int,
    accept_noise: bool = False,
    asked: str | None = None,
    rubric: str | None = None,
    pairwise: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Ability:
    """Ask a server a few small things, past the cache, to see what it can be asked for.

    tokenizer, top_k: as for `ApiScorer`.   accept_noise: noise is told, and no reason against a mode.
    asked: --teacher-mode. What it leaves no choice of is not tested: a server that scores is asked nothing about its
        chat, and a weaker mode that is named is tested alone. EVERYTHING tests them all.
    rubric, pairwise: what the judge is going to be asked; rubric: None for the built-in one.
    Raises UsageError for a server that cannot be reached, refuses the key, or is no API; StoppedEarly when money has
    run out. Everything else is a reason why a mode does not work.
    """
    requests, spent_usd = remote.asker.requests, remote.asker.spending.bound
    note(f"testing what {remote.model} at {remote.client.endpoint} can be asked: a few small requests")
    _reach(remote)
    reasons: dict[TeacherMode, str] = {}
    scoring = chatting = None
    named = asked if asked in ("probe", "teacher-text", "judge") else None
    chat = ChatTeacher(remote, rubric=rubric)
    if named is None:
        scoring = _tried(remote.name, "score", reasons, lambda: _scoring(remote, tokenizer, top_k, note))
        reasons |= _noisy(scoring, accept_noise)
    scores = named is None and "score" not in reasons and asked != EVERYTHING
    if not scores and named != "judge":
        chatting = _tried(remote.name, "probe", reasons, lambda: _chatting(chat))
        if "probe" in reasons:
            reasons["teacher-text"] = reasons["probe"]
        reasons |= _weak(chatting, accept_noise)
    if not scores and named in (None, "judge"):
        _tried(remote.name, "judge", reasons, lambda: _judging(chat, pairwise, plain=rubric is None))
    for mode in _untested(named, scores=scores):
        reasons[mode] = f"not tested, since {f'--teacher-mode {named} is asked for' if named else 'score works'}"
    return Ability(
        remote.backend,
        remote.model,
        remote.client.endpoint,
        tuple(mode for mode in MODES if mode not in reasons),
        {mode: reasons[mode] for mode in MODES if mode in reasons},
        scoring,
        chatting,
        remote.price,
        remote.asker.requests - requests,
        remote.asker.spending.bound - spent_usd,
    )


def _untested(named: str | None, *, scores: bool) -> tuple[TeacherMode, ...]:
    """The modes that `examine` asked nothing about."""
    if scores:
        return ("probe", "teacher-text", "judge")
    if named is None:
        return ()
    return ("score", "probe", "teacher-text") if named == "judge" else ("score", "judge")


def _tried(name: str, mode: TeacherMode, reasons: dict[TeacherMode, str], test: Callable[[], T]) -> T | None:
    """What a test found; None, with the reason, where the server did not take part."""
    try:
        return test()
    except BudgetReached:
        raise  # that says nothing of the server
    except (TeacherError, UsageError) as error:
        if isinstance(error, TeacherError) and error.reason == "over_budget":
            raise BudgetReached(f"--max-cost is too low to test {name}: {error}") from None
        reasons[mode] = one_line(str(error), 400)
    except ModuleNotFoundError as missing:
        reasons[mode] = str(MissingDependency(str(missing.name), "scoring", "train"))
    except StoppedEarly as error:
        cause = error.__cause__
        if isinstance(cause, TeacherUnavailable) and cause.reason in UNREACHABLE:
            raise UsageError(str(error)) from None
        if isinstance(cause, TeacherUnavailable) and not cause.usage:
            raise  # out of money, out of quota: later it may work
        reasons[mode] = one_line(str(error), 400)
    return None


def _reach(remote: Remote) -> None:
    """Say hello. Raises UsageError where nobody answers, or the key is refused: no test would find out more."""
    body: dict[str, Any] = {"model": remote.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}

    async def hello(body: dict[str, Any]) -> float | None:
        try:
            answer = parse_answer(*await remote.client.post("/chat/completions", body | dict(remote.extra_body)), 1)
        except TeacherUnavailable as error:
            raise remote.client.told(error) from None
        except TransientError as error:
            if error.reason == "connection" and not error.billed:  # nobody is there; one that broke is tried again
                raise TeacherUnavailable("connection", _nobody(error), usage=True) from None
            raise remote.client.told(error) from None
        except TeacherError as error:  # a server that only scores, a model that takes no max_tokens, ...
            return error.cost_usd or 0.0
        return remote.cost_usd(answer.usage, answer.cost_usd)

    worst_usd = remote.worst_usd(100, 1)
    reasons: dict[TeacherMode, str] = {}
    question = Question[dict[str, Any], float | None](hello, lambda cost: cost, lambda body: worst_usd)
    found = _tried(remote.name, "judge", reasons, lambda: remote.asker.ask([body], question))
    for error in found or ():
        if isinstance(error, TransientError) and error.reason == "connection":  # after all retries
            raise UsageError(_nobody(error))


def _nobody(error: TeacherError) -> str:
    return f"{error}. Is the server running, and is the address (--teacher-base-url, TEACHER_BASE_URL) right?"


def _scoring(remote: Remote, tokenizer: str | None, top_k: int, note: Callable[[str], None]) -> Scoring:
    """Raises TeacherError or UsageError where it cannot score."""
    if remote.provider.scoring is None:
        theirs = remote.provider.hosted and remote.client.endpoint == remote.provider.url
        raise UsageError(
            f"the API of {remote.backend} tells log-probabilities of what it writes itself, never of a given text"
            + ("" if theirs else ". If the server is vLLM or SGLang: --teacher-backend vllm or sglang")
        )
    from .api_scorer import ApiScorer

    scorer = ApiScorer(remote, top_k=top_k, tokenizer=tokenizer)
    scorer.prepare(note)
    noise = scorer.self_test()
    plain, cooled = (_known(scorer, temperature) for temperature in (1.0, 0.5))
    alternatives = 0
    if plain.top_ids is not None:
        alternatives = int((plain.top_ids >= 0).sum(-1).min())
    gap = (plain.picked_logprobs - cooled.picked_logprobs).abs().max().item()
    return Scoring(remote.provider.scoring, alternatives, noise, gap > max(SAME_NATS, 3 * noise.again))


def _known(scorer: ApiScorer, temperature: float) -> Any:
    prompt, rest = (scorer.tokenizer.encode(text, add_special_tokens=False) for text in KNOWN)
    if scorer.context_tokens is not None:
        rest = rest[: max(0, scorer.context_tokens - len(prompt))]
    return scorer.fresh([ScoreRequest(prompt, rest)], temperature=temperature)[0]


def _chatting(chat: ChatTeacher) -> Chatting:
    alternatives = chat.tells()
    if not alternatives:
        return Chatting(0, None, None, None)
    return Chatting(alternatives, chat.noise(), chat.temperature_matters(), chat.continues())


QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
GOOD, BAD = "The capital of France is Paris.", "Bananas bananas, 7 is a Tuesday."


def _judging(chat: ChatTeacher, pairwise: bool, *, plain: bool) -> None:
    """Raises TeacherError or UsageError for a judge whose verdicts cannot be read, or say nothing. plain: by our own
    rubric; by the user's, nonsense may well be the better answer."""
    verdicts = (
        chat.compare([Pair(QUESTION, GOOD, BAD)], fresh=True)
        if pairwise
        else chat.grade([Graded(QUESTION, answer) for answer in (GOOD, BAD)], fresh=True)
    )
    read: list[float] = []
    for verdict in verdicts:
        if isinstance(verdict, TeacherError):
            raise verdict
        read.append(verdict)
    if not plain:
        return
    if pairwise and read[0] <= 0.5:
        found = "worse than nonsense" if read[0] < 0.5 else "no better than nonsense, or contradicts itself"
        raise UsageError(f"as a judge it finds a right answer {found}: its verdicts teach nothing")
    if not pairwise and read[0] <= read[1]:
        raise UsageError(
            f"as a judge it grades a right answer {read[0]:.2f} and nonsense {read[1]:.2f} (of 1): its grades teach "
            "nothing"
        )


WAY_OUT = "Use one replica of your own, or --accept-noise"


def _noisy(scoring: Scoring | None, accept_noise: bool) -> dict[TeacherMode, str]:
    """Why scores are not enough to train from."""
    if scoring is None or accept_noise:
        return {}
    noise = scoring.noise
    kl = noise.kl if noise.kl is not None else max(noise.again, noise.among_others) ** 2 / 2
    if kl <= NOISE_KL:
        return {}
    return {
        "score": f"two scorings of one text differ by a KL of {kl:.2g} nats per token, more than {NOISE_KL:g}, which "
        f"is all that there may be to learn. {WAY_OUT}"
    }


def _weak(chatting: Chatting | None, accept_noise: bool) -> dict[TeacherMode, str]:
    """Why what is told of an answer is not enough for a mode."""
    reasons: dict[TeacherMode, str] = {}
    if chatting is None:
        return reasons
    if not chatting.alternatives:
        told = "it tells no log-probabilities"
        reasons["probe"], reasons["teacher-text"] = told, f"{told}. generate_teacher_data and train_sft need none"
        return reasons
    if chatting.prefill is not None and not chatting.prefill.passed:
        reasons["probe"] = f"it does not go on with a begun answer: {chatting.prefill.words}"
    elif chatting.noise is not None and chatting.noise > NOISE_NATS and not accept_noise:
        reasons["probe"] = (
            f"asked twice, it changes a log-probability by {chatting.noise:.2g} nats, more than {NOISE_NATS:g}. "
            f"{WAY_OUT}"
        )
    return reasons


# ---- what it costs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepCost:
    """Estimates, nothing of it taken from the cache. requests, tokens and USD of a step; `in_all`: of the whole run
    with its validations. USD: None where no price is known."""

    mode: TeacherMode
    requests: float
    prompt_tokens: float
    completion_tokens: float
    usd: float | None
    requests_in_all: float
    usd_in_all: float | None
    hosted: bool = True
    """False for a server of one's own."""

    @property
    def of_a_step(self) -> str:
        """In words."""
        each = self.prompt_tokens / max(1.0, self.requests)
        asked = f"{self.requests:,.0f} requests of about {each:,.0f} tokens a step"
        if self.usd is None:
            return f"{asked}, {'price not known' if self.hosted else 'its own server, no price'}"
        return f"{asked}, about {self.usd:.2g} USD"

    @property
    def words(self) -> str:
        """A step and the run."""
        usd = "" if self.usd_in_all is None else f", about {self.usd_in_all:.2f} USD"
        return f"{self.of_a_step}; {self.requests_in_all:,.0f} requests in all{usd}"

    def __str__(self) -> str:
        return f"{self.mode}: {self.words}"


@dataclass(frozen=True)
class Load:
    """What a run asks its teacher about, as means. prompt_tokens, answer_tokens: of one sample.   prompts: to train on.
    held_out: samples that are measured at each validation; held_out_answers: those that the data has an answer for."""

    prompt_tokens: float
    answer_tokens: float
    prompts: int
    held_out: int = 0
    held_out_answers: int = 0


VERDICT_TOKENS, BYTES_PER_TOKEN = 60, 4
"""What a judge writes, about: a sentence or two and a number; and how its instructions become tokens."""


def cost_of_step(mode: TeacherMode, options: TrainGold, load: Load, price: Price | None) -> StepCost:
    """What a step of a mode asks of the teacher, and the run in all."""
    prompt, answer = load.prompt_tokens, load.answer_tokens
    validations = 0 if not load.held_out else 1 + math.ceil(options.max_steps / options.eval_every)
    own, given = validations * load.held_out, load.held_out_answers  # what is asked again comes from the cache
    samples = options.batch_size * options.max_steps
    requests, prompt_tokens, completion_tokens = 1.0, prompt + answer, 1.0  # of a sample
    in_all = samples + own + given
    if mode == "probe":
        requests = min(float(options.probe_positions), answer + 1)
        prompt_tokens, completion_tokens = requests * (prompt + answer / 2), requests
    elif mode == "teacher-text":  # one answer for each prompt, however often it is trained on
        prompt_tokens, completion_tokens = prompt, answer
        in_all = min(samples, load.prompts) + load.held_out
    elif mode == "judge":
        pairwise = options.judge == "pairwise"
        rubric_tokens = overhead_bytes(options.rubric or RUBRIC, pairwise=pairwise) / BYTES_PER_TOKEN
        if pairwise:  # every two of a group in both orders, shared out among its answers
            requests = float(options.judge_group - 1)
        prompt_tokens = requests * (rubric_tokens + prompt + (2 if pairwise else 1) * answer)
        completion_tokens = requests * VERDICT_TOKENS
        measured = 2 * validations * load.held_out_answers / requests if pairwise else own
        in_all = samples + measured
    usd = None if price is None else price.cost(prompt_tokens, completion_tokens)
    rows = options.batch_size
    return StepCost(
        mode,
        requests * rows,
        prompt_tokens * rows,
        completion_tokens * rows,
        None if usd is None else usd * rows,
        requests * in_all,
        None if usd is None else usd * in_all,
        hosted=PROVIDERS[options.backend].hosted,
    )


# ---- the choice ----------------------------------------------------------------------------------------------------

ASKED_TIMES = 3


def choose_mode(
    asked: str | None,
    ability: Ability,
    costs: Mapping[TeacherMode, StepCost],
    *,
    ask: Callable[[str], str | None] | None = None,
    stop: Stop | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> TeacherMode:
    """The mode of a run; never a weaker one than scores unless the user has named it, or "auto".

    costs: of the modes that work.   ask: shows a question to the user and gives the answer, None where nobody is there
    (by default the terminal, or a line of standard input).   stop: ends the waiting for it.
    Raises UsageError where nothing works, for a mode that does not, and where nobody can be asked.
    """
    if asked not in (None, "auto"):
        for mode in ability.modes:
            if mode == asked:
                return mode
        reason = next((reason for mode, reason in ability.reasons.items() if mode == asked), "no such mode")
        others = _list(ability, costs) if ability.modes else f"Of the others:\n{_list_reasons(ability, besides=asked)}"
        raise UsageError(f"--teacher-mode {asked} does not work with {ability.model}: {reason.rstrip('.')}.\n{others}")
    if not ability.modes:
        raise UsageError(f"{ability.model} at {ability.endpoint} cannot teach:\n{_list_reasons(ability)}")
    best = ability.modes[0]
    if asked == "auto":
        note(f"teacher mode {best} (auto): {_offer(best, costs)}")
        return best
    if best == "score":
        return best
    weaker = f"{ability.model} at {ability.endpoint} cannot score the student's answers:\n{_list_reasons(ability)}"
    question = f"{weaker}\n{_list(ability, costs)}\nWhich one? [{best}] "
    for _ in range(ASKED_TIMES):
        said = ask(question) if ask is not None else ask_terminal(question, stop or Stop())
        if said is None:
            break
        for number, mode in enumerate(ability.modes, 1):
            if said.strip().lower() in (mode, str(number)) or (not said.strip() and mode == best):
                note(f"teacher mode {mode} (chosen by you)")
                return mode
        question = f"{said.strip()!r} is none of them. Which one: {', '.join(ability.modes)}? [{best}] "
    raise UsageError(
        f"{weaker}\n{_list(ability, costs)}\nA weaker mode is never chosen silently. Add the one you want: "
        f"--teacher-mode {best}, or the line TEACHER_MODE={best} in .env."
    )


def _list(ability: Ability, costs: Mapping[TeacherMode, StepCost]) -> str:
    lines = [f"  {number}  {mode}: {_offer(mode, costs)}" for number, mode in enumerate(ability.modes, 1)]
    return "\n".join(["What works:", *lines])


def _list_reasons(ability: Ability, besides: str | None = None) -> str:
    return "\n".join(f"  {mode}: {reason}" for mode, reason in ability.reasons.items() if mode != besides)


def _offer(mode: TeacherMode, costs: Mapping[TeacherMode, StepCost]) -> str:
    return MEANING[mode] + (f"; {costs[mode].words}" if mode in costs else "")


def ask_terminal(question: str, stop: Stop) -> str | None:
    """The line that the user types, or that waits on standard input; None where there is none.

    Raises KeyboardInterrupt when the user asks to stop instead: a read that waits would not notice.
    """
    try:
        source = sys.stdin.fileno()
        waits = sys.stdin.isatty()
        if not (waits or _readable(source)):
            return None  # nobody has written anything, and nobody may ever do so
        line = b"" if waits else os.read(source, 1)
        if not (waits or line):
            return None  # its end: whoever asks says all of this again in the error
        print(question, end="", file=sys.stderr, flush=True)
        while not line.endswith(b"\n"):
            while not _readable(source):
                stop.check()
            if not (character := os.read(source, 1)):
                break
            line += character
    except (AttributeError, OSError, ValueError):  # no standard input at all
        return None
    return line.decode(errors="replace").rstrip("\r\n") if line else None


def _readable(source: int) -> bool:
    """Whether something is to be read, an end too, now or in a moment."""
    return bool(select.select([source], [], [], 0.2)[0])
