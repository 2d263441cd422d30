"""What the pages' readers have, and which commands are not run here, run smaller, or run in the slow tests only: each
with its reason. A line that fits no command is a mistake, and so is a command that fails without a line."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.docs_run import Rule, Unseen
from tests.support.pages import blocks
from tests.support.running import ROOT, read_rows

HUB = "fetches a model or a data set from the Hub"
NETWORK = "installs or fetches from the internet"
OTHERS = "another program, which has to be installed and signed in"
SERVES = "waits for its clients until it is ended"
REAL = "a real model of 135 million parameters, on a CPU"
SMALLER = "the same work in fewer and shorter steps"
TINY = "behind the server on this machine is a tiny model, and what is shown needs no other"

TOO_FEW = "two questions are shown, and two rows are too few to train on"

GOLD_SMALLER = "--max-steps 2 --batch-size 2 --max-new-tokens 8 --eval-every 2 --val-max-samples 2"

TABLE: tuple[Rule, ...] = (
    # ---- not run here
    Rule("*", r"^make ", "the other tests run what these targets start", run=False),
    Rule("*", r"^(claude|codex|copilot|gemini|npx|opencode|rnow|accelerate launch --multi_gpu) ", OTHERS, run=False),
    Rule("*", r"^git clone|\bpip install\b|^python3? -m venv|--install (?!.*--dry-run)", NETWORK, run=False),
    Rule("docs/install.md", r"git clone .*\.cursor/", "copies the checkout for Cursor, which is not here", run=False),
    Rule("*", r"mcp_server --http", SERVES, run=False),
    Rule("*", r"--tasks (arc_easy|gsm8k)|--suite opd|--model owner/repo|models/teacher.Q4_K_M.gguf", HUB, run=False),
    Rule("*/hardware.md", r"runs/(qwen|mac)|jobs.py log", HUB, run=False),
    Rule("*", r"--backend nemo", "wants data-designer, 900 MB; the tests marked nemo run it", run=False),
    Rule("*/rollouts.md", r"-n 2 --model openai/gpt-5.2 --max-cost", "wants a Docker engine", run=False),
    # ---- a real model, or a real browser: in the slow tests
    Rule("*", r"/compare_tokenizers\.py|--backend hf|-m(odel)? smollm2", REAL, slow=True),
    Rule("docs/by-hand.md", r"-model smollm2 --backend hf", SMALLER, add="--limit 6"),
    Rule("*/teachers.md", r"-model smollm2 --backend hf", SMALLER, add="--limit 1"),
    Rule(
        "skills/rollout*/SKILL.md",
        r"/run_rollouts.py.*--backend hf",
        SMALLER,
        replace=(("--max-tokens 512", "--max-tokens 48"),),
    ),
    Rule("*", r"/make_student\.py", REAL, slow=True, add="--limit 1"),
    Rule("*", r"/evaluate\.py", REAL, slow=True),
    Rule("*", r"/evaluate\.py(?!.*--limit)", SMALLER, add="--limit 2"),
    Rule("*", r"/evaluate\.py.*--limit 40", SMALLER, replace=(("--limit 40", "--limit 2"),)),
    Rule("skills/rollout*", r"/evaluate\.py.*--limit 20", SMALLER, replace=(("--limit 20", "--limit 2"),)),
    Rule("*", r"/train_sft\.py (?!.*--check)", REAL, slow=True, add="--max-steps 2"),
    Rule("*", r"/train_gold\.py", REAL, slow=True),
    Rule("*", r"/train_gold\.py(?!.*--max-steps)", SMALLER, add=GOLD_SMALLER),
    Rule("*", r"/train_gold\.py.*--max-steps 50", SMALLER, replace=(("--max-steps 50", "--max-steps 2"),)),
    Rule("*", r"/doctor\.py --teacher", REAL, slow=True),
    Rule("*", r"/jobs\.py", "follows a job that trains", slow=True),
    Rule("skills/off-policy/SKILL.md", r"reports/sft|check_data\.py student", "reads what the student said", slow=True),
    Rule(
        "skills/off-policy/SKILL.md",
        r"-model runs/sft/best",
        SMALLER,
        add="--limit 2",
        replace=(("--max-tokens 800", "--max-tokens 8"),),
    ),
    Rule(
        "*/quality.md",
        r"-backend hf --model",
        SMALLER,
        add="--limit 2",
        replace=(("--max-tokens 200", "--max-tokens 8"),),
    ),
    Rule(
        "skills/off-policy/*", r"check_data\.py (student|base).jsonl", "cut off at 8 tokens, so none is right", code=1
    ),
    Rule("*", r"--browser", "starts a Chromium", browser=True),
    Rule("*/rollouts.md", r"convert_rollouts", "reads what the browser left", browser=True),
    Rule("*/references/*", r"/check_data\.py", "the quick tests of the skills check data three times", slow=True),
    Rule("*/example.md", r".", "begins with the answers of a real model", slow=True),
    # ---- run otherwise
    Rule("*/example.md", r"/check_data\.py", "a threshold is missed, as the page shows", code=1),
    Rule(
        "docs/by-hand.md",
        r"> prompts.txt",
        "two questions are shown; to train takes a few more",
        replace=(("> prompts.txt", "> two.txt"),),
    ),
    Rule("*/quality.md", r"check_data.py many.jsonl", "this teacher says the same four times", code=1),
    Rule(
        "docs/by-hand.md",
        r"path/to/teacher",
        "stands for a model of the reader's",
        replace=(("path/to/teacher", "{tiny}"),),
    ),
    Rule("*", r"--teacher Qwen/Qwen3-32B", TINY, replace=(("Qwen/Qwen3-32B", "{tiny}"),)),
    Rule("*", r"--student Qwen/Qwen3-0.6B", TINY, replace=(("Qwen/Qwen3-0.6B", "student"),)),
    Rule(
        "*/api-teachers.md", r"train_gold.*qwen-2.5-72b-instruct$", "the server cannot score, as the page shows", code=2
    ),
    Rule("*/domains.md", r"--domain my_domain.yml", "the file is wrong, and the page shows what is said of it", code=2),
    Rule(
        "*/rollouts.md",
        r"^for ",
        "two batches, of which the second has nothing left",
        replace=(("900", "100"),),
        code=2,
    ),
    Rule(
        "*/tools.md",
        r"--mcp-url",
        "the server on this machine has a port of its own",
        replace=(("localhost:8931", "{mcp}"),),
    ),
    Rule(
        "skills/rollout*/SKILL.md",
        r"/train_sft.py",
        "smollm2's own template has no place for tools; rows with tools are long, so fewer at once",
        add="--chat-template chatml --batch-size 2",
    ),
)

UNSEEN: tuple[Unseen, ...] = (
    Unseen("README.md", r"^The student, before", "make demo prints it; tests/core/test_demo.py runs that"),
)

Content = str | Callable[[Path], str]
"""Of a user's file: a text, or what makes one of the page."""


