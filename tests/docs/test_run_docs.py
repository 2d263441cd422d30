"""The documentation is run: every command of every page, through the launchers, against a teacher on this machine."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.docs_run import (
    Servers,
    Step,
    aimed,
    missing_line,
    pages,
    run,
    shown,
    start_server,
    steps,
    told,
)
from tests.support.docs_table import BEFORE, GIVEN, TABLE, UNSEEN
from tests.support.pages import Block, blocks, home, lines_of_shell, name_of
from tests.support.running import ROOT

QUICK_S, SLOW_S = 300, 1800
"""Most seconds for a command: none takes a fifth of it on a machine that has nothing else to do."""

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Every kind of teacher, started when the first page wants it."""
    with ExitStack() as stack:

        def start(name: str) -> str:
            return start_server(name, stack, tmp_path_factory.mktemp("server") / "tiny")

        yield Servers(start)


def project(page: Path, folder: Path) -> Path:
    """A folder with the files of the page's reader."""
    folder.mkdir()
    for name, content in GIVEN.get(name_of(page), {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else content(page), encoding="utf-8")
    return folder


def follow(page: Path, folder: Path, servers: Servers, *, slow: bool) -> None:
    """Run a page. slow: with the commands that take long, and what builds on them."""
    if slow:
        for command in BEFORE.get(name_of(page), ()):
            before = run(Step(Block(ROOT / "README.md", "bash", command, 0), command, ()), servers, folder, SLOW_S)
            assert before.code == 0, before
    printed: dict[Block, str] = {}
    whole = dict.fromkeys((step.block for step in steps(page, TABLE)), True)
    for step in steps(page, TABLE):
        if not step.runs or (step.slow and not slow):
            whole[step.block] = False
            continue
        ran = run(step, servers, folder, SLOW_S if step.slow else QUICK_S)
        assert ran.code == step.code, f"expected exit code {step.code}\n{ran}"
        printed[step.block] = printed.get(step.block, "") + ran.printed
    for asked, output in shown(page):
        if whole[asked] and not unseen(output):
            line = missing_line(output.text, printed[asked], folder, home(page), ROOT)
            lines = "\n".join(told(printed[asked], folder, home(page), ROOT))
            assert line is None, f"{output}: this line is not printed:\n{line}\nThese are:\n{lines}"


def unseen(output: Block) -> bool:
    return any(each.fits(output) for each in UNSEEN)


def whole_pages() -> list[object]:
    """The pages with commands that take long, marked with what they need."""
    found: list[object] = []
    for page in pages():
        listed = steps(page, TABLE)
        if any(step.runs and step.slow for step in listed):
            marks = [pytest.mark.slow]
            if any(step.browser for step in listed):
                marks.append(pytest.mark.browser)
            found.append(pytest.param(page, marks=marks, id=name_of(page)))
    return found


QUICK = [page for page in pages() if any(step.runs and not step.slow for step in steps(page, TABLE))]


@pytest.mark.parametrize("page", QUICK, ids=name_of)
def test_what_a_page_says_can_be_done(page: Path, tmp_path: Path, servers: Servers):
    follow(page, project(page, tmp_path / "project"), servers, slow=False)


@pytest.mark.parametrize("page", whole_pages())
def test_what_a_page_says_can_be_done_to_its_end(page: Path, tmp_path: Path, servers: Servers):
    follow(page, project(page, tmp_path / "project"), servers, slow=True)


def test_every_line_of_the_table_is_about_a_command():
    fitting = {rule for page in pages() for step in steps(page, TABLE) for rule in step.rules}
    assert [rule for rule in TABLE if rule not in fitting] == []
    assert [rule for rule in TABLE if not rule.why] == []


def test_every_shown_output_is_compared_or_has_a_reason():
    outputs = [(asked, output) for page in pages() for asked, output in shown(page)]
    for asked, output in outputs:
        run_here = all(step.runs for step in steps(asked.page, TABLE) if step.block == asked)
        assert run_here or unseen(output), f"{output}: what prints it is not run, and UNSEEN does not say why"
    assert [each for each in UNSEEN if not any(each.fits(output) for _, output in outputs)] == []


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_block_says_what_it_is(page: Path):
    """Without a language nobody knows whether it is a command, an output or a file: only a tree of files may."""
    for block in blocks(page, ""):
        assert "/ " in block.text.splitlines()[0], f"{block}: a block without a language"


@pytest.mark.parametrize("name", GIVEN)
def test_the_reader_has_what_the_page_names(name: str, tmp_path: Path):
    """A file of the user's is named by the page or by another file; `.env` has the keys that any reader has."""
    folder = project(ROOT / name, tmp_path / "project")
    texts = {"": (ROOT / name).read_text(encoding="utf-8")}
    texts |= {file: (folder / file).read_text(encoding="utf-8") for file in GIVEN[name]}
    for file in GIVEN[name]:
        assert file == ".env" or any(file in text for other, text in texts.items() if other != file), file


# ---- the comparison itself -------------------------------------------------------------------------------------------


def test_a_shown_output_has_to_be_printed_in_its_order_with_numbers_alike(tmp_path: Path):
    printed = f"read {tmp_path}/train.jsonl\n24 rows, 0.5 s\n  kept   12\nnext: look at it\n"
    assert missing_line("read train.jsonl\n7 rows, 31 min\nkept 3", printed, tmp_path) is None
    assert missing_line("...\nnext: ...", printed) is None
    assert missing_line("kept 3\n24 rows, 0.5 s", printed) == "N rows, TIME"
    assert missing_line("12 rows dropped", printed) == "N rows dropped"


def test_a_command_that_fails_would_be_found(tmp_path: Path, servers: Servers):
    bash = Block(ROOT / "README.md", "bash", "echo one\n\n# not this\nfalse\n", 1)
    good, bad = (Step(bash, line, ()) for line in lines_of_shell(bash.text))
    assert run(good, servers, tmp_path, 10).printed == "one\n"
    assert run(bad, servers, tmp_path, 10).code == 1


def test_commands_are_told_apart():
    block = "for i in 1 2; do\n  echo $i\ndone\necho a \\\n  b   # why\n"
    assert lines_of_shell(block) == ["for i in 1 2; do echo $i; done", "echo a b # why"]


def test_a_command_that_asks_an_api_is_aimed_at_the_loopback(tmp_path: Path):
    servers = Servers(lambda name: f"http://127.0.0.1:1/{name}")

    def as_run(text: str) -> str:
        return aimed(Step(Block(ROOT / "README.md", "bash", text, 1), text, ()), text, servers, tmp_path)

    script = "python3 scripts/generate_teacher_data.py"
    added = "--base-url http://127.0.0.1:1/teacher"
    assert as_run(f"{script} -i x.txt # a") == f"{script} {added} --backend openrouter -i x.txt # a"
    assert (
        as_run(f"{script} -i x.txt -m gpt-5 --backend openai") == f"{script} {added} -i x.txt -m gpt-5 --backend openai"
    )
    assert as_run(f"{script} -i x.txt -m smollm2") == f"{script} -i x.txt -m smollm2"
    assert as_run(f"{script} -i x.txt --base-url http://x:1/v1") == f"{script} -i x.txt {added}"
