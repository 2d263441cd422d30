"""How many tokens a row has, as training reads it."""

from collections.abc import Callable

from ..distillation.chat import ChatSide
from ..errors import MissingDependency, UsageError
from ..teachers.template_messages import LeftOut, template_messages, tool_schemas
from .rows import Entry


class TokenCounter:
    """Tokens of a row: its conversation in the tokenizer's chat template, the answer, and the token that ends it.

    refused: rows that the template or the tokenizer's plain text has no place for; of these the tokens of their texts
    are counted.
    """

    def __init__(self, name: str, note: Callable[[str], None]) -> None:
        """Raises ModelNotFound; UsageError for a tokenizer that cannot be read; MissingDependency."""
        try:
            from ..teachers.tokenizer_loading import find, read

            self._tokenizer = read(find(name, note), name)
        except ModuleNotFoundError as error:
            raise MissingDependency(str(error.name), "--tokenizer", "train") from None
        self._tokenizer.name_or_path = name
        self._side = ChatSide(self._tokenizer)
        self.refused = 0
        self._last: tuple[Entry | None, int] = (None, 0)
        if self._side.note:
            note(self._side.note)

    def __call__(self, entry: Entry) -> int:
        if entry is not self._last[0]:  # several checks ask
            self._last = entry, self._tokens(entry)
        return self._last[1]

    def _tokens(self, entry: Entry) -> int:
        try:
            said = template_messages([*entry.messages, *entry.said])
            before, after = said[: len(entry.messages)], said[len(entry.messages) :]
            answer = "".join(message["content"] for message in after)
            text = self._side.prompt_text(before, tool_schemas(entry.metadata.get("tools")))
        except (LeftOut, UsageError):
            self.refused += 1
            return self._count(entry.text)
        return self._count(text) + (self._count(answer) + 1 if entry.said else 0)

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
