"""Whether each of the three roads can be taken, from what was found."""

from collections.abc import Sequence

from ..commands.doctor import Found, Lack, Road
from ..errors import install_line
from ..teachers.providers import PROVIDERS

HOSTED = {provider.key: name for name, provider in PROVIDERS.items() if provider.hosted}
NO_KEY = "put a line OPENROUTER_API_KEY=... into .env, or start a server, such as ollama"


def roads(parts: Sequence[Found]) -> list[Road]:
    """off-policy, rollout-distill, on-policy: what each has, what it lacks, and what may be added."""
    by_group: dict[str, list[Found]] = {}
    for part in parts:
        by_group.setdefault(part.group, []).append(part)
    there = {part.name for part in by_group.get("Extras", ()) if part.fix is None}
    programs = {part.name for part in by_group.get("Programs", ()) if part.fix is None}
    keys = next(part.found for part in by_group["Keys"] if part.name == "keys")
    paid = [name for key, name in HOSTED.items() if f"{key} (" in keys]
    own = [part.name for part in by_group.get("Servers", ()) if part.name != "none"]
    scoring = [name for name in (*paid, *own) if PROVIDERS[name].scoring]
    device = next(part.found for part in by_group["Machine"] if part.name == "device")
    slow = device.startswith("no GPU")
    room = [Lack(what="little room on the disk", fix=part.fix) for part in by_group["Machine"] if _short_of_disk(part)]

    def lacks(*extras: tuple[str, str]) -> list[Lack]:
        return [Lack(what=what, fix=install_line(extra)) for extra, what in extras if extra not in there]

    here = [name for name in ("train", "gguf") if name in there]
    no_gpu = [Lack(what="no GPU: small students only, and slowly", fix=None)] if slow else []
    api = [*paid, *own]
    chat = f"teachers: {', '.join(api)}" if api else ""
    small = "smollm2, " if "smollm2" in there else ""
    local = f"teachers that run here (--model {small}a folder, a .gguf file)" if here else ""
    nobody = [Lack(what="no teacher: no key, no server, and no packages to run one here", fix=NO_KEY)]
    no_strong = [Lack(what="no key and no server: only teachers that run here", fix=NO_KEY)]
    no_tools = [
        Lack(what="no key and no server: a model that runs here must know tools; few small ones do", fix=NO_KEY)
    ]
    benchmarks = lacks(("eval", "evaluate needs more packages"))
    return [
        Road(
            name="off-policy",
            has=[each for each in (chat, local) if each],
            missing=[*([] if api or here else nobody), *lacks(("train", "training needs more packages"))],
            could=[*([] if api or not here else no_strong), *benchmarks, *no_gpu, *room],
        ),
        Road(
            name="rollout-distill",
            has=[chat] if chat else [],
            missing=[
                *([] if api or here else nobody),
                *lacks(("train", "training needs more packages")),
            ],
            could=[
                *([] if api or not here else no_tools),
                *lacks(("mcp", "tools of MCP servers need a package"), ("browser", "--browser needs a package")),
                *([] if "chromium" in programs else [Lack(what="--browser needs Chromium", fix=None)]),
                *benchmarks,
                *no_gpu,
                *room,
            ],
        ),
        Road(
            name="on-policy",
            has=[
                *(["teachers that run here and score every token"] if "train" in there else []),
                *([f"servers that score: {', '.join(scoring)}"] if scoring else []),
            ],
            missing=lacks(("train", "training needs more packages")),
            could=[*benchmarks, *no_gpu, *room],
        ),
    ]


def _short_of_disk(part: Found) -> bool:
    return part.name in ("disk", "hub cache") and part.fix is not None
