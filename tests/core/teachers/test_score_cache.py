"""The score cache: what it keeps through crashes, other processes and bad files; what its keys and values are."""

import math
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from core.distillation.losses import LOG_ZERO
from core.errors import StoppedEarly, UsageError
from core.teachers.score_cache import (
    ScoreCache,
    cache_key,
    decode_json,
    decode_scores,
    default_path,
    encode_json,
    encode_scores,
    settled,
)
from core.teachers.scorer import TeacherScores

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "scores.sqlite"


def process(code: str, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Python with the cache's names, in a process of its own."""
    command = [sys.executable, "-c", f"import sys\nfrom core.teachers.score_cache import *\n{code}"]
    return subprocess.Popen(
        [*command, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


# ---- the file ---------------------------------------------------------------------------------------------------


def test_what_was_put_is_found_again_and_counted(path: Path):
    with ScoreCache(path) as cache:
        assert cache.get(b"a") is None
        assert str(cache.report()).startswith("0 of 1 found (0%), 0 written; ")
        cache.put(b"a", b"x" * 500, tokens=2)
        cache.put(b"judge", b"y" * 100)
        assert cache.get(b"a") == b"x" * 500
        assert (cache.hits, cache.misses, cache.written, cache.written_bytes) == (1, 1, 2, 600)
    with ScoreCache(path) as again:
        assert again.report().hit_rate is None
        assert again.report().bytes_per_token is None
        assert [again.get(key) for key in (b"a", b"judge", b"b")] == [b"x" * 500, b"y" * 100, None]
        report = again.report()
        assert (report.hits, report.misses, report.written) == (2, 1, 0)
        assert report.hit_rate == 2 / 3
        assert report.size_bytes == path.stat().st_size + path.with_name("scores.sqlite-wal").stat().st_size
    assert (
        str(cache.report())
        == f"1 of 2 found (50%), 2 written, 250 bytes a token; {cache.size_bytes / 1e6:.1f} MB on disk"
    )


def test_nobody_else_may_read_it(path: Path):
    before = os.umask(0o022)
    try:
        with ScoreCache(path) as cache:
            cache.put(b"a", b"x")
            rights = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert rights["scores.sqlite"] == rights["scores.sqlite-wal"] == 0o600


def test_a_later_value_takes_the_place_of_an_older_one(path: Path):
    with ScoreCache(path) as cache:
        cache.put(b"a", b"1")
        cache.put(b"a", b"")
        assert cache.get(b"a") == b""


def test_closed_twice_leaves_one_file(path: Path):
    cache = ScoreCache(path)
    cache.put(b"a", b"1")
    cache.close()
    cache.close()
    assert [file.name for file in path.parent.iterdir()] == ["scores.sqlite"]


def test_a_kill_loses_nothing_that_was_put(path: Path):
    writer = process(
        "cache = ScoreCache(Path(sys.argv[1]))\n"
        "for number in range(10**9):\n"
        "    cache.put(cache_key(number), str(number).encode() * 3000)\n"
        "    print(number, flush=True)",
        path,
    )
    assert writer.stdout is not None
    for _ in range(300):  # 5 MB: past the first move of the log into the file
        last = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate(timeout=60)
    last = [last, *(int(line) for line in rest.splitlines())][-1]
    with ScoreCache(path) as cache:
        for number in range(last + 1):
            assert cache.get(cache_key(number)) == str(number).encode() * 3000
        cache.put(b"after", b"it")
        assert cache.get(b"after") == b"it"


def test_processes_that_begin_at_once_write_one_file(path: Path):
    code = (
        "sys.stdin.readline()\n"
        "for number in range(40):\n"
        "    with ScoreCache(Path(sys.argv[1])) as cache:\n"  # the last to close takes the log away, again and again
        "        cache.put(cache_key(sys.argv[2], number), sys.argv[2].encode() * 5000)\n"
        "        cache.put(cache_key('both', number), b'same' * 5000)\n"
    )
    writers = [process(code, path, name, stdin=subprocess.PIPE) for name in "abcdef"]
    time.sleep(1)  # all have imported by then; if not, the test is easier, not wrong
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        assert writer.communicate(timeout=120) == ("", "")
        assert writer.returncode == 0
    with ScoreCache(path) as cache:
        for number in range(40):
            assert cache.get(cache_key("both", number)) == b"same" * 5000
            for name in "abcdef":
                assert cache.get(cache_key(name, number)) == name.encode() * 5000


def test_threads_share_one_cache(path: Path):
    done: list[str] = []

    def work(name: str) -> None:
        for number in range(50):
            cache.put(cache_key(name, number), name.encode() * 2000)
            assert cache.get(cache_key(name, number)) == name.encode() * 2000
        done.append(name)

    with ScoreCache(path) as cache:
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done) == list("abcdef")
        assert (cache.written, cache.hits, cache.misses) == (300, 300, 0)


def test_a_read_does_not_wait_for_another_process_that_writes(path: Path):
    with ScoreCache(path) as cache:
        cache.put(b"a", b"1")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        start = time.perf_counter()
        assert cache.get(b"a") == b"1"
        assert time.perf_counter() - start < 5  # a write would wait for a minute
        other.close()


def test_a_full_disk_stops_the_run_and_keeps_what_is_there(path: Path):
    writer = process(
        "from core.errors import StoppedEarly\n"
        "cache = ScoreCache(Path(sys.argv[1]))\n"
        "try:\n"
        "    for number in range(1000):\n"
        "        cache.put(cache_key(number), bytes(10_000))\n"
        "except StoppedEarly as error:\n"
        "    print(number)\n"
        "    print(error)",
        path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)),  # for this process alone
    )
    out, errors = writer.communicate(timeout=60)
    assert errors == ""
    number, message = out.strip().split("\n")
    assert int(number) > 10
    assert message.startswith(f"{path} cannot be used: ")
    assert message.endswith("Free space or choose another place, then run the same command.")
    with ScoreCache(path) as cache:
        assert all(cache.get(cache_key(before)) == bytes(10_000) for before in range(int(number)))
        cache.put(cache_key(int(number)), b"goes on")


