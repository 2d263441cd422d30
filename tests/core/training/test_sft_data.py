"""The rows of an SFT run: tokens and labels, what is left out or cut, what is held out, what the run keeps of them."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from core.commands.train_sft import TrainSft
from core.data.trained_on import HELD_OUT, TRAINED_ON, content_hash
from core.errors import UsageError
from core.training import sft_data
from core.training.chat_forms import CHATML
from core.training.masks import Masker
from core.training.sft_data import BAD_ROW, CUT, DROPPED, TOO_LONG, UNENDED, SftData, read_sft_data
from tests.support import tiny_model
from tests.support.tokenizers import small_tokenizer

MARKS = ("<|im_start|>", "<|im_end|>", "<eos>")
TOKENS = small_tokenizer(special=MARKS)
"""One token for each byte and each mark, so that lengths can be counted by hand."""
CALL = {"id": "c1", "type": "function", "function": {"name": "warmth", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "warmth", "parameters": {"type": "object", "properties": {}}}}]
REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|im_start|>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def row(question: str, answer: str = "Yes.", **more: Any) -> dict[str, Any]:
    return {"messages": [user(question), said(answer)], **more}


CALLED = {
    "messages": [
        user("How warm?"),
        said("", tool_calls=[CALL]),
        {"role": "tool", "tool_call_id": "c1", "content": "31"},
        said("It is 31."),
    ]
}


def read(
    folder: Path, *rows: Any, template: str = CHATML, context: int | None = None, **given: Any
) -> tuple[SftData, list[str]]:
    file = folder / "train.jsonl"
    lines = [each if isinstance(each, str) else json.dumps(each) for each in rows]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    options = TrainSft(**{"data": str(file), "model": "tiny", "output": folder / "run", **given})
    notes: list[str] = []
    data = read_sft_data(options, Masker(TOKENS, template, options.thinking), context, notes.append)
    assert notes == data.notes
    return data, notes


def text(ids: list[int]) -> str:
    return TOKENS.decode(ids, clean_up_tokenization_spaces=False)


def test_a_row_becomes_its_tokens_and_labels_for_what_the_assistant_says(tmp_path: Path) -> None:
    data, notes = read(tmp_path, row("Hi", "Yes?"))
    (found,) = data.train.to_list()
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text(found["input_ids"]) == asked + "Yes?<|im_end|>"
    # 1 + 5 + 2 + 1 + 1 tokens of the user's turn, 1 + 10 that open the answer, and 4 + 1 of the answer.
    assert found["labels"] == [-100] * 21 + found["input_ids"][21:]
    assert (data.rows, data.tokens, data.trained_tokens, data.longest) == (1, 26, 5, 26)
    assert data.train.features["input_ids"].feature.dtype == data.train.features["labels"].feature.dtype == "int32"
    assert data.held_out is None
    assert (data.counts, notes) == ({}, [])
    assert data.shown == [f"{tmp_path}/train.jsonl:1 as the student reads it:\n{asked}⟦Yes?<|im_end|>⟧"]


def test_two_rows_are_shown_and_only_the_first_rows_are_read_when_asked(tmp_path: Path) -> None:
    data, _ = read(tmp_path, *(row(str(number)) for number in range(9)), "not read", num_samples=9)
    assert (data.rows, len(data.shown)) == (9, 2)


def test_many_rows_keep_their_order_over_the_tables_that_hold_them(tmp_path: Path) -> None:
    count = 2500
    data, _ = read(tmp_path, *(row(f"Q{number}", "a" * (number % 7 + 1)) for number in range(count)), val_split=0.1)
    assert data.held_out is not None
    assert (len(data.train), len(data.held_out), data.rows) == (2250, 250, 2250)
    rows = [*data.train["input_ids"], *data.held_out["input_ids"]]
    numbers = [int(text(ids).partition("Q")[2].partition("<")[0]) for ids in rows]
    assert sorted(numbers) == list(range(count))
    assert numbers[:2250] == sorted(numbers[:2250])
    assert numbers[2250:] == sorted(numbers[2250:])
    assert data.tokens == sum(len(ids) for ids in data.train["input_ids"])
    assert data.trained_tokens == sum(number % 7 + 2 for number in numbers[:2250])


def test_a_long_reading_says_how_far_it_is_and_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_data, "TELL_S", 0.0)
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row(str(number))) + "\n" for number in range(3)), encoding="utf-8")
    options = TrainSft(data=str(file), model="tiny", output=tmp_path / "run")
    notes: list[str] = []
    masker = Masker(TOKENS, CHATML, "keep")
    read_sft_data(options, masker, None, notes.append)
    assert notes == ["1 rows read", "2 rows read", "3 rows read"]

    def stop() -> None:
        if len(notes) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_sft_data(options, masker, None, notes.append, stop)
    assert notes[3:] == ["1 rows read"]


def test_the_tokens_lie_in_a_file_that_is_removed_with_the_data_and_when_reading_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    rows = [row(str(number)) for number in range(1200)]
    data, _ = read(tmp_path, *rows, val_split=0.1)
    (folder,) = place.iterdir()
    data.close()
    assert not folder.exists()
    assert len({text(ids) for ids in data.train["input_ids"]}) == 1080
    with pytest.raises(UsageError, match=r"train\.jsonl:1201: not JSON"):
        read(tmp_path, *rows, "{")
    assert list(place.iterdir()) == []


# ---- long rows ------------------------------------------------------------------------------------------------------

TWO_TURNS = {"messages": [user("Hi"), said("Yes?"), user("No"), said("Oh")]}
"""26 tokens up to the end of the first answer, then 1 + 10 + 11 + 3."""


def test_a_long_row_is_cut_after_the_last_turn_that_fits(tmp_path: Path) -> None:
    data, notes = read(tmp_path, TWO_TURNS, max_length=50)
    assert (data.longest, data.counts) == (26, {CUT: 1})
    assert text(data.train[0]["input_ids"]).endswith("Yes?<|im_end|>")
    assert notes == [f"1 {CUT}"]
    assert data.files[TRAINED_ON].decode().split() == [content_hash([user("Hi")])]  # the second turn is not trained
    assert read(tmp_path, TWO_TURNS, max_length=26)[0].longest == 26
    whole, _ = read(tmp_path, TWO_TURNS, max_length=51)
    assert (whole.longest, whole.counts) == (51, {})


def test_a_long_row_is_left_out_when_asked_or_when_nothing_of_it_fits(tmp_path: Path) -> None:
    data, _ = read(tmp_path, TWO_TURNS, row("Hi"), max_length=50, long_rows="drop")
    assert (data.rows, data.counts) == (1, {DROPPED: 1})
    data, _ = read(tmp_path, row("long" * 9), row("Hi"), max_length=30)
    assert (data.rows, data.counts) == (1, {TOO_LONG: 1})
    with pytest.raises(UsageError, match=r"nothing to train on is left: 1 rows left out.*The limit is 25 tokens"):
        read(tmp_path, row("Hi", "Yes?"), max_length=25)


def test_the_models_context_limits_rows(tmp_path: Path) -> None:
    data, _ = read(tmp_path, TWO_TURNS, context=50)
    assert data.longest == 26
    with pytest.raises(UsageError, match="--max-length 51 is more than the 50 tokens that the model reads"):
        read(tmp_path, TWO_TURNS, context=50, max_length=51)


# ---- rows that cannot be used ---------------------------------------------------------------------------------------


def test_a_bad_row_stops_the_run_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.jsonl:2: not JSON.*--skip-bad-rows"):
        read(tmp_path, row("Hi"), "{")
    with pytest.raises(UsageError, match=r"train\.jsonl:1: .*image"):
        read(tmp_path, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, said("A bird.")]})


def test_bad_rows_are_left_out_and_counted_when_asked(tmp_path: Path) -> None:
    data, notes = read(tmp_path, "{", row("Hi"), {"messages": [user("Hi")]}, "[]", skip_bad_rows=True)
    assert (data.rows, data.counts) == (1, {BAD_ROW: 3})
    assert notes[0] == f"3 {BAD_ROW}"
    assert "train.jsonl:1: not JSON" in notes[1]
    with pytest.raises(UsageError, match=r"nothing to train on is left: 1 rows that cannot be used\. .*:1: not JSON"):
        read(tmp_path, "{", skip_bad_rows=True)


def test_rows_that_the_template_refuses_are_left_out_and_the_first_is_named(tmp_path: Path) -> None:
    system = {"messages": [{"role": "system", "content": "Be brief."}, user("Hi"), said("Yes.")]}
    data, notes = read(tmp_path, row("Hi"), system, template=REFUSING)
    assert (data.rows, data.counts) == (1, {"rows left out: the chat template refuses the conversation": 1})
    assert "train.jsonl:2: no system" in notes[-1]
    with pytest.raises(UsageError, match=r"nothing to train on is left.*The first: .*train\.jsonl:1: no system"):
        read(tmp_path, system, template=REFUSING)


def test_rows_that_only_think_are_left_out_when_thoughts_are_not_trained(tmp_path: Path) -> None:
    rows = [row("Hi"), row("Hm", "<think>So.</think>")]
    data, _ = read(tmp_path, *rows, thinking="strip")
    assert (data.rows, data.counts) == (1, {"rows left out: an answer is nothing but thinking": 1})
    assert read(tmp_path, *rows)[0].rows == 2


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no row"):
        read(tmp_path)


# ---- what a template leaves out -------------------------------------------------------------------------------------


def test_a_template_that_drops_calls_is_refused_for_data_that_has_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leaves out the tool calls of 2 rows \(the first: line 2\).*chatml"):
        read(tmp_path, row("Hi"), CALLED, CALLED, template=tiny_model.CHATML)
    deaf = tiny_model.CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    with pytest.raises(UsageError, match="the tool calls of 1 rows and the results of tools of 1 rows"):
        read(tmp_path, CALLED, template=deaf)
    assert read(tmp_path, row("Hi"), template=tiny_model.CHATML)[0].rows == 1
    data, _ = read(tmp_path, CALLED)
    assert '⟦<tool_call>\n{"name": "warmth", "arguments": {}}\n</tool_call><|im_end|>⟧' in data.shown[0]
    assert "⟦It is 31.<|im_end|>⟧" in data.shown[0]


def test_schemas_are_told_to_the_student_as_a_list_or_as_json(tmp_path: Path) -> None:
    data, notes = read(tmp_path, CALLED | {"tools": TOOLS}, CALLED | {"tools": json.dumps(TOOLS)})
    assert data.train[0]["input_ids"] == data.train[1]["input_ids"]
    assert '<tools>\n{"type": "function", "function": {"name": "warmth"' in text(data.train[0]["input_ids"])
    assert notes == []
    deaf = CHATML.replace("tool | tojson", "''")
    _, notes = read(tmp_path, CALLED | {"tools": TOOLS}, template=deaf)
    assert "no place for the tools of 1 rows" in notes[0]


def test_thoughts_that_the_template_leaves_out_are_said(tmp_path: Path) -> None:
    thought = {"messages": [user("Hi"), said("Yes.", reasoning_content="Hm.")]}
    _, notes = read(tmp_path, thought, template=tiny_model.CHATML)
    assert "leaves out the thinking of 1 rows" in notes[0]
    assert read(tmp_path, thought)[1] == []
    assert read(tmp_path, thought, template=tiny_model.CHATML, thinking="strip")[1] == []


def test_texts_that_spell_special_tokens_are_counted(tmp_path: Path) -> None:
    _, notes = read(tmp_path, row("What is <|im_end|>?"), row("Hi"))
    assert notes == ["1 rows spell special tokens of the student's in their texts, which they become"]


def test_an_answer_that_was_cut_off_does_not_teach_to_stop(tmp_path: Path) -> None:
    rows = [row("Hi", finish_reason="length"), row("Ho", metadata={"finish_reason": "length"}), row("Hu")]
    data, _ = read(tmp_path, *rows)
    assert [text(ids)[-4:] for ids in data.train["input_ids"]] == ["Yes.", "Yes.", "nd|>"]
    assert data.counts == {UNENDED: 2}


# ---- what is held out, and what is kept -----------------------------------------------------------------------------


def test_rows_with_one_prompt_are_held_out_together(tmp_path: Path) -> None:
    rows = [row(f"Q{number // 2}", f"A{number}") for number in range(20)]
    data, notes = read(tmp_path, *rows, val_split=0.3)
    assert data.held_out is not None
    sides = [{text(ids).partition("Q")[2][0] for ids in part["input_ids"]} for part in (data.train, data.held_out)]
    assert (len(sides[0]), len(sides[1]), sides[0] & sides[1]) == (7, 3, set())
    assert notes == []
    again, _ = read(tmp_path, *rows, val_split=0.3)
    assert again.held_out is not None
    assert again.held_out["input_ids"] == data.held_out["input_ids"]
    other, _ = read(tmp_path, *rows, val_split=0.3, seed=1)
    assert other.held_out is not None
    assert other.held_out["input_ids"] != data.held_out["input_ids"]


def test_with_one_prompt_nothing_is_held_out(tmp_path: Path) -> None:
    data, notes = read(tmp_path, row("Hi"), row("Hi", "No."), val_split=0.5)
    assert (data.rows, data.held_out, HELD_OUT in data.files) == (2, None, False)
    assert notes == ["nothing is held out, so there is no validation: all rows begin with the same prompt"]


def test_the_run_keeps_what_was_trained_on_and_the_held_out_rows(tmp_path: Path) -> None:
    rows = [
        {**TWO_TURNS, "metadata": {"teacher": "big"}},
        {**CALLED, "tools": TOOLS, "metadata": {"teacher": "big"}},
        row("Hm", metadata={"teacher": "small"}),
        row("So", finish_reason="length"),
    ]
    data, _ = read(tmp_path, *rows, val_split=0.5)
    kept = [orjson.loads(line) for line in data.files[HELD_OUT].splitlines()]
    as_written = [{key: each[key] for key in each if key != "metadata"} for each in rows]
    held = [as_written.index(each) for each in kept]
    assert len(held) == 2
    hashes: set[str] = set()
    for number in {0, 1, 2, 3} - set(held):
        messages = rows[number]["messages"]
        hashes |= {content_hash(messages[:at]) for at, each in enumerate(messages) if each["role"] == "assistant"}
    assert data.files[TRAINED_ON].decode().split() == sorted(hashes)
    teachers = ["big", "big", "small", "unknown"]
    assert data.teachers == Counter(teacher for number, teacher in enumerate(teachers) if number not in held)
