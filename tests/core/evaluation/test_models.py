"""Which models take part: real tiny models, a real run with LoRA, and every folder that is no model."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from core import cli
from core.commands.evaluate import Evaluate
from core.errors import MissingKey, ModelNotFound, UsageError
from core.evaluation.model_files import count_parameters, digest, template_hash, vocabulary_hash
from core.evaluation.models import Named, computation, prompting_notes, resolve_models
from core.evaluation.runs import begun_from, lost_beginning, run_of
from tests.conftest import Generate
from tests.support.running import Mock, questions, read_rows, write_rows
from tests.support.tiny_model import make_tiny_model
from tests.support.training import Models, make_models, options_of, weights, write_conversations


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def lora_run(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with step-2/, step-4/, best/ and final/, all of them adapters."""
    folder = tmp_path_factory.mktemp("run")
    data = write_conversations(folder / "data.jsonl", 12)
    more = ["--lora", "--max-steps", "4", "--save-every", "2", "--eval-every", "2"]
    code, _ = cli.run("train_gold", [*options_of(models, data, folder / "gold", *more), "--json"])
    assert code == 0
    return folder / "gold"


@pytest.fixture
def student(models: Models, tmp_path: Path) -> Path:
    """A copy of the tiny student that may be spoilt."""
    return Path(shutil.copytree(models.student, tmp_path / "student"))


def resolve(**options: object) -> list[Named]:
    return resolve_models(Evaluate.model_validate({"device": "cpu", **options}))


def one(path: Path, **options: object) -> Named:
    """A model, resolved beside itself."""
    return resolve(baseline=str(path), student=str(path), **options)[1]


def refused(path: Path | str) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(student=str(path), baseline=str(path))
    return str(caught.value)


# ---- who takes part --------------------------------------------------------------------------------------------------


def test_the_order_is_baseline_students_checkpoints_teacher(models: Models, lora_run: Path) -> None:
    student = str(models.student)
    found = resolve(
        student=student,
        baseline=str(models.other),
        teacher=str(models.teacher),
        models=[f"a={models.other}"],
        sft=student,
        scan=lora_run,
    )
    assert [(each.name, each.role) for each in found] == [
        ("baseline", "baseline"),
        ("student", "student"),
        ("a", "student"),
        ("sft", "student"),
        ("step-2", "checkpoint"),
        ("step-4", "checkpoint"),
        ("final", "checkpoint"),
        ("teacher", "teacher"),
    ]
    assert all(each.info.name == each.name and each.info.identity == each.identity for each in found)


def test_checkpoints_are_in_the_order_of_their_numbers(models: Models, tmp_path: Path) -> None:
    for name in ("step-100", "step-20", "final", "step-3"):
        shutil.copytree(models.student, tmp_path / "run" / name)
    found = resolve(scan=tmp_path / "run", baseline=str(models.other))
    assert [each.name for each in found[1:]] == ["step-3", "step-20", "step-100", "final"]


def test_without_baseline_it_is_the_model_that_the_run_began_from(models: Models, lora_run: Path) -> None:
    said: list[str] = []
    found = resolve_models(Evaluate(student=str(lora_run), device="cpu"), said.append)
    assert [each.name for each in found] == ["baseline", "student"]
    assert found[0].path == str(models.student)
    assert found[0].folder == models.student
    assert any(str(models.student) in line for line in said)
    assert resolve(scan=lora_run)[0].path == str(models.student)