def test_a_file_that_may_only_be_read_is_refused_before_anything_is_paid(path: Path):
    ScoreCache(path).close()
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        if os.access(path, os.W_OK):  # root may write anywhere
            pytest.skip("this user may write everything")
        with pytest.raises(UsageError, match="cannot be used: attempt to write a readonly database"):
            ScoreCache(path)
    finally:
        path.parent.chmod(0o755)


@pytest.mark.parametrize("kind", ["a folder", "below a file"])
def test_a_place_that_can_hold_no_file_is_named(tmp_path: Path, kind: str):
    path = tmp_path / "folder"
    if kind == "a folder":
        path.mkdir()
    else:
        path.write_text("x", encoding="utf-8")
        path = path / "scores.sqlite"
    with pytest.raises(UsageError) as caught:
        ScoreCache(path)
    assert str(caught.value).startswith(f"{path} cannot be ")


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n" * 100, encoding="utf-8")
    with pytest.raises(UsageError, match="is damaged, or no score cache: file is not a database") as caught:
        ScoreCache(path)
    assert f"mv {path} {path}.old" in str(caught.value)
    assert path.read_text(encoding="utf-8") == "my notes\n" * 100
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("version", [0, 1, 7])
def test_somebody_elses_database_is_left_as_it_is(tmp_path: Path, version: int):
    path = tmp_path / "theirs.sqlite"
    theirs = sqlite3.connect(path)
    theirs.execute("CREATE TABLE people (name TEXT)")
    theirs.execute(f"PRAGMA user_version = {version}")
    theirs.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="is no score cache"):
        ScoreCache(path)
    assert path.read_bytes() == before


def test_another_versions_file_is_left_as_it_is(path: Path):
    ScoreCache(path).close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 7")
    newer.close()
    before = path.read_bytes()
    with pytest.raises(UsageError) as caught:
        ScoreCache(path)
    assert str(caught.value) == (
        f"{path} has format 7, and this version of distill knows format 1. "
        f"Move it away and run the same command: mv {path} {path}.old"
    )
    assert path.read_bytes() == before


