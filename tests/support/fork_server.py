"""Runs commands in forks of one Python that has imported what they need: processes of their own, to be killed at will,
without seconds of imports each.

Its one argument is the command that it has everything ready for. Reads lines of JSON on stdin and answers each with one
on stdout:
    {"command", "argv", "folder", "environment", "out", "err", "file_bytes", "before"} -> {"pid"}
    {"wait": pid, "seconds"} -> {"code"}: as subprocess has it, null when it still runs

out, err: files.   file_bytes: longest file that it may write, or null.   before: "module:function" to call first, or
null.
"""

import gc
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder, which has a tokenizers.py


READY = {
    "train_gold": ("core.training.job", "core.training.gold"),
    "train_sft": ("core.training.sft_books", "core.training.sft", "core.training.sft_run"),
    "evaluate": ("core.evaluation.harness", "core.evaluation.language_models", "core.evaluation.plots"),
}
"""What the commands import for their work; where they train, the first module draws the curves."""
LATER = (
    "peft",
    "transformers.models.llama.modeling_llama",
    "cyclopts.core",
    "dotenv",
    "core.cli",
)
"""What a run imports only on its way."""


def child(job: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, path in ((1, job["out"]), (2, job["err"])):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if job["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"],) * 2)
    if job["before"] is not None:
        module, _, function = job["before"].partition(":")
        getattr(importlib.import_module(module), function)()
    from core.cli import main

    main(job["command"], job["argv"])


def wait(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.01)


def serve(command: str) -> None:
    for module in (*READY[command], *LATER):
        importlib.import_module(module)
    books: Any = sys.modules[READY[command][0]]
    if command != "evaluate":
        books.draw_curves = lambda *_: None  # a second for each run
    # Half a second of regular expressions for the first model that a process loads.
    importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    gc.freeze()  # the children's collections need not look at all of that again
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            answer: dict[str, Any] = {"code": wait(job["wait"], job["seconds"])}
        else:
            pid = os.fork()
            if pid == 0:
                child(job)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
