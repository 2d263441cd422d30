"""What the model card of an SFT run says."""

from pathlib import Path

from .model_card import CardFacts, model_card
from .record import versions
from .sft_books import SftBooks
from .sft_data import UNKNOWN_TEACHER, SftData

SETTINGS = ("batch_size", "num_epochs", "max_steps", "learning_rate", "schedule", "weight_decay", "grad_clip", "seed")
LORA = ("qlora_rank", "lora_alpha", "lora_dropout", "lora_targets")


def card_of(books: SftBooks, data: SftData, digest: str | None, steps_of_epoch: int, form: str) -> str:
    """The README.md of the student as it is now.

    digest: SHA-256 of the file of rows.   form: of the conversations, in words.
    """
    options = books.options
    named = (*SETTINGS, *(LORA if options.lora else ()), "max_length", "packing", "val_split")
    settings = {name: getattr(options, name) for name in named}
    held_out = 0 if data.held_out is None else len(data.held_out)
    return model_card(
        CardFacts(
            name=options.project_name or options.output.name,
            base_model=options.model,
            adapter=options.lora and not options.merge,
            data=Path(options.data).name,
            data_sha256=digest or "unknown",
            rows=data.rows + held_out,
            trained_rows=data.rows,
            held_out_rows=held_out,
            trained_tokens=data.trained_tokens,
            teachers={"" if name == UNKNOWN_TEACHER else name: rows for name, rows in data.teachers.items()},
            thinking=options.thinking == "keep",
            template=form,
            step=books.step,
            steps=books.steps,
            epochs=books.step / steps_of_epoch,
            settings={name: value for name, value in settings.items() if value is not None},
            versions={name: version for name, version in versions().items() if version is not None},
            changed=data.counts,
            before=books.before,
            after=books.after,
        )
    )