def test_an_entry_that_the_disk_has_changed_is_asked_anew_and_reported(path: Path):
    with ScoreCache(path) as cache:
        cache.put(b"good", b"1" * 3000)
        cache.put(b"bad", b"2" * 3000)
    content = path.read_bytes()
    assert content.count(b"2" * 1500) > 0
    place = content.index(b"2" * 1500) + 700
    path.write_bytes(content[:place] + b"3" + content[place + 1 :])
    with ScoreCache(path) as cache:
        assert cache.get(b"good") == b"1" * 3000
        assert cache.get(b"bad") is None
        assert (cache.hits, cache.misses, cache.damaged) == (1, 1, 1)
        assert str(cache.report()).endswith("; 1 damaged entries were asked anew")
        cache.put(b"bad", b"2" * 3000)
        assert cache.get(b"bad") == b"2" * 3000


def test_a_file_that_breaks_while_it_is_read_stops_the_run(path: Path):
    with ScoreCache(path) as cache:
        for number in range(500):
            cache.put(cache_key(number), bytes(1000))
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with ScoreCache(path) as cache, pytest.raises(StoppedEarly, match="is damaged, or no score cache") as caught:
        cache.get(cache_key(1))
    assert f"mv {path} {path}.old" in str(caught.value)


def test_it_lies_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "distill" / "scores.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_path() == Path.home() / ".cache" / "distill" / "scores.sqlite"


def test_no_heavy_package_is_loaded_for_it():
    code = "print([name for name in ('torch', 'transformers', 'aiohttp') if name in sys.modules])"
    assert process(code).communicate(timeout=60) == ("[]\n", "")


# ---- keys -------------------------------------------------------------------------------------------------------


def test_a_key_is_the_same_in_every_process_and_whatever_the_order_of_a_dict():
    key = cache_key("vllm", {"model": "m", "top_k": 64}, [1, 2, 3], (4, 5), None, b"x")
    assert key == cache_key("vllm", {"top_k": 64, "model": "m"}, (1, 2, 3), [4, 5], None, b"x")
    code = "print(cache_key('vllm', {'top_k': 64, 'model': 'm'}, [1, 2, 3], [4, 5], None, b'x').hex())"
    assert process(code).communicate(timeout=60) == (f"{key.hex()}\n", "")


def test_parts_that_join_to_the_same_text_have_keys_of_their_own():
    alike = [("ab", "c"), ("a", "bc"), ("abc",), (["ab", "c"],), (b"ab", b"c"), (b"a", b"bc"), ("abc", ""), ("", "abc")]
    numbers = [([1, 2], [3]), ([1], [2, 3]), ([1, 2, 3],), ([], [1, 2, 3]), (1, 2, 3), ([2**33],), ([0],), ([0, 2],)]
    assert len({cache_key(*parts) for parts in alike + numbers}) == len(alike + numbers)


def test_what_json_cannot_hold_is_no_part_of_a_key():
    with pytest.raises(TypeError):
        cache_key({1, 2})


# ---- values -----------------------------------------------------------------------------------------------------


def top(ids: list[list[int]], logprobs: list[list[float]], picked: list[float]) -> TeacherScores:
    return TeacherScores(
        "top_k", [7] * len(picked), torch.tensor(picked), torch.tensor(ids), torch.tensor(logprobs, dtype=torch.float32)
    )


def lists(scores: TeacherScores) -> tuple[Any, Any]:
    ids, logprobs = scores.top_ids, scores.top_logprobs
    assert ids is not None
    assert logprobs is not None
    assert ids.dtype == torch.int64
    assert logprobs.dtype == torch.float32
    return ids.tolist(), logprobs.tolist()


def test_a_hand_computed_row():
    # -0.25 is probable and stays. -5.00003 x 2^14 = -81920.49, so it becomes -81920 / 2^14; -9000.5 is a multiple.
    after = settled(top([[2_000_000, 0, 300]], [[-0.25, -5.00003, -9000.5]], [-12.345678]))
    assert lists(after) == ([[2_000_000, 0, 300]], [[-0.25, -5.0, -9000.5]])
    assert after.picked_logprobs.tolist() == torch.tensor([-12.345678]).tolist()
    assert (after.ability, after.completion_ids) == ("top_k", [7])


