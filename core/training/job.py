"""What a run keeps and shows: measures, the best checkpoint, progress, the result. The loop itself is in `gold`."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from ..commands.train_gold import CacheUse, GoldPlan, GoldTrained
from ..data.run import Run
from ..distillation.measures import Measures, add
from ..errors import Elsewhere, ExitCode, StoppedEarly, UsageError
from ..plots.curves import draw_curves
from .ahead import Ahead, Answer
from .checkpoints import load_state
from .exchange import Exchange
from .folder import SAVED, RunFolder
from .learner import Draw, Learner, Learnt
from .ownership import CURVES, METRICS
from .samples import Sample
from .student import load_weights
from .teaching import Lesson
from .validation import figures, sample_lines, validate
from .world import World

NOTED = ("val_kl", "val_top1_agreement", "val_bits_per_byte", "own_reverse_kl", "own_length", "own_truncated")
"""Measures that a person sees after a validation; all of them are in metrics.jsonl."""
SHOWN = 2
"""Answers to held-out prompts that samples.jsonl gets at each validation."""
BETWEEN = ("validate", "save")
"""Phases that are no part of a step."""
NOISY = 0.1
"""Share of the distance between student and teacher that a server's own disagreement may be."""
EMPTY_STEPS = 3
"""So many steps in a row without any answer that the teacher said something of end a run."""
EMPTY_CHAT_STEPS = 20
"""The same for teachers that can only chat: a judge may find all answers to some prompts equally good."""
REHEARSED = 8
"""Held-out samples that --dry-run measures."""
ASKED = ("requests", "spent_usd", "maybe_billed_usd")
CARRIED = (
    *("step", "best_step", "stale", "ended", "samples_trained", "tokens_trained"),
    *("before", "after", "best", "validated"),
)


