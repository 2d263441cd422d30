"""Questions of MMLU's development set, which lm-eval brings along as worked examples for its prompts.

They are read from the installed package: two short ones of nearly each of the 57 subjects, without the worked solution.
Models may have seen them, and they are few: a score here says whether things work and what changed, and is no MMLU
score.
MMLU: Hendrycks et al., arXiv:2009.03300.
"""

import json
import re
from importlib.resources import files
from typing import Any

FILE = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
OF_EACH_SUBJECT = 2
LONGEST = 400
"""Characters of a question: the few longer ones would take nearly half of the time."""
CHOICES = re.compile(r"(.*?)\s*\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*)", re.DOTALL)
SOLUTION = re.compile(r"\nA: Let's think step by step\.")
KEY = re.compile(r"[Tt]he answer is \(([A-D])\)")


def load(**_: Any) -> dict[str, Any]:
    """{"test": the items}, each with subject, question, choices and answer (0 to 3). lm-eval passes the metadata."""
    from datasets import Dataset

    return {"test": Dataset.from_list(items())}


def items() -> list[dict[str, Any]]:
    """Raises FileNotFoundError where this version of lm-eval has the file no more."""
    by_subject: dict[str, str] = json.loads(files("lm_eval").joinpath(FILE).read_text(encoding="utf-8"))
    return [
        item for subject in sorted(by_subject) for item in _questions(subject, by_subject[subject])[:OF_EACH_SUBJECT]
    ]


def _questions(subject: str, text: str) -> list[dict[str, Any]]:
    """Those that are short, with one key and four different choices."""
    found: list[dict[str, Any]] = []
    for part in re.split(r"\n\nQ: ", text)[1:]:
        asked, *solution = SOLUTION.split(part, maxsplit=1)
        parts, keys = CHOICES.fullmatch(asked.strip()), KEY.findall("".join(solution))
        if parts and len(keys) == 1:
            question, *choices = (piece.strip() for piece in parts.groups())
            answer = "ABCD".index(keys[0])
            if len(question) <= LONGEST and len(set(choices)) == 4:
                found.append({"subject": subject, "question": question, "choices": choices, "answer": answer})
    return found
