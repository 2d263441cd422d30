"""The job: read once, count everything, keep the few that are wanted, show them."""

import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..commands.show import Picked, Show, Shown
from ..data.jsonlines import cannot_write
from ..data.run import Run, write_atomic
from ..errors import InputError, UsageError
from .clean import clean
from .entries import Broken, Entry, Source, open_source
from .overview import Tally
from .terminal import Screen

PATIENCE_S = 2.0
"""Reading that takes longer is reported as progress."""
WIDEST = 110
"""Columns: longer lines tire the eye."""


def show(options: Show, run: Run) -> Shown:
    """Show rows or rollouts through `run.out`, or write them as a page.

    Raises UsageError: nothing to show there, no such index, the page cannot be written.
    """
    if options.html is not None:
        _check_page(options.html, options.path)
    source = open_source(options.path)
    chosen = _Choice(options, source)
    tally = Tally(source.kind)
    whole = True
    for entry in _watched(source, run):
        if run.stop.requested:
            whole = False
            break
        if not options.overview and chosen.complete(entry.index):
            whole = False
            break
        if isinstance(entry, Broken):
            tally.broken(entry)
        else:
            tally.entry(entry)
        chosen.offer(entry)
    if whole:
        _check_something_readable(options.path, tally)
    notes = chosen.notes(tally.entries + tally.unreadable, whole)
    picked = chosen.picked()
    result = Shown(
        status="interrupted" if run.stop.requested else "some_failed" if tally.unreadable else "done",
        path=options.path,
        overview=tally.overview(whole),
        matching=chosen.matching,
        shown=[_listed(entry) for entry in picked],
        notes=notes,
        html=options.html,
    )
    if options.html is None:
        _print(options, result, picked, run.out)
        return result
    return _write_page(options.html, options, result, picked)


def _print(options: Show, result: Shown, picked: list[Entry | Broken], out: Callable[[str], None]) -> None:
    screen = Screen(
        width=options.width or min(WIDEST, shutil.get_terminal_size().columns),
        color=colored(options.color),
        full=options.full,
        hits=_pattern(options),
    )
    if options.overview:
        out(screen.overview(str(options.path), result.overview))
    for entry in picked:
        out(screen.broken(entry) if isinstance(entry, Broken) else screen.entry(entry))


def _write_page(path: Path, options: Show, result: Shown, picked: list[Entry | Broken]) -> Shown:
    from .page import page

    text, written = page(str(options.path), result, picked, full=options.full, search=options.search or "")
    data = text.encode()
    try:
        write_atomic(path, data)
    except OSError as error:
        raise UsageError(cannot_write(path, error)) from None
    notes = [*result.notes]
    if written < len(picked):
        notes.append(f"the page is full after {written:,} of {len(picked):,}: choose fewer with --limit or --index")
    return result.model_copy(update={"html_bytes": len(data), "shown": result.shown[:written], "notes": notes})


def _check_page(page: Path, path: Path) -> None:
    """Raises UsageError for a place where no page can be written, before anything is read."""
    if page.is_dir():
        raise UsageError(f"--html {page} is a folder. Name a file: --html {page / 'page.html'}")
    if not page.parent.is_dir():
        raise UsageError(f"--html {page}: the folder {page.parent} does not exist. Create it: mkdir -p {page.parent}")
    if page.exists() and page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {page} exists and is not named .html: it would be replaced. Choose another name.")
    if page.exists() and path.exists() and page.samefile(path):
        raise UsageError(f"--html {page} is the input itself. Choose another name.")


def _check_something_readable(path: Path, tally: Tally) -> None:
    if tally.entries:
        return
    if not tally.unreadable:
        raise InputError(path, None, "holds no rows.")
    examples = [f"{bad.place}: {bad.reason}" for bad in tally.overview(True).unreadable_examples[:5]]
    more = f"\n  and {tally.unreadable - len(examples):,} more" if tally.unreadable > len(examples) else ""
    raise InputError(path, None, "nothing in it can be shown:\n  " + "\n  ".join(examples) + more)


