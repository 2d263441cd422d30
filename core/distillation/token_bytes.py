"""The canonical bytes of every token of a tokenizer, and any bytes as its tokens."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from ..errors import UsageError

Ints = NDArray[np.int64]
Ids = Sequence[int] | NDArray[np.integer[Any]]
METASPACE = "▁"
NO_TEXT = "\ufffd".encode()
"""U+FFFD, the replacement character: the bytes of an id without a text (a padding row of the embeddings)."""
KEPT = {"NFC", "Prepend", "Replace"}
"""Normalisers that can be passed by. Prepend and Replace write SentencePiece's spaces. NFC (Qwen 2) composes accents:
ids are read and bytes are encoded here without it, so that a letter and its accent stay what they are."""


class TokenBytes:
    """What each id of a fast tokenizer stands for, in bytes, so that two tokenizers can be compared.

    ByteLevel "Ġthe", SentencePiece "▁the" and " the" are all b" the"; "<0xE2>" is b"\\xe2" where the tokenizer falls
    back to bytes; a special or added token is its own text in UTF-8. Every id stands for at least
    one byte.

    pieces: (V,) the bytes of each id.          lengths: (V,) how many they are.
    special: (V,) special tokens.               added: (V,) special tokens and all others matched in text as a whole.
    fallback: (V,) SentencePiece's byte tokens. known: (V,) ids that the tokenizer has a text for.
    size: V, one more than the tokenizer's largest id.

    Raises UsageError for a slow tokenizer, for one that normalises its text (NFKC, lowercase, ...: the bytes of the
    text cannot be recovered), and for one whose tokens do not spell bytes (WordPiece, "</w>").
    """

    def __init__(self, tokenizer: Any) -> None:
        self.name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UsageError(
                f"{self.name} is not a fast tokenizer: its tokens cannot be mapped to bytes. "
                "Use a model that comes with a tokenizer.json."
            )
        parts = _parts(backend, self.name)
        falls_back = any(step["type"] == "ByteFallback" for step in _flat(parts["decoder"]))
        self._byte_level = _kind(parts, backend, self.name)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.size = max(vocabulary.values(), default=-1) + 1
        self.special, self.added, self.fallback, self.known = (np.zeros(self.size, np.bool_) for _ in range(4))
        self.added[list(added)] = True
        specials = {place for place, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self.special[[place for place in specials if 0 <= place < self.size]] = True
        self.pieces: list[bytes] = [NO_TEXT] * self.size
        spelt = _byte_level_pieces if self._byte_level else _metaspace_pieces
        for place, piece in spelt(vocabulary, falls_back):
            self.pieces[place] = piece or NO_TEXT
            self.known[place] = bool(piece)
        for place, token in added.items():
            # Gemma adds "▁▁" for two spaces; in the name of a special token the sign is itself.
            literal = self._byte_level or self.special[place]
            text = token.content if literal else token.content.replace(METASPACE, " ")
            self.pieces[place], self.known[place] = text.encode(), True
        self.lengths: Ints = np.fromiter(map(len, self.pieces), np.int64, self.size)
        if not self._byte_level and falls_back:
            names = [vocabulary.get(f"<0x{byte:02X}>") for byte in range(256)]
            self.fallback[[place for place in names if place is not None and not self.added[place]]] = True
        self._unknown: int | None = tokenizer.unk_token_id
        self._plain = _without_specials(backend, parts)
        copied = {place: self._plain.token_to_id(token.content) for place, token in added.items()}
        self._places: Ints = np.arange(max([self.size - 1, *(own for own in copied.values() if own is not None)]) + 1)
        for place, own in copied.items():  # the copy may have numbered them anew
            if own is not None:
                self._places[own] = place

    def of(self, ids: Ids) -> bytes:
        """The bytes of a row of tokens."""
        size, pieces = self.size, self.pieces
        return b"".join(pieces[place] if place < size else NO_TEXT for place in self._checked(ids).tolist())

    def ends(self, ids: Ids) -> Ints:
        """(n,) cumulative byte ends of a row of tokens."""
        array = self._checked(ids)
        if not self.size:
            return np.cumsum(np.full(array.shape, len(NO_TEXT)))
        known = self.lengths[np.minimum(array, self.size - 1)]
        return np.cumsum(np.where(array < self.size, known, len(NO_TEXT)))

    def encode(self, data: bytes) -> list[int]:
        """Ids that stand for exactly these bytes as they go on in the middle of a text: no beginning of text, no prefix
        space, no special tokens (their names are text here). What is no UTF-8 is spelt in tokens of single bytes.

        Raises UsageError when the tokenizer has no token for a character and none for its bytes (see `spell`).
        """
        ids, lengths = self._spelt(data)
        if not np.array_equal(self.lengths[ids], lengths):
            where = int(np.sum(lengths[: int(np.argmax(self.lengths[ids] != lengths))]))
            text = data[where : where + 4].decode(errors="replace")[:1]
            raise UsageError(
                f"{self.name} has no token for byte 0x{data[where]:02X} ({text!r}, byte {where} of a text)."
            )
        return ids

    def spell(self, data: bytes) -> tuple[list[int], Ints]:
        """Ids as from `encode`, and (n,) where each ends in `data`.

        Some vocabularies cannot spell everything (SmolLM2 has no token for the byte 0xFF). There the replacement
        character or the unknown token stands in: its first token ends where the bytes do, the others are empty.
        Raises UsageError when the tokenizer has neither.
        """
        ids, lengths = self._spelt(data)
        return ids, np.cumsum(np.asarray(lengths, np.int64))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything above: equal for tokenizers with the same ids of the same bytes."""
        whole = hashlib.sha256(self.lengths.tobytes())
        for part in (self.special, self.added, self.fallback, self.known):
            whole.update(part.tobytes())
        whole.update(b"".join(self.pieces))
        return whole.hexdigest()

    @cached_property
    def _bytes(self) -> list[int | None]:
        """An id for each byte. SentencePiece: its byte tokens; there may be none for some."""
        found: list[int | None] = [None] * 256
        single = (self.lengths == 1) & ~self.added & self.known
        for place in [*np.flatnonzero(single & ~self.fallback)[::-1], *np.flatnonzero(single & self.fallback)]:
            found[self.pieces[place][0]] = int(place)
        return found

    def _checked(self, ids: Ids) -> Ints:
        array = np.asarray(ids, np.int64)
        if array.size and int(array.min()) < 0:
            raise ValueError(f"token id {int(array.min())} is negative: completions come without padding or masks")
        return array

    def _spelt(self, data: bytes) -> tuple[list[int], list[int]]:
        """Ids, and how many bytes of `data` each one stands for."""
        ids: list[int] = []
        lengths: list[int] = []
        for part in re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape")):
            if part and "\udc80" <= part[0] <= "\udcff":
                self._add_bytes(part.encode("utf-8", "surrogateescape"), ids, lengths)
            elif self._byte_level or METASPACE not in part:
                self._add_text(part, ids, lengths)
            else:  # the sign itself, where it is no space
                for text in re.split(f"({METASPACE})", part):
                    if text == METASPACE:
                        self._add_bytes(text.encode(), ids, lengths)
                    else:
                        self._add_text(text, ids, lengths)
        return ids, lengths

    def _add_text(self, text: str, ids: list[int], lengths: list[int]) -> None:
        """A text without surrogates (and, for SentencePiece, without its sign for a space)."""
        while text:
            written = text if self._byte_level else text.replace(" ", METASPACE)
            places = self._places[self._plain.encode(written, add_special_tokens=False).ids]
            right = self._right(places, text.encode())
            if right is None:
                ids += places.tolist()
                lengths += self.lengths[places].tolist()
                return
            if len(text) == 1:
                self._add_bytes(text.encode(), ids, lengths)
                return
            # An unknown character, or pieces that join to a special token's name: only it is spelt by itself.
            wrong = min(len(text.encode()[:right].decode(errors="ignore")), len(text) - 1)
            for part in (text[:wrong], text[wrong]):
                self._add_text(part, ids, lengths)
            text = text[wrong + 1 :]

    def _right(self, places: Ints, data: bytes) -> int | None:
        """None when the tokens spell `data` without a special one, else how many bytes they do so at its start."""
        if not self.special[places].any() and self.of(places) == data:
            return None
        done = 0
        for place in places.tolist():
            if self.special[place] or not data.startswith(self.pieces[place], done):
                break
            done += len(self.pieces[place])
        return done

    def _add_bytes(self, data: bytes, ids: list[int], lengths: list[int]) -> None:
        """Bytes that are no text, or one character that has no token."""
        singles = [self._bytes[byte] for byte in data]
        if self._byte_level and None not in singles:  # as a whole character begins, where there is such a token
            letters = "".join(LETTERS[byte] for byte in data)
            places = np.asarray([token.id for token in self._plain.model.tokenize(letters)], np.int64)
            if not (self.special | self.added)[places].any() and self.of(places) == data:
                ids += places.tolist()
                lengths += self.lengths[places].tolist()
                return
        for place in singles:
            whole = [place] if place is not None else self._stand_in
            ids += whole
            lengths += [1] + [0] * (len(whole) - 1)

    @cached_property
    def _stand_in(self) -> list[int]:
        """The tokens of U+FFFD, else the unknown token."""
        singles = [self._bytes[byte] for byte in NO_TEXT]
        if None not in singles:
            ids: list[int] = []
            self._add_text(NO_TEXT.decode(), ids, [])
            return ids
        if self._unknown is not None:
            return [self._unknown]
        raise UsageError(
            f"{self.name} cannot read every text: it has no token for each byte and none for what it does not know. "
            "Choose a model whose tokenizer works on bytes or falls back to them."
        )


