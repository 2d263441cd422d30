"""The data of a run: turns, answers, what is left out and what is held out."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.commands.train_gold import TrainGold
from core.data.trained_on import content_hash
from core.distillation.chat import ChatSide
from core.errors import InputError, UsageError
from core.training.samples import Sample, Samples, hold_out, read_samples
from tests.support.tiny_model import CHATML
from tests.support.tokenizers import small_tokenizer

MARKS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
REFUSING = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
"""No system prompts, as Gemma's."""
TOOLS = (
    "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""It takes arguments as objects."""


def side(template: str | None = CHATML, special: tuple[str, ...] = MARKS, *pieces: str) -> ChatSide:
    return ChatSide(small_tokenizer(*pieces, special=special, eos=special[-1], template=template))


BYTES = side()
"""One token for each byte and each mark, so that lengths can be counted by hand."""


def options(data: Path, **given: Any) -> TrainGold:
    return TrainGold(**{"data": str(data), "output": data.parent / "run", "val_fraction": 0, **given})


def read(data: Path, teacher: ChatSide | None = None, contexts: tuple[int | None, int | None] = (None, None),
         student: ChatSide = BYTES, **given: Any) -> Samples:  # fmt: skip
    told: list[str] = []
    samples = read_samples(options(data, **given), student, teacher, *contexts, told.append)
    assert told == samples.notes
    return samples


def jsonl(folder: Path, *rows: Any) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def text(ids: list[int] | None) -> str:
    assert ids is not None
    return BYTES.token_bytes.of(ids).decode()


def answers(samples: Samples) -> list[str | None]:
    return [sample.answer for sample in samples.train]


def test_a_row_with_an_answer_becomes_a_prompt_and_an_answer_in_tokens(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"messages": [user("Hi"), said("Yes?")]})
    (sample,) = read(file).train
    assert text(sample.prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text(sample.answer_ids) == "Yes?<|im_end|>"
    assert (sample.answer, sample.answer_ended, sample.place) == ("Yes?", True, f"{file}:1")
    assert sample.messages == [user("Hi")]
    assert sample.teacher_prompt_ids is sample.prompt_ids


def test_a_samples_row_reads_as_the_same_sample_and_holds_the_whole_answer(tmp_path: Path) -> None:
    tools = [{"name": "weather"}]
    call = said("", tool_calls=[{"function": {"name": "weather", "arguments": {"city": "Rome"}}}])
    rows = [
        {"messages": [user("Hi"), said("Yes, a long answer")]},
        {"messages": [user("Hi"), said("Yes, a")], "finish_reason": "length"},
        {"messages": [user("And?"), call, {"role": "tool", "content": "rain"}, said("Rain")], "tools": tools},
        {"prompt": "open"},
    ]
    file = jsonl(tmp_path, *rows)
    first = read(file, student=side(TOOLS), max_new_tokens=8).train
    assert [sample.answer for sample in first] == ["Yes, a l", "Yes, a", "Rain", None]
    assert [sample.said for sample in first] == ["Yes, a long answer", "Yes, a", "Rain", None]
    again = read(jsonl(tmp_path, *(sample.row for sample in first)), student=side(TOOLS), max_new_tokens=8).train
    for one, other in zip(first, again, strict=True):
        assert {**vars(one), "place": "", "key": ""} == {**vars(other), "place": "", "key": ""}


def test_the_files_of_a_run_name_what_is_trained_on_and_hold_what_is_not(tmp_path: Path) -> None:
    file = jsonl(tmp_path, *({"messages": [user(f"q{number}"), said("yes")]} for number in range(10)))
    samples = read(file, val_fraction=0.2)
    files = samples.files()
    assert set(files["trained_on.txt"].decode().split()) == {content_hash(s.messages) for s in samples.train}
    rows = [json.loads(line) for line in files["held_out.jsonl"].splitlines()]
    assert rows == [{"messages": [*sample.messages, said("yes")]} for sample in samples.held_out]
    assert (len(samples.train), len(rows)) == (8, 2)
    assert set(read(file).files()) == {"trained_on.txt"}


def test_the_teachers_prompt_is_in_its_own_template_and_tokens(tmp_path: Path) -> None:
    teacher = side("{% for m in messages %}[{{ m.content }}]{% endfor %}>", ("<eos>",), "Hi")
    (sample,) = read(jsonl(tmp_path, {"prompt": "Hi"}), teacher).train
    assert teacher.token_bytes.of(sample.teacher_prompt_ids) == b"[Hi]>"
    assert len(sample.teacher_prompt_ids) == 4  # "[", "Hi", "]", ">"


P, YES = user("p"), said("yes")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [P, YES]},
        {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "yes"}]},
        {"messages": [P], "output": "yes"},
        {"prompt": "p", "response": "yes"},
        {"prompt": "p", "completion": "yes", "other": "no"},
        {"prompt": "p", "answer": "yes"},
        {"prompt": [P], "completion": [YES]},
        {"prompt": "p", "chosen": [P, YES], "rejected": [P, said("no")]},
        {"instruction": "p", "input": "x", "output": "yes"},
    ],
)
def test_answers_are_found_in_every_kind_of_row(tmp_path: Path, row: dict[str, Any]) -> None:
    samples = read(jsonl(tmp_path, row))
    assert answers(samples) == ["yes"]
    assert not samples.notes