def _watched(source: Source, run: Run) -> Iterator[Entry | Broken]:
    """All entries, with progress when it takes long."""
    began, watching = time.monotonic(), False
    for number, entry in enumerate(source.read(), 1):
        yield entry
        if not watching and time.monotonic() - began > PATIENCE_S:
            watching = True
            run.progress.begin("reading", total=source.total, unit="rows" if source.kind == "rows" else "rollouts")
        if watching:
            run.progress.counts.done = number
            run.progress.tick()
    if watching:
        run.progress.end()


def _listed(entry: Entry | Broken) -> Picked:
    if isinstance(entry, Broken):
        return Picked(index=entry.index, place=entry.place, title=entry.reason, verdict="unreadable")
    return Picked(index=entry.index, place=entry.place, title=entry.title, verdict=entry.verdict)


def _pattern(options: Show) -> re.Pattern[str] | None:
    return re.compile(re.escape(clean(options.search)), re.IGNORECASE) if options.search else None


def colored(wish: bool | None) -> bool:
    """Whether to write colours: what the user says, else on a terminal unless NO_COLOR is set."""
    if wish is not None:
        return wish
    return bool(
        sys.stdout and sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


class _Choice:
    """Which entries are shown. Holds no more than those; a sample is drawn while reading (reservoir, Algorithm R)."""

    def __init__(self, options: Show, source: Source) -> None:
        self.matching = 0
        self._options = options
        self._ranges = options.ranges
        self._random = random.Random(options.seed)
        self._most = options.most if options.sample is None else min(options.most, options.sample)
        self._kept: list[Entry | Broken] = []
        if any(first < 0 for first, _ in self._ranges):  # counted from the end: read once to know where that is
            total = source.total if source.total is not None else sum(1 for _ in source.read())
            self._ranges = [(a + total, b + total) if a < 0 else (a, b) for a, b in self._ranges]

    def offer(self, entry: Entry | Broken) -> None:
        """Keep an entry if it is wanted."""
        if not self._wanted(entry):
            return
        self.matching += 1
        if len(self._kept) < self._most:
            self._kept.append(entry)
        elif self._options.sample is not None:
            place = self._random.randrange(self.matching)
            if place < self._most:
                self._kept[place] = entry

    def _wanted(self, entry: Entry | Broken) -> bool:
        if self._ranges and not any(first <= entry.index <= last for first, last in self._ranges):
            return False
        if isinstance(entry, Broken):
            return not self._options.search
        if self._options.failed and not entry.failed:
            return False
        return not self._options.search or entry.holds(self._options.search)

    def complete(self, index: int) -> bool:
        """Whether nothing from this index on can be wanted."""
        if self._options.sample is not None:
            return False
        return len(self._kept) >= self._most or bool(self._ranges and index > max(last for _, last in self._ranges))

    def picked(self) -> list[Entry | Broken]:
        """What is shown, in the input's order."""
        return sorted(self._kept, key=lambda entry: entry.index)

    def notes(self, total: int, whole: bool) -> list[str]:
        """What the user should know about the choice. Raises UsageError when no index exists."""
        notes: list[str] = []
        if self._ranges and whole:
            given = (self._options.index or "").replace(" ", "").split(",")
            outside = [
                word for word, (first, last) in zip(given, self._ranges, strict=True) if last >= total or first < 0
            ]
            beyond = [
                word for word, (first, last) in zip(given, self._ranges, strict=True) if first >= total or last < 0
            ]
            there = f"there are {total:,}, 0 to {total - 1:,}"
            if len(beyond) == len(given):
                raise UsageError(f"--index {','.join(beyond)}: no such index; {there} (-1 is the last).")
            if outside:
                notes.append(f"--index {','.join(outside)} goes past the end: {there}")
        if not self.matching:
            wishes = [f"--index {self._options.index}"] if self._options.index else []
            wishes += ["--failed"] if self._options.failed else []
            wishes += [f"--search {self._options.search!r}"] if self._options.search else []
            notes.append(f"nothing fits {' '.join(wishes)}")
        return notes