def shown(language: str, number: int = 0, *replaced: tuple[str, str]) -> Callable[[Path], str]:
    """A file that the page shows, in its block of that language and number."""

    def content(page: Path) -> str:
        text = blocks(page, language)[number].text
        for old, new in replaced:
            assert old in text, f"{page}: {old!r} is not in the block that is a file of the user's"
            text = text.replace(old, new)
        return text

    return content


def sample(path: str) -> str:
    """A file of the bundle, as a user's own."""
    return (ROOT / path).read_text(encoding="utf-8")


def rows(*conversations: tuple[str, str]) -> str:
    """(question, answer) as lines of train.jsonl."""
    told = (
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in conversations
    )
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in told)


QUESTIONS = [row["prompt"] for row in read_rows(ROOT / "skills/off-policy/assets/prompts.jsonl")]
PROMPTS_TXT = "".join(f"{' '.join(question.split())}\n" for question in QUESTIONS)
THINGS = """bread glass paper salt rope silk soap steel wool cork clay ink lamps maps nails oars pipes quilts""".split()  # noqa: SIM905
TEST_TXT = "".join(f"In one sentence, how were {thing} made in old times?\n" for thing in THINGS[:6])
ANSWERED = rows(
    *(
        (
            f"What are {thing} used for, and since when?",
            f"People have used {thing} for a long time. The oldest {thing} that were found are {300 * n} years old.",
        )
        for n, thing in enumerate(THINGS, 2)
    )
)
"""Rows to train on."""
HELD_OUT = rows(*((f"Who sells {thing}?", f"A shop sells {thing}.") for thing in THINGS[:4]))
SUMS = "".join(
    json.dumps(
        {
            "messages": [{"role": "user", "content": f"What is {a} times {b}? End with: Answer: ..."}],
            "metadata": {"expected_answer": str(a * b)},
        }
    )
    + "\n"
    for a, b in ((3, 14), (15, 92))
)
MATHS = "".join(
    json.dumps({"prompt": f"What is {a} times {b}?", "metadata": {"expected_answer": str(a * b)}}) + "\n"
    for a, b in ((3, 14), (15, 92), (65, 35))
)
CONFIG = """\
project_name: a student
dataset_type: sft
data: {train_file: train.jsonl, batch_size: 4, val_split: 0.1}
model: {path: smollm2, qlora_rank: 8}
trainer: {num_epochs: 1, learning_rate: 0.0001}
"""
KEYS = "OPENROUTER_API_KEY=sk-or-v1-0123456789\nOPENAI_API_KEY=sk-0123456789\nNVIDIA_API_KEY=nvapi-0123456789\n"
ENV: dict[str, Content] = {".env": KEYS}
ON_A_CPU = (("path: Qwen/", "path: smollm2 # "), ("num_epochs: 3", "num_epochs: 1"), ("batch_size: 8", "batch_size: 4"))
"""What "on a CPU" means in a config.yml."""