def test_a_beginning_that_is_gone_says_to_name_a_baseline(lora_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["options"]["student"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ModelNotFound, match=r"the beginning of the run in .*/gone: .*Name a baseline with --baseline"):
        resolve(student=str(run))


def test_a_relative_beginning_is_seen_from_where_the_run_was_begun(
    lora_run: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((lora_run / "run.json").read_text(encoding="utf-8"))
    assert record["cwd"] == str(Path.cwd())
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    run = Path(shutil.copytree(lora_run, there / "runs" / "gold"))
    shutil.copytree(models.student, there / "models" / "small")
    record |= {"cwd": str(there), "options": {**record["options"], "student": "models/small"}}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.chdir(here)
    assert resolve(student=str(run))[0].folder == there / "models" / "small"
    assert lost_beginning(run) is None
    shutil.move(there / "models" / "small", there / "models" / "moved")
    assert f"the run in {run} began from models/small, which is not there" in str(lost_beginning(run))
    for name in ("owner/repo", "smollm2"):
        record["options"]["student"] = name
        (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
        assert (begun_from(run), lost_beginning(run)) == (name, None)
    del record["cwd"]  # of an older version
    record["options"]["student"] = "small"
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    shutil.copytree(models.student, here / "small")
    assert resolve(student=str(run))[0].folder == Path("small")


def test_a_run_of_train_sft_began_from_its_model(lora_run: Path, models: Models, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record |= {"command": "train_sft", "options": {"model": str(models.student), "data": "train.jsonl"}}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    found = resolve(student=str(run))
    assert [each.name for each in found] == ["baseline", "student"]
    assert found[0].folder == models.student
    cost = found[1].info.training
    assert cost is not None
    assert cost.folder == str(run)
    record["command"] = "another"
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert run_of(run / "best") is None


def test_without_baseline_and_run_the_first_of_the_models_is_it(models: Models) -> None:
    found = resolve(models=[f"b={models.other}", f"s={models.student}"])
    assert [(each.name, each.role) for each in found] == [("b", "baseline"), ("s", "student")]


def test_one_model_alone_is_refused(models: Models) -> None:
    with pytest.raises(UsageError, match=r"nothing to compare .*student with: add --baseline"):
        resolve(student=str(models.student))
    with pytest.raises(UsageError, match=r"nothing to compare .*student with: add --baseline"):
        resolve(student=str(models.student), teacher=str(models.teacher))
    with pytest.raises(UsageError, match=r"nothing to compare .*student with: add another --models"):
        resolve(models=[f"s={models.student}"])


def test_two_models_of_one_name_are_refused(models: Models) -> None:
    path = str(models.student)
    with pytest.raises(UsageError, match="two models are called student"):
        resolve(student=path, baseline=path, models=[f"student={path}"])


def test_a_scan_of_a_folder_without_checkpoints_is_refused(models: Models, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no step-N/ and no final/"):
        resolve(scan=tmp_path, baseline=str(models.student))
    with pytest.raises(UsageError, match="there is no such folder"):
        resolve(scan=tmp_path / "none", baseline=str(models.student))


# ---- where a model is ------------------------------------------------------------------------------------------------


def test_a_run_folder_means_its_best_and_else_its_final(lora_run: Path, tmp_path: Path) -> None:
    assert one(lora_run).adapter == lora_run / "best"
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    shutil.rmtree(run / "best")
    assert one(run).adapter == run / "final"
    shutil.rmtree(run / "final")
    assert "neither best/ nor final/ yet. Name one of step-2, step-4 in it" in refused(run)


def test_the_run_of_each_of_its_models_is_found(lora_run: Path) -> None:
    for name in ("best", "final", "step-2"):
        assert one(lora_run / name).run == lora_run


def test_an_adapter_finds_its_base_and_has_its_own_tokenizer(models: Models, lora_run: Path) -> None:
    found = one(lora_run / "final")
    assert found.folder == models.student.resolve()
    assert found.adapter == found.tokenizer_folder == lora_run / "final"
    assert found.backend == found.info.backend == "hf"


def test_a_base_may_be_named_from_the_adapter_or_from_here(
    models: Models, lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = Path(shutil.copytree(lora_run / "final", tmp_path / "adapter"))
    base = Path(shutil.copytree(models.student, tmp_path / "base"))
    with_base(adapter, "../base")
    assert one(adapter).folder == adapter / "../base"
    monkeypatch.chdir(tmp_path)
    with_base(adapter, "base")
    assert one(adapter).folder == Path("base")
    assert base.is_dir()


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("/nowhere/base", "an adapter of the model /nowhere/base, which is not there"),
        ("nobody/nothing-here", "an adapter of the model nobody/nothing-here, which is not there"),
        (None, "does not say which model this adapter belongs to"),
    ],
)
def test_an_adapter_without_its_base_is_refused(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str | None, said: str
) -> None:
    offline(monkeypatch)
    adapter = Path(shutil.copytree(lora_run / "final", tmp_path / "adapter"))
    with_base(adapter, base)
    message = refused(adapter)
    assert message.startswith(f"--baseline {adapter}: ")
    assert said in message
    assert "base_model_name_or_path" in message


def test_an_adapter_of_an_adapter_is_refused(lora_run: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(lora_run / "final", tmp_path / "adapter"))
    with_base(adapter, str(lora_run / "final"))
    assert "is an adapter itself" in refused(adapter)


def with_base(adapter: Path, base: str | None) -> None:
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | {"base_model_name_or_path": base}), encoding="utf-8")


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# ---- what is no model ------------------------------------------------------------------------------------------------


def test_folders_that_hold_no_model_are_refused_with_what_they_hold(student: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no model is in this folder" in refused(empty)
    assert "it is empty" in refused(empty)
    (empty / "notes.txt").touch()
    assert "it holds notes.txt" in refused(empty)
    assert "a file that is no .gguf" in refused(empty / "notes.txt")
    (student / "model.safetensors").unlink()
    assert f"{student} has a configuration, but no weights" in refused(student)


def test_a_name_that_is_nowhere_says_what_was_tried(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    with pytest.raises(ModelNotFound, match=r"no model nobody/nothing-here\. Tried: the path .*the Hub's cache"):
        resolve(student="nobody/nothing-here", baseline=str(models.student))


@pytest.mark.parametrize("keep", [5, 200, -1])
def test_torn_weights_are_refused(student: Path, keep: int) -> None:
    file = student / "model.safetensors"
    os.truncate(file, keep if keep > 0 else file.stat().st_size + keep)
    message = refused(student)
    assert str(file) in message
    assert "Save or fetch it again" in message


def test_an_adapter_whose_weights_are_torn_is_refused(lora_run: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(lora_run / "final", tmp_path / "adapter"))
    file = adapter / "adapter_model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert "is damaged: it has" in refused(adapter)
    file.unlink()
    assert "but no weights: neither adapter_model.safetensors" in refused(adapter)


def test_a_missing_shard_is_named(student: Path) -> None:
    from safetensors.torch import save_file

    tensors = weights(student)
    (student / "model.safetensors").unlink()
    half = len(tensors) // 2
    parts = {"one.safetensors": list(tensors)[:half], "two.safetensors": list(tensors)[half:]}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, student / name, metadata={"format": "pt"})
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (student / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert one(student).info.parameters == sum(tensor.numel() for tensor in tensors.values())
    (student / "two.safetensors").unlink()
    assert "lacks 1 of 2 files of its weights (two.safetensors)" in refused(student)


def test_a_model_without_a_tokenizer_is_refused(student: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (student / name).unlink()
    assert f"{student} has no tokenizer" in refused(student)


def test_a_gguf_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(50))
    message = refused(tmp_path / "broken.gguf")
    assert "broken.gguf cannot be converted for transformers" in message
    assert ".." not in message.replace(str(tmp_path), "")


def test_a_chat_template_that_is_asked_for_and_is_not_there_is_refused(models: Models, tmp_path: Path) -> None:
    bare = str(make_tiny_model(tmp_path / "bare", template=None))
    with pytest.raises(UsageError, match=r"^student \(.*bare\) has no chat template; leave --chat-template auto\.$"):
        resolve(baseline=str(models.student), student=bare, chat_template="on")
    resolve(baseline=str(models.student), student=bare)
    resolve(baseline=str(models.student), student=str(models.teacher), chat_template="on")


def test_a_device_that_is_not_here_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--device cuda: there is none here"):
            computation(Evaluate(student="x", device="cuda"))
    assert computation(Evaluate(student="x", device="cpu")) == ("cpu", "float32")
    assert computation(Evaluate(student="x", device="cpu", dtype="bfloat16")) == ("cpu", "bfloat16")


# ---- identity --------------------------------------------------------------------------------------------------------


def test_equal_folders_at_two_places_have_one_identity(models: Models, student: Path) -> None:
    assert one(student).identity == one(models.student).identity
    assert len({one(path).identity for path in (models.student, models.teacher, models.other)}) == 3


def test_the_same_folder_twice_is_allowed(models: Models) -> None:
    first, second = resolve(student=str(models.student), baseline=str(models.student))
    assert first.identity == second.identity


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_one_changed_byte_is_another_model(student: Path, name: str) -> None:
    before = one(student).identity
    content = bytearray((student / name).read_bytes())
    if name == "model.safetensors":
        content[-1] ^= 1
    else:
        place = max(content.rfind(digit) for digit in b"0123456789abcdefghijklmnopqrstuvwxyz")
        content[place] = ord("5") if chr(content[place]).isdigit() else ord("x")
    assert (student / name).read_bytes() != bytes(content)
    (student / name).write_bytes(content)
    assert one(student).identity != before


def test_an_adapter_has_its_own_identity_wherever_it_and_its_base_lie(
    models: Models, lora_run: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(lora_run / "final", tmp_path / "adapter"))
    shutil.copytree(models.student, tmp_path / "base")
    before = one(lora_run / "final").identity
    with_base(adapter, str(tmp_path / "base"))
    assert one(adapter).identity == before
    assert before not in (one(lora_run / "step-2").identity, one(models.student).identity)
    with_base(adapter, str(models.teacher))
    assert one(adapter).identity != before  # another base
    file = adapter / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with_base(adapter, str(tmp_path / "base"))
    assert one(adapter).identity != before


def test_what_a_run_writes_beside_a_model_is_no_part_of_it(student: Path) -> None:
    before = one(student).identity
    (student / "best_metrics.json").write_text('{"step": 1}', encoding="utf-8")
    (student / "training_state.pt").write_bytes(b"optimizer")
    (student / "README.md").touch()
    assert one(student).identity == before


def test_the_number_format_is_part_of_the_identity(models: Models) -> None:
    found = [one(models.student, dtype=dtype) for dtype in ("auto", "float32", "bfloat16")]
    assert found[0].identity == found[1].identity != found[2].identity
    assert [each.info.dtype for each in found] == ["float32", "float32", "bfloat16"]


def test_no_path_is_in_an_identity_of_a_saved_copy(student: Path, tmp_path: Path) -> None:
    """transformers writes where a model came from into its files, and that says nothing of it."""
    for name in ("config.json", "tokenizer_config.json"):
        file = student / name
        settings = json.loads(file.read_text(encoding="utf-8"))
        for place in ("/a", "/b"):
            file.write_text(json.dumps(settings | {"_name_or_path": place, "name_or_path": place}), encoding="utf-8")
            shutil.copytree(student, tmp_path / f"{name}{place.strip('/')}")
        assert one(tmp_path / f"{name}a").identity == one(tmp_path / f"{name}b").identity
        file.write_text(json.dumps(settings), encoding="utf-8")


def test_a_digest_is_of_all_blocks_and_follows_a_change(tmp_path: Path) -> None:
    file = tmp_path / "file"
    content = bytearray(os.urandom(40 * 2**20))
    file.write_bytes(content)
    before = digest(file)
    assert digest(file) == before
    seen = {before}
    for place in (0, 16 * 2**20, 33 * 2**20, len(content) - 1):
        content[place] ^= 1
        file.write_bytes(content)
        seen.add(digest(file))
    assert len(seen) == 5


# ---- what is known of a model ----------------------------------------------------------------------------------------


def test_parameters_are_counted_from_the_file(models: Models) -> None:
    assert one(models.student).info.parameters == sum(tensor.numel() for tensor in weights(models.student).values())


def test_pickled_weights_are_hashed_and_not_counted(student: Path) -> None:
    tensors = weights(student)
    (student / "model.safetensors").unlink()
    torch.save(tensors, student / "pytorch_model.bin")
    assert count_parameters([student / "pytorch_model.bin"]) is None
    found = one(student)
    assert found.info.parameters is None
    assert len(found.identity) == 32


def test_a_vocabulary_is_that_of_the_tokenizer(models: Models, student: Path) -> None:
    assert vocabulary_hash(models.student) == vocabulary_hash(models.teacher) != vocabulary_hash(models.other)
    assert vocabulary_hash(student.parent) is None
    assert template_hash(models.student) == template_hash(models.other)
    (student / "chat_template.jinja").unlink()
    assert template_hash(student) is None
    file = student / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}), encoding="utf-8")
    assert template_hash(student) not in (None, template_hash(models.student))


def test_a_reader_is_told_of_tokenizers_and_templates_that_differ(models: Models, tmp_path: Path) -> None:
    bare = make_tiny_model(tmp_path / "bare", template=None)
    other = make_tiny_model(tmp_path / "other", template="{% for m in messages %}{{ m.content }}{% endfor %}")
    assert prompting_notes(resolve(student=str(models.student), baseline=str(models.teacher))) == []
    found = resolve(baseline=str(models.student), student=str(models.other), models=[f"o={other}", f"bare={bare}"])
    tokenizers, templates, none = prompting_notes(found)
    assert tokenizers.startswith("different tokenizers: baseline, o and bare; student. ")
    assert templates.startswith("different chat templates: baseline and student; o. ")
    assert none == "no chat template: bare."


def test_what_training_cost_is_read_from_the_run(lora_run: Path) -> None:
    events = [event for event in read_rows(lora_run / "metrics.jsonl") if event["event"] == "train_step"]
    assert [event["step"] for event in events] == [1, 2, 3, 4]
    for name, count in (("final", 4), ("step-2", 2)):
        cost = one(lora_run / name).info.training
        assert cost is not None
        assert (cost.folder, cost.steps) == (str(lora_run), count)
        assert cost.seconds == pytest.approx(sum(event["seconds"] for event in events[:count]))
        assert cost.tokens == sum(event["tokens"] for event in events[:count])
        assert cost.usd is None
    best = json.loads((lora_run / "best_metrics.json").read_text(encoding="utf-8"))["step"]
    cost = one(lora_run).info.training
    assert cost is not None
    assert (cost.steps or 0) == best


def test_money_for_the_data_is_read_from_its_record(
    lora_run: Path, tmp_path: Path, generate: Generate, mock: Mock
) -> None:
    write_rows(Path("prompts.jsonl"), questions(4))
    asked = ("--input", "prompts.jsonl", "--base-url", mock.base_url, "--model", mock.model, "--output", "data.jsonl")
    paid = [generate(*asked, "--samples", count).result["cost_usd"] for count in ("1", "2")]
    assert min(paid) > 0
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["options"]["data"] = "data.jsonl"
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    cost = one(run).info.training
    assert cost is not None
    assert cost.usd == pytest.approx(sum(paid))


def test_a_model_that_no_run_made_has_no_cost(models: Models) -> None:
    found = one(models.student)
    assert found.run is None
    assert found.info.training is None


# ---- teachers that only write ----------------------------------------------------------------------------------------


def test_an_api_teacher_is_known_by_its_address_and_name(models: Models, folder: Path) -> None:
    asked = {"student": str(models.student), "baseline": str(models.student), "teacher": "some/model"}
    here, there = (resolve(**asked, teacher_base_url=url)[-1] for url in ("http://a:1/v1", "http://b:1/v1"))
    assert (here.backend, here.folder, here.tokenizer_folder) == ("openai", None, None)
    assert here.identity != there.identity
    assert here.identity == resolve(**asked, teacher_base_url="http://a:1/v1")[-1].identity
    assert any("does not tell how probable" in text for text in here.info.notes)
    with pytest.raises(MissingKey, match="OPENROUTER_API_KEY"):
        resolve(**asked)
    with pytest.raises(UsageError, match="--teacher-base-url"):
        resolve(**asked, teacher_base_url="nowhere")


def test_answers_that_were_paid_for_outlive_an_upgrade(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def identities() -> list[str]:
        asked = {"student": str(models.student), "baseline": str(models.student), "teacher": "some/model"}
        return [each.identity for each in resolve(**asked, teacher_base_url="http://a:1/v1")]

    before, real = identities(), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "lm-eval" else real(name))
    after = identities()
    assert [was == now for was, now in zip(before, after, strict=True)] == [False, False, True]


@pytest.mark.gguf
def test_a_gguf_teacher_in_several_files_is_known_by_all_of_them(models: Models, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(b"GGUF" + bytes([number]))
    last = tmp_path / "m-00002-of-00002.gguf"

    def identity() -> str:
        first = str(tmp_path / "m-00001-of-00002.gguf")
        asked = {"student": str(models.student), "baseline": str(models.student), "teacher": first}
        return resolve(**asked, teacher_backend="gguf")[-1].identity

    before = identity()
    last.write_bytes(b"GGUF" + bytes([3]))
    assert identity() != before
    last.unlink()
    with pytest.raises(UsageError, match=r"m-00002-of-00002\.gguf is not beside it"):
        identity()


@pytest.mark.gguf
def test_a_gguf_teacher_is_known_by_its_content(models: Models, tmp_path: Path) -> None:
    from core.teachers.locate import locate

    file = locate("smollm2", gguf=True).path
    (tmp_path / "copy.gguf").symlink_to(file)
    found = [
        resolve(student=str(models.student), baseline=str(models.student), teacher=name, teacher_backend="gguf")[-1]
        for name in ("smollm2", str(tmp_path / "copy.gguf"))
    ]
    assert [each.backend for each in found] == ["gguf", "gguf"]
    assert found[0].identity == found[1].identity
