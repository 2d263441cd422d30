"""Problems that are made here, so that their answers are known: arithmetic and Countdown, each worded in many ways."""

from random import Random
from typing import Literal

from ..quality.verify import countdown_right, number_right
from .records import Problem

Tree = int | tuple[str, "Tree", "Tree"]
"""A number, or an operation of + - * / with its two sides."""

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
SIGNS = ("+-*/", "+-\u00d7\u00f7", "+\u2212\u00d7/")
"""How + - * / are written."""

MOST = 10_000
"""Results of arithmetic, and what is calculated on the way, lie between -MOST and MOST."""

WRITTEN = (
    "What is {}?",
    "Calculate {}.",
    "Compute {}.",
    "Work out {}.",
    "Evaluate {}.",
    "How much is {}?",
    "Find the value of {}.",
    "Please solve {}.",
    "I need the result of {}.",
    "Could you work out {} for me?",
    "What does {} come to?",
    "Give the exact value of {}.",
    "Determine {}, step by step.",
)
OF_SIGNS = ("Simplify {} to a single number.", "My homework says: {} = ?", "{} = ?")
"""Fit for calculations that are not told in words."""
PHRASES = {
    "+": "the sum of {} and {}",
    "-": "the difference when {1} is taken away from {0}",
    "*": "the product of {} and {}",
    "/": "the quotient when {} is divided by {}",
}
STEPS = {
    "+": ("add {}", "increase it by {}"),
    "-": ("subtract {}", "take away {}", "decrease it by {}"),
    "*": ("multiply by {}", "make it {} times as large"),
    "/": ("divide by {}", "split it into {} equal parts and keep one"),
}
BEGINNINGS = ("Start with {}", "Take the number {}", "Begin at {}", "Think of {}", "A counter shows {}")
ENDINGS = ("What is the result?", "What do you get?", "Where do you end up?", "Which number is that?")
STORIES: dict[str, tuple[str, ...]] = {
    "+": (
        "{who} has {} {things} and is given {} more. How many {things} does {who} have now?",
        "There are {} {things} in one box and {} in another. How many {things} are there in both boxes together?",
    ),
    "-": (
        "{who} had {} {things} and sold {} of them. How many {things} are left?",
        "A shop ordered {} {things}, but {} were missing from the delivery. How many {things} arrived?",
    ),
    "*": (
        "{who} fills {} bags with {} {things} each. How many {things} is that?",
        "A shelf has {} rows with {} {things} in every row. How many {things} stand on the shelf?",
    ),
    "/": (
        "{who} packs {} {things} evenly into {} boxes. How many {things} go into each box?",
        "{} {things} are shared equally among {} people. How many {things} does each person get?",
    ),
    "+-": (
        "{who} has {} {things}, buys {} more and then gives away {}. How many {things} does {who} have in the end?",
        "In the morning a stall has {} {things}. {} more are delivered, and {} are sold. How many {things} remain?",
    ),
    "-+": ("{who} had {} {things}, lost {} of them and later found {} others. How many {things} does {who} have now?",),
    "*+": (
        "{who} buys {} packs of {} {things} and {} single ones. How many {things} does {who} buy?",
        "A room has {} tables with {} {things} on each and {} {things} on the floor. How many {things} is that?",
    ),
    "*-": ("{who} bakes {} trays of {} rolls, and {} of the rolls burn. How many rolls can be sold?",),
    "+*": ("Each of {who}'s parcels holds {} {things} and {} letters. How many items are in {} such parcels?",),
    "/+": (
        "{} {things} are divided equally among {} children. {who}, one of them, had {} before. How many {things} does "
        "{who} have now?",
    ),
    "*+-": ("{who} buys {} packs of {} {things} and {} single ones, then gives away {}. How many {things} are left?",),
    "+*-": (
        "A crate holds {} red and {} green {things}. {who} unloads {} such crates and finds {} broken {things}. How "
        "many are whole?",
    ),
    "*/+": (
        "{} packs of {} {things} are shared equally by {} people. {who}, one of them, had {} before. How many {things} "
        "does {who} have now?",
    ),
}
"""By the operations, done from left to right."""
WHO = (
    "Amara",
    "Ben",
    "Chen",
    "Dilara",
    "Elif",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Kofi",
    "Lena",
    "Mateo",
    "Noor",
)
THINGS = ("apples", "stamps", "marbles", "postcards", "pencils", "candles", "seeds", "tiles", "buttons", "coins")

