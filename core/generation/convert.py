"""`convert_rollouts`: rollout files in, training rows out.

Every file is read once, alone, and its row goes to a temporary file at once, so memory does not grow with the rollouts.
What is chosen among rows (--best-of, --val-split) is chosen by a small record of each, and copied by its place in that
file. The output appears at the end, whole, by renaming.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import orjson

from ..commands.convert_rollouts import REASONS, REPAIRS, Converted, ConvertRollouts
from ..data.jsonlines import cannot_write, check_place
from ..data.keys import KeyCounts
from ..data.rollouts import NotARollout, Rollout, normalised, read_rollout, rollout_names
from ..data.run import Run
from ..data.text import one_line, path_text
from ..errors import StoppedEarly, UsageError
from .conversation import (
    Form,
    conversation_key,
    ending_with_answer,
    is_ours,
    one_call_a_turn,
    prompt_hash,
    row,
)
from .destination import Destination, temporary_beside


class Entry(NamedTuple):
    """A row in the temporary file. rank: smaller is better.   name: index of its file.

    shortened: whether the teacher saw some tool results shortened.
    """

    prompt: bytes
    rank: tuple[bool, float, int, int]
    start: int
    length: int
    name: int
    shortened: bool


class Dropped(Exception):
    """A file gives no row. reasons: pairs of a word for counting and what was found; the first one counts."""

    def __init__(self, *reasons: tuple[str, str]) -> None:
        super().__init__(reasons[0][0])
        self.reasons = reasons


def convert(options: ConvertRollouts, run: Run) -> Converted:
    """Do the work of the command. Raises UsageError when nothing converts; then no file was touched."""
    return Conversion(options, run).convert()


class Conversion:
    """One run of `convert_rollouts`."""

    def __init__(self, options: ConvertRollouts, run: Run) -> None:
        self.options, self.run = options, run
        self.note = run.progress.note
        self.dropped: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()
        self.read_files = self.mended = self.read_bytes = self.shortened = 0
        self.seen = KeyCounts()
        self.selects = options.best_of is not None or options.val_split > 0
        self.entries: list[Entry] = []
        self.student: list[str] = []
        self.below = os.path.join(options.dir, "")

    def convert(self) -> Converted:
        options, started_s = self.options, time.monotonic()
        check_place(options.output)
        self.names = self._names()
        output = Destination(options.output, is_ours, prompts=options.prompts, overwrite=options.overwrite)
        val = None
        if options.val_split:
            check_place(options.val_output)
            val = Destination(options.val_output, is_ours, prompts=None, overwrite=options.overwrite)
        self.form = self._form()
        try:
            with ExitStack() as stack:
                spool = stack.enter_context(temporary_beside(options.output, "rows"))
                rows = self._write_rows(spool)
                if rows is None:
                    return self._result(0, 0, started_s, status="interrupted")
                self._refuse_nothing(rows)
                val_rows = 0
                if self.selects:
                    chosen, held_out = self._chosen()
                    self.shortened = sum(entry.shortened for entry in (*chosen, *held_out))
                    spool.flush()
                    if val is not None and held_out:
                        # Before the output: if the second renaming fails, no held-out prompt is in a new output.
                        held = stack.enter_context(temporary_beside(val.path, "chosen"))
                        val_rows = copy(spool, held, held_out)
                    picked = stack.enter_context(temporary_beside(options.output, "chosen"))
                    rows = copy(spool, picked, chosen)
                    if val is not None and held_out:
                        val.take(held)
                    output.take(picked)
                else:
                    output.take(spool)
        except OSError as error:
            raise StoppedEarly(cannot_write(options.output, error)) from None
        self._warn_of_old_val(val_rows)
        return self._result(
            rows,
            val_rows,
            started_s,
            val_output=str(options.val_output) if val_rows else None,
            prompts_moved_to=str(output.aside)
            if output.holds == "prompts" and output.aside == options.prompts
            else None,
            kept_as=str(output.aside) if output.aside not in (None, options.prompts) else None,
        )

    # ---- before anything is read -------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        """The files to read. Raises UsageError when there is none."""
        folder = self.options.dir
        mine = {os.path.abspath(path) for path in (self.options.output, self.options.val_output, self.options.prompts)}

        def unlisted(error: OSError) -> None:
            self.note(f"{one_line(str(error.filename))} cannot be listed: {error.strerror}")
            self.dropped["unreadable"] += 1

        names = [name for name in rollout_names(folder, unlisted) if os.path.abspath(name) not in mine]
        if not names:
            raise UsageError(
                f"{folder} holds no .json file. Name the folder that the rollouts were written to with --dir."
            )
        return names

    def _form(self) -> Form:
        """The form of the rows: what the options say, and what the student's template needs."""
        options = self.options
        form = Form(
            options.thinking, options.calls, options.arguments or "string", options.tools_column, options.system
        )
        if options.student is None:
            return form
        from .chat_templates import examine

        found = examine(options.student, form, choose_arguments=options.arguments is None)
        self.student = found.says
        return found.form

    # ---- file by file ------------------------------------------------------------------------------------------

    def _write_rows(self, spool: IO[bytes]) -> int | None:
        """How many rows were written; None when the user asked to stop."""
        progress, explain = self.run.progress, self.options.explain
        progress.begin("converting", total=len(self.names), unit="files")
        rows = position = 0
        try:
            for number, name in enumerate(self.names):
                if self.run.stop.requested:
                    return None
                repairs: Counter[str] = Counter()
                try:
                    line, prompt, rank, shortened = self._line(name, repairs)
                except Dropped as why:
                    self.dropped[why.reasons[0][0]] += 1
                    if explain:
                        self._explain("dropped", name, "; ".join(told(*reason) for reason in why.reasons))
                else:
                    spool.write(line)
                    if self.selects:
                        self.entries.append(Entry(bytes.fromhex(prompt), rank, position, len(line), number, shortened))
                    position += len(line)
                    self.shortened += shortened
                    rows += 1
                    if repairs:
                        self.mended += 1
                        self.repairs += repairs
                    if explain:
                        mended = ", ".join(
                            f"{count} x {REPAIRS.get(repair, repair)}" for repair, count in repairs.items()
                        )
                        self._explain("mended" if mended else "kept", name, mended)
                self.read_files += 1
                progress.counts.done += 1
                progress.tick()
        finally:
            progress.end()
        return rows

    def _line(self, name: str, repairs: Counter[str]) -> tuple[bytes, str, tuple[bool, float, int, int], bool]:
        """(the row as a line, its prompt's hash, its rank among the rows of its prompt, whether the teacher saw
        results shortened). Raises Dropped."""
        try:
            rollout = read_rollout(Path(name))
            self.read_bytes += rollout.size
            failure = rollout.failure
            if reasons := list(self._against(rollout, failure)):
                raise Dropped(*reasons)
            messages, mended = normalised(rollout.conversation)
            repairs.update(mended)
            repairs.update(rollout.repairs)
            last = rollout.conversation[-1]
            messages = ending_with_answer(messages, repairs, last, require=self.options.require_final_answer)
            if self.options.dedupe and self.seen.add(conversation_key(messages)):
                raise Dropped(("duplicate", ""))
            hash_ = rollout.prompt_hash or prompt_hash(messages)
            if self.form.single_calls:
                messages, split = one_call_a_turn(messages)
                if split:
                    repairs["split_calls"] += split
            made = row(rollout, messages, self._source(name), hash_, self.form, success=failure is None)
            line = orjson.dumps(made, option=orjson.OPT_APPEND_NEWLINE)
        except NotARollout as error:
            raise Dropped((error.reason, error.detail)) from None
        except orjson.JSONEncodeError as error:
            raise Dropped(("not_text", str(error))) from None
        failed, reward = failure is not None, rollout.reward
        rank = failed, -(float(not failed) if reward is None else reward), rollout.turns, len(line)
        return line, hash_, rank, bool(rollout.shortened)

    def _against(self, rollout: Rollout, failure: str | None) -> Iterator[tuple[str, str]]:
        """What speaks against a rollout, whatever its conversation."""
        options = self.options
        if failure and not options.include_failed:
            yield failure, rollout.error or ""
        if rollout.truncated and options.drops_truncated:
            yield "truncated", ""
        if rollout.shortened and options.drop_shortened:
            yield "shortened", str(rollout.shortened)
        if options.min_reward is not None:
            if rollout.reward is None:
                yield "reward_unknown", ""
            elif rollout.reward < options.min_reward:
                yield "low_reward", f"{rollout.reward:g}"
        if options.max_turns is not None and rollout.turns > options.max_turns:
            yield "many_turns", str(rollout.turns)

    def _source(self, name: str) -> str:
        """A file's path below --dir."""
        return path_text(name[len(self.below) :] if name.startswith(self.below) else os.path.basename(name))

    def _explain(self, what: str, name: str, why: str) -> None:
        self.note(f"{what:8} {one_line(self._source(name), 400)}" + f": {one_line(why, 400)}" * bool(why))

    # ---- row against row ---------------------------------------------------------------------------------------

    def _chosen(self) -> tuple[list[Entry], list[Entry]]:
        """(rows for the output, rows to hold out), each in the order of the files."""
        entries, options = self.entries, self.options
        if options.best_of is not None:
            better = sorted(entries, key=lambda entry: (entry.prompt, entry.rank, entry.name))
            kept, taken, prompt = set[int](), 0, b""
            for entry in better:
                taken = taken + 1 if entry.prompt == prompt else 1
                prompt = entry.prompt
                if taken <= options.best_of:
                    kept.add(entry.name)
                    continue
                self.dropped["not_best"] += 1
                if options.explain:
                    self._explain("dropped", self.names[entry.name], told("not_best", ""))
            entries = [entry for entry in entries if entry.name in kept]
        prompts = sorted({entry.prompt for entry in entries})
        if not options.val_split:
            return entries, []
        if len(prompts) == 1:
            self.note("All rows have the same prompt, so none can be held out.")
            return entries, []
        # The hashes are as good as random, and the same prompts come first whenever they are there.
        count = min(len(prompts) - 1, max(1, round(options.val_split * len(prompts))))
        held_out = set(prompts[:count])
        return (
            [entry for entry in entries if entry.prompt not in held_out],
            [entry for entry in entries if entry.prompt in held_out],
        )

    # ---- the end -----------------------------------------------------------------------------------------------

    def _refuse_nothing(self, rows: int) -> None:
        """Raises UsageError when no file gave a row, with the reasons and the options that change it."""
        if rows:
            return
        reasons = ", ".join(
            f"{count:,} x {REASONS.get(reason, reason)}" for reason, count in self.dropped.most_common()
        )
        hint = "--explain names each file"
        failed = ("error", "interrupted", "reward_timeout", "reward_error", "not_a_success", "no_reward")
        if any(self.dropped[reason] for reason in failed):
            hint += ", --include-failed takes failed ones too"
        if self.dropped["truncated"]:
            hint += ", --keep-truncated takes truncated ones"
        raise UsageError(
            f"nothing to convert: none of the {self.read_files:,} files in {self.options.dir} gives a row ({reasons}). "
            f"{self.options.output} was not touched; {hint}."
        )

    def _warn_of_old_val(self, val_rows: int) -> None:
        path = self.options.val_output
        if not val_rows and path.is_file():
            self.note(
                f"{path} is from an earlier run, and its prompts may be in {self.options.output} now. "
                "Pass --val-split to renew it, or delete it."
            )

    def _result(self, rows: int, val_rows: int, started_s: float, **more: object) -> Converted:
        return Converted.model_validate(
            {
                "files": self.read_files,
                "rows": rows,
                "val_rows": val_rows,
                "shortened": self.shortened if rows else 0,
                "mended": self.mended,
                "repairs": dict(self.repairs.most_common()),
                "dropped": dict(self.dropped.most_common()),
                "read_bytes": self.read_bytes,
                "seconds": round(time.monotonic() - started_s, 3),
                "output": str(self.options.output),
                "student": self.student,
                **more,
            }
        )


def told(reason: str, detail: str) -> str:
    """A reason in words, with what was found."""
    return REASONS.get(reason, reason) + f" ({detail})" * bool(detail)


def copy(spool: IO[bytes], to: IO[bytes], entries: list[Entry]) -> int:
    """Copy rows by their place; how many."""
    for entry in entries:
        spool.seek(entry.start)
        to.write(spool.read(entry.length))
    return len(entries)