def same_tokens(student: TokenBytes, teacher: TokenBytes) -> bool:
    """Whether an id means the same on both sides, so that what one sampled can be given to the other as it is.

    All ids that both have must have the same bytes and be special, or matched as a whole, alike. One side may have
    more of them, if these are added tokens or have no text: families add some to a later model, and pad.
    """
    shared = min(student.size, teacher.size)
    if not shared or student.pieces[:shared] != teacher.pieces[:shared]:
        return False
    for ours, theirs in (
        (student.special, teacher.special),
        (student.added, teacher.added),
        (student.known, teacher.known),
    ):
        if not np.array_equal(ours[:shared], theirs[:shared]):
            return False
    return all(bool((side.added | ~side.known)[shared:].all()) for side in (student, teacher))


def _alphabet() -> list[str]:
    """The letter that ByteLevel writes for each byte: itself where it is printable in Latin-1, else the next of U+0100
    and above (GPT-2, Radford et al., 2019)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


LETTERS = _alphabet()


def _byte_level_pieces(vocabulary: dict[str, int], byte_fallback: bool) -> Iterator[tuple[int, bytes]]:
    # What is not in the alphabet cannot come from bytes; Latin-1 has no place for it and it is taken as written.
    table: dict[int, int] = defaultdict(lambda: 0xFFFF, {ord(letter): byte for byte, letter in enumerate(LETTERS)})
    for piece, place in vocabulary.items():
        try:
            yield place, piece.translate(table).encode("latin-1")
        except UnicodeEncodeError:
            yield place, piece.encode()


def _metaspace_pieces(vocabulary: dict[str, int], byte_fallback: bool) -> Iterator[tuple[int, bytes]]:
    bytes_ = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)} if byte_fallback else {}
    for piece, place in vocabulary.items():
        yield place, bytes_.get(piece) or piece.replace(METASPACE, " ").encode()


def _parts(backend: Tokenizer, name: str) -> dict[str, Any]:
    """How the tokenizer treats text before and after its model, without the vocabulary: the JSON of its parts."""
    bare = Tokenizer(models.BPE())
    try:
        if backend.normalizer is not None:
            bare.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            bare.pre_tokenizer = backend.pre_tokenizer
        if backend.decoder is not None:
            bare.decoder = backend.decoder
        return json.loads(bare.to_str())
    except Exception as error:  # a part written in Python; the library raises plain Exceptions
        raise UsageError(f"the tokenizer of {name} has a part that cannot be read ({error})") from None


def _flat(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normaliser, pre-tokenizer or decoder as the list of its steps."""
    if part is None:
        return []
    for inner in ("normalizers", "pretokenizers", "decoders"):
        if inner in part:
            return [step for each in part[inner] for step in _flat(each)]
    return [part]


