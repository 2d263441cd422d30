"""A model for lm-eval that remembers: it is loaded only when a question is new, and each answer is kept at once."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from ..commands.evaluate import Evaluate
from ..data.run import Run
from ..errors import StoppedEarly
from ..teachers.hf_model import load_tokenizer
from ..teachers.hf_states import empty_caches, out_of_memory
from .answers import Answers, Broken, default_folder, key_of
from .batches import batch_size
from .completer_lm import CompleterLM, TeacherFailed
from .language_models import CannotScore, LanguageModel, open_language_model
from .models import Named
from .quiet import quiet
from .watch import Stopped, Watch

Kind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
INTERRUPTED = "interrupted"
ROLLING_AT_ONCE = 16
"""Texts; HFLM reports them only when all of a call are scored, and what is not reported is lost with the process."""
MOST_WITH_AUTO = 64
"""The largest batch that HFLM tries by itself."""


class CachedLM(LM):
    """One model of an evaluation, as lm-eval and our own measures ask it.

    Requests are answered task by task, with a progress bar each. A task that the model cannot do, or that was not
    finished when the user asked to stop, is in `not_measured` with the reason; its missing answers are NaN or `Broken`.
    """

    def __init__(
        self,
        name: str,
        answers: Answers,
        open_model: Callable[[], LanguageModel],
        run: Run,
        *,
        tokenizer: Any = None,
        fixed_batch: bool = False,
        seed: int = 0,
    ) -> None:
        """open_model: called once, when the first answer is missing.   tokenizer: of a Hugging Face model.
        fixed_batch: leave the model's batch size alone.   seed: of sampled answers; greedy ones do not depend on it.
        """
        super().__init__()
        self.name, self.answers, self.run, self.tokenizer = name, answers, run, tokenizer
        self.chat_template_args: dict[str, Any] = {}  # read by HFLM.apply_chat_template
        self.requests = self.cached = 0
        self.seconds = 0.0
        """Of answering; loading the model is not counted."""
        self.not_measured: dict[str, str] = {}
        """Task -> why not all of its requests were answered."""
        self.truncated: dict[str, set[int]] = {}
        """Task -> the doc_ids whose text did not fit into the model's context."""
        self._open_model, self._model = open_model, cast(LanguageModel | None, None)
        self._tokens, self._usd, self._notes = 0, cast(float | None, None), cast(list[str], [])
        """Of a model that was freed."""
        self._fixed_batch, self._seed = fixed_batch, seed
        self._hooks: list[Any] = []
        self._pending: dict[bytes, list[list[Any]]] = {}
        self._refused: dict[bytes, Any] = {}
        """Answers of this time only."""
        self._watch = Watch(run.stop)

    # ---- what lm-eval asks -------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return self._answered("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return self._answered("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Strings; `Broken` ones where the model's logits were not finite, or it gave no answer."""
        return self._answered("generate_until", requests)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As the model does it itself; it need not be loaded for that."""
        if self.tokenizer is None:
            return CompleterLM.apply_chat_template(cast(CompleterLM, self), chat_history, add_generation_prompt)
        return HFLM.apply_chat_template(cast(HFLM, self), chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return self.name

    # ---- the model ---------------------------------------------------------------------------------------------

    @property
    def model(self) -> LanguageModel:
        """The model; loaded at the first call. Raises UsageError."""
        if self._model is None:
            self.run.stop.check()
            self._model = self._open_model()
            self._model.lm.set_cache_hook(_Hook(self._got))
            if self._model.network is not None:
                self._hooks = self._watch.attach(self._model.network)
                if self.answers.get("about", ["max_length"]) is None:
                    self.answers.put("about", ["max_length"], int(cast(Any, self._model.lm).max_length))
        return self._model

    @property
    def loaded(self) -> LanguageModel | None:
        """The model, if it had to be loaded."""
        return self._model

    @property
    def tokens(self) -> int:
        """Written by the model, this time."""
        return self._tokens + (self._model.tokens if self._model else 0)

    @property
    def usd(self) -> float | None:
        """Spent, this time; None where it costs nothing or nobody tells."""
        now = self._model.usd if self._model else None
        return now if self._usd is None else self._usd + (now or 0.0)

    def free(self) -> None:
        """Give back the model's memory; it is loaded again if something is missing later."""
        for hook in self._hooks:
            hook.remove()
        if self._model is not None:
            self._tokens, self._usd, self._notes = self.tokens, self.usd, [*self._notes, *self._model.notes]
            self._model.close()
        self._hooks, self._model = [], None

    def close(self) -> None:
        """Free the model and close the journal of its answers."""
        self.free()
        self.answers.close()

    def __enter__(self) -> "CachedLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- answering ---------------------------------------------------------------------------------------------

    def missing(self, kind: Kind, requests: Sequence[Instance]) -> int:
        """How many different requests are not answered yet."""
        return len({key_of(kind, args) for args in self._args(kind, requests) if self.answers.get(kind, args) is None})

    def _answered(self, kind: Kind, requests: list[Instance]) -> list[Any]:
        values: list[Any] = [None] * len(requests)
        by_task: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            by_task.setdefault(request.task_name or kind, []).append(place)
        for task, places in by_task.items():
            for place, value in zip(places, self._task(kind, task, [requests[each] for each in places]), strict=True):
                values[place] = value
        return values

    def _task(self, kind: Kind, task: str, requests: list[Instance]) -> list[Any]:
        """Answers to the requests of one task, in their order."""
        all_args = self._args(kind, requests)
        new: dict[bytes, tuple[Instance, list[Any]]] = {}
        for request, args in zip(requests, all_args, strict=True):
            if self.answers.get(kind, args) is None:
                new.setdefault(key_of(kind, args), (request, args))
        self.requests += len(requests)
        self.cached += len(requests) - len(new)
        if self.run.stop.now:
            raise KeyboardInterrupt
        if new and self.run.stop.requested:
            self.not_measured.setdefault(task, INTERRUPTED)
        if new and task not in self.not_measured:
            progress = self.run.progress
            progress.begin(
                f"{self.name}: {task}", total=len(requests), already=len(requests) - len(new), unit="requests"
            )
            try:
                self._ask(kind, list(new.values()))
            except Stopped:
                self.not_measured[task] = INTERRUPTED
            except (CannotScore, TeacherFailed) as error:
                self.not_measured[task] = str(error)
            except AssertionError as error:  # lm-eval's way to refuse a request
                empty = "a text to be scored is empty, or longer than the model's context"
                self.not_measured[task] = f"lm-eval refused a request: {str(error) or empty}"
            finally:
                progress.end()
        self._note_truncated(kind, task, requests)
        return [_decoded(kind, self._value(kind, args)) for args in all_args]

    def _args(self, kind: Kind, requests: Sequence[Instance]) -> list[list[Any]]:
        """What each answer is kept under; that of a sampled one has the number of the draw and the seed, too."""
        seen: dict[bytes, int] = {}
        found: list[list[Any]] = []
        for request in requests:
            args = list(request.args)
            if kind == "generate_until" and _decoding(request)["do_sample"]:
                key = key_of(kind, args)
                seen[key] = seen.get(key, -1) + 1
                args += [{"draw": seen[key], "seed": self._seed}]
            found.append(args)
        return found

    def _value(self, kind: Kind, args: Sequence[Any]) -> Any:
        """An answer as it is kept; None: there is none yet."""
        kept = self.answers.get(kind, args)
        return self._refused.get(key_of(kind, args)) if kept is None else kept

    def _ask(self, kind: Kind, new: list[tuple[Instance, list[Any]]]) -> None:
        """Let the model answer, and keep what it says. Raises Stopped, CannotScore, AssertionError, StoppedEarly."""
        lm = self.model.lm
        self._choose_batch(kind, [request for request, _ in new])
        started = time.monotonic()
        try:
            while rest := [each for each in new if self._value(kind, each[1]) is None]:
                part = rest[:ROLLING_AT_ONCE] if kind == "loglikelihood_rolling" else rest
                self._pending = {}
                for request, args in part:
                    self._pending.setdefault(key_of(kind, request.args), []).append(args)
                self._watch.begin(answers=kind == "generate_until")
                try:
                    with quiet():
                        values = getattr(lm, kind)([request for request, _ in part])
                except RuntimeError as error:
                    if "probability tensor" in str(error):
                        raise CannotScore("its logits are not finite, so nothing can be drawn from them") from None
                    if not out_of_memory(error):
                        raise
                    self._halve(error)
                    continue
                for (_, args), value in zip(part, values, strict=True):
                    if self.answers.get(kind, args) is None:  # refused by an API: it is asked again another time
                        self._refused[key_of(kind, args)] = value
        finally:
            self._watch.end()
            self.seconds += time.monotonic() - started

    def _got(self, kind: Kind, args: Sequence[Any], value: Any) -> None:
        """An answer, from within the model's loop."""
        waiting = self._pending.get(key_of(kind, args))
        if waiting:
            bad = self._watch.next_is_bad() if kind == "generate_until" else False
            self._keep(kind, waiting.pop(0), Broken() if bad else value)
        if self._model is not None and self._model.network is None:
            self._watch.check()

    def _keep(self, kind: Kind, args: Sequence[Any], value: Any) -> None:
        self.answers.put(kind, args, _encoded(value))
        progress = self.run.progress
        progress.counts.done += 1
        progress.counts.tokens, progress.counts.spend_usd = self.tokens, self.usd
        progress.tick()

    # ---- batches and lengths -----------------------------------------------------------------------------------

    def _choose_batch(self, kind: Kind, requests: Sequence[Instance]) -> None:
        """As many texts at once as are worth it, for these lengths. On CUDA HFLM tries it out."""
        model = self.model
        if self._fixed_batch or model.network is None or model.network.device.type == "cuda":
            return
        texts = [_text(kind, request) for request in requests]
        longest = max(len(self._tokens_of(text)) for text in sorted(texts, key=len)[-8:])
        if kind == "generate_until":
            longest += max(_decoding(request)["max_gen_toks"] for request in requests)
        vocabulary = model.network.config.get_text_config().vocab_size
        lm: Any = model.lm
        length = min(longest, lm.max_length)
        size = batch_size("generate" if kind == "generate_until" else "score", length, vocabulary)
        lm.batch_size_per_gpu = size
        model.batch_size = max(model.batch_size or 1, size)

    def _halve(self, error: RuntimeError) -> None:
        """Half the batch after memory ran out. Raises StoppedEarly when it is one text already."""
        lm: Any = self.model.lm
        size = lm.batch_size_per_gpu if isinstance(lm.batch_size_per_gpu, int) else MOST_WITH_AUTO
        if size <= 1:
            raise StoppedEarly(
                f"{self.name}: out of memory with one text at a time ({error}). Try --device cpu."
            ) from None
        empty_caches()
        lm.batch_size_per_gpu = self.model.batch_size = size // 2
        self.run.progress.note(f"{self.name}: out of memory with {size} texts at once, going on with {size // 2}")

    def _tokens_of(self, text: str) -> list[int]:
        return self.tokenizer(text, verbose=False)["input_ids"]

    def _note_truncated(self, kind: Kind, task: str, requests: Sequence[Instance]) -> None:
        """Find the texts that lm-eval cuts on the left because they are longer than the context."""
        most = self.answers.get("about", ["max_length"])
        if most is None or self.tokenizer is None or kind == "loglikelihood_rolling":
            return
        for request in requests:
            room = most + 1
            if kind == "generate_until":
                room = most - _decoding(request)["max_gen_toks"]
            text = _text(kind, request)
            # A token has one byte at least, but for the one or two that a tokenizer puts around a text.
            if len(text) * 4 > room - 2 and len(self._tokens_of(text)) > room:
                self.truncated.setdefault(task, set()).add(request.doc_id or 0)

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores must know."""
        most = self.answers.get("about", ["max_length"])
        cut = [
            f"{task}: {len(items):,} items are longer than the context of {self.name} ({most:,} tokens) and were cut "
            "on the left, as lm-eval does"
            for task, items in self.truncated.items()
        ]
        return list(dict.fromkeys([*cut, *self._notes, *(self._model.notes if self._model else [])]))


def open_cached(named: Named, options: Evaluate, run: Run, answers: Answers | None = None) -> CachedLM:
    """A model with the answers that are kept of it. Nothing is loaded but its tokenizer. Raises UsageError.

    answers: those of another copy of the model that takes part.
    """
    tokenizer = None if named.tokenizer_folder is None else load_tokenizer(named.tokenizer_folder, chat=False)
    if answers is None:
        answers = Answers(options.cache or default_folder(), named.identity)
        for text in answers.notes:
            run.progress.note(text)
    return CachedLM(
        named.name,
        answers,
        lambda: open_language_model(named, options, run.progress.note),
        run,
        tokenizer=tokenizer,
        fixed_batch=options.batch_size is not None,
        seed=options.seed,
    )


class _Hook(CacheHook):
    """What lm-eval's models call with each answer."""

    def __init__(self, got: Callable[[Any, Any, Any], None]) -> None:
        super().__init__(None)
        self._got = got

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._got(attr, req, res)


def _decoding(request: Instance) -> dict[str, Any]:
    """How an answer is to be written, with lm-eval's defaults: do_sample, max_gen_toks, until, ..."""
    arguments: Any = request.args
    return cast(dict[str, Any], normalize_gen_kwargs(arguments[1]))


def _text(kind: Kind, request: Instance) -> str:
    """What goes through the model, without the answer that it is to write."""
    return "".join(request.args) if kind != "generate_until" else request.args[0]


def _encoded(value: Any) -> Any:
    """A response as JSON: [log-likelihood, greedy], [log-likelihood], text, or {} for one that is broken."""
    if isinstance(value, Broken):
        return {}
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # a lone surrogate is in no JSON
    total, *greedy = value if isinstance(value, tuple) else (value,)
    total = float(total)
    return [total if math.isfinite(total) else str(total), *(bool(each) for each in greedy)]


def _decoded(kind: Kind, value: Any) -> Any:
    """The response again; NaN or Broken for None and for a broken one."""
    if kind == "generate_until":
        return value if isinstance(value, str) else Broken()
    total = float(value[0]) if value else math.nan
    return (total, bool(value and value[1])) if kind == "loglikelihood" else total
