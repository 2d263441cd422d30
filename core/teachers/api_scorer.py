"""A server as a scorer: the k most probable tokens of every position and the token that is there, for a price."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..distillation.token_bytes import TokenBytes
from ..errors import (
    ModelNotFound,
    RequestRejected,
    StoppedEarly,
    TeacherError,
    TeacherUnavailable,
    TransientError,
    UsageError,
)
from .asker import Question
from .openai_api import merged
from .providers import PROVIDERS, Protocol
from .remote import Remote
from .score_cache import cache_key, decode_scores, encode_scores
from .score_cache import settled as settled_scores
from .scorer import KNOWN, Ability, Noise, ScoreRequest, TeacherScores, check_requests, measure_noise
from .scoring_wire import Echo, Fireworks, Scored, Sglang, Told, Vllm, Wire
from .teacher_tokens import TeacherTokens
from .tokenizer_loading import find, read

LONGER = "Shorten the prompts or --max-new-tokens, or start the server with a longer context."
WIRES: dict[str, type[Wire]] = {"vllm": Vllm, "echo": Echo, "sglang": Sglang}
"""By the name of the `Protocol`."""
CONTEXT = ("max_model_len", "context_length", "max_context_length")
"""What servers call the length of the context in their list of models (vLLM and SGLang; Together; Fireworks)."""

Result = TeacherScores | TeacherError


class ApiScorer:
    """A `Scorer` over HTTP. Everything that it is told goes through the cache of `remote`, where that has one."""

    def __init__(
        self,
        remote: Remote,
        *,
        top_k: int,
        tokenizer: str | None,
        batch_size: int = 1,
        protocol: Protocol | None = None,
    ) -> None:
        """tokenizer: where the teacher's tokenizer is; by default found by the model's name.

        batch_size: texts in one request.   protocol: how to ask; by default as the provider is asked.
        Raises UsageError for a provider that cannot score.
        """
        chosen = protocol or remote.provider.scoring
        if chosen is None:
            able = ", ".join(name for name, provider in PROVIDERS.items() if provider.scoring)
            raise UsageError(
                f"{remote.backend} tells only the probabilities of tokens that it writes itself, so that it cannot "
                f"score the student's text. These can: {able}."
            )
        self._remote, self._top_k, self._batch_size, self._protocol = remote, top_k, batch_size, chosen
        self._tokenizer_name = tokenizer or remote.model
        self.backend, self.model = remote.backend, remote.model
        self.ability: Ability = "top_k" if top_k else "sampled"
        self.identity: dict[str, Any] = {**remote.identity, "protocol": chosen, "top_k": top_k}
        self.context_tokens: int | None = None
        self._agreed = False  # an answer has shown that the server reads as our tokenizer does

    def prepare(self, note: Callable[[str], None]) -> None:
        """Load the tokenizer, ask for the length of the context. Raises UsageError."""
        name = self._tokenizer_name
        try:
            self.tokenizer = read(find(name, note), name)
        except ModelNotFound as error:
            raise ModelNotFound(
                f"a server is asked in the ids of its model's tokenizer. {error} Name a model, a folder or a "
                "tokenizer.json with --teacher-tokenizer."
            ) from None
        self.tokenizer.name_or_path = name  # messages name what was asked for, not a folder of the cache
        names = TeacherTokens(
            TokenBytes(self.tokenizer),
            self.tokenizer.get_vocab(),
            self.tokenizer.bos_token_id,
            lambda text: self.tokenizer(text)["input_ids"],
        )
        self.width = names.width
        wire = Fireworks if self._protocol == "echo" and self.backend == "fireworks" else WIRES[self._protocol]
        self._wire = wire(names, self._top_k)
        listed = self._remote.asker.run(self._remote.client.get("/models")).result()
        self.context_tokens = _context(listed, self.model)

    # ---- scoring

    def score(self, batch: Sequence[ScoreRequest]) -> list[TeacherScores]:
        """See `Scorer`. Raises StoppedEarly, too, for a text that got no answer however often it was asked."""
        check_requests(batch, self.width, self.context_tokens, LONGER)
        return _all(self.score_or_not(batch))

    def score_or_not(self, batch: Sequence[ScoreRequest]) -> list[Result]:
        """The scores of each text, or why there are none.

        Raises StoppedEarly when no more can be asked: the budget, the key, another tokenizer than the server's.
        """
        return self._results(batch, 1.0, cached=True)

    def fresh(self, batch: Sequence[ScoreRequest], *, temperature: float = 1.0) -> list[TeacherScores]:
        """Scores that the server computes now: nothing is read from the cache or written there.

        temperature: of the request, which should make no difference.
        """
        check_requests(batch, self.width, self.context_tokens, LONGER)
        return _all(self._results(batch, temperature, cached=False))

    def _results(self, batch: Sequence[ScoreRequest], temperature: float, *, cached: bool) -> list[Result]:
        cache = self._remote.cache if cached else None
        settled: dict[bytes, Result] = {}
        keys: list[bytes] = []
        waiting: dict[bytes, ScoreRequest] = {}  # texts that are there twice are asked once
        for request in batch:
            prompt, completion = list(request.prompt_ids), list(request.completion_ids)
            # The tokenizer turns ids into what is sent and names into ids.
            asked = self._remote.identity, self._protocol, self._top_k, self._wire.names.table.digest
            key = cache_key("score", *asked, prompt, completion)
            keys.append(key)
            if key in settled or key in waiting:
                continue
            try:
                check_requests([request], self.width, self.context_tokens, LONGER)
            except RequestRejected as error:
                settled[key] = error
                continue
            if not completion:
                settled[key] = self._scores(request, None)
                continue
            known = None if cache is None else cache.get(key)
            if known is not None:
                settled[key] = decode_scores(known, completion)
                continue
            try:
                self._wire.check(request)
            except RequestRejected as error:
                settled[key] = error
                continue
            waiting[key] = request

        groups = list(self._groups(waiting))
        again: list[Group] = []  # texts to be asked alone

        def answered(group: "Group", told: Told) -> None:
            for (key, request), scored in zip(group, told.scores, strict=True):
                if isinstance(scored, TransientError):  # of one among several: a text alone raises it
                    again.append([(key, request)])
                    continue
                if isinstance(scored, TeacherError):
                    settled[key] = scored
                    continue
                scores = self._scores(request, scored)
                if cache is not None:
                    kept = encode_scores(scores)
                    cache.put(key, kept, tokens=scores.tokens)
                    scores = decode_scores(kept, request.completion_ids)  # the same bits, asked or found
                elif cached:
                    scores = settled_scores(scores)  # ... and kept or not
                settled[key] = scores

        question = Question[Group, Told](
            attempt=lambda group: self._attempt([request for _, request in group], temperature),
            cost_usd=lambda told: self._remote.cost_usd(told.usage, told.cost_usd),
            worst_usd=self._worst_usd,
            answered=answered,
        )
        while groups:
            answers = self._remote.asker.ask(groups, question)
            for group, answer in zip(groups, answers, strict=True):
                if not isinstance(answer, TeacherError):
                    continue
                if len(group) > 1 and _of_one(answer):  # one bad text makes a server refuse all that came with it
                    again += [[one] for one in group]
                else:
                    settled |= {key: answer for key, _ in group}
            groups = again.copy()
            again.clear()
        return [settled[key] for key in keys]

    async def _attempt(self, texts: list[ScoreRequest], temperature: float) -> Told:
        """One request. Raises TeacherError; for a text alone also what is wrong with it."""
        check = not self._agreed
        try:
            told = await self._told(texts, temperature, check=check)
            if check and self._wire.collapsed(told):
                told = (await self._told(texts, temperature, check=False)).besides(told.usage)
            if not self._agreed:
                self._judge(told)
            if len(texts) == 1 and isinstance(told.scores[0], TeacherError):
                error = told.scores[0]
                error.billed, error.cost_usd = True, self._remote.cost_usd(told.usage, told.cost_usd)
                raise error
        except TeacherError as error:
            raise self._remote.client.told(self._explained(error, texts)) from None
        return told

    async def _told(self, texts: list[ScoreRequest], temperature: float, *, check: bool) -> Told:
        body = merged(self._wire.body(self.model, texts, temperature, check=check), self._remote.extra_body)
        reply = await self._remote.client.post(self._wire.path, body, root=self._wire.root)
        return self._wire.told(reply, texts, check=check)

    def _judge(self, told: Told) -> None:
        """The first answers show whose tokenizer the server has. Raises TeacherUnavailable."""
        for scored in told.scores:
            if isinstance(scored, Scored):
                self._agreed = True
            elif isinstance(scored, TeacherError) and scored.reason == "other_tokenizer" and not self._agreed:
                raise self._other_tokenizer(scored)

    def _other_tokenizer(self, because: TeacherError) -> TeacherUnavailable:
        return TeacherUnavailable(
            "other_tokenizer",
            f"the server has another tokenizer than {self._tokenizer_name}: {str(because).rstrip('.')}. Name that of "
            f"{self.model} with --teacher-tokenizer.",
            usage=True,
        )

    def _explained(self, error: TeacherError, texts: Sequence[ScoreRequest]) -> TeacherError:
        """A server's cap on k, with the option that heeds it; ids that it does not have, with the tokenizer's; an
        answer that is too large, with what makes it so."""
        if error.reason == "too_large":
            longest = max(text.tokens for text in texts)
            return RequestRejected(
                "too_large",
                f"{str(error).rstrip('.')}, here to {len(texts)} texts of up to {longest:,} tokens, {self._top_k} most "
                "probable ones at each. Lower --teacher-top-k or --max-new-tokens, or shorten the prompts.",
                billed=error.billed,
                cost_usd=error.cost_usd,
            )
        if isinstance(error, RequestRejected) and not self._agreed and "out of vocabulary" in str(error).lower():
            return self._other_tokenizer(error)
        if isinstance(error, RequestRejected) and error.reason == "invalid_request" and "logprob" in str(error).lower():
            cap = re.search(r"--max-logprobs|max allowed", str(error))
            more = f", or start vLLM with --max-logprobs {self._top_k}" if cap or self._protocol == "vllm" else ""
            return RequestRejected("top_k_limit", f"{error}. Lower --teacher-top-k (now {self._top_k}){more}")
        return error

    def _groups(self, waiting: "dict[bytes, ScoreRequest]") -> "Iterator[Group]":
        """Texts of like length together: the longest one makes the others wait."""
        items = list(waiting.items())
        if self._batch_size > 1:
            items.sort(key=lambda item: item[1].tokens)
        for start in range(0, len(items), self._batch_size):
            yield items[start : start + self._batch_size]

    def _worst_usd(self, group: "Group") -> float:
        """A BOS that the server adds, and the token that it writes, among what is paid."""
        return self._remote.worst_usd(sum(request.tokens + 1 for _, request in group), len(group))

    def _scores(self, request: ScoreRequest, scored: Scored | None) -> TeacherScores:
        """None: of an empty completion."""
        completion = tuple(request.completion_ids)
        picked = torch.zeros(0) if scored is None else torch.from_numpy(scored.picked)
        if self.ability == "sampled":
            return TeacherScores("sampled", completion, picked)
        if scored is None:
            none = torch.zeros(0, self._top_k)
            return TeacherScores("top_k", completion, picked, none.long(), none)
        return TeacherScores(
            "top_k", completion, picked, torch.from_numpy(scored.ids), torch.from_numpy(scored.logprobs)
        )

    # ---- the rest of a Scorer

    @property
    def server(self) -> str:
        """For messages."""
        return self._remote.name

    def self_test(self) -> Noise:
        """See `Scorer`. Raises UsageError, also for a server whose answers belong to the token before."""
        noise = measure_noise(self.fresh, self._encode, self.context_tokens)
        self._test_places()
        return noise

    def _test_places(self) -> None:
        """llama-cpp-python says of a token what belongs to the next one, when a text does not begin with BOS."""
        if self.ability == "sampled":
            return
        if self.tokenizer.chat_template:
            said = [{"role": "user", "content": KNOWN[0]}]
            prompt = self.tokenizer.apply_chat_template(
                said, add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
        else:
            bos = self.tokenizer.bos_token_id
            prompt = [*([] if bos is None else [bos]), *self._encode(KNOWN[0])]
        room = None if self.context_tokens is None else max(0, self.context_tokens - len(prompt))
        completion = self._encode(KNOWN[1])[:room]
        best = self.fresh([ScoreRequest(prompt, completion)])[0].top(1)[0][:, 0]
        tokens = torch.tensor(completion)
        right, next_one = int((best == tokens).sum()), int((best[:-1] == tokens[1:]).sum())
        if next_one > max(3 * right, len(completion) // 4):  # half of them are right where nothing is shifted
            raise UsageError(
                f"the self-test of the teacher failed: of {len(completion)} known tokens {right} are the most "
                f"probable ones where the server names them, and {next_one} one place before. Its log-probabilities "
                "belong to the next token: llama-cpp-python does that with texts that do not begin with BOS."
            )

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def close(self) -> None:
        """The server belongs to whoever opened it."""


Group = list[tuple[bytes, ScoreRequest]]
"""Texts of one request, each with its key."""


def _all(results: Sequence[Result]) -> list[TeacherScores]:
    """Raises what the first text without scores lacks them for."""
    scores: list[TeacherScores] = []
    for row, result in enumerate(results):
        if isinstance(result, RequestRejected):
            raise RequestRejected(result.reason, f"row {row}: {result}", row=row)
        if isinstance(result, TeacherError):
            raise StoppedEarly(f"row {row} got no answer: {result}. The same command goes on.")
        scores.append(result)
    return scores


def _of_one(error: TeacherError) -> bool:
    """Whether one text of several may be the cause. A server that is busy or gone is so for each of them."""
    return isinstance(error, RequestRejected) and error.reason not in ("top_k_limit", "over_budget", "not_found")


def _context(listed: Any, model: str) -> int | None:
    """Most tokens of a text, less the one that a server must be let write; None when it does not say."""
    rows = listed.get("data") if isinstance(listed, dict) else listed
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("id") == model:
            told = next((row[name] for name in CONTEXT if isinstance(row.get(name), int)), None)
            return told - 1 if told else None
    return None
