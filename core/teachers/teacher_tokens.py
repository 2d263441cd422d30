"""Tokens as a server names them -> the ids of the teacher's own tokenizer."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..distillation.token_bytes import TokenBytes
from .api_tokens import Named

NONE = -1
"""In place of an id."""
MISREAD = 0.05
"""Share of known tokens that may have another text at the server: decoding single tokens loses blanks and the like."""
REPLACEMENT = "\ufffd".encode()
"""What servers write for bytes that are no whole character."""


class TeacherTokens:
    """The vocabulary that a server is asked in.

    table: the bytes of each id.   written: (token as its vocabulary writes it -> id), as some servers send them.
    bos: the beginning of a text, where the tokenizer has one.   width: one more than the largest id.
    read: a text as the tokenizer's ids, with what it puts in front; None: nobody knows how texts are read.
    """

    def __init__(
        self,
        table: TokenBytes,
        written: Mapping[str, int],
        bos: int | None,
        read: Callable[[str], Sequence[int]] | None = None,
    ) -> None:
        self.table, self.bos, self.width = table, bos, table.size
        self._read = read
        self._adds_bos = read is not None and bos is not None and list(read(""))[:1] == [bos]
        self._written = {text.encode("utf-8", "surrogatepass"): place for text, place in written.items()}
        # Several ids may spell the same bytes. Written last, and so found: a plain token, before a byte token of
        # SentencePiece, before one that is matched as a whole; of equals the smallest id.
        rank = np.where(table.added | table.special, 2, np.where(table.fallback, 1, 0))
        order = np.lexsort((np.arange(table.size), rank))[::-1]
        self._ids = {table.pieces[place]: int(place) for place in order.tolist() if table.known[place]}

    def id_of(self, token: Named) -> int:
        """NONE for what no id stands for, and for text that stands for several ("\\ufffd", and "": parts of
        characters)."""
        if isinstance(token, int):
            return token if token < self.width else NONE
        if not token or REPLACEMENT in token:
            return NONE
        place = self._ids.get(token)
        return self._written.get(token, NONE) if place is None else place

    def top(self, named: Iterable[tuple[Named, float | None]]) -> dict[int, float]:
        """id -> log-probability in nats. Names that mean the same id are added up; what has no id or no
        log-probability is left out: it is part of what remains for all other tokens."""
        found: dict[int, float] = {}
        for token, logprob in named:
            place = self.id_of(token)
            if place != NONE and logprob is not None:
                found[place] = float(np.logaddexp(found[place], logprob)) if place in found else logprob
        return found

    def same(self, token: Named, place: int) -> bool:
        """Whether a server that writes `token` can mean this id. Where it writes only a part of what there is (parts of
        characters, nothing for a special token) it can."""
        if isinstance(token, int):
            return token == place
        piece = self.table.pieces[place]
        if token == piece or self._written.get(token) == place:
            return True
        if self.table.special[place] or self.table.added[place]:
            return not token
        return token in (piece.decode(errors="replace").encode(), piece.decode(errors="ignore").encode())

    def written(self, ids: Sequence[int]) -> str | None:
        """The text that a server with this tokenizer reads as these ids; None where it would read others.

        Without the BOS that the tokenizer puts in front itself. Raises UnicodeDecodeError for half a character.
        """
        own = self._adds_bos and list(ids[:1]) == [self.bos]
        text = self.table.of(ids[1:] if own else ids).decode()
        if self._read is None:
            return text
        found = list(self._read(text))
        if self._adds_bos and not own:  # whatever is written, it puts one more in front, and `where` knows
            found = found[1:]
        return text if found[: len(ids)] == list(ids) else None

    def where(self, told: Sequence[Named], prompt: Sequence[int], completion: Sequence[int]) -> int | None:
        """Where in `told` the completion begins, when `told` begins with these tokens; None when it does not.

        Servers put a BOS in front of a prompt without one, and llama-cpp-python tells nothing of any BOS: one at the
        front is no difference, and those of the prompt may all be missing. Two are another text.
        """
        silent = [place for place in prompt if place != self.bos]
        doubled = self.bos is not None and list(prompt[:1]) == [self.bos]
        for before, first in ((prompt, 0), (prompt, 1), (silent, 0)):
            if first and doubled:
                continue
            expected = [*before, *completion]
            stop = first + len(expected)
            if len(told) < stop or (first and not self._begins(told[0])):
                continue
            if all(map(self.same, told[first:stop], expected)):
                return stop - len(completion)
        return None

    def spelt_otherwise(self, ids: Sequence[int], texts: Sequence[str | None]) -> tuple[int, str] | None:
        """(an id, the server's text of it) when more than a few ids have other texts there: it has another tokenizer.

        Compared where a token is whole characters, and without blanks around it: servers decode single tokens, and
        SentencePiece loses the blank before a word then.
        """
        compared: list[tuple[int, str, bool]] = []
        for place, text in zip(ids, texts, strict=True):
            piece = self.table.pieces[place].decode(errors="replace")
            if not text or "\ufffd" in text + piece or self.table.special[place] or self.table.added[place]:
                continue
            known = text.strip() == piece.strip() or self._written.get(text.encode("utf-8", "surrogatepass")) == place
            compared.append((place, text, known))
        other = [(place, text) for place, text, known in compared if not known]
        return other[0] if len(other) > max(1, MISREAD * len(compared)) else None  # a single odd one proves nothing

    def _begins(self, token: Named) -> bool:
        """Whether it can be the beginning of a text that nobody wrote."""
        if self.bos is not None:
            return self.same(token, self.bos)
        return token == b"" or (isinstance(token, bytes) and re.fullmatch(rb"<[^<>\s]+>", token) is not None)


def padded(rows: Sequence[Mapping[int, float]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of id -> log-probability as (T, W) arrays; where a row is shorter: NONE and NaN."""
    width = max(map(len, rows), default=0)
    ids, logprobs = np.full((len(rows), width), NONE, np.int64), np.full((len(rows), width), np.nan)
    for number, row in enumerate(rows):
        ids[number, : len(row)], logprobs[number, : len(row)] = list(row), list(row.values())
    return ids, logprobs
