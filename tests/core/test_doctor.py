"""What `doctor` sees of a machine: GPUs, servers, keys and git, and what it makes of them."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from core.commands.doctor import EXTRAS, Found
from core.doctor import installed, machine, outside
from core.doctor.keys import dotenv_is_private
from core.doctor.roads import roads
from core.teachers.providers import Provider
from tests.support.price_lists import PriceLists
from tests.support.running import ROOT, Received, Reply, small_server

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE = re.compile(r"[\w.-]+")


def test_the_extras_are_those_of_the_project_with_all_their_packages() -> None:
    declared = {name: each for name, each in PROJECT["optional-dependencies"].items() if name != "dev"}
    assert set(EXTRAS) == set(declared)
    for name, (what_for, packages) in EXTRAS.items():
        assert what_for
        named = {found[0] for each in declared[name] if (found := PACKAGE.match(each))}
        assert set(packages) <= named
        assert named - set(packages) <= {"accelerate", "peft", "gguf"}


# ---- the machine ---------------------------------------------------------------------------------------------------


def program(folder: Path, name: str, text: str) -> None:
    """A program of that name that prints a text."""
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n", encoding="utf-8")
    path.chmod(0o755)


def test_a_gpu_that_torch_cannot_use_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not metadata.version("torch").endswith("+cpu"):
        pytest.skip("torch was not built for CPUs alone")
    program(tmp_path, "nvidia-smi", "NVIDIA A, B, 81920, 40960\nnonsense\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (device,) = machine.devices()
    # 81,920 MiB are 85.9 GB
    assert device.found.startswith("NVIDIA A, B, 86 GB (43 free), but torch ")
    assert device.fix is not None
    assert "pytorch.org" in device.fix


@pytest.mark.gpu
def test_a_gpu_that_torch_can_use_is_named_with_its_memory() -> None:
    if not Path("/dev/nvidia0").exists():
        pytest.skip("this machine has no NVIDIA GPU")
    (device,) = machine.devices()
    assert re.match(r"NVIDIA .+, \d+ GB; \d+ cores?", device.found)
    assert device.fix is None


def test_a_driver_that_says_nonsense_or_nothing_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(Path("/dev", name).exists() for name in ("nvidia0", "kfd", "dxg")):
        pytest.skip("this machine has a GPU")
    program(tmp_path, "nvidia-smi", "No devices were found\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (device,) = machine.devices()
    assert re.fullmatch(r"no GPU: CPU, \d+ cores?", device.found)


def test_memory_and_disk_are_figures_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = re.fullmatch(r"(\d+\.\d) of (\d+\.\d) GB free", machine.memory().found)
    assert found
    assert 0 < float(found[1]) <= float(found[2])
    monkeypatch.setenv("HF_HUB_CACHE", "/proc/self/nowhere/hub")  # another file system, which is full
    here, cache = machine.disk()
    assert re.fullmatch(r"\d+ GB free here", here.found)
    assert cache.name == "hub cache"
    assert cache.fix is not None
    assert "HF_HOME" in cache.fix
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    assert [part.name for part in machine.disk()] == ["disk"]


# ---- servers -------------------------------------------------------------------------------------------------------


def test_servers_that_answer_are_named_with_their_models_and_get_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-0123456789abcdef")
    rows = [{"id": f"model-{number}"} for number in range(5)]

    def other(request: Received) -> Reply:
        return Reply(200, b"<html>a web page</html>")

    with (
        small_server(PriceLists(rows=rows)) as server,
        small_server(PriceLists(status=401)) as locked,
        small_server(other) as page,
        small_server(PriceLists(rows=[])) as idle,
    ):
        urls = {"a": server.url, "b": locked.url, "c": page.url, "d": "http://127.0.0.1:9/v1", "e": idle.url}
        found = outside.servers({name: Provider(url, "VLLM_API_KEY") for name, url in urls.items()})
        assert [(part.name, part.found) for part in found] == [
            ("a", f"{server.url}: model-0, model-1, model-2 and 2 more"),
            ("b", f"{locked.url}: wants a key (VLLM_API_KEY)"),
            ("e", f"{idle.url}: no model is loaded"),
        ]
        assert all("authorization" not in request.headers for request in server.received)
    (none,) = outside.servers({"d": Provider("http://127.0.0.1:9/v1", "X")})
    assert none.found == "nothing answers at the usual ports (d 9)"


def test_programs_that_are_missing_come_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "browsers"))
    assert all("missing" in part.found and part.fix for part in outside.programs())
    program(tmp_path, "docker", "29.1.0\n")
    (tmp_path / "browsers" / "chromium-1200").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = {part.name: part for part in outside.programs()}
    assert (found["docker"].found, found["docker"].fix) == ("engine 29.1.0", None)
    assert found["chromium"].fix is None


# ---- keys and git --------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "init.defaultBranch=main", *arguments], cwd=folder, check=True, capture_output=True)


def test_keys_that_git_would_publish_are_a_warning_with_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    env = tmp_path / ".env"
    env.write_text("OPENAI_API_KEY=sk-0123456789abcdef\n", encoding="utf-8")
    assert dotenv_is_private() == []  # no repository
    git(tmp_path, "init")
    (warning,) = dotenv_is_private()
    assert "is not ignored by git" in warning.found
    assert warning.fix == r"printf '\n.env\n' >> .gitignore"
    (tmp_path / ".gitignore").write_text("foo", encoding="utf-8")  # no line break at its end
    subprocess.run(warning.fix, shell=True, cwd=tmp_path, check=True)
    assert dotenv_is_private() == []
    git(tmp_path, "add", "--force", ".env")
    (warning,) = dotenv_is_private()
    assert "is in git" in warning.found
    subprocess.run(str(warning.fix), shell=True, cwd=tmp_path, check=True, capture_output=True)
    assert dotenv_is_private() == []
    (tmp_path / ".gitignore").unlink()
    env.write_text("OPENAI_API_KEY=\n", encoding="utf-8")  # nothing in it
    assert dotenv_is_private() == []


def test_no_program_that_a_repository_names_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("OPENAI_API_KEY=sk-0123456789abcdef\n", encoding="utf-8")
    git(tmp_path, "init")
    git(tmp_path, "add", ".env")
    program(tmp_path, "watch", "")
    (tmp_path / "watch").write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\n", encoding="utf-8")
    git(tmp_path, "config", "core.fsmonitor", str(tmp_path / "watch"))
    (warning,) = dotenv_is_private()
    assert "is in git" in warning.found
    assert not (tmp_path / "started").exists()


# ---- what is installed ---------------------------------------------------------------------------------------------


def test_versions_that_do_not_fit_are_told_by_package(tmp_path: Path) -> None:
    lists = "\n".join(f"{extra} = [{chr(34) + 'mcp>=99' + chr(34) if extra == 'mcp' else ''}]" for extra in EXTRAS)
    (tmp_path / "pyproject.toml").write_text(
        f"[project]\ndependencies = []\n\n[project.optional-dependencies]\n{lists}\n", encoding="utf-8"
    )
    parts = {part.name: part for part in installed.extras(tmp_path)}
    assert parts["mcp"].found == f"another version is needed: mcp>=99, and there is mcp {metadata.version('mcp')}"
    assert parts["mcp"].fix
    assert parts["data"].fix is None
    (tmp_path / "pyproject.toml").unlink()  # the installed library, which pip looks after
    assert {part.name: part for part in installed.extras(tmp_path)}["mcp"].fix is None


def test_what_lies_in_a_folder_of_its_own_is_looked_for_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    parts = {part.name: part for part in installed.extras(ROOT)}
    assert parts["converter"].fix == parts["nemo"].fix.replace("nemo", "train")  # pyright: ignore
    info = tmp_path / "share/data-designer/data_designer-0.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: data-designer\nVersion: 0.9.9\n", encoding="utf-8")
    (tmp_path / "share/llama.cpp-converter").mkdir()
    (tmp_path / "share/llama.cpp-converter/convert_hf_to_gguf.py").touch()
    parts = {part.name: part for part in installed.extras(ROOT)}
    assert (parts["nemo"].found, parts["nemo"].fix) == ("data-designer 0.9.9", None)
    assert "converter" not in parts


def test_without_a_home_folder_the_environment_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("DISTILL_DATA", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    (part,) = installed.python(ROOT)
    assert re.search(r"; the environment ~?/nowhere$", part.found)


# ---- the roads -----------------------------------------------------------------------------------------------------


def machine_with(
    *extras: str, keys: str = "none", servers: str = "none", device: str = "no GPU: CPU, 2 cores"
) -> list[Found]:
    return [
        *(
            Found(group="Extras", name=name, found="", fix=None if name in extras else "line")
            for name in (*EXTRAS, "smollm2")
        ),
        Found(group="Machine", name="device", found=device),
        Found(group="Machine", name="disk", found="50 GB free here"),
        Found(group="Keys", name="keys", found=keys),
        Found(group="Programs", name="chromium", found="/usr/bin/chromium"),
        Found(group="Servers", name=servers, found=""),
    ]


@pytest.mark.parametrize(
    ("parts", "ready"),
    [
        (machine_with(), []),
        (machine_with("train"), ["off-policy", "rollout-distill", "on-policy"]),
        (machine_with(keys="OPENROUTER_API_KEY (.env)"), []),  # a teacher, but nothing to train with
        (machine_with("gguf", "eval"), []),
    ],
)
def test_a_road_is_ready_where_it_has_a_teacher_and_can_train(parts: list[Found], ready: list[str]) -> None:
    found = roads(parts)
    assert [road.name for road in found if road.verdict == "ready"] == ready
    for road in found:
        assert all(lack.fix for lack in road.missing), "what is missing comes with the line that mends it"


def test_what_a_road_would_use_and_what_would_make_it_better() -> None:
    found = {road.name: road for road in roads(machine_with("train", keys="TOGETHER_API_KEY (environment)"))}
    assert found["off-policy"].has[0] == "teachers: together"
    assert found["on-policy"].has[1] == "servers that score: together"
    better = [lack.what for lack in found["rollout-distill"].could]
    assert better == [
        "tools of MCP servers need a package",
        "--browser needs a package",
        "evaluate needs more packages",
        "no GPU: small students only, and slowly",
    ]
    gpu = machine_with("train", "eval", "mcp", "browser", servers="vllm", device="NVIDIA X, 80 GB; 8 cores")
    assert all(road.could == [] for road in roads(gpu))
    assert {"servers that score: vllm"} <= {each for road in roads(gpu) for each in road.has}