def test_rows_are_sorted_padded_and_cut():
    after = settled(
        top(
            [[5, 6, 7], [8, 9, -1], [-1, -1, -1]],
            [[-2.0, -1.0, -math.inf], [1e-6, -20000.0, math.nan], [-math.inf, LOG_ZERO, 0.0]],
            [-math.inf, 1e-5, -0.5],
        )
    )
    ids, logprobs = lists(after)
    assert ids == [[6, 5, 7], [8, 9, -1], [-1, -1, -1]]
    assert logprobs == [[-1.0, -2.0, LOG_ZERO], [0.0, LOG_ZERO, LOG_ZERO], [LOG_ZERO] * 3]
    assert after.picked_logprobs.tolist() == [LOG_ZERO, 0.0, -0.5]


def test_ties_keep_their_order():
    after = settled(top([[9, 3, 5, 1]], [[-1.5, -1.5, -6.00001, -6.00002]], [-1.5]))
    assert lists(after) == ([[9, 3, 5, 1]], [[-1.5, -1.5, -6.0, -6.0]])


def test_what_the_top_leaves_to_all_others_stays_right_where_it_is_small():
    # The two share all but 2e-6. In steps of 2^-14 their sum would be wrong by up to 3e-5.
    logprobs = torch.tensor([[0.6, 0.399998]]).log()
    after = settled(TeacherScores("top_k", [0], logprobs[:, 0], torch.tensor([[0, 1]]), logprobs)).top_logprobs
    assert after is not None
    assert 1 - after.double().exp().sum().item() == pytest.approx(1 - logprobs.double().exp().sum().item(), rel=1e-6)


def test_sampled_scores_are_kept_exactly():
    scores = TeacherScores("sampled", [3, 4, 5], torch.tensor([-0.1234567, -17.5, -1e-9]))
    after = settled(scores)
    assert after.ability == "sampled"
    assert after.top_ids is None
    assert scores.picked is not None
    assert torch.equal(after.picked_logprobs, scores.picked)


@pytest.mark.parametrize("ability", ["sampled", "top_k"])
def test_an_empty_completion_has_empty_scores(ability: Any):
    ids, logprobs = torch.empty(0, 64, dtype=torch.int64), torch.empty(0, 64)
    after = settled(TeacherScores(ability, [], torch.empty(0), ids, logprobs))
    assert after.tokens == len(after.picked_logprobs) == 0
    if ability == "top_k":
        assert after.top_ids is not None
        assert after.top_logprobs is not None
        assert after.top_ids.shape == after.top_logprobs.shape == (0, 64)


def test_full_scores_are_refused():
    with pytest.raises(ValueError, match='"full" cannot be kept'):
        encode_scores(TeacherScores("full", [1]))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (TeacherScores("sampled", [1], torch.tensor([math.nan])), "nan is no log-probability"),
        (TeacherScores("sampled", [1], torch.tensor([0.5])), "0.5 is no log-probability"),
        (TeacherScores("sampled", [1, 2], torch.tensor([-1.0])), "do not fit 2 tokens"),
        (TeacherScores("top_k", [1], torch.tensor([-1.0])), "lack what their ability says"),
        (top([[1, 2]], [[-1.0, math.nan]], [-1.0]), "nan is no log-probability"),
        (top([[1, 2], [3, 4]], [[-1.0, -2.0]], [-1.0]), "do not fit 1 tokens"),
    ],
)
def test_what_are_no_scores_is_not_kept(scores: TeacherScores, message: str):
    with pytest.raises(ValueError, match=message):
        encode_scores(scores)


def test_another_value_is_not_taken_for_scores():
    for value in (b"", b"x", encode_json({"score": 3}), bytes(100)):
        with pytest.raises(ValueError, match="are not the scores of this completion"):
            decode_scores(value, [1, 2])


def test_a_row_of_the_top_64_takes_at_most_300_bytes_a_token_even_where_ids_are_random():
    generator = torch.Generator().manual_seed(0)
    logprobs, _ = torch.log_softmax(3 * torch.randn(256, 30_000, generator=generator), -1).topk(64)
    ids = torch.stack([torch.randperm(2**18, generator=generator)[:64] for _ in range(256)])
    value = encode_scores(TeacherScores("top_k", [0] * 256, logprobs[:, 0], ids, logprobs))
    assert len(value) / 256 <= 300


def test_json_comes_back_as_it_was():
    value = {"text": "naïve 😀", "top": [[-0.5, "a"], [-1.25, None]], "usage": {"tokens": 12}}
    assert decode_json(encode_json(value)) == value
    assert len(encode_json(["the same words again"] * 100)) < 200
