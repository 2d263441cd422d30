"""A Modelfile for Ollama, which does not read the chat template inside a GGUF file.

Ollama has templates in the language of Go. A chat template that puts something fixed before and after every message is
taken apart and written in that language; others are left to the user, and the Modelfile says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..teachers.hf_model import load_tokenizer

SYSTEM, USER, ANSWER, NEXT = "first-word", "second-word", "third-word", "fourth-word"
ASKED = {"role": "user", "content": USER}
ANSWERED = {"role": "assistant", "content": ANSWER}
ASKED_AGAIN = {"role": "user", "content": NEXT}
TOLD = {"role": "system", "content": SYSTEM}
CONVERSATIONS = (
    [ASKED],
    [TOLD, ASKED],
    [ASKED, ANSWERED, ASKED_AGAIN],
    [TOLD, ASKED, ANSWERED, ASKED_AGAIN, ANSWERED, ASKED],
)
"""What a template that was taken apart must write as the original does."""

Render = Callable[[Sequence[dict[str, str]], bool], str]


@dataclass(frozen=True)
class Form:
    """What stands before and after the content of a message of each role.

    start: before the first message where that is not the system's: a default system message, perhaps.
    generation: after all messages, where the answer begins.
    """

    start: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation that is to be answered."""
        parts = [] if messages[0]["role"] == "system" else [self.start]
        for message in messages:
            before, after = getattr(self, message["role"])
            parts += [before, message["content"], after]
        return "".join([*parts, self.generation])

    def go(self) -> str | None:
        """The same as a template of Go's; None where its own signs stand in the text."""
        said = "".join([self.start, *self.system, *self.user, *self.assistant, self.generation])
        if any(sign in said for sign in ("{{", "}}", '"""')):
            return None
        roles = "{{ else ".join(
            f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for role, (before, after) in (("system", self.system), ("user", self.user), ("assistant", self.assistant))
        )
        start = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{self.start}{{{{ end }}}}' if self.start else ""
        return f"{start}{{{{ range .Messages }}}}{{{{ {roles}{{{{ end }}}}{{{{ end }}}}{self.generation}"


def modelfile(model_folder: Path, gguf: str, note: Callable[[str], None]) -> str:
    """The text of a Modelfile beside a .gguf file of that name. Raises UsageError when the tokenizer cannot be loaded.

    note: told when Ollama will need a template of the user's.
    """
    form = form_of(load_tokenizer(model_folder, chat=False))
    template = form.go() if form else None
    lines = [f"# ollama create NAME -f Modelfile && ollama run NAME\nFROM ./{gguf}"]
    if template is None:
        note(
            "Modelfile: the chat template cannot be put into Ollama's language; llama-server reads the one in the GGUF"
        )
        lines.append("# Ollama cannot read this model's chat template: give it one, TEMPLATE, before you chat.")
    else:
        lines.append("# Text only. For tool calls use llama-server --jinja, which reads the template inside the file.")
        lines.append(f'TEMPLATE """{template}"""')
    return "\n".join(lines) + "\n"


def form_of(tokenizer: Any) -> Form | None:
    """A tokenizer's chat template taken apart; None when it does more than put something around each message."""
    bos = tokenizer.bos_token or ""
    adds_bos = bool(bos) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]

    def render(messages: Sequence[dict[str, str]], answer: bool) -> str:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        return text.removeprefix(bos) if adds_bos else text  # llama.cpp puts it there, too

    try:
        form = _taken_apart(render)
        if form and all(form.render(messages) == render(messages, True) for messages in CONVERSATIONS):
            return form
    except Exception:  # templates refuse what they will, with errors of any kind
        pass
    return None


def _taken_apart(render: Render) -> Form | None:
    """Raises ValueError when a content does not come back just once, and what the template raises."""
    asked = render([ASKED], False)
    head, user_after = asked.split(USER)
    _, told, _ = _between(render([TOLD, ASKED], False), SYSTEM, USER)
    told_before = render([TOLD, ASKED], False).split(SYSTEM)[0]
    _, to_answer, rest = _between(render([ASKED, ANSWERED, ASKED_AGAIN], False), USER, ANSWER)
    to_next = rest.split(NEXT)[0]
    if not to_answer.startswith(user_after):
        return None
    # What stands between an answer and the next question belongs partly to each. The end of turn is mostly the same
    # for both roles; otherwise as much as possible of it is what stands before the first question too.
    if to_next.startswith(user_after) and head.endswith(to_next[len(user_after) :]):
        answer_after = user_after
    else:
        starts = range(len(to_next) + 1)
        answer_after = next(
            to_next[:at] for at in starts if head.endswith(to_next[at:]) and told.endswith(to_next[at:])
        )
    user_before = to_next[len(answer_after) :]
    if not (head.endswith(user_before) and told.endswith(user_before)):
        return None
    return Form(
        start=head.removesuffix(user_before),
        system=(told_before, told.removesuffix(user_before)),
        user=(user_before, user_after),
        assistant=(to_answer[len(user_after) :], answer_after),
        generation=render([ASKED], True)[len(asked) :],
    )


def _between(text: str, first: str, second: str) -> tuple[str, str, str]:
    before, rest = text.split(first)
    between, after = rest.split(second)
    return before, between, after