STATE_NUMBER = (
    'End with a line that says "Answer:" and the number.',
    'Give the final result after "Answer:".',
    'Show the steps, then write "Answer:" followed by the number alone.',
    'The last line should be "Answer: N", where N is the result.',
    "Put the final number in \\boxed{}.",
    'Explain briefly and finish with "Answer:" and the result.',
)

COUNTDOWN = (
    "Using the numbers {numbers}, create an expression that equals {target}.",
    "Make {target} out of the numbers {numbers}.",
    "Find a way to combine {numbers} so that the result is {target}.",
    "Countdown round: your numbers are {numbers} and your target is {target}.",
    "How can you reach {target} with {numbers}?",
    "I have the numbers {numbers} and need exactly {target}. What calculation gets me there?",
    "Write a calculation with the numbers {numbers} whose value is {target}.",
    "Numbers game: reach {target} from {numbers}.",
)
RULES = (
    "Use every number exactly once, with +, -, * and / and parentheses.",
    "Each number must be used exactly once; you may add, subtract, multiply and divide, and set parentheses.",
    "Allowed are +, -, *, / and parentheses, and every number has to appear once, no more and no less.",
)
STATE_CALCULATION = (
    "Give the calculation in <answer> </answer> tags, for example <answer>(1 + 2) / 3</answer>.",
    "Put only the final expression between <answer> and </answer>.",
    "Think it through, then write the expression inside <answer>...</answer>.",
)


def make_problem(verify: Literal["arithmetic", "countdown"], difficulty: str, random: Random) -> Problem:
    """A problem that has a solution, with the wish how the result is to be stated.

    difficulty: "easy", "medium" or "hard". Arithmetic has two, three or four numbers, the last with parentheses (or in
    steps one after another); results and all divisions on the way come out even. Countdown has three numbers up to 20
    and no division, three numbers up to 99, or four; the target is from 10 to 99, none of the numbers and not simply
    their sum. The same `random` gives the same problem.
    """
    return (_arithmetic if verify == "arithmetic" else _countdown)(difficulty, random)


def is_right(problem: Problem, answer: str) -> bool:
    """Whether an answer states the result of a problem, as `quality.verify` reads it."""
    if problem.verify == "countdown":
        return countdown_right(problem.numbers, problem.target, answer)
    return number_right(problem.expected, answer)


# ---- arithmetic ------------------------------------------------------------------------------------------------


def _arithmetic(difficulty: str, random: Random) -> Problem:
    count = {"easy": 2, "medium": 3, "hard": 4}[difficulty]
    wording = random.choice(["written", "written", "steps", "story", "phrase" if count < 4 else "written"])
    stories = [operations for operations in STORIES if len(operations) == count - 1]
    operations = random.choice(stories) if wording == "story" else _operations(count - 1, random)
    while True:
        # Where a text tells one step after another, each step works on what the ones before gave.
        tree = _tree(operations, random, in_turn=wording in ("story", "steps"))
        value = value_of_tree(tree)
        if value is None or abs(value) > MOST or (value < 0 and count < 4):
            continue
        if wording == "story" and min(_on_the_way(tree)) < 0:  # nobody has fewer than no apples
            continue
        if wording != "written" or count < 4 or "(" in written(tree):
            break
    if wording == "written":
        question = random.choice(WRITTEN + OF_SIGNS).format(written(tree, random.choice(SIGNS)))
    elif wording == "phrase":
        question = random.choice(WRITTEN).format(_phrase(tree))
    elif wording == "steps":
        question = _steps(tree, random)
    else:
        words = {"who": random.choice(WHO), "things": random.choice(THINGS)}
        question = random.choice(STORIES[operations]).format(*_leaves(tree), **words)
    return Problem(f"{question} {random.choice(STATE_NUMBER)}", "arithmetic", str(value))


