"""How varied questions are that SmolLM2 writes: from `generate_synthetic`'s drafts, and from the same prompt for ever.

    python -m tests.bench.experiment_synthetic [--temperature 0.5] [--tokens 9000] [--seeds 0] [--threads 1]

Only questions are compared, at equal numbers of tokens that the model generated for them: answering costs the same for
every question that is kept, and 135M parameters answer so badly that checks of answers would say more of the model than
of the method. Who answers is perfect here, and costs nothing; nobody is asked for the calculation that solves a
question. At most 96 tokens a reply.

    ours            the preset `general`, slot after slot, as the command does it: drafts, reading, rejection of near
                    duplicates and other languages. Without problems that are made here, which cost nothing, and with
                    dialogues of one turn.
    ours_unsifted   the same with what was rejected for being like another one: what the drafts do alone
    naive           one prompt for each of the three types, drawn by the same shares; every reply that ended counts
    fields          the same with a prompt that also says the task and its difficulty, the domain, or the category,
                    drawn by the same weights, as the on-policy document's generator does it

Replies that are there are not asked for again (--work): the experiment may be stopped and started, and goes on with
more --tokens. Prints the table. Leaves
with 0 when distinct-2 is higher and near duplicates are fewer in ours than in naive, with intervals apart.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from core.commands.generate_synthetic import TYPES, GenerateSynthetic
from core.data.keys import work_key
from core.data.overlap import words
from core.data.statistics import wilson
from core.quality.words import words as compared_words
from core.synthetic.domain import Domain, load_domain
from core.synthetic.making import KEPT, Workshop
from core.synthetic.measures import Measures
from core.synthetic.plan import Plan, evenness
from core.synthetic.reading import Asked, read_question
from core.synthetic.records import Draft, Record, Slot
from core.synthetic.voices import Voice, open_voices
from core.teachers import Completion, Message, Usage
from core.teachers.answer_book import Paid

from .harness import finish, load

MOST_TOKENS = 96
ALIKE = 0.7
"""Jaccard similarity of the word pairs from which a question is a near duplicate, as by default; exact here."""
NAIVE = {
    "reasoning": "Write a question that needs reasoning. Reply with the question only.",
    "dialogue": "Write a message of a user to an assistant. Reply with the message only.",
    "instruction": "Write an instruction for an assistant. Reply with the instruction only.",
}
FIELDS = {
    "reasoning": "Write a {difficulty} {task_type} question that needs reasoning. Reply with the question only.",
    "dialogue": "Write a message of a user to an assistant for {domain}. Reply with the message only.",
    "instruction": "Write an instruction for an assistant: {category}, {subcategory}. Reply with the instruction only.",
}
ARMS = ("ours", "ours_unsifted", "naive", "fields")
TWIN = ("duplicate", "near_duplicate")
REPLICATES = 1000
Row = dict[str, Any]


# ---- runs ----------------------------------------------------------------------------------------------------------


def asked_domain() -> Domain:
    """The preset, of questions that a model writes, one to a record, and without the calculation that solves them."""
    domain = load_domain("general")
    reasoning = [task.model_copy(update={"verify": "none"}) for task in domain.reasoning if not task.is_made_here]
    dialogue = [task.model_copy(update={"turns": {1: 1.0}}) for task in domain.dialogue]
    return domain.model_copy(update={"reasoning": reasoning, "dialogue": dialogue})


@dataclass
class Speaker:
    """The model. said: its replies in an earlier run of the same kind, which are not asked for again."""

    voice: Voice
    said: deque[Row]

    async def reply(self, messages: list[Message], key: str) -> Completion:
        """What it says to the request that comes next; the same for the same key."""
        if not self.said:
            return await self.voice.teacher.complete(
                messages, replace(self.voice.sampling, seed=int(key[-8:], 16) >> 1)
            )
        row = self.said.popleft()
        if row["key"] != key:
            raise RuntimeError("The replies in --work are to other requests. Choose another folder.")
        return Completion(row["text"], row["finish_reason"], usage=Usage(row["prompt_tokens"], row["tokens"]))


async def write_runs(options: argparse.Namespace) -> None:
    """A file of replies for each method and seed."""
    asked = GenerateSynthetic.model_validate(
        {
            **{"model": "smollm2", "backend": "gguf", "threads": options.threads, "near_duplicate": ALIKE},
            **{"question_temperature": options.temperature, "question_max_tokens": MOST_TOKENS},
        }
    )
    voices = await open_voices(asked, asked_domain())
    try:
        await voices["questions"].teacher.prepare(print)
        for seed, method in itertools.product(options.seeds, options.methods):
            path = file_of(options, method, seed)
            part = path.with_suffix(".part")
            if len(read_rows(part)) > len(read_rows(path)):
                part.replace(path)
            rows, spent = read_rows(path), 0
            if sum(row["tokens"] for row in rows) >= options.tokens:
                continue
            speaker = Speaker(voices["questions"], deque(rows))
            prompts = {"naive": NAIVE, "fields": FIELDS}.get(method)
            replies = naive(prompts, speaker, seed) if prompts else ours(asked, voices.identities, speaker, seed)
            with part.open("w", encoding="utf-8") as file:
                async for row in replies:
                    file.write(json.dumps(row) + "\n")
                    if not speaker.said:
                        file.flush()
                    spent += row["tokens"]
                    if spent >= options.tokens:
                        break
            part.replace(path)
            print(f"{method}, seed {seed}: {spent:,} tokens; load {load()}", flush=True)
    finally:
        await voices.aclose()


def file_of(options: argparse.Namespace, method: str, seed: int) -> Path:
    return options.work / f"{method}-{options.temperature}-{seed}.jsonl"


def read_rows(path: Path) -> list[Row]:
    """Of an earlier run, the last line of which may be torn."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


