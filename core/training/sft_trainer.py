"""TRL's SFTTrainer over our rows, masks, folder and progress.

The Trainer makes the steps: batches, accumulation, optimiser, schedule, precision, processes, the state of a
checkpoint. Which tokens are trained is in the labels of the rows already.
"""

import math
import shutil
import time
from copy import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ..commands.train_sft import TrainSft
from ..data.run import Run
from ..errors import StoppedEarly
from .checkpoints import reason
from .sft_books import SftBooks
from .student import Student
from .world import World

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
ON_A_CPU, ELSEWHERE = 2, 4
"""Most rows per forward pass, unless the user says more."""
CPU_TOKENS = 1024
"""Of a forward pass on a CPU: more is no faster there, and each token's activations take megabytes."""
COUNTED = ("rows", "tokens", "tokens_read")
"""Of a step: rows, tokens that are trained, and all tokens without padding."""
CONFIGURED = ("use_cache", "output_router_logits", "router_aux_loss_coef")
"""Of a model's configuration: what the Trainer changes for itself."""
SAVE_AFTER_S = 1800
"""With --save-step -1 a checkpoint is made after so many seconds, too: an epoch may take days."""


class Sizes:
    """How rows become steps.

    micro: rows per forward pass.   accumulated: forward passes per step and process.   batch: rows per step.
    an_epoch, steps: steps of an epoch, and in all.   eval_every, warmup: in steps.
    checkpointing: whether activations are computed twice.
    """

    def __init__(self, options: TrainSft, rows: int, longest: int, world: World) -> None:
        """rows: of an epoch, packed ones as sequences.   longest: tokens of the longest.

        A batch that the processes cannot share evenly becomes a little larger.
        """
        mine = math.ceil(options.batch_size / world.count)
        on_cpu = world.device.type == "cpu"
        usual = min(ON_A_CPU, CPU_TOKENS // longest or 1) if on_cpu else ELSEWHERE
        if options.packing:
            usual = 1
        most = min(options.micro_batch_size or usual, mine)
        self.micro = next(size for size in range(most, 0, -1) if mine % size == 0)
        self.accumulated = mine // self.micro
        self.batch = self.micro * self.accumulated * world.count
        self.an_epoch = max(1, math.ceil(math.ceil(rows / (self.micro * world.count)) / self.accumulated))
        whole = self.an_epoch * options.num_epochs
        self.steps = min(whole, options.max_steps) if options.max_steps else whole
        self.eval_every = options.eval_every or self.an_epoch
        asked = options.gradient_checkpointing
        self.checkpointing = on_cpu and self.micro * longest > CPU_TOKENS if asked is None else asked
        self.warmup = self.steps // 20 if options.warmup_steps is None else options.warmup_steps

    def of(self, steps: int) -> "Sizes":
        """The same with another number of steps."""
        other = copy(self)
        other.steps = steps
        return other


def packed(rows: Any, options: TrainSft, length: int) -> Any:
    """Rows put together into sequences of at most `length` tokens, none of them cut; as they are without --packing."""
    return pack_dataset(rows, length, "bfd") if options.packing else rows


class SftTrainer(SFTTrainer):
    """Makes the steps, measures held-out rows by the token, and leaves what is kept to the books.

    data, held_out: data sets with input_ids and labels; None where nothing is held out.
    """

    def __init__(
        self,
        options: TrainSft,
        run: Run,
        world: World,
        books: SftBooks,
        student: Student,
        sizes: Sizes,
        data: Any,
        held_out: Any,
        staging: Path,
    ) -> None:
        self.options, self.run, self.world, self.books, self.student = options, run, world, books, student
        self.sizes, self.held_out, self.staging = sizes, held_out, staging
        self._text_config: Any = student.network.config.get_text_config()
        kept = {name: getattr(self._text_config, name) for name in CONFIGURED if hasattr(self._text_config, name)}
        self.rows = len(data)
        self.counted = dict.fromkeys(COUNTED, 0)
        super().__init__(
            model=student.model,
            args=self._arguments(),
            train_dataset=data,
            processing_class=student.tokenizer,
            callbacks=[Watch(self)],
        )
        self.remove_callback(PrinterCallback)
        for name, value in kept.items():  # what is saved with the student is its own
            setattr(self._text_config, name, value)
        for parameter in student.trained_parameters():  # TRL makes an adapter over 4-bit weights bfloat16
            parameter.data = parameter.data.float()

    def _arguments(self) -> SFTConfig:
        options, sizes = self.options, self.sizes
        arguments = SFTConfig(
            output_dir=str(self.staging),
            per_device_train_batch_size=sizes.micro,
            gradient_accumulation_steps=sizes.accumulated,
            max_steps=sizes.steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type=SCHEDULES[options.schedule],
            warmup_steps=sizes.warmup,
            weight_decay=options.weight_decay,
            max_grad_norm=options.grad_clip,
            optim="adamw_torch_fused",
            seed=options.seed,
            bf16=self.world.mixed,
            use_cpu=self.world.device.type == "cpu",
            gradient_checkpointing=False,  # `load_student` has switched it on where it is asked for
            packing=options.packing,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},  # rows are tokenised, masked, cut and packed already
            dataloader_pin_memory=self.world.device.type == "cuda",
            ddp_find_unused_parameters=False,
            logging_steps=1,
            logging_nan_inf_filter=False,  # a loss that is not a number is to be seen
            save_strategy="no",  # the callback says when
            eval_strategy="no",
            report_to="none",  # the books tell the tracker
            router_aux_loss_coef=0.0,  # the loss is that of the tokens, in a mixture of experts too
            disable_tqdm=True,
        )
        # Else accelerate's own configuration would win over --student-dtype.
        arguments.mixed_precision = "bf16" if self.world.mixed else "no"
        arguments._n_gpu = min(1, arguments.n_gpu)  # without a launcher one is used, however many there are
        return arguments

    # ---- steps -------------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """How many tokens the processes train in this step, after rows that come twice were masked.

        Where the processes cannot share an epoch evenly, accelerate fills up its last batches with rows from its
        beginning.
        """
        world, sizes = self.world, self.sizes
        first = (self.state.global_step % sizes.an_epoch) * sizes.accumulated
        for number, batch in enumerate(batch_samples):
            row = ((first + number) * world.count + world.rank) * sizes.micro  # of the epoch, in the order of its draw
            if not (self.padding_free and sizes.micro > 1):  # there the batch is one row of several sequences
                batch["labels"][max(0, self.rows - row) :] = -100
        return super()._get_num_items_in_batch(batch_samples, device)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        if self.run.stop.now:
            raise KeyboardInterrupt
        labels = inputs["labels"]
        starts = inputs["position_ids"] == 0 if "position_ids" in inputs else None
        again = (labels == -100).all(dim=1)
        self.counted["rows"] += int((~again).sum()) if starts is None else int(starts[~again].sum())
        self.counted["tokens"] += int((labels != -100).sum())
        self.counted["tokens_read"] += int(inputs["attention_mask"].sum()) if starts is None else labels.numel()
        return super().training_step(model, inputs, num_items_in_batch)

    # ---- held-out rows -----------------------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the held-out rows and tell the books."""
        if self.held_out is not None:
            self.books.validated(self.measure(self.held_out))
            self.control.should_training_stop = self.control.should_training_stop or self.books.ended
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})  # it has been done
        return {}

    def measure(self, rows: Any) -> dict[str, float]:
        """val_loss: mean negative log-likelihood of the trained tokens, in nats; val_accuracy: the share of them that
        the student would have said greedily.

        Over all tokens of all rows, however they are put into batches: the Trainer's own figure is a mean of the
        batches' means, which depends on their size.
        """
        total, right, tokens = 0.0, 0.0, 0.0
        mine = sorted(range(self.world.rank, len(rows), self.world.count), key=lambda at: -len(rows[at]["input_ids"]))
        model: Any = self.student.model
        was_training = model.training
        model.eval()
        collate: Any = self.data_collator
        for begin in range(0, len(mine), self.sizes.micro):
            if self.run.stop.now:
                raise KeyboardInterrupt
            batch = [rows[at] for at in mine[begin : begin + self.sizes.micro]]
            inputs = self._prepare_inputs(collate(batch))
            with torch.no_grad(), self.accelerator.autocast():
                found = model(**inputs, use_cache=False, fused_lm_head=True)
            total -= float(found.log_probs.double().sum())
            right += float(found.is_top1.sum())
            tokens += float(found.label_mask.sum())
        model.train(was_training)
        total, right, tokens = self.world.sum([total, right, tokens])
        return {"val_loss": total / max(1.0, tokens), "val_accuracy": right / max(1.0, tokens)}

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            transformers.Trainer._save_checkpoint(self, model, trial)  # TRL's own writes a model card besides
        except Exception as error:  # each library says in its own way that the disk is full
            raise StoppedEarly(
                f"the checkpoint of step {self.state.global_step} cannot be saved: {reason(error)}. When that is "
                "mended, the same command with --resume goes on from the one before."
            ) from error
        self.accelerator.wait_for_everyone()
        written = self.staging / f"checkpoint-{self.state.global_step}"

        def move(folder: Path) -> None:
            for path in written.iterdir():
                if path.name != "training_args.bin":  # run.json says it, and no pickle is needed to read that
                    shutil.move(path, folder / path.name)

        self.books.save(move)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save and output_dir is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            self.student.save(Path(output_dir), merge=False)  # with LoRA the adapter alone, whatever --merge says

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights were loaded with the books."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """The books write one."""

    def _send_telemetry(self) -> None:
        """Nobody is told."""


class Watch(TrainerCallback):
    """Tells the Trainer when to measure, to save and to stop, and the books what a step gave."""

    def __init__(self, trainer: SftTrainer) -> None:
        self.trainer = trainer
        self.began_s = 0.0
        self.saved_s = time.monotonic()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.began_s = time.monotonic()
        self.trainer.counted = dict.fromkeys(COUNTED, 0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer, books = self.trainer, self.trainer.books
        books.step = step = state.global_step
        last = step >= trainer.sizes.steps
        control.should_evaluate = last or step % trainer.sizes.eval_every == 0
        every, late = trainer.options.save_step, False
        if every == -1:
            every, late = trainer.sizes.an_epoch, time.monotonic() - self.saved_s > SAVE_AFTER_S
        asked, late = (flag > 0 for flag in trainer.world.sum([trainer.run.stop.requested, late]))
        control.should_save = (late or step % every == 0) and not last and not trainer.options.dry_run
        if asked and not last:
            books.interrupted = control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        if control.should_save:
            self.saved_s = time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        trainer = self.trainer
        counted = trainer.world.sum(trainer.counted[name] for name in COUNTED)
        figures = {name: logs[name] for name in ("learning_rate", "grad_norm") if name in logs}
        figures |= dict(zip(COUNTED, map(int, counted), strict=True))
        trainer.books.record(logs["loss"], figures, time.monotonic() - self.began_s)
