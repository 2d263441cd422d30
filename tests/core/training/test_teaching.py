"""The teacher of a run: what is opened, what a server is asked before the first step, and whose choice the mode is."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from core.commands.train_gold import TeacherMode, TrainGold
from core.data.progress import Progress
from core.data.run import Run
from core.errors import UsageError
from core.teachers.remote import Remote
from core.training.folder import RunFolder
from core.training.judge_signal import JudgeSignal
from core.training.probe_signal import ProbeSignal
from core.training.score_signal import ScoreSignal
from core.training.student import Student, load_student
from core.training.teaching import Lesson, likely_mode, open_teacher, same_model, take_in
from core.training.text_signal import TextSignal
from core.training.world import World
from tests.support.running import KEY, small_server
from tests.support.scoring_server import scoring_server
from tests.support.scripted_chat import ScriptedChat
from tests.support.training import Models, make_models, write_conversations

CHAT = {"teacher_backend": "openai", "teacher": "m", "teacher_retries": 0}


@dataclass
class Kit:
    """student: loaded once; nothing here changes it.   said: what the user was told, in the last `lesson`."""

    models: Models
    folder: Path
    student: Student
    said: StringIO = field(default_factory=StringIO)

    def options(self, **values: Any) -> TrainGold:
        given = {"data": str(self.folder / "train.jsonl"), "student": str(self.models.student), "device": "cpu"}
        given |= {"threads": 1, "max_new_tokens": 8, "output": self.folder / "run"}
        given |= {"score_cache_path": self.folder / "scores.sqlite"}
        return TrainGold.model_validate({**given, **values})

    def lesson(self, *, folder: RunFolder | None = None, **values: Any) -> Lesson:
        """What `gold.train` makes of these options before its first step."""
        options = self.options(**values)
        self.said = StringIO()
        run, world = Run(Progress(self.said)), World(options)
        with ExitStack() as stack:
            stack.callback(world.close)
            return take_in(options, run, world, open_teacher(options, world, run, stack), self.student, folder)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    folder = tmp_path_factory.mktemp("kit")
    write_conversations(folder / "train.jsonl")
    models = make_models(folder)
    options = TrainGold(data="x", output=folder, student=str(models.student), device="cpu", threads=1)
    return Kit(models, folder, load_student(options, torch.device("cpu"), lambda text: None))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """With a key, and nobody who could be asked."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    threads = torch.get_num_threads()
    (tmp_path / "stdin").touch()
    with open(tmp_path / "stdin", encoding="utf-8") as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        yield
    torch.set_num_threads(threads)


@contextmanager
def answering(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "line").write_text(line, encoding="utf-8")
    with open(tmp_path / "line", encoding="utf-8") as somebody:
        monkeypatch.setattr("sys.stdin", somebody)
        yield


# ---- what is opened --------------------------------------------------------------------------------------------


def opened(options: TrainGold, check: Callable[[Any], None]) -> None:
    world = World(options)
    with ExitStack() as stack:
        stack.callback(world.close)
        check(open_teacher(options, world, Run(Progress(StringIO())), stack))


def test_without_distillation_there_is_no_teacher(kit: Kit) -> None:
    def check(teacher: Any) -> None:
        assert teacher is None

    opened(kit.options(lambda_kd=0.0, lambda_sft=1.0, teacher_backend="openai", teacher="m"), check)
    lesson = kit.lesson(lambda_kd=0.0, lambda_sft=1.0, teacher_backend="openai", teacher="m")
    assert (lesson.signal, lesson.scorer, lesson.remote, lesson.cost) == (None, None, None, None)
    assert len(lesson.samples.train) == 18


def test_the_student_cannot_teach_itself(kit: Kit) -> None:
    with pytest.raises(UsageError, match="student and teacher are the same model"):
        kit.lesson(teacher=str(kit.models.student))


