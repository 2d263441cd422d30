"""Files that survive kill -9."""

import json
import os
from pathlib import Path

import pytest

from core.data.jsonlines import Journal, Row, read_lines, sound_length
from core.errors import InputError, StoppedEarly, UsageError


def ignore(_: int, row: Row) -> None: ...


def test_lines_end_at_newline_alone_so_that_u2028_stays_within_a_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "one\u2028two\u0085three"}
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n\r\n  \n{}\n")
    lines = list(read_lines(file))
    assert [number for number, _ in lines] == [1, 4]  # blank lines are counted, not returned
    assert json.loads(lines[0][1]) == row


def test_a_line_of_ten_megabytes_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'"' + b"x" * 10_000_000 + b'"\n"y"\n')
    assert [len(line) for _, line in read_lines(file)] == [10_000_002, 3]


def test_what_is_appended_is_there_after_opening_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for number in range(3):
        journal = Journal(file, ignore)
        journal.append({"n": number, "text": "ä\u2028😀"})
        journal.close()
    seen: list[Row] = []
    Journal(file, lambda _, row: seen.append(row)).close()
    assert seen == [{"n": number, "text": "ä\u2028😀"} for number in range(3)]


def test_a_torn_last_line_is_cut_off_and_the_rows_before_it_stay(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"n":0}\n{"n":1}\n{"n":2,"text":"ha')
    journal = Journal(file, ignore)
    assert journal.length == 16  # two rows of 8 bytes
    journal.append({"n": 3})
    journal.close()
    assert file.read_bytes() == b'{"n":0}\n{"n":1}\n{"n":3}\n'


def test_a_whole_row_whose_newline_alone_is_missing_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"n":0}\n{"n":1}')
    seen: list[Row] = []
    journal = Journal(file, lambda _, row: seen.append(row))
    journal.append({"n": 2})
    journal.close()
    assert seen == [{"n": 0}, {"n": 1}]
    assert file.read_bytes() == b'{"n":0}\n{"n":1}\n{"n":2}\n'


@pytest.mark.parametrize(
    "content",
    [b"my notes, one line, no newline", b"name,age\nAda,36\n", b'{"prompt": "hi"}', b"\x00\x01\x02\x03"],
)
def test_somebody_elses_file_is_refused_and_kept_byte_for_byte(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "theirs.jsonl"
    file.write_bytes(content)

    def inspect(number: int, row: Row) -> None:
        raise InputError(file, number, "not one of ours")

    with pytest.raises(InputError):
        Journal(file, inspect)
    assert file.read_bytes() == content


def test_a_line_in_the_middle_that_is_not_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"n":0}\noops\n{"n":1}\n')
    with pytest.raises(InputError, match=r"rows.jsonl:2: not JSON .*--overwrite") as caught:
        sound_length(file, ignore)
    assert caught.value.line == 2


def test_a_second_writer_is_refused_until_the_first_one_closes(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    first = Journal(file, ignore)
    with pytest.raises(UsageError, match="another run is writing"):
        Journal(file, ignore)
    first.append({"n": 0})
    first.close()
    Journal(file, ignore).close()


def test_a_second_writer_is_refused_after_the_first_has_rewritten_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    first = Journal(file, ignore)
    first.append({"n": 0})
    first.rewrite(lambda _, row: True)
    with pytest.raises(UsageError, match="another run is writing"):
        Journal(file, ignore)
    first.close()


def test_rewriting_keeps_the_rows_that_are_wanted_with_their_offsets(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    journal = Journal(file, ignore)
    for number in range(4):
        journal.append({"n": number})  # 8 bytes each
    offsets: list[int] = []

    def odd(offset: int, row: Row) -> bool:
        offsets.append(offset)
        return row["n"] % 2 == 1

    journal.rewrite(odd)
    journal.append({"n": 9})
    journal.close()
    assert offsets == [0, 8, 16, 24]
    assert file.read_bytes() == b'{"n":1}\n{"n":3}\n{"n":9}\n'
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_an_empty_file_is_removed_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    Journal(file, ignore).close()
    assert not file.exists()


def test_a_folder_that_is_missing_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder .*/no/where does not exist. Create it: mkdir -p .*/no/where"):
        Journal(tmp_path / "no" / "where" / "rows.jsonl", ignore)


def test_a_directory_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        Journal(tmp_path, ignore)


def test_a_device_is_no_output() -> None:
    with pytest.raises(UsageError, match="not a regular file"):
        Journal(Path("/dev/full"), ignore)


def test_a_row_that_does_not_fit_leaves_the_rows_before_it_whole(tmp_path: Path) -> None:
    # RLIMIT_FSIZE stands for a full disk: the write that crosses 4,096 bytes is cut short and the next one fails.
    pid = os.fork()
    if pid == 0:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        journal = Journal(tmp_path / "rows.jsonl", ignore)
        try:
            for number in range(100):
                journal.append({"n": number, "text": "x" * 90})  # 108 bytes a row, then 109
        except StoppedEarly as error:
            os._exit(0 if "cannot be written" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_bytes().splitlines()]
    # {"n":0,"text":"..."} and its newline: 18 + 90 = 108 bytes, ten of them; then 109: 1,080 + 27 x 109 = 4,023
    assert len(rows) == 37
