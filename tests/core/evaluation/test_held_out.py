"""Held-out prompts: which rows are taken, which are refused, and how answers are scored."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import cli
from core.commands.evaluate import Evaluate
from core.data.overlap import longest_common, rouge_l, score, unigram_f1, words
from core.data.run import Run
from core.data.trained_on import trained_on_text
from core.errors import InputError, UsageError
from core.evaluation.cached_lm import open_cached
from core.evaluation.held_out import HeldOut, answer_held_out, choose, questions, read_held_out
from core.evaluation.models import Named, resolve_models
from core.evaluation.results import Answered, ModelInfo, Role
from tests.support.running import write_rows
from tests.support.tiny_model import make_tiny_model, teach
from tests.support.training import Models, conversations, make_models, options_of, write_conversations

ASKED, SAID = "What is the capital of France?", "The capital of France is Paris."


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


def named(run: Path | None = None, role: Role = "student", place: str = "best") -> Named:
    """A model of a run, of which nothing is read but the run's folder."""
    info = ModelInfo(name=role, role=role, path="x", backend="hf", identity="0" * 32)
    return Named(role, role, "x", "hf", run and run / place, None, None, run, "0" * 32, info)


def make_run(
    folder: Path,
    train: Sequence[Any],
    held_out: Sequence[Any] = (),
    student: str = "owner/name",
    command: str = "train_gold",
) -> Path:
    """The folder of a finished run, as far as an evaluation reads it. train, held_out: rows with messages."""
    folder.mkdir()
    record = {"command": command, "options": {"model" if command == "train_sft" else "student": student}}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "trained_on.txt").write_bytes(trained_on_text(row["messages"][:1] for row in train))
    if held_out:
        write_rows(folder / "held_out.jsonl", list(held_out))
    return folder


def read(
    models: Sequence[Named], data: Path | str | None = None, **more: Any
) -> tuple[list[HeldOut] | None, list[str]]:
    notes: list[str] = []
    options = Evaluate(student="student", data=None if data is None else str(data), **more)
    return read_held_out(options, models, notes.append), notes


ROWS = conversations(10)


# ---- which rows ----------------------------------------------------------------------------------------------------


def test_by_default_the_rows_are_those_that_the_students_run_held_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS[:8], ROWS[8:])
    rows, notes = read([named(role="baseline"), named(run, place="final")])
    assert rows is not None
    assert [[*row.messages, {"role": "assistant", "content": row.reference}] for row in rows] == [
        row["messages"] for row in ROWS[8:]
    ]
    assert notes == []


def test_rows_by_which_best_was_chosen_are_said_to_be_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS[:6], ROWS[6:8])
    notes = read([named(run)])[1]
    assert notes == [f"{run / 'best'}: best/ was chosen on these rows: its figures are a little too good; give --data"]
    assert read([named(run)], write_rows(tmp_path / "same.jsonl", ROWS[7:]))[1] == notes
    assert read([named(run)], write_rows(tmp_path / "new.jsonl", ROWS[8:]))[1] == []