@pytest.mark.parametrize(
    ("values", "kept"),
    [({}, True), ({"score_cache": False}, False), ({"dry_run": True}, False)],
)
def test_a_server_has_a_cache_unless_nothing_is_kept(
    kit: Kit, tmp_path: Path, values: dict[str, Any], kept: bool
) -> None:
    cache = tmp_path / "deep/scores.sqlite"
    places: dict[str, Any] = {
        "teacher_backend": "vllm",
        "teacher_base_url": "http://127.0.0.1:9/v1",
        "teacher_price": "1/2",
    }

    def check(teacher: Any) -> None:
        assert isinstance(teacher, Remote)
        assert (teacher.cache is not None) is kept
        assert teacher.price is not None
        assert "key" not in str(teacher.identity).lower()

    opened(kit.options(**{**places, "score_cache": True, "score_cache_path": cache, **values}), check)
    assert cache.exists() is kept


def test_a_provider_without_a_key_is_refused_at_once(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        kit.lesson(**CHAT)


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ({"teacher_backend": "vllm"}, "score"),
        ({"teacher_backend": "vllm", "teacher_mode": "auto"}, "score"),
        ({"teacher_backend": "together"}, "score"),
        ({"teacher_backend": "openrouter"}, "probe"),
        ({"teacher_backend": "ollama", "teacher_mode": "auto"}, "probe"),
        ({"teacher_backend": "vllm", "teacher_mode": "judge"}, "judge"),
    ],
)
def test_what_a_dry_run_supposes(kit: Kit, values: dict[str, Any], mode: TeacherMode) -> None:
    assert likely_mode(kit.options(**values)) == mode


def test_one_model_by_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert same_model("model", str(tmp_path / "model"))
    assert same_model("owner/name", "owner/name")
    assert not same_model("gone", str(tmp_path / "gone"))
    assert not same_model("owner/name", "owner/other")


# ---- a server that scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "auto", "score"])
def test_scores_are_taken_wherever_there_are_any(kit: Kit, mode: str | None) -> None:
    with scoring_server(kit.models.teacher, max_logprobs=-1) as server:
        places: dict[str, Any] = {"teacher_backend": "vllm", "teacher_base_url": server.url, "teacher": "scoring/model"}
        lesson = kit.lesson(**places, teacher_tokenizer=str(kit.models.teacher), teacher_mode=mode, lmbda=0.25)
    assert isinstance(lesson.signal, ScoreSignal)
    assert lesson.signal.same_tokenizer
    assert lesson.options.teacher_mode == "score"
    assert lesson.options.lmbda == 0.25
    assert lesson.scorer is lesson.signal.scorer
    assert lesson.ability is not None
    assert lesson.cost is not None
    assert (lesson.cost.mode, lesson.cost.requests) == ("score", 8)


# ---- a server that only chats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "signal", "lmbda"),
    [("probe", ProbeSignal, 0.5), ("teacher-text", TextSignal, 0.0), ("judge", JudgeSignal, 1.0)],
)
def test_a_named_mode_is_taken_with_its_share_of_the_students_answers(
    kit: Kit, mode: TeacherMode, signal: type[Any], lmbda: float
) -> None:
    with small_server(ScriptedChat()) as server:
        lesson = kit.lesson(**CHAT, teacher_base_url=server.url, teacher_mode=mode)
    assert isinstance(lesson.signal, signal)
    assert (lesson.options.teacher_mode, lesson.options.lmbda) == (mode, lmbda)
    assert lesson.scorer is None
    assert lesson.ability is not None
    assert mode in lesson.ability.modes
    assert lesson.cost is not None
    assert lesson.cost.mode == mode


def test_no_weaker_mode_is_taken_when_nobody_named_one(kit: Kit) -> None:
    with small_server(ScriptedChat()) as server, pytest.raises(UsageError) as refused:
        kit.lesson(**CHAT, teacher_base_url=server.url, teacher_price="1/2")
    for words in ("A weaker mode is never chosen silently", "TEACHER_MODE=probe", "  3  judge: ", "USD"):
        assert words in str(refused.value)


