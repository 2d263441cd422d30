"""What a teacher can be asked for: it is tested as train_gold tests it before the first step."""

from ..commands.doctor import Doctor, TeacherTested
from ..commands.train_gold import TrainGold
from ..data.run import Run
from ..teachers.providers import PROVIDERS


def would_ask(training: TrainGold) -> list[str]:
    """What the test takes."""
    if training.is_local:
        return [f"  {training.teacher_name} would be loaded here and score a known text three times; nothing is paid"]
    scores = PROVIDERS[training.backend].scoring is not None
    asked = ["a greeting"]
    if scores:
        asked.append("a known text of about 150 tokens scored six times, once between two others")
    asked += ["the first token of an answer five times", "the next token of ten questions", "two grades"]
    return [f"  {training.teacher_name} ({training.backend}) would be asked for:", *(f"    {each}" for each in asked)]


def local(training: TrainGold, run: Run) -> TeacherTested:
    """A model in this process scores, or it cannot be had at all. Raises UsageError."""
    import torch

    from ..teachers.scorer import open_scorer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    scorer = open_scorer(training.teacher_options(device, "sdpa"), top_k=training.teacher_top_k)
    try:
        scorer.prepare(run.progress.note)
        noise = scorer.self_test()
    finally:
        scorer.close()
    told = {"full": "whole distributions", "top_k": f"{training.teacher_top_k} tokens of each position"}
    lines = [
        ("teacher", f"{scorer.model} ({scorer.backend}), here on {device}"),
        ("scoring", f"given texts, {told.get(scorer.ability, 'their own tokens')} told"),
        ("noise", str(noise)),
        ("modes", "score"),
        ("cost", "nothing"),
    ]
    return TeacherTested(
        model=scorer.model,
        backend=scorer.backend,
        modes=["score"],
        reasons={},
        seen={"ability": scorer.ability, "noise": vars(noise)},
        requests_per_step={"score": 0.0},
        cost_per_step_usd={"score": 0.0},
        lines=aligned(lines),
    )


def server(options: Doctor, training: TrainGold, run: Run) -> TeacherTested:
    """A server is asked. Raises UsageError where it cannot be reached."""
    from ..teachers.ability import EVERYTHING, Load, cost_of_step, examine
    from ..teachers.remote import open_remote

    remote = open_remote(training.teacher_options("cpu", "sdpa"), run.stop, cache=None, note=run.progress.note)
    try:
        ability = examine(
            remote,
            tokenizer=training.teacher_tokenizer,
            top_k=training.teacher_top_k,
            asked=EVERYTHING,
            note=run.progress.note,
        )
    finally:
        remote.close()
    load = Load(options.prompt_tokens, training.max_new_tokens, prompts=1)
    costs = [cost_of_step(mode, training, load, ability.price) for mode in ability.modes]
    return TeacherTested(
        model=ability.model,
        backend=ability.backend,
        modes=list(ability.modes),
        reasons=dict(ability.reasons),
        seen=ability.json,
        requests_per_step={cost.mode: cost.requests for cost in costs},
        cost_per_step_usd={cost.mode: cost.usd for cost in costs},
        lines=[*ability.lines(), *aligned([(f"cost of {cost.mode}", cost.of_a_step) for cost in costs])],
    )


def aligned(lines: list[tuple[str, str]]) -> list[str]:
    return [f"{name:<22}{text}" for name, text in lines]
