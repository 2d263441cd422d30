"""Command models: the one declaration of every command's options. Light: pydantic only."""

from importlib import import_module

from ..errors import UsageError
from .base import Command, Option, Result

__all__ = ["COMMANDS", "Command", "Option", "Result", "load"]

COMMANDS = {
    "generate_teacher_data": ".generate_teacher_data:GenerateTeacherData",
    "run_rollouts": ".run_rollouts:RunRollouts",
    "convert_rollouts": ".convert_rollouts:ConvertRollouts",
    "show": ".show:Show",
    "compare_tokenizers": ".compare_tokenizers:CompareTokenizers",
    "make_student": ".make_student:MakeStudent",
    "train_sft": ".train_sft:TrainSft",
    "train_gold": ".train_gold:TrainGold",
    "evaluate": ".evaluate:Evaluate",
    "generate_synthetic": ".generate_synthetic:GenerateSynthetic",
    "check_data": ".check_data:CheckData",
    "doctor": ".doctor:Doctor",
    "teachers": ".teachers:Teachers",
    "demo": ".demo:Demo",
    "jobs": ".jobs:Jobs",
    "mcp_server": ".mcp_server:McpServer",
}


def load(name: str) -> type[Command]:
    """The model of a command. Raises UsageError for a name that is no command."""
    if name not in COMMANDS:
        raise UsageError(f"{name} is not a command. There are: {', '.join(COMMANDS)}.")
    module, _, attribute = COMMANDS[name].partition(":")
    return getattr(import_module(module, __package__), attribute)