async def ours(options: GenerateSynthetic, identities: Any, speaker: Speaker, seed: int) -> AsyncIterator[Row]:
    """Replies for one slot after the other, without end, and what became of them."""
    domain = asked_domain()
    plan = Plan(domain, seed, domain.shares(None), ())
    workshop = Workshop(options, domain, plan, identities)
    for number in itertools.count():
        making = workshop.begin(plan.slot(number))
        while making.record is None and not workshop.given_up(making):
            request, draft = workshop.request(making), making.draft
            assert draft is not None
            if request.role == "answers":
                workshop.take(making, Paid(request.key, "perfect", Completion("This is the answer.", "stop"), 0.0))
                assert making.record, workshop.last
                continue
            said = await speaker.reply(request.messages, request.key)
            verdict = workshop.take(making, Paid(request.key, "smollm2", said, 0.0))
            yield row_of(request.key, draft, said, "" if verdict == KEPT else str(verdict))


async def naive(prompts: dict[str, str], speaker: Speaker, seed: int) -> AsyncIterator[Row]:
    """Replies to the prompt of a kind that is drawn anew each time, without end."""
    domain, chance = asked_domain(), random.Random(seed)

    def drawn(weights: dict[Any, float]) -> Any:
        return chance.choices(list(weights), list(weights.values()))[0]

    for number in itertools.count():
        kind = drawn(dict(zip(TYPES, domain.shares(None), strict=True)))
        tasks = domain.tasks(kind)
        at = drawn({at: task.weight for at, task in enumerate(tasks)})
        if kind == "reasoning":
            fields = {"task_type": tasks[at].name, "difficulty": drawn(dict(domain.difficulty))}
        elif kind == "dialogue":
            fields = {"domain": tasks[at].name}
        else:
            fields = {"category": tasks[at].name, "subcategory": drawn(dict(tasks[at].subcategories))}
        prompt = prompts[kind].format(**{name: value.replace("_", " ") for name, value in fields.items()})
        fields = fields if prompts is FIELDS else {}
        key = work_key([seed, number])
        said = await speaker.reply([{"role": "user", "content": prompt}], key)
        yield row_of(key, Draft(Slot(number, kind, at, fields), 0, {}), said, "")


