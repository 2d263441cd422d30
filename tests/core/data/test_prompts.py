"""Prompt files of every kind."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.data.prompts import BadRow, Prompt, PromptOptions, open_prompts
from core.errors import InputError


def read(path: Path, **options: Any) -> list[Prompt | BadRow]:
    with open_prompts(str(path), PromptOptions(**options)) as prompts:
        first = list(prompts())
        assert list(prompts()) == first  # a second pass reads the same
        return first


def texts(path: Path, **options: Any) -> list[str]:
    """The last message of every prompt; a bad row fails the test."""
    rows = read(path, **options)
    assert all(isinstance(row, Prompt) for row in rows), rows
    return [row.messages[-1]["content"] for row in rows if isinstance(row, Prompt)]


def only(path: Path, **options: Any) -> Prompt:
    (row,) = read(path, **options)
    assert isinstance(row, Prompt), row
    return row


def problem(path: Path, **options: Any) -> str:
    (row,) = read(path, **options)
    assert isinstance(row, BadRow), row
    return str(row)


def jsonl(path: Path, *rows: Any) -> Path:
    file = path / "prompts.jsonl"
    file.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return file


def test_a_text_file_holds_a_prompt_a_line_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\r\n   \ntwo \xf0\x9f\x98\x80\nthree\xe2\x80\xa8still three")
    assert texts(file) == ["one", "two 😀", "three\u2028still three"]
    assert [row.place for row in read(file)] == [f"{file}:1", f"{file}:4", f"{file}:5"]
    assert [row.index for row in read(file)] == [0, 1, 2]


def test_a_json_line_keeps_its_other_keys_as_metadata_and_metadata_wins(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "category": "greeting", "level": 1, "gone": None, "metadata": {"level": 2, "a": {"b": [1]}}}
    prompt = only(jsonl(tmp_path, row))
    assert prompt.messages == [{"role": "user", "content": "Hi"}]
    assert prompt.metadata == {"category": "greeting", "level": 2, "a": {"b": [1]}}


def test_the_system_prompt_of_a_row_wins_over_the_option(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"prompt": "a", "system": "Row."}, {"prompt": "b"})
    systems = [row.messages[0] for row in read(file, system="Option.") if isinstance(row, Prompt)]
    assert systems == [{"role": "system", "content": "Row."}, {"role": "system", "content": "Option."}]


def test_a_system_message_in_the_conversation_wins_over_the_option_but_not_over_the_row(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi"}]
    file = jsonl(tmp_path, {"messages": messages}, {"messages": messages, "system": "Row."})
    systems = [row.messages[0]["content"] for row in read(file, system="Option.") if isinstance(row, Prompt)]
    assert systems == ["Own.", "Row."]


def test_the_answer_at_the_end_of_a_conversation_becomes_a_reference(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    prompt = only(jsonl(tmp_path, {"messages": messages}))
    assert prompt.messages == messages[:1]
    assert prompt.metadata == {"reference": "4"}
    assert prompt.answer == messages[1:]


def test_an_answer_of_several_messages_is_whole_and_its_first_is_the_reference(tmp_path: Path) -> None:
    answer = [{"role": "assistant", "content": "4", "reasoning_content": "2+2"}, {"role": "assistant", "content": "!"}]
    prompt = only(jsonl(tmp_path, {"messages": [{"role": "user", "content": "2+2?"}, *answer]}))
    assert prompt.metadata == {"reference": "4"}
    assert prompt.answer == answer


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"response": "a"}, "a"),
        ({"output": "a", "other": "b"}, "a"),
        ({"answer": "b", "completion": "a"}, "a"),  # in the order of ANSWER_KEYS
        ({"completion": [{"role": "assistant", "content": "a"}]}, "a"),
        ({"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}]}, "a"),
        ({"response": " ", "answer": "a"}, "a"),
        ({"answer": 3}, None),  # the number of a choice, for all that is known
        ({"answer": ["a", "b"]}, None),
        ({"answer": [{"role": "user", "content": "a"}]}, None),
        ({"metadata": {"answer": "a"}}, None),
    ],
)
def test_an_answer_beside_the_prompt_is_found_and_stays_in_the_metadata(
    tmp_path: Path, row: dict[str, Any], answer: str | None
) -> None:
    prompt = only(jsonl(tmp_path, {"prompt": "Hi", **row}))
    assert prompt.answer == ([] if answer is None else [{"role": "assistant", "content": answer}])
    assert prompt.metadata == row.get("metadata", row)


def test_the_end_of_a_conversation_wins_over_an_answer_beside_it(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    assert only(jsonl(tmp_path, {"messages": messages, "answer": "5"})).answer == messages[1:]


def test_sharegpt_turns_are_translated(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    prompt = only(jsonl(tmp_path, {"conversations": turns}))
    assert [(m["role"], m["content"]) for m in prompt.messages] == [("user", "a"), ("assistant", "b"), ("user", "c")]


def test_an_alpaca_row_joins_instruction_and_input_and_keeps_its_output_for_comparison(tmp_path: Path) -> None:
    file = jsonl(
        tmp_path,
        {"instruction": "Translate.", "input": "Haus", "output": "house"},
        {"instruction": "Count.", "input": "", "output": "1"},
    )
    first, second = read(file)
    assert isinstance(first, Prompt)
    assert isinstance(second, Prompt)
    assert first.messages[0]["content"] == "Translate.\n\nHaus"
    assert second.messages[0]["content"] == "Count."
    assert first.metadata == {"reference": "house"}


def test_a_json_file_is_a_list_or_an_object_that_holds_one(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    for content in (["a", {"prompt": "b"}], {"conversations": [{"messages": [{"role": "user", "content": "a"}]}, "b"]}):
        file.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
        assert texts(file) == ["a", "b"]
    assert [row.place for row in read(file)] == [f"{file}: conversations[0]", f"{file}: conversations[1]"]


def test_the_bare_nan_that_python_writes_is_null(tmp_path: Path) -> None:
    row = {
        "messages": [{"role": "user", "content": "NaN"}],
        "metadata": {"a": float("nan"), "b": -float("inf"), "c": 1},
    }
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"conversations": [row]}), encoding="utf-8")
    for path in (file, jsonl(tmp_path, row)):
        prompt = only(path)
        assert prompt.messages == [{"role": "user", "content": "NaN"}]
        assert prompt.metadata == {"a": None, "b": None, "c": 1}


def test_a_json_file_with_one_object_a_line_says_what_to_name_it(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_bytes(b'{"prompt": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(InputError, match=r"prompts.json:2: invalid JSON: .* Name the file .jsonl"):
        read(file)


def test_csv_fields_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_bytes('\ufeffprompt,category\r\n"one, ""two""\r\nthree",x\r\n\r\nplain\u2028line,\r\n'.encode())
    first, second = read(file)
    assert isinstance(first, Prompt)
    assert isinstance(second, Prompt)
    assert first.messages[0]["content"] == 'one, "two"\r\nthree'
    assert first.metadata == {"category": "x"}
    assert second.messages[0]["content"] == "plain\u2028line"
    # line 1 is the header, 2 and 3 the first row, 4 is blank
    assert (first.place, second.place) == (f"{file}:2", f"{file}:5")


def test_csv_cells_lose_the_apostrophe_that_keeps_a_spreadsheet_from_calculating_them(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,a,b,c\n'=1+1,'- x,'tis,''@y\n", encoding="utf-8")
    prompt = only(file)
    assert prompt.messages[0]["content"] == "=1+1"
    assert prompt.metadata == {"a": "- x", "b": "'tis", "c": "'@y"}


def test_a_conversation_in_a_csv_cell_is_json_and_an_empty_cell_is_none(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    turns = [{"role": "user", "content": 'a, "b"\n'}, {"role": "assistant", "content": "c"}]
    cell = json.dumps(turns).replace('"', '""')
    file.write_text(f'prompt,messages\nHi,\nHi,"{cell}"\nHi,[torn\n', encoding="utf-8")
    first, second, third = read(file)
    assert isinstance(first, Prompt)
    assert isinstance(second, Prompt)
    assert first.messages == [{"role": "user", "content": "Hi"}]
    assert [*second.messages, *second.answer] == turns
    assert str(third) == f'{file}:4: "messages" must be a list with at least one message.'


def test_tsv_and_another_column(tmp_path: Path) -> None:
    file = tmp_path / "prompts.tsv"
    file.write_bytes(b"q\tnote\nWhy?\ta, b\n")
    assert texts(file, prompt_key="q") == ["Why?"]


def test_a_csv_row_with_too_many_fields_is_bad_and_the_others_survive(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_bytes(b"prompt,kind\nfine,a\none, two,b\nfine too,c\n")
    rows = read(file)
    assert [type(row) for row in rows] == [Prompt, BadRow, Prompt]
    assert str(rows[1]) == f"{file}:3: more fields than columns. Quote fields that hold a comma."


def test_csv_that_is_not_utf8_names_the_column(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_bytes("prompt,kind\nSchön,a\n".encode("latin-1"))
    assert problem(file) == f'{file}:2: column "prompt" is not UTF-8 (at character 4).'


def test_csv_whose_header_is_not_utf8_is_refused_before_anything_is_paid(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_bytes("prompt,größe\nHi,2\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"prompts.csv:1: a column's name is not UTF-8"):
        read(file)


def test_parquet_rows_are_read_with_their_types(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "prompts.parquet"
    parquet.write_table(pa.table({"prompt": ["a", None, "c"], "level": [1, 2, 3]}), file)
    first, second, third = read(file)
    assert isinstance(first, Prompt)
    assert first.metadata == {"level": 1}
    assert str(second) == f'{file} row 1: "prompt" is null.'
    assert isinstance(third, Prompt)


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    file = tmp_path / "prompts.parquet"
    file.write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a parquet file"):
        read(file)


def test_parquet_conversations_do_not_carry_the_empty_columns_of_their_turns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "prompts.parquet"
    turns = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": "x"}]
    parquet.write_table(pa.table({"messages": [turns]}), file)
    assert only(file).messages == [{"role": "user", "content": "a"}]


NO_KEY = 'no "prompt" or "messages" key'
KNOWN = "known: assistant, developer, system, tool, user."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, f'{NO_KEY} (found: "question"). Rename it, or pass --prompt-key question.'),
        ({"foo": "a"}, f'{NO_KEY} (found: "foo"). Add one, or pass --prompt-key NAME.'),
        ({}, f'{NO_KEY} (found: nothing). Add one, or pass --prompt-key NAME.'),
        ({"prompt": 5}, '"prompt" must be a text, found int.'),
        ({"prompt": {"a": 1}}, '"prompt" must be a text, found dict.'),
        ({"prompt": "  \t"}, '"prompt" is empty.'),
        ({"prompt": "a", "system": 5}, '"system" must be a text, found int.'),
        ({"prompt": "a", "metadata": "x"}, '"metadata" must be an object, found str.'),
        ({"messages": []}, '"messages" must be a list with at least one message.'),
        ({"messages": "Hi"}, '"messages" must be a list with at least one message.'),
        ({"messages": ["Hi"]}, "messages[0] must be an object, found str."),
        ({"messages": [{"role": "user"}]}, 'messages[0] has no text in "content".'),
        ({"messages": [{"role": "bot", "content": "a"}]}, f"messages[0] has role 'bot'; {KNOWN}"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, f"messages[0] has role ['user']; {KNOWN}"),
        ({"messages": [{"from": {}, "value": "a"}]}, f"messages[0] has role {{}}; {KNOWN}"),
        ({"messages": [{"role": "system", "content": "a"}]}, '"messages" has no user message to answer.'),
        ({"messages": [{"role": "assistant", "content": "a"}]}, '"messages" has no user message to answer.'),
        (5, "expected a text or an object, found int."),
        (None, "expected a text or an object, found NoneType."),
        ([1], "expected a text or an object, found list."),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_says_why(tmp_path: Path, row: Any, message: str) -> None:
    file = jsonl(tmp_path, row)
    assert problem(file) == f"{file}:1: {message}"


def test_a_row_that_is_nested_too_deeply_to_be_written_again_is_bad_before_it_is_paid(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "a", "metadata": {"deep": ' + b"[" * 300 + b"]" * 300 + b"}}\n")
    assert "cannot be written as JSON again" in problem(file)


def test_invalid_json_is_named_with_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n{"prompt": "b",}\n{"prompt": "c"}\n')
    rows = read(file)
    assert [type(row) for row in rows] == [Prompt, BadRow, Prompt]
    assert str(rows[1]).startswith(f"{file}:2: invalid JSON: ")
    assert "column 15" in str(rows[1])


def test_a_line_that_is_not_utf8_says_so_in_text_and_in_json(tmp_path: Path) -> None:
    for name, line in (("a.txt", "Schön\n"), ("a.jsonl", '{"prompt": "Schön"}\n')):
        file = tmp_path / name
        file.write_bytes(line.encode("latin-1"))
        assert f"{file}:1: not UTF-8 (byte 0xf6 at position" in problem(file)


def test_a_lone_surrogate_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "a\\ud800b"}\n')
    assert "invalid JSON" in problem(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_refused_with_the_command_that_converts_it(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("What is an apple?\n".encode(encoding))
    with pytest.raises(InputError, match=r"is UTF-16. Convert it: iconv -f UTF-16"):
        read(file)


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a\nb\nc\n", encoding="utf-8")
    assert texts(file, limit=2) == ["a", "b"]


def test_a_prompt_of_five_megabytes_arrives_whole(tmp_path: Path) -> None:
    text = "ä" * 2_500_000  # two bytes each
    assert texts(jsonl(tmp_path, {"prompt": text})) == [text]
    file = tmp_path / "prompts.csv"
    file.write_text(f'prompt\n"{text}"\n', encoding="utf-8")
    assert texts(file) == [text]


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.txt", "no such file"), ("folder", "is a directory"), ("empty.txt", "is empty"), ("a.docx", "unknown kind")],
)
def test_what_is_no_prompt_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(InputError, match=message), open_prompts(str(tmp_path / name), PromptOptions()):
        pass
