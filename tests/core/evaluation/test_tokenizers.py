"""How two tokenizers are compared: hand-computed numbers, real pairs, what is said, and bad input."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import cli
from core.commands.compare_tokenizers import CompareTokenizers, TokenizersCompared
from core.data.corpus import LONGEST, Passage, built_in, cut, own, spread, words_of
from core.data.run import Run
from core.data.statistics import wilson
from core.errors import InputError, ModelNotFound, UsageError
from core.evaluation.tokenizers import compare, measure, share
from core.teachers.tokenizer_loading import load
from tests.support.tiny_model import CHATML
from tests.support.tokenizers import CACHE, small_tokenizer, tokenizer_folder

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabulary maps are kept with the test, not with the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def saved(folder: Path, *pieces: str, **options: Any) -> str:
    """A small tokenizer in a folder of its own."""
    small_tokenizer(*pieces, **options).save_pretrained(folder)
    return str(folder)


def compared(student: str, teacher: str, *texts: str) -> TokenizersCompared:
    return measure(load(student), load(teacher), [Passage("text", "text", text) for text in texts])


@pytest.fixture
def student(tmp_path: Path) -> str:
    return saved(tmp_path / "student", "ab", "Ġcd", template=CHATML)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return saved(tmp_path / "teacher", "Ġ12", "ab", template=CHATML)


# ---- hand-computed -----------------------------------------------------------------------------------------------


def test_every_figure_of_a_text_that_can_be_counted_by_hand(student: str, teacher: str):
    # "ab cd 12", 8 bytes   student: ab| cd| |1|2  ends 2 5 6 7 8   teacher: ab| |c|d| 12  ends 2 3 4 5 8
    # shared ends 2 5 8, so three groups: ab|ab (1:1), " cd"|" ",c,d (1:3), " ",1,2|" 12" (3:1)
    result = compared(student, teacher, "ab cd 12")
    assert (result.all.student_tokens, result.all.teacher_tokens, result.all.text_bytes) == (5, 5, 8)
    assert result.all.exact.value == pytest.approx(1 / 5)  # ab
    assert result.all.outside.value == pytest.approx(1 / 5)  # " cd" is no token of the teacher
    assert result.all.merged.value == pytest.approx(3 / 5)  # " ", 1 and 2 are, but the teacher writes " 12"
    overall = result.overall
    assert overall.student_coverage.value == pytest.approx(4 / 5)  # all but " cd"
    assert overall.teacher_coverage.value == pytest.approx(4 / 5)  # all but " 12"
    assert overall.boundary_precision.value == pytest.approx(2 / 4)  # of 2 5 6 7, the teacher cuts at 2 5
    assert overall.boundary_recall.value == pytest.approx(2 / 4)  # of 2 3 4 5, the student cuts at 2 5
    assert overall.boundary_f1 == pytest.approx(2 * 2 / (4 + 4))
    assert overall.words == 3
    assert overall.student_tokens_per_word == pytest.approx(5 / 3)
    assert overall.student_bytes_per_token == overall.teacher_bytes_per_token == pytest.approx(8 / 5)
    assert overall.length_ratio == pytest.approx(5 / 5)
    assert overall.groups == 3
    assert overall.single_groups.value == pytest.approx(1 / 3)
    assert overall.mean_student_group == overall.mean_teacher_group == pytest.approx(5 / 3)
    assert overall.group_sizes == {"1:1": 1, "1:3": 1, "3:1": 1}
    digits = next(row for row in result.token_kinds if row.name == "digits")
    assert (digits.student_tokens, digits.teacher_tokens) == (2, 1)
    assert (digits.exact.value, digits.merged.value) == (0, 1)


def test_overlap_of_two_vocabularies_counted_by_hand(student: str, teacher: str):
    # student: 256 bytes, ab, " c", " cd", <eos> = 260.   teacher: 256 bytes, " 1", " 12", ab, <eos> = 260.
    # shared: 256 + ab + <eos> = 258 of 260 + 260 - 258 = 262; ab is id 0 here and id 1 there, so strictly 257 of 263
    found = compared(student, teacher, "ab").vocabulary
    assert found.shared == 258
    assert found.iou_bytes == found.iou_strings == pytest.approx(258 / 262)
    assert found.iou_strict == pytest.approx(257 / 263)
    assert found.student_share == found.teacher_share == pytest.approx(258 / 260)
    assert (found.numerals_both, found.numerals_student_only, found.numerals_teacher_only) == (0, 0, 1)  # " 12"


def test_strings_mislead_between_byte_level_and_sentencepiece_and_bytes_do_not(tmp_path: Path):
    levels = saved(tmp_path / "levels", "Ġthe", "Ġcat")
    pieces = saved(tmp_path / "pieces", "▁the", "▁cat", sentencepiece=True)
    result = compared(levels, pieces, "in the cat")
    # as written, the vocabularies share t h e c a, "th"-like prefixes of none, and <eos>; as bytes nearly everything
    assert result.vocabulary.iou_bytes > 0.9 > 0.1 > result.vocabulary.iou_strings
    assert (result.student.spelling, result.teacher.spelling) == ("byte-level", "SentencePiece")
    assert result.all.exact.value == 1


def test_shares_are_of_sums_with_the_wider_of_two_intervals():
    # 1/1 and 1/9: 2/10, not the mean of 1 and 1/9. Drawing one passage twice gives 1 or 1/9, beyond Wilson's interval.
    found = share(np.array([1, 1]), np.array([1, 9]))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(wilson(2, 10)[0]), pytest.approx(1.0))
    alone = share(np.array([8]), np.array([10]))
    assert (alone.low, alone.high) == pytest.approx(wilson(8, 10))
    certain = share(np.array([3, 3]), np.array([3, 3]))  # the bootstrap alone would say 1 to 1
    assert (certain.low, certain.high) == (pytest.approx(wilson(6, 6)[0]), 1)
    assert share(np.array([0]), np.array([0])).value == 0


def test_special_tokens_of_one_side_are_named_without_placeholders(tmp_path: Path):
    special = ("<eos>", "<tool>", "<|reserved_special_3|>")
    one = saved(tmp_path / "one", special=special, template=CHATML)
    other = saved(tmp_path / "other", special=("</s>",), eos="</s>", template=CHATML)
    result = compared(one, other, "x")
    assert (result.student.special_tokens, result.student.special_only_here) == (3, ["<eos>", "<tool>"])
    assert result.teacher.special_only_here == ["</s>"]
    assert any("<eos> is </s> for the teacher" in line for line in result.advice)


# ---- real pairs --------------------------------------------------------------------------------------------------

PAIRS = [("gpt2", "qwen2"), ("llama3", "smollm2"), ("phi3", "qwen2")]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], TokenizersCompared]]:
    loaded = {
        name: load(str(tokenizer_folder(name))) for name in dict.fromkeys(name for pair in PAIRS for name in pair)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield {pair: measure(loaded[pair[0]], loaded[pair[1]], built_in()) for pair in PAIRS}


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_parts_of_a_real_comparison_add_up(real: dict[tuple[str, str], TokenizersCompared], pair: tuple[str, str]):
    result = real[pair]
    for rows in (result.kinds, result.token_kinds, result.groups):
        assert sum(row.student_tokens for row in rows) == result.all.student_tokens
        exact = sum(row.exact.value * row.student_tokens for row in rows)
        assert exact == pytest.approx(result.all.exact.value * result.all.student_tokens)
    for row in [result.all, *result.kinds, *result.token_kinds]:
        assert row.exact.value + row.merged.value + row.outside.value == pytest.approx(1)
        assert 0 <= row.exact.low <= row.exact.value <= row.exact.high <= 1
    overall = result.overall
    assert sum(overall.group_sizes.values()) == overall.groups
    assert overall.group_sizes["1:1"] == pytest.approx(overall.single_groups.value * overall.groups)
    assert overall.mean_student_group * overall.groups == pytest.approx(result.all.student_tokens)
    assert overall.student_coverage.value == pytest.approx(
        result.all.exact.value + result.all.merged.value, abs=0.002
    )  # but for tokens that stand alone on both sides and are paired with others


def test_qwen_2_knows_most_of_gpt_2s_tokens_and_cuts_english_alike(
    real: dict[tuple[str, str], TokenizersCompared],
):
    result = real["gpt2", "qwen2"]
    assert result.vocabulary.student_share > 0.8
    assert result.vocabulary.teacher_share < 0.4
    english = next(row for row in result.groups if row.name == "English")
    others = next(row for row in result.groups if row.name == "other languages")
    assert english.exact.value > 0.9 > 0.6 > others.exact.value
    assert result.student.end_of_turn == "<|endoftext|>"
    assert not result.student.chat_template
    assert any("has no chat template" in line for line in result.advice)


def test_llama_3s_numbers_of_three_digits_are_merged_for_smollm2(real: dict[tuple[str, str], TokenizersCompared]):
    result = real["llama3", "smollm2"]
    assert result.vocabulary.numerals_student_only == 1100  # 00 to 99 and 000 to 999
    digits = next(row for row in result.token_kinds if row.name == "digits")
    assert digits.exact.value < 0.7
    assert digits.teacher_tokens > digits.student_tokens
    (said,) = (line for line in result.advice if line.startswith("Numbers:"))
    assert "1,100 tokens of several digits that the teacher does not have" in said
    assert 'merged="span"' in said


def test_phi_3_and_qwen_2_meet_by_bytes_and_take_digits_one_by_one(real: dict[tuple[str, str], TokenizersCompared]):
    result = real["phi3", "qwen2"]
    assert result.vocabulary.iou_strings < 0.07 < 0.15 < result.vocabulary.iou_bytes
    digits = next(row for row in result.token_kinds if row.name == "digits")
    assert digits.exact.value == 1
    assert not any(line.startswith("Numbers:") for line in result.advice)
    assert any("<|end|> is <|im_end|> for the teacher" in line for line in result.advice)


def test_a_gguf_file_needs_no_weights_to_be_compared():
    tokenizer_folder("phi3")
    file = CACHE / "gguf" / "ggml-vocab-phi-3.gguf"
    found = load(str(file))
    assert (found.table.size, found.byte_level, found.chat_template) == (32064, False, True)


# ---- the same tokenizer, and none in common ----------------------------------------------------------------------


def test_for_the_same_tokenizer_jsd_applies_directly(student: str):
    result = compared(student, student, "ab cd", "12 ab")
    assert result.relation == "same"
    assert result.all.exact.value == result.vocabulary.iou_strict == result.overall.boundary_f1 == 1
    assert "Generalised JSD over the whole vocabulary applies directly" in result.advice[0]
    assert "the same tokenizer" in result.summary()


def test_added_tokens_alone_do_not_need_gold(student: str, tmp_path: Path):
    more = saved(tmp_path / "more", "ab", "Ġcd", special=("<eos>", "<tool>"), template=CHATML)
    result = compared(student, more, "ab cd")
    assert result.relation == "same_text_tokens"
    assert "Generalised JSD applies directly" in result.advice[0]


def test_vocabularies_without_overlap_are_said_to_be_useless(tmp_path: Path):
    one = saved(tmp_path / "one", "a", "b", whole=False, unk="<unk>")
    other = saved(tmp_path / "other", "x", "y", whole=False, unk="<none>")
    result = compared(one, other, "ab")
    assert result.relation == "no_overlap"
    assert result.all.exact.value == 0
    assert result.advice[0].startswith("The vocabularies have no token of text in common")


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_tables_go_to_stdout_and_the_summary_to_stderr(
    student: str, teacher: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    text = tmp_path / "mine.txt"
    text.write_text("ab cd 12\n\nab ab", encoding="utf-8")
    code, _ = cli.run("compare_tokenizers", [student, teacher, "--text", str(text), "--progress", "off"])
    printed = capfd.readouterr()
    assert code == 0
    assert "mine.txt: 2 passages, 13 bytes" in printed.out
    for words in (
        "boundaries",
        "In words",
        "of GOLD's signal will be exact",
        "this text",
        "Only 8 tokens",
        "End of turn: <eos> on both",
    ):
        assert words in printed.out
    assert "of GOLD's signal exact" in printed.err
    assert max(len(line) for line in printed.out.splitlines() if not line.startswith(("student", "teacher"))) <= 120


def test_json_is_one_object_with_every_figure(
    student: str, teacher: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    plot = tmp_path / "plot.png"
    code, _ = cli.run("compare_tokenizers", [student, teacher, "--json", "--plot", str(plot)])
    (line,) = capfd.readouterr().out.splitlines()
    found = json.loads(line)
    assert code == 0
    assert found["source"] == "built in"
    assert TokenizersCompared.model_validate(found).all.passages == len(built_in())
    assert {row["name"] for row in found["groups"]} == {"English", "other languages", "code", "numbers", "chat"}
    from PIL import Image

    assert plot.read_bytes().startswith(PNG)
    with Image.open(plot) as image:
        image.load()
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or ()}
        assert image.width == 1350
        assert 1500 < image.height < 3500
    assert {(0, 0x72, 0xB2), (0xE6, 0x9F, 0), (0xB8, 0xB8, 0xB8)} <= colours  # all three parts are drawn
    assert 50_000 < plot.stat().st_size < 500_000


def test_a_plot_may_be_svg_and_file_names_may_hold_anything(student: str, teacher: str, tmp_path: Path):
    text = tmp_path / "$a_$ 文 and a name that is really much too long for a label.txt"
    text.write_text("ab cd", encoding="utf-8")
    plot = tmp_path / "plot.svg"
    options = CompareTokenizers(student=student, teacher=teacher, text=[text], plot=plot)
    compare(options, Run(out=lambda text: None))
    assert b"<svg" in plot.read_bytes()[:600]


def test_a_limit_reads_evenly_spread_passages(student: str, teacher: str, tmp_path: Path):
    text = tmp_path / "long.txt"
    text.write_text("\n\n".join(f"ab {n}" for n in range(100)), encoding="utf-8")
    options = CompareTokenizers(student=student, teacher=teacher, text=[text], limit=10)
    assert compare(options, Run(out=lambda text: None)).all.passages == 10


# ---- text --------------------------------------------------------------------------------------------------------


def test_the_built_in_text_is_small_and_of_many_kinds():
    passages = built_in()
    kinds = {passage.kind for passage in passages}
    assert {passage.group for passage in passages} == {"language", "code", "numbers", "chat"}
    assert sum(passage.group == "language" for passage in passages) > 100
    assert {"English", "Arabic", "Hindi", "Chinese", "Thai", "Python", "Tables", "Chat with emoji"} <= kinds
    assert len(kinds) >= 35
    assert all(passage.text.strip() for passage in passages)
    assert not any(line.startswith(("===", "~~~")) for passage in passages for line in passage.text.splitlines())
    assert sum(len(passage.text.encode()) for passage in passages) < 60_000


def test_files_are_cut_at_blank_lines_and_only_blanks_between_are_lost():
    text = "def f():\n    return 1\n\n    # still inside\n\nnext\n\n" + "word " * 1000
    parts = list(cut(text))
    assert parts[0] == "def f():\n    return 1\n\n    # still inside"
    assert parts[1] == "next"
    assert max(map(len, parts)) <= LONGEST
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_rows_give_what_the_assistant_said(tmp_path: Path):
    file = tmp_path / "train.jsonl"
    call = {"function": {"name": "add", "arguments": "{}"}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "no"},
                {"role": "assistant", "content": "yes", "tool_calls": [call]},
            ]
        },
        {"prompt": "no", "completion": "done"},
        {"other": 1},
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [passage.text for passage in own([file])] == ["yes", '{"name": "add", "arguments": "{}"}', "done"]


def test_words_are_counted_where_spaces_divide_them():
    assert words_of("two words") == 2
    assert words_of("清晨的火车还没有进站") is None
    assert words_of("ตอนเช้าตรู่ชาวประมง") is None


def test_spread_takes_the_same_number_of_every_kind_over_all_of_it():
    passages = [Passage(kind, "text", f"{kind}{n}") for kind in "xy" for n in range(4)]
    assert [passage.text for passage in spread(passages, 2)] == ["x0", "x2", "y0", "y2"]
    assert spread(passages, 9) == passages


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("empty.txt", b" \n", "holds no text"),
        ("latin.txt", b"one\n\xe4\n", "latin.txt:2: not UTF-8"),
        ("rows.jsonl", b'{"prompt": "x"}\n', "no row holds an assistant's message"),
        ("torn.jsonl", b'{"text": "x"\n', "torn.jsonl:1: not JSON"),
    ],
)
def test_text_that_cannot_be_used_is_named(tmp_path: Path, name: str, data: bytes, said: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said):
        own([tmp_path / name])


def test_text_that_is_not_there_is_said_before_a_tokenizer_is_looked_for(tmp_path: Path):
    options = CompareTokenizers(student="nowhere", teacher="nowhere", text=[tmp_path / "no.txt"])
    with pytest.raises(InputError, match="no such file"):
        compare(options, Run())


# ---- bad input ---------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_normalises_its_text_is_refused_by_name(tmp_path: Path, student: str):
    from tokenizers import normalizers

    tokenizer = small_tokenizer("ab")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path / "lower")
    with pytest.raises(UsageError, match=r"lower normalises its text \(Lowercase\)"):
        load(str(tmp_path / "lower"))


def test_a_slow_tokenizer_is_refused(tmp_path: Path):
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path / "slow")
    with pytest.raises(UsageError, match=r"slow is not a fast tokenizer"):
        load(str(tmp_path / "slow"))


def test_a_bare_tokenizer_file_is_compared_and_what_it_lacks_is_said(student: str, tmp_path: Path):
    bare = tmp_path / "bare.json"
    bare.write_bytes((Path(student) / "tokenizer.json").read_bytes())
    result = compared(student, str(bare), "ab cd")
    assert result.relation == "same"
    assert (result.teacher.end_of_turn, result.teacher.chat_template) == (None, False)
    (said,) = (line for line in result.advice if line.startswith("The teacher:"))
    assert "no token of" in said
    assert "Set eos_token" in said


def test_a_model_folder_may_be_named_by_its_tokenizer_file(student: str):
    assert load(str(Path(student) / "tokenizer.json")).chat_template


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing-there", "no model nothing-there"),
        ("./empty", "holds no tokenizer"),
        ("no.gguf", "no model no.gguf"),
        ("somebody/no-such-model", "no tokenizer somebody/no-such-model. Tried: .*the Hub's cache"),
        ("./notes.json", "is not a tokenizer.json"),
        ("./torn.json", "cannot be loaded"),
        ("./broken.gguf", "cannot be read"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_said_with_what_was_tried(folder: Path, name: str, said: str):
    (folder / "empty").mkdir()
    (folder / "notes.json").write_text("{}", encoding="utf-8")
    (folder / "torn.json").write_text('{"model": ', encoding="utf-8")
    (folder / "broken.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(UsageError, match=said) as raised:
        load(name)
    assert isinstance(raised.value, ModelNotFound) == (
        "torn" not in name and "notes" not in name and "broken" not in name
    )


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ValueError, match=r"ends in \.png"):
        CompareTokenizers(student="x", teacher="y", plot=Path("plot.jpg"))
    for plot in (tmp_path / "no" / "plot.png", tmp_path):
        named = plot if plot.suffix else tmp_path / "folder.png"
        named.mkdir() if not plot.suffix else None
        with pytest.raises(UsageError, match="folder"):
            compare(CompareTokenizers(student="x", teacher="y", plot=named), Run())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"matplotlib, which is not installed. Run: .*doctor\.py --install eval$"):
        compare(CompareTokenizers(student="x", teacher="y", plot=tmp_path / "plot.png"), Run())


def test_ctrl_c_ends_the_comparison(student: str):
    run = Run()
    run.stop.ask()
    with pytest.raises(KeyboardInterrupt):
        measure(load(student), load(student), built_in(), run)


def test_comparing_leaves_the_environment_as_it_was(student: str):
    before = dict(os.environ)
    load(student)
    assert dict(os.environ) == before