def row_of(key: str, draft: Draft, said: Completion, reason: str) -> Row:
    """A reply as it is kept. question: as the reader finds it, None where it finds none or the reply was cut off.
    reason: why ours did not keep it."""
    read = read_question(said.text, draft, "none") if said.finish_reason == "stop" else None
    slot = draft.slot
    return {
        **{"key": key, "number": slot.number, "type": slot.type, "task": slot.task, "fields": slot.fields},
        **{"attributes": draft.attributes, "text": said.text, "finish_reason": said.finish_reason, "reason": reason},
        **{"question": read.question if isinstance(read, Asked) else None},
        **{"tokens": said.usage.completion_tokens, "prompt_tokens": said.usage.prompt_tokens},
    }


# ---- measures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What an arm makes of a run. rows: all replies.   texts: the question of each, None where it has none."""

    rows: list[Row]
    texts: list[str | None]

    @cached_property
    def kept(self) -> list[int]:
        """Places of rows with a question."""
        return [place for place, text in enumerate(self.texts) if text]

    @cached_property
    def words(self) -> dict[int, list[str]]:
        return {place: words(self.texts[place] or "") for place in self.kept}

    @cached_property
    def likeness(self) -> dict[tuple[int, int], float]:
        """(later, earlier) -> Jaccard similarity of their pairs of words, where it reaches ALIKE."""
        pairs = {
            place: set(itertools.pairwise(["", *compared_words(self.texts[place] or ""), ""])) for place in self.kept
        }
        found: dict[tuple[int, int], float] = {}
        for earlier, later in itertools.combinations(self.kept, 2):
            one, other = pairs[earlier], pairs[later]
            if (similarity := len(one & other) / len(one | other)) >= ALIKE:
                found[later, earlier] = similarity
        return found

    def records(self, count: int) -> Iterator[Record]:
        """The first of those kept."""
        for row in (self.rows[place] for place in self.kept[:count]):
            slot = Slot(row["number"], row["type"], row["task"], row["fields"])
            yield Record(slot, [{"role": "user", "content": row["text"]}], {"attributes": row["attributes"]})


def run_of(every: Sequence[Row], arm: str, tokens: int) -> Run:
    """What an arm makes of the replies up to so many tokens."""
    before = itertools.accumulate((row["tokens"] for row in every), initial=0)
    rows = [row for row, spent in zip(every, before, strict=False) if spent < tokens]
    if not arm.startswith("ours"):
        return Run(rows, [row["text"].strip() if row["finish_reason"] == "stop" else None for row in rows])
    kept = ("",) if arm == "ours" else ("", *TWIN)
    return Run(rows, [row["question"] if row["reason"] in kept else None for row in rows])


def distinct(run: Run, chance: random.Random, count: int, n: int) -> float:
    """Different runs of n words over all, in `count` words of questions drawn without replacement."""
    found: list[tuple[str, ...]] = []
    left = count
    for place in chance.sample(run.kept, len(run.kept)):
        said = run.words[place][:left]
        left -= len(said)
        found += zip(*(said[start:] for start in range(n)), strict=False)
        if not left:
            break
    return len(set(found)) / len(found)


def repeated(runs: Sequence[Run], count: int, least: float) -> tuple[float, float, float]:
    """Share of the first `count` questions of each run that are like an earlier one, and Wilson's 95 % interval: where
    none is, resampling would tell nothing of what one has not met."""
    found = sum(
        len({later for (later, _), similarity in run.likeness.items() if similarity >= least} & set(run.kept[:count]))
        for run in runs
    )
    every = count * len(runs)
    return found / every, *wilson(found, every)


def new_per_1000(run: Run, chance: random.Random) -> float:
    """Questions that are like no earlier one, for 1,000 tokens that were generated; rows drawn with replacement."""
    twins = {later for later, _ in run.likeness}
    new = [bool(text) and place not in twins for place, text in enumerate(run.texts)]
    drawn = chance.choices(range(len(run.rows)), k=len(run.rows))
    return 1000 * sum(new[place] for place in drawn) / sum(run.rows[place]["tokens"] for place in drawn)


