"""lm-eval's evaluator over our models: one call for all tasks of a model that are prompted alike."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate

from ..commands.evaluate import Evaluate
from ..data.run import Run
from ..errors import DistillError
from .cached_lm import CachedLM
from .lm_tasks import LoadedTask, fewshot_seed, first_line, load_tasks, seed_everything
from .models import Named
from .quiet import quiet
from .results import Answered
from .task_items import answered_of

__all__ = ["LoadedTask", "answer_tasks", "count_requests", "load_tasks"]


def answer_tasks(
    named: Named, tasks: Sequence[LoadedTask], lm: CachedLM, options: Evaluate, run: Run
) -> list[Answered]:
    """One model on all tasks, in the order of `tasks`. Tasks that it cannot do or did not finish are left out; why is
    in `named.info.not_measured`, and what it cost in `named.info`.

    Scores are lm-eval's own, to the last digit. Ctrl-C ends it early: see `run.stop`; a second one raises
    KeyboardInterrupt. Raises UsageError when the model cannot be loaded, StoppedEarly.
    """
    found: dict[str, Answered] = {}
    notes: list[str] = []
    for prompted in ("plain text", "chat template"):
        group = [each for each in tasks if each.info.prompted == prompted]
        for each, results in _evaluated(group, lm, options):
            name = each.info.name
            if name in lm.not_measured:
                continue
            answered, bad = answered_of(named.name, each.task, results)
            if bad == len(answered.questions):
                lm.not_measured[name] = "its logits are not finite" if named.backend == "hf" else "it gave no answer"
                continue
            if bad:
                why = (
                    f"the logits of {named.name} are not finite" if named.backend == "hf" else f"{named.name} gave none"
                )
                notes.append(f"{name}: {bad:,} items have no score, because {why}")
            found[name] = answered
    account(named, lm, notes)
    return [found[each.info.name] for each in tasks if each.info.name in found]


def count_requests(tasks: Sequence[LoadedTask], lm: CachedLM, options: Evaluate) -> tuple[int, int]:
    """(requests, those that are answered already) of all tasks, for a model. Nothing is asked."""
    total = missing = 0
    for each in tasks:
        by_kind: dict[Any, list[Instance]] = {}
        chat = each.info.prompted == "chat template"
        each.task.set_fewshot_seed(fewshot_seed(options))
        with quiet():
            each.task.build_all_requests(
                samples=each.items,
                system_instruction=options.system if chat else None,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                chat_template=lm.apply_chat_template if chat else None,
            )
        for request in each.task.instances:
            by_kind.setdefault(request.request_type, []).extend([request] * (request.repeats or 1))
        for kind, requests in by_kind.items():
            total += len(requests)
            missing += lm.missing(kind, requests)
    return total, total - missing


def _evaluated(tasks: Sequence[LoadedTask], lm: CachedLM, options: Evaluate) -> list[tuple[LoadedTask, dict[str, Any]]]:
    """lm-eval's results, of one call for all tasks. A task whose own functions fail is found by asking one by one,
    which costs little: what was answered is kept."""
    if not tasks:
        return []
    before = lm.requests
    try:
        results = _call(tasks, lm, options)
        return [(each, results) for each in tasks]
    except DistillError:
        raise
    except Exception as error:  # a task's functions raise whatever they meet
        if len(tasks) == 1:
            lm.not_measured[tasks[0].info.name] = f"{type(error).__name__}: {first_line(error)}"
            return []
        twice = lm.requests - before
        pairs = [pair for each in tasks for pair in _evaluated([each], lm, options)]
        lm.requests, lm.cached = lm.requests - twice, lm.cached - twice  # what is new stays: requests - cached
        return pairs


def _call(tasks: Sequence[LoadedTask], lm: CachedLM, options: Evaluate) -> dict[str, Any]:
    chat = tasks[0].info.prompted == "chat template"
    seed_everything(options)
    for each in tasks:
        each.task.set_fewshot_seed(fewshot_seed(options))
    chosen = {each.info.name: each.items for each in tasks if each.items is not None}
    with quiet():
        results = evaluate(
            lm=lm,
            task_dict={"tasks": {each.info.name: each.task for each in tasks}},
            samples=chosen or None,
            bootstrap_iters=0,  # intervals are ours
            log_samples=True,
            system_instruction=options.system if chat else None,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    assert results is not None  # of process 0, and there is no other
    return dict(results)


def account(named: Named, lm: CachedLM, notes: Sequence[str] = ()) -> None:
    """What the model took, for the report."""
    info = named.info
    info.seconds, info.requests, info.cached = lm.seconds, lm.requests, lm.cached
    info.tokens, info.usd = lm.tokens, lm.usd
    info.batch_size = lm.loaded.batch_size if lm.loaded else info.batch_size
    info.not_measured.update(lm.not_measured)
    info.notes.extend(note for note in [*notes, *lm.notes] if note not in info.notes)
