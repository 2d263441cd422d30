"""The journal of what models have answered."""

from pathlib import Path

import pytest

from core.errors import UsageError
from core.evaluation.answers import Answers, default_folder, key_of


def test_what_was_put_is_there_for_the_next_run(tmp_path: Path):
    with Answers(tmp_path / "new" / "folder", "m") as answers:
        answers.put("loglikelihood", ["a", " b"], [-1.2345678901234567, True])
        answers.put("generate_until", ["a", {"until": ["\n"], "n": 3}], "said\u2028so 🙂")
        assert answers.get("loglikelihood", ["a", " b"]) == [-1.2345678901234567, True]
    with Answers(tmp_path / "new" / "folder", "m") as answers:
        assert answers.get("loglikelihood", ("a", " b")) == [-1.2345678901234567, True]
        assert answers.get("generate_until", ["a", {"n": 3, "until": ["\n"]}]) == "said\u2028so 🙂"
        assert answers.get("loglikelihood", ["a", "b"]) is None
        assert answers.get("loglikelihood_rolling", ["a", " b"]) is None


def test_a_folder_that_was_made_for_nothing_is_gone(tmp_path: Path):
    with Answers(tmp_path / "new", "m"), Answers(tmp_path / "new", "other"):
        pass
    assert list(tmp_path.iterdir()) == []
    with Answers(tmp_path, "m"):
        pass
    assert tmp_path.is_dir()


def test_another_model_has_other_answers(tmp_path: Path):
    with Answers(tmp_path, "m") as one, Answers(tmp_path, "m2") as other:
        one.put("generate_until", ["a"], "x")
        assert other.get("generate_until", ["a"]) is None


def test_keys_tell_kind_arguments_and_where_one_ends():
    keys = [key_of("a", ["bc", "d"]), key_of("a", ["b", "cd"]), key_of("ab", ["c", "d"]), key_of("a", ["bc", {"d": 1}])]
    assert len(set(keys)) == 4
    assert key_of("a", [{"x": 1, "y": 2}]) == key_of("a", [{"y": 2, "x": 1}])
    assert len(key_of("a", ["\ud800 half a pair"])) == 16


def test_a_torn_last_line_costs_one_answer(tmp_path: Path):
    with Answers(tmp_path, "m") as answers:
        answers.put("g", ["a"], "x")
        answers.put("g", ["b"], "y")
    path = tmp_path / "m.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with Answers(tmp_path, "m") as answers:
        assert answers.get("g", ["a"]) == "x"
        assert answers.get("g", ["b"]) is None
        answers.put("g", ["b"], "z")
    with Answers(tmp_path, "m") as answers:
        assert answers.get("g", ["b"]) == "z"


def test_two_runs_of_one_model_write_two_files_and_read_both(tmp_path: Path):
    with Answers(tmp_path, "m") as first:
        first.put("g", ["a"], "x")
        with Answers(tmp_path, "m") as second:
            assert second.get("g", ["a"]) == "x"
            second.put("g", ["b"], "y")
    assert {path.name for path in tmp_path.iterdir()} == {"m.jsonl", "m.2.jsonl"}
    with Answers(tmp_path, "m") as later:
        assert [later.get("g", [key]) for key in "ab"] == ["x", "y"]


@pytest.mark.parametrize("text", ["hello\nthere\n", '{"name": "x"}\n', '{"key": "no hex", "value": 1}\n'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str):
    (tmp_path / "m.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"m\.jsonl .*holds something else.*--cache") as caught:
        Answers(tmp_path, "m")
    assert "delete" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]
    assert (tmp_path / "m.jsonl").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("bad", [b'{"key": "00', b"\x00\x00\x00\n", b'{"name": "x"}\n'])
def test_a_damaged_line_costs_its_answer_alone(tmp_path: Path, bad: bytes):
    with Answers(tmp_path, "m") as answers:
        for key in "abc":
            answers.put("g", [key], key.upper())
        assert answers.notes == []
    path = tmp_path / "m.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + bad + b"".join(lines[2 if bad.endswith(b"\n") else 1 :])
    path.write_bytes(damaged)
    with Answers(tmp_path, "m") as answers:
        assert [answers.get("g", [key]) for key in "abc"] == ["A", None, "C"]
        assert len(answers.notes) == 1
        assert f"{path}: 1 of 3 lines are damaged and were passed over" in answers.notes[0]
        answers.put("g", ["b"], "again")
    with Answers(tmp_path, "m") as answers:
        assert [answers.get("g", [key]) for key in "abc"] == ["A", "again", "C"]
    assert path.read_bytes() == damaged


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="--cache"):
        Answers(tmp_path / "file", "m")


def test_the_users_cache_folder_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "distill" / "answers"