def _operations(count: int, random: Random) -> str:
    """At most one division: more of them seldom come out even."""
    while (drawn := "".join(random.choices("+-*/", k=count))).count("/") > 1:
        pass
    return drawn


def _tree(operations: str, random: Random, *, in_turn: bool, most: int = 99) -> Tree:
    """A random tree with these operations, in this order from left to right. in_turn: ((a o b) o c) o d."""
    if not operations:
        return random.randint(2, most)
    top = len(operations) - 1 if in_turn else random.randrange(len(operations))
    sides = (operations[:top], operations[top + 1 :])
    left, right = (_tree(side, random, in_turn=in_turn, most=most) for side in sides)
    if operations[top] in "*/" and isinstance(right, int):
        right = random.randint(2, 12)
    return operations[top], left, right


def value_of_tree(tree: Tree) -> int | None:
    """None where a division does not come out even, or something on the way lies beyond MOST."""
    if isinstance(tree, int):
        return tree
    operation, left, right = tree[0], value_of_tree(tree[1]), value_of_tree(tree[2])
    if left is None or right is None or max(abs(left), abs(right)) > MOST:
        return None
    if operation == "/":
        return left // right if right and left % right == 0 else None
    return left + right if operation == "+" else left - right if operation == "-" else left * right


def written(tree: Tree, signs: str = SIGNS[0]) -> str:
    """With the parentheses that it needs. signs: for + - * /."""
    if isinstance(tree, int):
        return str(tree)
    operation, left, right = tree
    texts = [written(side, signs) for side in (left, right)]
    if not isinstance(left, int) and PRECEDENCE[left[0]] < PRECEDENCE[operation]:
        texts[0] = f"({texts[0]})"
    if not isinstance(right, int) and PRECEDENCE[right[0]] <= PRECEDENCE[operation]:
        texts[1] = f"({texts[1]})"
    return f"{texts[0]} {signs[SIGNS[0].index(operation)]} {texts[1]}"


def _phrase(tree: Tree) -> str:
    """Of a tree of up to two operations."""
    if isinstance(tree, int):
        return str(tree)
    operation, left, right = tree
    if operation in "+*" and not isinstance(left, int):  # "the product of the sum of 1 and 2 and 3" may be two things
        left, right = right, left
    return PHRASES[operation].format(_phrase(left), _phrase(right))


def _steps(tree: Tree, random: Random) -> str:
    """Of a tree in turn."""
    steps: list[str] = []
    while not isinstance(tree, int):
        operation, tree, number = tree
        steps.insert(0, random.choice(STEPS[operation]).format(number))
    return f"{random.choice(BEGINNINGS).format(tree)}, then {', then '.join(steps)}. {random.choice(ENDINGS)}"


def _on_the_way(tree: Tree) -> list[int]:
    """The results of a tree and of all its parts; it has them."""
    parts = [] if isinstance(tree, int) else _on_the_way(tree[1]) + _on_the_way(tree[2])
    return [value for value in [value_of_tree(tree)] if value is not None] + parts


def _leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else [*_leaves(tree[1]), *_leaves(tree[2])]


# ---- Countdown -------------------------------------------------------------------------------------------------


def _countdown(difficulty: str, random: Random) -> Problem:
    count, most, signs = {"easy": (3, 20, "+-*"), "medium": (3, 99, "+-*/"), "hard": (4, 99, "+-*/")}[difficulty]
    while True:
        tree = _tree("".join(random.choices(signs, k=count - 1)), random, in_turn=False, most=most)
        target, numbers = value_of_tree(tree), _leaves(tree)
        if target is None or not 10 <= target <= 99 or target in numbers or target == sum(numbers):
            continue
        if min(_on_the_way(tree)) > 0:
            break
    random.shuffle(numbers)
    texts = [str(number) for number in numbers]
    listed = random.choice([f"[{', '.join(texts)}]", f"{', '.join(texts[:-1])} and {texts[-1]}", ", ".join(texts)])
    question = " ".join(
        [
            random.choice(COUNTDOWN).format(numbers=listed, target=target),
            random.choice(RULES),
            random.choice(STATE_CALCULATION),
        ]
    )
    return Problem(question, "countdown", written(tree), tuple(numbers), target)