def test_answers_are_found_in_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,response\np,yes\n", encoding="utf-8")
    # As the project that combined_N.json comes from writes it, with pandas' NaN.
    row = {"messages": [P, YES], "metadata": {"dataset_type": "reasoning", "domain": float("nan")}}
    (tmp_path / "combined_1.json").write_text(json.dumps({"conversations": [row]}, indent=2), encoding="utf-8")
    for name in ("a.csv", "combined_1.json"):
        assert answers(read(tmp_path / name)) == ["yes"]


def test_the_prompt_key_names_no_answer(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("answer,output\nforty-two,\n", encoding="utf-8")
    assert answers(read(tmp_path / "a.csv", prompt_key="answer")) == [None]


def test_prompts_without_answers_are_samples_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    samples = read(tmp_path / "a.txt")
    assert [(s.messages[0]["content"], s.answer_ids, s.answer, s.answer_ended) for s in samples.train] == [
        ("one", None, None, False),
        ("two", None, None, False),
    ]
    assert samples.notes == ["2 of 2 samples have no answer in the data: the student always answers them itself"]


def test_empty_answers_are_none_and_counted(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"messages": [user("a"), said(" \n")]}, {"messages": [user("b"), said("c")]})
    samples = read(file)
    assert answers(samples) == [None, "c"]
    assert "1 answers are empty and count as none" in samples.notes


CONVERSATION = [user("a"), said("A"), user("b"), said("B"), user("c")]


def test_every_turn_is_a_sample_with_all_that_was_said_before_it(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"messages": CONVERSATION})
    samples = read(file).train
    assert [(s.messages, s.answer) for s in samples] == [
        (CONVERSATION[:1], "A"),
        (CONVERSATION[:3], "B"),
        (CONVERSATION, None),
    ]
    assert [s.place for s in samples] == [f"{file}:1, turn 1", f"{file}:1, turn 2", f"{file}:1, turn 3"]


def test_only_the_last_turn_on_request(tmp_path: Path) -> None:
    (sample,) = read(jsonl(tmp_path, {"messages": CONVERSATION[:4]}), turns="last").train
    assert (sample.messages, sample.answer, sample.place[-6:]) == (CONVERSATION[:3], "B", "turn 2")


def test_a_greeting_and_a_second_message_in_a_row_are_history_only(tmp_path: Path) -> None:
    talk = [said("Welcome"), user("a"), said("A"), said("A again"), user("b"), said("B")]
    assert answers(read(jsonl(tmp_path, {"messages": talk}))) == ["A", "B"]


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "31"}
WITH_CALL = [user("How warm?"), said("", tool_calls=[CALL]), RESULT, said("31 degrees")]


