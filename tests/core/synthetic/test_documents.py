"""Source documents, in passages."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from core.synthetic.documents import cut, read_passages, utf8_text


def write(folder: Path, **files: str) -> Path:
    """Files by their names, with __ for the dot."""
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8", newline="")
    return folder


def problem(path: Path, characters: int = 1000) -> str:
    with pytest.raises(InputError) as caught:
        read_passages(path, characters)
    return str(caught.value)


RETURNS = "Returns are free within thirty days of delivery."
PARCELS = "Parcels that are late are traced after five working days."


def test_a_folder_is_read_by_name_with_the_place_of_each_passage(tmp_path: Path):
    (tmp_path / "b").mkdir()
    write(tmp_path, z__md=RETURNS)
    write(tmp_path / "b", a__txt=PARCELS)
    passages, notes = read_passages(tmp_path, 1000)
    assert [(each.place, each.text) for each in passages] == [("b/a.txt#1", PARCELS), ("z.md#1", RETURNS)]
    assert notes == []


def test_one_file_may_stand_for_a_folder(tmp_path: Path):
    write(tmp_path, a__rst=RETURNS, b__txt=PARCELS)
    passages, _ = read_passages(tmp_path / "a.rst", 1000)
    assert [each.place for each in passages] == ["a.rst#1"]


def test_rows_are_documents_of_their_own_under_several_keys(tmp_path: Path):
    rows = [f'{{"text": "{RETURNS}"}}', "", f'{{"id": 7, "prompt": "{PARCELS}"}}', '"A row may be nothing but a text."']
    passages, _ = read_passages(write(tmp_path, a__jsonl="\n".join(rows)) / "a.jsonl", 1000)
    assert [each.text for each in passages] == [RETURNS, PARCELS, "A row may be nothing but a text."]
    assert [each.place for each in passages] == ["a.jsonl#1", "a.jsonl#2", "a.jsonl#3"]


def test_a_row_without_text_and_a_broken_one_are_named_with_their_line(tmp_path: Path):
    write(tmp_path, a__jsonl=f'{{"text": "{RETURNS}"}}\n{{"txt": "x"}}\n', b__jsonl="\n{no")
    assert problem(tmp_path / "a.jsonl").startswith(f"{tmp_path}/a.jsonl:2: no text: a row holds one under one of")
    assert problem(tmp_path / "b.jsonl").startswith(f"{tmp_path}/b.jsonl:2: not JSON")


def test_empty_documents_are_named_and_do_not_stop_the_others(tmp_path: Path):
    passages, notes = read_passages(write(tmp_path, a__txt="", b__md=" \n\n", c__txt="p. 7", d__txt=RETURNS), 1000)
    assert [each.text for each in passages] == [RETURNS]
    assert notes == ["documents: no text to ask about in a.txt, b.md, c.txt"]


def test_nothing_but_empty_documents_is_an_error(tmp_path: Path):
    assert "no text to ask about: a.txt, b.txt held fewer" in problem(write(tmp_path, a__txt="", b__txt="-"))


def test_what_is_there_twice_is_used_once(tmp_path: Path):
    passages, notes = read_passages(write(tmp_path, a__txt=RETURNS, b__md=RETURNS.replace(" ", "\n").upper()), 1000)
    assert [each.place for each in passages] == ["a.txt#1"]
    assert notes == ["documents: 1 passages were there already and are used once"]


def test_hidden_files_and_links_that_lead_out_are_not_read(tmp_path: Path):
    folder, outside = tmp_path / "in", tmp_path / "secret.txt"
    (folder / ".git").mkdir(parents=True)
    write(folder, a__txt=RETURNS, __hidden="x")
    write(folder / ".git", c__txt=PARCELS)
    outside.write_text(PARCELS, encoding="utf-8")
    (folder / "link.txt").symlink_to(outside)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    passages, notes = read_passages(folder, 1000)
    assert [each.text for each in passages] == [RETURNS]
    assert len(notes) == 1
    assert notes[0].endswith("link.txt")


def test_files_of_other_kinds_are_named(tmp_path: Path):
    names = {f"f{number}__pdf": "%PDF" for number in range(7)}
    _, notes = read_passages(write(tmp_path, a__txt=RETURNS, **names), 1000)
    assert notes[0].endswith("f0.pdf, f1.pdf, f2.pdf, f3.pdf, f4.pdf and 2 others")
    assert "pdftotext" in problem(tmp_path / "f0.pdf")


def test_a_folder_of_other_kinds_only_and_one_that_is_not_there_are_errors(tmp_path: Path):
    assert "(found: a.docx)" in problem(write(tmp_path, a__docx="x"))
    assert "no such file or folder" in problem(tmp_path / "none")


def test_other_encodings_are_refused_with_the_line_that_converts_them(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("First line.\nTür und Tor".encode("latin-1"))
    assert problem(tmp_path) == f"{tmp_path}/a.txt:2: not UTF-8. Convert it: iconv -f LATIN1 -t UTF-8"
    (tmp_path / "a.txt").write_bytes("Tür".encode("utf-16"))
    assert problem(tmp_path) == f"{tmp_path}/a.txt:1: UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8"
    (tmp_path / "a.txt").write_bytes(b"PNG\n\0\0")
    assert problem(tmp_path) == f"{tmp_path}/a.txt:2: not text (it holds zero bytes). Take it away."


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + RETURNS.encode())
    assert utf8_text(tmp_path / "a.txt") == RETURNS


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        utf8_text(tmp_path / "none.txt")


def test_front_matter_of_markdown_and_line_ends_of_windows_go(tmp_path: Path):
    write(tmp_path, a__md=f"---\ntitle: Help\n---\n# Returns\r\n\r\n{RETURNS}\r\n".replace("---\n", "---\r\n"))
    passages, _ = read_passages(tmp_path, 1000)
    assert [each.text for each in passages] == [f"# Returns\n\n{RETURNS}"]


def test_passages_are_cut_between_paragraphs():
    first, second, third = "a" * 60, "b" * 60, "c" * 60
    # 60 + 2 + 60 fit into 130, a third paragraph does not; it is longer than a quarter, so it stands alone.
    assert list(cut(f"{first}\n\n{second}\n \n\n{third}\n", 130)) == [f"{first}\n\n{second}", third]


def test_a_short_rest_joins_the_passage_before_it():
    assert list(cut(f"{'a' * 95}\n\nThe end.", 100)) == [f"{'a' * 95}\n\nThe end."]


def test_a_heading_stays_with_the_paragraph_below_it():
    text = f"{'a' * 90}\n\n# Returns\n\n## Shoes\n\n{'b' * 90}\n\nPayment\n-------\n\n{'c' * 60}"
    assert list(cut(text, 120)) == [
        "a" * 90,
        f"# Returns\n\n## Shoes\n\n{'b' * 90}",
        f"Payment\n-------\n\n{'c' * 60}",
    ]


def test_a_section_begins_a_passage_where_the_one_before_is_half_full():
    text = f"{'a' * 60}\n\n# B\n\n{'b' * 30}\n\n# C\n\n{'c' * 30}"
    # The 60 are more than half of 100, the 35 of section B are not.
    assert list(cut(text, 100)) == ["a" * 60, f"# B\n\n{'b' * 30}\n\n# C\n\n{'c' * 30}"]


def test_a_long_paragraph_is_cut_between_sentences():
    sentences = [f"This is sentence number {number}, and no more." for number in range(12)]
    parts = list(cut(" ".join(sentences), 150))
    assert " ".join(parts) == " ".join(sentences)
    assert all(part.startswith("This is") and part.endswith("more.") for part in parts)
    assert all(75 <= len(part) <= 150 for part in parts[:-1])


def test_a_long_paragraph_without_blanks_is_cut_all_the_same():
    text = "".join(chr(0x4E00 + number % 500) for number in range(1000))
    assert list(cut(text, 300)) == [text[:300], text[300:600], text[600:900], text[900:]]


@given(st.text(alphabet="ab .\n#-", max_size=400), st.integers(min_value=20, max_value=100))
def test_nothing_but_blanks_is_lost_and_passages_keep_their_length(text: str, characters: int):
    parts = list(cut(text, characters))
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(part.strip() for part in parts)
    headings = sum(line.startswith("#") or set(line) <= {"-"} for line in text.split("\n"))
    if not headings:
        assert all(len(part) <= 1.25 * characters + 2 for part in parts)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path):
    write(tmp_path, returns__txt=RETURNS)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    assert f"{closed}: cannot be read" in problem(tmp_path)