GIVEN: dict[str, dict[str, Content]] = {
    "docs/by-hand.md": {
        "prompts.txt": PROMPTS_TXT,
        "config.yml": shown("yaml", 0, *ON_A_CPU),
        ".env": shown("ini"),
    },
    "skills/off-policy/SKILL.md": {
        "prompts.txt": PROMPTS_TXT,
        "test_prompts.txt": TEST_TXT,
        "questions.csv": "question\n" + "".join(f'"{each}"\n' for each in TEST_TXT.splitlines()),
        ".env": f"{KEYS}MY_SERVER_KEY=sk-0123456789\n",
        "config.yml": shown("yaml", 0, *ON_A_CPU),
    },
    "skills/off-policy/references/example.md": {
        "prompts.jsonl": sample("skills/off-policy/assets/prompts.jsonl"),
        "config.yml": shown("yaml"),
    },
    "skills/off-policy/references/quality.md": {
        "maths.jsonl": MATHS,
        "prompts.txt": PROMPTS_TXT,
        "coding_prompts.txt": "Sort a list of names by their length.\nRead a CSV file and sum its last column.\n",
        **ENV,
    },
    "skills/off-policy/references/teachers.md": {"prompts.txt": PROMPTS_TXT, **ENV},
    "skills/off-policy/references/training.md": {"train.jsonl": ANSWERED, "config.yml": CONFIG},
    "skills/off-policy/references/troubleshooting.md": {"prompts.txt": PROMPTS_TXT, **ENV},
    "skills/on-policy/SKILL.md": {"train.jsonl": ANSWERED, **ENV},
    "skills/on-policy/references/domains.md": {
        "bike_workshop.yml": shown("yaml", 0),
        "my_domain.yml": shown("yaml", 1),
        **ENV,
    },
    "skills/on-policy/references/api-teachers.md": {"train.jsonl": ANSWERED, **ENV},
    "skills/on-policy/references/check-data.md": {"train.jsonl": ANSWERED, "held_out.jsonl": HELD_OUT},
    "skills/on-policy/references/evaluation.md": {"train.jsonl": ANSWERED, "test.jsonl": HELD_OUT},
    "skills/on-policy/references/hardware.md": {"train.jsonl": ANSWERED},
    "mcp_server/README.md": {"train.jsonl": ANSWERED, "config.yml": CONFIG},
    "skills/on-policy/references/synthetic.md": ENV,
    "skills/rollout-distill/SKILL.md": {
        "prompts.jsonl": sample("skills/rollout-distill/assets/prompts.jsonl"),
        "tools.py": sample("skills/rollout-distill/assets/tools.py"),
        "test.jsonl": SUMS,
        "config.yml": shown("yaml", 0, *ON_A_CPU[:2]),
        **ENV,
    },
    "skills/rollout-distill/references/rollouts.md": {
        "train.jsonl": sample("skills/rollout-distill/assets/prompts.jsonl"),
        **ENV,
    },
    "skills/rollout-distill/references/tools.md": {
        "prompts.jsonl": sample("skills/rollout-distill/assets/prompts.jsonl"),
        "tools.py": shown("python", 0),
        **ENV,
    },
    "skills/rollout-distill/references/troubleshooting.md": {
        "prompts.jsonl": sample("skills/rollout-distill/assets/prompts.jsonl")
    },
}
"""Page -> file -> what it holds. `.env` has keys that nobody knows."""

MADE = "python3 scripts/make_student.py smollm2 -o student --layers 24 --limit 1"
STUDENT = "python3 scripts/make_student.py smollm2 -o runs/sft/best --layers 24 --limit 1"
BEFORE: dict[str, tuple[str, ...]] = {
    "skills/off-policy/references/quality.md": (STUDENT,),
    "skills/on-policy/SKILL.md": (STUDENT,),
    "skills/on-policy/references/api-teachers.md": (MADE,),
    "skills/on-policy/references/evaluation.md": (
        MADE,
        f"python3 scripts/train_gold.py -d train.jsonl -o runs/gold --student student --teacher smollm2 {GOLD_SMALLER}",
    ),
    "skills/on-policy/references/hardware.md": (MADE,),
}
"""Page -> what its reader has done before, as another page says, with any script. Run before the slow tests."""
