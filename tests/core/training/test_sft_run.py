"""A whole run from its rows to its folder, and what becomes of one that was cut off at a bad moment."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from core.commands.train_sft import SftTrained, TrainSft
from core.data.progress import Progress
from core.data.run import Run
from core.errors import StoppedEarly, UsageError
from core.training import gguf_export, sft_run
from core.training.sft_books import SftBooks
from core.training.sft_run import run_sft
from core.training.sft_trainer import SftTrainer
from tests.support.rollouts import call, calls, result, says, user
from tests.support.running import read_rows, write_rows
from tests.support.tiny_model import make_tiny_model
from tests.support.training import same_bits, weights, write_conversations


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def options(model: Path, folder: Path, **more: Any) -> TrainSft:
    data = folder / "train.jsonl"
    if not data.exists():
        write_conversations(data, 24)
    values = {"model": str(model), "data": str(data), "output": folder / "run", "device": "cpu", "threads": 1}
    return TrainSft.model_validate(
        values | {"learning_rate": 1e-2, "batch_size": 4, "num_epochs": 2, "val_split": 0.2} | more
    )


def ran(options: TrainSft) -> SftTrained:
    result = run_sft(options, Run(Progress()))
    assert isinstance(result, SftTrained)
    return result


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_rows(folder / "run/metrics.jsonl") if event["event"] == kind]


def stop_after(monkeypatch: pytest.MonkeyPatch, run: Run, step: int) -> None:
    """Let the user ask to leave while a step is made."""
    made = SftTrainer.training_step

    def training_step(self: SftTrainer, *given: Any, **named: Any) -> torch.Tensor:
        if self.state.global_step == step - 1:
            run.stop.asked = 1
        return made(self, *given, **named)

    monkeypatch.setattr(SftTrainer, "training_step", training_step)


def test_a_run_that_stops_where_it_would_measure_measures_the_trained_student_later(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    ran(options(model, tmp_path / "whole", eval_every=2))
    with monkeypatch.context() as patch:
        run = Run(Progress())
        stop_after(patch, run, 4)
        first = run_sft(options(model, tmp_path / "parts", eval_every=2), run)
    assert first.status == "interrupted"
    assert [event["step"] for event in events(tmp_path / "parts", "val")] == [0, 2]
    ran(options(model, tmp_path / "parts", eval_every=2, resume=True))
    measured = [
        [(event["step"], event["val_loss"]) for event in events(tmp_path / name, "val")] for name in ("whole", "parts")
    ]
    assert measured[0] == measured[1]
    assert same_bits(tmp_path / "whole/run/best", tmp_path / "parts/run/best")
    assert same_bits(tmp_path / "whole/run/final", tmp_path / "parts/run/final")


def test_a_run_that_patience_ended_is_finished_with_its_own_weights(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was saved at its last step, and final/ could not be written."""
    more = {"eval_every": 1, "patience": 1, "save_step": 1, "learning_rate": 0.9, "num_epochs": 10}

    def full(self: SftBooks) -> None:
        raise StoppedEarly("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(SftBooks, "finish", full)
        with pytest.raises(StoppedEarly, match="disk is full"):
            ran(options(model, tmp_path, **more))
    last = max((tmp_path / "run").glob("step-*"), key=lambda path: int(path.name[5:]))
    steps = len(events(tmp_path, "train_step"))
    assert last.name == f"step-{steps}"
    result = ran(options(model, tmp_path, resume=True, **more))
    assert (result.status, result.steps) == ("done", steps)
    assert same_bits(tmp_path / "run/final", last)
    assert not torch.equal(*(next(iter(weights(path).values())) for path in (tmp_path / "run/final", model)))


def test_an_export_that_fails_leaves_the_run_done(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program in the converter's place, which is asked before the run unless, as here, it is not."""
    monkeypatch.setattr(sft_run, "require_convertible", lambda *_: None)
    monkeypatch.setattr(gguf_export, "FOLDER", tmp_path / "converter")
    (tmp_path / "converter").mkdir()
    program = "import sys\nprint('ERROR:Model TinyForCausalLM is not supported')\nsys.exit(1)\n"
    (tmp_path / "converter/convert_hf_to_gguf.py").write_text(program)
    with pytest.raises(StoppedEarly, match="the architecture TinyForCausalLM"):
        ran(options(model, tmp_path, qlora_rank=4, max_steps=2, export="gguf"))
    record = orjson.loads((tmp_path / "run/run.json").read_bytes())
    assert record["status"] == "done"
    assert len(events(tmp_path, "train_step")) == 2
    with pytest.raises(StoppedEarly, match="the architecture TinyForCausalLM"):
        ran(options(model, tmp_path, qlora_rank=4, max_steps=2, export="gguf", resume=True))
    assert len(events(tmp_path, "train_step")) == 2
    assert not (tmp_path / "run/.gguf.new").exists()


def test_a_changed_template_is_another_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tmp_path / "form.jinja"
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template.write_text(text)
    with monkeypatch.context() as patch:
        run = Run(Progress())
        stop_after(patch, run, 2)
        run_sft(options(model, tmp_path, chat_template=str(template)), run)
    template.write_text(text.replace("<|im_end|>\n{% endfor", "<|im_end|>\n\n{% endfor"))
    with pytest.raises(UsageError, match="chat_template: was"):
        ran(options(model, tmp_path, chat_template=str(template), resume=True))


def test_a_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    plan = run_sft(options(model, tmp_path, dry_run=True), Run(Progress()))
    assert plan.status == "dry_run"
    assert not isinstance(plan, SftTrained)
    assert plan.steps == 10
    assert plan.seconds_in_all > 0
    assert not (tmp_path / "run").exists()


def test_the_folder_says_what_the_student_is(model: Path, tmp_path: Path) -> None:
    result = ran(options(model, tmp_path, qlora_rank=4, merge=True))
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        *(".lock", "best", "best_metrics.json", "curves.png", "final", "held_out.jsonl", "metrics.jsonl"),
        *("run.json", "trained_on.txt"),
    ]
    card = (run / "best/README.md").read_text()
    assert "rank" in card
    assert f"{result.before['val_loss']:.4f}" in card
    config = orjson.loads((run / "best/config.json").read_bytes())
    assert config.get("use_cache", True) is True


def test_after_rows_with_tool_calls_the_next_step_counts_with_the_tools(model: Path, folder: Path) -> None:
    turns = [calls(call("c1", "{}", "year")), result("c1", "1931"), says("In 1931.")]
    rows = [{"messages": [user(f"When, {number}?"), *turns]} for number in range(4)]
    trained = ran(options_of_rows(model, folder, rows))
    assert trained.tool_rows == 4
    best = trained.output / "best"
    said = trained.summary()
    assert f"run_rollouts.py --input test.jsonl --tools tools.py --backend hf --model {best} " in said
    assert "not whether it calls tools" in said
    assert "--merge" not in said
    adapter = trained.model_copy(update={"adapter": True})
    assert "best/ is an adapter: merge it into its model first, or train with --merge" in adapter.summary()
    plain = ran(options_of_rows(model, folder, [{"messages": [user(), says("In 1931.")]}] * 4, overwrite=True))
    assert plain.tool_rows == 0
    assert "run_rollouts" not in plain.summary()
    assert f"evaluate.py --student {best}" in plain.summary()


def options_of_rows(model: Path, folder: Path, rows: list[dict[str, Any]], **more: Any) -> TrainSft:
    write_rows(folder / "train.jsonl", rows)
    return options(model, folder, val_split=0, max_steps=1, chat_template="chatml", **more)
