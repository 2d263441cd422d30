"""A teacher that can only chat, computed from a tiny real model in this process, and students to learn from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.commands.train_gold import TrainGold
from core.distillation.chat import ChatSide
from core.errors import RequestRejected, TeacherError
from core.teachers.api_tokens import Told
from core.teachers.chat_teacher import NextToken, Prefix, Written, next_token
from core.teachers.judging import Graded, Pair
from core.training.exchange import Exchange
from core.training.samples import Sample
from core.training.student import Student, load_student
from tests.support.tiny_model import make_tiny_model

OTHER_CORPUS = "Paris is where France has its capital. Plants explain sunlight: synthesis of what the capital is."
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def noisy_model(folder: Path, seed: int, **options: Any) -> Path:
    """A tiny model that is sure of something: as they are made, all tokens are nearly equally probable."""
    file = make_tiny_model(folder, **options) / "model.safetensors"
    torch.manual_seed(seed)
    save_file({name: weight + 0.1 * torch.randn_like(weight) for name, weight in load_file(file).items()}, file)
    return folder


def student_of(folder: Path, **values: Any) -> tuple[TrainGold, Student]:
    given = {"data": "x", "output": "runs", "student": str(folder), "device": "cpu", "threads": 1}
    options = TrainGold.model_validate(given | {"teacher_backend": "openai", "max_new_tokens": 40} | values)
    return options, load_student(options, torch.device("cpu"), lambda text: None)


def sample_of(student: Student, key: int = 0, answer: str | None = None) -> Sample:
    side = student.side
    ids = None if answer is None else side.completion_ids(answer.encode(), True)
    prompt = side.prompt_ids(MESSAGES)
    return Sample(
        f"{key:016x}", f"x:{key}", MESSAGES, None, prompt, prompt, ids, answer is not None, answer, said=answer
    )  # fmt: skip


def hidden_of(student: Student, exchanges: Sequence[Exchange]) -> Tensor:
    return student.hidden([e.sample.prompt_ids for e in exchanges], [e.completion_ids for e in exchanges])


class ModelChat:
    """What `ChatTeacher` offers, of a model that is here. It is asked as a server is, by text, and answers as one does,
    by bytes.

    top: alternatives that it tells, None for all.   silent: tokens that it never says.   failures: texts of prefixes
    that are not answered.   asked: what it was asked.   text, ended: its own answer.   ends: whether it tells how sure
    it was of ending.   verdicts: of its grades and comparisons, in turn; None is none.
    """

    nameless_ends, keeps_blanks, server = False, True, "a model here"

    def __init__(self, folder: Path, top: int | None = None, silent: Sequence[str] = ()) -> None:
        self.side = ChatSide(AutoTokenizer.from_pretrained(folder))
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.pieces = self.side.token_bytes.pieces
        self.silent = [self.pieces.index(name.encode()) for name in silent]
        self.top = top or len(self.pieces)
        self.failures: list[str] = []
        self.asked: list[Any] = []
        self.text, self.ended, self.ends = "Paris", True, True
        self.verdicts: list[float | None] = []

    @torch.no_grad()
    def logprobs(self, messages: Any, completion: Sequence[int]) -> Tensor:
        """(T + 1, V) its distributions before each token of an answer, and after the last."""
        asked = self.side.prompt_ids(messages)
        logits = self.model(torch.tensor([[*asked, *completion]])).logits[0, len(asked) - 1 :].double()
        logits[:, self.silent] = -torch.inf
        return logits.log_softmax(-1).clamp_min(-1e4)

    def after(self, text: str) -> Tensor:
        """(V,)"""
        return self.logprobs(MESSAGES, self.side.completion_ids(text.encode(), False))[-1]

    def told(self, row: Tensor, token: int) -> Told:
        best = row.topk(self.top)
        named = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Told(self.pieces[token], float(row[token]), [(self.pieces[place], value) for place, value in named])

    def next_tokens(self, prefixes: Sequence[Prefix]) -> list[NextToken | TeacherError]:
        self.asked += prefixes
        found: list[NextToken | TeacherError] = []
        for prefix in prefixes:
            if prefix.text in self.failures:
                found.append(RequestRejected("refused", "not this one"))
                continue
            row = self.after(prefix.text)
            found.append(next_token(self.told(row, int(row.argmax()))))
        return found

    def write(self, asked: Any, *, max_tokens: int, seeds: Sequence[int | None]) -> list[Written | TeacherError]:
        self.asked += zip(asked, seeds, strict=True)
        found: list[Written | TeacherError] = []
        for messages, _ in asked:
            if messages[-1]["content"] in self.failures:
                found.append(RequestRejected("no_logprobs", "the server answers without log-probabilities"))
                continue
            ids = self.side.completion_ids(self.text.encode(), False)
            *rows, last = self.logprobs(messages, ids)
            told = [self.told(row, token) for row, token in zip(rows, ids, strict=True)]
            end = self.told(last, self.side.end_of_turn) if self.ended and self.ends else None
            found.append(Written(self.text, self.ended, told, end))
        return found

    def grade(self, asked: Sequence[Graded]) -> list[float | TeacherError]:
        return self._verdicts(asked)

    def compare(self, pairs: Sequence[Pair]) -> list[float | TeacherError]:
        return self._verdicts(pairs)

    def _verdicts(self, asked: Sequence[Any]) -> list[float | TeacherError]:
        self.asked += asked
        found, self.verdicts = self.verdicts[: len(asked)], self.verdicts[len(asked) :]
        unread = RequestRejected("unreadable_verdict", "no score")
        return [unread if verdict is None else verdict for verdict in found]