@pytest.mark.parametrize("tools", [[{"name": "weather"}], '[{"name": "weather"}]'])
def test_turns_that_call_tools_are_history_and_the_template_sees_calls_and_schemas(tmp_path: Path, tools: Any) -> None:
    (sample,) = read(jsonl(tmp_path, {"messages": WITH_CALL, "tools": tools}), student=side(TOOLS)).train
    assert sample.answer == "31 degrees"
    assert sample.tools == [{"name": "weather"}]
    assert text(sample.prompt_ids) == (
        "[weather]<|im_start|>user\nHow warm?<|im_end|>\n<|im_start|>assistant\nweather(Paris)<|im_end|>\n"
        "<|im_start|>tool\n31<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_without_a_place_for_tools_is_named(tmp_path: Path) -> None:
    samples = read(jsonl(tmp_path, {"messages": WITH_CALL, "tools": [{"name": "weather"}]}))
    assert any("the chat template of small has no place for tools" in line for line in samples.notes)


def test_names_of_tools_are_no_schemas(tmp_path: Path) -> None:
    samples = read(jsonl(tmp_path, {"prompt": "a", "tools": ["weather"]}, {"prompt": "b", "tools": "weather"}))
    assert [sample.tools for sample in samples.train] == [None, None]
    assert '2 rows have "tools" that are no schemas: no template is told of them' in samples.notes


def test_what_cannot_be_put_into_a_prompt_is_left_out_and_counted(tmp_path: Path) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    file = jsonl(
        tmp_path,
        {"prompt": "fine"},
        {"question": "no prompt key"},
        {"messages": [image]},
        {"messages": [user("a"), said("", tool_calls=[{"arguments": "{}"}]), user("b")]},
        {"messages": [user("a"), said("", tool_calls=[CALL])]},
    )
    samples = read(file)
    assert len(samples.train) == 1
    assert samples.skipped == {
        "the row cannot be read": 1,
        "a message is more than text, such as an image": 1,
        "a tool call cannot be read": 1,
        "the conversation has no turn that is answered by a text": 1,
    }
    assert samples.notes[0].startswith(f'{file}:2: no "prompt" or "messages" key')


def test_content_in_parts_of_text_is_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert read(jsonl(tmp_path, {"messages": [{"role": "user", "content": parts}]})).train[0].messages == [user("Hi")]


def test_only_five_bad_rows_are_named(tmp_path: Path) -> None:
    samples = read(jsonl(tmp_path, *[{"question": "a"}] * 7, {"prompt": "fine"}))
    assert samples.skipped == {"the row cannot be read": 7}
    assert samples.notes[4].split(": ")[0].endswith("data.jsonl:5")
    assert samples.notes[5] == "and 2 more rows that cannot be read"


def test_an_answer_that_the_teacher_could_not_finish_has_no_end_of_turn(tmp_path: Path) -> None:
    row = {"messages": [*CONVERSATION[:3], said("B")], "metadata": {"finish_reason": "length"}}
    first, last = read(jsonl(tmp_path, row)).train
    assert (text(first.answer_ids), first.answer_ended) == ("A<|im_end|>", True)
    assert (text(last.answer_ids), last.answer_ended) == ("B", False)


def test_a_long_answer_is_cut_at_max_new_tokens(tmp_path: Path) -> None:
    # "four" and its end of turn are 5 tokens: they fit 5; 4 leave no place for the end of turn, 3 cut the word
    file = jsonl(tmp_path, {"messages": [user("a"), said("four")]})
    found = [read(file, max_new_tokens=most).train[0] for most in (5, 4, 3)]
    assert [text(s.answer_ids) for s in found] == ["four<|im_end|>", "four", "fou"]
    assert [(s.answer_ended, s.answer) for s in found] == [(True, "four"), (False, "four"), (False, "fou")]
    assert read(file, max_new_tokens=3).notes == ["1 answers are longer than --max-new-tokens 3 and are cut there"]


def test_prompts_without_room_for_an_answer_are_left_out_and_the_longest_is_named(tmp_path: Path) -> None:
    # <|im_start|> "user\n" 5, "Hi" 2, <|im_end|> "\n", <|im_start|> "assistant\n" 10: 21 tokens with their marks
    file = jsonl(tmp_path, {"prompt": "Hi"}, {"prompt": "Hey"}, {"prompt": "H" * 30})
    samples = read(file, contexts=(None, 31), max_new_tokens=10)
    assert [len(s.prompt_ids) for s in samples.train] == [21]
    assert samples.skipped == {"the prompt leaves no room for an answer": 2}
    assert samples.notes[0] == (
        f"2 samples left out, the longest as follows: the prompt of {file}:3 is 49 tokens long, and with "
        "--max-new-tokens 10 it does not fit the teacher's context of 31 tokens"
    )
    with pytest.raises(UsageError, match=r"49 tokens long, and with --max-new-tokens 10 .* student's context of 30"):
        read(file, contexts=(30, 31), max_new_tokens=10)


def test_a_refusal_of_one_sides_template_leaves_a_sample_out_and_of_all_is_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "system": "Be short."}, {"prompt": "b"}]
    teacher = side(REFUSING, ("<eos>",))
    samples = read(jsonl(tmp_path, *rows), teacher)
    assert samples.skipped == {"a chat template refuses the conversation": 1}
    assert "data.jsonl:1: the chat template of small refuses the conversation: no system" in samples.notes[0]
    with pytest.raises(UsageError, match="refuses the conversation: no system"):
        read(jsonl(tmp_path, rows[0]), teacher)