def test_a_real_run_keeps_rows_that_are_read_and_refuses_those_that_it_was_trained_on(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_conversations(tmp_path / "train.jsonl", 12)
    more = ("--max-steps", "1", "--batch-size", "2", "--val-fraction", "0.25", "--max-new-tokens", "8")
    code, _ = cli.run("train_gold", options_of(models, data, tmp_path / "run", *more))
    assert code == 0, capfd.readouterr().err
    given = resolve_models(Evaluate(student=str(tmp_path / "run")))
    rows, notes = read(given)
    assert rows is not None
    # --max-new-tokens cuts what is trained on; the reference is whole all the same.
    assert {row.reference for row in rows} <= {row["messages"][1]["content"] for row in conversations(12)}
    assert len(rows) == 3
    assert any("best/ was chosen on these rows" in note for note in notes)
    with pytest.raises(UsageError, match=r"9 of 12 rows of .*train.jsonl were trained on"):
        read(given, data)
    left, notes = read(given, data, drop_trained=True)
    assert left is not None
    assert [row.messages for row in left] == [row.messages for row in rows]


def test_rows_that_were_trained_on_are_refused_with_the_first_three_places(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS[:5])
    rows = [{"system": "Be brief.", **row} for row in ROWS]  # another system prompt makes no new question
    rows[4] = {"prompt": "What is  the capital of number 4? ", "response": "Another answer"}
    data = write_rows(tmp_path / "test.jsonl", rows)
    with pytest.raises(UsageError) as error:
        read([named(), named(run)], data)
    places = ", ".join(f"{data}:{line}" for line in (1, 2, 3))
    assert str(error.value).startswith(f"5 of 10 rows of {data} were trained on ({run}): {places}, .... ")
    assert "--drop-trained" in str(error.value)
    left, notes = read([named(), named(run)], data, drop_trained=True)
    assert left is not None
    assert [row.place for row in left] == [f"{data}:{line}" for line in range(6, 11)]
    assert notes == [
        "student: in no run's folder, so rows cannot be compared with what it was trained on",
        f"5 of 10 rows of {data} were trained on ({run}): {places}, ...; they are left out",
    ]
    seen = write_rows(tmp_path / "seen.jsonl", ROWS[:5])
    with pytest.raises(UsageError, match=r"5 of 5 rows .* None is left"):
        read([named(run)], seen, drop_trained=True)


@pytest.mark.parametrize("commands", [("train_gold", "train_gold"), ("train_sft", "train_gold")])
def test_what_the_run_before_was_trained_on_counts_too(tmp_path: Path, commands: tuple[str, str]) -> None:
    first = make_run(  # which began from the second: round in a circle
        tmp_path / "first", ROWS[:5], student=str(tmp_path / "second"), command=commands[0]
    )
    second = make_run(tmp_path / "second", ROWS[5:8], ROWS[4:5] + ROWS[8:], str(first), commands[1])
    with pytest.raises(UsageError, match=r"1 of 1 rows .*first.* None is left"):
        read([named(second)], write_rows(tmp_path / "test.jsonl", ROWS[:1]))
    rows, notes = read([named(second, place="final")])
    assert rows is not None
    assert [row.messages for row in rows] == [row["messages"][:1] for row in ROWS[8:]]
    assert notes == [f"1 rows that {second} held out were trained on elsewhere and are left out"]


def test_a_run_that_does_not_say_what_it_was_trained_on_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [])
    (run / "trained_on.txt").unlink()
    rows, notes = read([named(run)], write_rows(tmp_path / "test.jsonl", ROWS))
    assert len(rows or []) == 10
    assert notes == [f"{run} does not say what it was trained on, so no row could be compared with that"]


def test_without_rows_there_is_nothing_to_measure_and_the_reason_is_said(tmp_path: Path) -> None:
    assert read([named()]) == (None, [])
    run = make_run(tmp_path / "run", ROWS)
    assert read([named(run)]) == (
        None,
        [f"{run} keeps no held_out.jsonl: held-out prompts are measured only with --data"],
    )
    open_run = make_run(tmp_path / "open", ROWS[:5], conversations(10, answered=False)[5:])
    rows, notes = read([named(open_run)])
    assert rows is None
    assert notes[-1].startswith(f"the rows that {open_run} held out have no answers")


def test_bad_files_are_refused_and_bad_rows_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=r"empty.jsonl: is empty"):
        read([named()], tmp_path / "empty.jsonl")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match=r"blank.jsonl: holds no row"):
        read([named()], tmp_path / "blank.jsonl")
    with pytest.raises(InputError, match="no such file"):
        read([named()], tmp_path / "missing.jsonl")
    bare = write_rows(tmp_path / "bare.jsonl", [{"prompt": "one"}, {"prompt": "two", "response": " "}])
    with pytest.raises(UsageError, match="no row has a reference answer"):
        read([named()], bare)
    image = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
    bad = write_rows(tmp_path / "bad.jsonl", [*ROWS[:1], {"question": "?"}, {"messages": [image], "response": "a"}])
    rows, notes = read([named()], bad)
    assert len(rows or []) == 1
    assert notes[0].startswith(f'{bad}:2: no "prompt" or "messages" key')
    assert notes[1] == f"1 of 3 rows of {bad} left out: a message is more than text, such as an image"


