"""From paid answers to records: what is asked next for a slot, and what becomes of what was said.

Everything here follows from the answers in the order in which they came. A run that was killed reads its book of paid
answers, and stands where it stood.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..commands.generate_synthetic import GenerateSynthetic
from ..data.keys import work_key
from ..data.tags import reasoned
from ..generation.filters import Filters
from ..quality.language import language_of
from ..quality.near_duplicates import NearDuplicates
from ..quality.repetition import repetition
from ..teachers import Completion, Message
from ..teachers.answer_book import Paid
from . import prompts
from .domain import Domain
from .output import problem_with
from .plan import Plan
from .problems import is_right
from .reading import read_question, read_turn
from .records import Draft, Problem, Record, Rejected, Slot

Role = Literal["questions", "answers", "reviews"]
NOT_ANSWERED = ("refused_by_provider", "content_filter", "empty_answer")
"""Reasons of a request without an answer that say something about this draft: another one is tried."""

KEPT = "kept"
"""What the book says of an answer that was good. (Of others: the reason why not.)"""


@dataclass(frozen=True)
class Request:
    """What a model is to be asked. key: of everything that changes the answer."""

    role: Role
    messages: list[Message]
    key: str


@dataclass
class Making:
    """A slot on its way. attempt: of its draft.   conversation: what was said so far, a question first.
    paid: the answers that this draft has had.   review: what a judge said of it.   record: when it is made."""

    slot: Slot
    attempt: int = -1
    draft: Draft | None = None
    problem: Problem | None = None
    conversation: list[Message] = field(default_factory=list[Message])
    paid: list[Paid] = field(default_factory=list[Paid])
    review: dict[str, Any] | None = None
    record: Record | None = None

    @property
    def is_made_here(self) -> bool:
        """Whether the draft's question was written by no model."""
        return self.draft is not None and self.draft.problem is not None

    @property
    def role(self) -> Role:
        """Who speaks next."""
        if len(self.conversation) == 2 * self.slot.turns:
            return "reviews"
        return "answers" if self.conversation and self.conversation[-1]["role"] == "user" else "questions"


