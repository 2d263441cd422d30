"""A chat server whose abilities are switches: what it tells, whether it goes on with a begun answer, how it judges."""

import itertools
import json
import math
from dataclasses import dataclass, field
from typing import Any

from core.teachers.ability import GOOD
from core.teachers.chat_teacher import BLANK, CERTAIN
from tests.support.running import Received, Reply

FIRST_WORDS = {"The": 0.5, "A": 0.3, "My": 0.15, "Dogs": 0.05}


@dataclass
class ScriptedChat:
    """Answers of a `small_server`.

    status: of every answer that is not 200.   after: log-probabilities are those after the temperature.
    noise: nats by which every second answer differs.   grades: of a right answer and of nonsense, None for words only.
    """

    status: int = 200
    error: str = "no"
    logprobs: bool = True
    prefill: bool = True
    after: bool = False
    noise: float = 0.0
    grades: tuple[int, int] | None = (9, 2)
    price: tuple[float, float] | None = None
    numbers: Any = field(default_factory=itertools.count)

    def __call__(self, request: Received) -> Reply:
        if request.method == "GET":
            row: dict[str, Any] = {"id": "m"}
            if self.price:
                row["pricing"] = {"prompt": str(self.price[0]), "completion": str(self.price[1])}
            return Reply(body=json.dumps({"data": [row]}).encode())
        if self.status != 200:
            return Reply(self.status, json.dumps({"error": {"message": self.error}}).encode())
        if not request.path.endswith("/chat/completions"):
            return Reply(404, b'{"error": {"message": "Not Found"}}')
        return Reply(body=json.dumps(self.answer(request.json)).encode())

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        last = body["messages"][-1]
        if not body.get("logprobs"):
            return _whole(self.judged(last["content"]), finish_reason="stop")
        if not self.logprobs:
            return _whole("The")
        shares = FIRST_WORDS
        if last["role"] == "assistant" and self.prefill:
            must = next((one.must for one in (*CERTAIN, BLANK) if one.begun == last["content"]), b" x")
            shares = {must.decode(): 0.9, "?": 0.1}
        scale = body["temperature"] if self.after else 1.0
        raised = {token: share ** (1 / scale) for token, share in shares.items()}
        drift = self.noise * (next(self.numbers) % 2)
        entries = [
            {"token": token, "logprob": math.log(share / sum(raised.values())) - drift, "bytes": list(token.encode())}
            for token, share in raised.items()
        ]
        content = [{**entries[0], "top_logprobs": entries}]
        return _whole(entries[0]["token"], logprobs={"content": content})

    def judged(self, asked: str) -> str:
        if self.grades is None:
            return "Fine."
        if "Better: tie" in asked:
            first = asked.find(GOOD) < asked.find("END OF ANSWER A")
            right, other = ("A", "B") if first else ("B", "A")
            good, bad = self.grades
            return f"Better: {right if good > bad else other if good < bad else 'tie'}"
        if "Score: N" not in asked:
            return "Fine."
        return f"Score: {self.grades[0] if GOOD in asked else self.grades[1]}"


def _whole(text: str, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length", **more}
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 1}}