def test_limit_is_a_fixed_choice_in_the_order_of_the_data(tmp_path: Path) -> None:
    rows, _ = read([named()], write_rows(tmp_path / "test.jsonl", conversations(50)))
    assert rows is not None

    def chosen(limit: int, seed: int = 0) -> list[int]:
        return [rows.index(row) for row in choose(rows, Evaluate(student="s", limit=limit, seed=seed))]

    assert chosen(7) == chosen(7) == sorted(chosen(7))
    assert len(set(chosen(7))) == 7
    assert chosen(7) != chosen(7, seed=1)
    assert chosen(50) == chosen(99) == list(range(50))


def test_items_have_names_of_their_own_and_turns_of_one_conversation_are_a_cluster(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    more = [*turns, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "No."}]
    data = write_rows(tmp_path / "test.jsonl", [{"messages": turns}, {"messages": more}, ROWS[0], ROWS[0]])
    rows, _ = read([named()], data)
    assert rows is not None
    asked = questions(rows)
    assert len({each.key for each in asked}) == 4
    assert len({each.content for each in asked}) == 3
    assert asked[0].cluster == asked[1].cluster
    assert asked[2].cluster == asked[3].cluster
    assert None not in {asked[0].cluster, asked[2].cluster}
    assert (asked[0].prompt, asked[1].prompt) == ("Hi", "user: Hi\nassistant: Yes?\nuser: And?")
    assert questions(rows[2:3])[0].cluster is None
    again, _ = read([named()], write_rows(tmp_path / "other.jsonl", [ROWS[1], {"messages": turns}]))
    assert again is not None
    assert again[1].key == rows[0].key  # a name that does not change when the rows around it do


# ---- how near ------------------------------------------------------------------------------------------------------


def test_scores_of_hand_computed_answers() -> None:
    # SQuAD: "the", "a", case, punctuation and spaces do not count.
    assert score("The  capital, Paris!", "a capital paris") == {
        "exact_match": 1.0,
        "f1": 1.0,
        "rouge_l": pytest.approx(2 * 2 / 6),  # the capital paris / a capital paris: 2 of 3 on both sides
    }
    # "cat sat on mat" against "cat lay on mat on floor": 3 words in common, 4 and 6 in all.
    found = score("the cat sat on the mat", "a cat lay on a mat on a floor")
    assert found["exact_match"] == 0.0
    assert found["f1"] == pytest.approx(2 * 3 / (4 + 6))
    # the cat sat on the mat / a cat lay on a mat on a floor: cat, on, mat of 6 and 9.
    assert found["rouge_l"] == pytest.approx(2 * 3 / (6 + 9))
    assert score("", "yes") == {"exact_match": 0.0, "f1": 0.0, "rouge_l": 0.0}
    assert unigram_f1([], []) == 1.0
    assert unigram_f1(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx(2 / 3)  # a and b, once each
    assert rouge_l(list("abcd"), list("acbd")) == pytest.approx(3 / 4)  # abd or acd
    assert words("Don't stop_here: Größe 12.5") == ["don", "t", "stop", "here", "größe", "12", "5"]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_the_longest_common_subsequence_is_that_of_the_table(ours: list[str], theirs: list[str]) -> None:
    table = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for i, mine in enumerate(ours, 1):
        for j, yours in enumerate(theirs, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if mine == yours else max(table[i - 1][j], table[i][j - 1])
    assert longest_common(ours, theirs) == table[-1][-1]


def test_rouge_l_is_that_of_the_package_rouge_score() -> None:
    package = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])

    @given(*[st.text(st.sampled_from("abc AB.,'-_2\n"), max_size=40)] * 2)
    def check(answer: str, reference: str) -> None:
        theirs = package.score(reference, answer)["rougeL"].fmeasure
        assert score(answer, reference)["rouge_l"] == pytest.approx(theirs)

    check()


