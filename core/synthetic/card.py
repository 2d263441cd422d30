"""The README.md of a data set: what it holds, how and by which models it was made, at what price, under which terms.

Names come from files and models of others. In YAML they are written by the YAML library, in Markdown as code, so that
they stay data.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from .. import __version__
from ..commands.generate_synthetic import GenerateSynthetic, Synthesized
from ..data.run import write_atomic
from ..data.text import as_code, one_line
from ..teachers import Price
from .domain import Domain
from .making import Role
from .measures import Measures

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
MOST_VALUES = 12
"""Values of an attribute that are listed; of more only their number is said."""


def write_card(
    path: Path,
    result: Synthesized,
    domain: Domain,
    options: GenerateSynthetic,
    prices: Mapping[Role, Price | None],
    measures: Measures,
) -> None:
    """Write the card, whole or not at all. Raises OSError."""
    lines = ["---", _front_matter(result, domain), "---", "", *_lines(result, domain, options, prices, measures)]
    write_atomic(path, ("\n".join(lines) + "\n").encode("utf-8", "replace"))


def _front_matter(result: Synthesized, domain: Domain) -> str:
    says = {
        "pretty_name": one_line(domain.name),
        **({} if domain.language == "any" else {"language": [domain.language]}),
        "task_categories": ["text-generation"],
        "size_categories": [next((name for most, name in SIZES if result.records < most), "1M<n<10M")],
        "tags": ["synthetic", "distillation"],
        "configs": [{"config_name": "default", "data_files": "train.jsonl"}],
    }
    return yaml.safe_dump(says, sort_keys=False, allow_unicode=True).rstrip()


def _lines(
    result: Synthesized,
    domain: Domain,
    options: GenerateSynthetic,
    prices: Mapping[Role, Price | None],
    measures: Measures,
) -> Iterator[str]:
    kinds = ", ".join(f"{count:,} {name}" for name, count in result.by_type.items()) or "none"
    yield f"# {as_code(domain.name)}\n"
    yield f"{result.records:,} synthetic records ({kinds}), written by language models."
    yield f"\n{one_line(domain.description, 600)}"
    if result.records < result.wanted:
        yield f"\nIt is not complete: {result.wanted:,} records were wanted."

    yield "\n## How it was made\n"
    yield f"- Questions: {as_code(result.question_model)}, temperature {options.question_temperature:g}"
    yield f"- Answers: {as_code(result.answer_model)}, temperature {options.temperature:g}"
    yield f"- Domain: {as_code(options.domain)}, seed {options.seed or 0}. By distill {__version__}"
    if measures.passages:
        yield f"- Grounded: {measures.passages:,} records are about a passage of a document, kept in their metadata"
    yield (
        f"- Not kept: questions that are {options.near_duplicate:.0%} or more like an earlier one (MinHash over word "
        "shingles), refusals, cut-off answers, other languages, wrong results where the result is known"
    )
    if result.rejected:
        rejected = ", ".join(f"{as_code(name)} {count:,}" for name, count in result.rejected.items())
        yield f"- Drafts that were not kept, by reason: {rejected}"
    yield "- Nothing that a model wrote was executed"

    yield "\n## What is in it\n"
    yield "| File | Content |\n|---|---|"
    yield "| `train.jsonl` | a record a line: `messages`, `metadata` |"
    yield f"| `combined_{result.records}.json` | the same as one object with `conversations` |"
    yield f"| `combined_{result.records}.csv` | `user`, `assistant`, `dataset_type` and all attributes |"
    for name in result.by_type:
        yield f"| `{name}.csv` | the {name} records in columns of their own |"
    yield (
        "\nIn the CSV files an apostrophe stands before cells that a spreadsheet would take for a formula. "
        "`metadata` holds the models, tokens, cost, what was drawn for the record, and `expected_answer` where the "
        "result is known."
    )

    yield "\n## Balance\n"
    yield "| Attribute | Evenness (1: as planned) | Records |\n|---|---|---|"
    for name, counts in measures.counts.items():
        shown = ", ".join(f"{_cell(value)} {count:,}" for value, count in counts.most_common(MOST_VALUES))
        more = f", and {len(counts) - MOST_VALUES:,} more" if len(counts) > MOST_VALUES else ""
        value = measures.balance.get(name)
        yield f"| {_cell(name)} | {'' if value is None else f'{value:.3f}'} | {shown}{more} |"
    if result.distinct_2 is not None:
        yield f"\nDifferent word pairs among all of the questions (distinct-2): {result.distinct_2:.3f}"

    yield "\n## What it cost\n"
    for role, price in prices.items():
        said = (
            f"{price.prompt * 1e6:g} / {price.completion * 1e6:g} USD per million prompt / completion tokens "
            f"({price.source})"
            if price
            else "no price known, or a model that runs locally"
        )
        yield f"- Price of {role}: {said}"
    cost = "unknown" if result.cost_usd is None else f"{result.cost_usd:.4f} USD"
    yield (
        f"- The last run: {result.prompt_tokens:,} tokens in, {result.completion_tokens:,} out, {cost}; `run.json` has "
        "every run, and each record its own share"
    )

    yield "\n## Terms\n"
    yield (
        "This card claims no licence. The terms of the models' providers decide what their answers may be used for: "
        "some forbid training models that compete with theirs. Where documents were given, their licences hold for "
        "the passages too. Read them before you train on these data or publish them."
    )
    yield (
        "\nModels make mistakes and repeat the biases of what they were trained on. Where no result is checked, nobody "
        "has checked the answers: `check_data.py` measures what can be measured, and some records should be read by "
        "somebody who knows the field."
    )


def _cell(text: str) -> str:
    """Text in a table's cell."""
    return as_code(text).replace("|", "\\|")
