"""Laws of kept scores: whatever a teacher says, and whatever happens to the file."""

import math
import sqlite3
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.distillation.losses import LOG_ZERO, top_k_tail
from core.errors import DistillError
from core.teachers.score_cache import ScoreCache, cache_key, decode_scores, encode_scores, settled
from core.teachers.scorer import TeacherScores

ERROR = 2**-15 + 1e-9  # nats: half a step of 2^-14
CUT = 2**-30

logprobs = st.one_of(
    st.floats(-30.0, 0.0, width=32),
    st.floats(-2e4, 0.0, width=32),
    st.floats(-(2**-20), 0.0, width=32),
    st.sampled_from([0.0, -0.0, 2**-20, LOG_ZERO, -math.inf, -4.0, -3.9999998, -4.0000005, -2.0, -2.0, -1023.99994]),
)


@st.composite
def top_scores(draw: st.DrawFn) -> TeacherScores:
    """Sorted or not, with ties, ragged: a row may hold fewer than k tokens, or none."""
    tokens, k = draw(st.integers(0, 6)), draw(st.integers(1, 9))
    width = draw(st.sampled_from([k, 256, 2**16, 2**18, 2**21]))
    ids, values = torch.full((tokens, k), -1), torch.full((tokens, k), -math.inf)
    for row in range(tokens):
        given_here = draw(st.integers(0, k))
        ids[row, :given_here] = torch.tensor(
            draw(st.lists(st.integers(0, max(width, k) - 1), min_size=given_here, max_size=given_here, unique=True)),
            dtype=torch.int64,
        )
        drawn = torch.tensor(draw(st.lists(logprobs, min_size=given_here, max_size=given_here)))
        values[row, :given_here] = drawn.sort(descending=True).values if draw(st.booleans()) else drawn
    picked = torch.tensor(draw(st.lists(logprobs, min_size=tokens, max_size=tokens)), dtype=torch.float32)
    return TeacherScores("top_k", list(range(tokens)), picked, ids, values)


def wanted(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(LOG_ZERO, 0.0)


def same_bits(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> bool:
    assert ours is not None
    assert theirs is not None
    return (
        ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.numpy().tobytes() == theirs.numpy().tobytes()
    )


@given(top_scores())
def test_every_token_keeps_its_log_probability(scores: TeacherScores) -> None:
    after = settled(scores)
    assert scores.picked is not None
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    assert after.top_ids is not None
    assert after.top_logprobs is not None
    assert torch.equal(after.picked_logprobs, wanted(scores.picked))
    for before, said, ids, values in zip(
        scores.top_ids, scores.top_logprobs, after.top_ids, after.top_logprobs, strict=True
    ):
        kept = {int(i): float(v) for i, v in zip(ids, values, strict=True) if i >= 0}
        asked = {int(i): float(v) for i, v in zip(before, wanted(said), strict=True) if i >= 0}
        assert kept.keys() == asked.keys()
        for token, value in asked.items():
            assert abs(kept[token] - value) <= (CUT if value > -4 else ERROR)
        assert (values[:-1] >= values[1:]).all()
        assert (ids[len(kept) :] == -1).all()
        assert (values[len(kept) :] == LOG_ZERO).all()


@given(top_scores())
def test_settling_twice_is_settling_once_bit_for_bit(scores: TeacherScores) -> None:
    once = settled(scores)
    twice = settled(once)
    assert encode_scores(once) == encode_scores(twice)
    for name in ("picked", "top_ids", "top_logprobs"):
        assert same_bits(getattr(once, name), getattr(twice, name))


@given(st.integers(0, 2**32 - 1), st.integers(65, 2000), st.floats(0.1, 12.0))
def test_the_rest_stays_what_it_was_but_for_the_rounding_of_the_improbable(
    seed: int, width: int, sharpness: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, ids = torch.log_softmax(sharpness * torch.randn(8, width, generator=generator), -1).topk(64)
    after = settled(TeacherScores("top_k", [0] * 8, values[:, 0], ids, values))
    assert after.top_logprobs is not None
    before, p = values.double().exp(), after.top_logprobs.double().exp()
    improbable = (before * (values <= -4)).sum(-1)
    assert ((p.sum(-1) - before.sum(-1)).abs() <= improbable * ERROR * 1.001 + 64 * CUT).all()
    student = torch.randn(8, width, generator=generator)
    top_k_tail(student, ids, after.top_logprobs, None, 1.0)  # takes it: no more than 1 in all


@given(top_scores(), st.data())
def test_a_value_that_was_cut_or_belongs_to_another_text_is_refused(scores: TeacherScores, data: st.DataObject) -> None:
    value = encode_scores(scores)
    cut = value[: data.draw(st.integers(0, len(value) - 1))]
    with pytest.raises(ValueError, match="are not the scores of this completion"):
        decode_scores(cut, scores.completion_ids)
    with pytest.raises(ValueError, match=f"completion: {scores.tokens + 1} tokens"):
        decode_scores(value, [0, *scores.completion_ids])


texts = st.text(max_size=5)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
parts = st.one_of(
    plain, st.binary(max_size=5), st.lists(st.integers(-(2**40), 2**40), max_size=4),
    st.lists(plain, max_size=3), st.dictionaries(texts, plain, max_size=3),
)  # fmt: skip


@given(st.lists(parts, max_size=4), st.lists(parts, max_size=4))
@example(["ab", "c"], ["a", "bc"])
@example([b"ab", b"c"], [b"a", b"bc"])
@example([[1, 2], [3]], [[1], [2, 3]])
@example([[1, 2]], [1, 2])
@example([[]], [])
@example([b"1"], [1])
@example([struct.pack("<i", 1)], [[1]])
@example([[2**32 + 1]], [[1]])
@example([None], ["null"])
def test_keys_are_equal_only_for_equal_parts(ours: list[Any], theirs: list[Any]) -> None:
    # Python's True == 1 == 1.0, so what equal parts have as keys is asked of the same values only.
    assert cache_key(*ours) == cache_key(*ours)
    assert len(cache_key(*ours)) == 32
    if ours != theirs:
        assert cache_key(*ours) != cache_key(*theirs)


def make_file(path: Path) -> dict[bytes, bytes]:
    random = np.random.default_rng(0)
    values = {cache_key(number): random.bytes(int(random.integers(1, 9000))) for number in range(12)}
    with ScoreCache(path) as cache:
        for key, value in values.items():
            cache.put(key, value)
    return values


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_file_never_gives_a_wrong_value(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.sqlite"
        values = make_file(path)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 200))
        content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            with ScoreCache(path) as cache:
                for key, value in values.items():
                    assert cache.get(key) in (value, None)
        except DistillError as error:
            assert str(path) in str(error)
        sqlite3.connect(path).close()  # nothing else is raised, and nobody holds the file
