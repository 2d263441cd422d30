"""Small tasks in lm-eval's YAML over invented rows, and tiny models to answer them."""

import json
from pathlib import Path
from typing import Any

import yaml

from core.commands.evaluate import Evaluate
from core.data.run import Run
from core.evaluation.cached_lm import CachedLM, open_cached
from core.evaluation.models import Named, resolve_models
from core.evaluation.suites import Selected
from tests.support.running import write_rows

WORDS = ("Paris", "France", "the capital", "photosynthesis", "What is", "explain", "a plant", "no one")


def choice_rows(count: int) -> list[dict[str, Any]]:
    """Questions with four choices."""
    return [
        {
            "question": f"What is number {n} of {WORDS[n % 8]}?",
            "choices": [f"{WORDS[(n + k * (1 + n % 3)) % 8]} {n * k}" for k in range(4)],
            "gold": n * 7 % 4,
        }
        for n in range(count)
    ]


def writing_rows(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {WORDS[n % 8]} {n}?", "answer": WORDS[n * 3 % 8]} for n in range(count)]


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], config: dict[str, Any]) -> Path:
    """A task NAME.yaml with its data beside it."""
    folder.mkdir(exist_ok=True)
    data = write_rows(folder / f"{name}.jsonl", rows)
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **config,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    return path


def mean_of(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def choice_task(folder: Path, count: int = 24, name: str = "pick", **config: Any) -> Path:
    more = {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": mean_of("acc", "acc_norm"),
    }
    return write_task(folder, name, choice_rows(count), {**more, **config})


def writing_task(folder: Path, count: int = 12, name: str = "write", **config: Any) -> Path:
    more = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": mean_of("exact_match"),
    }
    return write_task(folder, name, writing_rows(count), {**more, **config})


def letters_task(folder: Path, count: int = 12, name: str = "letters", **config: Any) -> Path:
    """Answers are written, and a function of the user's scores them: no answer of a random model is right or wrong."""
    folder.mkdir(exist_ok=True)
    (folder / "checks.py").write_text(
        "def score(doc, results):\n"
        "    said = results[0]\n"
        "    return {'letters': sum(c.isascii() for c in said) / max(1, len(said)), 'long': len(said) > 12}\n",
        encoding="utf-8",
    )
    path = writing_task(folder, count, name, metric_list=mean_of("letters", "long"), **config)
    with open(path, "a", encoding="utf-8") as file:
        file.write("process_results: !function checks.score\n")
    return path


def selected(*names: str) -> list[Selected]:
    return [Selected(name, None, "") for name in names]


def options_for(student: Path, baseline: Path, cache: Path, **more: Any) -> Evaluate:
    return Evaluate(student=str(student), baseline=str(baseline), cache=cache, device="cpu", threads=1, **more)


def named(options: Evaluate) -> list[Named]:
    return resolve_models(options, lambda text: None)


def opened(one: Named, options: Evaluate, run: Run | None = None) -> CachedLM:
    return open_cached(one, options, run or Run())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
