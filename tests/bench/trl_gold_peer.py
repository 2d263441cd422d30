"""TRL's GOLDTrainer on the tiny models and rows that `bench_loss` and `bench_step` give ours.

Prints one line of JSON: CPU seconds of a step, split into what its parts took, and how much resident memory it added.
Tokens are merged by the chain rule ("bayesian"), so that the sums are comparable. Off-policy, with one micro-batch a
step, unless told otherwise; all on-policy answers have the same length (`text_only`).

    python -m tests.bench.trl_gold_peer --vocab 32000 --steps 2
    python -m tests.bench.trl_gold_peer --vocab 32000 --steps 2 --lmbda 1 --accumulation 4
"""

import argparse
import atexit
import importlib.util
import json
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROMPT, COMPLETION, BATCH = 32, 128, 2
STUDENT, TEACHER = (128, 2), (192, 3)
"""Width and layers."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill" / "bench-tokenizers"
PATTERNS = {
    # One splits digits in threes, the other singly; and they treat underscores differently.
    "student": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "teacher": r" ?[\p{L}_]+|\p{N}| ?[^\s\p{L}\p{N}_]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def sources(package: str = "torch") -> list[Path]:
    """Python files of an installed package: text that every machine with our packages has."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return sorted(Path(spec.origin).parent.rglob("*.py"))


def tokenizer(side: str, vocab: int) -> Any:
    """A byte-level BPE tokenizer with exactly `vocab` entries, trained on every other file around torch; kept."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder = CACHE / f"{side}-{vocab}"
    if not folder.is_dir():
        files = sorted(sources()[0].parents[1].rglob("*.py"))[side == "teacher" :: 2]
        bpe = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(PATTERNS[side]), "isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])  # pyright: ignore[reportAttributeAccessIssue]
        bpe.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        special = [f"<|end_{side}|>", f"<|pad_{side}|>", f"<|begin_{side}|>"]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            min_frequency=1,
        )
        bpe.train_from_iterator(_texts(files, 400 * vocab), trainer)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=bpe, eos_token=special[0], pad_token=special[1], bos_token=special[2]
        )
        assert len(fast) == vocab, f"only {len(fast)} tokens found: the text is too small"
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            fast.save_pretrained(Path(made) / "new")
            (Path(made) / "new").replace(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _texts(files: list[Path], characters: int) -> Iterator[str]:
    for file in files:
        text = file.read_text(encoding="utf-8", errors="ignore")
        yield text
        characters -= len(text)
        if characters < 0:
            return


def model(side: str, tokens: Any) -> Any:
    """A Llama with random weights, the same every time, its output layer tied to its embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers = STUDENT if side == "student" else TEACHER
    torch.manual_seed(hidden)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return LlamaForCausalLM(config)


def rows(tokens: Any, count: int) -> list[dict[str, str]]:
    """Prompts of PROMPT and completions of COMPLETION student tokens of real text."""
    found: list[dict[str, str]] = []
    size = PROMPT + COMPLETION
    for file in sources():
        ids = tokens(file.read_text(encoding="utf-8", errors="ignore"), add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids) - size, size):
            part = ids[start : start + size]
            found.append({"prompt": tokens.decode(part[:PROMPT]), "completion": tokens.decode(part[PROMPT:])})
            if len(found) == count:
                return found
    raise ValueError(f"only {len(found)} of {count} rows found")


def text_only(network: Any, tokens: Any) -> None:
    """Let `network.generate` draw tokens of ASCII text only, from now on.

    So no answer ends before it has all its tokens, and each can be decoded and read by another tokenizer without loss,
    which is what TRL does with it (random weights draw half characters as well, and its alignment then breaks off).
    """
    import torch
    from transformers import LogitsProcessorList

    special = set(tokens.all_special_ids)
    text = [place not in special and tokens.decode([place]).isascii() for place in range(len(tokens))]
    barred = torch.zeros(len(tokens)).masked_fill(~torch.tensor(text), -torch.inf)
    generate = network.generate

    def bar(ids: Any, scores: Any) -> Any:
        return scores + barred

    def draw(*arguments: Any, logits_processor: Any = (), **named: Any) -> Any:
        return generate(*arguments, logits_processor=LogitsProcessorList([bar, *logits_processor]), **named)

    network.generate = draw


