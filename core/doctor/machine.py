"""What the machine has: GPU, cores, memory, disk. torch is asked in a process of its own, and only about a GPU."""

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from ..commands.doctor import Found
from .installed import short

FREE_GB = 20
"""Less free disk than this is worth a word: models are large."""
NVIDIA_S, TORCH_S = 5.0, 30.0
ASK_TORCH = """\
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())] if cuda else []
sizes = [torch.cuda.get_device_properties(place).total_memory for place in range(len(names))]
print(json.dumps({"version": torch.__version__, "cuda": cuda, "names": names, "bytes": sizes,
                  "mps": torch.backends.mps.is_available()}))
"""


def devices() -> list[Found]:
    """Where models would run."""
    cores = _cores()
    seen = _nvidia()
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    may_be = bool(seen) or apple or any(Path("/dev", name).exists() for name in ("nvidia0", "kfd", "dxg"))
    if not may_be:
        return [_device(f"no GPU: CPU, {cores}")]
    gpu = ", ".join(seen) or ("Apple GPU" if apple else "a GPU")
    if find_spec("torch") is None:
        return [_device(f"{gpu} (torch is not installed yet); {cores}")]
    told = _torch()
    if told is None:
        return [_device(f"{gpu}, but torch did not say within {TORCH_S:.0f} s whether it can use it; {cores}")]
    if told["cuda"] or told["mps"]:
        gpus = [f"{name}, {size / 1e9:.0f} GB" for name, size in zip(told["names"], told["bytes"], strict=True)]
        return [_device(f"{', '.join(gpus) or 'Apple GPU (MPS)'}; {cores}")]
    fix = "install a torch for this GPU and its driver: https://pytorch.org/get-started/locally"
    return [_device(f"{gpu}, but torch {told['version']} cannot use it; {cores}", fix)]


def memory() -> Found:
    """What is free, within the limit of a container."""
    there = psutil.virtual_memory()
    total, free = there.total, there.available
    limit, used = _bytes_in("memory.max"), _bytes_in("memory.current")
    if limit is not None and limit < total:
        total, free = limit, min(free, limit - (used or 0))
    return Found(group="Machine", name="memory", found=f"{max(free, 0) / 1e9:.1f} of {total / 1e9:.1f} GB free")


def disk() -> list[Found]:
    """What is free where runs and models go."""
    cache = hub_cache()
    places = [("disk", "here", Path.cwd())]
    there = next(each for each in (cache, *cache.parents) if each.exists())
    if there.stat().st_dev != Path.cwd().stat().st_dev:
        places.append(("hub cache", f"in {short(cache)}", there))
    found: list[Found] = []
    for name, where, place in places:
        free_gb = shutil.disk_usage(place).free / 1e9
        fix = "models and checkpoints take many GB: make room, or name another --output"
        if name != "disk":
            fix = "models from the Hub go there: make room, or set HF_HOME to another place"
        said = f"{free_gb:.0f} GB free {where}"
        found.append(Found(group="Machine", name=name, found=said, fix=None if free_gb >= FREE_GB else fix))
    return found


def hub_cache() -> Path:
    """Where models from the Hub are kept."""
    named = os.environ.get("HF_HUB_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub").expanduser().absolute()


def _device(found: str, fix: str | None = None) -> Found:
    return Found(group="Machine", name="device", found=found, fix=fix)


def _cores() -> str:
    """Those that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return f"{count} core{'s' if count > 1 else ''}"


def _bytes_in(name: str) -> int | None:
    """A figure of this container's limits; None where there is none."""
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None


def _nvidia() -> list[str]:
    """NVIDIA's GPUs as their driver names them: name and free memory."""
    program = shutil.which("nvidia-smi")
    query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    said = _said([program, *query], NVIDIA_S) if program else None
    found: list[str] = []
    for line in (said or "").splitlines():
        try:
            name, *sizes = line.rsplit(",", 2)
            total, free = (int(size) * 2**20 / 1e9 for size in sizes)
        except ValueError:
            continue
        found.append(f"{name.strip()}, {total:.0f} GB ({free:.0f} free)")
    return found


def _torch() -> dict[str, Any] | None:
    """What torch sees; None where it does not come up in time. One that was built for CPUs need not be asked."""
    version = metadata.version("torch")
    if version.endswith("+cpu"):
        return {"version": version, "cuda": False, "mps": False}
    try:  # -P: a torch.py in the user's folder is another thing
        return json.loads(_said([sys.executable, "-P", "-c", ASK_TORCH], TORCH_S) or "null")
    except json.JSONDecodeError:
        return None


def _said(command: list[str], limit_s: float) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, encoding="utf-8", errors="replace", timeout=limit_s
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