def _kind(parts: dict[str, Any], backend: Tokenizer, name: str) -> bool:
    """Whether tokens are ByteLevel (else SentencePiece). Raises UsageError for the ones that bytes cannot be had of."""
    steps = _flat(parts["normalizer"])
    lossy = [step["type"] for step in steps if step["type"] not in KEPT]
    for step in steps:
        if step["type"] == "Replace" and (step["pattern"].get("String"), step["content"]) != (" ", METASPACE):
            lossy.append(f"Replace {step['pattern']}")
        if step["type"] == "Prepend" and step["prepend"] != METASPACE:
            lossy.append(f"Prepend {step['prepend']!r}")
    if lossy:
        raise UsageError(
            f"the tokenizer of {name} normalises its text ({', '.join(lossy)}): the bytes that a token stands for "
            "cannot be recovered. Choose a model whose tokenizer keeps its text, such as Qwen, Llama, SmolLM or Phi-3."
        )
    decoder = _flat(parts["decoder"])
    kinds = {step["type"] for step in decoder}
    if "ByteLevel" in kinds:
        return True
    affixes = [getattr(backend.model, end, None) for end in ("continuing_subword_prefix", "end_of_word_suffix")]
    spaces = any(step["type"] == "Replace" and step["content"] == " " for step in decoder) or "Metaspace" in kinds
    if not spaces or any(affixes) or not isinstance(backend.model, models.BPE | models.Unigram):
        raise UsageError(
            f"the tokens of {name} do not spell bytes ({type(backend.model).__name__}, decoder "
            f"{', '.join(sorted(kinds)) or 'none'}). "
            "Choose a model with a byte-level or SentencePiece tokenizer."
        )
    return False


def _without_specials(backend: Tokenizer, parts: dict[str, Any]) -> Tokenizer:
    """The same model for text alone: no normaliser, no prefix space, no special tokens. The vocabulary is shared."""
    plain = Tokenizer(backend.model)
    if parts["pre_tokenizer"] is not None:
        bare = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
        shaped = Tokenizer.from_str(json.dumps(bare | {"pre_tokenizer": _without_prefix(parts["pre_tokenizer"])}))
        assert isinstance(shaped.pre_tokenizer, pre_tokenizers.PreTokenizer)
        plain.pre_tokenizer = shaped.pre_tokenizer
    plain.add_tokens([token for token in backend.get_added_tokens_decoder().values() if not token.special])
    return plain


def _without_prefix(part: dict[str, Any]) -> dict[str, Any]:
    if "pretokenizers" in part:
        return part | {"pretokenizers": [_without_prefix(each) for each in part["pretokenizers"]]}
    part = dict(part)
    if "add_prefix_space" in part:
        part["add_prefix_space"] = False
    if "prepend_scheme" in part:
        part["prepend_scheme"] = "never"
    return part