class Peak:
    """The largest resident memory of this process, looked at every 3 ms."""

    def __init__(self) -> None:
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.003):
            self.bytes = max(self.bytes, resident())

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return max(self.bytes, resident())


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--mode", choices=["hybrid", "uld", "jsd"], default="hybrid")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--lmbda", type=float, choices=[0.0, 1.0], default=0.0, help="1: the student's own answers")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per step")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.filterwarnings("ignore")
    import torch
    import transformers
    import trl
    from datasets import Dataset, disable_progress_bars
    from trl.experimental.gold import GOLDConfig, GOLDTrainer
    from trl.experimental.gold.gold_trainer import ULDLoss

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    disable_progress_bars()
    tokens = tokenizer("student", options.vocab)
    same = options.mode == "jsd"
    teacher_tokens = tokens if same else tokenizer("teacher", options.vocab)
    out = tempfile.mkdtemp(prefix="gold-bench-")
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    settings: dict[str, Any] = {
        "output_dir": out,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": options.accumulation,
        "max_steps": options.steps + 1,
        "max_length": PROMPT + COMPLETION + 8,
        "max_completion_length": COMPLETION,
        "lmbda": options.lmbda,
        "beta": 0.5,
        "temperature": 1.0,
        "top_p": 1.0,
        "learning_rate": 1e-4,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    if not same:
        settings |= {
            "use_uld_loss": True,
            "use_extended_uld": True,
            "uld_use_hybrid_loss": options.mode == "hybrid",
            "uld_token_merge_strategy": "bayesian",
            "teacher_tokenizer_name_or_path": str(CACHE / f"teacher-{options.vocab}"),
        }
    trainer = GOLDTrainer(
        model=model("student", tokens),
        teacher_model=model("teacher", teacher_tokens),
        args=GOLDConfig(**settings),
        train_dataset=Dataset.from_list(rows(tokens, BATCH * options.accumulation * (options.steps + 2))),
        processing_class=tokens,
    )
    spent: dict[str, float] = {}
    inner: list[float] = []
    running: list[str] = []
    trained: list[int] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if "generate" in running:  # its forward passes are its own
                return function(*arguments, **named)
            start = time.process_time()
            inner.append(0.0)
            running.append(name)
            try:
                return function(*arguments, **named)
            finally:
                running.pop()
                took = time.process_time() - start
                spent[name] = spent.get(name, 0.0) + took - inner.pop()
                if inner:
                    inner[-1] += took

        return call

    models: list[tuple[str, Any]] = [("teacher_forward", trainer.teacher_model), ("student_forward", trainer.model)]
    for name, network in models:
        network.forward = timed(name, network.forward)
    ULDLoss.__call__ = timed("loss", ULDLoss.__call__)
    if same:
        GOLDTrainer.generalized_jsd_loss = staticmethod(timed("loss", GOLDTrainer.generalized_jsd_loss))
    trainer.accelerator.backward = timed("backward", trainer.accelerator.backward)
    trainer.generate_on_policy_outputs = timed("generate", trainer.generate_on_policy_outputs)
    if options.lmbda:
        text_only(trainer.model, tokens)
    compute_loss: Callable[..., Any] = trainer.compute_loss

    def counted(model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        trained.append(int((inputs["labels"] != -100).sum()))
        return compute_loss(model, inputs, *more, **named)

    trainer.compute_loss = counted
    begun: dict[str, float] = {}
    peak: list[Peak] = []

    class Watch(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == 0:
                begun["resident"] = resident()
                peak.append(Peak())
            if state.global_step == 1:  # the first is to warm up
                spent.clear()
                trained.clear()
                begun["cpu_s"] = time.process_time()

    trainer.add_callback(Watch())
    trainer.train()
    cpu_s = time.process_time() - begun["cpu_s"]
    result = {name: round(value / options.steps, 4) for name, value in spent.items()}
    result |= {
        "step": round(cpu_s / options.steps, 4),
        "loss_and_backward": round((spent["loss"] + spent["backward"]) / options.steps, 4),
        "tokens": sum(trained) / options.steps,
        "peak_mb": round((peak[0].stop() - begun["resident"]) / 2**20, 1),
    }
    print(json.dumps({"peer": f"trl {trl.__version__}", "vocab": options.vocab, "mode": options.mode, **result}))


if __name__ == "__main__":
    main()
