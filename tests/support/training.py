"""Tiny students and teachers, data for them, and `train_gold` and `train_sft` as processes that may be killed."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.running import ROOT, Outcome, environment, write_rows
from tests.support.tiny_model import make_tiny_model

OTHER_CORPUS = "Paris is the capital. Photosynthesis is how plants eat light, and France eats bread. " * 3
QUICK = ("--max-new-tokens", "8", "--batch-size", "4", "--learning-rate", "1e-2", "--device", "cpu", "--threads", "1")
"""Options of runs of `train_gold` that take a second."""
QUICK_SFT = ("--batch-size", "4", "--learning-rate", "1e-2", "--device", "cpu", "--threads", "1")
"""Options of runs of `train_sft` that take a second."""


@dataclass(frozen=True)
class Models:
    """student, teacher: with one tokenizer and other weights.   other: a teacher with another tokenizer."""

    student: Path
    teacher: Path
    other: Path


def make_models(folder: Path) -> Models:
    transformers.utils.logging.disable_progress_bar()
    student = make_tiny_model(folder / "student")
    teacher = shaken(make_tiny_model(folder / "teacher"), 4.0)
    return Models(student, teacher, shaken(make_tiny_model(folder / "other", corpus=OTHER_CORPUS), 4.0))


def shaken(folder: Path, much: float) -> Path:
    """Change every weight of a saved model at random; they were drawn with a deviation of 0.02."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight += much * 0.02 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def conversations(count: int, answered: bool = True) -> list[dict[str, Any]]:
    """Rows of one question each, with answers of different lengths."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        messages = [{"role": "user", "content": f"What is the capital of number {number}?"}]
        if answered:
            answer = "Paris." if number % 3 else f"The capital of {number} is Paris {number}."
            messages.append({"role": "assistant", "content": answer})
        rows.append({"messages": messages})
    return rows


def write_conversations(path: Path, count: int = 20, answered: bool = True) -> Path:
    return write_rows(path, conversations(count, answered))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    assert found, f"no weights in {folder}"
    return found


def furthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference of any weight."""
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def same_bits(first: Path, second: Path) -> bool:
    """Whether two saved models hold the same weights, to the bit."""
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Process:
    """A command in a fork of the server's, and a process group of its own."""

    def __init__(self, server: "ForkServer", pid: int, out: Path, err: Path) -> None:
        self._server, self.pid, self._out, self._err = server, pid, out, err
        self.code: int | None = None

    def running(self) -> bool:
        return self.wait(0) is None

    def wait(self, seconds: float) -> int | None:
        """The exit code (-9 for one that was killed), None for one that still runs."""
        if self.code is None:
            self.code = self._server.ask({"wait": self.pid, "seconds": seconds})["code"]
        return self.code

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self, seconds: float = 60) -> Outcome:
        code = self.wait(seconds)
        if code is None:
            self.send(signal.SIGKILL)
            self.wait(10)
            raise AssertionError(f"did not end within {seconds} s: {self.said}")
        return Outcome(code, self._out.read_text(encoding="utf-8"), self.said)

    @property
    def said(self) -> str:
        """Its stderr so far."""
        return self._err.read_text(encoding="utf-8")

    def until(self, path: Path, text: str, seconds: float = 60) -> None:
        """Wait until a file holds a text."""
        limit = time.monotonic() + seconds
        while not (path.exists() and text in path.read_text(encoding="utf-8")):
            assert self.running(), self.said
            assert time.monotonic() < limit, self.said
            time.sleep(0.01)


class ForkServer:
    """tests/support/fork_server.py, whose docstring explains it, with all that a command imports."""

    def __init__(self, command: str) -> None:
        self.command = command
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._environment = {**environment(**single), "PYTHONWARNDEFAULTENCODING": ""}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/support/fork_server.py"), command],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._count = 0

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        folder: Path,
        *argv: str,
        file_bytes: int | None = None,
        before: str | None = None,
        variables: Mapping[str, str] | None = None,
        command: str | None = None,
    ) -> Process:
        """The server's command in `folder`, or another, which has to import more. file_bytes, before: see the server.
        variables: of its environment."""
        self._count += 1
        out, err = folder / f".out{self._count}", folder / f".err{self._count}"
        job = {
            "command": command or self.command,
            "argv": list(argv),
            "folder": str(folder),
            "environment": {**self._environment, **(variables or {})},
            "out": str(out),
            "err": str(err),
            "file_bytes": file_bytes,
            "before": before,
        }
        err.touch()
        return Process(self, self.ask(job)["pid"], out, err)

    def stop(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait(20)


@cache
def fork_server(command: str = "train_gold") -> ForkServer:
    """One for all tests of a command, which ends with them."""
    server = ForkServer(command)
    atexit.register(server.stop)
    return server


def options_of(models: Models, data: Path, output: Path, *more: str, quick: Sequence[str] = QUICK) -> list[str]:
    """The flags of a quick run of `train_gold`; `more` win."""
    places = ("--student", str(models.student), "--teacher", str(models.teacher))
    return ["--data", str(data), "--output", str(output), *with_others(more, (*places, *quick))]


def sft_options(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    """The flags of a quick run of `train_sft`; `more` win."""
    return ["--data", str(data), "--output", str(output), *with_others(more, ("--model", str(model), *QUICK_SFT))]


def with_others(given: Sequence[str], others: Sequence[str]) -> list[str]:
    """Flags, and those of some others that they do not name already."""
    missing = [pair for pair in zip(others[::2], others[1::2], strict=True) if pair[0] not in given]
    return [*given, *(word for pair in missing for word in pair)]
