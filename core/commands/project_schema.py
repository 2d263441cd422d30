"""config.yml as `rnow` 0.4.37 defines it: sections, keys, types, bounds, and the limits of the hosted service."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

DatasetType = Literal["sft", "rl", "distill", "midtrain"]
NO_MODEL = "(none)"
"""Stands in the place of the student where only rows are checked."""


def no_truth(value: Any) -> Any:
    """Refuse true, false, yes, no, on and off where a number belongs: pydantic would take them for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("truth_for_a_number", "Input should be a number, not a yes or no")
    return value


Whole = Annotated[int, BeforeValidator(no_truth)]
Number = Annotated[float, BeforeValidator(no_truth)]
"""Numbers may be texts: YAML has no other name for 1e-4."""


class Section(BaseModel):
    """Keys of config.yml with their types and the bounds that hold here too; further limits of `rnow` are `limits`."""

    model_config = ConfigDict(extra="forbid", defer_build=True, protected_namespaces=())


class Top(Section):
    """What stands outside the sections."""

    project_id: str = ""
    project_name: str = ""
    description: str | None = None
    dataset_type: DatasetType = "sft"
    organization_id: str | None = None


class Data(Section):
    train_file: str = Field(default="train.jsonl", min_length=1)
    batch_size: Whole = Field(default=8, gt=0)
    group_size: int = Field(default=4, gt=0)
    val_split: Number | None = Field(default=None, ge=0, lt=1)


class Model(Section):
    path: str = Field(default=NO_MODEL, min_length=1)
    qlora_rank: Whole = Field(default=32, ge=1)
    qlora_alpha: Whole | None = Field(default=None, ge=1)
    name: str | None = None
    description: str | None = None
    # set by the service itself, under either name
    resolved_checkpoint_path: str | None = None
    resolved_base_model: str | None = None
    resolved_sampler_checkpoint_path: str | None = None
    checkpoint_alias: str | None = Field(default=None, alias="_resolvedCheckpointPath")
    base_model_alias: str | None = Field(default=None, alias="_baseModelName")
    sampler_alias: str | None = Field(default=None, alias="_resolvedSamplerCheckpointPath")


class Trainer(Section):
    num_epochs: Whole = Field(default=3, gt=0)
    learning_rate: Number = Field(default=1e-4, gt=0, le=1)
    save_step: Whole = Field(default=-1, ge=-1)
    max_billing: float | None = Field(default=None, gt=0)


class Algorithm(Section):
    loss_fn: Literal["ppo", "importance_sampling"] = "ppo"
    adv_estimator: Literal["grpo", "gae", "reinforce"] = "grpo"
    kl_penalty_coef: float = Field(default=0.01, ge=0)


class Rollout(Section):
    max_turns: int = Field(default=1, gt=0)
    max_context_window: int = Field(default=32768, gt=0)
    termination_policy: Literal["max_turns", "last_tool"] = "last_tool"
    reasoning_mode: Literal["disabled", "none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    mcp_url: str | list[str] | None = None
    tool_timeout: int = Field(default=60, gt=0)
    reward_timeout: int = Field(default=60, gt=0)
    max_tool_response: int | None = Field(default=None, gt=0)
    include_thinking: bool = False
    rollout_timeout: int | None = Field(default=None, gt=0)


class Teacher(Section):
    path: str = Field(default="", min_length=1)
    agentic: bool = False


class Evaluation(Section):
    eval_id: str
    step: int = Field(gt=0)
    name: str | None = None
    pass1: bool | None = None
    pass4: bool | None = None
    pass8: bool | None = None
    pass1_temp: float | None = Field(default=None, ge=0)
    pass4_temp: float | None = Field(default=None, ge=0)
    pass8_temp: float | None = Field(default=None, ge=0)


SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "model": Model,
    "trainer": Trainer,
    "algorithm": Algorithm,
    "rollout": Rollout,
    "teacher": Teacher,
}
OPTIONAL_SECTIONS = ("algorithm", "rollout", "teacher")
NEEDED_BY_RNOW = {
    "dataset_type": "here it is sft",
    "data.batch_size": "here it is 8",
    "trainer.num_epochs": "here it is 3",
}
HOSTED = (
    "project_id",
    "description",
    "organization_id",
    "evals",
    "data.group_size",
    "model.name",
    "model.description",
    *(f"model.{name}" for name in ("_resolvedCheckpointPath", "_baseModelName", "_resolvedSamplerCheckpointPath")),
    *(f"model.resolved_{name}" for name in ("checkpoint_path", "base_model", "sampler_checkpoint_path")),
    "trainer.max_billing",
)
"""Keys that only the hosted service uses; besides them, sections that a dataset type does not use here."""
OPTIONS = {
    "dataset_type": "dataset_type",
    "project_name": "project_name",
    "data.train_file": "data",
    "data.batch_size": "batch_size",
    "data.val_split": "val_split",
    "model.path": "model",
    "model.qlora_rank": "qlora_rank",
    "model.qlora_alpha": "qlora_alpha",
    "trainer.num_epochs": "num_epochs",
    "trainer.learning_rate": "learning_rate",
    "trainer.save_step": "save_step",
}
"""Keys, and the options of `train_sft` that they give."""
LARGE = {
    "Qwen/Qwen3-235B-A22B-Instruct-2507",
    "Qwen/Qwen3-VL-235B-A22B-Instruct",
    "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-30B-A3B-Base",
    "deepseek-ai/DeepSeek-V3.1",
    "deepseek-ai/DeepSeek-V3.1-Base",
}
RANK_CAPS = {
    **dict.fromkeys(LARGE, 64),
    **dict.fromkeys(("openai/gpt-oss-120b", "openai/gpt-oss-20b", "moonshotai/Kimi-K2-Thinking"), 32),
    **dict.fromkeys(("Qwen/Qwen3-32B", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", "Qwen/Qwen3-4B-Instruct-2507"), 128),
    **{f"meta-llama/Llama-3.1-{size}": 128 for size in ("70B", "8B", "8B-Instruct")},
    **{f"meta-llama/Llama-3.2-{size}": 128 for size in ("3B", "1B")},
    "meta-llama/Llama-3.3-70B-Instruct": 128,
}
"""The models of the hosted service, and the highest LoRA rank that it takes for each."""
RNOW_BATCH, RNOW_GROUP, RNOW_PRODUCT = 32, 64, 2048