def test_a_file_without_rows_or_without_good_ones_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n", encoding="utf-8")
    with pytest.raises(UsageError, match="holds no row"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.json").write_text("[", encoding="utf-8")
    with pytest.raises(InputError, match="invalid JSON"):
        read(tmp_path / "b.json")
    with pytest.raises(UsageError, match=r'the row cannot be read \(1 x\). .*data.jsonl:1: no "prompt"'):
        read(jsonl(tmp_path, {"question": "a"}))


def test_learning_from_answers_only_needs_some(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"prompt": "a"})
    with pytest.raises(UsageError, match="no row has an answer, and with --lmbda 0"):
        read(file, lmbda=0)
    with pytest.raises(UsageError, match=r"no answer to learn from \(1 x\)"):
        read(file, lambda_kd=0, lambda_sft=1)
    assert "--lambda-sft has no effect: there is no answer in the data" in read(file, lambda_sft=0.5).notes


def test_sft_leaves_out_what_has_no_answer(tmp_path: Path) -> None:
    samples = read(jsonl(tmp_path, {"prompt": "a"}, {"prompt": "b", "answer": "c"}), lambda_kd=0, lambda_sft=1)
    assert answers(samples) == ["c"]
    assert samples.skipped == {"there is no answer to learn from": 1}


def test_keys_are_names_that_do_not_depend_on_the_rows_around(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "x"}, {"prompt": "a", "answer": "y"}, {"prompt": "a", "answer": "x"}]
    keys = [sample.key for sample in read(jsonl(tmp_path, *rows)).train]
    assert len(set(keys)) == 3
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)
    again = [sample.key for sample in read(jsonl(tmp_path, {"prompt": "b"}, *rows[::-1])).train]
    assert again[1:] == [keys[0], keys[1], keys[2]]  # the first of two equal rows keeps the first one's name
    assert keys == [s.key for s in read(jsonl(tmp_path, *rows), max_new_tokens=1).train]


def bare(opening: str, number: int) -> Sample:
    messages = [user(opening), said("A"), user(str(number))]
    return Sample(f"{number:016x}", f"data:{number}", messages, None, [], [])


@given(
    openings=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40),
    fraction=st.floats(0, 0.99),
    most=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_the_same_prompt_never_stands_on_both_sides(openings: str, fraction: float, most: int, seed: int) -> None:
    samples = [bare(opening, number) for number, opening in enumerate(openings)]
    train, held_out = hold_out(samples, fraction, most, seed)
    trained, held = ({s.messages[0]["content"] for s in side} for side in (train, held_out))
    assert trained.isdisjoint(held)
    assert trained
    assert len(held_out) <= most
    groups = len(set(openings))
    expected = min(max(1, round(groups * fraction)), most, groups - 1) if fraction > 0 else 0
    assert groups - len(trained) == expected
    again = hold_out(samples, fraction, most, seed)
    assert [[s.key for s in side] for side in again] == [[s.key for s in side] for side in (train, held_out)]


def test_a_third_of_nine_prompts_is_held_out_with_all_its_samples() -> None:
    samples = [bare(chr(ord("a") + number // 2), number) for number in range(18)]
    train, held_out = hold_out(samples, 1 / 3, 200, 0)
    assert (len(train), len(held_out)) == (12, 6)  # 9 / 3 = 3 prompts of 2 samples each
    assert [s.key for s in held_out] == sorted(s.key for s in held_out)


def test_white_space_makes_no_other_prompt() -> None:
    samples = [bare("Who is it?", 0), bare("Who  is it?\n", 1)]
    assert hold_out(samples, 0.5, 10, 0) == (samples, [])


def test_another_seed_holds_out_other_prompts_and_further_rows_move_few() -> None:
    samples = [bare(f"prompt {number}", number) for number in range(100)]
    held = [{s.key for s in hold_out(samples, 0.2, 200, seed)[1]} for seed in (0, 1)]
    assert len(held[0]) == len(held[1]) == 20
    assert held[0] != held[1]
    fewer = {s.key for s in hold_out(samples[:95], 0.2, 200, 0)[1]}
    assert len(fewer - held[0]) <= 5  # only what takes the places of rows that are not there


def test_one_prompt_alone_is_trained_on_and_the_user_is_told(tmp_path: Path) -> None:
    samples = read(jsonl(tmp_path, {"prompt": "a"}), val_fraction=0.5)
    assert (len(samples.train), samples.held_out) == (1, [])
    assert samples.notes[-1].startswith("nothing is held out, so there is no validation")


def test_the_first_rows_and_the_system_prompt_are_options(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"prompt": "a"}, {"prompt": "b"})
    (sample,) = read(file, num_samples=1, system="Be short.").train
    assert sample.messages == [{"role": "system", "content": "Be short."}, user("a")]
