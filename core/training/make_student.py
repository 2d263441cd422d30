"""The job: a model with fewer layers, another tokenizer, or both, and what that cost on a text."""

import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import GenerationConfig

from ..commands.make_student import Layer, MakeStudent, Measured, Stage, StudentMade, Vocabulary
from ..data.corpus import Passage, built_in, own, spread
from ..data.jsonlines import cannot_write
from ..data.run import Run
from ..distillation.chat import ChatSide
from ..distillation.token_bytes import TokenBytes
from ..errors import StoppedEarly, UsageError
from ..teachers.hf_model import hf_folder, load_config, load_model
from ..teachers.locate import locate
from ..teachers.tokenizer_loading import find, read
from .pruning import Influence, choose, keep
from .revocabulary import compose, move, prepare

CONTEXT = 1024
"""Most tokens in one forward pass; of a longer passage the next stretch begins anew."""


def make(options: MakeStudent, run: Run) -> StudentMade:
    """Load, measure, remove layers, move to the other vocabulary, save. The saved folder is loaded again and must give
    the same logits.

    Raises UsageError as `locate`, `tokenizer_loading.find`, `own`, `choose` and `prepare` do, and for a folder that is
    not to be written; StoppedEarly when it cannot be written after all, or does not hold what was made.
    """
    began = time.monotonic()
    transformers.utils.logging.disable_progress_bar()
    output = None if options.dry_run else options.output
    passages = spread(own(options.text) if options.text else built_in(), options.limit)
    folder = hf_folder(locate(options.model, gguf=False), run.progress.note)
    if output is not None:
        check_output(output, folder, options.overwrite)
    old_tokenizer = _tokenizer(folder, options.model)
    tokenizer = old_tokenizer
    if options.tokenizer is not None:
        tokenizer = _tokenizer(find(options.tokenizer, run.progress.note), options.tokenizer)
    old = TokenBytes(old_tokenizer)
    model = load_model(folder, dtype="float32", device_map="auto", attention="sdpa", load_in_4bit=False)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    parameters, notes = model.num_parameters(), []

    influence = Influence(model)
    with influence.measured():
        measured = [_measure("before", model, old, passages, run)]
    values = influence.values()
    kept = choose(values, options.layers or len(values))
    if len(kept) < len(values):
        keep(model, kept)
        measured.append(_measure("fewer layers", model, old, passages, run))

    vocabulary = None
    if options.tokenizer is not None:
        new_side, notes = prepare(tokenizer, old_tokenizer)
        old_side = ChatSide(old_tokenizer)
        made = compose(new_side, old_side, model.get_input_embeddings().weight.shape[0], run.stop.check)
        move(model, made, new_side, old_side, tokenizer)
        vocabulary = Vocabulary(
            name=options.tokenizer,
            tokens_before=old.size,
            tokens=made.size,
            copied=made.copied,
            composed=made.composed,
            unknown=made.unknown,
        )
        measured.append(_measure("new tokenizer", model, new_side.token_bytes, passages, run))

    if output is not None:
        run.stop.check()
        stored = load_config(folder).dtype or torch.float32
        for weight in model.parameters():  # not the buffers: rotary frequencies stay in float32
            weight.data = weight.data.to(stored)
        save(model, tokenizer, output)
    return StudentMade(
        status="dry_run" if options.dry_run else "done",
        output=output,
        model=options.model,
        parameters_before=parameters,
        parameters=model.num_parameters(),
        layers=[Layer(layer=n, influence=value, kept=n in kept) for n, value in enumerate(values)],
        vocabulary=vocabulary,
        source=", ".join(map(str, options.text)) if options.text else "built in",
        text_bytes=sum(len(passage.text.encode()) for passage in passages),
        measured=measured,
        notes=notes,
        seconds=round(time.monotonic() - began, 2),
    )


def check_output(output: Path, source: Path, overwrite: bool) -> None:
    """Raises UsageError for a folder that the student may not have: the model's own, a file, somebody else's files, or
    a model without --overwrite."""
    if output.resolve() == source.resolve():
        raise UsageError(f"{output} is the model itself, which stays as it is. Name another folder with --output.")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file. Name a folder with --output.")
    if output.is_dir() and any(output.iterdir()):
        if not (output / "config.json").is_file():
            raise UsageError(f"{output} holds something else than a model. Name another folder with --output.")
        if not overwrite:
            raise UsageError(f"{output} holds a model. Name another folder with --output, or replace it: --overwrite.")


def save(model: Any, tokenizer: Any, output: Path) -> None:
    """The whole folder or nothing; what was there stays until the new one is proved to give the same logits.

    Raises StoppedEarly.
    """
    new, old = (output.parent / f".{output.name}.{what}-{os.getpid()}" for what in ("new", "old"))
    try:
        new.mkdir(parents=True)
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        _prove(model, new)
        if output.exists():
            output.rename(old)
        new.rename(output)
    except OSError as error:
        if old.is_dir() and not output.exists():
            old.rename(output)
        raise StoppedEarly(cannot_write(output, error)) from None
    except SafetensorError as error:
        raise StoppedEarly(f"{output} cannot be written: {error}. Free space or choose another place.") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)


@torch.inference_mode()
def _prove(model: Any, folder: Path) -> None:
    """Raises StoppedEarly when a saved model is not the one in memory: an architecture that we do not know well."""
    dtype, device = str(model.dtype).removeprefix("torch."), str(model.device)
    again = load_model(folder, dtype=dtype, device_map=device, attention="sdpa", load_in_4bit=False)
    ids = torch.arange(min(32, model.config.get_text_config().vocab_size), device=model.device)[None]
    if not torch.equal(model.eval()(input_ids=ids).logits, again(input_ids=ids).logits):
        raise StoppedEarly(
            f"the saved {type(model).__name__} does not give the logits of the one in memory, so nothing was kept: "
            "this architecture cannot be changed here. Choose a model of the Llama or Qwen family."
        )


def _tokenizer(path: Path, name: str) -> Any:
    tokenizer = read(path, name)
    tokenizer.name_or_path = name  # messages name what was asked for, not a folder of the cache
    return tokenizer


@torch.inference_mode()
def _measure(what: Stage, model: Any, table: TokenBytes, passages: Sequence[Passage], run: Run) -> Measured:
    """Bits per byte of all passages, each after a line break: a beginning that every tokenizer has."""
    start, bits, tokens, size = table.encode(b"\n"), 0.0, 0, 0
    run.progress.begin(f"measuring the model {what}", total=len(passages), unit="passages")
    for passage in passages:
        run.stop.check()
        data = passage.text.encode()
        ids = table.spell(data)[0]
        for at in range(0, len(ids), CONTEXT):
            row = torch.tensor([start + ids[at : at + CONTEXT]], device=model.device)
            logprobs = model(input_ids=row, use_cache=False).logits[0, len(start) - 1 : -1].float().log_softmax(-1)
            bits -= float(logprobs.gather(1, row[0, len(start) :, None]).cpu().double().sum()) / math.log(2)
        tokens, size = tokens + len(ids), size + len(data)
        run.progress.counts.done += 1
        run.progress.tick()
    run.progress.end()
    return Measured(model=what, tokens=tokens, bits_per_byte=bits / size)
