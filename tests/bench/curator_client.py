"""The same work through bespokelabs-curator, for an interpreter that has it (its packages exclude some of ours).

    PYTHON tests/bench/curator_client.py URL PROMPTS.jsonl CONCURRENCY FOLDER

Reads and writes below FOLDER only; nothing is uploaded. Leaves with 0 when every prompt was answered.
"""
# pyright: reportMissingImports=false

import importlib.util
import json
import logging
import os
import sys
from pathlib import Path


def main(url: str, path: Path, concurrency: int, folder: Path) -> bool:
    """Whether every prompt was answered."""
    found = importlib.util.find_spec("litellm")
    assert found is not None
    assert found.submodule_search_locations is not None
    os.environ.update(
        HOME=str(folder),
        HF_HOME=str(folder / "hf"),
        HF_DATASETS_OFFLINE="1",
        HF_HUB_OFFLINE="1",
        OPENAI_API_KEY="none",
        CURATOR_CACHE_DIR=str(folder / "cache"),
        CURATOR_DISABLE_RICH_DISPLAY="1",
        CURATOR_VIEWER="0",
        TELEMETRY_ENABLED="0",
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        TIKTOKEN_CACHE_DIR=str(Path(found.submodule_search_locations[0], "litellm_core_utils", "tokenizers")),
    )
    from bespokelabs import curator
    from datasets import Dataset

    logging.getLogger("bespokelabs.curator").setLevel(logging.ERROR)

    class Answer(curator.LLM):
        def prompt(self, row: dict[str, str]) -> str:
            return row["prompt"]

        def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
            return {"prompt": row["prompt"], "response": response}

    teacher = Answer(
        model_name="mock-model",
        backend="openai",
        backend_params={
            "base_url": url,
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**10,
            "max_concurrent_requests": concurrency,
        },
        generation_params={"max_tokens": 2048, "temperature": 0.7},
    )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    answers = teacher(Dataset.from_list(rows))
    return len(getattr(answers, "dataset", answers)) == len(rows)


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
