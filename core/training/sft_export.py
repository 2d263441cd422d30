"""best/ of an SFT run for llama.cpp and Ollama."""

import shutil
from pathlib import Path

import torch

from ..commands.train_sft import TrainSft
from ..data.run import Run
from ..errors import DistillError, StoppedEarly
from ..teachers import hf_model
from .checkpoints import hidden, reason
from .folder import RunFolder
from .gguf_export import export
from .student import Student, load_student, load_weights


def export_best(
    options: TrainSft, folder: RunFolder, run: Run, device: torch.device, student: Student | None
) -> list[Path]:
    """Write gguf/, in process 0, after the run has ended: should it fail, the same command with --resume exports again.

    student: the run's, where it is in memory; with LoRA it holds the weights of best/ afterwards.

    Raises StoppedEarly; the run is as it was.
    """
    name = options.project_name or Path(options.model).stem
    best, target = folder.path / "best", folder.path / "gguf"
    merged = hidden(target, "new")  # a killed run leaves it, and the next one knows the name
    shutil.rmtree(merged, ignore_errors=True)
    try:
        whole = best
        if (best / "adapter_config.json").exists():
            whole = merged
            merged.mkdir()
            if student is None:
                tokenizer = hf_model.load_tokenizer(best, chat=False)  # it has the form that was trained
                student = load_student(options, device, run.progress.note, tokenizer=tokenizer, dropout=True)
            load_weights(student, best)
            student.save(merged, merge=True)
        return export(whole, target, name, options.gguf_types, run.progress.note, run.stop.check)
    except DistillError:
        raise
    except Exception as error:  # each library says in its own way that the disk is full
        raise StoppedEarly(
            f"{target} cannot be written: {reason(error)}. The run itself is whole; the same command with --resume "
            "exports again."
        ) from error
    finally:
        shutil.rmtree(merged, ignore_errors=True)