def test_auto_takes_the_best_that_works_and_says_which(kit: Kit) -> None:
    with small_server(ScriptedChat(prefill=False)) as server:
        lesson = kit.lesson(**CHAT, teacher_base_url=server.url, teacher_mode="auto")
    assert isinstance(lesson.signal, TextSignal)
    assert "teacher mode teacher-text (auto): the teacher answers" in kit.said.getvalue()
    assert "not probe" in kit.said.getvalue()


def test_a_mode_that_does_not_work_is_refused_with_those_that_do(kit: Kit) -> None:
    with small_server(ScriptedChat(prefill=False)) as server, pytest.raises(UsageError) as refused:
        kit.lesson(**CHAT, teacher_base_url=server.url, teacher_mode="probe")
    assert "--teacher-mode probe does not work with m: it does not go on with a begun answer" in str(refused.value)
    assert "1  teacher-text" in str(refused.value)


def test_the_user_is_asked(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_server(ScriptedChat()) as server, answering("judge\n", tmp_path, monkeypatch):
        lesson = kit.lesson(**CHAT, teacher_base_url=server.url)
    assert isinstance(lesson.signal, JudgeSignal)
    assert "teacher mode judge (chosen by you)" in kit.said.getvalue()


def test_options_of_another_mode_than_the_chosen_one_are_refused(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        small_server(ScriptedChat()) as server,
        answering("probe\n", tmp_path, monkeypatch),
        pytest.raises(UsageError, match="--judge-group: for --teacher-mode judge, and the mode is probe"),
    ):
        kit.lesson(**CHAT, teacher_base_url=server.url, judge_group=3)


def test_a_dry_run_asks_nothing_and_tells_what_the_likely_mode_costs(kit: Kit) -> None:
    with small_server(ScriptedChat(price=(1e-6, 2e-6))) as server:
        lesson = kit.lesson(**CHAT, teacher_base_url=server.url, dry_run=True)
    assert server.chats == []
    assert (lesson.signal, lesson.ability) == (None, None)
    assert lesson.cost is not None
    assert lesson.cost.mode == "probe"
    assert lesson.cost.usd == pytest.approx(lesson.cost.prompt_tokens * 1e-6 + lesson.cost.completion_tokens * 2e-6)


def test_pairwise_needs_answers_to_compare_with(kit: Kit, tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "prompts.jsonl", answered=False)
    with small_server(ScriptedChat()) as server:
        places = {**CHAT, "teacher_base_url": server.url, "teacher_mode": "judge", "judge": "pairwise"}
        with pytest.raises(UsageError, match="--judge rubric, or --val-fraction 0"):
            kit.lesson(**places, data=str(data))
        assert isinstance(kit.lesson(**places, data=str(data), val_fraction=0.0).signal, JudgeSignal)


# ---- a run that goes on ----------------------------------------------------------------------------------------


def test_a_run_goes_on_in_its_mode_and_in_no_other(kit: Kit, tmp_path: Path) -> None:
    with small_server(ScriptedChat()) as server:
        places = {**CHAT, "teacher_base_url": server.url, "output": tmp_path / "run"}

        def went(**values: Any) -> Lesson:
            given = {**places, **values}
            folder = RunFolder.open(kit.options(**given), {}, {"processes": 1})
            try:
                lesson = kit.lesson(folder=folder, **given)
                folder.begin()
                return lesson
            finally:
                folder.close()

        assert isinstance(went(teacher_mode="judge").signal, JudgeSignal)
        assert isinstance(went(resume=True).signal, JudgeSignal)  # nobody is there who could be asked
        assert isinstance(went(resume=True, teacher_mode="judge").signal, JudgeSignal)
        with pytest.raises(UsageError, match="mode: was judge, is probe"):
            went(resume=True, teacher_mode="probe")
