"""One tree for every assistant: what its manifests say, and that each one's command starts the server."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from core import __version__
from core.commands.mcp_server import McpServer
from core.data.secrets import PROVIDER_KEYS
from mcp_server.texts import TEXTS
from tests.bundle.bundle import MANIFESTS, SKILLS, STARTS, Start, base, copy_of_bundle, files_of, handshake, read
from tests.support.running import ROOT

KEY = "sk-or-v1-0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, as a plugin's cache holds it; its path has blanks."""
    return copy_of_bundle(tmp_path_factory.mktemp("a plugin") / "distill kit")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, in which the client runs."""
    (tmp_path / "home").mkdir()
    project = tmp_path / "my project"
    project.mkdir()
    monkeypatch.chdir(project)
    return project


def client_environment(project: Path, **more: str) -> dict[str, str]:
    return base(project, project.parent / "home", OPENROUTER_API_KEY=KEY, **more)


# ---- what they say ---------------------------------------------------------------------------------------------------


def test_every_manifest_is_json_and_names_the_same_version():
    versions = {path: read(path).get("version") for path in MANIFESTS}
    marketplace = read(".claude-plugin/marketplace.json")
    versions[".claude-plugin/marketplace.json"] = marketplace["metadata"]["version"]
    without = {".agents/plugins/marketplace.json", ".mcp.json"}
    assert versions == {path: None if path in without else __version__ for path in MANIFESTS}
    assert 'path = "core/__init__.py"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_manifest_has_the_same_name_and_description():
    plugins = [read(path) for path in MANIFESTS if path.endswith(("plugin.json", "package.json", "extension.json"))]
    plugins += read(".claude-plugin/marketplace.json")["plugins"]
    assert len(plugins) == 6
    assert {plugin["name"] for plugin in plugins} == {"distill-kit"}
    assert len({plugin["description"] for plugin in plugins}) == 1
    for path in (".claude-plugin/marketplace.json", ".agents/plugins/marketplace.json"):
        market = read(path)
        assert (market["name"], [plugin["name"] for plugin in market["plugins"]]) == ("distill-kit", ["distill-kit"])


def test_every_path_in_a_manifest_is_there():
    for path in MANIFESTS:
        text = (ROOT / path).read_text(encoding="utf-8").replace("${/}", "/")
        for name in re.findall(r'"(?:\$\{\w+\}/)?((?:\./|mcp_server/)[^"$]*)"(?!:)', text):
            base_folder = ROOT / ".opencode-plugin" if path.startswith(".opencode") else ROOT
            assert (base_folder / name).exists(), f"{path}: {name}"
    assert sorted(entry.name for entry in (ROOT / "skills").iterdir()) == sorted(SKILLS)


def test_codex_forwards_every_key_and_every_setting_of_the_server():
    forwarded = set(read(".codex-plugin/plugin.json")["mcpServers"]["distill"]["env_vars"])
    settings = {option.env for name in McpServer.model_fields if (option := McpServer.option(name)).env}
    setup = set(re.findall(r"DISTILL_(?:PYTHON|DATA|SETUP)\b", (ROOT / "core/bootstrap.py").read_text("utf-8")))
    assert {*PROVIDER_KEYS, "HF_TOKEN", *settings, *setup} <= forwarded
    assert len(setup) == 3


def test_gemini_is_told_every_key_because_it_takes_out_those_it_is_not_told():
    told = read("gemini-extension.json")["mcpServers"]["distill"]["env"]
    assert told == {name: f"${{{name}}}" for name in (*PROVIDER_KEYS, "HF_TOKEN")}


def test_nothing_in_the_bundle_is_a_link_because_codex_drops_them(bundle: Path):
    assert [path for path in bundle.rglob("*") if path.is_symlink()] == []
    launchers = list(bundle.glob("skills/*/scripts/*.py"))
    assert len(launchers) > 20
    assert all(path.read_text(encoding="utf-8").startswith("#!") for path in launchers)


def test_no_manifest_holds_a_key_or_an_address_of_this_machine():
    for path in (*MANIFESTS, ".opencode-plugin/index.js"):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not re.search(r"sk-|hf_|/home/|/root|https?://", text), path


# ---- what they start -------------------------------------------------------------------------------------------------


def started(start: Start, bundle: Path, project: Path, told: str) -> None:
    """The server answers with all its tools, works in the user's project, and writes nothing beside itself."""
    before = files_of(bundle)
    answer = handshake(start)
    assert (answer.name, answer.version, answer.tools) == ("distill", __version__, list(TEXTS))
    assert answer.instructions.splitlines()[-1].startswith(f"The workspace is {told}"), answer.instructions
    assert files_of(bundle) == before
    assert list(project.iterdir()) == []


@pytest.mark.parametrize("client", ["claude", "copilot", "codex", "gemini"])
def test_the_command_of_a_manifest_starts_the_server_in_the_users_project(client: str, bundle: Path, project: Path):
    start = STARTS[client](bundle, project, client_environment(project))
    started(start, bundle, project, f"{project} (")
    assert start.env["OPENROUTER_API_KEY"] == KEY


def test_cursor_starts_it_in_the_home_folder_where_it_takes_a_folder_of_its_own(
    bundle: Path, project: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project.parent / "home")  # Cursor itself, too
    start = STARTS["cursor"](bundle, project, client_environment(project))
    started(start, bundle, project, "~/.local/share/distill/workspace, because the server was started in no project")
    assert list((project.parent / "home/.local/share/distill/workspace").iterdir()) == []


@pytest.mark.parametrize("client", ["codex"])  # which forwards only what its manifest lists
def test_a_workspace_that_the_user_names_comes_first(client: str, bundle: Path, project: Path, tmp_path: Path):
    named = tmp_path / "named"
    named.mkdir()
    start = STARTS[client](bundle, project, client_environment(project, DISTILL_WORKSPACE=str(named)))
    started(start, bundle, project, f"{named} (as named)")


@pytest.mark.skipif(shutil.which("node") is None, reason="OpenCode's plugin is JavaScript, and there is no node")
def test_opencodes_plugin_adds_skills_and_server_and_leaves_what_the_user_wrote(bundle: Path, project: Path):
    code = """
        const plugin = Object.values(await import(process.argv[1]))
        const config = JSON.parse(process.argv[2])
        for (const each of plugin) await (await each({})).config(config)
        console.log(JSON.stringify(config))
    """

    def configured(config: object) -> dict[str, dict[str, dict[str, object]]]:
        words = [
            "node",
            "--input-type=module",
            "-e",
            code,
            str(bundle / ".opencode-plugin/index.js"),
            json.dumps(config),
        ]
        return json.loads(subprocess.run(words, capture_output=True, check=True, text=True, encoding="utf-8").stdout)

    config = configured({})
    assert config["skills"] == {"paths": [str(bundle / "skills")]}
    server = config["mcp"]["distill"]
    assert server == {
        "type": "local",
        "command": ["python3", str(bundle / "mcp_server/__main__.py")],
        "timeout": 180_000,
    }
    started(Start(server["command"], project, client_environment(project)), bundle, project, f"{project} (")  # pyright: ignore[reportArgumentType]

    mine = {"skills": {"paths": ["mine"]}, "mcp": {"distill": {"enabled": False}, "other": {"enabled": True}}}
    config = configured(mine)
    assert config["skills"]["paths"] == ["mine", str(bundle / "skills")]
    assert config["mcp"] == mine["mcp"]


def test_the_tree_is_small_enough_to_be_copied(bundle: Path):
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    assert size < 10_000_000, f"{size:,} bytes"
    assert not os.path.exists(bundle / ".venv")