def interval(runs: Sequence[Run], measure: Callable[[Run, random.Random], float]) -> tuple[float, float, float]:
    """Mean over the runs of what is measured on random parts of each, and between which 95 % of the parts lie."""
    found: list[float] = []
    for replicate in range(REPLICATES):
        chance = random.Random(replicate)
        found.append(statistics.fmean(measure(run, chance) for run in runs))
    found.sort()
    return statistics.fmean(found), found[round(0.025 * REPLICATES)], found[round(0.975 * REPLICATES) - 1]


def balance(run: Run, count: int) -> dict[str, float]:
    """Evenness of the first questions that were kept (`plan.evenness`); of topics, only where some were drawn."""
    domain = asked_domain()
    measures = Measures(domain, run.records(count))
    shares: dict[str, float] = dict(zip(TYPES, domain.shares(None), strict=True))
    return {"type": round(evenness(measures.by_type, shares), 4), **measures.balance}


def table(options: argparse.Namespace) -> dict[str, Any]:
    """Every measure of every arm, and the criteria."""
    runs: dict[str, list[Run]] = {}
    for arm in (arm for arm in ARMS if arm.partition("_")[0] in options.methods):
        every = [read_rows(file_of(options, arm.partition("_")[0], seed)) for seed in options.seeds]
        runs[arm] = [run_of(rows, arm, options.tokens) for rows in every]
    every_run = [run for of in runs.values() for run in of]
    # Parts of half of the smallest: drawn without replacement, halves spread as wide about their mean as wholes about
    # theirs, where resampling with replacement would make duplicates. Smaller parts of the others spread wider.
    most_words = min(sum(map(len, run.words.values())) for run in every_run) // 2
    most_questions = min(len(run.kept) for run in every_run)
    measures: dict[str, Callable[[Run, random.Random], float]] = {
        "distinct_1": lambda run, chance: distinct(run, chance, most_words, 1),
        "distinct_2": lambda run, chance: distinct(run, chance, most_words, 2),
        "new_per_1000_tokens": new_per_1000,
    }
    found: dict[str, Any] = {
        **{"seeds": options.seeds, "temperature": options.temperature, "words_of_distinct": most_words},
        **{"questions_of_duplicates_and_balance": most_questions},
    }
    for arm, of in runs.items():
        said: dict[str, Any] = {
            "replies": sum(len(run.rows) for run in of),
            "questions": sum(len(run.kept) for run in of),
            "that_the_reader_takes": sum(row["question"] is not None for run in of for row in run.rows),
            "tokens": sum(row["tokens"] for run in of for row in run.rows),
            "prompt_tokens": sum(row["prompt_tokens"] for run in of for row in run.rows),
            "words_a_question": round(statistics.fmean(len(each) for run in of for each in run.words.values()), 1),
        }
        said |= {name: [round(each, 4) for each in interval(of, measure)] for name, measure in measures.items()}
        for name, least in (("near_duplicates", ALIKE), ("equal", 1.0)):
            said[name] = [round(each, 4) for each in repeated(of, most_questions, least)]
        even = [balance(run, most_questions) for run in of]
        said["evenness"] = {
            name: round(statistics.fmean(each[name] for each in even), 4)
            for name in even[0]
            if all(name in each for each in even)
        }
        reasons = [row["reason"] for run in of for row in run.rows if row["reason"]]
        if reasons:
            said["not_kept"] = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
        found[arm] = said
    mine, theirs = found["ours"], found["naive"]
    found["criteria"] = {
        "distinct-2 above naive's, intervals apart": mine["distinct_2"][1] > theirs["distinct_2"][2],
        "near duplicates below naive's, intervals apart": mine["near_duplicates"][2] < theirs["near_duplicates"][1],
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="naive,ours,fields", help="naive and ours at least")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--tokens", type=int, default=9000, help="generated for questions, in each run")
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/experiment_synthetic"))
    options = parser.parse_args()
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    options.methods = options.methods.split(",")
    options.work.mkdir(parents=True, exist_ok=True)
    asyncio.run(write_runs(options))
    finish(table(options))


if __name__ == "__main__":
    main()
