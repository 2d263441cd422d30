"""Nothing outside the workspace is ever opened, whatever the paths, links and moments."""

import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UsageError
from mcp_server.workspace import Workspace

from .conftest import Caller

CANARY = b"the canary that lives outside"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a workspace `ws`, and beside it `outside`, which holds the canary."""
    (tmp_path / "ws" / "data").mkdir(parents=True)
    (tmp_path / "ws" / "data" / "rows.jsonl").write_bytes(b"inside\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "rows.jsonl").write_bytes(CANARY)
    return tmp_path


def read(workspace: Workspace, text: str | Path) -> bytes:
    with workspace.open(text) as file:
        return file.read()


# ---- where the workspace is ---------------------------------------------------------------------------------------


def test_a_workspace_must_be_a_folder_and_not_the_whole_machine(place: Path) -> None:
    with pytest.raises(UsageError, match=r"is no folder\. .*--workspace"):
        Workspace(place / "nowhere")
    with pytest.raises(UsageError, match=r"is no folder\."):
        Workspace(place / "outside" / "rows.jsonl")
    with pytest.raises(UsageError, match="whole machine"):
        Workspace("/")


def test_a_workspace_that_is_named_through_a_link_answers_to_both_names(place: Path) -> None:
    (place / "link").symlink_to("ws")
    workspace = Workspace(place / "link")
    assert workspace.root == place / "ws"
    for text in ("data/rows.jsonl", str(place / "ws/data/rows.jsonl"), str(place / "link/data/rows.jsonl")):
        assert read(workspace, text) == b"inside\n"
        assert workspace.name(text) == "data/rows.jsonl"
    said = f"{place}/link/data/rows.jsonl:3: bad; {place}/ws holds it; '{place}/ws/x'"
    assert workspace.show(said) == "data/rows.jsonl:3: bad; the workspace holds it; 'x'"


def test_places_of_this_machine_are_not_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place / "home"))
    workspace = Workspace(place / "ws")
    assert workspace.show(f"{place}/home/.cache/distill/x and {place}/ws/y") == "~/.cache/distill/x and y"
    assert workspace.name(place / "ws") == "."
    assert workspace.name(place / "outside" / "model.gguf") == ".../model.gguf"
    assert workspace.name(f"{place}/ws-2/a") == ".../a"
    for elsewhere in (f"{place}/ws-2/a", f"{place}/ws.old", f"/mnt{place}/ws/a"):
        assert workspace.show(elsewhere) == elsewhere
    assert workspace.show(f"in {place}/ws. Then") == "in the workspace. Then"


# ---- which paths are taken ----------------------------------------------------------------------------------------


def test_what_is_not_there_yet_has_a_place_too(place: Path) -> None:
    workspace = Workspace(place / "ws")
    assert workspace.inside("runs/new/best") == place / "ws/runs/new/best"
    assert workspace.inside(".") == place / "ws"
    assert workspace.inside("data/../data/./x//y") == place / "ws/data/x/y"
    assert workspace.inside("x", base=place / "ws" / "data") == place / "ws/data/x"


@pytest.mark.parametrize(
    "text",
    [
        "..",
        "../outside/rows.jsonl",
        "data/../../outside/rows.jsonl",
        "/etc/passwd",
        "//etc/passwd",
        "data/link/rows.jsonl",
        "data/link",
        "data/absolute",
        "data/dangling",
        "data/nested/link/rows.jsonl",
        "/proc/self/root/etc/passwd",
        "/dev/fd/0",
    ],
)
def test_what_leads_out_is_refused_and_no_place_of_the_machine_is_told(place: Path, text: str) -> None:
    (place / "ws/data/link").symlink_to("../../outside")
    (place / "ws/data/absolute").symlink_to(place / "outside" / "rows.jsonl")
    (place / "ws/data/dangling").symlink_to("../../outside/not-there-yet")
    (place / "ws/data/nested").symlink_to(".")
    workspace = Workspace(place / "ws")
    for attempt in (workspace.inside, workspace.open, workspace.entries):
        with pytest.raises(UsageError, match=r"is outside the workspace\. Paths are relative") as caught:
            attempt(text)
        assert str(place) not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("~/x", "~ is not known"),
        ("~root/x", "~ is not known"),
        ("a\0b", "no path"),
        ("a\nb", "no path"),
        ("\ud800", "no path"),
        (".env", "is hidden"),
        (".env.local", "is hidden"),
        ("data/.env", "is hidden"),
        (".distill/jobs/job_1/spec.json", "is hidden"),
        (".git/hooks/pre-commit", "is hidden"),
        ("data/key", "is hidden"),
        ("...", "is hidden"),
        ("prod.env", "is a file for keys"),
        ("data/server.PEM", "is a file for keys"),
        ("id_ed25519", "is a file for keys"),
        ("client_secret.json", "is a file for keys"),
        ("data/mine", "is a file for keys"),
    ],
)
def test_what_is_hidden_or_no_path_is_refused(place: Path, text: str, what: str) -> None:
    (place / "ws/.env").write_text("OPENAI_API_KEY=x\n", encoding="utf-8")
    (place / "ws/data/key").symlink_to("../.env")
    (place / "ws/data/mine").symlink_to("../id_rsa")
    workspace = Workspace(place / "ws")
    for attempt in (workspace.inside, workspace.open):
        with pytest.raises(UsageError, match=what):
            attempt(text)


@pytest.mark.parametrize("text", ["environment", "keys.json", "secretary.jsonl", "monkey", "id_rsa.md", "pem/a.txt"])
def test_other_names_are_only_names(place: Path, text: str) -> None:
    assert Workspace(place / "ws").inside(text) == place / "ws" / text


def test_a_workspace_may_itself_lie_in_a_hidden_folder(tmp_path: Path) -> None:
    (tmp_path / ".hidden" / "ws").mkdir(parents=True)
    (tmp_path / ".hidden" / "ws" / "a").write_bytes(b"a")
    assert read(Workspace(tmp_path / ".hidden" / "ws"), "a") == b"a"


# ---- what is opened -----------------------------------------------------------------------------------------------


def test_links_that_stay_inside_are_followed(place: Path) -> None:
    (place / "ws/latest").symlink_to("data")
    (place / "ws/data/same").symlink_to(place / "ws/latest/rows.jsonl")
    (place / "ws/around").symlink_to("../ws/latest/../data/same")
    workspace = Workspace(place / "ws")
    assert read(workspace, "around") == read(workspace, "latest/same") == b"inside\n"


def test_pipes_devices_sockets_and_folders_are_no_files(place: Path) -> None:
    os.mkfifo(place / "ws/pipe")
    os.symlink("rows.jsonl/x", place / "ws/data/through")
    os.symlink("loop", place / "ws/loop")
    server = socket.socket(socket.AF_UNIX)
    home = os.getcwd()
    os.chdir(place / "ws")  # the path of a socket must be short
    try:
        server.bind("socket")
    finally:
        os.chdir(home)
    workspace = Workspace(place / "ws")
    before = time.monotonic()
    for text, what in {
        "pipe": "is no regular file",
        "socket": "cannot be read",
        "data": "is a folder",
        ".": "is a folder",
        "missing": "no such file",
        "data/through": "a file stands where",
        "loop": "circle",
    }.items():
        with pytest.raises(UsageError, match=what):
            workspace.open(text)
    assert time.monotonic() - before < 2  # nobody waits for the pipe
    server.close()


def test_links_in_a_circle_lead_to_no_link_beside_them(place: Path) -> None:
    (place / "ws/a").symlink_to("../outside")
    (place / "ws/b").symlink_to("b/../a")
    with pytest.raises(UsageError, match='"b" cannot be followed'):
        Workspace(place / "ws").inside("b")


def test_opening_leaves_no_descriptor_behind(place: Path) -> None:
    (place / "ws/a/b/c").mkdir(parents=True)
    workspace = Workspace(place / "ws")
    descriptors = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    before = len(os.listdir(descriptors))
    for _ in range(20):
        for text in ("data/rows.jsonl", "a/b/c/missing", "a/b/c", "data"):
            try:
                read(workspace, text)
            except UsageError:
                workspace.entries("a/b")
    assert len(os.listdir(descriptors)) == before


def test_a_listing_holds_files_and_folders_and_neither_links_nor_hidden_ones(place: Path) -> None:
    (place / "ws/.env").touch()
    (place / "ws/credentials.json").touch()
    (place / "ws/out").symlink_to("../outside")
    (place / "ws/a.json").touch()
    os.mkfifo(place / "ws/pipe")
    workspace = Workspace(place / "ws")
    assert [name for name, _ in workspace.entries(".")] == ["a.json", "data"]
    with pytest.raises(UsageError, match="a file is named where a folder"):
        workspace.entries("a.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(place: Path) -> None:
    (place / "ws/data/rows.jsonl").chmod(0)
    with pytest.raises(UsageError, match=r"rows\.jsonl: cannot be read: Permission denied"):
        Workspace(place / "ws").open("data/rows.jsonl")


def test_a_folder_is_made_in_no_link_that_appeared_meanwhile(place: Path) -> None:
    workspace = Workspace(place / "ws")
    wanted = workspace.inside("data/deep/er")
    workspace.make_folder(wanted)
    workspace.make_folder(wanted)
    assert wanted.is_dir()
    late = workspace.inside("late/deep/er")
    (place / "ws/late").symlink_to("../outside")
    for path, why in (
        (late, "a file or a link is there"),
        (place / "ws/data/rows.jsonl/x", "a file or a link is there"),
    ):
        with pytest.raises(UsageError, match=f"cannot be made: {why}") as caught:
            workspace.make_folder(path)
        assert str(place) not in str(caught.value)
    assert sorted(path.name for path in (place / "outside").iterdir()) == ["rows.jsonl"]


def test_callers_stay_inside_and_need_make_no_folders(ask: Caller, workspace: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    (workspace / "rollouts").mkdir()
    (workspace / "rollouts" / "0.json").write_text(json.dumps({"conversation": messages}), encoding="utf-8")
    answer = ask.done("convert_rollouts", output="data/new/train.jsonl")
    assert answer["state"] == "succeeded"
    assert answer["files"] == ["data/new/train.jsonl"]
    outside = workspace.parent / f"{workspace.name}.json"
    outside.write_bytes(CANARY)
    (workspace / "rollouts" / "1.json").symlink_to(outside)
    assert 'dir: "rollouts/1.json" is a link' in ask.refused("convert_rollouts", output="more/train.jsonl")
    (workspace / "tools.py").write_text("raise SystemExit('it was run')\n", encoding="utf-8")
    for name in ("tools", "rewards"):
        said = ask.refused("run_rollouts", model="smollm2", output="new", config={name: "tools.py"})
        assert f"{name}: tools.py is Python, which is run for callers of tools only where the user allows it" in said
    assert not (workspace / "more").exists()


# ---- laws ---------------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c"]
parts = st.lists(st.sampled_from([*NAMES, "..", "."]), min_size=1, max_size=5)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), st.booleans(), parts), max_size=8),
    st.lists(parts, min_size=1, max_size=8),
)
def test_in_no_tree_of_links_does_a_path_lead_to_what_is_outside(
    links: list[tuple[list[str], bool, list[str]]], asked: list[list[str]]
) -> None:
    """Links (relative or absolute) anywhere inside, to anywhere; every name that exists outside holds the canary."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder).resolve()
        root = top / "a" / "b"  # whose parents have names that links and paths use, too
        root.mkdir(parents=True)
        for outside in (top / "c", top / "a" / "a", top / "a" / "c"):
            outside.write_bytes(CANARY)
        for where, absolute, target in links:
            path = root.joinpath(*where)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(Path(top if absolute else "", *target))
            except OSError:  # something is there already, or the parent is a link to nowhere
                continue
        for name in NAMES:
            try:
                with open(root / name / "c", "xb") as file:
                    file.write(CANARY if not (root / name / "c").resolve().is_relative_to(root) else b"inside")
            except OSError:
                continue
        workspace = Workspace(root)
        for path in asked:
            for text in ("/".join(path), str(root.joinpath(*path)), str(top.joinpath(*path))):
                real = Path(os.path.realpath(os.path.join(root, text)))
                try:
                    below = [*workspace.below(workspace.inside(text))]
                    assert all(Path(os.path.realpath(each)).is_relative_to(root) for each in below)
                except UsageError:
                    pass
                else:  # what any walk that follows links comes upon
                    for folder, _, names in os.walk(real, followlinks=True):
                        real_names = [os.path.realpath(os.path.join(folder, name)) for name in names]
                        assert all(Path(each).is_relative_to(root) for each in real_names)
                        if folder.count("/") > 12:  # links in a circle
                            break
                try:
                    content = read(workspace, text)
                except UsageError:
                    # Refused only what is not there, or not ours.
                    assert not (os.path.isfile(root / text) and real.is_relative_to(root)), text
                else:
                    assert content == b"inside"
                    assert real.is_relative_to(root)