class Job:
    """The books of one run, open in `with job:`. All processes keep them alike; process 0 alone has a folder.

    step: optimiser steps made.   before, after, best: held-out measures at step 0, now, and at best_step.
    validated: the step of the last validation.   stale: validations in a row without improvement.   ended: --patience
    has ended the run.
    """

    def __init__(
        self,
        lesson: Lesson,
        run: Run,
        world: World,
        folder: RunFolder | None,
        learner: Learner,
    ) -> None:
        self.lesson, self.options, self.samples = lesson, lesson.options, lesson.samples
        self.run, self.world, self.folder, self.learner = run, world, folder, learner
        self.step = self.best_step = self.stale = self.samples_trained = self.tokens_trained = 0
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.ended = False
        self.validated = self._empty = 0
        self._saved = -1
        self._own: list[Exchange] = []
        self._ahead: Ahead | None = None
        self._kept_ahead: list[Answer] = []
        self._asked_before: dict[str, float] = {}
        self._began, self._seconds_before = time.monotonic(), 0.0

    @property
    def done(self) -> bool:
        """Whether no step is left to make."""
        return self.ended or self.step >= self.options.max_steps

    @property
    def signal_words(self) -> str:
        """What the student learns from, for people; of a server also which one says so."""
        signal, remote = self.learner.signal, self.lesson.remote
        if signal is None:
            return "the answers in the data (cross-entropy)"
        return signal.words + (f"; told by {remote.name}" if remote is not None else "")

    @property
    def seconds(self) -> float:
        """Of the whole run, earlier parts included."""
        return self._seconds_before + time.monotonic() - self._began

    # ---- the beginning -----------------------------------------------------------------------------------------

    def __enter__(self) -> "Job":
        """Open the folder; go on from its last checkpoint with --resume, else measure the student as it comes.

        Raises UsageError, with nothing written, for a --monitor that is not measured.
        """
        before = None if self.options.resume else self._measure(self.samples.held_out)
        self.world.on_main(lambda: self._check_noise(before or {}))
        self._on_folder(lambda folder: folder.describe(signal=self.signal_words))
        self._on_folder(lambda folder: folder.begin(self.samples.files()))
        checkpoint = self.world.gather(self.folder.last_checkpoint if self.folder is not None else None)[0]
        for line in self.folder.notes if self.folder is not None else ():
            self.run.progress.note(line)
        if self.options.resume and checkpoint is not None:
            self._load(checkpoint)
        self.world.track("train_gold", self.options.model_dump(mode="json"))
        due = self.step % self.options.eval_every == 0 or self.step == self.options.max_steps
        if not self.step:
            self.validate(before)
        elif due and self.validated < self.step:  # it was what the run stopped at
            self.validate()
        self.run.progress.begin("train", total=self.options.max_steps, already=self.step, unit="steps")
        return self

    def _load(self, checkpoint: Path) -> None:
        state = load_state(checkpoint)
        load_weights(self.learner.student, checkpoint)
        self.learner.load_state(state["learner"])
        self.learner.watch.load(state["phases"])
        self._seconds_before = state["seconds"]
        for name in CARRIED:
            setattr(self, name, state[name])
        self._kept_ahead = state["ahead"][self.world.rank]
        self._asked_before = state["asked"]
        self._saved = self.step
        self.run.progress.note(f"going on after step {self.step}, from {checkpoint}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run.progress.end()
        if isinstance(error, StoppedEarly) and self.folder is not None:
            with contextlib.suppress(StoppedEarly):  # on a full disk, which may be what stopped it
                self.folder.finish("stopped", because=str(error))

    def open_ahead(self, draws: Callable[[int], Sequence[Draw]]) -> Ahead:
        """The answers and scores of the steps to come."""
        options, stop = self.options, self.run.stop
        self._ahead = Ahead(
            self.learner, draws, staleness=options.staleness, last=options.max_steps, aborted=lambda: stop.now
        )
        if self._kept_ahead:
            self._ahead.restore(self.step + 1, self._kept_ahead)
        return self._ahead

    def asked(self) -> dict[str, float]:
        """What the teacher's server was asked in the whole run, by all processes, which all call this: requests, and
        in USD what is known to have been paid and what may have been billed besides."""
        remote = self.lesson.remote
        if remote is None:
            return {}
        spending = remote.asker.spending
        mine = self.world.sum([remote.asker.requests, spending.known, spending.maybe])
        found = {name: self._asked_before.get(name, 0) + value for name, value in zip(ASKED, mine, strict=True)}
        if remote.price is None and remote.provider.hosted and not found["spent_usd"]:
            del found["spent_usd"]  # nobody says what a request costs, and 0 would be a claim
        return found

    # ---- measures ----------------------------------------------------------------------------------------------

    def validate(self, measured: dict[str, float] | None = None) -> None:
        """Measure the held-out samples (or take what was measured); keep the student when it is the best so far."""
        if measured is None:
            try:
                measured = self._measure(self.samples.held_out)
            except (StoppedEarly, Elsewhere):  # the teacher's server: the steps before are not to be paid again
                if self.lesson.remote is not None and self.step:
                    self.save()
                raise
        self.after, self.validated = measured, self.step
        if not self.after:
            return
        if self.folder is not None:
            self.folder.event("val", step=self.step, **self.after)
        if self.options.sample_every:
            self._keep_samples(self._own)
        self.world.log(self.after, self.step)
        monitor = self.options.monitor
        shown = {name: self.after[name] for name in (monitor, *NOTED) if name in self.after}
        words = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self.run.progress.note(f"step {self.step}: {words}")
        if self.step == 0:
            self.before = self.after
            return
        value = self.after[monitor]
        if not math.isnan(value) and (not self.best or self._is_better(value, self.best[monitor])):
            self.best, self.best_step, self.stale = self.after, self.step, 0
            self._save("best", lambda folder: folder.best(self.step, self._save_model, self.after))
            self._event("best_checkpoint_saved", metric=monitor, value=value)
            return
        self.stale += 1
        if self.options.patience and self.stale >= self.options.patience:
            self.ended = True
            self.run.progress.note(f"--patience: {monitor} has not improved in {self.stale} validations")

    def _is_better(self, value: float | None, other: float | None) -> bool:
        """Of the monitored measure; one that is missing is never better, nor is it worse."""
        if value is None or other is None:
            return False
        return value > other if self.options.higher_is_better else value < other

    def _measure(self, held_out: Sequence[Sample]) -> dict[str, float]:
        """Means over all processes' shares. Raises UsageError when the monitored measure is not among them."""
        if not held_out:
            return {}
        mine: Measures = {}
        problem: StoppedEarly | None = None
        with self.learner.watch("validate"):
            try:
                mine = self._measure_share(self.world.share(held_out))
            except StoppedEarly as error:
                problem = error
        if self.world.any(problem is not None):
            raise problem or Elsewhere(ExitCode.STOPPED, "another process cannot go on")
        together: Measures = {}
        for part in self.world.gather(mine):
            together = add(together, part)
        found = figures(together, self.options)
        self.world.on_main(lambda: self._check_monitor(found))
        return found

    def _check_monitor(self, found: Mapping[str, float]) -> None:
        if self.options.monitor not in found:
            raise UsageError(
                f"--monitor {self.options.monitor} (MONITOR_METRIC) is not measured here; there are {', '.join(found)}."
            )

    def _check_noise(self, before: Mapping[str, float]) -> None:
        """Raises UsageError when two scorings of one text differ more than student and teacher do."""
        ability = self.lesson.ability
        noise = None if ability is None or ability.scoring is None else ability.scoring.noise.kl
        size = before.get("val_kl", before.get("own_kl"))
        if noise is None or not size:
            return
        words = (
            f"two scorings of one text differ by a KL of {noise:.2g} nats per token, {noise / size:.0%} of the "
            f"{size:.2g} between student and teacher"
        )
        self.run.progress.note(words)
        if noise > NOISY * size and not self.options.accept_noise:
            raise UsageError(
                f"{words}: there is little to learn from it. Use one replica of your own, or --accept-noise."
            )

    def _measure_share(self, share: Sequence[Sample]) -> Measures:
        learner = self.learner
        while True:
            options = self.options.model_copy(update={"micro_batch_size": learner.micro_batch_size})
            try:
                own: list[Exchange] = []
                found = validate(
                    learner.student,
                    learner.signal,
                    share,
                    options,
                    self.world.autocast,
                    self.run.stop,
                    own,
                )
                self._own = own[:SHOWN]
                return found
            except RuntimeError as error:
                learner.make_room(error, share)

    def record(self, learnt: Learnt, exchanges: Sequence[Exchange]) -> None:
        """One step's figures: into metrics.jsonl, the progress bar and the tracker; now and then an answer."""
        self._empty = 0 if learnt.samples else self._empty + 1
        most = EMPTY_STEPS if self.lesson.scorer is not None else EMPTY_CHAT_STEPS
        if self._empty == most:
            signal = self.learner.signal
            told = [] if signal is None else signal.reasons.values()
            reasons = "; ".join([*self.learner.skipped, *told]) or "no reason is known"
            raise StoppedEarly(f"{most} steps in a row had nothing to learn from: {reasons}")
        self.samples_trained += learnt.samples
        self.tokens_trained += learnt.tokens
        phases = {name: spent for name, spent in self.learner.watch.lap().items() if name not in BETWEEN}
        seconds = sum(phases.values()) or math.nan
        found: dict[str, Any] = {
            "loss": learnt.loss,
            "kd_loss": learnt.kd_loss,
            "sft_loss": learnt.sft_loss,
            "learning_rate": learnt.learning_rate,
            "grad_norm": learnt.grad_norm,
            "samples": learnt.samples,
            "tokens": learnt.tokens,
            "on_policy": learnt.own / max(1, learnt.samples),
            "answer_length": learnt.own_tokens / learnt.own if learnt.own else None,
            "truncated": learnt.truncated / learnt.own if learnt.own else None,
            "seconds": seconds,
            "tokens_per_s": learnt.tokens / seconds,
        }
        found |= self.asked()
        found = {name: value for name, value in found.items() if value is not None}
        self._event("train_step", **found, phases=phases)
        self.world.log({f"train_{name}": float(value) for name, value in found.items()}, self.step)
        every = self.options.sample_every
        if every and (self.step == 1 or self.step % every == 0):
            self._keep_samples([exchange for exchange in exchanges if exchange.on_policy][:1])
        progress = self.run.progress
        progress.counts.done += 1
        progress.counts.metrics = {"loss": learnt.loss, "tokens/s": found["tokens_per_s"]}
        if "val_kl" in self.after:
            progress.counts.metrics["held-out KL"] = self.after["val_kl"]
        progress.counts.spend_usd = found.get("spent_usd") or None
        progress.tick()

    def _keep_samples(self, own: Sequence[Exchange]) -> None:
        """The student's own answers, into samples.jsonl."""
        if self.folder is not None:
            for line in sample_lines(self.learner.student, own):
                self.folder.sample(step=self.step, **line)

    def _event(self, kind: str, **fields: Any) -> None:
        if self.folder is not None:
            self.folder.event(kind, step=self.step, **fields)

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def save(self) -> None:
        """step-N/, from which --resume goes on."""
        if self._saved == self.step:
            return
        self._event(SAVED)

        def save_model(target: Path) -> None:  # with LoRA the adapter alone, whatever --merge says
            self.learner.student.save(target, merge=False)

        state = self._state()
        self._save(f"step-{self.step}", lambda folder: folder.checkpoint(self.step, save_model, state))
        self._saved = self.step

    def _state(self) -> dict[str, Any]:
        """All but the weights that the rest of the run depends on. Called by all processes."""
        phases = {name: phase.model_dump() for name, phase in self.learner.watch.total.items()}
        kept: dict[str, Any] = {name: getattr(self, name) for name in CARRIED}
        kept["ahead"] = self.world.gather([] if self._ahead is None else self._ahead.kept(self.step + 1))
        kept["asked"] = self.asked()
        return {**kept, "seconds": self.seconds, "phases": phases, "learner": self.learner.state()}

    def _save_model(self, target: Path) -> None:
        self.learner.student.save(target, merge=self.options.merge)

    def _save(self, what: str, work: Callable[[RunFolder], object]) -> None:
        with self.learner.watch("save"):
            self._on_folder(work)

    def _on_folder(self, work: Callable[[RunFolder], object]) -> None:
        """In process 0, while the others wait; what it raises is raised in all of them."""
        folder = self.folder
        self.world.on_main(lambda: None if folder is None else work(folder))

    # ---- the end -----------------------------------------------------------------------------------------------

    def finish(self) -> GoldTrained:
        """Write final/ (and best/, where nothing was measured) and draw the curves."""
        self._save("final", lambda folder: folder.final(self.step, self._save_model))
        if not self.best_step:
            self.best_step = self.step
            self._save("best", lambda folder: folder.best(self.step, self._save_model, self.after))
        result = self.result("done")
        if self.folder is not None:
            self.folder.finish("done")
        return result

    def result(self, status: Literal["done", "interrupted"]) -> GoldTrained:
        """What was done, for a person and for a program."""
        phases = {name: phase for name, phase in self.learner.watch.total.items() if phase.seconds}
        asked = self.asked()
        skipped = Counter(self.samples.skipped)
        for part in self.world.gather(self.learner.skipped):
            skipped.update(part)
        if status == "interrupted" and self.folder is not None:
            self.folder.finish(status)
        return GoldTrained(
            status=status,
            output=self.options.output,
            steps=self.step,
            best_step=self.best_step or None,
            monitor=self.options.monitor,
            before=self.before,
            after=self.after,
            best=self.best,
            signal=self.signal_words,
            mode="score" if self.learner.signal is None else self.learner.signal.mode,
            requests=int(asked.get("requests", 0)),
            spent_usd=asked.get("spent_usd"),
            maybe_billed_usd=asked.get("maybe_billed_usd", 0.0),
            cache=self._cache_use(),
            staleness=self.options.staleness,
            samples_trained=self.samples_trained,
            tokens_trained=self.tokens_trained,
            skipped=dict(skipped),
            phases=phases,
            seconds=self.seconds,
            curves=self._draw(),
            improved=self._is_better(self.best.get(self.options.monitor), self.before.get(self.options.monitor)),
        )

    def _cache_use(self) -> CacheUse | None:
        """Of this process since it began."""
        remote = self.lesson.remote
        if remote is None or remote.cache is None:
            return None
        used = remote.cache.report()
        return CacheUse(hits=used.hits, lookups=used.hits + used.misses, size_bytes=used.size_bytes)

    def _draw(self) -> Path | None:
        """curves.png; without it, a run is no worse."""
        if self.folder is None:
            return None
        target = self.options.output / CURVES
        try:
            draw_curves(self.options.output / METRICS, target)
        except (OSError, ModuleNotFoundError) as error:
            self.run.progress.note(f"the curves are not drawn: {error}")
            return None
        return target

    # ---- --dry-run ---------------------------------------------------------------------------------------------

    def rehearse(self, draws: Sequence[Draw], plan: list[str]) -> GoldPlan:
        """Make two steps and throw them away: what the run will take. The first one warms up, and only after it does
        the optimiser hold all its memory."""
        options, learner, cost = self.options, self.learner, self.lesson.cost
        if cost is not None:  # a server is not asked, because that may cost
            return GoldPlan(
                plan=plan,
                mode=cost.mode,
                requests_per_step=cost.requests,
                cost_per_step_usd=cost.usd,
                cost_in_all_usd=cost.usd_in_all,
                cost=str(cost),
            )
        torch.manual_seed(options.seed)
        for _ in range(2):
            learner.watch.lap()
            learnt = learner.learn(learner.score(learner.answer(draws)))
            phases = learner.watch.lap()
        held_out = self.samples.held_out[:REHEARSED]
        validation_s = 0.0
        if held_out:
            self._measure(held_out)
            validation_s = sum(learner.watch.lap().values()) * len(self.samples.held_out) / len(held_out)
        step_s = sum(phases.values())
        validations = (1 + math.ceil(options.max_steps / options.eval_every)) if held_out else 0
        return GoldPlan(
            plan=plan,
            seconds_per_step=step_s,
            phases=phases,
            seconds_per_validation=validation_s,
            seconds_in_all=step_s * options.max_steps + validation_s * validations,
            peak_memory_gb=self.world.peak_memory_gb,
            loss=learnt.loss,
        )
