"""What is held of an SFT run's rows: their tokens in a file, and a few bytes of each."""

import gc
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.data_utils import pack_dataset

from core.data.keys import work_key
from core.errors import UsageError
from core.training.samples import held_out_places
from core.training.sft_store import CHUNK, RowNotes, RowStore


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def stored(count: int) -> RowStore:
    """Row n is n + 1 times the token n, of which the first is not trained."""
    store = RowStore()
    for number in range(count):
        store.add([number] * (number % 9 + 1), [False] + [True] * (number % 9))
    return store


def row(number: int) -> dict[str, list[int]]:
    ids = [number] * (number % 9 + 1)
    return {"input_ids": ids, "labels": [-100, *ids[1:]]}


def test_rows_are_read_back_from_a_file_that_goes_when_it_is_closed(place: Path) -> None:
    store = stored(2 * CHUNK + 5)
    out = np.arange(2 * CHUNK + 5) % 7 == 3
    train, held_out = store.split(out)
    (file,) = place.rglob("*.arrow")
    assert held_out is not None
    assert [each["filename"] for each in train.cache_files] == [str(file)]  # mapped, not read
    assert train.to_list() == [row(number) for number in range(2 * CHUNK + 5) if number % 7 != 3]
    store.close()
    store.close()
    assert list(place.iterdir()) == []
    assert held_out.to_list() == [row(number) for number in range(2 * CHUNK + 5) if number % 7 == 3]
    assert train[-1] == row(2 * CHUNK + 4)
    assert train.select(range(3))["input_ids"][2] == [2, 2, 2]


def test_with_nothing_held_out_the_rows_are_one_data_set() -> None:
    train, held_out = stored(3).split(np.zeros(3, bool))
    assert (train.to_list(), held_out) == ([row(0), row(1), row(2)], None)


def test_packed_rows_are_put_beside_them_and_stay_readable(place: Path) -> None:
    store = stored(100)
    train, _ = store.split(np.arange(100) == 1)
    packed: Any = pack_dataset(train, 9, "bfd")
    assert {Path(each["filename"]).parent for each in packed.cache_files} == {next(place.iterdir())}
    store.close()
    assert list(place.iterdir()) == []
    said = Counter(token for ids in packed["input_ids"] for token in ids)
    assert said == Counter({number: number % 9 + 1 for number in range(100) if number != 1})


def test_a_store_that_nobody_uses_any_more_leaves_nothing(place: Path) -> None:
    store = stored(CHUNK)
    assert len(list(place.rglob("*.arrow"))) == 1
    del store
    gc.collect()
    assert list(place.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"cannot be written to .*none: No such file or directory\..*TMPDIR"):
        stored(CHUNK)


# ---- what is remembered of each row ---------------------------------------------------------------------------------


def noted(openings: list[str]) -> RowNotes:
    notes = RowNotes()
    for number, opening in enumerate(openings):
        hashes = [work_key([number, turn])[:16] for turn in range(number % 3)]
        notes.add(number + 10, opening, hashes, f"teacher {number % 2}", number + 1, number)
    return notes


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.floats(0, 0.99), st.integers(0, 3))
def test_held_out_rows_are_those_that_texts_would_give(openings: list[int], fraction: float, seed: int) -> None:
    texts = [work_key(each) for each in openings]
    out = noted(texts).held_out(fraction, seed)
    assert np.flatnonzero(out).tolist() == sorted(held_out_places(texts, fraction, len(texts), seed))


def test_each_rows_facts_come_back_for_the_rows_that_are_asked_for() -> None:
    notes = noted([work_key(number) for number in range(5)])
    which = np.array([False, True, True, False, True])
    assert len(notes) == 5
    assert notes.longest == 5
    assert notes.lines(which) == {11, 12, 14}
    assert notes.teachers(which) == Counter({"teacher 0": 2, "teacher 1": 1})
    assert notes.tokens(which) == (2 + 3 + 5, 1 + 2 + 4)
    wanted = sorted(
        work_key([number, turn])[:16] for number, turns in ((1, 1), (2, 2), (4, 1)) for turn in range(turns)
    )
    assert notes.trained_on(which) == "".join(f"{each}\n" for each in wanted).encode()


def test_prompts_that_begin_with_noughts_and_come_twice_are_written_once() -> None:
    notes = RowNotes()
    for line in range(2):
        notes.add(line, 32 * "0", ["00000000000000ff", 16 * "0"], "x", 1, 1)
    assert notes.trained_on(np.ones(2, bool)) == b"0000000000000000\n00000000000000ff\n"


def test_a_row_takes_at_most_64_bytes() -> None:
    notes = RowNotes()
    for number in range(10_000):
        notes.add(number, work_key(number), [work_key(number)[:16]], f"teacher {number % 3}", 300, 200)
    held = [value for value in vars(notes).values() if not isinstance(value, dict)]
    assert sum(each.__sizeof__() for each in held) < 64 * 10_000