# ---- answers of models ---------------------------------------------------------------------------------------------


def row(text: str, reference: str, *before: dict[str, Any], tools: Any = None) -> HeldOut:
    messages = [*before, {"role": "user", "content": text}]
    return HeldOut(text[:16], text, f"test.jsonl:{text}", messages, tools, reference, True)


def answered(folder: Path, rows: Sequence[HeldOut], *, chat: bool = True, **more: Any) -> tuple[Answered, list[str]]:
    """What the model in a folder answers."""
    options = Evaluate(student=str(folder), baseline=str(folder), device="cpu", cache=folder.parent / "cache", **more)
    model = resolve_models(options)[1]
    notes: list[str] = []
    run = Run()
    with open_cached(model, options, run) as lm:
        return answer_held_out(model, lm, rows, options, run, notes.append, chat=chat), notes


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers one prompt in its chat template."""
    folder = make_tiny_model(tmp_path_factory.mktemp("taught") / "model")
    prompt = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    teach(folder, prompt, f"{SAID}<|im_end|>")
    return folder


def test_a_model_answers_greedily_in_its_chat_template_and_is_scored(taught: Path) -> None:
    found, notes = answered(taught, [row(ASKED, SAID), row("What?", "Nothing at all")], max_new_tokens=24)
    assert found.answers[0] == SAID
    figures = {each.metric.name: each.totals for each in found.scored}
    assert [figures[name][0] for name in ("exact_match", "f1", "rouge_l")] == [1.0, 1.0, 1.0]
    assert figures["rouge_l"][1] == score(found.answers[1], "Nothing at all")["rouge_l"]
    assert [each.metric.name for each in found.scored if each.metric.primary] == ["rouge_l"]
    assert (found.model, found.task, notes) == ("student", "held_out", [])


def test_answers_are_those_of_transformers_generate(taught: Path) -> None:
    rows = [row("Explain photosynthesis.", "x"), row("And?", "x", *row(ASKED, SAID).messages,
            {"role": "assistant", "content": SAID})]  # fmt: skip
    found, _ = answered(taught, rows, max_new_tokens=12)
    tokenizer = AutoTokenizer.from_pretrained(taught)
    model: Any = AutoModelForCausalLM.from_pretrained(taught, dtype=torch.float32).eval()
    for each, answer in zip(rows, found.answers, strict=True):
        text = tokenizer.apply_chat_template(each.messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        out = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert answer == tokenizer.decode(out, skip_special_tokens=True)


def test_a_model_without_a_chat_template_reads_a_transcript_and_stops_at_the_users_next_turn(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "base", template=None, special=("<|end|>",))
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    settings["eos_token"] = "<|end|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())  # no ChatML either
    text = json.dumps(tokenizer).replace("<|im_start|>", "<|one|>").replace("<|im_end|>", "<|two|>")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    teach(folder, f"### User:\n{ASKED}\n\n### Assistant:\n", "Paris.\n\n### User:\n")
    for chat in (True, False):
        found, notes = answered(folder, [row(ASKED, "Paris.")], chat=chat, max_new_tokens=24)
        assert found.answers[0].strip() == "Paris."
        assert any("no chat template: plain text is used" in note for note in notes) is chat


def test_a_prompt_that_the_template_refuses_is_not_measured_and_named(taught: Path, tmp_path: Path) -> None:
    folder = tmp_path / "refusing"
    shutil.copytree(taught, folder)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    refuse = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(refuse + template, encoding="utf-8")
    rows = [row(ASKED, SAID), row("What?", "x", {"role": "system", "content": "Be brief."})]
    found, notes = answered(folder, rows, max_new_tokens=24)
    assert found.answers == [SAID, ""]
    assert [math.isnan(value) for value in found.scored[0].totals] == [False, True]
    assert len(notes) == 1
    assert notes[0].startswith("student: 1 held-out prompts are refused, such as test.jsonl:What?: the chat template")