def test_a_folder_that_turns_into_a_link_while_it_is_read_leads_nowhere(place: Path) -> None:
    """A thread that exchanges data/ with a link to outside/, without a pause, while others read data/rows.jsonl."""
    workspace = Workspace(place / "ws")
    data, aside, link = place / "ws/data", place / "ws/aside", place / "ws/link"
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            link.symlink_to("../outside")
            data.rename(aside)
            link.rename(data)
            data.unlink()
            aside.rename(data)

    swapping = threading.Thread(target=swap)
    swapping.start()
    seen: dict[bytes, int] = {}
    refused = listed = naive = 0
    ends = time.monotonic() + 3
    try:
        while time.monotonic() < ends:
            try:
                content = read(workspace, "data/rows.jsonl")
                seen[content] = seen.get(content, 0) + 1
                listed += len([about for _, about in workspace.entries("data") if about.st_size == len(CANARY)])
            except UsageError:
                refused += 1
            try:  # what a check followed by an ordinary open would have read
                workspace.inside("data/rows.jsonl")
                naive += (data / "rows.jsonl").read_bytes() == CANARY
            except (UsageError, OSError):
                pass
    finally:
        over.set()
        swapping.join()
    assert set(seen) == {b"inside\n"}
    assert listed == 0
    assert refused > 0  # the thread did come in between
    print(f"read {seen}, refused {refused}, a check and an open would have been fooled {naive} times")
