"""Source documents, cut into passages that questions are asked about."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import orjson

from ..data.text import path_text
from ..errors import InputError
from .records import Passage

TEXT, ROWS = (".txt", ".md", ".markdown", ".rst"), (".jsonl", ".ndjson")
KEYS = ("text", "content", "passage", "document", "prompt")
"""Of a .jsonl row: the first that holds text is a document."""
FEWEST_LETTERS = 20
"""Of a passage. Nothing can be asked about less."""

HEADING = re.compile(r"#{1,6} .*|.+\n([=\-~^\"'*+#])\1+\s*")  # of Markdown and reStructuredText
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+|(?<=[。！？])|\n")
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def read_passages(path: Path, characters: int) -> tuple[list[Passage], list[str]]:
    """The passages of a file, or of all files of a folder by their names, each once, and notes on what was left out.

    Hidden files and links that lead out of the folder are not read. characters: about how long a passage is.
    Raises InputError: nothing there, a file that is not UTF-8 text, broken rows, no text at all.
    """
    files, notes = _files(path)
    passages: list[Passage] = []
    empty: list[str] = []
    seen: set[str] = set()
    repeated = 0
    for file in files:
        name = path_text(file.relative_to(path) if path.is_dir() else file.name)
        cuts = [part for text in _texts(file) for part in cut(text, characters)]
        cuts = [part for part in cuts if sum(map(str.isalnum, part)) >= FEWEST_LETTERS]
        if not cuts:
            empty.append(name)
        for number, part in enumerate(cuts, 1):
            same = " ".join(part.split()).casefold()
            repeated += same in seen
            if same not in seen:
                seen.add(same)
                passages.append(Passage(f"{name}#{number}", part))
    if not passages:
        raise InputError(path, None, f"no text to ask about: {_named(empty)} held fewer than {FEWEST_LETTERS} letters.")
    if empty:
        notes.append(f"documents: no text to ask about in {_named(empty)}")
    if repeated:
        notes.append(f"documents: {repeated:,} passages were there already and are used once")
    return passages, notes


def utf8_text(path: Path) -> str:
    """A file's text. Raises InputError for one that is not there, cannot be read, or is not UTF-8."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(path, None, "no such file.") from None
    except OSError as error:
        raise InputError(path, None, f"cannot be read: {error.strerror or error}.") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(path, 1, "UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8")
    zero = data.find(b"\0")
    if zero >= 0:
        raise InputError(path, data.count(b"\n", 0, zero) + 1, "not text (it holds zero bytes). Take it away.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(path, line, "not UTF-8. Convert it: iconv -f LATIN1 -t UTF-8") from None


def cut(text: str, characters: int) -> Iterator[str]:
    """A text in passages of about so many characters, and at most a quarter more, headings not counted.

    Cut between paragraphs, else between sentences, words, characters. A heading stays with what comes below it, and
    begins a passage where the one before is half full. Nothing but blanks is lost.
    """
    passage = ""
    for unit in _units(text, characters):
        both, less = len(passage) + 2 + len(unit), min(len(passage), len(unit))
        fits = both <= characters or (less < characters / 4 and both <= characters * 1.25)
        is_section = HEADING.match(unit) is not None and len(passage) >= characters / 2
        if passage and (is_section or not fits):
            yield passage
            passage = ""
        passage += "\n\n" + unit if passage else unit
    if passage:
        yield passage


def _units(text: str, characters: int) -> Iterator[str]:
    """Paragraphs, or parts of long ones, with the headings above them."""
    headings = ""
    for block in re.split(r"\n\s*\n", text):
        block = block.strip("\n").rstrip()
        if HEADING.fullmatch(block):
            headings += block + "\n\n"
        elif block:
            for part in _parts(block, characters):
                yield headings + part
                headings = ""
    if headings:
        yield headings.rstrip()


def _parts(block: str, characters: int) -> Iterator[str]:
    start = 0
    while len(block) - start > characters:
        half, end = start + characters // 2, start + characters
        ends = [found.end() for found in SENTENCE_END.finditer(block, half, end)]
        cut_at = ends[-1] if ends else block.rfind(" ", half, end) + 1 or end
        if part := block[start:cut_at].strip():
            yield part
        start = cut_at
    if part := block[start:].rstrip():
        yield part


def _texts(file: Path) -> Iterator[str]:
    """The documents in a file: itself, or its rows."""
    text = utf8_text(file)
    if file.suffix.lower() in ROWS:
        yield from _rows(file, text)
    else:
        text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n")
        yield FRONT_MATTER.sub("", text) if file.suffix.lower() in (".md", ".markdown") else text


def _rows(file: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InputError(file, number, f"not JSON: {error.msg}.") from None
        found = [row] if isinstance(row, str) else [row.get(key) for key in KEYS] if isinstance(row, dict) else []
        document = next((each for each in found if isinstance(each, str)), None)
        if document is None:
            raise InputError(file, number, f"no text: a row holds one under one of the keys {', '.join(KEYS)}.")
        yield document


def _files(path: Path) -> tuple[list[Path], list[str]]:
    """What is read, in the order of the names, and notes on what is not."""
    suffixes = ", ".join((*TEXT, *ROWS))
    if path.is_file():
        if path.suffix.lower() not in (*TEXT, *ROWS):
            raise InputError(path, None, f"is none of {suffixes}. Make a text of it first (pdftotext, pandoc).")
        return [path], []
    if not path.is_dir():
        raise InputError(path, None, "no such file or folder. Name one with --documents.")
    files: list[Path] = []
    others: list[str] = []
    home = path.resolve()
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for file in (Path(folder, each) for each in names if not each.startswith(".")):
            readable = file.suffix.lower() in (*TEXT, *ROWS) and file.is_file()
            if readable and file.resolve().is_relative_to(home):
                files.append(file)
            else:
                others.append(path_text(file.relative_to(path)))
    if not files:
        found = f" (found: {_named(sorted(others))})" if others else ""
        raise InputError(path, None, f"holds none of {suffixes}{found}.")
    files.sort(key=lambda file: path_text(file.relative_to(path)))
    notes = [f"documents: not read, being no {suffixes} of this folder: {_named(sorted(others))}"] if others else []
    return files, notes


def _refuse(error: OSError) -> NoReturn:
    raise InputError(error.filename, None, f"cannot be read: {error.strerror}.") from None


def _named(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} others" if len(names) > most else ""
    return ", ".join(names[:most]) + more
