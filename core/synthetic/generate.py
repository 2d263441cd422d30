"""`generate_synthetic`: from a domain to a data set, by models that ask and answer; nothing that was paid is lost."""

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..commands.generate_synthetic import GenerateSynthetic, Synthesized, SyntheticPlan
from ..data.run import Run
from ..errors import MissingDependency, StoppedEarly, UsageError
from .documents import read_passages
from .domain import Domain, load_domain
from .folder import Folder
from .records import Passage

if TYPE_CHECKING:
    from ..teachers.engine import Spending


def generate(options: GenerateSynthetic, run: Run) -> Synthesized | SyntheticPlan:
    """Do the work of the command. Raises UsageError before anything is spent when something is wrong."""
    check_packages()
    return asyncio.run(_generate(options, run))


def check_packages() -> None:
    """Raises MissingDependency for what the extra `data` holds."""
    for package in ("datasketch", "jsonschema", "py3langid"):
        if find_spec(package) is None:
            raise MissingDependency(package, "generate_synthetic", "data")


async def _generate(options: GenerateSynthetic, run: Run) -> Synthesized | SyntheticPlan:
    from .dry_run import plan_of  # these want numpy
    from .synthesis import Synthesis
    from .voices import open_voices

    if options.skip_generation:
        return await validated(options, run, there(options))
    domain = load_domain(options.domain)
    given = {name: value for name in ("system", "language") if (value := getattr(options, name)) is not None}
    domain = in_its_language(domain.model_copy(update=given), run)
    passages: list[Passage] = []
    if options.documents is not None:
        passages, notes = read_passages(options.documents, domain.documents.characters)
        for note in notes:
            run.progress.note(note)
    voices = await open_voices(options, domain)
    try:
        for note in voices.notes:
            run.progress.note(note)
        synthesis = Synthesis(options, run, domain, passages, voices)
        if options.dry_run:
            return plan_of(synthesis)
        result = await synthesis.run()
    finally:
        await voices.aclose()
    if not (options.validate_ and result.records and result.status in ("done", "some_failed")):
        return result
    try:
        return await validated(options, run, result, synthesis.spending)
    except (UsageError, StoppedEarly) as error:  # the data set is made, all the same
        return result.model_copy(update={"advice": [*result.advice, f"--validate came to nothing: {error}"]})


def in_its_language(domain: Domain, run: Run) -> Domain:
    """The domain without tasks whose problems are made here, where it is not English: theirs are."""
    foreign = [task.name for task in domain.reasoning if task.is_made_here]
    if domain.language in ("en", "any") or not foreign:
        return domain
    run.progress.note(f"left out, because their questions are English: {', '.join(foreign)}")
    return domain.model_copy(update={"reasoning": [task for task in domain.reasoning if not task.is_made_here]})


def there(options: GenerateSynthetic) -> Synthesized:
    """The data set as an earlier run left it. Raises UsageError when there is none."""
    train = Folder(options.output_dir).train
    if not train.is_file():
        raise UsageError(f"{train}: there is no data set yet. Leave out --skip-generation, or name its --output-dir.")
    with train.open("rb") as file:
        rows = sum(1 for line in file if line.strip())
    if not rows:
        raise UsageError(f"{train} is empty.")
    return Synthesized(
        output_dir=options.output_dir, domain=options.domain, records=rows, wanted=rows, added=0, answer_model=""
    )


async def validated(
    options: GenerateSynthetic, run: Run, result: Synthesized, spending: "Spending | None" = None
) -> Synthesized:
    """The same with what new answers of the answering model say of those that are there. spending: so far, under the
    same --max-cost."""
    from ..commands.check_data import CheckData
    from ..quality.rows import open_rows
    from ..quality.teaching import validate

    folder = Folder(options.output_dir)
    with open_rows(CheckData(data=str(folder.train))) as read:
        overlap = await validate(
            read(),
            options.answering(),
            options.validate_samples,
            options.seed or 0,
            options.max_tokens,
            folder.path / "validation",
            run,
            spending=spending,
        )
    return result.model_copy(update={"overlap": overlap})
