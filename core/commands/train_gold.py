"""Options, plan and result of `train_gold`."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import UsageError
from .base import Option, Result, flag
from .teacher import OWN_FIELDS, Backend, TeacherOptions, web_address
from .training import RUN, TrainingCommand, layers

DATA, STUDENT, TEACHER, ROLLOUTS, LOSS = "Data", "Student", "Teacher", "Rollouts", "Loss"
API, MONEY = "Teacher behind an API", "Money"
OPTIMISER, LORA, VALIDATION = "Optimiser", "LoRA", "Validation and checkpoints"

TeacherMode = Literal["score", "probe", "teacher-text", "judge"]
"""What a student learns from: see --teacher-mode."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
SPELT = {"fp32": "float32", "float": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
"""Other spellings of number formats."""
LOCAL = ("hf", "gguf")
"""Backends that run the teacher in this process."""
FOR_APIS = (
    *("teacher_api_key_env", "teacher_extra_body", "teacher_concurrency", "teacher_timeout", "teacher_retries"),
    *("teacher_price", "max_cost", "accept_noise", "staleness", "probe_positions"),
    *("judge", "judge_group", "judge_rubric", "score_cache"),
)
"""Options that do nothing with a teacher in this process: whoever gives one expects something of it."""
SERVERS = ("teacher_base_url", "teacher_tokenizer", "score_cache_path")
"""What is known of a server: it may stay in .env, as other teachers' keys, while the teacher is in this process."""
FOR_MODES: dict[str, tuple[TeacherMode, ...]] = {
    "accept_noise": ("score", "probe"),
    "staleness": ("score", "judge"),
    "probe_positions": ("probe",),
    "judge": ("judge",),
    "judge_group": ("judge",),
    "judge_rubric": ("judge",),
    "beta": ("score", "probe", "teacher-text"),
}
"""Options that do something in some modes only."""
OURS = (
    *OWN_FIELDS,
    *("prompt", "input_ids", "text", "suffix", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "echo_last"),
    *("return_logprob", "logprob_start_len", "top_logprobs_num", "sampling_params", "response_format"),
)
"""Fields of a request that --teacher-extra-body may not set: what training reads would mean something else."""
LOWER_IS_BETTER = ("loss", "kl", "bits_per_byte", "entropy", "truncated", "repetition")


class TrainGold(TrainingCommand):
    """Train a student on its own answers: the student answers, the teacher scores every token, the student learns.

    The two may have different tokenizers (GOLD). --lmbda mixes in reference answers from the data. Any prompt file
    will do; rows with an answer can also be trained on off-policy and are what validation measures on.

    The teacher is a model on this machine, a server that scores given texts (vLLM, SGLang, Together, Fireworks), or one
    that can only chat; what a student can learn from the last is weaker and has a name of its own: see --teacher-mode.
    """

    work: ClassVar[str] = "..training.gold:train"
    examples: ClassVar[tuple[str, ...]] = (
        "python scripts/train_gold.py",
        "python scripts/train_gold.py -d train.jsonl -o runs/gold --student Qwen/Qwen2.5-0.5B-Instruct --dry-run",
        "python scripts/train_gold.py -d train.jsonl -o runs/gold --student student --teacher smollm2 --lora",
        "python scripts/train_gold.py -d train.jsonl -o runs/gold --teacher-backend vllm --teacher Qwen/Qwen3-32B",
        "python scripts/train_gold.py -d train.jsonl -o runs/gold --teacher-backend openrouter --teacher-mode probe "
        "--max-cost 5",
        "python scripts/train_gold.py -d train.jsonl -o runs/gold --resume",
        "accelerate launch --multi_gpu --num_processes 2 scripts/train_gold.py -d train.jsonl -o runs/gold",
    )
    headings: ClassVar[tuple[str, ...]] = (
        *(DATA, STUDENT, TEACHER, API, MONEY, ROLLOUTS, LOSS),
        *(OPTIMISER, LORA, VALIDATION, RUN),
    )
    name: ClassVar[str] = "train_gold"
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            *("output", "resume", "overwrite", "dry_run", "save_every", "sample_every", "track", "teacher_batch_size"),
            *("teacher_api_key_env", "teacher_concurrency", "teacher_timeout", "teacher_retries", "teacher_price"),
            *("max_cost", "score_cache", "score_cache_path", "accept_noise"),
            "teacher_mode",  # that of the run is part of its identity, wherever it came from
        }
    )
    rounding: ClassVar[tuple[str, ...]] = ("device", "threads", "micro_batch_size", "teacher_base_url")
    why: ClassVar[dict[str, str]] = {
        "max_steps": "the learning rate follows it from the first step on: to train longer, begin a new run with best/ "
        "or final/ as --student (with --lora, written with --merge)",
    }
    ignored_env: ClassVar[dict[str, str]] = {
        "KD_MAX_GROUPS": "every aligned group is trained",
        "KD_MAX_NEW_TOKENS": "the length of the student's answers is MAX_NEW_TOKENS",
        "KD_MIN_TEACHER_LOGP": "no group is left out: whole distributions are compared, their tails included",
        "KD_DEBUG": "metrics.jsonl and samples.jsonl in the output folder hold what there is to see",
        "HF_BACKEND": "the teacher is chosen by TEACHER_BACKEND",
    }

    data: Annotated[
        str,
        Option(
            DATA, "-d", env="DATA_PATH", mcp="Prompts, with or without answers: a file or hf:owner/name.", names="data"
        ),
    ] = Field(min_length=1)
    """Prompts, with or without answers: any file that generate_teacher_data reads, its train.jsonl, combined_N.json,
    or hf:owner/name."""
    prompt_key: Annotated[str, Option(DATA)] = "prompt"
    """Key or column that holds the prompt."""
    system: Annotated[str | None, Option(DATA, "-s")] = None
    """System prompt for every row that has none of its own."""
    turns: Annotated[Literal["all", "last"], Option(DATA)] = "all"
    """Of a conversation with several turns: every turn of the user is a prompt, with all that was said before it; or
    only the last one."""
    num_samples: Annotated[int | None, Option(DATA, "-n", env="NUM_SAMPLES")] = Field(default=None, ge=1)
    """Only the first so many rows of the data."""

    output: Annotated[Path, Option(DATA, "-o", env="OUTPUT_DIR", mcp="Folder of the run.")]
    """Folder of the run: best/, final/, step-N/, metrics.jsonl, samples.jsonl, curves.png, run.json."""

    student: Annotated[
        str,
        Option(
            STUDENT,
            env=("STUDENT_MODEL_PATH", "STUDENT_MODEL_ID"),
            mcp="A folder, .gguf, smollm2 or Hub name.",
            names="model",
        ),
    ] = "Qwen/Qwen2.5-0.5B-Instruct"
    """The model to train: a folder, a .gguf file, smollm2, or a name on the Hub."""
    student_dtype: Annotated[Literal["auto", "float32", "bfloat16"], Option(STUDENT, env="STUDENT_DTYPE")] = "auto"
    """Number format of the computation (auto: bfloat16 where CUDA has it, else float32). Trained weights are kept in
    float32."""
    gradient_checkpointing: Annotated[bool, Option(STUDENT)] = False
    """Compute activations a second time instead of keeping them: less memory, about a third more time."""
    freeze_embeddings: Annotated[bool, Option(STUDENT)] = False
    """Leave the embeddings (and an output layer tied to them) as they are: faster, for students of the same family."""

    teacher: Annotated[
        str,
        Option(
            TEACHER,
            env="TEACHER_MODEL_ID",
            mcp="A folder, smollm2, a Hub name, or the server's name for it.",
            names="model",
        ),
    ] = "Qwen/Qwen2.5-7B-Instruct"
    """The teacher: a folder, smollm2, a name on the Hub, or the name that a server has for it."""
    teacher_backend: Annotated[
        Backend | None,
        Option(
            TEACHER,
            env="TEACHER_BACKEND",
            mcp="hf and gguf run it here; vllm, sglang, together, fireworks score texts; the others only chat.",
        ),
    ] = None
    """Who runs it (default: gguf when --teacher-gguf is given, openai with --teacher-base-url, else hf). hf and gguf
    run it here; vllm, sglang, together and fireworks score given texts; the others only chat: see --teacher-mode."""
    teacher_gguf: Annotated[str | None, Option(TEACHER, env=("TEACHER_GGUF_PATH", "TEACHER_GGUF"), names="model")] = (
        None
    )
    """gguf: a .gguf file, a folder of them, or owner/repo on the Hub."""
    openrouter_model: Annotated[str, Option(TEACHER, env="OPENROUTER_MODEL", names="model")] = (
        "qwen/qwen-2.5-7b-instruct"
    )
    """openrouter: the model there; --teacher where only that is given."""
    teacher_preferred_quant: Annotated[str, Option(TEACHER, env="TEACHER_PREFERRED_QUANT")] = "Q4_K_M"
    """gguf: the quantisation to take from a Hub repository."""
    teacher_n_gpu_layers: Annotated[int, Option(TEACHER, env="TEACHER_N_GPU_LAYERS")] = Field(default=-1, ge=-1)
    """gguf: layers to put on the GPU, -1 for all."""
    teacher_n_ctx: Annotated[int, Option(TEACHER, env="TEACHER_N_CTX")] = Field(default=2048, ge=0, le=10_000_000)
    """gguf: context length in tokens, prompt and answer together; 0 for all that the model has."""
    teacher_top_k: Annotated[int, Option(TEACHER, env="TEACHER_TOP_K")] = Field(default=64, ge=0, le=1024)
    """gguf and servers that score: how many tokens they tell of each position; the others count as one outcome. 0
    (servers): the answer's own tokens only, which trains by a policy gradient."""
    teacher_dtype: Annotated[Precision, Option(TEACHER, env="TEACHER_DTYPE")] = "auto"
    """hf: number format of the weights (auto: float32 on a CPU, else the model's own)."""
    teacher_flash_attention: Annotated[bool, Option(TEACHER, env="TEACHER_FLASH_ATTENTION")] = False
    """hf: use flash attention where it is installed and there is CUDA."""
    teacher_load_in_4bit: Annotated[bool, Option(TEACHER)] = False
    """hf: 4-bit weights (needs bitsandbytes)."""
    teacher_batch_size: Annotated[int, Option(TEACHER)] = Field(default=8, ge=1)
    """hf: texts per forward pass. Servers that score: texts per request, where it is given (otherwise 1)."""

    teacher_mode: Annotated[
        Literal["auto", "score", "probe", "teacher-text", "judge"] | None,
        Option(
            API,
            env="TEACHER_MODE",
            mcp="score (default): every token. For chat-only teachers, weaker: probe, teacher-text, judge.",
        ),
    ] = None
    """What the student learns from. score: every token of an answer is scored. For teachers that can only chat, in
    falling order: probe (the teacher's next token at a few positions of the student's answers), teacher-text (its own
    answers, with the log-probabilities that it tells), judge (grades of whole answers). auto: the first that works.
    Without it score; where that does not work you are asked, because no weaker mode is chosen silently."""
    teacher_base_url: Annotated[
        str | None, Option(API, env="TEACHER_BASE_URL", mcp="Its server, up to and with /v1.", hidden=True, names="url")
    ] = None
    """The server, up to and with /v1 (default: the usual address of the --teacher-backend)."""
    teacher_api_key_env: Annotated[str | None, Option(API, hidden=True, names="key")] = Field(
        default=None, pattern=r"^[A-Z_][A-Z0-9_]*$"
    )
    """Name of the variable that holds the key (by default OPENROUTER_API_KEY, OPENAI_API_KEY, VLLM_API_KEY, ...)."""
    teacher_tokenizer: Annotated[str | None, Option(API, env="TEACHER_TOKENIZER", names="model")] = None
    """score: the teacher's tokenizer, a folder or a name on the Hub, where --teacher is a name that only the server
    knows."""
    teacher_extra_body: Annotated[dict[str, Any] | None, Option(API)] = None
    """JSON object merged into every request, for what a provider offers beyond these options."""
    teacher_concurrency: Annotated[int, Option(API)] = Field(default=16, ge=1)
    """Most requests in flight; falls under rate limits and recovers by itself."""
    teacher_timeout: Annotated[float, Option(API)] = Field(default=120, gt=0, le=86_400)
    """Seconds for one request."""
    teacher_retries: Annotated[int, Option(API)] = Field(default=5, ge=0)
    """Further attempts at a request after timeouts, 5xx and broken answers (rate limits do not count)."""
    staleness: Annotated[int, Option(API)] = Field(default=0, ge=0, le=1)
    """1: the answers of a step are written by the student of the step before, so that the server scores them while
    this one trains: faster, and slightly off-policy."""
    accept_noise: Annotated[bool, Option(API)] = False
    """Train although two scorings of one text differ by as much as there is to learn."""
    probe_positions: Annotated[int, Option(API)] = Field(default=8, ge=1)
    """probe: positions of each answer where the teacher is asked, those where the student is least sure; a request
    each."""
    judge: Annotated[Literal["rubric", "pairwise"], Option(API)] = "rubric"
    """judge: grade each answer by a rubric, or compare every two answers to a prompt, in both orders."""
    judge_group: Annotated[int, Option(API)] = Field(default=4, ge=2, le=64)
    """judge: answers to one prompt, of which each is weighed against the others."""
    judge_rubric: Annotated[str | None, Option(API, names="text or file")] = Field(default=None, min_length=1)
    """judge: what makes an answer good, as text or a file that holds it (default: a general one)."""

    max_cost: Annotated[float | None, Option(MONEY, mcp="Most USD to spend.")] = Field(default=None, gt=0)
    """Most USD that this run may spend, requests in flight counted at their worst case."""
    teacher_price: Annotated[str | None, Option(MONEY)] = Field(default=None, pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$")
    """USD per million prompt/completion tokens, as 3/15, where the provider lists no price."""
    score_cache: Annotated[bool, Option(MONEY)] = True
    """Keep what a server answers, so that neither a crashed run nor a repeated one pays anything twice.
    --no-score-cache: ask anew."""
    score_cache_path: Annotated[Path | None, Option(MONEY, env="SCORE_CACHE")] = None
    """Another file for it (default: ~/.cache/distill/scores.sqlite)."""

    lmbda: Annotated[
        float, Option(ROLLOUTS, env="LMBDA", mcp="Share of the answers that the student writes itself.")
    ] = Field(default=0.5, ge=0, le=1)
    """Share of samples that the student answers itself (on-policy); the others take the answer in the data. Rows
    without an answer are always on-policy."""
    max_new_tokens: Annotated[int, Option(ROLLOUTS, env="MAX_NEW_TOKENS", mcp="Longest answer, in tokens.")] = Field(
        default=128, ge=1
    )
    """Longest answer of the student, in tokens; answers in the data are cut there, too."""
    temperature: Annotated[float, Option(ROLLOUTS, "-t")] = Field(default=1.0, gt=0, le=2)
    """Of the student's answers."""
    top_p: Annotated[float, Option(ROLLOUTS)] = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling of the student's answers."""
    do_sample: Annotated[bool, Option(ROLLOUTS, env="DO_SAMPLE")] = True
    """Draw the answers; off: always the most probable token."""

    loss: Annotated[Literal["auto", "gold", "uld", "jsd"], Option(LOSS)] = "auto"
    """auto: jsd for one tokenizer, gold across tokenizers. uld: compare sorted probabilities only (the baseline that
    GOLD improves on)."""
    beta: Annotated[float, Option(LOSS, env="BETA")] = Field(default=0.0, ge=0, le=1)
    """0: KL(teacher || student), 1: KL(student || teacher), between: generalised Jensen-Shannon divergence."""
    lambda_kd: Annotated[float, Option(LOSS, env="LAMBDA_KD")] = Field(default=1.0, ge=0)
    """Weight of the distillation term, averaged over the tokens of a step."""
    lambda_sft: Annotated[float, Option(LOSS, env="LAMBDA_SFT")] = Field(default=0.0, ge=0)
    """Weight of the cross-entropy on the answers in the data, averaged over their tokens. With --lambda-kd 0: SFT."""
    loss_temperature: Annotated[float, Option(LOSS)] = Field(default=1.0, gt=0, le=10)
    """Divides the logits of both models before they are compared (hf teachers)."""
    merged: Annotated[Literal["last_token", "span"], Option(LOSS)] = "last_token"
    """gold: how groups of several tokens are compared: by columns at their last token, or by the bytes as a whole."""
    unmatched_top_k: Annotated[int, Option(LOSS)] = Field(default=64, ge=0)
    """gold: how many of the columns without a partner are compared by rank; 0 for all."""

    max_steps: Annotated[int, Option(OPTIMISER, env="MAX_STEPS", mcp=True)] = Field(default=200, ge=1)
    """Optimiser steps."""
    batch_size: Annotated[int, Option(OPTIMISER, "-b")] = Field(default=8, ge=1)
    """Samples per optimiser step, over all processes."""
    micro_batch_size: Annotated[int, Option(OPTIMISER)] = Field(default=4, ge=1)
    """Samples per forward pass of the student (on a CPU 2 unless given: more is not faster there); halved by itself
    when memory runs out."""
    learning_rate: Annotated[float | None, Option(OPTIMISER, env="LEARNING_RATE")] = Field(default=None, gt=0, le=1)
    """Highest learning rate (default: 5e-5, or 2e-4 with --lora)."""
    warmup_steps: Annotated[int | None, Option(OPTIMISER)] = Field(default=None, ge=0)
    """Steps over which it rises (default: a twentieth of the steps, at least 1)."""
    schedule: Annotated[Literal["cosine", "linear", "constant"], Option(OPTIMISER)] = "cosine"
    """How it falls afterwards: to a tenth by a cosine, to 0 in a line, not at all."""
    weight_decay: Annotated[float, Option(OPTIMISER)] = Field(default=0.0, ge=0)
    """Of AdamW."""
    grad_clip: Annotated[float, Option(OPTIMISER, env="KD_GRAD_CLIP")] = Field(default=1.0, ge=0)
    """Longest gradient; 0 for no limit."""
    seed: Annotated[int, Option(OPTIMISER)] = Field(default=0, ge=0, le=2**31 - 1)
    """Of everything that is drawn: order, mix, answers, dropout, held-out rows."""

    lora: Annotated[bool, Option(LORA, env="KD_LORA", mcp="Train an adapter, not all weights.")] = False
    """Train an adapter of low rank instead of all weights."""
    lora_rank: Annotated[int, Option(LORA, env="KD_LORA_R")] = Field(default=16, ge=1)
    """Its rank."""
    lora_alpha: Annotated[int, Option(LORA, env="KD_LORA_ALPHA")] = Field(default=32, ge=1)
    """Its scale is alpha / rank."""
    lora_dropout: Annotated[float, Option(LORA, env="KD_LORA_DROPOUT")] = Field(default=0.05, ge=0, lt=1)
    """Dropout before it."""
    lora_targets: Annotated[list[str], Option(LORA, env="KD_LORA_TARGET")] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    """Layers that get one, by name; q, k, v, o, gate, up and down will do."""
    merge: Annotated[bool, Option(LORA)] = False
    """Write best/ and final/ as whole models, with the adapter merged into the weights."""

    val_fraction: Annotated[float, Option(VALIDATION, env="VAL_FRACTION")] = Field(default=0.1, ge=0, lt=1)
    """Share of the rows that is held out and never trained on; 0 for no validation."""
    val_max_samples: Annotated[int, Option(VALIDATION, env="VAL_MAX_SAMPLES")] = Field(default=200, ge=1)
    """At most so many held-out samples are measured."""
    eval_every: Annotated[int, Option(VALIDATION, env="EVAL_EVERY")] = Field(default=50, ge=1)
    """Steps between two validations."""
    monitor: Annotated[str, Option(VALIDATION, env="MONITOR_METRIC")] = "val_total_loss"
    """The measure that chooses best/: val_total_loss, val_kl, val_top1_agreement, own_reverse_kl, or any other of
    the validation events in metrics.jsonl."""
    monitor_mode: Annotated[Literal["auto", "min", "max"], Option(VALIDATION, env="MONITOR_MODE")] = "auto"
    """Whether lower or higher is better (auto: by the measure's name)."""
    patience: Annotated[int, Option(VALIDATION, env="PATIENCE")] = Field(default=3, ge=0)
    """Stop after so many validations in a row without improvement; 0 for never."""
    save_every: Annotated[int, Option(VALIDATION, env="SAVE_EVERY")] = Field(default=50, ge=1)
    """Steps between two checkpoints step-N/, from which --resume goes on."""
    sample_every: Annotated[int, Option(VALIDATION)] = Field(default=25, ge=0)
    """Steps between two answers of the student's in samples.jsonl, besides those of each validation; 0 for none."""

    threads: Annotated[int | None, Option(RUN, env="TEACHER_N_THREADS")] = Field(default=None, ge=1)
    """CPU threads, of the teacher and of the student (default: all cores)."""

    @field_validator("student_dtype", "teacher_dtype", mode="before")
    @classmethod
    def _spelt(cls, value: Any) -> Any:
        return SPELT.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _projections(cls, value: Any) -> Any:
        return layers(value)

    @field_validator("lora_targets")
    @classmethod
    def _some_targets(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one layer, such as q_proj")
        return value

    @field_validator("teacher_base_url")
    @classmethod
    def _http_without_secrets(cls, value: str | None) -> str | None:
        return None if value is None else web_address(value)

    @field_validator("teacher_extra_body")
    @classmethod
    def _leaves_our_fields_alone(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """What is scored, drawn and paid rests on what training sets, so that it may not be set here."""
        for key in value or {}:
            if key in OURS:
                raise ValueError(f'"{key}" is set by train_gold itself')
        return value

    @field_validator("judge_rubric")
    @classmethod
    def _a_text_or_a_file(cls, value: str | None) -> str | None:
        if value is not None and rubric_file(value) is None and not any(map(str.isspace, value.strip())):
            raise ValueError("is no file, and a rubric has more than one word")
        return value

    @model_validator(mode="after")
    def _options_that_exclude_another(self) -> "TrainGold":
        if self.lambda_kd == 0 and self.lambda_sft == 0:
            raise ValueError("--lambda-kd and --lambda-sft are both 0: there is nothing to learn from")
        if self.teacher_backend is None and self.teacher_gguf and "teacher" in self.model_fields_set:
            raise ValueError(
                "two teachers are given, by --teacher (TEACHER_MODEL_ID) and --teacher-gguf (TEACHER_GGUF): choose one "
                "with --teacher-backend hf or gguf"
            )
        if self.backend == "gguf" and self.teacher_gguf is None and "teacher" not in self.model_fields_set:
            raise ValueError("--teacher-backend gguf needs --teacher-gguf (TEACHER_GGUF): a .gguf file or owner/repo")
        return self

    @model_validator(mode="after")
    def _options_of_the_teacher(self) -> "TrainGold":
        """What would do nothing is refused: whoever gave it expects something of it."""
        mode = self.teacher_mode
        if self.lambda_kd == 0 and (names := self._given(FOR_APIS)):
            raise ValueError(f"{names}: for a teacher, and --lambda-kd 0 (LAMBDA_KD) asks none. Leave it out")
        if self.is_local:
            if mode not in (None, "auto", "score"):
                raise ValueError(
                    f"--teacher-mode {mode} (TEACHER_MODE): for teachers that can only chat, and --teacher-backend "
                    f"{self.backend} scores every token. Leave it out"
                )
            if names := self._given(FOR_APIS):
                raise ValueError(
                    f"{names}: for a teacher behind an API, and --teacher-backend {self.backend} runs the teacher "
                    "here. Leave it out, or choose another --teacher-backend (TEACHER_BACKEND)"
                )
        if self.backend == "gguf" and not self.teacher_top_k:
            raise ValueError("--teacher-top-k 0 (TEACHER_TOP_K): a gguf teacher tells one token at least")
        if mode in (None, "auto"):
            return self
        for name, modes in FOR_MODES.items():
            if mode not in modes and (given := self._given((name,))):
                raise ValueError(f"{given}: for --teacher-mode {' or '.join(modes)}, and the mode is {mode}")
        if mode == "teacher-text" and not self.score_cache:
            raise ValueError(
                "--no-score-cache: with --teacher-mode teacher-text each answer would be written and paid anew at "
                "every turn, and validations would measure on other answers each time. Leave it out, or name "
                "another file with --score-cache-path"
            )
        over = self.batch_size % self.judge_group
        if mode == "judge" and over:
            good = [size for size in (self.batch_size - over, self.batch_size - over + self.judge_group) if size]
            raise ValueError(
                f"--batch-size {self.batch_size} is no multiple of --judge-group {self.judge_group}, the answers to "
                f"one prompt: take --batch-size {' or '.join(map(str, good))}"
            )
        share = SHARES.get(mode)
        if share is not None and "lmbda" in self.model_fields_set and self.lmbda != share:
            who = "teacher" if share == 0 else "student"
            raise ValueError(
                f"--teacher-mode {mode}: the {who} writes all answers, so that --lmbda (LMBDA) is {share:g}, not "
                f"{self.lmbda:g}. Leave it out"
            )
        return self

    @property
    def idle(self) -> str | None:
        """A line for the user about what is known of a server and does nothing now; None without such a thing."""
        names = self._given(SERVERS) if self.is_local else ""
        return f"{names}: not used, because --teacher-backend {self.backend} runs the teacher here" if names else None

    def _given(self, names: tuple[str, ...]) -> str:
        """Those of these options that were given and are not as they are anyway, as flags with their keys."""
        given = [name for name in names if name in self.model_fields_set]
        given = [name for name in given if getattr(self, name) != type(self).model_fields[name].default]
        flags = {name: "--no-score-cache" if name == "score_cache" else flag(name) for name in given}
        return ", ".join(" or ".join([flags[name], *self.option(name).env_keys]) for name in given)

    @property
    def backend(self) -> Backend:
        """Who runs the teacher."""
        return self.teacher_backend or ("gguf" if self.teacher_gguf else "openai" if self.teacher_base_url else "hf")

    @property
    def is_local(self) -> bool:
        """Whether the teacher runs in this process."""
        return self.backend in LOCAL

    @property
    def teacher_name(self) -> str:
        """The teacher, as its backend names it."""
        if self.backend == "gguf":
            return self.teacher_gguf or self.teacher
        asked = self.backend == "openrouter" and not (
            "teacher" in self.model_fields_set and "openrouter_model" not in self.model_fields_set
        )
        return self.openrouter_model if asked else self.teacher

    @property
    def texts_per_request(self) -> int:
        """To a server that scores. One at a time is the fastest where texts are few and requests are many at a time."""
        return self.teacher_batch_size if "teacher_batch_size" in self.model_fields_set else 1

    @property
    def rubric(self) -> str | None:
        """The text of --judge-rubric. Raises UsageError for a file that cannot be read."""
        file = None if self.judge_rubric is None else rubric_file(self.judge_rubric)
        if file is None:
            return self.judge_rubric
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--judge-rubric {file}: cannot be read as text ({error}).") from None
        if not text:
            raise UsageError(f"--judge-rubric {file}: the file is empty.")
        return text

    def in_mode(self, mode: TeacherMode) -> "TrainGold":
        """These options once the mode is known: --teacher-mode and the --lmbda that goes with it are set.

        Raises UsageError for options that do nothing in this mode, or contradict it.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        try:
            checked = TrainGold.model_validate({**given, "teacher_mode": mode})
        except ValidationError as error:
            said = "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors())
            raise UsageError(f"{said}.") from None
        return checked.model_copy(update={"lmbda": SHARES.get(mode, self.lmbda)})

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or (2e-4 if self.lora else 5e-5)

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        return max(1, self.max_steps // 20) if self.warmup_steps is None else self.warmup_steps

    @property
    def inputs(self) -> tuple[str | None, ...]:
        rubric = None if self.judge_rubric is None else rubric_file(self.judge_rubric)
        files = (str(each) for each in (rubric, self.score_cache_path) if each is not None)
        return (self.student, self.teacher, self.teacher_gguf, self.data, self.teacher_tokenizer, *files)

    @property
    def best_by(self) -> tuple[str, Literal["min", "max"]]:
        return self.monitor, "max" if self.higher_is_better else "min"

    @property
    def higher_is_better(self) -> bool:
        """Of the monitored measure."""
        if self.monitor_mode == "auto":
            return not any(word in self.monitor for word in LOWER_IS_BETTER)
        return self.monitor_mode == "max"

    def teacher_options(self, device: str, attention: Literal["sdpa", "flash_attention_2"]) -> TeacherOptions:
        """For `open_scorer` and `open_remote`. device: where this process trains."""
        return TeacherOptions(
            model=self.teacher_name,
            backend=self.backend,
            base_url=self.teacher_base_url,
            api_key_env=self.teacher_api_key_env,
            extra_body=self.teacher_extra_body,
            concurrency=self.teacher_concurrency,
            timeout=self.teacher_timeout,
            retries=self.teacher_retries,
            price=self.teacher_price,
            max_cost=self.max_cost,
            dry_run=self.dry_run,
            preferred_quant=self.teacher_preferred_quant,
            n_gpu_layers=self.teacher_n_gpu_layers,
            n_ctx=self.teacher_n_ctx,
            threads=self.threads,
            batch_size=self.teacher_batch_size,
            dtype=self.teacher_dtype,
            device_map=device,
            attention=attention,
            load_in_4bit=self.teacher_load_in_4bit,
        )


SHARES: dict[str, float] = {"teacher-text": 0.0, "judge": 1.0}
"""--lmbda of the modes that leave no choice."""


def rubric_file(given: str) -> Path | None:
    """The file that --judge-rubric names; None where it is the text itself."""
    path = Path(given)
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):  # a long text is no name of a file
        return None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GoldPlan(Result):
    """What `--dry-run` found: of a teacher on this machine from two steps that were really made. A teacher behind an
    API is not asked, because that may cost; then what only a whole step shows is None."""

    status: Literal["dry_run"] = "dry_run"  # pyright: ignore[reportIncompatibleVariableOverride]
    plan: list[str]
    """What the run would do, a line each: student, teacher, signal, data, ..."""
    mode: TeacherMode = "score"
    seconds_per_step: float | None = None
    phases: dict[str, float] = Field(default_factory=dict[str, float])
    """Seconds of the step by phase: generate, teacher, student, loss, optimiser."""
    seconds_per_validation: float | None = None
    seconds_in_all: float | None = None
    peak_memory_gb: float | None = None
    """Most memory that this process held: on the GPU where there is one, else resident."""
    loss: float | None = None
    requests_per_step: float | None = None
    """To the teacher; None for one on this machine."""
    cost_per_step_usd: float | None = None
    cost_in_all_usd: float | None = None
    """With all validations; both None where no price is known. Estimates: what the cache holds is not paid again."""
    cost: str | None = None
    """The same in words."""

    def summary(self) -> str:
        made = "no request was made" if self.loss is None else "two steps were made and thrown away"
        lines = [f"dry run: {made}; nothing was written."]
        if self.seconds_per_step is not None:
            shares = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.phases.items())
            loss = "" if self.loss is None else f", loss {self.loss:.4g}"
            lines.append(f"  step        {self.seconds_per_step:.2f} s ({shares}){loss}")
        if self.seconds_per_validation is not None:
            lines.append(f"  validation  {self.seconds_per_validation:.2f} s")
        if self.peak_memory_gb is not None:
            lines.append(f"  memory      {self.peak_memory_gb:.2f} GB at most")
        if self.seconds_in_all is not None:
            lines.append(f"  in all      about {timedelta(seconds=round(self.seconds_in_all))}")
        if self.cost is not None:
            lines.append(f"  cost        {self.cost}")
        bound = " (add --max-cost to bound the spending)" if self.cost_in_all_usd else ""
        lines.append(f"next: the same command without --dry-run{bound}")
        return "\n".join(lines)


class Phase(_Part):
    """What a part of the work took: the student's answers, the teacher's scores, the student's passes, the loss, ..."""

    seconds: float
    cpu_seconds: float


class CacheUse(_Part):
    """What the score cache did for a run. hits: questions that it answered, of `lookups`; size_bytes: of its file."""

    hits: int
    lookups: int
    size_bytes: int

    @property
    def hit_rate(self) -> float:
        return self.hits / self.lookups if self.lookups else 0.0


class GoldTrained(Result):
    """What a run did."""

    output: Path
    steps: int
    """Optimiser steps in the folder now."""
    best_step: int | None
    monitor: str
    before: dict[str, float]
    """Held-out measures before the first step; empty without validation."""
    after: dict[str, float]
    """The same at the last validation."""
    best: dict[str, float]
    """The same at best_step."""
    signal: str
    """What the student learnt from, in words."""
    mode: TeacherMode = "score"
    requests: int = 0
    """Attempts at the teacher's server in this run, failed ones included; 0 for a teacher on this machine."""
    spent_usd: float | None = None
    """What they cost; None where nobody says, or nothing was asked."""
    maybe_billed_usd: float = 0.0
    """Upper bound of attempts that ended without an answer and may be billed all the same."""
    cache: CacheUse | None = None
    staleness: int = 0
    samples_trained: int
    tokens_trained: int
    """Tokens of answers, and of how many samples, over all steps."""
    skipped: dict[str, int]
    """Samples that were left out, by reason."""
    phases: dict[str, Phase]
    seconds: float
    curves: Path | None = None
    improved: bool
    """Whether the monitored measure is better at best_step than it was before the first step."""

    def summary(self) -> str:
        took = timedelta(seconds=round(self.seconds))
        lines = [f"{self.output}: {self.steps:,} steps in {took}, {self.tokens_trained:,} tokens of answers"]
        lines.append(f"  signal      {self.signal}")
        if self.mode != "score":
            lines.append(f"  mode        {self.mode}: not every token was scored")
        if self.staleness:
            lines.append(f"  staleness   {self.staleness} step: answers were written by the student of the step before")
        lines += self._asked()
        if self.before and self.after:
            lines.append(f"  {'held out':<28}{'before':>10}{'after':>10}{'best':>10}")
            for name, value in self.before.items():
                if name.endswith("_kd_loss"):
                    continue
                row = [self.after.get(name), self.best.get(name)]
                lines.append(f"  {name:<28}{value:>10.4g}" + "".join(f"{_figure(each):>10}" for each in row))
        total = sum(phase.seconds for phase in self.phases.values()) or 1.0
        shares = ", ".join(f"{name} {phase.seconds / total:.0%}" for name, phase in self.phases.items())
        lines.append(f"  time        {shares}")
        lines += [f"  left out    {count:,} samples: {reason}" for reason, count in self.skipped.items()]
        if self.best_step is not None:
            lines.append(f"  best        {self.output / 'best'} (step {self.best_step}, by {self.monitor})")
        if self.curves is not None:
            lines.append(f"  curves      {self.curves}")
        if self.status == "interrupted":
            lines.append("interrupted: the same command with --resume goes on")
        elif self.before and self.best_step and not self.improved:
            lines.append(
                f"next: {self.monitor} never got better than before training. Look at {self.output / 'samples.jsonl'}, "
                "lower --learning-rate, or check the teacher with --lmbda 0"
            )
        else:
            lines.append(f"next: look at {self.output / 'samples.jsonl'}; the student is in {self.output / 'best'}")
        return "\n".join(lines)

    def _asked(self) -> list[str]:
        """What the teacher's server was asked, and what that cost."""
        lines: list[str] = []
        if self.requests or self.spent_usd:
            cost = "cost unknown (nobody states one)" if self.spent_usd is None else f"{self.spent_usd:.4f} USD"
            maybe = f"; up to {self.maybe_billed_usd:.4f} USD more may be billed" if self.maybe_billed_usd else ""
            lines.append(f"  requests    {self.requests:,}, {cost}{maybe}")
        if self.cache is not None:
            lines.append(
                f"  cache       {self.cache.hits:,} of {self.cache.lookups:,} answers were there "
                f"({self.cache.hit_rate:.0%}); {self.cache.size_bytes / 1e6:.1f} MB"
            )
        return lines


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
