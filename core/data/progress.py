"""One way to report: a command feeds a `Progress`, which draws a bar, prints plain lines, or writes JSON events."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import orjson

Mode = Literal["auto", "bar", "lines", "off"]


@dataclass
class Counts:
    """Where a piece of long work stands. `already` was there before this run and does not count into the rate."""

    what: str = ""
    unit: str = "rows"
    total: int | None = None
    already: int = 0
    done: int = 0
    failed: int = 0
    retrying: int = 0
    in_flight: int = 0
    tokens: int = 0
    spend_usd: float | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])


EVENTS_EVERY_S = 1.0
"""Whatever a person sees, a program that follows the events gets them at this pace."""


class Progress:
    """Counts, and a picture of them at most every `every_s` seconds. This base class draws nothing (mode "off").

    The work sets fields of `counts` freely and calls `tick()`; `note()` shows a line at once, whatever the mode.
    """

    every_s = 0.5

    def __init__(self, stream: IO[str] | None = None, events: Path | None = None) -> None:
        self.stream = stream or sys.stderr
        self.counts = Counts()
        self.live: dict[str, tuple[str, float]] = {}
        """Pieces of work on their way: what each is doing, and since when (time.monotonic)."""
        self.notes_are_events = True
        """Not for events that others keep: a note may hold what the user wrote, a key too."""
        self._events = open(events, "ab", buffering=0) if events else None  # noqa: SIM115  closed by close()
        self._started_s = self._next_s = self._next_event_s = time.monotonic()

    def begin(self, what: str, *, total: int | None, already: int = 0, unit: str = "rows") -> None:
        """Start a piece of work; a command may have several, one after another."""
        self.counts = Counts(what=what, unit=unit, total=total, already=already)
        self._started_s = time.monotonic()
        self._next_s = self._started_s + self.every_s
        self._next_event_s = self._started_s + EVENTS_EVERY_S
        self._open()
        self._event("begin")

    def tick(self) -> None:
        """Draw when it is time to. Cheap enough to call for every row."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + self.every_s
            self._draw()
        if now >= self._next_event_s:
            self._next_event_s = now + EVENTS_EVERY_S
            self._event("progress")

    def end(self) -> None:
        """Draw the last state."""
        self._draw()
        self._close()
        self._event("end")

    def note(self, text: str) -> None:
        """A line that a person must see; it stays above the bar."""
        self._line(text)
        self._event("note", text=text)

    def detail(self, text: str) -> None:
        """A line about one piece of work: for logs, not for a person who watches the live lines."""
        self._event("note", text=text)

    def close(self) -> None:
        """Close the events file; nothing is reported after that."""
        if self._events is not None:
            self._events.close()
            self._events = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    @property
    def rate(self) -> float:
        """Pieces of work finished per second since `begin`."""
        finished = self.counts.done + self.counts.failed
        return finished / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the rate so far; None while nothing is known."""
        counts = self.counts
        if counts.total is None or not self.rate:
            return None
        return max(0, counts.total - counts.already - counts.done - counts.failed) / self.rate

    def figures(self) -> str:
        """'3 failed, 2 retrying, 41.2 rows/s, 12.3k tokens, 0.0132 USD, ETA 0:42'; zeros are left out."""
        counts = self.counts
        parts = [f"{n:,} {name}" for name in ("failed", "retrying") if (n := getattr(counts, name))]
        parts.append(f"{self.rate:.1f} {counts.unit}/s")
        if counts.tokens:
            parts.append(f"{short(counts.tokens)} tokens")
        if counts.spend_usd is not None:
            parts.append(f"{counts.spend_usd:.4f} USD")
        parts += [f"{name} {value:.4g}" for name, value in counts.metrics.items()]
        if self.eta_s is not None:
            parts.append(f"ETA {clock(self.eta_s)}")
        return ", ".join(parts)

    def _event(self, event: str, **more: Any) -> None:
        if self._events is None or (event == "note" and not self.notes_are_events):
            return
        state = {} if event == "note" else {**asdict(self.counts), "rate": self.rate, "eta_s": self.eta_s}
        with contextlib.suppress(OSError):  # a full disk under the events must not stop paid work
            self._events.write(orjson.dumps({"event": event, "time": time.time(), **more, **state}) + b"\n")

    def _open(self) -> None: ...
    def _draw(self) -> None: ...
    def _close(self) -> None: ...

    def _line(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a reader that left (`2>&1 | head`) must not stop paid work
            print(text, file=self.stream, flush=True)


class Lines(Progress):
    """A plain line every ten seconds: for logs, pipes and assistants."""

    every_s = 10.0

    def detail(self, text: str) -> None:
        self.note(text)

    def _draw(self) -> None:
        counts = self.counts
        done = counts.already + counts.done
        total = "" if counts.total is None else f"/{counts.total:,}"
        self._line(f"{counts.what}: {done:,}{total} {counts.unit}, {self.figures()}")


class Bar(Progress):
    """A tqdm bar, with a line below it for each piece of work that says what it is doing."""

    every_s = 0.2
    most_live = 8
    _bar: Any = None

    def _open(self) -> None:
        from tqdm import tqdm

        self._live_lines: list[Any] = []
        counts = self.counts
        self._bar = tqdm(
            total=counts.total,
            initial=counts.already,
            desc=counts.what,
            unit=" " + counts.unit,
            file=self.stream,
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.n = self.counts.already + self.counts.done
            self._bar.set_postfix_str(self.figures(), refresh=True)
            self._draw_live()

    def _draw_live(self) -> None:
        from tqdm import tqdm

        now = time.monotonic()
        texts = [f"  {doing}, {now - since_s:.0f} s" for doing, since_s in list(self.live.values())]
        if len(texts) > self.most_live:
            texts[self.most_live - 1 :] = [f"  ... and {len(texts) - self.most_live + 1} more"]
        while len(self._live_lines) < len(texts):
            place = len(self._live_lines) + 1
            line = tqdm(bar_format="{desc}", position=place, leave=False, file=self.stream, dynamic_ncols=True)
            self._live_lines.append(line)
        for number, line in enumerate(self._live_lines):
            line.set_description_str(texts[number] if number < len(texts) else "")

    def _close(self) -> None:
        for line in reversed(self._live_lines):
            line.close()
        self._live_lines = []
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, text: str) -> None:
        if self._bar is None:
            super()._line(text)
        else:
            self._bar.write(text, file=self.stream)


def open_progress(mode: Mode, events: Path | None = None, stream: IO[str] | None = None) -> Progress:
    """The sink for a mode; "auto" is a bar on a terminal and lines elsewhere."""
    stream = stream or sys.stderr
    if mode == "auto":
        mode = "bar" if stream and stream.isatty() else "lines"
    kinds: dict[str, Callable[..., Progress]] = {"bar": Bar, "lines": Lines, "off": Progress}
    return kinds[mode](stream, events)


def short(number: int) -> str:
    """1234 -> '1.2k', 1234567 -> '1.2M'."""
    for size, letter in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
