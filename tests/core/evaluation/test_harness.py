"""lm-eval's tasks, asked of our models."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml

from core.data.run import Run
from core.errors import UsageError
from core.evaluation import lm_tasks
from core.evaluation.cached_lm import INTERRUPTED, CachedLM
from core.evaluation.harness import answer_tasks, count_requests, load_tasks
from core.evaluation.results import Answered, Scored
from tests.support.lm_tasks import (
    choice_task,
    letters_task,
    mean_of,
    named,
    opened,
    options_for,
    rows_of,
    selected,
    write_task,
    writing_task,
)
from tests.support.running import environment
from tests.support.training import Models, make_models

BUILT_IN = Path(lm_eval.__file__).parent / "tasks"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def hub_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` makes of local files goes to a folder of the tests'."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def value(scored: Scored) -> float:
    counts = scored.counts or [1.0] * len(scored.totals)
    return sum(scored.totals) / sum(counts)


def figures(answered: list[Answered]) -> dict[str, float]:
    return {f"{one.task} {scored.metric.name}": value(scored) for one in answered for scored in one.scored}


class Bench:
    """Two models, a folder for tasks and one for answers."""

    def __init__(self, models: Models, folder: Path) -> None:
        self.models, self.folder, self.tasks = models, folder, folder / "tasks"
        self.tasks.mkdir()

    def options(self, **more: Any) -> Any:
        given = {"tasks_dir": self.tasks, **more}
        return options_for(self.models.teacher, self.models.student, self.folder / "cache", **given)

    def answer(self, *names: str, model: int = 1, run: Run | None = None, **more: Any) -> tuple[list[Answered], Any]:
        """What a model (0: baseline, 1: student) makes of tasks, and its entry of the report."""
        options = self.options(**more)
        tasks = load_tasks(options, selected(*names))
        one = named(options)[model]
        with opened(one, options, run) as lm:
            return answer_tasks(one, tasks, lm, options, run or Run()), one.info


@pytest.fixture
def bench(models: Models, tmp_path: Path) -> Bench:
    return Bench(models, tmp_path)


# ---- the same scores as lm-eval ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("chat", ["on", "off"])
def test_scores_are_those_of_lm_evals_own_command_line(bench: Bench, chat: str):
    choice_task(bench.tasks)
    letters_task(bench.tasks, num_fewshot=2)
    more: dict[str, Any] = {"chat_template": chat, **({"system": "Be brief."} if chat == "on" else {})}
    ours, _ = bench.answer("pick", "letters", **more)

    out = bench.folder / "out"
    command = [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", "pick,letters", "--device", "cpu"),
        *("--model_args", f"pretrained={bench.models.teacher},dtype=float32", "--include_path", str(bench.tasks)),
        *("--batch_size", "4", "--output_path", str(out), "--log_samples"),
        *(("--apply_chat_template", "--system_instruction", "Be brief.") if chat == "on" else ()),
    ]
    variables = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(bench.folder / "d"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(next(out.glob("**/results_*.json")).read_text(encoding="utf-8"))["results"]
    assert figures(ours) == {
        f"{task} {name}": theirs[task][f"{name},none"]
        for task, names in (("pick", ("acc", "acc_norm")), ("letters", ("letters", "long")))
        for name in names
    }
    assert 0 < figures(ours)["letters letters"] < 1
    said = [row["resps"][0][0] for row in rows_of(next(out.glob("**/samples_letters_*.jsonl")))]
    assert next(one for one in ours if one.task == "letters").answers == said


@pytest.mark.parametrize("chat", ["on", "off"])
def test_scores_are_those_of_simple_evaluate_also_of_a_subset(bench: Bench, chat: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)  # it asks pip for all packages
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it looks for the folder on the Hub
    choice_task(bench.tasks, num_fewshot=1)
    letters_task(bench.tasks)
    ours, _ = bench.answer("pick", "letters", chat_template=chat, limit=7, seed=3)
    chosen = {
        task.info.name: task.items for task in load_tasks(bench.options(limit=7, seed=3), selected("pick", "letters"))
    }
    with lm_tasks.quiet():
        simple_evaluate: Any = lm_eval.simple_evaluate
        results = simple_evaluate(
            model="hf",
            model_args=f"pretrained={bench.models.teacher},dtype=float32",
            tasks=["pick", "letters"],
            task_manager=lm_eval.tasks.TaskManager(include_path=str(bench.tasks), include_defaults=False),
            samples=chosen,
            apply_chat_template=chat == "on",
            fewshot_as_multiturn=chat == "on",
            fewshot_random_seed=1237,
            bootstrap_iters=0,
            device="cpu",
        )
    assert {one.task: [int(each.key) for each in one.questions] for one in ours} == chosen
    assert figures(ours) == {key: results["results"][key.split()[0]][f"{key.split()[1]},none"] for key in figures(ours)}


# ---- the presets' own YAML, over invented rows -------------------------------------------------------------------

ARC = [
    {"id": str(n), "question": f"Which of {n}?", "answerKey": "ABCD"[n % 4],
     "choices": {"text": [f"a{n}", "plant", "the sun", "no one"], "label": list("ABCD")}}
    for n in range(6)
]  # fmt: skip
HELLASWAG = [
    {"ind": n, "activity_label": "Cooking", "ctx_a": "A man stands.", "ctx_b": f"he {n}",
     "ctx": f"A man stands. He {n}",
     "endings": ["eats.", "runs away.", "is [title] Paris.", "sings."], "source_id": "x", "label": str(n % 4)}
    for n in range(6)
]  # fmt: skip
TRUTHFUL = [
    {"question": f"What is {n}?",
     "mc1_targets": {"choices": ["It is so.", "Paris.", "No."], "labels": [1, 0, 0]},
     "mc2_targets": {"choices": ["It is so.", "True.", "No.", "Paris"], "labels": [1, 1, 0, 0]}}
    for n in range(6)
]  # fmt: skip
GSM8K = [{"question": f"How much is {n} plus 1?", "answer": f"It is one more.\n#### {n + 1}"} for n in range(12)]
IFEVAL = [
    {"key": n, "prompt": f"Say {n} in less than 20 words, without a comma.",
     "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
     "kwargs": [{"relation": None, "num_words": None}, {"relation": "less than", "num_words": 20}]}
    for n in range(4)
]  # fmt: skip
PRESETS = {
    "arc_easy": ("arc/arc_easy.yaml", ARC, ["acc", "acc_norm"], "acc_norm"),
    "arc_challenge": ("arc/arc_challenge.yaml", ARC, ["acc", "acc_norm"], "acc_norm"),
    "hellaswag": ("hellaswag/hellaswag.yaml", HELLASWAG, ["acc", "acc_norm"], "acc_norm"),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", TRUTHFUL, ["acc"], "acc"),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", TRUTHFUL, ["acc"], "acc"),
    "gsm8k": ("gsm8k/gsm8k.yaml", GSM8K, ["exact_match,strict-match", "exact_match,flexible-extract"],
              "exact_match,flexible-extract"),
    "ifeval": ("ifeval/ifeval.yaml", IFEVAL, ["prompt_level_strict_acc", "inst_level_strict_acc",
               "prompt_level_loose_acc", "inst_level_loose_acc"], "prompt_level_strict_acc"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_runs_through_lm_evals_own_yaml(bench: Bench, name: str):
    source, rows, metrics, primary = PRESETS[name]
    if name == "ifeval":
        pytest.importorskip("langdetect")
        pytest.importorskip("immutabledict")
    data = bench.folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = dict.fromkeys(("train", "validation", "test"), str(data))
    more: dict[str, Any] = {}
    if name in ("gsm8k", "ifeval"):
        more["generation_kwargs"] = {"until": ["Question:"], "max_gen_toks": 8, "do_sample": False}
    if name == "gsm8k":
        more["num_fewshot"] = 1
    config = {
        "include": str(BUILT_IN / source),
        "task": f"small_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        **more,
    }
    (bench.tasks / "small.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    answers, info = bench.answer(f"small_{name}")
    assert not info.not_measured
    (answered,) = answers
    assert [scored.metric.name for scored in answered.scored] == metrics
    assert [scored.metric.name for scored in answered.scored if scored.metric.primary] == [primary]
    assert len(answered.questions) == len(rows) == len(answered.answers)
    assert all(len(scored.totals) == len(rows) for scored in answered.scored)
    assert all(0 <= value(scored) <= 1 for scored in answered.scored)
    if name == "arc_easy":
        assert answered.questions[1].prompt == "Question: Which of 1?\nAnswer:"
        assert answered.questions[1].reference == "plant"
        assert set(answered.answers) <= {f"a{n}" for n in range(6)} | {"plant", "the sun", "no one"}
        right = [asked.reference == said for asked, said in zip(answered.questions, answered.answers, strict=True)]
        assert answered.scored[1].totals == [float(each) for each in right]  # the choice shown is acc_norm's
    if name == "gsm8k":
        assert answered.questions[3].reference == "It is one more.\n#### 4"


def test_the_presets_are_found_without_reading_all_tasks_and_need_the_hub(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lm_tasks, "_network", lambda: False)
    notes: list[str] = []
    with pytest.raises(UsageError, match=r"arc_easy: its data set allenai/ai2_arc .*--suite offline needs no network"):
        load_tasks(bench.options(), selected("arc_easy"), note=notes.append)
    assert notes == []


@pytest.mark.slow
def test_a_group_without_its_data_names_the_suite_that_needs_none(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lm_tasks, "_network", lambda: False)
    with pytest.raises(UsageError, match=r"arithmetic: a data set of its tasks .*--suite offline needs no network"):
        load_tasks(bench.options(), selected("arithmetic"))


# ---- tasks of every kind -----------------------------------------------------------------------------------------


def test_perplexities_are_ratios_and_values(bench: Bench):
    texts = [{"text": "What is the capital? " * (n + 1)} for n in range(5)]
    metrics = [
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
    ]
    config = {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text", "metric_list": metrics,
    }  # fmt: skip
    write_task(bench.tasks, "read", texts, config)
    (answered,), _ = bench.answer("read")
    (bits,) = answered.scored
    assert (bits.metric.unit, bits.metric.higher_is_better, bits.metric.primary) == ("bits", False, True)
    assert bits.counts == [float(len(row["text"])) for row in texts]
    nats = sum(bits.totals) * math.log(2)
    words = sum(len(row["text"].split(" ")) for row in texts)
    assert answered.values_only == {"word_perplexity": pytest.approx(math.exp(nats / words))}
    assert answered.answers[0].endswith(" nats")
    assert answered.questions[0].prompt == texts[0]["text"]


def test_a_score_that_is_no_mean_has_a_value_only(bench: Bench):
    metrics = [*mean_of("acc"), {"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    config: dict[str, Any] = {"doc_to_choice": ["no", "yes"], "doc_to_target": "label", "metric_list": metrics}
    config |= {"output_type": "multiple_choice", "doc_to_text": "{{text}}"}
    write_task(bench.tasks, "f", [{"text": f"Is {n} so?", "label": n % 2} for n in range(9)], config)
    (answered,), _ = bench.answer("f")
    assert [scored.metric.name for scored in answered.scored] == ["acc"]
    assert 0 <= answered.values_only["f1"] <= 1


def test_questions_about_one_passage_are_a_cluster(bench: Bench):
    rows = [{"passage": f"Text {n // 3}", "text": f"Is {n} so?", "label": n % 2, "topic": n % 4} for n in range(9)]
    config: dict[str, Any] = {"doc_to_choice": ["no", "yes"], "doc_to_target": "label", "metric_list": mean_of("acc")}
    config |= {"output_type": "multiple_choice", "doc_to_text": "{{passage}} {{text}}"}
    write_task(bench.tasks, "passages", rows, config)
    write_task(bench.tasks, "topics", rows, {**config, "metadata": {"version": 2, "cluster": "topic"}})
    write_task(bench.tasks, "alone", [{**row, "passage": "all the same"} for row in rows], config)
    blank = [{**row, "passage": "" if n % 2 else "  " if n > 5 else row["passage"]} for n, row in enumerate(rows)]
    write_task(bench.tasks, "some", blank, config)
    write_task(bench.tasks, "none", [{**row, "passage": " " * (n % 2)} for n, row in enumerate(rows)], config)
    answered, _ = bench.answer("passages", "topics", "alone", "some", "none")
    groups = [[each.cluster for each in one.questions] for one in answered]
    assert [groups[0].index(each) for each in groups[0]] == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert [groups[1].index(each) for each in groups[1]] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert groups[2] == [None] * 9
    assert [each is None for each in groups[3]] == [False, True, False, True, False, *[True] * 4]
    assert groups[3][0] == groups[3][2] != groups[3][4]
    assert groups[4] == [None] * 9
    assert all(one.questions[0].reference == "no" for one in answered)


def test_repeats_draw_anew_and_a_group_is_its_tasks(bench: Bench):
    sampled = {"until": ["\n"], "max_gen_toks": 6, "do_sample": True, "temperature": 5.0}
    letters_task(bench.tasks, 3, "drawn", repeats=4, generation_kwargs=sampled)
    choice_task(bench.tasks, 3, "one")
    group = {"group": "both", "task": ["drawn", "one"]}
    (bench.tasks / "group.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    options = bench.options()
    tasks = load_tasks(options, selected("both", "one"))
    assert [task.info.name for task in tasks] == ["drawn", "one"]
    one = named(options)[1]
    with opened(one, options) as lm:
        assert count_requests(tasks, lm, options) == (3 * 4 + 3 * 4, 0)
        first = answer_tasks(one, tasks, lm, options, Run())
    with opened(one, options) as lm:
        assert count_requests(tasks, lm, options) == (24, 24)
        assert answer_tasks(one, tasks, lm, options, Run()) == first
        assert lm.loaded is None


# ---- the cache ---------------------------------------------------------------------------------------------------


def test_equal_models_share_answers_and_different_ones_at_one_path_do_not(bench: Bench, tmp_path: Path):
    import shutil

    letters_task(bench.tasks)
    path = tmp_path / "model"
    shutil.copytree(bench.models.student, path)
    bench.models = Models(bench.models.student, path, bench.models.other)
    first, info = bench.answer("letters")
    assert info.cached == 0
    shutil.rmtree(path)
    shutil.copytree(bench.models.other, path)
    second, info = bench.answer("letters")
    assert info.cached == 0
    assert figures(first) != figures(second)
    bench.models = Models(bench.models.student, bench.models.student, bench.models.other)
    third, info = bench.answer("letters")
    assert (info.cached, info.requests) == (12, 12)
    assert third == first


def test_a_changed_prompt_is_asked_anew(bench: Bench):
    letters_task(bench.tasks)
    bench.answer("letters")
    letters_task(bench.tasks, doc_to_text="{{question}} Now.")
    answered, info = bench.answer("letters")
    assert info.cached == 0
    assert answered[0].questions[0].prompt == "What is Paris 0? Now."
    # ... and what is added alone, when the rest is as before
    letters_task(bench.tasks, count=15, doc_to_text="{{question}} Now.")
    answered, info = bench.answer("letters")
    assert (info.requests, info.cached) == (15, 12)


def test_all_models_get_the_same_items_and_examples(bench: Bench):
    choice_task(bench.tasks, 40, num_fewshot=3)
    writing_task(bench.tasks, 40)
    both = [bench.answer("pick", "write", model=model, limit=10)[0] for model in (0, 1)]
    assert [one.questions for one in both[0]] == [one.questions for one in both[1]]
    assert [scored.totals for one in both[0] for scored in one.scored] != [
        scored.totals for one in both[1] for scored in one.scored
    ]
    # the choice is fixed, another seed takes another, a larger limit is all of them
    chosen = [
        task.items
        for limit, seed in ((10, 0), (10, 0), (10, 1), (40, 0))
        for task in load_tasks(bench.options(limit=limit, seed=seed), selected("pick"))
    ]
    assert chosen[0] == chosen[1] == [int(each.key) for each in both[0][0].questions]
    assert chosen[2] != chosen[0]
    assert chosen[3] is None


def test_ctrl_c_leaves_the_finished_tasks(bench: Bench):
    choice_task(bench.tasks, name="first")
    choice_task(bench.tasks, name="second", doc_to_text="{{question}}")
    run = Run()

    class Stops(type(run.progress)):
        def end(self) -> None:
            super().end()
            run.stop.asked = 1

    run.progress = Stops()
    answered, info = bench.answer("first", "second", run=run)
    assert [one.task for one in answered] == ["first"]
    assert info.not_measured == {"second": INTERRUPTED}


def test_a_task_whose_function_fails_spares_the_others(bench: Bench):
    letters_task(bench.tasks)
    choice_task(bench.tasks)
    (bench.tasks / "checks.py").write_text("def score(doc, results):\n    return 1 / 0\n", encoding="utf-8")
    answered, info = bench.answer("letters", "pick", chat_template="off")
    assert [one.task for one in answered] == ["pick"]
    assert info.not_measured == {"letters": "ZeroDivisionError: division by zero"}
    assert (info.requests, info.cached) == (12 + 96, 0)
    answered, info = bench.answer("letters", "pick", chat_template="off")
    assert (info.requests, info.cached) == (12 + 96, 12 + 96)


def test_a_model_that_stops_in_the_middle_is_asked_each_question_once(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """lm-eval asks for choices first, and for answers then; a failure between them is of neither task."""
    choice_task(bench.tasks)
    letters_task(bench.tasks)
    real, calls = CachedLM.generate_until, 0

    def fails_once(lm: CachedLM, requests: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("now")
        return real(lm, requests)

    monkeypatch.setattr(CachedLM, "generate_until", fails_once)
    answered, info = bench.answer("pick", "letters", chat_template="off")
    assert [one.task for one in answered] == ["pick", "letters"]
    assert (info.requests, info.cached) == (96 + 12, 0)


def test_a_model_with_nan_logits_has_no_score(bench: Bench, tmp_path: Path):
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path / "model"
    shutil.copytree(bench.models.student, path)
    network = AutoModelForCausalLM.from_pretrained(path)
    (seven,) = AutoTokenizer.from_pretrained(path)("7")["input_ids"]
    with torch.no_grad():
        network.model.embed_tokens.weight[seven] = math.nan
    network.save_pretrained(path)
    bench.models = Models(bench.models.student, path, bench.models.other)
    choice_task(bench.tasks)
    answered, info = bench.answer("pick", chat_template="off")
    broken = [math.isnan(each) for each in answered[0].scored[0].totals]
    assert 0 < sum(broken) < 24
    assert f"pick: {sum(broken)} items have no score" in info.notes[0]
    assert [said == "" for said in answered[0].answers] == broken
    with torch.no_grad():
        network.lm_head.weight[:] = math.nan
    network.save_pretrained(path)
    answered, info = bench.answer("pick")
    assert answered == []
    assert info.not_measured == {"pick": "its logits are not finite"}


# ---- bad input ---------------------------------------------------------------------------------------------------


def refusal(bench: Bench, *names: str, **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_tasks(bench.options(**more), selected(*names))
    return str(caught.value)


@pytest.mark.slow  # lm-eval reads its 14,000 tasks
def test_an_unknown_task_is_answered_with_the_nearest(bench: Bench):
    (bench.tasks / "torn.yaml").write_text("task: [", encoding="utf-8")
    said = refusal(bench, "helaswag")
    assert "no task is called helaswag" in said
    assert "hellaswag" in said.split("Similar ones:")[1]
    assert "torn.yaml cannot be read" in said


def test_what_cannot_be_run_is_refused_before_anything_is_asked(bench: Bench):
    writing_task(bench.tasks, name="unsafe", unsafe_code=True)
    writing_task(bench.tasks, name="seeing", doc_to_image="question")
    writing_task(bench.tasks, name="nothing", dataset_kwargs={"data_files": {"test": str(bench.folder / "none.jsonl")}})
    (bench.tasks / "imports.py").write_text("import nobody_has_this\n", encoding="utf-8")
    writing_task(bench.tasks, name="needs")
    with open(bench.tasks / "needs.yaml", "a", encoding="utf-8") as file:
        file.write("process_results: !function imports.score\n")
    assert "runs code that models write" in refusal(bench, "unsafe")
    assert "pictures" in refusal(bench, "seeing")
    assert "nothing" in refusal(bench, "nothing")
    assert "none.jsonl" in refusal(bench, "nothing")
    assert "-m pip install nobody_has_this" in refusal(bench, "needs")
    assert "is no folder" in refusal(bench, "needs", tasks_dir=bench.folder / "nowhere")


def test_how_a_task_is_prompted(bench: Bench):
    choice_task(bench.tasks, num_fewshot=0, metadata={"version": 7, "about": "which one"})
    writing_task(bench.tasks)

    def prompted(chats: bool = True, **more: Any) -> list[str]:
        return [task.info.prompted for task in load_tasks(bench.options(**more), selected("pick", "write"), chats)]

    assert prompted() == ["plain text", "chat template"]
    assert prompted(False) == ["plain text", "plain text"]
    assert prompted(chat_template="on") == ["chat template", "chat template"]
    assert prompted(chat_template="off") == ["plain text", "plain text"]
    pick, write = load_tasks(bench.options(num_fewshot=2, limit=5), selected("pick", "write"))
    assert (pick.info.fewshot, write.info.fewshot) == (0, 2)  # a 0 in the task's file is meant
    said: list[str] = []
    load_tasks(bench.options(num_fewshot=2), selected("pick", "write"), note=said.append)
    assert said == ["pick: its file says num_fewshot: 0, so it is asked without solved examples despite --num-fewshot"]
    assert (pick.info.version, pick.info.about, pick.info.items, pick.info.of) == ("7", "which one", 5, 24)


def test_lm_eval_is_silent(bench: Bench, capfd: pytest.CaptureFixture[str]):
    choice_task(bench.tasks, metric_list=[{"metric": "acc"}])
    letters_task(bench.tasks)
    (bench.tasks / "checks.py").write_text(
        "def score(doc, results):\n    print('of the user')\n    return {'letters': 1.0, 'long': 0.0}\n",
        encoding="utf-8",
    )
    capfd.readouterr()
    bench.answer("pick", "letters")
    captured = capfd.readouterr()
    assert captured.out == ""
    assert set(captured.err.splitlines()) == {"of the user"}