class Workshop:
    """Makes records of slots. identities: of the models and how they are asked, by role; part of every key. With
    "reviews" among them, a record is made when its review is good.   samples: further attributes of a slot's draft.

    rejected: drafts that were not kept, by reason.   barren: how many since the last record, of those whose question
    was made here (True) and of the others (False).   last: why the last draft was not kept.   on_reject: is told of
    each.
    """

    def __init__(
        self,
        options: GenerateSynthetic,
        domain: Domain,
        plan: Plan,
        identities: dict[Role, dict[str, Any]],
        samples: Callable[[int, int], dict[str, str]] | None = None,
    ) -> None:
        self.options, self.domain, self.plan, self.identities = options, domain, plan, identities
        self._samples, self._settings = samples, domain.nemo if "reviews" in identities else None
        self.questions = NearDuplicates(options.near_duplicate)
        for example in prompts.examples(domain):
            self.questions.add(example)
        self._examples = len(self.questions)
        self.filters = Filters(drop_refusals=options.drop_refusals)
        self.rejected: Counter[str] = Counter()
        self.on_reject: Callable[[Making, Rejected], None] = lambda making, why: None
        self._known: str | None = None  # what the book says of the answer in hand
        self.barren: Counter[bool] = Counter()
        self.last: Rejected | None = None

    def begin(self, slot: Slot) -> Making:
        """A slot with its first draft."""
        making = Making(slot)
        self._next_draft(making)
        return making

    def given_up(self, making: Making) -> bool:
        """Whether a slot has had all its tries."""
        return making.attempt >= self.options.tries

    def request(self, making: Making) -> Request:
        """What is asked next. The making is neither finished nor given up."""
        draft = making.draft
        assert draft is not None
        if making.role != "questions":
            messages = prompts.answer_messages(self.domain, draft, making.conversation)
        elif making.conversation:
            messages = prompts.turn_messages(self.domain, draft, making.conversation)
        else:
            messages = prompts.question_messages(self.domain, draft)
        place = [making.slot.number, making.attempt, len(making.conversation)]
        return Request(making.role, messages, work_key([self.identities[making.role], messages, place]))

    def take(self, making: Making, paid: Paid) -> str | None:
        """Go on with an answer to the last `request`: another request, a record, or another draft.

        Gives the verdict that belongs into the book: KEPT, or the reason why not. When the book is read it is not
        judged again, because what was there at the time, and what this code found, may be different then.
        """
        making.paid.append(paid)
        self._known = paid.verdict
        if self._known not in (None, KEPT) and not self._let_in(making):
            problem = Rejected(self._known, paid.completion.text)
        elif making.role == "reviews":
            problem = self._reviewed(making, paid.completion)
        elif making.role == "answers":
            problem = self._answered(making, paid.completion)
        else:
            problem = self._asked(making, paid)
        if problem is not None:
            self._reject(making, problem)
            self._next_draft(making)
        elif making.role == "reviews" and (self._settings is None or making.review is not None):
            making.record = self._record(making)
            self.barren[making.is_made_here] = 0
        return problem.reason if problem else KEPT

    def _let_in(self, making: Making) -> bool:
        """Whether --no-drop-refusals takes an answer in that was kept out: where nothing has to be asked for that."""
        return self._known == "refusal" and not self.options.drop_refusals and making.slot.turns == 1

    # ---- questions ---------------------------------------------------------------------------------------------

    def _next_draft(self, making: Making) -> None:
        """Another draft, the tries permitting. Problems that are made here are a question already."""
        while True:
            making.attempt += 1
            making.conversation, making.paid, making.problem, making.review = [], [], None, None
            if self.given_up(making):
                making.draft = None
                return
            making.draft = self.plan.draft(making.slot, making.attempt)
            making.problem = making.draft.problem
            if making.problem is None:
                if self._samples is not None:
                    making.draft = replace(making.draft, sampled=self._samples(making.slot.number, making.attempt))
                return
            making.conversation = [{"role": "user", "content": making.problem.question}]
            if not self._is_there(making.problem):
                return
            self._reject(making, Rejected("duplicate", "this problem is there already"))

    def _asked(self, making: Making, paid: Paid) -> Rejected | None:
        """A question came, the first or a later one."""
        assert making.draft is not None
        if problem := _unusable(paid.completion):
            return problem
        text = reasoned(paid.completion.text)[1]
        if making.conversation:
            turn = read_turn(text)
            if isinstance(turn, Rejected):
                return turn
            if any(turn == said["content"] for said in making.conversation):
                return Rejected("duplicate", "the same was said before in this dialogue")
            making.conversation.append({"role": "user", "content": turn})
            return self._foreign(turn)
        asked = read_question(text, making.draft, self.domain.task(making.slot).verify)
        if isinstance(asked, Rejected):
            return asked
        if problem := self._foreign(asked.question):
            return problem
        if self._known != KEPT and (twin := self._twin(asked.question)):
            return twin
        self.questions.add(asked.question)
        making.problem = asked.problem
        making.conversation.append({"role": "user", "content": asked.question})
        return None

    def _twin(self, question: str) -> Rejected | None:
        """Whether a question is like one that is there, or like an example."""
        twin = self.questions.find(question)
        if twin is None:
            return None
        kind = "duplicate" if twin.similarity >= 1 else "near_duplicate"
        return Rejected("echo" if twin.number < self._examples else kind, question)

    def _foreign(self, text: str) -> Rejected | None:
        wanted = self.domain.language
        if wanted == "any" or self._known == KEPT or (found := language_of(text)) in (None, wanted):
            return None
        return Rejected("other_language", f"{found}, not {wanted}: {text}")

    # ---- answers -----------------------------------------------------------------------------------------------

    def _answered(self, making: Making, completion: Completion) -> Rejected | None:
        """An answer came."""
        if problem := _unusable(completion):
            return problem
        text = reasoned(completion.text)[1].strip()
        if not text:
            return Rejected("empty", "nothing but reasoning")
        if self.filters.reject(text, "stop", completion.refusal) is not None:
            return Rejected("refusal", text)
        if self._known != KEPT and (problem := self._fault(making, text)):
            return problem
        if making.is_made_here and making.problem:  # it is in the set from now on
            self.questions.add(making.problem.question)
        making.conversation.append({"role": "assistant", "content": text})
        return None

    def _fault(self, making: Making, text: str) -> Rejected | None:
        """What is wrong with an answer in words."""
        if problem := self._foreign(text):
            return problem
        if loop := repetition(text):
            return Rejected("repetitive", loop)
        if making.problem is not None:
            if making.is_made_here and self._is_there(making.problem):
                return Rejected("duplicate", "this problem is there already")
            if not is_right(making.problem, text):
                return Rejected("wrong_answer", f"expected {making.problem.expected}: {text}")
        output = self.domain.task(making.slot).output
        if output is not None and (fault := problem_with(output, text)):
            return Rejected("schema", fault)
        return None

    def _is_there(self, problem: Problem) -> bool:
        twin = self.questions.find(problem.question)
        return twin is not None and twin.similarity >= 1

    def _reviewed(self, making: Making, completion: Completion) -> Rejected | None:
        """A review came: of data-designer's judges and validators."""
        from .nemo import read_review

        if problem := _unusable(completion):
            return problem
        assert self._settings is not None
        making.review, problem = read_review(self._settings, completion.text)
        return problem

    def _record(self, making: Making) -> Record:
        said = making.paid if making.review is None else making.paid[:-1]
        draft, slot, last = making.draft, making.slot, said[-1]
        assert draft is not None
        usage = [paid.completion.usage for paid in making.paid]
        costs = [paid.cost_usd for paid in making.paid]
        asked = next((paid.teacher for paid in said if paid.teacher != last.teacher), last.teacher)
        metadata: dict[str, Any] = {
            "dataset_type": slot.type,
            **slot.fields,
            "attributes": draft.attributes,
            "teacher": last.teacher,
            "question_model": None if draft.problem else asked,
            "id": last.key,
            "index": slot.number,
            "attempt": making.attempt,
            "finish_reason": last.completion.finish_reason,
            "usage": {
                "prompt_tokens": sum(each.prompt_tokens for each in usage),
                "completion_tokens": sum(each.completion_tokens for each in usage),
            },
            "cost": None if None in costs else sum(cost for cost in costs if cost is not None),
        }
        if problem := making.problem:
            metadata |= {"expected_answer": problem.expected, "verify": problem.verify}
            if problem.verify == "countdown":
                metadata |= {"numbers": list(problem.numbers), "target": problem.target}
        if draft.sampled:
            metadata["sampled"] = draft.sampled
        metadata |= making.review or {}
        if draft.passage is not None:
            metadata["passage"] = {"place": draft.passage.place, "text": draft.passage.text}
        return Record(slot, prompts.row_messages(self.domain, draft, making.conversation), metadata)

    def _reject(self, making: Making, why: Rejected) -> None:
        self.last = why
        self.rejected[why.reason] += 1
        self.barren[making.is_made_here] += 1
        self.on_reject(making, why)


def _unusable(completion: Completion) -> Rejected | None:
    """What makes an answer useless, whatever it was to be."""
    if completion.finish_reason in NOT_ANSWERED:
        return Rejected(completion.finish_reason, "the model gave no answer")
    if completion.finish_reason == "length":
        return Rejected("truncated", completion.text)
    if not completion.text.strip():
        return Rejected("empty", "an empty answer")
    return None
